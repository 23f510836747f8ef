/* dictlearn: the command-line program, written on the public API alone. */
#define _POSIX_C_SOURCE 200809L /* mkdir */
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <sys/stat.h>

#include "dictlearn_args.h"

static int fail(dlrn_context *ctx) {
    fprintf(stderr, "dictlearn: %s\n", dlrn_error(ctx));
    return 1;
}

/* ---- inspect, convert ---- */

static void print_shape(const dlrn_tensor_info *t, const char *comma) {
    for (int d = 0; d < t->ndim; d++) printf("%s%lld", d ? comma : "", (long long)t->shape[d]);
}

static void print_norms(dlrn_context *ctx, const dlrn_dictionary *dict, int json) {
    double least = 1e300, most = 0, sum = 0;
    for (int64_t j = 0; j < dict->dict_size; j++) {
        double n = (double)dlrn_norm(ctx, dict->decoder_weight + j * dict->activation_dim, dict->activation_dim);
        least = n < least ? n : least;
        most = n > most ? n : most;
        sum += n;
    }
    double mean = sum / (double)dict->dict_size;
    if (json)
        printf(", \"atom_norms\": {\"min\": %.6g, \"mean\": %.6g, \"max\": %.6g}", least, mean, most);
    else
        printf("atom norms: min %.6g, mean %.6g, max %.6g\n", least, mean, most);
}

static int run_inspect(dlrn_context *ctx, const options *o) {
    dlrn_archive *a = NULL;
    dlrn_dictionary *dict = NULL;
    char path[4096];
    snprintf(path, sizeof path, "%s%s", o->path, dlrn_file_exists(o->path) == 2 ? "/ae.pt" : "");
    int is_dict = dlrn_load(ctx, o->path, &dict) == DLRN_OK && dict->encoder_weight;
    if (dlrn_archive_open(ctx, path, &a) != DLRN_OK) {
        dlrn_dictionary_destroy(dict);
        return fail(ctx);
    }
    printf(o->json ? "{\"path\": \"%s\", \"format\": \"%s\"" : "%s: %s\n", o->path, dlrn_archive_format(a));
    if (is_dict) {
        printf(o->json ? ", \"family\": \"%s\", \"activation_dim\": %lld, \"dict_size\": %lld"
                       : "family %s, activation_dim %lld, dict_size %lld\n",
               dlrn_dictionary_family(dict), (long long)dict->activation_dim, (long long)dict->dict_size);
        print_norms(ctx, dict, o->json);
    }
    if (o->json) printf(", \"tensors\": [");
    for (int64_t i = 0; i < dlrn_archive_count(a); i++) {
        const dlrn_tensor_info *t = dlrn_archive_info(a, i);
        printf(o->json ? "%s{\"name\": \"%s\", \"dtype\": \"%s\", \"shape\": [" : "%s%-24s %-5s [",
               o->json && i ? ", " : "", t->name, dlrn_dtype_name(t->dtype));
        print_shape(t, ", ");
        printf(o->json ? "]}" : "]\n");
    }
    if (o->json) printf("]}\n");
    dlrn_archive_close(a);
    dlrn_dictionary_destroy(dict);
    return 0;
}

static int run_convert(dlrn_context *ctx, const options *o) {
    dlrn_dictionary *dict = NULL;
    dlrn_status s = dlrn_load(ctx, o->path, &dict);
    if (s == DLRN_OK) s = dlrn_save(dict, o->path2);
    dlrn_dictionary_destroy(dict);
    return s == DLRN_OK ? 0 : fail(ctx);
}

/* ---- encode, decode, reconstruct: blocks of rows, whatever the file's size ---- */

enum { BLOCK = 1024 };

typedef struct array {
    dlrn_archive *file;
    char *bytes; /* standard input */
    int64_t rows, width;
} array;

static void array_close(dlrn_context *ctx, array *a) {
    dlrn_archive_close(a->file);
    dlrn_free(ctx, a->bytes);
}

static dlrn_status array_open(dlrn_context *ctx, const char *path, array *a) {
    size_t size = 0;
    dlrn_status s;
    memset(a, 0, sizeof *a);
    if (strcmp(path, "-")) {
        s = dlrn_archive_open(ctx, path, &a->file);
    } else {
        s = dlrn_file_read(ctx, "-", &a->bytes, &size);
        if (s == DLRN_OK) s = dlrn_archive_open_memory(ctx, a->bytes, size, "standard input", &a->file);
    }
    if (s != DLRN_OK) return s;
    const dlrn_tensor_info *t = dlrn_archive_info(a->file, 0);
    if (strcmp(dlrn_archive_format(a->file), "npy") || !t || t->ndim != 2) {
        fprintf(stderr, "dictlearn: %s: expected an array [rows, width] in .npy, found %s of %d dimensions\n", path,
                dlrn_archive_format(a->file), t ? t->ndim : 0);
        return DLRN_ERR_SHAPE;
    }
    a->rows = t->shape[0];
    a->width = t->shape[1];
    return DLRN_OK;
}

static int need(const options *o, int dict, int data, int out, const char *name) {
    const char *missing = dict && !o->dict ? "--dict" : data && !o->data ? "--data" : out && !o->out ? "--out" : NULL;
    if (missing) fprintf(stderr, "dictlearn: %s: this flag is needed: see dictlearn %s --help\n", missing, name);
    return missing != NULL;
}

static int wrong_width(const char *path, int64_t expected, int64_t found) {
    fprintf(stderr, "dictlearn: %s: wrong width, expected %lld, found %lld\n", path, (long long)expected,
            (long long)found);
    return 1;
}

/* A step of the three commands: rows x [n][in] to y [n][out], or to codes. */
typedef dlrn_status (*row_step)(const dlrn_dictionary *dict, const float *x, int64_t n, float *y);

static dlrn_status reconstruct_rows(const dlrn_dictionary *dict, const float *x, int64_t n, float *y) {
    return dlrn_forward(dict, x, n, y, NULL);
}

static dlrn_status stream_rows(dlrn_context *ctx, const dlrn_dictionary *dict, const options *o, array *in,
                               int64_t out_width, row_step step) {
    dlrn_tensor x, y;
    dlrn_sparse codes;
    dlrn_writer *w = NULL;
    memset(&codes, 0, sizeof codes);
    dlrn_status s = dlrn_tensor_create(ctx, BLOCK, in->width, &x);
    if (s != DLRN_OK) return s;
    s = dlrn_tensor_create(ctx, o->sparse ? 0 : BLOCK, out_width, &y);
    if (s == DLRN_OK)
        s = o->sparse ? dlrn_csr_create(ctx, o->out, out_width, &w)
                      : dlrn_npy_create(ctx, o->out, out_width, in->rows, &w);
    for (int64_t i = 0; i < in->rows && s == DLRN_OK; i += BLOCK) {
        int64_t n = in->rows - i < BLOCK ? in->rows - i : BLOCK;
        s = dlrn_archive_read_rows(in->file, 0, i, n, x.data);
        if (s == DLRN_OK) s = o->sparse ? dlrn_encode_sparse(dict, x.data, n, &codes) : step(dict, x.data, n, y.data);
        if (s == DLRN_OK) s = o->sparse ? dlrn_csr_append(w, &codes) : dlrn_npy_append(w, y.data, n);
    }
    if (s == DLRN_OK)
        s = dlrn_writer_close(w);
    else
        dlrn_writer_abort(w);
    dlrn_sparse_free(&codes);
    dlrn_tensor_free(ctx, &x);
    dlrn_tensor_free(ctx, &y);
    return s;
}

static int run_rows(dlrn_context *ctx, const options *o, const char *name, int features_in, int features_out,
                    row_step step) {
    dlrn_dictionary *dict = NULL;
    array in;
    if (need(o, 1, 1, 1, name)) return 2;
    if (dlrn_load(ctx, o->dict, &dict) != DLRN_OK) return fail(ctx);
    int status = 0;
    dlrn_status s = array_open(ctx, o->data, &in);
    int64_t width = features_in ? dict->dict_size : dict->activation_dim;
    if (s == DLRN_ERR_SHAPE)
        status = 1;
    else if (s != DLRN_OK)
        status = fail(ctx);
    else if (in.width != width)
        status = wrong_width(o->data, width, in.width);
    else if (stream_rows(ctx, dict, o, &in, features_out ? dict->dict_size : dict->activation_dim, step) != DLRN_OK)
        status = fail(ctx);
    array_close(ctx, &in);
    dlrn_dictionary_destroy(dict);
    return status;
}

static int run_encode(dlrn_context *ctx, const options *o) {
    return run_rows(ctx, o, "encode", 0, 1, dlrn_encode);
}

static int run_reconstruct(dlrn_context *ctx, const options *o) {
    return run_rows(ctx, o, "reconstruct", 0, 0, reconstruct_rows);
}

/* Rows [first, first + n) of codes as a matrix of their own; borrows. */
static int decode_csr(dlrn_context *ctx, const options *o) {
    dlrn_dictionary *dict = NULL;
    dlrn_sparse codes;
    dlrn_tensor y;
    dlrn_writer *w = NULL;
    memset(&codes, 0, sizeof codes);
    dlrn_status s = dlrn_load(ctx, o->dict, &dict);
    if (s != DLRN_OK) return fail(ctx);
    s = dlrn_csr_load(ctx, o->data, &codes);
    if (s == DLRN_OK && codes.cols != dict->dict_size) {
        int status = wrong_width(o->data, dict->dict_size, codes.cols);
        dlrn_sparse_free(&codes);
        dlrn_dictionary_destroy(dict);
        return status;
    }
    if (s == DLRN_OK) s = dlrn_tensor_create(ctx, codes.rows, dict->activation_dim, &y);
    if (s == DLRN_OK) {
        s = dlrn_decode_sparse(dict, &codes, y.data);
        if (s == DLRN_OK) s = dlrn_npy_create(ctx, o->out, dict->activation_dim, codes.rows, &w);
        if (s == DLRN_OK) s = dlrn_npy_append(w, y.data, codes.rows);
        if (s == DLRN_OK)
            s = dlrn_writer_close(w);
        else
            dlrn_writer_abort(w);
        dlrn_tensor_free(ctx, &y);
    }
    dlrn_sparse_free(&codes);
    dlrn_dictionary_destroy(dict);
    return s == DLRN_OK ? 0 : fail(ctx);
}

static int run_decode(dlrn_context *ctx, const options *o) {
    if (need(o, 1, 1, 1, "decode")) return 2;
    size_t n = strlen(o->data);
    if (n > 4 && !strcmp(o->data + n - 4, ".npz")) return decode_csr(ctx, o);
    return run_rows(ctx, o, "decode", 1, 0, dlrn_decode);
}

#include "dictlearn_train.h"
#include "dictlearn_eval.h"

static const command commands[] = {
    {"inspect", C_INSPECT, 1, "PATH [--json]", "Says what a file or a folder holds: format, family, every tensor.",
     "build/dictlearn inspect examples/data/tiny-neox/model.safetensors", run_inspect},
    {"convert", C_CONVERT, 2, "IN OUT",
     "Rewrites a dictionary; the format follows OUT's suffix (.pt .safetensors .npz).",
     "build/dictlearn convert dictionaries/ae.pt ae.safetensors", run_convert},
    {"encode", C_ENCODE, 0, "--dict D --data X.npy --out F.npy [--sparse]",
     "Features [rows, F] of activations [rows, d].",
     "build/dictlearn encode --dict dictionaries/ae.pt --data x.npy --out f.npz --sparse", run_encode},
    {"decode", C_DECODE, 0, "--dict D --data F.npy|F.npz --out X.npy", "Reconstructions from features.",
     "build/dictlearn decode --dict dictionaries/ae.pt --data f.npz --out x_hat.npy", run_decode},
    {"reconstruct", C_RECONSTRUCT, 0, "--dict D --data X.npy --out X_HAT.npy", "decode(encode(x)).",
     "build/dictlearn reconstruct --dict dictionaries/ae.pt --data x.npy --out x_hat.npy", run_reconstruct},
    {"train", C_TRAIN, 0, "--data X.npy [--target Y.npy] --save-dir DIR ...", "Trains a dictionary.",
     "build/dictlearn train --data x.npy --save-dir run --expansion 8 --batch-size 1024 --epochs 4", run_train},
    {"eval", C_EVAL, 0, "--dict D --data X.npy [--target Y.npy] [--json]", "Measures a dictionary: the README's table.",
     "build/dictlearn eval --dict run --data x.npy --rows 8192", run_eval},
};

static void print_commands(void) {
    printf("dictlearn %s: sparse autoencoders, trained, measured and looked into\n\n", DLRN_VERSION_STRING);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        printf("  dictlearn %-12s %s\n", commands[i].name, commands[i].what);
    printf("\ndictlearn COMMAND --help tells a command's flags. Exit status: 0 done, 1 failed, 2 wrong usage.\n");
}

int main(int argc, char **argv) {
    const command *c = NULL;
    if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "help"))) return print_commands(), 0;
    for (size_t i = 0; argc > 1 && i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(argv[1], commands[i].name)) c = &commands[i];
    if (!c) {
        fprintf(stderr, "dictlearn: %s: see dictlearn --help\n", argc > 1 ? argv[1] : "a command is needed");
        return 2;
    }
    options o = default_options();
    int status = parse_options(c, argc - 2, argv + 2, &o);
    if (status) return status;
    if (o.help) return print_help(c), 0;
    dlrn_context *ctx = NULL;
    dlrn_context_config cfg = dlrn_context_defaults();
    cfg.threads = (int)o.threads;
    cfg.kernels = o.kernels;
    if (dlrn_context_create(&cfg, &ctx) != DLRN_OK)
        return usage_error(c->name, "no such set of kernels here", o.kernels);
    status = c->run(ctx, &o);
    dlrn_context_destroy(ctx);
    return status;
}
