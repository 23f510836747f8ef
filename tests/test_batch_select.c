/* The selections that training makes on lists: the best of a batch, over one encoding or several,
   and picks of value 0. Against a sort of all values. */
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "tests/starve.h"
#include "tests/test.h"

enum { N = 600, D = 24, F = 150, PARTS_MAX = 3 };

static dlrn_dictionary *dictionary(dlrn_context *ctx, int64_t k, dlrn_select select,
                                   uint64_t seed) {
    dlrn_dictionary *dict = NULL;
    dlrn_dictionary_desc desc = {"AutoEncoderTopK", D, 0, F, k, seed, 0};
    if (dlrn_dictionary_create(ctx, &desc, &dict) != DLRN_OK) return NULL;
    dict->formula.select = select;
    for (int64_t j = 0; j < F; j++) dict->param[DLRN_ENCODER_BIAS][j] = -0.1f * (float)(j % 5);
    dlrn_dictionary_changed(dict);
    return dict;
}

static void draw(float *x, int64_t n, uint64_t seed) {
    dlrn_rng rng = {seed, 8, 0};
    for (int64_t p = 0; p < n; p++) x[p] = dlrn_rng_normal(&rng);
}

/* Ranked pre-activations of all features, with the canonical sum. */
static void pre_plainly(const dlrn_dictionary *dict, const float *x, int64_t n, float *q) {
    for (int64_t p = 0; p < n * F; p++) {
        const int64_t j = p % F;
        const float pre = dlrn_dot(dict->ctx, x + p / F * D, dict->param[DLRN_ENCODER] + j * D, D) +
                          dict->param[DLRN_ENCODER_BIAS][j];
        const int ranked = dict->formula.rank != DLRN_RANK_VALUE;
        q[p] = ranked ? dlrni_rank_norm(dict, j) * pre : pre;
    }
}

/* A value and where it is, in the order of a batch: rows, then parts, then features. */
typedef struct entry {
    float value;
    int64_t at;
} entry;

static int compare_entries(const void *a, const void *b) {
    const entry *p = (const entry *)a, *q = (const entry *)b;
    const int nan_p = isnan(p->value), nan_q = isnan(q->value);
    if (nan_p != nan_q) return nan_q - nan_p;
    if (!nan_p && (p->value > q->value || p->value < q->value)) return p->value < q->value ? 1 : -1;
    return p->at < q->at ? -1 : p->at > q->at;
}

static entry sorted[N * F * PARTS_MAX];
static unsigned char chosen[N * F * PARTS_MAX];
static float pre[PARTS_MAX][N * F];
static float kept_smallest;

/* Marks the k n largest positive entries of all parts: chosen [n][parts][F]. Returns how many. */
static int64_t choose_plainly(int parts, int64_t n, int64_t k) {
    int64_t count = 0;
    memset(chosen, 0, sizeof chosen);
    for (int64_t at = 0; at < n * parts * F; at++) {
        const float value = pre[at / F % parts][at / F / parts * F + at % F];
        if (value <= 0) continue;
        sorted[count].value = value;
        sorted[count++].at = at;
    }
    qsort(sorted, (size_t)count, sizeof *sorted, compare_entries);
    if (count > k * n) count = k * n;
    for (int64_t p = 0; p < count; p++) chosen[sorted[p].at] = 1;
    kept_smallest = count ? sorted[count - 1].value : INFINITY;
    return count;
}

/* Checks the lists of one encoding, in waves under a budget. Returns how many entries there are. */
static int64_t check_lists(dlrn_context *ctx, dlrni_encoding *c, int part, int parts,
                           int64_t budget, const char *what) {
    int64_t seen = 0;
    for (int64_t g = 0; g < c->groups; g += c->wave) {
        CHECK_OK(ctx, dlrni_encoding_load(c, g, c->groups, budget));
        for (int64_t q = g; q < g + c->wave; q++)
            for (int64_t p = 0; p < c->lists[q].count; p++) {
                const int32_t key = c->lists[q].key[p];
                const int64_t i = dlrni_key_row(key), j = q * 48 + dlrni_key_feature(key);
                const float value = c->lists[q].val[p], want = pre[part][i * F + j];
                CHECK_MSG(chosen[(i * parts + part) * F + j], "%s: row %d, feature %d of %d", what,
                          (int)i, (int)j, part);
                CHECK(value == want || (isnan(value) && isnan(want)));
                seen++;
            }
    }
    CHECK(c->n <= DLRNI_STRETCH);
    return seen;
}

/* Encodes a few batches with one cut for all parts, and compares. Several batches, as each guesses
   from the last. */
static void compare(dlrn_context *ctx, dlrn_dictionary **dict, int parts, float *x, int64_t n,
                    int64_t budget, const char *what) {
    dlrni_encoding c[PARTS_MAX], *all[PARTS_MAX];
    for (int i = 0; i < parts; i++) {
        dlrni_encoding_init(&c[i], dict[i]);
        c[i].batch_best = 1;
        all[i] = &c[i];
    }
    for (int batch = 0; batch < 4; batch++) {
        int64_t seen = 0, count;
        /* smaller rows: the guess is too high; larger ones: too low */
        const float size = batch == 1 ? 0.5f : batch == 2 ? 3 : 1;
        for (int64_t p = 0; p < n * D && batch; p++) x[p] *= size;
        for (int i = 0; i < parts; i++) {
            pre_plainly(dict[i], x, n, pre[i]);
            CHECK_OK(ctx, dlrni_encoding_begin(&c[i], x, n));
        }
        count = choose_plainly(parts, n, dict[0]->formula.k);
        if (parts > 1) CHECK_OK(ctx, dlrni_batch_cuts(all, parts, budget));
        for (int i = 0; i < parts; i++) seen += check_lists(ctx, &c[i], i, parts, budget, what);
        CHECK_MSG(seen == count, "%s, batch %d: expected %d entries, found %d", what, batch,
                  (int)count, (int)seen);
        for (int i = 0; i < parts; i++) {
            CHECK(dlrni_smallest_of_batch(&c[i]) == (count ? (double)kept_smallest : -1));
            dlrni_encoding_learn(&c[i], seen, dlrni_wave_candidates(&c[i]));
        }
    }
    for (int i = 0; i < parts; i++) dlrni_encoding_free(&c[i]);
}

TEST(a_batch_keeps_what_a_sort_gives) {
    static float x[N * D];
    static const int64_t ks[] = {1, 6, 40, 100};
    for (int i = 0; test_kernels(i); i++)
        for (int t = 0; t < 8; t++) {
            if (test_brief() && (t + i) % 16) continue; /* in brief runs a sixteenth of them */
            dlrn_context *ctx = test_context(test_kernels(i), 1 + t % 3);
            dlrn_dictionary *dict = dictionary(ctx, ks[t % 4], DLRN_SELECT_BATCH_TOP_K, 3);
            const int64_t n = t < 4 ? N : 5 + 17 * t;
            draw(x, n * D, (uint64_t)t);
            CHECK(dict != NULL);
            if (t % 2) dict->formula.rank = DLRN_RANK_NORM;
            for (int64_t j = 0; j < F * D; j++) dict->param[DLRN_DECODER][j] *= (float)(j / D % 4);
            dlrn_dictionary_changed(dict);
            compare(ctx, &dict, 1, x, n, INT64_MAX, "one wave");
            draw(x, n * D, (uint64_t)t);
            compare(ctx, &dict, 1, x, n, t % 3 ? 1 : 8 * n, "waves");
            dlrn_dictionary_destroy(dict);
            dlrn_context_destroy(ctx);
        }
}

/* Equal values everywhere; numbers that are not finite; rows and features of zeros. */
TEST(equals_and_nan_have_an_order) {
    static float x[N * D];
    for (int t = 0; t < 12; t++) {
        dlrn_context *ctx = test_context("auto", 1 + t % 3);
        dlrn_dictionary *dict = dictionary(ctx, t % 2 ? 7 : 60, DLRN_SELECT_BATCH_TOP_K, 3);
        const int64_t n = t % 4 < 2 ? N : 40, budget = t % 5 ? INT64_MAX : 4 * n;
        CHECK(dict != NULL);
        for (int64_t p = 0; p < n * D; p++) x[p] = (float)(p % D == p / D % 3);
        for (int64_t p = 0; p < F * D; p++)
            dict->param[DLRN_ENCODER][p] = t < 6 ? 1 : (float)(p / D % 3);
        for (int64_t j = 0; j < F; j++) dict->param[DLRN_ENCODER_BIAS][j] = 0;
        if (t % 3 == 1)
            for (int64_t i = 0; i < n; i += 3) memset(x + i * D, 0, sizeof(float) * D);
        if (t % 3 == 2) x[5 * D + 2] = NAN, x[9 * D] = INFINITY;
        dlrn_dictionary_changed(dict);
        dlrni_encoding c, *all = &c;
        dlrni_encoding_init(&c, dict);
        c.batch_best = 1;
        for (int batch = 0; batch < 2; batch++) {
            pre_plainly(dict, x, n, pre[0]);
            const int64_t count = choose_plainly(1, n, dict->formula.k);
            CHECK_OK(ctx, dlrni_encoding_begin(&c, x, n));
            CHECK_OK(ctx, dlrni_batch_cuts(&all, 1, budget));
            const int64_t seen = check_lists(ctx, &c, 0, 1, budget, "equals");
            CHECK_MSG(seen == count, "%d: expected %d entries, found %d", t, (int)count, (int)seen);
        }
        dlrni_encoding_free(&c);
        dlrn_dictionary_destroy(dict);
        dlrn_context_destroy(ctx);
    }
}

TEST(parts_share_a_cut) {
    static float x[N * D];
    for (int t = 0; t < 6; t++) {
        dlrn_context *ctx = test_context("auto", 1 + t % 3);
        dlrn_dictionary *dict[PARTS_MAX];
        const int parts = 2 + t % 2;
        const int64_t n = t < 3 ? N : 50;
        draw(x, n * D, (uint64_t)t);
        for (int i = 0; i < parts; i++) {
            dict[i] = dictionary(ctx, 9, DLRN_SELECT_BATCH_TOP_K, (uint64_t)(t == 2 ? 3 : i));
            CHECK(dict[i] != NULL);
        }
        compare(ctx, dict, parts, x, n, t % 2 ? 4 * n : INT64_MAX, "parts");
        for (int i = 0; i < parts; i++) dlrn_dictionary_destroy(dict[i]);
        dlrn_context_destroy(ctx);
    }
}

/* A selection within rows fills up with features of value 0, the first ones; a group without a
   positive value has its first. Their entries hold what they are. */
TEST(zeros_are_picked) {
    enum { GROUPS = 10 };
    static float x[N * D];
    for (int t = 0; t < 8; t++) {
        dlrn_context *ctx = test_context(t % 4 < 2 ? "scalar" : "auto", 1 + t % 3);
        const int groups = t % 2;
        const int64_t n = t < 4 ? 90 : N, k = groups ? GROUPS : 80, budget = t % 3 ? INT64_MAX : n;
        dlrn_dictionary *dict =
            dictionary(ctx, k, groups ? DLRN_SELECT_GROUP_MAX : DLRN_SELECT_TOP_K, 3);
        CHECK(dict != NULL);
        draw(x, n * D, (uint64_t)t);
        for (int64_t j = 0; j < F; j++)
            dict->param[DLRN_ENCODER_BIAS][j] = j % 30 < 15 ? -9 : -0.2f;
        memset(x + 3 * D, 0, sizeof(float) * D);
        dlrn_dictionary_changed(dict);
        pre_plainly(dict, x, n, pre[0]);
        memset(chosen, 0, sizeof chosen);
        for (int64_t i = 0; i < n; i++)
            for (int64_t g = 0; g < (groups ? GROUPS : 1); g++) {
                const int64_t width = groups ? F / GROUPS : F;
                for (int64_t j = 0; j < width; j++) {
                    const int64_t at = i * F + g * width + j;
                    sorted[j].value = pre[0][at] > 0 ? pre[0][at] : 0;
                    sorted[j].at = at;
                }
                qsort(sorted, (size_t)width, sizeof *sorted, compare_entries);
                for (int64_t j = 0; j < (groups ? 1 : k); j++) chosen[sorted[j].at] = 1;
            }
        dlrni_encoding c;
        dlrni_encoding_init(&c, dict);
        c.zero_picks = 1;
        for (int batch = 0; batch < 2; batch++) {
            CHECK_OK(ctx, dlrni_encoding_begin(&c, x, n));
            const int64_t seen = check_lists(ctx, &c, 0, 1, budget, "zeros");
            CHECK_MSG(seen == n * k, "%d: expected %d entries, found %d", t, (int)(n * k),
                      (int)seen);
        }
        dlrni_encoding_free(&c);
        dlrn_dictionary_destroy(dict);
        dlrn_context_destroy(ctx);
    }
}

static dlrn_context *starving;
static float starved_x[N * D];

static dlrn_status select_starving(void) {
    dlrn_dictionary *dict[2] = {NULL, NULL};
    dlrni_encoding c[2], *all[2] = {&c[0], &c[1]};
    dlrn_status s = DLRN_OK;
    memset(c, 0, sizeof c);
    for (int i = 0; i < 2 && s == DLRN_OK; i++) {
        dict[i] = dictionary(starving, 5, DLRN_SELECT_BATCH_TOP_K, (uint64_t)i);
        if (!dict[i]) {
            s = DLRN_ERR_MEMORY;
            break;
        }
        dict[i]->formula.rank = DLRN_RANK_NORM;
        dlrni_encoding_init(&c[i], dict[i]);
        c[i].batch_best = 1;
        s = dlrni_encoding_begin(&c[i], starved_x, N);
    }
    if (s == DLRN_OK) s = dlrni_batch_cuts(all, 2, INT64_MAX);
    for (int i = 0; i < 2 && s == DLRN_OK; i++)
        s = dlrni_encoding_load(&c[i], 0, c[i].groups, INT64_MAX);
    for (int i = 0; i < 2; i++) {
        dlrni_encoding_free(&c[i]);
        dlrn_dictionary_destroy(dict[i]);
    }
    return s;
}

TEST(every_allocation_may_fail) {
    starving = starve_context(2);
    draw(starved_x, N * D, 1);
    starve_all("select", starving, select_starving);
    dlrn_context_destroy(starving);
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    RUN(a_batch_keeps_what_a_sort_gives);
    RUN(equals_and_nan_have_an_order);
    RUN(parts_share_a_cut);
    RUN(zeros_are_picked);
    RUN(every_allocation_may_fail);
    return TEST_END();
}
