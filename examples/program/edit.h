/* One feature of a model's activations changed while it runs, for effect and steer. What the
   dictionary does not explain stays: y' = y + decode(f') - decode(f). Of that difference the bias,
   the skip and all other features cancel, so it is computed from the feature's atom alone. */

/* Refuses dictionaries whose features cannot be changed here, and a feature that there is not. */
static dlrn_status check_edited(const char *command_name, const options *o,
                                const dlrn_dictionary *dict) {
    if (dict->layers > 1 || dict->n_parts)
        return dlrn_fail(dict->ctx, DLRN_ERR_UNSUPPORTED,
                         "%s: %s: expected a dictionary of one layer, found one of %lld layers",
                         o->dict, command_name, (long long)dict->layers);
    if (dict->heads)
        return dlrn_fail(dict->ctx, DLRN_ERR_UNSUPPORTED,
                         "%s: %s: expected a dictionary that encodes each row alone, found a %s",
                         o->dict, command_name, dict->family);
    if (o->feature < dict->features) return DLRN_OK;
    return dlrn_fail(dict->ctx, DLRN_ERR_ARGUMENT,
                     "--feature: expected a number below %lld as %s has them, found %lld",
                     (long long)dict->features, o->dict, (long long)o->feature);
}

/* Whether a row's features depend on the other rows of a call. */
static int compares_rows(const dlrn_dictionary *dict) {
    return dict->formula.select == DLRN_SELECT_BATCH_TOP_K || dict->formula.standardise;
}

/* What one unit of a feature adds to x_hat, in atoms: x_hat is scaled, and that of a normalised row
   x [d_in] is scaled back. */
static double unit_of(const dlrn_dictionary *dict, const float *x) {
    const int64_t d = dict->d_in;
    double mean = 0, square = 0;
    if (!dict->param[DLRN_DECODER]) return 1; /* an identity */
    if (dict->formula.normalise == DLRN_NORMALISE_NONE) return dict->formula.scale_out;
    for (int64_t j = 0; dict->formula.normalise == DLRN_NORMALISE_LAYER && j < d; j++)
        mean += (double)x[j] / (double)d;
    for (int64_t j = 0; j < d; j++) square += ((double)x[j] - mean) * ((double)x[j] - mean);
    if (dict->formula.normalise == DLRN_NORMALISE_LAYER)
        return dict->formula.scale_out * (d > 1 ? sqrt(square / (double)(d - 1)) : 0);
    return dict->formula.scale_out * (square > 0 ? sqrt(square / (double)d) : 1);
}

/* y [d_out] += amount atoms of a feature, and `switched` times the offset that some families add
   for each active feature. */
static void add_atom(const dlrn_dictionary *dict, int64_t feature, double amount, double switched,
                     float *y) {
    const float *atom = dict->param[DLRN_DECODER], *offset = dict->param[DLRN_DECODER_OFFSET];
    const int64_t d = dict->d_out, at = feature * d;
    if (!atom) y[feature] += (float)amount; /* an identity */
    for (int64_t j = 0; atom && j < d; j++) {
        double step = amount * (double)atom[at + j];
        if (offset) step += switched * (double)offset[at + j];
        y[j] = (float)((double)y[j] + step);
    }
}

/* y [d_out] += what a feature adds at the value `now`, less what it adds at `was`. unit: see
   unit_of. */
static void move_feature(const dlrn_dictionary *dict, int64_t feature, double unit, double was,
                         double now, float *y) {
    add_atom(dict, feature, unit * (now - was), unit * ((now != 0) - (was != 0)), y);
}

/* A feature's value in a row of codes. */
static double code_of(const dlrn_sparse *codes, int64_t row, int64_t feature) {
    for (int64_t p = codes->row_ptr[row]; p < codes->row_ptr[row + 1]; p++)
        if (codes->col[p] == feature) return (double)codes->val[p];
    return 0;
}

/* "mlp_out of layer 0", "embed" */
static const char *site_text(const options *o, char *text, size_t size) {
    if (o->layer < 0 || lm_tensor_named(o->site) || lm_kind_named(o->site) == LM_EMBED)
        snprintf(text, size, "%s", o->site);
    else
        snprintf(text, size, "%s of layer %lld", o->site, (long long)o->layer);
    return text;
}

/* What both commands write about where a feature is changed. */
static void json_site(json_writer *j, const options *o) {
    json_text(j, "dict", o->dict);
    json_text(j, "model", o->model);
    json_text(j, "site", o->site);
    if (o->layer >= 0) json_int(j, "layer", o->layer);
    json_text(j, "io", lm_io_names[parse_io(o)]);
}

/* A token as a JSON string: its text, or "" if it has none. */
static void put_token(FILE *f, lm_tokenizer *tok, int64_t id) {
    int64_t n = 0;
    const char *bytes = lm_token_bytes(tok, (int32_t)id, &n);
    put_quoted(f, bytes ? bytes : "", bytes ? n : 0);
}

/* Opens the dictionary and the model of both commands. Close them also after an error. */
static dlrn_status open_edited(const char *command_name, dlrn_context *ctx, const options *o,
                               dlrn_dictionary **dict, model_text *mt) {
    memset(mt, 0, sizeof *mt);
    dlrn_status s = load_dictionary(ctx, o->dict, o, dict);
    if (s == DLRN_OK) s = check_edited(command_name, o, *dict);
    if (s == DLRN_OK) s = model_text_open(ctx, o, 1, mt);
    return s == DLRN_OK ? check_site_width(mt, o, *dict) : s;
}

/* The first documents of --text: --documents, or 128. */
static dlrn_status read_first_documents(model_text *mt, const options *o, lm_documents *out) {
    const int64_t limit = o->documents < 0 ? 128 : o->documents < ALL ? o->documents : -1;
    const dlrn_status s = lm_read_documents(mt->model, mt->tok, mt->docs, &mt->reading, limit, out);
    if (s != DLRN_END) return s;
    return dlrn_fail(mt->ctx, DLRN_ERR_VALUE, "%s: expected documents, found none", o->text);
}

static double log_sum_exp(const float *x, int64_t n) {
    double top = -(double)INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++) top = (double)x[i] > top ? (double)x[i] : top;
    for (int64_t i = 0; i < n; i++) sum += exp((double)x[i] - top);
    return top + log(sum);
}
