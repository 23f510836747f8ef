/* dictlearn eval: the table, the JSON object, the histogram. */

static void json_number(const char *key, double value) {
    if (value == value)
        printf(", \"%s\": %.9g", key, value);
    else
        printf(", \"%s\": null", key);
}

static void print_eval_json(const options *o, const dlrn_metrics *m) {
    printf("{\"mode\": \"%s\", \"rows\": %lld, \"documents\": %lld", o->compat ? "compat" : "default",
           (long long)m->rows, (long long)m->documents);
    json_number("mse_loss", m->mse_loss);
    json_number("sparsity_loss", m->sparsity_loss);
    json_number("variance_explained", m->variance_explained);
    json_number("l0", m->l0);
    json_number("percent_alive", m->percent_alive);
    json_number("l2_loss", m->l2_loss);
    json_number("cosine", m->cosine);
    json_number("l2_ratio", m->l2_ratio);
    json_number("relative_reconstruction_bias", m->relative_reconstruction_bias);
    json_number("variance_explained_per_dim", m->variance_explained_per_dim);
    printf(", \"dead\": %lld, \"dense\": %lld}\n", (long long)m->dead, (long long)m->dense);
}

static void print_eval_table(const options *o, const dlrn_metrics *m) {
    printf("%lld rows, %s formulas\n", (long long)m->rows, o->compat ? "the reference's" : "default");
    printf("  variance explained  %8.2f %%\n", 100 * m->variance_explained);
    printf("  %-18s  %8.2f\n", o->entropy ? "entropy" : "L1", m->sparsity_loss);
    printf("  L0                  %8.2f\n", m->l0);
    printf("  alive               %8.2f %%\n", 100 * m->percent_alive);
    printf("  MSE                 %8.4g\n", m->mse_loss);
    printf("  cosine              %8.4f\n", m->cosine);
    printf("  ||x_hat|| / ||x||   %8.4f\n", m->l2_ratio);
    printf("  dead, dense         %lld, %lld\n", (long long)m->dead, (long long)m->dense);
}

enum { BINS = 50 };

static dlrn_status write_histogram(dlrn_context *ctx, const dlrn_evaluator *e, const char *path) {
    double edge[BINS + 1];
    int64_t count[BINS], most = 1;
    static char text[16384];
    size_t at = 0, n = strlen(path);
    int svg = n > 4 && !strcmp(path + n - 4, ".svg");
    dlrn_status s = dlrn_evaluator_histogram(e, BINS, edge, count);
    for (int b = 0; b < BINS; b++) most = count[b] > most ? count[b] : most;
    at += (size_t)snprintf(text, sizeof text, "%s",
                           svg ? "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"540\" height=\"240\" "
                                 "font-family=\"sans-serif\" font-size=\"11\">\n"
                                 "<text x=\"20\" y=\"235\">firing frequency, 1e-5 to 1 (log scale)</text>\n"
                               : "from,to,features\n");
    for (int b = 0; b < BINS; b++) {
        double h = 200.0 * (double)count[b] / (double)most;
        at += (size_t)(svg ? snprintf(
                                 text + at, sizeof text - at,
                                 "<rect x=\"%d\" y=\"%.1f\" width=\"9\" height=\"%.1f\" fill=\"#36c\"><title>%.2e to "
                                 "%.2e: %lld</title></rect>\n",
                                 20 + 10 * b, 215 - h, h, edge[b], edge[b + 1], (long long)count[b])
                           : snprintf(text + at, sizeof text - at, "%.6e,%.6e,%lld\n", edge[b], edge[b + 1],
                                      (long long)count[b]));
    }
    at += (size_t)snprintf(text + at, sizeof text - at, "%s", svg ? "</svg>\n" : "");
    return s == DLRN_OK ? dlrn_file_write(ctx, path, text, at) : s;
}

/* All rows that are asked for, then the figures. */
static dlrn_status evaluate_source(dlrn_context *ctx, const options *o, const dlrn_source *source, dlrn_evaluator *e,
                                   dlrn_metrics *m) {
    dlrn_tensor x, y;
    int64_t done = 0;
    dlrn_status s = dlrn_tensor_create(ctx, BLOCK, source->activation_dim, &x);
    if (s != DLRN_OK) return s;
    s = dlrn_tensor_create(ctx, source->has_target ? BLOCK : 0, source->activation_dim, &y);
    while (s == DLRN_OK && done < o->rows) {
        int64_t n = 0, want = o->rows - done < BLOCK ? o->rows - done : BLOCK;
        s = source->read(source->user, want, x.data, y.data, &n);
        if (s == DLRN_OK) s = dlrn_evaluator_add(e, x.data, source->has_target ? y.data : NULL, n);
        done += n;
    }
    dlrn_tensor_free(ctx, &x);
    dlrn_tensor_free(ctx, &y);
    return s == DLRN_OK || s == DLRN_END ? dlrn_evaluator_finish(e, m) : s;
}

static int run_eval(dlrn_context *ctx, const options *o) {
    dlrn_dictionary *dict = NULL;
    dlrn_evaluator *e = NULL;
    dlrn_source source;
    dlrn_metrics m;
    memset(&source, 0, sizeof source);
    if (need(o, 1, 1, 0, "eval")) return 2;
    dlrn_status s = dlrn_load(ctx, o->dict, &dict);
    if (s == DLRN_OK) s = dlrn_source_from_npy(ctx, o->data, o->target, 1, &source);
    if (s == DLRN_OK && source.activation_dim != dict->activation_dim) {
        int status = wrong_width(o->data, dict->activation_dim, source.activation_dim);
        dlrn_source_destroy(&source);
        dlrn_dictionary_destroy(dict);
        return status;
    }
    dlrn_eval_config cfg = dlrn_eval_defaults();
    cfg.rows = o->rows;
    cfg.sparsity = o->entropy ? DLRN_SPARSITY_ENTROPY : DLRN_SPARSITY_L1;
    cfg.compat = o->compat;
    if (s == DLRN_OK) s = dlrn_evaluator_create(dict, &cfg, &e);
    if (s == DLRN_OK) s = evaluate_source(ctx, o, &source, e, &m);
    if (s == DLRN_OK && o->histogram) s = write_histogram(ctx, e, o->histogram);
    if (s == DLRN_OK && o->json) print_eval_json(o, &m);
    if (s == DLRN_OK && !o->json) print_eval_table(o, &m);
    int status = s == DLRN_OK ? 0 : fail(ctx);
    dlrn_evaluator_destroy(e);
    dlrn_source_destroy(&source);
    dlrn_dictionary_destroy(dict);
    return status;
}
