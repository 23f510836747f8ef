/* 04_loss_recovered.c - splice dictionaries into a language model, at one site and at two at once.

       cc -O2 -fopenmp -I. examples/04_loss_recovered.c -o loss_recovered -lm && ./loss_recovered
   [DIR]

   Runs a GPT-NeoX folder (by default examples/data/tiny-neox, on a text that it samples itself),
   trains a dictionary on the output of its first MLP, and reports how much of the loss is recovered
   by it, by the identity (all of it: the upper end of the scale) and by an untrained dictionary
   (the lower end). */
#define _POSIX_C_SOURCE 200809L
#define DICTLEARN_IMPLEMENTATION
#define BPE_IMPLEMENTATION
#define DOCUMENTS_IMPLEMENTATION
#define GPTNEOX_IMPLEMENTATION
#include "dictlearn.h"
#include "bpe.h"
#include "documents.h"
#include "gptneox.h"

enum { LENGTH = 64 };
static dlrn_context *ctx;

/* Documents that the model writes itself. */
static dlrn_status keep(void *user, int64_t document, const int32_t *id, int64_t n) {
    neox_documents *d = user;
    (void)document;
    memcpy(d->id + d->start[d->count], id, (size_t)n * sizeof *id);
    d->start[d->count + 1] = d->start[d->count] + n;
    d->count += n > 1;
    return DLRN_OK;
}

static dlrn_status write_texts(neox_model *m, int64_t documents, uint64_t seed, neox_documents *d) {
    int32_t bos = neox_config_of(m)->bos;
    neox_sampling how = {documents, LENGTH, 1, 0, seed, &bos, 1, neox_config_of(m)->eos};
    memset(d, 0, sizeof *d);
    d->ctx = ctx;
    d->id = dlrn_alloc(ctx, documents * LENGTH, sizeof *d->id);
    d->start = dlrn_alloc(ctx, documents + 1, sizeof *d->start);
    if (!d->id || !d->start) return DLRN_ERR_MEMORY;
    d->start[0] = 0;
    return neox_generate(m, &how, keep, d);
}

/* A step of training on each run of documents, as their rows pass the site. */
static dlrn_status step(void *user, int tap, const float *x, float *y, int64_t n) {
    dlrn_train_stats stats;
    (void)tap;
    return dlrn_trainer_step_on(user, x, y, n, &stats);
}

static dlrn_status train(neox_model *m, neox_tap tap, const neox_documents *d,
                         dlrn_trainer **trainer) {
    dlrn_train_config cfg = dlrn_train_defaults(NULL);
    cfg.d_in = neox_config_of(m)->dim, cfg.features = 4 * cfg.d_in;
    cfg.lr = 4e-3, cfg.sparsity_penalty = 0.1, cfg.warmup_steps = 20;
    dlrn_status s = dlrn_trainer_create(ctx, &cfg, NULL, NULL, trainer);
    for (int64_t i = 0; s == DLRN_OK && i < 3 * d->count; i += 4) {
        int64_t first = i % d->count, n = d->count - first < 4 ? d->count - first : 4;
        neox_batch batch = {d->id, d->start + first, n};
        s = neox_run(m, &batch, &tap, 1, step, *trainer, 0);
    }
    return s;
}

static dlrn_status report(const char *name, neox_model *m, const neox_tap *taps,
                          const neox_documents *d, const dlrn_dictionary *const *dicts, int n) {
    neox_judge judge = {m, d, taps, n};
    dlrn_language_model lm;
    dlrn_metrics r;
    neox_language_model(&judge, &lm);
    dlrn_status s = dlrn_loss_recovered(ctx, dicts, &lm, &r);
    if (s == DLRN_OK)
        printf("%-28s %8.3f %8.3f %8.3f %9.1f %%\n", name, r.loss_original, r.loss_reconstructed,
               r.loss_zero, 100 * r.share_recovered);
    return s;
}

static dlrn_status compare(neox_model *m) {
    const int64_t d = neox_config_of(m)->dim;
    neox_tap taps[2] = {{{NEOX_MLP_OUT, 0}, {NEOX_MLP_OUT, 0}},
                        {{NEOX_MLP_OUT, 1}, {NEOX_MLP_OUT, 1}}};
    neox_documents texts = {0}, held = {0};
    dlrn_trainer *trainer = NULL;
    dlrn_dictionary *identity = NULL, *untrained = NULL;
    dlrn_status s = write_texts(m, 400, 1, &texts);
    if (s == DLRN_OK) s = write_texts(m, 32, 2, &held);
    if (s == DLRN_OK) s = train(m, taps[0], &texts, &trainer);
    dlrn_dictionary_desc same_desc = {"IdentityDict", d, 0, 0, 0, 0};
    dlrn_dictionary_desc new_desc = {"AutoEncoder", d, 0, 4 * d, 0, 1};
    if (s == DLRN_OK) s = dlrn_dictionary_create(ctx, &same_desc, &identity);
    if (s == DLRN_OK) s = dlrn_dictionary_create(ctx, &new_desc, &untrained);
    if (s == DLRN_OK) {
        const dlrn_dictionary *one[1] = {dlrn_trainer_dictionary(trainer)}, *same[1] = {identity};
        const dlrn_dictionary *new_one[1] = {untrained}, *two[2] = {one[0], identity};
        printf("%-28s %8s %8s %8s %11s\n", "nats a token", "as it is", "spliced", "zero",
               "recovered");
        s = report("identity", m, taps, &held, same, 1);
        if (s == DLRN_OK) s = report("trained", m, taps, &held, one, 1);
        if (s == DLRN_OK) s = report("untrained", m, taps, &held, new_one, 1);
        if (s == DLRN_OK) s = report("trained + identity, two sites", m, taps, &held, two, 2);
    }
    dlrn_dictionary_destroy(untrained);
    dlrn_dictionary_destroy(identity);
    dlrn_trainer_destroy(trainer);
    neox_documents_free(&held);
    neox_documents_free(&texts);
    return s;
}

int main(int argc, char **argv) {
    neox_model *m = NULL;
    dlrn_status s = dlrn_context_create(NULL, &ctx);
    if (s == DLRN_OK) s = neox_load(ctx, argc > 1 ? argv[1] : "examples/data/tiny-neox", &m);
    if (s == DLRN_OK) s = compare(m);
    if (s != DLRN_OK) fprintf(stderr, "%s\n", dlrn_error(ctx));
    neox_destroy(m);
    dlrn_context_destroy(ctx);
    return s != DLRN_OK;
}
