/* dictlearn features: the tokens and contexts on which a feature fires most. Two passes over the
   text: the first counts firings and chooses features, the second collects their contexts. */

enum { TOP_TOKENS = 6, AROUND = 8, SHOWN_MAX = 256 };

typedef struct firing { /* of a feature on a token */
    float value;
    int64_t token; /* index into the documents' ids */
} firing;

typedef struct showing {
    model_text mt;
    const options *o;
    dlrn_dictionary *dict;
    lm_documents texts;
    dlrn_sparse codes;
    int64_t rows, done, counted; /* asked for; looked at; of those, not left out */
    int64_t *fired;              /* [F] */
    float *max;                  /* [F] largest activation */
    int64_t shown[SHOWN_MAX], n_shown;
    int64_t *slot;    /* [F] place in shown, -1 */
    firing *best;     /* [n_shown][contexts] strongest first */
    double *by_token; /* [n_shown][vocabulary] summed activation */
} showing;

/* How many of n further rows are still to be counted. */
static int64_t rows_left(const showing *w, int64_t n) {
    return n < w->rows - w->done ? n : w->rows - w->done;
}

/* First pass: how often and how strongly each feature fires. */
static dlrn_status count_firings(void *user, int tap, const float *x, float *y, int64_t n) {
    showing *w = (showing *)user;
    int64_t rows = rows_left(w, n);
    (void)tap, (void)y;
    dlrn_status s;
    unsigned char *keep = chosen_rows(&w->mt, x, n, &s);
    if (s == DLRN_OK) s = dlrn_encode_sparse(w->dict, x, rows, &w->codes);
    for (int64_t i = 0; i < rows && s == DLRN_OK; i++) {
        w->counted += keep[i];
        w->mt.left_out += !keep[i];
        for (int64_t k = w->codes.row_ptr[i]; keep[i] && k < w->codes.row_ptr[i + 1]; k++) {
            int32_t f = w->codes.col[k];
            w->fired[f]++;
            if (w->codes.val[k] > w->max[f]) w->max[f] = w->codes.val[k];
        }
    }
    w->done += rows;
    dlrn_free(w->mt.ctx, keep);
    return s;
}

/* Inserts a firing in a list of the n strongest. */
static void keep_firing(firing *best, int64_t n, float value, int64_t token) {
    int64_t at = n - 1;
    if (value <= best[at].value) return;
    for (; at > 0 && best[at - 1].value < value; at--) best[at] = best[at - 1];
    best[at].value = value;
    best[at].token = token;
}

/* Second pass: the contexts and tokens of the chosen features. */
static dlrn_status collect_firings(void *user, int tap, const float *x, float *y, int64_t n) {
    showing *w = (showing *)user;
    const int64_t v = lm_config_of(w->mt.model)->vocab;
    int64_t rows = rows_left(w, n);
    (void)tap, (void)y;
    dlrn_status s;
    unsigned char *keep = chosen_rows(&w->mt, x, n, &s);
    if (s == DLRN_OK) s = dlrn_encode_sparse(w->dict, x, rows, &w->codes);
    for (int64_t i = 0; s == DLRN_OK && i < rows; i++)
        for (int64_t k = w->codes.row_ptr[i]; keep[i] && k < w->codes.row_ptr[i + 1]; k++) {
            int64_t slot = w->slot[w->codes.col[k]];
            if (slot < 0) continue;
            keep_firing(w->best + slot * w->o->contexts, w->o->contexts, w->codes.val[k],
                        w->done + i);
            w->by_token[slot * v + w->texts.id[w->done + i]] += (double)w->codes.val[k];
        }
    w->done += rows;
    dlrn_free(w->mt.ctx, keep);
    return s;
}

/* Parses "3,17,40" into shown [SHOWN_MAX], each number once. Returns how many, or 0 if the text is
   anything else. */
static int64_t parse_features(const char *list, int64_t *shown) {
    int64_t n = 0, at;
    for (const char *c = list;; c++) {
        int digits = (int)strspn(c, "0123456789");
        if (digits < 1 || digits > 10) return 0;
        int64_t number = strtoll(c, NULL, 10);
        for (at = 0; at < n && shown[at] != number;) at++;
        if (at == SHOWN_MAX) return 0;
        shown[at] = number;
        n += at == n;
        c += digits;
        if (!*c) return n;
        if (*c != ',') return 0;
    }
}

/* The numbers of --features against the dictionary. */
static dlrn_status check_features(const showing *w) {
    for (int64_t k = 0; k < w->n_shown; k++)
        if (w->shown[k] >= w->dict->features)
            return dlrn_fail(w->mt.ctx, DLRN_ERR_ARGUMENT,
                             "--features: expected numbers below %lld as %s has them, found %lld",
                             (long long)w->dict->features, w->o->dict, (long long)w->shown[k]);
    return DLRN_OK;
}

/* Without --features: those that fire on 0.1 to 5 % of the rows, strongest first; if there are
   none, any that fire. */
static void choose_features(showing *w) {
    int64_t want = w->o->count < SHOWN_MAX ? w->o->count : SHOWN_MAX;
    for (int pass = 0; pass < 2 && w->n_shown == 0; pass++) {
        double low = pass ? 0 : 1e-3, high = pass ? 1 : 0.05;
        while (w->n_shown < want) {
            int64_t best = -1;
            for (int64_t f = 0; f < w->dict->features; f++) {
                double share = (double)w->fired[f] / (double)(w->counted ? w->counted : 1);
                if (w->slot[f] < 0 && w->fired[f] && share >= low && share <= high &&
                    (best < 0 || w->max[f] > w->max[best]))
                    best = f;
            }
            if (best < 0) break;
            w->slot[best] = w->n_shown;
            w->shown[w->n_shown++] = best;
        }
    }
}

/* Prints tokens [from, to) of the texts, on one line or (with a key) as a JSON string. They are
   joined first, since a token may end within a character. */
static dlrn_status put_tokens(const showing *w, json_writer *j, const char *key, int64_t from,
                              int64_t to) {
    bpe_text text;
    dlrn_status s = DLRN_OK;
    memset(&text, 0, sizeof text);
    for (int64_t i = from; i < to && s == DLRN_OK; i++) {
        int64_t n = 0;
        const char *bytes = lm_token_bytes(w->mt.tok, w->texts.id[i], &n);
        if (bytes) s = bpe_put(w->mt.ctx, &text, bytes, n);
    }
    if (s == DLRN_OK && key)
        json_bytes(j, key, text.bytes, text.count);
    else if (s == DLRN_OK)
        put_text(stdout, text.bytes, text.count);
    bpe_text_free(&text);
    return s;
}

/* The document that holds a token. */
static int64_t document_of(const showing *w, int64_t token) {
    int64_t low = 0, high = w->texts.count;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (w->texts.start[middle] <= token)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* A line: the activation and the tokens around, the one that fires in guillemets. */
static dlrn_status show_context(const showing *w, const firing *f) {
    int64_t d = document_of(w, f->token), from = w->texts.start[d], to = w->texts.start[d + 1];
    if (from < f->token - AROUND) from = f->token - AROUND;
    if (to > f->token + AROUND + 1) to = f->token + AROUND + 1;
    printf("  %8.3f  ", (double)f->value);
    dlrn_status s = put_tokens(w, NULL, NULL, from, f->token);
    fputs("\xC2\xAB", stdout);
    if (s == DLRN_OK) s = put_tokens(w, NULL, NULL, f->token, f->token + 1);
    fputs("\xC2\xBB", stdout);
    if (s == DLRN_OK) s = put_tokens(w, NULL, NULL, f->token + 1, to);
    putchar('\n');
    return s;
}

/* The tokens that carry most of a feature's activation, each with its share. Their sums become 0.
   */
static int64_t top_tokens(showing *w, int64_t slot, int32_t *id, double *share) {
    const int64_t v = lm_config_of(w->mt.model)->vocab;
    double *sum = w->by_token + slot * v, total = 0;
    int64_t n = 0;
    for (int64_t t = 0; t < v; t++) total += sum[t];
    for (; n < TOP_TOKENS; n++) {
        int64_t best = 0;
        for (int64_t t = 1; t < v; t++)
            if (sum[t] > sum[best]) best = t;
        if (!(sum[best] > 0)) break;
        id[n] = (int32_t)best;
        share[n] = sum[best] / total;
        sum[best] = 0;
    }
    return n;
}

/* Prints a feature for people. */
static dlrn_status show_feature(showing *w, int64_t slot) {
    int32_t id[TOP_TOKENS];
    double share[TOP_TOKENS];
    int64_t f = w->shown[slot], n = top_tokens(w, slot, id, share);
    const firing *best = w->best + slot * w->o->contexts;
    printf("feature %lld: fires on %.2f %% of the tokens\n  tokens   ", (long long)f,
           100 * (double)w->fired[f] / (double)w->counted);
    for (int64_t k = 0; k < n; k++) {
        int64_t length = 0;
        const char *s = lm_token_bytes(w->mt.tok, id[k], &length);
        putchar(' ');
        put_quoted(stdout, s ? s : "?", s ? length : 1);
        printf(" %.0f %%", 100 * share[k]);
    }
    putchar('\n');
    dlrn_status s = DLRN_OK;
    for (int64_t k = 0; k < w->o->contexts && best[k].value > 0 && s == DLRN_OK; k++)
        s = show_context(w, &best[k]);
    return s;
}

/* The tokens before the firing one, from the document's start, and that token. */
static dlrn_status put_context_json(const showing *w, json_writer *j, const firing *f) {
    const int64_t d = document_of(w, f->token), start = w->texts.start[d];
    json_open(j, NULL, '{');
    json_real(j, "value", 9, (double)f->value);
    json_int(j, "document", d);
    json_int(j, "token", f->token - start);
    dlrn_status s = put_tokens(w, j, "before", start, f->token);
    if (s == DLRN_OK) s = put_tokens(w, j, "at", f->token, f->token + 1);
    json_close(j, '}');
    return s;
}

/* Prints a feature as an element of the JSON list. */
static dlrn_status put_feature_json(showing *w, json_writer *j, int64_t slot) {
    int32_t id[TOP_TOKENS];
    double share[TOP_TOKENS];
    int64_t f = w->shown[slot], n = top_tokens(w, slot, id, share);
    const firing *best = w->best + slot * w->o->contexts;
    json_open(j, NULL, '{');
    json_int(j, "feature", f);
    json_real(j, "frequency", 9, (double)w->fired[f] / (double)w->counted);
    json_real(j, "max", 9, (double)w->max[f]);
    json_open(j, "tokens", '[');
    for (int64_t k = 0; k < n; k++) {
        json_open(j, NULL, '{');
        json_int(j, "id", id[k]);
        json_real(j, "share", 6, share[k]);
        json_close(j, '}');
    }
    json_close(j, ']');
    json_open(j, "contexts", '[');
    dlrn_status s = DLRN_OK;
    for (int64_t k = 0; k < w->o->contexts && best[k].value > 0 && s == DLRN_OK; k++)
        s = put_context_json(w, j, &best[k]);
    json_close(j, ']');
    json_close(j, '}');
    return s;
}

/* Prints the chosen features; says so where none of them fires, or there is none to choose. */
static dlrn_status put_features(showing *w) {
    json_writer j = {stdout, 0};
    dlrn_status s = DLRN_OK;
    int64_t any = 0;
    for (int64_t k = 0; k < w->n_shown; k++) any += w->fired[w->shown[k]] > 0;
    if (!any)
        fprintf(w->o->json ? stderr : stdout, "%s: %s fires on the %lld rows of %s\n", w->o->dict,
                w->o->features ? "none of these features" : "no feature", (long long)w->counted,
                w->o->text);
    if (w->o->json) json_open(&j, NULL, '[');
    for (int64_t k = 0; k < w->n_shown && s == DLRN_OK; k++)
        s = w->o->json ? put_feature_json(w, &j, k) : show_feature(w, k);
    if (w->o->json) json_close(&j, ']');
    if (w->o->json) putchar('\n');
    return s;
}

/* Both passes, then the output. */
static dlrn_status show_features(showing *w) {
    dlrn_context *ctx = w->mt.ctx;
    const int64_t F = w->dict->features, v = lm_config_of(w->mt.model)->vocab;
    w->fired = (int64_t *)dlrn_alloc(ctx, F, sizeof *w->fired);
    w->max = (float *)dlrn_alloc(ctx, F, sizeof *w->max);
    w->slot = (int64_t *)dlrn_alloc(ctx, F, sizeof *w->slot);
    if (!w->fired || !w->max || !w->slot) return DLRN_ERR_MEMORY;
    for (int64_t f = 0; f < F; f++) w->fired[f] = 0, w->max[f] = 0, w->slot[f] = -1;
    dlrn_status s = check_features(w);
    if (s == DLRN_OK) s = read_texts(&w->mt, w->o, w->rows, 1, &w->texts);
    if (s == DLRN_OK) s = visit_texts(&w->mt, &w->texts, w->rows, count_firings, w);
    if (s == DLRN_OK && !w->o->features) choose_features(w);
    if (s != DLRN_OK) return s;
    for (int64_t k = 0; k < w->n_shown; k++) w->slot[w->shown[k]] = k;
    w->best = (firing *)dlrn_alloc(ctx, w->n_shown * w->o->contexts, sizeof *w->best);
    w->by_token = (double *)dlrn_alloc(ctx, w->n_shown * v, sizeof *w->by_token);
    if (!w->best || !w->by_token) return DLRN_ERR_MEMORY;
    memset(w->best, 0, (size_t)(w->n_shown * w->o->contexts) * sizeof *w->best);
    memset(w->by_token, 0, (size_t)(w->n_shown * v) * sizeof *w->by_token);
    w->done = 0;
    s = visit_texts(&w->mt, &w->texts, w->rows, collect_firings, w);
    return s == DLRN_OK ? put_features(w) : s;
}

static int run_features(dlrn_context *ctx, const options *o) {
    showing w;
    int status = lacks_flag("features", "--dict", o->dict) ? 2 : check_site_flags("features", o);
    if (status) return status;
    memset(&w, 0, sizeof w);
    if (o->features && (w.n_shown = parse_features(o->features, w.shown)) == 0)
        return usage_error("features",
                           "expected at most 256 numbers with commas between as --features",
                           o->features);
    w.o = o;
    w.rows = o->rows > 0 ? o->rows : 65536;
    dlrn_status s = model_text_open(ctx, o, 1, &w.mt);
    if (s == DLRN_OK) s = load_dictionary(ctx, o->dict, o, &w.dict);
    if (s == DLRN_OK) s = check_site_width(&w.mt, o, w.dict);
    if (s == DLRN_OK && w.dict->heads) /* batches of texts are not documents */
        s = dlrn_fail(ctx, DLRN_ERR_UNSUPPORTED,
                      "%s: a %s encodes the rows of a document together, which features does not",
                      o->dict, w.dict->family);
    if (s == DLRN_OK) s = show_features(&w);
    model_text_tell(&w.mt, o);
    void *blocks[] = {w.fired, w.max, w.slot, w.best, w.by_token};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) dlrn_free(ctx, blocks[i]);
    dlrn_sparse_free(&w.codes);
    lm_documents_free(&w.texts);
    dlrn_dictionary_destroy(w.dict);
    model_text_close(&w.mt);
    return s == DLRN_OK ? 0 : fail(ctx);
}
