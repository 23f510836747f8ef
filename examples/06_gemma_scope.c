/* 06_gemma_scope.c - open a dictionary that somebody else has trained; encode and decode a row.

       cc -O2 -fopenmp -I. examples/06_gemma_scope.c -o gemma_scope -lm
       ./gemma_scope layer_12/width_16k/average_l0_82

   The path is a file or folder of Gemma Scope 1 or 2, or of any library that the manual lists.
   Without one the program first writes a small dictionary of its own. */
#include <stdio.h>
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"

int main(int argc, char **argv) {
    const char *path = argc > 1 ? argv[1] : "small_params.npz";
    const dlrn_dictionary_desc small = {"JumpReluAutoEncoder", 16, 16, 64, 0, 1, 0};
    dlrn_context *ctx = NULL;
    dlrn_dictionary *sae = NULL;
    dlrn_tensor x = {0}, x_hat = {0}; /* one row of a model's activations */
    dlrn_sparse codes = {0};
    dlrn_rng rng = {1, 0, 0};

    dlrn_status s = dlrn_context_create(NULL, &ctx);
    if (argc < 2 && !s) s = dlrn_dictionary_create(ctx, &small, &sae);
    if (argc < 2 && !s) s = dlrn_save(sae, path);
    dlrn_dictionary_destroy(sae);

    sae = NULL;
    if (!s) s = dlrn_load(ctx, path, NULL, &sae);
    if (!s) s = dlrn_tensor_alloc(ctx, 1, sae->d_in, &x);
    if (!s) s = dlrn_tensor_alloc(ctx, 1, sae->d_out, &x_hat);
    for (int64_t i = 0; !s && i < sae->d_in; i++) x.data[i] = dlrn_rng_normal(&rng);
    if (!s) s = dlrn_forward(sae, x.data, 1, x_hat.data, &codes); /* encode, decode */
    if (!s)
        printf("%s of %s: %d active features\n", sae->family, sae->layout, (int)codes.row_ptr[1]);
    for (int64_t p = 0; !s && p < codes.row_ptr[1] && p < 5; p++)
        printf("feature %d: %.3f\n", (int)codes.col[p], (double)codes.val[p]);
    if (s) fprintf(stderr, "%s\n", dlrn_error(ctx));

    dlrn_sparse_free(&codes);
    dlrn_free(ctx, x.data);
    dlrn_free(ctx, x_hat.data);
    dlrn_dictionary_destroy(sae);
    dlrn_context_destroy(ctx);
    return s != DLRN_OK;
}
