/* Families and recipes in words: the formula of a dictionary, train --recipe list. */

/* ---- formulas. Names are those of the library's enumerations. */

static const char *const center_names[] = {"none", "output_bias", "input_bias"};
static const char *const gate_names[] = {"relu", "jump", "identity"};
static const char *const select_names[] = {"all", "top_k"};

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
           center_names[m->center], gate_names[m->gate], select_names[m->select]);
    if (m->select == DLRN_SELECT_TOP_K) printf(", k %lld", (long long)m->k);
    putchar('\n');
    put_formula(m);
}

/* The same as JSON. */
static void put_formula_json(json_writer *j, const dlrn_dictionary *dict) {
    const dlrn_formula *m = &dict->formula;
    if (dict->layout) json_text(j, "layout", dict->layout);
    json_open(j, "formula", '{');
    json_text(j, "center", center_names[m->center]);
    json_text(j, "gate", gate_names[m->gate]);
    json_text(j, "select", select_names[m->select]);
    if (m->select == DLRN_SELECT_TOP_K) json_int(j, "k", m->k);
    if (m->threshold >= 0) json_real(j, "threshold", 9, m->threshold);
    json_real(j, "scale_in", 9, m->scale_in);
    json_real(j, "scale_out", 9, m->scale_out);
    json_close(j, '}');
}

/* ---- recipes */

/* A trainer of rows of width 1 tells what a recipe makes of settings: family, formula, rate. The
   caller destroys it. */
static dlrn_status try_recipe(dlrn_context *ctx, const dlrn_train_config *cfg, dlrn_trainer **t) {
    dlrn_train_config narrow = *cfg;
    narrow.d_in = narrow.d_out = 1;
    return dlrn_trainer_create(ctx, &narrow, NULL, NULL, t);
}

/* The family that a recipe trains; and the rate that it derives, which config.json should name. */
static dlrn_status settle_recipe(dlrn_context *ctx, dlrn_train_config *cfg, const char **family) {
    dlrn_trainer *t = NULL;
    dlrn_status s = try_recipe(ctx, cfg, &t);
    if (s != DLRN_OK) return s;
    *family = dlrn_trainer_dictionary(t)->family;
    cfg->lr = dlrn_trainer_state_of(t).config->lr;
    dlrn_trainer_destroy(t);
    return DLRN_OK;
}

/* 0, or the exit status of a wrong call. */
static int check_recipe(const char *name) {
    char what[256] = "expected";
    size_t at = strlen(what);
    for (int i = 0; dlrn_recipe_name(i); i++) {
        if (!strcmp(dlrn_recipe_name(i), name)) return 0;
        at += (size_t)snprintf(what + at, sizeof what - at, " %s,", dlrn_recipe_name(i));
        if (at >= sizeof what) at = sizeof what - 1;
    }
    snprintf(what + at, sizeof what - at, " or list as --recipe");
    return usage_error("train", what, name);
}

/* The defaults of the flags that are settings of a recipe. A rate that depends on the number of
   features is given for 16384. */
static void put_defaults(const recipe_row *row, const dlrn_train_config *cfg) {
    const size_t begin = offsetof(options, train);
    int at = printf("  defaults: --loss %s", cfg->loss == DLRN_LOSS_SQUARED ? "squared" : "norm");
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        const flag *f = &flags[i];
        const char *field = (const char *)cfg + (f->at - begin);
        char text[96];
        int64_t n;
        double d;
        if (f->at < begin || f->at >= begin + sizeof *cfg) continue;
        if (f->commands & R_ANY && !(f->commands & row->bit)) continue;
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
static int list_recipes(dlrn_context *ctx) {
    for (int i = 0; i < RECIPES; i++) {
        const recipe_row *row = &recipe_rows[i];
        dlrn_trainer *t = NULL;
        dlrn_train_config cfg = dlrn_train_defaults(row->name);
        int derived = cfg.lr < 0;
        cfg.features = 16384;
        if (try_recipe(ctx, &cfg, &t) != DLRN_OK) return fail(ctx);
        cfg.lr = dlrn_trainer_state_of(t).config->lr;
        printf("%s%s: family %s\n  ", i ? "\n" : "", row->name, dlrn_trainer_dictionary(t)->family);
        put_formula(&dlrn_trainer_dictionary(t)->formula);
        print_wrapped(row->loss, printf("  loss:"), 4);
        put_defaults(row, &cfg);
        if (derived) puts("  --lr as for 16384 features: it falls with the root of their number");
        dlrn_trainer_destroy(t);
    }
    return 0;
}
