/* test_survey.c - surveys against plain loops over the dense features, in every figure; and that
   neither threads, kernels, memory nor the grouping of contexts change a bit. */
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "tests/starve.h"
#include "tests/test.h"

enum { D = 12, F = 90, CONTEXTS = 60, MOST_ROWS = 1200, TOKENS = 23, MOST_EXAMPLES = 60 };

/* The text of most tests: contexts of 0 to 40 rows, every fifth row as it was 37 rows before, so
   that activations are tied, and every seventh left out. */
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
        for (int j = 0; j < D; j++)
            text.x[i * D + j] = i >= 37 && i % 5 == 0 ? text.x[(i - 37) * D + j]
                                                      : dlrn_rng_normal(&rng) + 0.2f * (float)j;
        text.id[i] = (int32_t)dlrn_rng_below(&rng, TOKENS);
        text.keep[i] = dlrn_rng_below(&rng, 7) != 0;
    }
}

static dlrn_context *open_context(int threads, const char *kernels) {
    dlrn_context_config cfg = {0};
    dlrn_context *ctx = NULL;
    cfg.threads = threads;
    cfg.kernels = kernels;
    CHECK_STATUS(dlrn_context_create(&cfg, &ctx), DLRN_OK);
    return ctx;
}

/* Features that never fire, that fire now and then, and always. */
static void set_biases(dlrn_dictionary *ae) {
    for (int f = 0; f < F; f++)
        ae->param[DLRN_ENCODER_BIAS][f] += f % 11 == 3   ? -50.0f
                                           : f % 11 == 5 ? 50.0f
                                           : f % 3 == 0  ? -2.0f
                                                         : 0.0f;
    dlrn_dictionary_changed(ae);
}

static dlrn_dictionary *make_dictionary(dlrn_context *ctx) {
    dlrn_dictionary *ae = NULL;
    CHECK_OK(ctx, new_autoencoder(ctx, D, F, 4, &ae));
    set_biases(ae);
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

/* compat masks what is left out; sums of correlations alone see it. */
static float masked(const scene *s, int64_t row, int64_t feature) {
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
        const float v = masked(s, i, r->feature);
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
        const double v = (double)masked(s, i, r->feature);
        if (v == 0 || (s->cfg->compat && v < 0)) continue;
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
    int64_t first = before < 0 ? text.start[c] : row - before;
    int64_t end = after < 0 ? text.start[c + 1] : row + after + 1;
    if (first < text.start[c]) first = text.start[c];
    if (end > text.start[c + 1]) end = text.start[c + 1];
    CHECK(e < r->examples);
    CHECK_MSG(x->row == row && x->context == c && x->interval == interval,
              "feature %d, example %d: row %d of %d", (int)r->feature, (int)e, (int)x->row,
              (int)row);
    CHECK(x->first == first && x->count == end - first);
    CHECK(x->peak == activation(s, row, r->feature));
    for (int64_t i = 0; i < x->count; i++) {
        CHECK(x->token[i] == text.id[first + i]);
        CHECK(x->value[i] == activation(s, first + i, r->feature));
    }
}

/* The largest: the best row of each context, or any row. */
static int64_t check_top(const scene *s, const dlrn_feature_report *r) {
    int64_t n = 0;
    for (int64_t i = 0; i < text.n; i++) key_of[i] = (double)masked(s, i, r->feature);
    for (int64_t i = 0; i < text.n; i++) {
        int best = key_of[i] > 0;
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
        const float v = masked(s, i, r->feature);
        dlrn_rng rng = {s->cfg->seed, (uint64_t)r->feature, (uint64_t)i};
        key_of[i] = -dlrn_rng_uniform_f64(&rng);
        all += s->cfg->compat || counted(s, i);
        if (max <= 0 || v > high || v < low || (!s->cfg->compat && v == low)) continue;
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
    dlrn_context *ctx = open_context(2, NULL);
    dlrn_dictionary *ae = make_dictionary(ctx);
    encode_text(ae);
    for (int compat = 0; compat < 2; compat++)
        for (int keep = 0; keep < 2; keep++)
            for (int spooled = 0; spooled < 2; spooled++) {
                dlrn_survey_config cfg = dlrn_survey_defaults();
                cfg.compat = compat ? DLRN_ON : DLRN_OFF;
                cfg.before = 6, cfg.after = 3, cfg.seed = 9;
                if (spooled) cfg.memory = 4096;
                survey(ae, &cfg, keep ? text.keep : NULL, 7, NULL, 0, 1);
            }
    dlrn_dictionary_destroy(ae);
    dlrn_context_destroy(ctx);
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    make_text();
    RUN(reports_are_those_of_plain_loops);
    return TEST_END();
}
