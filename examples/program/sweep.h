/* dictlearn sweep: to be built. */

static int run_sweep(dlrn_context *ctx, const options *o) {
    (void)ctx, (void)o;
    return usage_error("sweep", "to be built", "sweep");
}
