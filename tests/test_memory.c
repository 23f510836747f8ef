/* test_memory.c - when memory runs out: each allocation of each operation fails once; every time
   the answer is DLRN_ERR_MEMORY, nothing leaks, no file is left half-written, and where the same is
   asked for again it comes, with the same bits. And what hostile bytes make a reader take stays in
   proportion to them. */
#include <unistd.h>

#ifndef _WIN32
/* The disk is not waited for: thousands of files are written here. External, because the Makefile
   puts it into the object that is linked. */
int no_fsync(int fd);
int no_fsync(int fd) {
    (void)fd;
    return 0;
}
#define fsync no_fsync
#endif
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "tests/bytes.h"
#include "tests/starve.h"

/* ---- The files ---- */

static const float ones[6] = {1, 1, 1, 1, 1, 1};
static const dlrn_tensor_out weights[4] = {{"bias", DLRN_F32, 1, {2}, ones},
                                           {"encoder.weight", DLRN_F32, 2, {3, 2}, ones},
                                           {"encoder.bias", DLRN_F32, 1, {3}, ones},
                                           {"decoder.weight", DLRN_F32, 2, {2, 3}, ones}};
static const char *const metadata[] = {"format", "pt", NULL};
static char *path; /* of the operation in hand */

static dlrn_status open_archive(void) {
    dlrn_archive *a = NULL;
    dlrn_status s = dlrn_archive_open(ctx, path, &a);
    CHECK((s == DLRN_OK) == (a != NULL));
    dlrn_archive_close(a);
    return s;
}

static dlrn_status load(void) {
    dlrn_dictionary *dict = NULL;
    dlrn_status s = dlrn_load(ctx, path, NULL, &dict);
    CHECK((s == DLRN_OK) == (dict != NULL));
    dlrn_dictionary_destroy(dict);
    return s;
}

static dlrn_status write_archive(void) {
    remove(path);
    dlrn_status s = dlrn_archive_write(ctx, path, weights, 4, metadata);
    CHECK((s == DLRN_OK) == (dlrn_file_exists(ctx, path) == 1));
    return s;
}

static dlrn_status write_codes(void) {
    static int64_t ptr[2] = {0, 2};
    static int32_t col[2] = {0, 2};
    static float val[2] = {1, 2};
    dlrn_sparse codes;
    dlrn_writer *w = NULL;
    memset(&codes, 0, sizeof codes);
    codes.rows = 1, codes.cols = 3, codes.row_ptr = ptr, codes.col = col, codes.val = val;
    remove(path);
    dlrn_status s = dlrn_csr_create(ctx, path, 3, &w), closed = DLRN_OK;
    if (s == DLRN_OK) s = dlrn_csr_append(w, &codes);
    if (w) closed = dlrn_writer_close(w);
    if (s == DLRN_OK) s = closed;
    CHECK((s == DLRN_OK) == (dlrn_file_exists(ctx, path) == 1));
    return s;
}

static dlrn_status write_rows(void) {
    dlrn_writer *w = NULL;
    remove(path);
    dlrn_status s = dlrn_npy_create(ctx, path, 3, -1, &w), closed = DLRN_OK;
    if (s == DLRN_OK) s = dlrn_npy_append(w, ones, 2);
    if (w) closed = dlrn_writer_close(w);
    return s == DLRN_OK ? closed : s;
}

static dlrn_status load_codes(void) {
    dlrn_sparse codes;
    memset(&codes, 0, sizeof codes);
    dlrn_status s = csr_load(ctx, path, &codes);
    CHECK(s == DLRN_OK || codes.row_ptr == NULL);
    dlrn_sparse_free(&codes);
    return s;
}

static dlrn_status parse(void) {
    static const char text[] = "{\"a\": [1, 2, {\"b\": \"c\", \"d\": null}], \"e\": {}}";
    dlrn_json *root;
    dlrn_status s = dlrn_json_parse(ctx, text, sizeof text - 1, "text", &root);
    dlrn_free(ctx, root);
    return s;
}

TEST(archives) {
    static const char *const names[3] = {"m.pt", "m.safetensors", "m.npz"};
    for (int i = 0; i < 3; i++) {
        path = tmp_path(names[i]);
        starve_all(names[i], ctx, write_archive);
        starve_all(names[i], ctx, open_archive);
        starve_all(names[i], ctx, load);
    }
    path = tmp_path("m.npy");
    starve_all("rows", ctx, write_rows);
    starve_all("rows", ctx, open_archive);
}

TEST(folders) {
    static const char config[] =
        "{\"trainer\": {\"dict_class\": \"AutoEncoder\", \"dict_size\": 3}}";
    mkdir(tmp_path("memory"), 0777);
    CHECK_OK(ctx, dlrn_file_write(ctx, tmp_path("memory/config.json"), config, sizeof config - 1));
    CHECK_OK(ctx, dlrn_archive_write(ctx, tmp_path("memory/ae.pt"), weights, 4, NULL));
    path = tmp_path("memory");
    starve_all("a folder", ctx, load);
}

TEST(shards) {
    static const char index[] =
        "{\"weight_map\": {\"bias\": \"m1.pt\", \"encoder.bias\": \"m2.safetensors\"}}";
    CHECK_OK(ctx, dlrn_archive_write(ctx, tmp_path("m1.pt"), weights, 2, NULL));
    CHECK_OK(ctx, dlrn_archive_write(ctx, tmp_path("m2.safetensors"), weights + 2, 2, NULL));
    path = tmp_path("m.index.json");
    CHECK_OK(ctx, dlrn_file_write(ctx, path, index, sizeof index - 1));
    starve_all("shards", ctx, open_archive);
}

TEST(codes) {
    path = tmp_path("m_codes.npz");
    starve_all("writing codes", ctx, write_codes);
    starve_all("codes", ctx, load_codes);
}

TEST(json) {
    starve_all("JSON", ctx, parse);
}

/* An older file of the corpus, for the one form that is not written here. */
TEST(legacy) {
    path = shared_data(
        "loader_corpus/burn/src__pytorch__tests__reader__test_data__legacy_shared_storage.pt");
    if (!path) SKIP("the files are not beside the repository");
    starve_all("a legacy file", ctx, open_archive);
}

/* ---- Dictionaries ---- */

enum { D = 12, F = 96, ROWS = 200, BATCH = 16 };
static float rows_x[ROWS * D], rows_y[ROWS * D];

static void make_rows(void) {
    dlrn_rng rng = {5, 0, 0};
    for (int i = 0; i < ROWS * D; i++) rows_x[i] = dlrn_rng_normal(&rng);
    for (int i = 0; i < ROWS * D; i++) rows_y[i] = dlrn_rng_normal(&rng);
}

static uint64_t mix_codes(uint64_t hash, const dlrn_sparse *codes) {
    int64_t nnz = codes->row_ptr[codes->rows];
    hash = starve_mix(hash, codes->row_ptr, (size_t)(codes->rows + 1) * sizeof *codes->row_ptr);
    hash = starve_mix(hash, codes->col, (size_t)nnz * sizeof *codes->col);
    return starve_mix(hash, codes->val, (size_t)nnz * sizeof *codes->val);
}

/* Everything that is asked of a dictionary; with many features active (dense) or few. */
static uint64_t use_dictionary(float bias) {
    static float f[ROWS * F], x_hat[ROWS * D];
    dlrn_dictionary *made = NULL, *dict = NULL;
    dlrn_sparse codes;
    uint64_t hash = 0;
    memset(&codes, 0, sizeof codes);
    STARVE_RETRY(ctx, new_autoencoder(ctx, D, F, 1, &made));
    for (int j = 0; j < F; j++) made->param[DLRN_ENCODER_BIAS][j] = bias;
    dlrn_dictionary_changed(made);
    STARVE_RETRY(ctx, dlrni_dictionary_copy(made->ctx, made, &dict));
    STARVE_RETRY(ctx, dlrn_encode(dict, rows_x, ROWS, f));
    hash = starve_mix(hash, f, sizeof f);
    STARVE_RETRY(ctx, dlrn_decode(dict, f, ROWS, x_hat));
    hash = starve_mix(hash, x_hat, sizeof x_hat);
    STARVE_RETRY(ctx, dlrn_encode_sparse(dict, rows_x, ROWS, &codes));
    hash = mix_codes(hash, &codes);
    STARVE_RETRY(ctx, dlrn_decode_sparse(dict, &codes, x_hat));
    hash = starve_mix(hash, x_hat, sizeof x_hat);
    STARVE_RETRY(ctx, dlrn_forward(dict, rows_y, ROWS, x_hat, &codes));
    hash = mix_codes(starve_mix(hash, x_hat, sizeof x_hat), &codes);
    STARVE_RETRY(ctx, dlrn_forward(dict, rows_y, ROWS, x_hat, NULL));
    hash = mix_codes(starve_mix(hash, x_hat, sizeof x_hat), &codes);
    dlrn_sparse_free(&codes);
    dlrn_dictionary_destroy(made);
    dlrn_dictionary_destroy(dict);
    return hash;
}

static uint64_t use_sparse(void) {
    return use_dictionary(-0.5f);
}

static uint64_t use_dense(void) {
    return use_dictionary(2);
}

static uint64_t save_and_load(void) {
    static const char *const names[3] = {"again.pt", "again.safetensors", "again.npz"};
    dlrn_dictionary *made = NULL, *dict = NULL;
    uint64_t hash = 0;
    STARVE_RETRY(ctx, new_autoencoder(ctx, D, F, 1, &made));
    for (int i = 0; i < 3; i++) {
        STARVE_RETRY(ctx, dlrn_save(made, tmp_path(names[i])));
        STARVE_RETRY(ctx, dlrn_load(ctx, tmp_path(names[i]), NULL, &dict));
        CHECK(!memcmp(made->param[DLRN_DECODER], dict->param[DLRN_DECODER], F * D * sizeof(float)));
        hash = starve_mix_file(hash, tmp_path(names[i]));
        dlrn_dictionary_destroy(dict);
    }
    dlrn_dictionary_destroy(made);
    return hash;
}

TEST(dictionaries) {
    CHECK(starve_each("few features", use_sparse) > 20);
    CHECK(starve_each("many features", use_dense) > 20);
    CHECK(starve_each("saving and loading", save_and_load) > 20);
}

/* ---- Training ---- */

static struct {
    const char *name;
    dlrn_dtype store;
    int target;
    int dense; /* from this feature on all are active */
    dlrn_train_config cfg;
    int64_t budget; /* entries of a panel; 0: as it is */
} run;
static int64_t torn; /* runs that could not go on */

static dlrn_buffer *open_buffer(void) {
    dlrn_buffer_config cfg = dlrn_buffer_defaults();
    dlrn_source source;
    dlrn_buffer *b = NULL;
    cfg.capacity = 60, cfg.read_rows = 20, cfg.batch_rows = BATCH;
    cfg.store = run.store;
    STARVE_RETRY(ctx, dlrn_source_from_array(ctx, rows_x, run.target ? rows_y : NULL, ROWS, D,
                                             run.target ? D : 0, 2, &source));
    STARVE_RETRY(ctx, dlrn_buffer_create(ctx, &cfg, &source, DLRN_OWNED, &b));
    return b;
}

static int waits; /* steps with a batch in hand that had no memory */

/* Steps to the end of the data, or `most`; 0: the trainer cannot go on, and says so. */
static int steps(dlrn_trainer *t, int most, uint64_t *hash) {
    for (int i = 0; i < most; i++) {
        dlrn_train_stats stats;
        dlrn_status s = dlrn_trainer_step(t, &stats);
        if (s == DLRN_ERR_MEMORY &&
            t->stage == DLRNI_TAKEN) { /* its batch is taken, and in no checkpoint's buffer */
            CHECK_STATUS(dlrn_trainer_save(t, tmp_path("torn.safetensors")), DLRN_ERR_ARGUMENT);
            CHECK_STR(dlrn_error(ctx),
                      "is not finished: expected a call of dlrn_trainer_step first");
            waits++;
        }
        if (s == DLRN_ERR_MEMORY) s = dlrn_trainer_step(t, &stats);
        if (s == DLRN_END) return 1;
        if (s == DLRN_ERR_ARGUMENT) {
            CHECK_STR(dlrn_error(ctx), "broke off in the middle of its update");
            CHECK_STATUS(dlrn_trainer_save(t, tmp_path("torn.safetensors")), DLRN_ERR_ARGUMENT);
            return 0;
        }
        CHECK_OK(ctx, s);
        CHECK(stats.step == dlrn_trainer_describe(t).steps - 1);
        *hash = starve_mix(*hash, &stats.loss, sizeof stats.loss);
        *hash = starve_mix(*hash, &stats.resampled, sizeof stats.resampled);
    }
    return 1;
}

static int half_a_run(uint64_t *hash) {
    dlrn_buffer *b = open_buffer();
    dlrn_trainer *t = NULL;
    STARVE_RETRY(ctx, dlrn_trainer_create(ctx, &run.cfg, NULL, b, &t));
    if (run.budget) t->w.budget = run.budget;
    for (int j = 0; j < F; j++)
        t->dict->param[DLRN_ENCODER_BIAS][j] = j >= run.dense ? 3 : j % 8 ? 0 : -100;
    dlrn_dictionary_changed(t->dict);
    int whole = steps(t, 9, hash);
    if (whole) STARVE_RETRY(ctx, dlrn_trainer_save(t, path));
    dlrn_trainer_destroy(t);
    dlrn_buffer_destroy(b);
    return whole;
}

static int the_other_half(uint64_t *hash) {
    dlrn_buffer *b = open_buffer();
    dlrn_trainer *t = NULL;
    STARVE_RETRY(ctx, dlrn_trainer_resume(ctx, path, NULL, b, &t));
    if (run.budget) t->w.budget = run.budget;
    int whole = steps(t, 100, hash);
    if (whole) STARVE_RETRY(ctx, dlrn_trainer_save(t, path));
    dlrn_trainer_destroy(t);
    dlrn_buffer_destroy(b);
    return whole;
}

static uint64_t train(void) {
    static uint64_t wanted;
    uint64_t hash = 0;
    path = tmp_path("starved.safetensors");
    if (half_a_run(&hash) && the_other_half(&hash)) return wanted = starve_mix_file(hash, path);
    torn++;
    return wanted; /* it is the run's first that sets it, and has all the memory */
}

static void train_each(const char *name, int may_tear) {
    torn = 0;
    CHECK(starve_each(name, train) > 100);
    CHECK_MSG(may_tear || !torn, "%s: %d runs could not go on", name, (int)torn);
}

static void plain_run(void) {
    memset(&run, 0, sizeof run);
    run.dense = F;
    run.cfg = dlrn_train_defaults(NULL);
    run.cfg.d_in = D;
    run.cfg.features = F;
    run.cfg.warmup_steps = 2;
    run.cfg.lr = 0.01;
}

TEST(training) {
    plain_run();
    waits = 0;
    train_each("plain steps", 0);
    CHECK(waits > 0 || test_brief());
    run.store = DLRN_BF16, run.cfg.ghost_threshold = 3;
    train_each("ghosts, rows as BF16", 0);
    plain_run();
    run.store = DLRN_F16, run.target = 1, run.cfg.sparsity = DLRN_SPARSITY_ENTROPY;
    train_each("entropy and a target, rows as F16", 0);
    plain_run();
    run.dense = 0;
    train_each("all features active", 0);
    plain_run();
    run.target = 1, run.cfg.resample_steps = 4;
    train_each("resampling", 0);
    plain_run();
    run.budget = 1;
    train_each("several panels", 0);
    plain_run();
    run.cfg.compat = 1, run.cfg.resample_steps = 4, run.cfg.log_steps = 1;
    train_each("compat", 0);
}

/* A panel that needs more than those before it: there is no way back for what they have moved. */
TEST(torn_updates) {
    int tears = 0;
    plain_run();
    for (int granted = 0, refused = 1; refused; granted++) {
        const int64_t before = starve.live;
        dlrn_trainer *t = NULL;
        CHECK_OK(ctx, dlrn_trainer_create(ctx, &run.cfg, NULL, NULL, &t));
        for (int j = 0; j < F; j++) t->dict->param[DLRN_ENCODER_BIAS][j] = j < 64 ? -100 : 100;
        t->w.budget = 1;
        starve_after(granted, 1);
        dlrn_status s = dlrn_trainer_step_on(t, rows_x, NULL, ROWS, NULL);
        refused = starve.refused > 0;
        starve_no_more();
        CHECK_STATUS(s, refused ? DLRN_ERR_MEMORY : DLRN_OK);
        s = dlrn_trainer_step_on(t, rows_x, NULL, ROWS, NULL);
        if (s == DLRN_ERR_ARGUMENT) {
            tears++;
            CHECK_STR(dlrn_error(ctx), "step 0 failed while it was writing the weights");
            CHECK_STATUS(dlrn_trainer_save(t, tmp_path("torn.safetensors")), DLRN_ERR_ARGUMENT);
        } else {
            CHECK_OK(ctx, s);
        }
        dlrn_trainer_destroy(t);
        CHECK(starve.live == before);
    }
    CHECK(tears > 0);
}

/* A step after which far more features are active: compat's second pass, for the log, needs more
   than the first. */
TEST(logs_that_wait) {
    waits = 0;
    dlrn_train_stats wanted, stats;
    plain_run();
    run.cfg.compat = 1, run.cfg.log_steps = 1, run.cfg.lr = 10, run.cfg.warmup_steps = 0,
    run.cfg.sparsity_penalty = 0;
    for (int granted = -1, refused = 1; refused; granted++) {
        const int64_t before = starve.live;
        dlrn_trainer *t = NULL;
        CHECK_OK(ctx, dlrn_trainer_create(ctx, &run.cfg, NULL, NULL, &t));
        for (int j = 0; j < F; j++) t->dict->param[DLRN_ENCODER_BIAS][j] = -1.5f;
        if (granted >= 0) starve_after(granted, 1);
        dlrn_status s = dlrn_trainer_step_on(t, rows_x, NULL, ROWS, &stats);
        refused = granted < 0 || starve.refused > 0;
        starve_no_more();
        CHECK_STATUS(s, granted >= 0 && refused ? DLRN_ERR_MEMORY : DLRN_OK);
        if (t->stage == DLRNI_LOGGING) { /* a checkpoint has no place for its rows */
            waits++;
            CHECK(dlrn_trainer_describe(t).steps == 1);
            CHECK_STATUS(dlrn_trainer_save(t, tmp_path("torn.safetensors")), DLRN_ERR_ARGUMENT);
            CHECK_STR(dlrn_error(ctx), "torn.safetensors: not written: step 0 is not finished");
        }
        if (s != DLRN_OK) CHECK_OK(ctx, dlrn_trainer_step_on(t, rows_x, NULL, ROWS, &stats));
        if (granted < 0) wanted = stats;
        CHECK(!memcmp(&wanted, &stats, sizeof stats) && dlrn_trainer_describe(t).steps == 1);
        CHECK_OK(ctx, dlrn_trainer_save(t, tmp_path("torn.safetensors")));
        dlrn_trainer_destroy(t);
        CHECK(starve.live == before);
    }
    CHECK(waits > 0 || test_brief());
}

/* ---- Measuring ---- */

static dlrn_status plain_cross_entropy(void *user, const dlrn_edit *edit, double *nats,
                                       int64_t *tokens) {
    static float out[BATCH * D];
    (void)user;
    dlrn_status s = edit ? edit->edit(edit->user, 0, rows_x, out, BATCH) : DLRN_OK;
    *nats = edit ? (double)out[0] : 1;
    *tokens = BATCH;
    return s;
}

static uint64_t measure(void) {
    dlrn_language_model lm = {plain_cross_entropy, NULL, NULL, 1, 1};
    dlrn_eval_config cfg = dlrn_eval_defaults();
    dlrn_dictionary *dict = NULL;
    uint64_t hash = 0;
    cfg.rows = ROWS, cfg.batch_size = 64;
    STARVE_RETRY(ctx, new_autoencoder(ctx, D, F, 1, &dict));
    for (int with_model = 0; with_model < 2; with_model++) {
        dlrn_source source;
        dlrn_metrics m;
        STARVE_RETRY(ctx, dlrn_source_from_array(ctx, rows_x, rows_y, ROWS, D, D, 0, &source));
        CHECK_OK(ctx, source.seek(source.user, 0));
        dlrn_status s = dlrn_evaluate(dict, &cfg, &source, with_model ? &lm : NULL, NULL, NULL, &m);
        if (s == DLRN_ERR_MEMORY) { /* the rows that came are gone: from the first one on */
            CHECK_OK(ctx, source.seek(source.user, 0));
            s = dlrn_evaluate(dict, &cfg, &source, with_model ? &lm : NULL, NULL, NULL, &m);
        }
        CHECK_OK(ctx, s);
        hash = starve_mix(hash, &m.mse_loss, sizeof m.mse_loss);
        if (with_model) hash = starve_mix(hash, &m.ce_diff, sizeof m.ce_diff);
        dlrn_source_destroy(&source);
    }
    dlrn_dictionary_destroy(dict);
    return hash;
}

TEST(measuring) {
    CHECK(starve_each("evaluation", measure) > 10);
}

/* Rows of several batches, of which the first need little: they are added, or none of them, or the
   evaluator says that it cannot know. */
TEST(rows_added_in_part) {
    static float x[ROWS * D];
    dlrn_eval_config cfg = dlrn_eval_defaults();
    dlrn_dictionary *dict = NULL;
    dlrn_metrics wanted, m;
    int tears = 0, retries = 0;
    cfg.batch_size = ROWS / 4;
    memcpy(x, rows_x, sizeof x);
    memset(x, 0, sizeof x / 2);
    CHECK_OK(ctx, new_autoencoder(ctx, D, F, 1, &dict));
    /* nothing fires on the rows that are 0: the lists of the others ask for memory in the middle */
    for (int j = 0; j < F; j++) dict->param[DLRN_ENCODER_BIAS][j] = -0.01f;
    dlrn_dictionary_changed(dict);
    for (int granted = -1, refused = 1; refused; granted++) {
        const int64_t before = starve.live;
        dlrn_evaluator *e = NULL;
        CHECK_OK(ctx, dlrn_evaluator_create(dict, &cfg, &e));
        if (granted >= 0) starve_after(granted, 1);
        dlrn_status s = dlrn_evaluator_add(e, x, NULL, ROWS);
        refused = granted < 0 || starve.refused > 0;
        starve_no_more();
        CHECK_STATUS(s, granted >= 0 && refused ? DLRN_ERR_MEMORY : DLRN_OK);
        const int64_t counted = e->rows;
        if (s != DLRN_OK) s = dlrn_evaluator_add(e, x, NULL, ROWS);
        CHECK_STATUS(s, counted > 0 && counted < ROWS ? DLRN_ERR_ARGUMENT : DLRN_OK);
        CHECK_STATUS(dlrn_evaluator_finish(e, &m), s);
        m.fired = NULL; /* each evaluator has its own */
        if (s != DLRN_OK) {
            CHECK_STR(dlrn_error(ctx), "a call failed after some of its rows, up to row ");
            tears++;
        } else if (granted < 0) {
            wanted = m;
        } else {
            CHECK(!memcmp(&wanted, &m, sizeof m));
            retries++;
        }
        dlrn_evaluator_destroy(e);
        CHECK(starve.live == before);
    }
    CHECK(tears > 0 && retries > 1);
    dlrn_dictionary_destroy(dict);
}

/* Codes that two contexts fill in turn: each frees what it made. */
TEST(codes_of_two_contexts) {
    dlrn_context *other = NULL;
    dlrn_dictionary *ours = NULL, *theirs = NULL;
    dlrn_sparse codes;
    memset(&codes, 0, sizeof codes);
    CHECK_STATUS(dlrn_context_create(NULL, &other), DLRN_OK);
    CHECK_OK(ctx, new_autoencoder(ctx, D, F, 1, &ours));
    CHECK_OK(other, new_autoencoder(other, D, F, 2, &theirs));
    CHECK_OK(ctx, dlrn_encode_sparse(ours, rows_x, 2, &codes));
    dlrn_sparse_free(&codes);
    const int64_t before = starve.live;
    for (int i = 0; i < 3; i++) {
        CHECK_OK(ctx, dlrn_encode_sparse(ours, rows_x, ROWS, &codes));
        CHECK(codes.rows == ROWS && starve.live == before + 3);
        CHECK_OK(other, dlrn_encode_sparse(theirs, rows_x, ROWS, &codes));
        CHECK(codes.rows == ROWS && starve.live == before);
    }
    dlrn_sparse_free(&codes);
    dlrn_dictionary_destroy(ours);
    dlrn_dictionary_destroy(theirs);
    dlrn_context_destroy(other);
}

/* ---- In proportion ---- */

enum { HOSTILE = 60000 };
static bytes b, pickle;
static zip z;

/* Opens what is in b: the most bytes that this took. */
static size_t taken(void) {
    dlrn_archive *a = NULL;
    size_t before = starve.in_use;
    starve.peak = starve.in_use;
    (void)!open_bytes(&b, &a);
    dlrn_archive_close(a);
    CHECK(starve.in_use == before);
    return starve.peak - before;
}

/* `unit` over and over, after `begin`, as the pickle of a .pt. */
static void repeat_in_pickle(const char *begin, const char *unit, size_t unit_size) {
    pickle.n = 0;
    put_text(&pickle, begin);
    while (pickle.n + unit_size < HOSTILE) put(&pickle, unit, unit_size);
    memset(&z, 0, sizeof z);
    zip_raw(&z, "archive/data.pkl", &pickle, 0, pickle.n, 0, 0);
    b = *zip_done(&z);
}

TEST(pickles_in_proportion) {
    static const struct {
        const char *begin, *unit;
        size_t size;
    } bombs[] = {{"\x80\x02", ")", 1},         {"\x80\x02(", "N", 1},
                 {"\x80\x02", "(", 1},         {"\x80\x02]q\x01", "h\x01", 2},
                 {"\x80\x02N", "\x85", 1},     {"\x80\x02", "]\x94", 2},
                 {"\x80\x02]", "Na", 2},       {"\x80\x02", "ctorch\nSize\n", 12},
                 {"\x80\x02", "X\0\0\0\0", 5}, {"\x80\x02N", "r\x00\xf0\0\0", 5}};
    for (size_t i = 0; i < sizeof bombs / sizeof *bombs; i++) {
        repeat_in_pickle(bombs[i].begin, bombs[i].unit, bombs[i].size);
        size_t most = taken();
        CHECK_MSG(most < 512 * b.n, "%d: %.0f bytes for a file of %.0f", (int)i, (double)most,
                  (double)b.n);
    }
}

TEST(json_in_proportion) {
    static const char *const units[] = {"[", ",", "[],", "{\"\":0},", "\"\","};
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        b.n = 0;
        put_le(&b, 0, 8);
        put_text(&b, "{\"x\":[");
        while (b.n < HOSTILE) put_text(&b, units[i]);
        patch(&b, 0, b.n - 8, 8);
        size_t most = taken();
        CHECK_MSG(most < 256 * b.n, "%s: %.0f bytes for a file of %.0f", units[i], (double)most,
                  (double)b.n);
    }
}

/* Lengths that are only claimed. */
TEST(claims_in_proportion) {
    b.n = 0;
    put_le(&b, 100u << 20, 8);
    put_text(&b, "{");
    CHECK(taken() < 4096);
    b.n = 0;
    put_text(&b, "\x93NUMPY\x01");
    put_le(&b, 0, 1);
    put_le(&b, 75, 2);
    put_text(&b, "{'descr': '<f4', 'fortran_order': False, 'shape': (1048576, 1048576), }    \n");
    CHECK(taken() < 4096);
    static const unsigned char nothing[2] = {3, 0}; /* an empty block, said to unpack to more */
    memset(&z, 0, sizeof z);
    pickle.n = 0;
    put(&pickle, nothing, sizeof nothing);
    zip_raw(&z, "x.npy", &pickle, 8, 0xFFFFFF00, 0, 0);
    b = *zip_done(&z);
    CHECK(taken() < 8192);
    memset(&z, 0, sizeof z);
    zip_raw(&z, "x.npy", &pickle, 8, 2000, 0, 0);
    b = *zip_done(&z);
    CHECK(taken() < 8192);
}

/* What cannot be mapped grows as it comes. */
TEST(streams_in_proportion) {
    enum { LARGE = 3000000 };
    char *bytes = (char *)calloc(1, LARGE);
    size_t n;
    CHECK(bytes != NULL);
    dlrn_status s = dlrn_file_write(ctx, tmp_path("stream.bin"), bytes, LARGE);
    free(bytes);
    CHECK_OK(ctx, s);
    size_t before = starve.in_use;
    starve.peak = starve.in_use;
    CHECK_OK(ctx, dlrn_file_read(ctx, tmp_path("stream.bin"), &bytes, &n));
    CHECK_MSG(n == LARGE && starve.peak - before <= 3 * LARGE, "%d bytes",
              (int)(starve.peak - before));
    dlrn_free(ctx, bytes);
    CHECK(starve.in_use == before);
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    ctx = starve_context(1);
    make_rows();
    RUN(archives);
    RUN(folders);
    RUN(shards);
    RUN(codes);
    RUN(json);
    RUN(legacy);
    RUN(dictionaries);
    RUN(training);
    RUN(torn_updates);
    RUN(logs_that_wait);
    RUN(measuring);
    RUN(rows_added_in_part);
    RUN(codes_of_two_contexts);
    RUN(pickles_in_proportion);
    RUN(json_in_proportion);
    RUN(claims_in_proportion);
    RUN(streams_in_proportion);
    dlrn_context_destroy(ctx);
    return TEST_END();
}
