/* training.h - the steps of the recipes at the widths of today's models, from the first step on.

   The first step is that of a new trainer: it also finds what it needs from the first batch, and
   knows no cut of a row from the batch before. Weights are new, and rows normal numbers, so that
   pre-activations have no structure that a screen could profit from. */
#ifndef DICTLEARN_BENCH_TRAINING_H
#define DICTLEARN_BENCH_TRAINING_H

enum { TRAINED_ROWS = 4096, TRAINED_K = 64 };

/* The step counts them for its own plans: this program is compiled against the header with its
   private structures. */
static double candidates_of(const stepper *p) {
    return (double)p->trainer->w.candidates / (double)p->rows;
}

/* The figures of a step, in floors. */
static outcome step_outcome(outcome o, const stepper *p, const fma_burst *peak, const shape *s) {
    o.ratio = o.seconds / floor_of(&o, peak, encode_flops(s));
    o.l0 = p->stats.l0;
    o.candidates = candidates_of(p);
    return o;
}

static outcome measure_trained(lab *l, const shape *s) {
    stepper p = stepper_new(l, s, 0, 0, 0);
    fma_burst peak = burst_new(p.ctx);
    outcome o = in_turns(l, stepper_run, &p, fma_burst_run, &peak);
    o = step_outcome(o, &p, &peak, s);
    stepper_free(&p);
    return o;
}

/* A trainer whose first step is to be run. */
typedef struct beginning {
    const lab *l;
    const shape *s;
    stepper p; /* trainer NULL: none yet */
} beginning;

static void beginning_prepare(void *arg) {
    beginning *b = (beginning *)arg;
    if (b->p.trainer) stepper_free(&b->p);
    b->p = stepper_new(b->l, b->s, 0, 0, 0);
}

static void beginning_run(void *arg) {
    stepper_run(&((beginning *)arg)->p);
}

static outcome measure_first(lab *l, const shape *s) {
    beginning b = {l, s, {NULL, NULL, NULL, 0, {0}}};
    dlrn_context *ctx = context_new(s->kernels, 0);
    fma_burst peak = burst_new(ctx);
    outcome o = in_turns_anew(l, beginning_prepare, beginning_run, &b, fma_burst_run, &peak);
    o = step_outcome(o, &b.p, &peak, s);
    stepper_free(&b.p);
    dlrn_context_destroy(ctx);
    return o;
}

static int has_recipe(const char *name) {
    const dlrn_recipe_info *info;
    for (int i = 0; (info = dlrn_recipe(i)) != NULL; i++)
        if (!strcmp(info->name, name)) return 1;
    return 0;
}

/* Whether a set multiplies numbers of 8 or 16 bits faster than f32 by one instruction. */
static int multiplies_short(const char *kernels) {
    return !strcmp(kernels, "avx512vnni") || !strcmp(kernels, "avx512bf16") ||
           !strcmp(kernels, "amx");
}

/* Goals are for the sets that screen at the least cost, at the widths of today's models. */
static double trained_goal(const lab *l, int64_t d, int64_t F) {
    if (!multiplies_short(dlrn_context_describe(l->ctx).kernels)) return 0;
    if (d == 512) return 0.7;
    return d == 2304 || F > 16384 ? 0.9 : 0;
}

static void trained_row(lab *l, const char *recipe, int64_t d, int64_t F, int first) {
    static const kind later = {"floors", 0, 0, measure_trained, 0};
    static const kind at_first = {"floors", 0, 0, measure_first, 0};
    shape s = {.rows = TRAINED_ROWS,
               .d = d,
               .features = F,
               .l0 = TRAINED_K,
               .k = TRAINED_K,
               .recipe = recipe};
    run_row(l, name_of("train.%s.d%d.F%d%s", recipe, (int)d, (int)F, first ? ".first" : ""),
            first ? &at_first : &later, trained_goal(l, d, F), s);
}

/* The widths of a plot, and F 32768; the first step where a goal is, and at the width that takes no
   time. */
static void recipe_rows(lab *l, const char *recipe) {
    static const int64_t d[] = {128, 256, 512, 1024, 2048, 2304, 4096};
    for (size_t i = 0; i < sizeof d / sizeof *d; i++) {
        trained_row(l, recipe, d[i], 16384, 0);
        if (d[i] == 128 || d[i] == 512 || d[i] == 2304) trained_row(l, recipe, d[i], 16384, 1);
    }
    trained_row(l, recipe, 4096, 32768, 0);
    trained_row(l, recipe, 4096, 32768, 1);
}

static void training_rows(lab *l) {
    static const char *const plotted[] = {"dl-top_k", "dl-batch_top_k", "dl-jump_relu",
                                          "dl-matryoshka"};
    static const char *const others[] = {"sl-topk", "sl-batchtopk", "sl-jumprelu", "sl-matryoshka",
                                         "sp-topk"};
    for (size_t i = 0; i < sizeof plotted / sizeof *plotted; i++)
        if (has_recipe(plotted[i])) recipe_rows(l, plotted[i]);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (has_recipe(others[i])) trained_row(l, others[i], 512, 16384, 0);
}
#endif /* DICTLEARN_BENCH_TRAINING_H */
