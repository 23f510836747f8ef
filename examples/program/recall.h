/* train --resume with the folder alone: the words of the run's own command, from its
   config.json. */

typedef struct recalled {
    dlrn_context *ctx; /* of its own: the command's context is made from the words */
    dlrn_json *config;
    const char **argv; /* [argc], closed with NULL; the words lie in config and in main's */
} recalled;

static void recalled_free(recalled *r) {
    if (!r->ctx) return;
    dlrn_free(r->ctx, r->config);
    dlrn_free(r->ctx, r->argv);
    dlrn_context_destroy(r->ctx);
}

/* Whether the command line itself gives a flag; it wins over the saved one. */
static int is_given(const options *o, const flag *f) {
    for (int i = 0; i < o->argc; i++) {
        const char *value;
        const flag *g = find_flag(o->argv[i], &value);
        if (g == f) return 1;
        if (g && g->kind != F_SWITCH && !value) i++;
    }
    return 0;
}

/* Adds the saved words that the command line does not replace. Settings that the recipe of the
   command line has no use for are left out: that it is not the run's is told later, by name. The
   new number of words. */
static int add_saved(const command *c, const options *o, const dlrn_json *words, const char **argv,
                     int n) {
    const dlrn_recipe_info *recipe = o->recipe ? find_recipe(o->recipe) : NULL;
    for (const dlrn_json *w = words->first; w; w = w->next) {
        const char *value;
        const flag *f = w->type == DLRN_JSON_STRING ? find_flag(w->text, &value) : NULL;
        /* a value that follows its flag; NULL: the list ends before it */
        const dlrn_json *next = f && f->kind != F_SWITCH && !value ? w->next : w;
        if (!f || !(f->commands & c->bit) || !next || next->type != DLRN_JSON_STRING) continue;
        if (!is_given(o, f) && (!recipe || suits_recipe(recipe, f))) {
            argv[n++] = w->text;
            if (next != w) argv[n++] = next->text;
        }
        w = next;
    }
    return n;
}

/* Reads the run's config.json. *words: its command, or NULL: its version did not keep it. */
static dlrn_status read_saved(recalled *r, const options *o, const dlrn_json **words) {
    char path[4200], *text = NULL;
    size_t size = 0;
    snprintf(path, sizeof path, "%s/config.json", o->save_dir);
    dlrn_status s = dlrn_file_read(r->ctx, path, &text, &size);
    if (s == DLRN_OK) s = dlrn_json_parse(r->ctx, text, size, path, &r->config);
    dlrn_free(r->ctx, text);
    *words = s == DLRN_OK ? dlrn_json_get(r->config, "command") : NULL;
    if (*words && (*words)->type != DLRN_JSON_ARRAY) *words = NULL;
    return s;
}

/* With --resume: parses the saved words and the given ones together into `o`. 0, or an exit
   status. A run that cannot be read is the command's own error. */
static int recall(const command *c, options *o, recalled *r) {
    dlrn_context_config cfg = {0};
    const dlrn_json *words = NULL;
    memset(r, 0, sizeof *r);
    if (!o->resume || !o->save_dir) return 0;
    cfg.threads = 1;
    if (dlrn_context_create(&cfg, &r->ctx) != DLRN_OK) {
        fputs("dictlearn: out of memory, before anything was done\n", stderr);
        return 1;
    }
    if (read_saved(r, o, &words) != DLRN_OK || !words) return 0;
    int64_t count = o->argc + 1;
    for (const dlrn_json *w = words->first; w; w = w->next) count++;
    r->argv = (const char **)dlrn_alloc(r->ctx, count, sizeof *r->argv);
    if (!r->argv) return fail(r->ctx);
    memcpy(r->argv, o->argv, (size_t)o->argc * sizeof *r->argv);
    int n = add_saved(c, o, words, r->argv, o->argc);
    r->argv[n] = NULL;
    return parse_options(c, n, r->argv, o);
}
