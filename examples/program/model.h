/* The commands that run a language model: tokenize, generate, activations, logits. And what train,
   eval and features need to run one. */

/* A model, its tokenizer and a text, as the flags name them. */
typedef struct model_text {
    dlrn_context *ctx;
    lm_model *model;
    lm_tokenizer *tok;
    doc_reader *docs;
    lm_reading reading;
    lm_tally tally;   /* counted by reading */
    int64_t left_out; /* rows, counted by reading.choice */
    lm_tap tap;
    const lm_batch *visited; /* what visit_texts runs now */
} model_text;

/* Also accepts one that was opened in part. */
static void model_text_close(model_text *mt) {
    doc_close(mt->docs);
    lm_destroy_tokenizer(mt->tok);
    lm_destroy(mt->model);
}

/* --io, or its default; -1: it has another value. */
static int parse_io(const options *o) {
    return o->io ? lm_io_named(o->io) : LM_IO_OUT;
}

/* --long split: a document gives several contexts. */
static int splits_documents(const options *o) {
    return o->long_documents && !strcmp(o->long_documents, "split");
}

/* Checks the flags that say how a text is read. 0, or the exit status of a wrong call. */
static int check_text_flags(const char *command_name, const options *o) {
    const char *how = o->long_documents;
    if (o->text_key && o->tokens_key)
        return usage_error(command_name, "expected --text-key or --tokens-key, found both", "key");
    if (how && strcmp(how, "cut") && strcmp(how, "split"))
        return usage_error(command_name, "expected cut or split as --long", how);
    if (splits_documents(o) && o->bos && o->ctx_len < 2)
        return usage_error(command_name, "expected at least 2 with --long split and --bos",
                           "--ctx-len");
    return 0;
}

/* Checks the flags that name a site of a model. 0, or the exit status of a wrong call. */
static int check_site(const char *command_name, const options *o) {
    if (lacks_flag(command_name, "--model", o->model) ||
        lacks_flag(command_name, "--site", o->site))
        return 2;
    const int kind = lm_kind_named(o->site), is_tensor = lm_tensor_named(o->site) != NULL;
    if (kind < 0 && !is_tensor)
        return usage_error(command_name, "expected " LM_KINDS ", or tensor:NAME, as --site",
                           o->site);
    if (kind != LM_EMBED && !is_tensor && o->layer < 0)
        return lacks_flag(command_name, "--layer", NULL) * 2;
    if (parse_io(o) < 0) return usage_error(command_name, "expected " LM_IOS " as --io", o->io);
    return check_text_flags(command_name, o);
}

/* Checks the flags that activations of a model need. 0, or the exit status of a wrong call. */
static int check_site_flags(const char *command_name, const options *o) {
    if (lacks_flag(command_name, "--model", o->model) ||
        lacks_flag(command_name, "--text", o->text))
        return 2;
    return check_site(command_name, o);
}

/* Where a model's settings stand: in a file of its folder, or in the model's file. */
static const char *config_within(dlrn_context *ctx, const char *model) {
    return dlrn_file_exists(ctx, model) == 2 ? "/config.json" : "";
}

/* What a model's settings say twice, and which of it counts. */
static void tell_notes(dlrn_context *ctx, const options *o, const lm_config *cfg) {
    size_t n;
    for (const char *line = cfg->notes; *line && !o->quiet; line += n + 1) {
        n = strcspn(line, "\n");
        fprintf(stderr, "dictlearn: note: %s%s: ", o->model, config_within(ctx, o->model));
        put_text(stderr, line, (int64_t)n);
        fputc('\n', stderr);
    }
}

/* Refuses a --model that is not there; a name of the Hugging Face Hub gets the command that
   downloads it. */
static dlrn_status check_model(dlrn_context *ctx, const char *path) {
    const char *slash = strchr(path, '/');
    if (dlrn_file_exists(ctx, path)) return DLRN_OK;
    if (ends_with(path, ".gguf")) return dlrn_fail(ctx, DLRN_ERR_IO, "%s: no such file", path);
    if (*path == '.' || *path == '/' || *path == '~' || (slash && strchr(slash + 1, '/')) ||
        (slash && !slash[1]))
        return dlrn_fail(ctx, DLRN_ERR_IO, "%s: no such folder", path);
    return dlrn_fail(ctx, DLRN_ERR_IO,
                     "%s: no such folder. If it is a model on huggingface.co: hf download %s "
                     "--local-dir %s",
                     path, path, path);
}

/* Refuses contexts that are longer than the model has positions. */
static dlrn_status check_context(dlrn_context *ctx, const options *o, const lm_config *cfg) {
    if (!o->text || o->ctx_len <= cfg->positions) return DLRN_OK;
    return dlrn_fail(
        ctx, DLRN_ERR_ARGUMENT,
        "%s: the model has %lld positions, contexts have %lld tokens: give --ctx-len %lld or less",
        o->model, (long long)cfg->positions, (long long)o->ctx_len, (long long)cfg->positions);
}

/* Refuses --bos with a model that has no bos token. */
static dlrn_status check_bos(dlrn_context *ctx, const options *o, const lm_config *cfg) {
    if (!o->bos || cfg->bos >= 0) return DLRN_OK;
    return dlrn_fail(ctx, DLRN_ERR_ARGUMENT,
                     "%s%s: --bos: expected one number as bos_token_id, found none", o->model,
                     config_within(ctx, o->model));
}

/* A folder that does not run here can be converted; and activations, but only they, can come from
   elsewhere. */
static dlrn_status way_out(dlrn_context *ctx, const options *o, int with_site, dlrn_status s) {
    char error[1024];
    if (s != DLRN_ERR_UNSUPPORTED || dlrn_file_exists(ctx, o->model) != 2) return s;
    snprintf(error, sizeof error, "%s", dlrn_error(ctx));
    return dlrn_fail(ctx, s,
                     "%s. Convert the folder to a GGUF file (convert_hf_to_gguf.py of llama.cpp) "
                     "and give that as --model%s",
                     error,
                     with_site ? ", or save the activations from a hook in Python and give them as "
                                 "--data X.npy"
                               : "");
}

/* The dictionary's width must be the site's. */
static dlrn_status check_site_width(const model_text *mt, const options *o,
                                    const dlrn_dictionary *dict) {
    const int64_t x = lm_site_width(mt->model, mt->tap.x), y = lm_site_width(mt->model, mt->tap.y);
    if (dict->d_in == x && dict->d_out == y) return DLRN_OK;
    const int in = dict->d_in != x;
    return dlrn_fail(mt->ctx, DLRN_ERR_SHAPE,
                     "%s: wrong %s width: the dictionary has %lld, the model's site %s has %lld "
                     "(%s)",
                     o->dict, in ? "input" : "output", (long long)(in ? dict->d_in : dict->d_out),
                     o->site, (long long)(in ? x : y), o->model);
}

/* The flags as a reader's settings. vocabulary: ids that a text has ready are below it. */
static dlrn_status open_documents(dlrn_context *ctx, const options *o, int64_t vocabulary,
                                  doc_reader **out) {
    const doc_format how = {o->text_key, o->tokens_key, vocabulary, o->skip_bad_lines};
    return doc_open_as(ctx, o->text, &how, out);
}

/* At the end of a command: says what of its text was not used. The count of bad lines is a flaw of
   the data, so --quiet does not hide it, like that of rows that are not finite. */
static void tell_left_out(const options *o, const doc_reader *docs, const lm_tally *tally) {
    const char *name = o->text && !strcmp(o->text, "-") ? "standard input" : o->text, *first = "";
    int64_t bad = docs ? doc_bad_lines(docs, &first) : 0;
    if (bad)
        fprintf(stderr, "%s: %lld bad line%s left out, the first: %s\n", name, (long long)bad,
                bad == 1 ? " is" : "s are", first);
    if (tally->left_out && !o->quiet)
        fprintf(stderr,
                "%s: %lld of %lld tokens are left out: documents are cut to %lld tokens "
                "(--ctx-len); --long split keeps all\n",
                name, (long long)tally->left_out, (long long)tally->tokens, (long long)o->ctx_len);
}

static void model_text_tell(const model_text *mt, const options *o) {
    tell_left_out(o, mt->docs, &mt->tally);
    if (mt->left_out)
        fprintf(stderr, "%s: %lld rows are left out (%s)\n", o->text, (long long)mt->left_out,
                "--skip-first, --skip-special, --max-norm-ratio");
}

/* Opens the model and its tokenizer; --text if it is given; with_site: finds the site. Close it
   also after an error. */
static dlrn_status model_text_open(dlrn_context *ctx, const options *o, int with_site,
                                   model_text *mt) {
    lm_site site = {LM_EMBED, 0, ""};
    memset(mt, 0, sizeof *mt);
    mt->ctx = ctx;
    mt->reading.ctx_len = o->ctx_len;
    mt->reading.bos = o->bos;
    mt->reading.split = splits_documents(o);
    mt->reading.tally = &mt->tally;
    dlrn_status s = check_model(ctx, o->model);
    if (s == DLRN_OK) s = lm_load(ctx, o->model, &mt->model);
    if (s != DLRN_OK) return way_out(ctx, o, with_site, s);
    lm_on_stop(mt->model, stopping, NULL);
    tell_notes(ctx, o, lm_config_of(mt->model));
    s = check_context(ctx, o, lm_config_of(mt->model));
    if (s == DLRN_OK) s = check_bos(ctx, o, lm_config_of(mt->model));
    if (s == DLRN_OK) s = lm_load_tokenizer(ctx, o->model, &mt->tok);
    mt->reading.choice.skip_first = o->skip_first;
    mt->reading.choice.special_of = o->skip_special ? mt->tok : NULL;
    mt->reading.choice.max_norm_ratio = o->max_norm_ratio;
    mt->reading.choice.left_out = &mt->left_out;
    if (s == DLRN_OK && o->text)
        s = open_documents(ctx, o, lm_config_of(mt->model)->vocab, &mt->docs);
    if (s != DLRN_OK || !with_site) return s;
    s = lm_site_named(mt->model, o->site, o->layer, &site);
    return s == DLRN_OK ? lm_tap_at(mt->model, site, (lm_io)parse_io(o), &mt->tap) : s;
}

/* ---- tokenize */

/* Prints a line of ids for each document, or for each context that --ctx-len makes of it. bos: put
   before them; -1: none. */
static dlrn_status print_tokens(const options *o, lm_tokenizer *tok, doc_reader *docs, int32_t bos,
                                lm_tally *tally) {
    const int split = splits_documents(o);
    const int64_t first = bos >= 0;
    bpe_ids ids;
    memset(&ids, 0, sizeof ids);
    dlrn_status s = DLRN_OK;
    for (int64_t d = 0; s == DLRN_OK && (o->documents < 0 || d < o->documents); d++) {
        s = stopping(NULL) ? DLRN_STOPPED : lm_next_ids(tok, docs, &ids);
        if (s != DLRN_OK) break;
        tally->tokens += ids.count;
        for (int64_t from = 0, n; from < ids.count; from = split ? from + n : ids.count) {
            n = ids.count - from + first < o->ctx_len ? ids.count - from : o->ctx_len - first;
            if (!split) tally->left_out += ids.count - n;
            if (o->json) putchar('[');
            for (int64_t i = -first; i < n; i++)
                printf(o->json ? "%s%d" : "%.1s%d", i > -first ? (o->json ? ", " : " ") : "",
                       (int)(i < 0 ? bos : ids.id[from + i]));
            puts(o->json ? "]" : "");
        }
    }
    bpe_ids_free(&ids);
    return s == DLRN_END ? DLRN_OK : s;
}

/* Needs the tokenizer only, and for --bos the model's config. */
static int run_tokenize(dlrn_context *ctx, const options *o) {
    lm_tokenizer *tok = NULL;
    doc_reader *docs = NULL;
    lm_tally tally = {0, 0};
    lm_config cfg;
    int32_t bos = -1;
    if (lacks_flag("tokenize", "--model", o->model) || lacks_flag("tokenize", "--text", o->text) ||
        check_text_flags("tokenize", o))
        return 2;
    dlrn_status s = check_model(ctx, o->model);
    if (s == DLRN_OK) s = lm_load_tokenizer(ctx, o->model, &tok);
    if (s == DLRN_OK) s = open_documents(ctx, o, lm_vocab_size(tok), &docs);
    if (s == DLRN_OK && o->bos) s = lm_read_config(ctx, o->model, &cfg);
    if (s == DLRN_OK && o->bos) s = check_bos(ctx, o, &cfg);
    if (s == DLRN_OK && o->bos) bos = cfg.bos;
    if (s == DLRN_OK) s = print_tokens(o, tok, docs, bos, &tally);
    tell_left_out(o, docs, &tally);
    doc_close(docs);
    lm_destroy_tokenizer(tok);
    return s == DLRN_OK ? 0 : fail(ctx);
}

/* ---- generate */

typedef struct generation {
    const options *o;
    lm_tokenizer *tok;
    bpe_text text;
    dlrn_context *ctx;
    dlrn_writer *file; /* JSON lines; NULL: plain text to stdout */
    const char *prompt;
    int64_t tokens;
    double started, told;
} generation;

/* Appends {"text": ...} to the file. */
static dlrn_status put_line(generation *g) {
    page line;
    dlrn_status s = page_open(g->ctx, &line);
    if (s != DLRN_OK) return s;
    json_writer j = {line.f, 0};
    json_open(&j, NULL, '{');
    json_bytes(&j, "text", g->text.bytes, g->text.count);
    json_close(&j, '}');
    fputc('\n', line.f);
    s = page_end(g->ctx, &line);
    if (s == DLRN_OK) s = dlrn_file_append(g->file, line.text, line.size);
    page_free(&line);
    return s;
}

/* Writes a document that the model has sampled: the prompt and its new tokens. */
static dlrn_status write_document(void *user, int64_t document, const int32_t *id, int64_t n) {
    generation *g = (generation *)user;
    int64_t before = (int64_t)strlen(g->prompt);
    bpe_text drawn;
    memset(&drawn, 0, sizeof drawn);
    dlrn_status s = lm_decode(g->tok, id, n, &drawn);
    g->text.count = 0;
    if (s == DLRN_OK) s = bpe_put(drawn.ctx, &g->text, g->prompt, before);
    if (s == DLRN_OK) s = bpe_put(drawn.ctx, &g->text, drawn.bytes, drawn.count);
    bpe_text_free(&drawn);
    if (s != DLRN_OK) return s;
    if (g->file) {
        s = put_line(g);
    } else {
        if (document) putchar('\n');
        fwrite(g->text.bytes, 1, (size_t)g->text.count, stdout); /* it may hold zeros */
        putchar('\n');
    }
    if (s != DLRN_OK) return s;
    g->tokens += n;
    double now = seconds();
    if (!g->o->quiet && document % 64 == 63 && now - g->told > 2) {
        tell("%lld of %lld documents, %.0f tokens/s", (long long)document + 1,
             (long long)g->o->documents, per_second(g->tokens, now - g->started));
        g->told = now;
    }
    return DLRN_OK;
}

/* The prompt's tokens, behind the bos token if --bos asks for it or if there is no prompt. */
static dlrn_status prompt_tokens(model_text *mt, const options *o, bpe_ids *ids) {
    int32_t bos = lm_config_of(mt->model)->bos;
    const char *text = o->prompt ? o->prompt : "";
    dlrn_status s = lm_encode(mt->tok, text, (int64_t)strlen(text), ids);
    if (s != DLRN_OK || !(o->bos || ids->count == 0)) return s;
    if (bos < 0)
        return dlrn_fail(mt->ctx, DLRN_ERR_ARGUMENT,
                         "%s: the model has no bos token: give a --prompt", o->model);
    s = bpe_put_id(mt->ctx, ids, bos);
    if (s != DLRN_OK) return s;
    memmove(ids->id + 1, ids->id, (size_t)(ids->count - 1) * sizeof *ids->id);
    ids->id[0] = bos;
    return DLRN_OK;
}

/* Sampling as the flags ask for it. ids: the prompt's, freed by the caller. */
static dlrn_status prepare_sampling(model_text *mt, const options *o, bpe_ids *ids,
                                    lm_sampling *how) {
    const int64_t positions = lm_config_of(mt->model)->positions;
    const dlrn_status s = prompt_tokens(mt, o, ids);
    memset(how, 0, sizeof *how);
    how->documents = o->documents < 0 ? 1 : o->documents;
    how->tokens = o->tokens;
    how->temperature = o->temperature;
    how->top_k = o->top_k;
    how->seed = (uint64_t)o->seed;
    how->prompt = ids->id;
    how->prompt_len = ids->count;
    how->stop = lm_config_of(mt->model)->eos;
    how->tokens_of = mt->tok;
    if (s != DLRN_OK || o->tokens <= positions - ids->count) return s;
    return dlrn_fail(mt->ctx, DLRN_ERR_ARGUMENT,
                     "%s: expected a prompt and tokens, together at most the model's %lld "
                     "positions, found %lld and %lld: give a smaller --tokens",
                     o->model, (long long)positions, (long long)ids->count, (long long)o->tokens);
}

/* Samples documents and hands them to write_document. */
static dlrn_status generate_to(model_text *mt, const options *o, generation *g) {
    bpe_ids ids;
    lm_sampling how;
    memset(&ids, 0, sizeof ids);
    dlrn_status s = prepare_sampling(mt, o, &ids, &how);
    if (s == DLRN_OK) s = lm_generate(mt->model, &how, write_document, g);
    bpe_ids_free(&ids);
    return s;
}

static int run_generate(dlrn_context *ctx, const options *o) {
    model_text mt;
    if (lacks_flag("generate", "--model", o->model) ||
        lacks_flag("generate", "--tokens", o->tokens ? o : NULL))
        return 2;
    if (o->out && check_suffix("generate", o->out, ".jsonl", "")) return 2;
    generation g;
    memset(&g, 0, sizeof g);
    dlrn_status s = model_text_open(ctx, o, 0, &mt);
    g.ctx = ctx, g.o = o, g.tok = mt.tok, g.prompt = o->prompt ? o->prompt : "";
    g.started = g.told = seconds();
    if (s == DLRN_OK && o->out) s = dlrn_file_create(ctx, o->out, &g.file);
    if (s == DLRN_OK) s = generate_to(&mt, o, &g);
    tell_end();
    if (g.file) s = close_writer(g.file, s);
    bpe_text_free(&g.text);
    model_text_close(&mt);
    return s == DLRN_OK ? 0 : fail(ctx);
}

/* ---- activations, logits */

/* Writes rows until the text ends, or up to --limit. */
static dlrn_status copy_rows(feed *f, const options *o, dlrn_writer *w) {
    dlrn_context *ctx = f->ctx;
    dlrn_source in = feed_source(f), *source = &in;
    dlrn_tensor x, y;
    int64_t done = 0;
    double started = seconds(), told = started;
    dlrn_status s = dlrn_tensor_alloc(ctx, PIECE, source->d_in, &x);
    if (s != DLRN_OK) return s;
    s = dlrn_tensor_alloc(ctx, source->d_out ? PIECE : 0, source->d_out, &y);
    while (s == DLRN_OK && (o->limit < 0 || done < o->limit)) {
        int64_t n = 0, want = o->limit >= 0 && o->limit - done < PIECE ? o->limit - done : PIECE;
        s = source->read(source->user, want, x.data, y.data, &n);
        if (s == DLRN_OK) s = dlrn_npy_append(w, source->d_out ? y.data : x.data, n);
        done += n;
        if (!o->quiet && seconds() - told > 2) {
            told = seconds();
            tell("%lld rows, %.0f a second", (long long)done, per_second(done, told - started));
        }
    }
    tell_end();
    dlrn_free(ctx, x.data);
    dlrn_free(ctx, y.data);
    if (s == DLRN_END && done == 0) return feed_empty(f);
    return s == DLRN_END ? DLRN_OK : feed_failed(f, s);
}

static int run_activations(dlrn_context *ctx, const options *o) {
    model_text mt;
    feed f;
    dlrn_writer *w = NULL;
    int status = check_site_flags("activations", o);
    if (!status && lacks_flag("activations", "--out", o->out)) status = 2;
    if (!status) status = check_suffix("activations", o->out, ".npy", "");
    if (status) return status;
    feed_init(&f, ctx, o);
    dlrn_status s = model_text_open(ctx, o, 1, &mt);
    if (s == DLRN_OK) s = lm_text_source(mt.model, mt.tok, mt.docs, &mt.reading, mt.tap, &f.inner);
    if (s == DLRN_OK)
        s = dlrn_npy_create(ctx, o->out, f.inner.d_out ? f.inner.d_out : f.inner.d_in, -1, &w);
    if (s == DLRN_OK) s = copy_rows(&f, o, w);
    s = close_writer(w, s);
    model_text_tell(&mt, o);
    dlrn_source_destroy(&f.inner);
    model_text_close(&mt);
    return s == DLRN_OK ? 0 : fail(ctx);
}

/* Appends a context's logits, some rows at a time. logits: room for them. */
static dlrn_status append_logits(model_text *mt, const lm_documents *texts, int64_t context,
                                 dlrn_tensor *logits, dlrn_writer *w) {
    const int64_t n = texts->start[context + 1] - texts->start[context];
    const lm_batch batch = {texts->id, texts->start + context, 1};
    dlrn_status s = lm_run(mt->model, &batch, NULL, 0, NULL, NULL, 1);
    for (int64_t i = 0; i < n && s == DLRN_OK; i += logits->rows) {
        const int64_t rows = n - i < logits->rows ? n - i : logits->rows;
        s = stopping(NULL) ? DLRN_STOPPED : DLRN_OK;
        if (s == DLRN_OK) s = lm_logits(mt->model, i, rows, logits->data);
        if (s == DLRN_OK) s = dlrn_npy_append(w, logits->data, rows);
    }
    return s;
}

/* Writes the logits of a document, which may have several contexts. */
static dlrn_status write_logits(model_text *mt, const options *o, const lm_documents *texts) {
    const int64_t v = lm_config_of(mt->model)->vocab, n = texts->start[texts->count];
    dlrn_tensor logits;
    dlrn_writer *w = NULL;
    dlrn_status s = dlrn_tensor_alloc(mt->ctx, n < 64 ? n : 64, v, &logits);
    if (s != DLRN_OK) return s;
    s = dlrn_npy_create(mt->ctx, o->out, v, n, &w);
    for (int64_t c = 0; c < texts->count && s == DLRN_OK; c++)
        s = append_logits(mt, texts, c, &logits, w);
    s = close_writer(w, s);
    dlrn_free(mt->ctx, logits.data);
    return s;
}

static int run_logits(dlrn_context *ctx, const options *o) {
    model_text mt;
    lm_documents texts;
    if (lacks_flag("logits", "--model", o->model) || lacks_flag("logits", "--text", o->text) ||
        lacks_flag("logits", "--out", o->out) || check_suffix("logits", o->out, ".npy", "") ||
        check_text_flags("logits", o))
        return 2;
    memset(&texts, 0, sizeof texts);
    dlrn_status s = model_text_open(ctx, o, 0, &mt);
    if (s == DLRN_OK) s = lm_read_documents(mt.model, mt.tok, mt.docs, &mt.reading, 1, &texts);
    if (s == DLRN_END)
        s = dlrn_fail(ctx, DLRN_ERR_VALUE, "%s: expected a document, found none", o->text);
    if (s == DLRN_OK) s = write_logits(&mt, o, &texts);
    model_text_tell(&mt, o);
    lm_documents_free(&texts);
    model_text_close(&mt);
    return s == DLRN_OK ? 0 : fail(ctx);
}
