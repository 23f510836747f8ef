/* lm_gptneox.h - GPT-NeoX (Pythia and its relatives) for lm_hf.h, which includes this file - MIT
   licence

   One block (HF's GPTNeoXLayer; LN: layer norm, x: residual stream [tokens][dim]):

       parallel residual                     sequential
       attn_out = attention(LN1(x))          attn_out = attention(LN1(x))
       mlp_out  = mlp(LN2(x))                mlp_out  = mlp(LN2(x + attn_out))
       x       += mlp_out + attn_out         x        = x + attn_out + mlp_out */
#ifndef LM_GPTNEOX_H
#define LM_GPTNEOX_H

enum { GPTNEOX_ATTENTION_BIAS = 2 }; /* bit of hf_shape.has */

/* A row of query_key_value is [heads][query, key, value][head_dim]. */
static const hf_tensor gptneox_tensors[] = {
    {HF_NORM1, "input_layernorm.weight", HF_DIM, HF_NONE, 0},
    {HF_NORM1_BIAS, "input_layernorm.bias", HF_DIM, HF_NONE, 0},
    {HF_QKV, "attention.query_key_value.weight", HF_QKV_DIM, HF_DIM, 0},
    {HF_QKV_BIAS, "attention.query_key_value.bias", HF_QKV_DIM, HF_NONE, GPTNEOX_ATTENTION_BIAS},
    {HF_ATTN, "attention.dense.weight", HF_DIM, HF_HEADS_DIM, 0},
    {HF_ATTN_BIAS, "attention.dense.bias", HF_DIM, HF_NONE, GPTNEOX_ATTENTION_BIAS},
    {HF_NORM2, "post_attention_layernorm.weight", HF_DIM, HF_NONE, 0},
    {HF_NORM2_BIAS, "post_attention_layernorm.bias", HF_DIM, HF_NONE, 0},
    {HF_UP, "mlp.dense_h_to_4h.weight", HF_INNER, HF_DIM, 0},
    {HF_UP_BIAS, "mlp.dense_h_to_4h.bias", HF_INNER, HF_NONE, 0},
    {HF_DOWN, "mlp.dense_4h_to_h.weight", HF_DIM, HF_INNER, 0},
    {HF_DOWN_BIAS, "mlp.dense_4h_to_h.bias", HF_DIM, HF_NONE, 0},
    {HF_EMBEDDING, "embed_in.weight", HF_VOCAB, HF_DIM, 0},
    {HF_LAST_NORM, "final_layer_norm.weight", HF_DIM, HF_NONE, 0},
    {HF_LAST_NORM_BIAS, "final_layer_norm.bias", HF_DIM, HF_NONE, 0},
    {HF_UNEMBEDDING, "lm_head.weight", HF_VOCAB, HF_DIM, HF_BARE},
    {HF_UNEMBEDDING, "embed_out.weight", HF_VOCAB, HF_DIM, HF_BARE},
};
enum { GPTNEOX_TENSORS = (int)(sizeof gptneox_tensors / sizeof *gptneox_tensors) };

/* What one block of settings, "rope_parameters" or the older "rope_scaling", asks for. */
typedef struct gptneox_rope {
    const char *type;
    double factor, theta, share;
} gptneox_rope;

/* Settings of transformers 5 for this block: what the block lacks has the older names. Its
   GPTNeoXConfig does not read rope_theta and partial_rotary_factor outside a block, which versions
   4.46 to 4.57 write beside rotary_emb_base and rotary_pct. noted: NULL, or gets notes. */
static gptneox_rope gptneox_read_rope(const dlrn_json *json, const char *block, lm_config *noted) {
    char own_theta[64], own_share[64], path[64];
    const char *theta[3] = {own_theta, "rotary_emb_base", "rope_theta"};
    const char *share[3] = {own_share, "rotary_pct", "partial_rotary_factor"};
    const dlrn_json *from = dlrn_json_get(json, block);
    lm_config scratch;
    gptneox_rope r;
    memset(&scratch, 0, sizeof scratch);
    snprintf(own_theta, sizeof own_theta, "%s.rope_theta", block);
    snprintf(own_share, sizeof own_share, "%s.partial_rotary_factor", block);
    snprintf(path, sizeof path, "%s.factor", block);
    r.type = dlrn_json_text(from, "rope_type", dlrn_json_text(from, "type", "default"));
    r.factor = dlrn_json_number(json, path, 0);
    r.theta = hf_choose_number(noted ? noted : &scratch, json, theta, 2, 3, 10000);
    r.share = hf_choose_number(noted ? noted : &scratch, json, share, 2, 3, 0.25);
    if (noted) hf_note_alias(noted, from, "rope_type", "type");
    return r;
}

/* Whether a block is there and says something. */
static int gptneox_has_block(const dlrn_json *json, const char *block) {
    const dlrn_json *b = dlrn_json_get(json, block);
    return b && b->type == DLRN_JSON_OBJECT && b->count > 0;
}

/* Frequencies and how they are scaled. "dynamic" scales them for sequences beyond
   max_position_embeddings alone, and none is that long here. */
static dlrn_status gptneox_parse_rope(dlrn_context *ctx, const dlrn_json *json, const char *path,
                                      lm_config *c, hf_shape *s) {
    const int older = gptneox_has_block(json, "rope_scaling");
    const char *block = older ? "rope_scaling" : "rope_parameters";
    const gptneox_rope r = gptneox_read_rope(json, block, c);
    if (older && gptneox_has_block(json, "rope_parameters")) {
        const gptneox_rope b = gptneox_read_rope(json, "rope_parameters", NULL);
        if (strcmp(r.type, b.type) || r.factor != b.factor || r.theta != b.theta ||
            r.share != b.share)
            hf_note(c, "rope_parameters is ignored: rope_scaling is taken, as transformers 5 does");
    }
    const int linear = !strcmp(r.type, "linear");
    if (!linear && strcmp(r.type, "default") && strcmp(r.type, "dynamic"))
        return dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED,
                         "%s: %s: expected rope_type default, linear or dynamic, found %.40s", path,
                         block, r.type);
    if (linear && !(r.factor > 0 && r.factor <= 1e9))
        return dlrn_fail(ctx, DLRN_ERR_FORMAT,
                         "%s: %s.factor: expected a positive number, found %g", path, block,
                         r.factor);
    s->rope.theta = r.theta;
    s->rope.scaling = linear ? r.factor : 1;
    if (!(r.share > 0 && r.share <= 1) || !(r.theta > 0 && r.theta <= 1e300))
        return dlrn_fail(ctx, DLRN_ERR_FORMAT,
                         "%s: rotary embedding: expected a share in (0, 1] and a positive base, "
                         "found %g and %g",
                         path, r.share, r.theta);
    /* transformers takes head_dim for the rotary embedding, and for nothing else */
    const double head_dim = dlrn_json_number(json, "head_dim", (double)s->head_dim);
    if (head_dim != (double)s->head_dim)
        hf_note(c, "head_dim %g is taken for the rotary embedding: the heads have %lld dimensions",
                head_dim, (long long)s->head_dim);
    if (!(head_dim >= 1 && head_dim <= 1 << 20))
        return dlrn_fail(ctx, DLRN_ERR_FORMAT, "%s: head_dim: expected a positive number, found %g",
                         path, head_dim);
    s->rope.span = (int64_t)(head_dim * r.share);
    s->rope.dims = (s->rope.span + 1) / 2 * 2; /* an odd span turns one more, as HF's tables do */
    if (s->rope.dims > s->head_dim)
        return dlrn_fail(ctx, DLRN_ERR_FORMAT,
                         "%s: rotary embedding: expected at most the head's %lld dimensions, "
                         "found %lld",
                         path, (long long)s->head_dim, (long long)s->rope.dims);
    return DLRN_OK;
}

/* Sizes, and where query, key and value of a head are in a row. */
static dlrn_status gptneox_parse_sizes(dlrn_context *ctx, const dlrn_json *json, const char *path,
                                       lm_config *c, hf_shape *s) {
    LM_TRY(hf_count(ctx, json, path, "hidden_size", 1, 1 << 20, &c->dim));
    LM_TRY(hf_count(ctx, json, path, "num_hidden_layers", 1, 1 << 14, &c->layers));
    LM_TRY(hf_count(ctx, json, path, "num_attention_heads", 1, 1 << 14, &c->heads));
    LM_TRY(hf_count(ctx, json, path, "intermediate_size", 1, 1 << 22, &c->inner));
    LM_TRY(hf_count(ctx, json, path, "vocab_size", 1, 1 << 24, &c->vocab));
    c->positions = 2048;
    if (dlrn_json_get(json, "max_position_embeddings"))
        LM_TRY(hf_count(ctx, json, path, "max_position_embeddings", 1, 1 << 22, &c->positions));
    if (c->dim % c->heads)
        return dlrn_fail(ctx, DLRN_ERR_FORMAT,
                         "%s: expected hidden_size divisible by num_attention_heads, found %lld "
                         "and %lld",
                         path, (long long)c->dim, (long long)c->heads);
    c->kv_heads = c->heads;
    s->head_dim = c->dim / c->heads;
    s->q.first = 0, s->k.first = s->head_dim, s->v.first = 2 * s->head_dim;
    s->q.step = s->k.step = s->v.step = 3 * s->head_dim;
    return DLRN_OK;
}

/* Names that other architectures have for the same settings. GPTNeoXConfig ignores them. */
static void gptneox_note_aliases(const dlrn_json *json, lm_config *c) {
    static const char *const same[][2] = {{"hidden_act", "activation_function"},
                                          {"hidden_act", "activation"},
                                          {"hidden_size", "n_embd"},
                                          {"num_hidden_layers", "n_layer"},
                                          {"num_attention_heads", "n_head"},
                                          {"num_attention_heads", "num_key_value_heads"},
                                          {"intermediate_size", "n_inner"},
                                          {"max_position_embeddings", "n_positions"},
                                          {"layer_norm_eps", "layer_norm_epsilon"}};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        hf_note_alias(c, json, same[i][0], same[i][1]);
}

/* Defaults are those of HF's GPTNeoXConfig. */
static dlrn_status gptneox_parse(dlrn_context *ctx, const dlrn_json *json, const char *path,
                                 lm_config *c, hf_shape *s) {
    LM_TRY(gptneox_parse_sizes(ctx, json, path, c, s));
    s->eps = dlrn_json_number(json, "layer_norm_eps", 1e-5);
    if (!(s->eps >= 0 && s->eps <= 1))
        return dlrn_fail(ctx, DLRN_ERR_FORMAT,
                         "%s: layer_norm_eps: expected a number from 0 to 1, found %g", path,
                         s->eps);
    s->parallel = hf_true(json, "use_parallel_residual", 1);
    s->tied = hf_true(json, "tie_word_embeddings", 0);
    s->has = hf_true(json, "attention_bias", 1) ? GPTNEOX_ATTENTION_BIAS : 0;
    LM_TRY(hf_token(ctx, json, path, "bos_token_id", c->vocab - 1, &c->bos));
    /* an eos beyond the vocabulary is never drawn and does no harm */
    LM_TRY(hf_token(ctx, json, path, "eos_token_id", INT32_MAX, &c->eos));
    LM_TRY(gptneox_parse_rope(ctx, json, path, c, s));
    gptneox_note_aliases(json, c);
    return hf_parse_activation(ctx, json, path, &s->activation);
}

/* Stops as soon as nothing further is needed: activations of mlp_in cost no MLP. */
static dlrn_status gptneox_block(hf_pass *p, int64_t l) {
    hf_model *m = p->m;
    const int parallel = m->shape.parallel;
    hf_layer_norm(p, l, HF_NORM1);
    LM_TRY(hf_reach(p, LM_ATTN_IN, l, m->a));
    if (hf_done(p, LM_ATTN_IN, l)) return DLRN_OK;
    /* With a parallel residual, the MLP's sites do not depend on the attention. */
    if (!parallel || !hf_done(p, LM_MLP_OUT, l) || hf_is_tapped(p, LM_ATTN_Z, l) ||
        hf_is_tapped(p, LM_ATTN_OUT, l)) {
        LM_TRY(hf_attention_heads(p, l));
        LM_TRY(hf_reach(p, LM_ATTN_Z, l, m->mlp));
        if (hf_done(p, LM_ATTN_Z, l)) return DLRN_OK;
        LM_TRY(hf_attention_out(p, l));
        LM_TRY(hf_reach(p, LM_ATTN_OUT, l, m->att));
    }
    if (hf_done(p, LM_ATTN_OUT, l)) return DLRN_OK;
    if (!parallel) hf_add(p, m->att, NULL);
    hf_layer_norm(p, l, HF_NORM2);
    LM_TRY(hf_reach(p, LM_MLP_IN, l, m->a));
    if (hf_done(p, LM_MLP_IN, l)) return DLRN_OK;
    LM_TRY(hf_mlp_up(p, l));
    LM_TRY(hf_reach(p, LM_MLP_HIDDEN, l, m->h));
    if (hf_done(p, LM_MLP_HIDDEN, l)) return DLRN_OK;
    LM_TRY(hf_mlp_down(p, l));
    LM_TRY(hf_reach(p, LM_MLP_OUT, l, m->mlp));
    if (hf_done(p, LM_MLP_OUT, l)) return DLRN_OK;
    hf_add(p, m->mlp, parallel ? m->att : NULL);
    return hf_reach(p, LM_RESID_OUT, l, m->x);
}

static const hf_architecture hf_gptneox = {
    "GPTNeoX",         gptneox_parse, gptneox_tensors, GPTNEOX_TENSORS,
    {"", "gpt_neox."}, "layers.",     hf_rope_rate,    gptneox_block,
};
#endif /* LM_GPTNEOX_H */
