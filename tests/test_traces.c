/* Steps of other libraries' trainers, made again: the same weights and rows, and after 40 steps the
   same weights. Each line of tests/golden/traces.txt with pack=N is one test, on
   tests/golden/training.npz.

       build/test_traces [FILTER]                 the tests
       build/test_traces --table PACK [FILTER]    the table of all traces in a file that
                                                  pack_training.py wrote, or in training.npz

   A parameter's distance is max |ours - theirs| over max |theirs after the last step - theirs at
   the start|: with it a step counts that was made at all. */
#define DICTLEARN_NAIVE_STEP
#include "dictlearn.h"
#include "tests/test.h"
#include "tests/naive.h"

/* A line of traces.txt. */
typedef struct trace {
    char name[64];
    char why[256];   /* no recipe makes it, or it does not hold yet; "": it does */
    char wrong[160]; /* a word of its line that cannot be read; "": none */
    dlrn_train_config cfg;
    const dlrn_recipe_info *recipe; /* NULL: none */
    double limit;
    int upto, pack, losses;
    dlrn_rank rank, weigh; /* rule.rank, rule.weigh */
    int has_rank, has_weigh;
} trace;

/* What a run found. */
typedef struct outcome {
    char error[512];         /* a call that failed, or a figure that is wrong; "": none   */
    double worst;            /* distance of the worst parameter after the last step      */
    char parameter[48];      /* which that is                                            */
    int step;                /* the last step whose parameters are compared               */
    double after[41];        /* the worst distance after so many steps; 0: not compared  */
    int loss_off;            /* the first step whose loss is off by more than 1e-4; -1    */
    double loss, their_loss; /* of that step                                        */
    int rate_off, k_off;     /* the first step with another rate, or another k; -1  */
    double rate, their_rate;
    uint64_t hash; /* of all parameters at the end                              */
} outcome;

/* ---- The table of settings ---- */

#define FIELD(name, kind)                                                                          \
    { #name, offsetof(dlrn_train_config, name), kind }
static const struct {
    const char *name;
    size_t at;
    char kind; /* i: an integer, d: a number, s: a switch, otherwise a list of names */
} fields[] = {FIELD(d_in, 'i'),
              FIELD(layers, 'i'),
              FIELD(features, 'i'),
              FIELD(lr, 'd'),
              FIELD(sparsity_penalty, 'd'),
              FIELD(steps, 'i'),
              FIELD(warmup_steps, 'i'),
              FIELD(decay_start, 'i'),
              FIELD(resample_steps, 'i'),
              FIELD(compat, 's'),
              FIELD(clip, 'd'),
              FIELD(sparsity_warmup_steps, 'i'),
              FIELD(k, 'i'),
              FIELD(k_fraction, 'd'),
              FIELD(k_anneal_steps, 'i'),
              FIELD(k_start, 'i'),
              FIELD(auxk_alpha, 'd'),
              FIELD(auxk, 'i'),
              FIELD(auxk_by_group, 's'),
              FIELD(multi_top_k, 's'),
              FIELD(dead_rows, 'i'),
              FIELD(dead_steps, 'i'),
              FIELD(threshold_beta, 'd'),
              FIELD(threshold_start_step, 'i'),
              FIELD(target_l0, 'd'),
              FIELD(bandwidth, 'd'),
              FIELD(pre_act, 'd'),
              FIELD(center, 's'),
              FIELD(skip, 's'),
              FIELD(scale_rows, 's'),
              FIELD(p_start, 'd'),
              FIELD(p_end, 'd'),
              FIELD(anneal_start, 'i'),
              FIELD(anneal_end, 'i'),
              FIELD(anneal_updates, 'i'),
              FIELD(threshold_lr, 'd'),
              FIELD(loss, 'l'),
              FIELD(sparsity, 'p'),
              FIELD(optimiser, 'o'),
              FIELD(lr_schedule, 'c')};
#undef FIELD

/* The value of an enumeration that a word names; -1: none. */
static int named(dlrn_names names, const char *word) {
    for (int i = 0; *dlrn_name(names, i) != '?'; i++)
        if (!strcmp(dlrn_name(names, i), word)) return i;
    return -1;
}

/* Sizes or weights of nested groups: numbers with commas between them. */
static int set_list(dlrn_train_config *cfg, int weights, char *text) {
    int n = 0;
    for (char *end = text; n < DLRN_GROUPS_MAX && *text; n++, text = *end ? end + 1 : end) {
        const double number = strtod(text, &end);
        if (end == text || (*end && *end != ',')) return 0;
        if (weights)
            cfg->group_weights[n] = number;
        else
            cfg->groups[n] = (int64_t)number;
    }
    if (!weights) cfg->n_groups = n;
    return n > 0 && !*text;
}

/* Sets a field of the configuration; 0: there is none of that name, or the value is none of its. */
static int set_field(dlrn_train_config *cfg, const char *name, char *value) {
    char *end = value;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        void *to = (char *)cfg + fields[i].at;
        if (strcmp(fields[i].name, name) != 0) continue;
        switch (fields[i].kind) {
        case 'i': *(int64_t *)to = strtoll(value, &end, 10); return end > value && !*end;
        case 'd': *(double *)to = strtod(value, &end); return end > value && !*end;
        case 's':
            *(dlrn_switch *)to = !strcmp(value, "on") ? DLRN_ON : DLRN_OFF;
            return !strcmp(value, "on") || !strcmp(value, "off");
        case 'l': cfg->loss = (dlrn_loss)named(DLRN_NAMES_LOSS, value); return 1;
        case 'p': cfg->sparsity = (dlrn_sparsity)named(DLRN_NAMES_SPARSITY, value); return 1;
        case 'o': cfg->optimiser = (dlrn_optimiser)named(DLRN_NAMES_OPTIMISER, value); return 1;
        default: cfg->lr_schedule = (dlrn_schedule)named(DLRN_NAMES_SCHEDULE, value); return 1;
        }
    }
    return 0;
}

static int set_word(trace *t, char *name, char *value) {
    if (!strcmp(name, "names")) return 1; /* the packer's */
    if (!strcmp(name, "limit")) return (t->limit = strtod(value, NULL)) > 0;
    if (!strcmp(name, "upto")) return (t->upto = atoi(value)) > 0;
    if (!strcmp(name, "pack")) return (t->pack = atoi(value)) > 0;
    if (!strcmp(name, "losses")) return (t->losses = atoi(value)) > 0;
    if (!strcmp(name, "groups")) return set_list(&t->cfg, 0, value);
    if (!strcmp(name, "group_weights")) return set_list(&t->cfg, 1, value);
    if (!strcmp(name, "rule.rank")) {
        t->has_rank = 1;
        return (int)(t->rank = (dlrn_rank)named(DLRN_NAMES_RANK, value)) >= 0;
    }
    if (!strcmp(name, "rule.weigh")) {
        t->has_weigh = 1;
        return (int)(t->weigh = (dlrn_rank)named(DLRN_NAMES_RANK, value)) >= 0;
    }
    return set_field(&t->cfg, name, value);
}

static void set_words(trace *t, const char *words) {
    char copy[512];
    snprintf(copy, sizeof copy, "%s", words);
    for (char *word = strtok(copy, " "); word; word = strtok(NULL, " ")) {
        char *value = strchr(word, '=');
        if (!value) {
            snprintf(t->wrong, sizeof t->wrong, "traces.txt: %.100s: no value", word);
            return;
        }
        *value = 0;
        if (!set_word(t, word, value + 1) && !*t->wrong)
            snprintf(t->wrong, sizeof t->wrong, "no setting %.60s=%.60s", word, value + 1);
    }
}

static trace traces[64];
static int n_traces;
static struct { char prefix[32], words[256]; } common[16];
static int n_common;

/* NAME RECIPE WORD... # WHY */
static void read_trace(char *line) {
    char recipe[64] = "", *why = strstr(line, " # ");
    trace *t = &traces[n_traces];
    int at = 0;
    CHECK(n_traces++ < 64);
    if (why) snprintf(t->why, sizeof t->why, "%s", why + 3), *why = 0;
    CHECK_MSG(sscanf(line, "%63s %63s%n", t->name, recipe, &at) == 2, "traces.txt: %s", line);
    for (int i = 0; dlrn_recipe(i); i++)
        if (!strcmp(dlrn_recipe(i)->name, recipe)) t->recipe = dlrn_recipe(i);
    t->limit = 2e-4;
    t->upto = t->losses = 40;
    if (!strcmp(recipe, "-")) return;
    if (!t->recipe) snprintf(t->wrong, sizeof t->wrong, "no recipe %s", recipe);
    t->cfg = dlrn_train_defaults(recipe);
    for (int i = 0; i < n_common; i++)
        if (!strncmp(t->name, common[i].prefix, strlen(common[i].prefix)))
            set_words(t, common[i].words);
    set_words(t, line + at);
}

static void read_traces(void) {
    char line[512];
    FILE *f = fopen("tests/golden/traces.txt", "r");
    CHECK(f != NULL);
    while (fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        const size_t head = strcspn(line, " ");
        if (!*line || *line == '#' || !strncmp(line, "names ", 6)) continue;
        if (line[head - 1] == '*') {
            CHECK(n_common < 16 && head <= sizeof common[0].prefix);
            snprintf(common[n_common].prefix, sizeof common[0].prefix, "%.*s", (int)head - 1, line);
            snprintf(common[n_common++].words, sizeof common[0].words, "%s", line + head);
        } else {
            read_trace(line);
        }
    }
    fclose(f);
}

/* ---- The packed arrays ---- */

static dlrn_context *files; /* of the archive, not of the runs */
static dlrn_archive *packed;

/* An array NAME.WHAT, which the caller frees, and how many numbers it has; NULL: there is none. */
static float *read_array(const char *name, const char *what, int64_t *n) {
    char key[160];
    snprintf(key, sizeof key, "%s.%s", name, what);
    const int64_t at = dlrn_archive_find(packed, key);
    if (at < 0) return NULL;
    *n = dlrn_archive_tensor(packed, at)->numel;
    float *a = malloc((size_t)*n * sizeof *a + 1);
    CHECK(a != NULL);
    CHECK_OK(files, dlrn_archive_read(packed, at, 0, -1, a));
    return a;
}

/* Rows of all steps: traces share them, so a trace has their number. */
static float *read_rows(const char *name, const char *what) {
    char key[32];
    int64_t n = 0;
    float *number = read_array(name, what, &n);
    if (!number) return NULL;
    snprintf(key, sizeof key, "%d", (int)number[0]);
    free(number);
    return read_array("rows", key, &n);
}

/* ---- Runs ---- */

/* A parameter of a dictionary or of one of its parts, under the name that the pack has. */
typedef struct parameter {
    char name[48];
    float *at;
    int64_t n;
} parameter;

static int list_parameters(dlrn_dictionary *dict, const char *prefix, parameter *to) {
    int count = 0;
    for (int role = 0; role < DLRN_ROLE_COUNT; role++) {
        if (!dict->param[role]) continue;
        parameter *p = &to[count++];
        snprintf(p->name, sizeof p->name, "%s%s", prefix, dlrn_name(DLRN_NAMES_ROLE, role));
        p->at = dict->param[role];
        p->n = dlrni_role_size(dict, role);
    }
    for (int64_t i = 0; i < dict->n_parts; i++) {
        char part[16];
        snprintf(part, sizeof part, "%d.", (int)i);
        count += list_parameters(dict->part[i].dict, part, to + count);
    }
    return count;
}

enum { MAX_PARAMETERS = 32 };

static void fail(outcome *o, const char *format, ...) {
    va_list args;
    if (*o->error) return;
    va_start(args, format);
    vsnprintf(o->error, sizeof o->error, format, args);
    va_end(args);
}

/* Copies the trace's first weights into a dictionary. */
static void fill(const trace *t, dlrn_dictionary *dict, outcome *o) {
    parameter list[MAX_PARAMETERS];
    const int count = list_parameters(dict, "", list);
    char what[80];
    int64_t n = 0;
    for (int i = 0; i < count; i++) {
        snprintf(what, sizeof what, "start.%s", list[i].name);
        float *a = read_array(t->name, what, &n);
        if (!a || n != list[i].n)
            fail(o, "%s has %d numbers, expected %d", what, a ? (int)n : 0, (int)list[i].n);
        else
            memcpy(list[i].at, a, (size_t)n * sizeof *a);
        free(a);
    }
    float *scales = read_array(t->name, "scales", &n); /* of x and y; parts have that of x */
    if (scales && !dict->n_parts) dict->formula.scale_in = (double)scales[0];
    for (int64_t i = 0; scales && i < dict->n_parts; i++)
        dict->part[i].dict->formula.scale_in = (double)scales[0];
    if (scales) dict->formula.scale_out = 1 / (double)scales[1];
    free(scales);
    dlrn_dictionary_changed(dict);
}

/* The distance of one array from theirs, if the pack has it. */
static void compare(const trace *t, const char *label, const char *role, const float *ours,
                    int64_t n, double *worst, char *worst_name) {
    char what[80];
    int64_t theirs_n = 0, one = 0;
    double off = 0;
    snprintf(what, sizeof what, "%s.%s", label, role);
    float *theirs = read_array(t->name, what, &theirs_n);
    snprintf(what, sizeof what, "moved.%s", role);
    float *moved = read_array(t->name, what, &one);
    if (theirs && moved && theirs_n == n) {
        for (int64_t i = 0; i < n; i++) {
            const double d = fabs((double)ours[i] - (double)theirs[i]);
            if (!(d <= off)) off = d; /* a NaN stays */
        }
        if (moved[0] > 0) off /= (double)moved[0];
        if (!(off <= *worst)) *worst = off, snprintf(worst_name, 48, "%s", role);
    }
    free(theirs);
    free(moved);
}

/* All parameters of a dictionary against those that the pack has under a label. */
static double compare_all(const trace *t, const char *label, dlrn_dictionary *dict,
                          char *worst_name) {
    parameter list[MAX_PARAMETERS];
    const float threshold = (float)dict->formula.threshold;
    const int count = list_parameters(dict, "", list);
    double worst = 0;
    for (int i = 0; i < count; i++)
        compare(t, label, list[i].name, list[i].at, list[i].n, &worst, worst_name);
    compare(t, label, "one_threshold", &threshold, 1, &worst, worst_name);
    return worst;
}

static int is_packed(const trace *t, const char *what) {
    char key[160];
    snprintf(key, sizeof key, "%s.%s", t->name, what);
    return dlrn_archive_find(packed, key) >= 0;
}

/* What a step told, against the trace's. */
static void check_stats(const trace *t, const dlrn_train_stats *stats, int step, const float *loss,
                        const float *rate, const float *k, outcome *o) {
    if (step < t->losses && !test_close(stats->loss, (double)loss[step], 1e-4) && o->loss_off < 0)
        o->loss_off = step, o->loss = stats->loss, o->their_loss = (double)loss[step];
    if (!test_close(stats->lr, (double)rate[step], 1e-6) && o->rate_off < 0)
        o->rate_off = step, o->rate = stats->lr, o->their_rate = (double)rate[step];
    if (k && (double)stats->k != (double)k[step] && o->k_off < 0) o->k_off = step;
}

/* The trainer goes on from a checkpoint. */
static void save_and_resume(dlrn_context *ctx, dlrn_trainer **trainer, outcome *o) {
    char *path = tmp_path("trace.safetensors");
    dlrn_trainer *again = NULL;
    if (dlrn_trainer_save(*trainer, path) != DLRN_OK ||
        dlrn_trainer_resume(ctx, path, NULL, NULL, &again) != DLRN_OK)
        fail(o, "checkpoint: %s", dlrn_error(ctx));
    if (!again) return;
    dlrn_trainer_destroy(*trainer);
    *trainer = again;
}

/* All steps of a trace; with `pause` the run is saved and resumed halfway. */
static void run_steps(const trace *t, dlrn_context *ctx, dlrn_trainer **at_trainer, int pause,
                      outcome *o) {
    int64_t steps = 0, n = 0;
    float *x = read_rows(t->name, "x"), *y = read_rows(t->name, "y");
    float *loss = read_array(t->name, "loss", &steps), *rate = read_array(t->name, "lr", &n);
    float *k = read_array(t->name, "k", &n);
    for (int step = 0; step < (int)steps && !*o->error; step++) {
        if (pause && step == (int)steps / 2) save_and_resume(ctx, at_trainer, o);
        dlrn_trainer *trainer = *at_trainer;
        const dlrn_train_config *cfg = dlrn_trainer_describe(trainer).config;
        const int64_t at = (int64_t)step * 64 * cfg->d_in;
        dlrn_train_stats stats;
        char label[16];
        if (dlrn_trainer_step_on(trainer, x + at, y ? y + at : NULL, 64, &stats) != DLRN_OK) {
            fail(o, "step %d: %s", step, dlrn_error(ctx));
            break;
        }
        check_stats(t, &stats, step, loss, rate, k, o);
        snprintf(label, sizeof label, "%d", step + 1);
        char what[32];
        snprintf(what, sizeof what, "%d.%sencoder_weight", step + 1, cfg->layers > 2 ? "0." : "");
        if (!is_packed(t, what)) continue;
        o->step = step + 1;
        o->worst = compare_all(t, label, dlrn_trainer_describe(trainer).dictionary, o->parameter);
        o->after[step + 1] = o->worst;
    }
    free(x);
    free(y);
    free(loss);
    free(rate);
    free(k);
}

/* The dictionary that a run leaves: its bits, and with signum what the library saves. */
static void finish(const trace *t, dlrn_context *ctx, dlrn_trainer *trainer, outcome *o) {
    parameter list[MAX_PARAMETERS];
    char name[48] = "";
    dlrn_dictionary *dict = NULL;
    if (dlrn_trainer_finish(trainer, &dict) != DLRN_OK) {
        fail(o, "finish: %s", dlrn_error(ctx));
        return;
    }
    const double left = compare_all(t, "finish", dict, name);
    if (left > o->worst) {
        o->worst = left;
        snprintf(o->parameter, sizeof o->parameter, "saved %.40s", name);
    }
    const int count = list_parameters(dict, "", list);
    o->hash = 14695981039346656037u; /* FNV-1a */
    for (int i = 0; i < count; i++)
        for (int64_t b = 0; b < list[i].n * 4; b++)
            o->hash = (o->hash ^ ((const unsigned char *)list[i].at)[b]) * 1099511628211u;
    dlrn_dictionary_destroy(dict);
}

/* The trainer of a trace. Its weights: a first trainer makes a dictionary of the recipe's shape,
   and that is filled. */
static dlrn_status make_trainer(const trace *t, dlrn_context *ctx, dlrn_trainer **out, outcome *o) {
    dlrn_trainer *first = NULL;
    dlrn_status s = dlrn_trainer_create(ctx, &t->cfg, NULL, NULL, &first);
    if (s != DLRN_OK) return s;
    dlrn_dictionary *dict = dlrn_trainer_describe(first).dictionary;
    fill(t, dict, o);
    if (t->has_rank) dict->formula.rank = t->rank;
    s = dlrn_trainer_create(ctx, &t->cfg, dict, NULL, out);
    dlrn_trainer_destroy(first);
    if (s == DLRN_OK && t->has_rank) {
        (*out)->rules.rank = (*out)->dict->formula.rank = t->rank;
        dlrn_free(ctx, (*out)->w.unrank);
        (*out)->w.unrank = NULL;
    }
    if (s == DLRN_OK && t->has_weigh) (*out)->rules.weigh = t->weigh;
    return s;
}

static outcome run(const trace *t, const char *kernels, int threads, int pause) {
    dlrn_context_config config;
    dlrn_context *ctx = NULL;
    dlrn_trainer *trainer = NULL;
    outcome o;
    memset(&o, 0, sizeof o);
    memset(&config, 0, sizeof config);
    o.loss_off = o.rate_off = o.k_off = -1;
    config.kernels = kernels;
    config.threads = threads;
    if (*t->wrong) {
        fail(&o, "%s", t->wrong);
        return o;
    }
    CHECK(dlrn_context_create(&config, &ctx) == DLRN_OK);
    if (make_trainer(t, ctx, &trainer, &o) != DLRN_OK) fail(&o, "%s", dlrn_error(ctx));
    if (trainer && !*o.error) run_steps(t, ctx, &trainer, pause, &o);
    if (trainer && !*o.error) finish(t, ctx, trainer, &o);
    dlrn_trainer_destroy(trainer);
    dlrn_context_destroy(ctx);
    return o;
}

/* The same steps by the naive step, which the trainer's are compared with elsewhere. */
static outcome run_naive(const trace *t) {
    dlrn_trainer *trainer = NULL;
    int64_t steps = 0, n = 0;
    outcome o;
    memset(&o, 0, sizeof o);
    o.loss_off = o.rate_off = o.k_off = -1;
    if (make_trainer(t, files, &trainer, &o) != DLRN_OK) {
        fail(&o, "%s", dlrn_error(files));
        return o;
    }
    float *x = read_rows(t->name, "x"), *y = read_rows(t->name, "y");
    float *loss = read_array(t->name, "loss", &steps), *rate = read_array(t->name, "lr", &n);
    float *k = read_array(t->name, "k", &n);
    dlrni_naive *s = naive_of(trainer, 64);
    const int64_t size = 64 * s->d_in;
    double *both = malloc((size_t)(2 * size) * sizeof *both);
    for (int step = 0; step < (int)steps && both; step++) {
        dlrn_train_stats stats;
        char label[16];
        for (int64_t i = 0; i < size; i++) {
            both[i] = (double)x[step * size + i];
            both[size + i] = (double)(y ? y : x)[step * size + i];
        }
        stats.loss = dlrni_naive_step(s, both, both + size);
        stats.lr = s->rate;
        stats.k = s->k;
        check_stats(t, &stats, step, loss, rate, k, &o);
        snprintf(label, sizeof label, "%d", step + 1);
        naive_exchange(s, trainer->dict, 1);
        o.step = step + 1;
        const double worst = compare_all(t, label, trainer->dict, o.parameter);
        if (worst > 0) o.worst = o.after[step + 1] = worst;
    }
    dlrni_naive_close(s);
    dlrn_trainer_destroy(trainer);
    free(both);
    free(x);
    free(y);
    free(loss);
    free(rate);
    free(k);
    return o;
}

/* What is wrong with a run, in words; returns 1 if anything is. */
static int is_off(const trace *t, const outcome *o, char *text, size_t size) {
    char more[256] = "";
    int at = 0;
    if (*o->error) {
        snprintf(text, size, "%s", o->error);
        return 1;
    }
    if (o->rate_off >= 0)
        at += snprintf(more + at, sizeof more - (size_t)at, "; step %d: rate %.6g, expected %.6g",
                       o->rate_off, o->rate, o->their_rate);
    if (o->k_off >= 0)
        at += snprintf(more + at, sizeof more - (size_t)at, "; step %d: another k", o->k_off);
    if (o->loss_off >= 0)
        at += snprintf(more + at, sizeof more - (size_t)at, "; step %d: loss %.7g, expected %.7g",
                       o->loss_off, o->loss, o->their_loss);
    for (int n = 1; n < o->step; n++)
        if (!(o->after[n] <= t->limit)) {
            snprintf(more + at, sizeof more - (size_t)at, "; after %d steps %.1e", n, o->after[n]);
            break;
        }
    snprintf(text, size, "%s off by %.1e after %d steps%s", o->parameter, o->worst, o->step, more);
    return !(o->worst <= t->limit) || o->rate_off >= 0 || o->k_off >= 0 || o->loss_off >= 0;
}

/* A reason excuses parameters and losses; rates and k must be right even so. */
static int is_excused(const trace *t, const outcome *o) {
    return *t->why && !*o->error && o->rate_off < 0 && o->k_off < 0;
}

/* ---- Tests ---- */

static const trace *current;

static void check_trace(void) {
    char text[1024];
    const char *best = "scalar";
    for (int i = 0; test_kernels(i); i++) best = test_kernels(i);
    const outcome o = run(current, "scalar", 1, 0);
    const int off = is_off(current, &o, text, sizeof text);
    if (off && is_excused(current, &o)) SKIP(current->why);
    CHECK_MSG(!off, "%s", text);
    CHECK_MSG(!*current->why, "holds now: take '# %s' away", current->why);
    for (int other = test_brief() ? 2 : 0; other < 3; other++) {
        const char *kernels = other == 0 ? "scalar" : best;
        const int threads = other == 1 ? 1 : 2;
        const outcome again = run(current, kernels, threads, other == 2);
        CHECK_MSG(!*again.error && again.hash == o.hash, "other bits with %s, %d threads%s: %s",
                  kernels, threads, other == 2 ? ", resumed halfway" : "", again.error);
    }
}

static void check_naive(void) {
    char text[1024];
    const outcome o = run_naive(current);
    const int off = is_off(current, &o, text, sizeof text);
    if (off && is_excused(current, &o)) SKIP(current->why);
    CHECK_MSG(!off, "%s", text);
}

/* Each recipe has a trace, or a reason why not. */
TEST(each_recipe_has_a_trace) {
    static const char *const without[] = {
        "reference",     /* test_golden, on train.npz */
        "sp-transcoder", /* sp-skip_transcoder without the skip */
    };
    for (int i = 0; dlrn_recipe(i); i++) {
        int found = 0;
        for (int j = 0; j < n_traces; j++)
            found += traces[j].recipe == dlrn_recipe(i) && traces[j].pack;
        for (size_t j = 0; j < sizeof without / sizeof *without; j++)
            found += !strcmp(without[j], dlrn_recipe(i)->name);
        CHECK_MSG(found, "%s has no trace in training.npz", dlrn_recipe(i)->name);
    }
}

/* ---- The table ---- */

static void print_row(const trace *t) {
    char text[1024];
    const char *library = t->recipe && t->recipe->layout ? t->recipe->layout : "-";
    const char *verdict;
    if (!t->recipe && !*t->wrong) {
        printf("none %-29s %s\n", t->name, t->why);
        test_state.skipped++;
        return;
    }
    const outcome o = run(t, NULL, 0, 0);
    const int off = is_off(t, &o, text, sizeof text);
    if (off && is_excused(t, &o))
        verdict = "off", test_state.skipped++;
    else if (off || *t->why)
        verdict = "FAIL", test_state.failed++;
    else
        verdict = "ok", test_state.passed++;
    printf("%-4s %-29s %-21s %-20s %-17s %8.1e %8.0e", verdict, t->name,
           t->recipe ? t->recipe->name : "?", library, o.parameter, o.worst, t->limit);
    if (off) printf("  %s", text);
    if (*t->why) printf(" (%s)", off ? t->why : "holds now: take the reason away");
    if (t->upto < 40) printf("  %d steps: then torch's random numbers choose", t->upto);
    printf("\n");
    fflush(stdout);
}

static int print_table(const char *filter) {
    printf("     %-29s %-21s %-20s %-17s %8s %8s\n", "trace", "recipe", "library",
           "worst parameter", "off by", "limit");
    for (int i = 0; i < n_traces; i++) {
        const trace *t = &traces[i];
        if (filter && !strstr(t->name, filter)) continue;
        if (t->recipe && !is_packed(t, "x")) continue;
        print_row(t);
    }
    printf("(off by: the largest difference after the last step, of the largest distance moved)\n");
    return TEST_END();
}

int main(int argc, char **argv) {
    const int table = argc > 2 && !strcmp(argv[1], "--table");
    const char *pack = table ? argv[2] : "tests/golden/training.npz";
    TEST_BEGIN(table ? argc - 2 : argc, argv + (table ? 2 : 0));
    if (setjmp(test_state.leave)) {
        printf("FAIL %s\n", test_state.why);
        return 1;
    }
    CHECK(dlrn_context_create(NULL, &files) == DLRN_OK);
    CHECK_OK(files, dlrn_archive_open(files, pack, &packed));
    read_traces();
    int status = 0;
    if (table) {
        status = print_table(argc > 3 ? argv[3] : NULL);
    } else {
        RUN(each_recipe_has_a_trace);
        for (int i = 0; i < n_traces; i++)
            if (traces[i].pack) current = &traces[i], test_run(current->name, check_trace);
        for (int i = 0; i < n_traces; i++) {
            char name[80];
            snprintf(name, sizeof name, "%s_naive", traces[i].name);
            if (traces[i].pack) current = &traces[i], test_run(name, check_naive);
        }
        status = TEST_END();
    }
    dlrn_archive_close(packed);
    dlrn_context_destroy(files);
    return status;
}
