/* The recipes in words: the manual's list of them is written from the table that the trainer reads,
   and README names each. Run from the repository's root.

       build/test_recipes              the tests
       build/test_recipes --manual     writes the manual's list, which is tested, too */
#include "dictlearn.h"
#include "test.h"

enum { TEXT_MAX = 1 << 23, LIST_MAX = 1 << 16 };
static char header[TEXT_MAX], readme[1 << 17], list[LIST_MAX], config[8192];

/* The list stands in the manual between these lines. */
#define BEGIN "   ---- RECIPES "
#define END "\n   ---- FORMULA AND FAMILIES "

static dlrn_context *ctx;

static void read_text(const char *path, char *text, size_t size) {
    FILE *file = fopen(path, "rb");
    CHECK_MSG(file != NULL, "%s: not found", path);
    size_t n = fread(text, 1, size - 1, file);
    text[n] = 0;
    fclose(file);
}

/* Where the list is in `header`: the lines after that with BEGIN, up to the line with END. */
static char *find_list(char **end) {
    read_text("dictlearn.h", header, sizeof header);
    char *begin = strstr(header, BEGIN);
    CHECK_MSG(begin != NULL, "dictlearn.h: no line begins with \"%s\"", BEGIN);
    begin = strchr(begin, '\n') + 1;
    *end = strstr(begin, END);
    CHECK_MSG(*end != NULL, "dictlearn.h: no line begins with \"%s\"", END + 1);
    ++*end;
    return begin;
}

/* Appends a word, in lines of at most 100 columns that begin with `indent` blanks. */
static size_t put_word(char *text, size_t at, size_t *column, int indent, const char *word) {
    const size_t n = strlen(word);
    if (*column && *column + 2 + n > 100) { /* a comma may follow */
        text[at++] = '\n';
        *column = 0;
    }
    if (!*column) {
        memset(text + at, ' ', (size_t)indent);
        at += (size_t)indent;
        *column = (size_t)indent;
    } else {
        text[at++] = ' ';
        ++*column;
    }
    memcpy(text + at, word, n);
    *column += n;
    return at + n;
}

static size_t put_words(char *text, size_t at, size_t *column, int indent, const char *words) {
    char word[128];
    while (*words) {
        size_t n = strcspn(words, " ");
        snprintf(word, sizeof word, "%.*s", (int)n, words);
        at = put_word(text, at, column, indent, word);
        words += n + (words[n] == ' ');
    }
    return at;
}

/* A setting and its default; settings that are off are left out. Returns 0 for those. */
static int setting_text(char *text, size_t size, const dlrn_json *settings, const char *name) {
    const dlrn_json *value = dlrn_json_get(settings, name);
    CHECK_MSG(value != NULL, "setting %s: not in the configuration as JSON", name);
    if (value->type == DLRN_JSON_STRING)
        snprintf(text, size, "%s %s", name, value->text);
    else if (value->type == DLRN_JSON_BOOL)
        snprintf(text, size, "%s %s", name, value->number > 0 ? "on" : "off");
    else if (value->type == DLRN_JSON_NUMBER)
        snprintf(text, size, "%s %.6g", name, value->number);
    /* 1 of these is none */
    if (!strcmp(name, "layers") || !strcmp(name, "lr_cycles")) return value->number > 1;
    return value->type == DLRN_JSON_STRING || value->number > 0;
}

/* The defaults of a recipe: those of all recipes, then its own. */
static size_t put_defaults(char *text, size_t at, const dlrn_recipe_info *info) {
    static const char *const common[] = {"lr", "warmup_steps", "clip", "beta1", NULL};
    dlrn_train_config cfg = dlrn_train_defaults(info->name);
    cfg.features = 16384; /* for a rate that is derived */
    const char *const *parts[2] = {common, info->settings};
    size_t column = 0;
    int count = 0;
    dlrn_json *settings;
    char part[160];
    CHECK(dlrn_train_config_json(&cfg, config, sizeof config) < (int64_t)sizeof config);
    CHECK_OK(ctx, dlrn_json_parse(ctx, config, strlen(config), info->name, &settings));
    for (int i = 0; i < 2; i++)
        for (const char *const *name = parts[i]; *name; name++) {
            if (!strcmp(*name, "groups") || !strcmp(*name, "group_weights")) continue;
            if (!setting_text(part, sizeof part, settings, *name)) continue;
            if (count++) text[at++] = ',', column++;
            at = put_words(text, at, &column, 7, part);
        }
    text[at++] = '\n';
    dlrn_free(ctx, settings);
    return at;
}

static void make_list(char *text) {
    size_t at = (size_t)sprintf(
        text,
        "\n   Written from the table of room recipes (make readme), as `train --recipe list` is. "
        "A recipe's\n   name, family and library; what a step minimises; the settings and their "
        "defaults that are not\n   off. A rate lr is given for 16384 features where it is derived "
        "from their number.\n\n");
    for (int r = 0; dlrn_recipe(r); r++) {
        const dlrn_recipe_info *info = dlrn_recipe(r);
        size_t column = 0;
        at += (size_t)sprintf(text + at, "   %s (%s, %s)\n", info->name, info->family,
                              info->layout ? info->layout : "no library");
        at = put_words(text, at, &column, 7, info->loss);
        text[at++] = '\n';
        at = put_defaults(text, at, info);
    }
    text[at] = 0;
    CHECK(at < LIST_MAX);
}

TEST(the_manual_lists_the_recipes) {
    char *end, *begin = find_list(&end);
    make_list(list);
    CHECK_MSG((size_t)(end - begin) == strlen(list) && !memcmp(begin, list, strlen(list)),
              "dictlearn.h: another list of recipes; build/test_recipes --manual writes it");
}

TEST(readme_names_the_recipes) {
    char name[64];
    read_text("README.md", readme, sizeof readme);
    for (int r = 0; dlrn_recipe(r); r++) {
        snprintf(name, sizeof name, "`%s`", dlrn_recipe(r)->name);
        CHECK_MSG(strstr(readme, name) != NULL, "README.md: recipe %s is missing", name);
    }
}

/* Settings are fields of the configuration, and each recipe names the ones that it has on. */
TEST(settings_are_fields) {
    for (int r = 0; dlrn_recipe(r); r++) {
        const dlrn_recipe_info *info = dlrn_recipe(r);
        CHECK(info->family && info->loss && *info->loss && info->formula);
        CHECK_MSG(!strchr(info->loss, '\n'), "%s: the loss is one line", info->name);
        put_defaults(list, 0, info);
        for (int q = 0; q < r; q++) CHECK(strcmp(info->name, dlrn_recipe(q)->name) != 0);
    }
}

static void test_write_manual(void) {
    char *end, *begin = find_list(&end);
    make_list(list);
    FILE *file = fopen("dictlearn.h", "wb");
    CHECK(file && fwrite(header, 1, (size_t)(begin - header), file) == (size_t)(begin - header));
    CHECK(fputs(list, file) >= 0 && fputs(end, file) >= 0 && fclose(file) == 0);
}

int main(int argc, char **argv) {
    int write_manual = argc > 1 && !strcmp(argv[1], "--manual");
    TEST_BEGIN(argc, argv);
    if (dlrn_context_create(NULL, &ctx) != DLRN_OK) return 1;
    if (write_manual) {
        test_state.filter = NULL;
        test_run("write_manual", test_write_manual);
    } else {
        RUN(the_manual_lists_the_recipes);
        RUN(readme_names_the_recipes);
        RUN(settings_are_fields);
    }
    dlrn_context_destroy(ctx);
    return TEST_END();
}
