/* 03_own_model.c - plug in a model of your own with two callbacks.

       cc -O2 -fopenmp -I. examples/03_own_model.c -o own_model -lm
       ./own_model

   The library never runs a model. It asks a dlrn_source for rows of activations, and a
   dlrn_language_model for the cross-entropy while an edit changes those activations. Here the model
   is a table: token t has a vector of width DIM, a readout turns vectors into predictions of the
   next token, and the text is the cycle 0, 1, ..., 63. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"

enum { DIM = 24, VOCAB = 64, TOKENS = 4096 };

typedef struct my_model {
    float vector[VOCAB * DIM]; /* [VOCAB][DIM] the activation at each token */
    int next;                  /* where in the text the source reads next   */
} my_model;

/* Callback 1: up to max_rows activations, in the order of the text. */
static dlrn_status read_rows(void *user, int64_t max_rows, float *x, float *y, int64_t *n) {
    my_model *m = user;
    (void)y; /* for sources with a target: the row to reconstruct */
    for (*n = 0; *n < max_rows && m->next < 100 * TOKENS; (*n)++, m->next++)
        memcpy(x + *n * DIM, m->vector + m->next % VOCAB * DIM, DIM * sizeof *x);
    return *n ? DLRN_OK : DLRN_END;
}

/* -log p(next) after an activation. Token v's logit is the activation's product with the vector of
   the token before v. */
static double surprise(const my_model *m, const float *activation, int next) {
    double logit[VOCAB], sum = 0;
    for (int v = 0; v < VOCAB; v++) {
        const float *w = m->vector + (v + VOCAB - 1) % VOCAB * DIM;
        logit[v] = 0;
        for (int c = 0; c < DIM; c++) logit[v] += (double)(activation[c] * w[c]) / 2;
        sum += exp(logit[v]);
    }
    return log(sum) - logit[next];
}

/* Callback 2: the mean surprise over the text. `edit` may change the activations on the way. */
static dlrn_status cross_entropy(void *user, const dlrn_edit *edit, double *nats, int64_t *tokens) {
    const my_model *m = user;
    float x[VOCAB * DIM]; /* one round of the cycle at a time */
    *nats = 0;
    for (int t = 0; t < TOKENS; t += VOCAB) {
        memcpy(x, m->vector, sizeof x);
        dlrn_status s = edit ? edit->edit(edit->user, 0, x, x, VOCAB) : DLRN_OK; /* site 0 */
        if (s != DLRN_OK) return s;
        for (int i = 0; i < VOCAB; i++) *nats += surprise(m, x + i * DIM, (i + 1) % VOCAB) / TOKENS;
    }
    *tokens = TOKENS;
    return DLRN_OK;
}

static dlrn_status train(dlrn_context *ctx, const dlrn_source *source, dlrn_dictionary **ae) {
    dlrn_train_config cfg = dlrn_train_defaults(NULL);
    cfg.features = 128, cfg.lr = 3e-3, cfg.sparsity_penalty = 0.3, cfg.warmup_steps = 50;
    cfg.buffer.capacity = 8192;
    cfg.buffer.read_rows = 1024;
    cfg.buffer.batch_rows = 256;
    return dlrn_train(ctx, &cfg, source, NULL, NULL, ae);
}

int main(void) {
    static my_model model;
    dlrn_rng rng = {3, 0, 0};
    for (int i = 0; i < VOCAB * DIM; i++) model.vector[i] = dlrn_rng_normal(&rng);

    dlrn_source source = {0};
    source.d_in = DIM, source.read = read_rows, source.user = &model;
    dlrn_language_model lm = {0};
    lm.cross_entropy = cross_entropy, lm.user = &model, lm.sites = 1, lm.documents = 1;

    dlrn_context *ctx = NULL;
    dlrn_dictionary *ae = NULL;
    dlrn_metrics m;
    dlrn_status s = dlrn_context_create(NULL, &ctx);
    if (s == DLRN_OK) s = train(ctx, &source, &ae);
    model.next = 0; /* evaluate on the text from its beginning */
    dlrn_eval_config how = dlrn_eval_defaults();
    if (s == DLRN_OK) s = dlrn_evaluate(ae, &how, &source, &lm, NULL, NULL, &m);
    if (s == DLRN_OK) {
        printf("variance explained %.1f %%, L0 %.1f\n", 100 * m.variance_explained, m.l0);
        printf("cross-entropy %.3f, reconstructed %.3f, zero %.3f: recovered %.1f %%\n",
               m.loss_original, m.loss_reconstructed, m.loss_zero, 100 * m.share_recovered);
    }
    if (s != DLRN_OK) fprintf(stderr, "%s\n", dlrn_error(ctx));
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
    return s != DLRN_OK;
}
