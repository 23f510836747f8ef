#!/bin/sh
# demo_check.sh BUILD - runs `make demo` and holds its figures to what the README promises: on text that the dictionary
# was not trained on, variance explained >= 0.92 and cross-entropy recovered >= 0.97, at L0 <= 32.
. tests/harness.sh
log=$BUILD/tmp/demo.log
mkdir -p "$BUILD/tmp"

figure() { # figure NAME: the first number in the table's row of that name
    grep -i "$1" "$log" | grep -oE '[0-9]+(\.[0-9]+)?' | head -n 1
}
within() { # within NAME FIGURE RELATION BOUND
    if [ -n "$2" ] && awk "BEGIN { exit !($2 $3 $4) }"; then pass "$1: $2 $3 $4"; else
        fail "$1" "found '${2:-nothing}', expected $3 $4"; fi
}

if make demo > "$log" 2>&1; then
    pass "make demo"
else
    fail "make demo" "$(tail -n 20 "$log")"
fi
cat "$log"
within "variance explained" "$(figure 'variance explained')" '>=' 0.92
within "cross-entropy recovered" "$(figure 'recovered')" '>=' 0.97
within "L0" "$(figure '^ *L0' | tail -n 1)" '<=' 32
finish
