/* test_trainer.c - the trainer: the schedules, the counters, resampling, and the same bits for any
   waves, threads and kernels. What its steps compute is in test_naive.c. */
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "tests/test.h"

enum { D = 7, F = 100, N = 13 };

static float rows_x[N * D], rows_y[N * D];

/* ---- Scenes ---- */

static void fill_rows(void) {
    dlrn_rng rng = {5, 0, 0};
    for (int i = 0; i < N * D; i++) {
        rows_x[i] = dlrn_rng_normal(&rng);
        rows_y[i] = 0.5f * rows_x[i] + dlrn_rng_normal(&rng);
    }
}

static dlrn_train_config small_config(void) {
    dlrn_train_config cfg = dlrn_train_defaults(NULL);
    cfg.d_in = D;
    cfg.features = F;
    cfg.sparsity_penalty = 0.1;
    cfg.warmup_steps = 0;
    cfg.log_steps = -1;
    cfg.seed = 3;
    return cfg;
}

/* A trainer whose features 10, 11, 50 and 99 fire on none of the rows and have been silent for 20
   steps. */
static dlrn_trainer *trainer_of(dlrn_context *ctx, const dlrn_train_config *cfg,
                                dlrn_center center) {
    static const int dead[] = {10, 11, 50, 99};
    dlrn_trainer *t = NULL;
    dlrn_dictionary *init = NULL;
    dlrn_rng rng = {77, 0, 0};
    CHECK_OK(ctx, new_autoencoder(ctx, D, F, cfg->seed, &init));
    init->formula.center = center;
    if (center == DLRN_CENTER_INPUT_BIAS) CHECK_OK(ctx, dlrni_param_alloc(init, DLRN_INPUT_BIAS));
    for (int c = 0; c < D && init->param[DLRN_INPUT_BIAS]; c++)
        init->param[DLRN_INPUT_BIAS][c] = 0.1f * (float)(c - 3);
    CHECK_OK(ctx, dlrn_trainer_create(ctx, cfg, init, NULL, &t));
    dlrn_dictionary_destroy(init);
    dlrn_dictionary *ae = dlrn_trainer_describe(t).dictionary;
    const float *b = dlrni_center_of(ae);
    for (int c = 0; c < D; c++) ae->param[DLRN_OUTPUT_BIAS][c] = 0.2f * dlrn_rng_normal(&rng);
    for (int p = 0; p < 4; p++) {
        float top = -100;
        for (int i = 0; i < N; i++) {
            float pre = 0;
            for (int c = 0; c < D; c++)
                pre +=
                    ae->param[DLRN_ENCODER][dead[p] * D + c] * (rows_x[i * D + c] - (b ? b[c] : 0));
            top = pre > top ? pre : top;
        }
        ae->param[DLRN_ENCODER_BIAS][dead[p]] = -top - 0.1f;
        dlrn_trainer_describe(t).since_fired[dead[p]] = 20;
    }
    dlrn_dictionary_changed(ae);
    return t;
}

static dlrn_trainer *make_trainer(dlrn_context *ctx, const dlrn_train_config *cfg) {
    return trainer_of(ctx, cfg, DLRN_CENTER_OUTPUT_BIAS);
}

enum { MANY = 300 };

static const float *many_rows(void) {
    static float x[MANY * D];
    dlrn_rng rng = {9, 1, 0};
    for (int i = 0; i < MANY * D; i++) x[i] = dlrn_rng_normal(&rng);
    return x;
}

/* One number for all weights, moments and counters of a trainer. */
static uint64_t hashed(uint64_t hash, const void *data, size_t size) { /* FNV-1a */
    for (size_t i = 0; data && i < size; i++)
        hash = (hash ^ ((const unsigned char *)data)[i]) * 1099511628211u;
    return hash;
}

static uint64_t fingerprint(dlrn_trainer *t) {
    uint64_t hash = hashed(14695981039346656037u, t->since_fired, (size_t)t->dict->features * 8);
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        const size_t size = (size_t)dlrni_role_size(t->dict, role) * sizeof(float);
        hash = hashed(hash, t->dict->param[role], t->dict->param[role] ? size : 0);
        hash = hashed(hash, t->m[role], t->m[role] ? size : 0);
        hash = hashed(hash, t->v[role], t->v[role] ? size : 0);
    }
    for (int64_t i = 0; i < t->n_parts; i++) hash += (uint64_t)(i + 1) * fingerprint(t->part[i]);
    return hash;
}

/* What is subtracted from x, and its moments, come back from a checkpoint. */
TEST(each_center_is_resumed) {
    dlrn_context *ctx = test_context("auto", 2);
    for (int center = 0; center < 3; center++) {
        const char *path = tmp_path("center.safetensors");
        dlrn_train_config cfg = small_config();
        dlrn_trainer *t = trainer_of(ctx, &cfg, (dlrn_center)center), *again = NULL;
        CHECK_OK(ctx, dlrn_trainer_step_on(t, rows_x, rows_y, N, NULL));
        CHECK_OK(ctx, dlrn_trainer_save(t, path));
        CHECK_OK(ctx, dlrn_trainer_resume(ctx, path, NULL, NULL, &again));
        CHECK(again->dict->formula.center == (dlrn_center)center);
        CHECK_OK(ctx, dlrn_trainer_step_on(t, rows_x, rows_y, N, NULL));
        CHECK_OK(ctx, dlrn_trainer_step_on(again, rows_x, rows_y, N, NULL));
        CHECK(fingerprint(again) == fingerprint(t));
        dlrn_trainer_destroy(again);
        dlrn_trainer_destroy(t);
    }
    dlrn_context_destroy(ctx);
}

/* Rows of 7 numbers, targets of 3: what the rows of a wider target give whose other columns are
   0. */
TEST(targets_of_another_width) {
    enum { OUT = 3 };
    static float y[N * OUT], wide[N * D];
    dlrn_context *ctx = test_context("auto", 2);
    dlrn_train_config cfg = small_config();
    dlrn_trainer *narrow = NULL, *same = NULL;
    dlrn_dictionary *a, *b;
    for (int i = 0; i < N * OUT; i++) y[i] = wide[i / OUT * D + i % OUT] = rows_y[i];
    cfg.lr = 0.01;
    cfg.ghost_threshold = 0;
    dlrn_dictionary_desc desc = {"AutoEncoder", D, OUT, F, 0, 3, 0};
    dlrn_dictionary *init[2] = {NULL, NULL};
    for (int k = 0; k < 2; k++) {
        desc.d_out = cfg.d_out = k ? D : OUT;
        CHECK_OK(ctx, dlrn_dictionary_create(ctx, &desc, &init[k]));
        init[k]->formula.center = DLRN_CENTER_NONE;
        if (k) {
            memset(init[1]->param[DLRN_DECODER], 0, F * D * sizeof(float));
            for (int i = 0; i < F * OUT; i++)
                init[1]->param[DLRN_DECODER][i / OUT * D + i % OUT] =
                    init[0]->param[DLRN_DECODER][i];
        }
        CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, init[k], NULL, k ? &same : &narrow));
    }
    a = dlrn_trainer_describe(narrow).dictionary;
    b = dlrn_trainer_describe(same).dictionary;
    CHECK_STATUS(dlrn_trainer_step_on(narrow, rows_x, NULL, N, NULL), DLRN_ERR_ARGUMENT);
    for (int step = 0; step < 5; step++) {
        dlrn_train_stats s[2];
        CHECK_OK(ctx, dlrn_trainer_step_on(narrow, rows_x, y, N, &s[0]));
        CHECK_OK(ctx, dlrn_trainer_step_on(same, rows_x, wide, N, &s[1]));
        CHECK_CLOSE(s[0].loss, s[1].loss, 1e-6);
    }
    for (int i = 0; i < F * D; i++)
        CHECK(fabsf(a->param[DLRN_ENCODER][i] - b->param[DLRN_ENCODER][i]) < 1e-5f);
    for (int i = 0; i < F * OUT; i++)
        CHECK(fabsf(a->param[DLRN_DECODER][i] - b->param[DLRN_DECODER][i / OUT * D + i % OUT]) <
              1e-5f);
    dlrn_trainer_destroy(narrow);
    dlrn_trainer_destroy(same);
    for (int k = 0; k < 2; k++) dlrn_dictionary_destroy(init[k]);
    dlrn_context_destroy(ctx);
}

/* ---- The same bits ---- */

static void three_workers_backwards(void *user, int64_t n_tasks, dlrn_parallel_body body,
                                    void *arg) {
    (void)user;
    for (int64_t task = n_tasks - 1; task >= 0; task--) body(arg, task, (int)(task % 3));
}

/* Some steps with everything switched on; the fingerprint. */
static uint64_t run_bits(dlrn_context *ctx, dlrn_sparsity sparsity, int64_t budget) {
    dlrn_train_config cfg = small_config();
    cfg.sparsity = sparsity;
    cfg.ghost_threshold = 10;
    cfg.lr = 0.01;
    dlrn_trainer *t = make_trainer(ctx, &cfg);
    if (budget) t->w.budget = budget;
    for (int i = 0; i < 5; i++) {
        dlrn_train_stats stats;
        CHECK_OK(ctx, dlrn_trainer_step_on(t, many_rows(), NULL, MANY, &stats));
        CHECK(!budget || t->w.wave < t->w.codes.groups);
    }
    uint64_t hash = fingerprint(t);
    dlrn_trainer_destroy(t);
    return hash;
}

TEST(panels_do_not_change_a_bit) {
    dlrn_context *ctx = test_context("auto", 1);
    for (int s = 0; s < 2; s++)
        CHECK(run_bits(ctx, (dlrn_sparsity)s, 0) == run_bits(ctx, (dlrn_sparsity)s, 1));
    dlrn_context_destroy(ctx);
}

TEST(threads_do_not_change_a_bit) {
    dlrn_context_config cfg = {0};
    dlrn_context *one = test_context("auto", 1), *omp = test_context("auto", 2), *host = NULL;
    cfg.threads = 3;
    cfg.parallel_for = three_workers_backwards;
    CHECK_STATUS(dlrn_context_create(&cfg, &host), DLRN_OK);
    uint64_t wanted = run_bits(one, DLRN_SPARSITY_L1, 0);
    CHECK(run_bits(host, DLRN_SPARSITY_L1, 0) == wanted);
    CHECK(run_bits(omp, DLRN_SPARSITY_L1, 0) == wanted);
    dlrn_context_destroy(one);
    dlrn_context_destroy(omp);
    dlrn_context_destroy(host);
}

TEST(kernels_do_not_change_a_bit) {
    dlrn_context *scalar = test_context("scalar", 1);
    uint64_t wanted = run_bits(scalar, DLRN_SPARSITY_L1, 0);
    for (int i = 1; test_kernels(i); i++) {
        dlrn_context *ctx = test_context(test_kernels(i), 1);
        CHECK_MSG(run_bits(ctx, DLRN_SPARSITY_L1, 0) == wanted, "%s", test_kernels(i));
        dlrn_context_destroy(ctx);
    }
    dlrn_context_destroy(scalar);
}

/* More dead features than one wave of ghosts has: the last ones move, too, with any kernels and
   threads alike. */
TEST(ghosts_in_waves) {
    enum {
        WIDE = DLRNI_AUX_SUMS + 3 * 48 + 5,
        DIMS = 4,
        SOME = 40
    }; /* a wave, three groups, and a part of one */
    dlrn_context *ctx = test_context("auto", 2), *scalar = test_context("scalar", 1);
    uint64_t hash[2];
    for (int s = 0; s < 2; s++) {
        dlrn_train_config cfg = dlrn_train_defaults(NULL);
        dlrn_trainer *t = NULL;
        dlrn_train_stats stats;
        float x[SOME * DIMS], before[DIMS];
        dlrn_rng rng = {3, 10, 0};
        for (int i = 0; i < SOME * DIMS; i++) x[i] = dlrn_rng_normal(&rng);
        cfg.d_in = DIMS;
        cfg.features = WIDE;
        cfg.warmup_steps = 0;
        cfg.ghost_threshold = 2;
        CHECK_OK(ctx, dlrn_trainer_create(s ? ctx : scalar, &cfg, NULL, NULL, &t));
        for (int64_t f = 0; f < WIDE; f++) {
            t->dict->param[DLRN_ENCODER_BIAS][f] = f % 100 ? -1 : 0.1f;
            t->since_fired[f] = f % 100 ? 9 : 0;
        }
        memcpy(before, t->dict->param[DLRN_ENCODER] + (WIDE - 2) * DIMS, sizeof before);
        CHECK_OK(ctx, dlrn_trainer_step_on(t, x, NULL, SOME, &stats));
        CHECK(t->w.aux.count > DLRNI_AUX_SUMS && stats.auxiliary_loss > 0);
        CHECK(memcmp(before, t->dict->param[DLRN_ENCODER] + (WIDE - 2) * DIMS, sizeof before) != 0);
        hash[s] = fingerprint(t);
        dlrn_trainer_destroy(t);
    }
    CHECK(hash[0] == hash[1]);
    dlrn_context_destroy(ctx);
    dlrn_context_destroy(scalar);
}

/* A batch of three stretches, the last one short, sparse and then dense: the same bits with every
   set of kernels, any threads and panels, and as the scalar kernels have it. */
static uint64_t long_bits(dlrn_context *ctx, float bias, int64_t budget) {
    enum { LONG = 2 * DLRNI_STRETCH + 77, D = 24, F = 150 };
    static float x[LONG * D];
    dlrn_train_config cfg = dlrn_train_defaults(NULL);
    dlrn_dictionary *init = NULL;
    dlrn_trainer *t = NULL;
    dlrn_rng rng = {3, 9, 0};
    for (int64_t i = 0; i < LONG * D; i++) x[i] = dlrn_rng_normal(&rng);
    cfg.d_in = D;
    cfg.features = F;
    cfg.warmup_steps = 0;
    CHECK_OK(ctx, new_autoencoder(ctx, D, F, 5, &init));
    for (int64_t j = 0; j < F; j++) init->param[DLRN_ENCODER_BIAS][j] = bias;
    CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, init, NULL, &t));
    if (budget) t->w.budget = budget;
    for (int i = 0; i < 2; i++) CHECK_OK(ctx, dlrn_trainer_step_on(t, x, NULL, LONG, NULL));
    uint64_t hash = fingerprint(t);
    dlrn_trainer_destroy(t);
    dlrn_dictionary_destroy(init);
    return hash;
}

TEST(long_batches_do_not_change_a_bit) {
    for (int dense = 0; dense < 2; dense++) {
        float bias = dense ? 0.1f : -1.5f;
        dlrn_context *scalar = test_context("scalar", 1);
        uint64_t wanted = long_bits(scalar, bias, 0);
        CHECK(long_bits(scalar, bias, 1) == wanted);
        for (int i = 1; test_kernels(i); i++) {
            dlrn_context *ctx = test_context(test_kernels(i), 1 + i % 2);
            CHECK_MSG(long_bits(ctx, bias, 0) == wanted, "%s", test_kernels(i));
            dlrn_context_destroy(ctx);
        }
        dlrn_context_destroy(scalar);
    }
}

/* Recipes that clip, select and estimate: the same bits with any kernels, threads and waves. */
static uint64_t recipe_bits(dlrn_context *ctx, const char *recipe, int64_t budget) {
    dlrn_train_config cfg = dlrn_train_defaults(recipe);
    dlrn_trainer *t = NULL;
    dlrn_train_stats stats;
    enum { ROWS = 100 };
    cfg.d_in = D * cfg.layers;
    cfg.features = F;
    cfg.lr = 0.01;
    cfg.warmup_steps = 2;
    if (cfg.k) cfg.k = 5;
    cfg.dead_rows = ROWS;
    cfg.bandwidth = 0.2;
    cfg.threshold_start_step = 2;
    if (cfg.target_l0 > 0 || cfg.sparsity == DLRN_SPARSITY_TARGET) cfg.target_l0 = 5;
    if (cfg.anneal_updates) cfg.anneal_start = 1, cfg.anneal_end = 3, cfg.anneal_updates = 3;
    if (cfg.anneal_updates) cfg.p_end = 0.5;
    CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, NULL, &t));
    for (int j = 0; j < F && !t->dict->n_parts; j += 9) t->dict->param[DLRN_ENCODER_BIAS][j] = -2;
    dlrn_dictionary_changed(t->dict);
    if (budget) t->w.budget = budget;
    for (int i = 0; i < 5; i++) {
        CHECK_OK(ctx, dlrn_trainer_step_on(t, many_rows(), NULL, ROWS, &stats));
        CHECK(!budget || t->dict->n_parts || t->w.wave < t->w.codes.groups);
    }
    CHECK(strcmp(recipe, "dl-top_k") || (stats.auxiliary_loss > 0 && stats.dead > 0));
    uint64_t hash = fingerprint(t);
    dlrn_trainer_destroy(t);
    return hash;
}

/* A recipe's words agree with what it does: its formula is its family's, its settings are fields of
   the configuration, its rate is the trainer's. */
TEST(recipes_in_words) {
    dlrn_context *ctx = test_context("auto", 1);
    char text[4096];
    for (int r = 0; dlrn_recipe(r); r++) {
        const dlrn_recipe_info *info = dlrn_recipe(r);
        dlrn_train_config cfg = dlrn_train_defaults(info->name);
        dlrn_trainer *t = NULL;
        dlrn_json *json = NULL;
        CHECK(info->formula == &dlrni_family_named(info->family)->formula);
        cfg.d_in = D * cfg.layers, cfg.features = F;
        if (cfg.k) cfg.k = 5; /* divides F, as groups must */
        CHECK((cfg.lr < 0) == (info->lr > 0));
        CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, NULL, &t));
        dlrn_trainer_info state = dlrn_trainer_describe(t);
        if (cfg.lr < 0) CHECK_CLOSE(state.config->lr, info->lr / sqrt(F / 16384.0), 1e-12);
        CHECK_STR(state.dictionary->family, info->family);
        CHECK(state.dictionary->formula.gate == info->formula->gate);
        int64_t size = dlrn_train_config_json(&cfg, text, sizeof text);
        CHECK_OK(ctx, dlrn_json_parse(ctx, text, (size_t)size, "text", &json));
        CHECK(dlrn_json_number(json, "lr", 0) == state.config->lr);
        for (int i = 0; info->settings[i]; i++)
            CHECK_MSG(dlrn_json_get(json, info->settings[i]), "%s", info->settings[i]);
        dlrn_free(ctx, json);
        dlrn_trainer_destroy(t);
    }
    CHECK(!dlrn_recipe(-1));
    dlrn_context_destroy(ctx);
}

TEST(recipes_do_not_depend_on_the_machine) {
    for (int r = 1; dlrn_recipe(r); r++) {
        const char *recipe = dlrn_recipe(r)->name;
        dlrn_context *scalar = test_context("scalar", 1), *ctx = test_context("auto", 2);
        uint64_t wanted = recipe_bits(scalar, recipe, 0);
        CHECK_MSG(recipe_bits(scalar, recipe, 1) == wanted, "%s: waves", recipe);
        CHECK_MSG(recipe_bits(ctx, recipe, 0) == wanted, "%s: kernels and threads", recipe);
        dlrn_context_destroy(scalar);
        dlrn_context_destroy(ctx);
    }
}

/* The gradients of rows that are all nearly the same, 65,536 of them, are those of a short batch: a
   running f32 sum would be off by 3e-4. With ghosts, those of dead features, too. */
TEST(sums_over_long_batches) {
    enum { LONG = 65536, SHORT = 64, W = 16, G = 48 };
    static float x[LONG * W], grad[2][3][G * W];
    static const dlrn_role roles[3] = {DLRN_DECODER, DLRN_ENCODER, DLRN_OUTPUT_BIAS};
    dlrn_context *ctx = test_context("auto", 2);
    for (int i = 0; i < LONG * W; i++) {
        dlrn_rng rng = {4, (uint64_t)(i % (SHORT * W)), 0}; /* the short batch, over and over */
        x[i] = 1 + 1e-3f * dlrn_rng_normal(&rng);
    }
    for (int ghosts = 0; ghosts < 2; ghosts++) {
        dlrn_train_config cfg = dlrn_train_defaults(NULL);
        dlrn_trainer *t = NULL;
        cfg.d_in = W;
        cfg.features = G;
        cfg.ghost_threshold = ghosts ? 1 : -1;
        CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, NULL, &t));
        for (int f = 0; f < G && ghosts; f++) {
            t->since_fired[f] = 9;
            t->dict->param[DLRN_ENCODER_BIAS][f] = -9; /* only the ghosts have gradients */
        }
        for (int k = 0; k < 2; k++) {
            float *out[DLRN_ROLE_COUNT] = {0};
            for (int i = 0; i < 3; i++) out[roles[i]] = grad[k][i];
            CHECK_OK(ctx, dlrni_trainer_gradients(t, x, NULL, k ? LONG : SHORT, out));
        }
        for (int r = 0; r < 3; r++) {
            double off = 0, size = 0;
            for (int64_t i = 0; i < dlrni_role_size(t->dict, roles[r]); i++) {
                off = fmax(off, fabs((double)grad[0][r][i] - (double)grad[1][r][i]));
                size = fmax(size, fabs((double)grad[0][r][i]));
            }
            CHECK_MSG(size > 0 && off < 6e-5 * size, "ghosts %d, role %d: off by %g", ghosts, r,
                      off / size);
        }
        dlrn_trainer_destroy(t);
    }
    dlrn_context_destroy(ctx);
}

/* ---- Special values ---- */

static int all_finite(const float *a, int n) {
    for (int i = 0; i < n; i++)
        if (!(fabsf(a[i]) <= FLT_MAX)) return 0;
    return 1;
}

TEST(zeros_survive) { /* a zero atom, zero rows, a perfect reconstruction */
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = small_config();
    cfg.ghost_threshold = 0;
    static float zero[N * D];
    for (int sparsity = 0; sparsity < 2; sparsity++) {
        cfg.sparsity = (dlrn_sparsity)sparsity;
        dlrn_trainer *t = make_trainer(ctx, &cfg);
        dlrn_dictionary *ae = dlrn_trainer_describe(t).dictionary;
        memset(ae->param[DLRN_DECODER], 0, 2 * D * sizeof(float));
        memset(ae->param[DLRN_DECODER] + 10 * D, 0, D * sizeof(float));
        CHECK_OK(ctx, dlrn_trainer_step_on(t, rows_x, NULL, N, NULL));
        for (int j = 0; j < F; j++) ae->param[DLRN_ENCODER_BIAS][j] = -100;
        memset(ae->param[DLRN_OUTPUT_BIAS], 0, D * sizeof(float));
        for (int i = 0; i < 3; i++) CHECK_OK(ctx, dlrn_trainer_step_on(t, zero, NULL, N, NULL));
        CHECK(all_finite(ae->param[DLRN_DECODER], F * D) &&
              all_finite(ae->param[DLRN_ENCODER], F * D));
        CHECK(all_finite(ae->param[DLRN_ENCODER_BIAS], F) &&
              all_finite(ae->param[DLRN_OUTPUT_BIAS], D));
        dlrn_trainer_destroy(t);
    }
    dlrn_context_destroy(ctx);
}

/* ---- Schedules and counters ---- */

/* Pre-activations of 300: their exponentials are infinite, unless the largest of a row is
   subtracted. */
TEST(ghosts_of_large_activations_stay_finite) {
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = small_config();
    dlrn_train_stats stats;
    cfg.ghost_threshold = 0;
    dlrn_trainer *t = make_trainer(ctx, &cfg);
    for (int j = 0; j < F; j++) t->dict->param[DLRN_ENCODER_BIAS][j] = -200;
    CHECK_OK(ctx, dlrn_trainer_step_on(t, rows_x, NULL, N, &stats));
    CHECK(stats.l0 == 0 && stats.dead == F && stats.auxiliary_loss > 0);
    CHECK(all_finite(t->dict->param[DLRN_DECODER], F * D));
    /* dead, and just now they fire */
    for (int j = 0; j < 3; j++) t->dict->param[DLRN_ENCODER_BIAS][j] = 300;
    CHECK_OK(ctx, dlrn_trainer_step_on(t, rows_x, NULL, N, &stats));
    CHECK(stats.l0 == 3 && stats.auxiliary_loss > 0 && stats.auxiliary_loss < 1e30);
    CHECK(all_finite(t->dict->param[DLRN_DECODER], F * D) &&
          all_finite(t->dict->param[DLRN_ENCODER], F * D));
    dlrn_trainer_destroy(t);
    dlrn_context_destroy(ctx);
}

TEST(rate_ramps_up_and_again_after_resampling) {
    dlrn_trainer t;
    memset(&t, 0, sizeof t);
    t.cfg = small_config();
    t.cfg.lr = 1;
    CHECK(dlrni_learning_rate(&t, 0) == 1);
    t.cfg.warmup_steps = 4;
    CHECK(dlrni_learning_rate(&t, 0) == 0 && dlrni_learning_rate(&t, 3) == 0.75);
    CHECK(dlrni_learning_rate(&t, 4) == 1 && dlrni_learning_rate(&t, 10) == 1);
    t.cfg.resample_steps = 10;
    CHECK(dlrni_learning_rate(&t, 9) == 1 && dlrni_learning_rate(&t, 10) == 0);
    CHECK(dlrni_learning_rate(&t, 11) == 0.25);
}

/* A target for L0 moves the penalty by at most 2 % a step, along L0's distance and trend; up to the
   end of the warm-up, with the same bits after a resume, and with no target not at all. */
TEST(a_target_steers_the_penalty) {
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = dlrn_train_defaults("reference");
    const char *path = tmp_path("steered.safetensors");
    double factor = 1, before = 0;
    dlrn_train_stats stats;
    cfg.d_in = D;
    cfg.features = F;
    cfg.warmup_steps = 0;
    for (int target = 0; target <= 60; target += 30, factor = 1) {
        dlrn_trainer *t = NULL, *again = NULL;
        cfg.target_l0 = target;
        CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, NULL, &t));
        for (int step = 0; step < 4; step++) {
            CHECK_OK(ctx, dlrn_trainer_step_on(t, rows_x, NULL, N, &stats));
            CHECK_CLOSE(stats.penalty, cfg.sparsity_penalty * factor, 1e-12);
            double off = log((stats.l0 + 0.1) / (target + 0.1));
            double change = off + (step ? 20 * (off - before) : 0);
            before = off;
            if (target) factor *= exp(0.02 * fmax(-1, fmin(1, change)));
            CHECK_CLOSE(t->steering.factor, factor, 1e-12);
        }
        CHECK_OK(ctx, dlrn_trainer_save(t, path));
        CHECK_OK(ctx, dlrn_trainer_resume(ctx, path, &cfg, NULL, &again));
        CHECK(!memcmp(&again->steering, &t->steering, sizeof t->steering));
        t->step = 1000;
        CHECK_OK(ctx, dlrn_trainer_step_on(t, rows_x, NULL, N, NULL));
        CHECK(!memcmp(&again->steering, &t->steering, sizeof t->steering));
        dlrn_trainer_destroy(again);
        dlrn_trainer_destroy(t);
    }
    dlrn_context_destroy(ctx);
}

TEST(logging_counts_twice_in_compat_alone) {
    dlrn_context *ctx = test_context("auto", 1);
    for (int compat = 0; compat < 2; compat++) {
        dlrn_train_config cfg = small_config();
        dlrn_train_stats stats, loss;
        cfg.compat = compat;
        cfg.log_steps = 2;
        dlrn_trainer *t = make_trainer(ctx, &cfg);
        for (int i = 0; i < 3; i++) CHECK_OK(ctx, dlrn_trainer_step_on(t, rows_x, NULL, N, &stats));
        CHECK(t->since_fired[10] == 20 + 3 + (compat ? 2 : 0)); /* steps 0 and 2 are logged */
        CHECK(stats.step == 2);
        CHECK_OK(ctx, dlrni_forward_loss(t, rows_x, NULL, N, &loss));
        CHECK((loss.loss == stats.loss) == compat); /* compat logs the loss after the update */
        CHECK(t->since_fired[10] == 20 + 3 + (compat ? 2 : 0));
        dlrn_trainer_destroy(t);
    }
    dlrn_context_destroy(ctx);
}

TEST(what_is_not_finite_is_named_and_changes_nothing) {
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = small_config();
    dlrn_trainer *t = make_trainer(ctx, &cfg);
    float x[N * D];
    memcpy(x, rows_x, sizeof x);
    x[3 * D + 5] = (float)INFINITY;
    uint64_t before = fingerprint(t);
    CHECK_STATUS(dlrn_trainer_step_on(t, x, NULL, N, NULL), DLRN_ERR_VALUE);
    CHECK_STR(dlrn_error(ctx), "x [3][5]: expected a finite number, found inf");
    CHECK_STATUS(dlrn_trainer_step_on(t, rows_x, x, N, NULL), DLRN_ERR_VALUE);
    CHECK_STR(dlrn_error(ctx), "y [3][5]: expected a finite number, found inf");
    CHECK(fingerprint(t) == before);
    t->dict->param[DLRN_ENCODER][70 * D] = (float)NAN;
    before = fingerprint(t);
    CHECK_STATUS(dlrn_trainer_step_on(t, rows_x, NULL, N, NULL), DLRN_ERR_VALUE);
    CHECK_STR(dlrn_error(ctx), "step 0");
    CHECK(fingerprint(t) == before && dlrn_trainer_describe(t).steps == 0);
    dlrn_trainer_destroy(t);
    dlrn_context_destroy(ctx);
}

TEST(a_configuration_out_of_range_is_refused) {
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_trainer *t = NULL;
#define REFUSE(change, name)                                                                       \
    do {                                                                                           \
        dlrn_train_config cfg = small_config();                                                    \
        change;                                                                                    \
        CHECK_STATUS(dlrn_trainer_create(ctx, &cfg, NULL, NULL, &t), DLRN_ERR_ARGUMENT);           \
        CHECK_STR(dlrn_error(ctx), name);                                                          \
    } while (0)
    REFUSE(cfg.lr = -1, "lr");
    REFUSE(cfg.lr = NAN, "lr");
    REFUSE(cfg.beta2 = 1, "beta2");
    REFUSE(cfg.resample_steps = 0, "resample_steps");
    REFUSE(cfg.warmup_steps = -1, "warmup_steps");
    REFUSE(cfg.ghost_threshold = -2, "ghost_threshold");
    REFUSE(cfg.features = 0, "dict_size");
    dlrn_train_config cfg = small_config();
    dlrn_dictionary *other = NULL;
    CHECK_OK(ctx, new_autoencoder(ctx, D + 1, F, 0, &other));
    CHECK_STATUS(dlrn_trainer_create(ctx, &cfg, other, NULL, &t), DLRN_ERR_SHAPE);
    dlrn_dictionary_destroy(other);
    CHECK_OK(ctx, new_identity(ctx, D, &other));
    CHECK_STATUS(dlrn_trainer_create(ctx, &cfg, other, NULL, &t), DLRN_ERR_UNSUPPORTED);
    dlrn_dictionary_destroy(other);
    CHECK(t == NULL);
    dlrn_context_destroy(ctx);
}

/* ---- Resampling ---- */

static double encoder_norm(const dlrn_trainer *t, int j) {
    return (double)dlrn_norm(t->ctx, t->dict->param[DLRN_ENCODER] + j * D, D);
}

/* The row of rows_x, rows_y that feature j was made from; -1: none. */
static int origin(const dlrn_trainer *t, int j) {
    for (int i = 0; i < N; i++) {
        double norm = (double)dlrn_norm(t->ctx, rows_y + i * D, D), off = 0;
        for (int c = 0; c < D; c++)
            off += fabs((double)t->dict->param[DLRN_DECODER][j * D + c] -
                        (double)rows_y[i * D + c] / norm);
        if (off < 1e-5) return i;
    }
    return -1;
}

TEST(the_dead_begin_again_from_rows) {
    static const int dead[] = {10, 11, 50, 99};
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = small_config();
    int64_t revived = -1;
    cfg.resample_steps = 40; /* silent for 20 is dead */
    dlrn_trainer *t = make_trainer(ctx, &cfg);
    double mean = 0;
    int used[N] = {0};
    for (int j = 0; j < F; j++)
        if (j != 10 && j != 11 && j != 50 && j != 99) mean += encoder_norm(t, j) / (F - 4);
    t->m[DLRN_DECODER][50 * D] = t->v[DLRN_ENCODER_BIAS][50] = 1;
    CHECK_OK(ctx, dlrni_resample(t, rows_x, rows_y, N, &revived));
    CHECK(revived == 4);
    for (int p = 0; p < 4; p++) {
        int j = dead[p], row = origin(t, j);
        CHECK_MSG(row >= 0 && !used[row]++, "feature %d: row %d", j, row);
        CHECK_CLOSE(encoder_norm(t, j), 0.2 * mean, 1e-5);
        for (int c = 0; c < D; c++) { /* along x - bias */
            double a = (double)t->dict->param[DLRN_ENCODER][j * D + c] *
                       ((double)rows_x[row * D] - (double)t->dict->param[DLRN_OUTPUT_BIAS][0]);
            double b = (double)t->dict->param[DLRN_ENCODER][j * D] *
                       ((double)rows_x[row * D + c] - (double)t->dict->param[DLRN_OUTPUT_BIAS][c]);
            CHECK(fabs(a - b) < 1e-6);
        }
        CHECK(t->dict->param[DLRN_ENCODER_BIAS][j] == 0 && t->since_fired[j] == 0);
    }
    CHECK(t->m[DLRN_DECODER][50 * D] == 0 && t->v[DLRN_ENCODER_BIAS][50] == 0);
    CHECK_OK(ctx, dlrni_resample(t, rows_x, rows_y, N, &revived));
    CHECK(revived == 0); /* none dead */
    dlrn_trainer_destroy(t);
    dlrn_context_destroy(ctx);
}

/* A threshold that no row reaches any more goes back to where it began. */
TEST(revived_features_have_a_threshold_of_their_beginning) {
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = dlrn_train_defaults("dl-jump_relu");
    dlrn_trainer *t = NULL;
    dlrn_train_stats stats;
    int64_t revived = -1;
    cfg.d_in = D;
    cfg.features = F;
    cfg.resample_steps = 40;
    CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, NULL, &t));
    float *threshold = t->dict->param[DLRN_THRESHOLD], begun = threshold[0];
    for (int j = 0; j < F; j++) threshold[j] = 1000;
    t->since_fired[10] = 20;
    CHECK_OK(ctx, dlrni_resample(t, rows_x, NULL, N, &revived));
    CHECK(revived == 1 && fabsf(threshold[10] - begun) < 1e-9f && threshold[11] > 999);
    CHECK_OK(ctx, dlrn_trainer_step_on(t, rows_x, NULL, N, &stats));
    CHECK(stats.l0 > 0 && t->since_fired[10] == 0);
    dlrn_trainer_destroy(t);
    dlrn_context_destroy(ctx);
}

/* A trainer with half of its weights written takes no rows for anything. */
TEST(a_broken_trainer_refuses_all) {
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = small_config();
    cfg.resample_steps = 40;
    dlrn_trainer *t = make_trainer(ctx, &cfg);
    t->stage = DLRNI_BROKEN;
    uint64_t before = fingerprint(t);
    CHECK_STATUS(dlrn_trainer_step_on(t, rows_x, NULL, N, NULL), DLRN_ERR_ARGUMENT);
    CHECK_STATUS(dlrn_trainer_save(t, tmp_path("broken.safetensors")), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "resume from a checkpoint");
    CHECK(fingerprint(t) == before);
    dlrn_trainer_destroy(t);
    dlrn_context_destroy(ctx);
}

/* A trainer without a buffer draws from the rows of the step. */
TEST(resampling_without_a_buffer) {
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = small_config();
    dlrn_train_stats stats = {0};
    int64_t revived = -1;
    cfg.resample_steps = 4; /* silent for 2 is dead */
    dlrn_trainer *t = make_trainer(ctx, &cfg), *by_hand = make_trainer(ctx, &cfg);
    for (int i = 0; i <= 4; i++) {
        CHECK_OK(ctx, dlrn_trainer_step_on(t, rows_x, rows_y, N, &stats));
        CHECK((stats.resampled > 0) == (i == 4));
        if (i < 4) CHECK_OK(ctx, dlrn_trainer_step_on(by_hand, rows_x, rows_y, N, NULL));
    }
    by_hand->x = rows_x, by_hand->y = rows_y, by_hand->n = N;
    CHECK_OK(ctx, dlrni_stage_update(by_hand));
    CHECK_OK(ctx, dlrni_resample(by_hand, rows_x, rows_y, N, &revived));
    CHECK(revived == stats.resampled && fingerprint(t) == fingerprint(by_hand));
    dlrn_trainer_destroy(t);
    dlrn_trainer_destroy(by_hand);
    dlrn_context_destroy(ctx);
}

TEST(resampling_with_too_few_rows_or_nothing_alive) {
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = small_config();
    int64_t revived = -1;
    static float x[N * D], y[N * D];
    cfg.resample_steps = 40;
    dlrn_trainer *t = make_trainer(ctx, &cfg);
    for (int j = 0; j < F; j++) t->since_fired[j] = 20;
    memcpy(x, rows_x, sizeof x);
    memcpy(y, rows_y, sizeof y);
    memset(y + 2 * D, 0, D * sizeof(float));
    memcpy(x + 4 * D, t->dict->param[DLRN_OUTPUT_BIAS], D * sizeof(float));
    CHECK_OK(ctx, dlrni_resample(t, x, y, N, &revived));
    CHECK(revived == N - 2); /* two rows have no direction */
    CHECK(all_finite(t->dict->param[DLRN_ENCODER], F * D) &&
          all_finite(t->dict->param[DLRN_DECODER], F * D));
    CHECK(t->since_fired[0] == 0 && t->since_fired[F - 1] == 20);

    for (int j = 0; j < F; j++)
        t->dict->param[DLRN_ENCODER_BIAS][j] =
            -1000; /* x_hat = bias, and y = bias: no loss at all */
    for (int i = 0; i < N; i++)
        memcpy(y + i * D, t->dict->param[DLRN_OUTPUT_BIAS], D * sizeof(float));
    CHECK_OK(ctx, dlrni_resample(t, rows_x, y, N, &revived));
    CHECK(revived == 0);

    memset(t->dict->param[DLRN_ENCODER], 0, F * D * sizeof(float)); /* no norm to go by: 0.2 */
    for (int j = 0; j < F; j++) t->since_fired[j] = 20;
    CHECK_OK(ctx, dlrni_resample(t, rows_x, rows_y, N, &revived));
    CHECK(revived == N);
    CHECK_CLOSE(encoder_norm(t, 0), 0.2, 1e-5);
    dlrn_trainer_destroy(t);
    dlrn_context_destroy(ctx);
}

TEST(weights_are_squared_losses) {
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = small_config();
    dlrn_trainer *t = make_trainer(ctx, &cfg);
    float x_hat[N * D], scratch[N * D], xc[D], loss[N];
    dlrn_encoder *encoder = NULL;
    CHECK_OK(ctx, dlrn_encoder_create(t->dict, &encoder));
    CHECK_OK(ctx, dlrn_forward(t->dict, rows_x, N, x_hat, NULL));
    CHECK_OK(ctx, dlrni_row_losses(t, encoder, rows_x, rows_y, N, xc, scratch, loss));
    for (int i = 0; i < N; i++) {
        double square = 0;
        for (int c = 0; c < D; c++)
            square += pow((double)rows_y[i * D + c] - (double)x_hat[i * D + c], 2);
        CHECK_CLOSE(loss[i], square, 1e-5);
    }
    dlrn_encoder_destroy(encoder);
    dlrn_trainer_destroy(t);
    dlrn_context_destroy(ctx);
}

TEST(rows_are_drawn_by_weight) {
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = small_config();
    dlrn_trainer *t = make_trainer(ctx, &cfg);
    int64_t first[4] = {0}, drawn[4], count, rounds = 4000;
    for (int64_t i = 0; i < rounds; i++) {
        float weight[4] = {1, 6, 0, 3};
        t->step = i;
        CHECK_OK(ctx, dlrni_draw_rows(t, weight, 4, 4, drawn, &count));
        CHECK(count == 3 && drawn[0] != 2 && drawn[1] != 2 && drawn[2] != 2);
        CHECK(drawn[0] != drawn[1] && drawn[1] != drawn[2] && drawn[0] != drawn[2]);
        first[drawn[0]]++;
    }
    CHECK(first[0] > 300 && first[0] < 500); /* a tenth */
    CHECK(first[1] > 2250 && first[1] < 2550);
    CHECK(first[3] > 1080 && first[3] < 1320);
    for (t->step = 0; t->step < 20;
         t->step++) { /* by numbers that nothing else draws, the same in any version */
        float weight[4] = {1, 1, 1, 1};
        uint64_t stream = (uint64_t)1 << 63 | (uint64_t)t->step;
        CHECK_OK(ctx, dlrni_draw_rows(t, weight, 4, 1, drawn, &count));
        for (uint64_t i = 0; i < 4; i++)
            CHECK(dlrni_philox_block(cfg.seed, stream, i).lo <=
                  dlrni_philox_block(cfg.seed, stream, (uint64_t)drawn[0]).lo);
    }
    dlrn_trainer_destroy(t);
    dlrn_context_destroy(ctx);
}

TEST(resampling_in_compat_forgets_moments_alone) {
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = small_config();
    dlrn_train_stats stats;
    dlrn_dictionary *old = NULL;
    int64_t revived = -1;
    cfg.compat = 1;
    cfg.resample_steps = 40;
    dlrn_trainer *t = make_trainer(ctx, &cfg);
    CHECK_OK(ctx, dlrn_trainer_step_on(t, rows_x, rows_y, N,
                                       &stats)); /* step 0 resamples, too: silent 21 > 20 */
    CHECK(stats.resampled == 4);
    dlrn_trainer_info state = dlrn_trainer_describe(t), *s = &state;
    s->m[DLRN_ENCODER][10 * D] = s->v[DLRN_ENCODER][10 * D] = s->m[DLRN_ENCODER_BIAS][10] =
        s->v[DLRN_ENCODER_BIAS][10] = 1;
    s->m[DLRN_DECODER][10 * D] = 1;
    CHECK_OK(ctx, dlrni_dictionary_copy(t->dict->ctx, t->dict, &old));
    CHECK_OK(ctx, dlrni_resample(t, rows_x, rows_y, N, &revived));
    CHECK(revived == 4 && s->since_fired[10] == 21);
    CHECK(s->m[DLRN_ENCODER][10 * D] == 0 && s->v[DLRN_ENCODER][10 * D] == 0);
    CHECK(s->m[DLRN_ENCODER_BIAS][10] == 0 && s->v[DLRN_ENCODER_BIAS][10] == 0 &&
          s->m[DLRN_DECODER][10 * D] == 1);
    CHECK(!memcmp(old->param[DLRN_ENCODER], t->dict->param[DLRN_ENCODER], F * D * sizeof(float)));
    CHECK(!memcmp(old->param[DLRN_DECODER], t->dict->param[DLRN_DECODER], F * D * sizeof(float)));
    CHECK(!memcmp(old->param[DLRN_ENCODER_BIAS], t->dict->param[DLRN_ENCODER_BIAS],
                  F * sizeof(float)));
    dlrn_dictionary_destroy(old);
    dlrn_trainer_destroy(t);
    dlrn_context_destroy(ctx);
}

/* ---- Text and files ---- */

TEST(the_configuration_as_json) {
    char text[2048], cut[10];
    dlrn_train_config cfg = small_config();
    cfg.lr = 0.0003;
    cfg.eps = 1.0 / 3;
    cfg.seed = UINT64_MAX;
    int64_t length = dlrn_train_config_json(&cfg, text, sizeof text);
    CHECK(length == (int64_t)strlen(text) && text[0] == '{' && text[length - 1] == '}');
    CHECK_STR(text, "\"activation_dim\": 7, ");
    CHECK_STR(text, "\"lr\": 0.0003, ");
    CHECK_STR(text, "\"eps\": 0.33333333333333331, ");
    CHECK_STR(text, "\"loss\": \"norm\", \"sparsity\": \"l1\", ");
    CHECK_STR(text, "\"compat\": false, ");
    CHECK_STR(text, "\"seed\": 18446744073709551615}");
    CHECK(dlrn_train_config_json(&cfg, cut, sizeof cut) == length && strlen(cut) == 9 &&
          !strncmp(cut, text, 9));
    CHECK(dlrn_train_config_json(&cfg, NULL, 0) == length);
}

TEST(a_resumed_trainer_goes_on_with_the_same_bits) {
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = small_config();
    cfg.ghost_threshold = 10;
    cfg.warmup_steps = 3;
    const char *path = tmp_path("trainer.safetensors");
    dlrn_trainer *t = make_trainer(ctx, &cfg), *again = NULL;
    for (int i = 0; i < 2; i++)
        CHECK_OK(ctx, dlrn_trainer_step_on(t, many_rows(), NULL, MANY, NULL));
    CHECK_STATUS(dlrn_trainer_save(t, tmp_path("trainer.pt")), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "trainer.pt: expected a name ending in .safetensors");
    CHECK_OK(ctx, dlrn_trainer_save(t, path));
    CHECK_OK(ctx, dlrn_trainer_resume(ctx, path, NULL, NULL, &again));
    CHECK(fingerprint(again) == fingerprint(t) && dlrn_trainer_describe(again).steps == 2);
    CHECK(!memcmp(&again->cfg, &t->cfg, sizeof cfg));
    for (int i = 0; i < 3; i++) {
        CHECK_OK(ctx, dlrn_trainer_step_on(t, many_rows(), NULL, MANY, NULL));
        CHECK_OK(ctx, dlrn_trainer_step_on(again, many_rows(), NULL, MANY, NULL));
    }
    CHECK(fingerprint(again) == fingerprint(t));
    dlrn_trainer_destroy(again);
    cfg.compat = 1;
    CHECK_STATUS(dlrn_trainer_resume(ctx, path, &cfg, NULL, &again), DLRN_ERR_ARGUMENT);
    cfg = small_config();
    cfg.features++;
    CHECK_STATUS(dlrn_trainer_resume(ctx, path, &cfg, NULL, &again), DLRN_ERR_SHAPE);
    CHECK(again == NULL);
    dlrn_trainer_destroy(t);
    dlrn_context_destroy(ctx);
}

/* Overwrites `text` with `with`, as long, in a file. */
static void change_file(dlrn_context *ctx, const char *path, const char *text, const char *with) {
    char *bytes;
    size_t size, at = 0, n = strlen(text);
    CHECK_OK(ctx, dlrn_file_read(ctx, path, &bytes, &size));
    while (at + n <= size && memcmp(bytes + at, text, n)) at++;
    CHECK_MSG(at + n <= size, "%s lacks %s", path, text);
    memcpy(bytes + at, with, n);
    CHECK_OK(ctx, dlrn_file_write(ctx, path, bytes, size));
    dlrn_free(ctx, bytes);
}

TEST(checkpoints_that_lie) {
    static const struct {
        const char *text, *with, *words;
        dlrn_status status;
    } lies[] = {
        {"beta1\\\": 0.9", "beta1\\\": 7.9",
         "config: beta1: expected a number from 0 below 1, found 7.9", DLRN_ERR_FORMAT},
        {"beta1\\\": 0.9", "beta1\\\": nul", "JSON, line 1, byte", DLRN_ERR_FORMAT},
        {"checkpoint 1", "checkpoint 2", "\"format\" is missing or malformed", DLRN_ERR_FORMAT},
        {"dict_size\\\": ", "dict_size\\\":9", "tensor 'encoder_weight': expected F32 [9",
         DLRN_ERR_SHAPE},
        {"steps_since_fired", "steps_since_found", "\"steps_since_fired\" is missing or malformed",
         DLRN_ERR_FORMAT},
    };
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = small_config();
    const char *path = tmp_path("lies.safetensors");
    dlrn_trainer *t = make_trainer(ctx, &cfg), *again = NULL;
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        CHECK_OK(ctx, dlrn_trainer_save(t, path));
        change_file(ctx, path, lies[i].text, lies[i].with);
        CHECK_STATUS(dlrn_trainer_resume(ctx, path, NULL, NULL, &again), lies[i].status);
        CHECK_STR(dlrn_error(ctx), "lies.safetensors: ");
        CHECK_STR(dlrn_error(ctx), lies[i].words);
        CHECK(again == NULL);
    }
    dlrn_trainer_describe(t).dictionary->param[DLRN_ENCODER][1] =
        123456.789f; /* not saved as it is to be found: a NaN */
    CHECK_OK(ctx, dlrn_trainer_save(t, path));
    change_file(ctx, path, "\x65\x20\xf1\x47", "\x65\x20\xc1\x7f");
    CHECK_STATUS(dlrn_trainer_resume(ctx, path, NULL, NULL, &again), DLRN_ERR_VALUE);
    CHECK_STR(
        dlrn_error(ctx),
        "lies.safetensors: tensor 'encoder_weight': element 1: expected a finite number, found");
    CHECK(again == NULL);
    dlrn_trainer_describe(t).dictionary->param[DLRN_ENCODER][1] = 0;
    for (int i = 0; i < 8;
         i++) { /* each moment: infinite it may be; a NaN, or a square below 0, it is not */
        float *moments[8] = {t->m[DLRN_OUTPUT_BIAS],  t->m[DLRN_ENCODER],
                             t->m[DLRN_ENCODER_BIAS], t->m[DLRN_DECODER],
                             t->v[DLRN_OUTPUT_BIAS],  t->v[DLRN_ENCODER],
                             t->v[DLRN_ENCODER_BIAS], t->v[DLRN_DECODER]};
        for (int k = 0; k < 4; k++) {
            const float put[4] = {NAN, -0.5f, HUGE_VALF, 0};
            int wrong = k == 0 || (k == 1 && i > 3);
            moments[i][3] = put[k];
            CHECK_OK(ctx, dlrn_trainer_save(t, path));
            CHECK_STATUS(dlrn_trainer_resume(ctx, path, NULL, NULL, &again),
                         wrong ? DLRN_ERR_VALUE : DLRN_OK);
            if (wrong)
                CHECK_STR(dlrn_error(ctx),
                          i > 3 ? "element 3: expected a number from 0, found " : "element 3");
            dlrn_trainer_destroy(again);
            again = NULL;
        }
    }
    dlrn_trainer_destroy(t);
    dlrn_context_destroy(ctx);
}

/* A trainer that takes its rows from an array of MANY rows, three times through, sixteen at a time.
 */
static dlrn_buffer *make_buffer(dlrn_context *ctx) {
    dlrn_buffer_config cfg = dlrn_buffer_defaults();
    dlrn_buffer *buffer = NULL;
    dlrn_source source;
    cfg.capacity = 100;
    cfg.read_rows = 30;
    cfg.batch_rows = 16;
    CHECK_OK(ctx, dlrn_source_from_array(ctx, many_rows(), NULL, MANY, D, 0, 3, &source));
    CHECK_OK(ctx, dlrn_buffer_create(ctx, &cfg, &source, DLRN_OWNED, &buffer));
    return buffer;
}

TEST(a_resumed_run_draws_the_same_rows) {
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = small_config();
    const char *path = tmp_path("run.safetensors");
    dlrn_buffer *one = make_buffer(ctx), *two = make_buffer(ctx);
    dlrn_trainer *t = NULL, *again = NULL;
    cfg.resample_steps = 6;
    cfg.resample_rows = 64;
    cfg.steps = 40;
    CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, one, &t));
    t->dict->param[DLRN_ENCODER_BIAS][3] = -1000;
    int64_t revived = 0, steps = 0;
    dlrn_train_stats stats;
    for (int i = 0; i < 11; i++) CHECK_OK(ctx, dlrn_trainer_step(t, NULL));
    CHECK_OK(ctx, dlrn_trainer_save(t, path));
    CHECK_OK(ctx, dlrn_trainer_resume(ctx, path, NULL, two, &again));
    while (dlrn_trainer_step(t, &stats) == DLRN_OK) revived += stats.resampled, steps++;
    while (dlrn_trainer_step(again, &stats) == DLRN_OK) revived -= stats.resampled;
    CHECK(steps == 29 && revived == 0 && t->dict->param[DLRN_ENCODER_BIAS][3] > -1000);
    CHECK(fingerprint(again) == fingerprint(t));
    dlrn_trainer_destroy(t);
    dlrn_trainer_destroy(again);
    dlrn_buffer_destroy(one);
    dlrn_buffer_destroy(two);
    dlrn_context_destroy(ctx);
}

/* A run of one time through its rows that is resumed for two. */
TEST(a_resumed_run_may_go_on_for_longer) {
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = small_config();
    const char *path = tmp_path("longer.safetensors");
    for (int drained = 0; drained < 2; drained++) {
        int64_t steps[2] = {0, 0};
        for (int part = 0; part < 2; part++) {
            dlrn_buffer *b = make_buffer(ctx);
            ((dlrni_array_source *)b->source.user)->epochs = part + 1;
            dlrn_trainer *t = NULL;
            if (part)
                CHECK_OK(ctx, dlrn_trainer_resume(ctx, path, NULL, b, &t));
            else
                CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, b, &t));
            int64_t until = drained || part
                                ? MANY
                                : MANY / 16 - 3; /* the source has ended, and there are rows yet */
            while (dlrn_trainer_describe(t).steps < until && dlrn_trainer_step(t, NULL) == DLRN_OK)
                steps[part]++;
            CHECK_OK(ctx, dlrn_trainer_save(t, path));
            if (part) CHECK(b->rows_read == 2 * MANY);
            dlrn_trainer_destroy(t);
            dlrn_buffer_destroy(b);
        }
        CHECK(steps[0] >= MANY / 16 - 3 && steps[0] + steps[1] >= 2 * MANY / 16);
    }
    dlrn_context_destroy(ctx);
}

/* Fewer rows than were read: they are other rows. */
TEST(a_run_is_not_resumed_on_fewer_rows) {
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = small_config();
    const char *path = tmp_path("fewer.safetensors");
    dlrn_buffer *b = make_buffer(ctx);
    dlrn_trainer *t = NULL;
    CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, b, &t));
    for (int i = 0; i < 6; i++) CHECK_OK(ctx, dlrn_trainer_step(t, NULL));
    CHECK_OK(ctx, dlrn_trainer_save(t, path));
    dlrn_trainer_destroy(t);
    dlrn_buffer_destroy(b);
    b = make_buffer(ctx);
    ((dlrni_array_source *)b->source.user)->rows = 20;
    CHECK_OK(ctx, dlrni_buffer_read_ahead(b, 0));
    int64_t held = b->unread;
    CHECK_STATUS(dlrn_trainer_resume(ctx, path, NULL, b, &t), DLRN_ERR_ARGUMENT);
    CHECK_STR(
        dlrn_error(ctx),
        "fewer.safetensors: not a checkpoint for this trainer: buffer: the source, on its way to ");
    CHECK_STR(dlrn_error(ctx), "expected at most 60, the end of its rows");
    CHECK(b->unread == held); /* and the buffer is as it was */
    dlrn_buffer_destroy(b);
    dlrn_context_destroy(ctx);
}

/* Weights of another context, of other threads, which is gone when the first step is made. */
TEST(weights_of_another_context) {
    dlrn_context *ctx = test_context("auto", 4), *other = test_context("auto", 1);
    dlrn_train_config cfg = small_config();
    dlrn_dictionary *init = NULL, *same = NULL;
    dlrn_trainer *t = NULL, *wanted = NULL;
    CHECK_OK(other, new_autoencoder(other, D, F, 5, &init));
    CHECK_OK(ctx, new_autoencoder(ctx, D, F, 5, &same));
    CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, init, NULL, &t));
    CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, same, NULL, &wanted));
    dlrn_dictionary_destroy(init);
    dlrn_context_destroy(other);
    CHECK(t->dict->ctx == ctx);
    for (int i = 0; i < 3; i++) {
        CHECK_OK(ctx, dlrn_trainer_step_on(t, rows_x, NULL, N, NULL));
        CHECK_OK(ctx, dlrn_trainer_step_on(wanted, rows_x, NULL, N, NULL));
    }
    CHECK(fingerprint(t) == fingerprint(wanted));
    dlrn_dictionary_destroy(same);
    dlrn_trainer_destroy(t);
    dlrn_trainer_destroy(wanted);
    dlrn_context_destroy(ctx);
}

static dlrn_status stop_at_five(void *user, dlrn_trainer *trainer, const dlrn_train_stats *stats) {
    (void)trainer;
    ++*(int *)user;
    return stats->step == 4 ? DLRN_STOPPED : DLRN_OK;
}

static int polls; /* until a stop is asked for */

static int stop_in_a_while(void *user) {
    (void)user;
    return polls-- == 0;
}

/* Each resampling is stopped, and its step asked for again: by the same trainer, or by one that was
   resumed. */
TEST(a_resampling_that_is_stopped_goes_on) {
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = small_config();
    const char *path = tmp_path("stopped.safetensors");
    cfg.resample_steps = 6;
    for (int saved = 0; saved < 2; saved++) {
        dlrn_buffer *one = make_buffer(ctx), *two = make_buffer(ctx);
        dlrn_trainer *t = NULL, *again = NULL;
        int64_t stops = 0, revived = 0;
        CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, one, &t));
        CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, two, &again));
        t->dict->param[DLRN_ENCODER_BIAS][3] = again->dict->param[DLRN_ENCODER_BIAS][3] = -1000;
        for (;;) {
            dlrn_train_stats wanted, found;
            ctx->cfg.stop = NULL;
            dlrn_status end = dlrn_trainer_step(t, &wanted);
            polls = 0;
            ctx->cfg.stop = stop_in_a_while;
            dlrn_status s = dlrn_trainer_step(again, &found);
            if (s == DLRN_STOPPED) {
                stops++;
                CHECK(dlrn_trainer_describe(again).steps == dlrn_trainer_describe(t).steps);
                if (saved) {
                    ctx->cfg.stop = NULL;
                    CHECK_OK(ctx, dlrn_trainer_save(again, path));
                    dlrn_trainer_destroy(again);
                    dlrn_buffer_destroy(two);
                    two = make_buffer(ctx);
                    CHECK_OK(ctx, dlrn_trainer_resume(ctx, path, NULL, two, &again));
                }
                memset(&found, 0xAA, sizeof found);
                s = dlrn_trainer_step(again, &found);
            }
            CHECK_STATUS(s, end);
            if (s == DLRN_END) break;
            CHECK(!memcmp(&wanted, &found, sizeof found));
            revived += wanted.resampled;
        }
        CHECK(stops > 0 && revived > 0 && fingerprint(again) == fingerprint(t));
        dlrn_trainer_destroy(t);
        dlrn_trainer_destroy(again);
        dlrn_buffer_destroy(one);
        dlrn_buffer_destroy(two);
    }
    dlrn_context_destroy(ctx);
}

/* A row of the sample whose loss overflows does so each time. The error comes once; the resampling
   is given up, the trainer goes on, and a checkpoint that it writes then does not hold it back. */
TEST(a_resampling_that_fails_is_given_up) {
    enum { ROWS = 96, BATCH = 16 };
    static float x[ROWS * D];
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = small_config();
    dlrn_buffer_config of = dlrn_buffer_defaults();
    const char *path = tmp_path("given_up.safetensors");
    memcpy(x, many_rows(), sizeof x);
    for (int c = 0; c < D; c++) x[(ROWS - 1) * D + c] = 1e30f; /* in the last batch */
    of.capacity = ROWS, of.batch_rows = BATCH, of.shuffle = DLRN_OFF;
    cfg.resample_steps = 2;
    dlrn_source source;
    dlrn_buffer *b = NULL, *rest = NULL;
    dlrn_trainer *t = NULL, *again = NULL;
    CHECK_OK(ctx, dlrn_source_from_array(ctx, x, NULL, ROWS, D, 0, 1, &source));
    CHECK_OK(ctx, dlrn_buffer_create(ctx, &of, &source, DLRN_BORROWED, &b));
    CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, b, &t));
    for (int i = 0; i < 2; i++) CHECK_OK(ctx, dlrn_trainer_step(t, NULL));
    t->dict->param[DLRN_ENCODER_BIAS][3] = -1000; /* dead */
    t->since_fired[3] = 100;
    CHECK_STATUS(dlrn_trainer_step(t, NULL), DLRN_ERR_VALUE);
    CHECK_STR(dlrn_error(ctx), "resampling after step 2: a row's loss");
    CHECK(dlrn_trainer_describe(t).steps == 3 && !dlrn_trainer_describe(t).broken);
    CHECK_OK(ctx, dlrn_trainer_save(t, path));
    CHECK_OK(ctx, dlrn_trainer_step(t, NULL)); /* step 3: nothing is left of step 2 */
    CHECK(dlrn_trainer_describe(t).steps == 4);
    dlrn_source_destroy(&source);
    CHECK_OK(ctx, dlrn_source_from_array(ctx, x, NULL, ROWS, D, 0, 1, &source));
    CHECK_OK(ctx, dlrn_buffer_create(ctx, &of, &source, DLRN_BORROWED, &rest));
    CHECK_OK(ctx, dlrn_trainer_resume(ctx, path, NULL, rest, &again));
    CHECK_OK(ctx, dlrn_trainer_step(again, NULL));
    CHECK(fingerprint(again) == fingerprint(t));
    dlrn_trainer_destroy(t);
    dlrn_trainer_destroy(again);
    dlrn_buffer_destroy(b);
    dlrn_buffer_destroy(rest);
    dlrn_source_destroy(&source);
    dlrn_context_destroy(ctx);
}

/* dl-top_k sets the output bias before its first loss. If that overflows, the bias is as before,
   and the next rows give step 0. */
TEST(a_first_step_that_fails_changes_nothing) {
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = dlrn_train_defaults("dl-top_k");
    dlrn_trainer *t = NULL, *other = NULL;
    static float x[N * D];
    for (int i = 0; i < N * D; i++) x[i] = rows_x[i] * 1e30f;
    cfg.d_in = D, cfg.features = F, cfg.k = 4;
    CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, NULL, &t));
    CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, NULL, &other));
    CHECK_STATUS(dlrn_trainer_step_on(t, x, NULL, N, NULL), DLRN_ERR_VALUE);
    CHECK_STR(dlrn_error(ctx), "step 0: the loss is not finite");
    CHECK(fingerprint(t) == fingerprint(other));
    CHECK_OK(ctx, dlrn_trainer_step_on(t, rows_x, NULL, N, NULL));
    CHECK_OK(ctx, dlrn_trainer_step_on(other, rows_x, NULL, N, NULL));
    CHECK(fingerprint(t) == fingerprint(other));
    dlrn_trainer_destroy(t);
    dlrn_trainer_destroy(other);
    dlrn_context_destroy(ctx);
}

/* Errors name what the caller knows, not private functions. */
TEST(errors_name_public_functions) {
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = small_config();
    dlrn_trainer *t = make_trainer(ctx, &cfg);
    dlrn_dictionary_desc desc = {0};
    dlrn_dictionary *dict = NULL;
    dlrn_writer *w = NULL;
    const dlrn_tensor a = dlrn_view(rows_x, 1, 1, 1);
    CHECK_STATUS(dlrn_trainer_step_on(t, NULL, NULL, N, NULL), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "dlrn_trainer_step_on: x must not be NULL");
    CHECK_STATUS(dlrn_dictionary_create(ctx, &desc, &dict), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "a new dictionary: d_in and d_out must be positive");
    CHECK_STATUS(dlrn_matmul(ctx, DLRN_NN, a, a, 2, a, NULL), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "dlrn_matmul: beta must be 0 or 1");
    CHECK_STATUS(dlrn_npy_create(ctx, "rows.npy", 0, -1, &w), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "rows.npy: width must be positive");
    dlrn_trainer_destroy(t);
    dlrn_context_destroy(ctx);
}

/* While a step is unfinished no other rows are taken, and nothing of the trainer changes. */
TEST(an_unfinished_step_refuses_other_rows) {
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = small_config();
    dlrn_buffer *buffer = make_buffer(ctx);
    dlrn_trainer *t = NULL;
    cfg.resample_steps = 6;
    CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, buffer, &t));
    t->dict->param[DLRN_ENCODER_BIAS][3] = -1000;
    ctx->cfg.stop = stop_in_a_while;
    dlrn_status s = DLRN_OK;
    for (int i = 0; s == DLRN_OK && i < 20; i++) {
        polls = 0;
        s = dlrn_trainer_step(t, NULL);
    }
    CHECK_STATUS(s, DLRN_STOPPED);
    uint64_t before = fingerprint(t);
    CHECK_STATUS(dlrn_trainer_step_on(t, rows_x, NULL, N, NULL), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx),
              "is not finished: expected a call of dlrn_trainer_step, found other rows");
    CHECK(fingerprint(t) == before);
    polls = 100;
    CHECK_OK(ctx, dlrn_trainer_step(t, NULL));
    CHECK_OK(ctx, dlrn_trainer_step_on(t, rows_x, NULL, N, NULL));
    dlrn_trainer_destroy(t);
    dlrn_buffer_destroy(buffer);
    dlrn_context_destroy(ctx);
}

TEST(figures_that_nobody_asks_for) {
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = small_config();
    dlrn_trainer *t = make_trainer(ctx, &cfg);
    float x[N * D];
    CHECK_OK(ctx, dlrn_trainer_step_on(t, rows_x, NULL, N, NULL));
    memcpy(x, rows_x, sizeof x);
    x[3] = (float)NAN;
    CHECK_STATUS(dlrn_trainer_step_on(t, x, NULL, N, NULL), DLRN_ERR_VALUE);
    dlrn_trainer_destroy(t);
    dlrn_context_destroy(ctx);
}

/* Rows come from all of the buffer, also where fewer are measured than it holds, and also where it
   holds but a batch in the source's order. */
TEST(a_resampling_measures_a_sample) {
    dlrn_context *ctx = test_context("auto", 1);
    for (int shuffle = 0; shuffle < 2; shuffle++) {
        dlrn_train_config cfg = small_config();
        static const uint64_t moved[2][2] = {{1, 0}, {0, 1}}; /* seed, step */
        dlrn_buffer_config of = dlrn_buffer_defaults();
        dlrn_source source;
        dlrn_buffer *b = NULL;
        dlrn_trainer *t = NULL;
        dlrni_sample sample[2];
        int64_t late = 0;
        of.capacity = MANY;
        of.batch_rows = 16;
        of.shuffle = shuffle;
        CHECK_OK(ctx, dlrn_source_from_array(ctx, many_rows(), NULL, MANY, D, 0, 0, &source));
        CHECK_OK(ctx, dlrn_buffer_create(ctx, &of, &source, DLRN_OWNED, &b));
        CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, b, &t));
        for (int k = 0; k < 2; k++) {
            memset(&sample[k], 0, sizeof sample[k]);
            CHECK_OK(ctx, dlrni_sample_buffer(t, 100, &sample[k]));
            CHECK(sample[k].n == 100);
            if (k) CHECK(!memcmp(sample[0].index, sample[1].index, 100 * sizeof(int64_t)));
        }
        for (int i = 0; i < 100; i++) {
            CHECK(!i || sample[0].index[i] > sample[0].index[i - 1]);
            late += sample[0].index[i] >= MANY / 2;
        }
        CHECK_MSG(!shuffle || (late > 30 && late < 70), "%d of 100 from the later half", (int)late);
        for (int k = 0; k < 2; k++) { /* another seed, and another step: other rows */
            dlrni_sample_free(ctx, &sample[1]);
            memset(&sample[1], 0, sizeof sample[1]);
            t->cfg.seed = cfg.seed + moved[k][0], t->step = (int64_t)moved[k][1];
            CHECK_OK(ctx, dlrni_sample_buffer(t, 100, &sample[1]));
            CHECK(!shuffle || memcmp(sample[0].index, sample[1].index, 100 * sizeof(int64_t)) != 0);
        }
        for (int k = 0; k < 2; k++) dlrni_sample_free(ctx, &sample[k]);
        dlrn_trainer_destroy(t);
        dlrn_buffer_destroy(b);
    }
    dlrn_context_destroy(ctx);
}

/* A row that is not finite ends a run, but what was learnt can be saved. The next call goes on
   behind the rows that were refused with it; a resumed run begins with them again, fails as the
   first did, and with a filter loses the bad row alone. */
TEST(a_run_with_a_bad_row_is_saved) {
    enum { BAD = 200, RUNS = 3 };
    static float x[MANY * D];
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = small_config();
    dlrn_buffer_config of = dlrn_buffer_defaults();
    const char *path = tmp_path("bad_row.safetensors");
    memcpy(x, many_rows(), sizeof x);
    x[BAD * D + 2] = (float)NAN;
    of.capacity = 100;
    of.read_rows = 30;
    of.batch_rows = 16;
    uint64_t learnt = 0;
    for (int run = 0; run < RUNS; run++) {
        dlrn_source source;
        dlrn_buffer *b = NULL;
        dlrn_trainer *t = NULL;
        dlrn_status s = DLRN_OK;
        CHECK_OK(ctx, dlrn_source_from_array(ctx, x, NULL, MANY, D, 0, 1, &source));
        if (run == 2) CHECK_OK(ctx, dlrn_source_finite(ctx, &source, DLRN_OWNED, NULL, &source));
        CHECK_OK(ctx, dlrn_buffer_create(ctx, &of, &source, DLRN_OWNED, &b));
        if (run) {
            CHECK_OK(ctx, dlrn_trainer_resume(ctx, path, NULL, b, &t));
            CHECK(fingerprint(t) == learnt);
        } else
            CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, b, &t));
        while (s == DLRN_OK) s = dlrn_trainer_step(t, NULL);
        CHECK_STATUS(s, run < 2 ? DLRN_ERR_VALUE : DLRN_END);
        if (run < 2)
            CHECK_STR(dlrn_error(ctx),
                      "source: x, row 200, column 2: expected a finite number, found nan");
        if (!run) {
            CHECK_OK(ctx, dlrn_trainer_save(t, path));
            learnt = fingerprint(t);
        }
        while (run < 2 && (s = dlrn_trainer_step(t, NULL)) == DLRN_OK) continue;
        CHECK_STATUS(s, DLRN_END);
        CHECK(b->rows_read == (run < 2 ? MANY : MANY - 1));
        dlrn_trainer_destroy(t);
        dlrn_buffer_destroy(b);
    }
    dlrn_context_destroy(ctx);
}

/* A step may leave weights that are not finite: they do not take the place of the last good file.
 */
TEST(what_is_not_finite_is_not_saved) {
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = small_config();
    const char *state = tmp_path("good.safetensors"), *weights = tmp_path("good.pt");
    dlrn_trainer *t = make_trainer(ctx, &cfg), *again = NULL;
    dlrn_dictionary *dict = NULL;
    float *parts[4] = {t->dict->param[DLRN_OUTPUT_BIAS], t->dict->param[DLRN_ENCODER_BIAS],
                       t->dict->param[DLRN_ENCODER], t->dict->param[DLRN_DECODER]};
    CHECK_OK(ctx, dlrn_trainer_save(t, state));
    CHECK_OK(ctx, dlrn_save(t->dict, weights));
    for (int i = 0; i < 4; i++) {
        float keep = parts[i][5];
        parts[i][5] = i & 1 ? (float)NAN : (float)INFINITY;
        CHECK_STATUS(dlrn_trainer_save(t, state), DLRN_ERR_VALUE);
        CHECK_STR(dlrn_error(ctx), "good.safetensors: not written: tensor '");
        CHECK_STR(dlrn_error(ctx), "element 5: expected a finite number");
        CHECK_STATUS(dlrn_save(t->dict, weights), DLRN_ERR_VALUE);
        parts[i][5] = keep;
    }
    CHECK_OK(ctx, dlrn_trainer_resume(ctx, state, NULL, NULL, &again));
    CHECK(fingerprint(again) == fingerprint(t));
    CHECK_OK(ctx, dlrn_load(ctx, weights, NULL, &dict));
    dlrn_dictionary_destroy(dict);
    dlrn_trainer_destroy(again);
    dlrn_trainer_destroy(t);
    dlrn_context_destroy(ctx);
}

TEST(a_whole_run_ends_with_the_data_or_when_told) {
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = small_config();
    dlrn_dictionary *ae = NULL;
    dlrn_source rows;
    int calls = 0;
    cfg.buffer.capacity = 100;
    cfg.buffer.batch_rows = 16;
    CHECK_OK(ctx, dlrn_source_from_array(ctx, many_rows(), NULL, MANY, D, 0, 3, &rows));
    CHECK_STATUS(dlrn_train(ctx, &cfg, &rows, stop_at_five, &calls, &ae), DLRN_STOPPED);
    CHECK(calls == 5 && ae && ae->d_in == D);
    dlrn_dictionary_destroy(ae);
    CHECK_OK(ctx, dlrn_train(ctx, &cfg, &rows, NULL, NULL, &ae));
    dlrn_dictionary_destroy(ae);
    dlrn_source_destroy(&rows);
    dlrn_context_destroy(ctx);
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    fill_rows();
    RUN(each_center_is_resumed);
    RUN(targets_of_another_width);
    RUN(panels_do_not_change_a_bit);
    RUN(threads_do_not_change_a_bit);
    RUN(kernels_do_not_change_a_bit);
    RUN(ghosts_in_waves);
    RUN_LONG(long_batches_do_not_change_a_bit);
    RUN(recipes_in_words);
    RUN_LONG(recipes_do_not_depend_on_the_machine);
    RUN_LONG(sums_over_long_batches);
    RUN(zeros_survive);
    RUN(ghosts_of_large_activations_stay_finite);
    RUN(rate_ramps_up_and_again_after_resampling);
    RUN(a_target_steers_the_penalty);
    RUN(logging_counts_twice_in_compat_alone);
    RUN(what_is_not_finite_is_named_and_changes_nothing);
    RUN(a_configuration_out_of_range_is_refused);
    RUN(the_dead_begin_again_from_rows);
    RUN(revived_features_have_a_threshold_of_their_beginning);
    RUN(a_broken_trainer_refuses_all);
    RUN(resampling_without_a_buffer);
    RUN(resampling_with_too_few_rows_or_nothing_alive);
    RUN(weights_are_squared_losses);
    RUN(rows_are_drawn_by_weight);
    RUN(resampling_in_compat_forgets_moments_alone);
    RUN(the_configuration_as_json);
    RUN(a_resumed_trainer_goes_on_with_the_same_bits);
    RUN(checkpoints_that_lie);
    RUN(a_resumed_run_draws_the_same_rows);
    RUN(weights_of_another_context);
    RUN(a_resumed_run_may_go_on_for_longer);
    RUN(a_run_is_not_resumed_on_fewer_rows);
    RUN(a_resampling_that_is_stopped_goes_on);
    RUN(a_resampling_that_fails_is_given_up);
    RUN(a_first_step_that_fails_changes_nothing);
    RUN(errors_name_public_functions);
    RUN(an_unfinished_step_refuses_other_rows);
    RUN(figures_that_nobody_asks_for);
    RUN(a_resampling_measures_a_sample);
    RUN(a_run_with_a_bad_row_is_saved);
    RUN(what_is_not_finite_is_not_saved);
    RUN(a_whole_run_ends_with_the_data_or_when_told);
    return TEST_END();
}
