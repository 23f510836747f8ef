/* bpe.h - byte-level BPE tokenizers from Hugging Face's tokenizer.json - part of dictlearn.h's examples, MIT licence

   Do this in one file, after dictlearn.h:

       #define BPE_IMPLEMENTATION
       #include "bpe.h"

   A text goes through five stages, the ones that the file describes: added tokens are cut out of the raw text; what is
   between them is normalised (NFC); added tokens that are looked for in normalised text are cut out; the rest is split
   into words (GPT-2's pattern and its kin); the bytes of each word are merged, the pair of lowest rank first.
   Ids equal those of the `tokenizers` library's encode(text, add_special_tokens=False).

   Text should be UTF-8. A byte that is not is a character of its own that is neither letter, number nor space.

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

/* Results that grow. Zero-initialise; each call replaces what they hold; bytes[count] is 0. */
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
/* No special tokens are put around the text; those that stand in it are recognised. */
BPE_API dlrn_status bpe_encode(bpe_tokenizer *t, const char *text, int64_t bytes, bpe_ids *out);
/* The bytes that the ids stand for, special tokens included; not UTF-8 if a character was cut. */
BPE_API dlrn_status bpe_decode(bpe_tokenizer *t, const int32_t *ids, int64_t n, bpe_text *out);

BPE_API int64_t bpe_vocab_size(const bpe_tokenizer *t);                 /* largest id + 1 */
BPE_API int32_t bpe_token_id(const bpe_tokenizer *t, const char *name); /* as the file writes it; -1: none */
/* The bytes a token stands for, closed with 0; NULL: no such id. */
BPE_API const char *bpe_token_bytes(const bpe_tokenizer *t, int32_t id, int64_t *bytes);

#endif /* BPE_H */

#ifdef BPE_IMPLEMENTATION
#undef BPE_IMPLEMENTATION

#include <stdio.h>
#include <string.h>
#include "unicode_tables.h"

#define BPE_TRY(call)                                                                                                  \
    do {                                                                                                               \
        dlrn_status bpe_s = (call);                                                                                    \
        if (bpe_s != DLRN_OK) return bpe_s;                                                                            \
    } while (0)

/* One way of cutting a text into pieces. */
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
enum { BPE_MOST_STEPS = 8 };

typedef struct bpe_added {
    char *content; /* as it is looked for: normalised if need be */
    int64_t length;
    int32_t id;
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
    dlrn_json *json;         /* keys of `vocab` are borrowed from here */
    const dlrn_json **slots; /* [slot_mask + 1] hash table of the vocabulary by its text */
    int64_t slot_mask, n_ids;
    const char **token; /* [n_ids] bytes of each id, NULL: unused */
    int64_t *token_length;
    char *token_bytes; /* where token points to */
    bpe_merge *merges; /* [merge_mask + 1] */
    int64_t merge_mask;
    int32_t byte_id[256];   /* the token of a single byte, -1: none */
    int32_t unknown;        /* id, or -1: bytes without a token are dropped, as HF does */
    int normalise, compose; /* NFC: both; NFD: the first */
    int ignore_merges;
    bpe_step step[BPE_MOST_STEPS];
    int n_steps;
    bpe_added *added; /* longest first */
    int64_t n_added;
    char begins[256];    /* whether an added token begins with this byte */
    uint32_t (*pair)[3]; /* [n_pairs] first, second, composed; ascending */
    int64_t n_pairs;
    /* scratch of a call */
    bpe_text normal, prefixed[BPE_MOST_STEPS], word;
    uint32_t *codes;
    int64_t codes_cap, symbols_cap, heap_cap;
    bpe_symbol *symbols;
    bpe_candidate *heap;
    int64_t heap_size;
    bpe_ids *out;
};

/* Room for `need` elements in the block that the pointer at `slot` names; the first `used` are kept. */
static dlrn_status bpe_widen(dlrn_context *ctx, void *slot, int64_t *cap, int64_t used, int64_t need, size_t size) {
    void *old, *wide;
    if (need <= *cap) return DLRN_OK;
    int64_t room = need + need / 2 + 64;
    wide = dlrn_alloc(ctx, room, size);
    if (!wide) return DLRN_ERR_MEMORY;
    memcpy(&old, slot, sizeof old);
    if (used) memcpy(wide, old, (size_t)used * size);
    dlrn_free(ctx, old);
    memcpy(slot, &wide, sizeof wide);
    *cap = room;
    return DLRN_OK;
}

static dlrn_status bpe_put(dlrn_context *ctx, bpe_text *t, const char *bytes, int64_t n) {
    t->ctx = ctx;
    BPE_TRY(bpe_widen(ctx, &t->bytes, &t->capacity, t->count, t->count + n + 1, 1));
    if (n) memcpy(t->bytes + t->count, bytes, (size_t)n);
    t->count += n;
    t->bytes[t->count] = 0;
    return DLRN_OK;
}

static dlrn_status bpe_put_id(dlrn_context *ctx, bpe_ids *v, int32_t id) {
    v->ctx = ctx;
    BPE_TRY(bpe_widen(ctx, &v->id, &v->capacity, v->count, v->count + 1, sizeof *v->id));
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

/* Length of the character at text [0, n), n > 0; its code. Overlong forms and surrogates are not characters. */
static int64_t bpe_char(const char *text, int64_t n, uint32_t *code) {
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *s = (const unsigned char *)text;
    int64_t length = s[0] < 0x80 ? 1 : s[0] >= 0xF0 && s[0] < 0xF5 ? 4 : s[0] >= 0xE0 ? 3 : s[0] >= 0xC2 ? 2 : 0;
    uint32_t c = length == 1 ? s[0] : length == 2 ? s[0] & 0x1Fu : length == 3 ? s[0] & 0x0Fu : s[0] & 0x07u;
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

/* The value of the run that holds c: table of first << bits | value, ascending. */
static uint32_t bpe_run(const uint32_t *table, size_t n, int bits, uint32_t c) {
    size_t low = 0, high = n;
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        if (table[middle] >> bits <= c)
            low = middle;
        else
            high = middle;
    }
    return table[low] & (((uint32_t)1 << bits) - 1);
}

static int bpe_class(uint32_t c) {
    if (c >= BPE_RAW) return UNICODE_OTHER;
    return (int)bpe_run(unicode_classes, sizeof unicode_classes / sizeof *unicode_classes, 4, c);
}

static int bpe_is_number(int class_) {
    return class_ == UNICODE_DIGIT || class_ == UNICODE_LETTER_NUMBER || class_ == UNICODE_OTHER_NUMBER;
}

static int bpe_is_word(int class_) { /* \w */
    return class_ == UNICODE_LETTER || class_ == UNICODE_DIGIT || class_ == UNICODE_LETTER_NUMBER ||
           class_ == UNICODE_MARK || class_ == UNICODE_CONNECTOR;
}

static int bpe_is_mark(uint32_t c, int class_) { /* punctuation, ASCII's symbols included */
    return class_ == UNICODE_PUNCTUATION || class_ == UNICODE_CONNECTOR ||
           (c > 32 && c < 127 && class_ != UNICODE_LETTER && class_ != UNICODE_DIGIT);
}

/* ------------------------------------------------------------------------------------------ */
// >>normalise

enum { BPE_S = 0xAC00, BPE_L = 0x1100, BPE_V = 0x1161, BPE_T = 0x11A7, BPE_LS = 19, BPE_VS = 21, BPE_TS = 28 };

static uint32_t bpe_combining(uint32_t c) {
    if (c >= BPE_RAW) return 0;
    return bpe_run(unicode_combining, sizeof unicode_combining / sizeof *unicode_combining, 8, c);
}

static const unicode_parts *bpe_parts(uint32_t c) {
    size_t low = 0, high = sizeof unicode_decompositions / sizeof *unicode_decompositions;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (unicode_decompositions[middle].whole == c) return &unicode_decompositions[middle];
        if (unicode_decompositions[middle].whole < c)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

/* Appends c's canonical decomposition (at most four codes) to codes [*n]. */
static void bpe_decompose(uint32_t c, uint32_t *codes, int64_t *n) {
    if (c >= BPE_S && c < BPE_S + BPE_LS * BPE_VS * BPE_TS) {
        uint32_t s = c - BPE_S;
        codes[(*n)++] = BPE_L + s / (BPE_VS * BPE_TS);
        codes[(*n)++] = BPE_V + s % (BPE_VS * BPE_TS) / BPE_TS;
        if (s % BPE_TS) codes[(*n)++] = BPE_T + s % BPE_TS;
        return;
    }
    const unicode_parts *p = c < 0xC0 ? NULL : bpe_parts(c);
    if (!p) {
        codes[(*n)++] = c;
        return;
    }
    bpe_decompose(p->first, codes, n);
    if (p->second) bpe_decompose(p->second, codes, n);
}

/* Marks between starters into the order of their classes; stable. */
static void bpe_reorder(uint32_t *codes, int64_t n) {
    for (int64_t i = 1; i < n; i++) {
        uint32_t c = codes[i], order = bpe_combining(c);
        int64_t at = i;
        for (; order && at > 0 && bpe_combining(codes[at - 1]) > order; at--) codes[at] = codes[at - 1];
        codes[at] = c;
    }
}

/* What first and second compose to, or 0. */
static uint32_t bpe_composed(const bpe_tokenizer *t, uint32_t first, uint32_t second) {
    if (first >= BPE_L && first < BPE_L + BPE_LS && second >= BPE_V && second < BPE_V + BPE_VS)
        return BPE_S + ((first - BPE_L) * BPE_VS + (second - BPE_V)) * BPE_TS;
    if (first >= BPE_S && first < BPE_S + BPE_LS * BPE_VS * BPE_TS && (first - BPE_S) % BPE_TS == 0 && second > BPE_T &&
        second < BPE_T + BPE_TS)
        return first + (second - BPE_T);
    int64_t low = 0, high = t->n_pairs;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        const uint32_t *p = t->pair[middle];
        if (p[0] == first && p[1] == second) return p[2];
        if (p[0] < first || (p[0] == first && p[1] < second))
            low = middle + 1;
        else
            high = middle;
    }
    return 0;
}

/* Canonical composition in place; returns the new length. */
static int64_t bpe_compose(const bpe_tokenizer *t, uint32_t *codes, int64_t n) {
    int64_t starter = -1, out = 0;
    uint32_t last = 0; /* combining class of what stands between the starter and here */
    for (int64_t i = 0; i < n; i++) {
        uint32_t order = bpe_combining(codes[i]);
        int blocked = starter < 0 || (out - 1 > starter && (last >= order || last == 0));
        uint32_t joined = blocked ? 0 : bpe_composed(t, codes[starter], codes[i]);
        if (joined) {
            codes[starter] = joined;
            continue;
        }
        if (order == 0) starter = out;
        last = order;
        codes[out++] = codes[i];
    }
    return out;
}

/* text to t->normal. ASCII needs nothing. */
static dlrn_status bpe_normalise(bpe_tokenizer *t, const char *text, int64_t n) {
    int64_t i = 0, count = 0;
    t->normal.count = 0;
    while (i < n && !(text[i] & 0x80)) i++;
    if (!t->normalise || i == n) return bpe_put(t->ctx, &t->normal, text, n);
    BPE_TRY(bpe_widen(t->ctx, &t->codes, &t->codes_cap, 0, 4 * n, sizeof *t->codes));
    for (i = 0; i < n;) {
        uint32_t c;
        i += bpe_char(text + i, n - i, &c);
        bpe_decompose(c, t->codes, &count);
    }
    bpe_reorder(t->codes, count);
    if (t->compose) count = bpe_compose(t, t->codes, count);
    for (i = 0; i < count; i++) {
        char utf8[4];
        BPE_TRY(bpe_put(t->ctx, &t->normal, utf8, bpe_write_char(t->codes[i], utf8)));
    }
    return DLRN_OK;
}

/* The pairs that compose, in order: a heap sort of the table's entries that do. */
static int bpe_pair_less(const uint32_t *a, const uint32_t *b) {
    return a[0] != b[0] ? a[0] < b[0] : a[1] < b[1];
}

static dlrn_status bpe_make_pairs(bpe_tokenizer *t) {
    const int64_t n = (int64_t)(sizeof unicode_decompositions / sizeof *unicode_decompositions);
    t->pair = (uint32_t(*)[3])dlrn_alloc(t->ctx, n, sizeof *t->pair);
    if (!t->pair) return DLRN_ERR_MEMORY;
    for (int64_t i = 0; i < n; i++) { /* the heap grows, largest on top */
        const unicode_parts *p = &unicode_decompositions[i];
        uint32_t entry[3] = {p->first, p->second, p->whole};
        int64_t at = t->n_pairs;
        if (!p->composes) continue;
        for (t->n_pairs++; at > 0 && bpe_pair_less(t->pair[(at - 1) / 2], entry); at = (at - 1) / 2)
            memcpy(t->pair[at], t->pair[(at - 1) / 2], sizeof entry);
        memcpy(t->pair[at], entry, sizeof entry);
    }
    for (int64_t end = t->n_pairs - 1; end > 0; end--) { /* and shrinks from the back */
        uint32_t entry[3];
        int64_t at = 0;
        memcpy(entry, t->pair[end], sizeof entry);
        memcpy(t->pair[end], t->pair[0], sizeof entry);
        for (int64_t child = 1; child < end; child = 2 * at + 1) {
            child += child + 1 < end && bpe_pair_less(t->pair[child], t->pair[child + 1]);
            if (!bpe_pair_less(entry, t->pair[child])) break;
            memcpy(t->pair[at], t->pair[child], sizeof entry);
            at = child;
        }
        memcpy(t->pair[at], entry, sizeof entry);
    }
    return DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>split
/* Each pattern is a function that measures the piece at the start of a text; *drop: it is between the pieces. */

typedef struct bpe_cursor { /* a character, and where the next one begins */
    uint32_t code;
    int class_;
    int64_t next;
} bpe_cursor;

/* The character at `at`; past the end: class -1. */
static bpe_cursor bpe_at(const char *s, int64_t n, int64_t at) {
    bpe_cursor c = {0, -1, at};
    if (at >= n) return c;
    c.next = at + bpe_char(s + at, n - at, &c.code);
    c.class_ = bpe_class(c.code);
    return c;
}

typedef int (*bpe_test)(uint32_t code, int class_);

static int bpe_letter(uint32_t code, int class_) {
    (void)code;
    return class_ == UNICODE_LETTER;
}
static int bpe_number(uint32_t code, int class_) {
    (void)code;
    return bpe_is_number(class_);
}
static int bpe_space(uint32_t code, int class_) {
    (void)code;
    return class_ == UNICODE_SPACE;
}
static int bpe_neither(uint32_t code, int class_) { /* [^\s\p{L}\p{N}] */
    (void)code;
    return class_ >= 0 && class_ != UNICODE_LETTER && class_ != UNICODE_SPACE && !bpe_is_number(class_);
}
static int bpe_word(uint32_t code, int class_) {
    (void)code;
    return bpe_is_word(class_);
}
static int bpe_symbol_char(uint32_t code, int class_) { /* [^\w\s] */
    (void)code;
    return class_ >= 0 && class_ != UNICODE_SPACE && !bpe_is_word(class_);
}
static int bpe_not_space(uint32_t code, int class_) {
    (void)code;
    return class_ >= 0 && class_ != UNICODE_SPACE;
}
static int bpe_line_end(uint32_t code, int class_) {
    (void)class_;
    return code == '\r' || code == '\n';
}
static int bpe_plain(uint32_t code, int class_) { /* \P{N} */
    (void)code;
    return class_ >= 0 && !bpe_is_number(class_);
}
static int bpe_unmarked(uint32_t code, int class_) {
    return class_ >= 0 && !bpe_is_mark(code, class_);
}

/* The end of the run of up to `most` characters from `at` that pass. */
static int64_t bpe_span(const char *s, int64_t n, int64_t at, bpe_test test, int64_t most) {
    for (int64_t k = 0; k < most; k++) {
        bpe_cursor c = bpe_at(s, n, at);
        if (c.class_ < 0 || !test(c.code, c.class_)) break;
        at = c.next;
    }
    return at;
}

/* 's 't 're 've 'm 'll 'd; 0: none of them. */
static int64_t bpe_contraction(const char *s, int64_t n, int any_case) {
    static const char *const ends[] = {"s", "t", "re", "ve", "m", "ll", "d"};
    if (n < 2 || s[0] != '\'') return 0;
    for (size_t e = 0; e < sizeof ends / sizeof *ends; e++) {
        int64_t k = 0, length = (int64_t)strlen(ends[e]);
        while (k < length && k + 1 < n && ((any_case ? s[k + 1] | 32 : s[k + 1]) == ends[e][k])) k++;
        if (k == length) return 1 + length;
    }
    return 0;
}

/* \s+(?!\S) or \s+ at s, which begins with a space. */
static int64_t bpe_space_piece(const char *s, int64_t n) {
    int64_t end = bpe_span(s, n, 0, bpe_space, n), last = end;
    if (end == n) return end;
    do last--; /* back over one character: the space that the next word takes */
    while (last > 0 && (s[last] & 0xC0) == 0x80);
    return last > 0 ? last : end;
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static int64_t bpe_piece_gpt2(const char *s, int64_t n) {
    int64_t short_form = bpe_contraction(s, n, 0), from = s[0] == ' ';
    if (short_form) return short_form;
    static const bpe_test kinds[3] = {bpe_letter, bpe_number, bpe_neither};
    for (int k = 0; k < 3; k++) {
        int64_t end = bpe_span(s, n, from, kinds[k], n);
        if (end > from) return end;
    }
    return bpe_space_piece(s, n);
}

/* (?i:'s|...)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ */
static int64_t bpe_piece_llama3(const char *s, int64_t n, int64_t digits) {
    int64_t short_form = bpe_contraction(s, n, 1), from = 0, end;
    if (short_form) return short_form;
    bpe_cursor first = bpe_at(s, n, 0);
    if (!bpe_line_end(first.code, first.class_) && first.class_ != UNICODE_LETTER && !bpe_is_number(first.class_))
        from = first.next;
    end = bpe_span(s, n, from, bpe_letter, n);
    if (end > from) return end;
    end = bpe_span(s, n, 0, bpe_number, digits);
    if (end > 0) return end;
    from = s[0] == ' ';
    end = bpe_span(s, n, from, bpe_neither, n);
    if (end > from) return bpe_span(s, n, end, bpe_line_end, n);
    end = bpe_span(s, n, 0, bpe_space, n);
    while (end > 0 && !bpe_line_end((unsigned char)s[end - 1], 0)) end--;
    return end > 0 ? end : bpe_space_piece(s, n);
}

/* The first run that passes `in`, or else the first that passes `out`. */
static int64_t bpe_piece_of(const char *s, int64_t n, bpe_test in, int64_t most, bpe_test out, int *is_in) {
    int64_t end = bpe_span(s, n, 0, in, most);
    *is_in = end > 0;
    return end > 0 ? end : bpe_span(s, n, 0, out, n);
}

static int64_t bpe_piece(bpe_pattern pattern, const char *s, int64_t n, int *drop) {
    int in = 0;
    int64_t length;
    *drop = 0;
    switch (pattern) {
    case BPE_GPT2: return bpe_piece_gpt2(s, n);
    case BPE_LLAMA3: return bpe_piece_llama3(s, n, 3);
    case BPE_QWEN2: return bpe_piece_llama3(s, n, 1);
    case BPE_DIGITS: return bpe_piece_of(s, n, bpe_number, n, bpe_plain, &in);
    case BPE_EACH_DIGIT: return bpe_piece_of(s, n, bpe_number, 1, bpe_plain, &in);
    case BPE_PUNCTUATION: length = bpe_span(s, n, 0, bpe_unmarked, n); return length ? length : bpe_at(s, n, 0).next;
    case BPE_WORDS:
        length = bpe_piece_of(s, n, bpe_word, n, bpe_symbol_char, &in);
        if (length) return length;
        *drop = 1;
        return bpe_span(s, n, 0, bpe_space, n);
    case BPE_WHITESPACE_SPLIT:
        length = bpe_piece_of(s, n, bpe_space, n, bpe_not_space, &in);
        *drop = in;
        return length;
    case BPE_WHOLE: break;
    }
    return n;
}

/* ------------------------------------------------------------------------------------------ */
// >>merge

static uint64_t bpe_hash(uint64_t a, uint64_t b) {
    uint64_t h = (a * 0x9E3779B97F4A7C15u) ^ (b + 0x7F4A7C159E3779B9u);
    h ^= h >> 32;
    h *= 0xD6E8FEB86659FD93u;
    return h ^ h >> 32;
}

/* The slot of this pair: its merge, or an empty one. */
static bpe_merge *bpe_merge_slot(const bpe_tokenizer *t, int32_t left, int32_t right) {
    uint64_t at = bpe_hash((uint64_t)left, (uint64_t)right);
    for (;; at++) {
        bpe_merge *m = &t->merges[at & (uint64_t)t->merge_mask];
        if (m->rank < 0 || (m->left == left && m->right == right)) return m;
    }
}

static int bpe_sooner(bpe_candidate a, bpe_candidate b) {
    return a.rank != b.rank ? a.rank < b.rank : a.at < b.at;
}

/* A pair that may merge joins the heap: least rank on top, of equals the leftmost. bpe_merge_word made room. */
static void bpe_push(bpe_tokenizer *t, int32_t at) {
    int32_t after = t->symbols[at].after;
    if (after < 0) return;
    const bpe_merge *m = bpe_merge_slot(t, t->symbols[at].id, t->symbols[after].id);
    if (m->rank < 0) return;
    bpe_candidate c = {m->rank, at};
    int64_t i = t->heap_size++;
    for (; i > 0 && bpe_sooner(c, t->heap[(i - 1) / 2]); i = (i - 1) / 2) t->heap[i] = t->heap[(i - 1) / 2];
    t->heap[i] = c;
}

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

/* The candidate's pair becomes one symbol, if it is still what it was when it was pushed. */
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

/* The bytes of a word as tokens. A word is its bytes' tokens, merged until no pair has a rank. */
static dlrn_status bpe_merge_word(bpe_tokenizer *t, const char *word, int64_t n) {
    int32_t count = 0;
    if (n > INT32_MAX / 4) return dlrn_fail(t->ctx, DLRN_ERR_VALUE, "%s: a word of %lld bytes", t->path, (long long)n);
    BPE_TRY(bpe_widen(t->ctx, &t->symbols, &t->symbols_cap, 0, n, sizeof *t->symbols));
    BPE_TRY(bpe_widen(t->ctx, &t->heap, &t->heap_cap, 0, 3 * n, sizeof *t->heap)); /* a merge pushes two at most */
    for (int64_t i = 0; i < n; i++) {
        int32_t id = t->byte_id[(unsigned char)word[i]];
        if (id < 0) id = t->unknown;
        if (id < 0) continue;
        bpe_symbol s = {id, count - 1, count + 1};
        t->symbols[count++] = s;
    }
    if (count == 0) return DLRN_OK;
    t->symbols[count - 1].after = -1;
    t->heap_size = 0;
    for (int32_t i = 0; i < count; i++) bpe_push(t, i);
    while (t->heap_size > 0) bpe_join(t, bpe_pop(t));
    for (int32_t i = 0; i >= 0; i = t->symbols[i].after) BPE_TRY(bpe_put_id(t->ctx, t->out, t->symbols[i].id));
    return DLRN_OK;
}

/* GPT-2's alphabet of bytes: printable ones stand for themselves, the others are the codes from 256 on. */
static uint32_t bpe_byte_code(int b) {
    uint32_t moved = 256;
    if ((b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174) return (uint32_t)b;
    for (int k = 0; k < b; k++) moved += !((k >= 33 && k <= 126) || (k >= 161 && k <= 172) || k >= 174);
    return moved;
}

static uint64_t bpe_hash_text(const char *s, int64_t n) {
    uint64_t h = 0xCBF29CE484222325u; /* FNV-1a */
    for (int64_t i = 0; i < n; i++) h = (h ^ (unsigned char)s[i]) * 0x100000001B3u;
    return h ^ h >> 29;
}

/* The slot of this text in the vocabulary: its entry, or an empty one. */
static const dlrn_json **bpe_slot(const bpe_tokenizer *t, const char *s, int64_t n) {
    for (uint64_t at = bpe_hash_text(s, n);; at++) {
        const dlrn_json **slot = &t->slots[at & (uint64_t)t->slot_mask];
        if (!*slot || ((*slot)->key_len == n && !memcmp((*slot)->key, s, (size_t)n))) return slot;
    }
}

static int32_t bpe_vocab_id(const bpe_tokenizer *t, const char *s, int64_t n) {
    const dlrn_json *entry = *bpe_slot(t, s, n);
    return entry ? (int32_t)entry->number : -1;
}

static dlrn_status bpe_word_ids(bpe_tokenizer *t, const char *word, int64_t n) {
    if (t->ignore_merges) { /* a word that is a token is that token */
        t->word.count = 0;
        for (int64_t i = 0; i < n; i++) {
            char utf8[4];
            BPE_TRY(bpe_put(t->ctx, &t->word, utf8, bpe_write_char(bpe_byte_code((unsigned char)word[i]), utf8)));
        }
        int32_t id = n ? bpe_vocab_id(t, t->word.bytes, t->word.count) : -1;
        if (id >= 0) return bpe_put_id(t->ctx, t->out, id);
    }
    return bpe_merge_word(t, word, n);
}

/* The text from step i on. */
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

static int64_t bpe_before(const char *s, int64_t at) { /* where the character before `at` begins */
    do at--;
    while (at > 0 && (s[at] & 0xC0) == 0x80);
    return at;
}

static int bpe_stands_alone(const char *s, int64_t n, int64_t from, int64_t to) {
    if (from > 0 && bpe_is_word(bpe_at(s, n, bpe_before(s, from)).class_)) return 0;
    return to == n || !bpe_is_word(bpe_at(s, n, to).class_);
}

/* The longest added token of this kind at `at`, or NULL: they are sorted by length. */
static const bpe_added *bpe_added_at(const bpe_tokenizer *t, const char *s, int64_t n, int64_t at, int normalized) {
    if (!t->begins[(unsigned char)s[at]]) return NULL;
    for (int64_t k = 0; k < t->n_added; k++) {
        const bpe_added *a = &t->added[k];
        if (a->normalized == normalized && a->content[0] == s[at] && a->length <= n - at &&
            !memcmp(a->content, s + at, (size_t)a->length))
            return a;
    }
    return NULL;
}

typedef dlrn_status (*bpe_between)(bpe_tokenizer *t, const char *s, int64_t n);

/* Added tokens to the output, what lies between them to `between`. */
static dlrn_status bpe_cut_added(bpe_tokenizer *t, const char *s, int64_t n, int normalized, bpe_between between) {
    int64_t done = 0;
    for (int64_t at = 0; at < n;) {
        const bpe_added *a = bpe_added_at(t, s, n, at, normalized);
        int64_t from = at, to = a ? at + a->length : at + 1;
        at = to;
        if (!a || (a->single_word && !bpe_stands_alone(s, n, from, to))) continue;
        while (a->lstrip && from > done && bpe_at(s, n, bpe_before(s, from)).class_ == UNICODE_SPACE)
            from = bpe_before(s, from);
        if (a->rstrip) to = bpe_span(s, n, to, bpe_space, n);
        if (from < done) from = done;
        if (from > done) BPE_TRY(between(t, s + done, from - done));
        BPE_TRY(bpe_put_id(t->ctx, t->out, a->id));
        done = to;
        at = to;
    }
    return done < n ? between(t, s + done, n - done) : DLRN_OK;
}

/* ------------------------------------------------------------------------------------------ */
// >>encode

static dlrn_status bpe_encode_words(bpe_tokenizer *t, const char *s, int64_t n) {
    return bpe_split(t, 0, s, n);
}

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
        if (!s) return dlrn_fail(t->ctx, DLRN_ERR_ARGUMENT, "%s: no token has the id %d", t->path, (int)ids[i]);
        BPE_TRY(bpe_put(t->ctx, out, s, length));
    }
    return DLRN_OK;
}

BPE_API int64_t bpe_vocab_size(const bpe_tokenizer *t) {
    return t->n_ids;
}

BPE_API const char *bpe_token_bytes(const bpe_tokenizer *t, int32_t id, int64_t *bytes) {
    if (id < 0 || id >= t->n_ids || !t->token[id]) return NULL;
    *bytes = t->token_length[id];
    return t->token[id];
}

BPE_API int32_t bpe_token_id(const bpe_tokenizer *t, const char *name) {
    int32_t id = bpe_vocab_id(t, name, (int64_t)strlen(name));
    for (int64_t k = 0; k < t->n_added && id < 0; k++)
        if (!strcmp(t->added[k].content, name)) id = t->added[k].id;
    return id;
}

/* ------------------------------------------------------------------------------------------ */
// >>load

static dlrn_status bpe_bad(bpe_tokenizer *t, const char *key, const char *expected, const char *found) {
    return dlrn_fail(t->ctx, DLRN_ERR_FORMAT, "%s: %s: expected %s, found %s", t->path, key, expected, found);
}

static dlrn_status bpe_unsupported(bpe_tokenizer *t, const char *key, const char *expected, const char *found) {
    return dlrn_fail(t->ctx, DLRN_ERR_UNSUPPORTED, "%s: %s: expected %s, found %s", t->path, key, expected, found);
}

static int bpe_is(const dlrn_json *j, dlrn_json_type type) {
    return j && j->type == type;
}

/* A number that may be an id of this file: ids may have gaps, but memory must not follow from one number. */
static int bpe_good_id(const bpe_tokenizer *t, const dlrn_json *j) {
    (void)t;
    return bpe_is(j, DLRN_JSON_NUMBER) && j->number >= 0 && j->number < (double)t->n_ids &&
           j->number == (double)(int32_t)j->number;
}

static int64_t bpe_table_mask(int64_t n) { /* half empty */
    int64_t size = 16;
    while (size < 2 * n) size *= 2;
    return size - 1;
}

static dlrn_status bpe_load_vocab(bpe_tokenizer *t, const dlrn_json *vocab) {
    char text[32];
    t->slot_mask = bpe_table_mask(vocab->count);
    t->slots = (const dlrn_json **)dlrn_alloc(t->ctx, t->slot_mask + 1, sizeof *t->slots);
    if (!t->slots) return DLRN_ERR_MEMORY;
    memset(t->slots, 0, (size_t)(t->slot_mask + 1) * sizeof *t->slots);
    for (const dlrn_json *v = vocab->first; v; v = v->next) {
        if (!bpe_good_id(t, v)) return bpe_bad(t, "model.vocab", "ids from 0 to about the number of tokens", v->key);
        *bpe_slot(t, v->key, v->key_len) = v;
    }
    for (int b = 0; b < 256; b++) {
        int64_t n = bpe_write_char(bpe_byte_code(b), text);
        t->byte_id[b] = bpe_vocab_id(t, text, n);
    }
    return DLRN_OK;
}

/* "a b", or ["a", "b"]. */
static dlrn_status bpe_load_merge(bpe_tokenizer *t, const dlrn_json *m, int32_t rank) {
    const char *part[2] = {NULL, NULL};
    int64_t length[2] = {0, 0};
    if (bpe_is(m, DLRN_JSON_STRING)) {
        const char *gap = (const char *)memchr(m->text, ' ', (size_t)m->text_len);
        part[0] = m->text;
        length[0] = gap ? gap - m->text : 0;
        part[1] = gap ? gap + 1 : NULL;
        length[1] = m->text_len - length[0] - 1;
    } else if (bpe_is(m, DLRN_JSON_ARRAY) && m->count == 2 && bpe_is(m->first, DLRN_JSON_STRING) &&
               bpe_is(m->first->next, DLRN_JSON_STRING)) {
        for (int k = 0; k < 2; k++) {
            const dlrn_json *p = k ? m->first->next : m->first;
            part[k] = p->text;
            length[k] = p->text_len;
        }
    }
    if (!part[1]) return bpe_bad(t, "model.merges", "two tokens, as \"a b\" or [\"a\", \"b\"]", "something else");
    t->word.count = 0;
    BPE_TRY(bpe_put(t->ctx, &t->word, part[0], length[0]));
    BPE_TRY(bpe_put(t->ctx, &t->word, part[1], length[1]));
    int32_t left = bpe_vocab_id(t, part[0], length[0]), right = bpe_vocab_id(t, part[1], length[1]);
    int32_t joined = bpe_vocab_id(t, t->word.bytes, t->word.count);
    if (left < 0 || right < 0 || joined < 0)
        return bpe_bad(t, "model.merges", "tokens of the vocabulary that join to one", t->word.bytes);
    bpe_merge *slot = bpe_merge_slot(t, left, right), entry = {left, right, joined, rank};
    if (slot->rank < 0) *slot = entry;
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

static dlrn_status bpe_load_model(bpe_tokenizer *t, const dlrn_json *model) {
    const dlrn_json *vocab = dlrn_json_get(model, "vocab"), *merges = dlrn_json_get(model, "merges");
    static const char *const unset[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const char *type = dlrn_json_text(model, "type", "BPE"), *unknown = dlrn_json_text(model, "unk_token", NULL);
    if (strcmp(type, "BPE")) return bpe_unsupported(t, "model.type", "BPE", type);
    if (!bpe_is(vocab, DLRN_JSON_OBJECT)) return bpe_bad(t, "model.vocab", "an object", "none");
    if (!bpe_is(merges, DLRN_JSON_ARRAY)) return bpe_bad(t, "model.merges", "an array", "none");
    for (int k = 0; k < 2; k++)
        if (*dlrn_json_text(model, unset[k], ""))
            return bpe_unsupported(t, unset[k], "none", dlrn_json_text(model, unset[k], ""));
    if (dlrn_json_number(model, "byte_fallback", 0) != 0) return bpe_unsupported(t, "byte_fallback", "false", "true");
    t->ignore_merges = dlrn_json_number(model, "ignore_merges", 0) != 0;
    BPE_TRY(bpe_load_vocab(t, vocab));
    t->unknown = unknown ? bpe_vocab_id(t, unknown, (int64_t)strlen(unknown)) : -1;
    return bpe_load_merges(t, merges);
}

static dlrn_status bpe_load_normalizer(bpe_tokenizer *t, const dlrn_json *n) {
    if (!n || n->type == DLRN_JSON_NULL) return DLRN_OK;
    const char *type = dlrn_json_text(n, "type", "none");
    if (!strcmp(type, "Sequence")) {
        const dlrn_json *list = dlrn_json_get(n, "normalizers");
        for (const dlrn_json *k = list ? list->first : NULL; k; k = k->next) BPE_TRY(bpe_load_normalizer(t, k));
        return DLRN_OK;
    }
    if (strcmp(type, "NFC") && strcmp(type, "NFD"))
        return bpe_unsupported(t, "normalizer", "NFC, NFD, a Sequence of them, or null", type);
    t->normalise = 1;
    t->compose = !strcmp(type, "NFC");
    return t->pair ? DLRN_OK : bpe_make_pairs(t);
}

/* A Split's regular expression, told by its text. */
static dlrn_status bpe_load_split(bpe_tokenizer *t, const dlrn_json *p, bpe_pattern *out) {
#define BPE_TAIL "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define BPE_HEAD "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}"
    static const struct {
        const char *text;
        bpe_pattern pattern;
    } known[] = {
        {"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+", BPE_GPT2},
        {BPE_HEAD "{1,3}" BPE_TAIL, BPE_LLAMA3},
        {BPE_HEAD BPE_TAIL, BPE_QWEN2},
    };
#undef BPE_TAIL
#undef BPE_HEAD
    const char *text = dlrn_json_text(p, "pattern.Regex", "none"), *how = dlrn_json_text(p, "behavior", "none");
    if (strcmp(how, "Isolated")) return bpe_unsupported(t, "pre_tokenizer.behavior", "Isolated", how);
    for (size_t k = 0; k < sizeof known / sizeof *known; k++)
        if (!strcmp(text, known[k].text)) {
            *out = known[k].pattern;
            return DLRN_OK;
        }
    return bpe_unsupported(t, "pre_tokenizer.pattern", "the pattern of GPT-2, Llama 3 or Qwen 2", text);
}

static dlrn_status bpe_load_step(bpe_tokenizer *t, const dlrn_json *p, int *bytes) {
    const char *type = dlrn_json_text(p, "type", "none");
    bpe_step step = {BPE_WHOLE, 0};
    if (!strcmp(type, "Sequence")) {
        const dlrn_json *list = dlrn_json_get(p, "pretokenizers");
        for (const dlrn_json *k = list ? list->first : NULL; k; k = k->next) BPE_TRY(bpe_load_step(t, k, bytes));
        return DLRN_OK;
    }
    if (!strcmp(type, "ByteLevel")) {
        step.pattern = dlrn_json_number(p, "use_regex", 1) != 0 ? BPE_GPT2 : BPE_WHOLE;
        step.prefix_space = dlrn_json_number(p, "add_prefix_space", 1) != 0;
        *bytes = 1;
    } else if (!strcmp(type, "Split")) {
        BPE_TRY(bpe_load_split(t, p, &step.pattern));
    } else if (!strcmp(type, "Digits")) {
        step.pattern = dlrn_json_number(p, "individual_digits", 0) != 0 ? BPE_EACH_DIGIT : BPE_DIGITS;
    } else if (!strcmp(type, "Punctuation")) {
        step.pattern = BPE_PUNCTUATION;
    } else if (!strcmp(type, "Whitespace")) {
        step.pattern = BPE_WORDS;
    } else if (!strcmp(type, "WhitespaceSplit")) {
        step.pattern = BPE_WHITESPACE_SPLIT;
    } else {
        return bpe_unsupported(t, "pre_tokenizer", "ByteLevel, Split, Digits, Punctuation, Whitespace or a Sequence",
                               type);
    }
    if (t->n_steps == BPE_MOST_STEPS) return bpe_unsupported(t, "pre_tokenizer", "at most 8 steps", "more");
    t->step[t->n_steps++] = step;
    return DLRN_OK;
}

static dlrn_status bpe_load_added(bpe_tokenizer *t, const dlrn_json *list) {
    int64_t n = list ? list->count : 0;
    if (n == 0) return DLRN_OK;
    t->added = (bpe_added *)dlrn_alloc(t->ctx, n, sizeof *t->added);
    if (!t->added) return DLRN_ERR_MEMORY;
    memset(t->added, 0, (size_t)n * sizeof *t->added);
    for (const dlrn_json *j = list->first; j; j = j->next) {
        const dlrn_json *content = dlrn_json_get(j, "content"), *id = dlrn_json_get(j, "id");
        if (!bpe_is(content, DLRN_JSON_STRING) || content->text_len == 0 || !bpe_good_id(t, id))
            return bpe_bad(t, "added_tokens", "a content and an id within the vocabulary", "neither or another");
        bpe_added a = {NULL, content->text_len, (int32_t)id->number, 0, 0, 0, 0};
        a.lstrip = dlrn_json_number(j, "lstrip", 0) != 0;
        a.rstrip = dlrn_json_number(j, "rstrip", 0) != 0;
        a.single_word = dlrn_json_number(j, "single_word", 0) != 0;
        a.normalized = dlrn_json_number(j, "normalized", 1) != 0;
        const char *text = content->text;
        if (a.normalized) {
            BPE_TRY(bpe_normalise(t, content->text, content->text_len));
            text = t->normal.bytes;
            a.length = t->normal.count;
        }
        a.content = (char *)dlrn_alloc(t->ctx, a.length + 1, 1);
        if (!a.content) return DLRN_ERR_MEMORY;
        memcpy(a.content, text, (size_t)a.length + 1);
        t->begins[(unsigned char)text[0]] = 1;
        int64_t at = t->n_added++;
        for (; at > 0 && t->added[at - 1].length < a.length; at--) t->added[at] = t->added[at - 1];
        t->added[at] = a;
    }
    return DLRN_OK;
}

/* Appends the bytes that a token's text stands for: of characters outside the bytes' alphabet, their own. */
static void bpe_add_bytes(bpe_text *pool, const char *s, int64_t n, const unsigned char *back, int raw) {
    for (int64_t i = 0; i < n;) {
        uint32_t c;
        int64_t length = bpe_char(s + i, n - i, &c);
        if (!raw && c < 512 && (back[c] || c == 256))
            pool->bytes[pool->count++] = (char)back[c];
        else
            for (int64_t k = 0; k < length; k++) pool->bytes[pool->count++] = s[i + k];
        i += length;
    }
    pool->bytes[pool->count++] = 0;
}

static dlrn_status bpe_set_token(bpe_tokenizer *t, int32_t id, bpe_text *pool, const char *s, int64_t n,
                                 const unsigned char *back) {
    int64_t from = pool->count;
    BPE_TRY(bpe_widen(t->ctx, &pool->bytes, &pool->capacity, pool->count, pool->count + n + 1, 1));
    bpe_add_bytes(pool, s, n, back, back == NULL);
    t->token[id] = (const char *)(intptr_t)(from + 1); /* an offset until the pool is whole */
    t->token_length[id] = pool->count - from - 1;
    return DLRN_OK;
}

/* The bytes of every id; an id that two texts claim is an error, unless an added token repeats its vocabulary entry. */
static dlrn_status bpe_load_tokens(bpe_tokenizer *t, const dlrn_json *vocab) {
    unsigned char back[512] = {0}; /* from an alphabet's code to its byte */
    bpe_text pool;
    dlrn_status s = DLRN_OK;
    memset(&pool, 0, sizeof pool);
    for (int b = 0; b < 256; b++) back[bpe_byte_code(b)] = (unsigned char)b;
    t->token = (const char **)dlrn_alloc(t->ctx, t->n_ids, sizeof *t->token);
    t->token_length = (int64_t *)dlrn_alloc(t->ctx, t->n_ids, sizeof *t->token_length);
    if (!t->token || !t->token_length) return DLRN_ERR_MEMORY;
    memset(t->token, 0, (size_t)t->n_ids * sizeof *t->token);
    for (const dlrn_json *v = vocab->first; v && s == DLRN_OK; v = v->next) {
        if (t->token[(int32_t)v->number]) s = bpe_bad(t, "model.vocab", "an id of its own for each token", v->key);
        if (s == DLRN_OK) s = bpe_set_token(t, (int32_t)v->number, &pool, v->key, v->key_len, back);
    }
    for (int64_t k = 0; k < t->n_added && s == DLRN_OK; k++)
        s = bpe_set_token(t, t->added[k].id, &pool, t->added[k].content, t->added[k].length, NULL);
    t->token_bytes = pool.bytes;
    for (int64_t id = 0; id < t->n_ids; id++)
        if (t->token[id]) t->token[id] = pool.bytes + ((intptr_t)t->token[id] - 1);
    return s;
}

/* One more than the largest id, held against the number of tokens. */
static dlrn_status bpe_count_ids(bpe_tokenizer *t, const dlrn_json *vocab, const dlrn_json *added) {
    double most = -1, allowed = 0;
    for (int k = 0; k < 2; k++) {
        const dlrn_json *list = k ? added : vocab;
        allowed += list ? 8.0 * (double)list->count + 1024 : 0;
        for (const dlrn_json *j = list ? list->first : NULL; j; j = j->next) {
            double id = k ? dlrn_json_number(j, "id", -1) : j->number;
            most = id > most ? id : most;
        }
    }
    if (!(most < allowed)) return bpe_bad(t, "model.vocab", "ids not far beyond the number of tokens", "a larger one");
    t->n_ids = (int64_t)most + 1;
    return t->n_ids > 0 ? DLRN_OK : bpe_bad(t, "model.vocab", "tokens", "none");
}

static dlrn_status bpe_load_json(bpe_tokenizer *t) {
    const dlrn_json *model = dlrn_json_get(t->json, "model"), *vocab = dlrn_json_get(model, "vocab");
    const dlrn_json *added = dlrn_json_get(t->json, "added_tokens"), *pre = dlrn_json_get(t->json, "pre_tokenizer");
    int bytes = 0;
    if (!bpe_is(vocab, DLRN_JSON_OBJECT)) return bpe_bad(t, "model.vocab", "an object", "none");
    if (added && added->type != DLRN_JSON_ARRAY) added = NULL;
    BPE_TRY(bpe_count_ids(t, vocab, added));
    BPE_TRY(bpe_load_model(t, model));
    BPE_TRY(bpe_load_normalizer(t, dlrn_json_get(t->json, "normalizer")));
    BPE_TRY(bpe_load_step(t, pre, &bytes));
    if (!bytes) return bpe_unsupported(t, "pre_tokenizer", "a ByteLevel step", "none");
    BPE_TRY(bpe_load_added(t, added));
    return bpe_load_tokens(t, vocab);
}

BPE_API dlrn_status bpe_load(dlrn_context *ctx, const char *path, bpe_tokenizer **out) {
    char *text = NULL;
    size_t size = 0;
    *out = NULL;
    bpe_tokenizer *t = (bpe_tokenizer *)dlrn_alloc(ctx, 1, sizeof *t);
    if (!t) return DLRN_ERR_MEMORY;
    memset(t, 0, sizeof *t);
    t->ctx = ctx;
    snprintf(t->path, sizeof t->path, "%s%s", path, dlrn_file_exists(path) == 2 ? "/tokenizer.json" : "");
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

BPE_API void bpe_destroy(bpe_tokenizer *t) {
    if (!t) return;
    for (int64_t k = 0; k < t->n_added; k++) dlrn_free(t->ctx, t->added[k].content);
    for (int i = 0; i < BPE_MOST_STEPS; i++) bpe_text_free(&t->prefixed[i]);
    bpe_text_free(&t->normal);
    bpe_text_free(&t->word);
    void *blocks[] = {(void *)t->slots, (void *)t->token, t->token_length, t->token_bytes, t->merges,
                      t->added,         t->pair,          t->codes,        t->symbols,     t->heap};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) dlrn_free(t->ctx, blocks[i]);
    dlrn_json_free(t->ctx, t->json);
    dlrn_free(t->ctx, t);
}
#endif /* BPE_IMPLEMENTATION */
