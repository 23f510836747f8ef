/* starve.h - for tests of what happens without memory: an allocator that counts, and fails when it
   is told to. */
#ifndef DICTLEARN_TEST_STARVE_H
#define DICTLEARN_TEST_STARVE_H

#include "dictlearn.h"
#include "tests/test.h"

static struct {
    int64_t live;        /* blocks in use                                       */
    int64_t left;        /* allocations until one fails; negative: none does    */
    int once;            /* that one alone, and not all that come after it      */
    int64_t refused;     /* that have failed                                    */
    size_t in_use, peak; /* bytes                                               */
    size_t most; /* what would need more bytes at a time fails, and peak says so; 0: no limit */
} starve = {0, -1, 0, 0, 0, 0, 0};
enum { STARVE_HEAD = 64 }; /* before each block: its size */

/* Not each allocation fails in brief runs. */
TEST_UNUSED int starve_stride(void) {
    return test_brief() ? 97 : 1;
}

TEST_UNUSED void *starve_alloc(void *user, size_t size) {
    (void)user;
    if (starve.left == 0) {
        starve.refused++;
        if (starve.once) starve.left = -1;
        return NULL;
    }
    if (starve.left > 0) starve.left--;
    if (starve.in_use + size > starve.peak) starve.peak = starve.in_use + size;
    char *p = starve.most && starve.in_use + size > starve.most
                  ? NULL
                  : (char *)malloc(STARVE_HEAD + size);
    if (!p) return NULL;
    memcpy(p, &size, sizeof size);
    starve.live++;
    starve.in_use += size;
    return p + STARVE_HEAD;
}

TEST_UNUSED void starve_release(void *user, void *block) {
    size_t size;
    (void)user;
    if (!block) return;
    char *p = (char *)block - STARVE_HEAD;
    memcpy(&size, p, sizeof size);
    starve.live--;
    starve.in_use -= size;
    free(p);
}

TEST_UNUSED dlrn_context_config starve_config(int threads) {
    dlrn_context_config cfg = {0};
    cfg.threads = threads;
    cfg.alloc = starve_alloc;
    cfg.release = starve_release;
    return cfg;
}

TEST_UNUSED dlrn_context *starve_context(int threads) {
    const dlrn_context_config cfg = starve_config(threads);
    dlrn_context *ctx = NULL;
    CHECK_STATUS(dlrn_context_create(&cfg, &ctx), DLRN_OK);
    return ctx;
}

/* From the allocation after `granted` more on, one or all fail. */
TEST_UNUSED void starve_after(int64_t granted, int once) {
    starve.left = granted;
    starve.once = once;
    starve.refused = 0;
}

TEST_UNUSED void starve_no_more(void) {
    starve.left = -1;
}

/* Runs the operation with one more allocation granted each time, until it succeeds: with one
   failing, and with all that follow it. */
TEST_UNUSED void starve_all(const char *name, dlrn_context *ctx, dlrn_status (*operation)(void)) {
    const int64_t before = starve.live;
    for (int once = 0; once < 2; once++)
        for (int granted = 0;; granted += starve_stride()) {
            CHECK_MSG(granted < 4000, "%s never succeeds", name);
            starve_after(granted, once);
            dlrn_status s = operation();
            starve_no_more();
            CHECK_MSG(starve.live == before, "%s: %d blocks leak after %d allocations", name,
                      (int)(starve.live - before), granted);
            CHECK_MSG(s == DLRN_OK || starve.refused, "%s: %s", name, dlrn_error(ctx));
            CHECK_MSG(s != DLRN_OK || !starve.refused, "%s: succeeds without allocation %d", name,
                      granted);
            if (s == DLRN_OK) {
                CHECK_MSG(granted > 0, "%s: it allocates nothing", name);
                break;
            }
            CHECK_MSG(s == DLRN_ERR_MEMORY, "%s, after %d allocations: %s", name, granted,
                      dlrn_error(ctx));
            CHECK_STR(dlrn_error(ctx), "out of memory");
        }
}

/* Of an operation that asks again for what memory was refused for (STARVE_RETRY) and gives one
   number for all of its results: the same, whichever allocation fails. Returns how many there are.
 */
TEST_UNUSED int64_t starve_each(const char *name, uint64_t (*operation)(void)) {
    const int64_t before = starve.live;
    const uint64_t wanted = operation();
    for (int64_t granted = 0;; granted += starve_stride()) {
        starve_after(granted, 1);
        uint64_t found = operation();
        starve_no_more();
        CHECK_MSG(starve.live == before, "%s: %d blocks leak after %d allocations", name,
                  (int)(starve.live - before), (int)granted);
        CHECK_MSG(found == wanted, "%s: other bits after %d allocations", name, (int)granted);
        if (!starve.refused) return granted;
    }
}

/* The call, again where it had no memory: once is enough, since one allocation alone fails. */
#define STARVE_RETRY(ctx, call)                                                                    \
    do {                                                                                           \
        dlrn_status starve_s = (call);                                                             \
        if (starve_s == DLRN_ERR_MEMORY) {                                                         \
            CHECK_STR(dlrn_error(ctx), "memory");                                                  \
            starve_s = (call);                                                                     \
        }                                                                                          \
        if (starve_s != DLRN_OK)                                                                   \
            TEST_FAIL("%s gave %s: %s", #call, test_status_name(starve_s), dlrn_error(ctx));       \
    } while (0)

TEST_UNUSED uint64_t starve_mix(uint64_t hash, const void *bytes, size_t size) { /* FNV-1a */
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ ((const unsigned char *)bytes)[i]) * 1099511628211u;
    return hash;
}

TEST_UNUSED uint64_t starve_mix_file(uint64_t hash, const char *path) {
    FILE *f = fopen(path, "rb");
    unsigned char block[4096];
    CHECK_MSG(f != NULL, "%s is not there", path);
    for (size_t n; (n = fread(block, 1, sizeof block, f)) > 0;) hash = starve_mix(hash, block, n);
    fclose(f);
    return hash;
}
#endif /* DICTLEARN_TEST_STARVE_H */
