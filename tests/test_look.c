/* What examples/look/look.h makes of a survey and of weights, against plain loops: the sweep's
   rows, the choice of features, logit effects, coordinates, the texts and packed examples of a
   page. */
#define _POSIX_C_SOURCE 200809L
#include "dictlearn.h"

#define LM_IMPLEMENTATION
#include "lm/lm.h"
#define LOOK_IMPLEMENTATION
#include "look/look.h"
#include "tests/test.h"

#define MODEL "examples/data/tiny-neox"
#define DIR_OF_LOOKS "build/tmp/look"
#define CHECK_SAME_TEXT(expected, found)                                                           \
    CHECK_MSG(!strcmp(expected, found), "expected %s, found %s", expected, found)
enum { D = 128, V = 2048, F = 96, CTX = 64 };

static dlrn_context *ctx;
static look_about about;
static dlrn_dictionary *dict;
static int64_t left_out;
static const lm_reading how = {CTX, 0, 0, NULL, {2, NULL, 0, &left_out}};

/* A text of short documents, and a dictionary of its first MLP. */
static void open_all(void) {
    if (dict) return;
    (void)mkdir(DIR_OF_LOOKS, 0777);
    CHECK(dlrn_context_create(NULL, &ctx) == DLRN_OK);
    CHECK_OK(ctx, lm_load(ctx, MODEL, &about.model));
    CHECK_OK(ctx, lm_load_tokenizer(ctx, MODEL, &about.tok));
    CHECK_OK(ctx, lm_site_named(about.model, "mlp_out", 1, &about.tap.x));
    CHECK_OK(ctx, new_autoencoder(ctx, D, F, 7, &dict));
    about.tap.y = about.tap.x, about.dict = dict;
    about.model_name = "tiny", about.dict_name = "new", about.site = "mlp_out";
    about.text_name = "text", about.layer = 1, about.ctx_len = CTX;
    FILE *f = fopen(DIR_OF_LOOKS "/text.txt", "w");
    CHECK(f);
    for (int i = 0; i < 120 * 6; i++)
        fprintf(f, "The cat number %d sat on mat %d, and said <no> to it.%s", i * 7, i % 5,
                i % 6 < 5 ? " " : "\n\n");
    CHECK(fclose(f) == 0);
}

/* A survey of the text's first rows. */
static dlrn_survey *sweep(int64_t rows, int whole) {
    const dlrn_survey_config cfg = look_survey_defaults(whole, 0);
    dlrn_survey *survey = NULL;
    doc_reader *docs = NULL;
    left_out = 0;
    CHECK_OK(ctx, doc_open(ctx, DIR_OF_LOOKS "/text.txt", &docs));
    CHECK_OK(ctx, dlrn_survey_create(dict, &cfg, &survey));
    CHECK_OK(ctx, look_sweep(&about, docs, &how, rows, NULL, NULL, survey));
    doc_close(docs);
    return survey;
}

/* Rows end where they should, within a context too, and those left out are counted. */
TEST(sweeps_add_the_rows_that_are_wanted) {
    open_all();
    dlrn_survey *few = sweep(CTX + 5, 0), *all = sweep(INT64_MAX, 0);
    dlrn_survey_info info = dlrn_survey_describe(few);
    CHECK(info.rows == CTX + 5);
    info = dlrn_survey_describe(all);
    CHECK(info.contexts == 120 && info.rows > 120 * 40 && info.rows <= 120 * CTX);
    CHECK(left_out == 2 * 120 && info.counted == info.rows - left_out);
    dlrn_survey_destroy(few);
    dlrn_survey_destroy(all);
}

TEST(a_text_without_documents_is_an_error) {
    open_all();
    const dlrn_survey_config cfg = look_survey_defaults(0, 0);
    dlrn_survey *survey = NULL;
    doc_reader *docs = NULL;
    FILE *f = fopen(DIR_OF_LOOKS "/none.txt", "w");
    CHECK(f && fclose(f) == 0);
    CHECK_OK(ctx, doc_open(ctx, DIR_OF_LOOKS "/none.txt", &docs));
    CHECK_OK(ctx, dlrn_survey_create(dict, &cfg, &survey));
    CHECK(look_sweep(&about, docs, &how, 10, NULL, NULL, survey) == DLRN_ERR_VALUE);
    doc_close(docs);
    dlrn_survey_destroy(survey);
}

/* Rare features come first, each group by its maximum. */
TEST(features_are_chosen_by_how_often_they_fire) {
    open_all();
    dlrn_survey *survey = sweep(INT64_MAX, 0);
    const dlrn_survey_info info = dlrn_survey_describe(survey);
    int64_t list[F];
    const int64_t n = look_choose(dict, survey, F, list);
    CHECK(n > 0 && n <= F);
    for (int64_t i = 0; i < n; i++) {
        const dlrn_feature_totals *t = &info.totals[list[i]],
                                  *u = &info.totals[list[i ? i - 1 : 0]];
        const double share = (double)t->fired / (double)info.counted;
        const double before = (double)u->fired / (double)info.counted;
        const int rare = share >= 1e-3 && share <= 0.05, was = before >= 1e-3 && before <= 0.05;
        CHECK(t->fired > 0 && was >= rare && (was != rare || u->max >= t->max));
    }
    CHECK(look_choose(dict, survey, 3, list) == 3);
    dlrn_survey_destroy(survey);
}

/* Effects, their ten largest and smallest, their histogram; coordinates; norms. */
TEST(weights_are_those_of_plain_loops) {
    open_all();
    const int64_t list[3] = {5, 90, 6};
    look_weights *w = NULL;
    static float logits[V];
    CHECK_OK(ctx, look_weights_of(&about, list, 3, &w));
    for (int i = 0; i < 3; i++) {
        const float *atom = dict->param[DLRN_DECODER] + list[i] * D;
        int64_t more = 0, fewer = 0, total = 0;
        double sum = 0, square = 0;
        CHECK_OK(ctx, lm_direct_logits(about.model, atom, 1, 0, logits));
        for (int64_t t = 0; t < V; t++) {
            more += logits[t] > w[i].up[9].value;
            fewer += logits[t] < w[i].down[9].value;
        }
        CHECK(w[i].logits == 10 && more == 9 && fewer == 9);
        for (int k = 0; k < 10; k++) {
            CHECK_CLOSE(logits[w[i].up[k].index], w[i].up[k].value, 1e-6);
            CHECK_CLOSE(logits[w[i].down[k].index], w[i].down[k].value, 1e-6);
            CHECK(!k || w[i].up[k].value <= w[i].up[k - 1].value);
            CHECK(!k || w[i].down[k].value >= w[i].down[k - 1].value);
        }
        CHECK(w[i].high == w[i].up[0].value && w[i].low == w[i].down[0].value);
        for (int k = 0; k < LOOK_BINS; k++) total += w[i].histogram[k];
        CHECK(total == V && w[i].histogram[0] > 0 && w[i].histogram[LOOK_BINS - 1] > 0);
        for (int64_t j = 0; j < D; j++) {
            sum += fabs((double)atom[j]), square += (double)atom[j] * (double)atom[j];
            CHECK(atom[j] <= w[i].align[0].value);
        }
        CHECK_CLOSE(w[i].norm, sqrt(square), 1e-9);
        CHECK(w[i].align[0].value == atom[w[i].align[0].index]);
        CHECK(w[i].align[1].value <= w[i].align[0].value);
        CHECK_CLOSE(w[i].align[0].share, fabs((double)w[i].align[0].value) / sum, 1e-9);
        CHECK(w[i].nearest_count == LOOK_NEAR && w[i].nearest_in_count == 0);
    }
    dlrn_free(ctx, w);
}

/* What a look_out has written. */
static char written[4096];
static void read_back(const char *path) {
    char *bytes = NULL;
    size_t size = 0;
    CHECK_OK(ctx, dlrn_file_read(ctx, path, &bytes, &size));
    CHECK(size < sizeof written);
    memcpy(written, bytes, size + 1);
    dlrn_free(ctx, bytes);
}

/* Nothing in a token can end a script, turn text around or reach a terminal's controls. */
TEST(texts_are_escaped) {
    open_all();
    static const char hostile[] =
        "</script>\"\\\n\0\x1b\xE2\x80\xAE\xE2\x81\xA6\xE2\x80\xA8\xEF\xBB"
        "\xBF\xC2\x9B\xE2\x80 ok \xF0\x9F\x98\x80";
    dlrn_writer *w = NULL;
    CHECK_OK(ctx, dlrn_file_create(ctx, DIR_OF_LOOKS "/text.json", &w));
    look_out *o = look_begin(ctx, w);
    CHECK(o);
    look_open(o, NULL, '[');
    look_bytes(o, NULL, hostile, (int64_t)sizeof hostile - 1);
    o->digits = 0;
    look_real(o, NULL, -0.0001);
    look_real(o, NULL, NAN);
    look_close(o, ']');
    look_flush(o);
    CHECK_OK(ctx, o->status);
    dlrn_free(ctx, o);
    CHECK_OK(ctx, dlrn_writer_close(w));
    read_back(DIR_OF_LOOKS "/text.json");
    CHECK_SAME_TEXT(
        "[\"\\u003c/script>\\\"\\\\\\u000a\\u0000\\u001b\\u202e\\u2066\\u2028\\ufeff\\u009b"
        "\xEF\xBF\xBD\xEF\xBF\xBD ok \xF0\x9F\x98\x80\",0.000,null]",
        written);
}

TEST(base64_is_that_of_the_rfc) {
    static const char *const expected[] = {"",         "Zg==",     "Zm8=",    "Zm9v",
                                           "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"};
    open_all();
    for (int n = 0; n <= 6; n++) {
        dlrn_writer *w = NULL;
        CHECK_OK(ctx, dlrn_file_create(ctx, DIR_OF_LOOKS "/base64", &w));
        look_out *o = look_begin(ctx, w);
        CHECK(o);
        look_base64 b = {o, {0}, 0};
        look_encode(&b, "foobar", (size_t)n);
        look_encode_end(&b);
        look_flush(o);
        dlrn_free(ctx, o);
        CHECK_OK(ctx, dlrn_writer_close(w));
        read_back(DIR_OF_LOOKS "/base64");
        CHECK_SAME_TEXT(expected[n], written);
    }
}

/* 0 stays what does not fire; all else is at least 1. */
TEST(shades_keep_zero_apart) {
    CHECK(look_shade(0, 2) == 0 && look_shade(-1, 2) == 0 && look_shade(1e-9f, 2) == 1);
    CHECK(look_shade(2, 2) == 255 && look_shade(1, 2) == 128 && look_shade(3, 2) == 255);
}

TEST(a_template_has_one_place_for_data) {
    CHECK(look_template("<a>@DATA@</a>", 13) == 3);
    CHECK(look_template("<a>@DATA@</a><b>@DATA@</b>", 26) == -1);
    CHECK(look_template("<a>none</a>", 11) == -1 && look_template("", 0) == -1);
}

/* A page in memory. */
static char *page_of(dlrn_survey *survey, const int64_t *list, int64_t n, size_t *size) {
    char *bytes = NULL;
    FILE *f = fopen(DIR_OF_LOOKS "/template.html", "w");
    CHECK(f && fputs("<x>@DATA@</x>\n", f) >= 0 && fclose(f) == 0);
    CHECK_OK(ctx, look_write_page(&about, survey, list, n, DIR_OF_LOOKS "/template.html",
                                  DIR_OF_LOOKS "/page.html"));
    CHECK_OK(ctx, dlrn_file_read(ctx, DIR_OF_LOOKS "/page.html", &bytes, size));
    return bytes;
}

/* Windows that the survey gives too wide are cut; the page is the same as from narrow ones. */
TEST(pages_cut_their_windows) {
    open_all();
    dlrn_survey *narrow = sweep(700, 0), *whole = sweep(700, 1);
    int64_t list[F];
    size_t size[2];
    const int64_t n = look_choose(dict, narrow, 20, list);
    char *one = page_of(narrow, list, n, &size[0]), *two = page_of(whole, list, n, &size[1]);
    CHECK(size[0] == size[1] && !memcmp(one, two, size[0]));
    dlrn_json *data = NULL;
    CHECK(!memcmp(one, "<x>", 3) && !memcmp(one + size[0] - 5, "</x>\n", 5));
    CHECK_OK(ctx, dlrn_json_parse(ctx, one + 3, size[0] - 8, "page", &data));
    const dlrn_json *features = dlrn_json_get(data, "features");
    CHECK(features && features->count == n);
    CHECK(dlrn_json_number(features->first, "i", -1) == (double)list[0]);
    CHECK(dlrn_json_get(features->first, "logits.hist")->count == LOOK_BINS);
    dlrn_free(ctx, data);
    dlrn_free(ctx, one);
    dlrn_free(ctx, two);
    dlrn_survey_destroy(narrow);
    dlrn_survey_destroy(whole);
}

/* Atoms of length 1, the same function. */
TEST(folded_norms_keep_the_function) {
    open_all();
    dlrn_dictionary *folded = NULL;
    static float x[4 * D], y[4 * D], z[4 * D];
    dlrn_rng rng = {3, 0, 0};
    CHECK_OK(ctx, new_autoencoder(ctx, D, F, 7, &folded));
    for (int i = 0; i < F * D; i++) folded->param[DLRN_DECODER][i] *= 1 + (float)(i / D % 5);
    for (int i = 0; i < 4 * D; i++) x[i] = dlrn_rng_normal(&rng);
    dlrn_dictionary_changed(folded);
    CHECK_OK(ctx, dlrn_forward(folded, x, 4, y, NULL));
    CHECK(look_fold_norms(folded) == 1);
    CHECK_OK(ctx, dlrn_forward(folded, x, 4, z, NULL));
    for (int i = 0; i < 4 * D; i++) CHECK_CLOSE(y[i], z[i], 1e-4);
    for (int i = 0; i < F; i++)
        CHECK_CLOSE(lm_row_norm(folded->param[DLRN_DECODER] + i * D, D), 1, 1e-5);
    folded->formula.select = DLRN_SELECT_TOP_K;
    CHECK(look_fold_norms(folded) == 0);
    dlrn_dictionary_destroy(folded);
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    RUN(sweeps_add_the_rows_that_are_wanted);
    RUN(a_text_without_documents_is_an_error);
    RUN(features_are_chosen_by_how_often_they_fire);
    RUN(weights_are_those_of_plain_loops);
    RUN(texts_are_escaped);
    RUN(base64_is_that_of_the_rfc);
    RUN(shades_keep_zero_apart);
    RUN(a_template_has_one_place_for_data);
    RUN(pages_cut_their_windows);
    RUN(folded_norms_keep_the_function);
    lm_destroy_tokenizer(about.tok);
    lm_destroy(about.model);
    dlrn_dictionary_destroy(dict);
    dlrn_context_destroy(ctx);
    return TEST_END();
}
