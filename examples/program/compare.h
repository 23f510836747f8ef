/* dictlearn compare: which atoms of one dictionary are in others, too. Of atoms a_i and b_j:

       mean max cosine of a in b   1/F sum_i max_j cos(a_i, b_j)      (MMCS; Sharkey et al., 2022)
       mutual                      b_j is nearest to a_i, and a_i to b_j
       matched                     mutual, and cos(a_i, b_j) is at least --match

   A feature has at most one partner in each dictionary, so the number of matches does not grow when
   a dictionary holds the same atom twice, as the mean does. */

enum { COMPARE_BINS = 20, COMPARE_WORST = 5 };

/* One of two dictionaries, seen from the other. */
typedef struct compare_side {
    const char *path;
    const dlrn_dictionary *dict; /* borrowed */
    int64_t features;
    int32_t *nearest;             /* [features] in the other dictionary; -1: an atom of zeros  */
    float *cosine;                /* [features] with it; NaN                                   */
    double mean;                  /* of the cosines                                            */
    int64_t no_atom;              /* atoms of zeros                                            */
    int64_t count[COMPARE_BINS];  /* of the cosines, in bins from 0 to 1; below 0: the first */
    int64_t worst[COMPARE_WORST]; /* unmatched features, the lowest cosine first */
    int n_worst;
} compare_side;

/* Two dictionaries. */
typedef struct comparison {
    compare_side side[2];
    char *matched;  /* [features of the first] */
    float *encoder; /* [same] cosine of the encoder rows of a match; NaN: not to be compared */
    int64_t mutual, matches;
    double mean, mean_encoder; /* of the matches' cosines; NaN: there are none */
} comparison;

static void comparison_free(dlrn_context *ctx, comparison *c) {
    for (int s = 0; s < 2; s++) {
        dlrn_free(ctx, c->side[s].nearest);
        dlrn_free(ctx, c->side[s].cosine);
    }
    dlrn_free(ctx, c->matched);
    dlrn_free(ctx, c->encoder);
    memset(c, 0, sizeof *c);
}

/* The cosine of the encoder rows of two features; NaN where they cannot be compared. */
static float encoder_cosine(const dlrn_dictionary *a, int64_t i, const dlrn_dictionary *b,
                            int64_t j) {
    int64_t width, other;
    const float *x = look_row(a, DLRN_ENCODER, i, &width);
    const float *y = look_row(b, DLRN_ENCODER, j, &other);
    if (!x || !y || width != other) return (float)NAN;
    const double norms = (double)dlrn_norm(a->ctx, x, width) * (double)dlrn_norm(a->ctx, y, width);
    return norms > 0 ? (float)((double)dlrn_dot(a->ctx, x, y, width) / norms) : (float)NAN;
}

/* Mean, histogram and count of one side's cosines. */
static void summarise_side(compare_side *a) {
    double sum = 0;
    for (int64_t i = 0; i < a->features; i++) {
        if (a->nearest[i] < 0) {
            a->no_atom++;
            continue;
        }
        const int bin = (int)floor((double)a->cosine[i] * COMPARE_BINS);
        a->count[bin < 0 ? 0 : bin < COMPARE_BINS ? bin : COMPARE_BINS - 1]++;
        sum += (double)a->cosine[i];
    }
    a->mean = sum / (double)(a->features - a->no_atom);
}

/* The features without a match whose cosines are lowest. is_matched: of each feature. */
static void find_worst(compare_side *a, const char *is_matched) {
    for (int64_t i = 0; i < a->features; i++) {
        int at = a->n_worst;
        if (is_matched[i] || a->nearest[i] < 0) continue;
        while (at > 0 && a->cosine[i] < a->cosine[a->worst[at - 1]]) at--;
        if (at == COMPARE_WORST) continue;
        if (a->n_worst < COMPARE_WORST) a->n_worst++;
        for (int q = a->n_worst - 1; q > at; q--) a->worst[q] = a->worst[q - 1];
        a->worst[at] = i;
    }
}

/* Pairs that are nearest to each other, and those that match. taken [features of the second]. */
static void find_matches(comparison *c, double match, char *taken) {
    const compare_side *a = &c->side[0], *b = &c->side[1];
    double sum = 0, sum_encoder = 0;
    int64_t encoders = 0;
    for (int64_t i = 0; i < a->features; i++) {
        const int64_t j = a->nearest[i];
        c->encoder[i] = (float)NAN;
        if (j < 0 || b->nearest[j] != i) continue;
        c->mutual++;
        if (!((double)a->cosine[i] >= match)) continue;
        c->matches++;
        c->matched[i] = taken[j] = 1;
        sum += (double)a->cosine[i];
        c->encoder[i] = encoder_cosine(a->dict, i, b->dict, j);
        if (c->encoder[i] != c->encoder[i]) continue;
        sum_encoder += (double)c->encoder[i];
        encoders++;
    }
    c->mean = sum / (double)c->matches;
    c->mean_encoder = sum_encoder / (double)encoders;
}

/* Errors of the library name no file. */
static dlrn_status nearest_failed(dlrn_context *ctx, const comparison *c, dlrn_status s) {
    char why[1024];
    if (s == DLRN_OK || s == DLRN_STOPPED || s == DLRN_ERR_MEMORY) return s;
    snprintf(why, sizeof why, "%s", dlrn_error(ctx));
    return dlrn_fail(ctx, s, "%s and %s: %s", c->side[0].path, c->side[1].path, why);
}

/* Room for the results of one side. */
static dlrn_status side_alloc(dlrn_context *ctx, compare_side *a) {
    a->nearest = (int32_t *)dlrn_alloc(ctx, a->features, sizeof *a->nearest);
    a->cosine = a->nearest ? (float *)dlrn_alloc(ctx, a->features, sizeof *a->cosine) : NULL;
    return a->cosine ? DLRN_OK : DLRN_ERR_MEMORY;
}

/* Searches in both directions, then matches. Both sides have their dictionaries. */
static dlrn_status compare_atoms(dlrn_context *ctx, comparison *c, double match) {
    compare_side *a = &c->side[0], *b = &c->side[1];
    char *taken = (char *)dlrn_alloc(ctx, b->features, 1);
    c->matched = taken ? (char *)dlrn_alloc(ctx, a->features, 1) : NULL;
    c->encoder = c->matched ? (float *)dlrn_alloc(ctx, a->features, sizeof *c->encoder) : NULL;
    dlrn_status s = c->encoder ? DLRN_OK : DLRN_ERR_MEMORY;
    for (int q = 0; q < 2 && s == DLRN_OK; q++) {
        compare_side *of = &c->side[q];
        s = side_alloc(ctx, of);
        if (s == DLRN_OK)
            s = dlrn_nearest(of->dict, c->side[!q].dict, DLRN_DECODER, NULL, of->features, 1,
                             of->nearest, of->cosine);
        if (s == DLRN_OK) summarise_side(of);
    }
    if (s == DLRN_OK) {
        memset(taken, 0, (size_t)b->features);
        memset(c->matched, 0, (size_t)a->features);
        find_matches(c, match, taken);
        find_worst(a, c->matched);
        find_worst(b, taken);
    }
    dlrn_free(ctx, taken);
    return nearest_failed(ctx, c, s);
}

/* Whether the atoms of two dictionaries have a width and layers in common. */
static dlrn_status check_comparable(dlrn_context *ctx, const comparison *c) {
    const dlrn_dictionary *a = c->side[0].dict, *b = c->side[1].dict;
    for (int q = 0; q < 2; q++) {
        const dlrn_dictionary *dict = c->side[q].dict;
        if (!dict->n_parts && !dict->param[DLRN_DECODER])
            return dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED,
                             "%s: expected a dictionary with atoms, found a %s", c->side[q].path,
                             dict->family);
    }
    if (a->d_out != b->d_out)
        return dlrn_fail(ctx, DLRN_ERR_SHAPE,
                         "%s: expected atoms of width %lld, as %s has, found %lld", c->side[1].path,
                         (long long)a->d_out, c->side[0].path, (long long)b->d_out);
    if (a->layers != b->layers)
        return dlrn_fail(ctx, DLRN_ERR_SHAPE, "%s: expected %lld layer%s, as %s has, found %lld",
                         c->side[1].path, (long long)a->layers, a->layers == 1 ? "" : "s",
                         c->side[0].path, (long long)b->layers);
    if (a->n_parts != b->n_parts)
        return dlrn_fail(ctx, DLRN_ERR_SHAPE, "%s: expected a %s, as %s is, found a %s",
                         c->side[1].path, a->family, c->side[0].path, b->family);
    return DLRN_OK;
}

/* ---- for people */

static double percent_of(int64_t part, int64_t whole) {
    return whole ? 100 * (double)part / (double)whole : 0;
}

static void put_count(const char *name, int64_t n, int64_t of) {
    printf("  %-38s %9lld  %6.2f %%\n", name, (long long)n, percent_of(n, of));
}

static void put_mean(const char *name, double value) {
    if (value == value)
        printf("  %-38s %9.4f\n", name, value);
    else
        printf("  %-38s %s\n", name, "not measured");
}

/* What one side has alone, with the features that are farthest from all of the other. */
static void put_unmatched(const char *name, const compare_side *a, int64_t matches) {
    put_count(name, a->features - matches, a->features);
    for (int q = 0; q < a->n_worst; q++)
        printf("%s%lld (%.2f)", q ? ", " : "      farthest: ", (long long)a->worst[q],
               (double)a->cosine[a->worst[q]]);
    if (a->n_worst) putchar('\n');
    if (a->no_atom) put_count("    with an atom of zeros", a->no_atom, a->features);
}

/* Both histograms side by side, from the first bin that holds something. */
static void put_max_cosines(const comparison *c) {
    const compare_side *a = &c->side[0], *b = &c->side[1];
    int64_t max = 1;
    int from = 0;
    for (int i = 0; i < COMPARE_BINS; i++) max = a->count[i] > max ? a->count[i] : max;
    while (from < COMPARE_BINS - 1 && !a->count[from] && !b->count[from]) from++;
    printf("  max cosine        of the first  of the second\n");
    for (int i = from; i < COMPARE_BINS; i++) {
        int bar = (int)((a->count[i] * 40 + max - 1) / max);
        printf("  %5.2f to %4.2f  %15lld  %13lld%s", i ? (double)i / COMPARE_BINS : -1.0,
               (double)(i + 1) / COMPARE_BINS, (long long)a->count[i], (long long)b->count[i],
               bar ? "  " : "");
        while (bar-- > 0) putchar('#');
        putchar('\n');
    }
}

static void put_side_name(const compare_side *a) {
    put_text(stdout, a->path, (int64_t)strlen(a->path));
    printf(" (%lld features)", (long long)a->features);
}

static void print_comparison(const comparison *c, double match) {
    const compare_side *a = &c->side[0], *b = &c->side[1];
    char name[64];
    put_side_name(a);
    fputs(" and ", stdout);
    put_side_name(b);
    putchar('\n');
    put_mean("mean max cosine, of the first's atoms", a->mean);
    put_mean("mean max cosine, of the second's atoms", b->mean);
    put_count("nearest to each other", c->mutual, a->features);
    snprintf(name, sizeof name, "matched: those with a cosine >= %g", match);
    put_count(name, c->matches, a->features);
    put_mean("  mean cosine of their atoms", c->mean);
    put_mean("  mean cosine of their encoder rows", c->mean_encoder);
    put_unmatched("unmatched of the first", a, c->matches);
    put_unmatched("unmatched of the second", b, c->matches);
}

/* In how many of the other dictionaries the features of the first have a match: count [others + 1].
   found [F]. */
static void count_found(const int32_t *found, int64_t features, int64_t *count) {
    for (int64_t i = 0; i < features; i++) count[found[i]]++;
}

static void print_stability(const char *path, int64_t features, const int64_t *count, int others) {
    fputs("features of ", stdout);
    put_text(stdout, path, (int64_t)strlen(path));
    printf(" with a match in\n");
    for (int n = others; n >= 0; n--) {
        char name[64];
        snprintf(name, sizeof name,
                 n == 2 && n == others ? "both others"
                 : n == others         ? "all %d others"
                 : n > 1               ? "%d others"
                 : n                   ? "%d other"
                                       : "none",
                 n);
        put_count(name, count[n], features);
    }
}

/* ---- as JSON */

static void put_numbers_json(json_writer *j, const char *key, const int64_t *x, int64_t n) {
    json_open(j, key, '[');
    for (int64_t i = 0; i < n; i++) json_int(j, NULL, x[i]);
    json_close(j, ']');
}

static void put_side_json(json_writer *j, const char *key, const compare_side *a, int64_t matches) {
    json_open(j, key, '{');
    json_text(j, "path", a->path);
    json_int(j, "features", a->features);
    json_real(j, "mean_max_cosine", 9, a->mean);
    json_int(j, "unmatched", a->features - matches);
    json_int(j, "zero_atoms", a->no_atom);
    put_numbers_json(j, "farthest", a->worst, a->n_worst);
    put_numbers_json(j, "histogram", a->count, COMPARE_BINS);
    json_open(j, "nearest", '[');
    for (int64_t i = 0; i < a->features; i++) json_int(j, NULL, a->nearest[i]);
    json_close(j, ']');
    json_open(j, "max_cosine", '[');
    for (int64_t i = 0; i < a->features; i++) json_real(j, NULL, 7, (double)a->cosine[i]);
    json_close(j, ']');
    json_close(j, '}');
}

/* pairs: [feature of the first, of the second, cosine of atoms, cosine of encoder rows]. */
static void put_comparison_json(json_writer *j, const comparison *c) {
    const compare_side *a = &c->side[0];
    json_open(j, NULL, '{');
    json_int(j, "mutual", c->mutual);
    json_int(j, "matched", c->matches);
    json_real(j, "mean_matched_cosine", 9, c->mean);
    json_real(j, "mean_matched_encoder_cosine", 9, c->mean_encoder);
    put_side_json(j, "first", a, c->matches);
    put_side_json(j, "second", &c->side[1], c->matches);
    json_open(j, "pairs", '[');
    for (int64_t i = 0; i < a->features; i++) {
        if (!c->matched[i]) continue;
        json_open(j, NULL, '[');
        json_int(j, NULL, i);
        json_int(j, NULL, a->nearest[i]);
        json_real(j, NULL, 7, (double)a->cosine[i]);
        json_real(j, NULL, 7, (double)c->encoder[i]);
        json_close(j, ']');
    }
    json_close(j, ']');
    json_close(j, '}');
}

/* found_in: of each feature of the first, in how many others it has a match; features_found_in:
   how many features are found in 0, 1, ... others. */
static void put_stability_json(json_writer *j, const int32_t *found, int64_t features,
                               const int64_t *count, int others) {
    put_numbers_json(j, "features_found_in", count, others + 1);
    json_open(j, "found_in", '[');
    for (int64_t i = 0; i < features; i++) json_int(j, NULL, found[i]);
    json_close(j, ']');
}

/* ---- the command */

/* The first dictionary, and what was found about it so far. */
typedef struct compare_run {
    dlrn_context *ctx;
    const options *o;
    dlrn_dictionary *first;
    int32_t *found; /* [F] in how many others a feature has a match */
    json_writer json;
    int others;
} compare_run;

/* Compares the first dictionary with the one of a path, and prints it. */
static dlrn_status compare_with(compare_run *r, const char *path, int alone) {
    dlrn_dictionary *dict = NULL;
    comparison c;
    memset(&c, 0, sizeof c);
    dlrn_status s = load_dictionary(r->ctx, path, r->o, &dict);
    if (s != DLRN_OK) return s;
    c.side[0].path = r->o->path, c.side[0].dict = r->first, c.side[0].features = r->first->features;
    c.side[1].path = path, c.side[1].dict = dict, c.side[1].features = dict->features;
    s = check_comparable(r->ctx, &c);
    if (s == DLRN_OK) s = compare_atoms(r->ctx, &c, r->o->match);
    for (int64_t i = 0; s == DLRN_OK && i < r->first->features; i++) r->found[i] += c.matched[i];
    if (s == DLRN_OK && r->o->json) put_comparison_json(&r->json, &c);
    if (s == DLRN_OK && !r->o->json) print_comparison(&c, r->o->match);
    if (s == DLRN_OK && !r->o->json && alone) put_max_cosines(&c);
    r->others++;
    comparison_free(r->ctx, &c);
    dlrn_dictionary_destroy(dict);
    return s;
}

/* What is printed after all comparisons. */
static dlrn_status end_comparisons(compare_run *r) {
    int64_t *count = (int64_t *)dlrn_alloc(r->ctx, r->others + 1, sizeof *count);
    if (!count) return DLRN_ERR_MEMORY;
    memset(count, 0, (size_t)(r->others + 1) * sizeof *count);
    count_found(r->found, r->first->features, count);
    if (r->o->json) {
        json_close(&r->json, ']');
        put_stability_json(&r->json, r->found, r->first->features, count, r->others);
        json_close(&r->json, '}');
        fputc('\n', r->json.f);
    } else if (r->others > 1) {
        print_stability(r->o->path, r->first->features, count, r->others);
    }
    dlrn_free(r->ctx, count);
    return DLRN_OK;
}

/* Compares the first dictionary with each of the others, of which one at a time is in memory. */
static dlrn_status compare_all(compare_run *r) {
    const char *word;
    int at = 0, next = 0;
    next_word(r->o, &at);
    next = at;
    next_word(r->o, &next);
    const int alone = !next_word(r->o, &next);
    dlrn_status s = load_dictionary(r->ctx, r->o->path, r->o, &r->first);
    if (s != DLRN_OK) return s;
    r->found = (int32_t *)dlrn_alloc(r->ctx, r->first->features, sizeof *r->found);
    if (!r->found) return DLRN_ERR_MEMORY;
    memset(r->found, 0, (size_t)r->first->features * sizeof *r->found);
    if (r->o->json) {
        json_open(&r->json, NULL, '{');
        json_real(&r->json, "match", 6, r->o->match);
        json_int(&r->json, "width", r->first->d_out);
        json_open(&r->json, "comparisons", '[');
    }
    while (s == DLRN_OK && (word = next_word(r->o, &at))) s = compare_with(r, word, alone);
    return s == DLRN_OK ? end_comparisons(r) : s;
}

static int run_compare(dlrn_context *ctx, const options *o) {
    compare_run r;
    page text; /* JSON is printed whole, or not at all */
    memset(&r, 0, sizeof r);
    dlrn_status s = page_open(ctx, &text);
    if (s != DLRN_OK) return fail(ctx);
    r.ctx = ctx, r.o = o, r.json.f = text.f;
    s = compare_all(&r);
    const dlrn_status ended = page_end(ctx, &text);
    if (s == DLRN_OK) s = ended;
    if (s == DLRN_OK) fwrite(text.text, 1, text.size, stdout);
    page_free(&text);
    dlrn_free(ctx, r.found);
    dlrn_dictionary_destroy(r.first);
    return s == DLRN_OK ? 0 : fail(ctx);
}
