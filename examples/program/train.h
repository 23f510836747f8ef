/* dictlearn train: the run, its folder, its log, how it stops and how it goes on. A sweep is
   several such runs on one stream of rows: see sweep.h.

   A folder holds one run. A new run in the folder of an older one leaves that one's files in place
   until its own first save: until then its log is log.jsonl.part, and if it fails it leaves nothing
   behind. */

/* The rows of one run, or of several that train on the same batches. */
typedef struct train_stream {
    dlrn_context *ctx;
    const options *o; /* that say where rows come from */
    feed feed;
    model_text mt; /* with --model */
    dlrn_buffer *buffer;
    int64_t layers;       /* of the rows                                                */
    int shared;           /* 1: of a sweep; its checkpoints hold the buffer apart       */
    int done;             /* 1: all steps are made: each run is saved whole             */
    double started, told; /* seconds                                                    */
} train_stream;

typedef struct train_run {
    train_stream *in;
    dlrn_context *ctx;
    const options *o;
    dlrn_trainer *t;
    dlrn_train_config cfg; /* as settled, before the trainer is made */
    dlrn_dictionary *init; /* of --init; NULL: none, or no longer needed */
    const dlrn_recipe_info *recipe;
    int told_written;       /* how the dictionary is written is told */
    const char *class_name; /* in dictionary_learning; NULL: not known yet */
    page config;            /* config.json, ready to be written     */
    FILE *log;              /* NULL until the first step is done, and on ranks but rank 0 */
    int logs;               /* 1: the log is open, there            */
    int lock;               /* a file that is open; -1: none        */
    size_t had_folders;     /* bytes of --save-dir that were there  */
    int others;             /* an older run's files are still there */
    int saved;              /* this process has saved               */
    int64_t first, rows;    /* first step of this process; rows since then */
    int64_t logged;         /* the last step in the log; -1: none          */
    dlrn_train_stats last;  /* of the last step                           */
    int64_t planned;        /* steps that --steps and the data allow; -1: not known */
    int told_stop;          /* 1: how the stop left the run is told       */
} train_run;

#define WHOLE_STATE "state.safetensors"
#define SHARED_STATE "sweep.safetensors" /* without the rows, which a sweep saves once for all */

/* The path of a file of the run. */
static void run_path(const options *o, const char *name, char *path, size_t size) {
    snprintf(path, size, "%s/%s", o->save_dir, name);
}

/* Whether the run's folder has a file of this name. */
static int run_has(dlrn_context *ctx, const options *o, const char *name) {
    char path[4200];
    run_path(o, name, path, sizeof path);
    return dlrn_file_exists(ctx, path) != 0;
}

/* ---- the folder */

/* Locks a file in the folder. The system releases the lock when the process ends, also by a crash.
   A run that finishes removes the file, so after locking it the file must still be the one there.
   */
static dlrn_status lock_folder(dlrn_context *ctx, const char *folder, int *lock) {
    char path[4200];
    struct stat mine, there;
    struct flock whole;
    snprintf(path, sizeof path, "%s/lock", folder);
    for (;;) {
        int fd = open(path, O_RDWR | O_CREAT, 0666);
        if (fd < 0)
            return dlrn_fail(ctx, DLRN_ERR_IO, "%s: cannot be opened: %s", path, strerror(errno));
        memset(&whole, 0, sizeof whole); /* zeros: the whole file */
        whole.l_type = F_WRLCK;
        int why = fcntl(fd, F_SETLK, &whole) == 0 ? 0 : errno;
        if (why == EACCES || why == EAGAIN) {
            int known = fcntl(fd, F_GETLK, &whole) == 0;
            close(fd);
            if (known && whole.l_type == F_UNLCK) continue; /* it was released just now */
            return dlrn_fail(ctx, DLRN_ERR_IO, "%s: another run works in this folder: process %ld",
                             folder, known ? (long)whole.l_pid : 0L);
        }
        *lock = fd; /* also if the file system has no locks */
        if (why ||
            (stat(path, &there) == 0 && fstat(fd, &mine) == 0 && there.st_ino == mine.st_ino))
            return DLRN_OK;
        close(fd); /* removed by the run before this one: try again */
        *lock = -1;
    }
}

static void unlock_folder(const char *folder, int *lock) {
    char path[4200];
    if (*lock < 0) return;
    snprintf(path, sizeof path, "%s/lock", folder);
    remove(path);
    close(*lock);
    *lock = -1;
}

static const char *const run_files[] = {"ae.pt", "config.json", "log.jsonl", WHOLE_STATE,
                                        SHARED_STATE};
/* What libraries' files are called in the folder of a run. */
static const char *const library_files[] = {"sae_weights.safetensors", "sae.safetensors",
                                            "cc_weights.pt", "cfg.json"};

/* Length of ae_STEP.pt at the beginning of a name; 0: the name begins with something else. */
static size_t snapshot_name(const char *name) {
    size_t n = strncmp(name, "ae_", 3) ? 0 : strspn(name + 3, "0123456789");
    return n && !strncmp(name + 3 + n, ".pt", 3) ? n + 6 : 0;
}

/* Whether a name goes on as that of a file being written: .PROCESS.tmp or .PROCESS-NUMBER.tmp. */
static int is_unfinished(const char *rest) {
    size_t n = *rest == '.' ? strspn(rest + 1, "0123456789abcdefABCDEF-") : 0;
    return n && !strcmp(rest + 1 + n, ".tmp");
}

/* A file of a run that was being written, or its log that was not in place yet. */
static int is_leftover(const char *name) {
    for (size_t i = 0; i < sizeof run_files / sizeof *run_files; i++) {
        size_t n = strlen(run_files[i]);
        if (!strncmp(name, run_files[i], n) && is_unfinished(name + n)) return 1;
    }
    return !strcmp(name, "log.jsonl.part");
}

static int is_leftover_snapshot(const char *name) {
    size_t n = snapshot_name(name);
    return n && is_unfinished(name + n);
}

/* A dictionary that was kept: ae_STEP.pt. */
static int is_snapshot(const char *name) {
    size_t n = snapshot_name(name);
    return n && !name[n];
}

/* Removes the files of a kind from a folder of the run. */
static void remove_those(const options *o, const char *folder, int (*of_kind)(const char *name)) {
    char path[4200], name[4500];
    run_path(o, folder, path, sizeof path);
    DIR *dir = opendir(path);
    for (struct dirent *e; dir && (e = readdir(dir)) != NULL;) {
        if (!of_kind(e->d_name)) continue;
        snprintf(name, sizeof name, "%s/%s", path, e->d_name);
        remove(name);
    }
    if (dir) closedir(dir);
}

/* Removes what a run was writing when it was killed. */
static void remove_unfinished(const options *o) {
    char part[4200];
    run_path(o, LIBRARY_PART, part, sizeof part);
    delete_folder(part);
    remove_those(o, ".", is_leftover);
    remove_those(o, "checkpoints", is_leftover_snapshot);
}

/* The run has nothing to resume from; or it is a member of a sweep, whose rows are in the sweep's
   folder. */
static dlrn_status fail_resume(const train_run *r) {
    if (!r->in->shared && run_has(r->ctx, r->o, SHARED_STATE))
        return dlrn_fail(r->ctx, DLRN_ERR_IO,
                         "%s: expected a run to resume, found a member of a sweep that has not "
                         "ended: go on with dictlearn sweep --resume --save-dir and the folder "
                         "above it",
                         r->o->save_dir);
    return dlrn_fail(r->ctx, DLRN_ERR_IO, "%s: expected the %s of a run to resume, found none",
                     r->o->save_dir, r->in->shared ? SHARED_STATE : WHOLE_STATE);
}

/* The file to resume from. A member of a sweep has both if it was killed while one replaced the
   other; the shared one is then the older, to which the sweep's saved rows belong. */
static const char *state_name(const train_run *r) {
    return r->in->shared && run_has(r->ctx, r->o, SHARED_STATE) ? SHARED_STATE : WHOLE_STATE;
}

/* Makes and locks the folder; the rest waits until there is something to write. */
static dlrn_status open_folder(train_run *r) {
    const options *o = r->o;
    r->had_folders = strlen(o->save_dir);
    if (!is_first()) return DLRN_OK;
    if (o->resume && !run_has(r->ctx, o, state_name(r))) return fail_resume(r);
    dlrn_status s = o->resume ? DLRN_OK : make_folders(r->ctx, o->save_dir, &r->had_folders);
    if (s == DLRN_OK) s = lock_folder(r->ctx, o->save_dir, &r->lock);
    if (s == DLRN_OK) remove_unfinished(o);
    for (size_t i = 0; i < sizeof run_files / sizeof *run_files && !o->resume; i++)
        r->others |= run_has(r->ctx, o, run_files[i]);
    if (s == DLRN_OK && r->others && !o->quiet)
        fprintf(stderr,
                "%s: already holds a run, which will be replaced at this run's first save\n",
                o->save_dir);
    return s;
}

/* Removes the files of the older run that a save of this one does not replace. */
static void remove_others(const options *o) {
    char path[4200];
    if (!is_first()) return;
    run_path(o, WHOLE_STATE, path, sizeof path);
    remove(path);
    run_path(o, SHARED_STATE, path, sizeof path);
    remove(path);
    remove_those(o, "checkpoints", is_snapshot);
}

static dlrn_status write_config(train_run *r) {
    char path[4200];
    run_path(r->o, "config.json", path, sizeof path);
    return is_first() ? dlrn_file_write(r->ctx, path, r->config.text, r->config.size) : DLRN_OK;
}

/* Keeps the dictionary after this step: checkpoints/ae_STEP.pt, or where dictionary_learning has no
   such dictionary a folder checkpoints/ae_STEP for the recipe's library. */
static dlrn_status save_snapshot(train_run *r, const dlrn_dictionary *dict, int64_t step) {
    char path[4200], name[64];
    run_path(r->o, "checkpoints", path, sizeof path);
    dlrn_status s = make_folder(r->ctx, path);
    if (s != DLRN_OK) return s;
    snprintf(name, sizeof name, "checkpoints/ae_%lld", (long long)step);
    run_path(r->o, name, path, sizeof path);
    s = save_learning(dict, path);
    if (s == DLRN_ERR_UNSUPPORTED)
        s = make_folder(r->ctx, path);
    else
        return s;
    if (s != DLRN_OK) return s;
    return save_for_library(dict, path, r->recipe->layout, &(int){0}, NULL, 0);
}

/* Says once how the run's dictionary is written, where that is not as expected. */
static void tell_written(train_run *r, const char *what, const char *why) {
    if (!r->told_written && !r->o->quiet)
        fprintf(stderr, "dictlearn: %s: %s: %s\n", r->o->save_dir, what, why);
    r->told_written = 1;
}

/* Removes the files that an older run wrote for a library, which may be another than this run's. */
static void remove_library(const options *o) {
    char path[4200];
    if (!is_first()) return;
    for (size_t i = 0; i < sizeof library_files / sizeof *library_files; i++) {
        run_path(o, library_files[i], path, sizeof path);
        remove(path);
    }
    for (int i = 0; dlrn_recipe(i); i++) {
        if (!dlrn_recipe(i)->layout) continue;
        run_path(o, dlrn_recipe(i)->layout, path, sizeof path);
        delete_folder(path);
    }
}

/* Writes ae.pt, and the files that the recipe's own library opens; one of them at least. */
static dlrn_status save_dictionary(train_run *r, const dlrn_dictionary *dict) {
    const char *library = r->recipe->layout;
    char path[4200], note[256] = "", why[512];
    int within = 0;
    run_path(r->o, "ae", path, sizeof path);
    dlrn_status s = save_learning(dict, path);
    const int no_file = s == DLRN_ERR_UNSUPPORTED;
    if (r->others && (no_file || s == DLRN_OK)) remove_library(r->o);
    strcat(path, ".pt");
    if (r->others && no_file && is_first()) remove(path);
    snprintf(why, sizeof why, "%s", no_file ? dlrn_error(r->ctx) : "");
    if ((s != DLRN_OK && !no_file) || !library || !strcmp(library, "dictionary_learning")) return s;
    s = save_for_library(dict, r->o->save_dir, library, &within, note, sizeof note);
    if (s == DLRN_ERR_UNSUPPORTED && !no_file) {
        tell_written(r, library,
                     "no files of this library: it is not written, or has no such "
                     "dictionary; ae.pt is dictionary_learning's");
        return DLRN_OK;
    }
    if (s != DLRN_OK) return s;
    if (no_file) snprintf(note, sizeof note, "no ae.pt: %.200s", why);
    if (within) snprintf(note, sizeof note, "its files are in the folder %s", library);
    if (*note) tell_written(r, library, note);
    return DLRN_OK;
}

/* Writes the trainer's state. While a sweep goes on its rows are saved elsewhere, once for all
   members; when it has ended each member can be resumed as a run of its own. */
static dlrn_status save_state(train_run *r) {
    const int alone = r->in->shared && !r->in->done;
    char path[4200], other[4200];
    run_path(r->o, alone ? SHARED_STATE : WHOLE_STATE, path, sizeof path);
    run_path(r->o, alone ? WHOLE_STATE : SHARED_STATE, other, sizeof other);
    dlrn_status s = alone ? dlrn_trainer_save_alone(r->t, path) : dlrn_trainer_save(r->t, path);
    if (s == DLRN_OK && r->in->shared) remove(other); /* after the new one is there */
    return s;
}

/* Puts the log in the place of an older run's. */
static dlrn_status place_log(train_run *r) {
    char path[4200], part[4200];
    run_path(r->o, "log.jsonl.part", part, sizeof part);
    run_path(r->o, "log.jsonl", path, sizeof path);
    r->others = 0;
    if (!is_first()) return DLRN_OK;
    remove(path);
    if (!r->log || rename(part, path) == 0) return DLRN_OK;
    return dlrn_fail(r->ctx, DLRN_ERR_IO, "%s: cannot be put in place: %s", path, strerror(errno));
}

/* Saves all of the run. The state comes last, so whoever resumes from it finds everything that
   belongs to it. snapshot: a step to keep the dictionary of, or -1. */
static dlrn_status save_checkpoint(train_run *r, int64_t snapshot) {
    trained now;
    dlrn_status s = trained_open(r->t, &now);
    if (s == DLRN_OK) s = save_dictionary(r, now.dict);
    if (s == DLRN_OK && r->others)
        remove_others(r->o); /* before their config is replaced by one that is not their state's */
    if (s == DLRN_OK && !r->saved) s = write_config(r);
    if (s == DLRN_OK && r->others) s = place_log(r);
    s = dlrn_agree(r->ctx, s);
    if (s == DLRN_OK) r->saved = 1;
    if (s == DLRN_OK && snapshot >= 0) s = save_snapshot(r, now.dict, snapshot);
    trained_close(&now);
    return s == DLRN_OK ? save_state(r) : s;
}

/* ---- the log */

/* The step of a line of the log; -1: it is of something else. */
static int64_t step_of(const char *line) {
    static const char begin[] = "{\"step\": ";
    char *end = NULL;
    if (strncmp(line, begin, sizeof begin - 1)) return -1;
    int64_t step = strtoll(line + sizeof begin - 1, &end, 10);
    return *end == ',' ? step : -1;
}

/* Cuts the log of a resumed run at the checkpoint's step: later steps are made again. Lines of
   others before it stay; a line without an end does not. */
static dlrn_status cut_log(train_run *r, const char *path) {
    char *text = NULL;
    size_t size = 0, keep = 0;
    if (dlrn_file_exists(r->ctx, path) != 1) return DLRN_OK;
    dlrn_status s = dlrn_file_read(r->ctx, path, &text, &size);
    if (s != DLRN_OK) return s;
    for (const char *end; (end = (const char *)memchr(text + keep, '\n', size - keep)) != NULL;) {
        if (step_of(text + keep) >= r->first) break;
        keep = (size_t)(end + 1 - text);
    }
    if (keep < size) s = dlrn_file_write(r->ctx, path, text, keep);
    dlrn_free(r->ctx, text);
    return s;
}

/* Opens the log at the first step: a run that never makes one leaves no file. */
static dlrn_status open_log(train_run *r) {
    char path[4200];
    run_path(r->o, r->others ? "log.jsonl.part" : "log.jsonl", path, sizeof path);
    dlrn_status s = r->o->resume ? cut_log(r, path) : DLRN_OK;
    if (s != DLRN_OK) return s;
    r->log = fopen(path, r->o->resume ? "ab" : "wb");
    return r->log
               ? DLRN_OK
               : dlrn_fail(r->ctx, DLRN_ERR_IO, "%s: cannot be written: %s", path, strerror(errno));
}

/* Writes a line at once, so that others can follow the run. */
static dlrn_status write_log(train_run *r, const dlrn_train_stats *s, double rate) {
    json_writer j = {r->log, 0};
    json_open(&j, NULL, '{');
    json_int(&j, "step", s->step);
    json_real(&j, "loss", 9, s->loss);
    json_real(&j, "mse_loss", 9, s->reconstruction_loss);
    json_real(&j, "sparsity_loss", 9, s->sparsity_loss);
    json_real(&j, "ghost_loss", 9, s->auxiliary_loss);
    json_real(&j, "l0", 6, s->l0);
    json_int(&j, "dead", s->dead);
    json_real(&j, "lr", 9, s->lr);
    json_real(&j, "sparsity_penalty", 9, s->penalty);
    json_real(&j, "pre_act_loss", 9, s->pre_act_loss);
    json_int(&j, "k", s->k);
    json_real(&j, "rows_per_second", 6, rate);
    json_close(&j, '}');
    fputc('\n', r->log);
    if (fflush(r->log) == 0 && !ferror(r->log)) return DLRN_OK;
    return dlrn_fail(r->ctx, DLRN_ERR_IO, "%s/log.jsonl: cannot be written: %s", r->o->save_dir,
                     strerror(errno));
}

/* Removes the log and the folders of a run that has saved nothing. */
static void leave_nothing(train_run *r) {
    char path[4200];
    if (!is_first()) return;
    run_path(r->o, r->others ? "log.jsonl.part" : "log.jsonl", path, sizeof path);
    if (r->log) remove(path);
    unlock_folder(r->o->save_dir, &r->lock);
    unmake_folders(r->o->save_dir, r->had_folders);
}

/* ---- steps */

/* Whether a line of progress is due. */
static int time_to_tell(train_stream *in, double now) {
    if (in->o->quiet || now - in->told < (isatty(2) ? 0.2 : 5.0)) return 0;
    in->told = now;
    return 1;
}

/* Steps that --steps and an array of so many rows allow; -1: not known, as for texts. */
static int64_t plan_steps(const options *o, int64_t rows) {
    int64_t steps = o->train.steps, batches = -1;
    if (rows >= 0 && rows <= INT64_MAX / o->epochs - o->batch_size)
        batches = (rows * o->epochs + o->batch_size - 1) / o->batch_size;
    return batches >= 0 && (steps < 0 || batches < steps) ? batches : steps;
}

/* " of 150" and ", 5 s left" after a step, if the number of steps is known. */
static void plan_words(const train_run *r, int64_t step, double now, char of[32], char left[48]) {
    char text[32];
    *of = *left = 0;
    if (r->planned <= step) return;
    double each = (now - r->in->started) / (double)(step + 1 - r->first);
    snprintf(of, 32, " of %lld", (long long)r->planned);
    snprintf(left, 48, ", %s left",
             time_text(each * (double)(r->planned - step - 1), text, sizeof text));
}

/* Shows loss, sparsity, speed and, if the number of steps is known, the time left. */
static void show_progress(train_run *r, const dlrn_train_stats *s, double rate, double now) {
    char of[32], left[48];
    if (!time_to_tell(r->in, now)) return;
    plan_words(r, s->step, now, of, left);
    tell("step %lld%s: loss %.5g, L0 %.1f, dead %lld, %.0f rows/s%s", (long long)s->step, of,
         s->loss, s->l0, (long long)s->dead, rate, left);
}

/* Progress before the first step, which waits until the buffer is full or the data has ended. n:
   rows that are read but not in the buffer yet. */
static void show_filling(void *user, int64_t n) {
    train_stream *in = (train_stream *)user;
    char text[32];
    double now = seconds(), rate = per_second(in->feed.rows, now - in->started);
    if (!time_to_tell(in, now)) return;
    int64_t room = in->o->n_ctxs * in->o->ctx_len;
    int64_t held = dlrn_buffer_describe(in->buffer).unread + n;
    tell("filling the buffer before the first step: %lld rows of at most %lld, %.0f rows/s, at "
         "most %s left; a smaller --n-ctxs begins sooner",
         (long long)held, (long long)room, rate,
         time_text((double)(room - held) / (rate > 1 ? rate : 1), text, sizeof text));
}

/* Rows that the run has trained on in a second, since this process began. */
static double rate_of(const train_run *r, double now) {
    return per_second(r->rows, now - r->in->started);
}

/* Logs a step, at the mean rate of this process. */
static dlrn_status log_step(train_run *r, const dlrn_train_stats *s) {
    r->logged = s->step;
    return dlrn_agree(r->ctx, is_first() ? write_log(r, s, rate_of(r, seconds())) : DLRN_OK);
}

/* After each step of a run: its figures, and the log if it is due. */
static dlrn_status note_step(train_run *r, const dlrn_train_stats *s) {
    dlrn_status status = DLRN_OK;
    if (!r->logs) status = dlrn_agree(r->ctx, is_first() ? open_log(r) : DLRN_OK);
    r->logs = status == DLRN_OK;
    r->rows += s->rows;
    r->last = *s;
    return status == DLRN_OK && s->step % r->o->train.log_steps == 0 ? log_step(r, s) : status;
}

/* Whether a checkpoint is due after a step. */
static int saves_after(const options *o, int64_t step) {
    return o->train.save_steps > 0 && step > 0 && step % o->train.save_steps == 0;
}

/* After each step: log, progress, checkpoint, where they are due. */
static dlrn_status on_step(train_run *r, const dlrn_train_stats *s) {
    double now = seconds();
    dlrn_status status = note_step(r, s);
    show_progress(r, s, rate_of(r, now), now);
    return status == DLRN_OK && saves_after(r->o, s->step) ? save_checkpoint(r, s->step) : status;
}

/* ---- the end. Whatever ends a run, what it has learnt since its last checkpoint is saved. */

static const char *plural(int64_t n) {
    return n == 1 ? "" : "s";
}

/* A run that ends within its warm-up never trained at its full rate. */
static void tell_warmup(const train_run *r, int64_t done) {
    const dlrn_train_config *cfg = dlrn_trainer_describe(r->t).config;
    if (done >= cfg->warmup_steps || r->last.lr >= cfg->lr) return; /* signum has none */
    fprintf(stderr,
            "dictlearn: %s: ended within its warm-up: %lld of %lld steps, the last at a rate of %g "
            "where --lr is %g; see --warmup-steps\n",
            r->o->save_dir, (long long)done, (long long)cfg->warmup_steps, r->last.lr, cfg->lr);
}

/* A running mean of thresholds that has not begun: the dictionary has none to encode with. */
static void tell_threshold(const train_run *r, int64_t done) {
    const dlrn_trainer_info t = dlrn_trainer_describe(r->t);
    const dlrn_formula *f = &t.dictionary->formula;
    const dlrn_dictionary *part = t.dictionary->n_parts ? t.dictionary->part[0].dict : t.dictionary;
    if (f->gate != DLRN_GATE_JUMP || part->param[DLRN_THRESHOLD] || f->threshold >= 0) return;
    fprintf(stderr,
            "dictlearn: %s: saved without a threshold: its mean starts after step %lld "
            "(--threshold-start-step), and the run has %lld: go on with --resume --steps N, or "
            "pass --threshold T where the dictionary is used\n",
            r->o->save_dir, (long long)t.config->threshold_start_step, (long long)done);
}

/* Why the steps ended, as a clause. */
static const char *ending(const train_run *r, dlrn_status why, int64_t done) {
    if (why == DLRN_STOPPED) return "stopped";
    if (why != DLRN_END) return "ended by an error";
    return done == r->o->train.steps ? "done" : "the data has ended";
}

/* How to go on after a stop. Also said with --quiet: the user must know it. */
static void tell_resume(const options *o, const char *name, int64_t done) {
    const char *again = o->text ? o->text : o->data;
    fprintf(stderr,
            "dictlearn: stopped after %lld step%s and saved: go on with dictlearn %s "
            "--resume --save-dir %s%s\n",
            (long long)done, plural(done), name, o->save_dir,
            strcmp(again, "-") ? ""
            : o->text          ? ", with the same text from its beginning on standard input"
                               : ", with the same rows from their beginning on standard input");
}

/* The closing line: steps made, of how many, and where they are. A sweep tells for all members how
   to go on. */
static void tell_end_of_run(train_run *r, dlrn_status why, int64_t done) {
    char of[48] = "";
    r->told_stop = why == DLRN_STOPPED;
    if (r->o->train.steps > done)
        snprintf(of, sizeof of, " of %lld asked for", (long long)r->o->train.steps);
    if (why == DLRN_STOPPED && !r->in->shared)
        tell_resume(r->o, "train", done);
    else if (why != DLRN_STOPPED && (why != DLRN_END || !r->o->quiet))
        fprintf(stderr, "dictlearn: %s: %s after %lld step%s%s, saved\n", r->o->save_dir,
                ending(r, why, done), (long long)done, plural(done), of);
    tell_warmup(r, done);
    tell_threshold(r, done);
}

/* Ends a run that has made no step in this process. */
static dlrn_status end_idle_run(train_run *r, dlrn_status why, int64_t done) {
    if (why == DLRN_STOPPED) {
        fprintf(stderr, "dictlearn: %s: stopped before %s step: %s\n", r->o->save_dir,
                done ? "a further" : "the first",
                done ? "the run is as it was" : "nothing was saved");
        r->told_stop = 1;
    }
    if (why != DLRN_END) return why;
    if (!done && r->o->train.steps != 0) return feed_empty(&r->in->feed);
    if (r->o->resume && !r->o->quiet)
        fprintf(stderr, "dictlearn: %s: nothing is left to do: %s after %lld step%s\n",
                r->o->save_dir, ending(r, DLRN_END, done), (long long)done, plural(done));
    return save_checkpoint(r, -1); /* an older version's files become those of this one */
}

/* A run that has made all of its steps needs no further rows, and its buffer can be many times as
   large as its dictionary. Small ones are kept: with them, a longer run by --resume has the bits of
   one that was never stopped. weights: bytes of all dictionaries and moments. */
static void drop_rows(train_stream *in, uint64_t weights) {
    const uint64_t small = 16 << 20;
    const dlrn_buffer_info b = dlrn_buffer_describe(in->buffer);
    uint64_t rows = (uint64_t)b.unread * (uint64_t)(b.d_in + b.d_out) * sizeof(float);
    if (rows <= small || rows <= weights) return;
    if (!in->o->quiet)
        fprintf(
            stderr,
            "dictlearn: %s: the %lld unread rows of the buffer (%.1f MB) are not kept: a longer "
            "run by --resume goes on with the rows after them\n",
            in->o->save_dir, (long long)b.unread, (double)rows / 1e6);
    dlrn_buffer_clear(in->buffer);
}

/* Bytes of a run's weights and of their two moments. */
static uint64_t weights_of(const train_run *r) {
    const dlrn_dictionary *dict = dlrn_trainer_describe(r->t).dictionary;
    return (uint64_t)dict->span_of * (uint64_t)(dict->d_in + dict->d_out) * 12;
}

/* Logs the last step, saves and says so. An error that ended the run stays the run's error. */
static dlrn_status end_run(train_run *r, dlrn_status why) {
    char error[2048];
    dlrn_trainer_info state = dlrn_trainer_describe(r->t);
    dlrn_status s = DLRN_OK;
    if (state.steps == r->first) return end_idle_run(r, why, state.steps);
    snprintf(error, sizeof error, "%s", dlrn_error(r->ctx));
    if (state.broken) return why; /* the last good checkpoint stays */
    if (r->logs && r->logged != r->last.step) s = log_step(r, &r->last);
    if (why == DLRN_END) drop_rows(r->in, weights_of(r));
    dlrn_status saved = save_checkpoint(r, -1);
    if (s == DLRN_OK) s = saved;
    if (why == DLRN_END || why == DLRN_STOPPED) {
        if (s == DLRN_OK) tell_end_of_run(r, why, state.steps);
        return s == DLRN_OK && why == DLRN_STOPPED ? why : s;
    }
    if (s == DLRN_OK)
        tell_end_of_run(r, why, state.steps);
    else
        fprintf(stderr, "dictlearn: the run could not be saved: %s\n", dlrn_error(r->ctx));
    return dlrn_fail(r->ctx, why, "%s", error);
}

/* Steps until the data ends, the steps are done, the user stops or something fails. */
static dlrn_status run_steps(train_run *r) {
    dlrn_train_stats stats;
    dlrn_status s = DLRN_OK;
    r->in->started = r->in->told = seconds();
    while (s == DLRN_OK) {
        s = ranks_tell_stop(r->ctx);
        if (s != DLRN_OK) break;
        s = stopping(NULL) ? DLRN_STOPPED : dlrn_trainer_step(r->t, &stats);
        if (s == DLRN_OK) s = on_step(r, &stats);
    }
    tell_end();
    return end_run(r, s);
}

/* ---- settings */

/* The number of features that the flags mean for rows of width d. init: --init's dictionary, or
   NULL. */
static dlrn_status count_features(const train_run *r, int64_t d, const dlrn_dictionary *init,
                                  int64_t *features) {
    const options *o = r->o;
    const int64_t expansion = o->expansion ? o->expansion : 16;
    /* a crosscoder has one set of features for all layers, a transcoder one for each */
    const int64_t width = strcmp(r->recipe->family, "CrossLayerTranscoder") ? d / r->in->layers : d;
    *features = o->dict_size ? o->dict_size : init && !o->expansion ? init->span_of : 0;
    if (*features) return DLRN_OK;
    if (expansion > INT32_MAX / width)
        return dlrn_fail(r->ctx, DLRN_ERR_ARGUMENT,
                         "--expansion: expected at most %d features, found %lld times %lld",
                         INT32_MAX, (long long)expansion, (long long)width);
    *features = expansion * width;
    return DLRN_OK;
}

/* Whether --init's dictionary is of the recipe's family and of the run's sizes. */
static dlrn_status check_init(const train_run *r, const dlrn_dictionary *init,
                              const dlrn_train_config *cfg) {
    const int64_t d_out = cfg->d_out ? cfg->d_out : cfg->d_in;
    const char *name = r->o->init;
    if (strcmp(init->family, r->recipe->family))
        return dlrn_fail(r->ctx, DLRN_ERR_UNSUPPORTED,
                         "%s: expected a dictionary of family %s for recipe %s, found %s", name,
                         r->recipe->family, cfg->recipe, init->family);
    if (init->d_in == cfg->d_in && init->d_out == d_out && init->span_of == cfg->features)
        return DLRN_OK;
    if (init->d_in == cfg->d_in && init->span_of == cfg->features)
        return dlrn_fail(
            r->ctx, DLRN_ERR_SHAPE,
            "%s: expected a dictionary with outputs of width %lld, as the targets have, "
            "found %lld",
            name, (long long)d_out, (long long)init->d_out);
    return dlrn_fail(r->ctx, DLRN_ERR_SHAPE,
                     "%s: expected a dictionary of width %lld, as the activations have, with %lld "
                     "features, found width %lld with %lld features",
                     name, (long long)cfg->d_in, (long long)cfg->features, (long long)init->d_in,
                     (long long)init->span_of);
}

/* The flags as the library's settings. init: --init's dictionary, or NULL. */
static dlrn_status train_settings(const train_run *r, const dlrn_source *source,
                                  const dlrn_dictionary *init, dlrn_train_config *cfg) {
    const options *o = r->o;
    const int64_t d = source->d_in, d_out = source->d_out ? source->d_out : d;
    *cfg = o->train;
    cfg->d_in = d;
    cfg->d_out = d_out == d ? 0 : d_out; /* 0 is the same, and what older runs have written */
    cfg->layers = r->in->layers;
    if (cfg->k < 0) /* not given */
        cfg->k = init && init->formula.k ? init->formula.k : dlrn_train_defaults(cfg->recipe).k;
    if (o->entropy) cfg->sparsity = DLRN_SPARSITY_ENTROPY;
    cfg->seed = (uint64_t)o->seed;
    cfg->compat = o->compat ? DLRN_ON : DLRN_OFF;
    dlrn_status s = count_features(r, d, init, &cfg->features);
    if (s == DLRN_OK) s = set_groups(r->ctx, o, cfg);
    return s == DLRN_OK && init ? check_init(r, init, cfg) : s;
}

/* Where the rows and the first weights come from, as members of config.json. rows -1: not known, or
   not to be compared, as for data that comes only once. */
static void put_source(json_writer *j, const options *o, int64_t rows) {
    const struct {
        const char *key, *value;
    } names[] = {{"data", o->data},         {"target", o->target},
                 {"tensor", o->tensor},     {"dtype", o->dtype},
                 {"text_key", o->text_key}, {"tokens_key", o->tokens_key},
                 {"model", o->model},       {"text", o->text},
                 {"site", o->site},         {"io", !o->model ? NULL : o->io ? o->io : "out"},
                 {"init", o->init}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].value) json_text(j, names[i].key, names[i].value);
    if (rows >= 0) json_int(j, "rows", rows);
    if (o->layer >= 0) json_int(j, "layer", o->layer);
    if (o->skip_first) json_int(j, "skip_first", o->skip_first);
    if (o->held_out) json_int(j, "held_out", o->held_out);
    if (o->skip_special) json_bool(j, "skip_special", 1);
    if (o->max_norm_ratio > 0) json_real(j, "max_norm_ratio", 17, o->max_norm_ratio);
    if (o->skip_nonfinite) json_bool(j, "skip_nonfinite", 1);
    if (o->skip_bad_lines) json_bool(j, "skip_bad_lines", 1);
    if (splits_documents(o)) json_text(j, "long", "split");
}

/* What names the dictionary's class and sizes: dictionary_learning 0.1.0 looks for it in "trainer",
   older scripts at the top. */
static void put_class(json_writer *j, const train_run *r, const dlrn_train_config *cfg) {
    json_text(j, "dict_class", r->class_name ? r->class_name : r->recipe->family);
    /* dictionary_learning's classes take the layers of a crosscoder as one wide row */
    const int64_t by = strcmp(r->recipe->family, "CrossLayerTranscoder") ? 1 : cfg->layers;
    json_int(j, "activation_dim", cfg->d_in / by);
    json_int(j, "dict_size", cfg->features / by);
}

/* The words of the command, so that --resume needs the folder alone. */
static void put_command(json_writer *j, const options *o) {
    json_open(j, "command", '[');
    for (int i = 0; i < o->argc; i++)
        if (strcmp(o->argv[i], "--resume")) json_text(j, NULL, o->argv[i]);
    json_close(j, ']');
}

/* config.json: what another program needs to load ae.pt, and what a resumed run must have in common
   with this one. */
static dlrn_status make_config(train_run *r, const dlrn_train_config *cfg) {
    const options *o = r->o;
    char settings[4096];
    /* of all files; texts may grow, and are not counted */
    const int64_t rows = o->data && r->in->feed.inner.rows > 0 ? r->in->feed.inner.rows : -1;
    dlrn_status s = page_open(r->ctx, &r->config);
    if (s != DLRN_OK) return s;
    r->planned = plan_steps(o, rows);
    json_writer j = {r->config.f, 0};
    dlrn_train_config_json(cfg, settings, sizeof settings);
    json_open(&j, NULL, '{');
    put_class(&j, r, cfg);
    if (cfg->layers > 1) json_int(&j, "layers", cfg->layers);
    json_text(&j, "version", DLRN_VERSION_STRING);
    put_command(&j, o);
    put_source(&j, o, o->data && comes_once(o->data) ? -1 : rows);
    json_int(&j, "batch_size", o->batch_size);
    json_int(&j, "n_ctxs", o->n_ctxs);
    json_int(&j, "ctx_len", o->ctx_len);
    json_int(&j, "in_batch_size", o->in_batch_size);
    json_int(&j, "epochs", o->epochs);
    json_bool(&j, "shuffle", !o->no_shuffle);
    json_bool(&j, "bos", o->bos);
    json_text(&j, "mode", o->compat ? "compat" : "default");
    json_int(&j, "threads", dlrn_context_describe(r->ctx).threads);
    json_text(&j, "kernels", dlrn_context_describe(r->ctx).kernels);
    json_key(&j, "settings");
    fputs(settings, j.f);
    json_open(&j, "trainer", '{');
    put_class(&j, r, cfg);
    if (cfg->k) json_int(&j, "k", cfg->k);
    json_close(&j, '}');
    json_close(&j, '}');
    fputc('\n', j.f);
    return page_end(r->ctx, &r->config);
}

/* Settings that a resumed run may change: skipping what the run has failed on, too. The trainer's
   part repeats other members, and the class follows from the recipe. With --compat a
   logged step counts its batch twice, so there log_steps changes the run. */
static int may_change(const train_run *r, const char *key) {
    if (r->o->compat && !strcmp(key, "log_steps")) return 0;
    static const char *const keys[] = {"version",        "command",        "steps",   "epochs",
                                       "log_steps",      "save_steps",     "threads", "kernels",
                                       "skip_nonfinite", "skip_bad_lines", "trainer", "dict_class"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (!strcmp(key, keys[i])) return 1;
    return 0;
}

/* A JSON value as an error quotes it; of lists their texts. `text` [512] */
static const char *value_text(const dlrn_json *v, char text[512]) {
    const char *word = v ? config_text(v, text, 512) : "none";
    return word ? word : "another value";
}

enum { VALUE_TEXT = 512 };
/* A setting that a resumed run has in another way. */
typedef struct difference {
    const char *key, *values[2]; /* before, now */
    char text[2][VALUE_TEXT];    /* of lists    */
} difference;

/* Finds a setting in which two configurations differ although they must not; 0: there is none.
   missing: what settings are that `was` lacks, because its version did not have them. */
static int find_difference(const train_run *r, const dlrn_json *was, const dlrn_json *now,
                           const dlrn_json *missing, difference *d) {
    for (const dlrn_json *m = now ? now->first : NULL; m; m = m->next) {
        const dlrn_json *before = dlrn_json_get(was, m->key);
        const dlrn_json *fallback = dlrn_json_get(missing, m->key);
        if (may_change(r, m->key)) continue;
        if (m->type == DLRN_JSON_OBJECT) {
            if (find_difference(r, before, m, fallback, d)) return 1;
            continue;
        }
        if (!before) before = fallback;
        d->key = m->key;
        d->values[0] = value_text(before, d->text[0]);
        d->values[1] = value_text(m, d->text[1]);
        if (strcmp(d->values[0], d->values[1])) return 1;
    }
    for (const dlrn_json *m = was ? was->first : NULL; m; m = m->next) {
        if (may_change(r, m->key) || dlrn_json_get(now, m->key)) continue;
        d->key = m->key;
        d->values[0] = value_text(m, d->text[0]);
        d->values[1] = "none";
        return 1;
    }
    return 0;
}

/* The same for a whole config.json. Another recipe changes many settings, so it is looked for
   first; version 0.1 had but one. */
static int find_change(const train_run *r, const dlrn_json *was, const dlrn_json *now,
                       const dlrn_json *missing, difference *d) {
    d->key = "recipe";
    d->values[0] = dlrn_json_text(was, "settings.recipe", dlrn_recipe(0)->name);
    d->values[1] = r->o->train.recipe;
    return strcmp(d->values[0], d->values[1]) != 0 || find_difference(r, was, now, missing, d);
}

/* A recipe's defaults in the form of a config.json. */
static dlrn_status parse_defaults(dlrn_context *ctx, const char *recipe, dlrn_json **out) {
    char text[4200] = "{\"settings\": ";
    size_t n = strlen(text);
    dlrn_train_config cfg = dlrn_train_defaults(recipe);
    n += (size_t)dlrn_train_config_json(&cfg, text + n, sizeof text - n - 1);
    strcpy(text + n, "}");
    return dlrn_json_parse(ctx, text, n + 1, "defaults", out);
}

/* Other steps change what comes later, if the rate falls to 0 at the end, or a schedule is a share
   of them: says so. */
static void tell_decay(const train_run *r, const dlrn_json *was) {
    const dlrn_train_config *cfg = &r->o->train;
    const long long before = (long long)dlrn_json_number(was, "settings.steps", -1);
    const int share = cfg->sparsity_warmup_steps < 0 ||
                      cfg->lr_schedule != DLRN_SCHEDULE_CONSTANT ||
                      (cfg->anneal_start >= 0 && cfg->anneal_end < 0);
    char how[96];
    if ((cfg->decay_start < 0 && !share) || before == (long long)cfg->steps) return;
    snprintf(how, sizeof how, "from step %lld on the rate falls to 0 there",
             (long long)cfg->decay_start);
    fprintf(stderr, "dictlearn: %s: --steps was %lld and is %lld: %s\n", r->o->save_dir, before,
            (long long)cfg->steps,
            cfg->decay_start >= 0 ? how : "schedules that depend on it change");
}

/* A resumed run must have the settings and the source with which it began. */
static dlrn_status check_resumed(train_run *r) {
    char path[4200], *text = NULL;
    difference d;
    dlrn_json *was = NULL, *now = NULL, *missing = NULL;
    size_t size = 0;
    run_path(r->o, "config.json", path, sizeof path);
    dlrn_status s = dlrn_file_read(r->ctx, path, &text, &size);
    if (s == DLRN_OK) s = dlrn_json_parse(r->ctx, text, size, path, &was);
    if (s == DLRN_OK)
        s = dlrn_json_parse(r->ctx, r->config.text, r->config.size, "config.json", &now);
    if (s == DLRN_OK) s = parse_defaults(r->ctx, r->o->train.recipe, &missing);
    if (s == DLRN_OK && find_change(r, was, now, missing, &d))
        s = dlrn_fail(
            r->ctx, DLRN_ERR_ARGUMENT,
            "%s: %s: a run is resumed with its own settings, expected %.200s, found %.200s", path,
            d.key, d.values[0], d.values[1]);
    if (s == DLRN_OK) tell_decay(r, was);
    dlrn_free(r->ctx, was);
    dlrn_free(r->ctx, now);
    dlrn_free(r->ctx, missing);
    dlrn_free(r->ctx, text);
    return s;
}

/* ---- the run */

/* The shuffle buffer; says how much memory it may take before it takes it. */
static dlrn_status open_buffer(train_stream *in, const dlrn_source *source) {
    const options *o = in->o;
    dlrn_buffer_config bc = dlrn_buffer_defaults();
    uint64_t bytes = 0;
    bc.capacity = o->n_ctxs <= INT64_MAX / o->ctx_len ? o->n_ctxs * o->ctx_len : INT64_MAX;
    bc.read_rows =
        o->in_batch_size <= INT64_MAX / o->ctx_len ? o->in_batch_size * o->ctx_len : INT64_MAX;
    bc.batch_rows = o->batch_size;
    bc.shuffle = o->no_shuffle ? DLRN_OFF : DLRN_ON;
    bc.seed = (uint64_t)o->seed;
    dlrn_status s = dlrn_buffer_bytes(in->ctx, &bc, source->d_in, source->d_out, &bytes);
    if (s == DLRN_OK && !o->quiet)
        fprintf(stderr,
                "buffer: at most %.1f MB, of which a checkpoint holds what is unread; see "
                "--n-ctxs\n",
                (double)bytes / 1e6);
    return s == DLRN_OK ? dlrn_buffer_create(in->ctx, &bc, source, DLRN_BORROWED, &in->buffer) : s;
}

/* Loads --init's dictionary. --k is that of the run; it is also the file's, if that has none. */
static dlrn_status load_init(const train_run *r, dlrn_dictionary **init) {
    options o = *r->o;
    o.train.k = -1;
    dlrn_status s = load_quietly(r->ctx, o.init, &o, init);
    if (s != DLRN_OK && r->o->train.k > 0) s = load_quietly(r->ctx, o.init, r->o, init);
    if (s == DLRN_OK) tell_note(o.init, *init);
    return s;
}

/* Settles what the run is to be, and refuses to resume another one. */
static dlrn_status settle_run(train_run *r, const dlrn_source *source) {
    dlrn_status s = r->o->init ? load_init(r, &r->init) : DLRN_OK;
    if (s == DLRN_OK) s = train_settings(r, source, r->init, &r->cfg);
    if (s == DLRN_OK) s = make_config(r, &r->cfg);
    if (s == DLRN_OK && r->o->resume) s = check_resumed(r);
    return dlrn_agree(r->ctx, s);
}

/* Makes the trainer: new, from --init, or from the saved state. */
static dlrn_status open_trainer(train_run *r) {
    const options *o = r->o;
    char path[4200];
    run_path(o, state_name(r), path, sizeof path);
    dlrn_status s = o->resume ? dlrn_trainer_resume(r->ctx, path, &r->cfg, r->in->buffer, &r->t)
                              : dlrn_trainer_create(r->ctx, &r->cfg, r->init, r->in->buffer, &r->t);
    dlrn_dictionary_destroy(r->init);
    r->init = NULL;
    if (s != DLRN_OK) return s;
    r->first = dlrn_trainer_describe(r->t).steps;
    page_free(&r->config); /* now with the class */
    r->class_name = learning_class(dlrn_trainer_describe(r->t).dictionary);
    return dlrn_agree(r->ctx, make_config(r, &r->cfg));
}

/* A run of a stream. */
static void init_run(train_run *r, train_stream *in, const options *o) {
    memset(r, 0, sizeof *r);
    r->in = in;
    r->ctx = in->ctx;
    r->o = o;
    r->recipe = find_recipe(o->train.recipe);
    r->lock = -1, r->logged = -1;
}

/* Leaves the folder free, and without a trace if nothing was saved. */
static void close_run(train_run *r) {
    if (!r->o->resume && !r->saved) leave_nothing(r);
    unlock_folder(r->o->save_dir, &r->lock);
    if (r->log) fclose(r->log);
    dlrn_trainer_destroy(r->t);
    dlrn_dictionary_destroy(r->init);
    page_free(&r->config);
}

/* Trains on the stream's rows. */
static dlrn_status train_on(train_run *r) {
    train_stream *in = r->in;
    dlrn_source source = feed_source(&in->feed);
    dlrn_status s = ranks_first_of(r->ctx, open_folder(r), &r->others);
    if (s == DLRN_OK) s = dlrn_agree(r->ctx, open_buffer(in, &source));
    if (s == DLRN_OK) s = settle_run(r, &source);
    if (s == DLRN_OK) s = open_trainer(r);
    if (s == DLRN_OK) s = run_steps(r);
    close_run(r);
    return feed_failed(&in->feed, s);
}

/* Flags of train and eval that say where rows come from. 0, or the exit status of a wrong call. */
static int check_source_flags(const char *name, const options *o) {
    if (!o->data && !o->model)
        return usage_error(name, "expected --data or --model, found neither", "source");
    if (o->data && o->model)
        return usage_error(name, "expected --data or --model, found both", "source");
    const char *arrays_only = o->target   ? "--target"
                              : o->tensor ? "--tensor"
                              : o->dtype  ? "--dtype"
                                          : NULL;
    if (o->model)
        return arrays_only ? usage_error(name, "goes with --data", arrays_only)
                           : check_site_flags(name, o);
    if (check_array_flags(name, o)) return 2;
    const char *stray = o->text         ? "--text"
                        : o->site       ? "--site"
                        : o->io         ? "--io"
                        : o->layer >= 0 ? "--layer"
                                        : NULL;
    if (!stray && o->bos) stray = "--bos";
    if (!stray && o->text_key) stray = "--text-key";
    if (!stray && o->tokens_key) stray = "--tokens-key";
    if (!stray && o->long_documents) stray = "--long";
    if (!stray && o->skip_special) stray = "--skip-special";
    if (!stray && o->skip_bad_lines) stray = "--skip-bad-lines";
    if (!stray && o->documents >= 0) stray = "--documents";
    return stray ? usage_error(name, "goes with --model", stray) : 0;
}

/* What the table of flags cannot express. 0, or the exit status of a wrong call. */
static int check_train_flags(const char *name, const options *o) {
    int status = check_recipe(o->train.recipe);
    if (!status) status = check_source_flags(name, o);
    if (status) return status;
    if (o->layout && !o->init) return usage_error(name, "goes with --init", "--layout");
    if (o->train.decay_start >= 0 && o->train.decay_start >= o->train.steps)
        return usage_error(name, "expected a step before the last one of --steps", "--decay-start");
    status = check_group_flags(o);
    if (status) return status;
    if (o->model && (o->layers || has_layers(find_recipe(o->train.recipe))))
        return usage_error(name,
                           "trains on several layers at once: save their activations as arrays "
                           "[rows, layers, d] and pass them as --data",
                           o->train.recipe);
    if (o->model && o->epochs != 1)
        return usage_error(name, "goes with --data: a text is read once", "--epochs");
    if (o->held_out && !o->data) return usage_error(name, "goes with --data", "--held-out");
    if (o->held_out && comes_once(o->data))
        return usage_error(name, "expected a file or folder as --data, found a pipe", "--held-out");
    if (o->json) return usage_error(name, "goes with --recipe list", "--json");
    if (lacks_flag(name, "--save-dir", o->save_dir)) return 2;
    if (o->dict_size && o->expansion)
        return usage_error(name, "expected --dict-size or --expansion, found both", "size");
    if (o->dict_size > INT32_MAX || o->expansion > INT32_MAX)
        return usage_error(name, "expected at most 2147483647 features",
                           o->dict_size ? "--dict-size" : "--expansion");
    return 0;
}

/* Opens the rows of a run. The recipe says how many layers a row has. Close it also after an error.
   */
static dlrn_status open_stream(train_stream *in, dlrn_context *ctx, const options *o,
                               const dlrn_recipe_info *recipe) {
    memset(in, 0, sizeof *in);
    in->ctx = ctx;
    in->o = o;
    in->layers = 1;
    feed_init(&in->feed, ctx, o);
    in->feed.progress = show_filling;
    in->feed.user = in;
    if (!o->quiet) fprintf(stderr, "%s\n", dlrn_context_describe(ctx).text);
    dlrn_status s = o->model ? model_text_open(ctx, o, 1, &in->mt)
                             : find_layers(&in->feed, recipe, &in->layers);
    s = dlrn_agree(ctx, s);
    in->feed.held_out = o->held_out;
    if (s == DLRN_OK)
        s = o->model ? lm_text_source(in->mt.model, in->mt.tok, in->mt.docs, &in->mt.reading,
                                      in->mt.tap, &in->feed.inner)
                     : feed_open(&in->feed, o->epochs);
    if (s == DLRN_OK && o->model && ranks_several())
        s = shared_open(ctx, &in->mt.left_out, &in->feed.inner);
    if (s == DLRN_OK && !o->model) s = check_layers(&in->feed, recipe, in->layers);
    if (s == DLRN_OK && o->skip_nonfinite) s = feed_keep_finite(&in->feed);
    return dlrn_agree(ctx, s);
}

/* Says what of the rows was left out. */
static void tell_stream(const train_stream *in) {
    tell_end();
    feed_tell_skipped(&in->feed);
    model_text_tell(&in->mt, in->o);
}

static void close_stream(train_stream *in) {
    dlrn_buffer_destroy(in->buffer);
    feed_close(&in->feed);
    model_text_close(&in->mt);
}

static int run_train(dlrn_context *ctx, const options *o) {
    train_stream in;
    train_run r;
    if (!strcmp(o->train.recipe, "list")) return list_recipes(o);
    int status = check_train_flags("train", o);
    if (status) return status;
    dlrn_status s = open_stream(&in, ctx, o, find_recipe(o->train.recipe));
    init_run(&r, &in, o);
    if (s == DLRN_OK) s = train_on(&r);
    tell_stream(&in);
    if (r.saved) stop_held = 1; /* the error's text says all */
    status = s == DLRN_OK ? 0 : r.told_stop ? stopped_status() : fail(ctx);
    close_stream(&in);
    return status;
}
