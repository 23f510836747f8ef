/* test_ranks.c - one dictionary trained by several ranks, which are threads here (ranks.h), against
   one process. */
#include "dictlearn.h"
#include "tests/test.h"

#include "tests/ranks.h"
#include "tests/recipes.h"

/* ---- Creation: each rank has its rows of the one dictionary ---- */

typedef struct created {
    const dlrn_dictionary_desc *desc;
    const char *recipe; /* NULL: dlrn_dictionary_create */
    const dlrn_dictionary *whole;
    int64_t features[RANKS_MAX];
    char error[RANKS_MAX][300];
} created;

/* Whether the rows of this rank are those of the whole, bit for bit. */
static void same_rows(const dlrn_dictionary *part, const dlrn_dictionary *whole, char *error) {
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        if (!part->param[role] != !whole->param[role])
            snprintf(error, 300, "%s is not in both", dlrn_name(DLRN_NAMES_ROLE, role));
        if (!part->param[role]) continue;
        const int64_t n = dlrni_role_size(part, role);
        const int64_t width = dlrni_is_by_feature(role) ? dlrni_role_width(part, role) : 0;
        if (memcmp(part->param[role], whole->param[role] + part->span_at * width,
                   (size_t)n * sizeof(float)) != 0)
            snprintf(error, 300, "%s: %s differs", part->family, dlrn_name(DLRN_NAMES_ROLE, role));
    }
    for (int64_t i = 0; i < part->n_parts; i++)
        same_rows(part->part[i].dict, whole->part[i].dict, error);
}

static void create_body(void *arg, int rank, dlrn_context *ctx) {
    created *c = (created *)arg;
    dlrn_dictionary *dict = NULL;
    dlrn_trainer *trainer = NULL;
    dlrn_status s = DLRN_OK;
    if (c->recipe) {
        dlrn_train_config cfg = dlrn_train_defaults(c->recipe);
        cfg.d_in = c->desc->d_in;
        cfg.features = c->desc->features;
        if (c->desc->layers) cfg.layers = c->desc->layers;
        s = dlrn_trainer_create(ctx, &cfg, NULL, NULL, &trainer);
        if (trainer) dict = trainer->dict;
    } else
        s = dlrn_dictionary_create(ctx, c->desc, &dict);
    if (s != DLRN_OK) snprintf(c->error[rank], 300, "%.290s", dlrn_error(ctx));
    if (dict) {
        c->features[rank] = dict->features;
        same_rows(dict, c->whole, c->error[rank]);
        for (int64_t f = 0; f < dict->features && !dict->n_parts; f++)
            if (dlrni_whole_feature(dict, f) != dict->span_at + f)
                snprintf(c->error[rank], 300, "feature %d has another number", (int)f);
    }
    if (!trainer) dlrn_dictionary_destroy(dict);
    dlrn_trainer_destroy(trainer);
}

/* Creates a dictionary on 1, 2, 3 and 5 ranks, and compares it with that of one process. */
static void check_created(const dlrn_dictionary_desc *desc, const char *recipe) {
    dlrn_context *ctx = test_context(NULL, 1);
    created c = {desc, recipe, NULL, {0}, {{0}}};
    dlrn_dictionary *whole = NULL;
    dlrn_trainer *trainer = NULL;
    if (recipe) {
        dlrn_train_config cfg = dlrn_train_defaults(recipe);
        cfg.d_in = desc->d_in;
        cfg.features = desc->features;
        if (desc->layers) cfg.layers = desc->layers;
        CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, NULL, &trainer));
        whole = trainer->dict;
    } else
        CHECK_OK(ctx, dlrn_dictionary_create(ctx, desc, &whole));
    c.whole = whole;
    for (int ranks = 1; ranks <= 5; ranks += 1 + ranks / 3) {
        ranks_setup setup = {0};
        int64_t features = 0;
        setup.ranks = ranks;
        memset(c.features, 0, sizeof c.features);
        ranks_run(&setup, create_body, &c);
        for (int r = 0; r < ranks; r++) {
            CHECK_MSG(!*c.error[r], "%s, rank %d of %d: %s", desc->family, r, ranks, c.error[r]);
            features += c.features[r];
        }
        CHECK(features == desc->features);
    }
    if (trainer)
        dlrn_trainer_destroy(trainer);
    else
        dlrn_dictionary_destroy(whole);
    dlrn_context_destroy(ctx);
}

TEST(creation) {
    static const char *const names[] = {
        "AutoEncoder",      "AutoEncoderTopK", "JumpReluAutoEncoder",
        "GatedAutoEncoder", "GroupMax",        "AbsTopK"};
    dlrn_dictionary_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.d_in = 10;
    desc.seed = 7;
    desc.k = 4;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        desc.family = names[i];
        desc.features = i % 2 ? 300 : 100; /* 7 and 3 groups */
        check_created(&desc, NULL);
    }
    desc.family = "CrossLayerTranscoder";
    desc.features = 3 * 100;
    desc.d_in = 12;
    desc.layers = 3;
    check_created(&desc, NULL);
    check_created(&desc, "clt-jumprelu");
    desc.layers = 0;
    desc.features = 300;
    check_created(&desc, "lc-relu");
    check_created(&desc, "sp-topk");
}

/* ---- Training ----
   A run on R ranks and the same run of one process differ by the order of the sums that make x_hat:
   by one rounding here and there. What a recipe decides by comparing (a gate, a selection, a sign)
   may fall otherwise where two numbers are that near to each other. The seeds below are such that
   none is in these runs, and Adam's eps is not far below the gradients, as with 1e-8 it makes a
   step of full length from a gradient that is a rounding error. Sign descent always does: recipes
   that have it run with Adam here. */

enum { STEPS = 40, ROWS = 32, MAX_F = 400, WIDTH = 24 };

typedef struct scene {
    dlrn_train_config cfg;
    const float *x, *y; /* [steps * n][d_in], or y NULL */
    int64_t n, steps;
    int64_t budget;         /* entries per wave; 0: the trainer's own */
    int64_t period;         /* encoder rows repeat after so many; 0: they do not */
    dlrn_dictionary *whole; /* what the ranks have trained, put together */
    const dlrn_dictionary *init;
    dlrn_train_stats stats[RANKS_MAX][STEPS];
    int64_t since[MAX_F];     /* counters of all features */
    uint64_t hash[RANKS_MAX]; /* of what all ranks must have alike */
    int64_t per_step;         /* bytes that the last step reduced, on rank 0 */
    char error[RANKS_MAX][300];
    dlrn_status status[RANKS_MAX];
} scene;

static uint64_t hash_of(uint64_t hash, const void *bytes, size_t size) { /* FNV-1a */
    if (!hash) hash = 14695981039346656037u;
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ ((const unsigned char *)bytes)[i]) * 1099511628211u;
    return hash;
}

/* Puts the rows of this rank into the whole. Parameters that belong to no feature are rank 0's, and
   the same bits on all. */
static void put(const dlrn_dictionary *own, dlrn_dictionary *whole, int rank, uint64_t *hash) {
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        if (!own->param[role]) continue;
        const size_t size = (size_t)dlrni_role_size(own, role) * sizeof(float);
        if (dlrni_is_by_feature(role))
            memcpy(whole->param[role] + own->span_at * dlrni_role_width(own, role),
                   own->param[role], size);
        else {
            if (rank == 0) memcpy(whole->param[role], own->param[role], size);
            *hash = hash_of(*hash, own->param[role], size);
        }
    }
    if (rank == 0) whole->formula = own->formula;
    *hash = hash_of(*hash, &own->formula.threshold, sizeof(double));
    for (int64_t i = 0; i < own->n_parts; i++)
        put(own->part[i].dict, whole->part[i].dict, rank, hash);
}

/* Encoder rows that are the same for features so far apart: their pre-activations are equal. */
static void repeat_rows(dlrn_dictionary *dict, int64_t period) {
    const int64_t d = dict->d_in;
    for (int64_t f = 0; f < dict->features && dict->param[DLRN_ENCODER]; f++) {
        dlrn_rng rng = {9, (uint64_t)((dict->span_at + f) % period), 0};
        for (int64_t i = 0; i < d; i++)
            dict->param[DLRN_ENCODER][f * d + i] = 0.2f * dlrn_rng_normal(&rng);
        dict->param[DLRN_ENCODER_BIAS][f] = 0;
    }
    for (int64_t i = 0; i < dict->n_parts; i++) repeat_rows(dict->part[i].dict, period);
    dlrn_dictionary_changed(dict);
}

static void set_budget(dlrn_trainer *t, int64_t budget) {
    t->w.budget = budget;
    for (int64_t i = 0; i < t->n_parts; i++) t->part[i]->w.budget = budget;
}

static void train_body(void *arg, int rank, dlrn_context *ctx) {
    scene *s = (scene *)arg;
    dlrn_trainer *t = NULL;
    dlrn_status status = dlrn_trainer_create(ctx, &s->cfg, NULL, NULL, &t);
    if (status == DLRN_OK && s->budget) set_budget(t, s->budget);
    if (status == DLRN_OK && s->period) repeat_rows(t->dict, s->period);
    for (int64_t step = 0; status == DLRN_OK && step < s->steps; step++) {
        const int64_t at = step * s->n;
        const int64_t before = dlrn_context_describe(ctx).traffic.reduced;
        status =
            dlrn_trainer_step_on(t, s->x + at * s->cfg.d_in, s->y ? s->y + at * s->cfg.d_out : NULL,
                                 s->n, &s->stats[rank][step]);
        if (rank == 0) s->per_step = dlrn_context_describe(ctx).traffic.reduced - before;
    }
    s->status[rank] = status;
    if (status != DLRN_OK) snprintf(s->error[rank], 300, "%.290s", dlrn_error(ctx));
    if (status == DLRN_OK) {
        put(t->dict, s->whole, rank, &s->hash[rank]);
        for (int64_t f = 0; f < t->dict->features; f++)
            s->since[dlrni_whole_feature(t->dict, f)] = t->since_fired[f];
    }
    dlrn_trainer_destroy(t);
}

/* Settings of a recipe for small widths, so that all of its terms count. */
static dlrn_train_config small_config(const char *recipe, int64_t F) {
    dlrn_train_config cfg = dlrn_train_defaults(recipe);
    const int clt = strstr(recipe, "clt") != NULL;
    if (clt) cfg.layers = 2;
    cfg.d_in = cfg.d_out = WIDTH;
    cfg.features = F;
    cfg.steps = 1000;
    cfg.log_steps = -1;
    cfg.seed = 3;
    cfg.lr = 1e-3;
    cfg.eps = 1e-4;
    if (cfg.sparsity != DLRN_SPARSITY_NONE) cfg.sparsity_penalty = 0.05;
    cfg.warmup_steps = cfg.sparsity_warmup_steps = 5;
    if (cfg.k) cfg.k = strstr(recipe, "group") ? 10 : 8; /* 10 groups of 30 lie across the spans */
    if (uses(recipe, "auxk_alpha")) cfg.auxk_alpha = 0.5;
    if (cfg.dead_rows > 0) cfg.dead_rows = 3 * ROWS;
    if (cfg.dead_steps > 0) cfg.dead_steps = 3;
    if (cfg.target_l0 > 0 || cfg.sparsity == DLRN_SPARSITY_TARGET) cfg.target_l0 = 5;
    if (uses(recipe, "pre_act")) cfg.pre_act = 0.1;
    if (uses(recipe, "bandwidth")) cfg.bandwidth = 0.2;
    if (uses(recipe, "anneal_updates"))
        cfg.anneal_start = 5, cfg.anneal_end = 30, cfg.anneal_updates = 5, cfg.p_start = 2,
        cfg.p_end = 1.5;
    if (uses(recipe, "k_anneal_steps") && cfg.k && !strstr(recipe, "group"))
        cfg.k_anneal_steps = 10;
    if (uses(recipe, "optimiser")) cfg.optimiser = DLRN_OPTIMISER_ADAM;
    return cfg;
}

/* Rows with directions that features can learn, and a mean that is not 0. */
static void make_rows(float *x, int64_t n, int64_t d, uint64_t seed) {
    dlrn_rng rng = {seed, 0, 0};
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < d; c++)
            x[i * d + c] = dlrn_rng_normal(&rng) * (c % 5 == i % 5 ? 2.0f : 0.5f) + 0.1f;
}

static float random_x[STEPS * ROWS * WIDTH], random_y[STEPS * ROWS * WIDTH];

/* A run; s->whole is set. 0 ranks: no collective. */
static void run(scene *s, int ranks, int threads, const char *kernels) {
    ranks_setup setup = {0};
    setup.ranks = ranks;
    setup.threads = threads;
    setup.kernels = kernels;
    memset(s->stats, 0, sizeof s->stats);
    memset(s->hash, 0, sizeof s->hash);
    memset(s->error, 0, sizeof s->error);
    ranks_run(&setup, train_body, s);
    for (int r = 0; r < (ranks > 1 ? ranks : 1); r++)
        CHECK_MSG(s->status[r] == DLRN_OK, "%s, rank %d of %d: %s", s->cfg.recipe, r, ranks,
                  s->error[r]);
    for (int r = 1; r < ranks; r++) {
        CHECK_MSG(s->hash[r] == s->hash[0], "%s: rank %d of %d has other biases", s->cfg.recipe, r,
                  ranks);
        CHECK_MSG(!memcmp(s->stats[r], s->stats[0], sizeof s->stats[0]),
                  "%s: rank %d of %d shows other figures", s->cfg.recipe, r, ranks);
    }
}

/* The largest difference of a parameter over its largest number. */
static double distance(const dlrn_dictionary *a, const dlrn_dictionary *b, const char **worst) {
    double most = 0;
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        if (!a->param[role]) continue;
        const double off = apart(a->param[role], b->param[role], dlrni_role_size(a, role));
        if (off > most) most = off, *worst = dlrn_name(DLRN_NAMES_ROLE, role);
    }
    for (int64_t i = 0; i < a->n_parts; i++) {
        const double off = distance(a->part[i].dict, b->part[i].dict, worst);
        most = off > most ? off : most;
    }
    return most;
}

/* The largest relative difference of the figures of two runs; whole numbers must be equal. */
static double stats_apart(const scene *a, const scene *b, int ranks) {
    double most = 0;
    for (int64_t i = 0; i < a->steps; i++) {
        const dlrn_train_stats *p = &a->stats[0][i], *q = &b->stats[0][i];
        const double of[][2] = {{p->loss, q->loss},
                                {p->reconstruction_loss, q->reconstruction_loss},
                                {p->sparsity_loss, q->sparsity_loss},
                                {p->auxiliary_loss, q->auxiliary_loss},
                                {p->pre_act_loss, q->pre_act_loss},
                                {p->multi_top_k_loss, q->multi_top_k_loss},
                                {p->penalty, q->penalty},
                                {p->l0, q->l0}};
        CHECK_MSG(p->dead == q->dead && p->k == q->k && p->resampled == q->resampled,
                  "%s, %d ranks, step %d: %d dead, expected %d", a->cfg.recipe, ranks, (int)i,
                  (int)p->dead, (int)q->dead);
        for (size_t e = 0; e < sizeof of / sizeof *of; e++)
            most = fmax(most, fabs(of[e][0] - of[e][1]) / fmax(fabs(of[e][1]), 1e-12));
    }
    return most;
}

/* The shape that s->cfg trains, for the rows of all ranks. */
static dlrn_trainer *shape_of(dlrn_context *ctx, scene *s) {
    dlrn_trainer *t = NULL;
    CHECK_OK(ctx, dlrn_trainer_create(ctx, &s->cfg, NULL, NULL, &t));
    s->whole = t->dict;
    return t;
}

static int fewest = 1, most = 4; /* ranks of the runs below */

/* A configuration on several ranks against one process. */
static void check_ranks(const dlrn_train_config *cfg, const float *x, const float *y, int64_t n,
                        int64_t steps, int64_t budget, int64_t period, double limit) {
    static scene plain, other;
    plain.period = other.period = period;
    dlrn_context *ctx = test_context(NULL, 1);
    plain.cfg = other.cfg = *cfg;
    plain.x = other.x = x;
    plain.y = other.y = y;
    plain.n = other.n = n;
    plain.steps = other.steps = steps;
    plain.budget = other.budget = budget;
    dlrn_trainer *a = shape_of(ctx, &plain), *b = shape_of(ctx, &other);
    run(&plain, 0, 1, NULL);
    for (int ranks = fewest; ranks <= most; ranks++) {
        const char *worst = "";
        run(&other, ranks, 1, NULL);
        const double off = distance(other.whole, plain.whole, &worst);
        const double figures = stats_apart(&other, &plain, ranks);
        if (getenv("RANKS_FIGURES"))
            printf("  %-22s %d ranks: weights %.2g (%s), figures %.2g, dead %d, aux %.3g, %d\n",
                   cfg->recipe, ranks, off, worst, figures, (int)plain.stats[0][steps - 1].dead,
                   plain.stats[0][steps - 1].auxiliary_loss,
                   (int)plain.stats[0][steps - 2].resampled);
        if (ranks == 1)
            CHECK_MSG(off == 0 && figures == 0, "%s: one rank has other bits", cfg->recipe);
        CHECK_MSG((off <= limit && figures <= limit) || getenv("RANKS_FIGURES"),
                  "%s, %d ranks: weights are off by %.3g (%s), figures by %.3g", cfg->recipe, ranks,
                  off, worst, figures);
        CHECK_MSG(!memcmp(plain.since, other.since, sizeof plain.since), "%s, %d ranks: counters",
                  cfg->recipe, ranks);
    }
    dlrn_trainer_destroy(a);
    dlrn_trainer_destroy(b);
    dlrn_context_destroy(ctx);
}

TEST(recipes) {
    make_rows(random_x, STEPS * ROWS, WIDTH, 1);
    make_rows(random_y, STEPS * ROWS, WIDTH, 2);
    for (int i = 0; dlrn_recipe(i); i++) {
        if (test_brief() && i % 4) continue; /* golden_rows has others of them */
        const char *recipe = dlrn_recipe(i)->name;
        const int clt = strstr(recipe, "clt") != NULL, maps = strstr(recipe, "transcoder") || clt;
        /* 7 groups, the last one short; of cross-layer transcoders 4 in each part */
        const dlrn_train_config cfg = small_config(recipe, clt ? 2 * 180 : 300);
        if (getenv("RANKS_ONLY") && !strstr(recipe, getenv("RANKS_ONLY"))) continue;
        most = 3; /* four: on the golden rows */
        check_ranks(&cfg, random_x, maps ? random_y : NULL, ROWS, STEPS, 0, 0, 1e-6);
        most = 4;
    }
}

/* Reads one of the arrays of rows that the traces of other libraries' trainers share. */
static float *trace_rows(dlrn_context *ctx, dlrn_archive *a, const char *name, int64_t *n) {
    const int64_t at = dlrn_archive_find(a, name);
    CHECK_MSG(at >= 0, "training.npz lacks %s", name);
    *n = dlrn_archive_tensor(a, at)->numel;
    float *rows = malloc((size_t)*n * sizeof *rows);
    CHECK(rows != NULL);
    CHECK_OK(ctx, dlrn_archive_read(a, at, 0, -1, rows));
    return rows;
}

/* The rows of the golden traces, which are those of a model: 40 steps of 64, of cross-layer
   transcoders 10. */
TEST(golden_rows) {
    dlrn_context *ctx = test_context(NULL, 1);
    dlrn_archive *a = NULL;
    CHECK_OK(ctx, dlrn_archive_open(ctx, "tests/golden/training.npz", &a));
    for (int i = 0; dlrn_recipe(i); i++) {
        if (test_brief() && i % 4 != 2) continue;
        const char *recipe = dlrn_recipe(i)->name;
        const int clt = strstr(recipe, "clt") != NULL, cc = strstr(recipe, "cc-") != NULL;
        dlrn_train_config cfg = small_config(recipe, clt ? 3 * 100 : 200);
        int64_t n, n_y;
        float *x = trace_rows(ctx, a, clt ? "rows.4" : cc ? "rows.3" : "rows.0", &n);
        float *y = clt ? trace_rows(ctx, a, "rows.5", &n_y) : NULL;
        if (clt) cfg.layers = 3;
        cfg.d_in = cfg.d_out = clt ? 48 : cc ? 32 : 16;
        fewest = 4; /* the others are above */
        check_ranks(&cfg, x, y, 64, n / 64 / cfg.d_in, 0, 0, 1e-6);
        fewest = 1;
        free(x);
        free(y);
    }
    dlrn_archive_close(a);
    dlrn_context_destroy(ctx);
}

/* What recipes leave at its default above. */
static void ghosts(dlrn_train_config *cfg) {
    cfg->ghost_threshold = 1;
    cfg->sparsity_penalty = 20;
    cfg->lr = 0.02;
    cfg->eps = 1e-2;
    cfg->warmup_steps = cfg->sparsity_warmup_steps = 0;
}
static void resampled(dlrn_train_config *cfg) {
    ghosts(cfg);
    cfg->ghost_threshold = -1;
    cfg->resample_steps = 5;
    cfg->lr = 0.01;
}
static void entropy(dlrn_train_config *cfg) {
    cfg->sparsity = DLRN_SPARSITY_ENTROPY;
}
static void steered(dlrn_train_config *cfg) {
    cfg->target_l0 = 20;
    cfg->loss = DLRN_LOSS_LAYERS;
}
static void fvu(dlrn_train_config *cfg) {
    cfg->loss = DLRN_LOSS_FVU;
    cfg->scale_rows = DLRN_ON;
}
static void clipped(dlrn_train_config *cfg) {
    cfg->clip = 0.01;
}
static void compat(dlrn_train_config *cfg) {
    cfg->compat = DLRN_ON;
    cfg->log_steps = 5;
    cfg->resample_steps = uses(cfg->recipe, "resample_steps") ? 4 : -1;
}
static void multi(dlrn_train_config *cfg) {
    cfg->multi_top_k = DLRN_ON;
}
static void multi_compat(dlrn_train_config *cfg) {
    cfg->multi_top_k = cfg->compat = DLRN_ON;
}
static void by_group(dlrn_train_config *cfg) {
    cfg->auxk_by_group = DLRN_ON;
    cfg->dead_steps = 1;
}
static void fraction(dlrn_train_config *cfg) {
    cfg->k_fraction = 0.5;
}
static void scaled(dlrn_train_config *cfg) {
    cfg->scale_rows = DLRN_ON;
}

static const struct {
    const char *recipe;
    void (*set)(dlrn_train_config *cfg);
    int64_t features, budget;
} variants[] = {{"reference", ghosts, 300, 0},
                {"reference", ghosts, 100, 3000},
                {"reference", resampled, 300, 0},
                {"dl-standard", resampled, 100, 0},
                {"reference", entropy, 300, 0},
                {"reference", entropy, 300, 3000}, /* several waves */
                {"reference", steered, 100, 0},    /* fewer groups than ranks */
                {"reference", fvu, 300, 3000},
                {"reference", compat, 300, 0},
                {"dl-top_k", clipped, 100, 3000},
                {"dl-batch_top_k", clipped, 100, 0},
                {"dl-batch_top_k", scaled, 300, 1000},
                {"dl-matryoshka", scaled, 100, 3000},
                {"dl-jump_relu", compat, 100, 0},
                {"dl-gated", scaled, 100, 3000},
                {"sl-batchtopk", fraction, 300, 0},
                {"sl-matryoshka", by_group, 300, 0},
                {"sl-abstopk", scaled, 100, 3000},
                {"sl-jumprelu-tanh", scaled, 100, 3000},
                {"sp-topk", multi, 300, 0},
                {"sp-topk", multi_compat, 100, 3000},
                {"sp-skip_transcoder", multi_compat, 300, 0},
                {"sp-groupmax", compat, 100, 3000},
                {"clt-topk", scaled, 96, 1000},
                {"clt-batch_top_k", scaled, 200, 1000},
                {"clt-jumprelu", compat, 96, 0}};

TEST(settings) {
    make_rows(random_x, STEPS * ROWS, WIDTH, 1);
    make_rows(random_y, STEPS * ROWS, WIDTH, 2);
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
        const char *recipe = variants[i].recipe;
        const int maps = strstr(recipe, "transcoder") || strstr(recipe, "clt");
        dlrn_train_config cfg = small_config(recipe, variants[i].features);
        if (getenv("RANKS_ONLY") && !strstr(recipe, getenv("RANKS_ONLY"))) continue;
        variants[i].set(&cfg);
        check_ranks(&cfg, random_x, maps ? random_y : NULL, ROWS, 12, variants[i].budget, 0, 1e-6);
    }
}

/* Entries that are equal, on one rank and on several: those of the lower features stay. */
TEST(equals) {
    static const char *const names[] = {"dl-top_k", "sl-abstopk", "dl-batch_top_k", "sp-groupmax",
                                        "sp-topk",  "clt-topk",   "clt-batch_top_k"};
    make_rows(random_x, STEPS * ROWS, WIDTH, 1);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        dlrn_train_config cfg = small_config(names[i], strstr(names[i], "clt") ? 2 * 160 : 300);
        cfg.k_anneal_steps = 0;
        check_ranks(&cfg, random_x, NULL, ROWS, 3, 0, 20, 1e-5);
        check_ranks(&cfg, random_x, NULL, ROWS, 3, 1500, 20, 1e-5);
    }
}

/* ---- The same R, the same bits ---- */

static uint64_t hash_params(uint64_t hash, const dlrn_dictionary *dict) {
    for (int role = 0; role < DLRN_ROLE_COUNT; role++)
        if (dict->param[role])
            hash = hash_of(hash, dict->param[role],
                           (size_t)dlrni_role_size(dict, role) * sizeof(float));
    for (int64_t i = 0; i < dict->n_parts; i++) hash = hash_params(hash, dict->part[i].dict);
    return hash;
}

/* Rows for two stretches, which screens and guesses are for. */
enum { MANY = 2100 };
static float many_x[3 * MANY * WIDTH];

/* Three ranks, again and again: with other threads, kernels, waves. */
static void check_bits(const char *recipe, int64_t n, int64_t features) {
    static scene s;
    dlrn_context *ctx = test_context(NULL, 1);
    s.cfg = small_config(recipe, features);
    if (uses(recipe, "optimiser")) s.cfg.optimiser = DLRN_OPTIMISER_SIGNUM;
    s.x = many_x;
    s.y = NULL;
    s.n = n;
    s.steps = n == MANY ? 2 : 6;
    /* the scalar set takes long; where there is a screen, the next set has another one */
    const char *kernels = n == MANY && test_kernels(1) ? test_kernels(1) : "scalar";
    dlrn_trainer *shape = shape_of(ctx, &s);
    uint64_t want = 0;
    for (int i = 0; i < (n == MANY ? 3 : 4); i++) {
        s.budget = i == 3 ? 3000 : 0;
        run(&s, 3, i == 1 ? 2 : 1, i == 2 ? kernels : NULL);
        uint64_t hash = hash_params(0, s.whole);
        for (int64_t step = 0; step < s.steps; step++)
            hash = hash_of(hash, &s.stats[0][step], sizeof s.stats[0][0]);
        if (!i) want = hash;
        CHECK_MSG(hash == want, "%s: other bits with other %s", recipe,
                  i == 1   ? "threads"
                  : i == 2 ? "kernels"
                           : "waves");
    }
    dlrn_trainer_destroy(shape);
    dlrn_context_destroy(ctx);
}

TEST(bits) {
    static const char *const names[] = {"reference",     "dl-top_k",       "dl-batch_top_k",
                                        "dl-matryoshka", "dl-jump_relu",   "sp-groupmax",
                                        "sp-topk",       "clt-batch_top_k"};
    make_rows(many_x, 3 * MANY, WIDTH, 5);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        check_bits(names[i], i < 3 ? MANY : 64, 300);
}

/* Large batches against one process. */
TEST(large_batches) {
    static const char *const names[] = {"dl-standard", "dl-top_k", "dl-batch_top_k"};
    make_rows(many_x, 3 * MANY, WIDTH, 5);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        dlrn_train_config cfg = small_config(names[i], 300);
        check_ranks(&cfg, many_x, NULL, MANY, 3, 0, 0, 1e-6);
    }
}

/* ---- Traffic ---- The manual's formula: bytes that a step gives to the collective, on each rank.
   A status is 8 bytes. */

enum {
    STATUS = 8,
    X_HAT = 4 * ROWS * WIDTH,
    CENTER = 4 * WIDTH,
    AUXILIARY = 8, /* features that are dead for it */
    FIGURES = 24,
    PLAIN = X_HAT + FIGURES + 4 * STATUS,
    PENALTY = 8 * ROWS,
    PRE_ACT = 8 + STATUS,
    CLIPPING = 16 + STATUS,
    TOP_K = 512 * ROWS + STATUS,
    BATCH_TOP_K = 3 * 8 * (2048 + 1) + 4 * STATUS,
    GROUP_MAX = 8 * ROWS * 10 + STATUS + 8, /* groups may be empty: rows have fewer than k */
    PARTS = 2 * (FIGURES + STATUS)          /* a transcoder of two layers */
};

static const struct {
    const char *recipe;
    int64_t bytes;
} sent[] = {{"reference", PLAIN + CENTER + PENALTY + AUXILIARY},
            {"dl-standard", PLAIN + CENTER + PENALTY},
            {"dl-p_anneal", PLAIN + CENTER + 2 * PENALTY},
            {"dl-gated", PLAIN + CENTER + PENALTY + X_HAT},
            {"dl-top_k", PLAIN + CENTER + AUXILIARY + TOP_K + CLIPPING},
            {"dl-batch_top_k", PLAIN + CENTER + AUXILIARY + BATCH_TOP_K + CLIPPING},
            {"dl-matryoshka", PLAIN + CENTER + AUXILIARY + BATCH_TOP_K + CLIPPING + 4 * X_HAT},
            {"sl-jumprelu", PLAIN + CENTER + PENALTY + PRE_ACT + CLIPPING},
            {"sp-topk", PLAIN + CENTER + AUXILIARY + TOP_K},
            {"sp-groupmax", PLAIN + CENTER + AUXILIARY + GROUP_MAX},
            {"sp-skip_transcoder", PLAIN + AUXILIARY + TOP_K},
            {"clt-topk", PLAIN + STATUS + PARTS + 2 * TOP_K},
            {"clt-batch_top_k", PLAIN + STATUS + PARTS + BATCH_TOP_K},
            {"clt-jumprelu", PLAIN + STATUS + PARTS + 2 * (PENALTY + PRE_ACT)}};

TEST(traffic) {
    make_rows(random_x, STEPS * ROWS, WIDTH, 1);
    for (size_t i = 0; i < sizeof sent / sizeof *sent; i++)
        for (int ranks = 2; ranks <= 4; ranks++) {
            static scene s;
            dlrn_context *ctx = test_context(NULL, 1);
            s.cfg = small_config(sent[i].recipe, 300);
            s.cfg.dead_rows = s.cfg.dead_rows > 0 ? 100000 : s.cfg.dead_rows;
            s.x = random_x;
            s.n = ROWS;
            s.steps = 8;
            dlrn_trainer *shape = shape_of(ctx, &s);
            run(&s, ranks, 1, NULL);
            CHECK_MSG(s.per_step == sent[i].bytes, "%s, %d ranks: %d bytes in a step, expected %d",
                      sent[i].recipe, ranks, (int)s.per_step, (int)sent[i].bytes);
            for (int r = 0; r < ranks; r++)
                CHECK(!memcmp(&ranks_traffic[r], &ranks_counted[r], sizeof ranks_counted[r]));
            dlrn_trainer_destroy(shape);
            dlrn_context_destroy(ctx);
        }
}

/* ---- A rank that fails ---- */

static int64_t grants[RANKS_MAX]; /* allocations of each rank that are left; below 0: no limit */

static void *granting_alloc(void *user, size_t size) {
    int64_t *left = &grants[*(int *)user];
    if (*left == 0) return NULL;
    if (*left > 0) --*left;
    return malloc(size);
}

static void granting_release(void *user, void *p) {
    (void)user;
    free(p);
}

/* One step of a new trainer, again where memory ran out: as the manual says, no rank has moved. */
static void failing_body(void *arg, int rank, dlrn_context *ctx) {
    scene *s = (scene *)arg;
    dlrn_trainer *t = NULL;
    s->status[rank] = dlrn_trainer_create(ctx, &s->cfg, NULL, NULL, &t);
    for (int64_t step = 0; s->status[rank] == DLRN_OK && step < s->steps; step++)
        s->status[rank] =
            dlrn_trainer_step_on(t, s->x + step * s->n * s->cfg.d_in, NULL, s->n, NULL);
    snprintf(s->error[rank], 300, "%.290s", s->status[rank] ? dlrn_error(ctx) : "");
    dlrn_trainer_destroy(t);
}

/* The allocator of one rank fails at call number `at`: returns whether it was reached. */
static int check_failure(scene *s, int failing, int64_t at) {
    ranks_setup setup = {0};
    setup.ranks = 3;
    setup.alloc = granting_alloc;
    setup.release = granting_release;
    for (int r = 0; r < RANKS_MAX; r++) grants[r] = r == failing ? at : -1;
    ranks_run(&setup, failing_body, s);
    if (s->status[failing] == DLRN_OK) return 0;
    for (int r = 0; r < 3; r++) {
        CHECK_MSG(s->status[r] == DLRN_ERR_MEMORY, "%s, allocation %d of rank %d: rank %d: %s",
                  s->cfg.recipe, (int)at, failing, r, s->error[r]);
        CHECK_STR(s->error[r], "out of memory");
        if (r != failing) CHECK_STR(s->error[r], failing == 1 ? "rank 1: " : "rank 2: ");
    }
    return 1;
}

TEST(failures) {
    static const char *const names[] = {"reference",      "dl-standard", "dl-top_k",
                                        "dl-batch_top_k", "sp-groupmax", "sl-matryoshka",
                                        "clt-batch_top_k"};
    make_rows(random_x, STEPS * ROWS, WIDTH, 1);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        static scene s;
        s.cfg = small_config(names[i], strstr(names[i], "clt") ? 200 : 150);
        if (!strcmp(names[i], "dl-standard")) { /* with a resampling, of features that have died */
            resampled(&s.cfg);
            s.cfg.resample_steps = 4;
        }
        s.x = random_x;
        s.n = ROWS;
        s.steps = 5; /* features die, and the auxiliary pass takes memory */
        /* the context itself is the first allocation */
        int64_t at = 1;
        while (check_failure(&s, 1 + (int)(at % 2), at)) at += at < 20 || !test_brief() ? 1 : 5;
        CHECK_MSG(at > 25, "%s: only %d allocations", names[i], (int)at);
    }
}

/* A whole run in one call, whose progress callback may stop it on one rank. */
typedef struct whole_run {
    scene s;
    int stops; /* the rank that stops after its second step, or -1 */
    int meets; /* 1: the source makes calls between the ranks      */
    int steps[RANKS_MAX], has_dictionary[RANKS_MAX];
} whole_run;

/* A source of rows that makes a call between the ranks for each of its own. */
typedef struct met_source {
    dlrn_context *ctx;
    dlrn_source inner;
} met_source;

static dlrn_status met_read(void *user, int64_t max_rows, float *x, float *y, int64_t *n) {
    met_source *m = (met_source *)user;
    int64_t number = max_rows;
    const dlrn_status s = dlrni_from_rank(m->ctx, 0, &number, sizeof number);
    return s == DLRN_OK ? m->inner.read(m->inner.user, max_rows, x, y, n) : s;
}

typedef struct watched {
    whole_run *run;
    int rank;
} watched;

static dlrn_status watch(void *user, dlrn_trainer *t, const dlrn_train_stats *stats) {
    const watched *w = (const watched *)user;
    (void)t, (void)stats;
    return ++w->run->steps[w->rank] == 2 && w->rank == w->run->stops ? DLRN_STOPPED : DLRN_OK;
}

static void whole_run_body(void *arg, int rank, dlrn_context *ctx) {
    whole_run *run = (whole_run *)arg;
    watched w = {run, rank};
    dlrn_source source;
    dlrn_dictionary *dict = NULL;
    dlrn_status s = dlrn_source_from_array(ctx, random_x, NULL, STEPS * ROWS, WIDTH, 0, 0, &source);
    const int opened = s == DLRN_OK;
    met_source met = {ctx, source};
    s = dlrn_agree(ctx, s);
    if (s == DLRN_OK && run->meets) {
        source.position = NULL, source.seek = NULL, source.error = NULL, source.destroy = NULL;
        source.read = met_read, source.user = &met, source.collective = 1;
    }
    if (s == DLRN_OK) s = dlrn_train(ctx, &run->s.cfg, &source, watch, &w, &dict);
    run->s.status[rank] = s;
    snprintf(run->s.error[rank], 300, "%.290s", s ? dlrn_error(ctx) : "");
    run->has_dictionary[rank] = dict != NULL;
    dlrn_dictionary_destroy(dict);
    if (opened) dlrn_source_destroy(&met.inner);
}

/* One rank has no memory for its source, its buffer, its trainer or a step; or its callback stops
   the run: all end with the same status. */
TEST(whole_runs_that_end_on_one_rank) {
    static whole_run run;
    ranks_setup setup = {0};
    make_rows(random_x, STEPS * ROWS, WIDTH, 1);
    run.s.cfg = small_config("dl-top_k", 150);
    run.s.cfg.steps = 4;
    run.s.cfg.buffer.capacity = 4 * ROWS, run.s.cfg.buffer.read_rows = ROWS;
    run.s.cfg.buffer.batch_rows = ROWS;
    setup.ranks = 3;
    setup.alloc = granting_alloc;
    setup.release = granting_release;
    for (int meets = 0; meets < 2; meets++) {
        run.meets = meets;
        for (int64_t at = 1, more = 1; more; at++) {
            for (int r = 0; r < RANKS_MAX; r++) grants[r] = r == 1 ? at : -1;
            run.stops = -1;
            memset(run.steps, 0, sizeof run.steps);
            ranks_run(&setup, whole_run_body, &run);
            more = run.s.status[1] != DLRN_OK;
            for (int r = 0; r < 3; r++)
                CHECK_MSG(run.s.status[r] == (more ? DLRN_ERR_MEMORY : DLRN_OK) &&
                              run.has_dictionary[r] == !more,
                          "allocation %d: rank %d: %s", (int)at, r, run.s.error[r]);
            CHECK(more || at > 20);
        }
    }
    run.meets = 0;
    run.stops = 2;
    grants[1] = -1;
    memset(run.steps, 0, sizeof run.steps);
    ranks_run(&setup, whole_run_body, &run);
    for (int r = 0; r < 3; r++) {
        CHECK_STATUS(run.s.status[r], DLRN_STOPPED);
        CHECK(run.steps[r] == 2 && run.has_dictionary[r]);
    }
}

/* An init of another span. */
static void other_span_body(void *arg, int rank, dlrn_context *ctx) {
    scene *s = (scene *)arg;
    dlrn_trainer *t = NULL;
    s->status[rank] = dlrn_trainer_create(ctx, &s->cfg, s->init, NULL, &t);
    snprintf(s->error[rank], 300, "%.290s", s->status[rank] ? dlrn_error(ctx) : "");
    dlrn_trainer_destroy(t);
}

TEST(init_of_another_span) {
    static scene s;
    dlrn_context *ctx = test_context(NULL, 1);
    dlrn_dictionary *dict = NULL;
    ranks_setup setup = {0};
    setup.ranks = 2;
    s.cfg = small_config("reference", 100);
    CHECK_OK(ctx, new_autoencoder(ctx, WIDTH, 100, 1, &dict));
    s.init = dict;
    ranks_run(&setup, other_span_body, &s);
    for (int r = 0; r < 2; r++) {
        CHECK_STATUS(s.status[r], DLRN_ERR_SHAPE);
        CHECK_STR(s.error[r], "expected the 48 features of rank 0, from 0 on, found 100 from 0 on");
    }
    dlrn_dictionary_destroy(dict);
    dlrn_context_destroy(ctx);
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    RUN(creation);
    RUN(recipes);
    RUN(golden_rows);
    RUN_LONG(settings);
    RUN(equals);
    RUN(bits);
    RUN_LONG(large_batches);
    RUN(traffic);
    RUN(failures);
    RUN(whole_runs_that_end_on_one_rank);
    RUN(init_of_another_span);
    return TEST_END();
}
