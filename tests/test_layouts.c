/* Dictionaries as a dozen libraries wrote them (tests/golden/layouts.npz), each opened as a user
   names it and compared with the library's own features and reconstruction. Each line of
   tests/golden/layouts.txt is one test and says what is expected. Lines that do not hold yet have a
   reason and are skipped; once one holds, it fails until the reason is taken away.

       build/test_layouts [FILTER]     the tests
       build/test_layouts --readme     writes README's table of libraries, which is tested, too */
#include "dictlearn.h"
#include "test.h"
#include "pack.h"

enum { MAX = 64 * 3 * 32 }; /* numbers of an array: 64 rows, 3 layers, 32 features */

static dlrn_context *ctx;

/* An array of a folder; returns how many numbers it has. */
static int64_t read_array(const char *folder, const char *name, float *to) {
    char path[256];
    dlrn_archive *a = NULL;
    snprintf(path, sizeof path, "build/tmp/layouts/%s/%s.npy", folder, name);
    CHECK_OK(ctx, dlrn_archive_open(ctx, path, &a));
    int64_t n = dlrn_archive_tensor(a, 0)->numel;
    CHECK(n <= MAX);
    CHECK_OK(ctx, dlrn_archive_read(a, 0, 0, -1, to));
    dlrn_archive_close(a);
    return n;
}

/* ---- What may be wrong with a line: a text, "" for nothing ---- */

static char wrong[512];

#define WRONG(...)                                                                                 \
    do {                                                                                           \
        snprintf(wrong, sizeof wrong, __VA_ARGS__);                                                \
        return 0;                                                                                  \
    } while (0)

/* Whether n numbers are those of the library, up to a share of the largest. */
static int is_near(const char *what, const float *ours, const char *folder, const char *array,
                   int64_t n) {
    static float theirs[MAX];
    double off = 0, max = 0, limit = strcmp(row.outcome, "bf16") ? 3e-6 : 1e-2;
    int64_t wanted = read_array(folder, array, theirs);
    if (wanted != n) WRONG("%s: expected %d numbers, found %d", what, (int)wanted, (int)n);
    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)ours[i] - (double)theirs[i]);
        if (!(d <= off)) off = d; /* a NaN stays */
        max = fmax(max, fabs((double)theirs[i]));
    }
    if (!(off <= limit * max)) WRONG("%s: off by %.1e of the largest", what, off / max);
    return 1;
}

/* What a formula, or that of a part, takes from the other rows of a call, or from their order. */
static int rows_are_apart(const dlrn_dictionary *dict) {
    if (dict->formula.select == DLRN_SELECT_BATCH_TOP_K || dict->formula.standardise == DLRN_ON ||
        !strcmp(dict->family, "Temporal"))
        return 0;
    for (int64_t i = 0; i < dict->n_parts; i++)
        if (!rows_are_apart(dict->part[i].dict)) return 0;
    return 1;
}

/* The decoder alone needs x where there is a skip or a scale of the row. */
static int decodes_alone(const dlrn_dictionary *dict) {
    if (dict->param[DLRN_SKIP] || dict->formula.normalise || !strcmp(dict->family, "Temporal"))
        return 0;
    for (int64_t i = 0; i < dict->n_parts; i++)
        if (!decodes_alone(dict->part[i].dict)) return 0;
    return 1;
}

static float x[MAX], f[MAX], x_hat[MAX], other[MAX], many[MAX];

static int results_are_theirs(const dlrn_dictionary *dict) {
    const char *folder = strcmp(row.outcome, "as") ? row.folder : row.text;
    int64_t n = read_array(row.folder, "input", x) / dict->d_in;
    if (!n) WRONG("rows of %d, wider than the input", (int)dict->d_in);
    CHECK(n * dict->features <= MAX && n * dict->d_out <= MAX);
    CHECK_OK(ctx, dlrn_encode(dict, x, n, f));
    CHECK_OK(ctx, dlrn_forward(dict, x, n, x_hat, NULL));
    if (!is_near("features", f, folder, "features", n * dict->features)) return 0;
    if (!is_near("reconstruction", x_hat, folder, "reconstruction", n * dict->d_out)) return 0;
    dlrn_status s = dlrn_decode(dict, f, n, other);
    if (!decodes_alone(dict)) {
        if (s != DLRN_ERR_UNSUPPORTED) WRONG("decoded without x");
        return 1;
    }
    if (s != DLRN_OK) WRONG("decode: %s", dlrn_error(ctx));
    return is_near("decoded features", other, folder, "reconstruction", n * dict->d_out);
}

/* Few rows and many rows take different paths through the encoder. */
static int many_rows_are_few_rows(const dlrn_dictionary *dict) {
    int64_t n = read_array(row.folder, "input", x) / dict->d_in, copies = 48 / n, d = dict->d_in;
    size_t size = (size_t)(n * dict->features) * sizeof(float);
    if (!rows_are_apart(dict)) return 1;
    for (int64_t i = 0; i < copies * n * d; i++) many[i] = x[i % (n * d)];
    CHECK_OK(ctx, dlrn_encode(dict, x, n, f));
    CHECK_OK(ctx, dlrn_encode(dict, many, copies * n, other));
    for (int64_t i = 0; i < copies; i++)
        if (memcmp(other + i * n * dict->features, f, size)) WRONG("many rows: other features");
    CHECK_OK(ctx, dlrn_forward(dict, x, n, x_hat, NULL));
    CHECK_OK(ctx, dlrn_forward(dict, many, copies * n, other, NULL));
    size = (size_t)(n * dict->d_out) * sizeof(float);
    for (int64_t i = 0; i < copies; i++)
        if (memcmp(other + i * n * dict->d_out, x_hat, size)) WRONG("many rows: another x_hat");
    return 1;
}

/* x, f and x_hat are those of the best set of kernels. */
static int kernels_agree(const char *path, const dlrn_dictionary *dict, int64_t n) {
    const char *name;
    for (int i = 0; (name = test_kernels(i)) != NULL; i++) {
        dlrn_context_config config = {0};
        dlrn_context *with = NULL;
        dlrn_dictionary *again = NULL;
        config.kernels = name;
        CHECK_STATUS(dlrn_context_create(&config, &with), DLRN_OK);
        CHECK_OK(with, dlrn_load(with, path, &row.options, &again));
        CHECK_OK(with, dlrn_encode(again, x, n, other));
        int same = !memcmp(other, f, (size_t)(n * dict->features) * sizeof(float));
        CHECK_OK(with, dlrn_forward(again, x, n, other, NULL));
        same = same && !memcmp(other, x_hat, (size_t)(n * dict->d_out) * sizeof(float));
        dlrn_dictionary_destroy(again);
        dlrn_context_destroy(with);
        if (!same) WRONG("kernels %s: other bits", name);
    }
    return 1;
}

static int is_as_expected(const char *path, const dlrn_dictionary *dict) {
    const char *layout = dict->layout ? dict->layout : "none";
    if (!results_are_theirs(dict) || !many_rows_are_few_rows(dict)) return 0;
    if (!kernels_agree(path, dict, read_array(row.folder, "input", x) / dict->d_in)) return 0;
    if (strcmp(layout, row.layout)) WRONG("layout %s, expected %s", layout, row.layout);
    if (strcmp(dict->family, row.family)) WRONG("family %s, expected %s", dict->family, row.family);
    /* a note where nothing is open would be noise */
    const char *note = strcmp(row.outcome, "as") ? row.text : "";
    if (*note ? !strstr(dict->note, note) : *dict->note)
        WRONG("note \"%s\", expected \"%s\"", dict->note, note);
    return 1;
}

/* Whether the line holds; `wrong` says why not. */
static int holds(void) {
    char path[256];
    dlrn_dictionary *dict = NULL;
    snprintf(path, sizeof path, "build/tmp/layouts/%s", row.name);
    dlrn_status s = dlrn_load(ctx, path, &row.options, &dict);
    int refused = !strcmp(row.outcome, "refused"), good;
    if (s != DLRN_OK) {
        const char *text = dlrn_error(ctx);
        snprintf(wrong, sizeof wrong, "%s", text);
        return refused && !strncmp(text, path, strlen(path)) &&
               strstr(text + strlen(path), row.text);
    }
    if (refused)
        snprintf(wrong, sizeof wrong, "loaded as %s of %s", dict->family,
                 dict->layout ? dict->layout : "no layout");
    good = !refused && is_as_expected(path, dict);
    dlrn_dictionary_destroy(dict);
    return good;
}

/* ---- Lines ---- */

static void test_line(void) {
    unpack(ctx);
    int good = holds();
    if (!*row.why && !good) TEST_FAIL("%s", wrong);
    if (*row.why && good) TEST_FAIL("holds now: take \"# %s\" away", row.why);
    if (*row.why) test_leave(TEST_SKIPPED, __FILE__, __LINE__, "%s (%s)", row.why, wrong);
}

static void test_bad_line(void) {
    TEST_FAIL("layouts.txt: expected NAME LAYOUT FAMILY OPTIONS OUTCOME");
}

static void run_lines(void) {
    char text[512];
    FILE *file = fopen("tests/golden/layouts.txt", "r");
    while (file && fgets(text, sizeof text, file))
        if (*text != '#' && *text != '\n')
            test_run(row.name, read_line(text) ? test_line : test_bad_line);
    if (file) fclose(file);
}

/* No folder of the pack is without a line. */
TEST(each_folder_has_a_line) {
    static char text[1 << 16];
    FILE *file = fopen("tests/golden/layouts.txt", "r");
    CHECK(file && fread(text, 1, sizeof text - 1, file) > 0 && fgetc(file) == EOF);
    fclose(file);
    unpack(ctx);
    CHECK(n_folders > 100);
    for (int i = 0; i < n_folders; i++) {
        char with_path[80], alone[80];
        snprintf(with_path, sizeof with_path, "\n%s/", folders[i]);
        snprintf(alone, sizeof alone, "\n%s ", folders[i]);
        CHECK_MSG(strstr(text, with_path) || strstr(text, alone), "%s has none", folders[i]);
    }
}

/* ---- README's table ---- libraries, files and families from the header's tables; what can be done
   with them, from what happens to the dictionaries above. */

/* Of the dictionaries of one library: how many are right, their families, and the families of those
   that are not loaded, not written as they were, and not screened. */
typedef struct deeds {
    int right;
    char families[512], unread[512], unwritten[512], unscreened[512];
} deeds;

/* Adds a name to a list, once. */
static void list_name(char list[512], const char *name) {
    char quoted[80];
    size_t n = strlen(list);
    snprintf(quoted, sizeof quoted, "`%s`", name);
    if (!strstr(list, quoted)) snprintf(list + n, 512 - n, "%s%s", n ? ", " : "", quoted);
}

/* Whether what was written is the same dictionary, of the same library; folded scales may have
   changed its last bits. f, x_hat: those of `dict`. */
static int reads_back(const char *path, const dlrn_dictionary *dict, int64_t n) {
    dlrn_dictionary *again = NULL;
    const dlrn_load_options options = {NULL, row.options.k, 0, 0, DLRN_OFF};
    double off = 0;
    if (dlrn_load(ctx, path, dict->formula.k ? &options : NULL, &again) != DLRN_OK) return 0;
    int same = again->layout && !strcmp(again->layout, dict->layout) &&
               again->features == dict->features && again->d_out == dict->d_out &&
               dlrn_encode(again, x, n, other) == DLRN_OK;
    for (int64_t i = 0; same && i < n * dict->features; i++)
        off = fmax(off, fabs((double)other[i] - (double)f[i]) / (1e-3 + fabs((double)f[i])));
    same = same && dlrn_forward(again, x, n, other, NULL) == DLRN_OK;
    for (int64_t i = 0; same && i < n * dict->d_out; i++)
        off = fmax(off, fabs((double)other[i] - (double)x_hat[i]) / (1 + fabs((double)x_hat[i])));
    dlrn_dictionary_destroy(again);
    return same && off < 1e-4;
}

/* Writes a dictionary for its own library, to an empty folder or as a file. */
static int is_written(const dlrn_dictionary *dict) {
    static const char *const left[] = {"ae.pt",
                                       "config.json",
                                       "cfg.json",
                                       "sae_weights.safetensors",
                                       "params.npz",
                                       "params.safetensors",
                                       "config.yaml",
                                       "sae.safetensors",
                                       "w.pt",
                                       "w.safetensors",
                                       "w.npz",
                                       "layer_0.safetensors",
                                       "W_enc_0.safetensors",
                                       "W_enc_1.safetensors",
                                       "W_enc_2.safetensors",
                                       "W_dec_0.safetensors",
                                       "W_dec_1.safetensors",
                                       "W_dec_2.safetensors",
                                       "cc_weights.pt",
                                       "model.safetensors"};
    const char *folder = "build/tmp/layouts_written";
    int64_t n = read_array(row.folder, "input", x) / dict->d_in;
    CHECK_OK(ctx, dlrn_encode(dict, x, n, f));
    CHECK_OK(ctx, dlrn_forward(dict, x, n, x_hat, NULL));
    mkdir(folder, 0777);
    for (size_t i = 0; i < sizeof left / sizeof *left; i++) remove(test_path(folder, left[i]));
    if (dlrn_save_as(dict, folder, NULL, NULL, 0) == DLRN_OK && reads_back(folder, dict, n))
        return 1;
    for (int i = 8; i < 11; i++) {
        const char *path = test_path(folder, left[i]);
        if (dlrn_save(dict, path) == DLRN_OK && reads_back(path, dict, n)) return 1;
    }
    return 0;
}

/* Whether a screen serves a dictionary, or all parts of one. */
static int is_screened(const dlrn_dictionary *dict) {
    if (!dict->n_parts) return dlrni_screenable(dict);
    for (int64_t i = 0; i < dict->n_parts; i++)
        if (!dlrni_screenable(dict->part[i].dict)) return 0;
    return 1;
}

/* The header's libraries: first those with rows, then those of several layers alone. */
enum { MAX_LIBRARIES = DLRNI_LIBRARIES + DLRNI_SETS_OF_PARTS };

static const char *library_name(int which) {
    return which < DLRNI_LIBRARIES ? dlrni_library_table[which].name
                                   : dlrni_set_table[which - DLRNI_LIBRARIES].library;
}

/* The first with this name; -1: the header has none. */
static int library_named(const char *name) {
    for (int i = 0; i < MAX_LIBRARIES; i++)
        if (!strcmp(library_name(i), name)) return i;
    return -1;
}

static void count_line(deeds *all) {
    char path[256];
    dlrn_dictionary *dict = NULL;
    int which = library_named(row.layout);
    if (!strcmp(row.outcome, "refused") || which < 0) return;
    deeds *own = &all[which];
    snprintf(path, sizeof path, "build/tmp/layouts/%s", row.name);
    if (*row.why || dlrn_load(ctx, path, &row.options, &dict) != DLRN_OK) {
        list_name(own->unread, row.family);
        return;
    }
    own->right++;
    list_name(own->families, dict->family);
    if (!is_written(dict)) list_name(own->unwritten, dict->family);
    if (!is_screened(dict)) list_name(own->unscreened, dict->family);
    dlrn_dictionary_destroy(dict);
}

/* "yes", or what it does not hold for. The lists have the same names if they are as long. */
static void put_cell(char text[520], const char *not_for, const deeds *own) {
    int none = !own->right || strlen(not_for) == strlen(own->families);
    if (none || !*not_for)
        strcpy(text, *not_for ? "no" : "yes");
    else
        snprintf(text, 520, "not %s", not_for);
}

/* The files that a folder of the library has; "any file": it has no names of its own. */
static void put_files(char *text, size_t size, const dlrni_library *library) {
    const char *weights = library ? library->weights : NULL;
    const char *mark = weights ? strstr(weights, "%d") : NULL;
    int at = mark      ? snprintf(text, size, "`%.*sN%s`", (int)(mark - weights), weights, mark + 2)
             : weights ? snprintf(text, size, "`%s`", weights)
                       : snprintf(text, size, "any file");
    if (library && *library->config)
        snprintf(text + at, size - (size_t)at, ", `%s`", library->config);
}

/* Whether a recipe of the library trains the family. */
static int has_recipe(const char *library, const char *family) {
    for (int r = 0; dlrn_recipe(r); r++) {
        const dlrn_recipe_info *info = dlrn_recipe(r);
        if (info->layout && !strcmp(info->layout, library) && !strcmp(info->family, family))
            return 1;
    }
    return 0;
}

/* Families are those of the header's rows, and those of several layers, which have none. */
static int put_library(char *text, size_t size, int which, const deeds *own) {
    char families[512] = "", files[128], read[520], written[520], screened[520], name[64];
    char trained[520], untrained[512] = "";
    const dlrni_library *library = which < DLRNI_LIBRARIES ? &dlrni_library_table[which] : NULL;
    for (const dlrni_layout *r = library ? library->rows : NULL; r && r->name; r++)
        if (r->family) list_name(families, r->family);
    for (const char *at = strchr(own->families, '`'); at; at = strchr(at + 1, '`')) {
        snprintf(name, sizeof name, "%.*s", (int)strcspn(at + 1, "`"), at + 1);
        list_name(families, name);
        at += strlen(name) + 1;
    }
    if (!*families) return 0;
    for (const char *at = strchr(families, '`'); at; at = strchr(at + 1, '`')) {
        snprintf(name, sizeof name, "%.*s", (int)strcspn(at + 1, "`"), at + 1);
        if (!has_recipe(library_name(which), name)) list_name(untrained, name);
        at += strlen(name) + 1;
    }
    if (strlen(untrained) == strlen(families))
        strcpy(trained, "no");
    else
        snprintf(trained, sizeof trained, *untrained ? "not %s" : "yes", untrained);
    put_files(files, sizeof files, library);
    put_cell(read, own->unread, own);
    put_cell(written, own->unwritten, own);
    put_cell(screened, own->unscreened, own);
    return snprintf(text, size, "| `%s` | %s | %s | %s | %s | %s | %s | %d |\n",
                    library_name(which), files, families, read, written, trained, screened,
                    own->right);
}

/* Between README's marks. */
static void put_table(char *text, size_t size) {
    static deeds all[MAX_LIBRARIES];
    char line_text[512];
    FILE *file = fopen("tests/golden/layouts.txt", "r");
    CHECK(file != NULL);
    memset(all, 0, sizeof all);
    unpack(ctx);
    while (fgets(line_text, sizeof line_text, file))
        if (*line_text != '#' && *line_text != '\n' && read_line(line_text)) count_line(all);
    fclose(file);
    int at = snprintf(text, size,
                      "| library | in a folder | families | load | write | train | screened | "
                      "checked |\n|---|---|---|---|---|---|---|---|\n");
    for (int i = 0; i < MAX_LIBRARIES; i++)
        if (library_named(library_name(i)) == i)
            at += put_library(text + at, size - (size_t)at, i, &all[i]);
    at += snprintf(text + at, size - (size_t)at, "\nKnown, and refused by name:");
    for (int i = 0; i < DLRNI_LIBRARIES; i++)
        for (const dlrni_layout *r = dlrni_library_table[i].rows; r->name; r++)
            if (!r->family) at += snprintf(text + at, size - (size_t)at, " %s;", r->name);
    text[at - 1] = '.';
    snprintf(text + at, size - (size_t)at, "\n");
}

#define BEGIN "<!-- libraries: make readme -->\n"
#define END "<!-- /libraries -->\n"

static char readme[1 << 17], table[1 << 15];

/* README's table: its place in `readme`. */
static char *find_table(char **end) {
    FILE *file = fopen("README.md", "rb");
    CHECK(file != NULL);
    size_t n = fread(readme, 1, sizeof readme - 1, file);
    readme[n] = 0;
    fclose(file);
    char *begin = strstr(readme, BEGIN);
    *end = strstr(readme, END);
    CHECK_MSG(begin && *end > begin, "README.md: the marks of the table are missing");
    return begin + strlen(BEGIN);
}

TEST(readme_has_the_table) {
    char *end, *begin = find_table(&end);
    put_table(table, sizeof table);
    CHECK_MSG((size_t)(end - begin) == strlen(table) && !memcmp(begin, table, strlen(table)),
              "README.md: another table; build/test_layouts --readme writes it");
}

static void test_write_readme(void) {
    char *end, *begin = find_table(&end);
    put_table(table, sizeof table);
    FILE *file = fopen("README.md", "wb");
    CHECK(file && fwrite(readme, 1, (size_t)(begin - readme), file) == (size_t)(begin - readme));
    CHECK(fputs(table, file) >= 0 && fputs(end, file) >= 0 && fclose(file) == 0);
}

int main(int argc, char **argv) {
    int write_readme = argc > 1 && !strcmp(argv[1], "--readme");
    TEST_BEGIN(argc, argv);
    if (dlrn_context_create(NULL, &ctx) != DLRN_OK) return 1;
    if (write_readme) {
        test_state.filter = NULL;
        test_run("write_readme", test_write_readme);
    } else {
        run_lines();
        RUN(each_folder_has_a_line);
        RUN(readme_has_the_table);
    }
    dlrn_context_destroy(ctx);
    return TEST_END();
}
