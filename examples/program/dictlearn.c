/* dictlearn: the command-line program, on the library's public API alone.

       sh examples/program/embed.sh build
       cc -O2 -fopenmp -I. -Ibuild examples/program/dictlearn.c -o dictlearn -lm

   The first line writes build/page_html.h, the template of `features --out` as an array.
   With llama.cpp for models in GGUF files: -DLM_LLAMA, -lllama -lggml -lggml-base.

   args.h     flags, parsing, help          source.h   rows for training and evaluation
   process.h  threads, streams, signals     inspect.h  inspect, convert
   output.h   progress, JSON, files         rows.h     encode, decode, reconstruct
   recipes.h  formulas, train --recipe list model.h    tokenize, generate, activations, logits
   config.h   train --config                groups.h   lists of numbers, rows of several layers
   recall.h   words that stand in files     saved.h    what a run writes of its dictionary
   paths.h    files, folders, patterns      train.h    train
   choose.h   rows that count               eval.h     eval
   edit.h     one feature changed           features.h features
   ranks.h    several ranks, over MPI       effect.h   effect
   figure.h   SVG: axes, curves, bars       steer.h    steer
                                            compare.h  compare
                                            plot.h     plot
                                            sweep.h    sweep */
#define _POSIX_C_SOURCE 200809L /* mkdir, sigaction, open_memstream */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#define LM_IMPLEMENTATION
#include "../lm/lm.h"
#define LOOK_IMPLEMENTATION
#include "../look/look.h"
#ifdef DICTLEARN_MPI
#ifdef _OPENMP
#include <omp.h>
#endif
#include "../mpi.h"
#endif

#include "args.h"
#include "process.h"
#include "ranks.h"
#include "output.h"
#include "figure.h"
#include "recipes.h"
#include "paths.h"
#include "config.h"
#include "recall.h"
#include "load.h"
#include "choose.h"
#include "source.h"
#include "inspect.h"
#include "rows.h"
#include "model.h"
#include "groups.h"
#include "saved.h"
#include "train.h"
#include "eval.h"
#include "features.h"
#include "edit.h"
#include "effect.h"
#include "steer.h"
#include "compare.h"
#include "plot.h"
#include "sweep.h"

#define TINY "--model examples/data/tiny-neox"
#define TINY_SITE TINY " \\\n    --text build/text.jsonl --site mlp_out --layer 0"
/* In an order in which the examples can be run: each finds what those before it have made. */
static const command commands[] = {
    {"generate", C_GENERATE, 0,
     "--model M [--prompt TEXT] --tokens N [--documents N] [--out FILE.jsonl]",
     "Samples text: as plain text to standard output, or as JSON lines to a file (--out - for "
     "standard output).",
     "",
     "build/dictlearn generate " TINY " --tokens 128 --documents 400 \\\n"
     "    --out build/text.jsonl",
     run_generate},
    {"tokenize", C_TOKENIZE, 0, "--model M --text FILE [--json]",
     "Prints token ids, one document per line.", "build/text.jsonl: see generate --help",
     "build/dictlearn tokenize " TINY " --text build/text.jsonl --documents 3", run_tokenize},
    {"logits", C_LOGITS, 0, "--model M --text FILE --out L.npy",
     "Writes the next-token logits [tokens, vocabulary] of the first document.",
     "build/text.jsonl: see generate --help",
     "build/dictlearn logits " TINY " --text build/text.jsonl \\\n"
     "    --out build/logits.npy",
     run_logits},
    {"activations", C_ACTIVATIONS, 0,
     "--model M --text FILE --site S --layer N --out X.npy [--limit ROWS]",
     "Writes rows of activations, in the order of the text; with --io in_to_out, those of the "
     "site.",
     "build/text.jsonl: see generate --help",
     "build/dictlearn activations " TINY_SITE " --out build/x.npy", run_activations},
    {"train", C_TRAIN, 0, "SOURCE --save-dir DIR ...",
     "Trains a sparse autoencoder. SOURCE is --model M --text FILE --site S --layer N, or --data "
     "X [--target Y]. On Ctrl-C, SIGTERM or SIGHUP it saves the run and prints how to resume it. "
     "--recipe sets the family of the dictionary, the loss and the defaults: reference is trainSAE "
     "of March 2024; those of dl- are dictionary_learning 0.1.0's, of sl- SAELens', of sp- "
     "sparsify's, of lc- Llamascopium's; cc- are crosscoders and clt- cross-layer transcoders, on "
     "arrays [rows, layers, d]. What is written opens in the recipe's own library. A flag whose "
     "help starts with names of recipes applies only to them.",
     "build/text.jsonl: see generate --help",
     "build/dictlearn train " TINY_SITE " \\\n"
     "    --save-dir build/run --expansion 8 --batch-size 512 --lr 3e-3 --sparsity-penalty 0.12 "
     "\\\n"
     "    --warmup-steps 20 --n-ctxs 300",
     run_train},
    {"inspect", C_INSPECT, 1, "PATH [--json]",
     "Prints what a file or folder contains: its format and tensors; for a model its shape; for a "
     "dictionary its family, sizes, library and class, its formula in words, the norms of its "
     "atoms, its thresholds, layers and parts, what its config says of its training, and a note "
     "about what the file leaves open. If a dictionary does not load: why, and which flag helps. "
     "JSON has the same under path, format, family, layout (the library), class, activation_dim, "
     "dict_size, d_out, skip, layers, feature_layers, formula (normalise, center, gate, select, k, "
     "threshold, standardise, scale_in, scale_out, words), atom_norms and thresholds (min, mean, "
     "max), parts (in_at, feature_at, out_at and the keys above), recipe, model, site, target, "
     "note, not_loaded and tensors (name, dtype, shape).",
     "", "build/dictlearn inspect examples/data/tiny-neox", run_inspect},
    {"convert", C_CONVERT, 2, "IN OUT [--layout NAME] [--from NAME]",
     "Rewrites a dictionary in the format of OUT's suffix (.pt, .safetensors, .npz). With --layout "
     "it writes what that library opens: OUT is a folder, which gets the library's files; or, for "
     "all but saelens and sparsify, a file for the weights alone. A formula that the library lacks "
     "is written in other numbers where it is the same function, and the program says so; others "
     "are refused.",
     "build/run: see train --help", "build/dictlearn convert build/run build/ae.safetensors",
     run_convert},
    {"encode", C_ENCODE, 0, "--dict D --data X.npy --out F.npy | --sparse --out F.npz",
     "Computes the features [rows, F] of activations [rows, d]; [documents, positions, d] is read "
     "as rows. Memory does not grow with the rows. --sparse keeps the codes in a temporary file "
     "until all are written, in TMPDIR or else beside --out.",
     "build/run: see train --help; build/x.npy: see activations --help",
     "build/dictlearn encode --dict build/run --data build/x.npy --sparse --out build/f.npz",
     run_encode},
    {"decode", C_DECODE, 0, "--dict D --data F.npy|F.npz --out X.npy",
     "Computes reconstructions from features.",
     "build/run: see train --help; build/f.npz: see encode --help",
     "build/dictlearn decode --dict build/run --data build/f.npz --out build/x_hat.npy",
     run_decode},
    {"reconstruct", C_RECONSTRUCT, 0, "--dict D --data X.npy --out X_HAT.npy",
     "Encodes activations and decodes them again.",
     "build/run: see train --help; build/x.npy: see activations --help",
     "build/dictlearn reconstruct --dict build/run --data build/x.npy --out build/x_hat.npy",
     run_reconstruct},
    {"eval", C_EVAL, 0, "--dict D SOURCE [--json]",
     "Evaluates a dictionary: variance explained, L0, loss, features alive; with a model also the "
     "cross-entropy recovered. SOURCE is as for train.",
     "build/run: see train --help; build/text.jsonl: see generate --help",
     "build/dictlearn eval --dict build/run " TINY_SITE, run_eval},
    {"features", C_FEATURES, 0,
     "--dict D --model M --text FILE --site S --layer N [--features I,J,...] [--out PAGE.html]",
     "Shows features: on the terminal with the tokens and contexts on which they fire most; with "
     "--out on one page for a browser, which needs no network; with --json as {\"features\": "
     "[...]} in the keys of SAEDashboard, which Neuronpedia reads. The model runs once; each "
     "context counts as a document. Page and JSON hold for each feature: density, histogram, "
     "tokens by mean activation, contexts (the strongest, and some drawn with --seed from five "
     "equal intervals), the tokens that its atom makes likely, nearest atoms, features that fire "
     "together with it, coordinates. JSON differs from SAEDashboard's in this, unless --compat is "
     "given: rows left out count nowhere, frac_nonzero is exact, correlations are over all "
     "features and the rows that count, one context gives one of the strongest examples, contexts "
     "keep their first token, the final norm's weight is applied, atoms keep their lengths, and "
     "there are further keys.",
     "build/run: see train --help; build/text.jsonl: see generate --help",
     "build/dictlearn features --dict build/run " TINY_SITE " --count 3", run_features},
    {"effect", C_EFFECT, 0,
     "--dict D --model M --prompt TEXT|--text FILE --site S --layer N [--feature I] [--set V]",
     "Shows what a feature does to the log-probabilities of the next token. The feature is set to "
     "0, or to --set V; the dictionary's error stays: x' = x + decode(f') - decode(f). Figures are "
     "those at the last token of each input, averaged over the inputs. With --feature: the tokens "
     "that gain and lose most, and the KL divergence; exact, from 2 forward passes of each input. "
     "Without: the features that are strongest there (activation times norm of the atom), each "
     "changed alone; exact, from 1 + --count forward passes of each input. At resid_out of the "
     "last layer: all active features (of many the strongest, and it says so), sorted by KL, from "
     "1 forward pass of each input; exact for the logits under the final norm's unchanged length, "
     "so that effects add up; what the change of that length adds is left out (--feature has it). "
     "JSON has all of that under inputs, rows (tokens that are averaged), exactness, "
     "forward_passes, token (see --token) and features (feature, activation, active, kl, change, "
     "up, down); a change is log p with the feature changed, less log p without, in nats.",
     "build/run: see train --help",
     "build/dictlearn effect --dict build/run " TINY " \\\n"
     "    --site mlp_out --layer 0 --prompt 'The river ran'",
     run_effect},
    {"steer", C_STEER, 0,
     "--dict D --model M --site S --layer N --feature I --scale A,...|--set V --tokens N [--prompt "
     "TEXT]",
     "Samples text with a feature changed at every token, prompt and new ones, beside the plain "
     "text of the same seed. --scale A adds A times the feature's atom, for each A of a list; "
     "--set V sets the feature's activation to V (0 ablates it). The dictionary's error stays. "
     "Each text has a perplexity: with --text that of the file's first documents under the changed "
     "model, and otherwise that of the new tokens under the unchanged model.",
     "build/run: see train --help",
     "build/dictlearn steer --dict build/run " TINY " --site mlp_out --layer 0 \\\n"
     "    --prompt 'The river ran' --feature 3 --scale 0,4,16 --tokens 20",
     run_steer},
    {"compare", C_COMPARE, 2, "D1 D2 ... [--match COSINE] [--json]",
     "Compares the atoms of dictionaries by cosine. Of two: the mean max cosine both ways, which "
     "is 1/F sum_i max_j cos(a_i, b_j) of the atoms a_i in b; how many are nearest to each other; "
     "how many of these pairs match, with a cosine of at least --match, and the cosines of their "
     "encoder rows; the features without a match, with those that are farthest from all others; a "
     "histogram of the max cosines. Of more (the same training with other seeds): D1 with each of "
     "the others, and how many of its features have a match in all of them, or in fewer. Atoms of "
     "zeros count as unmatched, and not in means. Dictionaries of several layers: layer with "
     "layer. Takes 2 F^2 d multiplications a pair. JSON has match, width, comparisons (mutual, "
     "matched, mean_matched_cosine, mean_matched_encoder_cosine; first and second: path, features, "
     "mean_max_cosine, unmatched, zero_atoms, farthest, histogram (20 equal bins from 0 to 1, and "
     "below 0 in the first), nearest, max_cosine; pairs [i, j, cosine, encoder cosine]), "
     "features_found_in (how many features have a match in 0, 1, ... others) and found_in (the "
     "same for each feature).",
     "build/run: see train --help; build/ae.safetensors: see convert --help",
     "build/dictlearn compare build/run build/ae.safetensors", run_compare},
    {"plot", C_PLOT, 1, "RUN... --out FILE.svg [--x KEY --y KEY,KEY,...]",
     "Draws a figure with a panel for each --y. RUN is a folder of train, or a log.jsonl: curves "
     "over --x, by default the main keys of its lines over step; a folder of sweep: a line through "
     "its dictionaries (with --x step: the curves of their logs); a file with what eval --json has "
     "printed: a point, and all such points make a line in the order of --x; keys such as "
     "saelens.mse go "
     "into its objects. Sweeps and evaluations show "
     "by default variance_explained, ce_recovered, mse_loss and dead over l0. A histogram that "
     "eval --histogram has written as .csv, or what compare --json has printed: bars. An axis of "
     "positive numbers is logarithmic from a factor of 10 on, and says so. Each run has a colour, "
     "dashes and markers of its own; light or dark is the viewer's choice.",
     "build/run: see train --help", "build/dictlearn plot build/run --out build/run.svg", run_plot},
    {"sweep", C_TRAIN | C_SWEEP, 0, "SOURCE --save-dir DIR --vary FLAG=V,V,... ...",
     "Trains several dictionaries on one stream of activations. They differ in a setting of train, "
     "such as --vary k=16,32,64 or --vary recipe=dl-top_k,dl-batch_top_k; --vary given several "
     "times trains every combination. The model runs once, one buffer shuffles, and each batch "
     "goes to all of them: DIR/k-32 is the run that train --k 32 gives, bit for bit (a --seed that "
     "varies is that of the weights; the rows have the order of seed 0, or of --seed). Flags that "
     "change the rows cannot vary. A dictionary that fails is reported, and the others go on. "
     "Ctrl-C, SIGTERM and SIGHUP save all, and --resume --save-dir DIR goes on. At the end all are "
     "measured on the same rows: those after the rows that were read for training, or those of "
     "--held-out; or, if the data has ended, rows of the training, which the table says. It prints "
     "the table and writes DIR/sweep.json and DIR/frontier.svg.",
     "build/text.jsonl: see generate --help",
     "build/dictlearn sweep " TINY_SITE " \\\n"
     "    --save-dir build/sweep --expansion 8 --batch-size 512 --lr 3e-3 "
     "--warmup-steps 20 --n-ctxs 60 \\\n"
     "    --steps 80 --documents 64 --vary sparsity-penalty=0.06,0.12,0.24",
     run_sweep},
};
enum { COMMANDS = (int)(sizeof commands / sizeof *commands) };

/* A command in its first sentence; its own help has the rest. */
static void print_commands(void) {
    printf("dictlearn %s: opens, trains, evaluates and inspects sparse dictionaries\n\n",
           DLRN_VERSION_STRING);
    for (int i = 0; i < COMMANDS; i++) {
        const char *what = commands[i].what, *end = strstr(what, ". ");
        char first[512];
        snprintf(first, sizeof first, "%.*s", end ? (int)(end - what) + 1 : (int)strlen(what),
                 what);
        print_wrapped(first, printf("  dictlearn %-12s ", commands[i].name), 25);
    }
    printf("\ndictlearn COMMAND --help lists a command's flags. Exit status: 0 done, 1 failed, 2 "
           "wrong usage,\n128 + the signal if interrupted.\n");
}

/* The context that the flags ask for. 0, or the exit status. */
static int open_context(const command *c, const options *o, dlrn_context **ctx) {
    dlrn_context_config cfg = {0};
    cfg.threads = (int)o->threads;
    cfg.kernels = o->kernels;
    cfg.stop = stopping;
    cfg.collective = ranks;
    dlrn_status s = dlrn_context_create(&cfg, ctx);
    if (s == DLRN_OK) return 0;
    if (s == DLRN_ERR_MEMORY)
        return fputs("dictlearn: out of memory, before anything was done\n", stderr), 1;
    const char *from = strcmp(o->kernels, "auto") ? NULL : getenv("DICTLEARN_KERNELS");
    if (from) return usage_error(c->name, "DICTLEARN_KERNELS: no such set of kernels here", from);
    return usage_error(c->name, "no such set of kernels here", o->kernels);
}

/* Commands that only print. 1: it was one of them. */
static int print_about(const char *word) {
    if (!strcmp(word, "--version") || !strcmp(word, "version"))
        return printf("dictlearn %s\n", DLRN_VERSION_STRING), 1;
    if (strcmp(word, "--help") && strcmp(word, "help") && strcmp(word, "-h")) return 0;
    return print_commands(), 1;
}

/* The command of a name; NULL, and a message, if there is none. */
static const command *find_command(const char *name) {
    const char *best = NULL;
    int nearest = 3; /* more than two slips are no slip */
    for (int i = 0; name && i < COMMANDS; i++) {
        if (!strcmp(name, commands[i].name)) return &commands[i];
        keep_nearest(name, commands[i].name, &nearest, &best);
    }
    if (!name)
        fputs("dictlearn: a command is needed: see dictlearn --help\n", stderr);
    else if (best)
        fprintf(stderr, "dictlearn: %s: unknown command, did you mean %s?: see dictlearn --help\n",
                name, best);
    else
        fprintf(stderr, "dictlearn: %s: unknown command: see dictlearn --help\n", name);
    return NULL;
}

/* Runs a command whose options are parsed. The exit status. */
static int run_command(const command *c, const options *o) {
    dlrn_context *ctx = NULL;
    int status = ranks_agree_status(open_context(c, o, &ctx));
    if (status) return status;
    status = c->run(ctx, o);
    (void)!ranks_hear_stop(ctx);
    ranks_tell_traffic(ctx, o->quiet || status);
    dlrn_context_destroy(ctx);
    return end_output(status);
}

/* Commands that several ranks can run together. 0, or the exit status of a wrong call. */
static int check_ranks(const command *c) {
    if (!ranks_several() || c->bit == C_TRAIN || c->bit == C_EVAL || c->bit == C_ENCODE) return 0;
    fprintf(stderr,
            "dictlearn: %s: expected one process, found %d ranks: several run train, eval and "
            "encode\n",
            c->name, ranks.ranks);
    return 2;
}

/* Whether every rank can read the command's rows. 0, or an exit status. */
static int check_pipes(const command *c, const options *o) {
    const char *once = o->data && comes_once(o->data)   ? o->data
                       : o->text && comes_once(o->text) ? o->text
                                                        : NULL;
    if (!once || !ranks_several()) return 0;
    return usage_error(c->name, "expected a file that every rank can read, found a pipe", once);
}

/* Whether all ranks have the same words, of which some may stand in files. 0, or an exit status. */
static int check_words(const command *c, const options *o) {
    uint64_t sum = 0;
    for (int i = 0; i < o->argc; i++) sum = sum * 31 + ranks_sum_of(o->argv[i], strlen(o->argv[i]));
    if (ranks_are_equal(sum)) return 0;
    fprintf(stderr,
            "dictlearn: %s: expected the same flags on all ranks, found others: see the "
            "files of --config and --save-dir on each machine\n",
            c->name);
    return 1;
}

/* The command line. The exit status. */
static int run_words(int argc, char **argv) {
    options o;
    recalled saved;
    if (argc > 1 && print_about(argv[1])) return end_output(0);
    const command *c = find_command(argc > 1 ? argv[1] : NULL);
    if (!c || check_ranks(c)) return 2;
    /* a first pass takes the flags of any recipe: which one it is may stand behind them, or in a
       file */
    int status = parse_options(c, argc - 2, (const char *const *)argv + 2, "", &o);
    if (status) return status;
    if (o.help) return print_help(c), end_output(0);
    status = ranks_agree_status(recall(c, &o, &saved));
    if (!status) status = ranks_agree_status(check_pipes(c, &o));
    if (!status) status = ranks_agree_status(check_words(c, &o));
    if (!is_first()) o.quiet = 1;
    if (!status) status = run_command(c, &o);
    recalled_free(&saved);
    return status;
}

int main(int argc, char **argv) {
    let_threads_sleep(argv);
    if (!open_streams()) return 1;
    int status = ranks_begin(&argc, &argv);
    note_signals();
    if (!status) status = run_words(argc, argv);
    return ranks_end(status);
}
