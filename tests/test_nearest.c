/* The nearest atoms of two dictionaries, or of one: against plain loops, with ties and rows of
   zeros, and the same bits for any number of threads and any kernels. */
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "starve.h"
#include "test.h"

enum {
    WIDTH = 5,
    F = 3700, /* several blocks of rows, and more than one of columns */
    SMALL = 40,
    K = 4
};

static int32_t index_of[F * K], wanted_index[F * K];
static float cosine_of[F * K], wanted[F * K];

/* exact: numbers of {-1, 0, 1}, so that many rows are equal or parallel, and some are zero. */
static dlrn_dictionary *make(dlrn_context *ctx, int64_t width, int64_t features, uint64_t seed,
                             int exact) {
    static const int roles[] = {DLRN_ENCODER, DLRN_DECODER};
    dlrn_dictionary *dict = NULL;
    CHECK_OK(ctx, new_autoencoder(ctx, width, features, seed, &dict));
    dlrn_rng rng = {seed, 1, 0};
    for (int r = 0; r < 2; r++)
        for (int64_t i = 0; i < width * features; i++)
            dict->param[roles[r]][i] =
                exact ? (float)((int)(3 * dlrn_rng_uniform(&rng)) - 1) : 3 * dlrn_rng_normal(&rng);
    dlrn_dictionary_changed(dict);
    return dict;
}

/* In double; NaN where a row is zero. */
static double plain_cosine(const float *a, const float *b, int64_t n) {
    double aa = 0, bb = 0, ab = 0;
    for (int64_t j = 0; j < n; j++) {
        aa += (double)a[j] * (double)a[j];
        bb += (double)b[j] * (double)b[j];
        ab += (double)a[j] * (double)b[j];
    }
    return ab / (sqrt(aa) * sqrt(bb));
}

/* The k nearest rows of b to one of a, by picking the best of those that are left. `own`: a row of
   b that does not count, or -1. Equal: as f32 numbers. */
static void plain_nearest(const float *row, const float *b, int64_t n, int64_t width, int64_t own,
                          int64_t k, int32_t *index, float *cosine) {
    char *used = (char *)calloc((size_t)n, 1);
    for (int64_t q = 0; q < k; q++) {
        index[q] = -1, cosine[q] = (float)NAN;
        for (int64_t j = 0; j < n; j++) {
            float c = (float)plain_cosine(row, b + j * width, width);
            if (used[j] || j == own || isnan(c)) continue;
            if (index[q] < 0 || c > cosine[q]) index[q] = (int32_t)j, cosine[q] = c;
        }
        if (index[q] >= 0) used[index[q]] = 1;
    }
    free(used);
}

/* Where values are equal but for rounding, any of them may come first. */
static void check_found(const float *row, const float *b, int64_t n, int64_t own, int64_t k,
                        const int32_t *index, const float *cosine) {
    int32_t plain[64];
    float best[64];
    plain_nearest(row, b, n, WIDTH, own, k, plain, best);
    for (int64_t q = 0; q < k; q++) {
        CHECK((index[q] < 0) == (plain[q] < 0) && (index[q] < 0) == (int)isnan(cosine[q]));
        if (index[q] < 0) continue;
        CHECK(index[q] < n && index[q] != own);
        CHECK(fabsf(cosine[q] - best[q]) < 2e-6f);
        CHECK(fabs((double)cosine[q] - plain_cosine(row, b + index[q] * WIDTH, WIDTH)) < 2e-6);
        CHECK(!q || cosine[q] < cosine[q - 1] ||
              (!(cosine[q] > cosine[q - 1]) && index[q] > index[q - 1]));
    }
}

TEST(all_pairs_of_two_dictionaries) {
    dlrn_context *ctx = test_context("auto", 2);
    dlrn_dictionary *a = make(ctx, WIDTH, 530, 1, 0), *b = make(ctx, WIDTH, F, 2, 0);
    static const int roles[] = {DLRN_ENCODER, DLRN_DECODER};
    for (int r = 0; r < 2; r++) {
        CHECK_OK(ctx, dlrn_nearest(a, b, roles[r], NULL, 530, K, index_of, cosine_of));
        for (int64_t i = 0; i < 530; i += 3)
            check_found(a->param[roles[r]] + i * WIDTH, b->param[roles[r]], F, -1, K,
                        index_of + i * K, cosine_of + i * K);
    }
    dlrn_dictionary_destroy(a);
    dlrn_dictionary_destroy(b);
    dlrn_context_destroy(ctx);
}

/* Each pair is computed once, and found from both sides; a list computes all, to the same bits. */
TEST(one_dictionary_and_lists_of_it) {
    enum { SOME = 700 };
    static int64_t list[SOME];
    dlrn_context *ctx = test_context("auto", 2);
    dlrn_dictionary *a = make(ctx, WIDTH, F, 3, 0);
    const float *atoms = a->param[DLRN_DECODER];
    CHECK_OK(ctx, dlrn_nearest(a, a, DLRN_DECODER, NULL, F, K, index_of, cosine_of));
    for (int64_t i = 0; i < F; i += 17)
        check_found(atoms + i * WIDTH, atoms, F, i, K, index_of + i * K, cosine_of + i * K);
    for (int64_t i = 0; i < SOME; i++) list[i] = (i * 1009 + 11) % F; /* in no order */
    list[5] = list[4];                                                /* twice       */
    CHECK_OK(ctx, dlrn_nearest(a, a, DLRN_DECODER, list, SOME, K, wanted_index, wanted));
    for (int64_t i = 0; i < SOME; i++) {
        CHECK(!memcmp(wanted_index + i * K, index_of + list[i] * K, K * sizeof *index_of));
        CHECK(!memcmp(wanted + i * K, cosine_of + list[i] * K, K * sizeof *cosine_of));
    }
    dlrn_dictionary_destroy(a);
    dlrn_context_destroy(ctx);
}

/* Small integers: parallel rows have the same cosine, and the lower number is first. Norms that are
   exact make the f32 results exact. */
TEST(ties_go_to_the_lower_number) {
    enum { N = 900 };
    dlrn_context *ctx = test_context("auto", 2);
    dlrn_dictionary *a = make(ctx, WIDTH, N, 4, 1);
    float *rows = a->param[DLRN_DECODER];
    int64_t zeros = 0, ties = 0;
    for (int64_t i = 0; i < N; i++) { /* coordinates 0 or 1 in one or four places: norm 1 or 2 */
        memset(rows + i * WIDTH, 0, WIDTH * sizeof *rows);
        for (int64_t j = 0; j < WIDTH && i % 11; j++)
            rows[i * WIDTH + j] = i % 2 ? j == i % WIDTH : j != i % WIDTH;
    }
    CHECK_OK(ctx, dlrn_nearest(a, a, DLRN_DECODER, NULL, N, K, index_of, cosine_of));
    for (int64_t i = 0; i < N; i++) {
        plain_nearest(rows + i * WIDTH, rows, N, WIDTH, i, K, wanted_index, wanted);
        zeros += i % 11 == 0;
        CHECK(!memcmp(index_of + i * K, wanted_index, K * sizeof *index_of));
        CHECK(i % 11 == 0 ? (int)isnan(cosine_of[i * K]) && index_of[i * K] == -1
                          : !memcmp(cosine_of + i * K, wanted, K * sizeof *wanted));
        ties += i % 11 && !(wanted[0] > wanted[K - 1]);
    }
    CHECK(zeros > 50 && ties > 500);
    dlrn_dictionary_destroy(a);
    dlrn_context_destroy(ctx);
}

TEST(threads_and_kernels_do_not_change_a_bit) {
    static const char *const sets[] = {"scalar", "auto"};
    int first = 1;
    for (int threads = 1; threads < 4; threads++) {
        for (int s = 0; s < 2; s++, first = 0) {
            dlrn_context *ctx = test_context(sets[s], threads);
            dlrn_dictionary *a = make(ctx, WIDTH, 520, 5, 0), *b = make(ctx, WIDTH, 600, 6, 0);
            /* few, since scalar kernels are slow */
            CHECK_OK(ctx, dlrn_nearest(b, b, DLRN_ENCODER, NULL, 600, K, index_of, cosine_of));
            CHECK_OK(ctx, dlrn_nearest(a, b, DLRN_DECODER, NULL, 520, K, index_of + 600 * K,
                                       cosine_of + 600 * K));
            if (first) {
                memcpy(wanted_index, index_of, sizeof index_of);
                memcpy(wanted, cosine_of, sizeof cosine_of);
            }
            CHECK(!memcmp(index_of, wanted_index, sizeof index_of));
            CHECK(!memcmp(cosine_of, wanted, sizeof cosine_of));
            dlrn_dictionary_destroy(a);
            dlrn_dictionary_destroy(b);
            dlrn_context_destroy(ctx);
        }
    }
}

/* More neighbours than there are: the rest is -1 and NaN. */
TEST(more_neighbours_than_features) {
    enum { MANY = SMALL + 3 };
    static int32_t index[SMALL * MANY];
    static float cosine[SMALL * MANY];
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_dictionary *a = make(ctx, WIDTH, SMALL, 7, 0), *one = make(ctx, WIDTH, 1, 8, 0);
    float *atoms = a->param[DLRN_DECODER];
    memset(atoms + 9 * WIDTH, 0, WIDTH * sizeof *atoms);
    CHECK_OK(ctx, dlrn_nearest(a, a, DLRN_DECODER, NULL, SMALL, MANY, index, cosine));
    for (int64_t i = 0; i < SMALL; i++) {
        check_found(atoms + i * WIDTH, atoms, SMALL, i, MANY, index + i * MANY, cosine + i * MANY);
        CHECK(index[i * MANY + SMALL - 2] == -1 && (index[i * MANY] == -1) == (i == 9));
    }
    CHECK_OK(ctx, dlrn_nearest(one, one, DLRN_DECODER, NULL, 1, 2, index, cosine));
    CHECK(index[0] == -1 && index[1] == -1 && isnan(cosine[0]) && isnan(cosine[1]));
    CHECK_OK(ctx, dlrn_nearest(one, a, DLRN_DECODER, NULL, 1, 1, index, cosine));
    check_found(one->param[DLRN_DECODER], atoms, SMALL, -1, 1, index, cosine);
    dlrn_dictionary_destroy(a);
    dlrn_dictionary_destroy(one);
    dlrn_context_destroy(ctx);
}

/* Norms far from 1: their product does not overflow, nor vanish. */
TEST(long_and_short_rows) {
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_dictionary *a = make(ctx, WIDTH, SMALL, 9, 0), *b = make(ctx, WIDTH, SMALL, 10, 0);
    CHECK_OK(ctx, dlrn_nearest(a, b, DLRN_DECODER, NULL, SMALL, K, wanted_index, wanted));
    for (int64_t i = 0; i < SMALL * WIDTH; i++) {
        a->param[DLRN_DECODER][i] *= 1.152921504606846976e18f; /* 2^60 */
        b->param[DLRN_DECODER][i] *= i / WIDTH % 2 ? 1.152921504606846976e18f : 8.7e-19f;
    }
    CHECK_OK(ctx, dlrn_nearest(a, b, DLRN_DECODER, NULL, SMALL, K, index_of, cosine_of));
    CHECK(!memcmp(index_of, wanted_index, SMALL * K * sizeof *index_of));
    for (int64_t i = 0; i < SMALL * K; i++) CHECK(fabsf(cosine_of[i] - wanted[i]) < 1e-6f);
    dlrn_dictionary_destroy(a);
    dlrn_dictionary_destroy(b);
    dlrn_context_destroy(ctx);
}

/* Features of a part are compared with those of the other's part at the same place alone. */
TEST(parts_are_compared_with_parts) {
    enum { L = 3, D = 4, OWN = 30, ALL = L * OWN };
    static int32_t index[ALL * K], alone_index[OWN * K];
    static float cosine[ALL * K], alone[OWN * K];
    dlrn_context *ctx = test_context("auto", 2);
    dlrn_dictionary_desc desc = {"CrossLayerTranscoder", L * D, L * D, ALL, 0, 0, L};
    dlrn_dictionary *a = NULL, *b = NULL;
    int64_t list[ALL];
    CHECK_OK(ctx, dlrn_dictionary_create(ctx, &desc, &a));
    desc.seed = 1, desc.features = 2 * ALL; /* twice as many */
    CHECK_OK(ctx, dlrn_dictionary_create(ctx, &desc, &b));
    for (int own = 0; own < 2; own++) {
        const dlrn_dictionary *of = own ? a : b;
        CHECK_OK(ctx, dlrn_nearest(a, of, DLRN_DECODER, NULL, ALL, K, index, cosine));
        for (int l = 0; l < L; l++) {
            CHECK_OK(ctx, dlrn_nearest(a->part[l].dict, of->part[l].dict, DLRN_DECODER, NULL, OWN,
                                       K, alone_index, alone));
            CHECK(!memcmp(cosine + l * OWN * K, alone, sizeof alone));
            for (int64_t i = 0; i < OWN * K; i++)
                CHECK(index[l * OWN * K + i] == alone_index[i] + of->part[l].feature_at);
        }
        for (int64_t i = 0; i < ALL; i++) list[i] = i * 37 % ALL; /* from part to part */
        CHECK_OK(ctx, dlrn_nearest(a, of, DLRN_DECODER, list, ALL, K, index_of, cosine_of));
        for (int64_t i = 0; i < ALL; i++) {
            CHECK(!memcmp(index_of + i * K, index + list[i] * K, K * sizeof *index));
            CHECK(!memcmp(cosine_of + i * K, cosine + list[i] * K, K * sizeof *cosine));
        }
    }
    dlrn_dictionary_destroy(a);
    dlrn_dictionary_destroy(b);
    dlrn_context_destroy(ctx);
}

TEST(wrong_calls) {
    dlrn_context *ctx = test_context("auto", 1);
    dlrn_dictionary *a = make(ctx, WIDTH, SMALL, 1, 0), *wide = make(ctx, WIDTH + 1, SMALL, 2, 0);
    dlrn_dictionary *id = NULL, *clt = NULL, *other = NULL;
    dlrn_dictionary_desc desc = {"CrossLayerTranscoder", 12, 12, 12, 0, 0, 3};
    const int64_t below = -1, above = SMALL;
    CHECK_OK(ctx, new_identity(ctx, WIDTH, &id));
    CHECK_OK(ctx, dlrn_dictionary_create(ctx, &desc, &clt));
    desc.layers = 2;
    CHECK_OK(ctx, dlrn_dictionary_create(ctx, &desc, &other));
    const struct {
        const dlrn_dictionary *a, *b;
        int role;
        const int64_t *list;
        int64_t n, k;
        dlrn_status status;
        const char *says;
    } calls[] = {
        {a, a, DLRN_ENCODER_BIAS, NULL, SMALL, 1, DLRN_ERR_ARGUMENT, "role: expected"},
        {a, a, -1, NULL, SMALL, 1, DLRN_ERR_ARGUMENT, "role: expected"},
        {a, a, DLRN_DECODER, NULL, SMALL, 0, DLRN_ERR_ARGUMENT, "k: expected"},
        {a, a, DLRN_DECODER, NULL, SMALL - 1, 1, DLRN_ERR_ARGUMENT, "n: expected"},
        {a, a, DLRN_DECODER, &below, -1, 1, DLRN_ERR_ARGUMENT, "n: expected"},
        {a, a, DLRN_DECODER, &below, 1, 1, DLRN_ERR_ARGUMENT, "from 0 to 39, found -1"},
        {a, a, DLRN_DECODER, &above, 1, 1, DLRN_ERR_ARGUMENT, "from 0 to 39, found 40"},
        {a, wide, DLRN_DECODER, NULL, SMALL, 1, DLRN_ERR_SHAPE, "one width, found 5 and 6"},
        {a, id, DLRN_DECODER, NULL, SMALL, 1, DLRN_ERR_UNSUPPORTED, "found a IdentityDict"},
        {id, a, DLRN_ENCODER, NULL, WIDTH, 1, DLRN_ERR_UNSUPPORTED, "encoder_weight"},
        {a, clt, DLRN_DECODER, NULL, SMALL, 1, DLRN_ERR_SHAPE, "parts in both, found 0 and 3"},
        {clt, other, DLRN_DECODER, NULL, 12, 1, DLRN_ERR_SHAPE, "parts in both, found 3 and 2"},
    };
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        dlrn_status s = dlrn_nearest(calls[i].a, calls[i].b, calls[i].role, calls[i].list,
                                     calls[i].n, calls[i].k, index_of, cosine_of);
        CHECK_MSG(s == calls[i].status && strstr(dlrn_error(ctx), calls[i].says), "%d: %d: %s",
                  (int)i, (int)s, dlrn_error(ctx));
    }
    CHECK_OK(ctx, dlrn_nearest(a, a, DLRN_DECODER, &below, 0, 1, index_of, cosine_of));
    clt->part[1].feature_at++;
    CHECK_STATUS(dlrn_nearest(clt, clt, DLRN_DECODER, NULL, 12, 1, index_of, cosine_of),
                 DLRN_ERR_SHAPE);
    clt->part[1].feature_at--;
    dlrn_dictionary_destroy(a);
    dlrn_dictionary_destroy(wide);
    dlrn_dictionary_destroy(id);
    dlrn_dictionary_destroy(clt);
    dlrn_dictionary_destroy(other);
    dlrn_context_destroy(ctx);
}

static int asked;
static int stop_later(void *user) {
    (void)user;
    return ++asked > 2;
}

/* Without memory for any one of its blocks; stopped between blocks; and memory does not grow with
   the pairs. */
TEST(memory_and_stop) {
    dlrn_context_config how = starve_config(1);
    dlrn_context *ctx = NULL;
    int64_t list[3] = {4, 0, 4};
    int fails = 0;
    how.stop = stop_later;
    asked = -1000;
    CHECK_STATUS(dlrn_context_create(&how, &ctx), DLRN_OK);
    dlrn_dictionary *a = make(ctx, WIDTH, F, 1, 0);
    for (dlrn_status s = DLRN_ERR_MEMORY; s != DLRN_OK; fails++) {
        starve.left = fails;
        s = dlrn_nearest(a, a, DLRN_DECODER, list, 3, K, index_of, cosine_of);
        CHECK(s == DLRN_ERR_MEMORY || s == DLRN_OK);
    }
    CHECK(fails > 5);
    starve.left = -1;
    starve.peak = starve.in_use;
    const size_t before = starve.in_use;
    CHECK_OK(ctx, dlrn_nearest(a, a, DLRN_DECODER, NULL, F, K, index_of, cosine_of));
    CHECK(starve.in_use == before && starve.peak - before < (size_t)F * F * sizeof(float) / 4);
    asked = 0;
    CHECK_STATUS(dlrn_nearest(a, a, DLRN_DECODER, NULL, F, K, index_of, cosine_of), DLRN_STOPPED);
    CHECK(asked == 3);
    dlrn_dictionary_destroy(a);
    dlrn_context_destroy(ctx);
    CHECK(starve.live == 0);
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    RUN(all_pairs_of_two_dictionaries);
    RUN(one_dictionary_and_lists_of_it);
    RUN(ties_go_to_the_lower_number);
    RUN(threads_and_kernels_do_not_change_a_bit);
    RUN(more_neighbours_than_features);
    RUN(long_and_short_rows);
    RUN(parts_are_compared_with_parts);
    RUN(wrong_calls);
    RUN(memory_and_stop);
    return TEST_END();
}
