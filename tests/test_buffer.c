/* test_buffer.c - the activation buffer: which rows come out, how often, in which order, in how
   much memory; and the sources of arrays. Row i of a source holds i in its first column: small
   enough to be exact in every stored type. */
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "tests/test.h"

enum { D = 3, MOST = 2000 };

/* ---- An allocator that counts, and fails when told to ---- */

typedef struct counting {
    int64_t live, peak, blocks; /* bytes; blocks: not yet freed */
    int64_t calls, fail_at;     /* fail_at: this call and all after it have no memory; 0: none */
} counting;

static void *counting_alloc(void *user, size_t size) {
    counting *c = (counting *)user;
    if (++c->calls >= c->fail_at && c->fail_at) return NULL;
    char *p = (char *)malloc(size + 16);
    if (!p) return NULL;
    memcpy(p, &size, sizeof size);
    c->live += (int64_t)size, c->blocks++;
    if (c->live > c->peak) c->peak = c->live;
    return p + 16;
}

static void counting_release(void *user, void *p) {
    counting *c = (counting *)user;
    size_t size;
    if (!p) return;
    memcpy(&size, (char *)p - 16, sizeof size);
    c->live -= (int64_t)size, c->blocks--;
    free((char *)p - 16);
}

static dlrn_context *open_context(counting *count) {
    dlrn_context_config cfg = {0};
    dlrn_context *ctx = NULL;
    cfg.threads = 1;
    if (count) {
        memset(count, 0, sizeof *count);
        cfg.alloc = counting_alloc, cfg.release = counting_release, cfg.user = count;
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
    dlrn_source source = {D, 0, tape_read, NULL, NULL, tape_error, tape_destroy, NULL, 0, 0, 0};
    memset(t, 0, sizeof *t);
    t->rows = rows, t->at_end = DLRN_END;
    source.d_out = has_target ? D : 0;
    source.user = t;
    return source;
}

/* capacity and read_rows in tens of rows. */
static dlrn_buffer_config config(int64_t capacity, int64_t read_rows, int64_t batch_rows,
                                 uint64_t seed) {
    dlrn_buffer_config cfg = dlrn_buffer_defaults();
    cfg.capacity = 10 * capacity;
    cfg.read_rows = 10 * read_rows;
    cfg.batch_rows = batch_rows;
    cfg.seed = seed;
    return cfg;
}

static dlrn_buffer *make_buffer(dlrn_context *ctx, const dlrn_buffer_config *cfg,
                                const dlrn_source *source) {
    dlrn_buffer *b = NULL;
    CHECK_OK(ctx, dlrn_buffer_create(ctx, cfg, source, DLRN_BORROWED, &b));
    return b;
}

/* All rows that come, in their order: row numbers into got [MOST]; each row is checked whole.
   Returns how many. */
static int64_t drain(dlrn_context *ctx, dlrn_buffer *b, int64_t batch, int64_t *got) {
    const float *x, *y;
    int64_t total = 0, n = batch;
    for (;;) {
        int64_t last = n;
        dlrn_status s = dlrn_buffer_next(b, &x, &y, &n);
        if (s == DLRN_END) break;
        CHECK_OK(ctx, s);
        CHECK(n > 0 && n <= batch && last == batch && total + n <= MOST);
        CHECK((y == x) == !b->d[1]);
        for (int64_t i = 0; i < n; i++) {
            int64_t row = (int64_t)x[i * D];
            for (int64_t j = 0; j < D; j++) CHECK(x[i * D + j] == x_of(row, j));
            for (int64_t j = 0; j < D && y != x; j++) CHECK(y[i * D + j] == y_of(row, j));
            got[total++] = row;
        }
    }
    CHECK(n == 0 && !x && !y && b->unread == 0);
    CHECK_STATUS(dlrn_buffer_next(b, &x, &y, &n), DLRN_END);
    return total;
}

/* ---- Which rows ---- */

TEST(every_row_comes_exactly_once) {
    static const int64_t capacity[] = {30, 7, 200, 300, 4}, in[] = {4, 1, 50, 500, 3},
                         out[] = {32, 70, 1, 999, 40};
    static const int64_t rows[] = {1000, 1000, 1, 1000, 0}, piece[] = {0, 7, 0, 0, 1};
    static int64_t got[MOST];
    dlrn_context *ctx = open_context(NULL);
    for (int c = 0; c < 20; c++) {
        int k = c / 4, seen[MOST] = {0};
        tape t;
        dlrn_source source = tape_source(&t, rows[k], c & 1);
        dlrn_buffer_config cfg = config(capacity[k], in[k], out[k], (uint64_t)c);
        cfg.shuffle = !(c & 2);
        t.piece = piece[k];
        dlrn_buffer *b = make_buffer(ctx, &cfg, &source);
        CHECK(b->d[0] == D && b->unread == 0 && b->rows_read == 0);
        int64_t total = drain(ctx, b, out[k], got);
        CHECK_MSG(total == rows[k], "case %d: %d rows of %d", c, (int)total, (int)rows[k]);
        for (int64_t i = 0; i < total; i++) CHECK(!seen[got[i]]++);
        for (int64_t i = 0; i < total && !cfg.shuffle; i++) CHECK(got[i] == i);
        CHECK(b->rows_read == rows[k] && t.asked <= in[k] * 10);
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
        CHECK(b->unread == unread && t.at == b->rows_read);
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
        CHECK(t.at == 17 * i && b->unread == 0 && (int64_t)x[0] == 17 * (i - 1));
    }
    dlrn_buffer_destroy(b);
    dlrn_context_destroy(ctx);
}

/* ---- Drawn uniformly. Seeds are fixed, so that nothing here depends on luck: it holds or it does
   not ---- */

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

/* Fifth batch of 8 from a buffer of 60: after four there were 28 unread, and 32 came. Rows that
   waited and rows that came have the same chance. */
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
            CHECK(b->unread == (batch < 4 ? 52 - 8 * batch : 52));
        }
        dlrn_buffer_destroy(b);
    }
    double chi = chi_square(first, 60, 400); /* 59 degrees of freedom */
    CHECK_MSG(chi < 115, "chi-square %g", chi);
    CHECK(drawn == 24000);
    CHECK_MSG(labs((long)waited - 11200) < 310, "%d of 24000, expected 11200",
              (int)waited); /* 4 standard deviations */
    dlrn_context_destroy(ctx);
}

TEST(the_seed_alone_decides) {
    static int64_t got[4][MOST];
    dlrn_context *ctx = open_context(NULL);
    for (int c = 0; c < 4; c++) {
        tape t;
        dlrn_source source = tape_source(&t, 900, 0);
        dlrn_buffer_config cfg = config(20, 4, 16, c == 2 ? 8 : 7);
        cfg.read_rows = c == 3 ? 10 : 40; /* how rows come does not matter */
        dlrn_buffer *b = make_buffer(ctx, &cfg, &source);
        CHECK(drain(ctx, b, 16, got[c]) == 900);
        dlrn_buffer_destroy(b);
    }
    CHECK(!memcmp(got[0], got[1], 900 * sizeof **got) &&
          !memcmp(got[0], got[3], 900 * sizeof **got));
    CHECK(memcmp(got[0], got[2], 900 * sizeof **got) != 0);
    dlrn_context_destroy(ctx);
}

/* ---- Stored types ---- */

static float rounded(dlrn_dtype type, float v) {
    if (type == DLRN_F16) return dlrni_f16_to_f32(dlrni_f32_to_f16(v));
    return type == DLRN_BF16 ? dlrni_bf16_to_f32(dlrni_f32_to_bf16(v)) : v;
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
                CHECK(x[i] == rounded(types[c], x_of(row, i % D)) &&
                      y[i] == rounded(types[c], y_of(row, i % D)));
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
        CHECK_OK(ctx, dlrn_source_from_array(ctx, x, NULL, 20, 2, 0, 1, &source));
        cfg.store = types[c];
        dlrn_buffer *b = make_buffer(ctx, &cfg, &source);
        dlrn_status s = dlrn_buffer_next(b, &bx, &by, &n);
        CHECK_MSG(s == (c % 2 || c == 4 ? DLRN_OK : DLRN_ERR_VALUE), "case %d: %s", c,
                  dlrn_error(ctx));
        if (s) CHECK_STR(dlrn_error(ctx), "x, row 13, column 0");
        if (s) CHECK_STR(dlrn_error(ctx), c ? "BF16" : "F16");
        dlrn_buffer_destroy(b);
        dlrn_source_destroy(&source);
    }
    dlrn_context_destroy(ctx);
}

/* ---- Memory ---- */

static uint64_t stated_bytes(dlrn_context *ctx, const dlrn_buffer_config *cfg, int has_target) {
    uint64_t bytes = 0;
    CHECK_OK(ctx, dlrn_buffer_bytes(ctx, cfg, D, has_target ? D : 0, &bytes));
    return bytes;
}

TEST(never_more_memory_than_stated) {
    static const dlrn_dtype types[3] = {DLRN_F32, DLRN_F16, DLRN_BF16};
    counting count;
    dlrn_context *ctx = open_context(&count);
    for (int c = 0; c < 12; c++) {
        tape t;
        dlrn_source source = tape_source(&t, 1990, c & 1);
        dlrn_buffer_config cfg = config(c & 2 ? 190 : 33, c & 2 ? 3 : 5, 24, 0);
        cfg.store = types[c / 4];
        int64_t before = count.live, blocks = count.blocks,
                stated = (int64_t)stated_bytes(ctx, &cfg, c & 1);
        count.peak = count.live;
        dlrn_buffer *b = make_buffer(ctx, &cfg, &source);
        const float *x, *y;
        int64_t n, total = 0;
        while (dlrn_buffer_next(b, &x, &y, &n) == DLRN_OK) total += n;
        int64_t taken = count.peak - before;
        CHECK(total == 1990);
        CHECK_MSG(taken <= stated, "case %d: %d bytes taken, %d stated", c, (int)taken,
                  (int)stated);
        CHECK_MSG(taken > stated / 10 * 8, "case %d: %d bytes stated, only %d taken", c,
                  (int)stated, (int)taken);
        dlrn_buffer_destroy(b);
        CHECK(count.live == before && count.blocks == blocks);
    }
    dlrn_context_destroy(ctx);
    CHECK(!count.live && !count.blocks);
}

/* A segment of 32 MB and more begins with a huge page. It takes no more memory than stated, and a
   little smaller one none for that. */
TEST(a_large_segment_begins_with_a_huge_page) {
    enum { CAPACITY = 1024 };
    for (int64_t d = 16379; d <= 16380; d++) { /* 2 d + 8 bytes for each of 1024 rows, in f16 */
        counting count;
        dlrn_context *ctx = open_context(&count);
        float *rows = (float *)calloc((size_t)(3 * d), sizeof *rows);
        dlrn_source source;
        dlrn_buffer *b = NULL;
        dlrn_buffer_config cfg = config(CAPACITY / 10, 1, 2, 0);
        uint64_t stated = 0;
        cfg.capacity = CAPACITY;
        cfg.store = DLRN_F16;
        CHECK_OK(ctx, dlrn_source_from_array(ctx, rows, NULL, 3, d, 0, 1, &source));
        CHECK_OK(ctx, dlrn_buffer_bytes(ctx, &cfg, d, 0, &stated));
        const float *x, *y;
        int64_t n, before = count.live;
        count.peak = before;
        CHECK_OK(ctx, dlrn_buffer_create(ctx, &cfg, &source, DLRN_OWNED, &b));
        CHECK_OK(ctx, dlrn_buffer_next(b, &x, &y, &n));
        const int64_t taken = count.peak - before, rest = taken - CAPACITY * (2 * d + 8);
        CHECK_MSG(taken <= (int64_t)stated, "%d bytes taken, %d stated", (int)taken, (int)stated);
        if (d == 16380) CHECK((uintptr_t)b->segment[0] % ((uintptr_t)2 << 20) == 0);
        CHECK_MSG((rest > (int64_t)2 << 20) == (d == 16380), "%d bytes beside the rows", (int)rest);
        dlrn_buffer_destroy(b);
        free(rows);
        dlrn_context_destroy(ctx);
        CHECK(!count.live && !count.blocks);
    }
}

/* Memory comes as rows come: a large buffer over few rows takes little. */
TEST(few_rows_take_little_memory) {
    counting count;
    dlrn_context *ctx = open_context(&count);
    tape t;
    dlrn_source source = tape_source(&t, 500, 1);
    dlrn_buffer_config cfg = config(100000, 10, 50, 0);
    static int64_t got[MOST];
    int64_t before = count.live;
    dlrn_buffer *b = make_buffer(ctx, &cfg, &source);
    CHECK(drain(ctx, b, 50, got) == 500);
    int64_t taken = count.peak - before, stated = (int64_t)stated_bytes(ctx, &cfg, 1);
    CHECK_MSG(taken < stated / 20, "%d of %d bytes", (int)taken, (int)stated);
    dlrn_buffer_destroy(b);
    dlrn_context_destroy(ctx);
}

/* With the k-th allocation failing, for each k: told, nothing leaked, the source still its owner's.
 */
TEST(out_of_memory_at_every_allocation) {
    counting count;
    dlrn_context *ctx = open_context(&count);
    int64_t before = count.blocks, failures = 0;
    for (int64_t k = 1;; k++) {
        tape t;
        dlrn_source source = tape_source(&t, 2700, 1);
        dlrn_buffer_config cfg = config(250, 2, 10, 0);
        dlrn_buffer *b = NULL;
        const float *x, *y;
        int64_t n, total = 0;
        count.calls = 0, count.fail_at = k;
        dlrn_status s = dlrn_buffer_create(ctx, &cfg, &source, DLRN_OWNED, &b);
        int created = s == DLRN_OK;
        CHECK(created == (b != NULL));
        while (s == DLRN_OK && (s = dlrn_buffer_next(b, &x, &y, &n)) == DLRN_OK) total += n;
        count.fail_at = 0;
        if (s != DLRN_END) CHECK_STATUS(s, DLRN_ERR_MEMORY);
        if (s != DLRN_END) CHECK_STR(dlrn_error(ctx), "memory");
        dlrn_buffer_destroy(b);
        CHECK(count.blocks == before && t.destroyed == created);
        if (s == DLRN_END) {
            CHECK(total == 2700);
            break;
        }
        failures++;
    }
    CHECK_MSG(failures >= 8, "%d allocations", (int)failures);
    dlrn_context_destroy(ctx);
}

/* ---- Looking without taking; going on elsewhere ---- */

TEST(copies_take_nothing) {
    static int64_t got[2][MOST];
    dlrn_context *ctx = open_context(NULL);
    for (int looks = 0; looks < 2; looks++) {
        tape t;
        dlrn_source source = tape_source(&t, 300, 1);
        dlrn_buffer_config cfg = config(10, 2, 30, 5);
        dlrn_buffer *b = make_buffer(ctx, &cfg, &source);
        const float *bx, *by;
        int64_t n, total = 0, seen[300] = {0};
        float x[14 * D], y[14 * D];
        CHECK_OK(ctx, dlrn_buffer_next(b, &bx, &by, &n));
        for (int64_t i = 0; i < n; i++) got[looks][total++] = (int64_t)bx[i * D];
        for (int64_t start = 0; looks && start < 70; start += 14) {
            int64_t index[14];
            CHECK_OK(ctx, dlrni_buffer_read_ahead(b, 70));
            for (int64_t i = 0; i < 14; i++) index[i] = start + i;
            dlrni_buffer_copy(b, index, 14, x, start % 4 ? NULL : y);
            for (int64_t i = 0; i < 14; i++) {
                int64_t row = (int64_t)x[i * D];
                CHECK(x[i * D + 1] == x_of(row, 1) && (start % 4 || y[i * D + 2] == y_of(row, 2)) &&
                      !seen[row]++);
            }
        }
        for (int64_t i = 0; looks && i < 30; i++) CHECK(!seen[got[1][i]]); /* those are gone */
        CHECK(b->unread == 70);
        total += drain(ctx, b, 30, got[looks] + total);
        CHECK(total == 300);
        dlrn_buffer_destroy(b);
    }
    CHECK(!memcmp(got[0], got[1], 300 * sizeof **got));
    dlrn_context_destroy(ctx);
}

/* Without a target y is x; and what a buffer says of itself. */
TEST(a_buffer_described) {
    tape t;
    dlrn_context *ctx = open_context(NULL);
    dlrn_source source = tape_source(&t, 300, 0);
    dlrn_buffer_config cfg = config(10, 2, 30, 5);
    dlrn_buffer *b = make_buffer(ctx, &cfg, &source);
    static const int64_t index[2] = {7, 99};
    float x[2 * D], y[2 * D];
    uint64_t bytes;
    CHECK_OK(ctx, dlrni_buffer_read_ahead(b, 20));
    dlrni_buffer_copy(b, index, 2, x, y);
    dlrn_buffer_info info = dlrn_buffer_describe(b);
    CHECK_OK(ctx, dlrn_buffer_bytes(ctx, &cfg, D, 0, &bytes));
    CHECK(!memcmp(x, y, sizeof x) && (int64_t)x[0] == 7 && (int64_t)x[D] == 99);
    CHECK(info.unread == 100 && info.rows_read == 100 && info.capacity == 100);
    CHECK(info.d_in == D && info.d_out == 0 && info.max_bytes == bytes);
    dlrn_buffer_destroy(b);
    dlrn_context_destroy(ctx);
}

/* A buffer that is cleared goes on with the rows that its source has not given yet, in the order
   that it would have, shuffled or not. */
TEST(a_cleared_buffer_goes_on) {
    static int64_t got[MOST];
    for (int shuffle = 0; shuffle < 2; shuffle++) {
        dlrn_context *ctx = open_context(NULL);
        tape t;
        dlrn_source source = tape_source(&t, 700, 1);
        dlrn_buffer_config cfg = config(10, 1, 13, 5);
        cfg.shuffle = shuffle ? DLRN_ON : DLRN_OFF;
        dlrn_buffer *b = make_buffer(ctx, &cfg, &source);
        const float *x, *y;
        int64_t n;
        CHECK_OK(ctx, dlrn_buffer_next(b, &x, &y, &n));
        const int64_t read = dlrn_buffer_describe(b).rows_read;
        CHECK(dlrn_buffer_describe(b).unread > 0 || !shuffle);
        dlrn_buffer_clear(b);
        CHECK(dlrn_buffer_describe(b).unread == 0 && dlrn_buffer_describe(b).rows_read == read);
        n = drain(ctx, b, 13, got);
        CHECK(n == 700 - read);
        int64_t sum = 0;
        for (int64_t i = 0; i < n; i++) {
            CHECK(got[i] >= read && got[i] < 700);
            CHECK(shuffle || got[i] == read + i);
            sum += got[i];
        }
        CHECK(sum == (read + 699) * n / 2); /* each once */
        dlrn_buffer_destroy(b);
        dlrn_context_destroy(ctx);
    }
}

/* Without shuffling, rows beyond the next batch may be read ahead: their order stays, whatever the
   list of slots has gone through. */
TEST(read_ahead_in_order) {
    static int64_t got[MOST];
    dlrn_context *ctx = open_context(NULL);
    tape t;
    dlrn_source source = tape_source(&t, 700, 1);
    dlrn_buffer_config cfg = config(10, 1, 13, 5);
    cfg.shuffle = 0;
    dlrn_buffer *b = make_buffer(ctx, &cfg, &source);
    int64_t total = 0;
    for (int step = 0; total < 700; step++) {
        const float *x, *y;
        int64_t n;
        CHECK_OK(ctx, dlrni_buffer_read_ahead(b, step % 5 ? 0 : 20 * (step % 7)));
        CHECK(b->unread <= 100);
        CHECK_OK(ctx, dlrn_buffer_next(b, &x, &y, &n));
        for (int64_t i = 0; i < n; i++, total++) {
            got[total] = (int64_t)x[i * D];
            CHECK(got[total] == total && y[i * D + 2] == y_of(total, 2));
        }
    }
    dlrn_buffer_destroy(b);
    dlrn_context_destroy(ctx);
}

/* What a checkpoint keeps: the rest comes out the same, x and y, from a buffer that never saw the
   first part. */
TEST(a_state_carries_over) {
    static float x[1900 * D], y[1900 * D];
    static int64_t got[2][MOST];
    dlrn_context *ctx = open_context(NULL);
    for (int64_t k = 0; k < 1900 * D; k++) x[k] = x_of(k / D, k % D), y[k] = y_of(k / D, k % D);
    for (int c = 0; c < 4; c++) {
        dlrn_source source[2];
        dlrn_buffer_config cfg = config(150, 7, 90, 1);
        dlrn_buffer *b[2];
        dlrni_buffer_state state;
        const float *bx, *by;
        int64_t n;
        cfg.shuffle = c & 1;
        for (int k = 0; k < 2; k++) {
            CHECK_OK(ctx, dlrn_source_from_array(ctx, x, c & 2 ? y : NULL, 1900, D, c & 2 ? D : 0,
                                                 1, &source[k]));
            b[k] = make_buffer(ctx, &cfg, &source[k]);
        }
        for (int i = 0; i < 9; i++) CHECK_OK(ctx, dlrn_buffer_next(b[0], &bx, &by, &n));
        CHECK_OK(ctx, dlrni_buffer_export(b[0], &state));
        CHECK_OK(ctx, dlrni_buffer_import(b[1], &state));
        dlrni_buffer_state_free(ctx, &state);
        for (int k = 0; k < 2; k++) CHECK(drain(ctx, b[k], 90, got[k]) == 1900 - 9 * 90);
        CHECK(!memcmp(got[0], got[1], (1900 - 9 * 90) * sizeof **got));
        for (int k = 0; k < 2; k++) dlrn_buffer_destroy(b[k]), dlrn_source_destroy(&source[k]);
    }
    dlrn_context_destroy(ctx);
}

/* More unread rows than a batch, in the source's order: as after resuming with smaller batches. */
TEST(order_is_kept_where_rows_are_left_over) {
    static int64_t got[MOST];
    static float x[500 * D];
    dlrn_context *ctx = open_context(NULL);
    dlrn_source source;
    dlrn_buffer_config large = config(50, 50, 400, 0), small = config(50, 50, 30, 0);
    dlrni_buffer_state state;
    for (int64_t k = 0; k < 500 * D; k++) x[k] = x_of(k / D, k % D);
    CHECK_OK(ctx, dlrn_source_from_array(ctx, x, NULL, 500, D, 0, 1, &source));
    large.shuffle = small.shuffle = 0;
    dlrn_buffer *a = make_buffer(ctx, &large, &source), *b = make_buffer(ctx, &small, &source);
    CHECK_OK(ctx, dlrni_buffer_read_ahead(a, 0));
    CHECK(a->unread == 400);
    CHECK_OK(ctx, dlrni_buffer_export(a, &state));
    CHECK_OK(ctx, dlrni_buffer_import(b, &state));
    dlrni_buffer_state_free(ctx, &state);
    CHECK(drain(ctx, b, 30, got) == 500);
    for (int64_t i = 0; i < 500; i++) CHECK(got[i] == i);
    dlrn_buffer_destroy(a);
    dlrn_buffer_destroy(b);
    dlrn_source_destroy(&source);
    dlrn_context_destroy(ctx);
}

/* ---- What goes wrong ---- */

TEST(what_the_source_says_is_passed_on) {
    dlrn_context *ctx = open_context(NULL);
    static const dlrn_status ends[3] = {DLRN_ERR_CALLBACK, DLRN_STOPPED, DLRN_ERR_IO};
    for (int c = 0; c < 3; c++) {
        tape t;
        dlrn_source source = tape_source(&t, 130, 0);
        dlrn_buffer_config cfg = config(10, 2, 20, 0);
        dlrn_buffer *b = make_buffer(ctx, &cfg, &source);
        const float *x, *y;
        int64_t n, total = 0, got[MOST];
        dlrn_status s;
        t.at_end = ends[c], t.why = c == 2 ? NULL : "the tape is torn";
        while ((s = dlrn_buffer_next(b, &x, &y, &n)) == DLRN_OK) total += n;
        CHECK_STATUS(s, ends[c]);
        CHECK_STR(dlrn_error(ctx), c == 2 ? "the source failed: a file cannot be"
                                          : "the source failed: the tape is torn");
        CHECK(!n && !x && !y && b->unread == 130 - total); /* nothing is lost: */
        t.at_end = DLRN_END;
        CHECK(drain(ctx, b, 20, got) == 130 - total);
        dlrn_buffer_destroy(b);
    }
    dlrn_context_destroy(ctx);
}

static dlrn_status nowhere(void *user, uint64_t *position) {
    (void)user, (void)position;
    return DLRN_ERR_CALLBACK;
}

static dlrn_status not_there(void *user, uint64_t position) {
    (void)user, (void)position;
    return DLRN_ERR_CALLBACK;
}

/* A source need not have words, nor few of them, and its place may fail to be told or to be found.
 */
TEST(what_the_source_cannot_do_is_told) {
    static char long_words[3000];
    dlrn_context *ctx = open_context(NULL);
    dlrn_buffer_config cfg = config(10, 2, 20, 0);
    const float *x, *y;
    int64_t n;
    tape t;
    memset(long_words, 'w', sizeof long_words - 1);
    for (int words = 0; words < 2; words++) {
        dlrn_source source = tape_source(&t, 0, 0);
        t.at_end = DLRN_ERR_CALLBACK;
        t.why = long_words;
        if (!words) source.error = NULL;
        dlrn_buffer *b = make_buffer(ctx, &cfg, &source);
        CHECK_STATUS(dlrn_buffer_next(b, &x, &y, &n), DLRN_ERR_CALLBACK);
        CHECK_STR(dlrn_error(ctx),
                  words ? "the source failed: wwwwwww" : "the source failed: a callback failed");
        dlrn_buffer_destroy(b);
    }
    dlrni_buffer_state state;
    dlrn_source source = tape_source(&t, 130, 0);
    source.position = nowhere;
    dlrn_buffer *b = make_buffer(ctx, &cfg, &source);
    CHECK_OK(ctx, dlrn_buffer_next(b, &x, &y, &n));
    CHECK_OK(ctx, dlrni_buffer_export(b, &state)); /* one without the other is none */
    CHECK(!state.has_position && state.rows == 80);
    dlrni_buffer_state_free(ctx, &state);
    dlrn_buffer_destroy(b);
    source = tape_source(&t, 130, 0);
    source.position = nowhere;
    source.seek = not_there;
    b = make_buffer(ctx, &cfg, &source);
    CHECK_STATUS(dlrni_buffer_export(b, &state), DLRN_ERR_CALLBACK);
    CHECK_STR(dlrn_error(ctx), "the source, asked for its position, failed: ");
    state.has_position = 1;
    state.source_position = 17;
    CHECK_STATUS(dlrni_buffer_import(b, &state), DLRN_ERR_CALLBACK);
    CHECK_STR(dlrn_error(ctx), "the source, on its way to 17, failed: a callback failed");
    dlrni_buffer_state_free(ctx, &state);
    dlrn_buffer_destroy(b);
    dlrn_context_destroy(ctx);
}

/* A filling that the source breaks off goes on where it was, also from a saved state: no draw is
   another one. */
TEST(a_filling_that_is_broken_off_goes_on) {
    static int64_t want[MOST], got[MOST];
    dlrn_context *ctx = open_context(NULL);
    for (int saved = 0; saved < 2; saved++) {
        tape t[2];
        dlrn_source source[2] = {tape_source(&t[0], 900, 0), tape_source(&t[1], 900, 0)};
        dlrn_buffer_config cfg = config(20, 1, 30, 5);
        dlrn_buffer *whole = make_buffer(ctx, &cfg, &source[0]),
                    *b = make_buffer(ctx, &cfg, &source[1]);
        dlrni_buffer_state state;
        const float *x, *y;
        int64_t n, total = 0;
        CHECK(drain(ctx, whole, 30, want) == 900);
        t[1].at_end = DLRN_STOPPED;
        for (t[1].rows = 150;;
             t[1].rows += 60) { /* stops in the first filling, and then in each further one */
            dlrn_status s = dlrn_buffer_next(b, &x, &y, &n);
            for (int64_t i = 0; s == DLRN_OK && i < n; i++) got[total++] = (int64_t)x[i * D];
            if (s == DLRN_OK) t[1].rows -= 60;
            if (t[1].rows >= 840) break;
            if (s == DLRN_OK) continue;
            CHECK_STATUS(s, DLRN_STOPPED);
            CHECK_STATUS(dlrni_buffer_read_ahead(b, 0), DLRN_STOPPED);
            if (!saved) continue;
            CHECK_OK(ctx, dlrni_buffer_export(b, &state));
            dlrn_buffer_destroy(b);
            b = make_buffer(ctx, &cfg, &source[1]);
            CHECK_OK(ctx, dlrni_buffer_import(b, &state));
            dlrni_buffer_state_free(ctx, &state);
        }
        CHECK(total > 300);
        t[1].rows = 900, t[1].at_end = DLRN_END;
        CHECK(drain(ctx, b, 30, got + total) == 900 - total);
        CHECK(!memcmp(got, want, 900 * sizeof *got));
        dlrn_buffer_destroy(whole);
        dlrn_buffer_destroy(b);
    }
    dlrn_context_destroy(ctx);
}

TEST(a_source_that_lies_is_told_off) {
    static float bad[60 * D];
    dlrn_context *ctx = open_context(NULL);
    dlrn_buffer_config cfg = config(10, 2, 20, 0);
    dlrn_source source;
    const float *x, *y;
    int64_t n;
    tape t;
    for (int lie = -1; lie <= 1; lie += 2) {
        source = tape_source(&t, 130, 0);
        t.piece = lie < 0 ? 1 : 0, t.lie = lie;
        dlrn_buffer *b = make_buffer(ctx, &cfg, &source);
        CHECK_STATUS(dlrn_buffer_next(b, &x, &y, &n), DLRN_ERR_CALLBACK);
        CHECK_STR(dlrn_error(ctx),
                  lie < 0 ? "expected 1 to 20 rows, found 0" : "expected 1 to 20 rows, found 21");
        dlrn_buffer_destroy(b);
    }
    for (int c = 0; c < 2; c++) {
        static const float good[60 * D] = {0};
        bad[47 * D + 2] = c ? INFINITY : NAN;
        CHECK_OK(ctx, dlrn_source_from_array(ctx, c ? good : bad, c ? bad : NULL, 60, D, c ? D : 0,
                                             1, &source));
        dlrn_buffer *b = make_buffer(ctx, &cfg, &source);
        CHECK_STATUS(dlrn_buffer_next(b, &x, &y, &n), DLRN_ERR_VALUE);
        CHECK_STR(dlrn_error(ctx), c ? "y, row 47, column 2" : "x, row 47, column 2");
        dlrn_buffer_destroy(b);
        dlrn_source_destroy(&source);
    }
    dlrn_context_destroy(ctx);
}

/* Of 200 rows every third is not finite, in x or in its target; the others come in their order, and
   are counted. A source of nothing else is an error in the end, and its own errors are passed on.
 */
TEST(rows_that_are_not_finite_are_left_out) {
    enum { N = 200 };
    static float x[N * D], y[N * D];
    dlrn_context *ctx = open_context(NULL);
    dlrn_source source, finite;
    float got_x[N * D], got_y[N * D];
    int64_t n, skipped = -1, come;
    uint64_t position[2];
    for (int i = 0; i < N * D; i++) x[i] = (float)i, y[i] = (float)-i;
    for (int i = 0; i < N; i += 3) (i % 2 ? x : y)[i * D + i % D] = i % 4 ? NAN : -INFINITY;
    CHECK_OK(ctx, dlrn_source_from_array(ctx, x, y, N, D, D, 1, &source));
    CHECK_OK(ctx, dlrn_source_finite(ctx, &source, DLRN_OWNED, &skipped, &finite));
    CHECK(finite.d_in == D && finite.d_out == D && skipped == 0);
    for (come = 0; come < N;) {
        dlrn_status s = finite.read(finite.user, 7, got_x + come * D, got_y + come * D, &n);
        if (s == DLRN_END) break;
        CHECK_OK(ctx, s);
        CHECK(n > 0 && n <= 7);
        come += n;
        if (come <= 40) CHECK_OK(ctx, finite.position(finite.user, &position[0]));
        if (come <= 40) position[1] = (uint64_t)come;
    }
    CHECK(come == N - 67 && skipped == 67);
    for (int i = 0, k = 0; i < N; i++) {
        if (i % 3 == 0) continue;
        CHECK(!memcmp(got_x + k * D, x + i * D, D * sizeof *x) &&
              !memcmp(got_y + k * D, y + i * D, D * sizeof *y));
        k++;
    }
    CHECK_OK(ctx,
             finite.seek(finite.user, position[0])); /* the next row is the one that came next */
    CHECK_OK(ctx, finite.read(finite.user, 7, got_x, got_y, &n));
    CHECK(!memcmp(got_x, x + (position[1] / 2 * 3 + 1 + position[1] % 2) * D, D * sizeof *x));
    dlrn_source_destroy(&finite);
    /* the same of x alone */
    CHECK_OK(ctx, dlrn_source_from_array(ctx, x, NULL, N, D, 0, 1, &source));
    CHECK_OK(ctx, dlrn_source_finite(ctx, &source, DLRN_OWNED, &skipped, &finite));
    CHECK_OK(ctx, finite.read(finite.user, N, got_x, NULL, &n));
    CHECK(n == N - skipped && skipped == 33);
    dlrn_source_destroy(&finite);
    /* through a buffer, and from an endless source of nothing but NaN */
    for (int i = 0; i < N * D; i++) x[i] = NAN;
    CHECK_OK(ctx, dlrn_source_from_array(ctx, x, NULL, N, D, 0, 0, &source));
    CHECK_OK(ctx, dlrn_source_finite(ctx, &source, DLRN_OWNED, NULL, &finite));
    dlrn_buffer_config cfg = config(10, 2, 20, 0);
    dlrn_buffer *b = make_buffer(ctx, &cfg, &finite);
    const float *bx, *by;
    CHECK_STATUS(dlrn_buffer_next(b, &bx, &by, &n), DLRN_ERR_VALUE);
    CHECK_STR(dlrn_error(ctx), "expected finite rows, found a million in a row that are not");
    dlrn_buffer_destroy(b);
    dlrn_source_destroy(&finite);
    /* what the other says is passed on: an error with its text, a wrong count, no way back */
    tape t;
    source = tape_source(&t, 130, 0);
    source.seek = NULL;
    CHECK_OK(ctx, dlrn_source_finite(ctx, &source, DLRN_BORROWED, NULL, &finite));
    CHECK(finite.seek == NULL && (finite.position != NULL) == (source.position != NULL));
    t.lie = 1;
    b = make_buffer(ctx, &cfg, &finite);
    CHECK_STATUS(dlrn_buffer_next(b, &bx, &by, &n), DLRN_ERR_CALLBACK);
    CHECK_STR(dlrn_error(ctx), "expected 1 to 20 rows, found 21");
    dlrn_buffer_destroy(b);
    dlrn_source_destroy(&finite);
    t.at = t.rows, t.at_end = DLRN_ERR_CALLBACK, t.why = "the tape is torn";
    for (int words = 1; words >= 0; words--) {
        if (!words) source.error = NULL;
        CHECK_OK(ctx, dlrn_source_finite(ctx, &source, DLRN_BORROWED, NULL, &finite));
        b = make_buffer(ctx, &cfg, &finite);
        CHECK_STATUS(dlrn_buffer_next(b, &bx, &by, &n), DLRN_ERR_CALLBACK);
        CHECK_STR(dlrn_error(ctx), words ? "the source failed: the tape is torn"
                                         : "the source failed: a callback failed");
        dlrn_buffer_destroy(b);
        dlrn_source_destroy(&finite);
    }
    source.d_in = 0;
    CHECK_STATUS(dlrn_source_finite(ctx, &source, DLRN_BORROWED, NULL, &finite), DLRN_ERR_ARGUMENT);
    source.read = NULL;
    CHECK_STATUS(dlrn_source_finite(ctx, &source, DLRN_BORROWED, NULL, &finite), DLRN_ERR_ARGUMENT);
    dlrn_context_destroy(ctx);
}

/* A filter in place of its source leaves it alone where it fails. */
TEST(a_filter_in_place_of_its_source) {
    tape t;
    dlrn_context *ctx = open_context(NULL);
    dlrn_source source = tape_source(&t, 10, 0);
    source.read = NULL;
    CHECK_STATUS(dlrn_source_finite(ctx, &source, DLRN_OWNED, NULL, &source), DLRN_ERR_ARGUMENT);
    CHECK(source.user == &t);
    dlrn_context_destroy(ctx);
}

/* One wrong field at a time; the source stays the caller's. */
TEST(a_configuration_out_of_range_is_refused) {
    tape t;
    dlrn_context *ctx = open_context(NULL);
    dlrn_source source = tape_source(&t, 10, 0), none = source;
    const dlrn_buffer_config good = dlrn_buffer_defaults();
    dlrn_buffer_config cfg;
    dlrn_buffer *b = NULL;
    uint64_t bytes;
    CHECK(good.capacity == 3840000 && good.read_rows == 65536 && good.batch_rows == 8192);
    CHECK(good.shuffle == 1 && good.store == DLRN_F32 && good.seed == 0);
    CHECK_OK(ctx, dlrn_buffer_bytes(ctx, &good, 512, 0, &bytes));
    CHECK(bytes > 7864320000u && bytes < 8200000000u); /* 3.84 million rows */
#define REFUSE(change, text)                                                                       \
    do {                                                                                           \
        cfg = good;                                                                                \
        change;                                                                                    \
        CHECK_STATUS(dlrn_buffer_create(ctx, &cfg, &source, DLRN_OWNED, &b), DLRN_ERR_ARGUMENT);   \
        CHECK_STR(dlrn_error(ctx), text);                                                          \
        CHECK(!b);                                                                                 \
        CHECK_STATUS(dlrn_buffer_bytes(ctx, &cfg, D, 0, &bytes), DLRN_ERR_ARGUMENT);               \
    } while (0)
    CHECK_STATUS(dlrn_buffer_bytes(ctx, &good, 0, 0, &bytes), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "d_in must be positive");
    dlrn_source flat = source;
    flat.d_in = 0;
    CHECK_STATUS(dlrn_buffer_create(ctx, &good, &flat, DLRN_OWNED, &b), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "no read callback or no width");
    REFUSE(cfg.capacity = 0, "capacity");
    REFUSE(cfg.read_rows = -1, "read_rows");
    REFUSE(cfg.batch_rows = 0, "batch_rows");
    REFUSE(cfg.batch_rows = 30000 * 128 + 1, "cannot give batches of 3840001");
    REFUSE(cfg.store = DLRN_F64, "F32, F16 or BF16");
    REFUSE(cfg.capacity = INT64_MAX / 2, "overflows");
    REFUSE(cfg.capacity = INT64_MAX / 4, "overflows");
#undef REFUSE
    none.read = NULL;
    CHECK_STATUS(dlrn_buffer_create(ctx, &good, &none, DLRN_OWNED, &b), DLRN_ERR_ARGUMENT);
    CHECK(!t.destroyed);
    cfg = config(1, 1, 1, 0);
    CHECK_OK(ctx, dlrn_buffer_create(ctx, &cfg, &source, DLRN_OWNED, &b));
    dlrn_buffer_destroy(b);
    CHECK(t.destroyed == 1); /* by the buffer that owned it */
    dlrn_buffer_destroy(NULL);
    dlrn_context_destroy(ctx);
}

/* ---- Sources of arrays ---- */

/* The next rows of a source are first, first + 1, ... modulo `rows`; reads until `count` have come,
   at most `most` at a time. In these sources row i holds 8 i, 8 i + 1, ...; y the negatives: exact
   in half precision. */
static void expect_rows(dlrn_context *ctx, const dlrn_source *s, int64_t first, int64_t count,
                        int64_t rows, int64_t most) {
    float x[64 * D], y[64 * D];
    while (count > 0) {
        int64_t n = 0;
        CHECK_OK(ctx, s->read(s->user, count < most ? count : most, x, s->d_out ? y : NULL, &n));
        CHECK(n > 0 && n <= most && n <= count);
        for (int64_t k = 0; k < n * D; k++) {
            float v = (float)(8 * ((first + k / D) % rows) + k % D);
            CHECK_MSG(x[k] == v, "row %d: %g, expected %g", (int)(first + k / D), (double)x[k],
                      (double)v);
            CHECK(!s->d_out || y[k] == -v);
        }
        first += n, count -= n;
    }
}

static void expect_end(const dlrn_source *s) {
    float x[64 * D], y[64 * D];
    int64_t n = 7;
    CHECK_STATUS(s->read(s->user, 5, x, s->d_out ? y : NULL, &n), DLRN_END);
    CHECK(n == 0);
}

/* From the start to the end of `epochs` (0: without end), and back. */
static void check_source(dlrn_context *ctx, dlrn_source *s, int64_t rows, int64_t epochs) {
    uint64_t here;
    int64_t all = (epochs ? epochs : 5) * rows;
    CHECK(s->d_in == D);
    expect_rows(ctx, s, 0, rows + 4, rows, 6);
    CHECK_OK(ctx, s->position(s->user, &here));
    expect_rows(ctx, s, rows + 4, all - rows - 4, rows, 64);
    if (epochs) expect_end(s);
    CHECK_OK(ctx, s->seek(s->user, here));
    expect_rows(ctx, s, rows + 4, all - rows - 4, rows, 1);
    if (epochs) expect_end(s);
    CHECK_OK(ctx, s->seek(s->user, 0));
    expect_rows(ctx, s, 0, 9, rows, 64);
    dlrn_source_destroy(s);
    CHECK(!s->read);
    dlrn_source_destroy(s); /* zeroed: nothing */
}

TEST(arrays_in_memory) {
    enum { rows = 13 };
    static float x[rows * D], y[rows * D];
    static const int64_t epochs[3] = {2, 3, 0};
    dlrn_context *ctx = open_context(NULL);
    dlrn_source s;
    for (int k = 0; k < rows * D; k++) x[k] = (float)(8 * (k / D) + k % D), y[k] = -x[k];
    for (int c = 0; c < 6; c++) {
        CHECK_OK(ctx, dlrn_source_from_array(ctx, x, c & 1 ? y : NULL, rows, D, c & 1 ? D : 0,
                                             epochs[c / 2], &s));
        CHECK(s.d_out == (c & 1 ? D : 0));
        check_source(ctx, &s, rows, epochs[c / 2]);
    }
    CHECK_OK(ctx, dlrn_source_from_array(ctx, x, NULL, rows, D, 0, 1, &s));
    expect_rows(ctx, &s, 0, rows, rows, 5);
    expect_end(&s);
    CHECK(s.seek(s.user, UINT64_MAX) != DLRN_OK);
    dlrn_source_destroy(&s);
    CHECK_OK(ctx,
             dlrn_source_from_array(ctx, x, NULL, 0, D, 0, 0, &s)); /* no rows, without end: ends */
    expect_end(&s);
    dlrn_source_destroy(&s);
    CHECK_STATUS(dlrn_source_from_array(ctx, NULL, NULL, 1, D, 0, 1, &s), DLRN_ERR_ARGUMENT);
    CHECK_STATUS(dlrn_source_from_array(ctx, x, NULL, -1, D, 0, 1, &s), DLRN_ERR_ARGUMENT);
    CHECK_STATUS(dlrn_source_from_array(ctx, x, NULL, 1, 0, 0, 1, &s), DLRN_ERR_ARGUMENT);
    s.read = tape_read;
    CHECK_STATUS(dlrn_source_from_array(ctx, x, NULL, 1, D, 0, -1, &s), DLRN_ERR_ARGUMENT);
    CHECK(!s.read); /* on failure there is nothing to destroy, and destroying it is fine */
    dlrn_source_destroy(NULL);
    dlrn_context_destroy(ctx);
}

/* A .npy [rows][D] of sign * (8 i + j), written byte by byte as the format's page has it; width 2,
   4 or 8. */
static char *write_npy(const char *name, int width, int fortran, int rows, float sign) {
    char *path = tmp_path(name), head[128];
    FILE *file = fopen(path, "wb");
    CHECK_MSG(file != NULL, "cannot write %s", path);
    memset(head, ' ', sizeof head);
    memcpy(head, "\x93NUMPY\x01\x00\x76\x00", 10);
    int n = snprintf(head + 10, 118, "{'descr': '<f%d', 'fortran_order': %s, 'shape': (%d, %d), }",
                     width, fortran ? "True" : "False", rows, D);
    head[10 + n] = ' ';
    head[127] = '\n';
    fwrite(head, 1, sizeof head, file);
    for (int k = 0; k < rows * D; k++) {
        int i = fortran ? k % rows : k / D, j = fortran ? k / rows : k % D;
        float v = sign * (float)(8 * i + j);
        double wide = (double)v;
        uint64_t bits;
        memcpy(&bits, &wide, sizeof bits);
        if (width < 8) bits = width == 2 ? dlrni_f32_to_f16(v) : dlrni_bits_of_float(v);
        for (int byte = 0; byte < width; byte++) fputc((int)(bits >> 8 * byte & 255), file);
    }
    CHECK(fclose(file) == 0);
    return path;
}

/* The files at x and y, or NULL, as a source. */
static dlrn_status open_files(dlrn_context *ctx, const char *x, const char *y, int64_t epochs,
                              dlrn_source *out) {
    dlrn_source_desc desc = {0};
    desc.paths = &x, desc.n_paths = 1;
    desc.target_paths = y ? &y : NULL, desc.n_target_paths = y != NULL;
    desc.epochs = epochs;
    return dlrn_source_open(ctx, &desc, out);
}

TEST(arrays_in_npy_files) {
    static const int width[6] = {4, 4, 2, 2, 8, 8};
    dlrn_context *ctx = open_context(NULL);
    dlrn_source s;
    for (int c = 0; c < 12; c++) {
        char *x = write_npy("buffer_x.npy", width[c / 2], c & 1, 19, 1);
        char *y = write_npy("buffer_y.npy", width[(c / 2 + 2) % 6], !(c & 1), 19,
                            -1); /* of another type and order */
        CHECK_OK(ctx, open_files(ctx, x, c & 2 ? y : NULL, c < 6 ? 2 : 0, &s));
        CHECK(s.d_out == (c & 2 ? D : 0));
        check_source(ctx, &s, 19, c < 6 ? 2 : 0);
    }
    CHECK_OK(ctx, open_files(ctx, write_npy("buffer_x.npy", 4, 0, 0, 1), NULL, 0, &s));
    expect_end(&s);
    dlrn_source_destroy(&s);
    dlrn_context_destroy(ctx);
}

TEST(wrong_files_are_named) {
    dlrn_context *ctx = open_context(NULL);
    dlrn_source s;
    char *x = write_npy("buffer_x.npy", 4, 0, 19, 1),
         *other = write_npy("buffer_z.npy", 4, 0, 18, 1), text[64] = "";
    CHECK_STATUS(open_files(ctx, x, other, 1, &s), DLRN_ERR_SHAPE);
    CHECK_STR(dlrn_error(ctx),
              "buffer_z.npy: expected 19 rows as in build/tmp/buffer_x.npy, found 18");
    CHECK(!s.read && !s.destroy);
    CHECK_STATUS(open_files(ctx, "build/tmp/no_such.npy", NULL, 1, &s), DLRN_ERR_IO);
    CHECK_STR(dlrn_error(ctx), "build/tmp/no_such.npy");
    CHECK_STATUS(open_files(ctx, x, "build/tmp/no_such.npy", 1, &s), DLRN_ERR_IO);
    CHECK_STATUS(open_files(ctx, "tests/golden/forward.npz", NULL, 1, &s), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "forward.npz: expected the name of one of its");
    s.read = tape_read;
    CHECK_STATUS(open_files(ctx, x, NULL, -1, &s), DLRN_ERR_ARGUMENT);
    const dlrn_tensor_out wide = {"", DLRN_F32, 2, {0, (int64_t)INT32_MAX + 1}, NULL};
    CHECK_OK(ctx, dlrn_archive_write(ctx, "build/tmp/buffer_wide.npy", &wide, 1, NULL));
    CHECK_STATUS(open_files(ctx, "build/tmp/buffer_wide.npy", NULL, 1, &s), DLRN_ERR_SHAPE);
    CHECK_STR(dlrn_error(ctx),
              "buffer_wide.npy: expected rows of 1 to 2147483647 numbers, found 2147483648");
    CHECK(!s.read);
    snprintf(text, sizeof text, "no .npy at all");
    CHECK_OK(ctx, dlrn_file_write(ctx, "build/tmp/buffer_bad.npy", text, sizeof text));
    CHECK_STATUS(open_files(ctx, "build/tmp/buffer_bad.npy", NULL, 1, &s), DLRN_ERR_FORMAT);
    dlrn_context_destroy(ctx);
}

/* The whole way: a half-precision file, three times through it, shuffled. */
TEST(epochs_through_a_buffer) {
    dlrn_context *ctx = open_context(NULL);
    dlrn_source s;
    dlrn_buffer_config cfg = config(3, 1, 8, 0);
    dlrn_buffer *b = NULL;
    const float *x, *y;
    int64_t n, times[19] = {0};
    dlrn_status st;
    CHECK_OK(ctx, open_files(ctx, write_npy("buffer_x.npy", 2, 1, 19, 1), NULL, 3, &s));
    cfg.store = DLRN_F16;
    CHECK_OK(ctx,
             dlrn_buffer_create(ctx, &cfg, &s, DLRN_OWNED, &b)); /* the buffer closes the file */
    while ((st = dlrn_buffer_next(b, &x, &y, &n)) == DLRN_OK)
        for (int64_t i = 0; i < n; i++) times[(int)x[i * D] / 8]++;
    CHECK_STATUS(st, DLRN_END);
    for (int i = 0; i < 19; i++) CHECK_MSG(times[i] == 3, "row %d came %d times", i, (int)times[i]);
    dlrn_buffer_destroy(b);
    dlrn_context_destroy(ctx);
}

/* ---- What is done fast, against what is plain ---- */

/* A list, one draw after the other; the buffer has several segments of more than the least size,
   and two threads. */
TEST(a_batch_is_what_a_plain_list_gives) {
    enum { ROWS = 90000, CAPACITY = 70000, BATCH = 500 };
    static int32_t list[CAPACITY];
    dlrn_context_config threads = {0};
    dlrn_context *ctx = NULL;
    threads.threads = 2;
    CHECK_STATUS(dlrn_context_create(&threads, &ctx), DLRN_OK);
    tape t;
    dlrn_source source = tape_source(&t, ROWS, 1);
    dlrn_buffer_config cfg = config(CAPACITY / 10, 100, BATCH, 5);
    dlrn_buffer *b = make_buffer(ctx, &cfg, &source);
    dlrn_rng rng = {5, UINT64_MAX, 0};
    const float *x, *y;
    int64_t n, held = 0, came = 0, wrong = 0, total = 0;
    while (dlrn_buffer_next(b, &x, &y, &n) == DLRN_OK) {
        if (held < CAPACITY / 2)
            while (held < CAPACITY && came < ROWS) list[held++] = (int32_t)came++;
        for (int64_t i = 0; i < n; i++) {
            int64_t at = (int64_t)dlrn_rng_below(&rng, (uint64_t)held), row = list[at];
            list[at] = list[--held];
            for (int64_t c = 0; c < D; c++)
                wrong += x[i * D + c] != x_of(row, c) || y[i * D + c] != y_of(row, c);
        }
        total += n;
    }
    CHECK_MSG(!wrong && total == ROWS, "%d numbers differ in %d rows", (int)wrong, (int)total);
    dlrn_buffer_destroy(b);
    dlrn_context_destroy(ctx);
}

TEST(drawing_below_spares_a_division_and_no_number) {
    const uint64_t half = (uint64_t)1 << 63,
                   sizes[] = {2, 3, 1000, half - 1, half, half + 1, half + half / 2, UINT64_MAX};
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        dlrn_rng fast = {9, k, 0}, plain = fast;
        for (int i = 0; i < 200; i++) {
            uint64_t limit = UINT64_MAX - UINT64_MAX % sizes[k], u;
            do u = dlrni_rng_u64(&plain);
            while (u >= limit);
            CHECK(dlrn_rng_below(&fast, sizes[k]) == u % sizes[k] && fast.counter == plain.counter);
        }
    }
}

/* The same numbers as one by one, in every set, at every length up to some vectors, where the
   counter passes 2^32 and 2^64; nothing behind them changes. */
TEST(random_numbers_come_many_at_a_time_in_every_set) {
    enum { N = 40 };
    static const uint64_t starts[] = {0, 0xffffffffu - 20, UINT64_MAX - 20};
    uint64_t out[N + 1];
    const char *name;
    for (int set = 0; (name = test_kernels(set)) != NULL; set++) {
        dlrn_context_config cfg = {0};
        dlrn_context *ctx = NULL;
        cfg.kernels = name;
        CHECK_STATUS(dlrn_context_create(&cfg, &ctx), DLRN_OK);
        for (int64_t n = 0; n <= N; n++)
            for (int k = 0; k < 3; k++) {
                const dlrn_rng rng = {0x123456789abcdef0u, UINT64_MAX - (uint64_t)n, starts[k]};
                dlrn_rng plain = rng;
                out[n] = 42;
                ctx->k->random(&rng, n, out);
                CHECK(out[n] == 42);
                for (int64_t i = 0; i < n; i++)
                    CHECK_MSG(out[i] == dlrni_rng_u64(&plain), "%s: %d of %d", name, (int)i,
                              (int)n);
            }
        dlrn_context_destroy(ctx);
    }
}

/* Draws below a limit that falls: as one by one, up to the last entry, and where half of the
   numbers are drawn again. */
TEST(draws_come_many_at_a_time) {
    const uint64_t half = (uint64_t)1 << 63,
                   sizes[] = {1, 2, 3, 200, 201, 5000, half - 1, half + 1, half + half / 2};
    dlrn_context *ctx = open_context(NULL);
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        const int64_t n = sizes[k] < 200 ? (int64_t)sizes[k] : 200;
        dlrn_rng many = {9, k, 0}, plain = many;
        uint64_t out[200];
        dlrni_draw_below(ctx->k, &many, sizes[k], n, out);
        for (int64_t i = 0; i < n; i++)
            CHECK(out[i] == dlrn_rng_below(&plain, sizes[k] - (uint64_t)i));
        CHECK(many.counter == plain.counter);
    }
    dlrn_context_destroy(ctx);
}

/* Every number of 16 bits, at every length up to some blocks, by every set of kernels; nothing
   behind them changes. */
TEST(widening_is_exact_in_every_set) {
    static uint16_t half[65536 + 1];
    static float out[65536 + 1];
    const char *name;
#ifdef __i386__
    enum {
        x87 = 1
    }; /* a float is returned in a register that makes a signalling NaN a quiet one */
#else
    enum { x87 = 0 };
#endif
    for (int i = 0; i < 65536; i++)
        half[i + 1] = (uint16_t)(i * 257 + 12345); /* odd: each comes once */
    for (int set = 0; (name = test_kernels(set)) != NULL; set++)
        for (int c = 0; c < 2; c++) {
            dlrn_context_config cfg = {0};
            dlrn_context *ctx = NULL;
            cfg.kernels = name;
            CHECK_STATUS(dlrn_context_create(&cfg, &ctx), DLRN_OK);
            for (int64_t n = 0; n <= 65536; n = n == 100 ? 65536 : n + 1)
                for (int64_t first = 0; first + n <= 65536; first += n < 65536 ? 997 : 1) {
                    out[0] = 0;
                    out[n] = 42;
                    ctx->k->widen(c ? DLRN_BF16 : DLRN_F16, (const char *)(half + 1 + first), out,
                                  n);
                    for (int64_t i = 0; i < n; i++) {
                        uint16_t h = half[1 + first + i];
                        float want = c ? dlrni_bf16_to_f32(h) : dlrni_f16_to_f32(h);
                        if (x87 && isnan(want) && isnan(out[i])) continue;
                        CHECK_MSG(!memcmp(&out[i], &want, 4), "%s: %04x of %d", name, h, (int)n);
                    }
                    CHECK(out[n] == 42);
                }
            dlrn_context_destroy(ctx);
        }
}

/* Rows of every length up to some vectors, by every set, into the caches and past them; nothing
   beside them changes. 21 rows: more than are prefetched at a time. */
TEST(rows_are_fetched_exactly_in_every_set) {
    enum { N = 21, LEN = 304 };
    static const dlrn_dtype types[] = {DLRN_F32, DLRN_F16, DLRN_BF16};
    static uint32_t bits[N * LEN];
    static float room[N * LEN + 32];
    const char *from[N], *name;
    float *to[N], *out = room + (64 - (uintptr_t)room % 64) % 64 / sizeof *room;
    dlrn_rng rng = {3, 4, 0};
    /* every bit but the lowest of the exponents: numbers, without NaN, which x87 may change */
    for (int i = 0; i < N * LEN; i++) bits[i] = (uint32_t)dlrni_rng_u64(&rng) & 0xbf7fbf7fu;
    for (int set = 0; (name = test_kernels(set)) != NULL; set++)
        for (int t = 0; t < 3; t++)
            for (int64_t n = 1; n <= LEN; n += n < 40 ? 1 : 8) {
                dlrn_context_config cfg = {0};
                dlrn_context *ctx = NULL;
                const int past = n % 16 == 0, size = t ? 2 : 4;
                cfg.kernels = name;
                CHECK_STATUS(dlrn_context_create(&cfg, &ctx), DLRN_OK);
                for (int i = 0; i < N; i++) {
                    const int64_t row = i * 8 % N; /* anywhere */
                    from[i] = (const char *)bits + row * n * size;
                    to[i] = out + row * n;
                }
                out[N * n] = 42;
                ctx->k->fetch(types[t], from, to, N, n, past);
                for (int64_t i = 0; i < N * n; i++) {
                    uint16_t h;
                    float want;
                    memcpy(&h, (const char *)bits + 2 * i, sizeof h);
                    memcpy(&want, &bits[i], sizeof want);
                    if (t) want = t == 1 ? dlrni_f16_to_f32(h) : dlrni_bf16_to_f32(h);
                    CHECK_MSG(!memcmp(&out[i], &want, 4), "%s: type %d, %d of %d", name, t, (int)i,
                              (int)n);
                }
                CHECK(out[N * n] == 42);
                dlrn_context_destroy(ctx);
            }
}

/* Batches of 8 MB and more are copied in another order and past the caches: they consist of the
   same rows in the same order as a plain list gives. */
TEST(large_batches_come_as_a_list_gives_them) {
    enum { WIDTH = 1024, HELD = 6000, TAKEN = 2048 };
    static int32_t list[HELD];
    dlrn_context *ctx = open_context(NULL);
    float *rows = (float *)calloc((size_t)HELD * WIDTH, sizeof *rows);
    dlrn_source source;
    dlrn_buffer *b = NULL;
    dlrn_buffer_config cfg = config(HELD / 10, 100, TAKEN, 11);
    dlrn_rng rng = {11, UINT64_MAX, 0};
    const float *x, *y;
    int64_t n, wrong = 0, held = HELD;
    for (int32_t i = 0; i < HELD; i++) {
        list[i] = i;
        for (int64_t c = 0; c < WIDTH; c++) rows[i * WIDTH + c] = (float)(i * 7 + c);
    }
    CHECK_OK(ctx, dlrn_source_from_array(ctx, rows, NULL, HELD, WIDTH, 0, 1, &source));
    CHECK_OK(ctx, dlrn_buffer_create(ctx, &cfg, &source, DLRN_OWNED, &b));
    while (dlrn_buffer_next(b, &x, &y, &n) == DLRN_OK)
        for (int64_t i = 0; i < n; i++) {
            int64_t at = (int64_t)dlrn_rng_below(&rng, (uint64_t)held);
            wrong += memcmp(x + i * WIDTH, rows + list[at] * (int64_t)WIDTH, WIDTH * 4) != 0;
            list[at] = list[--held];
        }
    CHECK_MSG(!wrong && !held, "%d rows differ, %d are left", (int)wrong, (int)held);
    free(rows);
    dlrn_buffer_destroy(b);
    dlrn_context_destroy(ctx);
}

/* Rows that come in are checked and stored in parts: of two bad rows the first is named, whichever
   part is done first, and the rows before and after are where they belong. */
TEST(large_reads_are_checked_in_order) {
    enum { WIDTH = 500, READ = 2600 };
    dlrn_context_config threads = {0};
    dlrn_context *ctx = NULL;
    threads.threads = 2;
    CHECK_STATUS(dlrn_context_create(&threads, &ctx), DLRN_OK);
    float *rows = (float *)malloc((size_t)READ * WIDTH * sizeof *rows);
    for (int store = 0; store < 3; store++)
        for (int bad = 0; bad < 2; bad++) {
            dlrn_buffer_config cfg = config(READ / 10, READ / 10, 7, 2);
            dlrn_source source;
            dlrn_buffer *b = NULL;
            const float *x, *y;
            int64_t n, wrong = 0;
            for (int64_t i = 0; i < READ * WIDTH; i++) rows[i] = (float)(i / WIDTH % 199);
            if (bad) rows[2599 * WIDTH] = rows[41 * WIDTH + 3] = store == 1 ? 70000 : NAN;
            cfg.store = store == 1 ? DLRN_F16 : store ? DLRN_BF16 : DLRN_F32;
            cfg.shuffle = DLRN_OFF;
            cfg.batch_rows = READ;
            CHECK_OK(ctx, dlrn_source_from_array(ctx, rows, NULL, READ, WIDTH, 0, 1, &source));
            CHECK_OK(ctx, dlrn_buffer_create(ctx, &cfg, &source, DLRN_OWNED, &b));
            dlrn_status s = dlrn_buffer_next(b, &x, &y, &n);
            if (bad) {
                CHECK_STATUS(s, DLRN_ERR_VALUE);
                CHECK_MSG(strstr(dlrn_error(ctx), "row 41, column 3") != NULL, "%s",
                          dlrn_error(ctx));
            } else {
                CHECK_OK(ctx, s);
                for (int64_t i = 0; i < n * WIDTH; i++) wrong += x[i] != rows[i];
                CHECK_MSG(n == READ && !wrong, "%d numbers differ", (int)wrong);
            }
            dlrn_buffer_destroy(b);
        }
    free(rows);
    dlrn_context_destroy(ctx);
}

TEST(the_first_number_out_of_range_is_found) {
    static float x[80];
    static const float out[] = {NAN, -INFINITY, -65520.0f, 65520.0f};
    for (int n = 0; n <= 70; n++)
        for (int at = 0; at <= n; at++) {
            for (int i = 0; i < n; i++) x[1 + i] = i > at ? NAN : i & 1 ? -65519.996f : 65519.996f;
            x[1 + at] = out[(n + at) % 4];
            CHECK_MSG(dlrni_first_beyond(x + 1, n, 0x477fefffu) == at, "%d of %d", at, n);
        }
}

/* Whatever is accepted is finite as it is stored, and nothing else is refused. */
TEST(what_can_be_stored_is_accepted) {
    static const dlrn_dtype types[3] = {DLRN_F32, DLRN_F16, DLRN_BF16};
    static const uint32_t edges[] = {
        0x477fefffu, 0x477ff000u, 0x7f7f7fffu, 0x7f7f8000u, 0x7f7fffffu, 0x7f800000u, 0};
    dlrn_context *ctx = open_context(NULL);
    for (int c = 0; c < 3; c++)
        for (uint32_t k = 0; k < 7; k++)
            for (uint32_t sign = 0; sign < 2; sign++) {
                uint32_t bits = edges[k] | sign << 31;
                float x[D] = {0}, y[D];
                tape t;
                dlrn_source source = tape_source(&t, 1, 0);
                dlrn_buffer_config cfg = config(1, 1, 1, 0);
                cfg.store = types[c];
                dlrn_buffer *b = make_buffer(ctx, &cfg, &source);
                memcpy(&x[1], &bits, 4);
                memcpy(b->in[0], x, sizeof x);
                y[1] = rounded(types[c], x[1]);
                CHECK_MSG((dlrni_check_storable(b, 0, 1) == DLRN_OK) == (fabsf(y[1]) <= FLT_MAX),
                          "%08x", bits);
                dlrn_buffer_destroy(b);
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
    RUN(never_more_memory_than_stated);
    RUN(a_large_segment_begins_with_a_huge_page);
    RUN(few_rows_take_little_memory);
    RUN(out_of_memory_at_every_allocation);
    RUN(copies_take_nothing);
    RUN(a_buffer_described);
    RUN(a_cleared_buffer_goes_on);
    RUN(read_ahead_in_order);
    RUN(a_state_carries_over);
    RUN(order_is_kept_where_rows_are_left_over);
    RUN(what_the_source_says_is_passed_on);
    RUN(what_the_source_cannot_do_is_told);
    RUN(a_filling_that_is_broken_off_goes_on);
    RUN(a_source_that_lies_is_told_off);
    RUN(rows_that_are_not_finite_are_left_out);
    RUN(a_filter_in_place_of_its_source);
    RUN(a_configuration_out_of_range_is_refused);
    RUN(arrays_in_memory);
    RUN(arrays_in_npy_files);
    RUN(wrong_files_are_named);
    RUN(epochs_through_a_buffer);
    RUN(a_batch_is_what_a_plain_list_gives);
    RUN(drawing_below_spares_a_division_and_no_number);
    RUN(random_numbers_come_many_at_a_time_in_every_set);
    RUN(draws_come_many_at_a_time);
    RUN(widening_is_exact_in_every_set);
    RUN(rows_are_fetched_exactly_in_every_set);
    RUN(large_batches_come_as_a_list_gives_them);
    RUN(large_reads_are_checked_in_order);
    RUN(the_first_number_out_of_range_is_found);
    RUN(what_can_be_stored_is_accepted);
    return TEST_END();
}
