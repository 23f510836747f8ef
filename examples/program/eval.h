/* dictlearn eval: the table, the JSON object, the histogram. */

/* Figures of other libraries, under their names: SAELens and SAEBench, and of those with a model
   SAELens' names for the cross-entropies. */
typedef struct named_figure {
    const char *name;
    size_t at; /* offset in dlrn_metrics */
} named_figure;

#define LENS(field)                                                                                \
    { #field, offsetof(dlrn_metrics, saelens.field) }
#define BENCH(field)                                                                               \
    { #field, offsetof(dlrn_metrics, saebench.field) }
static const named_figure saelens_figures[] = {
    LENS(l0),
    LENS(l1),
    LENS(l2_norm_in),
    LENS(l2_norm_out),
    LENS(l2_ratio),
    LENS(relative_reconstruction_bias),
    LENS(mse),
    LENS(cossim),
    LENS(explained_variance),
    LENS(explained_variance_legacy),
    {"ce_loss_score", offsetof(dlrn_metrics, share_recovered)},
    {"ce_loss_without_sae", offsetof(dlrn_metrics, loss_original)},
    {"ce_loss_with_sae", offsetof(dlrn_metrics, loss_reconstructed)},
    {"ce_loss_with_ablation", offsetof(dlrn_metrics, loss_zero)}};
static const named_figure saebench_figures[] = {BENCH(frac_alive),
                                                BENCH(freq_over_1_percent),
                                                BENCH(freq_over_10_percent),
                                                BENCH(normalized_freq_over_1_percent),
                                                BENCH(normalized_freq_over_10_percent),
                                                BENCH(saebench_explained_variance)};
#undef LENS
#undef BENCH
enum {
    SAEBENCH_FIGURES = sizeof saebench_figures / sizeof *saebench_figures,
    SAELENS_FIGURES = sizeof saelens_figures / sizeof *saelens_figures,
    SAELENS_OF_ROWS = SAELENS_FIGURES - 4 /* those before the cross-entropies */
};

static double figure_of(const dlrn_metrics *m, const named_figure *f) {
    double value;
    memcpy(&value, (const char *)m + f->at, sizeof value);
    return value;
}

/* What eval prints. */
typedef struct eval_result {
    dlrn_metrics m;
    double weight[DLRN_WEIGHT_COUNT]; /* with --weights: means over the features        */
    double top;                       /* the variance's share in the farthest 1 % rows  */
} eval_result;

static void json_figures(json_writer *j, const char *key, const dlrn_metrics *m,
                         const named_figure *f, int n) {
    json_open(j, key, '{');
    for (int i = 0; i < n; i++) json_real(j, f[i].name, 9, figure_of(m, &f[i]));
    json_close(j, '}');
}

/* One object for each layer of a dictionary of several. */
static void json_layers(json_writer *j, const dlrn_metrics *m) {
    json_open(j, "layers", '[');
    for (int64_t l = 0; l < m->layers; l++) {
        json_open(j, NULL, '{');
        json_real(j, "mse_loss", 9, m->layer[l].mse_loss);
        json_real(j, "variance_explained", 9, m->layer[l].variance_explained);
        json_real(j, "explained_variance", 9, m->layer[l].explained_variance);
        json_real(j, "l0", 9, m->layer[l].l0);
        json_real(j, "percent_alive", 9, m->layer[l].share_alive);
        json_close(j, '}');
    }
    json_close(j, ']');
}

/* The name of a mean of the weights' figures: SAEBench's, which begin with average_. */
static const char *weight_name(int i, char *name, size_t size) {
    snprintf(name, size, "average_%s", dlrn_name(DLRN_NAMES_WEIGHT, i));
    return name;
}

static void json_weights(json_writer *j, const double *mean) {
    char name[64];
    json_open(j, "weights", '{');
    for (int i = 0; i < DLRN_WEIGHT_COUNT; i++)
        json_real(j, weight_name(i, name, sizeof name), 9, mean[i]);
    json_close(j, '}');
}

/* The keys of the outer object are the reference's, for scripts that read its results. */
static void json_reference(json_writer *j, const options *o, const dlrn_metrics *m) {
    const struct {
        const char *key;
        double value;
    } of_rows[] = {{"mse_loss", m->mse_loss},
                   {"sparsity_loss", m->sparsity_loss},
                   {"variance_explained", m->variance_explained},
                   {"l0", m->l0},
                   {"percent_alive", m->share_alive},
                   {"l2_loss", m->l2_loss},
                   {"cosine", m->cosine},
                   {"l2_ratio", m->l2_ratio},
                   {"relative_reconstruction_bias", m->relative_reconstruction_bias},
                   {"variance_explained_per_dim", m->variance_explained_per_dim}},
      of_model[] = {{"loss_original", m->loss_original},
                    {"loss_reconstructed", m->loss_reconstructed},
                    {"loss_zero", m->loss_zero},
                    {"ce_diff", m->ce_diff},
                    {"percent_recovered", m->share_recovered}};
    for (size_t i = 0; i < sizeof of_rows / sizeof *of_rows; i++)
        json_real(j, of_rows[i].key, 9, of_rows[i].value);
    for (size_t i = 0; o->model && i < sizeof of_model / sizeof *of_model; i++)
        json_real(j, of_model[i].key, 9, of_model[i].value);
    if (o->model) json_int(j, "tokens", m->tokens);
}

static void print_eval_json(const options *o, const eval_result *r) {
    const dlrn_metrics *m = &r->m;
    json_writer j = {stdout, 0};
    json_open(&j, NULL, '{');
    json_text(&j, "mode", o->compat ? "compat" : "default");
    json_int(&j, "rows", m->rows);
    json_int(&j, "documents", m->documents);
    json_reference(&j, o, m);
    json_int(&j, "dead", m->dead);
    json_int(&j, "dense", m->dense);
    json_real(&j, "variance_share_of_top_1_percent", 6, r->top);
    if (m->layer) json_layers(&j, m);
    json_figures(&j, "saelens", m, saelens_figures, o->model ? SAELENS_FIGURES : SAELENS_OF_ROWS);
    json_figures(&j, "saebench", m, saebench_figures, SAEBENCH_FIGURES);
    if (o->weights) json_weights(&j, r->weight);
    json_close(&j, '}');
    putchar('\n');
}

/* Prints a row of the table; NaN: not measured. */
static void put_figure(const char *name, int decimals, double value, const char *unit) {
    printf("  %-18s  ", name);
    if (value == value)
        printf("%8.*f%s\n", decimals, value, unit);
    else
        puts("not measured");
}

/* A figure under another library's name, which may be long; none if it was not measured. */
static void put_named(const char *name, double value) {
    if (value == value) printf("  %-32s  %11.6g\n", name, value);
}

/* The figures of each layer as columns. */
static void put_layers(const dlrn_metrics *m) {
    if (!m->layer) return;
    puts("  layer   variance explained      MSE        L0     alive");
    for (int64_t l = 0; l < m->layers; l++) {
        const dlrn_layer_metrics *a = &m->layer[l];
        printf("  %5lld   %15.2f %%  %10.4g", (long long)l, 100 * a->variance_explained,
               a->mse_loss);
        if (a->l0 == a->l0)
            printf("  %8.2f  %6.2f %%\n", a->l0, 100 * a->share_alive);
        else
            puts("    shared");
    }
}

/* The second table: what SAELens and SAEBench would print. */
static void put_other_libraries(const options *o, const eval_result *r) {
    char name[64];
    puts("in SAELens' and SAEBench's terms");
    for (int i = 0; i < SAELENS_OF_ROWS; i++)
        put_named(saelens_figures[i].name, figure_of(&r->m, &saelens_figures[i]));
    for (int i = 0; i < SAEBENCH_FIGURES; i++)
        put_named(saebench_figures[i].name, figure_of(&r->m, &saebench_figures[i]));
    for (int i = 0; o->weights && i < DLRN_WEIGHT_COUNT; i++)
        put_named(weight_name(i, name, sizeof name), r->weight[i]);
}

/* Prints the figures for people; fractions as percents. */
static void print_eval_table(const options *o, const eval_result *r) {
    const dlrn_metrics *m = &r->m;
    printf("%lld rows, %s formulas\n", (long long)m->rows,
           o->compat ? "the reference's" : "default");
    put_figure("variance explained", 2, 100 * m->variance_explained, " %");
    put_figure(o->entropy ? "entropy" : "L1", 2, m->sparsity_loss, "");
    put_figure("L0", 2, m->l0, "");
    put_figure("alive", 2, 100 * m->share_alive, " %");
    printf("  MSE                 %8.4g\n", m->mse_loss);
    put_figure("cosine", 4, m->cosine, "");
    put_figure("||x_hat|| / ||x||", 4, m->l2_ratio, "");
    printf("  dead, dense         %lld, %lld\n", (long long)m->dead, (long long)m->dense);
    put_layers(m);
    if (o->model) {
        printf("%lld documents, %lld next tokens, nats a token\n", (long long)m->documents,
               (long long)m->tokens);
        put_figure("CE original", 4, m->loss_original, "");
        put_figure("CE reconstructed", 4, m->loss_reconstructed, "");
        put_figure("CE zero ablation", 4, m->loss_zero, "");
        put_figure("CE diff", 4, m->ce_diff, "");
        put_figure("CE recovered", 2, 100 * m->share_recovered, " %");
    }
    put_other_libraries(o, r);
}

enum { BINS = 50, TEXT_BINS = 15, BAR = 50 };

/* Prints firing frequencies as bars of text: number of features in a bin, three bins a decade. */
static dlrn_status print_histogram(const dlrn_evaluator *e) {
    double edge[TEXT_BINS + 1];
    int64_t count[TEXT_BINS], max = 1;
    dlrn_status s = dlrn_evaluator_histogram(e, TEXT_BINS, edge, count);
    if (s != DLRN_OK) return s;
    for (int b = 0; b < TEXT_BINS; b++) max = count[b] > max ? count[b] : max;
    printf("features by how often they fire (share of the rows)\n");
    for (int b = 0; b < TEXT_BINS; b++) {
        int bar = (int)((count[b] * BAR + max - 1) / max);
        printf("  %7.1e to %7.1e %6lld ", edge[b], edge[b + 1], (long long)count[b]);
        while (bar-- > 0) putchar('#');
        putchar('\n');
    }
    return DLRN_OK;
}

/* The histogram as bars. never: how many features are in no bar. */
static dlrn_status draw_histogram(dlrn_context *ctx, const char *path, const double *edge,
                                  const int64_t *count, int64_t never) {
    double number[BINS];
    char title[80];
    const figure_series series = {NULL, edge, number, BINS, 1, NULL};
    const figure_panel panel = {"firing frequency (share of the rows)", "features", FIGURE_BARS,
                                &series, 1};
    const figure fig = {title, &panel, 1};
    for (int b = 0; b < BINS; b++) number[b] = (double)count[b];
    snprintf(title, sizeof title, "How often features fire (%lld never do)", (long long)never);
    return draw_figure(ctx, path, &fig);
}

/* Writes the histogram as CSV or SVG, or prints it for -. */
static dlrn_status write_histogram(dlrn_context *ctx, const dlrn_evaluator *e, const char *path,
                                   int64_t never) {
    double edge[BINS + 1];
    int64_t count[BINS];
    page text;
    if (!strcmp(path, "-")) return print_histogram(e);
    dlrn_status s = dlrn_evaluator_histogram(e, BINS, edge, count);
    if (s != DLRN_OK || !is_first()) return s;
    if (ends_with(path, ".svg")) return draw_histogram(ctx, path, edge, count, never);
    s = page_open(ctx, &text);
    if (s != DLRN_OK) return s;
    fputs("from,to,features\n", text.f);
    for (int b = 0; b < BINS; b++)
        fprintf(text.f, "%.6e,%.6e,%lld\n", edge[b], edge[b + 1], (long long)count[b]);
    s = page_end(ctx, &text);
    if (s == DLRN_OK) s = dlrn_file_write(ctx, path, text.text, text.size);
    page_free(&text);
    return s;
}

/* How unevenly the variance is spread over the rows: a few rows a hundred times as long as the
   others rule every figure. Squared distances from the mean of the first rows, in bins of a
   sixteenth of a power of two, so that any number of rows needs the same memory. */
enum { SPREAD_BINS = 4096 };
typedef struct spread {
    int64_t rows;
    float *center; /* [d]; NULL before the first rows */
    int64_t count[SPREAD_BINS];
    double sum[SPREAD_BINS];
} spread;

/* Adds rows x [n][d]; the first call's rows tell the center. */
static dlrn_status spread_add(dlrn_context *ctx, spread *s, const float *x, int64_t n, int64_t d) {
    if (!s->center) {
        s->center = (float *)dlrn_alloc(ctx, d, sizeof *s->center);
        if (!s->center) return DLRN_ERR_MEMORY;
        for (int64_t j = 0; j < d; j++) {
            double sum = 0;
            for (int64_t i = 0; i < n; i++) sum += (double)x[i * d + j];
            s->center[j] = (float)(sum / (double)n);
        }
    }
    for (int64_t i = 0; i < n; i++) {
        double square = 0;
        for (int64_t j = 0; j < d; j++) {
            double from = (double)x[i * d + j] - (double)s->center[j];
            square += from * from;
        }
        int bin = square > 0 ? (int)(16 * log2(square)) + SPREAD_BINS / 2 : 0;
        bin = bin < 0 ? 0 : bin >= SPREAD_BINS ? SPREAD_BINS - 1 : bin;
        s->count[bin]++;
        s->sum[bin] += square;
    }
    s->rows += n;
    return DLRN_OK;
}

/* The share of the variance that the hundredth of the rows farthest from the mean has. */
static double spread_top(const spread *s) {
    double all = 0, top = 0, left = (double)s->rows / 100;
    for (int b = SPREAD_BINS - 1; b >= 0; b--) {
        double taken = (double)s->count[b] < left ? (double)s->count[b] : left;
        all += s->sum[b];
        if (s->count[b]) top += s->sum[b] * (taken / (double)s->count[b]);
        left -= taken;
    }
    return all > 0 ? top / all : 0;
}

/* Says so where they hold half of it. Of fewer than 100 rows that means nothing. */
static void spread_tell(const spread *s) {
    if (s->rows >= 100 && spread_top(s) >= 0.5)
        fprintf(stderr,
                "dictlearn: note: 1 %% of the rows hold %.1f %% of the variance and rule the "
                "figures: see --max-norm-ratio, --skip-first and --skip-special\n",
                100 * spread_top(s));
}

/* Dictionaries that are measured on the same rows, read once. */
typedef struct judged {
    int count;
    const dlrn_dictionary *const *dict; /* [count] */
    dlrn_evaluator *const *e;           /* [count] */
    dlrn_metrics *m;                    /* [count] their figures */
    spread *spread;                     /* of the rows */
} judged;

/* Adds rows x [n][d] and targets y [n][d_out] (NULL: x) for all of them. */
static dlrn_status judged_add(dlrn_context *ctx, judged *j, const float *x, const float *y,
                              int64_t n, int64_t d, int64_t d_out) {
    dlrn_status s = DLRN_OK;
    for (int i = 0; i < j->count && s == DLRN_OK; i++) s = dlrn_evaluator_add(j->e[i], x, y, n);
    if (s == DLRN_OK) s = spread_add(ctx, j->spread, y ? y : x, n, y ? d_out : d);
    return dlrn_agree(ctx, s);
}

static dlrn_status judged_finish(judged *j) {
    dlrn_status s = DLRN_OK;
    for (int i = 0; i < j->count && s == DLRN_OK; i++) s = dlrn_evaluator_finish(j->e[i], &j->m[i]);
    return s;
}

/* Rows go to the evaluators as the model reaches the site. */
typedef struct row_feed {
    model_text *mt;
    judged *judged;
    int64_t left;
} row_feed;

/* Marks which of the n rows of a visit count. *s says whether the marks can be used; free them with
   dlrn_free either way. */
static unsigned char *chosen_rows(model_text *mt, const float *x, int64_t n, dlrn_status *s) {
    unsigned char *keep = (unsigned char *)dlrn_alloc(mt->ctx, n, 1);
    lm_choice choice = mt->reading.choice;
    choice.left_out = NULL; /* the caller counts: it may want fewer rows */
    *s = DLRN_ERR_MEMORY;
    if (keep)
        *s = lm_choose(mt->model, &choice, mt->visited, x, lm_site_width(mt->model, mt->tap.x),
                       keep);
    return keep;
}

/* Adds the rows that count, of the first that are still wanted. */
static dlrn_status feed_rows(void *user, int tap, const float *x, float *y, int64_t n) {
    row_feed *f = (row_feed *)user;
    const int64_t d = lm_site_width(f->mt->model, f->mt->tap.x);
    const int64_t d_out = lm_site_width(f->mt->model, f->mt->tap.y);
    int64_t end = n < f->left ? n : f->left;
    dlrn_status s;
    unsigned char *keep = chosen_rows(f->mt, x, n, &s);
    (void)tap;
    for (int64_t i = 0, k; i < end && s == DLRN_OK; i += k) {
        for (k = 1; i + k < end && keep[i + k] == keep[i];) k++;
        if (!keep[i]) {
            f->mt->left_out += k;
            continue;
        }
        s = judged_add(f->mt->ctx, f->judged, x + i * d, y ? y + i * d_out : NULL, k, d, d_out);
    }
    f->left -= end;
    dlrn_free(f->mt->ctx, keep);
    return s;
}

/* Reads documents until there are enough of them and of their rows. The text is read once, so it
   may be standard input. */
static dlrn_status read_texts(model_text *mt, const options *o, int64_t rows, int64_t documents,
                              lm_documents *texts) {
    dlrn_status s = DLRN_OK;
    while (s == DLRN_OK &&
           (!texts->count || texts->count < documents || texts->start[texts->count] < rows)) {
        s = lm_read_documents(mt->model, mt->tok, mt->docs, &mt->reading, 16, texts);
        if (stopping(NULL)) s = DLRN_STOPPED;
    }
    if (s == DLRN_END && texts->count == 0)
        return dlrn_fail(mt->ctx, DLRN_ERR_VALUE, "%s: expected documents, found none", o->text);
    return s == DLRN_END ? DLRN_OK : s;
}

/* The documents from `i` on that the model runs at once. */
static lm_batch next_batch(const lm_documents *texts, int64_t i) {
    int64_t end = i + 1;
    while (end < texts->count && texts->start[end + 1] - texts->start[i] <= LM_BATCH_TOKENS) end++;
    const lm_batch batch = {texts->id, texts->start + i, end - i};
    return batch;
}

/* visit_texts on several ranks: they run a batch each, and then visit all of them in order. */
static dlrn_status visit_shared(model_text *mt, const lm_documents *texts, int64_t rows,
                                lm_visit visit, void *user) {
    lm_batch *batch = (lm_batch *)dlrn_alloc(mt->ctx, ranks.ranks, sizeof *batch);
    dlrn_status s = dlrn_agree(mt->ctx, batch ? DLRN_OK : DLRN_ERR_MEMORY);
    for (int64_t i = 0; i < texts->count && texts->start[i] < rows && s == DLRN_OK;) {
        kept_rows all;
        int count = 0;
        for (; count < ranks.ranks && i < texts->count && texts->start[i] < rows; count++) {
            batch[count] = next_batch(texts, i);
            i += batch[count].sequences;
        }
        s = ranks_tell_stop(mt->ctx);
        if (s == DLRN_OK && stopping(NULL)) s = DLRN_STOPPED;
        if (s != DLRN_OK) break;
        s = ranks_run_batches(mt->ctx, mt->model, &mt->tap, batch, count, &all);
        float *x = all.x, *y = all.y ? all.y : all.x;
        for (int b = 0; b < count && s == DLRN_OK; b++) {
            const int64_t n = batch[b].start[batch[b].sequences] - batch[b].start[0];
            mt->visited = &batch[b];
            s = visit(user, 0, x, y, n);
            x += n * all.d;
            y += n * (all.d_out ? all.d_out : all.d);
        }
        s = dlrn_agree(mt->ctx, s);
        kept_free(mt->ctx, &all);
    }
    dlrn_free(mt->ctx, batch);
    return s;
}

/* Runs the model over whole documents until `rows` rows were visited. */
static dlrn_status visit_texts(model_text *mt, const lm_documents *texts, int64_t rows,
                               lm_visit visit, void *user) {
    dlrn_status s = DLRN_OK;
    if (ranks_several()) return visit_shared(mt, texts, rows, visit, user);
    for (int64_t i = 0; i < texts->count && texts->start[i] < rows && s == DLRN_OK;) {
        const lm_batch batch = next_batch(texts, i);
        i += batch.sequences;
        mt->visited = &batch;
        s = stopping(NULL) ? DLRN_STOPPED : lm_run(mt->model, &batch, &mt->tap, 1, visit, user, 0);
    }
    return s;
}

/* The cross-entropy of documents: those read for the rows have them at their beginning. */
static dlrn_status judge_losses(model_text *mt, const options *o, lm_documents *texts,
                                int64_t documents, judged *j) {
    dlrn_language_model lm;
    dlrn_status s = DLRN_OK;
    if (texts->count > documents) texts->count = documents;
    lm_documents own = ranks_share_documents(texts);
    lm_judge judge = {mt->model, &own, &mt->tap, 1, chooses_rows(o) ? &mt->reading.choice : NULL};
    lm_language_model(&judge, &lm);
    for (int i = 0; i < j->count && s == DLRN_OK; i++)
        s = dlrn_loss_recovered(mt->ctx, &j->dict[i], &lm, &j->m[i]);
    return s;
}

/* Figures of the next rows of a text, then the cross-entropy of its next documents, of which there
   may be 0. */
static dlrn_status evaluate_model(model_text *mt, const options *o, int64_t rows, int64_t documents,
                                  judged *j) {
    lm_documents texts;
    row_feed fed = {mt, j, rows};
    memset(&texts, 0, sizeof texts);
    dlrn_status s = dlrn_agree(mt->ctx, read_texts(mt, o, rows, documents, &texts));
    if (s == DLRN_OK && ranks_several())
        s = ranks_compare(mt->ctx, texts.id, (size_t)texts.start[texts.count] * sizeof *texts.id,
                          o->text);
    if (s == DLRN_OK) s = visit_texts(mt, &texts, rows, feed_rows, &fed);
    if (s == DLRN_OK) s = judged_finish(j);
    if (s == DLRN_OK && documents) s = judge_losses(mt, o, &texts, documents, j);
    lm_documents_free(&texts);
    return s;
}

/* Figures of the next `rows` rows of an array. */
static dlrn_status evaluate_array(feed *f, int64_t rows, judged *j) {
    dlrn_context *ctx = f->ctx;
    dlrn_source in = feed_source(f), *source = &in;
    dlrn_tensor x, y;
    int64_t done = 0;
    memset(&y, 0, sizeof y);
    dlrn_status s = dlrn_tensor_alloc(ctx, BLOCK, source->d_in, &x);
    if (s == DLRN_OK) s = dlrn_tensor_alloc(ctx, source->d_out ? BLOCK : 0, source->d_out, &y);
    s = dlrn_agree(ctx, s);
    while (s == DLRN_OK && done < rows) {
        int64_t n = 0, want = rows - done < BLOCK ? rows - done : BLOCK;
        s = source->read(source->user, want, x.data, y.data, &n);
        if (s == DLRN_OK)
            s = judged_add(ctx, j, x.data, source->d_out ? y.data : NULL, n, source->d_in,
                           source->d_out);
        done += n;
    }
    dlrn_free(ctx, x.data);
    dlrn_free(ctx, y.data);
    if (s == DLRN_END && done == 0) return feed_empty(f);
    return s == DLRN_OK || s == DLRN_END ? judged_finish(j) : feed_failed(f, s);
}

/* How many rows the figures are of. */
static int64_t rows_wanted(const options *o) {
    return o->rows > 0 ? o->rows : dlrn_eval_defaults().rows;
}

/* Measures on rows of the model or of the array, and the weights if that is wanted. */
static dlrn_status measure(const options *o, const dlrn_dictionary *dict, model_text *mt, feed *f,
                           dlrn_evaluator *e, eval_result *r) {
    static spread even; /* too large for some stacks */
    judged j = {1, &dict, &e, &r->m, &even};
    memset(&even, 0, sizeof even);
    dlrn_status s =
        o->model ? evaluate_model(mt, o, rows_wanted(o), o->documents > 0 ? o->documents : 128, &j)
                 : evaluate_array(f, rows_wanted(o), &j);
    if (s == DLRN_OK && o->weights) s = dlrn_weight_figures(dict, r->weight, NULL);
    if (s == DLRN_OK) spread_tell(&even);
    r->top = spread_top(&even);
    dlrn_free(dict->ctx, even.center);
    return s;
}

static dlrn_status evaluate(dlrn_context *ctx, const options *o, const dlrn_dictionary *dict,
                            model_text *mt, feed *f) {
    dlrn_evaluator *e = NULL;
    eval_result r;
    dlrn_eval_config cfg = dlrn_eval_defaults();
    cfg.sparsity = o->entropy ? DLRN_SPARSITY_ENTROPY : DLRN_SPARSITY_L1;
    cfg.compat = o->compat ? DLRN_ON : DLRN_OFF;
    cfg.saelens_batch = o->saelens_batch;
    dlrn_status s = dlrn_evaluator_create(dict, &cfg, &e);
    if (s == DLRN_OK) s = measure(o, dict, mt, f, e, &r);
    if (s == DLRN_OK && o->json) print_eval_json(o, &r);
    if (s == DLRN_OK && !o->json) print_eval_table(o, &r);
    if (s == DLRN_OK && o->histogram)
        s = dlrn_agree(ctx, write_histogram(ctx, e, o->histogram, r.m.dead));
    dlrn_evaluator_destroy(e);
    return s;
}

/* A model has one site here. A dictionary of several layers needs as many at once. */
static dlrn_status check_one_site(const options *o, const dlrn_dictionary *dict) {
    if (dict->layers == 1) return DLRN_OK;
    return dlrn_fail(dict->ctx, DLRN_ERR_UNSUPPORTED,
                     "%s: eval with --model: expected a dictionary of one layer, found one of %lld "
                     "layers: save their activations and give them as --data X.npy, [rows, %lld, "
                     "%lld]",
                     o->dict, (long long)dict->layers, (long long)dict->layers,
                     (long long)(dict->d_in / dict->layers));
}

static int run_eval(dlrn_context *ctx, const options *o) {
    dlrn_dictionary *dict = NULL;
    feed f;
    model_text mt;
    int status = lacks_flag("eval", "--dict", o->dict) ? 2 : check_source_flags("eval", o);
    if (!status && o->histogram && strcmp(o->histogram, "-"))
        status = check_suffix("eval", o->histogram, ".csv", ".svg");
    if (!status && o->skip_nonfinite && !o->data)
        status = usage_error("eval", "goes with --data", "--skip-nonfinite");
    if (status) return status;
    memset(&mt, 0, sizeof mt);
    feed_init(&f, ctx, o);
    dlrn_status s = load_dictionary(ctx, o->dict, o, &dict);
    if (s == DLRN_OK && o->model) s = check_one_site(o, dict);
    if (s == DLRN_OK && o->model) s = dlrn_agree(ctx, model_text_open(ctx, o, 1, &mt));
    if (s == DLRN_OK) {
        f.width = dict->d_in;
        f.target_width = dict->d_out;
    }
    if (s == DLRN_OK && o->data) s = feed_open(&f, 1);
    if (s == DLRN_OK && o->skip_nonfinite) s = feed_keep_finite(&f);
    if (s == DLRN_OK)
        s = o->model ? check_site_width(&mt, o, dict)
                     : expect_width(ctx, f.x_name, dict->d_in, f.inner.d_in);
    if (s == DLRN_OK && o->data)
        s = expect_width(ctx, o->target ? o->target : o->data, dict->d_out,
                         f.inner.d_out ? f.inner.d_out : f.inner.d_in);
    s = dlrn_agree(ctx, s);
    if (s == DLRN_OK) s = evaluate(ctx, o, dict, &mt, &f);
    feed_tell_skipped(&f);
    model_text_tell(&mt, o);
    status = s == DLRN_OK ? 0 : fail(ctx);
    feed_close(&f);
    model_text_close(&mt);
    dlrn_dictionary_destroy(dict);
    return status;
}
