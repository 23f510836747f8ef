#!/bin/sh
# tests/claims.txt holds the chapters of the manual and of SECURITY.md that promise something, sentence by sentence as
# they stand, and beside each the tests that would notice if it were not so. Here: the chapters are all there, word for
# word, and every test that is named exists. So a sentence that is new or changed asks for its test.
. tests/harness.sh
dir=$BUILD/tmp/claims
table=tests/claims.txt
rm -rf "$dir"
mkdir -p "$dir"

words() { # a word a line
    tr -s '[:space:]' '\n' | sed '/^$/d'
}

chapter() { # chapter FILE NAME: its text, without the headline
    awk -v name="$2" '
        /^ *---- [A-Z]/ || /^## / || /^\*\// { inside = index($0, " " name) && $0 ~ " " name "( -+)?$"; next }
        inside' "$1"
}

claimed() { # claimed FILE NAME: the same, from the table
    awk -v head="@ $1 $2" '/^@ / { inside = $0 == head } inside && /^> / { print substr($0, 3) }' $table
}

evidence() { # evidence PLACE NAME: such a test exists
    case $1 in
    make) grep -q "^$2:" Makefile ;;
    fuzz) grep -q "^    {\"$2\", fuzz_$2, " tests/fuzz/fuzz.c ;;
    *.sh) grep -qF "\"$2\"" "tests/$1" ;;
    *) grep -qxF "TEST($2) {" "tests/$1.c" || grep -q "^TEST($2) { /\* " "tests/$1.c" ;;
    esac
}

# ---- The chapters
sed -n 's/^@ //p' $table > "$dir/chapters"
while read -r file name; do
    chapter "$file" "$name" | words > "$dir/stands"
    claimed "$file" "$name" | words > "$dir/claims"
    check "$file, $name: every word" diff "$dir/stands" "$dir/claims"
    check "$file, $name: has words" test -s "$dir/stands"
done < "$dir/chapters"
check_equal "all of SECURITY.md" "$(sed -n 's/^## //p' SECURITY.md)" "$(sed -n 's/^SECURITY.md //p' "$dir/chapters")"

# ---- The tests
bare() { # a claim ends with a test, or with a reason why there is none
    awk '/^@ / && last == ">" { print "nothing beside: " claim; bad = 1 }
         /^> / { claim = $0 }
         /^[@>.-] / { last = substr($0, 1, 1); next }
         !/^#/ && NF { print "expected a line of @, >, - or ., found: " $0; bad = 1 }
         END { exit bad || last == ">" }' $table
}
check "beside each claim stands what shows it" bare
sed -n 's/^- //p' $table | sort -u > "$dir/tests"
while read -r place name; do
    check "$place: $name" evidence "$place" "$name"
done < "$dir/tests"
check_fails "a test that is not there is missed" evidence test_core no_such_test

# ---- The factors in SECURITY.md are those of the fuzzers
grep -o '[0-9]* \(KiB \)*(`[A-Z_]*`)' SECURITY.md | tr -d '()`' > "$dir/factors"
check "there are factors" test -s "$dir/factors"
while read -r number unit name; do
    if [ "$unit" = KiB ]; then number="$number \\* 1024"; else name=$unit; fi
    check "$name is $number" grep -Eq "\<$name = $number(,| |$)" tests/fuzz/fuzz.h examples/lm/bpe.h
done < "$dir/factors"
finish
