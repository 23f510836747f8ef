#!/bin/sh
# The code in README.md and in the manual of dictlearn.h is true: each ```c block is compiled as C99 and as C++11. One
# with a `main` is a whole program and is run, in the order of the file; if an ```output block follows, it must print
# just that. One without is a fragment, compiled inside a function where the usual names are declared.
. tests/harness.sh
root=$(pwd)
dir=$BUILD/tmp/doc
rm -rf "$dir"
mkdir -p "$dir"

# blocks FILE STEM: writes each block as $dir/STEM_N.c, and the output it should have as $dir/STEM_N.out
blocks() {
    awk -v stem="$dir/$2" '
        /^ *```c$/      { n++; indent = index($0, "`") - 1; file = stem "_" sprintf("%02d", n) ".c"; next }
        /^ *```output$/ { file = stem "_" sprintf("%02d", n) ".out"; indent = index($0, "`") - 1; next }
        /^ *```/        { file = ""; next }
        file            { print substr($0, indent + 1) > file }' "$1"
}
awk '/>>manual$/ { on = 1 } on { print } on && /^\*\// { exit }' dictlearn.h > "$dir/manual.txt"
blocks "$dir/manual.txt" manual
[ -f README.md ] && blocks README.md README

cat > "$dir/before.txt" << 'END'
#define DICTLEARN_IMPLEMENTATION
#define DICTLEARN_STATIC
#include "dictlearn.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
dlrn_context *ctx;
dlrn_dictionary *ae;
dlrn_buffer *buffer;
dlrn_trainer *trainer;
dlrn_source *source;
dlrn_language_model *lm;
dlrn_sparse *codes;
const float *x;
float *f, *x_hat;
int64_t n;
dlrn_status fragment(void);
dlrn_status fragment(void) {
    dlrn_status s = DLRN_OK;
END
printf '    return s;\n}\n' > "$dir/after.txt"

for block in "$dir"/*_[0-9][0-9].c; do
    name=$(basename "$block" .c)
    if grep -q 'int main(' "$block"; then
        run=1
    else
        run=0
        cat "$dir/before.txt" "$block" "$dir/after.txt" > "$block.tmp" && mv "$block.tmp" "$block"
    fi
    warn="-Wall -Wextra -Wpedantic -Werror"
    [ $run = 1 ] || warn="-Wall -Werror -Wno-unused-result"
    if have "$CXX"; then
        check "$name as C++11" $CXX -x c++ -std=c++11 -Wall -Werror -Wno-unused-result -fsyntax-only -I. "$block"
    else
        skip "$name as C++11" "no $CXX"
    fi
    if [ $run = 0 ]; then
        check "$name as C99" $CC -std=c99 $warn -fsyntax-only -I. "$block"
        continue
    fi
    check "$name as C99" $CC -std=c99 -O1 $warn -I. "$block" -o "$dir/$name" -lm
    [ -x "$dir/$name" ] || continue
    if (cd "$dir" && "./$name" > "$name.found" 2> "$name.err"); then
        pass "$name runs"
    else
        fail "$name runs" "$(cat "$dir/$name.err")"
    fi
    if [ -f "$dir/$name.out" ]; then
        check "$name prints what it says" diff "$dir/$name.out" "$dir/$name.found"
    fi
done

# The test that `make help` names as an example is there.
named=$(make help 2> "$dir/err" | sed -n 's/.*`make \(test-[a-z]*\)`.*/\1/p')
check "make help names a test: ${named:-none}" test -f "tests/test_${named#test-}.c"

# README's first program is examples/00_hello.c, to the letter.
if [ -f README.md ] && [ -f examples/00_hello.c ]; then
    blocks README.md letter
    check "README.md has examples/00_hello.c" diff "$dir/letter_01.c" examples/00_hello.c
fi
finish
