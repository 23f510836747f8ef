/* test_source.c - rows of activations from files: formats, types, shapes, shards, pipes, files that
   cannot be mapped. Element j of row i is 8 i + j: exact in every type. */
#define _POSIX_C_SOURCE 200809L
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "tests/test.h"

#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

enum { D = 4, ROWS = 6, MAX_ROWS = 64 };

static dlrn_context *ctx;

/* ---- Files ---- */

static float value(int64_t row, int64_t column) {
    return (float)(8 * row + column);
}

/* The bits of an element of a type, and how many bytes they have. */
static uint64_t bits_of(dlrn_dtype type, float x, int *size) {
    double wide = (double)x;
    uint64_t bits;
    memcpy(&bits, &wide, sizeof bits);
    *size = (int)dlrni_dtype_size(type);
    if (type == DLRN_F32) return dlrni_bits_of_float(x);
    if (type == DLRN_F16) return dlrni_f32_to_f16(x);
    if (type == DLRN_BF16 || type == DLRN_U16) return dlrni_bits_of_float(x) >> 16;
    return type == DLRN_F64 ? bits : (uint64_t)(int64_t)x;
}

/* Rows [first, first + rows) of `value` in a type, row by row, low byte first. */
static size_t put_rows(dlrn_dtype type, int64_t first, int64_t rows, unsigned char *to) {
    size_t n = 0;
    for (int64_t k = 0; k < rows * D; k++) {
        int size;
        uint64_t bits = bits_of(type, value(first + k / D, k % D), &size);
        for (int i = 0; i < size; i++) to[n++] = (unsigned char)(bits >> 8 * i);
    }
    return n;
}

/* A tensor of rows [first, ...) in a file of the name's format. */
static const char *write_as(const char *name, const char *tensor, dlrn_dtype type, int64_t first,
                            int ndim, const int64_t *shape) {
    static unsigned char data[2][MAX_ROWS * D * 8];
    const char *path = tmp_path(name);
    dlrn_tensor_out t[2];
    int64_t rows = 1;
    memset(t, 0, sizeof t);
    for (int i = 0; i < ndim - 1; i++) rows *= shape[i];
    put_rows(type, first, rows, data[0]);
    t[0].name = tensor, t[0].dtype = type, t[0].ndim = ndim, t[0].data = data[0];
    memcpy(t[0].shape, shape, (size_t)ndim * sizeof *shape);
    t[1].name = "ids", t[1].dtype = DLRN_I64, t[1].ndim = 1, t[1].shape[0] = 3;
    t[1].data = data[1];
    /* other formats hold something else, too */
    CHECK_OK(ctx, dlrn_archive_write(ctx, path, t, strstr(name, ".npy") ? 1 : 2, NULL));
    return path;
}

static const char *write_rows(const char *name, int64_t first, int64_t rows) {
    const int64_t shape[2] = {rows, D};
    return write_as(name, "x", DLRN_F32, first, 2, shape);
}

/* A .npy with any descr, order and shape, and `n` bytes of data. */
static const char *write_npy(const char *name, const char *descr, const char *order,
                             const char *shape, const void *data, size_t n) {
    const char *path = tmp_path(name);
    unsigned char head[128];
    FILE *f = fopen(path, "wb");
    CHECK(f != NULL);
    memset(head, ' ', sizeof head);
    memcpy(head, "\x93NUMPY\x01\x00\x76\x00", 10);
    int length =
        snprintf((char *)head + 10, 118, "{'descr': '%s', 'fortran_order': %s, 'shape': (%s), }",
                 descr, order, shape);
    head[10 + length] = ' ';
    head[127] = '\n';
    CHECK(fwrite(head, 1, sizeof head, f) == sizeof head && fwrite(data, 1, n, f) == n);
    CHECK(fclose(f) == 0);
    return path;
}

/* ---- Sources ---- */

static dlrn_source_desc desc_of(const char *const *paths, int64_t n) {
    dlrn_source_desc desc = {0};
    desc.paths = paths, desc.n_paths = n, desc.epochs = 1;
    return desc;
}

/* Reads a source to its end, `each` rows at a time: rows `first` and on. */
static void expect_rows(dlrn_source *s, int64_t first, int64_t rows, int64_t each) {
    float x[MAX_ROWS * D];
    int64_t n = 0, at = 0;
    dlrn_status st;
    while ((st = s->read(s->user, each, x, NULL, &n)) == DLRN_OK) {
        CHECK(n > 0 && n <= each && at + n <= rows);
        for (int64_t k = 0; k < n * D; k++)
            CHECK_MSG(x[k] == value(first + at + k / D, k % D), "row %d, column %d: %g",
                      (int)(at + k / D), (int)(k % D), (double)x[k]);
        at += n;
    }
    CHECK_MSG(st == DLRN_END && at == rows, "%d of %d rows: %s", (int)at, (int)rows,
              st == DLRN_END ? "end" : s->error(s->user));
}

static void expect_source(const dlrn_source_desc *desc, int64_t rows, int64_t positions) {
    dlrn_source s;
    CHECK_OK(ctx, dlrn_source_open(ctx, desc, &s));
    CHECK_MSG(s.d_in == D && s.rows == rows && s.positions == positions,
              "width %d, %d rows, %d positions", (int)s.d_in, (int)s.rows, (int)s.positions);
    expect_rows(&s, 0, rows, 5);
    dlrn_source_destroy(&s);
}

static void refuses(const dlrn_source_desc *desc, dlrn_status want, const char *words) {
    dlrn_source s;
    CHECK_STATUS(dlrn_source_open(ctx, desc, &s), want);
    CHECK_STR(dlrn_error(ctx), words);
    CHECK(!s.read && !s.destroy);
}

/* ---- Tests ---- */

TEST(every_format_and_rank) {
    static const char *const names[] = {"source.npy", "source.npz", "source.pt",
                                        "source.safetensors"};
    static const int64_t shapes[3][4] = {{ROWS, D}, {2, 3, D}, {1, 3, 2, D}};
    static const int64_t positions[3] = {0, 3, 2};
    for (int f = 0; f < 4; f++)
        for (int r = 0; r < 3; r++) {
            const char *path = write_as(names[f], "x", DLRN_F32, 0, r + 2, shapes[r]);
            dlrn_source_desc desc = desc_of(&path, 1);
            expect_source(&desc, ROWS, positions[r]);
        }
}

TEST(every_float_and_no_integer) {
    static const int64_t shape[2] = {ROWS, D};
    static const struct {
        dlrn_dtype type, said;
        const char *words; /* NULL: it is read */
    } cases[] = {
        {DLRN_F16, DLRN_F32, NULL},
        {DLRN_BF16, DLRN_F32, NULL},
        {DLRN_F64, DLRN_F32, NULL},
        {DLRN_U16, DLRN_BF16, NULL},
        {DLRN_BF16, DLRN_BF16, NULL},
        {DLRN_U16, DLRN_F32,
         "source.safetensors: expected a tensor of floats of two or more dimensions, found x U16 "
         "[6, 4], ids I64 [3]"},
        {DLRN_I8, DLRN_BF16, "found x I8 [6, 4], ids I64 [3]"},
        {DLRN_F32, DLRN_BF16, "tensor 'x': expected BF16, or its bits as U16, found F32"},
        {DLRN_I32, DLRN_F32, "found x I32 [6, 4]"},
        {DLRN_BOOL, DLRN_F32, "found x BOOL [6, 4]"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *path = write_as("source.safetensors", "x", cases[i].type, 0, 2, shape);
        dlrn_source_desc desc = desc_of(&path, 1);
        desc.dtype = cases[i].said;
        if (cases[i].words)
            refuses(&desc, cases[i].type == DLRN_F32 ? DLRN_ERR_UNSUPPORTED : DLRN_ERR_SHAPE,
                    cases[i].words);
        else
            expect_source(&desc, ROWS, 0);
        if (!cases[i].words || cases[i].type == DLRN_F32) continue;
        desc.tensor = "x"; /* said by name: what is wrong with it */
        refuses(&desc, DLRN_ERR_UNSUPPORTED, "source.safetensors: tensor 'x': expected ");
    }
}

TEST(bf16_in_npy) {
    unsigned char raw[ROWS * D * 2];
    size_t n = put_rows(DLRN_BF16, 0, ROWS, raw);
    const char *path = write_npy("source_v2.npy", "|V2", "False", "6, 4", raw, n);
    dlrn_source_desc desc = desc_of(&path, 1);
    expect_source(&desc, ROWS, 0);
    path = write_npy("source_u2.npy", "<u2", "False", "2, 3, 4", raw, n);
    refuses(&desc, DLRN_ERR_UNSUPPORTED,
            "source_u2.npy: tensor '': expected F16, BF16, F32 or F64, found U16: U16 is read as "
            "bf16 only if the caller says so (dtype bf16)");
    desc.dtype = DLRN_BF16;
    expect_source(&desc, ROWS, 3);
    path = write_npy("source_c8.npy", "<c8", "False", "3, 2", raw, n);
    refuses(&desc, DLRN_ERR_UNSUPPORTED,
            "source_c8.npy: unsupported dtype '<c8': expected a float");
    path = write_npy("source_i8.npy", "|i1", "False", "12, 4", raw, n);
    refuses(&desc, DLRN_ERR_UNSUPPORTED, "expected BF16, or its bits as U16, found I8");
    path = write_npy("source_1d.npy", "<f2", "False", "24,", raw, n);
    desc.dtype = DLRN_F32;
    refuses(&desc, DLRN_ERR_SHAPE, "expected an array [rows, width] or [..., width], found [24]");
}

/* The other order, of three dimensions: element (a, b, c) lies at a + 2 b + 6 c. */
TEST(fortran_order_of_three_dimensions) {
    float data[ROWS * D];
    for (int a = 0; a < 2; a++)
        for (int b = 0; b < 3; b++)
            for (int c = 0; c < D; c++) data[a + 2 * b + 6 * c] = value(3 * a + b, c);
    const char *path = write_npy("source_f.npy", "<f4", "True", "2, 3, 4", data, sizeof data);
    dlrn_source_desc desc = desc_of(&path, 1);
    for (int64_t each = 1; each <= 7; each++) {
        dlrn_source s;
        CHECK_OK(ctx, dlrn_source_open(ctx, &desc, &s));
        expect_rows(&s, 0, ROWS, each);
        dlrn_source_destroy(&s);
    }
}

/* Rows of 2 layers of 2 numbers count as rows of 4 where the reader says so, in every format and
   order, and not where the last dimension is as wide as a row. */
TEST(rows_of_several_layers) {
    static const char *const names[] = {"source.npy", "source.npz", "source.pt",
                                        "source.safetensors"};
    static const int64_t shapes[2][4] = {{ROWS, 2, 2}, {2, 3, 2, 2}};
    float data[ROWS * D];
    dlrn_source s;
    for (int i = 0; i < 8; i++) {
        const char *path = write_as(names[i / 2], "x", DLRN_F32, 0, 3 + i % 2, shapes[i % 2]);
        dlrn_source_desc desc = desc_of(&path, 1);
        desc.width = D;
        expect_source(&desc, ROWS, i % 2 ? 3 : 0);
        desc.width = 3; /* neither one dimension nor two: the reader sees the last */
        CHECK_OK(ctx, dlrn_source_open(ctx, &desc, &s));
        CHECK(s.d_in == 2 && s.rows == 2 * ROWS);
        dlrn_source_destroy(&s);
    }
    for (int i = 0; i < ROWS * D; i++)
        data[i / D + ROWS * (i % D / 2) + 2 * ROWS * (i % 2)] = value(i / D, i % D);
    const char *path = write_npy("source_f.npy", "<f4", "True", "6, 2, 2", data, sizeof data);
    dlrn_source_desc desc = desc_of(&path, 1);
    desc.width = D;
    expect_source(&desc, ROWS, 0);
    path = write_rows("source.npy", 0, ROWS);
    expect_source(&desc, ROWS, 0);
}

/* The writer's .npy of several layers is read so. */
TEST(rows_of_several_layers_are_written) {
    float data[ROWS * D];
    dlrn_writer *w = NULL;
    dlrn_archive *a = NULL;
    const char *path = tmp_path("source_layers.npy");
    for (int i = 0; i < ROWS * D; i++) data[i] = value(i / D, i % D);
    for (int known = 0; known < 2; known++) {
        CHECK_OK(ctx, dlrn_npy_create_layers(ctx, path, D, 2, known ? ROWS : -1, &w));
        CHECK_OK(ctx, dlrn_npy_append(w, data, ROWS));
        CHECK_OK(ctx, dlrn_writer_close(w));
        CHECK_OK(ctx, dlrn_archive_open(ctx, path, &a));
        const dlrn_tensor_info *t = dlrn_archive_tensor(a, 0);
        CHECK(t->ndim == 3 && t->shape[0] == ROWS && t->shape[1] == 2 && t->shape[2] == D / 2);
        dlrn_archive_close(a);
        dlrn_source_desc desc = desc_of(&path, 1);
        desc.width = D;
        expect_source(&desc, ROWS, 0);
    }
    CHECK_STATUS(dlrn_npy_create_layers(ctx, path, D, 3, -1, &w), DLRN_ERR_ARGUMENT);
    CHECK_STATUS(dlrn_npy_create_layers(ctx, path, D, 0, -1, &w), DLRN_ERR_ARGUMENT);
}

TEST(a_tensor_by_name) {
    float x[ROWS * D];
    const dlrn_tensor_out t[3] = {{"layer.0", DLRN_F32, 2, {ROWS, D}, x},
                                  {"bias", DLRN_F32, 1, {D}, x},
                                  {"layer.1", DLRN_F32, 2, {ROWS, D}, x}};
    const char *path = "build/tmp/source_named.npz";
    for (int k = 0; k < ROWS * D; k++) x[k] = value(k / D, k % D);
    CHECK_OK(ctx, dlrn_archive_write(ctx, path, t, 3, NULL));
    dlrn_source_desc desc = desc_of(&path, 1);
    refuses(&desc, DLRN_ERR_ARGUMENT,
            "source_named.npz: expected the name of one of its 2 tensors: layer.0 F32 [6, 4], "
            "layer.1 F32 [6, 4]");
    desc.tensor = "layer.1";
    expect_source(&desc, ROWS, 0);
    desc.tensor = "layer.2";
    refuses(&desc, DLRN_ERR_ARGUMENT,
            "source_named.npz: expected tensor 'layer.2', found layer.0 F32 [6, 4], bias F32 [4], "
            "layer.1");
    desc.tensor = "bias";
    refuses(&desc, DLRN_ERR_SHAPE, "expected an array [rows, width] or [..., width], found [4]");
    path = write_rows("source.npy", 0, ROWS);
    refuses(&desc, DLRN_ERR_ARGUMENT,
            "source.npy: expected tensor 'bias', found a .npy, which has no names");
}

/* Four files of four formats, one of them without rows; the target is split in another way. */
TEST(shards_are_one_sequence) {
    const char *paths[4] = {write_rows("source_a.npy", 0, 5), write_rows("source_b.npz", 5, 0),
                            write_rows("source_c.safetensors", 5, 9),
                            write_rows("source_d.pt", 14, 3)};
    const char *targets[2] = {write_rows("source_y.npz", 0, 12), write_rows("source_z.npy", 12, 5)};
    dlrn_source_desc desc = desc_of(paths, 4);
    dlrn_source s;
    float x[17 * D], y[17 * D];
    for (int64_t each = 1; each <= 18; each++) {
        CHECK_OK(ctx, dlrn_source_open(ctx, &desc, &s));
        CHECK(s.rows == 17);
        expect_rows(&s, 0, 17, each);
        for (uint64_t from = 0; from <= 17; from += 4) {
            CHECK_OK(ctx, s.seek(s.user, from));
            expect_rows(&s, (int64_t)from, 17 - (int64_t)from, each);
        }
        dlrn_source_destroy(&s);
    }
    desc.target_paths = targets, desc.n_target_paths = 2, desc.epochs = 2;
    CHECK_OK(ctx, dlrn_source_open(ctx, &desc, &s));
    for (int64_t at = 0, n; at < 34; at += n) {
        CHECK_OK(ctx, s.read(s.user, 7, x, y, &n));
        CHECK(n > 0 && !memcmp(x, y, (size_t)n * D * sizeof *x) && x[0] == value(at % 17, 0));
    }
    dlrn_source_destroy(&s);
}

TEST(shards_that_disagree) {
    const int64_t wide[2] = {2, D + 1}, documents[3] = {2, 3, D}, longer[3] = {1, 6, D};
    const char *paths[2] = {write_rows("source_a.npy", 0, 5),
                            write_as("source_w.npy", "", DLRN_F16, 0, 2, wide)};
    dlrn_source_desc desc = desc_of(paths, 2);
    refuses(&desc, DLRN_ERR_SHAPE,
            "source_w.npy: expected rows of 4 numbers as in build/tmp/source_a.npy, found 5");
    /* documents of two lengths: nobody knows where one begins */
    paths[0] = write_as("source_a.npy", "", DLRN_F32, 0, 3, documents);
    paths[1] = write_as("source_b.npy", "", DLRN_F32, 6, 3, documents);
    expect_source(&desc, 12, 3);
    paths[1] = write_as("source_b.npy", "", DLRN_F32, 6, 3, longer);
    expect_source(&desc, 12, 0);
    dlrn_source s;
    CHECK_OK(ctx, dlrn_source_open(ctx, &desc, &s));
    write_rows("source_b.npy", 0, 5); /* before it is read */
    float x[12 * D];
    int64_t n;
    CHECK_STATUS(s.read(s.user, 12, x, NULL, &n), DLRN_ERR_SHAPE);
    CHECK_STR(s.error(s.user), "source_b.npy: expected 6 rows as before, found another file");
    dlrn_source_destroy(&s);
    desc.paths = NULL;
    refuses(&desc, DLRN_ERR_ARGUMENT, "expected at least one path");
}

/* Damage in a shard is found before its first row is handed out, not when the shapes are read. */
TEST(a_damaged_shard) {
    const char *paths[2] = {write_rows("source_a.npz", 0, 5), write_rows("source_b.npz", 5, 5)};
    FILE *f = fopen(paths[1], "r+b");
    CHECK(f && fseek(f, 220, SEEK_SET) == 0);
    int was = fgetc(f);
    CHECK(fseek(f, 220, SEEK_SET) == 0 && fputc(was ^ 1, f) != EOF && fclose(f) == 0);
    dlrn_source_desc desc = desc_of(paths, 2);
    dlrn_source s;
    float x[5 * D];
    int64_t n;
    CHECK_OK(ctx, dlrn_source_open(ctx, &desc, &s));
    CHECK_OK(ctx, s.read(s.user, 5, x, NULL, &n));
    CHECK_STATUS(s.read(s.user, 5, x, NULL, &n), DLRN_ERR_FORMAT);
    CHECK_STR(s.error(s.user), "source_b.npz: zip: member 'x.npy' is damaged");
    dlrn_source_destroy(&s);
}

/* ---- Pipes ---- */

static char pipe_path[64];
static pid_t pipe_writer;

/* A pipe into which another process writes the file, up to `bytes` of it. */
static const char *pipe_of(const char *path, size_t bytes) {
    static unsigned char data[1 << 16];
    FILE *f = fopen(path, "rb");
    CHECK(f != NULL);
    size_t n = fread(data, 1, sizeof data, f);
    fclose(f);
    snprintf(pipe_path, sizeof pipe_path, "build/tmp/source_pipe.%ld", (long)getpid());
    remove(pipe_path);
    CHECK(mkfifo(pipe_path, 0600) == 0);
    pipe_writer = fork();
    if (pipe_writer == 0) {
        f = fopen(pipe_path, "wb");
        if (f) fwrite(data, 1, n < bytes ? n : bytes, f);
        if (f) fclose(f);
        _exit(0);
    }
    return pipe_path;
}

static void pipe_done(void) {
    waitpid(pipe_writer, NULL, 0);
    remove(pipe_path);
}

TEST(a_pipe_is_read_through) {
    static const dlrn_dtype types[4] = {DLRN_F32, DLRN_F16, DLRN_F64, DLRN_F32};
    static const int64_t shape[3] = {10, 3, D};
    for (int i = 0; i < 4; i++) {
        const char *file = write_as("source_p.npy", "", types[i], 0, 3, shape);
        const char *path = pipe_of(file, SIZE_MAX);
        dlrn_source_desc desc = desc_of(&path, 1);
        dlrn_source s;
        CHECK_OK(ctx, dlrn_source_open(ctx, &desc, &s));
        CHECK(s.rows == 30 && s.positions == 3 && s.d_in == D);
        if (i == 3) CHECK_OK(ctx, s.seek(s.user, 11));
        expect_rows(&s, i == 3 ? 11 : 0, i == 3 ? 19 : 30, 7);
        CHECK_OK(ctx, s.seek(s.user, 2)); /* it only shows when a row is read */
        float x[D];
        int64_t n;
        CHECK_STATUS(s.read(s.user, 1, x, NULL, &n), DLRN_ERR_IO);
        CHECK_STR(s.error(s.user), "a pipe is read once: cannot go back");
        dlrn_source_destroy(&s);
        pipe_done();
    }
}

TEST(a_pipe_of_several_layers) {
    static const int64_t shape[4] = {5, 2, 2, 2};
    const char *path = pipe_of(write_as("source_p.npy", "", DLRN_F16, 0, 4, shape), SIZE_MAX);
    dlrn_source_desc desc = desc_of(&path, 1);
    desc.width = D;
    expect_source(&desc, 10, 2);
    pipe_done();
}

TEST(a_pipe_that_ends_early) {
    const char *file = write_rows("source_p.npy", 0, 10);
    const char *path = pipe_of(file, 128 + 7 * D * 4 + 5);
    dlrn_source_desc desc = desc_of(&path, 1);
    dlrn_source s;
    float x[10 * D];
    int64_t n;
    CHECK_OK(ctx, dlrn_source_open(ctx, &desc, &s));
    CHECK_OK(ctx, s.read(s.user, 10, x, NULL, &n)); /* whole rows come first */
    CHECK(n == 7 && x[6 * D] == value(6, 0));
    CHECK_STATUS(s.read(s.user, 10, x, NULL, &n), DLRN_ERR_FORMAT);
    CHECK_STR(s.error(s.user), ": expected 10 rows, as its header says, found 7");
    dlrn_source_destroy(&s);
    pipe_done();
}

/* Fortran order and archives need all of a pipe at once; then it can go back, too. */
TEST(a_pipe_that_is_read_whole) {
    float data[ROWS * D];
    char shape[32];
    for (int64_t r = 0; r < ROWS; r++)
        for (int64_t c = 0; c < D; c++) data[c * ROWS + r] = value(r, c);
    snprintf(shape, sizeof shape, "%d, %d", ROWS, D);
    for (int i = 0; i < 2; i++) {
        const char *file = i ? write_rows("source.npz", 0, ROWS)
                             : write_npy("source_f.npy", "<f4", "True", shape, data, sizeof data);
        const char *path = pipe_of(file, SIZE_MAX);
        dlrn_source_desc desc = desc_of(&path, 1);
        dlrn_source s;
        CHECK_OK(ctx, dlrn_source_open(ctx, &desc, &s));
        CHECK(s.rows == ROWS && s.d_in == D);
        expect_rows(&s, 0, ROWS, 2);
        CHECK_OK(ctx, s.seek(s.user, 1));
        expect_rows(&s, 1, ROWS - 1, 3);
        dlrn_source_destroy(&s);
        pipe_done();
    }
}

/* What a pipe cannot be. Each is told before a row is read. */
TEST(pipes_that_are_refused) {
    float data[ROWS * D] = {0};
    const char *fortran = write_npy("source_f.npy", "<f4", "True", "6, 4", data, sizeof data);
    const char *paths[2] = {pipe_of(fortran, 40), NULL};
    dlrn_source_desc desc = desc_of(paths, 1);
    refuses(&desc, DLRN_ERR_FORMAT, "expected a .npy header, found a truncated one");
    pipe_done();
    paths[0] = "-";
    desc.epochs = 2;
    refuses(&desc, DLRN_ERR_ARGUMENT,
            "standard input: a pipe can be read once: expected 1 epoch, found 2");
    desc.epochs = 1;
    paths[1] = write_rows("source.npy", 0, 3);
    desc.n_paths = 2;
    refuses(&desc, DLRN_ERR_ARGUMENT,
            "standard input: expected a pipe alone, found it beside other files");
    desc.n_paths = desc.n_target_paths = 1;
    desc.target_paths = paths;
    refuses(&desc, DLRN_ERR_ARGUMENT, "standard input: expected rows or their targets, found both");
}

/* ---- Files that cannot be mapped ---- */

/* A .npy that no disk could hold, made as it is read: rows of `value` modulo 2^20. */
typedef struct made_file {
    int64_t at, opened;
} made_file;

enum { MADE_D = 256 };
static const int64_t made_rows = (int64_t)1 << 40;

static dlrn_status made_open(void *user, dlrn_context *c, const char *path, int writing,
                             void **file) {
    made_file *f = (made_file *)user;
    (void)c, (void)path, (void)writing;
    f->at = 0;
    f->opened++;
    *file = f;
    return DLRN_OK;
}

static dlrn_status made_read(void *user, dlrn_context *c, void *file, void *bytes, size_t size,
                             size_t *got) {
    made_file *f = (made_file *)file;
    char head[129];
    (void)user, (void)c;
    memset(head, ' ', 128);
    memcpy(head, "\x93NUMPY\x01\x00\x76\x00", 10);
    int n =
        snprintf(head + 10, 118, "{'descr': '<f4', 'fortran_order': False, 'shape': (%lld, %d), }",
                 (long long)made_rows, MADE_D);
    head[10 + n] = ' ';
    *got = size < 1000 ? size : 1000; /* a short read is no end */
    for (size_t i = 0; i < *got; i++, f->at++) {
        int64_t element = (f->at - 128) / 4;
        uint32_t bits = dlrni_bits_of_float((float)(element % (1 << 20)));
        ((unsigned char *)bytes)[i] =
            (unsigned char)(f->at < 128 ? (unsigned char)head[f->at]
                                        : bits >> 8 * ((f->at - 128) % 4));
    }
    return DLRN_OK;
}

static dlrn_status made_write(void *user, dlrn_context *c, void *file, const void *bytes,
                              size_t size) {
    (void)user, (void)c, (void)file, (void)bytes, (void)size;
    return DLRN_ERR_IO;
}

static dlrn_status made_close(void *user, dlrn_context *c, void *file, int keep) {
    (void)user, (void)c, (void)file, (void)keep;
    return DLRN_OK;
}

static int made_exists(void *user, const char *path) {
    (void)user, (void)path;
    return 1;
}

static int64_t held, held_peak;

static void *held_alloc(void *user, size_t size) {
    char *p = (char *)malloc(size + 16);
    (void)user;
    memcpy(p, &size, sizeof size);
    held += (int64_t)size;
    if (held > held_peak) held_peak = held;
    return p + 16;
}

static void held_release(void *user, void *p) {
    size_t size;
    (void)user;
    if (!p) return;
    memcpy(&size, (char *)p - 16, sizeof size);
    held -= (int64_t)size;
    free((char *)p - 16);
}

TEST(memory_does_not_grow_with_a_file) {
    made_file f = {0, 0};
    dlrn_context_config cfg = {0};
    dlrn_context *host = NULL;
    dlrn_source s;
    const char *path = "made.npy";
    dlrn_source_desc desc = desc_of(&path, 1);
    static float x[64 * MADE_D];
    int64_t n, before;
    cfg.threads = 1;
    cfg.alloc = held_alloc, cfg.release = held_release;
    cfg.io.open_file = made_open, cfg.io.read_file = made_read, cfg.io.write_file = made_write;
    cfg.io.close_file = made_close, cfg.io.file_exists = made_exists, cfg.io.user = &f;
    CHECK_STATUS(dlrn_context_create(&cfg, &host), DLRN_OK);
    before = held_peak = held;
    CHECK_OK(host, dlrn_source_open(host, &desc, &s));
    CHECK(s.rows == made_rows && s.d_in == MADE_D);
    for (int64_t at = 0; at < 4096; at += n) {
        CHECK_OK(host, s.read(s.user, 64, x, NULL, &n));
        CHECK(n == 64 && x[5] == (float)((at * MADE_D + 5) % (1 << 20)));
    }
    CHECK_OK(host, s.seek(s.user, 3)); /* back: from the start */
    CHECK_OK(host, s.read(s.user, 1, x, NULL, &n));
    CHECK(x[0] == 3 * MADE_D && f.opened == 2);
    CHECK_MSG(held_peak - before < 1 << 17, "%d bytes", (int)(held_peak - before));
    dlrn_source_destroy(&s);
    CHECK(held == before);
    dlrn_context_destroy(host);
}

/* Rows of a mapped file are copied in pieces, by all threads, and later ones are asked for: from
   any row on, in any number, over the end of the file and back, they are those of the file. */
TEST(large_reads_of_a_mapped_file) {
    enum { LONG = 2600, WIDE = 1000 };
    static const int64_t sizes[] = {700, 1, 1300, 599, 2600, 64};
    const char *path = tmp_path("large.npy");
    dlrn_context_config threads = {0};
    dlrn_context *c = NULL;
    threads.threads = 3;
    CHECK_STATUS(dlrn_context_create(&threads, &c), DLRN_OK);
    uint16_t *half = (uint16_t *)malloc((size_t)LONG * WIDE * 2);
    float *x = (float *)malloc((size_t)LONG * WIDE * 4);
    for (int type = 0; type < 2; type++) {
        dlrn_tensor_out t;
        dlrn_source s;
        dlrn_source_desc desc = desc_of(&path, 1);
        int64_t at = 0, n, wrong = 0;
        memset(&t, 0, sizeof t);
        t.name = "", t.dtype = type ? DLRN_F16 : DLRN_F32, t.ndim = 2;
        t.shape[0] = LONG, t.shape[1] = WIDE;
        t.data = type ? (const void *)half : (const void *)x;
        for (int64_t i = 0; i < LONG * WIDE; i++) {
            x[i] = (float)(i % 2039); /* a prime: rows differ */
            half[i] = dlrni_f32_to_f16(x[i]);
        }
        CHECK_OK(c, dlrn_archive_write(c, path, &t, 1, NULL));
        desc.epochs = 0;
        CHECK_OK(c, dlrn_source_open(c, &desc, &s));
        for (int turn = 0; turn < 12; turn++, at += n) {
            if (turn == 7) CHECK_OK(c, s.seek(s.user, (uint64_t)(at = 333)));
            CHECK_OK(c, s.read(s.user, sizes[turn % 6], x, NULL, &n));
            for (int64_t i = 0; i < n * WIDE; i++)
                wrong += x[i] != (float)((at % LONG * WIDE + i) % 2039);
        }
        CHECK_MSG(!wrong && at > LONG, "type %d: %d numbers differ", type, (int)wrong);
        dlrn_source_destroy(&s);
    }
    free(half);
    free(x);
    dlrn_context_destroy(c);
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    CHECK_STATUS(dlrn_context_create(NULL, &ctx), DLRN_OK);
    RUN(every_format_and_rank);
    RUN(every_float_and_no_integer);
    RUN(bf16_in_npy);
    RUN(fortran_order_of_three_dimensions);
    RUN(rows_of_several_layers);
    RUN(rows_of_several_layers_are_written);
    RUN(a_tensor_by_name);
    RUN(shards_are_one_sequence);
    RUN(shards_that_disagree);
    RUN(a_damaged_shard);
    RUN(a_pipe_is_read_through);
    RUN(a_pipe_of_several_layers);
    RUN(a_pipe_that_ends_early);
    RUN(a_pipe_that_is_read_whole);
    RUN(pipes_that_are_refused);
    RUN(memory_does_not_grow_with_a_file);
    RUN(large_reads_of_a_mapped_file);
    dlrn_context_destroy(ctx);
    return TEST_END();
}
