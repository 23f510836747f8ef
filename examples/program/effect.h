/* dictlearn effect: what a feature does to the log-probabilities of the next token.

   Each feature is changed alone, in a copy of the inputs: copy 0 is left as it is, copy k has
   feature k changed. All copies that fit go through the model in one run. After the last layer
   there is only the final norm, so there the change of the logits is computed from the atom, and
   one copy is enough (see linear_effects). */

enum { EFFECT_FEATURES = 256, EFFECT_CHUNK = 4096 };
/* Logits that are held: 128 MB of them. And exponentials that are summed where a feature costs
   nothing else. */
#define EFFECT_LOGITS ((int64_t)1 << 25)
#define EFFECT_TERMS ((int64_t)1 << 27)

/* What a feature does, summed over the rows that are measured. */
typedef struct feature_sum {
    int64_t feature, active; /* rows on which it is active */
    double activation, kl;
    double *change; /* [vocabulary] of log p */
} feature_sum;

typedef struct effect {
    const options *o;
    model_text mt;
    dlrn_dictionary *dict;
    dlrn_encoder *encoder;
    dlrn_sparse codes;
    lm_documents inputs;
    double set;             /* the feature's value instead of its own */
    int everywhere;         /* --positions all */
    int by_p;               /* --by p */
    int linear;             /* see linear_effects */
    feature_sum *of;        /* [count] */
    double *change, *log_p; /* [count][vocabulary] of `of`; [vocabulary] unchanged, summed */
    int64_t count, active;  /* features that are measured; that are active at all */
    double *strength;       /* [F] see add_strengths; or NULL */
    int64_t vocab, rows, runs, passes; /* measured rows; runs, and inputs that went through them */
    /* a run */
    lm_batch batch;
    int32_t *id;
    int64_t *start, contexts, copy; /* contexts of each copy; the first copy of the run */
    unsigned char *at;              /* of each row: 1: it is changed and measured */
    float *x, *y;                   /* measured rows of a sequence; linear: of the run */
    float *p;                       /* [measured rows][vocabulary] probabilities, unchanged */
    float *plain, *changed;         /* [measured rows][vocabulary] logits */
    double *lse;                    /* [2][measured rows] log-sum-exp of both */
    double *kl;                     /* [measured rows] */
    int64_t measured;               /* rows of the contexts */
    float *atoms, *offsets;         /* linear: [count][vocabulary] direct logits of each; or NULL */
    double told;
} effect;

/* ---- rows */

/* Marks the rows that are changed and measured: the last of each sequence or all, without those
   that the flags leave out. */
static dlrn_status mark_rows(effect *e, const lm_batch *b, const float *x) {
    lm_choice choice = e->mt.reading.choice;
    choice.left_out = NULL; /* other rows than the measured ones do not matter */
    dlrn_status s =
        lm_choose(e->mt.model, &choice, b, x, lm_site_width(e->mt.model, e->mt.tap.x), e->at);
    for (int64_t q = 0; q < b->sequences && !e->everywhere && s == DLRN_OK; q++)
        for (int64_t i = b->start[q]; i + 1 < b->start[q + 1]; i++) e->at[i - b->start[0]] = 0;
    return s;
}

/* Copies the marked rows of [from, to) from rows [n][d]. Returns how many. */
static int64_t gather_rows(const effect *e, const float *rows, int64_t d, int64_t from, int64_t to,
                           float *out) {
    int64_t n = 0;
    for (int64_t i = from; i < to; i++)
        if (e->at[i]) memcpy(out + n++ * d, rows + i * d, (size_t)d * sizeof *out);
    return n;
}

/* The active features of the marked rows of [from, to), in codes. The rows of one input are encoded
   together, for formulas that compare rows. */
static dlrn_status encode_marked(effect *e, const float *x, int64_t from, int64_t to) {
    const int64_t n = gather_rows(e, x, e->dict->d_in, from, to, e->x);
    return dlrn_encoder_run(e->encoder, e->x, n, NULL, &e->codes, NULL);
}

/* Changes a feature in the marked rows of [from, to). x may be y. */
static dlrn_status change_sequence(effect *e, feature_sum *f, const float *x, float *y,
                                   int64_t from, int64_t to) {
    const dlrn_dictionary *dict = e->dict;
    dlrn_status s = encode_marked(e, x, from, to);
    for (int64_t i = from, row = 0; i < to && s == DLRN_OK; i++) {
        if (!e->at[i]) continue;
        const double was = code_of(&e->codes, row, f->feature);
        move_feature(dict, f->feature, unit_of(dict, e->x + row * dict->d_in), was, e->set,
                     y + i * dict->d_out);
        f->activation += was;
        f->active += was != 0;
        row++;
    }
    return s;
}

/* Marks the rows of all copies of a run as those of copy 0, whose marks are the first in `at`, also
   in the runs after it. To mark each copy by its own rows could give other marks: an engine need
   not compute the same bits in batches of other sizes, and --max-norm-ratio compares norms. */
static dlrn_status mark_copies(effect *e, const float *x) {
    const int64_t tokens = e->start[e->contexts];
    lm_batch first = e->batch;
    first.sequences = e->contexts;
    const dlrn_status s = e->copy ? DLRN_OK : mark_rows(e, &first, x);
    for (int64_t q = e->contexts; q < e->batch.sequences; q += e->contexts)
        memcpy(e->at + e->start[q], e->at, (size_t)tokens);
    return s;
}

/* The rows of a run reach the site: each copy but copy 0 has a feature changed. */
static dlrn_status change_copies(void *user, int tap, const float *x, float *y, int64_t n) {
    effect *e = (effect *)user;
    (void)tap;
    dlrn_status s = mark_copies(e, x);
    if (e->linear) {
        gather_rows(e, x, e->dict->d_in, 0, n, e->x);
        gather_rows(e, y, e->dict->d_out, 0, n, e->y);
    }
    for (int64_t q = 0; q < e->batch.sequences && s == DLRN_OK; q++) {
        const int64_t copy = e->copy + q / e->contexts;
        if (copy > 0) s = change_sequence(e, &e->of[copy - 1], x, y, e->start[q], e->start[q + 1]);
    }
    return s;
}

/* ---- sums over rows and tokens. Each number is summed in one order, so that the threads do not
   change it. */

/* Task: the unchanged logits of a row. */
static void sum_plain_row(void *arg, int64_t row, int worker) {
    const effect *e = (const effect *)arg;
    const float *logit = e->plain + row * e->vocab;
    float *p = e->p + row * e->vocab;
    (void)worker;
    e->lse[row] = log_sum_exp(logit, e->vocab);
    for (int64_t i = 0; i < e->vocab; i++) p[i] = (float)exp((double)logit[i] - e->lse[row]);
}

/* e^x - 1. Most x are small: then eight terms are exact to 1e-15, in a fraction of expm1's time. */
static double exp_less_1(double x) {
    if (!(x < 0.0625 && x > -0.0625)) return expm1(x);
    const double square = x * x;
    const double odd = 1 + square * (1.0 / 6 + square * (1.0 / 120 + square * (1.0 / 5040)));
    const double even = 0.5 + square * (1.0 / 24 + square * (1.0 / 720 + square * (1.0 / 40320)));
    return x * odd + square * even;
}

/* Task: the changed logits of a row, and the divergence of the two. Both sums are of p and of the
   changes alone, so that small effects are as exact as large ones. */
static void sum_changed_row(void *arg, int64_t row, int worker) {
    const effect *e = (const effect *)arg;
    const float *before = e->plain + row * e->vocab, *after = e->changed + row * e->vocab;
    const float *p = e->p + row * e->vocab;
    double grown = 0, mean = 0;
    (void)worker;
    for (int64_t i = 0; i < e->vocab; i++) {
        const double change = (double)after[i] - (double)before[i];
        grown += (double)p[i] * exp_less_1(change);
        mean += (double)p[i] * change;
    }
    e->lse[e->measured + row] = e->lse[row] + log1p(grown);
    e->kl[row] = log1p(grown) - mean;
}

/* A part of the vocabulary, in which log p is added up. f NULL: the unchanged ones. */
typedef struct vocabulary_part {
    const effect *e;
    feature_sum *f;
} vocabulary_part;

static void sum_tokens(void *arg, int64_t part, int worker) {
    const vocabulary_part *j = (const vocabulary_part *)arg;
    const effect *e = j->e;
    const int64_t from = part * EFFECT_CHUNK;
    const int64_t to = from + EFFECT_CHUNK < e->vocab ? from + EFFECT_CHUNK : e->vocab;
    (void)worker;
    for (int64_t row = 0; row < e->measured; row++) {
        const float *p = e->plain + row * e->vocab, *q = e->changed + row * e->vocab;
        const double before = e->lse[row], after = e->lse[e->measured + row];
        for (int64_t i = from; i < to && !j->f; i++) e->log_p[i] += (double)p[i] - before;
        for (int64_t i = from; i < to && j->f; i++)
            j->f->change[i] += ((double)q[i] - after) - ((double)p[i] - before);
    }
}

/* Adds the measured rows: the unchanged logits, or with f the changed ones. */
static void add_rows(effect *e, feature_sum *f) {
    vocabulary_part job = {e, f};
    dlrn_parallel_for(e->mt.ctx, e->measured, f ? sum_changed_row : sum_plain_row, e);
    dlrn_parallel_for(e->mt.ctx, (e->vocab + EFFECT_CHUNK - 1) / EFFECT_CHUNK, sum_tokens, &job);
    for (int64_t row = 0; row < e->measured && f; row++) f->kl += e->kl[row];
    if (!f) e->rows += e->measured;
}

/* ---- runs */

/* Logits of the marked rows of [from, to). */
static dlrn_status read_logits(effect *e, int64_t from, int64_t to, float *out) {
    dlrn_status s = DLRN_OK;
    for (int64_t i = from, n; i < to && s == DLRN_OK; i += n) {
        for (n = 1; i + n < to && e->at[i + n] == e->at[i];) n++;
        if (!e->at[i]) continue;
        s = lm_logits(e->mt.model, i, n, out);
        out += n * e->vocab;
    }
    return s;
}

/* Room for the logits of the marked rows of the inputs, once copy 0 has shown how many there
   are. */
static dlrn_status reserve_logits(effect *e, int64_t tokens) {
    dlrn_context *ctx = e->mt.ctx;
    e->measured = 0;
    for (int64_t i = 0; i < tokens; i++) e->measured += e->at[i];
    void *blocks[] = {e->plain, e->changed, e->p, e->lse, e->kl};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) dlrn_free(ctx, blocks[i]);
    e->plain = (float *)dlrn_alloc(ctx, e->measured * e->vocab, sizeof *e->plain);
    e->changed = (float *)dlrn_alloc(ctx, e->measured * e->vocab, sizeof *e->changed);
    e->p = (float *)dlrn_alloc(ctx, e->measured * e->vocab, sizeof *e->p);
    e->lse = (double *)dlrn_alloc(ctx, 2 * e->measured, sizeof *e->lse);
    e->kl = (double *)dlrn_alloc(ctx, e->measured, sizeof *e->kl);
    return e->plain && e->changed && e->p && e->lse && e->kl ? DLRN_OK : DLRN_ERR_MEMORY;
}

/* Runs `copies` copies of inputs [first, end), from number `copy` on. */
static dlrn_status run_copies(effect *e, int64_t first, int64_t end, int64_t copy, int64_t copies) {
    const int64_t *from = e->inputs.start + first;
    const int64_t tokens = from[end - first] - from[0];
    e->contexts = end - first, e->copy = copy;
    for (int64_t c = 0; c < copies; c++) {
        memcpy(e->id + c * tokens, e->inputs.id + from[0], (size_t)tokens * sizeof *e->id);
        for (int64_t q = 0; q < e->contexts; q++)
            e->start[c * e->contexts + q] = c * tokens + from[q] - from[0];
    }
    e->start[copies * e->contexts] = copies * tokens;
    e->batch.id = e->id, e->batch.start = e->start, e->batch.sequences = copies * e->contexts;
    dlrn_status s = lm_run(e->mt.model, &e->batch, &e->mt.tap, 1, change_copies, e, 1);
    e->runs++, e->passes += copies * e->contexts;
    for (int64_t c = 0; c < copies && s == DLRN_OK; c++) {
        feature_sum *f = copy + c ? &e->of[copy + c - 1] : NULL;
        if (!f) s = reserve_logits(e, tokens);
        if (s == DLRN_OK)
            s = read_logits(e, c * tokens, (c + 1) * tokens, f ? e->changed : e->plain);
        if (s == DLRN_OK) add_rows(e, f);
    }
    return s;
}

/* ---- the linear part, after the last layer */

/* Direct logits [count][vocabulary] of `amount` atoms and `switched` offsets of each feature. */
static dlrn_status direct_logits(effect *e, double amount, double switched, float *out) {
    const int64_t d = e->dict->d_out;
    float *rows = (float *)dlrn_alloc(e->mt.ctx, e->count * d, sizeof *rows);
    if (!rows) return DLRN_ERR_MEMORY;
    memset(rows, 0, (size_t)(e->count * d) * sizeof *rows);
    for (int64_t k = 0; k < e->count; k++)
        add_atom(e->dict, e->of[k].feature, amount, switched, rows + k * d);
    const dlrn_status s = lm_direct_logits(e->mt.model, rows, e->count, 0, out);
    dlrn_free(e->mt.ctx, rows);
    return s;
}

/* The product with the unembedding: once, since all that a row does is to scale it. */
static dlrn_status find_direct(effect *e) {
    const int has_offsets = e->dict->param[DLRN_DECODER_OFFSET] != NULL;
    e->atoms = (float *)dlrn_alloc(e->mt.ctx, e->count * e->vocab, sizeof *e->atoms);
    if (has_offsets)
        e->offsets = (float *)dlrn_alloc(e->mt.ctx, e->count * e->vocab, sizeof *e->offsets);
    if (!e->atoms || (has_offsets && !e->offsets)) return DLRN_ERR_MEMORY;
    const dlrn_status s = direct_logits(e, 1, 0, e->atoms);
    return s == DLRN_OK && has_offsets ? direct_logits(e, 0, 1, e->offsets) : s;
}

/* A feature's effect on the rows of a run, whose lengths are known. */
static void add_linear(effect *e, int64_t k, const double *length) {
    feature_sum *f = &e->of[k];
    const float *atom = e->atoms + k * e->vocab;
    const float *offset = e->offsets ? e->offsets + k * e->vocab : NULL;
    for (int64_t row = 0; row < e->measured; row++) {
        const float *p = e->plain + row * e->vocab;
        float *q = e->changed + row * e->vocab;
        const double was = code_of(&e->codes, row, f->feature);
        const double unit = unit_of(e->dict, e->x + row * e->dict->d_in) / length[row];
        const double amount = unit * (e->set - was), switched = (e->set != 0) - (was != 0);
        for (int64_t i = 0; i < e->vocab; i++)
            q[i] = (float)((double)p[i] + amount * (double)atom[i]);
        for (int64_t i = 0; offset && i < e->vocab; i++)
            q[i] = (float)((double)q[i] + unit * switched * (double)offset[i]);
        f->activation += was;
        f->active += was != 0;
    }
    add_rows(e, f);
}

/* After the last layer the stream only passes the final norm and the unembedding. With the length
   by which the norm divides held at that of the unchanged stream, the logits are linear in the
   stream: the sum of what each feature adds. */
static dlrn_status linear_effects(effect *e) {
    const int64_t rows = e->measured;
    double *length = (double *)dlrn_alloc(e->mt.ctx, rows, sizeof *length);
    dlrn_status s = length ? lm_final_length(e->mt.model, e->y, rows, length) : DLRN_ERR_MEMORY;
    if (s == DLRN_OK) s = dlrn_encoder_run(e->encoder, e->x, rows, NULL, &e->codes, NULL);
    for (int64_t k = 0; k < e->count && s == DLRN_OK; k++) {
        if (stopping(NULL))
            s = DLRN_STOPPED;
        else
            add_linear(e, k, length);
    }
    dlrn_free(e->mt.ctx, length);
    return s;
}

/* ---- inputs */

/* Tokens that an engine runs at once without computing anything twice. */
static int64_t run_tokens(const effect *e) {
    return e->mt.model->whole_tokens ? e->mt.model->whole_tokens : LM_BATCH_TOKENS;
}

/* All copies of inputs [first, end), in as few runs as hold them. */
static dlrn_status measure_copies(effect *e, int64_t first, int64_t end) {
    const int64_t tokens = e->inputs.start[end] - e->inputs.start[first];
    const int64_t copies = e->linear ? 1 : 1 + e->count;
    const int64_t each = run_tokens(e) > tokens ? run_tokens(e) / tokens : 1;
    dlrn_status s = DLRN_OK;
    for (int64_t c = 0; c < copies && s == DLRN_OK; c += each)
        s = run_copies(e, first, end, c, copies - c < each ? copies - c : each);
    if (s == DLRN_OK && e->linear) s = linear_effects(e);
    return s;
}

/* The end of the inputs from `first` on that are measured together. */
static int64_t end_of_batch(const effect *e, int64_t first, int64_t copies) {
    const int64_t *start = e->inputs.start;
    int64_t end = first + 1;
    /* linear: all measured rows of a run are encoded in one call */
    for (; end < e->inputs.count && !(e->linear && compares_rows(e->dict)); end++) {
        const int64_t tokens = start[end + 1] - start[first], rows = end + 1 - first;
        if (tokens * copies > run_tokens(e)) break;
        if ((e->everywhere ? tokens : rows) * e->vocab > EFFECT_LOGITS) break;
    }
    return end;
}

static dlrn_status measure_inputs(effect *e) {
    const int64_t n = e->inputs.count, copies = e->linear ? 1 : 1 + e->count;
    dlrn_status s = DLRN_OK;
    e->told = seconds();
    for (int64_t i = 0, end; i < n && s == DLRN_OK; i = end) {
        end = end_of_batch(e, i, copies);
        s = measure_copies(e, i, end);
        if (e->o->quiet || end == n || seconds() - e->told < 2) continue;
        e->told = seconds();
        tell("%lld of %lld inputs", (long long)end, (long long)n);
    }
    tell_end();
    for (int64_t k = 0; k < e->count && s == DLRN_OK; k++)
        if (e->of[k].kl - e->of[k].kl != 0)
            s = dlrn_fail(
                e->mt.ctx, DLRN_ERR_VALUE,
                "effect: expected finite logits, found others with feature %lld set to %g",
                (long long)e->of[k].feature, e->set);
    if (s == DLRN_OK && e->rows == 0)
        s = dlrn_fail(e->mt.ctx, DLRN_ERR_VALUE,
                      "effect: expected tokens to measure, found that the flags leave out all");
    return s;
}

/* ---- which features */

/* Adds |f| times the norm of what one unit of it adds, over the measured rows: how far each feature
   moves them. */
static dlrn_status add_strengths(void *user, int tap, const float *x, float *y, int64_t n) {
    effect *e = (effect *)user;
    (void)tap, (void)y, (void)n;
    dlrn_status s = mark_rows(e, &e->batch, x);
    for (int64_t q = 0; q < e->batch.sequences && s == DLRN_OK; q++) {
        s = encode_marked(e, x, e->start[q], e->start[q + 1]);
        for (int64_t row = 0; s == DLRN_OK && row < e->codes.rows; row++)
            for (int64_t p = e->codes.row_ptr[row]; p < e->codes.row_ptr[row + 1]; p++)
                e->strength[e->codes.col[p]] +=
                    fabs((double)e->codes.val[p]) * unit_of(e->dict, e->x + row * e->dict->d_in);
    }
    return s;
}

/* The strongest feature that is left; -1: none. It is taken out. */
static int64_t take_strongest(effect *e) {
    int64_t best = 0;
    for (int64_t f = 1; f < e->dict->features; f++)
        if (e->strength[f] > e->strength[best]) best = f;
    if (!(e->strength[best] > 0)) return -1;
    e->strength[best] = 0;
    return best;
}

/* Sums up how strong each feature is at the measured rows: runs that end at the site. */
static dlrn_status find_strengths(effect *e) {
    const float *atoms = e->dict->param[DLRN_DECODER];
    const int64_t F = e->dict->features, d = e->dict->d_out;
    e->strength = (double *)dlrn_alloc(e->mt.ctx, F, sizeof *e->strength);
    if (!e->strength) return DLRN_ERR_MEMORY;
    for (int64_t f = 0; f < F; f++) e->strength[f] = 0;
    dlrn_status s = DLRN_OK;
    for (int64_t i = 0, end; i < e->inputs.count && s == DLRN_OK; i = end) {
        end = end_of_batch(e, i, 1);
        const int64_t *start = e->inputs.start + i;
        memcpy(e->id, e->inputs.id + start[0], (size_t)(start[end - i] - start[0]) * sizeof *e->id);
        for (int64_t q = 0; q <= end - i; q++) e->start[q] = start[q] - start[0];
        e->batch.id = e->id, e->batch.start = e->start, e->batch.sequences = end - i;
        s = lm_run(e->mt.model, &e->batch, &e->mt.tap, 1, add_strengths, e, 0);
    }
    for (int64_t f = 0; f < F; f++) {
        if (atoms) e->strength[f] *= lm_row_norm(atoms + f * d, d);
        e->active += e->strength[f] > 0;
    }
    return s;
}

/* How many features are measured without --feature: --count. After the last layer they are cheap,
   a log-sum-exp for each on each row: all, up to 256, as far as that takes some five seconds. */
static int64_t count_wanted(const effect *e) {
    const int64_t inputs = e->inputs.count;
    const int64_t rows = e->everywhere ? e->inputs.start[inputs] : inputs;
    int64_t n = e->o->count;
    if (!e->linear) return n;
    n = EFFECT_TERMS / (rows * e->vocab);
    n = n < EFFECT_FEATURES ? n : EFFECT_FEATURES;
    n = n < EFFECT_LOGITS / e->vocab ? n : EFFECT_LOGITS / e->vocab;
    return n > e->o->count ? n : e->o->count;
}

/* Chooses --feature, or the strongest ones. */
static dlrn_status choose_effects(effect *e) {
    dlrn_context *ctx = e->mt.ctx;
    e->count = 1;
    if (e->o->feature < 0) {
        const dlrn_status s = find_strengths(e);
        if (s != DLRN_OK) return s;
        e->count = count_wanted(e) < e->active ? count_wanted(e) : e->active;
    }
    e->of = (feature_sum *)dlrn_alloc(ctx, e->count, sizeof *e->of);
    e->change = (double *)dlrn_alloc(ctx, e->count * e->vocab, sizeof *e->change);
    e->log_p = (double *)dlrn_alloc(ctx, e->vocab, sizeof *e->log_p);
    if (!e->of || !e->change || !e->log_p) return DLRN_ERR_MEMORY;
    for (int64_t i = 0; i < e->count * e->vocab; i++) e->change[i] = 0;
    for (int64_t i = 0; i < e->vocab; i++) e->log_p[i] = 0;
    for (int64_t k = 0; k < e->count; k++) {
        memset(&e->of[k], 0, sizeof e->of[k]);
        e->of[k].feature = e->o->feature >= 0 ? e->o->feature : take_strongest(e);
        e->of[k].change = e->change + k * e->vocab;
    }
    return e->linear ? find_direct(e) : DLRN_OK;
}

/* Most effect first. */
static int by_divergence(const void *left, const void *right) {
    const feature_sum *a = (const feature_sum *)left, *b = (const feature_sum *)right;
    if (a->kl < b->kl || a->kl > b->kl) return a->kl < b->kl ? 1 : -1;
    return (a->feature > b->feature) - (a->feature < b->feature);
}

/* ---- output */

static const double *sorted_by; /* of by_change: qsort hands nothing on */
static int by_change(const void *left, const void *right) {
    const int32_t a = *(const int32_t *)left, b = *(const int32_t *)right;
    if (sorted_by[a] > sorted_by[b] || sorted_by[a] < sorted_by[b])
        return sorted_by[a] < sorted_by[b] ? 1 : -1;
    return (a > b) - (a < b);
}

/* A token's change of log p or of p, averaged over the rows: of p it is the geometric mean's. */
static double change_of(const effect *e, const feature_sum *f, int64_t id, int by_p) {
    const double before = e->log_p[id] / (double)e->rows, change = f->change[id] / (double)e->rows;
    return by_p ? exp(before + change) - exp(before) : change;
}

/* The tokens by their change, the largest gain first; freed with dlrn_free. */
static int32_t *tokens_by_change(const effect *e, const feature_sum *f, int by_p) {
    int32_t *order = (int32_t *)dlrn_alloc(e->mt.ctx, e->vocab, sizeof *order);
    double *key = (double *)dlrn_alloc(e->mt.ctx, e->vocab, sizeof *key);
    for (int32_t i = 0; order && key && i < e->vocab; i++) {
        order[i] = i;
        key[i] = change_of(e, f, i, by_p);
    }
    sorted_by = key;
    if (order && key) qsort(order, (size_t)e->vocab, sizeof *order, by_change);
    if (!key) dlrn_free(e->mt.ctx, order);
    dlrn_free(e->mt.ctx, key);
    return key ? order : NULL;
}

/* The token whose log p is shown: --token, or the most likely one. */
static dlrn_status find_token(effect *e, int64_t *token) {
    bpe_ids ids;
    *token = 0;
    for (int64_t i = 1; i < e->vocab; i++)
        if (e->log_p[i] > e->log_p[*token]) *token = i;
    if (!e->o->token) return DLRN_OK;
    memset(&ids, 0, sizeof ids);
    dlrn_status s = lm_encode(e->mt.tok, e->o->token, (int64_t)strlen(e->o->token), &ids);
    if (s == DLRN_OK && ids.count != 1)
        s = dlrn_fail(e->mt.ctx, DLRN_ERR_ARGUMENT, "--token: expected one token, found %lld",
                      (long long)ids.count);
    if (s == DLRN_OK) *token = ids.id[0];
    bpe_ids_free(&ids);
    return s;
}

/* How exact the figures are, and what they cost. */
static void method_text(const effect *e, char *text, size_t size) {
    char cost[96];
    snprintf(cost, sizeof cost, "%lld forward pass%s in %lld run%s of the model",
             (long long)e->passes, e->passes == 1 ? "" : "es", (long long)e->runs,
             e->runs == 1 ? "" : "s");
    snprintf(text, size, "%s: exact%s", cost,
             e->linear ? " for logits under the final norm's unchanged length, so that effects add "
                         "up; effect --feature I has what the change of that length adds"
                       : "");
}

static void json_tokens(json_writer *j, const effect *e, const feature_sum *f, const char *key,
                        const int32_t *order, int64_t first, int64_t step) {
    json_open(j, key, '[');
    for (int64_t i = 0; i < e->o->count && i < e->vocab; i++) {
        const int32_t id = order[first + i * step];
        json_open(j, NULL, '{');
        json_int(j, "token", id);
        json_key(j, "text");
        put_token(j->f, e->mt.tok, id);
        json_real(j, "log_p", 9, e->log_p[id] / (double)e->rows);
        json_real(j, "change", 9, change_of(e, f, id, 0));
        json_close(j, '}');
    }
    json_close(j, ']');
}

static dlrn_status json_feature(json_writer *j, const effect *e, const feature_sum *f,
                                int64_t token) {
    int32_t *order = tokens_by_change(e, f, e->by_p);
    if (!order) return DLRN_ERR_MEMORY;
    json_open(j, NULL, '{');
    json_int(j, "feature", f->feature);
    json_real(j, "activation", 9, f->activation / (double)e->rows);
    json_int(j, "active", f->active);
    json_real(j, "kl", 9, f->kl / (double)e->rows);
    json_real(j, "change", 9, change_of(e, f, token, 0));
    json_tokens(j, e, f, "up", order, 0, 1);
    json_tokens(j, e, f, "down", order, e->vocab - 1, -1);
    json_close(j, '}');
    dlrn_free(e->mt.ctx, order);
    return DLRN_OK;
}

/* `shown`: of the features, in their order. */
static dlrn_status print_effects_json(const effect *e, int64_t token, int64_t shown) {
    char method[400];
    json_writer j = {stdout, 0};
    dlrn_status s = DLRN_OK;
    method_text(e, method, sizeof method);
    json_open(&j, NULL, '{');
    json_site(&j, e->o);
    json_real(&j, "set", 9, e->set);
    json_text(&j, "positions", e->everywhere ? "all" : "last");
    json_int(&j, "inputs", e->inputs.count);
    json_int(&j, "rows", e->rows);
    json_text(&j, "by", e->by_p ? "p" : "log_p");
    json_text(&j, "method", e->linear ? "linear" : "forward passes");
    json_text(&j, "exactness", method);
    json_int(&j, "forward_passes", e->passes);
    json_int(&j, "runs", e->runs);
    json_int(&j, "token", token);
    json_key(&j, "token_text");
    put_token(j.f, e->mt.tok, token);
    json_real(&j, "token_log_p", 9, e->log_p[token] / (double)e->rows);
    if (e->strength) json_int(&j, "measured_features", e->count);
    if (e->strength) json_int(&j, "active_features", e->active);
    json_open(&j, "features", '[');
    for (int64_t k = 0; k < shown && s == DLRN_OK; k++) s = json_feature(&j, e, &e->of[k], token);
    json_close(&j, ']');
    json_close(&j, '}');
    putchar('\n');
    return s;
}

/* A token of the list: log p before and after, and its change. */
static void print_token_change(const effect *e, const feature_sum *f, int32_t id) {
    const double before = e->log_p[id] / (double)e->rows, change = change_of(e, f, id, 0);
    printf("  %+8.4f  %8.3f  %8.3f  ", change, before, before + change);
    put_token(stdout, e->mt.tok, id);
    putchar('\n');
}

/* One feature at length. */
static dlrn_status print_effect(const effect *e) {
    const feature_sum *f = e->of;
    const int64_t n = e->o->count < e->vocab ? e->o->count : e->vocab;
    int32_t *order = tokens_by_change(e, f, e->by_p);
    if (!order) return DLRN_ERR_MEMORY;
    printf("activation  %.4f on average, active on %lld of %lld tokens\n",
           f->activation / (double)e->rows, (long long)f->active, (long long)e->rows);
    printf("KL          %.6f nats (unchanged || changed)\n", f->kl / (double)e->rows);
    puts("    change    before     after  of log p, in nats: tokens up");
    for (int64_t i = 0; i < n; i++) print_token_change(e, f, order[i]);
    puts("    change    before     after  of log p, in nats: tokens down");
    for (int64_t i = 0; i < n; i++) print_token_change(e, f, order[e->vocab - 1 - i]);
    dlrn_free(e->mt.ctx, order);
    return DLRN_OK;
}

/* A line for each feature. Its tokens by p: one each, which had better be a likely one. */
static dlrn_status print_each_effect(const effect *e, int64_t token, int64_t shown) {
    printf("next token  ");
    put_token(stdout, e->mt.tok, token);
    printf(": log p %.3f; %lld of %lld active features", e->log_p[token] / (double)e->rows,
           (long long)shown, (long long)e->active);
    if (e->linear && e->count < e->active) printf(", of the %lld strongest", (long long)e->count);
    putchar('\n');
    puts("   feature  activation  log p change          KL  p most up, down");
    for (int64_t k = 0; k < shown; k++) {
        const feature_sum *f = &e->of[k];
        int32_t *order = tokens_by_change(e, f, 1);
        if (!order) return DLRN_ERR_MEMORY;
        printf("  %8lld  %10.4f  %+12.4f  %10.6f  ", (long long)f->feature,
               f->activation / (double)e->rows, change_of(e, f, token, 0), f->kl / (double)e->rows);
        put_token(stdout, e->mt.tok, order[0]);
        fputs(", ", stdout);
        put_token(stdout, e->mt.tok, order[e->vocab - 1]);
        putchar('\n');
        dlrn_free(e->mt.ctx, order);
    }
    return DLRN_OK;
}

static dlrn_status print_effects(effect *e) {
    const int64_t shown = e->count < e->o->count ? e->count : e->o->count;
    char method[400], site[96];
    int64_t token = 0;
    dlrn_status s = find_token(e, &token);
    if (s != DLRN_OK) return s;
    if (e->linear) qsort(e->of, (size_t)e->count, sizeof *e->of, by_divergence);
    if (e->o->json) return print_effects_json(e, token, shown);
    if (e->o->feature >= 0)
        printf("feature %lld at %s", (long long)e->o->feature, site_text(e->o, site, sizeof site));
    else
        printf("each feature at %s", site_text(e->o, site, sizeof site));
    printf(", set to %g at %s of %lld input%s, the dictionary's error kept\n", e->set,
           e->everywhere ? "all tokens" : "the last token", (long long)e->inputs.count,
           e->inputs.count == 1 ? "" : "s");
    s = e->o->feature >= 0 ? print_effect(e) : print_each_effect(e, token, shown);
    method_text(e, method, sizeof method);
    if (s == DLRN_OK) puts(method);
    return s;
}

/* ---- the command */

/* The inputs: a prompt, or documents. */
static dlrn_status read_inputs(effect *e) {
    const options *o = e->o;
    bpe_ids ids;
    if (o->text) return read_first_documents(&e->mt, o, &e->inputs);
    memset(&ids, 0, sizeof ids);
    dlrn_status s = prompt_tokens(&e->mt, o, &ids);
    e->inputs.ctx = e->mt.ctx;
    e->inputs.start = (int64_t *)dlrn_alloc(e->mt.ctx, 2, sizeof *e->inputs.start);
    e->inputs.id = (int32_t *)dlrn_alloc(e->mt.ctx, ids.count, sizeof *e->inputs.id);
    if (s == DLRN_OK && (!e->inputs.start || !e->inputs.id)) s = DLRN_ERR_MEMORY;
    if (s == DLRN_OK && ids.count > lm_config_of(e->mt.model)->positions)
        s = dlrn_fail(e->mt.ctx, DLRN_ERR_VALUE,
                      "--prompt: expected at most the model's %lld positions, found %lld tokens",
                      (long long)lm_config_of(e->mt.model)->positions, (long long)ids.count);
    if (s == DLRN_OK) {
        memcpy(e->inputs.id, ids.id, (size_t)ids.count * sizeof *ids.id);
        e->inputs.start[0] = 0, e->inputs.start[1] = ids.count, e->inputs.count = 1;
    }
    bpe_ids_free(&ids);
    return s;
}

/* Room for the largest run. */
static dlrn_status reserve_runs(effect *e) {
    dlrn_context *ctx = e->mt.ctx;
    int64_t max = run_tokens(e);
    for (int64_t i = 0; i < e->inputs.count; i++) {
        const int64_t n = e->inputs.start[i + 1] - e->inputs.start[i];
        max = n > max ? n : max;
    }
    e->id = (int32_t *)dlrn_alloc(ctx, max, sizeof *e->id);
    e->start = (int64_t *)dlrn_alloc(ctx, max + 1, sizeof *e->start);
    e->at = (unsigned char *)dlrn_alloc(ctx, max, 1);
    e->x = (float *)dlrn_alloc(ctx, max * e->dict->d_in, sizeof *e->x);
    e->y = (float *)dlrn_alloc(ctx, max * e->dict->d_out, sizeof *e->y);
    if (!e->id || !e->start || !e->at || !e->x || !e->y) return DLRN_ERR_MEMORY;
    return dlrn_encoder_create(e->dict, &e->encoder);
}

/* Whether the effects can be had without changing anything on the way: after the last layer,
   unless this engine or this architecture cannot say how the stream becomes logits. */
static dlrn_status find_method(effect *e) {
    const lm_site *y = &e->mt.tap.y;
    if (e->o->feature >= 0 || y->kind != LM_RESID_OUT ||
        y->layer != lm_config_of(e->mt.model)->layers - 1)
        return DLRN_OK;
    const dlrn_status s = lm_final_length(e->mt.model, NULL, 0, NULL);
    e->linear = s == DLRN_OK;
    return s == DLRN_ERR_UNSUPPORTED ? DLRN_OK : s;
}

static void effect_close(effect *e) {
    dlrn_context *ctx = e->mt.ctx;
    void *blocks[] = {e->of, e->change, e->log_p,   e->strength, e->id, e->start, e->at,      e->x,
                      e->y,  e->plain,  e->changed, e->lse,      e->kl, e->atoms, e->offsets, e->p};
    for (size_t i = 0; ctx && i < sizeof blocks / sizeof *blocks; i++) dlrn_free(ctx, blocks[i]);
    dlrn_encoder_destroy(e->encoder);
    dlrn_sparse_free(&e->codes);
    lm_documents_free(&e->inputs);
    dlrn_dictionary_destroy(e->dict);
    model_text_close(&e->mt);
}

static int check_effect_flags(const options *o) {
    if (lacks_flag("effect", "--dict", o->dict)) return 2;
    if (!o->prompt && !o->text)
        return usage_error("effect", "this flag is required, or --text", "--prompt");
    if (o->prompt && o->text)
        return usage_error("effect", "expected --prompt or --text, found both", "--prompt");
    if (o->positions && strcmp(o->positions, "last") && strcmp(o->positions, "all"))
        return usage_error("effect", "expected last or all as --positions", o->positions);
    if (o->by && strcmp(o->by, "log_p") && strcmp(o->by, "p"))
        return usage_error("effect", "expected log_p or p as --by", o->by);
    return check_site("effect", o);
}

static int run_effect(dlrn_context *ctx, const options *o) {
    effect e;
    int status = check_effect_flags(o);
    if (status) return status;
    memset(&e, 0, sizeof e);
    e.o = o;
    e.set = o->set == o->set ? o->set : 0;
    e.everywhere = o->positions && !strcmp(o->positions, "all");
    e.by_p = o->by && !strcmp(o->by, "p");
    dlrn_status s = open_edited("effect", ctx, o, &e.dict, &e.mt);
    if (s == DLRN_OK) e.vocab = lm_config_of(e.mt.model)->vocab;
    if (s == DLRN_OK) s = find_method(&e);
    if (s == DLRN_OK) s = read_inputs(&e);
    if (s == DLRN_OK) s = reserve_runs(&e);
    if (s == DLRN_OK) s = choose_effects(&e);
    if (s == DLRN_OK) s = measure_inputs(&e);
    if (s == DLRN_OK) s = print_effects(&e);
    if (o->text) model_text_tell(&e.mt, o);
    status = s == DLRN_OK ? 0 : fail(ctx);
    effect_close(&e);
    return status;
}
