/* layout.h - the target of layouts and configs: an input is no file, but says how a dictionary's
   files differ from those that a library writes. So every input is about layouts, and a change of
   one byte drops, renames, reshapes or poisons a tensor, or makes one key of the config hostile.

   What is loaded must be sound: finite, in bounds, the same after it was saved. */
#ifndef DICTLEARN_FUZZ_LAYOUT_H
#define DICTLEARN_FUZZ_LAYOUT_H

#include "tests/fuzz/fuzz.h"

/* ---- A host's files, in memory ---- */

enum { LAYOUT_FILES = 12, LAYOUT_TENSORS = 40, LAYOUT_NUMBERS = 1 << 11, LAYOUT_CONFIG = 1 << 13 };
enum { LAYOUT_FIVE = -5 }; /* a single number that is 5: DECOUPLED */

typedef struct layout_file {
    char name[128]; /* "": none */
    unsigned char *bytes;
    size_t size, at, cap;
} layout_file;

static layout_file layout_store[LAYOUT_FILES];

static layout_file *layout_find(const char *name) {
    for (int i = 0; i < LAYOUT_FILES; i++)
        if (!strcmp(layout_store[i].name, name)) return &layout_store[i];
    return NULL;
}

/* A folder is there if a file lies in it. */
static int layout_exists(void *user, const char *path) {
    const size_t n = strlen(path);
    (void)user;
    if (*path && layout_find(path)) return 1;
    for (int i = 0; i < LAYOUT_FILES; i++)
        if (!strncmp(layout_store[i].name, path, n) && layout_store[i].name[n] == '/') return 2;
    return 0;
}

static dlrn_status layout_open(void *user, dlrn_context *c, const char *path, int writing,
                               void **file) {
    const layout_file *from = layout_find(path);
    layout_file *f = (layout_file *)calloc(1, sizeof *f);
    (void)user;
    CHECK(f != NULL && strlen(path) < sizeof f->name);
    if (!writing && (!from || !*path)) {
        free(f);
        return dlrn_fail(c, DLRN_ERR_IO, "%s: not in the store", path);
    }
    strcpy(f->name, path);
    if (!writing) f->bytes = from->bytes, f->size = from->size;
    f->cap = writing;
    *file = f;
    return DLRN_OK;
}

static dlrn_status layout_read(void *user, dlrn_context *c, void *file, void *bytes, size_t size,
                               size_t *got) {
    layout_file *f = (layout_file *)file;
    (void)user, (void)c;
    *got = size < f->size - f->at ? size : f->size - f->at;
    if (*got) memcpy(bytes, f->bytes + f->at, *got);
    f->at += *got;
    return DLRN_OK;
}

static dlrn_status layout_write(void *user, dlrn_context *c, void *file, const void *bytes,
                                size_t size) {
    layout_file *f = (layout_file *)file;
    (void)user, (void)c;
    if (!f->bytes || size > f->cap - f->size) {
        f->cap = 2 * (f->size + size) + 1;
        f->bytes = (unsigned char *)realloc(f->bytes, f->cap);
        CHECK(f->bytes != NULL);
    }
    if (size) memcpy(f->bytes + f->size, bytes, size);
    f->size += size;
    return DLRN_OK;
}

static dlrn_status layout_close(void *user, dlrn_context *c, void *file, int keep) {
    layout_file *f = (layout_file *)file;
    layout_file *to = keep ? layout_find(f->name) : NULL;
    (void)user, (void)c;
    if (keep && !to) to = layout_find("");
    CHECK(!keep || to);
    if (to) {
        free(to->bytes);
        *to = *f;
    } else if (f->cap) {
        free(f->bytes);
    }
    free(f);
    return DLRN_OK;
}

static void layout_put_file(const char *name, const void *bytes, size_t size) {
    void *file;
    CHECK_OK(ctx, layout_open(NULL, ctx, name, 1, &file));
    CHECK_OK(ctx, layout_write(NULL, ctx, file, bytes, size));
    CHECK_OK(ctx, layout_close(NULL, ctx, file, 1));
}

static void layout_clear(void) {
    for (int i = 0; i < LAYOUT_FILES; i++) free(layout_store[i].bytes);
    memset(layout_store, 0, sizeof layout_store);
}

/* Its own context: files of the others are on the disk. */
static dlrn_context *layout_context(void) {
    dlrn_context *host = NULL;
    dlrn_context_config cfg = starve_config(1);
    cfg.kernels = "scalar";
    cfg.io.open_file = layout_open, cfg.io.read_file = layout_read;
    cfg.io.write_file = layout_write, cfg.io.close_file = layout_close;
    cfg.io.file_exists = layout_exists;
    CHECK_STATUS(dlrn_context_create(&cfg, &host), DLRN_OK);
    return host;
}

/* ---- The description ---- */

/* What is left of the input; 0s when it is used up, which mean that nothing is changed. */
typedef struct layout_input {
    const unsigned char *p, *end;
} layout_input;

static unsigned layout_take(layout_input *in) {
    return in->p < in->end ? *in->p++ : 0;
}

#define LAYOUT_PICK(in, table) ((table)[layout_take(in) % (sizeof(table) / sizeof *(table))])

/* A dictionary's files as they are made up. */
typedef struct layout_case {
    const dlrni_library *library;
    const dlrni_layout *row;
    int64_t F, I, O, M, D, G;
    int64_t layer; /* of the file in hand, for the letters R and T */
    const char *prefix;
    dlrn_tensor_out tensor[LAYOUT_TENSORS];
    char name[LAYOUT_TENSORS][160];
    int64_t count;
    char config[LAYOUT_CONFIG];
} layout_case;

/* The numbers of its tensors. */
static double layout_numbers[LAYOUT_TENSORS][LAYOUT_NUMBERS];

static int64_t layout_size_of(const layout_case *c, char letter) {
    return letter == 'F'   ? c->F
           : letter == 'I' ? c->I
           : letter == 'M' ? c->M
           : letter == 'D' ? c->D
           : letter == 'G' ? c->G
           : letter == 'R' ? c->M - c->layer
           : letter == 'T' ? c->layer + 1
                           : c->O;
}

/* The elements of a tensor, in its type: as a trained one has them, or something worse. */
static void layout_fill(layout_case *c, int64_t at, int64_t n, int is, unsigned kind) {
    dlrn_tensor_out *t = &c->tensor[at];
    static const double bad[] = {0, 1e30, FLT_MAX, -FLT_MAX, 1e-42, -1, NAN, INFINITY, 1e18, 0.5};
    unsigned char *raw = (unsigned char *)layout_numbers[at];
    for (int64_t i = 0; i < n; i++) {
        double v = is == LAYOUT_FIVE       ? 5
                   : is == DLRNI_IS_K      ? 2
                   : is == DLRNI_IS_GROUPS ? (double)(c->F / (n ? n : 1))
                                           : (double)((i * 37 + at * 11) % 17 - 8) / 8;
        if (kind >= 200 && (i % (1 + kind % 7) == 0)) v = bad[kind % 10];
        float f = (float)(v > FLT_MAX ? INFINITY : v);
        int64_t whole = v > -1e15 && v < 1e15 ? (int64_t)v : 7;
        uint16_t half = (uint16_t)(0x3c00 + (i * 37) % 512); /* 1 to 1.5 as f16; as bf16, 0.008 */
        switch (t->dtype) {
        case DLRN_F32: memcpy(raw + i * 4, &f, 4); break;
        case DLRN_F64: memcpy(raw + i * 8, &v, 8); break;
        case DLRN_F16:
        case DLRN_BF16: memcpy(raw + i * 2, &half, 2); break;
        case DLRN_I64: memcpy(raw + i * 8, &whole, 8); break;
        default: raw[i] = (unsigned char)whole; break; /* of one byte */
        }
    }
    t->data = raw;
}

/* Adds a tensor with this shape in letters, changed as the input says. */
static void layout_add(layout_case *c, layout_input *in, const char *prefix,
                       const dlrni_stored *stored) {
    static const dlrn_dtype types[] = {DLRN_F16, DLRN_BF16, DLRN_F64, DLRN_I64,
                                       DLRN_I8,  DLRN_U8,   DLRN_BOOL};
    static const int64_t sizes[] = {0, 1, 2, 3, 5, 7, 9};
    const unsigned change = layout_take(in), kind = layout_take(in);
    const int64_t at = c->count;
    int64_t n = 1;
    dlrn_tensor_out *t = &c->tensor[at];
    if (at == LAYOUT_TENSORS || change % 16 == 9) return; /* missing */
    snprintf(c->name[at], sizeof c->name[at], "%s%s%s", change % 16 == 10 ? "" : prefix,
             stored->name, change % 16 == 11 ? "x" : "");
    for (int64_t i = 0; i < at; i++)
        if (!strcmp(c->name[i], c->name[at])) return; /* no archive has a name twice */
    memset(t, 0, sizeof *t);
    t->name = c->name[at];
    t->dtype = stored->is == DLRNI_IS_GROUPS ? DLRN_I64 : DLRN_F32;
    if (change % 16 == 12) t->dtype = LAYOUT_PICK(in, types);
    for (const char *s = stored->shape; *s; s++) t->shape[t->ndim++] = layout_size_of(c, *s);
    if (change % 16 == 13 && t->ndim)
        t->shape[layout_take(in) % (unsigned)t->ndim] = LAYOUT_PICK(in, sizes);
    if (change % 16 == 14 && t->ndim > 1) {
        int64_t first = t->shape[0];
        t->shape[0] = t->shape[t->ndim - 1];
        t->shape[t->ndim - 1] = first;
    }
    if (change % 16 == 15) t->ndim = t->ndim == 3 ? 2 : t->ndim + 1;
    if (change % 16 == 15 && t->ndim > 0 && !t->shape[t->ndim - 1]) t->shape[t->ndim - 1] = 1;
    for (int i = 0; i < t->ndim; i++) n *= t->shape[i];
    if (n > LAYOUT_NUMBERS) return;
    const int is_plain = *stored->shape || stored->is == LAYOUT_FIVE;
    layout_fill(c, at, n, is_plain ? stored->is : DLRNI_IS_K, kind);
    c->count++;
}

/* The tensors of the row, then a few of other rows. */
static void layout_tensors(layout_case *c, layout_input *in) {
    static const char *const prefixes[] = {
        "", "", "", "", "module.", "", "_orig_mod.", "state_dict.", "ae.", "0.sae.module."};
    /* single numbers that no row lists: OpenAI's k, Llamascopium's mean norm at hook "h" */
    static const dlrni_stored numbers[] = {
        {DLRNI_IS_K, "activation_state_dict.k", "", 0},
        {DLRNI_IS_K, "dataset_average_activation_norm.h", "", 0},
    };
    c->prefix = LAYOUT_PICK(in, prefixes);
    for (const dlrni_stored *t = c->row->tensor; t->name; t++)
        if (t->optional != DLRNI_OPTIONAL || layout_take(in) % 2) layout_add(c, in, c->prefix, t);
    for (unsigned more = layout_take(in) % 4; more > 0; more--) {
        const dlrni_library *library;
        const dlrni_layout *row = dlrni_layout_at((int)layout_take(in), &library);
        const char *prefix = layout_take(in) % 4 ? c->prefix : "other.";
        if (!row) continue;
        const dlrni_stored *t = row->tensor;
        for (unsigned i = layout_take(in) % 8; i > 0 && t[1].name; i--) t++;
        layout_add(c, in, prefix, t);
    }
    layout_add(c, in, "", &numbers[0]);
    layout_add(c, in, c->prefix, &numbers[1]);
}

/* ---- The config ---- */

/* Keys of all libraries, with a value that suits most of them: %N the class, %T a library's own
   type, %F, %I, %O sizes; NULL: absent, unless the input wants it. */
static const char *const layout_keys[][2] = {
    {"dict_class", "\"%N\""},
    {"architecture", "\"%N\""},
    {"activation", "\"%N\""},
    {"act_fn", "\"%N\""},
    {"sae_type", "\"%T\""},
    {"d_sae", "%F"},
    {"d_in", "%D"},
    {"d_out", "%O"},
    {"k", "2"},
    {"top_k", "2"},
    {"expansion_factor", "2"},
    {"norm_activation", "\"dataset-wise\""},
    {"dataset_average_activation_norm", "{\"in\":1.5,\"out\":2}"},
    {"jump_relu_threshold", "0.25"},
    {"hook_point_in", "\"h\""},
    {"hook_point_out", "\"h\""},
    {"dec_init_norm", "0.08"},
    {"code_normalization", "\"SAE\""},
    {"matryoshka_ks", "\"1,2\""},
    {"activation_dim", NULL},
    {"dict_size", NULL},
    {"num_latents", NULL},
    {"num_layers", NULL},
    {"d_model", NULL},
    {"activation_fn", NULL},
    {"activation_fn_str", NULL},
    {"activation_fn_kwargs", NULL},
    {"apply_b_dec_to_input", NULL},
    {"normalize_activations", NULL},
    {"rescale_acts_by_decoder_norm", NULL},
    {"finetuning_scaling_factor", NULL},
    {"skip_connection", NULL},
    {"transcode", NULL},
    {"signed", NULL},
    {"use_skip", NULL},
    {"jumprelu_max_active", NULL},
    {"sparsity_include_decoder_norm", NULL},
    {"code_normalization_alpha_sae", NULL},
    {"code_normalization_alpha_cc", NULL},
    {"trainer", "{\"dict_class\":\"%N\"}"},
};

static const char *const layout_values[] = {
    "0",
    "1",
    "2",
    "3",
    "-1",
    "1.5",
    "1e300",
    "-1e300",
    "1e-320",
    "NaN",
    "-Infinity",
    "null",
    "true",
    "false",
    "\"\"",
    "\"topk\"",
    "\"relu\"",
    "\"jumprelu\"",
    "[]",
    "{}",
    "{\"k\":3}",
    "{\"k\":-1e99}",
    "\"batchtopk\"",
    "\"layer_norm\"",
    "\"token-wise\"",
    "\"inference\"",
    "\"expected_average_only_in\"",
    "\"constant_norm_rescale\"",
    "9007199254740993",
    "99999999999999999999",
    "\"a\\u0000b\\n\"",
    "\"IdentityDict\"",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    "2147483648",
    "{\"dict_class\":\"BatchTopKSAE\",\"activation_dim\":1e18}",
    "{\"in\":0,\"out\":-1}",
    "{\"in\":NaN,\"out\":1e-300}",
    "\"999999999999999999999,-1\"",
    "\"4\"",
    "4.000001",
};

static void layout_put(char *text, size_t *n, const char *more) {
    const size_t len = strlen(more);
    if (*n + len + 1 > LAYOUT_CONFIG) return;
    memcpy(text + *n, more, len + 1);
    *n += len;
}

/* A value with its letters replaced. */
static void layout_put_value(const layout_case *c, const char *name, const char *value, size_t *n,
                             char *text) {
    char part[64] = "";
    for (; *value; value++) {
        const int letter = *value == '%' ? *++value : 0;
        if (letter == 'N')
            snprintf(part, sizeof part, "%s", name);
        else if (letter == 'T')
            snprintf(part, sizeof part, "%s",
                     !strcmp(c->library->name, "llamascopium") ? "sae" : name);
        else if (letter)
            snprintf(part, sizeof part, "%d", (int)layout_size_of(c, (char)letter));
        else
            part[0] = *value, part[1] = 0;
        layout_put(text, n, part);
    }
}

/* The config as its library writes it, changed key by key; or the rest of the input as it is. */
static size_t layout_config(layout_case *c, layout_input *in) {
    size_t n = 0;
    const unsigned mode = layout_take(in);
    if (mode % 8 == 7) {
        n = (size_t)(in->end - in->p);
        if (n >= LAYOUT_CONFIG) n = LAYOUT_CONFIG - 1;
        if (n) memcpy(c->config, in->p, n);
        return n;
    }
    layout_put(c->config, &n, mode % 8 == 6 ? "{\"trainer\":{" : "{");
    for (size_t i = 0; i < sizeof layout_keys / sizeof *layout_keys; i++) {
        const char *value = layout_keys[i][1], *name = c->row->name;
        const unsigned change = layout_take(in);
        const dlrni_library *library;
        if (change % 8 == 7) value = LAYOUT_PICK(in, layout_values);
        if (change % 8 == 6) {
            const dlrni_layout *row = dlrni_layout_at((int)layout_take(in), &library);
            value = "\"%N\"";
            if (row) name = row->name;
        }
        /* few libraries have these */
        if (change % 8 < 5 && !strcmp(layout_keys[i][0], "sae_type") &&
            strcmp(c->library->name, "llamascopium") && strcmp(c->library->name, "latentsae"))
            continue;
        if (change % 8 < 5 && !strcmp(layout_keys[i][0], "trainer") &&
            strcmp(c->library->name, "dictionary_learning"))
            continue;
        if (!value || change % 8 == 5) continue;
        layout_put(c->config, &n, c->config[n - 1] == '{' ? "\"" : ",\"");
        layout_put(c->config, &n, layout_keys[i][0]);
        layout_put(c->config, &n, "\":");
        layout_put_value(c, name, value, &n, c->config);
    }
    layout_put(c->config, &n, mode % 8 == 6 ? "}}" : "}");
    return n;
}

/* ---- The files ---- */

/* Writes the weights and the config, as the library names them or by another name; `path`: what is
   loaded, the folder or the file. */
static void layout_files(dlrn_context *host, layout_case *c, layout_input *in, char path[128]) {
    static const char *const names[] = {"ae.pt", "ae.safetensors", "ae.npz",
                                        "x.pt",  "x.safetensors",  "params.npz"};
    static const char *const configs[] = {"config.json", "cfg.json", "hyperparams.json"};
    static const char *const texts[] = {"TopK", "ReLU", "AutoEncoder", "saelens", "BatchTopKSAE"};
    static const char *const keys[] = {"activation", "layout", "dict_class"};
    const unsigned how = layout_take(in), where = layout_take(in), said = layout_take(in);
    const char *weights = c->library->weights, *config = c->library->config;
    const char *notes[3] = {keys[said % 3], texts[said / 3 % 5], NULL};
    char file[128], name[64];
    size_t n;
    if (!weights) weights = c->row->formats & DLRNI_PT ? "ae.pt" : "ae.safetensors";
    if (how % 4 == 3) weights = LAYOUT_PICK(in, names);
    if (where % 4 == 3 || !*config) config = LAYOUT_PICK(in, configs);
    const char *mark = strchr(weights, '%');
    if (mark)
        snprintf(name, sizeof name, "%.*s%u%s", (int)(mark - weights), weights, how / 4 % 3,
                 mark + 2);
    snprintf(file, sizeof file, "run/%s", mark ? name : weights);
    snprintf(path, 128, "%s", where / 4 % 2 ? file : "run");
    dlrn_status s =
        dlrn_archive_write(host, file, c->tensor, c->count,
                           said >= 64 || c->library->class_of == dlrni_openai_class ? notes : NULL);
    /* a type that a format has not */
    CHECK_MSG(s == DLRN_OK || s == DLRN_ERR_UNSUPPORTED, "%s", dlrn_error(host));
    n = layout_config(c, in);
    snprintf(file, sizeof file, "run/%s", config);
    if (where / 8 % 8 != 7 && (*c->library->config || where / 64))
        layout_put_file(file, c->config, n);
}

/* ---- What is loaded ---- */

/* Codes of three rows. Rows may overflow, but no index leaves its bounds. */
static void layout_encode(dlrn_dictionary *dict, dlrn_sparse *codes, const float *x, float *y) {
    dlrn_status s = dlrn_forward(dict, x, 3, y, codes);
    CHECK_MSG(s == DLRN_OK || s == DLRN_ERR_VALUE || s == DLRN_ERR_UNSUPPORTED, "%s: %s",
              test_status_name(s), dlrn_error(dict->ctx));
    if (s != DLRN_OK) {
        CHECK(*dlrn_error(dict->ctx));
        codes->rows = 0;
        return;
    }
    CHECK(codes->rows == 3 && codes->cols == dict->features && codes->row_ptr[0] == 0);
    for (int64_t i = 0; i < 3; i++) {
        CHECK(codes->row_ptr[i + 1] >= codes->row_ptr[i]);
        for (int64_t k = codes->row_ptr[i]; k < codes->row_ptr[i + 1]; k++)
            CHECK(codes->col[k] >= 0 && codes->col[k] < dict->features &&
                  (k == codes->row_ptr[i] || codes->col[k] > codes->col[k - 1]));
    }
}

static void layout_sound(const dlrn_dictionary *dict) {
    const dlrn_formula *f = &dict->formula;
    CHECK(dict->d_in > 0 && dict->d_out > 0 && dict->features > 0 && dict->layers > 0);
    CHECK(f->k >= 0 && f->k <= dict->features);
    CHECK(isfinite(f->threshold) && isfinite(f->scale_in) && isfinite(f->scale_out));
    CHECK(strcmp(dlrn_name(DLRN_NAMES_GATE, (int)f->gate), "?") &&
          strcmp(dlrn_name(DLRN_NAMES_SELECT, (int)f->select), "?") &&
          strcmp(dlrn_name(DLRN_NAMES_CENTER, (int)f->center), "?") &&
          strcmp(dlrn_name(DLRN_NAMES_NORMALISE, (int)f->normalise), "?"));
    CHECK(memchr(dict->note, 0, sizeof dict->note) && !strpbrk(dict->note, "\n\r\x1b"));
    for (int role = 0; role < DLRN_ROLE_COUNT; role++)
        for (int64_t i = 0; dict->param[role] && i < dlrni_role_size(dict, role); i++)
            CHECK_MSG(isfinite(dict->param[role][i]), "%s holds %g at %d", dict->layout,
                      (double)dict->param[role][i], (int)i);
    for (int64_t i = 0; i < dict->n_parts; i++) layout_sound(dict->part[i].dict);
}

/* Runs what was loaded, saves it and loads it again: the same codes. */
static void layout_use(dlrn_dictionary *dict, unsigned choice) {
    static const char *const names[3] = {"out/again.pt", "out/again.safetensors", "out/again.npz"};
    const char *name = names[choice % 3];
    dlrn_context *host = dict->ctx;
    dlrn_dictionary *back = NULL;
    dlrn_sparse codes, again;
    memset(&codes, 0, sizeof codes);
    memset(&again, 0, sizeof again);
    const int64_t d = dict->d_in + dict->d_out;
    float *x = (float *)malloc((size_t)(3 * d) * sizeof *x), *y = x + 3 * dict->d_in;
    CHECK(x != NULL);
    for (int64_t i = 0; i < 3 * dict->d_in; i++) x[i] = (float)(i * 29 % 19) / 4 - 2;
    for (int64_t i = 0; choice % 8 == 7 && i < dict->d_in; i++) x[i] = i % 2 ? 1e30f : 0;
    layout_encode(dict, &codes, x, y);
    dlrn_status s = dlrn_save(dict, name);
    if (s == DLRN_OK) {
        CHECK_OK(host, dlrn_load(host, name, NULL, &back));
        layout_sound(back);
        layout_encode(back, &again, x, y);
        CHECK(codes.rows == again.rows && back->d_in == dict->d_in && back->d_out == dict->d_out);
        const int64_t nnz = codes.rows ? codes.row_ptr[3] : 0;
        CHECK_MSG(!codes.rows || nnz == again.row_ptr[3], "%s of %s: %d codes, after saving %d",
                  dict->family, dict->layout, (int)nnz, (int)again.row_ptr[3]);
        if (nnz)
            CHECK_MSG(!memcmp(codes.col, again.col, (size_t)nnz * sizeof *codes.col) &&
                          !memcmp(codes.val, again.val, (size_t)nnz * sizeof *codes.val),
                      "%s of %s is another after it was saved", dict->family, dict->layout);
    } else {
        CHECK_MSG(s == DLRN_ERR_UNSUPPORTED && *dlrn_error(host), "%s: %s", test_status_name(s),
                  dlrn_error(host));
    }
    free(x);
    dlrn_sparse_free(&codes);
    dlrn_sparse_free(&again);
    dlrn_dictionary_destroy(back);
}

/* ---- Dictionaries of several layers ---- */

/* What a library writes: names with the layer for '#' and, after "->", a later one for '@'; R
   layers from this one on, T up to it. A name of a file with '#' is that of a file for each. */
typedef struct layout_set {
    const char *config, *keys[18];          /* key, value; ... NULL         */
    const char *file[2], *tensor[2][12][2]; /* of each file: name, shape    */
} layout_set;

static const layout_set layout_sets[] = {
    {"config.yaml",
     {NULL},
     {"W_enc_#.safetensors", "W_dec_#.safetensors"},
     {{{"W_enc_#", "FD"}, {"b_enc_#", "F"}, {"b_dec_#", "D"}, {"threshold_#", "F"}},
      {{"W_dec_#", "FRD"}}}},
    {"config.json",
     {"architecture", "\"jump_relu\"", "affine_connection", "true", NULL},
     {"params_layer_#.safetensors", NULL},
     {{{"w_enc", "DF"},
       {"w_dec", "FMD"},
       {"b_enc", "F"},
       {"b_dec", "D"},
       {"threshold", "F"},
       {"affine_skip_connection", "DD"}}}},
    {"config.json",
     {"sae_type", "\"clt\"", "act_fn", "\"topk\"", "top_k", "2", "norm_activation",
      "\"dataset-wise\"", "hook_points_in", "[\"a\",\"a\"]", "hook_points_out", "[\"b\",\"b\"]",
      "d_model", "%D", NULL},
     {"sae_weights.safetensors", NULL},
     {{{"W_E", "MDF"},
       {"b_E", "MF"},
       {"W_D.#", "TFD"},
       {"b_D.#", "D"},
       {"activation_function.log_jumprelu_threshold", "MF"},
       {"dataset_average_activation_norm.a", ""},
       {"dataset_average_activation_norm.b", ""}}}},
    {"config.json",
     {"sae_type", "\"crosscoder\"", "act_fn", "\"jumprelu\"", "top_k", "2", "norm_activation",
      "\"dataset-wise\"", "hook_points", "[\"a\",\"a\"]", "sparsity_include_decoder_norm", "true",
      NULL},
     {"sae_weights.safetensors", NULL},
     {{{"W_E", "MDF"},
       {"b_E", "MF"},
       {"W_D", "MFD"},
       {"b_D", "MD"},
       {"activation_function.log_jumprelu_threshold", "F"},
       {"dataset_average_activation_norm.a", ""}}}},
    {"config.json",
     {"code_normalization", "\"DECOUPLED\"", NULL},
     {"ae.pt", NULL},
     {{{"target_rms", ""},
       {"activation_mean", "MD"},
       {"activation_std", "MD"},
       {"code_normalization_id", ""},
       {"k", ""},
       {"threshold", "M"},
       {"encoder.weight", "MDF"},
       {"encoder.bias", "F"},
       {"decoder.bias", "MD"},
       {"decoder.weight", "MFD"}}}},
    {"cfg.json",
     {"num_features", "%F", "num_layers", "%M", "d_model", "%D", "activation_fn", "\"batchtopk\"",
      "batchtopk_k", "2", "topk_k", "2", "decoder_tying", "\"none\"", "skip_connection", "true",
      NULL},
     {"model.safetensors", NULL},
     {{{"encoder_module.encoders.#.weight", "FD"},
       {"encoder_module.encoders.#.bias_param", "F"},
       {"decoder_module.decoders.#->@.weight", "DF"},
       {"decoder_module.decoders.#->@.bias_param", "D"},
       {"theta_manager.log_threshold", "MF"},
       {"decoder_module.skip_weights.#", "DD"}}}},
    {"cfg.json",
     {"num_features", "%F", "num_layers", "%M", "d_model", "%D", "activation_fn", "\"jumprelu\"",
      "decoder_tying", "\"per_target\"", "enable_feature_offset", "true", "enable_feature_scale",
      "true", NULL},
     {"model.safetensors", NULL},
     {{{"encoder_module.encoders.#.weight", "FD"},
       {"encoder_module.encoders.#.bias_param", "F"},
       {"decoder_module.decoders.#.weight", "DF"},
       {"decoder_module.decoders.#.bias_param", "D"},
       {"decoder_module.feature_offset.#", "F"},
       {"decoder_module.feature_scale.#", "F"},
       {"theta_manager.log_threshold", "MF"}}}},
};
enum { LAYOUT_SETS = sizeof layout_sets / sizeof *layout_sets };

/* A name with its layers in it. */
static void layout_name(char name[96], const char *pattern, int64_t layer, int64_t to) {
    size_t n = 0;
    for (; *pattern; pattern++)
        if (*pattern == '#' || *pattern == '@')
            n += (size_t)snprintf(name + n, 96 - n, "%d", (int)(*pattern == '#' ? layer : to));
        else
            name[n++] = *pattern;
    name[n] = 0;
}

/* Adds a tensor of a set, for each of the layers that its name and its file leave open. */
static void layout_set_tensor(layout_case *c, layout_input *in, const char *const pattern[2],
                              int is_of_layer) {
    const int64_t first = is_of_layer ? c->layer : 0;
    const int each = !is_of_layer && strchr(pattern[0], '#'),
              pairs = strchr(pattern[0], '@') != NULL;
    const int64_t kept = c->layer;
    for (int64_t i = first; i < (each ? c->M : first + 1); i++)
        for (int64_t to = i; to < (pairs ? c->M : i + 1); to++) {
            char name[96];
            dlrni_stored t = {0, name, pattern[1], 0};
            layout_name(name, pattern[0], i, to);
            if (!strcmp(name, "code_normalization_id")) t.is = LAYOUT_FIVE;
            c->layer = i;
            layout_add(c, in, "", &t);
        }
    c->layer = kept;
}

/* Files of a set, and its config with a value that the input changes. */
static void layout_set_files(dlrn_context *host, layout_case *c, layout_input *in,
                             const layout_set *set, char path[128]) {
    char name[96], file[128];
    size_t n = 0;
    for (int f = 0; f < 2 && set->file[f]; f++) {
        const int is_of_layer = strchr(set->file[f], '#') != NULL;
        for (c->layer = 0; c->layer < (is_of_layer ? c->M : 1); c->layer++) {
            c->count = 0;
            for (int i = 0; set->tensor[f][i][0]; i++)
                layout_set_tensor(c, in, set->tensor[f][i], is_of_layer);
            layout_name(name, set->file[f], c->layer, 0);
            snprintf(file, sizeof file, "run/%s", name);
            if (layout_take(in) % 16 == 15) continue; /* it is missing */
            dlrn_status s = dlrn_archive_write(host, file, c->tensor, c->count, NULL);
            CHECK_MSG(s == DLRN_OK || s == DLRN_ERR_UNSUPPORTED, "%s", dlrn_error(host));
            snprintf(path, 128, "%s", layout_take(in) % 4 == 3 ? file : "run");
        }
    }
    c->layer = 0;
    layout_put(c->config, &n, "{");
    for (int i = 0; set->keys[i]; i += 2) {
        const unsigned change = layout_take(in);
        if (change % 8 == 5) continue;
        layout_put(c->config, &n, n > 1 ? ",\"" : "\"");
        layout_put(c->config, &n, set->keys[i]);
        layout_put(c->config, &n, "\":");
        layout_put_value(c, "relu",
                         change % 8 == 7 ? LAYOUT_PICK(in, layout_values) : set->keys[i + 1], &n,
                         c->config);
    }
    layout_put(c->config, &n, "}");
    snprintf(file, sizeof file, "run/%s", set->config);
    if (layout_take(in) % 8 != 7) layout_put_file(file, c->config, n);
}

static void layout_options(layout_input *in, dlrn_load_options *o) {
    static const double numbers[] = {0, 0, 0, 0.5, 1, 1e30, -1, NAN};
    static const int64_t ks[] = {0, 0, 0, 0, 1, 2, 3, 1000000, -1, INT64_MAX};
    static const char *const names[] = {"nothing", "", "AutoEncoderTopK", "a\nb", "saelens"};
    const unsigned how = layout_take(in);
    const dlrni_library *library;
    memset(o, 0, sizeof *o);
    if (how < 128) return;
    o->k = LAYOUT_PICK(in, ks);
    o->norm_scale = LAYOUT_PICK(in, numbers);
    o->threshold = LAYOUT_PICK(in, numbers);
    if (how % 4 == 1) o->layout = LAYOUT_PICK(in, names);
    if (how % 4 > 1) {
        const dlrni_layout *row = dlrni_layout_at((int)layout_take(in), &library);
        if (row) o->layout = how % 4 == 2 ? row->name : library->name;
    }
}

static void fuzz_layout(const unsigned char *data, size_t size) {
    static layout_case c;
    static const int64_t features[] = {6, 1, 2, 3, 8, 9, 4, 49}, widths[] = {4, 1, 2, 3, 5, 8};
    layout_input in = {data, data + size};
    dlrn_load_options options;
    dlrn_dictionary *dict = NULL;
    char path[128];
    int rows = 0;
    memset(&c, 0, sizeof c);
    while (dlrni_layout_at(rows, &c.library)) rows++;
    const unsigned which = layout_take(&in);
    c.row = dlrni_layout_at((int)which % rows, &c.library);
    c.F = LAYOUT_PICK(&in, features);
    c.D = LAYOUT_PICK(&in, widths);
    c.M = 1 + layout_take(&in) % 3;
    c.G = 1 + layout_take(&in) % 3;
    c.I = strchr(c.row->tensor[0].shape, 'M') ? c.M * c.D : c.D;
    c.O = layout_take(&in) % 4 == 3 ? LAYOUT_PICK(&in, widths) : c.I;
    layout_options(&in, &options);
    const unsigned choice = layout_take(&in);
    dlrn_context *host = layout_context();
    snprintf(path, sizeof path, "run");
    if (which >= 256 - 4 * LAYOUT_SETS) {
        c.I = c.O = c.D;
        layout_set_files(host, &c, &in, &layout_sets[which % LAYOUT_SETS], path);
    } else {
        layout_tensors(&c, &in);
        layout_files(host, &c, &in, path);
    }
    dlrn_status s = dlrn_load(host, path, &options, &dict);
    CHECK((s == DLRN_OK) == (dict != NULL));
    if (dict) {
        layout_sound(dict);
        layout_use(dict, choice);
    } else if (s == DLRN_ERR_ARGUMENT) { /* what the caller states may not suit */
        CHECK(*dlrn_error(host) &&
              (options.k || options.layout || options.norm_scale != 0 || options.threshold != 0));
    } else {
        CHECK_MSG(s == DLRN_ERR_IO || s == DLRN_ERR_FORMAT || s == DLRN_ERR_UNSUPPORTED ||
                      s == DLRN_ERR_SHAPE || s == DLRN_ERR_VALUE,
                  "%s: %s", test_status_name(s), dlrn_error(host));
        CHECK_STR(dlrn_error(host), "run");
    }
    for (const char *e = dict ? "" : dlrn_error(host); *e; e++)
        CHECK_MSG((unsigned char)*e >= 32 && *e != 127, "the byte %d in '%s'", *e,
                  dlrn_error(host));
    dlrn_dictionary_destroy(dict);
    dlrn_context_destroy(host);
    layout_clear();
}
#endif /* DICTLEARN_FUZZ_LAYOUT_H */
