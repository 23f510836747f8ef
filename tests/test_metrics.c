/* test_metrics.c - the streaming evaluation against the textbook's two-pass formulas in double, its edges, and the
   cross-entropy rows with toy models whose answer is computed here. */
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "tests/test.h"

enum { D = 9, F = 70, N = 257 };

static float rows_x[N * D], rows_y[N * D];

/* ---- Scenes ---- */

static dlrn_context *open_context(int threads) {
    dlrn_context_config cfg = dlrn_context_defaults();
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
    CHECK_OK(ctx, dlrn_autoencoder_create(ctx, D, F, 4, &ae));
    for (int j = 0; j < D; j++) ae->bias[j] = 0.1f * (float)j;
    for (int f = 0; f < F; f++) ae->encoder_bias[f] += f % 7 == 0 ? -9.0f : f % 5 == 0 ? -1.0f : 0.0f;
    dlrn_dictionary_changed(ae);
    return ae;
}

static dlrn_eval_config config(dlrn_sparsity sparsity, int compat, int64_t batch_size) {
    dlrn_eval_config cfg = dlrn_eval_defaults();
    cfg.sparsity = sparsity, cfg.compat = compat, cfg.batch_size = batch_size;
    return cfg;
}

/* All rows, `piece` of them a call. */
static dlrn_metrics measure(const dlrn_dictionary *dict, const dlrn_eval_config *cfg, const float *x, const float *y,
                            int64_t n, int64_t piece) {
    dlrn_evaluator *e = NULL;
    dlrn_metrics m;
    int64_t d = dict->activation_dim;
    CHECK_OK(dict->ctx, dlrn_evaluator_create(dict, cfg, &e));
    for (int64_t i = 0; i < n; i += piece)
        CHECK_OK(dict->ctx, dlrn_evaluator_add(e, x + i * d, y ? y + i * d : NULL, n - i < piece ? n - i : piece));
    CHECK_OK(dict->ctx, dlrn_evaluator_finish(e, &m));
    dlrn_evaluator_destroy(e);
    return m;
}

/* ---- The textbook: every field again, two passes, over the dense features ---- */

/* Unbiased variance of column j of a [n][d]; b (or NULL) is subtracted first. */
static double column_variance(const float *a, const float *b, int64_t n, int64_t d, int64_t j) {
    double mean = 0, sum = 0;
    for (int64_t i = 0; i < n; i++) mean += ((double)a[i * d + j] - (b ? (double)b[i * d + j] : 0)) / (double)n;
    for (int64_t i = 0; i < n; i++) sum += pow((double)a[i * d + j] - (b ? (double)b[i * d + j] : 0) - mean, 2);
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

static void book_rows(dlrn_metrics *m, const float *y, const float *x_hat, const float *f, int64_t n, int entropy) {
    double norm2 = 0, dot = 0, count = (double)n;
    for (int64_t i = 0; i < n; i++) {
        double yy = 0, hh = 0, yh = 0, rr = 0, l1 = 0;
        for (int64_t j = i * D; j < (i + 1) * D; j++) {
            double a = (double)y[j], h = (double)x_hat[j];
            yy += a * a, hh += h * h, yh += a * h, rr += (a - h) * (a - h);
        }
        for (int64_t j = i * F; j < (i + 1) * F; j++) l1 += (double)f[j], m->l0 += (f[j] > 0) / count;
        m->mse_loss += rr / count, m->l2_loss += sqrt(rr) / count;
        m->sparsity_loss += (entropy ? row_entropy(f + i * F, F) : l1) / count;
        m->cosine += yh / (sqrt(yy) * sqrt(hh)) / count, m->l2_ratio += sqrt(hh) / sqrt(yy) / count;
        norm2 += hh, dot += yh;
    }
    m->relative_reconstruction_bias = norm2 / dot;
}

static void book_columns(dlrn_metrics *m, const float *y, const float *x_hat, const float *f, int64_t n) {
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
    m->percent_alive = 1 - (double)m->dead / F;
}

static dlrn_metrics book(const dlrn_dictionary *ae, const float *x, const float *y, int64_t n, int entropy) {
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
    CHECK_CLOSE(a->percent_alive, b->percent_alive, 1e-12);
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
        dlrn_eval_config cfg = config(entropy ? DLRN_SPARSITY_ENTROPY : DLRN_SPARSITY_L1, compat, 100);
        dlrn_metrics ours = measure(ae, &cfg, rows_x, y, N, N), theirs = book(ae, rows_x, y ? y : rows_x, N, entropy);
        if (compat) theirs.mse_loss = theirs.l2_loss * theirs.l2_loss;
        CHECK(ours.dead >= F / 7 && ours.dense > 0 && ours.dense < F - ours.dead);
        check_equal(&ours, &theirs);
        CHECK(isnan(ours.loss_original) && isnan(ours.percent_recovered) && isnan(ours.ce_diff) && !ours.tokens);
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
        CHECK_MSG(!memcmp(&m, &first, sizeof m), "batches of %d, pieces of %d", (int)batch[c], (int)piece[c]);
        dlrn_dictionary_destroy(ae);
        dlrn_context_destroy(ctx);
    }
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    fill_rows();
    RUN(every_field_is_the_textbooks);
    RUN(batches_pieces_and_threads_do_not_change_a_bit);
    return TEST_END();
}
