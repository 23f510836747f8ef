#include <stdio.h>
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"

int main(void) {
    dlrn_context *ctx;
    dlrn_dictionary *ae = NULL; /* or dlrn_load(ctx, "ae.pt", NULL, &ae) */
    dlrn_dictionary_desc desc = {0};
    float x[2 * 64] = {1, 2, 3}, x_hat[2 * 64]; /* two activations of width 64 */
    dlrn_sparse codes = {0};

    if (dlrn_context_create(NULL, &ctx)) return 1;
    desc.d_in = 64, desc.features = 1024;
    dlrn_status s = dlrn_dictionary_create(ctx, &desc, &ae);
    if (!s) s = dlrn_forward(ae, x, 2, x_hat, &codes);
    if (s) return fprintf(stderr, "%s\n", dlrn_error(ctx)), 1;
    for (int i = 0; i < 2; i++)
        printf("row %d: %d of 1024 features are active\n", i,
               (int)(codes.row_ptr[i + 1] - codes.row_ptr[i]));
    dlrn_sparse_free(&codes);
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
    return 0;
}
