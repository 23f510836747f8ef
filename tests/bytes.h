/* bytes.h - for tests of the readers: a buffer that grows byte by byte, zips made by hand, and
   `refuse`, which checks that a reader says no, with the right status and words, without a look
   beyond the end. */
#ifndef DICTLEARN_TEST_BYTES_H
#define DICTLEARN_TEST_BYTES_H

#include "dictlearn.h"
#include "tests/test.h"

static dlrn_context *ctx;

typedef struct bytes {
    unsigned char p[1 << 16];
    size_t n;
} bytes;

TEST_UNUSED void put(bytes *b, const void *from, size_t n) {
    CHECK(b->n + n <= sizeof b->p);
    memcpy(b->p + b->n, from, n);
    b->n += n;
}

TEST_UNUSED void put_text(bytes *b, const char *text) {
    put(b, text, strlen(text));
}

TEST_UNUSED void put_le(bytes *b, uint64_t v, int n) {
    for (; n > 0; n--, v >>= 8) {
        unsigned char c = (unsigned char)v;
        put(b, &c, 1);
    }
}

/* A little-endian integer of n bytes. */
TEST_UNUSED uint64_t get_le(const void *at, int n) {
    uint64_t v = 0;
    while (n-- > 0) v = v << 8 | ((const unsigned char *)at)[n];
    return v;
}

/* CRC-32 as zip has it, bit by bit: not the header's own, which the tests check. */
TEST_UNUSED uint32_t crc_of(const void *data, size_t n) {
    const unsigned char *p = (const unsigned char *)data;
    uint32_t crc = 0xffffffffu;
    while (n-- > 0) {
        crc ^= *p++;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    return ~crc;
}

/* Overwrites n bytes at `at`, little-endian. */
TEST_UNUSED void patch(bytes *b, size_t at, uint64_t v, int n) {
    CHECK(at + (size_t)n <= b->n);
    for (int i = 0; i < n; i++) b->p[at + (size_t)i] = (unsigned char)(v >> 8 * i);
}

/* Where a text stands for the last time. */
TEST_UNUSED size_t find_last(const bytes *b, const char *text, size_t len) {
    for (size_t at = b->n - len + 1; at-- > 0;)
        if (!memcmp(b->p + at, text, len)) return at;
    TEST_FAIL("the test's own bytes lack what it looks for");
}

TEST_UNUSED void put_floats(bytes *b, const float *x, int n) {
    for (int i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        put_le(b, bits, 4);
    }
}

/* Opens bytes of exactly their size, so that the address sanitizer sees a read beyond them. */
TEST_UNUSED dlrn_status open_bytes(const bytes *b, dlrn_archive **out) {
    static void *last; /* what the open archive borrows */
    free(last);
    last = malloc(b->n + 1);
    void *exact = (char *)last + 1; /* at an odd address */
    memcpy(exact, b->p, b->n);
    return dlrn_archive_open_memory(ctx, exact, b->n, "hostile.file", out);
}

TEST_UNUSED void refuse(const bytes *b, dlrn_status want, const char *words) {
    dlrn_archive *a = NULL;
    dlrn_status s = open_bytes(b, &a);
    CHECK_MSG(s == want, "%s, expected %s with '%s'", s ? dlrn_error(ctx) : "it was read",
              test_status_name(want), words);
    CHECK(a == NULL);
    CHECK_STR(dlrn_error(ctx), "hostile.file");
    CHECK_STR(dlrn_error(ctx), words);
}

TEST_UNUSED dlrn_archive *accept(const bytes *b) {
    dlrn_archive *a = NULL;
    CHECK_OK(ctx, open_bytes(b, &a));
    return a;
}

/* A tensor's numbers are 0, 1, 2, ... or those of `want`; closes the archive. */
TEST_UNUSED void expect_numbers(dlrn_archive *a, const char *name, const float *want, int64_t n) {
    float x[64];
    int64_t index = dlrn_archive_find(a, name), whole[64];
    CHECK_MSG(index >= 0, "no tensor '%s'", name);
    CHECK(dlrn_archive_tensor(a, index)->numel == n && n <= 64);
    if (dlrni_is_float(dlrn_archive_tensor(a, index)->dtype) || n == 1) {
        CHECK_OK(ctx, dlrn_archive_read(a, index, 0, -1, x));
    } else {
        CHECK_STATUS(dlrn_archive_read(a, index, 0, -1, x), DLRN_ERR_UNSUPPORTED);
        CHECK_OK(ctx, dlrni_archive_read_i64(a, index, whole));
        for (int64_t i = 0; i < n; i++)
            x[i] = dlrn_archive_tensor(a, index)->dtype == DLRN_U64 ? (float)(uint64_t)whole[i]
                                                                    : (float)whole[i];
    }
    for (int64_t i = 0; i < n; i++) {
        float expected = want ? want[i] : (float)i;
        CHECK_MSG(x[i] == expected, "element %d of '%s' is %g, expected %g", (int)i, name,
                  (double)x[i], (double)expected);
    }
    dlrn_archive_close(a);
}

/* ---- Zips ---- */

typedef struct zip {
    bytes file, directory;
    int members;
} zip;

/* A member whose packed bytes, size and sum are given; zip64: its sizes stand in the extra field.
 */
TEST_UNUSED void zip_raw(zip *z, const char *name, const bytes *packed, int method, uint64_t size,
                         uint32_t crc, int zip64) {
    uint64_t offset = z->file.n, length = strlen(name);
    put_le(&z->file, 0x04034b50, 4);
    put_le(&z->file, 45, 2);
    put_le(&z->file, 0, 2);
    put_le(&z->file, (uint64_t)method, 2);
    put_le(&z->file, 0, 4);
    put_le(&z->file, crc, 4);
    put_le(&z->file, zip64 ? 0xFFFFFFFFu : packed->n, 4);
    put_le(&z->file, zip64 ? 0xFFFFFFFFu : size, 4);
    put_le(&z->file, length, 2);
    put_le(&z->file, 0, 2);
    put_text(&z->file, name);
    put(&z->file, packed->p, packed->n);
    put_le(&z->directory, 0x02014b50, 4);
    put_le(&z->directory, 45, 2);
    put_le(&z->directory, 45, 2);
    put_le(&z->directory, 0, 2);
    put_le(&z->directory, (uint64_t)method, 2);
    put_le(&z->directory, 0, 4);
    put_le(&z->directory, crc, 4);
    put_le(&z->directory, zip64 ? 0xFFFFFFFFu : packed->n, 4);
    put_le(&z->directory, zip64 ? 0xFFFFFFFFu : size, 4);
    put_le(&z->directory, length, 2);
    put_le(&z->directory, zip64 ? 28 : 0, 2);
    put_le(&z->directory, 0, 10);
    put_le(&z->directory, zip64 ? 0xFFFFFFFFu : offset, 4);
    put_text(&z->directory, name);
    if (zip64) {
        put_le(&z->directory, 1, 2);
        put_le(&z->directory, 24, 2);
        put_le(&z->directory, size, 8);
        put_le(&z->directory, packed->n, 8);
        put_le(&z->directory, offset, 8);
    }
    z->members++;
}

TEST_UNUSED void zip_add(zip *z, const char *name, const bytes *data) {
    zip_raw(z, name, data, 0, data->n, crc_of(data->p, data->n), 0);
}

/* Ends the file: the directory and the end record. */
TEST_UNUSED bytes *zip_done(zip *z) {
    uint64_t at = z->file.n;
    put(&z->file, z->directory.p, z->directory.n);
    put_le(&z->file, 0x06054b50, 4);
    put_le(&z->file, 0, 4);
    put_le(&z->file, (uint64_t)z->members, 2);
    put_le(&z->file, (uint64_t)z->members, 2);
    put_le(&z->file, z->directory.n, 4);
    put_le(&z->file, at, 4);
    put_le(&z->file, 0, 2);
    return &z->file;
}

/* The codes in a file. */
TEST_UNUSED dlrn_status csr_load(dlrn_context *ctx, const char *path, dlrn_sparse *out) {
    dlrn_archive *a;
    dlrn_status s = dlrn_archive_open(ctx, path, &a);
    if (s == DLRN_OK) s = dlrn_csr_read(a, out);
    dlrn_archive_close(a);
    return s;
}
#endif /* DICTLEARN_TEST_BYTES_H */
