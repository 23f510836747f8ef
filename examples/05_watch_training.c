/* 05_watch_training.c - watch a training run step by step, save its state in the middle, and resume
   from there with the same bits.

       cc -O2 -fopenmp -I. examples/05_watch_training.c -o watch_training -lm
       ./watch_training */
#include <stdio.h>
#include <string.h>
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"

#define STATE "state.safetensors"
enum { DIM = 32, ROWS = 8192, STEPS = 300, STATE_AT = 150, BINS = 10 };
static float rows[ROWS * DIM]; /* [ROWS][DIM] */

static void make_rows(void) {
    dlrn_rng rng = {5, 0, 0};
    for (int i = 0; i < ROWS; i++)
        for (int k = 0; k < 3; k++) { /* three of 64 directions, low numbers more often */
            uint64_t j = dlrn_rng_below(&rng, 1 + dlrn_rng_below(&rng, 64));
            dlrn_rng direction = {6, j, 0};
            for (int c = 0; c < DIM; c++) rows[i * DIM + c] += dlrn_rng_normal(&direction);
        }
}

static dlrn_status open_buffer(dlrn_context *ctx, dlrn_buffer **buffer) {
    dlrn_source source;
    dlrn_buffer_config shuffle = dlrn_buffer_defaults();
    shuffle.capacity = ROWS, shuffle.read_rows = 1024, shuffle.batch_rows = 256;
    const int epochs = 0; /* 0: repeat without end */
    dlrn_status s = dlrn_source_from_array(ctx, rows, NULL, ROWS, DIM, 0, epochs, &source);
    return s == DLRN_OK ? dlrn_buffer_create(ctx, &shuffle, &source, DLRN_OWNED, buffer) : s;
}

static dlrn_train_config settings(void) {
    dlrn_train_config cfg = dlrn_train_defaults(NULL);
    cfg.d_in = DIM, cfg.features = 128, cfg.steps = STEPS;
    cfg.lr = 3e-3, cfg.sparsity_penalty = 0.4, cfg.warmup_steps = 30, cfg.ghost_threshold = 60;
    return cfg;
}

/* Trains to the end of the run and prints every fiftieth step. With a path it saves the state once,
   in the middle. */
static dlrn_status train(dlrn_trainer *t, const char *save_to) {
    dlrn_train_stats stats;
    dlrn_status s = DLRN_OK;
    while ((s = dlrn_trainer_step(t, &stats)) == DLRN_OK) {
        if (stats.step % 50 == 0)
            printf(
                "step %4lld  loss %7.4f  distance %7.4f  L1 %7.3f  L0 %5.1f  dead %3lld  lr %.2g\n",
                (long long)stats.step, stats.loss, stats.reconstruction_loss, stats.sparsity_loss,
                stats.l0, (long long)stats.dead, stats.lr);
        if (save_to && dlrn_trainer_describe(t).steps == STATE_AT &&
            (s = dlrn_trainer_save(t, save_to)) != DLRN_OK)
            break;
    }
    return s == DLRN_END ? DLRN_OK : s;
}

/* How often features fire, in bins from 1e-5 to 1. */
static dlrn_status print_histogram(const dlrn_dictionary *ae) {
    dlrn_evaluator *e = NULL;
    dlrn_eval_config how = dlrn_eval_defaults();
    double edge[BINS + 1];
    int64_t count[BINS];
    dlrn_status s = dlrn_evaluator_create(ae, &how, &e);
    if (s == DLRN_OK) s = dlrn_evaluator_add(e, rows, NULL, ROWS);
    if (s == DLRN_OK) s = dlrn_evaluator_histogram(e, BINS, edge, count);
    for (int b = 0; s == DLRN_OK && b < BINS; b++) {
        printf("%8.1e ", edge[b]);
        for (int64_t k = 0; k < count[b]; k++) putchar('#');
        putchar('\n');
    }
    dlrn_evaluator_destroy(e);
    return s;
}

int main(void) {
    dlrn_context *ctx = NULL;
    dlrn_buffer *first = NULL, *second = NULL;
    dlrn_trainer *whole = NULL, *resumed = NULL;
    dlrn_train_config cfg = settings();
    make_rows();
    dlrn_status s = dlrn_context_create(NULL, &ctx);

    /* One whole run. The state saved on the way is all that a run is: weights, moments, counters,
       generator, unread rows. */
    if (s == DLRN_OK) s = open_buffer(ctx, &first);
    if (s == DLRN_OK) s = dlrn_trainer_create(ctx, &cfg, NULL, first, &whole);
    if (s == DLRN_OK) s = train(whole, STATE);

    /* A second one from the same source and the saved state, as another process would do it. */
    if (s == DLRN_OK) s = open_buffer(ctx, &second);
    if (s == DLRN_OK) s = dlrn_trainer_resume(ctx, STATE, NULL, second, &resumed);
    if (s == DLRN_OK)
        printf("resumed after step %lld\n", (long long)dlrn_trainer_describe(resumed).steps - 1);
    if (s == DLRN_OK) s = train(resumed, NULL);
    if (s == DLRN_OK) {
        const dlrn_dictionary *a = dlrn_trainer_describe(whole).dictionary,
                              *b = dlrn_trainer_describe(resumed).dictionary;
        size_t bytes = (size_t)(a->features * a->d_in) * sizeof(float);
        puts(memcmp(a->param[DLRN_DECODER], b->param[DLRN_DECODER], bytes)
                 ? "different bits"
                 : "the same bits as the whole run");
        s = print_histogram(b);
    }
    if (s != DLRN_OK) fprintf(stderr, "%s\n", dlrn_error(ctx));
    remove(STATE);
    dlrn_trainer_destroy(resumed);
    dlrn_trainer_destroy(whole);
    dlrn_buffer_destroy(second);
    dlrn_buffer_destroy(first);
    dlrn_context_destroy(ctx);
    return s != DLRN_OK;
}
