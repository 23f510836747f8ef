/* test_large.c - files beyond 4 GB, where a zip's own numbers end: a tensor of zeros that takes no
   memory, and a small one on either side of it. On the disk only what is not zero takes place. */
#define _DEFAULT_SOURCE
#include <fcntl.h>
#include <unistd.h>
#include <sys/mman.h>
#include "dictlearn.h"
#include "tests/test.h"

#define ZEROS (((int64_t)1 << 30) + 24) /* of 4 bytes */

static dlrn_context *ctx;

/* ---- A disk that leaves out zeros ---- */

static dlrn_status sparse_open(void *user, dlrn_context *ctx, const char *path, int writing,
                               void **file) {
    int *fd = (int *)user;
    *fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    *file = fd;
    return *fd >= 0 && writing ? DLRN_OK
                               : dlrn_fail(ctx, DLRN_ERR_IO, "%s: cannot be opened", path);
}

static dlrn_status sparse_read(void *user, dlrn_context *ctx, void *file, void *bytes, size_t size,
                               size_t *got) {
    (void)user, (void)file, (void)bytes, (void)size, (void)got;
    return dlrn_fail(ctx, DLRN_ERR_IO, "nobody reads here");
}

static dlrn_status sparse_write(void *user, dlrn_context *ctx, void *file, const void *bytes,
                                size_t size) {
    static const char zeros[1 << 16];
    const char *p = (const char *)bytes;
    (void)user;
    for (size_t n; size; p += n, size -= n) {
        n = size < sizeof zeros ? size : sizeof zeros;
        int moved = memcmp(p, zeros, n) ? write(*(int *)file, p, n) == (ssize_t)n
                                        : lseek(*(int *)file, (off_t)n, SEEK_CUR) >= 0;
        if (!moved) return dlrn_fail(ctx, DLRN_ERR_IO, "the disk is full");
    }
    return DLRN_OK;
}

static dlrn_status sparse_close(void *user, dlrn_context *ctx, void *file, int keep) {
    int fd = *(int *)file, whole = !keep || ftruncate(fd, lseek(fd, 0, SEEK_CUR)) == 0;
    (void)user;
    return close(fd) == 0 && whole ? DLRN_OK : dlrn_fail(ctx, DLRN_ERR_IO, "cannot be closed");
}

static int sparse_exists(void *user, const char *path) {
    (void)user, (void)path;
    return 0;
}

static dlrn_context *sparse_context(int *fd) {
    const dlrn_io io = {sparse_open,   sparse_read, sparse_write, sparse_close,
                        sparse_exists, NULL,        NULL,         fd};
    dlrn_context_config cfg = {0};
    dlrn_context *made = NULL;
    cfg.io = io;
    CHECK_STATUS(dlrn_context_create(&cfg, &made), DLRN_OK);
    return made;
}

/* ---- The files ---- */

static dlrn_tensor_out tensor(const char *name, const void *data, int64_t n) {
    dlrn_tensor_out t;
    memset(&t, 0, sizeof t);
    t.name = name;
    t.dtype = DLRN_F32;
    t.ndim = 1;
    t.shape[0] = n;
    t.data = data;
    return t;
}

static void check_read(dlrn_archive *a, const char *name, const float *wanted) {
    float found[4];
    int64_t i = dlrn_archive_find(a, name);
    CHECK(i >= 0 && dlrn_archive_tensor(a, i)->numel == 4);
    CHECK_OK(ctx, dlrn_archive_read(a, i, 0, -1, found));
    CHECK(!memcmp(wanted, found, sizeof found));
}

TEST(files_beyond_4_gb) {
    static const char *const names[] = {"large.pt",
                                        "large.safetensors"}; /* an .npz is the same zip */
    static const float first[4] = {1, 2, 3, 4}, last[4] = {-5, 6, -7, 8};
    int fd = -1;
    if (sizeof(size_t) < 8) SKIP("no room for 4 GB");
    void *zeros = mmap(NULL, (size_t)ZEROS * 4, PROT_READ,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (zeros == MAP_FAILED) SKIP("no room for 4 GB");
    const dlrn_tensor_out tensors[3] = {tensor("a", first, 4), tensor("zeros", zeros, ZEROS),
                                        tensor("z", last, 4)};
    dlrn_context *sparse = sparse_context(&fd);
    for (int i = 0; i < 2; i++) {
        char *path = tmp_path(names[i]);
        dlrn_archive *a = NULL;
        CHECK_OK(sparse, dlrn_archive_write(sparse, path, tensors, 3, NULL));
        CHECK_OK(ctx, dlrn_archive_open(ctx, path, &a));
        CHECK(dlrn_archive_describe(a).count == 3);
        CHECK(dlrn_archive_tensor(a, dlrn_archive_find(a, "zeros"))->numel == ZEROS);
        check_read(a, "a", first);
        check_read(a, "z", last);
        dlrn_archive_close(a);
        remove(path);
    }
    dlrn_context_destroy(sparse);
    munmap(zeros, (size_t)ZEROS * 4);
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    CHECK(dlrn_context_create(NULL, &ctx) == DLRN_OK);
    RUN_LONG(files_beyond_4_gb);
    dlrn_context_destroy(ctx);
    return TEST_END();
}
