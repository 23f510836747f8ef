/* The command line. One table of flags drives parsing, checking and help; the table of commands is
   in dictlearn.c. */

enum { /* commands, as bits of flag.commands */
       C_INSPECT = 1,
       C_CONVERT = 2,
       C_ENCODE = 4,
       C_DECODE = 8,
       C_RECONSTRUCT = 16,
       C_TRAIN = 32,
       C_EVAL = 64,
       C_TOKENIZE = 128,
       C_GENERATE = 256,
       C_ACTIVATIONS = 512,
       C_LOGITS = 1024,
       C_FEATURES = 2048,
       C_EFFECT = 4096,
       C_STEER = 8192,
       C_COMPARE = 16384,
       C_PLOT = 32768,
       C_SWEEP = 65536,                   /* beside C_TRAIN: it takes all flags of train */
       C_EDITS = C_EFFECT | C_STEER,      /* change a model's activations while it runs */
       C_MANY_WORDS = C_COMPARE | C_PLOT, /* take more words than the table of commands says */
       C_ARRAYS = C_ENCODE | C_DECODE | C_RECONSTRUCT,
       C_SITES =
           C_TRAIN | C_EVAL | C_ACTIVATIONS | C_FEATURES | C_EDITS, /* read a model's activations */
       C_TEXTS = C_SITES | C_TOKENIZE | C_LOGITS,
       C_DICTIONARIES =
           C_INSPECT | C_CONVERT | C_ARRAYS | C_TRAIN | C_EVAL | C_FEATURES | C_EDITS | C_COMPARE,
       C_ALL = 131071
};

typedef struct options {
    const char *dict, *data, *target, *out, *save_dir, *init, *io, *kernels, *histogram;
    const char *model, *text, *site, *prompt, *features, *layout, *from, *recipe, *tensor, *dtype;
    const char *config, *groups, *group_weights;
    const char *text_key, *tokens_key, *long_documents;
    const char *vary, *scales, *x_axis, *y_axis, *positions, *token, *by;
    const char *path, *path2; /* the first two arguments without a flag; see also next_word */
    int64_t dict_size, expansion, batch_size, epochs, layers;
    int64_t n_ctxs, ctx_len, in_batch_size, rows, threads, seed;
    int64_t layer, documents, tokens, top_k, limit, count, contexts, memory;
    int64_t skip_first, saelens_batch, held_out;
    double temperature, max_norm_ratio, norm_scale, threshold;
    double match;    /* cosine from which two atoms may be the same feature */
    double set;      /* NaN: --set is not given */
    int64_t feature; /* -1: --feature is not given */
    int all;
    dlrn_train_config train; /* begins as the recipe's defaults; k -1: --k is not given */
    int sparse, json, entropy, no_shuffle, skip_nonfinite, skip_special, resume, compat, quiet,
        help, bos;
    int skip_bad_lines, weights;
    int argc; /* the words that these options were parsed from: borrowed */
    const char *const *argv;
} options;

enum { TEXT_MAX = 4095 };           /* bytes of a path, and of other texts */
#define EDIT_MAX 1e30               /* of --set and --scale: the model's sums must not overflow */
#define ALL (INT64_MAX / 2)         /* a count that no data reaches, with room for sums */
enum { CTX_LEN_WHOLE = INT32_MAX }; /* more tokens than a document has */

typedef enum flag_kind {
    F_TEXT,
    F_INT,
    F_COUNT, /* a whole number, or all                                   */
    F_REAL,
    F_SWITCH, /* there or not: takes no value                             */
    F_ON_OFF, /* on or off; on where no such word follows: a dlrn_switch  */
    F_CHOICE  /* one of the names of an enumeration, whose list is `min`  */
} flag_kind;

typedef struct flag {
    const char *name;
    flag_kind kind;
    size_t at; /* offset in options */
    int commands;
    double min, max; /* of a number, or of the bytes of a text; max 0: no limit */
    const char *value, *help;
} flag;

#define AT(field) offsetof(options, field)
#ifdef LM_LLAMA
#define NOT_BUILT ""
#else
#define NOT_BUILT " (not in this build: make LLAMA=PREFIX)"
#endif
static const flag flags[] = {
    /* what is read */
    {"--dict", F_TEXT, AT(dict), C_ARRAYS | C_EVAL | C_FEATURES | C_EDITS, 1, TEXT_MAX, "D",
     "the dictionary: a file (.pt, .safetensors, .npz) or a folder"},
    {"--layout", F_TEXT, AT(layout), C_DICTIONARIES, 1, TEXT_MAX, "NAME",
     "the library that wrote the dictionary (saelens, ...) or its class (AutoEncoderTopK, ...), if "
     "its tensors and config do not say; convert: the library to write for: dictionary_learning, "
     "saelens, sparsify, circuit-tracer, gemma_scope, gemma_scope_2, llamascopium, ckkissane or "
     "crosscoder-fork"},
    {"--from", F_TEXT, AT(from), C_CONVERT, 1, TEXT_MAX, "NAME",
     "what --layout is elsewhere: the library that wrote IN, or its class"},
    {"--norm-scale", F_REAL, AT(norm_scale), C_DICTIONARIES, 0, 0, "S",
     "what rows were multiplied with before the dictionary saw them, if its file does not say"},
    {"--threshold", F_REAL, AT(threshold), C_DICTIONARIES, 0, 0, "T",
     "the threshold of all features, if the dictionary's file has none"},
    {"--data", F_TEXT, AT(data), C_ARRAYS | C_TRAIN | C_EVAL, 1, TEXT_MAX, "X",
     "arrays [rows, width] or [.., width] of f16, bf16, f32 or f64: a file (.npy, .npz, .pt, "
     ".safetensors); a folder or a quoted pattern of files, read as one sequence of rows, x2 "
     "before x10; or - for a .npy on standard input"},
    {"--target", F_TEXT, AT(target), C_TRAIN | C_EVAL, 1, TEXT_MAX, "Y",
     "the rows to reconstruct, if they are not those of --data; takes what --data takes"},
    {"--tensor", F_TEXT, AT(tensor), C_ARRAYS | C_TRAIN | C_EVAL, 1, TEXT_MAX, "NAME",
     "the tensor to read, if a file of --data or --target holds several"},
    {"--dtype", F_TEXT, AT(dtype), C_ARRAYS | C_TRAIN | C_EVAL, 1, TEXT_MAX, "bf16",
     "read uint16 in --data and --target as the bits of bf16 numbers (default: an error)"},
    {"--model", F_TEXT, AT(model), C_TEXTS | C_GENERATE, 1, TEXT_MAX, "M",
     "a folder as downloaded from Hugging Face: config.json, tokenizer.json, model.safetensors "
     "(model_type " HF_MODEL_TYPES "); or a GGUF file of any model that llama.cpp runs" NOT_BUILT},
    {"--text", F_TEXT, AT(text), C_TEXTS, 1, TEXT_MAX, "FILE",
     "documents of at most 16 MB: JSON lines, a JSON array, or plain text with blank lines between "
     "documents; also compressed by gzip or zstd. The form is recognised by content. - reads "
     "standard input"},
    {"--text-key", F_TEXT, AT(text_key), C_TEXTS, 1, TEXT_MAX, "K",
     "JSON: the key of the text; a.b means b within a (default text)"},
    {"--tokens-key", F_TEXT, AT(tokens_key), C_TEXTS, 1, TEXT_MAX, "K",
     "JSON: the key of a list of token ids (such as input_ids), used instead of a text"},
    {"--skip-bad-lines", F_SWITCH, AT(skip_bad_lines), C_TEXTS, 0, 0, "",
     "skip and count lines of --text that are malformed or lack the key (default: an error)"},
    {"--site", F_TEXT, AT(site), C_SITES, 0, TEXT_MAX, "S",
     LM_KINDS "; with a GGUF file also tensor:NAME, a tensor of llama.cpp's graph"},
    {"--layer", F_INT, AT(layer), C_SITES | C_CONVERT, 0, 0, "N",
     "the layer of the site, from 0 (embed and tensor:NAME have none); convert: N in "
     "circuit-tracer's layer_N.safetensors (default 0)"},
    {"--io", F_TEXT, AT(io), C_SITES, 0, TEXT_MAX, "in|out|in_to_out",
     "out: the site itself (default); in: the input of its module; in_to_out: reads that input and "
     "reconstructs the site"},
    {"--ctx-len", F_INT, AT(ctx_len), C_TEXTS, 1, 0, "N",
     "tokens per context (default 128; tokenize: whole documents)"},
    {"--long", F_TEXT, AT(long_documents), C_TEXTS, 0, TEXT_MAX, "cut|split",
     "what to do with documents longer than --ctx-len: cut them (default), or split them into "
     "contexts that count as documents"},
    {"--bos", F_SWITCH, AT(bos), C_TEXTS | C_GENERATE, 0, 0, "",
     "start each context with the model's bos token"},
    /* what is written */
    {"--out", F_TEXT, AT(out),
     C_ARRAYS | C_GENERATE | C_ACTIVATIONS | C_LOGITS | C_FEATURES | C_PLOT, 1, TEXT_MAX, "FILE",
     "the file to write; - writes to standard output"},
    {"--sparse", F_SWITCH, AT(sparse), C_ENCODE, 0, 0, "",
     "write only active features, as a CSR .npz for scipy.sparse.load_npz"},
    {"--json", F_SWITCH, AT(json),
     C_INSPECT | C_EVAL | C_TOKENIZE | C_FEATURES | C_TRAIN | C_EFFECT | C_STEER | C_COMPARE, 0, 0,
     "", "print JSON (train: with --recipe list)"},
    /* sampling */
    {"--prompt", F_TEXT, AT(prompt), C_GENERATE | C_EDITS, 0, 0, "TEXT",
     "the start of each document (default: the bos token); effect: the input"},
    {"--tokens", F_INT, AT(tokens), C_GENERATE | C_STEER, 1, 0, "N",
     "sample up to N tokens per document"},
    {"--temperature", F_REAL, AT(temperature), C_GENERATE | C_STEER, 0, 0, "T",
     "higher: more random; 0: always the most likely token (default 1)"},
    {"--top-k", F_INT, AT(top_k), C_GENERATE | C_STEER, 0, 0, "K",
     "sample from the K most likely tokens (default: all)"},
    {"--documents", F_COUNT, AT(documents), C_GENERATE | C_EVAL | C_TOKENIZE | C_EDITS | C_SWEEP, 1,
     0, "N",
     "number of documents, or all (default: generate 1, tokenize all; eval 128, for the "
     "cross-entropy; sweep: of the figures at its end, default none; effect and steer the first "
     "128 of --text)"},
    {"--limit", F_COUNT, AT(limit), C_ACTIVATIONS, 1, 0, "ROWS", "stop after ROWS (default: all)"},
    /* training */
    {"--recipe", F_TEXT, AT(recipe), C_TRAIN, 1, TEXT_MAX, "R",
     "how to train (default reference); list prints the recipes, with their formulas and the "
     "defaults of the flags below"},
    {"--config", F_TEXT, AT(config), C_TRAIN, 1, TEXT_MAX, "FILE",
     "take recipe and settings from the config of a run of dictionary_learning (config.json), its "
     "crosscoder fork, SAELens (runner_cfg.json, cfg.json), sparsify (config.json), Llamascopium "
     "or this program; flags win over it"},
    {"--save-dir", F_TEXT, AT(save_dir), C_TRAIN, 1, TEXT_MAX, "DIR",
     "the folder of the run, locked meanwhile; created if missing; an older run in it is "
     "replaced at the first save"},
    {"--dict-size", F_INT, AT(dict_size), C_TRAIN, 1, 0, "F",
     "number of features; of a cross-layer transcoder, those of all layers"},
    {"--expansion", F_INT, AT(expansion), C_TRAIN, 1, 0, "N",
     "number of features as a multiple of the width (default 16)"},
    {"--layers", F_INT, AT(layers), C_TRAIN, 1, INT32_MAX, "M",
     "layers of --data and --target, if their rows hold them one after another; arrays [rows, M, "
     "d] need no flag"},
    {"--lr", F_REAL, AT(train.lr), C_TRAIN, 0, 0, "RATE", "the optimiser's learning rate"},
    {"--optimiser", F_CHOICE, AT(train.optimiser), C_TRAIN, DLRN_NAMES_OPTIMISER, 0, "adam|signum",
     "signum: sign descent, schedule-free; the dictionary that is saved is its running average"},
    {"--beta1", F_REAL, AT(train.beta1), C_TRAIN, 0, 0, "B", "Adam's weight of past gradients"},
    {"--beta2", F_REAL, AT(train.beta2), C_TRAIN, 0, 0, "B",
     "Adam's weight of past squared gradients"},
    {"--eps", F_REAL, AT(train.eps), C_TRAIN, 0, 0, "E",
     "Adam adds E to the root of squared gradients"},
    {"--threshold-lr", F_REAL, AT(train.threshold_lr), C_TRAIN, 0, 0, "R",
     "the learning rate of thresholds, as a multiple of --lr"},
    {"--atom-norm", F_REAL, AT(train.atom_norm), C_TRAIN, -1, 0, "N",
     "norm of new atoms (-1: the recipe's)"},
    {"--new-threshold", F_REAL, AT(train.new_threshold), C_TRAIN, -1, 0, "T",
     "thresholds of new features (-1: the recipe's)"},
    {"--loss", F_CHOICE, AT(train.loss), C_TRAIN, DLRN_NAMES_LOSS, 0, "norm|squared|layers|fvu",
     "reconstruction loss: mean L2 distance (norm); mean squared distance (squared), as a mean "
     "over layers (layers); squared distance as a share of the variance (fvu)"},
    {"--batch-size", F_INT, AT(batch_size), C_TRAIN, 1, 0, "N", "rows per step"},
    {"--steps", F_INT, AT(train.steps), C_TRAIN, -1, 0, "N",
     "number of steps (-1, the default: until the data ends)"},
    {"--epochs", F_INT, AT(epochs), C_TRAIN, 1, 0, "N",
     "passes over --data (default 1; with --steps, whichever ends first)"},
    {"--warmup-steps", F_INT, AT(train.warmup_steps), C_TRAIN, 0, 0, "N",
     "steps over which the learning rate rises from 0"},
    {"--decay-start", F_INT, AT(train.decay_start), C_TRAIN, -1, 0, "N",
     "from step N on, the rate falls to 0 at --steps (-1: never)"},
    {"--lr-schedule", F_CHOICE, AT(train.lr_schedule), C_TRAIN, DLRN_NAMES_SCHEDULE, 0,
     "constant|cosine|cosine_restarts", "the rate between warm-up and decay"},
    {"--lr-end", F_REAL, AT(train.lr_end), C_TRAIN, -1, 0, "RATE",
     "the last rate of a cosine (-1: a tenth of --lr)"},
    {"--lr-cycles", F_INT, AT(train.lr_cycles), C_TRAIN, 1, 0, "N", "cycles of cosine_restarts"},
    {"--clip", F_REAL, AT(train.clip), C_TRAIN, 0, 0, "C",
     "largest norm of the whole gradient; 0: no limit"},
    {"--resample-steps", F_INT, AT(train.resample_steps), C_TRAIN, -1, 0, "N",
     "revive dead features every N steps (-1: never)"},
    {"--resample-rows", F_INT, AT(train.resample_rows), C_TRAIN, 1, 0, "N",
     "rows from which they are revived"},
    {"--ghost-threshold", F_INT, AT(train.ghost_threshold), C_TRAIN, -1, 0, "N",
     "ghost gradients for features silent for more than N steps (-1: none)"},
    {"--sparsity-penalty", F_REAL, AT(train.sparsity_penalty), C_TRAIN, -1e300, 0, "P",
     "weight of the sparsity loss"},
    {"--sparsity", F_CHOICE, AT(train.sparsity), C_TRAIN, DLRN_NAMES_SPARSITY, 0, "NAME",
     "the sparsity loss, of those that the recipe knows: l1, entropy, none, lp, power, tanh, step, "
     "quadratic or target"},
    {"--entropy", F_SWITCH, AT(entropy), C_TRAIN | C_EVAL, 0, 0, "",
     "use entropy instead of L1 as sparsity loss"},
    {"--sparsity-warmup-steps", F_INT, AT(train.sparsity_warmup_steps), C_TRAIN, -1, 0, "N",
     "steps over which --sparsity-penalty rises from 0 (-1: the recipe's share of --steps)"},
    {"--target-l0", F_REAL, AT(train.target_l0), C_TRAIN, 0, 0, "L0",
     "active features per row to aim for. reference: adjusts --sparsity-penalty during the "
     "warm-up, at least for 1000 steps (0: off)"},
    {"--p-start", F_REAL, AT(train.p_start), C_TRAIN, 0, 0, "P",
     "exponent of the sparsity losses lp and power"},
    {"--p-end", F_REAL, AT(train.p_end), C_TRAIN, 0, 0, "P", "the exponent to which it falls"},
    {"--anneal-start", F_INT, AT(train.anneal_start), C_TRAIN, -1, 0, "N",
     "the step from which it falls"},
    {"--anneal-end", F_INT, AT(train.anneal_end), C_TRAIN, -1, 0, "N",
     "the step at which it has fallen (-1: --steps)"},
    {"--anneal-updates", F_INT, AT(train.anneal_updates), C_TRAIN, 0, 0, "N",
     "in so many equal parts"},
    {"--k", F_INT, AT(train.k), C_DICTIONARIES, 1, INT32_MAX, "K",
     "features kept per row (train: default that of --init, or else the recipe's; others: if the "
     "dictionary's file does not say)"},
    {"--k-fraction", F_REAL, AT(train.k_fraction), C_TRAIN, 0, 1, "R",
     "added to --k where a selection over a batch of n rows keeps k n, below 1"},
    {"--k-anneal-steps", F_INT, AT(train.k_anneal_steps), C_TRAIN, 0, 0, "N",
     "steps over which k falls to --k (0: it is fixed)"},
    {"--k-start", F_INT, AT(train.k_start), C_TRAIN, 0, INT32_MAX, "K",
     "the k from which it falls (0: as the recipe's library does)"},
    {"--auxk-alpha", F_REAL, AT(train.auxk_alpha), C_TRAIN, 0, 0, "A",
     "weight of the auxiliary loss of dead features"},
    {"--auxk", F_INT, AT(train.auxk), C_TRAIN, 0, INT32_MAX, "N",
     "dead features kept per row in that loss (0: half of the width)"},
    {"--auxk-by-group", F_ON_OFF, AT(train.auxk_by_group), C_TRAIN, 0, 0, "[on|off]",
     "one such loss for each nested group"},
    {"--multi-top-k", F_ON_OFF, AT(train.multi_top_k), C_TRAIN, 0, 0, "[on|off]",
     "the 4 k best features of a row also reconstruct, with weight 1/8"},
    {"--dead-rows", F_INT, AT(train.dead_rows), C_TRAIN, -1, 0, "N",
     "a feature is dead after N rows without firing (-1: never)"},
    {"--dead-steps", F_INT, AT(train.dead_steps), C_TRAIN, -1, 0, "N",
     "a feature is dead after N steps without firing (-1: never)"},
    {"--threshold-beta", F_REAL, AT(train.threshold_beta), C_TRAIN, 0, 1, "B",
     "running mean of the smallest value that is kept: weight of its past, below 1"},
    {"--threshold-start-step", F_INT, AT(train.threshold_start_step), C_TRAIN, -1, 0, "N",
     "start that mean after step N (-1: with the first)"},
    {"--bandwidth", F_REAL, AT(train.bandwidth), C_TRAIN, 0, 0, "W",
     "width of the window around a threshold in which its gradient is estimated"},
    {"--pre-act", F_REAL, AT(train.pre_act), C_TRAIN, 0, 0, "P",
     "weight of the loss that lifts inactive features towards their thresholds"},
    {"--groups", F_TEXT, AT(groups), C_TRAIN, 1, TEXT_MAX, "N,N,...",
     "nested groups: their features, which sum to --dict-size, or shares of it (0.25,0.25,0.5) "
     "(default: 1/32, 1/16, 1/8, 1/4 and the rest)"},
    {"--group-weights", F_TEXT, AT(group_weights), C_TRAIN, 1, TEXT_MAX, "W,W,...",
     "weights of their losses (default: equal)"},
    {"--center", F_ON_OFF, AT(train.center), C_TRAIN, 0, 0, "[on|off]",
     "subtract the output bias from the rows before they are encoded"},
    {"--rescale", F_ON_OFF, AT(train.rescale), C_TRAIN, 0, 0, "[on|off]",
     "keep the features that add most to x_hat, f |atom|; off: the largest f"},
    {"--skip", F_ON_OFF, AT(train.skip), C_TRAIN, 0, 0, "[on|off]",
     "add a linear map of the rows to what is reconstructed"},
    {"--scale-rows", F_ON_OFF, AT(train.scale_rows), C_TRAIN, 0, 0, "[on|off]",
     "scale rows and targets to a mean norm of sqrt(width), by the first batch; the dictionary "
     "holds the scales"},
    {"--log-steps", F_INT, AT(train.log_steps), C_TRAIN, 1, 0, "N",
     "write a line to log.jsonl every N steps"},
    {"--save-steps", F_INT, AT(train.save_steps), C_TRAIN, -1, 0, "N",
     "save a checkpoint every N steps (-1: none)"},
    {"--n-ctxs", F_INT, AT(n_ctxs), C_TRAIN, 1, 0, "N",
     "size of the shuffle buffer, in contexts of --ctx-len rows (default 30000)"},
    {"--in-batch-size", F_INT, AT(in_batch_size), C_TRAIN, 1, 0, "N",
     "contexts read at a time (default 512)"},
    {"--init", F_TEXT, AT(init), C_TRAIN, 1, TEXT_MAX, "D",
     "start from the weights of dictionary D, and with its size"},
    {"--no-shuffle", F_SWITCH, AT(no_shuffle), C_TRAIN, 0, 0, "",
     "use rows in the order of the file"},
    {"--skip-first", F_INT, AT(skip_first), C_SITES, 0, 0, "N",
     "leave out the first N rows of each context (default 0)"},
    {"--skip-special", F_SWITCH, AT(skip_special), C_SITES & ~C_STEER, 0, 0, "",
     "leave out the rows of bos and other special tokens"},
    {"--max-norm-ratio", F_REAL, AT(max_norm_ratio), C_SITES & ~C_STEER, 0, 0, "R",
     "leave out rows whose norm is above R times the median of their context (with --data: of the "
     "rows around them); 0, the default: keep all"},
    {"--held-out", F_INT, AT(held_out), C_TRAIN, 0, 0, "ROWS",
     "do not train on the last ROWS rows of --data; a sweep measures on them (default 0)"},
    {"--skip-nonfinite", F_SWITCH, AT(skip_nonfinite), C_TRAIN | C_EVAL, 0, 0, "",
     "skip and count rows with a NaN or an infinity (default: an error; eval: only with --data)"},
    {"--resume", F_SWITCH, AT(resume), C_TRAIN, 0, 0, "",
     "continue the run in --save-dir with the flags that it was started with; no other flag is "
     "needed. You may change --steps, --epochs, --log-steps (not with --compat), --save-steps, "
     "--threads, --kernels and --skip-nonfinite"},
    {"--compat", F_SWITCH, AT(compat), C_DICTIONARIES, 0, 0, "",
     "train, eval: compute as the reference's code of March 2024 does, number for number; "
     "features: as SAEDashboard 0.8 does; all: read a dictionary as its library does where that is "
     "wrong (Llama Scope, Llamascopium)"},
    /* looking */
    {"--rows", F_COUNT, AT(rows), C_EVAL | C_FEATURES | C_SWEEP, 1, 0, "N",
     "rows to measure, or all (default: eval and sweep 8192, features 65536)"},
    {"--histogram", F_TEXT, AT(histogram), C_EVAL, 1, TEXT_MAX, "FILE.csv|.svg",
     "write how many features fire how often, in logarithmic bins from 1e-5 to 1; - prints bars"},
    {"--weights", F_SWITCH, AT(weights), C_EVAL, 0, 0, "",
     "also measure the weights alone: norms, and cosines between features (F^2 products)"},
    {"--saelens-batch", F_INT, AT(saelens_batch), C_EVAL, 1, 0, "N",
     "rows in one of SAELens' batches (prompts times tokens), for explained_variance_legacy and "
     "its mean of relative_reconstruction_bias over batches"},
    {"--features", F_TEXT, AT(features), C_FEATURES, 1, TEXT_MAX, "I,J-K,...",
     "which features: numbers, and ranges of them (default: see --count)"},
    {"--count", F_INT, AT(count), C_FEATURES | C_EFFECT, 1, 0, "N",
     "features: choose N features after the sweep: those that fire on 0.1 to 5 % of the tokens, "
     "with the largest activations first, then others that fire (default 8; with --out: all where "
     "there are at most 1000, otherwise 1000); effect: how many features to show, without "
     "--feature, or with it how many tokens up, and down (default 8)"},
    {"--contexts", F_INT, AT(contexts), C_FEATURES, 1, 65536, "N",
     "contexts with the largest activations per feature (default 4; with --out or --json: 20)"},
    {"--all", F_SWITCH, AT(all), C_FEATURES, 0, 0, "", "show all features"},
    {"--memory", F_INT, AT(memory), C_FEATURES, 0, 1 << 30, "MB",
     "memory for the codes of all rows; beyond it they are in a temporary file, in TMPDIR or else "
     "beside --out (default 1024)"},
    {"--feature", F_INT, AT(feature), C_EDITS, 0, INT32_MAX, "I", "the feature to change"},
    {"--positions", F_TEXT, AT(positions), C_EFFECT, 1, TEXT_MAX, "last|all",
     "where the feature is changed and the next token looked at: the last token of each input "
     "(default), or all tokens"},
    {"--token", F_TEXT, AT(token), C_EFFECT, 1, TEXT_MAX, "TEXT",
     "the next token whose log-probability is shown for each feature (default: the most likely)"},
    {"--by", F_TEXT, AT(by), C_EFFECT, 1, TEXT_MAX, "log_p|p",
     "the change by which a feature's tokens are sorted, that of log p (default) or of p: a token "
     "that nearly never comes next can change its log p most"},
    {"--set", F_REAL, AT(set), C_EDITS, -EDIT_MAX, EDIT_MAX, "V",
     "the feature's activation instead of its own (effect: default 0)"},
    {"--scale", F_TEXT, AT(scales), C_STEER, 1, TEXT_MAX, "A,A,...",
     "add A times the feature's atom to the activations: A is in units of the feature's activation "
     "(its largest on the page of features is a start); a list gives a text for each"},
    {"--match", F_REAL, AT(match), C_COMPARE, 0, 1, "COSINE",
     "nearest atoms whose cosine is at least this may be the same feature (default 0.7)"},
    {"--x", F_TEXT, AT(x_axis), C_PLOT, 1, TEXT_MAX, "KEY",
     "what the horizontal axis shows (default: of logs step, of others l0)"},
    {"--y", F_TEXT, AT(y_axis), C_PLOT, 1, TEXT_MAX, "KEY,KEY,...",
     "what the vertical axes show, each in a panel of its own (default: the main ones there are)"},
    {"--vary", F_TEXT, AT(vary), C_SWEEP, 1, TEXT_MAX, "FLAG=V,V,...",
     "a setting of train that differs between the dictionaries, and its values; given several "
     "times: every combination"},
    /* of all commands */
    {"--threads", F_INT, AT(threads), C_ALL, 0, 1024, "N",
     "number of threads (default 0: all cores)"},
    {"--seed", F_INT, AT(seed), C_ALL, 0, 0, "N", "seed of all random numbers (default 0)"},
    {"--kernels", F_TEXT, AT(kernels), C_ALL, 0, TEXT_MAX, "NAME",
     "auto (default), scalar, avx2, avx512, avx512bf16, avx512vnni, amx, neon, neondot or "
     "neoni8mm"},
    {"--quiet", F_SWITCH, AT(quiet), C_ALL, 0, 0, "", "no progress on standard error"},
    {"--help", F_SWITCH, AT(help), C_ALL, 0, 0, "", "print this help"},
};

/* NULL: no such recipe. */
static const dlrn_recipe_info *find_recipe(const char *name) {
    for (int i = 0; dlrn_recipe(i); i++)
        if (!strcmp(name, dlrn_recipe(i)->name)) return dlrn_recipe(i);
    return NULL;
}

/* The setting that a flag gives: it is called as the flag; --entropy is the one that is not. */
static void setting_name(const flag *f, char name[64]) {
    snprintf(name, 64, "%s", strcmp(f->name, "--entropy") ? f->name + 2 : "sparsity");
    for (char *p = name; *p; p++)
        if (*p == '-') *p = '_';
}

/* Whether a flag gives a setting of which the recipe makes use. */
static int recipe_uses(const dlrn_recipe_info *recipe, const flag *f) {
    char name[64];
    setting_name(f, name);
    for (int i = 0; recipe->settings[i]; i++)
        if (!strcmp(recipe->settings[i], name)) return 1;
    return 0;
}

/* Whether it is a setting of some recipes alone. */
static int is_of_recipes(const flag *f) {
    int uses = 0;
    for (int i = 0; dlrn_recipe(i); i++) uses |= recipe_uses(dlrn_recipe(i), f);
    return uses;
}

/* Whether a flag has a use with a recipe: it is one of the recipe's settings, or no setting at
   all. */
static int suits_recipe(const dlrn_recipe_info *recipe, const flag *f) {
    return !is_of_recipes(f) || recipe_uses(recipe, f);
}

/* The part of a recipe's name that its library's recipes share, "dl-"; 0: it has none. */
static size_t library_part(const char *recipe) {
    const char *dash = strchr(recipe, '-');
    return dash ? (size_t)(dash - recipe) + 1 : 0;
}

/* Whether all recipes of a library, and more than one, use a flag. */
static int library_uses(const char *recipe, const flag *f) {
    const size_t n = library_part(recipe);
    int count = 0;
    for (int i = 0; n && dlrn_recipe(i); i++) {
        if (strncmp(dlrn_recipe(i)->name, recipe, n)) continue;
        if (!recipe_uses(dlrn_recipe(i), f)) return 0;
        count++;
    }
    return count > 1;
}

/* "dl-top_k, sl-*": the recipes that use a flag. `text` [size]. */
static void recipes_of(const flag *f, char *text, size_t size) {
    const char *last = "";
    size_t at = 0;
    *text = 0;
    for (int i = 0; dlrn_recipe(i) && at < size; i++) {
        const char *name = dlrn_recipe(i)->name;
        const int all = library_uses(name, f);
        const size_t n = all ? library_part(name) : strlen(name);
        if (!recipe_uses(dlrn_recipe(i), f) || (all && !strncmp(last, name, n))) continue;
        at += (size_t)snprintf(text + at, size - at, "%s%.*s%s", at ? ", " : "", (int)n, name,
                               all ? "*" : "");
        last = all ? name : "";
    }
}

typedef struct command {
    const char *name;
    int bit, words; /* words: number of arguments without a flag, at least that of C_MANY_WORDS */
    const char *usage, *what;
    const char *needs; /* how to make the inputs of the example; "": they are in the tree */
    const char *example;
    int (*run)(dlrn_context *ctx, const options *o);
} command;

/* Negative: not given. recipe NULL: the default one. */
static options default_options(const char *recipe) {
    options o;
    memset(&o, 0, sizeof o);
    o.kernels = "auto";
    o.train = dlrn_train_defaults(recipe);
    o.train.k = -1;
    o.batch_size = o.train.buffer.batch_rows, o.epochs = 1;
    o.n_ctxs = 30000, o.ctx_len = -1, o.in_batch_size = 512;
    o.layer = -1, o.documents = -1, o.temperature = 1, o.limit = -1;
    o.rows = -1, o.count = 8, o.contexts = -1, o.memory = -1;
    o.feature = -1, o.set = (double)NAN;
    o.match = 0.7;
    return o;
}

/* Prints what is wrong with a word of the command line. The exit status of a wrong call. */
static int usage_error(const char *command_name, const char *what, const char *word) {
    fprintf(stderr, "dictlearn: %s: %s: see dictlearn %s --help\n", word, what, command_name);
    return 2;
}

/* 0, or 2 if a text is shorter or longer than allowed. */
static int check_length(const char *command_name, const char *name, const char *text, double min,
                        double max) {
    size_t n = strlen(text);
    if ((double)n >= min && (max == 0 || (double)n <= max)) return 0;
    fprintf(stderr,
            "dictlearn: %s: expected %.0f to %.0f bytes, found %lu: see dictlearn %s --help\n",
            name, min, max, (unsigned long)n, command_name);
    return 2;
}

/* The value of an enumeration that has a name; -1: none has. */
static int find_choice(int names, const char *word) {
    for (int i = 0; *dlrn_name((dlrn_names)names, i) != '?'; i++)
        if (!strcmp(dlrn_name((dlrn_names)names, i), word)) return i;
    return -1;
}

static int is_on_off(const char *word) {
    return !strcmp(word, "on") || !strcmp(word, "off");
}

/* Stores the value of a flag; 0: it is not of the flag's kind. */
static int set_flag(const flag *f, const char *value, options *o) {
    char *field = (char *)o + f->at, *end = NULL;
    const double max = f->max > 0 ? f->max : 1e300;
    if (f->kind == F_TEXT) {
        memcpy(field, &value, sizeof value);
    } else if (f->kind == F_COUNT && (!strcmp(value, "all") || !strcmp(value, "-1"))) {
        memcpy(field, &(int64_t){ALL}, sizeof(int64_t));
    } else if (f->kind == F_INT || f->kind == F_COUNT) {
        double d = strtod(value, &end); /* people write 3e4 */
        int64_t n = d >= -9e15 && d <= 9e15 ? (int64_t)d : 0;
        if (end == value || *end || (double)n != d || d < f->min || d > max) return 0;
        memcpy(field, &n, sizeof n);
    } else if (f->kind == F_REAL) {
        double d = strtod(value, &end);
        if (end == value || *end || !(d >= f->min && d <= max)) return 0;
        memcpy(field, &d, sizeof d);
    } else { /* enumerations have the size of an int */
        int n = f->kind == F_ON_OFF ? !strcmp(value, "on") : find_choice((int)f->min, value);
        if (n < 0 || (f->kind == F_ON_OFF && !is_on_off(value))) return 0;
        memcpy(field, &n, sizeof n);
    }
    return 1;
}

/* What a flag's value must be, for errors. `text` [size]. */
static void expected_of(const flag *f, char *text, size_t size) {
    const char *const kind = f->kind == F_REAL ? "a number" : "a whole number";
    size_t at = 0;
    if (f->kind == F_ON_OFF) {
        snprintf(text, size, "on or off");
    } else if (f->kind == F_CHOICE) {
        for (int i = 0; *dlrn_name((dlrn_names)f->min, i) != '?' && at < size; i++) {
            const int last = *dlrn_name((dlrn_names)f->min, i + 1) == '?';
            at += (size_t)snprintf(text + at, size - at, "%s%s",
                                   !i     ? ""
                                   : last ? " or "
                                          : ", ",
                                   dlrn_name((dlrn_names)f->min, i));
        }
    } else if (f->max > 0) {
        snprintf(text, size, f->kind == F_REAL ? "%s from %g to %g" : "%s from %.0f to %.0f", kind,
                 f->min, f->max);
    } else if (f->min < -1) {
        snprintf(text, size, "%s", kind);
    } else {
        snprintf(text, size, "%s of at least %.0f%s", kind, f->min,
                 f->kind == F_COUNT ? ", or all" : "");
    }
}

/* Takes the value that follows a flag. 0, or the exit status of a wrong call. */
static int take_value(const command *c, const flag *f, const char *value, options *o) {
    char expected[128];
    if (!value && f->kind == F_ON_OFF) value = "on";
    if (!value) return usage_error(c->name, "a value is missing", f->name);
    if (f->kind == F_TEXT && check_length(c->name, f->name, value, f->min, f->max)) return 2;
    if (set_flag(f, value, o)) return 0;
    expected_of(f, expected, sizeof expected);
    fprintf(stderr, "dictlearn: %s: expected %s, found '%s': see dictlearn %s --help\n", f->name,
            expected, value, c->name);
    return 2;
}

/* Whether the word after a flag is its value. value: what follows a sign within its own word. */
static int takes_next(const flag *f, const char *value, const char *next) {
    if (f->kind == F_SWITCH || value) return 0;
    return f->kind != F_ON_OFF || (next && is_on_off(next));
}

enum { FLAGS = (int)(sizeof flags / sizeof *flags) };

/* The flag of a word: --flag, --flag=value or -h; *value: what follows the sign, or NULL. */
static const flag *find_flag(const char *word, const char **value) {
    size_t n = strncmp(word, "--", 2) ? strlen(word) : strcspn(word, "=");
    *value = word[n] ? word + n + 1 : NULL;
    if (!strcmp(word, "-h")) word = "--help", n = strlen(word);
    for (int k = 0; k < FLAGS; k++)
        if (strlen(flags[k].name) == n && !strncmp(word, flags[k].name, n)) return &flags[k];
    return NULL;
}

/* How many letters must be changed, added, left out or swapped with their neighbour to turn a into
   b; words of more than 39 bytes are far from all. */
static int distance(const char *a, const char *b) {
    int d[40][40];
    int n = (int)strlen(a), m = (int)strlen(b);
    if (n >= 40 || m >= 40) return 40;
    for (int i = 0; i <= n; i++) {
        for (int j = 0; j <= m; j++) {
            int same = i && j && a[i - 1] == b[j - 1];
            int best = !i ? j : !j ? i : d[i - 1][j - 1] + !same;
            if (i && j && d[i - 1][j] + 1 < best) best = d[i - 1][j] + 1;
            if (i && j && d[i][j - 1] + 1 < best) best = d[i][j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                d[i - 2][j - 2] + 1 < best)
                best = d[i - 2][j - 2] + 1;
            d[i][j] = best;
        }
    }
    return d[n][m];
}

/* Keeps the name that is nearest to a word, if it is near enough to be meant. */
static void keep_nearest(const char *word, const char *name, int *nearest, const char **best) {
    int n = distance(word, name);
    if (n >= *nearest) return;
    *nearest = n;
    *best = name;
}

/* An unknown flag, with the one that may be meant. The exit status of a wrong call. */
static int unknown_flag(const command *c, const char *word) {
    const char *best = NULL;
    char what[64] = "unknown flag", name[40];
    int nearest = 3; /* more than two slips are no slip */
    snprintf(name, sizeof name, "%.*s", (int)strcspn(word, "="), word);
    for (int k = 0; k < FLAGS; k++)
        if (flags[k].commands & c->bit) keep_nearest(name, flags[k].name, &nearest, &best);
    if (best) snprintf(what, sizeof what, "unknown flag, did you mean %s?", best);
    return usage_error(c->name, what, word);
}

/* A flag that a command cannot do without: 1 and a message if its value is missing. */
static int lacks_flag(const char *command_name, const char *name, const void *value) {
    if (!value) usage_error(command_name, "this flag is required", name);
    return !value;
}

/* A flag that the recipe has no use for. 0, or the exit status of a wrong call. */
static int check_recipe_flag(const command *c, const flag *f, const char *recipe) {
    const dlrn_recipe_info *r = find_recipe(recipe);
    char what[1024], users[800];
    if (c->bit != C_TRAIN || !r || suits_recipe(r, f)) return 0;
    recipes_of(f, users, sizeof users);
    snprintf(what, sizeof what, "not a setting of recipe %s, but of %s", recipe, users);
    return usage_error(c->name, what, f->name);
}

/* Takes an argument without a flag. 0, or the exit status of a wrong call. */
static int take_word(const command *c, const char *word, int *words, options *o) {
    static const char *const names[] = {"the first argument", "the second argument", "an argument"};
    if (*words >= c->words && !(c->bit & C_MANY_WORDS))
        return usage_error(c->name, "one argument too many", word);
    if (*words < 2) *(*words ? &o->path2 : &o->path) = word;
    return check_length(c->name, names[*words < 2 ? (*words)++ : 2], word, 1, TEXT_MAX);
}

/* The exit status of a call that lacks arguments: they come first in the command's usage. */
static int missing_word(const command *c, int found) {
    size_t n = 0;
    for (int i = 0; i < c->words; i++) n += strcspn(c->usage + n, " ") + (i + 1 < c->words);
    fprintf(stderr, "dictlearn: %s: expected %.*s, found %s: see dictlearn %s --help\n", c->name,
            (int)n, c->usage, found ? "one argument" : "no argument", c->name);
    return 2;
}

/* What is wrong with a word that begins like a flag, before its value is looked at. 0, or the exit
   status of a wrong call. seen [FLAGS]: which flags came before. */
static int check_flag(const command *c, const flag *f, const char *word, const char *value,
                      const char *recipe, char *seen) {
    if (!f) return unknown_flag(c, word);
    if (!(f->commands & c->bit)) return usage_error(c->name, "not a flag of this command", f->name);
    if (f->kind == F_SWITCH && value) return usage_error(c->name, "takes no value", f->name);
    /* the last of two values would win, and the other would be lost without a word; sweep collects
       those of --vary itself */
    if (f->kind != F_SWITCH && seen[f - flags] && f->at != AT(vary))
        return usage_error(c->name, "given twice, expected once", f->name);
    seen[f - flags] = 1;
    return check_recipe_flag(c, f, recipe);
}

/* Parses the arguments of a command into `o`. 0, or the exit status of a wrong call. recipe: whose
   flags may be given; "": of any. */
static int parse_words(const command *c, int argc, const char *const *argv, const char *recipe,
                       options *o) {
    char seen[FLAGS] = {0};
    int words = 0, status = 0;
    for (int i = 0; i < argc && !status; i++) {
        const char *value;
        const flag *f = find_flag(argv[i], &value);
        if (!f && (argv[i][0] != '-' || !argv[i][1])) {
            status = take_word(c, argv[i], &words, o);
            continue;
        }
        status = check_flag(c, f, argv[i], value, recipe, seen);
        if (status) return status;
        if (f->kind == F_SWITCH)
            memcpy((char *)o + f->at, &(int){1}, sizeof(int));
        else
            status = take_value(c, f, takes_next(f, value, argv[i + 1]) ? argv[++i] : value, o);
    } /* argv ends with NULL */
    if (status || o->help || words >= c->words) return status;
    return missing_word(c, words);
}

/* The arguments of a command, with the defaults of a recipe. 0, or the exit status of a wrong
   call. argv is borrowed, and ends with NULL. recipe: whose flags may be given; "": of any. */
static int parse_options(const command *c, int argc, const char *const *argv, const char *recipe,
                         options *o) {
    *o = default_options(*recipe ? recipe : NULL);
    o->argc = argc;
    o->argv = argv;
    int status = parse_words(c, argc, argv, recipe, o);
    if (o->ctx_len < 0) o->ctx_len = c->bit == C_TOKENIZE ? CTX_LEN_WHOLE : 128;
    return status;
}

/* Goes to the next argument without a flag: *at, where to look first, begins as 0. NULL: there are
   no more. */
static const char *next_word(const options *o, int *at) {
    while (*at < o->argc) {
        const char *value, *word = o->argv[(*at)++];
        const flag *f = find_flag(word, &value);
        if (!f) return word;
        *at += takes_next(f, value, *at < o->argc ? o->argv[*at] : NULL);
    }
    return NULL;
}

/* Whether the command line has a flag. */
static int is_given(const options *o, const flag *f) {
    for (int i = 0; i < o->argc; i++) {
        const char *value;
        const flag *g = find_flag(o->argv[i], &value);
        if (g == f) return 1;
        if (g && takes_next(g, value, i + 1 < o->argc ? o->argv[i + 1] : NULL)) i++;
    }
    return 0;
}

enum { HELP_COLUMNS = 100, HELP_INDENT = 37 }; /* indent of what a flag does */

/* Prints a text from column `at` on; further lines are indented. */
static void print_wrapped(const char *text, int at, int indent) {
    while (*text) {
        int n = (int)strcspn(text, " ");
        if (at > indent && at + 1 + n > HELP_COLUMNS) {
            printf("\n%*s", indent, "");
            at = indent;
        } else if (at > indent) {
            putchar(' ');
            at++;
        }
        printf("%.*s", n, text);
        at += n;
        text += n + (text[n] == ' ');
    }
    putchar('\n');
}

/* The value of a flag in a configuration; "": it is not there, or never. `text` [size]. */
static void setting_text(const flag *f, const dlrn_train_config *cfg, char *text, size_t size) {
    const size_t begin = offsetof(options, train);
    const char *field = (const char *)cfg + (f->at - begin);
    int64_t n = 0;
    double d = 0;
    int choice = 0;
    *text = 0;
    if (f->at < begin || f->at >= begin + sizeof *cfg) return;
    if (f->kind == F_INT) memcpy(&n, field, sizeof n);
    if (f->kind == F_REAL) memcpy(&d, field, sizeof d);
    if (f->kind == F_ON_OFF || f->kind == F_CHOICE) memcpy(&choice, field, sizeof choice);
    if (f->kind == F_INT && n >= 0) snprintf(text, size, "%lld", (long long)n);
    if (f->kind == F_REAL && d >= 0) snprintf(text, size, "%.6g", d);
    if (f->kind == F_ON_OFF) snprintf(text, size, "%s", choice ? "on" : "off");
    if (f->kind == F_CHOICE) snprintf(text, size, "%s", dlrn_name((dlrn_names)f->min, choice));
}

/* Prints what a flag does: for train with the recipes that use it, if not all do, and with the
   default of `reference`, if that does. */
static void print_flag(const command *c, const flag *f, int at) {
    char text[2048], users[800], value[64];
    const dlrn_train_config cfg = dlrn_train_defaults(NULL);
    const int trains = (c->bit & C_TRAIN) != 0;
    recipes_of(f, users, sizeof users);
    *value = 0;
    if (trains && recipe_uses(dlrn_recipe(0), f) + !*users > 0)
        setting_text(f, &cfg, value, sizeof value);
    snprintf(text, sizeof text, "%s%s%s%s%s%s", trains ? users : "", trains && *users ? ": " : "",
             f->help, *value ? " (default " : "", value, *value ? ")" : "");
    print_wrapped(text, at, HELP_INDENT);
}

/* Prints usage, flags with their defaults, and an example. */
static void print_help(const command *c) {
    int at = printf("dictlearn %s", c->name);
    print_wrapped(c->usage, at, 4);
    putchar('\n');
    print_wrapped(c->what, 0, 0);
    putchar('\n');
    for (size_t k = 0; k < sizeof flags / sizeof *flags; k++) {
        if (!(flags[k].commands & c->bit)) continue;
        at = printf("  %-19s %s", flags[k].name, flags[k].value);
        if (at >= HELP_INDENT) {
            printf("\n%*s", HELP_INDENT, "");
            at = HELP_INDENT;
        } else {
            at += printf("%*s", HELP_INDENT - at, "");
        }
        print_flag(c, &flags[k], at);
    }
    printf(*c->needs ? "\nExample (%s):\n" : "\nExample:%s\n", c->needs);
    printf("  %s\n", c->example);
}
