/* dictlearn: the command-line program, written on the public API alone. */
#define _POSIX_C_SOURCE 200809L /* mkdir, sigaction, open_memstream */
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <sys/stat.h>
#include <unistd.h>

#define LM_IMPLEMENTATION
#include "../lm/lm.h"

#include "args.h"
#include "process.h"
#include "source.h"

static int fail(dlrn_context *ctx) {
    if (output_failed()) {
        end_if_unread();
        if (strncmp(dlrn_error(ctx), "standard output: ", 17)) return 1; /* it is told at the end */
    }
    fprintf(stderr, "dictlearn: %s\n",
            stop_asked && !stop_held ? "stopped before it was done: nothing was saved"
                                     : dlrn_error(ctx));
    clearerr(stdout); /* told */
    return 1;
}

/* They never go back, whatever the clock does. */
static double seconds(void) {
    static double last;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    double now = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    return last = now > last ? now : last;
}

/* So many in a time; 0 where that is too short to tell. */
static double per_second(int64_t count, double time) {
    return time > 1e-6 ? (double)count / time : 0;
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

/* Names and texts of files are shown without what a terminal would obey. */
static int is_control(uint32_t c) {
    return c < 32 || (c >= 127 && c < 160);
}

/* Bytes for people, on one line: line ends become a sign, blanks a space, other control characters
   a question mark, and what is not UTF-8 U+FFFD. Returns how many characters that are. */
static int put_text(FILE *f, const char *s, int64_t n) {
    int shown = 0;
    for (int64_t i = 0, length; i < n; i += length, shown++) {
        uint32_t c;
        length = bpe_char(s + i, n - i, &c);
        if (c >= BPE_RAW)
            fputs("\xEF\xBF\xBD", f);
        else if (c == '\n')
            fputs("\xE2\x8F\x8E", f);
        else if (is_control(c))
            fputc(c == '\t' || c == '\r' ? ' ' : '?', f);
        else
            fwrite(s + i, 1, (size_t)length, f);
    }
    return shown;
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
        else if (is_control(c))
            fprintf(f, "\\u%04x", (unsigned)c);
        else
            fwrite(s + i, 1, (size_t)length, f);
    }
    fputc('"', f);
}

/* What is printed into memory, so that the library writes it: whole, or not at all. */
typedef struct page {
    FILE *f;
    char *text;
    size_t size;
} page;

static dlrn_status page_open(dlrn_context *ctx, page *p) {
    memset(p, 0, sizeof *p);
    p->f = open_memstream(&p->text, &p->size);
    return p->f ? DLRN_OK : dlrn_fail(ctx, DLRN_ERR_MEMORY, "out of memory");
}

/* Ends the printing: text [size], with a 0 after it; freed with page_free. */
static dlrn_status page_end(dlrn_context *ctx, page *p) {
    int bad = ferror(p->f) != 0;
    bad |= fclose(p->f) != 0;
    return bad ? dlrn_fail(ctx, DLRN_ERR_MEMORY, "out of memory") : DLRN_OK;
}

static void page_free(page *p) {
    free(p->text);
    p->text = NULL;
}

static int ends_with(const char *text, const char *end) {
    size_t n = strlen(text), k = strlen(end);
    return n >= k && !strcmp(text + n - k, end);
}

/* 0, or 2 if a file has another suffix than what is written to it. No suffix, a device and a pipe
   are fine. */
static int check_suffix(const char *command_name, const char *path, const char *suffix,
                        const char *other) {
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    struct stat st;
    if (ends_with(path, suffix) || (*other && ends_with(path, other)) || !strchr(name, '.'))
        return 0;
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode)) return 0;
    fprintf(stderr, "dictlearn: %s: expected a name ending in %s%s%s: see dictlearn %s --help\n",
            path, suffix, *other ? " or " : "", other, command_name);
    return 2;
}

/* ---- inspect, convert ---- */

static void print_shape(const dlrn_tensor_info *t, const char *comma) {
    for (int d = 0; d < t->ndim; d++) printf("%s%lld", d ? comma : "", (long long)t->shape[d]);
}

static void print_norms(dlrn_context *ctx, const dlrn_dictionary *dict, int json) {
    double least = 1e300, most = 0, sum = 0;
    for (int64_t j = 0; j < dict->features; j++) {
        double n = (double)dlrn_norm(ctx, dict->param[DLRN_DECODER] + j * dict->d_in, dict->d_in);
        least = n < least ? n : least;
        most = n > most ? n : most;
        sum += n;
    }
    double mean = sum / (double)dict->features;
    if (json)
        printf(", \"atom_norms\": {\"min\": %.6g, \"mean\": %.6g, \"max\": %.6g}", least, mean,
               most);
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
            int shown = put_text(stdout, t->name, (int64_t)strlen(t->name));
            printf("%*s %-5s [", shown < 24 ? 24 - shown : 0, "", dlrn_dtype_name(t->dtype));
        }
        print_shape(t, ", ");
        printf(json ? "]}" : "]\n");
    }
    if (json) printf("]");
}

static void print_model(const lm_config *c, int json) {
    const struct {
        const char *name;
        int64_t value;
    } rows[] = {{"hidden_size", c->dim},
                {"layers", c->layers},
                {"heads", c->heads},
                {"intermediate_size", c->inner},
                {"vocab_size", c->vocab},
                {"positions", c->positions},
                {"rotary_dimensions", c->rope.dims},
                {"parallel_residual", c->parallel}};
    printf(json ? ", \"family\": \"GPTNeoX\"" : "family GPTNeoX\n");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        printf(json ? ", \"%s\": %lld" : "%s %lld\n", rows[i].name, (long long)rows[i].value);
}

/* The file that holds the tensors of a folder: of a dictionary or of a model. */
static dlrn_status tensors_of(dlrn_context *ctx, const char *path, char *file, size_t size) {
    static const char *const names[] = {"ae.pt",
                                        "trainer_0/ae.pt",
                                        "ae.safetensors",
                                        "ae.npz",
                                        "model.safetensors",
                                        "model.safetensors.index.json",
                                        "pytorch_model.bin",
                                        "pytorch_model.bin.index.json"};
    snprintf(file, size, "%s", path);
    if (dlrn_file_exists(ctx, path) != 2) return DLRN_OK;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(file, size, "%s/%s", path, names[i]);
        if (dlrn_file_exists(ctx, file) == 1) return DLRN_OK;
    }
    return dlrn_fail(ctx, DLRN_ERR_IO,
                     "%s: expected a dictionary (ae.pt) or a model (model.safetensors, "
                     "pytorch_model.bin) in this folder, "
                     "found neither",
                     path);
}

static int run_inspect(dlrn_context *ctx, const options *o) {
    dlrn_archive *a = NULL;
    dlrn_dictionary *dict = NULL;
    lm_config model;
    char path[4200], config[4200];
    dlrn_status s = tensors_of(ctx, o->path, path, sizeof path);
    snprintf(config, sizeof config, "%s/config.json", o->path);
    int of_model = s == DLRN_OK && strstr(path + strlen(o->path), "model"), is_model = 0,
        is_dict = 0;
    dlrn_status tried = DLRN_OK;
    if (of_model && dlrn_file_exists(ctx, config) == 1) {
        tried = lm_read_config(ctx, o->path, &model);
        is_model = tried == DLRN_OK;
    } else if (s == DLRN_OK && !of_model) {
        tried = dlrn_load(ctx, o->path, NULL, &dict);
        is_dict = tried == DLRN_OK && dict->param[DLRN_ENCODER];
    }
    if (tried == DLRN_ERR_MEMORY || tried == DLRN_ERR_IO)
        s = tried; /* which says nothing of what the file holds */
    if (s == DLRN_OK) s = dlrn_archive_open(ctx, path, &a);
    if (s == DLRN_OK && o->json) {
        printf("{\"path\": ");
        put_json_text(stdout, o->path, (int64_t)strlen(o->path));
        printf(", \"format\": \"%s\"", dlrn_archive_format(a));
    } else if (s == DLRN_OK) {
        put_text(stdout, o->path, (int64_t)strlen(o->path));
        printf(": %s\n", dlrn_archive_format(a));
    }
    if (s == DLRN_OK && is_model) print_model(&model, o->json);
    if (s == DLRN_OK && is_dict) {
        printf(o->json ? ", \"family\": \"%s\", \"activation_dim\": %lld, \"dict_size\": %lld"
                       : "family %s, activation_dim %lld, dict_size %lld\n",
               dlrn_dictionary_family(dict), (long long)dict->d_in, (long long)dict->features);
        print_norms(ctx, dict, o->json);
    }
    if (s == DLRN_OK) print_tensors(a, o->json);
    if (s == DLRN_OK && o->json) printf("}\n");
    dlrn_archive_close(a);
    dlrn_dictionary_destroy(dict);
    return s == DLRN_OK ? 0 : fail(ctx);
}

static int run_convert(dlrn_context *ctx, const options *o) {
    dlrn_dictionary *dict = NULL;
    if (!ends_with(o->path2, ".pt") && !ends_with(o->path2, ".safetensors") &&
        !ends_with(o->path2, ".npz"))
        return usage_error("convert", "expected a name ending in .pt, .safetensors or .npz",
                           o->path2);
    dlrn_status s = dlrn_load(ctx, o->path, NULL, &dict);
    if (s == DLRN_OK && stopping(NULL)) s = DLRN_STOPPED;
    if (s == DLRN_OK) s = dlrn_save(dict, o->path2);
    dlrn_dictionary_destroy(dict);
    return s == DLRN_OK ? 0 : fail(ctx);
}

/* ---- encode, decode, reconstruct: blocks of rows, whatever the file's size ---- */

enum { BLOCK = 1024 };

typedef struct array {
    dlrn_archive *file;
    char *bytes; /* standard input */
    int is_codes;
    dlrn_sparse codes;
    int64_t rows, width;
} array;

static void array_close(dlrn_context *ctx, array *a) {
    dlrn_sparse_free(&a->codes);
    dlrn_archive_close(a->file);
    dlrn_free(ctx, a->bytes);
}

/* Rows in a .npy or, where codes will do, in a CSR .npz: told apart by content. */
static dlrn_status array_open(dlrn_context *ctx, const char *path, int takes_codes, array *a) {
    size_t size = 0;
    dlrn_status s;
    memset(a, 0, sizeof *a);
    if (strcmp(path, "-")) {
        s = dlrn_archive_open(ctx, path, &a->file);
    } else {
        s = dlrn_file_read(ctx, "-", &a->bytes, &size);
        if (s == DLRN_OK)
            s = dlrn_archive_open_memory(ctx, a->bytes, size, "standard input", &a->file);
    }
    if (s != DLRN_OK) return s;
    const dlrn_tensor_info *t = dlrn_archive_info(a->file, 0);
    if (takes_codes && !strcmp(dlrn_archive_format(a->file), "npz")) {
        a->is_codes = 1;
        s = dlrn_csr_read(a->file, &a->codes);
        a->rows = a->codes.rows;
        a->width = a->codes.cols;
        return s;
    }
    if (strcmp(dlrn_archive_format(a->file), "npy") || !t || t->ndim != 2)
        return dlrn_fail(ctx, DLRN_ERR_SHAPE,
                         "%s: expected an array [rows, width] in .npy%s, found %s of %d dimensions",
                         dlrn_archive_path(a->file), takes_codes ? " or CSR in .npz" : "",
                         dlrn_archive_format(a->file), t ? t->ndim : 0);
    a->rows = t->shape[0];
    a->width = t->shape[1];
    return DLRN_OK;
}

static int need(const options *o, int dict, int data, int out, const char *name) {
    const char *missing = dict && !o->dict   ? "--dict"
                          : data && !o->data ? "--data"
                          : out && !o->out   ? "--out"
                                             : NULL;
    if (missing)
        fprintf(stderr, "dictlearn: %s: this flag is needed: see dictlearn %s --help\n", missing,
                name);
    return missing != NULL;
}

/* A step of the three commands: rows x [n][in] to y [n][out], or to codes. */
typedef dlrn_status (*row_step)(const dlrn_dictionary *dict, const float *x, int64_t n, float *y);

static dlrn_status reconstruct_rows(const dlrn_dictionary *dict, const float *x, int64_t n,
                                    float *y) {
    return dlrn_forward(dict, x, n, y, NULL);
}

/* Rows [first, first + n) of the codes, n <= BLOCK, as a matrix that borrows. */
static dlrn_status decode_rows(const dlrn_dictionary *dict, const dlrn_sparse *codes, int64_t first,
                               int64_t n, float *y) {
    int64_t ptr[BLOCK + 1], from = codes->row_ptr[first];
    dlrn_sparse view = *codes;
    for (int64_t i = 0; i <= n; i++) ptr[i] = codes->row_ptr[first + i] - from;
    view.rows = n;
    view.row_ptr = ptr;
    view.col += from;
    view.val += from;
    return dlrn_decode_sparse(dict, &view, y);
}

static dlrn_status stream_rows(dlrn_context *ctx, const dlrn_dictionary *dict, const options *o,
                               array *in, int64_t out_width, row_step step) {
    dlrn_tensor x, y;
    dlrn_sparse codes;
    dlrn_writer *w = NULL;
    memset(&codes, 0, sizeof codes);
    dlrn_status s = dlrn_tensor_create(ctx, in->is_codes ? 0 : BLOCK, in->width, &x);
    if (s != DLRN_OK) return s;
    s = dlrn_tensor_create(ctx, o->sparse ? 0 : BLOCK, out_width, &y);
    if (s == DLRN_OK)
        s = o->sparse ? dlrn_csr_create(ctx, o->out, out_width, &w)
                      : dlrn_npy_create(ctx, o->out, out_width, in->rows, &w);
    for (int64_t i = 0; i < in->rows && s == DLRN_OK; i += BLOCK) {
        int64_t n = in->rows - i < BLOCK ? in->rows - i : BLOCK;
        if (stopping(NULL)) s = DLRN_STOPPED;
        if (s == DLRN_OK && !in->is_codes) s = dlrn_archive_read_rows(in->file, 0, i, n, x.data);
        if (s == DLRN_OK && in->is_codes)
            s = decode_rows(dict, &in->codes, i, n, y.data);
        else if (s == DLRN_OK)
            s = o->sparse ? dlrn_encode_sparse(dict, x.data, n, &codes)
                          : step(dict, x.data, n, y.data);
        if (s == DLRN_OK)
            s = o->sparse ? dlrn_csr_append(w, &codes) : dlrn_npy_append(w, y.data, n);
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

static dlrn_status expect_width(dlrn_context *ctx, const char *path, int64_t expected,
                                int64_t found) {
    if (expected == found) return DLRN_OK;
    return dlrn_fail(ctx, DLRN_ERR_SHAPE, "%s: wrong width, expected %lld, found %lld", path,
                     (long long)expected, (long long)found);
}

static int run_rows(dlrn_context *ctx, const options *o, const char *name, int features_in,
                    int features_out, row_step step) {
    dlrn_dictionary *dict = NULL;
    array in;
    memset(&in, 0, sizeof in);
    if (need(o, 1, 1, 1, name) || check_suffix(name, o->out, o->sparse ? ".npz" : ".npy", ""))
        return 2;
    dlrn_status s = dlrn_load(ctx, o->dict, NULL, &dict);
    if (s == DLRN_OK) s = array_open(ctx, o->data, features_in, &in);
    if (s == DLRN_OK) {
        const char *path = strcmp(o->data, "-") ? o->data : "standard input";
        s = expect_width(ctx, path, features_in ? dict->features : dict->d_in, in.width);
    }
    if (s == DLRN_OK)
        s = stream_rows(ctx, dict, o, &in, features_out ? dict->features : dict->d_in, step);
    array_close(ctx, &in);
    dlrn_dictionary_destroy(dict);
    return s == DLRN_OK ? 0 : fail(ctx);
}

static int run_encode(dlrn_context *ctx, const options *o) {
    return run_rows(ctx, o, "encode", 0, 1, dlrn_encode);
}

static int run_reconstruct(dlrn_context *ctx, const options *o) {
    return run_rows(ctx, o, "reconstruct", 0, 0, reconstruct_rows);
}

static int run_decode(dlrn_context *ctx, const options *o) {
    return run_rows(ctx, o, "decode", 1, 0, dlrn_decode);
}

#include "model.h"
#include "train.h"
#include "eval.h"
#include "features.h"

#define TINY "--model examples/data/tiny-neox"
#define TINY_SITE TINY " \\\n    --text build/text.jsonl --site mlp_out --layer 0"
/* In an order in which the examples can be run: each finds what those before it have made. */
static const command commands[] = {
    {"generate", C_GENERATE, 0,
     "--model DIR [--prompt TEXT] --tokens N [--documents N] [--out FILE.jsonl]",
     "Samples text: plain to standard output, or JSON lines to a file (--out - for standard "
     "output).",
     "",
     "build/dictlearn generate " TINY " --tokens 128 --documents 400 \\\n"
     "    --out build/text.jsonl",
     run_generate},
    {"tokenize", C_TOKENIZE, 0, "--model DIR --text FILE [--json]",
     "Token ids, one document a line.", "build/text.jsonl: see generate --help",
     "build/dictlearn tokenize " TINY " --text build/text.jsonl --documents 3", run_tokenize},
    {"logits", C_LOGITS, 0, "--model DIR --text FILE --out L.npy",
     "Next-token logits [tokens, vocabulary] of the first document.",
     "build/text.jsonl: see generate --help",
     "build/dictlearn logits " TINY " --text build/text.jsonl \\\n"
     "    --out build/logits.npy",
     run_logits},
    {"activations", C_ACTIVATIONS, 0,
     "--model DIR --text FILE --site S --layer N --out X.npy [--limit ROWS]",
     "Rows of activations, in the order of the text. With --io in_to_out: the module's outputs.",
     "build/text.jsonl: see generate --help",
     "build/dictlearn activations " TINY_SITE " --out build/x.npy", run_activations},
    {"train", C_TRAIN, 0, "SOURCE --save-dir DIR ...",
     "Trains a dictionary. SOURCE is --model DIR --text FILE --site S --layer N, or --data X.npy "
     "[--target Y.npy]. "
     "Interrupted (Ctrl-C, SIGTERM, SIGHUP) it saves and says how to go on.",
     "build/text.jsonl: see generate --help",
     "build/dictlearn train " TINY_SITE " \\\n"
     "    --save-dir build/run --expansion 8 --batch-size 512 --lr 3e-3 --sparsity-penalty 0.12 "
     "\\\n"
     "    --warmup-steps 20 --n-ctxs 300",
     run_train},
    {"inspect", C_INSPECT, 1, "PATH [--json]",
     "Says what a file or a folder holds: format, family, every tensor; of a dictionary its sizes "
     "and the norms of its "
     "atoms, of a model its shape.",
     "", "build/dictlearn inspect examples/data/tiny-neox", run_inspect},
    {"convert", C_CONVERT, 2, "IN OUT",
     "Rewrites a dictionary; the format follows OUT's suffix (.pt .safetensors .npz).",
     "build/run: see train --help", "build/dictlearn convert build/run build/ae.safetensors",
     run_convert},
    {"encode", C_ENCODE, 0, "--dict D --data X.npy --out F.npy | --sparse --out F.npz",
     "Features [rows, F] of activations [rows, d].",
     "build/run: see train --help; build/x.npy: see activations --help",
     "build/dictlearn encode --dict build/run --data build/x.npy --sparse --out build/f.npz",
     run_encode},
    {"decode", C_DECODE, 0, "--dict D --data F.npy|F.npz --out X.npy",
     "Reconstructions from features.",
     "build/run: see train --help; build/f.npz: see encode --help",
     "build/dictlearn decode --dict build/run --data build/f.npz --out build/x_hat.npy",
     run_decode},
    {"reconstruct", C_RECONSTRUCT, 0, "--dict D --data X.npy --out X_HAT.npy", "decode(encode(x)).",
     "build/run: see train --help; build/x.npy: see activations --help",
     "build/dictlearn reconstruct --dict build/run --data build/x.npy --out build/x_hat.npy",
     run_reconstruct},
    {"eval", C_EVAL, 0, "--dict D SOURCE [--json]",
     "Measures a dictionary: the README's table. SOURCE as for train; with a model also the "
     "cross-entropy rows.",
     "build/run: see train --help; build/text.jsonl: see generate --help",
     "build/dictlearn eval --dict build/run " TINY_SITE, run_eval},
    {"features", C_FEATURES, 0,
     "--dict D --model DIR --text FILE --site S --layer N [--features I,J,...]",
     "Shows features with the tokens and the contexts that fire them most.",
     "build/run: see train --help; build/text.jsonl: see generate --help",
     "build/dictlearn features --dict build/run " TINY_SITE " --count 3", run_features},
};

static void print_commands(void) {
    printf("dictlearn %s: sparse autoencoders, trained, measured and looked into\n\n",
           DLRN_VERSION_STRING);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        print_wrapped(commands[i].what, printf("  dictlearn %-12s ", commands[i].name), 25);
    printf("\ndictlearn COMMAND --help tells a command's flags. Exit status: 0 done, 1 failed, 2 "
           "wrong usage.\n");
}

int main(int argc, char **argv) {
    if (!open_streams()) return 1;
    note_signals();
    const command *c = NULL;
    if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "help")))
        return print_commands(), end_output(0);
    for (size_t i = 0; argc > 1 && i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(argv[1], commands[i].name)) c = &commands[i];
    if (!c) {
        fprintf(stderr, "dictlearn: %s: see dictlearn --help\n",
                argc > 1 ? argv[1] : "a command is needed");
        return 2;
    }
    options o = default_options();
    int status = parse_options(c, argc - 2, argv + 2, &o);
    if (status) return status;
    if (o.help) return print_help(c), end_output(0);
    dlrn_context *ctx = NULL;
    dlrn_context_config cfg = dlrn_context_defaults();
    cfg.threads = (int)o.threads;
    cfg.kernels = o.kernels;
    dlrn_status s = dlrn_context_create(&cfg, &ctx);
    if (s == DLRN_ERR_MEMORY)
        return fputs("dictlearn: out of memory, before anything was done\n", stderr), 1;
    const char *from = o.kernels && strcmp(o.kernels, "auto") ? NULL : getenv("DICTLEARN_KERNELS");
    if (s != DLRN_OK && from)
        return usage_error(c->name, "DICTLEARN_KERNELS: no such set of kernels here", from);
    if (s != DLRN_OK) return usage_error(c->name, "no such set of kernels here", o.kernels);
    status = c->run(ctx, &o);
    dlrn_context_destroy(ctx);
    return end_output(status);
}
