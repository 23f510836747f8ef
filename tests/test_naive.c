/* test_naive.c - the naive step of the header against finite differences, against the formulas of
   straight-through estimators, and against PyTorch's numbers; then the trainer's gradients and
   steps against the naive step, for every recipe. */
#define DICTLEARN_IMPLEMENTATION
#define DICTLEARN_NAIVE_STEP
#include "dictlearn.h"
#include "tests/test.h"

static dlrn_context *open_context(const char *kernels, int threads) {
    dlrn_context_config cfg = {0};
    dlrn_context *ctx = NULL;
    cfg.kernels = kernels;
    cfg.threads = threads;
    CHECK_STATUS(dlrn_context_create(&cfg, &ctx), DLRN_OK);
    return ctx;
}

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
    if (cfg.auxk_alpha > 0 || strstr(recipe, "sp-")) cfg.auxk_alpha = 0.5;
    if (cfg.dead_rows > 0) cfg.dead_rows = 500;
    if (cfg.dead_steps > 0) cfg.dead_steps = 500;
    if (cfg.target_l0 > 0 || cfg.sparsity == DLRN_SPARSITY_TARGET) cfg.target_l0 = 5;
    if (cfg.bandwidth > 0) cfg.pre_act = 0.1;
    if (strstr(recipe, "ghost")) cfg.ghost_threshold = 500;
    return cfg;
}

/* Every recipe, as it is and with compat. The pick of a feature whose value is 0 passes a gradient
   that no difference shows, so that is off here. */
TEST(gradients_of_recipes_are_differences) {
    dlrn_context *ctx = open_context("auto", 1);
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
            CHECK_MSG(!(cfg.auxk_alpha > 0) || s->auxiliary > 0, "%s", recipe);
            CHECK_MSG(!(cfg.pre_act > 0) || s->pre_act > 0, "%s", recipe);
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
    dlrn_context *ctx = open_context("auto", 1);
    for (int c = 0; c < 4 * 5 * 3 * 3; c++) {
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
    dlrn_context *ctx = open_context("auto", 1);
    for (int c = 0; c < 4 * 3 * 8; c++) {
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
        rules.auxk_decoder_only =
            !rules.auxk_attached && !cfg.auxk_by_group && (c / 12 >> 2 & 1);
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
    dlrn_context *ctx = open_context("auto", 1);
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

/* With a bandwidth b, what the window adds to the gradients of thresholds t and of encoder biases is
   as stated by each library:
   - dl-jump_relu: - t/b by f where |p - t| < b/2; - 1/b by L0 where |f - t| < b/2;
   - sl-jumprelu, -quadratic: both where |p - t| < b/2;
   - sl-jumprelu-tanh: the same by f, whose penalty passes, and the bias gets it with the other sign;
   - lc-jumprelu: by q = p |atom|, where q > 0, and times t, since log t is trained. */
TEST(windows_are_as_stated) {
    static const char *const names[] = {"dl-jump_relu", "sl-jumprelu", "sl-jumprelu-quadratic",
                                        "sl-jumprelu-tanh", "lc-jumprelu"};
    dlrn_context *ctx = open_context("auto", 1);
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
                    l0 += k / F == i && u > t[k % F];
                    mean += (u > t[k % F]) / (double)N;
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
    dlrn_context *ctx = open_context("auto", 1);
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

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    RUN(gradients_of_recipes_are_differences);
    RUN(gradients_of_losses_and_penalties_are_differences);
    RUN(gradients_of_auxiliary_losses_are_differences);
    RUN(gradients_of_more_picks_are_differences);
    RUN(windows_are_as_stated);
    RUN(picks_of_zero_pass_a_gradient);
    return TEST_END();
}
