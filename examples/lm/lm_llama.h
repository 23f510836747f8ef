/* lm_llama.h - llama.cpp as an engine: any model of a .gguf file - part of lm.h, MIT licence

   lm.h includes this file where LM_LLAMA is defined. Link with -lllama -lggml -lggml-base.

   llama.cpp builds a graph of nodes for a batch and computes it in order. Its scheduler asks a
   callback (cb_eval) about each node, and calls it again once a node that it wanted is computed.
   There a site's rows are read, an edit writes others, and a run that needs no more ends: what is
   above is never computed.

   SITES are found once in each model, in the graph of a few tokens (see >>llama-graph). What counts
   is what a node does, since names differ between architectures: attn_out is the product with the
   tensor blk.N.attn_output.weight and what is added to it, mlp_in is what blk.N.ffn_up.weight
   multiplies.
   These are the inputs and outputs of the modules of the same name in Hugging Face's models.

   PIECES. llama.cpp runs at most so many sequences at once, the logits of a piece take tokens x
   vocabulary floats twice, and every token of a piece looks at the keys of all its sequences. So a
   run is cut into pieces of whole sequences, see lcpp_piece_tokens. A visit still gets all rows
   of a run in one call. With one piece it is called from within the graph. With several, each piece
   runs up to the tap, the rows are gathered and visited, and a whole run begins again with the
   rows that the visit left: 1 + (the part below the tap) times the work. lm_model.whole_tokens
   tells callers how long a whole run may be without that. A sequence is never cut, so the logits
   of a long one take its tokens x vocabulary x 8 bytes.

   NUMBERS. The cache of keys and values is f32 and flash attention is off, so that an f32 model
   gives what transformers gives to about 1e-5; with GELU to 1e-3 or so, since ggml looks it up in a
   table of f16 numbers. The rows of a sequence depend on the rest of its
   piece in the last bits: the keys of others are masked, but they shift the places at which a
   product is summed. A run with rows written back unchanged gives the same bits as one without.

   VERSIONS. Written for llama.cpp of August 2025 (b6325: flash_attn_type, kv_unified) and later.

   RATE. What matters most is the tokens of a piece, as many as n_ubatch. In contexts of 128 tokens
   SmolLM2-135M (f32, one core of a busy Xeon with AVX-512) ran 296 tokens a second in pieces of
   256, 213 in pieces of 512 and 161 in pieces of 1024, since every token looks at the keys of its
   whole piece; llama.cpp's own prompt processing (pp512) ran 219 to 258. Reading at layer 15 of 30
   ran 430 to 460. The logits of all tokens cost a fifth, here as in llama.cpp (185 against 197):
   the vocabulary is a fifth of this model. Build llama.cpp for the machine (GGML_NATIVE). Formats
   that ggml has no blocked product for (Q4_1) run at half the rate of f32: llama-quantize turns
   such a file into f32. Set OMP_WAIT_POLICY=passive where other programs run.

   CONTENTS
   >>llama-model      the structs; errors; loading
   >>llama-tokenizer  its vocabulary
   >>llama-graph      nodes, and which of them is a site
   >>llama-run        pieces, the callback, runs
   >>llama-head       logits and cross-entropy
   >>llama-sampling   tokens behind those cached
   >>llama-engine     the row of lm.h's table
*/
#ifndef LM_LLAMA_H
#define LM_LLAMA_H

#include <ggml-backend.h>
#include <ggml.h>
#include <gguf.h>
#include <llama.h>

/* ------------------------------------------------------------------------------------------ */
// >>llama-model

enum {
    LCPP_NAME = 64,         /* bytes of a node's name, as ggml has them */
    LCPP_SOURCES = 4,       /* of a node that are looked at             */
    LCPP_PROBE = 7,         /* tokens of the graph in which sites are found: few, and no usual
                                number of heads, so that a dimension of 7 is that of the tokens */
    LCPP_PIECE = 256,       /* tokens of a piece: see RATE */
    LCPP_LOGITS = 64 << 20, /* floats of a piece's logits, at most, ... */
    LCPP_MIN_PIECE = 128,   /* ... but never fewer tokens than these    */
    LCPP_NO_LAYER = -1
};

/* A node of the graph. Its pointers are compared, never followed: the graph is gone. */
typedef struct lcpp_node {
    char name[LCPP_NAME];
    char weight[LCPP_NAME]; /* the tensor of the file that it takes; "": none */
    const void *self, *src[LCPP_SOURCES];
    enum ggml_op op;
    int64_t width; /* numbers for each token; 0: it has no row of f32 for each token */
    int tokens;    /* the dimension of the tokens: the last that is not 1 */
    float setting; /* of a norm its eps, of a scale its factor */
} lcpp_node;

/* A llama context, and what it has room for. */
typedef struct lcpp_room {
    struct llama_context *at; /* NULL: none yet */
    int64_t sequences, cells, tokens;
    int edited; /* its cache may hold numbers that are not finite */
} lcpp_room;

/* A tensor in the model's file, read a few rows at a time. Why not from memory: llama.cpp repacks
   quantised weights when it loads them, and has no call that undoes it. */
typedef struct lcpp_tensor {
    FILE *f;
    enum ggml_type type;
    int64_t rows, cols, at; /* at: its first byte in the file */
    const char *name;       /* borrowed, for errors */
} lcpp_tensor;

/* A node at which a run has something to do, and how it is recognised: `offset` nodes behind the
   node of this name number `rank`. Nodes without a name of their own are numbered through, and
   their numbers change with the batch. */
typedef struct lcpp_stop {
    char anchor[LCPP_NAME]; /* "": the beginning of the graph */
    int64_t rank, offset, width;
    enum ggml_op op;
    int64_t node; /* in lcpp_model.node */
    int tokens;   /* as of the node */
    int64_t seen; /* nodes of the anchor's name that are passed */
    int64_t left; /* nodes still to pass; 0: it is reached; -1: its anchor comes later */
    int active;   /* this pass stops here */
} lcpp_stop;

/* The last run: what it takes to run a piece of it again. */
typedef struct lcpp_run {
    int32_t *id;    /* [tokens]                            */
    int64_t *start; /* [sequences + 1], from 0             */
    int64_t *piece; /* [pieces + 1] sequences              */
    int64_t sequences, pieces;
    int64_t held; /* the piece whose logits llama.cpp holds; -1: none */
    int n_taps;
    lcpp_stop *stop; /* [2 n_taps]: x and y of each tap                    */
    int *order;      /* [n_taps] taps in the order in which y is reached   */
    float **x, **y;  /* [n_taps] [tokens][width]: read, and left by a visit; x NULL: it is y */
} lcpp_run;

typedef struct lcpp_model {
    lm_model base;
    struct llama_model *model;
    const struct llama_vocab *vocab;
    int equal; /* recurrent: the sequences of a piece must be equally long */
    char *path;
    lm_head head;        /* norm NULL: not looked yet */
    float *head_weight;  /* [dim] lm_head.weight, owned */
    const char *unembed; /* the tensor of the unembedding; static */
    lcpp_room run_room, sample_room;
    lcpp_node *node; /* [nodes]; NULL: not looked yet */
    int64_t nodes, node_cap;
    lcpp_run run;
    float *rows; /* [row_cap] of the node that is reached */
    int64_t row_cap;
    struct lcpp_pass *pass; /* under way, for the callbacks */
    int64_t sample_sequences, sample_positions, past;
} lcpp_model;

/* The first error since lcpp_forget_log. llama.cpp says only in its log why something failed, and
   the first line is the cause. The log belongs to the process. */
static char lcpp_log_line[256];

/* Keeps the first error, without the name of the function that it begins with. */
static void lcpp_log(enum ggml_log_level level, const char *text, void *user) {
    (void)user;
    if (level != GGML_LOG_LEVEL_ERROR || lcpp_log_line[0]) return;
    const char *colon = strstr(text, ": "); /* behind the name of a function */
    if (colon && !memchr(text, ' ', (size_t)(colon - text))) text = colon + 2;
    const int n = (int)strcspn(text, "\n");
    snprintf(lcpp_log_line, sizeof lcpp_log_line, "%.*s", n, text);
}

/* Before each call whose failure is told with the log's words. */
static void lcpp_forget_log(void) {
    llama_log_set(lcpp_log, NULL);
    lcpp_log_line[0] = 0;
}

/* Why the last call failed. */
static const char *lcpp_reason(void) {
    return lcpp_log_line[0] ? lcpp_log_line : "it gives no reason";
}

/* A file begins with "GGUF". */
static int lcpp_engine_opens(dlrn_context *ctx, const char *path) {
    return lm_is_gguf(ctx, path) > 0;
}

/* Whether ggml would multiply in AMX tiles. GCC 12.2 and its contemporaries compile ggml's setup of
   the tiles to nothing (the operand of _tile_loadconfig is declared too small), and the first
   product of a quantised model is then an illegal instruction. */
static int lcpp_has_amx(void) {
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    ggml_backend_reg_t reg = cpu ? ggml_backend_dev_backend_reg(cpu) : NULL;
    void *address =
        reg ? ggml_backend_reg_get_proc_address(reg, "ggml_backend_dev_get_extra_bufts") : NULL;
    ggml_backend_dev_get_extra_bufts_t list = NULL;
    memcpy(&list, &address, sizeof list);
    ggml_backend_buffer_type_t *type = list ? list(cpu) : NULL;
    for (; type && *type; type++)
        if (strstr(ggml_backend_buft_name(*type), "AMX")) return 1;
    return 0;
}

static bool lcpp_go_on(float progress, void *user) { /* llama.cpp's own prints dots */
    (void)progress;
    (void)user;
    return true;
}

/* Opens a file; vocab_only: its settings and vocabulary. */
static dlrn_status lcpp_open(dlrn_context *ctx, const char *path, int vocab_only,
                             struct llama_model **out) {
    lcpp_forget_log();
    llama_backend_init();
    if (!ggml_backend_dev_count()) ggml_backend_load_all(); /* where they are files of their own */
    struct llama_model_params p = llama_model_default_params();
    p.vocab_only = vocab_only;
    p.progress_callback = lcpp_go_on;
#ifndef LM_LLAMA_AMX /* define it if your llama.cpp was built by a compiler that gets AMX right */
    if (lcpp_has_amx()) p.use_extra_bufts = false;
#endif
    *out = llama_model_load_from_file(path, p);
    if (*out) return DLRN_OK;
    return dlrn_fail(ctx, DLRN_ERR_FORMAT, "%s: llama.cpp cannot load it: %s", path, lcpp_reason());
}

/* A setting of the file: the number at "ARCHITECTURE.key"; `otherwise` if it has none, or one for
   each layer. */
static int64_t lcpp_setting(const struct llama_model *model, const char *key, int64_t otherwise) {
    char architecture[64] = "", name[160], text[64];
    llama_model_meta_val_str(model, "general.architecture", architecture, sizeof architecture);
    snprintf(name, sizeof name, "%s.%s", architecture, key);
    if (llama_model_meta_val_str(model, name, text, sizeof text) < 1) return otherwise;
    char *end = text;
    const long long n = strtoll(text, &end, 10);
    return *end || end == text || n < 0 ? otherwise : (int64_t)n;
}

/* A special token, if the file names one of its vocabulary: llama.cpp takes GPT-2's or Llama's id
   otherwise. */
static int32_t lcpp_token(const struct llama_model *model, const char *key, llama_token id) {
    char text[16];
    if (llama_model_meta_val_str(model, key, text, sizeof text) < 1) return -1;
    return strtoll(text, NULL, 10) == id ? id : -1;
}

/* The settings that every engine knows. */
static dlrn_status lcpp_configure(dlrn_context *ctx, const char *path,
                                  const struct llama_model *model, lm_config *c) {
    const struct llama_vocab *vocab = llama_model_get_vocab(model);
    memset(c, 0, sizeof *c);
    llama_model_meta_val_str(model, "general.architecture", c->family, sizeof c->family);
    c->dim = lcpp_setting(model, "embedding_length", 0);
    c->layers = lcpp_setting(model, "block_count", 0) -
                lcpp_setting(model, "nextn_predict_layers", 0); /* those that guess ahead */
    c->positions = lcpp_setting(model, "context_length", 0);
    c->inner = lcpp_setting(model, "feed_forward_length", 0);
    c->heads = lcpp_setting(model, "attention.head_count", 0);
    if (c->heads < 1) c->heads = 1; /* none, or another number in each layer */
    c->kv_heads = lcpp_setting(model, "attention.head_count_kv", c->heads);
    if (c->kv_heads > c->heads) c->kv_heads = c->heads; /* they differ by layer, or are wrong */
    c->vocab = llama_vocab_n_tokens(vocab);
    c->bos = lcpp_token(model, "tokenizer.ggml.bos_token_id", llama_vocab_bos(vocab));
    c->eos = lcpp_token(model, "tokenizer.ggml.eos_token_id", llama_vocab_eos(vocab));
    if (c->dim > 0 && c->layers > 0 && c->positions > 0 && c->vocab > 0) return DLRN_OK;
    return dlrn_fail(ctx, DLRN_ERR_FORMAT,
                     "%s: expected a language model, found %lld layers of width %lld, %lld "
                     "positions and %lld tokens",
                     path, (long long)c->layers, (long long)c->dim, (long long)c->positions,
                     (long long)c->vocab);
}

/* vocab_only reads the settings and the vocabulary: a tenth of a second for most files. */
static dlrn_status lcpp_engine_read_config(dlrn_context *ctx, const char *path, lm_config *out) {
    struct llama_model *model = NULL;
    LM_TRY(lcpp_open(ctx, path, 1, &model));
    const dlrn_status s = lcpp_configure(ctx, path, model, out);
    llama_model_free(model);
    return s;
}

/* Frees a context; the room may be used again. */
static void lcpp_close_room(lcpp_room *room) {
    if (room->at) llama_free(room->at);
    memset(room, 0, sizeof *room);
}

/* Frees what the last run kept: its logits can no longer be asked for. */
static void lcpp_forget_run(lcpp_model *m) {
    lcpp_run *r = &m->run;
    dlrn_context *ctx = m->base.ctx;
    for (int t = 0; t < r->n_taps; t++) {
        if (r->x) dlrn_free(ctx, r->x[t]);
        if (r->y) dlrn_free(ctx, r->y[t]);
    }
    void *blocks[] = {r->id, r->start, r->piece, r->stop, r->order, r->x, r->y};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) dlrn_free(ctx, blocks[i]);
    memset(r, 0, sizeof *r);
    r->held = -1;
}

static void lcpp_engine_destroy(lm_model *base) {
    lcpp_model *m = (lcpp_model *)base;
    lcpp_forget_run(m);
    lcpp_close_room(&m->run_room);
    lcpp_close_room(&m->sample_room);
    if (m->model) llama_model_free(m->model);
    dlrn_free(base->ctx, m->node);
    dlrn_free(base->ctx, m->rows);
    dlrn_free(base->ctx, m->path);
    dlrn_free(base->ctx, m->head_weight);
    dlrn_free(base->ctx, m);
}

/* Refuses a model that does not predict the next token from those before. */
static dlrn_status lcpp_check_kind(const lcpp_model *m, const char *path) {
    const char *found = NULL;
    if (!llama_model_has_decoder(m->model)) found = "an encoder";
    if (llama_model_has_encoder(m->model)) found = "a model with an encoder";
    if (llama_model_is_diffusion(m->model)) found = "a diffusion model";
    char key[96], text[16] = "";
    snprintf(key, sizeof key, "%s.attention.causal", m->base.cfg.family);
    llama_model_meta_val_str(m->model, key, text, sizeof text);
    if (!strcmp(text, "false")) found = "an encoder";
    if (!found) return DLRN_OK;
    return dlrn_fail(m->base.ctx, DLRN_ERR_UNSUPPORTED,
                     "%s: expected a model that predicts the next token, found %s (%s)", path,
                     found, m->base.cfg.family);
}

/* Tokens of a piece. */
static int64_t lcpp_piece_tokens(const lcpp_model *m) {
    const int64_t fits = LCPP_LOGITS / m->base.cfg.vocab;
    if (fits < LCPP_MIN_PIECE) return LCPP_MIN_PIECE;
    return fits < LCPP_PIECE ? fits : LCPP_PIECE;
}

/* The weights are mapped, not read: a run that ends at layer 3 reads those of four layers. */
static dlrn_status lcpp_engine_load(dlrn_context *ctx, const char *path, lm_model **out) {
    lcpp_model *m = (lcpp_model *)dlrn_alloc(ctx, 1, sizeof *m);
    if (!m) return DLRN_ERR_MEMORY;
    memset(m, 0, sizeof *m);
    m->base.ctx = ctx;
    m->run.held = -1;
    m->path = (char *)dlrn_alloc(ctx, (int64_t)strlen(path) + 1, 1);
    if (m->path) memcpy(m->path, path, strlen(path) + 1);
    dlrn_status s = m->path ? lcpp_open(ctx, path, 0, &m->model) : DLRN_ERR_MEMORY;
    if (s == DLRN_OK) s = lcpp_configure(ctx, path, m->model, &m->base.cfg);
    if (s == DLRN_OK) s = lcpp_check_kind(m, path);
    if (s != DLRN_OK) {
        lcpp_engine_destroy(&m->base);
        return s;
    }
    m->vocab = llama_model_get_vocab(m->model);
    m->base.whole_tokens = lcpp_piece_tokens(m);
    m->equal = llama_model_is_recurrent(m->model) || llama_model_is_hybrid(m->model);
    *out = &m->base;
    return DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>llama-tokenizer

/* The vocabulary of a file, loaded without its weights. A byte that is not UTF-8 is read as U+FFFD:
   llama.cpp does so with some of them, and throws at others, which would end the process. */
typedef struct lcpp_tokenizer {
    lm_tokenizer base;
    struct llama_model *model;
    const struct llama_vocab *vocab;
    char *bytes;   /* of all tokens, each closed with a 0 */
    int64_t *from; /* [vocab + 1] */
    int64_t used, capacity;
} lcpp_tokenizer;

/* Bytes of the character that a text begins with; 0: it is not UTF-8. */
static int64_t lcpp_character(const unsigned char *text, int64_t n) {
    const int bytes = text[0] < 0x80   ? 1
                      : text[0] < 0xC2 ? 0
                      : text[0] < 0xE0 ? 2
                      : text[0] < 0xF0 ? 3
                      : text[0] < 0xF5 ? 4
                                       : 0;
    if (bytes > n) return 0;
    for (int i = 1; i < bytes; i++)
        if ((text[i] & 0xC0) != 0x80) return 0;
    if (text[0] == 0xE0 && text[1] < 0xA0) return 0; /* too long for its number */
    if (text[0] == 0xED && text[1] > 0x9F) return 0; /* a surrogate             */
    if (text[0] == 0xF0 && text[1] < 0x90) return 0; /* too long                */
    if (text[0] == 0xF4 && text[1] > 0x8F) return 0; /* beyond U+10FFFF         */
    return bytes;
}

/* The text with each byte that is not UTF-8 replaced, in a block for the caller to free; NULL and
   DLRN_OK: nothing is wrong with it. */
static dlrn_status lcpp_mend_text(dlrn_context *ctx, const char *text, int64_t *bytes, char **out) {
    const unsigned char *from = (const unsigned char *)text;
    int64_t wrong = 0, used = 0;
    *out = NULL;
    for (int64_t i = 0, n; i < *bytes; i += n ? n : 1) {
        n = lcpp_character(from + i, *bytes - i);
        wrong += n == 0;
    }
    if (wrong == 0) return DLRN_OK;
    char *to = (char *)dlrn_alloc(ctx, *bytes + 2 * wrong, 1);
    if (!to) return DLRN_ERR_MEMORY;
    for (int64_t i = 0, n; i < *bytes; i += n ? n : 1) {
        n = lcpp_character(from + i, *bytes - i);
        memcpy(to + used, n ? text + i : "\xEF\xBF\xBD", (size_t)(n ? n : 3));
        used += n ? n : 3;
    }
    *bytes = used;
    *out = to;
    return DLRN_OK;
}

/* Tokens of a text that is UTF-8. A token has a byte or more, but for spaces that are put in front
   of words and texts; if there are more of those than expected, llama.cpp says how many. */
static dlrn_status lcpp_tokenize(const lcpp_tokenizer *t, const char *text, int64_t bytes,
                                 bpe_ids *out) {
    int64_t need = bytes + 16;
    for (int tries = 0; tries < 2; tries++) {
        LM_TRY(lm_grow(t->base.ctx, &out->id, &out->capacity, 0, need, sizeof *out->id));
        const int32_t n = llama_tokenize(t->vocab, text, (int32_t)bytes, out->id,
                                         (int32_t)out->capacity, false, true);
        if (n >= 0) {
            out->count = n;
            return DLRN_OK;
        }
        need = -(int64_t)n;
    }
    return dlrn_fail(t->base.ctx, DLRN_ERR_FORMAT, "text: llama.cpp cannot tokenize it");
}

static dlrn_status lcpp_encode_text(lm_tokenizer *base, const char *text, int64_t bytes,
                                    bpe_ids *out) {
    char *mended = NULL;
    out->count = 0;
    out->ctx = base->ctx;
    if (bytes > INT32_MAX / 4)
        return dlrn_fail(base->ctx, DLRN_ERR_ARGUMENT,
                         "text: expected at most 512 MB at once, found %lld bytes",
                         (long long)bytes);
    if (bytes == 0) return DLRN_OK;
    LM_TRY(lcpp_mend_text(base->ctx, text, &bytes, &mended));
    const dlrn_status s =
        lcpp_tokenize((const lcpp_tokenizer *)base, mended ? mended : text, bytes, out);
    dlrn_free(base->ctx, mended);
    return s;
}

/* NULL also for the tokens that a converter makes up to pad a vocabulary. */
static const char *lcpp_token_bytes(const lm_tokenizer *base, int32_t id, int64_t *bytes) {
    const lcpp_tokenizer *t = (const lcpp_tokenizer *)base;
    *bytes = 0;
    if (id < 0 || id >= llama_vocab_n_tokens(t->vocab)) return NULL;
    if (llama_vocab_get_attr(t->vocab, id) & LLAMA_TOKEN_ATTR_UNUSED) return NULL; /* padding */
    *bytes = t->from[id + 1] - t->from[id] - 1;
    return t->bytes + t->from[id];
}

/* Token by token. llama_detokenize would drop spaces that a tokenizer puts in front of a text,
   and what it cleans up depends on the file. */
static dlrn_status lcpp_decode_text(lm_tokenizer *base, const int32_t *ids, int64_t n,
                                    bpe_text *out) {
    int64_t bytes = 0;
    out->count = 0;
    out->ctx = base->ctx;
    for (int64_t i = 0; i < n; i++) {
        const char *piece = lcpp_token_bytes(base, ids[i], &bytes);
        if (!piece)
            return dlrn_fail(base->ctx, DLRN_ERR_ARGUMENT,
                             "token id: expected one of the %d "
                             "tokens, found %d",
                             (int)llama_vocab_n_tokens(((const lcpp_tokenizer *)base)->vocab),
                             (int)ids[i]);
        LM_TRY(
            lm_grow(base->ctx, &out->bytes, &out->capacity, out->count, out->count + bytes + 1, 1));
        memcpy(out->bytes + out->count, piece, (size_t)bytes);
        out->count += bytes;
    }
    LM_TRY(lm_grow(base->ctx, &out->bytes, &out->capacity, out->count, out->count + 1, 1));
    out->bytes[out->count] = 0;
    return DLRN_OK;
}

static int64_t lcpp_vocab_size(const lm_tokenizer *base) {
    return llama_vocab_n_tokens(((const lcpp_tokenizer *)base)->vocab);
}

static int lcpp_is_special(const lm_tokenizer *base, int32_t id) {
    const lcpp_tokenizer *t = (const lcpp_tokenizer *)base;
    return id >= 0 && id < llama_vocab_n_tokens(t->vocab) && llama_vocab_is_control(t->vocab, id);
}

/* Also one that was loaded in part. */
static void lcpp_destroy_tokenizer(lm_tokenizer *base) {
    lcpp_tokenizer *t = (lcpp_tokenizer *)base;
    if (t->model) llama_model_free(t->model);
    dlrn_free(base->ctx, t->bytes);
    dlrn_free(base->ctx, t->from);
    dlrn_free(base->ctx, t);
}

/* Spells all tokens out. */
static dlrn_status lcpp_spell(lcpp_tokenizer *t) {
    const int32_t n = llama_vocab_n_tokens(t->vocab);
    t->from = (int64_t *)dlrn_alloc(t->base.ctx, (int64_t)n + 1, sizeof *t->from);
    if (!t->from) return DLRN_ERR_MEMORY;
    for (int32_t id = 0; id < n; id++) {
        int32_t bytes = 64;
        t->from[id] = t->used;
        for (int tries = 0; tries < 2; tries++) {
            LM_TRY(lm_grow(t->base.ctx, &t->bytes, &t->capacity, t->used, t->used + bytes + 1, 1));
            const int32_t got =
                llama_token_to_piece(t->vocab, id, t->bytes + t->used, bytes, 0, true);
            bytes = got < 0 ? -got : got;
            if (got >= 0) break;
        }
        t->used += bytes;
        t->bytes[t->used++] = 0;
    }
    t->from[n] = t->used;
    return DLRN_OK;
}

/* llama.cpp ends the process at a byte of a text for which a SentencePiece vocabulary has no token:
   neither <0x41> nor A. */
static dlrn_status lcpp_check_bytes(const lcpp_tokenizer *t, const char *path) {
    unsigned char has[256] = {0};
    int missing = 0;
    if (llama_vocab_type(t->vocab) != LLAMA_VOCAB_TYPE_SPM) return DLRN_OK;
    for (int32_t id = 0; id < llama_vocab_n_tokens(t->vocab); id++) {
        const char *text = llama_vocab_get_text(t->vocab, id);
        char name[8] = "";
        unsigned byte = 0;
        if (!text || !*text) continue;
        if (!text[1]) has[(unsigned char)*text] = 1;
        if (strlen(text) != 6 || sscanf(text, "<0x%2X>", &byte) != 1) continue;
        snprintf(name, sizeof name, "<0x%02X>", byte & 255);
        if (!strcmp(name, text)) has[byte & 255] = 1;
    }
    for (int i = 0; i < 256; i++) missing += !has[i];
    if (!missing) return DLRN_OK;
    return dlrn_fail(t->base.ctx, DLRN_ERR_UNSUPPORTED,
                     "%s: expected a tokenizer with a token for each byte, as llama.cpp needs it, "
                     "found %d bytes without one",
                     path, missing);
}

static const lm_tokenizer_kind lcpp_tokenizer_kind = {lcpp_encode_text, lcpp_decode_text,
                                                      lcpp_vocab_size,  lcpp_is_special,
                                                      lcpp_token_bytes, lcpp_destroy_tokenizer};

/* Opens the file again, so that a tokenizer may outlive the model, or do without one. */
static dlrn_status lcpp_engine_load_tokenizer(dlrn_context *ctx, const char *path,
                                              lm_tokenizer **out) {
    lcpp_tokenizer *t = (lcpp_tokenizer *)dlrn_alloc(ctx, 1, sizeof *t);
    *out = NULL;
    if (!t) return DLRN_ERR_MEMORY;
    memset(t, 0, sizeof *t);
    t->base.kind = &lcpp_tokenizer_kind;
    t->base.ctx = ctx;
    dlrn_status s = lcpp_open(ctx, path, 1, &t->model);
    if (s == DLRN_OK) {
        t->vocab = llama_model_get_vocab(t->model);
        if (llama_vocab_type(t->vocab) == LLAMA_VOCAB_TYPE_NONE)
            s = dlrn_fail(ctx, DLRN_ERR_FORMAT, "%s: expected a tokenizer, found none", path);
    }
    if (s == DLRN_OK) s = lcpp_check_bytes(t, path);
    if (s == DLRN_OK) s = lcpp_spell(t);
    if (s == DLRN_OK)
        *out = &t->base;
    else
        lcpp_destroy_tokenizer(&t->base);
    return s;
}

/* ------------------------------------------------------------------------------------------ */
// >>llama-graph

/* What a pass through the graph is about, for the callback. */
typedef struct lcpp_pass {
    lcpp_model *m;
    lcpp_room *room;
    const lm_tap *taps;
    lm_visit visit;
    void *user;
    int collect; /* list the nodes, and compute none */
    int stage;   /* taps before this one (in order) are written, this one is read; -1: see visit */
    int whole;
    int64_t first, n; /* rows of the piece, in the run */
    int64_t waiting;  /* stops that are not reached yet */
    int ended, stopped;
    dlrn_status status;
} lcpp_pass;

/* The tensor of the file among what a node takes. A copy on another device is called
   DEVICE#NAME#NUMBER. */
static void lcpp_copy_weight(const struct ggml_tensor *t, char *out) {
    for (int i = 0; i < 2; i++) {
        const struct ggml_tensor *w = t->src[i];
        if (!w || w->op != GGML_OP_NONE) continue;
        const char *name = strchr(w->name, '#') ? strchr(w->name, '#') + 1 : w->name;
        const size_t n = strcspn(name, "#");
        if (!strstr(name, ".weight") && !strstr(name, ".bias") && !strstr(name, ".scale")) continue;
        memcpy(out, name, n);
        out[n] = 0;
        return;
    }
}

/* Numbers of a tensor for each of n tokens, which are its dimension `last`; 0: it has no row of f32
   in one piece for each. */
static int64_t lcpp_row_width(const struct ggml_tensor *t, int last, int64_t n) {
    int64_t width = 1;
    if (t->type != GGML_TYPE_F32 || t->ne[last] != n) return 0;
    for (int i = last + 1; i < GGML_MAX_DIMS; i++)
        if (t->ne[i] != 1) return 0;
    for (int i = 0; i < last; i++) {
        if (t->nb[i] != (size_t)width * sizeof(float)) return 0;
        width *= t->ne[i];
    }
    return width;
}

/* Appends a node to the list. */
static dlrn_status lcpp_add_node(lcpp_model *m, const struct ggml_tensor *t) {
    LM_TRY(lm_grow(m->base.ctx, &m->node, &m->node_cap, m->nodes, m->nodes + 1, sizeof *m->node));
    lcpp_node *node = &m->node[m->nodes++];
    memset(node, 0, sizeof *node);
    snprintf(node->name, sizeof node->name, "%s", t->name);
    node->self = t;
    for (int i = 0; i < LCPP_SOURCES; i++) node->src[i] = t->src[i];
    node->op = t->op;
    node->tokens = GGML_MAX_DIMS - 1;
    while (node->tokens > 1 && t->ne[node->tokens] == 1) node->tokens--;
    node->width = lcpp_row_width(t, node->tokens, LCPP_PROBE);
    memcpy(&node->setting, t->op_params, sizeof node->setting);
    lcpp_copy_weight(t, node->weight);
    return DLRN_OK;
}

/* Whether a node has a name that stays the same from batch to batch. */
static int lcpp_has_name(const char *name) {
    return name[0] && strncmp(name, "node_", 5) != 0;
}

/* The place of a node in the list; -1: it is a tensor of the file or an input. */
static int64_t lcpp_node_of(const lcpp_model *m, const void *self) {
    for (int64_t i = 0; i < m->nodes; i++)
        if (m->node[i].self == self) return i;
    return -1;
}

/* The first node that takes a layer's weight, e.g. "attn_output.weight"; -1: none. */
static int64_t lcpp_user_of(const lcpp_model *m, int layer, const char *weight) {
    char name[LCPP_NAME];
    if (layer == LCPP_NO_LAYER)
        snprintf(name, sizeof name, "%s", weight);
    else
        snprintf(name, sizeof name, "blk.%d.%s", layer, weight);
    for (int64_t i = 0; i < m->nodes; i++)
        if (!strcmp(m->node[i].weight, name)) return i;
    return -1;
}

/* The output of a linear module: its product, then its bias or scale if it has them. */
static int64_t lcpp_output_of(const lcpp_model *m, int layer, const char *module) {
    char name[LCPP_NAME];
    snprintf(name, sizeof name, "%s.weight", module);
    int64_t at = lcpp_user_of(m, layer, name);
    snprintf(name, sizeof name, "blk.%d.%s.", layer, module);
    for (int64_t i = at + 1; at >= 0 && i < m->nodes; i++)
        if (m->node[i].src[0] == m->node[at].self &&
            !strncmp(m->node[i].weight, name, strlen(name)))
            at = i;
    return at;
}

/* The node behind reshapes of it. */
static int64_t lcpp_behind_views(const lcpp_model *m, int64_t at) {
    while (at >= 0 && (m->node[at].op == GGML_OP_RESHAPE || m->node[at].op == GGML_OP_VIEW)) {
        const int64_t before = lcpp_node_of(m, m->node[at].src[0]);
        if (before < 0 || m->node[before].width != m->node[at].width) break;
        at = before;
    }
    return at;
}

/* What a linear module multiplies. */
static int64_t lcpp_input_of(const lcpp_model *m, int layer, const char *module) {
    char name[LCPP_NAME];
    snprintf(name, sizeof name, "%s.weight", module);
    const int64_t at = lcpp_user_of(m, layer, name);
    return at < 0 ? -1 : lcpp_behind_views(m, lcpp_node_of(m, m->node[at].src[1]));
}

/* Whether only a layer's weights whose names begin with `module` read a node: an edit there changes
   nothing else. */
static int lcpp_is_only_for(const lcpp_model *m, int64_t at, int layer, const char *module) {
    char name[LCPP_NAME];
    snprintf(name, sizeof name, "blk.%d.%s", layer, module);
    for (int64_t i = at + 1; i < m->nodes; i++) {
        const lcpp_node *node = &m->node[i];
        int reads = 0;
        for (int k = 0; k < LCPP_SOURCES; k++) reads |= node->src[k] == m->node[at].self;
        if (!reads) continue;
        if (node->op == GGML_OP_RESHAPE || node->op == GGML_OP_VIEW) {
            if (!lcpp_is_only_for(m, i, layer, module)) return 0;
        } else if (strncmp(node->weight, name, strlen(name))) {
            return 0;
        }
    }
    return 1;
}

/* Node number `rank` of a name, from 0 (-1: the last); -1: there is none. */
static int64_t lcpp_named(const lcpp_model *m, const char *name, int64_t rank) {
    int64_t found = -1;
    for (int64_t i = 0; i < m->nodes; i++) {
        if (strcmp(m->node[i].name, name)) continue;
        found = i;
        if (rank-- == 0) return i;
    }
    return rank < 0 ? found : -1;
}

/* The first node called NAME-LAYER. */
static int64_t lcpp_named_in(const lcpp_model *m, const char *name, int layer) {
    char full[LCPP_NAME];
    snprintf(full, sizeof full, "%s-%d", name, layer);
    return lcpp_named(m, full, 0);
}

/* The input of a norm: what its weight multiplies is the normed row. */
static int64_t lcpp_before_norm(const lcpp_model *m, int layer, const char *weight) {
    const int64_t scaled = lcpp_user_of(m, layer, weight);
    const int64_t normed = scaled < 0 ? -1 : lcpp_node_of(m, m->node[scaled].src[0]);
    if (normed < 0) return -1;
    if (m->node[normed].op != GGML_OP_NORM && m->node[normed].op != GGML_OP_RMS_NORM) return -1;
    return lcpp_node_of(m, m->node[normed].src[0]);
}

/* The output of Hugging Face's embedding module: the rows of the table. Gemma's module scales them;
   other models scale behind it (Granite, MiniCPM), and GPT-2 adds positions behind it. */
static int64_t lcpp_find_embed(const lcpp_model *m) {
    const int64_t rows = lcpp_user_of(m, LCPP_NO_LAYER, "token_embd.weight");
    if (rows < 0 || strncmp(m->base.cfg.family, "gemma", 5)) return rows;
    for (int64_t i = rows + 1; i < m->nodes; i++)
        if (m->node[i].op == GGML_OP_SCALE && m->node[i].src[0] == m->node[rows].self) return i;
    return rows;
}

/* A layer of experts has no one product: its last sum bears a name. */
static int64_t lcpp_find_mlp_out(const lcpp_model *m, int layer) {
    if (lcpp_user_of(m, layer, "ffn_down_exps.weight") < 0)
        return lcpp_output_of(m, layer, "ffn_down");
    const int64_t sum = lcpp_named_in(m, "ffn_out", layer);
    return sum >= 0 ? sum : lcpp_named_in(m, "ffn_moe_out", layer);
}

/* What the MLP reads; with experts, what their router reads. */
static int64_t lcpp_find_mlp_in(const lcpp_model *m, int layer) {
    static const char *const readers[] = {"ffn_up", "ffn_gate", "ffn_gate_inp"};
    int64_t at = -1;
    for (size_t i = 0; i < sizeof readers / sizeof *readers && at < 0; i++)
        at = lcpp_input_of(m, layer, readers[i]);
    return at;
}

/* What queries are made of: with keys and values in one product, alone, or of low rank. */
static int64_t lcpp_find_attn_in(const lcpp_model *m, int layer) {
    static const char *const readers[] = {"attn_qkv", "attn_q", "attn_q_a"};
    int64_t at = -1;
    for (size_t i = 0; i < sizeof readers / sizeof *readers && at < 0; i++)
        at = lcpp_input_of(m, layer, readers[i]);
    return at;
}

/* Most graphs name it. Where one does not, it is what the norm behind it reads. */
static int64_t lcpp_find_resid_out(const lcpp_model *m, int layer) {
    const int64_t named = lcpp_named_in(m, "l_out", layer);
    if (named >= 0) return named;
    return layer + 1 < m->base.cfg.layers
               ? lcpp_before_norm(m, layer + 1, "attn_norm.weight")
               : lcpp_before_norm(m, LCPP_NO_LAYER, "output_norm.weight");
}

/* The node of a site; -1: the model has none. */
static int64_t lcpp_find(const lcpp_model *m, lm_kind kind, int layer) {
    switch (kind) {
    case LM_EMBED: return lcpp_find_embed(m);
    case LM_ATTN_IN: return lcpp_find_attn_in(m, layer);
    case LM_ATTN_Z: return lcpp_input_of(m, layer, "attn_output");
    case LM_ATTN_OUT: return lcpp_output_of(m, layer, "attn_output");
    case LM_MLP_IN: return lcpp_find_mlp_in(m, layer);
    case LM_MLP_HIDDEN: return lcpp_input_of(m, layer, "ffn_down");
    case LM_MLP_OUT: return lcpp_find_mlp_out(m, layer);
    case LM_RESID_OUT: return lcpp_find_resid_out(m, layer);
    default: return -1;
    }
}

/* NAME#K: the K-th node of that name, from 1. NAME: the last, which is what the model goes on with:
   a projection is Qcur before and after its bias and rotation. -1: there is none. */
static int64_t lcpp_find_tensor(const lcpp_model *m, const char *tensor) {
    char name[LCPP_NAME], *end = NULL;
    const char *number = strchr(tensor, '#');
    const long long k = number ? strtoll(number + 1, &end, 10) : 0;
    if (number && (k < 1 || *end)) return -1;
    snprintf(name, sizeof name, "%.*s", (int)strcspn(tensor, "#"), tensor);
    return lcpp_named(m, name, k - 1);
}

/* The node of a site of either form. */
static int64_t lcpp_node_at(const lcpp_model *m, const lm_site *site) {
    return site->kind == LM_TENSOR ? lcpp_find_tensor(m, site->tensor)
                                   : lcpp_find(m, site->kind, site->layer);
}

static dlrn_status lcpp_look(lcpp_model *m); /* see >>llama-run */

/* Appends a word to a list, which may be cut. */
static void lcpp_append(char *list, size_t size, const char *word) {
    const size_t n = strlen(list);
    if (n >= 3 && !strcmp(list + n - 3, "...")) return; /* it is cut already */
    if (n + strlen(word) + sizeof ", , ..." <= size)
        snprintf(list + n, size - n, "%s%s", n ? ", " : "", word);
    else if (n + sizeof ", ..." <= size)
        snprintf(list + n, size - n, ", ...");
}

/* Whether a layer has a site, and its rows are this module's alone. */
static int lcpp_has_site(const lcpp_model *m, lm_kind kind, int layer) {
    const int64_t at = lcpp_find(m, kind, layer);
    if (at < 0 || !m->node[at].width) return 0;
    if (kind == LM_MLP_IN) return lcpp_is_only_for(m, at, layer, "ffn_");
    return kind != LM_ATTN_IN || lcpp_is_only_for(m, at, layer, "attn_");
}

/* The sites of a layer. */
static void lcpp_list_sites(const lcpp_model *m, int layer, char *out, size_t size) {
    out[0] = 0;
    for (int k = 0; k < LM_KIND_COUNT; k++)
        if (lcpp_has_site(m, (lm_kind)k, layer)) lcpp_append(out, size, lm_kind_names[k]);
}

/* The names of a layer's nodes that have rows. */
static void lcpp_list_nodes(const lcpp_model *m, int layer, char *out, size_t size) {
    char end[16];
    snprintf(end, sizeof end, "-%d", layer);
    out[0] = 0;
    for (int64_t i = 0; i < m->nodes; i++) {
        const char *name = m->node[i].name;
        const size_t n = strlen(name), tail = strlen(end);
        if (!m->node[i].width || n < tail || strcmp(name + n - tail, end)) continue;
        if (lcpp_named(m, name, 0) == i) lcpp_append(out, size, name);
    }
}

/* The error lists what the layer has. */
static dlrn_status lcpp_no_site(lcpp_model *m, const char *name, int layer, const char *why) {
    char sites[160], names[480];
    lcpp_list_sites(m, layer, sites, sizeof sites);
    lcpp_list_nodes(m, layer, names, sizeof names);
    return dlrn_fail(m->base.ctx, DLRN_ERR_ARGUMENT,
                     "site %s: %s: expected %s, or tensor:NAME (%s)", name, why, sites, names);
}

/* Checks a site's node. */
static dlrn_status lcpp_check_site(lcpp_model *m, const char *name, const lm_site *site) {
    const int64_t at = lcpp_node_at(m, site);
    if (at < 0) return lcpp_no_site(m, name, site->layer, "this model has none");
    if (!m->node[at].width)
        return dlrn_fail(m->base.ctx, DLRN_ERR_UNSUPPORTED,
                         "site %s: expected a node with a row of f32 for each token, found %s "
                         "without",
                         name, m->node[at].name);
    if (site->kind == LM_TENSOR || lcpp_has_site(m, site->kind, site->layer)) return DLRN_OK;
    return dlrn_fail(m->base.ctx, DLRN_ERR_UNSUPPORTED,
                     "site %s: expected rows that only this module reads, found %s, which others "
                     "read too: take tensor:%s if an edit may change them all",
                     name, m->node[at].name, m->node[at].name);
}

/* A name of the list, or tensor:NAME. */
static dlrn_status lcpp_engine_find_site(lm_model *base, const char *name, int64_t layer,
                                         lm_site *out) {
    lcpp_model *m = (lcpp_model *)base;
    const char *tensor = lm_tensor_named(name);
    const int kind = lm_kind_named(name);
    const int64_t layers = base->cfg.layers;
    LM_TRY(lcpp_look(m));
    if (kind < 0 && !tensor)
        return lcpp_no_site(m, name, layer >= 0 && layer < layers ? (int)layer : 0, "unknown");
    if (kind >= 0) {
        LM_TRY(lm_site_in_layer(base, (lm_kind)kind, layer, out));
    } else {
        memset(out, 0, sizeof *out);
        out->kind = LM_TENSOR;
        snprintf(out->tensor, sizeof out->tensor, "%s", tensor);
        if (strlen(tensor) >= sizeof out->tensor)
            return lcpp_no_site(m, name, 0, "this model has none");
    }
    return lcpp_check_site(m, name, out);
}

/* Those of the first layer, then those of tensors. */
static dlrn_status lcpp_engine_site_names(lm_model *base, char *out, size_t size) {
    lcpp_model *m = (lcpp_model *)base;
    LM_TRY(lcpp_look(m));
    lcpp_list_sites(m, 0, out, size);
    lcpp_append(out, size, "tensor:NAME");
    return DLRN_OK;
}

/* The graph is looked at by find_site, which every site comes from. */
static int64_t lcpp_engine_width(const lm_model *base, const lm_site *site) {
    const lcpp_model *m = (const lcpp_model *)base;
    const int64_t at = lcpp_node_at(m, site);
    return at < 0 ? 0 : m->node[at].width;
}

/* How a node is recognised in another batch's graph. */
static void lcpp_mark(const lcpp_model *m, int64_t node, lcpp_stop *out) {
    int64_t at = node;
    memset(out, 0, sizeof *out);
    while (at >= 0 && !lcpp_has_name(m->node[at].name)) at--;
    if (at >= 0) memcpy(out->anchor, m->node[at].name, sizeof out->anchor);
    for (int64_t i = 0; i < at; i++) out->rank += !strcmp(m->node[i].name, out->anchor);
    out->offset = node - at;
    out->op = m->node[node].op;
    out->width = m->node[node].width;
    out->tokens = m->node[node].tokens;
    out->node = node;
}

/* ------------------------------------------------------------------------------------------ */
// >>llama-run

/* Which tokens' logits a batch ends with. The last layer computes the rows of those alone. */
typedef enum lcpp_outputs { LCPP_LAST, LCPP_LAST_OF_EACH, LCPP_ALL } lcpp_outputs;

/* Whether a node is one at which the pass stops; asked before it is computed, in order. */
static bool lcpp_wants(lcpp_pass *p, const struct ggml_tensor *t) {
    lcpp_run *r = &p->m->run;
    int hit = 0;
    for (int i = 0; i < 2 * r->n_taps; i++) {
        lcpp_stop *s = &r->stop[i];
        if (!s->active || s->left == 0) continue;
        if (s->left > 0)
            s->left--;
        else if (!strcmp(t->name, s->anchor) && s->seen++ == s->rank)
            s->left = s->offset;
        hit |= s->left == 0;
    }
    return hit;
}

/* Copies the rows of a node out (or in, `put`). A row is in one piece, but the node may be a view
   with gaps between the rows. */
static void lcpp_move(struct ggml_tensor *t, const lcpp_stop *s, float *rows, int64_t n, int put) {
    const size_t bytes = (size_t)s->width * sizeof *rows, step = t->nb[s->tokens];
    const int64_t parts = step == bytes ? 1 : n;
    const size_t part = step == bytes ? (size_t)n * bytes : bytes;
    for (int64_t i = 0; i < parts; i++) {
        if (put)
            ggml_backend_tensor_set(t, rows + i * s->width, (size_t)i * step, part);
        else
            ggml_backend_tensor_get(t, rows + i * s->width, (size_t)i * step, part);
    }
}

/* A node must be what it was in the graph in which it was found. */
static dlrn_status lcpp_check_node(const lcpp_pass *p, const lcpp_stop *s,
                                   const struct ggml_tensor *t) {
    if (t->op == s->op && lcpp_row_width(t, s->tokens, p->n) == s->width) return DLRN_OK;
    return dlrn_fail(p->m->base.ctx, DLRN_ERR_UNSUPPORTED,
                     "node %s: expected %lld rows of %lld numbers (%s), found %lld of %lld (%s)",
                     p->m->node[s->node].name, (long long)p->n, (long long)s->width,
                     ggml_op_name(s->op), (long long)t->ne[1], (long long)t->ne[0],
                     ggml_op_name(t->op));
}

/* What is to be done with the rows of a node for one tap, at its x or its y. */
static dlrn_status lcpp_serve(lcpp_pass *p, int place, int is_y, int64_t width) {
    lcpp_run *r = &p->m->run;
    const int t = r->order[place];
    const size_t bytes = (size_t)(p->n * width) * sizeof(float);
    float *rows = p->m->rows;
    if (!is_y)
        memcpy(r->x[t] + p->first * width, rows, bytes);
    else if (p->stage < 0)
        return p->visit(p->user, t, r->x[t] ? r->x[t] : rows, rows, p->n);
    else if (place < p->stage)
        memcpy(rows, r->y[t] + p->first * width, bytes);
    else
        memcpy(r->y[t] + p->first * width, rows, bytes);
    return DLRN_OK;
}

/* A node is computed: all taps that look at it, in their order. */
static dlrn_status lcpp_reach(lcpp_pass *p, struct ggml_tensor *t) {
    lcpp_model *m = p->m;
    lcpp_run *r = &m->run;
    const lcpp_stop *here = NULL; /* any stop of this node */
    int is_written = 0;
    for (int i = 0; i < 2 * r->n_taps; i++) {
        const int place = i / 2, is_y = i % 2;
        lcpp_stop *s = &r->stop[2 * r->order[place] + is_y];
        if (!s->active || s->left != 0) continue;
        if (!here) {
            LM_TRY(lcpp_check_node(p, s, t));
            LM_TRY(
                lm_grow(m->base.ctx, &m->rows, &m->row_cap, 0, p->n * s->width, sizeof *m->rows));
            lcpp_move(t, s, m->rows, p->n, 0);
        }
        here = s;
        is_written |= is_y;
        s->active = 0;
        p->waiting--;
        LM_TRY(lcpp_serve(p, place, is_y, s->width));
    }
    if (is_written && (p->waiting || p->whole)) {
        lcpp_move(t, here, m->rows, p->n, 1);
        p->room->edited = 1;
    }
    return DLRN_OK;
}

/* The scheduler's callback. `ask`: whether it should call again once this node is computed. Then
   false ends the pass; where the graph is spread over devices it ends the part of one device only,
   and each further part is ended behind its first node. */
static bool lcpp_on_node(struct ggml_tensor *t, bool ask, void *user) {
    lcpp_model *m = (lcpp_model *)user;
    lcpp_pass *p = m->pass;
    if (!p) return !ask;
    if (ask && p->collect) {
        if (p->status == DLRN_OK) p->status = lcpp_add_node(m, t);
        p->ended |= !strcmp(t->name, "result_output");
        return false;
    }
    if (ask) return p->ended || lcpp_wants(p, t);
    if (p->ended) return false;
    if (m->base.stop && m->base.stop(m->base.stop_user)) p->stopped = 1;
    if (!p->stopped) p->status = lcpp_reach(p, t);
    p->ended = p->stopped || p->status != DLRN_OK || (!p->waiting && !p->whole);
    return !p->ended;
}

/* Called between nodes, on one of the threads; true ends the pass. The nodes of a list are all
   known before the first is computed, so nothing has to be. */
static bool lcpp_on_abort(void *user) {
    lcpp_model *m = (lcpp_model *)user;
    lcpp_pass *p = m->pass;
    if (!p) return false;
    if (p->collect) return p->ended;
    if (!p->stopped && m->base.stop && m->base.stop(m->base.stop_user)) p->stopped = 1;
    return p->stopped;
}

/* Makes room in a llama context; what it had cached is gone if it is made anew. */
static dlrn_status lcpp_make_room(lcpp_model *m, lcpp_room *room, int64_t sequences, int64_t cells,
                                  int64_t tokens, int unified) {
    if (room->at && sequences <= room->sequences && cells <= room->cells && tokens <= room->tokens)
        return DLRN_OK;
    if (sequences < room->sequences) sequences = room->sequences;
    if (cells < room->cells) cells = room->cells;
    if (tokens < room->tokens) tokens = room->tokens;
    lcpp_close_room(room);
    lcpp_forget_log();
    struct llama_context_params p = llama_context_default_params();
    p.n_ctx = (uint32_t)cells;
    p.n_batch = p.n_ubatch = (uint32_t)tokens;
    p.n_seq_max = (uint32_t)sequences;
    p.n_threads = p.n_threads_batch = dlrn_context_describe(m->base.ctx).threads;
    p.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    p.type_k = p.type_v = GGML_TYPE_F32;
    p.cb_eval = lcpp_on_node;
    p.abort_callback = lcpp_on_abort;
    p.cb_eval_user_data = p.abort_callback_data = m;
    p.no_perf = true;
    p.swa_full = true; /* a window's cache would else hold the window of one sequence only */
    p.kv_unified = unified;
    room->at = llama_init_from_model(m->model, p);
    if (!room->at)
        return dlrn_fail(m->base.ctx, DLRN_ERR_MEMORY,
                         "llama.cpp: expected room for %lld tokens, found none: %s",
                         (long long)cells, lcpp_reason());
    room->sequences = sequences;
    room->cells = cells;
    room->tokens = tokens;
    return DLRN_OK;
}

/* llama.cpp's verdict on a batch. */
static dlrn_status lcpp_judge(lcpp_model *m, const lcpp_pass *p, int32_t code) {
    if (p->status != DLRN_OK) return p->status;
    if (p->stopped) return dlrn_fail(m->base.ctx, DLRN_STOPPED, "stopped within a run");
    if (p->ended && code == 2) return DLRN_OK;
    if (code == 0 && !p->waiting) return DLRN_OK;
    if (code == 0)
        return dlrn_fail(m->base.ctx, DLRN_ERR_UNSUPPORTED,
                         "llama.cpp: expected the same nodes in the graph of each batch, found "
                         "%lld missing",
                         (long long)p->waiting);
    return dlrn_fail(m->base.ctx, code == 1 || code == -2 ? DLRN_ERR_MEMORY : DLRN_ERR_UNSUPPORTED,
                     "llama.cpp: a batch of %lld tokens failed with code %d: %s", (long long)p->n,
                     (int)code, lcpp_reason());
}

/* Runs sequences [from, to) of a batch behind `past` tokens of each. Sequences without tokens take
   no number: some memories want numbers without gaps. */
static dlrn_status lcpp_decode(lcpp_pass *p, const lm_batch *b, int64_t from, int64_t to,
                               int64_t past, lcpp_outputs outputs) {
    lcpp_model *m = p->m;
    const int64_t first = b->start[from], n = b->start[to] - first;
    int64_t i = 0, sequence = -1;
    void *block = dlrn_alloc(m->base.ctx, n, sizeof(void *) + 4 * sizeof(int32_t) + 1);
    if (!block) return DLRN_ERR_MEMORY;
    struct llama_batch batch;
    memset(&batch, 0, sizeof batch);
    batch.n_tokens = (int32_t)n;
    batch.seq_id = (llama_seq_id **)block;
    batch.pos = (llama_pos *)(batch.seq_id + n);
    batch.n_seq_id = (int32_t *)(batch.pos + n);
    llama_seq_id *number = (llama_seq_id *)(batch.n_seq_id + n);
    batch.token = (llama_token *)(number + n);
    batch.logits = (int8_t *)(batch.token + n);
    memcpy(batch.token, b->id + first, (size_t)n * sizeof *batch.token);
    for (int64_t s = from; s < to; s++) {
        const int64_t length = b->start[s + 1] - b->start[s];
        sequence += length > 0;
        for (int64_t k = 0; k < length; k++, i++) {
            number[i] = (llama_seq_id)sequence;
            batch.seq_id[i] = number + i;
            batch.n_seq_id[i] = 1;
            batch.pos[i] = (llama_pos)(past + k);
            batch.logits[i] = outputs == LCPP_ALL || i == n - 1 ||
                              (outputs == LCPP_LAST_OF_EACH && k == length - 1);
        }
    }
    p->n = n;
    m->pass = p;
    lcpp_forget_log();
    const int32_t code = llama_decode(p->room->at, batch);
    m->pass = NULL;
    dlrn_free(m->base.ctx, block);
    return lcpp_judge(m, p, code);
}

/* Numbers that an edit left in a cache are masked by a product with 0, which does not mask NaN. */
static void lcpp_clear(lcpp_room *room) {
    llama_memory_clear(llama_get_memory(room->at), room->edited);
    room->edited = 0;
}

/* Lists the nodes of the graph, once. */
static dlrn_status lcpp_look(lcpp_model *m) {
    static const int64_t start[] = {0, LCPP_PROBE};
    int32_t id[LCPP_PROBE] = {0};
    const lm_batch b = {id, start, 1};
    lcpp_pass p;
    if (m->nodes) return DLRN_OK;
    lcpp_forget_run(m);
    memset(&p, 0, sizeof p);
    p.m = m;
    p.room = &m->run_room;
    p.collect = 1;
    LM_TRY(lcpp_make_room(m, &m->run_room, 1, LCPP_PIECE, LCPP_PIECE, 1));
    lcpp_clear(&m->run_room);
    const dlrn_status s = lcpp_decode(&p, &b, 0, 1, 0, LCPP_ALL);
    m->run_room.edited = 1; /* what was not computed may be in its cache */
    if (s != DLRN_OK) m->nodes = 0;
    return s;
}

/* Cuts a run into pieces of whole sequences. */
static void lcpp_cut(lcpp_model *m) {
    lcpp_run *r = &m->run;
    const int64_t tokens = lcpp_piece_tokens(m), most = (int64_t)llama_max_parallel_sequences();
    int64_t count = 0;
    r->pieces = 0;
    r->piece[0] = 0;
    for (int64_t s = 0, from = 0; s < r->sequences; s++) {
        const int64_t n = r->start[s + 1] - r->start[s],
                      last = s ? r->start[s] - r->start[s - 1] : n;
        const int full =
            r->start[s + 1] - r->start[from] > tokens || count == most || (m->equal && n != last);
        if (full && s > from) {
            r->piece[++r->pieces] = from = s;
            count = 0;
        }
        count += n > 0;
    }
    r->piece[++r->pieces] = r->sequences;
}

/* Taps in the order of their y; of those at one node, as they were given. */
static void lcpp_sort_taps(lcpp_run *r) {
    for (int i = 0; i < r->n_taps; i++) {
        int k = i;
        for (; k > 0 && r->stop[2 * r->order[k - 1] + 1].node > r->stop[2 * i + 1].node; k--)
            r->order[k] = r->order[k - 1];
        r->order[k] = i;
    }
}

/* Finds the nodes of the taps. */
static dlrn_status lcpp_mark_taps(lcpp_model *m, const lm_tap *taps, int n_taps) {
    lcpp_run *r = &m->run;
    dlrn_context *ctx = m->base.ctx;
    r->stop = (lcpp_stop *)dlrn_alloc(ctx, 2 * (int64_t)n_taps, sizeof *r->stop);
    r->order = (int *)dlrn_alloc(ctx, n_taps, sizeof *r->order);
    r->x = (float **)dlrn_alloc(ctx, n_taps, sizeof *r->x);
    r->y = (float **)dlrn_alloc(ctx, n_taps, sizeof *r->y);
    if (!r->stop || !r->order || !r->x || !r->y) return DLRN_ERR_MEMORY;
    r->n_taps = n_taps;
    for (int t = 0; t < n_taps; t++) r->x[t] = r->y[t] = NULL;
    for (int i = 0; i < 2 * n_taps; i++) {
        const lm_site *site = i % 2 ? &taps[i / 2].y : &taps[i / 2].x;
        const int64_t at = lcpp_node_at(m, site);
        if (at < 0 || !m->node[at].width)
            return dlrn_fail(ctx, DLRN_ERR_ARGUMENT, "tap %d: expected a site of this model",
                             i / 2);
        lcpp_mark(m, at, &r->stop[i]);
    }
    lcpp_sort_taps(r);
    for (int t = 0; t < n_taps; t++)
        if (r->stop[2 * t].node > r->stop[2 * t + 1].node)
            return dlrn_fail(ctx, DLRN_ERR_ARGUMENT,
                             "tap %d: expected an x before its y, found it behind", t);
    return DLRN_OK;
}

/* Begins the stops of a pass: see lcpp_pass.stage. */
static void lcpp_arm(lcpp_pass *p) {
    lcpp_run *r = &p->m->run;
    p->waiting = 0;
    for (int place = 0; place < r->n_taps; place++) {
        lcpp_stop *x = &r->stop[2 * r->order[place]], *y = x + 1;
        y->active = p->stage < 0 || place <= p->stage;
        x->active = (p->stage < 0 || place == p->stage) && x->node != y->node;
        p->waiting += x->active + y->active;
        x->seen = y->seen = 0;
        x->left = x->anchor[0] ? -1 : x->offset;
        y->left = y->anchor[0] ? -1 : y->offset;
    }
}

/* Whether a run needs the rows of all tokens in the last layer. */
static int lcpp_needs_all(const lcpp_model *m, const lcpp_pass *p) {
    if (p->whole) return 1;
    for (int t = 0; t < m->run.n_taps; t++)
        if (p->taps[t].y.kind == LM_TENSOR || p->taps[t].x.kind == LM_TENSOR ||
            p->taps[t].y.layer == m->base.cfg.layers - 1)
            return 1;
    return 0;
}

/* Runs a piece. */
static dlrn_status lcpp_run_piece(lcpp_pass *p, int64_t piece) {
    lcpp_model *m = p->m;
    lcpp_run *r = &m->run;
    const lm_batch b = {r->id, r->start, r->sequences};
    const int64_t from = r->piece[piece], to = r->piece[piece + 1];
    const int64_t n = r->start[to] - r->start[from];
    int64_t sequences = 0;
    for (int64_t s = from; s < to; s++) sequences += r->start[s + 1] > r->start[s];
    if (n == 0) return DLRN_OK;
    const int64_t tokens = n > LCPP_PIECE ? n : LCPP_PIECE;
    if (sequences > m->run_room.sequences) sequences += sequences / 2; /* more may come */
    if (sequences > (int64_t)llama_max_parallel_sequences())
        sequences = (int64_t)llama_max_parallel_sequences();
    LM_TRY(lcpp_make_room(m, &m->run_room, sequences, tokens, tokens, 1));
    lcpp_clear(&m->run_room);
    lcpp_arm(p);
    p->room = &m->run_room;
    p->first = r->start[from];
    p->ended = p->stopped = 0;
    p->status = DLRN_OK;
    r->held = -1;
    LM_TRY(lcpp_decode(p, &b, from, to, 0, lcpp_needs_all(m, p) ? LCPP_ALL : LCPP_LAST));
    if (p->whole) r->held = piece;
    return DLRN_OK;
}

/* Keeps the batch, which is the caller's, since pieces may be run again for their logits. */
static dlrn_status lcpp_keep_batch(lcpp_model *m, const lm_batch *b) {
    lcpp_run *r = &m->run;
    const int64_t first = b->start[0], n = b->start[b->sequences] - first;
    r->id = (int32_t *)dlrn_alloc(m->base.ctx, n, sizeof *r->id);
    r->start = (int64_t *)dlrn_alloc(m->base.ctx, b->sequences + 1, sizeof *r->start);
    r->piece = (int64_t *)dlrn_alloc(m->base.ctx, b->sequences + 2, sizeof *r->piece);
    if (!r->id || !r->start || !r->piece) return DLRN_ERR_MEMORY;
    if (n) memcpy(r->id, b->id + first, (size_t)n * sizeof *r->id);
    for (int64_t s = 0; s <= b->sequences; s++) r->start[s] = b->start[s] - first;
    r->sequences = b->sequences;
    lcpp_cut(m);
    return DLRN_OK;
}

/* Reads a tap's rows in all pieces, and visits them. */
static dlrn_status lcpp_run_stage(lcpp_pass *p, int place) {
    lcpp_model *m = p->m;
    lcpp_run *r = &m->run;
    const int t = r->order[place];
    const lcpp_stop *x = &r->stop[2 * t], *y = x + 1;
    const int64_t n = r->start[r->sequences];
    r->y[t] = lm_floats(m->base.ctx, n, y->width);
    if (x->node != y->node) r->x[t] = lm_floats(m->base.ctx, n, x->width);
    if (!r->y[t] || (x->node != y->node && !r->x[t])) return DLRN_ERR_MEMORY;
    p->stage = place;
    for (int64_t k = 0; k < r->pieces; k++) LM_TRY(lcpp_run_piece(p, k));
    return p->visit(p->user, t, r->x[t] ? r->x[t] : r->y[t], r->y[t], n);
}

/* Room for n rows of the x of each tap whose y is another node. */
static dlrn_status lcpp_reserve_x(lcpp_model *m, int64_t n) {
    lcpp_run *r = &m->run;
    for (int t = 0; t < r->n_taps; t++) {
        if (r->stop[2 * t].node == r->stop[2 * t + 1].node) continue;
        r->x[t] = lm_floats(m->base.ctx, n, r->stop[2 * t].width);
        if (!r->x[t]) return DLRN_ERR_MEMORY;
    }
    return DLRN_OK;
}

/* A run of one piece. */
static dlrn_status lcpp_run_at_once(lcpp_pass *p) {
    const lcpp_run *r = &p->m->run;
    LM_TRY(lcpp_reserve_x(p->m, r->start[r->sequences]));
    p->stage = -1;
    return lcpp_run_piece(p, 0);
}

/* With several pieces the logits are computed when they are wanted, a piece at a time. */
static dlrn_status lcpp_engine_run(lm_model *base, const lm_batch *batch, const lm_tap *taps,
                                   int n_taps, lm_visit visit, void *user, int whole) {
    lcpp_model *m = (lcpp_model *)base;
    lcpp_pass p;
    memset(&p, 0, sizeof p);
    p.m = m;
    p.taps = taps;
    p.visit = visit;
    p.user = user;
    LM_TRY(lcpp_look(m));
    lcpp_forget_run(m);
    LM_TRY(lcpp_keep_batch(m, batch));
    LM_TRY(lcpp_mark_taps(m, taps, n_taps));
    if (m->run.pieces == 1 && m->run.start[m->run.sequences]) {
        p.whole = whole;
        return whole || n_taps ? lcpp_run_at_once(&p) : DLRN_OK;
    }
    for (int place = 0; place < n_taps; place++) LM_TRY(lcpp_run_stage(&p, place));
    return DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>llama-head

/* Has llama.cpp hold the logits of a piece of the last run. */
static dlrn_status lcpp_hold(lcpp_model *m, int64_t piece) {
    lcpp_pass p;
    if (m->run.held == piece) return DLRN_OK;
    memset(&p, 0, sizeof p);
    p.m = m;
    p.whole = 1;
    p.stage = m->run.n_taps;
    return lcpp_run_piece(&p, piece);
}

/* Rows may lie in several pieces, each of which is run again if another is held. */
static dlrn_status lcpp_engine_logits(lm_model *base, int64_t first, int64_t rows, float *logits) {
    lcpp_model *m = (lcpp_model *)base;
    const lcpp_run *r = &m->run;
    const int64_t v = base->cfg.vocab, tokens = r->start[r->sequences];
    if (first < 0 || rows < 0 || first > tokens - rows)
        return dlrn_fail(
            base->ctx, DLRN_ERR_ARGUMENT,
            "lm_logits: expected rows within the last run's %lld, found %lld from %lld",
            (long long)tokens, (long long)rows, (long long)first);
    for (int64_t k = 0; k < r->pieces; k++) {
        const int64_t begin = r->start[r->piece[k]], end = r->start[r->piece[k + 1]];
        const int64_t from = first > begin ? first : begin;
        const int64_t to = first + rows < end ? first + rows : end;
        if (from >= to) continue;
        LM_TRY(lcpp_hold(m, k));
        const float *held = llama_get_logits(m->run_room.at) + (from - begin) * v;
        memcpy(logits + (from - first) * v, held, (size_t)((to - from) * v) * sizeof *logits);
    }
    return DLRN_OK;
}

/* -log p of the tokens that follow, a row of logits each task. */
typedef struct lcpp_nats {
    const float *logits; /* [n][vocab]                       */
    const int32_t *next; /* [n] the token that follows; -1: none */
    double *nats;        /* [n]                              */
    int64_t vocab;
    lm_width width;
} lcpp_nats;
enum { LCPP_TILE = 4096 };

/* log-sum-exp by parts that stay in the cache between the pass for the largest and that for the
   sum. */
static void lcpp_nats_task(void *arg, int64_t task, int worker) {
    const lcpp_nats *j = (const lcpp_nats *)arg;
    const float *row = j->logits + task * j->vocab;
    float top = -INFINITY;
    double sum = 0, more = 0;
    (void)worker;
    j->nats[task] = 0;
    if (j->next[task] < 0) return;
    for (int64_t i = 0; i < j->vocab; i += LCPP_TILE) {
        const int64_t n = j->vocab - i < LCPP_TILE ? j->vocab - i : LCPP_TILE;
        const float before = top;
        lm_sum_exp(j->width, row + i, n, &top, &more);
        sum = (before < top ? sum * exp((double)before - (double)top) : sum) + more;
    }
    j->nats[task] = (double)top + log(sum) - (double)row[j->next[task]];
}

/* Adds a piece, whose logits are held, to the sum. */
static dlrn_status lcpp_add_nats(lcpp_model *m, int64_t piece, double *nats, int64_t *tokens) {
    const lcpp_run *r = &m->run;
    dlrn_context *ctx = m->base.ctx;
    const int64_t begin = r->start[r->piece[piece]], n = r->start[r->piece[piece + 1]] - begin;
    int32_t *next = (int32_t *)dlrn_alloc(ctx, n, sizeof *next);
    lcpp_nats j = {NULL, next, NULL, m->base.cfg.vocab, lm_width_of(ctx)};
    j.logits = n ? llama_get_logits(m->run_room.at) : NULL;
    j.nats = (double *)dlrn_alloc(ctx, n, sizeof *j.nats);
    const dlrn_status s = next && j.nats ? DLRN_OK : DLRN_ERR_MEMORY;
    for (int64_t q = r->piece[piece]; q < r->piece[piece + 1] && s == DLRN_OK; q++)
        for (int64_t i = r->start[q]; i < r->start[q + 1]; i++)
            next[i - begin] = i + 1 < r->start[q + 1] ? r->id[i + 1] : -1;
    if (s == DLRN_OK) dlrn_parallel_for(ctx, n, lcpp_nats_task, &j);
    for (int64_t i = 0; i < n && s == DLRN_OK; i++) {
        *nats += j.nats[i];
        *tokens += next[i] >= 0;
    }
    dlrn_free(ctx, next);
    dlrn_free(ctx, j.nats);
    return s;
}

/* A piece at a time: there is never more than one piece of logits. */
static dlrn_status lcpp_engine_cross_entropy(lm_model *base, const lm_batch *batch, double *nats,
                                             int64_t *tokens) {
    lcpp_model *m = (lcpp_model *)base;
    (void)batch; /* that of the last run, which is kept */
    *nats = 0;
    *tokens = 0;
    for (int64_t k = 0; k < m->run.pieces; k++) {
        LM_TRY(lcpp_hold(m, k));
        LM_TRY(lcpp_add_nats(m, k, nats, tokens));
    }
    return DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>llama-unembedding
/* The graph tells how the residual stream becomes logits, and the file has the weights. */

/* Opens file i of a model in one file or several. *files: how many there are; the first tells.
   meta: gets the shapes of its tensors, to be freed with ggml_free; or NULL. */
static dlrn_status lcpp_open_part(dlrn_context *ctx, const char *first, int i, int *files,
                                  char *path, size_t size, struct gguf_context **out,
                                  struct ggml_context **meta) {
    const struct gguf_init_params how = {true, meta};
    char prefix[4096];
    snprintf(path, size, "%s", first);
    if (i > 0 && !llama_split_prefix(prefix, sizeof prefix, first, 0, *files))
        return dlrn_fail(ctx, DLRN_ERR_IO, "%s: expected the first of %d files", first, *files);
    if (i > 0) llama_split_path(path, size, prefix, i, *files);
    lcpp_forget_log();
    *out = gguf_init_from_file(path, how);
    if (!*out) return dlrn_fail(ctx, DLRN_ERR_IO, "%s: cannot be read: %s", path, lcpp_reason());
    const int64_t key = gguf_find_key(*out, "split.count");
    if (i == 0)
        *files = key >= 0 && gguf_get_kv_type(*out, key) == GGUF_TYPE_UINT16
                     ? gguf_get_val_u16(*out, key)
                     : 1;
    return DLRN_OK;
}

/* Opens a tensor [rows][cols]. Close t->f. */
static dlrn_status lcpp_open_tensor(lcpp_model *m, const char *name, int64_t rows, int64_t cols,
                                    lcpp_tensor *t) {
    dlrn_context *ctx = m->base.ctx;
    char path[4200];
    int files = 1, found = 0;
    memset(t, 0, sizeof *t);
    t->name = name, t->rows = rows, t->cols = cols;
    for (int i = 0; i < files && !found; i++) {
        struct gguf_context *file;
        LM_TRY(lcpp_open_part(ctx, m->path, i, &files, path, sizeof path, &file, NULL));
        const int64_t at = gguf_find_tensor(file, name);
        found = at >= 0;
        if (found) {
            t->type = gguf_get_tensor_type(file, at);
            t->at = (int64_t)(gguf_get_data_offset(file) + gguf_get_tensor_offset(file, at));
            if (gguf_get_tensor_size(file, at) == (size_t)rows * ggml_row_size(t->type, cols))
                t->f = fopen(path, "rb");
        }
        gguf_free(file);
    }
    if (t->f) return DLRN_OK;
    return dlrn_fail(ctx, found ? DLRN_ERR_IO : DLRN_ERR_FORMAT,
                     "%s: tensor '%s': expected %lld x %lld numbers, found %s", path, name,
                     (long long)rows, (long long)cols,
                     found ? "others, or a file that cannot be read" : "no such tensor");
}

/* The tensors of a file, in its order. */
static dlrn_status lcpp_list_file(struct gguf_context *file, struct ggml_context *meta,
                                  lm_list list, void *user) {
    for (int64_t i = 0; i < gguf_get_n_tensors(file); i++) {
        lm_weight w;
        memset(&w, 0, sizeof w);
        w.name = gguf_get_tensor_name(file, i);
        w.type = ggml_type_name(gguf_get_tensor_type(file, i));
        const struct ggml_tensor *t = ggml_get_tensor(meta, w.name);
        w.ndim = t ? ggml_n_dims(t) : 0;
        for (int k = 0; k < w.ndim; k++) w.shape[k] = t->ne[w.ndim - 1 - k];
        LM_TRY(list(user, &w));
    }
    return DLRN_OK;
}

static dlrn_status lcpp_engine_list(dlrn_context *ctx, const char *first, lm_list list,
                                    void *user) {
    char path[4200];
    int files = 1;
    dlrn_status s = DLRN_OK;
    for (int i = 0; i < files && s == DLRN_OK; i++) {
        struct gguf_context *file;
        struct ggml_context *meta = NULL;
        LM_TRY(lcpp_open_part(ctx, first, i, &files, path, sizeof path, &file, &meta));
        s = lcpp_list_file(file, meta, list, user);
        gguf_free(file);
        ggml_free(meta);
    }
    return s;
}

/* Reads rows [first, first + n) as f32. raw: scratch for their bytes. */
static dlrn_status lcpp_read_rows(lcpp_model *m, const lcpp_tensor *t, int64_t first, int64_t n,
                                  void *raw, float *out) {
    const struct ggml_type_traits *type = ggml_get_type_traits(t->type);
    const size_t row = ggml_row_size(t->type, t->cols), bytes = (size_t)n * row;
    const int64_t at = t->at + first * (int64_t)row;
    if (t->type != GGML_TYPE_F32 && !type->to_float)
        return dlrn_fail(m->base.ctx, DLRN_ERR_UNSUPPORTED,
                         "%s: tensor '%s': expected numbers that ggml can read, found %s", m->path,
                         t->name, type->type_name);
    if (at > LONG_MAX || fseek(t->f, (long)at, SEEK_SET) || fread(raw, 1, bytes, t->f) != bytes)
        return dlrn_fail(m->base.ctx, DLRN_ERR_IO, "%s: tensor '%s': cannot be read", m->path,
                         t->name);
    if (t->type == GGML_TYPE_F32)
        memcpy(out, raw, bytes);
    else
        type->to_float(raw, out, n * t->cols);
    return DLRN_OK;
}

/* Multiplies the head's weight by a vector of the file. */
static dlrn_status lcpp_weigh_by(lcpp_model *m, const char *name) {
    const int64_t d = m->base.cfg.dim;
    lcpp_tensor t;
    LM_TRY(lcpp_open_tensor(m, name, 1, d, &t));
    float *w = lm_floats(m->base.ctx, 1, d);
    void *raw = dlrn_alloc(m->base.ctx, (int64_t)ggml_row_size(t.type, d), 1);
    dlrn_status s = w && raw ? lcpp_read_rows(m, &t, 0, 1, raw, w) : DLRN_ERR_MEMORY;
    for (int64_t j = 0; j < d && s == DLRN_OK; j++) m->head_weight[j] *= w[j];
    dlrn_free(m->base.ctx, raw);
    dlrn_free(m->base.ctx, w);
    fclose(t.f);
    return s;
}

/* Whether a node passes rows on as they are. */
static int lcpp_passes_on(const lcpp_node *node) {
    return node->op == GGML_OP_RESHAPE || node->op == GGML_OP_VIEW || node->op == GGML_OP_CONT ||
           (node->op == GGML_OP_GET_ROWS && !node->weight[0]); /* the rows that are wanted */
}

/* From the unembedding's product back to the norm: what multiplies a normed row on the way. A bias
   is the same for all rows, and changes nothing that an added row does. */
static dlrn_status lcpp_walk_to_norm(lcpp_model *m, int64_t product, int64_t *norm) {
    const int64_t end = lcpp_find_resid_out(m, (int)m->base.cfg.layers - 1);
    int64_t at = lcpp_node_of(m, m->node[product].src[1]);
    for (; at >= 0 && at != end; at = lcpp_node_of(m, m->node[at].src[0])) {
        const lcpp_node *node = &m->node[at];
        *norm = at;
        if (node->op == GGML_OP_NORM || node->op == GGML_OP_RMS_NORM) return DLRN_OK;
        if (node->op == GGML_OP_MUL && node->weight[0])
            LM_TRY(lcpp_weigh_by(m, node->weight));
        else if (node->op == GGML_OP_SCALE)
            for (int64_t j = 0; j < m->base.cfg.dim; j++) m->head_weight[j] *= node->setting;
        else if (!lcpp_passes_on(node) && !(node->op == GGML_OP_ADD && node->weight[0]))
            break;
    }
    *norm = -1;
    if (at == end && at >= 0) return DLRN_OK;
    return dlrn_fail(m->base.ctx, DLRN_ERR_UNSUPPORTED,
                     "%s: direct logits: expected the final norm before the unembedding, found %s "
                     "(%s)",
                     m->path, at < 0 ? "an input" : ggml_op_name(m->node[at].op),
                     m->base.cfg.family);
}

/* The product with the unembedding, which may be the embedding; -1: none. */
static int64_t lcpp_find_unembedding(lcpp_model *m) {
    static const char *const names[] = {"output.weight", "token_embd.weight"};
    for (int k = 0; k < 2; k++)
        for (int64_t i = m->nodes - 1; i >= 0; i--) {
            if (m->node[i].op != GGML_OP_MUL_MAT || strcmp(m->node[i].weight, names[k])) continue;
            m->unembed = names[k];
            return i;
        }
    return -1;
}

/* Looks once. */
static dlrn_status lcpp_engine_head(lm_model *base, lm_head *out) {
    lcpp_model *m = (lcpp_model *)base;
    const int64_t d = base->cfg.dim;
    int64_t norm = -1;
    LM_TRY(lcpp_look(m));
    if (!m->head.norm) {
        const int64_t product = lcpp_find_unembedding(m);
        if (product < 0)
            return dlrn_fail(base->ctx, DLRN_ERR_UNSUPPORTED,
                             "%s: direct logits: expected a product with the unembedding, found "
                             "none (%s)",
                             m->path, base->cfg.family);
        if (!m->head_weight) m->head_weight = lm_floats(base->ctx, 1, d);
        if (!m->head_weight) return DLRN_ERR_MEMORY;
        for (int64_t j = 0; j < d; j++) m->head_weight[j] = 1;
        LM_TRY(lcpp_walk_to_norm(m, product, &norm));
        m->head.weight = m->head_weight;
        m->head.is_product = 1;
        for (int64_t i = product + 1; i < m->nodes; i++)
            m->head.is_product &= m->node[i].op == GGML_OP_ADD && m->node[i].weight[0];
        m->head.eps = norm < 0 ? 0 : (double)m->node[norm].setting;
        m->head.norm = norm < 0                           ? "none"
                       : m->node[norm].op == GGML_OP_NORM ? "LayerNorm"
                                                          : "RMSNorm";
    }
    *out = m->head;
    return DLRN_OK;
}

/* A tile of the vocabulary at a time: it is read from the file, and made f32, while the last is
   still in the caches. In f32 the whole of it would take gigabytes. */
static dlrn_status lcpp_unembed_tiles(lcpp_model *m, const lcpp_tensor *t, const float *x,
                                      int64_t n, float *tile, void *raw, float *logits) {
    const int64_t d = t->cols, v = t->rows;
    for (int64_t from = 0; from < v; from += LCPP_TILE) {
        const int64_t rows = v - from < LCPP_TILE ? v - from : LCPP_TILE;
        LM_TRY(lcpp_read_rows(m, t, from, rows, raw, tile));
        LM_TRY(dlrn_matmul(m->base.ctx, DLRN_NT, dlrn_view(x, n, d, d), dlrn_view(tile, rows, d, d),
                           0, dlrn_view(logits + from, n, rows, v), NULL));
    }
    return DLRN_OK;
}

static dlrn_status lcpp_engine_unembed(lm_model *base, const float *x, int64_t n, float *logits) {
    lcpp_model *m = (lcpp_model *)base;
    const int64_t d = base->cfg.dim, v = base->cfg.vocab;
    lcpp_tensor t;
    LM_TRY(lcpp_open_tensor(m, m->unembed, v, d, &t));
    float *tile = lm_floats(base->ctx, LCPP_TILE, d);
    void *raw = dlrn_alloc(base->ctx, LCPP_TILE, ggml_row_size(t.type, d));
    dlrn_status s = DLRN_ERR_MEMORY;
    if (tile && raw) s = lcpp_unembed_tiles(m, &t, x, n, tile, raw, logits);
    dlrn_free(base->ctx, raw);
    dlrn_free(base->ctx, tile);
    fclose(t.f);
    return s;
}

/* ------------------------------------------------------------------------------------------ */
// >>llama-sampling

/* The cache is made at the first step, which tells how many tokens a step may have. */
static dlrn_status lcpp_engine_begin(lm_model *base, int64_t sequences, int64_t positions) {
    lcpp_model *m = (lcpp_model *)base;
    const int64_t most = (int64_t)llama_max_parallel_sequences();
    m->past = 0;
    m->sample_sequences = sequences;
    m->sample_positions = positions;
    if (sequences == 0) lcpp_close_room(&m->sample_room);
    if (m->sample_room.at) lcpp_clear(&m->sample_room);
    if (sequences <= most) return DLRN_OK;
    return dlrn_fail(base->ctx, DLRN_ERR_ARGUMENT,
                     "generate: expected at most %lld sequences at once, found %lld",
                     (long long)most, (long long)sequences);
}

/* All sequences have as many tokens here, so each can have a cache of its own, in which its tokens
   see no others'. llama.cpp rounds each up to 256 cells: short ones share a cache. */
static dlrn_status lcpp_sample_room(lcpp_model *m, int64_t tokens) {
    lcpp_room *room = &m->sample_room;
    const int64_t sequences = m->sample_sequences;
    const int share = m->sample_positions < 128;
    const int64_t each = share ? m->sample_positions : (m->sample_positions + 255) / 256 * 256;
    if (room->at && tokens <= room->tokens && room->sequences == sequences &&
        room->cells == each * sequences)
        return DLRN_OK;
    if (m->past)
        return dlrn_fail(m->base.ctx, DLRN_ERR_ARGUMENT,
                         "generate: expected at most the %lld tokens of the first step, found %lld",
                         (long long)room->tokens, (long long)tokens);
    lcpp_close_room(room);
    return lcpp_make_room(m, room, sequences, each * sequences,
                          tokens > sequences ? tokens : sequences, share);
}

/* With taps all rows are wanted in the last layer too; else only those that are sampled from. */
static dlrn_status lcpp_engine_extend(lm_model *base, const lm_batch *batch, const lm_tap *taps,
                                      int n_taps, lm_visit visit, void *user, float *logits) {
    lcpp_model *m = (lcpp_model *)base;
    const int64_t v = base->cfg.vocab, n = batch->start[batch->sequences] - batch->start[0];
    const int64_t each = batch->start[1] - batch->start[0];
    lcpp_pass p;
    memset(&p, 0, sizeof p);
    p.m = m;
    p.room = &m->sample_room;
    p.taps = taps;
    p.visit = visit;
    p.user = user;
    p.whole = 1;
    p.stage = -1;
    LM_TRY(lcpp_look(m));
    lcpp_forget_run(m); /* its stops are this one's now */
    LM_TRY(lcpp_sample_room(m, n));
    LM_TRY(lcpp_mark_taps(m, taps, n_taps));
    LM_TRY(lcpp_reserve_x(m, n));
    lcpp_arm(&p);
    LM_TRY(lcpp_decode(&p, batch, 0, batch->sequences, m->past,
                       n_taps ? LCPP_ALL : LCPP_LAST_OF_EACH));
    m->past += each;
    for (int64_t s = 0; s < batch->sequences; s++) {
        const int32_t last = (int32_t)(batch->start[s + 1] - batch->start[0] - 1);
        memcpy(logits + s * v, llama_get_logits_ith(m->sample_room.at, last),
               (size_t)v * sizeof *logits);
    }
    return DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>llama-engine

static const lm_engine llama_engine = {"llama.cpp",
                                       lcpp_engine_opens,
                                       lcpp_engine_load,
                                       lcpp_engine_read_config,
                                       lcpp_engine_load_tokenizer,
                                       lcpp_engine_destroy,
                                       lcpp_engine_find_site,
                                       lcpp_engine_width,
                                       lcpp_engine_run,
                                       lcpp_engine_logits,
                                       lcpp_engine_cross_entropy,
                                       lcpp_engine_head,
                                       lcpp_engine_unembed,
                                       lcpp_engine_begin,
                                       lcpp_engine_extend,
                                       NULL,
                                       lcpp_engine_site_names,
                                       lcpp_engine_list};
#endif /* LM_LLAMA_H */
