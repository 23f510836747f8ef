/* documents.h - reads the documents of a text one by one - part of dictlearn.h's examples, MIT
   licence

   Do this in one file, after dictlearn.h:

       #define DOCUMENTS_IMPLEMENTATION
       #include "documents.h"

   A text is JSON lines (an object a line, the document under a key), a JSON array of such objects
   or of strings, or plain text with blank lines between documents; each also compressed by gzip or
   zstd; from a file, or from "-", standard input. Its first bytes tell which, its name does not:
   see >>form. Blank lines and empty documents are skipped. Memory grows with the longest document
   only; one of more than 16 MB is an error (most likely a text without line ends).

   Rooms: >>input bytes, >>form what a text is, >>lines, >>json, >>plain, >>places seek
*/
#ifndef DOCUMENTS_H
#define DOCUMENTS_H

#include <stdint.h>

#ifdef __GNUC__
#define DOC_API __attribute__((unused)) static
#else
#define DOC_API static
#endif

typedef struct doc_reader doc_reader;

/* What a document is taken from; all zero is the default. The texts are borrowed. */
typedef struct doc_format {
    const char *text_key;   /* JSON: where the text is, a path with dots. NULL: "text" */
    const char *tokens_key; /* JSON: where ready token ids are. NULL: documents are texts */
    int64_t vocabulary;     /* ids are below it; 0: any number of 31 bits */
    int skip_bad;           /* 1: lines that are bad are left out and counted, no error */
} doc_format;

/* how NULL: all zero. */
DOC_API dlrn_status doc_open_as(dlrn_context *ctx, const char *path, const doc_format *how,
                                doc_reader **out);
DOC_API dlrn_status doc_open(dlrn_context *ctx, const char *path, doc_reader **out);
DOC_API void doc_close(doc_reader *r); /* NULL is fine */
/* The next document, as the file has it (UTF-8), borrowed until the next call. DLRN_END after the
   last one. */
DOC_API dlrn_status doc_next(doc_reader *r, const char **text, int64_t *bytes);
/* The same for a text with a tokens_key: its ids. */
DOC_API dlrn_status doc_next_ids(doc_reader *r, const int32_t **ids, int64_t *count);
DOC_API int doc_has_ids(const doc_reader *r);
/* How many lines (array: elements; plain text: documents) were bad and are left out, and what was
   wrong with the first. */
DOC_API int64_t doc_bad_lines(const doc_reader *r, const char **first);
/* Where the next document begins, in bytes of the decompressed text; doc_seek returns there.
   Standard input can only go forward, by reading: start it again from the beginning of the same
   text. */
DOC_API uint64_t doc_position(const doc_reader *r);
DOC_API dlrn_status doc_seek(doc_reader *r, uint64_t position);

#endif /* DOCUMENTS_H */

#ifdef DOCUMENTS_IMPLEMENTATION
#undef DOCUMENTS_IMPLEMENTATION

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "grow.h"

#ifndef DOC_POSIX /* 0: no zstd, which needs processes and pipes */
#ifdef _WIN32
#define DOC_POSIX 0
#else
#define DOC_POSIX 1
#endif
#endif
#if DOC_POSIX
#include <fcntl.h>
#include <signal.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>
#if defined(__STRICT_ANSI__) && !defined(__cplusplus)
extern int kill(pid_t, int); /* hidden from strict C99 although it is there */
#endif
#endif

#define DOC_TRY(call)                                                                              \
    do {                                                                                           \
        dlrn_status doc_s = (call);                                                                \
        if (doc_s != DLRN_OK) return doc_s;                                                        \
    } while (0)

enum {
    DOC_CHUNK = 65536,
    DOC_LOOK = 4096, /* bytes by which the form is told, if there are so many */
    DOC_LONGEST = 16 << 20
};

/* Bytes of a text, decompressed. */
typedef struct doc_input {
    dlrn_context *ctx;
    const char *path, *name; /* name: in errors */
    dlrn_stream *stream;     /* the file, or what zstd reads */
    int by_zstd, pipe;       /* its output comes through this pipe */
    long zstd, feeder;       /* processes that were started; 0: none, or they have ended */
} doc_input;

typedef enum doc_form { DOC_PLAIN, DOC_LINES, DOC_ARRAY } doc_form;

struct doc_reader {
    dlrn_context *ctx;
    doc_format how;
    doc_input in;
    doc_form form;
    int standard_input;
    int64_t line_number;   /* of the current line, counted from `passed`  */
    uint64_t passed;       /* bytes at the file's start whose lines are not counted yet */
    uint64_t offset;       /* of the first byte not yet consumed         */
    char chunk[DOC_CHUNK]; /* bytes read from the file                   */
    size_t at, end;        /* the unread ones: chunk [at, end)           */
    char *line;            /* the current line or element, without its end */
    int64_t line_len, line_cap;
    char *text; /* plain text: the document that is collected */
    int64_t text_len, text_cap;
    dlrn_json *object; /* JSON: what the last document lies in     */
    int32_t *id;       /* with a tokens_key: the last document     */
    int64_t id_count, id_cap;
    uint64_t closing;     /* array: where its last bracket is...                     */
    int array_ended;      /* ... which was read                                      */
    int overlong;         /* the line is longer than allowed, and its end is dropped */
    int is_bad;           /* the error in hand is of one line: others may be good    */
    int64_t bad;          /* lines that were left out */
    char first_bad[1024]; /* what was wrong with the first */
};

/* The error of one line, which skip_bad leaves out. */
#define DOC_BAD(r, ...) ((r)->is_bad = 1, dlrn_fail((r)->ctx, DLRN_ERR_FORMAT, __VA_ARGS__))

/* ------------------------------------------------------------------------------------------ */
// >>input
/* A file is a dlrn_stream, which also reads gzip. For zstd the tool of that name is started, with
   the file as its input; for standard input, whose first bytes are already here, a second process
   hands them on, and all that follows. */

#if DOC_POSIX
static void doc_zstd_wait(long pid, int *status) {
    while (waitpid((pid_t)pid, status, 0) < 0 && errno == EINTR) {
    }
}
#endif

static void doc_input_close(doc_input *in) {
#if DOC_POSIX
    const long started[2] = {in->zstd, in->feeder};
    int status;
    if (in->by_zstd && in->pipe >= 0) close(in->pipe);
    for (int i = 0; i < 2; i++) {
        if (started[i] <= 0) continue;
        kill((pid_t)started[i], SIGTERM); /* it may wait for input that does not come */
        doc_zstd_wait(started[i], &status);
    }
#endif
    in->zstd = in->feeder = 0;
    in->by_zstd = 0;
    dlrn_stream_close(in->stream);
    in->stream = NULL;
}

#if DOC_POSIX
/* A process of its own: writes the first bytes of the stream, and the rest of it. */
static void doc_feed(doc_input *in, int to, const char *bytes, size_t n) {
    static char more[DOC_CHUNK];
    while (n) {
        ssize_t done = write(to, bytes, n);
        if (done < 0) _exit(1);
        bytes += done;
        n -= (size_t)done;
        if (n) continue;
        bytes = more;
        if (dlrn_stream_read(in->stream, more, sizeof more, &n) != DLRN_OK) _exit(1);
    }
    _exit(0);
}

/* A process of its own: becomes zstd. --long=31: windows of any size that a file may ask for. Its
   own words would be a second error line, so they are dropped. */
static void doc_become_zstd(int from, int to) {
    int null = open("/dev/null", O_WRONLY);
    if (dup2(from, 0) >= 0 && dup2(to, 1) >= 0 && null >= 0 && dup2(null, 2) >= 0)
        execlp("zstd", "zstd", "-dcq", "--long=31", (char *)NULL);
    _exit(127);
}

static dlrn_status doc_system_error(doc_input *in) {
    return dlrn_fail(in->ctx, DLRN_ERR_IO, "%s: zstd: cannot be started: %s", in->name,
                     strerror(errno));
}

/* What zstd is to read: the file, or a pipe. -1: errno tells why there is none. */
static int doc_zstd_source(doc_input *in, const char *first, size_t n) {
    int ends[2];
    if (strcmp(in->path, "-")) return open(in->path, O_RDONLY);
    if (pipe(ends)) return -1;
    in->feeder = (long)fork();
    if (in->feeder == 0) {
        close(ends[0]);
        doc_feed(in, ends[1], first, n);
    }
    close(ends[1]);
    return ends[0];
}

/* Starts zstd. first [n]: the bytes of the stream that were read. */
static dlrn_status doc_zstd_start(doc_input *in, const char *first, size_t n) {
    int ends[2], from;
    in->by_zstd = 1;
    in->pipe = -1;
    if ((from = doc_zstd_source(in, first, n)) < 0) return doc_system_error(in);
    if (pipe(ends)) {
        close(from);
        return doc_system_error(in);
    }
    (void)fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    in->zstd = (long)fork();
    if (in->zstd == 0) doc_become_zstd(from, ends[1]);
    close(from);
    close(ends[1]);
    in->pipe = ends[0];
    return in->zstd < 0 || in->feeder < 0 ? doc_system_error(in) : DLRN_OK;
}

/* The output of zstd has ended: was that all? */
static dlrn_status doc_zstd_end(doc_input *in) {
    int status = 0;
    if (in->zstd <= 0) return DLRN_OK;
    doc_zstd_wait(in->zstd, &status);
    in->zstd = 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return DLRN_OK;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
        return dlrn_fail(in->ctx, DLRN_ERR_UNSUPPORTED,
                         "%s: compressed by zstd: expected the tool zstd on the path to decompress "
                         "it, found none",
                         in->name);
    return dlrn_fail(in->ctx, DLRN_ERR_FORMAT,
                     "%s: zstd -dc failed with status %d: the file is damaged or was cut short",
                     in->name, WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}
#endif

/* Up to `size` bytes; *got 0: the end. */
static dlrn_status doc_input_read(doc_input *in, void *bytes, size_t size, size_t *got) {
    *got = 0;
    if (!in->stream) return dlrn_fail(in->ctx, DLRN_ERR_IO, "%s: is not open", in->name);
    if (!in->by_zstd) return dlrn_stream_read(in->stream, bytes, size, got);
#if DOC_POSIX
    ssize_t n = read(in->pipe, bytes, size);
    if (n < 0)
        return dlrn_fail(in->ctx, DLRN_ERR_IO, "%s: cannot be read: %s", in->name, strerror(errno));
    *got = (size_t)n;
    return n ? DLRN_OK : doc_zstd_end(in);
#else
    return DLRN_ERR_UNSUPPORTED;
#endif
}

/* Reads to bytes [DOC_CHUNK] until there are enough to tell the form, or all. *n: how many are
   there, before and after. */
static dlrn_status doc_input_look(doc_input *in, char *bytes, size_t *n) {
    for (size_t got = 1; got && *n < DOC_LOOK; *n += got)
        DOC_TRY(doc_input_read(in, bytes + *n, DOC_CHUNK - *n, &got));
    return DLRN_OK;
}

/* Is this a frame of zstd, or one that it skips? */
static int doc_is_zstd(const char *p, size_t n) {
    if (n < 4) return 0;
    return !memcmp(p, "\x28\xB5\x2F\xFD", 4) ||
           (((unsigned char)p[0] & 0xF0) == 0x50 && !memcmp(p + 1, "\x2A\x4D\x18", 3));
}

/* Opens a text at its start; bytes [DOC_CHUNK]: its first *n. */
static dlrn_status doc_input_open(doc_input *in, char *bytes, size_t *n) {
    *n = 0;
    DOC_TRY(dlrn_stream_open(in->ctx, in->path, &in->stream));
    DOC_TRY(doc_input_look(in, bytes, n));
    if (!doc_is_zstd(bytes, *n)) return DLRN_OK;
#if DOC_POSIX
    DOC_TRY(doc_zstd_start(in, bytes, *n));
    *n = 0;
    return doc_input_look(in, bytes, n);
#else
    return dlrn_fail(in->ctx, DLRN_ERR_UNSUPPORTED, "%s: compressed by zstd: decompress it first",
                     in->name);
#endif
}

/* ------------------------------------------------------------------------------------------ */
// >>form
/* The rule by which a text is told what it is, from its first bytes alone (DOC_LOOK or more, or
   all), in this order:

   1. gzip and zstd are decompressed; the rest of the rule is about the bytes inside.
   2. Bytes with which other kinds of files begin (doc_kinds), or a page of HTML: an error that
      names the kind and says what to do.
   3. After a byte order mark and white space:
         { "key": and the first byte of a value, or {}    JSON lines
         [ and such an object, or a string and ]          a JSON array; so is [] alone
           or , and the first byte of a value or ]
   4. A byte 0: UTF-16, or no text at all: an error.
   5. Anything else is plain text, also where it begins with a bracket: "[1] A note",
      "{x | x > 0}", "[Scene: a street]".

   So a text that begins as JSON is JSON, and what is malformed in its first line is an error of
   that line, and not a document with brackets in it. */

static const struct {
    size_t at; /* where its bytes are */
    const char *bytes;
    size_t n;
    const char *what, *advice;
} doc_kinds[] = {
    {0, "PAR1", 4, "a Parquet file",
     "write it as JSON lines first (pandas: to_json(..., orient=\"records\", lines=True))"},
    {0, "version https://git-lfs", 23, "a git-LFS pointer", "get the file itself: git lfs pull"},
    {0, "\xFF\xFE\0\0", 4, "UTF-32", "convert it to UTF-8: iconv -f UTF-32 -t UTF-8"},
    {0, "\xFF\xFE", 2, "UTF-16", "convert it to UTF-8: iconv -f UTF-16 -t UTF-8"},
    {0, "\xFE\xFF", 2, "UTF-16", "convert it to UTF-8: iconv -f UTF-16 -t UTF-8"},
    {0, "\xFD\x37zXZ\0", 6, "a file compressed by xz", "decompress it first: xz -dc"},
    {4, "1AY&SY", 6, "a file compressed by bzip2", "decompress it first: bzip2 -dc"},
    {0, "\x1F\x8B", 2, "a file compressed by gzip twice", "decompress it first: gzip -dc"},
    {0, "\x04\x22\x4D\x18", 4, "a file compressed by lz4", "decompress it first: lz4 -dc"},
    {0, "PK\3\4", 4, "a zip archive", "unpack it first"},
    {0, "7z\xBC\xAF\x27\x1C", 6, "a 7z archive", "unpack it first"},
    {257, "ustar", 5, "a tar archive", "unpack it first"},
    {0, "ARROW1", 6, "an Arrow file", "write it as JSON lines first"},
    {0, "\x89HDF", 4, "an HDF5 file", "write it as JSON lines first"},
    {0, "SQLite format 3", 15, "an SQLite database", "write it as JSON lines first"},
    {0, "\x93NUMPY", 6, "a NumPy array", "arrays are given as --data"},
    {0, "%PDF-", 5, "a PDF file", "extract its text first"},
};

static dlrn_status doc_refuse(doc_reader *r, const char *what, const char *advice) {
    return dlrn_fail(r->ctx, DLRN_ERR_UNSUPPORTED,
                     "%s: expected plain text or JSON in UTF-8, found %s: %s", r->in.name, what,
                     advice);
}

/* JSON's white space. */
static const char *doc_space(const char *p, const char *end) {
    while (p < end && (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r')) p++;
    return p;
}

/* Behind the string that begins at p; NULL: none does. `end` if it goes on behind the bytes. */
static const char *doc_string_end(const char *p, const char *end) {
    if (p == end || *p++ != '"') return NULL;
    for (; p < end && *p != '"'; p++) {
        if ((unsigned char)*p < 0x20) return NULL; /* JSON would have escaped it */
        if (*p == '\\' && p + 1 < end) p++;
    }
    return p < end ? p + 1 : end;
}

/* Whether a value may begin at p, behind white space; `end` may be one. */
static int doc_begins_value(const char *p, const char *end) {
    p = doc_space(p, end);
    return p == end || (*p && strchr("{[\"-0123456789tfnNI", *p));
}

/* Whether an object begins at p. */
static int doc_begins_object(const char *p, const char *end) {
    if (p == end || *p != '{') return 0;
    p = doc_space(p + 1, end);
    if (p < end && *p == '}') return 1;
    p = doc_string_end(p, end);
    if (!p) return 0;
    p = doc_space(p, end);
    return p < end && *p == ':' && doc_begins_value(p + 1, end);
}

/* Whether an array of objects or strings begins at p. */
static int doc_begins_array(const char *p, const char *end) {
    if (p == end || *p != '[') return 0;
    p = doc_space(p + 1, end);
    if (p < end && *p == ']') return doc_space(p + 1, end) == end;
    if (doc_begins_object(p, end)) return 1;
    p = doc_string_end(p, end);
    if (p) p = doc_space(p, end);
    if (!p || p == end || *p == ']') return p != NULL;
    if (*p != ',') return 0;
    p = doc_space(p + 1, end);
    return (p < end && *p == ']') || doc_begins_value(p, end);
}

/* Whether p begins with a word of lower case, in any case. */
static int doc_begins_with(const char *p, const char *end, const char *word) {
    for (; *word; word++, p++)
        if (p == end || (*p >= 'A' && *p <= 'Z' ? *p + 32 : *p) != *word) return 0;
    return 1;
}

/* What bytes with a 0 among them are. In UTF-16, text of Latin letters has one in every second
   byte, and few elsewhere. */
static dlrn_status doc_refuse_zeros(doc_reader *r, const char *p, size_t n) {
    size_t zeros[2] = {0, 0};
    for (size_t i = 0; i < n; i++) zeros[i & 1] += p[i] == 0;
    if ((8 * zeros[0] > 3 * n) != (8 * zeros[1] > 3 * n))
        return doc_refuse(r, "UTF-16", "convert it to UTF-8: iconv -f UTF-16LE (or BE) -t UTF-8");
    return doc_refuse(r, "bytes of value 0", "this is no text, or not in UTF-8");
}

/* Tells the form from the first bytes. */
static dlrn_status doc_tell_form(doc_reader *r) {
    const char *p = r->chunk, *end = r->chunk + r->end;
    for (size_t i = 0; i < sizeof doc_kinds / sizeof *doc_kinds; i++)
        if (r->end >= doc_kinds[i].at + doc_kinds[i].n &&
            !memcmp(p + doc_kinds[i].at, doc_kinds[i].bytes, doc_kinds[i].n))
            return doc_refuse(r, doc_kinds[i].what, doc_kinds[i].advice);
    if (r->end >= 3 && !memcmp(p, "\xEF\xBB\xBF", 3)) p += 3;
    p = doc_space(p, end);
    if (doc_begins_with(p, end, "<!doctype html") || doc_begins_with(p, end, "<html"))
        return doc_refuse(r, "a page of HTML", "it may be a server's answer: download again");
    if (doc_begins_object(p, end))
        r->form = DOC_LINES;
    else if (doc_begins_array(p, end))
        r->form = DOC_ARRAY;
    else if (memchr(r->chunk, 0, r->end))
        return doc_refuse_zeros(r, r->chunk, r->end);
    const char *key = r->how.tokens_key ? r->how.tokens_key : r->how.text_key;
    if (r->form == DOC_PLAIN && key && r->end)
        return dlrn_fail(r->ctx, DLRN_ERR_FORMAT,
                         "%s: expected JSON with the key \"%s\", found plain text", r->in.name,
                         key);
    return DLRN_OK;
}

DOC_API dlrn_status doc_open_as(dlrn_context *ctx, const char *path, const doc_format *how,
                                doc_reader **out) {
    *out = NULL;
    doc_reader *r = (doc_reader *)dlrn_alloc(ctx, 1, sizeof *r);
    if (!r) return DLRN_ERR_MEMORY;
    memset(r, 0, sizeof *r);
    r->ctx = r->in.ctx = ctx;
    if (how) r->how = *how;
    r->standard_input = !strcmp(path, "-");
    char *copy = (char *)dlrn_alloc(ctx, (int64_t)strlen(path) + 1, 1);
    r->in.path = copy;
    r->in.name = r->standard_input ? "standard input" : copy;
    if (copy) memcpy(copy, path, strlen(path) + 1);
    dlrn_status s = copy ? doc_input_open(&r->in, r->chunk, &r->end) : DLRN_ERR_MEMORY;
    if (s == DLRN_OK) s = doc_tell_form(r);
    if (s == DLRN_OK)
        *out = r;
    else
        doc_close(r);
    return s;
}

DOC_API dlrn_status doc_open(dlrn_context *ctx, const char *path, doc_reader **out) {
    return doc_open_as(ctx, path, NULL, out);
}

DOC_API void doc_close(doc_reader *r) {
    if (!r) return;
    doc_input_close(&r->in);
    dlrn_free(r->ctx, r->object);
    dlrn_free(r->ctx, r->line);
    dlrn_free(r->ctx, r->text);
    dlrn_free(r->ctx, r->id);
    dlrn_free(r->ctx, (void *)(uintptr_t)r->in.path);
    dlrn_free(r->ctx, r);
}

DOC_API int doc_has_ids(const doc_reader *r) {
    return r->how.tokens_key != NULL;
}

DOC_API int64_t doc_bad_lines(const doc_reader *r, const char **first) {
    if (first) *first = r->first_bad;
    return r->bad;
}

/* ------------------------------------------------------------------------------------------ */
// >>lines

/* The number of the current line. Lines that a seek skipped are counted only now, for an error: the
   text is read once more up to there. */
static int64_t doc_line_number(doc_reader *r) {
    doc_input in = {r->ctx, r->in.path, r->in.name, NULL, 0, -1, 0, 0};
    char *block = r->passed ? (char *)dlrn_alloc(r->ctx, DOC_CHUNK, 1) : NULL;
    uint64_t left = r->passed;
    size_t n = 0;
    if (!block) return r->line_number;
    dlrn_status s = doc_input_open(&in, block, &n);
    while (s == DLRN_OK && n && left) {
        if (n > left) n = (size_t)left;
        for (size_t i = 0; i < n; i++) r->line_number += block[i] == '\n';
        left -= n;
        s = doc_input_read(&in, block, DOC_CHUNK, &n);
    }
    doc_input_close(&in);
    dlrn_free(r->ctx, block);
    r->passed = 0;
    return r->line_number;
}

/* "PATH: line 3"; the lines of an array may be long, so the byte is named, too. */
static const char *doc_where(doc_reader *r, char *where, size_t size) {
    long long line = (long long)doc_line_number(r);
    if (r->form == DOC_ARRAY)
        snprintf(where, size, "%s: line %lld, byte %llu", r->in.name, line + 1,
                 (unsigned long long)r->offset);
    else
        snprintf(where, size, "%s: line %lld", r->in.name, line);
    return where;
}
enum { DOC_WHERE = 4200 }; /* bytes that it may need */

/* Reads further bytes to the chunk; none at the end. */
static dlrn_status doc_fill(doc_reader *r) {
    r->at = r->end = 0;
    return doc_input_read(&r->in, r->chunk, sizeof r->chunk, &r->end);
}

/* Appends bytes to a block, closed with a 0. Of a line that is too long nothing more is kept: where
   bad lines are skipped, its end is looked for. */
static dlrn_status doc_append(doc_reader *r, char **block, int64_t *len, int64_t *cap,
                              const char *bytes, int64_t n) {
    if (*len + n > DOC_LONGEST) r->overlong = 1;
    if (r->overlong && !r->how.skip_bad)
        return dlrn_fail(r->ctx, DLRN_ERR_VALUE,
                         "%s: line %lld: expected a document of at most %d bytes, found more",
                         r->in.name, (long long)doc_line_number(r) + (block == &r->line),
                         DOC_LONGEST);
    if (r->overlong) return DLRN_OK;
    DOC_TRY(lm_grow(r->ctx, block, cap, *len, *len + n + 1, 1));
    if (n) memcpy(*block + *len, bytes, (size_t)n);
    *len += n;
    (*block)[*len] = 0;
    return DLRN_OK;
}

/* The error of an overlong line whose end was found. */
static dlrn_status doc_overlong(doc_reader *r) {
    char where[DOC_WHERE];
    return DOC_BAD(r, "%s: expected a document of at most %d bytes, found more",
                   doc_where(r, where, sizeof where), DOC_LONGEST);
}

/* Reads a line, without "\n" or "\r\n" and without a byte order mark at the file's start. */
static dlrn_status doc_line(doc_reader *r) {
    uint64_t begin = r->offset;
    r->line_len = 0;
    for (;;) {
        if (r->at == r->end) {
            DOC_TRY(doc_fill(r));
            if (r->end == 0) break;
        }
        char *first = r->chunk + r->at, *newline = (char *)memchr(first, '\n', r->end - r->at);
        size_t n = newline ? (size_t)(newline - first) : r->end - r->at;
        DOC_TRY(doc_append(r, &r->line, &r->line_len, &r->line_cap, first, (int64_t)n));
        r->at += n + (newline != NULL);
        r->offset += n + (newline != NULL);
        if (newline) break;
    }
    if (r->offset == begin) return DLRN_END;
    r->line_number++;
    if (begin == 0 && r->line_len >= 3 && !memcmp(r->line, "\xEF\xBB\xBF", 3)) {
        r->line_len -= 3;
        memmove(r->line, r->line + 3, (size_t)r->line_len);
    }
    if (r->line_len && r->line[r->line_len - 1] == '\r') r->line_len--;
    if (r->line) r->line[r->line_len] = 0;
    return DLRN_OK;
}

/* Whether the line has nothing but white space. */
static int doc_blank(const doc_reader *r) {
    for (int64_t i = 0; i < r->line_len; i++)
        if (!strchr(" \t\r\f\v", r->line[i]) || !r->line[i]) return 0;
    return !r->overlong;
}

/* ------------------------------------------------------------------------------------------ */
// >>json

/* Steps over white space between the elements of an array. *c: the byte that follows; -1: the
   end. */
static dlrn_status doc_between(doc_reader *r, int *c) {
    for (;;) {
        if (r->at == r->end) {
            DOC_TRY(doc_fill(r));
            if (r->end == 0) {
                *c = -1;
                return DLRN_OK;
            }
        }
        *c = (unsigned char)r->chunk[r->at];
        if (*c != ' ' && *c != '\t' && *c != '\n' && *c != '\r') return DLRN_OK;
        r->line_number += *c == '\n';
        r->at++;
        r->offset++;
    }
}

/* The array's last bracket was read: DLRN_END, if the text ends here, too. */
static dlrn_status doc_array_end(doc_reader *r) {
    char where[DOC_WHERE];
    int c = 0;
    r->closing = r->offset;
    r->at++;
    r->offset++;
    r->array_ended = 1;
    DOC_TRY(doc_between(r, &c));
    if (c < 0) return DLRN_END;
    return DOC_BAD(r, "%s: expected the end of the text after the array, found more",
                   doc_where(r, where, sizeof where));
}

/* Steps over what comes before an element: the opening bracket or a comma. DLRN_END after the
   last. A seek comes back to the place behind an element, so only byte 0 begins the array. */
static dlrn_status doc_separator(doc_reader *r) {
    char where[DOC_WHERE];
    int c = 0, first = r->offset == 0;
    if (first && r->at == r->end) DOC_TRY(doc_fill(r)); /* a seek came here */
    if (first && r->end >= 3 && !memcmp(r->chunk, "\xEF\xBB\xBF", 3)) r->at = 3, r->offset = 3;
    DOC_TRY(doc_between(r, &c));
    if (c == ']' && !first) return doc_array_end(r);
    if (c < 0) {
        r->array_ended = 1;
        r->closing = r->offset;
        return DOC_BAD(r, "%s: expected a closing bracket, found the end of the text",
                       doc_where(r, where, sizeof where));
    }
    if (c != (first ? '[' : ',')) /* where the next element begins is not known */
        return dlrn_fail(r->ctx, DLRN_ERR_FORMAT, "%s: expected a comma between elements",
                         doc_where(r, where, sizeof where));
    r->at++;
    r->offset++;
    DOC_TRY(doc_between(r, &c));
    return c == ']' && first ? doc_array_end(r) : DLRN_OK;
}

/* How far an element has been read. */
typedef struct doc_nesting {
    int depth, quoted, escaped, begun, ended;
} doc_nesting;

/* Reads bytes of an element up to its end, which brackets and quotes tell; whether it is JSON, the
   parser tells. Returns how many belong to it. */
static size_t doc_element_part(doc_nesting *e, const char *p, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const char c = p[i];
        if (e->escaped) {
            e->escaped = 0;
        } else if (e->quoted) {
            e->escaped = c == '\\';
            e->quoted = c != '"';
            e->ended = !e->quoted && e->depth == 0;
        } else if (e->depth == 0 && (c == ',' || c == ']' || (e->begun && strchr(" \t\n\r", c)))) {
            e->ended = 1; /* of a number or a word, which it is not part of */
            return i;
        } else {
            e->quoted = c == '"';
            e->depth += (c == '{' || c == '[') - (c == '}' || c == ']');
            e->ended = e->depth <= 0 && (c == '}' || c == ']');
        }
        e->begun = 1;
        if (e->ended) return i + 1;
    }
    return n;
}

/* Reads an element of the array to r->line. */
static dlrn_status doc_element(doc_reader *r) {
    char where[DOC_WHERE];
    doc_nesting e = {0, 0, 0, 0, 0};
    if (r->array_ended) return DLRN_END;
    DOC_TRY(doc_separator(r));
    r->line_len = 0;
    while (!e.ended) {
        if (r->at == r->end) {
            DOC_TRY(doc_fill(r));
            if (r->end == 0) {
                r->array_ended = 1;
                r->closing = r->offset;
                return DOC_BAD(r, "%s: the text ends within an element of its array",
                               doc_where(r, where, sizeof where));
            }
        }
        const char *first = r->chunk + r->at;
        size_t n = doc_element_part(&e, first, r->end - r->at);
        DOC_TRY(doc_append(r, &r->line, &r->line_len, &r->line_cap, first, (int64_t)n));
        for (size_t i = 0; i < n; i++) r->line_number += first[i] == '\n';
        r->at += n;
        r->offset += n;
    }
    return DLRN_OK;
}

/* Parses the line or element. An error names its number, which costs a count, so it is parsed again
   then. */
static dlrn_status doc_parse(doc_reader *r) {
    char where[DOC_WHERE] = "";
    dlrn_free(r->ctx, r->object);
    r->object = NULL;
    dlrn_status s = dlrn_json_parse(r->ctx, r->line, (size_t)r->line_len, where, &r->object);
    if (s == DLRN_OK || s == DLRN_ERR_MEMORY) return s;
    doc_where(r, where, sizeof where);
    s = dlrn_json_parse(r->ctx, r->line, (size_t)r->line_len, where, &r->object);
    r->is_bad = s != DLRN_ERR_MEMORY;
    return s;
}

/* "the keys "content", "id"", or what else was found where an object with a key was expected. */
static const char *doc_found(const dlrn_json *root, const dlrn_json *value, char *text,
                             size_t size) {
    static const char *const names[] = {"null",     "a bool",   "a number",
                                        "a string", "an array", "an object"};
    if (value || root->type != DLRN_JSON_OBJECT || !root->first)
        return value                                           ? names[value->type]
               : root->first || root->type != DLRN_JSON_OBJECT ? names[root->type]
                                                               : "none";
    size_t n = (size_t)snprintf(text, size, "the keys");
    for (const dlrn_json *m = root->first; m && n + 64 < size; m = m->next)
        n += (size_t)snprintf(text + n, size - n, "%s \"%.40s\"", m == root->first ? "" : ",",
                              m->key);
    return text;
}

/* Ids of a JSON array. */
static dlrn_status doc_take_ids(doc_reader *r, const dlrn_json *list) {
    const double limit = r->how.vocabulary > 0 ? (double)r->how.vocabulary : (double)INT32_MAX + 1;
    char where[DOC_WHERE];
    r->id_count = 0;
    DOC_TRY(lm_grow(r->ctx, &r->id, &r->id_cap, 0, list->count + 1, sizeof *r->id));
    for (const dlrn_json *m = list->first; m; m = m->next) {
        int whole = m->type == DLRN_JSON_NUMBER && m->number == floor(m->number);
        if (!whole || !(m->number >= 0 && m->number < limit))
            return DOC_BAD(r, "%s: \"%s\": expected token ids from 0 to %.0f, found %.40s",
                           doc_where(r, where, sizeof where), r->how.tokens_key, limit - 1,
                           m->type == DLRN_JSON_NUMBER ? m->text : doc_found(m, m, NULL, 0));
        r->id[r->id_count++] = (int32_t)m->number;
    }
    return DLRN_OK;
}

/* Reads the next line or element and takes the document out of it. Blank lines are skipped. */
static dlrn_status doc_try_json(doc_reader *r, const char **text, int64_t *bytes) {
    char where[DOC_WHERE], found[400];
    const dlrn_json_type type = r->how.tokens_key ? DLRN_JSON_ARRAY : DLRN_JSON_STRING;
    const char *key = r->how.tokens_key ? r->how.tokens_key
                      : r->how.text_key ? r->how.text_key
                                        : "text";
    do DOC_TRY(r->form == DOC_LINES ? doc_line(r) : doc_element(r));
    while (r->form == DOC_LINES && doc_blank(r));
    if (r->overlong) return doc_overlong(r);
    DOC_TRY(doc_parse(r));
    const dlrn_json *root = r->object, *value = root;
    if (root->type == DLRN_JSON_OBJECT)
        value = dlrn_json_get(root, key);
    else if (r->form == DOC_LINES || r->how.tokens_key || r->how.text_key)
        value = NULL;
    if (!value || value->type != type)
        return DOC_BAD(r, "%s: expected an object with %s under the key \"%s\", found %s",
                       doc_where(r, where, sizeof where),
                       r->how.tokens_key ? "a list of token ids" : "a string", key,
                       doc_found(root, value, found, sizeof found));
    if (r->how.tokens_key) {
        DOC_TRY(doc_take_ids(r, value));
        *bytes = r->id_count;
        return DLRN_OK;
    }
    *text = value->text;
    *bytes = value->text_len;
    return DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>plain

/* The place of the first of n bytes that is not UTF-8, or is 0; n if all are text. */
static int64_t doc_not_text(const unsigned char *p, int64_t n) {
    for (int64_t i = 0, k; i < n; i += k) {
        const unsigned char c = p[i], next = i + 1 < n ? p[i + 1] : 0;
        k = c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
        if (c == 0 || (c >= 0x80 && c < 0xC2) || c > 0xF4 || k > n - i) return i;
        for (int64_t j = 1; j < k; j++)
            if ((p[i + j] & 0xC0) != 0x80) return i;
        /* overlong forms, surrogates, beyond U+10FFFF */
        if ((c == 0xE0 && next < 0xA0) || (c == 0xED && next > 0x9F)) return i;
        if ((c == 0xF0 && next < 0x90) || (c == 0xF4 && next > 0x8F)) return i;
    }
    return n;
}

/* Checks a line of plain text. */
static dlrn_status doc_check_line(doc_reader *r) {
    char where[DOC_WHERE];
    int64_t at = doc_not_text((const unsigned char *)r->line, r->line_len);
    if (at == r->line_len) return DLRN_OK;
    return DOC_BAD(r, "%s: expected text in UTF-8, found the byte 0x%02x at column %lld",
                   doc_where(r, where, sizeof where), (unsigned)(unsigned char)r->line[at],
                   (long long)at + 1);
}

/* Joins lines up to a blank one. The rest of a document with a bad line is passed over where bad
   lines are skipped. */
static dlrn_status doc_try_plain(doc_reader *r, const char **text, int64_t *bytes) {
    dlrn_status bad = DLRN_OK;
    int64_t lines = 0;
    r->text_len = 0;
    for (;;) {
        dlrn_status s = doc_line(r);
        if (s != DLRN_OK && s != DLRN_END) return s;
        if (s == DLRN_END || doc_blank(r)) {
            if (lines) break;
            if (s == DLRN_END) return s;
            continue;
        }
        if (bad == DLRN_OK && !r->overlong) bad = doc_check_line(r);
        if (bad != DLRN_OK && !r->how.skip_bad) return bad;
        if (lines++ && bad == DLRN_OK)
            DOC_TRY(doc_append(r, &r->text, &r->text_len, &r->text_cap, "\n", 1));
        if (bad == DLRN_OK)
            DOC_TRY(doc_append(r, &r->text, &r->text_len, &r->text_cap, r->line, r->line_len));
        if (bad == DLRN_OK && r->overlong) bad = doc_overlong(r);
        r->overlong = 0;
    }
    *text = r->text;
    *bytes = r->text_len;
    return bad;
}

/* Reads documents until one has text, or ids, and is good. */
static dlrn_status doc_next_any(doc_reader *r, const char **text, int64_t *bytes) {
    for (;;) {
        r->is_bad = r->overlong = 0;
        dlrn_status s =
            r->form == DOC_PLAIN ? doc_try_plain(r, text, bytes) : doc_try_json(r, text, bytes);
        if (s == DLRN_OK && *bytes) return s;
        if (s != DLRN_OK && !(r->is_bad && r->how.skip_bad)) return s;
        if (s != DLRN_OK && !r->bad++)
            snprintf(r->first_bad, sizeof r->first_bad, "%s", dlrn_error(r->ctx));
    }
}

DOC_API dlrn_status doc_next(doc_reader *r, const char **text, int64_t *bytes) {
    return doc_next_any(r, text, bytes);
}

DOC_API dlrn_status doc_next_ids(doc_reader *r, const int32_t **ids, int64_t *count) {
    const char *none = NULL;
    dlrn_status s = doc_next_any(r, &none, count);
    *ids = r->id;
    return s;
}

/* ------------------------------------------------------------------------------------------ */
// >>places

DOC_API uint64_t doc_position(const doc_reader *r) {
    return r->array_ended ? r->closing : r->offset;
}

/* The text is another than the one that the position is of. */
static dlrn_status doc_too_short(doc_reader *r, uint64_t position, uint64_t size) {
    return dlrn_fail(r->ctx, DLRN_ERR_IO,
                     "%s: expected the text that was read before, to byte %llu and on, found its "
                     "end at byte %llu",
                     r->in.name, (unsigned long long)position, (unsigned long long)size);
}

/* Reads on up to a position. */
static dlrn_status doc_pass_over(doc_reader *r, uint64_t position) {
    while (r->offset < position) {
        if (r->at == r->end) DOC_TRY(doc_fill(r));
        if (r->end == 0) return doc_too_short(r, position, r->offset);
        r->line_number += r->chunk[r->at++] == '\n';
        r->offset++;
    }
    return DLRN_OK;
}

/* Line numbers start again from here; doc_line_number counts the lines before if it must. What
   comes through a pipe is read up to the position. */
DOC_API dlrn_status doc_seek(doc_reader *r, uint64_t position) {
    if (r->standard_input && position < r->offset)
        return dlrn_fail(r->ctx, DLRN_ERR_IO, "%s: cannot go back", r->in.name);
    r->array_ended = 0;
    if (!r->standard_input && r->in.by_zstd && position < r->offset) {
        doc_input_close(&r->in);
        r->at = r->end = 0;
        r->offset = r->passed = 0;
        r->line_number = 0;
        DOC_TRY(doc_input_open(&r->in, r->chunk, &r->end));
    }
    if (r->standard_input || r->in.by_zstd) return doc_pass_over(r, position);
    dlrn_status s = dlrn_stream_seek(r->in.stream, position);
    if (s == DLRN_END) return doc_too_short(r, position, dlrn_stream_position(r->in.stream));
    if (s != DLRN_OK) return s;
    r->at = r->end = 0;
    r->offset = r->passed = position;
    r->line_number = 0;
    return DLRN_OK;
}
#endif /* DOCUMENTS_IMPLEMENTATION */
