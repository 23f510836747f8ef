/* dictlearn train: the run, its folder, its log, and how it stops. */

static volatile sig_atomic_t stop_asked;

static void on_signal(int number) {
    (void)number;
    stop_asked = 1;
}

typedef struct train_run {
    dlrn_context *ctx;
    const options *o;
    FILE *log;
    double started, told; /* seconds */
    int64_t first, rows;  /* first step of this process; rows since then */
} train_run;

static void run_path(const options *o, const char *name, char *path, size_t size) {
    snprintf(path, size, "%s/%s", o->save_dir, name);
}

/* Makes a folder and its parents. */
static void make_folders(const char *path) {
    char part[4352];
    snprintf(part, sizeof part, "%s", path);
    for (char *c = part + 1; *c; c++)
        if (*c == '/') {
            *c = 0;
            mkdir(part, 0777);
            *c = '/';
        }
    mkdir(part, 0777);
}

static dlrn_status save_checkpoint(train_run *r, dlrn_trainer *t) {
    char path[4200];
    run_path(r->o, "ae.pt", path, sizeof path);
    dlrn_status s = dlrn_save(dlrn_trainer_dictionary(t), path);
    run_path(r->o, "state.safetensors", path, sizeof path);
    return s == DLRN_OK ? dlrn_trainer_save(t, path) : s;
}

static void write_log(train_run *r, const dlrn_train_stats *s, double rate) {
    fprintf(r->log,
            "{\"step\": %lld, \"loss\": %.9g, \"mse_loss\": %.9g, \"sparsity_loss\": %.9g, \"ghost_loss\": %.9g, "
            "\"l0\": %.6g, \"dead\": %lld, \"lr\": %.9g, \"rows_per_second\": %.6g}\n",
            (long long)s->step, s->loss, s->mse_loss, s->sparsity_loss, s->ghost_loss, s->l0, (long long)s->dead, s->lr,
            rate);
    fflush(r->log);
}

static void show_progress(train_run *r, const dlrn_train_stats *s, double rate, double now) {
    char left[32] = "";
    if (r->o->quiet || now - r->told < (isatty(2) ? 0.2 : 5.0)) return;
    r->told = now;
    if (r->o->steps > 0) {
        double each = (now - r->started) / (double)(s->step + 1 - r->first);
        snprintf(left, sizeof left, ", %.0f s left", each * (double)(r->o->steps - s->step - 1));
    }
    tell("step %lld: loss %.5g, L0 %.1f, dead %lld, %.0f rows/s%s", (long long)s->step, s->loss, s->l0,
         (long long)s->dead, rate, left);
}

static dlrn_status on_step(void *user, dlrn_trainer *t, const dlrn_train_stats *s) {
    train_run *r = (train_run *)user;
    double now = seconds(), rate = 0;
    char name[64], path[4200];
    dlrn_status status = DLRN_OK;
    r->rows += s->rows;
    rate = (double)r->rows / (now - r->started + 1e-9);
    if (s->step % r->o->log_steps == 0) write_log(r, s, rate);
    show_progress(r, s, rate, now);
    if (r->o->save_steps > 0 && s->step > 0 && s->step % r->o->save_steps == 0) {
        snprintf(name, sizeof name, "checkpoints/ae_%lld.pt", (long long)s->step);
        run_path(r->o, name, path, sizeof path);
        status = dlrn_save(dlrn_trainer_dictionary(t), path);
        if (status == DLRN_OK) status = save_checkpoint(r, t);
    }
    return status == DLRN_OK && stop_asked ? DLRN_STOPPED : status;
}

static dlrn_status train_settings(dlrn_context *ctx, const options *o, int64_t d, dlrn_train_config *cfg) {
    (void)ctx;
    *cfg = dlrn_train_defaults();
    cfg->activation_dim = d;
    cfg->dict_size = o->dict_size ? o->dict_size : o->expansion * d;
    cfg->lr = o->lr;
    cfg->sparsity_penalty = o->sparsity_penalty;
    cfg->loss = strcmp(o->loss, "squared") ? DLRN_LOSS_NORM : DLRN_LOSS_SQUARED;
    cfg->sparsity = o->entropy ? DLRN_SPARSITY_ENTROPY : DLRN_SPARSITY_L1;
    cfg->steps = o->steps;
    cfg->warmup_steps = o->warmup_steps;
    cfg->resample_steps = o->resample_steps;
    cfg->ghost_threshold = o->ghost_threshold;
    cfg->log_steps = o->log_steps;
    cfg->save_steps = o->save_steps;
    cfg->seed = (uint64_t)o->seed;
    cfg->compat = o->compat;
    return DLRN_OK;
}

/* Where the rows come from, as members of the configuration. */
static void put_source(FILE *f, const options *o) {
    const struct {
        const char *key, *value;
    } names[] = {{"data", o->data}, {"target", o->target}, {"model", o->model},
                 {"text", o->text}, {"site", o->site},     {"io", o->model ? o->io : NULL}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (!names[i].value) continue;
        fprintf(f, "\"%s\": ", names[i].key);
        put_json_text(f, names[i].value, (int64_t)strlen(names[i].value));
        fputs(", ", f);
    }
    if (o->layer >= 0) fprintf(f, "\"layer\": %lld, ", (long long)o->layer);
}

static dlrn_status write_config(dlrn_context *ctx, const options *o, const dlrn_train_config *cfg) {
    char settings[4096], path[4200], part[4300];
    dlrn_train_config_json(cfg, settings, sizeof settings);
    run_path(o, "config.json", path, sizeof path);
    FILE *f = open_beside(path, part, sizeof part);
    if (!f) return dlrn_fail(ctx, DLRN_ERR_IO, "%s: cannot be written", path);
    fprintf(f,
            "{\"dict_class\": \"AutoEncoder\", \"activation_dim\": %lld, \"dict_size\": %lld, \"version\": \"%s\",\n ",
            (long long)cfg->activation_dim, (long long)cfg->dict_size, DLRN_VERSION_STRING);
    put_source(f, o);
    fprintf(f,
            "\n \"batch_size\": %lld, \"n_ctxs\": %lld, \"ctx_len\": %lld, \"in_batch_size\": %lld, \"epochs\": %lld, "
            "\"shuffle\": %s, \"bos\": %s, \"mode\": \"%s\",\n \"settings\": %s}\n",
            (long long)o->batch_size, (long long)o->n_ctxs, (long long)o->ctx_len, (long long)o->in_batch_size,
            (long long)o->epochs, o->no_shuffle ? "false" : "true", o->bos ? "true" : "false",
            o->compat ? "compat" : "default", settings);
    return close_beside(ctx, f, path, part, DLRN_OK);
}

/* The trainer: new, from --init, or from the saved state. */
static dlrn_status open_trainer(train_run *r, const dlrn_train_config *cfg, dlrn_buffer *buffer, dlrn_trainer **out) {
    const options *o = r->o;
    dlrn_dictionary *init = NULL;
    dlrn_status s = DLRN_OK;
    char path[4200];
    if (o->resume) {
        run_path(o, "state.safetensors", path, sizeof path);
        return dlrn_trainer_resume(r->ctx, path, cfg, buffer, out);
    }
    if (o->init) s = dlrn_load(r->ctx, o->init, &init);
    if (s == DLRN_OK) s = dlrn_trainer_create(r->ctx, cfg, init, buffer, out);
    dlrn_dictionary_destroy(init);
    return s;
}

static dlrn_status run_steps(train_run *r, dlrn_trainer *t) {
    dlrn_train_stats stats;
    dlrn_status s = DLRN_OK;
    r->first = dlrn_trainer_steps_done(t);
    r->started = r->told = seconds();
    while (s == DLRN_OK) {
        s = dlrn_trainer_step(t, &stats);
        if (s == DLRN_OK) s = on_step(r, t, &stats);
    }
    tell_end();
    if (s != DLRN_END && s != DLRN_STOPPED) return s; /* the last good checkpoint stays */
    dlrn_status saved = save_checkpoint(r, t);
    if (saved != DLRN_OK) return saved;
    if (s == DLRN_STOPPED)
        fprintf(stderr, "dictlearn: stopped after %lld steps and saved: go on with the same command and --resume\n",
                (long long)dlrn_trainer_steps_done(t));
    return DLRN_OK;
}

static dlrn_status open_log(train_run *r) {
    char path[4200];
    run_path(r->o, "log.jsonl", path, sizeof path);
    r->log = fopen(path, r->o->resume ? "ab" : "wb");
    if (r->log) return DLRN_OK;
    return dlrn_file_write(r->ctx, path, "", 0); /* fails with the reason */
}

static dlrn_status train_on(train_run *r, dlrn_source *source) {
    const options *o = r->o;
    dlrn_buffer_config bc = dlrn_buffer_defaults();
    dlrn_train_config cfg;
    dlrn_buffer *buffer = NULL;
    dlrn_trainer *t = NULL;
    uint64_t bytes = 0;
    bc.n_ctxs = o->n_ctxs;
    bc.ctx_len = o->ctx_len;
    bc.in_batch_size = o->in_batch_size;
    bc.out_batch_size = o->batch_size;
    bc.shuffle = !o->no_shuffle;
    bc.seed = (uint64_t)o->seed;
    dlrn_status s = dlrn_buffer_bytes(r->ctx, &bc, source->activation_dim, source->has_target, &bytes);
    if (s == DLRN_OK && !o->quiet) fprintf(stderr, "buffer: at most %.1f MB\n", (double)bytes / 1e6);
    if (s == DLRN_OK) s = dlrn_buffer_create(r->ctx, &bc, source, 0, &buffer);
    if (s == DLRN_OK) s = train_settings(r->ctx, o, source->activation_dim, &cfg);
    if (s == DLRN_OK) s = open_trainer(r, &cfg, buffer, &t);
    if (s == DLRN_OK) s = write_config(r->ctx, o, dlrn_trainer_config(t));
    if (s == DLRN_OK) s = open_log(r);
    if (s == DLRN_OK) s = run_steps(r, t);
    if (r->log) fclose(r->log);
    dlrn_trainer_destroy(t);
    dlrn_buffer_destroy(buffer);
    return s;
}

/* 0, or the exit status of a wrong call. */
static int check_source_flags(const char *name, const options *o) {
    if (!o->data && !o->model) return usage_error(name, "expected --data or --model, found neither", "source");
    if (o->data && o->model) return usage_error(name, "expected --data or --model, found both", "source");
    if (o->model) return o->target ? usage_error(name, "goes with --data", "--target") : check_site_flags(name, o);
    if (o->text || o->site) return usage_error(name, "goes with --model", o->text ? "--text" : "--site");
    return 0;
}

static int check_train_flags(const options *o) {
    int status = check_source_flags("train", o);
    if (status) return status;
    if (o->model && o->epochs != 1) return usage_error("train", "goes with --data: a text is read once", "--epochs");
    if (lacks_flag("train", "--save-dir", o->save_dir)) return 2;
    if (strcmp(o->loss, "norm") && strcmp(o->loss, "squared"))
        return usage_error("train", "expected norm or squared", o->loss);
    return 0;
}

static int run_train(dlrn_context *ctx, const options *o) {
    train_run r = {ctx, o, NULL, 0, 0, 0, 0};
    dlrn_source source;
    bench b;
    char checkpoints[4200];
    int status = check_train_flags(o);
    if (status) return status;
    memset(&b, 0, sizeof b);
    memset(&source, 0, sizeof source);
    if (!o->quiet) fprintf(stderr, "%s\n", dlrn_build_info(ctx));
    dlrn_status s = o->model ? bench_open(ctx, o, 1, &b) : DLRN_OK;
    if (s == DLRN_OK)
        s = o->model ? neox_text_source(b.model, b.tok, b.docs, &b.reading, b.tap, &source)
                     : dlrn_source_from_npy(ctx, o->data, o->target, o->epochs, &source);
    if (s == DLRN_OK) {
        run_path(o, "checkpoints", checkpoints, sizeof checkpoints);
        make_folders(checkpoints);
        signal(SIGINT, on_signal);
        signal(SIGTERM, on_signal);
        s = train_on(&r, &source);
    }
    tell_end();
    status = s == DLRN_OK ? 0 : fail(ctx);
    dlrn_source_destroy(&source);
    bench_close(&b);
    return status;
}
