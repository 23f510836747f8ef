/* bench.c - how fast dictlearn.h is, as ratios: each thing is run in turns with what bounds it
   (fused multiply-adds, reading, copying, or another thing), several times, and the best of the one
   is divided by the best of the other.

       build/bench [--quick] [--list] [--cpu-time] [--budget SECONDS] [--json FILE] [--tmp FOLDER]
                   [NAME...]
       build/bench --rss [evaluate:]ROWS:FEATURES:L0
       build/bench --rss RECIPE:ROWS:WIDTH:FEATURES:L0

   A NAME picks the rows whose name contains it; with a = in front, the row of just that name. The
   unit "floors" is the time that the machine's multiply-adds alone would take for the product of
   encoding, 2 rows d F of them; "of peak" is the inverse. Seconds are printed for the eye; only the
   ratios are meant to be compared.
   --cpu-time, for a machine with other work: a second is a second of processor time divided by the
   number of threads. What others take does not count then; but neither do threads that wait, so
   that work on one thread looks shared. */
#define _POSIX_C_SOURCE 200809L
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"

#define LM_IMPLEMENTATION
#include "lm/lm.h"

#include "yardsticks.h"

#include <stdarg.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum { POOL = 1 << 20, SAMPLE = 64, SERIES = 16 };

/* What a row is measured with; a buffer's `features` are the rows that it holds. */
typedef struct shape {
    int64_t rows, d, features;
    double l0;           /* 0: a fresh dictionary, half of its features on */
    const char *kernels; /* NULL: the best                                 */
    dlrn_matmul_op op;   /* of a dense product                             */
    dlrn_dtype store;    /* how a buffer holds its rows                    */
    const char *family;  /* NULL: AutoEncoder                              */
    int64_t k;           /* of a selection by k                            */
    const char *recipe;  /* of training; NULL: reference                   */
} shape;

typedef struct outcome {
    double ratio;         /* 0: not measured */
    double seconds, yard; /* best of the thing, best of what it is held against */
    double l0;            /* found                                              */
    double candidates;    /* pre-activations a row that a screen let through    */
} outcome;

typedef struct lab {
    dlrn_context *ctx; /* the best kernels, all cores */
    double budget;     /* seconds a row               */
    int quick, list, count;
    char **names; /* to be run; none: all */
    int n_names;
    const char *tmp;
    FILE *json;
    float *normal; /* [2][POOL] what weights and rows are cut from */
    double series_at[SERIES], series_cost[SERIES];
    int n_series;
} lab;

/* What can be measured of a shape. */
typedef struct kind {
    const char *unit;
    int higher;  /* is better                       */
    double goal; /* where a row has none; 0: none   */
    outcome (*measure)(lab *l, const shape *s);
    int heavy; /* always left out by --quick */
} kind;

/* ---- small things */
static int clock_share; /* 0: the wall's clock; else the time that the process had on processors, in
                           so many parts */

static double now(void) {
    struct timespec t;
    clock_gettime(clock_share ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return ((double)t.tv_sec + 1e-9 * (double)t.tv_nsec) / (clock_share ? clock_share : 1);
}

static void must(const dlrn_context *ctx, dlrn_status s) {
    if (s == DLRN_OK) return;
    fprintf(stderr, "bench: %s\n", ctx ? dlrn_error(ctx) : dlrn_name(DLRN_NAMES_STATUS, (int)s));
    exit(1);
}

static void *take(dlrn_context *ctx, int64_t count, size_t size) {
    void *p = dlrn_alloc(ctx, count, size);
    if (!p) must(ctx, DLRN_ERR_MEMORY);
    return p;
}

static dlrn_context *context_new(const char *kernels, int threads) {
    dlrn_context_config cfg = {0};
    dlrn_context *ctx = NULL;
    if (kernels) cfg.kernels = kernels;
    cfg.threads = threads;
    must(NULL, dlrn_context_create(&cfg, &ctx));
    return ctx;
}

/* Runs the thing and its yardstick in turns until the budget is spent, and keeps the best of each.
   The yardstick gets an eighth of the thing's time, so that beside a long thing it has its good
   moments, too. prepare comes before each run and is not timed. */
typedef void (*action)(void *arg);
static outcome in_turns_anew(lab *l, action prepare, action thing, void *arg, action yardstick,
                             void *yard_arg) {
    outcome o = {0, HUGE_VAL, HUGE_VAL, 0, 0};
    double start = now(), last = 0;
    int least = l->quick || prepare ? 1 : 3;
    for (int i = 0; i <= 400 && (i <= least || now() - start < l->budget); i++) {
        double spent = 0;
        do {
            double t = now();
            yardstick(yard_arg);
            t = now() - t;
            if (t < o.yard) o.yard = t;
            spent += t;
        } while (spent < last / 8);
        if (prepare) prepare(arg);
        last = now();
        thing(arg);
        last = now() - last;
        if (i && last < o.seconds) o.seconds = last; /* the first touches its memory */
        if (!i) start = now();
    }
    return o;
}

static outcome in_turns(lab *l, action thing, void *arg, action yardstick, void *yard_arg) {
    return in_turns_anew(l, NULL, thing, arg, yardstick, yard_arg);
}

static fma_burst burst_new(dlrn_context *ctx) {
    fma_burst b = {ctx, fma_loop_of(dlrn_context_describe(ctx).kernels), 20000,
                   8 * dlrn_context_describe(ctx).threads, 0};
    double best = HUGE_VAL;
    for (int i = 0; i < 3; i++) {
        double t = now();
        fma_burst_run(&b);
        best = fmin(best, now() - t);
    }
    b.rounds = (int64_t)(20000 * 0.02 / best) + 1; /* about 20 ms in all */
    return b;
}

/* Seconds of `flops` at the peak just measured. */
static double floor_of(const outcome *o, const fma_burst *b, double flops) {
    return flops / fma_burst_flops(b) * o->yard;
}

/* ---- material: rows and weights of independent normal numbers, cut from two pools */
static void fill(const lab *l, int pool, float *out, int64_t rows, int64_t d, float scale) {
    dlrn_rng rng = {(uint64_t)pool, 1, 0};
    for (int64_t i = 0; i < rows; i++) {
        const float *from =
            l->normal + pool * POOL + (int64_t)dlrn_rng_below(&rng, (uint64_t)(POOL - d));
        for (int64_t c = 0; c < d; c++) out[i * d + c] = scale * from[c];
    }
}

static float *rows_new(const lab *l, dlrn_context *ctx, int64_t rows, int64_t d) {
    float *x = (float *)take(ctx, rows * d, sizeof *x);
    fill(l, 0, x, rows, d, 1);
    return x;
}

/* Makes pre-activations normal of variance 1, and finds by bisection the bias at which l0 of them
   are positive, or the threshold, in families with thresholds, that l0 of them exceed. */
static void set_l0(const lab *l, dlrn_dictionary *ae, double l0) {
    int64_t d = ae->d_in, F = ae->features;
    if (l0 <= 0) return;
    fill(l, 1, ae->param[DLRN_ENCODER], F, d, 1 / sqrtf((float)d));
    float *x = rows_new(l, ae->ctx, SAMPLE, d),
          *pre = (float *)take(ae->ctx, SAMPLE * F, sizeof *pre), low = -1, high = 9;
    must(ae->ctx, dlrn_matmul(ae->ctx, DLRN_NT, dlrn_view(x, SAMPLE, d, d),
                              dlrn_view(ae->param[DLRN_ENCODER], F, d, d), 0,
                              dlrn_view(pre, SAMPLE, F, F), NULL));
    for (int i = 0; i < 24; i++) {
        float mid = (low + high) / 2;
        int64_t on = 0;
        for (int64_t k = 0; k < SAMPLE * F; k++) on += pre[k] > mid;
        *((double)on > l0 * SAMPLE ? &low : &high) = mid;
    }
    float *threshold = ae->param[DLRN_THRESHOLD];
    for (int64_t f = 0; f < F; f++)
        if (threshold)
            threshold[f] = low;
        else
            ae->param[DLRN_ENCODER_BIAS][f] = -low;
    dlrn_free(ae->ctx, x);
    dlrn_free(ae->ctx, pre);
    dlrn_dictionary_changed(ae);
}

static dlrn_dictionary *dictionary_new(const lab *l, dlrn_context *ctx, const shape *s) {
    dlrn_dictionary *ae = NULL;
    dlrn_dictionary_desc desc = {s->family, s->d, 0, s->features, s->k, 1, 0};
    must(ctx, dlrn_dictionary_create(ctx, &desc, &ae));
    set_l0(l, ae, s->l0);
    return ae;
}

/* ---- dense products */
typedef struct product {
    dlrn_context *ctx;
    dlrn_matmul_op op;
    int64_t m, n, k;
    float *a, *b, *c;
} product;

static void product_run(void *arg) {
    product *p = (product *)arg;
    dlrn_tensor a = dlrn_view(p->a, p->m, p->k, p->k), b = dlrn_view(p->b, p->k, p->n, p->n);
    if (p->op == DLRN_TN) a = dlrn_view(p->a, p->k, p->m, p->m);
    if (p->op == DLRN_NT) b = dlrn_view(p->b, p->n, p->k, p->k);
    must(p->ctx, dlrn_matmul(p->ctx, p->op, a, b, 0, dlrn_view(p->c, p->m, p->n, p->n), NULL));
}

/* rows x features x d stand for m x n x k */
static outcome measure_gemm(lab *l, const shape *s) {
    product p = {context_new(s->kernels, 0), s->op, s->rows, s->features, s->d, NULL, NULL, NULL};
    fma_burst peak = burst_new(p.ctx);
    p.a = rows_new(l, p.ctx, p.m, p.k);
    p.b = rows_new(l, p.ctx, p.n, p.k);
    p.c = (float *)take(p.ctx, p.m * p.n, sizeof *p.c);
    outcome o = in_turns(l, product_run, &p, fma_burst_run, &peak);
    o.ratio = floor_of(&o, &peak, 2.0 * (double)p.m * (double)p.n * (double)p.k) / o.seconds;
    dlrn_free(p.ctx, p.a), dlrn_free(p.ctx, p.b), dlrn_free(p.ctx, p.c);
    dlrn_context_destroy(p.ctx);
    return o;
}

/* ---- the training step */
typedef struct stepper {
    dlrn_context *ctx;
    dlrn_trainer *trainer;
    float *x;
    int64_t rows;
    dlrn_train_stats stats;
} stepper;

static void stepper_run(void *arg) {
    stepper *p = (stepper *)arg;
    must(p->ctx, dlrn_trainer_step_on(p->trainer, p->x, NULL, p->rows, &p->stats));
}

/* The rate is so small that L0 stays. What a recipe aims for is what it has, and the average of
   thresholds begins with the first step. */
static dlrn_train_config train_config_of(const shape *s) {
    dlrn_train_config cfg = dlrn_train_defaults(s->recipe);
    cfg.d_in = s->d, cfg.features = s->features, cfg.lr = 1e-12, cfg.warmup_steps = 0,
    cfg.log_steps = -1;
    if (cfg.k) cfg.k = s->k;
    if (cfg.threshold_beta > 0) cfg.threshold_start_step = 0;
    if (cfg.target_l0 > 0) cfg.target_l0 = s->l0;
    return cfg;
}

/* dead: so many features never fire; ghost: they get ghost gradients. */
static stepper stepper_new(const lab *l, const shape *s, int threads, int64_t dead, int ghost) {
    stepper p = {context_new(s->kernels, threads), NULL, NULL, s->rows, {0}};
    dlrn_train_config cfg = train_config_of(s);
    if (ghost) cfg.ghost_threshold = 0;
    must(p.ctx, dlrn_trainer_create(p.ctx, &cfg, NULL, NULL, &p.trainer));
    dlrn_dictionary *ae = dlrn_trainer_describe(p.trainer).dictionary;
    if (!cfg.k) set_l0(l, ae, s->l0);
    for (int64_t f = 0; f < dead; f++) ae->param[DLRN_ENCODER_BIAS][f] = -9;
    dlrn_dictionary_changed(ae);
    p.x = rows_new(l, p.ctx, s->rows, s->d);
    return p;
}

static void stepper_free(stepper *p) {
    dlrn_trainer_destroy(p->trainer);
    dlrn_free(p->ctx, p->x);
    dlrn_context_destroy(p->ctx);
}

static double encode_flops(const shape *s) {
    return 2.0 * (double)s->rows * (double)s->d * (double)s->features;
}

static outcome measure_step(lab *l, const shape *s) {
    stepper p = stepper_new(l, s, 0, 0, 0);
    fma_burst peak = burst_new(p.ctx);
    outcome o = in_turns(l, stepper_run, &p, fma_burst_run, &peak);
    o.ratio = o.seconds / floor_of(&o, &peak, encode_flops(s));
    o.l0 = p.stats.l0;
    stepper_free(&p);
    return o;
}

static outcome measure_ghost(lab *l, const shape *s) {
    stepper with = stepper_new(l, s, 0, s->features / 10, 1),
            without = stepper_new(l, s, 0, s->features / 10, 0);
    outcome o = in_turns(l, stepper_run, &with, stepper_run, &without);
    o.ratio = o.seconds / o.yard;
    o.l0 = with.stats.l0;
    if (with.stats.dead < s->features / 10)
        fprintf(stderr, "bench: expected dead features\n"), exit(1);
    stepper_free(&with);
    stepper_free(&without);
    return o;
}

static outcome measure_threads(lab *l, const shape *s) {
    stepper all = stepper_new(l, s, 0, 0, 0), one = stepper_new(l, s, 1, 0, 0);
    outcome o = in_turns(l, stepper_run, &all, stepper_run, &one);
    o.ratio = o.yard / o.seconds;
    o.l0 = all.stats.l0;
    stepper_free(&all);
    stepper_free(&one);
    return o;
}

/* ---- encode and decode */
typedef struct coder {
    dlrn_dictionary *ae;
    float *x, *f, *x_hat;
    int64_t rows;
    dlrn_sparse codes;
    dlrn_encoder *encoder; /* prepared, or NULL */
} coder;

static void prepared_run(void *arg) {
    coder *c = (coder *)arg;
    must(c->ae->ctx, dlrn_encoder_run(c->encoder, c->x, c->rows, c->f, NULL, NULL));
}

static void encode_run(void *arg) {
    coder *c = (coder *)arg;
    must(c->ae->ctx, dlrn_encode(c->ae, c->x, c->rows, c->f));
}

static void encode_sparse_run(void *arg) {
    coder *c = (coder *)arg;
    must(c->ae->ctx, dlrn_encode_sparse(c->ae, c->x, c->rows, &c->codes));
}

static void decode_sparse_run(void *arg) {
    coder *c = (coder *)arg;
    must(c->ae->ctx, dlrn_decode_sparse(c->ae, &c->codes, c->x_hat));
}

static coder coder_new(lab *l, const shape *s) {
    coder c = {dictionary_new(l, l->ctx, s),
               rows_new(l, l->ctx, s->rows, s->d),
               NULL,
               NULL,
               s->rows,
               {0},
               NULL};
    c.x_hat = (float *)take(l->ctx, s->rows * s->d, sizeof *c.x_hat);
    return c;
}

static void coder_free(coder *c) {
    dlrn_context *ctx = c->ae->ctx;
    dlrn_free(ctx, c->x), dlrn_free(ctx, c->f), dlrn_free(ctx, c->x_hat);
    dlrn_sparse_free(&c->codes);
    dlrn_encoder_destroy(c->encoder);
    dlrn_dictionary_destroy(c->ae);
}

static traffic reading_of(dlrn_context *ctx, const float *data, int64_t count) {
    traffic t = {ctx, (const char *)data, NULL, count * 4, 1, 0};
    return t;
}

/* Rows of a prepared dictionary against those of one that is not. */
static outcome measure_prepared(lab *l, const shape *s) {
    coder plain = coder_new(l, s), ready = coder_new(l, s);
    outcome o;
    plain.f = (float *)take(l->ctx, s->rows * s->features, sizeof *plain.f);
    ready.f = (float *)take(l->ctx, s->rows * s->features, sizeof *ready.f);
    must(l->ctx, dlrn_encoder_create(ready.ae, &ready.encoder));
    must(l->ctx, dlrn_encoder_prepare(ready.encoder));
    o = in_turns(l, prepared_run, &ready, encode_run, &plain);
    o.ratio = o.seconds / o.yard;
    coder_free(&plain), coder_free(&ready);
    return o;
}

static outcome measure_encode(lab *l, const shape *s) {
    coder c = coder_new(l, s);
    fma_burst peak = burst_new(l->ctx);
    traffic weights = reading_of(l->ctx, c.ae->param[DLRN_ENCODER], s->d * s->features);
    outcome o;
    c.f = (float *)take(l->ctx, s->rows * s->features, sizeof *c.f);
    if (s->rows == 1) {
        o = in_turns(l, encode_run, &c, traffic_run, &weights);
        o.ratio = o.yard / o.seconds;
    } else {
        o = in_turns(l, encode_run, &c, fma_burst_run, &peak);
        o.ratio = floor_of(&o, &peak, encode_flops(s)) / o.seconds;
    }
    coder_free(&c);
    return o;
}

static outcome measure_encode_sparse(lab *l, const shape *s) {
    coder c = coder_new(l, s);
    fma_burst peak = burst_new(l->ctx);
    outcome o = in_turns(l, encode_sparse_run, &c, fma_burst_run, &peak);
    o.ratio = o.seconds / floor_of(&o, &peak, encode_flops(s));
    o.l0 = (double)c.codes.row_ptr[s->rows] / (double)s->rows;
    coder_free(&c);
    return o;
}

/* The atoms that it touches, as bytes a second. */
static outcome measure_decode_sparse(lab *l, const shape *s) {
    coder c = coder_new(l, s);
    traffic atoms = reading_of(l->ctx, c.ae->param[DLRN_DECODER], s->d * s->features);
    encode_sparse_run(&c);
    outcome o = in_turns(l, decode_sparse_run, &c, traffic_run, &atoms);
    o.l0 = (double)c.codes.row_ptr[s->rows] / (double)s->rows;
    o.ratio = o.yard / o.seconds * o.l0 * (double)s->rows / (double)s->features;
    coder_free(&c);
    return o;
}

/* ---- evaluation: one streaming pass over a source that has its rows from the pool */
typedef struct stream {
    const lab *l;
    int64_t left, d;
    dlrn_rng rng;
} stream;

static dlrn_status stream_read(void *user, int64_t max_rows, float *x, float *y, int64_t *n) {
    stream *t = (stream *)user;
    (void)y;
    *n = max_rows < t->left ? max_rows : t->left;
    for (int64_t i = 0; i < *n; i++)
        memcpy(x + i * t->d, t->l->normal + dlrn_rng_below(&t->rng, (uint64_t)(POOL - t->d)),
               (size_t)t->d * sizeof *x);
    t->left -= *n;
    return *n ? DLRN_OK : DLRN_END;
}

static dlrn_source stream_source(stream *t) {
    dlrn_source source = {t->d, 0, stream_read, NULL, NULL, NULL, NULL, t, 0, 0, 0};
    return source;
}

typedef struct evaluation {
    const lab *l;
    dlrn_dictionary *ae;
    int64_t rows;
    dlrn_metrics metrics;
} evaluation;

static void evaluation_run(void *arg) {
    evaluation *e = (evaluation *)arg;
    stream t = {e->l, e->rows, e->ae->d_in, {2, 1, 0}};
    dlrn_source source = stream_source(&t);
    dlrn_eval_config cfg = dlrn_eval_defaults();
    cfg.rows = -1;
    must(e->ae->ctx, dlrn_evaluate(e->ae, &cfg, &source, NULL, NULL, NULL, &e->metrics));
}

static outcome measure_evaluate(lab *l, const shape *s) {
    evaluation e = {l, dictionary_new(l, l->ctx, s), s->rows, {0}};
    fma_burst peak = burst_new(l->ctx);
    outcome o = in_turns(l, evaluation_run, &e, fma_burst_run, &peak);
    o.ratio = o.seconds / floor_of(&o, &peak, encode_flops(s));
    o.l0 = e.metrics.l0;
    dlrn_dictionary_destroy(e.ae);
    return o;
}

/* ---- the buffer: a batch drawn from one at least half full, against copying as many bytes */
typedef struct drawing {
    dlrn_context *ctx;
    dlrn_buffer_config cfg;
    dlrn_buffer *buffer;
    stream rows;
} drawing;

static void drawing_refill(drawing *g) {
    g->rows.left = g->cfg.capacity;
    dlrn_source source = stream_source(&g->rows);
    dlrn_buffer_destroy(g->buffer);
    must(g->ctx, dlrn_buffer_create(g->ctx, &g->cfg, &source, DLRN_BORROWED, &g->buffer));
}

/* The batch that fills the buffer is never the best. */
static void drawing_run(void *arg) {
    drawing *g = (drawing *)arg;
    const float *x, *y;
    int64_t n, held = 0;
    if (g->buffer) held = dlrn_buffer_describe(g->buffer).unread;
    if (held < g->cfg.capacity / 2 + g->cfg.batch_rows) drawing_refill(g);
    must(g->ctx, dlrn_buffer_next(g->buffer, &x, &y, &n));
}

static double memory_available(void) {
    char line[256];
    double kb = HUGE_VAL;
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %lf", &kb) == 1) break;
    if (f) fclose(f);
    return kb * 1024;
}

static outcome measure_buffer(lab *l, const shape *s) {
    drawing g = {l->ctx, dlrn_buffer_defaults(), NULL, {l, 0, s->d, {3, 1, 0}}};
    outcome o = {0};
    uint64_t bytes;
    g.cfg.capacity = s->features, g.cfg.read_rows = 8192, g.cfg.batch_rows = s->rows;
    g.cfg.store = s->store;
    must(l->ctx, dlrn_buffer_bytes(l->ctx, &g.cfg, s->d, 0, &bytes));
    if ((double)bytes * 1.3 + 1e9 > memory_available()) return o;
    int64_t batch = s->rows * s->d * 4, turns = 8;
    char *from = (char *)take(l->ctx, batch * turns, 1), *to = (char *)take(l->ctx, batch, 1);
    traffic copy = {l->ctx, from, to, batch * turns, batch, 0};
    memset(from, 1, (size_t)copy.bytes);
    o = in_turns(l, drawing_run, &g, traffic_run, &copy);
    o.ratio = o.yard / (double)turns / o.seconds;
    dlrn_buffer_destroy(g.buffer);
    dlrn_free(l->ctx, from), dlrn_free(l->ctx, to);
    return o;
}

/* ---- rows of a file that the system has in its cache: read alone, against fread, and evaluated,
   against rows in memory. How fast the disk is, and how well it works meanwhile, does not show */
typedef struct streaming {
    const lab *l;
    dlrn_dictionary *ae;
    char path[512];
    int64_t rows, d;
    float *x;    /* [rows][d] */
    char *block; /* what fread fills, and rows that are read alone */
} streaming;

enum { STREAM_BLOCK = 4 << 20 };

static dlrn_source streaming_open(const streaming *t) {
    const char *paths[] = {t->path};
    dlrn_source_desc desc = {0};
    dlrn_source source;
    desc.paths = paths, desc.n_paths = 1, desc.epochs = 1;
    must(t->l->ctx, dlrn_source_open(t->l->ctx, &desc, &source));
    return source;
}

static void streaming_read(void *arg) {
    streaming *t = (streaming *)arg;
    dlrn_source source = streaming_open(t);
    dlrn_status s = DLRN_OK;
    for (int64_t n; s == DLRN_OK;)
        s = source.read(source.user, STREAM_BLOCK / 4 / t->d, (float *)(void *)t->block, NULL, &n);
    if (s != DLRN_END) must(t->l->ctx, s);
    dlrn_source_destroy(&source);
}

static void streaming_fread(void *arg) {
    streaming *t = (streaming *)arg;
    FILE *in = fopen(t->path, "rb");
    if (!in) must(NULL, DLRN_ERR_IO);
    while (fread(t->block, 1, STREAM_BLOCK, in) == STREAM_BLOCK) continue;
    fclose(in);
}

static void streaming_evaluate(streaming *t, dlrn_source source) {
    dlrn_eval_config cfg = dlrn_eval_defaults();
    dlrn_metrics m;
    cfg.rows = -1;
    must(t->l->ctx, dlrn_evaluate(t->ae, &cfg, &source, NULL, NULL, NULL, &m));
    dlrn_source_destroy(&source);
}

static void streaming_file(void *arg) {
    streaming_evaluate((streaming *)arg, streaming_open((streaming *)arg));
}

static void streaming_memory(void *arg) {
    streaming *t = (streaming *)arg;
    dlrn_source source;
    must(t->l->ctx, dlrn_source_from_array(t->l->ctx, t->x, NULL, t->rows, t->d, 0, 1, &source));
    streaming_evaluate(t, source);
}

static outcome measure_stream(lab *l, const shape *s) {
    streaming t = {l, NULL, "", s->rows, s->d, rows_new(l, l->ctx, s->rows, s->d), NULL};
    dlrn_writer *w;
    outcome o;
    t.block = (char *)take(l->ctx, STREAM_BLOCK, 1);
    snprintf(t.path, sizeof t.path, "%s/bench.npy", l->tmp);
    must(l->ctx, dlrn_npy_create(l->ctx, t.path, s->d, s->rows, &w));
    must(l->ctx, dlrn_npy_append(w, t.x, s->rows));
    must(l->ctx, dlrn_writer_close(w));
    if (s->features) {
        t.ae = dictionary_new(l, l->ctx, s);
        o = in_turns(l, streaming_file, &t, streaming_memory, &t);
        o.ratio = o.seconds / o.yard;
        dlrn_dictionary_destroy(t.ae);
    } else {
        o = in_turns(l, streaming_read, &t, streaming_fread, &t);
        o.ratio = o.yard / o.seconds;
    }
    remove(t.path);
    dlrn_free(l->ctx, t.x), dlrn_free(l->ctx, t.block);
    return o;
}

/* ---- loading, against reading the file into a block of memory */
typedef struct file {
    dlrn_context *ctx;
    char path[512];
    int64_t bytes;
} file;

static void file_load(void *arg) {
    file *f = (file *)arg;
    dlrn_dictionary *ae;
    must(f->ctx, dlrn_load(f->ctx, f->path, NULL, &ae));
    dlrn_dictionary_destroy(ae);
}

static void file_read(void *arg) {
    file *f = (file *)arg;
    FILE *in = fopen(f->path, "rb");
    char *bytes = (char *)malloc((size_t)f->bytes);
    if (!in || !bytes || fread(bytes, 1, (size_t)f->bytes, in) != (size_t)f->bytes)
        must(NULL, DLRN_ERR_IO);
    fclose(in);
    free(bytes);
}

static outcome measure_load(lab *l, const shape *s) {
    file f = {l->ctx, "", 0};
    dlrn_dictionary *ae = dictionary_new(l, l->ctx, s);
    snprintf(f.path, sizeof f.path, "%s/bench.pt", l->tmp);
    must(l->ctx, dlrn_save(ae, f.path));
    dlrn_dictionary_destroy(ae);
    f.bytes = (2 * s->d * s->features + s->features + s->d) * 4;
    outcome o = in_turns(l, file_load, &f, file_read, &f);
    o.ratio = o.seconds / o.yard;
    remove(f.path);
    return o;
}

/* ---- memory at its peak, in a process of its own: what a trainer takes beyond weights, moments
   and the batch; what an evaluation takes beyond weights */
static double peak_bytes(void) {
    char line[256];
    double kb = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %lf", &kb) == 1) break;
    if (f) fclose(f);
    return kb * 1024;
}

/* What --rss measures: [evaluate:]ROWS:FEATURES:L0, or RECIPE:ROWS:WIDTH:FEATURES:L0. */
static int parse_rss(const char *text, shape *s, char *recipe, int *evaluate) {
    long long rows, features, d = 512;
    double l0;
    *evaluate = !strncmp(text, "evaluate:", 9);
    *recipe = 0;
    if (sscanf(text + (*evaluate ? 9 : 0), "%lld:%lld:%lf", &rows, &features, &l0) != 3 &&
        sscanf(text, "%63[^:]:%lld:%lld:%lld:%lf", recipe, &rows, &d, &features, &l0) != 5)
        return 0;
    *s = (shape){.rows = rows, .d = d, .features = features, .l0 = l0, .k = (int64_t)l0};
    if (*recipe) s->recipe = recipe;
    return 1;
}

static int print_rss(lab *l, const char *text) {
    double known = 0, before = peak_bytes();
    int evaluate;
    char recipe[64];
    shape s;
    if (!parse_rss(text, &s, recipe, &evaluate)) return 2;
    double weights = 4.0 * (double)(2 * s.d * s.features + s.features + s.d);
    if (evaluate) {
        evaluation e = {l, dictionary_new(l, l->ctx, &s), s.rows, {0}};
        evaluation_run(&e);
        dlrn_dictionary_destroy(e.ae);
        known = weights;
    } else {
        stepper p = stepper_new(l, &s, 0, 0, 0);
        for (int i = 0; i < 3; i++) stepper_run(&p);
        stepper_free(&p);
        known = 3 * weights + 4.0 * (double)(s.rows * s.d);
    }
    printf("{\"peak\": %.0f, \"beyond\": %.0f}\n", peak_bytes(), peak_bytes() - before - known);
    return 0;
}

/* ---- the table */
static int wanted(const lab *l, const char *name) {
    for (int i = 0; i < l->n_names; i++) {
        const char *pick = l->names[i];
        if (pick[0] == '=' ? !strcmp(name, pick + 1) : strstr(name, pick) != NULL) return 1;
    }
    return l->n_names == 0;
}

static void json_number(FILE *f, const char *key, double v) {
    if (isfinite(v) && v != 0) fprintf(f, ", \"%s\": %.6g", key, v);
}

static void print_row(lab *l, const char *name, const kind *k, double aim, const shape *s,
                      const outcome *o) {
    char goal[32] = "";
    if (o->ratio <= 0) {
        printf("%-38s skipped: not enough memory\n", name);
        return;
    }
    if (aim > 0) snprintf(goal, sizeof goal, "%s %.4g", k->higher ? ">=" : "<=", aim);
    printf("%-38s %8.3f %-22s %-8s", name, o->ratio, k->unit, goal);
    if (o->seconds > 0) printf(" %9.2f ms", 1e3 * o->seconds);
    if (o->candidates > 0)
        printf(", L0 %.1f of %.1f candidates (%.2f %%)", o->l0, o->candidates,
               100 * o->candidates / (double)s->features);
    printf("\n");
    fflush(stdout);
    if (!l->json) return;
    fprintf(l->json,
            "%s\n  {\"name\": \"%s\", \"ratio\": %.4g, \"unit\": \"%s\", \"better\": \"%s\"",
            l->count++ ? "," : "", name, o->ratio, k->unit, k->higher ? "higher" : "lower");
    json_number(l->json, "goal", aim);
    fprintf(l->json, ", \"parameters\": {\"threads\": %d", dlrn_context_describe(l->ctx).threads);
    json_number(l->json, "rows", (double)s->rows);
    json_number(l->json, "d", (double)s->d);
    json_number(l->json, "F", (double)s->features);
    json_number(l->json, "L0", o->l0);
    json_number(l->json, "candidates", o->candidates);
    fprintf(l->json, ", \"kernels\": \"%s\"}",
            s->kernels ? s->kernels : dlrn_context_describe(l->ctx).kernels);
    json_number(l->json, "seconds", o->seconds);
    fprintf(l->json, "}");
}

/* --quick leaves out what takes long. goal 0: the kind's. */
static outcome run_row(lab *l, const char *name, const kind *k, double goal, shape s) {
    outcome o = {0};
    int heavy =
        k->measure == measure_buffer ? s.features > 1 << 16 : k->heavy || encode_flops(&s) > 2e10;
    if (!wanted(l, name) || (l->quick && heavy)) return o;
    if (l->list) {
        puts(name);
        return o;
    }
    o = k->measure(l, &s);
    print_row(l, name, k, goal > 0 ? goal : k->goal, &s, &o);
    return o;
}

/* A row's name, until the next one. */
DLRN_PRINTF(1, 2) static const char *name_of(const char *format, ...) {
    static char name[128];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    return name;
}

static void gemm_rows(lab *l) {
    static const kind dense = {"of peak", 1, 0.9, measure_gemm, 0};
    static const char *ops[] = {"nn", "nt", "tn"};
    static const shape at[] = {
        {.op = DLRN_NT, .rows = 2048, .features = 8192, .d = 512}, /* encode: x W^T         */
        {.op = DLRN_NN, .rows = 2048, .features = 8192, .d = 512},
        {.op = DLRN_TN, .rows = 2048, .features = 8192, .d = 512},
        {.op = DLRN_NN, .rows = 2048, .features = 512, .d = 8192},  /* decode: f W           */
        {.op = DLRN_TN, .rows = 8192, .features = 512, .d = 2048}}; /* a gradient of W: f^T g */
    for (size_t i = 0; i < sizeof at / sizeof at[0]; i++)
        run_row(l,
                name_of("gemm.%s.%dx%dx%d", ops[at[i].op], (int)at[i].rows, (int)at[i].features,
                        (int)at[i].d),
                &dense, 0, at[i]);
}

/* What a kernel set is to reach. The sets with dot products of bytes are near what the machine can
   do: 0.26 floors for the screen (0.1 with amx), 0.09 for Adam's traffic, and what the sums of rows
   take from the caches. The other sets take two instructions for such a product. A large F hides
   what does not grow with it. */
static double step_goal(const char *kernels, int64_t B, int64_t F) {
    if (!strcmp(kernels, "avx512vnni") || !strcmp(kernels, "amx"))
        return F > 8192 ? (B > 2048 ? 0.42 : 0.45) : B > 2048 ? 0.55 : 0.6;
    return !strcmp(kernels, "avx512bf16") ? 0.85 : !strcmp(kernels, "avx512") ? 1 : 1.1;
}

static const kind step = {"floors", 0, 0, measure_step, 0};

static void step_rows(lab *l) {
    static const kind ghost = {"times a step without", 0, 1.6, measure_ghost, 0};
    static const kind threads = {"times one thread", 1, 0, measure_threads, 0};
    const char *best = dlrn_context_describe(l->ctx).kernels;
    shape at[] = {{.rows = 2048, .d = 512, .features = 8192, .l0 = 100},
                  {.rows = 8192, .d = 512, .features = 8192, .l0 = 100},
                  {.rows = 2048, .d = 512, .features = 32768, .l0 = 115},
                  {.rows = 8192, .d = 512, .features = 32768, .l0 = 115}};
    for (int i = 0; i < 4; i++) {
        shape s = at[i];
        int B = (int)s.rows, F = (int)s.features;
        run_row(l, name_of("step.B%d.F%d", B, F), &step, step_goal(best, B, F), s);
        for (int k = 0; (s.kernels = dlrn_context_describe(l->ctx).available[k]) != NULL; k++)
            if (strcmp(s.kernels, "scalar") &&
                strcmp(s.kernels, best)) /* the scalar set is the oracle */
                run_row(l, name_of("step.B%d.F%d.%s", B, F, s.kernels), &step,
                        step_goal(s.kernels, B, F), s);
    }
    run_row(l, "step.ghost.B2048.F8192", &ghost, 0, at[0]);
    int n =
        dlrn_context_describe(l->ctx).threads; /* processor time does not see what threads gain */
    if (n > 1 && !clock_share) run_row(l, "step.threads.B2048.F8192", &threads, 0.95 * n, at[0]);
    at[0].l0 = 0;
    run_row(l, "step.fresh.B2048.F8192", &step, 0, at[0]);
}

/* The largest rise from one point of a series to the next, over what the line time = a + b p (least
   squares of the relative distances) rises there: 1 where there is no cliff. */
static void print_trend(lab *l, const char *name) {
    static const kind trend = {"times the trend", 0, 1.15, NULL, 0};
    double s0 = 0, s1 = 0, s2 = 0, t0 = 0, t1 = 0, worst = 0;
    for (int i = 0; i < l->n_series; i++) {
        double p = l->series_at[i], w = 1 / l->series_cost[i];
        s0 += w * w, s1 += w * w * p, s2 += w * w * p * p, t0 += w, t1 += w * p;
    }
    double b = fmax(0, (s0 * t1 - s1 * t0) / (s0 * s2 - s1 * s1)), a = fmax(0, (t0 - b * s1) / s0);
    if (a <= 0) b = t1 / s2;
    for (int i = 1; i < l->n_series; i++) {
        double rise = l->series_cost[i] / l->series_cost[i - 1];
        worst = fmax(worst, rise * (a + b * l->series_at[i - 1]) / (a + b * l->series_at[i]));
    }
    outcome o = {worst, 0, 0, 0, 0};
    shape none = {0};
    if (l->n_series > 2) print_row(l, name, &trend, trend.goal, &none, &o);
    l->n_series = 0;
}

/* One row of a series, at p. */
static void series_row(lab *l, const char *letter, int64_t p, shape s) {
    outcome o = run_row(l, name_of("grow.%s.%d", letter, (int)p), &step, 0, s);
    if (o.ratio <= 0) return;
    l->series_at[l->n_series] = (double)p;
    l->series_cost[l->n_series++] = o.ratio * encode_flops(&s);
}

static void grow_rows(lab *l) {
    static const int64_t l0[] = {10, 30, 100, 300, 1000};
    const shape s = {.rows = 2048, .d = 512, .features = 8192, .l0 = 100};
    shape t;
    for (t = s, t.features = 4096; t.features <= 131072; t.features *= 2)
        series_row(l, "F", t.features, t);
    print_trend(l, "grow.F.trend");
    for (t = s, t.d = 128; t.d <= 4096; t.d *= 2) series_row(l, "d", t.d, t);
    print_trend(l, "grow.d.trend");
    t = s;
    for (int i = 0; i < 5; i++) t.l0 = (double)l0[i], series_row(l, "L0", l0[i], t);
    print_trend(l, "grow.L0.trend");
}

static void around_rows(lab *l) {
    static const kind one = {"of read bandwidth", 1, 0.85, measure_encode, 0};
    static const kind prepared = {"of the time unprepared", 0, 0.5, measure_prepared, 0};
    static const kind dense = {"of peak", 1, 0.85, measure_encode, 0};
    static const kind sparse = {"floors", 0, 0, measure_encode_sparse, 0};
    static const kind top_k = {"floors", 0, 0.45, measure_encode_sparse, 0};
    static const kind decode = {"of read bandwidth", 1, 0.8, measure_decode_sparse, 0};
    static const kind evaluate = {"floors", 0, 0, measure_evaluate, 0};
    static const kind load = {"times reading", 0, 1, measure_load, 0};
    static const kind rows = {"of fread", 1, 1, measure_stream, 0};
    static const kind streamed = {"of the time in memory", 0, 1.05, measure_stream, 0};
    static const kind draw = {"of copy bandwidth", 1, 0.5, measure_buffer, 0};
    static const struct {
        const char *name;
        dlrn_dtype type;
    } stores[] = {{"f32", DLRN_F32}, {"f16", DLRN_F16}, {"bf16", DLRN_BF16}};
    shape s = {.rows = 1, .d = 512, .features = 32768, .l0 = 100},
          e = {16384, 512, 8192, .l0 = 100};
    run_row(l, "encode.rows1", &one, 0, s);
    run_row(l, "encode.prepared.rows1", &prepared, 0, s);
    s.rows = 256;
    run_row(l, "encode.rows256", &dense, 0, s);
    s.rows = 2048;
    run_row(l, "encode_sparse.rows2048", &sparse, 0, s);
    run_row(l, "encode_sparse.top_k.rows2048", &top_k, 0,
            (shape){2048, 512, 32768, .family = "AutoEncoderTopK", .k = 64});
    /* the size of Gemma Scope's smallest dictionaries */
    run_row(l, "encode.jump.rows1", &one, 0,
            (shape){1, 2304, 16384, .l0 = 100, .family = "JumpReluAutoEncoder"});
    run_row(l, "decode_sparse.rows2048", &decode, 0, s);
    run_row(l, "evaluate.rows16384", &evaluate, 0, e);
    s.rows = 0, s.l0 = 0;
    run_row(l, "load.pt", &load, 0, s);
    run_row(l, "stream.read", &rows, 0, (shape){.rows = 65536, .d = 512});
    run_row(l, "stream.eval", &streamed, 0, e);
    for (int k = 16; k <= 22; k += 3)
        for (int i = 0; i < 3; i++) {
            shape b = {
                .rows = 8192, .d = 512, .features = (int64_t)1 << k, .store = stores[i].type};
            run_row(l, name_of("buffer.%s.%dk", stores[i].name, 1 << (k - 10)), &draw, 0, b);
        }
}

#include "model.h"
#include "training.h"

/* ---- the machine */
static const char *cpu_name(void) {
    static char line[256];
    FILE *f = fopen("/proc/cpuinfo", "r");
    char *name = NULL;
    while (f && !name && fgets(line, sizeof line, f))
        if (!strncmp(line, "model name", 10)) name = strchr(line, ':');
    if (f) fclose(f);
    if (!name) return "unknown processor";
    name += 2;
    name[strcspn(name, "\n\"\\")] = 0;
    return name;
}

static const char *compiler(void) {
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "unknown compiler";
#endif
}

static double best_of(action a, void *arg) {
    double best = HUGE_VAL;
    for (int i = 0; i < 8; i++) {
        double t = now();
        a(arg);
        best = fmin(best, now() - t);
    }
    return best;
}

/* The yardsticks by themselves; the rows take them again. Not where rows are picked: those want to
   be quick. */
static void print_machine(lab *l) {
    int64_t bytes = 128 << 20;
    const char *name;
    printf("%s, %s, %s%s\n", cpu_name(), compiler(), dlrn_context_describe(l->ctx).text,
           clock_share ? ", processor time" : "");
    if (l->json)
        fprintf(l->json,
                "{\"machine\": {\"cpu\": \"%s\", \"threads\": %d, \"compiler\": \"%s\", \"clock\": "
                "\"%s\"",
                cpu_name(), dlrn_context_describe(l->ctx).threads, compiler(),
                clock_share ? "processor" : "wall");
    for (int i = 0; l->json && (name = dlrn_context_describe(l->ctx).available[i]) != NULL; i++)
        fprintf(l->json, "%s\"%s\"", i ? ", " : ", \"kernels\": [", name);
    if (l->json) fprintf(l->json, "]");
    for (int i = 0; l->n_names == 0 && (name = dlrn_context_describe(l->ctx).available[i]) != NULL;
         i++) {
        dlrn_context *ctx = context_new(name, 0);
        fma_burst b = burst_new(ctx);
        double gflops = fma_burst_flops(&b) * 1e-9 / best_of(fma_burst_run, &b);
        printf("%s %s %.0f", i ? "," : "GFLOPS of multiply-adds:", name, gflops);
        if (l->json) fprintf(l->json, "%s\"%s\": %.1f", i ? ", " : ", \"gflops\": {", name, gflops);
        dlrn_context_destroy(ctx);
    }
    if (l->n_names == 0) {
        char *from = (char *)take(l->ctx, bytes, 1), *to = (char *)take(l->ctx, bytes, 1);
        traffic read = {l->ctx, from, NULL, bytes, 1, 0},
                copy = {l->ctx, from, to, bytes, bytes, 0};
        memset(from, 1, (size_t)bytes);
        double read_gbs = (double)bytes * 1e-9 / best_of(traffic_run, &read);
        double copy_gbs = (double)bytes * 1e-9 / best_of(traffic_run, &copy);
        dlrn_free(l->ctx, from), dlrn_free(l->ctx, to);
        printf("; GB/s: read %.1f, copy %.1f\n\n", read_gbs, copy_gbs);
        if (l->json)
            fprintf(l->json, "}, \"read_gbs\": %.1f, \"copy_gbs\": %.1f", read_gbs, copy_gbs);
    }
    if (l->json) fprintf(l->json, "},\n \"rows\": [");
}

static int usage(void) {
    fprintf(stderr, "usage: bench [--quick] [--list] [--cpu-time] [--budget SECONDS] [--json FILE] "
                    "[--tmp FOLDER] [NAME...]\n"
                    "       bench --rss [evaluate:]ROWS:FEATURES:L0\n"
                    "       bench --rss RECIPE:ROWS:WIDTH:FEATURES:L0\n");
    return 2;
}

int main(int argc, char **argv) {
    lab l = {0};
    const char *json = NULL, *rss = NULL;
    int cpu_time = 0;
    l.budget = 1.5, l.tmp = "build/tmp";
    int i = 1;
    for (; i < argc && argv[i][0] == '-'; i++) {
        const char *option = argv[i];
        int plain = !strcmp(option, "--quick") || !strcmp(option, "--list") ||
                    !strcmp(option, "--cpu-time");
        if (!plain && i + 1 == argc) return usage();
        if (!strcmp(option, "--quick")) l.quick = 1, l.budget = 0.1;
        if (!strcmp(option, "--list")) l.list = 1;
        if (!strcmp(option, "--cpu-time")) cpu_time = 1;
        if (plain) continue;
        const char *value = argv[++i];
        if (!strcmp(option, "--budget"))
            l.budget = atof(value);
        else if (!strcmp(option, "--json"))
            json = value;
        else if (!strcmp(option, "--tmp"))
            l.tmp = value;
        else if (!strcmp(option, "--rss"))
            rss = value;
        else
            return usage();
    }
    l.names = argv + i, l.n_names = argc - i;
    l.ctx = context_new(NULL, 0);
    if (cpu_time) clock_share = dlrn_context_describe(l.ctx).threads;
    l.normal = (float *)take(l.ctx, 2 * POOL, sizeof *l.normal);
    dlrn_rng rng = {7, 1, 0};
    for (int k = 0; k < 2 * POOL; k++) l.normal[k] = dlrn_rng_normal(&rng);
    if (rss) return print_rss(&l, rss);
    if (json && !(l.json = fopen(json, "w")))
        return fprintf(stderr, "bench: cannot write %s\n", json), 1;
    if (!l.list) print_machine(&l);
    gemm_rows(&l);
    step_rows(&l);
    grow_rows(&l);
    around_rows(&l);
    model_rows(&l);
    training_rows(&l);
    if (l.json) fprintf(l.json, "\n]}\n"), fclose(l.json);
    dlrn_free(l.ctx, l.normal);
    dlrn_context_destroy(l.ctx);
    return 0;
}
