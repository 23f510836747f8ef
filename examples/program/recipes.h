/* Families and recipes in words: the formula of a dictionary, train --recipe list. */

/* ---- formulas */

enum { FORMULA_MAX = 640 }; /* bytes of a formula in words: twice the longest */

/* Appends to a text of FORMULA_MAX bytes. */
static void say(char *text, const char *format, ...) DLRN_PRINTF(2, 3);
static void say(char *text, const char *format, ...) {
    const size_t at = strlen(text);
    va_list args;
    va_start(args, format);
    vsnprintf(text + at, FORMULA_MAX - at, format, args);
    va_end(args);
}

/* Whether a scale is not 1. */
static int scales(double scale) {
    return scale < 1 || scale > 1;
}

/* How x becomes z, the rows that the encoder sees; nothing where z is x. */
static void say_input(char *text, const dlrn_formula *m) {
    static const char *const rows[] = {"x", "x sqrt(d) / |x|", "(x - mean) / (std + 1e-5)"};
    if (!m->normalise && !scales(m->scale_in)) return;
    say(text, "z = ");
    if (scales(m->scale_in)) say(text, "%.6g ", m->scale_in);
    say(text, "%s, ", rows[m->normalise]);
}

/* Matching pursuit has no pre-activations: its steps. c: what the center leaves of the rows. */
static void say_pursuit(char *text, const dlrn_formula *m, const char *c) {
    say(text, "f = what each atom takes of %s: the atom with the largest product with the rest, ",
        c);
    if (m->k) say(text, "at most %lld steps", (long long)m->k);
    if (!m->k) say(text, "at most d steps");
    if (m->threshold > 0) say(text, ", until the rest's norm is below %.6g", m->threshold);
    if (!m->repeats) say(text, ", or an atom comes again");
}

/* The pre-activations. */
static void say_encoder(char *text, const char *family, const dlrn_formula *m, const char *c) {
    if (!strcmp(family, "Glu"))
        say(text, "p = (W_enc %s + b_enc) sigmoid(W_gate %s + b_gate)", c, c);
    else if (!strcmp(family, "Cosine"))
        say(text, "p = cos(%s, W_enc) |%s|^sigmoid(b_gate) + b_enc", c, c);
    else if (!strcmp(family, "GatedTopK"))
        say(text, "g = W_gate %s + b_gate, p = sigmoid(g) W_enc %s for the %lld largest g", c, c,
            (long long)m->k);
    else if (!strcmp(family, "Temporal"))
        say(text, "p = W_enc (%s - what attention to earlier rows predicts)", c);
    else
        say(text, "p = W_enc %s + b_enc", c);
}

/* What p is multiplied with where thresholds and selections look at it. */
static const char *rank_words(const dlrn_formula *m) {
    static const char *const words[] = {"", " |atom|", " (sum of |atom| over layers)"};
    return words[m->rank];
}

/* The gate, with its threshold where one number holds for all features. */
static void say_gate(char *text, const dlrn_formula *m, int has_thresholds) {
    static const char *const gates[] = {
        "max(p, 0)", NULL, NULL, "max(e^s (p - b_enc) + b_value, 0) where p > 0", "p", "x"};
    const char *rank = rank_words(m);
    if (gates[m->gate])
        say(text, "%s", gates[m->gate]);
    else if (m->gate == DLRN_GATE_JUMP_SIGNED)
        say(text, "p where p%s > threshold", rank);
    else if (has_thresholds)
        say(text, "p where p%s > max(threshold, 0)", rank);
    else
        say(text, "p where p%s > %.6g", rank, m->threshold > 0 ? m->threshold : 0);
}

/* Which features are kept, up to the gate. */
static void say_selection(char *text, const dlrn_formula *m) {
    char by[80] = "";
    const long long k = (long long)m->k;
    if (m->rank) snprintf(by, sizeof by, ", by p%s,", rank_words(m));
    if (m->standardise) snprintf(by, sizeof by, ", by (p - mean) / std over the rows of a call,");
    if (m->select == DLRN_SELECT_TOP_K) say(text, "the %lld largest%s of ", k, by);
    if (m->select == DLRN_SELECT_ABS_TOP_K) say(text, "the %lld of largest size%s of ", k, by);
    if (m->select == DLRN_SELECT_GROUP_MAX) say(text, "the largest in each of %lld groups of ", k);
    if (m->select == DLRN_SELECT_BATCH_TOP_K)
        say(text, "the %lld n largest of all n rows of a call%s of ", k, by);
}

/* x_hat of a dictionary, of a part, or of new dictionaries (NULL). z: what a skip multiplies. */
static void say_output(char *text, const dlrn_formula *m, const char *z,
                       const dlrn_dictionary *dict) {
    say(text, ", x_hat = ");
    if (scales(m->scale_out)) say(text, "%.6g (", m->scale_out);
    say(text, dict && dict->n_parts ? "the sum of the parts" : "W_dec f");
    if (dict && dict->param[DLRN_DECODER_OFFSET]) say(text, " + the offset of each active feature");
    if (dict && dict->heads) say(text, " + predicted");
    /* the bias of a part is the whole's */
    if (!dict || dict->param[DLRN_OUTPUT_BIAS]) say(text, " + b");
    if (dict && dict->param[DLRN_SKIP]) say(text, " + W_skip %s", z);
    if (scales(m->scale_out)) say(text, ")");
    if (m->normalise) say(text, ", scaled back");
}

/* The formula of a family that a person can compute from, on one line: "f = ...". dict NULL: of new
   dictionaries. */
static void formula_words(char text[FORMULA_MAX], const char *family, const dlrn_formula *m,
                          const dlrn_dictionary *dict) {
    const char *z = m->normalise || scales(m->scale_in) ? "z" : "x";
    char c[16];
    *text = 0;
    if (m->gate == DLRN_GATE_IDENTITY) {
        say(text, "f = x, x_hat = f");
        return;
    }
    if (m->center)
        snprintf(c, sizeof c, "(%s - %s)", z, m->center == DLRN_CENTER_INPUT_BIAS ? "b_in" : "b");
    else
        snprintf(c, sizeof c, "%s", z);
    say_input(text, m);
    if (dict && dict->n_parts) {
        say(text, "f = ");
        say_selection(text, m);
        say(text, "the features of all parts");
    } else if (!strcmp(family, "MatchingPursuit")) {
        say_pursuit(text, m, c);
    } else {
        const int scaled = dict && dict->param[DLRN_LOG_SCALE] && m->gate != DLRN_GATE_GATED;
        say_encoder(text, family, m, c);
        say(text, scaled ? ", f = e^s times " : ", f = ");
        /* that family has selected by g */
        if (strcmp(family, "GatedTopK")) say_selection(text, m);
        say_gate(text, m, dict ? dict->param[DLRN_THRESHOLD] != NULL : m->threshold < 0);
    }
    say_output(text, m, z, dict);
}

/* Whether the threshold of the formula is used: in a top-k family it is a figure of training. */
static int uses_threshold(const dlrn_dictionary *dict) {
    const dlrn_formula *m = &dict->formula;
    return m->threshold >= 0 && !dict->param[DLRN_THRESHOLD] &&
           (m->gate == DLRN_GATE_JUMP || m->gate == DLRN_GATE_JUMP_SIGNED);
}

/* The fields of a formula; those that most dictionaries have not are left out. */
static void put_fields(const dlrn_dictionary *dict) {
    const dlrn_formula *m = &dict->formula;
    if (m->normalise) printf("normalise %s, ", dlrn_name(DLRN_NAMES_NORMALISE, (int)m->normalise));
    if (dict->n_parts) /* which have the other fields */
        printf("all parts: ");
    else
        printf("center %s, gate %s, ", dlrn_name(DLRN_NAMES_CENTER, (int)m->center),
               dlrn_name(DLRN_NAMES_GATE, (int)m->gate));
    printf("select %s", dlrn_name(DLRN_NAMES_SELECT, (int)m->select));
    if (m->k) printf(", k %lld", (long long)m->k);
    if (m->rank) printf(", rank %s", dlrn_name(DLRN_NAMES_RANK, (int)m->rank));
    if (uses_threshold(dict)) printf(", threshold %.6g", m->threshold);
    if (m->standardise) printf(", standardised");
    putchar('\n');
}

/* What inspect prints of a formula. */
static void put_formula_words(const dlrn_dictionary *dict) {
    char text[FORMULA_MAX];
    put_fields(dict);
    formula_words(text, dict->family, &dict->formula, dict);
    puts(text);
}

/* The same as JSON. */
static void put_formula_json(json_writer *j, const dlrn_dictionary *dict) {
    const dlrn_formula *m = &dict->formula;
    char text[FORMULA_MAX];
    formula_words(text, dict->family, m, dict);
    json_open(j, "formula", '{');
    json_text(j, "normalise", dlrn_name(DLRN_NAMES_NORMALISE, (int)m->normalise));
    json_text(j, "center", dlrn_name(DLRN_NAMES_CENTER, (int)m->center));
    json_text(j, "gate", dlrn_name(DLRN_NAMES_GATE, (int)m->gate));
    json_text(j, "select", dlrn_name(DLRN_NAMES_SELECT, (int)m->select));
    if (m->k) json_int(j, "k", m->k);
    if (m->threshold >= 0) json_real(j, "threshold", 9, m->threshold);
    json_bool(j, "standardise", m->standardise == DLRN_ON);
    json_text(j, "rank", dlrn_name(DLRN_NAMES_RANK, (int)m->rank));
    json_real(j, "scale_in", 9, m->scale_in);
    json_real(j, "scale_out", 9, m->scale_out);
    json_text(j, "words", text);
    json_close(j, '}');
}

/* ---- recipes */

/* 0, or the exit status of a wrong call. */
static int check_recipe(const char *name) {
    char what[1024] = "expected";
    size_t at = strlen(what);
    if (find_recipe(name)) return 0;
    for (int i = 0; dlrn_recipe(i) && at < sizeof what; i++)
        at += (size_t)snprintf(what + at, sizeof what - at, " %s,", dlrn_recipe(i)->name);
    if (at >= sizeof what) at = sizeof what - 1;
    snprintf(what + at, sizeof what - at, " or list as --recipe");
    return usage_error("train", what, name);
}

/* The defaults of the flags that are settings of a recipe. */
static void put_defaults(const dlrn_recipe_info *recipe, const dlrn_train_config *cfg) {
    int at = printf("  defaults: --batch-size %lld", (long long)cfg->buffer.batch_rows);
    for (int i = 0; i < FLAGS; i++) {
        const flag *f = &flags[i];
        char value[64], text[128];
        setting_text(f, cfg, value, sizeof value);
        if (!strcmp(f->name, "--groups"))
            snprintf(value, sizeof value, "0.03125,0.0625,0.125,0.25,0.53125");
        if (!*value || !suits_recipe(recipe, f) || !strcmp(f->name, "--log-steps")) continue;
        snprintf(text, sizeof text, " %s %s", f->name, value);
        if (at + (int)strlen(text) > HELP_COLUMNS) at = printf("\n   ") - 1;
        at += printf("%s", text);
    }
    putchar('\n');
}

/* What a recipe trains, with the k of its defaults. */
static void recipe_formula(const dlrn_recipe_info *recipe, const dlrn_train_config *cfg,
                           char words[FORMULA_MAX]) {
    dlrn_formula formula = *recipe->formula;
    formula.k = cfg->k;
    formula_words(words, recipe->family, &formula, NULL);
}

/* One recipe. A rate that depends on the number of features is given for 16384. */
static void put_recipe(const dlrn_recipe_info *recipe) {
    dlrn_train_config cfg = dlrn_train_defaults(recipe->name);
    char words[FORMULA_MAX];
    const int derived = cfg.lr < 0;
    if (derived) cfg.lr = recipe->lr;
    recipe_formula(recipe, &cfg, words);
    printf("%s: family %s, as in %s\n", recipe->name, recipe->family,
           recipe->layout ? recipe->layout : "no library");
    print_wrapped(words, printf("  formula:"), 4);
    print_wrapped(recipe->loss, printf("  loss:"), 4);
    put_defaults(recipe, &cfg);
    if (derived) puts("  --lr as for 16384 features: it falls with the root of their number");
}

/* The same as JSON; "settings" as in config.json, "uses": those that not all recipes use. */
static void put_recipe_json(json_writer *j, const dlrn_recipe_info *recipe) {
    dlrn_train_config cfg = dlrn_train_defaults(recipe->name);
    char words[FORMULA_MAX], settings[4096];
    cfg.features = 16384;
    recipe_formula(recipe, &cfg, words);
    dlrn_train_config_json(&cfg, settings, sizeof settings);
    json_open(j, NULL, '{');
    json_text(j, "name", recipe->name);
    json_text(j, "family", recipe->family);
    json_text(j, "library", recipe->layout ? recipe->layout : "");
    json_text(j, "class", recipe->class_name ? recipe->class_name : "");
    json_text(j, "formula", words);
    json_text(j, "loss", recipe->loss);
    json_open(j, "uses", '[');
    for (int i = 0; recipe->settings[i]; i++) json_text(j, NULL, recipe->settings[i]);
    json_close(j, ']');
    json_int(j, "batch_size", cfg.buffer.batch_rows);
    json_key(j, "settings");
    fputs(settings, j->f);
    json_close(j, '}');
}

/* train --recipe list. */
static int list_recipes(const options *o) {
    json_writer j = {stdout, 0};
    if (o->json) json_open(&j, NULL, '[');
    for (int i = 0; dlrn_recipe(i); i++) {
        if (!o->json && i) putchar('\n');
        if (o->json)
            put_recipe_json(&j, dlrn_recipe(i));
        else
            put_recipe(dlrn_recipe(i));
    }
    if (o->json) json_close(&j, ']'), putchar('\n');
    return 0;
}
