/* test_survey.c - surveys against plain loops over the dense features, in every figure; and that
   neither threads, kernels, memory nor the grouping of contexts change a bit. */
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "tests/starve.h"
#include "tests/test.h"

enum { D = 12, F = 140, CONTEXTS = 60, MOST_ROWS = 1200, TOKENS = 23, MOST_EXAMPLES = 60 };

/* The text of most tests: contexts of 0 to 40 rows. Activations are tied: every fifth row is as it
   was 37 rows before, every fourth as the one before it; the first coordinate is from 0 to 5, so
   that feature 2, which is that, is on bounds of intervals. Every seventh row is left out. */
static struct {
    float x[MOST_ROWS * D], f[MOST_ROWS * F];
    int32_t id[MOST_ROWS];
    int64_t start[CONTEXTS + 1];
    unsigned char keep[MOST_ROWS];
    int64_t n;
} text;

static void make_text(void) {
    dlrn_rng rng = {7, 0, 0};
    text.start[0] = 0;
    for (int c = 0; c < CONTEXTS; c++)
        text.start[c + 1] = text.start[c] + (c == 1 ? 1 : (int64_t)dlrn_rng_below(&rng, 41));
    text.n = text.start[CONTEXTS];
    CHECK(text.n > 600 && text.n <= MOST_ROWS);
    for (int64_t i = 0; i < text.n; i++) {
        const int64_t as = i >= 37 && i % 5 == 0 ? i - 37 : i > 0 && i % 4 == 0 ? i - 1 : -1;
        for (int j = 0; j < D; j++)
            text.x[i * D + j] =
                as >= 0 ? text.x[as * D + j] : dlrn_rng_normal(&rng) + 0.2f * (float)j;
        if (as < 0) text.x[i * D] = (float)dlrn_rng_below(&rng, 6);
        text.id[i] = (int32_t)dlrn_rng_below(&rng, TOKENS);
        text.keep[i] = dlrn_rng_below(&rng, 7) != 0;
    }
}

/* Features that never fire, that fire now and then, and always; and the first coordinate. */
static void set_features(dlrn_dictionary *ae) {
    for (int f = 0; f < F; f++)
        ae->param[DLRN_ENCODER_BIAS][f] += f % 11 == 3   ? -50.0f
                                           : f % 11 == 5 ? 50.0f
                                           : f % 3 == 0  ? -2.0f
                                                         : 0.0f;
    for (int j = 0; j < D; j++) ae->param[DLRN_ENCODER][2 * D + j] = j == 0;
    ae->param[DLRN_ENCODER_BIAS][2] = 0;
    dlrn_dictionary_changed(ae);
}

static dlrn_dictionary *make_dictionary(dlrn_context *ctx) {
    dlrn_dictionary *ae = NULL;
    CHECK_OK(ctx, new_autoencoder(ctx, D, F, 4, &ae));
    set_features(ae);
    return ae;
}

static dlrn_dictionary *make_family(dlrn_context *ctx, const char *family, int64_t k) {
    dlrn_dictionary_desc desc;
    dlrn_dictionary *dict = NULL;
    memset(&desc, 0, sizeof desc);
    desc.family = family, desc.d_in = D, desc.features = F, desc.k = k, desc.seed = 4;
    CHECK_OK(ctx, dlrn_dictionary_create(ctx, &desc, &dict));
    return dict;
}

/* ---- The oracle: a report by plain loops over f [n][F] ---- */

/* What the plain loops work on. */
typedef struct scene {
    const dlrn_survey_config *cfg;
    const float *f; /* [n][F] */
    const unsigned char *keep;
    int64_t list_at, n_list; /* compat: where the list's batch begins, and its features */
    const int64_t *list;
} scene;

static int counted(const scene *s, int64_t row) {
    return !s->keep || s->keep[row];
}

static float activation(const scene *s, int64_t row, int64_t feature) {
    return s->f[row * F + feature];
}

/* What a window shows. What is left out is masked; compat's correlations alone see it. */
static float shown(const scene *s, int64_t row, int64_t feature) {
    return counted(s, row) ? activation(s, row, feature) : 0;
}

static int64_t context_of(int64_t row) {
    int64_t c = 0;
    while (text.start[c + 1] <= row) c++;
    return c;
}

/* Pearson and cosine of two columns, whose elements are a stride apart, in two passes. */
static int correlate(const scene *s, const float *a, int64_t a_step, const float *b, int64_t b_step,
                     double *pearson, double *cosine) {
    double n = 0, ma = 0, mb = 0, aa = 0, bb = 0, ab = 0, xx = 0, yy = 0, xy = 0;
    for (int64_t i = 0; i < text.n; i++) {
        if (!s->cfg->compat && !counted(s, i)) continue;
        n++, ma += (double)a[i * a_step], mb += (double)b[i * b_step];
    }
    ma /= n, mb /= n;
    for (int64_t i = 0; i < text.n; i++) {
        if (!s->cfg->compat && !counted(s, i)) continue;
        const double u = (double)a[i * a_step], v = (double)b[i * b_step];
        aa += (u - ma) * (u - ma), bb += (v - mb) * (v - mb), ab += (u - ma) * (v - mb);
        xx += u * u, yy += v * v, xy += u * v;
    }
    if (s->cfg->compat) {
        *pearson = n * ab / (n * sqrt(aa) * sqrt(bb) + 1e-6);
        *cosine = xy / (sqrt(xx * yy) + 1e-6);
        return 1;
    }
    if (!(aa > 1e-12 * xx && bb > 1e-12 * yy)) return 0;
    *pearson = ab / sqrt(aa * bb);
    *cosine = xy / sqrt(xx * yy);
    return 1;
}

/* Sorts index [n] by key, the largest first, equal ones by index. */
static void sort_by(int64_t *index, int64_t n, const double *key) {
    for (int64_t i = 1; i < n; i++)
        for (int64_t j = i; j > 0; j--) {
            const int64_t a = index[j - 1], b = index[j];
            if (key[a] > key[b] || (!(key[a] < key[b]) && a < b)) break;
            index[j - 1] = b, index[j] = a;
        }
}

static double key_of[MOST_ROWS];
static int64_t chosen[MOST_ROWS];

/* The figures that follow from the values alone. */
static void check_totals(const scene *s, const dlrn_feature_report *r) {
    int64_t fired = 0, seen = 0, n = 0, bins[64] = {0};
    double sum = 0, squares = 0, low = 0, high = 0;
    float min = 0, max = 0;
    for (int64_t i = 0; i < text.n; i++) {
        const float v = shown(s, i, r->feature);
        n += s->cfg->compat || counted(s, i);
        if (v == 0) continue;
        if (!fired || v < min) min = v;
        if (!fired || v > max) max = v;
        fired++, sum += (double)v, squares += (double)v * (double)v;
        if (s->cfg->compat && v < 0) continue;
        if (!seen || (double)v < low) low = (double)v;
        if (!seen || (double)v > high) high = (double)v;
        seen++;
    }
    CHECK(r->totals.fired == fired && r->totals.min == min && r->totals.max == max);
    CHECK(test_close(r->totals.sum, sum, 1e-9) && test_close(r->totals.sum_squares, squares, 1e-9));
    CHECK(test_close(r->density, (double)seen / (double)n, 1e-12));
    if (s->cfg->compat && seen && low == high) low -= 1, high += 1;
    CHECK(r->low == low && r->high == high);
    for (int64_t i = 0; i < text.n; i++) {
        const double v = (double)shown(s, i, r->feature);
        if (v == 0 || (s->cfg->compat && v < 0) || !s->cfg->bins) continue;
        int64_t bin = high > low ? (int64_t)((v - low) / (high - low) * (double)s->cfg->bins) : 0;
        bins[bin < s->cfg->bins ? bin : s->cfg->bins - 1]++;
    }
    for (int64_t b = 0; b < s->cfg->bins; b++) CHECK(r->histogram[b] == bins[b]);
}

/* Example e of a report is that row, with its window. */
static void check_example(const scene *s, const dlrn_feature_report *r, int64_t e, int64_t row,
                          int interval) {
    const dlrn_example *x = &r->example[e];
    const int64_t c = context_of(row), before = s->cfg->before, after = s->cfg->after;
    int64_t first = row, end = row + 1;
    while (first > text.start[c] && (before < 0 || row - first < before)) first--;
    while (end < text.start[c + 1] && (after < 0 || end - 1 - row < after)) end++;
    CHECK(e < r->examples);
    CHECK_MSG(x->row == row && x->context == c && x->interval == interval,
              "feature %d, example %d: row %d of %d", (int)r->feature, (int)e, (int)x->row,
              (int)row);
    CHECK(x->first == first && x->count == end - first);
    CHECK(x->peak == shown(s, row, r->feature));
    for (int64_t i = 0; i < x->count; i++) {
        CHECK(x->token[i] == text.id[first + i]);
        CHECK(x->value[i] == shown(s, first + i, r->feature));
    }
}

/* The largest: the best row of each context that fires; in compat any row, also of value 0. */
static int64_t check_top(const scene *s, const dlrn_feature_report *r) {
    int64_t n = 0;
    for (int64_t i = 0; i < text.n; i++) key_of[i] = (double)shown(s, i, r->feature);
    for (int64_t i = 0; i < text.n; i++) {
        int best = s->cfg->compat ? key_of[i] >= 0 : key_of[i] > 0;
        for (int64_t j = text.start[context_of(i)]; j < text.start[context_of(i) + 1]; j++)
            best &= s->cfg->compat || key_of[j] < key_of[i] || (key_of[j] == key_of[i] && j >= i);
        if (best) chosen[n++] = i;
    }
    sort_by(chosen, n, key_of);
    if (n > s->cfg->top) n = s->cfg->top;
    for (int64_t i = 0; i < n; i++) check_example(s, r, i, chosen[i], -1);
    return n;
}

/* An interval: its share, and the rows drawn, which begin at example `at`. Returns where the next
   begin. */
static int64_t check_interval(const scene *s, const dlrn_feature_report *r, int64_t k, int64_t at) {
    const int64_t n = s->cfg->intervals;
    const double max = r->totals.max > 0 ? (double)r->totals.max : 0;
    const float low = (float)(max * (double)(n - 1 - k) / (double)n);
    const float high = (float)(max * (double)(n - k) / (double)n);
    int64_t inside = 0, candidates = 0, all = 0;
    CHECK(r->interval[k].low == low && r->interval[k].high == high);
    for (int64_t i = 0; i < text.n; i++) {
        const float v = shown(s, i, r->feature);
        dlrn_rng rng = {s->cfg->seed, (uint64_t)r->feature, (uint64_t)i};
        key_of[i] = -dlrn_rng_uniform_f64(&rng);
        all += s->cfg->compat || counted(s, i);
        if (max <= 0 && !(s->cfg->compat && k == n - 1)) continue;
        if (v > high || v < low || (!s->cfg->compat && v == low)) continue;
        inside++;
        if (counted(s, i)) chosen[candidates++] = i;
    }
    CHECK(test_close(r->interval[k].share, (double)inside / (double)all, 1e-12));
    sort_by(chosen, candidates, key_of);
    if (candidates > s->cfg->per_interval) candidates = s->cfg->per_interval;
    for (int64_t i = 0; i < text.n; i++) key_of[i] = (double)activation(s, i, r->feature);
    sort_by(chosen, candidates, key_of);
    for (int64_t i = 0; i < candidates; i++) check_example(s, r, at + i, chosen[i], (int)k);
    return at + candidates;
}

static void check_tokens(const scene *s, const dlrn_feature_report *r) {
    double sum[TOKENS] = {0}, magnitude[TOKENS] = {0}, all = 0, mean[TOKENS];
    int64_t count[TOKENS] = {0}, fired[TOKENS] = {0}, by_mean[TOKENS], by_share[TOKENS], n = 0;
    for (int64_t i = 0; i < text.n; i++) {
        const double v = (double)activation(s, i, r->feature);
        if (!counted(s, i)) continue;
        count[text.id[i]]++, fired[text.id[i]] += v != 0;
        sum[text.id[i]] += v, magnitude[text.id[i]] += fabs(v), all += fabs(v);
    }
    for (int t = 0; t < TOKENS; t++) {
        mean[t] = sum[t] / (double)count[t];
        if (fired[t]) by_mean[n] = by_share[n] = t, n++;
    }
    sort_by(by_mean, n, mean);
    sort_by(by_share, n, magnitude);
    if (n > s->cfg->tokens) n = s->cfg->tokens;
    CHECK(r->tokens == n);
    for (int64_t i = 0; i < n; i++)
        for (int which = 0; which < 2; which++) {
            const dlrn_token_mean *t = which ? &r->by_share[i] : &r->by_mean[i];
            CHECK(t->token == (which ? by_share[i] : by_mean[i]));
            CHECK(t->count == count[t->token] && t->fired == fired[t->token]);
            CHECK(test_close(t->mean, mean[t->token], 1e-9));
            CHECK(test_close(t->share, magnitude[t->token] / all, 1e-9));
        }
}

static int64_t both_active(const scene *s, int64_t a, int64_t b) {
    int64_t both = 0;
    for (int64_t i = 0; i < text.n; i++)
        both += (s->cfg->compat || counted(s, i)) && activation(s, i, a) != 0 &&
                activation(s, i, b) != 0;
    return both;
}

/* A list of companions: in order, each with its figures, and none that is left out is better. */
static void check_list(const dlrn_companion *list, int64_t n, int64_t cap, const double *pearson,
                       const double *cosine, const int *valid, int64_t candidates) {
    int64_t valids = 0;
    char listed[F] = {0};
    for (int64_t j = 0; j < candidates; j++) valids += valid[j];
    CHECK(n == (valids < cap ? valids : cap));
    for (int64_t i = 0; i < n; i++) {
        const int32_t j = list[i].index;
        CHECK(j >= 0 && j < candidates && valid[j] && !listed[j]);
        listed[j] = 1;
        CHECK(fabs(list[i].pearson - pearson[j]) < 1e-9);
        CHECK(fabs(list[i].cosine - cosine[j]) < 1e-9);
        CHECK(i == 0 || list[i - 1].pearson >= list[i].pearson);
    }
    for (int64_t j = 0; n && j < candidates; j++)
        CHECK(!valid[j] || listed[j] || pearson[j] <= list[n - 1].pearson + 1e-9);
}

static void check_companions(const scene *s, const dlrn_feature_report *r) {
    double pearson[F] = {0}, cosine[F] = {0};
    int valid[F] = {0};
    for (int64_t j = 0; j < F; j++) {
        int batch = !s->cfg->compat;
        for (int64_t i = s->list_at; i < s->n_list && i < s->list_at + 128; i++)
            batch |= s->list[i] == j;
        if (!batch || (j == r->feature && !s->cfg->compat)) continue;
        valid[j] = j == r->feature ||
                   correlate(s, s->f + r->feature, F, s->f + j, F, &pearson[j], &cosine[j]);
    }
    check_list(r->companion, r->companions, s->cfg->together, pearson, cosine, valid, F);
    for (int64_t i = 0; i < r->companions; i++)
        if (r->companion[i].index != r->feature)
            CHECK(r->companion[i].both == both_active(s, r->feature, r->companion[i].index));
}

static void check_neurons(const scene *s, const dlrn_feature_report *r) {
    double pearson[D] = {0}, cosine[D] = {0};
    int valid[D];
    for (int64_t j = 0; j < D; j++)
        valid[j] = s->cfg->neurons &&
                   correlate(s, s->f + r->feature, F, text.x + j, D, &pearson[j], &cosine[j]);
    check_list(r->neuron, r->neurons, 3, pearson, cosine, valid, D);
}

/* ---- Running a survey ---- */

/* What the visits of one report are checked against, or gathered in. */
typedef struct gathering {
    scene s;
    int64_t visits;
    uint64_t hash; /* of every field of every report */
    int check;
} gathering;

static uint64_t mix_report(uint64_t hash, const dlrn_survey_config *cfg,
                           const dlrn_feature_report *r) {
    hash = starve_mix(hash, &r->feature, sizeof r->feature);
    hash = starve_mix(hash, &r->totals.fired, sizeof r->totals.fired);
    hash = starve_mix(hash, &r->totals.sum, sizeof r->totals.sum);
    hash = starve_mix(hash, &r->totals.sum_squares, sizeof r->totals.sum_squares);
    hash = starve_mix(hash, &r->density, sizeof r->density);
    hash = starve_mix(hash, r->histogram, (size_t)cfg->bins * sizeof *r->histogram);
    for (int64_t k = 0; k < cfg->intervals; k++)
        hash = starve_mix(hash, &r->interval[k].share, sizeof r->interval[k].share);
    for (int64_t i = 0; i < r->examples; i++) {
        const dlrn_example *e = &r->example[i];
        hash = starve_mix(hash, &e->row, sizeof e->row);
        hash = starve_mix(hash, e->token, (size_t)e->count * sizeof *e->token);
        hash = starve_mix(hash, e->value, (size_t)e->count * sizeof *e->value);
    }
    for (int64_t i = 0; i < r->tokens; i++) {
        hash = starve_mix(hash, &r->by_mean[i].mean, sizeof r->by_mean[i].mean);
        hash = starve_mix(hash, &r->by_share[i].share, sizeof r->by_share[i].share);
    }
    for (int64_t i = 0; i < r->companions; i++) {
        hash = starve_mix(hash, &r->companion[i].index, sizeof r->companion[i].index);
        hash = starve_mix(hash, &r->companion[i].pearson, sizeof r->companion[i].pearson);
        hash = starve_mix(hash, &r->companion[i].cosine, sizeof r->companion[i].cosine);
    }
    for (int64_t i = 0; i < r->neurons; i++)
        hash = starve_mix(hash, &r->neuron[i].pearson, sizeof r->neuron[i].pearson);
    return hash;
}

static dlrn_status visit(void *user, const dlrn_feature_report *r) {
    gathering *g = (gathering *)user;
    g->hash = mix_report(g->hash, g->s.cfg, r);
    g->s.list_at = g->visits / 128 * 128;
    CHECK(r->feature == g->s.list[g->visits]);
    g->visits++;
    if (!g->check) return DLRN_OK;
    check_totals(&g->s, r);
    int64_t at = check_top(&g->s, r);
    for (int64_t k = 0; k < g->s.cfg->intervals; k++) at = check_interval(&g->s, r, k, at);
    CHECK(r->examples == at);
    check_tokens(&g->s, r);
    check_companions(&g->s, r);
    check_neurons(&g->s, r);
    return DLRN_OK;
}

/* A survey of the text, `piece` contexts a call, and a report on list [n]; NULL: all features. */
static uint64_t survey(const dlrn_dictionary *dict, const dlrn_survey_config *cfg,
                       const unsigned char *keep, int64_t piece, const int64_t *list, int64_t n,
                       int check) {
    dlrn_survey *s = NULL;
    int64_t all[F];
    gathering g;
    memset(&g, 0, sizeof g);
    for (int f = 0; f < F; f++) all[f] = f;
    if (!list) list = all, n = F;
    g.s.cfg = cfg, g.s.f = text.f, g.s.keep = keep, g.s.list = list, g.s.n_list = n;
    g.check = check;
    CHECK_OK(dict->ctx, dlrn_survey_create(dict, cfg, &s));
    for (int64_t c = 0; c < CONTEXTS; c += piece) {
        const int64_t m = CONTEXTS - c < piece ? CONTEXTS - c : piece, at = text.start[c];
        CHECK_OK(dict->ctx, dlrn_survey_add(s, text.x + at * D, text.id + at, text.start + c, m,
                                            keep ? keep + at : NULL));
    }
    const dlrn_survey_info info = dlrn_survey_describe(s);
    CHECK(info.rows == text.n && info.contexts == CONTEXTS);
    CHECK_OK(dict->ctx, dlrn_survey_report(s, list, n, visit, &g));
    CHECK(g.visits == n);
    dlrn_survey_destroy(s);
    return g.hash;
}

static void encode_text(const dlrn_dictionary *dict) {
    CHECK_OK(dict->ctx, dlrn_encode(dict, text.x, text.n, text.f));
}

TEST(reports_are_those_of_plain_loops) {
    dlrn_context *ctx = test_context(NULL, 2);
    dlrn_dictionary *ae = make_dictionary(ctx);
    encode_text(ae);
    for (int compat = 0; compat < 2; compat++)
        for (int keep = 0; keep < 2; keep++)
            for (int spooled = 0; spooled < 2; spooled++) {
                if (test_brief() && (spooled != keep || compat != keep)) continue;
                dlrn_survey_config cfg = dlrn_survey_defaults();
                cfg.compat = compat ? DLRN_ON : DLRN_OFF;
                cfg.before = 6, cfg.after = 3, cfg.seed = 9;
                if (spooled) cfg.memory = 4096;
                survey(ae, &cfg, keep ? text.keep : NULL, 7, NULL, 0, 1);
            }
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

/* ---- Other dictionaries ---- */

/* Encodes each context alone. */
static void encode_contexts(const dlrn_dictionary *dict) {
    for (int c = 0; c < CONTEXTS; c++)
        CHECK_OK(dict->ctx,
                 dlrn_encode(dict, text.x + text.start[c] * D, text.start[c + 1] - text.start[c],
                             text.f + text.start[c] * F));
}

/* Features of both signs. */
TEST(negative_activations) {
    dlrn_context *ctx = test_context(NULL, 2);
    dlrn_dictionary *dict = make_family(ctx, "AbsTopK", 6);
    int64_t negative = 0;
    encode_text(dict);
    for (int64_t i = 0; i < text.n * F; i++) negative += text.f[i] < 0;
    CHECK(negative > text.n);
    for (int compat = 0; compat < 2; compat++) {
        dlrn_survey_config cfg = dlrn_survey_defaults();
        cfg.compat = compat ? DLRN_ON : DLRN_OFF;
        survey(dict, &cfg, text.keep, 7, NULL, 0, 1);
    }
    dlrn_dictionary_destroy(dict);
    dlrn_context_destroy(ctx);
}

static dlrn_dictionary *temporal(dlrn_context *ctx) {
    dlrn_dictionary *dict = NULL;
    dlrn_rng rng = {5, 0, 0};
    const dlrni_family *family = dlrni_family_named("Temporal");
    CHECK_OK(ctx, dlrni_dictionary_new(ctx, family, D, D, F, &dict));
    dict->heads = 2, dict->head_width = 3, dict->formula.k = 6;
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        if (!(family->roles >> role & 1)) continue;
        CHECK_OK(ctx, dlrni_param_alloc(dict, role));
        for (int64_t i = 0; i < dlrni_role_size(dict, role); i++)
            dict->param[role][i] = 0.3f * dlrn_rng_normal(&rng);
    }
    return dict;
}

/* Rows that are encoded or selected together: those of a context, in calls of any size. */
TEST(contexts_are_encoded_alone) {
    dlrn_context *ctx = test_context(NULL, 2);
    dlrn_survey_config cfg = dlrn_survey_defaults();
    for (int kind = 0; kind < 3; kind++) {
        dlrn_dictionary *dict = kind == 0 ? temporal(ctx) : make_family(ctx, "BatchTopKSAE", 3);
        if (kind == 1) {
            dict->formula.gate = DLRN_GATE_RELU;
            dict->formula.select = DLRN_SELECT_BATCH_TOP_K;
        } else if (kind == 2) {
            dict->formula.gate = DLRN_GATE_RELU;
            dict->formula.select = DLRN_SELECT_TOP_K;
            dict->formula.standardise = DLRN_ON;
        }
        encode_contexts(dict);
        const uint64_t one = survey(dict, &cfg, text.keep, 1, NULL, 0, 1);
        CHECK(survey(dict, &cfg, text.keep, CONTEXTS, NULL, 0, 1) == one);
        dlrn_dictionary_destroy(dict);
    }
    dlrn_context_destroy(ctx);
}

TEST(dictionaries_of_parts) {
    dlrn_context *ctx = test_context(NULL, 2);
    dlrn_survey_config cfg = dlrn_survey_defaults();
    dlrn_dictionary_desc desc;
    dlrn_dictionary *dict = NULL;
    memset(&desc, 0, sizeof desc);
    desc.family = "CrossLayerTranscoder", desc.d_in = D, desc.features = F, desc.seed = 2;
    desc.layers = 4;
    CHECK_OK(ctx, dlrn_dictionary_create(ctx, &desc, &dict));
    CHECK(dict->n_parts == 4);
    encode_text(dict);
    survey(dict, &cfg, text.keep, 7, NULL, 0, 1);
    /* one part compares the rows of a call */
    dict->part[1].dict->formula.select = DLRN_SELECT_BATCH_TOP_K;
    dict->part[1].dict->formula.k = 2;
    dlrn_dictionary_changed(dict);
    encode_contexts(dict);
    survey(dict, &cfg, text.keep, 7, NULL, 0, 1);
    dlrn_dictionary_destroy(dict);
    dlrn_context_destroy(ctx);
}

/* ---- The same bits ---- */

TEST(neither_threads_nor_kernels_nor_memory_nor_calls_change_a_bit) {
    /* 3 and 6 do not divide F: ranges of features differ, and end at features that are active */
    static const int numbers[] = {1, 2, 3, 6};
    uint64_t wanted[2] = {0, 0};
    for (int k = 0; test_kernels(k); k++)
        for (int t = 0; t < 4; t += test_brief() ? 3 : 1) {
            const int threads = numbers[t];
            dlrn_context *ctx = test_context(test_kernels(k), threads);
            dlrn_dictionary *ae = make_dictionary(ctx);
            for (int way = 0; way < 6; way++) {
                dlrn_survey_config cfg = dlrn_survey_defaults();
                cfg.compat = way % 2 ? DLRN_ON : DLRN_OFF;
                if (way / 2 == 1) cfg.memory = 0;
                if (way / 2 == 2) cfg.memory = 100000;
                const uint64_t hash =
                    survey(ae, &cfg, text.keep, way < 2 ? CONTEXTS : 1 + threads, NULL, 0, 0);
                if (!wanted[way % 2]) wanted[way % 2] = hash;
                CHECK_MSG(hash == wanted[way % 2], "%s, %d threads, way %d", test_kernels(k),
                          threads, way);
            }
            dlrn_dictionary_destroy(ae);
            dlrn_context_destroy(ctx);
        }
}

/* ---- Lists of features ---- */

/* A survey for some features reports on them as one for all does; lists may repeat a feature. In
   compat companions are those of the same 128 of a list, so the order of the list matters. */
TEST(lists_of_features) {
    dlrn_context *ctx = test_context(NULL, 2);
    dlrn_dictionary *ae = make_dictionary(ctx);
    const int64_t some[] = {40, 7, 3, 5, 139}, twice[] = {9, 40, 9, 9, 40};
    int64_t backwards[F];
    encode_text(ae);
    for (int i = 0; i < F; i++) backwards[i] = F - 1 - i;
    for (int compat = 0; compat < 2; compat++)
        for (int64_t together = 0; together < 2; together++) {
            dlrn_survey_config cfg = dlrn_survey_defaults();
            cfg.compat = compat ? DLRN_ON : DLRN_OFF;
            cfg.together = 10 * together;
            const uint64_t all = survey(ae, &cfg, text.keep, 7, some, 5, 1);
            survey(ae, &cfg, NULL, 7, backwards, F, 1);
            if (!compat) survey(ae, &cfg, NULL, 7, twice, 5, 1);
            CHECK(survey(ae, &cfg, NULL, 7, some, 0, 1) == 0);
            cfg.features = some, cfg.n_features = 5;
            CHECK(survey(ae, &cfg, text.keep, 7, some, 5, 1) == all);
            cfg.memory = 1000;
            CHECK(survey(ae, &cfg, text.keep, 7, some, 5, 1) == all);
        }
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

/* Nothing of everything, and windows of every kind. */
TEST(less_and_more) {
    dlrn_context *ctx = test_context(NULL, 2);
    dlrn_dictionary *ae = make_dictionary(ctx);
    dlrn_survey_config cfg = dlrn_survey_defaults();
    encode_text(ae);
    cfg.neurons = DLRN_OFF;
    cfg.before = cfg.after = -1, cfg.intervals = 3, cfg.per_interval = 1;
    survey(ae, &cfg, text.keep, 7, NULL, 0, 1);
    cfg.before = 0, cfg.after = INT64_MAX, cfg.top = 0, cfg.intervals = 1, cfg.tokens = 99;
    survey(ae, &cfg, text.keep, 7, NULL, 0, 1);
    cfg.before = INT64_MAX, cfg.after = 0, cfg.top = 65536, cfg.intervals = 0, cfg.bins = 1;
    survey(ae, &cfg, text.keep, 7, NULL, 0, 1);
    cfg.bins = cfg.top = cfg.per_interval = cfg.tokens = cfg.together = 0;
    survey(ae, &cfg, text.keep, 7, NULL, 0, 1);
    cfg.intervals = 5;
    survey(ae, &cfg, text.keep, 7, NULL, 0, 1);
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

static dlrn_status count_visit(void *user, const dlrn_feature_report *r) {
    int64_t *visits = (int64_t *)user;
    CHECK(r->totals.fired >= 0);
    ++*visits;
    return *visits == 3 ? DLRN_STOPPED : DLRN_OK;
}

/* No rows, rows that are all left out, one row. */
TEST(few_rows) {
    dlrn_context *ctx = test_context(NULL, 2);
    dlrn_dictionary *ae = make_dictionary(ctx);
    const int64_t none[] = {3, 3, 3}, one[] = {5, 6}, list[] = {0, 1};
    const unsigned char drop = 0;
    for (int rows = 0; rows < 3; rows++)
        for (int compat = 0; compat < 2; compat++) {
            dlrn_survey_config cfg = dlrn_survey_defaults();
            dlrn_survey *s = NULL;
            int64_t visits = 0;
            cfg.compat = compat ? DLRN_ON : DLRN_OFF;
            CHECK_OK(ctx, dlrn_survey_create(ae, &cfg, &s));
            CHECK_OK(ctx, dlrn_survey_add(s, NULL, NULL, none, 2, NULL));
            CHECK_OK(ctx, dlrn_survey_add(s, NULL, NULL, NULL, 0, NULL));
            if (rows)
                CHECK_OK(ctx, dlrn_survey_add(s, text.x, text.id, one, 1, rows > 1 ? NULL : &drop));
            const dlrn_survey_info info = dlrn_survey_describe(s);
            CHECK(info.rows == (rows > 0) && info.counted == (rows > 1));
            CHECK(info.contexts == 2 + (rows > 0) && info.file == 0);
            CHECK_OK(ctx, dlrn_survey_report(s, list, 2, count_visit, &visits));
            dlrn_survey_destroy(s);
        }
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

/* ---- Errors ---- */

static dlrn_status add_text(dlrn_survey *s) {
    return dlrn_survey_add(s, text.x, text.id, text.start, CONTEXTS, text.keep);
}

static void check_refused(dlrn_context *ctx, dlrn_status found, dlrn_status wanted,
                          const char *words) {
    CHECK_STATUS(found, wanted);
    CHECK_STR(dlrn_error(ctx), words);
}

/* A visit that stops ends the report, which may be repeated; then no more rows are taken. */
TEST(a_visit_may_stop) {
    dlrn_context *ctx = test_context(NULL, 2);
    dlrn_dictionary *ae = make_dictionary(ctx);
    const int64_t list[] = {0, 1, 2, 4, 6};
    for (int spooled = 0; spooled < 2; spooled++) {
        dlrn_survey_config cfg = dlrn_survey_defaults();
        dlrn_survey *s = NULL;
        int64_t visits = 0;
        if (spooled) cfg.memory = 4096;
        CHECK_OK(ctx, dlrn_survey_create(ae, &cfg, &s));
        CHECK_OK(ctx, add_text(s));
        CHECK((dlrn_survey_describe(s).file > 0) == spooled);
        CHECK_STATUS(dlrn_survey_report(s, list, 5, count_visit, &visits), DLRN_STOPPED);
        CHECK(visits == 3);
        CHECK_OK(ctx, dlrn_survey_report(s, list, 5, count_visit, &visits));
        CHECK(visits == 8);
        check_refused(ctx, add_text(s), DLRN_ERR_ARGUMENT, "no more rows after a report");
        dlrn_survey_destroy(s);
    }
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

static int stop_once(void *user) {
    return ++*(int *)user == 2;
}

/* The context's stop ends a report, which may be repeated. */
TEST(a_report_is_stopped) {
    int asked = 0;
    dlrn_context_config how;
    dlrn_context *ctx = NULL;
    memset(&how, 0, sizeof how);
    how.stop = stop_once, how.user = &asked;
    CHECK(dlrn_context_create(&how, &ctx) == DLRN_OK);
    dlrn_dictionary *ae = make_dictionary(ctx);
    dlrn_survey_config cfg = dlrn_survey_defaults();
    dlrn_survey *s = NULL;
    const int64_t list[] = {0, 1, 2, 4, 6};
    int64_t visits = 0;
    cfg.memory = 4096; /* several passes */
    CHECK_OK(ctx, dlrn_survey_create(ae, &cfg, &s));
    CHECK_OK(ctx, add_text(s));
    CHECK_STATUS(dlrn_survey_report(s, list, 5, count_visit, &visits), DLRN_STOPPED);
    CHECK(visits == 0);
    CHECK_STATUS(dlrn_survey_report(s, list, 5, count_visit, &visits), DLRN_STOPPED);
    CHECK(visits == 3); /* the visit's own */
    dlrn_survey_destroy(s);
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

/* Arguments of dlrn_survey_add that are wrong; a failure ends the survey. */
TEST(rows_that_are_refused) {
    dlrn_context *ctx = test_context(NULL, 2);
    dlrn_dictionary *ae = make_dictionary(ctx);
    const int64_t back[] = {0, 4, 2}, below[] = {-1, 2}, three[] = {0, 1, 3};
    const int64_t list[] = {0};
    float x[3 * D];
    int32_t id[3] = {1, 2, 3};
    memcpy(x, text.x, sizeof x);
    ae->param[DLRN_ENCODER][5] = 10; /* 3e38 overflows */
    dlrn_dictionary_changed(ae);
    for (int what = 0; what < 6; what++) {
        dlrn_survey *s = NULL;
        int64_t visits = 0;
        CHECK_OK(ctx, dlrn_survey_create(ae, NULL, &s));
        CHECK_OK(ctx, add_text(s));
        x[2 * D + 5] = what == 3 ? (float)NAN : what == 5 ? 3e38f : 0.5f;
        id[2] = what == 4 ? -7 : 3;
        const dlrn_status status = dlrn_survey_add(s, what == 2 ? NULL : x, id,
                                                   what == 0   ? back
                                                   : what == 1 ? below
                                                               : three,
                                                   what == 1 ? 1 : 2, NULL);
        if (what == 0) check_refused(ctx, status, DLRN_ERR_SHAPE, "context 61 ends before");
        if (what == 1) check_refused(ctx, status, DLRN_ERR_ARGUMENT, "start must not be");
        if (what == 2) check_refused(ctx, status, DLRN_ERR_ARGUMENT, "x and id must not");
        if (what == 3) check_refused(ctx, status, DLRN_ERR_VALUE, "survey: x, row ");
        if (what == 4) check_refused(ctx, status, DLRN_ERR_ARGUMENT, "a token from 0 on, found -7");
        if (what == 5) check_refused(ctx, status, DLRN_ERR_VALUE, "a finite activation");
        check_refused(ctx, add_text(s), DLRN_ERR_ARGUMENT, "an earlier call failed");
        check_refused(ctx, dlrn_survey_report(s, list, 1, count_visit, &visits), DLRN_ERR_ARGUMENT,
                      "an earlier call failed");
        CHECK(visits == 0);
        dlrn_survey_destroy(s);
    }
    dlrn_survey_destroy(NULL);
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

TEST(configurations_and_lists_that_are_refused) {
    dlrn_context *ctx = test_context(NULL, 2);
    dlrn_dictionary *ae = make_dictionary(ctx);
    const int64_t some[] = {4, 7}, beyond[] = {4, F}, negative[] = {-1}, other[] = {7, 5};
    dlrn_survey *s = NULL;
    int64_t visits = 0;
    for (int what = 0; what < 7; what++) {
        dlrn_survey_config cfg = dlrn_survey_defaults();
        if (what == 0) cfg.top = 65537;
        if (what == 1) cfg.bins = -1;
        if (what == 2) cfg.memory = -1;
        if (what == 3) cfg.after = -2;
        if (what == 4) cfg.n_features = 2;
        if (what == 5) cfg.features = beyond, cfg.n_features = 2;
        if (what == 6) cfg.features = negative, cfg.n_features = 1;
        s = (dlrn_survey *)&visits;
        check_refused(ctx, dlrn_survey_create(ae, &cfg, &s), DLRN_ERR_ARGUMENT,
                      "dlrn_survey_create: ");
        CHECK(s == NULL);
    }
    dlrn_survey_config cfg = dlrn_survey_defaults();
    cfg.features = some, cfg.n_features = 2;
    CHECK_OK(ctx, dlrn_survey_create(ae, &cfg, &s));
    CHECK_OK(ctx, add_text(s));
    check_refused(ctx, dlrn_survey_report(s, other, 2, count_visit, &visits), DLRN_ERR_ARGUMENT,
                  "the survey is for, found 5");
    check_refused(ctx, dlrn_survey_report(s, beyond, 2, count_visit, &visits), DLRN_ERR_ARGUMENT,
                  "found 140");
    check_refused(ctx, dlrn_survey_report(s, some, -1, count_visit, &visits), DLRN_ERR_ARGUMENT,
                  "n must not be negative");
    CHECK_OK(ctx, dlrn_survey_report(s, some, 2, count_visit, &visits));
    dlrn_survey_destroy(s);
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

/* ---- Files of a host ---- */

/* One temporary file in memory, whose calls fail from the given one on. */
static struct {
    char *bytes;
    size_t size, cap, at;
    int left, open; /* calls until one fails; negative: none does */
} disk;

static dlrn_status disk_call(dlrn_context *ctx) {
    if (disk.left == 0) return dlrn_fail(ctx, DLRN_ERR_IO, "the disk is gone");
    if (disk.left > 0) disk.left--;
    return DLRN_OK;
}

static dlrn_status disk_open(void *user, dlrn_context *ctx, const char *path, int writing,
                             void **file) {
    (void)user, (void)path, (void)writing, (void)file;
    return dlrn_fail(ctx, DLRN_ERR_IO, "no such file");
}

static dlrn_status disk_temporary(void *user, dlrn_context *ctx, const char *path, void **file) {
    (void)user;
    CHECK(!strcmp(path, "here/scratch"));
    CHECK(disk.open == 0);
    if (disk_call(ctx)) return DLRN_ERR_IO;
    disk.size = disk.at = 0;
    disk.open++;
    *file = &disk;
    return DLRN_OK;
}

static dlrn_status disk_write(void *user, dlrn_context *ctx, void *file, const void *bytes,
                              size_t size) {
    (void)user, (void)file;
    if (disk_call(ctx)) return DLRN_ERR_IO;
    if (disk.size + size > disk.cap) disk.cap = 2 * (disk.size + size);
    disk.bytes = (char *)realloc(disk.bytes, disk.cap);
    CHECK(disk.bytes != NULL);
    memcpy(disk.bytes + disk.size, bytes, size);
    disk.size += size;
    return DLRN_OK;
}

/* At most 1000 bytes a call, as a slow file gives them. */
static dlrn_status disk_read(void *user, dlrn_context *ctx, void *file, void *bytes, size_t size,
                             size_t *got) {
    (void)user, (void)file;
    if (disk_call(ctx)) return DLRN_ERR_IO;
    *got = disk.size - disk.at < size ? disk.size - disk.at : size;
    if (*got > 1000) *got = 1000;
    memcpy(bytes, disk.bytes + disk.at, *got);
    disk.at += *got;
    return DLRN_OK;
}

static int disk_rewind(void *user, void *file) {
    (void)user, (void)file;
    if (disk.left == 0) return 0;
    if (disk.left > 0) disk.left--;
    disk.at = 0;
    return 1;
}

static dlrn_status disk_close(void *user, dlrn_context *ctx, void *file, int keep) {
    (void)user, (void)ctx, (void)file;
    CHECK(!keep);
    disk.open--;
    return DLRN_OK;
}

static int disk_exists(void *user, const char *path) {
    (void)user, (void)path;
    return 0;
}

static const int64_t on_disk[] = {5, 2, 8};

/* A whole survey through the disk; returns its status and hash. */
static dlrn_status survey_on_disk(const dlrn_dictionary *ae, uint64_t *hash) {
    dlrn_survey_config cfg = dlrn_survey_defaults();
    dlrn_survey *s = NULL;
    gathering g;
    memset(&g, 0, sizeof g);
    g.s.cfg = &cfg, g.s.list = on_disk;
    cfg.memory = 30000, cfg.scratch = "here/scratch";
    dlrn_status status = dlrn_survey_create(ae, &cfg, &s);
    if (!status) status = add_text(s);
    if (!status) status = dlrn_survey_report(s, on_disk, 3, visit, &g);
    dlrn_survey_destroy(s);
    *hash = g.hash;
    return status;
}

TEST(files_of_a_host) {
    dlrn_context_config config = {0};
    dlrn_context *ctx = NULL;
    const dlrn_io io = {disk_open,   disk_read,   disk_write,     disk_close,
                        disk_exists, disk_rewind, disk_temporary, NULL};
    dlrn_survey_config cfg = dlrn_survey_defaults();
    uint64_t wanted = 0, found = 0;
    int faults = 0;
    config.threads = 1, config.io = io;
    CHECK_STATUS(dlrn_context_create(&config, &ctx), DLRN_OK);
    dlrn_dictionary *ae = make_dictionary(ctx);
    wanted = survey(ae, &cfg, text.keep, 7, on_disk, 3, 0);
    disk.left = -1;
    CHECK_OK(ctx, survey_on_disk(ae, &found));
    CHECK(found == wanted && disk.size > 20000);
    for (int granted = 0;; granted += 1 + granted / 8, faults++) {
        disk.left = granted;
        const dlrn_status status = survey_on_disk(ae, &found);
        CHECK(disk.open == 0);
        if (status == DLRN_OK) break;
        CHECK_STATUS(status, DLRN_ERR_IO);
        CHECK(strstr(dlrn_error(ctx), "the disk is gone") ||
              strstr(dlrn_error(ctx), "a temporary file for here/scratch: cannot go back"));
    }
    CHECK(faults > 10);
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
    /* without temporary files codes stay in memory */
    config.io.temporary_file = NULL;
    CHECK_STATUS(dlrn_context_create(&config, &ctx), DLRN_OK);
    ae = make_dictionary(ctx);
    disk.left = 0;
    CHECK_OK(ctx, survey_on_disk(ae, &found));
    CHECK(found == wanted);
    disk.left = -1;
    free(disk.bytes);
    memset(&disk, 0, sizeof disk);
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

/* A file that lost its end while it was open. */
TEST(a_file_that_is_cut) {
    dlrn_context_config config = {0};
    dlrn_context *ctx = NULL;
    const dlrn_io io = {disk_open,   disk_read,   disk_write,     disk_close,
                        disk_exists, disk_rewind, disk_temporary, NULL};
    dlrn_survey_config cfg = dlrn_survey_defaults();
    dlrn_survey *s = NULL;
    const int64_t list[] = {0};
    int64_t visits = 0;
    disk.left = -1;
    config.threads = 1, config.io = io;
    CHECK_STATUS(dlrn_context_create(&config, &ctx), DLRN_OK);
    dlrn_dictionary *ae = make_dictionary(ctx);
    cfg.memory = 30000, cfg.scratch = "here/scratch";
    CHECK_OK(ctx, dlrn_survey_create(ae, &cfg, &s));
    CHECK_OK(ctx, add_text(s));
    disk.size -= 6;
    check_refused(ctx, dlrn_survey_report(s, list, 1, count_visit, &visits), DLRN_ERR_IO,
                  "here/scratch: ends within a row");
    dlrn_survey_destroy(s);
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
    free(disk.bytes);
    memset(&disk, 0, sizeof disk);
}

/* ---- Memory ---- */

static dlrn_dictionary *starved;

/* A survey through the spool; every allocation of it fails once. */
static dlrn_status survey_starved(void) {
    dlrn_survey_config cfg = dlrn_survey_defaults();
    dlrn_survey *s = NULL;
    int64_t visits = 10;
    const int64_t list[] = {0, 5, 17};
    cfg.memory = 20000, cfg.compat = DLRN_ON;
    cfg.features = list, cfg.n_features = 3;
    dlrn_status status = dlrn_survey_create(starved, &cfg, &s);
    CHECK((status == DLRN_OK) == (s != NULL));
    if (!status) status = add_text(s);
    if (!status) status = dlrn_survey_report(s, list, 3, count_visit, &visits);
    dlrn_survey_destroy(s);
    return status;
}

TEST(without_memory) {
    dlrn_context *ctx = starve_context(2);
    starved = make_dictionary(ctx);
    starve_all("a survey", ctx, survey_starved);
    dlrn_dictionary_destroy(starved);
    dlrn_context_destroy(ctx);
}

/* What the plan says is enough, and not many times too much; the file is what it says. */
TEST(the_plan_is_kept) {
    dlrn_context *ctx = starve_context(2);
    dlrn_dictionary *ae = NULL;
    enum { ROWS = 40000, WIDE = 600 };
    float *x = (float *)malloc((size_t)ROWS * D * sizeof *x);
    int32_t *id = (int32_t *)malloc(ROWS * sizeof *id);
    int64_t start[401], list[WIDE];
    dlrn_rng rng = {3, 0, 0};
    CHECK(x && id);
    for (int i = 0; i < ROWS * D; i++) x[i] = dlrn_rng_normal(&rng);
    for (int i = 0; i < ROWS; i++) id[i] = (int32_t)dlrn_rng_below(&rng, 1000);
    for (int i = 0; i <= 400; i++) start[i] = 100 * i;
    for (int i = 0; i < WIDE; i++) list[i] = i;
    CHECK_OK(ctx, new_autoencoder(ctx, D, WIDE, 4, &ae));
    for (int f = 0; f < WIDE; f++) ae->param[DLRN_ENCODER_BIAS][f] -= 0.9f;
    dlrn_dictionary_changed(ae);
    for (int way = 0; way < 4; way++) {
        dlrn_survey_config cfg = dlrn_survey_defaults();
        dlrn_survey *s = NULL;
        double memory, file;
        int64_t visits = 10;
        if (way % 2) cfg.memory = 2000000;
        if (way > 1) cfg.before = cfg.after = -1, cfg.neurons = DLRN_OFF;
        const size_t before = starve.in_use;
        starve.peak = before;
        CHECK_OK(ctx, dlrn_survey_create(ae, &cfg, &s));
        for (int i = 0; i < 400; i += 20)
            CHECK_OK(ctx, dlrn_survey_add(s, x + start[i] * D, id + start[i], start + i, 20, NULL));
        const dlrn_survey_info info = dlrn_survey_describe(s);
        CHECK(info.codes > 10 * ROWS);
        CHECK_OK(ctx, dlrn_survey_report(s, list, WIDE, count_visit, &visits));
        dlrn_survey_plan(ae, &cfg, ROWS, 400, (double)info.codes / ROWS, WIDE, &memory, &file);
        const double peak = (double)(starve.peak - before);
        CHECK_MSG(peak <= memory && memory < 5 * peak + 5e7, "way %d: planned %g, took %g", way,
                  memory, peak);
        CHECK_MSG(info.file <= file && (file > 0) == (info.file > 0), "way %d: planned %g, took %g",
                  way, file, (double)info.file);
        CHECK((double)info.memory <= peak);
        dlrn_survey_destroy(s);
    }
    free(x);
    free(id);
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    make_text();
    RUN(reports_are_those_of_plain_loops);
    RUN_LONG(negative_activations);
    RUN_LONG(contexts_are_encoded_alone);
    RUN(dictionaries_of_parts);
    RUN_LONG(neither_threads_nor_kernels_nor_memory_nor_calls_change_a_bit);
    RUN_LONG(lists_of_features);
    RUN_LONG(less_and_more);
    RUN(few_rows);
    RUN(a_visit_may_stop);
    RUN(a_report_is_stopped);
    RUN(rows_that_are_refused);
    RUN(configurations_and_lists_that_are_refused);
    RUN(files_of_a_host);
    RUN(a_file_that_is_cut);
    RUN(without_memory);
    RUN_LONG(the_plan_is_kept);
    return TEST_END();
}
