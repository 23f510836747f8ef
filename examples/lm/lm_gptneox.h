/* lm_gptneox.h - GPT-NeoX (Pythia and its relatives) for lm.h, which includes this file - MIT
   licence

   One block (HF's GPTNeoXLayer; LN: layer norm, x: residual stream [tokens][dim]):

       parallel residual                     sequential
       attn_out = attention(LN1(x))          attn_out = attention(LN1(x))
       mlp_out  = mlp(LN2(x))                mlp_out  = mlp(LN2(x + attn_out))
       x       += mlp_out + attn_out         x        = x + attn_out + mlp_out */
#ifndef LM_GPTNEOX_H
#define LM_GPTNEOX_H

enum { GPTNEOX_ATTENTION_BIAS = 2 }; /* bit of lm_config.has */

/* A row of query_key_value is [heads][query, key, value][head_dim]. */
static const lm_tensor gptneox_tensors[] = {
    {LM_NORM1, "input_layernorm.weight", LM_DIM, LM_NONE, 0},
    {LM_NORM1_BIAS, "input_layernorm.bias", LM_DIM, LM_NONE, 0},
    {LM_QKV, "attention.query_key_value.weight", LM_QKV_DIM, LM_DIM, 0},
    {LM_QKV_BIAS, "attention.query_key_value.bias", LM_QKV_DIM, LM_NONE, GPTNEOX_ATTENTION_BIAS},
    {LM_ATTN, "attention.dense.weight", LM_DIM, LM_HEADS_DIM, 0},
    {LM_ATTN_BIAS, "attention.dense.bias", LM_DIM, LM_NONE, GPTNEOX_ATTENTION_BIAS},
    {LM_NORM2, "post_attention_layernorm.weight", LM_DIM, LM_NONE, 0},
    {LM_NORM2_BIAS, "post_attention_layernorm.bias", LM_DIM, LM_NONE, 0},
    {LM_UP, "mlp.dense_h_to_4h.weight", LM_INNER, LM_DIM, 0},
    {LM_UP_BIAS, "mlp.dense_h_to_4h.bias", LM_INNER, LM_NONE, 0},
    {LM_DOWN, "mlp.dense_4h_to_h.weight", LM_DIM, LM_INNER, 0},
    {LM_DOWN_BIAS, "mlp.dense_4h_to_h.bias", LM_DIM, LM_NONE, 0},
    {LM_EMBEDDING, "embed_in.weight", LM_VOCAB, LM_DIM, 0},
    {LM_LAST_NORM, "final_layer_norm.weight", LM_DIM, LM_NONE, 0},
    {LM_LAST_NORM_BIAS, "final_layer_norm.bias", LM_DIM, LM_NONE, 0},
    {LM_UNEMBEDDING, "lm_head.weight", LM_VOCAB, LM_DIM, LM_BARE},
    {LM_UNEMBEDDING, "embed_out.weight", LM_VOCAB, LM_DIM, LM_BARE},
};
enum { GPTNEOX_TENSORS = (int)(sizeof gptneox_tensors / sizeof *gptneox_tensors) };

/* Older files have rotary_pct and rotary_emb_base, newer ones rope_parameters or rope_scaling. */
static dlrn_status gptneox_parse_rope(dlrn_context *ctx, const dlrn_json *json, const char *path,
                                      lm_config *c) {
    static const char *const blocks[2] = {"rope_parameters", "rope_scaling"};
    double share = dlrn_json_number(json, "rotary_pct", 0.25);
    share = dlrn_json_number(json, "partial_rotary_factor", share);
    share = dlrn_json_number(json, "rope_parameters.partial_rotary_factor", share);
    c->rope.theta = dlrn_json_number(json, "rotary_emb_base", 10000);
    c->rope.theta = dlrn_json_number(json, "rope_theta", c->rope.theta);
    c->rope.theta = dlrn_json_number(json, "rope_parameters.rope_theta", c->rope.theta);
    c->rope.scaling = 1;
    for (int i = 0; i < 2; i++) {
        const dlrn_json *block = dlrn_json_get(json, blocks[i]);
        const char *type =
            dlrn_json_text(block, "rope_type", dlrn_json_text(block, "type", "default"));
        if (!strcmp(type, "linear"))
            c->rope.scaling = dlrn_json_number(block, "factor", 1);
        else if (strcmp(type, "default"))
            return dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED,
                             "%s: %s: expected rope_type default or linear, found %s", path,
                             blocks[i], type);
    }
    if (!(share > 0 && share <= 1) || !(c->rope.theta > 0) || !(c->rope.scaling > 0))
        return dlrn_fail(ctx, DLRN_ERR_FORMAT,
                         "%s: rotary embedding: expected a share in (0, 1] and a positive base, "
                         "found %g and %g",
                         path, share, c->rope.theta);
    c->rope.span = (int64_t)((double)c->head_dim * share);
    c->rope.dims = (c->rope.span + 1) / 2 * 2; /* an odd span turns one more, as HF's tables do */
    if (c->rope.dims > c->head_dim)
        return dlrn_fail(ctx, DLRN_ERR_FORMAT,
                         "%s: rotary embedding: expected at most the head's %lld dimensions, "
                         "found %lld",
                         path, (long long)c->head_dim, (long long)c->rope.dims);
    return DLRN_OK;
}

/* Sizes, and where query, key and value of a head are in a row. */
static dlrn_status gptneox_parse_sizes(dlrn_context *ctx, const dlrn_json *json, const char *path,
                                       lm_config *c) {
    LM_TRY(lm_count(ctx, json, path, "hidden_size", 1, 1 << 20, &c->dim));
    LM_TRY(lm_count(ctx, json, path, "num_hidden_layers", 1, 1 << 14, &c->layers));
    LM_TRY(lm_count(ctx, json, path, "num_attention_heads", 1, 1 << 14, &c->heads));
    LM_TRY(lm_count(ctx, json, path, "intermediate_size", 1, 1 << 22, &c->inner));
    LM_TRY(lm_count(ctx, json, path, "vocab_size", 1, 1 << 24, &c->vocab));
    LM_TRY(lm_count(ctx, json, path, "max_position_embeddings", 1, 1 << 22, &c->positions));
    if (c->dim % c->heads)
        return dlrn_fail(ctx, DLRN_ERR_FORMAT,
                         "%s: expected hidden_size divisible by num_attention_heads, found %lld "
                         "and %lld",
                         path, (long long)c->dim, (long long)c->heads);
    c->kv_heads = c->heads;
    c->head_dim = c->dim / c->heads;
    c->q.first = 0, c->k.first = c->head_dim, c->v.first = 2 * c->head_dim;
    c->q.step = c->k.step = c->v.step = 3 * c->head_dim;
    return DLRN_OK;
}

/* Defaults are those of HF's GPTNeoXConfig. */
static dlrn_status gptneox_parse(dlrn_context *ctx, const dlrn_json *json, const char *path,
                                 lm_config *c) {
    LM_TRY(gptneox_parse_sizes(ctx, json, path, c));
    c->eps = dlrn_json_number(json, "layer_norm_eps", 1e-5);
    if (!(c->eps >= 0 && c->eps <= 1))
        return dlrn_fail(ctx, DLRN_ERR_FORMAT,
                         "%s: layer_norm_eps: expected a number from 0 to 1, found %g", path,
                         c->eps);
    c->parallel = lm_true(json, "use_parallel_residual", 1);
    c->tied = lm_true(json, "tie_word_embeddings", 0);
    c->has = lm_true(json, "attention_bias", 1) ? GPTNEOX_ATTENTION_BIAS : 0;
    LM_TRY(lm_token(ctx, json, path, "bos_token_id", c->vocab - 1, &c->bos));
    /* an eos beyond the vocabulary is never drawn and does no harm */
    LM_TRY(lm_token(ctx, json, path, "eos_token_id", INT32_MAX, &c->eos));
    LM_TRY(gptneox_parse_rope(ctx, json, path, c));
    return lm_parse_activation(ctx, json, path, &c->activation);
}

/* Stops as soon as nothing further is needed: activations of mlp_in cost no MLP. */
static dlrn_status gptneox_block(lm_pass *p, int64_t l) {
    lm_model *m = p->m;
    const int parallel = m->cfg.parallel;
    lm_layer_norm(p, l, LM_NORM1);
    LM_TRY(lm_reach(p, LM_ATTN_IN, l, m->a));
    if (lm_done(p, LM_ATTN_IN, l)) return DLRN_OK;
    /* With a parallel residual, mlp_in and mlp_out do not depend on the attention. */
    if (!parallel || !lm_done(p, LM_MLP_OUT, l) || lm_ends_at(p, LM_ATTN_OUT, l)) {
        lm_attention(p, l);
        LM_TRY(lm_reach(p, LM_ATTN_OUT, l, m->att));
    }
    if (lm_done(p, LM_ATTN_OUT, l)) return DLRN_OK;
    if (!parallel) lm_add(p, m->att, NULL);
    lm_layer_norm(p, l, LM_NORM2);
    LM_TRY(lm_reach(p, LM_MLP_IN, l, m->a));
    if (lm_done(p, LM_MLP_IN, l)) return DLRN_OK;
    lm_mlp(p, l);
    LM_TRY(lm_reach(p, LM_MLP_OUT, l, m->mlp));
    if (lm_done(p, LM_MLP_OUT, l)) return DLRN_OK;
    lm_add(p, m->mlp, parallel ? m->att : NULL);
    return lm_reach(p, LM_RESID_OUT, l, m->x);
}

static const lm_architecture lm_gptneox = {
    "GPTNeoX",         gptneox_parse, gptneox_tensors, GPTNEOX_TENSORS,
    {"", "gpt_neox."}, "layers.",     lm_rope_rate,    gptneox_block,
};
#endif /* LM_GPTNEOX_H */
