/* lm_hf.h - the engine of lm.h for Hugging Face folders, which lm.h includes - MIT licence

   It reads a folder as downloaded (config.json; model.safetensors or pytorch_model.bin, sharded or
   not; f32, f16 or bf16) and runs it on dictlearn.h's matrix products. It needs no other library. A
   layer's weights are read when a run first needs them, so activations of layer 3 cost four layers
   of memory and time, however deep the model is. A batch is run without padding, so nothing has to
   be masked. The numbers of a token depend on its sequence alone, not on the rest of the batch, and
   are the same with every kernel set and number of threads.

   TO ADD AN ARCHITECTURE write one file beside lm_gptneox.h, include it where that one is, and add
   one row to HF_ARCHITECTURE_LIST.
   The file holds
     - a parser that fills an lm_config and an hf_shape from config.json,
     - a table of tensors: role, name in the file, shape,
     - a block: the operations of a layer, in order, and hf_reach at each site.
   What operations exist today is what GPT-NeoX needs. The shape has room for the others:
     grouped queries (GQA)     kv_heads below heads: hf_attention_heads honours it
     q, k, v in another order  hf_shape.q, .k, .v say where a head's numbers are in a row of qkv
     other rotary embeddings   hf_architecture.rope_rate; rope.dims 0: none
     RMS norm                  a function beside hf_layer_norm, which the block calls instead
     gated MLP                 a role HF_GATE, and a function beside hf_mlp_up
   A model in a GGUF file needs none of this: llama.cpp runs it, see lm_llama.h.

   CONTENTS
   >>architectures  what a file for one architecture provides and may call
   >>model          weights, workspace and cache of a model, and one run
   >>config         config.json
   >>weights        tensors by role
   >>workspace      scratch memory of a run
   >>operations     what blocks are made of
   >>run            a batch through the model
   >>head           logits and cross-entropy
   >>cache          runs behind tokens that were seen before, for sampling
   >>tokenizer      tokenizer.json
   >>engine         the row of lm.h's table
*/
#ifndef LM_HF_H
#define LM_HF_H

/* The architectures: one row each, the model_type of config.json; hf_ID is in lm_ID.h. */
#define HF_ARCHITECTURE_LIST(X) X(gptneox, "gpt_neox", "")
#define HF_MODEL_TYPES HF_ARCHITECTURE_LIST(LM_IN_TEXT)

/* ------------------------------------------------------------------------------------------ */
// >>architectures

typedef enum hf_activation {
    HF_GELU,
    HF_GELU_CLIPPED, /* to [-10, 10] */
    HF_GELU_TANH,
    HF_GELU_SIGMOID,
    HF_RELU,
    HF_SILU
} hf_activation;

/* Where a head's numbers are in a row of queries, keys and values: head h begins at
   first + h step. */
typedef struct hf_heads {
    int64_t first, step;
} hf_heads;

/* Rotary embedding: the first `dims` (even) dimensions of a head turn. */
typedef struct hf_rope {
    int64_t dims, span; /* span: what the frequencies are spread over */
    double theta, scaling;
} hf_rope;

/* What this engine knows of a model beyond its lm_config. */
typedef struct hf_shape {
    const struct hf_architecture *architecture;
    int64_t head_dim;
    hf_heads q, k, v;
    hf_rope rope;
    double eps; /* of the norms */
    hf_activation activation;
    int parallel; /* 1: attention and MLP both read the block's input */
    int tied;     /* 1: the unembedding is the embedding              */
    unsigned has; /* tensors that only some models have: see hf_tensor.needs */
} hf_shape;

/* What a tensor is for. Those before HF_LAYER_ROLES belong to a layer. */
typedef enum hf_role {
    HF_NORM1,
    HF_NORM1_BIAS,
    HF_QKV,
    HF_QKV_BIAS,
    HF_ATTN, /* from the heads to the residual stream */
    HF_ATTN_BIAS,
    HF_NORM2,
    HF_NORM2_BIAS,
    HF_UP,
    HF_UP_BIAS,
    HF_DOWN,
    HF_DOWN_BIAS,
    HF_LAYER_ROLES,
    HF_EMBEDDING = HF_LAYER_ROLES,
    HF_LAST_NORM,
    HF_LAST_NORM_BIAS,
    HF_UNEMBEDDING,
    HF_ROLES
} hf_role;

/* Sizes that tensors have; hf_size_of gives the number. HF_NONE as columns: a vector. */
typedef enum hf_size { HF_NONE, HF_DIM, HF_QKV_DIM, HF_HEADS_DIM, HF_INNER, HF_VOCAB } hf_size;

/* A row of an architecture's table. Rows of one role are alternatives: the first that the file has
   is taken. */
typedef struct hf_tensor {
    hf_role role;
    const char *name; /* behind the prefix, and for a layer's behind the layer's prefix */
    hf_size rows, cols;
    unsigned needs; /* bits of hf_shape.has, or HF_BARE */
} hf_tensor;
#define HF_BARE 1u /* of hf_tensor.needs: the name has no prefix */

typedef struct hf_pass hf_pass;

typedef struct hf_architecture {
    const char *family; /* as `inspect` shows it */
    /* Fills *cfg and *shape, all zero but for `architecture` and `family`. path: of config.json,
       for errors. */
    dlrn_status (*parse)(dlrn_context *ctx, const dlrn_json *json, const char *path, lm_config *cfg,
                         hf_shape *shape);
    const hf_tensor *tensors; /* [n_tensors] */
    int n_tensors;
    const char *prefixes[2];  /* of all names: the first with which a tensor is found */
    const char *layer_prefix; /* followed by the layer and a dot */
    double (*rope_rate)(const hf_shape *s, int64_t pair); /* turn of a pair, a position */
    /* A layer: from p->m->x to p->m->x. */
    dlrn_status (*block)(hf_pass *p, int64_t layer);
} hf_architecture;

enum {
    HF_ROWS = 16,    /* rows of a parallel task                                    */
    HF_QUERIES = 32, /* queries that look at the keys together: one product        */
    /* 256 rows of x (512 KB at d 512) and a tile of their logits (196 KB) stay in a second cache of
       1 MB. */
    HF_TILE_ROWS = 256,
    HF_TILE = 192,
    HF_PART = 16 * HF_TILE /* of the vocabulary that a task takes */
};

/* ------------------------------------------------------------------------------------------ */
// >>model

typedef struct hf_layer {
    float *part[HF_LAYER_ROLES]; /* NULL: the model has none. One block */
    float *block;                /* NULL until the layer is first needed */
} hf_layer;

/* Keys and values of tokens already seen, for sampling. Keys are stored by dimension, so that the
   scores of one query are sums of rows. */
typedef struct hf_cache {
    float *k; /* [layers][sequences][kv_heads][head_dim][capacity]              */
    float *v; /* [layers][sequences][kv_heads][capacity][head_dim]              */
    int64_t sequences, capacity; /* capacity: see hf_row_of                     */
    int64_t past;                /* tokens of every sequence that are in it     */
} hf_cache;

typedef struct hf_model {
    lm_model base;
    hf_shape shape;
    int is_fork; /* 1: the weights are another's */
    dlrn_archive *archive;
    const char *prefix; /* of tensor names in this file */
    lm_width width;
    hf_layer *layer;       /* [layers] */
    float *part[HF_ROLES]; /* the model's own; NULL: not read yet */
    float *turn;           /* [turn_rows][rope.dims / 2][2]: cosine, sine at each position    */
    int64_t turn_rows;     /* grows with the longest sequence, not with config.json's promise */
    hf_cache cache;        /* for sampling */
    /* workspace of one run */
    int64_t capacity, tokens;
    float *x;   /* [capacity][dim] residual stream               */
    float *a;   /* [capacity][dim] normed: what a module reads   */
    float *qkv; /* [capacity][HF_QKV_DIM]                        */
    float *att; /* [capacity][dim] what the attention adds       */
    float *mlp; /* [capacity][dim or HF_HEADS_DIM] what the MLP adds; before, the heads' results */
    float *h;   /* [capacity][inner]                             */
    int64_t *sequence, *position; /* [capacity] of each token     */
    float **captured; /* [n_captured][capacity][capture_width] x of taps whose y comes later */
    int n_captured;
    int64_t capture_width; /* of the widest site that was captured */
    float *scores;     /* [threads][HF_QUERIES + head_dim][score_row]: scores, keys by dimension */
    float *work;       /* [threads][DLRN_MATMUL_WORK] */
    int64_t score_row; /* of this run: its longest sequence, see hf_row_of */
    int64_t score_cap; /* the longest row that there is room for          */
} hf_model;

/* What one run is about, handed down through the blocks. */
struct hf_pass {
    hf_model *m;
    const lm_batch *batch;
    hf_cache *cache; /* NULL: the sequences are whole */
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
static dlrn_status hf_count(dlrn_context *ctx, const dlrn_json *json, const char *path,
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
static dlrn_status hf_token(dlrn_context *ctx, const dlrn_json *json, const char *path,
                            const char *key, int64_t max, int32_t *out) {
    int64_t id = -1;
    if (dlrn_json_number(json, key, -1) != -1) LM_TRY(hf_count(ctx, json, path, key, 0, max, &id));
    *out = (int32_t)id;
    return DLRN_OK;
}

/* A flag of config.json; `otherwise` if it is missing. */
static int hf_true(const dlrn_json *json, const char *key, int otherwise) {
    return dlrn_json_number(json, key, otherwise) != 0;
}

/* Adds a line to the notes; a line without room is left out whole. */
static DLRN_PRINTF(2, 3) void hf_note(lm_config *c, const char *format, ...) {
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
static double hf_choose_number(lm_config *c, const dlrn_json *json, const char *const *keys,
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
            hf_note(c, "%s %g is ignored: %s %g is taken, as transformers 5 does", keys[i],
                    found->number, taken ? taken : "the default", value);
            break;
        }
    }
    return value;
}

/* A key that this architecture does not read, although others call the same thing so: a note if it
   contradicts the one that is read. */
static void hf_note_alias(lm_config *c, const dlrn_json *json, const char *key, const char *alias) {
    const dlrn_json *a = dlrn_json_get(json, key), *b = dlrn_json_get(json, alias);
    if (!a || !b || !a->text || !b->text) return; /* strings and numbers have a text */
    if (a->type == b->type &&
        (a->type == DLRN_JSON_NUMBER ? a->number == b->number : !strcmp(a->text, b->text)))
        return;
    hf_note(c, "%s %.40s is ignored: %s %.40s is taken, as transformers 5 does", alias, b->text,
            key, a->text);
}

/* Activations: X(name in transformers, constant, what stands before the name in a list of all). */
#define HF_ACTIVATION_LIST(X)                                                                      \
    X("gelu", HF_GELU, "")                                                                         \
    X("gelu_python", HF_GELU, ", ")                                                                \
    X("gelu_10", HF_GELU_CLIPPED, ", ")                                                            \
    X("gelu_new", HF_GELU_TANH, ", ")                                                              \
    X("gelu_fast", HF_GELU_TANH, ", ")                                                             \
    X("gelu_accurate", HF_GELU_TANH, ", ")                                                         \
    X("gelu_pytorch_tanh", HF_GELU_TANH, ", ")                                                     \
    X("gelu_python_tanh", HF_GELU_TANH, ", ")                                                      \
    X("quick_gelu", HF_GELU_SIGMOID, ", ")                                                         \
    X("relu", HF_RELU, ", ")                                                                       \
    X("silu", HF_SILU, ", ")                                                                       \
    X("swish", HF_SILU, " or ")

/* Reads hidden_act, under any of the names that transformers has for a formula we know. */
static dlrn_status hf_parse_activation(dlrn_context *ctx, const dlrn_json *json, const char *path,
                                       hf_activation *out) {
#define HF_ROW(name, kind, before) {name, kind},
#define HF_NAME(name, kind, before) before name
    static const struct {
        const char *name;
        hf_activation kind;
    } known[] = {HF_ACTIVATION_LIST(HF_ROW)};
    const char *name = dlrn_json_text(json, "hidden_act", "gelu");
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(name, known[i].name)) {
            *out = known[i].kind;
            return DLRN_OK;
        }
    return dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED,
                     "%s: hidden_act: expected " HF_ACTIVATION_LIST(HF_NAME) ", found %.40s", path,
                     name);
#undef HF_ROW
#undef HF_NAME
}

/* theta^(-2 pair / span) / scaling: the usual rotary frequencies, as HF computes them. */
static double hf_rope_rate(const hf_shape *s, int64_t pair) {
    return pow(s->rope.theta, -2.0 * (double)pair / (double)s->rope.span) / s->rope.scaling;
}

static const hf_architecture *hf_find_architecture(const char *model_type); /* NULL: unknown */

/* Finds the architecture by model_type and lets it parse the rest. */
static dlrn_status hf_parse_config(dlrn_context *ctx, const dlrn_json *json, const char *path,
                                   lm_config *c, hf_shape *s) {
    const char *type = dlrn_json_text(json, "model_type", "none");
    memset(c, 0, sizeof *c);
    memset(s, 0, sizeof *s);
    s->architecture = hf_find_architecture(type);
    if (!s->architecture)
        return dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED,
                         "%s: model_type: expected " HF_MODEL_TYPES ", found %s", path, type);
    snprintf(c->family, sizeof c->family, "%s", s->architecture->family);
    LM_TRY(s->architecture->parse(ctx, json, path, c, s));
    c->more[0].name = "rotary_dimensions", c->more[0].value = s->rope.dims;
    c->more[1].name = "parallel_residual", c->more[1].value = s->parallel;
    c->n_more = 2;
    return DLRN_OK;
}

/* Reads a folder's config.json. */
static dlrn_status hf_read_shape(dlrn_context *ctx, const char *folder, lm_config *c, hf_shape *s) {
    char path[4200], *text = NULL;
    size_t size = 0;
    dlrn_json *json = NULL;
    snprintf(path, sizeof path, "%s/config.json", folder);
    LM_TRY(dlrn_file_read(ctx, path, &text, &size));
    dlrn_status status = dlrn_json_parse(ctx, text, size, path, &json);
    if (status == DLRN_OK) status = hf_parse_config(ctx, json, path, c, s);
    dlrn_free(ctx, json);
    dlrn_free(ctx, text);
    return status;
}

static dlrn_status hf_read_config(dlrn_context *ctx, const char *folder, lm_config *out) {
    hf_shape shape;
    return hf_read_shape(ctx, folder, out, &shape);
}

/* ------------------------------------------------------------------------------------------ */
// >>weights

/* The number behind a symbolic size; 1 for none. */
static int64_t hf_size_of(const hf_model *m, hf_size size) {
    const lm_config *c = &m->base.cfg;
    switch (size) {
    case HF_DIM: return c->dim;
    case HF_QKV_DIM: return (c->heads + 2 * c->kv_heads) * m->shape.head_dim;
    case HF_HEADS_DIM: return c->heads * m->shape.head_dim;
    case HF_INNER: return c->inner;
    case HF_VOCAB: return c->vocab;
    case HF_NONE: break;
    }
    return 1;
}

static int64_t hf_width(const lm_model *m, const lm_site *site) {
    return hf_size_of((const hf_model *)m, site->kind == LM_ATTN_Z       ? HF_HEADS_DIM
                                           : site->kind == LM_MLP_HIDDEN ? HF_INNER
                                                                         : HF_DIM);
}

/* Number of elements. */
static int64_t hf_numel(const hf_model *m, const hf_tensor *t) {
    return hf_size_of(m, t->rows) * hf_size_of(m, t->cols);
}

/* Whether this model lacks a tensor that others of its architecture have. */
static int hf_is_absent(const hf_model *m, const hf_tensor *t) {
    return (t->needs & ~HF_BARE & ~m->shape.has) != 0;
}

/* The tensor's name in the file; layer: -1 for the model's own. */
static void hf_tensor_name(const hf_model *m, const hf_tensor *t, int64_t layer, char *name,
                           size_t size) {
    char of_layer[48] = "";
    if (layer >= 0)
        snprintf(of_layer, sizeof of_layer, "%s%lld.", m->shape.architecture->layer_prefix,
                 (long long)layer);
    snprintf(name, size, "%s%s%s", t->needs & HF_BARE ? "" : m->prefix, of_layer, t->name);
}

/* Writes a shape as "512, 128". */
static void hf_shape_text(const int64_t *shape, int ndim, char *out, size_t size) {
    size_t at = 0;
    for (int i = 0; i < ndim && at < size; i++)
        at += (size_t)snprintf(out + at, size - at, "%s%lld", i ? ", " : "", (long long)shape[i]);
    if (ndim == 0) *out = 0;
}

/* Whether a tensor holds real numbers. An integer one holds quantised weights, whose scales are
   elsewhere: read as numbers they would be wrong without a sign of it. */
static int hf_is_real(dlrn_dtype t) {
    return t == DLRN_F32 || t == DLRN_F16 || t == DLRN_BF16 || t == DLRN_F64;
}

/* The tensor's index in the file, or -1 with the error set: missing, quantised, or of another
   shape. */
static int64_t hf_find(hf_model *m, const hf_tensor *t, const char *name) {
    const int64_t shape[2] = {hf_size_of(m, t->rows), hf_size_of(m, t->cols)};
    const char *path = dlrn_archive_describe(m->archive).path;
    const int ndim = t->cols == HF_NONE ? 1 : 2;
    char expected[64], found[256];
    int64_t index = dlrn_archive_find(m->archive, name);
    const dlrn_tensor_info *info = index >= 0 ? dlrn_archive_tensor(m->archive, index) : NULL;
    hf_shape_text(shape, ndim, expected, sizeof expected);
    if (!info) {
        dlrn_fail(m->base.ctx, DLRN_ERR_FORMAT,
                  "%s: tensor '%s': expected shape [%s], found no such tensor", path, name,
                  expected);
        return -1;
    }
    if (!hf_is_real(info->dtype)) {
        dlrn_fail(m->base.ctx, DLRN_ERR_FORMAT,
                  "%s: tensor '%s': expected dtype F32, F16, BF16 or F64, found %s: quantised "
                  "weights are not supported",
                  path, name, dlrn_name(DLRN_NAMES_DTYPE, (int)info->dtype));
        return -1;
    }
    if (info->ndim != ndim || memcmp(info->shape, shape, (size_t)ndim * sizeof *shape)) {
        hf_shape_text(info->shape, info->ndim, found, sizeof found);
        dlrn_fail(m->base.ctx, DLRN_ERR_SHAPE, "%s: tensor '%s': expected shape [%s], found [%s]",
                  path, name, expected, found);
        return -1;
    }
    return index;
}

/* Every tensor of every layer is there and has its shape: checked when the model is opened, not
   when a layer is first needed. */
static dlrn_status hf_check_layers(hf_model *m) {
    const hf_architecture *arch = m->shape.architecture;
    char name[160];
    for (int64_t l = 0; l < m->base.cfg.layers; l++)
        for (int i = 0; i < arch->n_tensors; i++) {
            const hf_tensor *t = &arch->tensors[i];
            if (t->role >= HF_LAYER_ROLES || hf_is_absent(m, t)) continue;
            hf_tensor_name(m, t, l, name, sizeof name);
            if (hf_find(m, t, name) < 0) return DLRN_ERR_FORMAT;
        }
    return DLRN_OK;
}

/* One number that is not finite would make all outputs NaN: refused, as in a dictionary. */
static dlrn_status hf_read_finite(hf_model *m, int64_t index, const char *name, int64_t n,
                                  float *out) {
    LM_TRY(dlrn_archive_read(m->archive, index, 0, -1, out));
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(out[i]))
            return dlrn_fail(m->base.ctx, DLRN_ERR_VALUE,
                             "%s: tensor '%s': element %lld: expected a finite number, found %g",
                             dlrn_archive_describe(m->archive).path, name, (long long)i,
                             (double)out[i]);
    return DLRN_OK;
}

/* Reads a layer's tensors one behind the other into block and notes where each is. */
static dlrn_status hf_read_layer(hf_model *m, int64_t l, float *block, float **part) {
    const hf_architecture *arch = m->shape.architecture;
    char name[160];
    for (int i = 0; i < arch->n_tensors; i++) {
        const hf_tensor *t = &arch->tensors[i];
        if (t->role >= HF_LAYER_ROLES || hf_is_absent(m, t)) continue;
        const int64_t n = hf_numel(m, t);
        hf_tensor_name(m, t, l, name, sizeof name);
        LM_TRY(hf_read_finite(m, dlrn_archive_find(m->archive, name), name, n, block));
        part[t->role] = block;
        block += n;
    }
    return DLRN_OK;
}

/* Reads a layer unless it is there already. */
static dlrn_status hf_need_layer(hf_model *m, int64_t l) {
    const hf_architecture *arch = m->shape.architecture;
    hf_layer *layer = &m->layer[l];
    int64_t total = 0;
    if (layer->block) return DLRN_OK;
    for (int i = 0; i < arch->n_tensors; i++)
        if (arch->tensors[i].role < HF_LAYER_ROLES) total += hf_numel(m, &arch->tensors[i]);
    float *block = (float *)dlrn_alloc(m->base.ctx, total, sizeof *block);
    if (!block) return DLRN_ERR_MEMORY;
    dlrn_status s = hf_read_layer(m, l, block, layer->part);
    if (s == DLRN_OK)
        layer->block = block;
    else
        dlrn_free(m->base.ctx, block);
    return s;
}

/* The row of the table for one of the model's own tensors: of alternatives the first that the file
   has, or else the last. NULL: this architecture has none. */
static const hf_tensor *hf_own(const hf_model *m, hf_role role, char *name, size_t size,
                               int *there) {
    const hf_architecture *arch = m->shape.architecture;
    const hf_tensor *t = NULL;
    *there = 0;
    for (int i = 0; i < arch->n_tensors && !*there; i++) {
        if (arch->tensors[i].role != role || hf_is_absent(m, &arch->tensors[i])) continue;
        t = &arch->tensors[i];
        hf_tensor_name(m, t, -1, name, size);
        *there = dlrn_archive_find(m->archive, name) >= 0;
    }
    return t;
}

/* Reads one of the model's own tensors unless it is there already. */
static dlrn_status hf_need(hf_model *m, hf_role role) {
    char name[160], other[160];
    int there, other_there = 0;
    if (m->part[role]) return DLRN_OK;
    const hf_tensor *t = hf_own(m, role, name, sizeof name, &there), *swapped = NULL;
    if (!t) return DLRN_OK;
    if (!there && role == HF_EMBEDDING && m->shape.tied)
        swapped = hf_own(m, HF_UNEMBEDDING, other, sizeof other, &other_there);
    if (other_there) { /* of two tied tensors safetensors' save_model keeps the first by name */
        t = swapped;
        memcpy(name, other, sizeof name);
    }
    int64_t index = hf_find(m, t, name), n = hf_numel(m, t);
    if (index < 0) return DLRN_ERR_FORMAT;
    float *block = (float *)dlrn_alloc(m->base.ctx, n, sizeof *block);
    if (!block) return DLRN_ERR_MEMORY;
    dlrn_status s = hf_read_finite(m, index, name, n, block);
    if (s == DLRN_OK)
        m->part[role] = block;
    else
        dlrn_free(m->base.ctx, block);
    return s;
}

/* tie_word_embeddings although the file has both matrices: they are tied only if they are equal, as
   in transformers 5. (Versions before it tied them and lost one.) */
static dlrn_status hf_settle_tie(hf_model *m) {
    char name[160];
    int there, equal = 1;
    if (!m->shape.tied || !hf_own(m, HF_UNEMBEDDING, name, sizeof name, &there) || !there)
        return DLRN_OK;
    LM_TRY(hf_need(m, HF_UNEMBEDDING));
    const float *in = m->part[HF_EMBEDDING], *out = m->part[HF_UNEMBEDDING];
    for (int64_t i = 0; i < m->base.cfg.vocab * m->base.cfg.dim && equal; i++)
        equal = in[i] == out[i];
    if (equal) {
        dlrn_free(m->base.ctx, m->part[HF_UNEMBEDDING]);
        m->part[HF_UNEMBEDDING] = NULL;
        return DLRN_OK;
    }
    m->shape.tied = 0;
    hf_note(&m->base.cfg,
            "tie_word_embeddings true is ignored: the file's %s differs from the embedding and is "
            "taken, as transformers 5 does",
            name);
    return DLRN_OK;
}

/* What only logits need. A model saved without its unembedding can still give activations. */
static dlrn_status hf_need_head(hf_model *m) {
    LM_TRY(hf_need(m, HF_LAST_NORM));
    LM_TRY(hf_need(m, HF_LAST_NORM_BIAS));
    if (!m->shape.tied) return hf_need(m, HF_UNEMBEDDING);
    m->part[HF_UNEMBEDDING] = m->part[HF_EMBEDDING];
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
static dlrn_status hf_open_weights(hf_model *m, const char *folder) {
    char path[4200];
    if (lm_find_weights(m->base.ctx, folder, path, sizeof path))
        return dlrn_archive_open(m->base.ctx, path, &m->archive);
    return dlrn_fail(m->base.ctx, DLRN_ERR_IO,
                     "%s: expected model.safetensors or pytorch_model.bin (or their "
                     ".index.json), found none",
                     folder);
}

/* The prefix with which this file has a tensor of the table; the last one if with none. */
static void hf_choose_prefix(hf_model *m) {
    const hf_architecture *arch = m->shape.architecture;
    char name[160];
    for (int k = 0; k < 2; k++) {
        m->prefix = arch->prefixes[k];
        for (int i = 0; i < arch->n_tensors; i++) {
            const hf_tensor *t = &arch->tensors[i];
            if (t->needs & HF_BARE) continue;
            hf_tensor_name(m, t, t->role < HF_LAYER_ROLES ? 0 : -1, name, sizeof name);
            if (dlrn_archive_find(m->archive, name) >= 0) return;
        }
    }
}

/* Room for `need` of something for each position: doubles, up to `max`. */
static int64_t hf_wider(int64_t have, int64_t need, int64_t max) {
    int64_t wide = 2 * have > need ? 2 * have : need;
    return wide < max ? wide : max;
}

/* Cosines and sines of the first `need` <= cfg.positions positions. */
static dlrn_status hf_need_turns(hf_model *m, int64_t need) {
    const hf_shape *s = &m->shape;
    const int64_t half = s->rope.dims / 2;
    const int64_t rows = hf_wider(m->turn_rows, need, m->base.cfg.positions);
    if (need <= m->turn_rows) return DLRN_OK;
    float *turn = (float *)dlrn_alloc(m->base.ctx, rows * half * 2 + 1, sizeof *turn);
    if (!turn) return DLRN_ERR_MEMORY;
    for (int64_t i = 0; i < half; i++) {
        const float rate = (float)s->architecture->rope_rate(s, i);
        for (int64_t p = 0; p < rows; p++) {
            double angle = (double)((float)p * rate); /* HF multiplies in f32 */
            turn[(p * half + i) * 2] = (float)cos(angle);
            turn[(p * half + i) * 2 + 1] = (float)sin(angle);
        }
    }
    dlrn_free(m->base.ctx, m->turn);
    m->turn = turn;
    m->turn_rows = rows;
    return DLRN_OK;
}

static void hf_destroy(lm_model *m);

/* Reads no layer yet, but checks that all are there: see hf_check_layers. */
static dlrn_status hf_load(dlrn_context *ctx, const char *folder, lm_model **out) {
    hf_model *m = (hf_model *)dlrn_alloc(ctx, 1, sizeof *m);
    *out = NULL;
    if (!m) return DLRN_ERR_MEMORY;
    memset(m, 0, sizeof *m);
    dlrn_status s = hf_read_shape(ctx, folder, &m->base.cfg, &m->shape);
    m->base.ctx = ctx;
    m->width = lm_width_of(ctx);
    if (s == DLRN_OK) s = hf_open_weights(m, folder);
    if (s == DLRN_OK) hf_choose_prefix(m);
    if (s == DLRN_OK) s = hf_check_layers(m);
    if (s == DLRN_OK) {
        m->layer = (hf_layer *)dlrn_alloc(ctx, m->base.cfg.layers, sizeof *m->layer);
        s = m->layer ? DLRN_OK : DLRN_ERR_MEMORY;
    }
    if (s == DLRN_OK) memset(m->layer, 0, (size_t)m->base.cfg.layers * sizeof *m->layer);
    if (s == DLRN_OK) s = hf_need(m, HF_EMBEDDING);
    if (s == DLRN_OK) s = hf_settle_tie(m);
    if (s != DLRN_OK) {
        hf_destroy(&m->base);
        return s;
    }
    *out = &m->base;
    return DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>workspace

/* Forgets the workspace without freeing it: after copying a model, it is the other's. */
static void hf_forget_workspace(hf_model *m) {
    m->x = m->a = m->qkv = m->att = m->mlp = m->h = m->scores = m->work = NULL;
    m->sequence = m->position = NULL;
    m->captured = NULL;
    m->capacity = m->score_cap = m->capture_width = m->n_captured = 0;
}

/* Frees the rows that taps kept. */
static void hf_drop_captures(hf_model *m) {
    for (int t = 0; t < m->n_captured; t++) dlrn_free(m->base.ctx, m->captured[t]);
    dlrn_free(m->base.ctx, m->captured);
    m->captured = NULL;
    m->n_captured = 0;
}

/* Frees the workspace; the next run makes a new one. */
static void hf_drop_workspace(hf_model *m) {
    void *blocks[] = {m->x, m->a,        m->qkv,      m->att,    m->mlp,
                      m->h, m->sequence, m->position, m->scores, m->work};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) dlrn_free(m->base.ctx, blocks[i]);
    hf_drop_captures(m);
    hf_forget_workspace(m);
}

/* Frees what sampling has cached. */
static void hf_drop_cache(hf_model *m) {
    dlrn_free(m->base.ctx, m->cache.k);
    dlrn_free(m->base.ctx, m->cache.v);
    memset(&m->cache, 0, sizeof m->cache);
}

/* Also accepts a model that was loaded in part. */
static void hf_destroy(lm_model *base) {
    hf_model *m = (hf_model *)base;
    dlrn_context *ctx = base->ctx;
    hf_drop_workspace(m);
    hf_drop_cache(m);
    if (!m->is_fork) {
        for (int64_t l = 0; m->layer && l < base->cfg.layers; l++)
            dlrn_free(ctx, m->layer[l].block);
        dlrn_free(ctx, m->layer);
        if (m->shape.tied) m->part[HF_UNEMBEDDING] = NULL; /* the embedding's */
        for (int r = 0; r < HF_ROLES; r++) dlrn_free(ctx, m->part[r]);
        dlrn_free(ctx, m->turn);
        dlrn_archive_close(m->archive);
    }
    dlrn_free(ctx, m);
}

/* Length of a row with room for n positions: whole vectors, and an odd number of them, because rows
   a power of two apart compete for the same sets of the cache. */
static int64_t hf_row_of(int64_t n) {
    return ((n + 15) / 16 | 1) * 16;
}

/* Workspace for runs of up to `tokens` tokens. Never shrinks. */
static dlrn_status hf_reserve(hf_model *m, int64_t tokens) {
    const int64_t d = m->base.cfg.dim, heads = hf_size_of(m, HF_HEADS_DIM);
    if (tokens <= m->capacity) return DLRN_OK;
    hf_drop_workspace(m);
    m->x = lm_floats(m->base.ctx, tokens, d);
    m->a = lm_floats(m->base.ctx, tokens, d);
    m->qkv = lm_floats(m->base.ctx, tokens, hf_size_of(m, HF_QKV_DIM));
    m->att = lm_floats(m->base.ctx, tokens, d);
    m->mlp = lm_floats(m->base.ctx, tokens, d > heads ? d : heads);
    m->h = lm_floats(m->base.ctx, tokens, m->base.cfg.inner);
    m->sequence = (int64_t *)dlrn_alloc(m->base.ctx, tokens, sizeof *m->sequence);
    m->position = (int64_t *)dlrn_alloc(m->base.ctx, tokens, sizeof *m->position);
    m->work = lm_floats(m->base.ctx, dlrn_context_describe(m->base.ctx).threads, DLRN_MATMUL_WORK);
    if (!m->x || !m->a || !m->qkv || !m->att || !m->mlp || !m->h || !m->sequence || !m->position ||
        !m->work) {
        hf_drop_workspace(m);
        return DLRN_ERR_MEMORY;
    }
    m->capacity = tokens;
    return DLRN_OK;
}

/* Scores of sequences of up to `positions` tokens. */
static dlrn_status hf_reserve_scores(hf_model *m, int64_t positions) {
    m->score_row = hf_row_of(positions);
    if (m->score_row <= m->score_cap) return DLRN_OK;
    int64_t wide = hf_wider(m->score_cap, m->score_row, hf_row_of(m->base.cfg.positions));
    dlrn_free(m->base.ctx, m->scores);
    m->score_cap = 0;
    m->scores = lm_floats(
        m->base.ctx, dlrn_context_describe(m->base.ctx).threads * (HF_QUERIES + m->shape.head_dim),
        wide);
    if (!m->scores) return DLRN_ERR_MEMORY;
    m->score_cap = wide;
    return DLRN_OK;
}

/* Room for the x of taps whose y comes later, in rows of `width`. */
static dlrn_status hf_reserve_captures(hf_model *m, int n, int64_t width) {
    if (width > m->capture_width) {
        hf_drop_captures(m);
        m->capture_width = width;
    }
    if (n <= m->n_captured) return DLRN_OK;
    float **wide = (float **)dlrn_alloc(m->base.ctx, n, sizeof *wide);
    if (!wide) return DLRN_ERR_MEMORY;
    for (int t = 0; t < m->n_captured; t++) wide[t] = m->captured[t];
    dlrn_free(m->base.ctx, m->captured);
    m->captured = wide;
    while (m->n_captured < n) {
        float *rows = lm_floats(m->base.ctx, m->capacity, m->capture_width);
        if (!rows) return DLRN_ERR_MEMORY;
        m->captured[m->n_captured++] = rows;
    }
    return DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>operations
/* What blocks are made of. Each works on all tokens of the run; weights are taken by role. */

/* Rows of a parallel loop, and what it works on. */
typedef struct hf_rows {
    hf_pass *pass;
    int64_t rows, width, layer;
    const float *in, *weight, *bias;
    float *out;
} hf_rows;

/* Sites in the order in which a run passes them. */
static int64_t hf_order(const lm_site *site) {
    return site->kind == LM_EMBED ? 0 : (int64_t)site->layer * LM_RESID_OUT + (int64_t)site->kind;
}

/* The same for a site of this engine, which has no tensors by name. */
static int64_t hf_order_of(lm_kind kind, int64_t layer) {
    const lm_site site = {kind, (int)layer, ""};
    return hf_order(&site);
}

/* Whether nothing after this site is needed. */
static int hf_done(const hf_pass *p, lm_kind kind, int64_t layer) {
    return hf_order_of(kind, layer) >= p->last;
}

/* Whether a tap reads or ends at this very site. */
static int hf_is_tapped(const hf_pass *p, lm_kind kind, int64_t layer) {
    const int64_t here = hf_order_of(kind, layer);
    for (int t = 0; t < p->n_taps; t++)
        if (hf_order(&p->taps[t].x) == here || hf_order(&p->taps[t].y) == here) return 1;
    return 0;
}

/* A site is reached, its value v [tokens][width]: taps that read here keep a copy, taps that end
   here are visited and may change v. */
static dlrn_status hf_reach(hf_pass *p, lm_kind kind, int64_t layer, float *v) {
    hf_model *m = p->m;
    const lm_site here = {kind, (int)layer, ""};
    const int64_t order = hf_order(&here), numel = m->tokens * hf_width(&m->base, &here);
    for (int t = 0; t < p->n_taps; t++) {
        int64_t x = hf_order(&p->taps[t].x), y = hf_order(&p->taps[t].y);
        if (x == order && y != order) memcpy(m->captured[t], v, (size_t)numel * sizeof *v);
        if (y == order) LM_TRY(p->visit(p->user, t, x == y ? v : m->captured[t], v, m->tokens));
    }
    return DLRN_OK;
}

/* A tensor by role; `layer` counts only for a layer's. NULL: the model has none. */
static float *hf_weight(const hf_model *m, int64_t layer, hf_role role) {
    return role < HF_LAYER_ROLES ? m->layer[layer].part[role] : m->part[role];
}

/* Runs body over the job's rows, HF_ROWS in a task. */
static void hf_each_row(hf_model *m, hf_rows *job, dlrn_parallel_body body) {
    dlrn_parallel_for(m->base.ctx, (job->rows + HF_ROWS - 1) / HF_ROWS, body, job);
}

/* The end of a task's rows. */
static int64_t hf_task_end(const hf_rows *job, int64_t task) {
    int64_t end = (task + 1) * HF_ROWS;
    return end < job->rows ? end : job->rows;
}

/* ---- embedding, norms, sums */

/* A task of hf_embed. */
static void hf_embed_rows(void *arg, int64_t task, int worker) {
    hf_rows *j = (hf_rows *)arg;
    const lm_batch *b = j->pass->batch;
    (void)worker;
    for (int64_t i = task * HF_ROWS; i < hf_task_end(j, task); i++)
        memcpy(j->out + i * j->width, j->in + (int64_t)b->id[b->start[0] + i] * j->width,
               (size_t)j->width * sizeof(float));
}

/* The tokens' embeddings to x. */
static void hf_embed(hf_pass *p) {
    hf_model *m = p->m;
    hf_rows job = {p, m->tokens, m->base.cfg.dim, 0, m->part[HF_EMBEDDING], NULL, NULL, m->x};
    hf_each_row(m, &job, hf_embed_rows);
}

/* A task of hf_layer_norm. */
static void hf_norm_rows(void *arg, int64_t task, int worker) {
    hf_rows *j = (hf_rows *)arg;
    const hf_model *m = j->pass->m;
    (void)worker;
    for (int64_t i = task * HF_ROWS; i < hf_task_end(j, task); i++)
        lm_norm(m->width, j->in + i * j->width, j->width, m->shape.eps, j->weight, j->bias,
                j->out + i * j->width);
}

/* x normed to a. The bias has the role behind `role`. */
static void hf_layer_norm(hf_pass *p, int64_t layer, hf_role role) {
    hf_model *m = p->m;
    hf_rows job = {p,
                   m->tokens,
                   m->base.cfg.dim,
                   layer,
                   m->x,
                   hf_weight(m, layer, role),
                   hf_weight(m, layer, (hf_role)(role + 1)),
                   m->a};
    hf_each_row(m, &job, hf_norm_rows);
}

/* A task of hf_add. */
static void hf_add_rows(void *arg, int64_t task, int worker) {
    hf_rows *j = (hf_rows *)arg;
    int64_t i = task * HF_ROWS * j->width, end = hf_task_end(j, task) * j->width;
    (void)worker;
    if (!j->weight)
        for (; i < end; i++) j->out[i] += j->in[i];
    for (; i < end; i++) j->out[i] += j->in[i] + j->weight[i];
}

/* x += y + z, in this order of sums; z NULL: x += y. */
static void hf_add(hf_pass *p, const float *y, const float *z) {
    hf_rows job = {p, p->m->tokens, p->m->base.cfg.dim, 0, y, z, NULL, p->m->x};
    hf_each_row(p->m, &job, hf_add_rows);
}

/* ---- products */

/* Activations other than gelu, one number at a time by the C library. Write them as loops like
   lm_gelu once a model spends time here. */
static float hf_activate(hf_activation kind, float x) {
    switch (kind) {
    case HF_GELU_SIGMOID: return x / (1 + expf(-1.702f * x));
    case HF_GELU_TANH: return 0.5f * x * (1 + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    case HF_SILU: return x / (1 + expf(-x));
    case HF_RELU: return x > 0 ? x : 0 * x;       /* NaN stays */
    case HF_GELU_CLIPPED: return x > 10 ? 10 : x; /* lm_gelu; it is never below -0.17 */
    case HF_GELU: break;                          /* lm_gelu */
    }
    return x;
}

/* y [rows][out] = x [rows][in] W^T; bias and activation follow on each block while it is in the
   cache. */
typedef struct hf_product {
    hf_model *m;
    const float *x, *w, *b; /* b NULL: none */
    int64_t rows, in, out;
    int activated;
    float *y;
} hf_product;

/* Bias and activation of a part of a row. */
static void hf_finish_row(const hf_product *j, float *y, const float *b, int64_t n) {
    const hf_activation kind = j->m->shape.activation;
    if (j->activated && (kind == HF_GELU || kind == HF_GELU_CLIPPED))
        lm_gelu(j->m->width, y, b, n);
    else if (b)
        lm_add(j->m->width, y, b, n);
    if (kind == HF_GELU) return;
    for (int64_t c = 0; j->activated && c < n; c++) y[c] = hf_activate(kind, y[c]);
}

/* A finished block of y. */
static void hf_finish_block(void *arg, int64_t row, int64_t col, dlrn_tensor block) {
    const hf_product *j = (const hf_product *)arg;
    (void)row;
    for (int64_t i = 0; i < block.rows && (j->b || j->activated); i++)
        hf_finish_row(j, block.data + i * block.stride, j->b ? j->b + col : NULL, block.cols);
}

/* Runs a product. */
static dlrn_status hf_multiply(hf_product *j) {
    return dlrn_matmul_then(j->m->base.ctx, DLRN_NT, dlrn_view(j->x, j->rows, j->in, j->in),
                            dlrn_view(j->w, j->out, j->in, j->in), 0,
                            dlrn_view(j->y, j->rows, j->out, j->out), hf_finish_block, j);
}

/* y = x W^T + b for all tokens; b NULL: none. */
static dlrn_status hf_linear(hf_model *m, const float *x, int64_t in, const float *w,
                             const float *b, int64_t out, float *y) {
    hf_product job = {m, x, w, b, m->tokens, in, out, 0, y};
    return hf_multiply(&job);
}

/* a to h: activation(up(a)). */
static dlrn_status hf_mlp_up(hf_pass *p, int64_t l) {
    hf_model *m = p->m;
    hf_product up = {m,
                     m->a,
                     hf_weight(m, l, HF_UP),
                     hf_weight(m, l, HF_UP_BIAS),
                     m->tokens,
                     m->base.cfg.dim,
                     m->base.cfg.inner,
                     1,
                     m->h};
    return hf_multiply(&up);
}

/* h to mlp: down(h). */
static dlrn_status hf_mlp_down(hf_pass *p, int64_t l) {
    hf_model *m = p->m;
    return hf_linear(m, m->h, m->base.cfg.inner, hf_weight(m, l, HF_DOWN),
                     hf_weight(m, l, HF_DOWN_BIAS), m->base.cfg.dim, m->mlp);
}

/* ---- attention */

/* Turns the first 2 half dimensions of v; a pair's two halves stand `half` apart (HF's
   rotate_half). */
static void hf_turn(float *v, const float *turn, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        float c = turn[2 * i], s = turn[2 * i + 1], a = v[i], b = v[i + half];
        v[i] = a * c - b * s;
        v[i + half] = b * c + a * s;
    }
}

/* What a task of the attention works on: a key and value head of one sequence, and one by one the
   query heads that share it. */
typedef struct hf_head {
    int64_t first, end, dim; /* tokens of the run, dimensions of the head   */
    int64_t row;             /* numbers in a row of qkv                     */
    float *q;                /* query of the first token; rows `row` apart  */
    float *k, *v;            /* k [dim][k_stride], v [..][v_stride]         */
    int64_t k_stride, v_stride;
    float *score; /* [HF_QUERIES][score_row]                     */
    float *out;   /* of the first token; rows out_stride apart   */
    int64_t out_stride;
    float *work; /* scratch of dlrn_matmul                  */
} hf_head;

/* Bias added and positions turned, for one head's numbers of each token; at: those of the first. */
static void hf_turn_head(const hf_model *m, const hf_head *h, float *at, const float *bias) {
    const int64_t half = m->shape.rope.dims / 2;
    for (int64_t i = h->first; i < h->end; i++, at += h->row) {
        if (bias) lm_add(m->width, at, bias, h->dim);
        hf_turn(at, m->turn + m->position[i] * half * 2, half);
    }
}

/* Keys and, with a cache, values of a head into place: k, v: those of the first token. */
static void hf_lay_keys(const hf_model *m, const hf_head *h, const float *k, float *v,
                        const float *v_bias, int in_cache) {
    for (int64_t i = h->first; i < h->end; i++, k += h->row, v += h->row) {
        const int64_t at = m->position[i];
        if (v_bias) lm_add(m->width, v, v_bias, h->dim);
        for (int64_t c = 0; c < h->dim; c++) h->k[c * h->k_stride + at] = k[c];
        if (in_cache) memcpy(h->v + at * h->v_stride, v, (size_t)h->dim * sizeof *v);
    }
}

/* Queries [first, first + n) over the keys and values of their sequence. All of them see all keys
   up to the last one's; the weight of what lies ahead of a query is 0. */
static void hf_attend(hf_model *m, const hf_head *h, int64_t first, int64_t n) {
    const int64_t keys = m->position[first + n - 1] + 1, row = m->score_row;
    const float scale = (float)(1 / sqrt((double)h->dim));
    const float *q = h->q + (first - h->first) * h->row;
    float *out = h->out + (first - h->first) * h->out_stride, share[HF_QUERIES];
    const dlrn_tensor query = dlrn_view(q, n, h->dim, h->row);
    const dlrn_tensor key = dlrn_view(h->k, h->dim, keys, h->k_stride);
    const dlrn_tensor value = dlrn_view(h->v, keys, h->dim, h->v_stride);
    const dlrn_tensor score = dlrn_view(h->score, n, keys, row);
    dlrn_status s = dlrn_matmul(m->base.ctx, DLRN_NN, query, key, 0, score, h->work);
    for (int64_t i = 0; i < n; i++) {
        float *mine = h->score + i * row, top = -INFINITY;
        double sum;
        int64_t seen = m->position[first + i] + 1;
        lm_softmax(m->width, mine, seen, scale, &top, &sum);
        share[i] = (float)(1 / sum);
        for (int64_t t = seen; t < keys; t++) mine[t] = 0;
    }
    if (s == DLRN_OK)
        s = dlrn_matmul(m->base.ctx, DLRN_NN, score, value, 0,
                        dlrn_view(out, n, h->dim, h->out_stride), h->work);
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < h->dim; c++) out[i * h->out_stride + c] *= share[i];
    (void)s; /* cannot fail: the arguments are in range */
}

/* All queries of one head: HF_QUERIES at a time, or one alone without a product. */
static void hf_attend_head(hf_model *m, const hf_head *h) {
    if (h->end - h->first == 1) {
        lm_attend_one(m->width, h->dim, h->q, h->k, h->k_stride, h->v, h->v_stride,
                      m->position[h->first] + 1, h->score, h->out);
        return;
    }
    for (int64_t i = h->first; i < h->end; i += HF_QUERIES)
        hf_attend(m, h, i, h->end - i < HF_QUERIES ? h->end - i : HF_QUERIES);
}

/* Where a head's numbers begin in a row of qkv. */
static int64_t hf_head_at(hf_heads where, int64_t head) {
    return where.first + head * where.step;
}

/* The same in the bias of qkv. */
static const float *hf_bias_at(const float *bias, hf_heads where, int64_t head) {
    return bias ? bias + hf_head_at(where, head) : NULL;
}

/* What a task works on, but for the query heads. Keys go to the cache, or for this task alone
   behind the scores. */
static hf_head hf_head_of(const hf_rows *j, int64_t sequence, int64_t kv, int worker) {
    hf_model *m = j->pass->m;
    const lm_config *c = &m->base.cfg;
    const hf_shape *s = &m->shape;
    const hf_cache *cache = j->pass->cache;
    const int64_t *start = j->pass->batch->start;
    hf_head h;
    memset(&h, 0, sizeof h);
    h.first = start[sequence] - start[0];
    h.end = start[sequence + 1] - start[0];
    h.dim = s->head_dim;
    h.row = h.v_stride = hf_size_of(m, HF_QKV_DIM);
    h.score = m->scores + worker * (HF_QUERIES + s->head_dim) * m->score_row;
    h.work = m->work + worker * DLRN_MATMUL_WORK;
    h.k = h.score + HF_QUERIES * m->score_row;
    h.k_stride = m->score_row;
    h.v = m->qkv + h.first * h.row + hf_head_at(s->v, kv);
    h.out_stride = hf_size_of(m, HF_HEADS_DIM);
    if (!cache) return h;
    int64_t at = ((j->layer * cache->sequences + sequence) * c->kv_heads + kv) * s->head_dim;
    h.k = cache->k + at * cache->capacity, h.k_stride = cache->capacity;
    h.v = cache->v + at * cache->capacity, h.v_stride = s->head_dim;
    return h;
}

/* A task: one key and value head of one sequence, with all its query heads. */
static void hf_attend_task(void *arg, int64_t task, int worker) {
    hf_rows *j = (hf_rows *)arg;
    hf_model *m = j->pass->m;
    const lm_config *c = &m->base.cfg;
    const hf_shape *s = &m->shape;
    const int64_t kv = task % c->kv_heads, shared = c->heads / c->kv_heads;
    hf_head h = hf_head_of(j, task / c->kv_heads, kv, worker);
    float *first = m->qkv + h.first * h.row, *k = first + hf_head_at(s->k, kv);
    hf_turn_head(m, &h, k, hf_bias_at(j->bias, s->k, kv));
    hf_lay_keys(m, &h, k, first + hf_head_at(s->v, kv), hf_bias_at(j->bias, s->v, kv),
                j->pass->cache != NULL);
    for (int64_t head = kv * shared; head < (kv + 1) * shared; head++) {
        h.q = first + hf_head_at(s->q, head);
        h.out = j->out + h.first * h.out_stride + head * s->head_dim;
        hf_turn_head(m, &h, h.q, hf_bias_at(j->bias, s->q, head));
        hf_attend_head(m, &h);
    }
}

/* a to the heads' results, in mlp, which is not in use yet. */
static dlrn_status hf_attention_heads(hf_pass *p, int64_t l) {
    hf_model *m = p->m;
    const int64_t d = m->base.cfg.dim;
    hf_rows job = {p, m->tokens, d, l, NULL, NULL, hf_weight(m, l, HF_QKV_BIAS), m->mlp};
    LM_TRY(hf_linear(m, m->a, d, hf_weight(m, l, HF_QKV), NULL, hf_size_of(m, HF_QKV_DIM),
                     m->qkv)); /* its bias: hf_attend_task */
    dlrn_parallel_for(m->base.ctx, p->batch->sequences * m->base.cfg.kv_heads, hf_attend_task,
                      &job);
    return DLRN_OK;
}

/* The heads' results, in mlp, to att. */
static dlrn_status hf_attention_out(hf_pass *p, int64_t l) {
    hf_model *m = p->m;
    return hf_linear(m, m->mlp, hf_size_of(m, HF_HEADS_DIM), hf_weight(m, l, HF_ATTN),
                     hf_weight(m, l, HF_ATTN_BIAS), m->base.cfg.dim, m->att);
}

/* ---- the architectures */

#include "lm_gptneox.h"

static const hf_architecture *hf_find_architecture(const char *model_type) {
#define HF_ROW(id, type, before) {type, &hf_##id},
    static const struct {
        const char *model_type;
        const hf_architecture *architecture;
    } known[] = {HF_ARCHITECTURE_LIST(HF_ROW)};
#undef HF_ROW
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(model_type, known[i].model_type)) return known[i].architecture;
    return NULL;
}

/* ------------------------------------------------------------------------------------------ */
// >>run

/* Sequence and position of the batch's tokens. */
static dlrn_status hf_lay_out(hf_pass *p) {
    hf_model *m = p->m;
    const lm_batch *b = p->batch;
    int64_t past = p->cache ? p->cache->past : 0, longest = 0;
    m->tokens = b->start[b->sequences] - b->start[0];
    LM_TRY(hf_reserve(m, m->tokens));
    for (int64_t s = 0, i = 0; s < b->sequences; s++) {
        int64_t n = b->start[s + 1] - b->start[s];
        longest = n > longest ? n : longest;
        for (int64_t k = 0; k < n; k++, i++) {
            m->sequence[i] = s;
            m->position[i] = past + k;
        }
    }
    LM_TRY(hf_reserve_scores(m, past + longest));
    return hf_need_turns(m, past + longest);
}

/* How far the run must go, and room for what taps keep on the way. */
static dlrn_status hf_plan(hf_pass *p, int whole) {
    int64_t width = 0;
    p->last = -1;
    for (int t = 0; t < p->n_taps; t++) {
        const lm_tap *tap = &p->taps[t];
        const int64_t y = hf_order(&tap->y), x_width = hf_width(&p->m->base, &tap->x);
        p->last = y > p->last ? y : p->last;
        if (hf_order(&tap->x) != y && x_width > width) width = x_width;
    }
    if (whole) p->last = INT64_MAX;
    return width ? hf_reserve_captures(p->m, p->n_taps, width) : DLRN_OK;
}

/* Embedding, blocks up to the last site that is needed, and for a whole run the last norm. */
static dlrn_status hf_pass_through(hf_pass *p, int whole) {
    hf_model *m = p->m;
    LM_TRY(hf_lay_out(p));
    LM_TRY(hf_plan(p, whole));
    hf_embed(p);
    LM_TRY(hf_reach(p, LM_EMBED, 0, m->x));
    for (int64_t l = 0; l < m->base.cfg.layers && !hf_done(p, LM_RESID_OUT, l - 1); l++) {
        if (m->base.stop && m->base.stop(m->base.stop_user))
            return dlrn_fail(m->base.ctx, DLRN_STOPPED, "stopped within a run");
        LM_TRY(hf_need_layer(m, l));
        LM_TRY(m->shape.architecture->block(p, l));
    }
    if (!whole) return DLRN_OK;
    LM_TRY(hf_need_head(m));
    hf_layer_norm(p, -1, HF_LAST_NORM);
    return DLRN_OK;
}

static dlrn_status hf_run(lm_model *m, const lm_batch *batch, const lm_tap *taps, int n_taps,
                          lm_visit visit, void *user, int whole) {
    hf_pass p = {(hf_model *)m, batch, NULL, taps, n_taps, visit, user, 0};
    return hf_pass_through(&p, whole);
}

/* ------------------------------------------------------------------------------------------ */
// >>head

/* The normed residual stream of a whole run is still in m->a. */
static dlrn_status hf_logits(lm_model *base, int64_t first, int64_t rows, float *logits) {
    hf_model *m = (hf_model *)base;
    const int64_t d = m->base.cfg.dim, v = m->base.cfg.vocab;
    if (first < 0 || rows < 0 || first > m->tokens - rows)
        return dlrn_fail(m->base.ctx, DLRN_ERR_ARGUMENT,
                         "lm_logits: expected rows within the last run's %lld, found %lld "
                         "from %lld",
                         (long long)m->tokens, (long long)rows, (long long)first);
    hf_product job = {m, m->a + first * d, m->part[HF_UNEMBEDDING], NULL, rows, d, v, 0, logits};
    return hf_multiply(&job);
}

/* The architectures that there are end in a LayerNorm. */
static dlrn_status hf_describe_head(lm_model *base, lm_head *out) {
    hf_model *m = (hf_model *)base;
    LM_TRY(hf_need_head(m));
    out->norm = "LayerNorm";
    out->eps = m->shape.eps;
    out->weight = m->part[HF_LAST_NORM];
    out->is_product = 1;
    return DLRN_OK;
}

static dlrn_status hf_unembed(lm_model *base, const float *x, int64_t n, float *logits) {
    const int64_t d = base->cfg.dim, v = base->cfg.vocab;
    return dlrn_matmul(base->ctx, DLRN_NT, dlrn_view(x, n, d, d),
                       dlrn_view(((hf_model *)base)->part[HF_UNEMBEDDING], v, d, d), 0,
                       dlrn_view(logits, n, v, v), NULL);
}

/* log-sum-exp over the vocabulary. A task: HF_TILE_ROWS tokens and HF_PART entries, a tile of
   logits at a time. */
typedef struct hf_lse {
    hf_model *m;
    const lm_batch *batch;
    int64_t blocks, parts; /* of the tokens, of the vocabulary                 */
    float *tile;           /* [threads][HF_TILE_ROWS][HF_TILE]             */
    float *top;            /* [tokens][parts] largest logit                    */
    double *sum;           /* [tokens][parts] of exp(logit - top)              */
    float *target;         /* [tokens] logit of the token that follows        */
} hf_lse;

/* Adds a tile of a token's logits to its sum, and keeps the target's logit if it is among them. */
static void hf_lse_row(const hf_lse *j, int64_t token, int64_t part, int64_t from, int64_t width,
                       const float *logit) {
    const lm_batch *b = j->batch;
    float *top = j->top + token * j->parts + part, before = *top;
    double *sum = j->sum + token * j->parts + part, more;
    int64_t next = token + 1 < j->m->tokens ? b->id[b->start[0] + token + 1] : -1;
    if (next >= from && next < from + width) j->target[token] = logit[next - from];
    lm_sum_exp(j->m->width, logit, width, top, &more);
    *sum = (before < *top ? *sum * exp((double)before - (double)*top) : *sum) + more;
}

/* A block of tokens against a part of the vocabulary; logits never exist as a whole. */
static void hf_lse_task(void *arg, int64_t task, int worker) {
    const hf_lse *j = (const hf_lse *)arg;
    hf_model *m = j->m;
    const int64_t d = m->base.cfg.dim, first = task % j->blocks * HF_TILE_ROWS,
                  part = task / j->blocks;
    int64_t rows = m->tokens - first < HF_TILE_ROWS ? m->tokens - first : HF_TILE_ROWS;
    int64_t from = part * HF_PART,
            end = from + HF_PART < m->base.cfg.vocab ? from + HF_PART : m->base.cfg.vocab;
    float *tile = j->tile + worker * HF_TILE_ROWS * HF_TILE;
    for (int64_t i = first; i < first + rows; i++)
        j->top[i * j->parts + part] = -INFINITY, j->sum[i * j->parts + part] = 0;
    for (; from < end; from += HF_TILE) {
        int64_t width = end - from < HF_TILE ? end - from : HF_TILE;
        dlrn_status s =
            dlrn_matmul(m->base.ctx, DLRN_NT, dlrn_view(m->a + first * d, rows, d, d),
                        dlrn_view(m->part[HF_UNEMBEDDING] + from * d, width, d, d), 0,
                        dlrn_view(tile, rows, width, HF_TILE), m->work + worker * DLRN_MATMUL_WORK);
        (void)s; /* cannot fail: the arguments are in range */
        for (int64_t i = 0; i < rows; i++)
            hf_lse_row(j, first + i, part, from, width, tile + i * HF_TILE);
    }
}

/* -log p of the token that follows this one. */
static double hf_nats(const hf_lse *j, int64_t token) {
    const float *top = j->top + token * j->parts;
    double sum = 0;
    float most = top[0];
    for (int64_t part = 1; part < j->parts; part++) most = top[part] > most ? top[part] : most;
    for (int64_t part = 0; part < j->parts; part++)
        sum += j->sum[token * j->parts + part] * exp((double)top[part] - (double)most);
    return (double)most + log(sum) - (double)j->target[token];
}

/* Joins the parts of the vocabulary and sums over the tokens that have a next one. */
static dlrn_status hf_cross_entropy(lm_model *base, const lm_batch *batch, double *nats,
                                    int64_t *tokens) {
    hf_model *m = (hf_model *)base;
    hf_lse j = {m,
                batch,
                (m->tokens + HF_TILE_ROWS - 1) / HF_TILE_ROWS,
                (m->base.cfg.vocab + HF_PART - 1) / HF_PART,
                NULL,
                NULL,
                NULL,
                NULL};
    j.tile = lm_floats(m->base.ctx,
                       (int64_t)dlrn_context_describe(m->base.ctx).threads * HF_TILE_ROWS, HF_TILE);
    j.top = lm_floats(m->base.ctx, m->tokens, j.parts);
    j.sum = (double *)dlrn_alloc(m->base.ctx, m->tokens * j.parts, sizeof *j.sum);
    j.target = lm_floats(m->base.ctx, m->tokens, 1);
    dlrn_status s = j.tile && j.top && j.sum && j.target ? DLRN_OK : DLRN_ERR_MEMORY;
    *nats = 0;
    *tokens = 0;
    if (s == DLRN_OK) dlrn_parallel_for(m->base.ctx, j.blocks * j.parts, hf_lse_task, &j);
    for (int64_t i = 0; i < m->tokens && s == DLRN_OK; i++) {
        if (batch->start[0] + i + 1 == batch->start[m->sequence[i] + 1])
            continue; /* the last token has no next one */
        *nats += hf_nats(&j, i);
        *tokens += 1;
    }
    void *blocks[] = {j.tile, j.top, j.sum, j.target};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) dlrn_free(m->base.ctx, blocks[i]);
    return s;
}

/* ------------------------------------------------------------------------------------------ */
// >>cache

/* Reads all that runs of up to `positions` tokens need, so that forks can share it. */
static dlrn_status hf_need_all(hf_model *m, int64_t positions) {
    LM_TRY(hf_need_head(m));
    LM_TRY(hf_need_turns(m, positions));
    for (int64_t l = 0; l < m->base.cfg.layers; l++) LM_TRY(hf_need_layer(m, l));
    return DLRN_OK;
}

static dlrn_status hf_fork(lm_model *base, dlrn_context *ctx, int64_t positions, lm_model **out) {
    *out = NULL;
    LM_TRY(hf_need_all((hf_model *)base, positions));
    hf_model *fork = (hf_model *)dlrn_alloc(ctx, 1, sizeof *fork);
    if (!fork) return DLRN_ERR_MEMORY;
    *fork = *(hf_model *)base;
    fork->base.ctx = ctx;
    fork->is_fork = 1;
    hf_forget_workspace(fork); /* that one is the model's, and so is the cache */
    memset(&fork->cache, 0, sizeof fork->cache);
    *out = &fork->base;
    return DLRN_OK;
}

static dlrn_status hf_begin(lm_model *base, int64_t sequences, int64_t positions) {
    hf_model *m = (hf_model *)base;
    const int64_t kv = base->cfg.kv_heads * m->shape.head_dim, row = hf_row_of(positions);
    m->cache.past = 0;
    if (sequences == m->cache.sequences && row == m->cache.capacity) return DLRN_OK;
    hf_drop_cache(m);
    if (sequences == 0) return DLRN_OK;
    m->cache.k = lm_floats(base->ctx, base->cfg.layers * sequences * row, kv);
    m->cache.v = lm_floats(base->ctx, base->cfg.layers * sequences * row, kv);
    if (!m->cache.k || !m->cache.v) {
        hf_drop_cache(m);
        return DLRN_ERR_MEMORY;
    }
    m->cache.sequences = sequences;
    m->cache.capacity = row;
    return DLRN_OK;
}

/* The logits of the last tokens alone: those of a long prompt are not needed. */
static dlrn_status hf_extend(lm_model *base, const lm_batch *batch, const lm_tap *taps, int n_taps,
                             lm_visit visit, void *user, float *logits) {
    hf_model *m = (hf_model *)base;
    const int64_t d = base->cfg.dim, v = base->cfg.vocab, rows = batch->sequences;
    const int64_t each = batch->start[1] - batch->start[0];
    hf_pass p = {m, batch, &m->cache, taps, n_taps, visit, user, 0};
    LM_TRY(hf_pass_through(&p, 1));
    m->cache.past += each;
    return dlrn_matmul(base->ctx, DLRN_NT, dlrn_view(m->a + (each - 1) * d, rows, d, each * d),
                       dlrn_view(m->part[HF_UNEMBEDDING], v, d, d), 0,
                       dlrn_view(logits, rows, v, v), NULL);
}

/* ------------------------------------------------------------------------------------------ */
// >>tokenizer

typedef struct hf_tokenizer {
    lm_tokenizer base;
    bpe_tokenizer *bpe;
} hf_tokenizer;

/* bpe.h's tokenizer behind the interface. */
static bpe_tokenizer *hf_bpe(const lm_tokenizer *t) {
    return ((const hf_tokenizer *)t)->bpe;
}

static dlrn_status hf_encode(lm_tokenizer *t, const char *text, int64_t bytes, bpe_ids *out) {
    return bpe_encode(hf_bpe(t), text, bytes, out);
}

static dlrn_status hf_decode(lm_tokenizer *t, const int32_t *ids, int64_t n, bpe_text *out) {
    return bpe_decode(hf_bpe(t), ids, n, out);
}

static int64_t hf_vocab_size(const lm_tokenizer *t) {
    return bpe_vocab_size(hf_bpe(t));
}

static int hf_is_special(const lm_tokenizer *t, int32_t id) {
    return bpe_is_special(hf_bpe(t), id);
}

static const char *hf_token_bytes(const lm_tokenizer *t, int32_t id, int64_t *bytes) {
    return bpe_token_bytes(hf_bpe(t), id, bytes);
}

static void hf_destroy_tokenizer(lm_tokenizer *t) {
    dlrn_context *ctx = t->ctx;
    bpe_destroy(hf_bpe(t));
    dlrn_free(ctx, t);
}

static const lm_tokenizer_kind hf_tokenizer_kind = {
    hf_encode, hf_decode, hf_vocab_size, hf_is_special, hf_token_bytes, hf_destroy_tokenizer};

static dlrn_status hf_load_tokenizer(dlrn_context *ctx, const char *folder, lm_tokenizer **out) {
    hf_tokenizer *t = (hf_tokenizer *)dlrn_alloc(ctx, 1, sizeof *t);
    *out = NULL;
    if (!t) return DLRN_ERR_MEMORY;
    t->base.kind = &hf_tokenizer_kind;
    t->base.ctx = ctx;
    t->bpe = NULL;
    const dlrn_status s = bpe_load(ctx, folder, &t->bpe);
    if (s == DLRN_OK)
        *out = &t->base;
    else
        hf_destroy_tokenizer(&t->base);
    return s;
}

/* ------------------------------------------------------------------------------------------ */
// >>engine

/* A folder; what it lacks is said when it is read. */
static int hf_opens(dlrn_context *ctx, const char *path) {
    return dlrn_file_exists(ctx, path) == 2;
}

static dlrn_status hf_find_site(lm_model *m, const char *name, int64_t layer, lm_site *out) {
    const int kind = lm_kind_named(name);
    if (lm_tensor_named(name))
        return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT,
                         "site: expected " LM_KINDS ", found %s: only models in GGUF files have "
                         "sites of tensors",
                         name);
    if (kind < 0)
        return dlrn_fail(m->ctx, DLRN_ERR_ARGUMENT, "site: expected " LM_KINDS ", found %s", name);
    return lm_site_in_layer(m, (lm_kind)kind, layer, out);
}

static const lm_engine hf_engine = {"hf",
                                    hf_opens,
                                    hf_load,
                                    hf_read_config,
                                    hf_load_tokenizer,
                                    hf_destroy,
                                    hf_find_site,
                                    hf_width,
                                    hf_run,
                                    hf_logits,
                                    hf_cross_entropy,
                                    hf_describe_head,
                                    hf_unembed,
                                    hf_begin,
                                    hf_extend,
                                    hf_fork,
                                    NULL,
                                    NULL};
#endif /* LM_HF_H */
