/* Families and recipes in words: the formula of a dictionary, train --recipe list. */

/* ---- formulas */

/* One line that a person can compute from: "f = ...". */
static void put_formula(const dlrn_formula *m) {
    static const char *const inputs[] = {"x", "(x - b)", "(x - b_in)"};
    static const char *const gates[] = {"max(p, 0)", "p where p > max(threshold, 0)", "x"};
    if (m->gate == DLRN_GATE_IDENTITY) {
        puts("f = x, x_hat = f");
        return;
    }
    printf("p = W_enc %s + b_enc, f = ", inputs[m->center]);
    if (m->select == DLRN_SELECT_TOP_K) printf("the %lld largest of ", (long long)m->k);
    printf("%s, x_hat = W_dec f + b\n", gates[m->gate]);
}

/* What inspect prints of a dictionary's layout and formula. */
static void put_formula_words(const dlrn_dictionary *dict) {
    const dlrn_formula *m = &dict->formula;
    printf("layout %s, center %s, gate %s, select %s", dict->layout ? dict->layout : "none",
           dlrn_name(DLRN_NAMES_CENTER, (int)m->center), dlrn_name(DLRN_NAMES_GATE, (int)m->gate),
           dlrn_name(DLRN_NAMES_SELECT, (int)m->select));
    if (m->select == DLRN_SELECT_TOP_K) printf(", k %lld", (long long)m->k);
    putchar('\n');
    put_formula(m);
}

/* The same as JSON. */
static void put_formula_json(json_writer *j, const dlrn_dictionary *dict) {
    const dlrn_formula *m = &dict->formula;
    if (dict->layout) json_text(j, "layout", dict->layout);
    json_open(j, "formula", '{');
    json_text(j, "center", dlrn_name(DLRN_NAMES_CENTER, (int)m->center));
    json_text(j, "gate", dlrn_name(DLRN_NAMES_GATE, (int)m->gate));
    json_text(j, "select", dlrn_name(DLRN_NAMES_SELECT, (int)m->select));
    if (m->select == DLRN_SELECT_TOP_K) json_int(j, "k", m->k);
    if (m->threshold >= 0) json_real(j, "threshold", 9, m->threshold);
    json_real(j, "scale_in", 9, m->scale_in);
    json_real(j, "scale_out", 9, m->scale_out);
    json_close(j, '}');
}

/* ---- recipes */

/* 0, or the exit status of a wrong call. */
static int check_recipe(const char *name) {
    char what[256] = "expected";
    size_t at = strlen(what);
    if (find_recipe(name)) return 0;
    for (int i = 0; dlrn_recipe(i); i++) {
        at += (size_t)snprintf(what + at, sizeof what - at, " %s,", dlrn_recipe(i)->name);
        if (at >= sizeof what) at = sizeof what - 1;
    }
    snprintf(what + at, sizeof what - at, " or list as --recipe");
    return usage_error("train", what, name);
}

/* The defaults of the flags that are settings of a recipe. A rate that depends on the number of
   features is given for 16384. */
static void put_defaults(const dlrn_recipe_info *recipe, const dlrn_train_config *cfg) {
    const size_t begin = offsetof(options, train);
    int at = printf("  defaults: --loss %s", dlrn_name(DLRN_NAMES_LOSS, (int)cfg->loss));
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        const flag *f = &flags[i];
        const char *field = (const char *)cfg + (f->at - begin);
        char text[96];
        int64_t n;
        double d;
        if (f->at < begin || f->at >= begin + sizeof *cfg) continue;
        if (!suits_recipe(recipe, f)) continue;
        memcpy(&n, field, sizeof n);
        memcpy(&d, field, sizeof d);
        if (f->kind == F_INT && n < 0) continue; /* never */
        if (f->kind == F_INT)
            snprintf(text, sizeof text, " %s %lld", f->name, (long long)n);
        else
            snprintf(text, sizeof text, " %s %.6g", f->name, d);
        if (at + (int)strlen(text) > HELP_COLUMNS) at = printf("\n   ") - 1;
        at += printf("%s", text);
    }
    putchar('\n');
}

/* train --recipe list. */
static int list_recipes(void) {
    for (int i = 0; dlrn_recipe(i); i++) {
        const dlrn_recipe_info *recipe = dlrn_recipe(i);
        dlrn_train_config cfg = dlrn_train_defaults(recipe->name);
        dlrn_formula formula = *recipe->formula;
        int derived = cfg.lr < 0;
        formula.k = cfg.k;
        if (derived) cfg.lr = recipe->lr;
        printf("%s%s: family %s\n  ", i ? "\n" : "", recipe->name, recipe->family);
        put_formula(&formula);
        print_wrapped(recipe->loss, printf("  loss:"), 4);
        put_defaults(recipe, &cfg);
        if (derived) puts("  --lr as for 16384 features: it falls with the root of their number");
    }
    return 0;
}
