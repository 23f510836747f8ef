/* 07_train_batch_top_k.c - train the family that most people train today, step by step.

       cc -O2 -fopenmp -I. examples/07_train_batch_top_k.c -o train_batch_top_k -lm
       ./train_batch_top_k

   Of each batch of n rows the k n largest features stay, so that a hard row may have more than k
   and an easy one fewer. Afterwards a threshold takes the place of that selection: its running
   mean is part of the dictionary. It is saved as batch_top_k.pt, which PyTorch opens, too. */
#include <stdio.h>
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"

enum { DIM = 32, DIRECTIONS = 96, ROWS = 40000, FEATURES = 128, K = 3 };
static float directions[DIRECTIONS * DIM]; /* [DIRECTIONS][DIM] */
static float rows[ROWS * DIM];             /* [ROWS][DIM]       */

/* Each row is a sum of one to five of the directions: three on average. */
static void make_rows(dlrn_context *ctx) {
    dlrn_rng rng = {1, 0, 0};
    for (int i = 0; i < DIRECTIONS * DIM; i++) directions[i] = dlrn_rng_normal(&rng);
    for (int i = 0; i < ROWS; i++)
        for (uint64_t left = 1 + dlrn_rng_below(&rng, 5); left > 0; left--) {
            int64_t j = (int64_t)dlrn_rng_below(&rng, DIRECTIONS);
            dlrn_axpy(ctx, 0.2f, directions + j * DIM, rows + i * DIM, DIM);
        }
}

/* Called after each step: prints a line now and then. DLRN_STOPPED here would end the run. */
static dlrn_status show(void *user, dlrn_trainer *trainer, const dlrn_train_stats *stats) {
    const dlrn_dictionary *sae = dlrn_trainer_describe(trainer).dictionary;
    (void)user;
    if (stats->step % 400 == 0)
        printf("step %4d  loss %7.3f  L0 %.2f  dead %3d  threshold %.3f\n", (int)stats->step,
               stats->loss, stats->l0, (int)stats->dead, sae->formula.threshold);
    return DLRN_OK;
}

static dlrn_status train(dlrn_context *ctx, dlrn_dictionary **sae) {
    dlrn_source source;
    dlrn_status s = dlrn_source_from_array(ctx, rows, NULL, ROWS, DIM, 0, 100, &source);
    if (s != DLRN_OK) return s;

    dlrn_train_config cfg = dlrn_train_defaults("dl-batch_top_k");
    cfg.features = FEATURES, cfg.k = K;
    cfg.steps = 2000, cfg.warmup_steps = 100, cfg.decay_start = 1600;
    cfg.lr = 3e-3;                  /* -1, the default, derives it from the number of features */
    cfg.dead_rows = 20 * 512;       /* the default of 10 million rows is for long runs */
    cfg.threshold_start_step = 100; /* once the first steps are over */
    cfg.threshold_beta = 0.99;      /* a mean over the last hundred steps */
    cfg.buffer.capacity = ROWS, cfg.buffer.batch_rows = 512;
    s = dlrn_train(ctx, &cfg, &source, show, NULL, sae);
    dlrn_source_destroy(&source);
    return s;
}

int main(void) {
    dlrn_context *ctx = NULL;
    dlrn_dictionary *sae = NULL;
    dlrn_source source = {0};
    dlrn_eval_config how = dlrn_eval_defaults();
    dlrn_metrics m;
    dlrn_status s = dlrn_context_create(NULL, &ctx);
    if (!s) make_rows(ctx);
    if (!s) s = train(ctx, &sae);
    if (!s) s = dlrn_save(sae, "batch_top_k.pt");
    /* from here on it encodes by the threshold: each row alone */
    if (!s) s = dlrn_source_from_array(ctx, rows, NULL, ROWS, DIM, 0, 1, &source);
    if (!s) s = dlrn_evaluate(sae, &how, &source, NULL, NULL, NULL, &m);
    if (!s)
        printf("variance explained %.1f %%, L0 %.2f, alive %.1f %%\n", 100 * m.variance_explained,
               m.l0, 100 * m.share_alive);
    if (s) fprintf(stderr, "%s\n", dlrn_error(ctx));
    dlrn_source_destroy(&source);
    dlrn_dictionary_destroy(sae);
    dlrn_context_destroy(ctx);
    return s != DLRN_OK;
}
