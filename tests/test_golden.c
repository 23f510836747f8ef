/* test_golden.c - this library's numbers beside PyTorch's (tests/golden, written by make_golden.py
   in f64 from f32 inputs). Prints a table; its differences are measured thus: of max    largest
   |ours - theirs| of a tensor, over the largest |theirs|: an element near 0 has no relative error
     of value  |ours - theirs| / |theirs|, the largest of the figures
     of move   ||ours - theirs|| / ||theirs - start||, over the whole tensor: the start of a moment
   is 0 */
#include "dictlearn.h"
#include "tests/test.h"

static const dlrn_role parameter_roles[4] = {DLRN_OUTPUT_BIAS, DLRN_ENCODER, DLRN_ENCODER_BIAS,
                                             DLRN_DECODER};
static const char *const parameter_names[4] = {"bias", "encoder_weight", "encoder_bias",
                                               "decoder_weight"};

/* ---- The table ---- */

static struct {
    int rows, bad;
    char worst[160]; /* the first row that was too far off */
} table;

static void table_begin(const char *title) {
    memset(&table, 0, sizeof table);
    printf("\n  %-24s %4s  %-37s %-9s %10s %8s\n", title, "step", "quantity", "measured",
           "difference", "allowed");
}

/* A step below 0 stands for none. */
static void table_row(const char *name, int step, const char *quantity, const char *measure,
                      double difference, double allowed) {
    char number[16] = "-";
    int bad = !(difference <= allowed);
    if (step >= 0) snprintf(number, sizeof number, "%d", step);
    printf("  %-24s %4s  %-37s %-9s %10.1e %8.0e%s\n", name, number, quantity, measure, difference,
           allowed, bad ? "  TOO FAR" : "");
    table.rows++;
    if (bad && !table.bad++)
        snprintf(table.worst, sizeof table.worst, "%s, step %s, %s: %.3g", name, number, quantity,
                 difference);
}

static void table_end(void) {
    CHECK_MSG(!table.bad, "%d of %d differences are too large; first: %s", table.bad, table.rows,
              table.worst);
    CHECK(table.rows > 0);
}

/* ---- Differences ---- */

static double difference_of_max(const float *ours, const float *theirs, int64_t n) {
    double worst = 0, top = 0;
    for (int64_t i = 0; i < n; i++) {
        double off = fabs((double)ours[i] - (double)theirs[i]);
        if (!(off <= worst)) worst = off; /* a NaN stays */
        top = fmax(top, fabs((double)theirs[i]));
    }
    return worst > 0 ? worst / top : worst;
}

static double difference_of_move(const float *ours, const float *theirs, const float *start,
                                 int64_t n) {
    double off = 0, move = 0;
    for (int64_t i = 0; i < n; i++) {
        double from = start ? (double)start[i] : 0;
        off += pow((double)ours[i] - (double)theirs[i], 2);
        move += pow((double)theirs[i] - from, 2);
    }
    return off > 0 || off != off ? sqrt(off / move) : 0;
}

static double difference_of_value(double ours, double theirs) {
    double off = fabs(ours - theirs);
    return off > 0 ? off / fabs(theirs) : off;
}

/* ---- The golden files ---- */

static float pool[1 << 20]; /* what was read; begun again by each test and each case */
static int64_t pool_used;

typedef struct golden {
    dlrn_context *ctx;
    dlrn_archive *file;
    const char *name; /* of the case: arrays are called name.quantity; "" for none */
} golden;

static golden golden_open(const char *path) {
    golden g = {NULL, NULL, ""};
    CHECK_STATUS(dlrn_context_create(NULL, &g.ctx), DLRN_OK);
    CHECK_OK(g.ctx, dlrn_archive_open(g.ctx, path, &g.file));
    pool_used = 0;
    return g;
}

static void golden_close(golden *g) {
    dlrn_archive_close(g->file);
    dlrn_context_destroy(g->ctx);
}

static int64_t golden_find(const golden *g, const char *quantity) {
    char name[96];
    snprintf(name, sizeof name, "%s%s%s", g->name, *g->name ? "." : "", quantity);
    return dlrn_archive_find(g->file, name);
}

static const dlrn_tensor_info *golden_info(const golden *g, const char *quantity) {
    int64_t index = golden_find(g, quantity);
    CHECK_MSG(index >= 0, "%s.%s is missing", g->name, quantity);
    return dlrn_archive_tensor(g->file, index);
}

static const float *golden_floats(golden *g, const char *quantity) {
    int64_t numel = golden_info(g, quantity)->numel;
    float *to = pool + pool_used;
    CHECK(numel <= (int64_t)(sizeof pool / sizeof *pool) - pool_used);
    CHECK_OK(g->ctx, dlrn_archive_read(g->file, golden_find(g, quantity), 0, -1, to));
    pool_used += numel;
    return to;
}

static void golden_integers(golden *g, const char *quantity, int64_t *to, int64_t room) {
    CHECK(golden_info(g, quantity)->numel <= room);
    CHECK_OK(g->ctx, dlrni_archive_read_i64(g->file, golden_find(g, quantity), to));
}

/* The parameters of a dictionary, and how many numbers each has. */
static void parameters_of(const dlrn_dictionary *ae, float *p[4], int64_t size[4]) {
    int64_t d = ae->d_in, F = ae->features;
    p[0] = ae->param[DLRN_OUTPUT_BIAS], p[1] = ae->param[DLRN_ENCODER],
    p[2] = ae->param[DLRN_ENCODER_BIAS], p[3] = ae->param[DLRN_DECODER];
    size[0] = d, size[1] = F * d, size[2] = F, size[3] = F * d;
}

static dlrn_dictionary *golden_dictionary(golden *g) {
    const dlrn_tensor_info *shape = golden_info(g, "encoder_weight");
    dlrn_dictionary *ae = NULL;
    float *p[4];
    int64_t size[4];
    CHECK_OK(g->ctx, new_autoencoder(g->ctx, shape->shape[1], shape->shape[0], 0, &ae));
    parameters_of(ae, p, size);
    for (int i = 0; i < 4; i++) {
        CHECK(golden_info(g, parameter_names[i])->numel == size[i]);
        memcpy(p[i], golden_floats(g, parameter_names[i]), (size_t)size[i] * sizeof(float));
    }
    dlrn_dictionary_changed(ae);
    return ae;
}

/* ---- Forward ---- */

enum { MAX_ROWS = 300, MAX_D = 24, MAX_F = 64 };

static float features[MAX_ROWS * MAX_F], x_hat[MAX_ROWS * MAX_D], other[MAX_ROWS * MAX_F];

/* The sparse calls give the dense calls' bits. */
static void check_sparse_calls(golden *g, const dlrn_dictionary *ae, const float *x, int64_t n) {
    int64_t d = ae->d_in, F = ae->features;
    dlrn_sparse codes = {0};
    CHECK_OK(g->ctx, dlrn_encode_sparse(ae, x, n, &codes));
    memset(other, 0, sizeof other);
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = codes.row_ptr[i]; k < codes.row_ptr[i + 1]; k++)
            other[i * F + codes.col[k]] = codes.val[k];
    CHECK(!memcmp(other, features, (size_t)(n * F) * sizeof(float)));
    CHECK_OK(g->ctx, dlrn_decode_sparse(ae, &codes, other));
    CHECK(!memcmp(other, x_hat, (size_t)(n * d) * sizeof(float)));
    CHECK_OK(g->ctx, dlrn_forward(ae, x, n, other, &codes));
    CHECK(!memcmp(other, x_hat, (size_t)(n * d) * sizeof(float)));
    dlrn_sparse_free(&codes);
}

TEST(forward) {
    golden g = golden_open("tests/golden/forward.npz");
    table_begin("FORWARD");
    for (const char *const names[] = {"a", "b", "c"}, *const *name = names; name < names + 3;
         name++) {
        g.name = *name;
        pool_used = 0;
        dlrn_dictionary *ae = golden_dictionary(&g);
        int64_t n = golden_info(&g, "x")->shape[0], d = ae->d_in, F = ae->features;
        CHECK(n <= MAX_ROWS && d <= MAX_D && F <= MAX_F);
        const float *x = golden_floats(&g, "x"), *f = golden_floats(&g, "f");
        CHECK_OK(g.ctx, dlrn_encode(ae, x, n, features));
        table_row(g.name, -1, "encode", "of max", difference_of_max(features, f, n * F), 1e-5);
        CHECK_OK(g.ctx, dlrn_decode(ae, features, n, x_hat));
        table_row(g.name, -1, "decode", "of max",
                  difference_of_max(x_hat, golden_floats(&g, "x_hat"), n * d), 1e-5);
        check_sparse_calls(&g, ae, x, n);
        dlrn_dictionary_destroy(ae);
    }
    golden_close(&g);
    table_end();
}

/* ---- Losses and gradients ---- */

static const char *const term_names[6] = {"loss", "mse", "sparsity", "ghost", "l0", "lr"};

/* One row for n figures: the worst of them. */
static void table_figures(const char *name, int step, const char *const *called, const double *ours,
                          const float *theirs, int n, double allowed) {
    double worst = 0;
    int which = 0;
    char quantity[64];
    for (int i = 0; i < n; i++) {
        double off = difference_of_value(ours[i], (double)theirs[i]);
        if (off <= worst) continue;
        worst = off, which = i;
    }
    snprintf(quantity, sizeof quantity, "%d figures, worst: %s", n, called[which]);
    table_row(name, step, quantity, "of value", worst, allowed);
}

/* Case loss_sparsity_kind: the five terms, then the four gradients. */
static void check_gradients(golden *g, const dlrn_dictionary *ae, int loss, int sparsity,
                            int kind) {
    static const char *const kinds[3] = {"plain", "target", "ghost"};
    static float gradient[4][MAX_F * MAX_D];
    char name[64];
    g->name = "", pool_used = 0;
    int64_t n = golden_info(g, "x")->shape[0], size[4];
    const float *x = golden_floats(g, "x"), *y = kind == 1 ? golden_floats(g, "y") : x;
    dlrn_train_config cfg = dlrn_train_defaults(NULL);
    cfg.d_in = ae->d_in, cfg.features = ae->features;
    cfg.sparsity_penalty = (double)*golden_floats(g, "penalty");
    cfg.loss = loss ? DLRN_LOSS_SQUARED : DLRN_LOSS_NORM;
    cfg.sparsity = sparsity ? DLRN_SPARSITY_ENTROPY : DLRN_SPARSITY_L1;
    cfg.ghost_threshold = kind == 2 ? 8 : -1;
    dlrn_trainer *t = NULL;
    float *p[4];
    CHECK_OK(g->ctx, dlrn_trainer_create(g->ctx, &cfg, ae, NULL, &t));
    golden_integers(g, "steps_since_fired", dlrn_trainer_describe(t).since_fired, ae->features);
    parameters_of(ae, p, size);

    snprintf(name, sizeof name, "%s_%s_%s", loss ? "squared" : "norm", sparsity ? "entropy" : "l1",
             kinds[kind]);
    g->name = name;
    dlrn_train_stats stats;
    CHECK_OK(g->ctx, dlrni_forward_loss(t, x, y, n, &stats));
    double ours[5] = {stats.loss, stats.reconstruction_loss, stats.sparsity_loss,
                      stats.auxiliary_loss, stats.l0};
    const float *theirs = golden_floats(g, "terms");
    CHECK((theirs[3] > 0) == (kind == 2));
    table_figures(name, -1, term_names, ours, theirs, 5, 1e-5);

    float *out[DLRN_ROLE_COUNT] = {NULL};
    for (int i = 0; i < 4; i++) out[parameter_roles[i]] = gradient[i];
    CHECK_OK(g->ctx, dlrni_trainer_gradients(t, x, y, n, out));
    for (int i = 0; i < 4; i++) {
        char quantity[64];
        snprintf(quantity, sizeof quantity, "gradient of %s", parameter_names[i]);
        double off = difference_of_max(gradient[i], golden_floats(g, parameter_names[i]), size[i]);
        table_row(name, -1, quantity, "of max", off, 1e-5);
    }
    dlrn_trainer_destroy(t);
}

TEST(gradients) {
    golden g = golden_open("tests/golden/gradients.npz");
    dlrn_dictionary *ae = golden_dictionary(&g);
    table_begin("LOSSES AND GRADIENTS");
    for (int c = 0; c < 12; c++) check_gradients(&g, ae, c / 6, c / 3 % 2, c % 3);
    dlrn_dictionary_destroy(ae);
    golden_close(&g);
    table_end();
}

/* ---- Training ---- */

/* Of the eight numbers that a case of training was made with; -1: never. */
static dlrn_train_config golden_config(golden *g) {
    const float *how = golden_floats(g, "settings");
    const dlrn_tensor_info *shape = golden_info(g, "encoder_weight");
    dlrn_train_config cfg = dlrn_train_defaults(NULL);
    CHECK(golden_info(g, "settings")->numel == 8);
    cfg.features = shape->shape[0], cfg.d_in = shape->shape[1];
    cfg.lr = (double)how[0], cfg.sparsity_penalty = (double)how[1];
    cfg.warmup_steps = (int64_t)how[2], cfg.resample_steps = (int64_t)how[3];
    cfg.ghost_threshold = (int64_t)how[4], cfg.log_steps = (int64_t)how[5];
    cfg.loss = how[6] > 0 ? DLRN_LOSS_SQUARED : DLRN_LOSS_NORM;
    cfg.sparsity = how[7] > 0 ? DLRN_SPARSITY_ENTROPY : DLRN_SPARSITY_L1;
    cfg.compat =
        cfg.resample_steps > 0 || cfg.log_steps > 0; /* without these the two modes are one */
    return cfg;
}

/* Four tensors of one kind (prefix "" the weights, "m_", "v_" the moments) at a snapshot: the worst
   of them. */
static void check_tensors(golden *g, int step, const char *prefix, float *const *ours,
                          const float *const *start, const int64_t *size) {
    const char *kind = !*prefix ? "weights" : *prefix == 'm' ? "first moments" : "second moments";
    double worst = 0;
    int which = 0, late = step >= 10;
    char name[64];
    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "%d.%s%s", step, prefix, parameter_names[i]);
        const float *theirs = golden_floats(g, name);
        CHECK(golden_info(g, name)->numel == size[i]);
        double off = late ? difference_of_move(ours[i], theirs, start ? start[i] : NULL, size[i])
                          : difference_of_max(ours[i], theirs, size[i]);
        if (off <= worst) continue;
        worst = off, which = i;
    }
    snprintf(name, sizeof name, "%s, worst: %s", kind, parameter_names[which]);
    table_row(g->name, step, name, late ? "of move" : "of max", worst, late ? 1e-4 : 1e-5);
}

static void check_snapshot(golden *g, int step, dlrn_trainer *t, const float *const *start) {
    const dlrn_trainer_info s = dlrn_trainer_describe(t);
    float *const m[4] = {s.m[DLRN_OUTPUT_BIAS], s.m[DLRN_ENCODER], s.m[DLRN_ENCODER_BIAS],
                         s.m[DLRN_DECODER]};
    float *const v[4] = {s.v[DLRN_OUTPUT_BIAS], s.v[DLRN_ENCODER], s.v[DLRN_ENCODER_BIAS],
                         s.v[DLRN_DECODER]};
    float *w[4];
    int64_t size[4], silent[MAX_F], wrong = 0;
    char name[64];
    parameters_of(dlrn_trainer_describe(t).dictionary, w, size);
    check_tensors(g, step, "", w, start, size);
    check_tensors(g, step, "m_", m, NULL, size);
    check_tensors(g, step, "v_", v, NULL, size);
    snprintf(name, sizeof name, "%d.steps_since_fired", step);
    golden_integers(g, name, silent, MAX_F);
    for (int64_t j = 0; j < size[2]; j++) wrong += silent[j] != s.since_fired[j];
    table_row(g->name, step, "counters that differ", "count", (double)wrong, 0);
}

static void check_training(golden *g, const dlrn_train_config *cfg, const dlrn_dictionary *init) {
    int64_t order[50], size[4], n = golden_info(g, "x")->shape[1], batch = n * cfg->d_in;
    const float *x = golden_floats(g, "x"),
                *y = golden_find(g, "y") < 0 ? x : golden_floats(g, "y");
    const float *terms = golden_floats(g, "terms"), *start[4];
    float *w[4];
    dlrn_trainer *t = NULL;
    golden_integers(g, "order", order, 50);
    parameters_of(init, w, size);
    for (int i = 0; i < 4; i++) start[i] = w[i];
    CHECK_OK(g->ctx, dlrn_trainer_create(g->ctx, cfg, init, NULL, &t));
    for (int step = 0; step < 50; step++) {
        dlrn_train_stats stats;
        int at = step + 1, shown = at == 1 || at == 2 || at == 10 || at == 50;
        CHECK_OK(g->ctx, dlrn_trainer_step_on(t, x + order[step] * batch, y + order[step] * batch,
                                              n, &stats));
        double ours[6] = {stats.loss,
                          stats.reconstruction_loss,
                          stats.sparsity_loss,
                          stats.auxiliary_loss,
                          stats.l0,
                          stats.lr};
        for (int i = 0; i < 6; i++) CHECK_CLOSE(ours[i], terms[step * 6 + i], 1e-4);
        if (!shown) continue;
        table_figures(g->name, at, term_names, ours, terms + step * 6, 6, step ? 1e-4 : 1e-5);
        check_snapshot(g, at, t, start);
    }
    dlrn_trainer_destroy(t);
}

static void train_case(const char *name) {
    golden g = golden_open("tests/golden/train.npz");
    g.name = name;
    dlrn_dictionary *ae = golden_dictionary(&g);
    dlrn_train_config cfg = golden_config(&g);
    table_begin(g.name);
    check_training(&g, &cfg, ae);
    dlrn_dictionary_destroy(ae);
    golden_close(&g);
    table_end();
}

TEST(train_l1) {
    train_case("l1");
}
TEST(train_squared) {
    train_case("squared");
}
TEST(train_entropy) {
    train_case("entropy");
}
TEST(train_ghost) {
    train_case("ghost");
}
TEST(train_stretcher) {
    train_case("stretcher");
}
TEST(train_stretcher_ghost_entropy) {
    train_case("stretcher_ghost_entropy");
}
TEST(train_warmup) {
    train_case("warmup");
}
TEST(train_resample) {
    train_case("resample");
}
TEST(train_log) {
    train_case("log");
}
TEST(train_log_resample) {
    train_case("log_resample");
}

/* What train.npz holds is what the tests above read. */
TEST(every_case_of_training_is_tested) {
    golden g = golden_open("tests/golden/train.npz");
    int cases = 0;
    for (int64_t i = 0; i < dlrn_archive_describe(g.file).count; i++)
        cases += strstr(dlrn_archive_tensor(g.file, i)->name, ".settings") != NULL;
    CHECK_MSG(cases == 10, "train.npz has %d cases, 10 are tested", cases);
    golden_close(&g);
}

/* ---- Evaluation ---- */

static void check_evaluation(golden *g, const dlrn_dictionary *ae, const char *name, int sparsity,
                             int compat) {
    g->name = "", pool_used = 0;
    int64_t n = golden_info(g, "x")->shape[0], fired[MAX_F], wrong = 0;
    const float *x = golden_floats(g, "x"), *y = strcmp(name, "target") ? x : golden_floats(g, "y");
    dlrn_eval_config cfg = dlrn_eval_defaults();
    dlrn_evaluator *e = NULL;
    dlrn_metrics m;
    char label[64];
    cfg.sparsity = sparsity ? DLRN_SPARSITY_ENTROPY : DLRN_SPARSITY_L1;
    cfg.compat = compat;
    CHECK_OK(g->ctx, dlrn_evaluator_create(ae, &cfg, &e));
    CHECK_OK(g->ctx, dlrn_evaluator_add(e, x, y, n));
    CHECK_OK(g->ctx, dlrn_evaluator_finish(e, &m));
    g->name = name;
    snprintf(label, sizeof label, "%s %s %s", name, sparsity ? "entropy" : "l1",
             compat ? "compat" : "default");
    const char *const called[12] = {compat ? "mse_compat" : "mse_loss",
                                    "l2_loss",
                                    sparsity ? "entropy" : "l1",
                                    "variance_explained",
                                    "variance_explained_per_dim",
                                    "l0",
                                    "percent_alive",
                                    "cosine",
                                    "l2_ratio",
                                    "relative_reconstruction_bias",
                                    "dead",
                                    "dense"};
    const double ours[12] = {m.mse_loss,
                             m.l2_loss,
                             m.sparsity_loss,
                             m.variance_explained,
                             m.variance_explained_per_dim,
                             m.l0,
                             m.share_alive,
                             m.cosine,
                             m.l2_ratio,
                             m.relative_reconstruction_bias,
                             (double)m.dead,
                             (double)m.dense};
    float theirs[12];
    for (int i = 0; i < 12; i++) theirs[i] = *golden_floats(g, called[i]);
    for (int i = 0; !sparsity && !compat && i < 12; i++)
        table_row(label, -1, called[i], "of value", difference_of_value(ours[i], (double)theirs[i]),
                  1e-5);
    table_figures(label, -1, called, ours, theirs, 12, 1e-5);
    golden_integers(g, "fired", fired, MAX_F);
    for (int64_t j = 0; j < ae->features; j++) wrong += fired[j] != m.fired[j];
    table_row(label, -1, "firing counts that differ", "count", (double)wrong, 0);
    dlrn_evaluator_destroy(e);
}

TEST(evaluation) {
    golden g = golden_open("tests/golden/evaluate.npz");
    dlrn_dictionary *ae = golden_dictionary(&g);
    table_begin("EVALUATION");
    for (int c = 0; c < 8; c++)
        check_evaluation(&g, ae, c / 4 ? "target" : "plain", c / 2 % 2, c % 2);
    dlrn_dictionary_destroy(ae);
    golden_close(&g);
    table_end();
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    RUN(forward);
    RUN(gradients);
    RUN(train_l1);
    RUN_LONG(train_squared);
    RUN_LONG(train_entropy);
    RUN(train_ghost);
    RUN_LONG(train_stretcher);
    RUN(train_stretcher_ghost_entropy);
    RUN_LONG(train_warmup);
    RUN(train_resample);
    RUN_LONG(train_log);
    RUN_LONG(train_log_resample);
    RUN(every_case_of_training_is_tested);
    RUN(evaluation);
    return TEST_END();
}
