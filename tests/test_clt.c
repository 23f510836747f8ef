/* Training cross-layer transcoders, and what each recipe starts from: gradients against differences
   of a loss in plain loops, the same bits for any threads, kernels, interruptions and lack of
   memory, files, and errors. */
#include "dictlearn.h"
#include "starve.h"
#include "test.h"

enum { L = 3, D = 6, FL = 50, ROWS = 70 }; /* layers, their width and features; rows of a batch */

/* The call fails with a status, and an error of one line that holds a text. */
#define CHECK_FAILS(c, call, status, text)                                                         \
    do {                                                                                           \
        CHECK_STATUS(call, status);                                                                \
        CHECK_STR(dlrn_error(c), text);                                                            \
    } while (0)

static dlrn_context *ctx;
static float rows_x[8][ROWS * L * D], rows_y[8][ROWS * L * D];

static dlrn_context *new_context(int threads, const char *kernels) {
    dlrn_context_config config;
    dlrn_context *out = NULL;
    memset(&config, 0, sizeof config);
    config.threads = threads;
    config.kernels = kernels;
    CHECK_STATUS(dlrn_context_create(&config, &out), DLRN_OK);
    return out;
}

static dlrn_train_config config_of(const char *recipe) {
    dlrn_train_config cfg = dlrn_train_defaults(recipe);
    cfg.d_in = cfg.d_out = L * D;
    cfg.features = L * FL;
    cfg.layers = L;
    cfg.steps = 40;
    cfg.warmup_steps = 2;
    cfg.lr = 1e-2;
    cfg.seed = 5;
    cfg.scale_rows = DLRN_OFF;
    if (cfg.k) cfg.k = 4;
    if (cfg.bandwidth > 0) {
        cfg.bandwidth = 0.5;
        cfg.sparsity_penalty = 0.2;
        cfg.sparsity_warmup_steps = 0;
    }
    return cfg;
}

static const char *const recipes[] = {"clt-topk", "clt-batch_top_k", "clt-jumprelu"};

static dlrn_trainer *new_trainer(dlrn_context *c, const dlrn_train_config *cfg) {
    dlrn_trainer *t = NULL;
    CHECK_OK(c, dlrn_trainer_create(c, cfg, NULL, NULL, &t));
    return t;
}

static void step(dlrn_context *c, dlrn_trainer *t, int batch, dlrn_train_stats *stats) {
    CHECK_OK(c, dlrn_trainer_step_on(t, rows_x[batch], rows_y[batch], ROWS, stats));
}

/* A number for all parameters of a dictionary. */
static uint64_t hash_of(const dlrn_dictionary *dict) {
    uint64_t hash = 1;
    for (int role = 0; role < DLRN_ROLE_COUNT; role++)
        if (dict->param[role])
            hash = starve_mix(hash, dict->param[role],
                              (size_t)dlrni_role_size(dict, role) * sizeof(float));
    hash = starve_mix(hash, &dict->formula.scale_in, sizeof(double));
    hash = starve_mix(hash, &dict->formula.scale_out, sizeof(double));
    for (int64_t i = 0; i < dict->n_parts; i++) {
        const uint64_t part = hash_of(dict->part[i].dict);
        hash = starve_mix(hash, &part, sizeof part);
    }
    return hash;
}

/* Numbers of a size at which about half of the features are near their thresholds. */
static void spread(dlrn_dictionary *dict) {
    dlrn_rng rng = {3, 9, 0};
    for (int64_t i = 0; i < dict->n_parts; i++) {
        dlrn_dictionary *part = dict->part[i].dict;
        for (int64_t j = 0; j < part->features * part->d_in; j++)
            part->param[DLRN_ENCODER][j] = 0.3f * dlrn_rng_normal(&rng);
        for (int64_t j = 0; j < part->features * part->d_out; j++)
            part->param[DLRN_DECODER][j] = 0.3f * dlrn_rng_normal(&rng);
        for (int64_t j = 0; j < part->features; j++) {
            part->param[DLRN_ENCODER_BIAS][j] = 0.1f * dlrn_rng_normal(&rng);
            if (part->param[DLRN_THRESHOLD])
                part->param[DLRN_THRESHOLD][j] = 0.3f + 0.1f * dlrn_rng_uniform(&rng);
        }
    }
    for (int64_t c = 0; c < dict->d_out; c++)
        dict->param[DLRN_OUTPUT_BIAS][c] = 0.1f * dlrn_rng_normal(&rng);
    dlrn_dictionary_changed(dict);
}

/* ---- The loss in plain loops ---- */

static double norm_of(const dlrn_dictionary *part, int64_t j) {
    double sum = 0;
    for (int64_t c = 0; c < part->d_out; c++) {
        const double a = (double)part->param[DLRN_DECODER][j * part->d_out + c];
        sum += a * a;
    }
    return sqrt(sum);
}

static double pre_of(const dlrn_dictionary *part, int64_t j, const float *x) {
    double p = (double)part->param[DLRN_ENCODER_BIAS][j];
    for (int64_t c = 0; c < part->d_in; c++)
        p += (double)part->param[DLRN_ENCODER][j * part->d_in + c] * (double)x[c];
    return p;
}

static int descending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* The k-th largest of n numbers. */
static double kth(const double *q, int n, int k) {
    double *sorted = (double *)malloc((size_t)n * sizeof *sorted);
    memcpy(sorted, q, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, descending);
    const double found = sorted[k - 1];
    free(sorted);
    return found;
}

static double q_of[ROWS][L][FL];         /* p times the norm                         */
static int on_of[ROWS][L][FL];           /* which features are active                */
static double f_of[ROWS][L][FL];         /* their values                             */
static double g_of[ROWS][L * D];         /* the derivative by x_hat                  */
static double norms[L][FL], loss_errors; /* of atoms; the reconstruction loss        */

static void select_plainly(const dlrn_dictionary *dict, const dlrn_train_config *cfg) {
    const int jumps = dict->part[0].dict->param[DLRN_THRESHOLD] != NULL;
    const double all = jumps || strstr(cfg->recipe, "batch") == NULL
                           ? 0
                           : kth(&q_of[0][0][0], ROWS * L * FL, (int)cfg->k * ROWS);
    for (int i = 0; i < ROWS; i++)
        for (int l = 0; l < L; l++) {
            const double row = jumps || all > 0 ? all : kth(q_of[i][l], FL, (int)cfg->k);
            for (int j = 0; j < FL; j++) {
                const double q = q_of[i][l][j];
                on_of[i][l][j] = jumps ? q > (double)dict->part[l].dict->param[DLRN_THRESHOLD][j]
                                       : q > 0 && q >= row;
            }
        }
}

static double plain_loss(const dlrn_dictionary *dict, const dlrn_train_config *cfg, const float *x,
                         const float *y) {
    double penalty = 0;
    for (int l = 0; l < L; l++)
        for (int j = 0; j < FL; j++) norms[l][j] = norm_of(dict->part[l].dict, j);
    for (int i = 0; i < ROWS; i++)
        for (int l = 0; l < L; l++)
            for (int j = 0; j < FL; j++)
                q_of[i][l][j] = norms[l][j] * pre_of(dict->part[l].dict, j, x + (i * L + l) * D);
    select_plainly(dict, cfg);
    loss_errors = 0;
    for (int i = 0; i < ROWS; i++) {
        double e[L * D];
        for (int c = 0; c < L * D; c++)
            e[c] = (double)dict->param[DLRN_OUTPUT_BIAS][c] - (double)y[i * L * D + c];
        for (int l = 0; l < L; l++)
            for (int j = 0; j < FL; j++) {
                const dlrn_dictionary *part = dict->part[l].dict;
                f_of[i][l][j] = on_of[i][l][j] ? q_of[i][l][j] / norms[l][j] : 0;
                if (!on_of[i][l][j]) continue;
                for (int64_t c = 0; c < part->d_out; c++)
                    e[l * D + c] +=
                        f_of[i][l][j] * (double)part->param[DLRN_DECODER][j * part->d_out + c];
                penalty += tanh(4 * f_of[i][l][j] * norms[l][j]);
            }
        for (int c = 0; c < L * D; c++) {
            loss_errors += e[c] * e[c] / (ROWS * L);
            g_of[i][c] = 2 * e[c] / (ROWS * L);
        }
    }
    return loss_errors + cfg->sparsity_penalty * penalty / (ROWS * L);
}

/* ---- Gradients ---- */

/* Differences of the loss by some numbers of a parameter, against its gradient. */
static void compare_differences(dlrn_dictionary *dict, const dlrn_train_config *cfg, float *w,
                                int64_t n, const float *gradient, const char *name) {
    const float *x = rows_x[0], *y = rows_y[0];
    const float h = 1.0f / 4096;
    double largest = 0, off = 0;
    int64_t used = 0;
    for (int64_t i = 0; i < n; i += 1 + n / 23) {
        const float old = w[i];
        int before[ROWS][L][FL];
        w[i] = old + h;
        const double above = plain_loss(dict, cfg, x, y);
        memcpy(before, on_of, sizeof before);
        w[i] = old - h;
        const double below = plain_loss(dict, cfg, x, y);
        w[i] = old;
        if (memcmp(before, on_of, sizeof before) != 0) continue; /* a jump: no derivative */
        const double wanted = (above - below) / (2 * (double)h);
        largest = fmax(largest, fabs(wanted));
        off = fmax(off, fabs(wanted - (double)gradient[i]));
        used++;
    }
    CHECK_MSG(used > 3 && largest > 0 && off < 2e-3 * largest, "%s: off by %g of %g (%d)", name,
              off, largest, (int)used);
}

/* Steps of rate 0 without momentum leave the gradient in the first moments. */
static void check_gradients(const char *recipe) {
    dlrn_train_config cfg = config_of(recipe);
    dlrn_train_stats stats;
    cfg.lr = 0;
    cfg.beta1 = 0;
    dlrn_trainer *t = new_trainer(ctx, &cfg);
    dlrn_dictionary *dict = t->dict;
    spread(dict);
    step(ctx, t, 0, &stats);
    const double wanted = plain_loss(dict, &cfg, rows_x[0], rows_y[0]);
    CHECK_MSG(test_close(stats.loss, wanted, 1e-5), "%s: loss %.8g, expected %.8g", recipe,
              stats.loss, wanted);
    CHECK_MSG(test_close(stats.reconstruction_loss, loss_errors, 1e-5), "%s: %.8g, expected %.8g",
              recipe, stats.reconstruction_loss, loss_errors);
    compare_differences(dict, &cfg, dict->param[DLRN_OUTPUT_BIAS], L * D, t->m[DLRN_OUTPUT_BIAS],
                        "bias");
    for (int l = 0; l < L; l++) {
        static const int roles[] = {DLRN_ENCODER, DLRN_ENCODER_BIAS, DLRN_DECODER};
        for (int r = 0; r < 3; r++)
            compare_differences(dict, &cfg, dict->part[l].dict->param[roles[r]],
                                dlrni_role_size(dict->part[l].dict, roles[r]),
                                t->part[l]->m[roles[r]], dlrn_name(DLRN_NAMES_ROLE, roles[r]));
    }
    dlrn_trainer_destroy(t);
}

TEST(gradients_are_differences_of_the_loss) {
    for (int r = 0; r < 3; r += test_brief() ? 2 : 1) check_gradients(recipes[r]);
}

/* The estimate for the logarithm of a threshold: - (t / w) dloss/df of the entries within half a
   bandwidth w of t, times t. */
TEST(thresholds_get_the_estimate) {
    dlrn_train_config cfg = config_of("clt-jumprelu");
    cfg.lr = 0;
    cfg.beta1 = 0;
    dlrn_trainer *t = new_trainer(ctx, &cfg);
    spread(t->dict);
    step(ctx, t, 0, NULL);
    plain_loss(t->dict, &cfg, rows_x[0], rows_y[0]);
    for (int l = 0; l < L; l++) {
        const dlrn_dictionary *part = t->dict->part[l].dict;
        double largest = 0, off = 0;
        for (int j = 0; j < FL; j++) {
            const double level = (double)part->param[DLRN_THRESHOLD][j];
            double sum = 0;
            for (int i = 0; i < ROWS; i++) {
                const double q = q_of[i][l][j], th = tanh(4 * f_of[i][l][j] * norms[l][j]);
                double by = 0;
                if (fabs(q - level) >= cfg.bandwidth / 2 || q <= 0) continue;
                for (int64_t c = 0; c < part->d_out; c++)
                    by +=
                        g_of[i][l * D + c] * (double)part->param[DLRN_DECODER][j * part->d_out + c];
                by += cfg.sparsity_penalty / (ROWS * L) * 4 * (1 - th * th) * norms[l][j];
                sum -= level / cfg.bandwidth * by / norms[l][j];
            }
            largest = fmax(largest, fabs(sum * level));
            off = fmax(off, fabs(sum * level - (double)t->part[l]->m[DLRN_THRESHOLD][j]));
        }
        CHECK_MSG(largest > 0 && off < 1e-4 * largest, "part %d: off by %g of %g", l, off, largest);
    }
    dlrn_trainer_destroy(t);
}

/* With compat the norms have no gradient, as in Llamascopium. */
TEST(compat_freezes_the_norms) {
    dlrn_train_config cfg = config_of("clt-jumprelu");
    cfg.lr = 0;
    cfg.beta1 = 0;
    dlrn_trainer *mended = new_trainer(ctx, &cfg);
    cfg.compat = DLRN_ON;
    dlrn_trainer *compat = new_trainer(ctx, &cfg);
    spread(mended->dict);
    spread(compat->dict);
    step(ctx, mended, 0, NULL);
    step(ctx, compat, 0, NULL);
    const dlrn_dictionary *part = mended->dict->part[0].dict;
    const float *a = mended->part[0]->m[DLRN_DECODER], *b = compat->part[0]->m[DLRN_DECODER];
    plain_loss(mended->dict, &cfg, rows_x[0], rows_y[0]);
    int along = 0;
    for (int j = 0; j < FL; j++) {
        const float *atom = part->param[DLRN_DECODER] + j * part->d_out;
        double square = 0, product = 0, rest = 0;
        for (int64_t c = 0; c < part->d_out; c++) {
            square += (double)atom[c] * (double)atom[c];
            product +=
                (double)atom[c] * ((double)a[j * part->d_out + c] - (double)b[j * part->d_out + c]);
        }
        for (int64_t c = 0; c < part->d_out; c++) {
            const double left = (double)a[j * part->d_out + c] - (double)b[j * part->d_out + c] -
                                product / square * (double)atom[c];
            rest = fmax(rest, fabs(left));
        }
        CHECK_MSG(rest < 1e-6, "feature %d: %g is not along the atom", j, rest);
        along += product > 1e-5;
    }
    CHECK_MSG(along > FL / 4, "%d of %d norms have a gradient", along, FL);
    dlrn_trainer_destroy(mended);
    dlrn_trainer_destroy(compat);
}

/* Adds the gradients in the moments of a run of rate 0 without momentum to a norm: their squares,
   and how many are not 0. */
static void measure(const float *m, int64_t n, double *square, double *count) {
    for (int64_t i = 0; i < n; i++) {
        *square += (double)m[i] * (double)m[i];
        *count += m[i] < 0 || m[i] > 0;
    }
}

/* The root of the mean square of all gradients that are not 0, over all parts, is brought down to
   the limit; thresholds do not count and are not scaled. */
TEST(clipping_is_over_all_parts) {
    dlrn_train_config cfg = config_of("clt-jumprelu");
    double square = 0, count = 0;
    cfg.lr = 0;
    cfg.beta1 = 0;
    dlrn_trainer *whole = new_trainer(ctx, &cfg);
    cfg.clip = 1e-3;
    dlrn_trainer *clipped = new_trainer(ctx, &cfg);
    spread(whole->dict);
    spread(clipped->dict);
    step(ctx, whole, 0, NULL);
    step(ctx, clipped, 0, NULL);
    measure(whole->m[DLRN_OUTPUT_BIAS], L * D, &square, &count);
    for (int l = 0; l < L; l++)
        for (int role = 0; role < DLRN_ROLE_COUNT; role++)
            if (whole->part[l]->m[role] && role != DLRN_THRESHOLD)
                measure(whole->part[l]->m[role], dlrni_role_size(whole->part[l]->dict, role),
                        &square, &count);
    const double factor = cfg.clip / (sqrt(square / count) + 1e-6);
    CHECK(factor < 0.9);
    for (int l = 0; l < L; l++)
        for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
            const float *a = whole->part[l]->m[role], *b = clipped->part[l]->m[role];
            for (int64_t i = 0; a && i < dlrni_role_size(whole->part[l]->dict, role); i++) {
                const double wanted = (role == DLRN_THRESHOLD ? 1 : factor) * (double)a[i];
                CHECK_MSG(fabs(wanted - (double)b[i]) <= 1e-5 * fabs(wanted) + 1e-12,
                          "part %d, %s: %g, expected %g", l, dlrn_name(DLRN_NAMES_ROLE, role),
                          (double)b[i], wanted);
            }
        }
    dlrn_trainer_destroy(whole);
    dlrn_trainer_destroy(clipped);
}

/* ---- The same bits ---- */

static uint64_t run_bits(dlrn_context *c, const dlrn_train_config *cfg, int steps) {
    dlrn_trainer *t = new_trainer(c, cfg);
    for (int i = 0; i < steps; i++) step(c, t, i % 8, NULL);
    uint64_t hash = hash_of(t->dict);
    hash = starve_mix(hash, t->since_fired, (size_t)(L * FL) * sizeof *t->since_fired);
    dlrn_trainer_destroy(t);
    return hash;
}

TEST(threads_and_kernels_change_nothing) {
    const dlrn_context_info info = dlrn_context_describe(ctx);
    for (int r = 0; r < 3; r++)
        for (int clip = 0; clip < 2; clip++) {
            dlrn_train_config cfg = config_of(recipes[r]);
            if (test_brief() && clip != r % 2) continue;
            cfg.scale_rows = DLRN_ON;
            cfg.clip = clip ? 1e-3 : 0;
            const uint64_t wanted = run_bits(ctx, &cfg, 6);
            for (int i = 0; info.available[i]; i++)
                for (int threads = 1; threads < 4; threads += 2) {
                    dlrn_context *c = new_context(threads, info.available[i]);
                    const uint64_t found = run_bits(c, &cfg, 6);
                    CHECK_MSG(found == wanted, "%s: %s, %d threads: other bits", recipes[r],
                              info.available[i], threads);
                    dlrn_context_destroy(c);
                }
        }
}

/* One wave, or several for each part. */
TEST(waves_change_nothing) {
    for (int r = 0; r < 3; r++) {
        const dlrn_train_config cfg = config_of(recipes[r]);
        uint64_t bits[2];
        for (int several = 0; several < 2; several++) {
            dlrn_trainer *t = new_trainer(ctx, &cfg);
            for (int64_t i = 0; several && i < L; i++) t->part[i]->w.budget = 100;
            for (int i = 0; i < 5; i++) step(ctx, t, i, NULL);
            bits[several] = hash_of(t->dict);
            dlrn_trainer_destroy(t);
        }
        CHECK_MSG(bits[0] == bits[1], "%s: other bits in several waves", recipes[r]);
    }
}

TEST(training_lowers_the_loss) {
    for (int r = 0; r < 3; r++) {
        dlrn_train_config cfg = config_of(recipes[r]);
        dlrn_train_stats first, last;
        cfg.sparsity_penalty = 0;
        dlrn_trainer *t = new_trainer(ctx, &cfg);
        step(ctx, t, 0, &first);
        for (int i = 0; i < 60; i++) step(ctx, t, 0, &last);
        CHECK_MSG(last.loss < 0.8 * first.loss, "%s: %g, then %g", recipes[r], first.loss,
                  last.loss);
        CHECK(last.l0 > 0 && last.k == cfg.k);
        CHECK(dlrn_trainer_describe(t).m[DLRN_OUTPUT_BIAS] &&
              !dlrn_trainer_describe(t).m[DLRN_ENCODER]);
        dlrn_trainer_destroy(t);
    }
}

/* What training reconstructs is what encoding does afterwards. */
TEST(the_step_is_the_encoding) {
    for (int r = 0; r < 3; r++) {
        dlrn_train_config cfg = config_of(recipes[r]);
        dlrn_train_stats stats;
        static float x_hat[ROWS * L * D];
        dlrn_encoder *e = NULL;
        double sum = 0;
        cfg.scale_rows = DLRN_ON;
        dlrn_trainer *t = new_trainer(ctx, &cfg);
        for (int i = 0; i < 10; i++) step(ctx, t, i % 8, NULL);
        t->cfg.lr = 0;
        step(ctx, t, 0, &stats);
        CHECK_OK(ctx, dlrn_encoder_create(t->dict, &e));
        CHECK_OK(ctx, dlrn_encoder_run(e, rows_x[0], ROWS, NULL, NULL, x_hat));
        for (int i = 0; i < ROWS * L * D; i++) {
            const double off =
                ((double)x_hat[i] - (double)rows_y[0][i]) / t->dict->formula.scale_out;
            sum += off * off / (ROWS * L);
        }
        CHECK_MSG(test_close(sum, stats.reconstruction_loss, 1e-4), "%s: %g, in the step %g",
                  recipes[r], sum, stats.reconstruction_loss);
        dlrn_encoder_destroy(e);
        dlrn_trainer_destroy(t);
    }
}

/* ---- Checkpoints ---- */

TEST(a_resumed_run_is_the_same) {
    for (int r = 0; r < 3; r++) {
        const char *path = tmp_path("clt_resume.safetensors");
        dlrn_train_config cfg = config_of(recipes[r]);
        cfg.scale_rows = DLRN_ON;
        cfg.clip = r ? 1e-3 : 0;
        const uint64_t wanted = run_bits(ctx, &cfg, 7);
        dlrn_trainer *t = new_trainer(ctx, &cfg);
        for (int i = 0; i < 3; i++) step(ctx, t, i, NULL);
        CHECK_OK(ctx, dlrn_trainer_save(t, path));
        dlrn_trainer_destroy(t);
        CHECK_OK(ctx, dlrn_trainer_resume(ctx, path, r == 1 ? &cfg : NULL, NULL, &t));
        for (int i = 3; i < 7; i++) step(ctx, t, i, NULL);
        uint64_t hash = hash_of(t->dict);
        hash = starve_mix(hash, t->since_fired, (size_t)(L * FL) * sizeof *t->since_fired);
        CHECK_MSG(hash == wanted, "%s: other bits", recipes[r]);
        dlrn_trainer_destroy(t);
    }
}

/* A checkpoint with one tensor left out: an error that names it. */
TEST(checkpoints_are_checked) {
    const char *path = tmp_path("clt_whole.safetensors"), *cut = tmp_path("clt_cut.safetensors");
    const dlrn_train_config cfg = config_of("clt-jumprelu");
    static const char *const keys[] = {"format", "family", "formula", "config", "step"};
    dlrn_archive *a = NULL;
    dlrn_trainer *t = new_trainer(ctx, &cfg);
    step(ctx, t, 0, NULL);
    CHECK_OK(ctx, dlrn_trainer_save(t, path));
    dlrn_trainer_destroy(t);
    CHECK_OK(ctx, dlrn_archive_open(ctx, path, &a));
    CHECK(a->count == 3 * (1 + 4 * L) + 2 && a->count < 64);
    const char *metadata[11] = {NULL};
    for (int i = 0; i < 5; i++) {
        metadata[2 * i] = keys[i];
        metadata[2 * i + 1] = dlrni_archive_metadata(a, keys[i]);
    }
    for (int64_t out = 0; out < a->count; out++) {
        dlrn_tensor_out tensors[64];
        void *data[64];
        int64_t n = 0;
        for (int64_t i = 0; i < a->count; i++) {
            const dlrn_tensor_info *info = dlrn_archive_tensor(a, i);
            data[i] = calloc((size_t)info->numel + 1, sizeof(int64_t));
            if (info->dtype == DLRN_I64)
                CHECK_OK(ctx, dlrni_archive_read_i64(a, i, (int64_t *)data[i]));
            else
                CHECK_OK(ctx, dlrn_archive_read(a, i, 0, -1, (float *)data[i]));
            if (i == out) continue;
            memset(&tensors[n], 0, sizeof tensors[n]);
            tensors[n].name = info->name;
            tensors[n].ndim = info->ndim;
            tensors[n].dtype = info->dtype;
            memcpy(tensors[n].shape, info->shape, sizeof tensors[n].shape);
            tensors[n++].data = data[i];
        }
        CHECK_OK(ctx, dlrn_archive_write(ctx, cut, tensors, n, metadata));
        for (int64_t i = 0; i < a->count; i++) free(data[i]);
        CHECK_FAILS(ctx, dlrn_trainer_resume(ctx, cut, NULL, NULL, &t), DLRN_ERR_FORMAT,
                    dlrn_archive_tensor(a, out)->name);
        CHECK(t == NULL);
    }
    dlrn_archive_close(a);
}

/* ---- Without memory ---- */

static dlrn_context *poor;
static dlrn_train_config poor_cfg;

static dlrn_status create_poor(void) {
    dlrn_trainer *t = NULL;
    dlrn_status s = dlrn_trainer_create(poor, &poor_cfg, NULL, NULL, &t);
    dlrn_trainer_destroy(t);
    return s;
}

static dlrn_status resume_poor(void) {
    dlrn_trainer *t = NULL;
    dlrn_status s = dlrn_trainer_resume(poor, tmp_path("clt_poor.safetensors"), NULL, NULL, &t);
    dlrn_trainer_destroy(t);
    return s;
}

static dlrn_status load_poor(void) {
    dlrn_dictionary *dict = NULL;
    dlrn_status s = dlrn_load(poor, tmp_path("clt_poor_dict.pt"), NULL, &dict);
    dlrn_dictionary_destroy(dict);
    return s;
}

/* Three steps, each again where it had no memory. */
static uint64_t train_poor(void) {
    dlrn_trainer *t = NULL;
    STARVE_RETRY(poor, dlrn_trainer_create(poor, &poor_cfg, NULL, NULL, &t));
    for (int i = 0; i < 3; i++)
        STARVE_RETRY(poor, dlrn_trainer_step_on(t, rows_x[i], rows_y[i], ROWS, NULL));
    STARVE_RETRY(poor, dlrn_trainer_save(t, tmp_path("clt_poor.safetensors")));
    STARVE_RETRY(poor, dlrn_save(t->dict, tmp_path("clt_poor_dict.pt")));
    const uint64_t hash = hash_of(t->dict);
    dlrn_trainer_destroy(t);
    return hash;
}

TEST(every_allocation_may_fail) {
    poor = starve_context(1);
    for (int r = 0; r < 3; r++) {
        poor_cfg = config_of(recipes[r]);
        poor_cfg.scale_rows = DLRN_ON;
        poor_cfg.clip = r == 2 ? 1e-3 : 0;
        starve_each(recipes[r], train_poor);
        starve_all("create", poor, create_poor);
        starve_all("resume", poor, resume_poor);
        starve_all("load", poor, load_poor);
    }
    dlrn_context_destroy(poor);
}

/* ---- Errors ---- */

static void refuse(dlrn_train_config cfg, dlrn_status status, const char *text) {
    dlrn_trainer *t = NULL;
    CHECK_FAILS(ctx, dlrn_trainer_create(ctx, &cfg, NULL, NULL, &t), status, text);
    CHECK(t == NULL);
}

TEST(wrong_settings_are_refused) {
    dlrn_train_config cfg = config_of("clt-topk");
    cfg.layers = 4;
    refuse(cfg, DLRN_ERR_ARGUMENT, "layers: expected a divisor of d_in and d_out");
    cfg = config_of("clt-topk");
    cfg.features = L * FL + 1;
    refuse(cfg, DLRN_ERR_ARGUMENT, "layers: expected a divisor of features");
    cfg = config_of("clt-topk");
    cfg.k = FL + 1;
    refuse(cfg, DLRN_ERR_ARGUMENT, "k: expected a number from 1 to 50, found 51");
    cfg = config_of("clt-topk");
    cfg.resample_steps = 5;
    refuse(cfg, DLRN_ERR_ARGUMENT, "resample_steps");
    cfg = config_of("clt-topk");
    cfg.optimiser = DLRN_OPTIMISER_SIGNUM;
    refuse(cfg, DLRN_ERR_ARGUMENT, "optimiser");
    cfg = config_of("clt-jumprelu");
    cfg.bandwidth = 0;
    refuse(cfg, DLRN_ERR_ARGUMENT, "bandwidth");
    cfg = config_of("clt-topk");
    cfg.layers = cfg.d_in = cfg.d_out = cfg.features = 1025;
    refuse(cfg, DLRN_ERR_ARGUMENT, "layers: expected a number up to 1024");
}

TEST(other_dictionaries_are_refused) {
    dlrn_train_config cfg = config_of("clt-topk"), jump = config_of("clt-jumprelu");
    dlrn_trainer *t = new_trainer(ctx, &jump), *other = NULL;
    CHECK_FAILS(ctx, dlrn_trainer_create(ctx, &cfg, t->dict, NULL, &other), DLRN_ERR_UNSUPPORTED,
                "expected a cross-layer transcoder of 3 layers whose parts have no thresholds");
    dlrn_trainer_destroy(t);
    t = new_trainer(ctx, &cfg);
    CHECK_FAILS(ctx, dlrn_trainer_create(ctx, &jump, t->dict, NULL, &other), DLRN_ERR_UNSUPPORTED,
                "expected a cross-layer transcoder of 3 layers whose parts have thresholds");
    t->dict->part[1].out_at = 0;
    CHECK_FAILS(ctx, dlrn_trainer_create(ctx, &cfg, t->dict, NULL, &other), DLRN_ERR_UNSUPPORTED,
                "found 3 parts that differ");
    t->dict->part[1].out_at = D;
    cfg.layers = 1;
    cfg.d_in = cfg.d_out = D;
    cfg.features = FL;
    CHECK_FAILS(ctx, dlrn_trainer_create(ctx, &cfg, t->dict, NULL, &other), DLRN_ERR_UNSUPPORTED,
                "expected a cross-layer transcoder of 1 layers");
    dlrn_trainer_destroy(t);
}

/* A row that is not finite leaves all as it was, the scales of the first batch included. */
TEST(a_failed_first_step_changes_nothing) {
    dlrn_train_config cfg = config_of("clt-topk");
    static float bad[ROWS * L * D];
    cfg.scale_rows = DLRN_ON;
    dlrn_trainer *t = new_trainer(ctx, &cfg);
    const uint64_t before = hash_of(t->dict);
    memcpy(bad, rows_x[0], sizeof bad);
    bad[7] = (float)NAN;
    CHECK_FAILS(ctx, dlrn_trainer_step_on(t, bad, rows_y[0], ROWS, NULL), DLRN_ERR_VALUE,
                "x [0][7]");
    CHECK(hash_of(t->dict) == before);
    for (int i = 0; i < ROWS * L * D; i++) bad[i] = 3e19f * rows_y[0][i]; /* its square overflows */
    CHECK_FAILS(ctx, dlrn_trainer_step_on(t, rows_x[0], bad, ROWS, NULL), DLRN_ERR_VALUE,
                "scale_rows");
    CHECK(hash_of(t->dict) == before && t->step == 0);
    dlrn_trainer_destroy(t);
}

/* ---- Scales of the rows ---- */

/* A run on rows scaled before is the run with the scales in the dictionary. */
TEST(scales_of_the_first_batch) {
    for (int r = 0; r < 4; r++) {
        dlrn_train_config cfg = config_of(r < 3 ? recipes[r] : "lc-topk");
        static float x[ROWS * L * D], y[ROWS * L * D];
        if (r == 3) cfg.layers = 1;
        cfg.scale_rows = DLRN_ON;
        dlrn_trainer *scaled = new_trainer(ctx, &cfg);
        cfg.scale_rows = DLRN_OFF;
        dlrn_trainer *plain = new_trainer(ctx, &cfg);
        for (int i = 0; i < 4; i++) {
            dlrn_train_stats a, b;
            step(ctx, scaled, i, &a);
            const dlrn_dictionary *dict = scaled->dict;
            for (int c = 0; c < ROWS * L * D; c++) {
                const int l = c / D % L;
                const double in =
                    dict->n_parts ? dict->part[l].dict->formula.scale_in : dict->formula.scale_in;
                x[c] = rows_x[i][c] * (float)in;
                y[c] = rows_y[i][c] * (float)(1 / dict->formula.scale_out);
            }
            CHECK_OK(ctx, dlrn_trainer_step_on(plain, x, y, ROWS, &b));
            CHECK_MSG(test_close(a.loss, b.loss, 1e-5), "%s: step %d: %.8g and %.8g", cfg.recipe, i,
                      a.loss, b.loss);
            if (i) continue;
            double sum = 0;
            for (int n = 0; n < ROWS; n++) {
                double square = 0;
                const int width = dict->n_parts ? D : L * D;
                for (int c = 0; c < width; c++)
                    square += (double)x[n * L * D + c] * (double)x[n * L * D + c];
                sum += sqrt(square) / ROWS / sqrt((double)width);
            }
            CHECK_MSG(test_close(sum, 1, 1e-5), "%s: mean norm %g", cfg.recipe, sum);
        }
        dlrn_trainer_destroy(scaled);
        dlrn_trainer_destroy(plain);
    }
}

/* A dictionary that comes with scales keeps them, and is trained on raw rows. */
TEST(scales_of_a_dictionary) {
    dlrn_train_config cfg = config_of("lc-relu");
    static float x[ROWS * L * D];
    dlrn_trainer *first, *raw = NULL, *plain = NULL;
    cfg.layers = 1;
    cfg.sparsity_penalty = 0.1;
    cfg.sparsity_warmup_steps = 0;
    first = new_trainer(ctx, &cfg);
    CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, first->dict, NULL, &plain));
    first->dict->formula.scale_in = 0.5;
    first->dict->formula.scale_out = 2;
    cfg.scale_rows = DLRN_ON; /* the dictionary has them */
    CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, first->dict, NULL, &raw));
    for (int i = 0; i < 4; i++) {
        for (int c = 0; c < ROWS * L * D; c++) x[c] = rows_x[i][c] / 2;
        CHECK_OK(ctx, dlrn_trainer_step_on(raw, rows_x[i], NULL, ROWS, NULL));
        CHECK_OK(ctx, dlrn_trainer_step_on(plain, x, NULL, ROWS, NULL));
    }
    CHECK(raw->dict->formula.scale_in >= 0.5 && raw->dict->formula.scale_in <= 0.5);
    raw->dict->formula.scale_in = raw->dict->formula.scale_out = 1;
    CHECK(hash_of(raw->dict) == hash_of(plain->dict));
    dlrn_trainer_destroy(first);
    dlrn_trainer_destroy(raw);
    dlrn_trainer_destroy(plain);
}

/* ---- What a run starts from ---- */

static double length(const float *row, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)row[i] * (double)row[i];
    return sqrt(sum);
}

static dlrn_dictionary *first_of(dlrn_context *c, dlrn_train_config cfg) {
    dlrn_trainer *t = new_trainer(c, &cfg);
    dlrn_dictionary *out = NULL;
    CHECK_OK(c, dlrn_trainer_finish(t, &out));
    dlrn_trainer_destroy(t);
    return out;
}

static int is_copy(const dlrn_dictionary *dict) {
    return !memcmp(dict->param[DLRN_ENCODER], dict->param[DLRN_DECODER],
                   (size_t)(dict->features * dict->d_in) * sizeof(float));
}

static void check_norms(const char *recipe, double norm, int copies) {
    dlrn_train_config cfg = config_of(recipe);
    if (cfg.layers == L && dlrn_train_defaults(recipe).layers == 1) cfg.layers = 1;
    dlrn_dictionary *dict = first_of(ctx, cfg);
    const int64_t parts = dict->layers, width = dict->d_out / parts;
    for (int64_t j = 0; j < dict->features * parts; j++) {
        const double found = length(dict->param[DLRN_DECODER] + j * width, width);
        CHECK_MSG(test_close(found, norm, 1e-5), "%s: row %d: norm %g, expected %g", recipe, (int)j,
                  found, norm);
    }
    CHECK_MSG(is_copy(dict) == copies, "%s: copies %d", recipe, copies);
    if (dict->param[DLRN_ENCODER_BIAS] && copies)
        CHECK(length(dict->param[DLRN_ENCODER_BIAS], dict->features) <= 0);
    CHECK_STR(dict->layout, dlrn_recipe(0) ? dict->layout : "");
    dlrn_dictionary_destroy(dict);
}

TEST(first_norms) {
    check_norms("sl-standard", 0.1, 1);
    check_norms("sl-topk", 0.1, 1);
    check_norms("sl-gated", 0.1, 1);
    check_norms("cc-l1", 0.08, 1);
    check_norms("cc-norm", 1, 1);
    check_norms("cc-batch_top_k", 1, 1);
    check_norms("sp-topk", 1, 0); /* the encoder's rows are longer or shorter */
    check_norms("dl-top_k", 1, 1);
    check_norms("sp-transcoder", 0, 0);
}

TEST(first_weights_of_sparsify) {
    dlrn_train_config cfg = config_of("sp-skip_transcoder");
    cfg.layers = 1;
    cfg.d_out = 5;
    dlrn_dictionary *dict = first_of(ctx, cfg);
    CHECK(dict->param[DLRN_SKIP] && length(dict->param[DLRN_SKIP], 5 * L * D) <= 0);
    CHECK(length(dict->param[DLRN_DECODER], 5 * L * FL) <= 0);
    CHECK(length(dict->param[DLRN_ENCODER_BIAS], L * FL) <= 0);
    CHECK(dict->formula.center == DLRN_CENTER_NONE);
    dlrn_dictionary_destroy(dict);
    cfg = config_of("sp-topk");
    cfg.layers = 1;
    dict = first_of(ctx, cfg);
    const float bound = 1 / sqrtf((float)(L * D));
    float largest = 0;
    for (int64_t j = 0; j < L * FL; j++)
        for (int64_t c = 0; c < L * D; c++) {
            const float e = dict->param[DLRN_ENCODER][j * L * D + c];
            const double norm = length(dict->param[DLRN_ENCODER] + j * L * D, L * D);
            largest = fmaxf(largest, fabsf(e));
            CHECK(test_close((double)e / norm, (double)dict->param[DLRN_DECODER][j * L * D + c],
                             1e-5));
        }
    CHECK(largest <= bound && largest > 0.95f * bound);
    CHECK_STR(dict->layout, "sparsify");
    dlrn_dictionary_destroy(dict);
}

TEST(first_weights_of_transcoders) {
    dlrn_dictionary *dict = first_of(ctx, config_of("clt-jumprelu"));
    const float in = 1 / sqrtf((float)FL), out = 1 / sqrtf((float)(L * D));
    CHECK(dict->layers == L && dict->n_parts == L && dict->feature_layers == L);
    CHECK_STR(dict->layout, "circuit-tracer");
    for (int l = 0; l < L; l++) {
        const dlrn_dictionary *part = dict->part[l].dict;
        float most[2] = {0, 0};
        CHECK(part->d_in == D && part->d_out == (L - l) * D && part->features == FL);
        CHECK(part->formula.gate == DLRN_GATE_JUMP && part->formula.rank == DLRN_RANK_NORM);
        CHECK(dict->part[l].in_at == l * D && dict->part[l].out_at == l * D);
        for (int64_t j = 0; j < FL * part->d_in; j++)
            most[0] = fmaxf(most[0], fabsf(part->param[DLRN_ENCODER][j]));
        for (int64_t j = 0; j < FL * part->d_out; j++)
            most[1] = fmaxf(most[1], fabsf(part->param[DLRN_DECODER][j]));
        CHECK(most[0] <= in && most[0] > 0.95f * in && most[1] <= out && most[1] > 0.9f * out);
        for (int64_t j = 0; j < FL; j++)
            CHECK(test_close((double)part->param[DLRN_THRESHOLD][j], 0.01, 1e-6));
        CHECK(length(part->param[DLRN_ENCODER_BIAS], FL) <= 0);
    }
    CHECK(length(dict->param[DLRN_OUTPUT_BIAS], L * D) <= 0);
    dlrn_dictionary_destroy(dict);
}

TEST(first_groups) {
    dlrn_train_config cfg = config_of("dl-matryoshka");
    cfg.layers = 1;
    cfg.features = 64;
    dlrn_dictionary *dict = first_of(ctx, cfg);
    static const int64_t wanted[5] = {2, 4, 8, 16, 34};
    CHECK(dict->n_groups == 5 && !memcmp(dict->group_sizes, wanted, sizeof wanted));
    dlrn_trainer *t = NULL;
    dict->group_sizes[0] = 4; /* a dictionary's own groups are kept */
    dict->group_sizes[1] = 2;
    CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, dict, NULL, &t));
    CHECK(t->cfg.n_groups == 5 && t->cfg.groups[0] == 4 && t->cfg.groups[1] == 2);
    CHECK(t->dict->group_sizes[0] == 4 && t->dict->group_sizes[4] == 34);
    dlrn_trainer_destroy(t);
    dlrn_dictionary_destroy(dict);
}

TEST(first_weights_by_seed) {
    for (int r = 0; dlrn_recipe(r); r++) {
        dlrn_train_config cfg = config_of(dlrn_recipe(r)->name);
        if (dlrn_train_defaults(cfg.recipe).layers == 1 && !strstr(cfg.recipe, "clt"))
            cfg.layers = 1;
        if (cfg.k && strstr(cfg.recipe, "groupmax")) cfg.k = 5;
        uint64_t bits[3];
        for (int i = 0; i < 3; i++) {
            dlrn_context *c = new_context(i == 1 ? 3 : 1, i == 1 ? "scalar" : NULL);
            cfg.seed = i < 2 ? 5 : 6;
            dlrn_dictionary *dict = first_of(c, cfg);
            bits[i] = hash_of(dict);
            dlrn_dictionary_destroy(dict);
            dlrn_context_destroy(c);
        }
        CHECK_MSG(bits[0] == bits[1], "%s: other bits with 3 threads", cfg.recipe);
        CHECK_MSG(bits[0] != bits[2], "%s: the seed is not used", cfg.recipe);
    }
}

TEST(created_from_a_description) {
    dlrn_dictionary_desc desc;
    dlrn_dictionary *dict = NULL;
    memset(&desc, 0, sizeof desc);
    desc.family = "CrossLayerTranscoder";
    desc.d_in = L * D;
    desc.features = L * FL;
    desc.layers = L;
    CHECK_OK(ctx, dlrn_dictionary_create(ctx, &desc, &dict));
    CHECK(dict->n_parts == L && dict->part[2].feature_at == 2 * FL);
    dlrn_dictionary_destroy(dict);
    desc.layers = 4;
    CHECK_FAILS(ctx, dlrn_dictionary_create(ctx, &desc, &dict), DLRN_ERR_ARGUMENT, "layers");
    desc.layers = -1;
    CHECK_FAILS(ctx, dlrn_dictionary_create(ctx, &desc, &dict), DLRN_ERR_ARGUMENT, "layers");
    desc.layers = L;
    desc.features = L * FL + 1;
    CHECK_FAILS(ctx, dlrn_dictionary_create(ctx, &desc, &dict), DLRN_ERR_ARGUMENT,
                "layers: expected a divisor of features");
    desc.family = "AutoEncoder"; /* a crosscoder */
    CHECK_OK(ctx, dlrn_dictionary_create(ctx, &desc, &dict));
    CHECK(dict->layers == L && !dict->n_parts);
    dlrn_dictionary_destroy(dict);
    desc.family = "Crosscoder";
    CHECK_FAILS(ctx, dlrn_dictionary_create(ctx, &desc, &dict), DLRN_ERR_UNSUPPORTED, "loaded");
}

/* ---- Files ---- */

static dlrn_dictionary *trained(const char *recipe) {
    dlrn_train_config cfg = config_of(recipe);
    dlrn_dictionary *out = NULL;
    cfg.scale_rows = DLRN_ON;
    dlrn_trainer *t = new_trainer(ctx, &cfg);
    for (int i = 0; i < 10; i++) step(ctx, t, i % 8, NULL);
    CHECK_OK(ctx, dlrn_trainer_finish(t, &out));
    dlrn_trainer_destroy(t);
    return out;
}

static void reconstruct(const dlrn_dictionary *dict, float *x_hat) {
    dlrn_encoder *e = NULL;
    CHECK_OK(ctx, dlrn_encoder_create(dict, &e));
    CHECK_OK(ctx, dlrn_encoder_run(e, rows_x[1], ROWS, NULL, NULL, x_hat));
    dlrn_encoder_destroy(e);
}

TEST(one_file_holds_all) {
    static const char *const suffix[] = {"pt", "safetensors", "npz"};
    for (int r = 0; r < 3; r++) {
        dlrn_dictionary *dict = trained(recipes[r]);
        for (int s = 0; s < 3; s++) {
            char name[64];
            dlrn_dictionary *again = NULL;
            snprintf(name, sizeof name, "clt_file.%s", suffix[s]);
            CHECK_OK(ctx, dlrn_save(dict, tmp_path(name)));
            CHECK_OK(ctx, dlrn_load(ctx, tmp_path(name), NULL, &again));
            for (int64_t i = 0; i < L; i++) {
                CHECK(!memcmp(&again->part[i].dict->formula.gate, &dict->part[i].dict->formula.gate,
                              sizeof(dlrn_gate)));
                CHECK(again->part[i].dict->formula.rank == dict->part[i].dict->formula.rank);
                CHECK(hash_of(again->part[i].dict) == hash_of(dict->part[i].dict));
            }
            CHECK(again->formula.k == dict->formula.k && again->layers == L);
            static float a[ROWS * L * D], b[ROWS * L * D];
            reconstruct(dict, a);
            reconstruct(again, b);
            for (int i = 0; i < ROWS * L * D; i++)
                CHECK(test_close((double)a[i], (double)b[i], 1e-6) || fabsf(a[i] - b[i]) < 1e-6f);
            CHECK_STR(again->layout, "dictlearn");
            dlrn_trainer *t = NULL; /* and it can be trained on */
            dlrn_train_config cfg = config_of(recipes[r]);
            CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, again, NULL, &t));
            step(ctx, t, 0, NULL);
            dlrn_trainer_destroy(t);
            dlrn_dictionary_destroy(again);
        }
        dlrn_dictionary_destroy(dict);
    }
}

TEST(circuit_tracer_gets_what_it_can_say) {
    dlrn_dictionary *dict = trained("clt-jumprelu"), *again = NULL;
    const dlrn_save_options how = {"circuit-tracer", 0};
    static float a[ROWS * L * D], b[ROWS * L * D];
    char note[256];
    mkdir(tmp_path("clt_tracer"), 0777);
    CHECK_OK(ctx, dlrn_save_as(dict, tmp_path("clt_tracer"), &how, note, sizeof note));
    CHECK_OK(ctx, dlrn_load(ctx, tmp_path("clt_tracer"), NULL, &again));
    reconstruct(dict, a);
    reconstruct(again, b);
    for (int i = 0; i < ROWS * L * D; i++)
        CHECK_MSG(fabsf(a[i] - b[i]) < 1e-4f * (1 + fabsf(a[i])), "%d: %g and %g", i, (double)a[i],
                  (double)b[i]);
    dlrn_dictionary_destroy(dict);
    dlrn_train_config cfg = config_of("clt-jumprelu");
    dlrn_trainer *t = NULL; /* thresholds are compared with p again */
    CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, again, NULL, &t));
    reconstruct(t->dict, b);
    for (int i = 0; i < ROWS * L * D; i++)
        CHECK_MSG(fabsf(a[i] - b[i]) < 1e-4f * (1 + fabsf(a[i])), "%d: %g and %g", i, (double)a[i],
                  (double)b[i]);
    dlrn_trainer_destroy(t);
    dlrn_dictionary_destroy(again);
    dict = trained("clt-topk");
    mkdir(tmp_path("clt_tracer_k"), 0777);
    CHECK_FAILS(ctx, dlrn_save_as(dict, tmp_path("clt_tracer_k"), &how, note, sizeof note),
                DLRN_ERR_UNSUPPORTED, "circuit-tracer has no place for this CrossLayerTranscoder");
    dlrn_dictionary_destroy(dict);
}

/* Tables of a file that no dictionary has. */
TEST(files_are_checked) {
    dlrn_dictionary *dict = trained("clt-topk"), *again = NULL;
    dlrni_part_tensors list;
    const char *path = tmp_path("clt_bad.safetensors");
    static const struct {
        int row, column;
        int64_t value;
        const char *text;
    } bad[] = {{0, DLRNI_PART_FAMILY, 2, "family"},
               {0, DLRNI_PART_LAYERS, 4, "layers"},
               {0, DLRNI_PART_FEATURES, L * FL + L, "features"},
               {0, DLRNI_PART_SELECT, 9, "column"},
               {0, DLRNI_PART_D_IN, -1, "layers"},
               {1, DLRNI_PART_GATE, -1, "column"},
               {1, DLRNI_PART_K, 0, "k"},
               {1, DLRNI_PART_FEATURES, FL + 1, "encoder_weight.0"},
               {2, DLRNI_PART_OUT_AT, 2 * D, "part 1 does not fit"},
               {2, DLRNI_PART_D_OUT, INT64_MAX / 2, "memory"},
               {3, DLRNI_PART_IN_AT, -1, "part 2 does not fit"},
               {3, DLRNI_PART_RANK, 7, "column"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK_OK(ctx, dlrni_list_parts(dict, &list));
        list.table[bad[i].row * DLRNI_PART_COLUMNS + bad[i].column] = bad[i].value;
        CHECK_OK(ctx, dlrn_archive_write(ctx, path, list.tensor, list.count, NULL));
        const dlrn_status s = dlrn_load(ctx, path, NULL, &again);
        CHECK_MSG(s != DLRN_OK && !again && strstr(dlrn_error(ctx), bad[i].text), "%s: %s",
                  bad[i].text, dlrn_error(ctx));
        dlrn_free(ctx, list.tensor);
        dlrn_free(ctx, list.name);
        dlrn_free(ctx, list.table);
        dlrn_free(ctx, list.scales);
    }
    dlrn_dictionary_destroy(dict);
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    ctx = new_context(2, NULL);
    for (int b = 0; b < 8; b++) {
        dlrn_rng rng = {11, (uint64_t)b, 0};
        for (int i = 0; i < ROWS * L * D; i++) {
            rows_x[b][i] = 2 * dlrn_rng_normal(&rng);
            rows_y[b][i] = rows_x[b][i / (L * D) * (L * D) + i % D] + dlrn_rng_normal(&rng);
        }
    }
    RUN(gradients_are_differences_of_the_loss);
    RUN(thresholds_get_the_estimate);
    RUN(compat_freezes_the_norms);
    RUN(clipping_is_over_all_parts);
    RUN(threads_and_kernels_change_nothing);
    RUN(waves_change_nothing);
    RUN(training_lowers_the_loss);
    RUN(the_step_is_the_encoding);
    RUN(a_resumed_run_is_the_same);
    RUN(checkpoints_are_checked);
    RUN(every_allocation_may_fail);
    RUN(wrong_settings_are_refused);
    RUN(other_dictionaries_are_refused);
    RUN(a_failed_first_step_changes_nothing);
    RUN(scales_of_the_first_batch);
    RUN(scales_of_a_dictionary);
    RUN(first_norms);
    RUN(first_weights_of_sparsify);
    RUN(first_weights_of_transcoders);
    RUN(first_groups);
    RUN(first_weights_by_seed);
    RUN(created_from_a_description);
    RUN(one_file_holds_all);
    RUN(circuit_tracer_gets_what_it_can_say);
    RUN(files_are_checked);
    dlrn_context_destroy(ctx);
    return TEST_END();
}
