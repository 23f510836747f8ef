/* ranks.h - several ranks in one process, for tests: each is a thread with a context of its own,
   and a collective joins them. Sums are in rank order. A rank that ends while others wait for it,
   and ranks that make different calls, give an error on all, so nothing hangs.

       static void body(void *arg, int rank, dlrn_context *ctx) { ... }
       ranks_setup setup = {0};
       setup.ranks = 3;
       ranks_run(&setup, body, arg);

   The checks of test.h belong to the main thread: a body keeps what it found, and the test checks
   that after ranks_run.
*/
#ifndef DICTLEARN_TEST_RANKS_H
#define DICTLEARN_TEST_RANKS_H

#include <pthread.h>

enum { RANKS_MAX = 8 };

/* What ranks_run makes its contexts from. */
typedef struct ranks_setup {
    int ranks, threads; /* 0 ranks: no collective; threads of each rank, 0: 1 */
    const char *kernels;
    void *(*alloc)(void *user, size_t size); /* gets the rank's number: user is int *; or NULL */
    void (*release)(void *user, void *p);
    int (*stop)(void *user);
    int has_gather; /* 1: the collective gathers to one rank, too */
} ranks_setup;

/* One call of one rank. */
typedef struct ranks_call {
    int kind; /* 'r', 'g' or 'b' */
    dlrn_reduce op;
    dlrn_dtype type;
    int root;
    int64_t n;
    const int64_t *bytes;
    void *data, *all;
} ranks_call;

typedef struct ranks_team {
    pthread_mutex_t lock;
    pthread_cond_t moved;
    int ranks, arrived, ended, poisoned;
    int64_t turn;
    ranks_call call[RANKS_MAX];
    char *sum;  /* of the call in hand            */
    int to_one; /* gatherings that went to one rank */
    dlrn_traffic traffic[RANKS_MAX];
} ranks_team;

typedef struct ranks_member {
    ranks_team *team;
    int rank;
    void (*body)(void *arg, int rank, dlrn_context *ctx);
    void *arg;
    dlrn_context_config config;
    dlrn_status made; /* what dlrn_context_create returned */
    dlrn_traffic counted;
    pthread_t thread;
} ranks_member;

/* What the team and the contexts of the last ranks_run have counted. */
TEST_UNUSED dlrn_traffic ranks_traffic[RANKS_MAX], ranks_counted[RANKS_MAX];
TEST_UNUSED int ranks_to_one;

/* All ranks meet. 0: one of them is gone, or the team is poisoned. */
TEST_UNUSED int ranks_meet(ranks_team *t) {
    pthread_mutex_lock(&t->lock);
    const int64_t turn = t->turn;
    if (t->ended) t->poisoned = 1;
    if (++t->arrived == t->ranks && !t->poisoned) {
        t->arrived = 0;
        t->turn++;
        pthread_cond_broadcast(&t->moved);
    }
    while (t->turn == turn && !t->poisoned) pthread_cond_wait(&t->moved, &t->lock);
    const int good = t->turn != turn;
    pthread_cond_broadcast(&t->moved);
    pthread_mutex_unlock(&t->lock);
    return good;
}

/* A rank ends: those that wait for it must not wait for ever. */
TEST_UNUSED void ranks_end(ranks_team *t) {
    pthread_mutex_lock(&t->lock);
    t->ended++;
    if (t->arrived) t->poisoned = 1;
    pthread_cond_broadcast(&t->moved);
    pthread_mutex_unlock(&t->lock);
}

/* Whether all ranks have made the same call. */
TEST_UNUSED int ranks_agree(const ranks_team *t) {
    const ranks_call *a = &t->call[0];
    int same = 1;
    for (int r = 1; r < t->ranks; r++) {
        const ranks_call *b = &t->call[r];
        same = same && a->kind == b->kind && a->op == b->op && a->type == b->type &&
               a->root == b->root && a->n == b->n;
        for (int i = 0; same && a->bytes && i < t->ranks; i++)
            same = b->bytes && a->bytes[i] == b->bytes[i];
    }
    return same;
}

TEST_UNUSED size_t ranks_width(dlrn_dtype type) {
    return type == DLRN_F32 ? 4 : 8;
}

/* Element i of the sum or the largest, in rank order. */
TEST_UNUSED void ranks_element(const ranks_team *t, int64_t i) {
    const ranks_call *a = &t->call[0];
    for (int r = 0; r < t->ranks; r++) {
        const void *data = t->call[r].data;
        if (a->type == DLRN_F32) {
            float *to = (float *)(void *)t->sum + i, v = ((const float *)data)[i];
            *to = !r ? v : a->op == DLRN_REDUCE_SUM ? *to + v : v > *to ? v : *to;
        } else if (a->type == DLRN_F64) {
            double *to = (double *)(void *)t->sum + i, v = ((const double *)data)[i];
            *to = !r ? v : a->op == DLRN_REDUCE_SUM ? *to + v : v > *to ? v : *to;
        } else {
            int64_t *to = (int64_t *)(void *)t->sum + i, v = ((const int64_t *)data)[i];
            *to = !r ? v : a->op == DLRN_REDUCE_SUM ? *to + v : v > *to ? v : *to;
        }
    }
}

/* Does this rank's share of the work of a call that all have made. */
TEST_UNUSED void ranks_work(ranks_team *t, int rank) {
    const ranks_call *own = &t->call[rank];
    if (own->kind == 'b') {
        if (rank != own->root) memcpy(own->data, t->call[own->root].data, (size_t)own->n);
    } else if (own->kind == 'g') {
        char *to = (char *)own->all;
        for (int r = 0; r < t->ranks && to; to += own->bytes[r++])
            if (own->bytes[r]) memcpy(to, t->call[r].data, (size_t)own->bytes[r]);
    } else {
        const int64_t end = own->n * (rank + 1) / t->ranks;
        for (int64_t i = own->n * rank / t->ranks; i < end; i++) ranks_element(t, i);
    }
}

/* One call, from its beginning to its end. */
TEST_UNUSED dlrn_status ranks_do(ranks_member *m, dlrn_context *ctx, const ranks_call *call) {
    ranks_team *t = m->team;
    t->call[m->rank] = *call;
    int good = ranks_meet(t);
    if (good && m->rank == 0 && call->kind == 'r') {
        free(t->sum);
        t->sum = (char *)malloc((size_t)call->n * ranks_width(call->type) + 1);
    }
    good = good && ranks_meet(t) && ranks_agree(t);
    if (good) ranks_work(t, m->rank);
    good = good && ranks_meet(t);
    if (good && call->kind == 'r')
        memcpy(call->data, t->sum, (size_t)call->n * ranks_width(call->type));
    if (good && ranks_meet(t)) return DLRN_OK;
    pthread_mutex_lock(&t->lock);
    t->poisoned = 1;
    pthread_cond_broadcast(&t->moved);
    pthread_mutex_unlock(&t->lock);
    return dlrn_fail(ctx, DLRN_ERR_CALLBACK,
                     "another rank has ended, or has made another call than %c of %lld", call->kind,
                     (long long)call->n);
}

/* A call that only begins is done when it is waited for: until then the sums are not there, so what
   uses them too early shows. */
TEST_UNUSED dlrn_status ranks_allreduce(void *user, dlrn_context *ctx, dlrn_reduce op,
                                        dlrn_dtype type, void *data, int64_t n, void **request) {
    ranks_member *m = (ranks_member *)user;
    const ranks_call call = {'r', op, type, 0, n, NULL, data, NULL};
    m->team->traffic[m->rank].reduced += n * (int64_t)ranks_width(type);
    m->team->traffic[m->rank].calls++;
    if (!request) return ranks_do(m, ctx, &call);
    if (!(*request = malloc(sizeof call))) return dlrn_fail(ctx, DLRN_ERR_CALLBACK, "no memory");
    memcpy(*request, &call, sizeof call);
    return DLRN_OK;
}

TEST_UNUSED dlrn_status ranks_wait(void *user, dlrn_context *ctx, void *request) {
    ranks_call call;
    memcpy(&call, request, sizeof call);
    free(request);
    return ranks_do((ranks_member *)user, ctx, &call);
}

TEST_UNUSED dlrn_status ranks_allgather(void *user, dlrn_context *ctx, const void *mine,
                                        const int64_t *bytes, void *all) {
    ranks_member *m = (ranks_member *)user;
    ranks_call call = {'g', DLRN_REDUCE_SUM, DLRN_F32, 0, 0, bytes, NULL, all};
    memcpy(&call.data, &mine, sizeof mine); /* only read */
    m->team->traffic[m->rank].gathered += bytes[m->rank];
    m->team->traffic[m->rank].calls++;
    return ranks_do(m, ctx, &call);
}

/* The others pass NULL, so that nothing is written there. */
TEST_UNUSED dlrn_status ranks_gather_to(void *user, dlrn_context *ctx, int root, const void *mine,
                                        const int64_t *bytes, void *all) {
    ranks_member *m = (ranks_member *)user;
    m->team->to_one += m->rank == 0;
    return ranks_allgather(user, ctx, mine, bytes, m->rank == root ? all : NULL);
}

TEST_UNUSED dlrn_status ranks_broadcast(void *user, dlrn_context *ctx, int root, void *data,
                                        int64_t bytes) {
    ranks_member *m = (ranks_member *)user;
    const ranks_call call = {'b', DLRN_REDUCE_SUM, DLRN_F32, root, bytes, NULL, data, NULL};
    m->team->traffic[m->rank].broadcast += m->rank == root ? bytes : 0;
    m->team->traffic[m->rank].calls++;
    return ranks_do(m, ctx, &call);
}

TEST_UNUSED void *ranks_thread(void *of) {
    ranks_member *m = (ranks_member *)of;
    dlrn_context *ctx = NULL;
    m->made = dlrn_context_create(&m->config, &ctx);
    if (ctx) {
        m->body(m->arg, m->rank, ctx);
        m->counted = dlrn_context_describe(ctx).traffic;
        dlrn_context_destroy(ctx);
    }
    ranks_end(m->team);
    return NULL;
}

/* Runs body(arg, rank, ctx) on all ranks at the same time. */
TEST_UNUSED void ranks_run(const ranks_setup *setup, void (*body)(void *, int, dlrn_context *),
                           void *arg) {
    static const dlrn_collective alone;
    const int ranks = setup->ranks > 1 ? setup->ranks : 1;
    ranks_team team;
    ranks_member m[RANKS_MAX];
    int number[RANKS_MAX];
    memset(&team, 0, sizeof team);
    memset(m, 0, sizeof m);
    CHECK(ranks <= RANKS_MAX);
    pthread_mutex_init(&team.lock, NULL);
    pthread_cond_init(&team.moved, NULL);
    team.ranks = ranks;
    for (int r = 0; r < ranks; r++) {
        const dlrn_collective joined = {r,
                                        ranks,
                                        ranks_allreduce,
                                        ranks_wait,
                                        ranks_allgather,
                                        ranks_broadcast,
                                        setup->has_gather ? ranks_gather_to : NULL,
                                        &m[r]};
        number[r] = r;
        m[r].team = &team;
        m[r].rank = r;
        m[r].body = body;
        m[r].arg = arg;
        m[r].config.threads = setup->threads ? setup->threads : 1;
        m[r].config.kernels = setup->kernels;
        m[r].config.alloc = setup->alloc;
        m[r].config.release = setup->release;
        m[r].config.stop = setup->stop;
        m[r].config.user = &number[r];
        m[r].config.collective = setup->ranks ? joined : alone;
    }
    for (int r = 0; r < ranks; r++)
        CHECK(pthread_create(&m[r].thread, NULL, ranks_thread, &m[r]) == 0);
    for (int r = 0; r < ranks; r++) pthread_join(m[r].thread, NULL);
    for (int r = 0; r < ranks; r++) {
        ranks_traffic[r] = team.traffic[r];
        ranks_counted[r] = m[r].counted;
    }
    ranks_to_one = team.to_one;
    free(team.sum);
    pthread_mutex_destroy(&team.lock);
    pthread_cond_destroy(&team.moved);
    for (int r = 0; r < ranks; r++) CHECK_STATUS(m[r].made, DLRN_OK);
}
#endif /* DICTLEARN_TEST_RANKS_H */
