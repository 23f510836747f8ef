/* Reading the dictionary that the command line names, with the flags that state what its file does
   not. */

static dlrn_status load_quietly(dlrn_context *ctx, const char *path, const options *o,
                                dlrn_dictionary **out) {
    const dlrn_load_options how = {o->layout, o->train.k > 0 ? o->train.k : 0, o->norm_scale,
                                   o->threshold, o->compat ? DLRN_ON : DLRN_OFF};
    return dlrn_load(ctx, path, &how, out);
}

/* What the file leaves open goes to standard error, also with --quiet: it changes the figures. */
static void tell_note(const char *path, const dlrn_dictionary *dict) {
    if (*dict->note) fprintf(stderr, "dictlearn: %s: %s\n", path, dict->note);
}

static dlrn_status load_dictionary(dlrn_context *ctx, const char *path, const options *o,
                                   dlrn_dictionary **out) {
    dlrn_status s = load_quietly(ctx, path, o, out);
    if (s == DLRN_OK) tell_note(path, *out);
    return s;
}
