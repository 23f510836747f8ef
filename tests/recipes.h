/* recipes.h - what a test asks of the table of recipes. */
#ifndef DICTLEARN_TESTS_RECIPES_H
#define DICTLEARN_TESTS_RECIPES_H

/* Whether a recipe has a setting, by its table. */
TEST_UNUSED int uses(const char *recipe, const char *setting) {
    const dlrn_recipe_info *info = &dlrni_recipe_named(recipe)->info;
    for (int i = 0; info->settings[i]; i++)
        if (!strcmp(info->settings[i], setting)) return 1;
    return 0;
}
#endif /* DICTLEARN_TESTS_RECIPES_H */
