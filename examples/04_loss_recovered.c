/* 04_loss_recovered.c - splice dictionaries into a language model, at one site and at two at once.

       cc -O2 -fopenmp -I. examples/04_loss_recovered.c -o loss_recovered -lm
       ./loss_recovered [MODEL]

   Samples texts from a model (a Hugging Face folder, or with llama.cpp a GGUF file; by default
   examples/data/tiny-neox), trains a dictionary on the output of its first MLP, and reports how
   much of the loss it recovers. For comparison: the identity (all of it) and an untrained
   dictionary. */
#include <stdio.h>
#include <string.h>
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#define LM_IMPLEMENTATION
#include "lm/lm.h"

enum { LENGTH = 64 };
static dlrn_context *ctx;

/* Appends a document that the model has written. */
static dlrn_status keep(void *user, int64_t document, const int32_t *id, int64_t n) {
    lm_documents *d = user;
    (void)document;
    memcpy(d->id + d->start[d->count], id, (size_t)n * sizeof *id);
    d->start[d->count + 1] = d->start[d->count] + n;
    d->count += n > 1;
    return DLRN_OK;
}

static dlrn_status write_texts(lm_model *m, int64_t documents, uint64_t seed, lm_documents *d) {
    const int32_t bos = lm_config_of(m)->bos;
    lm_sampling how = {documents, LENGTH, 1, 0,    seed, &bos, 1, lm_config_of(m)->eos,
                       NULL,      NULL,   0, NULL, NULL};
    d->ctx = ctx;
    d->id = dlrn_alloc(ctx, documents * LENGTH, sizeof *d->id);
    d->start = dlrn_alloc(ctx, documents + 1, sizeof *d->start);
    if (!d->id || !d->start) return DLRN_ERR_MEMORY;
    d->start[0] = 0;
    return lm_generate(m, &how, keep, d);
}

/* A step of training on the rows of some documents, as they pass the site. */
static dlrn_status step(void *user, int tap, const float *x, float *y, int64_t n) {
    dlrn_train_stats stats;
    (void)tap;
    return dlrn_trainer_step_on(user, x, y, n, &stats);
}

static dlrn_status train(lm_model *m, lm_tap tap, const lm_documents *d, dlrn_trainer **trainer) {
    dlrn_train_config cfg = dlrn_train_defaults(NULL);
    cfg.d_in = lm_config_of(m)->dim, cfg.features = 4 * cfg.d_in;
    cfg.lr = 4e-3, cfg.sparsity_penalty = 0.1, cfg.warmup_steps = 20;
    dlrn_status s = dlrn_trainer_create(ctx, &cfg, NULL, NULL, trainer);
    for (int64_t i = 0; s == DLRN_OK && i < 3 * d->count; i += 4) {
        int64_t first = i % d->count, n = d->count - first < 4 ? d->count - first : 4;
        lm_batch batch = {d->id, d->start + first, n};
        s = lm_run(m, &batch, &tap, 1, step, *trainer, 0);
    }
    return s;
}

static dlrn_status report(const char *name, lm_model *m, const lm_tap *taps, const lm_documents *d,
                          const dlrn_dictionary *const *dicts, int n) {
    lm_judge judge = {m, d, taps, n, NULL};
    dlrn_language_model lm;
    dlrn_metrics r;
    lm_language_model(&judge, &lm);
    dlrn_status s = dlrn_loss_recovered(ctx, dicts, &lm, &r);
    if (s == DLRN_OK)
        printf("%-28s %8.3f %8.3f %8.3f %9.1f %%\n", name, r.loss_original, r.loss_reconstructed,
               r.loss_zero, 100 * r.share_recovered);
    return s;
}

static dlrn_status compare(lm_model *m) {
    const int64_t d = lm_config_of(m)->dim;
    lm_tap taps[2] = {0};
    lm_documents texts = {0}, held = {0};
    dlrn_trainer *trainer = NULL;
    dlrn_dictionary *identity = NULL, *untrained = NULL;
    dlrn_dictionary_desc of_identity = {.family = "IdentityDict", .d_in = d};
    dlrn_dictionary_desc of_untrained = {.d_in = d, .features = 4 * d, .seed = 1};
    dlrn_status s = lm_site_named(m, "mlp_out", 0, &taps[0].x);
    if (s == DLRN_OK) s = lm_site_named(m, "mlp_out", 1, &taps[1].x);
    taps[0].y = taps[0].x, taps[1].y = taps[1].x;
    if (s == DLRN_OK) s = write_texts(m, 400, 1, &texts);
    if (s == DLRN_OK) s = write_texts(m, 32, 2, &held);
    if (s == DLRN_OK) s = train(m, taps[0], &texts, &trainer);
    if (s == DLRN_OK) s = dlrn_dictionary_create(ctx, &of_identity, &identity);
    if (s == DLRN_OK) s = dlrn_dictionary_create(ctx, &of_untrained, &untrained);
    if (s == DLRN_OK) {
        const dlrn_dictionary *one[1] = {dlrn_trainer_describe(trainer).dictionary},
                              *same[1] = {identity};
        const dlrn_dictionary *new_one[1] = {untrained}, *two[2] = {one[0], identity};
        printf("%-28s %8s %8s %8s %11s\n", "nats a token", "original", "spliced", "zero",
               "recovered");
        s = report("identity", m, taps, &held, same, 1);
        if (s == DLRN_OK) s = report("trained", m, taps, &held, one, 1);
        if (s == DLRN_OK) s = report("untrained", m, taps, &held, new_one, 1);
        if (s == DLRN_OK) s = report("trained + identity, two sites", m, taps, &held, two, 2);
    }
    dlrn_dictionary_destroy(untrained);
    dlrn_dictionary_destroy(identity);
    dlrn_trainer_destroy(trainer);
    lm_documents_free(&held);
    lm_documents_free(&texts);
    return s;
}

int main(int argc, char **argv) {
    lm_model *m = NULL;
    dlrn_status s = dlrn_context_create(NULL, &ctx);
    if (s == DLRN_OK) s = lm_load(ctx, argc > 1 ? argv[1] : "examples/data/tiny-neox", &m);
    if (s == DLRN_OK) s = compare(m);
    if (s != DLRN_OK) fprintf(stderr, "%s\n", dlrn_error(ctx));
    lm_destroy(m);
    dlrn_context_destroy(ctx);
    return s != DLRN_OK;
}
