/* llama_rate.c - what reading and editing activations costs beside llama.cpp alone.

       llama_rate MODEL.gguf [LAYER (half way up)] [SECONDS (60)] [--cpu-time]

   llama.cpp processes a prompt of 512 tokens, in 4 sequences, with its own default settings; our
   pass runs over the same tokens in turns with it. The best of each is compared: 1 is its rate.
   Built with LLAMA=PREFIX, by `make bench-llama`. */
#define _POSIX_C_SOURCE 199309L
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "dictlearn.h"
#define LM_IMPLEMENTATION
#include "lm/lm.h"

enum { SEQUENCES = 4, LENGTH = 128, TOKENS = SEQUENCES * LENGTH, PASSES = 6 };

typedef struct lab {
    dlrn_context *ctx;
    lm_model *ours;
    struct llama_context *theirs;
    struct llama_batch batch; /* of theirs; of ours: id and start */
    int32_t id[TOKENS];
    int64_t start[SEQUENCES + 1];
    lm_tap tap;
} lab;

static clockid_t used_clock = CLOCK_MONOTONIC; /* --cpu-time: that of the process */

static double now(void) {
    struct timespec t;
    clock_gettime(used_clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void quiet(enum ggml_log_level level, const char *text, void *user) {
    (void)user;
    if (level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static void must(lab *l, dlrn_status s) {
    if (s == DLRN_OK) return;
    fprintf(stderr, "llama_rate: %s\n", dlrn_error(l->ctx));
    exit(1);
}

/* The same file once more, as llama.cpp's own programs open it: an f16 cache, flash attention where
   it pays. Only the buffers for AMX are left out, as our engine leaves them out: see lm_llama.h. */
static void open_theirs(lab *l, const char *path) {
    struct llama_model_params mp = llama_model_default_params();
    struct llama_context_params cp = llama_context_default_params();
    mp.use_extra_bufts = !lcpp_has_amx();
    cp.n_ctx = cp.n_batch = cp.n_ubatch = TOKENS;
    cp.n_seq_max = SEQUENCES;
    cp.kv_unified = true;
    cp.n_threads = cp.n_threads_batch = dlrn_context_describe(l->ctx).threads;
    struct llama_model *m = llama_model_load_from_file(path, mp);
    l->theirs = m ? llama_init_from_model(m, cp) : NULL;
    if (!l->theirs) {
        fprintf(stderr, "llama_rate: %s: llama.cpp cannot load it\n", path);
        exit(1);
    }
    l->batch = llama_batch_init(TOKENS, 0, 1);
    l->batch.n_tokens = TOKENS;
    for (int i = 0; i < TOKENS; i++) {
        l->batch.token[i] = l->id[i];
        l->batch.pos[i] = i % LENGTH;
        l->batch.n_seq_id[i] = 1;
        l->batch.seq_id[i][0] = i / LENGTH;
    }
}

static void run_theirs(lab *l, int all_logits) {
    for (int i = 0; i < TOKENS; i++) l->batch.logits[i] = all_logits || i == TOKENS - 1;
    llama_memory_clear(llama_get_memory(l->theirs), false);
    if (llama_decode(l->theirs, l->batch)) {
        fputs("llama_rate: llama_decode failed\n", stderr);
        exit(1);
    }
    llama_synchronize(l->theirs);
}

static dlrn_status leave(void *user, int tap, const float *x, float *y, int64_t n) {
    (void)user, (void)tap, (void)x, (void)y, (void)n;
    return DLRN_OK;
}

/* Whole runs are as long as the engine computes at once, as those of an evaluation are. */
static void run_ours(lab *l, int taps, int whole, int ce) {
    const int64_t at_once = whole ? l->ours->whole_tokens / LENGTH : SEQUENCES;
    double nats;
    int64_t tokens;
    for (int64_t s = 0, n; s < SEQUENCES; s += n) {
        n = at_once < 1 ? 1 : at_once < SEQUENCES - s ? at_once : SEQUENCES - s;
        const lm_batch b = {l->id, l->start + s, n};
        must(l, lm_run(l->ours, &b, &l->tap, taps, leave, NULL, whole));
        if (ce) must(l, lm_cross_entropy(l->ours, &b, &nats, &tokens));
    }
}

static const char *const name[PASSES] = {
    "llama.cpp, the last token's logits", "llama.cpp, all logits",
    "a pass without a site, all logits",  "- a site read and written back",
    "- the cross-entropy as well",        "a pass that ends at the site"};

static void run_pass(lab *l, int pass) {
    if (pass < 2)
        run_theirs(l, pass);
    else
        run_ours(l, pass > 2, pass < 5, pass == 4);
}

int main(int argc, char **argv) {
    static lab l;
    double best[PASSES], began;
    if (argc > 2 && !strcmp(argv[argc - 1], "--cpu-time")) {
        used_clock = CLOCK_PROCESS_CPUTIME_ID;
        argc--;
    }
    if (argc < 2) {
        fputs("usage: llama_rate MODEL.gguf [LAYER] [SECONDS] [--cpu-time]\n", stderr);
        return 2;
    }
    const double seconds = argc > 3 ? atof(argv[3]) : 60;
    if (dlrn_context_create(NULL, &l.ctx) != DLRN_OK) return 1;
    must(&l, lm_load(l.ctx, argv[1], &l.ours));
    llama_log_set(quiet, NULL);
    const lm_config *cfg = lm_config_of(l.ours);
    const int64_t layer = argc > 2 ? atoll(argv[2]) : cfg->layers / 2;
    lm_site site;
    must(&l, lm_site_named(l.ours, "resid_out", layer, &site));
    l.tap.x = l.tap.y = site;
    for (int i = 0; i < TOKENS; i++) l.id[i] = (int32_t)((i * 7919 + 37) % cfg->vocab);
    for (int i = 0; i <= SEQUENCES; i++) l.start[i] = (int64_t)i * LENGTH;
    open_theirs(&l, argv[1]);
    for (int p = 0; p < PASSES; p++) best[p] = HUGE_VAL;
    began = now();
    for (int round = 0; round < 3 || now() - began < seconds; round++)
        for (int p = 0; p < PASSES; p++) {
            const double t = now();
            run_pass(&l, p);
            if (round) best[p] = fmin(best[p], now() - t); /* the first touches the memory */
        }
    printf("%s: %lld layers of %lld, resid_out of layer %lld, %d threads, AMX %s\n", argv[1],
           (long long)cfg->layers, (long long)cfg->dim, (long long)layer,
           (int)dlrn_context_describe(l.ctx).threads, lcpp_has_amx() ? "left out" : "not there");
    for (int p = 0; p < PASSES; p++)
        printf("%-38s %7.0f tokens/s  %5.2f\n", name[p], TOKENS / best[p], best[1] / best[p]);
    llama_batch_free(l.batch);
    lm_destroy(l.ours);
    dlrn_context_destroy(l.ctx);
    return 0;
}
