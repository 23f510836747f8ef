/* fuzz.c - the fuzzers of all readers in one program, for libFuzzer (make fuzz) and AFL++ (make
   fuzz-afl): FUZZ_TARGET in the environment names the reader. tests/fuzz/replay.c runs the same
   over files, with any compiler. */
#define _POSIX_C_SOURCE 200809L
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/targets.h"
#include "tests/fuzz/layout.h"
#include "tests/fuzz/mutate.h"

typedef struct fuzz_target {
    const char *name;
    void (*run)(const unsigned char *data, size_t size);
    size_t (*mutate)(uint8_t *data, size_t size, size_t most,
                     unsigned seed); /* NULL: plain bytes do */
} fuzz_target;

static const fuzz_target fuzz_targets[] = {
    {"zip", fuzz_zip, mutate_zip},
    {"pickle", fuzz_pickle, NULL},
    {"legacy", fuzz_legacy, NULL},
    {"safetensors", fuzz_safetensors, mutate_safetensors},
    {"npy", fuzz_npy, NULL},
    {"npz", fuzz_npz, mutate_zip},
    {"json", fuzz_json, NULL},
    {"dictionary", fuzz_dictionary, NULL},
    {"layout", fuzz_layout, NULL},
    {"tokenizer", fuzz_tokenizer, NULL},
    {"model", fuzz_model, NULL},
    {"documents", fuzz_documents, NULL},
    {"gzip", fuzz_gzip, NULL},
    {"shards", fuzz_shards, NULL},
    {"checkpoint", fuzz_checkpoint, mutate_safetensors},
};
enum { FUZZ_TARGETS = sizeof fuzz_targets / sizeof *fuzz_targets };

static const unsigned char *fuzz_data; /* of the run in hand */
static size_t fuzz_size;
static const fuzz_target *fuzz_in_hand;

static void fuzz_start(void) {
    ctx = starve_context(1);
    atexit(fuzz_clean);
}

/* One input: nothing that it takes is left behind. */
static void fuzz_run(void) {
    const int64_t before = starve.live;
    starve.most = 0;
    unsigned char *exact =
        (unsigned char *)malloc(fuzz_size + 1); /* so that a read beyond the end is seen */
    CHECK(exact != NULL);
    if (fuzz_size) memcpy(exact + 1, fuzz_data, fuzz_size);
    fuzz_in_hand->run(exact + 1, fuzz_size);
    free(exact);
    CHECK_MSG(starve.live == before, "%d blocks leak", (int)(starve.live - before));
}

#ifndef FUZZ_REPLAY
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed);

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    const char *name = getenv("FUZZ_TARGET");
    (void)argc, (void)argv;
    for (int i = 0; name && i < FUZZ_TARGETS; i++)
        if (!strcmp(name, fuzz_targets[i].name)) fuzz_in_hand = &fuzz_targets[i];
    if (!fuzz_in_hand) {
        fprintf(stderr,
                "FUZZ_TARGET: expected the name of a target in tests/fuzz/fuzz.c, found %s\n",
                name ? name : "nothing");
        exit(2);
    }
    fuzz_start();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_data = data;
    fuzz_size = size;
    if (setjmp(test_state.leave)) {
        fprintf(stderr, "%s\n", test_state.why);
        abort();
    }
    fuzz_run();
    return 0;
}

/* libFuzzer's changes; AFL++ has its own. One in four is of plain bytes; all are, where these
   cannot be taken apart. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed) {
    size_t n =
        fuzz_in_hand->mutate && seed % 4 ? fuzz_in_hand->mutate(data, size, most, seed / 4) : 0;
    return n ? n : LLVMFuzzerMutate(data, size, most);
}
#endif
