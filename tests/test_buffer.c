/* test_buffer.c - the activation buffer: which rows come out, how often, in which order, in how much memory; and the
   sources of arrays. Row i of a source holds i in its first column: small enough to be exact in every stored type. */
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "tests/test.h"

enum { D = 3, MOST = 2000 };

/* ---- An allocator that counts, and fails when told to ---- */

typedef struct counting {
    int64_t live, peak, blocks; /* bytes; blocks: not yet freed */
    int64_t calls, fail_at;     /* fail_at: this call and all after it have no memory; 0: none */
} counting;

static void *counting_malloc(size_t size, void *user) {
    counting *c = (counting *)user;
    if (++c->calls >= c->fail_at && c->fail_at) return NULL;
    char *p = (char *)malloc(size + 16);
    if (!p) return NULL;
    memcpy(p, &size, sizeof size);
    c->live += (int64_t)size, c->blocks++;
    if (c->live > c->peak) c->peak = c->live;
    return p + 16;
}

static void counting_free(void *p, void *user) {
    counting *c = (counting *)user;
    size_t size;
    if (!p) return;
    memcpy(&size, (char *)p - 16, sizeof size);
    c->live -= (int64_t)size, c->blocks--;
    free((char *)p - 16);
}

static void *counting_realloc(void *p, size_t size, void *user) {
    void *q = counting_malloc(size, user);
    size_t had = 0;
    if (!q || !p) return q;
    memcpy(&had, (char *)p - 16, sizeof had);
    memcpy(q, p, had < size ? had : size);
    counting_free(p, user);
    return q;
}

static dlrn_context *open_context(counting *count) {
    dlrn_context_config cfg = dlrn_context_defaults();
    dlrn_context *ctx = NULL;
    cfg.threads = 1;
    if (count) {
        memset(count, 0, sizeof *count);
        cfg.malloc = counting_malloc, cfg.realloc = counting_realloc, cfg.free = counting_free, cfg.user = count;
    }
    CHECK_STATUS(dlrn_context_create(&cfg, &ctx), DLRN_OK);
    return ctx;
}

/* ---- A source that can be watched ---- */

typedef struct tape {
    int64_t at, rows;   /* rows given; rows there are                 */
    int64_t piece;      /* most rows that it gives at once; 0: any    */
    int64_t asked;      /* most rows that it was asked for            */
    int64_t reads;      /* calls                                      */
    int64_t lie;        /* added to the number of rows that it states */
    dlrn_status at_end; /* how it ends                                */
    const char *why;    /* its text for a failure                     */
    int destroyed;
} tape;

static float x_of(int64_t i, int64_t j) {
    return j == 0 ? (float)i : 0.1f * (float)(i % 17) + (float)j;
}

static float y_of(int64_t i, int64_t j) {
    return j == 0 ? -(float)i : 1.3f * (float)(i % 13) - (float)j;
}

static dlrn_status tape_read(void *user, int64_t max_rows, float *x, float *y, int64_t *n) {
    tape *t = (tape *)user;
    int64_t count = t->rows - t->at < max_rows ? t->rows - t->at : max_rows;
    t->reads++;
    if (max_rows > t->asked) t->asked = max_rows;
    if (t->piece && count > t->piece) count = t->piece;
    *n = 0;
    if (count <= 0) return t->at_end;
    for (int64_t k = 0; k < count * D; k++) {
        x[k] = x_of(t->at + k / D, k % D);
        if (y) y[k] = y_of(t->at + k / D, k % D);
    }
    t->at += count;
    *n = count + t->lie;
    return DLRN_OK;
}

static const char *tape_error(void *user) {
    return ((tape *)user)->why;
}

static void tape_destroy(void *user) {
    ((tape *)user)->destroyed++;
}

static dlrn_source tape_source(tape *t, int64_t rows, int has_target) {
    dlrn_source source = {D, 0, tape_read, NULL, NULL, tape_error, tape_destroy, NULL};
    memset(t, 0, sizeof *t);
    t->rows = rows, t->at_end = DLRN_END;
    source.has_target = has_target, source.user = t;
    return source;
}

/* capacity = n_ctxs * 10 rows. */
static dlrn_buffer_config config(int64_t n_ctxs, int64_t in_batch_size, int64_t out_batch_size, uint64_t seed) {
    dlrn_buffer_config cfg = dlrn_buffer_defaults();
    cfg.n_ctxs = n_ctxs, cfg.ctx_len = 10, cfg.in_batch_size = in_batch_size, cfg.out_batch_size = out_batch_size;
    cfg.seed = seed;
    return cfg;
}

static dlrn_buffer *make_buffer(dlrn_context *ctx, const dlrn_buffer_config *cfg, const dlrn_source *source) {
    dlrn_buffer *b = NULL;
    CHECK_OK(ctx, dlrn_buffer_create(ctx, cfg, source, 0, &b));
    return b;
}

/* All rows that come, in their order: row numbers into got [MOST]; each row is checked whole. Returns how many. */
static int64_t drain(dlrn_context *ctx, dlrn_buffer *b, int64_t batch, int64_t *got) {
    const float *x, *y;
    int64_t total = 0, n = batch;
    for (;;) {
        int64_t last = n;
        dlrn_status s = dlrn_buffer_next(b, &x, &y, &n);
        if (s == DLRN_END) break;
        CHECK_OK(ctx, s);
        CHECK(n > 0 && n <= batch && last == batch && total + n <= MOST);
        CHECK((y == x) == !dlrn_buffer_has_target(b));
        for (int64_t i = 0; i < n; i++) {
            int64_t row = (int64_t)x[i * D];
            for (int64_t j = 0; j < D; j++) CHECK(x[i * D + j] == x_of(row, j));
            for (int64_t j = 0; j < D && y != x; j++) CHECK(y[i * D + j] == y_of(row, j));
            got[total++] = row;
        }
    }
    CHECK(n == 0 && !x && !y && dlrn_buffer_unread(b) == 0);
    CHECK_STATUS(dlrn_buffer_next(b, &x, &y, &n), DLRN_END);
    return total;
}

/* ---- Which rows ---- */

TEST(every_row_comes_exactly_once) {
    static const int64_t n_ctxs[] = {30, 7, 200, 300, 4}, in[] = {4, 1, 50, 500, 3}, out[] = {32, 70, 1, 999, 40};
    static const int64_t rows[] = {1000, 1000, 1, 1000, 0}, piece[] = {0, 7, 0, 0, 1};
    static int64_t got[MOST];
    dlrn_context *ctx = open_context(NULL);
    for (int c = 0; c < 20; c++) {
        int k = c / 4, seen[MOST] = {0};
        tape t;
        dlrn_source source = tape_source(&t, rows[k], c & 1);
        dlrn_buffer_config cfg = config(n_ctxs[k], in[k], out[k], (uint64_t)c);
        cfg.shuffle = !(c & 2);
        t.piece = piece[k];
        dlrn_buffer *b = make_buffer(ctx, &cfg, &source);
        CHECK(dlrn_buffer_dim(b) == D && dlrn_buffer_unread(b) == 0 && dlrn_buffer_rows_read(b) == 0);
        int64_t total = drain(ctx, b, out[k], got);
        CHECK_MSG(total == rows[k], "case %d: %d rows of %d", c, (int)total, (int)rows[k]);
        for (int64_t i = 0; i < total; i++) CHECK(!seen[got[i]]++);
        for (int64_t i = 0; i < total && !cfg.shuffle; i++) CHECK(got[i] == i);
        CHECK(dlrn_buffer_rows_read(b) == rows[k] && t.asked <= in[k] * 10);
        dlrn_buffer_destroy(b);
        CHECK(!t.destroyed);
    }
    dlrn_context_destroy(ctx);
}

/* Read from exactly when fewer than half are unread, and then until it is full. */
TEST(refilled_below_half) {
    tape t;
    dlrn_context *ctx = open_context(NULL);
    dlrn_source source = tape_source(&t, 1 << 20, 0);
    dlrn_buffer_config cfg = config(10, 3, 17, 1); /* capacity 100 */
    dlrn_buffer *b = make_buffer(ctx, &cfg, &source);
    const float *x, *y;
    int64_t n, unread = 0, reads = 0, refills = 0;
    for (int i = 0; i < 200; i++) {
        int refill = unread < 50;
        CHECK_OK(ctx, dlrn_buffer_next(b, &x, &y, &n));
        CHECK(n == 17);
        unread = (refill ? 100 : unread) - 17;
        CHECK(dlrn_buffer_unread(b) == unread && t.at == dlrn_buffer_rows_read(b));
        CHECK((t.reads > reads) == refill && t.asked == 30);
        refills += refill, reads = t.reads;
    }
    CHECK(t.at == 200 * 17 + unread && refills > 60 && refills < 70);
    dlrn_buffer_destroy(b);
    cfg.shuffle = 0; /* nothing to mix: no row is read before it is due */
    source = tape_source(&t, 1 << 20, 0);
    b = make_buffer(ctx, &cfg, &source);
    for (int i = 1; i < 50; i++) {
        CHECK_OK(ctx, dlrn_buffer_next(b, &x, &y, &n));
        CHECK(t.at == 17 * i && dlrn_buffer_unread(b) == 0 && (int64_t)x[0] == 17 * (i - 1));
    }
    dlrn_buffer_destroy(b);
    dlrn_context_destroy(ctx);
}

/* ---- Drawn uniformly. Seeds are fixed, so that nothing here depends on luck: it holds or it does not ---- */

static double chi_square(const int64_t *count, int cells, double expected) {
    double sum = 0;
    for (int i = 0; i < cells; i++) sum += pow((double)count[i] - expected, 2) / expected;
    return sum;
}

/* All 24 orders of four rows. 23 degrees of freedom: above 60 once in 40,000 such tests. */
TEST(all_orders_are_equally_likely) {
    int64_t got[MOST], count[256] = {0}, orders[24], found = 0;
    dlrn_context *ctx = open_context(NULL);
    for (uint64_t seed = 0; seed < 24000; seed++) {
        tape t;
        dlrn_source source = tape_source(&t, 4, 0);
        dlrn_buffer_config cfg = config(1, 1, 2, seed);
        dlrn_buffer *b = make_buffer(ctx, &cfg, &source);
        CHECK(drain(ctx, b, 2, got) == 4);
        count[got[0] | got[1] << 2 | got[2] << 4 | got[3] << 6]++;
        dlrn_buffer_destroy(b);
    }
    for (int i = 0; i < 256; i++)
        if (count[i] && found < 24) orders[found++] = count[i];
    CHECK_MSG(found == 24, "%d of 24 orders", (int)found);
    double chi = chi_square(orders, 24, 1000);
    CHECK_MSG(chi < 60, "chi-square %g", chi);
    dlrn_context_destroy(ctx);
}

/* Fifth batch of 8 from a buffer of 60: after four there were 28 unread, and 32 came. Rows that waited and rows that
   came have the same chance. */
TEST(old_and_new_rows_have_the_same_chance) {
    int64_t first[60] = {0}, waited = 0, drawn = 0;
    dlrn_context *ctx = open_context(NULL);
    for (uint64_t seed = 0; seed < 3000; seed++) {
        tape t;
        dlrn_source source = tape_source(&t, 1000, 0);
        dlrn_buffer_config cfg = config(6, 6, 8, seed);
        dlrn_buffer *b = make_buffer(ctx, &cfg, &source);
        const float *x, *y;
        int64_t n;
        for (int batch = 0; batch < 5; batch++) {
            CHECK_OK(ctx, dlrn_buffer_next(b, &x, &y, &n));
            for (int64_t i = 0; i < n; i++) {
                if (batch == 0) first[(int64_t)x[i * D]]++;
                if (batch == 4) waited += x[i * D] < 60, drawn++;
            }
            CHECK(dlrn_buffer_unread(b) == (batch < 4 ? 52 - 8 * batch : 52));
        }
        dlrn_buffer_destroy(b);
    }
    double chi = chi_square(first, 60, 400); /* 59 degrees of freedom */
    CHECK_MSG(chi < 115, "chi-square %g", chi);
    CHECK(drawn == 24000);
    CHECK_MSG(labs((long)waited - 11200) < 310, "%d of 24000, expected 11200", (int)waited); /* 4 standard deviations */
    dlrn_context_destroy(ctx);
}

TEST(the_seed_alone_decides) {
    static int64_t got[4][MOST];
    dlrn_context *ctx = open_context(NULL);
    for (int c = 0; c < 4; c++) {
        tape t;
        dlrn_source source = tape_source(&t, 900, 0);
        dlrn_buffer_config cfg = config(20, 4, 16, c == 2 ? 8 : 7);
        cfg.in_batch_size = c == 3 ? 1 : 4; /* how rows come does not matter */
        dlrn_buffer *b = make_buffer(ctx, &cfg, &source);
        CHECK(drain(ctx, b, 16, got[c]) == 900);
        dlrn_buffer_destroy(b);
    }
    CHECK(!memcmp(got[0], got[1], 900 * sizeof **got) && !memcmp(got[0], got[3], 900 * sizeof **got));
    CHECK(memcmp(got[0], got[2], 900 * sizeof **got) != 0);
    dlrn_context_destroy(ctx);
}

/* ---- Stored types ---- */

static float rounded(dlrn_dtype type, float v) {
    if (type == DLRN_F16) return dlrn_f16_to_f32(dlrn_f32_to_f16(v));
    return type == DLRN_BF16 ? dlrn_bf16_to_f32(dlrn_f32_to_bf16(v)) : v;
}

TEST(rows_are_stored_as_stated) {
    static const dlrn_dtype types[3] = {DLRN_F32, DLRN_F16, DLRN_BF16};
    dlrn_context *ctx = open_context(NULL);
    for (int c = 0; c < 3; c++) {
        tape t;
        dlrn_source source = tape_source(&t, 200, 1);
        dlrn_buffer_config cfg = config(5, 2, 16, 3);
        cfg.store = types[c];
        dlrn_buffer *b = make_buffer(ctx, &cfg, &source);
        const float *x, *y;
        int64_t n, differ = 0;
        while (dlrn_buffer_next(b, &x, &y, &n) == DLRN_OK)
            for (int64_t i = 0; i < n * D; i++) {
                int64_t row = (int64_t)x[i / D * D]; /* below 256: exact in all three */
                CHECK(x[i] == rounded(types[c], x_of(row, i % D)) && y[i] == rounded(types[c], y_of(row, i % D)));
                differ += x[i] != x_of(row, i % D);
            }
        CHECK((differ > 0) == (types[c] != DLRN_F32));
        dlrn_buffer_destroy(b);
    }
    dlrn_context_destroy(ctx);
}

/* What would become infinite is told where it comes in, not by the trainer much later. */
TEST(what_a_stored_type_cannot_hold_is_named) {
    static float x[40] = {0};
    dlrn_context *ctx = open_context(NULL);
    dlrn_buffer_config cfg = config(4, 1, 4, 0);
    const float *bx, *by;
    for (int c = 0; c < 5; c++) {
        static const dlrn_dtype types[5] = {DLRN_F16, DLRN_F16, DLRN_BF16, DLRN_BF16, DLRN_F32};
        static const float bad[5] = {-65520.0f, 65519.0f, 3.4e38f, 3.38e38f, 3.4e38f};
        dlrn_source source;
        int64_t n;
        x[26] = bad[c];
        CHECK_OK(ctx, dlrn_source_from_array(ctx, x, NULL, 20, 2, 1, &source));
        cfg.store = types[c];
        dlrn_buffer *b = make_buffer(ctx, &cfg, &source);
        dlrn_status s = dlrn_buffer_next(b, &bx, &by, &n);
        CHECK_MSG(s == (c % 2 || c == 4 ? DLRN_OK : DLRN_ERR_VALUE), "case %d: %s", c, dlrn_error(ctx));
        if (s) CHECK_STR(dlrn_error(ctx), "x, row 13, column 0");
        if (s) CHECK_STR(dlrn_error(ctx), c ? "BF16" : "F16");
        dlrn_buffer_destroy(b);
        dlrn_source_destroy(&source);
    }
    dlrn_context_destroy(ctx);
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    RUN(every_row_comes_exactly_once);
    RUN(refilled_below_half);
    RUN(all_orders_are_equally_likely);
    RUN(old_and_new_rows_have_the_same_chance);
    RUN(the_seed_alone_decides);
    RUN(rows_are_stored_as_stated);
    RUN(what_a_stored_type_cannot_hold_is_named);
    return TEST_END();
}
