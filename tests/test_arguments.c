/* test_arguments.c - what a caller can get wrong: each call that checks its arguments refuses each
   of them, in words, and does nothing. And NULL, where it is said to be fine. */
#include "dictlearn.h"
#include "tests/test.h"

enum { D = 3, F = 6, N = 2 };

static dlrn_context *ctx;
static float x[N * D], f[N * F];

/* The call is refused with this status and these words. */
#define REFUSED(call, status, words)                                                               \
    do {                                                                                           \
        CHECK_STATUS(call, status);                                                                \
        CHECK_STR(dlrn_error(ctx), words);                                                         \
    } while (0)
#define ARGUMENT(call, words) REFUSED(call, DLRN_ERR_ARGUMENT, words)

static dlrn_dictionary *make_dictionary(void) {
    dlrn_dictionary *ae = NULL;
    CHECK_OK(ctx, new_autoencoder(ctx, D, F, 0, &ae));
    return ae;
}

TEST(sizes_of_dictionaries) {
    dlrn_dictionary *ae = NULL;
    ARGUMENT(new_autoencoder(ctx, 0, F, 0, &ae), "d_in and d_out must be positive");
    ARGUMENT(new_autoencoder(ctx, D, -1, 0, &ae), "features must be");
    ARGUMENT(new_autoencoder(ctx, D, (int64_t)INT32_MAX + 1, 0, &ae), "features must be");
    REFUSED(new_autoencoder(ctx, INT64_MAX / 2, F, 0, &ae), DLRN_ERR_MEMORY, "memory");
    ARGUMENT(new_identity(ctx, 0, &ae), "d_in and d_out must be positive");
    ARGUMENT(new_identity(ctx, (int64_t)INT32_MAX + 1, &ae), "features must be");
    CHECK(ae == NULL);
}

TEST(rows_to_encode_and_decode) {
    static int64_t ptr[2] = {0, 1};
    static int32_t col[1];
    static float val[1] = {1};
    dlrn_dictionary *ae = make_dictionary(), *identity = NULL;
    dlrn_sparse codes;
    memset(&codes, 0, sizeof codes);
    ARGUMENT(dlrn_encode(ae, x, -1, f), "n must not be negative");
    ARGUMENT(dlrn_encode_sparse(ae, x, -1, &codes), "n must not be negative");
    ARGUMENT(dlrn_decode(ae, f, -1, x), "n must not be negative");
    CHECK_OK(ctx, dlrn_encode(ae, x, 0, f));
    CHECK_OK(ctx, dlrn_decode(ae, f, 0, x));
    codes.rows = 1, codes.cols = F + 1, codes.row_ptr = ptr, codes.col = col, codes.val = val;
    CHECK_STATUS(dlrn_decode_sparse(ae, &codes, x), DLRN_ERR_SHAPE);
    codes.cols = F;
    for (int i = 0; i < 2; i++) {
        col[0] = i ? F : -1;
        ARGUMENT(dlrn_decode_sparse(ae, &codes, x), "a feature index");
    }
    CHECK_OK(ctx, new_identity(ctx, D, &identity));
    dlrn_dictionary_destroy(identity);
    dlrn_dictionary_destroy(ae);
}

TEST(matrices) {
    dlrn_tensor t, none;
    int64_t index[D];
    CHECK_OK(ctx, dlrn_tensor_alloc(ctx, D, D, &t));
    ARGUMENT(dlrn_tensor_alloc(ctx, -1, D, &none), "must not be negative");
    ARGUMENT(dlrn_tensor_alloc(ctx, D, -1, &none), "must not be negative");
    REFUSED(dlrn_matmul(ctx, DLRN_NN, t, t, 0, dlrn_view(t.data, 2, D, D), NULL), DLRN_ERR_SHAPE,
            "c [2][3]");
    REFUSED(dlrn_matmul(ctx, DLRN_NN, t, t, 0, dlrn_view(t.data, D, 2, D), NULL), DLRN_ERR_SHAPE,
            "c [3][2]");
    static float work[DLRN_MATMUL_WORK];
    for (int serial = 0; serial < 2; serial++) {
        float *scratch = serial ? work : NULL;
        dlrn_tensor bad[] = {dlrn_view(t.data, -1, D, D), dlrn_view(t.data, D, D, 2)};
        for (int i = 0; i < 2; i++) {
            ARGUMENT(dlrn_matmul(ctx, DLRN_NN, bad[i], t, 0, t, scratch), "a:");
            ARGUMENT(dlrn_matmul(ctx, DLRN_NN, t, bad[i], 0, t, scratch), "b:");
            ARGUMENT(dlrn_matmul(ctx, DLRN_NN, t, t, 0, bad[i], scratch), "c:");
        }
        ARGUMENT(dlrn_matmul(ctx, DLRN_NN, t, t, 0.5f, t, scratch), "beta must be 0 or 1");
        ARGUMENT(dlrn_matmul(ctx, (dlrn_matmul_op)7, t, t, 0, t, scratch), "unknown operation");
    }
    ARGUMENT(dlrn_topk(ctx, x, D, -1, index, NULL), "k must be in [0, n]");
    ARGUMENT(dlrn_topk(ctx, x, D, D + 1, index, NULL), "k must be in [0, n]");
    dlrn_free(ctx, t.data);
}

TEST(settings_of_a_trainer) {
    dlrn_trainer *t = NULL;
#define SETTING(change, words)                                                                     \
    do {                                                                                           \
        dlrn_train_config cfg = dlrn_train_defaults(NULL);                                         \
        cfg.d_in = D, cfg.features = F;                                                            \
        change;                                                                                    \
        ARGUMENT(dlrn_trainer_create(ctx, &cfg, NULL, NULL, &t), words);                           \
    } while (0)
    SETTING(cfg.lr = INFINITY, "dlrn_train_config: lr: expected a finite number from 0, found inf");
    SETTING(cfg.sparsity_penalty = NAN, "sparsity_penalty: expected a finite number, found ");
    SETTING(cfg.beta1 = -0.1, "beta1");
    SETTING(cfg.beta1 = 1, "beta1");
    SETTING(cfg.beta2 = NAN, "beta");
    SETTING(cfg.eps = 0, "eps");
    SETTING(cfg.eps = INFINITY, "eps");
    SETTING(cfg.eps = 1e-60, "eps"); /* 0 as an f32 */
    SETTING(cfg.loss = (dlrn_loss)9, "loss: expected a value of dlrn_loss, found 9");
    SETTING(cfg.sparsity = (dlrn_sparsity)9,
            "sparsity: expected a value of dlrn_sparsity, found 9");
    SETTING(cfg.steps = -2, "steps");
    SETTING(cfg.resample_steps = -2, "resample_steps");
    SETTING(cfg.resample_steps = INT64_MAX, "resample_steps");
    SETTING(cfg.resample_rows = 0, "resample_rows");
    SETTING(cfg.log_steps = 0, "log_steps");
    SETTING(cfg.save_steps = 0, "save_steps");
#undef SETTING
    CHECK(t == NULL);
}

TEST(rows_of_a_trainer) {
    static float wrong[N * D];
    dlrn_train_config cfg = dlrn_train_defaults(NULL);
    dlrn_trainer *t = NULL;
    dlrn_dictionary *ae = NULL;
    cfg.d_in = D, cfg.features = F;
    wrong[4] = NAN;
    CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, NULL, &t));
    ARGUMENT(dlrn_trainer_step(t, NULL), "without a buffer");
    ARGUMENT(dlrn_trainer_step_on(t, NULL, NULL, N, NULL), "x must not be NULL");
    ARGUMENT(dlrn_trainer_step_on(t, x, NULL, 0, NULL), "a batch has between");
    ARGUMENT(dlrn_trainer_step_on(t, x, NULL, INT64_MAX, NULL), "a batch has between");
    CHECK_STATUS(dlrn_trainer_step_on(t, wrong, NULL, N, NULL), DLRN_ERR_VALUE);
    CHECK_STATUS(dlrn_trainer_step_on(t, x, wrong, N, NULL), DLRN_ERR_VALUE);
    ARGUMENT(dlrn_train(ctx, &cfg, NULL, NULL, NULL, &ae), "source must not be NULL");
    CHECK(dlrn_trainer_describe(t).config->features == F &&
          dlrn_trainer_describe(t).config->d_in == D);
    dlrn_buffer_config small = dlrn_buffer_defaults();
    dlrn_buffer *narrow = NULL;
    dlrn_trainer *none = NULL;
    dlrn_source source;
    small.capacity = N, small.read_rows = 1, small.batch_rows = 1;
    CHECK_OK(ctx, dlrn_source_from_array(ctx, x, NULL, 1, D - 1, 0, 1, &source));
    CHECK_OK(ctx, dlrn_buffer_create(ctx, &small, &source, DLRN_OWNED, &narrow));
    CHECK_STATUS(dlrn_trainer_create(ctx, &cfg, NULL, narrow, &none), DLRN_ERR_SHAPE);
    CHECK_STR(dlrn_error(ctx), "dlrn_trainer_create: expected rows of ");
    CHECK(none == NULL);
    dlrn_buffer_destroy(narrow);
    CHECK(dlrn_trainer_describe(t).steps == 0 && ae == NULL);
    CHECK_OK(ctx, dlrn_trainer_step_on(t, x, x, N, NULL));
    dlrn_trainer_destroy(t);
}

TEST(blocks_that_no_memory_holds) {
    CHECK(dlrn_alloc(ctx, INT64_MAX / 2, 16) == NULL && dlrn_alloc(ctx, -1, 1) == NULL);
    CHECK_STR(dlrn_error(ctx), "a block of -1 x 1 bytes does not fit in memory");
}

/* Each gradient may be left out, and is the same without the others. */
TEST(gradients_one_at_a_time) {
    static float whole[4][F * D], alone[F * D];
    const size_t size[4] = {D, F * D, F, F * D};
    dlrn_train_config cfg = dlrn_train_defaults(NULL);
    static const dlrn_role roles[4] = {DLRN_OUTPUT_BIAS, DLRN_ENCODER, DLRN_ENCODER_BIAS,
                                       DLRN_DECODER};
    float *all[DLRN_ROLE_COUNT] = {NULL};
    for (int i = 0; i < 4; i++) all[roles[i]] = whole[i];
    dlrn_trainer *t = NULL;
    cfg.d_in = D, cfg.features = F;
    CHECK_OK(ctx, dlrn_trainer_create(ctx, &cfg, NULL, NULL, &t));
    CHECK_OK(ctx, dlrni_trainer_gradients(t, x, NULL, N, all));
    for (int i = 0; i < 4; i++) {
        float *one[DLRN_ROLE_COUNT] = {NULL};
        one[roles[i]] = alone;
        memset(alone, 0x7f, sizeof alone);
        CHECK_OK(ctx, dlrni_trainer_gradients(t, x, NULL, N, one));
        CHECK_MSG(!memcmp(alone, whole[i], size[i] * sizeof *alone), "gradient %d", i);
    }
    dlrn_trainer_destroy(t);
}

#ifndef _WIN32
extern int setenv(const char *name, const char *value,
                  int replace); /* hidden from strict C99 although it is there */
extern int unsetenv(const char *name);

/* What the environment says wins over "auto", and over nothing else. */
TEST(kernels_of_the_environment) {
    const char *was = getenv("DICTLEARN_KERNELS");
    char kept[64] = "";
    dlrn_context_config cfg = {0};
    dlrn_context *other = NULL;
    if (was) snprintf(kept, sizeof kept, "%s", was);
    unsetenv("DICTLEARN_KERNELS");
    CHECK_OK(ctx, dlrn_context_create(&cfg, &other));
    char best[32];
    snprintf(best, sizeof best, "%s", dlrn_context_describe(other).kernels);
    dlrn_context_destroy(other);
    for (int c = 0; c < 5; c++) {
        static const char *const said[] = {"", "auto", "scalar", "scalar", "abacus"};
        cfg.kernels = c == 2 ? NULL : c == 3 ? best : "auto";
        CHECK(setenv("DICTLEARN_KERNELS", said[c], 1) == 0);
        CHECK_STATUS(dlrn_context_create(&cfg, &other), c == 4 ? DLRN_ERR_ARGUMENT : DLRN_OK);
        if (other) CHECK_STR(dlrn_context_describe(other).kernels, c == 2 ? "scalar" : best);
        dlrn_context_destroy(other);
    }
    if (was)
        CHECK(setenv("DICTLEARN_KERNELS", kept, 1) == 0);
    else
        unsetenv("DICTLEARN_KERNELS");
}
#endif

static void half_an_allocator(void *user, void *p) {
    (void)p, (void)user;
}

TEST(contexts) {
    dlrn_context *other = NULL;
    dlrn_context_config cfg = {0};
    cfg.threads = -1;
    CHECK_STATUS(dlrn_context_create(&cfg, &other), DLRN_ERR_ARGUMENT);
    memset(&cfg, 0, sizeof cfg);
    cfg.kernels = "abacus";
    CHECK_STATUS(dlrn_context_create(&cfg, &other), DLRN_ERR_ARGUMENT);
    memset(&cfg, 0, sizeof cfg);
    cfg.release = half_an_allocator;
    CHECK_STATUS(dlrn_context_create(&cfg, &other), DLRN_ERR_ARGUMENT);
    CHECK(other == NULL);
    CHECK_STR(dlrn_error(NULL), "no context");
    CHECK_STR(dlrn_name(DLRN_NAMES_STATUS, -1), "?");
    CHECK_STR(dlrn_name(DLRN_NAMES_DTYPE, 99), "?");
    CHECK(dlrni_dtype_size((dlrn_dtype)99) == 0);
}

/* The text of a failure stands until the next one, whatever is done between. */
TEST(an_error_stays_until_the_next) {
    dlrn_dictionary *ae = NULL, *made = NULL;
    CHECK_STATUS(dlrn_load(ctx, "no/such/first.pt", NULL, &ae), DLRN_ERR_IO);
    CHECK(ae == NULL);
    CHECK_OK(ctx, new_autoencoder(ctx, D, F, 0, &made));
    CHECK_OK(ctx, dlrn_save(made, tmp_path("stays.safetensors")));
    dlrn_dictionary_destroy(made);
    CHECK_STR(dlrn_error(ctx), "no/such/first.pt");
    CHECK_STATUS(dlrn_load(ctx, "no/such/second.pt", NULL, &ae), DLRN_ERR_IO);
    CHECK_STR(dlrn_error(ctx), "no/such/second.pt");
    CHECK(!strstr(dlrn_error(ctx), "first"));
}

TEST(null_is_fine) {
    dlrn_context_destroy(NULL);
    dlrn_dictionary_destroy(NULL);
    dlrn_sparse_free(NULL);
    dlrn_free(ctx, NULL);
    dlrn_archive_close(NULL);
    dlrn_buffer_destroy(NULL);
    dlrn_trainer_destroy(NULL);
    dlrn_evaluator_destroy(NULL);
    dlrn_free(ctx, NULL);
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    if (dlrn_context_create(NULL, &ctx) != DLRN_OK) return 1;
    RUN(sizes_of_dictionaries);
    RUN(rows_to_encode_and_decode);
    RUN(matrices);
    RUN(settings_of_a_trainer);
    RUN(rows_of_a_trainer);
    RUN(blocks_that_no_memory_holds);
    RUN(gradients_one_at_a_time);
#ifndef _WIN32
    RUN(kernels_of_the_environment);
#endif
    RUN(contexts);
    RUN(an_error_stays_until_the_next);
    RUN(null_is_fine);
    dlrn_context_destroy(ctx);
    return TEST_END();
}
