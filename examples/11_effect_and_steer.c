/* 11_effect_and_steer.c - what a feature does: to the next token, and to the text that follows.

       cc -O2 -fopenmp -I. examples/11_effect_and_steer.c -o effect_and_steer -lm
       ./effect_and_steer [MODEL]

   Takes the strongest feature of a text's last token in a model (by default
   examples/data/tiny-neox), and shows which next tokens it makes likely, by removing it; then
   samples texts with its atom added at every token. What the dictionary does not explain stays. Its
   atoms are random here: dlrn_load opens a trained one. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#define LM_IMPLEMENTATION
#include "lm/lm.h"

static dlrn_context *ctx;
static lm_model *model;
static lm_tokenizer *tok;
static dlrn_dictionary *dict;

typedef struct edit {
    int32_t feature; /* -1: finds the strongest of the last row, and changes nothing */
    float add;       /* to its value: minus the value removes it                     */
    int everywhere;  /* 0: at the last row alone                                     */
} edit;

/* The model's rows x [n] reach the site; y is what the model goes on with. */
static dlrn_status change(void *user, int tap, const float *x, float *y, int64_t n) {
    edit *e = user;
    const int64_t d = dict->d_in, first = e->everywhere ? 0 : n - 1;
    const float *atom = dict->param[DLRN_DECODER] + (e->feature > 0 ? e->feature : 0) * d;
    dlrn_sparse codes = {0};
    (void)tap;
    for (int64_t i = first * d; e->feature >= 0 && i < n * d; i++) y[i] += e->add * atom[i % d];
    if (e->feature >= 0) return DLRN_OK;
    dlrn_status s = dlrn_encode_sparse(dict, x + first * d, 1, &codes);
    for (int64_t p = 0; s == DLRN_OK && p < codes.row_ptr[1]; p++)
        if (-codes.val[p] < e->add) e->add = -codes.val[p], e->feature = codes.col[p];
    dlrn_sparse_free(&codes);
    return s;
}

/* log p of the token that follows the text, with the edit. */
static dlrn_status log_p(const lm_batch *text, const lm_tap *tap, edit *e, dlrn_tensor out) {
    double sum = 0;
    dlrn_status s = lm_run(model, text, tap, 1, change, e, 1);
    if (s == DLRN_OK) s = lm_logits(model, text->start[1] - 1, 1, out.data);
    for (int64_t i = 0; i < out.cols && s == DLRN_OK; i++) sum += exp((double)out.data[i]);
    for (int64_t i = 0; i < out.cols && s == DLRN_OK; i++) out.data[i] -= (float)log(sum);
    return s;
}

static dlrn_status print(void *user, int64_t document, const int32_t *id, int64_t n) {
    bpe_text text = {0};
    dlrn_status s = document ? DLRN_OK : lm_decode(tok, id, n, &text);
    for (int64_t i = 0; i < text.count; i++) /* a terminal would obey these */
        if ((unsigned char)text.bytes[i] < 32) text.bytes[i] = ' ';
    if (s == DLRN_OK) printf("  %+5.1f %s\n", (double)((edit *)user)->add, text.bytes);
    bpe_text_free(&text);
    return s;
}

static dlrn_status show(const lm_tap *tap, bpe_ids *ids, dlrn_tensor with, dlrn_tensor without) {
    const int64_t start[2] = {0, ids->count};
    const lm_batch text = {ids->id, start, 1};
    edit e = {-1, 0, 0};
    int64_t bytes, best[3] = {0};
    dlrn_status s = log_p(&text, tap, &e, with);
    if (s == DLRN_OK) s = log_p(&text, tap, &e, without);
    for (int64_t i = 0; i < with.cols && s == DLRN_OK; i++) with.data[i] -= without.data[i];
    if (s == DLRN_OK) s = dlrn_topk(ctx, with.data, with.cols, 3, best, NULL);
    printf("feature %d, active with %.3f, makes likely:\n", (int)e.feature, -(double)e.add);
    for (int i = 0; i < 3; i++)
        printf("  %+.3f '%s'\n", (double)with.data[best[i]],
               lm_token_bytes(tok, (int32_t)best[i], &bytes));
    puts("added at every token:");
    lm_sampling how = {1, 12, 0, 0, 0, ids->id, ids->count, -1, NULL, tap, 1, change, &e};
    for (e.add = 0, e.everywhere = 1; e.add < 50 && s == DLRN_OK; e.add += 20)
        s = lm_generate(model, &how, print, &e);
    return s;
}

int main(int argc, char **argv) {
    const char *path = argc > 1 ? argv[1] : "examples/data/tiny-neox";
    dlrn_dictionary_desc desc = {.features = 1024, .seed = 1};
    dlrn_tensor logits = {0};
    lm_tap tap = {0};
    bpe_ids ids = {0};
    dlrn_status s = dlrn_context_create(NULL, &ctx);
    if (s == DLRN_OK) s = lm_load(ctx, path, &model);
    if (s == DLRN_OK) s = lm_load_tokenizer(ctx, path, &tok);
    if (s == DLRN_OK) s = lm_encode(tok, "The river ran", 13, &ids);
    if (s == DLRN_OK) s = lm_site_named(model, "resid_out", 2, &tap.x);
    if (s == DLRN_OK) desc.d_in = lm_site_width(model, tap.y = tap.x);
    if (s == DLRN_OK) s = dlrn_dictionary_create(ctx, &desc, &dict);
    const int64_t v = s == DLRN_OK ? lm_config_of(model)->vocab : 0;
    if (s == DLRN_OK) s = dlrn_tensor_alloc(ctx, 2, v, &logits);
    if (s == DLRN_OK)
        s = show(&tap, &ids, dlrn_view(logits.data, 1, v, v), dlrn_view(logits.data + v, 1, v, v));
    if (s != DLRN_OK) fprintf(stderr, "%s\n", dlrn_error(ctx));
    dlrn_free(ctx, logits.data);
    bpe_ids_free(&ids);
    dlrn_dictionary_destroy(dict);
    lm_destroy_tokenizer(tok);
    lm_destroy(model);
    dlrn_context_destroy(ctx);
    return s != DLRN_OK;
}
