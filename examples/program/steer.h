/* dictlearn steer: to be built. */

static int run_steer(dlrn_context *ctx, const options *o) {
    (void)ctx, (void)o;
    return usage_error("steer", "to be built", "steer");
}
