/* train --config: recipe and settings from the config of a run of another library, or of an own
   one. They become words of the command line, so that flags win over them and every value passes
   the same checks.

   A library is a line of a table: where its settings stand, how it tells a class, and which flag a
   key sets. dlrn_recipe_info names the class of each recipe. Keys that no line names concern data,
   devices and logs. */

typedef enum config_how {
    TAKE,         /* as it is; a list with commas                                      */
    TAKE_NAME,    /* by `words`: "theirs=ours,..."; others are refused                 */
    TAKE_ONLY,    /* sets nothing: a value other than `words` is refused               */
    TAKE_ABOVE_0, /* as it is, if it is above 0                                        */
    TAKE_UNLESS,  /* as it is, if key `words` is not above 0                           */
    TAKE_REST,    /* 1 - value                                                         */
    TAKE_PARTS,   /* the whole part; flag `words` takes the rest                       */
    TAKE_PRODUCT, /* times the keys `words` ("a b"); of a list its length; those that
                     are missing do not count                                          */
    TAKE_SIZES,   /* a list of ends: the sizes between them, up to key `words`         */
    TAKE_ROWS,    /* rows of a run: its steps                                          */
    TAKE_SHARE,   /* steps; below 1 a share of all                                     */
    TAKE_LAST,    /* the same, before the end: the step at which they begin            */
    TAKE_BEFORE   /* a step, if it is before the end                                   */
} config_how;

typedef struct config_key {
    const char *key; /* "a|b": the first of them that is there  */
    const char *flag;
    config_how how;
    const char *words;
    const char *none; /* what null means; NULL: the recipe's     */
} config_key;

enum { CONFIG_SIGNS = 2, CONFIG_LAYOUTS = 2 };
/* A recipe that needs more than the name of its class, which the library's table has: values of
   the keys `sign`. */
typedef struct config_class {
    const char *recipe;
    const char *value[CONFIG_SIGNS]; /* NULL: any                                          */
} config_class;

typedef struct config_library {
    const char *name;
    const char *places[6];               /* of keys, from the most special on; up to NULL        */
    const char *layouts[CONFIG_LAYOUTS]; /* its recipes have one of these; {NULL}: all           */
    const char *mark;                    /* the key that tells the library                       */
    const char *class_key;               /* names the recipe's class; NULL: there is one recipe  */
    const char *sign[CONFIG_SIGNS];      /* keys that choose among recipes of one class, or NULL */
    const config_class *classes;         /* up to one without a recipe; NULL: no such class      */
    const config_key *keys;              /* up to one without a key; NULL: they are called as our
                                       flags */
} config_library;

/* ---- dictionary_learning 0.1.0, and its fork with crosscoders */

static const config_key learning_keys[] = {
    {"out_batch_size", "--batch-size", TAKE, NULL, NULL},
    {"n_ctxs", "--n-ctxs", TAKE, NULL, NULL},
    {"ctx_len", "--ctx-len", TAKE, NULL, NULL},
    {"refresh_batch_size", "--in-batch-size", TAKE, NULL, NULL},
    {"dict_size", "--dict-size", TAKE, NULL, NULL},
    {"steps", "--steps", TAKE, NULL, NULL},
    {"seed", "--seed", TAKE, NULL, NULL},
    {"lr", "--lr", TAKE, NULL, NULL},
    {"warmup_steps", "--warmup-steps", TAKE, NULL, NULL},
    {"decay_start", "--decay-start", TAKE_BEFORE, NULL, NULL},
    {"resample_steps", "--resample-steps", TAKE, NULL, NULL},
    {"l1_penalty|sparsity_penalty", "--sparsity-penalty", TAKE, NULL, NULL},
    {"sparsity_warmup_steps", "--sparsity-warmup-steps", TAKE, NULL, "0"},
    {"sparsity_function", "--sparsity", TAKE_NAME, "Lp=lp,Lp^p=power", NULL},
    {"sparsity_queue_length", "--sparsity", TAKE_ONLY, "10", NULL},
    {"p_start", "--p-start", TAKE, NULL, NULL},
    {"p_end", "--p-end", TAKE, NULL, NULL},
    {"anneal_start", "--anneal-start", TAKE, NULL, NULL},
    {"anneal_end", "--anneal-end", TAKE, NULL, NULL},
    {"n_sparsity_updates", "--anneal-updates", TAKE, NULL, NULL},
    {"bandwidth", "--bandwidth", TAKE, NULL, NULL},
    {"target_l0", "--target-l0", TAKE, NULL, NULL},
    {"k_target|k", "--k", TAKE, NULL, NULL},
    {"k_initial", "--k-start", TAKE, NULL, NULL},
    {"k_annealing_steps|k_anneal_steps", "--k-anneal-steps", TAKE, NULL, NULL},
    {"auxk_alpha", "--auxk-alpha", TAKE, NULL, NULL},
    {"top_k_aux", "--auxk", TAKE, NULL, NULL},
    {"dead_feature_threshold", "--dead-rows", TAKE, NULL, NULL},
    {"threshold_beta", "--threshold-beta", TAKE, NULL, NULL},
    {"threshold_start_step", "--threshold-start-step", TAKE, NULL, NULL},
    {"group_sizes|group_fractions", "--groups", TAKE, NULL, NULL},
    {"group_weights", "--group-weights", TAKE, NULL, NULL},
    {"use_mse_loss", "--loss", TAKE_NAME, "false=norm,true=layers", NULL},
    {"code_normalization", NULL, TAKE_ONLY, "CROSSCODER", NULL},
    {"num_layers", "--layers", TAKE, NULL, NULL},
    {NULL, NULL, TAKE, NULL, NULL},
};

/* ---- SAELens 6: runner_cfg.json, cfg.json of a checkpoint or of the result */

static const config_class saelens_classes[] = {
    {"sl-jumprelu", {"step", "false"}},
    {"sl-jumprelu-tanh", {"tanh", "true"}},
    {"sl-jumprelu-quadratic", {"quadratic", "false"}},
    {NULL, {NULL, NULL}},
};
static const config_key saelens_keys[] = {
    {"train_batch_size_tokens|train_batch_size_samples", "--batch-size", TAKE, NULL, NULL},
    {"training_tokens|total_training_samples", "--steps", TAKE_ROWS, NULL, NULL},
    {"context_size", "--ctx-len", TAKE, NULL, NULL},
    {"n_batches_in_buffer", "--n-ctxs", TAKE_PRODUCT, "store_batch_size_prompts", NULL},
    {"store_batch_size_prompts", "--in-batch-size", TAKE, NULL, NULL},
    {"seed", "--seed", TAKE, NULL, NULL},
    {"d_sae", "--dict-size", TAKE, NULL, NULL},
    {"lr", "--lr", TAKE, NULL, NULL},
    {"adam_beta1", "--beta1", TAKE, NULL, NULL},
    {"adam_beta2", "--beta2", TAKE, NULL, NULL},
    {"lr_scheduler_name", "--lr-schedule", TAKE_NAME,
     "constant=constant,cosineannealing=cosine,cosineannealingwarmrestarts=cosine_restarts", NULL},
    {"lr_warm_up_steps", "--warmup-steps", TAKE, NULL, NULL},
    {"lr_end", "--lr-end", TAKE, NULL, NULL},
    {"lr_decay_steps", "--decay-start", TAKE_LAST, NULL, NULL},
    {"n_restart_cycles", "--lr-cycles", TAKE, NULL, NULL},
    {"dead_feature_window", "--dead-steps", TAKE, NULL, NULL},
    {"apply_b_dec_to_input", "--center", TAKE_NAME, "true=on,false=off", NULL},
    {"normalize_activations", "--scale-rows", TAKE_NAME, "none=off,expected_average_only_in=on",
     "off"},
    {"decoder_init_norm", "--atom-norm", TAKE, NULL, NULL},
    {"l1_coefficient|l0_coefficient", "--sparsity-penalty", TAKE, NULL, NULL},
    {"l1_warm_up_steps|l0_warm_up_steps", "--sparsity-warmup-steps", TAKE, NULL, NULL},
    {"lp_norm", "--p-start", TAKE, NULL, NULL},
    {"jumprelu_bandwidth", "--bandwidth", TAKE, NULL, NULL},
    {"jumprelu_init_threshold", "--new-threshold", TAKE, NULL, NULL},
    {"jumprelu_tanh_scale", NULL, TAKE_ONLY, "4", NULL},
    {"pre_act_loss_coefficient", "--pre-act", TAKE, NULL, "0"},
    {"target_l0", "--target-l0", TAKE, NULL, NULL},
    {"k", "--k", TAKE_PARTS, "--k-fraction", NULL},
    {"aux_loss_coefficient", "--auxk-alpha", TAKE, NULL, NULL},
    {"rescale_acts_by_decoder_norm", "--rescale", TAKE_NAME, "true=on,false=off", NULL},
    {"topk_threshold_lr", "--threshold-beta", TAKE_REST, NULL, NULL},
    {"matryoshka_widths", "--groups", TAKE_SIZES, "d_sae", NULL},
    {"use_matryoshka_aux_loss", "--auxk-by-group", TAKE_NAME, "true=on,false=off", NULL},
    {NULL, NULL, TAKE, NULL, NULL},
};

/* ---- sparsify 1.3: config.json of a run */

static const config_class sparsify_classes[] = {
    {"sp-topk", {"false", "false"}},
    {"sp-groupmax", {"false", "false"}},
    {"sp-transcoder", {"true", "false"}},
    {"sp-skip_transcoder", {"true", "true"}},
    {NULL, {NULL, NULL}},
};
static const config_key sparsify_keys[] = {
    {"batch_size", "--batch-size", TAKE_PRODUCT, "ctx_len", NULL},
    {"ctx_len", "--ctx-len", TAKE, NULL, NULL},
    {"grad_acc_steps", NULL, TAKE_ONLY, "1", NULL},
    {"num_latents", "--dict-size", TAKE_ABOVE_0, NULL, NULL},
    {"expansion_factor", "--expansion", TAKE_UNLESS, "num_latents", NULL},
    {"init_seeds", "--seed", TAKE, NULL, NULL},
    {"k", "--k", TAKE, NULL, NULL},
    {"k_decay_steps", "--k-anneal-steps", TAKE, NULL, NULL},
    {"multi_topk", "--multi-top-k", TAKE_NAME, "true=on,false=off", NULL},
    {"normalize_decoder", NULL, TAKE_ONLY, "true", NULL},
    {"loss_fn", NULL, TAKE_ONLY, "fvu", NULL},
    {"optimizer", "--optimiser", TAKE_NAME, "signum=signum,adam=adam", NULL},
    {"lr", "--lr", TAKE, NULL, NULL},
    {"lr_warmup_steps", "--warmup-steps", TAKE, NULL, NULL},
    {"auxk_alpha", "--auxk-alpha", TAKE, NULL, NULL},
    {"dead_feature_threshold", "--dead-rows", TAKE, NULL, NULL},
    {NULL, NULL, TAKE, NULL, NULL},
};

/* ---- Llamascopium 2.0: settings of a run */

/* Crosscoders are trained as SAEs of wide rows. */
static const config_class llamascopium_classes[] = {
    {"lc-relu", {"sae"}},        {"lc-topk", {"sae"}},
    {"lc-jumprelu", {"sae"}},    {"lc-relu", {"crosscoder"}},
    {"lc-topk", {"crosscoder"}}, {"lc-jumprelu", {"crosscoder"}},
    {"clt-topk", {"clt"}},       {"clt-batch_top_k", {"clt"}},
    {"clt-jumprelu", {"clt"}},   {NULL, {NULL}},
};
static const config_key llamascopium_keys[] = {
    {"batch_size", "--batch-size", TAKE, NULL, NULL},
    {"total_training_tokens", "--steps", TAKE_ROWS, NULL, NULL},
    {"expansion_factor", "--dict-size", TAKE_PRODUCT, "d_model hook_points_in", NULL},
    {"top_k", "--k", TAKE, NULL, NULL},
    {"initial_k", "--k-start", TAKE, NULL, NULL},
    {"k_warmup_steps", "--k-anneal-steps", TAKE_SHARE, NULL, NULL},
    {"k_cold_booting_steps", "--k-anneal-steps", TAKE_ONLY, "0", NULL},
    {"k_schedule_type", "--k-anneal-steps", TAKE_ONLY, "linear", NULL},
    {"jumprelu_threshold_window", "--bandwidth", TAKE, NULL, NULL},
    {"jumprelu_lr_factor", "--threshold-lr", TAKE, NULL, NULL},
    {"norm_activation", "--scale-rows", TAKE_NAME, "dataset-wise=on", NULL},
    {"sparsity_include_decoder_norm", NULL, TAKE_ONLY, "true", NULL},
    {"use_decoder_bias", NULL, TAKE_ONLY, "true", NULL},
    {"use_glu_encoder", NULL, TAKE_ONLY, "false", NULL},
    {"l1_coefficient", "--sparsity-penalty", TAKE, NULL, "0"},
    {"l1_coefficient_warmup_steps", "--sparsity-warmup-steps", TAKE_SHARE, NULL, NULL},
    {"sparsity_loss_type", "--sparsity", TAKE_NAME, "power=lp,tanh=tanh", "none"},
    {"tanh_stretch_coefficient", "--sparsity", TAKE_ONLY, "4", NULL},
    {"p", "--p-start", TAKE, NULL, NULL},
    {"lp_coefficient", "--pre-act", TAKE, NULL, "0"},
    {"auxk_coefficient", "--auxk-alpha", TAKE, NULL, "0"},
    {"k_aux", "--auxk", TAKE, NULL, NULL},
    {"dead_threshold", "--dead-rows", TAKE, NULL, NULL},
    {"lr", "--lr", TAKE, NULL, NULL},
    {"optimizer_class", NULL, TAKE_ONLY, "adam", NULL},
    {"lr_scheduler_name", NULL, TAKE_ONLY, "constantwithwarmup", NULL},
    {"lr_end_ratio", NULL, TAKE_ONLY, "0.03125", NULL},
    {"lr_warm_up_steps", "--warmup-steps", TAKE_SHARE, NULL, NULL},
    {"lr_cool_down_steps", "--decay-start", TAKE_LAST, NULL, NULL},
    {"clip_grad_norm", "--clip", TAKE, NULL, NULL},
    {NULL, NULL, TAKE, NULL, NULL},
};

/* ---- ckkissane's crosscoders: the one class is known by a key */

static const config_key ckkissane_keys[] = {
    {"batch_size", "--batch-size", TAKE, NULL, NULL},
    {"num_tokens", "--steps", TAKE_ROWS, NULL, NULL},
    {"dict_size", "--dict-size", TAKE, NULL, NULL},
    {"seed", "--seed", TAKE, NULL, NULL},
    {"lr", "--lr", TAKE, NULL, NULL},
    {"l1_coeff", "--sparsity-penalty", TAKE, NULL, NULL},
    {"beta1", "--beta1", TAKE, NULL, NULL},
    {"beta2", "--beta2", TAKE, NULL, NULL},
    {"dec_init_norm", NULL, TAKE_ONLY, "0.08", NULL},
    {"n_models", "--layers", TAKE, NULL, NULL},
    {NULL, NULL, TAKE, NULL, NULL},
};

static const config_library config_libraries[] = {
    {"dictlearn", {"settings", "", NULL}, {NULL}, "recipe", "recipe", {NULL}, NULL, NULL},
    {"dictionary_learning",
     {"trainer", "config", "buffer", "", NULL},
     {"dictionary_learning", "crosscoder-fork"},
     "trainer_class",
     "trainer_class",
     {NULL},
     NULL,
     learning_keys},
    {"llamascopium",
     {"sae", "cfg", "trainer", "activation_factory", "", NULL},
     {"llamascopium", "circuit-tracer"},
     "sae_type",
     "act_fn",
     {"sae_type"},
     llamascopium_classes,
     llamascopium_keys},
    {"saelens",
     {"sae.metadata.training_architecture_details", "metadata.training_architecture_details", "sae",
      "trainer", "", NULL},
     {"saelens", NULL},
     "metadata.training_architecture|architecture",
     "metadata.training_architecture|architecture",
     {"jumprelu_sparsity_loss_mode", "jumprelu_ste_to_input"},
     saelens_classes,
     saelens_keys},
    {"sparsify",
     {"sae", "cfg", "", NULL},
     {"sparsify", NULL},
     "activation",
     "activation",
     {"transcode", "skip_connection"},
     sparsify_classes,
     sparsify_keys},
    {"ckkissane", {"", NULL}, {"ckkissane"}, "dec_init_norm", NULL, {NULL}, NULL, ckkissane_keys},
};
enum { CONFIG_LIBRARIES = (int)(sizeof config_libraries / sizeof *config_libraries) };

/* ---- reading */

/* A config that is being read. */
typedef struct config_reading {
    dlrn_context *ctx;
    const options *o; /* the command line: its flags win */
    const char *path;
    const dlrn_json *root;
    const config_library *library;
    const dlrn_recipe_info *recipe;
    path_list *words; /* the result */
} config_reading;

/* The value of the first key of "a|b" that a place has; NULL: none has. */
static const dlrn_json *config_get(const dlrn_json *root, const config_library *library,
                                   const char *keys) {
    char full[160];
    while (keys && *keys) {
        const int n = (int)strcspn(keys, "|");
        for (int i = 0; library->places[i]; i++) {
            const char *place = library->places[i];
            snprintf(full, sizeof full, "%s%s%.*s", place, *place ? "." : "", n, keys);
            const dlrn_json *v = dlrn_json_get(root, full);
            if (v) return v;
        }
        keys += n + (keys[n] == '|');
    }
    return NULL;
}

/* A value as a word: numbers as the file has them, lists with commas; NULL: it is null or an
   object, or too long. `text` [size] */
static const char *config_text(const dlrn_json *v, char *text, size_t size) {
    size_t at = 0;
    if (!v || v->type == DLRN_JSON_NULL || v->type == DLRN_JSON_OBJECT) return NULL;
    if (v->type == DLRN_JSON_BOOL) return v->number > 0 ? "true" : "false";
    if (v->type != DLRN_JSON_ARRAY) return v->text;
    *text = 0;
    for (const dlrn_json *m = v->first; m && at < size; m = m->next)
        at += (size_t)snprintf(text + at, size - at, "%s%s", at ? "," : "", m->text ? m->text : "");
    return at < size ? text : NULL;
}

/* The number of a key; 1: it is missing. Of a list its length. */
static double config_factor(const config_reading *r, const char *key) {
    const dlrn_json *v = config_get(r->root, r->library, key);
    return !v || v->type == DLRN_JSON_NULL ? 1
           : v->type == DLRN_JSON_ARRAY    ? (double)v->count
                                           : v->number;
}

/* The number that a flag has so far: on the command line, or else from the config; -1: none. */
static double number_so_far(const config_reading *r, const char *name) {
    const char *value;
    const flag *f = find_flag(name, &value);
    if (is_given(r->o, f)) {
        int64_t n;
        memcpy(&n, (const char *)r->o + f->at, sizeof n);
        return (double)n;
    }
    for (int64_t i = 0; i + 1 < r->words->n; i++)
        if (!strcmp(r->words->path[i], name)) return strtod(r->words->path[i + 1], NULL);
    return -1;
}

/* The error for a key whose value is not computed here. */
static dlrn_status config_refuse(const config_reading *r, const char *key, const char *expected,
                                 const char *found) {
    const int n = (int)strcspn(key, "|");
    return dlrn_fail(r->ctx, DLRN_ERR_UNSUPPORTED, "%s: %.*s: expected %s for recipe %s, found %s",
                     r->path, n, key, expected, r->recipe->name, found);
}

/* Adds a flag with its value, checked as on the command line. */
static dlrn_status config_add(const config_reading *r, const char *key, const flag *f,
                              const char *value) {
    options scratch;
    char expected[128];
    memset(&scratch, 0, sizeof scratch);
    if (!set_flag(f, value, &scratch)) {
        expected_of(f, expected, sizeof expected);
        return config_refuse(r, key, expected, value);
    }
    dlrn_status s = paths_add(r->ctx, r->words, NULL, f->name);
    return s == DLRN_OK ? paths_add(r->ctx, r->words, NULL, value) : s;
}

static dlrn_status config_add_number(const config_reading *r, const char *key, const flag *f,
                                     double value) {
    char text[64];
    snprintf(text, sizeof text, "%.15g", value); /* 0.99 and not 0.98999999999999999 */
    if (strtod(text, NULL) < value || strtod(text, NULL) > value)
        snprintf(text, sizeof text, "%.17g", value);
    return config_add(r, key, f, text);
}

/* Ours of "theirs=ours,..."; NULL: theirs is not in it. `text` [64] */
static const char *config_name(const char *words, const char *theirs, char text[64]) {
    const size_t n = strlen(theirs);
    for (const char *w = words; *w; w += strcspn(w, ","), w += *w == ',')
        if (!strncmp(w, theirs, n) && w[n] == '=') {
            snprintf(text, 64, "%.*s", (int)strcspn(w + n + 1, ","), w + n + 1);
            return text;
        }
    return NULL;
}

/* Theirs of "theirs=ours,...", as an error lists them. */
static const char *config_names(const char *words, char *text, size_t size) {
    size_t at = 0;
    *text = 0;
    for (const char *w = words; *w && at < size; w += strcspn(w, ","), w += *w == ',')
        at += (size_t)snprintf(text + at, size - at, "%s%.*s", at ? " or " : "",
                               (int)strcspn(w, "="), w);
    return text;
}

/* Whether two values are one: numbers may be written in two ways. */
static int same_value(const char *a, const char *b) {
    char *end_a, *end_b;
    const double x = strtod(a, &end_a), y = strtod(b, &end_b);
    const int numbers = end_a != a && end_b != b && !*end_a && !*end_b;
    return numbers ? fabs(x - y) <= 1e-12 * fabs(y) : !strcmp(a, b);
}

/* Sizes of groups from their ends; a last group reaches to `whole`, if that is known. */
static dlrn_status config_sizes(const config_reading *r, const config_key *k, const flag *f,
                                const dlrn_json *v) {
    char text[512];
    size_t at = 0;
    double before = 0;
    const double whole = config_factor(r, k->words);
    for (const dlrn_json *m = v->first; m && at < sizeof text; m = m->next) {
        at += (size_t)snprintf(text + at, sizeof text - at, "%s%.17g", at ? "," : "",
                               m->number - before);
        before = m->number;
    }
    if (before < whole && at < sizeof text)
        snprintf(text + at, sizeof text - at, "%s%.17g", at ? "," : "", whole - before);
    return config_add(r, k->key, f, text);
}

/* Steps that a key gives: as they are, or below 1 as a share of all. Rounded down, as an int of
   Python's is. */
static dlrn_status config_steps(const config_reading *r, const char *key, double value,
                                double *steps) {
    const double all = number_so_far(r, "--steps");
    *steps = value;
    if (value <= 0 || value >= 1) return DLRN_OK;
    if (all < 0)
        return config_refuse(r, key, "--steps beside it, as it is a share of them", "none");
    *steps = floor(value * all);
    return DLRN_OK;
}

/* A decay: its first step. One that lies behind the end of a shorter run never comes. */
static dlrn_status config_decay(const config_reading *r, const config_key *k, const flag *f,
                                double value) {
    const double all = number_so_far(r, "--steps");
    double steps = value;
    if (k->how == TAKE_LAST) {
        dlrn_status s = config_steps(r, k->key, value, &steps);
        if (s != DLRN_OK || steps <= 0) return s;
        steps = all > steps ? all - steps : 0;
    }
    if (all < 0) return config_refuse(r, k->key, "--steps beside it", "none");
    if (steps >= 0 && steps < all) return config_add_number(r, k->key, f, steps);
    fprintf(stderr, "dictlearn: %s: %s: no decay: it begins at step %.0f, and --steps is %.0f\n",
            r->path, k->key, steps, all);
    return DLRN_OK;
}

/* Numbers that are not taken as they are. */
static dlrn_status config_compute(const config_reading *r, const config_key *k, const flag *f,
                                  double value) {
    char words[64];
    const char *ignored;
    double steps, batch;
    dlrn_status s;
    switch (k->how) {
    case TAKE_REST: return config_add_number(r, k->key, f, 1 - value);
    case TAKE_PARTS:
        s = config_add_number(r, k->key, f, floor(value));
        if (s != DLRN_OK || value <= floor(value)) return s;
        return config_add_number(r, k->key, find_flag(k->words, &ignored), value - floor(value));
    case TAKE_ROWS:
        batch = number_so_far(r, "--batch-size");
        if (batch < 1) batch = (double)dlrn_train_defaults(r->recipe->name).buffer.batch_rows;
        return config_add_number(r, k->key, f, floor(value / batch));
    case TAKE_SHARE:
        s = config_steps(r, k->key, value, &steps);
        return s == DLRN_OK ? config_add_number(r, k->key, f, steps) : s;
    case TAKE_PRODUCT:
        snprintf(words, sizeof words, "%s", k->words);
        for (char *w = strtok(words, " "); w; w = strtok(NULL, " ")) value *= config_factor(r, w);
        return config_add_number(r, k->key, f, value);
    default: return config_decay(r, k, f, value);
    }
}

/* Applies one key of a library. */
static dlrn_status config_apply(const config_reading *r, const config_key *k) {
    char list[TEXT_MAX + 1], name[64], names[256];
    const char *value;
    const dlrn_json *v = config_get(r->root, r->library, k->key);
    const flag *f = k->flag ? find_flag(k->flag, &value) : NULL;
    if (!v || (f && !suits_recipe(r->recipe, f))) return DLRN_OK;
    value = config_text(v, list, sizeof list);
    if (!value) value = k->none;
    if (!value) return DLRN_OK;
    if (k->how == TAKE_ONLY)
        return same_value(value, k->words) ? DLRN_OK : config_refuse(r, k->key, k->words, value);
    if (is_given(r->o, f)) return DLRN_OK;
    if (k->how == TAKE_NAME && v->type != DLRN_JSON_NULL) {
        const char *ours = config_name(k->words, value, name);
        if (ours) return config_add(r, k->key, f, ours);
        return config_refuse(r, k->key, config_names(k->words, names, sizeof names), value);
    }
    if (k->how == TAKE_SIZES) return config_sizes(r, k, f, v);
    if (k->how == TAKE_ABOVE_0 && !(v->number > 0)) return DLRN_OK;
    if (k->how == TAKE_UNLESS && config_factor(r, k->words) > 1) return DLRN_OK;
    if (k->how <= TAKE_UNLESS || v->type == DLRN_JSON_NULL) return config_add(r, k->key, f, value);
    if (v->type == DLRN_JSON_NUMBER) return config_compute(r, k, f, v->number);
    return config_refuse(r, k->key, "a number", value);
}

/* The settings of an own run that differ from the recipe's defaults. The buffer's stand beside
   them. */
static dlrn_status config_apply_own(const config_reading *r) {
    char list[TEXT_MAX + 1], key[64], usual[64];
    const dlrn_train_config cfg = dlrn_train_defaults(r->recipe->name);
    dlrn_status s = DLRN_OK;
    for (int i = 0; i < FLAGS && s == DLRN_OK; i++) {
        const flag *f = &flags[i];
        setting_name(f, key);
        const dlrn_json *v = config_get(r->root, r->library, key);
        const char *value = config_text(v, list, sizeof list);
        const int own = f->at >= AT(train) || f->kind == F_SWITCH || f->at == AT(dict_size) ||
                        f->at == AT(seed) || f->at == AT(groups) || f->at == AT(group_weights) ||
                        f->at == AT(layers) || f->at == AT(batch_size) || f->at == AT(n_ctxs);
        if (!own || !value || !*value || is_given(r->o, f) || !suits_recipe(r->recipe, f)) continue;
        if (f->kind == F_SWITCH) {
            if (!strcmp(value, "true") && f->at == AT(compat))
                s = paths_add(r->ctx, r->words, NULL, f->name);
            continue;
        }
        if (f->kind == F_ON_OFF) value = strcmp(value, "true") ? "off" : "on";
        setting_text(f, &cfg, usual, sizeof usual);
        if (!same_value(value, *usual ? usual : "-1")) s = config_add(r, key, f, value);
    }
    return s;
}

/* Whether a config is of this recipe. value: of the class's key and of the signs. */
static int is_of_recipe(const config_library *library, const dlrn_recipe_info *recipe,
                        const char *const *value) {
    int of_library = 0, needs_more = 0;
    for (int i = 0; i < CONFIG_LAYOUTS && library->layouts[i]; i++)
        of_library |= recipe->layout && !strcmp(recipe->layout, library->layouts[i]);
    if (!of_library) return 0;
    if (library->class_key && (!recipe->class_name || strcmp(recipe->class_name, value[0])))
        return 0;
    for (const config_class *c = library->classes; c && c->recipe; c++) {
        int fits = 1;
        if (strcmp(c->recipe, recipe->name)) continue;
        for (int i = 0; i < CONFIG_SIGNS; i++)
            fits &= !c->value[i] || !strcmp(c->value[i], value[1 + i]);
        if (fits) return 1;
        needs_more = 1;
    }
    return !needs_more;
}

/* The recipe of the file's class. */
static dlrn_status config_recipe(config_reading *r, const char **recipe) {
    const config_library *library = r->library;
    const char *value[1 + CONFIG_SIGNS];
    char text[256], list[64];
    int at = 0;
    for (int i = 0; i <= CONFIG_SIGNS; i++) {
        const char *key = i ? library->sign[i - 1] : library->class_key;
        const dlrn_json *v = config_get(r->root, library, key);
        const char *word = config_text(v, list, sizeof list);
        value[i] = word ? word : "false";
        if (v && at < (int)sizeof text)
            at += snprintf(text + at, sizeof text - (size_t)at, "%s%s %.40s", at ? ", " : "",
                           v->key ? v->key : "", value[i]);
    }
    *recipe = value[0];
    if (!library->layouts[0]) return DLRN_OK; /* our own */
    for (int i = 0; dlrn_recipe(i); i++) {
        *recipe = dlrn_recipe(i)->name;
        if (is_of_recipe(library, dlrn_recipe(i), value)) return DLRN_OK;
    }
    return dlrn_fail(r->ctx, DLRN_ERR_UNSUPPORTED,
                     "%s: expected a class of %s that has a recipe here, found %s", r->path,
                     library->name, text);
}

/* The library whose config this is: its first sign is there. */
static dlrn_status config_find_library(config_reading *r) {
    char names[160];
    int at = 0;
    for (int i = 0; i < CONFIG_LIBRARIES; i++) {
        r->library = &config_libraries[i];
        if (config_get(r->root, r->library, r->library->mark)) return DLRN_OK;
        at += snprintf(names + at, sizeof names - (size_t)at, "%s%s", i ? ", " : "",
                       r->library->name);
    }
    return dlrn_fail(r->ctx, DLRN_ERR_UNSUPPORTED,
                     "%s: expected the config of a run (%s), found no such settings", r->path,
                     names);
}

/* Adds to `words` what the parsed config of a run says: --recipe, and flags with their values. */
static dlrn_status config_words(dlrn_context *ctx, const options *o, const char *path,
                                const dlrn_json *root, path_list *words) {
    config_reading r = {ctx, o, path, root, NULL, NULL, words};
    const char *recipe = NULL;
    dlrn_status s = config_find_library(&r);
    if (s == DLRN_OK) s = config_recipe(&r, &recipe);
    if (s != DLRN_OK) return s;
    if (o->recipe) recipe = o->recipe;
    r.recipe = find_recipe(recipe);
    if (!r.recipe && o->recipe) return DLRN_OK; /* the command line's own error */
    if (!r.recipe)
        return dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED,
                         "%s: recipe: expected one of this version's, "
                         "found %.80s",
                         path, recipe);
    if (!o->recipe) s = paths_add(ctx, words, NULL, "--recipe");
    if (!o->recipe && s == DLRN_OK) s = paths_add(ctx, words, NULL, recipe);
    if (s == DLRN_OK && !r.library->keys) return config_apply_own(&r);
    for (const config_key *k = r.library->keys; s == DLRN_OK && k->key; k++)
        s = config_apply(&r, k);
    return s;
}
#undef AT
