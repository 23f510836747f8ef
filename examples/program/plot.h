/* dictlearn plot: to be built. */

static int run_plot(dlrn_context *ctx, const options *o) {
    (void)ctx, (void)o;
    return usage_error("plot", "to be built", "plot");
}
