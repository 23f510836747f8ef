/* test_naive.c - the naive step of the header against finite differences, against the formulas of
   straight-through estimators, and against PyTorch's numbers; then the trainer's gradients and
   steps against the naive step, for every recipe. */
#define DICTLEARN_IMPLEMENTATION
#define DICTLEARN_NAIVE_STEP
#include "dictlearn.h"
#include "tests/test.h"
#include "tests/naive.h"
#include "tests/recipes.h"

/* The settings of a recipe for small widths, and its rules. */
static void settle(dlrn_context *ctx, const char *name, int compat, dlrn_train_config *cfg,
                   dlrni_rules *rules) {
    const dlrni_recipe *recipe;
    CHECK_OK(ctx, dlrni_settle_config(ctx, cfg, &recipe));
    CHECK_MSG(!strcmp(recipe->info.name, name) && (cfg->compat == DLRN_ON) == compat, "%s", name);
    dlrni_rules_of(recipe, cfg, rules);
}

static unsigned roles_of(const dlrn_train_config *cfg, const dlrni_rules *rules, int center) {
    unsigned roles =
        1u << DLRN_ENCODER | 1u << DLRN_ENCODER_BIAS | 1u << DLRN_DECODER | 1u << DLRN_OUTPUT_BIAS;
    if (center == DLRN_INPUT_BIAS) roles |= 1u << DLRN_INPUT_BIAS;
    if (rules->gate == DLRN_GATE_JUMP_SIGNED) roles |= 1u << DLRN_THRESHOLD;
    if (rules->gate == DLRN_GATE_GATED) roles |= 1u << DLRN_LOG_SCALE | 1u << DLRN_VALUE_BIAS;
    if (cfg->skip == DLRN_ON) roles |= 1u << DLRN_SKIP;
    return roles;
}

/* ---- Finite differences ----
   Small numbers, with some features dead: 3 to 5 have not fired for a long time, and do not; 6 has
   not, but does. */

enum { D = 6, F = 24, N = 9, MOST = 64 };

static double few_x[N * MOST], few_y[N * MOST];

static void fill(double *a, int64_t n, double scale, dlrn_rng *rng) {
    for (int64_t i = 0; i < n; i++) a[i] = scale * (double)dlrn_rng_normal(rng);
}

/* A naive step with random weights, of norms that are not 1. parts: layers with features. */
static dlrni_naive *small_scene(dlrn_context *ctx, const dlrn_train_config *cfg,
                                const dlrni_rules *rules, int center, int64_t parts,
                                uint64_t seed) {
    dlrn_rng rng = {seed, 0, 0};
    dlrni_naive *s = dlrni_naive_open(ctx, cfg, rules, N, roles_of(cfg, rules, center));
    CHECK(s && s->d_in <= MOST && s->d_out <= MOST);
    s->center = center;
    s->parts = parts;
    fill(few_x, N * s->d_in, 1, &rng);
    fill(few_y, N * s->d_out, 1, &rng);
    for (int role = 0; role < DLRN_ROLE_COUNT; role++)
        if (s->p[role]) fill(s->p[role], dlrni_naive_size(s, role), 0.4, &rng);
    for (int64_t j = 0; j < s->F; j++) {
        if (s->p[DLRN_THRESHOLD]) s->p[DLRN_THRESHOLD][j] = 0.2 + fabs(s->p[DLRN_THRESHOLD][j]);
        if (j >= 3 && j < 6) s->p[DLRN_ENCODER_BIAS][j] = -4;
        s->silent[j] = j >= 3 && j <= 6 ? 1000 : 0;
        for (int64_t c = 0; c < s->d_in; c++)
            s->p[DLRN_ENCODER][j * s->d_in + c] *= dlrni_naive_reads(s, j, c);
        for (int64_t c = 0; c < s->d_out; c++)
            s->p[DLRN_DECODER][j * s->d_out + c] *= s->parts < 2 || dlrni_naive_writes(s, j, c);
    }
    return s;
}

/* Whether number i of a role is a weight: a cross-layer transcoder lacks some. */
static int is_weight(const dlrni_naive *s, int role, int64_t i) {
    if (s->parts > 1 && role == DLRN_ENCODER) return dlrni_naive_reads(s, i / s->d_in, i % s->d_in);
    return s->parts < 2 || role != DLRN_DECODER ||
           dlrni_naive_writes(s, i / s->d_out, i % s->d_out);
}

/* The gradients of all roles are central differences of the loss; of matrices every seventh number,
   which meets all columns. Thresholds' windows are closed by a bandwidth of almost 0. */
static void check_differences(dlrni_naive *s, const char *name) {
    static double g[F * MOST];
    const double h = 1e-6;
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        const int64_t size = dlrni_naive_size(s, role);
        const int log = role == DLRN_THRESHOLD && s->rules.log_threshold;
        double top = 0;
        if (!s->p[role]) continue;
        dlrni_naive_loss(s, few_x, few_y, 0);
        memcpy(g, s->g[role], (size_t)size * sizeof *g);
        for (int64_t i = 0; i < size; i++) top = fmax(top, fabs(g[i]));
        for (int64_t i = 0; i<size; i += size> 64 ? 7 : 1) {
            double keep = s->p[role][i], loss[2];
            for (int up = 0; up < 2; up++) {
                s->p[role][i] = up ? keep + h : keep - h;
                loss[up] = dlrni_naive_loss(s, few_x, few_y, 1);
            }
            s->p[role][i] = keep;
            double want = is_weight(s, role, i) ? (loss[1] - loss[0]) / (2 * h) : 0;
            if (log) want *= keep;
            CHECK_MSG(fabs(want - g[i]) <= 1e-5 * top + 1e-8,
                      "%s: %s %d: difference %.9g, gradient %.9g", name,
                      dlrn_name(DLRN_NAMES_ROLE, role), (int)i, want, g[i]);
        }
    }
}

/* Settings of a recipe on the widths above. */
static dlrn_train_config small_config(const char *recipe, int compat) {
    dlrn_train_config cfg = dlrn_train_defaults(recipe);
    const int clt = strstr(recipe, "clt") != NULL;
    cfg.compat = compat ? DLRN_ON : DLRN_OFF;
    cfg.layers = clt ? 3 : cfg.layers;
    cfg.d_in = cfg.d_out = D * cfg.layers;
    cfg.features = F;
    cfg.steps = 100;
    cfg.log_steps = -1;
    cfg.lr = 0.01;
    if (cfg.sparsity != DLRN_SPARSITY_NONE) cfg.sparsity_penalty = 0.3;
    cfg.warmup_steps = cfg.sparsity_warmup_steps = 0;
    if (cfg.k) cfg.k = 4;
    if (uses(recipe, "auxk_alpha")) cfg.auxk_alpha = 0.5;
    if (cfg.dead_rows > 0) cfg.dead_rows = 500;
    if (cfg.dead_steps > 0) cfg.dead_steps = 500;
    if (cfg.target_l0 > 0 || cfg.sparsity == DLRN_SPARSITY_TARGET) cfg.target_l0 = 5;
    if (uses(recipe, "pre_act")) cfg.pre_act = 0.1;
    cfg.scale_rows = DLRN_OFF;
    return cfg;
}

/* Every recipe, as it is and with compat. The pick of a feature whose value is 0 passes a gradient
   that no difference shows, so that is off here. */
TEST(gradients_of_recipes_are_differences) {
    dlrn_context *ctx = test_context("auto", 1);
    for (int r = 0; dlrn_recipe(r); r++)
        for (int compat = 0; compat < 2; compat++) {
            const char *recipe = dlrn_recipe(r)->name;
            dlrn_train_config cfg = small_config(recipe, compat);
            dlrni_rules rules;
            settle(ctx, recipe, compat, &cfg, &rules);
            if (cfg.bandwidth > 0) cfg.bandwidth = 1e-12;
            rules.zero_picks = 0;
            const int center = cfg.center == DLRN_ON ? (int)DLRN_OUTPUT_BIAS : -1;
            dlrni_naive *s = small_scene(ctx, &cfg, &rules, center, strstr(recipe, "clt") ? 3 : 1,
                                         (uint64_t)(7 + r));
            check_differences(s, recipe);
            CHECK_MSG(s->loss > 0 && s->reconstruction > 0 && s->l0 > 1, "%s", recipe);
            CHECK_MSG((cfg.sparsity == DLRN_SPARSITY_NONE) == !(s->sparsity > 0), "%s", recipe);
            CHECK_MSG(!(cfg.auxk_alpha > 0 && rules.auxiliary) || s->auxiliary > 0, "%s", recipe);
            CHECK_MSG(!(cfg.pre_act > 0) || (compat && s->parts > 1) || s->pre_act > 0, "%s",
                      recipe);
            dlrni_naive_close(s);
        }
    dlrn_context_destroy(ctx);
}

/* Each loss with each penalty of values, each weight of the norms, frozen or not, each center, a
   target of another width, two layers, ghosts. */
TEST(gradients_of_losses_and_penalties_are_differences) {
    static const dlrn_sparsity kinds[] = {DLRN_SPARSITY_L1, DLRN_SPARSITY_ENTROPY, DLRN_SPARSITY_LP,
                                          DLRN_SPARSITY_POWER, DLRN_SPARSITY_TANH};
    static const int centers[] = {-1, DLRN_OUTPUT_BIAS, DLRN_INPUT_BIAS};
    dlrn_context *ctx = test_context("auto", 1);
    for (int c = 0; c < 4 * 5 * 3 * 3; c += test_brief() ? 7 : 1) {
        char name[64];
        dlrn_train_config cfg = small_config("reference", 0);
        dlrni_rules rules;
        cfg.layers = c % 2 ? 2 : 1;
        cfg.d_in = 2 * D;
        cfg.loss = (dlrn_loss)(c % 4);
        cfg.sparsity = kinds[c / 4 % 5];
        const int center = centers[c / 60];
        cfg.d_out = center == DLRN_OUTPUT_BIAS ? 2 * D : 2 * D - 2;
        settle(ctx, "reference", 0, &cfg, &rules);
        cfg.p_start = c / 20 % 3 == 2 ? 0.7 : 2;
        cfg.ghost_threshold = c % 3 ? 500 : -1;
        rules.weigh =
            cfg.sparsity == DLRN_SPARSITY_ENTROPY ? DLRN_RANK_VALUE : (dlrn_rank)(c / 20 % 3);
        rules.frozen_norms = c % 5 == 4;
        rules.weigh_twice = c % 5 == 3;
        dlrni_naive *s = small_scene(ctx, &cfg, &rules, center, 1, (uint64_t)c);
        snprintf(name, sizeof name, "combination %d", c);
        check_differences(s, name);
        CHECK_MSG((cfg.ghost_threshold >= 0) == (s->auxiliary > 0), "%s", name);
        dlrni_naive_close(s);
    }
    dlrn_context_destroy(ctx);
}

/* AuxK in every variant, of plain features, of all nested groups, and by group. */
TEST(gradients_of_auxiliary_losses_are_differences) {
    dlrn_context *ctx = test_context("auto", 1);
    for (int c = 0; c < 4 * 3 * 8; c += test_brief() ? 5 : 1) {
        char name[64];
        dlrn_train_config cfg = small_config(c % 2 ? "sl-matryoshka" : "dl-matryoshka", 0);
        dlrni_rules rules;
        cfg.n_groups = 3;
        cfg.groups[0] = 4, cfg.groups[1] = 6, cfg.groups[2] = F - 10;
        settle(ctx, cfg.recipe, 0, &cfg, &rules);
        cfg.auxk_by_group = c / 4 % 3 == 2 ? DLRN_ON : DLRN_OFF;
        cfg.auxk = c % 3;
        rules.nested = c / 4 % 3 > 0;
        rules.rank = (dlrn_rank)(c / 3 % 3);
        rules.auxk_scale = (dlrni_auxk_scale)(c % 4);
        rules.auxk_raw = c / 12 & 1;
        rules.auxk_attached = c / 12 >> 1 & 1;
        /* an attached residual and constant values do not occur together */
        rules.auxk_decoder_only = !rules.auxk_attached && !cfg.auxk_by_group && (c / 12 >> 2 & 1);
        rules.auxk_by_size = rules.auxk_raw && c % 5 == 0;
        dlrni_naive *s = small_scene(ctx, &cfg, &rules, DLRN_OUTPUT_BIAS, 1, (uint64_t)(c + 500));
        /* among the dead some with p > 0 on some rows */
        s->p[DLRN_ENCODER_BIAS][3] = s->p[DLRN_ENCODER_BIAS][4] = -0.4;
        s->p[DLRN_ENCODER_BIAS][5] = -0.6;
        s->rules.dead_before = 1;
        snprintf(name, sizeof name, "combination %d", c);
        /* the residual's variance is a constant, too, which an attached residual moves */
        if (rules.auxk_attached) s->rules.auxk_scale = DLRNI_AUXK_PLAIN;
        check_differences(s, name);
        CHECK_MSG(s->auxiliary > 0 && s->dead == 4, "%s", name);
        dlrni_naive_close(s);
    }
    dlrn_context_destroy(ctx);
}

/* multi_top_k and the skip, with sparsify's rules and mended ones. */
TEST(gradients_of_more_picks_are_differences) {
    dlrn_context *ctx = test_context("auto", 1);
    for (int c = 0; c < 8; c++) {
        dlrn_train_config cfg = small_config(c & 1 ? "sp-skip_transcoder" : "sp-topk", c >> 1 & 1);
        dlrni_rules rules;
        cfg.multi_top_k = DLRN_ON;
        settle(ctx, cfg.recipe, c >> 1 & 1, &cfg, &rules);
        rules.zero_picks = 0;
        if (c >> 2) rules.select = DLRN_SELECT_GROUP_MAX;
        dlrni_naive *s = small_scene(ctx, &cfg, &rules, c & 1 ? -1 : DLRN_OUTPUT_BIAS, 1, 90);
        if (c >> 2) s->cfg.multi_top_k = DLRN_OFF; /* 4 k groups would be others */
        check_differences(s, cfg.recipe);
        CHECK(!s->cfg.multi_top_k == !(s->second > 0));
        dlrni_naive_close(s);
    }
    dlrn_context_destroy(ctx);
}

/* ---- Straight-through estimators ---- */

/* <dLoss/dx_hat, atom j> of row i, by a squared distance. */
static double by_value(const dlrni_naive *s, int64_t i, int64_t j) {
    double sum = 0;
    for (int64_t c = 0; c < s->d_out; c++)
        sum += s->e[i * s->d_out + c] * s->p[DLRN_DECODER][j * s->d_out + c];
    return (s->cfg.loss == DLRN_LOSS_SQUARED ? 2 : 2.0 / (double)s->cfg.layers) * sum / N;
}

/* With a bandwidth b, what the window adds to the gradients of thresholds t and of encoder biases
   is as stated by each library:
   - dl-jump_relu: - t/b by f where |p - t| < b/2; - 1/b by L0 where |f - t| < b/2;
   - sl-jumprelu, -quadratic: both where |p - t| < b/2;
   - sl-jumprelu-tanh: the same by f, whose penalty passes; the bias gets it with the other sign;
   - lc-jumprelu: by q = p |atom|, where q > 0, and times t, since log t is trained. */
TEST(windows_are_as_stated) {
    static const char *const names[] = {"dl-jump_relu", "sl-jumprelu", "sl-jumprelu-quadratic",
                                        "sl-jumprelu-tanh", "lc-jumprelu"};
    dlrn_context *ctx = test_context("auto", 1);
    for (int c = 0; c < 5; c++) {
        double closed[2][F];
        int within = 0;
        dlrn_train_config cfg = small_config(names[c], 0);
        dlrni_rules rules;
        settle(ctx, names[c], 0, &cfg, &rules);
        cfg.bandwidth = 1e-12;
        dlrni_naive *s = small_scene(ctx, &cfg, &rules, DLRN_OUTPUT_BIAS, 1, 44);
        double *t = s->p[DLRN_THRESHOLD];
        t[1] = c ? 0.1 : -0.1; /* dl: below 0, so that values of 0 count */
        t[2] = 0.1;
        dlrni_naive_loss(s, few_x, few_y, 0);
        memcpy(closed[0], s->g[DLRN_THRESHOLD], sizeof closed[0]);
        memcpy(closed[1], s->g[DLRN_ENCODER_BIAS], sizeof closed[1]);
        const double b = s->cfg.bandwidth = 0.7, target = cfg.target_l0;
        dlrni_naive_loss(s, few_x, few_y, 0);
        for (int64_t j = 0; j < F; j++) {
            double by_t = 0, by_p = 0, norm = dlrni_naive_norm(s, rules.rank, j);
            for (int64_t i = 0; i < N; i++) {
                double p = s->pre[i * F + j], f = s->f[i * F + j], q = p * norm, l0 = 0, mean = 0;
                for (int64_t k = 0; k < N * F; k++) {
                    const double u = c ? s->q[k] : s->f[k];
                    const int on = u > t[k % F] && (c || u < 0 || u > 0);
                    l0 += k / F == i && on;
                    mean += on / (double)N;
                }
                double w = dlrni_naive_norm(s, DLRN_RANK_NORM, j), th = tanh(4 * f * w);
                double by_f = by_value(s, i, j) + (c > 2 ? 0.3 * 4 * w * (1 - th * th) / N : 0);
                double by_l0 = c == 0   ? 0.3 * 2 * (mean / target - 1) / target / N
                               : c == 1 ? 0.3 / N
                               : c == 2 ? 0.3 * 4 / target * (l0 - target) / N
                                        : 0;
                int in = fabs(q - t[j]) < b / 2 && (c < 4 || q > 0);
                by_t -= in ? t[j] / b * by_f / norm : 0;
                by_t -= fabs((c ? p : f) - t[j]) < b / 2 ? by_l0 / b : 0;
                by_p += c == 3 && in ? t[j] / b * by_f : 0;
                within += in;
            }
            if (c == 4) by_t *= t[j];
            CHECK_MSG(test_close(s->g[DLRN_THRESHOLD][j] - closed[0][j] + 1, by_t + 1, 1e-9),
                      "%s %d: %.9g, expected %.9g", names[c], (int)j,
                      s->g[DLRN_THRESHOLD][j] - closed[0][j], by_t);
            CHECK_MSG(test_close(s->g[DLRN_ENCODER_BIAS][j] - closed[1][j] + 1, by_p + 1, 1e-9),
                      "%s %d: bias %.9g, expected %.9g", names[c], (int)j,
                      s->g[DLRN_ENCODER_BIAS][j] - closed[1][j], by_p);
        }
        CHECK(within > F);
        dlrni_naive_close(s);
    }
    dlrn_context_destroy(ctx);
}

/* sparsify: a feature that is picked with p < 0 has the value 0, and passes the gradient. */
TEST(picks_of_zero_pass_a_gradient) {
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = small_config("sp-topk", 1);
    dlrni_rules rules;
    int zeros = 0;
    cfg.k = 16;
    cfg.auxk_alpha = 0;
    settle(ctx, "sp-topk", 1, &cfg, &rules);
    dlrni_naive *s = small_scene(ctx, &cfg, &rules, DLRN_OUTPUT_BIAS, 1, 21);
    dlrni_naive_loss(s, few_x, few_y, 0);
    for (int64_t i = 0; i < N; i++) {
        int kept = 0;
        for (int64_t j = 0; j < F; j++) {
            const int64_t at = i * F + j;
            if (!(s->kept[at] > 0)) continue;
            kept++;
            zeros += s->pre[at] < 0;
            CHECK(s->pre[at] > 0 || !(s->f[at] > 0));
            CHECK_CLOSE(s->slope[at], s->df[at], 0);
        }
        CHECK(kept == 16);
    }
    CHECK(zeros > 5);
    dlrni_naive_close(s);
    dlrn_context_destroy(ctx);
}

static double *rows_x, *rows_y; /* of the naive step, in double */

static void use_rows(const dlrni_naive *s, const float *x, const float *y) {
    const int64_t in = s->n * s->d_in, out = s->n * s->d_out;
    free(rows_x);
    free(rows_y);
    rows_x = malloc((size_t)in * sizeof *rows_x);
    rows_y = malloc((size_t)out * sizeof *rows_y);
    CHECK(rows_x && rows_y);
    for (int64_t i = 0; i < in; i++) rows_x[i] = (double)x[i];
    for (int64_t i = 0; i < out; i++) rows_y[i] = (double)y[i];
}

/* Numbers [n] as they should be, to a part of the largest. */
static void check_close(const double *want, const float *found, int64_t n, double part,
                        const char *name) {
    double top = 0;
    for (int64_t i = 0; i < n; i++) top = fmax(top, fabs(want[i]));
    for (int64_t i = 0; i < n; i++)
        CHECK_MSG(fabs(want[i] - (double)found[i]) <= part * top,
                  "%s[%d]: expected %.9g, found %.9g", name, (int)i, want[i], (double)found[i]);
}

/* ---- PyTorch's numbers of the recipe reference ---- */

/* An array of a file of golden numbers; its name may begin with that of a case. Lives until the
   next. */
static const float *golden(dlrn_context *ctx, dlrn_archive *a, const char *name) {
    static float data[50 * 32 * 19];
    int64_t at = dlrn_archive_find(a, name);
    CHECK_MSG(at >= 0, "%s is missing", name);
    CHECK(dlrn_archive_tensor(a, at)->numel <= (int64_t)(sizeof data / sizeof *data));
    CHECK_OK(ctx, dlrn_archive_read(a, at, 0, -1, data));
    return data;
}

static const dlrn_role trained[4] = {DLRN_ENCODER, DLRN_ENCODER_BIAS, DLRN_DECODER,
                                     DLRN_OUTPUT_BIAS};
static const char *const golden_names[4] = {"encoder_weight", "encoder_bias", "decoder_weight",
                                            "bias"};

/* A naive trainer with the weights of golden numbers, whose names begin with `prefix`. */
static dlrni_naive *golden_naive(dlrn_context *ctx, dlrn_archive *a, const char *prefix,
                                 dlrn_train_config cfg, int64_t n) {
    char name[64];
    dlrni_rules rules;
    snprintf(name, sizeof name, "%sencoder_weight", prefix);
    const dlrn_tensor_info *info = dlrn_archive_tensor(a, dlrn_archive_find(a, name));
    cfg.features = info->shape[0], cfg.d_in = info->shape[1];
    settle(ctx, "reference", 0, &cfg, &rules);
    dlrni_naive *s = dlrni_naive_open(ctx, &cfg, &rules, n, roles_of(&cfg, &rules, 0));
    CHECK(s != NULL);
    s->center = DLRN_OUTPUT_BIAS;
    for (int k = 0; k < 4; k++) {
        snprintf(name, sizeof name, "%s%s", prefix, golden_names[k]);
        const float *from = golden(ctx, a, name);
        for (int64_t i = 0; i < dlrni_naive_size(s, trained[k]); i++)
            s->p[trained[k]][i] = (double)from[i];
    }
    return s;
}

static dlrn_train_config golden_config(void) {
    dlrn_train_config cfg = dlrn_train_defaults(NULL);
    cfg.warmup_steps = 0;
    cfg.log_steps = -1;
    return cfg;
}

/* Losses and gradients of the naive step are those of PyTorch, for each loss, penalty and target,
   and with ghosts. */
TEST(gradients_are_those_of_pytorch) {
    static const char *const kinds[3] = {"plain", "target", "ghost"};
    static float x[40 * 19], y[40 * 19];
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_archive *a = NULL;
    char name[64];
    CHECK_OK(ctx, dlrn_archive_open(ctx, "tests/golden/gradients.npz", &a));
    memcpy(x, golden(ctx, a, "x"), sizeof x);
    memcpy(y, golden(ctx, a, "y"), sizeof y);
    for (int c = 0; c < 12; c++) {
        dlrn_train_config cfg = golden_config();
        cfg.loss = (dlrn_loss)(c / 6);
        cfg.sparsity = (dlrn_sparsity)(c / 3 % 2);
        cfg.ghost_threshold = c % 3 == 2 ? 8 : -1;
        cfg.sparsity_penalty = (double)*golden(ctx, a, "penalty");
        dlrni_naive *s = golden_naive(ctx, a, "", cfg, 40);
        CHECK_OK(ctx,
                 dlrni_archive_read_i64(a, dlrn_archive_find(a, "steps_since_fired"), s->silent));
        use_rows(s, x, c % 3 == 1 ? y : x);
        double loss = dlrni_naive_loss(s, rows_x, rows_y, 0);
        int at = snprintf(name, sizeof name, "%s_%s_%s.", c / 6 ? "squared" : "norm",
                          c / 3 % 2 ? "entropy" : "l1", kinds[c % 3]);
        snprintf(name + at, sizeof name - (size_t)at, "terms");
        const float *terms = golden(ctx, a, name);
        const double want[4] = {loss, s->reconstruction, s->sparsity, s->auxiliary};
        for (int k = 0; k < 4; k++) CHECK_CLOSE(want[k], terms[k], 1e-6);
        for (int k = 0; k < 4; k++) {
            snprintf(name + at, sizeof name - (size_t)at, "%s", golden_names[k]);
            check_close(s->g[trained[k]], golden(ctx, a, name), dlrni_naive_size(s, trained[k]),
                        5e-6, name);
        }
        dlrni_naive_close(s);
    }
    dlrn_archive_close(a);
    dlrn_context_destroy(ctx);
}

/* Fifty naive steps are fifty of PyTorch: weights, moments and counters. */
TEST(steps_are_those_of_pytorch) {
    static const char *const cases[] = {"l1.", "squared.", "entropy.", "ghost."};
    static float x[5 * 32 * 19];
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_archive *a = NULL;
    char name[64];
    CHECK_OK(ctx, dlrn_archive_open(ctx, "tests/golden/train.npz", &a));
    for (int c = 0; c < 4; c++) {
        int64_t order[50], silent[256];
        dlrn_train_config cfg = golden_config();
        snprintf(name, sizeof name, "%ssettings", cases[c]);
        const float *how = golden(ctx, a, name);
        cfg.lr = (double)how[0], cfg.sparsity_penalty = (double)how[1];
        cfg.ghost_threshold = (int64_t)how[4];
        cfg.loss = how[6] > 0 ? DLRN_LOSS_SQUARED : DLRN_LOSS_NORM;
        cfg.sparsity = how[7] > 0 ? DLRN_SPARSITY_ENTROPY : DLRN_SPARSITY_L1;
        dlrni_naive *s = golden_naive(ctx, a, cases[c], cfg, 32);
        const int64_t batch = 32 * s->d_in;
        snprintf(name, sizeof name, "%sorder", cases[c]);
        CHECK_OK(ctx, dlrni_archive_read_i64(a, dlrn_archive_find(a, name), order));
        snprintf(name, sizeof name, "%sx", cases[c]);
        memcpy(x, golden(ctx, a, name), (size_t)(5 * batch) * sizeof *x);
        for (int step = 0; step < 50; step++) {
            use_rows(s, x + order[step] * batch, x + order[step] * batch);
            dlrni_naive_step(s, rows_x, rows_y);
        }
        for (int k = 0; k < 4; k++) {
            const dlrn_role role = trained[k];
            const double *of[3] = {s->p[role], s->m[role], s->v[role]};
            for (int part = 0; part < 3; part++) {
                static const char *const prefix[3] = {"", "m_", "v_"};
                snprintf(name, sizeof name, "%s50.%s%s", cases[c], prefix[part], golden_names[k]);
                check_close(of[part], golden(ctx, a, name), dlrni_naive_size(s, role), 1e-4, name);
            }
        }
        snprintf(name, sizeof name, "%s50.steps_since_fired", cases[c]);
        CHECK(s->F <= (int64_t)(sizeof silent / sizeof *silent));
        CHECK_OK(ctx, dlrni_archive_read_i64(a, dlrn_archive_find(a, name), silent));
        CHECK(!memcmp(silent, s->silent, (size_t)s->F * sizeof *silent));
        dlrni_naive_close(s);
    }
    dlrn_archive_close(a);
    dlrn_context_destroy(ctx);
}

/* ---- The trainer against the naive step ---- */

/* A case: a recipe with settings that reach each of its pieces, on rows that make several stretches
   or runs, with a short last group and dead features. */
enum { WIDE = 24, FEATURES = 130 };

typedef struct scene {
    const char *recipe;
    int compat;
    int64_t n, budget; /* rows; entries per wave; 0: as usual */
    int variant;       /* 0: as the recipe is; 1: more of what it may be set to; 2: schedules */
} scene;

/* Everything that changes from step to step changes within five of them. */
static void set_schedules(dlrn_train_config *cfg, const char *recipe) {
    cfg->steps = 8;
    cfg->warmup_steps = 2;
    cfg->decay_start = 3;
    cfg->clip = cfg->clip > 0 ? 0.05 : 0;
    if (uses(recipe, "sparsity_warmup_steps")) cfg->sparsity_warmup_steps = 3;
    if (uses(recipe, "lr_schedule")) cfg->lr_schedule = DLRN_SCHEDULE_RESTARTS;
    if (uses(recipe, "lr_cycles")) cfg->lr_cycles = 2, cfg->decay_start = 6, cfg->warmup_steps = 1;
    /* k groups of one size: k stays */
    if (uses(recipe, "k_anneal_steps") && !strstr(recipe, "group")) cfg->k_anneal_steps = 3;
    if (uses(recipe, "k_start")) cfg->k_start = 20;
    if (uses(recipe, "k_fraction")) cfg->k_fraction = 0.37;
    if (uses(recipe, "scale_rows")) cfg->scale_rows = DLRN_ON;
    if (uses(recipe, "threshold_start_step")) cfg->threshold_start_step = 1;
    if (uses(recipe, "dead_steps")) cfg->dead_steps = 1;
    if (uses(recipe, "dead_rows")) cfg->dead_rows = 700;
    if (!uses(recipe, "anneal_start")) return;
    cfg->sparsity = strstr(recipe, "gated") ? DLRN_SPARSITY_POWER : DLRN_SPARSITY_LP;
    cfg->anneal_start = 0, cfg->anneal_end = 4, cfg->anneal_updates = 4, cfg->p_end = 0.5;
}

static dlrn_train_config scene_config(const scene *c) {
    dlrn_train_config cfg = small_config(c->recipe, c->compat);
    if (c->variant == 1 && uses(c->recipe, "layers") && cfg.layers == 1) cfg.layers = 2;
    cfg.d_in = WIDE * cfg.layers;
    cfg.d_out = cfg.center == DLRN_OFF && cfg.layers == 1 ? WIDE - 5 : cfg.d_in;
    cfg.features = strstr(c->recipe, "group") ? 132 : FEATURES;
    if (cfg.layers > 2) cfg.features = 3 * 50, cfg.clip = 1e3;
    if (cfg.k) cfg.k = strstr(c->recipe, "group") ? 12 : 8;
    if (c->n > 300) cfg.d_in = cfg.d_out = 8 * cfg.layers;
    cfg.eps = 1e-3; /* a gradient of 1e-9 must not move a weight as one of 1 does */
    if (cfg.bandwidth > 0) cfg.bandwidth = 0.3;
    if (c->variant == 2) set_schedules(&cfg, c->recipe);
    /* AutoEncoderNew: the penalty's norms are squared */
    if (strstr(c->recipe, "april") && c->compat) cfg.center = DLRN_OFF;
    if (c->variant != 1) return cfg;
    if (strstr(c->recipe, "reference")) cfg.ghost_threshold = 500, cfg.loss = DLRN_LOSS_SQUARED;
    if (strstr(c->recipe, "reference")) cfg.sparsity = DLRN_SPARSITY_ENTROPY;
    if (strstr(c->recipe, "sp-")) cfg.optimiser = DLRN_OPTIMISER_ADAM;
    if (uses(c->recipe, "multi_top_k") && !strstr(c->recipe, "group")) cfg.multi_top_k = DLRN_ON;
    if (uses(c->recipe, "auxk_by_group")) cfg.auxk_by_group = DLRN_ON;
    if (uses(c->recipe, "groups")) {
        cfg.n_groups = 3; /* the ends lie within the trainer's groups of 48 */
        cfg.groups[0] = 5, cfg.groups[1] = 60, cfg.groups[2] = cfg.features - 65;
    }
    for (int g = 0; uses(c->recipe, "group_weights") && g < 3; g++)
        cfg.group_weights[g] = 0.3 * (g + 1);
    if (uses(c->recipe, "center")) cfg.center = DLRN_OFF, cfg.d_out = cfg.d_in;
    if (uses(c->recipe, "rescale")) cfg.rescale = DLRN_OFF;
    if (strstr(c->recipe, "sl-standard")) cfg.p_start = 2;
    if (strstr(c->recipe, "lc-relu")) cfg.sparsity = DLRN_SPARSITY_POWER, cfg.p_start = 1.5;
    if (strstr(c->recipe, "lc-jumprelu")) cfg.clip = 0.01, cfg.threshold_lr = 2;
    if (strstr(c->recipe, "topk") || strstr(c->recipe, "top_k")) cfg.auxk = 5;
    return cfg;
}

/* Random weights; some features are dead: of them some never fire, some do on a few rows, one
   often. */
static void scene_weights(const dlrn_trainer *t, dlrn_dictionary *dict, int64_t *silent,
                          dlrn_rng *rng) {
    for (int role = 0; role < DLRN_ROLE_COUNT; role++)
        for (int64_t i = 0; dict->param[role] && i < dlrni_role_size(dict, role); i++)
            dict->param[role][i] = 0.2f * dlrn_rng_normal(rng);
    for (int64_t j = 0; j < dict->features; j++) {
        const int dead = j % 11 == 3;
        if (dict->param[DLRN_THRESHOLD])
            dict->param[DLRN_THRESHOLD][j] = 0.1f + fabsf(dict->param[DLRN_THRESHOLD][j]);
        /* dictionary_learning's may fall below 0, and then let negative values through */
        if (t->cfg.sparsity == DLRN_SPARSITY_TARGET && j % 13 == 5)
            dict->param[DLRN_THRESHOLD][j] = j % 2 ? -0.1f : -0.4f;
        if (dead) dict->param[DLRN_ENCODER_BIAS][j] = j % 2 ? -9.0f : -2.5f;
        if (dead || j == 100) silent[j] = 100000;
        if (t->rules.atoms != DLRNI_ATOMS_FREE)
            dlrni_set_length(t->ctx->k, dict->param[DLRN_DECODER] + j * dict->d_out, dict->d_out,
                             1);
    }
}

/* The trainer of a case, with weights of norms that are not 1 unless its rules demand it. */
static dlrn_trainer *scene_trainer(dlrn_context *ctx, const scene *c) {
    dlrn_train_config cfg = scene_config(c);
    dlrn_trainer *t = NULL;
    dlrn_rng rng = {31, 7, 0};
    CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, NULL, &t));
    for (int64_t l = t->dict->n_parts ? 0 : -1; l < t->dict->n_parts; l++)
        scene_weights(t, l < 0 ? t->dict : t->dict->part[l].dict,
                      t->since_fired + (l < 0 ? 0 : t->dict->part[l].feature_at), &rng);
    dlrn_dictionary_changed(t->dict);
    for (int64_t l = 0; l < t->n_parts && c->budget; l++) t->part[l]->w.budget = c->budget / 3;
    if (c->budget) t->w.budget = c->budget;
    return t;
}

enum { MOST_ROWS = 8500 };

static float scene_x[MOST_ROWS * 3 * WIDE], scene_y[MOST_ROWS * 3 * WIDE];

/* A new row i. */
static void scene_row(const dlrni_naive *s, int64_t i, dlrn_rng *rng) {
    for (int64_t c = 0; c < s->d_in; c++) scene_x[i * s->d_in + c] = dlrn_rng_normal(rng);
    for (int64_t c = 0; c < s->d_out; c++)
        scene_y[i * s->d_out + c] =
            0.5f * scene_x[i * s->d_in + c % s->d_in] + dlrn_rng_normal(rng);
}

/* What a step decides about each feature of each row: [n][F] bits. */
static void decide(dlrni_naive *s, unsigned char *to) {
    int64_t k = s->cfg.auxk ? s->cfg.auxk : s->d_in / s->cfg.layers / 2;
    if (!s->step && s->cfg.scale_rows) dlrni_naive_take_scales(s, rows_x, rows_y);
    dlrni_naive_rows(s, rows_x, rows_y);
    if (!s->step) dlrni_naive_first_batch(s);
    dlrni_naive_rows(s, rows_x, rows_y);
    dlrni_naive_features(s);
    for (int64_t i = 0; i < s->n * s->F; i++) {
        const double t = s->p[DLRN_THRESHOLD] ? s->p[DLRN_THRESHOLD][i % s->F] : 0;
        to[i] = (unsigned char)((s->f[i] < 0 || s->f[i] > 0) + 2 * (s->kept[i] > 0) +
                                4 * (fabs(s->q[i] - t) < s->cfg.bandwidth / 2) +
                                8 * (s->pre[i] > 0) + 16 * (s->pre[i] < t));
    }
    if (s->cfg.multi_top_k) dlrni_naive_select(s, dlrni_min(4 * s->k, s->F), s->kept_more);
    if (s->rules.auxiliary && s->cfg.auxk_alpha > 0) dlrni_naive_auxk_values(s, 0, s->F, &k, 0);
    for (int64_t i = 0; i < s->n * s->F; i++)
        to[i] |= (unsigned char)(32 * (s->kept_more[i] > 0) + 64 * (s->mask[i] > 0));
}

/* Whether y is another array than x. */
static int has_target(const dlrni_naive *s, const scene *c) {
    return s->d_out != s->d_in || c->variant;
}

/* n rows on which rounding decides nothing: other rows take the place of those on which a decision
   changes with x by a hundred thousandth. */
static void scene_rows(dlrni_naive *s, int own_target, uint64_t seed) {
    const int64_t n = s->n, F = s->F;
    dlrn_rng rng = {seed, 3, 0};
    unsigned char *first = malloc((size_t)(n * F)), *other = malloc((size_t)(n * F));
    CHECK(first && other);
    for (int64_t i = 0; i < n; i++) scene_row(s, i, &rng);
    for (int round = 0, changed = 1; changed; round++) {
        CHECK(round < 40);
        use_rows(s, scene_x, own_target ? scene_y : scene_x);
        decide(s, first);
        for (int64_t i = 0; i < n * s->d_in; i++)
            rows_x[i] *= 1 + 1e-5 * (double)dlrn_rng_normal(&rng);
        decide(s, other);
        changed = 0;
        for (int64_t i = 0; i < n; i++) {
            if (!memcmp(first + i * F, other + i * F, (size_t)F)) continue;
            scene_row(s, i, &rng);
            changed = 1;
        }
    }
    free(first);
    free(other);
}

static void name_scene(const scene *c, const char *what, char *name, size_t size) {
    snprintf(name, size, "%s%s, %d rows%s%s, %s", c->recipe, c->compat ? ", compat" : "", (int)c->n,
             c->budget ? ", in waves" : "",
             c->variant == 2 ? ", schedules"
             : c->variant    ? ", more"
                             : "",
             what);
}

/* Numbers of a role of part l (-1: of the whole) as the naive step has them. */
static void check_role(const dlrni_naive *s, const dlrn_trainer *t, int64_t l, int role,
                       const double *naive, const float *found, double part, const char *name) {
    const dlrn_dictionary *dict = l < 0 ? t->dict : t->dict->part[l].dict;
    const int64_t size = dlrni_role_size(dict, role);
    double *want = malloc((size_t)size * sizeof *want);
    CHECK(want != NULL);
    for (int64_t i = 0; i < size; i++)
        want[i] = naive[naive_index(s, l < 0 ? NULL : &t->dict->part[l], role, i)];
    check_close(want, found, size, part, name);
    free(want);
}

/* The terms of the loss. */
static void check_terms(const dlrni_naive *s, const dlrn_trainer *t, const scene *c,
                        const dlrn_train_stats *stats) {
    char name[160], all[256] = "";
    const struct {
        const char *what;
        double want, found;
    } terms[] = {{"loss", s->loss, stats->loss},
                 {"reconstruction_loss", s->reconstruction, stats->reconstruction_loss},
                 {"sparsity_loss", s->sparsity, stats->sparsity_loss},
                 {"auxiliary_loss", t->rules.gate == DLRN_GATE_GATED ? s->second : s->auxiliary,
                  stats->auxiliary_loss},
                 {"pre_act_loss", s->pre_act, stats->pre_act_loss},
                 {"l0", s->l0, stats->l0}};
    enum { TERMS = sizeof terms / sizeof *terms };
    int off = 0;
    for (size_t i = 0, at = 0; i < TERMS; i++) {
        off |= fabs(terms[i].want - terms[i].found) > 1e-5 * (fabs(terms[i].want) + 1e-6);
        at += (size_t)snprintf(all + at, sizeof all - at, ", %s %.7g (%.7g)", terms[i].what,
                               terms[i].found, terms[i].want);
    }
    name_scene(c, "found (expected)", name, sizeof name);
    CHECK_MSG(!off, "%s%s", name, all);
}

/* The gradients of all parameters, for the naive step's last loss. */
static void check_gradients(const dlrni_naive *s, dlrn_context *ctx, const scene *c) {
    char name[160];
    dlrn_train_stats stats;
    float *out[DLRN_ROLE_COUNT] = {0};
    dlrn_trainer *t = scene_trainer(ctx, c);
    const float *y = has_target(s, c) ? scene_y : scene_x;
    t->step = 1; /* what the first batch sets is not part of the loss */
    CHECK_OK(ctx, dlrni_forward_loss(t, scene_x, y, c->n, &stats));
    check_terms(s, t, c, &stats);
    /* a trainer of parts keeps the gradients where it would clip them */
    for (int role = 0; role < DLRN_ROLE_COUNT && !t->n_parts; role++)
        if (t->dict->param[role])
            out[role] = calloc((size_t)dlrni_role_size(t->dict, role), sizeof(float));
    CHECK_OK(ctx, dlrni_trainer_gradients(t, scene_x, y, c->n, t->n_parts ? t->w.gradient : out));
    CHECK(!c->budget || t->n_parts || t->w.wave < t->w.codes.groups);
    for (int64_t l = -1; l < t->n_parts; l++)
        for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
            const dlrn_trainer *of = l < 0 ? t : t->part[l];
            const int log = role == DLRN_THRESHOLD && t->rules.log_threshold;
            float *found = t->n_parts ? of->w.gradient[role] : out[role];
            if (!of->dict->param[role]) continue;
            /* the trainer turns it into that of the logarithm when it updates */
            for (int64_t j = 0; log && j < of->dict->features; j++)
                found[j] *= of->dict->param[role][j];
            name_scene(c, dlrn_name(DLRN_NAMES_ROLE, role), name, sizeof name);
            check_role(s, t, l, role, s->g[role], found, 2e-5, name);
        }
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) free(out[role]);
    dlrn_trainer_destroy(t);
}

/* The weights and moments of the trainer into the naive one, so that rounding does not add up. */
static void continue_from(dlrni_naive *s, const dlrn_trainer *t) {
    naive_exchange(s, t->dict, 0);
    for (int64_t l = -1; l < t->n_parts; l++)
        for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
            const dlrn_trainer *of = l < 0 ? t : t->part[l];
            for (int64_t i = 0; of->dict->param[role] && i < dlrni_role_size(of->dict, role); i++) {
                const int64_t at = naive_index(s, l < 0 ? NULL : &t->dict->part[l], role, i);
                s->m[role][at] = (double)of->m[role][i];
                if (of->v[role]) s->v[role][at] = (double)of->v[role][i];
            }
        }
}

/* Five steps: weights, moments, counters, the mean threshold. */
static void check_steps(dlrn_context *ctx, const scene *c) {
    char name[160];
    dlrn_trainer *t = scene_trainer(ctx, c);
    dlrni_naive *s = naive_of(t, c->n);
    const float *y = has_target(s, c) ? scene_y : scene_x;
    for (int step = 0; step < 5; step++) {
        dlrn_train_stats stats;
        scene_rows(s, has_target(s, c), (uint64_t)step);
        use_rows(s, scene_x, y);
        const double loss = dlrni_naive_step(s, rows_x, rows_y);
        CHECK_OK(ctx, dlrn_trainer_step_on(t, scene_x, y, c->n, &stats));
        name_scene(c, "step", name, sizeof name);
        CHECK_MSG(test_close(stats.loss, loss, 3e-5), "%s %d: loss %.9g, expected %.9g", name, step,
                  stats.loss, loss);
        CHECK_MSG(test_close(stats.lr, s->rate, 1e-12) &&
                      test_close(stats.penalty, s->penalty, 1e-5) && stats.k == s->k,
                  "%s %d: rate %g, penalty %g, k %d; expected %g, %g, %d", name, step, stats.lr,
                  stats.penalty, (int)stats.k, s->rate, s->penalty, (int)s->k);
        for (int64_t j = 0; j < s->F; j++)
            CHECK_MSG(s->silent[j] == t->since_fired[j],
                      "%s %d: feature %d has been silent for %d, expected %d", name, step, (int)j,
                      (int)t->since_fired[j], (int)s->silent[j]);
        if (t->rules.average)
            CHECK_MSG(test_close(s->threshold, t->dict->formula.threshold, 1e-5),
                      "%s %d: threshold %.9g, expected %.9g", name, step,
                      t->dict->formula.threshold, s->threshold);
        for (int64_t l = -1; l < t->n_parts; l++)
            for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
                const dlrn_trainer *of = l < 0 ? t : t->part[l];
                char what[64];
                if (!of->dict->param[role]) continue;
                snprintf(what, sizeof what, "step %d, %s", step, dlrn_name(DLRN_NAMES_ROLE, role));
                name_scene(c, what, name, sizeof name);
                check_role(s, t, l, role, s->p[role], of->dict->param[role], 1e-5, name);
                snprintf(what, sizeof what, "step %d, m of %s", step,
                         dlrn_name(DLRN_NAMES_ROLE, role));
                name_scene(c, what, name, sizeof name);
                check_role(s, t, l, role, s->m[role], of->m[role], 3e-5, name);
                if (!of->v[role]) continue;
                snprintf(what, sizeof what, "step %d, v of %s", step,
                         dlrn_name(DLRN_NAMES_ROLE, role));
                name_scene(c, what, name, sizeof name);
                check_role(s, t, l, role, s->v[role], of->v[role], 3e-5, name);
            }
        continue_from(s, t);
    }
    dlrni_naive_close(s);
    dlrn_trainer_destroy(t);
}

static scene current;

/* All kernel sets, the last with two threads and in waves of one group; long batches with that one
   alone. */
static void check_current(void) {
    dlrn_context *ctx = test_context("scalar", 1);
    dlrn_trainer *t = scene_trainer(ctx, &current);
    dlrni_naive *s = naive_of(t, current.n);
    s->step = 1;
    scene_rows(s, has_target(s, &current), 5);
    dlrni_naive_loss(s, rows_x, rows_y, 0);
    for (int set = 0; test_kernels(set); set++) {
        const int last = !test_kernels(set + 1);
        if (!last && (current.n > 300 || test_brief())) continue;
        dlrn_context *own = test_context(test_kernels(set), last ? 2 : 1);
        scene waves = current;
        check_gradients(s, own, &current);
        waves.budget = t->rules.select == DLRN_SELECT_ALL ? current.n * 16 : current.n;
        if (last) check_gradients(s, own, &waves);
        if (last && current.n <= 300) check_steps(own, &current);
        dlrn_context_destroy(own);
    }
    dlrni_naive_close(s);
    dlrn_trainer_destroy(t);
    dlrn_context_destroy(ctx);
}

/* Every recipe: as it is, with compat, with more settings, with schedules. Long batches: more. */
static void run_scenes(int64_t n) {
    for (int r = 0; dlrn_recipe(r); r++)
        for (int variant = n > 300 ? 2 : 0; variant < (n > 300 ? 3 : 4); variant++) {
            char name[96];
            if (test_brief() && variant != 2) continue;
            current.recipe = dlrn_recipe(r)->name;
            current.n = n;
            current.compat = variant == 1;
            current.variant = variant < 2 ? 0 : variant - 1;
            if (variant == 3) current.compat = r % 2;
            snprintf(name, sizeof name, "%s_on_%d_rows%s", current.recipe, (int)n,
                     variant == 3   ? "_with_schedules"
                     : variant == 2 ? "_with_more"
                     : variant == 1 ? "_compat"
                                    : "");
            test_run(name, check_current);
        }
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    RUN(gradients_of_recipes_are_differences);
    RUN(gradients_of_losses_and_penalties_are_differences);
    RUN(gradients_of_auxiliary_losses_are_differences);
    RUN(gradients_of_more_picks_are_differences);
    RUN(windows_are_as_stated);
    RUN(picks_of_zero_pass_a_gradient);
    RUN(gradients_are_those_of_pytorch);
    RUN(steps_are_those_of_pytorch);
    run_scenes(test_brief() ? 130 : 300); /* blocks that are full, and one that is not */
    if (!test_brief()) run_scenes(8500);  /* more than a run of sums */
    return TEST_END();
}
