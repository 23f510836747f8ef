#!/bin/sh
# matrix.sh BUILD - the header with every compiler, language, option and machine that is at hand, without a warning. A
# cell is one compilation, or one program that is run; JOBS cells at a time (default: a core each). MATRIX=short is a
# slice: each language, each option alone in C99 and C++17, one level of optimisation, and on other
# machines the tests of products and of files. What is not installed is skipped, and says so.
. tests/harness.sh
MATRIX=${MATRIX:-full}
JOBS=${JOBS:-$(getconf _NPROCESSORS_ONLN 2> /dev/null || echo 2)}
dir=$BUILD/tmp/matrix
rm -rf "$dir"
mkdir -p "$dir/cell"

# ---- Cells: begun in the background, counted when as many as there may be are under way ----
cells=0 under_way=''

cell() { # cell NAME COMMAND...
    cells=$((cells + 1)) under_way="$under_way $cells"
    echo "$1" > "$dir/cell/$cells.name"
    shift
    { "$@" > "$dir/cell/$cells.said" 2>&1; echo $? > "$dir/cell/$cells.status"; } &
    set -- $under_way
    if [ $# -ge "$JOBS" ]; then collect; fi
}

collect() {
    wait
    for number in $under_way; do
        if [ "$(cat "$dir/cell/$number.status")" = 0 ]; then pass "$(cat "$dir/cell/$number.name")"; else
            fail "$(cat "$dir/cell/$number.name")" "$(cat "$dir/cell/$number.said")"; fi
    done
    under_way=''
}

# at_hand TOOL...: all of them are installed; else the group that is named in $group is skipped.
at_hand() {
    for tool; do
        have "$tool" || { skip "$group" "no $tool"; return 1; }
    done
}

# ---- Warnings ----
# -Wfloat-equal is not among them: what is compared is exact (a zero stays one, a NaN is not itself).
strict="-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Wcast-align -Wcast-qual -Wundef
        -Wdouble-promotion -Wvla -Wformat=2 -Werror"
strict_c="$strict -Wstrict-prototypes -Wmissing-prototypes"
# Of clang's -Weverything all but these:
#   float-equal                    as above
#   padded                         structs are laid out to be read
#   declaration-after-statement    C99
#   comma                          `a = 1, b = 2;` says that the two belong together
#   used-but-marked-unused         what not every option uses is marked
#   switch-enum                    a default stands for the others
#   bad-function-cast              the conversion of a result is written down
#   conditional-uninitialized      sees no `a && b`; gcc's own analysis, MemorySanitizer and valgrind do
everything="-Weverything -Werror -Wno-float-equal -Wno-padded -Wno-declaration-after-statement -Wno-comma
            -Wno-used-but-marked-unused -Wno-switch-enum -Wno-bad-function-cast -Wno-conditional-uninitialized"
# and of C++'s: it is C that compiles as C++ (its casts, NULL, the extensions of C++11 to C++98).
everything_cxx="$everything -Wno-old-style-cast -Wno-zero-as-null-pointer-constant -Wno-c++98-compat
                -Wno-c++98-compat-pedantic"

# ---- The sources ----
implementation=$dir/implementation.c
printf '#define DICTLEARN_IMPLEMENTATION\n#include "dictlearn.h"\n' > "$implementation"
printf '#include <windows.h>\n' | cat - "$implementation" > "$dir/windows.c"
cp dictlearn.h "$dir/other_name.h"
printf '#define DICTLEARN_HEADER_NAME "other_name.h"\n#define DICTLEARN_IMPLEMENTATION\n#include "other_name.h"\n' \
    > "$dir/renamed.c"
cat > "$dir/own.h" << 'END'
#include <stddef.h>
extern void *own_malloc(size_t size);
extern void own_free(void *p);
extern void own_assert(int holds);
END
cat > "$dir/print.h" << 'END'
#include <stdarg.h>
#include <stddef.h>
#ifdef __cplusplus
extern "C"
#endif
int own_vsnprintf(char *text, size_t size, const char *format, va_list args);
END

# The options of the manual, a word each; flags NAME: what the compiler is told.
# And what a host may say before: the parts of POSIX that it wants, and its own processor alone.
hosts="posix xopen gnu native"
options="static no_training no_stdio scalar allocator assert release openmp renamed cblas"
flags() {
    case $1 in
    static) echo "-DDICTLEARN_STATIC" ;;
    no_training) echo "-DDICTLEARN_NO_TRAINING" ;;
    no_stdio) echo "-DDICTLEARN_NO_STDIO -include $dir/print.h -DDICTLEARN_VSNPRINTF=own_vsnprintf" ;;
    scalar) echo "-DDICTLEARN_SIMD=0" ;;
    allocator)
        echo "-include $dir/own.h -DDICTLEARN_MALLOC(n)=own_malloc(n) -DDICTLEARN_FREE(p)=own_free(p)"
        ;;
    assert) echo "-include $dir/own.h -DDICTLEARN_ASSERT(c)=own_assert(c)" ;;
    release) echo "-DNDEBUG" ;;
    openmp) echo "-fopenmp" ;;
    renamed) echo "-I$dir" ;;
    cblas) echo "-DDICTLEARN_CBLAS" ;;
    posix) echo "-D_POSIX_C_SOURCE=200809L" ;;
    xopen) echo "-D_XOPEN_SOURCE=700" ;;
    gnu) echo "-D_GNU_SOURCE" ;;
    native) echo "-march=native" ;;
    esac
}

# syntax NAME COMPILER...: one cell for the options in $chosen.
syntax() {
    name=$1 source=$implementation with=''
    shift
    for option in $chosen; do
        with="$with $(flags "$option")"
        if [ "$option" = renamed ]; then source=$dir/renamed.c; fi
    done
    cell "$name:${chosen:+ $chosen}" "$@" $with -I. -fsyntax-only "$source"
}

if printf '#include <cblas.h>\n' | $CC -E - > /dev/null 2>&1; then :; else
    skip "cblas" "no cblas.h"
    options=${options% cblas}
fi

# ---- Each compiler, each language, each option alone; in C99 and C++17 all pairs of options ----
languages="c99 c11 c17 c2x gnu99 gnu11 gnu17 c++11 c++17 c++20 gnu++17"

compile_with() { # compile_with COMPILER LANGUAGE: the options in $chosen
    case $1.$2 in
    gcc.*++*) syntax "g++ $2" g++ -x c++ "-std=$2" $strict ;;
    clang.*++*) syntax "clang++ $2" clang++ -x c++ "-std=$2" $everything_cxx ;;
    gcc.*) syntax "gcc $2" gcc "-std=$2" $strict_c ;;
    clang.*) syntax "clang $2" clang "-std=$2" $everything ;;
    esac
}

for compiler in gcc clang; do
    group="all options with $compiler"
    at_hand "$compiler" "$(echo "$compiler" | sed 's/gcc/g++/;s/clang/clang++/')" || continue
    for language in $languages; do
        chosen=''
        compile_with "$compiler" "$language"
        case $MATRIX.$language in
        short.gnu99 | short.gnu++17 | full.*) for chosen in $hosts; do compile_with "$compiler" "$language"; done ;;
        esac
        case $MATRIX.$language in short.c99 | short.c++17 | full.*) ;; *) continue ;; esac
        for chosen in $options; do compile_with "$compiler" "$language"; done
        case $MATRIX.$language in full.c99 | full.c++17) ;; *) continue ;; esac
        for one in $options; do
            for other in ${options#*"$one"}; do
                chosen="$one $other"
                compile_with "$compiler" "$language"
            done
        done
    done
    collect
done

# ---- Code is made: warnings that need it, at every level, as C and as C++, as -Wall -Werror would have
# it in a host's build; also where the compiler knows no function by name ----
levels="-O0 -O1 -O2 -O3 -Os"
if [ "$MATRIX" = short ]; then levels="-O2"; fi

made() { # made NAME COMMAND...: one cell
    name=$1
    shift
    cell "$name" "$@" -I. -c "$implementation" -o "$dir/$(echo "$name" | tr -c 'a-zA-Z0-9+\n' _).o"
}

for compiler in gcc clang; do
    cxx=$(echo "$compiler" | sed 's/gcc/g++/;s/clang/clang++/')
    group="optimisation with $compiler"
    at_hand "$compiler" || continue
    for level in $levels; do
        made "$compiler $level" "$compiler" -std=c99 $strict_c "$level"
        have "$cxx" && made "$cxx $level" "$cxx" -x c++ -std=c++17 $strict "$level"
    done
    made "$compiler -O3 -march=native" "$compiler" -std=gnu99 $strict_c -O3 -march=native
    made "$compiler static and unused" "$compiler" -std=c99 $strict_c -O1 -DDICTLEARN_STATIC
    made "$compiler -ffreestanding" "$compiler" -std=c99 $strict_c -O1 -ffreestanding $(flags no_stdio)
    if [ "$compiler" = gcc ] || have ld.lld; then # what warns while it links
        cell "$compiler -flto" "$compiler" -std=c99 $strict_c -O2 -flto -I. examples/02_train_from_array.c \
            -o "$dir/$compiler-lto" -lm
    else
        skip "$compiler -flto" "no linker for it"
    fi
    collect
done

# ---- Other versions that are at hand, as C and as C++; one level, since some crash only where code is made ----
for version in gcc-11 gcc-13 gcc-14 clang-13 clang-15 clang-16 clang-17 clang-18 clang-19 clang-20 clang-21 clang-22; do
    cxx=$(echo "$version" | sed 's/gcc/g++/;s/clang/clang++/')
    group="$version"
    at_hand "$version" || continue
    made "$version -O2" "$version" -std=c99 $strict_c -O2
    cell "$version gnu11, _POSIX_C_SOURCE" "$version" -std=gnu11 $strict_c $(flags posix) -I. \
        -fsyntax-only "$implementation"
    have "$cxx" && cell "$cxx" "$cxx" -x c++ -std=c++17 $strict -I. -fsyntax-only "$implementation"
    collect
done

# ---- The programs ----
sh examples/program/embed.sh "$dir"
for compiler in gcc clang; do
    group="programs with $compiler"
    at_hand "$compiler" || continue
    for program in examples/program/dictlearn.c examples/[0-9][0-9]_*.c bench/*.c; do
        case $program in bench/llama_* | *_mpi.c) continue ;; esac # need llama.cpp, MPI
        cell "$compiler $program" "$compiler" -std=c99 $strict_c -fsyntax-only -I. -Iexamples -I"$dir" "$program"
    done
    collect
done

# ---- Every way of taking the header into a program, built and run: test_header.sh, which `make test` has for $CC ----
taken_in() { # taken_in C C++: in a folder of its own
    CC=$1 CXX=$2 OPENMP=-fopenmp BUILD=$dir/$1 sh tests/test_header.sh "$dir/$1"
}
for compiler in "gcc g++" "clang clang++"; do
    if [ "$MATRIX" = short ]; then break; fi
    group="ways of taking it in with ${compiler% *}"
    at_hand $compiler || continue
    cell "$group" taken_in ${compiler% *} ${compiler#* }
done
collect

# ---- Other machines: compiled without a warning, and the C tests run there (or under an emulator) ----

# machine NAME RUNNER FLAGS COMPILER...: each program of $tests, with the fewest warnings that a compiler should give.
machine() {
    machine=$1 runner=$2 more=$3
    shift 3
    mkdir -p "$dir/$machine"
    for level in $levels; do
        cell "$machine $level" "$@" -std=c99 $strict_c $more $level -I. -c "$implementation" -o "$dir/$machine/$level.o"
    done
    for test in $tests; do
        cell "$machine test_$test" run_there "$runner" "$dir/$machine/$test$suffix" "tests/test_$test.c" \
            "$@" -std=c99 $more
    done
    collect
}

run_there() { # run_there RUNNER PROGRAM SOURCE COMPILER...
    there=$1 program=$2 source=$3
    shift 3
    "$@" -O1 -Wall -Wextra -Wpedantic -Werror $(whole "$source") -I. -Iexamples "$source" -o "$program" \
        $libraries || return 1
    $there "$program" 2>&1 | tr -d '\r' > "$program.said"
    grep -E '^(FAIL|skip)' "$program.said"
    grep -Eq '^[1-9][0-9]* passed, 0 failed' "$program.said" || { tail -n 3 "$program.said"; return 1; }
}

suffix='' libraries='-lm -pthread'
tests="core screen files load io pickle memory buffer metrics trainer golden threads" levels="-O0 -O2"
if [ "$MATRIX" = short ]; then tests="core files load" levels="-O2"; fi

group="32-bit x86"
at_hand i686-linux-gnu-gcc && machine "i686" "" "-static" i686-linux-gnu-gcc
group="aarch64"
at_hand aarch64-linux-gnu-gcc qemu-aarch64-static &&
    machine "aarch64" qemu-aarch64-static "-static" aarch64-linux-gnu-gcc
# The emulator's own processor runs all sets. neondot and neoni8mm are chosen at run time: here are a processor with
# neither, and one with the first alone.
all_tests=$tests all_levels=$levels levels='' tests="core screen" cpus="cortex-a57 neoverse-n1"
if [ "$MATRIX" = short ]; then tests="core" cpus=cortex-a57; fi
for cpu in $cpus; do
    group="aarch64, $cpu"
    at_hand aarch64-linux-gnu-gcc qemu-aarch64-static &&
        machine "aarch64-$cpu" "qemu-aarch64-static -cpu $cpu" "-static" aarch64-linux-gnu-gcc
done
tests=$all_tests levels=$all_levels
# gcc for s390x sums floats in double under -std=c99 and then warns of each sum; fast gives them their own width back.
group="s390x, big-endian"
at_hand s390x-linux-gnu-gcc qemu-s390x-static &&
    machine "s390x" qemu-s390x-static "-static -fexcess-precision=fast" s390x-linux-gnu-gcc

wine=$(command -v wine64 || command -v wine || ls /usr/lib/wine/wine64 2> /dev/null)
export WINEDEBUG=-all WINEPREFIX="${WINEPREFIX:-$(pwd)/$dir/wine}"
group="Windows"
if at_hand x86_64-w64-mingw32-gcc x86_64-w64-mingw32-g++; then
    windows=x86_64-w64-mingw32
    cell "Windows, after windows.h" $windows-gcc -std=c99 $strict_c -I. -c "$dir/windows.c" -o "$dir/windows.o"
    cell "Windows, after windows.h, C++" $windows-g++ -x c++ -std=c++17 $strict -fsyntax-only -I. "$dir/windows.c"
    collect
    suffix=.exe
    if [ -z "$wine" ]; then
        skip "Windows, run" "no wine"
        tests=''
    fi
    machine "Windows" "$wine" "-static" $windows-gcc
fi
tests=$all_tests levels=$all_levels

# ---- MSVC: what clang compiles for its target (as clang-cl does), by Wine's headers and libraries, which follow
# Microsoft's. cl itself cannot be had: "as cl" hides clang's own names from the header, so that clang compiles the
# branches that cl would take; all of the program is then compiled for the processors of the largest set. ----
msvc=x86_64-pc-windows-msvc
wine_headers=/usr/include/wine/wine wine_libraries=/usr/lib/x86_64-linux-gnu/wine/x86_64-windows

for_msvc() { # for_msvc TARGET ARGUMENT...: clang, as clang-cl would
    target=$1
    shift
    clang "--target=$target" -fms-compatibility-version=19.40 -nostdinc -isystem "$(clang -print-resource-dir)/include" \
        -isystem "$wine_headers/msvcrt" -isystem "$wine_headers/windows" "$@"
}

# what Wine's headers lack, and what Microsoft's say of some functions
cat > "$dir/msvc.h" << 'END'
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#ifndef HUGE_VALF
#define HUGE_VALF __builtin_huge_valf()
#endif
#ifdef __cplusplus
extern "C" {
#endif
#ifdef DEPRECATES
__declspec(deprecated) __declspec(dllimport) FILE *__cdecl fopen(const char *, const char *);
__declspec(deprecated) __declspec(dllimport) char *__cdecl getenv(const char *);
#endif
#ifdef __cplusplus
}
#endif
END
cat > "$dir/cl.h" << 'END'
#pragma clang diagnostic ignored "-Wunknown-pragmas"
#pragma clang diagnostic ignored "-Wunused-function"
#pragma clang diagnostic ignored "-Wlanguage-extension-token"
#include "msvc.h"
#include <assert.h>
#include <direct.h>
#include <errno.h>
#include <float.h>
#include <limits.h>
#include <process.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <immintrin.h>
#include <intrin.h>
#undef __clang__
#undef __x86_64__
END
printf 'int _fltused; /* which the C library of Microsoft has, and Wine has not */\n' > "$dir/fltused.c"
as_cl="-include $dir/cl.h -mavx512f -mavx512dq -mavx512bw -mavx512vl -mavx512bf16 -mavx512vnni -mfma -mpclmul -mpopcnt
       -ffp-contract=off -Wno-builtin-macro-redefined"

as_msvc() { # as_msvc NAME HOW TARGET: the options in $chosen, in C and in C++
    for language in c11 c++17; do
        kind=c warnings=$strict_c
        case $language in c++*) kind=c++ warnings=$strict ;; esac
        syntax "$1 $language" for_msvc "$3" -x $kind -std=$language $warnings $2
    done
}

group="MSVC"
if [ ! -f "$wine_headers/msvcrt/stdio.h" ]; then
    skip "$group" "no headers: Debian has them in libwine-dev"
elif at_hand clang; then
    chosen=''
    for target in i686 x86_64 aarch64; do
        as_msvc "MSVC $target" "-DDEPRECATES -include $dir/msvc.h" $target-pc-windows-msvc
    done
    as_msvc "as cl" "$as_cl" $msvc
    for chosen in static no_training no_stdio scalar openmp release; do
        as_msvc "MSVC" "-DDEPRECATES -include $dir/msvc.h" $msvc
        as_msvc "as cl" "$as_cl" $msvc
    done
    collect
    group="MSVC, run"
    if at_hand lld-link ${wine:-wine64}; then
        libraries="-fuse-ld=lld -nostdlib -Xlinker /subsystem:console -Xlinker /entry:mainCRTStartup $dir/fltused.c
                   $wine_libraries/libucrtbase.a $wine_libraries/libkernel32.a $wine_libraries/libntdll.a"
        suffix=.exe tests="core screen files io pickle memory buffer metrics trainer golden"
        if [ "$MATRIX" = short ]; then tests="core files"; fi
        machine "MSVC" "$wine" "-include $dir/msvc.h" for_msvc $msvc
        tests="core screen trainer" levels=''
        if [ "$MATRIX" = short ]; then tests="core"; fi
        if grep -q avx512_bf16 /proc/cpuinfo; then machine "as-cl" "$wine" "$as_cl" for_msvc $msvc; else
            skip "as cl, run" "this processor lacks AVX-512"; fi
    fi
fi

# ---- Names that C++ reserves ----
if have clang++; then
    cell "no reserved names" clang++ -x c++ -std=c++11 -Wreserved-identifier -Werror -fsyntax-only -I. "$implementation"
    collect
fi
finish
