/* test_trainer.c - the step against a plain double-precision loss and its finite differences; the schedules, the
   counters, resampling, and the same bits for any panels, threads and kernels. */
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "tests/test.h"

enum { D = 7, F = 100, N = 13 };

static float rows_x[N * D], rows_y[N * D];

/* ---- The reference: one loss, in double, written for reading ---- */

typedef struct reference {
    double bias[D], we[F][D], be[F], wd[F][D]; /* parameters */
    dlrn_loss loss;
    dlrn_sparsity sparsity;
    double penalty;
    unsigned char dead[F];          /* which have ghost gradients      */
    double ghost_r[N][D];           /* constants of the ghost term ... */
    double ghost_s[N], ghost_ratio; /* ... taken at the starting point */
    double mse, sparse, ghost;      /* the terms, without factors      */
} reference;

static void reference_ghost_x(const reference *r, const double *pre, double *out) {
    for (int c = 0; c < D; c++) out[c] = 0;
    for (int j = 0; j < F; j++)
        for (int c = 0; c < D && r->dead[j]; c++) out[c] += exp(pre[j]) * r->wd[j][c];
}

static double reference_sparse(const reference *r, const double *f) {
    double sum = 0, entropy = 0;
    for (int j = 0; j < F; j++) sum += f[j];
    if (r->sparsity == DLRN_SPARSITY_L1) return sum;
    for (int j = 0; j < F; j++) entropy -= f[j] / (sum + 1e-8) * log(f[j] / (sum + 1e-8) + 1e-8);
    return sum > 0 ? entropy : 0;
}

/* The whole loss; with `freeze` the ghost term's constants are taken here. */
static double reference_loss(reference *r, const float *x, const float *y, int freeze) {
    static double residual[N][D], shadow[N][D];
    r->mse = r->sparse = r->ghost = 0;
    for (int i = 0; i < N; i++) {
        double pre[F], f[F], square = 0;
        for (int j = 0; j < F; j++) {
            pre[j] = r->be[j];
            for (int c = 0; c < D; c++) pre[j] += r->we[j][c] * ((double)x[i * D + c] - r->bias[c]);
            f[j] = pre[j] > 0 ? pre[j] : 0;
        }
        for (int c = 0; c < D; c++) {
            double x_hat = r->bias[c];
            for (int j = 0; j < F; j++) x_hat += f[j] * r->wd[j][c];
            residual[i][c] = (double)y[i * D + c] - x_hat;
            square += residual[i][c] * residual[i][c];
        }
        r->mse += (r->loss == DLRN_LOSS_NORM ? sqrt(square) : square) / N;
        r->sparse += reference_sparse(r, f) / N;
        reference_ghost_x(r, pre, shadow[i]);
    }
    int any = 0;
    for (int j = 0; j < F; j++) any |= r->dead[j];
    if (any && freeze) {
        for (int i = 0; i < N; i++) {
            double a = 0, b = 0;
            for (int c = 0; c < D; c++) {
                r->ghost_r[i][c] = residual[i][c];
                a += residual[i][c] * residual[i][c];
                b += shadow[i][c] * shadow[i][c];
            }
            r->ghost_s[i] = sqrt(a) / (2 * sqrt(b) + 1e-8);
        }
    }
    for (int i = 0; any && i < N; i++) {
        double square = 0;
        for (int c = 0; c < D; c++) square += pow(r->ghost_r[i][c] - r->ghost_s[i] * shadow[i][c], 2);
        r->ghost += sqrt(square) / N;
    }
    if (any && freeze) r->ghost_ratio = r->mse / (r->ghost + 1e-8);
    return r->mse + r->penalty * r->sparse + (any ? r->ghost * r->ghost_ratio : 0);
}

/* Central difference of the loss by one parameter. */
static double difference(reference *r, const float *x, const float *y, double *at) {
    double keep = *at, h = 1e-5;
    *at = keep + h;
    double up = reference_loss(r, x, y, 0);
    *at = keep - h;
    double down = reference_loss(r, x, y, 0);
    *at = keep;
    return (up - down) / (2 * h);
}

/* ---- Scenes ---- */

static void fill_rows(void) {
    dlrn_rng rng = {5, 0, 0};
    for (int i = 0; i < N * D; i++) {
        rows_x[i] = dlrn_rng_normal(&rng);
        rows_y[i] = 0.5f * rows_x[i] + dlrn_rng_normal(&rng);
    }
}

static dlrn_context *open_context(const char *kernels, int threads) {
    dlrn_context_config cfg = dlrn_context_defaults();
    dlrn_context *ctx = NULL;
    cfg.kernels = kernels;
    cfg.threads = threads;
    CHECK_STATUS(dlrn_context_create(&cfg, &ctx), DLRN_OK);
    return ctx;
}

static dlrn_train_config small_config(void) {
    dlrn_train_config cfg = dlrn_train_defaults();
    cfg.activation_dim = D;
    cfg.dict_size = F;
    cfg.sparsity_penalty = 0.1;
    cfg.warmup_steps = 0;
    cfg.log_steps = -1;
    cfg.seed = 3;
    return cfg;
}

/* A trainer whose features 10, 11, 50 and 99 fire on none of the rows and have been silent for 20 steps. */
static dlrn_trainer *make_trainer(dlrn_context *ctx, const dlrn_train_config *cfg) {
    static const int dead[] = {10, 11, 50, 99};
    dlrn_trainer *t = NULL;
    CHECK_OK(ctx, dlrn_trainer_create(ctx, cfg, NULL, NULL, &t));
    dlrn_dictionary *ae = dlrn_trainer_dictionary(t);
    dlrn_rng rng = {77, 0, 0};
    for (int c = 0; c < D; c++) ae->bias[c] = 0.2f * dlrn_rng_normal(&rng);
    for (int p = 0; p < 4; p++) {
        float top = -100;
        for (int i = 0; i < N; i++) {
            float pre = 0;
            for (int c = 0; c < D; c++) pre += ae->encoder_weight[dead[p] * D + c] * (rows_x[i * D + c] - ae->bias[c]);
            top = pre > top ? pre : top;
        }
        ae->encoder_bias[dead[p]] = -top - 0.1f;
        dlrn_trainer_state_of(t).steps_since_fired[dead[p]] = 20;
    }
    dlrn_dictionary_changed(ae);
    return t;
}

static void copy_to_reference(const dlrn_trainer *t, const dlrn_train_config *cfg, reference *r) {
    const dlrn_dictionary *ae = t->dict;
    memset(r, 0, sizeof *r);
    for (int c = 0; c < D; c++) r->bias[c] = (double)ae->bias[c];
    for (int j = 0; j < F; j++) {
        r->be[j] = (double)ae->encoder_bias[j];
        r->dead[j] = cfg->ghost_threshold >= 0 && t->state.steps_since_fired[j] >= 20;
        for (int c = 0; c < D; c++) {
            r->we[j][c] = (double)ae->encoder_weight[j * D + c];
            r->wd[j][c] = (double)ae->decoder_weight[j * D + c];
        }
    }
    r->loss = cfg->loss;
    r->sparsity = cfg->sparsity;
    r->penalty = cfg->sparsity_penalty;
}

/* Our gradients [count] against differences, to a part in ten thousand of the largest. */
static void check_gradient(reference *r, const float *y, double *parameter, const float *gradient, int count,
                           const char *name) {
    double top = 0;
    for (int i = 0; i < count; i++) top = fmax(top, fabs((double)gradient[i]));
    CHECK_MSG(top > 0, "the gradient of %s is all zero", name);
    for (int i = 0; i < count; i++) {
        double wanted = difference(r, rows_x, y, parameter + i);
        CHECK_MSG(fabs(wanted - (double)gradient[i]) <= 1e-4 * top, "%s[%d]: difference %.9g, gradient %.9g", name, i,
                  wanted, (double)gradient[i]);
    }
}

static void check_combination(dlrn_context *ctx, int loss, int sparsity, int ghost, int target) {
    static reference r;
    static float bias[D], we[F * D], be[F], wd[F * D];
    const float *y = target ? rows_y : rows_x;
    dlrn_gradients out = {bias, we, be, wd};
    dlrn_train_config cfg = small_config();
    dlrn_train_stats stats;
    cfg.loss = (dlrn_loss)loss;
    cfg.sparsity = (dlrn_sparsity)sparsity;
    cfg.ghost_threshold = ghost ? 10 : -1;
    dlrn_trainer *t = make_trainer(ctx, &cfg);
    copy_to_reference(t, &cfg, &r);
    double wanted = reference_loss(&r, rows_x, y, 1);
    CHECK_OK(ctx, dlrn_trainer_loss(t, rows_x, target ? rows_y : NULL, N, &stats));
    CHECK_CLOSE(stats.mse_loss, r.mse, 1e-5);
    CHECK_CLOSE(stats.sparsity_loss, r.sparse, 1e-5);
    CHECK_CLOSE(stats.ghost_loss, r.ghost, 1e-5);
    CHECK_CLOSE(stats.loss, wanted, 1e-5);
    CHECK(stats.dead == (ghost ? 4 : 0));
    CHECK_OK(ctx, dlrn_trainer_gradients(t, rows_x, y, N, &out));
    check_gradient(&r, y, r.bias, bias, D, "bias");
    check_gradient(&r, y, r.we[0], we, F * D, "encoder_weight");
    check_gradient(&r, y, r.be, be, F, "encoder_bias");
    check_gradient(&r, y, r.wd[0], wd, F * D, "decoder_weight");
    dlrn_trainer_destroy(t);
}

TEST(gradients_are_the_differences_of_the_loss) {
    dlrn_context *ctx = open_context("auto", 1);
    for (int c = 0; c < 16; c++) check_combination(ctx, c & 1, c >> 1 & 1, c >> 2 & 1, c >> 3 & 1);
    dlrn_context_destroy(ctx);
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    fill_rows();
    RUN(gradients_are_the_differences_of_the_loss);
    return TEST_END();
}
