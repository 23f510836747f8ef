/* mutate.h - changes that plain bytes seldom survive: what is inside of a zip is changed and the
   sums, sizes and offsets around it are made right again; the length before a safetensors header
   follows the header. */
#ifndef DICTLEARN_FUZZ_MUTATE_H
#define DICTLEARN_FUZZ_MUTATE_H

#include "tests/fuzz/fuzz.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size,
                        size_t most); /* changes bytes in place; the new size */

enum { MUTATE_MEMBERS = 32, MUTATE_MEMBER = 8192 };

/* A member again, changed if it is `chosen`: its name, its packed bytes, or its bytes. */
static void mutate_member(zip *z, const dlrni_member *m, int chosen, unsigned seed) {
    static bytes packed;
    char name[256];
    size_t len = (size_t)dlrni_min(m->name_len, 200);
    packed.n = 0;
    put(&packed, m->data, (size_t)m->packed);
    memcpy(name, m->name, len);
    if (chosen && seed % 8 == 0)
        len = LLVMFuzzerMutate((uint8_t *)name, len, 200);
    else if (chosen)
        packed.n = LLVMFuzzerMutate(packed.p, packed.n, MUTATE_MEMBER);
    name[len] = 0;
    if (m->method)
        zip_raw(z, name, &packed, m->method, m->size, 0,
                seed % 16 == 1); /* the sum 0: not computed */
    else
        zip_raw(z, name, &packed, 0, packed.n, dlrni_crc32(0, packed.p, packed.n), seed % 16 == 1);
}

/* 0: it is no zip that can be taken apart, or the new one has no room. */
static size_t mutate_zip(uint8_t *data, size_t size, size_t most, unsigned seed) {
    static zip z;
    dlrn_archive *a = NULL;
    dlrni_zip list;
    size_t n = 0, all = 0;
    memset(&list, 0, sizeof list);
    if (size < 4 || dlrni_archive_new(ctx, "mutated", &a) != DLRN_OK) return 0;
    a->map.p = data;
    a->map.size = size;
    a->borrowed = 1;
    int good = dlrni_zip_list(a, &list) == DLRN_OK && list.n > 0 && list.n <= MUTATE_MEMBERS;
    for (int64_t i = 0; good && i < list.n; i++) {
        all += (size_t)list.m[i].packed;
        good = list.m[i].packed <= MUTATE_MEMBER;
    }
    z.file.n = z.directory.n = 0;
    z.members = 0;
    if (good && all + MUTATE_MEMBER + MUTATE_MEMBERS * 512 < sizeof z.file.p)
        for (int64_t i = 0; i < list.n; i++)
            mutate_member(&z, &list.m[i], i == seed / 16 % list.n, seed);
    if (z.members) n = zip_done(&z)->n;
    if (n > most) n = 0;
    if (n) memcpy(data, z.file.p, n);
    dlrn_free(ctx, list.m);
    dlrn_free(ctx, list.names.slot);
    dlrn_archive_close(a);
    return n;
}

static size_t mutate_safetensors(uint8_t *data, size_t size, size_t most, unsigned seed) {
    static uint8_t tail[1 << 16];
    if (size < 16) return 0;
    uint64_t head = dlrni_le(data, 8);
    if (head > size - 8 || size > sizeof tail || most < size) return 0;
    size_t rest = size - 8 - (size_t)head, n;
    memcpy(tail, data + 8 + head, rest);
    if (seed % 4 == 0) rest = LLVMFuzzerMutate(tail, rest, most - 8 - (size_t)head);
    n = seed % 4 == 0 ? (size_t)head : LLVMFuzzerMutate(data + 8, (size_t)head, most - 8 - rest);
    dlrni_put_le(data, n, 8);
    memcpy(data + 8 + n, tail, rest);
    return 8 + n + rest;
}
#endif /* DICTLEARN_FUZZ_MUTATE_H */
