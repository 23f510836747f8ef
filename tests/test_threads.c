/* test_threads.c - real threads: loops that the host runs on its own, and contexts that work at the
   same time. The numbers must be those of one thread; under the thread sanitizer (`make tsan`) no
   two threads may meet at a byte. */
#include "dictlearn.h"
#include "tests/test.h"

#include <pthread.h>

enum { D = 40, F = 2100, N = 160, STEPS = 6, WORKERS = 3 };

static float rows[N * D];

/* ---- The host's loop: workers take the next task until none is left ---- */

typedef struct loop {
    pthread_mutex_t lock;
    int64_t next, tasks;
    int workers; /* that have begun: the number of the next one */
    dlrn_parallel_body body;
    void *arg;
} loop;

static void *work(void *of) {
    loop *l = (loop *)of;
    pthread_mutex_lock(&l->lock);
    int worker = l->workers++;
    while (l->next < l->tasks) {
        int64_t task = l->next++;
        pthread_mutex_unlock(&l->lock);
        l->body(l->arg, task, worker);
        pthread_mutex_lock(&l->lock);
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

/* How many of the loops had more than one worker: *user. */
static void on_threads(void *user, int64_t tasks, dlrn_parallel_body body, void *arg) {
    loop l = {PTHREAD_MUTEX_INITIALIZER, 0, tasks, 0, body, arg};
    pthread_t helper[WORKERS - 1];
    int helpers = 0;
    while (helpers < WORKERS - 1 && helpers + 1 < tasks &&
           !pthread_create(&helper[helpers], NULL, work, &l))
        helpers++;
    work(&l);
    *(int64_t *)user += helpers > 0;
    while (helpers > 0) pthread_join(helper[--helpers], NULL);
}

/* ---- All that runs in loops, in one number ---- */

static void add(uint64_t *hash, const void *data, size_t size) {
    for (size_t i = 0; i < size; i++)
        *hash = (*hash ^ ((const unsigned char *)data)[i]) * 0x100000001b3u;
}

/* Features that can never fire, for the ghosts. */
static dlrn_status begin(dlrn_context *ctx, dlrn_dictionary **ae) {
    dlrn_status s = new_autoencoder(ctx, D, F, 1, ae);
    for (int j = 0; !s && j < F; j += 7) (*ae)->param[DLRN_ENCODER_BIAS][j] = -1000;
    if (!s) dlrn_dictionary_changed(*ae);
    return s;
}

/* Trains with ghosts, from a buffer; saves half-way, goes on from the file, and ends with a
   resampling. */
static dlrn_status train(dlrn_context *ctx, const dlrn_dictionary *init, const char *path,
                         dlrn_dictionary **ae) {
    dlrn_train_config cfg = dlrn_train_defaults(NULL);
    dlrn_buffer_config shuffle = dlrn_buffer_defaults();
    dlrn_source source;
    dlrn_buffer *buffer = NULL;
    dlrn_trainer *t = NULL;
    int64_t revived;
    cfg.d_in = D, cfg.features = F, cfg.ghost_threshold = 1, cfg.warmup_steps = 0, cfg.lr = 0.01;
    shuffle.capacity = N, shuffle.read_rows = 64, shuffle.batch_rows = 64;
    shuffle.store = DLRN_F16;
    dlrn_status s = dlrn_source_from_array(ctx, rows, NULL, N, D, 0, 0, &source);
    if (!s) s = dlrn_buffer_create(ctx, &shuffle, &source, DLRN_OWNED, &buffer);
    if (!s) s = dlrn_trainer_create(ctx, &cfg, init, buffer, &t);
    for (int i = 0; !s && i < STEPS / 2; i++) s = dlrn_trainer_step(t, NULL);
    if (!s) s = dlrn_trainer_save(t, path);
    dlrn_trainer_destroy(t);
    t = NULL;
    if (!s) s = dlrn_trainer_resume(ctx, path, NULL, buffer, &t);
    for (int i = 0; !s && i < STEPS / 2; i++) s = dlrn_trainer_step(t, NULL);
    if (!s) s = dlrni_resample(t, rows, NULL, N, &revived);
    if (!s && !revived) s = dlrn_fail(ctx, DLRN_ERR_ARGUMENT, "no feature was dead");
    if (!s) s = dlrn_save(dlrn_trainer_describe(t).dictionary, path);
    if (!s) s = dlrn_load(ctx, path, NULL, ae);
    dlrn_trainer_destroy(t);
    dlrn_buffer_destroy(buffer);
    return s;
}

/* Encodes, decodes and measures with a dictionary. */
static dlrn_status use(dlrn_context *ctx, dlrn_dictionary *ae, uint64_t *hash) {
    dlrn_eval_config cfg = dlrn_eval_defaults();
    dlrn_sparse codes = {0};
    dlrn_metrics m;
    dlrn_source source;
    float *f = (float *)dlrn_alloc(ctx, N * F, sizeof *f),
          *x = (float *)dlrn_alloc(ctx, N * D, sizeof *x);
    dlrn_status s = f && x ? dlrn_encode(ae, rows, N, f) : DLRN_ERR_MEMORY;
    if (!s) s = dlrn_decode(ae, f, N, x);
    if (!s) add(hash, f, sizeof *f * N * F), add(hash, x, sizeof *x * N * D);
    if (!s) s = dlrn_forward(ae, rows, N, x, &codes);
    if (!s) s = dlrn_decode_sparse(ae, &codes, x);
    if (!s)
        add(hash, codes.val, sizeof *codes.val * (size_t)codes.row_ptr[N]),
            add(hash, x, sizeof *x * N * D);
    if (!s)
        s = dlrn_matmul(ctx, DLRN_TN, dlrn_view(rows, N, D, D), dlrn_view(f, N, F, F), 0,
                        dlrn_view(ae->param[DLRN_DECODER], D, F, F), NULL);
    if (!s) add(hash, ae->param[DLRN_DECODER], sizeof *f * D * F);
    if (!s) s = dlrn_source_from_array(ctx, rows, NULL, N, D, 0, 1, &source);
    if (!s) {
        s = dlrn_evaluate(ae, &cfg, &source, NULL, NULL, NULL, &m);
        dlrn_source_destroy(&source);
    }
    if (!s) add(hash, &m, sizeof m);
    dlrn_sparse_free(&codes);
    dlrn_free(ctx, f);
    dlrn_free(ctx, x);
    return s;
}

static dlrn_status whole_life(dlrn_context *ctx, const char *path, uint64_t *hash) {
    dlrn_dictionary *init = NULL, *ae = NULL;
    dlrn_status s = begin(ctx, &init);
    *hash = 0;
    if (!s) s = train(ctx, init, path, &ae);
    if (!s) add(hash, ae->param[DLRN_ENCODER], sizeof(float) * D * F);
    if (!s) s = use(ctx, ae, hash);
    dlrn_dictionary_destroy(init);
    dlrn_dictionary_destroy(ae);
    return s;
}

/* The same on the calling thread alone. */
static uint64_t wanted(void) {
    dlrn_context_config cfg = {0};
    dlrn_context *ctx = NULL;
    uint64_t hash;
    cfg.threads = 1;
    CHECK_STATUS(dlrn_context_create(&cfg, &ctx), DLRN_OK);
    CHECK_OK(ctx, whole_life(ctx, tmp_path("threads_one.safetensors"), &hash));
    dlrn_context_destroy(ctx);
    return hash;
}

TEST(the_hosts_threads_do_not_change_a_bit) {
    dlrn_context_config cfg = {0};
    dlrn_context *ctx = NULL;
    uint64_t hash;
    int64_t shared = 0;
    cfg.threads = WORKERS, cfg.parallel_for = on_threads, cfg.user = &shared;
    CHECK_STATUS(dlrn_context_create(&cfg, &ctx), DLRN_OK);
    CHECK_OK(ctx, whole_life(ctx, tmp_path("threads_host.safetensors"), &hash));
    dlrn_context_destroy(ctx);
    CHECK_MSG(shared > 20, "only %d loops ran on several threads", (int)shared);
    CHECK(hash == wanted());
}

/* ---- A host of many threads ---- */

enum { MANY = 64 };

/* Tasks in the reverse order, each on another worker. */
static void backwards(void *user, int64_t tasks, dlrn_parallel_body body, void *arg) {
    (void)user;
    for (int64_t i = tasks; i-- > 0;) body(arg, i, (int)(i * 7 % MANY));
}

/* Steps of recipes whose loops are cut by the number of threads: selections, dead features with an
   auxiliary loss, clipped gradients, nested groups. Rows repeat, so that blocks are many. */
static dlrn_status many_recipes(dlrn_context *ctx, uint64_t *hash) {
    static const char *const recipes[] = {"dl-batch_top_k",     "dl-top_k",      "dl-jump_relu",
                                          "dl-gated",           "dl-matryoshka", "sp-topk",
                                          "sp-skip_transcoder", "dl-p_anneal"};
    enum { ROWS = 5 * N };
    static float x[ROWS * D];
    dlrn_status s = DLRN_OK;
    *hash = 0;
    for (int i = 0; i < ROWS * D; i++) x[i] = rows[i % (N * D)] + 0.01f * (float)(i / (N * D));
    for (size_t r = 0; !s && r < sizeof recipes / sizeof *recipes; r++) {
        dlrn_train_config cfg = dlrn_train_defaults(recipes[r]);
        dlrn_trainer *t = NULL;
        cfg.d_in = D, cfg.features = F, cfg.steps = 100;
        if (cfg.k) cfg.k = 8;
        if (cfg.dead_rows > 0) cfg.dead_rows = 1;
        s = dlrn_trainer_create(ctx, &cfg, NULL, NULL, &t);
        for (int i = 0; !s && i < 3; i++) s = dlrn_trainer_step_on(t, x, NULL, ROWS, NULL);
        for (int role = 0; !s && role < DLRN_ROLE_COUNT; role++) {
            const dlrn_dictionary *ae = dlrn_trainer_describe(t).dictionary;
            if (ae->param[role])
                add(hash, ae->param[role], sizeof(float) * (size_t)dlrni_role_size(ae, role));
        }
        dlrn_trainer_destroy(t);
    }
    return s;
}

TEST(many_threads_do_not_change_a_bit) {
    uint64_t hash[3], life;
    for (int i = 0; i < 3; i++) {
        const int threads[] = {1, 2, MANY};
        dlrn_context_config cfg = {0};
        dlrn_context *ctx = NULL;
        cfg.threads = threads[i], cfg.parallel_for = i == 2 ? backwards : NULL;
        CHECK_STATUS(dlrn_context_create(&cfg, &ctx), DLRN_OK);
        CHECK_OK(ctx, many_recipes(ctx, &hash[i]));
        if (i == 2) CHECK_OK(ctx, whole_life(ctx, tmp_path("threads_many.safetensors"), &life));
        dlrn_context_destroy(ctx);
    }
    CHECK(hash[1] == hash[0]);
    CHECK(hash[2] == hash[0]);
    CHECK(life == wanted());
}

/* ---- Contexts at the same time ---- */

typedef struct life {
    pthread_t thread;
    const char *path;
    dlrn_status status;
    uint64_t hash;
} life;

/* No check within: a failed one would leave by a jump into another thread. */
static void *live(void *of) {
    life *l = (life *)of;
    dlrn_context_config cfg = {0};
    dlrn_context *ctx = NULL;
    cfg.threads = 1;
    l->status = dlrn_context_create(&cfg, &ctx);
    if (!l->status) l->status = whole_life(ctx, l->path, &l->hash);
    dlrn_context_destroy(ctx);
    return NULL;
}

TEST(contexts_share_nothing) {
    life lives[2];
    int begun = 0;
    memset(lives, 0, sizeof lives);
    for (; begun < 2; begun++) {
        lives[begun].path =
            tmp_path(begun ? "threads_second.safetensors" : "threads_first.safetensors");
        if (pthread_create(&lives[begun].thread, NULL, live, &lives[begun])) break;
    }
    for (int i = 0; i < begun; i++) pthread_join(lives[i].thread, NULL);
    CHECK(begun == 2);
    for (int i = 0; i < 2; i++) {
        CHECK_STATUS(lives[i].status, DLRN_OK);
        CHECK(lives[i].hash == wanted());
    }
}

/* ---- Callbacks ---- */

enum { READ, STOP, PROGRESS, JUDGE, CALLBACKS };
static pthread_t host;
static int calls[CALLBACKS], strangers;

static void called(int which) {
    calls[which]++;
    strangers += !pthread_equal(pthread_self(), host);
}

/* Every loop runs on another thread than the caller's. */
static void on_another(void *user, int64_t tasks, dlrn_parallel_body body, void *arg) {
    loop l = {PTHREAD_MUTEX_INITIALIZER, 0, tasks, 0, body, arg};
    pthread_t other;
    if (pthread_create(&other, NULL, work, &l)) return;
    pthread_join(other, NULL);
    ++*(int64_t *)user;
}

static dlrn_status host_read(void *user, int64_t most, float *x, float *y, int64_t *n) {
    (void)user, (void)y;
    called(READ);
    *n = most < N ? most : N;
    memcpy(x, rows, sizeof *x * (size_t)(*n * D));
    return DLRN_OK;
}

static int host_stop(void *user) {
    (void)user;
    called(STOP);
    return 0;
}

static dlrn_status host_progress(void *user, dlrn_trainer *trainer, const dlrn_train_stats *stats) {
    (void)user, (void)stats;
    called(PROGRESS);
    dlrn_trainer_describe(trainer).dictionary->param[DLRN_ENCODER_BIAS][0] =
        -1000; /* so that there is one to resample */
    dlrn_dictionary_changed(dlrn_trainer_describe(trainer).dictionary);
    return DLRN_OK;
}

static dlrn_status host_judge(void *user, const dlrn_edit *edit, double *nats, int64_t *tokens) {
    static float out[N * D];
    (void)user;
    called(JUDGE);
    *nats = edit ? 2 : 1, *tokens = N;
    return edit ? edit->edit(edit->user, 0, rows, out, N) : DLRN_OK;
}

/* What the host is asked and told comes on the thread that made the call, also where no loop runs
   there. */
TEST(callbacks_run_on_the_callers_thread) {
    dlrn_context_config cfg = {0};
    dlrn_train_config train_cfg = dlrn_train_defaults(NULL);
    dlrn_eval_config eval_cfg = dlrn_eval_defaults();
    dlrn_source source = {D, 0, host_read, NULL, NULL, NULL, NULL, NULL, 0, 0, 0};
    dlrn_language_model lm = {host_judge, NULL, NULL, 1, 1};
    dlrn_context *ctx = NULL;
    dlrn_dictionary *ae = NULL;
    dlrn_metrics m;
    int64_t elsewhere = 0;
    host = pthread_self();
    cfg.threads = WORKERS, cfg.parallel_for = on_another, cfg.stop = host_stop,
    cfg.user = &elsewhere;
    train_cfg.features = F, train_cfg.steps = STEPS, train_cfg.resample_steps = 3,
    train_cfg.resample_rows = N;
    train_cfg.buffer.capacity = N, train_cfg.buffer.read_rows = train_cfg.buffer.batch_rows = 64;
    CHECK_STATUS(dlrn_context_create(&cfg, &ctx), DLRN_OK);
    CHECK_OK(ctx, dlrn_train(ctx, &train_cfg, &source, host_progress, NULL, &ae));
    CHECK_OK(ctx, dlrn_evaluate(ae, &eval_cfg, &source, &lm, NULL, NULL, &m));
    for (int i = 0; i < CALLBACKS; i++) CHECK_MSG(calls[i] > 0, "callback %d was never called", i);
    CHECK(elsewhere > 20);
    CHECK_MSG(!strangers, "%d calls came on another thread", strangers);
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

int main(int argc, char **argv) {
    dlrn_rng rng = {8, 0, 0};
    TEST_BEGIN(argc, argv);
    for (int i = 0; i < N * D; i++) rows[i] = dlrn_rng_normal(&rng);
    RUN(the_hosts_threads_do_not_change_a_bit);
    RUN_LONG(many_threads_do_not_change_a_bit);
    RUN_LONG(contexts_share_nothing);
    RUN(callbacks_run_on_the_callers_thread);
    return TEST_END();
}
