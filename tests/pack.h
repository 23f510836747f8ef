/* pack.h - the files of other libraries that tests open, packed in tests/golden/layouts.npz:
   unpack() writes them to build/tmp/layouts. */
#ifndef DICTLEARN_TEST_PACK_H
#define DICTLEARN_TEST_PACK_H

/* A member of layouts.npz, as bytes with a 0 after them. */
static char *read_member(dlrn_context *ctx, dlrn_archive *a, const char *name) {
    int64_t at = dlrn_archive_find(a, name);
    CHECK(at >= 0);
    int64_t n = dlrn_archive_tensor(a, at)->numel;
    int64_t *wide = malloc((size_t)n * sizeof *wide);
    char *bytes = malloc((size_t)n + 1);
    CHECK(wide && bytes);
    CHECK_OK(ctx, dlrni_archive_read_i64(a, at, wide));
    for (int64_t i = 0; i < n; i++) bytes[i] = (char)wide[i];
    bytes[n] = 0;
    free(wide);
    return bytes;
}

static void write_file(char *path, const char *bytes, size_t size) {
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(path, 0777);
        *slash = '/';
    }
    FILE *f = fopen(path, "wb");
    CHECK_MSG(f && fwrite(bytes, 1, size, f) == size, "cannot write %s", path);
    fclose(f);
}

static char folders[256][64]; /* of the pack */
static int n_folders;

/* Notes the folder of a file; those of one folder follow each other. */
static void note_folder(const char *name) {
    char folder[64];
    snprintf(folder, sizeof folder, "%.*s", (int)strcspn(name, "/"), name);
    if (n_folders && !strcmp(folders[n_folders - 1], folder)) return;
    CHECK(n_folders < 256);
    memcpy(folders[n_folders++], folder, sizeof folder);
}

/* All files, into build/tmp/layouts, before the first line. */
static void unpack(dlrn_context *ctx) {
    static int unpacked;
    dlrn_archive *a = NULL;
    if (unpacked) return;
    CHECK_OK(ctx, dlrn_archive_open(ctx, "tests/golden/layouts.npz", &a));
    char *bytes = read_member(ctx, a, "bytes"), *index = read_member(ctx, a, "index");
    for (char *at = index, *end; *at; at = end + 1) {
        long begin, size;
        char name[256], path[512];
        CHECK((end = strchr(at, '\n')) != NULL);
        CHECK(sscanf(at, "%ld %ld %255[^\n]", &begin, &size, name) == 3);
        snprintf(path, sizeof path, "build/tmp/layouts/%s", name);
        write_file(path, bytes + begin, (size_t)size);
        note_folder(name);
    }
    free(bytes);
    free(index);
    dlrn_archive_close(a);
    unpacked = 1;
}

/* ---- layouts.txt: how each is named, and what is expected ---- */

/* A line of layouts.txt. */
typedef struct line {
    char name[128], folder[64], layout[32], family[32], outcome[16];
    char text[128]; /* of the error or of dict->note, or the folder whose results are expected */
    char why[128];  /* it does not hold yet; "": it does                        */
    dlrn_load_options options;
    char wanted[32]; /* options.layout */
} line;

static line row; /* the one that is tested */

/* "k=4,threshold=0.5" into row.options; whether it could be read. */
static int read_options(char *text) {
    if (!strcmp(text, "-")) return 1;
    for (char *word = strtok(text, ","); word; word = strtok(NULL, ",")) {
        char *value = strchr(word, '=');
        if (!value) return 0;
        *value++ = 0;
        if (!strcmp(word, "layout")) {
            snprintf(row.wanted, sizeof row.wanted, "%s", value);
            row.options.layout = row.wanted;
        } else if (!strcmp(word, "k")) {
            row.options.k = strtol(value, NULL, 10);
        } else if (!strcmp(word, "norm_scale")) {
            row.options.norm_scale = strtod(value, NULL);
        } else if (!strcmp(word, "threshold")) {
            row.options.threshold = strtod(value, NULL);
        } else {
            return 0;
        }
    }
    return 1;
}

/* One line of layouts.txt into row; whether it could be read. */
static int read_line(char *text) {
    char options[128];
    int at = 0;
    char *why = strstr(text, " # ");
    memset(&row, 0, sizeof row);
    text[strcspn(text, "\n")] = 0;
    if (why) {
        if (strncmp(why + 3, "program:", 8)) snprintf(row.why, sizeof row.why, "%s", why + 3);
        *why = 0;
    }
    if (sscanf(text, "%127s %31s %31s %127s %15s%n", row.name, row.layout, row.family, options,
               row.outcome, &at) != 5)
        return 0;
    snprintf(row.folder, sizeof row.folder, "%.*s", (int)strcspn(row.name, "/"), row.name);
    snprintf(row.text, sizeof row.text, "%s", text + at + strspn(text + at, " "));
    for (size_t n = strlen(row.text); n && row.text[n - 1] == ' '; n--) row.text[n - 1] = 0;
    return read_options(options);
}

#endif /* DICTLEARN_TEST_PACK_H */
