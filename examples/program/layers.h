/* Rows of several layers: an array [.., layers, d] as rows [.., layers * d], for crosscoders and
   cross-layer transcoders. */

/* A source whose row is `layers` rows of another one. */
typedef struct joined_rows {
    dlrn_context *ctx;
    dlrn_source inner;
    int64_t layers;
    char error[256];
} joined_rows;

/* Ends with the first whole rows: the inner source may give a part of one at a time. */
static dlrn_status joined_read(void *user, int64_t max_rows, float *x, float *y, int64_t *n) {
    joined_rows *j = (joined_rows *)user;
    const dlrn_source *in = &j->inner;
    int64_t done = 0;
    *n = 0;
    do {
        int64_t got = 0;
        dlrn_status s = in->read(in->user, max_rows * j->layers - done, x + done * in->d_in,
                                 y ? y + done * in->d_out : NULL, &got);
        if (s == DLRN_END && done % j->layers) {
            snprintf(j->error, sizeof j->error, "the last row has %lld of %lld layers",
                     (long long)(done % j->layers), (long long)j->layers);
            return DLRN_ERR_CALLBACK;
        }
        if (s != DLRN_OK) return s;
        done += got;
    } while (done % j->layers);
    *n = done / j->layers;
    return DLRN_OK;
}

static dlrn_status joined_position(void *user, uint64_t *position) {
    joined_rows *j = (joined_rows *)user;
    dlrn_status s = j->inner.position(j->inner.user, position);
    *position /= (uint64_t)j->layers;
    return s;
}

static dlrn_status joined_seek(void *user, uint64_t position) {
    joined_rows *j = (joined_rows *)user;
    return j->inner.seek(j->inner.user, position * (uint64_t)j->layers);
}

static const char *joined_error(void *user) {
    joined_rows *j = (joined_rows *)user;
    if (!*j->error && j->inner.error)
        snprintf(j->error, sizeof j->error, "%s", j->inner.error(j->inner.user));
    return j->error;
}

static void joined_destroy(void *user) {
    joined_rows *j = (joined_rows *)user;
    dlrn_source_destroy(&j->inner);
    dlrn_free(j->ctx, j);
}

/* Joins the rows of an open feed if its array is [.., layers, d] and the dictionary has as many
   layers. Other rows stay: if their width does not fit, the caller says so. */
static dlrn_status feed_join_layers(feed *f, const dlrn_dictionary *dict) {
    dlrn_source *in = &f->inner;
    const int64_t layers = dict->layers;
    if (layers < 2 || in->positions != layers || in->d_in * layers != dict->d_in) return DLRN_OK;
    if (chooses_rows(f->o))
        return dlrn_fail(f->ctx, DLRN_ERR_ARGUMENT,
                         "%s: --skip-first and --max-norm-ratio: expected rows of one layer, found "
                         "an array of %lld layers",
                         f->x_name, (long long)layers);
    joined_rows *j = (joined_rows *)dlrn_alloc(f->ctx, 1, sizeof *j);
    if (!j) return DLRN_ERR_MEMORY;
    memset(j, 0, sizeof *j);
    j->ctx = f->ctx;
    j->inner = *in;
    j->layers = layers;
    in->d_in *= layers;
    in->d_out *= layers;
    in->rows /= layers;
    in->positions = 0;
    in->read = joined_read;
    in->position = in->position ? joined_position : NULL;
    in->seek = in->seek ? joined_seek : NULL;
    in->error = joined_error;
    in->destroy = joined_destroy;
    in->user = j;
    return DLRN_OK;
}
