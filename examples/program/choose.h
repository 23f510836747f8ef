/* --data's rows that count: a source around a source of arrays that leaves out the first positions
   of documents, and rows that are much longer than those around them. What it leaves out depends on
   the array alone, not on where a run has begun to read: a resumed run leaves out the same rows. */

/* Whether flags leave rows out. */
static int chooses_rows(const options *o) {
    return o->skip_first > 0 || o->skip_special || o->max_norm_ratio > 0;
}

enum { CHOOSE_BLOCK = 1024 }; /* rows whose median length counts, if the array has no documents */

typedef struct chooser {
    dlrn_context *ctx;
    dlrn_source inner; /* owned */
    int64_t block, positions, skip_first;
    double ratio;
    float *x, *y;        /* [block][width] */
    double *norm;        /* [block] of the rows; [2 block] to find their median */
    unsigned char *keep; /* [block] */
    uint64_t begin;      /* the number of the block's first row */
    int64_t held, at;    /* rows of the block; the next one     */
    dlrn_status later;   /* how the block ended, if too soon: told when its rows are gone */
    int64_t *left_out;
} chooser;

/* Marks the rows of the block. Rows that are not finite stay: others decide on them. */
static void choose_mark(chooser *c) {
    const int64_t d = c->inner.d_in;
    double *finite = c->norm + c->block; /* those norms that are finite */
    int64_t n = 0;
    for (int64_t i = 0; i < c->held; i++) {
        const int64_t position =
            c->positions ? (int64_t)(c->begin + (uint64_t)i) % c->positions : 0;
        c->keep[i] = !c->positions || position >= c->skip_first;
        c->norm[i] = lm_row_norm(c->x + i * d, d);
        if (c->norm[i] - c->norm[i] == 0) finite[n++] = c->norm[i];
    }
    if (!(c->ratio > 0) || !n) return;
    const double limit = lm_norm_limit(finite, n, c->ratio);
    for (int64_t i = 0; i < c->held; i++)
        if (c->norm[i] - c->norm[i] == 0 && c->norm[i] > limit) c->keep[i] = 0;
}

/* Reads up to the end of a block. */
static void choose_fill(chooser *c) {
    dlrn_source *in = &c->inner;
    dlrn_status s = DLRN_OK;
    c->begin += (uint64_t)c->held;
    c->held = c->at = 0;
    if (in->position && in->seek) s = in->position(in->user, &c->begin);
    const int64_t room = c->block - (int64_t)(c->begin % (uint64_t)c->block);
    for (int64_t n = 0; s == DLRN_OK && c->held < room; c->held += n) {
        n = 0;
        s = in->read(in->user, room - c->held, c->x + c->held * in->d_in,
                     in->d_out ? c->y + c->held * in->d_out : NULL, &n);
    }
    c->later = s;
    choose_mark(c);
}

/* Passes the rows that do not count. */
static void choose_pass(chooser *c) {
    for (; c->at < c->held && !c->keep[c->at]; c->at++) *c->left_out += 1;
}

/* Goes to the next row that counts. Where there is none, at == held, and `later` says why. */
static void choose_next(chooser *c) {
    for (choose_pass(c); c->at == c->held && c->later == DLRN_OK; choose_pass(c)) choose_fill(c);
}

/* Hands out rows that follow one another in the array, so that an error names the right one. */
static dlrn_status choose_read(void *user, int64_t max_rows, float *x, float *y, int64_t *n) {
    chooser *c = (chooser *)user;
    const int64_t d = c->inner.d_in, d_out = c->inner.d_out;
    *n = 0;
    choose_next(c);
    if (c->at == c->held) {
        const dlrn_status s = c->later;
        c->later = DLRN_OK;
        return s;
    }
    while (*n < max_rows && c->at + *n < c->held && c->keep[c->at + *n]) ++*n;
    memcpy(x, c->x + c->at * d, (size_t)(*n * d) * sizeof *x);
    if (y && d_out) memcpy(y, c->y + c->at * d_out, (size_t)(*n * d_out) * sizeof *y);
    c->at += *n;
    return DLRN_OK;
}

/* The row that the next call of choose_read hands out first, not one before it that is left out:
   errors and --held-out count from there. */
static dlrn_status choose_position(void *user, uint64_t *position) {
    chooser *c = (chooser *)user;
    choose_next(c);
    *position = c->begin + (uint64_t)c->at;
    return c->at == c->held && c->inner.position ? c->inner.position(c->inner.user, position)
                                                 : DLRN_OK;
}

/* Goes to the block of a row, so that it is judged among the same rows as before. */
static dlrn_status choose_seek(void *user, uint64_t position) {
    chooser *c = (chooser *)user;
    const uint64_t within = position % (uint64_t)c->block;
    c->held = c->at = 0;
    c->later = DLRN_OK;
    dlrn_status s = c->inner.seek(c->inner.user, position - within);
    if (s != DLRN_OK || !within) return s;
    choose_fill(c);
    c->at = (int64_t)within < c->held ? (int64_t)within : c->held;
    return DLRN_OK;
}

static const char *choose_error(void *user) {
    chooser *c = (chooser *)user;
    return c->inner.error ? c->inner.error(c->inner.user) : NULL;
}

static void choose_destroy(void *user) {
    chooser *c = (chooser *)user;
    dlrn_source_destroy(&c->inner);
    dlrn_free(c->ctx, c->x);
    dlrn_free(c->ctx, c->y);
    dlrn_free(c->ctx, c->norm);
    dlrn_free(c->ctx, c->keep);
    dlrn_free(c->ctx, c);
}

/* Puts the filter around *source, which it owns afterwards. left_out counts up; borrowed. */
static dlrn_status choose_rows(dlrn_context *ctx, const options *o, const char *name,
                               dlrn_source *source, int64_t *left_out) {
    if (o->skip_first > 0 && !source->positions)
        return dlrn_fail(ctx, DLRN_ERR_SHAPE,
                         "%s: --skip-first: expected an array [documents, positions, d], found one "
                         "that does not say where documents begin",
                         name);
    chooser *c = (chooser *)dlrn_alloc(ctx, 1, sizeof *c);
    if (!c) return DLRN_ERR_MEMORY;
    memset(c, 0, sizeof *c);
    c->ctx = ctx;
    c->inner = *source;
    c->positions = source->positions;
    c->block = c->positions > 1 ? c->positions : CHOOSE_BLOCK;
    c->skip_first = o->skip_first;
    c->ratio = o->max_norm_ratio;
    c->left_out = left_out;
    c->x = (float *)dlrn_alloc(ctx, c->block * source->d_in, sizeof *c->x);
    c->y = (float *)dlrn_alloc(ctx, c->block * (source->d_out ? source->d_out : 1), sizeof *c->y);
    c->norm = (double *)dlrn_alloc(ctx, 3 * c->block, sizeof *c->norm);
    c->keep = (unsigned char *)dlrn_alloc(ctx, c->block, 1);
    source->read = choose_read;
    source->seek = source->position && source->seek ? choose_seek : NULL;
    source->position = choose_position; /* also of a pipe, for errors */
    source->error = choose_error;
    source->destroy = choose_destroy;
    source->user = c;
    return c->x && c->y && c->norm && c->keep ? DLRN_OK : DLRN_ERR_MEMORY;
}
