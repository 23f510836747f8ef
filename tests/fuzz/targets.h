/* targets.h - a reader each: the input is read as a user would, and what was read is used. */
#ifndef DICTLEARN_FUZZ_TARGETS_H
#define DICTLEARN_FUZZ_TARGETS_H

#include "tests/fuzz/fuzz.h"

/* ---- Rows of activations ---- */

/* Files of a host: one, which cannot be mapped, so that a .npy is read as a stream. */
typedef struct fuzz_stream {
    const unsigned char *data;
    size_t size, at;
} fuzz_stream;

static dlrn_status fuzz_stream_open(void *user, dlrn_context *c, const char *path, int writing,
                                    void **file) {
    fuzz_stream *f = (fuzz_stream *)user;
    (void)c, (void)path, (void)writing;
    f->at = 0;
    *file = f;
    return DLRN_OK;
}

/* Few at a time, so that the reader has to ask again. */
static dlrn_status fuzz_stream_read(void *user, dlrn_context *c, void *file, void *bytes,
                                    size_t size, size_t *got) {
    fuzz_stream *f = (fuzz_stream *)file;
    (void)user, (void)c;
    *got = size < 100 ? size : 100;
    if (*got > f->size - f->at) *got = f->size - f->at;
    memcpy(bytes, f->data + f->at, *got);
    f->at += *got;
    return DLRN_OK;
}

static dlrn_status fuzz_stream_write(void *user, dlrn_context *c, void *file, const void *bytes,
                                     size_t size) {
    (void)user, (void)c, (void)file, (void)bytes, (void)size;
    return DLRN_ERR_IO;
}

static dlrn_status fuzz_stream_close(void *user, dlrn_context *c, void *file, int keep) {
    (void)user, (void)c, (void)file, (void)keep;
    return DLRN_OK;
}

static int fuzz_stream_exists(void *user, const char *path) {
    (void)user, (void)path;
    return 1;
}

/* Reads all rows of a source, seven at a time; the sum of their bits. */
static uint64_t fuzz_sum_rows(dlrn_context *in, dlrn_source *source) {
    uint64_t sum = 0;
    int64_t n = 0, total = 0;
    dlrn_status s;
    CHECK(source->d_in > 0 && source->rows >= 0 && source->positions >= 0);
    float *row = (float *)malloc(source->rows ? 7 * (size_t)source->d_in * sizeof *row : 1);
    CHECK(row != NULL);
    while ((s = source->read(source->user, 7, row, NULL, &n)) == DLRN_OK) {
        CHECK(n > 0 && n <= 7);
        for (int64_t i = 0; i < n * source->d_in; i++) sum = 31 * sum + dlrni_bits_of_float(row[i]);
        total += n;
    }
    CHECK_MSG(s == DLRN_END || strstr(dlrn_error(in), "as its header says"), "%s", dlrn_error(in));
    CHECK(total <= source->rows && (s != DLRN_END || total == source->rows));
    free(row);
    dlrn_source_destroy(source);
    return sum;
}

/* A file as rows: alone, and as two shards, with and without U16 for bf16. */
static void fuzz_rows(const unsigned char *data, size_t size) {
    fuzz_write("x.npy", data, size);
    const char *path = fuzz_path("x.npy"), *paths[2] = {path, path};
    for (int c = 0; c < 4; c++) {
        dlrn_source source;
        dlrn_source_desc desc = {paths, 1 + c % 2, NULL, 0, NULL, DLRN_F32, 1, 0, 0};
        if (c > 1) desc.dtype = DLRN_BF16;
        dlrn_status s = dlrn_source_open(ctx, &desc, &source);
        if (s == DLRN_OK)
            fuzz_sum_rows(ctx, &source);
        else if (s != DLRN_ERR_ARGUMENT) /* several tensors that fit */
            fuzz_refused(s, "x.npy");
    }
}

/* The same bytes as a stream: what it reads, a map reads, too. */
static void fuzz_stream_rows(const unsigned char *data, size_t size) {
    static const char *const name = "x.npy";
    fuzz_stream f = {data, size, 0};
    dlrn_context_config cfg = {0};
    dlrn_context *host = NULL;
    dlrn_source source;
    dlrn_source_desc desc = {&name, 1, NULL, 0, NULL, DLRN_F32, 1, 0, 0};
    cfg.threads = 1;
    cfg.io.open_file = fuzz_stream_open, cfg.io.read_file = fuzz_stream_read;
    cfg.io.write_file = fuzz_stream_write, cfg.io.close_file = fuzz_stream_close;
    cfg.io.file_exists = fuzz_stream_exists, cfg.io.user = &f;
    CHECK_STATUS(dlrn_context_create(&cfg, &host), DLRN_OK);
    dlrn_status s = dlrn_source_open(host, &desc, &source);
    /* a header may announce any width: a row of it is not read */
    int fits = s == DLRN_OK && source.rows && source.d_in <= (int64_t)size;
    uint64_t sum = fits ? fuzz_sum_rows(host, &source) : 0;
    if (s == DLRN_OK && !fits) dlrn_source_destroy(&source);
    const char *path = fuzz_path("x.npy");
    fuzz_write("x.npy", data, size);
    desc.paths = &path;
    if (fits && dlrn_source_open(ctx, &desc, &source) == DLRN_OK)
        CHECK(fuzz_sum_rows(ctx, &source) == sum);
    dlrn_context_destroy(host);
}

/* ---- Archives ---- */

/* A .pt or .npz, with all that zip may do wrong around it. */
static void fuzz_zip(const unsigned char *data, size_t size) {
    dlrn_archive *a = fuzz_open(data, size);
    if (!a) return;
    fuzz_use(a, size);
    fuzz_rows(data, size);
}

/* data.pkl of a .pt of two storages; the zip around it is whole. */
static void fuzz_pickle(const unsigned char *data, size_t size) {
    static zip z;
    static bytes pickle, storage;
    static const float numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    if (size > sizeof pickle.p / 2) return;
    pickle.n = storage.n = z.file.n = z.directory.n = 0;
    z.members = 0;
    put(&pickle, data, size);
    zip_raw(&z, "archive/data.pkl", &pickle, 0, size, 0, 0);
    put_floats(&storage, numbers, 16);
    zip_add(&z, "archive/data/0", &storage);
    storage.n = 17;
    zip_add(&z, "archive/data/1", &storage);
    bytes *file = zip_done(&z);
    dlrn_archive *a = fuzz_open(file->p, file->n);
    if (a) fuzz_use(a, size);
}

/* torch's form before 1.6. */
static void fuzz_legacy(const unsigned char *data, size_t size) {
    dlrn_archive *a = fuzz_open(data, size);
    if (a) fuzz_use(a, size);
}

static void fuzz_safetensors(const unsigned char *data, size_t size) {
    dlrn_archive *a = fuzz_open(data, size);
    if (!a) return;
    fuzz_use(a, size);
    fuzz_rows(data, size);
}

/* The index of a model in shards, which are these two files. */
static void fuzz_shards(const unsigned char *data, size_t size) {
    static const float numbers[6] = {1, 2, 3, 4, 5, 6};
    const dlrn_tensor_out tensors[2] = {{"a", DLRN_F32, 1, {6}, numbers},
                                        {"b", DLRN_F32, 2, {2, 3}, numbers}};
    dlrn_archive *a = NULL;
    CHECK_OK(ctx, dlrn_archive_write(ctx, fuzz_path("model.safetensors"), tensors, 2, NULL));
    CHECK_OK(ctx, dlrn_archive_write(ctx, fuzz_path("ae.pt"), tensors, 1, NULL));
    fuzz_write("x.index.json", data, size);
    fuzz_allow(size, 2 * FUZZ_TREE, 2 * FUZZ_LITTLE);
    dlrn_status s = dlrn_archive_open(ctx, fuzz_path("x.index.json"), &a);
    fuzz_allow_all();
    CHECK((s == DLRN_OK) == (a != NULL));
    for (int64_t i = 0; a && i < dlrn_archive_describe(a).count; i++) free(fuzz_read(a, i));
    dlrn_archive_close(a);
}

/* One array, and the rows of it as a source; those that are not there may be of any width. */
static void fuzz_npy(const unsigned char *data, size_t size) {
    dlrn_archive *a = fuzz_open(data, size);
    fuzz_stream_rows(data, size);
    if (!a) return;
    fuzz_use(a, size);
    fuzz_rows(data, size);
}

static int fuzz_is(const dlrn_archive *a, const char *format) {
    return !strcmp(dlrn_archive_describe(a).format, format);
}

/* Arrays, and the codes that they may be. */
static void fuzz_npz(const unsigned char *data, size_t size) {
    dlrn_sparse codes;
    memset(&codes, 0, sizeof codes);
    dlrn_archive *a = fuzz_open(data, size);
    if (!a) return;
    if (fuzz_is(a, "npz")) {
        fuzz_allow(size, 32 * FUZZ_DEFLATE,
                   FUZZ_LITTLE); /* bytes widen to numbers, sorted in a copy */
        dlrn_status s = dlrn_csr_read(a, &codes);
        fuzz_allow_all();
        if (s != DLRN_OK) fuzz_refused(s, "hostile.file");
        CHECK(s == DLRN_OK || codes.row_ptr == NULL);
    }
    for (int64_t i = 0; codes.row_ptr && i < codes.rows; i++)
        for (int64_t k = codes.row_ptr[i]; k < codes.row_ptr[i + 1]; k++) {
            CHECK(codes.col[k] >= 0 && codes.col[k] < codes.cols);
            CHECK(k == codes.row_ptr[i] || codes.col[k - 1] < codes.col[k]);
        }
    dlrn_sparse_free(&codes);
    fuzz_use(a, size);
}

/* ---- Texts ---- */

static void fuzz_json_value(const dlrn_json *v, int depth) {
    int64_t n = 0;
    CHECK(depth <= 65);
    CHECK((v->type == DLRN_JSON_STRING || v->type == DLRN_JSON_NUMBER) == (v->text != NULL));
    CHECK(!v->text || v->text[v->text_len] == 0);
    CHECK(!v->key || v->key[v->key_len] == 0);
    for (const dlrn_json *m = v->first; m; m = m->next, n++) {
        CHECK((v->type == DLRN_JSON_OBJECT) == (m->key != NULL));
        fuzz_json_value(m, depth + 1);
    }
    CHECK(n == v->count);
    if (v->type == DLRN_JSON_OBJECT && n)
        CHECK(strchr(v->first->key, '.') || !*v->first->key ||
              (int64_t)strlen(v->first->key) < v->first->key_len ||
              dlrn_json_get(v, v->first->key) == v->first);
}

static void fuzz_json(const unsigned char *data, size_t size) {
    dlrn_json *root = NULL;
    fuzz_allow(size, FUZZ_TREE, FUZZ_LITTLE);
    dlrn_status s = dlrn_json_parse(ctx, (const char *)data, size, "hostile.json", &root);
    fuzz_allow_all();
    CHECK((s == DLRN_OK) == (root != NULL));
    if (s != DLRN_OK) fuzz_refused(s, "hostile.json");
    if (root) fuzz_json_value(root, 1);
    dlrn_free(ctx, root);
}

/* tokenizer.json, and a text for it. */
static void fuzz_tokenizer(const unsigned char *data, size_t size) {
    size_t first, n;
    const unsigned char *text;
    bpe_tokenizer *t = NULL;
    bpe_ids ids;
    bpe_text back;
    memset(&ids, 0, sizeof ids);
    memset(&back, 0, sizeof back);
    fuzz_halves(data, size, &first, &text, &n);
    fuzz_write("tokenizer.json", data, first);
    fuzz_allow(first, 2 * FUZZ_TREE, FUZZ_LITTLE);
    dlrn_status s = bpe_load(ctx, fuzz_path("tokenizer.json"), &t);
    fuzz_allow_all();
    CHECK((s == DLRN_OK) == (t != NULL));
    if (!t) {
        fuzz_refused(s, "tokenizer.json");
        return;
    }
    fuzz_allow(size, 128 * BPE_MOST_GROWTH, FUZZ_LITTLE);
    CHECK_OK(ctx, bpe_encode(t, (const char *)text, (int64_t)n, &ids));
    fuzz_allow_all();
    for (int64_t i = 0; i < ids.count; i++) CHECK(ids.id[i] >= 0 && ids.id[i] < bpe_vocab_size(t));
    CHECK_OK(ctx, bpe_decode(t, ids.id, ids.count, &back));
    bpe_ids_free(&ids);
    bpe_text_free(&back);
    bpe_destroy(t);
}

enum { FUZZ_DOCUMENTS = 64 };

/* The next document, or its ids, as bytes. */
static dlrn_status fuzz_document(doc_reader *r, const unsigned char **bytes, size_t *n) {
    const char *text = NULL;
    const int32_t *ids = NULL;
    int64_t count = 0;
    dlrn_status s = doc_has_ids(r) ? doc_next_ids(r, &ids, &count) : doc_next(r, &text, &count);
    if (s != DLRN_OK) return s;
    CHECK(count > 0 && (ids || text[count] == 0));
    for (int64_t i = 0; ids && i < count; i++) CHECK(ids[i] >= 0 && ids[i] < 50);
    *bytes = ids ? (const unsigned char *)ids : (const unsigned char *)text;
    *n = (size_t)count * (ids ? sizeof *ids : 1);
    return DLRN_OK;
}

/* The text behind the first byte, which tells how it is read: all documents, then each of them
   again from its place. */
static void fuzz_documents(const unsigned char *data, size_t size) {
    const unsigned char *bytes = NULL;
    uint64_t place[FUZZ_DOCUMENTS], before = 0;
    uint32_t sum[FUZZ_DOCUMENTS];
    int64_t count = 0;
    size_t n = 0;
    doc_reader *r = NULL;
    if (!size) return;
    const doc_format how = {data[0] & 4 ? "a.b" : NULL, data[0] & 2 ? "input_ids" : NULL, 50,
                            data[0] >> 3 & 1};
    const int packed = size > 3 && data[1] == 0x1F && data[2] == 0x8B;
    fuzz_write("text.txt", data + 1, size - 1);
    fuzz_allow(size, packed ? FUZZ_TREE * FUZZ_DEFLATE : FUZZ_TREE, FUZZ_LITTLE);
    dlrn_status s = doc_open_as(ctx, fuzz_path("text.txt"), &how, &r);
    CHECK((s == DLRN_OK) == (r != NULL));
    while (r && (s = fuzz_document(r, &bytes, &n)) == DLRN_OK) {
        CHECK(doc_position(r) > before && (packed || doc_position(r) < size));
        if (count < FUZZ_DOCUMENTS)
            place[count] = before, sum[count++] = dlrni_crc32(0, bytes, (uint64_t)n);
        before = doc_position(r);
    }
    if (s != DLRN_END) fuzz_refused(s, "text.txt");
    CHECK(!how.skip_bad || !r || doc_bad_lines(r, NULL) <= (int64_t)before + (int64_t)size);
    fuzz_allow_all();
    while (count-- > 0) {
        CHECK_OK(ctx, doc_seek(r, place[count]));
        CHECK_OK(ctx, fuzz_document(r, &bytes, &n));
        CHECK(dlrni_crc32(0, bytes, (uint64_t)n) == sum[count]);
    }
    doc_close(r);
}

/* Reads a stream on to its end, its error, or for a while; the sum of the bytes. */
static dlrn_status fuzz_stream_rest(dlrn_stream *stream, size_t portion, uint32_t *sum) {
    static unsigned char part[5000];
    size_t got = 1;
    dlrn_status s = DLRN_OK;
    for (*sum = 0; s == DLRN_OK && got && dlrn_stream_position(stream) < 1 << 20;) {
        s = dlrn_stream_read(stream, part, portion, &got);
        *sum = dlrni_crc32(*sum, part, got);
    }
    return s;
}

/* A file in gzip, or deflated data that gets a header; once more in another portion from a place in
   the middle. */
static void fuzz_gzip(const unsigned char *data, size_t size) {
    static bytes file;
    dlrn_stream *stream = NULL;
    uint32_t sum, rest, again;
    file.n = 0;
    if (size + 10 > sizeof file.p) return;
    if (size && data[0] != 0x1F) put(&file, "\x1f\x8b\x08\0\0\0\0\0\0\x03", 10);
    put(&file, data, size);
    fuzz_write("text.txt", file.p, file.n);
    fuzz_allow(0, 0, FUZZ_LITTLE); /* whatever the input */
    CHECK_OK(ctx, dlrn_stream_open(ctx, fuzz_path("text.txt"), &stream));
    dlrn_status s = fuzz_stream_rest(stream, 1 + size % 4999, &sum);
    if (s != DLRN_OK) fuzz_refused(s, "text.txt");
    const uint64_t end = dlrn_stream_position(stream), middle = end / 2 + end / 5;
    CHECK_OK(ctx, dlrn_stream_seek(stream, middle));
    CHECK_STATUS(fuzz_stream_rest(stream, 5000, &rest), s);
    CHECK_OK(ctx, dlrn_stream_seek(stream, middle));
    CHECK_STATUS(fuzz_stream_rest(stream, 1 + size % 4999, &again), s);
    CHECK(rest == again || end >= 1 << 20);
    dlrn_stream_close(stream);
    fuzz_allow_all();
}

/* ---- Dictionaries and models ---- */

static void fuzz_weights(const float *w, int64_t n) {
    for (int64_t i = 0; i < n; i++) CHECK(isfinite(w[i]));
}

static void fuzz_same_weights(const float *a, const float *b, int64_t n) {
    CHECK(!memcmp(a, b, (size_t)n * sizeof *a));
}

/* Encodes and decodes a row, saves the dictionary and loads it again. */
static void fuzz_use_dictionary(dlrn_dictionary *ae, size_t choice) {
    static const char *const names[3] = {"again.pt", "again.safetensors", "again.npz"};
    const int64_t d = ae->d_in, F = ae->features;
    dlrn_dictionary *back = NULL;
    dlrn_sparse codes;
    memset(&codes, 0, sizeof codes);
    float *x = (float *)malloc((size_t)d * 2 * sizeof *x);
    CHECK(x != NULL);
    for (int64_t i = 0; i < d; i++) x[i] = (float)(i % 7) - 3;
    CHECK_OK(ctx, dlrn_forward(ae, x, 1, x + d, &codes));
    CHECK(codes.rows == 1 && codes.cols == F && codes.row_ptr[1] <= F);
    for (int64_t k = 0; k < codes.row_ptr[1]; k++) CHECK(codes.col[k] >= 0 && codes.col[k] < F);
    dlrn_sparse_free(&codes);
    free(x);
    CHECK_OK(ctx, dlrn_save(ae, fuzz_path(names[choice % 3])));
    remove(fuzz_path("config.json")); /* which speaks of the first */
    CHECK_OK(ctx, dlrn_load(ctx, fuzz_path(names[choice % 3]), NULL, &back));
    CHECK(back->d_in == d && back->features == F);
    fuzz_same_weights(ae->param[DLRN_ENCODER], back->param[DLRN_ENCODER], F * d);
    fuzz_same_weights(ae->param[DLRN_DECODER], back->param[DLRN_DECODER], F * d);
    fuzz_same_weights(ae->param[DLRN_ENCODER_BIAS], back->param[DLRN_ENCODER_BIAS], F);
    fuzz_same_weights(ae->param[DLRN_OUTPUT_BIAS], back->param[DLRN_OUTPUT_BIAS], d);
    dlrn_dictionary_destroy(back);
}

/* A folder of config.json and ae.pt, in whatever form that is. */
static void fuzz_dictionary(const unsigned char *data, size_t size) {
    size_t first, n;
    const unsigned char *weights;
    dlrn_dictionary *ae = NULL;
    fuzz_halves(data, size, &first, &weights, &n);
    fuzz_write("ae.pt", weights, n);
    if (first) fuzz_write("config.json", data, first);
    fuzz_allow(size, FUZZ_DEFLATE + FUZZ_NODES, FUZZ_LITTLE);
    dlrn_status s = dlrn_load(ctx, fuzz_folder(), NULL, &ae);
    fuzz_allow_all();
    CHECK((s == DLRN_OK) == (ae != NULL));
    if (s != DLRN_OK)
        fuzz_refused(s, strstr(dlrn_error(ctx), "config.json") ? "config.json" : "ae.pt");
    remove(fuzz_path("ae.pt"));
    if (ae) CHECK(ae->d_in > 0 && ae->features > 0);
    if (ae && ae->param[DLRN_ENCODER]) {
        fuzz_weights(ae->param[DLRN_ENCODER], ae->features * ae->d_in);
        fuzz_weights(ae->param[DLRN_DECODER], ae->features * ae->d_in);
        fuzz_weights(ae->param[DLRN_ENCODER_BIAS], ae->features);
        fuzz_weights(ae->param[DLRN_OUTPUT_BIAS], ae->d_in);
        fuzz_use_dictionary(ae, size);
    }
    dlrn_dictionary_destroy(ae);
    remove(fuzz_path("config.json"));
}

/* A checkpoint: the trainer goes on for a step, and is saved and resumed once more. */
static void fuzz_checkpoint(const unsigned char *data, size_t size) {
    dlrn_trainer *t = NULL, *again = NULL;
    fuzz_write("again.pt", data, size);
    fuzz_allow(size, FUZZ_DEFLATE + FUZZ_NODES, FUZZ_LITTLE);
    dlrn_status s = dlrn_trainer_resume(ctx, fuzz_path("again.pt"), NULL, NULL, &t);
    fuzz_allow_all();
    CHECK((s == DLRN_OK) == (t != NULL));
    if (!t) {
        fuzz_refused(s, "again.pt");
        return;
    }
    const int64_t d = dlrn_trainer_describe(t).config->d_in,
                  F = dlrn_trainer_describe(t).config->features;
    CHECK_OK(ctx, dlrn_trainer_save(t, fuzz_path("again.safetensors")));
    CHECK_OK(ctx, dlrn_trainer_resume(ctx, fuzz_path("again.safetensors"), NULL, NULL, &again));
    fuzz_same_weights(dlrn_trainer_describe(t).dictionary->param[DLRN_ENCODER],
                      dlrn_trainer_describe(again).dictionary->param[DLRN_ENCODER], F * d);
    dlrn_trainer_destroy(again);
    float *x = (float *)malloc((size_t)(2 * d) * sizeof *x);
    CHECK(x != NULL);
    for (int64_t i = 0; i < 2 * d; i++) x[i] = (float)(i % 7) - 3;
    s = dlrn_trainer_step_on(t, x, NULL, 2, NULL);
    CHECK_MSG(s == DLRN_OK || s == DLRN_ERR_VALUE, "%s", dlrn_error(ctx)); /* weights may be vast */
    free(x);
    dlrn_trainer_destroy(t);
}

/* A folder of config.json and model.safetensors: a short text through all of it. */
static void fuzz_model(const unsigned char *data, size_t size) {
    size_t first, n;
    const unsigned char *weights;
    lm_model *m = NULL;
    fuzz_halves(data, size, &first, &weights, &n);
    fuzz_write("config.json", data, first);
    fuzz_write("model.safetensors", weights, n);
    fuzz_allow(size, 2 * FUZZ_TREE, 16 * FUZZ_LITTLE);
    dlrn_status s = lm_load(ctx, fuzz_folder(), &m);
    CHECK((s == DLRN_OK) == (m != NULL));
    if (m) {
        const lm_config *c = lm_config_of(m);
        const hf_shape *shape = &((const hf_model *)m)->shape;
        const int64_t tokens = c->positions < 3 ? c->positions : 3, start[2] = {0, tokens};
        const int32_t id[3] = {0, (int32_t)(c->vocab - 1), (int32_t)(c->vocab / 2)};
        const lm_batch batch = {id, start, 1};
        CHECK(c->dim > 0 && c->layers > 0 && c->heads > 0 && c->vocab > 0);
        CHECK(shape->head_dim * c->heads == c->dim);
        CHECK(shape->rope.dims >= 0 && shape->rope.dims <= shape->head_dim &&
              shape->rope.dims % 2 == 0);
        s = lm_run(m, &batch, NULL, 0, NULL, NULL, 1);
        if (s == DLRN_OK) {
            float *logits = (float *)malloc((size_t)(tokens * c->vocab) * sizeof *logits);
            CHECK(logits != NULL);
            CHECK_OK(ctx, lm_logits(m, 0, tokens, logits));
            free(logits);
        }
    }
    fuzz_allow_all();
    if (s != DLRN_OK)
        fuzz_refused(s,
                     strstr(dlrn_error(ctx), "config.json") ? "config.json" : "model.safetensors");
    lm_destroy(m);
}
#endif /* DICTLEARN_FUZZ_TARGETS_H */
