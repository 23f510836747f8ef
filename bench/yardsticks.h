/* yardsticks.h - what this machine can do, measured by loops that nothing beats: independent fused
   multiply-adds in registers, reading, copying. bench.c holds every figure against one of them,
   taken in turns with it. */
#ifndef DICTLEARN_YARDSTICKS_H
#define DICTLEARN_YARDSTICKS_H

#include "dictlearn.h"
#include <stdlib.h>
#include <string.h>

/* ---- fused multiply-adds: 14 chains of a = a * m + c, enough to hide a latency of 4 at two a
   cycle, each from another start, so that no compiler makes one of them */
#define CHAINS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13)
enum { CHAIN_COUNT = 14 };
#define CHAIN_START(i) a##i = SET(1.0f + i),
#define CHAIN_STEP(i) a##i = FMA(a##i, m, c);
#define CHAIN_SUM(i) a0 = FMA(a##i, m, a0);
#define FMA_LOOP                                                                                   \
    VECTOR CHAINS(CHAIN_START) m = SET(0.999f), c = SET(0.001f);                                   \
    for (int64_t r = 0; r < rounds; r++) {                                                         \
        CHAINS(CHAIN_STEP)                                                                         \
    }                                                                                              \
    CHAINS(CHAIN_SUM)

static void fma_plain(int64_t rounds, float *out) { /* whatever the compiler makes of it */
#define VECTOR float
#define SET(x) (x)
#define FMA(a, b, c) ((a) * (b) + (c))
    FMA_LOOP
#undef VECTOR
#undef SET
#undef FMA
    *out = a0;
}

#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
#include <immintrin.h>
__attribute__((target("avx2,fma"))) static void fma_avx2(int64_t rounds, float *out) {
#define VECTOR __m256
#define SET(x) _mm256_set1_ps(x)
#define FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
    FMA_LOOP
#undef VECTOR
#undef SET
#undef FMA
    _mm256_storeu_ps(out, a0);
}
__attribute__((target("avx512f"))) static void fma_avx512(int64_t rounds, float *out) {
#define VECTOR __m512
#define SET(x) _mm512_set1_ps(x)
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
    FMA_LOOP
#undef VECTOR
#undef SET
#undef FMA
    _mm512_storeu_ps(out, a0);
}
#elif defined(__aarch64__)
#include <arm_neon.h>
static void fma_neon(int64_t rounds, float *out) {
#define VECTOR float32x4_t
#define SET(x) vdupq_n_f32(x)
#define FMA(a, b, c) vfmaq_f32(c, a, b)
    FMA_LOOP
#undef VECTOR
#undef SET
#undef FMA
    vst1q_f32(out, a0);
}
#endif

typedef struct fma_loop {
    void (*run)(int64_t rounds, float *out);
    int lanes;
} fma_loop;

/* The loop of a set's vectors: "avx512vnni" is held against 512 bits, "avx2" against 256. "amx",
   whose tiles have no f32, multiplies f32 by 512 bits, too. */
static fma_loop fma_loop_of(const char *kernels) {
    fma_loop loop = {fma_plain, 1};
#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
    if (!strncmp(kernels, "avx512", 6) || !strcmp(kernels, "amx"))
        loop.run = fma_avx512, loop.lanes = 16;
    if (!strncmp(kernels, "avx2", 4)) loop.run = fma_avx2, loop.lanes = 8;
#elif defined(__aarch64__)
    if (!strncmp(kernels, "neon", 4)) loop.run = fma_neon, loop.lanes = 4;
#endif
    return loop;
}

/* A burst of them on all threads of a context. */
typedef struct fma_burst {
    dlrn_context *ctx;
    fma_loop loop;
    int64_t rounds; /* of a task      */
    int tasks;      /* four a thread  */
    volatile float sink;
} fma_burst;

static double fma_burst_flops(const fma_burst *b) {
    return 2.0 * b->loop.lanes * CHAIN_COUNT * (double)b->rounds * b->tasks;
}

static void fma_task(void *arg, int64_t task, int worker) {
    fma_burst *b = (fma_burst *)arg;
    float out[16];
    (void)task, (void)worker;
    b->loop.run(b->rounds, out);
    b->sink = out[0];
}

static void fma_burst_run(void *arg) {
    fma_burst *b = (fma_burst *)arg;
    dlrn_parallel_for(b->ctx, b->tasks, fma_task, b);
}

/* ---- memory */
enum { PIECE = 1 << 18 }; /* bytes of a task */
typedef struct traffic {
    dlrn_context *ctx;
    const char *from;
    char *to; /* NULL: read only                                                              */
    int64_t bytes;  /* of `from`, a multiple of 64  */
    int64_t target; /* bytes of `to`: it is written again and again, as a batch's rows are */
    volatile uint64_t sink;
} traffic;

static void traffic_task(void *arg, int64_t task, int worker) {
    traffic *t = (traffic *)arg;
    int64_t first = task * PIECE, n = t->bytes - first < PIECE ? t->bytes - first : PIECE;
    (void)worker;
    if (t->to) {
        memcpy(t->to + first % t->target, t->from + first, (size_t)n);
        return;
    }
    const uint64_t *p = (const uint64_t *)(const void *)(t->from + first);
    uint64_t s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0;
    for (int64_t i = 0; i < n / 8; i += 8) {
        s0 += p[i], s1 += p[i + 1], s2 += p[i + 2], s3 += p[i + 3];
        s4 += p[i + 4], s5 += p[i + 5], s6 += p[i + 6], s7 += p[i + 7];
    }
    t->sink = s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7;
}

static void traffic_run(void *arg) {
    traffic *t = (traffic *)arg;
    dlrn_parallel_for(t->ctx, (t->bytes + PIECE - 1) / PIECE, traffic_task, t);
}
#endif /* DICTLEARN_YARDSTICKS_H */
