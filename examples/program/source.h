/* A source around a source: it stops when the user asks to, and names the file and row of a number
   that is not finite. */

enum { PIECE = 2048 }; /* rows between two checks for a stop */

typedef struct feed {
    dlrn_context *ctx;
    const options *o;
    dlrn_source inner;
    path_list x_paths, y_paths;              /* the files of --data and --target        */
    const char *x_name, *y_name;             /* of the rows, for errors                 */
    int64_t d_in, d_out;                     /* of the dictionary, if it is known: rows of
                                                several layers may have two dimensions      */
    int from_array;                          /* 1: its position is the number of a row  */
    int64_t rows;                            /* given so far                            */
    int64_t skipped;                         /* with --skip-nonfinite: rows left out    */
    int64_t width, target_width;             /* of rows, where a dictionary says so     */
    int64_t left_out;                        /* by chooses_rows                         */
    int64_t held_out;                        /* the last rows, which are not handed out */
    int64_t all_rows;                        /* of the files; 0: not known              */
    void (*progress)(void *user, int64_t n); /* n rows of a call are there; or NULL */
    void *user;
    dlrn_status failed; /* an error that the next call returns */
    char error[1024];
} feed;

/* Opens files as a source: one pass or several, or without end (0). */
static dlrn_status open_rows(feed *f, const path_list *x, const path_list *y, int64_t width,
                             int64_t epochs, dlrn_source *out) {
    dlrn_source_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.paths = (const char *const *)x->path;
    desc.n_paths = x->n;
    desc.target_paths = y ? (const char *const *)y->path : NULL;
    desc.n_target_paths = y ? y->n : 0;
    desc.tensor = f->o->tensor;
    desc.dtype = f->o->dtype ? DLRN_BF16 : DLRN_F32;
    desc.epochs = epochs;
    desc.width = width;
    desc.target_width = f->target_width;
    return dlrn_source_open(f->ctx, &desc, out);
}

/* --held-out: a source around a source of arrays without the last rows of each epoch. */
typedef struct shortened {
    dlrn_context *ctx;
    dlrn_source inner; /* owned */
    uint64_t all;      /* rows of an epoch; inner.rows are handed out */
} shortened;

/* The next row that is handed out: after the last one of an epoch the first of the next. */
static dlrn_status shortened_position(void *user, uint64_t *position) {
    shortened *c = (shortened *)user;
    dlrn_status s = c->inner.position(c->inner.user, position);
    const uint64_t within = s == DLRN_OK ? *position % c->all : 0;
    if (within >= (uint64_t)c->inner.rows) *position += c->all - within;
    return s;
}

static dlrn_status shortened_seek(void *user, uint64_t position) {
    shortened *c = (shortened *)user;
    return c->inner.seek(c->inner.user, position);
}

static dlrn_status shortened_read(void *user, int64_t max_rows, float *x, float *y, int64_t *n) {
    shortened *c = (shortened *)user;
    uint64_t within = c->all;
    *n = 0;
    /* again after a seek: rows at an epoch's beginning may be left out, so that it goes on later */
    while (within >= (uint64_t)c->inner.rows) {
        uint64_t at = 0;
        dlrn_status s = c->inner.position(c->inner.user, &at);
        within = at % c->all;
        if (s == DLRN_OK && within >= (uint64_t)c->inner.rows)
            s = c->inner.seek(c->inner.user, at + c->all - within);
        if (s != DLRN_OK) return s;
    }
    const int64_t left = c->inner.rows - (int64_t)within;
    return c->inner.read(c->inner.user, max_rows < left ? max_rows : left, x, y, n);
}

static const char *shortened_error(void *user) {
    shortened *c = (shortened *)user;
    return c->inner.error ? c->inner.error(c->inner.user) : NULL;
}

static void shortened_destroy(void *user) {
    shortened *c = (shortened *)user;
    dlrn_source_destroy(&c->inner);
    dlrn_free(c->ctx, c);
}

/* Makes the feed's source a shortened one. */
static dlrn_status feed_shorten(feed *f) {
    dlrn_source *source = &f->inner;
    if (!source->position || !source->seek || source->rows <= f->held_out)
        return dlrn_fail(f->ctx, DLRN_ERR_ARGUMENT,
                         "%s: --held-out: expected fewer than the array's %lld rows, found %lld",
                         f->x_name, (long long)source->rows, (long long)f->held_out);
    shortened *c = (shortened *)dlrn_alloc(f->ctx, 1, sizeof *c);
    if (!c) return DLRN_ERR_MEMORY;
    c->ctx = f->ctx;
    c->inner = *source;
    c->all = (uint64_t)source->rows;
    c->inner.rows -= f->held_out;
    source->rows = c->inner.rows;
    source->read = shortened_read;
    source->position = shortened_position;
    source->seek = shortened_seek;
    source->error = shortened_error;
    source->destroy = shortened_destroy;
    source->user = c;
    return DLRN_OK;
}

/* Opens what --data and --target name. */
static dlrn_status feed_open(feed *f, int64_t epochs) {
    const options *o = f->o;
    dlrn_status s = paths_expand(f->ctx, o->data, &f->x_paths);
    if (s == DLRN_OK && o->target) s = paths_expand(f->ctx, o->target, &f->y_paths);
    if (s == DLRN_OK)
        s = open_rows(f, &f->x_paths, o->target ? &f->y_paths : NULL, f->width, epochs, &f->inner);
    f->all_rows = f->inner.rows;
    if (s == DLRN_OK && chooses_rows(o))
        s = choose_rows(f->ctx, o, f->x_name, &f->inner, &f->left_out);
    if (s == DLRN_OK && f->held_out) s = feed_shorten(f);
    return dlrn_agree(f->ctx, s);
}

static void feed_close(feed *f) {
    dlrn_source_destroy(&f->inner);
    paths_free(&f->x_paths);
    paths_free(&f->y_paths);
}

/* The file of a row, whose number becomes that in the file. Files are opened anew one by one: this
   is for an error, and the library does not say where a file begins. */
static const char *feed_locate(feed *f, const path_list *list, const char *name, uint64_t *row) {
    uint64_t left = f->all_rows > 0 ? *row % (uint64_t)f->all_rows : *row;
    for (int64_t i = 0; i < list->n && list->n > 1; i++) {
        path_list one = {list->path + i, 1, 1};
        dlrn_source s;
        const int64_t width = list == &f->y_paths ? f->target_width : f->width;
        if (open_rows(f, &one, NULL, width, 1, &s) != DLRN_OK) return name;
        uint64_t rows = (uint64_t)s.rows;
        dlrn_source_destroy(&s);
        if (left < rows) {
            *row = left;
            return list->path[i];
        }
        left -= rows;
    }
    return name;
}

/* Whether all numbers are finite. On their bits, 16 at a time, which compilers turn into vectors:
   every row goes through this. */
static int all_finite(const float *x, int64_t n) {
    int64_t at = 0;
    for (; n - at >= 16; at += 16) {
        uint32_t bits[16], most = 0;
        memcpy(bits, x + at, sizeof bits);
        for (int i = 0; i < 16; i++) most |= (bits[i] & 0x7fffffffu) + 0x00800000u;
        if (most >> 31) return 0; /* an exponent of ones */
    }
    while (at < n && x[at] - x[at] == 0) at++;
    return at >= n;
}

/* The library checks its rows, too, but does not know their file. The number of rows of x [n][d]
   before the first that is not finite; that one becomes the feed's error. first: row 0's number. */
static int64_t feed_check(feed *f, const path_list *list, const char *name, const float *x,
                          int64_t n, int64_t d, uint64_t first) {
    if (all_finite(x, n * d)) return n;
    for (int64_t i = 0; i < n * d; i++) {
        if (x[i] - x[i] == 0) continue; /* finite */
        uint64_t row = first + (uint64_t)(i / d);
        const char *path = feed_locate(f, list, name, &row);
        snprintf(f->error, sizeof f->error,
                 "%s: row %llu, column %lld: expected a finite number, found %g", path,
                 (unsigned long long)row, (long long)(i % d), (double)x[i]);
        return i / d;
    }
    return n;
}

/* Cuts the rows at a bad one; those before it are handed out first, so that a run loses none. An
   array's source goes back to it: there a run goes on that leaves bad rows out. */
static dlrn_status feed_cut(feed *f, const float *x, const float *y, uint64_t first, int64_t *n) {
    dlrn_source *in = &f->inner;
    int64_t good = feed_check(f, &f->x_paths, f->x_name, x, *n, in->d_in, first);
    if (y) good = feed_check(f, &f->y_paths, f->y_name, y, good, in->d_out, first);
    if (good == *n) return DLRN_OK;
    *n = good;
    if (f->from_array && in->seek) (void)!in->seek(in->user, first + (uint64_t)good);
    return DLRN_ERR_VALUE;
}

/* On several ranks, which all read the files: they must have read the same. */
static dlrn_status feed_agree(feed *f, dlrn_status s, const float *x, const float *y, int64_t *n) {
    const dlrn_source *in = &f->inner;
    uint64_t sum[4] = {(uint64_t)*n, (uint64_t)s, 0, 0};
    sum[2] = ranks_sum_of(x, (size_t)(*n * in->d_in) * sizeof *x);
    if (y) sum[3] = ranks_sum_of(y, (size_t)(*n * in->d_out) * sizeof *y);
    const dlrn_status same = ranks_compare(f->ctx, sum, sizeof sum, f->x_name);
    if (same == DLRN_OK) return s;
    *n = 0;
    if (same != DLRN_ERR_VALUE) return same;
    if (s != DLRN_OK && *f->error) (void)!dlrn_fail(f->ctx, s, "%s", f->error);
    /* rows that end on one rank alone are other rows */
    const dlrn_status all = dlrn_agree(f->ctx, s == DLRN_END ? DLRN_OK : s);
    if (all == DLRN_OK) (void)!ranks_compare(f->ctx, sum, sizeof sum, f->x_name);
    snprintf(f->error, sizeof f->error, "%s", dlrn_error(f->ctx));
    return all == DLRN_OK ? same : all;
}

/* Reads up to `want` rows from the inner source. */
static dlrn_status feed_piece(feed *f, int64_t want, float *x, float *y, int64_t *n) {
    dlrn_source *in = &f->inner;
    uint64_t first = (uint64_t)f->rows;
    dlrn_status s = ranks_tell_stop(f->ctx);
    *n = 0;
    if (s != DLRN_OK) return s;
    if (stopping(NULL)) return DLRN_STOPPED;
    if (f->from_array && in->position) s = in->position(in->user, &first);
    if (s == DLRN_OK) s = in->read(in->user, want, x, y, n);
    if (s != DLRN_OK && stopping(NULL))
        return DLRN_STOPPED; /* Ctrl-C also ends the program that writes our input */
    if (s == DLRN_OK) s = feed_cut(f, x, y, first, n);
    if (ranks_several() && f->from_array) s = feed_agree(f, s, x, y, n);
    f->rows += *n;
    return s;
}

/* Rows that came before a stop, the end or an error are handed out first; that is told by the next
   call. */
static dlrn_status feed_read(void *user, int64_t max_rows, float *x, float *y, int64_t *n) {
    feed *f = (feed *)user;
    dlrn_status s = f->failed;
    if (!f->inner.d_out) y = NULL;
    for (*n = 0; s == DLRN_OK && *n < max_rows;) {
        int64_t got = 0, want = max_rows - *n < PIECE ? max_rows - *n : PIECE;
        s = feed_piece(f, want, x + *n * f->inner.d_in, y ? y + *n * f->inner.d_out : NULL, &got);
        *n += got;
        if (s == DLRN_OK && f->progress) f->progress(f->user, *n);
    }
    if (s != DLRN_OK && s != DLRN_END && s != DLRN_STOPPED) f->failed = s;
    return *n > 0 ? DLRN_OK : s;
}

static dlrn_status feed_position(void *user, uint64_t *position) {
    feed *f = (feed *)user;
    return f->inner.position(f->inner.user, position);
}

static dlrn_status feed_seek(void *user, uint64_t position) {
    feed *f = (feed *)user;
    dlrn_status s = f->inner.seek(f->inner.user, position);
    f->failed = DLRN_OK;
    if (s != DLRN_OK) snprintf(f->error, sizeof f->error, "%s", dlrn_error(f->ctx));
    return s;
}

static const char *feed_error(void *user) {
    feed *f = (feed *)user;
    if (!*f->error && f->inner.error)
        snprintf(f->error, sizeof f->error, "%s", f->inner.error(f->inner.user));
    return f->error;
}

/* The feed as a source. It borrows the feed, which owns `inner`. */
static dlrn_source feed_source(feed *f) {
    dlrn_source out;
    memset(&out, 0, sizeof out);
    out.d_in = f->inner.d_in;
    out.d_out = f->inner.d_out;
    out.rows = f->inner.rows;
    out.positions = f->inner.positions;
    out.read = feed_read;
    if (f->inner.position) out.position = feed_position;
    if (f->inner.seek) out.seek = feed_seek;
    out.error = feed_error;
    out.user = f;
    return out;
}

/* Replaces an error by the feed's own words, if the feed caused it. */
static dlrn_status feed_failed(feed *f, dlrn_status s) {
    return *f->error && s != DLRN_OK && s != DLRN_STOPPED ? dlrn_fail(f->ctx, s, "%s", f->error)
                                                          : s;
}

/* --skip-nonfinite: `inner` leaves out rows that are not finite. */
static dlrn_status feed_keep_finite(feed *f) {
    dlrn_source all = f->inner;
    dlrn_status s = dlrn_source_finite(f->ctx, &all, DLRN_OWNED, &f->skipped, &f->inner);
    if (s != DLRN_OK) f->inner = all;
    return s;
}

/* Says how many rows were left out, if any. */
static void feed_tell_skipped(const feed *f) {
    if (f->skipped)
        fprintf(stderr, "%s: %lld rows were not finite and are left out\n", f->x_name,
                (long long)f->skipped);
    if (f->left_out)
        fprintf(stderr, "%s: %lld rows are left out (--skip-first, --max-norm-ratio)\n", f->x_name,
                (long long)f->left_out);
}

/* The error of a source without a row. */
static dlrn_status feed_empty(feed *f) {
    return dlrn_fail(f->ctx, DLRN_ERR_VALUE, "%s: expected %s, found none", f->x_name,
                     f->from_array ? "rows" : "documents");
}

/* A feed for --data or --text; the caller opens `inner`. */
static void feed_init(feed *f, dlrn_context *ctx, const options *o) {
    memset(f, 0, sizeof *f);
    f->ctx = ctx;
    f->o = o;
    f->from_array = o->data != NULL;
    f->x_name = o->data ? o->data : o->text;
    if (f->x_name && !strcmp(f->x_name, "-")) f->x_name = "standard input";
    f->y_name = o->target ? o->target : f->x_name;
    if (f->y_name && !strcmp(f->y_name, "-")) f->y_name = "standard input";
}
