/* dictlearn effect: to be built. */

static int run_effect(dlrn_context *ctx, const options *o) {
    (void)ctx, (void)o;
    return usage_error("effect", "to be built", "effect");
}
