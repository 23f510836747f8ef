/* The engine over llama.cpp against itself: DLRN_TEST_GGUF is the path of a model; without one, or
   in a build without LLAMA, there is nothing to test. tests/llama.py compares it with
   transformers. */
#define _POSIX_C_SOURCE 200809L
#include "dictlearn.h"

#define LM_IMPLEMENTATION
#include "lm/lm.h"
#include "tests/starve.h"

static dlrn_context *ctx;

#ifdef LM_LLAMA
enum { SEQUENCES = 6, TOKENS = 40, LONGEST = 16 };

static const char *path;
static lm_model *model;
static lm_tokenizer *tok;
static int32_t id[TOKENS];
static const int64_t start[SEQUENCES + 1] = {0, 9, 10, 10, 26, 33, TOKENS};

/* Cuts runs into pieces wherever the lengths of sequences differ, as those of recurrent models. */
static void cut(int into_pieces) {
    lcpp_model *m = (lcpp_model *)model;
    m->equal = into_pieces || llama_model_is_recurrent(m->model) || llama_model_is_hybrid(m->model);
}

/* The model, and a batch of sequences of several lengths; one has no token. */
static lm_batch open_all(void) {
    const lm_batch b = {id, start, SEQUENCES};
    if (!path) SKIP("DLRN_TEST_GGUF names no model");
    if (!ctx) CHECK(dlrn_context_create(NULL, &ctx) == DLRN_OK);
    if (!model) CHECK_OK(ctx, lm_load(ctx, path, &model));
    if (!tok) CHECK_OK(ctx, lm_load_tokenizer(ctx, path, &tok));
    for (int i = 0; i < TOKENS; i++)
        id[i] = (int32_t)((i * 7919 + 37) % lm_config_of(model)->vocab);
    cut(0);
    return b;
}

/* What a visit does, and what it saw. */
typedef enum todo { NOTHING, ZERO, DOUBLE, NOT_A_NUMBER, FAIL } todo;
typedef struct eye {
    todo what;
    int calls, taps[8];
    int64_t n, width[8];
    float *x[8]; /* [n][width], or NULL: not kept */
} eye;

static dlrn_status look(void *user, int tap, const float *x, float *y, int64_t n) {
    eye *e = (eye *)user;
    const int64_t numel = n * e->width[tap];
    e->taps[e->calls++] = tap;
    e->n = n;
    if (e->x[tap]) memcpy(e->x[tap], x, (size_t)numel * sizeof *x);
    if (e->what == ZERO) memset(y, 0, (size_t)numel * sizeof *y);
    for (int64_t i = 0; e->what == DOUBLE && i < numel; i++) y[i] *= 2;
    for (int64_t i = 0; e->what == NOT_A_NUMBER && i < numel; i++) y[i] = NAN;
    return e->what == FAIL ? dlrn_fail(ctx, DLRN_ERR_CALLBACK, "the visit's own words") : DLRN_OK;
}

/* A tap of one site, if the model has it. */
static int tap_of(int kind, int64_t layer, lm_tap *tap, eye *e, todo what) {
    lm_site site;
    memset(e, 0, sizeof *e);
    e->what = what;
    if (lm_site_named(model, lm_kind_names[kind], layer, &site) != DLRN_OK) return 0;
    tap->x = tap->y = site;
    e->width[0] = lm_site_width(model, site);
    CHECK(e->width[0] > 0);
    return 1;
}

static double entropy(const lm_batch *b, const lm_tap *taps, int n_taps, eye *e) {
    double nats = 0;
    int64_t tokens = 0;
    CHECK_OK(ctx, lm_run(model, b, taps, n_taps, look, e, 1));
    CHECK_OK(ctx, lm_cross_entropy(model, b, &nats, &tokens));
    CHECK(tokens == b->start[b->sequences] - b->start[0] - 5); /* that have a next one */
    return nats;
}

TEST(configuration) {
    open_all();
    const lm_config *c = lm_config_of(model);
    lm_config read;
    CHECK_OK(ctx, lm_read_config(ctx, path, &read));
    CHECK(!memcmp(&read, c, sizeof read));
    CHECK(c->dim == llama_model_n_embd(((lcpp_model *)model)->model));
    CHECK(c->layers == llama_model_n_layer(((lcpp_model *)model)->model));
    CHECK(c->positions == llama_model_n_ctx_train(((lcpp_model *)model)->model));
    CHECK(c->vocab == lm_vocab_size(tok) && c->family[0] && c->positions > 0);
}

/* Rows that are read and written back change no bit; zeros change the cross-entropy. */
TEST(every_site) {
    const lm_batch b = open_all();
    const double plain = entropy(&b, NULL, 0, NULL);
    int sites = 0;
    CHECK(isfinite(plain) && plain > 0);
    for (int kind = 0; kind < LM_KIND_COUNT; kind++)
        for (int64_t layer = 0; layer < lm_config_of(model)->layers; layer++) {
            lm_tap tap;
            eye e;
            const int64_t last = lm_config_of(model)->layers - 1;
            if ((layer && layer < last) || (kind == LM_EMBED && layer)) continue;
            if (!tap_of(kind, layer, &tap, &e, NOTHING)) continue;
            const double back = entropy(&b, &tap, 1, &e);
            CHECK_MSG(back == plain, "%s %d: %.17g, as it is %.17g", lm_kind_names[kind],
                      (int)layer, back, plain);
            CHECK(e.calls == 1 && e.n == TOKENS);
            e.what = ZERO;
            CHECK_MSG(entropy(&b, &tap, 1, &e) != plain, "%s: zero changes nothing",
                      lm_kind_names[kind]);
            sites++;
        }
    CHECK(sites >= 2); /* embed and resid_out */
    CHECK(entropy(&b, NULL, 0, NULL) == plain);
}

/* Any node that has rows can be written back: also one that ggml would else compute together with
   the next, as it does a norm and the product with its weight. */
TEST(every_node) {
    const lm_batch b = open_all();
    const double plain = entropy(&b, NULL, 0, NULL);
    lcpp_model *m = (lcpp_model *)model;
    int nodes = 0;
    for (int64_t i = 0; i < m->nodes; i++) {
        const char *name = m->node[i].name;
        const int at_end = !strncmp(name, "result_", 7), at_start = strstr(name, "-0") != NULL;
        lm_tap tap;
        eye e;
        char site[80];
        if (!m->node[i].width || !(at_end || at_start) || strchr(name, ' ')) continue;
        memset(&e, 0, sizeof e);
        snprintf(site, sizeof site, "tensor:%s", name);
        CHECK_OK(ctx, lm_site_named(model, site, 0, &tap.x));
        tap.y = tap.x;
        e.width[0] = lm_site_width(model, tap.x);
        const double back = entropy(&b, &tap, 1, &e);
        CHECK_MSG(back == plain, "%s: %.17g, as it is %.17g", name, back, plain);
        nodes++;
    }
    CHECK(nodes >= 4);
}

/* Rows of a site, [TOKENS][width]. */
static float *rows_of(const lm_batch *b, const lm_tap *tap, int64_t *width) {
    eye e;
    memset(&e, 0, sizeof e);
    *width = e.width[0] = lm_site_width(model, tap->x);
    e.x[0] = (float *)malloc((size_t)(TOKENS * *width) * sizeof(float));
    CHECK(e.x[0]);
    CHECK_OK(ctx, lm_run(model, b, tap, 1, look, &e, 0));
    CHECK(e.calls == 1 && e.n == b->start[b->sequences] - b->start[0]);
    return e.x[0];
}

/* Weights in few bits are multiplied by rows rounded to eight, and a last bit may tip a number over
   to the next of them. */
static double near_enough(void) {
    const enum llama_ftype type = llama_model_ftype(((lcpp_model *)model)->model);
    return type == LLAMA_FTYPE_ALL_F32 ? 1e-4 : 0.1;
}

/* A sequence's rows are the same alone, in a batch, and in a run of several pieces. */
TEST(one_by_one) {
    const lm_batch b = open_all();
    for (int kind = 0; kind < LM_KIND_COUNT; kind++) {
        lm_tap tap;
        eye e;
        int64_t d;
        if (!tap_of(kind, lm_config_of(model)->layers - 1, &tap, &e, NOTHING)) continue;
        float *together = rows_of(&b, &tap, &d);
        for (int s = 0; s < SEQUENCES; s++) {
            const int64_t n = start[s + 1] - start[s];
            const lm_batch one = {id, start + s, 1};
            float *alone = rows_of(&one, &tap, &d);
            const double off = apart(together + start[s] * d, alone, n * d);
            CHECK_MSG(off <= near_enough(), "%s, sequence %d: %g apart", lm_kind_names[kind], s,
                      off);
            free(alone);
        }
        cut(1);
        float *parts = rows_of(&b, &tap, &d);
        CHECK(((lcpp_model *)model)->run.pieces == 5);
        const double off = apart(parts, together, TOKENS * d);
        CHECK_MSG(off <= near_enough(), "%s, in pieces: %g apart", lm_kind_names[kind], off);
        cut(0);
        free(parts);
        free(together);
    }
}

/* Taps at several sites, given out of order, one of which reads a module's input and writes its
   output; in one piece and in several. */
TEST(several_taps) {
    const lm_batch b = open_all();
    const int64_t last = lm_config_of(model)->layers - 1;
    lm_tap taps[4];
    lm_site high, low;
    double found[2], plain;
    CHECK_OK(ctx, lm_site_named(model, "resid_out", last, &high));
    CHECK_OK(ctx, lm_site_named(model, "embed", 0, &low));
    CHECK_OK(ctx, lm_tap_at(model, high, LM_IO_OUT, &taps[0]));
    CHECK_OK(ctx, lm_tap_at(model, low, LM_IO_OUT, &taps[1]));
    taps[2].x = low, taps[2].y = high;
    taps[3] = taps[1];
    plain = entropy(&b, NULL, 0, NULL);
    for (int pieces = 0; pieces < 2; pieces++) {
        eye e;
        memset(&e, 0, sizeof e);
        e.what = DOUBLE;
        for (int t = 0; t < 4; t++) {
            e.width[t] = lm_config_of(model)->dim;
            e.x[t] = (float *)malloc((size_t)(TOKENS * e.width[t]) * sizeof(float));
            CHECK(e.x[t]);
        }
        cut(pieces);
        found[pieces] = entropy(&b, taps, 4, &e);
        CHECK(e.calls == 4 && e.n == TOKENS);
        CHECK(e.taps[0] == 1 && e.taps[1] == 3 && e.taps[2] == 0 && e.taps[3] == 2);
        const int64_t numel = TOKENS * e.width[0];
        for (int64_t i = 0; i < numel;
             i++) { /* tap 3 sees what tap 1 left, and tap 2 the first x */
            CHECK(e.x[3][i] == 2 * e.x[1][i]);
            CHECK(e.x[2][i] == e.x[1][i] || e.x[2][i] == 4 * e.x[1][i]);
        }
        for (int t = 0; t < 4; t++) free(e.x[t]);
    }
    CHECK_CLOSE(found[0], found[1], 1e-3);
    CHECK(found[0] != plain);
    taps[0].x = high, taps[0].y = low;
    CHECK_STATUS(lm_run(model, &b, taps, 1, look, NULL, 0), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "tap 0: expected an x before its y");
}

/* An edit in a run of several pieces is part of the logits of each. */
TEST(pieces) {
    const lm_batch b = open_all();
    const int64_t v = lm_config_of(model)->vocab;
    lm_tap tap;
    eye e;
    CHECK(tap_of(LM_RESID_OUT, 0, &tap, &e, DOUBLE));
    float *whole = (float *)malloc((size_t)(TOKENS * v) * sizeof(float));
    float *parts = (float *)malloc((size_t)(TOKENS * v) * sizeof(float));
    CHECK(whole && parts);
    const double at_once = entropy(&b, &tap, 1, &e);
    CHECK_OK(ctx, lm_logits(model, 0, TOKENS, whole));
    cut(1);
    CHECK_CLOSE(entropy(&b, &tap, 1, &e), at_once, 1e-4);
    for (int64_t i = TOKENS - 1; i >= 0; i -= 3)
        CHECK_OK(ctx, lm_logits(model, i, 1, parts + i * v));
    for (int64_t i = TOKENS - 1; i >= 0; i -= 3)
        CHECK(apart(parts + i * v, whole + i * v, v) <= near_enough());
    CHECK(e.calls == 2);
    free(whole);
    free(parts);
}

/* Cross-entropy from the logits, in double. */
TEST(logits) {
    const lm_batch b = open_all();
    const int64_t v = lm_config_of(model)->vocab;
    float *x = (float *)malloc((size_t)(TOKENS * v) * sizeof(float));
    double nats = 0;
    CHECK(x);
    const double found = entropy(&b, NULL, 0, NULL);
    CHECK_OK(ctx, lm_logits(model, 0, TOKENS, x));
    for (int s = 0; s < SEQUENCES; s++)
        for (int64_t i = start[s]; i + 1 < start[s + 1]; i++) {
            double sum = 0;
            for (int64_t k = 0; k < v; k++) sum += exp((double)x[i * v + k]);
            nats += log(sum) - (double)x[i * v + id[i + 1]];
        }
    CHECK_CLOSE(found, nats, 1e-6);
    CHECK_STATUS(lm_logits(model, 1, TOKENS, x), DLRN_ERR_ARGUMENT);
    CHECK_STATUS(lm_logits(model, -1, 1, x), DLRN_ERR_ARGUMENT);
    free(x);
}

/* Rows of a tensor by its name, of the first sequence. */
static float *named_rows(const char *name, int64_t *d) {
    const lm_batch one = {id, start, 1};
    lm_tap tap;
    CHECK_OK(ctx, lm_site_named(model, name, 0, &tap.x));
    tap.y = tap.x;
    return rows_of(&one, &tap, d);
}

/* The unembedding by its weights in the file is the graph's product, before what caps or scales
   it. Quantised weights: ggml rounds the rows that it multiplies, and we do not. */
TEST(direct_logits) {
    const lm_batch b = open_all(), one = {id, start, 1};
    const int64_t v = lm_config_of(model)->vocab, n = start[1];
    const double near = near_enough();
    lm_site site;
    lm_tap tap;
    double length[TOKENS];
    int64_t d, dx;
    (void)b;
    float *got = (float *)malloc((size_t)(2 * n * v) * sizeof(float)), *logits = got + n * v;
    CHECK(got && strcmp(lm_final_norm(model), "none"));
    CHECK_OK(ctx, lm_run(model, &one, NULL, 0, NULL, NULL, 1));
    CHECK_OK(ctx, lm_logits(model, 0, n, logits));
    CHECK_OK(ctx, lm_site_named(model, "resid_out", lm_config_of(model)->layers - 1, &site));
    CHECK_OK(ctx, lm_tap_at(model, site, LM_IO_OUT, &tap));
    float *x = rows_of(&one, &tap, &dx), *normed = named_rows("tensor:result_norm", &d);
    CHECK(d == dx && d == lm_config_of(model)->dim);
    CHECK_OK(ctx, lm_direct_logits(model, normed, n, 1, got));
    const dlrn_status s = lm_final_length(model, x, n, length);
    if (s == DLRN_OK) { /* the rows' differences, since a bias is in all */
        for (int64_t i = 1; i < n; i++)
            for (int64_t k = 0; k < v; k++)
                got[i * v + k] -= got[k], logits[i * v + k] -= logits[k];
        CHECK_MSG(apart(got + v, logits + v, (n - 1) * v) < near, "plain: %g",
                  apart(got + v, logits + v, (n - 1) * v));
        CHECK_OK(ctx, lm_direct_logits(model, x, n, 0, got));
        for (int64_t i = 0; i < n; i++)
            for (int64_t k = 0; k < v; k++) {
                got[i * v + k] = (float)((double)got[i * v + k] / length[i]);
                if (i) got[i * v + k] -= got[k];
            }
        CHECK_MSG(apart(got + v, logits + v, (n - 1) * v) < near, "%g",
                  apart(got + v, logits + v, (n - 1) * v));
    } else {
        CHECK_STATUS(s, DLRN_ERR_UNSUPPORTED);
        CHECK_STR(dlrn_error(ctx), "found a scale or a soft-cap after it");
        for (int64_t i = 0; i < n * v; i++) got[i] = 30 * tanhf(got[i] / 30); /* Gemma 2's */
        CHECK_MSG(apart(got, logits, n * v) < near, "capped: %g", apart(got, logits, n * v));
    }
    free(normed);
    free(x);
    free(got);
}

static int asked, patience; /* of the next: says stop after so many questions; -1: never */
static int stop_later(void *user) {
    (void)user;
    return ++asked > patience && patience >= 0;
}

/* A run ends at its last tap: of a model's first layer few nodes are computed. */
TEST(context_ends) {
    const lm_batch b = open_all();
    int nodes[2];
    patience = -1;
    lm_on_stop(model, stop_later, NULL);
    for (int high = 0; high < 2; high++) {
        lm_tap tap;
        eye e;
        CHECK(tap_of(LM_RESID_OUT, high ? lm_config_of(model)->layers - 1 : 0, &tap, &e, NOTHING));
        asked = 0;
        CHECK_OK(ctx, lm_run(model, &b, &tap, 1, look, &e, 0));
        nodes[high] = asked;
    }
    lm_on_stop(model, NULL, NULL);
    CHECK_MSG(nodes[0] > 0 && nodes[0] * 2 < nodes[1], "%d nodes for a layer, %d for all", nodes[0],
              nodes[1]);
    CHECK_STATUS(lm_logits(model, 0, 1, NULL), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "expected a whole run");
}

TEST(stop) {
    const lm_batch b = open_all();
    const double plain = entropy(&b, NULL, 0, NULL);
    double nats;
    int64_t tokens;
    lm_on_stop(model, stop_later, NULL);
    for (patience = 0; patience < 60; patience += 7) {
        asked = 0;
        dlrn_status s = lm_run(model, &b, NULL, 0, NULL, NULL, 1);
        if (s == DLRN_OK) s = lm_cross_entropy(model, &b, &nats, &tokens); /* of several pieces */
        CHECK_STATUS(s, DLRN_STOPPED);
        CHECK(lm_logits(model, 0, 0, NULL) != DLRN_OK || ((lcpp_model *)model)->run.pieces > 1);
    }
    lm_on_stop(model, NULL, NULL);
    CHECK(entropy(&b, NULL, 0, NULL) == plain);
}

/* A visit's error comes back in its own words, and nothing of the run stays. */
TEST(visit_fails) {
    const lm_batch b = open_all();
    lm_tap tap;
    eye e;
    const double plain = entropy(&b, NULL, 0, NULL);
    CHECK(tap_of(LM_RESID_OUT, 0, &tap, &e, FAIL));
    for (int whole = 0; whole < 2; whole++)
        for (int pieces = 0; pieces < 2; pieces++) {
            cut(pieces);
            CHECK_STATUS(lm_run(model, &b, &tap, 1, look, &e, whole), DLRN_ERR_CALLBACK);
            CHECK(!strcmp(dlrn_error(ctx), "the visit's own words"));
            CHECK_STATUS(lm_logits(model, 0, 1, NULL), DLRN_ERR_ARGUMENT);
        }
    cut(0);
    CHECK(e.calls == 4 && entropy(&b, NULL, 0, NULL) == plain);
}

/* Numbers that are not finite do not outlive their run: fewer tokens leave old cells. */
TEST(not_finite) {
    const lm_batch b = open_all(), one = {id, start, 1};
    lm_tap tap;
    eye e;
    double before = 0, after = 0;
    int64_t tokens;
    CHECK_OK(ctx, lm_run(model, &one, NULL, 0, NULL, NULL, 1));
    CHECK_OK(ctx, lm_cross_entropy(model, &one, &before, &tokens));
    CHECK(tap_of(LM_EMBED, 0, &tap, &e, NOT_A_NUMBER));
    CHECK(!isfinite(entropy(&b, &tap, 1, &e)));
    CHECK_OK(ctx, lm_run(model, &one, NULL, 0, NULL, NULL, 1));
    CHECK_OK(ctx, lm_cross_entropy(model, &one, &after, &tokens));
    CHECK(tokens == start[1] - 1 && after == before);
}

TEST(sites) {
    char names[256];
    lm_site site;
    open_all();
    CHECK_STATUS(lm_site_named(model, "nosuch", 0, &site), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "site nosuch: unknown: expected embed");
    CHECK_STR(dlrn_error(ctx), "resid_out, or tensor:NAME (");
    CHECK_STR(dlrn_error(ctx), "attn_norm-0");
    CHECK_STATUS(lm_site_named(model, "resid_out", 999, &site), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "expected a layer from 0 to");
    CHECK_STATUS(lm_site_named(model, "tensor:nosuch", 0, &site), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "site tensor:nosuch: this model has none");
    CHECK_STATUS(lm_site_named(model,
                               "tensor:inp_tokens-that-has-a-name-of-more-than-64-characters-"
                               "in-all",
                               0, &site),
                 DLRN_ERR_ARGUMENT);
    CHECK_OK(ctx, lm_site_named(model, "tensor:l_out-0", 7, &site));
    CHECK(site.kind == LM_TENSOR && !strcmp(site.tensor, "l_out-0"));
    CHECK(lm_site_width(model, site) == lm_config_of(model)->dim);
    CHECK_OK(ctx, lm_site_named(model, "tensor:l_out-0#1", 0, &site));
    CHECK_STATUS(lm_site_named(model, "tensor:l_out-0#2", 0, &site), DLRN_ERR_ARGUMENT);
    CHECK_STATUS(lm_site_named(model, "tensor:l_out-0#0", 0, &site), DLRN_ERR_ARGUMENT);
    CHECK_STATUS(lm_site_named(model, "tensor:l_out-0#1x", 0, &site), DLRN_ERR_ARGUMENT);
    CHECK_STATUS(lm_site_named(model, "tensor:result_output", 0, &site), DLRN_OK);
    CHECK(lm_site_width(model, site) == lm_config_of(model)->vocab);
    CHECK_OK(ctx, lm_site_names(model, names, sizeof names));
    CHECK_STR(names, "resid_out, tensor:NAME");
}

/* A node without a row of f32 for each token. */
TEST(no_rows) {
    lm_site site;
    open_all();
    if (lm_site_named(model, "attn_z", 0, &site) != DLRN_OK) SKIP("this model has no attention");
    CHECK_STATUS(lm_site_named(model, "tensor:kq-0", 0, &site), DLRN_ERR_UNSUPPORTED);
    CHECK_STR(dlrn_error(ctx), "site tensor:kq-0: expected a node with a row of f32");
}

/* A node whose rows are heads, also of a single token, where no dimension tells. */
TEST(heads) {
    static const int64_t one[] = {0, 1};
    lm_batch b = open_all(), single = {id, one, 1};
    lm_tap tap;
    int64_t d;
    if (lm_site_named(model, "tensor:Qcur-0", 0, &tap.x) != DLRN_OK) SKIP("it has no queries");
    tap.y = tap.x;
    float *all = rows_of(&b, &tap, &d), *first = rows_of(&single, &tap, &d);
    CHECK(d >= lm_config_of(model)->heads && apart(first, all, d) <= near_enough());
    free(all);
    free(first);
}

/* A tensor by name is the site that it is. */
TEST(tensor) {
    const lm_batch b = open_all();
    lm_tap tap, named;
    eye e;
    int64_t d;
    CHECK(tap_of(LM_RESID_OUT, 0, &tap, &e, NOTHING));
    CHECK_OK(ctx, lm_site_named(model, "tensor:l_out-0", 0, &named.x));
    named.y = named.x;
    float *x = rows_of(&b, &tap, &d), *y = rows_of(&b, &named, &d);
    CHECK(!memcmp(x, y, (size_t)(TOKENS * d) * sizeof *x));
    free(x);
    free(y);
}

TEST(out_of_range) {
    lm_batch b = open_all();
    id[17] = (int32_t)lm_config_of(model)->vocab;
    CHECK_STATUS(lm_run(model, &b, NULL, 0, NULL, NULL, 1), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "sequence 3, token 7: expected an id below");
    id[17] = -1;
    CHECK_STATUS(lm_run(model, &b, NULL, 0, NULL, NULL, 1), DLRN_ERR_ARGUMENT);
    const int64_t n = lm_config_of(model)->positions + 1, far[2] = {0, n};
    if (n > 1 << 20) return; /* a recurrent model has no bound of its own */
    int32_t *many = (int32_t *)calloc((size_t)n, sizeof *many);
    b.id = many, b.start = far, b.sequences = 1;
    CHECK(many);
    CHECK_STATUS(lm_run(model, &b, NULL, 0, NULL, NULL, 1), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "sequence 0: expected at most");
    free(many);
}

/* Batches without tokens. */
TEST(empty) {
    open_all();
    static const int64_t none[] = {0, 0, 0};
    const lm_batch b = {id, none, 2}, nothing = {id, none, 0};
    double nats = 1;
    int64_t tokens = 1;
    lm_tap tap;
    eye e;
    CHECK(tap_of(LM_RESID_OUT, 0, &tap, &e, NOTHING));
    CHECK_OK(ctx, lm_run(model, &b, &tap, 1, look, &e, 1));
    CHECK_OK(ctx, lm_cross_entropy(model, &b, &nats, &tokens));
    CHECK(nats == 0 && tokens == 0 && e.n == 0);
    CHECK_OK(ctx, lm_run(model, &nothing, NULL, 0, NULL, NULL, 1));
}

/* More sequences than llama.cpp runs at once. */
TEST(many_sequences) {
    enum { MANY = 300 };
    static int32_t one[MANY];
    static int64_t at[MANY + 1];
    const lm_batch few = open_all(), b = {one, at, MANY};
    lm_tap tap;
    eye e;
    (void)few;
    for (int i = 0; i < MANY; i++) one[i] = id[i % 3], at[i + 1] = i + 1;
    CHECK(tap_of(LM_EMBED, 0, &tap, &e, NOTHING));
    const int64_t d = e.width[0];
    e.x[0] = (float *)malloc((size_t)(MANY * d) * sizeof(float));
    CHECK(e.x[0]);
    CHECK_OK(ctx, lm_run(model, &b, &tap, 1, look, &e, 0));
    CHECK(e.calls == 1 && e.n == MANY && ((lcpp_model *)model)->run.pieces >= 2);
    for (int i = 3; i < MANY; i++)
        CHECK(!memcmp(e.x[0] + i * d, e.x[0] + i % 3 * d, (size_t)d * sizeof(float)));
    free(e.x[0]);
}

enum { NEW_TOKENS = 6 };
static int32_t made[3][NEW_TOKENS];
static dlrn_status emit(void *user, int64_t document, const int32_t *ids, int64_t n) {
    (void)user;
    CHECK(document < 3 && n == NEW_TOKENS);
    memcpy(made[document], ids, sizeof made[0]);
    return DLRN_OK;
}

/* Greedy tokens are the largest of the logits of a run over all before them; an edit that changes
   nothing gives the same, and zeros others. */
TEST(generation) {
    open_all();
    const int64_t v = lm_config_of(model)->vocab;
    int32_t all[5 + NEW_TOKENS];
    int64_t whole[2] = {0, 5};
    float *x = (float *)malloc((size_t)v * sizeof *x);
    lm_sampling how;
    lm_tap tap;
    eye e;
    CHECK(x);
    memset(&how, 0, sizeof how);
    how.documents = 3, how.tokens = NEW_TOKENS, how.stop = -1;
    how.prompt = id, how.prompt_len = 5;
    CHECK_OK(ctx, lm_generate(model, &how, emit, NULL));
    CHECK(!memcmp(made[0], made[1], sizeof made[0]) && !memcmp(made[0], made[2], sizeof made[0]));
    memcpy(all, id, 5 * sizeof *id);
    for (int i = 0; i < NEW_TOKENS; i++) {
        const lm_batch b = {all, whole, 1};
        int64_t best = 0;
        CHECK_OK(ctx, lm_run(model, &b, NULL, 0, NULL, NULL, 1));
        CHECK_OK(ctx, lm_logits(model, whole[1] - 1, 1, x));
        for (int64_t k = 1; k < v; k++) best = x[k] > x[best] ? k : best;
        CHECK_MSG(best == made[0][i], "token %d: %d is the most likely, %d was drawn", i, (int)best,
                  (int)made[0][i]);
        all[whole[1]++] = (int32_t)best;
    }
    CHECK(tap_of(LM_RESID_OUT, lm_config_of(model)->layers - 1, &tap, &e, NOTHING));
    how.taps = &tap, how.n_taps = 1, how.visit = look, how.user = &e;
    how.tokens = NEW_TOKENS;
    memcpy(all, made[0], sizeof made[0]);
    CHECK_OK(ctx, lm_generate(model, &how, emit, NULL));
    CHECK(e.calls == NEW_TOKENS && e.n == 3 && !memcmp(all, made[2], sizeof made[0]));
    memset(&e, 0, sizeof e);
    e.width[0] = lm_config_of(model)->dim, e.what = ZERO;
    CHECK_OK(ctx, lm_generate(model, &how, emit, NULL));
    CHECK(memcmp(all, made[2], sizeof made[0]));
    free(x);
}

/* Texts come back from their tokens; special tokens are recognised in them. */
TEST(tokens) {
    static const char text[] = "It's  a test\n\n of 12345 tokens: \xC3\xA9t\xC3\xA9, \xE4\xB8\xAD.";
    bpe_ids ids;
    bpe_text back;
    int64_t bytes = 0;
    open_all();
    memset(&ids, 0, sizeof ids);
    memset(&back, 0, sizeof back);
    CHECK_OK(ctx, lm_encode(tok, text, sizeof text - 1, &ids));
    CHECK(ids.count > 5);
    for (int64_t i = 0; i < ids.count; i++) CHECK(!lm_is_special(tok, ids.id[i]));
    CHECK_OK(ctx, lm_decode(tok, ids.id, ids.count, &back));
    const int64_t space = back.bytes[0] == ' '; /* SentencePiece puts one in front */
    CHECK(back.count == (int64_t)sizeof text - 1 + space && !strcmp(back.bytes + space, text));
    for (int i = 0; i < 7; i++) { /* a byte that is not UTF-8 is U+FFFD */
        static const char *const wrong[] = {"a\xFF z",         "a\xC1 z",
                                            "a\xED\xA0\x80 z", "a\xF4\x90\x80\x80 z",
                                            "a\xE0\x80\x80 z", "a\xF0\x80\x80\x80 z",
                                            "z\xF0\x9F\x99"};
        const int64_t n = (int64_t)strlen(wrong[i]), bad = i < 2 ? 1 : i == 3 || i == 5 ? 4 : 3;
        CHECK_OK(ctx, lm_encode(tok, wrong[i], n, &ids));
        CHECK_OK(ctx, lm_decode(tok, ids.id, ids.count, &back));
        CHECK(back.count - (back.bytes[0] == ' ') == n + 2 * bad);
        CHECK_STR(back.bytes, "\xEF\xBF\xBD");
        CHECK_STR(back.bytes, i < 6 ? " z" : "z");
    }
    CHECK_OK(ctx, lm_encode(tok, text, 0, &ids));
    CHECK(ids.count == 0);
    CHECK_OK(ctx, lm_decode(tok, ids.id, 0, &back));
    CHECK(back.count == 0 && back.bytes[0] == 0);
    CHECK(!lm_token_bytes(tok, -1, &bytes) &&
          !lm_token_bytes(tok, (int32_t)lm_vocab_size(tok), &bytes));
    CHECK(!lm_is_special(tok, -1) && !lm_is_special(tok, (int32_t)lm_vocab_size(tok)));
    const int32_t none = -1, eos = lm_config_of(model)->eos;
    CHECK_STATUS(lm_decode(tok, &none, 1, &back), DLRN_ERR_ARGUMENT);
    if (eos >= 0) {
        const char *name = lm_token_bytes(tok, eos, &bytes);
        CHECK(name && bytes > 0 && lm_is_special(tok, eos));
        CHECK_OK(ctx, lm_encode(tok, name, bytes, &ids));
        CHECK(ids.count == 1 && ids.id[0] == eos);
    }
    bpe_ids_free(&ids);
    bpe_text_free(&back);
}

/* Writes the first bytes of the model to a file. */
static char *first_bytes(int64_t n, int without_tensors) {
    char *name = tmp_path("cut.gguf"), *bytes = (char *)malloc((size_t)n);
    FILE *in = fopen(path, "rb"), *out = fopen(name, "wb");
    CHECK(bytes && in && out && fread(bytes, 1, (size_t)n, in) == (size_t)n);
    if (without_tensors) memset(bytes + 8, 0, 8); /* how many there are */
    CHECK(fwrite(bytes, 1, (size_t)n, out) == (size_t)n);
    fclose(in);
    fclose(out);
    free(bytes);
    return name;
}

/* Files that are cut short, and one with a vocabulary alone: one error that names the file. */
TEST(bad_files) {
    struct stat info;
    lm_model *m = NULL;
    lm_tokenizer *t = NULL;
    lm_config c;
    open_all();
    CHECK(stat(path, &info) == 0);
    const int64_t size = (int64_t)info.st_size;
    const int64_t cuts[] = {4, 8, 24, 100, 5000, size > 4 << 20 ? 4 << 20 : size - 1};
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        char *name = first_bytes(cuts[i], 0);
        CHECK_STATUS(lm_load(ctx, name, &m), DLRN_ERR_FORMAT);
        CHECK(!m);
        CHECK_STR(dlrn_error(ctx), "cut.gguf: llama.cpp cannot load it: ");
        CHECK(!strstr(dlrn_error(ctx), "no reason") && !strchr(dlrn_error(ctx), '\n'));
        if (cuts[i] > 5000) continue; /* the vocabulary may be whole */
        CHECK_STATUS(lm_read_config(ctx, name, &c), DLRN_ERR_FORMAT);
        CHECK_STATUS(lm_load_tokenizer(ctx, name, &t), DLRN_ERR_FORMAT);
        CHECK(!t);
    }
    char *bare = first_bytes(size > 8 << 20 ? 8 << 20 : size, 1);
    CHECK_STATUS(lm_load(ctx, bare, &m), DLRN_ERR_FORMAT);
    CHECK_STR(dlrn_error(ctx), "not found");
    CHECK_OK(ctx, lm_load_tokenizer(ctx, bare, &t));
    CHECK(lm_vocab_size(t) == lm_vocab_size(tok));
    lm_destroy_tokenizer(t);
}

/* Whichever allocation of ours fails, the run says so, leaks nothing, and can be repeated. */
TEST(no_memory) {
    const lm_batch b = open_all();
    dlrn_context *own = starve_context(1);
    const double plain = entropy(&b, NULL, 0, NULL);
    lm_model *m = NULL, *kept = model;
    lm_tap tap;
    eye e;
    double nats = 0;
    int64_t tokens;
    CHECK_OK(own, lm_load(own, path, &m));
    model = m;
    CHECK(tap_of(LM_RESID_OUT, 0, &tap, &e, NOTHING));
    model = kept;
    for (int64_t granted = 0;; granted++) {
        CHECK(granted < 1000);
        starve_after(granted, 1);
        e.calls = 0;
        dlrn_status s = lm_run(m, &b, &tap, 1, look, &e, 1);
        if (s == DLRN_OK) s = lm_cross_entropy(m, &b, &nats, &tokens);
        starve_no_more();
        CHECK(s == (starve.refused ? DLRN_ERR_MEMORY : DLRN_OK));
        if (s == DLRN_OK) break;
    }
    CHECK_CLOSE(nats, plain, 1e-4); /* one thread, and perhaps another number of them before */
    lm_destroy(m);
    dlrn_context_destroy(own);
    CHECK(starve.live == 0);
}
#endif

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
#ifdef LM_LLAMA
    path = getenv("DLRN_TEST_GGUF");
    RUN(configuration);
    RUN(tokens);
    RUN(sites);
    RUN(no_rows);
    RUN(tensor);
    RUN(every_site);
    RUN_LONG(every_node);
    RUN(one_by_one);
    RUN(heads);
    RUN(several_taps);
    RUN(pieces);
    RUN(logits);
    RUN(direct_logits);
    RUN(context_ends);
    RUN(stop);
    RUN(visit_fails);
    RUN(not_finite);
    RUN(out_of_range);
    RUN(empty);
    RUN(many_sequences);
    RUN(generation);
    RUN(bad_files);
    RUN(no_memory);
    lm_destroy_tokenizer(tok);
    lm_destroy(model);
    dlrn_context_destroy(ctx);
#else
    (void)ctx;
    test_state.skipped++;
    printf("skip llama: built without LLAMA\n");
#endif
    return TEST_END();
}
