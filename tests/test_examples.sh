#!/bin/sh
# test_examples.sh BUILD - the numbered examples as a newcomer meets them: in a fresh clone, built by
# the command in their first comment, and as a second file beside one that holds the implementation.
# They run, print what they promise and stay short. The header alone is enough for a program in an
# empty folder.
. tests/harness.sh
clone=$BUILD/tmp/clone
rm -rf "$clone"
mkdir -p "$clone/examples"
cp dictlearn.h "$clone/"
cp -R examples/. "$clone/examples"
log=$(pwd)/$BUILD/tmp/example.log
printf '#define DICTLEARN_IMPLEMENTATION\n#include "dictlearn.h"\n' > "$clone/implementation.c"
check "the implementation compiles" \
    sh -c "cd $clone && $CC -O1 $OPENMP -c implementation.c -o implementation.o"

promise() { # promise NAME PATTERN: a line that the example prints
    if grep -Eq "$2" "$log"; then pass "$1 prints $2"; else fail "$1 prints $2" "$(cat "$log")"; fi
}
at_least() { # at_least NAME BOUND PATTERN: the first number after the pattern
    n=$(sed -n "s/.*$3 *\([0-9.]*\).*/\1/p" "$log" | head -n 1)
    if [ -n "$n" ] && awk "BEGIN { exit !($n >= $2) }"; then pass "$1: $3 $n >= $2"; else
        fail "$1: $3" "found '${n:-nothing}', expected at least $2"; fi
}

# The command of the first comment, with the compiler at hand and without the slow part of its work.
as_written() (
    command=$(sed -n 's/^       cc \(-O2.*\) -o .*$/\1/p' "$1" | head -n 1)
    [ -n "$command" ] || command="-O2 -I. $1" # README: cc app.c -lm
    cd "$clone" || exit 1
    eval "$CC -fsyntax-only -Wall -Wextra -Werror $command"
)
second_file() ( # its own includes are enough, and nothing is defined twice
    cd "$clone" || exit 1
    sed '/^#define DICTLEARN_IMPLEMENTATION$/d' "$1" > "examples/second.c"
    $CC -O1 $OPENMP -Wall -Wextra -Werror -I. -c examples/second.c -o second.o &&
        $CC $OPENMP second.o implementation.o -o example -lm
)

for source in examples/[0-9][0-9]_*.c; do
    name=$(basename "$source" .c)
    case $name in *_mpi) continue ;; esac # test_mpi.sh
    check "$name is short" test "$(wc -l < "$source")" -lt 120
    check "$name compiles as its comment says" as_written "$source"
    check "$name compiles as a second file" second_file "$source"
    if (cd "$clone" && ./example) > "$log" 2>&1; then pass "$name runs in a fresh clone"; else
        fail "$name runs in a fresh clone" "$(cat "$log")"; fi
    case $name in
    00_*) promise "$name" 'row 1: [0-9]+ of 1024 features are active' ;;
    01_*) promise "$name" 'row 3: [0-9]+ of 256 features are active; strongest: 33' ;;
    02_*) at_least "$name" 90 "found" && at_least "$name" 80 "variance explained" ;;
    03_*) at_least "$name" 99 "recovered" ;;
    04_*)
        promise "$name" 'identity .* 100\.0 %'
        promise "$name" '^trained +3\.[0-9]+ +3\.'
        promise "$name" 'two sites'
        ;;
    05_*) promise "$name" 'the same bits as the whole run' ;;
    06_*)
        promise "$name" 'JumpReluAutoEncoder of dictionary_learning: [1-9][0-9] active features'
        promise "$name" '^feature [0-9]+: [0-9.]+$'
        ;;
    07_*) at_least "$name" 75 "variance explained" && promise "$name" 'L0 [23]\.' ;;
    08_*) at_least "$name" 80 "layer's output" ;;
    11_*) promise "$name" '^feature [0-9]+, active with [0-9.]+, makes likely:$' &&
        promise "$name" '^  \+[0-9.]+ .[a-z]+.$' && promise "$name" '^  \+40\.000 ' ;;
    10_*)
        promise "$name" '^features.html: 200 features, AutoEncoderTopK$'
        check "$name: the page has its data" grep -q '{"version":1,' "$clone/features.html"
        ;;
    esac
done
check "02, 06, 07 and 08 leave their dictionaries, 10 its text and page, the others nothing" \
    test "$(LC_ALL=C ls "$clone" | tr '\n' ' ')" = \
    "batch_top_k.pt cfg.json dictlearn.h example examples features.html implementation.c implementation.o \
sae.safetensors sampled.txt second.o small_params.npz trained.pt "

# 06 opens what others have made
given=tests/golden/families/JumpReluAutoEncoder
check "06 compiles alone" $CC -O1 $OPENMP -I. examples/06_gemma_scope.c -o "$clone/open" -lm
"$clone/open" $given > "$log" 2>&1
promise "06 of a folder" 'JumpReluAutoEncoder of dictionary_learning: [0-9]+ active features'
"$clone/open" "$clone/none" > "$log" 2>&1
promise "06 of nothing" 'none: no such file or folder'

# an empty project: the header, one file, one command
empty=$BUILD/tmp/empty
rm -rf "$empty"
mkdir -p "$empty"
cp dictlearn.h "$empty/"
cp examples/01_load_and_encode.c "$empty/app.c"
check "an empty project compiles" sh -c "cd $empty && $CC app.c -lm -o app"
check "and runs" sh -c "cd $empty && ./app"
finish
