/* tokenize_lines TOKENIZER - what tests/tokenizer_check.py compares. Reads strings from standard
   input, each as its length in bytes, a newline, and the bytes; writes a line for each: its token
   ids, a tab, and in hexadecimal what the ids decode to. Exit status 3 with the error's text if the
   tokenizer cannot be used. */
#define BPE_IMPLEMENTATION
#include "dictlearn.h"

#include "lm/bpe.h"

static dlrn_status write_line(bpe_tokenizer *tok, const char *text, int64_t bytes, bpe_ids *ids,
                              bpe_text *back) {
    dlrn_status s = bpe_encode(tok, text, bytes, ids);
    if (s == DLRN_OK) s = bpe_decode(tok, ids->id, ids->count, back);
    if (s != DLRN_OK) return s;
    for (int64_t i = 0; i < ids->count; i++) printf(i ? " %d" : "%d", (int)ids->id[i]);
    printf("\t");
    for (int64_t i = 0; i < back->count; i++)
        printf("%02x", (unsigned)(unsigned char)back->bytes[i]);
    printf("\n");
    return DLRN_OK;
}

int main(int argc, char **argv) {
    dlrn_context *ctx = NULL;
    bpe_tokenizer *tok = NULL;
    bpe_ids ids;
    bpe_text back;
    long bytes;
    if (argc != 2 || dlrn_context_create(NULL, &ctx)) return 2;
    memset(&ids, 0, sizeof ids);
    memset(&back, 0, sizeof back);
    dlrn_status s = bpe_load(ctx, argv[1], &tok);
    while (s == DLRN_OK && scanf("%ld", &bytes) == 1 && getchar() == '\n' && bytes >= 0) {
        char *text =
            (char *)malloc(bytes ? (size_t)bytes : 1); /* not a byte more: sanitizers see it */
        if (!text || fread(text, 1, (size_t)bytes, stdin) != (size_t)bytes) return 2;
        s = write_line(tok, text, bytes, &ids, &back);
        free(text);
    }
    if (s != DLRN_OK) fprintf(stderr, "%s\n", dlrn_error(ctx));
    bpe_ids_free(&ids);
    bpe_text_free(&back);
    bpe_destroy(tok);
    dlrn_context_destroy(ctx);
    return s == DLRN_OK ? 0 : 3;
}
