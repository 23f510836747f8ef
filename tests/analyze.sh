#!/bin/sh
# analyze.sh BUILD - the header through clang's static analyser, gcc's and cppcheck, without a finding. They are told
# what they cannot see: that dlrn_fail, which takes any number of arguments, returns the status that it is given. What
# is left out are kinds of findings that are wrong here; the sanitizers and valgrind look for the same as it runs.
. tests/harness.sh
dir=$BUILD/tmp/analyze
rm -rf "$dir"
mkdir -p "$dir"
sed 's/dlrn_status dlrn_fail(/dlrn_status (dlrn_fail)(/' dictlearn.h > "$dir/dictlearn.h"
cat > "$dir/header.c" << 'END'
#define dlrn_fail(ctx, ...) DLRNI_FAILS((ctx), __VA_ARGS__)
#define DLRNI_FAILS(ctx, s, ...) ((void)(dlrn_fail)((ctx), (s), __VA_ARGS__), (s))
#define DICTLEARN_IMPLEMENTATION
#include "dictlearn.h"
END
flags="-std=c99 -DDICTLEARN_SIMD=0 -I$dir"

silent() { # silent COMMAND...: succeeds, and says nothing
    "$@" > "$dir/said" 2>&1
    said_status=$?
    cat "$dir/said"
    [ $said_status -eq 0 ] && [ ! -s "$dir/said" ]
}

if have clang; then
    check "clang --analyze" silent clang --analyze -Xclang -analyzer-opt-analyze-headers \
        -Xclang -analyzer-output=text $flags "$dir/header.c" -o "$dir/plist"
else
    skip "clang --analyze" "not installed"
fi

# malloc-leak: a block is kept by a pointer into it; the one that malloc gave stands before it, as bytes. Without the
# trainer, over which gcc 12 takes longer than anyone waits.
if gcc -fanalyzer -x c -fsyntax-only /dev/null 2> /dev/null; then
    check "gcc -fanalyzer" silent gcc -O1 -fanalyzer -Wno-analyzer-malloc-leak -DDICTLEARN_NO_TRAINING $flags \
        -c "$dir/header.c" -o "$dir/header.o"
else
    skip "gcc -fanalyzer" "not installed"
fi

# It cannot expand our macros and gets the text with them expanded. negativeIndex: the length of a match below 0 was
# left two lines before. uninitvar: what a loop fills, or a function through a pointer, counts for it as unset.
if have cppcheck; then
    gcc $flags -DNDEBUG -E "$dir/header.c" | grep -v '^#pragma' > "$dir/expanded.c"
    check "cppcheck" silent cppcheck --quiet --enable=warning,performance,portability --std=c99 --error-exitcode=1 \
        --suppress=negativeIndex --suppress=uninitvar --suppress=legacyUninitvar "$dir/expanded.c"
else
    skip "cppcheck" "not installed"
fi
finish
