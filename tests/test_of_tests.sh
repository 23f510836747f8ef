#!/bin/sh
# Plants the faults of tests/faults.txt, one at a time, in a copy of a header; the test named beside
# each must fail. A fault that nothing notices is a hole in the tests. JOBS faults are tried at a time
# (default 2). Without a fault it is BUILD's own test that must pass (`make test-of-tests` builds them).
# A second argument, a regular expression, picks the faults whose first line it fits:
# sh tests/test_of_tests.sh build 'Adam|train_ghost'
. tests/harness.sh
JOBS=${JOBS:-2}
OPENMP=${OPENMP-} # of Makefile; tests that ask for threads need it to have more than one
table=tests/faults.txt
chosen=${2:-.}
# FAULTS_SHARE=N plants every Nth of them only, from the FAULTS_TURNth on; all are looked for
share=${FAULTS_SHARE:-1}
heads=$(grep '^@ ' $table | grep -E -- "$chosen" | awk -v n="$share" -v at="${FAULTS_TURN:-0}" 'NR % n == at % n')
root=$(pwd)
mkdir -p "$BUILD/faults"
dir=$(cd "$BUILD/faults" && pwd)
rm -rf "${dir:?}"/*
export DICTLEARN_SHARED="${DICTLEARN_SHARED:-$root/../shared}" OMP_NUM_THREADS=1

# place NAME: a place to work in: the headers and programs as they are, and the folders that the tests look into.
place() {
    mkdir -p "$dir/$1/include"
    cp -R dictlearn.h examples/lm examples/look examples/program "$dir/$1/include"
    sh examples/program/embed.sh "$dir/$1/include"
    ln -s "$root/tests" "$root/examples" "$dir/$1"
}

# build PLACE PROGRAM: without optimisation, since most of the time goes into compiling; but kernels
# are far too slow without. Below -O2 gcc 12 asks for vzeroupper only with the second flag; without
# it scalar code after a kernel takes ten times as long.
build() {
    case $2 in core | screen | golden | trainer) effort=-O1 ;; *) effort=-O0 ;; esac
    effort="$effort -fexpensive-optimizations"
    $CC -std=c99 $effort $OPENMP -w $(whole "tests/test_$2.c") -I"$dir/$1/include" -I. "tests/test_$2.c" \
        -o "$dir/$1/test_$2" -lm
}

# run PLACE TEST FILTER: a fault may loop for ever or write without end.
run() (
    cd "$dir/$1" || exit 1
    ulimit -c 0
    ulimit -t 60
    case $2 in */test_large) ;; *) ulimit -f 2000000 ;; esac
    if [ "$3" = - ]; then "$2"; else "$2" "$3"; fi
)

# change PLACE OLD NEW: the text with NEW for OLD, which must stand once in PLACE, a file or a room of
# dictlearn.h.
change() {
    case $1 in */*) changed=$1 room=- ;; *) changed=dictlearn.h room=$1 ;; esac
    OLD=$2 NEW=$3 awk -v room="$room" '
        BEGIN { old = ENVIRON["OLD"]; new = ENVIRON["NEW"]; inside = room == "-" }
        room != "-" && /^\/\/ >>/ { inside = $0 == "// >>" room }
        inside && (at = index($0, old)) {
            found += 1 + (index(substr($0, at + length(old)), old) > 0)
            $0 = substr($0, 1, at - 1) new substr($0, at + length(old))
        }
        { print }
        END { exit found != 1 }' "$root/$changed"
}

each() { # each COMMAND: with the words of a fault's first line behind it, and $old and $new
    while IFS= read -r line; do
        case $line in
        "@ "*) head=${line#@ } ;;
        "- "*) old=${line#- } ;;
        "+"*)
            new=${line#+}
            new=${new# }
            "$1" $head
            ;;
        esac
    done < $table
}

# is_there PROGRAM FILTER PLACE NAME...: says so where the text of a fault has gone.
is_there() {
    echo "@ $*" | grep -Eq -- "$chosen" || return
    place=$3
    shift 3
    change "$place" "$old" "$new" > /dev/null || fail "$*" "expected once in $place: $old"
}
each is_there # of all at once: the first to know after a rewrite

# ---- The tests themselves: they must pass with the headers as they are, or a fault would prove nothing.
# That of a plain build says as much as one compiled as with a fault, and is there already ----

# sound PROGRAM FILTER: says pass, skip or fail in a file of that name.
sound() {
    sound_out=$(run base "$tests/test_$1" "$2" 2>&1) && sound_is=pass || sound_is=fail
    if [ "$sound_is" = fail ]; then fail "test_$1 $2, with no fault" "$sound_out"; fi
    if [ "$sound_is" = pass ] && echo "$sound_out" | grep -q '^0 passed'; then sound_is=skip; fi
    echo "$sound_is" > "$dir/base/$1.$2"
}

place base
tests=$(cd "$BUILD" && pwd)
for program in $(echo "$heads" | awk '{ print $2 }' | sort -u); do
    check "test_$program is built" test "$BUILD/test_$program" -nt dictlearn.h
    for filter in $(echo "$heads" | awk -v p="$program" '$2 == p { print $3 }' | sort -u); do
        sound "$program" "$filter"
    done
done

# ---- The faults ----

# try FAULT PLACE OLD NEW PROGRAM FILTER: plants one fault and notes what came of it.
try() (
    place "$1"
    case $2 in */*) file=${2#examples/} ;; *) file=dictlearn.h ;; esac
    change "$2" "$3" "$4" > "$dir/$1/include/$file"
    if ! build "$1" "$5" > "$dir/said.$1" 2>&1; then verdict="does not compile"
    elif run "$1" "./test_$5" "$6" > /dev/null 2>&1; then verdict="survived"
    else verdict="caught"; fi
    echo "$verdict" > "$dir/verdict.$1"
    rm -rf "${dir:?}/$1"
)

# plant PROGRAM FILTER PLACE NAME...: with $old and $new, once there is room.
plant() {
    echo "$heads" | grep -qxF -- "@ $*" || return
    program=$1 filter=$2 place=$3
    shift 3
    case $(cat "$dir/base/$program.$filter") in
    skip) skip "$*" "test_$program $filter has no data here"; return ;;
    fail) fail "$*" "test_$program $filter fails without it"; return ;;
    esac
    change "$place" "$old" "$new" > /dev/null || return # told already
    planted=$((planted + 1))
    echo "$*" > "$dir/name.$planted"
    begin try $planted "$place" "$old" "$new" "$program" "$filter"
}

slots "$dir"
planted=0 fault=0
each plant
wait
while [ $fault -lt $planted ]; do
    fault=$((fault + 1))
    name=$(cat "$dir/name.$fault") verdict=$(cat "$dir/verdict.$fault")
    case $verdict in
    caught) pass "$name" ;;
    survived) fail "$name" "nothing noticed it" ;;
    *) fail "$name" "the fault $verdict
$(cat "$dir/said.$fault")" ;;
    esac
done
finish
