/* Dictionaries of several layers in files: what each layout gives, and what is wrong with a folder.
   The files are made here, of small random numbers, and each reconstruction is compared with the
   library's formula in plain loops. */
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "starve.h"
#include "test.h"

enum { L = 3, D = 5, F = 7, ROWS = 4, MOST = 48 };

static dlrn_context *ctx;

/* ---- Tensors to write ---- */

typedef struct tensors {
    dlrn_tensor_out t[MOST];
    char names[MOST][64];
    float *data[MOST];
    int n;
    uint64_t seed;
} tensors;

/* Adds a tensor of random numbers of about `size`; shape ends with 0. Its data may be changed. */
static float *add(tensors *to, const char *name, double size, int64_t a, int64_t b, int64_t c) {
    const int64_t shape[3] = {a, b, c};
    dlrn_rng rng = {7, to->seed++, 0};
    dlrn_tensor_out *t = &to->t[to->n];
    int64_t n = 1;
    memset(t, 0, sizeof *t);
    snprintf(to->names[to->n], sizeof to->names[0], "%s", name);
    t->name = to->names[to->n];
    t->dtype = DLRN_F32;
    for (; t->ndim < 3 && shape[t->ndim]; t->ndim++) {
        t->shape[t->ndim] = shape[t->ndim];
        n *= shape[t->ndim];
    }
    float *data = (float *)malloc((size_t)n * sizeof *data);
    for (int64_t i = 0; i < n; i++) data[i] = (float)size * dlrn_rng_normal(&rng);
    to->data[to->n] = data;
    t->data = data;
    to->n++;
    return data;
}

static float *numbered(tensors *to, const char *before, int i, const char *after, int64_t a,
                       int64_t b, int64_t c) {
    char name[64];
    snprintf(name, sizeof name, "%s%d%s", before, i, after);
    return add(to, name, 1, a, b, c);
}

static void drop(tensors *t) {
    for (int i = 0; i < t->n; i++) free(t->data[i]);
    memset(t, 0, sizeof *t);
}

/* A path in the folder of a test. */
static char *in_folder(const char *folder, const char *name) {
    char both[128];
    mkdir(tmp_path(folder), 0777);
    snprintf(both, sizeof both, "%s/%s", folder, name);
    return tmp_path(both);
}

static void write_tensors(tensors *t, const char *folder, const char *name) {
    CHECK_OK(ctx, dlrn_archive_write(ctx, in_folder(folder, name), t->t, t->n, NULL));
}

static void write_text(const char *folder, const char *name, const char *text) {
    CHECK_OK(ctx, dlrn_file_write(ctx, in_folder(folder, name), text, strlen(text)));
}

static const float *find(const tensors *t, const char *name) {
    for (int i = 0; i < t->n; i++)
        if (!strcmp(t->names[i], name)) return t->data[i];
    TEST_FAIL("no tensor %s", name);
    return NULL;
}

static const float *find_numbered(const tensors *t, const char *before, int i, const char *after) {
    char name[64];
    snprintf(name, sizeof name, "%s%d%s", before, i, after);
    return find(t, name);
}

/* ---- Comparison ---- */

static void make_rows(float *x) {
    dlrn_rng rng = {3, 0, 0};
    for (int64_t i = 0; i < ROWS * L * D; i++) x[i] = dlrn_rng_normal(&rng);
}

/* Features want [ROWS][L][F] and reconstruction [ROWS][L][D] against a loaded dictionary. */
static void compare(const char *path, const double *f, const double *y) {
    static float x[ROWS * L * D], got[ROWS * L * F], x_hat[ROWS * L * D];
    dlrn_dictionary *dict = NULL;
    make_rows(x);
    CHECK_OK(ctx, dlrn_load(ctx, path, NULL, &dict));
    CHECK(dict->layers == L && dict->feature_layers == L && dict->n_parts == L);
    CHECK(dict->d_in == L * D && dict->features == L * F && dict->d_out == L * D);
    CHECK_OK(ctx, dlrn_encode(dict, x, ROWS, got));
    CHECK_OK(ctx, dlrn_forward(dict, x, ROWS, x_hat, NULL));
    for (int i = 0; i < ROWS * L * F; i++)
        CHECK_MSG(fabs((double)got[i] - f[i]) <= 3e-6 * (1 + fabs(f[i])), "feature %d: %g for %g",
                  i, (double)got[i], f[i]);
    for (int i = 0; i < ROWS * L * D; i++)
        CHECK_MSG(fabs((double)x_hat[i] - y[i]) <= 1e-5 * (1 + fabs(y[i])),
                  "reconstruction %d: %g for %g", i, (double)x_hat[i], y[i]);
    dlrn_dictionary_destroy(dict);
}

static dlrn_status load(const char *path, const dlrn_load_options *options) {
    dlrn_dictionary *dict = NULL;
    dlrn_status s = dlrn_load(ctx, path, options, &dict);
    CHECK((s == DLRN_OK) == (dict != NULL));
    dlrn_dictionary_destroy(dict);
    return s;
}

static void refused(const char *path, dlrn_status status, const char *text) {
    CHECK_STATUS(load(path, NULL), status);
    CHECK_STR(dlrn_error(ctx), text);
}

/* ---- circuit-tracer ---- */

static tensors clt[L][2]; /* of each layer: its encoder's file, its decoder's */

static void tracer_make(int jump) {
    for (int i = 0; i < L; i++) {
        tensors *e = &clt[i][0], *d = &clt[i][1];
        drop(e), drop(d);
        e->seed = (uint64_t)(100 * i), d->seed = (uint64_t)(100 * i + 50);
        numbered(e, "W_enc_", i, "", F, D, 0);
        numbered(e, "b_enc_", i, "", F, 0, 0);
        numbered(e, "b_dec_", i, "", D, 0, 0);
        if (jump) numbered(e, "threshold_", i, "", F, 0, 0);
        numbered(d, "W_dec_", i, "", F, L - i, D);
    }
}

static void tracer_write(const char *folder) {
    char name[64];
    for (int i = 0; i < L; i++)
        for (int k = 0; k < 2; k++) {
            snprintf(name, sizeof name, "W_%s_%d.safetensors", k ? "dec" : "enc", i);
            write_tensors(&clt[i][k], folder, name);
        }
}

static void tracer_formula(int jump, double *f, double *y) {
    static float x[ROWS * L * D];
    make_rows(x);
    for (int r = 0; r < ROWS; r++) {
        for (int i = 0; i < L; i++) {
            const float *w = find_numbered(&clt[i][0], "W_enc_", i, "");
            const float *b = find_numbered(&clt[i][0], "b_enc_", i, "");
            for (int j = 0; j < F; j++) {
                double p = (double)b[j], floor = 0;
                for (int c = 0; c < D; c++)
                    p += (double)w[j * D + c] * (double)x[(r * L + i) * D + c];
                if (jump) floor = (double)find_numbered(&clt[i][0], "threshold_", i, "")[j];
                f[(r * L + i) * F + j] = p > floor ? p : 0;
            }
        }
        for (int t = 0; t < L; t++)
            for (int c = 0; c < D; c++) {
                double sum = (double)find_numbered(&clt[t][0], "b_dec_", t, "")[c];
                for (int i = 0; i <= t; i++) {
                    const float *w = find_numbered(&clt[i][1], "W_dec_", i, "");
                    for (int j = 0; j < F; j++)
                        sum += f[(r * L + i) * F + j] * (double)w[(j * (L - i) + t - i) * D + c];
                }
                y[(r * L + t) * D + c] = sum;
            }
    }
}

TEST(circuit_tracer) {
    static double f[ROWS * L * F], y[ROWS * L * D];
    for (int jump = 0; jump < 2; jump++) { /* random thresholds: also negative ones */
        tracer_make(jump);
        tracer_write(jump ? "ct_jump" : "ct");
        tracer_formula(jump, f, y);
        compare(tmp_path(jump ? "ct_jump" : "ct"), f, y);
    }
    CHECK_OK(ctx, load(tmp_path("ct"), &(dlrn_load_options){"circuit-tracer", 0, 0, 0, DLRN_OFF}));
    CHECK_STATUS(load(tmp_path("ct"), &(dlrn_load_options){NULL, 3, 0, 0, DLRN_OFF}),
                 DLRN_ERR_ARGUMENT);
    CHECK_STATUS(load(tmp_path("ct"), &(dlrn_load_options){NULL, 0, 0, 1, DLRN_OFF}),
                 DLRN_ERR_ARGUMENT);
    CHECK_STATUS(load(tmp_path("ct"), &(dlrn_load_options){NULL, 0, -1, 0, DLRN_OFF}),
                 DLRN_ERR_ARGUMENT);
}

/* x times a scale of training, and its inverse on x_hat. */
TEST(a_scale_that_the_caller_states) {
    static float x[ROWS * L * D], scaled[ROWS * L * D], a[ROWS * L * D], b[ROWS * L * D];
    dlrn_dictionary *plain = NULL, *dict = NULL;
    tracer_make(0);
    tracer_write("ct_scale");
    make_rows(x);
    for (int i = 0; i < ROWS * L * D; i++) scaled[i] = 4 * x[i];
    CHECK_OK(ctx, dlrn_load(ctx, tmp_path("ct_scale"), NULL, &plain));
    CHECK_OK(ctx, dlrn_load(ctx, tmp_path("ct_scale"),
                            &(dlrn_load_options){NULL, 0, 4, 0, DLRN_OFF}, &dict));
    CHECK_OK(ctx, dlrn_forward(dict, x, ROWS, a, NULL));
    CHECK_OK(ctx, dlrn_forward(plain, scaled, ROWS, b, NULL));
    for (int i = 0; i < ROWS * L * D; i++) CHECK(a[i] == b[i] / 4); /* a power of two: exact */
    dlrn_dictionary_destroy(plain);
    dlrn_dictionary_destroy(dict);
}

/* One file of a folder, or a folder of one layer: what it adds to the layers from its own on. */
TEST(one_layer_alone) {
    static double f[ROWS * L * F], y[ROWS * L * D];
    static float x[ROWS * L * D], row[D], got[F];
    dlrn_dictionary *dict = NULL;
    tracer_make(1);
    tracer_write("ct_one");
    tracer_formula(1, f, y);
    make_rows(x);
    memcpy(row, x + D, sizeof row); /* row 0 of layer 1 */
    for (int k = 0; k < 2; k++) {
        CHECK_OK(ctx,
                 dlrn_load(ctx,
                           in_folder("ct_one", k ? "W_dec_1.safetensors" : "W_enc_1.safetensors"),
                           NULL, &dict));
        CHECK(dict->d_in == D && dict->d_out == 2 * D && dict->features == F && !dict->n_parts);
        CHECK_STR(dict->note, "layer 1 of a cross-layer transcoder alone");
        CHECK_OK(ctx, dlrn_encode(dict, row, 1, got));
        for (int j = 0; j < F; j++) CHECK_CLOSE((double)got[j], f[F + j], 1e-5);
        dlrn_dictionary_destroy(dict);
    }
    (void)remove(in_folder("ct_alone", "W_enc_2.safetensors")); /* of an earlier run */
    write_tensors(&clt[1][0], "ct_alone", "W_enc_1.safetensors");
    write_tensors(&clt[1][1], "ct_alone", "W_dec_1.safetensors");
    CHECK_OK(ctx, load(tmp_path("ct_alone"), NULL));
    write_tensors(&clt[2][0], "ct_alone", "W_enc_2.safetensors");
    refused(tmp_path("ct_alone"), DLRN_ERR_IO, "W_enc_0.safetensors");
}

TEST(a_wrong_circuit_tracer_folder) {
    const float nan_ = NAN;
    tracer_make(1);
    tracer_write("ct_bad");
    CHECK(remove(in_folder("ct_bad", "W_enc_1.safetensors")) == 0);
    refused(tmp_path("ct_bad"), DLRN_ERR_SHAPE, "expected the files of 3 layers");
    /* a shape that does not fit the first layer's */
    drop(&clt[1][1]);
    numbered(&clt[1][1], "W_dec_", 1, "", F, L, D);
    tracer_write("ct_bad");
    refused(tmp_path("ct_bad"), DLRN_ERR_SHAPE,
            "tensor 'W_dec_1': expected shape [7, 2, 5], found [7, 3, 5]");
    drop(&clt[1][1]);
    numbered(&clt[1][1], "W_dec_", 0, "", F, L - 1, D);
    tracer_write("ct_bad");
    refused(tmp_path("ct_bad"), DLRN_ERR_SHAPE, "tensor 'W_dec_1'");
    CHECK_STR(dlrn_error(ctx), "found no such tensor");
    tracer_make(1);
    memcpy(clt[2][0].data[3] + 4, &nan_, sizeof nan_);
    tracer_write("ct_bad");
    refused(tmp_path("ct_bad"), DLRN_ERR_VALUE, "tensor 'threshold_2': expected finite numbers");
    tracer_make(1);
    memcpy(clt[0][1].data[0] + L * D * F - 1, &nan_, sizeof nan_);
    tracer_write("ct_bad");
    refused(tmp_path("ct_bad"), DLRN_ERR_VALUE, "tensor 'W_dec_0': expected finite numbers");
    /* not what the caller says */
    CHECK(load(tmp_path("ct_bad"), &(dlrn_load_options){"gemma_scope_2", 0, 0, 0, DLRN_OFF}) !=
          DLRN_OK);
}

/* ---- Gemma Scope 2 ---- */

static void gemma_write(const char *folder, int i, int64_t layers, float unused) {
    tensors t;
    char name[64];
    memset(&t, 0, sizeof t);
    t.seed = (uint64_t)(1000 * i);
    const float *w = find_numbered(&clt[i][0], "W_enc_", i, "");
    float *to = add(&t, "w_enc", 1, D, F, 0);
    for (int j = 0; j < F * D; j++) to[j % D * F + j / D] = w[j];
    w = find_numbered(&clt[i][1], "W_dec_", i, "");
    to = add(&t, "w_dec", 1, F, layers, D);
    for (int64_t j = 0; j < F * layers * D; j++) to[j] = unused;
    for (int j = 0; j < F; j++)
        if (layers > i)
            memcpy(to + (j * layers + i) * D, w + j * (L - i) * D,
                   (size_t)((layers - i) * D) * sizeof *to);
    memcpy(add(&t, "b_enc", 1, F, 0, 0), find_numbered(&clt[i][0], "b_enc_", i, ""),
           F * sizeof *to);
    memcpy(add(&t, "b_dec", 1, D, 0, 0), find_numbered(&clt[i][0], "b_dec_", i, ""),
           D * sizeof *to);
    memcpy(add(&t, "threshold", 1, F, 0, 0), find_numbered(&clt[i][0], "threshold_", i, ""),
           F * sizeof *to);
    to = add(&t, "affine_skip_connection", 1, D, D, 0);
    for (int j = 0; j < D * D; j++) to[j] = (float)(j + i);
    snprintf(name, sizeof name, "params_layer_%d.safetensors", i);
    write_tensors(&t, folder, name);
    drop(&t);
}

TEST(gemma_scope_2) {
    static double f[ROWS * L * F], y[ROWS * L * D];
    static float x[ROWS * L * D];
    tracer_make(1);
    make_rows(x);
    for (int i = 0; i < L; i++) gemma_write("gs2", i, L, NAN); /* unused entries may be anything */
    tracer_formula(1, f, y);
    for (int r = 0; r < ROWS * L; r++)
        for (int o = 0; o < D; o++)
            for (int c = 0; c < D; c++) y[r * D + o] += (double)x[r * D + c] * (c * D + o + r % L);
    compare(tmp_path("gs2"), f, y);
    CHECK_OK(ctx, load(in_folder("gs2", "params_layer_2.safetensors"), NULL));
    gemma_write("gs2", 2, 2, 0); /* claims to have two layers */
    refused(tmp_path("gs2"), DLRN_ERR_SHAPE, "tensor 'w_dec': expected shape [7, 3, 5]");
    refused(in_folder("gs2", "params_layer_2.safetensors"), DLRN_ERR_SHAPE,
            "expected more than 2 layers");
}

/* ---- Llamascopium ---- */

/* Selects as the library does, by rank f * norm: the k best of rows [n][cols] that are `each` apart
   in blocks of `per`. */
static void keep_best(double *f, const double *norm, int64_t at, int64_t n, int64_t step,
                      int64_t per, int64_t k) {
    static unsigned char kept[ROWS * L * F];
    memset(kept, 0, sizeof kept);
    for (; k > 0; k--) {
        int64_t best = -1;
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = at + i * step; j < at + i * step + per; j++)
                if (!kept[j] && f[j] > 0 &&
                    (best < 0 || f[j] * norm[j % (L * F)] > f[best] * norm[best % (L * F)]))
                    best = j;
        if (best < 0) break;
        kept[best] = 1;
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = at + i * step; j < at + i * step + per; j++)
            if (!kept[j]) f[j] = 0;
}

static void llama_select(const char *act, int is_clt, double *f, const double *norm) {
    const int64_t k = 3;
    if (!strcmp(act, "batchlayertopk") || (!strcmp(act, "batchtopk") && !is_clt))
        keep_best(f, norm, 0, 1, 0, ROWS * L * F, is_clt ? k * ROWS : k * ROWS * L);
    else if (!strcmp(act, "batchtopk"))
        for (int l = 0; l < L; l++) keep_best(f, norm, l * F, ROWS, L * F, F, k * ROWS);
    else
        for (int r = 0; r < ROWS; r++) {
            if (!strcmp(act, "layertopk")) keep_best(f, norm, r * L * F, 1, 0, L * F, k);
            for (int l = 0; l < L && !strcmp(act, "topk"); l++)
                keep_best(f, norm, (r * L + l) * F, 1, 0, F, k);
        }
}

static tensors llama;
static double hook_norm[2][L]; /* of the hooks in and out */

static void llama_write(const char *folder, int is_clt, const char *act, const char *norm) {
    char text[1024], name[80];
    int at = snprintf(text, sizeof text,
                      "{\"sae_type\": \"%s\", \"d_model\": %d, \"act_fn\": \"%s\", \"top_k\": 3, "
                      "\"norm_activation\": \"%s\", \"sparsity_include_decoder_norm\": true",
                      is_clt ? "clt" : "crosscoder", D, act, norm);
    drop(&llama);
    llama.seed = 9;
    for (int k = 0; k < 1 + is_clt; k++) {
        at += snprintf(text + at, sizeof text - (size_t)at, ", \"hook_points%s\": [",
                       !is_clt ? ""
                       : k     ? "_out"
                               : "_in");
        for (int l = 0; l < L; l++) {
            at += snprintf(text + at, sizeof text - (size_t)at, "%s\"h%d%d\"", l ? ", " : "", k, l);
            snprintf(name, sizeof name, "dataset_average_activation_norm.h%d%d", k, l);
            float *scale = add(&llama, name, 1, 1, 0, 0);
            llama.t[llama.n - 1].ndim = 0;
            *scale = (float)(1 + k + l / 2.0);
            hook_norm[k][l] = sqrt((double)D) / (double)*scale;
        }
        at += snprintf(text + at, sizeof text - (size_t)at, "]");
    }
    if (!is_clt) memcpy(hook_norm[1], hook_norm[0], sizeof hook_norm[0]);
    snprintf(text + at, sizeof text - (size_t)at, "}");
    write_text(folder, "config.json", text);
    add(&llama, "W_E", 1, L, D, F);
    add(&llama, "b_E", 1, L, F, 0);
    for (int t = 0; t < L && is_clt; t++) {
        numbered(&llama, "W_D.", t, "", t + 1, F, D);
        numbered(&llama, "b_D.", t, "", D, 0, 0);
    }
    if (!is_clt) {
        add(&llama, "W_D", 1, L, F, D);
        add(&llama, "b_D", 1, L, D, 0);
    }
    add(&llama, "activation_function.log_jumprelu_threshold", 1, is_clt ? L : F, is_clt ? F : 0, 0);
    write_tensors(&llama, folder, "sae_weights.safetensors");
}

/* Atom j of layer l for layer t. */
static double llama_atom(int is_clt, int l, int j, int t, int c) {
    if (!is_clt) return t == l ? (double)find(&llama, "W_D")[(l * F + j) * D + c] : 0;
    return t < l ? 0 : (double)find_numbered(&llama, "W_D.", t, "")[(l * F + j) * D + c];
}

static void llama_formula(int is_clt, const char *act, double *f, double *y) {
    static float x[ROWS * L * D];
    static double norm[L * F];
    const float *w = find(&llama, "W_E"), *b = find(&llama, "b_E");
    const float *log_t = find(&llama, "activation_function.log_jumprelu_threshold");
    make_rows(x);
    for (int i = 0; i < L * F; i++) {
        norm[i] = 0;
        for (int t = 0; t < L; t++)
            for (int c = 0; c < D; c++) norm[i] += pow(llama_atom(is_clt, i / F, i % F, t, c), 2);
        norm[i] = sqrt(norm[i]);
    }
    for (int i = 0; i < ROWS * L * F; i++) {
        const int r = i / (L * F), l = i / F % L, j = i % F;
        double p = 0, floor = 0;
        for (int m = is_clt ? l : 0; m < (is_clt ? l + 1 : L); m++) {
            p += (double)b[m * F + j];
            for (int c = 0; c < D; c++)
                p += (double)x[(r * L + m) * D + c] * hook_norm[0][m] *
                     (double)w[(m * D + c) * F + j];
        }
        if (!strcmp(act, "jumprelu"))
            floor = exp((double)log_t[is_clt ? l * F + j : j]) / norm[l * F + j];
        f[i] = p > floor ? p : 0;
    }
    if (strstr(act, "topk")) llama_select(act, is_clt, f, norm);
    for (int i = 0; i < ROWS * L * D; i++) {
        const int r = i / (L * D), t = i / D % L, c = i % D;
        y[i] = is_clt ? (double)find_numbered(&llama, "b_D.", t, "")[c]
                      : (double)find(&llama, "b_D")[t * D + c];
        for (int l = 0; l < L; l++)
            for (int j = 0; j < F; j++)
                y[i] += f[(r * L + l) * F + j] * llama_atom(is_clt, l, j, t, c);
        y[i] /= hook_norm[1][t];
    }
}

TEST(llamascopium) {
    static const char *const acts[] = {"relu",      "jumprelu",  "topk",
                                       "batchtopk", "layertopk", "batchlayertopk"};
    static double f[ROWS * L * F], y[ROWS * L * D];
    for (int is_clt = 0; is_clt < 2; is_clt++)
        for (int i = 0; i < 6; i++) {
            llama_write("lc", is_clt, acts[i], "dataset-wise");
            if (!is_clt && i > 3) {
                refused(tmp_path("lc"), DLRN_ERR_UNSUPPORTED, "act_fn: expected relu, jumprelu");
                continue;
            }
            llama_formula(is_clt, acts[i], f, y);
            compare(tmp_path("lc"), f, y);
        }
}

TEST(a_wrong_llamascopium_file) {
    const float zero = 0;
    llama_write("lc_bad", 1, "topk", "token-wise");
    refused(tmp_path("lc_bad"), DLRN_ERR_UNSUPPORTED, "norm_activation");
    llama_write("lc_bad", 1, "gelu", "dataset-wise");
    refused(tmp_path("lc_bad"), DLRN_ERR_UNSUPPORTED, "act_fn");
    llama_write("lc_bad", 1, "topk", "dataset-wise");
    CHECK_STATUS(load(tmp_path("lc_bad"), &(dlrn_load_options){NULL, F + 1, 0, 0, DLRN_OFF}),
                 DLRN_ERR_ARGUMENT);
    CHECK_OK(ctx, load(tmp_path("lc_bad"), &(dlrn_load_options){NULL, 2, 0, 0, DLRN_OFF}));
    CHECK_STATUS(load(tmp_path("lc_bad"), &(dlrn_load_options){NULL, 0, 2, 0, DLRN_OFF}),
                 DLRN_ERR_ARGUMENT);
    memcpy(llama.data[0], &zero, sizeof zero); /* the norm of a hook */
    write_tensors(&llama, "lc_bad", "sae_weights.safetensors");
    refused(tmp_path("lc_bad"), DLRN_ERR_VALUE, "dataset_average_activation_norm.h00");
    write_text("lc_bad", "config.json",
               "{\"sae_type\": \"clt\", \"hook_points_in\": [\"h00\"], \"hook_points_out\": []}");
    refused(tmp_path("lc_bad"), DLRN_ERR_SHAPE, "hook_points_in: expected 3 hooks, found 1");
    write_text("lc_bad", "config.json",
               "{\"sae_type\": \"clt\", \"norm_activation\": \"inference\", \"hook_points_in\": "
               "[1, 2, 3], \"hook_points_out\": []}");
    refused(tmp_path("lc_bad"), DLRN_ERR_UNSUPPORTED, "hook_points_in: expected a list of texts");
}

/* ---- decode-clt ---- */

static tensors pairs;

static void pairs_write(const char *folder, int tied, const char *act, const char *more) {
    static const char *const tyings[] = {"none", "per_source", "per_target"};
    char text[512], after[32];
    drop(&pairs);
    pairs.seed = 77;
    snprintf(text, sizeof text,
             "{\"num_features\": %d, \"num_layers\": %d, \"d_model\": %d, \"activation_fn\": "
             "\"%s\", \"decoder_tying\": \"%s\", \"topk_k\": null%s}",
             F, L, D, act, tyings[tied], more);
    write_text(folder, "cfg.json", text);
    for (int i = 0; i < L; i++) {
        numbered(&pairs, "encoder_module.encoders.", i, ".weight", F, D, 0);
        numbered(&pairs, "encoder_module.encoders.", i, ".bias_param", F, 0, 0);
        numbered(&pairs, "decoder_module.skip_weights.", i, "", D, D, 0);
        if (tied) numbered(&pairs, "decoder_module.feature_offset.", i, "", F, 0, 0);
        if (tied) numbered(&pairs, "decoder_module.feature_scale.", i, "", F, 0, 0);
        for (int t = tied ? i : 0; t <= i; t++) {
            snprintf(after, sizeof after, tied ? ".weight" : "->%d.weight", i);
            numbered(&pairs, "decoder_module.decoders.", t, after, D, F, 0);
            snprintf(after, sizeof after, tied ? ".bias_param" : "->%d.bias_param", i);
            numbered(&pairs, "decoder_module.decoders.", t, after, D, 0, 0);
        }
    }
    add(&pairs, "theta_manager.log_threshold", 1, L, F, 0);
    write_tensors(&pairs, folder, "model.safetensors");
}

/* What layer t gets from layer s: decoders and their biases by pair, source or target. */
static void pairs_target(int tied, const double *f, int t, double *y) {
    char after[32];
    for (int s = 0; s <= t; s++) {
        const int which = tied == 2 ? t : s;
        snprintf(after, sizeof after, tied ? ".weight" : "->%d.weight", t);
        const float *w = find_numbered(&pairs, "decoder_module.decoders.", which, after);
        snprintf(after, sizeof after, tied ? ".bias_param" : "->%d.bias_param", t);
        const float *b = find_numbered(&pairs, "decoder_module.decoders.", which, after);
        for (int c = 0; c < D; c++) {
            if (tied < 2 || s == t) y[c] += (double)b[c];
            for (int j = 0; j < F; j++) {
                double v = f[s * F + j];
                if (tied && v != 0)
                    v = (v + (double)find_numbered(&pairs, "decoder_module.feature_offset.", t,
                                                   "")[j]) *
                        (double)find_numbered(&pairs, "decoder_module.feature_scale.", t, "")[j];
                y[c] += v * (double)w[c * F + j];
            }
        }
    }
}

static void pairs_formula(int tied, int jump, double *f, double *y) {
    static float x[ROWS * L * D];
    make_rows(x);
    memset(y, 0, ROWS * L * D * sizeof *y);
    for (int i = 0; i < ROWS * L * F; i++) {
        const int r = i / F, l = r % L, j = i % F;
        const float *w = find_numbered(&pairs, "encoder_module.encoders.", l, ".weight");
        double p = (double)find_numbered(&pairs, "encoder_module.encoders.", l, ".bias_param")[j];
        for (int c = 0; c < D; c++) p += (double)w[j * D + c] * (double)x[r * D + c];
        const double theta = exp((double)find(&pairs, "theta_manager.log_threshold")[l * F + j]);
        f[i] = p >= (jump ? theta : 0) ? p : 0;
    }
    for (int r = 0; r < ROWS; r++)
        for (int t = 0; t < L; t++) {
            const int at = (r * L + t) * D;
            const float *skip = find_numbered(&pairs, "decoder_module.skip_weights.", t, "");
            pairs_target(tied, f + r * L * F, t, y + at);
            for (int o = 0; o < D; o++)
                for (int c = 0; c < D; c++)
                    y[at + o] += (double)skip[o * D + c] * (double)x[at + c];
        }
}

TEST(decode_clt) {
    static double f[ROWS * L * F], y[ROWS * L * D];
    for (int tied = 0; tied < 3; tied++)
        for (int jump = 0; jump < 2; jump++) {
            pairs_write("pairs", tied, jump ? "jumprelu" : "relu", "");
            pairs_formula(tied, jump, f, y);
            compare(tmp_path("pairs"), f, y);
        }
}

/* Selections are in the formula: over all layers, or within each. */
TEST(decode_clt_selections) {
    dlrn_dictionary *dict = NULL;
    pairs_write("pairs_k", 0, "batchtopk", ", \"batchtopk_k\": 6");
    CHECK_OK(ctx, dlrn_load(ctx, tmp_path("pairs_k"), NULL, &dict));
    CHECK(dict->formula.select == DLRN_SELECT_BATCH_TOP_K && dict->formula.k == 6);
    CHECK(dict->formula.standardise && dict->part[1].dict->formula.gate == DLRN_GATE_LINEAR);
    CHECK_STR(dict->note, "depends on all rows");
    dlrn_dictionary_destroy(dict);
    pairs_write("pairs_k", 0, "topk", ", \"topk_mode\": \"per_layer\"");
    CHECK_STATUS(load(tmp_path("pairs_k"), NULL), DLRN_ERR_VALUE);
    CHECK_STR(dlrn_error(ctx), "--k N");
    CHECK_OK(ctx, dlrn_load(ctx, tmp_path("pairs_k"), &(dlrn_load_options){NULL, 4, 0, 0, DLRN_OFF},
                            &dict));
    CHECK(dict->formula.select == DLRN_SELECT_ALL);
    CHECK(dict->part[1].dict->formula.select == DLRN_SELECT_TOP_K);
    CHECK(dict->part[1].dict->formula.k == 4 && dict->part[1].dict->formula.standardise);
    dlrn_dictionary_destroy(dict);
}

TEST(a_wrong_decode_clt_file) {
    pairs_write("pairs_bad", 0, "relu", ", \"normalization_method\": \"mean_std\"");
    refused(tmp_path("pairs_bad"), DLRN_ERR_UNSUPPORTED, "normalization_method: expected none");
    pairs_write("pairs_bad", 0, "gelu", "");
    refused(tmp_path("pairs_bad"), DLRN_ERR_UNSUPPORTED, "activation_fn: expected relu");
    pairs_write("pairs_bad", 0, "topk", ", \"topk_mode\": \"some\"");
    refused(tmp_path("pairs_bad"), DLRN_ERR_UNSUPPORTED, "topk_mode");
    pairs_write("pairs_bad", 0, "relu", "");
    write_text("pairs_bad", "cfg.json",
               "{\"activation_fn\": \"relu\", \"decoder_tying\": \"per_source\"}");
    refused(tmp_path("pairs_bad"), DLRN_ERR_SHAPE, "decoder_module.decoders.0.weight");
    write_text("pairs_bad", "cfg.json", "{\"activation_fn\": \"relu\", \"num_layers\": 4}");
    refused(tmp_path("pairs_bad"), DLRN_ERR_SHAPE, "num_layers: expected 3");
    CHECK(remove(in_folder("pairs_bad", "cfg.json")) == 0);
    refused(tmp_path("pairs_bad"), DLRN_ERR_UNSUPPORTED, "cfg.json");
}

/* ---- The crosscoder fork's decoupled thresholds ---- */

static tensors fork_;

static void fork_write(const char *folder, float mean, int id) {
    drop(&fork_);
    tensors *t = &fork_;
    add(t, "encoder.weight", 1, L, D, F);
    add(t, "encoder.bias", 1, F, 0, 0);
    add(t, "decoder.weight", 1, L, F, D);
    add(t, "decoder.bias", 1, L, D, 0);
    float *threshold = add(t, "threshold", 1, L, 0, 0);
    for (int l = 0; l < L; l++) threshold[l] = 1;
    float *m = add(t, "activation_mean", 1, L, D, 0), *s = add(t, "activation_std", 1, L, D, 0);
    for (int i = 0; i < L * D; i++) m[i] = mean, s[i] = 0.5f;
    add(t, "target_rms", 1, 1, 0, 0)[0] = 2;
    t->t[t->n - 1].ndim = 0;
    add(t, "code_normalization_id", 1, 1, 0, 0)[0] = (float)id;
    t->t[t->n - 1].ndim = 0;
    write_tensors(t, folder, "model.safetensors");
    write_text(folder, "config.json", "{\"code_normalization\": \"DECOUPLED\"}");
}

/* x~ = (x - mean) rms / sqrt(sum of std^2 of the layer + 1e-8), or x; one gate for each layer. */
static void fork_formula(double mean, double *f, double *y) {
    static float x[ROWS * L * D];
    const double scale = mean == mean ? 2 / sqrt(D * 0.25 + 1e-8) : 1;
    const float *w = find(&fork_, "encoder.weight"), *atoms = find(&fork_, "decoder.weight");
    if (mean != mean) mean = 0;
    make_rows(x);
    for (int i = 0; i < ROWS * L * F; i++) {
        const int r = i / (L * F), l = i / F % L, j = i % F;
        double p = (double)find(&fork_, "encoder.bias")[j], norm = 0;
        for (int c = 0; c < L * D; c++)
            p += ((double)x[r * L * D + c] - mean) * scale * (double)w[c * F + j];
        for (int c = 0; c < D; c++) norm += pow((double)atoms[(l * F + j) * D + c], 2);
        f[i] = p > 0 && p * sqrt(norm) > 1 ? p : 0;
    }
    for (int i = 0; i < ROWS * L * D; i++) {
        const int r = i / (L * D), l = i / D % L, c = i % D;
        y[i] = (double)find(&fork_, "decoder.bias")[l * D + c];
        for (int j = 0; j < F; j++)
            y[i] += f[(r * L + l) * F + j] * (double)atoms[(l * F + j) * D + c];
        y[i] = y[i] / scale + mean;
    }
}

TEST(decoupled_crosscoders) {
    static double f[ROWS * L * F], y[ROWS * L * D];
    dlrn_dictionary *dict = NULL;
    for (int i = 0; i < 2; i++) {
        fork_write("fork", i ? 0.25f : NAN, 5);
        fork_formula(i ? 0.25 : NAN, f, y);
        compare(tmp_path("fork"), f, y);
    }
    CHECK_OK(ctx, dlrn_load(ctx, tmp_path("fork"), NULL, &dict));
    /* the encoder is one for all */
    CHECK(dict->part[1].dict->param[DLRN_ENCODER] == dict->part[0].dict->param[DLRN_ENCODER]);
    dlrn_dictionary_destroy(dict);
    fork_write("fork", INFINITY, 5);
    refused(tmp_path("fork"), DLRN_ERR_VALUE, "activation_mean");
    fork_write("fork", NAN, 2);
    refused(tmp_path("fork"), DLRN_ERR_UNSUPPORTED, "expected 5 (DECOUPLED)");
}

/* ---- Without memory ---- */

static const char *starved_path;

static dlrn_status load_once(void) {
    return load(starved_path, NULL);
}

TEST(every_allocation_may_fail) {
    static const char *const folders[] = {"ct_all", "gs2_all", "lc_all", "pairs_all", "fork_all"};
    dlrn_context *own = ctx;
    tracer_make(1);
    tracer_write("ct_all");
    llama_write("lc_all", 0, "topk", "dataset-wise");
    pairs_write("pairs_all", 1, "jumprelu", "");
    for (int i = 0; i < L; i++) gemma_write("gs2_all", i, L, 0);
    fork_write("fork_all", 0.25f, 5);
    ctx = starve_context(2);
    for (int i = 0; i < 5; i++) {
        starved_path = tmp_path(folders[i]);
        starve_all(folders[i], ctx, load_once);
    }
    dlrn_context_destroy(ctx);
    ctx = own;
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    CHECK_STATUS(dlrn_context_create(NULL, &ctx), DLRN_OK);
    RUN(circuit_tracer);
    RUN(a_scale_that_the_caller_states);
    RUN(one_layer_alone);
    RUN(a_wrong_circuit_tracer_folder);
    RUN(gemma_scope_2);
    RUN(llamascopium);
    RUN(a_wrong_llamascopium_file);
    RUN(decode_clt);
    RUN(decode_clt_selections);
    RUN(a_wrong_decode_clt_file);
    RUN(decoupled_crosscoders);
    RUN(every_allocation_may_fail);
    dlrn_context_destroy(ctx);
    drop(&llama), drop(&pairs), drop(&fork_);
    for (int i = 0; i < L; i++) drop(&clt[i][0]), drop(&clt[i][1]);
    return TEST_END();
}
