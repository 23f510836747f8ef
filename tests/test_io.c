/* test_io.c - files that are where the host keeps them, without the C library's: all formats
   through a dlrn_io in memory; the same bytes whichever of its optional calls it has and however
   little it gives at a time; and each of its calls fails once, after which the old file stands,
   nothing is open and nothing leaks. */
#define DICTLEARN_NO_STDIO
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "tests/starve.h"

/* ---- A store of files in memory ---- */

enum { FILES = 16, MOST = 1 << 16 };
typedef struct stored {
    char name[40]; /* "": none */
    unsigned char *bytes;
    size_t size;
} stored;

typedef struct opened {
    char name[40];
    unsigned char bytes[MOST];
    size_t size, at;
    int writing;
} opened;

static struct {
    stored file[FILES];
    int open;       /* files that are         */
    int64_t left;   /* calls until one fails; negative: none does */
    size_t portion; /* bytes that a read gives at most            */
    char failed[80];
} store;

static dlrn_status may_fail(dlrn_context *ctx, const char *call, const char *name) {
    if (store.left < 0 || store.left-- > 0) return DLRN_OK;
    snprintf(store.failed, sizeof store.failed, "%s: planted in %s", name, call);
    return dlrn_fail(ctx, DLRN_ERR_IO, "%s", store.failed);
}

static stored *stored_as(const char *name) {
    for (int i = 0; i < FILES; i++)
        if (!strcmp(store.file[i].name, name)) return &store.file[i];
    return NULL;
}

static int store_exists(void *user, const char *path) {
    CHECK(user == &store);
    return stored_as(path) ? 1 : !strcmp(path, "run") || !strcmp(path, "lib") ? 2 : 0;
}

static dlrn_status store_open(void *user, dlrn_context *ctx, const char *path, int writing,
                              void **file) {
    const stored *from = stored_as(path);
    CHECK(user == &store && strlen(path) < sizeof from->name);
    dlrn_status s = may_fail(ctx, "open", path);
    if (s != DLRN_OK) return s;
    if (!writing && !from) return dlrn_fail(ctx, DLRN_ERR_IO, "%s: not in the store", path);
    opened *o = (opened *)calloc(1, sizeof *o);
    CHECK(o != NULL);
    strcpy(o->name, path);
    o->writing = writing;
    o->size = writing ? 0 : from->size;
    if (!writing) memcpy(o->bytes, from->bytes, from->size);
    store.open++;
    *file = o;
    return DLRN_OK;
}

static dlrn_status store_read(void *user, dlrn_context *ctx, void *file, void *bytes, size_t size,
                              size_t *got) {
    opened *o = (opened *)file;
    CHECK(user == &store);
    dlrn_status s = may_fail(ctx, "read", o->name);
    if (s != DLRN_OK) return s;
    *got = size < o->size - o->at ? size : o->size - o->at;
    if (*got > store.portion) *got = store.portion;
    memcpy(bytes, o->bytes + o->at, *got);
    o->at += *got;
    return DLRN_OK;
}

static dlrn_status store_write(void *user, dlrn_context *ctx, void *file, const void *bytes,
                               size_t size) {
    opened *o = (opened *)file;
    CHECK(user == &store && o->writing && size <= MOST - o->at);
    dlrn_status s = may_fail(ctx, "write", o->name);
    if (s != DLRN_OK) return s;
    memcpy(o->bytes + o->at, bytes, size);
    o->at += size;
    if (o->size < o->at) o->size = o->at;
    return DLRN_OK;
}

static dlrn_status store_close(void *user, dlrn_context *ctx, void *file, int keep) {
    opened *o = (opened *)file;
    CHECK(user == &store && (o->writing || !keep));
    store.open--;
    dlrn_status s = keep ? may_fail(ctx, "close", o->name) : DLRN_OK;
    if (keep && s == DLRN_OK) {
        stored *to = stored_as(o->name) ? stored_as(o->name) : stored_as("");
        CHECK(to != NULL);
        free(to->bytes);
        strcpy(to->name, o->name);
        to->bytes = (unsigned char *)malloc(o->size + 1);
        to->size = o->size;
        CHECK(to->bytes != NULL);
        memcpy(to->bytes, o->bytes, o->size);
    }
    free(o);
    return s;
}

#define NO_WAY_BACK "cannot go back to its start"
static int store_rewind(void *user, void *file) {
    opened *o = (opened *)file;
    CHECK(user == &store);
    if (store.left >= 0 && store.left-- == 0) {
        strcpy(store.failed, NO_WAY_BACK);
        return 0;
    }
    o->at = 0;
    return 1;
}

static dlrn_status store_temporary(void *user, dlrn_context *ctx, const char *path, void **file) {
    return store_open(user, ctx, path, 1, file); /* which is never kept */
}

static dlrn_io io_of_store(void) {
    dlrn_io io = {store_open,   store_read,   store_write,     store_close,
                  store_exists, store_rewind, store_temporary, &store};
    return io;
}

static dlrn_context *context_with(const dlrn_io *io) {
    dlrn_context_config cfg = starve_config(1);
    dlrn_context *made = NULL;
    cfg.io = *io;
    CHECK_STATUS(dlrn_context_create(&cfg, &made), DLRN_OK);
    return made;
}

static void empty_store(void) {
    for (int i = 0; i < FILES; i++) free(store.file[i].bytes);
    memset(&store, 0, sizeof store);
    store.left = -1;
    store.portion = MOST;
}

/* ---- What is done with files ---- */

enum { D = 4, F = 12, ROWS = 64 };
static dlrn_context *ctx;
static dlrn_dictionary *ae;
static float rows[ROWS * D];

static void begin(const dlrn_io *io) {
    empty_store();
    ctx = context_with(io);
    CHECK_OK(ctx, new_autoencoder(ctx, D, F, 5, &ae));
    for (int i = 0; i < ROWS * D; i++) rows[i] = (float)((i * 37 + 11) % 101) / 50 - 1;
}

static void end(void) {
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
    CHECK(store.open == 0);
    CHECK_MSG(starve.live == 0, "%d blocks leak", (int)starve.live);
}

static dlrn_status save_and_load(const char *path) {
    dlrn_dictionary *back = NULL;
    dlrn_status s = dlrn_save(ae, path);
    if (s == DLRN_OK) s = dlrn_load(ctx, path, NULL, &back);
    CHECK((s == DLRN_OK) == (back != NULL));
    if (back)
        CHECK(!memcmp(back->param[DLRN_ENCODER], ae->param[DLRN_ENCODER], F * D * sizeof(float)));
    if (back)
        CHECK(!memcmp(back->param[DLRN_DECODER], ae->param[DLRN_DECODER], F * D * sizeof(float)));
    dlrn_dictionary_destroy(back);
    return s;
}

static dlrn_status torch_form(void) {
    return save_and_load("run/ae.pt");
}

static dlrn_status safetensors_form(void) {
    return save_and_load("run/ae.safetensors");
}

static dlrn_status numpy_form(void) {
    return save_and_load("run/ae.npz");
}

static dlrn_status from_folder(void) { /* config.json is read before the weights */
    static const char text[] =
        "{\"trainer\": {\"dict_class\": \"AutoEncoder\"}, \"dict_size\": 12}";
    dlrn_dictionary *back = NULL;
    dlrn_status s = dlrn_file_write(ctx, "run/config.json", text, sizeof text - 1);
    if (s == DLRN_OK) s = dlrn_save(ae, "run/ae.pt");
    if (s == DLRN_OK) s = dlrn_load(ctx, "run", NULL, &back);
    dlrn_dictionary_destroy(back);
    return s;
}

static dlrn_status for_a_library(void) { /* weights and config, the config last */
    const dlrn_save_options how = {"saelens", 0};
    dlrn_dictionary *back = NULL;
    dlrn_status s = dlrn_save_as(ae, "lib", &how, NULL, 0);
    if (s == DLRN_OK) s = dlrn_load(ctx, "lib", NULL, &back);
    dlrn_dictionary_destroy(back);
    return s;
}

static dlrn_status appended(int64_t announced, const char *path) {
    dlrn_writer *w = NULL;
    dlrn_status s = dlrn_npy_create(ctx, path, D, announced, &w), closed = DLRN_OK;
    for (int i = 0; i < 4 && s == DLRN_OK; i++)
        s = dlrn_npy_append(w, rows + i * (ROWS / 4) * D, ROWS / 4);
    if (w) closed = dlrn_writer_close(w);
    return s == DLRN_OK ? closed : s;
}

static dlrn_status counted_rows(void) {
    return appended(ROWS, "run/known.npy");
}

static dlrn_status uncounted_rows(void) {
    return appended(-1, "run/rows.npy");
}

static dlrn_status codes(void) {
    dlrn_sparse c, back;
    dlrn_writer *w = NULL;
    memset(&c, 0, sizeof c);
    memset(&back, 0, sizeof back);
    dlrn_archive *a = NULL;
    dlrn_status s = dlrn_csr_create(ctx, "run/codes.npz", F, &w), closed = DLRN_OK;
    for (int i = 0; i < 4 && s == DLRN_OK; i++) {
        CHECK_OK(ctx, dlrn_encode_sparse(ae, rows + i * (ROWS / 4) * D, ROWS / 4, &c));
        s = dlrn_csr_append(w, &c);
    }
    if (w) closed = dlrn_writer_close(w);
    if (s == DLRN_OK) s = closed;
    if (s == DLRN_OK) s = dlrn_archive_open(ctx, "run/codes.npz", &a);
    if (s == DLRN_OK) s = dlrn_csr_read(a, &back);
    dlrn_archive_close(a);
    if (s == DLRN_OK) CHECK(back.rows == ROWS && back.cols == F && back.row_ptr[ROWS] > ROWS);
    dlrn_sparse_free(&c);
    dlrn_sparse_free(&back);
    return s;
}

static dlrn_status trained(int64_t steps, dlrn_trainer *t) {
    dlrn_status s = DLRN_OK;
    while (s == DLRN_OK && dlrn_trainer_describe(t).steps < steps)
        s = dlrn_trainer_step_on(t, rows, NULL, ROWS, NULL);
    return s;
}

static dlrn_status
resumed_run(void) { /* four steps, with a checkpoint after two: the bits of four without */
    dlrn_train_config cfg = dlrn_train_defaults(NULL);
    dlrn_trainer *t[3] = {NULL, NULL, NULL};
    cfg.d_in = D, cfg.features = F, cfg.warmup_steps = 0, cfg.log_steps = -1, cfg.steps = 4;
    for (int i = 0; i < 2; i++) {
        CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, NULL, &t[i]));
        CHECK_OK(ctx, trained(i ? 2 : 4, t[i]));
    }
    dlrn_status s = dlrn_trainer_save(t[1], "run/state.safetensors");
    if (s == DLRN_OK) s = dlrn_trainer_resume(ctx, "run/state.safetensors", &cfg, NULL, &t[2]);
    if (s == DLRN_OK) {
        CHECK_OK(ctx, trained(4, t[2]));
        CHECK(!memcmp(dlrn_trainer_describe(t[0]).dictionary->param[DLRN_ENCODER],
                      dlrn_trainer_describe(t[2]).dictionary->param[DLRN_ENCODER],
                      F * D * sizeof(float)));
    }
    for (int i = 0; i < 3; i++) dlrn_trainer_destroy(t[i]);
    return s;
}

static dlrn_status a_source(void) {
    const char *path = "run/source.npy";
    dlrn_source_desc desc = {&path, 1, NULL, 0, NULL, DLRN_F32, 1, 0, 0};
    dlrn_source source;
    float x[ROWS * D];
    int64_t n = 0;
    dlrn_status s = appended(ROWS, "run/source.npy");
    if (s == DLRN_OK) s = dlrn_source_open(ctx, &desc, &source);
    if (s != DLRN_OK) return s;
    s = source.read(source.user, ROWS, x, NULL, &n);
    CHECK(s != DLRN_OK || (n == ROWS && !memcmp(x, rows, sizeof x)));
    dlrn_source_destroy(&source);
    return s;
}

/* "hello\n" twice in gzip, stored, read byte by byte and once more from the middle; then plain. */
static dlrn_status a_stream(void) {
    static const unsigned char member[] = {0x1f, 0x8b, 8,    0,    0,    0,   0,   0,   0,   3,
                                           1,    6,    0,    249,  255,  'h', 'e', 'l', 'l', 'o',
                                           10,   0x20, 0x30, 0x3a, 0x36, 6,   0,   0,   0};
    unsigned char twice[2 * sizeof member];
    char text[20] = "";
    dlrn_status s = DLRN_OK;
    memcpy(twice, member, sizeof member);
    memcpy(twice + sizeof member, member, sizeof member);
    for (int plain = 0; plain < 2 && s == DLRN_OK; plain++) {
        static const char want[] = "hello\nhello\n";
        dlrn_stream *stream = NULL;
        s = plain ? dlrn_file_write(ctx, "run/hello", want, 12)
                  : dlrn_file_write(ctx, "run/hello.gz", twice, sizeof twice);
        if (s == DLRN_OK) s = dlrn_stream_open(ctx, plain ? "run/hello" : "run/hello.gz", &stream);
        size_t got = 1, n = 0;
        for (; s == DLRN_OK && got && n < 13; n += got)
            s = dlrn_stream_read(stream, text + n, 1, &got);
        if (s == DLRN_OK) CHECK(n == 12 && !memcmp(text, want, 12));
        if (s == DLRN_OK) s = dlrn_stream_seek(stream, 5);
        if (s == DLRN_OK) s = dlrn_stream_read(stream, text, 3, &got);
        if (s == DLRN_OK) CHECK(got > 0 && !memcmp(text, want + 5, got));
        dlrn_stream_close(stream);
    }
    return s;
}

static const struct {
    const char *name;
    dlrn_status (*run)(void);
} operations[] = {{"run/ae.pt", torch_form},       {"run/ae.safetensors", safetensors_form},
                  {"run/ae.npz", numpy_form},      {"run/config.json", from_folder},
                  {"run/known.npy", counted_rows}, {"run/rows.npy", uncounted_rows},
                  {"run/codes.npz", codes},        {"run/state.safetensors", resumed_run},
                  {"run/source.npy", a_source},    {"run/hello", a_stream},
                  {"lib/cfg.json", for_a_library}};
enum { OPERATIONS = sizeof operations / sizeof *operations };

/* ---- Tests ---- */

TEST(everything_through_the_store) {
    const dlrn_io io = io_of_store();
    begin(&io);
    for (int i = 0; i < OPERATIONS; i++) {
        CHECK_OK(ctx, operations[i].run());
        CHECK(dlrn_file_exists(ctx, operations[i].name) == 1 && store.open == 0);
    }
    CHECK(dlrn_file_exists(ctx, "run") == 2 && dlrn_file_exists(ctx, "run/none") == 0);
    CHECK(dlrn_file_exists(NULL, "tests/test_io.c") == 0); /* there is no disk */
    end();
}

/* What is written does not depend on what the store can do, nor what is read on how it comes. */
TEST(same_bytes_from_less) {
    const dlrn_io all = io_of_store();
    stored kept[FILES];
    begin(&all);
    for (int i = 0; i < OPERATIONS; i++) CHECK_OK(ctx, operations[i].run());
    memcpy(kept, store.file, sizeof kept);
    memset(store.file, 0, sizeof store.file);
    end();
    for (int less = 0; less < 4; less++) {
        dlrn_io io = io_of_store();
        if (less & 1) io.rewind_file = NULL;
        if (less & 2) io.temporary_file = NULL;
        begin(&io);
        store.portion = less == 1 ? 1 : 7;
        for (int i = 0; i < OPERATIONS; i++) CHECK_OK(ctx, operations[i].run());
        for (int i = 0; i < FILES; i++)
            CHECK_MSG(
                store.file[i].size == kept[i].size && !strcmp(store.file[i].name, kept[i].name) &&
                    (!kept[i].size || !memcmp(store.file[i].bytes, kept[i].bytes, kept[i].size)),
                "%s with %d", kept[i].name, less);
        end();
    }
    for (int i = 0; i < FILES; i++) free(kept[i].bytes);
}

/* Each call of an operation fails once. What it was to replace was written by the same operation,
   so that it is the same afterwards whether or not the fault came before it was replaced. */
TEST(each_call_fails) {
    const dlrn_io io = io_of_store();
    int faults = 0;
    begin(&io);
    for (int i = 0; i < OPERATIONS; i++) {
        CHECK_OK(ctx, operations[i].run());
        const int64_t live = starve.live;
        const stored *file = stored_as(operations[i].name);
        const uint64_t before = starve_mix(0, file->bytes, file->size);
        for (int64_t granted = 0;; granted++, faults++) {
            store.left = granted;
            *store.failed = 0;
            dlrn_status s = operations[i].run();
            store.left = -1;
            CHECK_MSG(starve.live == live && store.open == 0,
                      "%s: call %d: %d blocks, %d files open", operations[i].name, (int)granted,
                      (int)(starve.live - live), store.open);
            CHECK_MSG(starve_mix(0, file->bytes, file->size) == before, "%s: call %d",
                      operations[i].name, (int)granted);
            if (!*store.failed) { /* there was no such call */
                CHECK_OK(ctx, s);
                break;
            }
            if (s == DLRN_OK && !strcmp(store.failed, NO_WAY_BACK))
                continue; /* then the rows wait elsewhere */
            CHECK_STATUS(s, DLRN_ERR_IO);
            CHECK_STR(dlrn_error(ctx), store.failed);
        }
    }
    printf("       %d calls failed\n", faults);
    CHECK(faults > 200);
    end();
}

/* In an empty folder a config stands for weights that are complete: it is put in its place last,
   and what was prepared of it is given up when the weights fail. */
TEST(no_config_without_weights) {
    const dlrn_io io = io_of_store();
    const dlrn_save_options how = {"saelens", 0};
    dlrn_status s = DLRN_ERR_IO;
    for (int64_t granted = 0; s != DLRN_OK; granted++) {
        begin(&io);
        store.left = granted;
        s = dlrn_save_as(ae, "lib", &how, NULL, 0);
        store.left = -1;
        CHECK((s == DLRN_OK) == (dlrn_file_exists(ctx, "lib/cfg.json") == 1));
        if (s != DLRN_OK) CHECK_STR(dlrn_error(ctx), store.failed);
        if (s == DLRN_OK) CHECK_OK(ctx, for_a_library());
        end();
        CHECK(granted < 1000);
    }
}

/* What is given up leaves the store as it was. */
TEST(given_up) {
    const dlrn_io io = io_of_store();
    dlrn_writer *w = NULL;
    begin(&io);
    CHECK_OK(ctx, dlrn_npy_create(ctx, "run/rows.npy", D, -1, &w));
    CHECK_OK(ctx, dlrn_npy_append(w, rows, ROWS));
    dlrn_writer_abort(w);
    CHECK(store.open == 0 && dlrn_file_exists(ctx, "run/rows.npy") == 0);
    end();
}

/* Without an io there are no files, and every call that names one says so; what is in memory is
   read all the same. */
TEST(no_files) {
    static const char words[] =
        "f.pt: there are no files: DICTLEARN_NO_STDIO, and a context without io";
    const dlrn_io none = {NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL}, io = io_of_store();
    dlrn_dictionary *dict = NULL;
    dlrn_archive *a = NULL;
    dlrn_writer *w = NULL;
    dlrn_stream *stream = NULL;
    const char *path = "f.pt";
    dlrn_source_desc desc = {&path, 1, NULL, 0, NULL, DLRN_F32, 1, 0, 0};
    dlrn_source source;
    dlrn_sparse c;
    char *bytes;
    size_t size;
    begin(&none);
    memset(&c, 0, sizeof c);
    CHECK_STATUS(dlrn_save(ae, "f.pt"), DLRN_ERR_IO);
    CHECK_STR(dlrn_error(ctx), words);
    CHECK_STATUS(dlrn_load(ctx, "f.pt", NULL, &dict), DLRN_ERR_IO);
    CHECK_STATUS(dlrn_archive_open(ctx, "f.pt", &a), DLRN_ERR_IO);
    CHECK_STR(dlrn_error(ctx), words);
    CHECK_STATUS(dlrn_file_read(ctx, "f.pt", &bytes, &size), DLRN_ERR_IO);
    CHECK_STATUS(dlrn_file_write(ctx, "f.pt", "", 0), DLRN_ERR_IO);
    CHECK_STATUS(dlrn_npy_create(ctx, "f.pt", D, -1, &w), DLRN_ERR_IO);
    CHECK_STATUS(dlrn_csr_create(ctx, "f.pt", D, &w), DLRN_ERR_IO);
    CHECK_STATUS(dlrn_stream_open(ctx, "f.pt", &stream), DLRN_ERR_IO);
    CHECK_STATUS(dlrn_source_open(ctx, &desc, &source), DLRN_ERR_IO);
    CHECK_STR(dlrn_error(ctx), words);
    CHECK(dict == NULL && a == NULL && w == NULL && dlrn_file_exists(ctx, "f.pt") == 0);
    end();
    begin(&io);
    CHECK_OK(ctx, dlrn_save(ae, "f.pt"));
    stored kept = *stored_as("f.pt");
    memset(stored_as("f.pt"), 0, sizeof kept);
    end();
    begin(&none);
    CHECK_OK(ctx, dlrn_archive_open_memory(ctx, kept.bytes, kept.size, "f.pt", &a));
    CHECK(dlrn_archive_describe(a).count == 4);
    dlrn_archive_close(a);
    free(kept.bytes);
    end();
}

TEST(half_an_io) {
    for (int i = 0; i < 5; i++) {
        dlrn_context_config cfg = {0};
        dlrn_context *made = NULL;
        cfg.io = io_of_store();
        if (i == 0) cfg.io.open_file = NULL;
        if (i == 1) cfg.io.read_file = NULL;
        if (i == 2) cfg.io.write_file = NULL;
        if (i == 3) cfg.io.close_file = NULL;
        if (i == 4) cfg.io.file_exists = NULL;
        CHECK_STATUS(dlrn_context_create(&cfg, &made), DLRN_ERR_ARGUMENT);
        CHECK(made == NULL);
    }
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    RUN(everything_through_the_store);
    RUN(same_bytes_from_less);
    RUN(each_call_fails);
    RUN(no_config_without_weights);
    RUN(given_up);
    RUN(no_files);
    RUN(half_an_io);
    empty_store();
    return TEST_END();
}
