/* gptneox.h - runs GPT-NeoX language models (Pythia and their kin) on dictlearn.h's matrix products - MIT licence

   Do this in one file, after dictlearn.h and the implementations of bpe.h and documents.h:

       #define GPTNEOX_IMPLEMENTATION
       #include "gptneox.h"

   It reads a Hugging Face folder as it is downloaded (config.json; model.safetensors or pytorch_model.bin, sharded or
   not; f32, f16 or bf16), hands out the activations of any site of any layer, lets them be changed on their way, and
   measures the cross-entropy that the change costs. It also samples text. Weights are read when a run first needs their
   layer, so activations of layer 3 cost four layers of memory and time, whatever the model's depth.

   A batch is ragged: its sequences stand one after the other, x [tokens][d], without padding, so nothing has to be
   masked or dropped. Every number of a token depends on its sequence alone, not on what else is in the batch.

   The model, one block (HF's GPTNeoXLayer; LN: layer norm, x: residual stream [tokens][d]):

       attn_in = LN1(x)    attn_out = dense(attention(qkv(attn_in)))
       parallel residual:  mlp_in = LN2(x)             mlp_out = down(act(up(mlp_in)))    x += attn_out + mlp_out
       sequential:         mlp_in = LN2(x + attn_out)  mlp_out = down(act(up(mlp_in)))    x += attn_out + mlp_out

   CONTENTS
   >>interface  >>config  >>weights  >>workspace  >>block  >>head  >>sampling  >>text  >>judge
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
typedef enum neox_kind { NEOX_EMBED, NEOX_ATTN_IN, NEOX_ATTN_OUT, NEOX_MLP_IN, NEOX_MLP_OUT, NEOX_RESID_OUT } neox_kind;

typedef struct neox_site {
    neox_kind kind;
    int layer; /* 0 for the embedding */
} neox_site;

/* What a dictionary reads (x) and what it stands in for (y); the same site unless it stretches over a module. */
typedef struct neox_tap {
    neox_site x, y;
} neox_tap;

typedef enum neox_io { NEOX_IO_OUT, NEOX_IO_IN, NEOX_IO_IN_TO_OUT } neox_io;

typedef enum neox_activation { NEOX_GELU, NEOX_GELU_TANH, NEOX_RELU, NEOX_SILU } neox_activation;

typedef struct neox_config { /* config.json */
    int64_t dim, layers, heads, head_dim, inner, vocab, positions;
    int64_t rotary, rotary_span; /* of head_dim, how many dimensions turn (even); the span of their frequencies */
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
/* asked(user) is called between layers, on any thread: non-zero ends what runs with DLRN_STOPPED. NULL: never. A source
   of activations that was stopped loses no row. */
NEOX_API void neox_on_stop(neox_model *m, int (*asked)(void *user), void *user);

/* "resid_out" and a layer to a site; checked against the model. */
NEOX_API dlrn_status neox_site_named(const neox_model *m, const char *name, int64_t layer, neox_site *out);
/* What a dictionary at this site reads and gives: out: the site itself; in: what its module reads; in_to_out: both. */
NEOX_API dlrn_status neox_tap_at(const neox_model *m, neox_site site, neox_io io, neox_tap *out);

/* Sequence i holds tokens id[start[i]] .. id[start[i + 1] - 1]; start[0] need not be 0. All borrowed. */
typedef struct neox_batch {
    const int32_t *id;
    const int64_t *start; /* [sequences + 1] */
    int64_t sequences;
} neox_batch;

/* Called when tap's y is reached: x [n][d] what is read there, y [n][d] what the model goes on with, may be
   overwritten; x == y for a tap of one site. */
typedef dlrn_status (*neox_visit)(void *user, int tap, const float *x, float *y, int64_t n);

/* Runs the model over a batch. whole: to the last layer norm, as neox_logits and neox_cross_entropy need it; else it
   stops after the last tap. */
NEOX_API dlrn_status neox_run(neox_model *m, const neox_batch *batch, const neox_tap *taps, int n_taps,
                              neox_visit visit, void *user, int whole);
/* After a whole run: logits [rows][vocab] of its tokens [first, first + rows). */
NEOX_API dlrn_status neox_logits(neox_model *m, int64_t first, int64_t rows, float *logits);
/* After a whole run of this batch: sum over sequences of -log p(next token), and how many tokens that were. */
NEOX_API dlrn_status neox_cross_entropy(neox_model *m, const neox_batch *batch, double *nats, int64_t *tokens);

typedef struct neox_sampling {
    int64_t documents, tokens; /* how many; the most tokens of one, without the prompt */
    double temperature;        /* 0: the likeliest token                               */
    int64_t top_k;             /* 0: all                                               */
    uint64_t seed;
    const int32_t *prompt; /* [prompt_len >= 1], borrowed */
    int64_t prompt_len;
    int32_t stop; /* ends a document, and is not part of it; -1: none */
} neox_sampling;
/* Called once a document, in order: its new tokens id [n]. */
typedef dlrn_status (*neox_emit)(void *user, int64_t document, const int32_t *id, int64_t n);
/* Document i depends on seed and i alone. */
NEOX_API dlrn_status neox_generate(neox_model *m, const neox_sampling *cfg, neox_emit emit, void *user);

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

/* Up to `limit` further documents (-1: all) that have tokens, appended. DLRN_END if there was none. */
NEOX_API dlrn_status neox_read_documents(const neox_model *m, bpe_tokenizer *tok, doc_reader *docs,
                                         const neox_reading *how, int64_t limit, neox_documents *out);
NEOX_API void neox_documents_free(neox_documents *d);

/* A source of activations at a tap for the library's buffer: rows in the order of the text. Everything is borrowed;
   destroy the source before them. Seekable; a text on standard input goes forward alone. */
NEOX_API dlrn_status neox_text_source(neox_model *m, bpe_tokenizer *tok, doc_reader *docs, const neox_reading *how,
                                      neox_tap tap, dlrn_source *out);

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

#define NEOX_TRY(call)                                                                                                 \
    do {                                                                                                               \
        dlrn_status neox_s = (call);                                                                                   \
        if (neox_s != DLRN_OK) return neox_s;                                                                          \
    } while (0)

enum {
    NEOX_ROWS = 16,           /* rows of a parallel task                                                     */
    NEOX_BATCH_TOKENS = 2048, /* of a run: the products are at full speed, and the workspace is still small */
    NEOX_PANEL = 2048         /* vocabulary entries whose logits are held at once for the cross-entropy     */
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
    "input_layernorm.weight",          "input_layernorm.bias",          "attention.query_key_value.weight",
    "attention.query_key_value.bias",  "attention.dense.weight",        "attention.dense.bias",
    "post_attention_layernorm.weight", "post_attention_layernorm.bias", "mlp.dense_h_to_4h.weight",
    "mlp.dense_h_to_4h.bias",          "mlp.dense_4h_to_h.weight",      "mlp.dense_4h_to_h.bias",
};

typedef struct neox_layer {
    float *part[NEOX_PARTS]; /* all NULL until the layer is first needed; one block, at part[0] */
} neox_layer;

/* Keys and values of tokens already seen, for sampling: [layers][sequences][capacity][d]. */
typedef struct neox_cache {
    float *k, *v;
    int64_t sequences, capacity, past; /* past: tokens of every sequence in it */
} neox_cache;

struct neox_model {
    dlrn_context *ctx;
    neox_config cfg;
    dlrn_archive *archive;
    const char *prefix; /* of tensor names: "gpt_neox." or "" */
    neox_layer *layer;  /* [layers] */
    float *embed, *unembed, *final_w, *final_b;
    float *turn; /* [positions][rotary / 2][2]: cosine, sine */
    int (*stop)(void *user);
    void *stop_user;
    /* workspace of one run */
    int64_t capacity, tokens;
    float *x, *a, *qkv, *att, *mlp, *h; /* [capacity] rows of d, d, 3d, d, d, inner */
    int64_t *sequence, *position;       /* [capacity] of each token                 */
    float **captured;                   /* [n_captured] x of taps, [capacity][d]    */
    int n_captured;
    float *scores;     /* [threads][NEOX_ROWS][score_row]         */
    int64_t score_row; /* positions, up to a multiple of 16       */
    float *panel;      /* [NEOX_ROWS * 16][NEOX_PANEL] logits for the cross-entropy */
};

/* ------------------------------------------------------------------------------------------ */
// >>config

static dlrn_status neox_count(dlrn_context *ctx, const dlrn_json *json, const char *path, const char *key,
                              int64_t least, int64_t most, int64_t *out) {
    double v = dlrn_json_number(json, key, -1);
    if (!(v >= (double)least && v <= (double)most) || v != floor(v))
        return dlrn_fail(ctx, DLRN_ERR_FORMAT, "%s: %s: expected a whole number from %lld to %lld, found %s", path, key,
                         (long long)least, (long long)most, dlrn_json_get(json, key) ? "another value" : "none");
    *out = (int64_t)v;
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
    return dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED, "%s: hidden_act: expected a gelu, relu or silu, found %s", path, name);
}

/* The older keys (rotary_pct, rotary_emb_base) and the newer ones (rope_parameters, rope_scaling). */
static dlrn_status neox_parse_rotary(dlrn_context *ctx, const dlrn_json *json, const char *path, neox_config *c) {
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
        const char *type = dlrn_json_text(block, "rope_type", dlrn_json_text(block, "type", "default"));
        if (!strcmp(type, "linear"))
            c->scaling = dlrn_json_number(block, "factor", 1);
        else if (strcmp(type, "default"))
            return dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED, "%s: %s: expected rope_type default or linear, found %s", path,
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

static dlrn_status neox_parse_config(dlrn_context *ctx, const dlrn_json *json, const char *path, neox_config *c) {
    const char *type = dlrn_json_text(json, "model_type", "none");
    if (strcmp(type, "gpt_neox"))
        return dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED, "%s: model_type: expected gpt_neox, found %s", path, type);
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
    c->parallel = neox_true(json, "use_parallel_residual", 1);
    c->tied = neox_true(json, "tie_word_embeddings", 0);
    c->attention_bias = neox_true(json, "attention_bias", 1);
    c->bos = (int32_t)dlrn_json_number(json, "bos_token_id", -1);
    c->eos = (int32_t)dlrn_json_number(json, "eos_token_id", -1);
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
        dlrn_fail(m->ctx, DLRN_ERR_FORMAT, "%s: %s: expected a tensor of this name, found none", path, name);
        return -1;
    }
    if (t->ndim != (cols > 1 ? 2 : 1) || t->shape[0] != rows || (cols > 1 && t->shape[1] != cols)) {
        dlrn_fail(m->ctx, DLRN_ERR_SHAPE, "%s: %s: expected %lld x %lld, found %d dimensions, %lld x %lld", path, name,
                  (long long)rows, (long long)cols, t->ndim, (long long)(t->ndim > 0 ? t->shape[0] : 1),
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

/* All tensors are there and have their shapes: said when the model is opened, not when a layer is first needed. */
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
            s = dlrn_archive_read(m->archive, dlrn_archive_find(m->archive, name), at);
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

static dlrn_status neox_read_matrix(neox_model *m, const char *prefix, const char *base, int64_t rows, int64_t cols,
                                    float **out) {
    char name[160];
    if (*out) return DLRN_OK;
    snprintf(name, sizeof name, "%s%s", prefix, base);
    int64_t index = neox_find(m, name, rows, cols);
    if (index < 0) return DLRN_ERR_FORMAT;
    float *block = (float *)dlrn_alloc(m->ctx, rows * cols, sizeof *block);
    if (!block) return DLRN_ERR_MEMORY;
    dlrn_status s = dlrn_archive_read(m->archive, index, block);
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
    const char *name = dlrn_archive_find(m->archive, "lm_head.weight") >= 0 ? "lm_head.weight" : "embed_out.weight";
    if (!c->tied) return neox_read_matrix(m, "", name, c->vocab, c->dim, &m->unembed);
    m->unembed = m->embed;
    return DLRN_OK;
}

/* The folder's weights, in the order in which transformers looks for them. */
static dlrn_status neox_open_weights(neox_model *m, const char *folder) {
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                                        "pytorch_model.bin.index.json"};
    char path[4200];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        if (dlrn_file_exists(path) == 1) return dlrn_archive_open(m->ctx, path, &m->archive);
    }
    return dlrn_fail(m->ctx, DLRN_ERR_IO,
                     "%s: expected model.safetensors or pytorch_model.bin (or their .index.json), found none", folder);
}

/* cos and sin of position * theta^(-2 i / rotary_span), as HF's rotary embedding tables have them. */
static dlrn_status neox_make_turns(neox_model *m) {
    int64_t half = m->cfg.rotary / 2;
    m->turn = (float *)dlrn_alloc(m->ctx, m->cfg.positions * half * 2 + 1, sizeof *m->turn);
    if (!m->turn) return DLRN_ERR_MEMORY;
    for (int64_t i = 0; i < half; i++) {
        double rate = pow(m->cfg.theta, -2.0 * (double)i / (double)m->cfg.rotary_span) / m->cfg.scaling;
        for (int64_t p = 0; p < m->cfg.positions; p++) {
            double angle = (double)((float)p * (float)rate); /* the reference multiplies in f32 */
            m->turn[(p * half + i) * 2] = (float)cos(angle);
            m->turn[(p * half + i) * 2 + 1] = (float)sin(angle);
        }
    }
    return DLRN_OK;
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
    dlrn_status s = neox_open_weights(m, folder);
    if (s == DLRN_OK) m->prefix = dlrn_archive_find(m->archive, "embed_in.weight") >= 0 ? "" : "gpt_neox.";
    if (s == DLRN_OK) s = neox_check_layers(m);
    if (s == DLRN_OK) {
        m->layer = (neox_layer *)dlrn_alloc(ctx, cfg.layers, sizeof *m->layer);
        s = m->layer ? DLRN_OK : DLRN_ERR_MEMORY;
    }
    if (s == DLRN_OK) memset(m->layer, 0, (size_t)cfg.layers * sizeof *m->layer);
    if (s == DLRN_OK) s = neox_read_matrix(m, m->prefix, "embed_in.weight", cfg.vocab, cfg.dim, &m->embed);
    if (s == DLRN_OK) s = neox_make_turns(m);
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
    m->x = m->a = m->qkv = m->att = m->mlp = m->h = m->scores = m->panel = NULL;
    m->sequence = m->position = NULL;
    m->captured = NULL;
    m->capacity = m->n_captured = 0;
}

static void neox_drop_workspace(neox_model *m) {
    void *blocks[] = {m->x, m->a, m->qkv, m->att, m->mlp, m->h, m->sequence, m->position, m->scores, m->panel};
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
    return cols && rows > INT64_MAX / cols ? NULL : (float *)dlrn_alloc(m->ctx, rows * cols, sizeof(float));
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
    m->score_row = (m->cfg.positions + 15) / 16 * 16;
    m->scores = neox_floats(m, dlrn_threads(m->ctx) * NEOX_ROWS, m->score_row);
    m->panel = neox_floats(m, 16 * NEOX_ROWS, NEOX_PANEL);
    if (!m->x || !m->a || !m->qkv || !m->att || !m->mlp || !m->h || !m->sequence || !m->position || !m->scores ||
        !m->panel) {
        neox_drop_workspace(m);
        return DLRN_ERR_MEMORY;
    }
    m->capacity = tokens;
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

/* A site is reached, its value v [tokens][d]: the taps that read here keep a copy, those that end here are visited. */
static dlrn_status neox_reach(neox_pass *p, neox_kind kind, int64_t layer, float *v) {
    neox_model *m = p->m;
    neox_site here = {kind, (int)layer};
    int64_t order = neox_order(here);
    for (int t = 0; t < p->n_taps; t++) {
        int64_t x = neox_order(p->taps[t].x), y = neox_order(p->taps[t].y);
        if (x == order && y != order) memcpy(m->captured[t], v, (size_t)(m->tokens * m->cfg.dim) * sizeof *v);
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

/* Layer norm: biased variance, as torch has it; sums in f64. */
static void neox_norm_rows(void *arg, int64_t task, int worker) {
    neox_rows *j = (neox_rows *)arg;
    (void)worker;
    for (int64_t i = task * NEOX_ROWS; i < neox_task_end(j, task); i++) {
        const float *x = j->in + i * j->width;
        float *y = j->out + i * j->width;
        double sum = 0, squares = 0;
        for (int64_t c = 0; c < j->width; c++) sum += (double)x[c];
        double mean = sum / (double)j->width;
        for (int64_t c = 0; c < j->width; c++) squares += ((double)x[c] - mean) * ((double)x[c] - mean);
        float rate = (float)(1 / sqrt(squares / (double)j->width + j->pass->m->cfg.eps)), middle = (float)mean;
        for (int64_t c = 0; c < j->width; c++) y[c] = (x[c] - middle) * rate * j->weight[c] + j->bias[c];
    }
}

static void neox_layer_norm(neox_pass *p, const float *x, const float *weight, const float *bias, float *y) {
    neox_rows job = {p, p->m->tokens, p->m->cfg.dim, 0, x, weight, bias, y};
    neox_each_row(p->m, &job, neox_norm_rows);
}

static void neox_bias_rows(void *arg, int64_t task, int worker) {
    neox_rows *j = (neox_rows *)arg;
    (void)worker;
    for (int64_t i = task * NEOX_ROWS; i < neox_task_end(j, task); i++)
        memcpy(j->out + i * j->width, j->bias, (size_t)j->width * sizeof(float));
}

/* y [tokens][out] = x [tokens][in] W^T + b */
static dlrn_status neox_linear(neox_pass *p, const float *x, int64_t in, const float *w, const float *b, int64_t out,
                               float *y) {
    neox_rows job = {p, p->m->tokens, out, 0, NULL, NULL, b, y};
    neox_each_row(p->m, &job, neox_bias_rows);
    return dlrn_gemm(p->m->ctx, DLRN_NT, p->m->tokens, out, in, x, in, w, in, 1, y, out);
}

/* Rotates the first `rotary` dimensions of v, pairs half of them apart (GPT-NeoX's rotate_half). */
static void neox_turn(float *v, const float *turn, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        float c = turn[2 * i], s = turn[2 * i + 1], a = v[i], b = v[i + half];
        v[i] = a * c - b * s;
        v[i + half] = b * c + a * s;
    }
}

/* Queries and keys are turned to their positions; with a cache, keys and values are laid down in it. A row of qkv is
   [heads][q, k, v][head_dim]. */
static void neox_turn_rows(void *arg, int64_t task, int worker) {
    neox_rows *j = (neox_rows *)arg;
    neox_model *m = j->pass->m;
    neox_cache *cache = j->pass->cache;
    const int64_t hd = m->cfg.head_dim, half = m->cfg.rotary / 2;
    (void)worker;
    for (int64_t i = task * NEOX_ROWS; i < neox_task_end(j, task); i++) {
        const float *turn = m->turn + m->position[i] * half * 2;
        for (int64_t h = 0; h < m->cfg.heads; h++) {
            float *q = m->qkv + i * 3 * m->cfg.dim + h * 3 * hd;
            neox_turn(q, turn, half);
            neox_turn(q + hd, turn, half);
            if (!cache) continue;
            int64_t row = (j->layer * cache->sequences + m->sequence[i]) * cache->capacity + m->position[i];
            memcpy(cache->k + row * m->cfg.dim + h * hd, q + hd, (size_t)hd * sizeof *q);
            memcpy(cache->v + row * m->cfg.dim + h * hd, q + 2 * hd, (size_t)hd * sizeof *q);
        }
    }
}

/* e^x for x [16] <= 0 in place, to 2e-7 of the value: 2^n e^r, r within ln 2 / 2, by a polynomial. A fixed number of
   steps without a branch, so that compilers vectorise it: four times the speed of sixteen calls of expf. */
static void neox_exp16(float *x) {
    const float round = 12582912.0f; /* 1.5 * 2^23: what is added to it is rounded to a whole number */
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

/* x [n], with room up to a multiple of 16, to e^(x - top); their sum. */
static double neox_exp_sum(float *x, int64_t n, float top) {
    double sum = 0;
    for (int64_t t = n; t < (n + 15) / 16 * 16; t++) x[t] = top;
    for (int64_t t = 0; t < n; t += 16) {
        for (int i = 0; i < 16; i++) x[t + i] -= top;
        neox_exp16(x + t);
    }
    for (int64_t t = 0; t < n; t++) sum += (double)x[t];
    return sum;
}

static float neox_largest(const float *x, int64_t n, float top) {
    for (int64_t t = 0; t < n; t++) top = x[t] > top ? x[t] : top;
    return top;
}

/* Queries [first, first + n) of one head over the keys and values of their sequence: to out [n][head_dim]. Within the
   block all queries see all keys; what lies ahead of a query gets the weight 0. */
static void neox_attend(neox_model *m, int64_t first, int64_t n, const float *q, const float *k, const float *v,
                        int64_t stride, float *score, float *out) {
    const int64_t d = m->cfg.dim, hd = m->cfg.head_dim, keys = m->position[first + n - 1] + 1, row = m->score_row;
    const float scale = (float)(1 / sqrt((double)hd));
    dlrn_status s = dlrn_gemm_serial(m->ctx, DLRN_NT, n, keys, hd, q, 3 * d, k, stride, 0, score, row);
    float share[NEOX_ROWS];
    for (int64_t i = 0; i < n; i++) {
        float *mine = score + i * row;
        int64_t seen = m->position[first + i] + 1;
        for (int64_t t = 0; t < seen; t++) mine[t] *= scale;
        share[i] = (float)(1 / neox_exp_sum(mine, seen, neox_largest(mine, seen, -INFINITY)));
        for (int64_t t = seen; t < keys; t++) mine[t] = 0;
    }
    if (s == DLRN_OK) s = dlrn_gemm_serial(m->ctx, DLRN_NN, n, hd, keys, score, row, v, stride, 0, out, d);
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < hd; c++) out[i * d + c] *= share[i];
    (void)s; /* the products' arguments are ours, and right */
}

/* A task: one head of one sequence. */
static void neox_attend_head(void *arg, int64_t task, int worker) {
    neox_rows *j = (neox_rows *)arg;
    neox_model *m = j->pass->m;
    const neox_cache *cache = j->pass->cache;
    const neox_batch *b = j->pass->batch;
    const int64_t d = m->cfg.dim, hd = m->cfg.head_dim, h = task % m->cfg.heads, s = task / m->cfg.heads;
    const int64_t first = b->start[s] - b->start[0], end = b->start[s + 1] - b->start[0];
    const float *k = m->qkv + first * 3 * d + h * 3 * hd + hd, *v = k + hd;
    int64_t stride = 3 * d;
    if (cache) {
        int64_t row = (j->layer * cache->sequences + s) * cache->capacity;
        k = cache->k + row * d + h * hd;
        v = cache->v + row * d + h * hd;
        stride = d;
    }
    for (int64_t i = first; i < end; i += NEOX_ROWS)
        neox_attend(m, i, end - i < NEOX_ROWS ? end - i : NEOX_ROWS, m->qkv + i * 3 * d + h * 3 * hd, k, v, stride,
                    m->scores + worker * NEOX_ROWS * m->score_row, j->out + i * d + h * hd);
}

/* attn_in [tokens][d] in a, attn_out to att; the heads' results pass through mlp, which is not yet in use. */
static dlrn_status neox_attention(neox_pass *p, int64_t l) {
    neox_model *m = p->m;
    const neox_layer *w = &m->layer[l];
    const int64_t d = m->cfg.dim;
    neox_rows job = {p, m->tokens, d, l, NULL, NULL, NULL, m->mlp};
    NEOX_TRY(neox_linear(p, m->a, d, w->part[NEOX_QKV_W], w->part[NEOX_QKV_B], 3 * d, m->qkv));
    neox_each_row(m, &job, neox_turn_rows);
    dlrn_parallel_for(m->ctx, p->batch->sequences * m->cfg.heads, neox_attend_head, &job);
    return neox_linear(p, m->mlp, d, w->part[NEOX_DENSE_W], w->part[NEOX_DENSE_B], d, m->att);
}

/* x Phi(x) for x [16] in place; erf by a rational approximation, to 4e-7: branch-free, so that compilers vectorise it
   (sampling from a model of width 128: 13 % of the time went into erff). */
static void neox_gelu16(float *x) {
    for (int i = 0; i < 16; i++) {
        float z = x[i] * 0.70710678f;
        z = z < -4.0f ? -4.0f : z;
        z = z > 4.0f ? 4.0f : z;
        float t = z * z;
        float p = ((-1.36668043e-8f * t + 4.78054407e-6f) * t + 3.82692349e-4f) * t + 3.83952747e-3f;
        p = ((p * t + 5.43325936e-2f) * t + 1.84710302e-1f) * t + 1.12837918f;
        float q = ((6.40093117e-5f * t + 1.30957884e-3f) * t + 1.54535132e-2f) * t + 1.13826292e-1f;
        q = (q * t + 4.97028789e-1f) * t + 1.0f;
        float erf_z = z * p / q;
        erf_z = erf_z < -1.0f ? -1.0f : erf_z;
        erf_z = erf_z > 1.0f ? 1.0f : erf_z;
        x[i] = 0.5f * x[i] * (1.0f + erf_z);
    }
}

static float neox_activate(neox_activation kind, float x) {
    switch (kind) {
    case NEOX_GELU_TANH: return 0.5f * x * (1 + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    case NEOX_SILU: return x / (1 + expf(-x));
    case NEOX_RELU: return x > 0 ? x : 0 * x; /* NaN stays */
    case NEOX_GELU: break;
    }
    return 0.5f * x * (1 + erff(x * 0.70710678f));
}

static void neox_activate_rows(void *arg, int64_t task, int worker) {
    neox_rows *j = (neox_rows *)arg;
    const neox_activation kind = j->pass->m->cfg.activation;
    int64_t i = task * NEOX_ROWS * j->width, end = neox_task_end(j, task) * j->width;
    (void)worker;
    for (; kind == NEOX_GELU && j->width % 16 == 0 && i < end; i += 16) neox_gelu16(j->out + i);
    for (; i < end; i++) j->out[i] = neox_activate(kind, j->out[i]);
}

/* mlp_in in a, mlp_out to mlp. */
static dlrn_status neox_mlp(neox_pass *p, int64_t l) {
    neox_model *m = p->m;
    const neox_layer *w = &m->layer[l];
    NEOX_TRY(neox_linear(p, m->a, m->cfg.dim, w->part[NEOX_UP_W], w->part[NEOX_UP_B], m->cfg.inner, m->h));
    neox_rows job = {p, m->tokens, m->cfg.inner, l, NULL, NULL, NULL, m->h};
    neox_each_row(m, &job, neox_activate_rows);
    return neox_linear(p, m->h, m->cfg.inner, w->part[NEOX_DOWN_W], w->part[NEOX_DOWN_B], m->cfg.dim, m->mlp);
}

static void neox_add_rows(void *arg, int64_t task, int worker) {
    neox_rows *j = (neox_rows *)arg;
    (void)worker;
    for (int64_t i = task * NEOX_ROWS * j->width; i < neox_task_end(j, task) * j->width; i++) j->out[i] += j->in[i];
}

static void neox_add(neox_pass *p, const float *x, float *y) {
    neox_rows job = {p, p->m->tokens, p->m->cfg.dim, 0, x, NULL, NULL, y};
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
    for (int t = 0; t < p->n_taps; t++) /* parallel residual: mlp_in and mlp_out do not wait for the attention */
        attention_matters |= p->taps[t].y.layer == (int)l && p->taps[t].y.kind == NEOX_ATTN_OUT;
    if (attention_matters) NEOX_TRY(neox_attention(p, l));
    if (attention_matters) NEOX_TRY(neox_reach(p, NEOX_ATTN_OUT, l, m->att));
    if (neox_done(p, NEOX_ATTN_OUT, l)) return DLRN_OK;
    if (!m->cfg.parallel) neox_add(p, m->att, m->x);
    neox_layer_norm(p, m->x, w->part[NEOX_LN2_W], w->part[NEOX_LN2_B], m->a);
    NEOX_TRY(neox_reach(p, NEOX_MLP_IN, l, m->a));
    if (neox_done(p, NEOX_MLP_IN, l)) return DLRN_OK;
    NEOX_TRY(neox_mlp(p, l));
    NEOX_TRY(neox_reach(p, NEOX_MLP_OUT, l, m->mlp));
    if (neox_done(p, NEOX_MLP_OUT, l)) return DLRN_OK;
    if (m->cfg.parallel) neox_add(p, m->att, m->mlp); /* HF's order: (mlp + attention) + x */
    neox_add(p, m->mlp, m->x);
    return neox_reach(p, NEOX_RESID_OUT, l, m->x);
}

/* Sequences and positions of the batch's tokens; ids and lengths are checked here, once. */
static dlrn_status neox_lay_out(neox_pass *p) {
    neox_model *m = p->m;
    const neox_batch *b = p->batch;
    int64_t past = p->cache ? p->cache->past : 0;
    m->tokens = b->start[b->sequences] - b->start[0];
    NEOX_TRY(neox_reserve(m, m->tokens));
    for (int64_t s = 0, i = 0; s < b->sequences; s++) {
        int64_t n = b->start[s + 1] - b->start[s];
        if (n < 0 || past + n > m->cfg.positions)
            return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT, "sequence %lld: expected at most %lld tokens, found %lld",
                             (long long)s, (long long)m->cfg.positions, (long long)(past + n));
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
    return DLRN_OK;
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
        if (m->stop && m->stop(m->stop_user)) return dlrn_fail(m->ctx, DLRN_STOPPED, "stopped within a run");
        NEOX_TRY(neox_block(p, l));
    }
    if (!whole) return DLRN_OK;
    NEOX_TRY(neox_need_head(m));
    neox_layer_norm(p, m->x, m->final_w, m->final_b, m->a);
    return DLRN_OK;
}

NEOX_API dlrn_status neox_run(neox_model *m, const neox_batch *batch, const neox_tap *taps, int n_taps,
                              neox_visit visit, void *user, int whole) {
    neox_pass p = {m, batch, NULL, taps, n_taps, visit, user, 0};
    return neox_pass_through(&p, whole);
}

NEOX_API dlrn_status neox_site_named(const neox_model *m, const char *name, int64_t layer, neox_site *out) {
    static const char *const names[] = {"embed", "attn_in", "attn_out", "mlp_in", "mlp_out", "resid_out"};
    for (int k = 0; k < 6; k++) {
        if (strcmp(name, names[k])) continue;
        if (k != NEOX_EMBED && (layer < 0 || layer >= m->cfg.layers))
            return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT, "site %s: expected a layer from 0 to %lld, found %lld", name,
                             (long long)m->cfg.layers - 1, (long long)layer);
        out->kind = (neox_kind)k;
        out->layer = k == NEOX_EMBED ? 0 : (int)layer;
        return DLRN_OK;
    }
    return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT,
                     "site: expected embed, resid_out, mlp_in, mlp_out, attn_in or attn_out, found %s", name);
}

/* The input of a site's module: of an attention attn_in, of an MLP mlp_in, of a block the residual before it. */
NEOX_API dlrn_status neox_tap_at(const neox_model *m, neox_site site, neox_io io, neox_tap *out) {
    neox_site in = site;
    if (io == NEOX_IO_OUT) {
        out->x = out->y = site;
        return DLRN_OK;
    }
    if (site.kind == NEOX_EMBED)
        return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT, "site embed: its input is token ids, only --io out fits");
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
    return dlrn_gemm(m->ctx, DLRN_NT, rows, v, d, m->a + first * d, d, m->unembed, d, 0, logits, v);
}

/* log-sum-exp over the vocabulary, a panel of logits at a time. */
typedef struct neox_softmax {
    neox_pass *pass;
    int64_t first, rows, from, width; /* tokens [first, first + rows), entries [from, from + width) of the panel */
    float top[16 * NEOX_ROWS];        /* largest logit so far                */
    double sum[16 * NEOX_ROWS];       /* of exp(logit - top)                 */
    float target[16 * NEOX_ROWS];     /* logit of the token that really came */
} neox_softmax;

static void neox_softmax_row(neox_softmax *j, int64_t i) {
    const neox_batch *b = j->pass->batch;
    float *logit = j->pass->m->panel + i * NEOX_PANEL;
    float top = neox_largest(logit, j->width, j->top[i]);
    int64_t token = b->start[0] + j->first + i;
    int64_t next = token + 1 < b->start[b->sequences] ? b->id[token + 1] : -1;
    if (next >= j->from && next < j->from + j->width) j->target[i] = logit[next - j->from];
    j->sum[i] = j->sum[i] * exp((double)j->top[i] - (double)top) + neox_exp_sum(logit, j->width, top);
    j->top[i] = top;
}

static void neox_softmax_rows(void *arg, int64_t task, int worker) {
    neox_softmax *j = (neox_softmax *)arg;
    int64_t end = (task + 1) * NEOX_ROWS;
    (void)worker;
    for (int64_t i = task * NEOX_ROWS; i < (end < j->rows ? end : j->rows); i++) neox_softmax_row(j, i);
}

static dlrn_status neox_softmax_panels(neox_softmax *j) {
    neox_model *m = j->pass->m;
    const int64_t d = m->cfg.dim;
    for (int64_t i = 0; i < j->rows; i++) j->top[i] = -INFINITY, j->sum[i] = 0;
    for (j->from = 0; j->from < m->cfg.vocab; j->from += NEOX_PANEL) {
        j->width = m->cfg.vocab - j->from < NEOX_PANEL ? m->cfg.vocab - j->from : NEOX_PANEL;
        NEOX_TRY(dlrn_gemm(m->ctx, DLRN_NT, j->rows, j->width, d, m->a + j->first * d, d, m->unembed + j->from * d, d,
                           0, m->panel, NEOX_PANEL));
        dlrn_parallel_for(m->ctx, (j->rows + NEOX_ROWS - 1) / NEOX_ROWS, neox_softmax_rows, j);
    }
    return DLRN_OK;
}

NEOX_API dlrn_status neox_cross_entropy(neox_model *m, const neox_batch *batch, double *nats, int64_t *tokens) {
    neox_pass p = {m, batch, NULL, NULL, 0, NULL, NULL, 0};
    neox_softmax j;
    *nats = 0;
    *tokens = 0;
    j.pass = &p;
    for (j.first = 0; j.first < m->tokens; j.first += 16 * NEOX_ROWS) {
        j.rows = m->tokens - j.first < 16 * NEOX_ROWS ? m->tokens - j.first : 16 * NEOX_ROWS;
        NEOX_TRY(neox_softmax_panels(&j));
        for (int64_t i = 0; i < j.rows; i++) {
            int64_t s = m->sequence[j.first + i];
            if (batch->start[0] + j.first + i + 1 == batch->start[s + 1]) continue; /* the last has no next */
            *nats += (double)j.top[i] + log(j.sum[i]) - (double)j.target[i];
            *tokens += 1;
        }
    }
    return DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>sampling

/* A worker draws a group of documents at a time, by itself: with its own context of one thread and its own workspace
   over the model's weights. The steps of a document are many and small, so threads that share each of them would mostly
   wait for each other (two threads, idle machine: 9,300 tokens a second together, 12,000 apart; on a busy machine ten
   times less together). */
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
            for (at = size++; at > 0 && heap[(at - 1) / 2] > x[i]; at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2];
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

/* Draws from softmax(x / temperature) over the entries >= least; x is overwritten. */
static int32_t neox_draw_from(float *x, int64_t n, double temperature, float least, dlrn_rng *rng) {
    float rate = (float)(1 / temperature);
    double total, sum = 0;
    int64_t last = 0;
    for (int64_t i = 0; i < n; i++) x[i] = x[i] >= least ? x[i] * rate : -INFINITY;
    total = neox_exp_sum(x, n, neox_largest(x, n, -INFINITY));
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
    if (c->top_k > 0 && c->top_k < v) least = neox_threshold(x, v, g->kept + i * c->top_k, c->top_k);
    int32_t id = c->temperature > 0 ? neox_draw_from(x, v, c->temperature, least, &rng) : neox_likeliest(x, v);
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
    return dlrn_gemm(m->ctx, DLRN_NT, g->rows, v, d, m->a + (each - 1) * d, each * d, m->unembed, d, 0, g->logits,
                     g->stride);
}

static dlrn_status neox_generate_group(neox_draw *g) {
    const neox_sampling *c = g->cfg;
    int64_t open = g->rows;
    for (int64_t i = 0; i < g->rows; i++) {
        memcpy(g->prompts + i * c->prompt_len, c->prompt, (size_t)c->prompt_len * sizeof *g->prompts);
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

/* Documents that a worker draws at once: logits and cache within about 256 MB, prompts within a run's tokens. */
static int64_t neox_group(const neox_model *m, const neox_sampling *c, int64_t workers) {
    int64_t each = m->cfg.vocab + 2 * m->cfg.layers * (c->prompt_len + c->tokens) * m->cfg.dim;
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
    void *blocks[] = {g->cache.k, g->cache.v, g->logits, g->kept, g->id, g->length, g->next, g->start, g->prompts};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) dlrn_free(ctx, blocks[i]);
    dlrn_context_destroy(ctx);
}

static dlrn_status neox_draw_open(neox_draw *g, const neox_model *m, const neox_sampling *cfg, int64_t rows) {
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
    g->cache.capacity = cfg->prompt_len + cfg->tokens;
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
    return g->cache.k && g->cache.v && g->logits && g->kept && g->id && g->length && g->next && g->start && g->prompts
               ? DLRN_OK
               : DLRN_ERR_MEMORY;
}

/* Rounds: each worker a group, then all of it in order. */
static dlrn_status neox_generate_rounds(neox_model *m, neox_draw *g, int64_t workers, int64_t rows, neox_emit emit,
                                        void *user) {
    const int64_t documents = g->cfg->documents;
    for (int64_t first = 0; first < documents; first += workers * rows) {
        for (int64_t w = 0; w < workers; w++) {
            g[w].first = first + w * rows;
            g[w].rows = documents - g[w].first < rows ? documents - g[w].first : rows;
        }
        dlrn_parallel_for(m->ctx, workers, neox_generate_task, g);
        for (int64_t w = 0; w < workers; w++) {
            if (g[w].status != DLRN_OK) return dlrn_fail(m->ctx, g[w].status, "%s", dlrn_error(g[w].m.ctx));
            NEOX_TRY(neox_emit_group(&g[w], emit, user));
        }
    }
    return DLRN_OK;
}

NEOX_API dlrn_status neox_generate(neox_model *m, const neox_sampling *cfg, neox_emit emit, void *user) {
    if (cfg->prompt_len < 1 || cfg->tokens < 1 || cfg->prompt_len + cfg->tokens > m->cfg.positions)
        return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT,
                         "generate: expected a prompt and tokens, together at most the model's %lld positions, found "
                         "%lld and %lld",
                         (long long)m->cfg.positions, (long long)cfg->prompt_len, (long long)cfg->tokens);
    int64_t workers = dlrn_threads(m->ctx) < cfg->documents ? dlrn_threads(m->ctx) : cfg->documents;
    int64_t rows = neox_group(m, cfg, workers > 0 ? workers : 1);
    dlrn_status s = neox_need_head(m);
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

static dlrn_status neox_append(const neox_model *m, const neox_reading *how, const bpe_ids *ids, neox_documents *out) {
    int64_t at = out->count ? out->start[out->count] : 0, bos = how->bos && m->cfg.bos >= 0;
    int64_t n = ids->count + bos < how->ctx_len ? ids->count + bos : how->ctx_len;
    out->ctx = m->ctx;
    NEOX_TRY(bpe_widen(m->ctx, &out->start, &out->start_cap, out->start ? out->count + 1 : 0, out->count + 2,
                       sizeof *out->start));
    NEOX_TRY(bpe_widen(m->ctx, &out->id, &out->id_cap, at, at + n, sizeof *out->id));
    out->start[0] = 0;
    if (bos) out->id[at] = m->cfg.bos;
    memcpy(out->id + at + bos, ids->id, (size_t)(n - bos) * sizeof *ids->id);
    out->start[++out->count] = at + n;
    return DLRN_OK;
}

NEOX_API dlrn_status neox_read_documents(const neox_model *m, bpe_tokenizer *tok, doc_reader *docs,
                                         const neox_reading *how, int64_t limit, neox_documents *out) {
    const char *text = NULL;
    int64_t bytes = 0, got = 0;
    bpe_ids ids;
    memset(&ids, 0, sizeof ids);
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

typedef enum neox_stage { NEOX_DONE, NEOX_READING, NEOX_WAITING } neox_stage; /* its rows are there; not yet: read */

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
        NEOX_TRY(bpe_widen(t->m->ctx, &t->place, &t->place_cap, t->batch.count, t->batch.count + 1, sizeof *t->place));
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

NEOX_API dlrn_status neox_text_source(neox_model *m, bpe_tokenizer *tok, doc_reader *docs, const neox_reading *how,
                                      neox_tap tap, dlrn_source *out) {
    int target = neox_order(tap.x) != neox_order(tap.y);
    memset(out, 0, sizeof *out);
    if (how->ctx_len < 1 || how->ctx_len > m->cfg.positions || how->ctx_len >= (int64_t)1 << NEOX_ROW_BITS)
        return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT, "ctx_len: expected 1 to the model's %lld positions, found %lld",
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
    out->activation_dim = m->cfg.dim;
    out->has_target = target;
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
static dlrn_status neox_judge_cross_entropy(void *user, const dlrn_edit *edit, double *nats, int64_t *tokens) {
    neox_judge *j = (neox_judge *)user;
    const neox_documents *d = j->texts;
    dlrn_edit copy = {NULL, NULL};
    double sum = 0, part = 0;
    int64_t count = 0, n = 0;
    if (edit) copy = *edit;
    for (int64_t i = 0, end; i < d->count; i = end) {
        for (end = i + 1; end < d->count && d->start[end + 1] - d->start[i] <= NEOX_BATCH_TOKENS;) end++;
        neox_batch batch = {d->id, d->start + i, end - i};
        NEOX_TRY(neox_run(j->model, &batch, j->taps, edit ? j->n_taps : 0, neox_judge_visit, &copy, 1));
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
