/* Families and recipes in words: the formula of a dictionary, train --recipe list. */

/* ---- formulas */

/* What is multiplied with the encoder: "x", "(z - b)". */
static void put_input(const dlrn_formula *m, char text[16]) {
    static const char *const centers[] = {"", " - b", " - b_in"};
    const char *z = m->normalise || m->scale_in < 1 || m->scale_in > 1 ? "z" : "x";
    if (m->center)
        snprintf(text, 16, "(%s%s)", z, centers[m->center]);
    else
        snprintf(text, 16, "%s", z);
}

/* z, where it is not x. */
static void put_scaling(const dlrn_formula *m) {
    static const char *const rows[] = {"x", "x sqrt(d) / |x|", "(x - mean) / std"};
    if (m->scale_in < 1 || m->scale_in > 1)
        printf("z = %g %s, ", m->scale_in, rows[m->normalise]);
    else if (m->normalise)
        printf("z = %s, ", rows[m->normalise]);
}

/* How p comes from the input, by the family where that has an encoder of its own. */
static void put_encoder(const char *family, const dlrn_formula *m) {
    char in[16];
    put_input(m, in);
    if (!strcmp(family, "Glu"))
        printf("p = (W_enc %s + b_enc) sigmoid(W_gate %s + b_gate), ", in, in);
    else if (!strcmp(family, "Cosine"))
        printf("p = cos(w, %s) |%s|^sigmoid(b_gate) + b_enc, ", in, in);
    else if (!strcmp(family, "GatedTopK"))
        printf("g = W_gate %s + b_gate, p = W_enc %s sigmoid(g) of the %lld largest g, ", in, in,
               (long long)m->k);
    else if (!strcmp(family, "MatchingPursuit"))
        printf("r = %s, p_i += d_i r, r -= (d_i r) d_i for the largest d_i r, step by step, ", in);
    else
        printf("p = W_enc %s + b_enc, ", in);
}

/* Which features are kept, up to the gate. */
static void put_selection(const dlrn_formula *m) {
    const char *of = m->standardise ? ", by (p - mean) / std of the call's rows, of " : " of ";
    switch (m->select) {
    case DLRN_SELECT_TOP_K: printf("the %lld largest%s", (long long)m->k, of); break;
    case DLRN_SELECT_GROUP_MAX:
        printf("the largest of each of %lld groups of ", (long long)m->k);
        break;
    case DLRN_SELECT_BATCH_TOP_K:
        printf("the %lld n largest of the n rows of a call%s", (long long)m->k, of);
        break;
    default: break;
    }
}

/* One line that a person can compute from: "f = ...". */
static void put_formula(const char *family, const dlrn_formula *m) {
    static const char *const gates[] = {
        "max(p, 0)",
        "p where p > max(threshold, 0)",
        "p where p > threshold",
        "max(exp(s) (p - b_enc) + b_value, 0) where p > 0",
        "p",
        "x",
    };
    if (m->gate == DLRN_GATE_IDENTITY) {
        puts("f = x, x_hat = f");
        return;
    }
    put_scaling(m);
    put_encoder(family, m);
    fputs("f = ", stdout);
    if (strcmp(family, "GatedTopK")) put_selection(m); /* its p is selected */
    printf("%s", gates[m->gate]);
    if (m->select == DLRN_SELECT_ABS_TOP_K)
        printf(" where |p| is among the %lld largest", (long long)m->k);
    puts(", x_hat = W_dec f + b");
}

/* Whether all features have the threshold of the formula. */
static int has_one_threshold(const dlrn_dictionary *dict) {
    const dlrn_gate gate = dict->formula.gate;
    return (gate == DLRN_GATE_JUMP || gate == DLRN_GATE_JUMP_SIGNED) &&
           !dict->param[DLRN_THRESHOLD];
}

/* What inspect prints of a dictionary's layout and formula; of several parts, which differ in their
   numbers alone, the first stands for all. */
static void put_formula_words(const dlrn_dictionary *dict) {
    const dlrn_formula *m = &dict->formula;
    printf("layout %s, ", dict->layout ? dict->layout : "none");
    if (dict->n_parts) {
        if (m->select != DLRN_SELECT_ALL)
            printf("select over the layers %s, k %lld, ",
                   dlrn_name(DLRN_NAMES_SELECT, (int)m->select), (long long)m->k);
        if (m->standardise) printf("standardised over the rows, ");
        printf("%lld parts: ", (long long)dict->n_parts);
        dict = dict->part[0].dict;
        m = &dict->formula;
    }
    printf("center %s, gate %s, select %s", dlrn_name(DLRN_NAMES_CENTER, (int)m->center),
           dlrn_name(DLRN_NAMES_GATE, (int)m->gate), dlrn_name(DLRN_NAMES_SELECT, (int)m->select));
    if (m->normalise) printf(", normalise %s", dlrn_name(DLRN_NAMES_NORMALISE, (int)m->normalise));
    if (m->select != DLRN_SELECT_ALL) printf(", k %lld", (long long)m->k);
    if (has_one_threshold(dict)) printf(", threshold %.9g", m->threshold);
    putchar('\n');
    put_formula(dict->family, m);
}

/* The same as JSON. */
static void put_formula_json(json_writer *j, const dlrn_dictionary *dict) {
    const dlrn_formula *m = &dict->formula;
    if (dict->layout) json_text(j, "layout", dict->layout);
    json_open(j, "formula", '{');
    if (m->normalise) json_text(j, "normalise", dlrn_name(DLRN_NAMES_NORMALISE, (int)m->normalise));
    json_text(j, "center", dlrn_name(DLRN_NAMES_CENTER, (int)m->center));
    json_text(j, "gate", dlrn_name(DLRN_NAMES_GATE, (int)m->gate));
    json_text(j, "select", dlrn_name(DLRN_NAMES_SELECT, (int)m->select));
    if (m->select != DLRN_SELECT_ALL) json_int(j, "k", m->k);
    if (m->standardise) json_bool(j, "standardise", 1);
    if (m->threshold >= 0 || has_one_threshold(dict)) json_real(j, "threshold", 9, m->threshold);
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
        put_formula(recipe->family, &formula);
        print_wrapped(recipe->loss, printf("  loss:"), 4);
        put_defaults(recipe, &cfg);
        if (derived) puts("  --lr as for 16384 features: it falls with the root of their number");
    }
    return 0;
}
