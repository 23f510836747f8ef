/* test_metrics.c - the streaming evaluation against the textbook's two-pass formulas in double, its
   edges, and the cross-entropy rows with toy models whose answer is computed here. */
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "tests/test.h"

enum { D = 9, F = 70, N = 257 };

static float rows_x[N * D], rows_y[N * D];

/* ---- Scenes ---- */

static dlrn_context *open_context(int threads) {
    dlrn_context_config cfg = {0};
    dlrn_context *ctx = NULL;
    cfg.threads = threads;
    CHECK_STATUS(dlrn_context_create(&cfg, &ctx), DLRN_OK);
    return ctx;
}

static void fill_rows(void) {
    dlrn_rng rng = {11, 0, 0};
    for (int i = 0; i < N * D; i++) {
        rows_x[i] = dlrn_rng_normal(&rng) + 0.3f;
        rows_y[i] = 0.7f * rows_x[i] + 0.5f * dlrn_rng_normal(&rng);
    }
}

/* Some features never fire, some rarely, some on most rows. */
static dlrn_dictionary *make_dictionary(dlrn_context *ctx) {
    dlrn_dictionary *ae = NULL;
    CHECK_OK(ctx, new_autoencoder(ctx, D, F, 4, &ae));
    for (int j = 0; j < D; j++) ae->param[DLRN_OUTPUT_BIAS][j] = 0.1f * (float)j;
    for (int f = 0; f < F; f++)
        ae->param[DLRN_ENCODER_BIAS][f] += f % 7 == 0 ? -9.0f : f % 5 == 0 ? -1.0f : 0.0f;
    dlrn_dictionary_changed(ae);
    return ae;
}

static dlrn_eval_config config(dlrn_sparsity sparsity, int compat, int64_t batch_size) {
    dlrn_eval_config cfg = dlrn_eval_defaults();
    cfg.sparsity = sparsity, cfg.compat = compat, cfg.batch_size = batch_size;
    return cfg;
}

/* All rows, `piece` of them a call. */
static dlrn_metrics measure(const dlrn_dictionary *dict, const dlrn_eval_config *cfg,
                            const float *x, const float *y, int64_t n, int64_t piece) {
    dlrn_evaluator *e = NULL;
    dlrn_metrics m;
    int64_t d = dict->d_in;
    CHECK_OK(dict->ctx, dlrn_evaluator_create(dict, cfg, &e));
    for (int64_t i = 0; i < n; i += piece)
        CHECK_OK(dict->ctx, dlrn_evaluator_add(e, x + i * d, y ? y + i * d : NULL,
                                               n - i < piece ? n - i : piece));
    CHECK_OK(dict->ctx, dlrn_evaluator_finish(e, &m));
    m.fired = NULL; /* ends with the evaluator, as in dlrn_evaluate */
    dlrn_evaluator_destroy(e);
    return m;
}

/* ---- The textbook: every field again, two passes, over the dense features ---- */

/* Unbiased variance of column j of a [n][d]; b (or NULL) is subtracted first. */
static double column_variance(const float *a, const float *b, int64_t n, int64_t d, int64_t j) {
    double mean = 0, sum = 0;
    for (int64_t i = 0; i < n; i++)
        mean += ((double)a[i * d + j] - (b ? (double)b[i * d + j] : 0)) / (double)n;
    for (int64_t i = 0; i < n; i++)
        sum += pow((double)a[i * d + j] - (b ? (double)b[i * d + j] : 0) - mean, 2);
    return sum / (double)(n - 1);
}

static double row_entropy(const float *f, int64_t F_) {
    double sum = 0, entropy = 0;
    for (int64_t j = 0; j < F_; j++) sum += (double)f[j];
    for (int64_t j = 0; j < F_ && sum > 0; j++) {
        double q = (double)f[j] / (sum + 1e-8);
        if (q > 0) entropy -= q * log(q + 1e-8);
    }
    return entropy;
}

static void book_rows(dlrn_metrics *m, const float *y, const float *x_hat, const float *f,
                      int64_t n, int entropy) {
    double norm2 = 0, dot = 0, count = (double)n;
    for (int64_t i = 0; i < n; i++) {
        double yy = 0, hh = 0, yh = 0, rr = 0, l1 = 0;
        for (int64_t j = i * D; j < (i + 1) * D; j++) {
            double a = (double)y[j], h = (double)x_hat[j];
            yy += a * a, hh += h * h, yh += a * h, rr += (a - h) * (a - h);
        }
        for (int64_t j = i * F; j < (i + 1) * F; j++)
            l1 += (double)f[j], m->l0 += (f[j] > 0) / count;
        m->mse_loss += rr / count, m->l2_loss += sqrt(rr) / count;
        m->sparsity_loss += (entropy ? row_entropy(f + i * F, F) : l1) / count;
        m->cosine += yh / (sqrt(yy) * sqrt(hh)) / count, m->l2_ratio += sqrt(hh) / sqrt(yy) / count;
        norm2 += hh, dot += yh;
    }
    m->relative_reconstruction_bias = norm2 / dot;
}

static void book_columns(dlrn_metrics *m, const float *y, const float *x_hat, const float *f,
                         int64_t n) {
    double lost = 0, had = 0;
    for (int64_t j = 0; j < D; j++) {
        double a = column_variance(y, x_hat, n, D, j), b = column_variance(y, NULL, n, D, j);
        lost += a, had += b;
        m->variance_explained_per_dim += (1 - a / b) / D;
    }
    m->variance_explained = 1 - lost / had;
    for (int64_t j = 0; j < F; j++) {
        int64_t fired = 0;
        for (int64_t i = 0; i < n; i++) fired += f[i * F + j] > 0;
        m->dead += fired == 0, m->dense += 10 * fired > n;
    }
    m->share_alive = 1 - (double)m->dead / F;
}

static dlrn_metrics book(const dlrn_dictionary *ae, const float *x, const float *y, int64_t n,
                         int entropy) {
    static float f[N * F], x_hat[N * D];
    dlrn_metrics m;
    memset(&m, 0, sizeof m);
    CHECK_OK(ae->ctx, dlrn_encode(ae, x, n, f));
    CHECK_OK(ae->ctx, dlrn_decode(ae, f, n, x_hat));
    m.rows = n;
    book_rows(&m, y, x_hat, f, n, entropy);
    book_columns(&m, y, x_hat, f, n);
    return m;
}

static void check_equal(const dlrn_metrics *a, const dlrn_metrics *b) {
    CHECK(a->rows == b->rows && a->dead == b->dead && a->dense == b->dense);
    CHECK_CLOSE(a->mse_loss, b->mse_loss, 1e-12);
    CHECK_CLOSE(a->l2_loss, b->l2_loss, 1e-12);
    CHECK_CLOSE(a->sparsity_loss, b->sparsity_loss, 1e-12);
    CHECK_CLOSE(a->variance_explained, b->variance_explained, 1e-12);
    CHECK_CLOSE(a->variance_explained_per_dim, b->variance_explained_per_dim, 1e-12);
    CHECK_CLOSE(a->l0, b->l0, 1e-12);
    CHECK_CLOSE(a->share_alive, b->share_alive, 1e-12);
    CHECK_CLOSE(a->cosine, b->cosine, 1e-12);
    CHECK_CLOSE(a->l2_ratio, b->l2_ratio, 1e-12);
    CHECK_CLOSE(a->relative_reconstruction_bias, b->relative_reconstruction_bias, 1e-12);
}

TEST(every_field_is_the_textbooks) {
    dlrn_context *ctx = open_context(1);
    dlrn_dictionary *ae = make_dictionary(ctx);
    for (int c = 0; c < 8; c++) {
        int entropy = c & 1, compat = c >> 1 & 1;
        const float *y = c & 4 ? rows_y : NULL;
        dlrn_eval_config cfg =
            config(entropy ? DLRN_SPARSITY_ENTROPY : DLRN_SPARSITY_L1, compat, 100);
        dlrn_metrics ours = measure(ae, &cfg, rows_x, y, N, N),
                     theirs = book(ae, rows_x, y ? y : rows_x, N, entropy);
        if (compat) theirs.mse_loss = theirs.l2_loss * theirs.l2_loss;
        CHECK(ours.dead >= F / 7 && ours.dense > 0 && ours.dense < F - ours.dead);
        check_equal(&ours, &theirs);
        CHECK(isnan(ours.loss_original) && isnan(ours.share_recovered) && isnan(ours.ce_diff) &&
              !ours.tokens);
    }
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

TEST(batches_pieces_and_threads_do_not_change_a_bit) {
    static const int64_t batch[] = {256, 1, 7, 64, 1000}, piece[] = {N, 1, 100, 3, 256};
    dlrn_metrics first;
    for (int c = 0; c < 5; c++) {
        dlrn_context *ctx = open_context(1 + c % 3);
        dlrn_dictionary *ae = make_dictionary(ctx);
        dlrn_eval_config cfg = config(DLRN_SPARSITY_ENTROPY, 0, batch[c]);
        dlrn_metrics m = measure(ae, &cfg, rows_x, rows_y, N, piece[c]);
        if (c == 0) first = m;
        CHECK_MSG(!memcmp(&m, &first, sizeof m), "batches of %d, pieces of %d", (int)batch[c],
                  (int)piece[c]);
        dlrn_dictionary_destroy(ae);
        dlrn_context_destroy(ctx);
    }
}

/* ---- Edges ---- */

/* A dictionary of n features that gives back positive x: f = ReLU(x), x_hat = f. */
static dlrn_dictionary *make_relu(dlrn_context *ctx, int64_t n) {
    dlrn_dictionary *ae = NULL;
    CHECK_OK(ctx, new_autoencoder(ctx, n, n, 0, &ae));
    memset(ae->param[DLRN_ENCODER], 0, (size_t)(n * n) * sizeof(float));
    memset(ae->param[DLRN_DECODER], 0, (size_t)(n * n) * sizeof(float));
    memset(ae->param[DLRN_ENCODER_BIAS], 0, (size_t)n * sizeof(float));
    for (int64_t j = 0; j < n; j++)
        ae->param[DLRN_ENCODER][j * n + j] = ae->param[DLRN_DECODER][j * n + j] = 1;
    dlrn_dictionary_changed(ae);
    return ae;
}

TEST(the_identity_loses_nothing) {
    dlrn_context *ctx = open_context(1);
    dlrn_dictionary *id = NULL;
    CHECK_OK(ctx, new_identity(ctx, D, &id));
    for (int entropy = 0; entropy < 2; entropy++) {
        dlrn_eval_config cfg = config(entropy ? DLRN_SPARSITY_ENTROPY : DLRN_SPARSITY_L1, 0, 64);
        dlrn_metrics m = measure(id, &cfg, rows_x, NULL, N, N);
        double l1 = 0;
        for (int i = 0; i < N * D; i++) l1 += fabs((double)rows_x[i]) / N;
        CHECK(m.mse_loss == 0 && m.l2_loss == 0 && m.variance_explained == 1 &&
              m.variance_explained_per_dim == 1);
        CHECK(m.l0 == D && m.dead == 0 && m.dense == D && m.share_alive == 1);
        CHECK_CLOSE(m.cosine, 1, 1e-12);
        CHECK_CLOSE(m.l2_ratio, 1, 1e-12);
        CHECK_CLOSE(m.relative_reconstruction_bias, 1, 1e-12);
        if (entropy)
            CHECK(m.sparsity_loss > 1 && m.sparsity_loss <= log(D)); /* also of negative features */
        if (!entropy) CHECK_CLOSE(m.sparsity_loss, l1, 1e-12);
    }
    dlrn_dictionary_destroy(id);
    dlrn_context_destroy(ctx);
}

/* Columns without variance, far from 0, beside one that varies a little. */
TEST(constant_columns_have_no_variance) {
    enum { n = 50, d = 3 };
    static float x[n * d], y[n * d];
    dlrn_context *ctx = open_context(1);
    dlrn_dictionary *ae = make_relu(ctx, d);
    dlrn_eval_config cfg = config(DLRN_SPARSITY_L1, 0, 8);
    for (int i = 0; i < n; i++) {
        x[i * d] = 4096.5f, x[i * d + 1] = 1000 + (float)(i % 4), x[i * d + 2] = 2;
        y[i * d] = 4096.5f, y[i * d + 1] = 1000 + 2 * (float)(i % 4), y[i * d + 2] = 1;
    }
    dlrn_metrics m = measure(ae, &cfg, x, y, n, n);
    CHECK_CLOSE(m.variance_explained, 0.75,
                1e-12); /* var(i) of var(2 i) is left; an offset costs nothing */
    CHECK_CLOSE(m.variance_explained_per_dim, 0.75, 1e-12);
    for (int i = 0; i < n; i++) y[i * d + 1] = 7;
    m = measure(ae, &cfg, x, y, n, n);
    CHECK(isnan(m.variance_explained) && isnan(m.variance_explained_per_dim) && isfinite(m.cosine));
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

TEST(zero_vectors_have_no_direction) {
    enum { d = 2 };
    static const float x[4 * d] = {3, 4, 0, 0, -1, -1, 6, 8}, zero[4 * d] = {0};
    dlrn_context *ctx = open_context(1);
    dlrn_dictionary *ae = make_relu(ctx, d);
    dlrn_eval_config cfg = config(DLRN_SPARSITY_L1, 0, 3);
    dlrn_metrics m = measure(ae, &cfg, x, NULL, 4, 4);
    CHECK_CLOSE(m.cosine, 1, 1e-12);           /* rows 0 and 3 */
    CHECK_CLOSE(m.l2_ratio, 2.0 / 3.0, 1e-12); /* row 2 is reconstructed as 0; row 1 has no ratio */
    CHECK_CLOSE(m.mse_loss, 0.5, 1e-12);
    CHECK_CLOSE(m.relative_reconstruction_bias, 1, 1e-12);
    m = measure(ae, &cfg, zero, NULL, 4, 2);
    CHECK(isnan(m.cosine) && isnan(m.l2_ratio) && isnan(m.relative_reconstruction_bias) &&
          isnan(m.variance_explained));
    CHECK(m.mse_loss == 0 && m.l0 == 0 && m.dead == d && m.share_alive == 0 && m.rows == 4);
    cfg.sparsity = DLRN_SPARSITY_ENTROPY;
    m = measure(ae, &cfg, zero, NULL, 4, 4);
    CHECK(m.sparsity_loss == 0);
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

TEST(one_row_and_no_rows) {
    dlrn_context *ctx = open_context(1);
    dlrn_dictionary *ae = make_dictionary(ctx);
    dlrn_eval_config cfg = config(DLRN_SPARSITY_L1, 0, 8);
    dlrn_metrics m = measure(ae, &cfg, rows_x, rows_y, 1, 1);
    CHECK(m.rows == 1 && m.mse_loss > 0 && isfinite(m.cosine) && m.dense == F - m.dead);
    CHECK_CLOSE(m.mse_loss, m.l2_loss * m.l2_loss, 1e-12);
    CHECK(isnan(m.variance_explained) && isnan(m.variance_explained_per_dim));
    dlrn_evaluator *e = NULL;
    int64_t count[4];
    CHECK_OK(ctx, dlrn_evaluator_create(ae, &cfg, &e));
    CHECK_OK(ctx, dlrn_evaluator_add(e, NULL, NULL, 0));
    CHECK_STATUS(dlrn_evaluator_finish(e, &m), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "no rows");
    CHECK(m.rows == 0);
    CHECK_STATUS(dlrn_evaluator_histogram(e, 4, NULL, count), DLRN_ERR_ARGUMENT);
    dlrn_evaluator_destroy(e);
    dlrn_evaluator_destroy(NULL);
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

/* The place is named, and the rows of the failed call leave no trace. */
TEST(what_is_not_finite_is_named) {
    static float bad[N * D];
    dlrn_context *ctx = open_context(1);
    dlrn_dictionary *ae = make_dictionary(ctx);
    dlrn_eval_config cfg = config(DLRN_SPARSITY_L1, 0, 8);
    dlrn_evaluator *e = NULL;
    dlrn_metrics m, clean = measure(ae, &cfg, rows_x, rows_y, N, N);
    CHECK_OK(ctx, dlrn_evaluator_create(ae, &cfg, &e));
    CHECK_OK(ctx, dlrn_evaluator_add(e, rows_x, rows_y, 100));
    memcpy(bad, rows_x, sizeof bad);
    bad[50 * D + 3] = NAN;
    CHECK_STATUS(dlrn_evaluator_add(e, bad, rows_y, 60), DLRN_ERR_VALUE);
    CHECK_STR(dlrn_error(ctx), "x, row 150, column 3");
    bad[50 * D + 3] = INFINITY;
    CHECK_STATUS(dlrn_evaluator_add(e, rows_x, bad, 60), DLRN_ERR_VALUE);
    CHECK_STR(dlrn_error(ctx), "y, row 150, column 3");
    CHECK_STATUS(dlrn_evaluator_add(e, NULL, NULL, 1), DLRN_ERR_ARGUMENT);
    CHECK_STATUS(dlrn_evaluator_add(e, rows_x, NULL, -1), DLRN_ERR_ARGUMENT);
    CHECK_OK(ctx, dlrn_evaluator_add(e, rows_x + 100 * D, rows_y + 100 * D, N - 100));
    CHECK_OK(ctx, dlrn_evaluator_finish(e, &m));
    m.fired = clean.fired; /* another evaluator's */
    CHECK(!memcmp(&m, &clean, sizeof m));
    ae->param[DLRN_OUTPUT_BIAS][1] = NAN;
    dlrn_dictionary_changed(ae);
    CHECK_STATUS(dlrn_evaluator_add(e, rows_x, rows_y, 1), DLRN_ERR_VALUE);
    CHECK_STR(dlrn_error(ctx), "x_hat, row 257");
    dlrn_evaluator_destroy(e);
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

/* Features that fire on a stated number of 1000 rows. */
TEST(dead_and_dense_are_counted) {
    enum { n = 1000, d = 6 };
    static const int times[d] = {0, 1, 99, 100, 101, 1000};
    static float x[n * d];
    dlrn_context *ctx = open_context(1);
    dlrn_dictionary *ae = make_relu(ctx, d);
    dlrn_eval_config cfg = config(DLRN_SPARSITY_L1, 0, 33);
    dlrn_evaluator *e = NULL;
    dlrn_metrics m;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < d; j++) x[i * d + j] = (i * 7) % n < times[j] ? 1.0f : -1.0f;
    CHECK_OK(ctx, dlrn_evaluator_create(ae, &cfg, &e));
    CHECK_OK(ctx, dlrn_evaluator_add(e, x, NULL, n));
    CHECK_OK(ctx, dlrn_evaluator_finish(e, &m));
    for (int j = 0; j < d; j++) CHECK(m.fired[j] == times[j]);
    CHECK(m.dead == 1 && m.dense == 2); /* a tenth is not more than a tenth */
    CHECK_CLOSE(m.share_alive, 5.0 / 6.0, 1e-12);
    CHECK_CLOSE(m.l0, 1.301, 1e-12);
    dlrn_evaluator_destroy(e);
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

/* The counters are set by hand: to the edges themselves, and beyond them. */
TEST(frequencies_fall_into_log_bins) {
    static const int64_t fired[8] = {0, 1, 10, 99, 100, 12345, 999999, 1000000};
    static const int64_t five[5] = {3, 1, 0, 1, 2}, one[1] = {7};
    dlrn_context *ctx = open_context(1);
    dlrn_dictionary *ae = make_relu(ctx, 8);
    dlrn_eval_config cfg = dlrn_eval_defaults();
    dlrn_evaluator *e = NULL;
    int64_t count[100], total = 0;
    double edge[101];
    CHECK_OK(ctx, dlrn_evaluator_create(ae, &cfg, &e));
    e->rows = 1000000;
    memcpy(e->fired, fired, sizeof fired);
    CHECK_OK(ctx, dlrn_evaluator_histogram(e, 5, edge, count));
    CHECK(!memcmp(count, five, sizeof five));
    for (int b = 0; b <= 5; b++) CHECK_CLOSE(edge[b], pow(10, b - 5), 1e-12);
    CHECK_OK(ctx, dlrn_evaluator_histogram(e, 1, NULL, count));
    CHECK(count[0] == one[0]);
    CHECK_OK(ctx, dlrn_evaluator_histogram(e, 100, edge, count));
    for (int b = 0; b < 100; b++) {
        int64_t inside = 0;
        for (int j = 0; j < 8; j++) {
            double f = (double)fired[j] / 1e6;
            inside += f > 0 && (f >= edge[b] || b == 0) && (f < edge[b + 1] || b == 99);
        }
        CHECK_MSG(inside == count[b], "bin %d: %d, expected %d", b, (int)count[b], (int)inside);
        total += count[b];
    }
    CHECK(total == 7);
    CHECK_STATUS(dlrn_evaluator_histogram(e, 0, edge, count), DLRN_ERR_ARGUMENT);
    dlrn_evaluator_destroy(e);
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

/* ---- Sources ---- */

/* A source that ends, fails, stops or misbehaves after some rows. */
typedef struct odd_source {
    int64_t at, good; /* rows given; rows until it ends as `then` says */
    dlrn_status then;
    int64_t lie; /* added to the number of rows that it reports */
} odd_source;

static dlrn_status odd_read(void *user, int64_t max_rows, float *x, float *y, int64_t *n) {
    odd_source *s = (odd_source *)user;
    int64_t rows = s->good - s->at < max_rows ? s->good - s->at : max_rows;
    (void)y;
    *n = 0;
    if (rows <= 0) return s->then;
    memcpy(x, rows_x + s->at * D, (size_t)(rows * D) * sizeof(float));
    s->at += rows;
    *n = rows + s->lie;
    return DLRN_OK;
}

static const char *odd_error(void *user) {
    (void)user;
    return "the tape is torn";
}

static dlrn_status evaluate_odd(const dlrn_dictionary *ae, odd_source odd, int64_t rows,
                                dlrn_metrics *m) {
    dlrn_source source = {D, 0, odd_read, NULL, NULL, odd_error, NULL, NULL, 0, 0};
    dlrn_eval_config cfg = config(DLRN_SPARSITY_L1, 0, 50);
    source.user = &odd;
    cfg.rows = rows;
    return dlrn_evaluate(ae, &cfg, &source, NULL, NULL, NULL, m);
}

TEST(rows_come_from_a_source) {
    dlrn_context *ctx = open_context(1);
    dlrn_dictionary *ae = make_dictionary(ctx);
    dlrn_eval_config cfg = config(DLRN_SPARSITY_L1, 0, 50);
    dlrn_source source;
    dlrn_metrics m, all = measure(ae, &cfg, rows_x, rows_y, N, N),
                    some = measure(ae, &cfg, rows_x, NULL, 120, 120);
    CHECK_OK(ctx, dlrn_source_from_array(ctx, rows_x, rows_y, N, D, D, 1, &source));
    cfg.rows = -1;
    CHECK_OK(ctx, dlrn_evaluate(ae, &cfg, &source, NULL, NULL, NULL, &m));
    CHECK(!memcmp(&m, &all, sizeof m));
    CHECK_OK(ctx, source.seek(source.user, 0));
    CHECK_OK(ctx,
             dlrn_evaluate(ae, NULL, &source, NULL, NULL, NULL, &m)); /* the defaults: up to 8192 */
    CHECK(!memcmp(&m, &all, sizeof m));
    dlrn_source_destroy(&source);
    CHECK_OK(ctx, dlrn_source_from_array(ctx, rows_x, NULL, N, D, 0, 1, &source));
    cfg.rows = 120; /* no multiple of the batch */
    CHECK_OK(ctx, dlrn_evaluate(ae, &cfg, &source, NULL, NULL, NULL, &m));
    CHECK(!memcmp(&m, &some, sizeof m));
    dlrn_source_destroy(&source);
    odd_source odd = {0, 120, DLRN_END, 0};
    CHECK_OK(ctx, evaluate_odd(ae, odd, 500, &m)); /* fewer than asked for: what there is */
    CHECK(!memcmp(&m, &some, sizeof m));
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

/* ---- Progress ---- */

static dlrn_status stop_at_100(void *user, int64_t rows) {
    ++*(int *)user;
    return rows >= 100 ? DLRN_STOPPED : DLRN_OK;
}

/* A host sees each batch, and may stop: what was seen is told. */
TEST(an_evaluation_that_is_stopped) {
    dlrn_context *ctx = open_context(1);
    dlrn_dictionary *ae = make_dictionary(ctx);
    dlrn_eval_config cfg = config(DLRN_SPARSITY_L1, 0, 50);
    dlrn_source source;
    dlrn_metrics m, some = measure(ae, &cfg, rows_x, rows_y, 100, 100);
    int calls = 0;
    CHECK_OK(ctx, dlrn_source_from_array(ctx, rows_x, rows_y, N, D, D, 1, &source));
    CHECK_STATUS(dlrn_evaluate(ae, &cfg, &source, NULL, stop_at_100, &calls, &m), DLRN_STOPPED);
    CHECK(calls == 2 && !memcmp(&m, &some, sizeof m));
    dlrn_source_destroy(&source);
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

/* ---- Memory ---- */

/* 2048 rows in batches of 256: all memory is taken with the first two. */
TEST(an_evaluator_allocates_nothing_after_its_first_batches) {
    enum { ROWS = 2048, WIDE = 400 };
    static float x[ROWS * D];
    dlrn_context_config how = {0};
    dlrn_context *ctx = NULL;
    dlrn_dictionary *ae = NULL;
    dlrn_evaluator *e = NULL;
    dlrn_rng rng = {12, 0, 0};
    int64_t before = 0;
    how.alloc = tally_alloc;
    how.release = tally_release;
    CHECK_STATUS(dlrn_context_create(&how, &ctx), DLRN_OK);
    CHECK_OK(ctx, new_autoencoder(ctx, D, WIDE, 3, &ae));
    for (int i = 0; i < ROWS * D; i++) x[i] = dlrn_rng_normal(&rng);
    CHECK_OK(ctx, dlrn_evaluator_create(ae, NULL, &e));
    for (int batch = 0; batch < 8; batch++) {
        CHECK_OK(ctx, dlrn_evaluator_add(e, x + batch * 256 * D, NULL, 256));
        if (batch == 1) before = tallied;
    }
    CHECK_MSG(tallied == before, "%d allocations", (int)(tallied - before));
    dlrn_evaluator_destroy(e);
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

TEST(what_a_source_does_wrong_is_told) {
    dlrn_context *ctx = open_context(1);
    dlrn_dictionary *ae = make_dictionary(ctx), *other = make_relu(ctx, D + 1);
    odd_source torn = {0, 120, DLRN_ERR_CALLBACK, 0}, stopped = {0, 120, DLRN_STOPPED, 0},
               empty = {0, 0, DLRN_END, 0};
    odd_source silent = {0, 0, DLRN_OK, 0}, liar = {0, 120, DLRN_END, 1};
    dlrn_metrics m;
    CHECK_STATUS(evaluate_odd(ae, torn, -1, &m), DLRN_ERR_CALLBACK);
    CHECK_STR(dlrn_error(ctx), "the tape is torn");
    CHECK_OK(ctx, evaluate_odd(ae, torn, 120, &m)); /* as much as is needed, no more */
    CHECK_STATUS(evaluate_odd(ae, stopped, -1, &m), DLRN_STOPPED);
    CHECK_STATUS(evaluate_odd(ae, empty, -1, &m), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "no rows");
    CHECK_STATUS(evaluate_odd(ae, silent, -1, &m), DLRN_ERR_CALLBACK);
    CHECK_STR(dlrn_error(ctx), "the source: expected 1 to 50 rows, found 0");
    CHECK_STATUS(evaluate_odd(ae, liar, -1, &m), DLRN_ERR_CALLBACK);
    CHECK_STR(dlrn_error(ctx), "the source: expected 1 to 50 rows, found 51");
    dlrn_source wordless = {D, 0, odd_read, NULL, NULL, NULL, NULL, &torn, 0, 0};
    dlrn_eval_config cfg = config(DLRN_SPARSITY_L1, 0, 50);
    cfg.rows = -1;
    CHECK_STATUS(dlrn_evaluate(ae, &cfg, &wordless, NULL, NULL, NULL, &m), DLRN_ERR_CALLBACK);
    CHECK_STR(dlrn_error(ctx), "the source failed: a callback failed");
    CHECK_STATUS(evaluate_odd(other, torn, -1, &m), DLRN_ERR_SHAPE);
    CHECK_STR(dlrn_error(ctx),
              "expected rows of width 10 with targets of 10, as the dictionary has, found 9 "
              "with 9");
    dlrn_dictionary_destroy(other);
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

TEST(a_configuration_out_of_range_is_refused) {
    dlrn_context *ctx = open_context(1);
    dlrn_dictionary *ae = make_dictionary(ctx);
    dlrn_evaluator *e = (dlrn_evaluator *)(void *)&ctx;
    dlrn_eval_config cfg = dlrn_eval_defaults();
    CHECK(cfg.rows == 8192 && cfg.batch_size == 256 && cfg.sparsity == DLRN_SPARSITY_L1 &&
          !cfg.compat);
    cfg.batch_size = 0;
    CHECK_STATUS(dlrn_evaluator_create(ae, &cfg, &e), DLRN_ERR_ARGUMENT);
    CHECK(!e);
    cfg.batch_size = 1, cfg.rows = -2;
    CHECK_STATUS(dlrn_evaluator_create(ae, &cfg, &e), DLRN_ERR_ARGUMENT);
    cfg.rows = 1, cfg.batch_size = INT64_MAX / 2;
    CHECK_STATUS(dlrn_evaluator_create(ae, &cfg, &e), DLRN_ERR_MEMORY);
    CHECK(!e);
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

/* ---- A language model: T tokens, a vocabulary of V, one or two sites ---- */

enum { T = 40, V = 5 };

typedef struct toy {
    int sites;       /* 1: h = rows_x. 2: then h + rows_y, too                    */
    int stretch;     /* 1: site 0 reads rows_y, and the model goes on with rows_x */
    int wrong_site;  /* added to the number of the site                           */
    int wrong_from;  /* from this call on                                         */
    int calls;       /* so far                                                    */
    int fail_at;     /* this call fails; 0: none                                  */
    int extra_at;    /* this call has a token more                                */
    int lost_at;     /* this call's cross-entropy is no number                    */
    int flat;        /* 1: all logits are the same                                */
    const char *why; /* its own text for a failure; NULL: none                    */
} toy;

/* Cross-entropy in nats of token i's target, i mod V, given the hidden state h [D]. */
static double toy_nats(const toy *m, const float *h, int i) {
    double logit[V], sum = 0;
    for (int v = 0; v < V; v++) {
        logit[v] = 0;
        for (int j = 0; j < D && !m->flat; j++) logit[v] += (double)h[j] * sin(1.0 + v * 3 + j);
        sum += exp(logit[v]);
    }
    return log(sum) - logit[i % V];
}

static dlrn_status toy_site(const toy *m, const dlrn_edit *edit, int site, const float *x,
                            float *h) {
    if (!edit) return DLRN_OK;
    if (m->calls >= m->wrong_from) site += m->wrong_site;
    dlrn_status s = edit->edit(edit->user, site, x, h, 15); /* in two parts */
    return s ? s : edit->edit(edit->user, site, x + 15 * D, h + 15 * D, T - 15);
}

static dlrn_status toy_cross_entropy(void *user, const dlrn_edit *edit, double *nats,
                                     int64_t *tokens) {
    toy *m = (toy *)user;
    static float h[T * D], x[T * D];
    double sum = 0;
    if (++m->calls == m->fail_at) return DLRN_ERR_CALLBACK;
    memcpy(h, rows_x, sizeof h);
    memcpy(x, m->stretch ? rows_y : rows_x, sizeof x);
    dlrn_status s = toy_site(m, edit, 0, x, h);
    for (int i = 0; m->sites == 2 && i < T * D; i++) h[i] += rows_y[i];
    memcpy(x, h, sizeof x);
    if (!s && m->sites == 2) s = toy_site(m, edit, 1, x, h);
    for (int i = 0; i < T; i++) sum += toy_nats(m, h + i * D, i);
    *nats = m->calls == m->lost_at ? (double)NAN : sum / T;
    *tokens = T + (m->calls == m->extra_at);
    return s;
}

static const char *toy_error(void *user) {
    return ((toy *)user)->why;
}

static dlrn_language_model toy_model(toy *m, int sites) {
    dlrn_language_model lm = {toy_cross_entropy, toy_error, NULL, 0, 3};
    memset(m, 0, sizeof *m);
    m->sites = sites;
    lm.user = m, lm.sites = sites;
    return lm;
}

static double mean_nats(const toy *m, const float *h) {
    double sum = 0;
    for (int i = 0; i < T; i++) sum += toy_nats(m, h + i * D, i) / T;
    return sum;
}

static void check_recovered(const dlrn_metrics *m, double original, double spliced, double zero) {
    CHECK_CLOSE(m->loss_original, original, 1e-12);
    CHECK_CLOSE(m->loss_reconstructed, spliced, 1e-12);
    CHECK_CLOSE(m->loss_zero, zero, 1e-12);
    CHECK_CLOSE(m->ce_diff, spliced - original, 1e-9);
    CHECK_CLOSE(m->share_recovered, (spliced - zero) / (original - zero), 1e-9);
    CHECK(m->tokens == T && m->documents == 3);
}

TEST(one_site_is_spliced) {
    static float x_hat[T * D];
    static const float zero[T * D] = {0};
    dlrn_context *ctx = open_context(1);
    dlrn_dictionary *ae = make_dictionary(ctx);
    const dlrn_dictionary *dicts[1] = {ae};
    dlrn_metrics m;
    toy model;
    for (int stretch = 0; stretch < 2; stretch++) {
        dlrn_language_model lm = toy_model(&model, 1);
        model.stretch = stretch;
        CHECK_OK(ctx, dlrn_forward(ae, stretch ? rows_y : rows_x, T, x_hat, NULL));
        m.rows = 42, m.mse_loss = 43;
        CHECK_OK(ctx, dlrn_loss_recovered(ctx, dicts, &lm, &m));
        check_recovered(&m, mean_nats(&model, rows_x), mean_nats(&model, x_hat),
                        mean_nats(&model, zero));
        CHECK(model.calls == 3 && m.rows == 42 &&
              m.mse_loss == 43); /* the other fields are the caller's */
    }
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

TEST(two_sites_are_spliced_at_once) {
    static float h[T * D], out[T * D];
    static const float zero[T * D] = {0};
    dlrn_context *ctx = open_context(1);
    dlrn_dictionary *ae = make_dictionary(ctx), *relu = make_relu(ctx, D);
    const dlrn_dictionary *dicts[2] = {ae, relu};
    dlrn_metrics m;
    toy model;
    dlrn_language_model lm = toy_model(&model, 2);
    for (int i = 0; i < T * D; i++) h[i] = rows_x[i] + rows_y[i];
    double original = mean_nats(&model, h);
    CHECK_OK(ctx, dlrn_forward(ae, rows_x, T, h, NULL));
    for (int i = 0; i < T * D; i++) h[i] += rows_y[i];
    CHECK_OK(ctx, dlrn_forward(relu, h, T, out, NULL));
    CHECK_OK(ctx, dlrn_loss_recovered(ctx, dicts, &lm, &m));
    check_recovered(&m, original, mean_nats(&model, out), mean_nats(&model, zero));
    dlrn_dictionary_destroy(relu);
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

TEST(the_identity_recovers_all_and_a_flat_model_nothing) {
    dlrn_context *ctx = open_context(1);
    dlrn_dictionary *id = NULL;
    dlrn_eval_config cfg = config(DLRN_SPARSITY_L1, 0, 64);
    dlrn_source source;
    dlrn_metrics m;
    toy model;
    dlrn_language_model lm = toy_model(&model, 1);
    CHECK_OK(ctx, new_identity(ctx, D, &id));
    CHECK_OK(ctx, dlrn_source_from_array(ctx, rows_x, NULL, N, D, 0, 1, &source));
    CHECK_OK(ctx, dlrn_evaluate(id, &cfg, &source, &lm, NULL, NULL, &m));
    CHECK(m.ce_diff == 0 && m.share_recovered == 1 && m.loss_zero != m.loss_original);
    CHECK(m.rows == N && m.variance_explained == 1 && m.tokens == T && m.documents == 3);
    model.flat = 1;
    const dlrn_dictionary *dicts[1] = {id};
    CHECK_OK(ctx, dlrn_loss_recovered(ctx, dicts, &lm, &m));
    CHECK(m.ce_diff == 0 && isnan(m.share_recovered));
    CHECK_CLOSE(m.loss_original, log(V), 1e-12);
    lm.sites = 2; /* one dictionary is all that dlrn_evaluate has */
    CHECK_STATUS(dlrn_evaluate(id, &cfg, &source, &lm, NULL, NULL, &m), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "dlrn_loss_recovered");
    dlrn_source_destroy(&source);
    dlrn_dictionary_destroy(id);
    dlrn_context_destroy(ctx);
}

/* What a model says when it is asked for the first, the second, the third time. */
typedef struct said_in_turn {
    double nats[3];
    int calls;
} said_in_turn;

static dlrn_status say_in_turn(void *user, const dlrn_edit *edit, double *nats, int64_t *tokens) {
    said_in_turn *m = (said_in_turn *)user;
    (void)edit;
    *nats = m->nats[m->calls++];
    *tokens = 7;
    return DLRN_OK;
}

/* Of what is lost without the activations, or gained; of nothing there is no share. */
TEST(the_share_that_is_recovered) {
    dlrn_context *ctx = open_context(1);
    dlrn_dictionary *ae = make_dictionary(ctx);
    const dlrn_dictionary *dicts[1] = {ae};
    said_in_turn models[3] = {{{1, 1.25, 2}, 0}, {{2, 1.75, 1}, 0}, {{1, 1.5, 1}, 0}};
    for (int i = 0; i < 3; i++) {
        const dlrn_language_model lm = {say_in_turn, NULL, &models[i], 1, 3};
        dlrn_metrics m;
        CHECK_OK(ctx, dlrn_loss_recovered(ctx, dicts, &lm, &m));
        CHECK(models[i].calls == 3 && m.tokens == 7 && m.documents == 3);
        CHECK(i < 2 ? m.share_recovered == 0.75 : isnan(m.share_recovered));
        CHECK(m.ce_diff == models[i].nats[1] - models[i].nats[0]);
    }
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

TEST(what_a_model_does_wrong_is_told) {
    dlrn_context *ctx = open_context(1);
    dlrn_dictionary *ae = make_dictionary(ctx);
    const dlrn_dictionary *dicts[1] = {ae};
    dlrn_metrics m;
    toy model;
    for (int call = 1; call <= 3; call++) {
        dlrn_language_model lm = toy_model(&model, 1);
        model.fail_at = call, model.why = "no such layer";
        CHECK_STATUS(dlrn_loss_recovered(ctx, dicts, &lm, &m), DLRN_ERR_CALLBACK);
        CHECK_STR(dlrn_error(ctx), "language model failed: no such layer");
        lm = toy_model(&model, 1);
        model.extra_at = call;
        CHECK_STATUS(dlrn_loss_recovered(ctx, dicts, &lm, &m), DLRN_ERR_CALLBACK);
        CHECK_STR(dlrn_error(ctx), " tokens as before, found ");
        lm = toy_model(&model, 1);
        model.lost_at = call;
        CHECK_STATUS(dlrn_loss_recovered(ctx, dicts, &lm, &m), DLRN_ERR_CALLBACK);
        CHECK_STR(dlrn_error(ctx), "the language model: expected a finite cross-entropy, found ");
        CHECK(isnan(m.share_recovered) && isnan(m.ce_diff));
    }
    dlrn_language_model wordless = toy_model(&model, 1);
    model.fail_at = 1, wordless.error = NULL;
    CHECK_STATUS(dlrn_loss_recovered(ctx, dicts, &wordless, &m), DLRN_ERR_CALLBACK);
    CHECK_STR(dlrn_error(ctx), "language model failed: a callback failed");
    for (int i = 0; i < 4; i++) {
        int wrong = i < 2 ? -1 : 1;
        dlrn_language_model lm = toy_model(&model, 1);
        lm.error = NULL; /* the edit's own text comes through */
        model.wrong_site = wrong,
        model.wrong_from = 2 + i % 2; /* the dictionary's edit, or that of the zeros */
        CHECK_STATUS(dlrn_loss_recovered(ctx, dicts, &lm, &m), DLRN_ERR_CALLBACK);
        CHECK_STR(dlrn_error(ctx), wrong < 0 ? "site -1 of 1" : "site 1 of 1");
    }
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    fill_rows();
    RUN(every_field_is_the_textbooks);
    RUN(batches_pieces_and_threads_do_not_change_a_bit);
    RUN(the_identity_loses_nothing);
    RUN(constant_columns_have_no_variance);
    RUN(zero_vectors_have_no_direction);
    RUN(one_row_and_no_rows);
    RUN(what_is_not_finite_is_named);
    RUN(dead_and_dense_are_counted);
    RUN(frequencies_fall_into_log_bins);
    RUN(rows_come_from_a_source);
    RUN(an_evaluation_that_is_stopped);
    RUN(an_evaluator_allocates_nothing_after_its_first_batches);
    RUN(what_a_source_does_wrong_is_told);
    RUN(a_configuration_out_of_range_is_refused);
    RUN(one_site_is_spliced);
    RUN(two_sites_are_spliced_at_once);
    RUN(the_identity_recovers_all_and_a_flat_model_nothing);
    RUN(the_share_that_is_recovered);
    RUN(what_a_model_does_wrong_is_told);
    return TEST_END();
}
