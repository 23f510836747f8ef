/* dictlearn compare: to be built. */

static int run_compare(dlrn_context *ctx, const options *o) {
    (void)ctx, (void)o;
    return usage_error("compare", "to be built", "compare");
}
