#!/bin/sh
# run.sh BUILD TEST... - runs each test (a program, a .sh or a .py), adds up their closing lines `N passed, N failed`
# (and `, N skipped`), repeats what failed and what was skipped and why, and closes with one such line alone. The exit
# status is the verdict. The C tests named in KERNEL_TESTS run again with each set of kernels in KERNEL_SETS; all of
# them run under the command UNDER, if there is one.
build=$1
shift
log=$build/test.log
passed=0 failed=0 skipped=0
: > "$log.bad"
: > "$log.skip"

run_one() { # run_one LABEL COMMAND...
    label=$1
    shift
    "$@" > "$log" 2>&1
    status=$?
    close=$(grep -E '^[0-9]+ passed, [0-9]+ failed(, [0-9]+ skipped)?$' "$log" | tail -n 1)
    set -- $(echo "$close" | tr -cd '0-9 ')
    p=${1:-0} f=${2:-0} s=${3:-0}
    if [ -z "$close" ] || { [ $status -ne 0 ] && [ "$f" -eq 0 ]; }; then # it crashed, or lies
        f=$((f + 1))
        tail -n 30 "$log"
        echo "$label: ended with status $status after: $(tail -n 1 "$log")" >> "$log.bad"
    fi
    grep '^FAIL' "$log" | sed "s|^|$label: |" >> "$log.bad"
    grep -i '^skip' "$log" | sed "s|^|$label: |" >> "$log.skip"
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    printf '%-40s %4d passed %3d failed %3d skipped\n' "$label" "$p" "$f" "$s"
}

for t in "$@"; do
    name=$(basename "$t")
    case $t in
    *.py) run_one "$name" "${PYTHON:-python3}" "$t" "$build" ;;
    *.sh) run_one "$name" sh "$t" "$build" ;;
    *)
        run_one "$name" ${UNDER:-} "$t"
        case " ${KERNEL_TESTS:-} " in *" $name "*) ;; *) continue ;; esac
        for set in ${KERNEL_SETS:-}; do
            run_one "$name ($set)" env DICTLEARN_KERNELS="$set" "$t"
        done
        ;;
    esac
done

if [ -s "$log.skip" ]; then
    echo
    echo "Skipped:"
    sort "$log.skip" | uniq
fi
if [ -s "$log.bad" ]; then
    echo
    echo "Failed:"
    cat "$log.bad"
fi
echo
if [ "$skipped" -gt 0 ]; then
    echo "$passed passed, $failed failed, $skipped skipped"
else
    echo "$passed passed, $failed failed"
fi
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
