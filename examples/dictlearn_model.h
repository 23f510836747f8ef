/* The commands that run a language model: tokenize, generate, activations, logits; and what train,
   eval and features need of it. */

/* A model, its tokenizer and a text, as the flags name them. */
typedef struct bench {
    dlrn_context *ctx;
    neox_model *model;
    bpe_tokenizer *tok;
    doc_reader *docs;
    neox_reading reading;
    neox_tap tap;
} bench;

static void bench_close(bench *b) {
    doc_close(b->docs);
    bpe_destroy(b->tok);
    neox_destroy(b->model);
}

static int lacks_flag(const char *command_name, const char *name, const void *value) {
    if (!value)
        fprintf(stderr, "dictlearn: %s: this flag is needed: see dictlearn %s --help\n", name,
                command_name);
    return !value;
}

static int parse_io(const options *o, neox_io *io) {
    static const char *const names[] = {"out", "in", "in_to_out"};
    for (int k = 0; k < 3; k++)
        if (!o->io || !strcmp(o->io, names[k])) {
            *io = (neox_io)k;
            return 1;
        }
    return 0;
}

static int is_site(const char *name) {
    static const char *const names[] = {"embed",   "resid_out", "mlp_in",
                                        "mlp_out", "attn_in",   "attn_out"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i])) return 1;
    return 0;
}

/* 0, or the exit status of a wrong call: flags that a model's activations need. */
static int check_site_flags(const char *command_name, const options *o) {
    neox_io io;
    if (lacks_flag(command_name, "--model", o->model) ||
        lacks_flag(command_name, "--text", o->text) || lacks_flag(command_name, "--site", o->site))
        return 2;
    if (!is_site(o->site))
        return usage_error(
            command_name,
            "expected embed, resid_out, mlp_in, mlp_out, attn_in or attn_out as --site", o->site);
    if (strcmp(o->site, "embed") && o->layer < 0)
        return lacks_flag(command_name, "--layer", NULL) * 2;
    if (!parse_io(o, &io))
        return usage_error(command_name, "expected in, out or in_to_out as --io", o->io);
    return 0;
}

/* --bos asks for a token that not every model has. */
static dlrn_status check_bos(dlrn_context *ctx, const options *o, const neox_config *cfg) {
    if (!o->bos || cfg->bos >= 0) return DLRN_OK;
    return dlrn_fail(ctx, DLRN_ERR_ARGUMENT,
                     "%s/config.json: --bos: expected one number as bos_token_id, found none",
                     o->model);
}

static dlrn_status bench_open(dlrn_context *ctx, const options *o, int with_site, bench *b) {
    neox_io io = NEOX_IO_OUT;
    neox_site site = {NEOX_EMBED, 0};
    memset(b, 0, sizeof *b);
    b->ctx = ctx;
    b->reading.ctx_len = o->ctx_len;
    b->reading.bos = o->bos;
    dlrn_status s = neox_load(ctx, o->model, &b->model);
    if (s == DLRN_OK) neox_on_stop(b->model, stopping, NULL);
    if (s == DLRN_OK) s = check_bos(ctx, o, neox_config_of(b->model));
    if (s == DLRN_OK) s = bpe_load(ctx, o->model, &b->tok);
    if (s == DLRN_OK && o->text) s = doc_open(ctx, o->text, &b->docs);
    if (s != DLRN_OK || !with_site) return s;
    parse_io(o, &io);
    s = neox_site_named(b->model, o->site, o->layer, &site);
    return s == DLRN_OK ? neox_tap_at(b->model, site, io, &b->tap) : s;
}

/* ---- tokenize ---- */

static dlrn_status print_tokens(const options *o, bpe_tokenizer *tok, doc_reader *docs,
                                int32_t bos) {
    const char *text = NULL;
    int64_t bytes = 0;
    bpe_ids ids;
    memset(&ids, 0, sizeof ids);
    dlrn_status s = DLRN_OK;
    for (int64_t d = 0; s == DLRN_OK && (o->documents < 0 || d < o->documents); d++) {
        s = stopping(NULL) ? DLRN_STOPPED : doc_next(docs, &text, &bytes);
        if (s == DLRN_OK) s = bpe_encode(tok, text, bytes, &ids);
        if (s != DLRN_OK) break;
        int64_t first = bos >= 0,
                n = ids.count + first < o->ctx_len ? ids.count + first : o->ctx_len;
        if (o->json) putchar('[');
        for (int64_t i = 0; i < n; i++)
            printf(o->json ? "%s%d" : "%.1s%d", i ? (o->json ? ", " : " ") : "",
                   (int)(i < first ? bos : ids.id[i - first]));
        puts(o->json ? "]" : "");
    }
    bpe_ids_free(&ids);
    return s == DLRN_END ? DLRN_OK : s;
}

/* Only the tokenizer is needed; the model's config tells the bos token. */
static int run_tokenize(dlrn_context *ctx, const options *o) {
    bpe_tokenizer *tok = NULL;
    doc_reader *docs = NULL;
    neox_config cfg;
    int32_t bos = -1;
    if (lacks_flag("tokenize", "--model", o->model) || lacks_flag("tokenize", "--text", o->text))
        return 2;
    dlrn_status s = bpe_load(ctx, o->model, &tok);
    if (s == DLRN_OK) s = doc_open(ctx, o->text, &docs);
    if (s == DLRN_OK && o->bos) s = neox_read_config(ctx, o->model, &cfg);
    if (s == DLRN_OK && o->bos) s = check_bos(ctx, o, &cfg);
    if (s == DLRN_OK && o->bos) bos = cfg.bos;
    if (s == DLRN_OK) s = print_tokens(o, tok, docs, bos);
    doc_close(docs);
    bpe_destroy(tok);
    return s == DLRN_OK ? 0 : fail(ctx);
}

/* ---- generate ---- */

typedef struct generation {
    const options *o;
    bpe_tokenizer *tok;
    bpe_text text;
    dlrn_context *ctx;
    dlrn_writer *file; /* JSON lines; NULL: plain text to stdout */
    const char *prompt;
    int64_t tokens;
    double started, told;
} generation;

static dlrn_status put_line(generation *g) {
    page line;
    dlrn_status s = page_open(g->ctx, &line);
    if (s != DLRN_OK) return s;
    fputs("{\"text\": ", line.f);
    put_json_text(line.f, g->text.bytes, g->text.count);
    fputs("}\n", line.f);
    s = page_end(g->ctx, &line);
    if (s == DLRN_OK) s = dlrn_file_append(g->file, line.text, line.size);
    page_free(&line);
    return s;
}

static dlrn_status write_document(void *user, int64_t document, const int32_t *id, int64_t n) {
    generation *g = (generation *)user;
    int64_t before = (int64_t)strlen(g->prompt);
    bpe_text drawn;
    memset(&drawn, 0, sizeof drawn);
    dlrn_status s = bpe_decode(g->tok, id, n, &drawn);
    g->text.count = 0;
    if (s == DLRN_OK) s = bpe_put(drawn.ctx, &g->text, g->prompt, before);
    if (s == DLRN_OK) s = bpe_put(drawn.ctx, &g->text, drawn.bytes, drawn.count);
    bpe_text_free(&drawn);
    if (s != DLRN_OK) return s;
    if (g->file) {
        s = put_line(g);
    } else {
        if (document) putchar('\n');
        fwrite(g->text.bytes, 1, (size_t)g->text.count, stdout); /* also what is behind a 0 */
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

/* The prompt's tokens, with the bos token before it if asked for or if there is nothing else. */
static dlrn_status prompt_tokens(bench *b, const options *o, bpe_ids *ids) {
    int32_t bos = neox_config_of(b->model)->bos;
    const char *text = o->prompt ? o->prompt : "";
    dlrn_status s = bpe_encode(b->tok, text, (int64_t)strlen(text), ids);
    if (s != DLRN_OK || !(o->bos || ids->count == 0)) return s;
    if (bos < 0)
        return dlrn_fail(b->ctx, DLRN_ERR_ARGUMENT, "%s: no bos token: a prompt is needed",
                         o->model);
    s = bpe_put_id(b->ctx, ids, bos);
    if (s != DLRN_OK) return s;
    memmove(ids->id + 1, ids->id, (size_t)(ids->count - 1) * sizeof *ids->id);
    ids->id[0] = bos;
    return DLRN_OK;
}

static dlrn_status generate_to(bench *b, const options *o, generation *g) {
    bpe_ids ids;
    memset(&ids, 0, sizeof ids);
    dlrn_status s = prompt_tokens(b, o, &ids);
    neox_sampling how = {
        o->documents, o->tokens, o->temperature, 0, (uint64_t)o->seed, NULL, 0, -1};
    how.documents = o->documents < 0 ? 1 : o->documents;
    how.top_k = o->top_k;
    how.prompt = ids.id;
    how.prompt_len = ids.count;
    how.stop = neox_config_of(b->model)->eos;
    if (s == DLRN_OK) s = neox_generate(b->model, &how, write_document, g);
    bpe_ids_free(&ids);
    return s;
}

static int run_generate(dlrn_context *ctx, const options *o) {
    bench b;
    if (lacks_flag("generate", "--model", o->model) ||
        lacks_flag("generate", "--tokens", o->tokens ? o : NULL))
        return 2;
    if (o->out && check_suffix("generate", o->out, ".jsonl", "")) return 2;
    generation g;
    memset(&g, 0, sizeof g);
    dlrn_status s = bench_open(ctx, o, 0, &b);
    g.ctx = ctx, g.o = o, g.tok = b.tok, g.prompt = o->prompt ? o->prompt : "";
    g.started = g.told = seconds();
    if (s == DLRN_OK && o->out) s = dlrn_file_create(ctx, o->out, &g.file);
    if (s == DLRN_OK) s = generate_to(&b, o, &g);
    tell_end();
    if (s == DLRN_OK && g.file)
        s = dlrn_writer_close(g.file);
    else
        dlrn_writer_abort(g.file);
    bpe_text_free(&g.text);
    bench_close(&b);
    return s == DLRN_OK ? 0 : fail(ctx);
}

/* ---- activations, logits ---- */

static dlrn_status copy_rows(feed *f, const options *o, dlrn_writer *w) {
    dlrn_context *ctx = f->ctx;
    dlrn_source in = feed_source(f), *source = &in;
    dlrn_tensor x, y;
    int64_t done = 0;
    double started = seconds(), told = started;
    dlrn_status s = dlrn_tensor_create(ctx, PIECE, source->d_in, &x);
    if (s != DLRN_OK) return s;
    s = dlrn_tensor_create(ctx, source->d_out ? PIECE : 0, source->d_out, &y);
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
    dlrn_tensor_free(ctx, &x);
    dlrn_tensor_free(ctx, &y);
    if (s == DLRN_END && done == 0) return feed_empty(f);
    return s == DLRN_END ? DLRN_OK : feed_failed(f, s);
}

static int run_activations(dlrn_context *ctx, const options *o) {
    bench b;
    feed f;
    dlrn_writer *w = NULL;
    int status = check_site_flags("activations", o);
    if (!status && lacks_flag("activations", "--out", o->out)) status = 2;
    if (!status) status = check_suffix("activations", o->out, ".npy", "");
    if (status) return status;
    feed_init(&f, ctx, o);
    dlrn_status s = bench_open(ctx, o, 1, &b);
    if (s == DLRN_OK) s = neox_text_source(b.model, b.tok, b.docs, &b.reading, b.tap, &f.inner);
    if (s == DLRN_OK) s = dlrn_npy_create(ctx, o->out, f.inner.d_in, -1, &w);
    if (s == DLRN_OK) s = copy_rows(&f, o, w);
    if (s == DLRN_OK)
        s = dlrn_writer_close(w);
    else
        dlrn_writer_abort(w);
    dlrn_source_destroy(&f.inner);
    bench_close(&b);
    return s == DLRN_OK ? 0 : fail(ctx);
}

static dlrn_status write_logits(bench *b, const options *o, const neox_documents *texts) {
    const int64_t v = neox_config_of(b->model)->vocab, n = texts->start[1],
                  most = n < 64 ? n : 64; /* rows at a time */
    neox_batch batch = {texts->id, texts->start, 1};
    dlrn_tensor logits;
    dlrn_writer *w = NULL;
    dlrn_status s = dlrn_tensor_create(b->ctx, most, v, &logits);
    if (s != DLRN_OK) return s;
    s = neox_run(b->model, &batch, NULL, 0, NULL, NULL, 1);
    if (s == DLRN_OK) s = dlrn_npy_create(b->ctx, o->out, v, n, &w);
    for (int64_t i = 0; i < n && s == DLRN_OK; i += most) {
        const int64_t rows = n - i < most ? n - i : most;
        s = stopping(NULL) ? DLRN_STOPPED : DLRN_OK;
        if (s == DLRN_OK) s = neox_logits(b->model, i, rows, logits.data);
        if (s == DLRN_OK) s = dlrn_npy_append(w, logits.data, rows);
    }
    if (s == DLRN_OK)
        s = dlrn_writer_close(w);
    else
        dlrn_writer_abort(w);
    dlrn_tensor_free(b->ctx, &logits);
    return s;
}

static int run_logits(dlrn_context *ctx, const options *o) {
    bench b;
    neox_documents texts;
    if (lacks_flag("logits", "--model", o->model) || lacks_flag("logits", "--text", o->text) ||
        lacks_flag("logits", "--out", o->out) || check_suffix("logits", o->out, ".npy", ""))
        return 2;
    memset(&texts, 0, sizeof texts);
    dlrn_status s = bench_open(ctx, o, 0, &b);
    if (s == DLRN_OK) s = neox_read_documents(b.model, b.tok, b.docs, &b.reading, 1, &texts);
    if (s == DLRN_END)
        s = dlrn_fail(ctx, DLRN_ERR_VALUE, "%s: expected a document, found none", o->text);
    if (s == DLRN_OK) s = write_logits(&b, o, &texts);
    neox_documents_free(&texts);
    bench_close(&b);
    return s == DLRN_OK ? 0 : fail(ctx);
}
