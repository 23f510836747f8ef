/* test_memory.c - reading and writing files when memory runs out: each allocation of each operation fails once; every
   time the answer is DLRN_ERR_MEMORY, nothing leaks, and no file is left half-written. */
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "tests/bytes.h"

static int64_t live, left = -1; /* blocks in use; allocations until one fails, negative: none does */

static void *count_malloc(size_t size, void *user) {
    (void)user;
    if (left == 0) return NULL;
    if (left > 0) left--;
    void *p = malloc(size);
    live += p != NULL;
    return p;
}

static void *count_realloc(void *p, size_t size, void *user) {
    if (!p) return count_malloc(size, user);
    if (left == 0) return NULL;
    if (left > 0) left--;
    return realloc(p, size);
}

static void count_free(void *p, void *user) {
    (void)user;
    live -= p != NULL;
    free(p);
}

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

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    dlrn_context_config cfg = dlrn_context_defaults();
    cfg.malloc = count_malloc;
    cfg.realloc = count_realloc;
    cfg.free = count_free;
    if (dlrn_context_create(&cfg, &ctx) != DLRN_OK) return 1;
    RUN(archives);
    RUN(folders);
    RUN(shards);
    RUN(codes);
    RUN(json);
    RUN(legacy);
    dlrn_context_destroy(ctx);
    return TEST_END();
}
