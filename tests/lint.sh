#!/bin/sh
# lint.sh BUILD - style and hygiene of the C files, by what can be counted. A check whose tool is
# missing is skipped, and says so. tests/test_lint.sh breaks each rule once.
. tests/harness.sh
dir=$BUILD/tmp/lint
mkdir -p "$dir"
sources=$(ls dictlearn.h examples/*.[ch] examples/*/*.[ch] tests/*.[ch] tests/fuzz/*.[ch] bench/*.[ch] 2> /dev/null)
cxx=$(ls examples/*.[ch]pp tests/*.cpp)
scripts=$(ls Makefile .ci/run examples/*.sh tests/*.sh tests/fuzz/*.sh tests/*.py tests/*/*.py
    bench/*.py examples/*/*.py examples/*/*/*.py 2> /dev/null)
printf '#include "dictlearn.h"\n' > "$dir/header.c"

# Rules that the header does not keep yet: what they find is shown and does not fail.
PENDING=${PENDING-}

# ---- text
columns() { # columns MOST FILE...
    most=$1
    shift
    ! LC_ALL=C.UTF-8 grep -nE "^.{$((most + 1)),}" "$@"
}
blanks() {
    grep -nE '[[:blank:]]$' $sources $scripts && return 1
    grep -nP '\t' $sources && return 1
    return 0
}
function_length() { # at most a screen in the header, 80 lines elsewhere
    awk 'FNR == 1 { open = 0 }
         /^[A-Za-z].*[^;,]$/ && !/^(typedef|struct|enum|extern "C")/ && !open { start = FNR; name = $0 }
         /\) \{$/ && /^[A-Za-z ]/ && !open && start { open = 1 }
         /^}/ {
             lines = FNR - start + 1
             limit = FILENAME == "dictlearn.h" ? 60 : 80
             if (open && lines > limit) {
                 print FILENAME ":" start ": " lines " lines, expected at most " limit ": " name
                 bad = 1
             }
             open = 0; start = 0
         }
         END { exit bad }' $sources
}
contents() { # the manual's contents page names the rooms as they follow
    sed -n '/^\/\/ >>manual/,/\*\//s/^ *\(>>[a-z-]*\) .*/\1/p' dictlearn.h > "$dir/contents"
    sed -n 's/^\/\/ \(>>[a-z-]*\)$/\1/p' dictlearn.h > "$dir/banners"
    diff "$dir/contents" "$dir/banners"
}
statuses() { # a status that nobody looks at is a warning: every declaration says so
    awk '/^DLRN_API .*dlrn_status dlrn_/ && !/DLRN_CHECK/ && !/dlrn_fail\(/ { declared = FNR ": " $0 }
         declared && /{$/ { declared = "" }
         declared && /;$/ { print declared; bad = 1; declared = "" }
         END { exit bad }' dictlearn.h
}
formatted() { # the header room by room: clang-format reads a file again for each branch of its #if lines,
              # which takes 20 s of the whole header and 2.5 s of its rooms
    rm -rf "$dir/rooms"
    mkdir -p "$dir/rooms"
    cp .clang-format "$dir/rooms"
    awk -v rooms="$dir/rooms" '/^\/\/ >>/ && NR - start > 1000 { start = NR }
        NR == 1 || start == NR { close(part); part = sprintf("%s/from_line_%05d.h", rooms, NR) }
        { print > part }' dictlearn.h
    { ls "$dir"/rooms/*.h; echo "$sources" | grep -vx dictlearn.h; } |
        xargs -n 16 -P "$(getconf _NPROCESSORS_ONLN 2> /dev/null || echo 2)" clang-format --dry-run -Werror
}
check "columns <= 100" columns 100 $sources $cxx
check "columns of Rust <= 100" columns 100 examples/rust/*.rs
check "columns of scripts <= 120" columns 120 $scripts
check "no trailing blanks, no tabs" blanks
check "functions fit on a screen" function_length
check "a status that is ignored is a warning" statuses
check "the contents page lists every room, in order" contents
reads() { # reads RULE NAME: a rule of lint.py
    case " $PENDING " in
    *" $1 "*) python3 tests/lint.py "$1" > "$dir/found" ||
        { skip "$2" "pending, $(wc -l < "$dir/found") findings"; return; } ;;
    esac
    check "$2" python3 tests/lint.py "$1"
}
if have python3; then
    reads rooms "rooms that comments speak of are there"
    reads twins "no two private names are one letter apart"
    reads once "no second list of the same names"
    reads phrases "no words that hide what is meant"
    reads comments "enough of the implementation's lines have comments"
    reads libraries "the manual's table has the libraries of the code"
    reads star "comments without stars"
    reads faults "each planted fault has its text, once, and its test"
else
    skip "names, rooms and comments" "no python3"
fi
if have clang-format; then
    check "clang-format" formatted
    check "clang-format of C++" clang-format --dry-run -Werror --style="$(cat tests/cxx_style)" $cxx
else
    skip "clang-format" "not installed"
fi

# ---- what the header leaves in a program
object() { # object NAME FLAGS...: $dir/NAME.o
    object=$dir/$1.o
    shift
    $CC -std=c99 -w -DNDEBUG -I. -DDICTLEARN_IMPLEMENTATION "$@" -c "$dir/header.c" -o "$object"
}
plain() { # in brief runs that of the quick tests, which has asserts and private names
    if [ -n "${TEST_BRIEF:-}" ] && [ "$BUILD/quick/private.o" -nt dictlearn.h ]; then
        cp "$BUILD/quick/private.o" "$dir/plain.o"
    else
        object plain -O0
    fi
}
no_stdio() { # the Makefile's, which test_io links, where it is of this header
    if [ "$BUILD/no_stdio.o" -nt dictlearn.h ]; then cp "$BUILD/no_stdio.o" "$dir/no_stdio.o"; else
        object no_stdio -O0 -DDICTLEARN_NO_STDIO -DDICTLEARN_SIMD=0; fi
}
defined() { # defined NAME: its external names
    nm -g --defined-only "$dir/$1.o" | awk '{ print $3 }' > "$dir/symbols"
}
undefined() { # undefined NAME: the external names that it asks for
    nm -u "$dir/$1.o" | awk '{ print $2 }' > "$dir/undefined"
}
only_prefixed() {
    defined plain
    [ -s "$dir/symbols" ] || { echo "no symbols at all"; return 1; }
    grep -v "$ours" "$dir/symbols" && return 1
    return 0
}
none_in_static() {
    defined static
    cat "$dir/symbols"
    [ ! -s "$dir/symbols" ]
}
no_output_no_exit() { # nothing that ends the process or writes to its streams; without NDEBUG an assert may
    prints='v?f?d?printf|__v?f?d?printf_chk|f?puts|f?putc|putchar|_IO_putc|perror|psignal|write|stderr'
    undefined plain
    grep -xE "$ends|$prints|srand|rand" "$dir/undefined" && return 1
    return 0
}
no_files() { # without stdio: nothing of the system but memory, numbers, texts, sorting and the environment
    undefined no_stdio
    [ -s "$dir/undefined" ] || { echo "it asks for nothing at all"; return 1; }
    known='malloc|realloc|free|mem[a-z]+|str[a-z]+|qsort|getenv|vsnprintf|__stack_chk_fail|_GLOBAL_OFFSET_TABLE_'
    numbers='(nextafter|nearbyint|exp|log|log10|pow|sqrt|cos|tanh|floor|ceil|fabs|fmin|fmax|fma)f?'
    grep -vxE "$known|$numbers" "$dir/undefined" && return 1
    return 0
}
system_headers() { # system_headers COMPILER: those that the header includes and that are here
    sed -n 's/^ *#include \(<[a-z_/]*\.*h*>\)$/\1/p' dictlearn.h | sort -u | grep -v omp.h |
        sed 's/.*/#if __has_include(&)\n#include &\n#endif/' > "$dir/asked.c"
    if $1 -E "$dir/asked.c" > /dev/null 2>&1; then cat "$dir/asked.c"; else
        grep '^#include' "$dir/asked.c" | while read -r line; do # a compiler older than __has_include
            echo "$line" > "$dir/try.c"
            $1 -E "$dir/try.c" > /dev/null 2>&1 && echo "$line"
        done; fi
}
macros() { # macros COMPILER MODE: every macro that the header leaves in a file is a public one of its own
    system_headers "$1" > "$dir/system.c"
    { cat "$dir/system.c"; echo '#include "dictlearn.h"'; } > "$dir/with.c"
    $1 -std=c99 -I. $2 -dM -E "$dir/system.c" | sort > "$dir/without.txt"
    $1 -std=c99 -I. $2 -dM -E "$dir/with.c" | sort > "$dir/with.txt"
    grep -q "^#define DLRN_VERSION " "$dir/with.txt" || { echo "it defines nothing"; return 1; }
    comm -13 "$dir/without.txt" "$dir/with.txt" | awk '{ print $2 }' | sed 's/(.*//' |
        grep -vE '^(DLRN_|DICTLEARN_|DLRNI_IMPLEMENTED$)' && return 1
    return 0
}
ends='exit|_exit|_Exit|quick_exit|abort|raise|kill|__assert_fail|longjmp|__longjmp_chk' ours='^dlrn_'
check "compiles" plain
if cmp -s "$dir/plain.o" "$BUILD/quick/private.o"; then
    ends=$(echo "$ends" | sed 's/__assert_fail|//') ours='^dlrni*_'
fi
check "compiles, static" object static -O1 -DDICTLEARN_STATIC
check "compiles without stdio" no_stdio
if have nm; then
    check "external names begin with dlrn_" only_prefixed
    check "no external name in static mode" none_in_static
    check "no output, no exit" no_output_no_exit
    check "no call to the system without stdio" no_files
else
    skip "names in the object file" "no nm"
fi
check "no foreign macro in the interface" macros "$CC" ""
check "no private macro left by the implementation" macros "$CC" -DDICTLEARN_IMPLEMENTATION

finish
