#!/bin/sh
# run.sh BUILD TEST... - runs each test (a program, a .sh or a .py), adds up their closing lines
# `N passed, N failed` (and `, N skipped`), repeats what failed and what was skipped and why, and
# closes with one such line alone. The exit status is the verdict. The C tests named in KERNEL_TESTS
# run again with each set of kernels in KERNEL_SETS; all of them run under the command UNDER, if there
# is one. With JOBS=2 two C tests run at a time, each in a folder of its own with links to what they
# read; scripts and Python, which share BUILD/tmp, come after them in turn.
build=$1
shift
JOBS=${JOBS:-1}
root=$(pwd)
dir=$build/run
rm -rf "$dir"
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
passed=0 failed=0 skipped=0 number=0
: > "$dir/bad"
: > "$dir/skip"
export DICTLEARN_SHARED="${DICTLEARN_SHARED:-$root/../shared}"

run_one() { # run_one NUMBER LABEL COMMAND...: its log, its status and what it is called, for count
    at=$dir/$1
    echo "$2" > "$at.label"
    shift 2
    "$@" > "$at.log" 2>&1
    echo $? > "$at.status"
}

count() { # count NUMBER: adds up what run_one left
    log=$dir/$1.log status=$(cat "$dir/$1.status") label=$(cat "$dir/$1.label")
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
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    printf '%-40s %4d passed %3d failed %3d skipped\n' "$label" "$p" "$f" "$s"
}

# ---- C tests: JOBS chains, each of which takes every JOBS-th ----
place() { # place JOB: the folder that it works in
    if [ "$JOBS" -eq 1 ]; then echo "$root" && return; fi
    mkdir -p "$dir/place$1"
    for link in tests examples bench dictlearn.h README.md; do
        ln -sf "$root/$link" "$dir/place$1/$link"
    done
    echo "$dir/place$1"
}

chain() ( # chain JOB: its share of the lines of $dir/list, which are NUMBER KERNELS PROGRAM
    cd "$(place "$1")" || exit 1
    while read -r number kernels program; do
        [ $((number % JOBS)) -eq "$1" ] || continue
        label=$(basename "$program")
        if [ "$kernels" = - ]; then run_one "$number" "$label" ${UNDER:-} "$program"; else
            run_one "$number" "$label ($kernels)" env "DICTLEARN_KERNELS=$kernels" ${UNDER:-} "$program"; fi
    done < "$dir/list"
)

: > "$dir/list"
for test in "$@"; do
    case $test in *.py | *.sh) continue ;; esac
    case $test in /*) ;; *) test=$root/$test ;; esac
    kernels=
    case " ${KERNEL_TESTS:-} " in *" $(basename "$test") "*) kernels=${KERNEL_SETS:-} ;; esac
    for set in - $kernels; do
        number=$((number + 1))
        echo "$number $set $test" >> "$dir/list"
    done
done
job=0
while [ "$job" -lt "$JOBS" ]; do
    chain "$job" &
    job=$((job + 1))
done
wait
for one in $(cut -d' ' -f1 "$dir/list"); do count "$one"; done

# ---- The others ----
for test in "$@"; do
    number=$((number + 1))
    case $test in
    */libraries.py) # in an environment of its own
        run_one $number "$(basename "$test")" "${PYTHON_OF_libraries:-${PYTHON:-python3}}" "$test" "$build" ;;
    */dashboard.py)
        run_one $number "$(basename "$test")" "${PYTHON_OF_dashboard:-${PYTHON:-python3}}" "$test" "$build" ;;
    *.py) run_one $number "$(basename "$test")" "${PYTHON:-python3}" "$test" "$build" ;;
    *.sh) run_one $number "$(basename "$test")" sh "$test" "$build" ;;
    *) continue ;;
    esac
    case $test in */traces.py) cat "$dir/$number.log" ;; esac # the table that interop is asked for
    count $number
done

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
if [ "$skipped" -gt 0 ]; then
    echo "$passed passed, $failed failed, $skipped skipped"
else
    echo "$passed passed, $failed failed"
fi
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
