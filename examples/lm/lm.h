/* lm.h - runs decoder-only language models on dictlearn.h's matrix products - MIT licence

   Do this in one file, after dictlearn.h:

       #define LM_IMPLEMENTATION
       #include "lm.h"

   It brings bpe.h (tokenizer) and documents.h (texts) along. It reads a Hugging Face folder as
   downloaded (config.json; model.safetensors or pytorch_model.bin, sharded or not; f32, f16 or
   bf16), hands out the activations of any site of any layer, lets you change them on the way, and
   measures the cross-entropy that the change costs. It also samples text. A layer's weights are
   read when a run first needs them, so activations of layer 3 cost four layers of memory and time,
   however deep the model is.

   A batch is ragged: its sequences follow one another, x [tokens][d], without padding, so nothing
   has to be masked or dropped. The numbers of a token depend on its sequence alone, not on the rest
   of the batch, and are the same with every kernel set and number of threads.

   TO ADD AN ARCHITECTURE write one file beside lm_gptneox.h, include it where that one is, and add
   one row to LM_ARCHITECTURE_LIST.
   The file holds
     - a parser that fills an lm_config from config.json,
     - a table of tensors: role, name in the file, shape,
     - a block: the operations of a layer, in order, and lm_reach at each site.
   What operations exist today is what GPT-NeoX needs. The configuration has room for the others:
     grouped queries (GQA)     kv_heads below heads: lm_attention honours it
     q, k, v in another order  lm_config.q, .k, .v say where a head's numbers are in a row of qkv
     other rotary embeddings   lm_architecture.rope_rate; rope.dims 0: none
     RMS norm                  a function beside lm_layer_norm, which the block calls instead
     gated MLP                 a role LM_GATE, and a function beside lm_mlp

   CONTENTS
   >>interface      models, sites, runs, sampling, texts
   >>architectures  what a file for one architecture provides and may call
   >>config         config.json
   >>weights        tensors by role
   >>workspace      scratch memory of a run
   >>loops          vectorised loops: norms, softmax, gelu, attention of one query
   >>operations     what blocks are made of
   >>run            a batch through the model
   >>head           logits and cross-entropy
   >>sampling       text from the model
   >>text           activations of a text as a dlrn_source
   >>judge          a dlrn_language_model: cross-entropy with activations edited
*/
#ifndef LM_H
#define LM_H

#include <stdint.h>

#ifdef LM_IMPLEMENTATION
#define BPE_IMPLEMENTATION
#define DOCUMENTS_IMPLEMENTATION
#endif
#include "bpe.h"
#include "documents.h"

#ifdef __GNUC__
#define LM_API __attribute__((unused)) static
#else
#define LM_API static
#endif

/* ------------------------------------------------------------------------------------------ */
// >>interface

/* Sites, in the order in which a block passes them: X(constant, name, what stands before the name
   in a list of all). attn_z: the heads' results side by side, before the projection back to the
   residual stream; mlp_hidden: the MLP's inner layer, after the activation. */
#define LM_KIND_LIST(X)                                                                            \
    X(EMBED, "embed", "")                                                                          \
    X(ATTN_IN, "attn_in", ", ")                                                                    \
    X(ATTN_Z, "attn_z", ", ")                                                                      \
    X(ATTN_OUT, "attn_out", ", ")                                                                  \
    X(MLP_IN, "mlp_in", ", ")                                                                      \
    X(MLP_HIDDEN, "mlp_hidden", ", ")                                                              \
    X(MLP_OUT, "mlp_out", ", ")                                                                    \
    X(RESID_OUT, "resid_out", " or ")

/* What a dictionary at a site does: it reconstructs the input of the site's module; it reconstructs
   the site itself; or it maps that input to the site. */
#define LM_IO_LIST(X)                                                                              \
    X(IN, "in", "")                                                                                \
    X(OUT, "out", ", ")                                                                            \
    X(IN_TO_OUT, "in_to_out", " or ")

/* The architectures: one row each, the model_type of config.json; lm_ID is in lm_ID.h. */
#define LM_ARCHITECTURE_LIST(X) X(gptneox, "gpt_neox", "")

#define LM_IN_TEXT(id, name, before) before name
#define LM_MODEL_TYPES LM_ARCHITECTURE_LIST(LM_IN_TEXT)
#define LM_KINDS LM_KIND_LIST(LM_IN_TEXT) /* "embed, attn_in, ... or resid_out", as a literal */
#define LM_IOS LM_IO_LIST(LM_IN_TEXT)

#define LM_ENUM(id, name, before) LM_##id,
typedef enum lm_kind { LM_KIND_LIST(LM_ENUM) LM_KIND_COUNT } lm_kind;
#undef LM_ENUM
#define LM_ENUM(id, name, before) LM_IO_##id,
typedef enum lm_io { LM_IO_LIST(LM_ENUM) LM_IO_COUNT } lm_io;
#undef LM_ENUM

typedef struct lm_site {
    lm_kind kind;
    int layer; /* 0 for the embedding */
} lm_site;

/* What a dictionary reads (x) and what it replaces (y): the same site, unless it maps a module's
   input to its output. */
typedef struct lm_tap {
    lm_site x, y;
} lm_tap;

typedef struct lm_config lm_config; /* see >>architectures */
typedef struct lm_model lm_model;

/* folder: borrowed during the call. */
LM_API dlrn_status lm_load(dlrn_context *ctx, const char *folder, lm_model **out);
LM_API void lm_destroy(lm_model *m); /* NULL is fine */
LM_API const lm_config *lm_config_of(const lm_model *m);
/* config.json alone, without the weights. */
LM_API dlrn_status lm_read_config(dlrn_context *ctx, const char *folder, lm_config *out);
/* The file with a folder's weights (or with the index of its shards), in the order in which
   transformers looks for it; 0: there is none. */
LM_API int lm_find_weights(dlrn_context *ctx, const char *folder, char *path, size_t size);
/* asked(user) is called between layers, on any thread; non-zero ends the run with DLRN_STOPPED.
   NULL: never. A source of activations that was stopped loses no row. */
LM_API void lm_on_stop(lm_model *m, int (*asked)(void *user), void *user);

/* The place of a name in its list; -1: it is not there. */
LM_API int lm_kind_named(const char *name);
LM_API int lm_io_named(const char *name);
/* Numbers in a row of a site: those of the residual stream, of all heads (attn_z) or of the MLP's
   inner layer (mlp_hidden). */
LM_API int64_t lm_site_width(const lm_model *m, lm_site site);
/* A site by name and layer, checked against the model. */
LM_API dlrn_status lm_site_named(const lm_model *m, const char *name, int64_t layer, lm_site *out);
LM_API dlrn_status lm_tap_at(const lm_model *m, lm_site site, lm_io io, lm_tap *out);

/* Sequence i holds tokens id[start[i]] .. id[start[i + 1] - 1]; start[0] need not be 0. All
   borrowed. */
typedef struct lm_batch {
    const int32_t *id;
    const int64_t *start; /* [sequences + 1] */
    int64_t sequences;
} lm_batch;

/* Called when tap's y is reached: x [n][width of its site] is what was read, y likewise what the
   model goes on with and may be overwritten; x == y for a tap of one site. */
typedef dlrn_status (*lm_visit)(void *user, int tap, const float *x, float *y, int64_t n);

/* Runs the model over a batch. whole: up to the last norm, as lm_logits and lm_cross_entropy need
   it; otherwise the run stops after the last tap. */
LM_API dlrn_status lm_run(lm_model *m, const lm_batch *batch, const lm_tap *taps, int n_taps,
                          lm_visit visit, void *user, int whole);
/* After a whole run: logits [rows][vocab] of its tokens [first, first + rows). */
LM_API dlrn_status lm_logits(lm_model *m, int64_t first, int64_t rows, float *logits);
/* After a whole run of this batch: the sum of -log p(next token), and the number of such tokens. */
LM_API dlrn_status lm_cross_entropy(lm_model *m, const lm_batch *batch, double *nats,
                                    int64_t *tokens);

typedef struct lm_sampling {
    int64_t documents, tokens; /* how many; the longest one, without the prompt */
    double temperature;        /* 0, or below 1e-9: always the most likely token */
    int64_t top_k;             /* 0: all                                         */
    uint64_t seed;
    const int32_t *prompt; /* [prompt_len >= 1], borrowed */
    int64_t prompt_len;
    int32_t stop; /* ends a document and is not part of it; -1: none */
    /* Only ids that this tokenizer has a token for are drawn, and `stop`; borrowed, NULL: all. A
       model's vocabulary is often padded: Pythia has 50304 ids for 50277 tokens. */
    const bpe_tokenizer *tokens_of;
} lm_sampling;
/* Called once for each document, in order: its new tokens id [n]. */
typedef dlrn_status (*lm_emit)(void *user, int64_t document, const int32_t *id, int64_t n);
/* Document i depends on the seed and i alone. */
LM_API dlrn_status lm_generate(lm_model *m, const lm_sampling *cfg, lm_emit emit, void *user);

/* Token ids of documents, ragged. Zero-initialise; free with lm_documents_free. */
typedef struct lm_documents {
    int32_t *id;
    int64_t *start; /* [count + 1] */
    int64_t count, id_cap, start_cap;
    dlrn_context *ctx;
} lm_documents;

/* What became of the tokens of a text. */
typedef struct lm_tally {
    int64_t tokens, left_out; /* that the documents have; of those, cut off */
} lm_tally;

/* Which rows of a text's activations count. The first tokens of a context and special tokens
   (attention sinks) can have activations a hundred times as long as all others, which then rule
   every figure. Zero-initialised: all rows count. */
typedef struct lm_choice {
    int64_t skip_first; /* positions at the beginning of each context                  */
    const bpe_tokenizer *special_of; /* leave out the special tokens of this tokenizer and the
                                  model's bos token; borrowed, NULL: none                     */
    double max_norm_ratio; /* leave out rows longer than this times the median of their context;
                              0: none                                                         */
    int64_t *left_out;     /* counts up; borrowed, or NULL                                    */
} lm_choice;

/* The longest of n rows that counts: `ratio` times the median norm (of an even number the lower
   one). norm [2 n]: the second half is scratch. */
LM_API double lm_norm_limit(double *norm, int64_t n, double ratio);
/* The Euclidean norm of a row x [d], summed in double: it is finite only if the row is. */
LM_API double lm_row_norm(const float *x, int64_t d);

typedef struct lm_reading { /* how a text becomes token ids */
    int64_t ctx_len;        /* tokens of a context                             */
    int bos;                /* 1: each context begins with the model's bos token */
    int split;              /* 0: a document is cut to one context; 1: it gives several, and each
                               counts as a document; the last may be short */
    lm_tally *tally;        /* borrowed, counts up; or NULL */
    lm_choice choice;       /* rows of a source that are left out */
} lm_reading;

/* keep [tokens of the batch]: 1 for each row that counts, else 0. x [tokens][d]: the rows; needed
   for max_norm_ratio alone. */
LM_API dlrn_status lm_choose(const lm_model *m, const lm_choice *choice, const lm_batch *batch,
                             const float *x, int64_t d, unsigned char *keep);

/* The ids of the next document that has some: those of its text, or those that it has ready. */
LM_API dlrn_status lm_next_ids(bpe_tokenizer *tok, doc_reader *docs, bpe_ids *out);
/* Appends up to `limit` further documents (-1: all) that have tokens, with all of their contexts.
   DLRN_END if there were none. */
LM_API dlrn_status lm_read_documents(const lm_model *m, bpe_tokenizer *tok, doc_reader *docs,
                                     const lm_reading *how, int64_t limit, lm_documents *out);
LM_API void lm_documents_free(lm_documents *d);

/* Activations at a tap as a source for the library: rows in the order of the text. All arguments
   are borrowed; destroy the source before them. It can seek, but a text on standard input goes
   forward only. An error is repeated until a seek: after DLRN_ERR_MEMORY seek to the position that
   the source reports, and no row is lost. */
LM_API dlrn_status lm_text_source(lm_model *m, bpe_tokenizer *tok, doc_reader *docs,
                                  const lm_reading *how, lm_tap tap, dlrn_source *out);

/* The same documents as a language model for the library's evaluation. */
typedef struct lm_judge {
    lm_model *model;           /* borrowed          */
    const lm_documents *texts; /* borrowed          */
    const lm_tap *taps;        /* [n_taps] borrowed */
    int n_taps;
    const lm_choice *choice; /* rows that an edit leaves as they are; borrowed, or NULL */
} lm_judge;
/* judge is borrowed and must outlive *out. */
LM_API void lm_language_model(lm_judge *judge, dlrn_language_model *out);

/* ------------------------------------------------------------------------------------------ */
// >>architectures

typedef enum lm_activation {
    LM_GELU,
    LM_GELU_CLIPPED, /* to [-10, 10] */
    LM_GELU_TANH,
    LM_GELU_SIGMOID,
    LM_RELU,
    LM_SILU
} lm_activation;

/* Where a head's numbers are in a row of queries, keys and values: head h begins at
   first + h step. */
typedef struct lm_heads {
    int64_t first, step;
} lm_heads;

/* Rotary embedding: the first `dims` (even) dimensions of a head turn. */
typedef struct lm_rope {
    int64_t dims, span; /* span: what the frequencies are spread over */
    double theta, scaling;
} lm_rope;

struct lm_config {
    const struct lm_architecture *architecture;
    int64_t dim, layers, inner, vocab, positions;
    int64_t heads, kv_heads, head_dim; /* heads / kv_heads query heads share a key and value head */
    lm_heads q, k, v;
    lm_rope rope;
    double eps; /* of the norms */
    lm_activation activation;
    int parallel;     /* 1: attention and MLP both read the block's input */
    int tied;         /* 1: the unembedding is the embedding              */
    unsigned has;     /* tensors that only some models have: see lm_tensor.needs */
    int32_t bos, eos; /* -1: none */
    /* What the caller should know: which of two keys that contradict each other was taken. A line
       each, of config.json, without its path; "": nothing. */
    char notes[1024];
};

/* What a tensor is for. Those before LM_LAYER_ROLES belong to a layer. */
typedef enum lm_role {
    LM_NORM1,
    LM_NORM1_BIAS,
    LM_QKV,
    LM_QKV_BIAS,
    LM_ATTN, /* from the heads to the residual stream */
    LM_ATTN_BIAS,
    LM_NORM2,
    LM_NORM2_BIAS,
    LM_UP,
    LM_UP_BIAS,
    LM_DOWN,
    LM_DOWN_BIAS,
    LM_LAYER_ROLES,
    LM_EMBEDDING = LM_LAYER_ROLES,
    LM_LAST_NORM,
    LM_LAST_NORM_BIAS,
    LM_UNEMBEDDING,
    LM_ROLES
} lm_role;

/* Sizes that tensors have; lm_size_of gives the number. LM_NONE as columns: a vector. */
typedef enum lm_size { LM_NONE, LM_DIM, LM_QKV_DIM, LM_HEADS_DIM, LM_INNER, LM_VOCAB } lm_size;

/* A row of an architecture's table. Rows of one role are alternatives: the first that the file has
   is taken. */
typedef struct lm_tensor {
    lm_role role;
    const char *name; /* behind the prefix, and for a layer's behind the layer's prefix */
    lm_size rows, cols;
    unsigned needs; /* bits of lm_config.has, or LM_BARE */
} lm_tensor;
#define LM_BARE 1u /* of lm_tensor.needs: the name has no prefix */

typedef struct lm_pass lm_pass;

typedef struct lm_architecture {
    const char *family; /* as `inspect` shows it */
    /* Fills *out, all zero but for `architecture`. path: of config.json, for errors. */
    dlrn_status (*parse)(dlrn_context *ctx, const dlrn_json *json, const char *path,
                         lm_config *out);
    const lm_tensor *tensors; /* [n_tensors] */
    int n_tensors;
    const char *prefixes[2];  /* of all names: the first with which a tensor is found */
    const char *layer_prefix; /* followed by the layer and a dot */
    double (*rope_rate)(const lm_config *c, int64_t pair); /* turn of a pair, a position */
    /* A layer: from p->m->x to p->m->x. */
    dlrn_status (*block)(lm_pass *p, int64_t layer);
} lm_architecture;

#endif /* LM_H */

#ifdef LM_IMPLEMENTATION
#undef LM_IMPLEMENTATION

#include <math.h>
#include <stdlib.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Every kernel set must give the same bits, so the compiler must not fuse a * b + c where the
   processor can: it would round once in the loops compiled for AVX2 and twice in the others. GCC
   takes this as an option of the functions that follow, clang as a pragma. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")
#endif

#define LM_TRY(call)                                                                               \
    do {                                                                                           \
        dlrn_status lm_s = (call);                                                                 \
        if (lm_s != DLRN_OK) return lm_s;                                                          \
    } while (0)

enum {
    LM_ROWS = 16,    /* rows of a parallel task                                    */
    LM_QUERIES = 32, /* queries that look at the keys together: one product        */
    /* Tokens of a run. On a Zen 4 the products reach full speed at 2048, and the workspace is still
       small. */
    LM_BATCH_TOKENS = 2048,
    /* A tile of a product stays in the caches while bias and activation are applied to it: 1.2
       times the speed of whole products on a Zen 4 (layers of Pythia-70m's shape). */
    LM_TILE_ROWS = 1024,
    LM_TILE = 192,
    LM_PART = 16 * LM_TILE /* of the vocabulary that a task takes */
};

typedef enum lm_width { LM_NARROW, LM_AVX2, LM_AVX512 } lm_width; /* of vectors, for >>loops */

typedef struct lm_layer {
    float *part[LM_LAYER_ROLES]; /* NULL: the model has none. One block */
    float *block;                /* NULL until the layer is first needed */
} lm_layer;

/* Keys and values of tokens already seen, for sampling. Keys are stored by dimension, so that the
   scores of one query are sums of rows. */
typedef struct lm_cache {
    float *k; /* [layers][sequences][kv_heads][head_dim][capacity]              */
    float *v; /* [layers][sequences][kv_heads][capacity][head_dim]              */
    int64_t sequences, capacity; /* capacity: see lm_row_of                     */
    int64_t past;                /* tokens of every sequence that are in it     */
} lm_cache;

struct lm_model {
    dlrn_context *ctx;
    lm_config cfg;
    dlrn_archive *archive;
    const char *prefix; /* of tensor names in this file */
    lm_width width;
    lm_layer *layer;       /* [layers] */
    float *part[LM_ROLES]; /* the model's own; NULL: not read yet */
    float *turn;           /* [turn_rows][rope.dims / 2][2]: cosine, sine at each position    */
    int64_t turn_rows;     /* grows with the longest sequence, not with config.json's promise */
    int (*stop)(void *user);
    void *stop_user;
    /* workspace of one run */
    int64_t capacity, tokens;
    float *x;   /* [capacity][dim] residual stream               */
    float *a;   /* [capacity][dim] normed: what a module reads   */
    float *qkv; /* [capacity][LM_QKV_DIM]                        */
    float *att; /* [capacity][dim] what the attention adds       */
    float *mlp; /* [capacity][dim or LM_HEADS_DIM] what the MLP adds; before, the heads' results */
    float *h;   /* [capacity][inner]                             */
    int64_t *sequence, *position; /* [capacity] of each token     */
    float **captured; /* [n_captured][capacity][capture_width] x of taps whose y comes later */
    int n_captured;
    int64_t capture_width; /* of the widest site that was captured */
    float *scores;     /* [threads][LM_QUERIES + head_dim][score_row]: scores, keys by dimension */
    float *work;       /* [threads][DLRN_MATMUL_WORK] */
    int64_t score_row; /* of this run: its longest sequence, see lm_row_of */
    int64_t score_cap; /* the longest row that there is room for          */
};

/* What one run is about, handed down through the blocks. */
struct lm_pass {
    lm_model *m;
    const lm_batch *batch;
    lm_cache *cache; /* NULL: the sequences are whole */
    const lm_tap *taps;
    int n_taps;
    lm_visit visit;
    void *user;
    int64_t last; /* the order of the last site that is needed */
};

/* ------------------------------------------------------------------------------------------ */
// >>config
/* Helpers for an architecture's parser, and the search for the architecture. */

/* Reads a whole number from min to max. */
static dlrn_status lm_count(dlrn_context *ctx, const dlrn_json *json, const char *path,
                            const char *key, int64_t min, int64_t max, int64_t *out) {
    double v = dlrn_json_number(json, key, -1);
    const dlrn_json *value = dlrn_json_get(json, key);
    if (!(v >= (double)min && v <= (double)max) || v != floor(v))
        return dlrn_fail(ctx, DLRN_ERR_FORMAT,
                         "%s: %s: expected a whole number from %lld to %lld, found %.40s", path,
                         key, (long long)min, (long long)max,
                         !value                            ? "none"
                         : value->type == DLRN_JSON_NUMBER ? value->text
                                                           : "another value");
    *out = (int64_t)v;
    return DLRN_OK;
}

/* The id of a special token; -1: there is none, or a list of them. */
static dlrn_status lm_token(dlrn_context *ctx, const dlrn_json *json, const char *path,
                            const char *key, int64_t max, int32_t *out) {
    int64_t id = -1;
    if (dlrn_json_number(json, key, -1) != -1) LM_TRY(lm_count(ctx, json, path, key, 0, max, &id));
    *out = (int32_t)id;
    return DLRN_OK;
}

/* A flag of config.json; `otherwise` if it is missing. */
static int lm_true(const dlrn_json *json, const char *key, int otherwise) {
    return dlrn_json_number(json, key, otherwise) != 0;
}

/* Adds a line to the notes; a line without room is left out whole. */
static DLRN_PRINTF(2, 3) void lm_note(lm_config *c, const char *format, ...) {
    const size_t used = strlen(c->notes), room = sizeof c->notes - used;
    va_list args;
    va_start(args, format);
    int n = vsnprintf(c->notes + used, room, format, args);
    va_end(args);
    if (n < 0 || (size_t)n + 2 > room)
        c->notes[used] = 0;
    else
        memcpy(c->notes + used + n, "\n", 2);
}

/* A number that several keys may give, in order of precedence: the first that config.json has is
   taken. Keys from `read` on are never taken. A note names the first of the others that differs. */
static double lm_choose_number(lm_config *c, const dlrn_json *json, const char *const *keys,
                               int read, int n, double otherwise) {
    const char *taken = NULL;
    double value = otherwise;
    for (int i = 0; i < n; i++) {
        const dlrn_json *found = dlrn_json_get(json, keys[i]);
        if (!found || found->type != DLRN_JSON_NUMBER) continue;
        if (i < read && !taken) {
            taken = keys[i];
            value = found->number;
        } else if (found->number != value) {
            lm_note(c, "%s %g is ignored: %s %g is taken, as transformers 5 does", keys[i],
                    found->number, taken ? taken : "the default", value);
            break;
        }
    }
    return value;
}

/* A key that this architecture does not read, although others call the same thing so: a note if it
   contradicts the one that is read. */
static void lm_note_alias(lm_config *c, const dlrn_json *json, const char *key, const char *alias) {
    const dlrn_json *a = dlrn_json_get(json, key), *b = dlrn_json_get(json, alias);
    if (!a || !b || !a->text || !b->text) return; /* strings and numbers have a text */
    if (a->type == b->type &&
        (a->type == DLRN_JSON_NUMBER ? a->number == b->number : !strcmp(a->text, b->text)))
        return;
    lm_note(c, "%s %.40s is ignored: %s %.40s is taken, as transformers 5 does", alias, b->text,
            key, a->text);
}

/* Activations: X(name in transformers, constant, what stands before the name in a list of all). */
#define LM_ACTIVATION_LIST(X)                                                                      \
    X("gelu", LM_GELU, "")                                                                         \
    X("gelu_python", LM_GELU, ", ")                                                                \
    X("gelu_10", LM_GELU_CLIPPED, ", ")                                                            \
    X("gelu_new", LM_GELU_TANH, ", ")                                                              \
    X("gelu_fast", LM_GELU_TANH, ", ")                                                             \
    X("gelu_accurate", LM_GELU_TANH, ", ")                                                         \
    X("gelu_pytorch_tanh", LM_GELU_TANH, ", ")                                                     \
    X("gelu_python_tanh", LM_GELU_TANH, ", ")                                                      \
    X("quick_gelu", LM_GELU_SIGMOID, ", ")                                                         \
    X("relu", LM_RELU, ", ")                                                                       \
    X("silu", LM_SILU, ", ")                                                                       \
    X("swish", LM_SILU, " or ")

/* Reads hidden_act, under any of the names that transformers has for a formula we know. */
static dlrn_status lm_parse_activation(dlrn_context *ctx, const dlrn_json *json, const char *path,
                                       lm_activation *out) {
#define LM_ROW(name, kind, before) {name, kind},
#define LM_NAME(name, kind, before) before name
    static const struct {
        const char *name;
        lm_activation kind;
    } known[] = {LM_ACTIVATION_LIST(LM_ROW)};
    const char *name = dlrn_json_text(json, "hidden_act", "gelu");
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(name, known[i].name)) {
            *out = known[i].kind;
            return DLRN_OK;
        }
    return dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED,
                     "%s: hidden_act: expected " LM_ACTIVATION_LIST(LM_NAME) ", found %.40s", path,
                     name);
#undef LM_ROW
#undef LM_NAME
}

/* theta^(-2 pair / span) / scaling: the usual rotary frequencies, as HF computes them. */
static double lm_rope_rate(const lm_config *c, int64_t pair) {
    return pow(c->rope.theta, -2.0 * (double)pair / (double)c->rope.span) / c->rope.scaling;
}

static const lm_architecture *lm_find_architecture(const char *model_type); /* NULL: unknown */

/* Finds the architecture by model_type and lets it parse the rest. */
static dlrn_status lm_parse_config(dlrn_context *ctx, const dlrn_json *json, const char *path,
                                   lm_config *c) {
    const char *type = dlrn_json_text(json, "model_type", "none");
    memset(c, 0, sizeof *c);
    c->architecture = lm_find_architecture(type);
    if (c->architecture) return c->architecture->parse(ctx, json, path, c);
    return dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED,
                     "%s: model_type: expected " LM_MODEL_TYPES ", found %s", path, type);
}

LM_API dlrn_status lm_read_config(dlrn_context *ctx, const char *folder, lm_config *out) {
    char path[4200], *text = NULL;
    size_t size = 0;
    dlrn_json *json = NULL;
    snprintf(path, sizeof path, "%s/config.json", folder);
    LM_TRY(dlrn_file_read(ctx, path, &text, &size));
    dlrn_status s = dlrn_json_parse(ctx, text, size, path, &json);
    if (s == DLRN_OK) s = lm_parse_config(ctx, json, path, out);
    dlrn_free(ctx, json);
    dlrn_free(ctx, text);
    return s;
}

LM_API const lm_config *lm_config_of(const lm_model *m) {
    return &m->cfg;
}

/* ------------------------------------------------------------------------------------------ */
// >>weights

/* The number behind a symbolic size; 1 for none. */
static int64_t lm_size_of(const lm_config *c, lm_size size) {
    switch (size) {
    case LM_DIM: return c->dim;
    case LM_QKV_DIM: return (c->heads + 2 * c->kv_heads) * c->head_dim;
    case LM_HEADS_DIM: return c->heads * c->head_dim;
    case LM_INNER: return c->inner;
    case LM_VOCAB: return c->vocab;
    case LM_NONE: break;
    }
    return 1;
}

LM_API int64_t lm_site_width(const lm_model *m, lm_site site) {
    return lm_size_of(&m->cfg, site.kind == LM_ATTN_Z       ? LM_HEADS_DIM
                               : site.kind == LM_MLP_HIDDEN ? LM_INNER
                                                            : LM_DIM);
}

/* Number of elements. */
static int64_t lm_numel(const lm_config *c, const lm_tensor *t) {
    return lm_size_of(c, t->rows) * lm_size_of(c, t->cols);
}

/* Whether this model lacks a tensor that others of its architecture have. */
static int lm_is_absent(const lm_config *c, const lm_tensor *t) {
    return (t->needs & ~LM_BARE & ~c->has) != 0;
}

/* The tensor's name in the file; layer: -1 for the model's own. */
static void lm_tensor_name(const lm_model *m, const lm_tensor *t, int64_t layer, char *name,
                           size_t size) {
    char of_layer[48] = "";
    if (layer >= 0)
        snprintf(of_layer, sizeof of_layer, "%s%lld.", m->cfg.architecture->layer_prefix,
                 (long long)layer);
    snprintf(name, size, "%s%s%s", t->needs & LM_BARE ? "" : m->prefix, of_layer, t->name);
}

/* Writes a shape as "512, 128". */
static void lm_shape_text(const int64_t *shape, int ndim, char *out, size_t size) {
    size_t at = 0;
    for (int i = 0; i < ndim && at < size; i++)
        at += (size_t)snprintf(out + at, size - at, "%s%lld", i ? ", " : "", (long long)shape[i]);
    if (ndim == 0) *out = 0;
}

/* Whether a tensor holds real numbers. An integer one holds quantised weights, whose scales are
   elsewhere: read as numbers they would be wrong without a sign of it. */
static int lm_is_real(dlrn_dtype t) {
    return t == DLRN_F32 || t == DLRN_F16 || t == DLRN_BF16 || t == DLRN_F64;
}

/* The tensor's index in the file, or -1 with the error set: missing, quantised, or of another
   shape. */
static int64_t lm_find(lm_model *m, const lm_tensor *t, const char *name) {
    const int64_t shape[2] = {lm_size_of(&m->cfg, t->rows), lm_size_of(&m->cfg, t->cols)};
    const char *path = dlrn_archive_describe(m->archive).path;
    const int ndim = t->cols == LM_NONE ? 1 : 2;
    char expected[64], found[256];
    int64_t index = dlrn_archive_find(m->archive, name);
    const dlrn_tensor_info *info = index >= 0 ? dlrn_archive_tensor(m->archive, index) : NULL;
    lm_shape_text(shape, ndim, expected, sizeof expected);
    if (!info) {
        dlrn_fail(m->ctx, DLRN_ERR_FORMAT,
                  "%s: tensor '%s': expected shape [%s], found no such tensor", path, name,
                  expected);
        return -1;
    }
    if (!lm_is_real(info->dtype)) {
        dlrn_fail(m->ctx, DLRN_ERR_FORMAT,
                  "%s: tensor '%s': expected dtype F32, F16, BF16 or F64, found %s: quantised "
                  "weights are not supported",
                  path, name, dlrn_name(DLRN_NAMES_DTYPE, (int)info->dtype));
        return -1;
    }
    if (info->ndim != ndim || memcmp(info->shape, shape, (size_t)ndim * sizeof *shape)) {
        lm_shape_text(info->shape, info->ndim, found, sizeof found);
        dlrn_fail(m->ctx, DLRN_ERR_SHAPE, "%s: tensor '%s': expected shape [%s], found [%s]", path,
                  name, expected, found);
        return -1;
    }
    return index;
}

/* Every tensor of every layer is there and has its shape: checked when the model is opened, not
   when a layer is first needed. */
static dlrn_status lm_check_layers(lm_model *m) {
    const lm_architecture *arch = m->cfg.architecture;
    char name[160];
    for (int64_t l = 0; l < m->cfg.layers; l++)
        for (int i = 0; i < arch->n_tensors; i++) {
            const lm_tensor *t = &arch->tensors[i];
            if (t->role >= LM_LAYER_ROLES || lm_is_absent(&m->cfg, t)) continue;
            lm_tensor_name(m, t, l, name, sizeof name);
            if (lm_find(m, t, name) < 0) return DLRN_ERR_FORMAT;
        }
    return DLRN_OK;
}

/* One number that is not finite would make all outputs NaN: refused, as in a dictionary. */
static dlrn_status lm_read_finite(lm_model *m, int64_t index, const char *name, int64_t n,
                                  float *out) {
    LM_TRY(dlrn_archive_read(m->archive, index, 0, -1, out));
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(out[i]))
            return dlrn_fail(m->ctx, DLRN_ERR_VALUE,
                             "%s: tensor '%s': element %lld: expected a finite number, found %g",
                             dlrn_archive_describe(m->archive).path, name, (long long)i,
                             (double)out[i]);
    return DLRN_OK;
}

/* Reads a layer's tensors one behind the other into block and notes where each is. */
static dlrn_status lm_read_layer(lm_model *m, int64_t l, float *block, float **part) {
    const lm_architecture *arch = m->cfg.architecture;
    char name[160];
    for (int i = 0; i < arch->n_tensors; i++) {
        const lm_tensor *t = &arch->tensors[i];
        if (t->role >= LM_LAYER_ROLES || lm_is_absent(&m->cfg, t)) continue;
        const int64_t n = lm_numel(&m->cfg, t);
        lm_tensor_name(m, t, l, name, sizeof name);
        LM_TRY(lm_read_finite(m, dlrn_archive_find(m->archive, name), name, n, block));
        part[t->role] = block;
        block += n;
    }
    return DLRN_OK;
}

/* Reads a layer unless it is there already. */
static dlrn_status lm_need_layer(lm_model *m, int64_t l) {
    const lm_architecture *arch = m->cfg.architecture;
    lm_layer *layer = &m->layer[l];
    int64_t total = 0;
    if (layer->block) return DLRN_OK;
    for (int i = 0; i < arch->n_tensors; i++)
        if (arch->tensors[i].role < LM_LAYER_ROLES) total += lm_numel(&m->cfg, &arch->tensors[i]);
    float *block = (float *)dlrn_alloc(m->ctx, total, sizeof *block);
    if (!block) return DLRN_ERR_MEMORY;
    dlrn_status s = lm_read_layer(m, l, block, layer->part);
    if (s == DLRN_OK)
        layer->block = block;
    else
        dlrn_free(m->ctx, block);
    return s;
}

/* The row of the table for one of the model's own tensors: of alternatives the first that the file
   has, or else the last. NULL: this architecture has none. */
static const lm_tensor *lm_own(const lm_model *m, lm_role role, char *name, size_t size,
                               int *there) {
    const lm_architecture *arch = m->cfg.architecture;
    const lm_tensor *t = NULL;
    *there = 0;
    for (int i = 0; i < arch->n_tensors && !*there; i++) {
        if (arch->tensors[i].role != role || lm_is_absent(&m->cfg, &arch->tensors[i])) continue;
        t = &arch->tensors[i];
        lm_tensor_name(m, t, -1, name, size);
        *there = dlrn_archive_find(m->archive, name) >= 0;
    }
    return t;
}

/* Reads one of the model's own tensors unless it is there already. */
static dlrn_status lm_need(lm_model *m, lm_role role) {
    char name[160], other[160];
    int there, other_there = 0;
    if (m->part[role]) return DLRN_OK;
    const lm_tensor *t = lm_own(m, role, name, sizeof name, &there), *swapped = NULL;
    if (!t) return DLRN_OK;
    if (!there && role == LM_EMBEDDING && m->cfg.tied)
        swapped = lm_own(m, LM_UNEMBEDDING, other, sizeof other, &other_there);
    if (other_there) { /* of two tied tensors safetensors' save_model keeps the first by name */
        t = swapped;
        memcpy(name, other, sizeof name);
    }
    int64_t index = lm_find(m, t, name), n = lm_numel(&m->cfg, t);
    if (index < 0) return DLRN_ERR_FORMAT;
    float *block = (float *)dlrn_alloc(m->ctx, n, sizeof *block);
    if (!block) return DLRN_ERR_MEMORY;
    dlrn_status s = lm_read_finite(m, index, name, n, block);
    if (s == DLRN_OK)
        m->part[role] = block;
    else
        dlrn_free(m->ctx, block);
    return s;
}

/* tie_word_embeddings although the file has both matrices: they are tied only if they are equal, as
   in transformers 5. (Versions before it tied them and lost one.) */
static dlrn_status lm_settle_tie(lm_model *m) {
    char name[160];
    int there, equal = 1;
    if (!m->cfg.tied || !lm_own(m, LM_UNEMBEDDING, name, sizeof name, &there) || !there)
        return DLRN_OK;
    LM_TRY(lm_need(m, LM_UNEMBEDDING));
    const float *in = m->part[LM_EMBEDDING], *out = m->part[LM_UNEMBEDDING];
    for (int64_t i = 0; i < m->cfg.vocab * m->cfg.dim && equal; i++) equal = in[i] == out[i];
    if (equal) {
        dlrn_free(m->ctx, m->part[LM_UNEMBEDDING]);
        m->part[LM_UNEMBEDDING] = NULL;
        return DLRN_OK;
    }
    m->cfg.tied = 0;
    lm_note(&m->cfg,
            "tie_word_embeddings true is ignored: the file's %s differs from the embedding and is "
            "taken, as transformers 5 does",
            name);
    return DLRN_OK;
}

/* What only logits need. A model saved without its unembedding can still give activations. */
static dlrn_status lm_need_head(lm_model *m) {
    LM_TRY(lm_need(m, LM_LAST_NORM));
    LM_TRY(lm_need(m, LM_LAST_NORM_BIAS));
    if (!m->cfg.tied) return lm_need(m, LM_UNEMBEDDING);
    m->part[LM_UNEMBEDDING] = m->part[LM_EMBEDDING];
    return DLRN_OK;
}

LM_API int lm_find_weights(dlrn_context *ctx, const char *folder, char *path, size_t size) {
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json",
                                        "pytorch_model.bin", "pytorch_model.bin.index.json"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, size, "%s/%s", folder, names[i]);
        if (dlrn_file_exists(ctx, path) == 1) return 1;
    }
    return 0;
}

/* Opens the folder's tensors, whatever their file. */
static dlrn_status lm_open_weights(lm_model *m, const char *folder) {
    char path[4200];
    if (lm_find_weights(m->ctx, folder, path, sizeof path))
        return dlrn_archive_open(m->ctx, path, &m->archive);
    return dlrn_fail(
        m->ctx, DLRN_ERR_IO,
        "%s: expected model.safetensors or pytorch_model.bin (or their .index.json), found none",
        folder);
}

/* The prefix with which this file has a tensor of the table; the last one if with none. */
static void lm_choose_prefix(lm_model *m) {
    const lm_architecture *arch = m->cfg.architecture;
    char name[160];
    for (int k = 0; k < 2; k++) {
        m->prefix = arch->prefixes[k];
        for (int i = 0; i < arch->n_tensors; i++) {
            const lm_tensor *t = &arch->tensors[i];
            if (t->needs & LM_BARE) continue;
            lm_tensor_name(m, t, t->role < LM_LAYER_ROLES ? 0 : -1, name, sizeof name);
            if (dlrn_archive_find(m->archive, name) >= 0) return;
        }
    }
}

/* Room for `need` of something for each position: doubles, up to `max`. */
static int64_t lm_wider(int64_t have, int64_t need, int64_t max) {
    int64_t wide = 2 * have > need ? 2 * have : need;
    return wide < max ? wide : max;
}

/* Cosines and sines of the first `need` <= cfg.positions positions. */
static dlrn_status lm_need_turns(lm_model *m, int64_t need) {
    const lm_config *c = &m->cfg;
    const int64_t half = c->rope.dims / 2, rows = lm_wider(m->turn_rows, need, c->positions);
    if (need <= m->turn_rows) return DLRN_OK;
    float *turn = (float *)dlrn_alloc(m->ctx, rows * half * 2 + 1, sizeof *turn);
    if (!turn) return DLRN_ERR_MEMORY;
    for (int64_t i = 0; i < half; i++) {
        const float rate = (float)c->architecture->rope_rate(c, i);
        for (int64_t p = 0; p < rows; p++) {
            double angle = (double)((float)p * rate); /* HF multiplies in f32 */
            turn[(p * half + i) * 2] = (float)cos(angle);
            turn[(p * half + i) * 2 + 1] = (float)sin(angle);
        }
    }
    dlrn_free(m->ctx, m->turn);
    m->turn = turn;
    m->turn_rows = rows;
    return DLRN_OK;
}

/* The width of vectors of a kernel set. */
static lm_width lm_width_of(const char *kernels) {
    if (!strncmp(kernels, "avx512", 6)) return LM_AVX512;
    return strcmp(kernels, "avx2") ? LM_NARROW : LM_AVX2;
}

/* Reads no layer yet, but checks that all are there: see lm_check_layers. */
LM_API dlrn_status lm_load(dlrn_context *ctx, const char *folder, lm_model **out) {
    lm_config cfg;
    *out = NULL;
    LM_TRY(lm_read_config(ctx, folder, &cfg));
    lm_model *m = (lm_model *)dlrn_alloc(ctx, 1, sizeof *m);
    if (!m) return DLRN_ERR_MEMORY;
    memset(m, 0, sizeof *m);
    m->ctx = ctx;
    m->cfg = cfg;
    m->width = lm_width_of(dlrn_context_describe(ctx).kernels);
    dlrn_status s = lm_open_weights(m, folder);
    if (s == DLRN_OK) lm_choose_prefix(m);
    if (s == DLRN_OK) s = lm_check_layers(m);
    if (s == DLRN_OK) {
        m->layer = (lm_layer *)dlrn_alloc(ctx, cfg.layers, sizeof *m->layer);
        s = m->layer ? DLRN_OK : DLRN_ERR_MEMORY;
    }
    if (s == DLRN_OK) memset(m->layer, 0, (size_t)cfg.layers * sizeof *m->layer);
    if (s == DLRN_OK) s = lm_need(m, LM_EMBEDDING);
    if (s == DLRN_OK) s = lm_settle_tie(m);
    if (s != DLRN_OK) {
        lm_destroy(m);
        return s;
    }
    *out = m;
    return DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>workspace

/* Forgets the workspace without freeing it: after copying a model, it is the other's. */
static void lm_forget_workspace(lm_model *m) {
    m->x = m->a = m->qkv = m->att = m->mlp = m->h = m->scores = m->work = NULL;
    m->sequence = m->position = NULL;
    m->captured = NULL;
    m->capacity = m->score_cap = m->capture_width = m->n_captured = 0;
}

/* Frees the rows that taps kept. */
static void lm_drop_captures(lm_model *m) {
    for (int t = 0; t < m->n_captured; t++) dlrn_free(m->ctx, m->captured[t]);
    dlrn_free(m->ctx, m->captured);
    m->captured = NULL;
    m->n_captured = 0;
}

/* Frees the workspace; the next run makes a new one. */
static void lm_drop_workspace(lm_model *m) {
    void *blocks[] = {m->x, m->a,        m->qkv,      m->att,    m->mlp,
                      m->h, m->sequence, m->position, m->scores, m->work};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) dlrn_free(m->ctx, blocks[i]);
    lm_drop_captures(m);
    lm_forget_workspace(m);
}

LM_API void lm_on_stop(lm_model *m, int (*asked)(void *user), void *user) {
    m->stop = asked;
    m->stop_user = user;
}

/* Also accepts a model that was loaded in part. */
LM_API void lm_destroy(lm_model *m) {
    if (!m) return;
    lm_drop_workspace(m);
    for (int64_t l = 0; m->layer && l < m->cfg.layers; l++) dlrn_free(m->ctx, m->layer[l].block);
    dlrn_free(m->ctx, m->layer);
    if (m->cfg.tied) m->part[LM_UNEMBEDDING] = NULL; /* the embedding's */
    for (int r = 0; r < LM_ROLES; r++) dlrn_free(m->ctx, m->part[r]);
    dlrn_free(m->ctx, m->turn);
    dlrn_archive_close(m->archive);
    dlrn_free(m->ctx, m);
}

/* Allocates rows x cols; NULL also if that overflows. */
static float *lm_floats(lm_model *m, int64_t rows, int64_t cols) {
    return cols && rows > INT64_MAX / cols
               ? NULL
               : (float *)dlrn_alloc(m->ctx, rows * cols, sizeof(float));
}

/* Length of a row with room for n positions: whole vectors, and an odd number of them, because rows
   a power of two apart compete for the same sets of the cache. */
static int64_t lm_row_of(int64_t n) {
    return ((n + 15) / 16 | 1) * 16;
}

/* Workspace for runs of up to `tokens` tokens. Never shrinks. */
static dlrn_status lm_reserve(lm_model *m, int64_t tokens) {
    const int64_t d = m->cfg.dim, heads = lm_size_of(&m->cfg, LM_HEADS_DIM);
    if (tokens <= m->capacity) return DLRN_OK;
    lm_drop_workspace(m);
    m->x = lm_floats(m, tokens, d);
    m->a = lm_floats(m, tokens, d);
    m->qkv = lm_floats(m, tokens, lm_size_of(&m->cfg, LM_QKV_DIM));
    m->att = lm_floats(m, tokens, d);
    m->mlp = lm_floats(m, tokens, d > heads ? d : heads);
    m->h = lm_floats(m, tokens, m->cfg.inner);
    m->sequence = (int64_t *)dlrn_alloc(m->ctx, tokens, sizeof *m->sequence);
    m->position = (int64_t *)dlrn_alloc(m->ctx, tokens, sizeof *m->position);
    m->work = lm_floats(m, dlrn_context_describe(m->ctx).threads, DLRN_MATMUL_WORK);
    if (!m->x || !m->a || !m->qkv || !m->att || !m->mlp || !m->h || !m->sequence || !m->position ||
        !m->work) {
        lm_drop_workspace(m);
        return DLRN_ERR_MEMORY;
    }
    m->capacity = tokens;
    return DLRN_OK;
}

/* Scores of sequences of up to `positions` tokens. */
static dlrn_status lm_reserve_scores(lm_model *m, int64_t positions) {
    m->score_row = lm_row_of(positions);
    if (m->score_row <= m->score_cap) return DLRN_OK;
    int64_t wide = lm_wider(m->score_cap, m->score_row, lm_row_of(m->cfg.positions));
    dlrn_free(m->ctx, m->scores);
    m->score_cap = 0;
    m->scores =
        lm_floats(m, dlrn_context_describe(m->ctx).threads * (LM_QUERIES + m->cfg.head_dim), wide);
    if (!m->scores) return DLRN_ERR_MEMORY;
    m->score_cap = wide;
    return DLRN_OK;
}

/* Room for the x of taps whose y comes later, in rows of `width`. */
static dlrn_status lm_reserve_captures(lm_model *m, int n, int64_t width) {
    if (width > m->capture_width) {
        lm_drop_captures(m);
        m->capture_width = width;
    }
    if (n <= m->n_captured) return DLRN_OK;
    float **wide = (float **)dlrn_alloc(m->ctx, n, sizeof *wide);
    if (!wide) return DLRN_ERR_MEMORY;
    for (int t = 0; t < m->n_captured; t++) wide[t] = m->captured[t];
    dlrn_free(m->ctx, m->captured);
    m->captured = wide;
    while (m->n_captured < n) {
        float *rows = lm_floats(m, m->capacity, m->capture_width);
        if (!rows) return DLRN_ERR_MEMORY;
        m->captured[m->n_captured++] = rows;
    }
    return DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>loops
/* Loops over blocks of 16 numbers, without branches, so that compilers vectorise them. Each is
   written once, as name_body, and compiled for every width of vectors; a model uses the width of
   its context's kernels. All widths do the same operations in the same order and give the same
   bits. */

#if defined(__GNUC__)
#define LM_BODY static inline __attribute__((always_inline))
#define LM_APART __restrict
#else
#define LM_BODY static
#define LM_APART
#endif
#if defined(__GNUC__) && defined(__x86_64__)
#define LM_LOOP(name, params, args)                                                                \
    __attribute__((target("avx2"))) static void name##_avx2 params {                               \
        name##_body args;                                                                          \
    }                                                                                              \
    __attribute__((                                                                                \
        target("avx512f,avx512dq,avx512bw,avx512vl"))) static void name##_avx512 params {          \
        name##_body args;                                                                          \
    }                                                                                              \
    static void name params {                                                                      \
        if (width == LM_AVX512)                                                                    \
            name##_avx512 args;                                                                    \
        else if (width == LM_AVX2)                                                                 \
            name##_avx2 args;                                                                      \
        else                                                                                       \
            name##_body args;                                                                      \
    }
#else
#define LM_LOOP(name, params, args)                                                                \
    static void name params {                                                                      \
        name##_body args;                                                                          \
    }
#endif

/* The sum of x - from over n numbers, or of its squares. Sixteen sums, joined at the end. */
LM_BODY double lm_moment(const float *LM_APART x, int64_t n, double from, int squared) {
    double lane[16] = {0}, sum = 0;
    int64_t c = 0;
    for (; c + 16 <= n; c += 16)
        for (int i = 0; i < 16; i++) {
            double v = (double)x[c + i] - from;
            lane[i] += squared ? v * v : v;
        }
    for (int i = 0; c < n; c++, i++) {
        double v = (double)x[c] - from;
        lane[i] += squared ? v * v : v;
    }
    for (int i = 0; i < 16; i++) sum += lane[i];
    return sum;
}

/* Layer norm of one row: biased variance, as in torch; sums in f64. */
LM_BODY void lm_norm_body(lm_width width, const float *LM_APART x, int64_t n, double eps,
                          const float *LM_APART weight, const float *LM_APART bias,
                          float *LM_APART y) {
    double mean = lm_moment(x, n, 0, 0) / (double)n;
    float rate = (float)(1 / sqrt(lm_moment(x, n, mean, 1) / (double)n + eps)),
          middle = (float)mean;
    int64_t c = 0;
    for (; c + 16 <= n; c += 16)
        for (int i = 0; i < 16; i++)
            y[c + i] = (x[c + i] - middle) * rate * weight[c + i] + bias[c + i];
    for (; c < n; c++) y[c] = (x[c] - middle) * rate * weight[c] + bias[c];
    (void)width;
}
LM_LOOP(lm_norm,
        (lm_width width, const float *x, int64_t n, double eps, const float *weight,
         const float *bias, float *y),
        (width, x, n, eps, weight, bias, y))

/* x [16] <= 0 to e^x, with a relative error of 2e-7: 2^n e^r, |r| <= ln 2 / 2, with a polynomial
   for e^r. Four times the speed of sixteen calls of expf (AVX-512). */
LM_BODY void lm_exp16(float *x) {
    const float round =
        12582912.0f; /* 1.5 * 2^23: what is added to it is rounded to a whole number */
    float shifted[16], r[16];
    uint32_t bits[16];
    for (int i = 0; i < 16; i++) {
        float v = x[i] < -87.0f ? -87.0f : x[i];
        shifted[i] = v * 1.44269504f + round;
        float n = shifted[i] - round;
        r[i] = (v - n * 0.693359375f) + n * 2.12194440e-4f;
    }
    memcpy(bits, shifted, sizeof bits);
    for (int i = 0; i < 16; i++) bits[i] = (bits[i] - 0x4B400000u + 127u) << 23;
    memcpy(shifted, bits, sizeof bits);
    for (int i = 0; i < 16; i++) {
        float u = r[i] * 1.44269504f;
        float p = ((1.53458119e-4f * u + 1.33999316e-3f) * u + 9.61848896e-3f) * u + 5.55032878e-2f;
        p = (((p * u + 2.40226469e-1f) * u + 6.93147206e-1f) * u + 1.0f) * shifted[i];
        x[i] = x[i] < -87.0f ? 0.0f : p;
    }
}

/* x [n] to e^(scale x - top) and their sum. *top: in, a lower bound of the largest scale x or
   -INFINITY; out, the larger of the two. x has room up to a multiple of 16, which becomes 0. */
LM_BODY void lm_softmax_body(lm_width width, float *LM_APART x, int64_t n, float scale,
                             float *LM_APART top, double *LM_APART sum) {
    float most[16];
    double lane[16] = {0};
    int64_t end = (n + 15) / 16 * 16;
    for (int64_t t = n; t < end; t++) x[t] = -INFINITY;
    for (int i = 0; i < 16; i++) most[i] = *top;
    for (int64_t t = 0; t < end; t += 16)
        for (int i = 0; i < 16; i++) {
            x[t + i] *= scale;
            most[i] = x[t + i] > most[i] ? x[t + i] : most[i];
        }
    for (int i = 1; i < 16; i++) most[0] = most[i] > most[0] ? most[i] : most[0];
    for (int64_t t = 0; t < end; t += 16) {
        for (int i = 0; i < 16; i++) x[t + i] -= most[0];
        lm_exp16(x + t);
        for (int i = 0; i < 16; i++) lane[i] += (double)x[t + i];
    }
    *sum = 0;
    *top = most[0];
    for (int i = 0; i < 16; i++) *sum += lane[i];
    (void)width;
}
LM_LOOP(lm_softmax, (lm_width width, float *x, int64_t n, float scale, float *top, double *sum),
        (width, x, n, scale, top, sum))

/* x [16] to gelu(x) = x Phi(x), with a rational approximation of erf to 4e-7. (With erff, sampling
   from a model of width 128 spent 13 % of its time there.) */
LM_BODY void lm_gelu16(float *x) {
    for (int i = 0; i < 16; i++) {
        float z = x[i] * 0.70710678f;
        z = z < -4.0f ? -4.0f : z;
        z = z > 4.0f ? 4.0f : z;
        float t = z * z;
        float p =
            ((-1.36668043e-8f * t + 4.78054407e-6f) * t + 3.82692349e-4f) * t + 3.83952747e-3f;
        p = ((p * t + 5.43325936e-2f) * t + 1.84710302e-1f) * t + 1.12837918f;
        float q = ((6.40093117e-5f * t + 1.30957884e-3f) * t + 1.54535132e-2f) * t + 1.13826292e-1f;
        q = (q * t + 4.97028789e-1f) * t + 1.0f;
        float erf_z = z * p / q;
        erf_z = erf_z < -1.0f ? -1.0f : erf_z;
        erf_z = erf_z > 1.0f ? 1.0f : erf_z;
        x[i] = 0.5f * x[i] * (1.0f + erf_z);
    }
}

/* x [n] to gelu(x + bias), bias NULL: none. With AVX-512 six times the speed of vectors of four. */
LM_BODY void lm_gelu_body(lm_width width, float *LM_APART x, const float *LM_APART bias,
                          int64_t n) {
    float part[16] = {0};
    int64_t c = 0;
    for (; c + 16 <= n; c += 16) {
        for (int i = 0; bias && i < 16; i++) x[c + i] += bias[c + i];
        lm_gelu16(x + c);
    }
    if (c == n) return;
    for (int64_t i = c; i < n; i++) part[i - c] = bias ? x[i] + bias[i] : x[i];
    lm_gelu16(part);
    memcpy(x + c, part, (size_t)(n - c) * sizeof *x);
    (void)width;
}
LM_LOOP(lm_gelu, (lm_width width, float *x, const float *bias, int64_t n), (width, x, bias, n))

/* y [n] = sum over t < count of a[t] rows [t][stride]; n is a multiple of 16. */
LM_BODY void lm_mix(const float *LM_APART a, int64_t count, const float *LM_APART rows,
                    int64_t stride, int64_t n, float *LM_APART y) {
    for (int64_t c = 0; c < n; c += 16) {
        float sum[16] = {0};
        for (int64_t t = 0; t < count; t++)
            for (int i = 0; i < 16; i++) sum[i] += a[t] * rows[t * stride + c + i];
        memcpy(y + c, sum, sizeof sum);
    }
}

/* Attention of one query of one head over `seen` keys and values. score: scratch [seen, rounded up
   to a multiple of 16]. A matrix product of one row would repack all keys and values each time:
   sampling took twice as long with it. */
LM_BODY void lm_attend_one_body(lm_width width, int64_t head_dim, const float *LM_APART q,
                                const float *LM_APART k, int64_t k_stride, const float *LM_APART v,
                                int64_t v_stride, int64_t seen, float *LM_APART score,
                                float *LM_APART out) {
    double sum;
    float top = -INFINITY, share;
    int64_t whole = head_dim / 16 * 16;
    lm_mix(q, head_dim, k, k_stride, (seen + 15) / 16 * 16, score);
    lm_softmax_body(width, score, seen, (float)(1 / sqrt((double)head_dim)), &top, &sum);
    share = (float)(1 / sum);
    lm_mix(score, seen, v, v_stride, whole, out);
    for (int64_t c = whole; c < head_dim; c++) {
        out[c] = 0;
        for (int64_t t = 0; t < seen; t++) out[c] += score[t] * v[t * v_stride + c];
    }
    for (int64_t c = 0; c < head_dim; c++) out[c] *= share;
}
LM_LOOP(lm_attend_one,
        (lm_width width, int64_t head_dim, const float *q, const float *k, int64_t k_stride,
         const float *v, int64_t v_stride, int64_t seen, float *score, float *out),
        (width, head_dim, q, k, k_stride, v, v_stride, seen, score, out))

/* ------------------------------------------------------------------------------------------ */
// >>operations
/* What blocks are made of. Each works on all tokens of the run; weights are taken by role. */

/* Rows of a parallel loop, and what it works on. */
typedef struct lm_rows {
    lm_pass *pass;
    int64_t rows, width, layer;
    const float *in, *weight, *bias;
    float *out;
} lm_rows;

/* Sites in the order in which a run passes them. */
static int64_t lm_order(lm_site s) {
    return s.kind == LM_EMBED ? 0 : (int64_t)s.layer * LM_RESID_OUT + (int64_t)s.kind;
}

/* Whether nothing after this site is needed. */
static int lm_done(const lm_pass *p, lm_kind kind, int64_t layer) {
    lm_site s = {kind, (int)layer};
    return lm_order(s) >= p->last;
}

/* Whether a tap reads or ends at this very site. */
static int lm_is_tapped(const lm_pass *p, lm_kind kind, int64_t layer) {
    lm_site s = {kind, (int)layer};
    for (int t = 0; t < p->n_taps; t++)
        if (lm_order(p->taps[t].x) == lm_order(s) || lm_order(p->taps[t].y) == lm_order(s))
            return 1;
    return 0;
}

/* A site is reached, its value v [tokens][width]: taps that read here keep a copy, taps that end
   here are visited and may change v. */
static dlrn_status lm_reach(lm_pass *p, lm_kind kind, int64_t layer, float *v) {
    lm_model *m = p->m;
    lm_site here = {kind, (int)layer};
    const int64_t order = lm_order(here), numel = m->tokens * lm_site_width(m, here);
    for (int t = 0; t < p->n_taps; t++) {
        int64_t x = lm_order(p->taps[t].x), y = lm_order(p->taps[t].y);
        if (x == order && y != order) memcpy(m->captured[t], v, (size_t)numel * sizeof *v);
        if (y == order) LM_TRY(p->visit(p->user, t, x == y ? v : m->captured[t], v, m->tokens));
    }
    return DLRN_OK;
}

/* A tensor by role; `layer` counts only for a layer's. NULL: the model has none. */
static float *lm_weight(const lm_model *m, int64_t layer, lm_role role) {
    return role < LM_LAYER_ROLES ? m->layer[layer].part[role] : m->part[role];
}

/* Runs body over the job's rows, LM_ROWS in a task. */
static void lm_each_row(lm_model *m, lm_rows *job, dlrn_parallel_body body) {
    dlrn_parallel_for(m->ctx, (job->rows + LM_ROWS - 1) / LM_ROWS, body, job);
}

/* The end of a task's rows. */
static int64_t lm_task_end(const lm_rows *job, int64_t task) {
    int64_t end = (task + 1) * LM_ROWS;
    return end < job->rows ? end : job->rows;
}

/* ---- embedding, norms, sums */

/* A task of lm_embed. */
static void lm_embed_rows(void *arg, int64_t task, int worker) {
    lm_rows *j = (lm_rows *)arg;
    const lm_batch *b = j->pass->batch;
    (void)worker;
    for (int64_t i = task * LM_ROWS; i < lm_task_end(j, task); i++)
        memcpy(j->out + i * j->width, j->in + (int64_t)b->id[b->start[0] + i] * j->width,
               (size_t)j->width * sizeof(float));
}

/* The tokens' embeddings to x. */
static void lm_embed(lm_pass *p) {
    lm_model *m = p->m;
    lm_rows job = {p, m->tokens, m->cfg.dim, 0, m->part[LM_EMBEDDING], NULL, NULL, m->x};
    lm_each_row(m, &job, lm_embed_rows);
}

/* A task of lm_layer_norm. */
static void lm_norm_rows(void *arg, int64_t task, int worker) {
    lm_rows *j = (lm_rows *)arg;
    const lm_model *m = j->pass->m;
    (void)worker;
    for (int64_t i = task * LM_ROWS; i < lm_task_end(j, task); i++)
        lm_norm(m->width, j->in + i * j->width, j->width, m->cfg.eps, j->weight, j->bias,
                j->out + i * j->width);
}

/* x normed to a. The bias has the role behind `role`. */
static void lm_layer_norm(lm_pass *p, int64_t layer, lm_role role) {
    lm_model *m = p->m;
    lm_rows job = {p,
                   m->tokens,
                   m->cfg.dim,
                   layer,
                   m->x,
                   lm_weight(m, layer, role),
                   lm_weight(m, layer, (lm_role)(role + 1)),
                   m->a};
    lm_each_row(m, &job, lm_norm_rows);
}

/* A task of lm_add. */
static void lm_add_rows(void *arg, int64_t task, int worker) {
    lm_rows *j = (lm_rows *)arg;
    int64_t i = task * LM_ROWS * j->width, end = lm_task_end(j, task) * j->width;
    (void)worker;
    if (!j->weight)
        for (; i < end; i++) j->out[i] += j->in[i];
    for (; i < end; i++) j->out[i] += j->in[i] + j->weight[i];
}

/* x += y + z, in this order of sums; z NULL: x += y. */
static void lm_add(lm_pass *p, const float *y, const float *z) {
    lm_rows job = {p, p->m->tokens, p->m->cfg.dim, 0, y, z, NULL, p->m->x};
    lm_each_row(p->m, &job, lm_add_rows);
}

/* ---- products */

/* Activations other than gelu, one number at a time by the C library. Write them as loops like
   lm_gelu once a model spends time here. */
static float lm_activate(lm_activation kind, float x) {
    switch (kind) {
    case LM_GELU_SIGMOID: return x / (1 + expf(-1.702f * x));
    case LM_GELU_TANH: return 0.5f * x * (1 + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    case LM_SILU: return x / (1 + expf(-x));
    case LM_RELU: return x > 0 ? x : 0 * x;       /* NaN stays */
    case LM_GELU_CLIPPED: return x > 10 ? 10 : x; /* lm_gelu; it is never below -0.17 */
    case LM_GELU: break;                          /* lm_gelu */
    }
    return x;
}

/* y [rows][out] = x [rows][in] W^T; bias and activation follow on each tile while it is in the
   cache. */
typedef struct lm_product {
    lm_model *m;
    const float *x, *w, *b; /* b NULL: none */
    int64_t rows, in, out;
    int activated;
    float *y;
} lm_product;

/* y += b; b NULL: nothing. */
static void lm_add_bias(float *y, const float *b, int64_t n) {
    for (int64_t c = 0; b && c < n; c++) y[c] += b[c];
}

/* Bias and activation of a part of a row. */
static void lm_finish_row(const lm_product *j, float *y, const float *b, int64_t n) {
    const lm_activation kind = j->m->cfg.activation;
    if (j->activated && (kind == LM_GELU || kind == LM_GELU_CLIPPED))
        lm_gelu(j->m->width, y, b, n);
    else
        lm_add_bias(y, b, n);
    if (kind == LM_GELU) return;
    for (int64_t c = 0; j->activated && c < n; c++) y[c] = lm_activate(kind, y[c]);
}

/* A task is a tile. Tiles of the same rows follow one another. */
static void lm_product_task(void *arg, int64_t task, int worker) {
    const lm_product *j = (const lm_product *)arg;
    const int64_t across = (j->out + LM_TILE - 1) / LM_TILE, col = task % across * LM_TILE;
    const int64_t first = task / across * LM_TILE_ROWS;
    const int64_t n = j->out - col < LM_TILE ? j->out - col : LM_TILE;
    int64_t rows = j->rows - first < LM_TILE_ROWS ? j->rows - first : LM_TILE_ROWS;
    float *y = j->y + first * j->out + col;
    dlrn_status s =
        dlrn_matmul(j->m->ctx, DLRN_NT, dlrn_view(j->x + first * j->in, rows, j->in, j->in),
                    dlrn_view(j->w + col * j->in, n, j->in, j->in), 0,
                    dlrn_view(y, rows, n, j->out), j->m->work + worker * DLRN_MATMUL_WORK);
    for (int64_t i = 0; i < rows && (j->b || j->activated); i++)
        lm_finish_row(j, y + i * j->out, j->b ? j->b + col : NULL, n);
    (void)s; /* cannot fail: the arguments are in range */
}

/* Runs a product, a tile in a task. */
static void lm_multiply(lm_product *job) {
    int64_t across = (job->out + LM_TILE - 1) / LM_TILE;
    dlrn_parallel_for(job->m->ctx, (job->rows + LM_TILE_ROWS - 1) / LM_TILE_ROWS * across,
                      lm_product_task, job);
}

/* y = x W^T + b for all tokens; b NULL: none. */
static void lm_linear(lm_model *m, const float *x, int64_t in, const float *w, const float *b,
                      int64_t out, float *y) {
    lm_product job = {m, x, w, b, m->tokens, in, out, 0, y};
    lm_multiply(&job);
}

/* a to h: activation(up(a)). */
static void lm_mlp_up(lm_pass *p, int64_t l) {
    lm_model *m = p->m;
    lm_product up = {m,         m->a,       lm_weight(m, l, LM_UP), lm_weight(m, l, LM_UP_BIAS),
                     m->tokens, m->cfg.dim, m->cfg.inner,           1,
                     m->h};
    lm_multiply(&up);
}

/* h to mlp: down(h). */
static void lm_mlp_down(lm_pass *p, int64_t l) {
    lm_model *m = p->m;
    lm_linear(m, m->h, m->cfg.inner, lm_weight(m, l, LM_DOWN), lm_weight(m, l, LM_DOWN_BIAS),
              m->cfg.dim, m->mlp);
}

/* ---- attention */

/* Turns the first 2 half dimensions of v; a pair's two halves stand `half` apart (HF's
   rotate_half). */
static void lm_turn(float *v, const float *turn, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        float c = turn[2 * i], s = turn[2 * i + 1], a = v[i], b = v[i + half];
        v[i] = a * c - b * s;
        v[i + half] = b * c + a * s;
    }
}

/* What a task of the attention works on: a key and value head of one sequence, and one by one the
   query heads that share it. */
typedef struct lm_head {
    int64_t first, end, dim; /* tokens of the run, dimensions of the head   */
    int64_t row;             /* numbers in a row of qkv                     */
    float *q;                /* query of the first token; rows `row` apart  */
    float *k, *v;            /* k [dim][k_stride], v [..][v_stride]         */
    int64_t k_stride, v_stride;
    float *score; /* [LM_QUERIES][score_row]                     */
    float *out;   /* of the first token; rows out_stride apart   */
    int64_t out_stride;
    float *work; /* scratch of dlrn_matmul                  */
} lm_head;

/* Bias added and positions turned, for one head's numbers of each token; at: those of the first. */
static void lm_turn_head(const lm_model *m, const lm_head *h, float *at, const float *bias) {
    const int64_t half = m->cfg.rope.dims / 2;
    for (int64_t i = h->first; i < h->end; i++, at += h->row) {
        lm_add_bias(at, bias, h->dim);
        lm_turn(at, m->turn + m->position[i] * half * 2, half);
    }
}

/* Keys and, with a cache, values of a head into place: k, v: those of the first token. */
static void lm_lay_keys(const lm_model *m, const lm_head *h, const float *k, float *v,
                        const float *v_bias, int in_cache) {
    for (int64_t i = h->first; i < h->end; i++, k += h->row, v += h->row) {
        const int64_t at = m->position[i];
        lm_add_bias(v, v_bias, h->dim);
        for (int64_t c = 0; c < h->dim; c++) h->k[c * h->k_stride + at] = k[c];
        if (in_cache) memcpy(h->v + at * h->v_stride, v, (size_t)h->dim * sizeof *v);
    }
}

/* Queries [first, first + n) over the keys and values of their sequence. All of them see all keys
   up to the last one's; the weight of what lies ahead of a query is 0. */
static void lm_attend(lm_model *m, const lm_head *h, int64_t first, int64_t n) {
    const int64_t keys = m->position[first + n - 1] + 1, row = m->score_row;
    const float scale = (float)(1 / sqrt((double)h->dim));
    const float *q = h->q + (first - h->first) * h->row;
    float *out = h->out + (first - h->first) * h->out_stride, share[LM_QUERIES];
    const dlrn_tensor query = dlrn_view(q, n, h->dim, h->row);
    const dlrn_tensor key = dlrn_view(h->k, h->dim, keys, h->k_stride);
    const dlrn_tensor value = dlrn_view(h->v, keys, h->dim, h->v_stride);
    const dlrn_tensor score = dlrn_view(h->score, n, keys, row);
    dlrn_status s = dlrn_matmul(m->ctx, DLRN_NN, query, key, 0, score, h->work);
    for (int64_t i = 0; i < n; i++) {
        float *mine = h->score + i * row, top = -INFINITY;
        double sum;
        int64_t seen = m->position[first + i] + 1;
        lm_softmax(m->width, mine, seen, scale, &top, &sum);
        share[i] = (float)(1 / sum);
        for (int64_t t = seen; t < keys; t++) mine[t] = 0;
    }
    if (s == DLRN_OK)
        s = dlrn_matmul(m->ctx, DLRN_NN, score, value, 0, dlrn_view(out, n, h->dim, h->out_stride),
                        h->work);
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < h->dim; c++) out[i * h->out_stride + c] *= share[i];
    (void)s; /* cannot fail: the arguments are in range */
}

/* All queries of one head: LM_QUERIES at a time, or one alone without a product. */
static void lm_attend_head(lm_model *m, const lm_head *h) {
    if (h->end - h->first == 1) {
        lm_attend_one(m->width, h->dim, h->q, h->k, h->k_stride, h->v, h->v_stride,
                      m->position[h->first] + 1, h->score, h->out);
        return;
    }
    for (int64_t i = h->first; i < h->end; i += LM_QUERIES)
        lm_attend(m, h, i, h->end - i < LM_QUERIES ? h->end - i : LM_QUERIES);
}

/* Where a head's numbers begin in a row of qkv. */
static int64_t lm_head_at(lm_heads where, int64_t head) {
    return where.first + head * where.step;
}

/* The same in the bias of qkv. */
static const float *lm_bias_at(const float *bias, lm_heads where, int64_t head) {
    return bias ? bias + lm_head_at(where, head) : NULL;
}

/* What a task works on, but for the query heads. Keys go to the cache, or for this task alone
   behind the scores. */
static lm_head lm_head_of(const lm_rows *j, int64_t s, int64_t kv, int worker) {
    lm_model *m = j->pass->m;
    const lm_config *c = &m->cfg;
    const lm_cache *cache = j->pass->cache;
    const int64_t *start = j->pass->batch->start;
    lm_head h;
    memset(&h, 0, sizeof h);
    h.first = start[s] - start[0];
    h.end = start[s + 1] - start[0];
    h.dim = c->head_dim;
    h.row = h.v_stride = lm_size_of(c, LM_QKV_DIM);
    h.score = m->scores + worker * (LM_QUERIES + c->head_dim) * m->score_row;
    h.work = m->work + worker * DLRN_MATMUL_WORK;
    h.k = h.score + LM_QUERIES * m->score_row;
    h.k_stride = m->score_row;
    h.v = m->qkv + h.first * h.row + lm_head_at(c->v, kv);
    h.out_stride = lm_size_of(c, LM_HEADS_DIM);
    if (!cache) return h;
    int64_t at = ((j->layer * cache->sequences + s) * c->kv_heads + kv) * c->head_dim;
    h.k = cache->k + at * cache->capacity, h.k_stride = cache->capacity;
    h.v = cache->v + at * cache->capacity, h.v_stride = c->head_dim;
    return h;
}

/* A task: one key and value head of one sequence, with all its query heads. */
static void lm_attend_task(void *arg, int64_t task, int worker) {
    lm_rows *j = (lm_rows *)arg;
    lm_model *m = j->pass->m;
    const lm_config *c = &m->cfg;
    const int64_t kv = task % c->kv_heads, shared = c->heads / c->kv_heads;
    lm_head h = lm_head_of(j, task / c->kv_heads, kv, worker);
    float *first = m->qkv + h.first * h.row, *k = first + lm_head_at(c->k, kv);
    lm_turn_head(m, &h, k, lm_bias_at(j->bias, c->k, kv));
    lm_lay_keys(m, &h, k, first + lm_head_at(c->v, kv), lm_bias_at(j->bias, c->v, kv),
                j->pass->cache != NULL);
    for (int64_t head = kv * shared; head < (kv + 1) * shared; head++) {
        h.q = first + lm_head_at(c->q, head);
        h.out = j->out + h.first * h.out_stride + head * c->head_dim;
        lm_turn_head(m, &h, h.q, lm_bias_at(j->bias, c->q, head));
        lm_attend_head(m, &h);
    }
}

/* a to the heads' results, in mlp, which is not in use yet. */
static void lm_attention_heads(lm_pass *p, int64_t l) {
    lm_model *m = p->m;
    const int64_t d = m->cfg.dim;
    lm_rows job = {p, m->tokens, d, l, NULL, NULL, lm_weight(m, l, LM_QKV_BIAS), m->mlp};
    lm_linear(m, m->a, d, lm_weight(m, l, LM_QKV), NULL, lm_size_of(&m->cfg, LM_QKV_DIM),
              m->qkv); /* its bias: lm_attend_task */
    dlrn_parallel_for(m->ctx, p->batch->sequences * m->cfg.kv_heads, lm_attend_task, &job);
}

/* The heads' results, in mlp, to att. */
static void lm_attention_out(lm_pass *p, int64_t l) {
    lm_model *m = p->m;
    lm_linear(m, m->mlp, lm_size_of(&m->cfg, LM_HEADS_DIM), lm_weight(m, l, LM_ATTN),
              lm_weight(m, l, LM_ATTN_BIAS), m->cfg.dim, m->att);
}

/* ---- the architectures */

#include "lm_gptneox.h"

static const lm_architecture *lm_find_architecture(const char *model_type) {
#define LM_ROW(id, type, before) {type, &lm_##id},
    static const struct {
        const char *model_type;
        const lm_architecture *architecture;
    } known[] = {LM_ARCHITECTURE_LIST(LM_ROW)};
#undef LM_ROW
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(model_type, known[i].model_type)) return known[i].architecture;
    return NULL;
}

/* ------------------------------------------------------------------------------------------ */
// >>run

/* Sequence and position of the batch's tokens; ids and lengths are checked here, once. */
static dlrn_status lm_lay_out(lm_pass *p) {
    lm_model *m = p->m;
    const lm_batch *b = p->batch;
    int64_t past = p->cache ? p->cache->past : 0, longest = 0;
    m->tokens = b->start[b->sequences] - b->start[0];
    LM_TRY(lm_reserve(m, m->tokens));
    for (int64_t s = 0, i = 0; s < b->sequences; s++) {
        int64_t n = b->start[s + 1] - b->start[s];
        if (n < 0 || past + n > m->cfg.positions)
            return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT,
                             "sequence %lld: expected at most %lld tokens, found %lld",
                             (long long)s, (long long)m->cfg.positions, (long long)(past + n));
        longest = n > longest ? n : longest;
        for (int64_t k = 0; k < n; k++, i++) {
            int32_t id = b->id[b->start[s] + k];
            if (id < 0 || id >= m->cfg.vocab)
                return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT,
                                 "sequence %lld, token %lld: expected an id below %lld, "
                                 "found %d",
                                 (long long)s, (long long)k, (long long)m->cfg.vocab, (int)id);
            m->sequence[i] = s;
            m->position[i] = past + k;
        }
    }
    LM_TRY(lm_reserve_scores(m, past + longest));
    return lm_need_turns(m, past + longest);
}

/* How far the run must go, and room for what taps keep on the way. */
static dlrn_status lm_plan(lm_pass *p, int whole) {
    int64_t width = 0;
    p->last = -1;
    for (int t = 0; t < p->n_taps; t++) {
        const int64_t y = lm_order(p->taps[t].y), x_width = lm_site_width(p->m, p->taps[t].x);
        p->last = y > p->last ? y : p->last;
        if (lm_order(p->taps[t].x) != y && x_width > width) width = x_width;
    }
    if (whole) p->last = INT64_MAX;
    return width ? lm_reserve_captures(p->m, p->n_taps, width) : DLRN_OK;
}

/* Embedding, blocks up to the last site that is needed, and for a whole run the last norm. */
static dlrn_status lm_pass_through(lm_pass *p, int whole) {
    lm_model *m = p->m;
    LM_TRY(lm_lay_out(p));
    LM_TRY(lm_plan(p, whole));
    lm_embed(p);
    LM_TRY(lm_reach(p, LM_EMBED, 0, m->x));
    for (int64_t l = 0; l < m->cfg.layers && !lm_done(p, LM_RESID_OUT, l - 1); l++) {
        if (m->stop && m->stop(m->stop_user))
            return dlrn_fail(m->ctx, DLRN_STOPPED, "stopped within a run");
        LM_TRY(lm_need_layer(m, l));
        LM_TRY(m->cfg.architecture->block(p, l));
    }
    if (!whole) return DLRN_OK;
    LM_TRY(lm_need_head(m));
    lm_layer_norm(p, -1, LM_LAST_NORM);
    return DLRN_OK;
}

LM_API dlrn_status lm_run(lm_model *m, const lm_batch *batch, const lm_tap *taps, int n_taps,
                          lm_visit visit, void *user, int whole) {
    lm_pass p = {m, batch, NULL, taps, n_taps, visit, user, 0};
    return lm_pass_through(&p, whole);
}

/* The place of a name in a list; -1: none. */
static int lm_place_of(const char *name, const char *const *names, int n) {
    for (int k = 0; k < n; k++)
        if (!strcmp(name, names[k])) return k;
    return -1;
}

#define LM_NAME(id, name, before) name,
LM_API int lm_kind_named(const char *name) {
    static const char *const names[] = {LM_KIND_LIST(LM_NAME)};
    return lm_place_of(name, names, LM_KIND_COUNT);
}

LM_API int lm_io_named(const char *name) {
    static const char *const names[] = {LM_IO_LIST(LM_NAME)};
    return lm_place_of(name, names, LM_IO_COUNT);
}
#undef LM_NAME

LM_API dlrn_status lm_site_named(const lm_model *m, const char *name, int64_t layer, lm_site *out) {
    const int kind = lm_kind_named(name);
    if (kind < 0)
        return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT, "site: expected " LM_KINDS ", found %s", name);
    if (kind != LM_EMBED && (layer < 0 || layer >= m->cfg.layers))
        return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT,
                         "site %s: expected a layer from 0 to %lld, found %lld", name,
                         (long long)m->cfg.layers - 1, (long long)layer);
    out->kind = (lm_kind)kind;
    out->layer = kind == LM_EMBED ? 0 : (int)layer;
    return DLRN_OK;
}

/* The input of a site's module: of an attention attn_in, of an MLP mlp_in, of a block the residual
   stream before it. attn_z and mlp_hidden are results within these modules: what leads to them
   begins at the module's input, too. */
LM_API dlrn_status lm_tap_at(const lm_model *m, lm_site site, lm_io io, lm_tap *out) {
    lm_site in = site;
    if (io == LM_IO_OUT) {
        out->x = out->y = site;
        return DLRN_OK;
    }
    if (site.kind == LM_EMBED)
        return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT,
                         "site embed: its input is token ids: only --io out is possible");
    if (site.kind == LM_MLP_IN) site.kind = LM_MLP_OUT; /* both name the MLP */
    if (site.kind == LM_ATTN_IN) site.kind = LM_ATTN_OUT;
    if (site.kind == LM_MLP_OUT || site.kind == LM_MLP_HIDDEN) in.kind = LM_MLP_IN;
    if (site.kind == LM_ATTN_OUT || site.kind == LM_ATTN_Z) in.kind = LM_ATTN_IN;
    if (site.kind == LM_RESID_OUT && site.layer > 0) in.layer = site.layer - 1;
    if (site.kind == LM_RESID_OUT && site.layer == 0) in.kind = LM_EMBED;
    out->x = in;
    out->y = io == LM_IO_IN ? in : site;
    return DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>head

/* The normed residual stream of a whole run is still in m->a. */
LM_API dlrn_status lm_logits(lm_model *m, int64_t first, int64_t rows, float *logits) {
    const int64_t d = m->cfg.dim, v = m->cfg.vocab;
    if (first < 0 || rows < 0 || first > m->tokens - rows)
        return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT,
                         "lm_logits: expected rows within the last run's %lld, found %lld "
                         "from %lld",
                         (long long)m->tokens, (long long)rows, (long long)first);
    lm_product job = {m, m->a + first * d, m->part[LM_UNEMBEDDING], NULL, rows, d, v, 0, logits};
    lm_multiply(&job);
    return DLRN_OK;
}

/* log-sum-exp over the vocabulary. A task: LM_TILE_ROWS tokens and LM_PART entries, a tile of
   logits at a time. */
typedef struct lm_lse {
    lm_model *m;
    const lm_batch *batch;
    int64_t blocks, parts; /* of the tokens, of the vocabulary                 */
    float *tile;           /* [threads][LM_TILE_ROWS][LM_TILE]             */
    float *top;            /* [tokens][parts] largest logit                    */
    double *sum;           /* [tokens][parts] of exp(logit - top)              */
    float *target;         /* [tokens] logit of the token that follows        */
} lm_lse;

/* Adds a tile of a token's logits to its sum, and keeps the target's logit if it is among them. */
static void lm_lse_row(const lm_lse *j, int64_t token, int64_t part, int64_t from, int64_t width,
                       float *logit) {
    const lm_batch *b = j->batch;
    float *top = j->top + token * j->parts + part, before = *top;
    double *sum = j->sum + token * j->parts + part, more;
    int64_t next = token + 1 < j->m->tokens ? b->id[b->start[0] + token + 1] : -1;
    if (next >= from && next < from + width) j->target[token] = logit[next - from];
    lm_softmax(j->m->width, logit, width, 1, top, &more);
    *sum = (before < *top ? *sum * exp((double)before - (double)*top) : *sum) + more;
}

/* A block of tokens against a part of the vocabulary; logits never exist as a whole. */
static void lm_lse_task(void *arg, int64_t task, int worker) {
    const lm_lse *j = (const lm_lse *)arg;
    lm_model *m = j->m;
    const int64_t d = m->cfg.dim, first = task % j->blocks * LM_TILE_ROWS, part = task / j->blocks;
    int64_t rows = m->tokens - first < LM_TILE_ROWS ? m->tokens - first : LM_TILE_ROWS;
    int64_t from = part * LM_PART,
            end = from + LM_PART < m->cfg.vocab ? from + LM_PART : m->cfg.vocab;
    float *tile = j->tile + worker * LM_TILE_ROWS * LM_TILE;
    for (int64_t i = first; i < first + rows; i++)
        j->top[i * j->parts + part] = -INFINITY, j->sum[i * j->parts + part] = 0;
    for (; from < end; from += LM_TILE) {
        int64_t width = end - from < LM_TILE ? end - from : LM_TILE;
        dlrn_status s =
            dlrn_matmul(m->ctx, DLRN_NT, dlrn_view(m->a + first * d, rows, d, d),
                        dlrn_view(m->part[LM_UNEMBEDDING] + from * d, width, d, d), 0,
                        dlrn_view(tile, rows, width, LM_TILE), m->work + worker * DLRN_MATMUL_WORK);
        (void)s; /* cannot fail: the arguments are in range */
        for (int64_t i = 0; i < rows; i++)
            lm_lse_row(j, first + i, part, from, width, tile + i * LM_TILE);
    }
}

/* -log p of the token that follows this one. */
static double lm_nats(const lm_lse *j, int64_t token) {
    const float *top = j->top + token * j->parts;
    double sum = 0;
    float most = top[0];
    for (int64_t part = 1; part < j->parts; part++) most = top[part] > most ? top[part] : most;
    for (int64_t part = 0; part < j->parts; part++)
        sum += j->sum[token * j->parts + part] * exp((double)top[part] - (double)most);
    return (double)most + log(sum) - (double)j->target[token];
}

/* Joins the parts of the vocabulary and sums over the tokens that have a next one. */
LM_API dlrn_status lm_cross_entropy(lm_model *m, const lm_batch *batch, double *nats,
                                    int64_t *tokens) {
    lm_lse j = {m,
                batch,
                (m->tokens + LM_TILE_ROWS - 1) / LM_TILE_ROWS,
                (m->cfg.vocab + LM_PART - 1) / LM_PART,
                NULL,
                NULL,
                NULL,
                NULL};
    j.tile = lm_floats(m, (int64_t)dlrn_context_describe(m->ctx).threads * LM_TILE_ROWS, LM_TILE);
    j.top = lm_floats(m, m->tokens, j.parts);
    j.sum = (double *)dlrn_alloc(m->ctx, m->tokens * j.parts, sizeof *j.sum);
    j.target = lm_floats(m, m->tokens, 1);
    dlrn_status s = j.tile && j.top && j.sum && j.target ? DLRN_OK : DLRN_ERR_MEMORY;
    *nats = 0;
    *tokens = 0;
    if (s == DLRN_OK) dlrn_parallel_for(m->ctx, j.blocks * j.parts, lm_lse_task, &j);
    for (int64_t i = 0; i < m->tokens && s == DLRN_OK; i++) {
        if (batch->start[0] + i + 1 == batch->start[m->sequence[i] + 1])
            continue; /* the last token has no next one */
        *nats += lm_nats(&j, i);
        *tokens += 1;
    }
    void *blocks[] = {j.tile, j.top, j.sum, j.target};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) dlrn_free(m->ctx, blocks[i]);
    return s;
}

/* ------------------------------------------------------------------------------------------ */
// >>sampling

/* Each worker samples a group of documents on its own: with a context of one thread, its own
   workspace, and the model's weights. A document has many small steps, so threads that share each
   step would mostly wait for each other (two threads, idle machine:
   9,300 tokens a second together, 12,000 apart; on a busy machine ten times less together). */
typedef struct lm_draw {
    lm_model m; /* the model, but for context and workspace */
    const lm_sampling *cfg;
    lm_cache cache;
    int64_t first, rows; /* documents [first, first + rows) of this group              */
    float *logits;       /* [rows][stride], the vocabulary up to a multiple of 16      */
    int64_t stride;
    int64_t *kept;    /* [rows][top_k] the largest logits' tokens                      */
    int32_t *id;      /* [rows][tokens] drawn so far                                   */
    int64_t *length;  /* [rows] n, or -1 - n: ended after n                            */
    int32_t *next;    /* [rows] what goes in next                                      */
    int32_t *prompts; /* [rows][prompt_len]                                            */
    int64_t *start;   /* [rows + 1]                                                    */
    int64_t step;
    const int32_t *barred; /* [n_barred] ids that are never drawn */
    int64_t n_barred;
    dlrn_status status;
} lm_draw;

/* The first of the largest. */
static int32_t lm_most_likely(const float *x, int64_t n) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return (int32_t)best;
}

/* Below this the most likely token is taken, since 1 / temperature must stay finite. */
#define LM_COLDEST 1e-9

/* Draws from softmax(x / temperature) over the entries >= least. Overwrites x. */
static int32_t lm_draw_from(lm_width width, float *x, int64_t n, double temperature, float least,
                            dlrn_rng *rng) {
    float rate = temperature < 1e37 ? (float)(1 / temperature) : 1e-37f,
          top = -INFINITY; /* -INFINITY 0 is a NaN */
    double total, sum = 0;
    int64_t last = 0;
    for (int64_t i = 0; i < n && least > -INFINITY; i++) x[i] = x[i] >= least ? x[i] : -INFINITY;
    lm_softmax(width, x, n, rate, &top, &total);
    double u = dlrn_rng_uniform_f64(rng) * total;
    for (int64_t i = 0; i < n; i++) {
        if (x[i] > 0) last = i;
        sum += (double)x[i];
        if (sum > u) return (int32_t)last;
    }
    return (int32_t)last;
}

/* Draws the next token of document i, unless it has ended. */
static dlrn_status lm_draw_row(lm_draw *g, int64_t i) {
    const lm_sampling *c = g->cfg;
    const int64_t v = g->m.cfg.vocab;
    float *x = g->logits + i * g->stride, least = -INFINITY;
    dlrn_rng rng = {c->seed, (uint64_t)(g->first + i), (uint64_t)g->step * 4};
    if (g->length[i] < 0) return DLRN_OK;
    for (int64_t k = 0; k < g->n_barred; k++) x[g->barred[k]] = -INFINITY;
    if (c->top_k > 0 && c->top_k < v) {
        int64_t *kept = g->kept + i * c->top_k;
        LM_TRY(dlrn_topk(g->m.ctx, x, v, c->top_k, kept, NULL));
        least = x[kept[c->top_k - 1]];
    }
    int32_t id = c->temperature >= LM_COLDEST
                     ? lm_draw_from(g->m.width, x, v, c->temperature, least, &rng)
                     : lm_most_likely(x, v);
    g->next[i] = id;
    if (id == c->stop)
        g->length[i] = -1 - g->length[i];
    else
        g->id[i * c->tokens + g->length[i]++] = id;
    return DLRN_OK;
}

/* Runs `each` ids of every document through the model; g->logits: those after its last token. */
static dlrn_status lm_advance(lm_draw *g, const int32_t *ids, int64_t each) {
    lm_model *m = &g->m;
    const int64_t d = m->cfg.dim, v = m->cfg.vocab;
    for (int64_t i = 0; i <= g->rows; i++) g->start[i] = i * each;
    lm_batch batch = {ids, g->start, g->rows};
    lm_pass p = {m, &batch, &g->cache, NULL, 0, NULL, NULL, 0};
    LM_TRY(lm_pass_through(&p, 1));
    g->cache.past += each;
    return dlrn_matmul(m->ctx, DLRN_NT, dlrn_view(m->a + (each - 1) * d, g->rows, d, each * d),
                       dlrn_view(m->part[LM_UNEMBEDDING], v, d, d), 0,
                       dlrn_view(g->logits, g->rows, v, g->stride), NULL);
}

/* Samples a group: the prompt at once, then one token for all documents in a step. */
static dlrn_status lm_generate_group(lm_draw *g) {
    const lm_sampling *c = g->cfg;
    int64_t open = g->rows;
    for (int64_t i = 0; i < g->rows; i++) {
        memcpy(g->prompts + i * c->prompt_len, c->prompt,
               (size_t)c->prompt_len * sizeof *g->prompts);
        g->length[i] = 0;
        g->next[i] = 0;
    }
    g->cache.past = 0;
    LM_TRY(lm_advance(g, g->prompts, c->prompt_len));
    for (g->step = 0; g->step < c->tokens && open > 0; g->step++) {
        if (g->step > 0) LM_TRY(lm_advance(g, g->next, 1));
        open = 0;
        for (int64_t i = 0; i < g->rows; i++) {
            LM_TRY(lm_draw_row(g, i));
            open += g->length[i] >= 0;
        }
    }
    return DLRN_OK;
}

/* A task: one worker's group. */
static void lm_generate_task(void *arg, int64_t task, int worker) {
    lm_draw *g = (lm_draw *)arg + task;
    (void)worker;
    g->status = g->rows > 0 ? lm_generate_group(g) : DLRN_OK;
}

/* Hands out the documents of a group. */
static dlrn_status lm_emit_group(const lm_draw *g, lm_emit emit, void *user) {
    for (int64_t i = 0; i < g->rows; i++) {
        int64_t n = g->length[i] < 0 ? -1 - g->length[i] : g->length[i];
        LM_TRY(emit(user, g->first + i, g->id + i * g->cfg->tokens, n));
    }
    return DLRN_OK;
}

/* How many documents a worker samples at once: logits and cache take about 256 MB at most, and the
   prompts fit into one run. */
static int64_t lm_group(const lm_model *m, const lm_sampling *c, int64_t workers) {
    const int64_t kv = m->cfg.kv_heads * m->cfg.head_dim;
    int64_t each = m->cfg.vocab + 2 * m->cfg.layers * lm_row_of(c->prompt_len + c->tokens) * kv;
    int64_t group = ((int64_t)64 << 20) / each, most = LM_BATCH_TOKENS / c->prompt_len;
    int64_t share = (c->documents + workers - 1) / workers;
    group = group < most ? group : most;
    group = group < 128 ? group : 128;
    group = group < share ? group : share;
    return group > 1 ? group : 1;
}

/* Frees a worker, also one that was opened in part. */
static void lm_draw_close(lm_draw *g) {
    dlrn_context *ctx = g->m.ctx;
    if (!ctx) return;
    lm_drop_workspace(&g->m);
    void *blocks[] = {g->cache.k, g->cache.v, g->logits, g->kept,   g->id,
                      g->length,  g->next,    g->start,  g->prompts};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) dlrn_free(ctx, blocks[i]);
    dlrn_context_destroy(ctx);
}

/* Makes a worker for groups of up to `rows` documents. */
static dlrn_status lm_draw_open(lm_draw *g, const lm_model *m, const lm_sampling *cfg,
                                int64_t rows) {
    int64_t top = cfg->top_k > 0 && cfg->top_k < m->cfg.vocab ? cfg->top_k : 0;
    const int64_t kv = m->cfg.kv_heads * m->cfg.head_dim;
    dlrn_context_config own = {0};
    memset(g, 0, sizeof *g);
    own.threads = 1;
    own.kernels = dlrn_context_describe(m->ctx).kernels;
    dlrn_context *ctx = NULL;
    if (dlrn_context_create(&own, &ctx) != DLRN_OK) return DLRN_ERR_MEMORY;
    g->m = *m;
    g->m.ctx = ctx;
    lm_forget_workspace(&g->m); /* that one is the model's */
    g->cfg = cfg;
    g->cache.sequences = rows;
    g->cache.capacity = lm_row_of(cfg->prompt_len + cfg->tokens);
    g->cache.k = lm_floats(&g->m, m->cfg.layers * rows * g->cache.capacity, kv);
    g->cache.v = lm_floats(&g->m, m->cfg.layers * rows * g->cache.capacity, kv);
    g->stride = (m->cfg.vocab + 15) / 16 * 16;
    g->logits = lm_floats(&g->m, rows, g->stride);
    g->kept = (int64_t *)dlrn_alloc(ctx, rows * top, sizeof *g->kept);
    g->id = (int32_t *)dlrn_alloc(ctx, rows * cfg->tokens, sizeof *g->id);
    g->length = (int64_t *)dlrn_alloc(ctx, rows, sizeof *g->length);
    g->next = (int32_t *)dlrn_alloc(ctx, rows, sizeof *g->next);
    g->start = (int64_t *)dlrn_alloc(ctx, rows + 1, sizeof *g->start);
    g->prompts = (int32_t *)dlrn_alloc(ctx, rows * cfg->prompt_len, sizeof *g->prompts);
    return g->cache.k && g->cache.v && g->logits && g->kept && g->id && g->length && g->next &&
                   g->start && g->prompts
               ? DLRN_OK
               : DLRN_ERR_MEMORY;
}

/* Each worker samples a group, then all groups are emitted in order; and so on. */
static dlrn_status lm_generate_rounds(lm_model *m, lm_draw *g, int64_t workers, int64_t rows,
                                      lm_emit emit, void *user) {
    const int64_t documents = g->cfg->documents;
    for (int64_t first = 0; first < documents; first += workers * rows) {
        for (int64_t w = 0; w < workers; w++) {
            g[w].first = first + w * rows;
            g[w].rows = documents - g[w].first < rows ? documents - g[w].first : rows;
        }
        dlrn_parallel_for(m->ctx, workers, lm_generate_task, g);
        for (int64_t w = 0; w < workers; w++) {
            if (g[w].status != DLRN_OK)
                return dlrn_fail(m->ctx, g[w].status, "%s", dlrn_error(g[w].m.ctx));
            LM_TRY(lm_emit_group(&g[w], emit, user));
        }
    }
    return DLRN_OK;
}

/* The ids without a token, in a block for the caller to free; NULL and 0: all have one. */
static dlrn_status lm_find_barred(lm_model *m, const lm_sampling *cfg, int32_t **barred,
                                  int64_t *n) {
    int64_t length, count = 0;
    *barred = NULL;
    *n = 0;
    for (int32_t id = 0; cfg->tokens_of && id < m->cfg.vocab; id++)
        count += id != cfg->stop && !bpe_token_bytes(cfg->tokens_of, id, &length);
    if (count == m->cfg.vocab)
        return dlrn_fail(m->ctx, DLRN_ERR_VALUE,
                         "generate: expected a tokenizer with tokens for the model's %lld ids, "
                         "found none",
                         (long long)m->cfg.vocab);
    if (count == 0) return DLRN_OK;
    *barred = (int32_t *)dlrn_alloc(m->ctx, count, sizeof **barred);
    if (!*barred) return DLRN_ERR_MEMORY;
    for (int32_t id = 0; id < m->cfg.vocab; id++)
        if (id != cfg->stop && !bpe_token_bytes(cfg->tokens_of, id, &length))
            (*barred)[(*n)++] = id;
    return DLRN_OK;
}

LM_API dlrn_status lm_generate(lm_model *m, const lm_sampling *cfg, lm_emit emit, void *user) {
    if (cfg->prompt_len < 1 || cfg->tokens < 1 || cfg->prompt_len + cfg->tokens > m->cfg.positions)
        return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT,
                         "generate: expected a prompt and tokens, together at most the model's "
                         "%lld positions, found "
                         "%lld and %lld",
                         (long long)m->cfg.positions, (long long)cfg->prompt_len,
                         (long long)cfg->tokens);
    int64_t workers = dlrn_context_describe(m->ctx).threads < cfg->documents
                          ? dlrn_context_describe(m->ctx).threads
                          : cfg->documents;
    int64_t rows = lm_group(m, cfg, workers > 0 ? workers : 1);
    dlrn_status s = lm_need_head(m);
    if (s == DLRN_OK)
        s = lm_need_turns(m, cfg->prompt_len + cfg->tokens); /* now, since the workers share them */
    for (int64_t l = 0; l < m->cfg.layers && s == DLRN_OK; l++) s = lm_need_layer(m, l);
    if (s != DLRN_OK || workers < 1) return s;
    lm_draw *g = (lm_draw *)dlrn_alloc(m->ctx, workers, sizeof *g);
    if (!g) return DLRN_ERR_MEMORY;
    memset(g, 0, (size_t)workers * sizeof *g);
    int32_t *barred = NULL;
    int64_t n_barred = 0;
    s = lm_find_barred(m, cfg, &barred, &n_barred);
    for (int64_t w = 0; w < workers && s == DLRN_OK; w++) {
        s = lm_draw_open(&g[w], m, cfg, rows);
        g[w].barred = barred, g[w].n_barred = n_barred;
    }
    if (s == DLRN_ERR_MEMORY) dlrn_fail(m->ctx, s, "generate: out of memory");
    if (s == DLRN_OK) s = lm_generate_rounds(m, g, workers, rows, emit, user);
    for (int64_t w = 0; w < workers; w++) lm_draw_close(&g[w]);
    dlrn_free(m->ctx, barred);
    dlrn_free(m->ctx, g);
    return s;
}

/* ------------------------------------------------------------------------------------------ */
// >>text

LM_API void lm_documents_free(lm_documents *d) {
    if (!d || !d->ctx) return;
    dlrn_free(d->ctx, d->id);
    dlrn_free(d->ctx, d->start);
    memset(d, 0, sizeof *d);
}

LM_API dlrn_status lm_next_ids(bpe_tokenizer *tok, doc_reader *docs, bpe_ids *out) {
    const char *text = NULL;
    const int32_t *ready = NULL;
    int64_t n = 0;
    out->count = 0;
    while (out->count == 0 && !doc_has_ids(docs)) {
        LM_TRY(doc_next(docs, &text, &n));
        LM_TRY(bpe_encode(tok, text, n, out));
    }
    if (doc_has_ids(docs)) LM_TRY(doc_next_ids(docs, &ready, &n));
    for (int64_t i = 0; ready && i < n; i++) LM_TRY(bpe_put_id(tok->ctx, out, ready[i]));
    return DLRN_OK;
}

/* Checks what the reading of a text needs. */
static dlrn_status lm_check_reading(const lm_model *m, const lm_reading *how) {
    if (how->bos && m->cfg.bos < 0)
        return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT,
                         "bos: expected a model with one bos_token_id, found none");
    if (how->ctx_len > (how->bos != 0) || (how->ctx_len == 1 && !how->split)) return DLRN_OK;
    return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT,
                     "ctx_len: expected room for a token in each context, found %lld%s",
                     (long long)how->ctx_len, how->bos ? " with a bos token" : "");
}

/* Appends a context: the ids from *from on, as many as fit behind the bos token if there is to be
   one. *from moves on; behind the last if the rest is cut off. */
static dlrn_status lm_append(const lm_model *m, const lm_reading *how, const bpe_ids *ids,
                             int64_t *from, lm_documents *out) {
    int64_t at = out->count ? out->start[out->count] : 0, bos = how->bos != 0;
    int64_t rest = ids->count - *from, n = rest < how->ctx_len - bos ? rest : how->ctx_len - bos;
    out->ctx = m->ctx;
    LM_TRY(lm_grow(m->ctx, &out->start, &out->start_cap, out->start ? out->count + 1 : 0,
                   out->count + 2, sizeof *out->start));
    LM_TRY(lm_grow(m->ctx, &out->id, &out->id_cap, at, at + bos + n, sizeof *out->id));
    out->start[0] = 0;
    if (bos) out->id[at] = m->cfg.bos;
    if (n) memcpy(out->id + at + bos, ids->id + *from, (size_t)n * sizeof *ids->id);
    out->start[++out->count] = at + bos + n;
    if (how->tally && *from == 0) how->tally->tokens += ids->count;
    *from = how->split ? *from + n : ids->count;
    if (how->tally && !how->split) how->tally->left_out += rest - n;
    return DLRN_OK;
}

LM_API dlrn_status lm_read_documents(const lm_model *m, bpe_tokenizer *tok, doc_reader *docs,
                                     const lm_reading *how, int64_t limit, lm_documents *out) {
    int64_t got = 0;
    bpe_ids ids;
    memset(&ids, 0, sizeof ids);
    dlrn_status s = lm_check_reading(m, how);
    for (; s == DLRN_OK && (limit < 0 || got < limit); got += s == DLRN_OK) {
        s = lm_next_ids(tok, docs, &ids);
        for (int64_t from = 0; s == DLRN_OK && from < ids.count;)
            s = lm_append(m, how, &ids, &from, out);
    }
    bpe_ids_free(&ids);
    return s == DLRN_END && got ? DLRN_OK : s;
}

static int lm_norm_order(const void *left, const void *right) {
    const double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

LM_API double lm_row_norm(const float *x, int64_t d) {
    double sum = 0;
    for (int64_t j = 0; j < d; j++) sum += (double)x[j] * (double)x[j];
    return sqrt(sum);
}

/* The lower median, so that of two rows the longer can be left out. */
LM_API double lm_norm_limit(double *norm, int64_t n, double ratio) {
    memcpy(norm + n, norm, (size_t)n * sizeof *norm);
    qsort(norm + n, (size_t)n, sizeof *norm, lm_norm_order);
    return ratio * norm[n + (n - 1) / 2];
}

/* Leaves out the long rows x [n][d] of a context. */
static dlrn_status lm_choose_short(const lm_model *m, double ratio, const float *x, int64_t n,
                                   int64_t d, unsigned char *keep) {
    double *norm = (double *)dlrn_alloc(m->ctx, 2 * n, sizeof *norm);
    if (!norm) return DLRN_ERR_MEMORY;
    for (int64_t i = 0; i < n; i++) norm[i] = lm_row_norm(x + i * d, d);
    const double limit = lm_norm_limit(norm, n, ratio);
    for (int64_t i = 0; i < n; i++)
        if (norm[i] > limit) keep[i] = 0;
    dlrn_free(m->ctx, norm);
    return DLRN_OK;
}

LM_API dlrn_status lm_choose(const lm_model *m, const lm_choice *choice, const lm_batch *batch,
                             const float *x, int64_t d, unsigned char *keep) {
    const int64_t first = batch->start[0];
    for (int64_t c = 0; c < batch->sequences; c++) {
        const int64_t from = batch->start[c], n = batch->start[c + 1] - from;
        unsigned char *kept = keep + (from - first);
        for (int64_t i = 0; i < n; i++) {
            const int32_t id = batch->id[from + i];
            const int special =
                choice->special_of && (id == m->cfg.bos || bpe_is_special(choice->special_of, id));
            kept[i] = i >= choice->skip_first && !special;
        }
        if (choice->max_norm_ratio > 0 && n)
            LM_TRY(lm_choose_short(m, choice->max_norm_ratio, x + (from - first) * d, n, d, kept));
        for (int64_t i = 0; i < n && choice->left_out; i++) *choice->left_out += !kept[i];
    }
    return DLRN_OK;
}

typedef enum lm_stage {
    LM_DONE,
    LM_READING,
    LM_WAITING
} lm_stage; /* its rows are there; not yet: read */

/* Where a context begins: its document in the text, and its row within the document. */
typedef struct lm_place {
    uint64_t document;
    int64_t row;
} lm_place;

/* The contexts of one run, and how many of their rows have been handed out. */
typedef struct lm_text {
    lm_model *m;
    bpe_tokenizer *tok;
    doc_reader *docs;
    lm_reading how;
    lm_tap tap;
    bpe_ids ids;   /* of the document that was read last, ...            */
    int64_t taken; /* ... and how many of them contexts were made of     */
    lm_place next; /* where the next context begins; row: of a seek, where that document is not
                       read yet */
    lm_documents batch;
    lm_place *place; /* [batch.count] */
    int64_t place_cap;
    float *x, *y;        /* [row_cap][width] rows of the batch; y NULL without a target */
    unsigned char *keep; /* [row_cap] rows of the batch that count */
    int64_t row_cap, rows, given;
    int64_t skip;       /* rows of the next batch to leave out, after a seek */
    lm_stage stage;     /* of the batch */
    dlrn_status failed; /* told at the next read: rows came before it */
    dlrn_status later;  /* of the next document: the batch before it is handed out first */
} lm_text;

/* Bits of a position for the row within its document. A document has at most 16 MB, so as many
   tokens, and with a bos token in each context of two at most twice as many rows. Uncut documents
   leave 39 bits for the place in the text, 550 GB. */
enum { LM_ROW_BITS = 20, LM_SPLIT_BITS = 25 };
static int lm_row_bits(const lm_text *t) {
    return t->how.split ? LM_SPLIT_BITS : LM_ROW_BITS;
}

/* Copies a run's rows as the model reaches the tap. */
static dlrn_status lm_keep_rows(void *user, int tap, const float *x, float *y, int64_t n) {
    lm_text *t = (lm_text *)user;
    (void)tap;
    memcpy(t->x, x, (size_t)(n * lm_site_width(t->m, t->tap.x)) * sizeof *x);
    if (t->y) memcpy(t->y, y, (size_t)(n * lm_site_width(t->m, t->tap.y)) * sizeof *y);
    t->rows = n;
    return DLRN_OK;
}

/* Reads the next document, if all of the last one is used. After a seek its first contexts are
   left out, and the first rows of the next. */
static dlrn_status lm_text_document(lm_text *t) {
    const int64_t fits = t->how.ctx_len - (t->how.bos != 0);
    if (t->taken < t->ids.count) return DLRN_OK;
    int64_t row = t->next.row;
    t->next.document = doc_position(t->docs);
    t->place[t->batch.count] = t->next;
    t->ids.count = t->taken = 0;
    dlrn_status s = lm_next_ids(t->tok, t->docs, &t->ids);
    if (s != DLRN_OK) {
        t->ids.count = 0;
        return s;
    }
    const int64_t within = t->how.split ? row % t->how.ctx_len : row;
    if (t->batch.count == 0) t->skip = within; /* later documents begin at row 0 */
    t->next.row = row - within;
    t->taken = t->how.split ? t->next.row / t->how.ctx_len * fits : 0;
    if (t->taken <= t->ids.count) return DLRN_OK;
    return dlrn_fail(t->m->ctx, DLRN_ERR_VALUE,
                     "text: expected the document that was read before, found a shorter one");
}

/* Reads documents until a run is full. */
static dlrn_status lm_text_batch(lm_text *t) {
    lm_documents *b = &t->batch;
    b->count = 0;
    LM_TRY(lm_check_reading(t->m, &t->how));
    if (t->later != DLRN_OK) return t->later;
    while (b->count == 0 || b->start[b->count] < LM_BATCH_TOKENS) {
        LM_TRY(
            lm_grow(t->m->ctx, &t->place, &t->place_cap, b->count, b->count + 1, sizeof *t->place));
        t->place[b->count] = t->next;
        t->stage = LM_READING;
        dlrn_status s = lm_text_document(t);
        if (s != DLRN_OK && s != DLRN_END && b->count) t->later = s;
        if (s == DLRN_END || t->later != DLRN_OK) break;
        if (s != DLRN_OK) return s;
        t->place[b->count] = t->next;
        if (t->taken < t->ids.count) LM_TRY(lm_append(t->m, &t->how, &t->ids, &t->taken, b));
        t->next.row = t->taken < t->ids.count ? t->next.row + t->how.ctx_len : 0;
    }
    if (b->count == 0) return DLRN_END;
    t->stage = LM_WAITING;
    return DLRN_OK;
}

/* Runs the next documents. A run that was stopped is repeated: its documents are kept. */
static dlrn_status lm_text_fill(lm_text *t) {
    t->rows = t->given = 0;
    if (t->stage != LM_WAITING) LM_TRY(lm_text_batch(t));
    lm_batch batch = {t->batch.id, t->batch.start, t->batch.count};
    LM_TRY(lm_run(t->m, &batch, &t->tap, 1, lm_keep_rows, t, 0));
    LM_TRY(lm_choose(t->m, &t->how.choice, &batch, t->x, lm_site_width(t->m, t->tap.x), t->keep));
    t->stage = LM_DONE;
    t->given = t->skip < t->rows ? t->skip : t->rows;
    t->skip = 0;
    return DLRN_OK;
}

/* How many rows from `given` on count, up to `most`; those before them that do not are passed. */
static int64_t lm_text_run(lm_text *t, int64_t most) {
    int64_t n = 0;
    while (t->given < t->rows && !t->keep[t->given]) t->given++;
    while (n < most && t->given + n < t->rows && t->keep[t->given + n]) n++;
    return n;
}

/* Hands out rows, running further documents when they are used up. An error waits until the rows
   before it are handed out. */
static dlrn_status lm_text_read(void *user, int64_t max_rows, float *x, float *y, int64_t *n) {
    lm_text *t = (lm_text *)user;
    const int64_t d = lm_site_width(t->m, t->tap.x), d_out = lm_site_width(t->m, t->tap.y);
    *n = 0;
    while (*n < max_rows) {
        if (t->given == t->rows) {
            dlrn_status s = t->failed != DLRN_OK ? t->failed : lm_text_fill(t);
            if (s != DLRN_OK && s != DLRN_END && s != DLRN_STOPPED) t->failed = s;
            if (s == DLRN_END || (s != DLRN_OK && *n)) break;
            if (s != DLRN_OK) return s;
        }
        int64_t k = lm_text_run(t, max_rows - *n);
        memcpy(x + *n * d, t->x + t->given * d, (size_t)(k * d) * sizeof *x);
        if (t->y && y)
            memcpy(y + *n * d_out, t->y + t->given * d_out, (size_t)(k * d_out) * sizeof *y);
        t->given += k;
        *n += k;
    }
    return *n || max_rows == 0 ? DLRN_OK : DLRN_END;
}

/* The document of the next row, and the row within it. */
static dlrn_status lm_text_position(void *user, uint64_t *position) {
    lm_text *t = (lm_text *)user;
    lm_place at = t->next;
    if (t->taken >= t->ids.count && t->later == DLRN_OK) at.document = doc_position(t->docs);
    if (t->stage != LM_DONE) {
        at = t->place[0];
        at.row += t->skip;
    } else if (t->given < t->rows) {
        int64_t i = 0;
        while (t->batch.start[i + 1] <= t->given) i++;
        at = t->place[i];
        at.row += t->given - t->batch.start[i];
    }
    if (at.document >> (64 - lm_row_bits(t)))
        return dlrn_fail(t->m->ctx, DLRN_ERR_VALUE,
                         "text: a position beyond byte %llu cannot be saved",
                         (unsigned long long)at.document);
    *position = at.document << lm_row_bits(t) | (uint64_t)at.row;
    return DLRN_OK;
}

/* Goes to a document; its first rows are skipped when it is run. */
static dlrn_status lm_text_seek(void *user, uint64_t position) {
    lm_text *t = (lm_text *)user;
    t->rows = t->given = t->skip = 0;
    t->ids.count = t->taken = 0;
    t->stage = LM_DONE;
    t->failed = t->later = DLRN_OK;
    t->next.document = position >> lm_row_bits(t);
    t->next.row = (int64_t)(position & (((uint64_t)1 << lm_row_bits(t)) - 1));
    return doc_seek(t->docs, t->next.document);
}

static const char *lm_text_error(void *user) {
    return dlrn_error(((lm_text *)user)->m->ctx);
}

static void lm_text_destroy(void *user) {
    lm_text *t = (lm_text *)user;
    dlrn_context *ctx = t->m->ctx;
    lm_documents_free(&t->batch);
    bpe_ids_free(&t->ids);
    dlrn_free(ctx, t->place);
    dlrn_free(ctx, t->keep);
    dlrn_free(ctx, t->x);
    dlrn_free(ctx, t->y);
    dlrn_free(ctx, t);
}

LM_API dlrn_status lm_text_source(lm_model *m, bpe_tokenizer *tok, doc_reader *docs,
                                  const lm_reading *how, lm_tap tap, dlrn_source *out) {
    int target = lm_order(tap.x) != lm_order(tap.y);
    memset(out, 0, sizeof *out);
    if (how->ctx_len < 1 || how->ctx_len > m->cfg.positions ||
        how->ctx_len >= (int64_t)1 << LM_ROW_BITS)
        return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT,
                         "ctx_len: expected 1 to the model's %lld positions, found %lld",
                         (long long)m->cfg.positions, (long long)how->ctx_len);
    lm_text *t = (lm_text *)dlrn_alloc(m->ctx, 1, sizeof *t);
    if (!t) return DLRN_ERR_MEMORY;
    memset(t, 0, sizeof *t);
    t->m = m, t->tok = tok, t->docs = docs, t->how = *how, t->tap = tap;
    t->row_cap = LM_BATCH_TOKENS + how->ctx_len;
    t->x = lm_floats(m, t->row_cap, lm_site_width(m, tap.x));
    t->y = target ? lm_floats(m, t->row_cap, lm_site_width(m, tap.y)) : NULL;
    t->keep = (unsigned char *)dlrn_alloc(m->ctx, t->row_cap, 1);
    if (!t->x || !t->keep || (target && !t->y)) {
        lm_text_destroy(t);
        return DLRN_ERR_MEMORY;
    }
    out->d_in = lm_site_width(m, tap.x);
    out->d_out = target ? lm_site_width(m, tap.y) : 0;
    out->read = lm_text_read;
    out->error = lm_text_error;
    out->destroy = lm_text_destroy;
    out->user = t;
    out->position = lm_text_position;
    out->seek = lm_text_seek;
    return DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>judge

/* An edit of a run's rows. */
typedef struct lm_edit {
    const lm_judge *judge;
    const lm_batch *batch;
    dlrn_edit edit;
} lm_edit;

/* Puts the rows that do not count back: y [n][d] from `was`. */
static dlrn_status lm_put_back(const lm_edit *e, int tap, const float *x, float *y, int64_t n,
                               const float *was) {
    lm_model *m = e->judge->model;
    lm_choice choice = *e->judge->choice;
    const int64_t d = lm_site_width(m, e->judge->taps[tap].y);
    unsigned char *keep = (unsigned char *)dlrn_alloc(m->ctx, n, 1);
    choice.left_out = NULL; /* counted with the rows that are measured */
    if (!keep) return DLRN_ERR_MEMORY;
    dlrn_status s =
        lm_choose(m, &choice, e->batch, x, lm_site_width(m, e->judge->taps[tap].x), keep);
    for (int64_t i = 0; i < n && s == DLRN_OK; i++)
        if (!keep[i]) memcpy(y + i * d, was + i * d, (size_t)d * sizeof *y);
    dlrn_free(m->ctx, keep);
    return s;
}

/* Passes a tap's rows to the library's edit. Rows that do not count come back as they were. */
static dlrn_status lm_judge_visit(void *user, int tap, const float *x, float *y, int64_t n) {
    const lm_edit *e = (const lm_edit *)user;
    lm_model *m = e->judge->model;
    const int64_t d = lm_site_width(m, e->judge->taps[tap].y);
    const int64_t dx = lm_site_width(m, e->judge->taps[tap].x);
    if (!e->judge->choice) return e->edit.edit(e->edit.user, tap, x, y, n);
    float *was = lm_floats(m, n, d), *rows = lm_floats(m, n, dx);
    dlrn_status s = was && rows ? DLRN_OK : DLRN_ERR_MEMORY;
    if (s == DLRN_OK) memcpy(was, y, (size_t)(n * d) * sizeof *y);
    if (s == DLRN_OK) memcpy(rows, x, (size_t)(n * dx) * sizeof *x); /* x may be y */
    if (s == DLRN_OK) s = e->edit.edit(e->edit.user, tap, x, y, n);
    if (s == DLRN_OK) s = lm_put_back(e, tap, rows, y, n, was);
    dlrn_free(m->ctx, was);
    dlrn_free(m->ctx, rows);
    return s;
}

/* The mean over all next tokens of all documents, in runs of LM_BATCH_TOKENS, which bound memory.
   */
static dlrn_status lm_judge_cross_entropy(void *user, const dlrn_edit *edit, double *nats,
                                          int64_t *tokens) {
    lm_judge *j = (lm_judge *)user;
    const lm_documents *d = j->texts;
    lm_edit copy = {j, NULL, {NULL, NULL}};
    double sum = 0, part = 0;
    int64_t count = 0, n = 0;
    if (edit) copy.edit = *edit;
    for (int64_t i = 0, end; i < d->count; i = end) {
        for (end = i + 1; end < d->count && d->start[end + 1] - d->start[i] <= LM_BATCH_TOKENS;)
            end++;
        lm_batch batch = {d->id, d->start + i, end - i};
        copy.batch = &batch;
        LM_TRY(lm_run(j->model, &batch, j->taps, edit ? j->n_taps : 0, lm_judge_visit, &copy, 1));
        LM_TRY(lm_cross_entropy(j->model, &batch, &part, &n));
        sum += part;
        count += n;
    }
    if (count == 0)
        return dlrn_fail(j->model->ctx, DLRN_ERR_VALUE,
                         "cross-entropy: expected documents of two tokens or more, "
                         "found none");
    *nats = sum / (double)count;
    *tokens = count;
    return DLRN_OK;
}

static const char *lm_judge_error(void *user) {
    return dlrn_error(((lm_judge *)user)->model->ctx);
}

LM_API void lm_language_model(lm_judge *judge, dlrn_language_model *out) {
    memset(out, 0, sizeof *out);
    out->cross_entropy = lm_judge_cross_entropy;
    out->error = lm_judge_error;
    out->user = judge;
    out->sites = judge->n_taps;
    out->documents = judge->texts->count;
}

#if defined(__clang__)
#pragma STDC FP_CONTRACT DEFAULT
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif
#endif /* LM_IMPLEMENTATION */
