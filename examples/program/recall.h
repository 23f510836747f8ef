/* Words of the command line that stand in files: train --resume takes those of the run's own
   command from its config.json, --config those that a config of settings amounts to. The command
   line wins over --config, and both over a saved command. */

typedef struct recalled {
    dlrn_context *ctx; /* of its own: the command's context is made from the words */
    dlrn_json *saved;  /* config.json of the run; NULL: none                        */
    path_list words;   /* of --config                                               */
    const char **argv; /* [argc], closed with NULL; the words lie in main's, above  */
    int argc;
} recalled;

static void recalled_free(recalled *r) {
    if (!r->ctx) return;
    dlrn_free(r->ctx, r->saved);
    dlrn_free(r->ctx, r->argv);
    paths_free(&r->words);
    dlrn_context_destroy(r->ctx);
}

/* Reads a file of JSON. */
static dlrn_status read_json(dlrn_context *ctx, const char *path, dlrn_json **out) {
    char *text = NULL;
    size_t size = 0;
    dlrn_status s = dlrn_file_read(ctx, path, &text, &size);
    if (s == DLRN_OK) s = dlrn_json_parse(ctx, text, size, path, out);
    dlrn_free(ctx, text);
    return s;
}

/* Whether the first n words have a flag. */
static int is_recalled(const recalled *r, int n, const flag *f) {
    options o;
    o.argc = n;
    o.argv = r->argv;
    return is_given(&o, f);
}

/* The recipe that the words so far name; NULL: none. */
static const dlrn_recipe_info *recalled_recipe(const recalled *r) {
    for (int i = 0; i < r->argc; i++) {
        const char *value;
        const flag *f = find_flag(r->argv[i], &value);
        if (f && !strcmp(f->name, "--recipe") && (value || i + 1 < r->argc))
            return find_recipe(value ? value : r->argv[i + 1]);
    }
    return NULL;
}

/* The words of the command line without --config: what it amounts to is in the others. */
static void add_given(recalled *r, const options *o) {
    for (int i = 0; i < o->argc; i++) {
        const char *value;
        const flag *f = find_flag(o->argv[i], &value);
        const int is_config = f && !strcmp(f->name, "--config");
        const int more = f && takes_next(f, value, o->argv[i + 1]);
        if (!is_config) r->argv[r->argc++] = o->argv[i];
        if (!is_config && more) r->argv[r->argc++] = o->argv[i + 1];
        i += more;
    }
}

/* Adds the saved words that others do not replace. Settings that the recipe of the others has no
   use for are left out: that it is not the run's is told later, by name. */
static void add_saved(const command *c, recalled *r, const dlrn_json *words) {
    const dlrn_recipe_info *recipe = recalled_recipe(r);
    const int given = r->argc; /* a sweep has saved several --vary */
    for (const dlrn_json *w = words ? words->first : NULL; w; w = w->next) {
        const char *value, *after = w->next && w->next->text ? w->next->text : NULL;
        const flag *f = w->type == DLRN_JSON_STRING ? find_flag(w->text, &value) : NULL;
        const int more = f && takes_next(f, value, after);
        if (!f || !(f->commands & c->bit) || (more && !after)) continue;
        if (!is_recalled(r, given, f) && (!recipe || suits_recipe(recipe, f))) {
            r->argv[r->argc++] = w->text;
            if (more) r->argv[r->argc++] = after;
        }
        if (more) w = w->next;
    }
}

/* Reads the run's config.json, or a sweep's own file. *words: its command, or NULL: its version did
   not keep it. A run that cannot be read is the command's own error. */
static void read_saved(const command *c, recalled *r, const options *o, const dlrn_json **words) {
    char path[4200];
    snprintf(path, sizeof path, "%s/%s", o->save_dir,
             c->bit & C_SWEEP ? "sweep.json" : "config.json");
    if (read_json(r->ctx, path, &r->saved) == DLRN_OK) *words = dlrn_json_get(r->saved, "command");
    if (*words && (*words)->type != DLRN_JSON_ARRAY) *words = NULL;
}

/* Reads the file of --config. */
static dlrn_status read_settings(recalled *r, const options *o) {
    dlrn_json *root = NULL;
    dlrn_status s = read_json(r->ctx, o->config, &root);
    if (s == DLRN_OK) s = config_words(r->ctx, o, o->config, root, &r->words);
    dlrn_free(r->ctx, root);
    return s;
}

/* Joins the words of the command line, which are parsed loosely in `o`, with those of files, and
   parses all strictly. 0, or an exit status. */
static int recall(const command *c, options *o, recalled *r) {
    dlrn_context_config cfg = {0};
    const dlrn_json *saved = NULL;
    const dlrn_recipe_info *recipe;
    memset(r, 0, sizeof *r);
    if (!o->config && !(o->resume && o->save_dir))
        return parse_options(c, o->argc, o->argv, o->recipe ? o->recipe : dlrn_recipe(0)->name, o);
    cfg.threads = 1;
    if (dlrn_context_create(&cfg, &r->ctx) != DLRN_OK) {
        fputs("dictlearn: out of memory, before anything was done\n", stderr);
        return 1;
    }
    if (o->config && read_settings(r, o) != DLRN_OK) return fail(r->ctx);
    if (o->resume && o->save_dir) read_saved(c, r, o, &saved);
    const int64_t count = o->argc + r->words.n + (saved ? saved->count : 0) + 1;
    r->argv = (const char **)dlrn_alloc(r->ctx, count, sizeof *r->argv);
    if (!r->argv) return fail(r->ctx);
    add_given(r, o);
    for (int64_t i = 0; i < r->words.n; i++) r->argv[r->argc++] = r->words.path[i];
    add_saved(c, r, saved);
    r->argv[r->argc] = NULL;
    recipe = recalled_recipe(r);
    return parse_options(c, r->argc, r->argv,
                         recipe      ? recipe->name
                         : o->recipe ? o->recipe
                                     : dlrn_recipe(0)->name,
                         o);
}
