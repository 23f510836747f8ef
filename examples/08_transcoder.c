/* 08_transcoder.c - train a transcoder: it reads a layer's input and predicts its output.

       cc -O2 -fopenmp -I. examples/08_transcoder.c -o transcoder -lm
       ./transcoder

   The layer here is a small MLP with random weights; in a model of your own, y is what its MLP adds
   and x is what it reads. The recipe's skip is a linear map of x: it takes what is linear in the
   layer, so that features are left for the rest. cfg.json and sae.safetensors, written to the
   current folder, open in sparsify: SparseCoder.load_from_disk("."). */
#include <stdio.h>
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"

enum { DIM = 24, HIDDEN = 64, OUT = 24, ROWS = 20000, FEATURES = 256 };
static float x[ROWS * DIM], y[ROWS * OUT]; /* [ROWS][DIM], [ROWS][OUT] */

/* y = W2 ReLU(W1 x) */
static void run_layer(void) {
    static float w1[HIDDEN * DIM], w2[OUT * HIDDEN];
    dlrn_rng rng = {2, 0, 0};
    for (int i = 0; i < HIDDEN * DIM; i++) w1[i] = dlrn_rng_normal(&rng) / 5;
    for (int i = 0; i < OUT * HIDDEN; i++) w2[i] = dlrn_rng_normal(&rng) / 8;
    for (int i = 0; i < ROWS * DIM; i++) x[i] = dlrn_rng_normal(&rng);
    for (int i = 0; i < ROWS; i++)
        for (int h = 0; h < HIDDEN; h++) {
            float a = 0;
            for (int c = 0; c < DIM; c++) a += w1[h * DIM + c] * x[i * DIM + c];
            for (int o = 0; a > 0 && o < OUT; o++) y[i * OUT + o] += w2[o * HIDDEN + h] * a;
        }
}

static dlrn_status train(dlrn_context *ctx, dlrn_dictionary **transcoder) {
    dlrn_source pairs; /* x and y, row by row */
    dlrn_status s = dlrn_source_from_array(ctx, x, y, ROWS, DIM, OUT, 30, &pairs);
    if (s != DLRN_OK) return s;
    dlrn_train_config cfg = dlrn_train_defaults("sp-skip_transcoder");
    cfg.features = FEATURES, cfg.k = 16;
    cfg.optimiser = DLRN_OPTIMISER_ADAM, cfg.lr = 3e-3; /* the recipe's signum suits long runs */
    cfg.warmup_steps = 100;
    cfg.buffer.capacity = ROWS, cfg.buffer.batch_rows = 512;
    s = dlrn_train(ctx, &cfg, &pairs, NULL, NULL, transcoder);
    dlrn_source_destroy(&pairs);
    return s;
}

int main(void) {
    dlrn_context *ctx = NULL;
    dlrn_dictionary *transcoder = NULL;
    dlrn_source pairs = {0};
    dlrn_eval_config how = dlrn_eval_defaults();
    dlrn_metrics m;
    dlrn_status s = dlrn_context_create(NULL, &ctx);
    if (!s) run_layer();
    if (!s) s = train(ctx, &transcoder);
    dlrn_save_options for_sparsify = {"sparsify", 0};
    if (!s) s = dlrn_save_as(transcoder, ".", &for_sparsify, NULL, 0);
    if (!s) s = dlrn_source_from_array(ctx, x, y, ROWS, DIM, OUT, 1, &pairs);
    if (!s) s = dlrn_evaluate(transcoder, &how, &pairs, NULL, NULL, NULL, &m);
    if (!s)
        printf("of the layer's output %.1f %% of the variance is explained, by %.1f features and a "
               "linear map\n",
               100 * m.variance_explained, m.l0);
    if (s) fprintf(stderr, "%s\n", dlrn_error(ctx));
    dlrn_source_destroy(&pairs);
    dlrn_dictionary_destroy(transcoder);
    dlrn_context_destroy(ctx);
    return s != DLRN_OK;
}
