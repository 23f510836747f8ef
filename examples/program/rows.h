/* dictlearn encode, decode and reconstruct. Files are streamed in blocks of rows, so memory does
   not grow with them. */

enum { BLOCK = 1024 };

typedef struct array {
    dlrn_archive *file;
    char *bytes; /* of standard input, read whole */
    int is_codes;
    dlrn_sparse codes;
    int64_t rows, width;
} array;

static void array_close(dlrn_context *ctx, array *a) {
    dlrn_sparse_free(&a->codes);
    dlrn_archive_close(a->file);
    dlrn_free(ctx, a->bytes);
}

/* Opens rows in a .npy or, if takes_codes, codes in a CSR .npz; the content tells which. */
static dlrn_status array_open(dlrn_context *ctx, const char *path, int takes_codes, array *a) {
    size_t size = 0;
    dlrn_status s;
    memset(a, 0, sizeof *a);
    if (strcmp(path, "-")) {
        s = dlrn_archive_open(ctx, path, &a->file);
    } else {
        s = dlrn_file_read(ctx, "-", &a->bytes, &size);
        if (s == DLRN_OK)
            s = dlrn_archive_open_memory(ctx, a->bytes, size, "standard input", &a->file);
    }
    if (s != DLRN_OK) return s;
    const dlrn_tensor_info *t = dlrn_archive_tensor(a->file, 0);
    if (takes_codes && !strcmp(dlrn_archive_describe(a->file).format, "npz")) {
        a->is_codes = 1;
        s = dlrn_csr_read(a->file, &a->codes);
        a->rows = a->codes.rows;
        a->width = a->codes.cols;
        return s;
    }
    if (strcmp(dlrn_archive_describe(a->file).format, "npy") || !t || t->ndim != 2)
        return dlrn_fail(ctx, DLRN_ERR_SHAPE,
                         "%s: expected an array [rows, width] in .npy%s, found %s of %d dimensions",
                         dlrn_archive_describe(a->file).path, takes_codes ? " or CSR in .npz" : "",
                         dlrn_archive_describe(a->file).format, t ? t->ndim : 0);
    a->rows = t->shape[0];
    a->width = t->shape[1];
    return DLRN_OK;
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

/* Reads, transforms and writes block after block. With --sparse the blocks are encoded to codes. */
static dlrn_status stream_rows(dlrn_context *ctx, const dlrn_dictionary *dict, const options *o,
                               array *in, int64_t out_width, row_step step) {
    dlrn_tensor x, y;
    dlrn_sparse codes;
    dlrn_writer *w = NULL;
    memset(&codes, 0, sizeof codes);
    dlrn_status s = dlrn_tensor_alloc(ctx, in->is_codes ? 0 : BLOCK, in->width, &x);
    if (s != DLRN_OK) return s;
    s = dlrn_tensor_alloc(ctx, o->sparse ? 0 : BLOCK, out_width, &y);
    if (s == DLRN_OK)
        s = o->sparse ? dlrn_csr_create(ctx, o->out, out_width, &w)
                      : dlrn_npy_create(ctx, o->out, out_width, in->rows, &w);
    for (int64_t i = 0; i < in->rows && s == DLRN_OK; i += BLOCK) {
        int64_t n = in->rows - i < BLOCK ? in->rows - i : BLOCK;
        if (stopping(NULL)) s = DLRN_STOPPED;
        if (s == DLRN_OK && !in->is_codes) s = dlrn_archive_read(in->file, 0, i, n, x.data);
        if (s == DLRN_OK && in->is_codes)
            s = decode_rows(dict, &in->codes, i, n, y.data);
        else if (s == DLRN_OK)
            s = o->sparse ? dlrn_encode_sparse(dict, x.data, n, &codes)
                          : step(dict, x.data, n, y.data);
        if (s == DLRN_OK)
            s = o->sparse ? dlrn_csr_append(w, &codes) : dlrn_npy_append(w, y.data, n);
    }
    s = close_writer(w, s);
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
        check_suffix(name, o->out, o->sparse ? ".npz" : ".npy", ""))
        return 2;
    dlrn_status s = dlrn_load(ctx, o->dict, o->layout, &dict);
    if (s == DLRN_OK) s = array_open(ctx, o->data, features_in, &in);
    if (s == DLRN_OK) {
        const char *path = strcmp(o->data, "-") ? o->data : "standard input";
        s = expect_width(ctx, path, features_in ? dict->features : dict->d_in, in.width);
    }
    if (s == DLRN_OK)
        s = stream_rows(ctx, dict, o, &in, features_out ? dict->features : dict->d_out, step);
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
