/* lm.h - runs decoder-only language models and edits them on the way - MIT licence

   Do this in one file, after dictlearn.h:

       #define LM_IMPLEMENTATION
       #include "lm.h"

   It brings bpe.h (tokenizer) and documents.h (texts) along. It hands out the activations of any
   site of any layer, lets you change them on the way, measures the cross-entropy that the change
   costs, and samples text with or without it.

   WHAT RUNS THE MODEL is an engine, one row of a table. lm_load chooses it by the path; nothing
   else here, and no program that includes this file, depends on which one it is.
     lm_hf.h     a Hugging Face folder of a GPT-NeoX model; needs nothing but dictlearn.h
     lm_llama.h  a GGUF file of any architecture; only with -DLM_LLAMA, needs llama.cpp
   To add an engine write its functions in a file beside these, and add its row to lm_engines.

   A batch is ragged: its sequences follow one another, x [tokens][d], without padding, so nothing
   has to be masked or dropped.

   CONTENTS
   >>interface   models, sites, runs, sampling, tokenizers, texts
   >>engine      what an engine provides
   >>sites       names of sites, and what a dictionary at a site reads and replaces
   >>engines     the table, and calls that the engine answers
   >>unembedding rows at the end of the residual stream as logits
   >>tokenizer   text to token ids and back
   >>text        activations of a text as a dlrn_source
   >>judge       a dlrn_language_model: cross-entropy with activations edited
   >>sampling    text from the model
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

#define LM_IN_TEXT(id, name, before) before name
#define LM_KINDS LM_KIND_LIST(LM_IN_TEXT) /* "embed, attn_in, ... or resid_out", as a literal */
#define LM_IOS LM_IO_LIST(LM_IN_TEXT)

#define LM_ENUM(id, name, before) LM_##id,
/* LM_TENSOR: any tensor of the engine's graph, by its name; only engines that have a graph take
   it. */
typedef enum lm_kind { LM_KIND_LIST(LM_ENUM) LM_KIND_COUNT, LM_TENSOR = LM_KIND_COUNT } lm_kind;
#undef LM_ENUM
#define LM_ENUM(id, name, before) LM_IO_##id,
typedef enum lm_io { LM_IO_LIST(LM_ENUM) LM_IO_COUNT } lm_io;
#undef LM_ENUM

typedef struct lm_site {
    lm_kind kind;
    int layer;       /* 0 for the embedding and for tensors */
    char tensor[64]; /* the name of an LM_TENSOR, else ""   */
} lm_site;

/* What a dictionary reads (x) and what it replaces (y): the same site, unless it maps a module's
   input to its output. */
typedef struct lm_tap {
    lm_site x, y;
} lm_tap;

/* What every engine knows of a model. */
typedef struct lm_config {
    char family[32]; /* "GPTNeoX", "llama", ... */
    int64_t dim, layers, inner, vocab, positions;
    int64_t heads, kv_heads; /* heads / kv_heads query heads share a key and value head */
    int32_t bos, eos;        /* -1: none */
    /* What the caller should know: which of two settings that contradict each other was taken. A
       line each, without the path; "": nothing. */
    char notes[1024];
    /* What only this engine knows, to be shown. */
    struct {
        const char *name; /* static */
        int64_t value;
    } more[4];
    int n_more;
} lm_config;

typedef struct lm_engine lm_engine; /* see >>engine */
typedef struct lm_model {           /* the first member of an engine's own struct */
    const lm_engine *engine;
    dlrn_context *ctx;
    lm_config cfg;
    int (*stop)(void *user);
    void *stop_user;
    int64_t whole_tokens; /* of a whole run with edits, beyond which the engine computes its lower
                             part twice; 0: LM_BATCH_TOKENS */
    int is_whole;         /* the last run was whole, and ended: it has logits */
} lm_model;

typedef struct lm_tokenizer_kind lm_tokenizer_kind; /* see >>engine */
typedef struct lm_tokenizer {                       /* the first member of a kind's own struct */
    const lm_tokenizer_kind *kind;
    dlrn_context *ctx;
} lm_tokenizer;

/* path: a model's folder or file, as an engine takes it; borrowed during the call. */
LM_API dlrn_status lm_load(dlrn_context *ctx, const char *path, lm_model **out);
LM_API void lm_destroy(lm_model *m); /* NULL is fine */
/* Whether a path is a file that begins as GGUF files do. -1: it cannot be read, and the error is
   set. */
LM_API int lm_is_gguf(dlrn_context *ctx, const char *path);
LM_API const lm_config *lm_config_of(const lm_model *m);
/* The configuration alone, without the weights. */
LM_API dlrn_status lm_read_config(dlrn_context *ctx, const char *path, lm_config *out);
/* The file with a folder's weights (or with the index of its shards), in the order in which
   transformers looks for it; 0: there is none. */
LM_API int lm_find_weights(dlrn_context *ctx, const char *folder, char *path, size_t size);
/* A tensor of a model's file: its name, its type as ggml names it ("f32", "q4_1"), its shape, the
   last dimension along a row. Borrowed during the call. */
typedef struct lm_weight {
    const char *name, *type;
    int64_t shape[4];
    int ndim;
} lm_weight;
typedef dlrn_status (*lm_list)(void *user, const lm_weight *weight);
/* Lists the tensors of a model in a GGUF file, in the file's order; those of other models are
   listed by dlrn_archive_open. */
LM_API dlrn_status lm_list_weights(dlrn_context *ctx, const char *path, lm_list list, void *user);
/* asked(user) is called between layers, on any thread; non-zero ends the run with DLRN_STOPPED.
   NULL: never. A source of activations that was stopped loses no row. */
LM_API void lm_on_stop(lm_model *m, int (*asked)(void *user), void *user);

/* The place of a name in its list; -1: it is not there. */
LM_API int lm_kind_named(const char *name);
LM_API int lm_io_named(const char *name);
/* NAME of "tensor:NAME"; NULL: the name of a site is of another form. */
LM_API const char *lm_tensor_named(const char *name);
/* Numbers in a row of a site: those of the residual stream, of all heads (attn_z), of the MLP's
   inner layer (mlp_hidden), or of a tensor. */
LM_API int64_t lm_site_width(const lm_model *m, lm_site site);
/* A site by name, also "tensor:NAME", and layer, checked against the model. */
LM_API dlrn_status lm_site_named(lm_model *m, const char *name, int64_t layer, lm_site *out);
LM_API dlrn_status lm_tap_at(lm_model *m, lm_site site, lm_io io, lm_tap *out);
/* The names of the model's sites, with commas between, cut to `size`. */
LM_API dlrn_status lm_site_names(lm_model *m, char *out, size_t size);

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
   it; otherwise the run stops after the last tap. llama.cpp runs a long batch in several pieces
   (see lm_llama.h), and then computes the logits of a piece when you first read them. */
LM_API dlrn_status lm_run(lm_model *m, const lm_batch *batch, const lm_tap *taps, int n_taps,
                          lm_visit visit, void *user, int whole);
/* After a whole run: logits [rows][vocab] of its tokens [first, first + rows). */
LM_API dlrn_status lm_logits(lm_model *m, int64_t first, int64_t rows, float *logits);
/* After a whole run of this batch: the sum of -log p(next token), and the number of such tokens. */
LM_API dlrn_status lm_cross_entropy(lm_model *m, const lm_batch *batch, double *nats,
                                    int64_t *tokens);

/* What rows added at the end of the residual stream add to the logits: x [n][dim], logits
   [n][vocab], before any bias, scale or soft-cap that follows the unembedding. The unembedding is
   linear. The final norm is not: its weight is applied, and a LayerNorm's centring; it then divides
   by the length of the whole stream there, which is left out, so the result is in units of logits
   times that length. plain 1: x times the unembedding alone, as SAEDashboard computes it.
   DLRN_ERR_UNSUPPORTED: a GGUF file of an architecture in which something else stands between the
   final norm and the unembedding. */
LM_API dlrn_status lm_direct_logits(lm_model *m, const float *x, int64_t n, int plain,
                                    float *logits);
/* The final norm's name: "LayerNorm", "RMSNorm" or "none" (also where lm_direct_logits fails);
   static. */
LM_API const char *lm_final_norm(lm_model *m);
/* What the final norm divides rows by: length [n] of x [n][dim], rows of the end of the residual
   stream. Direct logits over that length are the change of the logits with the length held.
   DLRN_ERR_UNSUPPORTED also where a scale or a soft-cap follows the unembedding. */
LM_API dlrn_status lm_final_length(lm_model *m, const float *x, int64_t n, double *length);

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
    const lm_tokenizer *tokens_of;
    /* Edits: visit is called as in lm_run, with the rows of the prompt first, then with those of
       one further token a document; n_taps 0: none. */
    const lm_tap *taps;
    int n_taps;
    lm_visit visit;
    void *user;
} lm_sampling;
/* Called once for each document, in order: its new tokens id [n]. */
typedef dlrn_status (*lm_emit)(void *user, int64_t document, const int32_t *id, int64_t n);
/* Document i depends on the seed and i alone, unless an edit looks at several. */
LM_API dlrn_status lm_generate(lm_model *m, const lm_sampling *cfg, lm_emit emit, void *user);

/* The tokenizer of a model's folder or file. */
LM_API dlrn_status lm_load_tokenizer(dlrn_context *ctx, const char *path, lm_tokenizer **out);
LM_API void lm_destroy_tokenizer(lm_tokenizer *t); /* NULL is fine */
/* Adds no special tokens around the text; recognises those within it. */
LM_API dlrn_status lm_encode(lm_tokenizer *t, const char *text, int64_t bytes, bpe_ids *out);
/* The bytes of the ids, special tokens included. Not UTF-8 if the ids cut a character. */
LM_API dlrn_status lm_decode(lm_tokenizer *t, const int32_t *ids, int64_t n, bpe_text *out);
LM_API int64_t lm_vocab_size(const lm_tokenizer *t); /* largest id + 1 */
/* Whether a token is special: <|endoftext|> and the like. */
LM_API int lm_is_special(const lm_tokenizer *t, int32_t id);
/* The bytes of a token, closed with a 0. NULL: no such id. */
LM_API const char *lm_token_bytes(const lm_tokenizer *t, int32_t id, int64_t *bytes);

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
    const lm_tokenizer *special_of; /* leave out the special tokens of this tokenizer and the
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
LM_API dlrn_status lm_next_ids(lm_tokenizer *tok, doc_reader *docs, bpe_ids *out);
/* Appends up to `limit` further documents (-1: all) that have tokens, with all of their contexts.
   DLRN_END if there were none. */
LM_API dlrn_status lm_read_documents(const lm_model *m, lm_tokenizer *tok, doc_reader *docs,
                                     const lm_reading *how, int64_t limit, lm_documents *out);
LM_API void lm_documents_free(lm_documents *d);

/* Activations at a tap as a source for the library: rows in the order of the text. All arguments
   are borrowed; destroy the source before them. It can seek, but a text on standard input goes
   forward only. An error is repeated until a seek: after DLRN_ERR_MEMORY seek to the position that
   the source reports, and no row is lost. */
LM_API dlrn_status lm_text_source(lm_model *m, lm_tokenizer *tok, doc_reader *docs,
                                  const lm_reading *how, lm_tap tap, dlrn_source *out);

/* The next run of a text source at once, for programs that share a text out among processes: each
   makes all runs, and the model runs some of them. Not to be mixed with reads, unless a seek is
   between them. */
typedef struct lm_text_rows {
    const float *x, *y;        /* [rows][width], until the next call; y NULL without a target */
    const unsigned char *keep; /* [rows] 1: the row counts                                    */
    int64_t rows;
    uint64_t position; /* of the first row; each row after it is one further */
} lm_text_rows;
/* is_run 0: the model does not run, x, y and keep are NULL. */
LM_API dlrn_status lm_text_next(dlrn_source *source, int is_run, lm_text_rows *out);

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
// >>engine

/* How the residual stream becomes logits: a norm, then the unembedding. */
typedef struct lm_head {
    const char *norm;    /* "LayerNorm", "RMSNorm" or "none"; static */
    double eps;          /* of the norm */
    const float *weight; /* [dim] what multiplies a normed row; NULL: all 1. The model's */
    int is_product;      /* 1: the logits are the product and at most a bias; 0: a scale or a
                            soft-cap follows */
} lm_head;

/* One row for each engine. Functions get arguments that lm.h has checked: ids below the vocabulary,
   sequences within the positions, sites that find_site gave; logits and cross_entropy come after a
   whole run. */
struct lm_engine {
    const char *name; /* "hf", "llama.cpp" */
    /* Whether a path is this engine's. */
    int (*opens)(dlrn_context *ctx, const char *path);
    dlrn_status (*load)(dlrn_context *ctx, const char *path, lm_model **out);
    dlrn_status (*read_config)(dlrn_context *ctx, const char *path, lm_config *out);
    dlrn_status (*load_tokenizer)(dlrn_context *ctx, const char *path, lm_tokenizer **out);
    void (*destroy)(lm_model *m);
    /* The error lists the sites that this model has. */
    dlrn_status (*find_site)(lm_model *m, const char *name, int64_t layer, lm_site *out);
    int64_t (*width)(const lm_model *m, const lm_site *site);
    dlrn_status (*run)(lm_model *m, const lm_batch *batch, const lm_tap *taps, int n_taps,
                       lm_visit visit, void *user, int whole);
    dlrn_status (*logits)(lm_model *m, int64_t first, int64_t rows, float *logits);
    dlrn_status (*cross_entropy)(lm_model *m, const lm_batch *batch, double *nats, int64_t *tokens);
    /* The end of the model. An error says why the engine cannot tell. */
    dlrn_status (*head)(lm_model *m, lm_head *out);
    /* logits [n][vocab] of x [n][dim] times the unembedding; head comes before. */
    dlrn_status (*unembed)(lm_model *m, const float *x, int64_t n, float *logits);
    /* For sampling: forgets the tokens that were cached, and makes room for `sequences` sequences
       of `positions` tokens. 0 and 0: frees that room. */
    dlrn_status (*begin)(lm_model *m, int64_t sequences, int64_t positions);
    /* Runs the next tokens of each sequence, as many of each, behind those that are cached. Taps as
       in run. logits [sequences][vocab]: after the last token of each. */
    dlrn_status (*extend)(lm_model *m, const lm_batch *batch, const lm_tap *taps, int n_taps,
                          lm_visit visit, void *user, float *logits);
    /* A second model of the same weights, with another context and its own workspace, to sample on
       a thread beside others; up to `positions` tokens. It is destroyed before m. NULL: the engine
       uses all threads on its own. */
    dlrn_status (*fork)(lm_model *m, dlrn_context *ctx, int64_t positions, lm_model **out);
    /* The names of this model's sites, with commas between. NULL: it has all of LM_KIND_LIST. */
    dlrn_status (*site_names)(lm_model *m, char *out, size_t size);
    /* Calls list for each tensor. NULL: it reads files that dlrn_archive_open opens. */
    dlrn_status (*list_weights)(dlrn_context *ctx, const char *path, lm_list list, void *user);
};

/* The functions of a tokenizer. */
struct lm_tokenizer_kind {
    dlrn_status (*encode)(lm_tokenizer *t, const char *text, int64_t bytes, bpe_ids *out);
    dlrn_status (*decode)(lm_tokenizer *t, const int32_t *ids, int64_t n, bpe_text *out);
    int64_t (*vocab_size)(const lm_tokenizer *t);
    int (*is_special)(const lm_tokenizer *t, int32_t id);
    const char *(*token_bytes)(const lm_tokenizer *t, int32_t id, int64_t *bytes);
    void (*destroy)(lm_tokenizer *t);
};

#endif /* LM_H */

#ifdef LM_IMPLEMENTATION
#undef LM_IMPLEMENTATION

#include <limits.h>
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
/* Tokens of a run. On a Zen 4 the products reach full speed at 2048, and the workspace is still
   small. */
enum { LM_BATCH_TOKENS = 2048 };

/* Allocates rows x cols; NULL also if that overflows. */
static float *lm_floats(dlrn_context *ctx, int64_t rows, int64_t cols) {
    return cols && rows > INT64_MAX / cols ? NULL
                                           : (float *)dlrn_alloc(ctx, rows * cols, sizeof(float));
}

/* ------------------------------------------------------------------------------------------ */
// >>sites

#define LM_NAME(id, name, before) name,
static const char *const lm_kind_names[] = {LM_KIND_LIST(LM_NAME)};
static const char *const lm_io_names[] = {LM_IO_LIST(LM_NAME)};
#undef LM_NAME

/* The place of a name in a list; -1: none. */
static int lm_place_of(const char *name, const char *const *names, int n) {
    for (int k = 0; k < n; k++)
        if (!strcmp(name, names[k])) return k;
    return -1;
}

LM_API int lm_kind_named(const char *name) {
    return lm_place_of(name, lm_kind_names, LM_KIND_COUNT);
}

LM_API int lm_io_named(const char *name) {
    return lm_place_of(name, lm_io_names, LM_IO_COUNT);
}

LM_API const char *lm_tensor_named(const char *name) {
    return strncmp(name, "tensor:", 7) ? NULL : name + 7;
}

/* Whether two sites are one. */
static int lm_same_site(const lm_site *a, const lm_site *b) {
    return a->kind == b->kind && a->layer == b->layer && !strcmp(a->tensor, b->tensor);
}

/* A site of the list, its layer checked. For the engines. */
static dlrn_status lm_site_in_layer(const lm_model *m, lm_kind kind, int64_t layer, lm_site *out) {
    if (kind != LM_EMBED && (layer < 0 || layer >= m->cfg.layers))
        return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT,
                         "site %s: expected a layer from 0 to %lld, found %lld",
                         lm_kind_names[kind], (long long)m->cfg.layers - 1, (long long)layer);
    memset(out, 0, sizeof *out);
    out->kind = kind;
    out->layer = kind == LM_EMBED ? 0 : (int)layer;
    return DLRN_OK;
}

/* The input of a site's module: of an attention attn_in, of an MLP mlp_in, of a block the residual
   stream before it. attn_z and mlp_hidden are results within these modules: what leads to them
   begins at the module's input, too. */
static void lm_module_of(lm_site site, lm_site *in, lm_site *out) {
    if (site.kind == LM_MLP_IN) site.kind = LM_MLP_OUT; /* both name the MLP */
    if (site.kind == LM_ATTN_IN) site.kind = LM_ATTN_OUT;
    *in = *out = site;
    if (site.kind == LM_MLP_OUT || site.kind == LM_MLP_HIDDEN) in->kind = LM_MLP_IN;
    if (site.kind == LM_ATTN_OUT || site.kind == LM_ATTN_Z) in->kind = LM_ATTN_IN;
    if (site.kind == LM_RESID_OUT && site.layer > 0) in->layer = site.layer - 1;
    if (site.kind == LM_RESID_OUT && site.layer == 0) in->kind = LM_EMBED;
}

/* An engine may lack the input, or the output, of a module whose other end it has. */
LM_API dlrn_status lm_tap_at(lm_model *m, lm_site site, lm_io io, lm_tap *out) {
    lm_site from, to;
    if (io == LM_IO_OUT) {
        out->x = out->y = site;
        return DLRN_OK;
    }
    if (site.kind == LM_EMBED)
        return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT,
                         "site embed: its input is token ids: only --io out is possible");
    if (site.kind == LM_TENSOR)
        return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT,
                         "site tensor:%s: what leads to a tensor is not known: only --io out is "
                         "possible",
                         site.tensor);
    lm_module_of(site, &from, &to);
    LM_TRY(lm_site_named(m, lm_kind_names[from.kind], from.layer, &out->x));
    if (io == LM_IO_IN) to = from;
    return lm_site_named(m, lm_kind_names[to.kind], to.layer, &out->y);
}

/* ------------------------------------------------------------------------------------------ */
// >>engines

#include "lm_loops.h"

#include "lm_hf.h"
#ifdef LM_LLAMA
#include "lm_llama.h"
#endif

static const lm_engine *const lm_engines[] = {
    &hf_engine,
#ifdef LM_LLAMA
    &llama_engine,
#endif
};

LM_API int lm_is_gguf(dlrn_context *ctx, const char *path) {
    char magic[4] = {0};
    if (dlrn_file_exists(ctx, path) != 1) return 0;
    FILE *f = fopen(path, "rb");
    const size_t got = f ? fread(magic, 1, sizeof magic, f) : 0;
    const int bad = !f || ferror(f);
    if (f) fclose(f);
    if (bad) {
        (void)dlrn_fail(ctx, DLRN_ERR_IO, "%s: cannot be read", path);
        return -1;
    }
    return got == sizeof magic && !memcmp(magic, "GGUF", 4);
}

/* The engine of a path. */
static dlrn_status lm_choose_engine(dlrn_context *ctx, const char *path, const lm_engine **out) {
    for (size_t i = 0; i < sizeof lm_engines / sizeof *lm_engines; i++)
        if (lm_engines[i]->opens(ctx, path)) {
            *out = lm_engines[i];
            return DLRN_OK;
        }
    if (!dlrn_file_exists(ctx, path))
        return dlrn_fail(ctx, DLRN_ERR_IO, "%s: no such file or folder", path);
    const int is_gguf = lm_is_gguf(ctx, path);
    if (is_gguf < 0) return DLRN_ERR_IO;
    if (is_gguf)
        return dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED,
                         "%s: this program was built without llama.cpp, which runs GGUF files: "
                         "make LLAMA=PREFIX builds one with it",
                         path);
    return dlrn_fail(ctx, DLRN_ERR_FORMAT,
                     "%s: expected a model: a Hugging Face folder or a GGUF file, found another "
                     "file",
                     path);
}

LM_API dlrn_status lm_load(dlrn_context *ctx, const char *path, lm_model **out) {
    const lm_engine *engine = NULL;
    *out = NULL;
    LM_TRY(lm_choose_engine(ctx, path, &engine));
    LM_TRY(engine->load(ctx, path, out));
    (*out)->engine = engine;
    return DLRN_OK;
}

LM_API void lm_destroy(lm_model *m) {
    if (m) m->engine->destroy(m);
}

LM_API const lm_config *lm_config_of(const lm_model *m) {
    return &m->cfg;
}

LM_API dlrn_status lm_read_config(dlrn_context *ctx, const char *path, lm_config *out) {
    const lm_engine *engine = NULL;
    LM_TRY(lm_choose_engine(ctx, path, &engine));
    return engine->read_config(ctx, path, out);
}

LM_API dlrn_status lm_list_weights(dlrn_context *ctx, const char *path, lm_list list, void *user) {
    const lm_engine *engine = NULL;
    LM_TRY(lm_choose_engine(ctx, path, &engine));
    return engine->list_weights ? engine->list_weights(ctx, path, list, user) : DLRN_OK;
}

LM_API void lm_on_stop(lm_model *m, int (*asked)(void *user), void *user) {
    m->stop = asked;
    m->stop_user = user;
}

LM_API dlrn_status lm_site_named(lm_model *m, const char *name, int64_t layer, lm_site *out) {
    return m->engine->find_site(m, name, layer, out);
}

LM_API dlrn_status lm_site_names(lm_model *m, char *out, size_t size) {
    if (m->engine->site_names) return m->engine->site_names(m, out, size);
    size_t used = 0;
    for (int k = 0; k < LM_KIND_COUNT && used < size; k++)
        used += (size_t)snprintf(out + used, size - used, k ? ", %s" : "%s", lm_kind_names[k]);
    return DLRN_OK;
}

LM_API int64_t lm_site_width(const lm_model *m, lm_site site) {
    return m->engine->width(m, &site);
}

/* Ids and lengths of a batch behind `past` tokens of each sequence. */
static dlrn_status lm_check_batch(const lm_model *m, const lm_batch *b, int64_t past) {
    for (int64_t s = 0; s < b->sequences; s++) {
        const int64_t n = b->start[s + 1] - b->start[s];
        if (n < 0 || past + n > m->cfg.positions)
            return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT,
                             "sequence %lld: expected at most %lld tokens, found %lld",
                             (long long)s, (long long)m->cfg.positions, (long long)(past + n));
        for (int64_t k = 0; k < n; k++) {
            const int32_t id = b->id[b->start[s] + k];
            if (id < 0 || id >= m->cfg.vocab)
                return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT,
                                 "sequence %lld, token %lld: expected an id below %lld, "
                                 "found %d",
                                 (long long)s, (long long)k, (long long)m->cfg.vocab, (int)id);
        }
    }
    return DLRN_OK;
}

LM_API dlrn_status lm_run(lm_model *m, const lm_batch *batch, const lm_tap *taps, int n_taps,
                          lm_visit visit, void *user, int whole) {
    LM_TRY(lm_check_batch(m, batch, 0));
    m->is_whole = 0;
    LM_TRY(m->engine->run(m, batch, taps, n_taps, visit, user, whole));
    m->is_whole = whole != 0;
    return DLRN_OK;
}

/* What a run that ended early, or failed, has left is no basis for logits. */
static dlrn_status lm_check_whole(const lm_model *m) {
    if (m->is_whole) return DLRN_OK;
    return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT,
                     "logits: expected a whole run before, found none that ended");
}

LM_API dlrn_status lm_logits(lm_model *m, int64_t first, int64_t rows, float *logits) {
    LM_TRY(lm_check_whole(m));
    return m->engine->logits(m, first, rows, logits);
}

LM_API dlrn_status lm_cross_entropy(lm_model *m, const lm_batch *batch, double *nats,
                                    int64_t *tokens) {
    LM_TRY(lm_check_whole(m));
    return m->engine->cross_entropy(m, batch, nats, tokens);
}

/* ------------------------------------------------------------------------------------------ */
// >>unembedding

/* What a LayerNorm subtracts from a row. */
static double lm_row_mean(const lm_head *head, const float *x, int64_t d) {
    double sum = 0;
    if (strcmp(head->norm, "LayerNorm")) return 0;
    for (int64_t j = 0; j < d; j++) sum += (double)x[j];
    return sum / (double)d;
}

/* A row as the final norm passes it on, but for the division by its length. */
static void lm_weigh_row(const lm_head *head, const float *x, int64_t d, float *y) {
    const double mean = lm_row_mean(head, x, d);
    for (int64_t j = 0; j < d; j++)
        y[j] = (float)(((double)x[j] - mean) * (head->weight ? (double)head->weight[j] : 1));
}

LM_API dlrn_status lm_direct_logits(lm_model *m, const float *x, int64_t n, int plain,
                                    float *logits) {
    const int64_t d = m->cfg.dim;
    lm_head head;
    LM_TRY(m->engine->head(m, &head));
    if (n <= 0) return DLRN_OK;
    if (plain) return m->engine->unembed(m, x, n, logits);
    float *rows = lm_floats(m->ctx, n, d);
    if (!rows) return DLRN_ERR_MEMORY;
    for (int64_t i = 0; i < n; i++) lm_weigh_row(&head, x + i * d, d, rows + i * d);
    const dlrn_status s = m->engine->unembed(m, rows, n, logits);
    dlrn_free(m->ctx, rows);
    return s;
}

LM_API const char *lm_final_norm(lm_model *m) {
    lm_head head;
    return m->engine->head(m, &head) == DLRN_OK ? head.norm : "none";
}

LM_API dlrn_status lm_final_length(lm_model *m, const float *x, int64_t n, double *length) {
    const int64_t d = m->cfg.dim;
    lm_head head;
    LM_TRY(m->engine->head(m, &head));
    if (!head.is_product)
        return dlrn_fail(m->ctx, DLRN_ERR_UNSUPPORTED,
                         "final norm: expected logits that are a product with the unembedding, "
                         "found a scale or a soft-cap after it");
    for (int64_t i = 0; i < n; i++, x += d) {
        const double mean = lm_row_mean(&head, x, d);
        double square = 0;
        for (int64_t j = 0; j < d; j++) square += ((double)x[j] - mean) * ((double)x[j] - mean);
        length[i] = strcmp(head.norm, "none") ? sqrt(square / (double)d + head.eps) : 1;
    }
    return DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>tokenizer

LM_API dlrn_status lm_load_tokenizer(dlrn_context *ctx, const char *path, lm_tokenizer **out) {
    const lm_engine *engine = NULL;
    *out = NULL;
    LM_TRY(lm_choose_engine(ctx, path, &engine));
    return engine->load_tokenizer(ctx, path, out);
}

LM_API void lm_destroy_tokenizer(lm_tokenizer *t) {
    if (t) t->kind->destroy(t);
}

LM_API dlrn_status lm_encode(lm_tokenizer *t, const char *text, int64_t bytes, bpe_ids *out) {
    return t->kind->encode(t, text, bytes, out);
}

LM_API dlrn_status lm_decode(lm_tokenizer *t, const int32_t *ids, int64_t n, bpe_text *out) {
    return t->kind->decode(t, ids, n, out);
}

LM_API int64_t lm_vocab_size(const lm_tokenizer *t) {
    return t->kind->vocab_size(t);
}

LM_API int lm_is_special(const lm_tokenizer *t, int32_t id) {
    return t->kind->is_special(t, id);
}

LM_API const char *lm_token_bytes(const lm_tokenizer *t, int32_t id, int64_t *bytes) {
    return t->kind->token_bytes(t, id, bytes);
}

/* ------------------------------------------------------------------------------------------ */
// >>text

LM_API void lm_documents_free(lm_documents *d) {
    if (!d || !d->ctx) return;
    dlrn_free(d->ctx, d->id);
    dlrn_free(d->ctx, d->start);
    memset(d, 0, sizeof *d);
}

LM_API dlrn_status lm_next_ids(lm_tokenizer *tok, doc_reader *docs, bpe_ids *out) {
    const char *text = NULL;
    const int32_t *ready = NULL;
    int64_t n = 0;
    out->count = 0;
    while (out->count == 0 && !doc_has_ids(docs)) {
        LM_TRY(doc_next(docs, &text, &n));
        LM_TRY(lm_encode(tok, text, n, out));
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

LM_API dlrn_status lm_read_documents(const lm_model *m, lm_tokenizer *tok, doc_reader *docs,
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
                choice->special_of && (id == m->cfg.bos || lm_is_special(choice->special_of, id));
            kept[i] = i >= choice->skip_first && !special;
        }
        if (choice->max_norm_ratio > 0 && n)
            LM_TRY(lm_choose_short(m, choice->max_norm_ratio, x + (from - first) * d, n, d, kept));
        for (int64_t i = 0; i < n && choice->left_out; i++) *choice->left_out += !kept[i];
    }
    return DLRN_OK;
}

typedef enum lm_stage {
    LM_DONE,    /* its rows are there             */
    LM_READING, /* its documents are not all read */
    LM_WAITING  /* they are, but are not run yet  */
} lm_stage;

/* Where a run begins: the document of its first context, and that context's first row within the
   document. */
typedef struct lm_place {
    uint64_t document;
    int64_t row;
} lm_place;

/* The contexts of one run, and how many of their rows have been handed out. */
typedef struct lm_text {
    lm_model *m;
    lm_tokenizer *tok;
    doc_reader *docs;
    lm_reading how;
    lm_tap tap;
    bpe_ids ids;    /* of the document that was read last, ...            */
    int64_t taken;  /* ... and how many of them contexts were made of     */
    lm_place next;  /* where the next run begins; row: of a seek, the row to go to, while that
                       document is not read yet */
    lm_place first; /* where this one began */
    lm_documents batch;
    float *x, *y;        /* [row_cap][width] rows of the batch; y NULL without a target */
    unsigned char *keep; /* [row_cap] rows of the batch that count */
    int64_t row_cap, rows, given;
    int64_t skip;       /* rows of the next batch to leave out, after a seek */
    lm_stage stage;     /* of the batch */
    dlrn_status failed; /* told at the next read: rows came before it */
    dlrn_status later;  /* of the next document: the batch before it is handed out first */
} lm_text;

/* Bits of a position for the row. Split documents leave 39 bits for the place in the text, 550 GB:
   a document has at most 16 MB, so as many tokens, and with a bos token in each context of two at
   most twice as many rows. Others need room for the rows of a run. */
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

/* Whether the document that was read last has more rows than a run. */
static int lm_text_is_long(const lm_text *t) {
    const int64_t bos = t->how.bos != 0, fits = t->how.ctx_len - bos;
    if (!t->how.split) return 0;
    return t->ids.count + bos * ((t->ids.count + fits - 1) / fits) > LM_BATCH_TOKENS;
}

/* Whether the run is full. What a run is made of must not depend on where reading began, because
   with some engines the last bits of a row depend on the rest of its run, and a resumed training
   needs the same bits. So a run begins with a document, and holds whole ones; only a long document
   has runs of its own, each of as many rows. */
static int lm_text_is_full(const lm_text *t) {
    const int64_t rows = t->batch.count ? t->batch.start[t->batch.count] : 0;
    const int is_used = t->taken >= t->ids.count;
    if (rows == 0) return 0;
    if (!lm_text_is_long(t)) return is_used && rows >= LM_BATCH_TOKENS;
    return is_used || t->taken == 0 || rows >= LM_BATCH_TOKENS;
}

/* Reads the next document, if all of the last one is used. After a seek: that of the run to which
   the row belongs, whose first rows are left out. */
static dlrn_status lm_text_document(lm_text *t) {
    const int64_t len = t->how.ctx_len, run = (LM_BATCH_TOKENS + len - 1) / len * len;
    if (t->taken < t->ids.count) return DLRN_OK;
    const int64_t row = t->next.row;
    t->next.document = doc_position(t->docs);
    if (t->batch.count == 0) t->first = t->next;
    t->ids.count = t->taken = 0;
    dlrn_status s = lm_next_ids(t->tok, t->docs, &t->ids);
    if (s != DLRN_OK) {
        t->ids.count = 0;
        return s;
    }
    if (row == 0) return DLRN_OK; /* no seek */
    t->next.row = lm_text_is_long(t) ? row - row % run : 0;
    t->skip = row - t->next.row;
    t->taken = t->next.row / len * (len - (t->how.bos != 0));
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
    t->stage = LM_READING;
    t->first = t->next;
    while (!lm_text_is_full(t)) {
        dlrn_status s = lm_text_document(t);
        if (s != DLRN_OK && s != DLRN_END && b->count) t->later = s;
        if (s == DLRN_END || t->later != DLRN_OK) break;
        if (s != DLRN_OK) return s;
        if (b->count == 0) t->first = t->next;
        if (lm_text_is_full(t)) break; /* a long document has the next run */
        if (t->taken < t->ids.count) LM_TRY(lm_append(t->m, &t->how, &t->ids, &t->taken, b));
        t->next.row = t->taken < t->ids.count ? t->next.row + t->how.ctx_len : 0;
    }
    if (b->count == 0) return DLRN_END;
    t->stage = LM_WAITING;
    return DLRN_OK;
}

static dlrn_status lm_text_compute(lm_text *t) {
    lm_batch batch = {t->batch.id, t->batch.start, t->batch.count};
    LM_TRY(lm_run(t->m, &batch, &t->tap, 1, lm_keep_rows, t, 0));
    return lm_choose(t->m, &t->how.choice, &batch, t->x, lm_site_width(t->m, t->tap.x), t->keep);
}

/* Makes the next run, and runs it if is_run is 1. One that was stopped is repeated: its documents
   are kept. */
static dlrn_status lm_text_fill(lm_text *t, int is_run) {
    t->rows = t->given = 0;
    if (t->stage != LM_WAITING) LM_TRY(lm_text_batch(t));
    if (is_run) LM_TRY(lm_text_compute(t));
    t->rows = t->batch.start[t->batch.count];
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
            dlrn_status s = t->failed != DLRN_OK ? t->failed : lm_text_fill(t, 1);
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

/* The first document of the run that holds the next row, and the row, counted from there. */
static dlrn_status lm_text_position(void *user, uint64_t *position) {
    lm_text *t = (lm_text *)user;
    lm_place at = t->next;
    if (t->taken >= t->ids.count && t->later == DLRN_OK) at.document = doc_position(t->docs);
    if (t->stage != LM_DONE || t->given < t->rows) {
        at = t->first;
        at.row += t->stage != LM_DONE ? t->skip : t->given;
    }
    if (at.document >> (64 - lm_row_bits(t)))
        return dlrn_fail(t->m->ctx, DLRN_ERR_VALUE,
                         "text: a position beyond byte %llu cannot be saved",
                         (unsigned long long)at.document);
    *position = at.document << lm_row_bits(t) | (uint64_t)at.row;
    return DLRN_OK;
}

LM_API dlrn_status lm_text_next(dlrn_source *source, int is_run, lm_text_rows *out) {
    lm_text *t = (lm_text *)source->user;
    memset(out, 0, sizeof *out);
    dlrn_status s = t->failed != DLRN_OK ? t->failed : lm_text_fill(t, is_run);
    if (s != DLRN_OK && s != DLRN_END && s != DLRN_STOPPED) t->failed = s;
    if (s != DLRN_OK) return s;
    out->rows = t->rows - t->given;
    if (is_run) {
        out->x = t->x + t->given * lm_site_width(t->m, t->tap.x);
        out->y = t->y ? t->y + t->given * lm_site_width(t->m, t->tap.y) : NULL;
        out->keep = t->keep + t->given;
    }
    s = lm_text_position(t, &out->position);
    t->given = t->rows;
    return s;
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
    dlrn_free(ctx, t->keep);
    dlrn_free(ctx, t->x);
    dlrn_free(ctx, t->y);
    dlrn_free(ctx, t);
}

LM_API dlrn_status lm_text_source(lm_model *m, lm_tokenizer *tok, doc_reader *docs,
                                  const lm_reading *how, lm_tap tap, dlrn_source *out) {
    const int target = !lm_same_site(&tap.x, &tap.y);
    memset(out, 0, sizeof *out);
    if (how->ctx_len < 1 || how->ctx_len > m->cfg.positions ||
        how->ctx_len > ((int64_t)1 << LM_ROW_BITS) - 2 * LM_BATCH_TOKENS)
        return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT,
                         "ctx_len: expected 1 to the model's %lld positions, found %lld",
                         (long long)m->cfg.positions, (long long)how->ctx_len);
    lm_text *t = (lm_text *)dlrn_alloc(m->ctx, 1, sizeof *t);
    if (!t) return DLRN_ERR_MEMORY;
    memset(t, 0, sizeof *t);
    t->m = m, t->tok = tok, t->docs = docs, t->how = *how, t->tap = tap;
    t->row_cap = 2 * LM_BATCH_TOKENS + how->ctx_len; /* a run, and a document that is not long */
    t->x = lm_floats(m->ctx, t->row_cap, lm_site_width(m, tap.x));
    t->y = target ? lm_floats(m->ctx, t->row_cap, lm_site_width(m, tap.y)) : NULL;
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
    float *was = lm_floats(m->ctx, n, d), *rows = lm_floats(m->ctx, n, dx);
    dlrn_status s = was && rows ? DLRN_OK : DLRN_ERR_MEMORY;
    if (s == DLRN_OK) memcpy(was, y, (size_t)(n * d) * sizeof *y);
    if (s == DLRN_OK) memcpy(rows, x, (size_t)(n * dx) * sizeof *x); /* x may be y */
    if (s == DLRN_OK) s = e->edit.edit(e->edit.user, tap, x, y, n);
    if (s == DLRN_OK) s = lm_put_back(e, tap, rows, y, n, was);
    dlrn_free(m->ctx, was);
    dlrn_free(m->ctx, rows);
    return s;
}

/* The mean over all next tokens of all documents, in runs that bound memory. */
static dlrn_status lm_judge_cross_entropy(void *user, const dlrn_edit *edit, double *nats,
                                          int64_t *tokens) {
    lm_judge *j = (lm_judge *)user;
    const lm_documents *d = j->texts;
    lm_edit copy = {j, NULL, {NULL, NULL}};
    double sum = 0, part = 0;
    int64_t count = 0, n = 0;
    const int64_t most = j->model->whole_tokens ? j->model->whole_tokens : LM_BATCH_TOKENS;
    if (edit) copy.edit = *edit;
    for (int64_t i = 0, end; i < d->count; i = end) {
        for (end = i + 1; end < d->count && d->start[end + 1] - d->start[i] <= most;) end++;
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

/* ------------------------------------------------------------------------------------------ */
// >>sampling

/* Where the engine can fork, each worker samples a group of documents on its own: with a context
   of one thread, its own workspace, and the model's weights. A document has many small steps, so
   threads that share each step would mostly wait for each other (two threads, idle machine: 9,300
   tokens a second together, 12,000 apart; on a busy machine ten times less together). An edit may
   use all threads and sees all documents: there one worker runs the model. */
typedef struct lm_draw {
    lm_model *m;       /* the worker's fork, or the model   */
    dlrn_context *own; /* the fork's context; NULL: no fork */
    const lm_sampling *cfg;
    lm_width width;
    int64_t first, rows; /* documents [first, first + rows) of this group              */
    int64_t room, past;  /* documents of the largest group; tokens of each that have been run */
    float *logits;       /* [room][vocab], and 16 more: see lm_draw_from               */
    int64_t *kept;       /* [rows][top_k] the largest logits' tokens                      */
    int32_t *id;         /* [rows][tokens] drawn so far                                   */
    int64_t *length;     /* [rows] n, or -1 - n: ended after n                            */
    int32_t *next;       /* [rows] what goes in next                                      */
    int32_t *prompts;    /* [rows][prompt_len]                                            */
    int64_t *start;      /* [rows + 1]                                                    */
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

/* Draws from softmax(x / temperature) over the entries >= least. Overwrites x, up to a multiple of
   16 numbers. */
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
    const int64_t v = g->m->cfg.vocab;
    float *x = g->logits + i * v, least = -INFINITY, next_row[16];
    dlrn_rng rng = {c->seed, (uint64_t)(g->first + i), (uint64_t)g->step * 4};
    if (g->length[i] < 0) return DLRN_OK;
    for (int64_t k = 0; k < g->n_barred; k++) x[g->barred[k]] = -INFINITY;
    if (c->top_k > 0 && c->top_k < v) {
        int64_t *kept = g->kept + i * c->top_k;
        LM_TRY(dlrn_topk(g->m->ctx, x, v, c->top_k, kept, NULL));
        least = x[kept[c->top_k - 1]];
    }
    memcpy(next_row, x + v, sizeof next_row);
    int32_t id = c->temperature >= LM_COLDEST
                     ? lm_draw_from(g->width, x, v, c->temperature, least, &rng)
                     : lm_most_likely(x, v);
    memcpy(x + v, next_row, sizeof next_row);
    g->next[i] = id;
    if (id == c->stop)
        g->length[i] = -1 - g->length[i];
    else
        g->id[i * c->tokens + g->length[i]++] = id;
    return DLRN_OK;
}

/* Runs `each` ids of every document through the model; g->logits: those after its last token. */
static dlrn_status lm_advance(lm_draw *g, const int32_t *ids, int64_t each) {
    const lm_sampling *c = g->cfg;
    for (int64_t i = 0; i <= g->rows; i++) g->start[i] = i * each;
    const lm_batch batch = {ids, g->start, g->rows};
    LM_TRY(lm_check_batch(g->m, &batch, g->past));
    LM_TRY(g->m->engine->extend(g->m, &batch, c->taps, c->n_taps, c->visit, c->user, g->logits));
    g->past += each;
    return DLRN_OK;
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
    g->past = 0;
    g->m->is_whole = 0;
    LM_TRY(g->m->engine->begin(g->m, g->room, c->prompt_len + c->tokens));
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
    const int64_t kv = m->cfg.kv_heads * (m->cfg.dim / m->cfg.heads);
    int64_t each = m->cfg.vocab + 2 * m->cfg.layers * (c->prompt_len + c->tokens) * kv;
    int64_t group = ((int64_t)64 << 20) / each, most = LM_BATCH_TOKENS / c->prompt_len;
    int64_t share = (c->documents + workers - 1) / workers;
    group = group < most ? group : most;
    group = group < 128 ? group : 128;
    group = group < share ? group : share;
    return group > 1 ? group : 1;
}

/* Frees a worker, also one that was opened in part. */
static void lm_draw_close(lm_draw *g) {
    if (!g->m) {
        dlrn_context_destroy(g->own);
        return;
    }
    void *blocks[] = {g->logits, g->kept, g->id, g->length, g->next, g->start, g->prompts};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) dlrn_free(g->m->ctx, blocks[i]);
    if (g->own)
        lm_destroy(g->m);
    else
        (void)!g->m->engine->begin(g->m, 0, 0);
    dlrn_context_destroy(g->own);
}

/* Gives a worker the model, or a fork of it. */
static dlrn_status lm_draw_fork(lm_draw *g, lm_model *m, int fork) {
    dlrn_context_config own = {0};
    g->m = fork ? NULL : m;
    if (!fork) return DLRN_OK;
    own.threads = 1;
    own.kernels = dlrn_context_describe(m->ctx).kernels;
    if (dlrn_context_create(&own, &g->own) != DLRN_OK) return DLRN_ERR_MEMORY;
    return m->engine->fork(m, g->own, g->cfg->prompt_len + g->cfg->tokens, &g->m);
}

/* Makes a worker for groups of up to `rows` documents. */
static dlrn_status lm_draw_open(lm_draw *g, lm_model *m, const lm_sampling *cfg, int64_t rows,
                                int fork) {
    int64_t top = cfg->top_k > 0 && cfg->top_k < m->cfg.vocab ? cfg->top_k : 0;
    memset(g, 0, sizeof *g);
    g->cfg = cfg;
    g->room = rows;
    g->width = lm_width_of(m->ctx);
    LM_TRY(lm_draw_fork(g, m, fork));
    dlrn_context *ctx = g->m->ctx;
    g->logits = lm_floats(ctx, rows, m->cfg.vocab + 16);
    g->kept = (int64_t *)dlrn_alloc(ctx, rows * top, sizeof *g->kept);
    g->id = (int32_t *)dlrn_alloc(ctx, rows * cfg->tokens, sizeof *g->id);
    g->length = (int64_t *)dlrn_alloc(ctx, rows, sizeof *g->length);
    g->next = (int32_t *)dlrn_alloc(ctx, rows, sizeof *g->next);
    g->start = (int64_t *)dlrn_alloc(ctx, rows + 1, sizeof *g->start);
    g->prompts = (int32_t *)dlrn_alloc(ctx, rows * cfg->prompt_len, sizeof *g->prompts);
    return g->logits && g->kept && g->id && g->length && g->next && g->start && g->prompts
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
        if (g->own)
            dlrn_parallel_for(m->ctx, workers, lm_generate_task, g);
        else
            lm_generate_task(g, 0, 0); /* the engine uses the threads */
        for (int64_t w = 0; w < workers; w++) {
            if (g[w].status != DLRN_OK && !g[w].own) return g[w].status; /* the error is m's */
            if (g[w].status != DLRN_OK)
                return dlrn_fail(m->ctx, g[w].status, "%s", dlrn_error(g[w].own));
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
        count += id != cfg->stop && !lm_token_bytes(cfg->tokens_of, id, &length);
    if (count == m->cfg.vocab)
        return dlrn_fail(m->ctx, DLRN_ERR_VALUE,
                         "generate: expected a tokenizer with tokens for the model's %lld ids, "
                         "found none",
                         (long long)m->cfg.vocab);
    if (count == 0) return DLRN_OK;
    *barred = (int32_t *)dlrn_alloc(m->ctx, count, sizeof **barred);
    if (!*barred) return DLRN_ERR_MEMORY;
    for (int32_t id = 0; id < m->cfg.vocab; id++)
        if (id != cfg->stop && !lm_token_bytes(cfg->tokens_of, id, &length)) (*barred)[(*n)++] = id;
    return DLRN_OK;
}

LM_API dlrn_status lm_generate(lm_model *m, const lm_sampling *cfg, lm_emit emit, void *user) {
    if (cfg->prompt_len < 1 || cfg->tokens < 1 || cfg->tokens > m->cfg.positions - cfg->prompt_len)
        return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT,
                         "generate: expected a prompt and tokens, together at most the model's "
                         "%lld positions, found "
                         "%lld and %lld",
                         (long long)m->cfg.positions, (long long)cfg->prompt_len,
                         (long long)cfg->tokens);
    const int fork = m->engine->fork && !cfg->n_taps,
              threads = dlrn_context_describe(m->ctx).threads;
    const int64_t most = fork ? threads : 1;
    const int64_t workers = most < cfg->documents ? most : cfg->documents;
    if (workers < 1) return DLRN_OK;
    const int64_t rows = lm_group(m, cfg, workers);
    lm_draw *g = (lm_draw *)dlrn_alloc(m->ctx, workers, sizeof *g);
    if (!g) return DLRN_ERR_MEMORY;
    memset(g, 0, (size_t)workers * sizeof *g);
    int32_t *barred = NULL;
    int64_t n_barred = 0;
    dlrn_status s = lm_find_barred(m, cfg, &barred, &n_barred);
    for (int64_t w = 0; w < workers && s == DLRN_OK; w++) {
        s = lm_draw_open(&g[w], m, cfg, rows, fork);
        g[w].barred = barred, g[w].n_barred = n_barred;
    }
    if (s == DLRN_ERR_MEMORY) dlrn_fail(m->ctx, s, "generate: out of memory");
    if (s == DLRN_OK) s = lm_generate_rounds(m, g, workers, rows, emit, user);
    for (int64_t w = 0; w < workers; w++) lm_draw_close(&g[w]);
    dlrn_free(m->ctx, barred);
    dlrn_free(m->ctx, g);
    return s;
}

#if defined(__clang__)
#pragma STDC FP_CONTRACT DEFAULT
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif
#endif /* LM_IMPLEMENTATION */
