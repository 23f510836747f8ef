#!/bin/sh
# test_lint.sh BUILD - every rule of lint.sh is broken once, in a small header of its own: the
# check must fail.
. tests/harness.sh
if ! have clang-format || ! have python3 || ! have nm; then
    skip "lint" "no clang-format, python3 or nm"
    finish
fi
root=$(pwd)
dir=$BUILD/tmp/test_lint
rm -rf "$dir"
mkdir -p "$dir/tests" "$dir/.ci"
cp tests/harness.sh tests/lint.sh tests/lint.py "$dir/tests"
cp .clang-format "$dir"
printf 'all:\n' > "$dir/Makefile"
printf '#!/bin/sh\n' > "$dir/.ci/run"
cd "$dir" || exit 1

cat > good.h << 'END'
/* dictlearn.h - a small one */
#ifndef DICTLEARN_H
#define DICTLEARN_H
// >>manual
/* Contents:
   >>manual     this
   >>api        a function
   >>code       what it does
*/
// >>api
#define DLRN_VERSION "1"
#ifdef DICTLEARN_STATIC
#define DLRN_API __attribute__((unused)) static
#else
#define DLRN_API extern
#endif
DLRN_API int dlrn_twice(int x); /* MARK interface */
#if defined(DICTLEARN_IMPLEMENTATION) && !defined(DLRNI_IMPLEMENTED)
#define DLRNI_IMPLEMENTED
#include <stdlib.h>
#include <string.h>
// >>code
/* Twice, as the manual says (room manual). */
DLRN_API int dlrn_twice(int x) {
    const char *name = getenv("F32"); /* or nothing */
    /* MARK body */
    return 2 * x + (name ? (int)strlen(name) : 0);
}
#endif
#endif
END

lint() { # lint: what fails, a line each
    CC=$CC PENDING='' sh tests/lint.sh build > said 2>&1
    sed -n 's/^FAIL //p' said
}

cp good.h dictlearn.h
check_equal "a header that keeps all rules" "" "$(lint)"

# breaks RULE MARK TEXT: the text in place of /* MARK ... */
breaks() {
    MARK="/* MARK $2 */" TEXT=$3 awk '
        (at = index($0, ENVIRON["MARK"])) {
            $0 = substr($0, 1, at - 1) ENVIRON["TEXT"] substr($0, at + length(ENVIRON["MARK"]))
        }
        { print }' good.h > dictlearn.h
    seen "$1"
}
seen() { # seen RULE: it is among what fails
    lint > failed
    check "seen: $1" grep -qxF "$1" failed
}

long='/* a comment that goes on, and on, and on, beyond the hundred columns that a line may have here */'
breaks "columns <= 100" body "$long"
breaks "no trailing blanks, no tabs" interface "/* x */ "
breaks "functions fit on a screen" body "$(yes '    x++;' | head -n 60 | sed '1s/^ *//')"
breaks "clang-format" body "x++ ;"
breaks "a status that is ignored is a warning" interface "
typedef enum dlrn_status { DLRN_OK } dlrn_status;
DLRN_API dlrn_status dlrn_forgotten(int x);"
breaks "rooms that comments speak of are there" body "/* see room kitchen */"
breaks "the contents page lists every room, in order" interface "
// >>kitchen"
breaks "no two private names are one letter apart" body "int dlrni_kettle = 0, dlrni_nettle = 0;
    x += dlrni_kettle + dlrni_nettle;"
breaks "no second list of the same names" body "
    /* one */
    /* two */
    /* three */
    if (x == 7) name = \"F32\";"
breaks "no words that hide what is meant" body "/* as they stand */"
breaks "the manual's table has the libraries of the code" interface "
static const dlrni_layout dlrni_nobodys_rows[] = {
    {\"SAE\", \"AutoEncoder\"},
};
static const dlrni_library dlrni_library_table[] = {
    {\"nobody\", dlrni_nobodys_rows, NULL},
};"
breaks "comments without stars" body "/* one
     * two */"
faults="each planted fault has its text, once, and its test"
printf 'int core;\n' > tests/test_core.c
printf '@ core - code it is doubled\n- 2 * x\n+ 3 * x\n' > tests/faults.txt
breaks "$faults" body "x = 2 * x;"
printf '@ core gone code it is doubled\n- 2 * x\n+ 3 * x\n' > tests/faults.txt
breaks "$faults" body ""
rm tests/faults.txt tests/test_core.c
breaks "no output, no exit" body "if (x == 7) abort();"
breaks "no call to the system without stdio" body "if (x == 7) x = system(name);"
breaks "no foreign macro in the interface" interface "
#define FOREIGN 1"
breaks "no private macro left by the implementation" body "
#define DLRNI_LEFT 1
    x += DLRNI_LEFT;"
breaks "no external name in static mode" interface "
#ifdef DICTLEARN_IMPLEMENTATION
int foreign = 1;
#endif"
breaks "external names begin with dlrn_" interface "
#ifdef DICTLEARN_IMPLEMENTATION
int foreign = 1;
#endif"
awk '/^\/\* Twice/ { next } { sub(/ *\/\*.*\*\/$/, "") } { print } /return 2/ {
    print "}"; for (i = 0; i < 20; i++) print "extern int dlrni_" substr("abcdefghijklmnopqrst", i + 1, 1) ";"
    print "DLRN_API int dlrn_thrice(int x);"; print "DLRN_API int dlrn_thrice(int x) {"; print "    return 3 * x;" }' \
    good.h > dictlearn.h
seen "enough of the implementation's lines have comments"
printf 'all: %s\n' "$(yes x | head -n 70 | tr '\n' ' ')" > Makefile
cp good.h dictlearn.h
seen "columns of scripts <= 120"
cd "$root" || exit 1
finish
