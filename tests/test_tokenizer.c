/* The tokenizer: vectors made elsewhere, round trips, each switch of tokenizer.json by itself, and
   files that lie. tests/tokenizer_check.py compares many more strings with Hugging Face's
   tokenizers. */
#include "dictlearn.h"

#define BPE_IMPLEMENTATION
#include "lm/bpe.h"
#include "tests/test.h"

#define TINY "examples/data/tiny-neox"
#define BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}"
#define NO_PATTERN "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}"

static dlrn_context *ctx;
static bpe_tokenizer *tok; /* of the test that runs */
static bpe_ids ids;
static bpe_text text;

static void close_tokenizer(void) {
    bpe_destroy(tok);
    tok = NULL;
}

static void open_file(const char *path) {
    if (!ctx) CHECK(dlrn_context_create(NULL, &ctx) == DLRN_OK);
    close_tokenizer();
    CHECK_OK(ctx, bpe_load(ctx, path, &tok));
}

/* What a small tokenizer.json says beside its 256 tokens of bytes, whose ids are the bytes; NULL:
   nothing. */
typedef struct form {
    const char *vocab, *merges; /* more of the vocabulary, from id 256 on; the merges */
    const char *model;          /* more keys of the model, each with a comma behind it */
    const char *pre;            /* pre_tokenizer; NULL: GPT-2's                        */
    const char *more;           /* more keys of the file, each with a comma behind it  */
} form;

static const char *or_else(const char *s, const char *otherwise) {
    return s ? s : otherwise;
}

static char *write_form(const char *name, const form *f) {
    char *path = tmp_path(name);
    FILE *out = fopen(path, "wb");
    CHECK(out != NULL);
    fprintf(out, "{%s\"pre_tokenizer\":%s,", or_else(f->more, ""), or_else(f->pre, BYTE_LEVEL));
    fprintf(out, "\"model\":{\"type\":\"BPE\",%s\"vocab\":{", or_else(f->model, ""));
    for (int b = 0; b < 256; b++) {
        char utf8[4];
        int n = (int)bpe_write_char(bpe_byte_code(b), utf8);
        fprintf(out, "%s\"%s%.*s\":%d", b ? "," : "", b == '"' || b == '\\' ? "\\" : "", n, utf8,
                b);
    }
    fprintf(out, "%s%s},\"merges\":[%s]}}", f->vocab ? "," : "", or_else(f->vocab, ""),
            or_else(f->merges, ""));
    CHECK(fclose(out) == 0);
    return path;
}

static void open_form(const char *vocab, const char *merges, const char *model, const char *pre,
                      const char *more) {
    form f = {vocab, merges, model, pre, more};
    open_file(write_form("tokenizer.json", &f));
}

/* The tokens of a text with bars between them, an unprintable byte as its number: "the|
   |c|195|169". */
static const char *tokens(const char *s, int64_t n) {
    static char shown[4096];
    size_t at = 0;
    CHECK_OK(ctx, bpe_encode(tok, s, n, &ids));
    shown[0] = 0;
    for (int64_t i = 0; i < ids.count; i++) {
        int64_t length;
        const char *bytes = bpe_token_bytes(tok, ids.id[i], &length);
        CHECK(bytes != NULL && at + (size_t)length + 8 < sizeof shown);
        if (i) shown[at++] = '|';
        if (length == 1 && ((unsigned char)bytes[0] < 32 || (unsigned char)bytes[0] > 126))
            at += (size_t)snprintf(shown + at, 4, "%d", (unsigned char)bytes[0]);
        else
            memcpy(shown + at, bytes, (size_t)length), at += (size_t)length;
        shown[at] = 0;
    }
    return shown;
}

static void check_tokens(const char *s, const char *expected) {
    const char *found = tokens(s, (int64_t)strlen(s));
    CHECK_MSG(!strcmp(found, expected), "\"%s\" became %s, expected %s", s, found, expected);
}

static void check_round_trip(const char *s, int64_t n) {
    CHECK_OK(ctx, bpe_encode(tok, s, n, &ids));
    CHECK_OK(ctx, bpe_decode(tok, ids.id, ids.count, &text));
    CHECK_MSG(text.count == n && !memcmp(text.bytes, s, (size_t)n), "%.40s came back as %.40s", s,
              text.bytes);
    CHECK(text.bytes[n] == 0);
}

/* ---- files that others made */

/* llama.cpp's vectors: texts between lines of __ggml_vocab_test__, and a line of ids for each. */
TEST(vectors_of_the_20b_tokenizer) {
    static const char mark[] = "\n__ggml_vocab_test__\n";
    char *model = shared_data("tokenizer/20B_tokenizer.json"), *in = NULL, *out = NULL;
    size_t size;
    int n = 0;
    if (!model) SKIP("no ../shared/data/tokenizer");
    open_file(model);
    CHECK_OK(ctx,
             dlrn_file_read(ctx, shared_data("tokenizer/ggml-vocab-mpt.gguf.inp"), &in, &size));
    CHECK_OK(ctx,
             dlrn_file_read(ctx, shared_data("tokenizer/ggml-vocab-mpt.gguf.out"), &out, &size));
    char *expected = out;
    for (char *s = in, *end; (end = strstr(s, mark)) != NULL; s = end + strlen(mark), n++) {
        CHECK_OK(ctx, bpe_encode(tok, s, end - s, &ids));
        for (int64_t i = 0; i < ids.count; i++) {
            long id = strtol(expected, &expected, 10);
            CHECK_MSG(ids.id[i] == id, "text %d, token %d: %d, expected %ld", n, (int)i,
                      (int)ids.id[i], id);
        }
        CHECK_MSG(*expected == '\n', "text %d: %d tokens, expected more", n, (int)ids.count);
        expected++;
    }
    CHECK(n > 0 && *expected == 0);
    dlrn_free(ctx, in);
    dlrn_free(ctx, out);
    CHECK(bpe_vocab_size(tok) == 50277 && bpe_token_id(tok, "<|padding|>") == 1);
    close_tokenizer();
}

TEST(tiny_round_trips) {
    static const char *const texts[] = {"",
                                        " ",
                                        "Hello world!\n",
                                        "  two  spaces \t",
                                        "\xC3\xA4\xF0\x9F\xA6\x99",
                                        "cut \xF0\x9F",
                                        "\xFF\xFE\x80\xC0\xAF",
                                        "\xED\xA0\x80 surrogate"};
    char all[512];
    open_file(TINY);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        check_round_trip(texts[i], (int64_t)strlen(texts[i]));
    for (int i = 0; i < 512; i++) all[i] = (char)(i * 37 + i / 256);
    check_round_trip(all, 512);
    check_round_trip("a\0b", 3);
    CHECK_OK(ctx, bpe_encode(tok, "Hello", 5, &ids)); /* ids by Hugging Face's tokenizers */
    CHECK(ids.count == 3 && ids.id[0] == 40 && ids.id[1] == 506 && ids.id[2] == 79);
    CHECK_OK(ctx, bpe_encode(tok, "<|endoftext|>", 13, &ids));
    CHECK(ids.count == 1 && ids.id[0] == 0);
    close_tokenizer();
}

TEST(names_and_bytes_of_tokens) {
    int64_t n = 7;
    open_file(TINY "/tokenizer.json"); /* the file and its folder are the same */
    CHECK(bpe_vocab_size(tok) == 2048);
    CHECK(bpe_token_id(tok, "<|endoftext|>") == 0 && bpe_token_id(tok, "!") == 1 &&
          bpe_token_id(tok, "no such") == -1);
    CHECK(!strcmp(bpe_token_bytes(tok, bpe_token_id(tok, "\xC4\xA0t"), &n), " t") && n == 2);
    CHECK(bpe_token_bytes(tok, -1, &n) == NULL && bpe_token_bytes(tok, 2048, &n) == NULL);
    const int32_t beyond[] = {5, 2048};
    CHECK_STATUS(bpe_decode(tok, beyond, 2, &text), DLRN_ERR_ARGUMENT);
    CHECK_STR(dlrn_error(ctx), "tokenizer.json: no token has the id 2048");
    open_form("\"a b\":256,\"a\xC4\xA0\":257", NULL, NULL, NULL, NULL);
    CHECK(!strcmp(bpe_token_bytes(tok, 256, &n), "a b") &&
          n == 3); /* not of the bytes' alphabet: itself */
    CHECK(!strcmp(bpe_token_bytes(tok, 257, &n), "a ") && n == 2);
    close_tokenizer();
}

/* ---- the model */

static const char THE[] = "\"th\":256,\"he\":257,\"the\":258";

TEST(merges_in_both_forms) {
    static const char *const merges[] = {"\"t h\",\"h e\",\"th e\"",
                                         "[\"t\",\"h\"],[\"h\",\"e\"],[\"th\",\"e\"]"};
    for (int k = 0; k < 2; k++) {
        open_form(THE, merges[k], NULL, NULL, NULL);
        check_tokens("the he", "the| |he");
        check_tokens("thhe t", "th|he| |t");
    }
}

TEST(the_lowest_rank_merges_first) {
    open_form(THE, "\"h e\",\"t h\",\"th e\"", NULL, NULL, NULL);
    check_tokens("the", "t|he");
    open_form(THE, "\"t h\",\"h e\",\"th e\",\"t h\"", NULL, NULL,
              NULL); /* of the same twice the last one counts */
    check_tokens("the", "t|he");
    open_form("\"aa\":256,\"aaa\":257", "\"a a\",\"aa a\"", NULL, NULL,
              NULL); /* of equals the leftmost */
    check_tokens("aaa", "aaa");
    check_tokens("aaaa", "aa|aa");
    check_tokens("aaaaa", "aa|aaa");
}

TEST(ignored_merges) {
    open_form(THE, "\"h e\"", "\"ignore_merges\":true,", NULL, NULL);
    check_tokens("the", "the"); /* no merge leads there */
    check_tokens("then", "t|he|n");
    open_form(THE, "\"h e\"", "\"ignore_merges\":false,", NULL, NULL);
    check_tokens("the", "t|he");
}

/* A vocabulary of three bytes. */
static void open_abc(const char *model) {
    char *path = tmp_path("abc.json");
    FILE *out = fopen(path, "wb");
    CHECK(out != NULL);
    fprintf(out,
            "{\"pre_tokenizer\":" BYTE_LEVEL
            ",\"model\":{%s\"vocab\":{\"a\":0,\"b\":1,\"?\":2,\"ab\":3},"
            "\"merges\":[\"a b\"]}}",
            model);
    CHECK(fclose(out) == 0);
    open_file(path);
}

TEST(bytes_without_a_token) {
    open_abc("");
    check_tokens("axxb", "ab"); /* dropped, and the rest is together */
    check_tokens("xyz", "");
    open_abc("\"unk_token\":\"?\",");
    check_tokens("axxb", "a|?|?|b");
    open_abc("\"unk_token\":\"?\",\"fuse_unk\":true,");
    check_tokens("axxb", "a|?|b");
    check_tokens("xx xx", "?|?"); /* of one word only */
    check_tokens("x?x", "?|?|?");
}

/* ---- normalisers */

#define NORMALIZER(json) "\"normalizer\":" json ","

TEST(normal_forms) {
    static const char text_[] =
        "\xC3\xA9"
        "e\xCC\x81\xEF\xAC\x81"; /* e with its accent, apart and together; a ligature */
    static const struct {
        const char *json, *becomes;
    } cases[] = {
        {NORMALIZER("null"), "\xC3\xA9"
                             "e\xCC\x81\xEF\xAC\x81"},
        {NORMALIZER("{\"type\":\"NFC\"}"), "\xC3\xA9\xC3\xA9\xEF\xAC\x81"},
        {NORMALIZER("{\"type\":\"NFD\"}"), "e\xCC\x81"
                                           "e\xCC\x81\xEF\xAC\x81"},
        {NORMALIZER("{\"type\":\"NFKC\"}"), "\xC3\xA9\xC3\xA9"
                                            "fi"},
        {NORMALIZER("{\"type\":\"NFKD\"}"), "e\xCC\x81"
                                            "e\xCC\x81"
                                            "fi"},
        {NORMALIZER("{\"type\":\"Sequence\",\"normalizers\":[]}"), "\xC3\xA9"
                                                                   "e\xCC\x81\xEF\xAC\x81"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        open_form(NULL, NULL, NULL, NULL, cases[i].json);
        CHECK_OK(ctx, bpe_encode(tok, text_, (int64_t)strlen(text_), &ids));
        CHECK_OK(ctx, bpe_decode(tok, ids.id, ids.count, &text));
        CHECK_MSG(!strcmp(text.bytes, cases[i].becomes), "%s gave %s", cases[i].json, text.bytes);
    }
}

/* What the text is after the normaliser: every byte is a token. */
static void check_normal(const char *json, const char *s, const char *expected) {
    open_form(NULL, NULL, NULL, NULL, json);
    CHECK_OK(ctx, bpe_encode(tok, s, (int64_t)strlen(s), &ids));
    CHECK_OK(ctx, bpe_decode(tok, ids.id, ids.count, &text));
    CHECK_MSG(!strcmp(text.bytes, expected), "%s: \"%s\" became \"%s\"", json, s, text.bytes);
}

TEST(marks_in_their_order) {
    static const char nfc[] = NORMALIZER("{\"type\":\"NFC\"}"),
                      nfd[] = NORMALIZER("{\"type\":\"NFD\"}");
    check_normal(nfd, "\xC3\xA9", "e\xCC\x81");
    check_normal(nfd, "a\xCC\x81\xCC\xA3", "a\xCC\xA3\xCC\x81");    /* the lower class first */
    check_normal(nfd, "e\xCC\x93\xCC\x81", "e\xCC\x93\xCC\x81");    /* of one class as they were */
    check_normal(nfc, "e\xCC\x93\xCC\x81", "e\xCC\x93\xCC\x81");    /* the first is in the way */
    check_normal(nfc, "a\xCC\x81\xCC\xA3", "\xE1\xBA\xA1\xCC\x81"); /* here it is not */
    check_normal(nfc, "\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8",
                 "\xEA\xB0\x81"); /* Hangul, put together */
    check_normal(nfd, "\xEA\xB0\x81", "\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8"); /* and taken apart */
    check_normal(nfc, "\xE0\xA5\x98", "\xE0\xA4\x95\xE0\xA4\xBC"); /* never put together again */
}

TEST(other_normalisers) {
    check_normal(NORMALIZER("{\"type\":\"Lowercase\"}"), "ABz \xC3\x84\xC4\xB0\xCE\xA3",
                 "abz \xC3\xA4i\xCC\x87\xCF\x83");
    check_normal(NORMALIZER("{\"type\":\"Lowercase\"}"), "\xC4\x80\xC4\x81\xC4\x82",
                 "\xC4\x81\xC4\x81\xC4\x83");
    check_normal(NORMALIZER("{\"type\":\"Strip\"}"), "\xC2\xA0\n a b \t", "a b");
    check_normal(NORMALIZER("{\"type\":\"Strip\",\"strip_right\":false}"), " a ", "a ");
    check_normal(NORMALIZER("{\"type\":\"Strip\",\"strip_left\":false,\"strip_right\":true}"),
                 " a ", " a");
    check_normal(NORMALIZER("{\"type\":\"Strip\"}"), "  ", "");
    check_normal(NORMALIZER("{\"type\":\"Prepend\",\"prepend\":\"_\"}"), "a", "_a");
    check_normal(NORMALIZER("{\"type\":\"Prepend\",\"prepend\":\"_\"}"), "", "");
    check_normal(
        NORMALIZER("{\"type\":\"Replace\",\"pattern\":{\"String\":\"aa\"},\"content\":\"b\"}"),
        "aaaxa", "baxa");
    check_normal(NORMALIZER("{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Strip\"},{"
                            "\"type\":\"Lowercase\"}]}"),
                 " A", "a");
}

TEST(bytes_that_are_no_characters_stay) {
    check_normal(NORMALIZER("{\"type\":\"NFC\"}"),
                 "\xFF"
                 "e\xCC\x81\xCC",
                 "\xFF\xC3\xA9\xCC");
    check_normal(NORMALIZER("{\"type\":\"Lowercase\"}"), "A\xC3", "a\xC3");
    check_normal(NORMALIZER("{\"type\":\"Lowercase\"}"), "\xE0\x81\x81",
                 "\xE0\x81\x81"); /* A, spelt too long */
}

/* ---- pre-tokenisers: with ignore_merges, a piece that is a token shows whole */

static void check_split(const char *pre, const char *s, const char *expected) {
    static const char pieces[] =
        "\"ab\":256,\"\xC4\xA0"
        "ab\":257,\"12\":258,\"\xC4\xA0"
        "12\":259,\"123\":260,\"1234\":261,\"'s\":262,"
        "\"'S\":263,\"!!\":264,\"\xC4\xA0!!\":265,\"\xC4\xA0\xC4\xA0\":266,\"\xC4\x8A\xC4\x8A\":"
        "267,\"!!\xC4\x8A\":268,"
        "\"-ab\":269,\"\xC4\xA0\xC4\x8A\":270,\"ab12\":271,\"ab!!\":272,\"\xC4\xA0"
        "ab!!\":273";
    open_form(pieces, NULL, "\"ignore_merges\":true,", pre, NULL);
    check_tokens(s, expected);
}

#define GPT2_REGEX                                                                                 \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\\\p{L}+| ?\\\\p{N}+| "                                            \
    "?[^\\\\s\\\\p{L}\\\\p{N}]+|\\\\s+(?!\\\\S)|\\\\s+"
#define MODERN_REGEX(digits)                                                                       \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}" digits         \
    "| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"
#define SPLIT(regex, how) "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex "\"}," how "}"
#define CHAIN(step) "{\"type\":\"Sequence\",\"pretokenizers\":[" step "," NO_PATTERN "]}"
#define ISOLATED "\"behavior\":\"Isolated\",\"invert\":false"

TEST(patterns_of_words) {
    static const char gpt2[] = CHAIN(SPLIT(GPT2_REGEX, ISOLATED));
    static const char llama3[] = CHAIN(SPLIT(MODERN_REGEX("{1,3}"), ISOLATED));
    static const char inverted[] =
        CHAIN(SPLIT(MODERN_REGEX("{1,3}"), "\"behavior\":\"Removed\",\"invert\":true"));
    static const char qwen2[] = CHAIN(SPLIT(MODERN_REGEX(""), ISOLATED));
    static const char *const as_gpt2[] = {BYTE_LEVEL, gpt2};
    for (int k = 0; k < 2; k++) {
        check_split(as_gpt2[k], "ab ab12 12!!", "ab| ab|12| 12|!!");
        check_split(as_gpt2[k], "ab's'S", "ab|'s|'|S");
        check_split(as_gpt2[k], "ab   ab  ", "ab|  | ab|  ");
        check_split(as_gpt2[k], "1234-ab", "1234|-|ab");
        check_split(as_gpt2[k], "ab\n\nab \n!!", "ab|10|10|ab| |10|!!");
    }
    check_split(llama3, "ab's'S-ab", "ab|'s|'S|-ab");
    check_split(llama3,
                "'\xC5\xBF"
                "ab",
                "'|197|191|ab"); /* the long s, as after any apostrophe */
    check_split(llama3, "1234 12", "123|4| |12");
    check_split(llama3, "!!\nab \n!!", "!!\n|ab| \n|!!");
    check_split(inverted, "1234 12 !!", "123|4| |12| !!");
    check_split(qwen2, "12 ab", "1|2| ab");
}

TEST(other_pre_tokenisers) {
    check_split(NO_PATTERN, "ab12", "ab12");
    check_split(CHAIN("{\"type\":\"Digits\",\"individual_digits\":false}"), "ab12ab", "ab|12|ab");
    check_split(CHAIN("{\"type\":\"Digits\",\"individual_digits\":true}"), "ab12ab", "ab|1|2|ab");
    check_split(CHAIN("{\"type\":\"Punctuation\"}"), "ab!!ab", "ab|!|!|ab");
    check_split(CHAIN("{\"type\":\"Whitespace\"}"), "ab!! \n12", "ab|!!|12");
    check_split(CHAIN("{\"type\":\"WhitespaceSplit\"}"), " ab!! \n12 ", "ab!!|12");
    check_split("{\"type\":\"ByteLevel\",\"add_prefix_space\":true}", "ab12", " ab|12");
    check_split("{\"type\":\"ByteLevel\",\"add_prefix_space\":true}", " ab", " ab");
    check_split("{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"use_regex\":false}", "ab!!",
                " ab!!");
    check_split(
        "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Sequence\",\"pretokenizers\":"
        "[{\"type\":\"Digits\",\"individual_digits\":true}]}," BYTE_LEVEL "]}",
        "ab12 ab", "ab|1|2| ab");
}

/* ---- added tokens */

static void check_added(const char *list, const char *s, const char *expected) {
    char more[1024];
    snprintf(more, sizeof more, "\"added_tokens\":[%s],\"normalizer\":{\"type\":\"Lowercase\"},",
             list);
    open_form(NULL, NULL, NULL, NULL, more);
    check_tokens(s, expected);
}

#define ADDED(id, content, flags) "{\"id\":" #id ",\"content\":\"" content "\"," flags "}"
#define RAW "\"normalized\":false,\"special\":true"

TEST(added_tokens_in_text) {
    check_added(ADDED(256, "<x>", RAW), "a<x>b<x><x>", "a|<x>|b|<x>|<x>");
    check_added(ADDED(256, "<x>", RAW), "<x <x", "<|x| |<|x");
    check_added(ADDED(256, "ab", RAW) "," ADDED(257, "abcd", RAW), "abcabcdab",
                "ab|c|abcd|ab");                                                 /* the longest */
    check_added(ADDED(256, "bc", RAW) "," ADDED(257, "ab", RAW), "abc", "ab|c"); /* the leftmost */
    check_added(ADDED(1000, "<x>", RAW), "<x>", "<x>");                          /* ids with gaps */
    CHECK(bpe_vocab_size(tok) == 1001 && bpe_token_id(tok, "<x>") == 1000);
}

TEST(added_tokens_that_take_spaces) {
    check_added(ADDED(256, "<x>", RAW ",\"lstrip\":true"), "a \n<x> b", "a|<x>| |b");
    check_added(ADDED(256, "<x>", RAW ",\"rstrip\":true"), "a <x> \t b", "a| |<x>|b");
    check_added(ADDED(256, "<x>", RAW ",\"lstrip\":true,\"rstrip\":true"), " <x>  <x> ", "<x>|<x>");
    check_added(ADDED(256, "<x>", RAW ",\"rstrip\":true") "," ADDED(257, " ", RAW), "<x> a",
                "<x>| |a");
}

/* A token that takes the spaces to its left has none of itself left where the one before it took
   them all. */
TEST(added_tokens_of_spaces_that_are_taken) {
#define TAKEN(flags) ADDED(256, "<x>", RAW ",\"rstrip\":true") "," ADDED(257, "  ", RAW flags)
    check_added(TAKEN(""), "<x>  a", "<x>|  |a");
    check_added(TAKEN(",\"rstrip\":true"), "<x>   a", "<x>|  |a");
    check_added(TAKEN(",\"lstrip\":true"), "<x>  ", "<x>");
    check_added(TAKEN(",\"lstrip\":true"), "<x>  a", "<x>|a");
    check_added(TAKEN(",\"lstrip\":true"), "<x>\t  a  b", "<x>|a|  |b");
    check_added(TAKEN(",\"lstrip\":true"), "<x>  \ta  ", "<x>|a|  "); /* here tokenizers panics */
    check_added(TAKEN(",\"lstrip\":true"), "<x>    <x>", "<x>|<x>");  /* and here */
    check_added(TAKEN(",\"lstrip\":true,\"rstrip\":true"), "<x>  \ta", "<x>|a");
    check_added(TAKEN("") "," ADDED(258, "  b", RAW ",\"lstrip\":true"), "<x>  ba",
                "<x>|  b|a"); /* all but its b */
    check_added(ADDED(256, "<x>", "\"rstrip\":true") "," ADDED(257, "  ", "\"lstrip\":true"),
                "<X>  A", "<x>|a");
}

TEST(added_tokens_that_are_words) {
    check_added(ADDED(256, "xy", RAW ",\"single_word\":true"), "xy", "xy");
    check_added(ADDED(256, "xy", RAW ",\"single_word\":true"), "-xy-", "-|xy|-");
    check_added(ADDED(256, "xy", RAW ",\"single_word\":true"), "axy xya xy_ xy1",
                "a|x|y| |x|y|a| |x|y|_| |x|y|1");
    check_added(ADDED(256, "xy", RAW ",\"single_word\":true"), "\xF0\x90\x90\xA8xy",
                "240|144|144|168|x|y");
    check_added(ADDED(256, "xy", RAW ",\"single_word\":true"), "\xE2\x80\x8Dxy",
                "226|128|141|x|y"); /* a joiner */
}

TEST(added_tokens_in_normalised_text) {
    check_added(ADDED(256, "Xy", RAW), "XyxyXY", "Xy|x|y|x|y");
    check_added(ADDED(256, "Xy", "\"normalized\":true,\"special\":false"), "XyxyXY", "Xy|Xy|Xy");
    CHECK(bpe_token_id(tok, "Xy") == 256 && bpe_token_id(tok, "xy") == -1);
    check_added(ADDED(256, "abc", "\"normalized\":true") "," ADDED(257, "ab", RAW), "abc",
                "ab|c"); /* raw text first */
    CHECK_OK(ctx, bpe_decode(tok, ids.id, ids.count, &text));
    CHECK(!strcmp(text.bytes, "abc"));
}

/* ---- files that lie */

static void check_error(const char *json, dlrn_status status, const char *expected) {
    char *path = tmp_path("bad.json"), whole[512];
    FILE *out = fopen(path, "wb");
    CHECK(out != NULL && fputs(json, out) >= 0 && fclose(out) == 0);
    if (!ctx) CHECK(dlrn_context_create(NULL, &ctx) == DLRN_OK);
    close_tokenizer();
    dlrn_status s = bpe_load(ctx, path, &tok);
    CHECK_MSG(s == status, "%s gave %s, expected %s", json, test_status_name(s),
              test_status_name(status));
    CHECK(tok == NULL);
    snprintf(whole, sizeof whole, "%s: %s", path, expected);
    CHECK_MSG(!strcmp(dlrn_error(ctx), whole), "\"%s\", expected \"%s\"", dlrn_error(ctx), whole);
}

/* A file of which only these parts are given. */
static void check_parts(const char *model, const char *pre, const char *more, dlrn_status status,
                        const char *expected) {
    char json[2048];
    snprintf(json, sizeof json, "{%s\"pre_tokenizer\":%s,\"model\":{%s}}", more, pre, model);
    check_error(json, status, expected);
}

static void bad_model(const char *model, const char *expected) {
    check_parts(model, BYTE_LEVEL, "", DLRN_ERR_FORMAT, expected);
}
static void foreign_model(const char *model, const char *expected) {
    check_parts(model, BYTE_LEVEL, "", DLRN_ERR_UNSUPPORTED, expected);
}
static void bad_more(const char *more, const char *expected) {
    check_parts("\"vocab\":{\"a\":0,\"b\":1},\"merges\":[]", BYTE_LEVEL, more, DLRN_ERR_FORMAT,
                expected);
}
static void foreign_more(const char *more, const char *expected) {
    check_parts("\"vocab\":{\"a\":0,\"b\":1},\"merges\":[]", BYTE_LEVEL, more, DLRN_ERR_UNSUPPORTED,
                expected);
}
static void foreign_pre(const char *pre, const char *expected) {
    check_parts("\"vocab\":{\"a\":0,\"b\":1},\"merges\":[]", pre, "", DLRN_ERR_UNSUPPORTED,
                expected);
}

TEST(vocabularies_that_lie) {
    check_error("{}", DLRN_ERR_FORMAT, "model: expected an object, found nothing");
    bad_model("\"merges\":[]", "model.vocab: expected an object, found nothing");
    bad_model("\"vocab\":[],\"merges\":[]", "model.vocab: expected an object, found an array");
    bad_model("\"vocab\":{},\"merges\":[]", "model.vocab: expected tokens, found nothing");
    bad_model("\"vocab\":{\"a\":-1},\"merges\":[]", "model.vocab.a: expected an id, found -1");
    bad_model("\"vocab\":{\"a\":0.5},\"merges\":[]", "model.vocab.a: expected an id, found 0.5");
    bad_model("\"vocab\":{\"a\":\"x\\n\"},\"merges\":[]",
              "model.vocab.a: expected an id, found \"x?\"");
    bad_model("\"vocab\":{\"a\":1e300},\"merges\":[]",
              "model.vocab: expected ids near the number of tokens, found 1.0000000000000001e+300");
    bad_model("\"vocab\":{\"a\":1033},\"merges\":[]",
              "model.vocab: expected ids near the number of tokens, found 1033");
    bad_model("\"vocab\":{\"a\":0,\"\\u0001\":0},\"merges\":[]",
              "model.vocab.?: expected an id of its own, found 0");
}

TEST(merges_that_lie) {
#define AB "\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},"
    bad_model(AB "\"x\":0", "model.merges: expected an array, found nothing");
    bad_model(AB "\"merges\":[\"a b\",\"ab\"]",
              "model.merges[1]: expected two tokens, as \"a b\" or [\"a\", \"b\"], found \"ab\"");
    bad_model(
        AB "\"merges\":[\"a b c\"]",
        "model.merges[0]: expected two tokens, as \"a b\" or [\"a\", \"b\"], found \"a b c\"");
    bad_model(AB "\"merges\":[[\"a\"]]",
              "model.merges[0]: expected two tokens, as \"a b\" or [\"a\", \"b\"], found an array");
    bad_model(AB "\"merges\":[[\"a\",1]]",
              "model.merges[0]: expected two tokens, as \"a b\" or [\"a\", \"b\"], found an array");
    bad_model(AB "\"merges\":[3]",
              "model.merges[0]: expected two tokens, as \"a b\" or [\"a\", \"b\"], found 3");
    bad_model(AB "\"merges\":[\"b a\"]",
              "model.merges[0]: expected tokens of the vocabulary that join to one, found \"b a\"");
    bad_model(AB "\"merges\":[\"a c\"]",
              "model.merges[0]: expected tokens of the vocabulary that join to one, found \"a c\"");
}

TEST(models_of_other_kinds) {
    foreign_model("\"type\":\"Unigram\",\"vocab\":{\"a\":0},\"merges\":[]",
                  "model.type: expected BPE, found \"Unigram\"");
    foreign_model(AB "\"merges\":[],\"dropout\":0.1",
                  "model.dropout: expected null or 0, found 0.1");
    foreign_model(AB "\"merges\":[],\"end_of_word_suffix\":\"</w>\"",
                  "model.end_of_word_suffix: expected none, found \"</w>\"");
    foreign_model(AB "\"merges\":[],\"continuing_subword_prefix\":\"##\"",
                  "model.continuing_subword_prefix: expected none, found \"##\"");
    foreign_model(AB "\"merges\":[],\"byte_fallback\":true",
                  "model.byte_fallback: expected false, or a token for each byte, found true");
    bad_model(AB "\"merges\":[],\"unk_token\":\"<unk>\"",
              "model.unk_token: expected a token of the vocabulary, found \"<unk>\"");
    bad_model(AB "\"merges\":[],\"ignore_merges\":1",
              "model.ignore_merges: expected true or false, found 1");
}

TEST(steps_of_other_kinds) {
    foreign_more("\"normalizer\":{\"type\":\"Nmt\"},",
                 "normalizer.type: expected NFC, NFD, NFKC, NFKD, Lowercase, Strip, Prepend, "
                 "Replace, or a Sequence of "
                 "them, found \"Nmt\"");
    foreign_more(
        "\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"a+\"},\"content\":\"b\"},",
        "normalizer.pattern: expected a String, found \"a+\"");
#define TIMES_32                                                                                   \
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":"                            \
    "\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"}"
    foreign_more("\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[" TIMES_32 "," TIMES_32
                 ",{\"type\":\"NFC\"}]},",
                 "normalizer: expected changes that make a text at most 1024 times as long, found "
                 "an object");
    bad_more("\"normalizer\":{\"type\":\"Strip\",\"strip_left\":\"yes\"},",
             "normalizer.strip_left: expected true or false, found \"yes\"");
    foreign_pre("null", "pre_tokenizer: expected a ByteLevel step, found null");
    foreign_pre("{\"type\":\"Metaspace\"}",
                "pre_tokenizer.type: expected ByteLevel, Split, Digits, Punctuation, Whitespace, "
                "WhitespaceSplit or a Sequence, found \"Metaspace\"");
    foreign_pre("{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Whitespace\"}]}",
                "pre_tokenizer: expected a ByteLevel step, found an object");
    foreign_pre("{\"type\":\"Sequence\",\"pretokenizers\":[" BYTE_LEVEL ",{\"type\":\"Digits\"}]}",
                "pre_tokenizer: expected ByteLevel as the last step, found \"Digits\"");
    foreign_pre(
        CHAIN(SPLIT("a|b", ISOLATED)),
        "pre_tokenizer.pattern: expected the Regex of GPT-2, Llama 3 or Qwen 2, found \"a|b\"");
    foreign_pre(CHAIN(SPLIT(GPT2_REGEX, "\"behavior\":\"MergedWithNext\"")),
                "pre_tokenizer.behavior: expected Isolated, or Removed and inverted, found "
                "\"MergedWithNext\"");
    foreign_pre(CHAIN("{\"type\":\"Punctuation\",\"behavior\":\"Removed\"}"),
                "pre_tokenizer.behavior: expected Isolated, found \"Removed\"");
}

TEST(added_tokens_that_lie) {
    bad_more("\"added_tokens\":{},", "added_tokens: expected an array, found an object");
    bad_more("\"added_tokens\":[" ADDED(2, "x", RAW) ",{}],",
             "added_tokens[1].content: expected a string of 1 to 1024 bytes, found nothing");
    bad_more("\"added_tokens\":[3],",
             "added_tokens[0].content: expected a string of 1 to 1024 bytes, found nothing");
    bad_more("\"added_tokens\":[{\"content\":\"x\"}],",
             "added_tokens[0].id: expected an id, found nothing");
    bad_more("\"added_tokens\":[" ADDED(1.5, "x", RAW) "],",
             "added_tokens[0].id: expected an id, found 1.5");
    bad_more("\"added_tokens\":[" ADDED(1, "x", RAW) "],",
             "added_tokens[0].id: expected an id that no other token has, found 1");
    bad_more("\"added_tokens\":[" ADDED(2, "x", RAW) "," ADDED(2, "y", RAW) "],",
             "added_tokens[1].id: expected an id that no other token has, found 2");
    bad_more("\"added_tokens\":[" ADDED(2, "a", RAW) "],",
             "added_tokens[0].id: expected the id that the vocabulary has for this token, found 2");
    bad_more("\"added_tokens\":[" ADDED(4000000, "x", RAW) "],",
             "model.vocab: expected ids near the number of tokens, found 4000000");
    bad_more("\"added_tokens\":[" ADDED(2, "x", "\"lstrip\":null,\"rstrip\":3") "],",
             "added_tokens[0].rstrip: expected true or false, found 3");
}

TEST(files_that_are_not_there) {
    if (!ctx) CHECK(dlrn_context_create(NULL, &ctx) == DLRN_OK);
    CHECK_STATUS(bpe_load(ctx, "build/tmp/no-such.json", &tok), DLRN_ERR_IO);
    CHECK_STR(dlrn_error(ctx), "build/tmp/no-such.json");
    CHECK_STATUS(bpe_load(ctx, "tests", &tok), DLRN_ERR_IO);
    CHECK_STR(dlrn_error(ctx), "tests/tokenizer.json");
}

/* A small file that has something of everything. */
static char *small_file(size_t *size) {
    static const char json[] = "{\"added_tokens\":[" ADDED(6, "<x>", RAW) "," ADDED(
        7, "\\u00e9 y",
        "\"normalized\":true,\"lstrip\":true") "],"
                                               "\"normalizer\":{\"type\":\"Sequence\","
                                               "\"normalizers\":[{\"type\":"
                                               "\"NFC\"},{\"type\":\"Prepend\","
                                               "\"prepend\":\"_\"},{\"type\":\"Replace\","
                                               "\"pattern\":{\"String\":\"q\"}"
                                               ",\"content\":\"ab\"}]},"
                                               "\"pre_tokenizer\":" CHAIN(
                                                   SPLIT(GPT2_REGEX,
                                                         ISOLATED)) ",\"model\":{\"type\":\"BPE\","
                                                                    "\"unk_token\":\"?\","
                                                                    "\"ignore_merges\":true,"
                                                                    "\"vocab\":{\"a\":0,\"b\":1,"
                                                                    "\"?\":2,\"ab\":3,\"\\u0120\":"
                                                                    "4,\"abab\":5},"
                                                                    "\"merges\":[\"a "
                                                                    "b\",[\"ab\",\"ab\"]]}}";
    char *copy = (char *)malloc(sizeof json);
    CHECK(copy != NULL);
    memcpy(copy, json, sizeof json);
    *size = sizeof json - 1;
    return copy;
}

/* Loads these bytes and, if that works, uses the tokenizer. An error has to say which file. */
static dlrn_status try_bytes(const char *bytes, size_t size) {
    static const char sample[] = "abab q<x>e\xCC\x81 y <x> \xFF";
    char *path = tmp_path("tried.json");
    FILE *out = fopen(path, "wb");
    CHECK(out != NULL && fwrite(bytes, 1, size, out) == size && fclose(out) == 0);
    close_tokenizer();
    dlrn_status s = bpe_load(ctx, path, &tok);
    if (s != DLRN_OK) CHECK_STR(dlrn_error(ctx), "tried.json");
    if (s != DLRN_OK) CHECK(tok == NULL && !strchr(dlrn_error(ctx), '\n'));
    if (s == DLRN_OK) CHECK_OK(ctx, bpe_encode(tok, sample, (int64_t)sizeof sample - 1, &ids));
    if (s == DLRN_OK) CHECK_OK(ctx, bpe_decode(tok, ids.id, ids.count, &text));
    return s;
}

TEST(every_prefix_of_a_file) {
    size_t size;
    char *json = small_file(&size);
    if (!ctx) CHECK(dlrn_context_create(NULL, &ctx) == DLRN_OK);
    CHECK_OK(ctx, try_bytes(json, size));
    check_tokens("ababq<x>e\xCC\x81 yab", "?|abab|ab|<x>|\xC3\xA9 y|ab");
    for (size_t n = 0; n < size; n++) CHECK_STATUS(try_bytes(json, n), DLRN_ERR_FORMAT);
    free(json);
}

TEST(every_byte_of_a_file_wrong) {
    size_t size;
    char *json = small_file(&size);
    if (!ctx) CHECK(dlrn_context_create(NULL, &ctx) == DLRN_OK);
    for (size_t i = 0; i < size; i++)
        for (int k = 0; k < 4; k++) {
            char was = json[i];
            json[i] = "\xFF"
                      "9\"]"[k];
            (void)try_bytes(json, size); /* whatever it is now, it is used or refused */
            json[i] = was;
        }
    free(json);
}

/* ---- what a text may be */

static char *repeated(const char *unit, int64_t times) {
    size_t length = strlen(unit);
    char *s = (char *)malloc(length * (size_t)times);
    CHECK(s != NULL);
    for (int64_t i = 0; i < times; i++) memcpy(s + (size_t)i * length, unit, length);
    return s;
}

/* With a square in the cost of any of these, the test does not end. */
TEST(long_runs_of_anything) {
    static const char *const units[] = {
        "a", "ab", " ", "\n", "\xCC\x81", "\xCC\x81\xCC\xA3", "<", "<x", "\x80", "\xE2\x80"};
    const int64_t times = 500000;
    open_form("\"aa\":256,\"aaaa\":257,\"ba\":258", "\"a a\",\"aa aa\",\"b a\"", NULL,
              CHAIN(SPLIT(GPT2_REGEX, ISOLATED)),
              NORMALIZER("{\"type\":\"NFD\"}") "\"added_tokens\":[" ADDED(
                  259, "<xxxx>", RAW ",\"lstrip\":true") "],");
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
        char *s = repeated(units[u], times);
        int64_t n = times * (int64_t)strlen(units[u]);
        CHECK_OK(ctx, bpe_encode(tok, s, n, &ids));
        CHECK_OK(ctx, bpe_decode(tok, ids.id, ids.count, &text));
        CHECK(text.count == n);
        free(s);
    }
    CHECK_OK(ctx, bpe_encode(tok, "aaaaa", 5, &ids)); /* what was long is short again */
    CHECK(ids.count == 2 && ids.id[0] == 257 && ids.id[1] == 'a');
}

/* The same with added tokens that take spaces, and one that stands in what another took: the search
   goes back to it. */
TEST(long_runs_of_added_tokens) {
    static const char *const units[] = {" ", "  ", " \t", "\t", "\n", " \t\n", "\t\n ", "\t\n"};
    const int64_t times = 500000;
    open_form(NULL, NULL, NULL, NULL,
              "\"added_tokens\":[" ADDED(256, " ", RAW ",\"rstrip\":true") "," ADDED(
                  257, "\\t", RAW) "," ADDED(258, "\\n", RAW ",\"lstrip\":true") "],");
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
        char *s = repeated(units[u], times);
        CHECK_OK(ctx, bpe_encode(tok, s, times * (int64_t)strlen(units[u]), &ids));
        CHECK(ids.count > 0);
        free(s);
    }
}

static int64_t blocks_left;
static void *scarce_alloc(void *user, size_t size) {
    (void)user;
    return blocks_left-- > 0 ? malloc(size) : NULL;
}
static void plain_release(void *user, void *p) {
    (void)user;
    free(p);
}

/* Each allocation in turn is the one that fails. */
TEST(out_of_memory_anywhere) {
    dlrn_context_config cfg = {0};
    dlrn_context *scarce = NULL;
    size_t size;
    char *json = small_file(&size), *path = tmp_path("scarce.json");
    FILE *out = fopen(path, "wb");
    int64_t most = 0;
    dlrn_status s = DLRN_ERR_MEMORY;
    CHECK(out != NULL && fwrite(json, 1, size, out) == size && fclose(out) == 0);
    free(json);
    cfg.alloc = scarce_alloc;
    cfg.release = plain_release;
    blocks_left = 1000;
    CHECK(dlrn_context_create(&cfg, &scarce) == DLRN_OK);
    for (; s == DLRN_ERR_MEMORY && most < 1000; most++) {
        bpe_tokenizer *t = NULL;
        bpe_ids found;
        memset(&found, 0, sizeof found);
        blocks_left = most;
        s = bpe_load(scarce, path, &t);
        if (s == DLRN_OK) s = bpe_encode(t, "abab e\xCC\x81<x>", 11, &found);
        if (s == DLRN_ERR_MEMORY) CHECK_STR(dlrn_error(scarce), "out of memory");
        bpe_ids_free(&found);
        bpe_destroy(t);
    }
    CHECK_MSG(s == DLRN_OK, "%s: %s", test_status_name(s), dlrn_error(scarce));
    CHECK(most > 10);
    dlrn_context_destroy(scarce);
}

int main(int argc, char **argv) {
    TEST_BEGIN(argc, argv);
    RUN(vectors_of_the_20b_tokenizer);
    RUN(tiny_round_trips);
    RUN(names_and_bytes_of_tokens);
    RUN(merges_in_both_forms);
    RUN(the_lowest_rank_merges_first);
    RUN(ignored_merges);
    RUN(bytes_without_a_token);
    RUN(normal_forms);
    RUN(marks_in_their_order);
    RUN(other_normalisers);
    RUN(bytes_that_are_no_characters_stay);
    RUN(patterns_of_words);
    RUN(other_pre_tokenisers);
    RUN(added_tokens_in_text);
    RUN(added_tokens_that_take_spaces);
    RUN(added_tokens_of_spaces_that_are_taken);
    RUN(added_tokens_that_are_words);
    RUN(added_tokens_in_normalised_text);
    RUN(vocabularies_that_lie);
    RUN(merges_that_lie);
    RUN(models_of_other_kinds);
    RUN(steps_of_other_kinds);
    RUN(added_tokens_that_lie);
    RUN(files_that_are_not_there);
    RUN(every_prefix_of_a_file);
    RUN(every_byte_of_a_file_wrong);
    RUN(long_runs_of_anything);
    RUN(long_runs_of_added_tokens);
    RUN(out_of_memory_anywhere);
    close_tokenizer();
    bpe_ids_free(&ids);
    bpe_text_free(&text);
    dlrn_context_destroy(ctx);
    return TEST_END();
}
