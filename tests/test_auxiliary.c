/* test_auxiliary.c - the losses beside the reconstruction: AuxK as each library has it, the second
   reconstruction of multi_top_k, the loss pre_act. Finite differences; the same bits for any waves,
   threads and kernels; what is left of a step when memory runs out. Whole steps are compared with
   the naive step in test_naive.c. */
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "tests/starve.h"
#include "tests/test.h"

enum { WIDTH = 8, F = 150, N = 90 };

static float rows_x[N * 2 * WIDTH], rows_y[N * 2 * WIDTH];

static void fill_rows(void) {
    dlrn_rng rng = {5, 0, 0};
    for (int i = 0; i < N * 2 * WIDTH; i++) {
        rows_x[i] = dlrn_rng_normal(&rng);
        rows_y[i] = 0.5f * rows_x[i] + dlrn_rng_normal(&rng);
    }
}

/* ---- Scenes ---- */

typedef struct scene {
    const char *recipe;
    dlrn_switch compat, by_group, multi_top_k;
    double pre_act;
    int whole; /* all features have the gradient of the whole loss; 0: dead ones alone, since the
                  residual is taken for a constant */
} scene;

static const scene scenes[] = {
    {"dl-top_k", DLRN_OFF, DLRN_OFF, DLRN_OFF, 0, 0},
    {"dl-matryoshka", DLRN_OFF, DLRN_OFF, DLRN_OFF, 0, 0},
    {"sl-topk", DLRN_OFF, DLRN_OFF, DLRN_OFF, 0, 0},
    {"sl-abstopk", DLRN_OFF, DLRN_OFF, DLRN_OFF, 0, 0},
    {"sl-matryoshka", DLRN_OFF, DLRN_OFF, DLRN_OFF, 0, 0},
    {"sl-matryoshka", DLRN_OFF, DLRN_ON, DLRN_OFF, 0, 0},
    {"sp-topk", DLRN_OFF, DLRN_OFF, DLRN_ON, 0, 0},
    {"sp-topk", DLRN_ON, DLRN_OFF, DLRN_ON, 0, 0},
    {"sp-skip_transcoder", DLRN_OFF, DLRN_OFF, DLRN_ON, 0, 0},
    {"sp-skip_transcoder", DLRN_ON, DLRN_OFF, DLRN_ON, 0, 0},
    {"cc-batch_top_k", DLRN_OFF, DLRN_OFF, DLRN_OFF, 0, 0},
    {"lc-topk", DLRN_OFF, DLRN_OFF, DLRN_OFF, 0, 1},
    {"sl-jumprelu", DLRN_OFF, DLRN_OFF, DLRN_OFF, 0.3, 1},
    {"sl-jumprelu-tanh", DLRN_OFF, DLRN_OFF, DLRN_OFF, 0.3, 1},
    {"lc-jumprelu", DLRN_OFF, DLRN_OFF, DLRN_OFF, 0.3, 1},
};
enum { SCENES = sizeof scenes / sizeof *scenes };

static const scene *current;

static dlrn_train_config config_of(const scene *c) {
    dlrn_train_config cfg = dlrn_train_defaults(c->recipe);
    cfg.compat = c->compat;
    cfg.d_in = cfg.d_out = WIDTH * cfg.layers;
    cfg.features = F;
    cfg.lr = 0.01;
    cfg.warmup_steps = 2;
    cfg.sparsity_warmup_steps = 0;
    cfg.optimiser = DLRN_OPTIMISER_ADAM;
    cfg.scale_rows = DLRN_OFF;
    if (cfg.k) cfg.k = 5;
    if (cfg.auxk_alpha > 0 || strstr(c->recipe, "sp-") || strstr(c->recipe, "lc-topk"))
        cfg.auxk_alpha = 0.7;
    cfg.auxk = 3;
    cfg.auxk_by_group = c->by_group;
    cfg.multi_top_k = c->multi_top_k;
    cfg.pre_act = c->pre_act;
    if (cfg.dead_rows > 0) cfg.dead_rows = 1000;
    if (cfg.dead_steps > 0) cfg.dead_steps = 5;
    if (cfg.bandwidth > 0) cfg.bandwidth = 1e-6; /* no entry is within it */
    if (strstr(c->recipe, "matryoshka")) {
        const int64_t groups[4] = {20, 40, 41, 49}; /* their ends are those of no group of 48 */
        cfg.n_groups = 4;
        memcpy(cfg.groups, groups, sizeof groups);
    }
    return cfg;
}

/* Features that have been silent for long, and mostly stay it. None in the second nested group. */
static int is_dead(int64_t j) {
    return (j % 7 == 3 || (j > 130 && j < 140)) && !(j >= 20 && j < 60);
}

static dlrn_trainer *trainer_of(dlrn_context *ctx, const dlrn_train_config *cfg) {
    dlrn_trainer *t = NULL;
    dlrn_rng rng = {31, 7, 0};
    dlrn_status s = dlrn_trainer_create(ctx, cfg, NULL, NULL, &t);
    if (s == DLRN_ERR_MEMORY) s = dlrn_trainer_create(ctx, cfg, NULL, NULL, &t);
    CHECK_OK(ctx, s);
    for (int role = 0; role < DLRN_ROLE_COUNT; role++)
        for (int64_t i = 0; t->dict->param[role] && i < dlrni_role_size(t->dict, role); i++)
            t->dict->param[role][i] = 0.3f * dlrn_rng_normal(&rng);
    for (int64_t j = 0; j < cfg->features; j++) {
        float *threshold = t->dict->param[DLRN_THRESHOLD];
        if (threshold) threshold[j] = 0.2f + fabsf(threshold[j]);
        if (!is_dead(j)) continue;
        t->dict->param[DLRN_ENCODER_BIAS][j] = j % 2 ? -3.0f : -0.5f;
        /* by size, the dead are those near 0 */
        for (int64_t d = 0; d < cfg->d_in && t->rules.auxk_by_size; d++) {
            t->dict->param[DLRN_ENCODER_BIAS][j] *= 0.3f;
            t->dict->param[DLRN_ENCODER][j * cfg->d_in + d] *= 0.1f;
        }
        t->since_fired[j] = 100000;
    }
    if (t->rules.atoms != DLRNI_ATOMS_FREE)
        for (int64_t j = 0; j < cfg->features; j++)
            dlrni_set_length(ctx->k, t->dict->param[DLRN_DECODER] + j * t->dict->d_out,
                             t->dict->d_out, 1);
    dlrn_dictionary_changed(t->dict);
    t->step = 1; /* what the first batch sets is not part of the loss */
    return t;
}

/* ---- Gradients ---- */

static double loss_of(dlrn_trainer *t) {
    dlrn_train_stats stats;
    dlrn_dictionary_changed(t->dict);
    CHECK_OK(t->ctx, dlrni_forward_loss(t, rows_x, rows_y, N, &stats));
    return stats.loss;
}

/* The gradient of some numbers of a role, features `from` and every `step` after it. Selections
   make the loss jump where an entry takes another's place, so one number in twelve may be off. */
static void check_role(dlrn_trainer *t, int role, const float *grad, const char *name) {
    const float eps = 1e-3f;
    const int64_t width = dlrni_is_by_feature(role) ? dlrni_role_width(t->dict, role) : 1;
    int64_t tried = 0, off = 0;
    double first_want = 0, first_found = 0, largest = 0;
    for (int64_t i = 0; i < dlrni_role_size(t->dict, role); i++)
        largest = fmax(largest, fabs((double)grad[i]));
    for (int64_t i = 0; i < dlrni_role_size(t->dict, role); i++) {
        float *p = &t->dict->param[role][i], was = *p;
        const int64_t j = dlrni_is_by_feature(role) ? i / width : -1;
        if (j >= 0 && (current->whole ? j % 5 != 3 : !is_dead(j) || !t->w.silent[j])) continue;
        if (j < 0 && !current->whole) continue;
        if (width > 1 && i % 3) continue;
        *p = was + eps;
        const double above = loss_of(t);
        *p = was - eps;
        const double want = (above - loss_of(t)) / (2 * (double)eps);
        *p = was;
        tried++;
        if (fabs(want - (double)grad[i]) <= 2e-2 * fabs(want) + 3e-3 * largest + 2e-4) continue;
        if (!off++) first_want = want, first_found = (double)grad[i];
    }
    CHECK_MSG(tried > 3 || (!current->whole && role == DLRN_THRESHOLD), "%s: nothing tried", name);
    CHECK_MSG(off * 12 <= tried, "%s, %s: %d of %d are off, such as %g for %g", name,
              dlrn_name(DLRN_NAMES_ROLE, role), (int)off, (int)tried, first_found, first_want);
    CHECK_MSG(largest > 1e-3, "%s, %s: no gradient", name, dlrn_name(DLRN_NAMES_ROLE, role));
}

TEST(gradients_are_differences) {
    dlrn_context *ctx = test_context("auto", 1);
    for (int c = 0; c < SCENES; c += test_brief() ? 3 : 1) {
        current = &scenes[c];
        dlrn_train_config cfg = config_of(current);
        /* its encoder has none: the difference would be another's */
        if (cfg.compat == DLRN_ON) continue;
        /* about half of the dead: few take another's place; near 0 all would */
        cfg.auxk = strstr(cfg.recipe, "abs") ? F : 12;
        dlrn_trainer *t = trainer_of(ctx, &cfg);
        float *out[DLRN_ROLE_COUNT] = {0};
        for (int role = 0; role < DLRN_ROLE_COUNT; role++)
            if (t->dict->param[role])
                out[role] = (float *)malloc((size_t)dlrni_role_size(t->dict, role) * sizeof(float));
        CHECK_OK(ctx, dlrni_trainer_gradients(t, rows_x, rows_y, N, out));
        /* biases that all features share move some over their jump */
        const int shared = current->whole && t->rules.gate != DLRN_GATE_JUMP_SIGNED;
        for (int role = 0; role < DLRN_ROLE_COUNT; role++)
            if (out[role] && (shared || dlrni_is_by_feature(role)))
                check_role(t, role, out[role], current->recipe);
        for (int role = 0; role < DLRN_ROLE_COUNT; role++) free(out[role]);
        dlrn_trainer_destroy(t);
    }
    dlrn_context_destroy(ctx);
}

/* sparsify's backward pass drops the gradients of AuxK and of the 4 k best at the encoder. */
TEST(sparsify_moves_no_encoder_of_the_dead) {
    dlrn_context *ctx = test_context("auto", 1);
    for (int compat = 0; compat < 2; compat++) {
        const scene c = {"sp-topk", compat ? DLRN_ON : DLRN_OFF, DLRN_OFF, DLRN_ON, 0, 0};
        const dlrn_train_config cfg = config_of(&c);
        dlrn_trainer *t = trainer_of(ctx, &cfg);
        float encoder[F * WIDTH], atoms[F * WIDTH], bias[F], *out[DLRN_ROLE_COUNT] = {0};
        double moved = 0, turned = 0;
        out[DLRN_ENCODER] = encoder, out[DLRN_DECODER] = atoms, out[DLRN_ENCODER_BIAS] = bias;
        CHECK_OK(ctx, dlrni_trainer_gradients(t, rows_x, NULL, N, out));
        for (int j = 0; j < F; j++) {
            if (!is_dead(j) || !t->w.silent[j]) continue;
            moved += fabs((double)bias[j]) + fabs((double)encoder[j * WIDTH]);
            turned += fabs((double)atoms[j * WIDTH]);
        }
        CHECK_MSG((moved > 0) == !compat && turned > 0, "%d: %g %g", compat, moved, turned);
        dlrn_trainer_destroy(t);
    }
    dlrn_context_destroy(ctx);
}

/* The second reconstruction of sparsify reaches decoder and output bias alone. */
TEST(more_picks_in_compat_move_atoms_alone) {
    dlrn_context *ctx = test_context("auto", 1);
    for (int compat = 0; compat < 2; compat++) {
        static float encoder[2][F * WIDTH], atoms[2][F * WIDTH], skip[2][WIDTH * WIDTH];
        double moved = 0, turned = 0, skips = 0;
        for (int s = 0; s < 2; s++) {
            const dlrn_switch more = s ? DLRN_ON : DLRN_OFF;
            const scene c = {
                "sp-skip_transcoder", compat ? DLRN_ON : DLRN_OFF, DLRN_OFF, more, 0, 0};
            const dlrn_train_config cfg = config_of(&c);
            dlrn_trainer *t = trainer_of(ctx, &cfg);
            float *out[DLRN_ROLE_COUNT] = {0};
            out[DLRN_ENCODER] = encoder[s], out[DLRN_DECODER] = atoms[s], out[DLRN_SKIP] = skip[s];
            memset(t->since_fired, 0, F * sizeof *t->since_fired);
            CHECK_OK(ctx, dlrni_trainer_gradients(t, rows_x, rows_y, N, out));
            dlrn_trainer_destroy(t);
        }
        for (int i = 0; i < F * WIDTH; i++) {
            moved = fmax(moved, fabs((double)(encoder[0][i] - encoder[1][i])));
            turned = fmax(turned, fabs((double)(atoms[0][i] - atoms[1][i])));
        }
        for (int i = 0; i < WIDTH * WIDTH; i++)
            skips = fmax(skips, fabs((double)(skip[0][i] - skip[1][i])));
        CHECK_MSG((moved > 1e-6) == !compat && (skips > 1e-6) == !compat && turned > 1e-4,
                  "compat %d: %g %g %g", compat, moved, skips, turned);
    }
    dlrn_context_destroy(ctx);
}

/* A feature that sparsify picks has fired, even with a value of 0. */
TEST(picks_of_zero_count_in_compat) {
    dlrn_context *ctx = test_context("auto", 1);
    for (int compat = 0; compat < 2; compat++) {
        const scene c = {"sp-topk", compat ? DLRN_ON : DLRN_OFF, DLRN_OFF, DLRN_OFF, 0, 0};
        const dlrn_train_config cfg = config_of(&c);
        dlrn_trainer *t = trainer_of(ctx, &cfg);
        dlrn_train_stats stats;
        for (int j = 0; j < F; j++) {
            t->dict->param[DLRN_ENCODER_BIAS][j] = j == 70 || j == 71 ? 100 : -100;
            t->since_fired[j] = 10;
        }
        dlrn_dictionary_changed(t->dict);
        CHECK_OK(ctx, dlrn_trainer_step_on(t, rows_x, NULL, N, &stats));
        CHECK(test_close(stats.l0, 2, 1e-9));
        /* k is 5; of equals the lowest */
        for (int j = 0; j < F; j++)
            CHECK((t->since_fired[j] == 0) == (j == 70 || j == 71 || (compat && j < 3)));
        dlrn_trainer_destroy(t);
    }
    dlrn_context_destroy(ctx);
}

/* By default a row keeps half of a layer's width; sparsify takes the target's. */
TEST(half_of_a_layer_is_kept) {
    dlrn_context *ctx = test_context("auto", 1);
    const char *const recipes[] = {"cc-batch_top_k", "sl-topk", "sp-transcoder"};
    for (int r = 0; r < 3; r++) {
        const scene c = {recipes[r], DLRN_OFF, DLRN_OFF, DLRN_OFF, 0, 0};
        dlrn_train_config cfg = config_of(&c);
        cfg.auxk = 0;
        if (r == 2) cfg.d_out = 6;
        dlrn_trainer *t = trainer_of(ctx, &cfg);
        CHECK(dlrni_auxk_of(t) == (r == 2 ? 3 : WIDTH / 2));
        dlrn_trainer_destroy(t);
    }
    dlrn_context_destroy(ctx);
}

/* Without a dead feature the residual is not part of a loss, and has no gradient. */
TEST(no_dead_feature_is_no_loss) {
    dlrn_context *ctx = test_context("auto", 1);
    const scene c = {"lc-topk", DLRN_OFF, DLRN_OFF, DLRN_OFF, 0, 1};
    static float grad[2][F * WIDTH];
    dlrn_train_config cfg = config_of(&c);
    for (int s = 0; s < 2; s++) {
        float *out[DLRN_ROLE_COUNT] = {0};
        cfg.auxk_alpha = s ? 0.7 : 0;
        dlrn_trainer *t = trainer_of(ctx, &cfg);
        memset(t->since_fired, 0, F * sizeof *t->since_fired);
        out[DLRN_ENCODER] = grad[s];
        CHECK_OK(ctx, dlrni_trainer_gradients(t, rows_x, NULL, N, out));
        dlrn_trainer_destroy(t);
    }
    for (int i = 0; i < F * WIDTH; i++)
        CHECK(fabsf(grad[0][i] - grad[1][i]) <= 1e-5f * (fabsf(grad[0][i]) + 0.1f));
    dlrn_context_destroy(ctx);
}

/* ---- Selection ---- */

/* Among equals exactly auxk are kept, the lowest, whether their values are positive or not. */
TEST(equal_ranks_fill_the_places) {
    static const char *const recipes[] = {"sl-topk", "sl-abstopk", "dl-top_k"};
    dlrn_context *ctx = test_context("auto", 1);
    for (int r = 0; r < 3; r++)
        for (int sign = -1; sign <= 1; sign += 2) {
            const scene c = {recipes[r], DLRN_OFF, DLRN_OFF, DLRN_OFF, 0, 0};
            dlrn_train_config cfg = config_of(&c);
            float bias[F], *out[DLRN_ROLE_COUNT] = {0}, x[4 * WIDTH] = {0};
            int kept = 0, with = 0;
            dlrn_trainer *t = trainer_of(ctx, &cfg);
            float *encoder = t->dict->param[DLRN_ENCODER];
            for (int j = 0; j < F; j++)
                for (int d = 0; d < WIDTH && is_dead(j); d++) {
                    encoder[j * WIDTH + d] = 0;
                    t->dict->param[DLRN_DECODER][j * WIDTH + d] = d ? 0 : 1;
                    t->dict->param[DLRN_ENCODER_BIAS][j] = 1e-3f * (float)sign;
                }
            dlrn_dictionary_changed(t->dict);
            for (int i = 0; i < 4 * WIDTH; i++) x[i] = rows_x[i];
            out[DLRN_ENCODER_BIAS] = bias;
            CHECK_OK(ctx, dlrni_trainer_gradients(t, x, NULL, 4, out));
            for (int j = 0; j < F; j++) {
                if (!is_dead(j)) continue;
                with += kept < 3 && fabsf(bias[j]) > 0;
                kept += fabsf(bias[j]) > 0;
            }
            const int wanted = sign < 0 && r == 2 ? 0 : 3; /* ReLU */
            CHECK_MSG(kept == wanted && with == wanted, "%s %d: %d kept, %d of them lowest",
                      recipes[r], sign, kept, with);
            dlrn_trainer_destroy(t);
        }
    dlrn_context_destroy(ctx);
}

/* The k-th largest of numbers of both signs, as a sort has it. */
TEST(the_kth_largest) {
    enum { MANY = 37 };
    dlrn_rng rng = {4, 0, 0};
    float a[MANY];
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < MANY; i++)
            a[i] = i % 5 ? dlrn_rng_normal(&rng) : (float)(i % 3) - 1; /* some are equal */
        for (int k = 1; k <= MANY; k++) {
            const float found = dlrni_kth_largest(a, MANY, k, 0);
            int above = 0, equal = 0;
            for (int i = 0; i < MANY; i++) above += a[i] > found, equal += fabsf(a[i] - found) <= 0;
            CHECK(above < k && above + equal >= k);
            CHECK(fabsf(dlrni_kth_largest(a, MANY, k, 1) - fmaxf(found, 0)) <= 0);
        }
    }
}

/* Where all of the dead are kept, auxk changes nothing but the share of SAELens and sparsify,
   min(dead / auxk, 1). */
TEST(a_few_dead_weigh_little) {
    static const struct {
        const char *recipe;
        int shares;
    } tried[] = {{"sl-topk", 1}, {"sp-topk", 1}, {"dl-top_k", 0}, {"lc-topk", 0}};
    dlrn_context *ctx = test_context("auto", 1);
    for (int r = 0; r < 4; r++) {
        const scene c = {tried[r].recipe, DLRN_OFF, DLRN_OFF, DLRN_OFF, 0, 0};
        dlrn_train_config cfg = config_of(&c);
        double loss[3];
        int64_t dead = 0;
        for (int s = 0; s < 3; s++) {
            dlrn_train_stats stats;
            cfg.auxk = s == 2 ? 4 * dead : s ? dead : F;
            dlrn_trainer *t = trainer_of(ctx, &cfg);
            CHECK_OK(ctx, dlrni_forward_loss(t, rows_x, NULL, N, &stats));
            dead = t->w.aux.count;
            loss[s] = stats.auxiliary_loss;
            dlrn_trainer_destroy(t);
        }
        CHECK(dead > 3 && dead < F);
        const double one = tried[r].shares ? (double)dead / F : 1, four = tried[r].shares ? 4 : 1;
        CHECK_MSG(test_close(loss[0], one * loss[1], 1e-9), "%s: %g %g", c.recipe, loss[0],
                  loss[1]);
        CHECK_MSG(test_close(loss[1], four * loss[2], 1e-9), "%s: %g %g", c.recipe, loss[1],
                  loss[2]);
    }
    dlrn_context_destroy(ctx);
}

/* A setting that a recipe cannot have is refused. */
TEST(more_picks_need_the_best_of_a_row) {
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_train_config cfg = dlrn_train_defaults("sp-groupmax");
    dlrn_trainer *t = NULL;
    cfg.d_in = WIDTH, cfg.features = 128, cfg.k = 8;
    cfg.multi_top_k = DLRN_ON;
    CHECK_STATUS(dlrn_trainer_create(ctx, &cfg, NULL, NULL, &t), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "multi_top_k");
    dlrn_context_destroy(ctx);
}

/* ---- The same bits ---- */

/* All weights, moments and counters of a trainer in one number. */
static uint64_t fingerprint(const dlrn_trainer *t, uint64_t hash) {
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        if (!t->dict->param[role]) continue;
        const size_t size = (size_t)dlrni_role_size(t->dict, role) * sizeof(float);
        hash = starve_mix(hash, t->dict->param[role], size);
        if (t->m[role]) hash = starve_mix(hash, t->m[role], size);
    }
    return starve_mix(hash, t->since_fired, (size_t)t->dict->features * sizeof *t->since_fired);
}

static dlrn_context *hungry;

/* Some steps of a scene; each is repeated if it has no memory. */
static uint64_t steps(dlrn_context *ctx, int64_t budget) {
    const dlrn_train_config cfg = config_of(current);
    dlrn_trainer *t = trainer_of(ctx, &cfg);
    uint64_t hash = 0;
    const float *y = cfg.layers > 1 ? NULL : rows_y;
    if (budget) t->w.budget = budget;
    for (int i = 0; i < 4; i++) {
        dlrn_train_stats stats;
        STARVE_RETRY(ctx, dlrn_trainer_step_on(t, rows_x, y, N, &stats));
        hash = starve_mix(hash, &stats.loss, sizeof stats.loss);
        CHECK_MSG(i || !(cfg.auxk_alpha > 0) || stats.auxiliary_loss > 0, "%s", current->recipe);
        CHECK_MSG(!(cfg.pre_act > 0) || stats.pre_act_loss > 0, "%s", current->recipe);
        CHECK_MSG(!cfg.multi_top_k || stats.multi_top_k_loss > 0, "%s", current->recipe);
    }
    hash = fingerprint(t, hash);
    dlrn_trainer_destroy(t);
    return hash;
}

static void three_workers_backwards(void *user, int64_t n_tasks, dlrn_parallel_body body,
                                    void *arg) {
    (void)user;
    for (int64_t task = n_tasks - 1; task >= 0; task--) body(arg, task, (int)(task % 3));
}

TEST(waves_threads_and_kernels_do_not_change_a_bit) {
    dlrn_context_config three = {0};
    dlrn_context *one = test_context("scalar", 1), *two = test_context("auto", 2), *host = NULL;
    three.threads = 3;
    three.parallel_for = three_workers_backwards;
    CHECK_STATUS(dlrn_context_create(&three, &host), DLRN_OK);
    for (int c = 0; c < SCENES; c++) {
        current = &scenes[c];
        const uint64_t wanted = steps(one, 0);
        CHECK_MSG(steps(one, 1) == wanted, "%s: waves", current->recipe);
        CHECK_MSG(steps(two, 0) == wanted, "%s: threads", current->recipe);
        CHECK_MSG(steps(host, 1) == wanted, "%s: workers", current->recipe);
        for (int i = 1; test_kernels(i); i++) {
            dlrn_context *ctx = test_context(test_kernels(i), 1);
            CHECK_MSG(steps(ctx, 0) == wanted, "%s: %s", current->recipe, test_kernels(i));
            dlrn_context_destroy(ctx);
        }
    }
    dlrn_context_destroy(one);
    dlrn_context_destroy(two);
    dlrn_context_destroy(host);
}

/* Losses by nested group where the sums of the dead do not fit at once. */
TEST(nested_losses_in_waves) {
    enum { WIDE = DLRNI_AUX_SUMS + 3 * 48 + 5, SOME = 24, D = 4 };
    uint64_t hash[2];
    for (int s = 0; s < 2; s++) {
        dlrn_context *ctx = test_context(s ? "auto" : "scalar", 1 + s);
        dlrn_train_config cfg = dlrn_train_defaults("sl-matryoshka");
        dlrn_trainer *t = NULL;
        dlrn_train_stats stats;
        const int64_t groups[3] = {70, WIDE - 470, 400};
        float bias[WIDE], *out[DLRN_ROLE_COUNT] = {0};
        cfg.d_in = D, cfg.features = WIDE, cfg.k = 3, cfg.dead_steps = 1;
        cfg.n_groups = 3;
        cfg.auxk_by_group = DLRN_ON;
        memcpy(cfg.groups, groups, sizeof groups);
        CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, NULL, &t));
        for (int j = 0; j < WIDE; j++) t->since_fired[j] = 5;
        out[DLRN_ENCODER_BIAS] = bias;
        CHECK_OK(ctx, dlrni_trainer_gradients(t, rows_x, NULL, SOME, out));
        /* each loss keeps d / 2 features a row */
        for (int l = 0, at = 0; l < 3; at += (int)groups[l++]) {
            int with = 0;
            for (int j = at; j < at + groups[l]; j++) with += fabsf(bias[j]) > 0;
            CHECK_MSG(with > 0, "group %d", l);
        }
        CHECK_OK(ctx, dlrn_trainer_step_on(t, rows_x, NULL, SOME, &stats));
        hash[s] = fingerprint(t, 0);
        dlrn_trainer_destroy(t);
        dlrn_context_destroy(ctx);
    }
    CHECK(hash[0] == hash[1]);
}

/* ---- Memory ---- */

static uint64_t hungry_steps(void) {
    return steps(hungry, 0);
}

TEST(a_step_without_memory_is_repeated) {
    hungry = starve_context(2);
    for (int c = 0; c < SCENES; c++) {
        current = &scenes[c];
        CHECK(starve_each(current->recipe, hungry_steps) > 10);
    }
    dlrn_context_destroy(hungry);
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    fill_rows();
    RUN(gradients_are_differences);
    RUN(sparsify_moves_no_encoder_of_the_dead);
    RUN(more_picks_in_compat_move_atoms_alone);
    RUN(picks_of_zero_count_in_compat);
    RUN(half_of_a_layer_is_kept);
    RUN(no_dead_feature_is_no_loss);
    RUN(equal_ranks_fill_the_places);
    RUN(the_kth_largest);
    RUN(a_few_dead_weigh_little);
    RUN(more_picks_need_the_best_of_a_row);
    RUN(waves_threads_and_kernels_do_not_change_a_bit);
    RUN(nested_losses_in_waves);
    RUN(a_step_without_memory_is_repeated);
    return TEST_END();
}
