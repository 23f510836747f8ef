/* test.h - the harness of the C tests: says what failed, where, and with which numbers.

       #define DICTLEARN_IMPLEMENTATION
       #include "dictlearn.h"
       #include "tests/test.h"

       TEST(addition) { CHECK(1 + 1 == 2); }
       int main(int argc, char **argv) {
           TEST_BEGIN(argc, argv);
           RUN(addition);
           return TEST_END();
       }

   The first failed check ends its test (also from inside a helper function), so what follows may
   rely on it. With an argument, only the tests whose name contains it run. Nothing here measures
   time. Programs run from the root of the repository.
*/
#ifndef DICTLEARN_TEST_H
#define DICTLEARN_TEST_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#ifdef _WIN32
#include <direct.h>
#define mkdir(path, mode) _mkdir(path)
#endif

#if defined(__GNUC__) || defined(__clang__)
#define TEST_UNUSED __attribute__((unused)) static
#define TEST_LEAVES(fmt, args) __attribute__((noreturn, format(printf, fmt, args)))
#else
#define TEST_UNUSED static
#define TEST_LEAVES(fmt, args)
#endif

/* An allocator that counts its calls, for dlrn_context_config. */
TEST_UNUSED int64_t tallied;

TEST_UNUSED void *tally_alloc(void *user, size_t size) {
    (void)user;
    tallied++;
    return malloc(size);
}

TEST_UNUSED void tally_release(void *user, void *p) {
    (void)user;
    free(p);
}

/* New dictionaries in one line, where the tests include dictlearn.h before this file. */
#ifdef DICTLEARN_H
TEST_UNUSED dlrn_status new_autoencoder(dlrn_context *ctx, int64_t d, int64_t features,
                                        uint64_t seed, dlrn_dictionary **out) {
    dlrn_dictionary_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.d_in = d;
    desc.features = features;
    desc.seed = seed;
    return dlrn_dictionary_create(ctx, &desc, out);
}

TEST_UNUSED dlrn_status new_identity(dlrn_context *ctx, int64_t d, dlrn_dictionary **out) {
    dlrn_dictionary_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.family = "IdentityDict";
    desc.d_in = d;
    return dlrn_dictionary_create(ctx, &desc, out);
}
#endif

static struct {
    const char *filter; /* run only names that contain it; NULL: all */
    jmp_buf leave;      /* back to the runner                        */
    char why[1024];     /* the failed check, or the reason to skip   */
    int passed, failed, skipped;
} test_state;

enum { TEST_FAILED = 1, TEST_SKIPPED = 2 };

TEST_UNUSED TEST_LEAVES(4, 5) void test_leave(int outcome, const char *file, int line,
                                              const char *format, ...) {
    int at = outcome == TEST_FAILED
                 ? snprintf(test_state.why, sizeof test_state.why, "%s:%d: ", file, line)
                 : 0;
    va_list args;
    va_start(args, format);
    vsnprintf(test_state.why + at, sizeof test_state.why - (size_t)at, format, args);
    va_end(args);
    longjmp(test_state.leave, outcome);
}

TEST_UNUSED void test_run(const char *name, void (*body)(void)) {
    if (test_state.filter && !strstr(name, test_state.filter)) return;
    switch (setjmp(test_state.leave)) {
    case 0:
        body();
        test_state.passed++;
        printf("ok   %s\n", name);
        break;
    case TEST_SKIPPED:
        test_state.skipped++;
        printf("skip %s: %s\n", name, test_state.why);
        break;
    default: test_state.failed++; printf("FAIL %s: %s\n", name, test_state.why);
    }
    fflush(stdout);
}

/* Whether TEST_BRIEF is set in the environment: `make quick`, and valgrind, under which all takes a
   hundred times as long. What takes long then does a part of its work; `make test` does all. */
TEST_UNUSED int test_brief(void) {
    return getenv("TEST_BRIEF") != NULL;
}

TEST_UNUSED void test_run_long(const char *name, void (*body)(void)) {
    if (!test_brief()) {
        test_run(name, body);
    } else if (!test_state.filter || strstr(name, test_state.filter)) {
        test_state.skipped++;
        printf("skip %s: not in brief\n", name);
    }
}

TEST_UNUSED void test_begin(int argc, char **argv) {
    memset(&test_state, 0, sizeof test_state);
    if (argc > 1) test_state.filter = argv[1];
    mkdir("build", 0777);
    mkdir("build/tmp", 0777);
}

TEST_UNUSED int test_end(void) {
    printf("%d passed, %d failed, %d skipped\n", test_state.passed, test_state.failed,
           test_state.skipped);
    return test_state.failed != 0 || test_state.passed + test_state.skipped == 0;
}

/* Relative to the larger; equal values (also both 0) are close, a NaN never is. */
TEST_UNUSED int test_close(double a, double b, double rel) {
    return a == b || fabs(a - b) <= rel * fmax(fabs(a), fabs(b));
}

/* folder/name, in one of a few buffers that take turns. */
TEST_UNUSED char *test_path(const char *folder, const char *name) {
    static char ring[16][1024];
    static int next;
    char *path = ring[next++ % 16];
    snprintf(path, sizeof ring[0], "%s/%s", folder, name);
    return path;
}

TEST_UNUSED char *tmp_path(const char *name) {
    return test_path("build/tmp", name);
}

/* A file of the data that stands beside the repository ($DICTLEARN_SHARED, or ../shared); NULL
   where it is not. */
TEST_UNUSED char *shared_data(const char *name) {
    const char *root = getenv("DICTLEARN_SHARED");
    char folder[512];
    struct stat info;
    snprintf(folder, sizeof folder, "%s/data", root ? root : "../shared");
    char *path = test_path(folder, name);
    return stat(path, &info) == 0 ? path : NULL;
}

#ifdef DICTLEARN_H
TEST_UNUSED const char *test_status_name(dlrn_status s) { /* "DLRN_ERR_SHAPE" */
#define TEST_STATUS_NAME(name, text) #name,
    static const char *const names[] = {DLRN_STATUS_LIST(TEST_STATUS_NAME)};
#undef TEST_STATUS_NAME
    return (unsigned)s < DLRN_STATUS_COUNT ? names[s] : "?";
}

/* Kernel set `index` of those that this processor can run, scalar first; NULL after the last. */
TEST_UNUSED const char *test_kernels(int index) {
    dlrn_context *ctx = NULL;
    const char *name = NULL;
    if (dlrn_context_create(NULL, &ctx) != DLRN_OK) return NULL;
    for (int i = 0; i <= index && (name = dlrn_context_describe(ctx).available[i]) != NULL;) i++;
    dlrn_context_destroy(ctx);
    return name;
}
#endif

#define TEST(name) static void test_##name(void)
#define RUN(name) test_run(#name, test_##name)
#define RUN_LONG(name) test_run_long(#name, test_##name) /* not in brief runs */
#define TEST_BEGIN(argc, argv) test_begin((argc), (argv))
#define TEST_END() test_end()
#define TEST_FAIL(...) test_leave(TEST_FAILED, __FILE__, __LINE__, __VA_ARGS__)
#define SKIP(why) test_leave(TEST_SKIPPED, __FILE__, __LINE__, "%s", (why))

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond)) TEST_FAIL("%s", #cond);                                                       \
    } while (0)
#define CHECK_MSG(cond, ...)                                                                       \
    do {                                                                                           \
        if (!(cond)) TEST_FAIL(__VA_ARGS__);                                                       \
    } while (0)
#define CHECK_STATUS(call, expected)                                                               \
    do {                                                                                           \
        dlrn_status test_s = (call), test_e = (expected);                                          \
        if (test_s != test_e)                                                                      \
            TEST_FAIL("%s gave %s, expected %s", #call, test_status_name(test_s),                  \
                      test_status_name(test_e));                                                   \
    } while (0)
#define CHECK_OK(ctx, call)                                                                        \
    do {                                                                                           \
        dlrn_status test_s = (call);                                                               \
        if (test_s != DLRN_OK)                                                                     \
            TEST_FAIL("%s gave %s: %s", #call, test_status_name(test_s), dlrn_error(ctx));         \
    } while (0)
#define CHECK_CLOSE(a, b, rel)                                                                     \
    do {                                                                                           \
        double test_a = (double)(a), test_b = (double)(b);                                         \
        if (!test_close(test_a, test_b, (rel)))                                                    \
            TEST_FAIL("%s = %.9g, %s = %.9g", #a, test_a, #b, test_b);                             \
    } while (0)
#define CHECK_STR(haystack, needle)                                                                \
    do {                                                                                           \
        const char *test_h = (haystack), *test_n = (needle);                                       \
        if (!test_h || !strstr(test_h, test_n))                                                    \
            TEST_FAIL("\"%s\" lacks \"%s\"", test_h ? test_h : "(null)", test_n);                  \
    } while (0)

#ifdef DICTLEARN_H
/* A context with these kernels and threads. */
TEST_UNUSED dlrn_context *test_context(const char *kernels, int threads) {
    dlrn_context_config cfg = {0};
    dlrn_context *ctx = NULL;
    cfg.kernels = kernels;
    cfg.threads = threads;
    CHECK_STATUS(dlrn_context_create(&cfg, &ctx), DLRN_OK);
    return ctx;
}
#endif

/* The largest difference between two arrays [n], over the largest value of the second. */
TEST_UNUSED double apart(const float *a, const float *b, int64_t n) {
    double most = 0, scale = 1e-30;
    for (int64_t i = 0; i < n; i++) {
        most = fmax(most, fabs((double)a[i] - (double)b[i]));
        scale = fmax(scale, fabs((double)b[i]));
    }
    return most / scale;
}

/* got [n] is want, to 3e-6 of the largest: as near as sums in f32 of another order come. */
TEST_UNUSED void check_near(const char *what, const float *got, const float *want, int64_t n) {
    double max = 0;
    for (int64_t i = 0; i < n; i++) max = fmax(max, fabs((double)want[i]));
    for (int64_t i = 0; i < n; i++)
        CHECK_MSG(fabs((double)got[i] - (double)want[i]) <= 3e-6 * max,
                  "%s [%d]: expected %.9g, found %.9g", what, (int)i, (double)want[i],
                  (double)got[i]);
}
#endif /* DICTLEARN_TEST_H */
