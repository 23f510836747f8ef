/* dictlearn sweep: several dictionaries on one stream of rows. The model runs once, one buffer
   shuffles, and each batch goes to every member: a run of train in a folder of its own, DIR/k-32,
   that differs from the others in the settings of --vary.

   The rows are saved once, in DIR/stream.safetensors, after all members. A process that is killed
   between two of these saves leaves members that are ahead of the rows: they wait until the rows
   have come to their step, and the others make the same steps again. */

enum { SWEEP_AXES = 4, SWEEP_MEMBERS = 64 };
#define SWEEP_FILE "sweep.json"
#define STREAM_FILE "stream.safetensors"
#define FRONTIER_FILE "frontier.svg"

/* A flag of --vary and its values. */
typedef struct sweep_axis {
    const flag *flag;
    path_list values;
} sweep_axis;

/* A dictionary of the sweep. */
typedef struct sweep_member {
    train_run run;
    options o;      /* as train's */
    path_list text; /* words that are in no command line: owned */
    const char **argv;
    const char *value;  /* "32", or "32,0.001" of two flags */
    const char *folder; /* "k-32", in the sweep's */
    trained dict;       /* while it is measured */
    dlrn_metrics m;
    int measured;
    char error[640];  /* why it has ended before the others; "": it has not */
    char before[640]; /* the same, of a process before this one            */
} sweep_member;

typedef struct sweep {
    dlrn_context *ctx;
    const options *o; /* of the command */
    options common;   /* that say where rows come from */
    train_stream in;
    sweep_axis axis[SWEEP_AXES];
    int axes;
    sweep_member *member; /* [count] */
    int count;
    int lock;           /* as of a run */
    size_t had_folders; /* as of a run */
    int64_t first;      /* batches taken before this process */
    int64_t step;       /* batches taken                     */
    int saved;          /* this process has saved            */
    int told_stop;
    char figures[256]; /* on which rows they were measured; "": they are those of the last step */
} sweep;

static void sweep_path(const sweep *w, const char *name, char path[4200]) {
    snprintf(path, 4200, "%s/%s", w->o->save_dir, name);
}

/* Whether a member still trains. */
static int still_trains(const sweep_member *m) {
    return !*m->error;
}

/* Steps that a member has made. */
static int64_t steps_of(const sweep_member *m) {
    return m->run.t ? dlrn_trainer_describe(m->run.t).steps : 0;
}

/* ---- --vary */

/* Whether a flag's value is part of the trainer's configuration. */
static int is_training(const flag *f) {
    const size_t begin = offsetof(options, train);
    return f->at >= begin && f->at < begin + sizeof(dlrn_train_config);
}

/* Why a flag cannot differ between members; NULL: it can. */
static const char *why_common(const flag *f) {
    static const char *const of_runs[] = {"--save-dir",   "--config",    "--init",    "--layout",
                                          "--norm-scale", "--threshold", "--threads", "--kernels"};
    if (!(f->commands & C_TRAIN)) return "expected a setting of train to vary";
    if (f->kind == F_SWITCH) return "expected a flag with values to vary";
    if (f->at == offsetof(options, train.steps) || f->at == offsetof(options, train.log_steps) ||
        f->at == offsetof(options, train.save_steps))
        return "cannot vary: all dictionaries make the same steps";
    if (f->at == offsetof(options, groups) || f->at == offsetof(options, group_weights))
        return "cannot vary: its values are lists themselves";
    if (is_training(f) || f->at == offsetof(options, dict_size) ||
        f->at == offsetof(options, expansion) || f->at == offsetof(options, seed) ||
        f->at == offsetof(options, recipe))
        return NULL;
    for (size_t i = 0; i < sizeof of_runs / sizeof *of_runs; i++)
        if (!strcmp(f->name, of_runs[i])) return "expected a setting of training to vary";
    return "cannot vary: it changes the rows of a batch, which all dictionaries share";
}

/* Whether a flag is one of --vary. */
static int is_varied(const sweep *w, const flag *f) {
    for (int i = 0; i < w->axes; i++)
        if (w->axis[i].flag == f) return 1;
    return 0;
}

/* Adds a value of an axis. 0, or the exit status. */
static int add_value(sweep *w, sweep_axis *a, const char *value, size_t n) {
    char text[TEXT_MAX + 1];
    snprintf(text, sizeof text, "%.*s", (int)n, value);
    if (!*text) return usage_error("sweep", "a value is missing", "--vary");
    for (int64_t i = 0; i < a->values.n; i++)
        if (!strcmp(a->values.path[i], text))
            return usage_error("sweep", "given twice by --vary, expected once", text);
    if (a->values.n == SWEEP_MEMBERS)
        return usage_error("sweep", "expected at most 64 values", "--vary");
    return paths_add(w->ctx, &a->values, NULL, text) == DLRN_OK ? 0 : fail(w->ctx);
}

/* Takes FLAG=V,V,... with or without the dashes of the flag. 0, or the exit status. */
static int add_axis(sweep *w, const char *word) {
    const char *is = strchr(word, '='), *unused;
    char name[64];
    const size_t dashes = strspn(word, "-");
    if (!is || word + dashes == is)
        return usage_error("sweep", "expected FLAG=V,V,... as --vary", word);
    if (w->axes == SWEEP_AXES) return usage_error("sweep", "expected --vary at most 4 times", word);
    snprintf(name, sizeof name, "--%.*s", (int)((size_t)(is - word) - dashes), word + dashes);
    const flag *f = find_flag(name, &unused);
    if (!f) return unknown_flag(&(command){.name = "sweep", .bit = C_TRAIN}, name);
    if (why_common(f)) return usage_error("sweep", why_common(f), f->name);
    if (is_varied(w, f)) return usage_error("sweep", "given twice by --vary, expected once", name);
    sweep_axis *a = &w->axis[w->axes++];
    int status = 0;
    a->flag = f;
    for (const char *at = is + 1; !status; at++) {
        const size_t n = strcspn(at, ",");
        status = add_value(w, a, at, n);
        at += n;
        if (!*at) break;
    }
    return status;
}

/* All --vary of the command line. 0, or the exit status. */
static int find_axes(sweep *w) {
    const options *o = w->o;
    int status = 0;
    w->count = 1;
    for (int i = 0; i < o->argc && !status; i++) {
        const char *value;
        const flag *f = find_flag(o->argv[i], &value);
        const int more = f && takes_next(f, value, o->argv[i + 1]);
        if (f && f->at == offsetof(options, vary))
            status = add_axis(w, value ? value : o->argv[i + 1]);
        i += more;
    }
    for (int i = 0; i < w->axes; i++)
        w->count = w->axis[i].values.n > SWEEP_MEMBERS / w->count
                       ? SWEEP_MEMBERS + 1
                       : w->count * (int)w->axis[i].values.n;
    if (!status && w->count > SWEEP_MEMBERS)
        return usage_error("sweep", "expected at most 64 combinations", "--vary");
    return status;
}

/* ---- members */

/* The names of the axes, "k" or "k,lr". */
static void axis_names(const sweep *w, char *text, size_t size) {
    size_t at = 0;
    *text = 0;
    for (int i = 0; i < w->axes && at < size; i++)
        at +=
            (size_t)snprintf(text + at, size - at, "%s%s", i ? "," : "", w->axis[i].flag->name + 2);
}

/* The value that member i has of an axis: the last axis changes fastest. */
static const char *value_of(const sweep *w, int i, int of) {
    for (int a = w->axes - 1; a > of; a--) i /= (int)w->axis[a].values.n;
    return w->axis[of].values.path[i % (int)w->axis[of].values.n];
}

/* Names member i by its values. 0, or the exit status. */
static int name_member(sweep *w, int i) {
    sweep_member *m = &w->member[i];
    char value[TEXT_MAX] = "", folder[TEXT_MAX] = "";
    size_t v = 0, n = 0;
    for (int a = 0; a < w->axes && v < sizeof value && n < sizeof folder; a++) {
        const char *text = value_of(w, i, a);
        v += (size_t)snprintf(value + v, sizeof value - v, "%s%s", a ? "," : "", text);
        n += (size_t)snprintf(folder + n, sizeof folder - n, "%s%s-%s", a ? "," : "",
                              w->axis[a].flag->name + 2, text);
    }
    for (char *at = folder; *at; at++)
        if (*at == '/' || is_control((unsigned char)*at)) *at = '_';
    if (strlen(w->o->save_dir) + n + 1 > TEXT_MAX)
        return usage_error("sweep", "the path of a dictionary is too long", "--save-dir");
    if (paths_add(w->ctx, &m->text, NULL, value) != DLRN_OK ||
        paths_add(w->ctx, &m->text, NULL, folder) != DLRN_OK ||
        paths_add(w->ctx, &m->text, w->o->save_dir, folder) != DLRN_OK)
        return fail(w->ctx);
    m->value = m->text.path[0];
    m->folder = m->text.path[1];
    return 0;
}

/* The words of the train that member i is: those of the sweep, with its folder and its values.
   Returns how many. */
static int member_words(sweep *w, int i) {
    sweep_member *m = &w->member[i];
    const options *o = w->o;
    int n = 0;
    for (int k = 0; k < o->argc; k++) {
        const char *value;
        const flag *f = find_flag(o->argv[k], &value);
        const int more = f && takes_next(f, value, o->argv[k + 1]);
        const int kept = f && (f->commands & C_TRAIN) && f->at != offsetof(options, save_dir) &&
                         !is_varied(w, f);
        if (kept) m->argv[n++] = o->argv[k];
        if (kept && more) m->argv[n++] = o->argv[k + 1];
        k += more;
    }
    m->argv[n++] = "--save-dir";
    m->argv[n++] = m->text.path[2];
    for (int a = 0; a < w->axes; a++) {
        m->argv[n++] = w->axis[a].flag->name;
        m->argv[n++] = value_of(w, i, a);
    }
    m->argv[n] = NULL;
    return n;
}

/* Parses the words of a member as train would, with the defaults of its recipe. 0, or the exit
   status. */
static int parse_member(sweep *w, int i) {
    static const command train = {"sweep", C_TRAIN, 0, "", "", "", "", NULL};
    sweep_member *m = &w->member[i];
    const char *recipe = NULL;
    int status = name_member(w, i);
    if (status) return status;
    m->argv = (const char **)dlrn_alloc(w->ctx, w->o->argc + 2 * SWEEP_AXES + 3, sizeof *m->argv);
    if (!m->argv) return fail(w->ctx);
    const int argc = member_words(w, i);
    for (int k = 0; k + 1 < argc; k++)
        if (!strcmp(m->argv[k], "--recipe")) recipe = m->argv[k + 1];
    if (!recipe && w->o->recipe) recipe = w->o->recipe; /* --recipe=R */
    if (!recipe) recipe = dlrn_recipe(0)->name;
    if (check_recipe(recipe)) return 2;
    status = parse_options(&train, argc, m->argv, recipe, &m->o);
    return status ? status : check_train_flags("sweep", &m->o);
}

/* Says that a flag of the command line has no effect. */
static void tell_replaced(const sweep *w) {
    for (int i = 0; i < w->axes && !w->o->quiet; i++)
        if (is_given(w->o, w->axis[i].flag))
            fprintf(stderr, "dictlearn: note: --vary replaces the value of %s\n",
                    w->axis[i].flag->name);
}

/* Whether all members can train on the same batches. 0, or the exit status of a wrong call. */
static int check_members(const sweep *w) {
    const options *a = &w->member[0].o;
    char what[256];
    for (int i = 0; i < w->count; i++) {
        const options *b = &w->member[i].o;
        const char *one = a->train.recipe, *other = b->train.recipe;
        if (a->batch_size != b->batch_size) {
            snprintf(what, sizeof what,
                     "expected one for all: recipe %s has %lld rows, %s has %lld", one,
                     (long long)a->batch_size, other, (long long)b->batch_size);
            return usage_error("sweep", what, "--batch-size");
        }
        if (has_layers(find_recipe(one)) != has_layers(find_recipe(other)))
            return usage_error("sweep",
                               "expected recipes for rows of one layer, or of several, found both",
                               "--vary");
        /* how far one member reads ahead would decide from what another one revives features */
        if (b->no_shuffle && b->train.resample_steps > 0)
            return usage_error("sweep", "expected no --no-shuffle beside it", "--resample-steps");
    }
    return 0;
}

/* Members out of the command line. 0, or the exit status. */
static int make_members(sweep *w) {
    int status = find_axes(w);
    if (!status && !w->axes && w->o->resume && w->o->save_dir) {
        char path[4200];
        sweep_path(w, SWEEP_FILE, path);
        (void)!dlrn_fail(w->ctx, DLRN_ERR_IO, "%s: expected the %s of a sweep to resume, found %s",
                         w->o->save_dir, SWEEP_FILE,
                         dlrn_file_exists(w->ctx, path) == 1 ? "a damaged one" : "none");
        return fail(w->ctx);
    }
    if (!status && !w->axes) status = lacks_flag("sweep", "--vary", NULL) * 2;
    if (!status && lacks_flag("sweep", "--save-dir", w->o->save_dir)) status = 2;
    if (status) return status;
    w->member = (sweep_member *)dlrn_alloc(w->ctx, w->count, sizeof *w->member);
    if (!w->member) return fail(w->ctx);
    memset(w->member, 0, (size_t)w->count * sizeof *w->member);
    for (int i = 0; i < w->count && !status; i++) status = parse_member(w, i);
    if (!status) status = check_members(w);
    if (!status && w->o->documents >= 0 && !w->o->model)
        status = usage_error("sweep", "goes with --model", "--documents");
    if (status) return status;
    tell_replaced(w);
    w->common = w->member[0].o;
    w->common.save_dir = w->o->save_dir;
    w->common.seed = w->o->seed; /* of the shuffle, also if it varies: the stream is one */
    return 0;
}

/* ---- sweep.json */

/* Rows that a member has seen. Of a stream that has not ended all batches are full. */
static int64_t rows_seen(const sweep *w, const sweep_member *m) {
    const dlrn_buffer_info b = dlrn_buffer_describe(w->in.buffer);
    const int64_t full = steps_of(m) * w->common.batch_size, read = b.rows_read - b.unread;
    return full < read ? full : read;
}

/* A member's figures: measured ones, or those of its last step. */
static void put_member(json_writer *j, const sweep *w, const sweep_member *m) {
    const dlrn_train_stats *last = &m->run.last;
    const int steps = m->run.rows > 0;
    json_open(j, NULL, '{');
    json_text(j, "value", m->value);
    json_text(j, "folder", m->folder);
    json_int(j, "steps", steps_of(m));
    json_int(j, "rows", rows_seen(w, m));
    json_real(j, "l0", 9, m->measured ? m->m.l0 : steps ? last->l0 : (double)NAN);
    json_real(j, "variance_explained", 9, m->measured ? m->m.variance_explained : (double)NAN);
    json_real(j, "mse_loss", 9,
              m->measured ? m->m.mse_loss
              : steps     ? last->reconstruction_loss
                          : (double)NAN);
    json_real(j, "dead", 9,
              m->measured ? (double)m->m.dead
              : steps     ? (double)last->dead
                          : (double)NAN);
    json_real(j, "alive", 9, m->measured ? m->m.share_alive : (double)NAN);
    json_real(j, "ce_recovered", 9,
              m->measured && w->o->documents > 0 ? m->m.share_recovered : (double)NAN);
    if (*m->error) json_text(j, "error", m->error);
    json_close(j, '}');
}

/* What a sweep is and has come to: for plot, and for --resume, which needs its words. */
static dlrn_status write_sweep(sweep *w) {
    char path[4200], names[256];
    page text;
    dlrn_status s = page_open(w->ctx, &text);
    if (s != DLRN_OK) return s;
    json_writer j = {text.f, 0};
    axis_names(w, names, sizeof names);
    json_open(&j, NULL, '{');
    json_text(&j, "vary", names);
    put_command(&j, w->o);
    json_int(&j, "steps", w->step);
    json_int(&j, "rows_read", dlrn_buffer_describe(w->in.buffer).rows_read);
    json_open(&j, "members", '[');
    for (int i = 0; i < w->count; i++) put_member(&j, w, &w->member[i]);
    json_close(&j, ']');
    json_text(&j, "measured", *w->figures ? w->figures : "the last training step");
    json_close(&j, '}');
    fputc('\n', text.f);
    s = page_end(w->ctx, &text);
    sweep_path(w, SWEEP_FILE, path);
    if (s == DLRN_OK) s = dlrn_file_write(w->ctx, path, text.text, text.size);
    page_free(&text);
    return s;
}

/* ---- saving */

/* Before the first save: rows of an older sweep in the folder are not those of these members. */
static void drop_older(sweep *w) {
    char path[4200];
    if (w->saved || w->o->resume) return;
    sweep_path(w, STREAM_FILE, path);
    remove(path);
    sweep_path(w, FRONTIER_FILE, path);
    remove(path);
}

/* A member has failed, with the context's error. */
static void tell_failed(sweep *w, sweep_member *m) {
    snprintf(m->error, sizeof m->error, "%.600s", dlrn_error(w->ctx));
    tell_end();
    fprintf(stderr, "dictlearn: %s: %s: the other dictionaries go on\n", m->o.save_dir, m->error);
}

/* Saves all members that are at the sweep's step, and then the rows: at any moment the saved rows
   are not ahead of a saved member. snapshot: a step to keep the dictionaries of, or -1. */
static dlrn_status save_sweep(sweep *w, int64_t snapshot) {
    char path[4200];
    dlrn_status s = DLRN_OK;
    drop_older(w);
    for (int i = 0; i < w->count && s == DLRN_OK; i++) {
        sweep_member *m = &w->member[i];
        if (!still_trains(m) || steps_of(m) != w->step) continue;
        s = save_checkpoint(&m->run, snapshot);
        if (s != DLRN_ERR_VALUE) continue;
        /* weights that are not finite: its older checkpoint stays, and the others go on */
        tell_failed(w, m);
        s = DLRN_OK;
    }
    if (s == DLRN_OK) s = write_sweep(w);
    sweep_path(w, STREAM_FILE, path);
    if (s == DLRN_OK) s = dlrn_buffer_save(w->in.buffer, w->step, path);
    if (s == DLRN_OK) w->saved = 1;
    return s;
}

/* ---- steps */

/* A member that cannot go on is saved as far as it is good; the others go on. */
static void end_member(sweep *w, sweep_member *m, dlrn_status why) {
    drop_older(w);
    (void)!end_run(&m->run, why); /* the error stays the context's */
    tell_failed(w, m);
}

/* What a step of a member has come to. An error of the rows is everyone's. */
static dlrn_status after_step(sweep *w, sweep_member *m, const dlrn_train_stats *stats,
                              dlrn_status s) {
    if (s == DLRN_OK) return note_step(&m->run, stats);
    if (s == DLRN_STOPPED || *w->in.feed.error) return s;
    end_member(w, m, s);
    return DLRN_OK;
}

/* Finishes what a stop has interrupted in the process before this one: a resampling draws from the
   rows that the buffer holds after the member's step, not later. */
static dlrn_status finish_interrupted(sweep *w) {
    dlrn_status s = DLRN_OK;
    for (int i = 0; i < w->count && s == DLRN_OK; i++) {
        sweep_member *m = &w->member[i];
        dlrn_train_stats stats;
        if (!still_trains(m) || steps_of(m) != w->step || !dlrn_trainer_interrupted(m->run.t))
            continue;
        s = after_step(w, m, &stats, dlrn_trainer_step(m->run.t, &stats));
    }
    return s;
}

/* Gives a batch to all members that wait for it. After an error, too: whoever saves then finds all
   of them at the same step. */
static dlrn_status give_batch(sweep *w, const float *x, const float *y, int64_t n) {
    dlrn_status s = DLRN_OK;
    for (int i = 0; i < w->count; i++) {
        sweep_member *m = &w->member[i];
        dlrn_train_stats stats;
        if (!still_trains(m) || steps_of(m) != w->step) continue;
        dlrn_status one = dlrn_trainer_step_on(m->run.t, x, y, n, &stats);
        one = after_step(w, m, &stats, one);
        if (s == DLRN_OK) s = one;
    }
    w->step++;
    return s;
}

/* The members' losses on one line, as far as they fit. */
static void show_sweep(sweep *w, double now) {
    char text[160] = "", of[32], left[48];
    size_t at = 0;
    const train_run *any = NULL;
    if (!time_to_tell(&w->in, now)) return;
    for (int i = 0; i < w->count && at < sizeof text - 48; i++) {
        const sweep_member *m = &w->member[i];
        if (!still_trains(m) || !m->run.rows) continue;
        any = &m->run;
        at += (size_t)snprintf(text + at, sizeof text - at, "%s%.16s %.4g/%.1f", at ? ", " : "",
                               m->value, m->run.last.loss, m->run.last.l0);
    }
    if (!any) return;
    plan_words(any, w->step - 1, now, of, left);
    tell("step %lld%s: loss/L0 %s, %.0f rows/s%s", (long long)(w->step - 1), of, text,
         rate_of(any, now), left);
}

/* Whether a member still trains. */
static int any_trains(const sweep *w) {
    for (int i = 0; i < w->count; i++)
        if (still_trains(&w->member[i])) return 1;
    return 0;
}

/* One batch for all. DLRN_END: the steps are made, the rows are gone, or no member goes on. */
static dlrn_status step_sweep(sweep *w) {
    const float *x, *y;
    int64_t n;
    const int64_t steps = w->common.train.steps;
    dlrn_status s = finish_interrupted(w);
    if (s != DLRN_OK) return s;
    if (!any_trains(w) || (steps >= 0 && w->step >= steps)) return DLRN_END;
    s = dlrn_buffer_next(w->in.buffer, &x, &y, &n);
    if (s == DLRN_OK) s = give_batch(w, x, y, n);
    if (s != DLRN_OK) return s;
    show_sweep(w, seconds());
    return saves_after(&w->common, w->step - 1) ? save_sweep(w, w->step - 1) : DLRN_OK;
}

/* ---- the end */

/* The last step of each member into its log, and how it ended. */
static dlrn_status close_logs(sweep *w) {
    dlrn_status s = DLRN_OK;
    for (int i = 0; i < w->count && s == DLRN_OK; i++) {
        train_run *r = &w->member[i].run;
        if (still_trains(&w->member[i]) && r->log && r->logged != r->last.step)
            s = log_step(r, &r->last);
    }
    return s;
}

/* Makes room where all steps are made: see drop_rows. */
static void drop_sweep_rows(sweep *w) {
    uint64_t weights = 0;
    for (int i = 0; i < w->count; i++)
        if (w->member[i].run.t) weights += weights_of(&w->member[i].run);
    drop_rows(&w->in, weights);
}

/* Says where all is. An error that ended the sweep stays its error. */
static dlrn_status tell_end_of_sweep(sweep *w, dlrn_status why, dlrn_status saved,
                                     const char *error) {
    if (saved != DLRN_OK && why != DLRN_END && why != DLRN_STOPPED) {
        fprintf(stderr, "dictlearn: the sweep could not be saved: %s\n", dlrn_error(w->ctx));
        return dlrn_fail(w->ctx, why, "%s", error);
    }
    if (saved != DLRN_OK) return saved;
    for (int i = 0; i < w->count; i++)
        if (still_trains(&w->member[i]))
            tell_end_of_run(&w->member[i].run, why, steps_of(&w->member[i]));
    w->told_stop = why == DLRN_STOPPED;
    if (why == DLRN_STOPPED) tell_resume(w->o, "sweep", w->step);
    if (why == DLRN_END || why == DLRN_STOPPED) return why == DLRN_END ? DLRN_OK : why;
    return dlrn_fail(w->ctx, why, "%s", error);
}

/* Ends a sweep that has taken no batch in this process. */
static dlrn_status end_idle_sweep(sweep *w, dlrn_status why) {
    if (why == DLRN_STOPPED) {
        fprintf(stderr, "dictlearn: %s: stopped before %s step: %s\n", w->o->save_dir,
                w->step ? "a further" : "the first",
                w->step ? "the sweep is as it was" : "nothing was saved");
        w->told_stop = 1;
    }
    if (why != DLRN_END) return why;
    if (!w->step && w->common.train.steps != 0) return feed_empty(&w->in.feed);
    w->in.done = 1;
    return save_sweep(w, -1); /* with the words of this command */
}

/* Saves what was learnt, whatever ended the sweep. */
static dlrn_status end_sweep(sweep *w, dlrn_status why) {
    char error[2048];
    if (w->step == w->first) return end_idle_sweep(w, why);
    snprintf(error, sizeof error, "%s", dlrn_error(w->ctx));
    dlrn_status s = close_logs(w);
    if (why == DLRN_END && any_trains(w)) {
        drop_sweep_rows(w);
        w->in.done = 1;
    }
    dlrn_status saved = save_sweep(w, -1);
    return tell_end_of_sweep(w, why, s == DLRN_OK ? saved : s, error);
}

static dlrn_status run_sweep_steps(sweep *w) {
    dlrn_status s = DLRN_OK;
    w->in.started = w->in.told = seconds();
    while (s == DLRN_OK) s = stopping(NULL) ? DLRN_STOPPED : step_sweep(w);
    tell_end();
    return end_sweep(w, s);
}

/* ---- figures, on rows that no member was trained on where there are some */

/* Measures the dictionaries of a pass: on the text, or on the array of f. */
static dlrn_status measure_once(sweep *w, feed *f, int64_t rows, judged *j) {
    const int64_t documents = w->o->documents > 0 ? w->o->documents : 0;
    dlrn_status s = DLRN_OK;
    dlrn_evaluator *e[SWEEP_MEMBERS] = {NULL};
    static spread even; /* too large for some stacks */
    const dlrn_eval_config cfg = dlrn_eval_defaults();
    memset(&even, 0, sizeof even);
    j->spread = &even;
    j->e = e;
    for (int i = 0; i < j->count && s == DLRN_OK; i++)
        s = dlrn_evaluator_create(j->dict[i], &cfg, &e[i]);
    if (s == DLRN_OK)
        s = f ? evaluate_array(f, rows, j)
              : evaluate_model(&w->in.mt, &w->common, rows, documents, j);
    if (s == DLRN_OK) spread_tell(&even);
    for (int i = 0; i < j->count; i++) dlrn_evaluator_destroy(e[i]);
    dlrn_free(w->ctx, even.center);
    return s;
}

/* Rows after those that were read for training count as enough from an eighth of those wanted. */
static int are_enough(int64_t rows, int64_t wanted) {
    return rows > 0 && rows >= wanted / 8;
}

/* Documents after those of the training, or, where the text has ended, its first. */
static dlrn_status measure_text(sweep *w, judged *j) {
    model_text *mt = &w->in.mt;
    const int64_t wanted = rows_wanted(w->o);
    dlrn_status s = measure_once(w, NULL, wanted, j);
    const int64_t rows = s == DLRN_OK ? j->m[0].rows : 0;
    if (stopping(NULL) || are_enough(rows, wanted) || (s == DLRN_OK && comes_once(w->o->text))) {
        snprintf(w->figures, sizeof w->figures,
                 "%lld rows of documents after those of the training", (long long)rows);
        return s;
    }
    if (comes_once(w->o->text)) return DLRN_END;
    dlrn_source_destroy(&w->in.feed.inner); /* it borrows the reader */
    doc_close(mt->docs);
    mt->docs = NULL;
    s = open_documents(w->ctx, &w->common, lm_config_of(mt->model)->vocab, &mt->docs);
    if (s == DLRN_OK) s = measure_once(w, NULL, wanted, j);
    snprintf(w->figures, sizeof w->figures,
             "the first %lld rows of the text, which has ended: the dictionaries were trained on "
             "them; fewer --steps leave some",
             (long long)(s == DLRN_OK ? j->m[0].rows : 0));
    return s;
}

/* Which rows of the files are measured: the first one; *rows: how many. */
static int64_t choose_held_out(sweep *w, uint64_t position, int64_t *rows) {
    const int64_t all = w->in.feed.all_rows, held = w->common.held_out;
    const int64_t wanted = *rows = rows_wanted(w->o);
    const int64_t after = position < (uint64_t)all ? all - (int64_t)position : 0;
    if (held) {
        if (w->o->rows < 0 || *rows > held) *rows = held;
        snprintf(w->figures, sizeof w->figures, "%lld rows that --held-out kept from training",
                 (long long)*rows);
        return all - held;
    }
    if (are_enough(after, wanted)) {
        if (*rows > after) *rows = after;
        snprintf(w->figures, sizeof w->figures, "%lld rows after those of the training",
                 (long long)*rows);
        return (int64_t)position;
    }
    if (*rows > all) *rows = all;
    snprintf(w->figures, sizeof w->figures,
             "the last %lld rows, which the dictionaries were trained on: --held-out keeps rows "
             "from training",
             (long long)*rows);
    return all - *rows;
}

/* Rows of files. */
static dlrn_status measure_files(sweep *w, judged *j) {
    feed *trained_on = &w->in.feed, f;
    uint64_t position = 0;
    int64_t rows = 0;
    dlrn_status s = trained_on->inner.position(trained_on->inner.user, &position);
    if (s != DLRN_OK) return s;
    const int64_t first = choose_held_out(w, position, &rows);
    feed_init(&f, w->ctx, &w->common);
    f.width = trained_on->width;
    f.target_width = trained_on->target_width;
    s = feed_open(&f, 1);
    if (s == DLRN_OK && w->common.skip_nonfinite) s = feed_keep_finite(&f);
    if (s == DLRN_OK) s = f.inner.seek(f.inner.user, (uint64_t)first);
    if (s == DLRN_OK) s = measure_once(w, &f, rows, j);
    feed_close(&f);
    return s;
}

/* Rows of a pipe, as far as it has more of them. */
static dlrn_status measure_pipe(sweep *w, judged *j) {
    dlrn_status s = measure_once(w, &w->in.feed, rows_wanted(w->o), j);
    if (s == DLRN_ERR_VALUE && !*w->in.feed.error) return DLRN_END; /* it has ended */
    snprintf(w->figures, sizeof w->figures, "%lld rows after those of the training",
             (long long)(s == DLRN_OK ? j->m[0].rows : 0));
    return s;
}

/* Measures all members that have come to the end, on the same rows, read once. */
static dlrn_status measure_members(sweep *w) {
    const dlrn_dictionary *dict[SWEEP_MEMBERS];
    dlrn_metrics figures[SWEEP_MEMBERS];
    judged j = {0, dict, NULL, figures, NULL};
    dlrn_status s = DLRN_OK;
    for (int i = 0; i < w->count && s == DLRN_OK; i++) {
        if (!still_trains(&w->member[i])) continue;
        s = trained_open(w->member[i].run.t, &w->member[i].dict);
        dict[j.count++] = w->member[i].dict.dict;
    }
    memset(figures, 0, sizeof figures);
    if (s == DLRN_OK && j.count)
        s = w->o->model              ? measure_text(w, &j)
            : comes_once(w->o->data) ? measure_pipe(w, &j)
                                     : measure_files(w, &j);
    for (int i = 0, k = 0; i < w->count; i++) {
        if (!still_trains(&w->member[i])) continue;
        w->member[i].measured = s == DLRN_OK && k < j.count;
        if (w->member[i].measured) w->member[i].m = figures[k++];
        trained_close(&w->member[i].dict);
    }
    if (s == DLRN_END || !j.count)
        snprintf(w->figures, sizeof w->figures, "nothing: %s",
                 j.count ? "the data has ended" : "no dictionary came to the end");
    return s == DLRN_END ? DLRN_OK : s;
}

/* A row of the table; what was not measured is left out. */
static void put_row(const sweep *w, const sweep_member *m, int width) {
    printf("%-*s", width, m->value);
    if (!m->measured) {
        printf("  %s%s\n", *m->error ? "failed: " : "not measured", m->error);
        return;
    }
    printf("  %8.2f  %16.2f %%  %10.4g  %6.2f %%  %6lld", m->m.l0, 100 * m->m.variance_explained,
           m->m.mse_loss, 100 * m->m.share_alive, (long long)m->m.dead);
    if (w->o->documents > 0) printf("  %10.2f %%", 100 * m->m.share_recovered);
    putchar('\n');
}

/* The frontier's table. */
static void put_table(const sweep *w) {
    char names[256];
    axis_names(w, names, sizeof names);
    int width = (int)strlen(names);
    for (int i = 0; i < w->count; i++)
        if ((int)strlen(w->member[i].value) > width) width = (int)strlen(w->member[i].value);
    printf("measured on %s\n", w->figures);
    printf("%-*s        L0  variance explained         MSE     alive    dead%s\n", width, names,
           w->o->documents > 0 ? "  CE recovered" : "");
    for (int i = 0; i < w->count; i++) put_row(w, &w->member[i], width);
}

/* frontier.svg: variance explained against L0. With several flags each value of the first one is a
   line. */
static dlrn_status draw_sweep(const sweep *w) {
    frontier_point points[SWEEP_MEMBERS];
    char path[4200], names[256], title[512];
    int n = 0;
    axis_names(w, names, sizeof names);
    for (int i = 0; i < w->count; i++) {
        const sweep_member *m = &w->member[i];
        if (!m->measured) continue;
        points[n].x = m->m.l0;
        points[n].y = m->m.variance_explained;
        points[n].label = m->value;
        points[n++].series = w->axes > 1 ? value_of(w, i, 0) : names;
    }
    snprintf(title, sizeof title, "Sweep of %.256s", names);
    sweep_path(w, FRONTIER_FILE, path);
    return n ? draw_frontier(w->ctx, path, title, "l0", "variance_explained", points, n) : DLRN_OK;
}

/* Figures, table and files at the end of all steps. */
static dlrn_status finish_sweep(sweep *w) {
    if (!w->o->quiet)
        fprintf(stderr, "measuring %d dictionar%s\n", w->count, w->count == 1 ? "y" : "ies");
    dlrn_status s = measure_members(w);
    if (s == DLRN_STOPPED) {
        fprintf(stderr,
                "dictlearn: %s: stopped while the dictionaries, which are saved, were measured: go "
                "on with dictlearn sweep --resume --save-dir %s\n",
                w->o->save_dir, w->o->save_dir);
        w->told_stop = 1;
    }
    if (s == DLRN_OK) s = write_sweep(w);
    if (s == DLRN_OK) s = draw_sweep(w);
    if (s == DLRN_OK) put_table(w);
    return s;
}

/* ---- the sweep */

/* Removes what a sweep was writing when it was killed. */
static int is_sweep_leftover(const char *name) {
    static const char *const files[] = {SWEEP_FILE, STREAM_FILE, FRONTIER_FILE};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        if (!strncmp(name, files[i], strlen(files[i])) && is_unfinished(name + strlen(files[i])))
            return 1;
    return 0;
}

/* What the sweep's own file says that has ended a member; "": nothing. */
static void read_error(const dlrn_json *root, sweep_member *m) {
    const dlrn_json *list = dlrn_json_get(root, "members");
    for (const dlrn_json *one = list ? list->first : NULL; one; one = one->next)
        if (!strcmp(dlrn_json_text(one, "folder", ""), m->folder))
            snprintf(m->before, sizeof m->before, "%.600s", dlrn_json_text(one, "error", ""));
}

/* Finds the members that have failed. One that failed before its first save has nothing to resume
   from. */
static dlrn_status read_failed(sweep *w) {
    char path[4200];
    dlrn_json *root = NULL;
    sweep_path(w, STREAM_FILE, path);
    if (dlrn_file_exists(w->ctx, path) != 1)
        return dlrn_fail(w->ctx, DLRN_ERR_IO,
                         "%s: expected the %s of a sweep to resume, found none", w->o->save_dir,
                         STREAM_FILE);
    sweep_path(w, SWEEP_FILE, path);
    dlrn_status s = read_json(w->ctx, path, &root);
    for (int i = 0; i < w->count && s == DLRN_OK; i++) {
        sweep_member *m = &w->member[i];
        read_error(root, m);
        if (!run_has(w->ctx, &m->o, SHARED_STATE) && !run_has(w->ctx, &m->o, WHOLE_STATE))
            memcpy(m->error, m->before, sizeof m->error);
    }
    dlrn_free(w->ctx, root);
    return s;
}

/* Locks the folders of the sweep and of its members. */
static dlrn_status open_folders(sweep *w) {
    const options *o = w->o;
    w->had_folders = strlen(o->save_dir);
    dlrn_status s = o->resume ? read_failed(w) : make_folders(w->ctx, o->save_dir, &w->had_folders);
    if (s == DLRN_OK) s = lock_folder(w->ctx, o->save_dir, &w->lock);
    if (s == DLRN_OK) remove_those(o, ".", is_sweep_leftover);
    for (int i = 0; i < w->count && s == DLRN_OK; i++)
        if (still_trains(&w->member[i])) s = open_folder(&w->member[i].run);
    return s;
}

/* Says how much memory all dictionaries take, before they take it. */
static void tell_weights(const sweep *w) {
    double all = 0, max = 0;
    for (int i = 0; i < w->count; i++) {
        const dlrn_train_config *cfg = &w->member[i].run.cfg;
        const double arrays = 3 - (cfg->optimiser == DLRN_OPTIMISER_SIGNUM) + (cfg->clip > 0);
        const double bytes = 4 * arrays * (double)cfg->features *
                             (double)(cfg->d_in + (cfg->d_out ? cfg->d_out : cfg->d_in));
        all += bytes;
        max = bytes > max ? bytes : max;
    }
    fprintf(stderr,
            "%d dictionaries: %.1f MB of weights and moments, the largest %.1f MB; the rows are "
            "read and held once\n",
            w->count, all / 1e6, max / 1e6);
}

/* A member whose steps are fewer than those of the saved rows has failed: it cannot get the rows
   again. */
static void find_ended(sweep *w) {
    for (int i = 0; i < w->count; i++) {
        sweep_member *m = &w->member[i];
        if (still_trains(m) && steps_of(m) < w->step)
            snprintf(m->error, sizeof m->error, "%s", *m->before ? m->before : "ended by an error");
    }
}

/* Makes the trainers: new, or from their states and then the rows' place. */
static dlrn_status open_trainers(sweep *w) {
    dlrn_source source = feed_source(&w->in.feed);
    char path[4200];
    dlrn_status s = open_buffer(&w->in, &source);
    for (int i = 0; i < w->count && s == DLRN_OK; i++)
        if (still_trains(&w->member[i])) s = settle_run(&w->member[i].run, &source);
    if (s == DLRN_OK && !w->o->quiet) tell_weights(w);
    for (int i = 0; i < w->count && s == DLRN_OK; i++)
        if (still_trains(&w->member[i])) s = open_trainer(&w->member[i].run);
    sweep_path(w, STREAM_FILE, path);
    if (s == DLRN_OK && w->o->resume) s = dlrn_buffer_resume(w->in.buffer, path, &w->step);
    w->first = w->step;
    if (s == DLRN_OK) find_ended(w);
    return s;
}

static void close_sweep(sweep *w) {
    for (int i = 0; i < w->count && w->member; i++) {
        sweep_member *m = &w->member[i];
        if (m->run.in) close_run(&m->run);
        dlrn_free(w->ctx, m->argv);
        paths_free(&m->text);
    }
    unlock_folder(w->o->save_dir, &w->lock);
    if (!w->o->resume && !w->saved && w->o->save_dir)
        unmake_folders(w->o->save_dir, w->had_folders);
    for (int i = 0; i < w->axes; i++) paths_free(&w->axis[i].values);
    dlrn_free(w->ctx, w->member);
}

/* Trains, and measures if the steps came to their end. */
static dlrn_status sweep_on(sweep *w) {
    for (int i = 0; i < w->count; i++) init_run(&w->member[i].run, &w->in, &w->member[i].o);
    w->in.shared = 1;
    dlrn_status s = open_folders(w);
    if (s == DLRN_OK) s = open_trainers(w);
    if (s == DLRN_OK) s = run_sweep_steps(w);
    if (s == DLRN_OK) s = finish_sweep(w);
    return feed_failed(&w->in.feed, s);
}

/* The exit status: a member that failed is told above. */
static int sweep_status(const sweep *w, dlrn_status s) {
    if (s != DLRN_OK) return w->told_stop ? stopped_status() : fail(w->ctx);
    for (int i = 0; i < w->count; i++)
        if (!still_trains(&w->member[i])) return 1;
    return 0;
}

static int run_sweep(dlrn_context *ctx, const options *o) {
    static sweep w; /* too large for some stacks */
    memset(&w, 0, sizeof w);
    w.ctx = ctx;
    w.o = o;
    w.lock = -1;
    int status = make_members(&w);
    if (!status) {
        dlrn_status s = open_stream(&w.in, ctx, &w.common, find_recipe(w.common.train.recipe));
        if (s == DLRN_OK) s = sweep_on(&w);
        tell_stream(&w.in);
        if (w.saved) stop_held = 1; /* the error's text says all */
        status = sweep_status(&w, s);
    }
    close_sweep(&w);
    if (w.in.ctx) close_stream(&w.in);
    return status;
}
