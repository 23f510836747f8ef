/* What --data and --target name: a file, a folder of arrays, a quoted pattern, or - for standard
   input. The library takes the files in the order in which they stand here. */

typedef struct path_list {
    char **path; /* [n], each owned */
    int64_t n, room;
} path_list;

static void paths_free(path_list *list) {
    for (int64_t i = 0; i < list->n; i++) free(list->path[i]);
    free(list->path);
    memset(list, 0, sizeof *list);
}

/* Adds FOLDER/NAME, or NAME if folder is NULL. */
static dlrn_status paths_add(dlrn_context *ctx, path_list *list, const char *folder,
                             const char *name) {
    size_t n = strlen(name) + (folder ? strlen(folder) : 0) + 2;
    if (list->n == list->room) {
        int64_t room = 2 * list->room + 16;
        char **grown = (char **)realloc(list->path, (size_t)room * sizeof *grown);
        if (!grown) return dlrn_fail(ctx, DLRN_ERR_MEMORY, "out of memory");
        list->path = grown;
        list->room = room;
    }
    char *path = (char *)malloc(n);
    if (!path) return dlrn_fail(ctx, DLRN_ERR_MEMORY, "out of memory");
    snprintf(path, n, "%s%s%s", folder ? folder : "", folder ? "/" : "", name);
    list->path[list->n++] = path;
    return DLRN_OK;
}

static int is_digit(char c) {
    return c >= '0' && c <= '9';
}

/* Compares names as people count: x2 comes before x10. Numbers of one value, as in x1 and x01, are
   told apart by their bytes. */
static int natural_order(const void *a, const void *b) {
    const char *const *first = (const char *const *)a, *const *second = (const char *const *)b;
    const char *x = *first, *y = *second;
    while (*x && *y) {
        if (!is_digit(*x) || !is_digit(*y)) {
            if (*x != *y) return (unsigned char)*x < (unsigned char)*y ? -1 : 1;
            x++, y++;
            continue;
        }
        while (*x == '0') x++;
        while (*y == '0') y++;
        size_t n = strspn(x, "0123456789"), k = strspn(y, "0123456789");
        int order = n != k ? (n < k ? -1 : 1) : strncmp(x, y, n);
        if (order) return order;
        x += n, y += k;
    }
    return *x || *y ? (*x ? 1 : -1) : strcmp(*first, *second);
}

/* Whether a name in a folder is that of an array. Others may lie beside the shards. */
static int is_array_name(const char *name) {
    static const char *const suffixes[] = {".npy", ".npz", ".pt", ".safetensors"};
    for (size_t i = 0; *name != '.' && i < sizeof suffixes / sizeof *suffixes; i++)
        if (ends_with(name, suffixes[i])) return 1;
    return 0;
}

static dlrn_status paths_of_folder(dlrn_context *ctx, const char *folder, path_list *list) {
    dlrn_status s = DLRN_OK;
    DIR *dir = opendir(folder);
    if (!dir)
        return dlrn_fail(ctx, DLRN_ERR_IO, "%s: cannot read this folder: %s", folder,
                         strerror(errno));
    for (struct dirent *e; s == DLRN_OK && (e = readdir(dir)) != NULL;)
        if (is_array_name(e->d_name)) s = paths_add(ctx, list, folder, e->d_name);
    closedir(dir);
    if (s == DLRN_OK && !list->n)
        s = dlrn_fail(ctx, DLRN_ERR_IO,
                      "%s: expected arrays in this folder (.npy, .npz, .pt, .safetensors), found "
                      "none",
                      folder);
    return s;
}

static dlrn_status paths_of_pattern(dlrn_context *ctx, const char *pattern, path_list *list) {
    glob_t found;
    dlrn_status s = DLRN_OK;
    int failed = glob(pattern, 0, NULL, &found);
    if (failed)
        return dlrn_fail(ctx, failed == GLOB_NOSPACE ? DLRN_ERR_MEMORY : DLRN_ERR_IO,
                         "%s: expected a file, a folder or a pattern, found no such file", pattern);
    for (size_t i = 0; s == DLRN_OK && i < found.gl_pathc; i++)
        s = paths_add(ctx, list, NULL, found.gl_pathv[i]);
    globfree(&found);
    return s;
}

/* The files that a word means, in natural order. A file whose name has a star is itself. */
static dlrn_status paths_expand(dlrn_context *ctx, const char *word, path_list *list) {
    struct stat st;
    dlrn_status s;
    memset(list, 0, sizeof *list);
    int there = strcmp(word, "-") && stat(word, &st) == 0;
    if (there && S_ISDIR(st.st_mode))
        s = paths_of_folder(ctx, word, list);
    else if (!there && strpbrk(word, "*?["))
        s = paths_of_pattern(ctx, word, list);
    else
        s = paths_add(ctx, list, NULL, word);
    if (s == DLRN_OK && list->n > 1)
        qsort(list->path, (size_t)list->n, sizeof *list->path, natural_order);
    return s;
}

/* Whether a word of the command line is data that comes only once: a pipe. */
static int comes_once(const char *word) {
    struct stat st;
    return !strcmp(word, "-") ||
           (stat(word, &st) == 0 && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode));
}

/* Flags that say how an array is read. 0, or the exit status of a wrong call. */
static int check_array_flags(const char *command_name, const options *o) {
    if (!o->dtype || !strcmp(o->dtype, "bf16")) return 0;
    return usage_error(command_name, "expected bf16 as --dtype", o->dtype);
}
