/* dictlearn encode, decode and reconstruct. Rows are streamed in blocks, so memory does not grow
   with them; sparse codes to be decoded, and rows that are one sequence, are read whole. */

enum { BLOCK = 1024 };

typedef struct array {
    feed feed; /* of rows, unless they are codes */
    dlrn_archive *file;
    char *bytes; /* of standard input, read whole */
    int is_codes;
    dlrn_sparse codes;
    int64_t rows, width; /* rows: as announced */
} array;

static void array_close(dlrn_context *ctx, array *a) {
    dlrn_sparse_free(&a->codes);
    dlrn_archive_close(a->file);
    dlrn_free(ctx, a->bytes);
    feed_close(&a->feed);
}

/* Whether a file, or standard input, is a zip; that is left as it was. Folders, patterns and pipes
   are not. */
static dlrn_status is_zip(dlrn_context *ctx, const char *path, int *yes) {
    struct stat st;
    *yes = 0;
    if (!strcmp(path, "-")) {
        int first = getc(stdin);
        *yes = first != EOF && ungetc(first, stdin) == 'P'; /* of PK */
        return DLRN_OK;
    }
    if (stat(path, &st) != 0 || !S_ISREG(st.st_mode)) return DLRN_OK;
    FILE *f = fopen(path, "rb");
    if (!f) return dlrn_fail(ctx, DLRN_ERR_IO, "%s: cannot open it: %s", path, strerror(errno));
    *yes = getc(f) == 'P';
    fclose(f);
    return DLRN_OK;
}

/* Opens codes in a CSR .npz, if the path holds such; else leaves a->is_codes 0. The content tells
   which. Standard input cannot be opened twice. */
static dlrn_status codes_open(dlrn_context *ctx, const char *path, array *a) {
    int zip;
    size_t size = 0;
    dlrn_status s = is_zip(ctx, path, &zip);
    if (s != DLRN_OK || !zip) return s;
    if (strcmp(path, "-")) {
        s = dlrn_archive_open(ctx, path, &a->file);
    } else {
        s = dlrn_file_read(ctx, "-", &a->bytes, &size);
        if (s == DLRN_OK)
            s = dlrn_archive_open_memory(ctx, a->bytes, size, "standard input", &a->file);
    }
    if (s != DLRN_OK) return s;
    a->is_codes = !strcmp(dlrn_archive_describe(a->file).format, "npz") &&
                  dlrn_archive_find(a->file, "shape") >= 0 &&
                  dlrn_archive_find(a->file, "data") >= 0; /* of SciPy; not all are CSR */
    if (a->bytes && !a->is_codes)
        return dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED,
                         "standard input: expected rows in .npy or CSR in .npz, found %s",
                         dlrn_archive_describe(a->file).format);
    if (!a->is_codes) {
        dlrn_archive_close(a->file);
        a->file = NULL;
        return DLRN_OK;
    }
    s = dlrn_csr_read(a->file, &a->codes);
    a->rows = a->codes.rows;
    a->width = a->codes.cols;
    return s;
}

/* Opens --data: rows of `width` or, if takes_codes, codes. */
static dlrn_status array_open(dlrn_context *ctx, const options *o, int takes_codes, int64_t width,
                              array *a) {
    memset(a, 0, sizeof *a);
    feed_init(&a->feed, ctx, o);
    a->feed.width = width;
    dlrn_status s = takes_codes ? codes_open(ctx, o->data, a) : DLRN_OK;
    if (s != DLRN_OK || a->is_codes) return s;
    s = feed_open(&a->feed, 1);
    a->rows = a->feed.inner.rows;
    a->width = a->feed.inner.d_in;
    return s;
}

/* What a command does with a block: rows x [n][in] to y [n][out]. */
typedef dlrn_status (*row_step)(const dlrn_dictionary *dict, const float *x, int64_t n, float *y);

static dlrn_status reconstruct_rows(const dlrn_dictionary *dict, const float *x, int64_t n,
                                    float *y) {
    return dlrn_forward(dict, x, n, y, NULL);
}

/* Decodes rows [first, first + n) of the codes, n <= BLOCK, without a copy. */
static dlrn_status decode_rows(const dlrn_dictionary *dict, const dlrn_sparse *codes, int64_t first,
                               int64_t n, float *y) {
    int64_t ptr[BLOCK + 1], from = codes->row_ptr[first];
    dlrn_sparse view = *codes;
    for (int64_t i = 0; i <= n; i++) ptr[i] = codes->row_ptr[first + i] - from;
    view.rows = n;
    view.row_ptr = ptr;
    view.col += from;
    view.val += from;
    return dlrn_decode_sparse(dict, &view, y);
}

/* Says how far a command is, if it is time to. */
static void tell_rows(const options *o, int64_t done, int64_t rows, double started, double *told) {
    char left[32];
    double now = seconds(), rate = per_second(done, now - started);
    if (o->quiet || now - *told < (isatty(2) ? 0.2 : 5.0)) return;
    *told = now;
    tell("%lld of %lld rows, %.0f rows/s, %s left", (long long)done, (long long)rows, rate,
         time_text((double)(rows - done) / (rate > 1 ? rate : 1), left, sizeof left));
}

/* How many rows x are handled at once: all, where attention makes them one sequence. */
static int64_t rows_at_once(const dlrn_dictionary *dict, const array *in) {
    if (in->is_codes) return 0;
    return dict->heads && in->rows > BLOCK ? in->rows : BLOCK;
}

/* The next block of rows or codes of `in`: *n rows, x [*n][width] if they are rows, up to max. A
   source may give fewer, so more than BLOCK are read on. DLRN_END: there are no more. */
static dlrn_status next_block(array *in, const dlrn_source *source, int64_t done, int64_t max,
                              float *x, int64_t *n) {
    *n = in->rows - done < BLOCK ? in->rows - done : BLOCK;
    if (stopping(NULL)) return DLRN_STOPPED;
    if (in->is_codes) return *n > 0 ? DLRN_OK : DLRN_END;
    dlrn_status s = source->read(source->user, max, x, NULL, n);
    while (s == DLRN_OK && max > BLOCK && *n < max) {
        int64_t more = 0;
        s = source->read(source->user, max - *n, x + *n * in->width, NULL, &more);
        *n += more;
    }
    return s;
}

/* write_block on several ranks, each of which has the codes of its own features: rank 0 writes
   them all. */
static dlrn_status write_shared(const dlrn_dictionary *dict, int64_t n, const float *x, float *y,
                                dlrn_sparse *codes, int sparse, dlrn_writer *w) {
    dlrn_sparse all;
    memset(&all, 0, sizeof all);
    dlrn_status s = dlrn_encode_sparse(dict, x, n, codes);
    if (s == DLRN_OK) s = dlrn_gather_codes(dict, codes, is_first() ? &all : NULL);
    if (s == DLRN_OK && is_first() && sparse) s = dlrn_csr_append(w, &all);
    if (s == DLRN_OK && is_first() && !sparse) {
        memset(y, 0, (size_t)(n * all.cols) * sizeof *y);
        for (int64_t i = 0; i < n; i++)
            for (int64_t k = all.row_ptr[i]; k < all.row_ptr[i + 1]; k++)
                y[i * all.cols + all.col[k]] = all.val[k];
        s = dlrn_npy_append(w, y, n);
    }
    dlrn_sparse_free(&all);
    return dlrn_agree(dict->ctx, s);
}

/* A row step for a block, or with --sparse the encoding to codes; then writes what came out. */
static dlrn_status write_block(const dlrn_dictionary *dict, const array *in, int64_t done,
                               int64_t n, row_step step, const float *x, float *y,
                               dlrn_sparse *codes, int sparse, dlrn_writer *w) {
    if (ranks_several()) return write_shared(dict, n, x, y, codes, sparse, w);
    dlrn_status s = in->is_codes ? decode_rows(dict, &in->codes, done, n, y)
                    : sparse     ? dlrn_encode_sparse(dict, x, n, codes)
                                 : step(dict, x, n, y);
    if (s != DLRN_OK) return s;
    return sparse ? dlrn_csr_append(w, codes) : dlrn_npy_append(w, y, n);
}

/* Reads, transforms and writes block after block. */
static dlrn_status stream_rows(dlrn_context *ctx, const dlrn_dictionary *dict, const options *o,
                               array *in, int64_t out_width, int64_t layers, row_step step) {
    dlrn_tensor x, y;
    dlrn_sparse codes;
    dlrn_writer *w = NULL;
    dlrn_source source = feed_source(&in->feed);
    double started = seconds(), told = started;
    int64_t done = 0, max = rows_at_once(dict, in);
    memset(&codes, 0, sizeof codes);
    memset(&y, 0, sizeof y);
    dlrn_status s = dlrn_tensor_alloc(ctx, max, in->width, &x);
    if (s == DLRN_OK)
        s = dlrn_tensor_alloc(ctx, o->sparse ? 0 : max > BLOCK ? max : BLOCK, out_width, &y);
    if (s == DLRN_OK && is_first())
        s = o->sparse ? dlrn_csr_create(ctx, o->out, out_width, &w)
                      : dlrn_npy_create_layers(ctx, o->out, out_width, layers, in->rows, &w);
    s = dlrn_agree(ctx, s);
    while (s == DLRN_OK) {
        int64_t n = 0;
        s = next_block(in, &source, done, max, x.data, &n);
        if (s == DLRN_OK)
            s = write_block(dict, in, done, n, step, x.data, y.data, &codes, o->sparse, w);
        done += n;
        if (s == DLRN_OK) tell_rows(o, done, in->rows, started, &told);
    }
    tell_end();
    s = s == DLRN_END ? DLRN_OK : feed_failed(&in->feed, s);
    const int good = s == DLRN_OK; /* the same on all ranks */
    if (w) s = close_writer(w, s);
    if (good) s = dlrn_agree(ctx, s);
    dlrn_sparse_free(&codes);
    dlrn_free(ctx, x.data);
    dlrn_free(ctx, y.data);
    return s;
}

/* Refuses rows of another width than the dictionary's. */
static dlrn_status expect_width(dlrn_context *ctx, const char *path, int64_t expected,
                                int64_t found) {
    if (expected == found) return DLRN_OK;
    return dlrn_fail(ctx, DLRN_ERR_SHAPE,
                     "%s: wrong width, expected %lld, found %lld (the dictionary has %lld)", path,
                     (long long)expected, (long long)found, (long long)expected);
}

/* features_in, features_out: whether rows of features are read and written, or of activations. */
static int run_rows(dlrn_context *ctx, const options *o, const char *name, int features_in,
                    int features_out, row_step step) {
    dlrn_dictionary *dict = NULL;
    array in;
    memset(&in, 0, sizeof in);
    if (lacks_flag(name, "--dict", o->dict) || lacks_flag(name, "--data", o->data) ||
        lacks_flag(name, "--out", o->out) ||
        check_suffix(name, o->out, o->sparse ? ".npz" : ".npy", "") || check_array_flags(name, o))
        return 2;
    dlrn_status s = load_dictionary(ctx, o->dict, o, &dict);
    const int64_t width = s != DLRN_OK ? 0 : features_in ? dict->span_of : dict->d_in;
    if (s == DLRN_OK) s = array_open(ctx, o, features_in, width, &in);
    if (s == DLRN_OK) s = expect_width(ctx, in.feed.x_name, width, in.width);
    if (s == DLRN_OK && dict->heads && in.rows < 0)
        s = dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED,
                      "%s: expected a known number of rows, as this dictionary encodes all of them "
                      "together",
                      in.feed.x_name);
    if (s == DLRN_OK)
        s = features_out ? stream_rows(ctx, dict, o, &in, dict->span_of, dict->feature_layers, step)
                         : stream_rows(ctx, dict, o, &in, dict->d_out, dict->layers, step);
    array_close(ctx, &in);
    dlrn_dictionary_destroy(dict);
    return s == DLRN_OK ? 0 : fail(ctx);
}

static int run_encode(dlrn_context *ctx, const options *o) {
    return run_rows(ctx, o, "encode", 0, 1, dlrn_encode);
}

static int run_reconstruct(dlrn_context *ctx, const options *o) {
    return run_rows(ctx, o, "reconstruct", 0, 0, reconstruct_rows);
}

static int run_decode(dlrn_context *ctx, const options *o) {
    return run_rows(ctx, o, "decode", 1, 0, dlrn_decode);
}
