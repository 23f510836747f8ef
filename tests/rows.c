/* rows MODEL.safetensors X.npy - writes the tensor of that file with the most rows of width 128 as
   a .npy of f32: real numbers to test with, and no Python needed. */
#include "dictlearn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
    dlrn_context *ctx = NULL;
    dlrn_archive *a = NULL;
    const dlrn_tensor_info *best = NULL;
    int64_t at = 0;
    if (argc != 3 || dlrn_context_create(NULL, &ctx)) return 2;
    dlrn_status s = dlrn_archive_open(ctx, argv[1], &a);
    for (int64_t i = 0; s == DLRN_OK && i < dlrn_archive_describe(a).count; i++) {
        const dlrn_tensor_info *t = dlrn_archive_tensor(a, i);
        if (t->ndim == 2 && t->shape[1] == 128 && (!best || t->numel > best->numel))
            best = t, at = i;
    }
    float *x = best ? (float *)malloc((size_t)best->numel * sizeof *x) : NULL;
    if (s == DLRN_OK && x) s = dlrn_archive_read(a, at, 0, -1, x);
    if (s == DLRN_OK && x) {
        dlrn_tensor_out out = {"x", DLRN_F32, 2, {best->shape[0], 128}, x};
        s = dlrn_archive_write(ctx, argv[2], &out, 1, NULL);
    }
    if (s != DLRN_OK) fprintf(stderr, "%s\n", dlrn_error(ctx));
    free(x);
    dlrn_archive_close(a);
    dlrn_context_destroy(ctx);
    return s == DLRN_OK && best ? 0 : 1;
}
