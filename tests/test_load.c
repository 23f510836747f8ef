/* test_load.c - writing and reading back: archives of every form, growing .npy and CSR files, what
   a failure leaves behind; dictionaries in files and folders, sharded models. */
#define _POSIX_C_SOURCE 200809L
#include "dictlearn.h"
#include "tests/bytes.h"

#include <dirent.h>
#include <unistd.h>

enum { D = 3, F = 5 };

static char *path_of(const char *folder, const char *name) {
    char path[512];
    snprintf(path, sizeof path, "load/%s%s%s", folder, *folder ? "/" : "", name);
    return tmp_path(path);
}

/* An empty folder: what an earlier run left there goes. */
static void make_folder(const char *name) {
    mkdir(tmp_path("load"), 0777);
    mkdir(path_of("", name), 0777);
    DIR *dir = opendir(path_of("", name));
    CHECK(dir != NULL);
    for (struct dirent *e; (e = readdir(dir)) != NULL;)
        if (e->d_name[0] != '.') remove(path_of(name, e->d_name));
    closedir(dir);
}

static void write_text(const char *path, const char *text) {
    CHECK_OK(ctx, dlrn_file_write(ctx, path, text, strlen(text)));
}

static int exists(const char *path) {
    return dlrn_file_exists(ctx, path);
}

/* How many files of the folder hold `part` in their name. */
static int count_files(const char *folder, const char *part) {
    int n = 0;
    DIR *dir = opendir(folder);
    CHECK(dir != NULL);
    for (struct dirent *e; (e = readdir(dir)) != NULL;) n += strstr(e->d_name, part) != NULL;
    closedir(dir);
    return n;
}

/* ---- Archives ---- */

static const float floats[6] = {0, 1, 2, 3, 4, 5};
static const int64_t wholes[3] = {1, -2, (int64_t)1 << 40};
static const uint16_t halves[2] = {0x3c00, 0xc000};
static const unsigned char small[2] = {1, 0};

static const dlrn_tensor_out four[4] = {{"a.matrix", DLRN_F32, 2, {2, 3}, floats},
                                        {"whole", DLRN_I64, 1, {3}, wholes},
                                        {"half", DLRN_F16, 1, {2}, halves},
                                        {"truth", DLRN_BOOL, 1, {2}, small}};

static void check_four(const char *path, const char *format) {
    dlrn_archive *a;
    int64_t n[3];
    float x[6];
    CHECK_OK(ctx, dlrn_archive_open(ctx, path, &a));
    CHECK(!strcmp(dlrn_archive_describe(a).format, format) &&
          !strcmp(dlrn_archive_describe(a).path, path));
    CHECK(dlrn_archive_describe(a).count == 4);
    for (int i = 0; i < 4; i++) {
        const dlrn_tensor_info *info = dlrn_archive_tensor(a, dlrn_archive_find(a, four[i].name));
        CHECK(info && info->dtype == four[i].dtype && info->ndim == four[i].ndim);
        CHECK(info->shape[0] == four[i].shape[0]);
    }
    CHECK_OK(ctx, dlrni_archive_read_i64(a, dlrn_archive_find(a, "whole"), n));
    CHECK(!memcmp(n, wholes, sizeof n));
    CHECK_OK(ctx, dlrn_archive_read(a, dlrn_archive_find(a, "half"), 0, -1, x));
    CHECK(x[0] == 1 && x[1] == -2);
    CHECK_STATUS(dlrni_archive_read_i64(a, dlrn_archive_find(a, "half"), n), DLRN_ERR_FORMAT);
    CHECK_OK(ctx, dlrn_archive_read(a, dlrn_archive_find(a, "a.matrix"), 1, 1, x));
    CHECK(!memcmp(x, floats + 3, 12));
    expect_numbers(a, "a.matrix", NULL, 6);
}

TEST(round_trips) {
    static const char *const forms[3] = {"pt", "safetensors", "npz"};
    static const char *const metadata[] = {"quote \" and \\", "line\nbreak", "k", "v", NULL};
    make_folder("trip");
    for (int i = 0; i < 3; i++) {
        char name[32];
        snprintf(name, sizeof name, "four.%s", forms[i]);
        CHECK_OK(ctx, dlrn_archive_write(ctx, path_of("trip", name), four, 4, metadata));
        check_four(path_of("trip", name), forms[i]);
    }
    dlrn_archive *a;
    CHECK_OK(ctx, dlrn_archive_open(ctx, path_of("trip", "four.safetensors"), &a));
    CHECK(!strcmp(dlrni_archive_metadata(a, "quote \" and \\"), "line\nbreak"));
    dlrn_archive_close(a);
    CHECK_OK(ctx, dlrn_archive_write(ctx, path_of("trip", "one.npy"), four, 1, NULL));
    CHECK_OK(ctx, dlrn_archive_open(ctx, path_of("trip", "one.npy"), &a));
    expect_numbers(a, "", NULL, 6);
    CHECK(count_files(path_of("", "trip"), ".tmp") == 0);
}

/* The same call writes the same bytes. */
TEST(writes_are_reproducible) {
    static const char *const names[3] = {"a.pt", "a.safetensors", "a.npz"};
    char *first, *second;
    size_t n, m;
    make_folder("same");
    for (int i = 0; i < 3; i++) {
        CHECK_OK(ctx, dlrn_archive_write(ctx, path_of("same", names[i]), four, 4, NULL));
        CHECK_OK(ctx, dlrn_file_read(ctx, path_of("same", names[i]), &first, &n));
        CHECK_OK(ctx, dlrn_archive_write(ctx, path_of("same", names[i]), four, 4, NULL));
        CHECK_OK(ctx, dlrn_file_read(ctx, path_of("same", names[i]), &second, &m));
        CHECK(n == m && !memcmp(first, second, n));
        dlrn_free(ctx, first);
        dlrn_free(ctx, second);
    }
}

/* Of nothing the other sizes may be any, as long as they can be told. */
TEST(writes_nothing_of_any_size) {
    static const dlrn_tensor_out nothing[2] = {
        {"x", DLRN_F32, 3, {0, (int64_t)1 << 52, (int64_t)1 << 52}, floats},
        {"y", DLRN_F32, 3, {(int64_t)1 << 52, (int64_t)1 << 52, 0}, floats},
    };
    static const char *const names[3] = {"n.pt", "n.safetensors", "n.npz"};
    make_folder("nothing");
    for (int i = 0; i < 3; i++) {
        dlrn_archive *a;
        CHECK_OK(ctx, dlrn_archive_write(ctx, path_of("nothing", names[i]), nothing, 2, NULL));
        CHECK_OK(ctx, dlrn_archive_open(ctx, path_of("nothing", names[i]), &a));
        for (int k = 0; k < 2; k++)
            CHECK(dlrn_archive_tensor(a, k)->numel == 0 &&
                  dlrn_archive_tensor(a, k)->shape[1] == (int64_t)1 << 52);
        dlrn_archive_close(a);
    }
}

TEST(writes_refuse) {
    static char long_name[1002];
    dlrn_archive *a = NULL;
    dlrn_tensor_out bad = four[0];
    make_folder("bad");
    CHECK_STATUS(dlrn_archive_write(ctx, path_of("bad", "x.gguf"), four, 4, NULL),
                 DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "x.gguf: expected a name ending in .pt, .safetensors, .npz or .npy");
    CHECK_STATUS(dlrn_archive_write(ctx, path_of("bad", "x.npy"), four, 4, NULL),
                 DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "a .npy holds one tensor");
    dlrn_dictionary *dict;
    CHECK_OK(ctx, new_autoencoder(ctx, D, F, 0, &dict));
    CHECK_STATUS(dlrn_save(dict, path_of("bad", "x.npy")), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "x.npy: expected a name ending in .pt, .safetensors or .npz");
    CHECK(!strstr(dlrn_error(ctx), " .npy"));
    dlrn_dictionary_destroy(dict);
    bad.shape[0] = -2;
    CHECK_STATUS(dlrn_archive_write(ctx, path_of("bad", "x.pt"), &bad, 1, NULL), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "tensor 'a.matrix' to be written: malformed shape");
    CHECK_STATUS(dlrn_archive_write(ctx, path_of("bad", "x.safetensors"), &bad, 1, NULL),
                 DLRN_ERR_ARGUMENT);
    CHECK_STATUS(dlrn_archive_write(ctx, path_of("bad", "x.npz"), &bad, 1, NULL),
                 DLRN_ERR_ARGUMENT);
    bad = four[0];
    bad.dtype = DLRN_BF16;
    CHECK_STATUS(dlrn_archive_write(ctx, path_of("bad", "x.npz"), &bad, 1, NULL),
                 DLRN_ERR_UNSUPPORTED);
    CHECK_STR(dlrn_error(ctx),
              "tensor 'a.matrix': .npy has no type BF16, or no room for its shape");
    bad.dtype = DLRN_U32;
    CHECK_STATUS(dlrn_archive_write(ctx, path_of("bad", "x.pt"), &bad, 1, NULL),
                 DLRN_ERR_UNSUPPORTED);
    CHECK_STR(dlrn_error(ctx), "tensor 'a.matrix': a .pt has no storage of type U32");
    bad.dtype = DLRN_DTYPE_COUNT;
    CHECK_STATUS(dlrn_archive_write(ctx, path_of("bad", "x.safetensors"), &bad, 1, NULL),
                 DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "tensor 'a.matrix' to be written: type");
    static const char *const taken[2] = {"__metadata__", "x\xff"};
    for (int i = 0; i < 2; i++) {
        bad = four[0];
        bad.name = taken[i];
        CHECK_STATUS(dlrn_archive_write(ctx, path_of("bad", "x.safetensors"), &bad, 1, NULL),
                     DLRN_ERR_ARGUMENT);
        CHECK_STR(dlrn_error(ctx),
                  "to be written: expected a name in UTF-8 other than __metadata__");
    }
    bad = four[0]; /* nothing, but of a size that would be read as another */
    bad.shape[0] = 0, bad.shape[1] = ((int64_t)1 << 53) + 1;
    CHECK_STATUS(dlrn_archive_write(ctx, path_of("bad", "x.safetensors"), &bad, 1, NULL),
                 DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "tensor 'a.matrix' to be written: malformed shape");
    const dlrn_tensor_out twice[3] = {four[0], four[1], four[0]};
    CHECK_STATUS(dlrn_archive_write(ctx, path_of("bad", "x.safetensors"), twice, 3, NULL),
                 DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "tensor 'a.matrix' to be written: expected once, found twice");
    static const char *const two_keys[] = {"key", "one", "key", "two", NULL};
    CHECK_STATUS(dlrn_archive_write(ctx, path_of("bad", "x.safetensors"), four, 4, two_keys),
                 DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "metadata 'key' to be written: expected once, found twice");
    static const char *const no_text[] = {"key", "value\x80", NULL};
    CHECK_STATUS(dlrn_archive_write(ctx, path_of("bad", "x.safetensors"), four, 4, no_text),
                 DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "to be written: expected UTF-8");
    memset(long_name, 'n', sizeof long_name - 1);
    bad = four[0];
    bad.name = long_name;
    CHECK_STATUS(dlrn_archive_write(ctx, path_of("bad", "x.npz"), &bad, 1, NULL),
                 DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "its name is too long for an .npz");
    CHECK_STATUS(dlrn_archive_write(ctx, path_of("bad", "x.pt"), &bad, 1, NULL), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "nnn...': its name is too long for a .pt");
    CHECK(count_files(path_of("", "bad"), "x.") == 0);
    long_name[1000] = 0; /* as long as may be */
    CHECK_OK(ctx, dlrn_archive_write(ctx, path_of("bad", "x.pt"), &bad, 1, NULL));
    CHECK_OK(ctx, dlrn_archive_open(ctx, path_of("bad", "x.pt"), &a));
    CHECK(dlrn_archive_find(a, long_name) == 0);
    dlrn_archive_close(a);
}

/* ---- What a failure leaves ---- */

TEST(old_file_stays) {
    dlrn_tensor_out bad = four[0];
    char *text;
    size_t n;
    make_folder("atomic");
    write_text(path_of("atomic", "ae.pt"), "old");
    bad.ndim = 9;
    CHECK_STATUS(dlrn_archive_write(ctx, path_of("atomic", "ae.pt"), &bad, 1, NULL),
                 DLRN_ERR_ARGUMENT);
    CHECK_OK(ctx, dlrn_file_read(ctx, path_of("atomic", "ae.pt"), &text, &n));
    CHECK(n == 3 && !strcmp(text, "old"));
    dlrn_free(ctx, text);
    dlrn_writer *w;
    CHECK_OK(ctx, dlrn_npy_create(ctx, path_of("atomic", "ae.pt"), 3, 4, &w));
    CHECK_OK(ctx, dlrn_npy_append(w, floats, 2));
    CHECK_STATUS(dlrn_writer_close(w), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "ae.pt: expected the 4 rows announced, found 2");
    CHECK_OK(ctx, dlrn_npy_create(ctx, path_of("atomic", "ae.pt"), 3, -1, &w));
    CHECK(count_files(path_of("", "atomic"), ".tmp") == 1);
    dlrn_writer_abort(w);
    CHECK_OK(ctx, dlrn_csr_create(ctx, path_of("atomic", "ae.pt"), 3, &w));
    CHECK_STATUS(dlrn_npy_append(w, floats, 1),
                 DLRN_ERR_ARGUMENT); /* a writer of another kind, codes of another width */
    CHECK_STATUS(dlrn_file_append(w, "x", 1), DLRN_ERR_ARGUMENT);
    dlrn_sparse other;
    memset(&other, 0, sizeof other);
    other.cols = 4;
    CHECK_STATUS(dlrn_csr_append(w, &other), DLRN_ERR_ARGUMENT);
    dlrn_writer_abort(w);
    CHECK_STATUS(dlrn_csr_create(ctx, path_of("atomic", "ae.pt"), 0, &w), DLRN_ERR_ARGUMENT);
    CHECK_STATUS(dlrn_npy_create(ctx, path_of("atomic", "ae.pt"), -1, 1, &w), DLRN_ERR_ARGUMENT);
    CHECK(w == NULL);
    dlrn_writer_abort(NULL);
    CHECK_OK(ctx, dlrn_npy_create(ctx, path_of("atomic", "ae.pt"), 3, -1, &w));
    CHECK_STATUS(dlrn_npy_append(w, floats, -1), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "not a writer of .npy, or a negative number of rows");
    dlrn_writer_abort(w);
    CHECK_OK(ctx, dlrn_file_read(ctx, path_of("atomic", "ae.pt"), &text, &n));
    CHECK(n == 3);
    dlrn_free(ctx, text);
    CHECK(count_files(path_of("", "atomic"), ".tmp") == 0);
}

/* Where rename() does not replace: the old file is moved back if the new one cannot take its place.
   Here rename() fails because there is no new file. */
TEST(a_rename_that_fails_loses_nothing) {
    char *text, *from = path_of("rename", "new"), *to = path_of("rename", "old");
    size_t n;
    make_folder("rename");
    write_text(to, "old");
    CHECK(dlrni_rename_over(from, to) != 0);
    CHECK_OK(ctx, dlrn_file_read(ctx, to, &text, &n));
    CHECK(n == 3 && !strcmp(text, "old"));
    dlrn_free(ctx, text);
    write_text(from, "newer");
    CHECK(dlrni_rename_over(from, to) == 0);
    CHECK_OK(ctx, dlrn_file_read(ctx, to, &text, &n));
    CHECK(n == 5 && !exists(from) && count_files(path_of("", "rename"), "") <= 3); /* ., .., old */
    dlrn_free(ctx, text);
}

/* Metadata of a zip is its comment, in lines; what does not fit on one is left out, and a comment
   of others is ignored. */
TEST(metadata_of_a_zip) {
    static char large[60000];
    static const char *const names[2] = {"notes.pt", "notes.npz"};
    static const char *const metadata[] = {
        "class", "a=b", "two", "li\nnes", "k=",   "v", "large", large,
        "huge",  large, "",    "",        "last", "x", NULL};
    make_folder("notes");
    memset(large, 'x', sizeof large - 1);
    for (int i = 0; i < 2; i++) {
        dlrn_archive *a;
        char *bytes;
        size_t n;
        char *path = path_of("notes", names[i]);
        CHECK_OK(ctx, dlrn_archive_write(ctx, path, four, 4, metadata));
        CHECK_OK(ctx, dlrn_archive_open(ctx, path, &a));
        CHECK(!strcmp(dlrni_archive_metadata(a, "class"), "a=b"));
        CHECK(!strcmp(dlrni_archive_metadata(a, "large"), large));
        CHECK(!strcmp(dlrni_archive_metadata(a, "last"), "x"));
        CHECK(!strcmp(dlrni_archive_metadata(a, ""), ""));
        CHECK(!dlrni_archive_metadata(a, "two") && !dlrni_archive_metadata(a, "huge"));
        CHECK(!dlrni_archive_metadata(a, "k") && !dlrni_archive_metadata(a, "k="));
        dlrn_archive_close(a);
        CHECK_OK(ctx, dlrn_file_read(ctx, path, &bytes, &n));
        /* cut: "las" has no sign, and the rest of the line is in memory, but not in the file */
        CHECK_OK(ctx, dlrn_archive_open_memory(ctx, bytes, n - 4, "cut", &a));
        CHECK(!strcmp(dlrni_archive_metadata(a, "large"), large));
        CHECK(!dlrni_archive_metadata(a, "las") && !dlrni_archive_metadata(a, "last"));
        dlrn_archive_close(a);
        check_four(path, names[i] + 6);
        dlrn_free(ctx, bytes);
    }
}

/* Two writers at one file do not know of each other: each is whole, and the last one stays. */
TEST(writers_of_one_file) {
    dlrn_writer *one, *two;
    char *text;
    size_t n;
    make_folder("both");
    CHECK_OK(ctx, dlrn_file_create(ctx, path_of("both", "x.txt"), &one));
    CHECK_OK(ctx, dlrn_file_create(ctx, path_of("both", "x.txt"), &two));
    CHECK_OK(ctx, dlrn_file_append(one, "first", 5));
    CHECK_OK(ctx, dlrn_file_append(two, "second", 6));
    CHECK(count_files(path_of("", "both"), ".tmp") == 2);
    CHECK_OK(ctx, dlrn_writer_close(one));
    CHECK_OK(ctx, dlrn_file_read(ctx, path_of("both", "x.txt"), &text, &n));
    CHECK(!strcmp(text, "first"));
    dlrn_free(ctx, text);
    CHECK_OK(ctx, dlrn_writer_close(two));
    CHECK_OK(ctx, dlrn_file_read(ctx, path_of("both", "x.txt"), &text, &n));
    CHECK(!strcmp(text, "second"));
    dlrn_free(ctx, text);
    CHECK(count_files(path_of("", "both"), "x.txt") == 1);
}

#ifndef _WIN32
/* Who may read a file may read what takes its place, and nobody else. */
TEST(modes_stay) {
    static const mode_t modes[2] = {0600, 0664};
    struct stat st;
    make_folder("modes");
    const char *path = path_of("modes", "x.pt");
    for (int i = 0; i < 2; i++) {
        CHECK_OK(ctx, dlrn_archive_write(ctx, path, four, 4, NULL));
        CHECK(chmod(path, modes[i]) == 0);
        CHECK_OK(ctx, dlrn_archive_write(ctx, path, four, 4, NULL));
        CHECK(stat(path, &st) == 0 && (st.st_mode & 0777) == modes[i]);
    }
}
#endif

TEST(targets_that_cannot_be_written) {
    dlrn_writer *w = NULL;
    make_folder("target");
    make_folder("target/folder.pt");
    CHECK_STATUS(dlrn_file_write(ctx, path_of("target", "none/x"), "x", 1), DLRN_ERR_IO);
    CHECK_STR(dlrn_error(ctx), "target/none/x: cannot create it: No such file");
    CHECK_STATUS(dlrn_archive_write(ctx, path_of("target", "none/x.pt"), four, 4, NULL),
                 DLRN_ERR_IO);
    CHECK_STATUS(dlrn_npy_create(ctx, path_of("target", "none/x.npy"), 3, 4, &w), DLRN_ERR_IO);
    CHECK_STATUS(dlrn_csr_create(ctx, path_of("target", "none/x.npz"), 3, &w),
                 DLRN_ERR_IO); /* at once */
    CHECK_STR(dlrn_error(ctx), "target/none/x.npz: cannot create it: No such file");
    CHECK(w == NULL);
    CHECK_STATUS(dlrn_archive_write(ctx, path_of("target", "folder.pt"), four, 4, NULL),
                 DLRN_ERR_IO);
    CHECK_STR(dlrn_error(ctx), "folder.pt: expected a file to write, found a folder");
    CHECK(count_files(path_of("", "target"), ".tmp") == 0);
    CHECK_STATUS(dlrn_file_create(ctx, path_of("target", "none/x.txt"), &w), DLRN_ERR_IO);
    CHECK(w == NULL);
}

TEST(bytes_that_come_in_pieces) {
    dlrn_writer *w;
    char *text;
    size_t n;
    make_folder("pieces");
    write_text(path_of("pieces", "x.txt"), "old");
    CHECK_OK(ctx, dlrn_file_create(ctx, path_of("pieces", "x.txt"), &w));
    CHECK_OK(ctx, dlrn_file_append(w, "ab", 2));
    CHECK_STATUS(dlrn_npy_append(w, floats, 1), DLRN_ERR_ARGUMENT);
    dlrn_writer_abort(w);
    CHECK_OK(ctx, dlrn_file_read(ctx, path_of("pieces", "x.txt"), &text, &n));
    CHECK(!strcmp(text, "old"));
    dlrn_free(ctx, text);
    CHECK_OK(ctx, dlrn_file_create(ctx, path_of("pieces", "x.txt"), &w));
    CHECK_OK(ctx, dlrn_file_append(w, "ab", 2));
    CHECK_OK(ctx, dlrn_file_append(w, "", 0));
    CHECK_OK(ctx, dlrn_file_append(w, "cde", 3));
    CHECK_OK(ctx, dlrn_writer_close(w));
    CHECK_OK(ctx, dlrn_file_read(ctx, path_of("pieces", "x.txt"), &text, &n));
    CHECK(n == 5 && !strcmp(text, "abcde"));
    dlrn_free(ctx, text);
    CHECK(count_files(path_of("", "pieces"), ".tmp") == 0);
    CHECK_OK(ctx, dlrn_npy_create(ctx, path_of("pieces", "x.npy"), 3, 1, &w));
    CHECK_STATUS(dlrn_file_append(w, "ab", 2), DLRN_ERR_ARGUMENT);
    dlrn_writer_abort(w);
}

/* Devices are written to, never replaced; a full disk is told. */
TEST(full_disk) {
    struct stat before, after;
    dlrn_writer *w;
    if (stat("/dev/full", &before)) SKIP("no /dev/full");
    CHECK_STATUS(dlrn_file_write(ctx, "/dev/full", floats, sizeof floats), DLRN_ERR_IO);
    CHECK_STR(dlrn_error(ctx), "/dev/full: cannot write it: No space left on device");
    CHECK_OK(ctx, dlrn_npy_create(ctx, "/dev/full", 3, 2, &w));
    (void)!dlrn_npy_append(w, floats, 2);
    CHECK_STATUS(dlrn_writer_close(w), DLRN_ERR_IO);
    CHECK_OK(ctx, dlrn_npy_create(ctx, "/dev/full", 3, -1, &w));
    CHECK_OK(ctx, dlrn_npy_append(w, floats, 2)); /* they wait for their number */
    CHECK_STATUS(dlrn_writer_close(w), DLRN_ERR_IO);
    CHECK_STR(dlrn_error(ctx), "/dev/full: cannot write it: No space left on device");
    CHECK_OK(ctx, dlrn_file_write(ctx, "/dev/null", floats, sizeof floats));
    CHECK(stat("/dev/full", &after) == 0 && after.st_ino == before.st_ino &&
          !S_ISREG(after.st_mode));
    CHECK(stat("/dev/null", &after) == 0 && !S_ISREG(after.st_mode));
}

TEST(files_that_cannot_be_read) {
    dlrn_archive *a = NULL;
    dlrn_dictionary *dict = NULL;
    char *text;
    size_t n;
    make_folder("read");
    CHECK_STATUS(dlrn_archive_open(ctx, path_of("read", "none.pt"), &a), DLRN_ERR_IO);
    CHECK_STR(dlrn_error(ctx), "read/none.pt: cannot open it: No such file");
    CHECK_STATUS(dlrn_archive_open(ctx, path_of("", "read"), &a), DLRN_ERR_IO);
    CHECK_STR(dlrn_error(ctx), "read: expected a file, found a folder");
    CHECK_STATUS(dlrn_file_read(ctx, path_of("", "read"), &text, &n), DLRN_ERR_IO);
    CHECK_STATUS(dlrn_load(ctx, path_of("read", "none"), NULL, &dict), DLRN_ERR_IO);
    CHECK_STR(dlrn_error(ctx), "read/none: no such file or folder");
    write_text(path_of("read", "empty.pt"), "");
    CHECK_STATUS(dlrn_archive_open(ctx, path_of("read", "empty.pt"), &a), DLRN_ERR_FORMAT);
    CHECK_STR(
        dlrn_error(ctx),
        "empty.pt: expected torch (.pt), safetensors, .npz or .npy, found none of them in its 0");
    CHECK(a == NULL && dict == NULL && exists(path_of("read", "empty.pt")) == 1 &&
          exists(path_of("", "read")) == 2);
}

/* As many members as 16 bits cannot count: the end record has its 64-bit form. */
TEST(more_members_than_16_bits_count) {
    enum { MEMBERS = 65536 };
    char(*name)[16] = (char(*)[16])malloc(MEMBERS * sizeof *name);
    dlrn_tensor_out *t = (dlrn_tensor_out *)calloc(MEMBERS, sizeof *t);
    dlrn_archive *a = NULL;
    CHECK(name && t);
    for (int i = 0; i < MEMBERS; i++) {
        snprintf(name[i], sizeof *name, "%d", i);
        t[i].name = name[i], t[i].ndim = 1, t[i].shape[0] = i % 2, t[i].data = floats;
    }
    make_folder("members");
    CHECK_OK(ctx, dlrn_archive_write(ctx, path_of("members", "x.npz"), t, MEMBERS, NULL));
    CHECK_OK(ctx, dlrn_archive_open(ctx, path_of("members", "x.npz"), &a));
    CHECK(dlrn_archive_describe(a).count == MEMBERS);
    CHECK(dlrn_archive_tensor(a, dlrn_archive_find(a, "65535"))->numel == 1);
    CHECK(dlrn_archive_tensor(a, dlrn_archive_find(a, "65534"))->numel == 0);
    dlrn_archive_close(a);
    remove(path_of("members", "x.npz"));
    free(name);
    free(t);
}

#ifndef _WIN32
extern int symlink(const char *to,
                   const char *path); /* hidden from strict C99 although it is there */

/* A link stays, and what it leads to is replaced: also through another link, from the root, and if
   nothing is there. */
TEST(links_are_followed) {
    char here[2048], *text = NULL;
    size_t n;
    make_folder("links");
    CHECK(getcwd(here, sizeof here / 2) != NULL);
    strcat(strcat(here, "/"), path_of("links", "real"));
    CHECK(symlink("real", path_of("links", "near")) == 0 &&
          symlink("near", path_of("links", "chain")) == 0);
    CHECK(symlink(here, path_of("links", "rooted")) == 0 &&
          symlink("later", path_of("links", "open")) == 0);
    static const char *const links[] = {"near", "chain", "rooted"};
    for (int i = 0; i < 3; i++) {
        write_text(path_of("links", "real"), "old");
        write_text(path_of("links", links[i]), links[i]);
        CHECK_OK(ctx, dlrn_file_read(ctx, path_of("links", "real"), &text, &n));
        CHECK(!strcmp(text, links[i]));
        dlrn_free(ctx, text);
    }
    write_text(path_of("links", "open"), "new");
    CHECK(exists(path_of("links", "later")) == 1);
    CHECK(symlink("b", path_of("links", "a")) == 0 && symlink("a", path_of("links", "b")) == 0);
    CHECK_STATUS(dlrn_file_write(ctx, path_of("links", "a"), "x", 1), DLRN_ERR_IO);
    CHECK_STR(dlrn_error(ctx), "links/a: the path is too long, or its symbolic links form a cycle");
    char longer[5000];
    memset(longer, 'p', sizeof longer);
    longer[sizeof longer - 1] = 0;
    CHECK_STATUS(dlrn_file_write(ctx, longer, "x", 1), DLRN_ERR_IO);
    CHECK_STR(dlrn_error(ctx), "pp: the path is too long, or its symbolic links form a cycle");
    write_text("dictlearn_here.tmp", "no folder in its name");
    CHECK(remove("dictlearn_here.tmp") == 0);
}
#endif

/* The last name of a .npz stands where a reader looks for the place of a 64-bit end record. */
TEST(names_that_look_like_records) {
    static const char name[] =
        "PK\6\7 and a place"; /* with .npy the 20 bytes before the end record */
    const dlrn_tensor_out t = {name, DLRN_F32, 1, {2}, floats};
    dlrn_archive *a = NULL;
    char *path = path_of("records", "x.npz");
    make_folder("records");
    CHECK(strlen(name) + strlen(".npy") == 20);
    CHECK_OK(ctx, dlrn_archive_write(ctx, path, &t, 1, NULL));
    CHECK_OK(ctx, dlrn_archive_open(ctx, path, &a));
    CHECK(dlrn_archive_find(a, name) == 0);
    dlrn_archive_close(a);
}

/* Of a path that leaves no room for it, the end of the error is kept, and the beginning. */
TEST(errors_of_long_paths) {
    char path[3000];
    dlrn_archive *a = NULL;
    memset(path, 'p', sizeof path);
    memcpy(path, "build/", 6);
    path[sizeof path - 1] = 0;
    memcpy(path + sizeof path - 7, "/ae.pt", 6);
    CHECK_STATUS(dlrn_archive_open(ctx, path, &a), DLRN_ERR_IO);
    const char *said = dlrn_error(ctx);
    CHECK(strlen(said) == 1023 && !strncmp(said, "build/ppp", 9));
    CHECK_STR(said, "pp...pp");
    CHECK_STR(said, "pp/ae.pt: cannot open it: ");
}

/* A context with files of its own looks at no others. */
static dlrn_status refuse_to_open(void *user, dlrn_context *c, const char *path, int writing,
                                  void **file) {
    (void)user, (void)file;
    return dlrn_fail(c, DLRN_ERR_IO, "the store: %s of %s refused",
                     writing ? "creation" : "opening", path);
}

static dlrn_status never_read(void *user, dlrn_context *c, void *file, void *bytes, size_t size,
                              size_t *got) {
    (void)user, (void)c, (void)file, (void)bytes, (void)size, (void)got;
    TEST_FAIL("nothing was opened");
}

static dlrn_status never_written(void *user, dlrn_context *c, void *file, const void *bytes,
                                 size_t size) {
    (void)user, (void)c, (void)file, (void)bytes, (void)size;
    TEST_FAIL("nothing was opened");
}

static dlrn_status never_closed(void *user, dlrn_context *c, void *file, int keep) {
    (void)user, (void)c, (void)file, (void)keep;
    TEST_FAIL("nothing was opened");
}

static int all_are_there(void *user, const char *path) {
    (void)user, (void)path;
    return 1;
}

TEST(files_of_the_host) {
    dlrn_context_config cfg = {0};
    dlrn_context *other = NULL;
    dlrn_archive *a = NULL;
    char *path = path_of("host", "x.npy");
    make_folder("host");
    CHECK_OK(ctx, dlrn_archive_write(ctx, path, &(dlrn_tensor_out){"", DLRN_F32, 1, {2}, floats}, 1,
                                     NULL));
    cfg.io.open_file = refuse_to_open;
    cfg.io.read_file = never_read;
    cfg.io.write_file = never_written;
    cfg.io.close_file = never_closed;
    cfg.io.file_exists = all_are_there;
    CHECK_STATUS(dlrn_context_create(&cfg, &other), DLRN_OK);
    CHECK_STATUS(dlrn_archive_open(other, path, &a),
                 DLRN_ERR_IO); /* it is on the disk, but not in the store */
    CHECK_STR(dlrn_error(other), "the store: opening of ");
    CHECK_STATUS(dlrn_file_write(other, path, "", 0), DLRN_ERR_IO);
    CHECK_STR(dlrn_error(other), "the store: creation of ");
    CHECK(dlrn_file_exists(other, path_of("", "none")) == 1 &&
          dlrn_file_exists(ctx, path_of("", "none")) == 0);
    dlrn_context_destroy(other);
    CHECK_OK(ctx, dlrn_archive_open(ctx, path, &a));
    dlrn_archive_close(a);
}

/* ---- CSR ---- */

/* Two rows: [0 0.5 0 0 2] and [0 0 0 0 0]. */
static void small_codes(dlrn_sparse *codes, int64_t ptr[3], int32_t col[2], float val[2]) {
    static const int64_t ptr_of[3] = {0, 2, 2};
    memset(codes, 0, sizeof *codes);
    memcpy(ptr, ptr_of, sizeof ptr_of);
    col[0] = 1, col[1] = 4, val[0] = 0.5f, val[1] = 2;
    codes->rows = 2;
    codes->cols = 5;
    codes->row_ptr = ptr;
    codes->col = col;
    codes->val = val;
}

TEST(csr_round_trip) {
    dlrn_sparse codes, back;
    dlrn_writer *w;
    int64_t ptr[3];
    int32_t col[2];
    float val[2];
    make_folder("csr");
    small_codes(&codes, ptr, col, val);
    CHECK_OK(ctx, dlrn_csr_create(ctx, path_of("csr", "f.npz"), 5, &w));
    CHECK_OK(ctx, dlrn_csr_append(w, &codes));
    codes.cols = 6;
    CHECK_STATUS(dlrn_csr_append(w, &codes), DLRN_ERR_ARGUMENT);
    codes.cols = 5;
    CHECK_OK(ctx, dlrn_csr_append(w, &codes));
    CHECK_OK(ctx, dlrn_writer_close(w));
    memset(&back, 0, sizeof back);
    for (int again = 0; again < 2; again++) { /* into what is there already */
        static const int64_t want[5] = {0, 2, 2, 4, 4};
        CHECK_OK(ctx, csr_load(ctx, path_of("csr", "f.npz"), &back));
        CHECK(back.rows == 4 && back.cols == 5 && !memcmp(back.row_ptr, want, sizeof want));
        CHECK(back.col[2] == 1 && back.col[3] == 4 && back.val[2] == 0.5f && back.val[3] == 2);
    }
    dlrn_sparse_free(&back);
    CHECK_OK(ctx, dlrn_csr_create(ctx, path_of("csr", "none.npz"), 7, &w)); /* no rows at all */
    CHECK_OK(ctx, dlrn_writer_close(w));
    CHECK_OK(ctx, csr_load(ctx, path_of("csr", "none.npz"), &back));
    CHECK(back.rows == 0 && back.cols == 7);
    dlrn_sparse_free(&back);
}

/* The entries of a row may stand in any order in SciPy's files; here they ascend. */
TEST(csr_out_of_order) {
    static const int64_t shape[2] = {2, 9}, ptr[3] = {0, 4, 6};
    static const int32_t col[6] = {7, 1, 8, 0, 2, 3}, want[6] = {0, 1, 7, 8, 2, 3};
    static const float want_val[6] = {3, 1, 0, 2, 4, 5};
    static const dlrn_tensor_out parts[4] = {{"shape", DLRN_I64, 1, {2}, shape},
                                             {"indptr", DLRN_I64, 1, {3}, ptr},
                                             {"indices", DLRN_I32, 1, {6}, col},
                                             {"data", DLRN_F32, 1, {6}, floats}};
    dlrn_sparse back;
    memset(&back, 0, sizeof back);
    make_folder("csr");
    CHECK_OK(ctx, dlrn_archive_write(ctx, path_of("csr", "f.npz"), parts, 4, NULL));
    CHECK_OK(ctx, csr_load(ctx, path_of("csr", "f.npz"), &back));
    CHECK(!memcmp(back.col, want, sizeof want) && !memcmp(back.val, want_val, sizeof want_val));
    dlrn_sparse_free(&back);
}

TEST(csr_refuses) {
    static const struct {
        int64_t shape[2], ptr[3];
        int32_t col[2];
        int64_t entries;
        const char *words;
    } bad[] = {
        {{2, 5}, {0, 2, 2}, {1, 5}, 2, "indices: entry 1: expected [0, 5), found 5"},
        {{2, 5}, {0, 2, 2}, {-3, 4}, 2, "indices: entry 0: expected [0, 5), found -3"},
        {{2, 5},
         {0, 3, 2},
         {1, 4},
         2,
         "indptr: row 1: expected at least the value before, found less"},
        {{2, 5}, {0, 2, 2}, {4, 4}, 2, "indices: row 0: expected column 4 once, found it twice"},
        {{2, 5}, {0, 1, 1}, {1, 4}, 2, "indptr: expected 0 to 2"},
        {{2, 5}, {1, 2, 2}, {1, 4}, 2, "indptr: expected 0 to 2"},
        {{3, 5}, {0, 2, 2}, {1, 4}, 2, "the sizes of shape, indptr, indices and data do not agree"},
        {{-1, 5},
         {0, 2, 2},
         {1, 4},
         2,
         "the sizes of shape, indptr, indices and data do not agree"},
        {{INT64_MAX, 5},
         {0, 2, 2},
         {1, 4},
         2,
         "the sizes of shape, indptr, indices and data do not agree"},
        {{2, (int64_t)1 << 31},
         {0, 2, 2},
         {1, 4},
         2,
         "the sizes of shape, indptr, indices and data do not agree"},
        {{2, 5}, {0, 2, 2}, {1, 4}, 1, "the sizes of shape, indptr, indices and data do not agree"},
    };
    make_folder("csr");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        dlrn_sparse back;
        memset(&back, 0, sizeof back);
        dlrn_tensor_out parts[4] = {{"shape", DLRN_I64, 1, {2}, bad[i].shape},
                                    {"indptr", DLRN_I64, 1, {3}, bad[i].ptr},
                                    {"indices", DLRN_I32, 1, {2}, bad[i].col},
                                    {"data", DLRN_F32, 1, {bad[i].entries}, floats}};
        CHECK_OK(ctx, dlrn_archive_write(ctx, path_of("csr", "bad.npz"), parts, 4, NULL));
        CHECK_STATUS(csr_load(ctx, path_of("csr", "bad.npz"), &back), DLRN_ERR_FORMAT);
        CHECK_STR(dlrn_error(ctx), "csr/bad.npz: ");
        CHECK_STR(dlrn_error(ctx), bad[i].words);
        CHECK(back.row_ptr == NULL);
        CHECK_OK(ctx, dlrn_archive_write(ctx, path_of("csr", "bad.npz"), parts, 3, NULL));
        CHECK_STATUS(csr_load(ctx, path_of("csr", "bad.npz"), &back), DLRN_ERR_FORMAT);
        CHECK_STR(dlrn_error(ctx),
                  "expected 'data' of one dimension, as scipy.sparse.save_npz writes it");
    }
}

/* ---- Dictionaries ---- */

static float bias[D], encoder[F * D], encoder_bias[F], decoder[D * F];

/* Tensors of the reference's AutoEncoder, some of them perhaps changed by the caller. */
static void reference_tensors(dlrn_tensor_out t[4]) {
    const dlrn_tensor_out like[4] = {{"bias", DLRN_F32, 1, {D}, bias},
                                     {"encoder.weight", DLRN_F32, 2, {F, D}, encoder},
                                     {"encoder.bias", DLRN_F32, 1, {F}, encoder_bias},
                                     {"decoder.weight", DLRN_F32, 2, {D, F}, decoder}};
    memcpy(t, like, sizeof like);
    for (int i = 0; i < D; i++) bias[i] = (float)i;
    for (int i = 0; i < F; i++) encoder_bias[i] = (float)(10 + i);
    for (int i = 0; i < F * D; i++) encoder[i] = (float)(100 + i), decoder[i] = (float)(200 + i);
}

static void check_dictionary(const char *path) {
    dlrn_dictionary *dict;
    CHECK_OK(ctx, dlrn_load(ctx, path, NULL, &dict));
    CHECK(dict->d_in == D && dict->features == F);
    CHECK(!strcmp(dict->family, "AutoEncoder"));
    CHECK(!memcmp(dict->param[DLRN_OUTPUT_BIAS], bias, sizeof bias) &&
          !memcmp(dict->param[DLRN_ENCODER_BIAS], encoder_bias, sizeof encoder_bias));
    CHECK(!memcmp(dict->param[DLRN_ENCODER], encoder, sizeof encoder));
    for (int i = 0; i < D; i++)
        for (int j = 0; j < F; j++)
            CHECK(dict->param[DLRN_DECODER][j * D + i] == decoder[i * F + j]);
    dlrn_dictionary_destroy(dict);
}

static void refuse_dictionary(const char *path, dlrn_status status, const char *words) {
    dlrn_dictionary *dict = NULL;
    dlrn_status s = dlrn_load(ctx, path, NULL, &dict);
    CHECK_MSG(s == status, "%s: %s, expected %s", path, s ? dlrn_error(ctx) : "it was read",
              test_status_name(status));
    CHECK(dict == NULL);
    CHECK_STR(dlrn_error(ctx), words);
}

/* A folder that holds the four tensors as `file`, and a config.json beside it. */
static char *dictionary_folder(const char *folder, const char *file, const char *config) {
    dlrn_tensor_out t[4];
    reference_tensors(t);
    make_folder(folder);
    if (file) CHECK_OK(ctx, dlrn_archive_write(ctx, path_of(folder, file), t, 4, NULL));
    if (config) write_text(path_of(folder, "config.json"), config);
    return path_of("", folder);
}

#define CONFIG(class)                                                                              \
    "{\"trainer\": {\"dict_class\": \"" class "\", \"activation_dim\": 3, \"dict_size\": 5}}"

TEST(layouts) {
    check_dictionary(dictionary_folder("plain", "ae.pt", NULL));
    check_dictionary(path_of("plain", "ae.pt"));
    check_dictionary(dictionary_folder("tensors", "ae.safetensors", CONFIG("AutoEncoder")));
    check_dictionary(
        dictionary_folder("arrays", "ae.npz", "{\"dict_size\": 5, \"activation_dim\": 3}"));
    check_dictionary(path_of("arrays", "ae.npz"));
    check_dictionary(dictionary_folder("params", "params.npz", NULL)); /* as Gemma Scope names it */
    make_folder("run");
    dictionary_folder("run/trainer_0", "ae.pt", CONFIG("AutoEncoder"));
    check_dictionary(path_of("", "run"));
    check_dictionary(path_of("", "run/"));
    check_dictionary(path_of("run", "trainer_0"));
    check_dictionary(path_of("run/trainer_0", "ae.pt"));
}

TEST(layouts_refused) {
    refuse_dictionary(dictionary_folder("nothing", NULL, NULL), DLRN_ERR_IO,
                      "load/nothing: expected ae.pt, ae.safetensors, ae.npz, "
                      "sae_weights.safetensors, ");
    CHECK_STR(dlrn_error(ctx), " or layer files in this folder, found none");
    refuse_dictionary(dictionary_folder("bare", NULL, CONFIG("AutoEncoder")), DLRN_ERR_IO,
                      "bare/config.json: expected ae.pt, ae.safetensors, ae.npz, ");
    CHECK_STR(dlrn_error(ctx), " beside it, found none");
    refuse_dictionary(dictionary_folder("gated", "ae.pt", CONFIG("GatedAutoEncoder")),
                      DLRN_ERR_SHAPE,
                      "gated/ae.pt: expected the tensors of GatedAutoEncoder, found those of "
                      "AutoEncoder (dictionary_learning)");
    char *own = dictionary_folder("gated", "ae.pt", CONFIG("MyAutoEncoder"));
    refuse_dictionary(own, DLRN_ERR_UNSUPPORTED,
                      "gated/config.json: dict_class: expected AutoEncoder, AutoEncoderTopK, ");
    CHECK_STR(dlrn_error(ctx), " or MatryoshkaBatchTopKSAE, found MyAutoEncoder");
    refuse_dictionary(path_of("gated", "ae.pt"), DLRN_ERR_UNSUPPORTED, "found MyAutoEncoder");
    refuse_dictionary(dictionary_folder("wide", "ae.pt", "{\"trainer\": {\"dict_size\": 6}}"),
                      DLRN_ERR_SHAPE,
                      "wide/config.json: trainer.dict_size: expected 5 as in the tensors, found 6");
    refuse_dictionary(dictionary_folder("tall", "ae.pt", "{\"activation_dim\": 4}"), DLRN_ERR_SHAPE,
                      "tall/config.json: activation_dim: expected 3 as in the tensors, found 4");
    refuse_dictionary(dictionary_folder("part", "ae.pt", "{\"activation_dim\": 3.5}"),
                      DLRN_ERR_SHAPE,
                      "part/config.json: activation_dim: expected 3 as in the tensors, found 3.5");
    refuse_dictionary(dictionary_folder("torn", "ae.pt", "{\"trainer\": "), DLRN_ERR_FORMAT,
                      "torn/config.json: JSON, line 1, byte 12");
    char path[4096] = {0};
    const size_t longest =
        sizeof path - 2 - strlen("checkpoints/final.safetensors"); /* "/" and 0 */
    memset(path, 'x', longest); /* any name of a folder's files fits after it */
    refuse_dictionary(path, DLRN_ERR_IO, "xxx");
    path[longest] = 'x';
    refuse_dictionary(path, DLRN_ERR_ARGUMENT, "xxx");
}

/* What the reader would pass over is told: a size in quotes, a class that is no name. */
TEST(configs_refused) {
    static const struct {
        const char *config, *words;
    } bad[] = {
        {"{\"dict_size\": \"512\"}", "config.json: dict_size: expected a number, found \"512\""},
        {"{\"trainer\": {\"dict_size\": \"5\"}}",
         "config.json: trainer.dict_size: expected a number, found \"5\""},
        {"{\"activation_dim\": [3]}",
         "config.json: activation_dim: expected a number, found a list"},
        {"{\"trainer\": {\"activation_dim\": true}}",
         "config.json: trainer.activation_dim: expected a number, found true or false"},
        {"{\"dict_class\": 7}", "config.json: dict_class: expected a text, found 7"},
        {"{\"trainer\": {\"dict_class\": {}}}",
         "config.json: trainer.dict_class: expected a text, found an object"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refuse_dictionary(dictionary_folder("kinds", "ae.pt", bad[i].config), DLRN_ERR_FORMAT,
                          bad[i].words);
    refuse_dictionary(
        dictionary_folder("quoted", NULL,
                          "{\"dict_class\": \"IdentityDict\", \"activation_dim\": \"3\"}"),
        DLRN_ERR_FORMAT, "quoted/config.json: activation_dim: expected a number, found \"3\"");
    check_dictionary(
        dictionary_folder("unsaid", "ae.pt", "{\"dict_class\": null, \"dict_size\": null}"));
}

TEST(identity) {
    dlrn_dictionary *dict;
    CHECK_OK(ctx,
             dlrn_load(ctx, dictionary_folder("same", NULL, CONFIG("IdentityDict")), NULL, &dict));
    CHECK(dict->d_in == 3 && !strcmp(dict->family, "IdentityDict"));
    CHECK_STATUS(dlrn_save(dict, path_of("same", "ae.pt")), DLRN_ERR_UNSUPPORTED);
    CHECK_STR(dlrn_error(ctx), "same/ae.pt: not written: an IdentityDict has no weights to save");
    dlrn_dictionary_destroy(dict);
    refuse_dictionary(
        dictionary_folder("weighty", "ae.pt", CONFIG("IdentityDict")), DLRN_ERR_VALUE,
        "weighty/config.json: trainer.dict_class: expected AutoEncoder, AutoEncoderTopK, ");
    CHECK_STR(dlrn_error(ctx), "/ae.pt has weights, found IdentityDict");
    refuse_dictionary(
        dictionary_folder("vast", NULL,
                          "{\"dict_class\": \"IdentityDict\", \"activation_dim\": 1e300}"),
        DLRN_ERR_VALUE, "vast/config.json: activation_dim: expected a size from 1, found 1e+300");
    refuse_dictionary(
        dictionary_folder("vast", NULL,
                          "{\"dict_class\": \"IdentityDict\", \"activation_dim\": 1.5}"),
        DLRN_ERR_VALUE, "vast/config.json: activation_dim: expected a size from 1, found 1.5");
}

TEST(weights_refused) {
    static const struct {
        int tensor, ndim;
        int64_t shape[2];
        dlrn_status status;
        const char *words;
    } bad[] = {
        {0, 1, {D - 1, 0}, DLRN_ERR_SHAPE, "tensor 'bias': expected shape [3], found [2]"},
        {1, 1, {F, 0}, DLRN_ERR_SHAPE, "tensor 'encoder.weight': expected shape [F, d], found [5]"},
        {1,
         2,
         {0, D},
         DLRN_ERR_SHAPE,
         "tensor 'encoder.weight': expected a shape without 0, found [0, 3]"},
        {1,
         2,
         {F, 0},
         DLRN_ERR_SHAPE,
         "tensor 'encoder.weight': expected a shape without 0, found [5, 0]"},
        {2, 1, {F - 1, 0}, DLRN_ERR_SHAPE, "tensor 'encoder.bias': expected shape [5], found [4]"},
        {2, 2, {1, F}, DLRN_ERR_SHAPE, "tensor 'encoder.bias': expected shape [5], found [1, 5]"},
        {3,
         2,
         {F, D},
         DLRN_ERR_SHAPE,
         "tensor 'decoder.weight': expected shape [3, 5], found [5, 3]"},
    };
    static const char *const names[4] = {"bias", "encoder.weight", "encoder.bias",
                                         "decoder.weight"};
    dlrn_tensor_out t[4];
    char words[128];
    make_folder("shapes");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        reference_tensors(t);
        t[bad[i].tensor].ndim = bad[i].ndim;
        memcpy(t[bad[i].tensor].shape, bad[i].shape, sizeof bad[i].shape);
        CHECK_OK(ctx, dlrn_archive_write(ctx, path_of("shapes", "ae.pt"), t, 4, NULL));
        refuse_dictionary(path_of("", "shapes"), bad[i].status, bad[i].words);
        CHECK_STR(dlrn_error(ctx), "shapes/ae.pt: ");
    }
    for (int i = 0; i < 4; i++) { /* one missing, one not finite */
        reference_tensors(t);
        float *weights[4] = {bias, encoder, encoder_bias, decoder};
        weights[i][2] = i % 2 ? NAN : -INFINITY;
        CHECK_OK(ctx, dlrn_archive_write(ctx, path_of("shapes", "ae.pt"), t, 4, NULL));
        snprintf(words, sizeof words,
                 "ae.pt: tensor '%s': element 2: expected a finite number, found %s", names[i],
                 i % 2 ? "nan" : "-inf");
        refuse_dictionary(path_of("", "shapes"), DLRN_ERR_VALUE, words);
        t[i].name = "other";
        CHECK_OK(ctx, dlrn_archive_write(ctx, path_of("shapes", "ae.pt"), t, 4, NULL));
        snprintf(words, sizeof words, "ae.pt: tensor '%s': expected shape [", names[i]);
        refuse_dictionary(path_of("", "shapes"), DLRN_ERR_SHAPE, words);
        CHECK_STR(dlrn_error(ctx), "found no such tensor");
    }
}

/* Weights of half the width, or of twice, are read as what they are; of these, too, each is looked
   at. */
TEST(weights_of_other_types) {
    static const dlrn_dtype types[] = {DLRN_F16, DLRN_BF16, DLRN_F64};
    static const char *const names[4] = {"bias", "encoder.weight", "encoder.bias",
                                         "decoder.weight"};
    const float *const from[4] = {bias, encoder, encoder_bias, decoder};
    dlrn_tensor_out t[4];
    make_folder("types");
    char *path = path_of("types", "ae.safetensors"), words[128];
    for (int type = 0; type < 3; type++) {
        uint16_t half[4][D * F];
        double wide[4][D * F];
        dlrn_dictionary *dict = NULL;
        reference_tensors(t);
        for (int i = 0; i < 4; i++) {
            int64_t n = i == 0 ? D : i == 2 ? F : D * F;
            for (int64_t k = 0; k < n; k++) {
                half[i][k] = type ? dlrni_f32_to_bf16(from[i][k]) : dlrni_f32_to_f16(from[i][k]);
                wide[i][k] = (double)from[i][k];
            }
            t[i].dtype = types[type];
            t[i].data = type == 2 ? (const void *)wide[i] : half[i];
        }
        CHECK_OK(ctx, dlrn_archive_write(ctx, path, t, 4, NULL));
        CHECK_OK(ctx, dlrn_load(ctx, path, NULL, &dict));
        for (int j = 0; j < F; j++)
            for (int c = 0; c < D; c++) {
                float atom = decoder[c * F + j], row = encoder[j * D + c];
                if (type == 0)
                    atom = dlrni_f16_to_f32(half[3][c * F + j]),
                    row = dlrni_f16_to_f32(half[1][j * D + c]);
                if (type == 1)
                    atom = dlrni_bf16_to_f32(half[3][c * F + j]),
                    row = dlrni_bf16_to_f32(half[1][j * D + c]);
                CHECK(dict->param[DLRN_DECODER][j * D + c] == atom &&
                      dict->param[DLRN_ENCODER][j * D + c] == row);
            }
        dlrn_dictionary_destroy(dict);
        for (int i = 0; i < 4; i++) {
            uint16_t was = half[i][2];
            half[i][2] = type ? 0x7f80 : 0x7c00;
            wide[i][2] = INFINITY;
            CHECK_OK(ctx, dlrn_archive_write(ctx, path, t, 4, NULL));
            snprintf(words, sizeof words,
                     "tensor '%s': element 2: expected a finite number, found inf", names[i]);
            refuse_dictionary(path, DLRN_ERR_VALUE, words);
            half[i][2] = was;
            wide[i][2] = (double)from[i][2];
        }
    }
}

/* ae.pt of a backup keeps its dictionary under "ae". A tensor that the layout does not know, beside
   its own, with a number for each feature or input: it may be another class. */
TEST(other_dictionaries) {
    static const char *const signs[] = {"r_mag", "threshold", "decoder.norm", "scaling"};
    static const char *const backup[4] = {"ae.bias", "ae.encoder.weight", "ae.encoder.bias",
                                          "ae.decoder.weight"};
    dlrn_tensor_out t[5];
    make_folder("other");
    for (size_t i = 0; i < sizeof signs / sizeof *signs; i++) {
        char words[192];
        dlrn_dictionary *dict = NULL;
        const dlrn_load_options named = {"AutoEncoder", 0, 0, 0, DLRN_OFF};
        reference_tensors(t);
        t[4] = t[0];
        t[4].name = signs[i];
        CHECK_OK(ctx, dlrn_archive_write(ctx, path_of("other", "ae.pt"), t, 5, NULL));
        snprintf(words, sizeof words,
                 "other/ae.pt: tensor '%s': expected the tensors of dictionary_learning "
                 "(AutoEncoder), which has none of that name",
                 signs[i]);
        refuse_dictionary(path_of("", "other"), DLRN_ERR_UNSUPPORTED, words);
        /* the caller knows better */
        CHECK_OK(ctx, dlrn_load(ctx, path_of("", "other"), &named, &dict));
        dlrn_dictionary_destroy(dict);
    }
    reference_tensors(t);
    for (int i = 0; i < 4; i++) t[i].name = backup[i];
    t[4] = t[0];
    t[4].name = "optimizer.k";
    CHECK_OK(ctx, dlrn_archive_write(ctx, path_of("other", "ae.pt"), t, 5, NULL));
    check_dictionary(path_of("", "other"));
}

/* The four tensors under one prefix, or two of them. name: storage for the names. */
static void prefixed_tensors(dlrn_tensor_out t[4], const char *prefix, char name[4][512]) {
    reference_tensors(t);
    for (int i = 0; i < 4; i++) {
        snprintf(name[i], sizeof name[i], "%s%s", prefix, t[i].name);
        t[i].name = name[i];
    }
}

/* Wrapped modules, nested dicts, lists: the only dictionary in a file loads. */
TEST(wrapped_dictionaries) {
    static const char *const prefixes[] = {
        "module.", "_orig_mod.", "state_dict.", "model_state_dict.",           "model.", "ae.",
        "0.",      "sae.",       "3.1.",        "state_dict.module._orig_mod."};
    static const char *const files[] = {"ae.pt", "ae.safetensors", "ae.npz"};
    dlrn_tensor_out t[5];
    char name[4][512];
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
        for (int f = 0; f < 3; f++) {
            make_folder("wrapped");
            prefixed_tensors(t, prefixes[i], name);
            t[4] = t[0];
            t[4].name = "optimizer.k"; /* the sign of another class, elsewhere */
            CHECK_OK(ctx, dlrn_archive_write(ctx, path_of("wrapped", files[f]), t, 5, NULL));
            check_dictionary(path_of("", "wrapped"));
            write_text(path_of("wrapped", "config.json"), CONFIG("AutoEncoder"));
            check_dictionary(path_of("", "wrapped"));
        }
}

/* Errors name the tensors in full; the signs of other classes count under the same prefix. */
TEST(wrapped_dictionaries_refused) {
    dlrn_tensor_out t[5];
    char name[4][512], *path = path_of("wrapped", "ae.pt"), text[400];
    make_folder("wrapped");
    prefixed_tensors(t, "model.module.", name);
    t[4] = t[0];
    t[4].name = "model.module.r_mag";
    CHECK_OK(ctx, dlrn_archive_write(ctx, path, t, 5, NULL));
    refuse_dictionary(path, DLRN_ERR_UNSUPPORTED, "tensor 'model.module.r_mag': expected the ");
    encoder[2] = NAN;
    CHECK_OK(ctx, dlrn_archive_write(ctx, path, t, 4, NULL));
    refuse_dictionary(path, DLRN_ERR_VALUE, "tensor 'model.module.encoder.weight': element 2: ");
    t[1].shape[0] = 0;
    CHECK_OK(ctx, dlrn_archive_write(ctx, path, t, 4, NULL));
    refuse_dictionary(path, DLRN_ERR_SHAPE,
                      "tensor 'model.module.encoder.weight': expected a shape without 0");
    prefixed_tensors(t, "model.module.", name);
    t[0].name = "model.bias"; /* of the module around it */
    CHECK_OK(ctx, dlrn_archive_write(ctx, path, t, 4, NULL));
    refuse_dictionary(path, DLRN_ERR_SHAPE,
                      "tensor 'model.module.bias': expected shape [3], found no such tensor");
    /* longer than any prefix that is kept: none is found, and nothing is cut */
    memset(text, 'x', sizeof text - 2);
    strcpy(text + sizeof text - 2, ".");
    for (int cut = 0; cut < 2; cut++) {
        prefixed_tensors(t, cut ? text + sizeof text - 256 : text, name);
        CHECK_OK(ctx, dlrn_archive_write(ctx, path, t, 4, NULL));
        if (cut)
            check_dictionary(path);
        else
            refuse_dictionary(path, DLRN_ERR_SHAPE, "tensor 'encoder.weight': expected shape");
    }
    /* the prefix ends with a point */
    prefixed_tensors(t, "my_", name);
    CHECK_OK(ctx, dlrn_archive_write(ctx, path, t, 4, NULL));
    refuse_dictionary(path, DLRN_ERR_SHAPE, "tensor 'encoder.weight': expected shape");
}

/* Which of two is meant is not guessed, except that names without a prefix are the layout's own. */
TEST(two_dictionaries_in_a_file) {
    dlrn_tensor_out t[8];
    char first[4][512], second[4][512], *path = path_of("wrapped", "ae.npz");
    make_folder("wrapped");
    prefixed_tensors(t, "state_dict.", first);
    prefixed_tensors(t + 4, "ema.", second);
    CHECK_OK(ctx, dlrn_archive_write(ctx, path, t, 8, NULL));
    refuse_dictionary(path, DLRN_ERR_UNSUPPORTED,
                      "wrapped/ae.npz: expected one dictionary, found two, under 'state_dict.' and "
                      "under 'ema.'");
    /* an encoder without the rest is no dictionary, before the one that is, or after it */
    CHECK_OK(ctx, dlrn_archive_write(ctx, path, t, 7, NULL));
    check_dictionary(path);
    CHECK_OK(ctx, dlrn_archive_write(ctx, path, t + 1, 7, NULL));
    check_dictionary(path);
    static float other[4] = {1, 2, 3, 4};
    prefixed_tensors(t, "", first);
    for (int i = 4; i < 8; i++) t[i].ndim = 1, t[i].shape[0] = 2, t[i].data = other;
    CHECK_OK(ctx, dlrn_archive_write(ctx, path, t, 8, NULL));
    check_dictionary(path);
}

/* A run with one trainer is its dictionary; of several, the caller must name one. */
TEST(runs_with_trainers) {
    char folder[64], file[512], config[512];
    make_folder("sweep");
    for (int i = 0; i < 12; i++) {
        snprintf(folder, sizeof folder, "sweep/trainer_%d", i);
        make_folder(folder);
    }
    dictionary_folder("sweep/trainer_3", "ae.pt", CONFIG("AutoEncoder"));
    check_dictionary(path_of("", "sweep"));
    CHECK_OK(ctx, dlrn_find_dictionary(ctx, path_of("", "sweep"), file, config, sizeof file));
    CHECK_STR(file, "sweep/trainer_3/ae.pt");
    CHECK_STR(config, "sweep/trainer_3/config.json");
    dictionary_folder("sweep/trainer_11", "ae.pt", NULL);
    refuse_dictionary(path_of("", "sweep"), DLRN_ERR_UNSUPPORTED,
                      "load/sweep: expected one dictionary, found 2: trainer_3, trainer_11; name "
                      "one of these folders");
    for (int i = 0; i < 12; i++) {
        snprintf(folder, sizeof folder, "sweep/trainer_%d", i);
        dictionary_folder(folder, "ae.pt", NULL);
    }
    refuse_dictionary(path_of("", "sweep"), DLRN_ERR_UNSUPPORTED,
                      "found 12: trainer_0, trainer_1, trainer_2, trainer_3, ...; name one");
    CHECK_STATUS(dlrn_find_dictionary(ctx, path_of("", "sweep"), file, config, sizeof file),
                 DLRN_ERR_UNSUPPORTED);
    CHECK(!*file);
    dictionary_folder("sweep", "ae.pt", NULL); /* the folder's own file comes first */
    check_dictionary(path_of("", "sweep"));
}

/* Folders of other libraries are named by their files, which dlrn_find_dictionary gives. */
TEST(folders_of_other_libraries) {
    static const char *const rows[][2] = {
        {"sae_weights.safetensors", "cfg.json"},
        {"sae_weights.safetensors", "config.json"},
        {"sae.safetensors", "cfg.json"},
        {"params.safetensors", "config.json"},
        {"params.safetensors", NULL},
        {"cc_weights.pt", "cfg.json"},
        {"layer_0.safetensors", NULL},
        {"layer17.sae.pt", NULL},
    };
    char file[512], config[512];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        make_folder("foreign");
        dictionary_folder("foreign", rows[i][0], NULL);
        if (rows[i][1]) write_text(path_of("foreign", rows[i][1]), "{}");
        CHECK_OK(ctx, dlrn_find_dictionary(ctx, path_of("", "foreign"), file, config, sizeof file));
        CHECK_STR(file, rows[i][0]);
        CHECK_STR(config, rows[i][1] ? rows[i][1] : "");
        /* the weights are dictionary_learning's, whatever the file is called */
        check_dictionary(path_of("", "foreign"));
    }
    dlrn_tensor_out t[4];
    make_folder("foreign");
    reference_tensors(t);
    CHECK_OK(ctx, dlrn_archive_write(ctx, path_of("foreign", "layer_2.safetensors"), t, 4, NULL));
    CHECK_OK(ctx, dlrn_archive_write(ctx, path_of("foreign", "layer_3.safetensors"), t, 4, NULL));
    refuse_dictionary(path_of("", "foreign"), DLRN_ERR_UNSUPPORTED,
                      "foreign: expected one dictionary, found 2: layer_2.safetensors, "
                      "layer_3.safetensors; name one of these files");
    CHECK_OK(ctx, dlrn_archive_write(ctx, path_of("foreign", "ae.npz"), t, 4, NULL));
    check_dictionary(path_of("", "foreign")); /* ours comes first */
}

/* ---- Hostile configs and numbers ---- */

/* What a case adds to the encoder, the decoder and the biases of its names. */
enum { WITH_THRESHOLD = 1, WITH_LOG_THRESHOLD = 2, WITH_NAN = 4, WITH_GROUPS = 8, WITH_MEAN = 16 };
static int64_t groups[3] = {2, 2, 1};

/* A folder of the library whose weights have this name: SAELens' names, or those of sparsify; with
   d_out other than d_in where there is a mean. */
static char *library_folder(const char *weights, const char *config, const char *text, int with) {
    static const float k = 2, last = 0.5f;
    static float threshold[F], logs[F], mean[D + 1], wide[F * (D + 1)];
    const int linear = !strcmp(weights, "sae.safetensors") || strchr(weights, '/') != NULL;
    const int64_t width = with & WITH_MEAN ? D + 1 : D;
    dlrn_tensor_out t[10] = {{"W_enc", DLRN_F32, 2, {D, F}, encoder},
                             {"W_dec", DLRN_F32, 2, {F, width}, wide},
                             {"b_enc", DLRN_F32, 1, {F}, encoder_bias},
                             {"b_dec", DLRN_F32, 1, {width}, wide}};
    const dlrn_tensor_out more[] = {{"threshold", DLRN_F32, 1, {F}, threshold},
                                    {"log_threshold", DLRN_F32, 1, {F}, logs},
                                    {"k", DLRN_F32, 0, {0}, &k},
                                    {"threshold", DLRN_F32, 0, {0}, &last},
                                    {"group_sizes", DLRN_I64, 1, {3}, groups},
                                    {"input_mean", DLRN_F32, 1, {D}, mean}};
    int64_t count = 4;
    dlrn_tensor_out like[4];
    reference_tensors(like);
    if (linear) {
        t[0] = like[1], t[2] = like[2]; /* encoder.weight, encoder.bias */
        if (strchr(weights, '/')) {
            t[1] = like[3], t[3] = like[0];
            t[3].name = "decoder.bias";
        }
    }
    for (int i = 0; i < F; i++) threshold[i] = with & WITH_NAN && i == 2 ? NAN : 0.5f, logs[i] = 0;
    if (with & WITH_THRESHOLD) t[count++] = more[0];
    if (with & WITH_LOG_THRESHOLD) t[count++] = more[1];
    for (int i = 2; with & WITH_GROUPS && i < 5; i++) t[count++] = more[i];
    if (with & WITH_MEAN) t[count++] = more[5];
    make_folder("hostile");
    mkdir(path_of("hostile", "checkpoints"), 0777);
    CHECK_OK(ctx, dlrn_archive_write(ctx, path_of("hostile", weights), t, count, NULL));
    if (text) write_text(path_of("hostile", config), text);
    return path_of("", "hostile");
}

#define SAELENS "sae_weights.safetensors", "cfg.json"
#define SPARSIFY "sae.safetensors", "cfg.json"
#define LLAMA "checkpoints/final.safetensors", "hyperparams.json"
#define NORMS "\"dataset_average_activation_norm\": "

/* Numbers of a config that cannot be: each has its line. */
TEST(hostile_configs) {
    static const struct {
        const char *weights, *config, *text;
        int with;
        dlrn_status status;
        const char *words;
    } bad[] = {
        {SAELENS, "{\"d_sae\": 5, \"architecture\": \"topk\", \"k\": 6}", 0, DLRN_ERR_VALUE,
         "cfg.json: k: expected a number from 1 to 5, found 6"},
        {SAELENS, "{\"d_sae\": 5, \"architecture\": \"topk\", \"k\": -1}", 0, DLRN_ERR_VALUE,
         "cfg.json: k: expected a number from 1 to 5, found -1"},
        {SAELENS, "{\"d_sae\": 5, \"architecture\": \"topk\", \"k\": 1.5}", 0, DLRN_ERR_VALUE,
         "cfg.json: k: expected a number from 1 to 5, found 1.5"},
        {SAELENS, "{\"d_sae\": 5, \"architecture\": \"topk\", \"k\": 1e300}", 0, DLRN_ERR_VALUE,
         "cfg.json: k: expected a number from 1 to 5, found 1e+300"},
        {SAELENS, "{\"d_sae\": 5, \"architecture\": \"topk\", \"k\": NaN}", 0, DLRN_ERR_VALUE,
         "cfg.json: k: expected a number from 1 to 5, found"},
        {SAELENS, "{\"d_sae\": 5, \"architecture\": \"topk\", \"k\": \"3\"}", 0, DLRN_ERR_FORMAT,
         "cfg.json: k: expected a number, found \"3\""},
        {SAELENS, "{\"d_sae\": 5, \"architecture\": \"topk\", \"k\": null}", 0, DLRN_ERR_VALUE,
         "k: expected the number of features that a row keeps, found none"},
        {SAELENS, "{\"d_sae\": 1e300, \"architecture\": \"standard\"}", 0, DLRN_ERR_SHAPE,
         "cfg.json: d_sae: expected 5 as in the tensors, found 1e+300"},
        {SAELENS, "{\"d_sae\": 5, \"architecture\": \"jumprelu\"}", WITH_THRESHOLD | WITH_NAN,
         DLRN_ERR_VALUE, "tensor 'threshold': element 2: expected a finite number, found"},
        {SAELENS, "{\"d_sae\": 5, \"architecture\": \"jumprelu\"}",
         WITH_THRESHOLD | WITH_LOG_THRESHOLD, DLRN_ERR_SHAPE,
         "tensors 'threshold' and 'log_threshold': expected one of the two, found both"},
        {SAELENS, "{\"d_sae\": 5, \"architecture\": {\"a\": []}}", 0, DLRN_ERR_FORMAT,
         "cfg.json: architecture: expected a text, found an object"},
        {SPARSIFY, "{\"expansion_factor\": 2, \"activation\": \"groupmax\", \"k\": 2}", 0,
         DLRN_ERR_VALUE, "k: expected a divisor of 5, the number of features, found 2"},
        {SPARSIFY, "{\"expansion_factor\": 2, \"k\": 2, \"skip_connection\": true}", 0,
         DLRN_ERR_UNSUPPORTED, "cfg.json: skip_connection: expected false, as there is no tensor"},
        {SPARSIFY, "{\"sae_type\": \"TOPK\", \"k\": 2}", WITH_MEAN, DLRN_ERR_SHAPE,
         "expected the same width of x and x_hat in a file of latentsae (TOPK), found 3 and 4"},
        {LLAMA, "{\"jump_relu_threshold\": -0.5, " NORMS "{\"in\": 1, \"out\": 1}}", 0,
         DLRN_ERR_VALUE, "hyperparams.json: jump_relu_threshold: expected a number above 0"},
        {LLAMA, "{\"jump_relu_threshold\": NaN, " NORMS "{\"in\": 1, \"out\": 1}}", 0,
         DLRN_ERR_VALUE, "hyperparams.json: jump_relu_threshold: expected a number above 0"},
        {LLAMA, "{\"jump_relu_threshold\": 1, " NORMS "{\"in\": 0, \"out\": 1}}", 0, DLRN_ERR_VALUE,
         "dataset_average_activation_norm.in: expected a number above 0, found 0"},
        {LLAMA, "{\"jump_relu_threshold\": 1, " NORMS "{\"in\": [1], \"out\": 1}}", 0,
         DLRN_ERR_FORMAT, "dataset_average_activation_norm.in: expected a number, found a list"},
        {LLAMA, "{\"jump_relu_threshold\": 1, " NORMS "{\"in\": 1e-320, \"out\": 1}}", 0,
         DLRN_ERR_VALUE, "expected finite scales and thresholds, found"},
        {SAELENS, "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", 0, DLRN_ERR_FORMAT,
         "cfg.json: JSON, line 1, byte 0: expected a value"}, /* YAML, and a bomb of it */
        {SAELENS, "{\"d_sae\": 5, \"d_sae\": 6}", 0, DLRN_ERR_FORMAT, "expected once"},
        {SAELENS, "{\"d_sae\": 1e99999}", 0, DLRN_ERR_SHAPE,
         "cfg.json: d_sae: expected 5 as in the tensors, found inf"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        refuse_dictionary(library_folder(bad[i].weights, bad[i].config, bad[i].text, bad[i].with),
                          bad[i].status, bad[i].words);
        CHECK_STR(dlrn_error(ctx), "load/hostile/");
        CHECK(!strchr(dlrn_error(ctx), '\n'));
    }
}

/* A folder of SAELens' temporal class: 4 inputs, 6 features, 4 rows of queries. */
static char *temporal_folder(const char *text, int with_encoder, int layers) {
    static float w[36], e[24];
    dlrn_tensor_out t[12] = {{"b_dec", DLRN_F32, 1, {4}, w},
                             {"W_dec", DLRN_F32, 2, {6, 4}, w},
                             {"attn_layers.0.q_target.weight", DLRN_F32, 2, {4, 6}, w},
                             {"attn_layers.0.q_target.bias", DLRN_F32, 1, {4}, w},
                             {"attn_layers.0.k_ctx.weight", DLRN_F32, 2, {4, 6}, w},
                             {"attn_layers.0.k_ctx.bias", DLRN_F32, 1, {4}, w},
                             {"attn_layers.0.v_ctx.weight", DLRN_F32, 2, {6, 6}, w},
                             {"attn_layers.0.v_ctx.bias", DLRN_F32, 1, {6}, w},
                             {"attn_layers.0.c_proj.weight", DLRN_F32, 2, {6, 6}, w},
                             {"attn_layers.0.c_proj.bias", DLRN_F32, 1, {6}, w}};
    int64_t count = 10;
    for (int i = 0; i < 36; i++) w[i] = (float)(i % 5) - 1;
    for (int i = 0; i < 24; i++) e[i] = (float)i;
    const dlrn_tensor_out own = {"W_enc", DLRN_F32, 2, {4, 6}, e};
    const dlrn_tensor_out more = {"attn_layers.1.c_proj.bias", DLRN_F32, 1, {6}, w};
    if (with_encoder) t[count++] = own;
    if (layers > 1) t[count++] = more;
    make_folder("temporal");
    CHECK_OK(ctx, dlrn_archive_write(ctx, path_of("temporal", "sae_weights.safetensors"), t, count,
                                     NULL));
    write_text(path_of("temporal", "cfg.json"), text);
    return path_of("", "temporal");
}

#define TEMPORAL "{\"architecture\": \"temporal\", \"d_sae\": 6, \"n_heads\": 2, "

TEST(temporal_configs) {
    static const struct {
        const char *text;
        int with_encoder, layers;
        const char *words; /* NULL: it loads */
    } row[] = {
        {TEMPORAL "\"kval_topk\": 2}", 0, 1, NULL},
        {TEMPORAL "\"kval_topk\": 2, \"tied_weights\": false}", 1, 1, NULL},
        {TEMPORAL "\"sae_diff_type\": \"relu\", \"apply_b_dec_to_input\": false}", 0, 1, NULL},
        {TEMPORAL "\"n_heads\": 2}", 0, 1, "expected once"},
        {TEMPORAL "\"k\": 2}", 0, 1, "k: expected the number of features that a row keeps"},
        {TEMPORAL "\"kval_topk\": 7}", 0, 1, "kval_topk: expected a number from 1 to 6"},
        {TEMPORAL "\"tied_weights\": true}", 1, 1, "false, as there is a tensor W_enc, found true"},
        {TEMPORAL "\"tied_weights\": false}", 0, 1, "true, as there is no tensor W_enc"},
        {TEMPORAL "\"n_attn_layers\": 2}", 0, 1, "cfg.json: n_attn_layers: expected 1, found 2"},
        {TEMPORAL "\"n_attn_layers\": 2}", 0, 2, "tensor 'attn_layers.1.c_proj.bias'"},
        {TEMPORAL "\"sae_diff_type\": \"jump\"}", 0, 1, "expected topk or relu, found jump"},
        {TEMPORAL "\"normalize_activations\": \"layer_norm\"}", 0, 1,
         "expected none or constant_scalar_rescale, found layer_norm"},
        {TEMPORAL "\"normalize_activations\": \"constant_scalar_rescale\"}", 0, 1,
         "activation_normalization_factor: expected a number above 0"},
        {"{\"architecture\": \"temporal\", \"n_heads\": 4}", 0, 1,
         "n_heads: expected a divisor of d_sae and of the rows of q_target, found 4"},
        {"{\"architecture\": \"temporal\", \"n_heads\": 3}", 0, 1, "q_target, found 3"},
        {"{\"architecture\": \"temporal\", \"n_heads\": 0}", 0, 1, "q_target, found 0"},
        {"{\"architecture\": \"temporal\"}", 0, 1, "q_target, found 8"},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        const char *path = temporal_folder(row[i].text, row[i].with_encoder, row[i].layers);
        dlrn_dictionary *dict = NULL;
        if (row[i].words) {
            CHECK_MSG(dlrn_load(ctx, path, NULL, &dict) != DLRN_OK, "%s", row[i].text);
            CHECK_STR(dlrn_error(ctx), row[i].words);
            continue;
        }
        CHECK_OK(ctx, dlrn_load(ctx, path, NULL, &dict));
        CHECK(dict->heads == 2 && dict->head_width == 2);
        CHECK(dict->formula.select == (i == 2 ? DLRN_SELECT_ALL : DLRN_SELECT_TOP_K));
        CHECK(dict->formula.center == (i == 2 ? DLRN_CENTER_NONE : DLRN_CENTER_OUTPUT_BIAS));
        /* W_dec [0][3], or W_enc [3][0], by 16; a tied bias may be unused */
        CHECK(dict->param[DLRN_ENCODER][3] == (i == 1 ? 18.0f : 2.0f) / 16);
        CHECK(dict->param[DLRN_OUTPUT_BIAS][0] == (i == 2 ? 0.0f : -1.0f));
        dlrn_dictionary_destroy(dict);
    }
}

/* Sizes of nested groups that are not those of the features. */
TEST(hostile_groups) {
    static const int64_t bad[][3] = {
        {2, 2, 2},  {1, 1, 1},         {0, 2, 3},         {-1, 3, 3},
        {5, 1, -1}, {INT64_MAX, 5, 1}, {INT64_MIN, 5, 5}, {INT64_MAX, INT64_MAX, 7}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        memcpy(groups, bad[i], sizeof groups);
        refuse_dictionary(library_folder("ae.pt", "config.json", NULL, WITH_GROUPS), DLRN_ERR_VALUE,
                          "tensor 'group_sizes': expected sizes from 1 whose sum is 5");
    }
    groups[0] = 2, groups[1] = 2, groups[2] = 1;
    dlrn_dictionary *dict = NULL;
    CHECK_OK(ctx, dlrn_load(ctx, library_folder("ae.pt", "config.json", NULL, WITH_GROUPS), NULL,
                            &dict));
    CHECK(dict->n_groups == 3 && dict->group_sizes[2] == 1 && dict->formula.k == 2);
    dlrn_dictionary_destroy(dict);
}

/* Configs that would cost more than they are long. */
TEST(config_bombs) {
    enum { LONG = 1 << 16 };
    static const char *const parts[] = {"[", "{\"a\":", "[[],", "\"a\":1,"};
    static char text[LONG + 16];
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        size_t n = 0, len = strlen(parts[i]);
        text[n++] = '{';
        text[n] = 0;
        if (i < 3) n += (size_t)sprintf(text + n, "\"a\":");
        for (; n + len < LONG; n += len) memcpy(text + n, parts[i], len + 1);
        refuse_dictionary(library_folder(SAELENS, text, 0), DLRN_ERR_FORMAT,
                          "cfg.json: JSON, line 1");
    }
    size_t n = (size_t)sprintf(text, "{\"d_sae\": 1"); /* a number of 60,000 digits */
    memset(text + n, '0', LONG - n);
    strcpy(text + LONG, "}");
    refuse_dictionary(library_folder(SAELENS, text, 0), DLRN_ERR_SHAPE,
                      "cfg.json: d_sae: expected 5 as in the tensors, found inf");
}

/* Llama Scope: the gate compares p ||atom|| with theta s, s = sqrt(d) / mean norm. SAELens leaves
   out the norm, and rounds to bf16. */
TEST(a_library_that_reads_wrongly) {
    const double s = sqrt((double)D) / 0.75;
    static const char *const hyper =
        "{\"act_fn\": \"jumprelu\", \"jump_relu_threshold\": 0.3, "
        "\"dataset_average_activation_norm\": {\"in\": 0.75, \"out\": 1.5}}";
    dlrn_tensor_out t[4];
    dlrn_dictionary *dict = NULL;
    dlrn_load_options how = {NULL, 0, 0, 0, DLRN_OFF};
    make_folder("llama");
    make_folder("llama/checkpoints");
    reference_tensors(t);
    t[0].name = "decoder.bias";
    CHECK_OK(ctx, dlrn_archive_write(ctx, path_of("llama/checkpoints", "final.safetensors"), t, 4,
                                     NULL));
    write_text(path_of("llama", "hyperparams.json"), hyper);
    for (int compat = 0; compat < 2; compat++) {
        how.compat = compat ? DLRN_ON : DLRN_OFF;
        CHECK_OK(ctx, dlrn_load(ctx, path_of("", "llama"), &how, &dict));
        CHECK(fabs(dict->formula.scale_in / s - 1) < 1e-12);
        CHECK(fabs(dict->formula.scale_out * sqrt((double)D) / 1.5 - 1) < 1e-12);
        for (int j = 0; j < F; j++) {
            double norm = 0, theta = 0.3 * s;
            for (int c = 0; c < D; c++)
                norm += (double)decoder[c * F + j] * (double)decoder[c * F + j];
            if (compat) theta = (double)dlrni_bf16_to_f32(dlrni_f32_to_bf16((float)theta));
            theta /= compat ? 1 : sqrt(norm);
            CHECK(fabs((double)dict->param[DLRN_THRESHOLD][j] / theta - 1) < 1e-6);
        }
        dlrn_dictionary_destroy(dict);
    }
}

/* With d = F only the convention tells decoder.weight's dimensions apart: torch's, atoms in
   columns. */
TEST(square_dictionary) {
    static const float square[4] = {1, 2, 3, 4};
    static const dlrn_tensor_out t[4] = {{"decoder.weight", DLRN_F32, 2, {2, 2}, square},
                                         {"encoder.weight", DLRN_F32, 2, {2, 2}, square},
                                         {"encoder.bias", DLRN_F32, 1, {2}, square},
                                         {"bias", DLRN_F32, 1, {2}, square}};
    dlrn_dictionary *dict;
    make_folder("square");
    CHECK_OK(ctx, dlrn_archive_write(ctx, path_of("square", "ae.npz"), t, 4, NULL));
    CHECK_OK(ctx, dlrn_load(ctx, path_of("", "square"), NULL, &dict));
    CHECK(dict->param[DLRN_ENCODER][1] == 2 && dict->param[DLRN_DECODER][1] == 3);
    dlrn_dictionary_destroy(dict);
}

TEST(saved_dictionaries) {
    static const char *const names[3] = {"x.pt", "x.safetensors", "x.npz"};
    dlrn_dictionary *dict;
    make_folder("saved");
    CHECK_OK(ctx, dlrn_load(ctx, dictionary_folder("plain", "ae.pt", NULL), NULL, &dict));
    for (int i = 0; i < 3; i++) {
        CHECK_OK(ctx, dlrn_save(dict, path_of("saved", names[i])));
        check_dictionary(path_of("saved", names[i]));
    }
    CHECK_STATUS(dlrn_save(dict, path_of("saved", "x.bin")), DLRN_ERR_ARGUMENT);
    dlrn_dictionary_destroy(dict);
}

/* ---- Sharded models ---- */

/* Fewer features than dimensions: nothing is turned round. */
TEST(narrow_dictionary) {
    static const float numbers[6] = {1, 2, 3, 4, 5, 6};
    static const dlrn_tensor_out t[4] = {{"decoder.weight", DLRN_F32, 2, {3, 2}, numbers},
                                         {"encoder.weight", DLRN_F32, 2, {2, 3}, numbers},
                                         {"encoder.bias", DLRN_F32, 1, {2}, numbers},
                                         {"bias", DLRN_F32, 1, {3}, numbers}};
    dlrn_dictionary *dict;
    make_folder("narrow");
    CHECK_OK(ctx, dlrn_archive_write(ctx, path_of("narrow", "ae.npz"), t, 4, NULL));
    CHECK_OK(ctx, dlrn_load(ctx, path_of("", "narrow"), NULL, &dict));
    CHECK(dict->d_in == 3 && dict->features == 2);
    CHECK(dict->param[DLRN_ENCODER][3] == 4 && dict->param[DLRN_DECODER][1] == 3 &&
          dict->param[DLRN_DECODER][3] == 2);
    dlrn_dictionary_destroy(dict);
}

/* What dlrn_save refuses to write: weights that are not finite. */
static void save_anyhow(const dlrn_dictionary *ae, const char *path) {
    static float decoder[130 * 1000];
    const int64_t d = ae->d_in, n = ae->features;
    const dlrn_tensor_out tensors[4] = {
        {"bias", DLRN_F32, 1, {d}, ae->param[DLRN_OUTPUT_BIAS]},
        {"encoder.weight", DLRN_F32, 2, {n, d}, ae->param[DLRN_ENCODER]},
        {"encoder.bias", DLRN_F32, 1, {n}, ae->param[DLRN_ENCODER_BIAS]},
        {"decoder.weight", DLRN_F32, 2, {d, n}, decoder}};
    for (int64_t i = 0; i < n * d; i++) decoder[i % d * n + i / d] = ae->param[DLRN_DECODER][i];
    CHECK_OK(ctx, dlrn_archive_write(ctx, path, tensors, 4, NULL));
}

/* Sizes on both sides of a block and of a task: each number where it belongs, by any number of
   threads; and one that is not finite is named by its place in the file. */
TEST(dictionaries_of_odd_sizes) {
    static const int64_t sizes[][2] = {{1, 1},   {16, 64},  {19, 70},
                                       {15, 63}, {33, 129}, {130, 1000}};
    dlrn_context_config cfg = {0};
    dlrn_context *two = NULL;
    cfg.threads = 2;
    CHECK_STATUS(dlrn_context_create(&cfg, &two), DLRN_OK);
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        int64_t d = sizes[k][0], n = sizes[k][1], at = 0;
        char *path = tmp_path("odd.pt"), *bad = tmp_path("bad.pt"), words[80];
        dlrn_dictionary *ae, *back;
        CHECK_OK(two, new_autoencoder(two, d, n, 7, &ae));
        for (int64_t i = 0; i < n * d; i++)
            ae->param[DLRN_ENCODER][i] = (float)i, ae->param[DLRN_DECODER][i] = -(float)i;
        CHECK_OK(two, dlrn_save(ae, path));
        CHECK_OK(two, dlrn_load(two, path, NULL, &back));
        CHECK(!memcmp(ae->param[DLRN_ENCODER], back->param[DLRN_ENCODER], (size_t)(n * d) * 4));
        CHECK(!memcmp(ae->param[DLRN_DECODER], back->param[DLRN_DECODER], (size_t)(n * d) * 4));
        dlrn_dictionary_destroy(back);
        for (int corner = 0; corner < 8; corner++) { /* four of each matrix */
            float *w = corner & 4 ? ae->param[DLRN_ENCODER] : ae->param[DLRN_DECODER], keep;
            int64_t f = corner & 1 ? n - 1 : 0, c = corner & 2 ? d - 1 : 0;
            at = f * d + c;
            keep = w[at], w[at] = corner & 1 ? -INFINITY : NAN;
            snprintf(words, sizeof words, "'%s.weight': element %d: expected",
                     corner & 4 ? "encoder" : "decoder", (int)(corner & 4 ? at : c * n + f));
            CHECK_STATUS(dlrn_save(ae, path), DLRN_ERR_VALUE);
            CHECK_STR(dlrn_error(two), words);
            CHECK_OK(two, dlrn_load(two, path, NULL, &back)); /* the file is the one before */
            dlrn_dictionary_destroy(back);
            save_anyhow(ae, bad);
            CHECK_STATUS(dlrn_load(two, bad, NULL, &back), DLRN_ERR_VALUE);
            CHECK_STR(dlrn_error(two), words);
            w[at] = keep;
        }
        dlrn_dictionary_destroy(ae);
        remove(path);
        remove(bad);
    }
    dlrn_context_destroy(two);
}

static dlrn_status open_index(const char *text, dlrn_archive **out) {
    write_text(path_of("shards", "model.safetensors.index.json"), text);
    return dlrn_archive_open(ctx, path_of("shards", "model.safetensors.index.json"), out);
}

/* Quantised weights, and the bits of bf16 numbers: without a scale or a type they mean nothing. */
TEST(integers_are_no_weights) {
    static const dlrn_dtype types[] = {DLRN_I8, DLRN_U8, DLRN_I16, DLRN_U16, DLRN_I32, DLRN_I64};
    static const char *const forms[] = {"pt", "safetensors", "npz"};
    static const float zeros[12] = {0}; /* as large as six I64 */
    char path[64], words[64];
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        for (int f = 0; f < 3; f++) {
            dlrn_dictionary *dict = NULL;
            const dlrn_tensor_out t[4] = {{"encoder.weight", types[i], 2, {3, 2}, zeros},
                                          {"encoder.bias", DLRN_F32, 1, {3}, zeros},
                                          {"decoder.weight", DLRN_F32, 2, {2, 3}, zeros},
                                          {"bias", DLRN_F32, 1, {2}, zeros}};
            if (f == 0 && types[i] == DLRN_U16) continue; /* torch has no such storage */
            snprintf(path, sizeof path, "build/tmp/load_whole.%s", forms[f]);
            snprintf(words, sizeof words, "expected F16, BF16, F32 or F64, found %s",
                     dlrni_type_name(types[i]));
            CHECK_OK(ctx, dlrn_archive_write(ctx, path, t, 4, NULL));
            CHECK_STATUS(dlrn_load(ctx, path, NULL, &dict), DLRN_ERR_UNSUPPORTED);
            CHECK_STR(dlrn_error(ctx), "tensor 'encoder.weight'");
            CHECK_STR(dlrn_error(ctx), words);
        }
}

TEST(shards) {
    dlrn_archive *a = NULL;
    make_folder("shards");
    CHECK_OK(ctx, dlrn_archive_write(ctx, path_of("shards", "1.safetensors"), four, 2, NULL));
    CHECK_OK(ctx, dlrn_archive_write(ctx, path_of("shards", "2.pt"), four + 2, 2, NULL));
    CHECK_OK(ctx,
             open_index("{\"metadata\": {\"total_size\": 9}, \"weight_map\": {\"half\": \"2.pt\", "
                        "\"whole\": \"1.safetensors\", \"a.matrix\": \"1.safetensors\"}}",
                        &a));
    CHECK(dlrn_archive_describe(a).count == 3 && dlrn_archive_find(a, "truth") < 0 &&
          dlrn_archive_find(a, "whole") == 1);
    expect_numbers(a, "a.matrix", NULL, 6);
}

TEST(shards_refused) {
    static const struct {
        const char *text;
        dlrn_status status;
        const char *words;
    } bad[] = {
        {"{}", DLRN_ERR_FORMAT, "index.json: expected an object weight_map"},
        {"{\"weight_map\": []}", DLRN_ERR_FORMAT, "index.json: expected an object weight_map"},
        {"{\"weight_map\": {\"w\": 3}}", DLRN_ERR_FORMAT,
         "index.json: weight_map: tensor 'w': expected a file of the same folder"},
        {"{\"weight_map\": {\"w\": \"\"}}", DLRN_ERR_FORMAT,
         "weight_map: tensor 'w': expected a file of the same folder"},
        {"{\"weight_map\": {\"w\": \"../1.safetensors\"}}", DLRN_ERR_FORMAT,
         "tensor 'w': expected a file of the same folder"},
        {"{\"weight_map\": {\"w\": \"/etc/passwd\"}}", DLRN_ERR_FORMAT,
         "tensor 'w': expected a file of the same folder"},
        {"{\"weight_map\": {\"w\": \"model.safetensors.index.json\"}}", DLRN_ERR_FORMAT,
         "tensor 'w': expected a file"},
        {"{\"weight_map\": {\"w\": \"..\"}}", DLRN_ERR_IO,
         "shards/..: expected a file, found a folder"},
        {"{\"weight_map\": {\"w\": \"3.pt\"}}", DLRN_ERR_IO, "shards/3.pt: cannot open it"},
        {"{\"weight_map\": {\"w\": \"2.pt\"}}", DLRN_ERR_FORMAT,
         "shards/2.pt: expected tensor 'w', as "},
        {"{\"weight_map\": {\"half\": \"2.pt\", \"half\": \"2.pt\"}}", DLRN_ERR_FORMAT,
         "key \"half\": expected once"},
    };
    make_folder("shards");
    CHECK_OK(ctx, dlrn_archive_write(ctx, path_of("shards", "2.pt"), four + 2, 2, NULL));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        dlrn_archive *a = NULL;
        CHECK_MSG(open_index(bad[i].text, &a) == bad[i].status, "%s: %s", bad[i].text,
                  dlrn_error(ctx));
        CHECK(a == NULL);
        CHECK_STR(dlrn_error(ctx), bad[i].words);
    }
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    if (dlrn_context_create(NULL, &ctx) != DLRN_OK) return 1;
    RUN(round_trips);
    RUN(writes_are_reproducible);
    RUN(writes_nothing_of_any_size);
    RUN(writes_refuse);
    RUN(old_file_stays);
    RUN(a_rename_that_fails_loses_nothing);
    RUN(metadata_of_a_zip);
    RUN(writers_of_one_file);
#ifndef _WIN32
    RUN(modes_stay);
#endif
    RUN(targets_that_cannot_be_written);
    RUN(bytes_that_come_in_pieces);
    RUN(full_disk);
    RUN(files_that_cannot_be_read);
    RUN(more_members_than_16_bits_count);
#ifndef _WIN32
    RUN(links_are_followed);
#endif
    RUN(names_that_look_like_records);
    RUN(errors_of_long_paths);
    RUN(files_of_the_host);
    RUN(csr_round_trip);
    RUN(csr_out_of_order);
    RUN(csr_refuses);
    RUN(layouts);
    RUN(layouts_refused);
    RUN(configs_refused);
    RUN(identity);
    RUN(weights_refused);
    RUN(weights_of_other_types);
    RUN(other_dictionaries);
    RUN(wrapped_dictionaries);
    RUN(wrapped_dictionaries_refused);
    RUN(two_dictionaries_in_a_file);
    RUN(runs_with_trainers);
    RUN(folders_of_other_libraries);
    RUN(hostile_configs);
    RUN(temporal_configs);
    RUN(hostile_groups);
    RUN(config_bombs);
    RUN(a_library_that_reads_wrongly);
    RUN(square_dictionary);
    RUN(narrow_dictionary);
    RUN(saved_dictionaries);
    RUN(dictionaries_of_odd_sizes);
    RUN(integers_are_no_weights);
    RUN(shards);
    RUN(shards_refused);
    dlrn_context_destroy(ctx);
    return TEST_END();
}
