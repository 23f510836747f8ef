/* look.h - what the features of a dictionary stand for, on one page - MIT licence

   Do this in one file, after dictlearn.h and lm.h:

       #define LOOK_IMPLEMENTATION
       #include "look.h"

   It runs a model over a text and hands the activations to a dlrn_survey, adds what the weights
   alone say of a feature (the tokens that its atom makes likely, its nearest atoms, its largest
   coordinates), and writes all of that as a page for a browser, from a template, or as JSON with
   the keys of SAEDashboard and Neuronpedia.

       dlrn_survey_create(dict, &cfg, &survey);
       look_sweep(&about, docs, &reading, rows, NULL, NULL, survey);
       n = look_choose(dict, survey, 100, list);
       look_write_page(&about, survey, list, n, "examples/program/page.html", "features.html");

   CONTENTS
   >>interface   what is looked at, the sweep, the choice of features, weights, writers
   >>sweep       the model's activations into a survey
   >>choose      features that are worth a look
   >>weights     logit effects, neighbours, coordinates
   >>text        the one writer of JSON
   >>page        the page's data, packed examples
   >>dashboard   SAEDashboard's keys
*/
#ifndef LOOK_H
#define LOOK_H

#ifdef __GNUC__
#define LOOK_API __attribute__((unused)) static
#else
#define LOOK_API static
#endif

/* ------------------------------------------------------------------------------------------ */
// >>interface

enum {
    LOOK_BINS = 50,      /* of both histograms                                                 */
    LOOK_INTERVALS = 5,  /* of activations, from which examples are drawn                      */
    LOOK_LOGITS = 10,    /* tokens up, and tokens down                                         */
    LOOK_NEAR = 10,      /* neighbours of a feature                                            */
    LOOK_ALIGNED = 3,    /* coordinates                                                        */
    LOOK_BEFORE = 32,    /* tokens of the page's windows before the one that fires, ...        */
    LOOK_AFTER = 16,     /* ... and after it                                                   */
    LOOK_PAGE_ALL = 1000 /* features of a page: with more it is slow to open                   */
};

/* What is looked at. All pointers are borrowed as long as calls use it. Names are printed as they
   are: give them without folders, so that a page does not reveal where it was made. */
typedef struct look_about {
    lm_model *model;
    lm_tokenizer *tok;
    const dlrn_dictionary *dict;
    lm_tap tap;
    const char *model_name, *dict_name, *site, *text_name;
    int64_t layer, ctx_len;   /* of the site; tokens of a context                                */
    const char *const *notes; /* [n_notes] sentences to print besides look.h's own                */
    int64_t n_notes;
    int64_t *sinks; /* NULL, or where writers put how many features are strongest on the first
                       token of a context                                                       */
    int compat;     /* 1: JSON as SAEDashboard 0.8 writes it, with its roundings and defects     */
} look_about;

/* The survey that the writers below need: the library's defaults, with windows of whole contexts
   where JSON is to be written. */
LOOK_API dlrn_survey_config look_survey_defaults(int whole_contexts, int compat);

/* Called after each run of the model; anything but DLRN_OK ends the sweep with that. */
typedef dlrn_status (*look_progress)(void *user, const dlrn_survey *survey);

/* Runs the model over the documents of a reader, whose text need not fit in memory, until `rows`
   rows were added, and adds them to the survey. how->choice leaves rows out of all figures; its
   count grows. progress NULL: none. DLRN_ERR_VALUE: a text without a document. */
LOOK_API dlrn_status look_sweep(const look_about *about, doc_reader *docs, const lm_reading *how,
                                int64_t rows, look_progress progress, void *user,
                                dlrn_survey *survey);

/* Which features to show where nobody has named any: those that fire on 0.1 to 5 % of the counted
   rows, the largest maximum first; then others that fire, in the same order. list [want]; returns
   how many there are. -1: no memory. */
LOOK_API int64_t look_choose(const dlrn_dictionary *dict, const dlrn_survey *survey, int64_t want,
                             int64_t *list);

/* A coordinate, or another feature, or a token, with a figure. */
typedef struct look_entry {
    int32_t index;
    float value;
    double share; /* of a coordinate: |value| over the sum of all coordinates' */
} look_entry;

/* What the weights alone say of a feature. */
typedef struct look_weights {
    double norm; /* of its atom; NaN: the family has none */
    int aligned; /* entries of the next two               */
    look_entry align[LOOK_ALIGNED], align_in[LOOK_ALIGNED]; /* the atom's largest entries, by their
                                                               sign; those of the encoder's row */
    int nearest_count, nearest_in_count;
    look_entry nearest[LOOK_NEAR], nearest_in[LOOK_NEAR]; /* the nearest atoms, and encoder rows, by
                                                       cosine */
    int logits; /* entries of the next two; 0: the atom is not added to the residual stream */
    look_entry up[LOOK_LOGITS], down[LOOK_LOGITS]; /* the tokens with the largest and the smallest
                                                      effects, the outermost first */
    float low, high;                               /* of the effects on all tokens */
    int64_t histogram[LOOK_BINS];                  /* of these effects, from low to high */
} look_weights;

/* Figures of the weights of list [n]. *out [n] is owned by the caller: dlrn_free. */
LOOK_API dlrn_status look_weights_of(const look_about *about, const int64_t *list, int64_t n,
                                     look_weights **out);
/* *has: whether an atom has effects on the logits: the site adds to the residual stream, and the
   engine knows how that becomes logits. */
LOOK_API dlrn_status look_has_logits(const look_about *about, int *has);

/* The length of the part of a template before the data, which is where its one ">@DATA@<" has the
   word @DATA@; -1: it has none, or several. */
LOOK_API int64_t look_template(const char *page, int64_t size);
/* Appends the page of features list [n] to a file: the template [size] with the data put in.
   weights [n] of the same list. The same bytes for any number of threads and any kernels. The
   survey's windows may be wider than the page's; the page cuts them. DLRN_ERR_FORMAT: a template
   without a place for data. */
LOOK_API dlrn_status look_page(const look_about *about, dlrn_survey *survey,
                               const look_weights *weights, const int64_t *list, int64_t n,
                               const char *page, int64_t size, dlrn_writer *w);
/* The same in one call: weights, the template's file, a new file for the page. */
LOOK_API dlrn_status look_write_page(const look_about *about, dlrn_survey *survey,
                                     const int64_t *list, int64_t n, const char *page_template,
                                     const char *path);
/* Whether a feature is strongest on the first token of a context, where many models have
   activations far longer than elsewhere. */
LOOK_API int look_is_sink(const dlrn_feature_report *report);
/* A sentence that says so where most of n features are; 0: they are not. */
LOOK_API int look_sink_note(int64_t sinks, int64_t n, char *text, size_t size);
/* Appends {"features": [...]} with SAEDashboard's keys, and further ones unless about->compat. The
   survey's windows should be whole contexts. */
LOOK_API dlrn_status look_json(const look_about *about, dlrn_survey *survey,
                               const look_weights *weights, const int64_t *list, int64_t n,
                               dlrn_writer *w);

/* SAELens' fold_W_dec_norm, which SAEDashboard calls first: atoms of length 1, with their lengths
   in encoder, bias and threshold. 0: this family's function would not stay the same, so nothing is
   done. The dictionary must own its parameters. */
LOOK_API int look_fold_norms(dlrn_dictionary *dict);

#endif /* LOOK_H */

#ifdef LOOK_IMPLEMENTATION
#undef LOOK_IMPLEMENTATION

#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOOK_TRY(call)                                                                             \
    do {                                                                                           \
        dlrn_status look_s = (call);                                                               \
        if (look_s != DLRN_OK) return look_s;                                                      \
    } while (0)

/* ------------------------------------------------------------------------------------------ */
// >>sweep

LOOK_API dlrn_survey_config look_survey_defaults(int whole_contexts, int compat) {
    dlrn_survey_config cfg = dlrn_survey_defaults();
    cfg.bins = LOOK_BINS, cfg.intervals = LOOK_INTERVALS;
    cfg.before = whole_contexts ? -1 : LOOK_BEFORE;
    cfg.after = whole_contexts ? -1 : LOOK_AFTER;
    cfg.compat = compat ? DLRN_ON : DLRN_OFF;
    return cfg;
}

typedef struct look_run { /* one sweep */
    const look_about *about;
    const lm_reading *how;
    dlrn_survey *survey;
    const lm_batch *batch; /* of the model's run in progress  */
    int64_t left;          /* rows that are still to be added */
} look_run;

/* Copies the batch's contexts, cut to the rows that are still to be added; how many there are. */
static int64_t look_cut(const look_run *r, int64_t *start) {
    const lm_batch *b = r->batch;
    int64_t n = 0;
    start[0] = 0;
    for (; n < b->sequences && start[n] < r->left; n++) {
        const int64_t end = b->start[n + 1] - b->start[0];
        start[n + 1] = end < r->left ? end : r->left;
    }
    return n;
}

/* Hands the rows of a run to the survey as the model reaches the tap. */
static dlrn_status look_visit(void *user, int tap, const float *x, float *y, int64_t n) {
    look_run *r = (look_run *)user;
    lm_model *m = r->about->model;
    lm_choice choice = r->how->choice;
    int64_t *start = (int64_t *)dlrn_alloc(m->ctx, r->batch->sequences + 1, sizeof *start);
    unsigned char *keep = (unsigned char *)dlrn_alloc(m->ctx, n, 1);
    (void)tap, (void)y;
    dlrn_status s = start && keep ? DLRN_OK : DLRN_ERR_MEMORY;
    choice.left_out = NULL; /* only rows that are added count */
    if (s == DLRN_OK)
        s = lm_choose(m, &choice, r->batch, x, lm_site_width(m, r->about->tap.x), keep);
    if (s == DLRN_OK) {
        const int64_t contexts = look_cut(r, start);
        for (int64_t i = 0; i < start[contexts] && r->how->choice.left_out; i++)
            *r->how->choice.left_out += !keep[i];
        s = dlrn_survey_add(r->survey, x, r->batch->id + r->batch->start[0], start, contexts, keep);
        r->left -= start[contexts];
    }
    dlrn_free(m->ctx, start);
    dlrn_free(m->ctx, keep);
    return s;
}

/* Runs the model over documents that were read, and adds their rows. */
static dlrn_status look_documents(look_run *r, const lm_documents *d, look_progress progress,
                                  void *user) {
    for (int64_t i = 0, end; i < d->count && r->left > 0; i = end) {
        for (end = i + 1; end < d->count && d->start[end] - d->start[i] < LM_BATCH_TOKENS;) end++;
        const lm_batch batch = {d->id, d->start + i, end - i};
        r->batch = &batch;
        LOOK_TRY(lm_run(r->about->model, &batch, &r->about->tap, 1, look_visit, r, 0));
        if (progress) LOOK_TRY(progress(user, r->survey));
    }
    return DLRN_OK;
}

LOOK_API dlrn_status look_sweep(const look_about *about, doc_reader *docs, const lm_reading *how,
                                int64_t rows, look_progress progress, void *user,
                                dlrn_survey *survey) {
    look_run r = {about, how, survey, NULL, rows};
    lm_documents d;
    memset(&d, 0, sizeof d);
    dlrn_status s = DLRN_OK;
    int any = 0;
    while (s == DLRN_OK && r.left > 0) {
        const int64_t want = r.left < LM_BATCH_TOKENS ? r.left : LM_BATCH_TOKENS;
        d.count = 0;
        while (s == DLRN_OK && (d.count ? d.start[d.count] : 0) < want)
            s = lm_read_documents(about->model, about->tok, docs, how, 1, &d);
        if (s != DLRN_OK && s != DLRN_END) break;
        any |= d.count > 0;
        const dlrn_status run = look_documents(&r, &d, progress, user);
        if (run != DLRN_OK) s = run;
    }
    lm_documents_free(&d);
    if (s == DLRN_END && !any)
        return dlrn_fail(about->model->ctx, DLRN_ERR_VALUE, "%s: expected documents, found none",
                         about->text_name);
    return s == DLRN_END ? DLRN_OK : s;
}

/* ------------------------------------------------------------------------------------------ */
// >>choose

typedef struct look_rank { /* of a feature, for sorting */
    int64_t feature;
    float max;
    int is_rare;
} look_rank;

/* Rare ones first, then by their maximum; equal ones by number. */
static int look_order(const void *left, const void *right) {
    const look_rank *a = (const look_rank *)left, *b = (const look_rank *)right;
    if (a->is_rare != b->is_rare) return b->is_rare - a->is_rare;
    if (a->max != b->max) return a->max < b->max ? 1 : -1;
    return a->feature < b->feature ? -1 : 1;
}

/* A feature that fires on every second token says little of a text, and one that fired three times
   may be chance; 0.1 to 5 % is where most features that people can name are. */
LOOK_API int64_t look_choose(const dlrn_dictionary *dict, const dlrn_survey *survey, int64_t want,
                             int64_t *list) {
    const dlrn_survey_info info = dlrn_survey_describe(survey);
    look_rank *rank = (look_rank *)dlrn_alloc(dict->ctx, dict->features, sizeof *rank);
    const double rows = (double)(info.counted ? info.counted : 1);
    int64_t n = 0;
    if (!rank) return -1;
    for (int64_t f = 0; f < dict->features; f++) {
        const double share = (double)info.totals[f].fired / rows;
        if (!info.totals[f].fired) continue;
        rank[n].feature = f;
        rank[n].max = info.totals[f].max;
        rank[n++].is_rare = share >= 1e-3 && share <= 0.05;
    }
    qsort(rank, (size_t)n, sizeof *rank, look_order);
    if (n > want) n = want;
    for (int64_t i = 0; i < n; i++) list[i] = rank[i].feature;
    dlrn_free(dict->ctx, rank);
    return n;
}

/* ------------------------------------------------------------------------------------------ */
// >>weights

/* A feature's row of a parameter, and its width; NULL: the family has no such parameter. */
static const float *look_row(const dlrn_dictionary *dict, int role, int64_t feature,
                             int64_t *width) {
    int64_t first = 0;
    for (int64_t p = 0; p < dict->n_parts; p++)
        if (dict->part[p].feature_at <= feature) first = p;
    if (dict->n_parts) {
        const dlrn_part *part = &dict->part[first];
        return look_row(part->dict, role, feature - part->feature_at, width);
    }
    *width = role == DLRN_DECODER ? dict->d_out : dict->d_in;
    return dict->param[role] ? dict->param[role] + feature * *width : NULL;
}

/* Whether the dictionary maps one site to another, so that its two sides are different things. */
static int look_is_transcoder(const look_about *about) {
    return !lm_same_site(&about->tap.x, &about->tap.y);
}

/* Inputs of a module pass its norm and its weights before they reach the residual stream. That is
   no obstacle to SAEDashboard. Of a tensor only the width is known. */
LOOK_API dlrn_status look_has_logits(const look_about *about, int *has) {
    const lm_kind kind = about->tap.y.kind;
    const int64_t dim = lm_config_of(about->model)->dim;
    *has = 0;
    if (about->dict->d_out != dim || about->dict->n_parts || !about->dict->param[DLRN_DECODER])
        return DLRN_OK;
    if (!about->compat && kind != LM_EMBED && kind != LM_ATTN_OUT && kind != LM_MLP_OUT &&
        kind != LM_RESID_OUT && kind != LM_TENSOR)
        return DLRN_OK;
    /* of no rows: whether the engine knows the way to the logits; the sweep must not be in vain */
    const dlrn_status s = lm_direct_logits(about->model, NULL, 0, about->compat, NULL);
    *has = s == DLRN_OK;
    return s == DLRN_ERR_UNSUPPORTED ? DLRN_OK : s;
}

/* Puts an entry in a list of the `max` largest, which has `count`; among equal ones the first that
   came stays in front. */
static void look_insert(look_entry *list, int *count, int max, int64_t index, float value) {
    int at = *count < max ? *count : max - 1;
    if (*count == max && !(value > list[at].value)) return;
    for (; at > 0 && value > list[at - 1].value; at--) list[at] = list[at - 1];
    list[at].index = (int32_t)index;
    list[at].value = value;
    list[at].share = 0;
    *count += *count < max;
}

/* The three largest entries of a row, by their sign as SAEDashboard takes them. */
static int look_align(const float *row, int64_t d, look_entry *out) {
    double total = 0;
    int n = 0;
    for (int64_t j = 0; j < d; j++) {
        total += fabs((double)row[j]);
        look_insert(out, &n, LOOK_ALIGNED, j, row[j]);
    }
    for (int k = 0; k < n; k++) out[k].share = total > 0 ? fabs((double)out[k].value) / total : 0;
    return n;
}

/* The effects of some features on the logits, to be reduced: one task for each feature. */
typedef struct look_effects {
    const look_about *about;
    const float *logits; /* [features][vocab] */
    look_weights *out;
} look_effects;

/* Ids without a token are the padding of a vocabulary: the model was never trained on them. */
static int look_is_token(const look_about *about, int64_t id) {
    int64_t bytes;
    return about->compat || lm_token_bytes(about->tok, (int32_t)id, &bytes) != NULL;
}

static void look_reduce(void *arg, int64_t task, int worker) {
    const look_effects *e = (const look_effects *)arg;
    const int64_t v = lm_config_of(e->about->model)->vocab;
    const float *x = e->logits + task * v;
    look_weights *w = e->out + task;
    int up = 0, down = 0;
    (void)worker;
    w->low = INFINITY, w->high = -INFINITY;
    for (int64_t t = 0; t < v; t++) {
        if (x[t] < w->low) w->low = x[t];
        if (x[t] > w->high) w->high = x[t];
        if (up == LOOK_LOGITS && x[t] <= w->up[up - 1].value && -x[t] <= w->down[down - 1].value)
            continue;
        if (!look_is_token(e->about, t)) continue;
        look_insert(w->up, &up, LOOK_LOGITS, t, x[t]);
        look_insert(w->down, &down, LOOK_LOGITS, t, -x[t]);
    }
    for (int k = 0; k < down; k++) w->down[k].value = -w->down[k].value;
    w->logits = up;
    const double width = (double)w->high - (double)w->low;
    for (int64_t t = 0; t < v; t++) {
        const double at = width > 0 ? ((double)x[t] - (double)w->low) / width * LOOK_BINS : 0;
        w->histogram[at < LOOK_BINS ? (int)at : LOOK_BINS - 1]++;
    }
}

enum { LOOK_AT_ONCE = 64 }; /* features whose logits are in memory: 64 x 256k x 4 B is 66 MB */

/* Adds the effects on the logits: the atom, times the scale of the output, through the end of the
   model. */
static dlrn_status look_add_logits(const look_about *about, const int64_t *list, int64_t n,
                                   look_weights *out) {
    dlrn_context *ctx = about->model->ctx;
    const int64_t d = about->dict->d_out, v = lm_config_of(about->model)->vocab;
    float *x = (float *)dlrn_alloc(ctx, LOOK_AT_ONCE * d, sizeof *x);
    float *logits = (float *)dlrn_alloc(ctx, LOOK_AT_ONCE * v, sizeof *logits);
    const float scale = about->compat ? 1 : (float)about->dict->formula.scale_out;
    dlrn_status s = x && logits ? DLRN_OK : DLRN_ERR_MEMORY;
    for (int64_t i = 0; i < n && s == DLRN_OK; i += LOOK_AT_ONCE) {
        const int64_t rows = n - i < LOOK_AT_ONCE ? n - i : LOOK_AT_ONCE;
        for (int64_t k = 0; k < rows; k++) {
            int64_t width;
            const float *atom = look_row(about->dict, DLRN_DECODER, list[i + k], &width);
            for (int64_t j = 0; j < d; j++) x[k * d + j] = scale * atom[j];
        }
        s = lm_direct_logits(about->model, x, rows, about->compat, logits);
        look_effects e = {about, logits, out + i};
        if (s == DLRN_OK) dlrn_parallel_for(ctx, rows, look_reduce, &e);
    }
    dlrn_free(ctx, x);
    dlrn_free(ctx, logits);
    return s;
}

/* Adds the nearest features by one side of the dictionary. */
static dlrn_status look_add_near(const look_about *about, int role, const int64_t *list, int64_t n,
                                 look_weights *out) {
    dlrn_context *ctx = about->dict->ctx;
    int32_t *index = (int32_t *)dlrn_alloc(ctx, n * LOOK_NEAR, sizeof *index);
    float *cosine = (float *)dlrn_alloc(ctx, n * LOOK_NEAR, sizeof *cosine);
    dlrn_status s = index && cosine ? DLRN_OK : DLRN_ERR_MEMORY;
    if (s == DLRN_OK)
        s = dlrn_nearest(about->dict, about->dict, role, list, n, LOOK_NEAR, index, cosine);
    for (int64_t i = 0; i < n && s == DLRN_OK; i++) {
        look_entry *entry = role == DLRN_DECODER ? out[i].nearest : out[i].nearest_in;
        int *count = role == DLRN_DECODER ? &out[i].nearest_count : &out[i].nearest_in_count;
        for (int64_t k = 0; k < LOOK_NEAR && index[i * LOOK_NEAR + k] >= 0; k++) {
            entry[k].index = index[i * LOOK_NEAR + k];
            entry[k].value = cosine[i * LOOK_NEAR + k];
            *count += 1;
        }
    }
    dlrn_free(ctx, index);
    dlrn_free(ctx, cosine);
    return s;
}

LOOK_API dlrn_status look_weights_of(const look_about *about, const int64_t *list, int64_t n,
                                     look_weights **out) {
    const dlrn_dictionary *dict = about->dict;
    look_weights *w = (look_weights *)dlrn_alloc(dict->ctx, n > 0 ? n : 1, sizeof *w);
    const int both = look_is_transcoder(about);
    int64_t d;
    *out = w;
    if (!w) return DLRN_ERR_MEMORY;
    memset(w, 0, (size_t)n * sizeof *w);
    for (int64_t i = 0; i < n; i++) {
        const float *atom = look_row(dict, DLRN_DECODER, list[i], &d);
        w[i].norm = atom ? lm_row_norm(atom, d) : (double)NAN;
        if (atom) w[i].aligned = look_align(atom, d, w[i].align);
        const float *in = both ? look_row(dict, DLRN_ENCODER, list[i], &d) : NULL;
        if (in) (void)look_align(in, d, w[i].align_in);
    }
    dlrn_status s = n > 0 && look_row(dict, DLRN_DECODER, 0, &d)
                        ? look_add_near(about, DLRN_DECODER, list, n, w)
                        : DLRN_OK;
    if (s == DLRN_OK && both && n > 0 && look_row(dict, DLRN_ENCODER, 0, &d))
        s = look_add_near(about, DLRN_ENCODER, list, n, w);
    int has_logits = 0;
    if (s == DLRN_OK) s = look_has_logits(about, &has_logits);
    if (s == DLRN_OK && n > 0 && has_logits) s = look_add_logits(about, list, n, w);
    if (s == DLRN_OK) return s;
    dlrn_free(dict->ctx, w);
    *out = NULL;
    return s;
}

/* A ReLU, or a jump with thresholds of its own, keeps its function: all of a feature scales. A
   top-k would choose others. */
LOOK_API int look_fold_norms(dlrn_dictionary *dict) {
    float *atoms = dict->param[DLRN_DECODER], *encoder = dict->param[DLRN_ENCODER];
    float *bias = dict->param[DLRN_ENCODER_BIAS], *threshold = dict->param[DLRN_THRESHOLD];
    const dlrn_formula *f = &dict->formula;
    const int jumps = f->gate == DLRN_GATE_JUMP;
    if (dict->n_parts || dict->heads || !atoms || !encoder || dict->param[DLRN_LOG_SCALE] ||
        dict->param[DLRN_DECODER_OFFSET] || f->select != DLRN_SELECT_ALL ||
        f->rank != DLRN_RANK_VALUE || !(f->gate == DLRN_GATE_RELU || (jumps && threshold)))
        return 0;
    for (int64_t i = 0; i < dict->features; i++) {
        float *atom = atoms + i * dict->d_out, *row = encoder + i * dict->d_in;
        const float norm = (float)lm_row_norm(atom, dict->d_out);
        if (!(norm > 0)) continue;
        for (int64_t j = 0; j < dict->d_out; j++) atom[j] /= norm;
        for (int64_t j = 0; j < dict->d_in; j++) row[j] *= norm;
        if (bias) bias[i] *= norm;
        if (threshold) threshold[i] *= norm;
    }
    dlrn_dictionary_changed(dict);
    return 1;
}

/* ------------------------------------------------------------------------------------------ */
// >>text

/* Writes JSON to a file in pieces. The first error stays, and ends all further writing, so that
   only the end has to be checked. */
typedef struct look_out {
    dlrn_writer *w;
    dlrn_status status;
    int more;   /* 1: the next value follows another one in its object or list */
    int digits; /* of real numbers; 0: three decimals, as SAEDashboard rounds   */
    size_t used;
    char piece[1 << 15];
} look_out;

static void look_flush(look_out *o) {
    if (o->status == DLRN_OK && o->used) o->status = dlrn_file_append(o->w, o->piece, o->used);
    o->used = 0;
}

static void look_put(look_out *o, const void *bytes, size_t n) {
    if (o->used + n > sizeof o->piece) look_flush(o);
    if (n > sizeof o->piece) {
        if (o->status == DLRN_OK) o->status = dlrn_file_append(o->w, bytes, n);
        return;
    }
    memcpy(o->piece + o->used, bytes, n);
    o->used += n;
}

#ifdef __GNUC__
__attribute__((format(printf, 2, 3)))
#endif
static void
look_print(look_out *o, const char *format, ...) {
    char text[512]; /* numbers, escapes and keys */
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    look_put(o, text, n > 0 ? (size_t)n : 0);
}

/* Begins a value: comma and key. key NULL: an element of a list. */
static void look_key(look_out *o, const char *key) {
    if (o->more) look_put(o, ",", 1);
    if (key) look_print(o, "\"%s\":", key);
    o->more = 1;
}

static void look_open(look_out *o, const char *key, char bracket) {
    look_key(o, key);
    look_put(o, &bracket, 1);
    o->more = 0;
}

static void look_close(look_out *o, char bracket) {
    look_put(o, &bracket, 1);
    o->more = 1;
}

static void look_int(look_out *o, const char *key, int64_t value) {
    look_key(o, key);
    look_print(o, "%lld", (long long)value);
}

/* JSON has neither NaN nor infinities: null. -0.0000 of a rounding is 0. */
static void look_real(look_out *o, const char *key, double value) {
    look_key(o, key);
    if (value - value != 0)
        look_put(o, "null", 4);
    else if (value == 0) /* most of what windows hold: printf would take a third of the time */
        look_put(o, "0.000", o->digits ? 1 : 5);
    else if (o->digits)
        look_print(o, "%.*g", o->digits, value);
    else
        look_print(o, "%.3f", fabs(value) < 0.0005 ? 0 : value);
}

/* What must not reach a page or a terminal as it is: control characters, line ends of JavaScript,
   what turns the direction of the text around it, marks without a width; and "<", so that no text
   can end the script that holds it. */
static int look_is_escaped(uint32_t c) {
    return c < 32 || c == '"' || c == '\\' || c == '<' || (c >= 127 && c < 160) || c == 0x61C ||
           c == 0x180E || (c >= 0x200B && c <= 0x200F) || (c >= 0x2028 && c <= 0x202E) ||
           (c >= 0x2060 && c <= 0x206F) || c == 0xFEFF || (c >= 0xFFF9 && c <= 0xFFFB);
}

static int look_is_plain(char c) {
    return c >= 32 && c < 127 && c != '"' && c != '\\' && c != '<';
}

/* Bytes as a JSON string; what is not UTF-8 (a token may end within a character) is U+FFFD. */
static void look_bytes(look_out *o, const char *key, const char *s, int64_t n) {
    look_key(o, key);
    look_put(o, "\"", 1);
    for (int64_t i = 0, length; i < n; i += length) {
        uint32_t c;
        for (length = 0; i + length < n && look_is_plain(s[i + length]);) length++;
        if (length) { /* at once, since most texts are plain */
            look_put(o, s + i, (size_t)length);
            continue;
        }
        length = bpe_char(s + i, n - i, &c);
        if (c >= BPE_RAW)
            look_put(o, "\xEF\xBF\xBD", 3);
        else if (c == '"' || c == '\\')
            look_print(o, "\\%c", (char)c);
        else if (look_is_escaped(c))
            look_print(o, "\\u%04x", (unsigned)c);
        else
            look_put(o, s + i, (size_t)length);
    }
    look_put(o, "\"", 1);
}

static void look_text(look_out *o, const char *key, const char *s) {
    look_bytes(o, key, s, (int64_t)strlen(s));
}

/* A token's text; "" for an id without one. */
static void look_token(look_out *o, const look_about *about, const char *key, int32_t id) {
    int64_t n = 0;
    const char *s = lm_token_bytes(about->tok, id, &n);
    look_bytes(o, key, s ? s : "", s ? n : 0);
}

static void look_ints(look_out *o, const char *key, const int64_t *x, int64_t n) {
    look_open(o, key, '[');
    for (int64_t i = 0; i < n; i++) look_int(o, NULL, x[i]);
    look_close(o, ']');
}

/* Bytes on their way into base64: three at a time give four letters. */
typedef struct look_base64 {
    look_out *o;
    unsigned char hold[3];
    int held;
} look_base64;

static void look_encode(look_base64 *b, const void *bytes, size_t n) {
    static const char letters[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const unsigned char *p = (const unsigned char *)bytes;
    for (size_t i = 0; i < n; i++) {
        b->hold[b->held++] = p[i];
        if (b->held < 3) continue;
        const unsigned v = (unsigned)b->hold[0] << 16 | (unsigned)b->hold[1] << 8 | b->hold[2];
        const char text[4] = {letters[v >> 18], letters[v >> 12 & 63], letters[v >> 6 & 63],
                              letters[v & 63]};
        look_put(b->o, text, 4);
        b->held = 0;
    }
}

/* Ends the text: fills up with zeros, of which only '=' is left. */
static void look_encode_end(look_base64 *b) {
    const int missing = b->held ? 3 - b->held : 0;
    if (missing) look_encode(b, "\0\0", (size_t)missing);
    for (int i = 0; i < missing; i++) b->o->piece[b->o->used - 1 - (size_t)i] = '=';
}

/* A number as four bytes, the lowest first. */
static void look_u32(unsigned char *p, uint32_t v) {
    for (int i = 0; i < 4; i++) p[i] = (unsigned char)(v >> 8 * i);
}

static void look_f32(unsigned char *p, float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    look_u32(p, bits);
}

/* ------------------------------------------------------------------------------------------ */
// >>page

typedef struct look_pages { /* a page in the making */
    const look_about *about;
    const look_weights *weights; /* of the next feature */
    look_out *o;
    int32_t *place;          /* [vocab] a token's number on the page; -1: it has none yet */
    int32_t *token;          /* [tokens] the tokens by their number                       */
    int64_t tokens, counted; /* counted: rows of the survey                            */
    int64_t sinks;           /* features whose largest activation begins a context     */
    int has_logits;          /* atoms have effects on the logits   */
    int id_bytes;            /* of a token's number in packed examples */
    unsigned char *pack;     /* [packed] examples                      */
    int64_t packed, room;
} look_pages;

/* The number of a token on the page. Only tokens that the page needs are in its table, in the order
   in which they are needed. */
static int32_t look_number(look_pages *p, int32_t id) {
    if (p->place[id] < 0) {
        p->place[id] = (int32_t)p->tokens;
        p->token[p->tokens++] = id;
    }
    return p->place[id];
}

/* Room for `more` further bytes of examples. */
static dlrn_status look_room(look_pages *p, int64_t more) {
    dlrn_context *ctx = p->about->dict->ctx;
    if (p->packed + more <= p->room) return DLRN_OK;
    const int64_t room = p->room + p->room / 2 + more + (1 << 16);
    unsigned char *grown = (unsigned char *)dlrn_alloc(ctx, room, 1);
    if (!grown) return DLRN_ERR_MEMORY;
    if (p->packed) memcpy(grown, p->pack, (size_t)p->packed);
    dlrn_free(ctx, p->pack);
    p->pack = grown;
    p->room = room;
    return DLRN_OK;
}

/* An activation in 255 parts of the feature's maximum; 0 is kept for "does not fire". */
static unsigned char look_shade(float value, float max) {
    if (!(value > 0) || !(max > 0)) return 0;
    const double v = floor(255 * (double)value / (double)max + 0.5);
    return (unsigned char)(v < 1 ? 1 : v > 255 ? 255 : v);
}

/* Packs an example: context, interval, position within the window, count, tokens, shades, peak. */
static dlrn_status look_pack(look_pages *p, const dlrn_example *e, float max) {
    int64_t at = e->row - e->first, from = at > LOOK_BEFORE ? at - LOOK_BEFORE : 0;
    int64_t end = e->count < at + LOOK_AFTER + 1 ? e->count : at + LOOK_AFTER + 1;
    LOOK_TRY(look_room(p, 11 + (end - from) * (p->id_bytes + 1)));
    unsigned char *to = p->pack + p->packed;
    look_u32(to, (uint32_t)e->context);
    to[4] = (unsigned char)(signed char)e->interval;
    to[5] = (unsigned char)(at - from);
    to[6] = (unsigned char)(end - from);
    to += 7;
    for (int64_t i = from; i < end; i++) {
        const int32_t number = look_number(p, e->token[i]);
        for (int b = 0; b < p->id_bytes; b++) *to++ = (unsigned char)(number >> 8 * b);
    }
    for (int64_t i = from; i < end; i++) *to++ = look_shade(e->value[i], max);
    look_f32(to, e->peak);
    p->packed = to + 4 - p->pack;
    return DLRN_OK;
}

/* [[index, value], ...], and with the share of each. of_tokens: an index is a token's id. */
static void look_entries(look_pages *p, const char *key, const look_entry *e, int n, int of_tokens,
                         int with_share) {
    look_out *o = p->o;
    look_open(o, key, '[');
    for (int k = 0; k < n; k++) {
        look_open(o, NULL, '[');
        look_int(o, NULL, of_tokens ? look_number(p, e[k].index) : e[k].index);
        look_real(o, NULL, (double)e[k].value);
        if (with_share) look_real(o, NULL, e[k].share);
        look_close(o, ']');
    }
    look_close(o, ']');
}

static void look_page_logits(look_pages *p, const look_weights *w) {
    look_out *o = p->o;
    if (!w->logits) {
        look_key(o, "logits");
        look_put(o, "null", 4);
        return;
    }
    look_open(o, "logits", '{');
    look_entries(p, "up", w->up, w->logits, 1, 0);
    look_entries(p, "down", w->down, w->logits, 1, 0);
    look_ints(o, "hist", w->histogram, LOOK_BINS);
    look_real(o, "low", (double)w->low);
    look_real(o, "high", (double)w->high);
    look_close(o, '}');
}

/* Tokens by their mean activation, and by their share of the whole. */
static void look_page_tokens(look_pages *p, const dlrn_feature_report *r) {
    look_out *o = p->o;
    for (int share = 0; share < 2; share++) {
        const dlrn_token_mean *t = share ? r->by_share : r->by_mean;
        look_open(o, share ? "share_tokens" : "mean_tokens", '[');
        for (int64_t k = 0; k < r->tokens; k++) {
            look_open(o, NULL, '[');
            look_int(o, NULL, look_number(p, t[k].token));
            look_real(o, NULL, share ? t[k].share : t[k].mean);
            if (!share) look_int(o, NULL, t[k].count);
            look_close(o, ']');
        }
        look_close(o, ']');
    }
}

/* What varies with a feature: other features as [index, both, pearson], or coordinates as [index,
   pearson, cosine]. */
static void look_page_companions(look_out *o, const char *key, const dlrn_companion *c, int64_t n,
                                 int of_features) {
    look_open(o, key, '[');
    for (int64_t k = 0; k < n; k++) {
        look_open(o, NULL, '[');
        look_int(o, NULL, c[k].index);
        if (of_features) look_int(o, NULL, c[k].both);
        look_real(o, NULL, c[k].pearson);
        if (!of_features) look_real(o, NULL, c[k].cosine);
        look_close(o, ']');
    }
    look_close(o, ']');
}

static void look_page_intervals(look_out *o, const dlrn_feature_report *r) {
    look_open(o, "intervals", '[');
    for (int64_t k = 0; k < LOOK_INTERVALS; k++) {
        look_open(o, NULL, '[');
        look_real(o, NULL, (double)r->interval[k].low);
        look_real(o, NULL, (double)r->interval[k].high);
        look_real(o, NULL, r->interval[k].share);
        look_close(o, ']');
    }
    look_close(o, ']');
}

/* A window begins at its row only where the context does. */
LOOK_API int look_is_sink(const dlrn_feature_report *r) {
    return r->examples > 0 && r->example[0].row == r->example[0].first;
}

LOOK_API int look_sink_note(int64_t sinks, int64_t n, char *text, size_t size) {
    if (2 * sinks <= n) return 0;
    snprintf(text, size,
             "%lld of %lld features are strongest on the first token of a context, where many "
             "models have activations far longer than elsewhere. Leave these rows out "
             "(--skip-first 1) to see what else the features stand for.",
             (long long)sinks, (long long)n);
    return 1;
}

/* A feature's object on the page. */
static dlrn_status look_page_feature(void *user, const dlrn_feature_report *r) {
    look_pages *p = (look_pages *)user;
    look_out *o = p->o;
    const look_weights *w = p->weights++;
    const int both = look_is_transcoder(p->about);
    look_open(o, NULL, '{');
    look_int(o, "i", r->feature);
    look_real(o, "density", r->density);
    look_int(o, "fired", r->totals.fired);
    look_real(o, "min", (double)r->totals.min);
    look_real(o, "max", (double)r->totals.max);
    look_real(o, "mean", r->totals.sum / (double)p->counted);
    look_real(o, "norm", w->norm);
    look_ints(o, "hist", r->histogram, LOOK_BINS);
    look_page_logits(p, w);
    look_page_tokens(p, r);
    look_entries(p, "near", w->nearest, w->nearest_count, 0, 0);
    look_entries(p, "near_in", w->nearest_in, w->nearest_in_count, 0, 0);
    look_page_companions(o, "with", r->companion, r->companions, 1);
    look_entries(p, "align", w->align, w->aligned, 0, 1);
    look_entries(p, "align_in", w->align_in, both ? w->aligned : 0, 0, 1);
    look_page_companions(o, "neurons", r->neuron, r->neurons, 0);
    look_page_intervals(o, r);
    const int64_t at = p->packed;
    p->sinks += look_is_sink(r);
    for (int64_t k = 0; k < r->examples; k++) LOOK_TRY(look_pack(p, &r->example[k], r->totals.max));
    look_open(o, "at", '[');
    look_int(o, NULL, at);
    look_int(o, NULL, r->examples);
    look_close(o, ']');
    look_close(o, '}');
    return o->status;
}

/* Base64 of a figure of each feature, as f32. */
static void look_page_all(look_pages *p, const char *key, const dlrn_survey_info *info,
                          int is_density) {
    look_base64 b = {p->o, {0}, 0};
    unsigned char four[4];
    look_key(p->o, key);
    look_put(p->o, "\"", 1);
    for (int64_t f = 0; f < p->about->dict->features; f++) {
        const dlrn_feature_totals *t = &info->totals[f];
        look_f32(four, is_density ? (float)((double)t->fired / (double)p->counted) : t->max);
        look_encode(&b, four, sizeof four);
    }
    look_encode_end(&b);
    look_put(p->o, "\"", 1);
}

/* A pair of words to print. */
static void look_pair(look_out *o, const char *key, const char *text) {
    look_open(o, NULL, '[');
    look_text(o, NULL, key);
    look_text(o, NULL, text);
    look_close(o, ']');
}

static void look_pair_int(look_out *o, const char *key, int64_t value) {
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)value);
    look_pair(o, key, text);
}

/* What the page is about, in pairs. */
static void look_page_about(look_pages *p, const dlrn_survey_info *info) {
    const look_about *a = p->about;
    look_out *o = p->o;
    double active = 0; /* features, summed over the counted rows */
    char text[256];
    look_open(o, "about", '[');
    look_pair(o, "model", a->model_name);
    if (a->layer >= 0)
        snprintf(text, sizeof text, "%.200s, layer %lld", a->site, (long long)a->layer);
    else
        snprintf(text, sizeof text, "%.200s", a->site);
    look_pair(o, "site", text);
    if (look_is_transcoder(a)) look_pair(o, "reads", "the input of the site's module");
    look_pair(o, "dictionary", a->dict_name);
    look_pair(o, "family", a->dict->family);
    look_pair_int(o, "features", a->dict->features);
    look_pair_int(o, "width", a->dict->d_out);
    look_pair(o, "text", a->text_name);
    look_pair_int(o, "contexts", info->contexts);
    look_pair_int(o, "longest context", a->ctx_len);
    look_pair_int(o, "rows", info->rows);
    if (info->counted < info->rows) look_pair_int(o, "rows left out", info->rows - info->counted);
    for (int64_t f = 0; f < a->dict->features; f++) active += (double)info->totals[f].fired;
    snprintf(text, sizeof text, "%.1f", active / (double)p->counted);
    look_pair(o, "active features a row", text);
    look_close(o, ']');
}

/* What the logit effects of a page are. */
static void look_note_logits(look_out *o, const look_about *a, int has_logits) {
    char text[512];
    const char *norm = lm_final_norm(a->model);
    const int normed = strcmp(norm, "none") != 0;
    if (!has_logits) {
        look_text(o, NULL,
                  "There are no logit effects: what this site holds is not added to the residual "
                  "stream, or this model's way from there to the logits is not known.");
        return;
    }
    if (a->compat) {
        look_text(o, NULL, "Logit effects are atom times unembedding, without the final norm.");
        return;
    }
    snprintf(text, sizeof text,
             "Logit effects are those of an activation of 1 on the next token: the atom, through "
             "%s%s, times the unembedding. Later layers are left out%s.",
             normed ? "the weight of the final " : "no final norm", normed ? norm : "",
             normed ? ", and so is the norm's division by the length of the stream, which differs "
                      "from token to token: compare the effects of one feature with each other"
                    : "");
    look_text(o, NULL, text);
    if (a->dict->formula.scale_out == 1) return;
    snprintf(text, sizeof text,
             "The dictionary multiplies its output by %.6g; logit effects include that.",
             a->dict->formula.scale_out);
    look_text(o, NULL, text);
}

/* Sentences on what the figures leave out. */
static void look_page_notes(look_pages *p, int64_t n) {
    const look_about *a = p->about;
    look_out *o = p->o;
    char text[512];
    look_open(o, "notes", '[');
    look_note_logits(o, a, p->has_logits);
    if (a->dict->formula.normalise != DLRN_NORMALISE_NONE)
        look_text(
            o, NULL,
            "The dictionary scales each row before it is encoded, and back afterwards. "
            "Activations are those of scaled rows; logit effects leave the scaling back out.");
    if (a->dict->heads)
        look_text(o, NULL,
                  "The dictionary encodes the rows of a context together; each context counts as a "
                  "document.");
    for (int64_t i = 0; i < a->n_notes; i++) look_text(o, NULL, a->notes[i]);
    if (look_sink_note(p->sinks, n, text, sizeof text)) look_text(o, NULL, text);
    look_close(o, ']');
}

/* "Features of DICTIONARY: SITE LAYER of MODEL". The dictionary's folder alone is often "run". */
static void look_page_title(look_pages *p) {
    const look_about *a = p->about;
    char title[800], layer[24] = "";
    if (a->layer >= 0) snprintf(layer, sizeof layer, " %lld", (long long)a->layer);
    snprintf(title, sizeof title, "Features of %.250s: %.200s%s of %.250s", a->dict_name, a->site,
             layer, a->model_name);
    look_text(p->o, "title", title);
}

/* The page's one object. */
static dlrn_status look_page_data(look_pages *p, dlrn_survey *survey, const int64_t *list,
                                  int64_t n) {
    const dlrn_survey_info info = dlrn_survey_describe(survey);
    look_out *o = p->o;
    p->counted = info.counted ? info.counted : 1;
    o->digits = 6;
    look_open(o, NULL, '{');
    look_int(o, "version", 1);
    look_page_title(p);
    look_page_about(p, &info);
    look_open(o, "all", '{');
    look_page_all(p, "density", &info, 1);
    look_page_all(p, "max", &info, 0);
    look_close(o, '}');
    look_open(o, "map", '{');
    look_text(o, "kind", "density-max");
    look_close(o, '}');
    look_open(o, "window", '{');
    look_int(o, "ids", p->id_bytes);
    look_int(o, "before", LOOK_BEFORE);
    look_int(o, "after", LOOK_AFTER);
    look_close(o, '}');
    look_open(o, "features", '[');
    if (n > 0) LOOK_TRY(dlrn_survey_report(survey, list, n, look_page_feature, p));
    look_close(o, ']');
    look_page_notes(p, n);
    look_open(o, "tokens", '[');
    for (int64_t t = 0; t < p->tokens; t++) look_token(o, p->about, NULL, p->token[t]);
    look_close(o, ']');
    look_base64 b = {o, {0}, 0};
    look_key(o, "examples");
    look_put(o, "\"", 1);
    look_encode(&b, p->pack, (size_t)p->packed);
    look_encode_end(&b);
    look_put(o, "\"", 1);
    look_close(o, '}');
    return o->status;
}

LOOK_API int64_t look_template(const char *page, int64_t size) {
    static const char mark[] = ">@DATA@<";
    const int64_t n = (int64_t)sizeof mark - 1;
    int64_t at = -1;
    for (int64_t i = 0; i + n <= size; i++) {
        if (memcmp(page + i, mark, (size_t)n)) continue;
        if (at >= 0) return -1;
        at = i + 1;
    }
    return at;
}

/* A new writer of JSON into a file; freed with dlrn_free. NULL: no memory. */
static look_out *look_begin(dlrn_context *ctx, dlrn_writer *w) {
    look_out *o = (look_out *)dlrn_alloc(ctx, 1, sizeof *o);
    if (!o) return NULL;
    o->w = w;
    o->status = DLRN_OK;
    o->more = 0;
    o->digits = 6;
    o->used = 0;
    return o;
}

LOOK_API dlrn_status look_page(const look_about *about, dlrn_survey *survey,
                               const look_weights *weights, const int64_t *list, int64_t n,
                               const char *page, int64_t size, dlrn_writer *w) {
    dlrn_context *ctx = about->dict->ctx;
    const int64_t v = lm_config_of(about->model)->vocab, at = look_template(page, size);
    const int64_t mark = (int64_t)sizeof "@DATA@" - 1;
    look_pages p;
    memset(&p, 0, sizeof p);
    if (at < 0)
        return dlrn_fail(
            ctx, DLRN_ERR_FORMAT,
            "page template: expected one place for the data, \">@DATA@<\", found none, "
            "or several");
    p.about = about, p.weights = weights, p.id_bytes = v <= 65536 ? 2 : 3;
    p.o = look_begin(ctx, w);
    p.place = (int32_t *)dlrn_alloc(ctx, v, sizeof *p.place);
    p.token = (int32_t *)dlrn_alloc(ctx, v, sizeof *p.token);
    dlrn_status s = p.o && p.place && p.token ? DLRN_OK : DLRN_ERR_MEMORY;
    if (s == DLRN_OK) s = look_has_logits(about, &p.has_logits);
    if (s == DLRN_OK) {
        for (int64_t t = 0; t < v; t++) p.place[t] = -1;
        look_put(p.o, page, (size_t)at);
        s = look_page_data(&p, survey, list, n);
        look_put(p.o, page + at + mark, (size_t)(size - at - mark));
        look_flush(p.o);
        if (s == DLRN_OK) s = p.o->status;
        if (about->sinks) *about->sinks = p.sinks;
    }
    void *blocks[] = {p.o, p.place, p.token, p.pack};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) dlrn_free(ctx, blocks[i]);
    return s;
}

LOOK_API dlrn_status look_write_page(const look_about *about, dlrn_survey *survey,
                                     const int64_t *list, int64_t n, const char *page_template,
                                     const char *path) {
    dlrn_context *ctx = about->dict->ctx;
    dlrn_writer *w = NULL;
    look_weights *weights = NULL;
    char *bytes = NULL;
    size_t size = 0;
    dlrn_status s = dlrn_file_read(ctx, page_template, &bytes, &size);
    if (s == DLRN_OK) s = look_weights_of(about, list, n, &weights);
    if (s == DLRN_OK) s = dlrn_file_create(ctx, path, &w);
    if (s == DLRN_OK) s = look_page(about, survey, weights, list, n, bytes, (int64_t)size, w);
    if (w && s == DLRN_OK)
        s = dlrn_writer_close(w);
    else if (w)
        dlrn_writer_abort(w);
    dlrn_free(ctx, weights);
    dlrn_free(ctx, bytes);
    return s;
}

/* ------------------------------------------------------------------------------------------ */
// >>dashboard

/* SAEDashboard 0.8 rounds to three decimals, leaves the first token of a prompt out, and reads the
   density back from a title. With about->compat so does this; otherwise numbers keep their digits
   and contexts their tokens. */
typedef struct look_board {
    const look_about *about;
    const look_weights *weights; /* of the next feature */
    look_out *o;
    dlrn_survey_info info;
    int64_t sinks; /* features that are strongest on the first token of a context */
} look_board;

/* The three lists of a kind of relation: indices, and two figures of each. */
static void look_board_relation(look_out *o, const char *kind, const char *const names[3],
                                const dlrn_companion *c, int64_t n) {
    char key[64];
    if (n > LOOK_ALIGNED) n = LOOK_ALIGNED;
    for (int part = 0; part < 3; part++) {
        snprintf(key, sizeof key, "%s_%s", kind, names[part]);
        look_open(o, key, '[');
        for (int64_t k = 0; k < n; k++) {
            if (part == 0)
                look_int(o, NULL, c[k].index);
            else
                look_real(o, NULL, part == 1 ? c[k].cosine : c[k].pearson);
        }
        look_close(o, ']');
    }
}

static void look_board_align(look_out *o, const look_weights *w) {
    look_open(o, "neuron_alignment_indices", '[');
    for (int k = 0; k < w->aligned; k++) look_int(o, NULL, w->align[k].index);
    look_close(o, ']');
    look_open(o, "neuron_alignment_values", '[');
    for (int k = 0; k < w->aligned; k++) look_real(o, NULL, (double)w->align[k].value);
    look_close(o, ']');
    look_open(o, "neuron_alignment_l1", '[');
    for (int k = 0; k < w->aligned; k++) look_real(o, NULL, w->align[k].share);
    look_close(o, ']');
}

/* Tokens that become likely, or unlikely, with their effects. */
static void look_board_logits(look_board *b, const char *strings, const char *values,
                              const look_entry *e, int n) {
    look_out *o = b->o;
    look_open(o, strings, '[');
    for (int k = 0; k < n; k++) look_token(o, b->about, NULL, e[k].index);
    look_close(o, ']');
    look_open(o, values, '[');
    for (int k = 0; k < n; k++) look_real(o, NULL, (double)e[k].value);
    look_close(o, ']');
}

/* The middles of a histogram's bins; an empty list where there is no histogram. */
static void look_board_middles(look_out *o, const char *key, double low, double high, int n) {
    look_open(o, key, '[');
    for (int i = 0; i < n; i++) look_real(o, NULL, low + (i + 0.5) * (high - low) / n);
    look_close(o, ']');
}

/* A share. SAEDashboard reads it back from a percentage of three decimals. */
static void look_share(look_board *b, const char *key, double share) {
    look_key(b->o, key);
    look_print(b->o, b->about->compat ? "%.5f" : "%.9g", share);
}

/* An example, as an element of the list of activations. */
static void look_board_example(look_board *b, const dlrn_example *e, const dlrn_feature_report *r) {
    look_out *o = b->o;
    const int64_t from = b->about->compat && e->count > 1;
    look_open(o, NULL, '{');
    if (e->interval < 0) {
        look_int(o, "bin_min", -1);
        look_real(o, "bin_max", (double)r->totals.max);
        look_int(o, "bin_contains", -1);
    } else {
        look_real(o, "bin_min", (double)r->interval[e->interval].low);
        look_real(o, "bin_max", (double)r->interval[e->interval].high);
        look_share(b, "bin_contains", r->interval[e->interval].share);
    }
    look_open(o, "tokens", '[');
    for (int64_t i = from; i < e->count; i++) look_token(o, b->about, NULL, e->token[i]);
    look_close(o, ']');
    look_open(o, "values", '[');
    for (int64_t i = from; i < e->count; i++) look_real(o, NULL, (double)e->value[i]);
    look_close(o, ']');
    look_int(o, "qualifying_token_index", e->row - e->first - from);
    look_ints(o, "dfa_values", NULL, 0);
    look_int(o, "dfa_maxValue", 0);
    look_int(o, "dfa_targetIndex", -1);
    if (!b->about->compat) look_int(o, "context", e->context);
    look_close(o, '}');
}

/* Further keys: counts without rounding, tokens by what the feature does on them, neighbours. */
static void look_board_more(look_board *b, const dlrn_feature_report *r, const look_weights *w) {
    look_out *o = b->o;
    look_int(o, "fired", r->totals.fired);
    look_real(o, "min", (double)r->totals.min);
    look_real(o, "max", (double)r->totals.max);
    look_real(o, "mean", r->totals.sum / (double)(b->info.counted ? b->info.counted : 1));
    look_real(o, "decoder_norm", w->norm);
    for (int share = 0; share < 2; share++) {
        const dlrn_token_mean *t = share ? r->by_share : r->by_mean;
        look_open(o, share ? "share_tokens" : "mean_tokens", '[');
        for (int64_t k = 0; k < r->tokens; k++) {
            look_open(o, NULL, '{');
            look_int(o, "id", t[k].token);
            look_token(o, b->about, "token", t[k].token);
            look_real(o, "mean", t[k].mean);
            look_real(o, "share", t[k].share);
            look_int(o, "count", t[k].count);
            look_close(o, '}');
        }
        look_close(o, ']');
    }
    look_open(o, "nearest_indices", '[');
    for (int k = 0; k < w->nearest_count; k++) look_int(o, NULL, w->nearest[k].index);
    look_close(o, ']');
    look_open(o, "nearest_cosines", '[');
    for (int k = 0; k < w->nearest_count; k++) look_real(o, NULL, (double)w->nearest[k].value);
    look_close(o, ']');
    look_open(o, "together", '[');
    for (int64_t k = 0; k < r->companions; k++) {
        look_open(o, NULL, '{');
        look_int(o, "feature", r->companion[k].index);
        look_int(o, "both", r->companion[k].both);
        look_real(o, "pearson", r->companion[k].pearson);
        look_real(o, "cosine", r->companion[k].cosine);
        look_close(o, '}');
    }
    look_close(o, ']');
}

/* A feature as an element of the list. */
static dlrn_status look_board_feature(void *user, const dlrn_feature_report *r) {
    static const char *const of_neurons[3] = {"indices", "l1", "pearson"};
    look_board *b = (look_board *)user;
    const look_about *a = b->about;
    look_out *o = b->o;
    const look_weights *w = b->weights++;
    const int bins = r->totals.fired ? LOOK_BINS : 0, effects = w->logits ? LOOK_BINS : 0;
    look_open(o, NULL, '{');
    look_int(o, "feature_index", r->feature);
    look_board_align(o, w);
    look_board_relation(o, "correlated_neurons", of_neurons, r->neuron, r->neurons);
    look_board_relation(o, "correlated_features", of_neurons, r->companion, r->companions);
    look_board_logits(b, "neg_str", "neg_values", w->down, w->logits);
    look_board_logits(b, "pos_str", "pos_values", w->up, w->logits);
    look_share(b, "frac_nonzero", r->density);
    look_board_middles(o, "freq_hist_data_bar_values", r->low, r->high, bins);
    look_ints(o, "freq_hist_data_bar_heights", r->histogram, bins);
    look_ints(o, "logits_hist_data_bar_heights", w->histogram, effects);
    look_board_middles(o, "logits_hist_data_bar_values", (double)w->low, (double)w->high, effects);
    look_int(o, "n_prompts_total", b->info.contexts);
    look_int(o, "n_tokens_in_prompt", a->ctx_len);
    look_text(o, "dataset", a->text_name);
    look_ints(o, "decoder_weights_dist", NULL, 0);
    b->sinks += look_is_sink(r);
    look_open(o, "activations", '[');
    for (int64_t k = 0; k < r->examples; k++) look_board_example(b, &r->example[k], r);
    look_close(o, ']');
    look_ints(o, "vector", NULL, 0);
    if (!a->compat) look_board_more(b, r, w);
    look_close(o, '}');
    return o->status;
}

LOOK_API dlrn_status look_json(const look_about *about, dlrn_survey *survey,
                               const look_weights *weights, const int64_t *list, int64_t n,
                               dlrn_writer *w) {
    look_out *o = look_begin(about->dict->ctx, w);
    if (!o) return DLRN_ERR_MEMORY;
    look_board b = {about, weights, o, dlrn_survey_describe(survey), 0};
    dlrn_status s = DLRN_OK;
    o->digits = about->compat ? 0 : 6;
    look_open(o, NULL, '{');
    look_text(o, "model_id", about->model_name);
    look_int(o, "layer", about->layer);
    look_text(o, "sae_set", about->dict_name);
    look_key(o, "sae_id_suffix");
    look_put(o, "null", 4);
    look_open(o, "features", '[');
    if (n > 0) s = dlrn_survey_report(survey, list, n, look_board_feature, &b);
    look_close(o, ']');
    look_close(o, '}');
    look_put(o, "\n", 1);
    look_flush(o);
    if (s == DLRN_OK) s = o->status;
    if (about->sinks) *about->sinks = b.sinks;
    dlrn_free(about->dict->ctx, o);
    return s;
}

#endif /* LOOK_IMPLEMENTATION */
