/* Kernels, products, vectors, random numbers, half floats and the dictionary's forward pass, each
   against a plain double-precision twin written here, and every kernel set against the scalar one
   bit for bit. */
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "test.h"

static dlrn_context *open_kernels(const char *name, int threads) {
    dlrn_context_config cfg = {0};
    dlrn_context *ctx = NULL;
    cfg.kernels = name;
    cfg.threads = threads;
    return dlrn_context_create(&cfg, &ctx) == DLRN_OK ? ctx : NULL;
}

static void fill(float *x, int64_t n, uint64_t stream) {
    dlrn_rng rng = {7, stream, 0};
    for (int64_t i = 0; i < n; i++) x[i] = dlrn_rng_normal(&rng);
}

static int same_bits(const float *a, const float *b, int64_t n) {
    return memcmp(a, b, (size_t)n * sizeof *a) == 0;
}

TEST(half_floats_round_trip) {
    for (uint32_t h = 0; h < 65536; h++) {
        float f = dlrni_f16_to_f32((uint16_t)h), b = dlrni_bf16_to_f32((uint16_t)h);
        if (f == f) CHECK(dlrni_f32_to_f16(f) == h);
        if (b == b) CHECK(dlrni_f32_to_bf16(b) == h);
    }
    CHECK(dlrni_f32_to_f16(1.00048828125f) ==
          0x3c00); /* half way between 1 and the next: to even */
    CHECK(dlrni_f32_to_f16(1.0014647f) == 0x3c01 && dlrni_f32_to_f16(1.00146484375f) == 0x3c02);
    CHECK(dlrni_f32_to_f16(65519.0f) == 0x7bff && dlrni_f32_to_f16(65520.0f) == 0x7c00);
    CHECK(dlrni_f32_to_f16(2.98023224e-8f) == 0 && dlrni_f32_to_f16(2.9802326e-8f) == 1);
    CHECK(dlrni_f16_to_f32(dlrni_f32_to_f16(NAN)) != dlrni_f16_to_f32(dlrni_f32_to_f16(NAN)));
    CHECK(dlrni_bf16_to_f32(dlrni_f32_to_bf16(NAN)) != 0.0f &&
          isnan(dlrni_bf16_to_f32(dlrni_f32_to_bf16(NAN))));
    CHECK(dlrni_f32_to_bf16(1.00390625f) == 0x3f80 && dlrni_f32_to_bf16(1.01171875f) == 0x3f82);
}

TEST(exponentials) {
    static const double at[] = {0,     -1e-9, -0.1, -0.34657, -0.34658, -1,       -20,
                                -86.5, -87.5, -88,  -1000,    -1e30,    -INFINITY};
    enum { N = 2000 };
    float y[N], want[N];
    for (int k = 0; test_kernels(k); k++) {
        dlrn_context *ctx = open_kernels(test_kernels(k), 1);
        for (int i = 0; i < N; i++) y[i] = i < 13 ? (float)at[i] + 3 : 3 - 0.045f * (float)i;
        for (int i = 0; i < N; i++) {
            float shifted =
                y[i] - 3.0f; /* rounded, also where sums are wider than their operands */
            want[i] = (float)exp((double)shifted);
        }
        ctx->k->exp_shift(y, 3.0f, N);
        for (int i = 0; i < N; i++)
            CHECK_MSG(test_close(y[i], want[i], 2.5e-7) ||
                          (want[i] < 2e-38f && y[i] >= 0 && y[i] < 2e-38f),
                      "%s: %d: %g, expected %g", dlrn_context_describe(ctx).kernels, i,
                      (double)y[i], (double)want[i]);
        y[0] = NAN;
        ctx->k->exp_shift(y, 0, 1);
        CHECK(y[0] != y[0]);
        dlrn_context_destroy(ctx);
    }
}

TEST(random_numbers_are_philox) {
    /* the published test vector: counter and key all zero */
    dlrni_philox b = dlrni_philox_block(0, 0, 0);
    CHECK(b.lo == 0xe169c58d6627e8d5u && b.hi == 0x9b00dbd8bc57ac4cu);
    dlrn_rng rng = {1, 2, 0};
    double sum = 0, square = 0;
    for (int i = 0; i < 20000; i++) {
        double z = (double)dlrn_rng_normal(&rng);
        sum += z;
        square += z * z;
    }
    CHECK(fabs(sum / 20000) < 0.03 && fabs(square / 20000 - 1) < 0.05);
    int64_t seen[7] = {0};
    for (int i = 0; i < 7000; i++) seen[dlrn_rng_below(&rng, 7)]++;
    for (int i = 0; i < 7; i++) CHECK(seen[i] > 850 && seen[i] < 1150);
    for (int i = 0; i < 1000; i++) {
        float u = dlrn_rng_uniform(&rng);
        CHECK(u >= 0.0f && u < 1.0f);
    }
    sum = 0, square = 0;
    for (int i = 0; i < 20000; i++) {
        double u = dlrn_rng_uniform_f64(&rng) - 0.5;
        CHECK(u > -0.5 && u < 0.5);
        sum += u;
        square += u * u;
    }
    CHECK(fabs(sum / 20000) < 0.01 && fabs(square / 20000 - 1.0 / 12) < 0.002);
}

/* Adds 1 to a finished block, whose place must be that in the whole. */
static void mark_block(void *arg, int64_t row, int64_t col, dlrn_tensor block) {
    const dlrn_tensor *c = (const dlrn_tensor *)arg;
    CHECK(block.data == c->data + row * c->stride + col && block.stride == c->stride);
    for (int64_t i = 0; i < block.rows; i++)
        for (int64_t j = 0; j < block.cols; j++) block.data[i * block.stride + j] += 1;
}

/* c = op(a, b) + beta c0 in double */
static void naive_matmul(dlrn_matmul_op op, int64_t m, int64_t n, int64_t k, const float *a,
                         const float *b, float beta, const float *c0, double *c) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double s = beta != 0.0f ? (double)c0[i * n + j] : 0.0;
            for (int64_t p = 0; p < k; p++) {
                double x = (double)(op == DLRN_TN ? a[p * m + i] : a[i * k + p]);
                s += x * (double)(op == DLRN_NT ? b[j * k + p] : b[p * n + j]);
            }
            c[i * n + j] = s;
        }
}

TEST(products_match_double_and_every_kernel_set_gives_the_same_bits) {
    /* the last panel has two whole vectors; more than a task takes, each way; more panels than are
       packed at a time */
    static const int64_t shapes[][3] = {
        {1, 1, 1},   {4, 6, 16}, {5, 7, 17},   {3, 33, 40},    {70, 100, 50}, {65, 97, 129},
        {2, 200, 8}, {9, 31, 0}, {20, 80, 33}, {261, 50, 530}, {3, 400, 520}, {257, 10300, 2}};
    static float work[DLRN_MATMUL_WORK];
    const size_t count = sizeof shapes / sizeof *shapes - (size_t)test_brief();
    for (size_t s = 0; s < count; s++)
        for (int op = DLRN_NN; op <= DLRN_TN; op++)
            for (int beta = 0; beta < 2; beta++) {
                int64_t m = shapes[s][0], n = shapes[s][1], k = shapes[s][2], z = m * n;
                float *a = (float *)calloc((size_t)(m * k + 1), 4),
                      *b = (float *)calloc((size_t)(k * n + 1), 4);
                float *c0 = (float *)calloc((size_t)z, 4), *c = (float *)calloc((size_t)z, 4);
                float *first = (float *)calloc((size_t)z, 4);
                double *want = (double *)calloc((size_t)z, 8);
                fill(a, m * k, 1);
                fill(b, k * n, 2);
                fill(c0, z, 3);
                naive_matmul((dlrn_matmul_op)op, m, n, k, a, b, (float)beta, c0, want);
                const char *name;
                for (int i = 0; (name = test_kernels(i)) != NULL; i++) {
                    dlrn_context *ctx = open_kernels(name, 1 + i);
                    CHECK(ctx != NULL && !strcmp(dlrn_context_describe(ctx).kernels, name));
                    memcpy(c, c0, (size_t)z * 4);
                    dlrn_tensor left =
                        op == DLRN_TN ? dlrn_view(a, k, m, m) : dlrn_view(a, m, k, k);
                    dlrn_tensor right =
                        op == DLRN_NT ? dlrn_view(b, n, k, k) : dlrn_view(b, k, n, n);
                    dlrn_tensor out = dlrn_view(c, m, n, n);
                    CHECK_OK(ctx, dlrn_matmul(ctx, (dlrn_matmul_op)op, left, right, (float)beta,
                                              out, NULL));
                    for (int64_t e = 0; e < z; e++)
                        CHECK(fabs((double)c[e] - want[e]) <
                              (2e-5 + 1e-7 * (double)k) * (1 + fabs(want[e])));
                    if (i == 0) memcpy(first, c, (size_t)z * 4);
                    CHECK_MSG(same_bits(first, c, z), "%s differs from scalar", name);
                    memcpy(c, c0, (size_t)z * 4);
                    CHECK_OK(ctx, dlrn_matmul(ctx, (dlrn_matmul_op)op, left, right, (float)beta,
                                              out, work));
#ifndef DICTLEARN_CBLAS /* whose order is its own */
                    CHECK_MSG(same_bits(first, c, z), "%s differs on one thread", name);
                    memcpy(c, c0, (size_t)z * 4);
                    CHECK_OK(ctx, dlrn_matmul_then(ctx, (dlrn_matmul_op)op, left, right,
                                                   (float)beta, out, mark_block, &out));
                    for (int64_t e = 0; e < z; e++)
                        CHECK(same_bits(&(float){first[e] + 1}, c + e, 1));
#endif
                    dlrn_context_destroy(ctx);
                }
                free(a), free(b), free(c0), free(c), free(first), free(want);
            }
}

enum { VEC = 203, VEC_ROWS = 9, VEC_OUT = 5 };
static float vec_x[VEC_ROWS][VEC], vec_g[VEC];

/* Every vector kernel once on the first n elements; what lies beyond n in each output must stay 0.
 */
static void run_vector_kernels(dlrn_context *ctx, int64_t n, float out[VEC_OUT][4 * VEC]) {
    static const int32_t idx[6] = {3, 0, 8, 8, 1, 5};
    static const float coef[6] = {0.5f, -1.25f, 3.0f, 0.0f, 1e-3f, 7.0f};
    static const dlrni_adam adam = {0.1f, 0.999f, 0.001f, 3e-4f, 0.0316f, 1e-8f};
    size_t bytes = (size_t)n * sizeof(float);
    memset(out, 0, VEC_OUT * sizeof out[0]);
    memcpy(out[0], vec_g, bytes);
    ctx->k->gather_axpy(out[0], n, &vec_x[0][0], VEC, idx, coef, 6);
    memcpy(out[1], vec_g, bytes);
    ctx->k->axpy(1.5f, vec_x[1], out[1], n);
    ctx->k->scale(out[1], 0.7f, n);
    ctx->k->sub(vec_x[2], vec_x[3], out[2], n);
    memcpy(out[3], vec_x[1], bytes);
    memcpy(out[3] + VEC, vec_x[2], bytes);
    for (int64_t p = 0; p < n; p++) out[3][2 * VEC + p] = fabsf(vec_x[3][p]);
    ctx->k->adam(out[3], out[3] + VEC, out[3] + 2 * VEC, vec_g, n, &adam);
    out[4][0] = ctx->k->dot(vec_x[5], vec_x[6], n);

    double dot = 0, sum = (double)vec_g[n - 1];
    for (int64_t p = 0; p < n; p++) dot += (double)vec_x[5][p] * (double)vec_x[6][p];
    for (int p = 0; p < 6; p++) sum += (double)coef[p] * (double)vec_x[idx[p]][n - 1];
    CHECK(fabs((double)out[4][0] - dot) < 1e-4 && fabs((double)out[0][n - 1] - sum) < 1e-4);
    for (int o = 0; o < 4; o++)
        CHECK_MSG(out[o][n] == 0.0f || (o == 3 && n == VEC), "output %d past its end", o);
}

TEST(vector_kernels_give_the_same_bits_in_every_set) {
    static float out[VEC_OUT][4 * VEC], want[VEC_OUT][4 * VEC];
    dlrn_context *scalar = open_kernels("scalar", 1);
    fill(&vec_x[0][0], VEC_ROWS * VEC, 4);
    fill(vec_g, VEC, 5);
    const char *name;
    for (int i = 0; (name = test_kernels(i)) != NULL; i++) {
        dlrn_context *ctx = open_kernels(name, 1);
        for (int64_t n = 1; n <= VEC; n += n < 40 ? 1 : 163) {
            run_vector_kernels(scalar, n, want);
            run_vector_kernels(ctx, n, out);
            for (int o = 0; o < VEC_OUT; o++)
                CHECK_MSG(same_bits(want[o], out[o], 4 * VEC), "%s, output %d", name, o);
        }
        dlrn_context_destroy(ctx);
    }
    dlrn_context_destroy(scalar);
}

/* Adam's mean goes from the nearer end, as torch's lerp does. */
TEST(adams_mean_is_torchs_lerp) {
    static const float betas[] = {0, 0.25f, 0.5f, 0.75f, 0.9f};
    for (int i = 0; test_kernels(i); i++) {
        dlrn_context *ctx = open_kernels(test_kernels(i), 1);
        for (int b = 0; b < 5; b++) {
            const float t = 1 - betas[b];
            const dlrni_adam adam = {t, 0.999f, 0.001f, 3e-4f, 0.0316f, 1e-8f};
            float w[VEC] = {0}, m[VEC], v[VEC] = {0};
            fill(m, VEC, 6);
            fill(vec_g, VEC, 5);
            ctx->k->adam(w, m, v, vec_g, VEC, &adam);
            fill(w, VEC, 6);
            for (int p = 0; p < VEC; p++) {
                float off = vec_g[p] - w[p];
                float want = t < 0.5f ? dlrni_fma(t, off, w[p]) : dlrni_fma(t - 1, off, vec_g[p]);
                CHECK_MSG(same_bits(&m[p], &want, 1), "%s, beta1 %g",
                          dlrn_context_describe(ctx).kernels, (double)betas[b]);
            }
        }
        dlrn_context_destroy(ctx);
    }
}

TEST(norms_of_large_and_of_small_numbers) {
    static const float scale[] = {1e-30f, 1e-20f, 1, 1e18f, 1e19f, 1e30f};
    dlrn_context *ctx = open_kernels("auto", 1);
    for (int s = 0; s < 6; s++) {
        float x[40] = {0};
        x[3] = 3 * scale[s], x[35] = -4 * scale[s];
        CHECK_CLOSE(dlrn_norm(ctx, x, 40), 5 * (double)scale[s], 1e-6);
    }
    float odd[3] = {0, 0, 0};
    CHECK(dlrn_norm(ctx, odd, 3) == 0 && dlrn_norm(ctx, odd, 0) == 0);
    odd[1] = 1e30f, odd[2] = INFINITY;
    CHECK(isinf(dlrn_norm(ctx, odd, 3)));
    odd[1] = NAN;
    CHECK(isnan(dlrn_norm(ctx, odd, 3)));
    dlrn_context_destroy(ctx);
}

TEST(matrices_are_transposed) {
    enum { ROWS = 37, COLS = 150, FROM = 151, TO = 40 };
    static float from[ROWS * FROM], to[COLS * TO];
    fill(from, ROWS * FROM, 8);
    for (int i = 0; test_kernels(i); i++) {
        dlrn_context *ctx = open_kernels(test_kernels(i), 2);
        memset(to, 0, sizeof to);
        dlrni_transpose(ctx, from, FROM, ROWS, COLS, to, TO);
        for (int c = 0; c < COLS; c++)
            for (int r = 0; r < TO; r++)
                CHECK(to[c * TO + r] == (r < ROWS ? from[r * FROM + c] : 0));
        dlrn_context_destroy(ctx);
    }
}

TEST(the_first_number_that_is_not_finite) {
    static const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    float x[70];
    for (int n = 0; n < 70; n++)
        for (int at = 0; at <= n; at++) {
            for (int i = 0; i < n; i++) x[i] = i & 1 ? -FLT_MAX : FLT_MAX;
            if (at < n) x[at] = bad[(n + at) % 4];
            CHECK_MSG(dlrni_first_not_finite(x, n) == at, "%d of %d", at, n);
        }
}

TEST(squares_are_transposed_and_zeros_left_out) {
    enum { GROUP = 48 }; /* the most at a time */
    for (int i = 0; test_kernels(i); i++) {
        dlrn_context *ctx = open_kernels(test_kernels(i), 1);
        uint32_t from[16 * 19], to[16 * 21];
        float f[GROUP], val[GROUP];
        int32_t key[GROUP];
        for (uint32_t p = 0; p < 16 * 19; p++)
            from[p] = 0x7f800001u + p; /* all of them NaN: moved, not computed with */
        ctx->k->transpose((const float *)from, 19, (float *)to, 21);
        for (int r = 0; r < 16; r++)
            for (int c = 0; c < 16; c++) CHECK(to[c * 21 + r] == from[r * 19 + c]);
        for (int64_t n = 1; n <= GROUP; n++) {
            int64_t want = 0;
            for (int64_t j = 0; j < n; j++)
                f[j] = j % 3 == 1 ? 0 : j % 5 == 4 ? NAN : (float)(j - 7);
            static const float zero[GROUP];
            int64_t got = ctx->k->collect(f, zero, NULL, 0, n, 100, key, val);
            for (int64_t j = 0; j < n; j++)
                if (!(f[j] <= 0))
                    CHECK(key[want] == 100 + j && memcmp(&val[want++], &f[j], sizeof *f) == 0);
            CHECK(got == want);
        }
        dlrn_context_destroy(ctx);
    }
}

/* Rows shorter and longer than what is read ahead, any number of pairs. */
TEST(pairs_have_the_bits_of_single_sums) {
    enum { ROWS = 13, MOST = 1200 };
    static const int64_t widths[] = {1, 15, 16, 17, 100, 511, 512, 513, 528, 1030, MOST};
    static float a[ROWS * MOST], b[ROWS * MOST], out[ROWS + 1];
    const float *x[ROWS], *w[ROWS];
    fill(a, ROWS * MOST, 35);
    fill(b, ROWS * MOST, 36);
    for (int i = 0; test_kernels(i); i++) {
        dlrn_context *ctx = open_kernels(test_kernels(i), 1);
        for (size_t v = 0; v < sizeof widths / sizeof *widths; v++)
            for (int64_t count = 0; count <= ROWS; count++) {
                const int64_t d = widths[v];
                for (int64_t p = 0; p < count; p++) {
                    x[p] = a + p / 3 * d;
                    w[p] = b + p * 5 % ROWS * d;
                }
                out[count] = 99;
                ctx->k->pairs(x, w, d, count, out);
                for (int64_t p = 0; p < count; p++) {
                    const float want = ctx->k->dot(x[p], w[p], d);
                    CHECK_MSG(same_bits(&out[p], &want, 1), "%s: width %d, pair %d of %d",
                              dlrn_context_describe(ctx).kernels, (int)d, (int)p, (int)count);
                }
                CHECK(out[count] == 99);
            }
        dlrn_context_destroy(ctx);
    }
}

/* Lists so long that they share their rows, and short ones; rows of one stretch of columns, and of
   some. */
TEST(sums_of_rows_go_in_order_in_every_set) {
    enum { FIRST = 3, ROWS = 50, OUT = 5, MOST = 600 };
    static const int64_t widths[] = {1, 37, 256, 257, MOST};
    static float base[(FIRST + ROWS) * MOST], coef[OUT * ROWS], want[OUT * MOST], out[OUT * MOST];
    float dot[OUT * ROWS];
    int32_t idx[OUT * ROWS];
    int64_t start[OUT + 1] = {0};
    fill(base, (FIRST + ROWS) * MOST, 31);
    fill(coef, OUT * ROWS, 32);
    for (int every = 1; every <= 17; every += 4) /* which of the rows */
        for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
            int64_t d = widths[w], n = 0;
            fill(want, OUT * d, 33);
            for (int o = 0; o < OUT; start[++o] = n)
                for (int r = FIRST + o; r < FIRST + ROWS; r += every, n++) {
                    idx[n] = r;
                    for (int64_t c = 0; c < d; c++)
                        want[o * d + c] = dlrni_fma(coef[n], base[r * d + c], want[o * d + c]);
                }
            for (int i = 0; test_kernels(i); i++) {
                dlrn_context *ctx = open_kernels(test_kernels(i), 1);
                for (int near_rows = 0; near_rows <= 40; near_rows += 40) { /* all at once; 40 */
                    dlrni_sums g = {OUT, d, FIRST, ROWS, start, start + 1, idx, d, d, near_rows};
                    fill(out, OUT * d, 33);
                    dlrni_sums_add(ctx->k, &g, base, coef, out);
                    CHECK_MSG(same_bits(out, want, OUT * d), "%s: width %d, one row of %d",
                              dlrn_context_describe(ctx).kernels, (int)d, every);
                    fill(out, OUT * d, 33);
                    dlrni_sums_walk(ctx->k, &g, base, coef, out, base, dot);
                    CHECK(same_bits(out, want, OUT * d));
                    for (int o = 0; o < OUT; o++)
                        for (int64_t p = start[o]; p < start[o + 1]; p++) {
                            float one = ctx->k->dot(base + o * d, base + idx[p] * d, d);
                            CHECK(same_bits(dot + p, &one, 1));
                        }
                }
                dlrn_context_destroy(ctx);
            }
        }
}

/* What stays of a group: above the larger of its two floors; a NaN always does. */
TEST(a_group_is_collected_above_its_floors) {
    const char *name;
    for (int i = 0; (name = test_kernels(i)) != NULL; i++) {
        dlrn_context *ctx = open_kernels(name, 1);
        float pre[48], bias[48], floor[48], val[48];
        int32_t key[48];
        for (int n = 1; n <= 41; n += 5)
            for (int with = 0; with < 4; with++) {
                float row_floor = with & 1 ? 0.5f : 0.0f;
                int64_t want = 0, got;
                for (int p = 0; p < n; p++) {
                    pre[p] = p % 7 == 3 ? NAN : (float)(p % 5) - 2.0f;
                    bias[p] = p % 3 == 0 ? 0.5f : 0.0f;
                    floor[p] = (float)(p % 4) * 0.5f - 0.5f;
                }
                got = ctx->k->collect(pre, bias, with & 2 ? floor : NULL, row_floor, n, 100, key,
                                      val);
                for (int p = 0; p < n; p++) {
                    float sum = pre[p] + bias[p], least = row_floor;
                    if (with & 2 && floor[p] > least) least = floor[p];
                    if (sum <= least) continue;
                    CHECK_MSG(want < got && key[want] == 100 + p, "%s, %d of %d", name, p, n);
                    CHECK(isnan(sum) ? isnan(val[want]) : val[want] == sum);
                    want++;
                }
                CHECK_MSG(want == got, "%s: expected %d, found %d", name, (int)want, (int)got);
            }
        dlrn_context_destroy(ctx);
    }
}

TEST(topk_orders_ties_and_nans) {
    dlrn_context *ctx = open_kernels("auto", 1);
    float x[8] = {1, NAN, 5, 5, -2, 0, 5, 1}, value[8];
    int64_t index[8];
    static const int64_t want[8] = {2, 3, 6, 0, 7, 5, 4, 1};
    CHECK_OK(ctx, dlrn_topk(ctx, x, 8, 8, index, value));
    for (int i = 0; i < 8; i++) CHECK(index[i] == want[i]);
    for (int64_t k = 0; k <= 8; k++) {
        CHECK_OK(ctx, dlrn_topk(ctx, x, 8, k, index, NULL));
        for (int64_t i = 0; i < k; i++) CHECK(index[i] == want[i]);
    }
    CHECK_STATUS(dlrn_topk(ctx, x, 8, 9, index, NULL), DLRN_ERR_ARGUMENT);
    dlrn_context_destroy(ctx);
}

TEST(tensors_check_shapes_and_bounds) {
    dlrn_context *ctx = open_kernels("auto", 1);
    dlrn_tensor t, big;
    CHECK_OK(ctx, dlrn_tensor_alloc(ctx, 3, 5, &t));
    CHECK_STATUS(dlrn_tensor_alloc(ctx, INT64_MAX / 2, 3, &big), DLRN_ERR_MEMORY);
    CHECK_STATUS(dlrn_tensor_alloc(ctx, INT64_MAX / 8, 1, &big), DLRN_ERR_MEMORY);
    CHECK_STATUS(dlrn_matmul(ctx, DLRN_NN, t, t, 0, t, NULL), DLRN_ERR_SHAPE);
    CHECK_STR(dlrn_error(ctx), "a [3][5], b [3][5], c [3][5]");
    for (int i = 0; i < 15; i++) t.data[i] = (float)(i * i);
    dlrn_axpy(ctx, 0.5f, t.data, t.data + 5, 5);
    for (int i = 0; i < 5; i++)
        CHECK(t.data[5 + i] == (float)((5 + i) * (5 + i)) + 0.5f * (float)(i * i));
    dlrn_free(ctx, t.data);
    CHECK(dlrn_error(NULL) != NULL);
    dlrn_context_destroy(ctx);
}

TEST(the_initial_distribution_is_torchs) {
    dlrn_context *ctx = open_kernels("auto", 2);
    dlrn_dictionary *a, *b, *c;
    CHECK_OK(ctx, new_autoencoder(ctx, 64, 300, 5, &a));
    CHECK_OK(ctx, new_autoencoder(ctx, 64, 300, 5, &b));
    CHECK_OK(ctx, new_autoencoder(ctx, 64, 300, 6, &c));
    CHECK(same_bits(a->param[DLRN_ENCODER], b->param[DLRN_ENCODER], 64 * 300) &&
          same_bits(a->param[DLRN_DECODER], b->param[DLRN_DECODER], 64 * 300));
    CHECK(!same_bits(a->param[DLRN_ENCODER], c->param[DLRN_ENCODER], 64 * 300));
    double square = 0, most = 0;
    for (int i = 0; i < 64 * 300; i++) {
        double w = (double)a->param[DLRN_ENCODER][i];
        square += w * w;
        if (fabs(w) > most) most = fabs(w);
    }
    CHECK(most <= 0.125 && most > 0.1249);
    CHECK_CLOSE(square / (64 * 300), 0.125 * 0.125 / 3, 0.03); /* variance of U(-1/8, 1/8) */
    for (int j = 0; j < 300; j++)
        CHECK(fabsf(dlrn_norm(ctx, a->param[DLRN_DECODER] + j * 64, 64) - 1) < 1e-6f &&
              fabsf(a->param[DLRN_ENCODER_BIAS][j]) <= 0.125f);
    for (int i = 0; i < 64; i++) CHECK(a->param[DLRN_OUTPUT_BIAS][i] == 0.0f);
    dlrn_dictionary_destroy(a);
    dlrn_dictionary_destroy(b);
    dlrn_dictionary_destroy(c);
    dlrn_context_destroy(ctx);
}

TEST(encode_and_decode_match_the_formula) {
    enum { D = 37, F = 210, N = 300 };
    dlrn_context *ctx = open_kernels("auto", 2);
    dlrn_dictionary *dict;
    CHECK_OK(ctx, new_autoencoder(ctx, D, F, 1, &dict));
    fill(dict->param[DLRN_OUTPUT_BIAS], D, 8);
    static float x[N * D], f[N * F], x_hat[N * D], again[N * D];
    fill(x, N * D, 9);
    CHECK_OK(ctx, dlrn_encode(dict, x, N, f));
    int64_t nnz = 0;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < F; j++) {
            double pre = (double)dict->param[DLRN_ENCODER_BIAS][j];
            for (int k = 0; k < D; k++)
                pre += (double)dict->param[DLRN_ENCODER][j * D + k] *
                       ((double)x[i * D + k] - (double)dict->param[DLRN_OUTPUT_BIAS][k]);
            CHECK(fabs((double)f[i * F + j] - (pre > 0 ? pre : 0)) < 1e-5);
            nnz += f[i * F + j] != 0.0f;
        }
    dlrn_sparse codes = {0, 0, NULL, NULL, NULL, 0, 0, NULL};
    CHECK_OK(ctx, dlrn_encode_sparse(dict, x, N, &codes));
    CHECK(codes.rows == N && codes.cols == F && codes.row_ptr[N] == nnz);
    for (int64_t i = 0; i < N; i++)
        for (int64_t p = codes.row_ptr[i]; p < codes.row_ptr[i + 1]; p++)
            CHECK(f[i * F + codes.col[p]] == codes.val[p]);
    CHECK_OK(ctx, dlrn_decode(dict, f, N, x_hat));
    for (int i = 0; i < N; i++)
        for (int k = 0; k < D; k++) {
            double want = (double)dict->param[DLRN_OUTPUT_BIAS][k];
            for (int j = 0; j < F; j++)
                want += (double)f[i * F + j] * (double)dict->param[DLRN_DECODER][j * D + k];
            CHECK(fabs((double)x_hat[i * D + k] - want) < 1e-4);
        }
    CHECK_OK(ctx, dlrn_decode_sparse(dict, &codes, again));
    CHECK(same_bits(x_hat, again, N * D));
    CHECK_OK(ctx, dlrn_forward(dict, x, N, again, NULL));
    CHECK(same_bits(x_hat, again, N * D));
    codes.col[3] = F;
    CHECK_STATUS(dlrn_decode_sparse(dict, &codes, again), DLRN_ERR_ARGUMENT);
    dlrn_sparse_free(&codes);
    dlrn_dictionary_destroy(dict);
    dlrn_context_destroy(ctx);
}

TEST(identity_gives_back_what_it_got) {
    dlrn_context *ctx = open_kernels("auto", 1);
    dlrn_dictionary *dict;
    float x[14] = {1, -2, 0, 4, 5, -6, 7, 0, 0, 3, 2, 1, -1, 9}, f[14], y[14];
    CHECK_OK(ctx, new_identity(ctx, 7, &dict));
    CHECK_OK(ctx, dlrn_encode(dict, x, 2, f));
    CHECK_OK(ctx, dlrn_decode(dict, f, 2, y));
    CHECK(same_bits(x, f, 14) && same_bits(x, y, 14));
    memset(y, 0, sizeof y);
    CHECK_OK(ctx, dlrn_forward(dict, x, 2, y, NULL));
    CHECK(same_bits(x, y, 14));
    dlrn_dictionary *copy;
    CHECK_OK(ctx, dlrni_dictionary_copy(dict->ctx, dict, &copy));
    CHECK(copy->d_in == 7 && copy->features == dict->features);
    dlrn_dictionary_destroy(copy);
    dlrn_dictionary_destroy(dict);
    dlrn_context_destroy(ctx);
}

TEST(a_context_refuses_what_is_not_there) {
    CHECK(open_kernels("sse9", 1) == NULL && open_kernels("auto", -1) == NULL);
    dlrn_context *ctx = open_kernels("scalar", 1);
    CHECK(ctx && !strcmp(dlrn_context_describe(ctx).kernels, "scalar"));
    CHECK_STR(dlrn_context_describe(ctx).text, "kernels scalar of scalar");
    CHECK_STR(dlrn_name(DLRN_NAMES_STATUS, DLRN_OK), "done");
    CHECK_STR(dlrn_name(DLRN_NAMES_DTYPE, DLRN_BOOL), "BOOL");
    CHECK_STR(dlrn_name(DLRN_NAMES_ROLE, DLRN_OUTPUT_BIAS), "bias");
    CHECK_STR(dlrn_name(DLRN_NAMES_CENTER, DLRN_CENTER_INPUT_BIAS), "input_bias");
    CHECK_STR(dlrn_name(DLRN_NAMES_GATE, DLRN_GATE_JUMP), "jump");
    CHECK_STR(dlrn_name(DLRN_NAMES_SELECT, DLRN_SELECT_TOP_K), "top_k");
    CHECK_STR(dlrn_name(DLRN_NAMES_LOSS, DLRN_LOSS_SQUARED), "squared");
    CHECK_STR(dlrn_name(DLRN_NAMES_SPARSITY, DLRN_SPARSITY_L1), "l1");
    CHECK_STR(dlrn_name(DLRN_NAMES_LOSS, 4), "?");
    CHECK_STR(dlrn_name((dlrn_names)99, 0), "?");
    dlrn_context_destroy(ctx);
}

/* The library asks cpuid itself; gcc's runtime asks it, too. */
TEST(sets_are_those_that_the_compiler_finds) {
#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                     __builtin_cpu_supports("pclmul");
    const int avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                       __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512vl");
    dlrn_context *ctx = open_kernels("scalar", 1);
    const char *text = dlrn_context_describe(ctx).text;
    CHECK(!strstr(text, " avx2") == !avx2);
    CHECK((strstr(text, " avx512 ") || strstr(text, " avx512,")) == avx512);
    CHECK(!strstr(text, " avx512bf16") == !(avx512 && __builtin_cpu_supports("avx512bf16")));
    CHECK(!strstr(text, " avx512vnni") == !(avx512 && __builtin_cpu_supports("avx512vnni")));
    dlrn_context_destroy(ctx);
#else
    SKIP("not gcc's names, or not x86");
#endif
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    RUN(half_floats_round_trip);
    RUN(exponentials);
    RUN(random_numbers_are_philox);
    RUN(products_match_double_and_every_kernel_set_gives_the_same_bits);
    RUN(vector_kernels_give_the_same_bits_in_every_set);
    RUN(adams_mean_is_torchs_lerp);
    RUN(norms_of_large_and_of_small_numbers);
    RUN(matrices_are_transposed);
    RUN(the_first_number_that_is_not_finite);
    RUN(squares_are_transposed_and_zeros_left_out);
    RUN(pairs_have_the_bits_of_single_sums);
    RUN(sums_of_rows_go_in_order_in_every_set);
    RUN(a_group_is_collected_above_its_floors);
    RUN(topk_orders_ties_and_nans);
    RUN(tensors_check_shapes_and_bounds);
    RUN(the_initial_distribution_is_torchs);
    RUN(encode_and_decode_match_the_formula);
    RUN(identity_gives_back_what_it_got);
    RUN(a_context_refuses_what_is_not_there);
    RUN(sets_are_those_that_the_compiler_finds);
    return TEST_END();
}
