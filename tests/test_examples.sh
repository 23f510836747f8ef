#!/bin/sh
# test_examples.sh BUILD - the numbered examples run as they are, keep their promises, and stay short; and the header
# alone is enough for a program of one's own in an empty folder.
. tests/harness.sh
mkdir -p "$BUILD/tmp"
log=$BUILD/tmp/example.log

promise() { # promise NAME PATTERN: a line that the example prints
    if grep -Eq "$2" "$log"; then pass "$1 prints $2"; else fail "$1 prints $2" "$(cat "$log")"; fi
}
at_least() { # at_least NAME BOUND PATTERN: the first number after the pattern
    n=$(sed -n "s/.*$3 *\([0-9.]*\).*/\1/p" "$log" | head -n 1)
    if [ -n "$n" ] && awk "BEGIN { exit !($n >= $2) }"; then pass "$1: $3 $n >= $2"; else
        fail "$1: $3" "found '${n:-nothing}', expected at least $2"; fi
}

for source in examples/[0-9][0-9]_*.c; do
    name=$(basename "$source" .c)
    check "$name is short" test "$(wc -l < "$source")" -lt 120
    if "$BUILD/$name" > "$log" 2>&1; then pass "$name runs"; else fail "$name runs" "$(cat "$log")"; fi
    case $name in
    00_*) promise "$name" 'row 1: [0-9]+ of 1024 features are active' ;;
    01_*) promise "$name" 'row 3: [0-9]+ of 256 features are on; strongest: 33' ;;
    02_*) at_least "$name" 90 "found" && at_least "$name" 80 "variance explained" ;;
    03_*) at_least "$name" 99 "recovered" ;;
    04_*)
        promise "$name" 'identity .* 100\.0 %'
        promise "$name" '^trained +3\.[0-9]+ +3\.'
        promise "$name" 'two sites'
        ;;
    05_*) promise "$name" 'the same bits as the whole run' ;;
    esac
done

# an empty project: the header, one file, one command
empty=$BUILD/tmp/empty
rm -rf "$empty"
mkdir -p "$empty"
cp dictlearn.h "$empty/"
cp examples/01_load_and_encode.c "$empty/app.c"
check "an empty project compiles" sh -c "cd $empty && ${CC:-cc} app.c -lm -o app"
mkdir -p "$empty/build/tmp"
check "and runs" sh -c "cd $empty && ./app"
finish
