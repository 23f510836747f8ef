/* dictlearn inspect and convert. */

/* What a path holds. */
typedef struct contents {
    char file[4200]; /* with the tensors */
    dlrn_archive *archive;
    dlrn_dictionary *dict; /* NULL: it is none, or of a family that is not supported */
    lm_config model;
    int is_model;
    char why[1024]; /* why it is neither a dictionary nor a model that can be loaded; "" */
} contents;

/* The file with a path's tensors. A folder may hold a model or a dictionary; the library searches
   for the latter. */
static dlrn_status find_tensors(dlrn_context *ctx, const char *path, char *file, size_t size,
                                int *of_model) {
    char config[4200];
    *of_model = 0;
    snprintf(file, size, "%s", path);
    if (dlrn_file_exists(ctx, path) != 2) return DLRN_OK;
    dlrn_status s = dlrn_find_dictionary(ctx, path, file, config, size);
    /* another library's folder, whose weights are listed */
    if (*file && (s == DLRN_OK || s == DLRN_ERR_UNSUPPORTED)) return DLRN_OK;
    if (s == DLRN_ERR_UNSUPPORTED) return s;
    *of_model = lm_find_weights(ctx, path, file, size);
    if (*of_model) return DLRN_OK;
    return dlrn_fail(ctx, DLRN_ERR_IO,
                     "%s: expected a dictionary (ae.pt) or a model (model.safetensors, "
                     "pytorch_model.bin) in this folder, found neither",
                     path);
}

/* Whether a tensor has the name of an encoder. Activations and other tensors have none: they are no
   dictionary, so nothing is said of one that does not load. */
static int has_encoder(const dlrn_archive *a) {
    for (int64_t i = 0; i < dlrn_archive_describe(a).count; i++)
        if (strstr(dlrn_archive_tensor(a, i)->name, "enc")) return 1;
    return 0;
}

/* Reads what is at a path. What cannot be loaded is no error: then only the tensors are listed,
   and why; unless the user says what dictionary it is. */
static dlrn_status open_contents(dlrn_context *ctx, const char *path, const options *o,
                                 contents *c) {
    char config[4200];
    dlrn_status tried = DLRN_OK;
    int of_model;
    memset(c, 0, sizeof *c);
    dlrn_status s = find_tensors(ctx, path, c->file, sizeof c->file, &of_model);
    if (s != DLRN_OK) return s;
    snprintf(config, sizeof config, "%s/config.json", path);
    if (!of_model) {
        tried = load_dictionary(ctx, path, o, &c->dict);
    } else if (dlrn_file_exists(ctx, config) == 1) {
        tried = lm_read_config(ctx, path, &c->model);
        c->is_model = tried == DLRN_OK;
    }
    if (tried == DLRN_ERR_MEMORY || tried == DLRN_ERR_IO) return tried; /* says nothing of it */
    if (tried != DLRN_OK && o->layout) return tried;
    if (tried != DLRN_OK) snprintf(c->why, sizeof c->why, "%s", dlrn_error(ctx));
    s = dlrn_archive_open(ctx, c->file, &c->archive);
    if (s == DLRN_OK && tried == DLRN_ERR_SHAPE && !has_encoder(c->archive)) *c->why = 0;
    return s;
}

/* Adds the norms of a dictionary's atoms; those of parts reach over all layers they write to. */
static void add_atom_norms(dlrn_context *ctx, const dlrn_dictionary *dict, double *min, double *sum,
                           double *max) {
    const int64_t width = dict->d_out;
    const float *atoms = dict->param[DLRN_DECODER];
    for (int64_t j = 0; atoms && j < dict->features; j++) {
        double n = (double)dlrn_norm(ctx, atoms + j * width, width);
        *min = n < *min ? n : *min;
        *max = n > *max ? n : *max;
        *sum += n;
    }
    for (int64_t i = 0; i < dict->n_parts; i++)
        add_atom_norms(ctx, dict->part[i].dict, min, sum, max);
}

/* Smallest, mean and largest norm of the atoms; they tell whether a dictionary is normalised. */
static void atom_norms(dlrn_context *ctx, const dlrn_dictionary *dict, double *min, double *mean,
                       double *max) {
    double sum = 0;
    *min = 1e300, *max = 0;
    add_atom_norms(ctx, dict, min, &sum, max);
    *mean = sum / (double)dict->features;
}

/* Whether there are atoms to tell of: an identity has none. */
static int has_atoms(const dlrn_dictionary *dict) {
    return dict && (dict->param[DLRN_DECODER] || dict->n_parts);
}

enum { MODEL_ROWS = 8 };
typedef struct model_row {
    const char *name;
    int64_t value;
} model_row;

/* A model's shape, under the names of its config where they exist. */
static void model_rows(const lm_config *c, model_row *rows) {
    const model_row all[MODEL_ROWS] = {{"hidden_size", c->dim},
                                       {"layers", c->layers},
                                       {"heads", c->heads},
                                       {"intermediate_size", c->inner},
                                       {"vocab_size", c->vocab},
                                       {"positions", c->positions},
                                       {"rotary_dimensions", c->rope.dims},
                                       {"parallel_residual", c->parallel}};
    memcpy(rows, all, sizeof all);
}

/* Prints for people. Names come from the file: see put_text. */
static void print_contents(dlrn_context *ctx, const char *path, const contents *c) {
    model_row rows[MODEL_ROWS];
    double min, mean, max;
    put_text(stdout, path, (int64_t)strlen(path));
    printf(": %s\n", dlrn_archive_describe(c->archive).format);
    if (c->is_model) {
        model_rows(&c->model, rows);
        printf("family %s\n", c->model.architecture->family);
        for (int i = 0; i < MODEL_ROWS; i++)
            printf("%s %lld\n", rows[i].name, (long long)rows[i].value);
    }
    if (has_atoms(c->dict)) {
        atom_norms(ctx, c->dict, &min, &mean, &max);
        printf("family %s, activation_dim %lld, dict_size %lld\n", c->dict->family,
               (long long)c->dict->d_in, (long long)c->dict->features);
        if (c->dict->layers > 1)
            printf("layers %lld, feature_layers %lld\n", (long long)c->dict->layers,
                   (long long)c->dict->feature_layers);
        put_formula_words(c->dict);
        printf("atom norms: min %.6g, mean %.6g, max %.6g\n", min, mean, max);
    }
    if (*c->why) {
        printf("not loaded: ");
        put_text(stdout, c->why, (int64_t)strlen(c->why));
        putchar('\n');
    }
    for (int64_t i = 0; i < dlrn_archive_describe(c->archive).count; i++) {
        const dlrn_tensor_info *t = dlrn_archive_tensor(c->archive, i);
        int shown = put_text(stdout, t->name, (int64_t)strlen(t->name));
        printf("%*s %-5s [", shown < 24 ? 24 - shown : 0, "",
               dlrn_name(DLRN_NAMES_DTYPE, (int)t->dtype));
        for (int d = 0; d < t->ndim; d++) printf("%s%lld", d ? ", " : "", (long long)t->shape[d]);
        printf("]\n");
    }
}

/* The keys are those of dictionary_learning's config.json. */
static void put_dictionary_json(json_writer *j, dlrn_context *ctx, const dlrn_dictionary *dict) {
    double min, mean, max;
    atom_norms(ctx, dict, &min, &mean, &max);
    json_text(j, "family", dict->family);
    json_int(j, "activation_dim", dict->d_in);
    json_int(j, "dict_size", dict->features);
    if (dict->layers > 1) json_int(j, "layers", dict->layers);
    if (dict->layers > 1) json_int(j, "feature_layers", dict->feature_layers);
    put_formula_json(j, dict);
    if (dict->n_parts) {
        json_open(j, "part", '{');
        put_formula_json(j, dict->part[0].dict);
        json_close(j, '}');
    }
    json_open(j, "atom_norms", '{');
    json_real(j, "min", 6, min);
    json_real(j, "mean", 6, mean);
    json_real(j, "max", 6, max);
    json_close(j, '}');
}

static void put_contents_json(dlrn_context *ctx, const char *path, const contents *c) {
    json_writer j = {stdout, 0};
    model_row rows[MODEL_ROWS];
    json_open(&j, NULL, '{');
    json_text(&j, "path", path);
    json_text(&j, "format", dlrn_archive_describe(c->archive).format);
    if (c->is_model) {
        model_rows(&c->model, rows);
        json_text(&j, "family", c->model.architecture->family);
        for (int i = 0; i < MODEL_ROWS; i++) json_int(&j, rows[i].name, rows[i].value);
    }
    if (has_atoms(c->dict)) put_dictionary_json(&j, ctx, c->dict);
    if (*c->why) json_text(&j, "not_loaded", c->why);
    json_open(&j, "tensors", '[');
    for (int64_t i = 0; i < dlrn_archive_describe(c->archive).count; i++) {
        const dlrn_tensor_info *t = dlrn_archive_tensor(c->archive, i);
        json_open(&j, NULL, '{');
        json_text(&j, "name", t->name);
        json_text(&j, "dtype", dlrn_name(DLRN_NAMES_DTYPE, (int)t->dtype));
        json_open(&j, "shape", '[');
        for (int d = 0; d < t->ndim; d++) json_int(&j, NULL, t->shape[d]);
        json_close(&j, ']');
        json_close(&j, '}');
    }
    json_close(&j, ']');
    json_close(&j, '}');
    putchar('\n');
}

static int run_inspect(dlrn_context *ctx, const options *o) {
    contents c;
    dlrn_status s = open_contents(ctx, o->path, o, &c);
    if (s == DLRN_OK && o->json) put_contents_json(ctx, o->path, &c);
    if (s == DLRN_OK && !o->json) print_contents(ctx, o->path, &c);
    dlrn_archive_close(c.archive);
    dlrn_dictionary_destroy(c.dict);
    return s == DLRN_OK ? 0 : fail(ctx);
}

static int run_convert(dlrn_context *ctx, const options *o) {
    dlrn_dictionary *dict = NULL;
    if (!ends_with(o->path2, ".pt") && !ends_with(o->path2, ".safetensors") &&
        !ends_with(o->path2, ".npz"))
        return usage_error("convert", "expected a name ending in .pt, .safetensors or .npz",
                           o->path2);
    dlrn_status s = load_dictionary(ctx, o->path, o, &dict);
    if (s == DLRN_OK && stopping(NULL)) s = DLRN_STOPPED;
    if (s == DLRN_OK) s = dlrn_save(dict, o->path2);
    dlrn_dictionary_destroy(dict);
    return s == DLRN_OK ? 0 : fail(ctx);
}
