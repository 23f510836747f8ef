/* 02_train_from_array.c - train a dictionary on rows in memory, and check that it finds what they
   are made of.

       cc -O2 -fopenmp -I. examples/02_train_from_array.c -o train_from_array -lm
       ./train_from_array

   Each row is a sum of three of 96 hidden directions. A good dictionary has an atom along each of
   them: the program counts the directions that it found. The dictionary is saved as trained.pt,
   which PyTorch opens, too. */
#include <stdio.h>
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"

enum { DIM = 32, DIRECTIONS = 96, ROWS = 40000, FEATURES = 192 };
static float directions[DIRECTIONS * DIM]; /* [DIRECTIONS][DIM], unit length */
static float rows[ROWS * DIM];             /* [ROWS][DIM]                    */

static void make_rows(dlrn_context *ctx) {
    dlrn_rng rng = {1, 0, 0};
    for (int j = 0; j < DIRECTIONS; j++) {
        float *a = directions + j * DIM;
        for (int c = 0; c < DIM; c++) a[c] = dlrn_rng_normal(&rng);
        float length = dlrn_norm(ctx, a, DIM);
        for (int c = 0; c < DIM; c++) a[c] /= length;
    }
    for (int i = 0; i < ROWS; i++)
        for (int k = 0; k < 3; k++) {
            int64_t j = (int64_t)dlrn_rng_below(&rng, DIRECTIONS);
            dlrn_axpy(ctx, 1 + dlrn_rng_uniform(&rng), directions + j * DIM, rows + i * DIM, DIM);
        }
}

/* Directions along which some atom points: cosine above 0.9. */
static int count_found(dlrn_context *ctx, const dlrn_dictionary *ae) {
    int found = 0;
    for (int j = 0; j < DIRECTIONS; j++) {
        float best = 0;
        for (int64_t f = 0; f < ae->features; f++) {
            float cosine =
                dlrn_dot(ctx, directions + j * DIM, ae->param[DLRN_DECODER] + f * DIM, DIM);
            best = cosine > best ? cosine : best; /* atoms have unit length, too */
        }
        found += best > 0.9f;
    }
    return found;
}

static dlrn_status train(dlrn_context *ctx, dlrn_dictionary **ae) {
    dlrn_source source;
    const int epochs = 20; /* times through the array */
    dlrn_status s = dlrn_source_from_array(ctx, rows, NULL, ROWS, DIM, 0, epochs, &source);
    if (s != DLRN_OK) return s;

    dlrn_train_config cfg = dlrn_train_defaults(NULL);
    cfg.features = FEATURES, cfg.lr = 3e-3, cfg.sparsity_penalty = 0.3;
    cfg.warmup_steps = 50;
    cfg.resample_steps = 500;   /* revive features that have died */
    cfg.buffer.capacity = ROWS; /* shuffle all rows */
    cfg.buffer.batch_rows = 512;
    s = dlrn_train(ctx, &cfg, &source, NULL, NULL, ae);
    dlrn_source_destroy(&source);
    return s;
}

/* Variance explained, L0, and how many features are alive, over all rows. */
static dlrn_status measure(dlrn_context *ctx, const dlrn_dictionary *ae, dlrn_metrics *m) {
    dlrn_source source;
    dlrn_eval_config how = dlrn_eval_defaults();
    dlrn_status s = dlrn_source_from_array(ctx, rows, NULL, ROWS, DIM, 0, 1, &source);
    if (s != DLRN_OK) return s;
    s = dlrn_evaluate(ae, &how, &source, NULL, NULL, NULL, m);
    dlrn_source_destroy(&source);
    return s;
}

int main(void) {
    dlrn_context *ctx = NULL;
    dlrn_dictionary *ae = NULL;
    dlrn_metrics m;
    dlrn_status s = dlrn_context_create(NULL, &ctx);
    if (s == DLRN_OK) make_rows(ctx);
    if (s == DLRN_OK) s = train(ctx, &ae);
    if (s == DLRN_OK) s = dlrn_save(ae, "trained.pt");
    if (s == DLRN_OK) s = measure(ctx, ae, &m);
    if (s == DLRN_OK) {
        printf("variance explained %.1f %%, L0 %.1f, alive %.1f %%\n", 100 * m.variance_explained,
               m.l0, 100 * m.share_alive);
        printf("found %d of %d directions\n", count_found(ctx, ae), DIRECTIONS);
    }
    if (s != DLRN_OK) fprintf(stderr, "%s\n", dlrn_error(ctx));
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
    return s != DLRN_OK;
}
