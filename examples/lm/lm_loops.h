/* lm_loops.h - vectorised loops for lm.h, which includes this file: norms, softmax, gelu, attention
   of one query - MIT licence

   Loops over blocks of 16 numbers, without branches, so that compilers vectorise them. Each is
   written once, as name_body, and compiled for every width of vectors; a model uses the width of
   its context's kernels. All widths do the same operations in the same order and give the same
   bits. */
#ifndef LM_LOOPS_H
#define LM_LOOPS_H

typedef enum lm_width { LM_NARROW, LM_AVX2, LM_AVX512 } lm_width; /* of vectors */

/* The width of vectors of a context's kernel set. */
static lm_width lm_width_of(const dlrn_context *ctx) {
    const char *kernels = dlrn_context_describe(ctx).kernels;
    if (!strncmp(kernels, "avx512", 6) || !strcmp(kernels, "amx")) return LM_AVX512;
    return strcmp(kernels, "avx2") ? LM_NARROW : LM_AVX2;
}

#if defined(__GNUC__)
#define LM_BODY static inline __attribute__((always_inline))
#define LM_APART __restrict
#else
#define LM_BODY static
#define LM_APART
#endif
#if defined(__GNUC__) && defined(__x86_64__)
#define LM_LOOP(name, params, args)                                                                \
    __attribute__((target("avx2"))) static void name##_avx2 params {                               \
        name##_body args;                                                                          \
    }                                                                                              \
    __attribute__((                                                                                \
        target("avx512f,avx512dq,avx512bw,avx512vl"))) static void name##_avx512 params {          \
        name##_body args;                                                                          \
    }                                                                                              \
    static void name params {                                                                      \
        if (width == LM_AVX512)                                                                    \
            name##_avx512 args;                                                                    \
        else if (width == LM_AVX2)                                                                 \
            name##_avx2 args;                                                                      \
        else                                                                                       \
            name##_body args;                                                                      \
    }
#else
#define LM_LOOP(name, params, args)                                                                \
    static void name params {                                                                      \
        name##_body args;                                                                          \
    }
#endif

/* The sum of x - from over n numbers, or of its squares. Sixteen sums, joined at the end. */
LM_BODY double lm_moment(const float *LM_APART x, int64_t n, double from, int squared) {
    double lane[16] = {0}, sum = 0;
    int64_t c = 0;
    for (; c + 16 <= n; c += 16)
        for (int i = 0; i < 16; i++) {
            double v = (double)x[c + i] - from;
            lane[i] += squared ? v * v : v;
        }
    for (int i = 0; c < n; c++, i++) {
        double v = (double)x[c] - from;
        lane[i] += squared ? v * v : v;
    }
    for (int i = 0; i < 16; i++) sum += lane[i];
    return sum;
}

/* Layer norm of one row: biased variance, as in torch; sums in f64. */
LM_BODY void lm_norm_body(lm_width width, const float *LM_APART x, int64_t n, double eps,
                          const float *LM_APART weight, const float *LM_APART bias,
                          float *LM_APART y) {
    double mean = lm_moment(x, n, 0, 0) / (double)n;
    float rate = (float)(1 / sqrt(lm_moment(x, n, mean, 1) / (double)n + eps)),
          middle = (float)mean;
    int64_t c = 0;
    for (; c + 16 <= n; c += 16)
        for (int i = 0; i < 16; i++)
            y[c + i] = (x[c + i] - middle) * rate * weight[c + i] + bias[c + i];
    for (; c < n; c++) y[c] = (x[c] - middle) * rate * weight[c] + bias[c];
    (void)width;
}
LM_LOOP(lm_norm,
        (lm_width width, const float *x, int64_t n, double eps, const float *weight,
         const float *bias, float *y),
        (width, x, n, eps, weight, bias, y))

/* x [16] <= 0 to e^x, with a relative error of 2e-7: 2^n e^r, |r| <= ln 2 / 2, with a polynomial
   for e^r. Four times the speed of sixteen calls of expf (AVX-512). What is chosen by a comparison
   is chosen by masks of bits: a choice between floats is a branch to gcc, since a comparison may
   trap, and it leaves such loops scalar (3 to 4 times slower with -O3 or clang and AVX2). */
LM_BODY void lm_exp16(float *x) {
    /* 1.5 * 2^23: what is added to it is rounded to a whole number */
    const float round = 12582912.0f, least = -87.0f;
    float v[16], shifted[16], r[16];
    uint32_t bits[16], low[16], bound;
    memcpy(&bound, &least, sizeof bound);
    memcpy(bits, x, sizeof bits);
    for (int i = 0; i < 16; i++) low[i] = 0u - (uint32_t)(x[i] < least);
    for (int i = 0; i < 16; i++) bits[i] = (bits[i] & ~low[i]) | (bound & low[i]);
    memcpy(v, bits, sizeof v);
    for (int i = 0; i < 16; i++) {
        shifted[i] = v[i] * 1.44269504f + round;
        float n = shifted[i] - round;
        r[i] = (v[i] - n * 0.693359375f) + n * 2.12194440e-4f;
    }
    memcpy(bits, shifted, sizeof bits);
    for (int i = 0; i < 16; i++) bits[i] = (bits[i] - 0x4B400000u + 127u) << 23;
    memcpy(shifted, bits, sizeof bits);
    for (int i = 0; i < 16; i++) {
        float u = r[i] * 1.44269504f;
        float p = ((1.53458119e-4f * u + 1.33999316e-3f) * u + 9.61848896e-3f) * u + 5.55032878e-2f;
        x[i] = (((p * u + 2.40226469e-1f) * u + 6.93147206e-1f) * u + 1.0f) * shifted[i];
    }
    memcpy(bits, x, sizeof bits);
    for (int i = 0; i < 16; i++) bits[i] &= ~low[i];
    memcpy(x, bits, sizeof bits);
}

/* x [n] to e^(scale x - top) and their sum. *top: in, a lower bound of the largest scale x or
   -INFINITY; out, the larger of the two. x has room up to a multiple of 16, which becomes 0. */
LM_BODY void lm_softmax_body(lm_width width, float *LM_APART x, int64_t n, float scale,
                             float *LM_APART top, double *LM_APART sum) {
    float most[16];
    double lane[16] = {0};
    int64_t end = (n + 15) / 16 * 16;
    for (int64_t t = n; t < end; t++) x[t] = -INFINITY;
    for (int i = 0; i < 16; i++) most[i] = *top;
    for (int64_t t = 0; t < end; t += 16)
        for (int i = 0; i < 16; i++) {
            x[t + i] *= scale;
            most[i] = x[t + i] > most[i] ? x[t + i] : most[i];
        }
    for (int i = 1; i < 16; i++) most[0] = most[i] > most[0] ? most[i] : most[0];
    for (int64_t t = 0; t < end; t += 16) {
        for (int i = 0; i < 16; i++) x[t + i] -= most[0];
        lm_exp16(x + t);
        for (int i = 0; i < 16; i++) lane[i] += (double)x[t + i];
    }
    *sum = 0;
    *top = most[0];
    for (int i = 0; i < 16; i++) *sum += lane[i];
    (void)width;
}
LM_LOOP(lm_softmax, (lm_width width, float *x, int64_t n, float scale, float *top, double *sum),
        (width, x, n, scale, top, sum))

/* The same sum as lm_softmax's with scale 1, to the bit, of x [n], which stays as it is. */
LM_BODY void lm_sum_exp_body(lm_width width, const float *LM_APART x, int64_t n,
                             float *LM_APART top, double *LM_APART sum) {
    float most[16], e[16];
    double lane[16] = {0};
    const int64_t whole = n / 16 * 16;
    for (int i = 0; i < 16; i++) most[i] = *top;
    for (int64_t t = 0; t < whole; t += 16)
        for (int i = 0; i < 16; i++) most[i] = x[t + i] > most[i] ? x[t + i] : most[i];
    for (int64_t t = whole; t < n; t++) most[0] = x[t] > most[0] ? x[t] : most[0];
    for (int i = 1; i < 16; i++) most[0] = most[i] > most[0] ? most[i] : most[0];
    for (int64_t t = 0; t < n; t += 16) {
        const int64_t left = n - t < 16 ? n - t : 16;
        for (int i = 0; left == 16 && i < 16; i++) e[i] = x[t + i] - most[0];
        for (int i = 0; left < 16 && i < 16; i++) e[i] = i < left ? x[t + i] - most[0] : -INFINITY;
        lm_exp16(e);
        for (int i = 0; i < 16; i++) lane[i] += (double)e[i];
    }
    *sum = 0;
    *top = most[0];
    for (int i = 0; i < 16; i++) *sum += lane[i];
    (void)width;
}
LM_LOOP(lm_sum_exp, (lm_width width, const float *x, int64_t n, float *top, double *sum),
        (width, x, n, top, sum))

/* x [16] to gelu(x) = x Phi(x), with a rational approximation of erf to 4e-7. (With erff, sampling
   from a model of width 128 spent 13 % of its time there.) */
LM_BODY void lm_gelu16(float *x) {
    for (int i = 0; i < 16; i++) {
        float z = x[i] * 0.70710678f;
        z = z < -4.0f ? -4.0f : z;
        z = z > 4.0f ? 4.0f : z;
        float t = z * z;
        float p =
            ((-1.36668043e-8f * t + 4.78054407e-6f) * t + 3.82692349e-4f) * t + 3.83952747e-3f;
        p = ((p * t + 5.43325936e-2f) * t + 1.84710302e-1f) * t + 1.12837918f;
        float q = ((6.40093117e-5f * t + 1.30957884e-3f) * t + 1.54535132e-2f) * t + 1.13826292e-1f;
        q = (q * t + 4.97028789e-1f) * t + 1.0f;
        float erf_z = z * p / q;
        erf_z = erf_z < -1.0f ? -1.0f : erf_z;
        erf_z = erf_z > 1.0f ? 1.0f : erf_z;
        x[i] = 0.5f * x[i] * (1.0f + erf_z);
    }
}

/* x [n] to gelu(x + bias), bias NULL: none. With AVX-512 six times the speed of vectors of four. */
LM_BODY void lm_gelu_body(lm_width width, float *LM_APART x, const float *LM_APART bias,
                          int64_t n) {
    float part[16] = {0};
    int64_t c = 0;
    for (; c + 16 <= n; c += 16) {
        for (int i = 0; bias && i < 16; i++) x[c + i] += bias[c + i];
        lm_gelu16(x + c);
    }
    if (c == n) return;
    for (int64_t i = c; i < n; i++) part[i - c] = bias ? x[i] + bias[i] : x[i];
    lm_gelu16(part);
    memcpy(x + c, part, (size_t)(n - c) * sizeof *x);
    (void)width;
}
LM_LOOP(lm_gelu, (lm_width width, float *x, const float *bias, int64_t n), (width, x, bias, n))

/* y [n] = sum over t < count of a[t] rows [t][stride]; n is a multiple of 16. */
LM_BODY void lm_mix(const float *LM_APART a, int64_t count, const float *LM_APART rows,
                    int64_t stride, int64_t n, float *LM_APART y) {
    for (int64_t c = 0; c < n; c += 16) {
        float sum[16] = {0};
        for (int64_t t = 0; t < count; t++)
            for (int i = 0; i < 16; i++) sum[i] += a[t] * rows[t * stride + c + i];
        memcpy(y + c, sum, sizeof sum);
    }
}

/* Attention of one query of one head over `seen` keys and values. score: scratch [seen, rounded up
   to a multiple of 16]. A matrix product of one row would repack all keys and values each time:
   sampling took twice as long with it. */
LM_BODY void lm_attend_one_body(lm_width width, int64_t head_dim, const float *LM_APART q,
                                const float *LM_APART k, int64_t k_stride, const float *LM_APART v,
                                int64_t v_stride, int64_t seen, float *LM_APART score,
                                float *LM_APART out) {
    double sum;
    float top = -INFINITY, share;
    int64_t whole = head_dim / 16 * 16;
    lm_mix(q, head_dim, k, k_stride, (seen + 15) / 16 * 16, score);
    lm_softmax_body(width, score, seen, (float)(1 / sqrt((double)head_dim)), &top, &sum);
    share = (float)(1 / sum);
    lm_mix(score, seen, v, v_stride, whole, out);
    for (int64_t c = whole; c < head_dim; c++) {
        out[c] = 0;
        for (int64_t t = 0; t < seen; t++) out[c] += score[t] * v[t * v_stride + c];
    }
    for (int64_t c = 0; c < head_dim; c++) out[c] *= share;
}
LM_LOOP(lm_attend_one,
        (lm_width width, int64_t head_dim, const float *q, const float *k, int64_t k_stride,
         const float *v, int64_t v_stride, int64_t seen, float *score, float *out),
        (width, head_dim, q, k, k_stride, v, v_stride, seen, score, out))
#endif /* LM_LOOPS_H */
