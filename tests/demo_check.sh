#!/bin/sh
# demo_check.sh BUILD - runs `make demo` and holds its figures to what the README promises: on text
# that the dictionary was not trained on, variance explained >= 0.92 and cross-entropy recovered >=
# 0.97, at L0 <= 32, at a site whose zero ablation costs at least 0.5 nats.
. tests/harness.sh
log=$BUILD/tmp/demo.log
mkdir -p "$BUILD/tmp"

figure() { # figure KEY: of the JSON object
    sed -n "s/.*\"$1\": \([-0-9.e]*\).*/\1/p" "$log.json"
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
for row in "variance explained" "L1" "L0" "alive" "CE diff" "CE recovered"; do
    check "the table has a row for $row" grep -q "^ *$row " "$log"
done
check "features are shown" grep -q "^ *feature [0-9]" "$log"
check "it says where the page is" grep -q "open .*/demo/features.html in a browser" "$log"
page=$BUILD/demo/features.html
check "the page has its data" grep -q '<script id="data" type="application/json">{"version":1' "$page"
within "bytes of the page" "$(wc -c < "$page" | tr -d ' ')" '<' 20000000
check "held-out text is evaluated again" sh -c \
    "$BUILD/dictlearn eval --dict $BUILD/demo/run --json --rows 16384 \
    --model examples/data/tiny-neox --text $BUILD/demo/held.jsonl \
    --site mlp_out --layer 0 > $log.json"
within "variance explained" "$(figure variance_explained)" '>=' 0.92
within "cross-entropy recovered" "$(figure percent_recovered)" '>=' 0.97
within "L0" "$(figure l0)" '<=' 32
within "zero ablation, nats" "$(awk "BEGIN { print $(figure loss_zero) - $(figure loss_original) \
    }")" '>=' 0.5
finish
