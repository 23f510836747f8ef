/* replay.c - the fuzzers' targets over the committed inputs, or over the files given: with any
   compiler, as a test. `fuzz_replay TARGET FILE...` shows what a fuzzer found.

   tests/fuzz/corpus/TARGET.bin holds the inputs of a target: each one's length in 4 bytes,
   little-endian, then its bytes (tests/fuzz/pack.py). */
#define FUZZ_REPLAY
#include "tests/fuzz/fuzz.c"

/* Every change is none: what was taken apart and put together again must still be what it was. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most) {
    (void)data, (void)most;
    return size;
}

static char replay_name[1024]; /* the input that is tried */

static int replay_opens(const unsigned char *data, size_t size) {
    dlrn_archive *a = NULL;
    dlrn_status s = dlrn_archive_open_memory(ctx, data, size, "replay", &a);
    dlrn_archive_close(a);
    return s == DLRN_OK;
}

static void replay_input(const unsigned char *data, size_t size) {
    static unsigned char changed[1 << 17];
    fuzz_data = data;
    fuzz_size = size;
    fuzz_run();
    if (fuzz_in_hand->mutate && size <= sizeof changed / 2 && replay_opens(fuzz_data, size)) {
        if (size) memcpy(changed, data, size);
        size_t n = fuzz_in_hand->mutate(changed, size, sizeof changed, 2);
        CHECK_MSG(!n || replay_opens(changed, n), "taken apart and put together it is: %s",
                  dlrn_error(ctx));
    }
}

static void replay_file(void) {
    char *data;
    size_t size;
    CHECK_OK(ctx, dlrn_file_read(ctx, replay_name, &data, &size));
    replay_input((const unsigned char *)data, size);
    dlrn_free(ctx, data);
}

/* All inputs of a target. */
static void replay_target(void) {
    char path[64], *data;
    size_t size, at = 0;
    int n = 0;
    snprintf(path, sizeof path, "tests/fuzz/corpus/%s.bin", fuzz_in_hand->name);
    CHECK_OK(ctx, dlrn_file_read(ctx, path, &data, &size));
    while (at < size) {
        const unsigned char *p = (const unsigned char *)data + at;
        size_t length = size - at < 4 ? size : p[0] | p[1] << 8 | p[2] << 16 | (size_t)p[3] << 24;
        CHECK_MSG(length <= size - at - 4, "%s ends within an input", path);
        snprintf(replay_name, sizeof replay_name, "number %d of %s", ++n, path);
        replay_input(p + 4, length);
        at += 4 + length;
    }
    dlrn_free(ctx, data);
    CHECK_MSG(n > 0, "%s: expected inputs, found none", path);
}

/* As a test of this name; an input that fails is named. */
static void replay(const char *name, void (*body)(void)) {
    const int before = test_state.failed;
    test_run(name, body);
    if (test_state.failed > before) printf("     the input: %s\n", replay_name);
}

int main(int argc, char **argv) {
    test_begin(1, argv);
    fuzz_start();
    for (int i = 0; i < FUZZ_TARGETS && argc < 2; i++) {
        fuzz_in_hand = &fuzz_targets[i];
        replay(fuzz_in_hand->name, replay_target);
    }
    if (argc < 2) return test_end();
    for (int i = 0; i < FUZZ_TARGETS; i++)
        if (!strcmp(argv[1], fuzz_targets[i].name)) fuzz_in_hand = &fuzz_targets[i];
    if (!fuzz_in_hand) {
        fprintf(stderr, "%s: expected the name of a target in tests/fuzz/fuzz.c\n", argv[1]);
        return 2;
    }
    for (int i = 2; i < argc; i++) {
        snprintf(replay_name, sizeof replay_name, "%s", argv[i]);
        replay(argv[i], replay_file);
    }
    return test_end();
}
