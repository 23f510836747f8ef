/* allocator.h - an allocator that counts what a context takes, and can run out. */
#ifndef DICTLEARN_TEST_ALLOCATOR_H
#define DICTLEARN_TEST_ALLOCATOR_H

#include "dictlearn.h"
#include "tests/test.h"

static int64_t live, left = -1;           /* blocks in use; allocations until one fails, negative: none does */
static size_t in_use, peak;               /* bytes                                                           */
static size_t in_use_most = SIZE_MAX / 2; /* what would need more bytes at a time fails, and peak says so    */
enum { HEAD = 64 };                       /* before each block: its size                                     */

static void *count_malloc(size_t size, void *user) {
    (void)user;
    if (left == 0) return NULL;
    if (left > 0) left--;
    if (in_use + size > peak) peak = in_use + size;
    char *p = in_use + size > in_use_most ? NULL : (char *)malloc(HEAD + size);
    if (!p) return NULL;
    memcpy(p, &size, sizeof size);
    live++;
    in_use += size;
    return p + HEAD;
}

static void count_free(void *block, void *user) {
    size_t size;
    (void)user;
    if (!block) return;
    char *p = (char *)block - HEAD;
    memcpy(&size, p, sizeof size);
    live--;
    in_use -= size;
    free(p);
}

static void *count_realloc(void *block, size_t size, void *user) {
    size_t old = 0;
    void *to = count_malloc(size, user);
    if (!to || !block) return to;
    memcpy(&old, (char *)block - HEAD, sizeof old);
    memcpy(to, block, old < size ? old : size);
    count_free(block, user);
    return to;
}

/* The configuration of a context whose blocks are counted. */
TEST_UNUSED dlrn_context_config counted_context(void) {
    dlrn_context_config cfg = dlrn_context_defaults();
    cfg.malloc = count_malloc;
    cfg.realloc = count_realloc;
    cfg.free = count_free;
    return cfg;
}
#endif /* DICTLEARN_TEST_ALLOCATOR_H */
