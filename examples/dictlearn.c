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
#include <unistd.h>

#define BPE_IMPLEMENTATION
#define DOCUMENTS_IMPLEMENTATION
#define GPTNEOX_IMPLEMENTATION
#include "bpe.h"
#include "documents.h"
#include "gptneox.h"

#include "dictlearn_args.h"

static int fail(dlrn_context *ctx) {
    fprintf(stderr, "dictlearn: %s\n", dlrn_error(ctx));
    return 1;
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A line of progress: redrawn in place on a terminal. */
static int told_on_terminal;

static DLRN_PRINTF(1, 2) void tell(const char *format, ...) {
    va_list args;
    int terminal = isatty(2);
    va_start(args, format);
    if (terminal) fputs("\r\033[K", stderr);
    vfprintf(stderr, format, args);
    if (!terminal) fputc('\n', stderr);
    told_on_terminal = terminal;
    va_end(args);
}

static void tell_end(void) { /* the terminal's line is left standing */
    if (told_on_terminal) fputc('\n', stderr);
    told_on_terminal = 0;
}

/* Bytes as a JSON string; what is not UTF-8 (a character cut in two) becomes U+FFFD. */
static void put_json_text(FILE *f, const char *s, int64_t n) {
    fputc('"', f);
    for (int64_t i = 0, length; i < n; i += length) {
        uint32_t c;
        length = bpe_char(s + i, n - i, &c);
        if (c >= BPE_RAW)
            fputs("\\ufffd", f);
        else if (c == '"' || c == '\\')
            fprintf(f, "\\%c", (char)c);
        else if (c == '\n')
            fputs("\\n", f);
        else if (c < 32)
            fprintf(f, "\\u%04x", (unsigned)c);
        else
            fwrite(s + i, 1, (size_t)length, f);
    }
    fputc('"', f);
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

static void print_tensors(const dlrn_archive *a, int json) {
    if (json) printf(", \"tensors\": [");
    for (int64_t i = 0; i < dlrn_archive_count(a); i++) {
        const dlrn_tensor_info *t = dlrn_archive_info(a, i);
        if (json) {
            printf("%s{\"name\": ", i ? ", " : "");
            put_json_text(stdout, t->name, (int64_t)strlen(t->name));
            printf(", \"dtype\": \"%s\", \"shape\": [", dlrn_dtype_name(t->dtype));
        } else {
            printf("%-24s %-5s [", t->name, dlrn_dtype_name(t->dtype));
        }
        print_shape(t, ", ");
        printf(json ? "]}" : "]\n");
    }
    if (json) printf("]");
}

static void print_model(const neox_config *c, int json) {
    const struct {
        const char *name;
        int64_t value;
    } rows[] = {{"hidden_size", c->dim},
                {"layers", c->layers},
                {"heads", c->heads},
                {"intermediate_size", c->inner},
                {"vocab_size", c->vocab},
                {"positions", c->positions},
                {"rotary_dimensions", c->rotary},
                {"parallel_residual", c->parallel}};
    printf(json ? ", \"family\": \"GPTNeoX\"" : "family GPTNeoX\n");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        printf(json ? ", \"%s\": %lld" : "%s %lld\n", rows[i].name, (long long)rows[i].value);
}

/* The file that holds the tensors of a folder: of a dictionary or of a model. */
static void tensors_of(const char *path, char *file, size_t size) {
    static const char *const names[] = {"ae.pt",
                                        "trainer_0/ae.pt",
                                        "ae.safetensors",
                                        "ae.npz",
                                        "model.safetensors",
                                        "model.safetensors.index.json",
                                        "pytorch_model.bin",
                                        "pytorch_model.bin.index.json"};
    snprintf(file, size, "%s", path);
    for (size_t i = 0; dlrn_file_exists(path) == 2 && i < sizeof names / sizeof *names; i++) {
        snprintf(file, size, "%s/%s", path, names[i]);
        if (dlrn_file_exists(file) == 1) return;
    }
}

static int run_inspect(dlrn_context *ctx, const options *o) {
    dlrn_archive *a = NULL;
    dlrn_dictionary *dict = NULL;
    neox_model *model = NULL;
    char path[4200], config[4200];
    tensors_of(o->path, path, sizeof path);
    snprintf(config, sizeof config, "%s/config.json", o->path);
    int is_model = strstr(path, "model") && dlrn_file_exists(config) == 1 && neox_load(ctx, o->path, &model) == DLRN_OK;
    int is_dict = !is_model && dlrn_load(ctx, o->path, &dict) == DLRN_OK && dict->encoder_weight;
    dlrn_status s = dlrn_archive_open(ctx, path, &a);
    if (s == DLRN_OK && o->json) {
        printf("{\"path\": ");
        put_json_text(stdout, o->path, (int64_t)strlen(o->path));
        printf(", \"format\": \"%s\"", dlrn_archive_format(a));
    } else if (s == DLRN_OK) {
        printf("%s: %s\n", o->path, dlrn_archive_format(a));
    }
    if (s == DLRN_OK && is_model) print_model(neox_config_of(model), o->json);
    if (s == DLRN_OK && is_dict) {
        printf(o->json ? ", \"family\": \"%s\", \"activation_dim\": %lld, \"dict_size\": %lld"
                       : "family %s, activation_dim %lld, dict_size %lld\n",
               dlrn_dictionary_family(dict), (long long)dict->activation_dim, (long long)dict->dict_size);
        print_norms(ctx, dict, o->json);
    }
    if (s == DLRN_OK) print_tensors(a, o->json);
    if (s == DLRN_OK && o->json) printf("}\n");
    dlrn_archive_close(a);
    dlrn_dictionary_destroy(dict);
    neox_destroy(model);
    return s == DLRN_OK ? 0 : fail(ctx);
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

#include "dictlearn_model.h"
#include "dictlearn_train.h"
#include "dictlearn_eval.h"
#include "dictlearn_features.h"

#define TINY "--model examples/data/tiny-neox"
#define TINY_SITE TINY " --text build/text.jsonl --site mlp_out --layer 0"
static const command commands[] = {
    {"inspect", C_INSPECT, 1, "PATH [--json]",
     "Says what a file or a folder holds: format, family, every tensor; of a dictionary its sizes and the norms of "
     "its\n"
     "atoms, of a model its shape.",
     "build/dictlearn inspect examples/data/tiny-neox", run_inspect},
    {"convert", C_CONVERT, 2, "IN OUT",
     "Rewrites a dictionary; the format follows OUT's suffix (.pt .safetensors .npz).",
     "build/dictlearn convert build/run build/ae.safetensors", run_convert},
    {"encode", C_ENCODE, 0, "--dict D --data X.npy --out F.npy [--sparse]",
     "Features [rows, F] of activations [rows, d].",
     "build/dictlearn encode --dict build/run --data build/x.npy --out build/f.npz --sparse", run_encode},
    {"decode", C_DECODE, 0, "--dict D --data F.npy|F.npz --out X.npy", "Reconstructions from features.",
     "build/dictlearn decode --dict build/run --data build/f.npz --out build/x_hat.npy", run_decode},
    {"reconstruct", C_RECONSTRUCT, 0, "--dict D --data X.npy --out X_HAT.npy", "decode(encode(x)).",
     "build/dictlearn reconstruct --dict build/run --data build/x.npy --out build/x_hat.npy", run_reconstruct},
    {"tokenize", C_TOKENIZE, 0, "--model DIR --text FILE [--json]", "Token ids, one document a line.",
     "build/dictlearn tokenize " TINY " --text build/text.jsonl --documents 3", run_tokenize},
    {"generate", C_GENERATE, 0, "--model DIR [--prompt TEXT] --tokens N [--documents N] [--out FILE.jsonl]",
     "Samples text: plain to standard output, or JSON lines to a file (--out - for standard output).",
     "build/dictlearn generate " TINY " --tokens 128 --documents 400 --out build/text.jsonl", run_generate},
    {"activations", C_ACTIVATIONS, 0, "--model DIR --text FILE --site S --layer N --out X.npy [--limit ROWS]",
     "Rows of activations, in the order of the text. With --io in_to_out: the module's outputs.",
     "build/dictlearn activations " TINY_SITE " --out build/x.npy", run_activations},
    {"logits", C_LOGITS, 0, "--model DIR --text FILE --out L.npy",
     "Next-token logits [tokens, vocabulary] of the first document.",
     "build/dictlearn logits " TINY " --text build/text.jsonl --out build/logits.npy", run_logits},
    {"train", C_TRAIN, 0, "SOURCE --save-dir DIR ...",
     "Trains a dictionary. SOURCE is --model DIR --text FILE --site S --layer N, or --data X.npy [--target Y.npy].",
     "build/dictlearn train " TINY_SITE " --save-dir build/run \\\n"
     "    --expansion 8 --batch-size 512 --lr 3e-3 --sparsity-penalty 0.12 --warmup-steps 20 --n-ctxs 300",
     run_train},
    {"eval", C_EVAL, 0, "--dict D SOURCE [--json]",
     "Measures a dictionary: the README's table. SOURCE as for train; with a model also the cross-entropy rows.",
     "build/dictlearn eval --dict build/run " TINY_SITE, run_eval},
    {"features", C_FEATURES, 0, "--dict D --model DIR --text FILE --site S --layer N [--features I,J,...]",
     "Shows features with the tokens and the contexts that fire them most.",
     "build/dictlearn features --dict build/run " TINY_SITE " --count 3", run_features},
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
