/* model.h - rows of the table for a language model of Pythia-70m's shape: random weights, written
   to a folder that peers.py opens with transformers. Part of bench.c. */
#ifndef DICTLEARN_BENCH_MODEL_H
#define DICTLEARN_BENCH_MODEL_H

enum {
    MODEL_SEQUENCES = 32,
    MODEL_LENGTH = 128,
    MODEL_TOKENS = MODEL_SEQUENCES * MODEL_LENGTH,
    MODEL_LAYERS = 6
};
enum {
    MODEL_DIM = 512,
    MODEL_INNER = 2048,
    MODEL_VOCAB = 50304,
    MODEL_TENSORS = 3 + 1 + 12 * MODEL_LAYERS
};
static const char model_config[] =
    "{\"architectures\": [\"GPTNeoXForCausalLM\"], \"model_type\": \"gpt_neox\", \"hidden_size\": "
    "512,\n"
    " \"num_hidden_layers\": 6, \"num_attention_heads\": 8, \"intermediate_size\": 2048, "
    "\"vocab_size\": 50304,\n"
    " \"max_position_embeddings\": 2048, \"rotary_pct\": 0.25, \"rotary_emb_base\": 10000, "
    "\"hidden_act\": \"gelu\",\n"
    " \"layer_norm_eps\": 1e-05, \"use_parallel_residual\": true, \"tie_word_embeddings\": false,\n"
    " \"bos_token_id\": 0, \"eos_token_id\": 0, \"torch_dtype\": \"float32\"}\n";

/* A tensor [rows][cols] (cols 0: [rows]) of small numbers out of the pool, wherever they may
   overlap. */
static dlrn_tensor_out model_tensor(const float *pool, char *name, int64_t rows, int64_t cols) {
    dlrn_tensor_out t = {name, DLRN_F32, cols ? 2 : 1, {rows, cols}, pool};
    return t;
}

/* folder/config.json and folder/model.safetensors. */
static void model_write(dlrn_context *ctx, const char *folder, const float *normal) {
    static char name[MODEL_TENSORS][96];
    dlrn_tensor_out t[MODEL_TENSORS];
    const hf_model model = {.base.cfg = {.dim = MODEL_DIM,
                                         .inner = MODEL_INNER,
                                         .vocab = MODEL_VOCAB,
                                         .heads = 8,
                                         .kv_heads = 8},
                            .shape.head_dim = MODEL_DIM / 8};
    const int64_t numbers = (int64_t)MODEL_VOCAB * MODEL_DIM + MODEL_TENSORS * 4096;
    int n = 0;
    float *pool = (float *)take(ctx, numbers, sizeof *pool);
    for (int64_t i = 0; i < numbers; i++) pool[i] = 0.02f * normal[i % POOL];
    for (int l = 0; l < MODEL_LAYERS; l++)
        for (int i = 0; i < GPTNEOX_TENSORS; i++) {
            const hf_tensor *of = &gptneox_tensors[i];
            if ((of->role >= HF_LAYER_ROLES && l) || !strcmp(of->name, "lm_head.weight")) continue;
            const char *prefix = of->needs & HF_BARE ? "" : "gpt_neox.";
            if (of->role < HF_LAYER_ROLES)
                snprintf(name[n], sizeof name[n], "%slayers.%d.%s", prefix, l, of->name);
            else
                snprintf(name[n], sizeof name[n], "%s%s", prefix, of->name);
            t[n] = model_tensor(pool + n * 4096, name[n], hf_size_of(&model, of->rows),
                                of->cols == HF_NONE ? 0 : hf_size_of(&model, of->cols));
            n++;
        }
    char path[512];
    dlrn_writer *config = NULL;
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    must(ctx, dlrn_archive_write(ctx, path, t, n, NULL));
    snprintf(path, sizeof path, "%s/config.json", folder);
    must(ctx, dlrn_file_create(ctx, path, &config));
    must(ctx, dlrn_file_append(config, model_config, sizeof model_config - 1));
    must(ctx, dlrn_writer_close(config));
    dlrn_free(ctx, pool);
}

typedef struct model_run {
    dlrn_context *ctx;
    lm_model *m;
    lm_batch batch;
    int layers;    /* to run; those of the model: all of it */
    float *logits; /* [MODEL_TOKENS][vocab], or NULL        */
} model_run;

static dlrn_status model_seen(void *user, int tap, const float *x, float *y, int64_t n) {
    (void)user, (void)tap, (void)x, (void)y, (void)n;
    return DLRN_OK;
}

static void model_go(void *arg) {
    model_run *r = (model_run *)arg;
    const lm_site last = {LM_RESID_OUT, r->layers - 1, ""};
    const lm_tap tap = {last, last};
    const int whole = r->layers == MODEL_LAYERS;
    must(r->ctx, lm_run(r->m, &r->batch, &tap, whole ? 0 : 1, model_seen, NULL, whole));
    if (r->logits) must(r->ctx, lm_logits(r->m, 0, MODEL_TOKENS, r->logits));
}

/* Operations of the products with weights; attention's own are a fiftieth of them. */
static double model_flops(const model_run *r) {
    const double layer = 4.0 * MODEL_DIM * MODEL_DIM + 2.0 * MODEL_DIM * MODEL_INNER;
    return 2.0 * MODEL_TOKENS *
           (layer * r->layers + (r->logits ? (double)MODEL_DIM * MODEL_VOCAB : 0));
}

/* s->rows: how many layers; s->features: 1 with the logits of all tokens. */
static outcome measure_model(lab *l, const shape *s) {
    static int32_t id[MODEL_TOKENS];
    static int64_t start[MODEL_SEQUENCES + 1];
    char folder[400];
    model_run r = {l->ctx, NULL, {id, start, MODEL_SEQUENCES}, (int)s->rows, NULL};
    fma_burst peak = burst_new(l->ctx);
    outcome o = {0};
    if (memory_available() < 2.5e9) return o;
    for (int i = 0; i < MODEL_TOKENS; i++) id[i] = (int32_t)(i * 7919LL % MODEL_VOCAB);
    for (int i = 0; i <= MODEL_SEQUENCES; i++) start[i] = (int64_t)i * MODEL_LENGTH;
    snprintf(folder, sizeof folder, "%s/model", l->tmp);
    mkdir(folder, 0777);
    model_write(l->ctx, folder, l->normal);
    must(l->ctx, lm_load(l->ctx, folder, &r.m));
    if (s->features)
        r.logits = (float *)take(l->ctx, (int64_t)MODEL_TOKENS * MODEL_VOCAB, sizeof *r.logits);
    o = in_turns(l, model_go, &r, fma_burst_run, &peak);
    o.ratio = floor_of(&o, &peak, model_flops(&r)) / o.seconds;
    dlrn_free(l->ctx, r.logits);
    lm_destroy(r.m);
    return o;
}

static void model_rows(lab *l) {
    static const kind model = {"of peak", 1, 0, measure_model, 1};
    shape s = {.rows = MODEL_LAYERS, .d = MODEL_DIM, .features = 1};
    run_row(l, "model.logits", &model, 0, s);
    s.features = 0;
    run_row(l, "model.trunk", &model, 0, s);
    s.rows = 2;
    run_row(l, "model.two_layers", &model, 0, s);
}
#endif /* DICTLEARN_BENCH_MODEL_H */
