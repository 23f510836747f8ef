#!/bin/sh
# test_cpp.sh BUILD - examples/dictlearn.hpp with each C++ compiler at hand: oldest and newest standard, with exceptions
# and without, under strict warnings; and the example. test_cpp.cpp has the checks. `make san` runs them once more.
. tests/harness.sh
d=$BUILD/tmp/cpp
rm -rf "$d"
mkdir -p "$d"
strict="-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Wcast-align -Wcast-qual -Wundef
        -Wdouble-promotion -Wvla -Wformat=2 -Wnon-virtual-dtor -Wunused -Werror"

# built NAME COMMAND...: compiled, and linked to what the C compiler has made
built() {
    name=$1
    shift
    harness_out=$("$@" -c -I. -o "$d/test.o" 2>&1) &&
        harness_out=$($CC $OPENMP "$d/test.o" "$BUILD/dictlearn.o" -o "$d/test" -lstdc++ -lm 2>&1) ||
        { fail "$name" "$harness_out"; return 1; }
}

compilers='' met=''
for compiler in "$CXX" g++ clang++; do
    have "$compiler" || { skip "$compiler" "not installed"; continue; }
    file=$(readlink -f "$(command -v "$compiler")")
    case " $met " in *" $file "*) continue ;; esac # c++ is one of the others
    compilers="$compilers $compiler" met="$met $file"
done
for compiler in $compilers; do
    for how in -std=c++11 -std=c++20 "-std=c++11 -DDICTLEARN_NO_EXCEPTIONS" "-std=c++20 -fno-exceptions"; do
        built "$compiler $how" "$compiler" $how -O0 $strict tests/test_cpp.cpp || continue
        status "$compiler $how" 0 "$d/test" "$d/state.safetensors"
        says "$compiler $how: no check fails" ' passed, 0 failed$' "$d/out"
    done
    check "$compiler, without training" "$compiler" -std=c++11 -Wall -Werror -DDICTLEARN_NO_TRAINING -I. -fsyntax-only \
        -include examples/dictlearn.hpp -x c++ /dev/null
done
if [ -z "$compilers" ]; then finish; fi

# Files of both kinds in one program: no function of one is taken for the other's.
compiler=${compilers##* }
for kind in with without; do
    cat > "$d/$kind.cpp" << END
#include "examples/dictlearn.hpp"
int $kind();
int $kind() {
    auto made = dlrn::Context::create();
    return sizeof made == sizeof(dlrn::Context);
}
END
done
printf 'int with(); int without();\nint main() { return with() == 1 && without() == 0 ? 0 : 1; }\n' > "$d/main.cpp"
both() {
    "$compiler" -std=c++11 -I. -c "$d/with.cpp" -o "$d/with.o" &&
        "$compiler" -std=c++11 -I. -DDICTLEARN_NO_EXCEPTIONS -c "$d/without.cpp" -o "$d/without.o" &&
        "$compiler" -std=c++11 -c "$d/main.cpp" -o "$d/main.o" &&
        $CC $OPENMP "$d/main.o" "$d/with.o" "$d/without.o" "$BUILD/dictlearn.o" -o "$d/both" -lstdc++ -lm && "$d/both"
}
check "with exceptions and without in one program" both

# What is wrong does not compile.
compiles() { # compiles STATEMENT
    printf '#include "examples/dictlearn.hpp"\n#include <vector>\nint main() { dlrn::Dictionary a; %s }\n' "$1" \
        > "$d/refused.cpp"
    "$compiler" -std=c++11 -I. -fsyntax-only "$d/refused.cpp"
}
check "a move" compiles 'dlrn::Dictionary b = std::move(a);'
check_fails "a copy" compiles 'dlrn::Dictionary b = a;'
check_fails "a result in constant memory" compiles 'const std::vector<float> f(1); dlrn::Span<float> out = f;'
check_fails "numbers of another type" compiles 'std::vector<double> x(1); dlrn::Span<const float> in = x;'

check "the interface is short" test "$(wc -l < examples/dictlearn.hpp)" -lt 150
check "the example is short" test "$(wc -l < examples/09_cpp.cpp)" -lt 100
command=$(sed -n 's/^       c++ \(-std.*\) -o .*$/\1/p' examples/09_cpp.cpp)
check "it compiles as its comment says" "$compiler" -fsyntax-only -Wall -Wextra -Werror $command
built "the example" "$compiler" -std=c++11 -DDLRNI_IMPLEMENTED examples/09_cpp.cpp || finish
status "it runs" 0 sh -c "cd $d && ./test"
says "it trains" '^step 450  loss [0-9. ]*L0 3.00$' "$d/out"
says "it encodes" '^feature [0-9]*: [0-9.]*$' "$d/out"
says "it evaluates" '^variance explained [89][0-9]\.. %, L0 [23]\.' "$d/out"
says "it shows an error" '^none.pt: no such file' "$d/out"
absent "it leaves nothing" "$d/cpp.pt"
finish
