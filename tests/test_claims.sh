#!/bin/sh
# What tests/claims.txt says of the manual and of SECURITY.md is true: the words stand there, and the
# tests that it names exist.
. tests/harness.sh
dir=$BUILD/tmp/claims
table=tests/claims.txt
rm -rf "$dir"
mkdir -p "$dir"

# as_one_line FILE: its prose, of the header the manual
as_one_line() {
    if [ "$1" = dictlearn.h ]; then
        awk '/>>manual$/ { on = 1 } on { print } on && /^\*\// { exit }' "$1"
    else cat "$1"; fi | tr -s '[:space:]' ' '
}

promised() { # promised FILE WORDS
    as_one_line "$1" | grep -qF -- "$2"
}

evidence() { # evidence PLACE NAME: such a test exists
    case $1 in
    make) grep -q "^$2:" Makefile ;;
    fuzz) grep -q "^    {\"$2\", fuzz_$2, " tests/fuzz/fuzz.c ;;
    *.sh) grep -qF "\"$2\"" "tests/$1" ;;
    *) grep -qxF "TEST($2) {" "tests/$1.c" || grep -q "^TEST($2) { /\* " "tests/$1.c" ;;
    esac
}

grep -v '^#' $table | sed '/^$/d' > "$dir/claims"
check "there are claims" test -s "$dir/claims"
while IFS='|' read -r file words tests; do
    file=$(echo "$file" | tr -d ' ') words=$(echo "$words" | sed 's/^ *//; s/ *$//')
    check "$file: $words" promised "$file" "$words"
    check "... in few words" test "$(echo "$words" | wc -w)" -le 7
    check "... with a test" test -n "$(echo "$tests" | tr -d ' ')"
    echo "$tests" | tr ';' '\n' | sed 's/^ *//; s/ *$//' >> "$dir/tests"
done < "$dir/claims"
sort -u "$dir/tests" | while read -r place name; do echo "$place $name"; done > "$dir/named"
while read -r place name; do
    check "$place: $name" evidence "$place" "$name"
done < "$dir/named"
check_fails "words that are gone are missed" promised SECURITY.md "of a colour never seen"
check_fails "a test that is not there is missed" evidence test_core no_such_test

# ---- The factors in SECURITY.md are those of the fuzzers
grep -o '[0-9]* \(KiB \)*(`[A-Z_]*`)' SECURITY.md | tr -d '()`' > "$dir/factors"
check "there are factors" test -s "$dir/factors"
while read -r number unit name; do
    if [ "$unit" = KiB ]; then number="$number \\* 1024"; else name=$unit; fi
    check "$name is $number" grep -Eq "\<$name = $number(,| |$)" tests/fuzz/fuzz.h examples/lm/bpe.h
done < "$dir/factors"
finish
