/* test_files.c - JSON, .npy, .npz, gzip, safetensors: every form that is promised is read, every
   malformed one is refused with words that name it. The files are made here, byte by byte. Pickles:
   test_pickle.c; whole dictionaries, and writing: test_load.c. */
static int refuses_maps; /* some file systems cannot map a file; Windows maps none */
#ifndef _WIN32           /* external: the Makefile puts it into the object that is linked */
#include <sys/mman.h>
#include <sys/types.h>

void *test_mmap(void *at, size_t size, int protection, int flags, int file, off_t offset);
void *test_mmap(void *at, size_t size, int protection, int flags, int file, off_t offset) {
    return refuses_maps ? MAP_FAILED : mmap(at, size, protection, flags, file, offset);
}
#define mmap test_mmap
#endif
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#undef mmap
#include "tests/bytes.h"

#include <float.h>
#include <locale.h>

static bytes b;
static zip z;

/* ---- JSON ---- */

static dlrn_status parse(const char *text, size_t n, dlrn_json **root) {
    char *exact =
        (char *)malloc(n + 1); /* one more, so that n may be 0; text starts at the second */
    memcpy(exact + 1, text, n);
    dlrn_status s = dlrn_json_parse(ctx, exact + 1, n, "bad.json", root);
    free(exact);
    return s;
}

TEST(json_refuses) {
    static const struct {
        const char *text, *words;
    } bad[] = {
        {"", "byte 0: the text ends where a value is expected"},
        {" \n ", "line 2, byte 3: the text ends where a value is expected"},
        {"{", "expected a string"},
        {"[1,2", "expected ',' or the closing bracket"},
        {"[1 2]", "expected ',' or the closing bracket"},
        {"[1,]", "a comma before the closing bracket"},
        {"{\"a\":1,}", "a comma before the closing bracket"},
        {"[,1]", "expected a value"},
        {"{\"a\" 1}", "expected ':'"},
        {"{a:1}", "expected a string"},
        {"{'a':1}", "expected a string"},
        {"{\"a\":1,\"b\":2,\"a\":3}", "key \"a\": expected once in an object, found twice"},
        {"{\"a\":1,\"\\u0061\":3}", "key \"a\": expected once in an object, found twice"},
        {"1 2", "unexpected text after the value"},
        {"{}x", "unexpected text after the value"},
        {"nul", "expected a value"},
        {"True", "expected a value"},
        {"nan", "expected a value"},
        {"Nan", "expected a value"},
        {"NaN1", "unexpected text after the value"},
        {"-NaN", "malformed number"},
        {"+Infinity", "expected a value"},
        {"-Inf", "malformed number"},
        {"\"a\": NaN", "unexpected text after the value"},
        {"01", "malformed number"},
        {"-", "malformed number"},
        {"+1", "expected a value"},
        {"1.", "malformed number"},
        {".5", "expected a value"},
        {"1e", "malformed number"},
        {"1e+", "malformed number"},
        {"-01", "malformed number"},
        {"0x10", "unexpected text after the value"},
        {"\"a", "the text ends inside a string"},
        {"\"a\\", "the text ends inside a string"},
        {"\"\\x\"", "unknown escape"},
        {"\"\\u12\"", "unknown escape"},
        {"\"\\u12G4\"", "unknown escape"},
        {"\"\\ud800\"", "a surrogate without its partner"},
        {"\"\\udc00\"", "a surrogate without its partner"},
        {"\"\\udc00\\udc00\"", "a surrogate without its partner"},
        {"\"\\ud800\\u0041\"", "a surrogate without its partner"},
        {"\"\\ud800abcdef\"", "a surrogate without its partner"},
        {"\"\\ud800\\nabcd\"", "a surrogate without its partner"},
        {"\"\\ud800\\udc0g\"", "a surrogate without its partner"},
        {"\"\\ud800\\ue000\"", "a surrogate without its partner"},
        {"\"\t\"", "a control character in a string"},
        {"\"\n\"", "a control character in a string"},
        {"\"\xff\"", "a string is not UTF-8"},
        {"\"\xc0\xaf\"", "a string is not UTF-8"},         /* overlong */
        {"\"\xe0\x9f\xbf\"", "a string is not UTF-8"},     /* and of three bytes */
        {"\"\xf0\x8f\xbf\xbf\"", "a string is not UTF-8"}, /* and of four */
        {"\"\xc3(\"", "a string is not UTF-8"},            /* no second byte */
        {"\"\xed\xa0\x80\"", "a string is not UTF-8"},     /* surrogate */
        {"\"\xf4\x90\x80\x80\"", "a string is not UTF-8"}, /* beyond U+10FFFF */
        {"\"\xe2\x82", "a string is not UTF-8"},           /* cut short */
        {"\xef\xbb\xbf{}", "expected a value"},            /* byte order mark */
        {"// no\n1", "expected a value"},
        {"[1] // no", "unexpected text after the value"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        dlrn_json *root = NULL;
        dlrn_status s = parse(bad[i].text, strlen(bad[i].text), &root);
        CHECK_MSG(s == DLRN_ERR_FORMAT, "%s: %s", bad[i].text, test_status_name(s));
        CHECK(root == NULL);
        CHECK_STR(dlrn_error(ctx), "bad.json: JSON");
        CHECK_MSG(strstr(dlrn_error(ctx), bad[i].words) != NULL, "%s: '%s' lacks '%s'", bad[i].text,
                  dlrn_error(ctx), bad[i].words);
    }
}

TEST(json_refuses_bytes_of_zero) {
    dlrn_json *root;
    CHECK_STATUS(parse("[1\0]", 4, &root), DLRN_ERR_FORMAT);
    CHECK_STATUS(parse("\"a\0b\"", 5, &root), DLRN_ERR_FORMAT);
    CHECK_STR(dlrn_error(ctx), "a control character in a string");
    CHECK_STATUS(parse("\"\\\0\"", 4, &root), DLRN_ERR_FORMAT);
    CHECK_STR(dlrn_error(ctx), "unknown escape");
}

TEST(json_reads) {
    static const char text[] = " {\"a.b\": [1, -2.5e+2, true, null], \"t\": {\"dict_class\": "
                               "\"\\u00e9\\ud83d\\ude00\\n\"},"
                               "\"z\": \"x\\u0000y\", \"\": 0, \"big\": 1e400} ";
    dlrn_json *root;
    CHECK_OK(ctx, parse(text, sizeof text - 1, &root));
    CHECK(root->type == DLRN_JSON_OBJECT && root->count == 5);
    const dlrn_json *list = root->first;
    CHECK(list->type == DLRN_JSON_ARRAY && list->count == 4 && !strcmp(list->key, "a.b"));
    CHECK(list->first->number == 1.0 && list->first->next->number == -250.0);
    CHECK(!strcmp(list->first->next->text, "-2.5e+2"));
    CHECK(list->first->next->next->type == DLRN_JSON_BOOL &&
          list->first->next->next->next->type == DLRN_JSON_NULL);
    CHECK(!strcmp(dlrn_json_text(root, "t.dict_class", "?"), "\xc3\xa9\xf0\x9f\x98\x80\n"));
    CHECK(!strcmp(dlrn_json_text(root, "t.nothing", "?"), "?") && dlrn_json_get(NULL, "a") == NULL);
    const dlrn_json *zero = dlrn_json_get(root, "z");
    CHECK(zero && zero->text_len == 3 && !memcmp(zero->text, "x\0y", 4));
    CHECK(isinf(dlrn_json_number(root, "big", 0)) && dlrn_json_number(root, "t", 7) == 7.0);
    dlrn_free(ctx, root);
}

/* As Python's json module writes them. */
TEST(json_not_finite) {
    static const char text[] = "{\"a\": NaN, \"b\": [Infinity,-Infinity], \"c\": 1e999}";
    dlrn_json *root;
    int64_t size = 0;
    CHECK_OK(ctx, parse(text, sizeof text - 1, &root));
    const dlrn_json *list = dlrn_json_get(root, "b"), *nan = dlrn_json_get(root, "a");
    CHECK(nan->type == DLRN_JSON_NUMBER && isnan(nan->number) && !strcmp(nan->text, "NaN"));
    CHECK(nan->text_len == 3 && isnan(dlrn_json_number(root, "a", 1)));
    CHECK(list->count == 2 && list->first->number > DBL_MAX);
    CHECK(list->first->next->number < -DBL_MAX && !strcmp(list->first->next->text, "-Infinity"));
    CHECK(!dlrni_json_size(nan, &size) && !dlrni_json_size(list->first, &size));
    dlrn_free(ctx, root);
    CHECK_OK(ctx, parse("NaN", 3, &root)); /* all of the text: its 0 has room */
    CHECK(isnan(root->number));
    dlrn_free(ctx, root);
}

/* The same characters of two, three and four bytes, escaped and as they are; and the first and last
   of each length. */
TEST(json_characters) {
    static const char both[][96] = {
        "[\"\\u00e9\\u20AC\\ud83d\\ude00\", \"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\"]",
        "[\"\\u0080\\u07ff\\u0800\\ud7ff\", \"\xc2\x80\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\"]",
        "[\"\\ue000\\uffff\\ud800\\udc00\", \"\xee\x80\x80\xef\xbf\xbf\xf0\x90\x80\x80\"]",
        "\t[\r\n\"\\udbff\\udfff\"\t,\r\"\xf4\x8f\xbf\xbf\"\r]\t",
    };
    for (size_t i = 0; i < sizeof both / sizeof *both; i++) {
        dlrn_json *root;
        CHECK_OK(ctx, parse(both[i], strlen(both[i]), &root));
        CHECK_MSG(!strcmp(root->first->text, root->first->next->text) && root->count == 2, "%s",
                  both[i]);
        dlrn_free(ctx, root);
    }
}

/* Numbers have a point, whatever the host writes. */
TEST(json_in_a_locale_of_commas) {
    static const char *const names[] = {"de_DE.UTF-8", "de_DE.utf8",  "de_DE",
                                        "fr_FR.UTF-8", "nl_NL.UTF-8", "da_DK.UTF-8"};
    dlrn_json *root;
    const char *set = NULL;
    const double wanted = 0.15; /* a constant may be wider than a double */
    for (size_t i = 0; i < sizeof names / sizeof *names && !set; i++)
        set = setlocale(LC_NUMERIC, names[i]);
    if (!set) SKIP("no locale with a decimal comma");
    dlrn_status s = parse("[1.5e-1, 12, -0.25]", 19, &root);
    setlocale(LC_NUMERIC, "C");
    CHECK_OK(ctx, s);
    CHECK(root->first->number == wanted && !strcmp(root->first->text, "1.5e-1"));
    CHECK(root->first->next->number == 12 && root->first->next->next->number == -0.25);
    dlrn_free(ctx, root);
}

TEST(json_depth) {
    char text[140];
    dlrn_json *root;
    memset(text, '[', 70);
    memset(text + 70, ']', 70);
    CHECK_OK(ctx, parse(text + 6, 128, &root));
    dlrn_free(ctx, root);
    CHECK_STATUS(parse(text + 5, 130, &root), DLRN_ERR_FORMAT);
    CHECK_STR(dlrn_error(ctx), "nested deeper than 64");
}

/* ---- .npy ---- */

/* A header of the given version, then bytes of data. */
static bytes *npy(int version, const char *header, const void *data, size_t n) {
    b.n = 0;
    put(&b, "\x93NUMPY", 6);
    put_le(&b, (uint64_t)version, 2);
    put_le(&b, strlen(header), version == 1 ? 2 : 4);
    put_text(&b, header);
    if (n) put(&b, data, n);
    return &b;
}

/* The same, of floats. */
static bytes *npy_f4(int version, const char *header, const float *x, size_t size) {
    npy(version, header, NULL, 0);
    put_floats(&b, x, (int)(size / sizeof *x));
    return &b;
}

TEST(npy_versions) {
    static const float x[6] = {0, 1, 2, 3, 4, 5};
    for (int version = 1; version <= 3; version++) {
        dlrn_archive *a = accept(
            npy_f4(version, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }  \n", x,
                   sizeof x));
        CHECK(!strcmp(dlrn_archive_describe(a).format, "npy") &&
              dlrn_archive_describe(a).count == 1);
        CHECK(dlrn_archive_tensor(a, 0)->ndim == 2 && dlrn_archive_tensor(a, 0)->shape[1] == 3);
        expect_numbers(a, "", NULL, 6);
    }
}

TEST(npy_types) {
    static const struct {
        const char *code;
        dlrn_dtype type;
        unsigned char little[16];
        float want[2];
    } types[] = {
        {"<f4", DLRN_F32, {0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0}, {1, -2}},
        {"=f4", DLRN_F32, {0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0}, {1, -2}},
        {">f4", DLRN_F32, {0x3f, 0x80, 0, 0, 0xc0, 0, 0, 0}, {1, -2}},
        {"<f2", DLRN_F16, {0, 0x3c, 1, 0}, {1, 5.9604645e-8f}},
        {">f2", DLRN_F16, {0x3c, 0, 0, 1}, {1, 5.9604645e-8f}},
        {"<f8", DLRN_F64, {0, 0, 0, 0, 0, 0, 0xf0, 0x3f, 0, 0, 0, 0, 0, 0, 0, 0xc0}, {1, -2}},
        {">f8", DLRN_F64, {0x3f, 0xf0, 0, 0, 0, 0, 0, 0, 0xc0, 0, 0, 0, 0, 0, 0, 0}, {1, -2}},
        {"<i8",
         DLRN_I64,
         {5, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255},
         {5, -1}},
        {"<i4", DLRN_I32, {5, 0, 0, 0, 255, 255, 255, 255}, {5, -1}},
        {">i4", DLRN_I32, {0, 0, 0, 5, 255, 255, 255, 255}, {5, -1}},
        {"<i2", DLRN_I16, {5, 0, 255, 255}, {5, -1}},
        {"|i1", DLRN_I8, {5, 255}, {5, -1}},
        {"<u8", DLRN_U64, {5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 128}, {5, 9.2233720e18f}},
        {"<u4", DLRN_U32, {5, 0, 0, 0, 255, 255, 255, 255}, {5, 4294967295.0f}},
        {"<u2", DLRN_U16, {5, 0, 255, 255}, {5, 65535}},
        {"|u1", DLRN_U8, {5, 255}, {5, 255}},
        {"|b1", DLRN_BOOL, {0, 1}, {0, 1}}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        char header[96];
        snprintf(header, sizeof header,
                 "{'descr': '%s', 'fortran_order': False, 'shape': (2,), }\n", types[i].code);
        size_t size = 2 * (size_t)(types[i].code[2] - '0');
        dlrn_archive *a = accept(npy(1, header, types[i].little, size));
        CHECK(dlrn_archive_tensor(a, 0)->dtype == types[i].type);
        expect_numbers(a, "", types[i].want, 2);
    }
}

TEST(npy_orders) {
    static const float x[6] = {0, 3, 1, 4, 2, 5}, one = 7;
    expect_numbers(accept(npy_f4(1, "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }\n",
                                 x, sizeof x)),
                   "", NULL, 6);
    expect_numbers(accept(npy_f4(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (), }\n",
                                 &one, sizeof one)),
                   "", &one, 1);
    expect_numbers(
        accept(npy_f4(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 3), }\n", x, 0)),
        "", NULL, 0);
    dlrn_archive *a = accept(
        npy_f4(1, "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }\n", x, sizeof x));
    float row[3];
    CHECK_OK(ctx, dlrn_archive_read(a, 0, 1, 1, row));
    CHECK(row[0] == 3 && row[1] == 4 && row[2] == 5);
    CHECK_STATUS(dlrn_archive_read(a, 0, 1, 2, row), DLRN_ERR_ARGUMENT);
    CHECK_STATUS(dlrn_archive_read(a, 1, 0, 1, row), DLRN_ERR_ARGUMENT);
    dlrn_archive_close(a);
    static const int64_t outside[][2] = {
        {-1, 1}, {-1, -1}, {0, -2}, {3, -1}, {3, 0}, {2, 1}, {INT64_MAX, INT64_MAX}};
    a = accept(
        npy_f4(1, "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }\n", x, sizeof x));
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) {
        CHECK_STATUS(dlrn_archive_read(a, 0, outside[i][0], outside[i][1], row), DLRN_ERR_ARGUMENT);
        CHECK_STR(dlrn_error(ctx), "dlrn_archive_read: rows out of range");
    }
    for (int64_t i = -1; i < 2; i += 2) {
        int64_t whole[6];
        CHECK_STATUS(dlrn_archive_read(a, i, 0, 1, row), DLRN_ERR_ARGUMENT);
        CHECK_STR(dlrn_error(ctx), "dlrn_archive_read: no such tensor");
        CHECK_STATUS(dlrn_archive_read(a, i, 0, -1, row), DLRN_ERR_ARGUMENT);
        CHECK_STR(dlrn_error(ctx), "dlrn_archive_read: no such tensor");
        CHECK_STATUS(dlrni_archive_read_i64(a, i, whole), DLRN_ERR_ARGUMENT);
        CHECK_STR(dlrn_error(ctx), ": no such tensor");
        CHECK(dlrn_archive_tensor(a, i) == NULL);
    }
    dlrn_archive_close(a);
    a = accept(
        npy_f4(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (), }\n", &one, sizeof one));
    CHECK_OK(ctx, dlrn_archive_read(a, 0, 0, 1, row)); /* a number is one row */
    CHECK(row[0] == 7);
    CHECK_STATUS(dlrn_archive_read(a, 0, 1, 1, row), DLRN_ERR_ARGUMENT);
    dlrn_archive_close(a);
}

/* Numbers that are not integers are refused, not truncated; bools and unsigned ones are read. */
TEST(npy_wholes) {
    static const float x[3] = {-2.75f, 1e20f, 3};
    static const unsigned char bools[3] = {1, 0, 1}, longs[8] = {0, 0, 0, 0, 0, 0, 0, 0x80};
    int64_t n[3] = {7, 7, 7};
    dlrn_archive *a = accept(
        npy_f4(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }\n", x, sizeof x));
    CHECK_STATUS(dlrni_archive_read_i64(a, 0, n), DLRN_ERR_FORMAT);
    CHECK_STR(dlrn_error(ctx), "hostile.file: tensor '': expected integers, found F32");
    CHECK(n[0] == 7);
    dlrn_archive_close(a);
    a = accept(npy(1, "{'descr': '|b1', 'fortran_order': False, 'shape': (3,), }\n", bools, 3));
    CHECK_OK(ctx, dlrni_archive_read_i64(a, 0, n));
    CHECK(n[0] == 1 && n[1] == 0 && n[2] == 1);
    dlrn_archive_close(a);
    a = accept(npy(1, "{'descr': '<i8', 'fortran_order': False, 'shape': (), }\n", longs, 8));
    CHECK_OK(ctx, dlrni_archive_read_i64(a, 0, n));
    CHECK(n[0] == INT64_MIN);
    dlrn_archive_close(a);
}

/* Nothing is there, whatever the other sizes are. */
TEST(npy_empty_and_vast) {
    float none = 0;
    dlrn_archive *a = accept(npy(1,
                                 "{'descr': '<f4', 'fortran_order': False, "
                                 "'shape': (1099511627776, 1099511627776, 0), }\n",
                                 &none, 0));
    CHECK_OK(ctx, dlrn_archive_read(a, 0, 0, -1, &none));
    CHECK_OK(ctx, dlrn_archive_read(a, 0, 0, 1099511627776, &none));
    dlrn_archive_close(a);
}

#define FAR "9223372036854775807, "

TEST(npy_refuses) {
    static const struct {
        const char *header;
        dlrn_status status;
        const char *words;
    } bad[] = {
        {"", DLRN_ERR_FORMAT, "malformed .npy header"},
        {"{'fortran_order': False, 'shape': (2,), }", DLRN_ERR_FORMAT, "malformed .npy header"},
        {"{'descr': '<f4', 'shape': (2,), }", DLRN_ERR_FORMAT, "malformed .npy header"},
        {"{'descr': '<f4', 'fortran_order': Maybe, 'shape': (2,), }", DLRN_ERR_FORMAT,
         "malformed .npy header"},
        {"{'descr': '<f4', 'fortran_order': False, }", DLRN_ERR_FORMAT, "malformed .npy header"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2", DLRN_ERR_FORMAT,
         "malformed .npy header"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}", DLRN_ERR_FORMAT,
         "malformed .npy header"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': 2}", DLRN_ERR_FORMAT,
         "malformed .npy header"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2a)}", DLRN_ERR_FORMAT,
         "malformed .npy header"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775808,)}",
         DLRN_ERR_FORMAT, "malformed .npy header"},
        {"{'descr' '<f4', 'fortran_order': False, 'shape': (2,)}", DLRN_ERR_FORMAT,
         "malformed .npy header"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}",
         DLRN_ERR_FORMAT, "malformed .npy header"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,1)}", DLRN_ERR_FORMAT,
         "malformed .npy header"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296,4294967296)}",
         DLRN_ERR_FORMAT, "shape [4294967296, 4294967296] overflows"},
        {"{'descr': '<f4', 'fortran_order': True, 'shape': (4294967296,4294967296)}",
         DLRN_ERR_FORMAT, "shape [4294967296, 4294967296] overflows"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (" FAR FAR FAR FAR FAR FAR FAR FAR ")}",
         DLRN_ERR_FORMAT,
         "shape [9223372036854775807, 9223372036854775807, 9223372036854775807, "
         "9223372036854775807, "
         "9223372036854775807, 9223372036854775807, 9] overflows"}, /* as much as there is room for
                                                                     */
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}", DLRN_ERR_FORMAT,
         "shape [3] at offset 0 does not fit its storage: expected at most 2 elements"},
        {"{'descr': '<f4', 'fortran_order': True, 'shape': (3, 1)}", DLRN_ERR_FORMAT,
         "shape [3, 1] at offset 0 does not fit its storage"},
        {"{'descr': '<c8', 'fortran_order': False, 'shape': (1,)}", DLRN_ERR_UNSUPPORTED,
         "unsupported dtype '<c8'"},
        {"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", DLRN_ERR_UNSUPPORTED,
         "unsupported dtype '|O'"},
        {"{'descr': '<f16', 'fortran_order': False, 'shape': (1,)}", DLRN_ERR_UNSUPPORTED,
         "unsupported dtype '<f16':"},
        {"{'descr': '<f42', 'fortran_order': False, 'shape': (1,)}", DLRN_ERR_UNSUPPORTED,
         "unsupported dtype '<f42':"},
        {"{'descr': 'f4', 'fortran_order': False, 'shape': (1,)}", DLRN_ERR_UNSUPPORTED,
         "unsupported dtype 'f4':"},
        {"{'fortran_order': False, 'shape': (1,), 'descr': '", DLRN_ERR_UNSUPPORTED,
         "unsupported dtype ': expected"},
        {"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", DLRN_ERR_UNSUPPORTED,
         "unsupported dtype [('a', '<f4"},
        {"{'descr': '<U3', 'fortran_order': False, 'shape': ()}", DLRN_ERR_UNSUPPORTED,
         "unsupported dtype '<U3'"},
    };
    static const float x[2] = {0, 1};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refuse(npy_f4(1, bad[i].header, x, sizeof x), bad[i].status, bad[i].words);
}

TEST(npy_cut_short) {
    static const char words[] = "expected a .npy header, found a truncated one or none";
    static const float x[2] = {0, 1};
    bytes *whole =
        npy_f4(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n", x, sizeof x);
    size_t header = whole->n - sizeof x;
    for (size_t n = 6; n < header; n++) {
        whole->n = n;
        refuse(whole, DLRN_ERR_FORMAT, words);
    }
    whole->n = header + 7;
    refuse(whole, DLRN_ERR_FORMAT, "expected at most 1 elements");
    refuse(npy_f4(0, "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n", x, sizeof x),
           DLRN_ERR_FORMAT, words);
    refuse(npy_f4(4, "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n", x, sizeof x),
           DLRN_ERR_FORMAT, words);
    npy_f4(2, "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n", x, sizeof x);
    patch(&b, 8, 0xFFFFFFFFu, 4); /* 4 GiB of header */
    refuse(&b, DLRN_ERR_FORMAT, words);
}

/* ---- Zips and .npz ---- */

static const float abc[3] = {0, 1, 2};

/* A .npz with one stored array "x". */
static bytes *npz(void) {
    memset(&z, 0, sizeof z);
    zip_add(
        &z, "x.npy",
        npy_f4(1, "{'descr' : '<f4', 'fortran_order': False, 'shape': (3,), }\n", abc, sizeof abc));
    return zip_done(&z);
}

static size_t directory_of(const bytes *file) {
    return find_last(file, "PK\1\2", 4);
}

TEST(npz_stored) {
    dlrn_archive *a = accept(npz());
    CHECK(!strcmp(dlrn_archive_describe(a).format, "npz") && dlrn_archive_describe(a).count == 1);
    expect_numbers(a, "x", NULL, 3);
}

TEST(npz_forms) {
    bytes *file = npz();
    size_t end = file->n;
    put_text(file, "a comment"); /* behind the end record */
    patch(file, end - 2, 9, 2);
    expect_numbers(accept(file), "x", NULL, 3);
    file = npz();
    patch(file, directory_of(file) + 16, 0, 4); /* a sum that was not computed */
    expect_numbers(accept(file), "x", NULL, 3);
    memset(&z, 0, sizeof z);
    dlrn_archive *a = accept(zip_done(&z));
    CHECK(dlrn_archive_describe(a).count == 0);
    dlrn_archive_close(a);
    memset(&z, 0, sizeof z); /* names are names: nothing is ever unpacked to where they point */
    zip_add(
        &z, "../../x.npy",
        npy_f4(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }\n", abc, sizeof abc));
    expect_numbers(accept(zip_done(&z)), "../../x", NULL, 3);
}

TEST(npz_texts) {
    memset(&z, 0, sizeof z);
    zip_add(&z, "format.npy",
            npy(1, "{'descr': '|S3', 'fortran_order': False, 'shape': (), }\n", "csr", 3));
    zip_add(&z, "kind.npy",
            npy(1, "{'descr': '<U3', 'fortran_order': False, 'shape': (), }\n",
                "a\0\0\0b\0\0\0\0\0\0\0", 12));
    zip_add(
        &z, "long.npy",
        npy(1, "{'descr': '|S12', 'fortran_order': False, 'shape': (), }\n", "AutoEncoder\0", 12));
    dlrn_archive *a = accept(zip_done(&z));
    CHECK(dlrn_archive_describe(a).count == 0);
    CHECK_STR(dlrni_archive_metadata(a, "format"), "csr");
    CHECK(!strcmp(dlrni_archive_metadata(a, "kind"), "ab"));
    CHECK(!strcmp(dlrni_archive_metadata(a, "long"), "AutoEncoder"));
    CHECK(dlrni_archive_metadata(a, "none") == NULL);
    dlrn_archive_close(a);
    memset(&z, 0, sizeof z);
    zip_add(
        &z, "x.npy",
        npy(1, "{'descr': '|O', 'fortran_order': False, 'shape': (), }\n", "cos\nsystem\n.", 12));
    refuse(zip_done(&z), DLRN_ERR_UNSUPPORTED, "hostile.file: x.npy: unsupported dtype '|O'");
    memset(&z, 0, sizeof z);
    b.n = 0;
    zip_add(&z, "x.npy", &b);
    refuse(zip_done(&z), DLRN_ERR_FORMAT, "hostile.file: x.npy: expected a .npy header");
    put_text(&b, "\x93NUMPX\x01");
    put_le(&b, 0, 100);
    memset(&z, 0, sizeof z);
    zip_add(&z, "x.npy", &b);
    refuse(zip_done(&z), DLRN_ERR_FORMAT, "hostile.file: x.npy: expected a .npy header");
    memset(
        &z, 0,
        sizeof z); /* several texts are no text, and of the other byte order none that is known */
    zip_add(&z, "x.npy",
            npy(1, "{'descr': '|S3', 'fortran_order': False, 'shape': (2,), }\n", "abcdef", 6));
    refuse(zip_done(&z), DLRN_ERR_UNSUPPORTED, "hostile.file: x.npy: unsupported dtype '|S3'");
    memset(&z, 0, sizeof z);
    zip_add(&z, "x.npy",
            npy(1, "{'descr': '>U1', 'fortran_order': False, 'shape': (), }\n", "\0\0\0a", 4));
    refuse(zip_done(&z), DLRN_ERR_UNSUPPORTED, "hostile.file: x.npy: unsupported dtype '>U1'");
    memset(&z, 0, sizeof z); /* members of other kinds are passed over */
    zip_add(&z, "a", &b);
    zip_add(&z, "readme.txt", &b);
    zip_add(
        &z, "x.npy",
        npy_f4(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }\n", abc, sizeof abc));
    a = accept(zip_done(&z));
    CHECK(dlrn_archive_describe(a).count == 1);
    expect_numbers(a, "x", NULL, 3);
}

/* Faults in the directory's entry of the one member. */
TEST(zip_refuses_entries) {
    static const struct {
        size_t at;
        int width;
        uint64_t value;
        dlrn_status status;
        const char *words;
    } bad[] = {
        {0, 1, 'Q', DLRN_ERR_FORMAT, "zip: malformed central directory"},
        {8, 2, 1, DLRN_ERR_UNSUPPORTED, "member 'x.npy' is encrypted or of compression method 0"},
        {10, 2, 12, DLRN_ERR_UNSUPPORTED,
         "member 'x.npy' is encrypted or of compression method 12"},
        {10, 2, 8, DLRN_ERR_FORMAT, "a local header does not agree with the central directory"},
        {16, 4, 0xDEADBEEF, DLRN_ERR_FORMAT,
         "member 'x.npy' is damaged: its CRC-32 is not deadbeef"},
        {20, 4, 79, DLRN_ERR_FORMAT, "zip: a stored member whose packed size is not its size"},
        {24, 4, 0xFFFFFFFF, DLRN_ERR_FORMAT,
         "zip: a stored member whose packed size is not its size"},
        {28, 2, 4, DLRN_ERR_FORMAT, "a local header does not agree with the central directory"},
        {28, 2, 0xFFFF, DLRN_ERR_FORMAT, "the central directory is cut off"},
        {30, 2, 0xFFFF, DLRN_ERR_FORMAT, "the central directory is cut off"},
        {42, 4, 1, DLRN_ERR_FORMAT, "a local header does not agree with the central directory"},
        {42, 4, 0xFFFFFFFE, DLRN_ERR_FORMAT,
         "a local header does not agree with the central directory"},
        {46, 1, 'y', DLRN_ERR_FORMAT, "a local header does not agree with the central directory"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        bytes *file = npz();
        size_t at = directory_of(file);
        if (bad[i].at == 30) patch(file, at + 28, 4, 2);
        patch(file, at + bad[i].at, bad[i].value, bad[i].width);
        refuse(file, bad[i].status, bad[i].words);
    }
    bytes *file = npz();
    patch(file, directory_of(file) + 20, 60000, 4);
    patch(file, directory_of(file) + 24, 60000, 4);
    refuse(file, DLRN_ERR_FORMAT, "a member reaches beyond the end of the file");
}

/* Where a local header says other sizes than the directory, the directory is right. */
TEST(zip_sizes_of_the_local_header) {
    bytes *file = npz();
    patch(file, 18, 7, 4);
    patch(file, 22, 0xFFFFFFF0, 4);
    patch(file, 14, 0xDEADBEEF, 4); /* its sum */
    expect_numbers(accept(file), "x", NULL, 3);
    patch(file, 6, 1, 2); /* its flag of encryption */
    expect_numbers(accept(file), "x", NULL, 3);
}

TEST(zip_refuses_ends) {
    bytes *file = npz();
    for (size_t whole = file->n; file->n > whole - 22;) {
        file->n--;
        refuse(file, DLRN_ERR_FORMAT, "zip: no central directory");
    }
    file = npz();
    patch(file, file->n - 12, 2, 2);
    refuse(file, DLRN_ERR_FORMAT, "more members than the central directory has room for");
    file = npz();
    patch(file, file->n - 6, 0xFFFFFFFE, 4);
    refuse(file, DLRN_ERR_FORMAT, "zip: no central directory");
    file = npz();
    patch(file, file->n - 10, 0xFFFFFFFE, 4);
    refuse(file, DLRN_ERR_FORMAT, "zip: no central directory");
}

TEST(zip_refuses_members) {
    memset(&z, 0, sizeof z);
    npy_f4(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }\n", abc, sizeof abc);
    zip_add(&z, "x.npy", &b);
    zip_add(&z, "x.npy", &b);
    refuse(zip_done(&z), DLRN_ERR_FORMAT, "zip: member 'x.npy': expected once, found twice");
    memset(&z, 0, sizeof z);
    zip_add(&z, "readme.txt", &b);
    refuse(zip_done(&z), DLRN_ERR_UNSUPPORTED,
           "a zip without data.pkl (torch) and without .npy members (numpy)");
    memset(&z, 0, sizeof z); /* each member holds the next */
    b.n = 0;
    zip_raw(&z, "a.npy", &b, 0, 0, 0, 0);
    zip_raw(&z, "b.npy", &b, 0, 0, 0, 0);
    b.n = 1000;
    zip_raw(&z, "c.npy", &b, 0, 1000, 0, 0);
    for (size_t i = 0; i < 2; i++)
        for (size_t field = 20; field <= 24; field += 4)
            patch(&z.directory, i * 51 + field, 1035 + 35 * (1 - i), 4);
    refuse(zip_done(&z), DLRN_ERR_FORMAT, "zip: members overlap");
}

TEST(zip64) {
    memset(&z, 0, sizeof z);
    npy_f4(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }\n", abc, sizeof abc);
    zip_raw(&z, "x.npy", &b, 0, b.n, crc_of(b.p, b.n), 1);
    uint64_t at = z.file.n, size = z.directory.n;
    bytes *file = zip_done(&z);
    expect_numbers(accept(file), "x", NULL, 3);
    size_t extra = directory_of(file) + 46 + 5;
    patch(file, extra + 2, 16, 2); /* room for two of the three */
    refuse(file, DLRN_ERR_FORMAT, "zip: malformed 64-bit sizes");
    patch(file, extra + 2, 25, 2); /* more than there is */
    refuse(file, DLRN_ERR_FORMAT, "zip: malformed 64-bit sizes");
    patch(file, extra + 2, 24, 2);
    /* the end record in its 64-bit form as well: record, locator, and the old one with all bits set
     */
    file->n -= 22;
    put_le(file, 0x06064b50, 4);
    put_le(file, 44, 8);
    put_le(file, 0, 12);
    put_le(file, 1, 8);
    put_le(file, 1, 8);
    put_le(file, size, 8);
    put_le(file, at, 8);
    put_le(file, 0x07064b50, 4);
    put_le(file, 0, 4);
    put_le(file, at + size, 8);
    put_le(file, 1, 4);
    put_le(file, 0x06054b50, 4);
    put_le(file, 0, 4);
    put_le(file, 0xFFFFFFFFFFFFFFFF, 8);
    put_le(file, 0xFFFFFFFF, 4);
    put_le(file, 0, 2);
    expect_numbers(accept(file), "x", NULL, 3);
    static const struct {
        size_t at; /* in the 64-bit end record */
        uint64_t value;
        const char *words;
    } lies[] = {{32, (uint64_t)1 << 60, "more members than the central directory has room for"},
                {32, 2, "more members than the central directory has room for"},
                {40, UINT64_MAX, "zip: no central directory"},
                {48, UINT64_MAX - 10, "zip: no central directory"},
                {48, 0, "zip: malformed central directory"}};
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        uint64_t was = dlrni_le(file->p + at + size + lies[i].at, 8);
        patch(file, at + size + lies[i].at, lies[i].value, 8);
        refuse(file, DLRN_ERR_FORMAT, lies[i].words);
        patch(file, at + size + lies[i].at, was, 8);
    }
    for (size_t field = 4; field <= 20; field += 8) { /* size, packed, offset of the entry */
        uint64_t was = dlrni_le(file->p + extra + field, 8);
        patch(file, extra + field, (uint64_t)1 << 63, 8);
        refuse(file, DLRN_ERR_FORMAT,
               field == 20 ? "a local header does not agree with the central directory"
                           : "zip: a stored member whose packed size is not its size");
        patch(file, extra + field, was, 8);
    }
    patch(file, extra + 4, (uint64_t)1 << 63, 8);
    patch(file, extra + 12, (uint64_t)1 << 63, 8);
    refuse(file, DLRN_ERR_FORMAT, "a member reaches beyond the end of the file");
    /* where the locator points: out of the file, too near to its end, at no record; each of three
       fields asks for it */
    const uint64_t places[] = {0xFFFFFFFFFFFFFFF0, file->n - 10, 0};
    for (int i = 0; i < 3; i++) {
        patch(file, file->n - 34, places[i], 8);
        for (int field = 0; field < 3; field++) {
            patch(file, file->n - 12, field == 0 ? 0xFFFF : 1, 2);
            patch(file, file->n - 10, field == 1 ? 0xFFFFFFFF : size, 4);
            patch(file, file->n - 6, field == 2 ? 0xFFFFFFFF : at, 4);
            refuse(file, DLRN_ERR_FORMAT, "zip: no central directory");
        }
    }
}

/* A matrix of another form of scipy's, and one whose shape is no vector. */
TEST(csr_of_another_form) {
    static const char *const forms[] = {"csc", "csr"};
    for (int i = 0; i < 2; i++) {
        dlrn_archive *a = NULL;
        dlrn_sparse back;
        memset(&back, 0, sizeof back);
        memset(&z, 0, sizeof z);
        zip_add(&z, "format.npy",
                npy(1, "{'descr': '|S3', 'fortran_order': False, 'shape': (), }\n", forms[i], 3));
        zip_add(&z, "shape.npy",
                npy(1, "{'descr': '<i8', 'fortran_order': False, 'shape': (), }\n",
                    "\0\0\0\0\0\0\0", 8));
        bytes *file = zip_done(&z);
        CHECK_OK(ctx, dlrn_archive_open_memory(ctx, file->p, file->n, "codes.npz", &a));
        CHECK_STATUS(dlrn_csr_read(a, &back), i ? DLRN_ERR_FORMAT : DLRN_ERR_UNSUPPORTED);
        CHECK_STR(
            dlrn_error(ctx),
            i ? "codes.npz: expected 'shape' of one dimension, as scipy.sparse.save_npz writes it"
              : "codes.npz: expected a matrix of format csr, found 'csc'");
        dlrn_archive_close(a);
    }
}

/* A CSR matrix [1][4] of two entries, its arrays of these types; entry 1 is in column `column`. */
static dlrn_status csr_of(const char *shape_type, const char *indptr_type, const char *indices_type,
                          float column, dlrn_sparse *back) {
    const char *const names[4] = {"shape.npy", "indptr.npy", "indices.npy", "data.npy"};
    const char *const types[4] = {shape_type, indptr_type, indices_type, "<f4"};
    const float numbers[4][2] = {{1, 4}, {0, 2}, {0, column}, {7, 8}};
    char header[128];
    memset(&z, 0, sizeof z);
    memset(back, 0, sizeof *back);
    for (int i = 0; i < 4; i++) {
        const int is_float = types[i][1] == 'f';
        const int32_t whole[2] = {(int32_t)numbers[i][0], (int32_t)numbers[i][1]};
        snprintf(header, sizeof header,
                 "{'descr': '%c%s', 'fortran_order': False, 'shape': (2,), }\n",
                 dlrni_little_endian() ? '<' : '>', types[i] + 1);
        zip_add(&z, names[i],
                npy(1, header, is_float ? (const void *)numbers[i] : (const void *)whole, 8));
    }
    bytes *file = zip_done(&z);
    dlrn_archive *a = NULL;
    CHECK_OK(ctx, dlrn_archive_open_memory(ctx, file->p, file->n, "codes.npz", &a));
    dlrn_status s = dlrn_csr_read(a, back);
    dlrn_archive_close(a);
    return s;
}

/* Indices that are not integers are refused by their type, also if each of them is whole. */
TEST(csr_of_floats) {
    dlrn_sparse back;
    CHECK_OK(ctx, csr_of("<i4", "<i4", "<i4", 3, &back));
    CHECK(back.rows == 1 && back.cols == 4 && back.col[1] == 3);
    dlrn_sparse_free(&back);
    CHECK_STATUS(csr_of("<f4", "<i4", "<i4", 3, &back), DLRN_ERR_FORMAT);
    CHECK_STR(dlrn_error(ctx), "codes.npz: tensor 'shape': expected integers, found F32");
    CHECK_STATUS(csr_of("<i4", "<f4", "<i4", 3, &back), DLRN_ERR_FORMAT);
    CHECK_STR(dlrn_error(ctx), "codes.npz: tensor 'indptr': expected integers, found F32");
    CHECK_STATUS(csr_of("<i4", "<i4", "<f4", 2.5f, &back), DLRN_ERR_FORMAT);
    CHECK_STR(dlrn_error(ctx), "codes.npz: tensor 'indices': expected integers, found F32");
    CHECK(back.row_ptr == NULL);
}

/* Names beyond ASCII are marked as UTF-8 in both headers of a member; others are not. */
TEST(zip_names_in_utf8) {
    static const float one = 1;
    static const char *const names[3] = {"plain",
                                         ("gr\xc3\xb6\xc3\x9f"
                                          "e"),
                                         "\xf6"};
    dlrn_tensor_out t[3];
    char *file;
    size_t size;
    memset(t, 0, sizeof t);
    for (int i = 0; i < 3; i++) t[i].name = names[i], t[i].data = &one;
    CHECK_OK(ctx, dlrn_archive_write(ctx, tmp_path("names.npz"), t, 3, NULL));
    CHECK_OK(ctx, dlrn_file_read(ctx, tmp_path("names.npz"), &file, &size));
    int local = 0, central = 0;
    for (size_t at = 0; at + 46 < size; at++) {
        if (!memcmp(file + at, "PK\3\4", 4))
            CHECK(((unsigned char)file[at + 7] & 8) == (local++ == 1 ? 8 : 0));
        if (!memcmp(file + at, "PK\1\2", 4))
            CHECK(((unsigned char)file[at + 9] & 8) == (central++ == 1 ? 8 : 0));
    }
    CHECK(local == 3 && central == 3);
    dlrn_free(ctx, file);
}

/* A file that cannot be mapped is read. */
TEST(files_that_cannot_be_mapped) {
    static const float x[2] = {1, -2};
    dlrn_tensor_out t;
    dlrn_archive *a = NULL;
    float back[2] = {0, 0};
    memset(&t, 0, sizeof t);
    t.name = "x", t.ndim = 1, t.shape[0] = 2, t.data = x;
    CHECK_OK(ctx, dlrn_archive_write(ctx, tmp_path("unmapped.pt"), &t, 1, NULL));
    refuses_maps = 1;
    dlrn_status s = dlrn_archive_open(ctx, tmp_path("unmapped.pt"), &a);
    refuses_maps = 0;
    CHECK_OK(ctx, s);
    CHECK(a->map.owned != NULL);
    CHECK_OK(ctx, dlrn_archive_read(a, 0, 0, -1, back));
    CHECK(back[0] == 1 && back[1] == -2);
    dlrn_archive_close(a);
}

/* Every close and free takes NULL. */
TEST(nothing_to_close) {
    CHECK_OK(ctx, dlrn_writer_close(NULL));
    dlrn_writer_abort(NULL);
    dlrn_archive_close(NULL);
    dlrn_free(ctx, NULL);
    dlrn_free(ctx, NULL);
}

/* An entry whose size alone stands in its 64-bit extra field, behind another field that nobody
   knows. */
TEST(zip64_in_part) {
    memset(&z, 0, sizeof z);
    npy_f4(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }\n", abc, sizeof abc);
    zip_raw(&z, "x.npy", &b, 0, b.n, crc_of(b.p, b.n), 0);
    patch(&z.directory, 24, 0xFFFFFFFF, 4);
    patch(&z.directory, 30, 5 + 12, 2);
    put_le(&z.directory, 0x5455, 2);
    put_le(&z.directory, 1, 2);
    put_le(&z.directory, 7, 1);
    put_le(&z.directory, 1, 2);
    put_le(&z.directory, 8, 2);
    put_le(&z.directory, b.n, 8);
    bytes *file = zip_done(&z);
    expect_numbers(accept(file), "x", NULL, 3);
    size_t extra = directory_of(file) + 46 + 5;
    patch(file, extra + 2, 14, 2); /* the unknown field takes more than there is */
    refuse(file, DLRN_ERR_FORMAT, "zip: malformed 64-bit sizes");
}

/* What lies behind the last whole record: a file of fewer bytes than an end record, entries that
   end too soon. */
TEST(zip_ends_too_soon) {
    b.n = 0;
    put_text(&b, "PK\3\4abcdefghi");
    refuse(&b, DLRN_ERR_FORMAT, "zip: no central directory");
    for (int part = 0; part < 3;
         part++) { /* of the only entry: its head, its name, its extra field */
        memset(&z, 0, sizeof z);
        npy_f4(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }\n", abc, sizeof abc);
        zip_add(&z, "x.npy", &b);
        if (part == 0) z.directory.n = 45;
        if (part == 1) patch(&z.directory, 28, 6, 2);
        if (part == 2) patch(&z.directory, 32, 1, 2);
        refuse(zip_done(&z), DLRN_ERR_FORMAT,
               part ? "zip: the central directory is cut off"
                    : "more members than the central directory has room for");
    }
    for (int part = 0; part < 2;
         part++) { /* a local header at the end: without all of its name, of its extra field */
        memset(&z, 0, sizeof z);
        npy_f4(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }\n", abc, sizeof abc);
        zip_add(&z, "x.npy", &b);
        z.file.n = 30 + (part ? 5 : 4);
        if (part) patch(&z.file, 28, 60000, 2);
        patch(&z.directory, 42, 0, 4);
        bytes *file = zip_done(&z);
        if (!part) patch(file, 26, 5, 2);
        refuse(file, DLRN_ERR_FORMAT, "a local header does not agree with the central directory");
    }
}

/* x [256] u8, (i * i * i / 7) % 13 in a .npy, deflated by zlib into one block with codes of its
   own. */
static const unsigned char deflated[147] = {
    213, 140, 49,  14,  1,   81,  16,  64,  103, 118, 166, 152, 249, 51,  135, 248, 221, 39,  217,
    134, 132, 194, 1,   116, 68,  163, 80,  201, 134, 47,  10,  177, 242, 23,  13,  78,  225, 194,
    214, 21,  116, 94,  247, 94,  241, 222, 203, 245, 98,  181, 65,  184, 195, 35,  237, 115, 183,
    43,  105, 22,  211, 243, 54,  74,  117, 76,  135, 182, 92,  75,  115, 222, 182, 101, 159, 191,
    125, 222, 156, 186, 220, 247, 238, 216, 92,  114, 239, 131, 241, 100, 90,  15,  235, 248, 138,
    63,  19,  0,   144, 148, 57,  8,   184, 56,  86,  8,   142, 108, 1,   212, 20,  137, 64,  25,
    205, 42,  21,  55,  226, 74,  145, 197, 200, 68,  17,  152, 12,  209, 132, 60,  168, 17,  146,
    19,  138, 129, 155, 25,  48,  56,  147, 8,   169, 249, 95,  172, 63};

static bytes *npz_deflated(const unsigned char *packed, size_t n, uint64_t size, uint32_t crc) {
    memset(&z, 0, sizeof z);
    b.n = 0;
    put(&b, packed, n);
    zip_raw(&z, "x.npy", &b, 8, size, crc, 0);
    return zip_done(&z);
}

TEST(npz_deflated) {
    int64_t x[256];
    dlrn_archive *a = accept(npz_deflated(deflated, sizeof deflated, 384, 0xebc21cab));
    CHECK(dlrn_archive_tensor(a, 0)->numel == 256);
    CHECK_OK(ctx, dlrni_archive_read_i64(a, 0, x));
    for (int i = 0; i < 256; i++) CHECK(x[i] == i * i * i / 7 % 13);
    dlrn_archive_close(a);
}

/* Blocks that are not packed: the first of 100 bytes, the last of the rest. */
TEST(deflate_stored_blocks) {
    static bytes packed;
    npy(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (25,), }\n", NULL, 0);
    for (int i = 0; i < 25; i++) put_floats(&b, &(const float){(float)i}, 1);
    uint64_t size = b.n, rest = b.n - 100;
    uint32_t crc = crc_of(b.p, b.n);
    packed.n = 0;
    put_le(&packed, 2,
           2); /* an empty one of fixed codes first: a writer was flushed before it had anything */
    put_le(&packed, 100 | (0xFFFFu ^ 100) << 16, 4);
    put(&packed, b.p, 100);
    put_le(&packed, 1, 1);
    put_le(&packed, rest | (0xFFFFu ^ rest) << 16, 4);
    put(&packed, b.p + 100, rest);
    expect_numbers(accept(npz_deflated(packed.p, packed.n, size, crc)), "x", NULL, 25);
    packed.p[4] ^= 1;
    refuse(npz_deflated(packed.p, packed.n, size, crc), DLRN_ERR_FORMAT,
           "member 'x.npy' does not unpack to the");
}

TEST(deflate_refuses) {
    static const char words[] = "member 'x.npy' does not unpack to the";
    refuse(npz_deflated(deflated, sizeof deflated, 383, 0), DLRN_ERR_FORMAT, words);
    refuse(npz_deflated(deflated, sizeof deflated, 385, 0), DLRN_ERR_FORMAT, words);
    refuse(npz_deflated(deflated, sizeof deflated, 384, 1), DLRN_ERR_FORMAT,
           "member 'x.npy' is damaged");
    refuse(npz_deflated(deflated, sizeof deflated, 0xFFFFFFF0, 0), DLRN_ERR_FORMAT,
           "claims to unpack to more than deflate can give");
    for (size_t n = 0; n < sizeof deflated; n++)
        refuse(npz_deflated(deflated, n, 384, 0), DLRN_ERR_FORMAT, "zip: member 'x.npy'");
    for (size_t i = 0; i < 8 * sizeof deflated; i++) { /* any one bit */
        unsigned char copy[sizeof deflated];
        memcpy(copy, deflated, sizeof copy);
        copy[i / 8] ^= (unsigned char)(1 << i % 8);
        if (i < 8 * (sizeof deflated - 1)) /* the last byte is padding in part */
            refuse(npz_deflated(copy, sizeof copy, 384, 0xebc21cab), DLRN_ERR_FORMAT,
                   "zip: member 'x.npy'");
    }
}

/* ---- Streams ---- */

enum { STREAM_MOST = 200000 };
static unsigned char streamed[STREAM_MOST]; /* what a stream gave */

static char *stream_file(const void *bytes_of_it, size_t n) {
    char *path = tmp_path("stream.bin");
    CHECK_OK(ctx, dlrn_file_write(ctx, path, bytes_of_it, n));
    return path;
}

/* Reads a file in portions; *n: how many bytes came, also before an error. */
static dlrn_status stream_all(const char *path, size_t portion, size_t *n) {
    dlrn_stream *s = NULL;
    size_t got = 1;
    *n = 0;
    dlrn_status status = dlrn_stream_open(ctx, path, &s);
    while (status == DLRN_OK && got) {
        CHECK(*n + portion <= STREAM_MOST);
        status = dlrn_stream_read(s, streamed + *n, portion, &got);
        CHECK(got <= portion && (status == DLRN_OK || got == 0));
        *n += got;
        if (status == DLRN_OK) CHECK(dlrn_stream_position(s) == *n);
    }
    if (status != DLRN_OK && s) /* it stays so */
        CHECK_STATUS(dlrn_stream_read(s, streamed, 1, &got), status);
    dlrn_stream_close(s);
    return status;
}

static void put_gzip_head(bytes *to, int flags) {
    put_text(to, "\x1f\x8b\x08");
    put_le(to, (uint64_t)flags, 1);
    put_le(to, 0, 6);
}

/* A member of 384 bytes in codes of its own. */
static void put_member(bytes *to, int flags) {
    put_gzip_head(to, flags);
    if (flags & 4) put(to, "\x03\0abc", 5);
    if (flags & 8) put(to, "name", 5);
    if (flags & 16) put(to, "comment", 8);
    if (flags & 2) put_le(to, 7, 2);
    put(to, deflated, sizeof deflated);
    put_le(to, 0xebc21cab, 4);
    put_le(to, 384, 4);
}

static const size_t portions[] = {1, 3, 100, 384, 1000, 50000};
enum { PORTIONS = sizeof portions / sizeof *portions };

TEST(stream_of_plain_bytes) {
    dlrn_stream *s = NULL;
    size_t n, got;
    char text[2000];
    for (int i = 0; i < 2000; i++) text[i] = (char)(i % 119);
    for (size_t size = 0; size <= 2000; size += size < 4 ? 1 : 499)
        for (int i = 0; i < PORTIONS; i++) {
            CHECK_OK(ctx, stream_all(stream_file(text, size), portions[i], &n));
            CHECK(n == size && !memcmp(streamed, text, n));
        }
    CHECK_OK(ctx, stream_all(stream_file("\x1f\x8b", 2), 9, &n)); /* too short to be gzip */
    CHECK(n == 2);
    CHECK_OK(ctx, dlrn_stream_open(ctx, stream_file(text, 2000), &s));
    for (uint64_t at = 0; at <= 2000; at += 250) {
        CHECK_OK(ctx, dlrn_stream_seek(s, 2000 - at));
        CHECK(dlrn_stream_position(s) == 2000 - at);
        CHECK_OK(ctx, dlrn_stream_read(s, streamed, 300, &got));
        CHECK(got == (at < 300 ? at : 300) && !memcmp(streamed, text + 2000 - at, got));
    }
    CHECK_OK(ctx, dlrn_stream_seek(s, 2000));
    CHECK_STATUS(dlrn_stream_seek(s, 2001), DLRN_END);
    CHECK(dlrn_stream_position(s) == 2000);
    dlrn_stream_close(s);
    dlrn_stream_close(NULL);
    CHECK_STATUS(dlrn_stream_open(ctx, tmp_path("no/such"), &s), DLRN_ERR_IO);
    CHECK(s == NULL);
    CHECK_STATUS(dlrn_stream_open(ctx, "tests", &s), DLRN_ERR_IO);
    CHECK_STR(dlrn_error(ctx), "tests: expected a file, found a folder");
}

/* A pipe has no way back, so standard input has none, even where it is a file. */
TEST(standard_input_goes_forward_only) {
    dlrn_stream *s = NULL;
    size_t got;
    char *path = tmp_path("stdin.bin"); /* of its own: it stays open */
    CHECK_OK(ctx, dlrn_file_write(ctx, path, "0123456789", 10));
    CHECK(freopen(path, "rb", stdin) != NULL);
    CHECK_OK(ctx, dlrn_stream_open(ctx, "-", &s));
    CHECK_OK(ctx, dlrn_stream_seek(s, 4));
    CHECK_OK(ctx, dlrn_stream_read(s, streamed, 3, &got));
    CHECK(got == 3 && !memcmp(streamed, "456", 3));
    CHECK_STATUS(dlrn_stream_seek(s, 6), DLRN_ERR_IO);
    CHECK_STR(dlrn_error(ctx), "standard input: cannot go back");
    CHECK_STATUS(dlrn_stream_seek(s, 11), DLRN_END);
    dlrn_stream_close(s);
}

/* Members with all that a header may have, one after another, and zeros after the last. */
TEST(gzip_members) {
    size_t n;
    const int flags[] = {0, 4, 8, 16, 2, 1, 31};
    memset(&b, 0, sizeof b);
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) put_member(&b, flags[i]);
    put_gzip_head(&b, 0); /* an empty one, as gzip makes it of nothing */
    put(&b, "\x03\0\0\0\0\0\0\0\0\0", 10);
    for (int zeros = 0; zeros < 2; zeros++) {
        if (zeros) put_le(&b, 0, 8);
        for (int i = 0; i < PORTIONS; i++) {
            CHECK_OK(ctx, stream_all(stream_file(b.p, b.n), portions[i], &n));
            CHECK(n == 7 * 384);
            for (size_t at = 0; at < n; at += 384) CHECK(crc_of(streamed + at, 384) == 0xebc21cab);
        }
    }
}

/* Bits of deflate, from the low end. */
static uint32_t bits_held, bits_count;
static void put_bits(bytes *to, uint32_t v, uint32_t n) {
    bits_held |= v << bits_count;
    for (bits_count += n; bits_count >= 8; bits_count -= 8, bits_held >>= 8)
        put_le(to, bits_held & 255, 1);
}

/* 103,475 bytes: 32 KB as they are, then copies of them that reach back as far as they may, a byte
   after each. The window moves twice. */
static void make_long(bytes *to) {
    enum { COPIES = 273 };
    static unsigned char all[STREAM_MOST];
    size_t n = 32768;
    uint32_t x = 1;
    for (size_t i = 0; i < n; i++) all[i] = (unsigned char)((x = x * 1664525 + 1013904223) >> 24);
    to->n = 0;
    put_gzip_head(to, 0);
    put_le(to, 0, 1); /* stored */
    put_le(to, 32768 | (0xFFFFu ^ 32768) << 16, 4);
    put(to, all, 32768);
    bits_held = bits_count = 0;
    put_bits(to, 3, 3); /* the last block, of fixed codes */
    for (int i = 0; i < COPIES; i++, n += 259) {
        put_bits(to, 0xA3, 8);  /* 285: 258 bytes, 11000101 from its high bit on */
        put_bits(to, 0x17, 5);  /* distance 29 */
        put_bits(to, 8191, 13); /* 32768 */
        for (size_t k = 0; k < 258; k++) all[n + k] = all[n + k - 32768];
        all[n + 258] = (unsigned char)(i % 96); /* 0x30 is the code of 0 */
        for (int bit = 7; bit >= 0; bit--) put_bits(to, (0x30u + (unsigned)(i % 96)) >> bit & 1, 1);
    }
    put_bits(to, 0, 7 + 7); /* the end of the block, and of its byte */
    put_le(to, crc_of(all, n), 4);
    put_le(to, n, 4);
    CHECK(n == 103475);
    memcpy(streamed, all, n);
}

TEST(gzip_window) {
    static unsigned char want[STREAM_MOST], part[1000];
    dlrn_stream *s = NULL;
    size_t n, got;
    make_long(&b);
    memcpy(want, streamed, sizeof want);
    for (int i = 2; i < PORTIONS; i++) {
        CHECK_OK(ctx, stream_all(stream_file(b.p, b.n), portions[i], &n));
        CHECK(n == 103475 && !memcmp(want, streamed, n));
    }
    CHECK_OK(ctx, dlrn_stream_open(ctx, stream_file(b.p, b.n), &s));
    for (uint64_t at = 0, i = 0; i < 40; i++, at = (at + 61807) % 103476) {
        CHECK_OK(ctx, dlrn_stream_seek(s, at)); /* to and fro */
        CHECK_OK(ctx, dlrn_stream_read(s, part, sizeof part, &got));
        CHECK(!memcmp(part, want + at, got) && (got || at == 103475));
    }
    CHECK_STATUS(dlrn_stream_seek(s, 103476), DLRN_END);
    CHECK(dlrn_stream_position(s) == 103475);
    dlrn_stream_close(s);
    b.p[b.n - 5] ^= 1; /* of the sum: all bytes come, and then the error */
    CHECK_STATUS(stream_all(stream_file(b.p, b.n), 5000, &n), DLRN_ERR_FORMAT);
    CHECK(n == 103475);
    CHECK_STR(dlrn_error(ctx), "stream.bin: gzip: expected the sum ");
}

TEST(gzip_refuses) {
    size_t n;
    memset(&b, 0, sizeof b);
    put_member(&b, 31);
    for (size_t size = 3; size < b.n; size++) {
        CHECK_STATUS(stream_all(stream_file(b.p, size), 1000, &n), DLRN_ERR_FORMAT);
        CHECK_STR(dlrn_error(ctx),
                  "stream.bin: gzip: it ends within the compressed data: it was cut short");
    }
    for (size_t i = 8 * (b.n - 8 - sizeof deflated); i < 8 * b.n; i++) { /* any one bit */
        if (i / 8 == b.n - 9) continue;                                  /* padding in part */
        b.p[i / 8] ^= (unsigned char)(1 << i % 8);
        CHECK_STATUS(stream_all(stream_file(b.p, b.n), 1000, &n), DLRN_ERR_FORMAT);
        CHECK_STR(dlrn_error(ctx), "stream.bin: gzip: ");
        b.p[i / 8] ^= (unsigned char)(1 << i % 8);
    }
    put_text(&b, "more");
    CHECK_STATUS(stream_all(stream_file(b.p, b.n), 100, &n), DLRN_ERR_FORMAT);
    CHECK(n == 384);
    CHECK_STR(dlrn_error(ctx), "after the compressed data: expected its end or more of it");
    b.p[3] |= 0x20;
    CHECK_STATUS(stream_all(stream_file(b.p, b.n), 100, &n), DLRN_ERR_FORMAT);
    CHECK_STR(dlrn_error(ctx), "flags of no known meaning");
    /* a copy that reaches into the member before */
    b.n = 0;
    put_member(&b, 0);
    put_gzip_head(&b, 0);
    bits_held = bits_count = 0;
    put_bits(&b, 3, 3);
    put_bits(&b, 0x40, 7); /* 257: 3 bytes */
    put_bits(&b, 0, 5);    /* from 1 back  */
    put_bits(&b, 0, 9);
    put_le(&b, 0, 8);
    CHECK_STATUS(stream_all(stream_file(b.p, b.n), 100, &n), DLRN_ERR_FORMAT);
    CHECK(n == 384);
    CHECK_STR(dlrn_error(ctx), "the compressed data is damaged");
}

TEST(crc) {
    static unsigned char x[40000];
    const char *name;
    CHECK(dlrni_crc32(0, (const unsigned char *)"123456789", 9) == 0xcbf43926u);
    for (size_t i = 0; i < sizeof x; i++) x[i] = (unsigned char)(i * i >> 3);
    for (int set = 0; (name = test_kernels(set)) != NULL; set++) {
        dlrn_context_config cfg = {0};
        dlrn_context *own = NULL;
        cfg.kernels = name;
        CHECK_STATUS(dlrn_context_create(&cfg, &own), DLRN_OK);
        uint32_t (*crc32)(uint32_t, const unsigned char *, uint64_t) = own->k->crc32;
        for (uint64_t n = 16380; n < 16400; n++) { /* short and long runs, at once and in parts */
            uint32_t parts = 0;
            for (uint64_t i = 0; i < n; i += 1000)
                parts = crc32(parts, x + i, n - i < 1000 ? n - i : 1000);
            CHECK_MSG(crc32(0, x, n) == parts && dlrni_crc32(0, x, n) == parts, "%s", name);
        }
        for (uint64_t n = 0; n <= 300; n++) /* every length, from anywhere, after anything */
            for (uint64_t at = 0; at < 17; at++)
                CHECK_MSG(crc32((uint32_t)(n * 77777777), x + at, n) ==
                              dlrni_crc32((uint32_t)(n * 77777777), x + at, n),
                          "%s: %d bytes", name, (int)n);
        dlrn_context_destroy(own);
    }
}

/* ---- safetensors ---- */

/* A header and data bytes 0, 0, 128, 63, ... : floats 0, 1, 2, 3. */
static bytes *safetensors(const char *header, size_t floats) {
    static const float x[4] = {0, 1, 2, 3};
    b.n = 0;
    put_le(&b, strlen(header), 8);
    put_text(&b, header);
    put_floats(&b, x, (int)floats);
    return &b;
}

TEST(safetensors_reads) {
    dlrn_archive *a =
        accept(safetensors("{\"__metadata__\":{\"format\":\"pt\",\"n\":3},"
                           "\"a.b\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},"
                           "\"none\":{\"data_offsets\":[16,16],\"shape\":[0,9],\"dtype\":\"I8\"}}",
                           4));
    CHECK(!strcmp(dlrn_archive_describe(a).format, "safetensors") &&
          dlrn_archive_describe(a).count == 2);
    CHECK_STR(dlrni_archive_metadata(a, "format"), "pt");
    CHECK(dlrni_archive_metadata(a, "n") == NULL); /* no text */
    CHECK(dlrn_archive_tensor(a, dlrn_archive_find(a, "none"))->numel == 0);
    expect_numbers(a, "a.b", NULL, 4);
    a = accept(safetensors("{\"x\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}",
                           1)); /* not aligned */
    expect_numbers(a, "x", NULL, 1);
    a = accept(safetensors(
        "{\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[12,16]}," /* in any order */
        "\"x\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]}}",
        4));
    expect_numbers(a, "x", NULL, 3);
    a = accept(safetensors("{\"f\":{\"dtype\":\"F4\",\"shape\":[3,2],\"data_offsets\":[4,7]},"
                           "\"e\":{\"dtype\":\"F8_E4M3\",\"shape\":[1],\"data_offsets\":[7,8]},"
                           "\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
                           2)); /* types that are only listed */
    static const char *const types[] = {"F4", "F8_E4M3"};
    for (int64_t i = 0; i < 2; i++) {
        float number;
        CHECK_STR(dlrn_name(DLRN_NAMES_DTYPE, (int)dlrn_archive_tensor(a, i)->dtype), types[i]);
        CHECK_STATUS(dlrn_archive_read(a, i, 0, -1, &number), DLRN_ERR_UNSUPPORTED);
        CHECK_STR(dlrn_error(ctx), types[i]);
    }
    CHECK(dlrn_archive_tensor(a, 0)->numel == 6);
    expect_numbers(a, "x", NULL, 1);
    a = accept(safetensors("{}", 0));
    CHECK(dlrn_archive_describe(a).count == 0);
    dlrn_archive_close(a);
}

#define X4 "\"x\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]}"

TEST(safetensors_refuses) {
    static const struct {
        const char *header;
        dlrn_status status;
        const char *words;
    } bad[] = {
        {"{" X4 "," X4 "}", DLRN_ERR_FORMAT, "key \"x\": expected once"},
        {"{" X4 ",}", DLRN_ERR_FORMAT, "a comma before the closing bracket"},
        {"{\"x\":3}", DLRN_ERR_UNSUPPORTED, "tensor 'x': unsupported dtype ''"},
        {"{\"x\":{\"dtype\":\"F8_E4M4\",\"shape\":[16],\"data_offsets\":[0,16]}}",
         DLRN_ERR_UNSUPPORTED, "tensor 'x': unsupported dtype 'F8_E4M4'"},
        {"{\"x\":{\"dtype\":\"F8_E4M3\",\"shape\":[15],\"data_offsets\":[0,16]}}", DLRN_ERR_FORMAT,
         "tensor 'x': expected 15 bytes"},
        {"{\"x\":{\"dtype\":\"F4\",\"shape\":[31],\"data_offsets\":[0,16]}}", DLRN_ERR_FORMAT,
         "tensor 'x': malformed shape or data_offsets"},
        {"{\"x\":{\"dtype\":\"f32\",\"shape\":[4],\"data_offsets\":[0,16]}}", DLRN_ERR_UNSUPPORTED,
         "tensor 'x': unsupported dtype 'f32'"},
        {"{\"x\":{\"dtype\":\"F32\",\"data_offsets\":[0,16]}}", DLRN_ERR_FORMAT,
         "tensor 'x': expected a shape"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0]}}", DLRN_ERR_FORMAT,
         "tensor 'x': expected a shape of at most 8 sizes and two data_offsets"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,4],\"data_offsets\":[0,16]}}",
         DLRN_ERR_FORMAT, "tensor 'x': expected a shape of at most 8 sizes and two data_offsets"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[-4],\"data_offsets\":[0,16]}}", DLRN_ERR_FORMAT,
         "tensor 'x': malformed shape or data_offsets"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[4.0],\"data_offsets\":[0,16]}}", DLRN_ERR_FORMAT,
         "tensor 'x': malformed shape or data_offsets"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[\"4\"],\"data_offsets\":[0,16]}}", DLRN_ERR_FORMAT,
         "tensor 'x': malformed shape or data_offsets"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[16,0]}}", DLRN_ERR_FORMAT,
         "tensor 'x': malformed shape or data_offsets"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[1e0,17]}}", DLRN_ERR_FORMAT,
         "tensor 'x': malformed shape or data_offsets"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,16]}}",
         DLRN_ERR_FORMAT, "tensor 'x': malformed shape or data_offsets"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[5],\"data_offsets\":[0,16]}}", DLRN_ERR_FORMAT,
         "tensor 'x': expected 20 bytes within the file's 16 bytes of data, found data_offsets [0, "
         "16]"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,16]}}", DLRN_ERR_FORMAT,
         "tensor 'x': expected 12 bytes within the file's 16 bytes of data, found data_offsets [0, "
         "16]"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[5],\"data_offsets\":[0,20]}}", DLRN_ERR_FORMAT,
         "tensor 'x': expected 20 bytes within the file's 16 bytes of data, found data_offsets [0, "
         "20]"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[9007199254740976,"
         "9007199254740992]}}",
         DLRN_ERR_FORMAT, "tensor 'x': expected 16 bytes within the file's 16 bytes of data"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":4,\"data_offsets\":[0,16]}}", DLRN_ERR_FORMAT,
         "tensor 'x': expected a shape of at most 8 sizes and two data_offsets"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[4]}}", DLRN_ERR_FORMAT,
         "tensor 'x': expected a shape of at most 8 sizes and two data_offsets"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":16}}", DLRN_ERR_FORMAT,
         "tensor 'x': expected a shape of at most 8 sizes and two data_offsets"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,8,16]}}", DLRN_ERR_FORMAT,
         "tensor 'x': expected a shape of at most 8 sizes and two data_offsets"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,\"16\"]}}", DLRN_ERR_FORMAT,
         "tensor 'x': malformed shape or data_offsets"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[null,16]}}", DLRN_ERR_FORMAT,
         "tensor 'x': malformed shape or data_offsets"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[1e300],\"data_offsets\":[0,16]}}", DLRN_ERR_FORMAT,
         "tensor 'x': malformed shape or data_offsets"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[4.5],\"data_offsets\":[0,16]}}", DLRN_ERR_FORMAT,
         "tensor 'x': malformed shape or data_offsets"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[9007199254740992,512],\"data_offsets\":[0,16]}}",
         DLRN_ERR_FORMAT, "tensor 'x': malformed shape or data_offsets"},
        {"{\"a\\u0000b\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]}}",
         DLRN_ERR_FORMAT, "tensor 'a': a 0 byte in its name"},
        {"{" X4 ",\"y\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[12,16]}}",
         DLRN_ERR_FORMAT, "the tensors leave a gap or overlap at byte 16 of 16 of the data"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"y\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,16]}}",
         DLRN_ERR_FORMAT, "the tensors leave a gap or overlap at byte 4 of 16 of the data"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]}}", DLRN_ERR_FORMAT,
         "the tensors leave a gap or overlap at byte 12 of 16 of the data"},
        {"{}", DLRN_ERR_FORMAT, "the tensors leave a gap or overlap at byte 0 of 16 of the data"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refuse(safetensors(bad[i].header, 4), bad[i].status, bad[i].words);
}

TEST(safetensors_too_deep) {
    char header[256] = "{\"x\":";
    memset(header + 5, '[', 70);
    refuse(safetensors(header, 4), DLRN_ERR_FORMAT,
           "hostile.file: JSON, line 1, byte 69: nested deeper than 64");
}

/* What people have in place of weights is named. */
TEST(files_of_other_kinds) {
    static const char *const kinds[][2] = {
        {"version https://git-lfs.github.com/spec/v1\noid sha256:0", "found a git-LFS pointer"},
        {"<!DOCTYPE html><html>", "found an HTML page: the download went wrong"},
        {"\x1F\x8B\x08\x01", "found gzip: decompress it first"},
        {"\x89HDF\r\n", "found HDF5"},
        {"GGUF\x03", "found GGUF"},
        {"PAR1\x15", "found Parquet"},
        {"../model/model.safetensors", "found none of them in its 26 bytes"},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        bytes file;
        file.n = 0;
        put_text(&file, kinds[i][0]);
        refuse(&file, DLRN_ERR_FORMAT, kinds[i][1]);
    }
}

TEST(safetensors_cut_short) {
    bytes *file = safetensors("{" X4 "}", 4);
    for (size_t whole = file->n; --file->n > 8;)
        refuse(file, DLRN_ERR_FORMAT, file->n >= whole - 16 ? "'x'" : "header");
    for (; file->n > 0; file->n--) refuse(file, DLRN_ERR_FORMAT, "found none of them");
    refuse(file, DLRN_ERR_FORMAT, "found none of them in its 0 bytes");
    static const uint64_t lengths[] = {100u << 20, (100u << 20) + 1, 0xFFFFFFFFFFFFFFFF,
                                       0x7FFFFFFFFFFFFFFF};
    for (size_t i = 0; i < 4; i++) {
        file = safetensors("{" X4 "}", 4);
        patch(file, 0, lengths[i], 8);
        refuse(file, DLRN_ERR_FORMAT,
               "expected a safetensors header of at most 100 MiB within the file");
    }
}

/* A header that is there, as large as may be and a little larger. */
TEST(safetensors_of_large_headers) {
    const size_t most = 100u << 20;
    for (size_t more = 0; more < 2; more++) {
        dlrn_archive *a = NULL;
        size_t n = 8 + most + more;
        unsigned char *file = (unsigned char *)malloc(n);
        CHECK(file != NULL);
        memset(file, ' ', n);
        dlrni_put_le(file, most + more, 8);
        memcpy(file + 8, "{}", 2);
        dlrn_status s = dlrn_archive_open_memory(ctx, file, n, "large.safetensors", &a);
        free(file);
        CHECK_STATUS(s, more ? DLRN_ERR_FORMAT : DLRN_OK);
        if (more)
            CHECK_STR(dlrn_error(ctx),
                      "expected a safetensors header of at most 100 MiB within the file");
        dlrn_archive_close(a);
    }
}

/* Names that a plain hash would give one place: two of three letters lead to the same last bits,
   then two more, ... */
TEST(names_that_collide) {
    enum { STAGES = 12, NAMES = 1 << STAGES, BITS = 16, LETTERS = 26 * 26 * 26 };
    static int first[1 << BITS];
    static char part[STAGES][2][3], names[NAMES][3 * STAGES];
    const uint64_t mask = (1 << BITS) - 1, prime = 1099511628211u;
    uint64_t state = 14695981039346656037u & mask;
    dlrni_lookup table = {NULL, 0, 0};
    for (int stage = 0; stage < STAGES; stage++) {
        uint64_t h = 0;
        memset(first, 0xFF, sizeof first);
        for (int i = 0; i < LETTERS; i++) {
            char now[3] = {(char)('a' + i % 26), (char)('a' + i / 26 % 26), (char)('a' + i / 676)};
            h = state;
            for (int k = 0; k < 3; k++) h = (h ^ (unsigned char)now[k]) * prime & mask;
            int other = first[h];
            first[h] = i;
            if (other < 0) continue;
            char then[3] = {(char)('a' + other % 26), (char)('a' + other / 26 % 26),
                            (char)('a' + other / 676)};
            memcpy(part[stage][0], now, 3);
            memcpy(part[stage][1], then, 3);
            break;
        }
        CHECK(part[stage][0][0] != 0);
        state = h;
    }
    for (int i = 0; i < NAMES; i++)
        for (int stage = 0; stage < STAGES; stage++)
            memcpy(names[i] + 3 * stage, part[stage][i >> stage & 1], 3);
    CHECK(dlrni_hash(names, names[0], 3 * STAGES) !=
          dlrni_hash(part, names[0], 3 * STAGES)); /* each table its own */
    for (int i = 0; i < NAMES; i++) CHECK(dlrni_lookup_add(ctx, &table, names[i], 3 * STAGES, i));
    for (int i = 0; i < NAMES; i++) {
        int64_t home =
            (int64_t)(dlrni_hash(table.slot, names[i], 3 * STAGES) & (uint64_t)(table.size - 1));
        int64_t way = (dlrni_lookup_place(&table, names[i], 3 * STAGES) - table.slot - home) &
                      (table.size - 1);
        CHECK(dlrni_lookup_find(&table, names[i], 3 * STAGES) == i);
        CHECK_MSG(way < 256, "name %d is %d places from its own", i, (int)way);
    }
    dlrn_free(ctx, table.slot);
}

/* As many names as a large model has: found by name, and the last of them twice is told. */
TEST(many_tensors) {
    enum { N = 400 };
    static char header[1 << 15];
    for (int twice = 0; twice < 2; twice++) {
        size_t at = 0;
        for (int i = 0; i < N; i++)
            at += (size_t)snprintf(
                header + at, sizeof header - at,
                "%c\"layer.%d\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}",
                i ? ',' : '{', twice && i == N - 1 ? 7 : i);
        snprintf(header + at, sizeof header - at, "}");
        if (twice) {
            refuse(safetensors(header, 0), DLRN_ERR_FORMAT, "key \"layer.7\": expected once");
            continue;
        }
        dlrn_archive *a = accept(safetensors(header, 0));
        for (int i = 0; i < N; i++)
            CHECK(dlrn_archive_find(a, dlrn_archive_tensor(a, i)->name) == i);
        CHECK(dlrn_archive_find(a, "layer.400") < 0 && dlrn_archive_find(a, "") < 0);
        dlrn_archive_close(a);
    }
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    if (dlrn_context_create(NULL, &ctx) != DLRN_OK) return 1;
    RUN(json_refuses);
    RUN(json_not_finite);
    RUN(json_refuses_bytes_of_zero);
    RUN(json_reads);
    RUN(json_characters);
    RUN(json_in_a_locale_of_commas);
    RUN(json_depth);
    RUN(npy_versions);
    RUN(npy_types);
    RUN(npy_orders);
    RUN(npy_wholes);
    RUN(npy_empty_and_vast);
    RUN(npy_refuses);
    RUN(npy_cut_short);
    RUN(npz_stored);
    RUN(npz_forms);
    RUN(npz_texts);
    RUN(zip_refuses_entries);
    RUN(zip_sizes_of_the_local_header);
    RUN(zip_refuses_ends);
    RUN(zip_refuses_members);
    RUN(zip64);
    RUN(csr_of_another_form);
    RUN(csr_of_floats);
    RUN(zip_names_in_utf8);
    RUN(files_that_cannot_be_mapped);
    RUN(nothing_to_close);
    RUN(zip64_in_part);
    RUN(zip_ends_too_soon);
    RUN(npz_deflated);
    RUN(deflate_stored_blocks);
    RUN(deflate_refuses);
    RUN(stream_of_plain_bytes);
    RUN(standard_input_goes_forward_only);
    RUN(gzip_members);
    RUN(gzip_window);
    RUN(gzip_refuses);
    RUN(crc);
    RUN(safetensors_reads);
    RUN(safetensors_refuses);
    RUN(safetensors_too_deep);
    RUN(files_of_other_kinds);
    RUN(safetensors_cut_short);
    RUN(safetensors_of_large_headers);
    RUN(names_that_collide);
    RUN(many_tensors);
    dlrn_context_destroy(ctx);
    return TEST_END();
}
