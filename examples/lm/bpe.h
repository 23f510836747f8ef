/* bpe.h - byte-level BPE tokenizers from Hugging Face's tokenizer.json - part of dictlearn.h's
   examples, MIT licence

   Do this in one file, after dictlearn.h:

       #define BPE_IMPLEMENTATION
       #include "bpe.h"

   A text passes five stages, as the file describes them: added tokens are cut out of the raw text;
   what is between them is normalised; added tokens to be found in normalised text are cut out; the
   rest is split into words (GPT-2's pattern and its relatives); the bytes of each word are merged,
   the pair of lowest rank first. The ids equal those of the `tokenizers` library's encode(text,
   add_special_tokens=False); truncation, padding and post_processor in the file are ignored.
   Anything else in the file that is not supported is an error that names it.

   Text should be UTF-8. A byte that is not counts as a character that is neither letter, number nor
   space, and is encoded as itself. Characters newer than that library's tables of Unicode may be
   classified differently.

   CONTENTS
   >>interface  >>unicode  >>normalise  >>split  >>merge  >>added  >>encode  >>load
*/
#ifndef BPE_H
#define BPE_H

#include <stdint.h>

#ifdef __GNUC__
#define BPE_API __attribute__((unused)) static
#else
#define BPE_API static
#endif

/* ------------------------------------------------------------------------------------------ */
// >>interface

typedef struct bpe_tokenizer bpe_tokenizer;

/* Results that grow. Zero-initialise. Each call replaces their contents. bytes[count] is 0. */
typedef struct bpe_ids {
    int32_t *id;
    int64_t count, capacity;
    dlrn_context *ctx;
} bpe_ids;
typedef struct bpe_text {
    char *bytes;
    int64_t count, capacity;
    dlrn_context *ctx;
} bpe_text;
BPE_API void bpe_ids_free(bpe_ids *v);
BPE_API void bpe_text_free(bpe_text *v);

/* path: tokenizer.json, or the folder that holds it. */
BPE_API dlrn_status bpe_load(dlrn_context *ctx, const char *path, bpe_tokenizer **out);
BPE_API void bpe_destroy(bpe_tokenizer *t); /* NULL is fine */
/* Adds no special tokens around the text; recognises those within it. */
BPE_API dlrn_status bpe_encode(bpe_tokenizer *t, const char *text, int64_t bytes, bpe_ids *out);
/* The bytes of the ids, special tokens included. Not UTF-8 if the ids cut a character. */
BPE_API dlrn_status bpe_decode(bpe_tokenizer *t, const int32_t *ids, int64_t n, bpe_text *out);

BPE_API int64_t bpe_vocab_size(const bpe_tokenizer *t); /* largest id + 1 */
BPE_API int32_t bpe_token_id(const bpe_tokenizer *t,
                             const char *name); /* as the file writes it; -1: none */
/* Whether the file marks an added token as special: <|endoftext|> and the like. */
BPE_API int bpe_is_special(const bpe_tokenizer *t, int32_t id);
/* The bytes of a token, closed with a 0. NULL: no such id. */
BPE_API const char *bpe_token_bytes(const bpe_tokenizer *t, int32_t id, int64_t *bytes);

#endif /* BPE_H */

#ifdef BPE_IMPLEMENTATION
#undef BPE_IMPLEMENTATION

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "grow.h"
#include "unicode_tables.h"

#define BPE_TRY(call)                                                                              \
    do {                                                                                           \
        dlrn_status bpe_s = (call);                                                                \
        if (bpe_s != DLRN_OK) return bpe_s;                                                        \
    } while (0)

#define BPE_COUNT(table) ((int64_t)(sizeof(table) / sizeof *(table)))

/* A way to normalise a text. */
typedef enum bpe_form {
    BPE_NFC,
    BPE_NFD,
    BPE_NFKC,
    BPE_NFKD,
    BPE_LOWERCASE,
    BPE_STRIP,
    BPE_PREPEND,
    BPE_REPLACE
} bpe_form;

typedef struct bpe_change {
    bpe_form form;
    int left, right;               /* Strip: at which ends          */
    const dlrn_json *sought, *put; /* Replace: both; Prepend: `put` */
} bpe_change;

/* A way to split a text. */
typedef enum bpe_pattern {
    BPE_WHOLE,            /* ByteLevel without its pattern     */
    BPE_GPT2,             /* ByteLevel, and Split by its text  */
    BPE_LLAMA3,           /* Split by its text                 */
    BPE_QWEN2,            /* the same, one digit at a time     */
    BPE_DIGITS,           /* runs of digits by themselves      */
    BPE_EACH_DIGIT,       /* each digit by itself              */
    BPE_PUNCTUATION,      /* each mark by itself               */
    BPE_WORDS,            /* Whitespace: \w+|[^\w\s]+          */
    BPE_WHITESPACE_SPLIT, /* what lies between spaces          */
} bpe_pattern;

typedef struct bpe_step {
    bpe_pattern pattern;
    int prefix_space; /* ByteLevel's add_prefix_space */
} bpe_step;

/* Limits, so that a hostile file cannot make a text expensive: steps of either kind; bytes that
   Prepend and Replace may insert; bytes of an added token; the factor by which a text may grow. */
enum { BPE_MOST_STEPS = 8, BPE_MOST_PUT = 64, BPE_MOST_ADDED = 1024, BPE_MOST_GROWTH = 1024 };

typedef struct bpe_added {
    const dlrn_json *content; /* as the file has it                             */
    char *sought;             /* [length] as it is looked for: normalised or not */
    int64_t length, place;    /* place: among those of the file                 */
    int32_t id;
    int special;
    int lstrip, rstrip, single_word, normalized;
} bpe_added;

typedef struct bpe_merge { /* a slot of the hash table; rank -1: empty */
    int32_t left, right, joined, rank;
} bpe_merge;

typedef struct bpe_symbol { /* of the word that is being merged; a doubly linked list */
    int32_t id, before, after;
} bpe_symbol;

typedef struct bpe_candidate { /* of the heap */
    int32_t rank, at;
} bpe_candidate;

struct bpe_tokenizer {
    dlrn_context *ctx;
    char path[1024];
    dlrn_json *json;         /* names of tokens are borrowed from here */
    const dlrn_json **slots; /* [slot_mask + 1] hash table of the vocabulary by its text */
    int64_t slot_mask, n_ids;
    const char **token; /* [n_ids] bytes of each id, NULL: unused */
    int64_t *token_length;
    char *token_bytes; /* where token points to, except for added tokens */
    bpe_merge *merges; /* [merge_mask + 1] */
    int64_t merge_mask;
    uint32_t byte_code[256]; /* GPT-2's alphabet of bytes */
    int32_t byte_id[256];    /* the token of a single byte, -1: none */
    int32_t unknown;         /* id, or -1: bytes without a token are dropped, as HF does */
    int fuse_unknown, ignore_merges;
    bpe_change change[BPE_MOST_STEPS];
    bpe_step step[BPE_MOST_STEPS];
    int n_changes, n_steps;
    double growth; /* the most that the changes, one after the other, make of a byte */
    bpe_added
        *added; /* [n_added] those of raw text, then those of normalised text; each by its bytes */
    int64_t n_raw, n_added;
    char begins[2][256]; /* [normalized][byte]: an added token begins so */
    /* scratch of a call */
    bpe_text normal, changed, prefixed[BPE_MOST_STEPS], word;
    uint32_t *codes; /* [n_codes], and room for a copy */
    int64_t n_codes, codes_cap, symbols_cap, heap_cap;
    bpe_symbol *symbols;
    bpe_candidate *heap;
    int64_t heap_size;
    bpe_ids *out;
};

/* Appends bytes. */
static dlrn_status bpe_put(dlrn_context *ctx, bpe_text *t, const char *bytes, int64_t n) {
    t->ctx = ctx;
    BPE_TRY(lm_grow(ctx, &t->bytes, &t->capacity, t->count, t->count + n + 1, 1));
    if (n) memcpy(t->bytes + t->count, bytes, (size_t)n);
    t->count += n;
    t->bytes[t->count] = 0;
    return DLRN_OK;
}

/* Appends an id. */
static dlrn_status bpe_put_id(dlrn_context *ctx, bpe_ids *v, int32_t id) {
    v->ctx = ctx;
    BPE_TRY(lm_grow(ctx, &v->id, &v->capacity, v->count, v->count + 1, sizeof *v->id));
    v->id[v->count++] = id;
    return DLRN_OK;
}

BPE_API void bpe_ids_free(bpe_ids *v) {
    if (v && v->ctx) dlrn_free(v->ctx, v->id);
    if (v) memset(v, 0, sizeof *v);
}

BPE_API void bpe_text_free(bpe_text *v) {
    if (v && v->ctx) dlrn_free(v->ctx, v->bytes);
    if (v) memset(v, 0, sizeof *v);
}

/* ------------------------------------------------------------------------------------------ */
// >>unicode

enum { BPE_RAW = 0x110000 }; /* a byte b that is not part of a character is code BPE_RAW + b */

/* Length and code of the character at text [0, n), n > 0. Overlong forms and surrogates are not
   characters but single bytes. */
static int64_t bpe_char(const char *text, int64_t n, uint32_t *code) {
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *s = (const unsigned char *)text;
    int64_t length = s[0] < 0x80                   ? 1
                     : s[0] >= 0xF0 && s[0] < 0xF5 ? 4
                     : s[0] >= 0xE0                ? 3
                     : s[0] >= 0xC2                ? 2
                                                   : 0;
    uint32_t c = length == 1   ? s[0]
                 : length == 2 ? s[0] & 0x1Fu
                 : length == 3 ? s[0] & 0x0Fu
                               : s[0] & 0x07u;
    *code = BPE_RAW + s[0];
    if (length == 0 || s[0] >= 0xF5 || length > n) return 1;
    for (int64_t i = 1; i < length; i++) {
        if ((s[i] & 0xC0) != 0x80) return 1;
        c = c << 6 | (s[i] & 0x3Fu);
    }
    if (c < least[length] || c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) return 1;
    *code = c;
    return length;
}

/* Writes a character as UTF-8, or a raw byte as itself; its length. */
static int64_t bpe_write_char(uint32_t c, char *out) {
    if (c >= BPE_RAW || c < 0x80) {
        out[0] = (char)(c >= BPE_RAW ? c - BPE_RAW : c);
        return 1;
    }
    int64_t length = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned lead[5] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (int64_t i = length - 1; i > 0; i--, c >>= 6) out[i] = (char)(0x80 | (c & 0x3F));
    out[0] = (char)(lead[length] | c);
    return length;
}

/* Binary search: the last of a table's n rows (`width` numbers each, the first ascending) whose
   first number, without its low bits, is at most c; row 0 if none is. */
static int64_t bpe_row(const uint32_t *table, int64_t n, int64_t width, int bits, uint32_t c) {
    int64_t low = 0, high = n;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (table[middle * width] >> bits <= c)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* The class of a character; raw bytes have none. */
static int bpe_class(uint32_t c) {
    if (c < 128) return unicode_ascii[c];
    if (c >= BPE_RAW) return UNICODE_OTHER;
    return (int)(unicode_classes[bpe_row(unicode_classes, BPE_COUNT(unicode_classes), 1, 4, c)] &
                 15);
}

/* Sets of classes. */
enum {
    BPE_LETTERS = 1 << UNICODE_LETTER,
    BPE_NUMBERS = 1 << UNICODE_DIGIT | 1 << UNICODE_LETTER_NUMBER | 1 << UNICODE_OTHER_NUMBER,
    BPE_LINE_ENDS = 1 << UNICODE_LINE_END, /* [\r\n] */
    BPE_SPACES = 1 << UNICODE_SPACE | BPE_LINE_ENDS,
    BPE_MARKS =
        1 << UNICODE_PUNCTUATION | 1 << UNICODE_CONNECTOR, /* punctuation, and ASCII's symbols */
    BPE_WORD_CHARS = BPE_LETTERS | 1 << UNICODE_DIGIT | 1 << UNICODE_LETTER_NUMBER |
                     1 << UNICODE_MARK | 1 << UNICODE_CONNECTOR | 1 << UNICODE_WORD, /* \w */
    BPE_ALL = (1 << UNICODE_CLASSES) - 1,
    BPE_OTHERS = BPE_ALL & ~(BPE_LETTERS | BPE_NUMBERS | BPE_SPACES) /* [^\s\p{L}\p{N}] */
};

/* ---- walking over text */

/* The class of the character at `at` < n; *next: where the next one begins. */
static int bpe_class_at(const char *s, int64_t n, int64_t at, int64_t *next) {
    uint32_t c;
    *next = at + bpe_char(s + at, n - at, &c);
    return bpe_class(c);
}

/* The end of the run of up to `most` characters from `at` whose classes are in this set. */
static int64_t bpe_span(const char *s, int64_t n, int64_t at, int classes, int64_t most) {
    for (int64_t next; at < n && most > 0 && (classes >> bpe_class_at(s, n, at, &next) & 1); most--)
        at = next;
    return at;
}

/* Where the character before `at` > 0 begins. */
static int64_t bpe_before(const char *s, int64_t at) {
    for (int64_t k = 2; k <= 4 && k <= at; k++) {
        uint32_t c;
        if (bpe_char(s + at - k, k, &c) == k) return at - k;
    }
    return at - 1;
}

/* Whether the character before `at` is of one of these classes. */
static int bpe_before_is(const char *s, int64_t at, int classes) {
    int64_t next;
    return at > 0 && (classes >> bpe_class_at(s, at, bpe_before(s, at), &next) & 1);
}

/* ------------------------------------------------------------------------------------------ */
// >>normalise

enum {
    BPE_S = 0xAC00,
    BPE_L = 0x1100,
    BPE_V = 0x1161,
    BPE_T = 0x11A7,
    BPE_LS = 19,
    BPE_VS = 21,
    BPE_TS = 28
};

/* Canonical combining class; 0: not a mark. */
static uint32_t bpe_combining(uint32_t c) {
    if (c < 0x300 || c >= BPE_RAW) return 0;
    return unicode_combining[bpe_row(unicode_combining, BPE_COUNT(unicode_combining), 1, 8, c)] &
           255;
}

/* The decomposition of c, as unicode_parts has it; NULL: none. */
static const uint32_t *bpe_parts(uint32_t c) {
    if (c < unicode_blocks[0][0] || c >= BPE_RAW) return NULL;
    int64_t low = bpe_row(unicode_blocks[0], BPE_COUNT(unicode_blocks) - 1, 2, 0,
                          c); /* the last one closes the table */
    const uint32_t *p = unicode_parts + unicode_blocks[low][1],
                   *end = unicode_parts + unicode_blocks[low + 1][1];
    for (uint32_t k = unicode_blocks[low][0]; k < c && p < end; p++) k += *p & 1;
    return p < end ? p : NULL;
}

/* Appends a code point to t->codes. */
static dlrn_status bpe_put_code(bpe_tokenizer *t, uint32_t c) {
    BPE_TRY(
        lm_grow(t->ctx, &t->codes, &t->codes_cap, t->n_codes, t->n_codes + 1, sizeof *t->codes));
    t->codes[t->n_codes++] = c;
    return DLRN_OK;
}

/* Appends c's decomposition. */
static dlrn_status bpe_decompose(bpe_tokenizer *t, uint32_t c, int compatible) {
    if (c >= BPE_S && c < BPE_S + BPE_LS * BPE_VS * BPE_TS) {
        uint32_t s = c - BPE_S;
        BPE_TRY(bpe_put_code(t, BPE_L + s / (BPE_VS * BPE_TS)));
        BPE_TRY(bpe_put_code(t, BPE_V + s % (BPE_VS * BPE_TS) / BPE_TS));
        return s % BPE_TS ? bpe_put_code(t, BPE_T + s % BPE_TS) : DLRN_OK;
    }
    const uint32_t *p = bpe_parts(c);
    if (!p || ((*p & 2) && !compatible)) return bpe_put_code(t, c);
    for (;; p++) {
        BPE_TRY(bpe_decompose(t, *p >> 2, compatible));
        if (*p & 1) return DLRN_OK;
    }
}

/* Sorts marks [n] by combining class: stable, in linear time. copy: scratch [n]. */
static void bpe_sort_marks(uint32_t *marks, int64_t n, uint32_t *copy) {
    int64_t place[257] = {0};
    memcpy(copy, marks, (size_t)n * sizeof *marks);
    for (int64_t i = 0; i < n; i++) place[bpe_combining(copy[i]) + 1]++;
    for (int k = 1; k < 257; k++) place[k] += place[k - 1];
    for (int64_t i = 0; i < n; i++) marks[place[bpe_combining(copy[i])]++] = copy[i];
}

/* Sorts each run of marks in t->codes. */
static dlrn_status bpe_reorder(bpe_tokenizer *t) {
    int64_t n = t->n_codes;
    BPE_TRY(lm_grow(t->ctx, &t->codes, &t->codes_cap, n, 2 * n, sizeof *t->codes));
    for (int64_t from = 0, to; from < n; from = to) {
        to = from;
        while (to < n && bpe_combining(t->codes[to])) to++;
        if (to - from > 1) bpe_sort_marks(t->codes + from, to - from, t->codes + n);
        if (to == from) to++;
    }
    return DLRN_OK;
}

/* The composition of first and second, or 0. */
static uint32_t bpe_composed(uint32_t first, uint32_t second) {
    if (first >= BPE_L && first < BPE_L + BPE_LS && second >= BPE_V && second < BPE_V + BPE_VS)
        return BPE_S + ((first - BPE_L) * BPE_VS + (second - BPE_V)) * BPE_TS;
    if (first >= BPE_S && first < BPE_S + BPE_LS * BPE_VS * BPE_TS &&
        (first - BPE_S) % BPE_TS == 0 && second > BPE_T && second < BPE_T + BPE_TS)
        return first + (second - BPE_T);
    int64_t low = 0, high = second < 0x300
                                ? 0
                                : BPE_COUNT(unicode_compositions); /* no second part is smaller */
    while (low < high) {
        int64_t middle = (low + high) / 2;
        uint32_t whole = unicode_compositions[middle];
        const uint32_t *p = bpe_parts(whole);
        if (p[0] >> 2 == first && p[1] >> 2 == second) return whole;
        if (p[0] >> 2 < first || (p[0] >> 2 == first && p[1] >> 2 < second))
            low = middle + 1;
        else
            high = middle;
    }
    return 0;
}

/* Canonical composition in place. */
static void bpe_compose(bpe_tokenizer *t) {
    int64_t starter = -1, out = 0;
    uint32_t last = 0,
             *codes = t->codes; /* last: combining class of the character before this one */
    for (int64_t i = 0; i < t->n_codes; i++) {
        uint32_t order = bpe_combining(codes[i]);
        int blocked = starter < 0 || (out - 1 > starter && (last >= order || last == 0));
        uint32_t joined = blocked ? 0 : bpe_composed(codes[starter], codes[i]);
        if (joined) {
            codes[starter] = joined;
            continue;
        }
        if (order == 0) starter = out;
        last = order;
        codes[out++] = codes[i];
    }
    t->n_codes = out;
}

/* Appends the lower case of c. */
static dlrn_status bpe_lower(bpe_tokenizer *t, uint32_t c) {
    const uint32_t *run =
        unicode_lower[bpe_row(unicode_lower[0], BPE_COUNT(unicode_lower), 4, 0, c)];
    if (c == 0x130) { /* the only one that becomes two: a dot is put above */
        BPE_TRY(bpe_put_code(t, 'i'));
        return bpe_put_code(t, 0x307);
    }
    int inside = c >= run[0] && c <= run[1] && (c - run[0]) % run[2] == 0;
    return bpe_put_code(t, inside ? run[3] + (c - run[0]) : c);
}

/* Changes t->normal to t->changed, character by character. */
static dlrn_status bpe_change_codes(bpe_tokenizer *t, bpe_form form) {
    const char *s = t->normal.bytes;
    int64_t n = t->normal.count;
    t->n_codes = 0;
    for (int64_t i = 0; i < n;) {
        uint32_t c;
        i += bpe_char(s + i, n - i, &c);
        BPE_TRY(form == BPE_LOWERCASE ? bpe_lower(t, c)
                                      : bpe_decompose(t, c, form == BPE_NFKC || form == BPE_NFKD));
    }
    if (form != BPE_LOWERCASE) BPE_TRY(bpe_reorder(t));
    if (form == BPE_NFC || form == BPE_NFKC) bpe_compose(t);
    for (int64_t i = 0; i < t->n_codes; i++) {
        char utf8[4];
        BPE_TRY(bpe_put(t->ctx, &t->changed, utf8, bpe_write_char(t->codes[i], utf8)));
    }
    return DLRN_OK;
}

/* Changes t->normal to t->changed: strips its ends, prepends a text, or replaces one. */
static dlrn_status bpe_change_text(bpe_tokenizer *t, const bpe_change *how) {
    const char *s = t->normal.bytes, *end = s + t->normal.count;
    if (how->form == BPE_STRIP) {
        if (how->left) s += bpe_span(s, end - s, 0, BPE_SPACES, end - s);
        while (how->right && end > s && bpe_before_is(s, end - s, BPE_SPACES))
            end = s + bpe_before(s, end - s);
        return bpe_put(t->ctx, &t->changed, s, end - s);
    }
    if (how->form == BPE_PREPEND && s < end)
        BPE_TRY(bpe_put(t->ctx, &t->changed, how->put->text, how->put->text_len));
    if (how->form == BPE_PREPEND) return bpe_put(t->ctx, &t->changed, s, end - s);
    while (s < end) {
        int same = end - s >= how->sought->text_len &&
                   !memcmp(s, how->sought->text, (size_t)how->sought->text_len);
        const char *put = same ? how->put->text : s;
        BPE_TRY(bpe_put(t->ctx, &t->changed, put, same ? how->put->text_len : 1));
        s += same ? how->sought->text_len : 1;
    }
    return DLRN_OK;
}

/* Whether the form cannot change the text, judged by its bytes: it is ASCII, or for NFC all below
   0xCC (U+0300). */
static int bpe_unchanged(bpe_form form, const char *s, int64_t n) {
    unsigned char limit = form == BPE_NFC ? 0xCC : 0x80;
    if (form > BPE_NFKD) return 0;
    while (n > 0 && (unsigned char)s[n - 1] < limit) n--;
    return n == 0;
}

/* Normalises a text into t->normal. */
static dlrn_status bpe_normalise(bpe_tokenizer *t, const char *text, int64_t n) {
    t->normal.count = 0;
    BPE_TRY(bpe_put(t->ctx, &t->normal, text, n));
    for (int i = 0; i < t->n_changes; i++) {
        const bpe_change *how = &t->change[i];
        if (bpe_unchanged(how->form, t->normal.bytes, t->normal.count)) continue;
        t->changed.count = 0;
        BPE_TRY(bpe_put(t->ctx, &t->changed, "", 0));
        BPE_TRY(how->form <= BPE_LOWERCASE ? bpe_change_codes(t, how->form)
                                           : bpe_change_text(t, how));
        bpe_text swap = t->normal;
        t->normal = t->changed;
        t->changed = swap;
    }
    return DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>split
/* Each pattern is a function that measures the piece at the start of a text. *drop: the piece only
   separates others. */

/* 's 't 're 've 'm 'll 'd; 0: none of them. */
static int64_t bpe_contraction(const char *s, int64_t n, int any_case) {
    static const char *const ends[] = {"s", "t", "re", "ve", "m", "ll", "d"};
    if (n < 2 || s[0] != '\'') return 0;
    if (any_case && n > 2 && !memcmp(s + 1, "\xC5\xBF", 2)) return 3; /* the long s is an s, too */
    for (size_t e = 0; e < sizeof ends / sizeof *ends; e++) {
        int64_t k = 0, length = (int64_t)strlen(ends[e]);
        while (k < length && k + 1 < n && ((any_case ? s[k + 1] | 32 : s[k + 1]) == ends[e][k]))
            k++;
        if (k == length) return 1 + length;
    }
    return 0;
}

/* \s+(?!\S) or \s+ at s, which begins with a space. */
static int64_t bpe_space_piece(const char *s, int64_t n) {
    int64_t end = bpe_span(s, n, 0, BPE_SPACES, n);
    if (end == n) return end;
    int64_t last = bpe_before(s, end); /* the space that the next word takes */
    return last > 0 ? last : end;
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static int64_t bpe_piece_gpt2(const char *s, int64_t n) {
    static const int kinds[3] = {BPE_LETTERS, BPE_NUMBERS, BPE_OTHERS};
    int64_t short_form = bpe_contraction(s, n, 0), from = s[0] == ' ';
    if (short_form) return short_form;
    for (int k = 0; k < 3; k++) {
        int64_t end = bpe_span(s, n, from, kinds[k], n);
        if (end > from) return end;
    }
    return bpe_space_piece(s, n);
}

/* (?i:'s|...)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}|
   ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ */
static int64_t bpe_piece_llama3(const char *s, int64_t n, int64_t digits) {
    int64_t short_form = bpe_contraction(s, n, 1);
    if (short_form) return short_form;
    int64_t from = bpe_span(s, n, 0, BPE_ALL & ~(BPE_LINE_ENDS | BPE_LETTERS | BPE_NUMBERS), 1);
    int64_t end = bpe_span(s, n, from, BPE_LETTERS, n);
    if (end > from) return end;
    end = bpe_span(s, n, 0, BPE_NUMBERS, digits);
    if (end > 0) return end;
    from = s[0] == ' ';
    end = bpe_span(s, n, from, BPE_OTHERS, n);
    if (end > from) return bpe_span(s, n, end, BPE_LINE_ENDS, n);
    end = bpe_span(s, n, 0, BPE_SPACES, n);
    while (end > 0 && s[end - 1] != '\r' && s[end - 1] != '\n') end--;
    return end > 0 ? end : bpe_space_piece(s, n);
}

/* Up to `most` characters of these classes, or, if there are none, all that are of other classes.
   */
static int64_t bpe_piece_of(const char *s, int64_t n, int classes, int64_t most) {
    int64_t end = bpe_span(s, n, 0, classes, most);
    return end > 0 ? end : bpe_span(s, n, 0, BPE_ALL & ~classes, n);
}

/* Length of the piece at the start of s, by pattern. */
static int64_t bpe_piece(bpe_pattern pattern, const char *s, int64_t n, int *drop) {
    int64_t end = 0;
    if (pattern == BPE_WORDS || pattern == BPE_WHITESPACE_SPLIT)
        end = bpe_span(s, n, 0, BPE_SPACES, n);
    *drop = end > 0;
    if (*drop) return end;
    switch (pattern) {
    case BPE_GPT2: return bpe_piece_gpt2(s, n);
    case BPE_LLAMA3: return bpe_piece_llama3(s, n, 3);
    case BPE_QWEN2: return bpe_piece_llama3(s, n, 1);
    case BPE_DIGITS: return bpe_piece_of(s, n, BPE_NUMBERS, n);
    case BPE_EACH_DIGIT: return bpe_piece_of(s, n, BPE_NUMBERS, 1);
    case BPE_PUNCTUATION: return bpe_piece_of(s, n, BPE_MARKS, 1);
    case BPE_WORDS:
        end = bpe_span(s, n, 0, BPE_WORD_CHARS, n);
        return end > 0 ? end : bpe_span(s, n, 0, BPE_ALL & ~(BPE_WORD_CHARS | BPE_SPACES), n);
    case BPE_WHITESPACE_SPLIT: return bpe_span(s, n, 0, BPE_ALL & ~BPE_SPACES, n);
    case BPE_WHOLE: break;
    }
    return n;
}

/* ------------------------------------------------------------------------------------------ */
// >>merge

/* Mixes two numbers. */
static uint64_t bpe_hash(uint64_t a, uint64_t b) {
    uint64_t h = (a * 0x9E3779B97F4A7C15u) ^ (b + 0x7F4A7C159E3779B9u);
    h ^= h >> 32;
    h *= 0xD6E8FEB86659FD93u;
    return h ^ h >> 32;
}

/* The slot of this pair: its merge, or an empty one. */
static bpe_merge *bpe_merge_slot(const bpe_tokenizer *t, int32_t left, int32_t right) {
    uint64_t at = bpe_hash((uint64_t)left ^ (uint64_t)(uintptr_t)t->merges,
                           (uint64_t)right); /* as bpe_hash_text */
    for (;; at++) {
        bpe_merge *m = &t->merges[at & (uint64_t)t->merge_mask];
        if (m->rank < 0 || (m->left == left && m->right == right)) return m;
    }
}

/* The order of merges: by rank, then from left to right. */
static int bpe_sooner(bpe_candidate a, bpe_candidate b) {
    return a.rank != b.rank ? a.rank < b.rank : a.at < b.at;
}

/* Pushes the pair at `at` if it can merge. Lowest rank on top, of equal ones the leftmost. There is
   room: see bpe_merge_word. */
static void bpe_push(bpe_tokenizer *t, int32_t at) {
    int32_t after = t->symbols[at].after;
    if (after < 0) return;
    const bpe_merge *m = bpe_merge_slot(t, t->symbols[at].id, t->symbols[after].id);
    if (m->rank < 0) return;
    bpe_candidate c = {m->rank, at};
    int64_t i = t->heap_size++;
    for (; i > 0 && bpe_sooner(c, t->heap[(i - 1) / 2]); i = (i - 1) / 2)
        t->heap[i] = t->heap[(i - 1) / 2];
    t->heap[i] = c;
}

/* Takes the first candidate off the heap. */
static bpe_candidate bpe_pop(bpe_tokenizer *t) {
    bpe_candidate top = t->heap[0], last = t->heap[--t->heap_size];
    int64_t at = 0;
    for (int64_t child = 1; child < t->heap_size; child = 2 * at + 1) {
        child += child + 1 < t->heap_size && bpe_sooner(t->heap[child + 1], t->heap[child]);
        if (!bpe_sooner(t->heap[child], last)) break;
        t->heap[at] = t->heap[child];
        at = child;
    }
    t->heap[at] = last;
    return top;
}

/* Merges the candidate's pair, unless it has changed since it was pushed. */
static void bpe_join(bpe_tokenizer *t, bpe_candidate c) {
    bpe_symbol *s = &t->symbols[c.at];
    if (s->id < 0 || s->after < 0) return;
    const bpe_merge *m = bpe_merge_slot(t, s->id, t->symbols[s->after].id);
    if (m->rank != c.rank) return;
    bpe_symbol *gone = &t->symbols[s->after];
    s->id = m->joined;
    s->after = gone->after;
    gone->id = -1;
    if (s->after >= 0) t->symbols[s->after].before = c.at;
    if (s->before >= 0) bpe_push(t, s->before);
    bpe_push(t, c.at);
}

/* The tokens of a word: those of its bytes, merged until no pair has a rank. */
static dlrn_status bpe_merge_word(bpe_tokenizer *t, const char *word, int64_t n) {
    int32_t count = 0;
    if (n > INT32_MAX / 4)
        return dlrn_fail(t->ctx, DLRN_ERR_VALUE, "%s: a word of %lld bytes", t->path, (long long)n);
    BPE_TRY(lm_grow(t->ctx, &t->symbols, &t->symbols_cap, 0, n, sizeof *t->symbols));
    BPE_TRY(lm_grow(t->ctx, &t->heap, &t->heap_cap, 0, 3 * n,
                    sizeof *t->heap)); /* a merge pushes two at most */
    int in_unknown = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t id = t->byte_id[(unsigned char)word[i]];
        int fuse = id < 0 && in_unknown && t->fuse_unknown;
        in_unknown = id < 0;
        if (id < 0) id = t->unknown;
        if (id < 0 || fuse) continue;
        bpe_symbol s = {id, count - 1, count + 1};
        t->symbols[count++] = s;
    }
    if (count == 0) return DLRN_OK;
    t->symbols[count - 1].after = -1;
    t->heap_size = 0;
    for (int32_t i = 0; i < count; i++) bpe_push(t, i);
    while (t->heap_size > 0) bpe_join(t, bpe_pop(t));
    for (int32_t i = 0; i >= 0; i = t->symbols[i].after)
        BPE_TRY(bpe_put_id(t->ctx, t->out, t->symbols[i].id));
    return DLRN_OK;
}

/* GPT-2's alphabet of bytes: printable ones are themselves, the others the codes from 256 on. */
static uint32_t bpe_byte_code(int b) {
    uint32_t moved = 256;
    if ((b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174) return (uint32_t)b;
    for (int k = 0; k < b; k++)
        moved += !((k >= 33 && k <= 126) || (k >= 161 && k <= 172) || k >= 174);
    return moved;
}

/* FNV-1a, seeded with an address, which a file cannot know: otherwise it could place all its tokens
   in one slot. */
static uint64_t bpe_hash_text(const bpe_tokenizer *t, const char *s, int64_t n) {
    uint64_t h = bpe_hash(0xCBF29CE484222325u, (uint64_t)(uintptr_t)t->slots);
    for (int64_t i = 0; i < n; i++) h = (h ^ (unsigned char)s[i]) * 0x100000001B3u;
    return bpe_hash(h, 0);
}

/* The slot of this text in the vocabulary: its entry, or an empty one. */
static const dlrn_json **bpe_slot(const bpe_tokenizer *t, const char *s, int64_t n) {
    for (uint64_t at = bpe_hash_text(t, s, n);; at++) {
        const dlrn_json **slot = &t->slots[at & (uint64_t)t->slot_mask];
        if (!*slot || ((*slot)->key_len == n && !memcmp((*slot)->key, s, (size_t)n))) return slot;
    }
}

/* The id of a text in the vocabulary; -1: none. */
static int32_t bpe_vocab_id(const bpe_tokenizer *t, const char *s, int64_t n) {
    const dlrn_json *entry = *bpe_slot(t, s, n);
    return entry ? (int32_t)entry->number : -1;
}

/* Appends the ids of a word. */
static dlrn_status bpe_word_ids(bpe_tokenizer *t, const char *word, int64_t n) {
    if (t->ignore_merges) { /* a word that is a token is that token */
        t->word.count = 0;
        for (int64_t i = 0; i < n; i++) {
            char utf8[4];
            BPE_TRY(bpe_put(t->ctx, &t->word, utf8,
                            bpe_write_char(t->byte_code[(unsigned char)word[i]], utf8)));
        }
        int32_t id = n ? bpe_vocab_id(t, t->word.bytes, t->word.count) : -1;
        if (id >= 0) return bpe_put_id(t->ctx, t->out, id);
    }
    return bpe_merge_word(t, word, n);
}

/* Splits a text by step i and the following ones, and encodes the words. */
static dlrn_status bpe_split(bpe_tokenizer *t, int i, const char *s, int64_t n) {
    if (i == t->n_steps) return bpe_word_ids(t, s, n);
    if (t->step[i].prefix_space && n > 0 && s[0] != ' ') {
        bpe_text *with = &t->prefixed[i];
        with->count = 0;
        BPE_TRY(bpe_put(t->ctx, with, " ", 1));
        BPE_TRY(bpe_put(t->ctx, with, s, n));
        s = with->bytes;
        n = with->count;
    }
    for (int64_t at = 0, length; at < n; at += length) {
        int drop;
        length = bpe_piece(t->step[i].pattern, s + at, n - at, &drop);
        if (!drop) BPE_TRY(bpe_split(t, i + 1, s + at, length));
    }
    return DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>added

/* The first of added [low, high) whose byte k is not below `byte`; those that have ended come
   before all. */
static int64_t bpe_added_bound(const bpe_tokenizer *t, int64_t low, int64_t high, int64_t k,
                               int byte) {
    while (low < high) {
        int64_t middle = (low + high) / 2;
        const bpe_added *a = &t->added[middle];
        if (k >= a->length || (unsigned char)a->sought[k] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest added token of this kind at s, or NULL. They are in order: each byte narrows the
   range that is left. */
static const bpe_added *bpe_added_at(const bpe_tokenizer *t, const char *s, int64_t n,
                                     int normalized) {
    const bpe_added *found = NULL;
    int64_t low = normalized ? t->n_raw : 0, high = normalized ? t->n_added : t->n_raw;
    if (!t->begins[normalized][(unsigned char)s[0]]) return NULL;
    for (int64_t k = 0; k < n && low < high; k++) {
        low = bpe_added_bound(t, low, high, k, (unsigned char)s[k]);
        high = bpe_added_bound(t, low, high, k, (unsigned char)s[k] + 1);
        if (low < high && t->added[low].length == k + 1) found = &t->added[low];
    }
    return found;
}

/* Whether [from, to) has no word character on either side. */
static int bpe_stands_alone(const char *s, int64_t n, int64_t from, int64_t to) {
    return !bpe_before_is(s, from, BPE_WORD_CHARS) && bpe_span(s, n, to, BPE_WORD_CHARS, 1) == to;
}

typedef dlrn_status (*bpe_between)(bpe_tokenizer *t, const char *s, int64_t n);

/* Appends added tokens to the output and hands what is between them to `between`. As in
   `tokenizers`, the search continues right behind a token even if it takes the spaces to its right
   (rstrip): a token within those spaces still counts, unless it takes spaces to its left (lstrip);
   then it begins where they end, and is dropped if nothing of it is left. */
static dlrn_status bpe_cut_added(bpe_tokenizer *t, const char *s, int64_t n, int normalized,
                                 bpe_between between) {
    int64_t done = 0, spaces = 0; /* spaces: where the last run of them that was looked at ends */
    for (int64_t at = 0, next; at < n; at = next) {
        const bpe_added *a = bpe_added_at(t, s + at, n - at, normalized);
        int64_t from = at, to;
        to = next = a ? at + a->length : at + 1;
        if (!a || (a->single_word && !bpe_stands_alone(s, n, at, next))) continue;
        while (a->lstrip && from > done && bpe_before_is(s, from, BPE_SPACES))
            from = bpe_before(s, from);
        if (a->lstrip && from < done) from = done;
        if (a->rstrip && next > spaces)
            spaces = bpe_span(s, n, next, BPE_SPACES, n); /* each run once */
        if (a->rstrip) to = spaces;
        if (from >= to) continue;
        if (from > done) BPE_TRY(between(t, s + done, from - done));
        BPE_TRY(bpe_put_id(t->ctx, t->out, a->id));
        done = to;
    }
    return done < n ? between(t, s + done, n - done) : DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>encode

/* Text without added tokens: split and merge. */
static dlrn_status bpe_encode_words(bpe_tokenizer *t, const char *s, int64_t n) {
    return bpe_split(t, 0, s, n);
}

/* Text between added tokens of raw text: normalise, then cut again. */
static dlrn_status bpe_encode_raw(bpe_tokenizer *t, const char *s, int64_t n) {
    BPE_TRY(bpe_normalise(t, s, n));
    return bpe_cut_added(t, t->normal.bytes, t->normal.count, 1, bpe_encode_words);
}

BPE_API dlrn_status bpe_encode(bpe_tokenizer *t, const char *text, int64_t bytes, bpe_ids *out) {
    out->count = 0;
    out->ctx = t->ctx;
    t->out = out;
    return bpe_cut_added(t, text, bytes, 0, bpe_encode_raw);
}

BPE_API dlrn_status bpe_decode(bpe_tokenizer *t, const int32_t *ids, int64_t n, bpe_text *out) {
    out->count = 0;
    BPE_TRY(bpe_put(t->ctx, out, "", 0));
    for (int64_t i = 0; i < n; i++) {
        int64_t length = 0;
        const char *s = bpe_token_bytes(t, ids[i], &length);
        if (!s)
            return dlrn_fail(t->ctx, DLRN_ERR_ARGUMENT, "%s: no token has the id %d", t->path,
                             (int)ids[i]);
        BPE_TRY(bpe_put(t->ctx, out, s, length));
    }
    return DLRN_OK;
}

BPE_API int64_t bpe_vocab_size(const bpe_tokenizer *t) {
    return t->n_ids;
}

BPE_API int bpe_is_special(const bpe_tokenizer *t, int32_t id) {
    for (int64_t i = 0; i < t->n_added; i++)
        if (t->added[i].id == id) return t->added[i].special;
    return 0;
}

BPE_API const char *bpe_token_bytes(const bpe_tokenizer *t, int32_t id, int64_t *bytes) {
    if (id < 0 || id >= t->n_ids || !t->token[id]) return NULL;
    *bytes = t->token_length[id];
    return t->token[id];
}

BPE_API int32_t bpe_token_id(const bpe_tokenizer *t, const char *name) {
    int32_t id = bpe_vocab_id(t, name, (int64_t)strlen(name));
    for (int64_t k = 0; k < t->n_added && id < 0; k++)
        if (!strcmp(t->added[k].content->text, name)) id = t->added[k].id;
    return id;
}

/* ------------------------------------------------------------------------------------------ */
// >>load

static int bpe_is(const dlrn_json *j, dlrn_json_type type) {
    return j && j->type == type;
}

/* Quotes a text of the file for an error: short, whole characters, on one line. */
static void bpe_quote_text(char *out, int64_t room, const char *s, int64_t n) {
    int64_t k = 0, i = 0, length;
    for (uint32_t c; i < n; i += length) {
        length = bpe_char(s + i, n - i, &c);
        if (k + length + 4 > room) break;
        memcpy(out + k, s + i, (size_t)length);
        if (c < 32 || c == 127 || c >= BPE_RAW) out[k] = '?';
        k += length;
    }
    snprintf(out + k, (size_t)(room - k), "%s", i < n ? "..." : "");
}

/* What the file has, for an error. */
static const char *bpe_quote(const dlrn_json *j, char *out, int64_t room) {
    static const char *const kinds[] = {"null", "", "", "", "an array", "an object"};
    if (!j) return "nothing";
    if (j->type == DLRN_JSON_BOOL) return j->number != 0 ? "true" : "false";
    if (!j->text) return kinds[j->type];
    bpe_quote_text(out, room, j->text, j->text_len);
    return out;
}

/* Fails with: key, what is expected, what was found. */
static dlrn_status bpe_refuse(bpe_tokenizer *t, dlrn_status s, const char *key,
                              const char *expected, const dlrn_json *found) {
    char quoted[96];
    const char *mark = bpe_is(found, DLRN_JSON_STRING) ? "\"" : "";
    return dlrn_fail(t->ctx, s, "%s: %s: expected %s, found %s%s%s", t->path, key, expected, mark,
                     bpe_quote(found, quoted, sizeof quoted), mark);
}

static dlrn_status bpe_bad(bpe_tokenizer *t, const char *key, const char *expected,
                           const dlrn_json *found) {
    return bpe_refuse(t, DLRN_ERR_FORMAT, key, expected, found);
}

static dlrn_status bpe_unsupported(bpe_tokenizer *t, const char *key, const char *expected,
                                   const dlrn_json *found) {
    return bpe_refuse(t, DLRN_ERR_UNSUPPORTED, key, expected, found);
}

/* The same for an entry of the vocabulary. */
static dlrn_status bpe_bad_entry(bpe_tokenizer *t, const char *expected, const dlrn_json *entry) {
    char name[128] = "model.vocab.";
    int64_t at = (int64_t)strlen(name);
    bpe_quote_text(name + at, (int64_t)sizeof name - at, entry->key, entry->key_len);
    return bpe_bad(t, name, expected, entry);
}

/* Reads true or false; `otherwise` if the key is missing. */
static dlrn_status bpe_flag(bpe_tokenizer *t, const dlrn_json *object, const char *where,
                            const char *key, int otherwise, int *out) {
    char name[96];
    const dlrn_json *j = dlrn_json_get(object, key);
    *out = bpe_is(j, DLRN_JSON_BOOL) ? j->number != 0 : otherwise;
    snprintf(name, sizeof name, "%s.%s", where, key);
    return !j || j->type <= DLRN_JSON_BOOL ? DLRN_OK : bpe_bad(t, name, "true or false", j);
}

/* A number that may be an id of this file. */
static int bpe_good_id(const bpe_tokenizer *t, const dlrn_json *j) {
    return bpe_is(j, DLRN_JSON_NUMBER) && j->number >= 0 && j->number < (double)t->n_ids &&
           j->number == (double)(int32_t)j->number;
}

static int64_t bpe_table_mask(int64_t n) { /* half empty */
    int64_t size = 16;
    while (size < 2 * n) size *= 2;
    return size - 1;
}

/* ---- the vocabulary */

/* The largest id plus one. Ids may have gaps, but one number in the file must not decide how much
   memory is taken. */
static dlrn_status bpe_count_ids(bpe_tokenizer *t, const dlrn_json *vocab, const dlrn_json *added) {
    double most = -1, tokens = (double)vocab->count + (added ? (double)added->count : 0);
    for (const dlrn_json *j = vocab->first; j; j = j->next)
        if (j->number > most) most = j->number;
    for (const dlrn_json *j = added ? added->first : NULL; j; j = j->next) {
        double id = dlrn_json_number(j, "id", -1);
        if (id > most) most = id;
    }
    if (tokens == 0) return bpe_bad(t, "model.vocab", "tokens", NULL);
    if (!(most < 8 * tokens + 1024) || most >= INT32_MAX)
        return dlrn_fail(t->ctx, DLRN_ERR_FORMAT,
                         "%s: model.vocab: expected ids near the number of tokens, found %.17g",
                         t->path, most);
    t->n_ids = (int64_t)most + 1;
    return DLRN_OK;
}

/* Translates a token's text from the alphabet of bytes; copies it if it has other characters.
   Returns the number of bytes. */
static int64_t bpe_token_text(const char *s, int64_t n, const int *back, char *out) {
    int64_t count = 0;
    for (int64_t i = 0; i < n;) {
        uint32_t c;
        i += bpe_char(s + i, n - i, &c);
        if (c >= 512 || back[c] < 0) {
            memcpy(out, s, (size_t)n);
            return n;
        }
        out[count++] = (char)back[c];
    }
    return count;
}

/* Fills the hash table of the vocabulary and the bytes of each token. */
static dlrn_status bpe_load_vocab(bpe_tokenizer *t, const dlrn_json *vocab) {
    int back[512]; /* from an alphabet's code to its byte */
    int64_t bytes = 1;
    for (int c = 0; c < 512; c++) back[c] = -1;
    for (int b = 0; b < 256; b++) {
        t->byte_code[b] = bpe_byte_code(b);
        back[t->byte_code[b]] = b;
    }
    for (const dlrn_json *v = vocab->first; v; v = v->next) bytes += v->key_len + 1;
    t->slot_mask = bpe_table_mask(vocab->count);
    t->slots = (const dlrn_json **)dlrn_alloc(t->ctx, t->slot_mask + 1, sizeof *t->slots);
    t->token = (const char **)dlrn_alloc(t->ctx, t->n_ids, sizeof *t->token);
    t->token_length = (int64_t *)dlrn_alloc(t->ctx, t->n_ids, sizeof *t->token_length);
    t->token_bytes = (char *)dlrn_alloc(t->ctx, bytes, 1);
    if (!t->slots || !t->token || !t->token_length || !t->token_bytes) return DLRN_ERR_MEMORY;
    memset((void *)t->slots, 0, (size_t)(t->slot_mask + 1) * sizeof *t->slots);
    memset((void *)t->token, 0, (size_t)t->n_ids * sizeof *t->token);
    char *next = t->token_bytes;
    for (const dlrn_json *v = vocab->first; v; v = v->next) {
        if (!bpe_good_id(t, v)) return bpe_bad_entry(t, "an id", v);
        int32_t id = (int32_t)v->number;
        if (t->token[id]) return bpe_bad_entry(t, "an id of its own", v);
        *bpe_slot(t, v->key, v->key_len) = v;
        t->token[id] = next;
        t->token_length[id] = bpe_token_text(v->key, v->key_len, back, next);
        next += t->token_length[id];
        *next++ = 0;
    }
    return DLRN_OK;
}

/* ---- the model */

/* The two texts of "a b" or ["a", "b"]; 0: neither. */
static int bpe_merge_parts(const dlrn_json *m, const char **part, int64_t *length) {
    if (bpe_is(m, DLRN_JSON_STRING)) {
        const char *gap = (const char *)memchr(m->text, ' ', (size_t)m->text_len);
        if (!gap || memchr(gap + 1, ' ', (size_t)(m->text + m->text_len - gap - 1))) return 0;
        part[0] = m->text;
        part[1] = gap + 1;
        length[0] = gap - m->text;
        length[1] = m->text_len - length[0] - 1;
        return 1;
    }
    if (!bpe_is(m, DLRN_JSON_ARRAY) || m->count != 2) return 0;
    const dlrn_json *p = m->first;
    for (int k = 0; k < 2; k++, p = p->next) {
        if (p->type != DLRN_JSON_STRING) return 0;
        part[k] = p->text;
        length[k] = p->text_len;
    }
    return 1;
}

static dlrn_status bpe_bad_merge(bpe_tokenizer *t, int32_t rank, const char *expected,
                                 const dlrn_json *found) {
    char name[48];
    snprintf(name, sizeof name, "model.merges[%d]", (int)rank);
    return bpe_bad(t, name, expected, found);
}

/* Adds a merge; its rank is its place in the file. */
static dlrn_status bpe_load_merge(bpe_tokenizer *t, const dlrn_json *m, int32_t rank) {
    const char *part[2];
    int64_t length[2];
    char name[48];
    snprintf(name, sizeof name, "model.merges[%d]", (int)rank);
    if (!bpe_merge_parts(m, part, length))
        return bpe_bad(t, name, "two tokens, as \"a b\" or [\"a\", \"b\"]", m);
    t->word.count = 0;
    for (int k = 0; k < 2; k++) BPE_TRY(bpe_put(t->ctx, &t->word, part[k], length[k]));
    int32_t left = bpe_vocab_id(t, part[0], length[0]), right = bpe_vocab_id(t, part[1], length[1]);
    int32_t joined = bpe_vocab_id(t, t->word.bytes, t->word.count);
    if (left < 0 || right < 0 || joined < 0)
        return bpe_bad_merge(t, rank, "tokens of the vocabulary that join to one", m);
    bpe_merge entry = {left, right, joined, rank};
    *bpe_merge_slot(t, left, right) = entry; /* of the same pair twice, the last one counts */
    return DLRN_OK;
}

static dlrn_status bpe_load_merges(bpe_tokenizer *t, const dlrn_json *merges) {
    int32_t rank = 0;
    t->merge_mask = bpe_table_mask(merges->count);
    t->merges = (bpe_merge *)dlrn_alloc(t->ctx, t->merge_mask + 1, sizeof *t->merges);
    if (!t->merges) return DLRN_ERR_MEMORY;
    for (int64_t i = 0; i <= t->merge_mask; i++) t->merges[i].rank = -1;
    for (const dlrn_json *m = merges->first; m; m = m->next) BPE_TRY(bpe_load_merge(t, m, rank++));
    return DLRN_OK;
}

/* The token of each byte, and of bytes that have none. */
static dlrn_status bpe_load_bytes(bpe_tokenizer *t, const dlrn_json *model) {
    const dlrn_json *unknown = dlrn_json_get(model, "unk_token"),
                    *fallback = dlrn_json_get(model, "byte_fallback");
    int missing = 0;
    for (int b = 0; b < 256; b++) {
        char text[4];
        t->byte_id[b] = bpe_vocab_id(t, text, bpe_write_char(t->byte_code[b], text));
        missing += t->byte_id[b] < 0;
    }
    t->unknown =
        bpe_is(unknown, DLRN_JSON_STRING) ? bpe_vocab_id(t, unknown->text, unknown->text_len) : -1;
    if (missing && t->unknown < 0 && bpe_is(unknown, DLRN_JSON_STRING))
        return bpe_bad(t, "model.unk_token", "a token of the vocabulary", unknown);
    if (missing && bpe_is(fallback, DLRN_JSON_BOOL) && fallback->number != 0)
        return bpe_unsupported(t, "model.byte_fallback", "false, or a token for each byte",
                               fallback);
    return DLRN_OK;
}

/* The part "model" of the file. Options that would change ids are refused if they are set. */
static dlrn_status bpe_load_model(bpe_tokenizer *t, const dlrn_json *model) {
    const dlrn_json *type = dlrn_json_get(model, "type"), *merges = dlrn_json_get(model, "merges");
    const dlrn_json *vocab = dlrn_json_get(model, "vocab"),
                    *dropout = dlrn_json_get(model, "dropout");
    static const char *const unset[] = {"model.continuing_subword_prefix",
                                        "model.end_of_word_suffix"};
    if (type && strcmp(dlrn_json_text(model, "type", ""), "BPE"))
        return bpe_unsupported(t, "model.type", "BPE", type);
    if (!bpe_is(merges, DLRN_JSON_ARRAY)) return bpe_bad(t, "model.merges", "an array", merges);
    for (int k = 0; k < 2; k++)
        if (*dlrn_json_text(t->json, unset[k], ""))
            return bpe_unsupported(t, unset[k], "none", dlrn_json_get(t->json, unset[k]));
    if (dropout && (dropout->type > DLRN_JSON_NUMBER || dropout->number != 0))
        return bpe_unsupported(t, "model.dropout", "null or 0", dropout);
    BPE_TRY(bpe_flag(t, model, "model", "ignore_merges", 0, &t->ignore_merges));
    BPE_TRY(bpe_flag(t, model, "model", "fuse_unk", 0, &t->fuse_unknown));
    BPE_TRY(bpe_load_vocab(t, vocab));
    BPE_TRY(bpe_load_bytes(t, model));
    return bpe_load_merges(t, merges);
}

/* ---- the normaliser */

/* Reads what Replace seeks and inserts, or Prepend inserts. */
static dlrn_status bpe_load_put(bpe_tokenizer *t, const dlrn_json *n, bpe_change *how) {
    how->put = dlrn_json_get(n, how->form == BPE_PREPEND ? "prepend" : "content");
    if (!bpe_is(how->put, DLRN_JSON_STRING) || how->put->text_len > BPE_MOST_PUT)
        return bpe_unsupported(t, "normalizer: what is put", "at most 64 bytes", how->put);
    if (how->form == BPE_PREPEND) return DLRN_OK;
    how->sought = dlrn_json_get(n, "pattern.String");
    if (!bpe_is(how->sought, DLRN_JSON_STRING) || how->sought->text_len == 0)
        return bpe_unsupported(t, "normalizer.pattern", "a String",
                               dlrn_json_get(n, "pattern.Regex"));
    return DLRN_OK;
}

/* How many bytes a change can make of one, at most. Worst cases: U+FDFA has 18 characters in NFKC,
   U+1D160 three in NFC. */
static double bpe_growth(const bpe_change *how) {
    if (how->form == BPE_NFKC || how->form == BPE_NFKD) return 11;
    if (how->form == BPE_NFC || how->form == BPE_NFD) return 3;
    if (how->form == BPE_LOWERCASE) return 1.5;
    if (how->form == BPE_STRIP) return 1;
    if (how->form == BPE_PREPEND) return 1 + (double)how->put->text_len;
    double replaced = (double)how->put->text_len / (double)how->sought->text_len;
    return replaced > 1 ? replaced : 1;
}

/* Adds a normaliser, or those of a sequence, to t->change. */
static dlrn_status bpe_load_normalizer(bpe_tokenizer *t, const dlrn_json *n) {
    static const char *const forms[] = {"NFC",       "NFD",   "NFKC",    "NFKD",
                                        "Lowercase", "Strip", "Prepend", "Replace"};
    const char *type = dlrn_json_text(n, "type", "none");
    bpe_change how = {BPE_NFC, 0, 0, NULL, NULL};
    int form = 0;
    if (!n || n->type == DLRN_JSON_NULL) return DLRN_OK;
    if (!strcmp(type, "Sequence")) {
        const dlrn_json *list = dlrn_json_get(n, "normalizers");
        if (!bpe_is(list, DLRN_JSON_ARRAY))
            return bpe_bad(t, "normalizer.normalizers", "an array", list);
        for (const dlrn_json *k = list->first; k; k = k->next) BPE_TRY(bpe_load_normalizer(t, k));
        return DLRN_OK;
    }
    while (form < 8 && strcmp(type, forms[form])) form++;
    if (form == 8)
        return bpe_unsupported(
            t, "normalizer.type",
            "NFC, NFD, NFKC, NFKD, Lowercase, Strip, Prepend, Replace, or a Sequence of them",
            dlrn_json_get(n, "type"));
    how.form = (bpe_form)form;
    if (how.form == BPE_STRIP) BPE_TRY(bpe_flag(t, n, "normalizer", "strip_left", 1, &how.left));
    if (how.form == BPE_STRIP) BPE_TRY(bpe_flag(t, n, "normalizer", "strip_right", 1, &how.right));
    if (how.form >= BPE_PREPEND) BPE_TRY(bpe_load_put(t, n, &how));
    if (t->n_changes == BPE_MOST_STEPS)
        return bpe_unsupported(t, "normalizer", "at most 8 of them", n);
    t->growth *= bpe_growth(&how);
    if (t->growth > BPE_MOST_GROWTH)
        return bpe_unsupported(t, "normalizer",
                               "changes that make a text at most 1024 times as long", n);
    t->change[t->n_changes++] = how;
    return DLRN_OK;
}

/* ---- the pre-tokeniser */

/* Recognises a Split's regular expression by its text. The known ones match everything, so
   isolating the matches and removing the rest is the same. */
static dlrn_status bpe_load_split(bpe_tokenizer *t, const dlrn_json *p, bpe_pattern *out) {
#define BPE_TAIL "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define BPE_HEAD "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}"
    static const struct {
        const char *text;
        bpe_pattern pattern;
    } known[] = {
        {"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
         BPE_GPT2},
        {BPE_HEAD "{1,3}" BPE_TAIL, BPE_LLAMA3},
        {BPE_HEAD BPE_TAIL, BPE_QWEN2},
    };
#undef BPE_TAIL
#undef BPE_HEAD
    const char *text = dlrn_json_text(p, "pattern.Regex", "none"),
               *how = dlrn_json_text(p, "behavior", "none");
    int invert;
    BPE_TRY(bpe_flag(t, p, "pre_tokenizer", "invert", 0, &invert));
    if (strcmp(how, "Isolated") && !(invert && !strcmp(how, "Removed")))
        return bpe_unsupported(t, "pre_tokenizer.behavior", "Isolated, or Removed and inverted",
                               dlrn_json_get(p, "behavior"));
    for (int64_t k = 0; k < BPE_COUNT(known); k++)
        if (!strcmp(text, known[k].text)) {
            *out = known[k].pattern;
            return DLRN_OK;
        }
    const dlrn_json *pattern = dlrn_json_get(p, "pattern");
    return bpe_unsupported(t, "pre_tokenizer.pattern", "the Regex of GPT-2, Llama 3 or Qwen 2",
                           pattern && pattern->first ? pattern->first : pattern);
}

/* One step by its type. *bytes: it is ByteLevel. */
static dlrn_status bpe_load_pattern(bpe_tokenizer *t, const dlrn_json *p, bpe_step *step,
                                    int *bytes) {
    const char *type = dlrn_json_text(p, "type", "none");
    int flag;
    if (!strcmp(type, "ByteLevel")) {
        BPE_TRY(bpe_flag(t, p, "pre_tokenizer", "use_regex", 1, &flag));
        BPE_TRY(bpe_flag(t, p, "pre_tokenizer", "add_prefix_space", 1, &step->prefix_space));
        step->pattern = flag ? BPE_GPT2 : BPE_WHOLE;
        *bytes = 1;
    } else if (!strcmp(type, "Split")) {
        BPE_TRY(bpe_load_split(t, p, &step->pattern));
    } else if (!strcmp(type, "Digits")) {
        BPE_TRY(bpe_flag(t, p, "pre_tokenizer", "individual_digits", 0, &flag));
        step->pattern = flag ? BPE_EACH_DIGIT : BPE_DIGITS;
    } else if (!strcmp(type, "Punctuation")) {
        if (strcmp(dlrn_json_text(p, "behavior", "Isolated"), "Isolated"))
            return bpe_unsupported(t, "pre_tokenizer.behavior", "Isolated",
                                   dlrn_json_get(p, "behavior"));
        step->pattern = BPE_PUNCTUATION;
    } else if (!strcmp(type, "Whitespace")) {
        step->pattern = BPE_WORDS;
    } else if (!strcmp(type, "WhitespaceSplit")) {
        step->pattern = BPE_WHITESPACE_SPLIT;
    } else {
        return bpe_unsupported(
            t, "pre_tokenizer.type",
            "ByteLevel, Split, Digits, Punctuation, Whitespace, WhitespaceSplit or a Sequence",
            dlrn_json_get(p, "type"));
    }
    return DLRN_OK;
}

/* Adds one step. ByteLevel is required and must be last: later steps would see its alphabet instead
   of the text. */
static dlrn_status bpe_load_step(bpe_tokenizer *t, const dlrn_json *p, int *bytes) {
    const char *type = dlrn_json_text(p, "type", "none");
    bpe_step step = {BPE_WHOLE, 0};
    if (!p || p->type == DLRN_JSON_NULL) return DLRN_OK;
    if (!strcmp(type, "Sequence")) {
        const dlrn_json *list = dlrn_json_get(p, "pretokenizers");
        if (!bpe_is(list, DLRN_JSON_ARRAY))
            return bpe_bad(t, "pre_tokenizer.pretokenizers", "an array", list);
        for (const dlrn_json *k = list->first; k; k = k->next) BPE_TRY(bpe_load_step(t, k, bytes));
        return DLRN_OK;
    }
    if (*bytes)
        return bpe_unsupported(t, "pre_tokenizer", "ByteLevel as the last step",
                               dlrn_json_get(p, "type"));
    BPE_TRY(bpe_load_pattern(t, p, &step, bytes));
    if (t->n_steps == BPE_MOST_STEPS)
        return bpe_unsupported(t, "pre_tokenizer", "at most 8 steps", p);
    t->step[t->n_steps++] = step;
    return DLRN_OK;
}

/* ---- added tokens */

/* An added token's text and id. If the vocabulary has the token, too, the ids must agree; otherwise
   the id must be free. */
static dlrn_status bpe_load_added_id(bpe_tokenizer *t, const dlrn_json *j, bpe_added *a,
                                     const char *where) {
    const dlrn_json *id = dlrn_json_get(j, "id");
    char name[64];
    a->content = dlrn_json_get(j, "content");
    snprintf(name, sizeof name, "%s.content", where);
    if (!bpe_is(a->content, DLRN_JSON_STRING) || a->content->text_len == 0 ||
        a->content->text_len > BPE_MOST_ADDED)
        return bpe_bad(t, name, "a string of 1 to 1024 bytes", a->content);
    snprintf(name, sizeof name, "%s.id", where);
    if (!bpe_good_id(t, id)) return bpe_bad(t, name, "an id", id);
    a->id = (int32_t)id->number;
    int32_t known = bpe_vocab_id(t, a->content->text, a->content->text_len);
    if (known >= 0 && known != a->id)
        return bpe_bad(t, name, "the id that the vocabulary has for this token", id);
    if (known < 0 && t->token[a->id]) return bpe_bad(t, name, "an id that no other token has", id);
    t->token[a->id] = a->content->text;
    t->token_length[a->id] = a->content->text_len;
    return DLRN_OK;
}

static dlrn_status bpe_load_added_one(bpe_tokenizer *t, const dlrn_json *j, bpe_added *a) {
    int special;
    char where[48];
    snprintf(where, sizeof where, "added_tokens[%lld]", (long long)a->place);
    BPE_TRY(bpe_load_added_id(t, j, a, where));
    BPE_TRY(bpe_flag(t, j, where, "special", 0, &special));
    a->special = special;
    BPE_TRY(bpe_flag(t, j, where, "normalized", !special, &a->normalized));
    BPE_TRY(bpe_flag(t, j, where, "lstrip", 0, &a->lstrip));
    BPE_TRY(bpe_flag(t, j, where, "rstrip", 0, &a->rstrip));
    BPE_TRY(bpe_flag(t, j, where, "single_word", 0, &a->single_word));
    const char *text = a->content->text;
    a->length = a->content->text_len;
    if (a->normalized) {
        BPE_TRY(bpe_normalise(t, text, a->length));
        text = t->normal.bytes;
        a->length = t->normal.count;
    }
    a->sought = (char *)dlrn_alloc(t->ctx, a->length + 1, 1);
    if (!a->sought) return DLRN_ERR_MEMORY;
    memcpy(a->sought, text, (size_t)a->length);
    if (a->length > 0) t->begins[a->normalized][(unsigned char)text[0]] = 1;
    return DLRN_OK;
}

/* Tokens of raw text first; then by bytes; then by place in the file. */
static int bpe_added_order(const void *left, const void *right) {
    const bpe_added *a = (const bpe_added *)left, *b = (const bpe_added *)right;
    if (a->normalized != b->normalized) return a->normalized - b->normalized;
    int64_t shared = a->length < b->length ? a->length : b->length;
    int order = memcmp(a->sought, b->sought, (size_t)shared);
    if (order != 0) return order;
    if (a->length != b->length) return a->length < b->length ? -1 : 1;
    return a->place < b->place ? -1 : a->place > b->place;
}

/* All added tokens, in the order in which bpe_added_at searches them. */
static dlrn_status bpe_load_added(bpe_tokenizer *t, const dlrn_json *list) {
    if (!list || list->count == 0) return DLRN_OK;
    t->added = (bpe_added *)dlrn_alloc(t->ctx, list->count, sizeof *t->added);
    if (!t->added) return DLRN_ERR_MEMORY;
    memset(t->added, 0, (size_t)list->count * sizeof *t->added);
    for (const dlrn_json *j = list->first; j; j = j->next) {
        bpe_added *a = &t->added[t->n_added];
        a->place = t->n_added++; /* counted first: bpe_destroy frees what it has */
        BPE_TRY(bpe_load_added_one(t, j, a));
        t->n_raw += !a->normalized;
    }
    qsort(t->added, (size_t)t->n_added, sizeof *t->added, bpe_added_order);
    return DLRN_OK;
}

/* ---- the file */

/* Ids are counted first: the tables need their number. */
static dlrn_status bpe_load_json(bpe_tokenizer *t) {
    const dlrn_json *model = dlrn_json_get(t->json, "model"),
                    *vocab = dlrn_json_get(model, "vocab");
    const dlrn_json *added = dlrn_json_get(t->json, "added_tokens"),
                    *pre = dlrn_json_get(t->json, "pre_tokenizer");
    int bytes = 0;
    if (!bpe_is(model, DLRN_JSON_OBJECT)) return bpe_bad(t, "model", "an object", model);
    if (!bpe_is(vocab, DLRN_JSON_OBJECT)) return bpe_bad(t, "model.vocab", "an object", vocab);
    if (added && added->type == DLRN_JSON_NULL) added = NULL;
    if (added && added->type != DLRN_JSON_ARRAY)
        return bpe_bad(t, "added_tokens", "an array", added);
    BPE_TRY(bpe_count_ids(t, vocab, added));
    BPE_TRY(bpe_load_model(t, model));
    BPE_TRY(bpe_load_normalizer(t, dlrn_json_get(t->json, "normalizer")));
    BPE_TRY(bpe_load_step(t, pre, &bytes));
    if (!bytes) return bpe_unsupported(t, "pre_tokenizer", "a ByteLevel step", pre);
    return bpe_load_added(t, added);
}

BPE_API dlrn_status bpe_load(dlrn_context *ctx, const char *path, bpe_tokenizer **out) {
    char *text = NULL;
    size_t size = 0;
    *out = NULL;
    bpe_tokenizer *t = (bpe_tokenizer *)dlrn_alloc(ctx, 1, sizeof *t);
    if (!t) return DLRN_ERR_MEMORY;
    memset(t, 0, sizeof *t);
    t->ctx = ctx;
    t->growth = 1;
    snprintf(t->path, sizeof t->path, "%s%s", path,
             dlrn_file_exists(ctx, path) == 2 ? "/tokenizer.json" : "");
    dlrn_status s = dlrn_file_read(ctx, t->path, &text, &size);
    if (s == DLRN_OK) s = dlrn_json_parse(ctx, text, size, t->path, &t->json);
    dlrn_free(ctx, text);
    if (s == DLRN_OK) s = bpe_load_json(t);
    if (s != DLRN_OK) {
        bpe_destroy(t);
        return s;
    }
    *out = t;
    return DLRN_OK;
}

/* Also accepts a tokenizer that was loaded in part. */
BPE_API void bpe_destroy(bpe_tokenizer *t) {
    if (!t) return;
    for (int64_t k = 0; k < t->n_added; k++) dlrn_free(t->ctx, t->added[k].sought);
    for (int i = 0; i < BPE_MOST_STEPS; i++) bpe_text_free(&t->prefixed[i]);
    bpe_text_free(&t->normal);
    bpe_text_free(&t->changed);
    bpe_text_free(&t->word);
    void *blocks[] = {(void *)t->slots, (void *)t->token, t->token_length,
                      t->token_bytes,   t->merges,        t->added,
                      t->codes,         t->symbols,       t->heap};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) dlrn_free(t->ctx, blocks[i]);
    dlrn_free(t->ctx, t->json);
    dlrn_free(t->ctx, t);
}
#endif /* BPE_IMPLEMENTATION */
