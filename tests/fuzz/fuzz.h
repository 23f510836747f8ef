/* fuzz.h - what the targets share: a context whose memory is counted, files of hostile bytes, and
   what must hold of every archive that opens and of every error. A check that fails leaves through
   test.h: it ends a fuzzer's run, and fails the file that is replayed. */
#ifndef DICTLEARN_FUZZ_H
#define DICTLEARN_FUZZ_H

#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#define LM_IMPLEMENTATION
#define DOC_POSIX 0 /* no process is started for an input that seems to be of zstd */
#include "lm/lm.h"
#include "tests/bytes.h"
#include "tests/starve.h"

enum {
    FUZZ_NUMBERS = 1 << 14, /* what is saved again: at most so much of it */
    FUZZ_TENSORS = 64,
    FUZZ_DEFLATE = 1032,     /* what deflate can give at most                */
    FUZZ_NODES = 1024,       /* a pickle's values for each of its bytes      */
    FUZZ_TREE = 256,         /* JSON's values for each of its bytes          */
    FUZZ_LITTLE = 256 * 1024 /* what an empty file may take: the first chunk */
};

/* Reading an input of `size` bytes may take factor * size + constant at its peak; what asks for
   more gets none. */
static size_t fuzz_before;
static void fuzz_allow(size_t size, size_t factor, size_t constant) {
    fuzz_before = starve.peak = starve.in_use;
    starve.most = starve.in_use + factor * size + constant;
}

static void fuzz_allow_all(void) {
    CHECK_MSG(starve.peak <= starve.most, "%zu bytes were asked for, expected at most %zu",
              starve.peak - fuzz_before, starve.most - fuzz_before);
    starve.most = 0;
}

/* An error that a file may cause: it names the file, in one line. */
static void fuzz_refused(dlrn_status s, const char *name) {
    const char *text = dlrn_error(ctx);
    CHECK_MSG(s == DLRN_ERR_IO || s == DLRN_ERR_FORMAT || s == DLRN_ERR_UNSUPPORTED ||
                  s == DLRN_ERR_SHAPE || s == DLRN_ERR_VALUE,
              "%s: %s", test_status_name(s), text);
    CHECK_STR(text, name);
    for (const char *c = text; *c; c++)
        CHECK_MSG((unsigned char)*c >= 32 && *c != 127, "the byte %d in '%s'", *c, text);
}

/* ---- Files ---- */

/* A folder of this process alone, in memory where the system has such. */
static const char *fuzz_folder(void) {
    static char folder[64];
    if (!*folder) {
        const char *in = dlrn_file_exists(NULL, "/dev/shm") == 2 ? "/dev/shm" : ".";
        snprintf(folder, sizeof folder, "%s/dictlearn-fuzz.%ld", in, (long)getpid());
        mkdir(folder, 0777);
    }
    return folder;
}

static const char *fuzz_path(const char *name) {
    return test_path(fuzz_folder(), name);
}

static void fuzz_write(const char *name, const void *bytes, size_t size) {
    FILE *f = fopen(fuzz_path(name), "wb");
    CHECK(f != NULL);
    int good = !size || fwrite(bytes, 1, size, f) == size;
    CHECK(fclose(f) == 0 && good);
}

/* Also after a check that failed. */
static void fuzz_clean(void) {
    static const char *const names[] = {"ae.pt",      "config.json",       "model.safetensors",
                                        "again.pt",   "again.npz",         "text.txt",
                                        "text.jsonl", "again.safetensors", "tokenizer.json",
                                        "x.npy",      "x.index.json"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) remove(fuzz_path(names[i]));
    remove(fuzz_folder());
}

/* Two files in one input, a 0 byte between them; without one, all of it is the second. */
static void fuzz_halves(const unsigned char *data, size_t size, size_t *first,
                        const unsigned char **second, size_t *second_size) {
    const unsigned char *zero = size ? (const unsigned char *)memchr(data, 0, size) : NULL;
    *first = zero ? (size_t)(zero - data) : 0;
    *second = zero ? zero + 1 : data;
    *second_size = size - (size_t)(*second - data);
}

/* ---- Archives ---- */

static int64_t fuzz_numel(const dlrn_tensor_info *info) {
    int64_t n = 1;
    for (int i = 0; i < info->ndim; i++) {
        CHECK(info->shape[i] >= 0);
        if (info->shape[i] == 0) return 0;
    }
    for (int i = 0; i < info->ndim; i++) {
        CHECK(n <= INT64_MAX / info->shape[i]);
        n *= info->shape[i];
    }
    return n;
}

/* All numbers of a tensor, by rows and as a whole, into a block of exactly their size, which is the
   caller's. */
static float *fuzz_read(dlrn_archive *a, int64_t index) {
    const dlrn_tensor_info *info = dlrn_archive_tensor(a, index);
    CHECK(info && info->name && dlrn_archive_find(a, info->name) == index);
    CHECK(info->ndim >= 0 && info->ndim <= DLRN_MAX_DIMS &&
          (unsigned)info->dtype < DLRN_DTYPE_COUNT);
    const int64_t n = fuzz_numel(info), rows = info->ndim ? info->shape[0] : 1;
    CHECK(n == info->numel);
    const size_t bytes = (size_t)n * sizeof(float);
    float *x = (float *)malloc(bytes + 1), *again = (float *)malloc(bytes + 1);
    int64_t *whole = (int64_t *)malloc((size_t)n * sizeof *whole + 1);
    CHECK(x && again && whole);
    const int readable = dlrni_is_readable(info->dtype);
    const int is_real = readable && (dlrni_is_float(info->dtype) || n <= 1);
    CHECK_STATUS(dlrn_archive_read(a, index, 0, -1, x), is_real ? DLRN_OK : DLRN_ERR_UNSUPPORTED);
    dlrn_status s = dlrni_archive_read_i64(a, index, whole);
    CHECK(s == (dlrni_is_float(info->dtype) || !readable ? DLRN_ERR_FORMAT : DLRN_OK));
    for (int64_t i = 0; !is_real && i < n; i++) x[i] = readable ? (float)whole[i] : 0;
    if (is_real) {
        CHECK_OK(ctx, dlrn_archive_read(a, index, 0, rows / 2, again));
        CHECK_OK(ctx, dlrn_archive_read(a, index, rows / 2, rows - rows / 2,
                                        again + (n ? n / rows * (rows / 2) : 0)));
        CHECK_MSG(!memcmp(x, again, bytes), "tensor '%s' is another by its rows", info->name);
    }
    CHECK_STATUS(dlrn_archive_read(a, index, rows, 1, again), DLRN_ERR_ARGUMENT);
    free(again);
    free(whole);
    return x;
}

/* What was written is refused by name, or reads back as the same bits. */
static void fuzz_save(const dlrn_tensor_out *t, int64_t count, const char *form) {
    char name[32];
    dlrn_archive *a = NULL;
    snprintf(name, sizeof name, "again.%s", form);
    dlrn_status s = dlrn_archive_write(ctx, fuzz_path(name), t, count, NULL);
    CHECK_MSG(s == DLRN_OK || s == DLRN_ERR_ARGUMENT || s == DLRN_ERR_UNSUPPORTED, "%s: %s", form,
              dlrn_error(ctx));
    if (s != DLRN_OK) return;
    CHECK_OK(ctx, dlrn_archive_open(ctx, fuzz_path(name), &a));
    CHECK(dlrn_archive_describe(a).count == count);
    for (int64_t i = 0; i < count; i++) {
        int64_t at = dlrn_archive_find(a, t[i].name);
        CHECK_MSG(at >= 0, "%s: no tensor '%s'", form, t[i].name);
        CHECK(dlrn_archive_tensor(a, at)->ndim == t[i].ndim);
        float *x = fuzz_read(a, at);
        CHECK(!memcmp(x, t[i].data, (size_t)dlrn_archive_tensor(a, at)->numel * sizeof *x));
        free(x);
    }
    dlrn_archive_close(a);
}

/* Reads each tensor of an archive, writes what is not too much of it in one of the forms, and
   closes the archive. */
static void fuzz_use(dlrn_archive *a, size_t choice) {
    static const char *const forms[3] = {"pt", "safetensors", "npz"};
    dlrn_tensor_out out[FUZZ_TENSORS];
    float *data[FUZZ_TENSORS];
    int64_t kept = 0, room = FUZZ_NUMBERS;
    CHECK(dlrn_archive_tensor(a, -1) == NULL &&
          dlrn_archive_tensor(a, dlrn_archive_describe(a).count) == NULL);
    double number;
    for (int64_t i = 0; i < a->n_notes && i < FUZZ_TENSORS; i++)
        CHECK(dlrni_archive_metadata(a, a->notes[i].key) != NULL &&
              (!dlrni_archive_number(a, a->notes[i].key, &number) || isfinite(number)));
    for (int64_t i = 0; i < dlrn_archive_describe(a).count; i++) {
        const dlrn_tensor_info *info = dlrn_archive_tensor(a, i);
        float *x = fuzz_read(a, i);
        if (kept == FUZZ_TENSORS || info->numel > room) {
            free(x);
            continue;
        }
        memset(&out[kept], 0, sizeof *out);
        out[kept].name = info->name;
        out[kept].dtype = DLRN_F32;
        out[kept].ndim = info->ndim;
        memcpy(out[kept].shape, info->shape, sizeof info->shape);
        out[kept].data = data[kept] = x;
        room -= info->numel;
        kept++;
    }
    fuzz_save(out, kept, forms[choice % 3]);
    while (kept > 0) free(data[--kept]);
    dlrn_archive_close(a);
}

/* How many bytes a reader may take for each of a file's, by what the file is. */
static size_t fuzz_factor(const unsigned char *data, size_t size) {
    if (size >= 6 && !memcmp(data, "\x93NUMPY", 6)) return 0;
    if (size >= 2 && !memcmp(data, "PK", 2)) return FUZZ_DEFLATE + FUZZ_NODES;
    return size >= 9 && data[8] == '{' ? FUZZ_TREE : FUZZ_NODES;
}

/* Opens bytes as an archive, within its measure of memory. */
static dlrn_archive *fuzz_open(const unsigned char *data, size_t size) {
    dlrn_archive *a = NULL;
    fuzz_allow(size, fuzz_factor(data, size), FUZZ_LITTLE);
    dlrn_status s = dlrn_archive_open_memory(ctx, data, size, "hostile.file", &a);
    fuzz_allow_all();
    CHECK((s == DLRN_OK) == (a != NULL));
    if (s != DLRN_OK) fuzz_refused(s, "hostile.file");
    return a;
}
#endif /* DICTLEARN_FUZZ_H */
