/* dictlearn.h over several processes, by any MPI (3 or later; tested: Open MPI 4.1, MPICH 4.0):
       MPI_Init(&argc, &argv);
       if (!mpi_collective(MPI_COMM_WORLD, 300, &cfg.collective)) return 1;
       dlrn_context_create(&cfg, &ctx); // then every rank makes the same calls in the same order
       dlrn_context_destroy(ctx), mpi_collective_free(&cfg.collective), MPI_Finalize();
   This folder must not be in the compiler's -I, for <mpi.h>. Make all calls on MPI_Init's thread.
   Sums are added here, in the order of the ranks: the same bits with any MPI. Each rank gets a
   block of the numbers from all others, adds, and sends it back, 2 (ranks - 1) / ranks of them;
   up to MPI_SMALL bytes go to all. A rank that waits longer than stall_seconds for another fails,
   as do all later calls; then end the process by _exit or MPI_Abort: MPI may still use numbers. */
#ifndef DICTLEARN_MPI_H
#define DICTLEARN_MPI_H
#include <mpi.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
enum { MPI_SMALL = 4096 };
typedef struct mpi_call { /* a call that has begun. Block r of data belongs to rank r */
    struct mpi_call *next;
    MPI_Op op;
    MPI_Datatype type;
    char *data, *room, *own; /* room: our block as each rank has it; own: ours if not in data */
    int tag, phase, root, is_kept; /* phase 0: to the owners, 1: to root (-1: all), 2: done */
    int64_t *from, *bytes, size; /* [ranks] where a block begins, and its bytes; size of a number */
    MPI_Request *request;        /* [2 ranks] from a rank, to it                                  */
} mpi_call;

/* cfg.collective.user: `sent` counts the bytes that went to other ranks. `waiting` is called ten
   times a second in long waits, if set. `text` says who waits for whom, or what has failed. */
typedef struct mpi_ranks {
    MPI_Comm comm;
    int rank, ranks, tag, broken;
    int64_t sent, piece; /* piece: bytes of a message at most, which MPI counts with an int */
    double stall;
    void (*waiting)(double seconds, const char *text);
    char text[MPI_MAX_ERROR_STRING + 1];
    mpi_call *first;
} mpi_ranks;

/* Begins the messages of a phase: the owners get their blocks, or give them to all. */
static int mpi_exchange(mpi_ranks *m, mpi_call *c) {
    int code = c ? MPI_SUCCESS : MPI_ERR_NO_MEM;
    for (int r = 0; code == MPI_SUCCESS && r < m->ranks && !m->broken; r++) {
        const int64_t mine = c->bytes[m->rank];
        const int to_us = c->root < 0 || c->root == m->rank, to_it = c->root < 0 || c->root == r;
        char *block = c->data + c->from[r], *own = c->own ? c->own : c->data + c->from[m->rank];
        char *in = c->phase ? block : c->room + r * mine, *out = c->phase ? own : block;
        const int get = (int)(r == m->rank ? 0 : !c->phase ? mine : to_us ? c->bytes[r] : 0);
        const int give = (int)(r == m->rank ? 0 : !c->phase ? c->bytes[r] : to_it ? mine : 0);
        if (get) code = MPI_Irecv(in, get, MPI_BYTE, r, c->tag, m->comm, &c->request[2 * r]);
        if (!give || code != MPI_SUCCESS) continue;
        code = MPI_Isend(out, give, MPI_BYTE, r, c->tag, m->comm, &c->request[2 * r + 1]);
        m->sent += give;
    }
    return code;
}

/* ((rank 0 + rank 1) + rank 2) + ...: the ranks before this one are added up in rank 0's room, that
   is added to our own numbers (a + b is b + a), and then each rank after it. */
static void mpi_add_up(const mpi_ranks *m, mpi_call *c) {
    const int64_t mine = c->bytes[m->rank];
    char *own = c->data + c->from[m->rank];
    for (int r = 1; r < m->ranks; r++)
        MPI_Reduce_local(r == m->rank ? c->room : c->room + r * mine, r < m->rank ? c->room : own,
                         (int)(mine / c->size), c->type, c->op);
}

/* Moves on all calls that have begun, and frees those that are done. */
static int mpi_advance(mpi_ranks *m) {
    int code = MPI_SUCCESS;
    for (mpi_call **at = &m->first, *c; (c = *at) != NULL && code == MPI_SUCCESS;) {
        int done = 0, was = c->phase;
        if (was < 2) code = MPI_Testall(2 * m->ranks, c->request, &done, MPI_STATUSES_IGNORE);
        if (done && was == 0) mpi_add_up(m, c);
        if (done) c->phase = was == 1 || !c->from[m->ranks - 1] ? 2 : 1; /* 2: all have all */
        if (done && c->phase == 1 && code == MPI_SUCCESS) code = mpi_exchange(m, c);
        if (c->phase < 2 || c->is_kept)
            at = &c->next;
        else
            *at = c->next, free(c);
    }
    return code;
}

/* A call on data whose blocks are still empty, with room for so many bytes; NULL: no memory. */
static mpi_call *mpi_new_call(mpi_ranks *m, void *data, int64_t room, int root) {
    const size_t ranks = (size_t)m->ranks, each = 2 * (sizeof(int64_t) + sizeof(MPI_Request));
    mpi_call *c = (mpi_call *)malloc(sizeof *c + ranks * each + (size_t)room + 8);
    if (!c || mpi_advance(m)) return free(c), (mpi_call *)NULL;
    memset(c, 0, sizeof *c + ranks * each);
    c->from = (int64_t *)(void *)(c + 1), c->bytes = c->from + ranks;
    c->request = (MPI_Request *)(void *)(c->bytes + ranks);
    c->room = (char *)(c->from + (ranks * each + 7) / 8), c->data = (char *)data, c->root = root;
    for (size_t i = 0; i < 2 * ranks; i++) c->request[i] = MPI_REQUEST_NULL;
    c->tag = m->tag = (m->tag + 1) % 16384, c->is_kept = c->phase = 1, c->next = m->first;
    return m->first = c;
}

/* Waits for a call. code: of the MPI call that began it; c NULL: that was out of memory. */
static dlrn_status mpi_await(mpi_ranks *m, dlrn_context *ctx, int code, mpi_call *c,
                             const char *what) {
    double last = MPI_Wtime(), time = 0, told = 0;
    int done, i;
    while (code == MPI_SUCCESS && !m->broken && (code = mpi_advance(m)) == MPI_SUCCESS) {
        if (c->phase == 2) return c->is_kept = 0, DLRN_OK;
        const double passed = MPI_Wtime() - last;
        last += passed, time += passed < 1 ? passed : 0; /* longer: we ourselves were stopped */
        if (time > 2e-5) time < 0.02 ? sched_yield() : poll(NULL, 0, 1); /* others want the core */
        if (time < told + 0.1 && time < m->stall) continue;
        for (i = 0, done = 1; i < 2 * m->ranks && done; i += done)
            MPI_Request_get_status(c->request[i], &done, MPI_STATUS_IGNORE);
        snprintf(m->text, sizeof m->text, "rank %d of %d has waited %.1f s for rank %d, in %s",
                 m->rank, m->ranks, told = time, i / 2 % m->ranks, what);
        if (m->waiting) m->waiting(time, m->text);
        m->broken = time >= m->stall;
    }
    if (!m->broken) MPI_Error_string(code, m->text, &i), m->broken = 1;
    return dlrn_fail(ctx, DLRN_ERR_CALLBACK, "%s", m->text);
}

static dlrn_status mpi_wait(void *user, dlrn_context *ctx, void *request) {
    return mpi_await((mpi_ranks *)user, ctx, MPI_SUCCESS, (mpi_call *)request, "a sum");
}

static dlrn_status mpi_reduce(void *user, dlrn_context *ctx, dlrn_reduce op, dlrn_dtype type,
                              void *data, int64_t n, void **request) {
    mpi_ranks *m = (mpi_ranks *)user;
    const int64_t size = type == DLRN_F32 ? 4 : 8, max = m->piece / size;
    for (; n > max; n -= max, data = (char *)data + max * size) {
        const dlrn_status s = mpi_reduce(user, ctx, op, type, data, max, NULL);
        if (s != DLRN_OK) return s;
    }
    const int is_small = n * size <= MPI_SMALL;
    mpi_call *c = mpi_new_call(m, data, (is_small ? n * m->ranks : n + m->ranks) * size, -1);
    for (int r = 0; r < m->ranks && c; r++) {
        c->from[r] = is_small ? 0 : n * r / m->ranks * size;
        c->bytes[r] = (is_small ? n : n * (r + 1) / m->ranks) * size - c->from[r];
        c->phase = 0, c->size = size, c->op = op == DLRN_REDUCE_SUM ? MPI_SUM : MPI_MAX;
        c->type = type == DLRN_F32 ? MPI_FLOAT : type == DLRN_F64 ? MPI_DOUBLE : MPI_INT64_T;
    }
    const int code = mpi_exchange(m, c);
    if (request) *request = c;
    return request && !code && !m->broken ? DLRN_OK : mpi_await(m, ctx, code, c, "a sum");
}

static dlrn_status mpi_gather(void *user, dlrn_context *ctx, int root, const void *mine,
                              const int64_t *bytes, void *all) {
    mpi_ranks *m = (mpi_ranks *)user;
    const int gets = root < 0 || root == m->rank; /* -1: all do */
    dlrn_status s = DLRN_OK;
    for (int64_t at = 0, left = 1; left > 0 && s == DLRN_OK; at += m->piece) {
        mpi_call *c = mpi_new_call(m, all, left = 0, root);
        for (int64_t r = 0, from = at; r < m->ranks && c; from += bytes[r++]) {
            const int64_t n = bytes[r] > at ? bytes[r] - at : 0;
            if (r == m->rank && n && !at && gets) memcpy(c->data + from, mine, (size_t)n);
            if (r == m->rank && n) c->own = (char *)(size_t)mine + at;
            c->from[r] = gets ? from : 0, c->bytes[r] = n < m->piece ? n : m->piece;
            left = n - m->piece > left ? n - m->piece : left;
        }
        s = mpi_await(m, ctx, mpi_exchange(m, c), c, "gathering");
    }
    return s;
}

static dlrn_status mpi_allgather(void *user, dlrn_context *ctx, const void *mine,
                                 const int64_t *bytes, void *all) {
    return mpi_gather(user, ctx, -1, mine, bytes, all);
}

static dlrn_status mpi_bcast(void *user, dlrn_context *ctx, int root, void *data, int64_t bytes) {
    mpi_ranks *m = (mpi_ranks *)user;
    const int64_t n = bytes < m->piece ? bytes : m->piece;
    mpi_call *c = mpi_new_call(m, data, 0, -1);
    int code = !c ? MPI_ERR_NO_MEM
                  : MPI_Ibcast(data, (int)n, MPI_BYTE, root, m->comm, &c->request[2 * root]);
    m->sent += m->rank == root ? n * (m->ranks - 1) : 0;
    const dlrn_status s = mpi_await(m, ctx, code, c, "a broadcast");
    return s || bytes == n ? s : mpi_bcast(user, ctx, root, (char *)data + n, bytes - n);
}

/* Fills *out for the ranks of a communicator, of which it makes a copy. 1; 0: MPI has failed. */
static int mpi_collective(MPI_Comm comm, double stall_seconds, dlrn_collective *out) {
    dlrn_collective c = {0, 0, mpi_reduce, mpi_wait, mpi_allgather, mpi_bcast, mpi_gather, NULL};
    mpi_ranks *m = (mpi_ranks *)(c.user = calloc(1, sizeof *m));
    if (!m || MPI_Comm_dup(comm, &m->comm) != MPI_SUCCESS) return free(m), 0;
    MPI_Comm_set_errhandler(m->comm, MPI_ERRORS_RETURN), MPI_Comm_rank(comm, &m->rank);
    MPI_Comm_size(comm, &m->ranks), m->stall = stall_seconds, m->piece = 1 << 30;
    return c.rank = m->rank, c.ranks = m->ranks, *out = c, 1;
}

/* Frees what mpi_collective has made, before MPI_Finalize. */
static void mpi_collective_free(dlrn_collective *out) {
    mpi_ranks *m = (mpi_ranks *)out->user;
    if (!m->broken) MPI_Comm_free(&m->comm);
    free(m);
}
#endif
