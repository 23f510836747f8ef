/* test_ranks_files.c - what several ranks read and write together: dictionaries of all layouts, each
   rank with its features; features, reconstructions and figures as of one process; the same bytes
   of files; checkpoints that any number of ranks resumes; one error for all. Ranks are threads. */
#define DLRNI_SPAN 4 /* the files are small: features stay together by fours */
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "tests/test.h"
#include "tests/pack.h"
#include "tests/ranks.h"

enum { MAX = 1 << 16 };

static dlrn_context *ctx;

/* What a body found wrong, by rank; "": nothing. */
static char wrong[RANKS_MAX][2048];

#define BODY_CHECK(rank, cond, ...)                                                                \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            if (!*wrong[rank]) snprintf(wrong[rank], sizeof wrong[rank], __VA_ARGS__);             \
            return;                                                                                \
        }                                                                                          \
    } while (0)

static void run_on(int ranks, void (*body)(void *, int, dlrn_context *), void *arg) {
    ranks_setup setup;
    memset(&setup, 0, sizeof setup);
    memset(wrong, 0, sizeof wrong);
    setup.ranks = ranks;
    ranks_run(&setup, body, arg);
    for (int r = 0; r < ranks; r++) CHECK_MSG(!*wrong[r], "rank %d of %d: %s", r, ranks, wrong[r]);
}

/* ---- Every layout ---- */

typedef struct layout_job {
    const char *path;
    const dlrn_load_options *options;
    const dlrn_dictionary *whole;
    const float *x, *x_hat;
    const dlrn_sparse *codes;
    int64_t n;
} layout_job;

/* This rank's part of a parameter is that of the whole. */
static int same_rows(const dlrn_dictionary *part, const dlrn_dictionary *whole) {
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        const dlrni_role *shape = &dlrni_role_table[role];
        if (!part->param[role] != !whole->param[role]) return 0;
        if (!part->param[role]) continue;
        const int64_t at = shape->rows == 'F' ? part->span_at * dlrni_extent(part, shape->cols) : 0;
        if (memcmp(part->param[role], whole->param[role] + at,
                   (size_t)dlrni_role_size(part, role) * sizeof(float)))
            return 0;
    }
    for (int64_t i = 0; i < part->n_parts; i++)
        if (!same_rows(part->part[i].dict, whole->part[i].dict)) return 0;
    return part->span_of == whole->features && part->n_parts == whole->n_parts;
}

/* This rank's codes are those of the whole that are its own. */
static int same_codes(const dlrn_dictionary *dict, const dlrn_sparse *own, const dlrn_sparse *all) {
    int64_t at = 0;
    if (own->rows != all->rows || own->cols != all->cols) return 0;
    for (int64_t i = 0; i < all->rows; i++) {
        for (int64_t p = all->row_ptr[i]; p < all->row_ptr[i + 1]; p++) {
            if (dlrni_own_feature(dict, all->col[p]) < 0) continue;
            if (at == own->row_ptr[i + 1] || own->col[at] != all->col[p] ||
                memcmp(&own->val[at], &all->val[p], sizeof *own->val))
                return 0;
            at++;
        }
        if (at != own->row_ptr[i + 1]) return 0;
    }
    return 1;
}

static int near(const float *a, const float *b, int64_t n) {
    float max = 0, off = 0;
    for (int64_t i = 0; i < n; i++) {
        max = fmaxf(max, fabsf(b[i]));
        off = fabsf(a[i] - b[i]) <= off ? off : fabsf(a[i] - b[i]);
    }
    return off <= 1e-6f * max;
}

static void layout_body(void *arg, int rank, dlrn_context *own) {
    const layout_job *j = (const layout_job *)arg;
    dlrn_dictionary *dict = NULL;
    dlrn_sparse codes;
    float *x_hat = (float *)malloc((size_t)(j->n * j->whole->d_out) * sizeof *x_hat);
    memset(&codes, 0, sizeof codes);
    BODY_CHECK(rank, dlrn_load(own, j->path, j->options, &dict) == DLRN_OK, "%s", dlrn_error(own));
    BODY_CHECK(rank, same_rows(dict, j->whole), "other weights");
    BODY_CHECK(rank, dlrn_forward(dict, j->x, j->n, x_hat, &codes) == DLRN_OK, "%s",
               dlrn_error(own));
    BODY_CHECK(rank, same_codes(dict, &codes, j->codes), "other codes");
    BODY_CHECK(rank, near(x_hat, j->x_hat, j->n * dict->d_out), "another x_hat");
    dlrn_sparse_free(&codes);
    dlrn_dictionary_destroy(dict);
    free(x_hat);
}

/* Families that are refused over ranks. */
static int is_refused(const dlrn_dictionary *dict) {
    return !strcmp(dict->family, "MatchingPursuit") || !strcmp(dict->family, "Temporal") ||
           !strcmp(dict->family, "GatedTopK");
}

static void refused_body(void *arg, int rank, dlrn_context *own) {
    const layout_job *j = (const layout_job *)arg;
    dlrn_dictionary *dict = NULL;
    dlrn_status s = dlrn_load(own, j->path, j->options, &dict);
    float x_hat[64 * 64];
    if (s == DLRN_OK) s = dlrn_forward(dict, j->x, 1, x_hat, NULL);
    dlrn_dictionary_destroy(dict);
    BODY_CHECK(rank, s == DLRN_ERR_UNSUPPORTED, "not refused: %s", dlrn_error(own));
}

static int64_t read_input(float *to) {
    char path[256];
    dlrn_archive *a = NULL;
    snprintf(path, sizeof path, "build/tmp/layouts/%s/input.npy", row.folder);
    CHECK_OK(ctx, dlrn_archive_open(ctx, path, &a));
    const int64_t n = dlrn_archive_tensor(a, 0)->numel;
    CHECK(n <= MAX);
    CHECK_OK(ctx, dlrn_archive_read(a, 0, 0, -1, to));
    dlrn_archive_close(a);
    return n;
}

static void test_line(void) {
    static float x[MAX], x_hat[MAX];
    char path[256];
    dlrn_dictionary *dict = NULL;
    dlrn_sparse codes;
    layout_job j = {path, &row.options, NULL, x, x_hat, &codes, 0};
    unpack(ctx);
    memset(&codes, 0, sizeof codes);
    snprintf(path, sizeof path, "build/tmp/layouts/%s", row.name);
    CHECK_OK(ctx, dlrn_load(ctx, path, &row.options, &dict));
    j.whole = dict;
    j.n = read_input(x) / dict->d_in;
    CHECK(j.n > 0 && j.n * dict->d_out <= MAX);
    CHECK_OK(ctx, dlrn_forward(dict, x, j.n, x_hat, &codes));
    for (int ranks = 2; ranks <= 3; ranks++)
        run_on(ranks, is_refused(dict) ? refused_body : layout_body, &j);
    dlrn_sparse_free(&codes);
    dlrn_dictionary_destroy(dict);
}

static void run_lines(void) {
    char text[512];
    FILE *file = fopen("tests/golden/layouts.txt", "r");
    while (file && fgets(text, sizeof text, file))
        if (*text != '#' && *text != '\n' && read_line(text) && strcmp(row.outcome, "refused"))
            test_run(row.name, test_line);
    if (file) fclose(file);
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    CHECK_STATUS(dlrn_context_create(NULL, &ctx), DLRN_OK);
    run_lines();
    dlrn_context_destroy(ctx);
    return TEST_END();
}
