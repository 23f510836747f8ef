/* test_checkpoint.c - checkpoints of trainers that are not what they should be: each name, number
   and shape that a resumption reads is wrong once, and is named; and a run that goes on with
   another buffer than it had. */
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "tests/test.h"

enum { D = 4, F = 12, ROWS = 64, BATCH = 16, CAPACITY = 40 };

static dlrn_context *ctx;
static float rows[ROWS * D], targets[ROWS * D];
static char *saved; /* the bytes of a good checkpoint, and their number */
static size_t saved_size;

static dlrn_train_config config(void) {
    dlrn_train_config cfg = dlrn_train_defaults(NULL);
    cfg.d_in = D, cfg.features = F, cfg.warmup_steps = 0, cfg.log_steps = -1, cfg.steps = 3;
    return cfg;
}

static dlrn_buffer *make_buffer(dlrn_dtype store, int64_t capacity, int has_target) {
    dlrn_buffer_config cfg = dlrn_buffer_defaults();
    dlrn_source source;
    dlrn_buffer *b = NULL;
    cfg.capacity = capacity, cfg.read_rows = 8, cfg.batch_rows = BATCH, cfg.store = store;
    CHECK_OK(ctx, dlrn_source_from_array(ctx, rows, has_target ? targets : NULL, ROWS, D,
                                         has_target ? D : 0, 0, &source));
    CHECK_OK(ctx, dlrn_buffer_create(ctx, &cfg, &source, DLRN_OWNED, &b));
    return b;
}

static void save(dlrn_buffer *b, const char *path) {
    dlrn_train_config cfg = config();
    dlrn_trainer *t = NULL;
    CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, b, &t));
    if (b) CHECK_OK(ctx, dlrn_trainer_step(t, NULL));
    CHECK_OK(ctx, dlrn_trainer_save(t, path));
    dlrn_trainer_destroy(t);
}

/* The file cannot be resumed with this configuration and buffer (which is destroyed), and the error
   says why. */
static void refuse(const char *path, const dlrn_train_config *cfg, dlrn_buffer *b, dlrn_status want,
                   const char *words) {
    dlrn_trainer *t = NULL;
    dlrn_status s = dlrn_trainer_resume(ctx, path, cfg, b, &t);
    CHECK_MSG(s == want, "%s, expected %s with '%s'", s ? dlrn_error(ctx) : "it was resumed",
              test_status_name(want), words);
    CHECK(t == NULL);
    CHECK_STR(dlrn_error(ctx), words);
    dlrn_buffer_destroy(b);
}

/* The good checkpoint with `now` for what stood at `was`, for the first time after `from`, in its
   header of JSON. */
static void altered(const char *from, const char *was, const char *now, dlrn_status want,
                    const char *words) {
    const char *path = tmp_path("checkpoint_altered.safetensors"), *at = strstr(saved + 8, from);
    char *copy = (char *)malloc(saved_size + strlen(now));
    CHECK_MSG(copy != NULL && at != NULL && (at = strstr(at, was)) != NULL, "no %s, %s", from, was);
    size_t before = (size_t)(at - saved),
           grown = strlen(now) - strlen(was); /* modulo 2^64, or 2^32 */
    memcpy(copy, saved, before);
    memcpy(copy + before, now, strlen(now));
    memcpy(copy + before + strlen(now), at + strlen(was), saved_size - before - strlen(was));
    dlrni_put_le((unsigned char *)copy, dlrni_le((const unsigned char *)saved, 8) + grown, 8);
    dlrn_status s = dlrn_file_write(ctx, path, copy, saved_size + grown);
    free(copy);
    CHECK_OK(ctx, s);
    refuse(path, NULL, make_buffer(DLRN_BF16, CAPACITY, 1), want, words);
}

TEST(a_good_one) { /* which the other tests then change */
    dlrn_free(ctx, saved);
    const char *path = tmp_path("checkpoint_good.safetensors");
    dlrn_buffer *b = make_buffer(DLRN_BF16, CAPACITY, 1);
    save(b, path);
    dlrn_buffer_destroy(b);
    CHECK_OK(ctx, dlrn_file_read(ctx, path, &saved, &saved_size));
    dlrn_trainer *t = NULL;
    b = make_buffer(DLRN_BF16, CAPACITY, 1);
    CHECK_OK(ctx, dlrn_trainer_resume(ctx, path, NULL, b, &t));
    CHECK(dlrn_trainer_describe(t).steps == 1 && b->unread == CAPACITY - BATCH);
    CHECK_OK(ctx, dlrn_trainer_step(t, NULL));
    dlrn_trainer_destroy(t);
    dlrn_buffer_destroy(b);
}

/* A step that its resampling was to end lacks one figure after the other. */
TEST(unfinished_steps) {
    static const char *const names[] = {"step",          "rows",       "dead", "loss", "mse_loss",
                                        "sparsity_loss", "ghost_loss", "l0",   "lr"};
    char now[512], words[64];
    int at = snprintf(now, sizeof now, "\"unfinished\":\"{");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(now + at, sizeof now - (size_t)at, "\\\"x\\\": 1}\",\"format\"");
        snprintf(words, sizeof words, "\"unfinished.%s\" is missing or malformed", names[i]);
        altered("{", "\"format\"", now, DLRN_ERR_FORMAT, words);
        at += snprintf(now + at, sizeof now - (size_t)at, "\\\"%s\\\": 1, ", names[i]);
    }
    altered("{", "\"format\"", "\"unfinished\":\"{\",\"format\"", DLRN_ERR_FORMAT, "JSON, line 1");
    /* a step is counted before its resampling begins: none is unfinished before the first */
    snprintf(now + at - 2, sizeof now - (size_t)at + 2, "}\",\"step\":\"0\"");
    altered("{", "\"step\":\"1\"", now, DLRN_ERR_FORMAT, "\"unfinished\" is missing or malformed");
}

TEST(settings) {
    static const char *const names[] = {"activation_dim",
                                        "dict_size",
                                        "lr",
                                        "sparsity_penalty",
                                        "loss",
                                        "sparsity",
                                        "beta1",
                                        "beta2",
                                        "eps",
                                        "steps",
                                        "warmup_steps",
                                        "resample_steps",
                                        "seed",
                                        "resample_rows",
                                        "compat",
                                        "log_steps",
                                        "ghost_threshold",
                                        "save_steps"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char was[64], now[64], words[64];
        snprintf(was, sizeof was, "\\\"%s\\\"", names[i]);
        snprintf(now, sizeof now, "\\\"%s\\\"", names[i]);
        now[2] = '_';
        snprintf(words, sizeof words, "\"config.%s\" is missing or malformed", names[i]);
        altered("\"config\":", was, now, DLRN_ERR_FORMAT, words);
    }
    const char *after = "\"config\":";
    altered(after, "steps\\\": 3", "steps\\\":-3", DLRN_ERR_FORMAT, "\"config.steps\" is missing");
    altered(after, "\\\"lr\\\": 0.0003", "\\\"lr\\\": [0.00]", DLRN_ERR_FORMAT,
            "\"config.lr\" is missing");
    altered(after, "\\\"lr\\\": 0.0003", "\\\"lr\\\": -0.003", DLRN_ERR_FORMAT,
            "config: lr: expected a");
    altered(after, "819200,", "8192e2,", DLRN_ERR_FORMAT, "\"config.resample_rows\" is missing");
    altered(after, "\\\"norm\\\"", "\\\"no\\\"", DLRN_ERR_FORMAT, "\"config.loss\" is missing");
    altered(after, "\\\"l1\\\"", "\\\"l7\\\"", DLRN_ERR_FORMAT, "\"config.sparsity\" is missing");
    altered(after, "false", "12345", DLRN_ERR_FORMAT, "\"config.compat\" is missing");
    altered(after, "\\\"seed\\\": 0", "\\\"seed\\\":-1", DLRN_ERR_FORMAT,
            "\"config.seed\" is missing");
    altered(after, "dict_size\\\": 12", "dict_size\\\": 0 ", DLRN_ERR_FORMAT,
            "config: dict_size: expected a number");
    altered(after, "dict_size\\\": 12", "dict_size\\\": 2147483648", DLRN_ERR_FORMAT,
            "config: dict_size: expected a number");
    altered(after, "dict_size\\\": 12", "dict_size\\\": -1", DLRN_ERR_FORMAT,
            "config: dict_size: expected a number");
    altered(after, "activation_dim\\\": 4", "activation_dim\\\": 0", DLRN_ERR_FORMAT,
            "config: activation_dim: expected a number");
    altered(after, "dict_size\\\": 12", "dict_size\\\": 99", DLRN_ERR_SHAPE, "encoder_weight");
    altered("{", "\"config\"", "\"c_nfig\"", DLRN_ERR_FORMAT, "\"config.");
    altered("{", "checkpoint 1", "checkpoint 9", DLRN_ERR_FORMAT,
            "\"format\" is missing or malformed");
    altered("{", "\"format\"", "\"f_rmat\"", DLRN_ERR_FORMAT, "\"format\" is missing or malformed");
}

/* The settings that came after version 0.1 are checked where they are named; the family and the
   formula are read, and must be what the recipe trains. */
TEST(recipe_family_and_formula) {
    static const char *const names[] = {"d_out",     "decay_start", "sparsity_warmup_steps",
                                        "k",         "auxk",        "dead_rows",
                                        "clip",      "auxk_alpha",  "threshold_beta",
                                        "target_l0", "bandwidth",   "threshold_start_step"};
    static const char *const parts[] = {"center",    "gate",     "select",   "k",
                                        "threshold", "scale_in", "scale_out"};
    const char *config = "\"config\":", *formula = "\"formula\":";
    char was[64], now[64], words[80];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(was, sizeof was, "\\\"%s\\\"", names[i]);
        snprintf(now, sizeof now, "\\\"%s\\\": true, \\\"_\\\"", names[i]);
        snprintf(words, sizeof words, "\"config.%s\" is missing or malformed", names[i]);
        altered(config, was, now, DLRN_ERR_FORMAT, words);
    }
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        snprintf(was, sizeof was, "\\\"%s\\\"", parts[i]);
        snprintf(now, sizeof now, "\\\"_%s\\\"", parts[i] + 1);
        snprintf(words, sizeof words, "\"formula.%s\" is missing or malformed", parts[i]);
        altered(formula, was, now, DLRN_ERR_FORMAT, words);
    }
    altered(config, "\\\"reference\\\"", "\\\"no_such_one\\\"", DLRN_ERR_UNSUPPORTED,
            "config.recipe: expected a name such as reference, found no_such_one");
    altered(config, "\\\"reference\\\"", "\\\"dl-top_k\\\"", DLRN_ERR_FORMAT,
            "family: expected AutoEncoderTopK for recipe dl-top_k, found AutoEncoder");
    altered("{", "\"family\":\"AutoEncoder\"", "\"family\":\"IdentityDict\"", DLRN_ERR_FORMAT,
            "family: expected AutoEncoder for recipe reference, found IdentityDict");
    altered(formula, "\\\"gate\\\": 0", "\\\"gate\\\": 1", DLRN_ERR_FORMAT,
            "formula: expected gate 0, select 0 and a center from 0 to 2, found 1, 0 and 1");
    altered(formula, "scale_in\\\": 1", "scale_in\\\": NaN", DLRN_ERR_FORMAT,
            "formula: expected finite scales above 0 and a finite threshold, found nan, 1 and -1");
    altered(formula, "scale_out\\\": 1", "scale_out\\\": 0", DLRN_ERR_FORMAT, "found 1, 0 and -1");
    altered(formula, "threshold\\\": -1", "threshold\\\": Infinity", DLRN_ERR_FORMAT,
            "found 1, 1 and inf");
    altered(formula, "\\\"center\\\": 1", "\\\"center\\\": 2", DLRN_ERR_FORMAT,
            "\"input_bias\" is missing");
    altered(formula, "\\\"center\\\": 1", "\\\"center\\\": 7", DLRN_ERR_FORMAT, "found 0, 0 and 7");
}

/* Settings of a recipe that make its state move within a few steps: averages, exponents, k, dead
   features, rates. */
static dlrn_train_config moving(int recipe) {
    dlrn_train_config cfg = dlrn_train_defaults(dlrn_recipe(recipe)->name);
    cfg.d_in = D, cfg.features = F, cfg.steps = 7, cfg.lr = 0.01;
    cfg.warmup_steps = 2, cfg.decay_start = 4;
    cfg.threshold_start_step = 0, cfg.dead_rows = 100, cfg.dead_steps = -1;
    if (cfg.sparsity_penalty > 0) cfg.sparsity_penalty = 0.05, cfg.sparsity_warmup_steps = 5;
    if (cfg.bandwidth > 0) cfg.bandwidth = 0.5;
    if (cfg.target_l0 > 0) cfg.target_l0 = 3;
    if (cfg.k) cfg.k = 3, cfg.k_anneal_steps = 6;
    if (cfg.anneal_updates) cfg.anneal_start = 1, cfg.anneal_end = 6, cfg.anneal_updates = 3;
    if (cfg.anneal_updates) cfg.p_end = 0.5;
    if (!strcmp(cfg.recipe, "sp-groupmax")) cfg.k_anneal_steps = 0;
    return cfg;
}

/* Whether two trainers are in the same state, bit for bit. */
static void same_state(const dlrn_trainer *s, const dlrn_trainer *t) {
    const dlrn_dictionary *a = s->dict, *b = t->dict;
    const dlrn_formula f = a->formula, g = b->formula; /* by field: padding has any bits */
    CHECK(f.center == g.center && f.gate == g.gate && f.select == g.select && f.k == g.k);
    CHECK(f.threshold == g.threshold && f.scale_in == g.scale_in && f.scale_out == g.scale_out);
    CHECK(f.rank == g.rank && a->layers == b->layers && s->step == t->step);
    CHECK(s->anneal.p == t->anneal.p && s->anneal.next == t->anneal.next &&
          s->anneal.factor == t->anneal.factor && s->anneal.queued == t->anneal.queued);
    CHECK(!memcmp(s->since_fired, t->since_fired, F * sizeof(int64_t)));
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        const size_t size = (size_t)dlrni_role_size(a, role) * sizeof(float);
        CHECK(!a->param[role] == !b->param[role]);
        CHECK_MSG(!a->param[role] || !memcmp(a->param[role], b->param[role], size),
                  "%s, step %d: %s", s->cfg.recipe, (int)s->step, dlrn_name(DLRN_NAMES_ROLE, role));
        CHECK(!s->m[role] || !memcmp(s->m[role], t->m[role], size));
        CHECK(!s->v[role] == !t->v[role] && (!s->v[role] || !memcmp(s->v[role], t->v[role], size)));
    }
}

/* Whether two files have the same bytes. */
static void same_files(const char *one, const char *other) {
    char *a = NULL, *b = NULL;
    size_t size = 0, size_b = 0;
    CHECK_OK(ctx, dlrn_file_read(ctx, one, &a, &size));
    CHECK_OK(ctx, dlrn_file_read(ctx, other, &b, &size_b));
    const int same = size == size_b && !memcmp(a, b, size);
    dlrn_free(ctx, a);
    dlrn_free(ctx, b);
    CHECK(same);
}

static void steps(dlrn_trainer *t, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        const int64_t at = t->step % 3 * 16 * D; /* other rows at each step */
        CHECK_OK(ctx, dlrn_trainer_step_on(t, rows + at, NULL, ROWS - 32, NULL));
    }
}

/* Seven steps of every recipe are some, a checkpoint, and the others. */
TEST(other_recipes) {
    const char *path = tmp_path("checkpoint_recipe.safetensors");
    const char *seven = tmp_path("checkpoint_seven.safetensors");
    const char *resumed = tmp_path("checkpoint_resumed.safetensors");
    for (int r = 1; dlrn_recipe(r); r++) {
        dlrn_train_config cfg = moving(r);
        dlrn_trainer *straight = NULL, *t = NULL, *first = NULL;
        CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, NULL, &straight));
        steps(straight, 7);
        CHECK_OK(ctx, dlrn_trainer_save(straight, seven));
        CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, NULL, &first));
        for (int at = 0; at < 7; at += 1 + at / 3) { /* 0, 1, 2, 3, 5 */
            while (first->step < at) steps(first, 1);
            CHECK_OK(ctx, dlrn_trainer_save(first, path));
            CHECK_OK(ctx, dlrn_trainer_resume(ctx, path, at == 3 ? &cfg : NULL, NULL, &t));
            same_state(first, t);
            steps(t, 7 - at);
            same_state(straight, t);
            CHECK_OK(ctx, dlrn_trainer_save(t, resumed));
            dlrn_trainer_destroy(t);
            same_files(seven, resumed);
        }
        dlrn_trainer_destroy(straight);
        dlrn_trainer_destroy(first);
        if (cfg.k) {
            cfg.k = 4;
            refuse(path, &cfg, NULL, DLRN_ERR_ARGUMENT, "expected k 4, found 3");
        }
        cfg.recipe = NULL;
        cfg.k = 0;
        refuse(path, &cfg, NULL, DLRN_ERR_ARGUMENT, "expected recipe reference, found ");
    }
}

/* Rows whose squares overflow, and a NaN, in every recipe: the next steps are those of a run that
   never saw them. Atoms and thresholds may have been constrained before the loss; a checkpoint
   knows. */
TEST(a_step_that_fails_changes_nothing) {
    static float huge[ROWS * D], nan_row[ROWS * D];
    const char *path = tmp_path("checkpoint_failed.safetensors");
    const char *wanted = tmp_path("checkpoint_wanted.safetensors");
    for (int i = 0; i < ROWS * D; i++)
        huge[i] = rows[i] * 1e30F, nan_row[i] = i == 9 ? (float)NAN : rows[i];
    for (int r = 0; dlrn_recipe(r); r++)
        for (int at = 0; at < 3; at += 2) {
            dlrn_train_config cfg = moving(r);
            dlrn_trainer *t = NULL, *straight = NULL, *resumed = NULL;
            CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, NULL, &straight));
            CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, NULL, &t));
            steps(t, at);
            steps(straight, at);
            CHECK_MSG(dlrn_trainer_step_on(t, huge, NULL, ROWS, NULL) == DLRN_ERR_VALUE, "%s",
                      cfg.recipe);
            CHECK_STATUS(dlrn_trainer_step_on(t, nan_row, NULL, ROWS, NULL), DLRN_ERR_VALUE);
            if (t->scaled != at + 1 && !t->rules.threshold_from_0) same_state(straight, t);
            CHECK_OK(ctx, dlrn_trainer_save(t, path));
            CHECK_OK(ctx, dlrn_trainer_resume(ctx, path, NULL, NULL, &resumed));
            steps(t, 3);
            steps(straight, 3);
            steps(resumed, 3);
            same_state(straight, t);
            same_state(straight, resumed);
            CHECK_OK(ctx, dlrn_trainer_save(straight, wanted));
            CHECK_OK(ctx, dlrn_trainer_save(resumed, path));
            same_files(wanted, path);
            dlrn_trainer_destroy(t);
            dlrn_trainer_destroy(straight);
            dlrn_trainer_destroy(resumed);
        }
}

/* The state of p-anneal, in a file that lies. */
TEST(exponents_that_no_run_has) {
    static const char *const wrong[][2] = {
        {"\\\"p\\\": 0.75", "\\\"p\\\": 0.00"},
        {"\\\"p\\\": 0.75", "\\\"p\\\": -0.5"},
        {"\\\"p\\\": 0.75", "\\\"p\\\": NaN"},
        {"\\\"next\\\": 0.5", "\\\"next\\\": 0"},
        {"\\\"next\\\": 0.5", "\\\"next\\\": -0.5"},
        {"\\\"next\\\": 0.5", "\\\"next\\\": Infinity"},
        {"\\\"factor\\\": ", "\\\"factor\\\": -"},
        {"\\\"updates\\\": 2", "\\\"updates\\\": -2"},
        {"\\\"updates\\\": 2", "\\\"updates\\\": 2.5"},
        {"\\\"now\\\": [", "\\\"now\\\": [1, "},
        {"\\\"now\\\": [", "\\\"now\\\": [1,1,1,1,1,1,1,1,1,1,1,"},
        {"\\\"then\\\": [", "\\\"then\\\": [-"},
        {"\\\"then\\\": [", "\\\"_hen\\\": ["},
        {"\\\"now\\\": [", "\\\"now\\\": [\\\"a\\\", "}};
    const char *path = tmp_path("checkpoint_anneal.safetensors");
    char *kept = saved;
    const size_t kept_size = saved_size;
    for (int r = 0; dlrn_recipe(r); r++) {
        dlrn_train_config cfg = moving(r);
        dlrn_trainer *t = NULL;
        if (strcmp(cfg.recipe, "dl-p_anneal") != 0) continue;
        cfg.sparsity = DLRN_SPARSITY_LP;
        CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, NULL, &t));
        steps(t, 5);
        CHECK(t->anneal.p == 0.75 && t->anneal.next == 0.5 && t->anneal.queued > 1);
        CHECK_OK(ctx, dlrn_trainer_save(t, path));
        dlrn_trainer_destroy(t);
    }
    CHECK_OK(ctx, dlrn_file_read(ctx, path, &saved, &saved_size));
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        altered("\"anneal\":", wrong[i][0], wrong[i][1], DLRN_ERR_FORMAT,
                "\"anneal\" is missing or malformed");
    altered("{", "\"anneal\"", "\"_nneal\"", DLRN_ERR_FORMAT, "\"anneal\" is missing or malformed");
    altered("\"config\":", "p_end\\\": 0.5", "p_end\\\": 0.0", DLRN_ERR_FORMAT,
            "p_end: expected a number above 0 for the penalty lp");
    altered("\"config\":", "p_start\\\": 1", "p_start\\\": 0", DLRN_ERR_FORMAT,
            "p_start: expected a finite number above 0");
    altered("\"config\":", "\\\"groups\\\": []", "\\\"groups\\\": [1]", DLRN_ERR_FORMAT,
            "\"config.groups\" is missing or malformed");
    altered("\"config\":", "\\\"n_groups\\\": 0", "\\\"n_groups\\\": 17", DLRN_ERR_FORMAT,
            "\"config.groups\" is missing or malformed");
    altered("{", "\"format\"", "\"scaled\":\"1\",\"format\"", DLRN_ERR_FORMAT,
            "\"scaled\" is missing or malformed");
    dlrn_free(ctx, saved);
    saved = kept;
    saved_size = kept_size;
}

/* Signum keeps one array for each parameter. */
TEST(another_optimiser) {
    const char *path = tmp_path("checkpoint_signum.safetensors");
    dlrn_train_config cfg = dlrn_train_defaults("sp-topk");
    dlrn_trainer *t = NULL;
    dlrn_archive *a = NULL;
    cfg.d_in = D, cfg.features = F, cfg.k = 3;
    CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, NULL, &t));
    steps(t, 2);
    CHECK_OK(ctx, dlrn_trainer_save(t, path));
    dlrn_trainer_destroy(t);
    CHECK_OK(ctx, dlrn_archive_open(ctx, path, &a));
    CHECK(dlrn_archive_find(a, "m.encoder_weight") >= 0);
    CHECK(dlrn_archive_find(a, "v.encoder_weight") < 0);
    dlrn_archive_close(a);
    cfg.optimiser = DLRN_OPTIMISER_ADAM;
    refuse(path, &cfg, NULL, DLRN_ERR_ARGUMENT, "expected optimiser adam, found signum");
    cfg.optimiser = DLRN_OPTIMISER_SIGNUM;
    cfg.layers = 2;
    refuse(path, &cfg, NULL, DLRN_ERR_ARGUMENT, "expected 2 layers, found 1");
}

TEST(numbers_of_the_run) {
    const char *words = "\"step\" is missing or malformed";
    altered("{", "\"step\":\"1\"", "\"step\":\"x\"", DLRN_ERR_FORMAT, words);
    altered("{", "\"step\":\"1\"", "\"step\":\".\"", DLRN_ERR_FORMAT, words);
    altered("{", "\"step\":\"1\"", "\"step\":\"92233720368547758070\"", DLRN_ERR_FORMAT, words);
    altered("{", "\"step\":\"1\"", "\"s_ep\":\"1\"", DLRN_ERR_FORMAT, words);
    altered("{", "\"step\":\"1\"", "\"step\":\"\" ", DLRN_ERR_FORMAT, words);
}

TEST(state_of_the_buffer) {
    static const char *const names[] = {"rows",    "store",    "seed",     "stream",
                                        "counter", "position", "rows_read"};
    const char *after = "\"buffer\":", *words = "\"buffer\" is missing or malformed";
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char was[64], now[64];
        snprintf(was, sizeof was, "\\\"%s\\\"", names[i]);
        snprintf(now, sizeof now, "\\\"%s\\\"", names[i]);
        now[2] = '_';
        altered(after, was, now, DLRN_ERR_FORMAT, words);
    }
    altered(after, "\\\"rows\\\": 24", "\\\"rows\\\": -1", DLRN_ERR_FORMAT, words);
    altered(after, "\\\"rows\\\": 24", "\\\"rows\\\": 25", DLRN_ERR_SHAPE, "buffer.x");
    altered(after, "18446744073709551615", "18446744073709551616", DLRN_ERR_FORMAT, words);
    altered(after, "rows_read\\\": 40", "rows_read\\\": -1", DLRN_ERR_FORMAT, words);
    altered(after, "BF16", "F_16", DLRN_ERR_FORMAT, words);
    altered(after, "\\\"BF16\\\"", "\\\"F16\\\" ", DLRN_ERR_SHAPE, "buffer.x");
    altered(after, "rows_read\\\": 40", "rows_read\\\": 9223372036854775807", DLRN_ERR_FORMAT,
            words);
    altered(after, "position\\\": 40", "position\\\": 9223372036854775807", DLRN_ERR_ARGUMENT,
            "checkpoint_altered.safetensors: not a checkpoint for this trainer: buffer: the "
            "source, on its way to 9223");
}

TEST(tensors) {
    static const char *const names[] = {"bias",           "m.bias",           "v.bias",
                                        "encoder_bias",   "m.encoder_bias",   "v.encoder_bias",
                                        "encoder_weight", "m.encoder_weight", "v.encoder_weight",
                                        "buffer.x",       "buffer.y",         "steps_since_fired",
                                        "decoder_weight", "m.decoder_weight", "v.decoder_weight"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char was[64], now[64], words[80];
        snprintf(was, sizeof was, "\"%s\":{", names[i]);
        snprintf(now, sizeof now, "\"%s\":{", names[i]);
        now[1] = '_';
        snprintf(words, sizeof words, "\"%s\" is missing or malformed", names[i]);
        altered("{", was, now, DLRN_ERR_FORMAT, words);
    }
    altered("\"m.bias\"", "F32", "I32", DLRN_ERR_SHAPE,
            "tensor 'm.bias': expected F32 [4], found I32 [4]");
    altered("\"encoder_bias\"", "[12]", "[1,12]", DLRN_ERR_SHAPE,
            "tensor 'encoder_bias': expected F32 [12], found F32 [1, 12]");
    altered("\"m.bias\"", "[4]", "[2]", DLRN_ERR_FORMAT, "expected 8 bytes");
    altered("\"encoder_weight\"", "[12,4]", "[12,4,1]", DLRN_ERR_SHAPE,
            "expected F32 [12, 4], found F32 [12, 4, 1]");
    /* no memory is taken for outputs that the file does not have */
    altered("\"config\":", "\\\"d_out\\\": 4", "\\\"d_out\\\": 4000000000000", DLRN_ERR_SHAPE,
            "tensor 'decoder_weight': expected F32 [12, 4000000000000], found F32 [12, 4]");
    altered("\"encoder_weight\"", "[12,4]", "[4,12]", DLRN_ERR_SHAPE,
            "expected F32 [12, 4], found F32 [4, 12]");
}

/* Where the data of a tensor begin in the good file. */
static char *data_of(const char *name) {
    const char *at = strstr(saved + 8, name);
    size_t header = (size_t)dlrni_le((const unsigned char *)saved, 8);
    CHECK(at != NULL && (at = strstr(at, "offsets\":[")) != NULL);
    return saved + 8 + header + strtoul(at + 10, NULL, 10);
}

/* What is counted in the file, but cannot have been. */
TEST(counters) {
    char *first = data_of("\"steps_since_fired\":{"), kept[8];
    const char *path = tmp_path("checkpoint_counters.safetensors");
    memcpy(kept, first, 8);
    for (int negative = 0; negative < 2; negative++) {
        dlrni_put_le((unsigned char *)first, negative ? UINT64_MAX : INT64_MAX, 8);
        CHECK_OK(ctx, dlrn_file_write(ctx, path, saved, saved_size));
        refuse(path, NULL, make_buffer(DLRN_BF16, CAPACITY, 1), DLRN_ERR_FORMAT,
               "\"steps_since_fired\" is missing");
    }
    memcpy(first, kept, 8);
}

/* A row of the buffer that no source could have given. */
TEST(rows_that_are_not_finite) {
    char *row = data_of("\"buffer.y\":{"), kept[2];
    const char *path = tmp_path("checkpoint_rows.safetensors");
    memcpy(kept, row + 6, 2);
    dlrni_put_le((unsigned char *)row + 6, 0x7f80, 2);
    CHECK_OK(ctx, dlrn_file_write(ctx, path, saved, saved_size));
    refuse(path, NULL, make_buffer(DLRN_BF16, CAPACITY, 1), DLRN_ERR_VALUE,
           "tensor 'buffer.y': element 3: expected a finite number, found inf");
    memcpy(row + 6, kept, 2);
}

/* The configuration with which a run began resumes it, also where the run settled k. */
TEST(the_settings_of_the_beginning) {
    for (int r = 0; dlrn_recipe(r); r++) {
        const char *path = tmp_path("checkpoint_settings.safetensors");
        dlrn_train_config cfg = dlrn_train_defaults(dlrn_recipe(r)->name);
        dlrn_trainer *t = NULL;
        cfg.d_in = D;
        cfg.features = F;
        cfg.k = 3; /* the reference has none */
        CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, NULL, &t));
        CHECK_OK(ctx, dlrn_trainer_save(t, path));
        const int64_t k = t->cfg.k;
        dlrn_trainer_destroy(t);
        for (int left_out = 0; left_out < 2; left_out++) {
            if (left_out) cfg.k = 0;
            CHECK_OK(ctx, dlrn_trainer_resume(ctx, path, &cfg, NULL, &t));
            CHECK(t->cfg.k == k && dlrni_kept(t->dict) == k);
            dlrn_trainer_destroy(t);
        }
    }
}

/* The saved schedule is kept; with other `steps` the rate falls to 0 there. */
TEST(a_decay_is_resumed) {
    const char *path = tmp_path("checkpoint_decay.safetensors");
    dlrn_train_config cfg = config();
    dlrn_train_stats stats;
    dlrn_trainer *t = NULL;
    cfg.lr = 1e-3, cfg.steps = 10, cfg.decay_start = 0;
    CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, NULL, &t));
    for (int i = 0; i < 5; i++) CHECK_OK(ctx, dlrn_trainer_step_on(t, rows, NULL, ROWS, &stats));
    CHECK_CLOSE(stats.lr, 0.6e-3, 1e-12);
    CHECK_OK(ctx, dlrn_trainer_save(t, path));
    dlrn_trainer_destroy(t);
    for (int longer = 0; longer < 2; longer++) {
        cfg.steps = 20;
        CHECK_OK(ctx, dlrn_trainer_resume(ctx, path, longer ? &cfg : NULL, NULL, &t));
        CHECK_OK(ctx, dlrn_trainer_step_on(t, rows, NULL, ROWS, &stats));
        CHECK_CLOSE(stats.lr, longer ? 0.75e-3 : 0.5e-3, 1e-12);
        dlrn_trainer_destroy(t);
    }
}

TEST(another_buffer) {
    const char *good = tmp_path("checkpoint_good.safetensors"),
               *bare = tmp_path("checkpoint_bare.safetensors");
    dlrn_train_config cfg = config();
    dlrn_trainer *t = NULL;
    refuse(good, NULL, make_buffer(DLRN_F32, CAPACITY, 1), DLRN_ERR_ARGUMENT,
           "buffer: expected rows of F32 with a target, found BF16 with a target");
    refuse(good, NULL, make_buffer(DLRN_BF16, CAPACITY, 0), DLRN_ERR_ARGUMENT,
           "expected rows of BF16, found BF16 with a target");
    refuse(good, NULL, make_buffer(DLRN_BF16, BATCH, 1), DLRN_ERR_SHAPE,
           "buffer: expected at most the buffer's 16 rows, found 24");
    dlrn_buffer *b = make_buffer(DLRN_BF16, CAPACITY, 1);
    b->source.seek = NULL;
    refuse(good, NULL, b, DLRN_ERR_ARGUMENT,
           "expected a source that can go to position 40, found one without seek");
    cfg.features = F + 1;
    refuse(good, &cfg, NULL, DLRN_ERR_SHAPE,
           "expected a trainer of 4 x 13 (output 4), found 4 x 12 (output 4)");
    cfg = config();
    cfg.d_in = D + 1;
    refuse(good, &cfg, NULL, DLRN_ERR_SHAPE,
           "expected a trainer of 5 x 12 (output 5), found 4 x 12 (output 4)");
    cfg = config();
    cfg.compat = 1;
    refuse(good, &cfg, NULL, DLRN_ERR_ARGUMENT, "expected compat 1, found 0");
    refuse(tmp_path("checkpoint_none.safetensors"), NULL, NULL, DLRN_ERR_IO,
           "checkpoint_none.safetensors");
    /* saved with a buffer and resumed without, and the other way round */
    CHECK_OK(ctx, dlrn_trainer_resume(ctx, good, NULL, NULL, &t));
    CHECK_STATUS(dlrn_trainer_step(t, NULL), DLRN_ERR_ARGUMENT);
    dlrn_trainer_destroy(t);
    save(NULL, bare);
    b = make_buffer(DLRN_F16, CAPACITY, 0);
    cfg = config();
    cfg.steps = 1;
    CHECK_OK(ctx, dlrn_trainer_resume(ctx, bare, &cfg, b, &t));
    CHECK_OK(ctx, dlrn_trainer_step(t, NULL));
    CHECK_STATUS(dlrn_trainer_step(t, NULL), DLRN_END);
    dlrn_trainer_destroy(t);
    dlrn_buffer_destroy(b);
}

/* Rows of an array without end; `stops` reads from now it asks to stop once; -1: never. */
typedef struct stopping_rows {
    dlrn_source inner;
    int stops;
} stopping_rows;

static dlrn_status stopping_read(void *user, int64_t max_rows, float *x, float *y, int64_t *n) {
    stopping_rows *s = (stopping_rows *)user;
    *n = 0;
    if (s->stops-- == 0) return DLRN_STOPPED;
    return s->inner.read(s->inner.user, max_rows, x, y, n);
}

static dlrn_status stopping_position(void *user, uint64_t *position) {
    stopping_rows *s = (stopping_rows *)user;
    return s->inner.position(s->inner.user, position);
}

static dlrn_status stopping_seek(void *user, uint64_t position) {
    stopping_rows *s = (stopping_rows *)user;
    return s->inner.seek(s->inner.user, position);
}

static dlrn_buffer *make_stopping(stopping_rows *s) {
    dlrn_buffer_config cfg = dlrn_buffer_defaults();
    dlrn_buffer *b = NULL;
    s->stops = -1;
    CHECK_OK(ctx, dlrn_source_from_array(ctx, rows, NULL, ROWS, D, 0, 0, &s->inner));
    dlrn_source source = s->inner;
    source.read = stopping_read, source.position = stopping_position, source.seek = stopping_seek;
    source.destroy = NULL, source.error = NULL, source.user = s;
    cfg.capacity = CAPACITY, cfg.read_rows = 8, cfg.batch_rows = BATCH, cfg.seed = 5;
    CHECK_OK(ctx, dlrn_buffer_create(ctx, &cfg, &source, DLRN_BORROWED, &b));
    return b;
}

/* Trainer 0 revives dead features after each step, of which it has some: encoders that never fire.
   Trainer 1 has another seed. */
enum { SHARING = 2, SHARED_STEPS = 7 };
static dlrn_train_config shared_config(int i) {
    dlrn_train_config cfg = config();
    cfg.steps = -1, cfg.seed = (uint64_t)i, cfg.resample_steps = i ? -1 : 1;
    return cfg;
}

static dlrn_trainer *shared_trainer(int i, dlrn_buffer *b) {
    dlrn_train_config cfg = shared_config(i);
    dlrn_trainer *t = NULL;
    CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, b, &t));
    float *bias = dlrn_trainer_describe(t).dictionary->param[DLRN_ENCODER_BIAS];
    for (int f = 0; f < F; f += 2) bias[f] = -1e6f;
    dlrn_dictionary_changed(dlrn_trainer_describe(t).dictionary);
    return t;
}

/* The weights after all steps of trainer i, alone on its buffer. */
static void train_alone(int i, float atoms[F * D]) {
    stopping_rows s;
    dlrn_buffer *b = make_stopping(&s);
    dlrn_trainer *t = shared_trainer(i, b);
    int64_t resampled = 0;
    for (int step = 0; step < SHARED_STEPS; step++) {
        dlrn_train_stats stats;
        CHECK_OK(ctx, dlrn_trainer_step(t, &stats));
        resampled += stats.resampled;
    }
    CHECK((resampled > 0) == (i == 0));
    memcpy(atoms, dlrn_trainer_describe(t).dictionary->param[DLRN_DECODER], F * D * sizeof *atoms);
    dlrn_trainer_destroy(t);
    dlrn_buffer_destroy(b);
    dlrn_source_destroy(&s.inner);
}

/* Saves what shares a buffer, and opens it again on another one. */
static dlrn_buffer *reopen_shared(dlrn_buffer *b, stopping_rows *s, dlrn_trainer *t[SHARING],
                                  int64_t step) {
    const char *path[SHARING] = {tmp_path("checkpoint_shared0.safetensors"),
                                 tmp_path("checkpoint_shared1.safetensors")};
    const char *stream = tmp_path("checkpoint_stream.safetensors");
    int64_t kept = -1;
    for (int i = 0; i < SHARING; i++) {
        CHECK_OK(ctx, dlrn_trainer_save_alone(t[i], path[i]));
        dlrn_trainer_destroy(t[i]);
    }
    CHECK_OK(ctx, dlrn_buffer_save(b, step, stream));
    dlrn_buffer_destroy(b);
    dlrn_source_destroy(&s->inner);
    b = make_stopping(s);
    for (int i = 0; i < SHARING; i++)
        CHECK_OK(ctx, dlrn_trainer_resume(ctx, path[i], NULL, b, &t[i]));
    CHECK(dlrn_buffer_describe(b).rows_read == 0); /* theirs have no rows */
    CHECK_OK(ctx, dlrn_buffer_resume(b, stream, &kept));
    CHECK(kept == step && dlrn_buffer_describe(b).rows_read > 0);
    return b;
}

/* Trainers that share a buffer have the bits of those that are alone, also if they are saved after
   step `saved_at`, and if the source stops trainer 0 in a resampling. */
static void share(int saved_at, int stops) {
    float alone[SHARING][F * D];
    stopping_rows s;
    dlrn_trainer *t[SHARING];
    dlrn_buffer *b = make_stopping(&s);
    const float *x, *y;
    int64_t n;
    for (int i = 0; i < SHARING; i++) train_alone(i, alone[i]);
    for (int i = 0; i < SHARING; i++) t[i] = shared_trainer(i, b);
    for (int step = 0; step < SHARED_STEPS; step++) {
        CHECK_OK(ctx, dlrn_buffer_next(b, &x, &y, &n));
        if (step == saved_at) s.stops = stops;
        dlrn_status got = dlrn_trainer_step_on(t[0], x, y, n, NULL);
        CHECK_STATUS(got, step == saved_at && !stops ? DLRN_STOPPED : DLRN_OK);
        CHECK_OK(ctx, dlrn_trainer_step_on(t[1], x, y, n, NULL));
        CHECK(dlrn_trainer_interrupted(t[0]) == (got == DLRN_STOPPED));
        if (step != saved_at) continue;
        b = reopen_shared(b, &s, t, step + 1);
        CHECK(dlrn_trainer_interrupted(t[0]) == !stops && !dlrn_trainer_interrupted(t[1]));
        if (!stops) CHECK_OK(ctx, dlrn_trainer_step(t[0], NULL));
        CHECK(!dlrn_trainer_interrupted(t[0]));
    }
    for (int i = 0; i < SHARING; i++) {
        CHECK(!memcmp(alone[i], dlrn_trainer_describe(t[i]).dictionary->param[DLRN_DECODER],
                      sizeof alone[i]));
        dlrn_trainer_destroy(t[i]);
    }
    dlrn_buffer_destroy(b);
    dlrn_source_destroy(&s.inner);
}

TEST(trainers_that_share_a_buffer) {
    share(-1, -1);
    share(2, -1);
    share(1, 0); /* the buffer is low then: the resampling refills it */
}

TEST(a_buffer_of_its_own) {
    const char *path = tmp_path("checkpoint_buffer.safetensors");
    dlrn_buffer *b = make_buffer(DLRN_BF16, CAPACITY, 1);
    const float *x, *y;
    int64_t n, step = 7;
    CHECK_STATUS(dlrn_buffer_save(b, 1, "buffer.npz"), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "buffer.npz: expected a name ending in .safetensors");
    CHECK_STATUS(dlrn_buffer_save(b, -1, path), DLRN_ERR_ARGUMENT);
    CHECK_OK(ctx, dlrn_buffer_next(b, &x, &y, &n));
    CHECK_OK(ctx, dlrn_buffer_save(b, 1, path));
    dlrn_buffer_clear(b);
    CHECK_OK(ctx, dlrn_buffer_resume(b, path, NULL));
    CHECK(dlrn_buffer_describe(b).unread == CAPACITY - BATCH);
    dlrn_buffer_destroy(b);
    /* not such a file, or not for this buffer; the number stays */
    refuse(path, NULL, NULL, DLRN_ERR_FORMAT, "\"format\" is missing or malformed");
    b = make_buffer(DLRN_F32, CAPACITY, 1);
    CHECK_STATUS(dlrn_buffer_resume(b, path, &step), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "expected rows of F32 with a target, found BF16 with a target");
    CHECK_STATUS(dlrn_buffer_resume(b, tmp_path("checkpoint_good.safetensors"), &step),
                 DLRN_ERR_FORMAT);
    CHECK_STR(dlrn_error(ctx), "checkpoint_good.safetensors: expected a file of dlrn_buffer_save");
    CHECK_STATUS(dlrn_buffer_resume(b, tmp_path("checkpoint_none.safetensors"), &step),
                 DLRN_ERR_IO);
    CHECK(step == 7);
    dlrn_buffer_destroy(b);
}

int main(int argc, char **argv) {
    dlrn_rng rng = {6, 0, 0};
    TEST_BEGIN(argc, argv);
    for (int i = 0; i < ROWS * D; i++)
        rows[i] = dlrn_rng_normal(&rng), targets[i] = dlrn_rng_normal(&rng);
    if (dlrn_context_create(NULL, &ctx) != DLRN_OK) return 1;
    if (argc > 1) test_a_good_one();
    RUN(a_good_one);
    RUN(unfinished_steps);
    RUN(settings);
    RUN(recipe_family_and_formula);
    RUN(other_recipes);
    RUN(a_step_that_fails_changes_nothing);
    RUN(exponents_that_no_run_has);
    RUN(another_optimiser);
    RUN(numbers_of_the_run);
    RUN(state_of_the_buffer);
    RUN(tensors);
    RUN(counters);
    RUN(rows_that_are_not_finite);
    RUN(the_settings_of_the_beginning);
    RUN(a_decay_is_resumed);
    RUN(another_buffer);
    RUN(trainers_that_share_a_buffer);
    RUN(a_buffer_of_its_own);
    dlrn_free(ctx, saved);
    dlrn_context_destroy(ctx);
    return TEST_END();
}
