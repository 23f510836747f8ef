/* The model runner against what HF transformers computed for tiny-neox
   (tests/golden/tiny_neox_expected.npz), its sources and its sampling. */
#define _POSIX_C_SOURCE 200809L
#include "dictlearn.h"

#define LM_IMPLEMENTATION
#include "lm/lm.h"
#include "tests/bytes.h"
#include "tests/starve.h"

#include <unistd.h>

#define MODEL "examples/data/tiny-neox"
#define GOLDEN "tests/golden/tiny_neox_expected.npz"
enum { D = 128, V = 2048, LAYERS = 6, MOST = 64 };

static lm_model *model;
static dlrn_archive *golden;

/* What the engine keeps of a model. */
static hf_model *hf_of(lm_model *m) {
    return (hf_model *)m;
}

static void open_all(void) {
    if (!ctx) CHECK(dlrn_context_create(NULL, &ctx) == DLRN_OK);
    if (!model) CHECK_OK(ctx, lm_load(ctx, MODEL, &model));
    if (!golden) CHECK_OK(ctx, dlrn_archive_open(ctx, GOLDEN, &golden));
}

static int64_t golden_read(const char *name, float *dst, int64_t room) {
    int64_t i = dlrn_archive_find(golden, name);
    CHECK_MSG(i >= 0, "%s: not in the golden file", name);
    int64_t n = dlrn_archive_tensor(golden, i)->numel;
    CHECK(n <= room);
    CHECK_OK(ctx, dlrn_archive_read(golden, i, 0, -1, dst));
    return n;
}

/* Token ids of text `which`. */
static int64_t golden_ids(int which, int32_t *id) {
    int64_t wide[MOST];
    char name[32];
    snprintf(name, sizeof name, "ids_%d", which);
    int64_t i = dlrn_archive_find(golden, name), n = dlrn_archive_tensor(golden, i)->numel;
    CHECK(i >= 0 && n <= MOST);
    CHECK_OK(ctx, dlrni_archive_read_i64(golden, i, wide));
    for (int64_t k = 0; k < n; k++) id[k] = (int32_t)wide[k];
    return n;
}

/* Both texts in one batch. */
static int32_t both_id[2 * MOST];
static int64_t both_start[3];
static lm_batch both(void) {
    both_start[1] = golden_ids(0, both_id);
    both_start[2] = both_start[1] + golden_ids(1, both_id + both_start[1]);
    lm_batch b = {both_id, both_start, 2};
    return b;
}

TEST(logits) {
    static float got[2 * MOST * V], want[MOST * V];
    open_all();
    lm_batch b = both();
    CHECK_OK(ctx, lm_run(model, &b, NULL, 0, NULL, NULL, 1));
    for (int which = 0; which < 2; which++) {
        char name[32];
        snprintf(name, sizeof name, "logits_%d", which);
        int64_t n = golden_read(name, want, MOST * V), rows = n / V;
        CHECK(rows == both_start[which + 1] - both_start[which]);
        CHECK_OK(ctx, lm_logits(model, both_start[which], rows, got));
        double far = apart(got, want, n);
        printf("     logits of text %d: largest difference %.2g of the largest logit\n", which,
               far);
        CHECK_MSG(far < 1e-5, "text %d: %g", which, far);
    }
    CHECK_OK(ctx, lm_run(model, &b, NULL, 0, NULL, NULL, 0));
    CHECK_STATUS(lm_logits(model, 0, 1, got), DLRN_ERR_ARGUMENT);
}

static float stream[2][D], changed[D];
static dlrn_status change_stream(void *user, int tap, const float *x, float *y, int64_t n) {
    (void)tap, (void)x;
    CHECK(n == 2);
    memcpy(stream, y, sizeof stream);
    for (int j = 0; user && j < D; j++) y[j] += changed[j];
    return DLRN_OK;
}

/* Logits are direct logits over the length of the stream, and what is the same for all rows. An
   engine's own words for what a change of the stream does: with the length of the changed stream,
   the change of the logits. */
TEST(direct_logits) {
    static float logits[2][V], direct[2][V], plain[V], want[V], weighed[D];
    static const int64_t start[2] = {0, 2};
    int32_t id[MOST];
    double length[2], mean = 0;
    lm_tap tap;
    open_all();
    golden_ids(0, id);
    const lm_batch b = {id, start, 1};
    CHECK(!strcmp(lm_final_norm(model), "LayerNorm"));
    CHECK_OK(ctx, lm_site_named(model, "resid_out", LAYERS - 1, &tap.x));
    tap.y = tap.x;
    CHECK_OK(ctx, lm_run(model, &b, &tap, 1, change_stream, NULL, 1));
    CHECK_OK(ctx, lm_logits(model, 0, 2, logits[0]));
    CHECK_OK(ctx, lm_direct_logits(model, stream[0], 2, 0, direct[0]));
    CHECK_OK(ctx, lm_final_length(model, stream[0], 2, length));
    for (int k = 0; k < V; k++) {
        want[k] = logits[1][k] - logits[0][k];
        plain[k] = (float)((double)direct[1][k] / length[1] - (double)direct[0][k] / length[0]);
    }
    CHECK_MSG(apart(plain, want, V) < 1e-5, "%g", apart(plain, want, V));
    /* by the unembedding alone, with the norm's work done by hand */
    for (int j = 0; j < D; j++) mean += (double)stream[0][j] / D;
    for (int j = 0; j < D; j++)
        weighed[j] = (float)((double)stream[0][j] - mean) * hf_of(model)->part[HF_LAST_NORM][j];
    CHECK_OK(ctx, lm_direct_logits(model, weighed, 1, 1, plain));
    CHECK_MSG(apart(plain, direct[0], V) < 1e-5, "%g", apart(plain, direct[0], V));
    /* additive, but for the length */
    for (int j = 0; j < D; j++) changed[j] = (float)(j % 7) - 3;
    CHECK_OK(ctx, lm_run(model, &b, &tap, 1, change_stream, changed, 1));
    CHECK_OK(ctx, lm_logits(model, 0, 1, logits[1]));
    CHECK_OK(ctx, lm_direct_logits(model, changed, 1, 0, plain));
    for (int j = 0; j < D; j++) stream[0][j] += changed[j];
    CHECK_OK(ctx, lm_final_length(model, stream[0], 1, length + 1));
    for (int k = 0; k < V; k++) {
        const double moved = ((double)direct[0][k] + (double)plain[k]) / length[1];
        want[k] = logits[1][k] - logits[0][k];
        direct[1][k] = (float)(moved - (double)direct[0][k] / length[0]);
    }
    CHECK_MSG(apart(direct[1], want, V) < 1e-5, "%g", apart(direct[1], want, V));
    CHECK_OK(ctx, lm_direct_logits(model, NULL, 0, 0, NULL));
}

static float seen[MOST * D];
static dlrn_status keep(void *user, int tap, const float *x, float *y, int64_t n) {
    (void)user, (void)tap;
    CHECK(x == y && n <= MOST);
    memcpy(seen, x, (size_t)(n * D) * sizeof *x);
    return DLRN_OK;
}

TEST(every_site_of_every_layer) {
    static const char *const names[] = {"embed", "attn_out", "mlp_in", "mlp_out", "resid_out"};
    static float want[MOST * D];
    int32_t id[MOST];
    double worst = 0;
    open_all();
    int64_t start[2] = {0, golden_ids(0, id)};
    lm_batch b = {id, start, 1};
    for (int k = 0; k < 5; k++)
        for (int l = 0; l < (k ? LAYERS : 1); l++) {
            char name[32];
            lm_tap tap;
            snprintf(name, sizeof name, k ? "%s_%d" : "%s", names[k], l);
            CHECK_OK(ctx, lm_site_named(model, names[k], l, &tap.x));
            CHECK_OK(ctx, lm_tap_at(model, tap.x, LM_IO_OUT, &tap));
            memset(seen, 0, sizeof seen);
            CHECK_OK(ctx, lm_run(model, &b, &tap, 1, keep, NULL, 0));
            int64_t n = golden_read(name, want, MOST * D);
            double far = apart(seen, want, n);
            worst = fmax(worst, far);
            CHECK_MSG(far < 1e-5, "%s: %g", name, far);
        }
    printf("     26 sites: largest difference %.2g of the site's largest value\n", worst);
}

static dlrn_status to_zero(void *user, int site, const float *x, float *out, int64_t n) {
    (void)user, (void)site, (void)x;
    memset(out, 0, (size_t)(n * D) * sizeof *out);
    return DLRN_OK;
}

static const lm_choice *left_as_they_are; /* rows that an edit leaves alone */

/* Cross-entropy of one text with one site set to zero (NULL: as it is). */
static double cross_entropy(int which, const char *site, int layer) {
    int32_t id[MOST];
    int64_t start[2] = {0, golden_ids(which, id)}, tokens = 0;
    lm_documents texts = {id, start, 1, 0, 0, NULL};
    lm_tap tap;
    memset(&tap, 0, sizeof tap);
    if (site) CHECK_OK(ctx, lm_site_named(model, site, layer, &tap.x));
    tap.y = tap.x;
    lm_judge judge = {model, &texts, &tap, 1, left_as_they_are};
    dlrn_language_model lm;
    dlrn_edit zero = {to_zero, NULL};
    double nats = 0;
    lm_language_model(&judge, &lm);
    CHECK_OK(ctx, lm.cross_entropy(lm.user, site ? &zero : NULL, &nats, &tokens));
    CHECK(tokens == start[1] - 1);
    return nats;
}

TEST(cross_entropy_under_interventions) {
    static const struct {
        const char *name, *site;
        int layer;
    } cases[] = {{"cross_entropy", NULL, 0},
                 {"cross_entropy_zero_mlp_out_0", "mlp_out", 0},
                 {"cross_entropy_zero_resid_out_3", "resid_out", 3},
                 {"cross_entropy_zero_attn_out_2", "attn_out", 2},
                 {"cross_entropy_zero_embed", "embed", 0}};
    open_all();
    for (int which = 0; which < 2; which++)
        for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
            char name[64];
            float want;
            snprintf(name, sizeof name, "%s_%d", cases[c].name, which);
            golden_read(name, &want, 1);
            double got = cross_entropy(which, cases[c].site, cases[c].layer);
            CHECK_MSG(fabs(got - (double)want) < 1e-5 * fabs((double)want),
                      "%s: %.8g, expected %.8g", name, got, (double)want);
        }
}

/* A token's numbers depend on its sequence alone: the same bits in a batch of two and by itself. */
TEST(batch_does_not_matter) {
    static float alone[MOST * V], together[MOST * V];
    open_all();
    lm_batch b = both();
    CHECK_OK(ctx, lm_run(model, &b, NULL, 0, NULL, NULL, 1));
    int64_t rows = both_start[2] - both_start[1];
    CHECK_OK(ctx, lm_logits(model, both_start[1], rows, together));
    lm_batch second = {both_id, both_start + 1, 1};
    CHECK_OK(ctx, lm_run(model, &second, NULL, 0, NULL, NULL, 1));
    CHECK_OK(ctx, lm_logits(model, 0, rows, alone));
    CHECK(!memcmp(alone, together, (size_t)(rows * V) * sizeof *alone));
}

static dlrn_status into_y(void *user, int tap, const float *x, float *y, int64_t n) {
    float **to = (float **)user;
    (void)tap;
    memcpy(to[0], x, (size_t)(n * D) * sizeof *x);
    memcpy(to[1], y, (size_t)(n * D) * sizeof *x);
    return DLRN_OK;
}

TEST(taps_in_and_in_to_out) {
    static float x[MOST * D], y[MOST * D], want[MOST * D];
    float *to[2] = {x, y};
    int32_t id[MOST];
    lm_site site;
    lm_tap tap;
    open_all();
    int64_t start[2] = {0, golden_ids(0, id)};
    lm_batch b = {id, start, 1};
    CHECK_OK(ctx, lm_site_named(model, "mlp_out", 2, &site));
    CHECK_OK(ctx, lm_tap_at(model, site, LM_IO_IN_TO_OUT, &tap));
    CHECK_OK(ctx, lm_run(model, &b, &tap, 1, into_y, to, 0));
    int64_t n = golden_read("mlp_in_2", want, MOST * D);
    CHECK(apart(x, want, n) < 1e-5);
    golden_read("mlp_out_2", want, MOST * D);
    CHECK(apart(y, want, n) < 1e-5);
    CHECK_OK(ctx, lm_site_named(model, "resid_out", 2, &site));
    CHECK_OK(ctx, lm_tap_at(model, site, LM_IO_IN, &tap));
    CHECK_OK(ctx, lm_run(model, &b, &tap, 1, into_y, to, 0));
    golden_read("resid_out_1", want, MOST * D);
    CHECK(apart(x, want, n) < 1e-5);
    CHECK_OK(ctx, lm_site_named(model, "embed", 0, &site));
    CHECK_STATUS(lm_tap_at(model, site, LM_IO_IN, &tap), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "only --io out is possible");
    CHECK_STATUS(lm_site_named(model, "mlp_out", 6, &site), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "expected a layer from 0 to 5, found 6");
    CHECK_STATUS(lm_site_named(model, "mlp", 0, &site), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "found mlp");
}

TEST(ids_and_lengths_are_checked) {
    int32_t id[2] = {1, V};
    int64_t start[2] = {0, 2}, far[2] = {0, 513};
    static int32_t many[513];
    open_all();
    lm_batch bad = {id, start, 1}, lengthy = {many, far, 1};
    CHECK_STATUS(lm_run(model, &bad, NULL, 0, NULL, NULL, 1), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "token 1: expected an id below 2048, found 2048");
    CHECK_STATUS(lm_run(model, &lengthy, NULL, 0, NULL, NULL, 1), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "expected at most 512 tokens, found 513");
}

typedef struct drawn {
    int32_t id[8][40];
    int64_t n[8];
} drawn;

static dlrn_status collect(void *user, int64_t document, const int32_t *id, int64_t n) {
    drawn *d = (drawn *)user;
    CHECK(document < 8 && n <= 40);
    memcpy(d->id[document], id, (size_t)n * sizeof *id);
    d->n[document] = n;
    return DLRN_OK;
}

static drawn draw(int64_t documents, int64_t tokens, double temperature, int64_t top_k,
                  const int32_t *prompt, int64_t prompt_len) {
    lm_sampling how = {documents, tokens, temperature, top_k, 7,    prompt, prompt_len,
                       -1,        NULL,   NULL,        0,     NULL, NULL};
    drawn d;
    memset(&d, 0, sizeof d);
    CHECK_OK(ctx, lm_generate(model, &how, collect, &d));
    return d;
}

/* The likeliest token at each step, with the cache, is the largest logit of a whole run without it.
 */
TEST(cache_equals_whole_runs) {
    static float logits[MOST * V];
    int32_t id[MOST];
    open_all();
    int64_t n = golden_ids(0, id), start[2] = {0, n};
    drawn d = draw(2, 20, 0, 0, id, n);
    CHECK(d.n[0] == 20 && !memcmp(d.id[0], d.id[1], sizeof d.id[0]));
    memcpy(id + n, d.id[0], 20 * sizeof *id);
    start[1] = n + 20;
    lm_batch b = {id, start, 1};
    CHECK_OK(ctx, lm_run(model, &b, NULL, 0, NULL, NULL, 1));
    CHECK_OK(ctx, lm_logits(model, 0, n + 20, logits));
    for (int64_t i = n - 1; i < n + 19; i++) {
        int64_t best;
        CHECK_OK(ctx, dlrn_topk(ctx, logits + i * V, V, 1, &best, NULL));
        CHECK_MSG(best == id[i + 1], "after token %lld: drew %d, expected %lld", (long long)i,
                  (int)id[i + 1], (long long)best);
    }
}

TEST(a_document_depends_on_seed_and_number) {
    int32_t bos = 0;
    open_all();
    drawn eight = draw(8, 30, 1, 0, &bos, 1), three = draw(3, 30, 1, 0, &bos, 1),
          short_ones = draw(8, 10, 1, 0, &bos, 1);
    for (int i = 0; i < 3; i++) CHECK(!memcmp(eight.id[i], three.id[i], sizeof eight.id[i]));
    for (int i = 0; i < 8; i++) CHECK(!memcmp(eight.id[i], short_ones.id[i], 10 * sizeof(int32_t)));
    CHECK(memcmp(eight.id[0], eight.id[1], sizeof eight.id[0]));
    drawn greedy = draw(1, 30, 0, 0, &bos, 1), top = draw(1, 30, 1, 1, &bos, 1);
    CHECK(!memcmp(greedy.id[0], top.id[0], sizeof greedy.id[0])); /* the likeliest is the top 1 */
}

static void write_text(const char *path, const char *text) {
    CHECK_OK(ctx, dlrn_file_write(ctx, path, text, strlen(text)));
}

/* So cold that 1 / temperature is beyond a float, or its products are: the likeliest. So hot that
   it is 0: any of the top ones, but none else. */
TEST(temperatures_at_their_ends) {
    static const double cold[] = {1e-9, 1e-20, 1e-37, 1e-38, 1e-40, 5e-324};
    int32_t bos = 0;
    open_all();
    drawn greedy = draw(1, 30, 0, 0, &bos, 1);
    for (size_t i = 0; i < sizeof cold / sizeof *cold; i++)
        for (int top_k = 0; top_k < 4; top_k += 3) {
            drawn d = draw(1, 30, cold[i], top_k, &bos, 1);
            CHECK_MSG(!memcmp(d.id[0], greedy.id[0], sizeof d.id[0]), "temperature %g", cold[i]);
        }
    float x[5] = {-1, 3, 2, -4, 0}, copy[16];
    int64_t times[5] = {0};
    dlrn_rng rng = {5, 0, 0};
    for (int i = 0; i < 1000; i++) {
        memcpy(copy, x, sizeof x);
        times[lm_draw_from(hf_of(model)->width, copy, 5, 1e300, 0, &rng)]++;
    }
    CHECK(times[0] == 0 && times[3] == 0 && times[1] > 250 && times[2] > 250 && times[4] > 250);
}

/* What a seek passes over is counted where an error names a line; behind the end there is nothing
   to go to. */
TEST(lines_after_a_seek) {
    static const struct {
        const char *last, *error;
    } cases[] = {{"[1, 2", "seek.jsonl: line 5: "},
                 {"[1, 2]", "seek.jsonl: line 5: expected an object with a string"}};
    const char *text = NULL;
    int64_t bytes = 0;
    char all[200];
    open_all();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        doc_reader *docs = NULL;
        snprintf(all, sizeof all,
                 "{\"text\": \"one\"}\n\n{\"text\": \"two\"}\n{\"text\": \"six\"}\n%s\n",
                 cases[i].last);
        write_text(tmp_path("seek.jsonl"), all);
        CHECK_OK(ctx, doc_open(ctx, tmp_path("seek.jsonl"), &docs));
        CHECK_OK(ctx, doc_next(docs, &text, &bytes));
        CHECK_OK(ctx, doc_next(docs, &text, &bytes));
        uint64_t at = doc_position(docs), size = strlen(all);
        CHECK_OK(ctx, doc_seek(docs, 0));
        CHECK_OK(ctx, doc_seek(docs, at));
        CHECK_OK(ctx, doc_next(docs, &text, &bytes));
        CHECK(bytes == 3 && !memcmp(text, "six", 3));
        CHECK_STATUS(doc_next(docs, &text, &bytes), DLRN_ERR_FORMAT);
        CHECK_STR(dlrn_error(ctx), cases[i].error);
        CHECK_STATUS(doc_next(docs, &text, &bytes),
                     DLRN_END); /* where it was before the lines were counted */
        CHECK_OK(ctx, doc_seek(docs, size));
        CHECK_STATUS(doc_next(docs, &text, &bytes), DLRN_END);
        CHECK_STATUS(doc_seek(docs, size + 1), DLRN_ERR_IO);
        snprintf(
            all, sizeof all,
            "seek.jsonl: expected the text that was read before, to byte %d and on, found its %s",
            (int)size + 1, "end at byte");
        CHECK_STR(dlrn_error(ctx), all);
        doc_close(docs);
    }
}

/* A text without the token that each document is to begin with. */
TEST(a_bos_that_the_model_lacks) {
    lm_reading how = {12, 1, 0, NULL, {0, NULL, 0, NULL}};
    lm_documents texts;
    doc_reader *docs = NULL;
    lm_tokenizer *tok = NULL;
    open_all();
    memset(&texts, 0, sizeof texts);
    write_text(tmp_path("bos.txt"), "The cat sat.\n");
    CHECK_OK(ctx, lm_load_tokenizer(ctx, MODEL, &tok));
    CHECK_OK(ctx, doc_open(ctx, tmp_path("bos.txt"), &docs));
    int32_t bos = model->cfg.bos;
    model->cfg.bos = -1;
    dlrn_status s = lm_read_documents(model, tok, docs, &how, 1, &texts);
    model->cfg.bos = bos;
    doc_close(docs);
    lm_destroy_tokenizer(tok);
    lm_documents_free(&texts);
    CHECK_STATUS(s, DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "expected a model with one bos_token_id, found none");
}

/* The first token's frequencies over many documents are the softmax of its logits. */
static int64_t first_counts[V];
static dlrn_status count_first(void *user, int64_t document, const int32_t *id, int64_t n) {
    (void)user, (void)document;
    CHECK(n == 1);
    first_counts[id[0]]++;
    return DLRN_OK;
}

TEST(draws_follow_the_softmax) {
    static float logits[V];
    int32_t bos = 0;
    int64_t start[2] = {0, 1}, n = test_brief() ? 1000 : 20000, order[10];
    double total = 0;
    open_all();
    lm_batch b = {&bos, start, 1};
    CHECK_OK(ctx, lm_run(model, &b, NULL, 0, NULL, NULL, 1));
    CHECK_OK(ctx, lm_logits(model, 0, 1, logits));
    CHECK_OK(ctx, dlrn_topk(ctx, logits, V, 10, order, NULL));
    for (int64_t i = 0; i < V; i++) total += exp((double)logits[i] / 0.8);
    memset(first_counts, 0, sizeof first_counts);
    lm_sampling how = {n, 1, 0.8, 0, 3, &bos, 1, -1, NULL, NULL, 0, NULL, NULL};
    CHECK_OK(ctx, lm_generate(model, &how, count_first, NULL));
    for (int i = 0; i < 10; i++) {
        double p = exp((double)logits[order[i]] / 0.8) / total,
               sigma = sqrt(p * (1 - p) * (double)n);
        CHECK_MSG(fabs((double)first_counts[order[i]] - p * (double)n) < 5 * sigma,
                  "token %lld: %lld, expected %.0f", (long long)order[i],
                  (long long)first_counts[order[i]], p * (double)n);
    }
}

#define WORDS                                                                                      \
    "The ship went on in the night, and the wind was cold.\n\nHe said nothing of it to the "       \
    "others.\n\n"                                                                                  \
    "There was a house by the river, and in it lived an old man with his daughter."

/* Rows of the source, asked for in odd portions and after a seek, are those of one run a document.
 */
TEST(source_of_text) {
    static float once[MOST * 4 * D], again[MOST * 4 * D];
    lm_tokenizer *tok = NULL;
    doc_reader *docs = NULL;
    dlrn_source source;
    lm_reading how = {16, 1, 0, NULL, {0, NULL, 0, NULL}};
    lm_tap tap;
    uint64_t place = 0;
    int64_t n = 0, total = 0;
    open_all();
    write_text(tmp_path("source.txt"), WORDS);
    CHECK_OK(ctx, lm_load_tokenizer(ctx, MODEL, &tok));
    CHECK_OK(ctx, doc_open(ctx, tmp_path("source.txt"), &docs));
    CHECK_OK(ctx, lm_site_named(model, "mlp_out", 0, &tap.x));
    tap.y = tap.x;
    CHECK_OK(ctx, lm_text_source(model, tok, docs, &how, tap, &source));
    CHECK_OK(ctx, source.read(source.user, 1000, once, NULL, &total));
    CHECK(total > 30 && total <= 48);
    CHECK_STATUS(source.read(source.user, 1000, again, NULL, &n), DLRN_END);
    CHECK_OK(ctx, source.seek(source.user, 0));
    for (int64_t at = 0; at < total; at += n) {
        CHECK_OK(ctx, source.position(source.user, &place));
        CHECK_OK(ctx, source.seek(source.user, place)); /* any row can be come back to */
        CHECK_OK(ctx, source.read(source.user, 5, again + at * D, NULL, &n));
    }
    CHECK(!memcmp(once, again, (size_t)(total * D) * sizeof *once));
    dlrn_source_destroy(&source);
    doc_close(docs);
    lm_destroy_tokenizer(tok);
}

/* One document of more tokens than a run has, in contexts: all of its tokens, each context as if it
   were a document; and any row can be come back to, from another source, too. */
TEST(source_of_a_long_document) {
    enum { CTX = 37, ROWS = 4000 };
    static float once[ROWS * D], again[ROWS * D], alone[CTX * D];
    static char text[80 * sizeof WORDS];
    lm_tokenizer *tok = NULL;
    doc_reader *docs = NULL;
    dlrn_source source;
    lm_tally tally = {0, 0};
    lm_reading how = {CTX, 1, 1, &tally, {0, NULL, 0, NULL}};
    lm_documents texts;
    lm_tap tap;
    uint64_t place = 0;
    int64_t n = 0, total = 0;
    open_all();
    for (int i = 0; i < 55; i++) strcat(strcat(text, WORDS), "\n");
    for (char *c = text; (c = strstr(c, "\n\n")) != NULL;) *c = ' ';
    write_text(tmp_path("book.txt"), text);
    CHECK_OK(ctx, lm_load_tokenizer(ctx, MODEL, &tok));
    CHECK_OK(ctx, doc_open(ctx, tmp_path("book.txt"), &docs));
    memset(&texts, 0, sizeof texts);
    CHECK_OK(ctx, lm_read_documents(model, tok, docs, &how, -1, &texts));
    CHECK(tally.left_out == 0 && texts.start[texts.count] == tally.tokens + texts.count);
    CHECK(texts.count == (tally.tokens + CTX - 2) / (CTX - 1) && tally.tokens > 2100);
    CHECK_OK(ctx, doc_seek(docs, 0));
    CHECK_OK(ctx, lm_site_named(model, "resid_out", 1, &tap.x));
    tap.y = tap.x;
    CHECK_OK(ctx, lm_text_source(model, tok, docs, &how, tap, &source));
    CHECK_OK(ctx, source.read(source.user, ROWS, once, NULL, &total));
    CHECK(total == texts.start[texts.count]);
    CHECK_STATUS(source.read(source.user, ROWS, again, NULL, &n), DLRN_END);
    CHECK_OK(ctx, source.position(source.user, &place));
    CHECK_OK(ctx, source.seek(source.user, place));
    CHECK_STATUS(source.read(source.user, ROWS, again, NULL, &n), DLRN_END);
    CHECK_OK(ctx, source.seek(source.user, 0));
    for (int64_t at = 0; at < total; at += n) {
        CHECK_OK(ctx, source.position(source.user, &place));
        dlrn_source_destroy(&source);
        CHECK_OK(ctx, lm_text_source(model, tok, docs, &how, tap, &source));
        CHECK_OK(ctx, source.seek(source.user, place));
        CHECK_OK(ctx, source.read(source.user, 397, again + at * D, NULL, &n));
    }
    CHECK(!memcmp(once, again, (size_t)(total * D) * sizeof *once));
    /* the third context, as a document of its own */
    how.split = 0;
    write_text(tmp_path("ids.jsonl"), "");
    FILE *f = fopen(tmp_path("ids.jsonl"), "w");
    CHECK(f != NULL);
    fprintf(f, "{\"a\": {\"ids\": [");
    for (int64_t i = texts.start[2] + 1; i < texts.start[3]; i++)
        fprintf(f, "%s%d", i > texts.start[2] + 1 ? ", " : "", (int)texts.id[i]);
    fprintf(f, "]}}\n");
    CHECK(fclose(f) == 0);
    doc_close(docs);
    const doc_format ids = {NULL, "a.ids", V, 0};
    CHECK_OK(ctx, doc_open_as(ctx, tmp_path("ids.jsonl"), &ids, &docs));
    dlrn_source_destroy(&source);
    CHECK_OK(ctx, lm_text_source(model, tok, docs, &how, tap, &source));
    CHECK_OK(ctx, source.read(source.user, CTX, alone, NULL, &n));
    CHECK(n == CTX && !memcmp(alone, once + texts.start[2] * D, sizeof alone));
    dlrn_source_destroy(&source);
    lm_documents_free(&texts);
    doc_close(docs);
    lm_destroy_tokenizer(tok);
}

/* An engine whose rows depend on the whole run, as the last bits of some do: a hash of all ids. */
static dlrn_status run_of_hashes(lm_model *m, const lm_batch *b, const lm_tap *taps, int n_taps,
                                 lm_visit visit, void *user, int whole) {
    enum { MOST_ROWS = 4500 };
    static float x[MOST_ROWS * D];
    const int64_t n = b->start[b->sequences] - b->start[0];
    uint64_t hash = starve_mix(0, b->id + b->start[0], (size_t)n * sizeof *b->id);
    (void)m, (void)whole;
    CHECK(n_taps == 1 && n <= MOST_ROWS && lm_same_site(&taps->x, &taps->y));
    for (int64_t i = 0; i < n * D; i++)
        x[i] = (float)(hash >> 44) + (float)(b->id[b->start[0] + i / D] + i % D);
    return visit(user, 0, x, x, n);
}

/* Wherever a source is left and come back to, from another one, its runs are made of the same
   contexts: uncut, cut and split documents, some of them longer than a run. */
TEST(runs_do_not_depend_on_where_reading_begins) {
    static const int words[] = {3, 900, 10, 4000, 40, 700, 2, 1500, 2500, 30};
    static const lm_reading cases[] = {{512, 0, 0, NULL, {0, NULL, 0, NULL}},
                                       {37, 1, 1, NULL, {0, NULL, 0, NULL}},
                                       {2, 1, 1, NULL, {1, NULL, 0, NULL}},
                                       {512, 0, 1, NULL, {0, NULL, 0, NULL}}};
    enum { ROWS = 22000 };
    static float once[ROWS][D], again[ROWS][D];
    static lm_engine hashes;
    lm_tokenizer *tok = NULL;
    doc_reader *docs = NULL;
    lm_tap tap;
    open_all();
    hashes = hf_engine;
    hashes.run = run_of_hashes;
    FILE *f = fopen(tmp_path("runs.txt"), "w");
    CHECK(f != NULL);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        for (int w = 0; w <= words[i]; w++) fputs(w < words[i] ? " the" : "\n\n", f);
    CHECK(fclose(f) == 0);
    CHECK_OK(ctx, lm_load_tokenizer(ctx, MODEL, &tok));
    CHECK_OK(ctx, doc_open(ctx, tmp_path("runs.txt"), &docs));
    CHECK_OK(ctx, lm_site_named(model, "embed", 0, &tap.x));
    tap.y = tap.x;
    model->engine = &hashes;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        dlrn_source source;
        uint64_t place = 0;
        int64_t n = 0, total = 0;
        CHECK_OK(ctx, doc_seek(docs, 0));
        CHECK_OK(ctx, lm_text_source(model, tok, docs, &cases[c], tap, &source));
        CHECK_OK(ctx, source.read(source.user, ROWS, once[0], NULL, &total));
        CHECK(total > 2500 && total < ROWS);
        CHECK_OK(ctx, source.seek(source.user, 0));
        for (int64_t at = 0; at < total; at += n) {
            CHECK_OK(ctx, source.position(source.user, &place));
            dlrn_source_destroy(&source);
            CHECK_OK(ctx, lm_text_source(model, tok, docs, &cases[c], tap, &source));
            CHECK_OK(ctx, source.seek(source.user, place));
            CHECK_OK(ctx, source.read(source.user, 97, again[at], NULL, &n));
            CHECK_MSG(!memcmp(once[at], again[at], (size_t)n * sizeof *once), "case %d, row %d",
                      (int)c, (int)at);
        }
        CHECK_STATUS(source.read(source.user, 1, again[0], NULL, &n), DLRN_END);
        dlrn_source_destroy(&source);
    }
    model->engine = &hf_engine;
    doc_close(docs);
    lm_destroy_tokenizer(tok);
}

/* A place in each form of text is come back to, from another reader; a line behind it is named. */
TEST(places_of_each_form) {
    static const char *const forms[] = {
        "one\nline\n\ntwo\n\n\nthree",
        "{\"text\": \"one\"}\n\n{\"text\": \"two\"}\n{\"text\": \"x\"}",
        "\xef\xbb\xbf [\n{\"text\": \"one\"} ,\n {\"text\": \"a]\\\"}\"}\n, {\"text\": \"x\"}\n] "
        "\n",
        "[\"one\", \"\", \"two,\",\"x\"]"};
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        doc_reader *docs = NULL, *other = NULL;
        const char *text = NULL;
        char kept[4][16];
        uint64_t place[4] = {0};
        int64_t bytes = 0;
        open_all();
        write_text(tmp_path("form"), forms[i]);
        CHECK_OK(ctx, doc_open(ctx, tmp_path("form"), &docs));
        CHECK_OK(ctx, doc_open(ctx, tmp_path("form"), &other));
        for (int k = 0; k < 3; k++) {
            place[k] = doc_position(docs);
            CHECK_OK(ctx, doc_next(docs, &text, &bytes));
            CHECK(bytes < 16 && (int64_t)strlen(text) == bytes);
            strcpy(kept[k], text);
        }
        place[3] = doc_position(docs);
        CHECK_STATUS(doc_next(docs, &text, &bytes), DLRN_END);
        CHECK_STATUS(doc_next(docs, &text, &bytes), DLRN_END);
        for (int k = 3; k >= 0; k--) {
            CHECK_OK(ctx, doc_seek(other, place[k]));
            CHECK_STATUS(doc_next(other, &text, &bytes), k < 3 ? DLRN_OK : DLRN_END);
            if (k < 3) CHECK(!strcmp(text, kept[k]));
            CHECK_OK(ctx, doc_seek(other, doc_position(other))); /* behind the end, too */
            if (k == 3) CHECK_STATUS(doc_next(other, &text, &bytes), DLRN_END);
        }
        doc_close(docs);
        doc_close(other);
    }
}

static int stop_in; /* calls until a stop is asked for */

static int now_and_then(void *user) {
    (void)user;
    return --stop_in == 0;
}

/* A source that was stopped in the middle of a run goes on, or goes on elsewhere from its position:
   no row is lost. */
TEST(source_that_is_stopped) {
    static float once[2700 * D], again[2700 * D];
    static char text[80 * sizeof WORDS];
    lm_tokenizer *tok = NULL;
    doc_reader *docs = NULL;
    dlrn_source source;
    lm_reading how = {16, 1, 0, NULL, {0, NULL, 0, NULL}};
    lm_site site;
    lm_tap tap;
    uint64_t place = 0;
    int64_t n = 0, total = 0, stops = 0;
    open_all();
    for (int i = 0; i < 55; i++) strcat(strcat(text, WORDS), "\n\n");
    write_text(tmp_path("stopped.txt"), text);
    CHECK_OK(ctx, lm_load_tokenizer(ctx, MODEL, &tok));
    CHECK_OK(ctx, doc_open(ctx, tmp_path("stopped.txt"), &docs));
    CHECK_OK(ctx, lm_site_named(model, "resid_out", 2, &site));
    CHECK_OK(ctx, lm_tap_at(model, site, LM_IO_OUT, &tap));
    CHECK_OK(ctx, lm_text_source(model, tok, docs, &how, tap, &source));
    CHECK_OK(ctx, source.read(source.user, 2700, once, NULL, &total));
    CHECK(total > 2300 && total < 2700); /* more than one run */
    CHECK_OK(ctx, source.seek(source.user, 0));
    lm_on_stop(model, now_and_then, NULL);
    stop_in = 2;
    for (int64_t at = 0; at < total; at += n) {
        dlrn_status s = source.read(source.user, 700, again + at * D, NULL, &n);
        if (s == DLRN_OK && at < 2000) stop_in = 2; /* the second run is stopped, too */
        if (s != DLRN_STOPPED) CHECK_OK(ctx, s);
        if (s != DLRN_STOPPED) continue;
        CHECK(n == 0);
        CHECK_OK(ctx, source.position(source.user, &place));
        if (stops++) CHECK_OK(ctx, source.seek(source.user, place));
    }
    lm_on_stop(model, NULL, NULL);
    CHECK(stops == 2 && !memcmp(once, again, (size_t)(total * D) * sizeof *once));
    dlrn_source_destroy(&source);
    doc_close(docs);
    lm_destroy_tokenizer(tok);
}

TEST(source_with_a_target) {
    static float x[MOST * D], y[MOST * D], want[MOST * D];
    lm_tokenizer *tok = NULL;
    doc_reader *docs = NULL;
    dlrn_source source;
    lm_reading how = {16, 0, 0, NULL, {0, NULL, 0, NULL}};
    lm_site site;
    lm_tap tap;
    int64_t n = 0, k = 0;
    open_all();
    write_text(tmp_path("target.txt"), WORDS);
    CHECK_OK(ctx, lm_load_tokenizer(ctx, MODEL, &tok));
    CHECK_OK(ctx, lm_site_named(model, "mlp_out", 1, &site));
    for (int pass = 0; pass < 2; pass++) {
        CHECK_OK(ctx, doc_open(ctx, tmp_path("target.txt"), &docs));
        CHECK_OK(ctx, lm_tap_at(model, site, pass ? LM_IO_OUT : LM_IO_IN_TO_OUT, &tap));
        CHECK_OK(ctx, lm_text_source(model, tok, docs, &how, tap, &source));
        CHECK((source.d_out != 0) == !pass);
        CHECK_OK(ctx,
                 source.read(source.user, MOST, pass ? want : x, pass ? NULL : y, pass ? &k : &n));
        dlrn_source_destroy(&source);
        doc_close(docs);
    }
    CHECK(n == k && memcmp(x, y, (size_t)(n * D) * sizeof *x));
    CHECK(!memcmp(y, want, (size_t)(n * D) * sizeof *y));
    lm_destroy_tokenizer(tok);
}

static void write_config(const char *folder, const char *config) {
    char path[512];
    mkdir(folder, 0777);
    snprintf(path, sizeof path, "%s/config.json", folder);
    write_text(path, config);
}

#define CONFIG(type, dim, act)                                                                     \
    "{\"model_type\": \"" type "\", \"hidden_size\": " dim                                         \
    ", \"num_hidden_layers\": 1, \"num_attention_heads\": 4, "                                     \
    "\"intermediate_size\": 16, \"vocab_size\": 32, \"max_position_embeddings\": 8, "              \
    "\"hidden_act\": \"" act "\"}"

#define MORE(keys)                                                                                 \
    "{\"model_type\": \"gpt_neox\", \"hidden_size\": 8, \"num_hidden_layers\": 1, "                \
    "\"num_attention_heads\": 4, "                                                                 \
    "\"intermediate_size\": 16, \"vocab_size\": 32, \"max_position_embeddings\": 8, " keys "}"

TEST(folders_that_are_not_models) {
    static const struct {
        const char *config, *error;
        dlrn_status status;
    } cases[] = {
        {CONFIG("llama", "8", "gelu"), "model_type: expected gpt_neox, found llama",
         DLRN_ERR_UNSUPPORTED},
        {CONFIG("gpt_neox", "10", "gelu"), "expected hidden_size divisible by", DLRN_ERR_FORMAT},
        {CONFIG("gpt_neox", "-8", "gelu"), "hidden_size: expected a whole number", DLRN_ERR_FORMAT},
        {CONFIG("gpt_neox", "8.5", "gelu"), "hidden_size: expected a whole number",
         DLRN_ERR_FORMAT},
        {CONFIG("gpt_neox", "8", "sine"),
         "hidden_act: expected gelu, gelu_python, gelu_10, gelu_new, gelu_fast, ",
         DLRN_ERR_UNSUPPORTED},
        {CONFIG("gpt_neox", "8", "relu"), "expected model.safetensors or pytorch_model.bin",
         DLRN_ERR_IO},
        {"{\"model_type\": \"gpt_neox\"}",
         "hidden_size: expected a whole number from 1 to 1048576, found none", DLRN_ERR_FORMAT},
        {MORE("\"layer_norm_eps\": -1"), "layer_norm_eps: expected a number from 0 to 1, found -1",
         DLRN_ERR_FORMAT},
        {MORE("\"layer_norm_eps\": 1e999"),
         "layer_norm_eps: expected a number from 0 to 1, found inf", DLRN_ERR_FORMAT},
        {MORE("\"bos_token_id\": 1e300"), "bos_token_id: expected a whole number from 0",
         DLRN_ERR_FORMAT},
        {MORE("\"bos_token_id\": 32"),
         "config.json: bos_token_id: expected a whole number from 0 to 31, found 32",
         DLRN_ERR_FORMAT},
        {MORE("\"eos_token_id\": -2"), "eos_token_id: expected a whole number from 0",
         DLRN_ERR_FORMAT},
        {MORE("\"bos_token_id\": null, \"eos_token_id\": [1, 2]"), "expected model.safetensors",
         DLRN_ERR_IO},
        {"{", "config.json", DLRN_ERR_FORMAT},
    };
    lm_model *m = NULL;
    open_all();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_config(tmp_path("folder"), cases[i].config);
        CHECK_STATUS(lm_load(ctx, tmp_path("folder"), &m), cases[i].status);
        CHECK_STR(dlrn_error(ctx), cases[i].error);
        CHECK(m == NULL);
    }
}

/* The tiny model in another folder, with `now` for `was` in a file; in that of the weights of the
   same length. */
static void altered(const char *file, const char *was, const char *now) {
    static const char *const files[2] = {"config.json", "model.safetensors"};
    char from[512], to[512], *text, *at;
    size_t size;
    mkdir(tmp_path("altered"), 0777);
    for (int i = 0; i < 2; i++) {
        snprintf(from, sizeof from, "%s/%s", MODEL, files[i]);
        snprintf(to, sizeof to, "%s/%s", tmp_path("altered"), files[i]);
        CHECK_OK(ctx, dlrn_file_read(ctx, from, &text, &size));
        if (!strcmp(file, files[i])) {
            CHECK((at = strstr(text + (i ? 8 : 0), was)) != NULL &&
                  (i == 0 || strlen(was) == strlen(now)));
            char *rest = at + strlen(was), *whole = (char *)malloc(size + strlen(now));
            size_t first = (size_t)(at - text), last = size - (size_t)(rest - text);
            CHECK(whole != NULL);
            memcpy(whole, text, first);
            memcpy(whole + first, now, strlen(now));
            memcpy(whole + first + strlen(now), rest, last);
            CHECK_OK(ctx, dlrn_file_write(ctx, to, whole, first + strlen(now) + last));
            free(whole);
        } else {
            CHECK_OK(ctx, dlrn_file_write(ctx, to, text, size));
        }
        dlrn_free(ctx, text);
    }
}

static void refuse_altered(const char *file, const char *was, const char *now, dlrn_status status,
                           const char *words) {
    lm_model *m = NULL;
    altered(file, was, now);
    CHECK_STATUS(lm_load(ctx, tmp_path("altered"), &m), status);
    CHECK_STR(dlrn_error(ctx), words);
    CHECK(m == NULL);
}

TEST(weights_that_are_not_the_configs) {
    open_all();
    refuse_altered("config.json", "\"hidden_size\": 128", "\"hidden_size\": 64", DLRN_ERR_FORMAT,
                   "altered/model.safetensors: tensor 'gpt_neox.layers.0.input_layernorm.weight': "
                   "expected shape [64], found [128]");
    refuse_altered(
        "config.json", "\"intermediate_size\": 512", "\"intermediate_size\": 256", DLRN_ERR_FORMAT,
        "layers.0.mlp.dense_h_to_4h.weight': expected shape [256, 128], found [512, 128]");
    refuse_altered("config.json", "\"num_hidden_layers\": 6", "\"num_hidden_layers\": 7",
                   DLRN_ERR_FORMAT,
                   "layers.6.input_layernorm.weight': expected shape [128], found no such tensor");
    refuse_altered("model.safetensors", "layers.3.mlp.dense_4h_to_h.bias",
                   "layers.3.mlp.dense_4h_to_h.bios", DLRN_ERR_FORMAT,
                   "layers.3.mlp.dense_4h_to_h.bias': expected shape [128], found no such tensor");
}

/* As a dictionary's: said when the layer is read. */
TEST(weights_that_are_not_finite) {
    static const char *const names[] = {"gpt_neox.layers.0.mlp.dense_4h_to_h.weight",
                                        "gpt_neox.final_layer_norm.bias", "embed_out.weight"};
    const int32_t id[2] = {1, 2};
    const int64_t start[2] = {0, 2};
    const lm_batch batch = {id, start, 1};
    open_all();
    for (int i = 0; i < 3; i++) {
        lm_model *m = NULL;
        char *text, *at, words[200];
        size_t size;
        altered("config.json", "x", "x");
        char *path = tmp_path("altered/model.safetensors");
        CHECK_OK(ctx, dlrn_file_read(ctx, path, &text, &size));
        long long offset = 0;
        CHECK((at = strstr(text + 8, names[i])) != NULL &&
              (at = strstr(at, "data_offsets")) != NULL);
        CHECK(sscanf(at, "data_offsets\":[%lld", &offset) == 1);
        memcpy(text + 8 + get_le(text, 8) + offset + 2 * 5, "\x00\x7e", 2); /* f16: NaN */
        CHECK_OK(ctx, dlrn_file_write(ctx, path, text, size));
        dlrn_free(ctx, text);
        CHECK_OK(ctx, lm_load(ctx, tmp_path("altered"), &m));
        CHECK_STATUS(lm_run(m, &batch, NULL, 0, NULL, NULL, 1), DLRN_ERR_VALUE);
        snprintf(words, sizeof words,
                 "altered/model.safetensors: tensor '%s': element 5: expected a finite number, ",
                 names[i]);
        CHECK_STR(dlrn_error(ctx), words);
        lm_destroy(m);
    }
}

/* The tiny model with a config.json that promises more positions than there is memory for: it runs
   as it did, since room is made for the sequences that come. */
TEST(config_of_many_positions) {
    static float want[MOST * V], got[MOST * V];
    dlrn_context *counted = starve_context(2);
    lm_model *m = NULL;
    char *config, *at;
    size_t size;
    int32_t id[MOST];
    open_all();
    int64_t start[2] = {0, golden_ids(0, id)};
    lm_batch b = {id, start, 1};
    CHECK_OK(ctx, lm_run(model, &b, NULL, 0, NULL, NULL, 1));
    CHECK_OK(ctx, lm_logits(model, 0, start[1], want));
    CHECK_OK(ctx, dlrn_file_read(ctx, MODEL "/config.json", &config, &size));
    CHECK((at = strstr(config, "\"max_position_embeddings\": ")) != NULL);
    mkdir(tmp_path("vast"), 0777);
    FILE *f = fopen(tmp_path("vast/config.json"), "w");
    CHECK(f != NULL);
    fprintf(f, "%.*s\"max_position_embeddings\": 4194304%s", (int)(at - config), config,
            at + strcspn(at, ",}"));
    CHECK(fclose(f) == 0);
    dlrn_free(ctx, config);
    remove(tmp_path("vast/model.safetensors"));
    CHECK(symlink("../../../" MODEL "/model.safetensors", tmp_path("vast/model.safetensors")) == 0);
    starve.most = 64 << 20;
    CHECK_OK(counted, lm_load(counted, tmp_path("vast"), &m));
    CHECK(lm_config_of(m)->positions == 4194304);
    CHECK_OK(counted, lm_run(m, &b, NULL, 0, NULL, NULL, 1));
    CHECK_OK(counted, lm_logits(m, 0, start[1], got));
    CHECK(!memcmp(want, got, (size_t)(start[1] * V) * sizeof *got));
    lm_destroy(m);
    dlrn_context_destroy(counted);
    CHECK_MSG(starve.live == 0 && starve.peak < starve.most, "%d blocks, %zu bytes",
              (int)starve.live, starve.peak);
    starve.most = 0;
}

/* ---- Memory that is refused, and asked for again ---- */

static dlrn_context *counted;

/* A portion of the source; after an error it goes on from where it is. */
static dlrn_status read_again(dlrn_source *source, float *x, float *y, int64_t *n) {
    dlrn_status s = source->read(source->user, 20, x, y, n);
    if (s != DLRN_ERR_MEMORY) return s;
    uint64_t place = 0;
    CHECK_STR(source->error(source->user), "memory");
    CHECK_STATUS(source->read(source->user, 20, x, y, n),
                 DLRN_ERR_MEMORY); /* until it is told so */
    CHECK_OK(counted, source->position(source->user, &place));
    CHECK_OK(counted, source->seek(source->user, place));
    return source->read(source->user, 20, x, y, n);
}

/* All rows that a model gives for a text, and the text. */
static uint64_t read_with(lm_model *m, lm_tokenizer *tok, uint64_t hash) {
    static float x[20 * D], y[20 * D];
    doc_reader *docs = NULL;
    dlrn_source source;
    lm_reading how = {12, 1, 1, NULL, {0, NULL, 0, NULL}};
    lm_site site;
    lm_tap tap;
    lm_documents texts;
    int64_t n = 0, total = 0;
    dlrn_status s;
    memset(&texts, 0, sizeof texts);
    STARVE_RETRY(counted, doc_open(counted, tmp_path("starved.txt"), &docs));
    CHECK_OK(counted, lm_site_named(m, "mlp_out", 1, &site));
    CHECK_OK(counted, lm_tap_at(m, site, LM_IO_IN_TO_OUT, &tap));
    STARVE_RETRY(counted, lm_text_source(m, tok, docs, &how, tap, &source));
    while ((s = read_again(&source, x, y, &n)) == DLRN_OK) {
        hash = starve_mix(hash, x, (size_t)(n * D) * sizeof *x);
        hash = starve_mix(hash, y, (size_t)(n * D) * sizeof *y);
        total += n;
    }
    CHECK_STATUS(s, DLRN_END);
    CHECK(total > 20);
    CHECK_OK(counted, doc_seek(docs, 0));
    s = lm_read_documents(m, tok, docs, &how, -1, &texts);
    if (s == DLRN_ERR_MEMORY) { /* what was read stays; from the beginning */
        lm_documents_free(&texts);
        CHECK_OK(counted, doc_seek(docs, 0));
        s = lm_read_documents(m, tok, docs, &how, -1, &texts);
    }
    CHECK_OK(counted, s);
    hash = starve_mix(hash, texts.id, (size_t)texts.start[texts.count] * sizeof *texts.id);
    lm_documents_free(&texts);
    dlrn_source_destroy(&source);
    doc_close(docs);
    return hash;
}

static uint64_t all_of_a_model(void) {
    static float logits[MOST * V];
    lm_model *m = NULL;
    lm_tokenizer *tok = NULL;
    bpe_ids ids;
    bpe_text text;
    drawn d;
    double nats = 0;
    int64_t tokens = 0, start[2] = {0, 0};
    memset(&ids, 0, sizeof ids), memset(&text, 0, sizeof text), memset(&d, 0, sizeof d);
    STARVE_RETRY(counted, lm_load_tokenizer(counted, MODEL, &tok));
    STARVE_RETRY(counted, lm_encode(tok, WORDS, (int64_t)strlen(WORDS), &ids));
    STARVE_RETRY(counted, lm_decode(tok, ids.id, ids.count, &text));
    CHECK(text.count == (int64_t)strlen(WORDS) && !strcmp(text.bytes, WORDS));
    STARVE_RETRY(counted, lm_load(counted, MODEL, &m));
    start[1] = ids.count < MOST ? ids.count : MOST;
    lm_batch batch = {ids.id, start, 1};
    STARVE_RETRY(counted, lm_run(m, &batch, NULL, 0, NULL, NULL, 1));
    STARVE_RETRY(counted, lm_logits(m, 0, start[1], logits));
    STARVE_RETRY(counted, lm_cross_entropy(m, &batch, &nats, &tokens));
    uint64_t hash = starve_mix(0, logits, (size_t)(start[1] * V) * sizeof *logits);
    hash = starve_mix(hash, &nats, sizeof nats);
    lm_sampling how = {2, 4, 1, 3, 5, ids.id, 3, -1, NULL, NULL, 0, NULL, NULL};
    STARVE_RETRY(counted, lm_generate(m, &how, collect, &d));
    hash = read_with(m, tok, starve_mix(hash, d.id, sizeof d.id));
    bpe_ids_free(&ids);
    bpe_text_free(&text);
    lm_destroy(m);
    lm_destroy_tokenizer(tok);
    return hash;
}

TEST(memory_that_is_asked_for_again) {
    open_all();
    write_text(tmp_path("starved.txt"), WORDS);
    counted = starve_context(1);
    int64_t n = starve_each("a model", all_of_a_model);
    CHECK_MSG(n > 200, "%d allocations", (int)n);
    dlrn_context_destroy(counted);
}

/* ---- Layers that share their tensors, as torch saves a module that stands in a model several
   times ---- */

enum {
    SHARED_INNER = 7000,
    SHARED_NUMBERS = 4 * SHARED_INNER
}; /* of a storage that is as long as the largest part */
#define SHARED_CONFIG                                                                              \
    "{\"model_type\": \"gpt_neox\", \"hidden_size\": 4, \"num_hidden_layers\": %d, "               \
    "\"num_attention_heads\": 1, "                                                                 \
    "\"intermediate_size\": 7000, \"vocab_size\": 2, \"max_position_embeddings\": 8}"

static void put_name(bytes *b, const char *name) { /* BINUNICODE */
    put_text(b, "X");
    put_le(b, strlen(name), 4);
    put_text(b, name);
}

/* The start of the storage that the memo holds at 0, as rows x cols (1: a vector). */
static void put_shared(bytes *b, int64_t rows, int64_t cols) {
    put_text(b, "ctorch._utils\n_rebuild_tensor_v2\n(h");
    put_le(b, 0, 1);
    put_text(b, "K");
    put_le(b, 0, 1);
    put_text(b, "(M");
    put_le(b, (uint64_t)rows, 2);
    if (cols > 1) {
        put_text(b, "M");
        put_le(b, (uint64_t)cols, 2);
        put_text(b, "t(M");
        put_le(b, (uint64_t)cols, 2);
    } else {
        put_text(b, "t(");
    }
    put_text(b, "K\x01t\x89}tR");
}

/* A folder whose layers are one. */
static const char *shared_layers(int layers) {
    static bytes b, storage;
    static zip z;
    const hf_model sizes = {
        .base.cfg = {.dim = 4, .inner = SHARED_INNER, .heads = 1, .kv_heads = 1},
        .shape.head_dim = 4};
    char config[512];
    b.n = storage.n = 0;
    memset(&z, 0, sizeof z);
    put_text(&b, "\x80\x02(");
    put_name(&b, "storage");
    put_text(&b, "ctorch\nHalfStorage\n");
    put_name(&b, "0");
    put_name(&b, "cpu");
    put_text(&b, "M");
    put_le(&b, SHARED_NUMBERS, 2);
    put_text(&b, "tQq");
    put_le(&b, 0, 1);
    put_text(&b, "0}(");
    put_name(&b, "embed_in.weight");
    put_shared(&b, 2, 4);
    put_name(&b, "layers");
    put_text(&b, "}(");
    for (int l = 0; l < layers; l++) {
        put_text(&b, "M");
        put_le(&b, (uint64_t)l, 2);
        put_text(&b, l ? "h\x01" : "}(");
        for (int i = 0; l == 0 && i < GPTNEOX_TENSORS; i++) {
            const hf_tensor *t = &gptneox_tensors[i];
            if (t->role >= HF_LAYER_ROLES) continue;
            put_name(&b, t->name);
            put_shared(&b, hf_size_of(&sizes, t->rows), hf_size_of(&sizes, t->cols));
        }
        if (l == 0) put_text(&b, "uq\x01");
    }
    put_text(&b, "uu.");
    zip_add(&z, "archive/data.pkl", &b);
    storage.n = 2 * SHARED_NUMBERS; /* zeros, in f16 */
    zip_add(&z, "archive/data/0", &storage);
    snprintf(config, sizeof config, SHARED_CONFIG, layers);
    write_config(tmp_path("shared"), config);
    const bytes *file = zip_done(&z);
    CHECK_OK(ctx, dlrn_file_write(ctx, tmp_path("shared/pytorch_model.bin"), file->p, file->n));
    return tmp_path("shared");
}

static dlrn_status is_finite(void *user, int tap, const float *x, float *y, int64_t n) {
    (void)user, (void)tap, (void)y;
    for (int64_t i = 0; i < n * 4; i++) CHECK(isfinite(x[i]));
    return DLRN_OK;
}

/* Some do; a small file from which they would unfold without measure is refused before any is read.
 */
TEST(layers_that_share_their_tensors) {
    static const int32_t id[3] = {0, 1, 0};
    static const int64_t start[2] = {0, 3};
    const lm_batch batch = {id, start, 1};
    lm_model *m = NULL;
    lm_tap tap;
    open_all();
    CHECK_OK(ctx, lm_load(ctx, shared_layers(20), &m));
    CHECK_OK(ctx, lm_site_named(m, "resid_out", 19, &tap.x));
    tap.y = tap.x;
    CHECK_OK(ctx, lm_run(m, &batch, &tap, 1, is_finite, NULL, 0));
    lm_destroy(m);
    CHECK_STATUS(lm_load(ctx, shared_layers(400), &m), DLRN_ERR_FORMAT);
    CHECK_STR(dlrn_error(ctx), "shared/pytorch_model.bin: tensor 'layers.");
    CHECK_STR(dlrn_error(ctx), "shares its numbers with too many others: expected at most ");
}

/* ---- Models of a few numbers ---- */

/* How the next small model's files differ from the usual. */
static struct {
    const char *config;      /* further settings, each behind a comma; NULL: none  */
    int lacks, equal, extra; /* 1: no embed_in; both embeddings are equal; buffers that are none of
                                the weights */
    int odd;                 /* the tensor that has dtype odd_type; -1: none */
    dlrn_dtype odd_type;
} small = {NULL, 0, 0, 0, -1, DLRN_F32};

/* A folder of one layer, its weights drawn by seed. */
static const char *small_model(int64_t dim, int64_t heads, int64_t inner) {
    static float pool[4096];
    static char name[GPTNEOX_TENSORS][96];
    static const unsigned char mask[16];
    dlrn_tensor_out t[GPTNEOX_TENSORS + 2];
    int64_t count = 0;
    const hf_model sizes = {
        .base.cfg = {.dim = dim, .inner = inner, .vocab = 5, .heads = heads, .kv_heads = heads},
        .shape.head_dim = dim / heads};
    char config[700];
    dlrn_rng rng = {9, 0, 0};
    for (int i = 0; i < 4096; i++) pool[i] = dlrn_rng_normal(&rng);
    for (int i = 0; i < GPTNEOX_TENSORS; i++) {
        const hf_tensor *of = &gptneox_tensors[i];
        const int64_t shape[2] = {hf_size_of(&sizes, of->rows), hf_size_of(&sizes, of->cols)};
        const int from = small.equal && of->role == HF_UNEMBEDDING ? HF_EMBEDDING : i;
        if (small.lacks && of->role == HF_EMBEDDING) continue;
        snprintf(name[i], sizeof name[i], "%s%s", of->role < HF_LAYER_ROLES ? "layers.0." : "",
                 of->name);
        dlrn_tensor_out one = {name[i],
                               i == small.odd ? small.odd_type : DLRN_F32,
                               of->cols == HF_NONE ? 1 : 2,
                               {shape[0], shape[1]},
                               pool + 64 * from};
        t[count++] = one;
    }
    for (int i = 0; small.extra && i < 2; i++) {
        dlrn_tensor_out one = {i ? "layers.0.attention.masked_bias" : "layers.0.attention.bias",
                               i ? DLRN_I64 : DLRN_BOOL,
                               1,
                               {i ? 1 : 16},
                               mask};
        t[count++] = one;
    }
    snprintf(config, sizeof config,
             "{\"model_type\": \"gpt_neox\", \"hidden_size\": %d, \"num_hidden_layers\": 1, "
             "\"num_attention_heads\": %d, \"intermediate_size\": %d, \"vocab_size\": 5, "
             "\"max_position_embeddings\": 8, \"rotary_pct\": 1%s}",
             (int)dim, (int)heads, (int)inner, small.config ? small.config : "");
    write_config(tmp_path("small"), config);
    CHECK_OK(ctx, dlrn_archive_write(ctx, tmp_path("small/model.safetensors"), t, count, NULL));
    return tmp_path("small");
}

static void small_logits(lm_model *m, float *logits) {
    static const int32_t id[5] = {3, 1, 4, 1, 2};
    static const int64_t start[3] = {0, 4, 5};
    const lm_batch batch = {id, start, 2};
    CHECK_OK(ctx, lm_run(m, &batch, NULL, 0, NULL, NULL, 1));
    CHECK_OK(ctx, lm_logits(m, 0, 5, logits));
}

/* A matrix of one row or one column is no vector. */
TEST(sizes_of_one) {
    float logits[25];
    open_all();
    for (int i = 0; i < 2; i++) {
        lm_model *m = NULL;
        CHECK_OK(ctx, lm_load(ctx, small_model(i ? 4 : 2, 1, 1), &m));
        small_logits(m, logits);
        for (int k = 0; k < 25; k++) CHECK(isfinite(logits[k]));
        lm_destroy(m);
    }
}

/* Two query heads that share a key and value head, in rows of [queries][key][value], give the bits
   of two whole heads whose keys and values are equal. */
TEST(grouped_queries) {
    enum { DIM = 8, HEAD = 4 };
    float whole[25], grouped[25], *w, rows[4 * HEAD * DIM], bias[4 * HEAD];
    lm_model *m = NULL;
    open_all();
    CHECK_OK(ctx, lm_load(ctx, small_model(DIM, 2, 6), &m));
    CHECK_OK(ctx, hf_need_layer(hf_of(m), 0));
    w = hf_of(m)->layer[0].part[HF_QKV];
    float *b = hf_of(m)->layer[0].part[HF_QKV_BIAS];
    memcpy(w + 4 * HEAD * DIM, w + HEAD * DIM, 2 * HEAD * DIM * sizeof *w);
    memcpy(b + 4 * HEAD, b + HEAD, 2 * HEAD * sizeof *b);
    small_logits(m, whole);
    for (int part = 0; part < 4; part++) { /* query 0, query 1, key, value */
        const int from = (part == 0 ? 0 : part == 1 ? 3 : part - 1) * HEAD;
        memcpy(rows + part * HEAD * DIM, w + from * DIM, HEAD * DIM * sizeof *w);
        memcpy(bias + part * HEAD, b + from, HEAD * sizeof *b);
    }
    memcpy(w, rows, sizeof rows);
    memcpy(b, bias, sizeof bias);
    m->cfg.kv_heads = 1;
    hf_of(m)->shape.q.step = HEAD;
    hf_of(m)->shape.k.first = 2 * HEAD, hf_of(m)->shape.v.first = 3 * HEAD;
    hf_drop_workspace(hf_of(m));
    small_logits(m, grouped);
    CHECK(!memcmp(whole, grouped, sizeof whole));
    lm_destroy(m);
}

/* ---- Settings that contradict each other, and other names for the same */

/* Logits [5][5] of the small model with further settings, and its notes. */
static const char *logits_with(const char *config, float *logits) {
    static char notes[1024];
    lm_model *m = NULL;
    small.config = config;
    CHECK_OK(ctx, lm_load(ctx, small_model(8, 2, 6), &m));
    small.config = NULL;
    small_logits(m, logits);
    memcpy(notes, lm_config_of(m)->notes, sizeof notes);
    lm_destroy(m);
    return notes;
}

/* Checked against transformers 5 in tests/hf_check.py; here, against a config without the
   contradiction. */
TEST(settings_that_contradict_each_other) {
#define BLOCK(type, more) "{\"rope_type\": \"" type "\"" more "}"
#define OLD ", \"rotary_emb_base\": 100"
    static const struct {
        const char *config, *same, *note;
    } cases[] = {
        {OLD ", \"rope_theta\": 10000", OLD,
         "rope_theta 10000 is ignored: rotary_emb_base 100 is taken, as transformers 5 does\n"},
        {OLD ", \"rope_theta\": 100", OLD, ""},
        {", \"rope_theta\": 100", "",
         "rope_theta 100 is ignored: the default 10000 is taken, as transformers 5 does\n"},
        {", \"partial_rotary_factor\": 0.5", "",
         "partial_rotary_factor 0.5 is ignored: rotary_pct 1 is taken, as transformers 5 does\n"},
        {OLD ", \"rope_parameters\": " BLOCK("default", ", \"rope_theta\": 7"),
         ", \"rotary_emb_base\": 7",
         "rotary_emb_base 100 is ignored: rope_parameters.rope_theta 7 is taken, as transformers 5 "
         "does\n"},
        {", \"rope_parameters\": " BLOCK("default", ", \"partial_rotary_factor\": 0.5"),
         ", \"rope_scaling\": " BLOCK("default", ", \"partial_rotary_factor\": 0.5"),
         "rotary_pct 1 is ignored: rope_parameters.partial_rotary_factor 0.5 is taken, as "
         "transformers 5 does\n"},
        {", \"rope_scaling\": " BLOCK("linear", ", \"factor\": 2") ", \"rope_parameters\": " BLOCK(
             "default", ", \"rope_theta\": 7"),
         ", \"rope_parameters\": " BLOCK("linear", ", \"factor\": 2"),
         "rope_parameters is ignored: rope_scaling is taken, as transformers 5 does\n"},
        {", \"rope_scaling\": " BLOCK("default", "") ", \"rope_parameters\": " BLOCK("default", ""),
         "", ""},
        {OLD ", \"rope_scaling\": {}, \"rope_parameters\": null", OLD, ""},
        {", \"rope_scaling\": {\"type\": \"linear\", \"rope_type\": \"default\"}", "",
         "type linear is ignored: rope_type default is taken, as transformers 5 does\n"},
        {", \"hidden_act\": \"gelu\", \"activation_function\": \"relu\"", "",
         "activation_function relu is ignored: hidden_act gelu is taken, as transformers 5 does\n"},
        {", \"n_positions\": 9, \"n_layer\": 1", "",
         "n_positions 9 is ignored: max_position_embeddings 8 is taken, as transformers 5 does\n"},
        {", \"rope_parameters\": " BLOCK("dynamic", ", \"factor\": 4"), "", ""},
        {", \"hidden_act\": \"gelu_python\"", "", ""},
    };
#undef OLD
    float got[25], want[25];
    open_all();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        logits_with(cases[i].same, want);
        const char *notes = logits_with(cases[i].config, got);
        CHECK_MSG(!strcmp(notes, cases[i].note), "%s: %s", cases[i].config, notes);
        CHECK_MSG(!memcmp(got, want, sizeof got), "%s", cases[i].config);
    }
}

TEST(rotary_settings_that_are_refused) {
    static const struct {
        const char *config, *error;
        dlrn_status status;
    } cases[] = {
        {", \"rope_parameters\": " BLOCK("yarn", ", \"factor\": 4"),
         "config.json: rope_parameters: expected rope_type default, linear or dynamic, found yarn",
         DLRN_ERR_UNSUPPORTED},
        {", \"rope_scaling\": " BLOCK("linear", ""),
         "rope_scaling.factor: expected a positive number, found 0", DLRN_ERR_FORMAT},
        {", \"rope_scaling\": " BLOCK("default", ", \"rope_theta\": 1e999"),
         "expected a share in (0, 1] and a positive base, found 1 and inf", DLRN_ERR_FORMAT},
        {", \"head_dim\": 16", "expected at most the head's 4 dimensions, found 16",
         DLRN_ERR_FORMAT},
    };
#undef BLOCK
    lm_model *m = NULL;
    open_all();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        small.config = cases[i].config;
        CHECK_STATUS(lm_load(ctx, small_model(8, 2, 6), &m), cases[i].status);
        CHECK_STR(dlrn_error(ctx), cases[i].error);
        CHECK(m == NULL);
    }
    small.config = NULL;
}

/* Notes that have no room are left out; those before them stay whole. */
TEST(notes_beyond_their_room) {
    static lm_config c;
    for (int i = 0; i < 100; i++) hf_note(&c, "note %d, of some length", i);
    const size_t n = strlen(c.notes);
    CHECK(n < sizeof c.notes && n > sizeof c.notes - 32 && c.notes[n - 1] == '\n');
    CHECK(!strncmp(c.notes, "note 0, of some length\nnote 1,", 30));
}

/* transformers' formulas, in f64. */
static double activation_of(const char *name, double x) {
    const double normal = 0.5 * x * (1 + erf(x / sqrt(2.0)));
    if (!strcmp(name, "relu")) return x > 0 ? x : 0;
    if (!strcmp(name, "silu") || !strcmp(name, "swish")) return x / (1 + exp(-x));
    if (!strcmp(name, "quick_gelu")) return x / (1 + exp(-1.702 * x));
    if (!strcmp(name, "gelu") || !strcmp(name, "gelu_python")) return normal;
    if (!strcmp(name, "gelu_10")) return fmin(fmax(normal, -10), 10);
    return 0.5 * x * (1 + tanh(sqrt(2 / 3.14159265358979324) * (x + 0.044715 * x * x * x)));
}

TEST(activations_by_all_their_names) {
#define NAME_OF(name, kind, before) name,
#define KIND_OF(name, kind, before) kind,
    static const char *const names[] = {HF_ACTIVATION_LIST(NAME_OF)};
    static const hf_activation kinds[] = {HF_ACTIVATION_LIST(KIND_OF)};
#undef NAME_OF
#undef KIND_OF
    float x[37], y[37], bias[37];
    hf_model copy;
    open_all();
    CHECK(sizeof names / sizeof *names == 12);
    for (int i = 0; i < 37; i++) x[i] = (float)(i - 18) * 0.75f, bias[i] = 0.125f;
    copy = *hf_of(model);
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
        char config[64];
        lm_config cfg;
        hf_shape shape;
        snprintf(config, sizeof config, ", \"hidden_act\": \"%s\"", names[k]);
        small.config = config;
        CHECK_OK(ctx, hf_read_shape(ctx, small_model(8, 2, 6), &cfg, &shape));
        CHECK(shape.activation == kinds[k]);
        copy.shape.activation = shape.activation;
        hf_product job = {&copy, NULL, NULL, NULL, 1, 0, 37, 1, NULL};
        memcpy(y, x, sizeof y);
        hf_finish_row(&job, y, bias, 37);
        for (int i = 0; i < 37; i++) {
            double want = activation_of(names[k], (double)x[i] + 0.125);
            CHECK_MSG(fabs((double)y[i] - want) <= 2e-6 * fmax(1, fabs(want)), "%s(%g): %g, not %g",
                      names[k], (double)x[i] + 0.125, (double)y[i], want);
        }
    }
    small.config = NULL;
}

/* Without max_position_embeddings there are transformers' 2048 positions; null is no number. */
TEST(a_config_without_positions) {
    static const char plain[] =
        "{\"model_type\": \"gpt_neox\", \"hidden_size\": 8, \"num_hidden_layers\": 1, "
        "\"num_attention_heads\": 4, \"intermediate_size\": 16, \"vocab_size\": 32}";
    lm_config c;
    open_all();
    write_config(tmp_path("folder"), plain);
    CHECK_OK(ctx, lm_read_config(ctx, tmp_path("folder"), &c));
    CHECK(c.positions == 2048 && !*c.notes);
    write_config(tmp_path("folder"), MORE("\"n_ctx\": null"));
    CHECK_OK(ctx, lm_read_config(ctx, tmp_path("folder"), &c));
    CHECK(c.positions == 8);
}

/* tie_word_embeddings, and what the file has. */
TEST(two_unembeddings) {
    static const char tie[] = ", \"tie_word_embeddings\": true";
    float two[25], tied[25], got[25];
    open_all();
    logits_with("", two);
    CHECK_STR(logits_with(tie, got),
              "tie_word_embeddings true is ignored: the file's lm_head.weight differs from the "
              "embedding and is taken, as transformers 5 does\n");
    CHECK(!memcmp(got, two, sizeof got));
    small.equal = 1;
    CHECK(!*logits_with("", tied));
    CHECK(!*logits_with(tie, got)); /* equal: nothing to say */
    CHECK(!memcmp(got, tied, sizeof got) && memcmp(tied, two, sizeof tied));
    small.lacks = 1;
    CHECK(!*logits_with(tie, got)); /* the unembedding is the embedding */
    CHECK(!memcmp(got, tied, sizeof got));
    lm_model *m = NULL;
    CHECK_STATUS(lm_load(ctx, small_model(8, 2, 6), &m), DLRN_ERR_FORMAT); /* not tied */
    CHECK_STR(dlrn_error(ctx),
              "tensor 'embed_in.weight': expected shape [5, 8], found no such tensor");
    small.equal = small.lacks = 0;
}

/* Integers are quantised weights, or the bits of bf16: never read as numbers. Buffers that are not
   weights may be of any dtype. */
TEST(weights_that_are_integers) {
    static const dlrn_dtype types[] = {DLRN_I8,  DLRN_U8,  DLRN_BOOL, DLRN_I16,
                                       DLRN_U16, DLRN_I32, DLRN_I64};
    const int32_t id[2] = {1, 2};
    const int64_t start[2] = {0, 2};
    const lm_batch batch = {id, start, 1};
    char words[200];
    open_all();
    for (int i = 0; i < GPTNEOX_TENSORS; i++) {
        lm_model *m = NULL;
        if (!strcmp(gptneox_tensors[i].name, "embed_out.weight")) continue; /* lm_head is taken */
        small.odd = i, small.odd_type = types[i % 7];
        dlrn_status s = lm_load(ctx, small_model(4, 1, 4), &m);
        if (s == DLRN_OK) s = lm_run(m, &batch, NULL, 0, NULL, NULL, 1); /* what only logits need */
        CHECK_STATUS(s, DLRN_ERR_FORMAT);
        snprintf(words, sizeof words, "%s': expected dtype F32, F16, BF16 or F64, found %s",
                 gptneox_tensors[i].name, dlrn_name(DLRN_NAMES_DTYPE, small.odd_type));
        CHECK_STR(dlrn_error(ctx), words);
        lm_destroy(m);
    }
    small.odd = -1;
    float logits[25];
    small.extra = 1;
    logits_with(NULL, logits);
    small.extra = 0;
    for (int i = 0; i < 25; i++) CHECK(isfinite(logits[i]));
}

/* ---- Sites within a module */

/* Rows of a site of the first text; returns their number. */
static float rows_kept[MOST * 512];
static int64_t rows_width;
static dlrn_status keep_rows(void *user, int tap, const float *x, float *y, int64_t n) {
    (void)user, (void)tap, (void)x;
    CHECK(n <= MOST);
    memcpy(rows_kept, y, (size_t)(n * rows_width) * sizeof *y);
    return DLRN_OK;
}

static int64_t rows_at(const char *name, int layer, int64_t width) {
    int32_t id[MOST];
    int64_t start[2] = {0, golden_ids(0, id)};
    lm_batch b = {id, start, 1};
    lm_tap tap;
    CHECK_OK(ctx, lm_site_named(model, name, layer, &tap.x));
    tap.y = tap.x;
    CHECK(lm_site_width(model, tap.x) == width);
    rows_width = width;
    CHECK_OK(ctx, lm_run(model, &b, &tap, 1, keep_rows, NULL, 0));
    return start[1];
}

/* Largest difference between y [n][D] and W x + b in f64, over y's largest value. */
static double not_linear(const float *x, int64_t width, int64_t n, const float *w, const float *b,
                         const float *y) {
    double far = 0, scale = 0;
    for (int64_t i = 0; i < n; i++)
        for (int64_t o = 0; o < D; o++) {
            double sum = (double)b[o];
            for (int64_t c = 0; c < width; c++)
                sum += (double)w[o * width + c] * (double)x[i * width + c];
            far = fmax(far, fabs(sum - (double)y[i * D + o]));
            scale = fmax(scale, fabs(sum));
        }
    return far / scale;
}

/* What follows them is the module's output; neither run goes on behind its site. */
TEST(sites_within_a_module) {
    static float z[MOST * D], hidden[MOST * 512], want[MOST * D];
    open_all();
    rows_at("resid_out", 0, D); /* there is a workspace */
    for (int l = 0; l < LAYERS; l += 5) {
        char name[32];
        float **part = hf_of(model)->layer[l].part;
        CHECK_OK(ctx, hf_need_layer(hf_of(model), l));
        hf_of(model)->att[0] = -12345;
        int64_t n = rows_at("attn_z", l, D);
        CHECK(hf_of(model)->att[0] == -12345 || l);
        memcpy(z, rows_kept, (size_t)(n * D) * sizeof *z);
        if (l == 0) hf_of(model)->mlp[0] = -12345;
        rows_at("mlp_hidden", l, 512);
        CHECK(hf_of(model)->mlp[0] == -12345 || l); /* nor is there attention in layer 0 */
        memcpy(hidden, rows_kept, (size_t)(n * 512) * sizeof *hidden);
        snprintf(name, sizeof name, "attn_out_%d", l);
        golden_read(name, want, MOST * D);
        CHECK(not_linear(z, D, n, part[HF_ATTN], part[HF_ATTN_BIAS], want) < 1e-5);
        snprintf(name, sizeof name, "mlp_out_%d", l);
        golden_read(name, want, MOST * D);
        CHECK(not_linear(hidden, 512, n, part[HF_DOWN], part[HF_DOWN_BIAS], want) < 1e-5);
        for (int64_t i = 0; i < n * 512; i++) CHECK(hidden[i] > -0.171f); /* gelu's least value */
    }
}

/* --io of the two: what leads to them begins at their module's input. */
TEST(taps_within_a_module) {
    static const char *const names[2][2] = {{"attn_z", "attn_in"}, {"mlp_hidden", "mlp_in"}};
    open_all();
    for (int k = 0; k < 2; k++) {
        lm_site site, in;
        lm_tap tap;
        CHECK_OK(ctx, lm_site_named(model, names[k][0], 3, &site));
        CHECK_OK(ctx, lm_site_named(model, names[k][1], 3, &in));
        CHECK_OK(ctx, lm_tap_at(model, site, LM_IO_IN, &tap));
        CHECK(hf_order(&tap.x) == hf_order(&in) && hf_order(&tap.y) == hf_order(&in));
        CHECK_OK(ctx, lm_tap_at(model, site, LM_IO_IN_TO_OUT, &tap));
        CHECK(hf_order(&tap.x) == hf_order(&in) && hf_order(&tap.y) == hf_order(&site));
    }
}

/* A tap may lead from a narrow site to a wide one, or from a wide one to a narrow one, also while
   others are narrow; with an MLP wider than the model and one narrower. */
static float tapped[3][2][4 * 12];
static int64_t tapped_width[3][2];
static dlrn_status keep_tap(void *user, int tap, const float *x, float *y, int64_t n) {
    (void)user;
    CHECK(n == 4);
    memcpy(tapped[tap][0], x, (size_t)(n * tapped_width[tap][0]) * sizeof *x);
    memcpy(tapped[tap][1], y, (size_t)(n * tapped_width[tap][1]) * sizeof *y);
    return DLRN_OK;
}

TEST(taps_between_sites_of_different_widths) {
    static const lm_kind between[3][2] = {
        {LM_MLP_IN, LM_MLP_HIDDEN}, {LM_MLP_HIDDEN, LM_MLP_OUT}, {LM_ATTN_Z, LM_MLP_HIDDEN}};
    static const int32_t id[4] = {3, 1, 4, 1};
    static const int64_t start[2] = {0, 4};
    const lm_batch batch = {id, start, 1};
    open_all();
    for (int64_t inner = 3; inner <= 12; inner += 9)
        for (int parallel = 0; parallel < 2; parallel++) {
            float want[3][2][4 * 12];
            lm_model *m = NULL;
            lm_tap taps[3];
            small.config = parallel ? NULL : ", \"use_parallel_residual\": false";
            CHECK_OK(ctx, lm_load(ctx, small_model(8, 2, inner), &m));
            for (int t = 0; t < 3; t++) {
                const lm_site x = {between[t][0], 0, ""}, y = {between[t][1], 0, ""};
                const lm_site site[2] = {x, y};
                for (int k = 0; k < 2; k++) { /* each site on its own */
                    lm_tap one = {site[k], site[k]};
                    const int64_t width = lm_site_width(m, site[k]);
                    tapped_width[0][0] = tapped_width[0][1] = width;
                    CHECK_OK(ctx, lm_run(m, &batch, &one, 1, keep_tap, NULL, 0));
                    memcpy(want[t][k], tapped[0][0], (size_t)(4 * width) * sizeof(float));
                }
                taps[t].x = x, taps[t].y = y;
            }
            for (int t = 0; t < 3; t++) {
                tapped_width[t][0] = lm_site_width(m, taps[t].x);
                tapped_width[t][1] = lm_site_width(m, taps[t].y);
            }
            CHECK_OK(ctx, lm_run(m, &batch, taps, 1, keep_tap, NULL, 0));
            CHECK_OK(ctx, lm_run(m, &batch, taps, 3, keep_tap, NULL, 0));
            for (int t = 0; t < 3; t++)
                for (int k = 0; k < 2; k++)
                    CHECK(!memcmp(tapped[t][k], want[t][k],
                                  (size_t)(4 * tapped_width[t][k]) * sizeof(float)));
            lm_destroy(m);
        }
    small.config = NULL;
}

/* Edits of the cross-entropy: the site by itself, by zeros, by what zeros within the module lead
   to. */
typedef struct site_edit {
    int64_t width;
    const float *row; /* NULL: itself */
    int64_t rows;
} site_edit;

static dlrn_status edit_site(void *user, int site, const float *x, float *out, int64_t n) {
    site_edit *e = (site_edit *)user;
    (void)site;
    e->rows += n;
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < e->width; c++) {
            CHECK(isfinite(x[i * e->width + c]));
            out[i * e->width + c] = e->row ? e->row[c] : x[i * e->width + c];
        }
    return DLRN_OK;
}

/* row NULL: the site by itself; width 0: no edit. */
static double edited_cross_entropy(lm_kind kind, int64_t width, const float *row) {
    lm_batch b = both();
    lm_documents texts = {both_id, both_start, b.sequences, 0, 0, NULL};
    const lm_site site = {kind, kind == LM_EMBED ? 0 : 2, ""};
    lm_tap tap = {site, site};
    lm_judge judge = {model, &texts, &tap, 1, NULL};
    site_edit how = {width, row, 0};
    dlrn_edit edit = {edit_site, &how};
    dlrn_language_model lm;
    double nats = 0;
    int64_t tokens = 0;
    lm_language_model(&judge, &lm);
    CHECK_OK(ctx, lm.cross_entropy(lm.user, width ? &edit : NULL, &nats, &tokens));
    CHECK(how.rows == (width ? both_start[2] : 0));
    return nats;
}

TEST(a_site_replaced_by_itself) {
    static const float zeros[512];
    open_all();
    const double plain = edited_cross_entropy(LM_EMBED, 0, NULL);
    for (int kind = 0; kind < LM_KIND_COUNT; kind++) {
        const lm_site site = {(lm_kind)kind, 0, ""};
        const int64_t width = lm_site_width(model, site);
        CHECK(width == (kind == LM_MLP_HIDDEN ? 512 : D));
        CHECK(edited_cross_entropy((lm_kind)kind, width, NULL) == plain);
        CHECK(edited_cross_entropy((lm_kind)kind, width, zeros) != plain);
    }
    CHECK(edited_cross_entropy(LM_ATTN_Z, D, zeros) ==
          edited_cross_entropy(LM_ATTN_OUT, D, hf_of(model)->layer[2].part[HF_ATTN_BIAS]));
    CHECK(edited_cross_entropy(LM_MLP_HIDDEN, 512, zeros) ==
          edited_cross_entropy(LM_MLP_OUT, D, hf_of(model)->layer[2].part[HF_DOWN_BIAS]));
}

/* A source whose rows and targets have different widths, in odd portions and after a seek. */
TEST(source_of_two_widths) {
    static float x[MOST * D], y[MOST * 512], again_x[MOST * D], again_y[MOST * 512];
    lm_tokenizer *tok = NULL;
    doc_reader *docs = NULL;
    dlrn_source source;
    lm_reading how;
    lm_site site;
    lm_tap tap;
    int64_t n = 0, total = 0;
    memset(&how, 0, sizeof how);
    how.ctx_len = 16;
    open_all();
    write_text(tmp_path("widths.txt"), WORDS);
    CHECK_OK(ctx, lm_load_tokenizer(ctx, MODEL, &tok));
    CHECK_OK(ctx, doc_open(ctx, tmp_path("widths.txt"), &docs));
    CHECK_OK(ctx, lm_site_named(model, "mlp_hidden", 1, &site));
    CHECK_OK(ctx, lm_tap_at(model, site, LM_IO_IN_TO_OUT, &tap));
    CHECK_OK(ctx, lm_text_source(model, tok, docs, &how, tap, &source));
    CHECK(source.d_in == D && source.d_out == 512);
    CHECK_OK(ctx, source.read(source.user, MOST, x, y, &total));
    CHECK_OK(ctx, source.seek(source.user, 0));
    for (int64_t at = 0; at < total; at += n)
        CHECK_OK(ctx, source.read(source.user, 5, again_x + at * D, again_y + at * 512, &n));
    CHECK(!memcmp(x, again_x, (size_t)(total * D) * sizeof *x));
    CHECK(!memcmp(y, again_y, (size_t)(total * 512) * sizeof *y));
    dlrn_source_destroy(&source);
    doc_close(docs);
    lm_destroy_tokenizer(tok);
}

/* ---- Ids without a token */

/* Two contexts of 5 and 2 tokens: positions, special tokens, long rows; what is left out counts. */
TEST(rows_that_count) {
    static const int32_t id[] = {0, 10, 11, 12, 13, 14, 0};
    static const int64_t start[] = {0, 5, 7};
    const lm_batch batch = {id, start, 2};
    float x[7 * 2] = {9, 9, 1, 0, 0, 1, 1, 1, 40, 30, 1, 0, 100, 0};
    unsigned char keep[7];
    lm_tokenizer *tok = NULL;
    int64_t left_out = 0;
    lm_choice choice = {0, NULL, 0, &left_out};
    open_all();
    CHECK_OK(ctx, lm_load_tokenizer(ctx, MODEL, &tok));
    CHECK_OK(ctx, lm_choose(model, &choice, &batch, NULL, 2, keep));
    CHECK(!memcmp(keep, "\1\1\1\1\1\1\1", 7) && left_out == 0);
    choice.skip_first = 2;
    CHECK_OK(ctx, lm_choose(model, &choice, &batch, NULL, 2, keep));
    CHECK(!memcmp(keep, "\0\0\1\1\1\0\0", 7) && left_out == 4);
    choice.skip_first = 0;
    choice.special_of = tok;
    CHECK_OK(ctx, lm_choose(model, &choice, &batch, NULL, 2, keep)); /* 0 is the bos token */
    CHECK(!memcmp(keep, "\0\1\1\1\1\1\0", 7) && left_out == 6);
    choice.special_of = NULL;
    choice.max_norm_ratio = 10;
    CHECK_OK(ctx, lm_choose(model, &choice, &batch, x, 2, keep)); /* medians sqrt(2) and 1 */
    CHECK(!memcmp(keep, "\1\1\1\1\0\1\0", 7) && left_out == 8);
    lm_destroy_tokenizer(tok);
}

/* An edit of rows that do not count changes nothing. */
TEST(edits_of_rows_that_do_not_count) {
    const lm_choice none = {1000, NULL, 0, NULL}, all = {0, NULL, 0, NULL};
    open_all();
    const double whole = cross_entropy(0, NULL, 0), zero = cross_entropy(0, "mlp_out", 1);
    left_as_they_are = &none;
    CHECK(cross_entropy(0, "mlp_out", 1) == whole);
    left_as_they_are = &all;
    CHECK(cross_entropy(0, "mlp_out", 1) == zero && zero != whole);
    left_as_they_are = NULL;
}

/* A tokenizer without tokens for some of the model's ids, among them the likeliest: none of these
   is drawn, and the others are as likely as they were. */
TEST(ids_without_a_token_are_not_drawn) {
    static float logits[V];
    lm_tokenizer *tok = NULL;
    int32_t bos = 0, stop = -1;
    int64_t start[2] = {0, 1}, best[2], length;
    open_all();
    lm_batch b = {&bos, start, 1};
    CHECK_OK(ctx, lm_run(model, &b, NULL, 0, NULL, NULL, 1));
    CHECK_OK(ctx, lm_logits(model, 0, 1, logits));
    CHECK_OK(ctx, dlrn_topk(ctx, logits, V, 2, best, NULL));
    CHECK_OK(ctx, lm_load_tokenizer(ctx, MODEL, &tok));
    hf_bpe(tok)->token[best[0]] = NULL;
    for (int i = 1000; i < V; i++)
        if (i != best[1]) hf_bpe(tok)->token[i] = NULL;
    for (int k = 0; k < 4; k++) { /* greedy, all, the top 3 and more than have a token */
        static const double temperature[4] = {0, 1, 1, 50};
        static const int64_t top_k[4] = {0, 0, 3, 1500};
        lm_sampling how = {8,    30,  temperature[k], top_k[k], 7,    &bos, 1,
                           stop, tok, NULL,           0,        NULL, NULL};
        drawn d;
        memset(&d, 0, sizeof d);
        CHECK_OK(ctx, lm_generate(model, &how, collect, &d));
        if (k == 0) CHECK(d.id[0][0] == best[1]);
        for (int i = 0; i < 8; i++) {
            CHECK(d.n[i] == 30);
            for (int t = 0; t < 30; t++)
                CHECK_MSG(lm_token_bytes(tok, d.id[i][t], &length), "%d", d.id[i][t]);
        }
    }
    lm_sampling how = {1,   5,    0, 0,    7,   &bos, 1, (int32_t)best[0],
                       tok, NULL, 0, NULL, NULL}; /* stop may be drawn */
    drawn d;
    memset(&d, 0, sizeof d);
    CHECK_OK(ctx, lm_generate(model, &how, collect, &d));
    CHECK(d.n[0] == 0);
    for (int i = 0; i < V; i++) hf_bpe(tok)->token[i] = NULL;
    how.stop = -1;
    CHECK_STATUS(lm_generate(model, &how, collect, &d), DLRN_ERR_VALUE);
    CHECK_STR(dlrn_error(ctx), "expected a tokenizer with tokens for the model's 2048 ids");
    lm_destroy_tokenizer(tok);
}

/* ---- Generation with an edit */

/* An edit of rows [n][D] and what it has seen. */
typedef struct row_edit {
    float scale;           /* y = scale x                                */
    int64_t calls, rows;   /* so far                                     */
    int64_t first, others; /* rows of the first call, of each other      */
    int64_t fail_at;       /* the call that fails; -1: none              */
    int differs;           /* whether any x was not the y of its tap     */
} row_edit;

static dlrn_status scale_rows(void *user, int tap, const float *x, float *y, int64_t n) {
    row_edit *e = (row_edit *)user;
    (void)tap;
    if (e->calls == e->fail_at)
        return dlrn_fail(ctx, DLRN_ERR_VALUE, "the edit: row %d is odd", (int)e->rows);
    CHECK(n == (e->calls ? e->others : e->first));
    e->differs |= memcmp(x, y, (size_t)(n * D) * sizeof *x) != 0;
    for (int64_t i = 0; i < n * D; i++) y[i] = e->scale * x[i];
    e->calls++;
    e->rows += n;
    return DLRN_OK;
}

/* Documents of 20 tokens behind the first text, the likeliest at each step. */
static dlrn_status draw_edited(lm_model *m, int64_t documents, const lm_tap *taps, row_edit *e,
                               drawn *d) {
    int32_t id[MOST];
    lm_sampling how;
    memset(&how, 0, sizeof how);
    memset(d, 0, sizeof *d);
    how.documents = documents, how.tokens = 20, how.stop = -1;
    how.prompt = id, how.prompt_len = golden_ids(0, id);
    how.taps = taps, how.n_taps = taps != NULL, how.visit = scale_rows, how.user = e;
    e->first = documents * how.prompt_len, e->others = documents;
    return lm_generate(m, &how, collect, d);
}

/* The likeliest token at each step is the largest logit of a whole run with the same edit, which
   differs from that without; an edit by itself changes nothing. */
TEST(generation_with_an_edit) {
    static float logits[MOST * V];
    int32_t id[MOST];
    drawn plain, same, edited;
    lm_tap tap;
    row_edit none = {1, 0, 0, 0, 0, -1, 0}, half = {-0.5f, 0, 0, 0, 0, -1, 0};
    dlrn_context_config of_two = {0};
    dlrn_context *threads = NULL;
    lm_model *two = NULL;
    open_all();
    of_two.threads = 2; /* an edit sees all documents nevertheless */
    CHECK(dlrn_context_create(&of_two, &threads) == DLRN_OK);
    CHECK_OK(threads, lm_load(threads, MODEL, &two));
    CHECK_OK(ctx, lm_site_named(model, "resid_out", 2, &tap.x));
    tap.y = tap.x;
    CHECK_OK(ctx, draw_edited(two, 3, NULL, &none, &plain));
    CHECK(none.calls == 0);
    CHECK_OK(ctx, draw_edited(two, 3, &tap, &none, &same));
    CHECK(!memcmp(&plain, &same, sizeof same) && none.calls == 20 && !none.differs);
    CHECK_OK(ctx, draw_edited(two, 3, &tap, &half, &edited));
    CHECK(half.calls == 20 && memcmp(&plain, &edited, sizeof edited));
    CHECK(!memcmp(edited.id[0], edited.id[2], sizeof edited.id[0]) && edited.n[2] == 20);
    int64_t n = golden_ids(0, id), start[2] = {0, n + 20};
    memcpy(id + n, edited.id[0], 20 * sizeof *id);
    lm_batch b = {id, start, 1};
    half.first = half.others = n + 20;
    CHECK_OK(ctx, lm_run(model, &b, &tap, 1, scale_rows, &half, 1));
    CHECK_OK(ctx, lm_logits(model, 0, n + 20, logits));
    for (int64_t i = n - 1; i < n + 19; i++) {
        int64_t best;
        CHECK_OK(ctx, dlrn_topk(ctx, logits + i * V, V, 1, &best, NULL));
        CHECK(best == id[i + 1]);
    }
    lm_destroy(two);
    dlrn_context_destroy(threads);
}

/* A vocabulary that is no whole number of vectors: a document's draw leaves the next one's logits
   alone. The likeliest token and the first of one token are drawn in two ways. */
TEST(documents_of_a_small_vocabulary) {
    const int32_t prompt = 3;
    drawn d[4];
    open_all();
    memset(d, 0, sizeof d);
    for (int i = 0; i < 4; i++) { /* drawn, by 1 and by 8 threads; the likeliest */
        dlrn_context_config cfg = {0};
        dlrn_context *of_them = NULL;
        lm_model *m = NULL;
        cfg.threads = i == 1 ? 8 : 1;
        CHECK(dlrn_context_create(&cfg, &of_them) == DLRN_OK);
        CHECK_OK(of_them, lm_load(of_them, small_model(8, 2, 6), &m));
        lm_sampling how = {8, 7, i < 3, i == 2, 7, &prompt, 1, -1, NULL, NULL, 0, NULL, NULL};
        CHECK_OK(of_them, lm_generate(m, &how, collect, &d[i]));
        lm_destroy(m);
        dlrn_context_destroy(of_them);
    }
    CHECK(!memcmp(&d[0], &d[1], sizeof d[0]) && !memcmp(&d[2], &d[3], sizeof d[0]));
    CHECK(memcmp(d[0].id[0], d[0].id[1], sizeof d[0].id[0]));
}

/* Also where the edit reads one site and writes another; and a run after it is as it was. */
TEST(generation_with_an_edit_of_two_sites) {
    static float before[MOST * V], after[MOST * V];
    drawn d;
    lm_site site;
    lm_tap tap;
    row_edit e = {0.5f, 0, 0, 0, 0, -1, 0};
    open_all();
    lm_batch b = both();
    CHECK_OK(ctx, lm_run(model, &b, NULL, 0, NULL, NULL, 1));
    CHECK_OK(ctx, lm_logits(model, 0, both_start[1], before));
    CHECK_OK(ctx, lm_site_named(model, "mlp_out", 3, &site));
    CHECK_OK(ctx, lm_tap_at(model, site, LM_IO_IN_TO_OUT, &tap));
    CHECK_OK(ctx, draw_edited(model, 2, &tap, &e, &d));
    CHECK(e.calls == 20 && e.differs);
    CHECK_OK(ctx, lm_run(model, &b, NULL, 0, NULL, NULL, 1));
    CHECK_OK(ctx, lm_logits(model, 0, both_start[1], after));
    CHECK(!memcmp(before, after, (size_t)(both_start[1] * V) * sizeof *after));
}

/* An edit's own error is that of the whole; ids and lengths are refused with an edit and without,
   before the model runs. */
TEST(generation_that_fails) {
    static const struct {
        int32_t last; /* of the prompt */
        int64_t tokens;
        const char *error;
    } cases[] = {{V, 3, "sequence 0, token 1: expected an id below 2048, found 2048"},
                 {-1, 3, "sequence 0, token 1: expected an id below 2048, found -1"},
                 {1, 0, "generate: expected a prompt and tokens, together at most"},
                 {1, 511, "512 positions, found 2 and 511"}};
    lm_tap tap;
    drawn d;
    open_all();
    CHECK_OK(ctx, lm_site_named(model, "embed", 0, &tap.x));
    tap.y = tap.x;
    for (int fail_at = 0; fail_at < 3; fail_at++) { /* in the prompt, and behind it */
        row_edit e = {1, 0, 0, 0, 0, fail_at, 0};
        CHECK_STATUS(draw_edited(model, 2, &tap, &e, &d), DLRN_ERR_VALUE);
        CHECK_STR(dlrn_error(ctx), "the edit: row ");
        CHECK(e.calls == fail_at && d.n[0] == 0);
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int edits = 0; edits < 2; edits++) {
            const int32_t prompt[2] = {1, cases[i].last};
            row_edit e = {1, 0, 0, 0, 0, 0, 0};
            lm_sampling how = {2,    cases[i].tokens, 0,          0, 7, prompt, 2, -1, NULL,
                               &tap, edits,           scale_rows, &e};
            CHECK_STATUS(lm_generate(model, &how, collect, &d), DLRN_ERR_ARGUMENT);
            CHECK_STR(dlrn_error(ctx), cases[i].error);
            CHECK(e.calls == 0);
        }
}

/* Places that are no model, and sites that this engine lacks. */
TEST(engines_are_chosen_by_path) {
    lm_model *m = NULL;
    lm_tokenizer *tok = NULL;
    lm_site site;
    lm_tap tap;
    char names[200], few[12];
    open_all();
    CHECK_STATUS(lm_load(ctx, tmp_path("no.gguf"), &m), DLRN_ERR_IO);
    CHECK_STR(dlrn_error(ctx), "no.gguf: no such file or folder");
    write_text(tmp_path("text.gguf"), "GGU");
    CHECK_STATUS(lm_load_tokenizer(ctx, tmp_path("text.gguf"), &tok), DLRN_ERR_FORMAT);
    CHECK_STR(dlrn_error(ctx), "expected a model: a Hugging Face folder or a GGUF file");
    CHECK(!lm_is_gguf(ctx, tmp_path("text.gguf")) && !lm_is_gguf(ctx, tmp_path("no.gguf")));
    write_text(tmp_path("text.gguf"), "GGUF");
    CHECK(lm_is_gguf(ctx, tmp_path("text.gguf")));
#ifndef LM_LLAMA
    CHECK_STATUS(lm_load(ctx, tmp_path("text.gguf"), &m), DLRN_ERR_UNSUPPORTED);
    CHECK_STR(dlrn_error(ctx), "text.gguf: this program was built without llama.cpp");
#endif
    CHECK(!m && !tok);
    CHECK_STATUS(lm_site_named(model, "tensor:l_out-3", 3, &site), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "found tensor:l_out-3: only models in GGUF files");
    memset(&site, 0, sizeof site);
    site.kind = LM_TENSOR;
    strcpy(site.tensor, "l_out-3");
    CHECK_STATUS(lm_tap_at(model, site, LM_IO_IN, &tap), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "site tensor:l_out-3: what leads to a tensor is not known");
    CHECK_OK(ctx, lm_site_names(model, names, sizeof names));
    CHECK_STR(names, "embed, attn_in, attn_z, attn_out, mlp_in, mlp_hidden, mlp_out, resid_out");
    CHECK_OK(ctx, lm_site_names(model, few, sizeof few));
    CHECK(!strcmp(few, "embed, attn"));
}

/* e^x against the C library's, a NaN, and what is as good as 0; and two sums of it, of which one
   leaves the numbers as they are. */
TEST(exponentials) {
    static float x[1000 + 16], copy[1000 + 16];
    dlrn_rng rng = {4, 0, 0};
    open_all();
    for (int i = 0; i < 1000; i++) x[i] = -90 * (float)dlrn_rng_uniform_f64(&rng);
    x[7] = -INFINITY, x[8] = -87, x[9] = -1e30f, x[10] = 0;
    for (int n = 1; n <= 1000; n += n < 40 ? 1 : 37) {
        float top[2] = {-INFINITY, -INFINITY};
        double sum[2];
        memcpy(copy, x, sizeof x);
        lm_softmax(hf_of(model)->width, copy, n, 1, &top[0], &sum[0]);
        lm_sum_exp(hf_of(model)->width, x, n, &top[1], &sum[1]);
        CHECK_MSG(top[0] == top[1] && sum[0] == sum[1], "%d: %.17g and %.17g", n, sum[0], sum[1]);
        for (int i = 0; i < n; i++) {
            const double want = exp((double)x[i] - (double)top[0]);
            CHECK_MSG(fabs((double)copy[i] - want) <= 3e-7 * want + 1e-37, "e^%g: %g", (double)x[i],
                      (double)copy[i]);
        }
    }
    x[20] = -NAN;
    memcpy(copy, x, sizeof x);
    lm_exp16(copy + 16);
    CHECK(isnan(copy[20]) && !isnan(copy[21]));
}

/* The same bits with every set of kernels, also where the compiler may fuse products and sums. */
TEST(kernel_sets_agree) {
    static float want[MOST * V], got[MOST * V];
    static const char *const sets[] = {"scalar", "avx2", "avx512", "neon"};
    int32_t id[MOST];
    open_all();
    int64_t start[2] = {0, golden_ids(0, id)};
    lm_batch b = {id, start, 1};
    CHECK_OK(ctx, lm_run(model, &b, NULL, 0, NULL, NULL, 1));
    CHECK_OK(ctx, lm_logits(model, 0, start[1], want));
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
        dlrn_context *other = NULL;
        dlrn_context_config cfg = {0};
        lm_model *m = NULL;
        cfg.kernels = sets[i];
        if (dlrn_context_create(&cfg, &other) != DLRN_OK) continue;
        CHECK_OK(other, lm_load(other, MODEL, &m));
        CHECK_OK(other, lm_run(m, &b, NULL, 0, NULL, NULL, 1));
        CHECK_OK(other, lm_logits(m, 0, start[1], got));
        CHECK_MSG(!memcmp(want, got, (size_t)(start[1] * V) * sizeof *got), "%s", sets[i]);
        lm_destroy(m);
        dlrn_context_destroy(other);
    }
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    RUN(logits);
    RUN(direct_logits);
    RUN_LONG(every_site_of_every_layer);
    RUN(cross_entropy_under_interventions);
    RUN(batch_does_not_matter);
    RUN(taps_in_and_in_to_out);
    RUN(ids_and_lengths_are_checked);
    RUN(cache_equals_whole_runs);
    RUN(a_document_depends_on_seed_and_number);
    RUN(temperatures_at_their_ends);
    RUN(lines_after_a_seek);
    RUN(a_bos_that_the_model_lacks);
    RUN(draws_follow_the_softmax);
    RUN(source_of_text);
    RUN(source_of_a_long_document);
    RUN(runs_do_not_depend_on_where_reading_begins);
    RUN(places_of_each_form);
    RUN_LONG(source_that_is_stopped);
    RUN(source_with_a_target);
    RUN(folders_that_are_not_models);
    RUN(weights_that_are_not_the_configs);
    RUN(weights_that_are_not_finite);
    RUN(config_of_many_positions);
    RUN(memory_that_is_asked_for_again);
    RUN(layers_that_share_their_tensors);
    RUN(sizes_of_one);
    RUN(grouped_queries);
    RUN(settings_that_contradict_each_other);
    RUN(rotary_settings_that_are_refused);
    RUN(notes_beyond_their_room);
    RUN(activations_by_all_their_names);
    RUN(a_config_without_positions);
    RUN(two_unembeddings);
    RUN(weights_that_are_integers);
    RUN(sites_within_a_module);
    RUN(taps_within_a_module);
    RUN(taps_between_sites_of_different_widths);
    RUN(a_site_replaced_by_itself);
    RUN(source_of_two_widths);
    RUN(rows_that_count);
    RUN(edits_of_rows_that_do_not_count);
    RUN(ids_without_a_token_are_not_drawn);
    RUN(documents_of_a_small_vocabulary);
    RUN(generation_with_an_edit);
    RUN(generation_with_an_edit_of_two_sites);
    RUN(generation_that_fails);
    RUN(engines_are_chosen_by_path);
    RUN(exponentials);
    RUN(kernel_sets_agree);
    dlrn_archive_close(golden);
    lm_destroy(model);
    dlrn_context_destroy(ctx);
    return TEST_END();
}
