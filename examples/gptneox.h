/* gptneox.h - runs GPT-NeoX language models (Pythia and their kin) on dictlearn.h's matrix products
   - MIT licence

   Do this in one file, after dictlearn.h and the implementations of bpe.h and documents.h:

       #define GPTNEOX_IMPLEMENTATION
       #include "gptneox.h"

   It reads a Hugging Face folder as it is downloaded (config.json; model.safetensors or
   pytorch_model.bin, sharded or not; f32, f16 or bf16), hands out the activations of any site of
   any layer, lets them be changed on their way, and measures the cross-entropy that the change
   costs. It also samples text. Weights are read when a run first needs their layer, so activations
   of layer 3 cost four layers of memory and time, whatever the model's depth.

   A batch is ragged: its sequences stand one after the other, x [tokens][d], without padding, so
   nothing has to be masked or dropped. Every number of a token depends on its sequence alone, not
   on what else is in the batch.

   The model, one block (HF's GPTNeoXLayer; LN: layer norm, x: residual stream [tokens][d]):

       attn_in = LN1(x)    attn_out = dense(attention(qkv(attn_in)))
       parallel residual:  mlp_in = LN2(x)             mlp_out = down(act(up(mlp_in)))    x +=
   attn_out + mlp_out sequential:         mlp_in = LN2(x + attn_out)  mlp_out =
   down(act(up(mlp_in)))    x += attn_out + mlp_out

   CONTENTS
   >>interface  >>config  >>weights  >>workspace  >>loops  >>block  >>head  >>sampling  >>text
   >>judge
*/
#ifndef GPTNEOX_H
#define GPTNEOX_H

#include <stdint.h>

#ifdef __GNUC__
#define NEOX_API __attribute__((unused)) static
#else
#define NEOX_API static
#endif

/* ------------------------------------------------------------------------------------------ */
// >>interface

/* Sites, in the order in which a block passes them. attn_in is for `--io in`. */
typedef enum neox_kind {
    NEOX_EMBED,
    NEOX_ATTN_IN,
    NEOX_ATTN_OUT,
    NEOX_MLP_IN,
    NEOX_MLP_OUT,
    NEOX_RESID_OUT
} neox_kind;

typedef struct neox_site {
    neox_kind kind;
    int layer; /* 0 for the embedding */
} neox_site;

/* What a dictionary reads (x) and what it stands in for (y); the same site unless it stretches over
   a module. */
typedef struct neox_tap {
    neox_site x, y;
} neox_tap;

typedef enum neox_io { NEOX_IO_OUT, NEOX_IO_IN, NEOX_IO_IN_TO_OUT } neox_io;

typedef enum neox_activation { NEOX_GELU, NEOX_GELU_TANH, NEOX_RELU, NEOX_SILU } neox_activation;

typedef struct neox_config { /* config.json */
    int64_t dim, layers, heads, head_dim, inner, vocab, positions;
    int64_t rotary, rotary_span; /* of head_dim, how many dimensions turn (even); the span of their
                                    frequencies */
    double eps, theta, scaling;
    int parallel, tied, attention_bias;
    neox_activation activation;
    int32_t bos, eos; /* -1: none */
} neox_config;

typedef struct neox_model neox_model;

/* folder: borrowed. */
NEOX_API dlrn_status neox_load(dlrn_context *ctx, const char *folder, neox_model **out);
NEOX_API void neox_destroy(neox_model *m); /* NULL is fine */
NEOX_API const neox_config *neox_config_of(const neox_model *m);
/* asked(user) is called between layers, on any thread: non-zero ends what runs with DLRN_STOPPED.
   NULL: never. A source of activations that was stopped loses no row. */
NEOX_API void neox_on_stop(neox_model *m, int (*asked)(void *user), void *user);

/* "resid_out" and a layer to a site; checked against the model. */
NEOX_API dlrn_status neox_site_named(const neox_model *m, const char *name, int64_t layer,
                                     neox_site *out);
/* What a dictionary at this site reads and gives: out: the site itself; in: what its module reads;
   in_to_out: both. */
NEOX_API dlrn_status neox_tap_at(const neox_model *m, neox_site site, neox_io io, neox_tap *out);

/* Sequence i holds tokens id[start[i]] .. id[start[i + 1] - 1]; start[0] need not be 0. All
   borrowed. */
typedef struct neox_batch {
    const int32_t *id;
    const int64_t *start; /* [sequences + 1] */
    int64_t sequences;
} neox_batch;

/* Called when tap's y is reached: x [n][d] what is read there, y [n][d] what the model goes on
   with, may be overwritten; x == y for a tap of one site. */
typedef dlrn_status (*neox_visit)(void *user, int tap, const float *x, float *y, int64_t n);

/* Runs the model over a batch. whole: to the last layer norm, as neox_logits and neox_cross_entropy
   need it; else it stops after the last tap. */
NEOX_API dlrn_status neox_run(neox_model *m, const neox_batch *batch, const neox_tap *taps,
                              int n_taps, neox_visit visit, void *user, int whole);
/* After a whole run: logits [rows][vocab] of its tokens [first, first + rows). */
NEOX_API dlrn_status neox_logits(neox_model *m, int64_t first, int64_t rows, float *logits);
/* After a whole run of this batch: sum over sequences of -log p(next token), and how many tokens
   that were. */
NEOX_API dlrn_status neox_cross_entropy(neox_model *m, const neox_batch *batch, double *nats,
                                        int64_t *tokens);

typedef struct neox_sampling {
    int64_t documents, tokens; /* how many; the most tokens of one, without the prompt */
    double temperature;        /* 0, or below 1e-9: the likeliest token                */
    int64_t top_k;             /* 0: all                                               */
    uint64_t seed;
    const int32_t *prompt; /* [prompt_len >= 1], borrowed */
    int64_t prompt_len;
    int32_t stop; /* ends a document, and is not part of it; -1: none */
} neox_sampling;
/* Called once a document, in order: its new tokens id [n]. */
typedef dlrn_status (*neox_emit)(void *user, int64_t document, const int32_t *id, int64_t n);
/* Document i depends on seed and i alone. */
NEOX_API dlrn_status neox_generate(neox_model *m, const neox_sampling *cfg, neox_emit emit,
                                   void *user);

/* Token ids of documents, ragged. Zero-initialise; freed with neox_documents_free. */
typedef struct neox_documents {
    int32_t *id;
    int64_t *start; /* [count + 1] */
    int64_t count, id_cap, start_cap;
    dlrn_context *ctx;
} neox_documents;

typedef struct neox_reading { /* how a text becomes token ids */
    int64_t ctx_len;          /* documents are cut to so many tokens */
    int bos;                  /* 1: each begins with the model's bos token */
} neox_reading;

/* Up to `limit` further documents (-1: all) that have tokens, appended. DLRN_END if there was none.
 */
NEOX_API dlrn_status neox_read_documents(const neox_model *m, bpe_tokenizer *tok, doc_reader *docs,
                                         const neox_reading *how, int64_t limit,
                                         neox_documents *out);
NEOX_API void neox_documents_free(neox_documents *d);

/* A source of activations at a tap for the library's buffer: rows in the order of the text.
   Everything is borrowed; destroy the source before them. Seekable; a text on standard input goes
   forward alone. An error stays until a seek: after DLRN_ERR_MEMORY, to its position, and no row is
   lost. */
NEOX_API dlrn_status neox_text_source(neox_model *m, bpe_tokenizer *tok, doc_reader *docs,
                                      const neox_reading *how, neox_tap tap, dlrn_source *out);

/* The same documents, judged: a language model for the library's evaluation. */
typedef struct neox_judge {
    neox_model *model;           /* borrowed          */
    const neox_documents *texts; /* borrowed          */
    const neox_tap *taps;        /* [n_taps] borrowed */
    int n_taps;
} neox_judge;
/* judge is borrowed and must outlive *out. */
NEOX_API void neox_language_model(neox_judge *judge, dlrn_language_model *out);

#endif /* GPTNEOX_H */

#ifdef GPTNEOX_IMPLEMENTATION
#undef GPTNEOX_IMPLEMENTATION

#include <math.h>
#include <stdio.h>
#include <string.h>

#define NEOX_TRY(call)                                                                             \
    do {                                                                                           \
        dlrn_status neox_s = (call);                                                               \
        if (neox_s != DLRN_OK) return neox_s;                                                      \
    } while (0)

enum {
    NEOX_ROWS = 16,    /* rows of a parallel task    */
    NEOX_QUERIES = 32, /* that look at the keys together: one product */
    NEOX_BATCH_TOKENS =
        2048, /* of a run: the products are at full speed, and the workspace is still small */
    NEOX_TILE_ROWS =
        1024, /* of a tile of a product: small enough for the caches, and what follows is    */
    NEOX_TILE = 192, /* done while it is there. A 70m trunk: 1.2 times the speed of whole ones */
    NEOX_PART = 16 * NEOX_TILE /* of the vocabulary that a task takes */
};

/* A layer's tensors, in this order; shapes in neox_shapes. */
enum {
    NEOX_LN1_W,
    NEOX_LN1_B,
    NEOX_QKV_W,
    NEOX_QKV_B,
    NEOX_DENSE_W,
    NEOX_DENSE_B,
    NEOX_LN2_W,
    NEOX_LN2_B,
    NEOX_UP_W,
    NEOX_UP_B,
    NEOX_DOWN_W,
    NEOX_DOWN_B,
    NEOX_PARTS
};
static const char *const neox_part_names[NEOX_PARTS] = {
    "input_layernorm.weight",           "input_layernorm.bias",
    "attention.query_key_value.weight", "attention.query_key_value.bias",
    "attention.dense.weight",           "attention.dense.bias",
    "post_attention_layernorm.weight",  "post_attention_layernorm.bias",
    "mlp.dense_h_to_4h.weight",         "mlp.dense_h_to_4h.bias",
    "mlp.dense_4h_to_h.weight",         "mlp.dense_4h_to_h.bias",
};

typedef enum neox_width {
    NEOX_NARROW,
    NEOX_AVX2,
    NEOX_AVX512
} neox_width; /* of vectors, for the room loops */

typedef struct neox_layer {
    float *part[NEOX_PARTS]; /* all NULL until the layer is first needed; one block, at part[0] */
} neox_layer;

/* Keys and values of tokens already seen, for sampling: k
   [layers][sequences][heads][head_dim][capacity], so that one query's scores are sums of rows; v
   [layers][sequences][heads][capacity][head_dim]. */
typedef struct neox_cache {
    float *k, *v;
    int64_t sequences, capacity,
        past; /* capacity: as neox_row_of has it; past: tokens of every sequence in it */
} neox_cache;

struct neox_model {
    dlrn_context *ctx;
    neox_config cfg;
    dlrn_archive *archive;
    const char *prefix; /* of tensor names: "gpt_neox." or "" */
    neox_width width;
    neox_layer *layer; /* [layers] */
    float *embed, *unembed, *final_w, *final_b;
    float *turn;       /* [turn_rows][rotary / 2][2]: cosine, sine of each position */
    int64_t turn_rows; /* as the longest sequence so far needs, not as config.json promises */
    int (*stop)(void *user);
    void *stop_user;
    /* workspace of one run */
    int64_t capacity, tokens;
    float *x, *a, *qkv, *att, *mlp, *h; /* [capacity] rows of d, d, 3d, d, d, inner */
    int64_t *sequence, *position;       /* [capacity] of each token                 */
    float **captured;                   /* [n_captured] x of taps, [capacity][d]    */
    int n_captured;
    float *scores; /* [threads][NEOX_QUERIES + head_dim][score_row]: scores, and the keys turned on
                      their side */
    float *work;   /* [threads][DLRN_GEMM_WORK] */
    int64_t score_row; /* of this run: its longest sequence, as neox_row_of has it */
    int64_t score_cap; /* the longest row that there is room for                   */
};

/* ------------------------------------------------------------------------------------------ */
// >>config

static dlrn_status neox_count(dlrn_context *ctx, const dlrn_json *json, const char *path,
                              const char *key, int64_t least, int64_t most, int64_t *out) {
    double v = dlrn_json_number(json, key, -1);
    const dlrn_json *value = dlrn_json_get(json, key);
    if (!(v >= (double)least && v <= (double)most) || v != floor(v))
        return dlrn_fail(ctx, DLRN_ERR_FORMAT,
                         "%s: %s: expected a whole number from %lld to %lld, found %.40s", path,
                         key, (long long)least, (long long)most,
                         !value                            ? "none"
                         : value->type == DLRN_JSON_NUMBER ? value->text
                                                           : "another value");
    *out = (int64_t)v;
    return DLRN_OK;
}

/* The id of a special token; -1: there is none, or a list of them. */
static dlrn_status neox_token(dlrn_context *ctx, const dlrn_json *json, const char *path,
                              const char *key, int64_t most, int32_t *out) {
    int64_t id = -1;
    if (dlrn_json_number(json, key, -1) != -1)
        NEOX_TRY(neox_count(ctx, json, path, key, 0, most, &id));
    *out = (int32_t)id;
    return DLRN_OK;
}

static int neox_true(const dlrn_json *json, const char *key, int otherwise) {
    return dlrn_json_number(json, key, otherwise) != 0;
}

static dlrn_status neox_parse_activation(dlrn_context *ctx, const dlrn_json *json, const char *path,
                                         neox_activation *out) {
    static const struct {
        const char *name;
        neox_activation kind;
    } known[] = {{"gelu", NEOX_GELU},           {"gelu_new", NEOX_GELU_TANH},
                 {"gelu_fast", NEOX_GELU_TANH}, {"gelu_pytorch_tanh", NEOX_GELU_TANH},
                 {"relu", NEOX_RELU},           {"silu", NEOX_SILU},
                 {"swish", NEOX_SILU}};
    const char *name = dlrn_json_text(json, "hidden_act", "gelu");
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(name, known[i].name)) {
            *out = known[i].kind;
            return DLRN_OK;
        }
    return dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED,
                     "%s: hidden_act: expected a gelu, relu or silu, found %s", path, name);
}

/* The older keys (rotary_pct, rotary_emb_base) and the newer ones (rope_parameters, rope_scaling).
 */
static dlrn_status neox_parse_rotary(dlrn_context *ctx, const dlrn_json *json, const char *path,
                                     neox_config *c) {
    double share = dlrn_json_number(json, "rotary_pct", 0.25);
    share = dlrn_json_number(json, "partial_rotary_factor", share);
    share = dlrn_json_number(json, "rope_parameters.partial_rotary_factor", share);
    c->theta = dlrn_json_number(json, "rotary_emb_base", 10000);
    c->theta = dlrn_json_number(json, "rope_theta", c->theta);
    c->theta = dlrn_json_number(json, "rope_parameters.rope_theta", c->theta);
    c->scaling = 1;
    static const char *const blocks[2] = {"rope_parameters", "rope_scaling"};
    for (int i = 0; i < 2; i++) {
        const dlrn_json *block = dlrn_json_get(json, blocks[i]);
        const char *type =
            dlrn_json_text(block, "rope_type", dlrn_json_text(block, "type", "default"));
        if (!strcmp(type, "linear"))
            c->scaling = dlrn_json_number(block, "factor", 1);
        else if (strcmp(type, "default"))
            return dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED,
                             "%s: %s: expected rope_type default or linear, found %s", path,
                             blocks[i], type);
    }
    if (!(share > 0 && share <= 1) || !(c->theta > 0) || !(c->scaling > 0))
        return dlrn_fail(ctx, DLRN_ERR_FORMAT,
                         "%s: rotary embedding: expected a share in (0, 1] and a positive base, "
                         "found %g and %g",
                         path, share, c->theta);
    c->rotary_span = (int64_t)((double)c->head_dim * share);
    c->rotary = (c->rotary_span + 1) / 2 * 2; /* an odd span turns one more, as in HF's tables */
    if (c->rotary > c->head_dim)
        return dlrn_fail(ctx, DLRN_ERR_FORMAT,
                         "%s: rotary embedding: expected at most the head's %lld dimensions, "
                         "found %lld",
                         path, (long long)c->head_dim, (long long)c->rotary);
    return DLRN_OK;
}

static dlrn_status neox_parse_config(dlrn_context *ctx, const dlrn_json *json, const char *path,
                                     neox_config *c) {
    const char *type = dlrn_json_text(json, "model_type", "none");
    if (strcmp(type, "gpt_neox"))
        return dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED, "%s: model_type: expected gpt_neox, found %s",
                         path, type);
    NEOX_TRY(neox_count(ctx, json, path, "hidden_size", 1, 1 << 20, &c->dim));
    NEOX_TRY(neox_count(ctx, json, path, "num_hidden_layers", 1, 1 << 14, &c->layers));
    NEOX_TRY(neox_count(ctx, json, path, "num_attention_heads", 1, 1 << 14, &c->heads));
    NEOX_TRY(neox_count(ctx, json, path, "intermediate_size", 1, 1 << 22, &c->inner));
    NEOX_TRY(neox_count(ctx, json, path, "vocab_size", 1, 1 << 24, &c->vocab));
    NEOX_TRY(neox_count(ctx, json, path, "max_position_embeddings", 1, 1 << 22, &c->positions));
    if (c->dim % c->heads)
        return dlrn_fail(ctx, DLRN_ERR_FORMAT,
                         "%s: expected hidden_size divisible by num_attention_heads, found %lld "
                         "and %lld",
                         path, (long long)c->dim, (long long)c->heads);
    c->head_dim = c->dim / c->heads;
    c->eps = dlrn_json_number(json, "layer_norm_eps", 1e-5);
    if (!(c->eps >= 0 && c->eps <= 1))
        return dlrn_fail(ctx, DLRN_ERR_FORMAT,
                         "%s: layer_norm_eps: expected a number from 0 to 1, found %g", path,
                         c->eps);
    c->parallel = neox_true(json, "use_parallel_residual", 1);
    c->tied = neox_true(json, "tie_word_embeddings", 0);
    c->attention_bias = neox_true(json, "attention_bias", 1);
    NEOX_TRY(neox_token(ctx, json, path, "bos_token_id", c->vocab - 1, &c->bos));
    /* an eos that is never drawn does no harm */
    NEOX_TRY(neox_token(ctx, json, path, "eos_token_id", INT32_MAX, &c->eos));
    NEOX_TRY(neox_parse_rotary(ctx, json, path, c));
    return neox_parse_activation(ctx, json, path, &c->activation);
}

static dlrn_status neox_read_config(dlrn_context *ctx, const char *folder, neox_config *c) {
    char path[4200], *text = NULL;
    size_t size = 0;
    dlrn_json *json = NULL;
    snprintf(path, sizeof path, "%s/config.json", folder);
    NEOX_TRY(dlrn_file_read(ctx, path, &text, &size));
    dlrn_status s = dlrn_json_parse(ctx, text, size, path, &json);
    if (s == DLRN_OK) s = neox_parse_config(ctx, json, path, c);
    dlrn_json_free(ctx, json);
    dlrn_free(ctx, text);
    return s;
}

NEOX_API const neox_config *neox_config_of(const neox_model *m) {
    return &m->cfg;
}

/* ------------------------------------------------------------------------------------------ */
// >>weights

static void neox_shapes(const neox_config *c, int part, int64_t *rows, int64_t *cols) {
    const int64_t d = c->dim, h = c->inner;
    const int64_t shape[NEOX_PARTS][2] = {{d, 1}, {d, 1}, {3 * d, d}, {3 * d, 1}, {d, d}, {d, 1},
                                          {d, 1}, {d, 1}, {h, d},     {h, 1},     {d, h}, {d, 1}};
    *rows = shape[part][0];
    *cols = shape[part][1];
}

/* The tensor's index, or -1 with the text set: not there, or of another shape. cols 1: a vector. */
static int64_t neox_find(neox_model *m, const char *name, int64_t rows, int64_t cols) {
    const char *path = dlrn_archive_path(m->archive);
    int64_t index = dlrn_archive_find(m->archive, name);
    const dlrn_tensor_info *t = index >= 0 ? dlrn_archive_info(m->archive, index) : NULL;
    if (!t) {
        dlrn_fail(m->ctx, DLRN_ERR_FORMAT, "%s: %s: expected a tensor of this name, found none",
                  path, name);
        return -1;
    }
    if (t->ndim != (cols > 1 ? 2 : 1) || t->shape[0] != rows || (cols > 1 && t->shape[1] != cols)) {
        dlrn_fail(m->ctx, DLRN_ERR_SHAPE,
                  "%s: %s: expected %lld x %lld, found %d dimensions, %lld x %lld", path, name,
                  (long long)rows, (long long)cols, t->ndim,
                  (long long)(t->ndim > 0 ? t->shape[0] : 1),
                  (long long)(t->ndim > 1 ? t->shape[1] : 1));
        return -1;
    }
    return index;
}

static int neox_is_absent(const neox_config *c, int part) {
    return !c->attention_bias && (part == NEOX_QKV_B || part == NEOX_DENSE_B);
}

static void neox_part_name(const neox_model *m, int64_t layer, int part, char *name, size_t size) {
    snprintf(name, size, "%slayers.%lld.%s", m->prefix, (long long)layer, neox_part_names[part]);
}

/* All tensors are there and have their shapes: said when the model is opened, not when a layer is
   first needed. */
static dlrn_status neox_check_layers(neox_model *m) {
    char name[160];
    int64_t rows, cols;
    for (int64_t l = 0; l < m->cfg.layers; l++)
        for (int p = 0; p < NEOX_PARTS; p++) {
            if (neox_is_absent(&m->cfg, p)) continue;
            neox_part_name(m, l, p, name, sizeof name);
            neox_shapes(&m->cfg, p, &rows, &cols);
            if (neox_find(m, name, rows, cols) < 0) return DLRN_ERR_FORMAT;
        }
    return DLRN_OK;
}

/* As a dictionary's: with one that is not, all that the model says would be none. */
static dlrn_status neox_read_finite(neox_model *m, int64_t index, const char *name, int64_t n,
                                    float *out) {
    NEOX_TRY(dlrn_archive_read(m->archive, index, out));
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(out[i]))
            return dlrn_fail(m->ctx, DLRN_ERR_VALUE,
                             "%s: %s: element %lld: expected a finite number, found %g",
                             dlrn_archive_path(m->archive), name, (long long)i, (double)out[i]);
    return DLRN_OK;
}

static dlrn_status neox_need_layer(neox_model *m, int64_t l) {
    neox_layer *layer = &m->layer[l];
    char name[160];
    int64_t rows, cols, total = 0;
    if (layer->part[0]) return DLRN_OK;
    for (int p = 0; p < NEOX_PARTS; p++) {
        neox_shapes(&m->cfg, p, &rows, &cols);
        total += rows * cols;
    }
    float *block = (float *)dlrn_alloc(m->ctx, total, sizeof *block), *at = block;
    if (!block) return DLRN_ERR_MEMORY;
    for (int p = 0; p < NEOX_PARTS; p++) {
        neox_shapes(&m->cfg, p, &rows, &cols);
        neox_part_name(m, l, p, name, sizeof name);
        dlrn_status s = DLRN_OK;
        if (neox_is_absent(&m->cfg, p))
            memset(at, 0, (size_t)rows * sizeof *at);
        else
            s = neox_read_finite(m, dlrn_archive_find(m->archive, name), name, rows * cols, at);
        if (s != DLRN_OK) {
            dlrn_free(m->ctx, block);
            memset(layer, 0, sizeof *layer);
            return s;
        }
        layer->part[p] = at;
        at += rows * cols;
    }
    return DLRN_OK;
}

static dlrn_status neox_read_matrix(neox_model *m, const char *prefix, const char *base,
                                    int64_t rows, int64_t cols, float **out) {
    char name[160];
    if (*out) return DLRN_OK;
    snprintf(name, sizeof name, "%s%s", prefix, base);
    int64_t index = neox_find(m, name, rows, cols);
    if (index < 0) return DLRN_ERR_FORMAT;
    float *block = (float *)dlrn_alloc(m->ctx, rows * cols, sizeof *block);
    if (!block) return DLRN_ERR_MEMORY;
    dlrn_status s = neox_read_finite(m, index, name, rows * cols, block);
    if (s != DLRN_OK) {
        dlrn_free(m->ctx, block);
        return s;
    }
    *out = block;
    return DLRN_OK;
}

/* What only logits need. A model saved without its head (embed_out) can still give activations. */
static dlrn_status neox_need_head(neox_model *m) {
    const neox_config *c = &m->cfg;
    NEOX_TRY(neox_read_matrix(m, m->prefix, "final_layer_norm.weight", c->dim, 1, &m->final_w));
    NEOX_TRY(neox_read_matrix(m, m->prefix, "final_layer_norm.bias", c->dim, 1, &m->final_b));
    const char *name = dlrn_archive_find(m->archive, "lm_head.weight") >= 0 ? "lm_head.weight"
                                                                            : "embed_out.weight";
    if (!c->tied) return neox_read_matrix(m, "", name, c->vocab, c->dim, &m->unembed);
    m->unembed = m->embed;
    return DLRN_OK;
}

/* The folder's weights, in the order in which transformers looks for them. */
static dlrn_status neox_open_weights(neox_model *m, const char *folder) {
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json",
                                        "pytorch_model.bin", "pytorch_model.bin.index.json"};
    char path[4200];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        if (dlrn_file_exists(m->ctx, path) == 1)
            return dlrn_archive_open(m->ctx, path, &m->archive);
    }
    return dlrn_fail(
        m->ctx, DLRN_ERR_IO,
        "%s: expected model.safetensors or pytorch_model.bin (or their .index.json), found none",
        folder);
}

/* Room for `need` of something for each position: grows by doubling, to as many as the model has.
 */
static int64_t neox_wider(int64_t have, int64_t need, int64_t most) {
    int64_t wide = 2 * have > need ? 2 * have : need;
    return wide < most ? wide : most;
}

/* cos and sin of position * theta^(-2 i / rotary_span), as HF's rotary embedding tables have them,
   of the first `need` <= cfg.positions. */
static dlrn_status neox_need_turns(neox_model *m, int64_t need) {
    const int64_t half = m->cfg.rotary / 2, rows = neox_wider(m->turn_rows, need, m->cfg.positions);
    if (need <= m->turn_rows) return DLRN_OK;
    float *turn = (float *)dlrn_alloc(m->ctx, rows * half * 2 + 1, sizeof *turn);
    if (!turn) return DLRN_ERR_MEMORY;
    for (int64_t i = 0; i < half; i++) {
        double rate =
            pow(m->cfg.theta, -2.0 * (double)i / (double)m->cfg.rotary_span) / m->cfg.scaling;
        for (int64_t p = 0; p < rows; p++) {
            double angle = (double)((float)p * (float)rate); /* the reference multiplies in f32 */
            turn[(p * half + i) * 2] = (float)cos(angle);
            turn[(p * half + i) * 2 + 1] = (float)sin(angle);
        }
    }
    dlrn_free(m->ctx, m->turn);
    m->turn = turn;
    m->turn_rows = rows;
    return DLRN_OK;
}

static neox_width neox_width_of(const char *kernels) {
    if (!strncmp(kernels, "avx512", 6)) return NEOX_AVX512;
    return strcmp(kernels, "avx2") ? NEOX_NARROW : NEOX_AVX2;
}

NEOX_API dlrn_status neox_load(dlrn_context *ctx, const char *folder, neox_model **out) {
    neox_config cfg;
    *out = NULL;
    NEOX_TRY(neox_read_config(ctx, folder, &cfg));
    neox_model *m = (neox_model *)dlrn_alloc(ctx, 1, sizeof *m);
    if (!m) return DLRN_ERR_MEMORY;
    memset(m, 0, sizeof *m);
    m->ctx = ctx;
    m->cfg = cfg;
    m->width = neox_width_of(dlrn_kernels(ctx));
    dlrn_status s = neox_open_weights(m, folder);
    if (s == DLRN_OK)
        m->prefix = dlrn_archive_find(m->archive, "embed_in.weight") >= 0 ? "" : "gpt_neox.";
    if (s == DLRN_OK) s = neox_check_layers(m);
    if (s == DLRN_OK) {
        m->layer = (neox_layer *)dlrn_alloc(ctx, cfg.layers, sizeof *m->layer);
        s = m->layer ? DLRN_OK : DLRN_ERR_MEMORY;
    }
    if (s == DLRN_OK) memset(m->layer, 0, (size_t)cfg.layers * sizeof *m->layer);
    if (s == DLRN_OK)
        s = neox_read_matrix(m, m->prefix, "embed_in.weight", cfg.vocab, cfg.dim, &m->embed);
    if (s != DLRN_OK) {
        neox_destroy(m);
        return s;
    }
    *out = m;
    return DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>workspace

static void neox_forget_workspace(neox_model *m) {
    m->x = m->a = m->qkv = m->att = m->mlp = m->h = m->scores = m->work = NULL;
    m->sequence = m->position = NULL;
    m->captured = NULL;
    m->capacity = m->score_cap = m->n_captured = 0;
}

static void neox_drop_workspace(neox_model *m) {
    void *blocks[] = {m->x, m->a,        m->qkv,      m->att,    m->mlp,
                      m->h, m->sequence, m->position, m->scores, m->work};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) dlrn_free(m->ctx, blocks[i]);
    for (int t = 0; t < m->n_captured; t++) dlrn_free(m->ctx, m->captured[t]);
    dlrn_free(m->ctx, m->captured);
    neox_forget_workspace(m);
}

NEOX_API void neox_on_stop(neox_model *m, int (*asked)(void *user), void *user) {
    m->stop = asked;
    m->stop_user = user;
}

NEOX_API void neox_destroy(neox_model *m) {
    if (!m) return;
    neox_drop_workspace(m);
    for (int64_t l = 0; m->layer && l < m->cfg.layers; l++) dlrn_free(m->ctx, m->layer[l].part[0]);
    if (m->unembed != m->embed) dlrn_free(m->ctx, m->unembed);
    void *blocks[] = {m->layer, m->embed, m->final_w, m->final_b, m->turn};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) dlrn_free(m->ctx, blocks[i]);
    dlrn_archive_close(m->archive);
    dlrn_free(m->ctx, m);
}

static float *neox_floats(neox_model *m, int64_t rows, int64_t cols) {
    return cols && rows > INT64_MAX / cols
               ? NULL
               : (float *)dlrn_alloc(m->ctx, rows * cols, sizeof(float));
}

/* Room for n positions: whole vectors, and an odd number of them, since rows a power of two apart
   share their sets of the cache. */
static int64_t neox_row_of(int64_t n) {
    return ((n + 15) / 16 | 1) * 16;
}

static dlrn_status neox_reserve(neox_model *m, int64_t tokens) {
    const int64_t d = m->cfg.dim;
    if (tokens <= m->capacity) return DLRN_OK;
    neox_drop_workspace(m);
    m->x = neox_floats(m, tokens, d);
    m->a = neox_floats(m, tokens, d);
    m->qkv = neox_floats(m, tokens, 3 * d);
    m->att = neox_floats(m, tokens, d);
    m->mlp = neox_floats(m, tokens, d);
    m->h = neox_floats(m, tokens, m->cfg.inner);
    m->sequence = (int64_t *)dlrn_alloc(m->ctx, tokens, sizeof *m->sequence);
    m->position = (int64_t *)dlrn_alloc(m->ctx, tokens, sizeof *m->position);
    m->work = neox_floats(m, dlrn_threads(m->ctx), DLRN_GEMM_WORK);
    if (!m->x || !m->a || !m->qkv || !m->att || !m->mlp || !m->h || !m->sequence || !m->position ||
        !m->work) {
        neox_drop_workspace(m);
        return DLRN_ERR_MEMORY;
    }
    m->capacity = tokens;
    return DLRN_OK;
}

/* Scores of sequences of up to `positions` tokens. */
static dlrn_status neox_reserve_scores(neox_model *m, int64_t positions) {
    m->score_row = neox_row_of(positions);
    if (m->score_row <= m->score_cap) return DLRN_OK;
    int64_t wide = neox_wider(m->score_cap, m->score_row, neox_row_of(m->cfg.positions));
    dlrn_free(m->ctx, m->scores);
    m->score_cap = 0;
    m->scores = neox_floats(m, dlrn_threads(m->ctx) * (NEOX_QUERIES + m->cfg.head_dim), wide);
    if (!m->scores) return DLRN_ERR_MEMORY;
    m->score_cap = wide;
    return DLRN_OK;
}

/* Room for the x of taps whose y comes later. */
static dlrn_status neox_reserve_captures(neox_model *m, int n) {
    if (n <= m->n_captured) return DLRN_OK;
    float **wide = (float **)dlrn_alloc(m->ctx, n, sizeof *wide);
    if (!wide) return DLRN_ERR_MEMORY;
    for (int t = 0; t < m->n_captured; t++) wide[t] = m->captured[t];
    dlrn_free(m->ctx, m->captured);
    m->captured = wide;
    while (m->n_captured < n) {
        float *rows = neox_floats(m, m->capacity, m->cfg.dim);
        if (!rows) return DLRN_ERR_MEMORY;
        m->captured[m->n_captured++] = rows;
    }
    return DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>loops
/* Loops over blocks of 16 numbers, without a branch, which compilers turn into vectors. Each stands
   here once, as a body, and is compiled for every width of vectors; the model takes the width of
   its context's kernels. The operations and their order are the same for all, and so are the bits,
   as long as the compiler fuses no multiplications with additions: gcc with -std=c99 or
   -ffp-contract=off. */

#if defined(__GNUC__)
#define NEOX_BODY static inline __attribute__((always_inline))
#define NEOX_APART __restrict
#else
#define NEOX_BODY static
#define NEOX_APART
#endif
#if defined(__GNUC__) && defined(__x86_64__)
#define NEOX_LOOP(name, params, args)                                                              \
    __attribute__((target("avx2"))) static void name##_avx2 params {                               \
        name##_body args;                                                                          \
    }                                                                                              \
    __attribute__((                                                                                \
        target("avx512f,avx512dq,avx512bw,avx512vl"))) static void name##_avx512 params {          \
        name##_body args;                                                                          \
    }                                                                                              \
    static void name params {                                                                      \
        if (width == NEOX_AVX512)                                                                  \
            name##_avx512 args;                                                                    \
        else if (width == NEOX_AVX2)                                                               \
            name##_avx2 args;                                                                      \
        else                                                                                       \
            name##_body args;                                                                      \
    }
#else
#define NEOX_LOOP(name, params, args)                                                              \
    static void name params {                                                                      \
        name##_body args;                                                                          \
    }
#endif

/* The sum of n numbers' deviations from `from`, or of their squares. */
NEOX_BODY double neox_moment(const float *NEOX_APART x, int64_t n, double from, int squared) {
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

/* Layer norm of one row: biased variance, as torch has it; sums in f64. */
NEOX_BODY void neox_norm_body(neox_width width, const float *NEOX_APART x, int64_t n, double eps,
                              const float *NEOX_APART weight, const float *NEOX_APART bias,
                              float *NEOX_APART y) {
    double mean = neox_moment(x, n, 0, 0) / (double)n;
    float rate = (float)(1 / sqrt(neox_moment(x, n, mean, 1) / (double)n + eps)),
          middle = (float)mean;
    int64_t c = 0;
    for (; c + 16 <= n; c += 16)
        for (int i = 0; i < 16; i++)
            y[c + i] = (x[c + i] - middle) * rate * weight[c + i] + bias[c + i];
    for (; c < n; c++) y[c] = (x[c] - middle) * rate * weight[c] + bias[c];
    (void)width;
}
NEOX_LOOP(neox_norm,
          (neox_width width, const float *x, int64_t n, double eps, const float *weight,
           const float *bias, float *y),
          (width, x, n, eps, weight, bias, y))

/* e^x for x [16] <= 0 in place, to 2e-7 of the value: 2^n e^r, r within ln 2 / 2, by a polynomial.
   A fixed number of steps without a branch, so that compilers vectorise it: four times the speed of
   sixteen calls of expf. */
NEOX_BODY void neox_exp16(float *x) {
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

/* x [n], with room up to a multiple of 16, to e^(scale x - top), top the largest scale x, 0 behind
   n; their sum. */
NEOX_BODY void neox_softmax_body(neox_width width, float *NEOX_APART x, int64_t n, float scale,
                                 float *NEOX_APART top, double *NEOX_APART sum) {
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
        neox_exp16(x + t);
        for (int i = 0; i < 16; i++) lane[i] += (double)x[t + i];
    }
    *sum = 0;
    *top = most[0];
    for (int i = 0; i < 16; i++) *sum += lane[i];
    (void)width;
}
NEOX_LOOP(neox_softmax,
          (neox_width width, float *x, int64_t n, float scale, float *top, double *sum),
          (width, x, n, scale, top, sum))

/* x Phi(x) for x [16] in place; erf by a rational approximation, to 4e-7: branch-free, so that
   compilers vectorise it (sampling from a model of width 128: 13 % of the time went into erff). */
NEOX_BODY void neox_gelu16(float *x) {
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

/* x [n] to gelu(x + bias). With AVX-512: six times the speed of vectors of four. */
NEOX_BODY void neox_gelu_body(neox_width width, float *NEOX_APART x, const float *NEOX_APART bias,
                              int64_t n) {
    float part[16] = {0};
    int64_t c = 0;
    for (; c + 16 <= n; c += 16) {
        for (int i = 0; i < 16; i++) x[c + i] += bias[c + i];
        neox_gelu16(x + c);
    }
    if (c == n) return;
    for (int64_t i = c; i < n; i++) part[i - c] = x[i] + bias[i];
    neox_gelu16(part);
    memcpy(x + c, part, (size_t)(n - c) * sizeof *x);
    (void)width;
}
NEOX_LOOP(neox_gelu, (neox_width width, float *x, const float *bias, int64_t n),
          (width, x, bias, n))

/* y [n] (16 | n) = sum over t of a[t] rows [t][stride] */
NEOX_BODY void neox_mix(const float *NEOX_APART a, int64_t count, const float *NEOX_APART rows,
                        int64_t stride, int64_t n, float *NEOX_APART y) {
    for (int64_t c = 0; c < n; c += 16) {
        float sum[16] = {0};
        for (int64_t t = 0; t < count; t++)
            for (int i = 0; i < 16; i++) sum[i] += a[t] * rows[t * stride + c + i];
        memcpy(y + c, sum, sizeof sum);
    }
}

/* One query of one head over `seen` keys and values; score [seen, up to a multiple of 16]. A
   product of one row would repack all keys and values for it: with products, sampling took twice
   the time. */
NEOX_BODY void neox_attend_one_body(neox_width width, int64_t head_dim, const float *NEOX_APART q,
                                    const float *NEOX_APART k, int64_t k_stride,
                                    const float *NEOX_APART v, int64_t v_stride, int64_t seen,
                                    float *NEOX_APART score, float *NEOX_APART out) {
    double sum;
    float top = -INFINITY, share;
    int64_t whole = head_dim / 16 * 16;
    neox_mix(q, head_dim, k, k_stride, (seen + 15) / 16 * 16, score);
    neox_softmax_body(width, score, seen, (float)(1 / sqrt((double)head_dim)), &top, &sum);
    share = (float)(1 / sum);
    neox_mix(score, seen, v, v_stride, whole, out);
    for (int64_t c = whole; c < head_dim; c++) {
        out[c] = 0;
        for (int64_t t = 0; t < seen; t++) out[c] += score[t] * v[t * v_stride + c];
    }
    for (int64_t c = 0; c < head_dim; c++) out[c] *= share;
}
NEOX_LOOP(neox_attend_one,
          (neox_width width, int64_t head_dim, const float *q, const float *k, int64_t k_stride,
           const float *v, int64_t v_stride, int64_t seen, float *score, float *out),
          (width, head_dim, q, k, k_stride, v, v_stride, seen, score, out))

/* ------------------------------------------------------------------------------------------ */
// >>block

/* What one run is about, handed down through the block. */
typedef struct neox_pass {
    neox_model *m;
    const neox_batch *batch;
    neox_cache *cache; /* or NULL: the sequences are whole */
    const neox_tap *taps;
    int n_taps;
    neox_visit visit;
    void *user;
    int64_t last; /* the order of the last site that is needed */
} neox_pass;

/* Rows of a parallel loop, and what it works on. */
typedef struct neox_rows {
    neox_pass *pass;
    int64_t rows, width, layer;
    const float *in, *weight, *bias;
    float *out;
} neox_rows;

static int64_t neox_order(neox_site s) {
    return s.kind == NEOX_EMBED ? 0 : (int64_t)s.layer * NEOX_RESID_OUT + (int64_t)s.kind;
}

static void neox_each_row(neox_model *m, neox_rows *job, dlrn_parallel_body body) {
    dlrn_parallel_for(m->ctx, (job->rows + NEOX_ROWS - 1) / NEOX_ROWS, body, job);
}

static int64_t neox_task_end(const neox_rows *job, int64_t task) {
    int64_t end = (task + 1) * NEOX_ROWS;
    return end < job->rows ? end : job->rows;
}

/* A site is reached, its value v [tokens][d]: the taps that read here keep a copy, those that end
   here are visited. */
static dlrn_status neox_reach(neox_pass *p, neox_kind kind, int64_t layer, float *v) {
    neox_model *m = p->m;
    neox_site here = {kind, (int)layer};
    int64_t order = neox_order(here);
    for (int t = 0; t < p->n_taps; t++) {
        int64_t x = neox_order(p->taps[t].x), y = neox_order(p->taps[t].y);
        if (x == order && y != order)
            memcpy(m->captured[t], v, (size_t)(m->tokens * m->cfg.dim) * sizeof *v);
        if (y == order) NEOX_TRY(p->visit(p->user, t, x == y ? v : m->captured[t], v, m->tokens));
    }
    return DLRN_OK;
}

static void neox_embed_rows(void *arg, int64_t task, int worker) {
    neox_rows *j = (neox_rows *)arg;
    const neox_batch *b = j->pass->batch;
    (void)worker;
    for (int64_t i = task * NEOX_ROWS; i < neox_task_end(j, task); i++)
        memcpy(j->out + i * j->width, j->in + (int64_t)b->id[b->start[0] + i] * j->width,
               (size_t)j->width * sizeof(float));
}

static void neox_norm_rows(void *arg, int64_t task, int worker) {
    neox_rows *j = (neox_rows *)arg;
    const neox_model *m = j->pass->m;
    (void)worker;
    for (int64_t i = task * NEOX_ROWS; i < neox_task_end(j, task); i++)
        neox_norm(m->width, j->in + i * j->width, j->width, m->cfg.eps, j->weight, j->bias,
                  j->out + i * j->width);
}

static void neox_layer_norm(neox_pass *p, const float *x, const float *weight, const float *bias,
                            float *y) {
    neox_rows job = {p, p->m->tokens, p->m->cfg.dim, 0, x, weight, bias, y};
    neox_each_row(p->m, &job, neox_norm_rows);
}

static float neox_activate(neox_activation kind, float x) {
    switch (kind) {
    case NEOX_GELU_TANH: return 0.5f * x * (1 + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    case NEOX_SILU: return x / (1 + expf(-x));
    case NEOX_RELU: return x > 0 ? x : 0 * x; /* NaN stays */
    case NEOX_GELU: break;                    /* neox_gelu */
    }
    return x;
}

/* y [rows][out] = x [rows][in] W^T, then what follows on each tile while it is in the cache: b
   added, and activated. */
typedef struct neox_product {
    neox_model *m;
    const float *x, *w, *b; /* b NULL: none */
    int64_t rows, in, out;
    int activated;
    float *y;
} neox_product;

static void neox_finish_row(const neox_product *j, float *y, const float *b, int64_t n) {
    const neox_activation kind = j->m->cfg.activation;
    if (j->activated && kind == NEOX_GELU)
        neox_gelu(j->m->width, y, b, n);
    else if (j->activated)
        for (int64_t c = 0; c < n; c++) y[c] = neox_activate(kind, y[c] + b[c]);
    else
        for (int64_t c = 0; c < n; c++) y[c] += b[c];
}

/* A task: a tile. Those of the same rows follow one another. */
static void neox_product_task(void *arg, int64_t task, int worker) {
    const neox_product *j = (const neox_product *)arg;
    const int64_t across = (j->out + NEOX_TILE - 1) / NEOX_TILE, col = task % across * NEOX_TILE;
    const int64_t first = task / across * NEOX_TILE_ROWS,
                  n = j->out - col < NEOX_TILE ? j->out - col : NEOX_TILE;
    int64_t rows = j->rows - first < NEOX_TILE_ROWS ? j->rows - first : NEOX_TILE_ROWS;
    float *y = j->y + first * j->out + col;
    dlrn_status s = dlrn_gemm_serial(j->m->ctx, DLRN_NT, rows, n, j->in, j->x + first * j->in,
                                     j->in, j->w + col * j->in, j->in, 0, y, j->out,
                                     j->m->work + worker * DLRN_GEMM_WORK);
    for (int64_t i = 0; i < rows && j->b; i++) neox_finish_row(j, y + i * j->out, j->b + col, n);
    (void)s; /* the product's arguments are ours, and right */
}

static void neox_multiply(neox_product *job) {
    int64_t across = (job->out + NEOX_TILE - 1) / NEOX_TILE;
    dlrn_parallel_for(job->m->ctx, (job->rows + NEOX_TILE_ROWS - 1) / NEOX_TILE_ROWS * across,
                      neox_product_task, job);
}

static void neox_linear(neox_model *m, const float *x, int64_t in, const float *w, const float *b,
                        int64_t out, float *y) {
    neox_product job = {m, x, w, b, m->tokens, in, out, 0, y};
    neox_multiply(&job);
}

/* Rotates the first `rotary` dimensions of v, pairs half of them apart (GPT-NeoX's rotate_half). */
static void neox_turn(float *v, const float *turn, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        float c = turn[2 * i], s = turn[2 * i + 1], a = v[i], b = v[i + half];
        v[i] = a * c - b * s;
        v[i + half] = b * c + a * s;
    }
}

/* What a task of the attention works on: one head of one sequence. */
typedef struct neox_head {
    int64_t first, end, dim; /* tokens of the run, dimensions of the head      */
    float *q;                /* of the first token; rows 3 d apart             */
    float *k, *v;            /* k [dim][k_stride], v [..][v_stride]            */
    int64_t k_stride, v_stride;
    float *score, *out; /* [NEOX_QUERIES][score_row]; rows d apart             */
    float *work;        /* of the product                                      */
} neox_head;

/* The bias is added, queries and keys are turned to their positions, keys and, with a cache, values
   laid down. A row of qkv is [heads][q, k, v][head_dim]. */
static void neox_turn_head(const neox_model *m, const neox_head *h, const float *bias,
                           int in_cache) {
    const int64_t half = m->cfg.rotary / 2;
    for (int64_t i = h->first; i < h->end; i++) {
        float *q = h->q + (i - h->first) * 3 * m->cfg.dim, *k = q + h->dim;
        int64_t at = m->position[i];
        for (int64_t c = 0; c < 3 * h->dim; c++) q[c] += bias[c];
        neox_turn(q, m->turn + at * half * 2, half);
        neox_turn(k, m->turn + at * half * 2, half);
        for (int64_t c = 0; c < h->dim; c++) h->k[c * h->k_stride + at] = k[c];
        if (in_cache) memcpy(h->v + at * h->v_stride, k + h->dim, (size_t)h->dim * sizeof *k);
    }
}

/* Queries [first, first + n) over the keys and values of their sequence. Within the block all
   queries see all keys; what lies ahead of a query gets the weight 0. */
static void neox_attend(neox_model *m, const neox_head *h, int64_t first, int64_t n) {
    const int64_t d = m->cfg.dim, hd = h->dim, keys = m->position[first + n - 1] + 1,
                  row = m->score_row;
    const float scale = (float)(1 / sqrt((double)hd)), *q = h->q + (first - h->first) * 3 * d;
    float *out = h->out + (first - h->first) * d, share[NEOX_QUERIES];
    dlrn_status s = dlrn_gemm_serial(m->ctx, DLRN_NN, n, keys, hd, q, 3 * d, h->k, h->k_stride, 0,
                                     h->score, row, h->work);
    for (int64_t i = 0; i < n; i++) {
        float *mine = h->score + i * row, top = -INFINITY;
        double sum;
        int64_t seen = m->position[first + i] + 1;
        neox_softmax(m->width, mine, seen, scale, &top, &sum);
        share[i] = (float)(1 / sum);
        for (int64_t t = seen; t < keys; t++) mine[t] = 0;
    }
    if (s == DLRN_OK)
        s = dlrn_gemm_serial(m->ctx, DLRN_NN, n, hd, keys, h->score, row, h->v, h->v_stride, 0, out,
                             d, h->work);
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < hd; c++) out[i * d + c] *= share[i];
    (void)s; /* the products' arguments are ours, and right */
}

static void neox_attend_head(void *arg, int64_t task, int worker) {
    neox_rows *j = (neox_rows *)arg;
    neox_model *m = j->pass->m;
    const neox_cache *cache = j->pass->cache;
    const neox_batch *b = j->pass->batch;
    const int64_t d = m->cfg.dim, hd = m->cfg.head_dim, h = task % m->cfg.heads,
                  s = task / m->cfg.heads;
    const int64_t first = b->start[s] - b->start[0], end = b->start[s + 1] - b->start[0];
    float *score = m->scores + worker * (NEOX_QUERIES + hd) * m->score_row,
          *q = m->qkv + first * 3 * d + h * 3 * hd;
    neox_head head = {first,
                      end,
                      hd,
                      q,
                      score + NEOX_QUERIES * m->score_row,
                      q + 2 * hd,
                      m->score_row,
                      3 * d,
                      score,
                      j->out + first * d + h * hd,
                      m->work + worker * DLRN_GEMM_WORK};
    if (cache) {
        int64_t row = ((j->layer * cache->sequences + s) * m->cfg.heads + h) * hd;
        head.k = cache->k + row * cache->capacity, head.k_stride = cache->capacity;
        head.v = cache->v + row * cache->capacity, head.v_stride = hd;
    }
    neox_turn_head(m, &head, j->bias + h * 3 * hd, cache != NULL);
    if (end - first == 1) {
        neox_attend_one(m->width, hd, q, head.k, head.k_stride, head.v, head.v_stride,
                        m->position[first] + 1, score, head.out);
        return;
    }
    for (int64_t i = first; i < end; i += NEOX_QUERIES)
        neox_attend(m, &head, i, end - i < NEOX_QUERIES ? end - i : NEOX_QUERIES);
}

/* attn_in [tokens][d] in a, attn_out to att; the heads' results pass through mlp, which is not yet
   in use. */
static void neox_attention(neox_pass *p, int64_t l) {
    neox_model *m = p->m;
    const neox_layer *w = &m->layer[l];
    const int64_t d = m->cfg.dim;
    neox_rows job = {p, m->tokens, d, l, NULL, NULL, w->part[NEOX_QKV_B], m->mlp};
    neox_linear(m, m->a, d, w->part[NEOX_QKV_W], NULL, 3 * d,
                m->qkv); /* its bias: neox_turn_head */
    dlrn_parallel_for(m->ctx, p->batch->sequences * m->cfg.heads, neox_attend_head, &job);
    neox_linear(m, m->mlp, d, w->part[NEOX_DENSE_W], w->part[NEOX_DENSE_B], d, m->att);
}

/* mlp_in in a, mlp_out to mlp. */
static void neox_mlp(neox_model *m, int64_t l) {
    const neox_layer *w = &m->layer[l];
    const int64_t d = m->cfg.dim, inner = m->cfg.inner;
    neox_product up = {m, m->a, w->part[NEOX_UP_W], w->part[NEOX_UP_B], m->tokens, d, inner,
                       1, m->h};
    neox_multiply(&up);
    neox_linear(m, m->h, inner, w->part[NEOX_DOWN_W], w->part[NEOX_DOWN_B], d, m->mlp);
}

/* x += y, or x += y + weight in parallel models: HF's order, (mlp + attention) + x. */
static void neox_add_rows(void *arg, int64_t task, int worker) {
    neox_rows *j = (neox_rows *)arg;
    int64_t i = task * NEOX_ROWS * j->width, end = neox_task_end(j, task) * j->width;
    (void)worker;
    if (!j->weight)
        for (; i < end; i++) j->out[i] += j->in[i];
    for (; i < end; i++) j->out[i] += j->in[i] + j->weight[i];
}

static void neox_add(neox_pass *p, const float *y, const float *attention, float *x) {
    neox_rows job = {p, p->m->tokens, p->m->cfg.dim, 0, y, attention, NULL, x};
    neox_each_row(p->m, &job, neox_add_rows);
}

static int neox_done(const neox_pass *p, neox_kind kind, int64_t layer) {
    neox_site s = {kind, (int)layer};
    return neox_order(s) >= p->last;
}

static dlrn_status neox_block(neox_pass *p, int64_t l) {
    neox_model *m = p->m;
    NEOX_TRY(neox_need_layer(m, l));
    const neox_layer *w = &m->layer[l];
    neox_layer_norm(p, m->x, w->part[NEOX_LN1_W], w->part[NEOX_LN1_B], m->a);
    NEOX_TRY(neox_reach(p, NEOX_ATTN_IN, l, m->a));
    if (neox_done(p, NEOX_ATTN_IN, l)) return DLRN_OK;
    int attention_matters = !m->cfg.parallel || !neox_done(p, NEOX_MLP_OUT, l);
    for (int t = 0; t < p->n_taps;
         t++) /* parallel residual: mlp_in and mlp_out do not wait for the attention */
        attention_matters |= p->taps[t].y.layer == (int)l && p->taps[t].y.kind == NEOX_ATTN_OUT;
    if (attention_matters) neox_attention(p, l);
    if (attention_matters) NEOX_TRY(neox_reach(p, NEOX_ATTN_OUT, l, m->att));
    if (neox_done(p, NEOX_ATTN_OUT, l)) return DLRN_OK;
    if (!m->cfg.parallel) neox_add(p, m->att, NULL, m->x);
    neox_layer_norm(p, m->x, w->part[NEOX_LN2_W], w->part[NEOX_LN2_B], m->a);
    NEOX_TRY(neox_reach(p, NEOX_MLP_IN, l, m->a));
    if (neox_done(p, NEOX_MLP_IN, l)) return DLRN_OK;
    neox_mlp(m, l);
    NEOX_TRY(neox_reach(p, NEOX_MLP_OUT, l, m->mlp));
    if (neox_done(p, NEOX_MLP_OUT, l)) return DLRN_OK;
    neox_add(p, m->mlp, m->cfg.parallel ? m->att : NULL, m->x);
    return neox_reach(p, NEOX_RESID_OUT, l, m->x);
}

/* Sequences and positions of the batch's tokens; ids and lengths are checked here, once. */
static dlrn_status neox_lay_out(neox_pass *p) {
    neox_model *m = p->m;
    const neox_batch *b = p->batch;
    int64_t past = p->cache ? p->cache->past : 0, longest = 0;
    m->tokens = b->start[b->sequences] - b->start[0];
    NEOX_TRY(neox_reserve(m, m->tokens));
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
    NEOX_TRY(neox_reserve_scores(m, past + longest));
    return neox_need_turns(m, past + longest);
}

static dlrn_status neox_pass_through(neox_pass *p, int whole) {
    neox_model *m = p->m;
    int spans = 0;
    NEOX_TRY(neox_lay_out(p));
    p->last = -1;
    for (int t = 0; t < p->n_taps; t++) {
        int64_t y = neox_order(p->taps[t].y);
        p->last = y > p->last ? y : p->last;
        spans |= neox_order(p->taps[t].x) != y;
    }
    if (whole) p->last = INT64_MAX;
    if (spans) NEOX_TRY(neox_reserve_captures(m, p->n_taps));
    neox_rows job = {p, m->tokens, m->cfg.dim, 0, m->embed, NULL, NULL, m->x};
    neox_each_row(m, &job, neox_embed_rows);
    NEOX_TRY(neox_reach(p, NEOX_EMBED, 0, m->x));
    for (int64_t l = 0; l < m->cfg.layers && !neox_done(p, NEOX_RESID_OUT, l - 1); l++) {
        if (m->stop && m->stop(m->stop_user))
            return dlrn_fail(m->ctx, DLRN_STOPPED, "stopped within a run");
        NEOX_TRY(neox_block(p, l));
    }
    if (!whole) return DLRN_OK;
    NEOX_TRY(neox_need_head(m));
    neox_layer_norm(p, m->x, m->final_w, m->final_b, m->a);
    return DLRN_OK;
}

NEOX_API dlrn_status neox_run(neox_model *m, const neox_batch *batch, const neox_tap *taps,
                              int n_taps, neox_visit visit, void *user, int whole) {
    neox_pass p = {m, batch, NULL, taps, n_taps, visit, user, 0};
    return neox_pass_through(&p, whole);
}

NEOX_API dlrn_status neox_site_named(const neox_model *m, const char *name, int64_t layer,
                                     neox_site *out) {
    static const char *const names[] = {"embed",  "attn_in", "attn_out",
                                        "mlp_in", "mlp_out", "resid_out"};
    for (int k = 0; k < 6; k++) {
        if (strcmp(name, names[k])) continue;
        if (k != NEOX_EMBED && (layer < 0 || layer >= m->cfg.layers))
            return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT,
                             "site %s: expected a layer from 0 to %lld, found %lld", name,
                             (long long)m->cfg.layers - 1, (long long)layer);
        out->kind = (neox_kind)k;
        out->layer = k == NEOX_EMBED ? 0 : (int)layer;
        return DLRN_OK;
    }
    return dlrn_fail(
        m->ctx, DLRN_ERR_ARGUMENT,
        "site: expected embed, resid_out, mlp_in, mlp_out, attn_in or attn_out, found %s", name);
}

/* The input of a site's module: of an attention attn_in, of an MLP mlp_in, of a block the residual
   before it. */
NEOX_API dlrn_status neox_tap_at(const neox_model *m, neox_site site, neox_io io, neox_tap *out) {
    neox_site in = site;
    if (io == NEOX_IO_OUT) {
        out->x = out->y = site;
        return DLRN_OK;
    }
    if (site.kind == NEOX_EMBED)
        return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT,
                         "site embed: its input is token ids, only --io out fits");
    if (site.kind == NEOX_MLP_IN) site.kind = NEOX_MLP_OUT; /* both name the MLP */
    if (site.kind == NEOX_ATTN_IN) site.kind = NEOX_ATTN_OUT;
    if (site.kind == NEOX_MLP_OUT) in.kind = NEOX_MLP_IN;
    if (site.kind == NEOX_ATTN_OUT) in.kind = NEOX_ATTN_IN;
    if (site.kind == NEOX_RESID_OUT && site.layer > 0) in.layer = site.layer - 1;
    if (site.kind == NEOX_RESID_OUT && site.layer == 0) in.kind = NEOX_EMBED;
    out->x = in;
    out->y = io == NEOX_IO_IN ? in : site;
    return DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>head

NEOX_API dlrn_status neox_logits(neox_model *m, int64_t first, int64_t rows, float *logits) {
    const int64_t d = m->cfg.dim, v = m->cfg.vocab;
    if (first < 0 || rows < 0 || first > m->tokens - rows)
        return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT,
                         "neox_logits: expected rows within the last run's %lld, found %lld "
                         "from %lld",
                         (long long)m->tokens, (long long)rows, (long long)first);
    neox_product job = {m, m->a + first * d, m->unembed, NULL, rows, d, v, 0, logits};
    neox_multiply(&job);
    return DLRN_OK;
}

/* log-sum-exp over the vocabulary. A task: NEOX_TILE_ROWS tokens and NEOX_PART entries, a tile of
   logits at a time. */
typedef struct neox_lse {
    neox_model *m;
    const neox_batch *batch;
    int64_t blocks, parts; /* of the tokens, of the vocabulary                 */
    float *tile;           /* [threads][NEOX_TILE_ROWS][NEOX_TILE]             */
    float *top;            /* [tokens][parts] largest logit                    */
    double *sum;           /* [tokens][parts] of exp(logit - top)              */
    float *target;         /* [tokens] logit of the token that really came     */
} neox_lse;

static void neox_lse_row(const neox_lse *j, int64_t token, int64_t part, int64_t from,
                         int64_t width, float *logit) {
    const neox_batch *b = j->batch;
    float *top = j->top + token * j->parts + part, before = *top;
    double *sum = j->sum + token * j->parts + part, more;
    int64_t next = token + 1 < j->m->tokens ? b->id[b->start[0] + token + 1] : -1;
    if (next >= from && next < from + width) j->target[token] = logit[next - from];
    neox_softmax(j->m->width, logit, width, 1, top, &more);
    *sum = (before < *top ? *sum * exp((double)before - (double)*top) : *sum) + more;
}

static void neox_lse_task(void *arg, int64_t task, int worker) {
    const neox_lse *j = (const neox_lse *)arg;
    neox_model *m = j->m;
    const int64_t d = m->cfg.dim, first = task % j->blocks * NEOX_TILE_ROWS,
                  part = task / j->blocks;
    int64_t rows = m->tokens - first < NEOX_TILE_ROWS ? m->tokens - first : NEOX_TILE_ROWS;
    int64_t from = part * NEOX_PART,
            end = from + NEOX_PART < m->cfg.vocab ? from + NEOX_PART : m->cfg.vocab;
    float *tile = j->tile + worker * NEOX_TILE_ROWS * NEOX_TILE;
    for (int64_t i = first; i < first + rows; i++)
        j->top[i * j->parts + part] = -INFINITY, j->sum[i * j->parts + part] = 0;
    for (; from < end; from += NEOX_TILE) {
        int64_t width = end - from < NEOX_TILE ? end - from : NEOX_TILE;
        dlrn_status s = dlrn_gemm_serial(m->ctx, DLRN_NT, rows, width, d, m->a + first * d, d,
                                         m->unembed + from * d, d, 0, tile, NEOX_TILE,
                                         m->work + worker * DLRN_GEMM_WORK);
        (void)s; /* the product's arguments are ours, and right */
        for (int64_t i = 0; i < rows; i++)
            neox_lse_row(j, first + i, part, from, width, tile + i * NEOX_TILE);
    }
}

/* -log p of the token that came after this one. */
static double neox_nats(const neox_lse *j, int64_t token) {
    const float *top = j->top + token * j->parts;
    double sum = 0;
    float most = top[0];
    for (int64_t part = 1; part < j->parts; part++) most = top[part] > most ? top[part] : most;
    for (int64_t part = 0; part < j->parts; part++)
        sum += j->sum[token * j->parts + part] * exp((double)top[part] - (double)most);
    return (double)most + log(sum) - (double)j->target[token];
}

NEOX_API dlrn_status neox_cross_entropy(neox_model *m, const neox_batch *batch, double *nats,
                                        int64_t *tokens) {
    neox_lse j = {m,
                  batch,
                  (m->tokens + NEOX_TILE_ROWS - 1) / NEOX_TILE_ROWS,
                  (m->cfg.vocab + NEOX_PART - 1) / NEOX_PART,
                  NULL,
                  NULL,
                  NULL,
                  NULL};
    j.tile = neox_floats(m, (int64_t)dlrn_threads(m->ctx) * NEOX_TILE_ROWS, NEOX_TILE);
    j.top = neox_floats(m, m->tokens, j.parts);
    j.sum = (double *)dlrn_alloc(m->ctx, m->tokens * j.parts, sizeof *j.sum);
    j.target = neox_floats(m, m->tokens, 1);
    dlrn_status s = j.tile && j.top && j.sum && j.target ? DLRN_OK : DLRN_ERR_MEMORY;
    *nats = 0;
    *tokens = 0;
    if (s == DLRN_OK) dlrn_parallel_for(m->ctx, j.blocks * j.parts, neox_lse_task, &j);
    for (int64_t i = 0; i < m->tokens && s == DLRN_OK; i++) {
        if (batch->start[0] + i + 1 == batch->start[m->sequence[i] + 1])
            continue; /* the last has no next */
        *nats += neox_nats(&j, i);
        *tokens += 1;
    }
    void *blocks[] = {j.tile, j.top, j.sum, j.target};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) dlrn_free(m->ctx, blocks[i]);
    return s;
}

/* ------------------------------------------------------------------------------------------ */
// >>sampling

/* A worker draws a group of documents at a time, by itself: with its own context of one thread and
   its own workspace over the model's weights. The steps of a document are many and small, so
   threads that share each of them would mostly wait for each other (two threads, idle machine:
   9,300 tokens a second together, 12,000 apart; on a busy machine ten times less together). */
typedef struct neox_draw {
    neox_model m; /* the model, but for context and workspace */
    const neox_sampling *cfg;
    neox_cache cache;
    int64_t first, rows; /* documents [first, first + rows) of this group              */
    float *logits;       /* [rows][stride], the vocabulary up to a multiple of 16      */
    int64_t stride;
    float *kept;      /* [rows][top_k] heap of the largest                             */
    int32_t *id;      /* [rows][tokens] drawn so far                                   */
    int64_t *length;  /* [rows] n, or -1 - n: ended after n                            */
    int32_t *next;    /* [rows] what goes in next                                      */
    int32_t *prompts; /* [rows][prompt_len]                                            */
    int64_t *start;   /* [rows + 1]                                                    */
    int64_t step;
    dlrn_status status;
} neox_draw;

/* The k-th largest of x [n], with a heap [k] of the largest so far, least on top. */
static float neox_threshold(const float *x, int64_t n, float *heap, int64_t k) {
    int64_t size = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t at = 0;
        if (size < k) { /* sift up */
            for (at = size++; at > 0 && heap[(at - 1) / 2] > x[i]; at = (at - 1) / 2)
                heap[at] = heap[(at - 1) / 2];
            heap[at] = x[i];
            continue;
        }
        if (!(x[i] > heap[0])) continue;
        for (int64_t child = 1; child < k; child = 2 * at + 1) { /* sift down */
            child += child + 1 < k && heap[child + 1] < heap[child];
            if (heap[child] >= x[i]) break;
            heap[at] = heap[child];
            at = child;
        }
        heap[at] = x[i];
    }
    return heap[0];
}

static int32_t neox_likeliest(const float *x, int64_t n) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return (int32_t)best;
}

/* Below it the likeliest token is drawn: what is divided by it must stay finite. */
#define NEOX_COLDEST 1e-9

/* Draws from softmax(x / temperature) over the entries >= least; x is overwritten. */
static int32_t neox_draw_from(neox_width width, float *x, int64_t n, double temperature,
                              float least, dlrn_rng *rng) {
    float rate = temperature < 1e37 ? (float)(1 / temperature) : 1e-37f,
          top = -INFINITY; /* -INFINITY 0 is a NaN */
    double total, sum = 0;
    int64_t last = 0;
    for (int64_t i = 0; i < n && least > -INFINITY; i++) x[i] = x[i] >= least ? x[i] : -INFINITY;
    neox_softmax(width, x, n, rate, &top, &total);
    double u = dlrn_rng_uniform_f64(rng) * total;
    for (int64_t i = 0; i < n; i++) {
        if (x[i] > 0) last = i;
        sum += (double)x[i];
        if (sum > u) return (int32_t)last;
    }
    return (int32_t)last;
}

static void neox_draw_row(neox_draw *g, int64_t i) {
    const neox_sampling *c = g->cfg;
    const int64_t v = g->m.cfg.vocab;
    float *x = g->logits + i * g->stride, least = -INFINITY;
    dlrn_rng rng = {c->seed, (uint64_t)(g->first + i), (uint64_t)g->step * 4};
    if (g->length[i] < 0) return;
    if (c->top_k > 0 && c->top_k < v)
        least = neox_threshold(x, v, g->kept + i * c->top_k, c->top_k);
    int32_t id = c->temperature >= NEOX_COLDEST
                     ? neox_draw_from(g->m.width, x, v, c->temperature, least, &rng)
                     : neox_likeliest(x, v);
    g->next[i] = id;
    if (id == c->stop) {
        g->length[i] = -1 - g->length[i];
        return;
    }
    g->id[i * c->tokens + g->length[i]++] = id;
}

/* Runs `ids` through the model and leaves the logits after each sequence's last token. */
static dlrn_status neox_advance(neox_draw *g, const int32_t *ids, int64_t each) {
    neox_model *m = &g->m;
    const int64_t d = m->cfg.dim, v = m->cfg.vocab;
    for (int64_t i = 0; i <= g->rows; i++) g->start[i] = i * each;
    neox_batch batch = {ids, g->start, g->rows};
    neox_pass p = {m, &batch, &g->cache, NULL, 0, NULL, NULL, 0};
    NEOX_TRY(neox_pass_through(&p, 1));
    g->cache.past += each;
    return dlrn_gemm(m->ctx, DLRN_NT, g->rows, v, d, m->a + (each - 1) * d, each * d, m->unembed, d,
                     0, g->logits, g->stride);
}

static dlrn_status neox_generate_group(neox_draw *g) {
    const neox_sampling *c = g->cfg;
    int64_t open = g->rows;
    for (int64_t i = 0; i < g->rows; i++) {
        memcpy(g->prompts + i * c->prompt_len, c->prompt,
               (size_t)c->prompt_len * sizeof *g->prompts);
        g->length[i] = 0;
        g->next[i] = 0;
    }
    g->cache.past = 0;
    NEOX_TRY(neox_advance(g, g->prompts, c->prompt_len));
    for (g->step = 0; g->step < c->tokens && open > 0; g->step++) {
        if (g->step > 0) NEOX_TRY(neox_advance(g, g->next, 1));
        open = 0;
        for (int64_t i = 0; i < g->rows; i++) {
            neox_draw_row(g, i);
            open += g->length[i] >= 0;
        }
    }
    return DLRN_OK;
}

static void neox_generate_task(void *arg, int64_t task, int worker) {
    neox_draw *g = (neox_draw *)arg + task;
    (void)worker;
    g->status = g->rows > 0 ? neox_generate_group(g) : DLRN_OK;
}

static dlrn_status neox_emit_group(const neox_draw *g, neox_emit emit, void *user) {
    for (int64_t i = 0; i < g->rows; i++) {
        int64_t n = g->length[i] < 0 ? -1 - g->length[i] : g->length[i];
        NEOX_TRY(emit(user, g->first + i, g->id + i * g->cfg->tokens, n));
    }
    return DLRN_OK;
}

/* Documents that a worker draws at once: logits and cache within about 256 MB, prompts within a
   run's tokens. */
static int64_t neox_group(const neox_model *m, const neox_sampling *c, int64_t workers) {
    int64_t each =
        m->cfg.vocab + 2 * m->cfg.layers * neox_row_of(c->prompt_len + c->tokens) * m->cfg.dim;
    int64_t group = ((int64_t)64 << 20) / each, most = NEOX_BATCH_TOKENS / c->prompt_len;
    int64_t share = (c->documents + workers - 1) / workers;
    group = group < most ? group : most;
    group = group < 128 ? group : 128;
    group = group < share ? group : share;
    return group > 1 ? group : 1;
}

static void neox_draw_close(neox_draw *g) {
    dlrn_context *ctx = g->m.ctx;
    if (!ctx) return;
    neox_drop_workspace(&g->m);
    void *blocks[] = {g->cache.k, g->cache.v, g->logits, g->kept,   g->id,
                      g->length,  g->next,    g->start,  g->prompts};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) dlrn_free(ctx, blocks[i]);
    dlrn_context_destroy(ctx);
}

static dlrn_status neox_draw_open(neox_draw *g, const neox_model *m, const neox_sampling *cfg,
                                  int64_t rows) {
    int64_t top = cfg->top_k > 0 && cfg->top_k < m->cfg.vocab ? cfg->top_k : 0;
    dlrn_context_config own = dlrn_context_defaults();
    memset(g, 0, sizeof *g);
    own.threads = 1;
    own.kernels = dlrn_kernels(m->ctx);
    dlrn_context *ctx = NULL;
    if (dlrn_context_create(&own, &ctx) != DLRN_OK) return DLRN_ERR_MEMORY;
    g->m = *m;
    g->m.ctx = ctx;
    neox_forget_workspace(&g->m); /* that one is the model's */
    g->cfg = cfg;
    g->cache.sequences = rows;
    g->cache.capacity = neox_row_of(cfg->prompt_len + cfg->tokens);
    g->cache.k = neox_floats(&g->m, m->cfg.layers * rows * g->cache.capacity, m->cfg.dim);
    g->cache.v = neox_floats(&g->m, m->cfg.layers * rows * g->cache.capacity, m->cfg.dim);
    g->stride = (m->cfg.vocab + 15) / 16 * 16;
    g->logits = neox_floats(&g->m, rows, g->stride);
    g->kept = neox_floats(&g->m, rows, top);
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

/* Rounds: each worker a group, then all of it in order. */
static dlrn_status neox_generate_rounds(neox_model *m, neox_draw *g, int64_t workers, int64_t rows,
                                        neox_emit emit, void *user) {
    const int64_t documents = g->cfg->documents;
    for (int64_t first = 0; first < documents; first += workers * rows) {
        for (int64_t w = 0; w < workers; w++) {
            g[w].first = first + w * rows;
            g[w].rows = documents - g[w].first < rows ? documents - g[w].first : rows;
        }
        dlrn_parallel_for(m->ctx, workers, neox_generate_task, g);
        for (int64_t w = 0; w < workers; w++) {
            if (g[w].status != DLRN_OK)
                return dlrn_fail(m->ctx, g[w].status, "%s", dlrn_error(g[w].m.ctx));
            NEOX_TRY(neox_emit_group(&g[w], emit, user));
        }
    }
    return DLRN_OK;
}

NEOX_API dlrn_status neox_generate(neox_model *m, const neox_sampling *cfg, neox_emit emit,
                                   void *user) {
    if (cfg->prompt_len < 1 || cfg->tokens < 1 || cfg->prompt_len + cfg->tokens > m->cfg.positions)
        return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT,
                         "generate: expected a prompt and tokens, together at most the model's "
                         "%lld positions, found "
                         "%lld and %lld",
                         (long long)m->cfg.positions, (long long)cfg->prompt_len,
                         (long long)cfg->tokens);
    int64_t workers = dlrn_threads(m->ctx) < cfg->documents ? dlrn_threads(m->ctx) : cfg->documents;
    int64_t rows = neox_group(m, cfg, workers > 0 ? workers : 1);
    dlrn_status s = neox_need_head(m);
    if (s == DLRN_OK)
        s = neox_need_turns(m,
                            cfg->prompt_len + cfg->tokens); /* here, since the workers share them */
    for (int64_t l = 0; l < m->cfg.layers && s == DLRN_OK; l++) s = neox_need_layer(m, l);
    if (s != DLRN_OK || workers < 1) return s;
    neox_draw *g = (neox_draw *)dlrn_alloc(m->ctx, workers, sizeof *g);
    if (!g) return DLRN_ERR_MEMORY;
    memset(g, 0, (size_t)workers * sizeof *g);
    for (int64_t w = 0; w < workers && s == DLRN_OK; w++) s = neox_draw_open(&g[w], m, cfg, rows);
    if (s == DLRN_ERR_MEMORY) dlrn_fail(m->ctx, s, "generate: out of memory");
    if (s == DLRN_OK) s = neox_generate_rounds(m, g, workers, rows, emit, user);
    for (int64_t w = 0; w < workers; w++) neox_draw_close(&g[w]);
    dlrn_free(m->ctx, g);
    return s;
}

/* ------------------------------------------------------------------------------------------ */
// >>text

NEOX_API void neox_documents_free(neox_documents *d) {
    if (!d || !d->ctx) return;
    dlrn_free(d->ctx, d->id);
    dlrn_free(d->ctx, d->start);
    memset(d, 0, sizeof *d);
}

static dlrn_status neox_append(const neox_model *m, const neox_reading *how, const bpe_ids *ids,
                               neox_documents *out) {
    int64_t at = out->count ? out->start[out->count] : 0, bos = how->bos != 0;
    int64_t n = ids->count + bos < how->ctx_len ? ids->count + bos : how->ctx_len;
    out->ctx = m->ctx;
    NEOX_TRY(bpe_widen(m->ctx, &out->start, &out->start_cap, out->start ? out->count + 1 : 0,
                       out->count + 2, sizeof *out->start));
    NEOX_TRY(bpe_widen(m->ctx, &out->id, &out->id_cap, at, at + n, sizeof *out->id));
    out->start[0] = 0;
    if (bos) out->id[at] = m->cfg.bos;
    memcpy(out->id + at + bos, ids->id, (size_t)(n - bos) * sizeof *ids->id);
    out->start[++out->count] = at + n;
    return DLRN_OK;
}

NEOX_API dlrn_status neox_read_documents(const neox_model *m, bpe_tokenizer *tok, doc_reader *docs,
                                         const neox_reading *how, int64_t limit,
                                         neox_documents *out) {
    const char *text = NULL;
    int64_t bytes = 0, got = 0;
    bpe_ids ids;
    memset(&ids, 0, sizeof ids);
    if (how->bos && m->cfg.bos < 0)
        return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT,
                         "bos: expected a model with one bos_token_id, found none");
    dlrn_status s = DLRN_OK;
    while (s == DLRN_OK && (limit < 0 || got < limit)) {
        s = doc_next(docs, &text, &bytes);
        if (s == DLRN_OK) s = bpe_encode(tok, text, bytes, &ids);
        if (s != DLRN_OK || ids.count == 0) continue;
        s = neox_append(m, how, &ids, out);
        got++;
    }
    bpe_ids_free(&ids);
    return s == DLRN_END && got ? DLRN_OK : s;
}

typedef enum neox_stage {
    NEOX_DONE,
    NEOX_READING,
    NEOX_WAITING
} neox_stage; /* its rows are there; not yet: read */

/* A run's worth of documents, and how far their rows have been handed out. */
typedef struct neox_text {
    neox_model *m;
    bpe_tokenizer *tok;
    doc_reader *docs;
    neox_reading how;
    neox_tap tap;
    neox_documents batch;
    uint64_t *place; /* [batch.count] where each document begins in the text */
    int64_t place_cap;
    float *x, *y; /* [row_cap][d] rows of the batch; y NULL without a target */
    int64_t row_cap, rows, given;
    int64_t skip;       /* rows of the next batch that were handed out before a seek */
    neox_stage stage;   /* of the batch */
    dlrn_status failed; /* told at the next read: rows came before it */
} neox_text;

enum { NEOX_ROW_BITS = 20 }; /* of a position: the row within its document */

static dlrn_status neox_keep_rows(void *user, int tap, const float *x, float *y, int64_t n) {
    neox_text *t = (neox_text *)user;
    size_t bytes = (size_t)(n * t->m->cfg.dim) * sizeof *x;
    (void)tap;
    memcpy(t->x, x, bytes);
    if (t->y) memcpy(t->y, y, bytes);
    t->rows = n;
    return DLRN_OK;
}

/* The next documents, until a run is full. */
static dlrn_status neox_text_batch(neox_text *t) {
    t->batch.count = 0;
    while (t->batch.count == 0 || t->batch.start[t->batch.count] < NEOX_BATCH_TOKENS) {
        NEOX_TRY(bpe_widen(t->m->ctx, &t->place, &t->place_cap, t->batch.count, t->batch.count + 1,
                           sizeof *t->place));
        t->place[t->batch.count] = doc_position(t->docs);
        t->stage = NEOX_READING;
        dlrn_status s = neox_read_documents(t->m, t->tok, t->docs, &t->how, 1, &t->batch);
        if (s == DLRN_END) break;
        if (s != DLRN_OK) return s;
    }
    if (t->batch.count == 0) return DLRN_END;
    t->stage = NEOX_WAITING;
    return DLRN_OK;
}

/* The next documents' activations; a run that was stopped is made again. */
static dlrn_status neox_text_fill(neox_text *t) {
    t->rows = t->given = 0;
    if (t->stage != NEOX_WAITING) NEOX_TRY(neox_text_batch(t));
    neox_batch batch = {t->batch.id, t->batch.start, t->batch.count};
    NEOX_TRY(neox_run(t->m, &batch, &t->tap, 1, neox_keep_rows, t, 0));
    t->stage = NEOX_DONE;
    t->given = t->skip < t->rows ? t->skip : t->rows;
    t->skip = 0;
    return DLRN_OK;
}

static dlrn_status neox_text_read(void *user, int64_t max_rows, float *x, float *y, int64_t *n) {
    neox_text *t = (neox_text *)user;
    const int64_t d = t->m->cfg.dim;
    *n = 0;
    while (*n < max_rows) {
        if (t->given == t->rows) {
            dlrn_status s = t->failed != DLRN_OK ? t->failed : neox_text_fill(t);
            if (s != DLRN_OK && s != DLRN_END && s != DLRN_STOPPED) t->failed = s;
            if (s == DLRN_END || (s != DLRN_OK && *n)) break;
            if (s != DLRN_OK) return s;
        }
        int64_t k = t->rows - t->given < max_rows - *n ? t->rows - t->given : max_rows - *n;
        memcpy(x + *n * d, t->x + t->given * d, (size_t)(k * d) * sizeof *x);
        if (t->y && y) memcpy(y + *n * d, t->y + t->given * d, (size_t)(k * d) * sizeof *y);
        t->given += k;
        *n += k;
    }
    return *n || max_rows == 0 ? DLRN_OK : DLRN_END;
}

/* The document in which the next row stands, and the row within it. */
static dlrn_status neox_text_position(void *user, uint64_t *position) {
    neox_text *t = (neox_text *)user;
    uint64_t place = doc_position(t->docs);
    int64_t row = t->skip;
    if (t->stage != NEOX_DONE) {
        place = t->place[0];
    } else if (t->given < t->rows) {
        int64_t i = 0;
        while (t->batch.start[i + 1] <= t->given) i++;
        place = t->place[i];
        row = t->given - t->batch.start[i];
    }
    *position = place << NEOX_ROW_BITS | (uint64_t)row;
    return DLRN_OK;
}

static dlrn_status neox_text_seek(void *user, uint64_t position) {
    neox_text *t = (neox_text *)user;
    t->rows = t->given = 0;
    t->stage = NEOX_DONE;
    t->failed = DLRN_OK;
    t->skip = (int64_t)(position & (((uint64_t)1 << NEOX_ROW_BITS) - 1));
    return doc_seek(t->docs, position >> NEOX_ROW_BITS);
}

static const char *neox_text_error(void *user) {
    return dlrn_error(((neox_text *)user)->m->ctx);
}

static void neox_text_destroy(void *user) {
    neox_text *t = (neox_text *)user;
    dlrn_context *ctx = t->m->ctx;
    neox_documents_free(&t->batch);
    dlrn_free(ctx, t->place);
    dlrn_free(ctx, t->x);
    dlrn_free(ctx, t->y);
    dlrn_free(ctx, t);
}

NEOX_API dlrn_status neox_text_source(neox_model *m, bpe_tokenizer *tok, doc_reader *docs,
                                      const neox_reading *how, neox_tap tap, dlrn_source *out) {
    int target = neox_order(tap.x) != neox_order(tap.y);
    memset(out, 0, sizeof *out);
    if (how->ctx_len < 1 || how->ctx_len > m->cfg.positions ||
        how->ctx_len >= (int64_t)1 << NEOX_ROW_BITS)
        return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT,
                         "ctx_len: expected 1 to the model's %lld positions, found %lld",
                         (long long)m->cfg.positions, (long long)how->ctx_len);
    neox_text *t = (neox_text *)dlrn_alloc(m->ctx, 1, sizeof *t);
    if (!t) return DLRN_ERR_MEMORY;
    memset(t, 0, sizeof *t);
    t->m = m, t->tok = tok, t->docs = docs, t->how = *how, t->tap = tap;
    t->row_cap = NEOX_BATCH_TOKENS + how->ctx_len;
    t->x = neox_floats(m, t->row_cap, m->cfg.dim);
    t->y = target ? neox_floats(m, t->row_cap, m->cfg.dim) : NULL;
    if (!t->x || (target && !t->y)) {
        neox_text_destroy(t);
        return DLRN_ERR_MEMORY;
    }
    out->d_in = m->cfg.dim;
    out->d_out = target ? out->d_in : 0;
    out->read = neox_text_read;
    out->error = neox_text_error;
    out->destroy = neox_text_destroy;
    out->user = t;
    out->position = neox_text_position;
    out->seek = neox_text_seek;
    return DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>judge

static dlrn_status neox_judge_visit(void *user, int tap, const float *x, float *y, int64_t n) {
    const dlrn_edit *edit = (const dlrn_edit *)user;
    return edit->edit(edit->user, tap, x, y, n);
}

/* Mean over all next tokens of all documents; run by run, so that memory is that of one. */
static dlrn_status neox_judge_cross_entropy(void *user, const dlrn_edit *edit, double *nats,
                                            int64_t *tokens) {
    neox_judge *j = (neox_judge *)user;
    const neox_documents *d = j->texts;
    dlrn_edit copy = {NULL, NULL};
    double sum = 0, part = 0;
    int64_t count = 0, n = 0;
    if (edit) copy = *edit;
    for (int64_t i = 0, end; i < d->count; i = end) {
        for (end = i + 1; end < d->count && d->start[end + 1] - d->start[i] <= NEOX_BATCH_TOKENS;)
            end++;
        neox_batch batch = {d->id, d->start + i, end - i};
        NEOX_TRY(
            neox_run(j->model, &batch, j->taps, edit ? j->n_taps : 0, neox_judge_visit, &copy, 1));
        NEOX_TRY(neox_cross_entropy(j->model, &batch, &part, &n));
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

static const char *neox_judge_error(void *user) {
    return dlrn_error(((neox_judge *)user)->model->ctx);
}

NEOX_API void neox_language_model(neox_judge *judge, dlrn_language_model *out) {
    memset(out, 0, sizeof *out);
    out->cross_entropy = neox_judge_cross_entropy;
    out->error = neox_judge_error;
    out->user = judge;
    out->sites = judge->n_taps;
    out->documents = judge->texts->count;
}
#endif /* GPTNEOX_IMPLEMENTATION */
