/* test_metrics.c - the streaming evaluation against the textbook's two-pass formulas in double, its
   edges, and the cross-entropy rows with toy models whose answer is computed here. */
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "tests/starve.h"
#include "tests/test.h"
#include <stddef.h>

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
    m.fired = NULL, m.layer = NULL; /* end with the evaluator, as in dlrn_evaluate */
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
    static const int64_t batch[] = {256, 1, 7, 64, 1000}, piece[] = {N, 1, 100, 3, N};
    /* 6 does not divide F: ranges of features differ, and end at features that are active */
    static const int threads[] = {1, 2, 3, 4, 6};
    dlrn_metrics first;
    for (int c = 0; c < 5; c++) {
        dlrn_context *ctx = open_context(threads[c]);
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

/* ---- SAELens and SAEBench ---- */

/* Their figures again, by plain loops. Batches of `size` rows, the last may be shorter. */
static void book_batches(dlrn_metrics *m, const float *y, const float *x_hat, int64_t n,
                         int64_t size) {
    double bias = 0, legacy = 0;
    int64_t batches = 0;
    for (int64_t first = 0; first < n; first += size, batches++) {
        int64_t end = first + size < n ? first + size : n;
        double mean[D] = {0}, norm2 = 0, dot = 0;
        for (int64_t i = first * D; i < end * D; i++) {
            mean[i % D] += (double)y[i] / (double)(end - first);
            norm2 += pow((double)x_hat[i], 2), dot += (double)x_hat[i] * (double)y[i];
        }
        for (int64_t i = first; i < end; i++) {
            double had = 0, lost = 0;
            for (int64_t j = 0; j < D; j++) {
                had += pow((double)y[i * D + j] - mean[j], 2);
                lost += pow((double)y[i * D + j] - (double)x_hat[i * D + j], 2);
            }
            legacy += (1 - lost / had) / (double)n;
        }
        bias += norm2 / dot;
    }
    m->saelens.explained_variance_legacy = legacy;
    m->saelens.relative_reconstruction_bias = bias / (double)batches;
}

static void book_saelens(dlrn_metrics *m, const float *y, const float *x_hat, const float *f,
                         int64_t n) {
    double had = 0, published = 0, squares = 0, count = (double)n;
    for (int64_t j = 0; j < D; j++) {
        double mean = 0, square = 0;
        for (int64_t i = 0; i < n; i++) {
            mean += (double)y[i * D + j] / count;
            square += pow((double)y[i * D + j], 2) / count;
        }
        had += square - mean * mean, published += square / D, squares += square;
    }
    for (int64_t i = 0; i < n; i++) {
        double yy = 0, hh = 0;
        for (int64_t j = i * D; j < (i + 1) * D; j++) {
            yy += pow((double)y[j], 2), hh += pow((double)x_hat[j], 2);
            m->saelens.mse += pow((double)y[j] - (double)x_hat[j], 2) / count;
        }
        m->saelens.l2_norm_in += sqrt(yy) / count, m->saelens.l2_norm_out += sqrt(hh) / count;
        for (int64_t j = i * F; j < (i + 1) * F; j++)
            m->saelens.l1 += fabs((double)f[j]) / count, m->saelens.l0 += (f[j] != 0) / count;
    }
    m->saelens.explained_variance = 1 - m->saelens.mse / had;
    m->saebench.saebench_explained_variance =
        1 - m->saelens.mse / (squares - published * published);
}

static void book_densities(dlrn_metrics *m, const float *f, int64_t n) {
    double over[2] = {0, 0}, part[2] = {0, 0}, sum = 0;
    static const double bound[2] = {0.01, 0.1};
    for (int64_t j = 0; j < F; j++) {
        double density = 0;
        for (int64_t i = 0; i < n; i++) density += f[i * F + j] != 0;
        density /= (double)n, sum += density;
        for (int b = 0; b < 2; b++)
            if (density > bound[b]) over[b] += 1.0 / F, part[b] += density;
        m->saebench.frac_alive += (density > 0) / (double)F;
    }
    m->saebench.freq_over_1_percent = over[0], m->saebench.freq_over_10_percent = over[1];
    m->saebench.normalized_freq_over_1_percent = part[0] / sum;
    m->saebench.normalized_freq_over_10_percent = part[1] / sum;
}

typedef struct named_figure {
    const char *name;
    size_t at; /* offset in dlrn_metrics */
} named_figure;

#define LENS(name)                                                                                 \
    { #name, offsetof(dlrn_metrics, saelens.name) }
#define BENCH(name)                                                                                \
    { #name, offsetof(dlrn_metrics, saebench.name) }
static const named_figure lens_figures[] = {LENS(l0),
                                            LENS(l1),
                                            LENS(l2_norm_in),
                                            LENS(mse),
                                            LENS(cossim),
                                            LENS(l2_norm_out),
                                            LENS(l2_ratio),
                                            LENS(explained_variance),
                                            LENS(relative_reconstruction_bias),
                                            LENS(explained_variance_legacy)};
static const named_figure bench_figures[] = {
    BENCH(frac_alive), BENCH(freq_over_1_percent), BENCH(freq_over_10_percent),
    BENCH(normalized_freq_over_1_percent), BENCH(normalized_freq_over_10_percent)};
enum { LENS_FIGURES = 10, BENCH_FIGURES = 5 };

static double figure_of(const dlrn_metrics *m, named_figure f) {
    double value;
    memcpy(&value, (const char *)m + f.at, sizeof value);
    return value;
}

/* By the rows of a batch of SAELens; the formulas of --compat do not touch these figures. */
TEST(figures_of_saelens_and_saebench_are_the_textbooks) {
    static float f[N * F], x_hat[N * D];
    dlrn_context *ctx = open_context(1);
    dlrn_dictionary *ae = make_dictionary(ctx);
    CHECK_OK(ctx, dlrn_encode(ae, rows_x, N, f));
    CHECK_OK(ctx, dlrn_decode(ae, f, N, x_hat));
    for (int64_t size = 1; size <= 2 * N; size += 64) {
        const float *y = size % 3 ? rows_y : rows_x;
        dlrn_eval_config cfg = config(DLRN_SPARSITY_ENTROPY, size % 2, 30);
        dlrn_metrics m, book_;
        memset(&book_, 0, sizeof book_);
        cfg.saelens_batch = size + 6;
        m = measure(ae, &cfg, rows_x, y, N, 99);
        book_batches(&book_, y, x_hat, N, size + 6);
        book_saelens(&book_, y, x_hat, f, N);
        book_densities(&book_, f, N);
        book_.saelens.l2_ratio = m.l2_ratio, book_.saelens.cossim = m.cosine;
        for (int i = 0; i < LENS_FIGURES + BENCH_FIGURES; i++) {
            const named_figure g =
                i < LENS_FIGURES ? lens_figures[i] : bench_figures[i - LENS_FIGURES];
            CHECK_CLOSE(figure_of(&m, g), figure_of(&book_, g), 1e-11);
        }
        CHECK_CLOSE(m.saebench.saebench_explained_variance,
                    book_.saebench.saebench_explained_variance, 1e-11);
        CHECK(m.saelens.l0 == m.l0 && m.layers == 1 && !m.layer);
        cfg.saelens_batch = 0;
        m = measure(ae, &cfg, rows_x, y, N, 99);
        CHECK(isnan(m.saelens.explained_variance_legacy));
        CHECK(m.saelens.relative_reconstruction_bias == m.relative_reconstruction_bias);
    }
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

/* To finish changes nothing: a batch that was not complete goes on. */
TEST(a_batch_of_saelens_goes_on_after_finish) {
    dlrn_context *ctx = open_context(1);
    dlrn_dictionary *ae = make_dictionary(ctx);
    dlrn_eval_config cfg = config(DLRN_SPARSITY_L1, 0, 64);
    dlrn_evaluator *e = NULL;
    dlrn_metrics m, some, all;
    cfg.saelens_batch = 100;
    all = measure(ae, &cfg, rows_x, NULL, N, N);
    CHECK_OK(ctx, dlrn_evaluator_create(ae, &cfg, &e));
    CHECK_OK(ctx, dlrn_evaluator_add(e, rows_x, NULL, 130));
    CHECK_OK(ctx, dlrn_evaluator_finish(e, &some));
    CHECK_OK(ctx, dlrn_evaluator_add(e, rows_x + 130 * D, NULL, N - 130));
    CHECK_OK(ctx, dlrn_evaluator_finish(e, &m));
    m.fired = NULL;
    CHECK(!memcmp(&m, &all, sizeof m));
    some.fired = NULL;
    all = measure(ae, &cfg, rows_x, NULL, 130, 130);
    CHECK(!memcmp(&some, &all, sizeof m));
    dlrn_evaluator_destroy(e);
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

/* Negative features are active; those that are 0 are not. */
TEST(negative_features_count) {
    static const float x[4 * 3] = {-1, 0, 2, -3, 0, 0, 0, 0, 0, 1, 0, -1};
    dlrn_context *ctx = open_context(1);
    dlrn_dictionary *id = NULL;
    dlrn_eval_config cfg = config(DLRN_SPARSITY_L1, 0, 2);
    CHECK_OK(ctx, new_identity(ctx, 3, &id));
    dlrn_metrics m = measure(id, &cfg, x, NULL, 4, 3);
    CHECK(m.l0 == 1.25 && m.saelens.l0 == 1.25 && m.saelens.l1 == 2 && m.sparsity_loss == 2);
    CHECK(m.dead == 1 && m.saebench.frac_alive == m.share_alive && m.saelens.mse == 0);
    CHECK_CLOSE(m.share_alive, 2.0 / 3.0, 1e-12);
    dlrn_dictionary_destroy(id);
    dlrn_context_destroy(ctx);
}

/* ---- Their own results ---- */

/* The rows of a case; without each prompt's first token if `ignored`. */
static int64_t golden_rows(dlrn_context *ctx, dlrn_archive *file, int ignored, float *x) {
    static float all[384 * 16];
    int64_t n = 0;
    CHECK_OK(ctx, dlrn_archive_read(file, dlrn_archive_find(file, "x"), 0, -1, all));
    for (int i = 0; i < 384; i++)
        if (!ignored || i % 16) memcpy(x + n++ * 16, all + i * 16, 16 * sizeof *x);
    return n;
}

static void golden_values(dlrn_context *ctx, dlrn_archive *file, const char *group,
                          const char *name, float *to, int64_t n) {
    char full[96];
    snprintf(full, sizeof full, "%s%s%s", group, *group ? "." : "", name);
    int64_t at = dlrn_archive_find(file, full);
    CHECK_MSG(at >= 0 && dlrn_archive_tensor(file, at)->numel == n, "%s is missing", full);
    CHECK_OK(ctx, dlrn_archive_read(file, at, 0, -1, to));
}

static double golden_value(dlrn_context *ctx, dlrn_archive *file, const char *group,
                           const char *name) {
    float value;
    golden_values(ctx, file, group, name, &value, 1);
    return (double)value;
}

static dlrn_dictionary *golden_dictionary(dlrn_context *ctx, dlrn_archive *file) {
    static const int roles[] = {DLRN_ENCODER, DLRN_ENCODER_BIAS, DLRN_DECODER, DLRN_OUTPUT_BIAS,
                                DLRN_THRESHOLD};
    static const int64_t numel[] = {512, 32, 512, 16, 32};
    dlrn_dictionary_desc desc = {"JumpReluAutoEncoder", 16, 0, 32, 0, 0, 0};
    dlrn_dictionary *dict = NULL;
    CHECK_OK(ctx, dlrn_dictionary_create(ctx, &desc, &dict));
    for (int i = 0; i < 5; i++)
        golden_values(ctx, file, "", dlrn_name(DLRN_NAMES_ROLE, roles[i]), dict->param[roles[i]],
                      numel[i]);
    dict->formula.center = DLRN_CENTER_OUTPUT_BIAS; /* apply_b_dec_to_input */
    dlrn_dictionary_changed(dict);
    return dict;
}

/* What SAEBench has wrong is made right: its mse is divided by the rows of a batch once more. */
static void check_golden_case(dlrn_context *ctx, dlrn_archive *file, const dlrn_dictionary *dict,
                              int c) {
    static const char *const cases[] = {"sae_lens", "sae_lens_ignore0", "sae_bench",
                                        "sae_bench_ignore0"};
    static float x[384 * 16], density[32];
    int64_t n = golden_rows(ctx, file, c % 2, x);
    dlrn_eval_config cfg = dlrn_eval_defaults();
    dlrn_evaluator *e = NULL;
    dlrn_metrics m;
    cfg.saelens_batch = n / 3;
    CHECK_OK(ctx, dlrn_evaluator_create(dict, &cfg, &e));
    CHECK_OK(ctx, dlrn_evaluator_add(e, x, NULL, n));
    CHECK_OK(ctx, dlrn_evaluator_finish(e, &m));
    for (int i = 0; i < LENS_FIGURES; i++) {
        const char *name = lens_figures[i].name;
        double theirs = golden_value(ctx, file, cases[c], name),
               ours = figure_of(&m, lens_figures[i]);
        if (c >= 2 && !strcmp(name, "mse")) ours /= (double)n / 3;
        if (c >= 2 && !strcmp(name, "explained_variance"))
            ours = m.saebench.saebench_explained_variance;
        CHECK_MSG(fabs(ours - theirs) <= 1e-6 * fabs(theirs), "%s: %s: %.9g, expected %.9g",
                  cases[c], name, ours, theirs);
    }
    golden_values(ctx, file, cases[c], "density", density, 32);
    for (int j = 0; j < 32; j++)
        CHECK_CLOSE((double)m.fired[j] / (double)n, (double)density[j], 1e-7);
    for (int i = 0; c == 2 && i < BENCH_FIGURES; i++)
        CHECK_CLOSE(figure_of(&m, bench_figures[i]),
                    golden_value(ctx, file, "misc", bench_figures[i].name), 1e-6);
    dlrn_evaluator_destroy(e);
}

TEST(figures_are_those_of_saelens_and_saebench) {
    dlrn_context *ctx = open_context(1);
    dlrn_archive *file = NULL;
    float each[DLRN_WEIGHT_COUNT][32], theirs[32];
    double mean[DLRN_WEIGHT_COUNT];
    CHECK_OK(ctx, dlrn_archive_open(ctx, "tests/golden/metrics.npz", &file));
    dlrn_dictionary *dict = golden_dictionary(ctx, file);
    for (int c = 0; c < 4; c++) check_golden_case(ctx, file, dict, c);
    CHECK_OK(ctx, dlrn_weight_figures(dict, mean, each[0]));
    for (int i = 0; i < DLRN_WEIGHT_COUNT; i++) {
        if (i == DLRN_WEIGHT_DECODER_NORM) continue; /* SAEBench has none */
        golden_values(ctx, file, "weights", dlrn_name(DLRN_NAMES_WEIGHT, i), theirs, 32);
        for (int j = 0; j < 32; j++) CHECK(fabs((double)each[i][j] - (double)theirs[j]) < 1e-6);
    }
    CHECK_CLOSE(mean[DLRN_WEIGHT_MAX_ENCODER],
                golden_value(ctx, file, "misc", "average_max_encoder_cosine_sim"), 1e-6);
    CHECK_CLOSE(mean[DLRN_WEIGHT_MAX_DECODER],
                golden_value(ctx, file, "misc", "average_max_decoder_cosine_sim"), 1e-6);
    dlrn_dictionary_destroy(dict);
    dlrn_archive_close(file);
    dlrn_context_destroy(ctx);
}

/* ---- Layers ---- */

/* The rows of nine numbers are three layers of three. The layers' figures add up to the whole. */
TEST(figures_by_layer) {
    enum { L = 3, w = D / L };
    dlrn_context *ctx = open_context(1);
    dlrn_dictionary *dict = make_relu(ctx, D);
    dlrn_eval_config cfg = config(DLRN_SPARSITY_L1, 0, 50);
    dlrn_source source;
    for (int own = 0; own < 2; own++) {
        dlrn_evaluator *e = NULL;
        dlrn_metrics m;
        double mse = 0, l0 = 0;
        dict->layers = L, dict->feature_layers = own ? L : 1;
        CHECK_OK(ctx, dlrn_evaluator_create(dict, &cfg, &e));
        CHECK_OK(ctx, dlrn_evaluator_add(e, rows_x, rows_y, N));
        CHECK_OK(ctx, dlrn_evaluator_finish(e, &m));
        CHECK(m.layers == L && m.layer);
        for (int l = 0; l < L; l++) {
            double had = 0, lost = 0, square = 0, active = 0;
            for (int j = l * w; j < (l + 1) * w; j++) {
                static float x_hat[N * D];
                for (int i = j; i < N * D; i += D) {
                    x_hat[i] = rows_x[i] > 0 ? rows_x[i] : 0;
                    square += pow((double)rows_y[i] - (double)x_hat[i], 2) / N;
                    active += (rows_x[i] > 0) / (double)N;
                }
                had += column_variance(rows_y, NULL, N, D, j);
                lost += column_variance(rows_y, x_hat, N, D, j);
            }
            CHECK_CLOSE(m.layer[l].mse_loss, square, 1e-12);
            CHECK_CLOSE(m.layer[l].variance_explained, 1 - lost / had, 1e-12);
            CHECK_CLOSE(m.layer[l].explained_variance, 1 - square / (had * (N - 1) / N), 1e-12);
            CHECK(own ? fabs(m.layer[l].l0 - active) < 1e-12 && m.layer[l].share_alive == 1
                      : isnan(m.layer[l].l0) && isnan(m.layer[l].share_alive));
            mse += m.layer[l].mse_loss, l0 += m.layer[l].l0;
        }
        CHECK_CLOSE(mse, m.saelens.mse, 1e-12);
        if (own) CHECK_CLOSE(l0, m.l0, 1e-12);
        dlrn_evaluator_destroy(e);
        CHECK_OK(ctx, dlrn_source_from_array(ctx, rows_x, NULL, N, D, 0, 1, &source));
        CHECK_OK(ctx, dlrn_evaluate(dict, &cfg, &source, NULL, NULL, NULL, &m));
        CHECK(m.layers == L && !m.layer); /* ended with its evaluator */
        dlrn_source_destroy(&source);
    }
    dlrn_dictionary_destroy(dict);
    dlrn_context_destroy(ctx);
}

/* ---- Weights ---- */

enum { PAIRS = 1100, WIDTH = 5 }; /* more than two squares of pairs */

static double cosine_of(const float *a, const float *b) {
    double aa = 0, bb = 0, ab = 0;
    for (int j = 0; j < WIDTH; j++) {
        aa += pow((double)a[j], 2), bb += pow((double)b[j], 2);
        ab += (double)a[j] * (double)b[j];
    }
    return ab / sqrt(aa) / sqrt(bb);
}

/* Row i is compared with all others that are not 0. */
static double nearest(const float *rows, int i) {
    double best = -HUGE_VAL;
    for (int j = 0; j < PAIRS; j++) {
        double cosine = cosine_of(rows + i * WIDTH, rows + j * WIDTH);
        if (j != i && cosine > best) best = cosine;
    }
    return best;
}

static dlrn_dictionary *weights_dictionary(dlrn_context *ctx, uint64_t seed) {
    dlrn_dictionary *ae = NULL;
    CHECK_OK(ctx, new_autoencoder(ctx, WIDTH, PAIRS, seed, &ae));
    memset(ae->param[DLRN_DECODER] + 700 * WIDTH, 0, WIDTH * sizeof(float)); /* no direction */
    dlrn_dictionary_changed(ae);
    return ae;
}

TEST(figures_of_the_weights_are_the_textbooks) {
    static float each[DLRN_WEIGHT_COUNT][PAIRS];
    dlrn_context *ctx = open_context(2);
    dlrn_dictionary *ae = weights_dictionary(ctx, 5);
    const float *encoder = ae->param[DLRN_ENCODER], *atoms = ae->param[DLRN_DECODER];
    double mean[DLRN_WEIGHT_COUNT], again[DLRN_WEIGHT_COUNT], sum = 0;
    CHECK_OK(ctx, dlrn_weight_figures(ae, mean, each[0]));
    for (int i = 0; i < PAIRS; i++) {
        const float *e = encoder + i * WIDTH, *a = atoms + i * WIDTH;
        double norm = 0;
        for (int j = 0; j < WIDTH; j++) norm += pow((double)e[j], 2);
        CHECK_CLOSE((double)each[DLRN_WEIGHT_ENCODER_NORM][i], sqrt(norm), 1e-6);
        CHECK_CLOSE((double)each[DLRN_WEIGHT_DECODER_NORM][i], i == 700 ? 0 : 1, 1e-6);
        CHECK_CLOSE((double)each[DLRN_WEIGHT_MAX_ENCODER][i], nearest(encoder, i), 1e-6);
        sum += (double)each[DLRN_WEIGHT_MAX_ENCODER][i] / PAIRS;
        if (i == 700) continue;
        CHECK(fabs((double)each[DLRN_WEIGHT_COSINE][i] - cosine_of(e, a)) < 1e-6);
        CHECK_CLOSE((double)each[DLRN_WEIGHT_MAX_DECODER][i], nearest(atoms, i), 1e-6);
    }
    CHECK(isnan(each[DLRN_WEIGHT_COSINE][700]) && isnan(each[DLRN_WEIGHT_MAX_DECODER][700]));
    CHECK_CLOSE(mean[DLRN_WEIGHT_MAX_ENCODER], sum, 1e-12);
    CHECK_CLOSE(mean[DLRN_WEIGHT_DECODER_NORM], (PAIRS - 1.0) / PAIRS, 1e-6);
    CHECK(mean[DLRN_WEIGHT_MAX_DECODER] > 0.5); /* the feature without direction is left out */
    CHECK_OK(ctx, dlrn_weight_figures(ae, again, NULL));
    CHECK(!memcmp(mean, again, sizeof mean));
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

TEST(weights_that_are_not_there_have_no_figures) {
    float each[DLRN_WEIGHT_COUNT][D];
    double mean[DLRN_WEIGHT_COUNT];
    dlrn_context *ctx = open_context(1);
    dlrn_dictionary *id = NULL, *wide = NULL;
    dlrn_dictionary_desc desc = {NULL, 4, 6, 1, 0, 3, 0}; /* one feature; another width */
    CHECK_OK(ctx, new_identity(ctx, D, &id));
    CHECK_OK(ctx, dlrn_weight_figures(id, mean, each[0]));
    for (int i = 0; i < DLRN_WEIGHT_COUNT; i++)
        CHECK(isnan(mean[i]) && isnan(each[i][0]) && isnan(each[i][D - 1]));
    CHECK_OK(ctx, dlrn_dictionary_create(ctx, &desc, &wide));
    CHECK_OK(ctx, dlrn_weight_figures(wide, mean, NULL));
    CHECK(mean[DLRN_WEIGHT_ENCODER_NORM] > 0 && isnan(mean[DLRN_WEIGHT_COSINE]) &&
          isnan(mean[DLRN_WEIGHT_MAX_ENCODER]) && isnan(mean[DLRN_WEIGHT_MAX_DECODER]));
    CHECK_CLOSE(mean[DLRN_WEIGHT_DECODER_NORM], 1, 1e-6);
    dlrn_dictionary_destroy(wide);
    dlrn_dictionary_destroy(id);
    dlrn_context_destroy(ctx);
}

/* Two dictionaries as the parts of one: each part's features stand where it says. */
TEST(figures_of_the_weights_of_parts) {
    static float each[DLRN_WEIGHT_COUNT][2 * PAIRS], one[DLRN_WEIGHT_COUNT][PAIRS];
    dlrn_context *ctx = open_context(1);
    dlrn_dictionary *ae[2] = {weights_dictionary(ctx, 5), weights_dictionary(ctx, 6)};
    dlrn_part part[2] = {{ae[0], 0, 0, PAIRS}, {ae[1], WIDTH, WIDTH, 0}};
    double mean[DLRN_WEIGHT_COUNT];
    dlrn_dictionary whole = *ae[0];
    memset(whole.param, 0, sizeof whole.param);
    whole.features = 2 * PAIRS, whole.n_parts = 2, whole.part = part;
    CHECK_OK(ctx, dlrn_weight_figures(&whole, mean, each[0]));
    for (int p = 0; p < 2; p++) {
        CHECK_OK(ctx, dlrn_weight_figures(ae[p], mean, one[0]));
        for (int i = 0; i < DLRN_WEIGHT_COUNT; i++)
            CHECK(!memcmp(each[i] + part[p].feature_at, one[i], sizeof one[i]));
    }
    dlrn_dictionary_destroy(ae[0]);
    dlrn_dictionary_destroy(ae[1]);
    dlrn_context_destroy(ctx);
}

static int stop_now(void *user) {
    (void)user;
    return 1;
}

/* Without memory for any one of its blocks; and where the host wants it to end. */
TEST(weights_and_batches_without_memory) {
    dlrn_context_config how = starve_config(1);
    dlrn_context *ctx = NULL;
    double mean[DLRN_WEIGHT_COUNT];
    dlrn_eval_config cfg = dlrn_eval_defaults();
    int fails = 0;
    how.stop = stop_now;
    CHECK_STATUS(dlrn_context_create(&how, &ctx), DLRN_OK);
    dlrn_dictionary *ae = make_relu(ctx, D);
    ae->layers = 3, cfg.saelens_batch = 10;
    for (dlrn_status s = DLRN_ERR_MEMORY; s != DLRN_STOPPED; fails++) {
        starve.left = fails;
        s = dlrn_weight_figures(ae, mean, NULL);
        CHECK(s == DLRN_ERR_MEMORY || s == DLRN_STOPPED);
    }
    CHECK(fails > 2);
    fails = 0;
    for (dlrn_status s = DLRN_ERR_MEMORY; s != DLRN_OK; fails++) {
        dlrn_evaluator *e = NULL;
        starve.left = fails;
        s = dlrn_evaluator_create(ae, &cfg, &e);
        CHECK(s == DLRN_OK || (s == DLRN_ERR_MEMORY && !e));
        dlrn_evaluator_destroy(e);
    }
    CHECK(fails > 6);
    starve.left = -1;
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
    CHECK(starve.live == 0);
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
    dlrn_source source = {D, 0, odd_read, NULL, NULL, odd_error, NULL, NULL, 0, 0, 0};
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
    dlrn_source wordless = {D, 0, odd_read, NULL, NULL, NULL, NULL, &torn, 0, 0, 0};
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
    CHECK(cfg.rows == 8192 && cfg.batch_size == 2048 && cfg.sparsity == DLRN_SPARSITY_L1 &&
          !cfg.compat);
    cfg.batch_size = 0;
    CHECK_STATUS(dlrn_evaluator_create(ae, &cfg, &e), DLRN_ERR_ARGUMENT);
    CHECK(!e);
    cfg.batch_size = 1, cfg.rows = -2;
    CHECK_STATUS(dlrn_evaluator_create(ae, &cfg, &e), DLRN_ERR_ARGUMENT);
    cfg.rows = 1, cfg.batch_size = INT64_MAX / 2;
    CHECK_STATUS(dlrn_evaluator_create(ae, &cfg, &e), DLRN_ERR_MEMORY);
    CHECK(!e);
    cfg.batch_size = 1, cfg.saelens_batch = -1;
    CHECK_STATUS(dlrn_evaluator_create(ae, &cfg, &e), DLRN_ERR_ARGUMENT);
    for (int64_t rows = INT64_MAX; rows > INT64_MAX / 1000; rows /= D) {
        cfg.saelens_batch = rows;
        CHECK_STATUS(dlrn_evaluator_create(ae, &cfg, &e), DLRN_ERR_MEMORY);
        CHECK(!e);
    }
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
    RUN(figures_of_saelens_and_saebench_are_the_textbooks);
    RUN(a_batch_of_saelens_goes_on_after_finish);
    RUN(negative_features_count);
    RUN(figures_are_those_of_saelens_and_saebench);
    RUN(figures_by_layer);
    RUN(figures_of_the_weights_are_the_textbooks);
    RUN(weights_that_are_not_there_have_no_figures);
    RUN(figures_of_the_weights_of_parts);
    RUN(weights_and_batches_without_memory);
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
