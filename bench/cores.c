/* cores.c - records how a piece of work is cut into loops and tasks: one line for each loop, with
   the time of each of its tasks, and the time between loops. bench/cores.py simulates from it how
   long the work would take on many cores.

       build/cores WHAT ROWS WIDTH FEATURES THREADS,THREADS,... REPEATS

   WHAT: step:RECIPE, auxk:RECIPE or ghosts:RECIPE (a tenth of the features is dead), encode,
   evaluate, buffer, survey. A row of several layers (cc-: 2, clt-: 4) has WIDTH numbers in all, and
   FEATURES are of all parts. The library is told that it has THREADS threads, since their number
   says how loops are cut; the numbers take turns, so that a slow second counts for all of them. But
   its loops come to a parallel_for of this program, which runs the tasks one by one. Times are
   processor time of this thread, so that other programs do not count.

   Output, for each repetition: `begin THREADS`, lines `BODY SERIAL TASK TASK ...`, and `end
   SERIAL`. BODY is the address of the loop's function less that of `recorder`; times are in ns;
   SERIAL is the time since the loop before, with short loops, which the library keeps on the
   calling thread. For a step a line `bytes WEIGHTS MOMENTS GRADIENTS LISTS ROWS` follows (see
   count_bytes). */
#define _POSIX_C_SOURCE 200809L
#include "dictlearn.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { POOL = 1 << 20, L0 = 100, K = 64, CONTEXT = 128 };

static struct {
    int on;
    double last, cost; /* the clock at the end of the last loop; what reading the clock takes */
    double *times;     /* [room] ns: for each loop its serial time, then its tasks            */
    intptr_t *body;    /* [loops] */
    int64_t *tasks;    /* [loops] */
    int64_t loops, n, room, loops_room;
} record;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void put(double ns) {
    if (record.n == record.room) {
        record.room = 2 * record.room + 1024;
        record.times = (double *)realloc(record.times, (size_t)record.room * sizeof(double));
        if (!record.times) exit(1);
    }
    record.times[record.n++] = ns > record.cost ? ns - record.cost : 0;
}

/* The context's parallel_for; its address is the anchor of the other addresses. */
void recorder(void *user, int64_t n_tasks, dlrn_parallel_body body, void *arg);
void recorder(void *user, int64_t n_tasks, dlrn_parallel_body body, void *arg) {
    double from = now(), to;
    (void)user;
    if (!record.on) {
        for (int64_t i = 0; i < n_tasks; i++) body(arg, i, 0);
        return;
    }
    if (record.loops == record.loops_room) {
        record.loops_room = 2 * record.loops_room + 64;
        record.body =
            (intptr_t *)realloc(record.body, (size_t)record.loops_room * sizeof(intptr_t));
        record.tasks =
            (int64_t *)realloc(record.tasks, (size_t)record.loops_room * sizeof(int64_t));
        if (!record.body || !record.tasks) exit(1);
    }
    record.body[record.loops] = (intptr_t)body - (intptr_t)recorder;
    record.tasks[record.loops++] = n_tasks;
    put(from - record.last);
    for (int64_t i = 0; i < n_tasks; i++) {
        from = now();
        body(arg, i, 0);
        to = now();
        put(to - from);
    }
    record.last = now();
}

static void begin(void) {
    record.loops = record.n = 0;
    record.on = 1;
    record.last = now();
}

static void end(int threads) {
    double serial = now() - record.last;
    const double *t = record.times;
    record.on = 0;
    printf("begin %d\n", threads);
    for (int64_t i = 0; i < record.loops; i++) {
        printf("%lld %.0f", (long long)record.body[i], *t++);
        for (int64_t k = 0; k < record.tasks[i]; k++) printf(" %.0f", *t++);
        printf("\n");
    }
    printf("end %.0f\n", serial);
}

static void must(const dlrn_context *ctx, dlrn_status s) {
    if (s == DLRN_OK) return;
    fprintf(stderr, "cores: %s\n", ctx ? dlrn_error(ctx) : dlrn_name(DLRN_NAMES_STATUS, (int)s));
    exit(1);
}

/* Normal numbers, cut from a pool at random places. */
static float *pool;
static void fill(float *out, int64_t rows, int64_t d, float scale, dlrn_rng *rng) {
    for (int64_t i = 0; i < rows; i++) {
        const float *from = pool + dlrn_rng_below(rng, (uint64_t)(POOL - d));
        for (int64_t c = 0; c < d; c++) out[i * d + c] = scale * from[c];
    }
}

/* Pre-activations become normal of variance 1, and biases such that L0 of them are positive. */
static void set_l0(dlrn_dictionary *ae) {
    dlrn_rng rng = {2, 1, 0};
    double low = 0, high = 9;
    const double want = (double)L0 / (double)ae->features;
    fill(ae->param[DLRN_ENCODER], ae->features, ae->d_in, 1 / sqrtf((float)ae->d_in), &rng);
    for (int i = 0; i < 40; i++) {
        double mid = (low + high) / 2;
        *(0.5 * erfc(mid / sqrt(2.0)) > want ? &low : &high) = mid;
    }
    for (int64_t f = 0; f < ae->features; f++) ae->param[DLRN_ENCODER_BIAS][f] = -(float)low;
    dlrn_dictionary_changed(ae);
}

/* One number of threads, and what its work needs. */
typedef struct run {
    dlrn_context *ctx;
    const char *what; /* without what follows the colon */
    const char *recipe;
    int64_t n, d, features;
    int threads;
    float *x; /* [n][d] */
    dlrn_train_config cfg;
    dlrn_trainer *trainer;
    dlrn_dictionary *ae;
    dlrn_encoder *encoder;
    dlrn_evaluator *evaluator;
    dlrn_sparse codes;
    dlrn_source source;
    dlrn_buffer *buffer;
} run;

/* What a step reads and writes, counted as if each of its phases moved every byte once between the
   memory and a core: what lies in a cache when it is needed again costs less, what is gathered from
   anywhere costs more.
   weights    lists read the encoder, x_hat the decoder, the update reads and writes both; a norm
              that is limited needs the atoms once more, and both another time for the gradients
   moments    read and written; one for each weight, two with a beta1
   gradients  only where their norm is limited: written; read to be measured, and atoms written
              again; scaled; read by the update
   lists      8 bytes an active feature: written, counted, read twice by rows and once by features
   rows       x checked and read, z written and read for the screen, which writes and reads a
              quarter; x_hat written; the target and e read; e and z read for the gradients */
static void count_bytes(const dlrn_dictionary *ae, const dlrn_train_config *cfg, int64_t n,
                        double l0) {
    const double row = 4.0 * (double)n, in = (double)ae->d_in, out = (double)ae->d_out;
    double weights = 4.0 * (double)ae->features * (in + out);
    for (int64_t i = 0; i < ae->n_parts; i++) {
        const dlrn_dictionary *part = ae->part[i].dict;
        if (!i) weights = 0;
        weights += 4.0 * (double)part->features * (double)(part->d_in + part->d_out);
    }
    const int clips = cfg->clip > 0;
    printf("bytes %.0f %.0f %.0f %.0f %.0f\n", weights * (clips ? 4.5 : 3),
           weights * 2 * (cfg->beta1 > 0 ? 2 : 1), clips ? weights * 4.5 : 0,
           5 * 8 * l0 * (double)n, row * (in * (1 + 1 + 1 + 1 + 0.5 + 1) + out * 3));
}

static void prepare_step(run *r) {
    const int dead = strcmp(r->what, "step") != 0;
    dlrn_train_config *cfg = &r->cfg;
    *cfg = dlrn_train_defaults(r->recipe);
    if (!strncmp(r->recipe, "clt-", 4)) cfg->layers = 4;
    cfg->d_in = r->d, cfg->features = r->features, cfg->lr = 1e-12, cfg->warmup_steps = 0;
    cfg->log_steps = -1;
    if (cfg->k) cfg->k = K;
    if (cfg->target_l0 > 0) cfg->target_l0 = L0;
    if (!strcmp(r->what, "ghosts")) cfg->ghost_threshold = 0;
    if (!strcmp(r->what, "auxk")) cfg->dead_rows = r->n;
    must(r->ctx, dlrn_trainer_create(r->ctx, cfg, NULL, NULL, &r->trainer));
    dlrn_dictionary *ae = dlrn_trainer_describe(r->trainer).dictionary;
    if (!cfg->k) set_l0(ae);
    for (int64_t f = 0; dead && f < r->features / 10; f++) ae->param[DLRN_ENCODER_BIAS][f] = -99;
    dlrn_dictionary_changed(ae);
}

static dlrn_status seen(void *user, const dlrn_feature_report *report) {
    (void)user, (void)report;
    return DLRN_OK;
}

static void survey(const run *r, int recorded) {
    enum { REPORTED = 512 };
    dlrn_survey *s = NULL;
    const int64_t contexts = r->n / CONTEXT;
    int64_t *start = (int64_t *)malloc((size_t)(contexts + 1) * sizeof *start), list[REPORTED];
    int32_t *id = (int32_t *)malloc((size_t)r->n * sizeof *id);
    if (!start || !id) exit(1);
    for (int64_t i = 0; i <= contexts; i++) start[i] = i * CONTEXT;
    for (int64_t i = 0; i < r->n; i++) id[i] = (int32_t)(i * 7919 % 1000);
    for (int64_t i = 0; i < REPORTED; i++) list[i] = i;
    if (recorded) begin();
    must(r->ctx, dlrn_survey_create(r->ae, NULL, &s));
    must(r->ctx, dlrn_survey_add(s, r->x, id, start, contexts, NULL));
    must(r->ctx, dlrn_survey_report(s, list, REPORTED, seen, NULL));
    if (recorded) end(r->threads);
    dlrn_survey_destroy(s);
    free(start), free(id);
}

/* features: the rows that the buffer holds. */
static void prepare_buffer(run *r) {
    dlrn_buffer_config cfg = dlrn_buffer_defaults();
    must(r->ctx, dlrn_source_from_array(r->ctx, r->x, NULL, r->n, r->d, 0, 0, &r->source));
    cfg.capacity = r->features, cfg.read_rows = r->n, cfg.batch_rows = r->n;
    must(r->ctx, dlrn_buffer_create(r->ctx, &cfg, &r->source, DLRN_BORROWED, &r->buffer));
}

static void prepare(run *r) {
    dlrn_context_config cfg = {0};
    dlrn_dictionary_desc desc = {NULL, r->d, 0, r->features, 0, 1, 0};
    cfg.threads = r->threads;
    cfg.parallel_for = recorder;
    must(NULL, dlrn_context_create(&cfg, &r->ctx));
    if (r->recipe) {
        prepare_step(r);
        return;
    }
    if (!strcmp(r->what, "buffer")) {
        prepare_buffer(r);
        return;
    }
    must(r->ctx, dlrn_dictionary_create(r->ctx, &desc, &r->ae));
    set_l0(r->ae);
    must(r->ctx, dlrn_encoder_create(r->ae, &r->encoder));
    must(r->ctx, dlrn_evaluator_create(r->ae, NULL, &r->evaluator));
}

static void once(run *r, int recorded) {
    dlrn_train_stats stats;
    const float *got, *y;
    int64_t n;
    if (!strcmp(r->what, "survey")) {
        survey(r, recorded);
        return;
    }
    if (recorded) begin();
    if (r->recipe) must(r->ctx, dlrn_trainer_step_on(r->trainer, r->x, NULL, r->n, &stats));
    if (!strcmp(r->what, "encode"))
        must(r->ctx, dlrn_encoder_run(r->encoder, r->x, r->n, NULL, &r->codes, NULL));
    if (!strcmp(r->what, "evaluate"))
        must(r->ctx, dlrn_evaluator_add(r->evaluator, r->x, NULL, r->n));
    if (!strcmp(r->what, "buffer")) must(r->ctx, dlrn_buffer_next(r->buffer, &got, &y, &n));
    if (!recorded) return;
    end(r->threads);
    if (r->recipe)
        count_bytes(dlrn_trainer_describe(r->trainer).dictionary, &r->cfg, r->n, stats.l0);
}

static void finish(run *r) {
    dlrn_trainer_destroy(r->trainer);
    dlrn_sparse_free(&r->codes);
    dlrn_encoder_destroy(r->encoder);
    dlrn_evaluator_destroy(r->evaluator);
    dlrn_buffer_destroy(r->buffer);
    if (r->buffer) dlrn_source_destroy(&r->source);
    dlrn_dictionary_destroy(r->ae);
    dlrn_context_destroy(r->ctx);
}

int main(int argc, char **argv) {
    enum { MOST = 16, WARM = 2 };
    dlrn_rng rng = {3, 1, 0};
    run r[MOST] = {{0}};
    int runs = 0;
    if (argc != 7)
        return fprintf(stderr, "usage: cores WHAT ROWS WIDTH FEATURES THREADS,... REPEATS\n"), 2;
    char *colon = strchr(argv[1], ':');
    if (colon) *colon = 0;
    pool = (float *)malloc(POOL * sizeof *pool);
    float *x = (float *)malloc((size_t)atoll(argv[2]) * (size_t)atoll(argv[3]) * sizeof *x);
    if (!pool || !x) return 1;
    for (int64_t i = 0; i < POOL; i++) pool[i] = dlrn_rng_normal(&rng);
    fill(x, atoll(argv[2]), atoll(argv[3]), 1, &rng);
    for (char *p = argv[5]; p && runs < MOST; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL) {
        run *one = &r[runs++];
        one->what = argv[1], one->recipe = colon ? colon + 1 : NULL, one->x = x;
        one->n = atoll(argv[2]), one->d = atoll(argv[3]), one->features = atoll(argv[4]);
        one->threads = atoi(p);
        prepare(one);
    }
    record.cost = HUGE_VAL;
    for (int i = 0; i < 1000; i++) {
        double t = now();
        record.cost = fmin(record.cost, now() - t);
    }
    for (int i = -WARM; i < atoi(argv[6]); i++) /* the first runs touch their memory */
        for (int k = 0; k < runs; k++) once(&r[k], i >= 0);
    for (int k = 0; k < runs; k++) finish(&r[k]);
    free(pool), free(x), free(record.times), free(record.body), free(record.tasks);
    return 0;
}
