/* test_ranks_files.c - what several ranks read and write together: dictionaries of all layouts,
   each rank with its features; features, reconstructions and figures as of one process; the same
   bytes of files; checkpoints that any number of ranks resumes; one error for all. Ranks are
   threads. */
#include <unistd.h>

#ifndef _WIN32
/* Instead of the C library's: hundreds of files need not survive a power cut. External, because the
   Makefile puts it into the object that is linked. */
int no_fsync(int file);
int no_fsync(int file) {
    (void)file;
    return 0;
}
#define fsync no_fsync
#endif
/* The files are small: features stay together by fours. The object that tests link reads this
   number, and has its own for tests that do not. */
extern int dlrni_test_span;
int dlrni_test_span = 4;
#define DLRNI_SPAN dlrni_test_span
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "tests/test.h"
#include "tests/pack.h"
#include "tests/ranks.h"

#include <dirent.h>

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

/* ---- Files ---- */

static const char *const places[2] = {"build/tmp/ranks/one", "build/tmp/ranks/many"};

/* Removes all files of a folder, which is made if it is not there. */
static void clear_folder(const char *folder) {
    char path[600];
    DIR *dir;
    mkdir("build/tmp/ranks", 0777);
    mkdir(folder, 0777);
    CHECK((dir = opendir(folder)) != NULL);
    for (struct dirent *e; (e = readdir(dir)) != NULL;) {
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        if (*e->d_name != '.') CHECK(remove(path) == 0);
    }
    closedir(dir);
}

static int count_files(const char *folder) {
    int n = 0;
    DIR *dir = opendir(folder);
    CHECK(dir != NULL);
    for (struct dirent *e; (e = readdir(dir)) != NULL;) n += *e->d_name != '.';
    closedir(dir);
    return n;
}

static int same_bytes(const char *a, const char *b) {
    char *one = NULL, *two = NULL;
    size_t m = 0, n = 0;
    int same = dlrn_file_read(ctx, a, &one, &m) == DLRN_OK;
    same = same && dlrn_file_read(ctx, b, &two, &n) == DLRN_OK && m == n && !memcmp(one, two, n);
    dlrn_free(ctx, one);
    dlrn_free(ctx, two);
    return same;
}

/* The ranks have written what one process has: the same files, no other, no temporary one. */
static void check_folders(const char *what) {
    char one[600], many[600];
    DIR *dir = opendir(places[0]);
    CHECK(dir != NULL);
    for (struct dirent *e; (e = readdir(dir)) != NULL;) {
        if (*e->d_name == '.') continue;
        snprintf(one, sizeof one, "%s/%s", places[0], e->d_name);
        snprintf(many, sizeof many, "%s/%s", places[1], e->d_name);
        CHECK_MSG(same_bytes(one, many), "%s: %s: other bytes", what, e->d_name);
    }
    closedir(dir);
    CHECK_MSG(count_files(places[0]) == count_files(places[1]), "%s: other files", what);
}

/* A file name in one of the places. */
static const char *file_in(int which, const char *name) {
    static char path[2][600];
    snprintf(path[which], sizeof path[which], "%s/%s", places[which], name);
    return path[which];
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

/* The family that is refused over ranks. */
static int is_refused(const dlrn_dictionary *dict) {
    return !strcmp(dict->family, "Temporal");
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

/* ---- Saving ---- */

typedef struct save_job {
    const char *path, *to;
    const dlrn_load_options *options;
    const dlrn_save_options *as; /* NULL: dlrn_save */
    dlrn_status want;
} save_job;

static dlrn_status save_as(const dlrn_dictionary *dict, const char *to,
                           const dlrn_save_options *as) {
    char note[256];
    return as ? dlrn_save_as(dict, to, as, note, sizeof note) : dlrn_save(dict, to);
}

static void save_body(void *arg, int rank, dlrn_context *own) {
    const save_job *j = (const save_job *)arg;
    dlrn_dictionary *dict = NULL;
    BODY_CHECK(rank, dlrn_load(own, j->path, j->options, &dict) == DLRN_OK, "%s", dlrn_error(own));
    const dlrn_status s = save_as(dict, j->to, j->as);
    dlrn_dictionary_destroy(dict);
    BODY_CHECK(rank, s == j->want, "expected status %d, found %d: %s", (int)j->want, (int)s,
               dlrn_error(own));
}

/* What one process writes of a dictionary, the ranks write. */
static void check_saved(const dlrn_dictionary *dict, const char *path,
                        const dlrn_load_options *options, const dlrn_save_options *as,
                        const char *name) {
    clear_folder(places[0]);
    save_job j = {path, NULL, options, as, DLRN_OK};
    j.want = save_as(dict, *name ? file_in(0, name) : places[0], as);
    for (int ranks = 2; ranks <= 3; ranks++) {
        clear_folder(places[1]);
        j.to = *name ? file_in(1, name) : places[1];
        run_on(ranks, save_body, &j);
        check_folders(as ? as->layout : name);
    }
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
    if (!is_refused(dict)) {
        dlrn_save_options as = {dict->layout, 0};
        check_saved(dict, path, &row.options, NULL, "ae.safetensors");
        check_saved(dict, path, &row.options, &as, "");
    }
    dlrn_sparse_free(&codes);
    dlrn_dictionary_destroy(dict);
}

/* All formats, and for all libraries. */
TEST(saving) {
    static const char *const families[] = {"AutoEncoder", "AutoEncoderTopK", "JumpReluAutoEncoder",
                                           "GatedAutoEncoder", "BatchTopKSAE"};
    static const char *const names[] = {"ae.pt", "ae.safetensors", "ae.npz"};
    const char *path = "build/tmp/ranks/whole.safetensors";
    const dlrn_load_options none = {NULL, 0, 0, 0, DLRN_OFF};
    for (int i = 0; i < 6; i++) {
        dlrn_dictionary *dict = NULL;
        dlrn_dictionary_desc desc;
        memset(&desc, 0, sizeof desc);
        desc.family = i < 5 ? families[i] : "CrossLayerTranscoder";
        desc.d_in = 6;
        desc.features = i < 5 ? 45 : 45 * 3;
        desc.k = i == 1 || i == 4 ? 5 : 0;
        desc.layers = i < 5 ? 0 : 3;
        mkdir("build/tmp/ranks", 0777);
        CHECK_OK(ctx, dlrn_dictionary_create(ctx, &desc, &dict));
        CHECK_OK(ctx, dlrn_save(dict, path));
        for (int k = 0; k < 3; k++) check_saved(dict, path, &none, NULL, names[k]);
        for (int k = 0; k < DLRNI_TARGETS; k++) {
            dlrn_save_options as = {dlrni_target_table[k].library, 0};
            check_saved(dict, path, &none, &as, "");
        }
        dlrn_dictionary_destroy(dict);
    }
}

/* ---- Checkpoints ---- */

enum { D = 6, ROWS = 64, BATCH = 16 };
static float rows[ROWS * D];

static void make_rows(void) {
    dlrn_rng rng = {3, 0, 0};
    for (int i = 0; i < ROWS * D; i++) rows[i] = dlrn_rng_normal(&rng);
}

typedef struct train_job {
    const char *recipe, *from, *to; /* from NULL: a new one; to NULL: none is saved */
    int steps, buffered;
} train_job;

static dlrn_train_config config_of(const char *recipe) {
    dlrn_train_config cfg = dlrn_train_defaults(recipe);
    cfg.d_in = D, cfg.features = 45, cfg.steps = 20, cfg.warmup_steps = 2, cfg.log_steps = -1;
    cfg.resample_steps = -1;
    if (cfg.k) cfg.k = 5;
    if (!strncmp(recipe, "clt", 3)) cfg.layers = 3, cfg.features = 3 * 45;
    return cfg;
}

static void train_body(void *arg, int rank, dlrn_context *own) {
    const train_job *j = (const train_job *)arg;
    dlrn_train_config cfg = config_of(j->recipe);
    dlrn_buffer *b = NULL;
    dlrn_trainer *t = NULL;
    dlrn_status s = DLRN_OK;
    if (j->buffered) {
        dlrn_buffer_config want = dlrn_buffer_defaults();
        dlrn_source source;
        want.capacity = 32, want.read_rows = 8, want.batch_rows = BATCH, want.store = DLRN_BF16;
        s = dlrn_source_from_array(own, rows, NULL, ROWS, D, 0, 0, &source);
        if (s == DLRN_OK) s = dlrn_buffer_create(own, &want, &source, DLRN_OWNED, &b);
    }
    if (s == DLRN_OK)
        s = j->from ? dlrn_trainer_resume(own, j->from, &cfg, b, &t)
                    : dlrn_trainer_create(own, &cfg, NULL, b, &t);
    for (int i = 0; i < j->steps && s == DLRN_OK; i++)
        s = b ? dlrn_trainer_step(t, NULL) : dlrn_trainer_step_on(t, rows, NULL, BATCH, NULL);
    if (s == DLRN_OK && j->to) s = dlrn_trainer_save(t, j->to);
    BODY_CHECK(rank, s == DLRN_OK, "%s: %s", j->recipe, dlrn_error(own));
    dlrn_trainer_destroy(t);
    dlrn_buffer_destroy(b);
}

/* One process writes, two and three ranks resume and write the same bytes; two ranks go on, and one
   and three resume what they write. */
static void check_checkpoint(const char *recipe, int buffered) {
    const char *const one = "build/tmp/ranks/one.safetensors";
    const char *const two = "build/tmp/ranks/two.safetensors";
    const char *const again = "build/tmp/ranks/again.safetensors";
    train_job first = {recipe, NULL, one, 3, buffered}, on = {recipe, one, two, 2, buffered};
    train_job copy = {recipe, one, again, 0, buffered};
    run_on(1, train_body, &first);
    for (int ranks = 2; ranks <= 3; ranks++) {
        run_on(ranks, train_body, &copy);
        CHECK_MSG(same_bytes(one, again), "%s: %d ranks write other bytes", recipe, ranks);
    }
    run_on(2, train_body, &on);
    CHECK_MSG(!same_bytes(one, two), "%s: no step was made", recipe);
    copy.from = two;
    for (int ranks = 1; ranks <= 3; ranks++) {
        run_on(ranks, train_body, &copy);
        CHECK_MSG(same_bytes(two, again), "%s: %d ranks resume other numbers", recipe, ranks);
    }
}

TEST(checkpoints) {
    static const char *const recipes[] = {"reference",    "dl-top_k",    "dl-batch_top_k",
                                          "dl-jump_relu", "dl-gated",    "dl-p_anneal",
                                          "clt-topk",     "clt-jumprelu"};
    make_rows();
    mkdir("build/tmp/ranks", 0777);
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++)
        check_checkpoint(recipes[i], i % 2 == 1);
}

/* ---- Figures ---- */

enum { DOCUMENTS = 7, TOKENS = 9, EVAL_ROWS = 60 };

/* A model of one site, whose loss of a token is a function of what it goes on with. Each rank has
   the documents first .. end. */
typedef struct model {
    int64_t first, end, d;
    int fails; /* at its second document */
} model;

static dlrn_status cross_entropy(void *user, const dlrn_edit *edit, double *nats, int64_t *tokens) {
    const model *m = (const model *)user;
    float out[TOKENS * 16];
    *nats = 0;
    *tokens = 0;
    for (int64_t doc = m->first; doc < m->end; doc++) {
        const int64_t n = 3 + doc % 5, d = m->d;
        const float *x = rows + doc * d;
        if (m->fails && doc > m->first) return DLRN_ERR_CALLBACK;
        memcpy(out, x, (size_t)(n * d) * sizeof *out);
        if (edit) {
            const dlrn_status s = edit->edit(edit->user, 0, x, out, n);
            if (s != DLRN_OK) return s;
        }
        for (int64_t i = 0; i < n; i++)
            for (int64_t c = 0; c < d; c++)
                *nats += fabs((double)out[i * d + c] - (double)x[i * d + c] / 2);
        *tokens += n;
    }
    if (*tokens) *nats /= (double)*tokens;
    return DLRN_OK;
}

typedef struct figures {
    dlrn_metrics m;
    int64_t fired[3 * 45], count[6];
    double mean[DLRN_WEIGHT_COUNT];
    float each[DLRN_WEIGHT_COUNT * 3 * 45], decoded[EVAL_ROWS * D];
    dlrn_sparse codes;
} figures;

typedef struct eval_job {
    const char *path;
    const dlrn_dictionary_desc *desc; /* path NULL: a new one */
    dlrn_sparsity sparsity;
    int fails;
    figures of[RANKS_MAX];
} eval_job;

static dlrn_status evaluate(dlrn_context *own, const eval_job *j, int rank, int ranks,
                            figures *to) {
    dlrn_dictionary *dict = NULL;
    dlrn_evaluator *e = NULL;
    dlrn_sparse codes;
    dlrn_metrics m;
    dlrn_eval_config cfg = dlrn_eval_defaults();
    model model = {DOCUMENTS * rank / ranks, DOCUMENTS * (rank + 1) / ranks, D, 0};
    dlrn_language_model lm = {cross_entropy, NULL, &model, 1, 0};
    dlrn_source source;
    cfg.batch_size = 13, cfg.sparsity = j->sparsity, cfg.rows = EVAL_ROWS, cfg.saelens_batch = 16;
    if (ranks == 3) { /* one has no documents, one has most */
        model.first = rank == 1 ? 0 : rank == 0 ? 5 : DOCUMENTS;
        model.end = rank == 1 ? 5 : DOCUMENTS;
    }
    model.fails = j->fails && rank == 1;
    lm.documents = model.end - model.first;
    memset(&codes, 0, sizeof codes);
    memset(&source, 0, sizeof source);
    dlrn_status s = j->path ? dlrn_load(own, j->path, NULL, &dict)
                            : dlrn_dictionary_create(own, j->desc, &dict);
    if (s == DLRN_OK) s = dlrn_source_from_array(own, rows, NULL, ROWS, D, 0, 0, &source);
    if (s == DLRN_OK) s = dlrn_evaluate(dict, &cfg, &source, &lm, NULL, NULL, &to->m);
    if (s == DLRN_OK) s = dlrn_evaluator_create(dict, &cfg, &e);
    if (s == DLRN_OK) s = dlrn_evaluator_add(e, rows, NULL, EVAL_ROWS);
    if (s == DLRN_OK) s = dlrn_evaluator_finish(e, &m);
    if (s == DLRN_OK) memcpy(to->fired, m.fired, (size_t)dict->span_of * sizeof *to->fired);
    if (s == DLRN_OK) s = dlrn_evaluator_histogram(e, 6, NULL, to->count);
    if (s == DLRN_OK) s = dlrn_weight_figures(dict, to->mean, to->each);
    if (s == DLRN_OK) s = dlrn_encode_sparse(dict, rows, EVAL_ROWS, &codes);
    if (s == DLRN_OK) s = dlrn_decode_sparse(dict, &codes, to->decoded);
    if (s == DLRN_OK) s = dlrn_gather_codes(dict, &codes, rank == 1 ? NULL : &to->codes);
    dlrn_sparse_free(&codes);
    dlrn_evaluator_destroy(e);
    dlrn_source_destroy(&source);
    dlrn_dictionary_destroy(dict);
    return s;
}

static void eval_body(void *arg, int rank, dlrn_context *own) {
    eval_job *j = (eval_job *)arg;
    figures *to = &j->of[rank];
    const dlrn_status s = evaluate(own, j, rank, dlrn_context_describe(own).ranks, to);
    if (j->fails) {
        BODY_CHECK(rank, s == DLRN_ERR_CALLBACK && strstr(dlrn_error(own), "the language model"),
                   "expected the model's error, found %d: %s", (int)s, dlrn_error(own));
        return;
    }
    BODY_CHECK(rank, s == DLRN_OK, "%s", dlrn_error(own));
    /* the context ends here: the codes are compared elsewhere */
    dlrn_sparse copy = to->codes;
    memset(&to->codes, 0, sizeof to->codes);
    const int64_t n = copy.row_ptr ? copy.row_ptr[copy.rows] : 0;
    to->codes.rows = copy.rows;
    to->codes.cols = n; /* entries */
    to->codes.col = (int32_t *)malloc((size_t)n * sizeof(int32_t) + 1);
    to->codes.val = (float *)malloc((size_t)n * sizeof(float) + 1);
    to->codes.row_ptr = (int64_t *)malloc((size_t)(copy.rows + 1) * sizeof(int64_t));
    if (n) memcpy(to->codes.col, copy.col, (size_t)n * sizeof(int32_t));
    if (n) memcpy(to->codes.val, copy.val, (size_t)n * sizeof(float));
    if (copy.row_ptr)
        memcpy(to->codes.row_ptr, copy.row_ptr, (size_t)(copy.rows + 1) * sizeof(int64_t));
    dlrn_sparse_free(&copy);
}

static void free_figures(eval_job *j, int ranks) {
    for (int r = 0; r < ranks; r++) {
        free(j->of[r].codes.col);
        free(j->of[r].codes.val);
        free(j->of[r].codes.row_ptr);
    }
}

static int close_to(double a, double b) {
    return fabs(a - b) <= 1e-6 * fmax(fabs(b), 1e-3) || (a != a && b != b);
}

static void check_figures(const char *what, const figures *a, const figures *b) {
#define SAME(field)                                                                                \
    CHECK_MSG(close_to((double)a->m.field, (double)b->m.field), "%s: %s %.9g, expected %.9g",      \
              what, #field, (double)a->m.field, (double)b->m.field)
    SAME(rows);
    SAME(mse_loss);
    SAME(l2_loss);
    SAME(sparsity_loss);
    SAME(variance_explained);
    SAME(variance_explained_per_dim);
    SAME(l0);
    SAME(share_alive);
    SAME(cosine);
    SAME(l2_ratio);
    SAME(relative_reconstruction_bias);
    SAME(dead);
    SAME(dense);
    SAME(saelens.l1);
    SAME(saelens.explained_variance);
    SAME(saelens.explained_variance_legacy);
    SAME(saebench.frac_alive);
    SAME(saebench.normalized_freq_over_1_percent);
    SAME(loss_original);
    SAME(loss_reconstructed);
    SAME(loss_zero);
    SAME(share_recovered);
    SAME(documents);
    SAME(tokens);
#undef SAME
    CHECK_MSG(!memcmp(a->fired, b->fired, sizeof a->fired), "%s: other features fired", what);
    CHECK_MSG(!memcmp(a->count, b->count, sizeof a->count), "%s: another histogram", what);
    CHECK_MSG(!memcmp(a->mean, b->mean, sizeof a->mean), "%s: other figures of weights", what);
    CHECK_MSG(!memcmp(a->each, b->each, sizeof a->each), "%s: other figures of features", what);
    CHECK_MSG(near(a->decoded, b->decoded, EVAL_ROWS * D), "%s: decoded otherwise", what);
}

static void check_gathered(const char *what, const dlrn_sparse *a, const dlrn_sparse *b) {
    CHECK_MSG(a->rows == b->rows && a->cols == b->cols && b->cols > 0, "%s: other codes", what);
    CHECK_MSG(!memcmp(a->row_ptr, b->row_ptr, (size_t)(a->rows + 1) * sizeof *a->row_ptr) &&
                  !memcmp(a->col, b->col, (size_t)a->cols * sizeof *a->col) &&
                  !memcmp(a->val, b->val, (size_t)a->cols * sizeof *a->val),
              "%s: codes in another order", what);
}

static void check_evaluation(const char *family, dlrn_sparsity sparsity) {
    static eval_job one, many;
    dlrn_dictionary *dict = NULL;
    dlrn_dictionary_desc desc;
    memset(&desc, 0, sizeof desc);
    memset(&one, 0, sizeof one);
    desc.family = family, desc.d_in = D, desc.features = 3 * 45, desc.seed = 2;
    if (!strcmp(family, "CrossLayerTranscoder")) desc.layers = 3;
    if (strstr(family, "TopK")) desc.k = 5;
    one.desc = &desc, one.sparsity = sparsity;
    mkdir("build/tmp/ranks", 0777);
    CHECK_OK(ctx, dlrn_dictionary_create(ctx, &desc, &dict));
    if (strcmp(family, "MatchingPursuit") && strcmp(family, "GatedTopK")) { /* those go elsewhere */
        one.path = "build/tmp/ranks/whole.safetensors";
        CHECK_OK(ctx, dlrn_save(dict, one.path));
    }
    dlrn_dictionary_destroy(dict);
    run_on(1, eval_body, &one);
    for (int ranks = 2; ranks <= 3; ranks++) {
        memset(&many, 0, sizeof many);
        many.path = one.path, many.desc = &desc, many.sparsity = sparsity;
        run_on(ranks, eval_body, &many);
        for (int r = 0; r < ranks; r++) check_figures(family, &many.of[r], &one.of[0]);
        for (int r = 0; r < ranks; r += 2)
            check_gathered(family, &many.of[r].codes, &one.of[0].codes);
        free_figures(&many, ranks);
    }
    free_figures(&one, 1);
}

TEST(figures) {
    make_rows();
    check_evaluation("AutoEncoder", DLRN_SPARSITY_L1);
    check_evaluation("AutoEncoder", DLRN_SPARSITY_ENTROPY);
    check_evaluation("AutoEncoderTopK", DLRN_SPARSITY_L1);
    check_evaluation("CrossLayerTranscoder", DLRN_SPARSITY_L1);
    check_evaluation("MatchingPursuit", DLRN_SPARSITY_L1);
    check_evaluation("GatedTopK", DLRN_SPARSITY_L1);
}

/* ---- Families that encode all features of a row together ---- */

enum { WIDE = 20, MANY = 150 }; /* rows of more than a block */

typedef struct together_job {
    const char *family;
    int64_t n, period; /* weights repeat after so many features; 0: they do not */
    dlrn_switch repeats;
    const float *x, *x_hat; /* of one process */
    const dlrn_sparse *codes;
} together_job;

/* A dictionary whose features of other ranks are equal to each other, so that values are. */
static dlrn_status make_together(dlrn_context *own, const together_job *j, dlrn_dictionary **out) {
    dlrn_dictionary_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.family = j->family, desc.d_in = WIDE, desc.features = 45, desc.seed = 2;
    if (!strcmp(j->family, "IdentityDict")) desc.features = 0;
    if (!strcmp(j->family, "GatedTopK")) desc.k = 5;
    const dlrn_status s = dlrn_dictionary_create(own, &desc, out);
    if (s != DLRN_OK) return s;
    dlrn_dictionary *dict = *out;
    dict->formula.repeats = j->repeats;
    if (j->repeats) dict->formula.threshold = 0.5;
    for (int role = 0; role < DLRN_ROLE_COUNT && j->period; role++)
        for (int64_t f = 0; dict->param[role] && role != DLRN_OUTPUT_BIAS && f < dict->features;
             f++)
            for (int64_t c = 0; c < dlrni_role_width(dict, role); c++) {
                dlrn_rng rng = {3, (uint64_t)((dict->span_at + f) % j->period),
                                (uint64_t)(role * WIDE + c)};
                dict->param[role][f * dlrni_role_width(dict, role) + c] =
                    0.3f * dlrn_rng_normal(&rng);
            }
    dlrn_dictionary_changed(dict);
    return DLRN_OK;
}

static void together_body(void *arg, int rank, dlrn_context *own) {
    const together_job *j = (const together_job *)arg;
    dlrn_dictionary *dict = NULL;
    dlrn_sparse codes;
    float *x_hat = (float *)malloc((size_t)(j->n * WIDE) * sizeof *x_hat);
    memset(&codes, 0, sizeof codes);
    BODY_CHECK(rank, make_together(own, j, &dict) == DLRN_OK, "%s", dlrn_error(own));
    BODY_CHECK(rank, dlrn_forward(dict, j->x, j->n, x_hat, &codes) == DLRN_OK, "%s",
               dlrn_error(own));
    BODY_CHECK(rank, same_codes(dict, &codes, j->codes), "other codes");
    BODY_CHECK(rank, near(x_hat, j->x_hat, j->n * WIDE), "another x_hat");
    dlrn_sparse_free(&codes);
    dlrn_dictionary_destroy(dict);
    free(x_hat);
}

static void check_together(together_job *j) {
    static float x_hat[MANY * WIDE];
    dlrn_dictionary *dict = NULL;
    dlrn_sparse codes;
    memset(&codes, 0, sizeof codes);
    CHECK_OK(ctx, make_together(ctx, j, &dict));
    CHECK_OK(ctx, dlrn_forward(dict, j->x, j->n, x_hat, &codes));
    j->x_hat = x_hat, j->codes = &codes;
    CHECK(codes.row_ptr[j->n] > 0);
    for (int ranks = 2; ranks <= 4; ranks++) run_on(ranks, together_body, j);
    dlrn_sparse_free(&codes);
    dlrn_dictionary_destroy(dict);
}

TEST(features_of_a_row_together) {
    static const char *const families[] = {"MatchingPursuit", "GatedTopK", "IdentityDict"};
    static const int64_t counts[] = {1, 9, MANY};
    static float x[MANY * WIDE];
    dlrn_rng rng = {5, 0, 0};
    for (int i = 0; i < MANY * WIDE; i++) x[i] = dlrn_rng_normal(&rng);
    memset(x + 3 * WIDE, 0, WIDE * sizeof *x);
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        for (int k = 0; k < 3; k++)
            for (int period = 0; period <= 20; period += 20) {
                together_job j = {families[i], counts[k], period, DLRN_OFF, x, NULL, NULL};
                check_together(&j);
                j.repeats = DLRN_ON;
                if (!i) check_together(&j);
            }
}

/* ---- Codes of all ranks, on some of them ---- */

typedef struct gather_job {
    int wants[RANKS_MAX]; /* which have use for them */
    const dlrn_sparse *codes;
} gather_job;

static void gather_body(void *arg, int rank, dlrn_context *own) {
    const gather_job *j = (const gather_job *)arg;
    const together_job of = {"GatedTopK", 0, 0, DLRN_OFF, NULL, NULL, NULL};
    dlrn_dictionary *dict = NULL;
    dlrn_sparse codes, all;
    memset(&codes, 0, sizeof codes);
    memset(&all, 0, sizeof all);
    dlrn_status s = make_together(own, &of, &dict);
    if (s == DLRN_OK) s = dlrn_encode_sparse(dict, rows, 9, &codes);
    if (s == DLRN_OK) s = dlrn_gather_codes(dict, &codes, j->wants[rank] ? &all : NULL);
    BODY_CHECK(rank, s == DLRN_OK, "%s", dlrn_error(own));
    const size_t n = (size_t)j->codes->row_ptr[9];
    BODY_CHECK(rank,
               !j->wants[rank] || (all.rows == 9 && all.row_ptr[9] == (int64_t)n &&
                                   !memcmp(all.col, j->codes->col, n * sizeof *all.col) &&
                                   !memcmp(all.val, j->codes->val, n * sizeof *all.val)),
               "other codes");
    dlrn_sparse_free(&codes);
    dlrn_sparse_free(&all);
    dlrn_dictionary_destroy(dict);
}

TEST(codes_go_to_the_ranks_that_have_use_for_them) {
    const together_job of = {"GatedTopK", 0, 0, DLRN_OFF, NULL, NULL, NULL};
    dlrn_dictionary *dict = NULL;
    dlrn_sparse codes;
    gather_job j;
    memset(&codes, 0, sizeof codes);
    make_rows();
    CHECK_OK(ctx, make_together(ctx, &of, &dict));
    CHECK_OK(ctx, dlrn_encode_sparse(dict, rows, 9, &codes));
    for (int ways = 0; ways < 16; ways++) { /* bits: which of three ranks; whether it can gather */
        ranks_setup setup;
        memset(&setup, 0, sizeof setup);
        memset(wrong, 0, sizeof wrong);
        setup.ranks = 3, setup.has_gather = ways >> 3;
        for (int r = 0; r < 3; r++) j.wants[r] = ways >> r & 1;
        j.codes = &codes;
        ranks_run(&setup, gather_body, &j);
        for (int r = 0; r < 3; r++)
            CHECK_MSG(!*wrong[r], "ways %d, rank %d: %s", ways, r, wrong[r]);
        const int one = j.wants[0] + j.wants[1] + j.wants[2] == 1 && setup.has_gather;
        CHECK_MSG(ranks_to_one == (one ? 3 : 0), "ways %d: %d to one rank", ways, ranks_to_one);
    }
    dlrn_sparse_free(&codes);
    dlrn_dictionary_destroy(dict);
}

/* ---- Surveys ---- */

enum { CONTEXTS = 12, CONTEXT = 11, SURVEY_ROWS = CONTEXTS * CONTEXT };

typedef struct survey_job {
    const char *family;
    dlrn_survey_config cfg;
    int64_t stops;            /* rank 1 ends its report after so many visits; -1: it does not */
    int64_t seen[RANKS_MAX];  /* reports                                                    */
    uint64_t hash[RANKS_MAX]; /* of all that a survey tells                                 */
    dlrn_status status[RANKS_MAX];
    int64_t memory[RANKS_MAX]; /* bytes that it holds */
} survey_job;

typedef struct survey_visit {
    survey_job *j;
    int rank;
} survey_visit;

static void hash_bytes(uint64_t *hash, const void *bytes, size_t size) { /* FNV-1a */
    for (size_t i = 0; i < size; i++)
        *hash = (*hash ^ ((const unsigned char *)bytes)[i]) * 1099511628211u;
}

#define HASH(value) hash_bytes(hash, &(value), sizeof(value))

static void hash_companions(uint64_t *hash, const dlrn_companion *c, int64_t n) {
    HASH(n);
    for (int64_t i = 0; i < n; i++) HASH(c[i].index), HASH(c[i].both), HASH(c[i].pearson);
}

static dlrn_status hash_report(void *user, const dlrn_feature_report *r) {
    const survey_visit *v = (const survey_visit *)user;
    uint64_t *hash = &v->j->hash[v->rank];
    const dlrn_survey_config *cfg = &v->j->cfg;
    HASH(r->feature), HASH(r->totals.fired), HASH(r->totals.sum), HASH(r->density);
    hash_bytes(hash, r->histogram, (size_t)cfg->bins * sizeof *r->histogram);
    for (int64_t i = 0; i < cfg->intervals; i++)
        HASH(r->interval[i].low), HASH(r->interval[i].share);
    for (int64_t i = 0; i < r->examples; i++) {
        const dlrn_example *e = &r->example[i];
        HASH(e->row), HASH(e->peak), HASH(e->first);
        hash_bytes(hash, e->token, (size_t)e->count * sizeof *e->token);
        hash_bytes(hash, e->value, (size_t)e->count * sizeof *e->value);
    }
    for (int64_t i = 0; i < r->tokens; i++) HASH(r->by_mean[i].token), HASH(r->by_share[i].share);
    hash_companions(hash, r->companion, r->companions);
    hash_companions(hash, r->neuron, r->neurons);
    return ++v->j->seen[v->rank] == v->j->stops && v->rank == 1 ? DLRN_STOPPED : DLRN_OK;
}

/* Two calls of unequal length, then reports on some features in any order, one of them twice. */
static dlrn_status survey_rows(survey_job *j, int rank, const dlrn_dictionary *dict,
                               dlrn_survey **out) {
    static const int64_t list[] = {44, 3, 17, 0, 29, 3, 12};
    const int64_t n = sizeof list / sizeof *list;
    int64_t start[CONTEXTS + 1];
    int32_t id[SURVEY_ROWS];
    unsigned char keep[SURVEY_ROWS];
    float x[SURVEY_ROWS * D];
    survey_visit visit = {j, rank};
    uint64_t *hash = &j->hash[rank];
    for (int i = 0; i <= CONTEXTS; i++) start[i] = (int64_t)i * CONTEXT;
    for (int i = 0; i < SURVEY_ROWS; i++) id[i] = i * 7 % 13, keep[i] = i % CONTEXT != 0;
    for (int i = 0; i < SURVEY_ROWS * D; i++) x[i] = rows[i % (ROWS * D)] + (float)(i % 7) / 9;
    dlrn_survey_config cfg = j->cfg;
    cfg.features = cfg.n_features ? list : NULL;
    dlrn_status s = dlrn_survey_create(dict, &cfg, out);
    if (s == DLRN_OK) s = dlrn_survey_add(*out, x, id, start, 5, keep);
    if (s == DLRN_OK)
        s = dlrn_survey_add(*out, x + 5 * CONTEXT * D, id + 5 * CONTEXT, start + 5, CONTEXTS - 5,
                            keep + 5 * CONTEXT);
    if (s == DLRN_OK) s = dlrn_survey_report(*out, list, n, hash_report, &visit);
    if (s != DLRN_OK) return s;
    const dlrn_survey_info info = dlrn_survey_describe(*out);
    HASH(info.rows), HASH(info.counted), HASH(info.codes);
    hash_bytes(hash, info.totals, (size_t)dict->span_of * sizeof *info.totals);
    j->memory[rank] = info.memory;
    return DLRN_OK;
}

static void survey_body(void *arg, int rank, dlrn_context *own) {
    survey_job *j = (survey_job *)arg;
    dlrn_dictionary *dict = NULL;
    dlrn_survey *survey = NULL;
    dlrn_dictionary_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.family = j->family, desc.d_in = D, desc.features = 45, desc.seed = 2;
    if (strstr(j->family, "TopK")) desc.k = 5;
    if (strstr(j->family, "Cross")) desc.layers = 3;
    dlrn_status s = dlrn_dictionary_create(own, &desc, &dict);
    if (s == DLRN_OK && !strcmp(j->family, "BatchTopKSAE")) /* contexts alone */
        dict->formula.select = DLRN_SELECT_BATCH_TOP_K, dict->formula.gate = DLRN_GATE_RELU;
    if (s == DLRN_OK) s = survey_rows(j, rank, dict, &survey);
    j->status[rank] = s;
    dlrn_survey_destroy(survey);
    dlrn_dictionary_destroy(dict);
}

static survey_job survey_of(const char *family) {
    survey_job j;
    memset(&j, 0, sizeof j);
    j.family = family, j.stops = -1;
    j.cfg = dlrn_survey_defaults();
    j.cfg.scratch = "build/tmp/ranks/survey";
    return j;
}

/* Every rank tells what one process tells, bit for bit. */
static void check_survey(survey_job *j) {
    run_on(1, survey_body, j);
    CHECK_STATUS(j->status[0], DLRN_OK);
    const uint64_t want = j->hash[0];
    const int64_t memory = j->memory[0];
    for (int ranks = 2; ranks <= 3; ranks++) {
        memset(j->hash, 0, sizeof j->hash);
        run_on(ranks, survey_body, j);
        for (int r = 0; r < ranks; r++) {
            CHECK_STATUS(j->status[r], DLRN_OK);
            CHECK_MSG(j->hash[r] == want, "%s, rank %d of %d: another survey", j->family, r, ranks);
            CHECK(!j->cfg.neurons || j->memory[r] < memory);
        }
    }
}

TEST(surveys) { /* the temporary file is beside cfg.scratch */
    static const char *const families[] = {"AutoEncoder", "AutoEncoderTopK", "BatchTopKSAE",
                                           "MatchingPursuit", "CrossLayerTranscoder"};
    make_rows();
    mkdir("build", 0777);
    mkdir("build/tmp", 0777);
    mkdir("build/tmp/ranks", 0777);
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        for (int way = 0; way < 4; way++) {
            survey_job j = survey_of(families[i]);
            if (way == 1) j.cfg.memory = 4096; /* a temporary file, several passes */
            if (way == 2) j.cfg.compat = DLRN_ON, j.cfg.n_features = 7;
            if (way == 3) j.cfg.neurons = DLRN_OFF, j.cfg.n_features = 7;
            check_survey(&j);
        }
}

TEST(a_report_ends_on_one_rank) {
    for (int neurons = 0; neurons < 2; neurons++) {
        survey_job j = survey_of("AutoEncoder");
        j.stops = 2;
        j.cfg.neurons = neurons ? DLRN_ON : DLRN_OFF;
        run_on(3, survey_body, &j);
        for (int r = 0; r < 3; r++) CHECK_STATUS(j.status[r], DLRN_STOPPED);
    }
}

/* ---- Nearest atoms ---- */

enum { NEAR_K = 4, NEAR_F = 1200 }; /* several blocks of rows */

typedef struct near_job {
    const char *family;
    int64_t features[2]; /* of the two dictionaries; the second 0: the first again */
    const int64_t *list;
    int64_t n; /* 0: all */
    int exact; /* weights of -1, 0 and 1: many rows are equal, some are zeros */
    int role;
    int32_t index[RANKS_MAX][NEAR_F * NEAR_K];
    float cosine[RANKS_MAX][NEAR_F * NEAR_K];
} near_job;

static dlrn_status near_dictionary(dlrn_context *own, const near_job *j, int which,
                                   dlrn_dictionary **out) {
    dlrn_dictionary_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.family = j->family, desc.d_in = D, desc.features = j->features[which];
    desc.seed = 2 + (uint64_t)which;
    if (strstr(j->family, "Cross")) desc.layers = 3;
    const dlrn_status s = dlrn_dictionary_create(own, &desc, out);
    for (int64_t p = -1; s == DLRN_OK && j->exact && p < (*out)->n_parts; p++) {
        dlrn_dictionary *dict = p < 0 ? *out : (*out)->part[p].dict;
        float *row = dict->param[j->role];
        for (int64_t f = 0; row && f < dict->features; f++)
            for (int64_t c = 0, width = dlrni_role_width(dict, j->role); c < width; c++) {
                dlrn_rng rng = {desc.seed, (uint64_t)(dict->span_at + f), (uint64_t)c};
                row[f * width + c] = (float)((int)(3 * dlrn_rng_uniform(&rng)) - 1);
            }
    }
    return s;
}

static void near_body(void *arg, int rank, dlrn_context *own) {
    near_job *j = (near_job *)arg;
    dlrn_dictionary *dict[2] = {NULL, NULL};
    dlrn_status s = near_dictionary(own, j, 0, &dict[0]);
    if (s == DLRN_OK && j->features[1]) s = near_dictionary(own, j, 1, &dict[1]);
    const int64_t n = j->n ? j->n : j->features[0];
    if (s == DLRN_OK)
        s = dlrn_nearest(dict[0], dict[1] ? dict[1] : dict[0], j->role, j->list, n, NEAR_K,
                         j->index[rank], j->cosine[rank]);
    dlrn_dictionary_destroy(dict[0]);
    dlrn_dictionary_destroy(dict[1]);
    BODY_CHECK(rank, s == DLRN_OK, "%s", dlrn_error(own));
}

static void check_nearest(near_job *j) {
    static int32_t index[NEAR_F * NEAR_K];
    static float cosine[NEAR_F * NEAR_K];
    memset(j->index, 0, sizeof j->index);
    memset(j->cosine, 0, sizeof j->cosine);
    run_on(1, near_body, j);
    memcpy(index, j->index[0], sizeof index);
    memcpy(cosine, j->cosine[0], sizeof cosine);
    for (int ranks = 2; ranks <= 4; ranks++) {
        memset(j->index, 0, sizeof j->index);
        memset(j->cosine, 0, sizeof j->cosine);
        run_on(ranks, near_body, j);
        for (int r = 0; r < ranks; r++)
            CHECK_MSG(!memcmp(j->index[r], index, sizeof index) &&
                          !memcmp(j->cosine[r], cosine, sizeof cosine),
                      "%s, %d and %d features, rank %d of %d: other atoms", j->family,
                      (int)j->features[0], (int)j->features[1], r, ranks);
    }
}

TEST(nearest_atoms) {
    static const int64_t list[] = {30, 2, 44, 2, 7, 0};
    static const int64_t sizes[][2] = {{45, 30}, {45, 0}, {3, 45}, {45, 3}, {NEAR_F, 0}, {600, 90}};
    static near_job j;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int way = 0; way < 4; way++) {
            memset(&j, 0, sizeof j);
            j.family = "AutoEncoder", j.exact = way % 2,
            j.role = way < 2 ? DLRN_DECODER : DLRN_ENCODER;
            j.features[0] = sizes[i][0], j.features[1] = sizes[i][1];
            check_nearest(&j);
            if (j.features[0] < 45) continue;
            j.list = list, j.n = sizeof list / sizeof *list;
            check_nearest(&j);
        }
    for (int way = 0; way < 4; way++) { /* part by part, a list in any order */
        memset(&j, 0, sizeof j);
        j.family = "CrossLayerTranscoder", j.exact = way % 2, j.role = DLRN_DECODER;
        j.features[0] = 90, j.features[1] = way < 2 ? 0 : 60;
        check_nearest(&j);
        j.list = list, j.n = sizeof list / sizeof *list;
        check_nearest(&j);
    }
}

static int near_stop(void *user) {
    return *(const int *)user == 1; /* the rank's number */
}

static void near_stop_body(void *arg, int rank, dlrn_context *own) {
    near_job *j = (near_job *)arg;
    dlrn_dictionary *dict = NULL;
    dlrn_status s = near_dictionary(own, j, 0, &dict);
    if (s == DLRN_OK)
        s = dlrn_nearest(dict, dict, DLRN_DECODER, NULL, NEAR_F, NEAR_K, j->index[rank],
                         j->cosine[rank]);
    dlrn_dictionary_destroy(dict);
    BODY_CHECK(rank, s == DLRN_STOPPED, "not stopped: %d, %s", (int)s, dlrn_error(own));
}

TEST(a_search_is_stopped_on_one_rank) {
    static near_job j;
    ranks_setup setup;
    memset(&setup, 0, sizeof setup);
    memset(wrong, 0, sizeof wrong);
    setup.ranks = 3, setup.stop = near_stop;
    j.family = "AutoEncoder", j.features[0] = NEAR_F;
    ranks_run(&setup, near_stop_body, &j);
    for (int r = 0; r < 3; r++) CHECK_MSG(!*wrong[r], "rank %d: %s", r, wrong[r]);
}

/* ---- One error for all ---- */

TEST(a_model_fails_on_one_rank) {
    static eval_job j;
    memset(&j, 0, sizeof j);
    j.path = "build/tmp/ranks/whole.safetensors", j.fails = 1;
    make_rows();
    check_evaluation("AutoEncoder", DLRN_SPARSITY_L1); /* makes the file */
    run_on(3, eval_body, &j);
}

static void missing_body(void *arg, int rank, dlrn_context *own) {
    dlrn_dictionary *dict = NULL;
    char path[300];
    snprintf(path, sizeof path, "%s%s", (const char *)arg, rank == 1 ? ".gone" : "");
    BODY_CHECK(rank, dlrn_load(own, path, NULL, &dict) == DLRN_ERR_IO && !dict,
               "loaded without a file: %s", dlrn_error(own));
    BODY_CHECK(rank, strstr(dlrn_error(own), ".gone: no such file"), "error: %s", dlrn_error(own));
    BODY_CHECK(rank, rank == 1 || !strncmp(dlrn_error(own), "rank 1: ", 8), "error: %s",
               dlrn_error(own));
    /* all go on */
    BODY_CHECK(rank, dlrn_load(own, (const char *)arg, NULL, &dict) == DLRN_OK, "%s",
               dlrn_error(own));
    dlrn_status s = dlrn_save(dict, "build/tmp/ranks/none/ae.safetensors");
    BODY_CHECK(rank, s == DLRN_ERR_IO, "saved in no folder: %d", (int)s);
    dlrn_dictionary_destroy(dict);
}

TEST(a_file_is_missing_on_one_rank) {
    char path[] = "build/tmp/ranks/whole.safetensors";
    run_on(3, missing_body, path);
}

/* The `left`-th block of memory of one rank is not there. */
static int64_t left[RANKS_MAX];

static void *starved(void *user, size_t size) {
    return --left[*(const int *)user] == 0 ? NULL : malloc(size);
}

static void fed(void *user, void *p) {
    (void)user;
    free(p);
}

static int finished; /* without a failure */

static void starve_body(void *arg, int rank, dlrn_context *own) {
    static const char *const to = "build/tmp/ranks/starved.safetensors";
    dlrn_dictionary *dict = NULL;
    dlrn_trainer *t = NULL;
    dlrn_survey *survey = NULL;
    survey_job j = survey_of("AutoEncoder");
    float x_hat[EVAL_ROWS * D], cosine[3 * 45];
    int32_t index[3 * 45];
    dlrn_status s = dlrn_load(own, (const char *)arg, NULL, &dict);
    if (s == DLRN_OK) s = dlrn_forward(dict, rows, EVAL_ROWS, x_hat, NULL);
    if (s == DLRN_OK) s = dlrn_save(dict, to);
    if (s == DLRN_OK)
        s = dlrn_trainer_resume(own, "build/tmp/ranks/one.safetensors", NULL, NULL, &t);
    if (s == DLRN_OK) s = dlrn_trainer_save(t, to);
    if (s == DLRN_OK) s = survey_rows(&j, rank, dict, &survey);
    if (s == DLRN_OK)
        s = dlrn_nearest(dict, dict, DLRN_DECODER, NULL, dict->span_of, 1, index, cosine);
    dlrn_survey_destroy(survey);
    dlrn_trainer_destroy(t);
    dlrn_dictionary_destroy(dict);
    if (rank == 0) finished = s == DLRN_OK;
    BODY_CHECK(rank, s == DLRN_OK || s == DLRN_ERR_MEMORY, "status %d: %s", (int)s,
               dlrn_error(own));
}

TEST(no_memory_on_one_rank) {
    char path[] = "build/tmp/ranks/whole.safetensors";
    int n = 1;
    check_checkpoint("dl-top_k", 0);
    for (finished = 0; !finished && n < 4000; n++) {
        ranks_setup setup;
        memset(&setup, 0, sizeof setup);
        memset(wrong, 0, sizeof wrong);
        memset(left, 0, sizeof left);
        setup.ranks = 2, setup.alloc = starved, setup.release = fed;
        left[n % 2] = n / 2 + 2; /* the first is the context's own */
        ranks_run(&setup, starve_body, path);
        for (int r = 0; r < 2; r++) CHECK_MSG(!*wrong[r], "block %d: rank %d: %s", n, r, wrong[r]);
    }
    CHECK(finished && n > 100);
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
    RUN(saving);
    RUN(checkpoints);
    RUN(figures);
    RUN(features_of_a_row_together);
    RUN(codes_go_to_the_ranks_that_have_use_for_them);
    RUN(surveys);
    RUN(a_report_ends_on_one_rank);
    RUN(nearest_atoms);
    RUN(a_search_is_stopped_on_one_rank);
    RUN(a_model_fails_on_one_rank);
    RUN(a_file_is_missing_on_one_rank);
    RUN(no_memory_on_one_rank);
    run_lines();
    dlrn_context_destroy(ctx);
    return TEST_END();
}
