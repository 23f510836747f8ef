/* documents.h - reads the documents of a text file one by one - part of dictlearn.h's examples, MIT
   licence

   Do this in one file, after dictlearn.h:

       #define DOCUMENTS_IMPLEMENTATION
       #include "documents.h"

   A .jsonl file has one JSON object per line, with the document under the key "text"; so has "-",
   standard input. Any other file is plain text, with blank lines between documents. Blank lines and
   empty documents are skipped. Memory grows with the longest document only; one of more than 16 MB
   is an error (most likely a text without line ends).
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

DOC_API dlrn_status doc_open(dlrn_context *ctx, const char *path, doc_reader **out);
DOC_API void doc_close(doc_reader *r); /* NULL is fine */
/* The next document, as the file has it (UTF-8), borrowed until the next call. DLRN_END after the
   last one. */
DOC_API dlrn_status doc_next(doc_reader *r, const char **text, int64_t *bytes);
/* Where the next document begins, in bytes; doc_seek returns there. Standard input can only go
   forward, by reading: start it again from the beginning of the same text. */
DOC_API uint64_t doc_position(const doc_reader *r);
DOC_API dlrn_status doc_seek(doc_reader *r, uint64_t position);

#endif /* DOCUMENTS_H */

#ifdef DOCUMENTS_IMPLEMENTATION
#undef DOCUMENTS_IMPLEMENTATION

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include "grow.h"

#if defined(__STRICT_ANSI__) && !defined(_WIN32)
extern int fseeko(FILE *, off_t, int); /* hidden from strict C99 although they are there */
extern off_t ftello(FILE *);
#endif

enum { DOC_CHUNK = 65536, DOC_LONGEST = 16 << 20 };

struct doc_reader {
    dlrn_context *ctx;
    FILE *file;
    char *path;
    int jsonl, standard_input;
    int64_t line_number;   /* of the current line, counted from `passed`  */
    uint64_t passed;       /* bytes at the file's start whose lines are not counted yet */
    uint64_t offset;       /* of the first byte not yet consumed         */
    char chunk[DOC_CHUNK]; /* bytes read from the file                   */
    size_t at, end;        /* the unread ones: chunk [at, end)           */
    char *line;            /* the current line, without its end          */
    int64_t line_len, line_cap;
    char *text; /* plain text: the document that is collected */
    int64_t text_len, text_cap;
    dlrn_json *object; /* .jsonl: what the last document lies in     */
};

static int doc_ends_with(const char *s, const char *end) {
    size_t n = strlen(s), k = strlen(end);
    return n >= k && !strcmp(s + n - k, end);
}

/* The number of the current line. Lines that a seek skipped are counted only now, for an error. */
static int64_t doc_line_number(doc_reader *r) {
    char block[4096];
    uint64_t left = r->passed;
    if (left && fseeko(r->file, 0, SEEK_SET) == 0) {
        for (size_t n = 1; left && n; left -= n) {
            n = fread(block, 1, left < sizeof block ? (size_t)left : sizeof block, r->file);
            for (size_t i = 0; i < n; i++) r->line_number += block[i] == '\n';
        }
        (void)!fseeko(r->file, (off_t)(r->offset + (r->end - r->at)), SEEK_SET);
        r->passed = 0;
    }
    return r->line_number;
}

/* Appends bytes to a block, closed with a 0. */
static dlrn_status doc_append(doc_reader *r, char **block, int64_t *len, int64_t *cap,
                              const char *bytes, int64_t n) {
    if (*len + n > DOC_LONGEST)
        return dlrn_fail(r->ctx, DLRN_ERR_VALUE,
                         "%s: line %lld: expected a document of at most %d bytes, found more",
                         r->path, (long long)doc_line_number(r) + (block == &r->line), DOC_LONGEST);
    dlrn_status s = lm_grow(r->ctx, block, cap, *len, *len + n + 1, 1);
    if (s != DLRN_OK) return s;
    if (n) memcpy(*block + *len, bytes, (size_t)n);
    *len += n;
    (*block)[*len] = 0;
    return DLRN_OK;
}

/* The suffix decides between JSON lines and plain text; standard input has JSON lines. */
DOC_API dlrn_status doc_open(dlrn_context *ctx, const char *path, doc_reader **out) {
    *out = NULL;
    doc_reader *r = (doc_reader *)dlrn_alloc(ctx, 1, sizeof *r);
    if (!r) return DLRN_ERR_MEMORY;
    memset(r, 0, sizeof *r);
    r->ctx = ctx;
    r->standard_input = !strcmp(path, "-");
    r->jsonl = r->standard_input || doc_ends_with(path, ".jsonl");
    r->path = (char *)dlrn_alloc(ctx, (int64_t)strlen(path) + 32, 1);
    if (r->path) memcpy(r->path, path, strlen(path) + 1);
    dlrn_status s = r->path ? DLRN_OK : DLRN_ERR_MEMORY;
    if (s == DLRN_OK && !r->standard_input && dlrn_file_exists(ctx, path) == 2)
        s = dlrn_fail(ctx, DLRN_ERR_IO, "%s: expected a text file, found a folder", path);
    if (s == DLRN_OK && !r->standard_input) {
        r->file = fopen(path, "rb");
        if (!r->file)
            s = dlrn_fail(ctx, DLRN_ERR_IO, "%s: cannot be opened: %s", path, strerror(errno));
    } else if (s == DLRN_OK) {
        r->file = stdin;
        strcpy(r->path, "standard input");
    }
    if (s != DLRN_OK) {
        doc_close(r);
        return s;
    }
    *out = r;
    return DLRN_OK;
}

DOC_API void doc_close(doc_reader *r) {
    if (!r) return;
    if (r->file && !r->standard_input) fclose(r->file);
    dlrn_free(r->ctx, r->object);
    dlrn_free(r->ctx, r->line);
    dlrn_free(r->ctx, r->text);
    dlrn_free(r->ctx, r->path);
    dlrn_free(r->ctx, r);
}

/* Reads a line, without "\n" or "\r\n" and without a byte order mark at the file's start. */
static dlrn_status doc_line(doc_reader *r) {
    uint64_t begin = r->offset;
    r->line_len = 0;
    for (;;) {
        if (r->at == r->end) {
            r->at = 0;
            r->end = fread(r->chunk, 1, sizeof r->chunk, r->file);
            if (ferror(r->file))
                return dlrn_fail(r->ctx, DLRN_ERR_IO, "%s: cannot be read: %s", r->path,
                                 strerror(errno));
            if (r->end == 0) break;
        }
        char *first = r->chunk + r->at, *newline = (char *)memchr(first, '\n', r->end - r->at);
        size_t n = newline ? (size_t)(newline - first) : r->end - r->at;
        dlrn_status s = doc_append(r, &r->line, &r->line_len, &r->line_cap, first, (int64_t)n);
        if (s != DLRN_OK) return s;
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
    return 1;
}

/* Parses the line. An error names its number, which costs a count, so it is parsed again then. */
static dlrn_status doc_parse(doc_reader *r) {
    char name[1200];
    int uncounted = r->passed != 0;
    dlrn_free(r->ctx, r->object);
    r->object = NULL;
    snprintf(name, sizeof name, "%s: line %lld", r->path, (long long)r->line_number);
    dlrn_status s = dlrn_json_parse(r->ctx, r->line, (size_t)r->line_len, name, &r->object);
    if (s != DLRN_OK && s != DLRN_ERR_MEMORY && uncounted) {
        snprintf(name, sizeof name, "%s: line %lld", r->path, (long long)doc_line_number(r));
        s = dlrn_json_parse(r->ctx, r->line, (size_t)r->line_len, name, &r->object);
    }
    return s;
}

/* Skips blank lines and empty documents. */
static dlrn_status doc_next_json(doc_reader *r, const char **text, int64_t *bytes) {
    for (;;) {
        dlrn_status s = doc_line(r);
        if (s != DLRN_OK) return s;
        if (doc_blank(r)) continue;
        s = doc_parse(r);
        if (s != DLRN_OK) return s;
        const dlrn_json *found = NULL;
        if (r->object->type == DLRN_JSON_OBJECT) found = dlrn_json_get(r->object, "text");
        if (!found || found->type != DLRN_JSON_STRING)
            return dlrn_fail(r->ctx, DLRN_ERR_FORMAT,
                             "%s: line %lld: expected an object with a string under the key "
                             "\"text\", found none",
                             r->path, (long long)doc_line_number(r));
        *text = found->text;
        *bytes = found->text_len;
        if (*bytes) return DLRN_OK;
    }
}

/* Joins lines up to a blank one. */
static dlrn_status doc_next_plain(doc_reader *r, const char **text, int64_t *bytes) {
    dlrn_status s = DLRN_OK;
    r->text_len = 0;
    for (;;) {
        s = doc_line(r);
        if (s != DLRN_OK && s != DLRN_END) return s;
        if (s == DLRN_END || doc_blank(r)) {
            if (r->text_len) break;
            if (s == DLRN_END) return s;
            continue;
        }
        s = DLRN_OK;
        if (r->text_len) s = doc_append(r, &r->text, &r->text_len, &r->text_cap, "\n", 1);
        if (s == DLRN_OK)
            s = doc_append(r, &r->text, &r->text_len, &r->text_cap, r->line, r->line_len);
        if (s != DLRN_OK) return s;
    }
    *text = r->text;
    *bytes = r->text_len;
    return DLRN_OK;
}

DOC_API dlrn_status doc_next(doc_reader *r, const char **text, int64_t *bytes) {
    return r->jsonl ? doc_next_json(r, text, bytes) : doc_next_plain(r, text, bytes);
}

DOC_API uint64_t doc_position(const doc_reader *r) {
    return r->offset;
}

/* Reads a stream up to a position. */
static dlrn_status doc_pass_over(doc_reader *r, uint64_t position) {
    if (position < r->offset) return dlrn_fail(r->ctx, DLRN_ERR_IO, "%s: cannot go back", r->path);
    while (r->offset < position) {
        if (r->at == r->end) {
            r->at = 0;
            r->end = fread(r->chunk, 1, sizeof r->chunk, r->file);
            if (ferror(r->file))
                return dlrn_fail(r->ctx, DLRN_ERR_IO, "%s: cannot be read: %s", r->path,
                                 strerror(errno));
            if (r->end == 0)
                return dlrn_fail(r->ctx, DLRN_ERR_IO,
                                 "%s: expected the text that was read before, to byte %llu and on, "
                                 "found its end at "
                                 "byte %llu",
                                 r->path, (unsigned long long)position,
                                 (unsigned long long)r->offset);
        }
        r->line_number += r->chunk[r->at++] == '\n';
        r->offset++;
    }
    return DLRN_OK;
}

/* Line numbers start again from here; doc_line_number counts the lines before if it must. */
DOC_API dlrn_status doc_seek(doc_reader *r, uint64_t position) {
    if (r->standard_input) return doc_pass_over(r, position);
    int known = position <= (uint64_t)INT64_MAX && fseeko(r->file, 0, SEEK_END) == 0;
    off_t size = known ? ftello(r->file) : -1;
    if (size >= 0 && position > (uint64_t)size)
        return dlrn_fail(r->ctx, DLRN_ERR_IO,
                         "%s: expected the text that was read before, to byte %llu and on, found "
                         "its end at byte %llu",
                         r->path, (unsigned long long)position, (unsigned long long)size);
    if (size < 0 || fseeko(r->file, (off_t)position, SEEK_SET) != 0)
        return dlrn_fail(r->ctx, DLRN_ERR_IO, "%s: cannot go to byte %llu: %s", r->path,
                         (unsigned long long)position, strerror(errno));
    r->at = r->end = 0;
    r->offset = r->passed = position;
    r->line_number = 0;
    return DLRN_OK;
}
#endif /* DOCUMENTS_IMPLEMENTATION */
