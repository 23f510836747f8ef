#!/bin/sh
# run.sh BUILD TEST... - runs each test (a program, a .sh or a .py), adds up their closing lines
# `N passed, N failed` (and `, N skipped`), repeats what failed and what was skipped and why, and
# closes with one such line alone. The exit status is the verdict. The C tests named in KERNEL_TESTS
# run again with each set of kernels in KERNEL_SETS; all of them run under the command UNDER, if there
# is one. JOBS tests (2) run at a time: C tests in a folder of their own with links to what they read,
# and at most one script or Python from here, since these share BUILD.
build=$1
shift
JOBS=${JOBS:-2}
root=$(pwd)
dir=$build/run
rm -rf "$dir"
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
number=0
: > "$dir/sums"
: > "$dir/bad"
: > "$dir/skip"
export DICTLEARN_SHARED="${DICTLEARN_SHARED:-$root/../shared}"

run_one() { # run_one NUMBER LABEL COMMAND...: runs it, and says and notes what it counted
    log=$dir/$1.log label=$2 status=0
    shift 2
    "$@" > "$log" 2>&1 < /dev/null || status=$?
    close=$(grep -aE '^[0-9]+ passed, [0-9]+ failed(, [0-9]+ skipped)?$' "$log" | tail -n 1)
    set -- $(echo "$close" | tr -cd '0-9 ')
    p=${1:-0} f=${2:-0} s=${3:-0}
    if [ -z "$close" ] || { [ "$status" -ne 0 ] && [ "$f" -eq 0 ]; }; then # it crashed, or lies
        f=$((f + 1))
        tail -n 30 "$log"
        echo "$label: ended with status $status after: $(tail -n 1 "$log")" >> "$dir/bad"
    fi
    grep -a '^FAIL' "$log" | sed "s|^|$label: |" >> "$dir/bad"
    grep -ai '^skip' "$log" | sed "s|^|$label: |" >> "$dir/skip"
    echo "$p $f $s" >> "$dir/sums"
    printf '%-40s %4d passed %3d failed %3d skipped\n' "$label" "$p" "$f" "$s"
}

# ---- JOBS chains, each of which takes the next C test that no other has taken; the first one
# begins with the scripts ----
place() { # place JOB: the folder that its C tests work in
    if [ "$JOBS" -eq 1 ]; then echo "$root" && return; fi
    mkdir -p "$dir/place$1"
    for link in tests examples bench dictlearn.h README.md; do
        ln -sfn "$root/$link" "$dir/place$1/$link"
    done
    echo "$dir/place$1"
}

script() { # script NUMBER PATH: one that is no program
    case $2 in
    */libraries.py) # in an environment of its own
        set -- "$1" "$2" "${PYTHON_OF_libraries:-${PYTHON:-python3}}" ;;
    */dashboard.py) set -- "$1" "$2" "${PYTHON_OF_dashboard:-${PYTHON:-python3}}" ;;
    *.py) set -- "$1" "$2" "${PYTHON:-python3}" ;;
    *) set -- "$1" "$2" sh ;;
    esac
    run_one "$1" "$(basename "$2")" "$3" "$2" "$build"
    case $2 in */traces.py) cat "$dir/$1.log" ;; esac # the table that interop is asked for
}

chain() { # chain JOB LIST: lines of a list, which are NUMBER KERNELS TEST
    here=$(place "$1")
    while read -r number kernels test; do
        mkdir "$dir/$number.taken" 2> /dev/null || continue
        label=$(basename "$test")
        case $test in
        *.py | *.sh) script "$number" "$test" ;;
        *) (
            cd "$here" || exit 1
            if [ "$kernels" = - ]; then run_one "$number" "$label" ${UNDER:-} "$test"; else
                run_one "$number" "$label ($kernels)" env "DICTLEARN_KERNELS=$kernels" ${UNDER:-} "$test"; fi
        ) ;;
        esac
    done < "$2"
}

: > "$dir/programs"
: > "$dir/scripts"
for test in "$@"; do
    kernels= list=$dir/programs
    case $test in
    *.py | *.sh) list=$dir/scripts ;;
    /*) ;;
    *) test=$root/$test ;;
    esac
    case " ${KERNEL_TESTS:-} " in *" $(basename "$test") "*) kernels=${KERNEL_SETS:-} ;; esac
    for set in - $kernels; do
        number=$((number + 1))
        echo "$number $set $test" >> "$list"
    done
done
job=0
while [ "$job" -lt "$JOBS" ]; do
    {
        if [ "$job" -eq 0 ]; then chain 0 "$dir/scripts"; fi
        chain "$job" "$dir/programs"
    } &
    job=$((job + 1))
done
wait
if [ -s "$dir/skip" ]; then
    echo
    echo "Skipped:"
    sort "$dir/skip" | uniq
fi
if [ -s "$dir/bad" ]; then
    echo
    echo "Failed:"
    cat "$dir/bad"
fi
echo
set -- $(awk '{ p += $1; f += $2; s += $3 } END { print p + 0, f + 0, s + 0 }' "$dir/sums")
passed=$1 failed=$2 skipped=$3
if [ "$(wc -l < "$dir/sums")" -ne "$number" ]; then
    echo "a chain of tests ended early"
    failed=$((failed + 1))
fi
if [ "$skipped" -gt 0 ]; then
    echo "$passed passed, $failed failed, $skipped skipped"
else
    echo "$passed passed, $failed failed"
fi
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
