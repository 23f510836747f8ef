#!/bin/sh
# Every way of taking the header into a program: as C and as C++, once and twice, static, renamed, from a sub-folder,
# with each option. The program creates a dictionary, encodes, decodes, and prints an error's text.
. tests/harness.sh
dir=$BUILD/tmp/header
rm -rf "$dir"
mkdir -p "$dir/vendor/deep" "$dir/renamed"
warn="-Wall -Wextra -Wpedantic -Werror"

cat > "$dir/use.c" << 'END'
#include USE_HEADER
#include <stdio.h>
int main(void) {
    float x[8] = {1, 2, 3, 4, 5, 6, 7, 8}, x_hat[8], f[2 * 16], sum = 0;
    dlrn_context *ctx = NULL;
    dlrn_dictionary *ae = NULL;
    if (dlrn_context_create(NULL, &ctx) != DLRN_OK) return 1;
    dlrn_dictionary_desc desc = {NULL, 4, 0, 16, 0, 1, 0};
    if (dlrn_dictionary_create(ctx, &desc, &ae) != DLRN_OK) return 2;
    if (dlrn_encode(ae, x, 2, f) != DLRN_OK) return 3;
    if (dlrn_decode(ae, f, 2, x_hat) != DLRN_OK) return 4;
    for (int i = 0; i < 32; i++) sum += f[i];
    dlrn_dictionary_destroy(ae);
    ae = NULL;
    if (dlrn_load(ctx, "no/such/file.pt", NULL, &ae) == DLRN_OK) return 5;
    printf("%s | %d\n", dlrn_error(ctx), sum > 0);
    dlrn_context_destroy(ctx);
    return 0;
}
END
cat > "$dir/implementation.c" << 'END'
#define DICTLEARN_IMPLEMENTATION
#include USE_HEADER
END
cat > "$dir/both.c" << 'END'
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "use.c"
END
cat > "$dir/twice.c" << 'END'
#include "dictlearn.h"
#include "dictlearn.h"
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "dictlearn.h"
#include "use.c"
END
cat > "$dir/other.c" << 'END'
#include "dictlearn.h"
const char *other(void);
const char *other(void) { return dlrn_name(DLRN_NAMES_STATUS, DLRN_OK); }
END
cat > "$dir/allocator.c" << 'END'
#include <stdlib.h>
static int blocks;
static void *my_malloc(size_t n) { blocks++; return malloc(n); }
static void my_free(void *p) { blocks -= p != NULL; free(p); }
#define DICTLEARN_MALLOC(n) my_malloc(n)
#define DICTLEARN_FREE(p) my_free(p)
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#define main use_main
#include "use.c"
#undef main
int main(void) { return use_main() || blocks != 0; }
END

said="no/such/file.pt" # the error names the file
build_and_run() { # build_and_run NAME COMPILER... : builds $dir/prog, runs it, looks at what it says
    name=$1
    shift
    if ! harness_out=$("$@" -o "$dir/prog" -lm 2>&1); then fail "$name" "$harness_out"; return; fi
    harness_out=$("$dir/prog" 2>&1) || { fail "$name" "exit status $?: $harness_out"; return; }
    case $harness_out in *"$said"*"| 1") pass "$name" ;; *) fail "$name" "printed: $harness_out" ;; esac
}

c() { # c NAME ARGUMENTS...: as C99
    name=$1
    shift
    build_and_run "$name" $CC -std=c99 -O0 $warn "-DUSE_HEADER=\"dictlearn.h\"" "$@"
}

c "one file" -I. "$dir/both.c"
c "with OpenMP, if there is" -I. $OPENMP "$dir/both.c"
c "included four times" -I. "$dir/twice.c"
c "two files" -I. "$dir/implementation.c" "$dir/use.c" "$dir/other.c"
c "static in two files" -I. -DDICTLEARN_STATIC -DDICTLEARN_IMPLEMENTATION "$dir/use.c" "$dir/other.c"
c "without training" -I. -DDICTLEARN_NO_TRAINING "$dir/both.c"
c "without vector kernels" -I. -DDICTLEARN_SIMD=0 "$dir/both.c"
c "release build" -I. -DNDEBUG -O1 "$dir/both.c"
for dialect in "-std=gnu99" "-std=c99" "-std=gnu99 -D_POSIX_C_SOURCE=1" "-std=gnu99 -D_POSIX_C_SOURCE=200112L" \
    "-std=gnu99 -D_XOPEN_SOURCE=500" "-std=c99 -D_XOPEN_SOURCE=700" "-std=gnu99 -D_GNU_SOURCE -Wredundant-decls"; do
    # what the system's headers hide; a call to what is not declared is an error
    check "declared in $dialect" $CC -std=c99 $warn "-DUSE_HEADER=\"dictlearn.h\"" -I. $dialect -fsyntax-only \
        "$dir/both.c"
done
c "own allocator, all blocks returned" -I. -I"$dir" "$dir/allocator.c"

# A status that is ignored is warned of.
echo '#include "dictlearn.h"
int main(void) { dlrn_context *c; dlrn_context_create(NULL, &c); return 0; }' > "$dir/ignored.c"
sed 's/; dlrn/; (void)!dlrn/' "$dir/ignored.c" > "$dir/used.c"
check_fails "an ignored status is a warning" $CC -std=c99 $warn -I. -c "$dir/ignored.c" -o "$dir/i.o"
check "a used one is none" $CC -std=c99 $warn -I. -c "$dir/used.c" -o "$dir/i.o"

# A short training on three threads: the bits do not tell what compiled and ran it.
cat > "$dir/bits.c" << 'END'
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include <stdio.h>
enum { D = 24, F = 1500, N = 300 };
int main(void) {
    static float x[N * D];
    dlrn_context_config cfg = {0};
    dlrn_train_config run = dlrn_train_defaults(NULL);
    dlrn_rng rng = {3, 0, 0};
    dlrn_context *ctx = NULL;
    dlrn_trainer *t = NULL;
    for (int i = 0; i < N * D; i++) x[i] = (float)((double)dlrn_rng_uniform(&rng) - 0.5);
    cfg.threads = 3, run.d_in = D, run.features = F, run.warmup_steps = 0, run.ghost_threshold = 1;
    if (dlrn_context_create(&cfg, &ctx) || dlrn_trainer_create(ctx, &run, NULL, NULL, &t)) return 1;
    for (int i = 0; i < 4; i++)
        if (dlrn_trainer_step_on(t, x, NULL, N, NULL)) return 2;
    const dlrn_dictionary *ae = dlrn_trainer_describe(t).dictionary;
    fwrite(ae->param[DLRN_ENCODER], sizeof(float), D * F, stdout);
    fwrite(ae->param[DLRN_DECODER], sizeof(float), D * F, stdout);
    fprintf(stderr, "%s\n", dlrn_context_describe(ctx).text);
    dlrn_trainer_destroy(t);
    dlrn_context_destroy(ctx);
    return 0;
}
END
bits() { # bits NAME FLAGS...: the same weights as $dir/bits
    name=$1
    shift
    if ! harness_out=$($CC -std=c99 -w -I. "$@" "$dir/bits.c" -o "$dir/other_bits" -lm 2>&1); then
        fail "$name" "$harness_out"
        return
    fi
    status "$name: runs" 0 "$dir/other_bits"
    same "$name: the same bits" "$dir/bits" "$d/out"
}
d=$dir
check "a training" $CC -std=c99 -w -O1 -I. "$dir/bits.c" -o "$dir/plain_bits" -lm
"$dir/plain_bits" > "$dir/bits" 2> "$d/err"
if [ -n "$OPENMP" ]; then
    bits "with OpenMP" -O1 $OPENMP
    says "on its threads" "3 threads (OpenMP)" "$d/err"
fi
bits "the scalar kernels alone" -O1 -DDICTLEARN_SIMD=0
if $CC -march=native -c "$dir/ignored.c" -o "$dir/i.o" -I. -w 2> /dev/null; then
    bits "for this processor alone" -O1 -std=gnu99 -march=native -ffp-contract=off
fi

# A BLAS, where one is installed: the products are its own, and right.
printf '#include <cblas.h>\nint main(void) { return cblas_sdot(0, 0, 1, 0, 1) != 0; }\n' > "$dir/blas.c"
if $CC "$dir/blas.c" -o "$dir/blas" -lblas 2> /dev/null; then
    check "with a BLAS" $CC -std=c99 -O1 -w -DDICTLEARN_CBLAS -I. tests/test_core.c -o "$dir/with_blas" -lm -lblas
    check "its products are right" "$dir/with_blas" products
    nm "$dir/with_blas" > "$dir/symbols"
    says "they are the BLAS's" ' U cblas_sgemm' "$dir/symbols"
else
    skip "with a BLAS" "no cblas.h and -lblas"
fi

# A host's leak checker: macros with arguments, called as our own names might be.
cat > "$dir/leaks.c" << 'END'
#include <stdlib.h>
static void *traced(size_t n, const char *file) { (void)file; return malloc(n); }
static void untraced(void *p, const char *file) { (void)file; free(p); }
#define malloc(n) traced(n, __FILE__)
#define free(p) untraced(p, __FILE__)
#define realloc(p, n) no_such_function
#define alloc(n) no_such_function
#define release(p) no_such_function
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
#include "use.c"
END
c "within a leak checker's macros" -I. -I"$dir" "$dir/leaks.c"

check "static for a whole project: a file that only declares is silent" $CC -std=c99 $warn -I. -DDICTLEARN_STATIC \
    -c "$dir/other.c" -o "$dir/i.o"
check_fails "static, declared before the implementation" $CC -std=c99 -fsyntax-only -I. -DDICTLEARN_STATIC \
    "-DUSE_HEADER=\"dictlearn.h\"" "$dir/twice.c"
for flag in -ffast-math -Ofast -ffinite-math-only; do
    check_fails "$flag is an error" $CC -std=c99 $flag -fsyntax-only -I. "-DUSE_HEADER=\"dictlearn.h\"" "$dir/both.c"
done
check_fails "half an own allocator is an error" $CC -std=c99 -fsyntax-only -I. "-DDICTLEARN_MALLOC(n)=malloc(n)" \
    "-DUSE_HEADER=\"dictlearn.h\"" "$dir/both.c"

cp dictlearn.h "$dir/vendor/deep/dictlearn.h"
cp dictlearn.h "$dir/renamed/dl_renamed.h"
build_and_run "from a sub-folder" $CC -std=c99 -O0 $warn "-DUSE_HEADER=\"vendor/deep/dictlearn.h\"" -I"$dir" \
    -DDICTLEARN_IMPLEMENTATION "$dir/use.c"
build_and_run "renamed" $CC -std=c99 -O0 $warn "-DUSE_HEADER=\"renamed/dl_renamed.h\"" -I"$dir" \
    -DDICTLEARN_IMPLEMENTATION "-DDICTLEARN_HEADER_NAME=\"dl_renamed.h\"" "$dir/use.c"

if have "$CXX"; then
    cxx="$CXX -x c++ -O0 $warn -I. -DUSE_HEADER=\"dictlearn.h\""
    build_and_run "C++11" $cxx -std=c++11 "$dir/both.c"
    build_and_run "C++17, static" $cxx -std=c++17 -DDICTLEARN_STATIC -DDICTLEARN_IMPLEMENTATION "$dir/use.c" \
        "$dir/other.c"
    check "implementation in C" $CC -std=c99 -O0 -I. -c "-DUSE_HEADER=\"dictlearn.h\"" "$dir/implementation.c" \
        -o "$dir/i.o"
    check "... used from C++" $cxx -std=c++11 -c "$dir/use.c" -o "$dir/u.o"
    build_and_run "... linked" $CXX "$dir/i.o" "$dir/u.o"
else
    skip "C++" "no $CXX"
fi
finish
