/* Formulas: each gate, selection, normalisation and encoder against a plain statement, feature by
   feature; many rows, few, one; all kernel sets, threads and ways to ask give the same bits. */
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "test.h"

enum { N = 77, D = 24, F = 132, K = 6 };

/* ---- A dictionary with every parameter that a gate may read */

/* Small multiples of 1/2: sums are exact in f32, and ties and zeros abound. */
static float half(dlrn_rng *rng) {
    return 0.5f * (float)((int)dlrn_rng_below(rng, 5) - 2);
}

static float *fill(dlrn_rng *rng, int exact, int64_t n) {
    static float to[F * D];
    for (int64_t i = 0; i < n; i++) to[i] = exact ? half(rng) : dlrn_rng_normal(rng);
    return to;
}

/* The parameters are those of `exact`, the same in every context. */
static dlrn_dictionary *dictionary(dlrn_context *ctx, const char *family, int exact) {
    static const int roles[] = {DLRN_THRESHOLD, DLRN_LOG_SCALE, DLRN_VALUE_BIAS, DLRN_GATE_BIAS};
    dlrn_dictionary_desc desc = {family, D, 0, F, K, 1, 0};
    dlrn_dictionary *dict = NULL;
    dlrn_rng rng = {9, (uint64_t)exact, 0};
    CHECK_OK(ctx, dlrn_dictionary_create(ctx, &desc, &dict));
    for (int i = 0; i < 4; i++)
        if (!dict->param[roles[i]]) CHECK_OK(ctx, dlrni_param_alloc(dict, roles[i]));
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        int64_t n = dlrni_role_size(dict, role);
        const float *from = fill(&rng, exact, n); /* also for roles that are absent */
        if (dict->param[role]) memcpy(dict->param[role], from, (size_t)n * sizeof *from);
    }
    for (int i = 0; i < F; i++) dict->param[DLRN_LOG_SCALE][i] *= 0.5f;
    /* fewer than k are positive in some rows */
    for (int i = 0; i < F && exact == 2 && dict->param[DLRN_ENCODER_BIAS]; i++)
        dict->param[DLRN_ENCODER_BIAS][i] -= 5;
    dlrn_dictionary_changed(dict);
    return dict;
}

static void fill_rows(float *x, int64_t n, int exact) {
    dlrn_rng rng = {4, (uint64_t)exact, 0};
    for (int64_t i = 0; i < n * D; i++) x[i] = exact ? half(&rng) : dlrn_rng_normal(&rng);
    memset(x + 3 * D, 0, D * sizeof *x);
}

/* Without the parameter: the array is freed. */
static void without(dlrn_dictionary *dict, int role) {
    dlrn_free(dict->ctx, dict->param[role]);
    dict->param[role] = NULL;
}

/* ---- The plain statement: from pre-activations p [n][F] to f [n][F] */

static float gate_of(const dlrn_dictionary *dict, int64_t j, float p) {
    float t = dict->param[DLRN_THRESHOLD] ? dict->param[DLRN_THRESHOLD][j]
                                          : (float)dict->formula.threshold;
    float e = dict->param[DLRN_LOG_SCALE] ? (float)exp((double)dict->param[DLRN_LOG_SCALE][j]) : 1;
    double v;
    switch (dict->formula.gate) {
    case DLRN_GATE_RELU: return p > 0 ? p : 0;
    case DLRN_GATE_JUMP: return p > (t > 0 ? t : 0) ? p : 0;
    case DLRN_GATE_JUMP_SIGNED: return p > t ? p : 0;
    case DLRN_GATE_GATED:
        v = (double)e * ((double)p - (double)dict->param[DLRN_ENCODER_BIAS][j]) +
            (double)dict->param[DLRN_VALUE_BIAS][j];
        return p > 0 && v > 0 ? (float)v : 0;
    default: return p;
    }
}

/* Keeps the m features of g [all] that rank first; among equals the first. */
static void keep_best(float *g, const float *rank, int64_t all, int64_t m) {
    static char stays[N * F];
    memset(stays, 0, (size_t)all);
    for (int64_t round = 0; round < m && round < all; round++) {
        int64_t best = -1;
        for (int64_t i = 0; i < all; i++)
            if (!stays[i] && (best < 0 || rank[i] > rank[best])) best = i;
        stays[best] = 1;
    }
    for (int64_t i = 0; i < all; i++)
        if (!stays[i]) g[i] = 0;
}

static void ranks_of(const dlrn_dictionary *dict, const float *g, int64_t n, float *rank) {
    for (int64_t j = 0; j < F; j++) {
        double mean = 0, square = 0;
        for (int64_t i = 0; i < n; i++) mean += (double)g[i * F + j] / (double)n;
        for (int64_t i = 0; i < n; i++) square += pow((double)g[i * F + j] - mean, 2);
        for (int64_t i = 0; i < n; i++) {
            float r = g[i * F + j];
            if (dict->formula.standardise && n > 1)
                r = (float)(((double)r - mean) / (sqrt(square / (double)(n - 1)) + 1e-6));
            rank[i * F + j] = dict->formula.select == DLRN_SELECT_ABS_TOP_K ? fabsf(r) : r;
        }
    }
}

static void state(const dlrn_dictionary *dict, const float *p, int64_t n, float *f) {
    static float rank[N * F];
    const dlrn_formula *m = &dict->formula;
    for (int64_t i = 0; i < n * F; i++) f[i] = gate_of(dict, i % F, p[i]);
    ranks_of(dict, f, n, rank);
    if (m->select == DLRN_SELECT_BATCH_TOP_K) keep_best(f, rank, n * F, m->k * n);
    for (int64_t i = 0; i < n; i++) {
        float *row = f + i * F, *r = rank + i * F;
        if (m->select == DLRN_SELECT_TOP_K || m->select == DLRN_SELECT_ABS_TOP_K)
            keep_best(row, r, F, m->k);
        for (int64_t g = 0; m->select == DLRN_SELECT_GROUP_MAX && g < m->k; g++) {
            const int64_t width = F / m->k;
            for (int64_t j = 0; j < width; j++)
                if (row[g * width + j] < 0) row[g * width + j] = r[g * width + j] = 0;
            keep_best(row + g * width, r + g * width, width, 1);
        }
    }
    for (int64_t i = 0; i < n * F && m->gate != DLRN_GATE_GATED && dict->param[DLRN_LOG_SCALE]; i++)
        f[i] *= (float)exp((double)dict->param[DLRN_LOG_SCALE][i % F]);
}

/* ---- Every way to ask */

static void check_codes(const dlrn_sparse *codes, const float *f, int64_t n, const char *what) {
    CHECK(codes->rows == n && codes->cols == F);
    for (int64_t i = 0; i < n; i++) {
        int64_t p = codes->row_ptr[i];
        for (int64_t j = 0; j < F; j++) {
            if (!(f[i * F + j] != 0)) continue;
            CHECK_MSG(p < codes->row_ptr[i + 1] && codes->col[p] == j &&
                          codes->val[p] == f[i * F + j],
                      "%s: codes: row %d, feature %d: expected %.9g", what, (int)i, (int)j,
                      (double)f[i * F + j]);
            p++;
        }
        CHECK_MSG(p == codes->row_ptr[i + 1], "%s: row %d: too many codes", what, (int)i);
    }
}

static void check_same(const float *got, const float *want, int64_t n, const char *what) {
    for (int64_t i = 0; i < n * F; i++)
        CHECK_MSG(got[i] == want[i], "%s: row %d, feature %d: expected %.9g, found %.9g", what,
                  (int)(i / F), (int)(i % F), (double)want[i], (double)got[i]);
}

/* rows_are_free: a row's result does not depend on the other rows of its call. */
static void ask_all_ways(const dlrn_dictionary *dict, const float *x, const float *want, int64_t n,
                         int rows_are_free, const char *what) {
    static float f[N * F], x_hat[N * D], again[N * D];
    dlrn_context *ctx = dict->ctx;
    dlrn_sparse codes = {0};
    dlrn_encoder *e = NULL;
    CHECK_OK(ctx, dlrn_encoder_create(dict, &e));
    for (int time = 0; time < 3; time++) { /* what is learned, and panels, change no bit */
        if (time == 2) CHECK_OK(ctx, dlrn_encoder_prepare(e));
        CHECK_OK(ctx, dlrn_encoder_run(e, x, n, f, NULL, NULL));
        check_same(f, want, n, what);
        CHECK_OK(ctx, dlrn_encoder_run(e, x, n, time == 1 ? f : NULL, &codes, x_hat));
        check_codes(&codes, want, n, what);
        if (time == 1) check_same(f, want, n, what);
        for (int64_t i = 0; i < n && rows_are_free && time != 1; i += 7) {
            const int64_t few = n - i < 7 ? n - i : 7;
            CHECK_OK(ctx, dlrn_encoder_run(e, x + i * D, few, f, &codes, again + i * D));
            check_same(f, want + i * F, few, what);
            check_codes(&codes, want + i * F, few, what);
        }
        if (rows_are_free && time != 1)
            CHECK(!memcmp(x_hat, again, (size_t)(n * D) * sizeof *x_hat));
        CHECK_OK(ctx, dlrn_encoder_run(e, x, n, NULL, NULL, again));
        CHECK(!memcmp(x_hat, again, (size_t)(n * D) * sizeof *x_hat));
    }
    for (int64_t i = 0; i < n && rows_are_free; i += 3) {
        CHECK_OK(ctx, dlrn_encoder_run(e, x + i * D, 1, f, &codes, NULL));
        check_same(f, want + i * F, 1, what);
        check_codes(&codes, want + i * F, 1, what);
    }
    dlrn_sparse_free(&codes);
    dlrn_encoder_destroy(e);
}

/* How a dictionary is changed for a test, by number. */
static void set_formula(dlrn_dictionary *dict, int number) {
    static const dlrn_gate gates[] = {DLRN_GATE_RELU,       DLRN_GATE_JUMP,   DLRN_GATE_JUMP_SIGNED,
                                      DLRN_GATE_GATED,      DLRN_GATE_LINEAR, DLRN_GATE_JUMP,
                                      DLRN_GATE_JUMP_SIGNED};
    static const dlrn_select selects[] = {DLRN_SELECT_ALL, DLRN_SELECT_TOP_K, DLRN_SELECT_ABS_TOP_K,
                                          DLRN_SELECT_GROUP_MAX, DLRN_SELECT_BATCH_TOP_K};
    const int gate = number % 7, select = number / 7 % 5, scale = number / 35 % 2;
    dict->formula.gate = gates[gate];
    dict->formula.select = selects[select];
    dict->formula.k = K;
    dict->formula.threshold = gate == 5 ? 0.5 : -0.75;
    dict->formula.standardise = number >= 70 ? DLRN_ON : DLRN_OFF;
    if (gate >= 5) without(dict, DLRN_THRESHOLD);
    if (!scale) without(dict, DLRN_LOG_SCALE);
    dlrn_dictionary_changed(dict);
}

/* exact: 1: with ties; 2: and few positive. every_set: 0: only the scalar one, and another by the
   number. */
static void compare_formula(int number, int exact, int64_t n, int every_set) {
    static float x[N * D], p[N * F], want[N * F];
    char what[160];
    fill_rows(x, n, exact);
    for (int set = 0; test_kernels(set); set++) {
        const int threads = 1 + (set + number) % 2;
        if (!every_set && set && set != 1 + number % 4) continue;
        dlrn_context *ctx = test_context(test_kernels(set), threads);
        dlrn_dictionary *dict = dictionary(ctx, "AutoEncoder", exact), *linear;
        set_formula(dict, number);
        if (set == 0) {
            CHECK_OK(ctx, dlrni_dictionary_copy(ctx, dict, &linear));
            linear->formula.gate = DLRN_GATE_LINEAR;
            linear->formula.select = DLRN_SELECT_ALL;
            without(linear, DLRN_LOG_SCALE);
            CHECK_OK(ctx, dlrn_encode(linear, x, n, p));
            dlrn_dictionary_destroy(linear);
            state(dict, p, n, want);
        }
        snprintf(what, sizeof what, "gate %s, select %s%s%s%s, %s, %d rows, %s, %d threads",
                 dlrn_name(DLRN_NAMES_GATE, (int)dict->formula.gate),
                 dlrn_name(DLRN_NAMES_SELECT, (int)dict->formula.select),
                 dict->formula.standardise ? ", standardised" : "",
                 dict->param[DLRN_LOG_SCALE] ? ", scaled" : "",
                 dict->param[DLRN_THRESHOLD] ? "" : ", one threshold",
                 exact == 2 ? "few positive"
                 : exact    ? "ties"
                            : "no ties",
                 (int)n, test_kernels(set), threads);
        ask_all_ways(dict, x, want, n,
                     dict->formula.select != DLRN_SELECT_BATCH_TOP_K && !dict->formula.standardise,
                     what);
        dlrn_dictionary_destroy(dict);
        dlrn_context_destroy(ctx);
    }
}

TEST(gates_and_selections) {
    /* in brief every ninth: each gate and each selection comes up */
    for (int number = 0; number < 70; number += test_brief() ? 9 : 1) {
        compare_formula(number, 1, N, !test_brief());
        compare_formula(number, 0, 40, 0);
        compare_formula(number, 2, 20, 0);
    }
}

/* A selection over the rows of the call: the k n largest of all, or the k of a row by what is usual
   for a feature. */
TEST(standardised_ranks) {
    for (int gate = 0; gate < 7; gate++)
        for (int select = 1; select < 5; select++) {
            if (select == 3) continue; /* groups: refused */
            compare_formula(70 + 7 * select + gate, 0, 40, 0);
            compare_formula(70 + 7 * select + gate, 0, 1, 0);
        }
}

/* Pre-activations of the statement are the library's own: they are checked here, in double, with
   what comes before and after them. */
TEST(rows_are_normalised) {
    enum { O = 12 };
    static float x[N * D], f[N * F], x_hat[N * O], again[N * O];
    dlrn_context *ctx = test_context("auto", 2);
    for (int way = 0; way < 16; way++) {
        const int layer = way % 2, layers = way / 2 % 2 ? 3 : 1, skips = way / 4 % 2;
        dlrn_dictionary_desc desc = {"AutoEncoder", D, O, F, 0, 1, 0};
        dlrn_dictionary *dict = NULL;
        dlrn_rng rng = {3, (uint64_t)way, 0};
        double z[D];
        CHECK_OK(ctx, dlrn_dictionary_create(ctx, &desc, &dict));
        dict->formula.normalise = layer ? DLRN_NORMALISE_LAYER : DLRN_NORMALISE_NORM;
        dict->layers = layers;
        dict->skip_rows = 7;
        CHECK_OK(ctx, dlrni_param_alloc(dict, DLRN_INPUT_BIAS));
        if (skips) CHECK_OK(ctx, dlrni_param_alloc(dict, DLRN_SKIP));
        for (int role = 0; role < DLRN_ROLE_COUNT; role++)
            for (int64_t i = 0; dict->param[role] && i < dlrni_role_size(dict, role); i++)
                dict->param[role][i] = dlrn_rng_normal(&rng);
        dict->formula.center = DLRN_CENTER_INPUT_BIAS;
        dict->formula.scale_in = way / 8 ? 1.5 : 1;
        dict->formula.scale_out = way / 8 ? 0.75 : 1;
        for (int i = 0; i < N * D; i++) x[i] = 2 + 3 * dlrn_rng_normal(&rng);
        memset(x + 2 * D, 0, D * sizeof *x);
        dlrn_encoder *e = NULL;
        CHECK_OK(ctx, dlrn_encoder_create(dict, &e));
        CHECK_OK(ctx, dlrn_encoder_run(e, x, N, f, NULL, x_hat));
        for (int i = 0; i < N; i++) {
            double mean[3] = {0}, in[3], out[3], want[O];
            for (int l = 0; l < layers; l++) {
                const int w = D / layers;
                const float *row = x + i * D + l * w;
                double square = 0, spread = 0;
                for (int c = 0; c < w; c++) square += pow((double)row[c], 2);
                for (int c = 0; c < w && layer; c++) mean[l] += (double)row[c] / w;
                for (int c = 0; c < w; c++) spread += pow((double)row[c] - mean[l], 2);
                in[l] = layer        ? 1 / (sqrt(spread / (w - 1)) + 1e-5)
                        : square > 0 ? sqrt(w / square)
                                     : 1;
                out[l] = layer ? sqrt(spread / (w - 1)) : 1 / in[l];
                for (int c = 0; c < w; c++)
                    z[l * w + c] = dict->formula.scale_in * in[l] * ((double)row[c] - mean[l]);
            }
            for (int o = 0; o < O; o++) want[o] = (double)dict->param[DLRN_OUTPUT_BIAS][o];
            for (int j = 0; j < F; j++) {
                double pre = (double)dict->param[DLRN_ENCODER_BIAS][j];
                for (int c = 0; c < D; c++)
                    pre += (double)dict->param[DLRN_ENCODER][j * D + c] *
                           (z[c] - (double)dict->param[DLRN_INPUT_BIAS][c]);
                CHECK(fabs((double)f[i * F + j] - fmax(pre, 0)) < 1e-4);
                for (int o = 0; o < O; o++)
                    want[o] += fmax(pre, 0) * (double)dict->param[DLRN_DECODER][j * O + o];
            }
            for (int o = 0; o < 7 && skips; o++)
                for (int c = 0; c < D; c++)
                    want[o] += (double)dict->param[DLRN_SKIP][o * D + c] * z[c];
            for (int o = 0; o < O; o++) {
                const int l = o / (O / layers);
                double is = dict->formula.scale_out * want[o] * out[l] + mean[l];
                CHECK_MSG(fabs((double)x_hat[i * O + o] - is) < 1e-3, "way %d: %g, %g", way, is,
                          (double)x_hat[i * O + o]);
            }
        }
        for (int i = 0; i < N; i++) /* row by row: the same bits */
            CHECK_OK(ctx, dlrn_encoder_run(e, x + i * D, 1, NULL, NULL, again + i * O));
        CHECK(!memcmp(x_hat, again, sizeof x_hat));
        CHECK_STATUS(dlrn_decode(dict, f, N, x_hat), DLRN_ERR_UNSUPPORTED);
        CHECK_STR(dlrn_error(ctx), skips ? "a linear map of x" : "normalises x");
        dlrn_encoder_destroy(e);
        dlrn_dictionary_destroy(dict);
    }
    dlrn_context_destroy(ctx);
}

/* ---- Encoders of their own */

static double sigmoid(double x) {
    return 1 / (1 + exp(-x));
}

static double product(const float *a, const float *b) {
    double sum = 0;
    for (int c = 0; c < D; c++) sum += (double)a[c] * (double)b[c];
    return sum;
}

/* f [F] of a row z - center, in double, before the selection. */
static void own_statement(const dlrn_dictionary *dict, const float *xc, double *f) {
    float *const *w = dict->param;
    double norm = sqrt(product(xc, xc));
    for (int j = 0; j < F; j++) {
        if (!strcmp(dict->family, "Glu"))
            f[j] =
                (product(w[DLRN_ENCODER] + j * D, xc) + (double)w[DLRN_ENCODER_BIAS][j]) *
                sigmoid(product(w[DLRN_GATE_ENCODER] + j * D, xc) + (double)w[DLRN_GATE_BIAS][j]);
        else if (!strcmp(dict->family, "Cosine")) {
            const float *row = w[DLRN_ENCODER] + j * D;
            double cosine = norm > 0 ? product(row, xc) / norm / sqrt(product(row, row)) : 0;
            f[j] = cosine * pow(norm, sigmoid((double)w[DLRN_GATE_BIAS][j])) +
                   (double)w[DLRN_ENCODER_BIAS][j];
        } else
            f[j] = product(w[DLRN_GATE_ENCODER] + j * D, xc) + (double)w[DLRN_GATE_BIAS][j];
    }
}

/* The k largest of f, others 0; for GatedTopK their values. */
static void own_select(const dlrn_dictionary *dict, const float *xc, double *f) {
    double all[F];
    memcpy(all, f, sizeof all);
    for (int j = 0; j < F; j++) {
        int before = 0;
        for (int i = 0; i < F; i++) before += all[i] > all[j] || (!(all[i] < all[j]) && i < j);
        if (dict->formula.select == DLRN_SELECT_TOP_K && before >= dict->formula.k)
            f[j] = 0;
        else if (!strcmp(dict->family, "GatedTopK"))
            f[j] = fmax(0, product(dict->param[DLRN_ENCODER] + j * D, xc) * sigmoid(all[j]));
        else
            f[j] = fmax(0, f[j]);
    }
}

/* Rows of a family with its own encoder: against the statement; all ways the same bits. */
static void check_own(const char *family,
                      void (*statement)(const dlrn_dictionary *, const float *, double *)) {
    static float x[N * D], xc[N * D], want[N * F];
    fill_rows(x, N, 0);
    for (int set = 0; test_kernels(set); set++)
        for (int threads = 1; threads <= 2; threads++) {
            dlrn_context *ctx = test_context(test_kernels(set), threads);
            dlrn_dictionary *dict = dictionary(ctx, family, 0);
            without(dict, DLRN_LOG_SCALE);
            if (!strcmp(family, "MatchingPursuit")) {
                for (int j = 0; j < F; j++) {
                    float *atom = dict->param[DLRN_DECODER] + j * D;
                    float norm = (float)sqrt(product(atom, atom));
                    for (int c = 0; c < D; c++) atom[c] /= norm;
                }
                dict->formula.k = 9;
                dict->formula.threshold = 1;
            }
            if (set == 0 && threads == 1) {
                CHECK_OK(ctx, dlrn_encode(dict, x, N, want));
                dlrni_input(dict, x, N, xc);
                for (int i = 0; i < N; i++) {
                    double f[F];
                    statement(dict, xc + i * D, f);
                    if (statement == own_statement) own_select(dict, xc + i * D, f);
                    for (int j = 0; j < F; j++)
                        CHECK_MSG(fabs(f[j] - (double)want[i * F + j]) < 1e-4,
                                  "%s: row %d, feature %d: expected %g, found %g", family, i, j,
                                  f[j], (double)want[i * F + j]);
                }
            }
            ask_all_ways(dict, x, want, N, 1, family);
            dlrn_dictionary_destroy(dict);
            dlrn_context_destroy(ctx);
        }
}

static void pursue(const dlrn_dictionary *dict, const float *xc, double *f) {
    float r[D];
    memcpy(r, xc, sizeof r);
    memset(f, 0, F * sizeof *f);
    for (int step = 0; step < dict->formula.k; step++) {
        int best = 0;
        for (int j = 1; j < F; j++)
            if (product(dict->param[DLRN_DECODER] + j * D, r) >
                product(dict->param[DLRN_DECODER] + best * D, r))
                best = j;
        double v = product(dict->param[DLRN_DECODER] + best * D, r);
        int again = f[best] > 0;
        if (!(v > 0)) return;
        f[best] += v;
        for (int c = 0; c < D; c++) r[c] -= (float)v * dict->param[DLRN_DECODER][best * D + c];
        if (again || sqrt(product(r, r)) < dict->formula.threshold) return;
    }
}

TEST(encoders_of_their_own) {
    check_own("Glu", own_statement);
    check_own("Cosine", own_statement);
    check_own("GatedTopK", own_statement);
    check_own("MatchingPursuit", pursue);
}

/* ---- Temporal: the rows of a call are one sequence */

enum { HEADS = 2, WIDTH = 3, QUERIES = HEADS * WIDTH };

static dlrn_dictionary *temporal(dlrn_context *ctx) {
    dlrn_dictionary *dict = NULL;
    dlrn_rng rng = {5, 0, 0};
    const dlrni_family *family = dlrni_family_named("Temporal");
    CHECK_OK(ctx, dlrni_dictionary_new(ctx, family, D, D, F, &dict));
    dict->heads = HEADS;
    dict->head_width = WIDTH;
    dict->formula.k = K;
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        if (!(family->roles >> role & 1)) continue;
        CHECK_OK(ctx, dlrni_param_alloc(dict, role));
        for (int64_t i = 0; i < dlrni_role_size(dict, role); i++)
            dict->param[role][i] = 0.3f * dlrn_rng_normal(&rng);
    }
    dict->formula.scale_in = 0.5;
    dict->formula.scale_out = 2;
    return dict;
}

/* out [rows] = weights [rows][width] in [width] + bias, max(., 0) if positive. */
static void affine(const float *weights, const float *bias, const double *in, int rows, int width,
                   int positive, double *out) {
    for (int r = 0; r < rows; r++) {
        out[r] = bias ? (double)bias[r] : 0;
        for (int c = 0; c < width; c++) out[r] += (double)weights[r * width + c] * in[c];
        if (positive) out[r] = fmax(out[r], 0);
    }
}

/* The context of row i from its queries, and keys and values of the rows before it, as SAELens
   says it: keys and values are shifted by one row, with zeros first. */
static void attend(const double *query, double key[][QUERIES], double value[][F], int i,
                   double *context) {
    for (int h = 0; h < HEADS; h++) {
        double weight[N], sum = 0;
        for (int j = 0; j <= i; j++) {
            double score = 0;
            for (int c = h * WIDTH; c < (h + 1) * WIDTH && j; c++)
                score += query[c] * key[j - 1][c];
            sum += weight[j] = exp(score / sqrt((double)WIDTH));
        }
        for (int c = h * F / HEADS; c < (h + 1) * F / HEADS; c++) {
            context[c] = 0;
            for (int j = 1; j <= i; j++) context[c] += weight[j] / sum * value[j - 1][c];
        }
    }
}

/* f [N][F] before the selection, and what is predicted [N][D], in double. */
static void foresee(const dlrn_dictionary *dict, const float *xc, double *f, double *predicted) {
    static double key[N][QUERIES], value[N][F];
    float *const *w = dict->param;
    for (int i = 0; i < N; i++) {
        double x[D], a[F], query[QUERIES], context[F], g[F], size = 0, along = 0;
        double *y = predicted + i * D;
        for (int c = 0; c < D; c++) x[c] = (double)xc[i * D + c];
        affine(w[DLRN_ENCODER], NULL, x, F, D, 1, a);
        affine(w[DLRN_ATTENTION_QUERY], w[DLRN_ATTENTION_QUERY_BIAS], a, QUERIES, F, 0, query);
        affine(w[DLRN_ATTENTION_KEY], NULL, a, QUERIES, F, 0, key[i]);
        affine(w[DLRN_ATTENTION_VALUE], NULL, a, F, F, 0, value[i]);
        attend(query, key, value, i, context);
        affine(w[DLRN_ATTENTION_OUT], w[DLRN_ATTENTION_OUT_BIAS], context, F, F, 1, g);
        for (int c = 0; c < D; c++) {
            y[c] = 0;
            for (int j = 0; j < F; j++) y[c] += g[j] * (double)w[DLRN_DECODER][j * D + c];
            size += y[c] * y[c];
            along += y[c] * x[c];
        }
        size = sqrt(size) + 1e-6;
        for (int c = 0; c < D; c++) x[c] -= y[c] *= along / (size * size);
        affine(w[DLRN_ENCODER], NULL, x, F, D, 1, f + i * F);
    }
}

/* f and x_hat of N rows against the statement. */
static void check_sequence(const dlrn_dictionary *dict, const float *x, const float *got,
                           const float *x_hat) {
    static float xc[N * D];
    static double f[N * F], predicted[N * D];
    dlrni_input(dict, x, N, xc);
    foresee(dict, xc, f, predicted);
    for (int i = 0; i < N; i++) {
        double y[D];
        own_select(dict, xc + i * D, f + i * F);
        for (int c = 0; c < D; c++)
            y[c] = predicted[i * D + c] + (double)dict->param[DLRN_OUTPUT_BIAS][c];
        for (int j = 0; j < F; j++) {
            CHECK_MSG(fabs(f[i * F + j] - (double)got[i * F + j]) < 1e-5,
                      "row %d, feature %d: expected %g, found %g", i, j, f[i * F + j],
                      (double)got[i * F + j]);
            for (int c = 0; c < D; c++)
                y[c] += f[i * F + j] * (double)dict->param[DLRN_DECODER][j * D + c];
        }
        for (int c = 0; c < D; c++)
            CHECK_MSG(fabs(2 * y[c] - (double)x_hat[i * D + c]) < 2e-5,
                      "row %d: x_hat[%d]: expected %g, found %g", i, c, 2 * y[c],
                      (double)x_hat[i * D + c]);
    }
}

TEST(rows_of_a_sequence) {
    static float x[N * D], want[N * F], x_hat[N * D], again[N * D];
    fill_rows(x, N, 0);
    for (int set = 0; test_kernels(set); set++)
        for (int threads = 1; threads <= 2; threads++) {
            dlrn_context *ctx = test_context(test_kernels(set), threads);
            dlrn_dictionary *dict = temporal(ctx), *copy = NULL;
            if (set == 0 && threads == 1) {
                CHECK_OK(ctx, dlrn_encode(dict, x, N, want));
                CHECK_OK(ctx, dlrn_forward(dict, x, N, x_hat, NULL));
                check_sequence(dict, x, want, x_hat);
            }
            ask_all_ways(dict, x, want, N, 0, "Temporal");
            /* later rows do not change earlier ones; a copy is the same */
            CHECK_OK(ctx, dlrni_dictionary_copy(ctx, dict, &copy));
            for (int n = 0; n <= N; n += 7) {
                CHECK_OK(ctx, dlrn_forward(copy, x, n, again, NULL));
                CHECK(!memcmp(x_hat, again, (size_t)(n * D) * sizeof *again));
            }
            dlrn_dictionary_destroy(copy);
            dlrn_dictionary_destroy(dict);
            dlrn_context_destroy(ctx);
        }
}

/* What needs rows apart, or x, or the whole dictionary, says so. */
TEST(what_a_sequence_refuses) {
    static float x[N * D], f[N * F];
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_dictionary *dict = temporal(ctx);
    dlrn_evaluator *e = NULL;
    dlrn_language_model lm = {0};
    dlrn_metrics metrics;
    fill_rows(x, N, 0);
    CHECK_OK(ctx, dlrn_encode(dict, x, N, f));
    CHECK_STATUS(dlrn_decode(dict, f, N, x), DLRN_ERR_UNSUPPORTED);
    CHECK_STR(dlrn_error(ctx), "predicts from earlier rows of x");
    CHECK_STATUS(dlrn_evaluator_create(dict, NULL, &e), DLRN_ERR_UNSUPPORTED);
    CHECK_STR(dlrn_error(ctx), "the rows of a document together");
    lm.sites = 1;
    const dlrn_dictionary *dicts[] = {dict};
    CHECK_STATUS(dlrn_loss_recovered(ctx, dicts, &lm, &metrics), DLRN_ERR_UNSUPPORTED);
    CHECK_STR(dlrn_error(ctx), "the rows of a document together");
    CHECK_STATUS(dlrn_save(dict, "build/tmp/temporal.pt"), DLRN_ERR_UNSUPPORTED);
    CHECK_STR(dlrn_error(ctx), "family Temporal has no layout that is written");
    dict->heads = 5;
    CHECK_STATUS(dlrn_encode(dict, x, N, f), DLRN_ERR_SHAPE);
    CHECK_STR(dlrn_error(ctx), "found 5 heads of 3");
    dict->heads = HEADS;
    without(dict, DLRN_ATTENTION_OUT_BIAS);
    CHECK_STATUS(dlrn_encode(dict, x, N, f), DLRN_ERR_SHAPE);
    dlrn_dictionary_destroy(dict);
    dlrn_context_destroy(ctx);
}

/* ---- Families, and what is refused */

TEST(every_family_can_be_created) {
    static float x[N * D], f[N * F], x_hat[N * D];
    dlrn_context *ctx = test_context("auto", 1);
    fill_rows(x, N, 0);
    for (int i = 0; i < DLRNI_FAMILIES; i++) {
        const dlrni_family *family = &dlrni_family_table[i];
        dlrn_dictionary_desc desc = {family->name, D, 0, F, family->formula.k ? K : 0, 1, 0};
        dlrn_dictionary *dict = NULL;
        const unsigned whole = 1u << DLRN_DECODER | 1u << DLRN_OUTPUT_BIAS;
        /* of several layers, but for cross-layer transcoders, or with attention */
        if ((family->roles && (family->roles & whole) != whole && !dlrni_has_parts(family)) ||
            family->roles >> DLRN_ATTENTION_QUERY & 1) {
            CHECK_STATUS(dlrn_dictionary_create(ctx, &desc, &dict), DLRN_ERR_UNSUPPORTED);
            continue;
        }
        CHECK_OK(ctx, dlrn_dictionary_create(ctx, &desc, &dict));
        for (int role = 0; role < DLRN_ROLE_COUNT; role++)
            CHECK(!dict->param[role] == !(family->roles >> role & 1));
        CHECK_OK(ctx, dlrn_encode(dict, x, N, f));
        CHECK_OK(ctx, dlrn_forward(dict, x, N, x_hat, NULL));
        dlrn_dictionary_destroy(dict);
    }
    dlrn_context_destroy(ctx);
}

TEST(what_cannot_be_is_refused) {
    static float x[N * D], f[N * F];
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_dictionary *dict = dictionary(ctx, "GroupMax", 0);
    dlrn_dictionary_desc desc = {"GroupMax", D, 0, F, 5, 1, 0};
    dlrn_dictionary *none = NULL;
    CHECK_STATUS(dlrn_dictionary_create(ctx, &desc, &none), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "k: expected a divisor of 132");
    dict->formula.k = 5;
    CHECK_STATUS(dlrn_encode(dict, x, N, f), DLRN_ERR_ARGUMENT);
    dict->formula.k = K;
    dict->formula.standardise = DLRN_ON;
    CHECK_STATUS(dlrn_encode(dict, x, N, f), DLRN_ERR_UNSUPPORTED);
    CHECK_STR(dlrn_error(ctx), "standardise");
    dict->formula.standardise = DLRN_OFF;
    dict->formula.select = DLRN_SELECT_BATCH_TOP_K;
    dict->formula.k = 0;
    CHECK_STATUS(dlrn_encode(dict, x, N, f), DLRN_ERR_ARGUMENT);
    dict->formula.select = DLRN_SELECT_ALL;
    dict->formula.normalise = DLRN_NORMALISE_NORM;
    dict->layers = 5;
    CHECK_STATUS(dlrn_encode(dict, x, N, f), DLRN_ERR_SHAPE);
    CHECK_STR(dlrn_error(ctx), "layers: expected a divisor of d_in 24");
    dict->layers = 1;
    without(dict, DLRN_ENCODER);
    CHECK_STATUS(dlrn_encode(dict, x, N, f), DLRN_ERR_UNSUPPORTED);
    CHECK_STR(dlrn_error(ctx), "expected an encoder");
    dlrn_dictionary_destroy(dict);
    dlrn_context_destroy(ctx);
}

/* A trainer refuses a formula or a parameter that it has no gradient for. */
TEST(trainers_refuse_other_formulas) {
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = dlrn_train_defaults(NULL);
    cfg.d_in = D;
    cfg.features = F;
    for (int way = 0; way < 6; way++) {
        static const char *const found[] = {"normalised rows", "another gate", "another selection",
                                            "standardised",    "threshold",    "log_scale"};
        dlrn_dictionary *dict = NULL;
        dlrn_trainer *t = NULL;
        CHECK_OK(ctx, new_autoencoder(ctx, D, F, 1, &dict));
        if (way == 0) dict->formula.normalise = DLRN_NORMALISE_LAYER;
        if (way == 1) dict->formula.gate = DLRN_GATE_LINEAR;
        if (way == 2) dict->formula.select = DLRN_SELECT_TOP_K;
        if (way == 3) dict->formula.standardise = DLRN_ON;
        if (way == 4) CHECK_OK(ctx, dlrni_param_alloc(dict, DLRN_THRESHOLD));
        if (way == 5) CHECK_OK(ctx, dlrni_param_alloc(dict, DLRN_LOG_SCALE));
        CHECK_STATUS(dlrn_trainer_create(ctx, &cfg, dict, NULL, &t), DLRN_ERR_UNSUPPORTED);
        CHECK_STR(dlrn_error(ctx), found[way]);
        dlrn_dictionary_destroy(dict);
    }
    dlrn_context_destroy(ctx);
}

/* A NaN in a row shows in that row, through every gate and selection. */
TEST(a_nan_shows) {
    static float x[N * D], f[N * F];
    dlrn_context *ctx = test_context("auto", 1);
    fill_rows(x, N, 0);
    x[5 * D + 3] = NAN;
    for (int number = 0; number < 105; number++) {
        if (number >= 70 && number / 7 % 5 == 3) continue;
        for (int rows = 1; rows <= N; rows += N - 1) {
            dlrn_dictionary *dict = dictionary(ctx, "AutoEncoder", 0);
            int seen = 0;
            set_formula(dict, number);
            CHECK_OK(ctx, dlrn_encode(dict, rows == 1 ? x + 5 * D : x, rows, f));
            for (int j = 0; j < F; j++) seen += isnan(f[(rows == 1 ? 0 : 5) * F + j]);
            CHECK_MSG(seen > 0, "formula %d, %d rows", number, rows);
            dlrn_dictionary_destroy(dict);
        }
    }
    dlrn_context_destroy(ctx);
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    RUN(gates_and_selections);
    RUN(standardised_ranks);
    RUN(rows_are_normalised);
    RUN_LONG(encoders_of_their_own);
    RUN_LONG(rows_of_a_sequence);
    RUN(what_a_sequence_refuses);
    RUN(every_family_can_be_created);
    RUN(what_cannot_be_is_refused);
    RUN(trainers_refuse_other_formulas);
    RUN(a_nan_shows);
    return TEST_END();
}
