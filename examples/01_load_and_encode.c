/* 01_load_and_encode.c - load a released dictionary and see which features a row activates.

       cc -O2 -fopenmp -I. examples/01_load_and_encode.c -o load_and_encode -lm
       ./load_and_encode
       ./load_and_encode dictionaries/pythia-70m-deduped/mlp_out_layer1/10_32768 activations.npy

   The dictionary may be a file (.pt, .safetensors, .npz) or the folder around it. Without arguments
   the program first makes a small dictionary, and its rows are sums of two of the atoms. */
#include <stdio.h>
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"

enum { ROWS = 4, TOP = 5, D = 32, FEATURES = 256 };

/* Stands in for a download: an untrained dictionary, saved as PyTorch would save it. */
static dlrn_status make_dictionary(dlrn_context *ctx, const char *path) {
    dlrn_dictionary_desc desc = {.d_in = D, .features = FEATURES, .seed = 7};
    dlrn_dictionary *ae = NULL;
    dlrn_status s = dlrn_dictionary_create(ctx, &desc, &ae);
    for (int64_t j = 0; s == DLRN_OK && j < FEATURES; j++) {
        ae->param[DLRN_ENCODER_BIAS][j] = -1.3f; /* else half of all features would be active */
        for (int64_t c = 0; c < D; c++)
            ae->param[DLRN_ENCODER][j * D + c] = ae->param[DLRN_DECODER][j * D + c];
    }
    if (s == DLRN_OK) dlrn_dictionary_changed(ae); /* required after writing to parameters */
    if (s == DLRN_OK) s = dlrn_save(ae, path);
    dlrn_dictionary_destroy(ae);
    return s;
}

/* x [ROWS][d]: 3 times one atom plus 2 times another. */
static void make_rows(const dlrn_dictionary *ae, float *x) {
    const int64_t d = ae->d_in, F = ae->features;
    const float *atoms = ae->param[DLRN_DECODER]; /* [F][d] */
    for (int64_t i = 0; i < ROWS; i++)
        for (int64_t c = 0; c < d; c++)
            x[i * d + c] = 3 * atoms[11 * i % F * d + c] + 2 * atoms[(7 * i + 5) % F * d + c];
}

/* x [ROWS][d]: the first rows of an array file, widened to f32. */
static dlrn_status read_rows(dlrn_context *ctx, const char *path, int64_t d, float *x) {
    dlrn_archive *file = NULL;
    dlrn_status s = dlrn_archive_open(ctx, path, &file);
    if (s != DLRN_OK) return s;
    const dlrn_tensor_info *t = dlrn_archive_tensor(file, 0);
    if (!t || t->ndim != 2 || t->shape[0] < ROWS || t->shape[1] != d)
        s = dlrn_fail(ctx, DLRN_ERR_SHAPE, "%s: expected at least %d rows of width %lld", path,
                      ROWS, (long long)d);
    if (s == DLRN_OK) s = dlrn_archive_read(file, 0, 0, ROWS, x);
    dlrn_archive_close(file);
    return s;
}

/* The features that row i activates most. */
static dlrn_status print_row(dlrn_context *ctx, const dlrn_sparse *codes, int64_t i) {
    const int64_t first = codes->row_ptr[i], n = codes->row_ptr[i + 1] - first;
    int64_t index[TOP], top = n < TOP ? n : TOP;
    dlrn_status s = dlrn_topk(ctx, codes->val + first, n, top, index, NULL);
    printf("row %lld: %lld of %lld features are active; strongest:", (long long)i, (long long)n,
           (long long)codes->cols);
    for (int64_t k = 0; s == DLRN_OK && k < top; k++)
        printf(" %d (%.2f)", (int)codes->col[first + index[k]],
               (double)codes->val[first + index[k]]);
    putchar('\n');
    return s;
}

static dlrn_status encode_and_print(dlrn_context *ctx, const dlrn_dictionary *ae,
                                    const char *path) {
    const int64_t d = ae->d_in;
    dlrn_tensor x, x_hat;
    dlrn_sparse codes = {0};
    dlrn_status s = dlrn_tensor_alloc(ctx, ROWS, d, &x);
    if (s != DLRN_OK) return s;
    s = dlrn_tensor_alloc(ctx, ROWS, d, &x_hat);
    if (s == DLRN_OK && path) s = read_rows(ctx, path, d, x.data);
    if (!path) make_rows(ae, x.data);
    if (s == DLRN_OK) s = dlrn_forward(ae, x.data, ROWS, x_hat.data, &codes);
    for (int64_t i = 0; s == DLRN_OK && i < ROWS; i++) s = print_row(ctx, &codes, i);
    if (s == DLRN_OK) {
        float length = dlrn_norm(ctx, x.data, ROWS * d);
        dlrn_axpy(ctx, -1, x_hat.data, x.data, ROWS * d); /* x - x_hat */
        printf("reconstruction error: %.1f %% of the rows' length\n",
               100 * (double)(dlrn_norm(ctx, x.data, ROWS * d) / length));
    }
    dlrn_sparse_free(&codes);
    dlrn_free(ctx, x_hat.data);
    dlrn_free(ctx, x.data);
    return s;
}

int main(int argc, char **argv) {
    const char *path = argc > 1 ? argv[1] : "small_ae.pt";
    dlrn_context *ctx = NULL;
    dlrn_dictionary *ae = NULL;
    dlrn_status s = dlrn_context_create(NULL, &ctx);
    if (s == DLRN_OK && argc < 2) s = make_dictionary(ctx, path);
    if (s == DLRN_OK) s = dlrn_load(ctx, path, NULL, &ae);
    if (s == DLRN_OK)
        printf("%s: %s, %lld -> %lld features\n", path, ae->family, (long long)ae->d_in,
               (long long)ae->features);
    if (s == DLRN_OK) s = encode_and_print(ctx, ae, argc > 2 ? argv[2] : NULL);
    if (s != DLRN_OK) fprintf(stderr, "%s\n", dlrn_error(ctx));
    if (argc < 2) remove(path);
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
    return s != DLRN_OK;
}
