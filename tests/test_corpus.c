/* test_corpus.c - files that others made: each loads with PyTorch's numbers (tests/corpus.txt,
   written by tests/make_corpus_table.py) or fails with the right words. The files stand beside the
   repository. */
#include "dictlearn.h"
#include "tests/test.h"

enum { FIELDS = 10, LINE = 1024 };
enum { KIND, FILE_NAME, NAME, DTYPE, SHAPE, SUM, ABS, FIRST, LAST, ORDER };

static dlrn_context *ctx;
static dlrn_archive *file; /* the one that the last `tensors` line opened */

/* Cuts a line at its tabs; how many fields. */
static int cut(char *line, char *field[FIELDS]) {
    int n = 0;
    line[strcspn(line, "\n")] = 0;
    for (char *at = line; at && n < FIELDS; n++) {
        field[n] = at;
        if ((at = strchr(at, '\t')) != NULL) *at++ = 0;
    }
    return n;
}

/* Equal up to the order of summation; NaN and infinities as they are. */
static int same(double a, double b, double scale) {
    return a == b || (isnan(a) && isnan(b)) || fabs(a - b) <= 1e-12 * scale;
}

static char *corpus_path(const char *name) {
    char path[LINE];
    snprintf(path, sizeof path, "loader_corpus/%s", name);
    return shared_data(path);
}

static void check_shape(const dlrn_tensor_info *info, const char *name, const char *shape) {
    char found[256] = "";
    for (int i = 0, at = 0; i < info->ndim; i++)
        at += snprintf(found + at, sizeof found - (size_t)at, i ? ",%lld" : "%lld",
                       (long long)info->shape[i]);
    CHECK_MSG(!strcmp(found, shape), "%s: shape [%s], expected [%s]", name, found, shape);
}

/* Reads integers, which are refused as floats. */
static void read_integers(int64_t index, float *x, int64_t n) {
    int64_t *whole = (int64_t *)malloc((size_t)(n + 1) * sizeof *whole);
    CHECK_STATUS(dlrn_archive_read(file, index, 0, -1, x), n > 1 ? DLRN_ERR_UNSUPPORTED : DLRN_OK);
    CHECK_OK(ctx, dlrni_archive_read_i64(file, index, whole));
    for (int64_t i = 0; i < n; i++) x[i] = (float)whole[i];
    free(whole);
}

static void check_numbers(int64_t index, char *field[FIELDS]) {
    const dlrn_tensor_info *info = dlrn_archive_tensor(file, index);
    double want[5], sum = 0, magnitude = 0, order = 0;
    for (int i = 0; i < 5; i++) want[i] = strtod(field[SUM + i], NULL);
    float *x = (float *)calloc((size_t)info->numel + 1, sizeof *x);
    if (dlrni_is_float(info->dtype))
        CHECK_OK(ctx, dlrn_archive_read(file, index, 0, -1, x));
    else
        read_integers(index, x, info->numel);
    for (int64_t i = 0; i < info->numel; i++) {
        sum += (double)x[i];
        magnitude += fabs((double)x[i]);
        order += (double)(i + 1) * (double)x[i];
    }
    double first = (double)x[0], last = (double)x[info->numel ? info->numel - 1 : 0];
    CHECK_MSG(same(sum, want[0], want[1]), "%s: sum %.17g, expected %.17g", info->name, sum,
              want[0]);
    CHECK_MSG(same(magnitude, want[1], want[1]), "%s: |x| %.17g, expected %.17g", info->name,
              magnitude, want[1]);
    CHECK_MSG(same(order, want[4], want[1] * (double)info->numel), "%s: in another order",
              info->name);
    CHECK_MSG(same(first, want[2], 0), "%s: first %.17g, expected %.17g", info->name, first,
              want[2]);
    CHECK_MSG(same(last, want[3], 0), "%s: last %.17g, expected %.17g", info->name, last, want[3]);
    free(x);
}

static void check_tensor(char *field[FIELDS]) {
    int64_t index = dlrn_archive_find(file, field[NAME]);
    CHECK_MSG(index >= 0, "%s: no tensor '%s'", field[FILE_NAME], field[NAME]);
    const dlrn_tensor_info *info = dlrn_archive_tensor(file, index);
    CHECK_MSG(!strcmp(dlrn_name(DLRN_NAMES_DTYPE, info->dtype), field[DTYPE]),
              "%s: '%s' is %s, expected %s", field[FILE_NAME], info->name,
              dlrn_name(DLRN_NAMES_DTYPE, info->dtype), field[DTYPE]);
    check_shape(info, info->name, field[SHAPE]);
    check_numbers(index, field);
}

static void check_error(char *field[FIELDS]) {
    dlrn_archive *none = NULL;
    dlrn_status s = dlrn_archive_open(ctx, corpus_path(field[FILE_NAME]), &none);
    CHECK_MSG(s == DLRN_ERR_FORMAT || s == DLRN_ERR_UNSUPPORTED, "%s: %s", field[FILE_NAME],
              test_status_name(s));
    CHECK(none == NULL);
    CHECK_STR(dlrn_error(ctx), field[FILE_NAME]);
    CHECK_STR(dlrn_error(ctx), field[NAME]);
}

static void open_next(char *field[FIELDS]) {
    dlrn_archive_close(file);
    file = NULL;
    char *path = corpus_path(field[FILE_NAME]);
    CHECK_MSG(path != NULL, "%s is not there", field[FILE_NAME]);
    CHECK_OK(ctx, dlrn_archive_open(ctx, path, &file));
    CHECK_MSG(dlrn_archive_describe(file).count == atoi(field[NAME]),
              "%s: %lld tensors, expected %s", field[FILE_NAME],
              (long long)dlrn_archive_describe(file).count, field[NAME]);
}

/* Takes the lines whose file's name contains `part`. */
static void check_files(const char *part) {
    char line[LINE], *field[FIELDS];
    int files = 0;
    if (!shared_data("loader_corpus")) SKIP("the files are not beside the repository");
    FILE *table = fopen("tests/corpus.txt", "r");
    CHECK(table != NULL);
    while (fgets(line, sizeof line, table)) {
        int n = cut(line, field);
        CHECK(n >= 3);
        if (!strstr(field[FILE_NAME], part)) continue;
        files += strcmp(field[KIND], "tensor") != 0;
        if (!strcmp(field[KIND], "tensors")) open_next(field);
        if (!strcmp(field[KIND], "tensor")) check_tensor(field);
        if (!strcmp(field[KIND], "error")) check_error(field);
    }
    fclose(table);
    CHECK(files > 0);
}

TEST(burn_modules) {
    check_files("burn/pytorch-tests");
}
TEST(burn_reader) {
    check_files("burn/src__");
}
TEST(burn_models) {
    check_files("burn/mnist");
    check_files("burn/lpips");
    check_files("burn/safetensors-tests");
}
TEST(safetensors_samples) {
    check_files("safetensors-samples/");
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    if (dlrn_context_create(NULL, &ctx) != DLRN_OK) return 1;
    RUN(burn_modules);
    RUN(burn_reader);
    RUN(burn_models);
    RUN(safetensors_samples);
    dlrn_archive_close(file);
    dlrn_context_destroy(ctx);
    return TEST_END();
}
