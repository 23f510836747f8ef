/* test_memory.c - reading and writing files, and a whole run, when memory runs out: each allocation of each operation
   fails once; every time the answer is DLRN_ERR_MEMORY, nothing leaks, and no file is left half-written. And what
   hostile bytes make a reader take stays in proportion to them. */
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "tests/bytes.h"
#include "tests/allocator.h"

/* Runs the operation with one more allocation granted each time, until it succeeds. */
static void starve(const char *name, dlrn_status (*operation)(void)) {
    const int64_t before = live;
    for (int granted = 0; granted < 4000; granted++) {
        left = granted;
        dlrn_status s = operation();
        left = -1;
        CHECK_MSG(live == before, "%s: %d blocks leak after %d allocations", name, (int)(live - before), granted);
        if (s == DLRN_OK) {
            CHECK_MSG(granted > 0, "%s: it allocates nothing", name);
            return;
        }
        CHECK_MSG(s == DLRN_ERR_MEMORY, "%s, after %d allocations: %s", name, granted, dlrn_error(ctx));
        CHECK_STR(dlrn_error(ctx), "out of memory");
    }
    TEST_FAIL("%s never succeeds", name);
}

/* ---- The files ---- */

static const float ones[6] = {1, 1, 1, 1, 1, 1};
static const dlrn_tensor_out weights[4] = {{"bias", DLRN_F32, 1, {2}, ones},
                                           {"encoder.weight", DLRN_F32, 2, {3, 2}, ones},
                                           {"encoder.bias", DLRN_F32, 1, {3}, ones},
                                           {"decoder.weight", DLRN_F32, 2, {2, 3}, ones}};
static const char *const metadata[] = {"format", "pt", NULL};
static char *path; /* of the operation in hand */

static dlrn_status open_archive(void) {
    dlrn_archive *a = NULL;
    dlrn_status s = dlrn_archive_open(ctx, path, &a);
    CHECK((s == DLRN_OK) == (a != NULL));
    dlrn_archive_close(a);
    return s;
}

static dlrn_status load(void) {
    dlrn_dictionary *dict = NULL;
    dlrn_status s = dlrn_load(ctx, path, &dict);
    CHECK((s == DLRN_OK) == (dict != NULL));
    dlrn_dictionary_destroy(dict);
    return s;
}

static dlrn_status write_archive(void) {
    remove(path);
    dlrn_status s = dlrn_archive_write(ctx, path, weights, 4, metadata);
    CHECK((s == DLRN_OK) == (dlrn_file_exists(path) == 1));
    return s;
}

static dlrn_status write_codes(void) {
    static int64_t ptr[2] = {0, 2};
    static int32_t col[2] = {0, 2};
    static float val[2] = {1, 2};
    dlrn_sparse codes;
    dlrn_writer *w = NULL;
    memset(&codes, 0, sizeof codes);
    codes.rows = 1, codes.cols = 3, codes.row_ptr = ptr, codes.col = col, codes.val = val;
    remove(path);
    dlrn_status s = dlrn_csr_create(ctx, path, 3, &w), closed = DLRN_OK;
    if (s == DLRN_OK) s = dlrn_csr_append(w, &codes);
    if (w) closed = dlrn_writer_close(w);
    if (s == DLRN_OK) s = closed;
    CHECK((s == DLRN_OK) == (dlrn_file_exists(path) == 1));
    return s;
}

static dlrn_status write_rows(void) {
    dlrn_writer *w = NULL;
    remove(path);
    dlrn_status s = dlrn_npy_create(ctx, path, 3, -1, &w), closed = DLRN_OK;
    if (s == DLRN_OK) s = dlrn_npy_append(w, ones, 2);
    if (w) closed = dlrn_writer_close(w);
    return s == DLRN_OK ? closed : s;
}

static dlrn_status load_codes(void) {
    dlrn_sparse codes;
    memset(&codes, 0, sizeof codes);
    dlrn_status s = dlrn_csr_load(ctx, path, &codes);
    CHECK(s == DLRN_OK || codes.row_ptr == NULL);
    dlrn_sparse_free(&codes);
    return s;
}

static dlrn_status parse(void) {
    static const char text[] = "{\"a\": [1, 2, {\"b\": \"c\", \"d\": null}], \"e\": {}}";
    dlrn_json *root;
    dlrn_status s = dlrn_json_parse(ctx, text, sizeof text - 1, "text", &root);
    dlrn_json_free(ctx, root);
    return s;
}

/* ---- A whole run: trained with ghosts, saved, resumed, resampled, and what it learnt is used ---- */

enum { D = 5, F = 70, ROWS = 24 };
static float rows[2][ROWS * D]; /* x, y */

static dlrn_status train_with(dlrn_buffer *buffer, const dlrn_dictionary *init, dlrn_trainer **t) {
    dlrn_train_config cfg = dlrn_train_defaults();
    const char *checkpoint = tmp_path("memory_run.safetensors");
    cfg.activation_dim = D, cfg.dict_size = F, cfg.ghost_threshold = 0, cfg.warmup_steps = 0;
    cfg.compat = 1, cfg.log_steps = 1, cfg.resample_rows = ROWS;
    dlrn_status s = dlrn_trainer_create(ctx, &cfg, init, buffer, t);
    for (int i = 0; !s && i < 2; i++) s = dlrn_trainer_step(*t, NULL);
    if (!s) s = dlrn_trainer_save(*t, checkpoint);
    dlrn_trainer_destroy(*t);
    *t = NULL;
    cfg.compat = 0;
    if (!s) s = dlrn_trainer_resume(ctx, checkpoint, NULL, buffer, t);
    if (!s) (*t)->cfg.compat = 0, (*t)->cfg.resample_steps = 3;
    return s ? s : dlrn_trainer_step(*t, NULL); /* the third: it resamples */
}

static dlrn_status use(const dlrn_dictionary *ae, const dlrn_source *source) {
    static float f[ROWS * F], x[ROWS * D], shift[ROWS];
    static unsigned char mask[F];
    dlrn_dictionary *copy = NULL, *identity = NULL;
    dlrn_sparse codes;
    dlrn_metrics m;
    const dlrn_eval_config cfg = dlrn_eval_defaults();
    memset(&codes, 0, sizeof codes);
    memset(mask, 1, sizeof mask);
    dlrn_status s = dlrn_encode(ae, rows[0], ROWS, f);
    if (!s) s = dlrn_encode(ae, rows[0], 1, f);
    if (!s) s = dlrn_decode(ae, f, ROWS, x);
    if (!s) s = dlrn_encode_sparse(ae, rows[0], ROWS, &codes);
    dlrn_sparse_free(&codes);
    if (!s) s = dlrn_forward(ae, rows[0], ROWS, x, NULL);
    if (!s) s = dlrn_forward_ghost(ae, rows[0], ROWS, mask, x, shift, &codes);
    dlrn_sparse_free(&codes);
    if (!s) s = dlrn_evaluate(ae, &cfg, source, NULL, &m);
    if (!s) s = dlrn_dictionary_copy(ae, &copy);
    if (!s) s = dlrn_identity_create(ctx, D, &identity);
    dlrn_dictionary_destroy(copy);
    dlrn_dictionary_destroy(identity);
    return s;
}

static dlrn_status run(void) {
    dlrn_buffer_config cfg = dlrn_buffer_defaults();
    dlrn_source source, again;
    dlrn_buffer *buffer = NULL;
    dlrn_trainer *t = NULL;
    dlrn_dictionary *init = NULL;
    memset(&source, 0, sizeof source);
    memset(&again, 0, sizeof again);
    cfg.n_ctxs = ROWS, cfg.ctx_len = 1, cfg.in_batch_size = 8, cfg.out_batch_size = 8, cfg.store = DLRN_F16;
    dlrn_status s = dlrn_source_from_array(ctx, rows[0], rows[1], ROWS, D, 3, &source);
    if (!s) s = dlrn_source_from_array(ctx, rows[0], rows[1], ROWS, D, 1, &again);
    if (!s) s = dlrn_buffer_create(ctx, &cfg, &source, 0, &buffer);
    if (!s) s = dlrn_autoencoder_create(ctx, D, F, 2, &init);
    for (int j = 0; !s && j < F; j += 3) init->encoder_bias[j] = -100;
    if (!s) s = train_with(buffer, init, &t);
    if (!s) s = use(dlrn_trainer_dictionary(t), &again);
    dlrn_trainer_destroy(t);
    dlrn_dictionary_destroy(init);
    dlrn_buffer_destroy(buffer);
    dlrn_source_destroy(&source);
    dlrn_source_destroy(&again);
    return s;
}

TEST(runs) {
    dlrn_rng rng = {4, 0, 0};
    for (int i = 0; i < 2 * ROWS * D; i++) rows[i / (ROWS * D)][i % (ROWS * D)] = dlrn_rng_normal(&rng);
    starve("a run", run);
}

TEST(archives) {
    static const char *const names[3] = {"m.pt", "m.safetensors", "m.npz"};
    for (int i = 0; i < 3; i++) {
        path = tmp_path(names[i]);
        starve(names[i], write_archive);
        starve(names[i], open_archive);
        starve(names[i], load);
    }
    path = tmp_path("m.npy");
    starve("rows", write_rows);
    starve("rows", open_archive);
}

TEST(folders) {
    static const char config[] = "{\"trainer\": {\"dict_class\": \"AutoEncoder\", \"dict_size\": 3}}";
    mkdir(tmp_path("memory"), 0777);
    CHECK_OK(ctx, dlrn_file_write(ctx, tmp_path("memory/config.json"), config, sizeof config - 1));
    CHECK_OK(ctx, dlrn_archive_write(ctx, tmp_path("memory/ae.pt"), weights, 4, NULL));
    path = tmp_path("memory");
    starve("a folder", load);
}

TEST(shards) {
    static const char index[] = "{\"weight_map\": {\"bias\": \"m1.pt\", \"encoder.bias\": \"m2.safetensors\"}}";
    CHECK_OK(ctx, dlrn_archive_write(ctx, tmp_path("m1.pt"), weights, 2, NULL));
    CHECK_OK(ctx, dlrn_archive_write(ctx, tmp_path("m2.safetensors"), weights + 2, 2, NULL));
    path = tmp_path("m.index.json");
    CHECK_OK(ctx, dlrn_file_write(ctx, path, index, sizeof index - 1));
    starve("shards", open_archive);
}

TEST(codes) {
    path = tmp_path("m_codes.npz");
    starve("writing codes", write_codes);
    starve("codes", load_codes);
}

TEST(json) {
    starve("JSON", parse);
}

/* An older file of the corpus, for the one form that is not written here. */
TEST(legacy) {
    path = shared_data("loader_corpus/burn/src__pytorch__tests__reader__test_data__legacy_shared_storage.pt");
    if (!path) SKIP("the files are not beside the repository");
    starve("a legacy file", open_archive);
}

/* ---- In proportion ---- */

enum { HOSTILE = 60000 };
static bytes b, pickle;
static zip z;

/* Opens what is in b: the most bytes that this took. */
static size_t taken(void) {
    dlrn_archive *a = NULL;
    size_t before = in_use;
    peak = in_use;
    (void)!open_bytes(&b, &a);
    dlrn_archive_close(a);
    CHECK(in_use == before);
    return peak - before;
}

/* `unit` over and over, after `begin`, as the pickle of a .pt. */
static void repeat_in_pickle(const char *begin, const char *unit, size_t unit_size) {
    pickle.n = 0;
    put_text(&pickle, begin);
    while (pickle.n + unit_size < HOSTILE) put(&pickle, unit, unit_size);
    memset(&z, 0, sizeof z);
    zip_raw(&z, "archive/data.pkl", &pickle, 0, pickle.n, 0, 0);
    b = *zip_done(&z);
}

TEST(pickles_in_proportion) {
    static const struct {
        const char *begin, *unit;
        size_t size;
    } bombs[] = {{"\x80\x02", ")", 1},         {"\x80\x02(", "N", 1},
                 {"\x80\x02", "(", 1},         {"\x80\x02]q\x01", "h\x01", 2},
                 {"\x80\x02N", "\x85", 1},     {"\x80\x02", "]\x94", 2},
                 {"\x80\x02]", "Na", 2},       {"\x80\x02", "ctorch\nSize\n", 12},
                 {"\x80\x02", "X\0\0\0\0", 5}, {"\x80\x02N", "r\x00\xf0\0\0", 5}};
    for (size_t i = 0; i < sizeof bombs / sizeof *bombs; i++) {
        repeat_in_pickle(bombs[i].begin, bombs[i].unit, bombs[i].size);
        size_t most = taken();
        CHECK_MSG(most < 512 * b.n, "%d: %d bytes for a file of %d", (int)i, (int)most, (int)b.n);
    }
}

TEST(json_in_proportion) {
    static const char *const units[] = {"[", ",", "[],", "{\"\":0},", "\"\","};
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        b.n = 0;
        put_le(&b, 0, 8);
        put_text(&b, "{\"x\":[");
        while (b.n < HOSTILE) put_text(&b, units[i]);
        patch(&b, 0, b.n - 8, 8);
        size_t most = taken();
        CHECK_MSG(most < 256 * b.n, "%s: %d bytes for a file of %d", units[i], (int)most, (int)b.n);
    }
}

/* Lengths that are only claimed. */
TEST(claims_in_proportion) {
    b.n = 0;
    put_le(&b, 100u << 20, 8);
    put_text(&b, "{");
    CHECK(taken() < 4096);
    b.n = 0;
    put_text(&b, "\x93NUMPY\x01");
    put_le(&b, 0, 1);
    put_le(&b, 75, 2);
    put_text(&b, "{'descr': '<f4', 'fortran_order': False, 'shape': (1048576, 1048576), }    \n");
    CHECK(taken() < 4096);
    static const unsigned char nothing[2] = {3, 0}; /* an empty block, said to unpack to more */
    memset(&z, 0, sizeof z);
    pickle.n = 0;
    put(&pickle, nothing, sizeof nothing);
    zip_raw(&z, "x.npy", &pickle, 8, 0xFFFFFF00, 0, 0);
    b = *zip_done(&z);
    CHECK(taken() < 8192);
    memset(&z, 0, sizeof z);
    zip_raw(&z, "x.npy", &pickle, 8, 2000, 0, 0);
    b = *zip_done(&z);
    CHECK(taken() < 8192);
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    dlrn_context_config cfg = counted_context();
    if (dlrn_context_create(&cfg, &ctx) != DLRN_OK) return 1;
    RUN(archives);
    RUN(folders);
    RUN(shards);
    RUN(codes);
    RUN(json);
    RUN(legacy);
    RUN(runs);
    RUN(pickles_in_proportion);
    RUN(json_in_proportion);
    RUN(claims_in_proportion);
    dlrn_context_destroy(ctx);
    return TEST_END();
}
