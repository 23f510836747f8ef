/* dictlearn eval: the table, the JSON object, the histogram. */

/* The keys are the reference's, for scripts that read its results. */
static void print_eval_json(const options *o, const dlrn_metrics *m) {
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
    json_writer j = {stdout, 0};
    json_open(&j, NULL, '{');
    json_text(&j, "mode", o->compat ? "compat" : "default");
    json_int(&j, "rows", m->rows);
    json_int(&j, "documents", m->documents);
    for (size_t i = 0; i < sizeof of_rows / sizeof *of_rows; i++)
        json_real(&j, of_rows[i].key, 9, of_rows[i].value);
    for (size_t i = 0; o->model && i < sizeof of_model / sizeof *of_model; i++)
        json_real(&j, of_model[i].key, 9, of_model[i].value);
    if (o->model) json_int(&j, "tokens", m->tokens);
    json_int(&j, "dead", m->dead);
    json_int(&j, "dense", m->dense);
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

/* Prints the figures for people; fractions as percents. */
static void print_eval_table(const options *o, const dlrn_metrics *m) {
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
    if (!o->model) return;
    printf("%lld documents, %lld next tokens, nats a token\n", (long long)m->documents,
           (long long)m->tokens);
    put_figure("CE original", 4, m->loss_original, "");
    put_figure("CE reconstructed", 4, m->loss_reconstructed, "");
    put_figure("CE zero ablation", 4, m->loss_zero, "");
    put_figure("CE diff", 4, m->ce_diff, "");
    put_figure("CE recovered", 2, 100 * m->share_recovered, " %");
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

static const char svg_head[] =
    "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"540\" height=\"240\" "
    "font-family=\"sans-serif\" font-size=\"11\">\n"
    "<text x=\"20\" y=\"235\">firing frequency, 1e-5 to 1 (log scale)</text>\n";

/* A bin of the file: a bar of the SVG, or a line of the CSV. */
static void put_bin(FILE *f, int svg, int b, const double *edge, int64_t count, int64_t max) {
    double h = 200.0 * (double)count / (double)max;
    if (svg)
        fprintf(f,
                "<rect x=\"%d\" y=\"%.1f\" width=\"9\" height=\"%.1f\" fill=\"#36c\"><title>%.2e "
                "to %.2e: "
                "%lld</title></rect>\n",
                20 + 10 * b, 215 - h, h, edge[b], edge[b + 1], (long long)count);
    else
        fprintf(f, "%.6e,%.6e,%lld\n", edge[b], edge[b + 1], (long long)count);
}

/* Writes the histogram as CSV or SVG, or prints it for -. */
static dlrn_status write_histogram(dlrn_context *ctx, const dlrn_evaluator *e, const char *path) {
    double edge[BINS + 1];
    int64_t count[BINS], max = 1;
    page text;
    int svg = ends_with(path, ".svg");
    if (!strcmp(path, "-")) return print_histogram(e);
    dlrn_status s = dlrn_evaluator_histogram(e, BINS, edge, count);
    if (s != DLRN_OK) return s;
    for (int b = 0; b < BINS; b++) max = count[b] > max ? count[b] : max;
    s = page_open(ctx, &text);
    if (s != DLRN_OK) return s;
    fputs(svg ? svg_head : "from,to,features\n", text.f);
    for (int b = 0; b < BINS; b++) put_bin(text.f, svg, b, edge, count[b], max);
    fputs(svg ? "</svg>\n" : "", text.f);
    s = page_end(ctx, &text);
    if (s == DLRN_OK) s = dlrn_file_write(ctx, path, text.text, text.size);
    page_free(&text);
    return s;
}

/* Rows go to the evaluator as the model reaches the site. */
typedef struct row_feed {
    dlrn_evaluator *e;
    int64_t left;
} row_feed;

/* Adds the rows that are still wanted. */
static dlrn_status feed_rows(void *user, int tap, const float *x, float *y, int64_t n) {
    row_feed *f = (row_feed *)user;
    int64_t k = n < f->left ? n : f->left;
    (void)tap;
    f->left -= k;
    return dlrn_evaluator_add(f->e, x, y, k);
}

/* Reads documents until there are enough of them and of their rows. The text is read once, so it
   may be standard input. */
static dlrn_status read_texts(model_text *mt, const options *o, int64_t rows, int64_t documents,
                              lm_documents *texts) {
    dlrn_status s = DLRN_OK;
    while (s == DLRN_OK && (texts->count < documents || texts->start[texts->count] < rows)) {
        s = lm_read_documents(mt->model, mt->tok, mt->docs, &mt->reading, 16, texts);
        if (stopping(NULL)) s = DLRN_STOPPED;
    }
    if (s == DLRN_END && texts->count == 0)
        return dlrn_fail(mt->ctx, DLRN_ERR_VALUE, "%s: expected documents, found none", o->text);
    return s == DLRN_END ? DLRN_OK : s;
}

/* Runs the model over whole documents until `rows` rows were visited. */
static dlrn_status visit_texts(model_text *mt, const lm_documents *texts, int64_t rows,
                               lm_visit visit, void *user) {
    dlrn_status s = DLRN_OK;
    for (int64_t i = 0, end; i < texts->count && texts->start[i] < rows && s == DLRN_OK; i = end) {
        for (end = i + 1;
             end < texts->count && texts->start[end + 1] - texts->start[i] <= LM_BATCH_TOKENS;)
            end++;
        lm_batch batch = {texts->id, texts->start + i, end - i};
        s = stopping(NULL) ? DLRN_STOPPED : lm_run(mt->model, &batch, &mt->tap, 1, visit, user, 0);
    }
    return s;
}

/* Figures of the rows of a text, then the cross-entropy of its first documents. */
static dlrn_status evaluate_model(model_text *mt, const options *o, const dlrn_dictionary *dict,
                                  int64_t rows, dlrn_evaluator *e, dlrn_metrics *m) {
    lm_documents texts;
    int64_t documents = o->documents > 0 ? o->documents : 128;
    row_feed fed = {e, rows};
    dlrn_language_model lm;
    memset(&texts, 0, sizeof texts);
    dlrn_status s = read_texts(mt, o, rows, documents, &texts);
    if (s == DLRN_OK) s = visit_texts(mt, &texts, rows, feed_rows, &fed);
    if (s == DLRN_OK) s = dlrn_evaluator_finish(e, m);
    if (texts.count > documents) texts.count = documents;
    lm_judge judge = {mt->model, &texts, &mt->tap, 1};
    lm_language_model(&judge, &lm);
    if (s == DLRN_OK) s = dlrn_loss_recovered(mt->ctx, &dict, &lm, m);
    lm_documents_free(&texts);
    return s;
}

/* Figures of the first `rows` rows of an array. */
static dlrn_status evaluate_array(feed *f, int64_t rows, dlrn_evaluator *e, dlrn_metrics *m) {
    dlrn_context *ctx = f->ctx;
    dlrn_source in = feed_source(f), *source = &in;
    dlrn_tensor x, y;
    int64_t done = 0;
    dlrn_status s = dlrn_tensor_alloc(ctx, BLOCK, source->d_in, &x);
    if (s != DLRN_OK) return s;
    s = dlrn_tensor_alloc(ctx, source->d_out ? BLOCK : 0, source->d_out, &y);
    while (s == DLRN_OK && done < rows) {
        int64_t n = 0, want = rows - done < BLOCK ? rows - done : BLOCK;
        s = source->read(source->user, want, x.data, y.data, &n);
        if (s == DLRN_OK) s = dlrn_evaluator_add(e, x.data, source->d_out ? y.data : NULL, n);
        done += n;
    }
    dlrn_free(ctx, x.data);
    dlrn_free(ctx, y.data);
    if (s == DLRN_END && done == 0) return feed_empty(f);
    return s == DLRN_OK || s == DLRN_END ? dlrn_evaluator_finish(e, m) : feed_failed(f, s);
}

/* Evaluates on rows of the model or of the array and prints the figures. */
static dlrn_status evaluate(dlrn_context *ctx, const options *o, const dlrn_dictionary *dict,
                            model_text *mt, feed *f) {
    dlrn_evaluator *e = NULL;
    dlrn_metrics m;
    dlrn_eval_config cfg = dlrn_eval_defaults();
    if (o->rows > 0) cfg.rows = o->rows;
    cfg.sparsity = o->entropy ? DLRN_SPARSITY_ENTROPY : DLRN_SPARSITY_L1;
    cfg.compat = o->compat ? DLRN_ON : DLRN_OFF;
    dlrn_status s = dlrn_evaluator_create(dict, &cfg, &e);
    if (s == DLRN_OK)
        s = o->model ? evaluate_model(mt, o, dict, cfg.rows, e, &m)
                     : evaluate_array(f, cfg.rows, e, &m);
    if (s == DLRN_OK && o->json) print_eval_json(o, &m);
    if (s == DLRN_OK && !o->json) print_eval_table(o, &m);
    if (s == DLRN_OK && o->histogram) s = write_histogram(ctx, e, o->histogram);
    dlrn_evaluator_destroy(e);
    return s;
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
    dlrn_status s = dlrn_load(ctx, o->dict, o->layout, &dict);
    if (s == DLRN_OK && o->model) s = model_text_open(ctx, o, 1, &mt);
    if (s == DLRN_OK && o->data) s = dlrn_source_from_npy(ctx, o->data, o->target, 1, &f.inner);
    if (s == DLRN_OK && o->skip_nonfinite) s = feed_keep_finite(&f);
    if (s == DLRN_OK)
        s = o->model ? check_site_width(&mt, o, dict)
                     : expect_width(ctx, o->data, dict->d_in, f.inner.d_in);
    if (s == DLRN_OK && o->data)
        s = expect_width(ctx, o->target ? o->target : o->data, dict->d_out,
                         f.inner.d_out ? f.inner.d_out : f.inner.d_in);
    if (s == DLRN_OK) s = evaluate(ctx, o, dict, &mt, &f);
    feed_tell_skipped(&f);
    model_text_tell(&mt, o);
    status = s == DLRN_OK ? 0 : fail(ctx);
    dlrn_source_destroy(&f.inner);
    model_text_close(&mt);
    dlrn_dictionary_destroy(dict);
    return status;
}
