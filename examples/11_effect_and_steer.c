/* 11_effect_and_steer.c - what a feature does: to the next token, and to the text that follows.

       cc -O2 -fopenmp -I. examples/11_effect_and_steer.c -o effect_and_steer -lm
       ./effect_and_steer [MODEL]

   Takes the strongest feature of a text's last token (MODEL: by default examples/data/tiny-neox),
   and shows which next tokens it makes likely, by removing it; then samples texts with its atom
   added from that token on. What the dictionary does not explain stays. Its atoms are random here:
   dlrn_load opens a trained one. */
#include <math.h>
#include <stdio.h>
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#define LM_IMPLEMENTATION
#include "lm/lm.h"

static dlrn_context *ctx;
static lm_model *model;
static lm_tokenizer *tok;
static dlrn_dictionary *dict;
static lm_tap tap;      /* where the feature is read and changed */
static int64_t feature; /* the strongest one of the last row */
static float add;       /* to its value: minus the value removes it */

/* The model's rows x [n] reach the tap; it goes on with y [n]. */
static dlrn_status find(void *user, int number, const float *x, float *y, int64_t n) {
    dlrn_sparse codes = {0};
    (void)user, (void)number, (void)y;
    dlrn_status s = dlrn_encode_sparse(dict, x + (n - 1) * dict->d_in, 1, &codes);
    for (int64_t p = 0; !s && p < codes.row_ptr[1]; p++)
        if (codes.val[p] > -add) add = -codes.val[p], feature = codes.col[p];
    dlrn_sparse_free(&codes);
    return s;
}

static dlrn_status change(void *user, int number, const float *x, float *y, int64_t n) {
    const int64_t d = dict->d_out;
    const float *atom = dict->param[DLRN_DECODER] + feature * d;
    (void)user, (void)number, (void)x;
    for (int64_t j = 0; j < d; j++) y[(n - 1) * d + j] += add * atom[j];
    return DLRN_OK;
}

/* A line: a number, and tokens without the control characters that a terminal would obey. */
static dlrn_status print(void *number, int64_t document, const int32_t *id, int64_t n) {
    printf("  %+.3f '", (double)*(float *)number);
    for (int64_t i = 0, length = 0; i < n; i++, length = 0) {
        const char *s = lm_token_bytes(tok, id[i], &length);
        for (int64_t j = 0; j < length; j++) putchar(s[j] & 0xE0 ? s[j] : ' ');
    }
    return (void)document, puts("'") < 0 ? DLRN_ERR_IO : DLRN_OK;
}

/* logits: scratch [2][v]. */
static dlrn_status show(const bpe_ids *ids, float *logits, int64_t v) {
    const lm_batch text = {ids->id, (const int64_t[]){0, ids->count}, 1};
    const lm_sampling how = {1, 12, 0, 0, 0, ids->id, ids->count, -1, NULL, &tap, 1, change, NULL};
    int64_t best[3];
    double sum[2] = {0};
    dlrn_status s = lm_run(model, &text, &tap, 1, find, NULL, 0);
    for (int k = 0; k < 2 && !s; k++) { /* as the text is, then changed */
        s = lm_run(model, &text, &tap, k, change, NULL, 1);
        if (!s) s = lm_logits(model, ids->count - 1, 1, logits + k * v);
        for (int64_t i = 0; i < v && !s; i++) sum[k] += exp((double)logits[k * v + i]);
    }
    for (int64_t i = 0; i < v && !s; i++) /* differences of log p */
        logits[i] -= logits[v + i] + (float)log(sum[0] / sum[1]);
    if (s || (s = dlrn_topk(ctx, logits, v, 3, best, NULL))) return s;
    printf("feature %d, active with %.3f, makes likely:\n", (int)feature, -(double)add);
    for (int i = 0; i < 3; i++) (void)print(logits + best[i], 0, &(int32_t){(int32_t)best[i]}, 1);
    puts("added from the last token on:");
    for (add = 0; add < 50 && !s; add += 20) s = lm_generate(model, &how, print, &add);
    return s;
}

int main(int argc, char **argv) {
    const char *path = argc > 1 ? argv[1] : "examples/data/tiny-neox";
    dlrn_dictionary_desc desc = {.features = 1024, .seed = 1};
    dlrn_tensor logits = {0};
    bpe_ids ids = {0};
    dlrn_status s = dlrn_context_create(NULL, &ctx);
    if (!s) s = lm_load(ctx, path, &model);
    if (!s) s = lm_load_tokenizer(ctx, path, &tok);
    if (!s) s = lm_encode(tok, "The river ran", 13, &ids);
    if (!s) s = lm_site_named(model, "resid_out", 2, &tap.x);
    if (!s) desc.d_in = lm_site_width(model, tap.y = tap.x);
    if (!s) s = dlrn_dictionary_create(ctx, &desc, &dict);
    if (!s) s = dlrn_tensor_alloc(ctx, 2, lm_config_of(model)->vocab, &logits);
    if (!s) s = show(&ids, logits.data, logits.cols);
    if (s) fprintf(stderr, "%s\n", dlrn_error(ctx));
    dlrn_free(ctx, logits.data);
    bpe_ids_free(&ids);
    dlrn_dictionary_destroy(dict);
    lm_destroy_tokenizer(tok);
    lm_destroy(model);
    dlrn_context_destroy(ctx);
    return s != DLRN_OK;
}
