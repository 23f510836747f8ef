/* dictlearn inspect and convert. */

/* What a path holds. */
typedef struct contents {
    char file[4200]; /* with the tensors                                                       */
    char config[4200];
    dlrn_archive *archive; /* NULL: a model in one file                                        */
    dlrn_dictionary *dict; /* NULL: it is none, or it does not load                            */
    dlrn_json *root;       /* NULL: a dictionary without a config                              */
    dlrn_json *run;        /* config.json of a run that wrote for a library with another config;
                              or NULL */
    lm_config model;
    int is_model;
    char sites[2048]; /* of a model in one file, which has its own; else ""                    */
    char why[1024];   /* why it is neither a dictionary nor a model that can be loaded; ""       */
} contents;

/* Whether a folder's config.json is a model's: its weights may be called as a dictionary's are. A
   config that is not JSON is no model's; the loader will say so. */
static dlrn_status has_model_config(dlrn_context *ctx, const char *path, int *found) {
    char config[4200], *text = NULL;
    size_t size = 0;
    dlrn_json *root = NULL;
    *found = 0;
    snprintf(config, sizeof config, "%s/config.json", path);
    if (dlrn_file_exists(ctx, config) != 1) return DLRN_OK;
    dlrn_status s = dlrn_file_read(ctx, config, &text, &size);
    if (s == DLRN_OK) s = dlrn_json_parse(ctx, text, size, config, &root);
    *found = dlrn_json_get(root, "model_type") != NULL;
    dlrn_free(ctx, root);
    dlrn_free(ctx, text);
    return s == DLRN_ERR_FORMAT ? DLRN_OK : s;
}

/* The file with a path's tensors. A folder may hold a model or a dictionary; the library searches
   for the latter. */
static dlrn_status find_tensors(dlrn_context *ctx, const char *path, contents *c, int *of_model) {
    dlrn_status s = has_model_config(ctx, path, of_model);
    if (s != DLRN_OK) return s;
    *of_model = *of_model && lm_find_weights(ctx, path, c->file, sizeof c->file);
    if (*of_model) return DLRN_OK;
    s = dlrn_find_dictionary(ctx, path, c->file, c->config, sizeof c->file);
    /* another library's folder, whose weights are listed */
    if (*c->file && (s == DLRN_OK || s == DLRN_ERR_UNSUPPORTED)) return DLRN_OK;
    if (s == DLRN_ERR_UNSUPPORTED || dlrn_file_exists(ctx, path) != 2) return s;
    *of_model = lm_find_weights(ctx, path, c->file, sizeof c->file);
    if (*of_model) return DLRN_OK;
    return dlrn_fail(ctx, DLRN_ERR_IO,
                     "%s: expected a dictionary (ae.pt) or a model (model.safetensors, "
                     "pytorch_model.bin) in this folder, found neither",
                     path);
}

/* Whether a tensor has the name of an encoder. Activations and other tensors have none: they are no
   dictionary, so nothing is said of one that does not load. */
static int has_encoder(const dlrn_archive *a) {
    for (int64_t i = 0; i < dlrn_archive_describe(a).count; i++) {
        const char *name = dlrn_archive_tensor(a, i)->name;
        if (strstr(name, "enc") || strstr(name, "W_E")) return 1;
    }
    return 0;
}

/* The config of a dictionary, for what it says of its training. It has been read by the loader:
   one that is malformed has been an error there, so here it is no other. */
static dlrn_status read_config(dlrn_context *ctx, const char *path, contents *c) {
    char run[4200];
    dlrn_status s = *c->config ? read_json(ctx, c->config, &c->root) : DLRN_OK;
    snprintf(run, sizeof run, "%s/config.json", path);
    if ((s == DLRN_OK || s == DLRN_ERR_FORMAT) && strcmp(run, c->config) &&
        dlrn_file_exists(ctx, run) == 1)
        s = read_json(ctx, run, &c->run);
    return s == DLRN_ERR_FORMAT ? DLRN_OK : s;
}

/* A model in a file of its own format. What sites it has is known when it is loaded: that maps the
   file and reads little of it. */
static dlrn_status open_model_file(dlrn_context *ctx, const char *path, contents *c) {
    lm_model *m = NULL;
    dlrn_status s = lm_load(ctx, path, &m);
    if (s != DLRN_OK) return s;
    c->model = *lm_config_of(m);
    c->is_model = 1;
    s = lm_site_names(m, c->sites, sizeof c->sites);
    lm_destroy(m);
    return s;
}

/* Reads what is at a path. What cannot be loaded is no error: then only the tensors are listed,
   and why; unless the user says what dictionary it is. */
static dlrn_status open_contents(dlrn_context *ctx, const char *path, const options *o,
                                 contents *c) {
    char config[4200];
    dlrn_status tried = DLRN_OK;
    int of_model;
    memset(c, 0, sizeof *c);
    const int is_gguf = lm_is_gguf(ctx, path);
    if (is_gguf < 0) return DLRN_ERR_IO;
    if (is_gguf) return open_model_file(ctx, path, c);
    dlrn_status s = find_tensors(ctx, path, c, &of_model);
    if (s != DLRN_OK) return s;
    snprintf(config, sizeof config, "%s/config.json", path);
    if (!of_model) {
        tried = load_quietly(ctx, path, o, &c->dict);
    } else if (dlrn_file_exists(ctx, config) == 1) {
        tried = lm_read_config(ctx, path, &c->model);
        c->is_model = tried == DLRN_OK;
    }
    if (tried == DLRN_ERR_MEMORY || tried == DLRN_ERR_IO) return tried; /* says nothing of it */
    if (tried != DLRN_OK && o->layout) return tried;
    if (tried != DLRN_OK) snprintf(c->why, sizeof c->why, "%s", dlrn_error(ctx));
    s = dlrn_archive_open(ctx, c->file, &c->archive);
    if (s == DLRN_OK && tried == DLRN_ERR_SHAPE && !has_encoder(c->archive)) *c->why = 0;
    return s == DLRN_OK && c->dict ? read_config(ctx, path, c) : s;
}

/* ---- what is measured */

typedef struct span {
    double min, mean, max;
} span;

/* Of one number for each row of [rows]: norms of rows [d] that lie `stride` apart, or the numbers
   (d 1). */
static span span_of(dlrn_context *ctx, const float *w, int64_t rows, int64_t d, int64_t stride) {
    span s = {HUGE_VAL, 0, -HUGE_VAL};
    for (int64_t j = 0; j < rows; j++) {
        const float *row = w + j * stride;
        const double n = d == 1 ? (double)*row : (double)dlrn_norm(ctx, row, d);
        s.min = n < s.min ? n : s.min;
        s.max = n > s.max ? n : s.max;
        s.mean += n / (double)rows;
    }
    return s;
}

/* Norms of the atoms; they tell whether a dictionary is normalised. */
static span atom_norms(dlrn_context *ctx, const dlrn_dictionary *dict) {
    return span_of(ctx, dict->param[DLRN_DECODER], dict->features, dict->d_out, dict->d_out);
}

/* ---- what a config says of the training */

typedef struct fact {
    const char *label;
    const char *keys[8]; /* the first that the config has as a text */
} fact;

/* Keys of our own config.json, dictionary_learning, SAELens (and before version 6), Llamascopium,
   Gemma Scope 2. */
static const fact facts[] = {
    {"recipe",
     {"settings.recipe", "trainer.trainer_class", "metadata.training_architecture", NULL}},
    {"model",
     {"model", "trainer.lm_name", "metadata.model_name", "model_name", "model_from_pretrained_path",
      NULL}},
    {"site",
     {"site", "trainer.submodule_name", "metadata.hook_name", "hook_name", "hook_point",
      "hook_point_in", "hf_hook_point_in", NULL}},
    {"target", {"metadata.hook_name_out", "hook_point_out", "hf_hook_point_out", NULL}},
};
enum { FACTS = (int)(sizeof facts / sizeof *facts) };

/* NULL: the config does not say. */
static const char *find_fact(const contents *c, const fact *f) {
    for (int i = 0; f->keys[i]; i++) {
        const dlrn_json *v = dlrn_json_get(c->run, f->keys[i]);
        if (!v) v = dlrn_json_get(c->root, f->keys[i]);
        if (v && v->type == DLRN_JSON_STRING) return v->text;
    }
    return NULL;
}

/* ---- a model */

/* Number i of a model's shape, under the name of its config where it exists, then what its engine
   adds. 0: there are no more. */
static int model_number(const lm_config *c, int i, const char **name, int64_t *value) {
    const struct {
        const char *name;
        int64_t value;
    } all[] = {{"hidden_size", c->dim},  {"layers", c->layers},
               {"heads", c->heads},      {"intermediate_size", c->inner},
               {"vocab_size", c->vocab}, {"positions", c->positions}};
    const int n = (int)(sizeof all / sizeof *all);
    if (i >= n + c->n_more) return 0;
    *name = i < n ? all[i].name : c->more[i - n].name;
    *value = i < n ? all[i].value : c->more[i - n].value;
    return 1;
}

static const char *format_of(const contents *c) {
    return c->archive ? dlrn_archive_describe(c->archive).format : "gguf";
}

static int64_t count_tensors(const contents *c) {
    return c->archive ? dlrn_archive_describe(c->archive).count : 0;
}

/* ---- for people. Names come from the file: see put_text */

static void put_labelled(const char *label, const char *text) {
    printf("%s: ", label);
    put_text(stdout, text, (int64_t)strlen(text));
    putchar('\n');
}

static void put_span(const char *label, span s) {
    printf("%s: min %.6g, mean %.6g, max %.6g\n", label, s.min, s.mean, s.max);
}

/* The layers of a crosscoder with one set of features: how long the atoms are in each. */
static void put_atoms_by_layer(dlrn_context *ctx, const dlrn_dictionary *dict) {
    const int64_t d = dict->d_out / dict->layers;
    for (int64_t m = 0; m < dict->layers; m++) {
        span s = span_of(ctx, dict->param[DLRN_DECODER] + m * d, dict->features, d, dict->d_out);
        printf("layer %lld: x[%lld..%lld), atom norms: min %.6g, mean %.6g, max %.6g\n",
               (long long)m, (long long)(m * d), (long long)((m + 1) * d), s.min, s.mean, s.max);
    }
}

/* The parts of a dictionary of several layers, and the formula that they share. */
static void put_parts(dlrn_context *ctx, const dlrn_dictionary *dict) {
    for (int64_t i = 0; i < dict->n_parts; i++) {
        const dlrn_part *p = &dict->part[i];
        const dlrn_dictionary *own = p->dict;
        span s = atom_norms(ctx, own);
        printf("part %lld: x[%lld..%lld) -> features [%lld..%lld) -> x_hat[%lld..%lld), atom "
               "norms: min %.6g, mean %.6g, max %.6g\n",
               (long long)i, (long long)p->in_at, (long long)(p->in_at + own->d_in),
               (long long)p->feature_at, (long long)(p->feature_at + own->features),
               (long long)p->out_at, (long long)(p->out_at + own->d_out), s.min, s.mean, s.max);
    }
    printf("each part: ");
    put_formula_words(dict->part[0].dict);
}

/* What it is and what it computes. */
static void print_dictionary(dlrn_context *ctx, const contents *c) {
    const dlrn_dictionary *dict = c->dict;
    printf("family %s, activation_dim %lld, dict_size %lld", dict->family, (long long)dict->d_in,
           (long long)dict->features);
    if (dict->d_out != dict->d_in) printf(", d_out %lld", (long long)dict->d_out);
    if (dict->param[DLRN_SKIP]) printf(", a skip");
    if (dict->layers > 1) printf(", %lld layers", (long long)dict->layers);
    if (dict->feature_layers > 1)
        printf(", features in %lld layers", (long long)dict->feature_layers);
    printf("\nlayout %s", dict->layout ? dict->layout : "none");
    if (dict->class_name) printf(", class %s", dict->class_name);
    putchar('\n');
    if (dict->n_parts) put_parts(ctx, dict);
    put_formula_words(dict);
    if (!dict->n_parts && dict->param[DLRN_DECODER]) {
        put_span("atom norms", atom_norms(ctx, dict));
        if (dict->layers > 1) put_atoms_by_layer(ctx, dict);
    }
    if (dict->param[DLRN_THRESHOLD])
        put_span("thresholds", span_of(ctx, dict->param[DLRN_THRESHOLD], dict->features, 1, 1));
    for (int i = 0; i < FACTS; i++)
        if (find_fact(c, &facts[i])) put_labelled(facts[i].label, find_fact(c, &facts[i]));
    if (*dict->note) put_labelled("note", dict->note);
}

static void print_model(const contents *c) {
    const char *name;
    int64_t value;
    printf("family %s\n", c->model.family);
    for (int i = 0; model_number(&c->model, i, &name, &value); i++)
        printf("%s %lld\n", name, (long long)value);
    if (*c->sites) put_labelled("sites", c->sites);
}

/* A line for a tensor. */
static void put_tensor(const char *name, const char *type, const int64_t *shape, int ndim) {
    const int shown = put_text(stdout, name, (int64_t)strlen(name));
    printf("%*s %-5s [", shown < 24 ? 24 - shown : 0, "", type);
    for (int d = 0; d < ndim; d++) printf("%s%lld", d ? ", " : "", (long long)shape[d]);
    puts("]");
}

static dlrn_status put_weight(void *user, const lm_weight *w) {
    (void)user;
    put_tensor(w->name, w->type, w->shape, w->ndim);
    return DLRN_OK;
}

/* Prints for people. */
static dlrn_status print_contents(dlrn_context *ctx, const char *path, const contents *c) {
    put_text(stdout, path, (int64_t)strlen(path));
    printf(": %s\n", format_of(c));
    if (c->is_model) print_model(c);
    if (c->dict) print_dictionary(ctx, c);
    if (*c->why) put_labelled("not loaded", c->why);
    for (int64_t i = 0; i < count_tensors(c); i++) {
        const dlrn_tensor_info *t = dlrn_archive_tensor(c->archive, i);
        put_tensor(t->name, dlrn_name(DLRN_NAMES_DTYPE, (int)t->dtype), t->shape, t->ndim);
    }
    return c->archive ? DLRN_OK : lm_list_weights(ctx, path, put_weight, NULL);
}

/* ---- as JSON */

static void put_span_json(json_writer *j, const char *key, span s) {
    json_open(j, key, '{');
    json_real(j, "min", 6, s.min);
    json_real(j, "mean", 6, s.mean);
    json_real(j, "max", 6, s.max);
    json_close(j, '}');
}

/* What a dictionary and a part have in common. */
static void put_plain_json(json_writer *j, dlrn_context *ctx, const dlrn_dictionary *dict) {
    put_formula_json(j, dict);
    if (dict->param[DLRN_DECODER]) put_span_json(j, "atom_norms", atom_norms(ctx, dict));
    if (dict->param[DLRN_THRESHOLD])
        put_span_json(j, "thresholds",
                      span_of(ctx, dict->param[DLRN_THRESHOLD], dict->features, 1, 1));
}

static void put_sizes_json(json_writer *j, const dlrn_dictionary *dict) {
    json_int(j, "activation_dim", dict->d_in);
    json_int(j, "dict_size", dict->features);
    json_int(j, "d_out", dict->d_out);
    json_bool(j, "skip", dict->param[DLRN_SKIP] != NULL);
}

static void put_parts_json(json_writer *j, dlrn_context *ctx, const dlrn_dictionary *dict) {
    json_open(j, "parts", '[');
    for (int64_t i = 0; i < dict->n_parts; i++) {
        const dlrn_part *p = &dict->part[i];
        json_open(j, NULL, '{');
        json_int(j, "in_at", p->in_at);
        json_int(j, "feature_at", p->feature_at);
        json_int(j, "out_at", p->out_at);
        put_sizes_json(j, p->dict);
        put_plain_json(j, ctx, p->dict);
        json_close(j, '}');
    }
    json_close(j, ']');
}

/* Sizes have the keys of dictionary_learning's config.json. */
static void put_dictionary_json(json_writer *j, dlrn_context *ctx, const contents *c) {
    const dlrn_dictionary *dict = c->dict;
    json_text(j, "family", dict->family);
    if (dict->layout) json_text(j, "layout", dict->layout);
    if (dict->class_name) json_text(j, "class", dict->class_name);
    put_sizes_json(j, dict);
    json_int(j, "layers", dict->layers);
    json_int(j, "feature_layers", dict->feature_layers);
    put_plain_json(j, ctx, dict);
    put_parts_json(j, ctx, dict);
    for (int i = 0; i < FACTS; i++)
        if (find_fact(c, &facts[i])) json_text(j, facts[i].label, find_fact(c, &facts[i]));
    if (*dict->note) json_text(j, "note", dict->note);
}

static void put_model_json(json_writer *j, const contents *c) {
    const char *name;
    int64_t value;
    json_text(j, "family", c->model.family);
    for (int i = 0; model_number(&c->model, i, &name, &value); i++) json_int(j, name, value);
    if (*c->sites) json_text(j, "sites", c->sites);
}

static void put_tensor_json(json_writer *j, const char *name, const char *type,
                            const int64_t *shape, int ndim) {
    json_open(j, NULL, '{');
    json_text(j, "name", name);
    json_text(j, "dtype", type);
    json_open(j, "shape", '[');
    for (int d = 0; d < ndim; d++) json_int(j, NULL, shape[d]);
    json_close(j, ']');
    json_close(j, '}');
}

static dlrn_status put_weight_json(void *user, const lm_weight *w) {
    put_tensor_json((json_writer *)user, w->name, w->type, w->shape, w->ndim);
    return DLRN_OK;
}

static dlrn_status put_contents_json(dlrn_context *ctx, const char *path, const contents *c) {
    json_writer j = {stdout, 0};
    dlrn_status s = DLRN_OK;
    json_open(&j, NULL, '{');
    json_text(&j, "path", path);
    json_text(&j, "format", format_of(c));
    if (c->is_model) put_model_json(&j, c);
    if (c->dict) put_dictionary_json(&j, ctx, c);
    if (*c->why) json_text(&j, "not_loaded", c->why);
    json_open(&j, "tensors", '[');
    for (int64_t i = 0; i < count_tensors(c); i++) {
        const dlrn_tensor_info *t = dlrn_archive_tensor(c->archive, i);
        put_tensor_json(&j, t->name, dlrn_name(DLRN_NAMES_DTYPE, (int)t->dtype), t->shape, t->ndim);
    }
    if (!c->archive) s = lm_list_weights(ctx, path, put_weight_json, &j);
    json_close(&j, ']');
    json_close(&j, '}');
    putchar('\n');
    return s;
}

static int run_inspect(dlrn_context *ctx, const options *o) {
    contents c;
    dlrn_status s = open_contents(ctx, o->path, o, &c);
    if (s == DLRN_OK)
        s = o->json ? put_contents_json(ctx, o->path, &c) : print_contents(ctx, o->path, &c);
    dlrn_archive_close(c.archive);
    dlrn_dictionary_destroy(c.dict);
    dlrn_free(ctx, c.root);
    dlrn_free(ctx, c.run);
    return s == DLRN_OK ? 0 : fail(ctx);
}

static int is_dictionary_file(const char *path) {
    return ends_with(path, ".pt") || ends_with(path, ".safetensors") || ends_with(path, ".npz");
}

/* Removes the files of a folder that this command has made. */
static void remove_files(const char *folder) {
    char path[4352];
    DIR *dir = opendir(folder);
    for (struct dirent *e; dir && (e = readdir(dir)) != NULL;) {
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        if (*e->d_name != '.') remove(path);
    }
    if (dir) closedir(dir);
}

/* Writes a dictionary so that a library opens it: into a folder, which is made and goes again after
   a failure, or into a file. What had to be folded goes to standard error. */
static dlrn_status convert_for(dlrn_context *ctx, const options *o, const dlrn_dictionary *dict) {
    const dlrn_save_options how = {o->layout, o->layer > 0 ? o->layer : 0};
    const int in_folder = !is_dictionary_file(o->path2) || dlrn_file_exists(ctx, o->path2) == 2;
    char note[256];
    size_t had = strlen(o->path2);
    dlrn_status s = in_folder ? make_folders(ctx, o->path2, &had) : DLRN_OK;
    if (s == DLRN_OK) s = dlrn_save_as(dict, o->path2, &how, note, sizeof note);
    if (s == DLRN_OK && *note)
        fprintf(stderr, "dictlearn: %s: the same function in other numbers: %s\n", o->path2, note);
    if (s != DLRN_OK && in_folder && had < strlen(o->path2)) remove_files(o->path2);
    if (s != DLRN_OK && in_folder) unmake_folders(o->path2, had);
    return s;
}

/* --layout is about OUT here; --from says what IN is. */
static int run_convert(dlrn_context *ctx, const options *o) {
    dlrn_dictionary *dict = NULL;
    options in = *o;
    in.layout = o->from;
    if (!o->layout && !is_dictionary_file(o->path2))
        return usage_error("convert",
                           "expected a name ending in .pt, .safetensors or .npz, or --layout",
                           o->path2);
    if (o->layer >= 0 && !o->layout) return usage_error("convert", "goes with --layout", "--layer");
    dlrn_status s = load_dictionary(ctx, o->path, &in, &dict);
    if (s == DLRN_OK && stopping(NULL)) s = DLRN_STOPPED;
    if (s == DLRN_OK) s = o->layout ? convert_for(ctx, o, dict) : dlrn_save(dict, o->path2);
    dlrn_dictionary_destroy(dict);
    return s == DLRN_OK ? 0 : fail(ctx);
}
