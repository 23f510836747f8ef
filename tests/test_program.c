/* test_program.c - the program within this process, its main called again and again: each
   allocation fails once, each call that reads, writes, syncs, closes, renames, makes or opens fails
   once, and a power cut comes at each moment. Every time it says so in one line, leaks nothing,
   leaves no file half-written; and what is there to be resumed is resumed with the bits of a run
   that nothing befell. */
#define _POSIX_C_SOURCE 200809L
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "tests/starve.h"

/* ---- What may fail ---- */

static struct {
    int64_t left;        /* calls until one fails; negative: none does */
    int refused;         /* it has                                     */
    const char *call;    /* which one                                  */
    FILE *stream;        /* it has failed, and says so                 */
    double clock, tempo; /* where it stands, what a look at it adds    */
} fault = {-1, 0, "", NULL, 0, 0};

static int fails(const char *call) {
    if (fault.left < 0 || fault.left-- > 0) return 0;
    fault.refused = 1;
    fault.call = call;
    errno = EIO;
    return 1;
}

/* What has reached the disk of the files in a folder and in its checkpoints/: of each what it held
   when it was synced, under the names that it had when the folder was, or at once. */
enum { MOST_FILES = 64 };
static struct {
    const char *folder;    /* NULL: nobody looks                   */
    int64_t left;          /* syncs and renames until the power is cut */
    int eager;             /* names reach the disk at once         */
    int is_cut, has_inner; /* checkpoints/ has reached the disk */
    struct {
        ino_t file;
        char *bytes; /* NULL: never synced */
        size_t size;
    } synced[MOST_FILES];
    struct {
        ino_t file;
        char name[64];
    } name[MOST_FILES];
    int files, names;
} disk;

static const char *const parts[2] = {"", "checkpoints/"};

/* Of a file of the folder, or of a folder in it. */
static ino_t number_of(const char *part, const char *name, int is_folder) {
    char path[128];
    struct stat st;
    snprintf(path, sizeof path, "%s%.60s", part, name);
    if (stat(test_path(disk.folder, path), &st) != 0) return 0;
    return (is_folder ? S_ISDIR(st.st_mode) : S_ISREG(st.st_mode)) ? st.st_ino : 0;
}

static void note_names(const char *part) {
    DIR *dir = opendir(test_path(disk.folder, part));
    int kept = 0;
    for (int i = 0; i < disk.names; i++)
        if (!strchr(disk.name[i].name, '/') != !*part) disk.name[kept++] = disk.name[i];
    disk.names = kept;
    if (!*part) disk.has_inner = number_of("checkpoints", "", 1) != 0;
    for (struct dirent *e; dir && (e = readdir(dir)) != NULL;) {
        ino_t file = number_of(part, e->d_name, 0);
        if (!file || disk.names == MOST_FILES) continue;
        disk.name[disk.names].file = file;
        snprintf(disk.name[disk.names++].name, sizeof disk.name[0].name, "%s%.40s", part,
                 e->d_name);
    }
    if (dir) closedir(dir);
}

/* What was synced of a file is gone: it is written anew, or its number was another file's. */
static void forget_file(const char *path) {
    struct stat st;
    if (!disk.folder || stat(path, &st) != 0) return;
    for (int i = 0; i < disk.files; i++)
        if (disk.synced[i].file == st.st_ino) {
            free(disk.synced[i].bytes);
            disk.synced[i] = disk.synced[--disk.files];
            return;
        }
}

static void note_bytes(ino_t file, const char *part) {
    DIR *dir = opendir(test_path(disk.folder, part));
    for (struct dirent *e; dir && (e = readdir(dir)) != NULL;) {
        char path[300];
        struct stat st;
        if (number_of(part, e->d_name, 0) != file || disk.files == MOST_FILES) continue;
        snprintf(path, sizeof path, "%s/%s%.60s", disk.folder, part, e->d_name);
        forget_file(path);
        FILE *f = fopen(path, "rb");
        if (!f || stat(path, &st) != 0) continue;
        char *bytes = (char *)malloc((size_t)st.st_size + 1);
        disk.synced[disk.files].size = fread(bytes, 1, (size_t)st.st_size, f);
        disk.synced[disk.files].bytes = bytes;
        disk.synced[disk.files++].file = file;
        fclose(f);
    }
    if (dir) closedir(dir);
}

/* Lays down beside the folder what is left of it when the power is cut now. */
static void cut_power(void) {
    char path[300];
    if (!disk.folder) return;
    for (int i = 0; disk.eager && i < 2; i++) note_names(parts[i]);
    if (disk.is_cut || disk.left-- > 0) return;
    disk.is_cut = 1;
    for (int i = 0; i <= disk.has_inner; i++) {
        snprintf(path, sizeof path, "%s.cut/%s", disk.folder, parts[i]);
        mkdir(path, 0777);
    }
    for (int i = 0; i < disk.names; i++) {
        if (!disk.has_inner && strchr(disk.name[i].name, '/')) continue;
        snprintf(path, sizeof path, "%s.cut/%s", disk.folder, disk.name[i].name);
        FILE *f = fopen(path, "wb");
        CHECK(f != NULL);
        for (int k = 0; k < disk.files; k++)
            if (disk.synced[k].file == disk.name[i].file)
                fwrite(disk.synced[k].bytes, 1, disk.synced[k].size, f);
        fclose(f);
    }
}

/* ---- The calls in their place ----

   Those that the implementation makes are external: the Makefile puts them into the object that is
   linked. */

FILE *fault_fopen(const char *path, const char *mode);
size_t fault_fread(void *to, size_t size, size_t n, FILE *f);
size_t fault_fwrite(const void *from, size_t size, size_t n, FILE *f);
int fault_ferror(FILE *f);
int fault_fflush(FILE *f);
int fault_fclose(FILE *f);
int fault_fsync(int fd);
int fault_rename(const char *from, const char *to);
int fault_open(const char *path, int flags, ...);
void *fault_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset);
FILE *fault_fdopen(int fd, const char *mode);
void *fault_malloc(size_t size);
void fault_free(void *p);

void *fault_malloc(size_t size) {
    return starve_alloc(NULL, size);
}

void fault_free(void *p) {
    starve_release(NULL, p);
}

FILE *fault_fopen(const char *path, const char *mode) {
    if (fails("fopen")) return NULL;
    FILE *f = fopen(path, mode);
    if (f && *mode == 'w') forget_file(path);
    return f;
}

size_t fault_fread(void *to, size_t size, size_t n, FILE *f) {
    if (!fails("fread")) return fread(to, size, n, f);
    fault.stream = f;
    return 0;
}

size_t fault_fwrite(const void *from, size_t size, size_t n, FILE *f) {
    if (!fails("fwrite")) return fwrite(from, size, n, f);
    fault.stream = f;
    return fwrite(from, size, n / 2, f); /* a disk that is full takes a part */
}

int fault_ferror(FILE *f) {
    return fault.stream == f || ferror(f);
}

int fault_fflush(FILE *f) {
    return fails("fflush") ? EOF : fflush(f);
}

int fault_fclose(FILE *f) {
    int written = (fcntl(fileno(f), F_GETFL) & O_ACCMODE) == O_WRONLY, end = fclose(f);
    return fails(written ? "fclose" : "fclose of what is read") ? EOF : end;
}

int fault_fsync(int fd) {
    struct stat st;
    int known = fstat(fd, &st) == 0;
    if (fails(known && S_ISDIR(st.st_mode) ? "fsync of a folder" : "fsync")) return -1;
    if (!disk.folder) return 0; /* the disk is not waited for */
    for (int i = 0; known && i < 2; i++) {
        if (!S_ISDIR(st.st_mode))
            note_bytes(st.st_ino, parts[i]);
        else if (st.st_ino == number_of(parts[i], ".", 1))
            note_names(parts[i]);
    }
    cut_power();
    return 0;
}

int fault_rename(const char *from, const char *to) {
    if (fails("rename")) return -1;
    int end = rename(from, to);
    cut_power();
    return end;
}

int fault_open(const char *path, int flags, ...) {
    return fails("open") ? -1 : open(path, flags, 0666);
}

static int fault_mkdir(const char *path, mode_t mode) {
    return fails("mkdir") ? -1 : mkdir(path, mode);
}

void *fault_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    return fails("mmap") ? MAP_FAILED : mmap(at, size, protection, flags, fd, offset);
}

FILE *fault_fdopen(int fd, const char *mode) {
    return fails("fdopen") ? NULL : fdopen(fd, mode);
}

static FILE *fault_memstream(char **text, size_t *size) {
    return fails("open_memstream") ? NULL : open_memstream(text, size);
}

static int fault_clock(clockid_t id, struct timespec *t) {
    (void)id;
    fault.clock += fault.tempo;
    t->tv_sec = (time_t)fault.clock;
    t->tv_nsec = 0;
    return 0;
}

#undef ferror
#define fopen fault_fopen
#define fread fault_fread
#define fwrite fault_fwrite
#define ferror fault_ferror
#define fflush fault_fflush
#define fclose fault_fclose
#define fsync fault_fsync
#define rename fault_rename
#define open fault_open
#define mkdir fault_mkdir
#define mmap fault_mmap
#define fdopen fault_fdopen
#define open_memstream fault_memstream
#define clock_gettime fault_clock
#define main program
#undef DICTLEARN_MALLOC
#undef DICTLEARN_FREE
#define DICTLEARN_MALLOC(size) fault_malloc(size)
#define DICTLEARN_FREE(p) fault_free(p)
#include "program/dictlearn.c"
#undef fopen
#undef fread
#undef fwrite
#undef ferror
#undef fflush
#undef fclose
#undef fsync
#undef rename
#undef open
#undef mkdir
#undef main

/* ---- The program, called ---- */

#define DIR_OF_RUNS "build/tmp/program"
static char said[4096]; /* on standard error */

/* A line of words to the program's main; its status. What it prints goes to a file. */
static int call(const char *line) {
    static char words[2048], *argv[64];
    int argc = 0, keep[2] = {dup(1), dup(2)};
    snprintf(words, sizeof words, "dictlearn %s", line);
    for (char *w = strtok(words, " "); w && argc < 63; w = strtok(NULL, " ")) argv[argc++] = w;
    argv[argc] = NULL;
    fflush(stdout);
    for (int i = 1; i <= 2; i++) {
        int fd = open(i == 1 ? DIR_OF_RUNS "/out" : DIR_OF_RUNS "/err",
                      O_WRONLY | O_CREAT | O_TRUNC, 0666);
        CHECK(fd >= 0 && dup2(fd, i) == i && close(fd) == 0);
    }
    fault.stream = NULL;
    int status = program(argc, argv);
    fault.left = -1;
    starve_no_more();
    fflush(stdout);
    for (int i = 1; i <= 2; i++) CHECK(dup2(keep[i - 1], i) == i && close(keep[i - 1]) == 0);
    clearerr(stdin);
    FILE *f = fopen(DIR_OF_RUNS "/err", "rb");
    CHECK(f != NULL);
    said[fread(said, 1, sizeof said - 1, f)] = 0;
    fclose(f);
    return status;
}

/* The last line of standard error. */
static const char *last_line(void) {
    size_t n = strlen(said);
    if (n && said[n - 1] == '\n') said[n - 1] = 0;
    const char *line = strrchr(said, '\n');
    return line ? line + 1 : said;
}

static void must(const char *line) {
    int status = call(line);
    CHECK_MSG(status == 0, "dictlearn %s: %d: %s", line, status, said);
}

/* Removes a folder with what is in it, two deep. */
static void remove_folder(const char *path) {
    DIR *dir = opendir(path);
    char name[600];
    for (struct dirent *e; dir && (e = readdir(dir)) != NULL;) {
        snprintf(name, sizeof name, "%s/%s", path, e->d_name);
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        if (remove(name) != 0) remove_folder(name);
    }
    if (dir) closedir(dir);
    rmdir(path);
}

/* Nothing under way is left in a folder: no temporary file, no lock. */
static void check_clean(const char *line, const char *folder) {
    DIR *dir = opendir(folder);
    for (struct dirent *e; dir && (e = readdir(dir)) != NULL;)
        CHECK_MSG(!strstr(e->d_name, ".tmp") && !strstr(e->d_name, ".part") &&
                      strcmp(e->d_name, "lock"),
                  "%s: left %s after %s", line, e->d_name, fault.call);
    if (dir) closedir(dir);
}

static void check_told(const char *line, int status) {
    CHECK_MSG(status == 1, "%s: status %d after %s: %s", line, status, fault.call, said);
    CHECK_MSG(!strncmp(last_line(), "dictlearn: ", 11) && strlen(last_line()) > 20,
              "%s: after %s: '%s'", line, fault.call, last_line());
}

#define X DIR_OF_RUNS "/x.npy"
#define RUN_DIR DIR_OF_RUNS "/run"
#define TINY "--model examples/data/tiny-neox"
#define TRAIN                                                                                      \
    "train --quiet --threads 1 --dict-size 64 --batch-size 32 --warmup-steps 2 --n-ctxs 2 "        \
    "--ctx-len 64 "                                                                                \
    "--in-batch-size 1 --steps 6 --save-steps 2 --log-steps 1 --resample-steps 4 --data " X        \
    " --save-dir "
#define CHANGED "--dict " RUN_DIR " " TINY " --site mlp_out --layer 0"
/* Commands, what each writes (""), all of it in one file. */
static const struct {
    const char *line, *out;
} commands_tried[] = {
    {"inspect --threads 1 " RUN_DIR, ""},
    {"convert --threads 1 " RUN_DIR " " DIR_OF_RUNS "/c.pt", "c.pt"},
    {"convert --threads 1 " RUN_DIR " " DIR_OF_RUNS "/c.safetensors", "c.safetensors"},
    {"convert --threads 1 " RUN_DIR " " DIR_OF_RUNS "/c.npz", "c.npz"},
    {"encode --threads 1 --dict " RUN_DIR " --data " X " --out " DIR_OF_RUNS "/f.npy", "f.npy"},
    {"encode --threads 1 --dict " RUN_DIR " --data " X " --sparse --out " DIR_OF_RUNS "/f.npz",
     "f.npz"},
    {"decode --threads 1 --dict " RUN_DIR " --data " DIR_OF_RUNS "/g.npz --out " DIR_OF_RUNS
     "/y.npy",
     "y.npy"},
    {"reconstruct --threads 1 --dict " RUN_DIR " --data " X " --out " DIR_OF_RUNS "/z.npy",
     "z.npy"},
    {"eval --threads 1 --dict " RUN_DIR " --data " X " --rows 200 --histogram " DIR_OF_RUNS
     "/h.csv",
     "h.csv"},
    {"tokenize " TINY " --text " DIR_OF_RUNS "/t.jsonl", ""},
    {"generate --threads 1 " TINY " --tokens 3 --quiet --out " DIR_OF_RUNS "/u.jsonl", "u.jsonl"},
    {"logits --threads 1 " TINY " --text " DIR_OF_RUNS "/t.jsonl --out " DIR_OF_RUNS "/l.npy",
     "l.npy"},
    {"activations --threads 1 --quiet " TINY " --text " DIR_OF_RUNS
     "/t.jsonl --site mlp_out --layer 0 --out " DIR_OF_RUNS "/a.npy",
     "a.npy"},
    {"eval --threads 1 --dict " RUN_DIR " " TINY " --text " DIR_OF_RUNS
     "/t.jsonl --site mlp_out --layer 0",
     ""},
    {"features --threads 1 --dict " RUN_DIR " " TINY " --text " DIR_OF_RUNS
     "/t.jsonl --site mlp_out --layer 0 --count 2",
     ""},
    {"features --threads 1 --quiet --dict " RUN_DIR " " TINY " --text " DIR_OF_RUNS
     "/t.jsonl --site mlp_out --layer 0 --count 2 --out " DIR_OF_RUNS "/f.html",
     "f.html"},
    {"eval --threads 1 --dict " RUN_DIR " --data " X " --rows 200 --histogram " DIR_OF_RUNS
     "/h.svg",
     "h.svg"},
    {"compare --threads 1 " RUN_DIR " " RUN_DIR " " RUN_DIR, ""},
    {"compare --threads 1 --json " RUN_DIR " " RUN_DIR, ""},
    {"plot " RUN_DIR " " RUN_DIR " --out " DIR_OF_RUNS "/p.svg", "p.svg"},
    {"plot " DIR_OF_RUNS "/e.json --out " DIR_OF_RUNS "/q.svg", "q.svg"},
    {"effect --threads 1 --quiet " CHANGED " --text " DIR_OF_RUNS "/t.jsonl --count 2", ""},
    {"effect --threads 1 --quiet --dict " RUN_DIR " " TINY
     " --site resid_out --layer 5 --prompt The --count 2 --json",
     ""},
    {"steer --threads 1 " CHANGED " --feature 3 --set 2 --tokens 2 --prompt The", ""},
    {"steer --threads 1 " CHANGED " --feature 3 --scale 2 --tokens 2 --text " DIR_OF_RUNS
     "/t.jsonl --json",
     ""},
};

static uint64_t file_hash(const char *path) {
    return starve_mix_file(14695981039346656037u, path);
}

/* What the commands read. */
static void set_up(void) {
    static int done;
    dlrn_context *ctx = NULL;
    dlrn_writer *w = NULL;
    static float x[400 * 128];
    dlrn_rng rng = {3, 0, 0};
    if (done++) return;
    mkdir("build/tmp", 0777);
    remove_folder(DIR_OF_RUNS);
    CHECK(mkdir(DIR_OF_RUNS, 0777) == 0);
    for (int i = 0; i < 400 * 128; i++) x[i] = dlrn_rng_normal(&rng);
    CHECK_STATUS(dlrn_context_create(NULL, &ctx), DLRN_OK);
    CHECK_OK(ctx, dlrn_npy_create(ctx, X, 128, 400, &w));
    CHECK_OK(ctx, dlrn_npy_append(w, x, 400));
    CHECK_OK(ctx, dlrn_writer_close(w));
    dlrn_context_destroy(ctx);
    FILE *f = fopen(DIR_OF_RUNS "/t.jsonl", "wb");
    CHECK(f &&
          fputs("{\"text\": \"The cat sat on the mat.\"}\n{\"text\": \"Said he.\"}\n", f) >= 0 &&
          fclose(f) == 0);
    must(TRAIN RUN_DIR);
    must("encode --dict " RUN_DIR " --data " X " --sparse --out " DIR_OF_RUNS "/g.npz");
    must("eval --json --rows 200 --dict " RUN_DIR " --data " X);
    CHECK(rename(DIR_OF_RUNS "/out", DIR_OF_RUNS "/e.json") == 0);
}

/* Commands fail at their n-th allocation (memory) or call, for each n; the file of an earlier one
   stays as it was. */
static int64_t try_command(size_t c, int memory) {
    const char *line = commands_tried[c].line, *out = test_path(DIR_OF_RUNS, commands_tried[c].out);
    int writes = *commands_tried[c].out != 0;
    must(line);
    uint64_t wanted = writes ? file_hash(out) : 0;
    for (int64_t n = 0;; n++) {
        const int64_t before = starve.live;
        starve.refused = fault.refused = 0;
        fault.call = "an allocation";
        fault.left = memory ? -1 : n;
        starve.once = 1;
        starve.left = memory ? n : -1;
        int status = call(line), refused = memory ? starve.refused > 0 : fault.refused;
        CHECK_MSG(starve.live == before, "%s: %d blocks leak after %s", line,
                  (int)(starve.live - before), fault.call);
        if (writes)
            CHECK_MSG(file_hash(out) == wanted, "%s: %s has changed after %s", line, out,
                      fault.call);
        check_clean(line, DIR_OF_RUNS);
        if (!refused) {
            CHECK_MSG(status == 0, "%s: %s", line, said);
            return n;
        }
        /* nothing is lost by these: a file that cannot be mapped is read as a stream */
        int harmless = !memory && status == 0 &&
                       (strstr(fault.call, " of ") || !strcmp(fault.call, "open") ||
                        !strcmp(fault.call, "mmap"));
        if (harmless) continue;
        check_told(line, status);
        int named = strstr(last_line(), "cannot ") != NULL && strchr(last_line(), '/') != NULL;
        if (memory || !named)
            CHECK_MSG(strstr(last_line(), "out of memory"), "%s: after %s: %s", line, fault.call,
                      last_line());
    }
}

/* Each command, with more than `least` places where it may fail. */
static void try_commands(int memory, int64_t least) {
    set_up();
    for (size_t c = 0; c < sizeof commands_tried / sizeof *commands_tried; c++) {
        int64_t n = try_command(c, memory);
        CHECK(n > least);
        printf("     %4d %s: %.40s\n", (int)n, memory ? "allocations" : "calls",
               commands_tried[c].line);
    }
}

TEST(memory_of_commands) {
    try_commands(1, 5);
}

TEST(calls_of_commands) {
    try_commands(0, 1);
}

/* ---- A run, its folder, and how it goes on ---- */

#define FAILED DIR_OF_RUNS "/failed"
static const char *train = TRAIN; /* the run's command, up to its folder */
static uint64_t whole,
    kept[2]; /* the dictionary of a run that nothing befell, and those on the way */

static int there(const char *folder, const char *name) {
    return dlrn_file_exists(NULL, test_path(folder, name)) == 1;
}

/* If there is anything to go on with: it leads to the same bits. Returns whether there was. */
static int goes_on(const char *folder, const char *what) {
    char line[1024];
    int any = there(folder, "state.safetensors");
    snprintf(line, sizeof line, "%s%s --resume", train, folder);
    int status = call(line);
    CHECK_MSG(status == !any, "%s: resumed with status %d: %s", what, status, said);
    if (any)
        CHECK_MSG(file_hash(test_path(folder, "ae.pt")) == whole, "%s: other bits", what);
    else
        CHECK_STR(said, "expected the state.safetensors of a run to resume");
    return any;
}

static int64_t try_run(int memory) {
    int64_t n = 0, resumed = 0;
    char line[1024];
    snprintf(line, sizeof line, "%s%s", train, FAILED);
    for (int refused = 1; refused; n++) {
        const int64_t before = starve.live;
        remove_folder(FAILED);
        starve.refused = fault.refused = 0;
        fault.call = "an allocation";
        fault.left = memory ? -1 : n;
        starve.once = 1;
        starve.left = memory ? n : -1;
        int status = call(line);
        refused = memory ? starve.refused > 0 : fault.refused;
        CHECK_MSG(starve.live == before, "%d blocks leak after %s %d", (int)(starve.live - before),
                  fault.call, (int)n);
        check_clean("train", FAILED);
        if (status == 0) {
            CHECK(file_hash(FAILED "/ae.pt") == whole);
            continue;
        }
        check_told("train", status);
        if (dlrn_file_exists(NULL, FAILED)) resumed += goes_on(FAILED, fault.call);
    }
    CHECK(resumed > 0);
    return n;
}

TEST(memory_of_a_run) {
    set_up();
    whole = file_hash(RUN_DIR "/ae.pt");
    printf("     %4d allocations\n", (int)try_run(1));
}

TEST(calls_of_a_run) {
    set_up();
    whole = file_hash(RUN_DIR "/ae.pt");
    printf("     %4d calls\n", (int)try_run(0));
}

/* Runs whose recipe's library has files of its own, beside ae.pt and in a folder; the settings of
   one are in a config. */
TEST(runs_for_libraries) {
#define LIBRARY_RUN                                                                                \
    "train --quiet --threads 1 --dict-size 64 --batch-size 64 --n-ctxs 1 --steps 2 "               \
    "--save-steps 1 --data " X
    static const char *const lines[] = {LIBRARY_RUN " --config " DIR_OF_RUNS "/c.json --save-dir ",
                                        LIBRARY_RUN
                                        " --recipe clt-jumprelu --layers 2 --save-dir "};
    char line[1024];
    set_up();
    FILE *f = fopen(DIR_OF_RUNS "/c.json", "wb");
    CHECK(f &&
          fputs("{\"architecture\": \"topk\", \"d_sae\": 64, \"k\": 5, \"seed\": 3}", f) >= 0 &&
          fclose(f) == 0);
    for (int i = 0; i < 2; i++) {
        train = lines[i];
        snprintf(line, sizeof line, "%s%s", train, DIR_OF_RUNS "/library");
        must(line);
        whole = file_hash(DIR_OF_RUNS "/library/ae.pt");
        for (int memory = 0; memory < 2; memory++)
            printf("     %4d %s\n", (int)try_run(memory), memory ? "allocations" : "calls");
        remove_folder(DIR_OF_RUNS "/library");
    }
    train = TRAIN;
}

/* The dictionaries kept on the way: of a run that nothing befell, each whole or, unless all must
   be, not there. */
static int check_kept(const char *folder, const char *what, int all) {
    int n = 0;
    for (int step = 2; step <= 4; step += 2) {
        char name[64];
        snprintf(name, sizeof name, "checkpoints/ae_%d.pt", step);
        int is = there(folder, name);
        CHECK_MSG(is || !all, "%s: no %s", what, name);
        if (!is) continue;
        CHECK_MSG(file_hash(test_path(folder, name)) == kept[step / 2 - 1], "%s: other bits in %s",
                  what, name);
        n++;
    }
    return n;
}

/* A power cut after each sync and rename: what is left is a run that can be resumed with the same
   bits, and, once there has been one, there always is. */
TEST(power_cuts) {
    set_up();
    whole = file_hash(RUN_DIR "/ae.pt");
    kept[0] = file_hash(RUN_DIR "/checkpoints/ae_2.pt");
    kept[1] = file_hash(RUN_DIR "/checkpoints/ae_4.pt");
    int snapshots = 0;
    for (int eager = 0; eager < 2; eager++) {
        int last = 0, cuts = 0;
        for (;; cuts++) {
            remove_folder(FAILED);
            remove_folder(FAILED ".cut");
            disk.folder = FAILED;
            disk.files = disk.names = disk.is_cut = disk.has_inner = 0;
            disk.eager = eager;
            disk.left = cuts;
            int status = call(TRAIN FAILED);
            disk.folder = NULL;
            for (int i = 0; i < disk.files; i++) free(disk.synced[i].bytes);
            CHECK_MSG(status == 0, "%s", said);
            if (!disk.is_cut) break;
            char what[80];
            snprintf(what, sizeof what, "power cut %d", cuts);
            snapshots += check_kept(FAILED ".cut", what, 0);
            int any = goes_on(FAILED ".cut", what);
            check_kept(FAILED ".cut", what, any);
            CHECK_MSG(any || !last, "%s: the checkpoint before is gone", what);
            last = any;
        }
        CHECK(last && snapshots > 4);
        printf("     %4d cuts, names %s\n", cuts, eager ? "at once" : "when synced");
    }
}

/* A clock that stands still, or goes back: no figure is below 0, infinite or beyond belief. */
TEST(clocks) {
    static const double tempos[3] = {0, -5, 1e6};
    set_up();
    for (int i = 0; i < 3; i++) {
        double rate;
        fault.tempo = tempos[i];
        fault.clock = 1e7;
        remove_folder(FAILED);
        must(TRAIN FAILED);
        FILE *f = fopen(FAILED "/log.jsonl", "rb");
        char line[512];
        CHECK(f != NULL);
        while (fgets(line, sizeof line, f)) {
            CHECK_STR(line, "\"rows_per_second\": ");
            CHECK(sscanf(strstr(line, "\"rows_per_second\": ") + 19, "%lf", &rate) == 1);
            CHECK_MSG(rate >= 0 && rate < 1e9, "%s", line);
        }
        fclose(f);
    }
    fault.tempo = 0;
}

enum { WIDTH = 12, MANY = 20 };

/* The reconstruction of x from features f [MANY]. */
static void decode_with(const dlrn_dictionary *dict, const float *f, const float *x, float *x_hat) {
    dlrn_sparse codes;
    memset(&codes, 0, sizeof codes);
    CHECK_OK(dict->ctx, dlrni_sparse_begin(dict->ctx, &codes, MANY));
    CHECK_OK(dict->ctx, dlrni_sparse_append(dict->ctx, &codes, f, 1));
    dlrni_decode_rows(dict, &codes, x, NULL, x_hat);
    dlrn_sparse_free(&codes);
}

/* What effect and steer add is decode(f') - decode(f) by the whole formula. */
TEST(changed_features) {
    static float skip[WIDTH * WIDTH], offset[MANY * WIDTH];
    static const struct {
        dlrn_normalise normalise;
        double in, out;
        int has_skip, has_offset;
    } cases[] = {{DLRN_NORMALISE_NONE, 1, 1, 0, 0},
                 {DLRN_NORMALISE_NONE, 0.5, 3, 1, 0},
                 {DLRN_NORMALISE_NONE, 1, 2, 0, 1},
                 {DLRN_NORMALISE_NORM, 1, 1, 0, 0},
                 {DLRN_NORMALISE_LAYER, 1, 0.5, 0, 1}};
    float x[WIDTH], f[MANY], y[WIDTH], before[WIDTH], after[WIDTH];
    const float values[] = {0, 2.5f, -1};
    dlrn_context *ctx = test_context(NULL, 1);
    dlrn_rng rng = {8, 0, 0};
    for (int i = 0; i < WIDTH * WIDTH; i++) skip[i] = dlrn_rng_normal(&rng);
    for (int i = 0; i < MANY * WIDTH; i++) offset[i] = dlrn_rng_normal(&rng);
    for (int i = 0; i < WIDTH; i++) x[i] = 2 + 3 * dlrn_rng_normal(&rng);
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        dlrn_dictionary_desc desc = {0};
        dlrn_dictionary *dict = NULL;
        desc.d_in = WIDTH, desc.features = MANY, desc.seed = c;
        CHECK_OK(ctx, dlrn_dictionary_create(ctx, &desc, &dict));
        dict->formula.normalise = cases[c].normalise;
        dict->formula.scale_in = cases[c].in, dict->formula.scale_out = cases[c].out;
        if (cases[c].has_skip) dict->param[DLRN_SKIP] = skip, dict->skip_rows = WIDTH;
        if (cases[c].has_offset) dict->param[DLRN_DECODER_OFFSET] = offset;
        CHECK_OK(ctx, dlrn_encode(dict, x, 1, f));
        decode_with(dict, f, x, before);
        for (int i = 0; i < MANY; i++)
            for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
                const float was = f[i];
                memcpy(y, before, sizeof y);
                move_feature(dict, i, unit_of(dict, x), (double)was, (double)values[v], y);
                f[i] = values[v];
                decode_with(dict, f, x, after);
                f[i] = was;
                check_near("x_hat", y, after, WIDTH);
            }
        dict->param[DLRN_SKIP] = dict->param[DLRN_DECODER_OFFSET] = NULL;
        dlrn_dictionary_destroy(dict);
    }
    dlrn_context_destroy(ctx);
}

int main(int argc, char **argv) {
    setenv("OMP_WAIT_POLICY", "passive", 0); /* else the program would start itself again */
    TEST_BEGIN(argc, argv);
    RUN_LONG(memory_of_commands);
    RUN_LONG(calls_of_commands);
    RUN_LONG(memory_of_a_run);
    RUN_LONG(calls_of_a_run);
    RUN_LONG(runs_for_libraries);
    RUN(changed_features);
    RUN(power_cuts);
    RUN(clocks);
    return TEST_END();
}
