/* Dictionaries of several layers, made by hand: against plain loops in double precision, with ties,
   and the same bits for any number of threads and rows and any kernels. */
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "starve.h"
#include "test.h"

enum { L = 3, D = 20, OWN = 70, F = L * OWN, ROWS = 100, WIDTH = L * D };

/* What a cross-layer transcoder of the tests is like. */
typedef struct kind {
    dlrn_select part, whole;
    int64_t part_k, k;
    int skip, log_scale, jump, exact; /* exact: small integers, so that values are often equal */
    int standardise;
} kind;

static float numbers(dlrn_rng *rng, int exact) {
    return exact ? (float)((int)(5 * dlrn_rng_uniform(rng)) - 2) : dlrn_rng_normal(rng);
}

static void fill(dlrn_dictionary *dict, int role, dlrn_rng *rng, int exact) {
    if (!dict->param[role]) CHECK_OK(dict->ctx, dlrni_param_alloc(dict, role));
    for (int64_t i = 0; i < dlrni_role_size(dict, role); i++)
        dict->param[role][i] = numbers(rng, exact);
}

/* Part l reads layer l and writes to the layers from l on. */
static dlrn_dictionary *make_part(dlrn_context *ctx, const kind *what, int l, dlrn_rng *rng) {
    dlrn_dictionary *part = NULL;
    CHECK_OK(ctx, dlrni_span_alloc(ctx, dlrni_family_named("Layer"), D, (L - l) * D, OWN, &part));
    fill(part, DLRN_ENCODER, rng, what->exact);
    fill(part, DLRN_ENCODER_BIAS, rng, what->exact);
    fill(part, DLRN_DECODER, rng, what->exact);
    part->formula.select = what->part;
    part->formula.k = what->part_k;
    part->skip_rows = D;
    if (what->log_scale) fill(part, DLRN_LOG_SCALE, rng, 0);
    if (what->skip) fill(part, DLRN_SKIP, rng, what->exact);
    if (what->jump) {
        part->formula.gate = DLRN_GATE_JUMP;
        fill(part, DLRN_THRESHOLD, rng, what->exact);
    }
    if (what->standardise) part->formula.gate = DLRN_GATE_LINEAR;
    return part;
}

static dlrn_dictionary *make(dlrn_context *ctx, const kind *what) {
    dlrn_rng rng = {11, 0, 0};
    dlrn_dictionary *dict = NULL;
    const dlrni_family *family = dlrni_family_named("CrossLayerTranscoder");
    CHECK_OK(ctx, dlrni_span_alloc(ctx, family, WIDTH, WIDTH, F, &dict));
    CHECK_OK(ctx, dlrni_parts_alloc(dict, L));
    dict->layers = dict->feature_layers = L;
    fill(dict, DLRN_OUTPUT_BIAS, &rng, what->exact);
    dict->formula.select = what->whole;
    dict->formula.k = what->k;
    dict->formula.standardise = what->standardise ? DLRN_ON : DLRN_OFF;
    for (int l = 0; l < L; l++) {
        dict->part[l].in_at = dict->part[l].out_at = l * D;
        dict->part[l].feature_at = l * OWN;
        dict->part[l].dict = make_part(ctx, what, l, &rng);
    }
    return dict;
}

static void make_rows(float *x, int exact) {
    dlrn_rng rng = {5, 0, 0};
    for (int64_t i = 0; i < ROWS * WIDTH; i++) x[i] = numbers(&rng, exact);
}

/* ---- The same in plain loops ---- */

/* Keeps the k largest of v [n] by rank; the first of equal ones. */
static void keep_best(double *v, const double *rank, int64_t n, int64_t k, int positive) {
    if (k >= n) return;
    unsigned char *kept = (unsigned char *)calloc((size_t)n, 1);
    for (; k > 0; k--) {
        int64_t best = -1;
        for (int64_t i = 0; i < n; i++)
            if (!kept[i] && (!positive || v[i] != 0) && (best < 0 || rank[i] > rank[best]))
                best = i;
        if (best < 0) break;
        kept[best] = 1;
    }
    for (int64_t i = 0; i < n; i++)
        if (!kept[i]) v[i] = 0;
    free(kept);
}

static void reference_layer(const dlrn_dictionary *part, const float *x, double *f) {
    for (int64_t j = 0; j < OWN; j++) {
        double p = (double)part->param[DLRN_ENCODER_BIAS][j];
        const float *threshold = part->param[DLRN_THRESHOLD];
        for (int64_t c = 0; c < D; c++)
            p += (double)part->param[DLRN_ENCODER][j * D + c] * (double)x[c];
        const double floor = threshold ? fmax((double)threshold[j], 0) : 0;
        f[j] = part->formula.gate == DLRN_GATE_LINEAR || p > floor ? p : 0;
    }
    if (part->formula.select == DLRN_SELECT_TOP_K) keep_best(f, f, OWN, part->formula.k, 1);
}

/* (p - mean) / (std + 1e-6), by feature. */
static void standardise(const double *f, int64_t n, double *rank) {
    for (int64_t j = 0; j < F; j++) {
        double mean = 0, square = 0;
        for (int64_t i = 0; i < n; i++) mean += f[i * F + j] / (double)n;
        for (int64_t i = 0; i < n; i++) square += pow(f[i * F + j] - mean, 2);
        for (int64_t i = 0; i < n; i++)
            rank[i * F + j] = (f[i * F + j] - mean) / (sqrt(square / (double)(n - 1)) + 1e-6);
    }
}

/* The k n best of layer l. */
static void keep_of_layer(double *f, int64_t n, int l, int64_t k) {
    double *own = (double *)malloc((size_t)(n * OWN) * sizeof *own);
    for (int64_t i = 0; i < n * OWN; i++) own[i] = f[i / OWN * F + l * OWN + i % OWN];
    keep_best(own, own, n * OWN, k * n, 1);
    for (int64_t i = 0; i < n * OWN; i++) f[i / OWN * F + l * OWN + i % OWN] = own[i];
    free(own);
}

static void reference_encode(const dlrn_dictionary *dict, const float *x, int64_t n, double *f) {
    double *rank = (double *)malloc((size_t)(n * F) * sizeof *rank);
    const dlrn_formula *formula = &dict->formula;
    for (int64_t i = 0; i < n; i++)
        for (int l = 0; l < L; l++)
            reference_layer(dict->part[l].dict, x + i * WIDTH + l * D, f + i * F + l * OWN);
    for (int l = 0; l < L; l++)
        if (dict->part[l].dict->formula.select == DLRN_SELECT_BATCH_TOP_K)
            keep_of_layer(f, n, l, dict->part[l].dict->formula.k);
    memcpy(rank, f, (size_t)(n * F) * sizeof *rank);
    if (formula->standardise && n > 1) standardise(f, n, rank);
    for (int64_t i = 0; i < n && formula->select == DLRN_SELECT_TOP_K; i++)
        keep_best(f + i * F, rank + i * F, F, formula->k, !formula->standardise);
    if (formula->select == DLRN_SELECT_BATCH_TOP_K)
        keep_best(f, rank, n * F, formula->k * n, !formula->standardise);
    for (int64_t i = 0; i < n * F; i++) {
        const float *scale = dict->part[i % F / OWN].dict->param[DLRN_LOG_SCALE];
        if (scale) f[i] *= exp((double)scale[i % OWN]);
    }
    free(rank);
}

static void reference_decode(const dlrn_dictionary *dict, const float *x, const double *f,
                             double *x_hat) {
    for (int64_t o = 0; o < WIDTH; o++) x_hat[o] = (double)dict->param[DLRN_OUTPUT_BIAS][o];
    for (int l = 0; l < L; l++) {
        const dlrn_dictionary *part = dict->part[l].dict;
        const int64_t d_out = part->d_out;
        for (int64_t j = 0; j < OWN; j++)
            for (int64_t o = 0; o < d_out; o++)
                x_hat[l * D + o] +=
                    f[l * OWN + j] * (double)part->param[DLRN_DECODER][j * d_out + o];
        for (int64_t o = 0; part->param[DLRN_SKIP] && o < D; o++)
            for (int64_t c = 0; c < D; c++)
                x_hat[l * D + o] +=
                    (double)part->param[DLRN_SKIP][o * D + c] * (double)x[l * D + c];
    }
}

static void check_against_reference(dlrn_context *ctx, const kind *what, int64_t n) {
    static float x[ROWS * WIDTH], f[ROWS * F], x_hat[ROWS * WIDTH];
    static double want[ROWS * F], row[WIDTH];
    dlrn_dictionary *dict = make(ctx, what);
    dlrn_sparse codes = {0};
    make_rows(x, what->exact);
    reference_encode(dict, x, n, want);
    CHECK_OK(ctx, dlrn_encode(dict, x, n, f));
    CHECK_OK(ctx, dlrn_forward(dict, x, n, x_hat, &codes));
    for (int64_t i = 0; i < n * F; i++) {
        CHECK_MSG((f[i] != 0) == (want[i] != 0), "%d", (int)i);
        CHECK(fabs((double)f[i] - want[i]) <= 1e-5 * (1 + fabs(want[i])));
    }
    for (int64_t i = 0; i < n; i++) {
        int64_t at = codes.row_ptr[i], active = 0;
        for (int64_t j = 0; j < F; j++)
            if (f[i * F + j] != 0) {
                CHECK(at < codes.row_ptr[i + 1] && codes.col[at] == j);
                CHECK(!memcmp(&codes.val[at++], &f[i * F + j], sizeof *f));
                active++;
            }
        CHECK(active == codes.row_ptr[i + 1] - codes.row_ptr[i]);
        reference_decode(dict, x + i * WIDTH, want + i * F, row);
        for (int64_t o = 0; o < WIDTH; o++)
            CHECK_MSG(fabs((double)x_hat[i * WIDTH + o] - row[o]) <= 1e-4 * (1 + fabs(row[o])),
                      "row %d", (int)i);
    }
    dlrn_sparse_free(&codes);
    dlrn_dictionary_destroy(dict);
}

static const kind kinds[] = {
    {DLRN_SELECT_ALL, DLRN_SELECT_ALL, 0, 0, 0, 0, 0, 0, 0},
    {DLRN_SELECT_ALL, DLRN_SELECT_ALL, 0, 0, 1, 0, 1, 0, 0},
    {DLRN_SELECT_TOP_K, DLRN_SELECT_ALL, 5, 0, 0, 0, 0, 0, 0},
    {DLRN_SELECT_ALL, DLRN_SELECT_TOP_K, 0, 7, 1, 1, 0, 0, 0},
    {DLRN_SELECT_TOP_K, DLRN_SELECT_TOP_K, 9, 9, 0, 1, 0, 0, 0},
    {DLRN_SELECT_ALL, DLRN_SELECT_BATCH_TOP_K, 0, 6, 0, 1, 0, 0, 0},
    {DLRN_SELECT_TOP_K, DLRN_SELECT_BATCH_TOP_K, 20, 40, 1, 0, 1, 0, 0},
    {DLRN_SELECT_BATCH_TOP_K, DLRN_SELECT_ALL, 3, 0, 0, 1, 0, 0, 0},
    {DLRN_SELECT_BATCH_TOP_K, DLRN_SELECT_BATCH_TOP_K, 4, 4, 0, 1, 0, 0, 0},
    {DLRN_SELECT_ALL, DLRN_SELECT_TOP_K, 0, 7, 0, 0, 0, 0, 1},
    {DLRN_SELECT_ALL, DLRN_SELECT_BATCH_TOP_K, 0, 5, 1, 0, 0, 0, 1},
    {DLRN_SELECT_ALL, DLRN_SELECT_TOP_K, 0, 7, 0, 0, 0, 1, 0}, /* ties from here on */
    {DLRN_SELECT_TOP_K, DLRN_SELECT_TOP_K, 3, 7, 0, 0, 0, 1, 0},
    {DLRN_SELECT_ALL, DLRN_SELECT_BATCH_TOP_K, 0, 5, 1, 0, 0, 1, 0},
    {DLRN_SELECT_ALL, DLRN_SELECT_TOP_K, 0, F, 0, 0, 0, 1, 0}, /* k of all */
    {DLRN_SELECT_ALL, DLRN_SELECT_BATCH_TOP_K, 0, F, 0, 0, 0, 1, 0},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

TEST(as_in_plain_loops) {
    static const int64_t rows[] = {1, 2, 31, 32, 64};
    dlrn_context *ctx = NULL;
    CHECK_STATUS(dlrn_context_create(NULL, &ctx), DLRN_OK);
    for (int i = 0; i < KINDS; i++)
        for (int r = 0; r < 5; r++)
            /* the ranks of two rows are all +-1/sqrt(2): rounding would choose */
            if (!(kinds[i].standardise && rows[r] == 2))
                check_against_reference(ctx, &kinds[i], rows[r]);
    dlrn_context_destroy(ctx);
}

/* ---- The same bits ---- */

/* Features, codes and reconstruction of many rows, all by one encoder; with few = 1 in calls of few
   rows. */
typedef struct results {
    float f[ROWS * F], x_hat[ROWS * WIDTH];
    dlrn_sparse codes;
} results;

static void run_all(dlrn_context *ctx, const kind *what, int64_t rows, int prepared, results *to) {
    static float x[ROWS * WIDTH];
    dlrn_dictionary *dict = make(ctx, what);
    dlrn_encoder *e = NULL;
    make_rows(x, what->exact);
    CHECK_OK(ctx, dlrn_encoder_create(dict, &e));
    if (prepared) CHECK_OK(ctx, dlrn_encoder_prepare(e));
    for (int64_t i = 0; i < ROWS; i += rows) {
        const int64_t n = ROWS - i < rows ? ROWS - i : rows;
        CHECK_OK(ctx,
                 dlrn_encoder_run(e, x + i * WIDTH, n, to->f + i * F, NULL, to->x_hat + i * WIDTH));
        CHECK_OK(ctx, dlrn_encoder_run(e, x + i * WIDTH, n, NULL, &to->codes, NULL));
    }
    dlrn_encoder_destroy(e);
    dlrn_dictionary_destroy(dict);
}

static void check_same(const results *a, const results *b, const char *what) {
    CHECK_MSG(!memcmp(a->f, b->f, sizeof a->f), "features: %s", what);
    CHECK_MSG(!memcmp(a->x_hat, b->x_hat, sizeof a->x_hat), "reconstruction: %s", what);
}

static int compares_rows(const kind *what) {
    return what->whole == DLRN_SELECT_BATCH_TOP_K || what->part == DLRN_SELECT_BATCH_TOP_K ||
           what->standardise;
}

TEST(the_same_bits_for_any_threads_and_kernels) {
    static results want, got;
    for (int i = 0; i < KINDS; i++)
        for (int k = 0; test_kernels(k); k++)
            for (int threads = 1; threads <= 4; threads += 3)
                for (int prepared = 0; prepared < 2; prepared++) {
                    const int first = !k && threads == 1 && !prepared;
                    dlrn_context_config cfg = {0};
                    dlrn_context *ctx = NULL;
                    cfg.threads = threads;
                    cfg.kernels = test_kernels(k);
                    CHECK_STATUS(dlrn_context_create(&cfg, &ctx), DLRN_OK);
                    run_all(ctx, &kinds[i], ROWS, prepared, first ? &want : &got);
                    if (!first) check_same(&want, &got, cfg.kernels);
                    /* where rows do not depend on each other, few at a time */
                    if (!compares_rows(&kinds[i])) {
                        run_all(ctx, &kinds[i], 7, prepared, &got);
                        check_same(&want, &got, "few rows");
                    }
                    dlrn_sparse_free(&want.codes);
                    dlrn_sparse_free(&got.codes);
                    dlrn_context_destroy(ctx);
                }
}

/* ---- Other calls ---- */

TEST(decode_takes_codes_in_any_order) {
    static float x[ROWS * WIDTH], f[ROWS * F], want[ROWS * WIDTH], got[ROWS * WIDTH];
    const kind what = {DLRN_SELECT_ALL, DLRN_SELECT_ALL, 0, 0, 0, 0, 0, 1, 0};
    dlrn_context *ctx = NULL;
    dlrn_sparse codes = {0};
    CHECK_STATUS(dlrn_context_create(NULL, &ctx), DLRN_OK);
    dlrn_dictionary *dict = make(ctx, &what);
    make_rows(x, 1);
    CHECK_OK(ctx, dlrn_forward(dict, x, ROWS, want, &codes));
    CHECK_OK(ctx, dlrn_encode(dict, x, ROWS, f));
    CHECK_OK(ctx, dlrn_decode(dict, f, ROWS, got));
    CHECK(!memcmp(got, want, sizeof got));
    /* backwards; sums of integers do not depend on the order */
    for (int64_t i = 0; i < ROWS; i++)
        for (int64_t a = codes.row_ptr[i], b = codes.row_ptr[i + 1] - 1; a < b; a++, b--) {
            int32_t col = codes.col[a];
            float val = codes.val[a];
            codes.col[a] = codes.col[b];
            codes.val[a] = codes.val[b];
            codes.col[b] = col;
            codes.val[b] = val;
        }
    CHECK_OK(ctx, dlrn_decode_sparse(dict, &codes, got));
    CHECK(!memcmp(got, want, sizeof got));
    dlrn_sparse_free(&codes);
    dlrn_dictionary_destroy(dict);
    dlrn_context_destroy(ctx);
}

TEST(a_skip_needs_x) {
    static float f[F], x_hat[WIDTH];
    dlrn_context *ctx = NULL;
    CHECK_STATUS(dlrn_context_create(NULL, &ctx), DLRN_OK);
    dlrn_dictionary *dict = make(ctx, &kinds[1]);
    CHECK_STATUS(dlrn_decode(dict, f, 1, x_hat), DLRN_ERR_UNSUPPORTED);
    CHECK_STR(dlrn_error(ctx), "linear map of x");
    dlrn_dictionary_destroy(dict);
    dlrn_context_destroy(ctx);
}

/* A copy owns its parts, and gives the same bits. */
TEST(copies) {
    static float x[ROWS * WIDTH], want[ROWS * F], got[ROWS * F];
    dlrn_context *ctx = NULL;
    CHECK_STATUS(dlrn_context_create(NULL, &ctx), DLRN_OK);
    dlrn_dictionary *dict = make(ctx, &kinds[3]), *copy = NULL;
    make_rows(x, 0);
    CHECK_OK(ctx, dlrn_encode(dict, x, ROWS, want));
    CHECK_OK(ctx, dlrni_dictionary_copy(ctx, dict, &copy));
    dlrn_dictionary_destroy(dict);
    CHECK_OK(ctx, dlrn_encode(copy, x, ROWS, got));
    CHECK(!memcmp(want, got, sizeof got));
    CHECK(copy->layers == L && copy->feature_layers == L && copy->part[1].dict->skip_rows == D);
    dlrn_dictionary_destroy(copy);
    dlrn_context_destroy(ctx);
}

/* Weights may change between calls; prepared panels follow. */
TEST(changed_weights) {
    static float x[ROWS * WIDTH], want[8 * F], got[8 * F];
    dlrn_context *ctx = NULL;
    CHECK_STATUS(dlrn_context_create(NULL, &ctx), DLRN_OK);
    dlrn_dictionary *dict = make(ctx, &kinds[0]);
    dlrn_encoder *e = NULL;
    make_rows(x, 0);
    CHECK_OK(ctx, dlrn_encoder_create(dict, &e));
    CHECK_OK(ctx, dlrn_encoder_prepare(e));
    CHECK_OK(ctx, dlrn_encoder_run(e, x, 8, got, NULL, NULL));
    for (int64_t i = 0; i < OWN * D; i++) dict->part[2].dict->param[DLRN_ENCODER][i] *= -1;
    dlrn_dictionary_changed(dict);
    CHECK_OK(ctx, dlrn_encode(dict, x, 8, want));
    CHECK_OK(ctx, dlrn_encoder_run(e, x, 8, got, NULL, NULL));
    CHECK(!memcmp(want, got, sizeof got));
    dlrn_encoder_destroy(e);
    dlrn_dictionary_destroy(dict);
    dlrn_context_destroy(ctx);
}

static void check_refused(dlrn_dictionary *dict, const char *text) {
    static float x[WIDTH], f[F], x_hat[WIDTH];
    CHECK_STATUS(dlrn_encode(dict, x, 1, f), text ? DLRN_ERR_SHAPE : DLRN_ERR_ARGUMENT);
    if (text) CHECK_STR(dlrn_error(dict->ctx), text);
    CHECK(dlrn_decode(dict, f, 1, x_hat) != DLRN_OK);
}

/* Parts that a caller set wrongly are found before memory is read. */
TEST(parts_that_do_not_fit) {
    dlrn_context *ctx = NULL;
    CHECK_STATUS(dlrn_context_create(NULL, &ctx), DLRN_OK);
    dlrn_dictionary *dict = make(ctx, &kinds[0]);
    dlrn_part *part = &dict->part[1];
    int64_t *const windows[] = {&part->in_at, &part->out_at, &part->feature_at};
    for (int i = 0; i < 3; i++) {
        const int64_t was = *windows[i];
        for (int64_t wrong = -1; wrong < 2; wrong += 2) {
            *windows[i] = wrong < 0 ? -1 : WIDTH - 1;
            check_refused(dict, "part 1");
        }
        *windows[i] = was;
    }
    part->dict->formula.scale_out = 2;
    check_refused(dict, "part 1");
    part->dict->formula.scale_out = 1;
    dict->features++;
    check_refused(dict, NULL);
    dict->features--;
    dict->formula.select = DLRN_SELECT_GROUP_MAX;
    check_refused(dict, NULL);
    dlrn_dictionary_destroy(dict);
    dlrn_context_destroy(ctx);
}

/* A family of several layers is loaded: there is nothing to create. */
TEST(not_created) {
    dlrn_context *ctx = NULL;
    dlrn_dictionary *dict = NULL;
    dlrn_dictionary_desc desc = {0};
    CHECK_STATUS(dlrn_context_create(NULL, &ctx), DLRN_OK);
    desc.family = "Crosscoder";
    desc.d_in = desc.features = 4;
    CHECK_STATUS(dlrn_dictionary_create(ctx, &desc, &dict), DLRN_ERR_UNSUPPORTED);
    CHECK(dict == NULL);
    dlrn_context_destroy(ctx);
}

/* ---- Without memory ---- */

static dlrn_context *starved;
static dlrn_dictionary *hungry;

static dlrn_status run_once(void) {
    static float x[ROWS * WIDTH], f[ROWS * F], x_hat[ROWS * WIDTH];
    dlrn_encoder *e = NULL;
    if (x[0] == 0) make_rows(x, 0);
    dlrn_status s = dlrn_encoder_create(hungry, &e);
    if (s == DLRN_OK) s = dlrn_encoder_run(e, x, 33, f, NULL, x_hat);
    if (s == DLRN_OK) s = dlrn_encoder_prepare(e);
    if (s == DLRN_OK) s = dlrn_encoder_run(e, x, 3, f, NULL, NULL);
    dlrn_encoder_destroy(e);
    return s;
}

static dlrn_status copy_once(void) {
    dlrn_dictionary *copy = NULL;
    dlrn_status s = dlrni_dictionary_copy(starved, hungry, &copy);
    dlrn_dictionary_destroy(copy);
    return s;
}

TEST(every_allocation_may_fail) {
    starved = starve_context(2);
    for (int i = 1; i < KINDS; i += 4) {
        hungry = make(starved, &kinds[i]);
        starve_all("a run", starved, run_once);
        starve_all("a copy", starved, copy_once);
        dlrn_dictionary_destroy(hungry);
    }
    dlrn_context_destroy(starved);
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    RUN(as_in_plain_loops);
    RUN_LONG(the_same_bits_for_any_threads_and_kernels);
    RUN(decode_takes_codes_in_any_order);
    RUN(a_skip_needs_x);
    RUN(copies);
    RUN(changed_weights);
    RUN(parts_that_do_not_fit);
    RUN(not_created);
    RUN(every_allocation_may_fail);
    return TEST_END();
}
