/* 06_gemma_scope.c - open a dictionary that somebody else has trained, and look at rows through it.

       cc -O2 -fopenmp -I. examples/06_gemma_scope.c -o gemma_scope -lm
       ./gemma_scope
       ./gemma_scope layer_12/width_16k/average_l0_82 rows.npy

   The dictionary is a file or folder of Gemma Scope 1 or 2, or of a library that the manual lists;
   a number after the rows is the k of a file that has none (Qwen Scope). Without arguments the
   program first writes a small file of its own, and the rows are its atoms. */
#include <stdio.h>
#include <stdlib.h>
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"

enum { D = 16, FEATURES = 64, ROWS = 64, TOP = 5 };

static dlrn_status look(dlrn_context *ctx, const dlrn_dictionary *sae, dlrn_source *rows) {
    dlrn_tensor x = {0}, x_hat = {0};
    dlrn_sparse codes = {0};
    int64_t n = 0, index[TOP];
    if (rows->d_in != sae->d_in)
        return dlrn_fail(ctx, DLRN_ERR_SHAPE, "expected rows of %lld numbers, found %lld",
                         (long long)sae->d_in, (long long)rows->d_in);
    dlrn_status s = dlrn_tensor_alloc(ctx, ROWS, sae->d_in, &x);
    if (s == DLRN_OK) s = dlrn_tensor_alloc(ctx, ROWS, sae->d_out, &x_hat);
    if (s == DLRN_OK) s = rows->read(rows->user, ROWS, x.data, NULL, &n);
    if (s == DLRN_OK) s = dlrn_forward(sae, x.data, n, x_hat.data, &codes); /* encode, decode */
    if (s == DLRN_OK) {
        const int64_t active = codes.row_ptr[1], top = active < TOP ? active : TOP; /* of row 0 */
        printf("L0 of %d rows: %.1f\nrow 0:", (int)n, (double)codes.row_ptr[n] / (double)n);
        s = dlrn_topk(ctx, codes.val, active, top, index, NULL);
        for (int64_t k = 0; s == DLRN_OK && k < top; k++)
            printf(" feature %d (%.2f)", (int)codes.col[index[k]], (double)codes.val[index[k]]);
        printf("\nlength of the rows %.2f, of their reconstructions %.2f\n",
               (double)dlrn_norm(ctx, x.data, n * sae->d_in),
               (double)dlrn_norm(ctx, x_hat.data, n * sae->d_out));
    }
    dlrn_sparse_free(&codes);
    dlrn_free(ctx, x_hat.data);
    dlrn_free(ctx, x.data);
    return s;
}

/* Stands in for a download: the five arrays of Gemma Scope 1, as NumPy would store them. */
static float atoms[FEATURES * D], encoder[D * FEATURES], threshold[FEATURES];
static float encoder_bias[FEATURES], bias[D];
static dlrn_status write_params(dlrn_context *ctx, const char *path) {
    const dlrn_tensor_out arrays[] = {{"W_enc", DLRN_F32, 2, {D, FEATURES}, encoder},
                                      {"W_dec", DLRN_F32, 2, {FEATURES, D}, atoms},
                                      {"b_enc", DLRN_F32, 1, {FEATURES}, encoder_bias},
                                      {"b_dec", DLRN_F32, 1, {D}, bias},
                                      {"threshold", DLRN_F32, 1, {FEATURES}, threshold}};
    dlrn_rng rng = {1, 0, 0};
    for (int j = 0; j < FEATURES; j++) {
        threshold[j] = 0.5f;
        for (int c = 0; c < D; c++)
            encoder[c * FEATURES + j] = atoms[j * D + c] = dlrn_rng_normal(&rng) / 4;
    }
    return dlrn_archive_write(ctx, path, arrays, 5, NULL);
}

int main(int argc, char **argv) {
    const char *path = argc > 2 ? argv[1] : "small_params.npz";
    dlrn_context *ctx = NULL;
    dlrn_dictionary *sae = NULL;
    dlrn_source rows = {0};
    dlrn_source_desc files = {.paths = (const char *const *)argv + 2, .n_paths = 1, .epochs = 1};
    dlrn_load_options how = {.k = argc > 3 ? atoi(argv[3]) : 0};
    dlrn_status s = dlrn_context_create(NULL, &ctx);
    if (s == DLRN_OK && argc < 3) s = write_params(ctx, path);
    if (s == DLRN_OK) s = dlrn_load(ctx, path, &how, &sae);
    if (s == DLRN_OK)
        printf("%s: %s of %s, %lld -> %lld features%s%s\n", path, sae->family, sae->layout,
               (long long)sae->d_in, (long long)sae->features, *sae->note ? "; " : "", sae->note);
    if (s == DLRN_OK && argc < 3)
        s = dlrn_source_from_array(ctx, atoms, NULL, ROWS, D, 0, 1, &rows);
    if (s == DLRN_OK && argc > 2) s = dlrn_source_open(ctx, &files, &rows);
    if (s == DLRN_OK) s = look(ctx, sae, &rows);
    if (s != DLRN_OK) fprintf(stderr, "%s\n", dlrn_error(ctx));
    if (argc < 3) remove(path);
    dlrn_source_destroy(&rows);
    dlrn_dictionary_destroy(sae);
    dlrn_context_destroy(ctx);
    return s != DLRN_OK;
}
