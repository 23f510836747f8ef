/* grow.h - blocks that grow, for the headers of this folder - part of dictlearn.h's examples, MIT
   licence */
#ifndef LM_GROW_H
#define LM_GROW_H

#include <stdint.h>
#include <string.h>

/* Room for `need` elements in the block whose pointer is at `slot`; the first `used` are kept.
   Grows by half, so that appending costs a constant time each. slot is a T ** given as void *,
   since C has no type for "pointer to any pointer". */
static dlrn_status lm_grow(dlrn_context *ctx, void *slot, int64_t *cap, int64_t used, int64_t need,
                           size_t size) {
    void *old, *wide;
    if (need <= *cap) return DLRN_OK;
    int64_t room = need + need / 2 + 64;
    wide = dlrn_alloc(ctx, room, size);
    if (!wide) return DLRN_ERR_MEMORY;
    memcpy(&old, slot, sizeof old);
    if (used) memcpy(wide, old, (size_t)used * size);
    dlrn_free(ctx, old);
    memcpy(slot, &wide, sizeof wide);
    *cap = room;
    return DLRN_OK;
}
#endif /* LM_GROW_H */
