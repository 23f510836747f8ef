/* dictlearn steer: text from a model with a feature changed at every token, beside the text without
   the change. */

enum { SCALES_MAX = 16 };

typedef struct steering {
    const options *o;
    model_text mt;
    dlrn_dictionary *dict;
    dlrn_encoder *encoder;
    dlrn_sparse codes;
    lm_documents texts; /* of --text */
    lm_sampling how;
    bpe_ids prompt, drawn; /* what the last sampling drew */
    double scale[SCALES_MAX];
    int n_scales;      /* 0: --set */
    int changes;       /* 0: the plain text */
    double amount;     /* what the feature is set to, or how much of it is added */
    int64_t position;  /* of the next row that is sampled */
    double perplexity; /* NaN: there is nothing to measure it on */
} steering;

/* Changes rows x [n]. The plain text passes here too, so that both take the same way. */
static dlrn_status change_rows(steering *w, const float *x, float *y, int64_t n, int64_t skip) {
    const dlrn_dictionary *dict = w->dict;
    const int64_t feature = w->o->feature;
    dlrn_status s = DLRN_OK;
    if (!w->changes) return DLRN_OK;
    if (!w->n_scales) s = dlrn_encoder_run(w->encoder, x, n, NULL, &w->codes, NULL);
    for (int64_t i = 0; i < n && s == DLRN_OK; i++, x += dict->d_in, y += dict->d_out) {
        const double unit = unit_of(dict, x);
        if (i < skip) continue;
        if (w->n_scales)
            add_atom(dict, feature, unit * w->amount, 0, y);
        else
            move_feature(dict, feature, unit, code_of(&w->codes, i, feature), w->amount, y);
    }
    return s;
}

/* Rows of the text that is sampled: the prompt's, then one for each further token. */
static dlrn_status change_sampled(void *user, int tap, const float *x, float *y, int64_t n) {
    steering *w = (steering *)user;
    const int64_t skip = w->o->skip_first - w->position;
    (void)tap;
    w->position += n;
    return change_rows(w, x, y, n, skip);
}

/* Rows of --text, from which the judge puts those back that --skip-first leaves out. */
static dlrn_status change_read(void *user, int site, const float *x, float *y, int64_t n) {
    (void)site;
    return change_rows((steering *)user, x, y, n, 0);
}

/* Keeps what was drawn. */
static dlrn_status keep_drawn(void *user, int64_t document, const int32_t *id, int64_t n) {
    steering *w = (steering *)user;
    dlrn_status s = DLRN_OK;
    (void)document;
    w->drawn.count = 0;
    for (int64_t i = 0; i < n && s == DLRN_OK; i++) s = bpe_put_id(w->mt.ctx, &w->drawn, id[i]);
    return s;
}

/* ---- perplexity */

/* Of the text that was drawn, under the model without a change. */
static dlrn_status judge_drawn(steering *w) {
    dlrn_context *ctx = w->mt.ctx;
    const int64_t v = lm_config_of(w->mt.model)->vocab, n = w->drawn.count, p = w->prompt.count;
    const int64_t start[2] = {0, p + n};
    double nats = 0;
    w->perplexity = (double)NAN;
    if (n == 0) return DLRN_OK;
    int32_t *id = (int32_t *)dlrn_alloc(ctx, p + n, sizeof *id);
    float *logits = (float *)dlrn_alloc(ctx, v, sizeof *logits);
    dlrn_status s = id && logits ? DLRN_OK : DLRN_ERR_MEMORY;
    if (s == DLRN_OK) {
        const lm_batch batch = {id, start, 1};
        memcpy(id, w->prompt.id, (size_t)p * sizeof *id);
        memcpy(id + p, w->drawn.id, (size_t)n * sizeof *id);
        s = lm_run(w->mt.model, &batch, NULL, 0, NULL, NULL, 1);
    }
    for (int64_t i = 0; i < n && s == DLRN_OK; i++) {
        s = lm_logits(w->mt.model, p - 1 + i, 1, logits);
        if (s == DLRN_OK) nats += log_sum_exp(logits, v) - (double)logits[id[p + i]];
    }
    w->perplexity = exp(nats / (double)n);
    dlrn_free(ctx, logits);
    dlrn_free(ctx, id);
    return s;
}

/* Of --text, under the model with the change. */
static dlrn_status judge_text(steering *w) {
    lm_judge judge = {w->mt.model, &w->texts, &w->mt.tap, 1,
                      w->o->skip_first ? &w->mt.reading.choice : NULL};
    const dlrn_edit edit = {change_read, w};
    dlrn_language_model lm;
    double nats = 0;
    int64_t tokens;
    lm_language_model(&judge, &lm);
    const dlrn_status s = lm.cross_entropy(lm.user, &edit, &nats, &tokens);
    w->perplexity = exp(nats);
    return s;
}

/* ---- output */

/* The prompt and what was drawn, as bytes. */
static dlrn_status text_of(steering *w, bpe_text *out) {
    const char *prompt = w->o->prompt ? w->o->prompt : "";
    bpe_text drawn;
    memset(&drawn, 0, sizeof drawn);
    memset(out, 0, sizeof *out);
    dlrn_status s = bpe_put(w->mt.ctx, out, prompt, (int64_t)strlen(prompt));
    if (s == DLRN_OK) s = lm_decode(w->mt.tok, w->drawn.id, w->drawn.count, &drawn);
    if (s == DLRN_OK) s = bpe_put(w->mt.ctx, out, drawn.bytes, drawn.count);
    bpe_text_free(&drawn);
    return s;
}

/* "scale 4", "set 0", "plain" */
static const char *change_name(const steering *w) {
    return !w->changes ? "plain" : w->n_scales ? "scale" : "set";
}

/* A line for a text. */
static void print_text(const steering *w, const bpe_text *text) {
    char label[64];
    if (w->changes)
        snprintf(label, sizeof label, "%s %g", change_name(w), w->amount);
    else
        snprintf(label, sizeof label, "%s", change_name(w));
    printf("%-11s ", label);
    if (w->perplexity == w->perplexity)
        printf("%12.2f  ", w->perplexity);
    else
        printf("%12s  ", "not measured");
    put_text(stdout, text->bytes, text->count);
    putchar('\n');
}

static void json_drawn(const steering *w, json_writer *j, const bpe_text *text) {
    json_open(j, w->changes ? NULL : "plain", '{');
    if (w->changes) json_real(j, change_name(w), 9, w->amount);
    json_real(j, "perplexity", 9, w->perplexity);
    json_bytes(j, "text", text->bytes, text->count);
    json_open(j, "tokens", '[');
    for (int64_t i = 0; i < w->drawn.count; i++) json_int(j, NULL, w->drawn.id[i]);
    json_close(j, ']');
    json_close(j, '}');
}

/* Samples a text, with the change that is set, and prints it with its perplexity. */
static dlrn_status steer_once(steering *w, json_writer *j) {
    bpe_text text;
    memset(&text, 0, sizeof text);
    w->position = 0;
    dlrn_status s = lm_generate(w->mt.model, &w->how, keep_drawn, w);
    if (s == DLRN_OK) s = w->o->text ? judge_text(w) : judge_drawn(w);
    if (s == DLRN_OK) s = text_of(w, &text);
    if (s == DLRN_OK && j) json_drawn(w, j, &text);
    if (s == DLRN_OK && !j) print_text(w, &text);
    bpe_text_free(&text);
    return s;
}

/* Which perplexity is shown. */
static void perplexity_text(const steering *w, char *text, size_t size) {
    if (w->o->text)
        snprintf(text, size, "of %s (%lld contexts) under the changed model", w->o->text,
                 (long long)w->texts.count);
    else
        snprintf(text, size, "of the new tokens under the unchanged model");
}

/* What stands above the texts. */
static void print_steering(const steering *w, json_writer *j) {
    char of[4400], site[96];
    perplexity_text(w, of, sizeof of);
    if (!j) {
        printf("feature %lld at %s, changed at every token, the dictionary's error kept; seed "
               "%lld\nperplexity: ",
               (long long)w->o->feature, site_text(w->o, site, sizeof site), (long long)w->o->seed);
        put_text(stdout, of, (int64_t)strlen(of));
        putchar('\n');
        return;
    }
    json_open(j, NULL, '{');
    json_site(j, w->o);
    json_int(j, "feature", w->o->feature);
    json_int(j, "seed", w->o->seed);
    json_real(j, "temperature", 9, w->o->temperature);
    json_int(j, "top_k", w->o->top_k);
    json_text(j, "perplexity_of", of);
}

/* The plain text, then one for each change. */
static dlrn_status steer_all(steering *w) {
    json_writer writer = {stdout, 0}, *j = w->o->json ? &writer : NULL;
    const int n = w->n_scales ? w->n_scales : 1;
    print_steering(w, j);
    dlrn_status s = steer_once(w, j);
    if (j) json_open(j, "steered", '[');
    w->changes = 1;
    for (int i = 0; i < n && s == DLRN_OK; i++) {
        w->amount = w->n_scales ? w->scale[i] : w->o->set;
        s = steer_once(w, j);
    }
    if (j) json_close(j, ']'), json_close(j, '}'), putchar('\n');
    return s;
}

/* ---- the command */

/* Reads "0,2,4,-8". 0: the text is anything else, or a longer list, or has a number that is too
   large. */
static int parse_scales(const char *list, double *scale) {
    for (int n = 0; n < SCALES_MAX;) {
        char *end = NULL;
        const double value = strtod(list, &end);
        if (end == list || !(fabs(value) <= EDIT_MAX)) return 0;
        scale[n++] = value;
        if (!*end) return n;
        if (*end != ',') return 0;
        list = end + 1;
    }
    return 0;
}

static int check_steer_flags(steering *w, const options *o) {
    if (lacks_flag("steer", "--dict", o->dict) ||
        lacks_flag("steer", "--feature", o->feature >= 0 ? o : NULL) ||
        lacks_flag("steer", "--tokens", o->tokens ? o : NULL))
        return 2;
    const int sets = o->set == o->set;
    if (!sets && !o->scales)
        return usage_error("steer", "this flag is required, or --set", "--scale");
    if (sets && o->scales)
        return usage_error("steer", "expected --scale or --set, found both", "--scale");
    w->n_scales = o->scales ? parse_scales(o->scales, w->scale) : 0;
    if (o->scales && !w->n_scales)
        return usage_error("steer", "expected at most 16 numbers with commas between as --scale",
                           o->scales);
    return check_site("steer", o);
}

static int run_steer(dlrn_context *ctx, const options *o) {
    steering w;
    memset(&w, 0, sizeof w);
    w.o = o;
    int status = check_steer_flags(&w, o);
    if (status) return status;
    dlrn_status s = open_edited("steer", ctx, o, &w.dict, &w.mt);
    if (s == DLRN_OK) s = dlrn_encoder_create(w.dict, &w.encoder);
    if (s == DLRN_OK && o->text) s = read_first_documents(&w.mt, o, &w.texts);
    if (s == DLRN_OK) s = prepare_sampling(&w.mt, o, &w.prompt, &w.how);
    w.how.documents = 1; /* --documents is how many of --text are read */
    w.how.taps = &w.mt.tap, w.how.n_taps = 1;
    w.how.visit = change_sampled, w.how.user = &w;
    if (s == DLRN_OK) s = steer_all(&w);
    if (o->text) model_text_tell(&w.mt, o);
    status = s == DLRN_OK ? 0 : fail(ctx);
    dlrn_encoder_destroy(w.encoder);
    dlrn_sparse_free(&w.codes);
    lm_documents_free(&w.texts);
    bpe_ids_free(&w.prompt);
    bpe_ids_free(&w.drawn);
    dlrn_dictionary_destroy(w.dict);
    model_text_close(&w.mt);
    return status;
}
