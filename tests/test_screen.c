/* Screened encoding: whatever is thrown at it, the same features and the same bits as the scalar
   kernels give, which screen nothing; and the inequality itself, feature by feature, against exact
   arithmetic. */
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "test.h"

enum {
    ROWS = 77,
    DIM_MOST = 200,
    FEATURES = 131,
    GROUP = 48,
    TILE_MOST = 32
}; /* as in the header */

/* Kinds of numbers that a rounding bound may stumble over. */
typedef enum kind {
    PLAIN,      /* normal numbers                                                */
    OUTLIER,    /* one coordinate a thousand times larger than the others        */
    MANY_SIZES, /* magnitudes from 1e-8 to 1e8 in one vector                     */
    DENORMAL,   /* so small that squares vanish                                  */
    TINY,       /* some such numbers among normal ones                           */
    HUGE_ONES,  /* so large that squares overflow                                */
    EQUAL,      /* all coordinates the same                                      */
    CANCEL,     /* large, in pairs that cancel in the product with EQUAL         */
    ZERO,       /* nothing                                                       */
    HALFWAY,    /* as far from the grid of eight bits as can be                  */
    NOT_FINITE, /* infinities and NaN                                            */
    KINDS
} kind;

static void fill_vector(float *x, int64_t d, kind what, dlrn_rng *rng) {
    for (int64_t i = 0; i < d; i++) {
        float z = dlrn_rng_normal(rng);
        switch (what) {
        case PLAIN: x[i] = z; break;
        case OUTLIER: x[i] = i == 3 % d ? 1000 * z : z; break;
        case MANY_SIZES: x[i] = z * powf(10, 16 * dlrn_rng_uniform(rng) - 8); break;
        case DENORMAL: x[i] = z * 1e-40f; break;
        case TINY: x[i] = i % 3 ? z : z * 1e-42f; break;
        case HUGE_ONES: x[i] = z * 1e19f; break;
        case EQUAL: x[i] = 0.37f; break;
        case CANCEL: x[i] = (i % 2 ? -1 : 1) * (1 + 1e-6f * z) * 1e4f; break;
        case ZERO: x[i] = i % 2 ? -0.0f : 0.0f; break;
        case HALFWAY:
            x[i] = i == 0 ? 127 : (float)((int)(100 * dlrn_rng_uniform(rng)) - 50) + 0.5f;
            break;
        case NOT_FINITE: x[i] = i == 5 % d ? INFINITY : i == 7 % d ? NAN : z; break;
        default: x[i] = 0;
        }
    }
}

static void fill_thresholds(dlrn_context *ctx, dlrn_dictionary *ae, const float *x);

/* Rows and features of all the kinds that are wanted (a bit each), and biases at, just above and
   just below the point where a feature of the row of its number turns on. */
static void fill_all(dlrn_context *ctx, dlrn_dictionary *ae, float *x, unsigned kinds,
                     uint64_t seed) {
    int64_t d = ae->d_in, kind_of[KINDS], n = 0;
    dlrn_rng rng = {seed, 1, 0};
    for (int k = 0; k < KINDS; k++)
        if (kinds >> k & 1) kind_of[n++] = k;
    for (int64_t i = 0; i < ROWS; i++) fill_vector(x + i * d, d, (kind)kind_of[i % n], &rng);
    for (int64_t j = 0; j < ae->features; j++) {
        float *w = ae->param[DLRN_ENCODER] + j * d;
        fill_vector(w, d, (kind)kind_of[j / 3 % n], &rng);
        float dot = dlrn_dot(ctx, w, x + j % ROWS * d, d);
        ae->param[DLRN_ENCODER_BIAS][j] = j % 4 == 0   ? -dot
                                          : j % 4 == 1 ? nextafterf(-dot, INFINITY)
                                          : j % 4 == 2 ? nextafterf(-dot, -INFINITY)
                                                       : -dot - 0.1f * fabsf(dot);
    }
    for (int64_t i = 0; i < d; i++) ae->param[DLRN_OUTPUT_BIAS][i] = 0;
    fill_thresholds(ctx, ae, x);
}

/* Which formula is tested: each selects otherwise from the same pre-activations. */
static const struct {
    const char *family;
    dlrn_gate gate;
    dlrn_select select;
    double threshold; /* of all features, where there are no others */
    dlrn_rank rank;
} formulas[] = {
    {"AutoEncoder", DLRN_GATE_RELU, DLRN_SELECT_ALL, -1, DLRN_RANK_VALUE},
    {"AutoEncoderTopK", DLRN_GATE_RELU, DLRN_SELECT_TOP_K, -1, DLRN_RANK_VALUE},
    {"JumpReluAutoEncoder", DLRN_GATE_JUMP, DLRN_SELECT_ALL, -1, DLRN_RANK_VALUE},
    {"JumpReluAutoEncoder", DLRN_GATE_JUMP_SIGNED, DLRN_SELECT_ALL, -1, DLRN_RANK_VALUE},
    {"JumpReluAutoEncoder", DLRN_GATE_JUMP, DLRN_SELECT_TOP_K, -1, DLRN_RANK_VALUE},
    {"BatchTopKSAE", DLRN_GATE_JUMP, DLRN_SELECT_ALL, 0.25, DLRN_RANK_VALUE},
    {"BatchTopKSAE", DLRN_GATE_JUMP_SIGNED, DLRN_SELECT_ALL, -0.25, DLRN_RANK_VALUE},
    {"BatchTopKSAE", DLRN_GATE_JUMP, DLRN_SELECT_TOP_K, 0.25, DLRN_RANK_VALUE},
    {"GatedAutoEncoder", DLRN_GATE_GATED, DLRN_SELECT_ALL, -1, DLRN_RANK_VALUE},
    {"GroupMax", DLRN_GATE_RELU, DLRN_SELECT_GROUP_MAX, -1, DLRN_RANK_VALUE},
    {"AutoEncoder", DLRN_GATE_RELU, DLRN_SELECT_ALL, -1, DLRN_RANK_NORM},
    {"AutoEncoderTopK", DLRN_GATE_RELU, DLRN_SELECT_TOP_K, -1, DLRN_RANK_NORM},
    {"JumpReluAutoEncoder", DLRN_GATE_JUMP, DLRN_SELECT_TOP_K, -1, DLRN_RANK_NORM},
    {"JumpReluAutoEncoder", DLRN_GATE_JUMP_SIGNED, DLRN_SELECT_ALL, -1, DLRN_RANK_NORM},
    {"BatchTopKSAE", DLRN_GATE_JUMP, DLRN_SELECT_ALL, 0.25, DLRN_RANK_NORM}};
enum {
    FORMULAS = sizeof formulas / sizeof *formulas,
    K = 5
};                     /* K: so few that rows have several rounds */
static int formula_of; /* number in formulas */

static dlrn_dictionary *weights(dlrn_context *ctx, int64_t d, int64_t features) {
    dlrn_dictionary *ae = NULL;
    const int groups = formulas[formula_of].select == DLRN_SELECT_GROUP_MAX;
    /* groups have one size, and the number of features is a prime */
    dlrn_dictionary_desc desc = {formulas[formula_of].family, d, 0, features, groups ? 1 : K, 3, 0};
    CHECK_OK(ctx, dlrn_dictionary_create(ctx, &desc, &ae));
    ae->formula.gate = formulas[formula_of].gate;
    ae->formula.select = formulas[formula_of].select;
    ae->formula.threshold = formulas[formula_of].threshold;
    ae->formula.rank = formulas[formula_of].rank;
    if (!groups) ae->formula.k = K;
    CHECK(dlrni_screenable(ae));
    return ae;
}

/* Thresholds at, above and below pre-activations of the row of a feature's number. */
static void fill_thresholds(dlrn_context *ctx, dlrn_dictionary *ae, const float *x) {
    int64_t d = ae->d_in;
    const int ranked = ae->formula.rank != DLRN_RANK_VALUE;
    /* atoms of all sizes, and of none */
    for (int64_t p = 0; p < ae->features * d && ranked; p++)
        ae->param[DLRN_DECODER][p] =
            p / d % 11 == 0 ? 0 : powf(10, (float)(p / d % 7 - 3)) * (float)(p % 5 - 2);
    for (int64_t j = 0; j < ae->features && ae->param[DLRN_THRESHOLD]; j++) {
        float pre = dlrn_dot(ctx, ae->param[DLRN_ENCODER] + j * d, x + j * 5 % ROWS * d, d) +
                    ae->param[DLRN_ENCODER_BIAS][j];
        if (ranked) pre *= dlrni_rank_norm(ae, j);
        float at = j % 5 == 0   ? pre
                   : j % 5 == 1 ? nextafterf(pre, INFINITY)
                   : j % 5 == 2 ? nextafterf(pre, -INFINITY)
                   : j % 5 == 3 ? -1.0f
                                : 0.1f;
        ae->param[DLRN_THRESHOLD][j] = fabsf(at) <= 1e30f ? at : 0.5f;
    }
    for (int64_t j = 0; j < ae->features && ae->param[DLRN_VALUE_BIAS]; j++) {
        ae->param[DLRN_LOG_SCALE][j] = 0.1f * (float)(j % 7 - 3);
        ae->param[DLRN_VALUE_BIAS][j] = (float)(j % 5 - 2) * fabsf(ae->param[DLRN_ENCODER_BIAS][j]);
    }
    dlrn_dictionary_changed(ae);
}

static dlrn_context *open_kernels(const char *name) {
    dlrn_context_config cfg = {0};
    dlrn_context *ctx = NULL;
    cfg.kernels = name;
    cfg.threads = 1;
    CHECK_STATUS(dlrn_context_create(&cfg, &ctx), DLRN_OK);
    return ctx;
}

static int same_codes(const dlrn_sparse *a, const dlrn_sparse *b) {
    int64_t nnz = a->row_ptr[a->rows];
    if (a->rows != b->rows ||
        memcmp(a->row_ptr, b->row_ptr, (size_t)(a->rows + 1) * sizeof *a->row_ptr))
        return 0;
    for (int64_t p = 0; p < nnz; p++) {
        int nan =
            isnan(a->val[p]) && isnan(b->val[p]); /* which NaN it is, is the processor's affair */
        if (a->col[p] != b->col[p] || (!nan && memcmp(&a->val[p], &b->val[p], sizeof *a->val)))
            return 0;
    }
    return 1;
}

/* The lists of one screen, by row, with its check or without; returns how many candidates it had.
   *passed: how many of them passed the check. */
static int64_t encode_with(dlrn_context *ctx, const dlrni_screen *screen, int check,
                           const dlrn_dictionary *ae, float *x, dlrn_sparse *codes,
                           int64_t *passed) {
    dlrn_encoder *e = NULL;
    dlrni_screen forced;
    CHECK_OK(ctx, dlrn_encoder_create(ae, &e));
    if (screen) { /* so cheap that it is taken, and with so many candidates that the check pays */
        forced = *screen;
        forced.cost = -1e6f;
        if (!check) forced.check = NULL;
        e->c.let_through[0] = 0.5;
        screen = &forced;
    }
    ctx->set.screen[0] = screen; /* the only one */
    ctx->set.screen[1] = NULL;
    dlrni_encode_job job = {e, NULL, codes, 0};
    CHECK_OK(ctx, dlrni_sparse_begin(ctx, codes, ae->features));
    CHECK_OK(ctx, dlrni_encoding_begin(&e->c, x, ROWS));
    CHECK(e->c.screen == screen && e->c.check == (screen ? screen->check : NULL));
    CHECK_OK(ctx, dlrni_encoding_load(&e->c, 0, e->c.groups, INT64_MAX));
    int64_t candidates = dlrni_wave_candidates(&e->c);
    if (passed) *passed = (int64_t)(dlrni_wave_passed(&e->c) * (double)candidates + 0.5);
    CHECK_OK(ctx, dlrni_append_codes(&job));
    dlrn_encoder_destroy(e);
    ctx->set.screen[0] = NULL;
    return candidates;
}

/* Every screen of every set against the scalar kernels, on rows and features of the given kinds. */
static void compare_all(int64_t d, unsigned kinds, uint64_t seed) {
    static float x[ROWS * DIM_MOST];
    dlrn_context *scalar = open_kernels("scalar");
    dlrn_dictionary *ae = weights(scalar, d, FEATURES);
    dlrn_sparse want = {0}, got = {0};
    fill_all(scalar, ae, x, kinds, seed);
    encode_with(scalar, NULL, 0, ae, x, &want, NULL);
    for (int i = 1; test_kernels(i); i++) /* 0 is the oracle */
        for (int s = 0; s < 4; s++) {     /* each screen without its check, then with it */
            dlrn_context *ctx = open_kernels(test_kernels(i));
            dlrn_dictionary *same = weights(ctx, d, FEATURES);
            const dlrni_screen *screen = ctx->set.screen[s % 2];
            fill_all(scalar, same, x, kinds, seed);
            if (s < 2 || (screen && screen->check)) {
                encode_with(ctx, screen, s / 2, same, x, &got, NULL);
                CHECK_MSG(same_codes(&want, &got), "%s, %s, check %d, d %d, kinds %#x, seed %d",
                          dlrn_context_describe(ctx).kernels, screen ? screen->name : "dense",
                          s / 2, (int)d, kinds, (int)seed);
            }
            dlrn_sparse_free(&got);
            dlrn_dictionary_destroy(same);
            dlrn_context_destroy(ctx);
        }
    dlrn_sparse_free(&want);
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(scalar);
}

/* One row and one feature, as often as there are rows and features: screen s of every set keeps all
   of them, where it has a check or none is asked for. The dot product and the bias add up to more
   than 0. */
static void keeps_all(int64_t d, const float *row, const float *feature, float bias, int check) {
    const int64_t features = GROUP + 1;
    float *x = (float *)malloc((size_t)(ROWS * d) * sizeof *x);
    for (int64_t i = 0; i < ROWS; i++) memcpy(x + i * d, row, (size_t)d * sizeof *x);
    for (int k = 0; test_kernels(k); k++)
        for (int s = 0; s < 2; s++) {
            dlrn_context *ctx = open_kernels(test_kernels(k));
            dlrn_dictionary *ae = weights(ctx, d, features);
            const dlrni_screen *screen = ctx->set.screen[s];
            dlrn_sparse codes = {0};
            float *w = ae->param[DLRN_ENCODER];
            for (int64_t j = 0; j < features; j++) {
                memcpy(w + j * d, feature, (size_t)d * sizeof *w);
                ae->param[DLRN_ENCODER_BIAS][j] = bias;
            }
            dlrn_dictionary_changed(ae);
            if (!screen || !check || screen->check) {
                encode_with(ctx, screen, check, ae, x, &codes, NULL);
                CHECK_MSG(codes.row_ptr[ROWS] == ROWS * features, "%s, %s: %d of %d",
                          dlrn_context_describe(ctx).kernels, screen ? screen->name : "dense",
                          (int)codes.row_ptr[ROWS], (int)(ROWS * features));
            }
            dlrn_sparse_free(&codes);
            dlrn_dictionary_destroy(ae);
            dlrn_context_destroy(ctx);
        }
    free(x);
}

/* A row and a feature whose product is just above 0, and far below it once one of the two is
   rounded to int16: all of its rounding errors point along the other vector. Two large numbers give
   both the scale 1, and cancel. */
static void fill_against(float *x, float *w, int64_t d, int rounded_row) {
    float *off = rounded_row ? x : w, *whole = rounded_row ? w : x;
    for (int64_t i = 0; i < d; i++) off[i] = 3.4375f, whole[i] = 1500;
    x[0] = 32767, x[16] = -30000;
    w[0] = 30000, w[16] = 32767;
}

TEST(a_check_allows_for_both_roundings) {
    enum { D = 64 };
    float x[D], w[D];
    for (int rounded_row = 0; rounded_row < 2; rounded_row++) {
        fill_against(x, w, D, rounded_row);
        keeps_all(D, x, w, 5000 - 62 * 1500 * 3.4375f, 1);
    }
}

/* Small integers, which 8 bits hold exactly, so that only the canonical sum has an error. Eight of
   its lanes add 15367 (3 mod 4) and gain 1 each time once they are above 2^24; the other eight add
   multiples of 4, which are exact, and take back what the first have without the gains. The exact
   product is 0 or less, the canonical sum is above it. */
TEST(a_screen_allows_for_the_order_of_the_sum) {
    const int64_t d = DLRNI_SCREEN_DIM;
    float *x = (float *)malloc((size_t)d * sizeof *x), *w = (float *)malloc((size_t)d * sizeof *w);
    int64_t exact = 0;
    for (int64_t i = 0; i < d; i++) {
        x[i] = 127;
        w[i] = i % 16 < 8 ? 121 : -124;
        exact += (int64_t)x[i] * (int64_t)w[i];
    }
    /* the first 1000 of a lane stay below 2^24, where every integer is exact */
    for (int64_t i = 8; exact < 0 && i < 1000 * 16; i++)
        for (; i % 16 >= 8 && exact < 0 && w[i] < 0; w[i]++) exact += 127;
    x[0] = w[0] = 127; /* the largest: the scale of both is 1 */
    exact += 127 * 6;
    w[8] -= 6;
    exact -= 127 * 6;
    CHECK(exact == 0);
    dlrn_context *ctx = open_kernels("scalar");
    CHECK(dlrn_dot(ctx, x, w, d) > 1000);
    dlrn_context_destroy(ctx);
    keeps_all(d, x, w, 0, 0);
    free(w);
    free(x);
}

TEST(each_kind_of_numbers_alone) {
    for (formula_of = 0; formula_of < FORMULAS; formula_of++)
        for (int k = 0; k < KINDS; k++) compare_all(64, 1u << k, (uint64_t)k);
    formula_of = 0;
}

/* Top-k against a sort of what the ReLU lets pass: in one wave and in many small ones, where the
   lists are made twice. */
TEST(top_k_is_what_a_sort_gives) {
    static float x[ROWS * 64], f[ROWS * FEATURES];
    dlrn_context *ctx = open_kernels("auto");
    dlrn_dictionary *all = weights(ctx, 64, FEATURES), *top;
    formula_of = 1;
    top = weights(ctx, 64, FEATURES);
    formula_of = 0;
    for (uint64_t seed = 0; seed < 2 * KINDS; seed++) {
        unsigned kinds = seed < KINDS ? 1u << seed : (1u << PLAIN | 1u << ZERO | 1u << EQUAL);
        if (kinds & (1u << NOT_FINITE | 1u << HUGE_ONES)) continue; /* a NaN has no rank */
        dlrn_sparse codes = {0};
        fill_all(ctx, all, x, kinds, seed);
        fill_all(ctx, top, x, kinds, seed);
        CHECK_OK(ctx, dlrn_encode(all, x, ROWS, f));
        for (int waves = 0; waves < 2; waves++) {
            dlrn_encoder *e = NULL;
            CHECK_OK(ctx, dlrn_encoder_create(top, &e));
            CHECK_OK(ctx, dlrni_encoding_begin(&e->c, x, ROWS));
            CHECK_OK(ctx, dlrni_sparse_begin(ctx, &codes, FEATURES));
            int64_t seen = 0, total = 0;
            for (int64_t g = 0; g < e->c.groups; g += e->c.wave) {
                CHECK_OK(ctx, dlrni_encoding_load(&e->c, g, e->c.groups, waves ? 1 : INT64_MAX));
                CHECK(e->c.wave == (waves ? 1 : e->c.groups));
                for (int64_t q = g; q < g + e->c.wave; q++)
                    for (int64_t p = 0; p < e->c.lists[q].count; p++, total++) {
                        int64_t i = dlrni_key_row(e->c.lists[q].key[p]);
                        int64_t j = q * 48 + dlrni_key_feature(e->c.lists[q].key[p]);
                        int64_t before = 0; /* how many of the row rank before it */
                        for (int64_t h = 0; h < FEATURES; h++)
                            before += f[i * FEATURES + h] > f[i * FEATURES + j] ||
                                      (f[i * FEATURES + h] == f[i * FEATURES + j] && h < j);
                        CHECK(before < K && e->c.lists[q].val[p] == f[i * FEATURES + j]);
                    }
            }
            for (int64_t i = 0; i < ROWS; i++) {
                int64_t on = 0;
                for (int64_t j = 0; j < FEATURES; j++) on += f[i * FEATURES + j] != 0;
                seen += on < K ? on : K;
            }
            CHECK_MSG(total == seen, "seed %d, waves %d: expected %d entries, found %d", (int)seed,
                      waves, (int)seen, (int)total);
            dlrn_encoder_destroy(e);
        }
        dlrn_sparse_free(&codes);
    }
    dlrn_dictionary_destroy(all);
    dlrn_dictionary_destroy(top);
    dlrn_context_destroy(ctx);
}

TEST(kinds_of_numbers_together) {
    for (int k = 0; k < KINDS; k++)
        for (int l = 0; l < k; l++) compare_all(50, 1u << k | 1u << l, (uint64_t)(k * KINDS + l));
    for (uint64_t seed = 0; seed < 12; seed++) {
        formula_of = (int)(seed % FORMULAS);
        compare_all(96, (1u << KINDS) - 1, seed);
    }
    formula_of = 0;
}

TEST(widths_that_fill_no_vector) {
    static const int64_t widths[] = {1,  2,  3,  4,   5,   15,  16,  17,  31,
                                     63, 64, 65, 100, 127, 128, 129, 199, 200};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        formula_of = (int)(i % FORMULAS);
        compare_all(widths[i], 1u << PLAIN | 1u << OUTLIER, i);
    }
    formula_of = 0;
}

/* The whole number to which a screen rounds a. */
static double rounded(const dlrni_screen *s, float a, float scale) {
    const float inverse = 1 / scale; /* the sets of int8 round the product first */
    return s->size == 1 && !s->block ? (double)rintf(a * inverse)
                                     : rint((double)a * (double)inverse);
}

/* Rounded rows, and what they are rounded to. */
typedef struct rounded_rows {
    int64_t d, width;
    float x[GROUP][DIM_MOST], scale[GROUP];
    unsigned char bytes[GROUP][DIM_MOST * 4];
    dlrni_screen_row row[GROUP];
} rounded_rows;

static void round_rows(const dlrni_screen *s, rounded_rows *r, unsigned kinds, int feature,
                       uint64_t seed) {
    int kind_of[KINDS], n = 0;
    dlrn_rng rng = {seed, (uint64_t)feature, 0};
    for (int k = 0; k < KINDS; k++)
        if (kinds >> k & 1) kind_of[n++] = k;
    r->width = dlrni_screen_width(s, r->d);
    memset(r->row, 0, sizeof r->row);
    memset(r->bytes, 0, sizeof r->bytes);
    for (int i = 0; i < GROUP; i++) {
        dlrni_rounding of;
        fill_vector(r->x[i], r->d, (kind)kind_of[(i + (int)seed) % n], &rng);
        s->round(r->x[i], r->d, feature, (unsigned char *)r->bytes + i * r->width, &of);
        r->scale[i] = of.scale;
        r->row[i].shift = -128 * of.sum;
        r->row[i].unit = 1;
    }
}

static double exact_sum(const dlrni_screen *s, const rounded_rows *x, int i, const rounded_rows *w,
                        int j) {
    double sum = 0;
    for (int64_t p = 0; p < x->d; p++)
        sum += rounded(s, x->x[i][p], x->scale[i]) * rounded(s, w->x[j][p], w->scale[j]);
    return sum;
}

/* Integer tiles: the sum of each row and feature, found by a bias just above and just below it. */
static void tile_is_exact(dlrn_context *ctx, const dlrni_screen *s, const rounded_rows *x,
                          const rounded_rows *w, uint64_t seed) {
    static unsigned char panel[GROUP * DIM_MOST * 4];
    uint64_t mask[TILE_MOST];
    dlrni_pack_rows(ctx->k, (const float *)(const void *)w->bytes, w->width / 4, GROUP,
                    w->width / 4, (float *)(void *)panel);
    if (s->registers) s->registers(1);
    for (int i = 0; i < s->rows; i++)
        for (int above = 0; above < 2; above++) {
            float coef[DLRNI_SCREEN_TERMS][GROUP] = {{0}};
            for (int j = 0; j < GROUP; j++) {
                const double sum = exact_sum(s, x, i, w, j), part = fabs(sum) / (1 << 20);
                coef[0][j] = (float)(-sum + (above ? 1 : -1) * fmax(0.5, part));
            }
            s->tile(panel, x->bytes, x->width, x->width / 4, coef[0], x->row, mask);
            CHECK_MSG(mask[i] == (above ? ((uint64_t)1 << GROUP) - 1 : 0),
                      "%s, d %d, row %d, seed %d: %#llx", s->name, (int)x->d, i, (int)seed,
                      (unsigned long long)mask[i]);
        }
    if (s->registers) s->registers(0);
}

/* The sums of a check, to within what struct dlrni_screen says. */
static void pairs_are_close(const dlrni_screen *s, const rounded_rows *x, const rounded_rows *w) {
    const unsigned char *a[GROUP], *b[GROUP];
    float sum[GROUP];
    for (int n = 1; n <= GROUP; n += n == 1 ? 3 : 11) {
        for (int j = 0; j < n; j++) {
            a[j] = (const unsigned char *)x->bytes + j * 7 % GROUP * x->width;
            b[j] = (const unsigned char *)w->bytes + j * w->width;
        }
        s->pairs(a, b, x->width, n, sum);
        for (int j = 0; j < n; j++) {
            const int i = j * 7 % GROUP;
            const double norms = sqrt(exact_sum(s, x, i, x, i) * exact_sum(s, w, j, w, j));
            CHECK(fabs((double)sum[j] - exact_sum(s, x, i, w, j)) <= norms * 8 / 16777216);
        }
    }
}

/* Sums of integers: no saturation, no overflow, whatever the numbers. */
TEST(sums_of_integers_are_exact) {
    static const int64_t widths[] = {2, 3, 16, 31, 32, 33, 64, 65, 100, 128, 161, 200};
    static rounded_rows x, w;
    const unsigned finite =
        ((1u << KINDS) - 1) & ~(1u << NOT_FINITE | 1u << HUGE_ONES | 1u << DENORMAL);
    for (int k = 1; test_kernels(k); k++)
        for (int q = 0; q < 4; q++) {
            dlrn_context *ctx = open_kernels(test_kernels(k));
            const dlrni_screen *s = ctx->set.screen[q % 2];
            if (q > 1 && s) s = s->check;
            for (size_t i = 0; s && !s->sums && i < sizeof widths / sizeof *widths; i++)
                for (uint64_t seed = 0; seed < KINDS; seed++) {
                    x.d = w.d = widths[i];
                    round_rows(s, &x, finite, 0, seed);
                    round_rows(s, &w, seed % 2 ? finite : 1u << EQUAL | 1u << CANCEL, 1, seed / 2);
                    tile_is_exact(ctx, s, &x, &w, seed);
                    if (s->pairs) pairs_are_close(s, &x, &w);
                }
            dlrn_context_destroy(ctx);
        }
}

/* A screen that lets everything through would pass all of the above. */
TEST(screens_rule_out) {
    enum { WIDE = 32 * 48 + 3 }; /* so that a task takes several groups of features */
    static float x[ROWS * 128];
    for (int i = 0; test_kernels(i); i++)
        for (int s = 0; s < 2; s++) {
            dlrn_context *ctx = open_kernels(test_kernels(i));
            const dlrni_screen *screen = ctx->set.screen[s];
            dlrn_dictionary *ae = weights(ctx, 128, WIDE);
            dlrn_sparse codes = {0};
            dlrn_rng rng = {5, 5, 0};
            for (int64_t p = 0; p < ROWS * 128; p++) x[p] = dlrn_rng_normal(&rng);
            for (int64_t p = 0; p < WIDE * 128; p++)
                ae->param[DLRN_ENCODER][p] = dlrn_rng_normal(&rng) / sqrtf(128);
            for (int64_t j = 0; j < WIDE; j++) ae->param[DLRN_ENCODER_BIAS][j] = -2;
            int64_t passed, candidates = encode_with(ctx, screen, 1, ae, x, &codes, &passed),
                            active = codes.row_ptr[ROWS];
            if (screen && screen->check)
                CHECK_MSG(passed >= active && (double)passed < 1.1 * (double)active,
                          "%s: %d passed the check for %d active", screen->name, (int)passed,
                          (int)active);
            if (screen)
                CHECK_MSG(candidates >= active &&
                              candidates < (screen->size == 1 ? 3 : 1.3) * (double)active,
                          "%s: %d candidates for %d active", screen->name, (int)candidates,
                          (int)active);
            CHECK(active > 0 && active < ROWS * WIDE / 10);
            dlrn_sparse_free(&codes);
            dlrn_dictionary_destroy(ae);
            dlrn_context_destroy(ctx);
        }
}

/* Rows in several stretches, and a number of them that fills no tile; the public call. */
TEST(long_batches) {
    enum { N = 2 * DLRNI_STRETCH + 37, D = 24, F = 100 };
    static float x[N * D];
    dlrn_context *scalar = open_kernels("scalar");
    dlrn_dictionary *ae = weights(scalar, D, F);
    dlrn_sparse want = {0}, got = {0};
    dlrn_rng rng = {6, 6, 0};
    float *f = (float *)malloc(sizeof(float) * N * F), *g = (float *)malloc(sizeof(float) * N * F);
    for (int64_t p = 0; p < N * D; p++) x[p] = dlrn_rng_normal(&rng);
    for (int64_t j = 0; j < F; j++) ae->param[DLRN_ENCODER_BIAS][j] = -1;
    CHECK_OK(scalar, dlrn_encode_sparse(ae, x, N, &want));
    CHECK_OK(scalar, dlrn_encode(ae, x, N, f));
    for (int i = 1; test_kernels(i); i++) {
        dlrn_context *ctx = open_kernels(test_kernels(i));
        dlrn_dictionary *same = NULL;
        CHECK_OK(ctx, new_autoencoder(ctx, D, F, 3, &same));
        for (int64_t j = 0; j < F; j++) same->param[DLRN_ENCODER_BIAS][j] = -1;
        CHECK_OK(ctx, dlrn_encode_sparse(same, x, N, &got));
        CHECK_OK(ctx, dlrn_encode(same, x, N, g));
        CHECK_MSG(same_codes(&want, &got), "%s", dlrn_context_describe(ctx).kernels);
        CHECK_MSG(memcmp(f, g, sizeof(float) * N * F) == 0, "%s",
                  dlrn_context_describe(ctx).kernels);
        dlrn_sparse_free(&got);
        dlrn_dictionary_destroy(same);
        dlrn_context_destroy(ctx);
    }
    free(f);
    free(g);
    dlrn_sparse_free(&want);
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(scalar);
}

/* The way is chosen by what was seen: dense for a fresh dictionary, the cheapest screen for a
   sparse one, a finer one where the cheapest lets too much through, and that one is tried again
   later. So is a check that once let too much pass. */
TEST(the_way_is_chosen_by_what_was_seen) {
    static const dlrni_screen other = {"other", 8, 2, 2, 0, 0.53f, NULL, NULL, NULL, NULL, 0, NULL};
    static const dlrni_screen coarse = {"coarse", 8,    1,    4,      0, 0.27f,
                                        NULL,     NULL, NULL, &other, 0, NULL};
    static const dlrni_screen fine = {"fine", 8, 2, 2, 1, 0.53f, NULL, NULL, NULL, NULL, 0, NULL};
    dlrn_context *ctx = open_kernels("scalar");
    dlrn_dictionary *ae = weights(ctx, 16, 64), *same = NULL;
    dlrni_encoding c;
    ctx->set.screen[0] = &coarse;
    ctx->set.screen[1] = &fine;
    dlrni_encoding_init(&c, ae);
    c.n = 100;
    CHECK(dlrni_choose_screen(&c, 100) == &coarse &&
          dlrni_choose_screen(&c, DLRNI_SCREEN_MIN - 1) == NULL);
    c.screen = &coarse;
    dlrni_encoding_learn(&c, 3200, 3900); /* half of 6400 */
    CHECK(dlrni_choose_screen(&c, 100) == NULL);
    c.screen = NULL;
    dlrni_encoding_learn(&c, 64,
                         0); /* a hundredth: but the coarse one let through more than half */
    CHECK(dlrni_choose_screen(&c, 100) == &fine);
    for (int i = 0; i < 300; i++) (void)dlrni_choose_screen(&c, 100);
    CHECK(dlrni_choose_screen(&c, 100) == &coarse);
    c.passed[0] = 0.06; /* all that was let through, and still is */
    for (int i = 0; i < 400; i++) {
        c.let_through[0] = 0.06;
        CHECK(dlrni_choose_screen(&c, 100) == &coarse);
        if (i == 0) CHECK(c.check == NULL);
    }
    CHECK(c.check == &other);
    dlrn_dictionary_destroy(ae);
    CHECK_OK(ctx, new_identity(ctx, 64, &same));
    dlrni_encoding_init(&c, same);
    CHECK(dlrni_choose_screen(&c, 100) == NULL);
    dlrn_dictionary_destroy(same);
    dlrn_context_destroy(ctx);
}

static int same_floats(const float *a, const float *b, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (memcmp(a + i, b + i, sizeof *a) && !(isnan(a[i]) && isnan(b[i]))) return 0;
    return 1;
}

/* A prepared encoder gives the bits of one that is not, for few rows and for many, also after the
   weights have changed. */
TEST(prepared_the_same_bits) {
    static float x[ROWS * 96], want[ROWS * FEATURES], got[ROWS * FEATURES];
    static const int64_t counts[] = {1, 5, 8, 9, 31, ROWS};
    dlrn_context *scalar = open_kernels("scalar");
    for (formula_of = 0; formula_of < FORMULAS; formula_of++)
        for (int i = 0; test_kernels(i); i++) {
            dlrn_context *ctx = open_kernels(test_kernels(i));
            dlrn_dictionary *plain = weights(scalar, 96, FEATURES);
            dlrn_dictionary *ae = weights(ctx, 96, FEATURES);
            dlrn_encoder *e = NULL;
            CHECK_OK(ctx, dlrn_encoder_create(ae, &e));
            CHECK_OK(ctx, dlrn_encoder_prepare(e));
            const char *set = dlrn_context_describe(ctx).kernels;
            CHECK((e->prepared != NULL) == (strcmp(set, "scalar") && strcmp(set, "neon")));
            for (uint64_t seed = (uint64_t)formula_of; seed < 2 * KINDS; seed += FORMULAS) {
                unsigned kinds = seed < KINDS ? 1u << seed : (1u << KINDS) - 1;
                fill_all(scalar, plain, x, kinds, seed);
                fill_all(scalar, ae, x, kinds, seed);
                dlrn_dictionary_changed(ae);
                for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
                    memset(got, 0xff, sizeof got);
                    CHECK_OK(scalar, dlrn_encode(plain, x, counts[c], want));
                    CHECK_OK(ctx, dlrn_encoder_run(e, x, counts[c], got, NULL, NULL));
                    CHECK_MSG(same_floats(want, got, counts[c] * FEATURES),
                              "%s, %s, %d rows, seed %d", formulas[formula_of].family,
                              dlrn_context_describe(ctx).kernels, (int)counts[c], (int)seed);
                }
            }
            dlrn_encoder_destroy(e);
            dlrn_dictionary_destroy(plain);
            dlrn_dictionary_destroy(ae);
            dlrn_context_destroy(ctx);
        }
    formula_of = 0;
    dlrn_context_destroy(scalar);
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    RUN(a_check_allows_for_both_roundings);
    RUN(a_screen_allows_for_the_order_of_the_sum);
    RUN_LONG(each_kind_of_numbers_alone);
    RUN(top_k_is_what_a_sort_gives);
    RUN_LONG(kinds_of_numbers_together);
    RUN_LONG(widths_that_fill_no_vector);
    RUN(sums_of_integers_are_exact);
    RUN(screens_rule_out);
    RUN(long_batches);
    RUN(the_way_is_chosen_by_what_was_seen);
    RUN_LONG(prepared_the_same_bits);
    return TEST_END();
}
