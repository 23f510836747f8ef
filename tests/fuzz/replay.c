/* replay.c - the fuzzers' targets over the committed inputs, tests/fuzz/corpus/TARGET/, or over the
   files given: with any compiler, as a test. `fuzz_replay TARGET FILE...` shows what a fuzzer
   found. */
#define FUZZ_REPLAY
#include "tests/fuzz/fuzz.c"

#include <dirent.h>

/* Every change is none: what was taken apart and put together again must still be what it was. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most) {
    (void)data, (void)most;
    return size;
}

static char replay_path[1024];

static int replay_opens(const unsigned char *data, size_t size) {
    dlrn_archive *a = NULL;
    dlrn_status s = dlrn_archive_open_memory(ctx, data, size, "replay", &a);
    dlrn_archive_close(a);
    return s == DLRN_OK;
}

static void replay_file(void) {
    static unsigned char changed[1 << 17];
    char *data;
    size_t size;
    CHECK_OK(ctx, dlrn_file_read(ctx, replay_path, &data, &size));
    fuzz_data = (const unsigned char *)data;
    fuzz_size = size;
    fuzz_run();
    if (fuzz_in_hand->mutate && size <= sizeof changed / 2 && replay_opens(fuzz_data, size)) {
        memcpy(changed, data, size);
        size_t n = fuzz_in_hand->mutate(changed, size, sizeof changed, 2);
        CHECK_MSG(!n || replay_opens(changed, n), "taken apart and put together it is: %s",
                  dlrn_error(ctx));
    }
    dlrn_free(ctx, data);
}

/* All inputs of a target. */
static void replay_target(void) {
    char folder[64];
    int n = 0;
    snprintf(folder, sizeof folder, "tests/fuzz/corpus/%s", fuzz_in_hand->name);
    DIR *dir = opendir(folder);
    CHECK_MSG(dir != NULL, "%s: no such folder", folder);
    for (struct dirent *e; (e = readdir(dir)) != NULL;) {
        if (e->d_name[0] == '.') continue;
        snprintf(replay_path, sizeof replay_path, "%s/%s", folder, e->d_name);
        replay_file();
        n++;
    }
    closedir(dir);
    CHECK_MSG(n > 0, "%s: expected inputs, found none", folder);
}

/* As a test of this name; an input that fails is named. */
static void replay(const char *name, void (*body)(void)) {
    const int before = test_state.failed;
    test_run(name, body);
    if (test_state.failed > before) printf("     the input: %s\n", replay_path);
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
        snprintf(replay_path, sizeof replay_path, "%s", argv[i]);
        replay(argv[i], replay_file);
    }
    return test_end();
}
