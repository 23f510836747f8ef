/* dictlearn features: what features fire on. One pass of the model over the text; then the features
   are chosen, and shown on the terminal, on a page (--out), or as JSON (--json). look.h does most
   of the work. */

/* The template of the page, page.html, as an array of bytes: embed.sh makes this file. */
#include "page_html.h"

enum { TOP_TOKENS = 6, AROUND = 8 }; /* of a feature on the terminal                       */
enum { NEURON_BYTES = 1 << 30 };     /* correlations with coordinates may take so much      */

typedef struct showing {
    model_text mt;
    const options *o;
    dlrn_dictionary *dict;
    dlrn_survey *survey;
    dlrn_survey_config cfg;
    look_about about;
    char model_name[256], dict_name[256], text_name[256];
    char note[4][256]; /* sentences for the page */
    const char *notes[4];
    int64_t *list, n;    /* the features to show */
    int64_t rows, count; /* count: of --count; -1: it is not given */
    int64_t sinks;       /* features that are strongest on the first token of a context */
    double started, told;
} showing;

/* ---- which features */

/* The value of --count; -1: it is not given. */
static int64_t count_of(const options *o) {
    const char *none;
    return is_given(o, find_flag("--count", &none)) ? o->count : -1;
}

/* The next part of --features, "7" or "3-17"; returns the text after it, or NULL if there is no
   such part. */
static const char *next_range(const char *c, int64_t *from, int64_t *to) {
    size_t digits = strspn(c, "0123456789");
    if (digits < 1 || digits > 10) return NULL;
    *from = *to = strtoll(c, NULL, 10);
    c += digits;
    if (*c != '-') return c;
    digits = strspn(++c, "0123456789");
    if (digits < 1 || digits > 10) return NULL;
    *to = strtoll(c, NULL, 10);
    return *to < *from ? NULL : c + digits;
}

/* Whether --features is a list of numbers and ranges with commas between. */
static int names_features(const char *c) {
    int64_t from, to;
    while ((c = next_range(c, &from, &to)) != NULL && *c == ',') c++;
    return c && !*c;
}

/* The numbers of --features in their order, each once. */
static dlrn_status take_list(showing *w) {
    const int64_t F = w->dict->features;
    unsigned char *seen = (unsigned char *)dlrn_alloc(w->mt.ctx, F, 1);
    int64_t from, to;
    if (!seen) return DLRN_ERR_MEMORY;
    memset(seen, 0, (size_t)F);
    dlrn_status s = DLRN_OK;
    for (const char *c = w->o->features; s == DLRN_OK && *c; c += *c == ',') {
        c = next_range(c, &from, &to);
        if (to >= F)
            s = dlrn_fail(w->mt.ctx, DLRN_ERR_ARGUMENT,
                          "--features: expected numbers below %lld as %s has them, found %lld",
                          (long long)F, w->o->dict, (long long)to);
        for (; s == DLRN_OK && from <= to; from++)
            if (!seen[from]) seen[from] = 1, w->list[w->n++] = from;
    }
    dlrn_free(w->mt.ctx, seen);
    return s;
}

static int ascending(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* After the sweep: the features of --all, of --count, or as many as suit a page. */
static dlrn_status choose_features(showing *w) {
    const int64_t F = w->dict->features;
    const int paged = w->o->out != NULL;
    int64_t want = w->count > 0 ? w->count : paged ? LOOK_PAGE_ALL : 8;
    if (w->o->all || (paged && w->count < 0 && F <= LOOK_PAGE_ALL)) want = F;
    if (want > F) want = F;
    if (want == F && (w->o->all || paged)) {
        for (w->n = 0; w->n < F; w->n++) w->list[w->n] = w->n;
        return DLRN_OK;
    }
    w->n = look_choose(w->dict, w->survey, want, w->list);
    if (w->n < 0) return DLRN_ERR_MEMORY;
    if (paged) qsort(w->list, (size_t)w->n, sizeof *w->list, ascending);
    return DLRN_OK;
}

/* ---- the sweep */

/* Room for the list, and those of its features that are known before the sweep. */
static dlrn_status begin_list(showing *w) {
    w->list = (int64_t *)dlrn_alloc(w->mt.ctx, w->dict->features, sizeof *w->list);
    if (!w->list) return DLRN_ERR_MEMORY;
    return w->o->features ? take_list(w) : DLRN_OK;
}

/* The survey's settings. On the terminal only the strongest contexts are shown. */
static dlrn_survey_config survey_settings(const showing *w) {
    const options *o = w->o;
    dlrn_survey_config cfg = look_survey_defaults(o->json, o->compat);
    cfg.memory = o->memory > 0 ? o->memory << 20 : 1;
    if (o->memory < 0) cfg.memory = dlrn_survey_defaults().memory;
    cfg.scratch = o->out && strcmp(o->out, "-") ? o->out : NULL;
    cfg.features = o->features ? w->list : NULL;
    cfg.n_features = o->features ? w->n : 0;
    cfg.seed = (uint64_t)o->seed;
    const int64_t asked = o->features ? w->n : w->dict->features;
    if (asked > NEURON_BYTES / 8 / w->dict->d_in) cfg.neurons = DLRN_OFF;
    if (o->contexts > 0) cfg.top = o->contexts;
    if (o->out || o->json) return cfg;
    cfg.neurons = DLRN_OFF;
    cfg.top = o->contexts > 0 ? o->contexts : 4;
    cfg.intervals = cfg.per_interval = cfg.together = 0;
    cfg.before = cfg.after = AROUND;
    cfg.tokens = TOP_TOKENS;
    return cfg;
}

/* Bytes as people say them. */
static const char *size_text(double bytes, char *text, size_t size) {
    static const char *const unit[] = {"KB", "MB", "GB", "TB"};
    int k = 0;
    for (bytes /= 1024; bytes >= 1000 && k < 3; k++) bytes /= 1024;
    snprintf(text, size, bytes < 10 ? "%.1f %s" : "%.0f %s", bytes, unit[k]);
    return text;
}

/* Where a temporary file would be: the library's rule. */
static const char *scratch_folder(const showing *w, char *text, size_t size) {
    const char *dir = getenv("TMPDIR"),
               *slash = w->cfg.scratch ? strrchr(w->cfg.scratch, '/') : NULL;
    if (dir && *dir)
        snprintf(text, size, "%s", dir);
    else if (slash)
        snprintf(text, size, "%.*s", (int)(slash - w->cfg.scratch) + (slash == w->cfg.scratch),
                 w->cfg.scratch);
    else
        snprintf(text, size, ".");
    return text;
}

/* Says what the sweep will take, once its first rows show how many features are active. */
static void tell_plan(const showing *w, const dlrn_survey_info *info) {
    const double rows = (double)(info->rows ? info->rows : 1);
    const int64_t known = w->rows < ALL ? w->rows : 1000000;
    const int64_t contexts = (int64_t)((double)info->contexts * ((double)known / rows)) + 1;
    const int64_t shown = w->n ? w->n : w->count > 0 ? w->count : LOOK_PAGE_ALL;
    double memory, file;
    char a[32], b[32], c[96], folder[1024];
    dlrn_survey_plan(w->dict, &w->cfg, known, contexts, (double)info->codes / rows,
                     shown < w->dict->features ? shown : w->dict->features, &memory, &file);
    *c = 0;
    if (file > 0)
        snprintf(c, sizeof c, " and %s in a temporary file in ", size_text(file, b, sizeof b));
    tell("%s%lld rows: the survey takes up to %s of memory%s%s",
         w->rows < ALL ? "up to " : "for each ", (long long)known, size_text(memory, a, sizeof a),
         file > 0 ? c : "", file > 0 ? scratch_folder(w, folder, sizeof folder) : "");
    tell_end();
}

/* After each run of the model. */
static dlrn_status sweep_progress(void *user, const dlrn_survey *survey) {
    showing *w = (showing *)user;
    const dlrn_survey_info info = dlrn_survey_describe(survey);
    const double now = seconds(), rate = per_second(info.rows, now - w->started);
    char left[32] = "";
    if (stopping(NULL)) return DLRN_STOPPED;
    if (w->o->quiet) return DLRN_OK;
    if (w->told < 0) {
        tell_plan(w, &info);
        w->told = now;
    }
    if (now - w->told < 2) return DLRN_OK;
    w->told = now;
    if (w->rows < ALL && rate > 0) {
        time_text((double)(w->rows - info.rows) / rate, left, sizeof left);
        tell("%lld of up to %lld rows, %.0f rows/s, %s left", (long long)info.rows,
             (long long)w->rows, rate, left);
    } else {
        tell("%lld rows, %.0f rows/s", (long long)info.rows, rate);
    }
    return DLRN_OK;
}

/* The last part of a path, so that a page does not reveal where it was made. */
static const char *last_part(const char *path, char *name, size_t size) {
    size_t n = strlen(path), from;
    while (n > 1 && path[n - 1] == '/') n--;
    for (from = n; from > 0 && path[from - 1] != '/';) from--;
    snprintf(name, size, "%.*s", (int)(n - from), path + from);
    return name;
}

/* A sentence for the page. */
static DLRN_PRINTF(2, 3) void add_note(showing *w, const char *format, ...) {
    va_list args;
    if (w->about.n_notes == 4) return;
    va_start(args, format);
    vsnprintf(w->note[w->about.n_notes], sizeof w->note[0], format, args);
    va_end(args);
    w->notes[w->about.n_notes] = w->note[w->about.n_notes];
    w->about.n_notes++;
}

/* What is looked at, as look.h wants it. */
static void describe_showing(showing *w) {
    const options *o = w->o;
    look_about *a = &w->about;
    a->model = w->mt.model, a->tok = w->mt.tok, a->dict = w->dict, a->tap = w->mt.tap;
    a->model_name = last_part(o->model, w->model_name, sizeof w->model_name);
    a->dict_name = last_part(o->dict, w->dict_name, sizeof w->dict_name);
    a->text_name = strcmp(o->text, "-") ? o->text : "standard input"; /* of the sweep's errors */
    a->site = o->site, a->layer = o->layer, a->ctx_len = o->ctx_len;
    a->notes = w->notes, a->compat = o->compat, a->sinks = &w->sinks;
}

/* ---- the terminal */

/* Prints the tokens of an example [from, to) on one line. They are joined first, since a token may
   end within a character. */
static dlrn_status put_tokens(const showing *w, const dlrn_example *e, int64_t from, int64_t to) {
    bpe_text text;
    dlrn_status s = DLRN_OK;
    memset(&text, 0, sizeof text);
    for (int64_t i = from; i < to && s == DLRN_OK; i++) {
        int64_t n = 0;
        const char *bytes = lm_token_bytes(w->mt.tok, e->token[i], &n);
        if (bytes) s = bpe_put(w->mt.ctx, &text, bytes, n);
    }
    if (s == DLRN_OK) put_text(stdout, text.bytes, text.count);
    bpe_text_free(&text);
    return s;
}

/* A line: the activation and the tokens around, the one that fires in guillemets. */
static dlrn_status show_context(const showing *w, const dlrn_example *e) {
    const int64_t at = e->row - e->first;
    printf("  %8.3f  ", (double)e->peak);
    dlrn_status s = put_tokens(w, e, 0, at);
    fputs("\xC2\xAB", stdout);
    if (s == DLRN_OK) s = put_tokens(w, e, at, at + 1);
    fputs("\xC2\xBB", stdout);
    if (s == DLRN_OK) s = put_tokens(w, e, at + 1, e->count);
    putchar('\n');
    return s;
}

/* Prints a feature for people. */
static dlrn_status show_feature(void *user, const dlrn_feature_report *r) {
    showing *w = (showing *)user;
    w->sinks += look_is_sink(r);
    printf("feature %lld: fires on %.2f %% of the tokens\n  tokens   ", (long long)r->feature,
           100 * r->density);
    for (int64_t k = 0; k < r->tokens && r->by_share[k].share > 0; k++) {
        int64_t length = 0;
        const char *s = lm_token_bytes(w->mt.tok, r->by_share[k].token, &length);
        putchar(' ');
        put_quoted(stdout, s ? s : "?", s ? length : 1);
        printf(" %.0f %%", 100 * r->by_share[k].share);
    }
    putchar('\n');
    dlrn_status s = DLRN_OK;
    for (int64_t k = 0; k < r->examples && s == DLRN_OK; k++) s = show_context(w, &r->example[k]);
    return s;
}

/* ---- files */

/* Says so where none of the features fires, or there is none to choose. */
static void tell_silence(const showing *w) {
    const dlrn_survey_info info = dlrn_survey_describe(w->survey);
    int64_t any = 0;
    for (int64_t k = 0; k < w->n; k++) any += info.totals[w->list[k]].fired > 0;
    if (!any)
        fprintf(w->o->json || w->o->out ? stderr : stdout, "%s: %s fires on the %lld rows of %s\n",
                w->o->dict, w->o->features ? "none of these features" : "no feature",
                (long long)info.counted, w->o->text);
}

/* Recommends --skip-first, as the page does. */
static void tell_sinks(const showing *w) {
    char text[512];
    if (!w->o->quiet && look_sink_note(w->sinks, w->n, text, sizeof text))
        fprintf(stderr, "%s: %s\n", w->o->text, text);
}

/* What the page says of the choice of features and of rows. */
static void note_choice(showing *w) {
    const dlrn_survey_info info = dlrn_survey_describe(w->survey);
    if (!w->o->features && w->n < w->dict->features)
        add_note(w,
                 "%lld of %lld features are shown: those that fire on 0.1 to 5 %% of the tokens, "
                 "with the largest activations first, then others that fire. The map has all.",
                 (long long)w->n, (long long)w->dict->features);
    if (info.counted < info.rows)
        add_note(w,
                 "%lld rows count nowhere: the beginnings of contexts, special tokens or long "
                 "rows. Contexts show their tokens, without activations.",
                 (long long)(info.rows - info.counted));
    if (w->cfg.neurons == DLRN_OFF)
        add_note(w, "Correlations with coordinates would take more than 1 GB; they are left out. "
                    "--features I,J,... has them.");
}

/* The page and the JSON. html, json: NULL, or where they go. */
static dlrn_status write_features(showing *w, dlrn_writer *html, dlrn_writer *json) {
    look_weights *weights = NULL;
    note_choice(w);
    if (!w->o->quiet && w->n > 64) tell("writing %lld features", (long long)w->n), tell_end();
    dlrn_status s = look_weights_of(&w->about, w->list, w->n, &weights);
    if (s == DLRN_OK && html)
        s = look_page(&w->about, w->survey, weights, w->list, w->n, (const char *)page_html,
                      (int64_t)sizeof page_html, html);
    if (s == DLRN_OK && json) s = look_json(&w->about, w->survey, weights, w->list, w->n, json);
    dlrn_free(w->mt.ctx, weights);
    return s;
}

/* The sweep, then the output. */
static dlrn_status show_features(showing *w, dlrn_writer *html, dlrn_writer *json) {
    dlrn_status s = begin_list(w);
    if (s != DLRN_OK) return s;
    w->cfg = survey_settings(w);
    describe_showing(w);
    w->started = seconds(), w->told = -1;
    s = dlrn_survey_create(w->dict, &w->cfg, &w->survey);
    if (s == DLRN_OK)
        s = look_sweep(&w->about, w->mt.docs, &w->mt.reading, w->rows, sweep_progress, w,
                       w->survey);
    tell_end();
    if (w->about.text_name == w->o->text)
        w->about.text_name = last_part(w->o->text, w->text_name, sizeof w->text_name);
    if (s == DLRN_OK && !w->o->features) s = choose_features(w);
    if (s != DLRN_OK) return s;
    tell_silence(w);
    if (html || json) return write_features(w, html, json);
    return w->n ? dlrn_survey_report(w->survey, w->list, w->n, show_feature, w) : DLRN_OK;
}

/* The dictionary, as --compat reads it. */
static dlrn_status open_dictionary(showing *w) {
    const options *o = w->o;
    dlrn_status s = load_dictionary(w->mt.ctx, o->dict, o, &w->dict);
    if (s == DLRN_OK) s = check_site_width(&w->mt, o, w->dict);
    if (s == DLRN_OK && o->compat && look_fold_norms(w->dict))
        add_note(w,
                 "Atoms are scaled to length 1, and activations with them, as SAEDashboard does.");
    return s;
}

/* 0, or the exit status of a wrong call. */
static int check_features_flags(const options *o) {
    if (lacks_flag("features", "--dict", o->dict)) return 2;
    const int status = check_site_flags("features", o);
    if (status) return status;
    if (o->features && !names_features(o->features))
        return usage_error("features",
                           "expected numbers and ranges with commas between as --features",
                           o->features);
    if (o->all && (o->features || count_of(o) > 0))
        return usage_error("features", "expected one of --all, --count and --features", "--all");
    if (o->json && o->out && !strcmp(o->out, "-"))
        return usage_error("features", "--json and --out - both go to standard output", "--out");
    return o->out && strcmp(o->out, "-") ? check_suffix("features", o->out, ".html", ".htm") : 0;
}

static int run_features(dlrn_context *ctx, const options *o) {
    static showing w; /* too large for some stacks */
    dlrn_writer *html = NULL, *json = NULL;
    const int status = check_features_flags(o);
    if (status) return status;
    memset(&w, 0, sizeof w);
    w.o = o;
    w.rows = o->rows > 0 ? o->rows : 65536;
    w.count = count_of(o);
    dlrn_status s = model_text_open(ctx, o, 1, &w.mt);
    if (s == DLRN_OK) s = open_dictionary(&w);
    if (s == DLRN_OK && o->out) s = dlrn_file_create(ctx, o->out, &html);
    if (s == DLRN_OK && o->json) s = dlrn_file_create(ctx, "-", &json);
    if (s == DLRN_OK) s = show_features(&w, html, json);
    if (html) s = close_writer(html, s);
    if (json) s = close_writer(json, s);
    if (s == DLRN_OK && o->out && !o->quiet && strcmp(o->out, "-"))
        fprintf(stderr, "%s: %lld features\n", o->out, (long long)w.n);
    if (s == DLRN_OK) tell_sinks(&w);
    model_text_tell(&w.mt, o);
    dlrn_free(ctx, w.list);
    dlrn_survey_destroy(w.survey);
    dlrn_dictionary_destroy(w.dict);
    model_text_close(&w.mt);
    return s == DLRN_OK ? 0 : fail(ctx);
}
