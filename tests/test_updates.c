/* test_updates.c - what a step does around its gradients: the exponents of p-anneal, sign descent,
   atoms and thresholds that are constrained before the loss, the first batch, the skip, clipping,
   and settings that do not fit. Numbers are computed a second time, in double and without lists. */
#include "dictlearn.h"
#include "tests/test.h"

enum { D = 6, F = 24, N = 40, LONG = 10000 };

static dlrn_context *ctx;
static float rows[LONG * D], targets[LONG * D];

static dlrn_train_config small(const char *recipe) {
    dlrn_train_config cfg = dlrn_train_defaults(recipe);
    cfg.d_in = D, cfg.features = F, cfg.lr = 0.01, cfg.warmup_steps = 0, cfg.steps = 20;
    cfg.sparsity_warmup_steps = 0;
    if (cfg.k) cfg.k = 4;
    return cfg;
}

static dlrn_trainer *make(const dlrn_train_config *cfg) {
    dlrn_trainer *t = NULL;
    CHECK_OK(ctx, dlrn_trainer_create(ctx, cfg, NULL, NULL, &t));
    return t;
}

static void step(dlrn_trainer *t) {
    CHECK_OK(ctx, dlrn_trainer_step_on(t, rows + t->step * D, NULL, N, NULL));
}

/* ---- p-anneal ---- */

/* mean_i (sum_j f_ij^p)^(1/p), or without the root; 0^p is 0. */
static double penalty(dlrn_trainer *t, double p, int root) {
    static float f[N * F];
    double mean = 0;
    CHECK_OK(ctx, dlrn_encode(t->dict, rows + t->step * D, N, f));
    for (int i = 0; i < N; i++) {
        double sum = 0;
        for (int j = 0; j < F; j++) sum += f[i * F + j] > 0 ? pow((double)f[i * F + j], p) : 0;
        mean += (root && sum > 0 ? pow(sum, 1 / p) : sum) / N;
    }
    return mean;
}

/* Three updates from step 1 to 6 are at 1, 3 and 6. Each but the first multiplies the weight by the
   ratio of the penalties since the first, of ten steps at most. */
TEST(exponents_fall) {
    for (int root = 0; root < 2; root++) {
        dlrn_train_config cfg = small("dl-p_anneal");
        cfg.sparsity = root ? DLRN_SPARSITY_LP : DLRN_SPARSITY_POWER;
        cfg.anneal_start = 1, cfg.anneal_end = 6, cfg.anneal_updates = 3, cfg.p_end = 0.5;
        static const double p[8] = {1, 1, 1, 0.75, 0.75, 0.75, 0.5, 0.5};
        dlrn_trainer *t = make(&cfg);
        double factor = 1, now = 0, then = 0;
        for (int s = 0; s < 8; s++) {
            const double old = t->anneal.p, next = t->anneal.next;
            if (next >= 0) now += penalty(t, old, root), then += penalty(t, next, root);
            step(t);
            CHECK_CLOSE(t->last.penalty, cfg.sparsity_penalty * factor, 1e-6);
            if (s == 3 || s == 6) factor *= now / then;
            CHECK_CLOSE(t->anneal.p, p[s], 1e-12);
            CHECK_CLOSE(t->anneal.factor, factor, 1e-5);
            CHECK(s ? t->anneal.next < p[s] || s >= 6 : t->anneal.next < 0);
        }
        CHECK(t->anneal.updates == 3 && t->anneal.queued == 6);
        dlrn_trainer_destroy(t);
    }
}

/* The queue holds ten steps. */
TEST(the_queue_forgets) {
    dlrn_train_config cfg = small("dl-p_anneal");
    double now[20] = {0}, then[20] = {0}, a = 0, b = 0;
    cfg.anneal_start = 0, cfg.anneal_end = 15, cfg.anneal_updates = 2, cfg.p_end = 0.5;
    dlrn_trainer *t = make(&cfg);
    for (int s = 0; s < 16; s++) {
        if (s) now[s] = penalty(t, 1, 0), then[s] = penalty(t, 0.5, 0);
        step(t);
    }
    for (int s = 6; s < 16; s++) a += now[s], b += then[s];
    CHECK_CLOSE(t->anneal.factor, a / b, 1e-5);
    dlrn_trainer_destroy(t);
}

/* The steps of updates are those of torch.linspace(start, end, n, dtype=int). */
TEST(steps_of_updates) {
    dlrn_train_config cfg = small("dl-p_anneal");
    dlrn_trainer *t = make(&cfg);
    for (int start = 0; start < 6; start++)
        for (int end = start; end < 40; end += 3)
            for (int n = 1; n < 50; n += 4) {
                t->cfg.anneal_start = start, t->cfg.anneal_end = end, t->cfg.anneal_updates = n;
                for (t->step = 0; t->step < 50; t->step++) {
                    int is = 0;
                    for (int j = 0; j < n; j++) {
                        const double part = n > 1 ? (double)(end - start) / (n - 1) : 0;
                        is |= (int64_t)(j < n / 2 || n == 1 ? start + part * j
                                                            : end - part * (n - 1 - j)) == t->step;
                    }
                    CHECK_MSG(dlrni_anneals_now(t) == is, "%d..%d, %d parts, step %d", start, end,
                              n, (int)t->step);
                }
            }
    /* no end: at the last step; neither: never */
    t->cfg.anneal_start = 0, t->cfg.anneal_end = -1, t->cfg.anneal_updates = 2;
    t->step = 20;
    CHECK(dlrni_anneals_now(t));
    t->cfg.steps = -1;
    for (t->step = 0; t->step < 30; t->step++) CHECK(!dlrni_anneals_now(t));
    t->step = 0;
    dlrn_trainer_destroy(t);
}

/* Without active features there is no ratio, and no slope of f^p at 0. */
TEST(exponents_without_features) {
    for (int root = 0; root < 2; root++) {
        dlrn_train_config cfg = small("dl-p_anneal");
        cfg.sparsity = root ? DLRN_SPARSITY_LP : DLRN_SPARSITY_POWER;
        cfg.anneal_start = 0, cfg.anneal_end = 4, cfg.anneal_updates = 3, cfg.p_end = 0.5;
        dlrn_trainer *t = make(&cfg);
        for (int j = 0; j < F; j++) t->dict->param[DLRN_ENCODER_BIAS][j] = -100;
        for (int s = 0; s < 6; s++) step(t);
        CHECK(t->anneal.factor == 1 && t->anneal.p == 0.5 && t->last.l0 == 0);
        CHECK_OK(ctx, dlrn_trainer_save(t, tmp_path("updates_none.safetensors"))); /* finite */
        dlrn_trainer_destroy(t);
    }
}

/* ---- Sign descent ---- */

/* z - lr sign(g), its mean x, and y between them, for every parameter of a few recipes. */
TEST(sign_descent) {
    static const char *const recipes[] = {"dl-april", "sl-gated", "sl-jumprelu", "cc-l1"};
    for (size_t r = 0; r < 4; r++) {
        dlrn_train_config cfg = small(recipes[r]);
        float *grad[DLRN_ROLE_COUNT] = {NULL}, *z[DLRN_ROLE_COUNT], *x[DLRN_ROLE_COUNT];
        cfg.optimiser = DLRN_OPTIMISER_SIGNUM, cfg.clip = 0, cfg.threshold_lr = 0.5;
        dlrn_trainer *t = make(&cfg);
        dlrn_dictionary *left = NULL;
        for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
            if (!t->dict->param[role]) continue;
            const size_t size = (size_t)dlrni_role_size(t->dict, role) * sizeof(float);
            CHECK(t->m[role] != NULL && t->v[role] == NULL);
            grad[role] = malloc(size), z[role] = malloc(size), x[role] = malloc(size);
            memcpy(z[role], t->dict->param[role], size);
        }
        for (int s = 0; s < 4; s++) {
            CHECK_OK(ctx, dlrni_trainer_gradients(t, rows + s * D, NULL, N, grad));
            step(t);
            dlrn_dictionary_destroy(left);
            CHECK_OK(ctx, dlrn_trainer_finish(t, &left));
            for (int role = 0; role < DLRN_ROLE_COUNT; role++)
                for (int64_t i = 0; grad[role] && i < dlrni_role_size(t->dict, role); i++) {
                    const float g = grad[role][i];
                    const float lr = role == DLRN_THRESHOLD ? 0.005F : 0.01F;
                    z[role][i] -= lr * (float)((g > 0) - (g < 0));
                    x[role][i] =
                        s ? x[role][i] + (z[role][i] - x[role][i]) / (float)(s + 1) : z[role][i];
                    CHECK(fabsf(t->m[role][i] - z[role][i]) < 1e-6F);
                    CHECK(fabsf(left->param[role][i] - x[role][i]) < 1e-6F);
                    CHECK(fabsf(t->dict->param[role][i] - 0.05F * z[role][i] - 0.95F * x[role][i]) <
                          1e-6F);
                }
        }
        for (int role = 0; role < DLRN_ROLE_COUNT; role++)
            if (grad[role]) free(grad[role]), free(z[role]), free(x[role]);
        dlrn_dictionary_destroy(left);
        dlrn_trainer_destroy(t);
    }
}

/* A gradient of 0 has no sign; a revived feature's z starts where the feature is. */
TEST(signs_of_nothing) {
    dlrn_train_config cfg = small("dl-standard");
    cfg.optimiser = DLRN_OPTIMISER_SIGNUM;
    dlrn_trainer *t = make(&cfg);
    t->dict->param[DLRN_ENCODER_BIAS][3] = -100;
    step(t);
    CHECK(t->dict->param[DLRN_ENCODER_BIAS][3] == -100 && t->m[DLRN_ENCODER_BIAS][3] == -100);
    dlrni_revive(t, 3, rows, rows, 1);
    CHECK(t->m[DLRN_ENCODER_BIAS][3] == 0);
    CHECK(!memcmp(t->m[DLRN_DECODER] + 3 * D, t->dict->param[DLRN_DECODER] + 3 * D,
                  D * sizeof(float)));
    dlrn_trainer_destroy(t);
}

/* dlrn_train hands over what dlrn_trainer_finish would, before the first step and after. */
static dlrn_status keep(void *user, dlrn_trainer *t, const dlrn_train_stats *stats) {
    dlrn_dictionary **out = (dlrn_dictionary **)user;
    (void)stats;
    dlrn_dictionary_destroy(*out);
    return dlrn_trainer_finish(t, out);
}

TEST(what_a_run_leaves) {
    dlrn_train_config cfg = small("sp-topk");
    dlrn_dictionary *kept = NULL, *left = NULL;
    dlrn_source source;
    cfg.steps = 3, cfg.buffer.batch_rows = N, cfg.buffer.capacity = 4 * N;
    CHECK_OK(ctx, dlrn_source_from_array(ctx, rows, NULL, 10 * N, D, 0, 0, &source));
    CHECK_OK(ctx, dlrn_train(ctx, &cfg, &source, keep, &kept, &left));
    for (int role = 0; role < DLRN_ROLE_COUNT; role++)
        CHECK(!left->param[role] || !memcmp(left->param[role], kept->param[role],
                                            (size_t)dlrni_role_size(left, role) * sizeof(float)));
    dlrn_dictionary_destroy(kept);
    dlrn_dictionary_destroy(left);
    dlrn_source_destroy(&source);
}

/* ---- Before the loss ---- */

static double atom_norm(const dlrn_dictionary *dict, int j) {
    double square = 0;
    for (int c = 0; c < D; c++) square += pow((double)dict->param[DLRN_DECODER][j * D + c], 2);
    return sqrt(square);
}

/* Atoms have norm 1 in the loss, keep what the update makes of them, and lose the gradient along
   them. */
TEST(atoms_are_scaled_first) {
    for (int still = 0; still < 2; still++) {
        dlrn_train_config cfg = small("sp-topk");
        cfg.optimiser = DLRN_OPTIMISER_ADAM;
        cfg.lr = still ? 0 : 0.1;
        dlrn_trainer *t = make(&cfg);
        int longer = 0;
        for (int i = 0; i < F * D; i++) t->dict->param[DLRN_DECODER][i] *= 3;
        dlrn_dictionary_changed(t->dict);
        float before[F * D];
        memcpy(before, t->dict->param[DLRN_DECODER], sizeof before);
        step(t);
        for (int j = 0; j < F; j++) {
            double along = 0, all = 0;
            if (still) CHECK_CLOSE(atom_norm(t->dict, j), 1, 1e-6);
            longer += atom_norm(t->dict, j) > 1 + 1e-4;
            for (int c = 0; c < D; c++) {
                const double m = (double)t->m[DLRN_DECODER][j * D + c];
                along += m * (double)before[j * D + c] / 3;
                all += m * m;
            }
            CHECK(fabs(along) <= 1e-6 * sqrt(all) + 1e-9);
        }
        CHECK(still ? !longer : longer > F / 2);
        dlrn_trainer_destroy(t);
    }
}

/* SAELens' thresholds are not below 0 in the loss. */
TEST(thresholds_from_0) {
    dlrn_train_config cfg = small("sl-jumprelu");
    cfg.lr = 0;
    dlrn_trainer *t = make(&cfg);
    t->dict->param[DLRN_THRESHOLD][2] = -0.5F;
    t->dict->param[DLRN_THRESHOLD][3] = 0.5F;
    step(t);
    CHECK(t->dict->param[DLRN_THRESHOLD][2] == 0 && t->dict->param[DLRN_THRESHOLD][3] == 0.5F);
    dlrn_trainer_destroy(t);
}

/* ---- The first batch ---- */

/* Layers have medians of their own: those of two trainers of one layer. */
TEST(medians_by_layer) {
    dlrn_train_config cfg = small("cc-batch_top_k");
    static float layer[N * D / 2];
    cfg.lr = 0, cfg.layers = 2;
    dlrn_trainer *both = make(&cfg);
    step(both);
    cfg.layers = 1, cfg.d_in = D / 2;
    for (int l = 0; l < 2; l++) {
        for (int i = 0; i < N * D / 2; i++)
            layer[i] = rows[i / (D / 2) * D + l * (D / 2) + i % (D / 2)];
        dlrn_trainer *one = make(&cfg);
        CHECK_OK(ctx, dlrn_trainer_step_on(one, layer, NULL, N, NULL));
        for (int c = 0; c < D / 2; c++)
            CHECK_CLOSE(both->dict->param[DLRN_OUTPUT_BIAS][l * (D / 2) + c],
                        one->dict->param[DLRN_OUTPUT_BIAS][c], 1e-5);
        dlrn_trainer_destroy(one);
    }
    dlrn_trainer_destroy(both);
}

/* One round of the median by plain loops: to [n] = the mean of rows y, D apart, each divided by its
   distance from `at`. */
static double median_round(const float *y, int count, int n, const double *at, double *to) {
    double all = 0, moved = 0;
    for (int c = 0; c < n; c++) to[c] = 0;
    for (int i = 0; i < count; i++, y += D) {
        double square = 0;
        for (int c = 0; c < n; c++) square += ((double)y[c] - at[c]) * ((double)y[c] - at[c]);
        if (!(square > 0)) continue;
        all += 1 / sqrt(square);
        for (int c = 0; c < n; c++) to[c] += (double)y[c] / sqrt(square);
    }
    for (int c = 0; c < n; c++) {
        to[c] /= all;
        moved += (to[c] - at[c]) * (to[c] - at[c]);
    }
    return sqrt(moved);
}

/* Sums on many threads, eight at a time, have the bits of these loops, for any number of rows. */
TEST(medians_in_order) {
    for (int count = N - 9; count <= N; count++) {
        dlrn_train_config cfg = small("dl-top_k");
        double at[D] = {0}, to[D], moved = 1;
        cfg.lr = 0;
        dlrn_trainer *t = make(&cfg);
        CHECK_OK(ctx, dlrn_trainer_step_on(t, rows, NULL, count, NULL));
        for (int i = 0; i < count * D; i++) at[i % D] += (double)rows[i] / count;
        for (int round = 0; round < 100 && moved >= 1e-5; round++) {
            moved = median_round(rows, count, D, at, to);
            memcpy(at, to, sizeof at);
        }
        for (int c = 0; c < D; c++) CHECK(t->dict->param[DLRN_OUTPUT_BIAS][c] == (float)at[c]);
        dlrn_trainer_destroy(t);
    }
}

/* sparsify: the mean of y; and without a center - W_e mean x for the encoder bias. */
TEST(means_of_the_first_batch) {
    static const char *const recipes[] = {"sp-topk", "sp-transcoder"};
    for (int r = 0; r < 2; r++) {
        dlrn_train_config cfg = small(recipes[r]);
        const float *y = r ? targets : rows;
        double x_mean[D] = {0}, y_mean[D] = {0};
        cfg.optimiser = DLRN_OPTIMISER_ADAM, cfg.lr = 0;
        dlrn_trainer *t = make(&cfg);
        CHECK_OK(ctx, dlrn_trainer_step_on(t, rows, y, N, NULL));
        for (int i = 0; i < N * D; i++) {
            x_mean[i % D] += (double)rows[i] / N;
            y_mean[i % D] += (double)y[i] / N;
        }
        for (int c = 0; c < D; c++)
            CHECK_CLOSE(t->dict->param[DLRN_OUTPUT_BIAS][c], y_mean[c], 1e-6);
        for (int j = 0; j < F; j++) {
            double shift = 0;
            for (int c = 0; c < D; c++)
                shift -= (double)t->dict->param[DLRN_ENCODER][j * D + c] * x_mean[c];
            CHECK(fabs((double)t->dict->param[DLRN_ENCODER_BIAS][j] - (r ? shift : 0)) < 1e-6);
        }
        dlrn_trainer_destroy(t);
    }
}

/* ---- The skip ---- */

/* Its gradient is sum_i G_i x_i^T, G = 2 e / variance, over several runs of rows, with a center and
   without: the skip sees x. */
TEST(gradients_of_a_skip) {
    for (int center = 0; center < 2; center++) {
        dlrn_train_config cfg = small("sp-skip_transcoder");
        static float x_hat[LONG * D];
        double want[D * D] = {0}, mean[D] = {0}, variance = 0, loss = 0;
        float grad[D * D], *out[DLRN_ROLE_COUNT] = {NULL};
        dlrn_encoder *e = NULL;
        dlrn_train_stats stats;
        cfg.center = center ? DLRN_ON : DLRN_OFF;
        dlrn_trainer *t = make(&cfg);
        for (int i = 0; i < D * D; i++) t->dict->param[DLRN_SKIP][i] = rows[i] / 4;
        for (int i = 0; i < F * D; i++) t->dict->param[DLRN_DECODER][i] = targets[i] / 2;
        for (int c = 0; c < D; c++) t->dict->param[DLRN_OUTPUT_BIAS][c] = rows[c + 100];
        dlrn_dictionary_changed(t->dict);
        CHECK_OK(ctx, dlrn_encoder_create(t->dict, &e));
        CHECK_OK(ctx, dlrn_encoder_run(e, rows, LONG, NULL, NULL, x_hat));
        dlrn_encoder_destroy(e);
        for (int i = 0; i < LONG * D; i++) mean[i % D] += (double)targets[i] / LONG;
        for (int i = 0; i < LONG * D; i++) variance += pow((double)targets[i] - mean[i % D], 2);
        for (int i = 0; i < LONG; i++)
            for (int o = 0; o < D; o++) {
                const double off = (double)x_hat[i * D + o] - (double)targets[i * D + o];
                loss += off * off / variance;
                for (int c = 0; c < D; c++)
                    want[o * D + c] += 2 * off / variance * (double)rows[i * D + c];
            }
        out[DLRN_SKIP] = grad;
        CHECK_OK(ctx, dlrni_forward_loss(t, rows, targets, LONG, &stats));
        CHECK_CLOSE(stats.loss, loss, 1e-5);
        CHECK_OK(ctx, dlrni_trainer_gradients(t, rows, targets, LONG, out));
        for (int i = 0; i < D * D; i++) CHECK(fabs((double)grad[i] - want[i]) < 1e-5);
        dlrn_trainer_destroy(t);
    }
}

/* ---- Clipping ---- */

/* Llamascopium divides by the root of the number of gradients that are not 0, and leaves thresholds
   out; the others do neither. After one step of Adam m is 0.1 g. */
TEST(clipped_norms) {
    static const char *const recipes[] = {"lc-jumprelu", "sl-jumprelu"};
    for (int r = 0; r < 2; r++) {
        dlrn_train_config cfg = small(recipes[r]);
        dlrn_trainer *t[3];
        double square = 0, count = 0;
        for (int i = 0; i < 3; i++) {
            static const double clip[3] = {0, 1e-3, 1e9};
            cfg.clip = clip[i], cfg.bandwidth = 0.5;
            t[i] = make(&cfg);
            t[i]->dict->param[DLRN_ENCODER_BIAS][1] = -100; /* gradients of 0 */
            step(t[i]);
        }
        for (int role = 0; role < DLRN_ROLE_COUNT; role++)
            for (int64_t i = 0; t[0]->m[role] && i < dlrni_role_size(t[0]->dict, role); i++) {
                const double g = 10 * (double)t[0]->m[role][i];
                if (role == DLRN_THRESHOLD && !r) continue;
                square += g * g, count += g < 0 || g > 0;
            }
        CHECK(count < F * (2 * D + 1 + r) + D);
        const double norm = r ? sqrt(square) : sqrt(square / count);
        for (int role = 0; role < DLRN_ROLE_COUNT; role++)
            for (int64_t i = 0; t[0]->m[role] && i < dlrni_role_size(t[0]->dict, role); i++) {
                const double m = (double)t[0]->m[role][i];
                const double by = role == DLRN_THRESHOLD && !r ? 1 : 1e-3 / (norm + 1e-6);
                CHECK(fabs((double)t[1]->m[role][i] - m * by) <= 1e-5 * fabs(m * by) + 1e-12);
                CHECK(t[2]->m[role][i] == t[0]->m[role][i]);
            }
        for (int i = 0; i < 3; i++) dlrn_trainer_destroy(t[i]);
    }
}

/* Rounded rows lie where the gradients come. Waves that are encoded later still find them: the
   weights are those of one wave. */
TEST(waves_of_lent_memory) {
    dlrn_train_config cfg = small("dl-april");
    dlrn_trainer *t[2];
    cfg.features = 400;
    for (int i = 0; i < 2; i++) {
        t[i] = make(&cfg);
        if (i) t[i]->w.budget = 1;
        for (int j = 0; j < 400; j++) t[i]->dict->param[DLRN_ENCODER_BIAS][j] = -2;
        dlrn_dictionary_changed(t[i]->dict);
        for (int s = 0; s < 3; s++) step(t[i]);
        const dlrni_encoding *c = &t[i]->w.codes;
        CHECK(c->screen && c->lent && (t[i]->w.wave < c->groups) == i);
        CHECK(c->rounded == (i ? c->own : c->lent));
    }
    for (int role = 0; role < DLRN_ROLE_COUNT; role++)
        for (int64_t i = 0; t[0]->m[role] && i < dlrni_role_size(t[0]->dict, role); i++)
            CHECK(t[0]->dict->param[role][i] == t[1]->dict->param[role][i]);
    for (int i = 0; i < 2; i++) dlrn_trainer_destroy(t[i]);
}

/* The logarithm of a threshold moves, at a rate of its own: Adam's first step is the rate. */
TEST(rates_of_thresholds) {
    for (int i = 1; i < 4; i++) {
        dlrn_train_config cfg = small("lc-jumprelu");
        cfg.threshold_lr = i, cfg.bandwidth = 4;
        dlrn_trainer *t = make(&cfg);
        float before[F];
        int moved = 0;
        for (int j = 0; j < F; j++) before[j] = t->dict->param[DLRN_THRESHOLD][j] = 0.3F;
        dlrn_dictionary_changed(t->dict);
        step(t);
        for (int j = 0; j < F; j++) {
            const double by =
                log((double)t->dict->param[DLRN_THRESHOLD][j]) - log((double)before[j]);
            if (fabs((double)t->m[DLRN_THRESHOLD][j]) < 1e-5) continue;
            CHECK_CLOSE(fabs(by), t->last.lr * i, 1e-3);
            moved++;
        }
        CHECK(moved > F / 2);
        dlrn_trainer_destroy(t);
    }
}

/* ---- Rows that stay near ---- */

enum { NEAR_N = 1100, NEAR_F = 480, NEAR_K = 38, NEAR_STEPS = 3 };

/* A trainer after a few steps, where so many rows of D numbers stay in the second cache. Of 480
   features 38 are active, so an output has 4 entries in 51 rows. */
static dlrn_trainer *near_run(dlrn_context *own, const char *recipe, int64_t near_rows,
                              const float *x) {
    dlrn_train_config cfg = dlrn_train_defaults(recipe);
    dlrn_trainer *t = NULL;
    cfg.d_in = D, cfg.features = NEAR_F, cfg.warmup_steps = 0;
    if (cfg.k) cfg.k = NEAR_K;
    own->near_bytes = near_rows * D * (int64_t)sizeof(float);
    CHECK_OK(own, dlrn_trainer_create(own, &cfg, NULL, NULL, &t));
    for (int i = 0; i < NEAR_STEPS; i++)
        CHECK_OK(own, dlrn_trainer_step_on(t, x + i * D, NULL, NEAR_N, NULL));
    return t;
}

/* Sums go through the same rows in the same order, few at a time or all: not a bit changes. */
TEST(rows_that_stay_near) {
    static const char *const recipes[] = {"dl-top_k", "dl-matryoshka", "dl-jump_relu", "dl-gated",
                                          "reference"};
    static float x[(NEAR_N + NEAR_STEPS) * D];
    dlrn_rng rng = {5, 0, 0};
    dlrn_context *own = test_context(NULL, 1);
    for (int i = 0; i < (NEAR_N + NEAR_STEPS) * D; i++) x[i] = dlrn_rng_normal(&rng);
    for (size_t r = 0; r < sizeof recipes / sizeof *recipes; r++) {
        dlrn_trainer *all = near_run(own, recipes[r], 1 << 20, x);
        dlrn_trainer *few = near_run(own, recipes[r], 60, x);
        for (int role = 0; role < DLRN_ROLE_COUNT; role++)
            if (all->dict->param[role]) {
                const size_t size = (size_t)dlrni_role_size(all->dict, role) * sizeof(float);
                CHECK_MSG(!memcmp(all->dict->param[role], few->dict->param[role], size) &&
                              !memcmp(all->m[role], few->m[role], size),
                          "%s: role %d", recipes[r], role);
            }
        dlrn_trainer_destroy(all);
        dlrn_trainer_destroy(few);
    }
    dlrn_context_destroy(own);
}

/* ---- Settings that do not fit ---- */

static void refuse(const dlrn_train_config *cfg, const char *words) {
    dlrn_trainer *t = NULL;
    CHECK_STATUS(dlrn_trainer_create(ctx, cfg, NULL, NULL, &t), DLRN_ERR_ARGUMENT);
    CHECK(t == NULL);
    CHECK_STR(dlrn_error(ctx), words);
}

TEST(settings_that_do_not_fit) {
    static const struct {
        const char *recipe, *words;
        size_t at;   /* of an integer, or */
        size_t real; /* of a double       */
        double value;
    } wrong[] = {
#define INTEGER(recipe, field, value, words)                                                       \
    {recipe, words, offsetof(dlrn_train_config, field), 0, value}
#define REAL(recipe, field, value, words)                                                          \
    { recipe, words, 0, offsetof(dlrn_train_config, field), value }
        INTEGER("dl-top_k", k, -1, "k: expected a number from 0, found -1"),
        INTEGER("dl-top_k", k, F + 1, "k: expected a number from 1 to 24, found 25"),
        INTEGER("dl-top_k", k_start, -1, "k_start: expected a number from 0, found -1"),
        INTEGER("dl-top_k", k_anneal_steps, -1, "k_anneal_steps: expected a number from 0"),
        INTEGER("sp-groupmax", k_anneal_steps, 5, "k_anneal_steps: expected 0 for a recipe with"),
        INTEGER("sp-groupmax", k, 5, "k: expected a divisor of 24"),
        REAL("dl-jump_relu", target_l0, 0, "target_l0: expected a number above 0"),
        REAL("sl-jumprelu-quadratic", target_l0, 0, "target_l0: expected a number above 0"),
        REAL("sl-jumprelu", bandwidth, 0, "bandwidth: expected a number above 0"),
        REAL("lc-jumprelu", bandwidth, NAN, "bandwidth: expected a finite number from 0"),
        INTEGER("dl-standard", decay_start, 20, "decay_start: expected -1 for never, or a step"),
        INTEGER("dl-p_anneal", anneal_end, 3, "anneal_end: expected a step from anneal_start on"),
        REAL("dl-p_anneal", p_start, 0, "p_start: expected a finite number above 0"),
        REAL("dl-p_anneal", p_end, -1, "p_end: expected a finite number from 0"),
        REAL("dl-p_anneal", p_end, NAN, "p_end: expected a finite number from 0"),
        INTEGER("cc-l1", layers, 4, "layers: expected a divisor of d_in and d_out"),
        INTEGER("dl-matryoshka", n_groups, 17, "n_groups: expected a number from 0 to 16"),
        INTEGER("dl-matryoshka", n_groups, 2, "groups: expected sizes from 1 and finite weights"),
#undef INTEGER
#undef REAL
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        dlrn_train_config cfg = small(wrong[i].recipe);
        if (wrong[i].real)
            *(double *)(void *)((char *)&cfg + wrong[i].real) = wrong[i].value;
        else
            *(int64_t *)(void *)((char *)&cfg + wrong[i].at) = (int64_t)wrong[i].value;
        refuse(&cfg, wrong[i].words);
    }
    dlrn_train_config cfg = small("dl-standard");
    cfg.steps = -1, cfg.decay_start = 3;
    refuse(&cfg, "decay_start: expected -1 for never, or a step");
    cfg = small("dl-matryoshka");
    cfg.n_groups = 2, cfg.groups[0] = 8, cfg.groups[1] = F;
    refuse(&cfg, "groups: expected sizes with the sum 24, the number of features, found 32");
    cfg.groups[1] = INT64_MAX;
    refuse(&cfg, "groups: expected sizes from 1 and finite weights");
    cfg = small("dl-p_anneal");
    cfg.sparsity = DLRN_SPARSITY_L1;
    refuse(&cfg, "sparsity: expected lp or power for a recipe in which p falls");
    cfg.sparsity = DLRN_SPARSITY_LP;
    refuse(&cfg, "p_end: expected a number above 0 for the penalty lp");
    cfg = small("lc-jumprelu");
    cfg.optimiser = DLRN_OPTIMISER_SIGNUM;
    refuse(&cfg, "optimiser: expected adam for a recipe that trains logarithms");
    cfg = small("reference");
    cfg.sparsity = DLRN_SPARSITY_TARGET, cfg.target_l0 = 3;
    refuse(&cfg, "sparsity: a penalty on L0 needs a recipe with thresholds");
}

/* Batches without a value above 0 leave no threshold, and the dictionary says so. */
TEST(a_threshold_that_never_settles) {
    dlrn_train_config cfg = small("dl-batch_top_k");
    dlrn_dictionary *left = NULL;
    cfg.threshold_start_step = 0;
    dlrn_trainer *t = make(&cfg);
    for (int j = 0; j < F; j++) t->dict->param[DLRN_ENCODER_BIAS][j] = -1000;
    dlrn_dictionary_changed(t->dict);
    for (int s = 0; s < 4; s++) step(t);
    CHECK(t->dict->formula.threshold == -1);
    CHECK_OK(ctx, dlrn_trainer_finish(t, &left));
    CHECK(left->formula.threshold == -1);
    CHECK_STR(left->note, "threshold: no batch has been averaged");
    dlrn_dictionary_destroy(left);
    for (int j = 0; j < F; j++) t->dict->param[DLRN_ENCODER_BIAS][j] = 1;
    dlrn_dictionary_changed(t->dict);
    step(t);
    CHECK_OK(ctx, dlrn_trainer_finish(t, &left));
    CHECK(left->formula.threshold > 0 && !*left->note);
    dlrn_dictionary_destroy(left);
    dlrn_trainer_destroy(t);
}

int main(int argc, char **argv) {
    dlrn_rng rng = {11, 0, 0};
    TEST_BEGIN(argc, argv);
    for (int i = 0; i < LONG * D; i++) {
        rows[i] = dlrn_rng_normal(&rng) + (float)(i % D) / D;
        targets[i] = dlrn_rng_normal(&rng) - 0.5F * rows[i];
    }
    if (dlrn_context_create(NULL, &ctx) != DLRN_OK) return 1;
    RUN(exponents_fall);
    RUN(the_queue_forgets);
    RUN(steps_of_updates);
    RUN(exponents_without_features);
    RUN(sign_descent);
    RUN(signs_of_nothing);
    RUN(what_a_run_leaves);
    RUN(atoms_are_scaled_first);
    RUN(thresholds_from_0);
    RUN(medians_by_layer);
    RUN(medians_in_order);
    RUN(means_of_the_first_batch);
    RUN(gradients_of_a_skip);
    RUN(clipped_norms);
    RUN(waves_of_lent_memory);
    RUN(rates_of_thresholds);
    RUN(rows_that_stay_near);
    RUN(settings_that_do_not_fit);
    RUN(a_threshold_that_never_settles);
    dlrn_context_destroy(ctx);
    return TEST_END();
}
