/* Lists of numbers: --groups and --group-weights; and rows of several layers. */

/* The numbers of "a,b,c"; -1: something else, or more than fit. */
static int parse_numbers(const char *text, double out[DLRN_GROUPS_MAX]) {
    int n = 0;
    for (const char *at = text; n < DLRN_GROUPS_MAX; at++) {
        char *end = NULL;
        out[n] = strtod(at, &end);
        if (end == at || (*end && *end != ',') || !(out[n] >= 0 && out[n] <= 1e15)) return -1;
        n++;
        if (!*end) return n;
        at = end;
    }
    return -1;
}

/* Whether sizes are shares of all features: none is above 1, and they are not a single 1. */
static int are_shares(const double *size, int n) {
    for (int i = 0; i < n; i++)
        if (size[i] > 1) return 0;
    return n > 1 || size[0] < 1;
}

/* What can be said of --groups and --group-weights before F is known. 0, or the exit status of a
   wrong call. */
static int check_group_flags(const options *o) {
    double size[DLRN_GROUPS_MAX], weight[DLRN_GROUPS_MAX];
    const int n = o->groups ? parse_numbers(o->groups, size) : 0;
    const int weights = o->group_weights ? parse_numbers(o->group_weights, weight) : 0;
    if (n < 0)
        return usage_error("train", "expected at most 16 numbers with commas as --groups",
                           o->groups);
    if (weights < 0)
        return usage_error("train", "expected at most 16 numbers from 0 as --group-weights",
                           o->group_weights);
    for (int i = 0; i < n; i++)
        if (!(size[i] > 0) || (!are_shares(size, n) && size[i] > floor(size[i])))
            return usage_error("train",
                               "expected whole numbers from 1, or shares of at most 1, as --groups",
                               o->groups);
    if (weights && !n) return usage_error("train", "goes with --groups", "--group-weights");
    if (weights && weights != n)
        return usage_error("train", "expected as many --group-weights as --groups",
                           o->group_weights);
    return 0;
}

/* The groups of F features, as dictionary_learning takes shares: rounded down, and the last one has
   the rest. */
static dlrn_status set_groups(dlrn_context *ctx, const options *o, dlrn_train_config *cfg) {
    double size[DLRN_GROUPS_MAX], weight[DLRN_GROUPS_MAX], shares = 0, sum = 0;
    const double all = (double)cfg->features;
    if (!o->groups) return DLRN_OK;
    const int n = parse_numbers(o->groups, size);
    if (o->group_weights) (void)!parse_numbers(o->group_weights, weight);
    const int in_shares = are_shares(size, n);
    for (int i = 0; i < n; i++) shares += size[i];
    if (in_shares && fabs(shares - 1) > 1e-6)
        return dlrn_fail(ctx, DLRN_ERR_ARGUMENT,
                         "--groups: expected shares that sum to 1, found %g", shares);
    for (int i = 0; i < n; i++) {
        if (in_shares) size[i] = i + 1 < n ? floor(size[i] * all) : all - sum;
        sum += size[i];
    }
    if (sum < all || sum > all)
        return dlrn_fail(
            ctx, DLRN_ERR_ARGUMENT,
            "--groups: expected sizes that sum to the %lld features, found %.0f, which "
            "is %.0f too %s",
            (long long)cfg->features, sum, fabs(sum - all), sum < all ? "few" : "many");
    cfg->n_groups = n;
    for (int i = 0; i < n; i++) {
        cfg->groups[i] = (int64_t)size[i];
        cfg->group_weights[i] = o->group_weights ? weight[i] : 0;
    }
    return DLRN_OK;
}

/* ---- rows of several layers */

/* Whether a recipe trains on several layers at once. */
static int has_layers(const dlrn_recipe_info *recipe) {
    return dlrn_train_defaults(recipe->name).layers > 1 ||
           !strcmp(recipe->family, "CrossLayerTranscoder");
}

/* The layers of --data: a dimension of the array before the last, or --layers. A look at the files
   tells; they are opened again with the width of whole rows. */
static dlrn_status find_layers(feed *f, const dlrn_recipe_info *recipe, int64_t *layers) {
    const options *o = f->o;
    dlrn_status s = DLRN_OK;
    *layers = 1;
    if (o->layers <= 1 && !has_layers(recipe)) return DLRN_OK;
    *layers = o->layers ? o->layers : dlrn_train_defaults(recipe->name).layers;
    if (comes_once(o->data)) return DLRN_OK; /* a look would take its rows */
    s = feed_open(f, 1);
    const int64_t d = f->inner.d_in, between = f->inner.positions;
    if (s == DLRN_OK && between > 1 && (!o->layers || between == o->layers)) {
        *layers = between;
        f->width = between * d;
        f->target_width = f->inner.d_out * between;
    }
    feed_close(f);
    return s;
}

/* Whether the rows of --data hold those layers. */
static dlrn_status check_layers(const feed *f, const dlrn_recipe_info *recipe, int64_t layers) {
    const int64_t d = f->inner.d_in;
    const char *name = f->x_name;
    if (layers == 1 && !has_layers(recipe)) return DLRN_OK;
    if (!f->width && layers > 1 && f->inner.positions == layers)
        return dlrn_fail(f->ctx, DLRN_ERR_SHAPE,
                         "%s: expected a file, as layers are read from one, found a pipe", name);
    if (!f->width && !f->o->layers)
        return dlrn_fail(f->ctx, DLRN_ERR_SHAPE,
                         "%s: recipe %s trains on several layers at once: expected an array [rows, "
                         "layers, d], or rows of --layers M times d, found rows of %lld",
                         name, recipe->name, (long long)d);
    if (d % layers == 0) return DLRN_OK;
    return dlrn_fail(f->ctx, DLRN_ERR_SHAPE,
                     "%s: expected rows of %lld layers, found rows of %lld numbers", name,
                     (long long)layers, (long long)d);
}
