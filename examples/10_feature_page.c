/* 10_feature_page.c - write a page that shows what the features of a dictionary fire on.

       cc -O2 -fopenmp -I. examples/10_feature_page.c -o feature_page -lm
       ./feature_page [MODEL TEXT LAYER DICT]

   MODEL is a Hugging Face folder of a GPT-NeoX model, or with llama.cpp a GGUF file; TEXT has
   documents (JSON lines, plain text, ...); DICT is a dictionary of the residual stream after
   LAYER. Without arguments the program samples a text from examples/data/tiny-neox, trains a small
   dictionary on it, and looks at that. Open features.html in a browser. */
#include <stdio.h>
#include <stdlib.h>
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#define LM_IMPLEMENTATION
#include "lm/lm.h"
#define LOOK_IMPLEMENTATION
#include "look/look.h"

enum { SHOWN = 200, ROWS = 65536 };
static dlrn_context *ctx;
static look_about about;
static const lm_reading how = {.ctx_len = 128};

/* A sampled document, as a paragraph of plain text. */
static dlrn_status write_paragraph(void *user, int64_t document, const int32_t *id, int64_t n) {
    bpe_text text = {0};
    (void)document;
    dlrn_status s = lm_decode(about.tok, id, n, &text);
    if (!s) s = dlrn_file_append(user, text.bytes, (size_t)text.count);
    if (!s) s = dlrn_file_append(user, "\n\n", 2);
    bpe_text_free(&text);
    return s;
}

static dlrn_status sample_text(const char *path) {
    const lm_config *cfg = lm_config_of(about.model);
    lm_sampling sampling = {.documents = 200, .tokens = 100, .temperature = 1, .stop = cfg->eos};
    dlrn_writer *w = NULL;
    sampling.prompt = &cfg->bos, sampling.prompt_len = 1, sampling.tokens_of = about.tok;
    dlrn_status s = dlrn_file_create(ctx, path, &w);
    if (!s) s = lm_generate(about.model, &sampling, write_paragraph, w);
    if (!s) return dlrn_writer_close(w);
    if (w) dlrn_writer_abort(w);
    return s;
}

static dlrn_status train(doc_reader *docs, dlrn_dictionary **dict) {
    dlrn_source rows;
    dlrn_train_config cfg = dlrn_train_defaults("dl-top_k");
    cfg.features = 512, cfg.k = 8, cfg.lr = 2e-3, cfg.warmup_steps = 5;
    cfg.buffer.capacity = 8192, cfg.buffer.batch_rows = 256;
    dlrn_status s = lm_text_source(about.model, about.tok, docs, &how, about.tap, &rows);
    if (!s) s = dlrn_train(ctx, &cfg, &rows, NULL, NULL, dict);
    dlrn_source_destroy(&rows);
    return s;
}

int main(int argc, char **argv) {
    const int given = argc == 5;
    const char *model = given ? argv[1] : "examples/data/tiny-neox";
    const char *text = given ? argv[2] : "sampled.txt";
    dlrn_dictionary *dict = NULL;
    dlrn_survey *survey = NULL;
    doc_reader *docs = NULL;
    int64_t list[SHOWN], n = 0;

    dlrn_status s = dlrn_context_create(NULL, &ctx);
    about.model_name = model, about.text_name = text, about.site = "resid_out";
    about.layer = given ? atoi(argv[3]) : 2, about.ctx_len = how.ctx_len;
    about.dict_name = given ? argv[4] : "a small dictionary";
    if (!s) s = lm_load(ctx, model, &about.model);
    if (!s) s = lm_load_tokenizer(ctx, model, &about.tok);
    if (!s) s = lm_site_named(about.model, about.site, about.layer, &about.tap.x);
    about.tap.y = about.tap.x;
    if (!s && !given) s = sample_text(text);
    if (!s) s = doc_open(ctx, text, &docs);
    if (!s) s = given ? dlrn_load(ctx, argv[4], NULL, &dict) : train(docs, &dict);
    if (!s) s = doc_seek(docs, 0);

    const dlrn_survey_config cfg = look_survey_defaults(0, 0);
    about.dict = dict;
    if (!s) s = dlrn_survey_create(dict, &cfg, &survey);
    if (!s) s = look_sweep(&about, docs, &how, ROWS, NULL, NULL, survey);
    if (!s) n = look_choose(dict, survey, SHOWN, list);
    if (n < 0) s = DLRN_ERR_MEMORY;
    if (!s)
        s = look_write_page(&about, survey, list, n, "examples/program/page.html", "features.html");
    if (!s) printf("features.html: %d features, %s\n", (int)n, dict->family);
    if (s) fprintf(stderr, "%s\n", dlrn_error(ctx));

    dlrn_survey_destroy(survey);
    dlrn_dictionary_destroy(dict);
    doc_close(docs);
    lm_destroy_tokenizer(about.tok);
    lm_destroy(about.model);
    dlrn_context_destroy(ctx);
    return s != DLRN_OK;
}
