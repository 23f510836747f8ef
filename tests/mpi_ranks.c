/* examples/mpi.h, run by tests/test_mpi.sh on several ranks: sums in the order of the ranks, long
   messages, blocks of any size, several at once, bytes sent, a rank that does not come.

       mpirun -np R mpi_ranks          "N passed, N failed" by rank 0
       mpirun -np R mpi_ranks stall    rank 1 sleeps: the others print the error and fail
       mpirun -np R mpi_ranks rate     seconds of a sum, by size */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "../examples/mpi.h"

static int passed, failed;
static dlrn_context *ctx;
static dlrn_collective all;

/* Counts a check that must hold on every rank. */
static void check(const char *name, int holds) {
    int on_all = 0;
    MPI_Allreduce(&holds, &on_all, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    passed += on_all;
    failed += !on_all;
    if (!on_all && all.rank == 0) printf("FAIL %s\n", name);
}

/* A number of rank r at i whose sums depend on their order. */
static float value(int r, int64_t i) {
    const uint32_t h = (uint32_t)(i * 2654435761u) ^ (uint32_t)(r * 40503 + 17);
    return (float)(h % 20011) * (h & 64 ? 1e-4F : 3.7F) * (h & 128 ? 1.0F : -1.0F);
}

static float expected(int64_t i) {
    float sum = value(0, i);
    for (int r = 1; r < all.ranks; r++) sum += value(r, i);
    return sum;
}

static void fill(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] = value(all.rank, i);
}

static int is_sum(const float *x, int64_t n) {
    int64_t bad = 0;
    for (int64_t i = 0; i < n; i++) {
        const float e = expected(i);
        bad += memcmp(&e, x + i, sizeof e) != 0;
    }
    return bad == 0;
}

/* Bytes that all ranks have sent since the last call. */
static int64_t sent_by_all(void) {
    static int64_t before;
    mpi_ranks *m = (mpi_ranks *)all.user;
    int64_t mine = m->sent - before, sum = 0;
    before = m->sent;
    MPI_Allreduce(&mine, &sum, 1, MPI_INT64_T, MPI_SUM, MPI_COMM_WORLD);
    return sum;
}

static void test_sums(void) {
    static const int64_t sizes[] = {1, 2, 3, 1023, 1024, 1025, 4099, 100003};
    char name[64];
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        const int64_t n = sizes[k], bytes = n * (int64_t)sizeof(float), others = all.ranks - 1;
        float *x = (float *)malloc((size_t)bytes);
        fill(x, n);
        sent_by_all();
        const dlrn_status s = all.allreduce(all.user, ctx, DLRN_REDUCE_SUM, DLRN_F32, x, n, NULL);
        snprintf(name, sizeof name, "a sum of %lld", (long long)n);
        check(name, s == DLRN_OK && is_sum(x, n));
        const int64_t each = bytes <= MPI_SMALL ? all.ranks * others * bytes : 2 * others * bytes;
        snprintf(name, sizeof name, "bytes of a sum of %lld", (long long)n);
        check(name, sent_by_all() == each);
        free(x);
    }
}

static void test_types(void) {
    double f[3] = {0.1 * (all.rank + 1), -1e300, all.rank == all.ranks - 1 ? 5 : 4};
    int64_t i[2] = {(int64_t)1 << 40, -all.rank};
    all.allreduce(all.user, ctx, DLRN_REDUCE_MAX, DLRN_F64, f, 3, NULL);
    check("the largest", f[0] == 0.1 * all.ranks && f[1] == -1e300 && f[2] == 5);
    all.allreduce(all.user, ctx, DLRN_REDUCE_SUM, DLRN_I64, i, 2, NULL);
    check("a sum of integers", i[0] == all.ranks * ((int64_t)1 << 40) &&
                                   i[1] == -(int64_t)all.ranks * (all.ranks - 1) / 2);
}

/* Several that have begun, waited for out of order, with other calls between. */
static void test_begun(void) {
    enum { COUNT = 5, N = 70001 };
    static float x[COUNT][N];
    void *request[COUNT];
    int64_t flag = all.rank, good = 1;
    for (int k = 0; k < COUNT; k++) {
        fill(x[k], N - k * 13000);
        good &= all.allreduce(all.user, ctx, DLRN_REDUCE_SUM, DLRN_F32, x[k], N - k * 13000,
                              &request[k]) == DLRN_OK;
        all.allreduce(all.user, ctx, DLRN_REDUCE_MAX, DLRN_I64, &flag, 1, NULL);
    }
    for (int k = COUNT - 1; k >= 0; k--)
        good &= all.wait(all.user, ctx, request[k]) == DLRN_OK && is_sum(x[k], N - k * 13000);
    check("sums that have begun", good && flag == all.ranks - 1);
}

/* Long messages are cut: here after 1000 bytes. */
static void test_cut(void) {
    enum { N = 5001 };
    static float x[N];
    mpi_ranks *m = (mpi_ranks *)all.user;
    const int64_t piece = m->piece;
    int64_t bytes[64];
    int64_t total = 0, at = 0, good = 1;
    m->piece = 1000;
    fill(x, N);
    all.allreduce(all.user, ctx, DLRN_REDUCE_SUM, DLRN_F32, x, N, NULL);
    check("a sum in pieces", is_sum(x, N));
    for (int r = 0; r < all.ranks; r++)
        bytes[r] = r == 1 ? 0 : 700 * (r + 1) + 1, total += bytes[r];
    unsigned char *mine = (unsigned char *)malloc((size_t)bytes[all.rank] + 1);
    unsigned char *got = (unsigned char *)calloc((size_t)total, 1);
    for (int64_t i = 0; i < bytes[all.rank]; i++) mine[i] = (unsigned char)(i * 7 + all.rank);
    all.allgather(all.user, ctx, mine, bytes, got);
    for (int r = 0; r < all.ranks; at += bytes[r++])
        for (int64_t i = 0; i < bytes[r]; i++) good &= got[at + i] == (unsigned char)(i * 7 + r);
    check("gathered in pieces", (int)good);
    for (int root = 0; root < all.ranks; root++) {
        memset(got, 0, (size_t)total);
        sent_by_all();
        all.gather(all.user, ctx, root, mine, bytes, all.rank == root ? got : NULL);
        good = sent_by_all() == total - bytes[root];
        at = 0;
        for (int r = 0; r < all.ranks && all.rank == root; at += bytes[r++])
            for (int64_t i = 0; i < bytes[r]; i++)
                good &= got[at + i] == (unsigned char)(i * 7 + r);
        check("gathered in pieces by one rank", (int)good);
    }
    for (int root = 0; root < all.ranks; root++) {
        good = 1;
        for (int i = 0; i < N; i++) x[i] = all.rank == root ? (float)(i + root) : -1;
        all.broadcast(all.user, ctx, root, x, sizeof x);
        for (int i = 0; i < N; i++) good &= x[i] == (float)(i + root);
        check("a broadcast in pieces", (int)good);
    }
    m->piece = piece;
    free(mine);
    free(got);
}

/* Rank 1 does not come: the others fail after the stall time, and every later call at once. */
static int stall(void) {
    int64_t one = 1;
    if (all.rank == 1) {
        sleep(30);
        _exit(3);
    }
    for (int again = 0; again < 2; again++) {
        const time_t began = time(NULL);
        const dlrn_status s =
            all.allreduce(all.user, ctx, DLRN_REDUCE_SUM, DLRN_I64, &one, 1, NULL);
        printf("%s%s (%d s)\n", s == DLRN_ERR_CALLBACK ? "" : "another status: ", dlrn_error(ctx),
               (int)(time(NULL) - began));
    }
    fflush(stdout);
    sleep(2); /* for the others' lines: mpirun ends all ranks when one fails */
    _exit(1);
}

static void rate(void) {
    for (int64_t n = 256; n <= (int64_t)4 << 20; n *= 8) {
        float *x = (float *)calloc((size_t)n, sizeof *x);
        double best = 1e9;
        for (int k = 0; k < 20; k++) {
            MPI_Barrier(MPI_COMM_WORLD);
            const double began = MPI_Wtime();
            all.allreduce(all.user, ctx, DLRN_REDUCE_SUM, DLRN_F32, x, n, NULL);
            const double time = MPI_Wtime() - began;
            best = time < best ? time : best;
        }
        if (all.rank == 0) printf("%lld bytes: %.6f s\n", (long long)(4 * n), best);
        free(x);
    }
}

int main(int argc, char **argv) {
    dlrn_context_config cfg = {0};
    MPI_Init(&argc, &argv);
    const char *what = argc > 1 ? argv[1] : "";
    if (!mpi_collective(MPI_COMM_WORLD, !strcmp(what, "stall") ? 2 : 60, &all)) return 1;
    cfg.threads = 1;
    cfg.collective = all;
    if (dlrn_context_create(&cfg, &ctx) != DLRN_OK) return 1;
    if (!strcmp(what, "stall")) return stall();
    if (!strcmp(what, "rate")) {
        rate();
    } else {
        test_sums();
        test_types();
        test_begun();
        test_cut();
    }
    dlrn_context_destroy(ctx);
    mpi_collective_free(&all);
    if (all.rank == 0 && !*what) printf("%d passed, %d failed\n", passed, failed);
    MPI_Finalize();
    return failed != 0;
}
