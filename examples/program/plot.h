/* dictlearn plot: curves of training logs; points of sweeps and evaluations; bars of histograms. A
   run is read into a table, one column for each key that an axis shows. */

enum { PLOT_KEYS = FIGURE_PANELS + 1, PLOT_LABEL = 64 };

typedef enum plot_kind {
    PLOT_LOG,   /* lines of log.jsonl                              */
    PLOT_SWEEP, /* members of sweep.json                           */
    PLOT_EVAL,  /* what eval --json printed                        */
    PLOT_BINS   /* what eval --histogram or compare --json printed */
} plot_kind;

/* What a run has of each key. */
typedef struct plot_run {
    char *name;                /* in the legend */
    double *value;             /* [n][keys]; NaN: not there */
    char (*label)[PLOT_LABEL]; /* [n] of points */
    int64_t n, room;
} plot_run;

/* One histogram. */
typedef struct plot_bins {
    double *number; /* edges [n + 1], then counts [n] */
    int n;
    char *x_name, *y_name;
} plot_bins;

typedef struct plot {
    dlrn_context *ctx;
    const options *o;
    const char *key[PLOT_KEYS];  /* the first: of the horizontal axis */
    int keys, chosen;            /* chosen: by a flag, so a run that lacks one is an error */
    char words[TEXT_MAX + 1];    /* the text of keys */
    plot_run *run;               /* [runs] */
    int runs, room, evaluations; /* evaluations: the number of their run, from 1; 0: none yet */
    plot_bins bins[FIGURE_PANELS];
    int n_bins;
    char title[200];
} plot;

static void plot_free(plot *p) {
    for (int i = 0; i < p->runs; i++) {
        free(p->run[i].name);
        free(p->run[i].value);
        free(p->run[i].label);
    }
    free(p->run);
    for (int i = 0; i < p->n_bins; i++) {
        free(p->bins[i].number);
        free(p->bins[i].x_name);
        free(p->bins[i].y_name);
    }
}

static dlrn_status no_memory(dlrn_context *ctx) {
    return dlrn_fail(ctx, DLRN_ERR_MEMORY, "out of memory");
}

/* A copy, as strdup makes it; NULL: no memory. */
static char *copy_text(const char *text) {
    const size_t n = strlen(text) + 1;
    char *copy = (char *)malloc(n);
    return copy ? (char *)memcpy(copy, text, n) : NULL;
}

/* ---- tables */

/* Adds an empty run. */
static dlrn_status add_run(plot *p, const char *name) {
    if (p->runs == p->room) {
        const int room = 2 * p->room + 8;
        plot_run *grown = (plot_run *)realloc(p->run, (size_t)room * sizeof *grown);
        if (!grown) return no_memory(p->ctx);
        p->run = grown, p->room = room;
    }
    memset(&p->run[p->runs], 0, sizeof *p->run);
    p->run[p->runs].name = copy_text(name);
    return p->run[p->runs++].name ? DLRN_OK : no_memory(p->ctx);
}

/* A number of an object. Sweeps and evaluations name the cross-entropy recovered differently. */
static double plotted_number(const dlrn_json *object, const char *key) {
    const double value = dlrn_json_number(object, key, (double)NAN);
    if (value == value || strcmp(key, "ce_recovered")) return value;
    return dlrn_json_number(object, "percent_recovered", (double)NAN);
}

/* Adds the numbers of an object to a run. */
static dlrn_status add_row(plot *p, plot_run *r, const dlrn_json *object, const char *label) {
    if (r->n == r->room) {
        const int64_t room = 2 * r->room + 64;
        double *value = (double *)realloc(r->value, (size_t)(room * p->keys) * sizeof *r->value);
        if (value) r->value = value;
        char(*grown)[PLOT_LABEL] =
            value ? (char(*)[PLOT_LABEL])realloc(r->label, (size_t)room * PLOT_LABEL) : NULL;
        if (!grown) return no_memory(p->ctx);
        r->label = grown, r->room = room;
    }
    for (int k = 0; k < p->keys; k++)
        r->value[r->n * p->keys + k] = plotted_number(object, p->key[k]);
    snprintf(r->label[r->n++], PLOT_LABEL, "%s", label);
    return DLRN_OK;
}

/* Whether some row of a run has a number of a key. */
static int has_key(const plot *p, const plot_run *r, int key) {
    for (int64_t i = 0; i < r->n; i++)
        if (is_finite(r->value[i * p->keys + key])) return 1;
    return 0;
}

/* The keys of an object's numbers that can be drawn, for errors. */
static void list_keys(const dlrn_json *object, char *text, size_t size) {
    size_t at = 0;
    *text = 0;
    for (const dlrn_json *v = object ? object->first : NULL; v && at < size; v = v->next)
        if (v->type == DLRN_JSON_NUMBER && is_finite(v->number))
            at += (size_t)snprintf(text + at, size - at, "%s%s", at ? ", " : "", v->key);
}

/* Whether a run has all keys that a flag has asked for. object: its last row. */
static dlrn_status check_keys(const plot *p, const plot_run *r, const char *path,
                              const dlrn_json *object) {
    char keys[400];
    list_keys(object, keys, sizeof keys);
    for (int k = 0; k < p->keys; k++)
        if ((p->chosen || !k) && !has_key(p, r, k))
            return dlrn_fail(p->ctx, DLRN_ERR_VALUE, "%s: expected numbers '%s', found %s", path,
                             p->key[k], *keys ? keys : "none");
    return DLRN_OK;
}

/* ---- files */

/* A file's JSON, which must be an object. Free it with dlrn_free. */
static dlrn_status read_object(dlrn_context *ctx, const char *path, dlrn_json **root) {
    char *bytes = NULL;
    size_t size;
    *root = NULL;
    dlrn_status s = dlrn_file_read(ctx, path, &bytes, &size);
    if (s == DLRN_OK) s = dlrn_json_parse(ctx, bytes, size, path, root);
    dlrn_free(ctx, bytes);
    if (s != DLRN_OK || (*root)->type == DLRN_JSON_OBJECT) return s;
    dlrn_free(ctx, *root);
    *root = NULL;
    return dlrn_fail(ctx, DLRN_ERR_FORMAT, "%s: expected a JSON object", path);
}

/* One line of a log. *last: of the line before, and then of this one. */
static dlrn_status read_log_line(plot *p, const char *path, int64_t number, const char *line,
                                 size_t n, dlrn_json **last) {
    char place[TEXT_MAX + 64];
    dlrn_json *object = NULL;
    snprintf(place, sizeof place, "%s: line %lld", path, (long long)number);
    dlrn_status s = dlrn_json_parse(p->ctx, line, n, place, &object);
    if (s == DLRN_OK && object->type != DLRN_JSON_OBJECT)
        s = dlrn_fail(p->ctx, DLRN_ERR_FORMAT, "%s: expected a JSON object", place);
    if (s == DLRN_OK) s = add_row(p, &p->run[p->runs - 1], object, "");
    if (s != DLRN_OK) return dlrn_free(p->ctx, object), s;
    dlrn_free(p->ctx, *last);
    *last = object;
    return DLRN_OK;
}

/* A log. A last line without its end is left out: a run that still trains is writing it. */
static dlrn_status read_log(plot *p, const char *path, const char *name) {
    char *bytes = NULL;
    size_t size = 0;
    dlrn_json *last = NULL;
    int64_t number = 1;
    dlrn_status s = add_run(p, name);
    if (s == DLRN_OK) s = dlrn_file_read(p->ctx, path, &bytes, &size);
    for (char *line = bytes, *end; s == DLRN_OK && line < bytes + size; line = end + 1, number++) {
        end = (char *)memchr(line, '\n', (size_t)(bytes + size - line));
        if (!end) break;
        if (end > line) s = read_log_line(p, path, number, line, (size_t)(end - line), &last);
    }
    if (s == DLRN_OK && !last)
        s = dlrn_fail(p->ctx, DLRN_ERR_VALUE, "%s: expected at least one line, found none", path);
    if (s == DLRN_OK) s = check_keys(p, &p->run[p->runs - 1], path, last);
    dlrn_free(p->ctx, last);
    dlrn_free(p->ctx, bytes);
    return s;
}

/* The members of a sweep as points; with logs, the log of each as a run. folder: of the sweep. */
static dlrn_status read_sweep(plot *p, const char *path, const char *folder, const dlrn_json *root,
                              int logs) {
    const char *vary = dlrn_json_text(root, "vary", "");
    const dlrn_json *list = dlrn_json_get(root, "members"), *last = NULL;
    dlrn_status s = logs ? DLRN_OK : add_run(p, folder);
    for (const dlrn_json *m = list->first; m && s == DLRN_OK; m = m->next) {
        char label[PLOT_LABEL], log[TEXT_MAX + 300];
        const char *own = dlrn_json_text(m, "folder", "");
        snprintf(label, sizeof label, "%.30s=%.30s", vary, dlrn_json_text(m, "value", ""));
        snprintf(log, sizeof log, "%s/%.200s/log.jsonl", folder, own);
        s = logs ? read_log(p, log, label) : add_row(p, &p->run[p->runs - 1], m, label);
        last = m;
    }
    if (s == DLRN_OK && !last)
        s = dlrn_fail(p->ctx, DLRN_ERR_VALUE, "%s: expected members, found none", path);
    if (s == DLRN_OK && !logs) s = check_keys(p, &p->run[p->runs - 1], path, last);
    if (!*p->title) snprintf(p->title, sizeof p->title, "%.120s, by %.60s", folder, vary);
    return s;
}

/* An evaluation: a point. Those of all files are one run. */
static dlrn_status read_evaluation(plot *p, const char *path, const dlrn_json *root) {
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    char label[PLOT_LABEL];
    size_t n = strlen(name);
    if (n > 5 && ends_with(name, ".json")) n -= 5;
    snprintf(label, sizeof label, "%.*s", (int)n, name);
    dlrn_status s = p->evaluations ? DLRN_OK : add_run(p, "evaluations");
    if (!p->evaluations) p->evaluations = p->runs;
    plot_run *r = &p->run[p->evaluations - 1];
    if (s == DLRN_OK) s = add_row(p, r, root, label);
    return s == DLRN_OK ? check_keys(p, r, path, root) : s;
}

/* ---- histograms */

/* Room for another histogram of n bins; NULL and an error if there is none. */
static plot_bins *add_bins(plot *p, const char *path, int n, const char *x_name,
                           const char *y_name) {
    if (p->n_bins == FIGURE_PANELS) {
        dlrn_status s =
            dlrn_fail(p->ctx, DLRN_ERR_ARGUMENT, "%s: expected at most %d histograms, found more",
                      path, FIGURE_PANELS);
        return (void)s, (plot_bins *)NULL;
    }
    plot_bins *b = &p->bins[p->n_bins++];
    b->n = n;
    b->number = (double *)calloc((size_t)(2 * n + 1), sizeof *b->number);
    b->x_name = copy_text(x_name);
    b->y_name = copy_text(y_name);
    if (b->number && b->x_name && b->y_name) return b;
    dlrn_status s = no_memory(p->ctx);
    return (void)s, (plot_bins *)NULL;
}

/* A line "from,to,features". Returns the text after it; NULL: it is something else. */
static const char *read_bin(const char *line, plot_bins *b, int i) {
    char *end;
    const double from = strtod(line, &end);
    if (end == line || *end != ',') return NULL;
    const double to = strtod(line = end + 1, &end);
    if (end == line || *end != ',') return NULL;
    const double count = strtod(line = end + 1, &end);
    if (end == line || *end != '\n' || !(from < to) || !(count >= 0)) return NULL;
    if (!is_finite(from) || !is_finite(to) || !is_finite(count)) return NULL;
    if (i && fabs(from - b->number[i]) > 1e-6 * from) return NULL; /* no gaps */
    b->number[i] = from, b->number[i + 1] = to, b->number[b->n + 1 + i] = count;
    return end + 1;
}

/* What eval --histogram FILE.csv wrote. */
static dlrn_status read_bins(plot *p, const char *path) {
    static const char head[] = "from,to,features\n";
    char *bytes = NULL;
    size_t size;
    int lines = 0, i = 0;
    dlrn_status s = dlrn_file_read(p->ctx, path, &bytes, &size);
    if (s != DLRN_OK) return s;
    for (const char *at = bytes; (at = strchr(at, '\n')); at++) lines++;
    const char *line = strncmp(bytes, head, sizeof head - 1) ? NULL : bytes + sizeof head - 1;
    plot_bins *b = line && lines > 1 && lines < 10000
                       ? add_bins(p, path, lines - 1, "firing frequency (share of the rows)", path)
                       : NULL;
    while (b && line && i < b->n) line = read_bin(line, b, i++);
    if (!line || lines < 2 || lines >= 10000)
        s = dlrn_fail(p->ctx, DLRN_ERR_FORMAT,
                      "%s: line %d: expected %s as eval --histogram writes them", path, i + 1,
                      i ? "from,to,features, numbers" : "the line from,to,features, and bins,");
    else if (!b)
        s = DLRN_ERR_MEMORY; /* told by add_bins */
    dlrn_free(p->ctx, bytes);
    return s;
}

/* The max cosines of one side of a comparison. */
static dlrn_status read_cosines(plot *p, const char *path, const dlrn_json *of,
                                const dlrn_json *other) {
    const dlrn_json *list = dlrn_json_get(of, "histogram");
    char x_name[300], y_name[300];
    int i = 0;
    if (!list || list->type != DLRN_JSON_ARRAY || list->count < 1 || list->count > 1000)
        return dlrn_fail(p->ctx, DLRN_ERR_FORMAT,
                         "%s: expected histograms, as compare --json prints them", path);
    snprintf(x_name, sizeof x_name, "max cosine with an atom of %.200s",
             dlrn_json_text(other, "path", "the other"));
    snprintf(y_name, sizeof y_name, "features of %.200s", dlrn_json_text(of, "path", "one"));
    plot_bins *b = add_bins(p, path, (int)list->count, x_name, y_name);
    if (!b) return DLRN_ERR_MEMORY;
    for (const dlrn_json *v = list->first; v; v = v->next, i++) {
        if (v->type != DLRN_JSON_NUMBER || !(v->number >= 0) || !is_finite(v->number))
            return dlrn_fail(p->ctx, DLRN_ERR_FORMAT, "%s: expected counts in its histograms",
                             path);
        b->number[i + 1] = (double)(i + 1) / b->n;
        b->number[b->n + 1 + i] = v->number;
    }
    return DLRN_OK;
}

/* What compare --json printed. */
static dlrn_status read_comparisons(plot *p, const char *path, const dlrn_json *root) {
    const dlrn_json *c = dlrn_json_get(root, "comparisons")->first;
    dlrn_status s = DLRN_OK;
    if (!c) return dlrn_fail(p->ctx, DLRN_ERR_VALUE, "%s: expected comparisons, found none", path);
    for (; c && s == DLRN_OK; c = c->next) {
        const dlrn_json *a = dlrn_json_get(c, "first"), *b = dlrn_json_get(c, "second");
        s = read_cosines(p, path, a, b);
        if (s == DLRN_OK) s = read_cosines(p, path, b, a);
    }
    return s;
}

/* ---- what a word names */

/* A word, its kind, and what was read of it to tell. */
typedef struct plot_word {
    const char *word;
    char path[TEXT_MAX + 64]; /* of the file */
    plot_kind kind;
    dlrn_json *root; /* of a JSON file; otherwise NULL */
} plot_word;

static int is_list(const dlrn_json *object, const char *key) {
    const dlrn_json *v = dlrn_json_get(object, key);
    return v && v->type == DLRN_JSON_ARRAY;
}

/* Finds out what a word names. */
static dlrn_status open_word(plot *p, const char *word, plot_word *w) {
    memset(w, 0, sizeof *w);
    w->word = word;
    snprintf(w->path, sizeof w->path, "%s", word);
    if (dlrn_file_exists(p->ctx, word) == 2) {
        snprintf(w->path, sizeof w->path, "%s/sweep.json", word);
        if (dlrn_file_exists(p->ctx, w->path) != 1) {
            snprintf(w->path, sizeof w->path, "%s/log.jsonl", word);
            if (dlrn_file_exists(p->ctx, w->path) == 1) return DLRN_OK; /* PLOT_LOG */
            return dlrn_fail(p->ctx, DLRN_ERR_FORMAT,
                             "%s: expected a folder of train or sweep, found no log.jsonl and no "
                             "sweep.json in it",
                             word);
        }
    }
    if (ends_with(w->path, ".jsonl")) return DLRN_OK;
    w->kind = PLOT_BINS;
    if (ends_with(w->path, ".csv")) return DLRN_OK;
    dlrn_status s = read_object(p->ctx, w->path, &w->root);
    if (s != DLRN_OK) return s;
    if (!is_list(w->root, "comparisons")) w->kind = PLOT_EVAL;
    if (is_list(w->root, "members")) w->kind = PLOT_SWEEP;
    if (w->kind == PLOT_SWEEP && p->o->x_axis && !strcmp(p->o->x_axis, "step")) w->kind = PLOT_LOG;
    return DLRN_OK;
}

/* Reads what a word names. */
static dlrn_status read_word(plot *p, const plot_word *w) {
    char folder[TEXT_MAX + 64];
    const char *slash = strrchr(w->path, '/');
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - w->path) : 1,
             slash ? w->path : ".");
    if (w->kind == PLOT_LOG && !w->root) return read_log(p, w->path, w->word);
    if (w->kind == PLOT_LOG || w->kind == PLOT_SWEEP)
        return read_sweep(p, w->path, folder, w->root, w->kind == PLOT_LOG);
    if (w->kind == PLOT_EVAL) return read_evaluation(p, w->path, w->root);
    return w->root ? read_comparisons(p, w->path, w->root) : read_bins(p, w->path);
}

/* Sweeps and evaluations go into one picture; others with their kind alone. */
static int goes_with(plot_kind a, plot_kind b) {
    const int points_a = a == PLOT_SWEEP || a == PLOT_EVAL;
    return a == b || (points_a && (b == PLOT_SWEEP || b == PLOT_EVAL));
}

static const char *kind_name(plot_kind kind) {
    static const char *const names[] = {"a log", "a sweep", "an evaluation", "a histogram"};
    return names[kind];
}

/* ---- keys */

/* The keys of the axes: those of the flags, or those that are usual for a kind. 0, or the exit
   status of a wrong call. */
static int set_keys(plot *p, plot_kind kind) {
    static const char *const usual[2] = {
        "loss,mse_loss,variance_explained,l0,dead,lr",
        "variance_explained,ce_recovered,mse_loss,dead",
    };
    const options *o = p->o;
    p->key[p->keys++] = o->x_axis ? o->x_axis : kind == PLOT_LOG ? "step" : "l0";
    p->chosen = o->y_axis != NULL;
    snprintf(p->words, sizeof p->words, "%s", o->y_axis ? o->y_axis : usual[kind != PLOT_LOG]);
    for (char *at = p->words; at; p->keys++) {
        if (p->keys == PLOT_KEYS)
            return usage_error("plot", "expected at most 12 keys as --y", o->y_axis);
        char *end = strchr(at, ',');
        if (end) *end = 0;
        if (!*at) return usage_error("plot", "expected keys with commas as --y", o->y_axis);
        p->key[p->keys] = at;
        at = end ? end + 1 : NULL;
    }
    return 0;
}

/* ---- figures */

/* Whether a key of the vertical axes has numbers in any run. */
static int is_shown(const plot *p, int key) {
    for (int r = 0; r < p->runs; r++)
        if (has_key(p, &p->run[r], key)) return 1;
    return 0;
}

static dlrn_status nothing_to_show(const plot *p) {
    return dlrn_fail(p->ctx, DLRN_ERR_VALUE, "%s: expected numbers to draw over '%s', found none",
                     p->o->path, p->key[0]);
}

/* A panel for each key, a curve for each run. */
static dlrn_status draw_curves(plot *p) {
    figure_panel panel[FIGURE_PANELS];
    figure fig = {p->title, panel, 0};
    figure_series *series = (figure_series *)calloc((size_t)(p->runs * p->keys), sizeof *series);
    if (!series) return no_memory(p->ctx);
    for (int k = 1; k < p->keys; k++) {
        figure_series *own = series + (ptrdiff_t)k * p->runs;
        if (!is_shown(p, k)) continue;
        for (int r = 0; r < p->runs; r++) {
            const plot_run *run = &p->run[r];
            const figure_series s = {run->name, run->value, run->value + k, run->n, p->keys, NULL};
            own[r] = s;
        }
        const figure_panel next = {p->key[0], p->key[k], FIGURE_LINES, own, p->runs};
        panel[fig.panels++] = next;
    }
    if (!*p->title)
        snprintf(p->title, sizeof p->title,
                 p->runs > 1 ? "Training of %.0s%d runs" : "Training of %.150s", p->run[0].name,
                 p->runs);
    dlrn_status s = fig.panels ? draw_figure(p->ctx, p->o->out, &fig) : nothing_to_show(p);
    free(series);
    return s;
}

/* The points of all runs that have both numbers, of a key. Returns how many. */
static int collect_points(const plot *p, int key, frontier_point *points) {
    int n = 0;
    for (int r = 0; r < p->runs; r++) {
        const plot_run *run = &p->run[r];
        for (int64_t i = 0; i < run->n; i++) {
            const double *row = run->value + i * p->keys;
            const frontier_point point = {row[0], row[key], run->label[i], run->name};
            points[n++] = point;
        }
    }
    return n;
}

/* A panel for each key, a line for each sweep. */
static dlrn_status draw_points(plot *p) {
    const char *y_name[FIGURE_PANELS];
    int64_t rows = 0;
    int panels = 0, n = 0;
    for (int r = 0; r < p->runs; r++) rows += p->run[r].n;
    frontier_point *points = (frontier_point *)calloc((size_t)(rows * p->keys), sizeof *points);
    if (!points) return no_memory(p->ctx);
    for (int k = 1; k < p->keys; k++) {
        if (!is_shown(p, k)) continue;
        n = collect_points(p, k, points + rows * panels);
        y_name[panels++] = p->key[k];
    }
    if (!*p->title || p->runs > 1) snprintf(p->title, sizeof p->title, "%d dictionaries", n);
    dlrn_status s =
        panels ? draw_frontiers(p->ctx, p->o->out, p->title, p->key[0], y_name, panels, points, n)
               : nothing_to_show(p);
    free(points);
    return s;
}

/* A panel for each histogram. */
static dlrn_status draw_bins(plot *p) {
    figure_panel panel[FIGURE_PANELS];
    figure_series series[FIGURE_PANELS];
    const figure fig = {p->title, panel, p->n_bins};
    snprintf(p->title, sizeof p->title, p->o->path2 ? "%.0s%d histograms" : "%.150s", p->o->path,
             p->n_bins);
    for (int i = 0; i < p->n_bins; i++) {
        const plot_bins *b = &p->bins[i];
        const char *y_name = p->n_bins > 1 ? b->y_name : "features";
        const figure_series s = {NULL, b->number, b->number + b->n + 1, b->n, 1, NULL};
        const figure_panel next = {b->x_name, y_name, FIGURE_BARS, &series[i], 1};
        series[i] = s, panel[i] = next;
    }
    return draw_figure(p->ctx, p->o->out, &fig);
}

/* ---- the command */

/* Reads all words. 0, 1 for an error that the context has, or the exit status of a wrong call. */
static int read_words(plot *p, plot_kind *kind) {
    const char *word;
    int at = 0, words = 0, status = 0;
    while (!status && (word = next_word(p->o, &at))) {
        plot_word w;
        dlrn_status s = open_word(p, word, &w);
        if (s == DLRN_OK && !words++) {
            *kind = w.kind;
            status = w.kind == PLOT_BINS ? 0 : set_keys(p, w.kind);
        }
        if (s == DLRN_OK && !goes_with(*kind, w.kind))
            s = dlrn_fail(p->ctx, DLRN_ERR_VALUE, "%s: expected %s, as %s is, found %s", word,
                          kind_name(*kind), p->o->path, kind_name(w.kind));
        if (s == DLRN_OK && !status) s = read_word(p, &w);
        if (s != DLRN_OK) status = 1;
        dlrn_free(p->ctx, w.root);
    }
    return status;
}

static int run_plot(dlrn_context *ctx, const options *o) {
    static plot p; /* too large for some stacks */
    plot_kind kind = PLOT_LOG;
    if (lacks_flag("plot", "--out", o->out)) return 2;
    int status = strcmp(o->out, "-") ? check_suffix("plot", o->out, ".svg", "") : 0;
    if (status) return status;
    memset(&p, 0, sizeof p);
    p.ctx = ctx, p.o = o;
    status = read_words(&p, &kind);
    if (!status) {
        dlrn_status s = kind == PLOT_LOG    ? draw_curves(&p)
                        : kind == PLOT_BINS ? draw_bins(&p)
                                            : draw_points(&p);
        status = s != DLRN_OK;
    }
    plot_free(&p);
    return status == 1 ? fail(ctx) : status;
}
