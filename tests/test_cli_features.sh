#!/bin/sh
# test_cli_features.sh BUILD - `dictlearn features` on examples/data/tiny-neox: on the terminal, as JSON in
# SAEDashboard's keys, and as a page; what both hold is read back by tests/page_data.py.
. tests/harness.sh
dl=$BUILD/dictlearn
d=$BUILD/tmp/features
tiny=examples/data/tiny-neox
site="--site mlp_out --layer 0"
rm -rf "$d"
mkdir -p "$d"

"$dl" generate --model $tiny --tokens 60 --documents 60 --seed 3 --out "$d/a.jsonl" --quiet
train="$dl train --quiet --model $tiny --text $d/a.jsonl $site --dict-size 256 --batch-size 64"
train="$train --n-ctxs 8 --in-batch-size 4"
status "train on a text" 0 $train --steps 20 --lr 3e-3 --warmup-steps 2 --save-dir "$d/whole"
features="$dl features --dict $d/whole --model $tiny --text $d/a.jsonl $site"

# data NAME ARGUMENTS...: what tests/page_data.py checks in a page or in JSON
data() {
    harness_name=$1
    shift
    if ! have python3; then skip "$harness_name" "no python3" && return; fi
    check "$harness_name" python3 tests/page_data.py "$@"
}

# ---- The terminal
status "features" 0 $features --count 2
says "are shown" "^feature [0-9]*: fires on" "$d/out"
says "with their tokens" '^  tokens    ".*" [0-9]* %' "$d/out"
says "and contexts" "$(printf '^ *[0-9.]*  .*\302\253.*\302\273')" "$d/out"
check_equal "as many as were asked for" 2 "$(grep -c '^feature ' "$d/out")"
says "the memory is told first" "^up to 65536 rows: the survey takes up to [0-9.]* [MGK]*B of memory$" "$d/err"
status "features in little memory" 0 env TMPDIR="$d" $features --count 1 --memory 0
says "the temporary file is told, with its folder" " of memory and [0-9.]* [KMG]B in a temporary file in $d$" \
    "$d/err"
status "features, quietly" 0 $features --features 3,5 --quiet --contexts 2
check_equal "say nothing else" 0 "$(wc -c < "$d/err" | tr -d ' ')"
check_equal "in the order of the list" "feature 3: feature 5: " \
    "$(grep -o '^feature [0-9]*:' "$d/out" | tr '\n' ' ')"
cp "$d/out" "$d/once"
status "features asked for twice" 0 $features --features 3,5,3,3,5 --quiet --contexts 2
same "are shown once" "$d/once" "$d/out"
status "a range" 0 $features --features 250-255,3 --quiet --contexts 1
check_equal "is all of it" 7 "$(grep -c '^feature ' "$d/out")"
for recipe in dl-top_k dl-jump_relu; do
    status "train by $recipe" 0 $train --recipe $recipe --steps 6 --save-dir "$d/$recipe"
    status "features of $recipe" 0 instead --dict "$d/$recipe" $features --count 2
    says "$recipe: are shown" "^feature [0-9]*: fires on" "$d/out"
done
status "a dictionary whose features all die" 0 $train --steps 20 --lr 10 --warmup-steps 2 --save-dir "$d/dead"
dead="$dl features --dict $d/dead --model $tiny --text $d/a.jsonl $site"
status "features of it" 0 $dead
says "one line says that none fires" "^$d/dead: no feature fires on the [0-9]* rows of" "$d/out"
status "features --json of it" 0 $dead --features 3 --json
says "has nothing" '"frac_nonzero":0,.*"activations":\[\]' "$d/out"
says "and says so" "none of these features fires" "$d/err"
status "a page of it" 0 $dead --out "$d/dead.html"
data "shows them all" page "$d/dead.html" 256
printf '{"text": "The \\u0007cat\\u001b \\u009b31m sat\\u0085 on\\n\\tthe \\u007fmat."}\n' > "$d/wild.jsonl"
status "features of a wild text" 0 instead --text "$d/wild.jsonl" $features --contexts 50
check_fails "a wild text does not reach the terminal" obeyed "$d/out"
says "it is shown" "31m sat? on" "$d/out"
status "features --json of a wild text" 0 instead --text "$d/wild.jsonl" $features --json
check_fails "nor is it here" obeyed "$d/out"

printf '\n\n' > "$d/blank.txt"
status "features of no text" 1 instead --text "$d/blank.txt" $features
says "names the file" "^dictlearn: $d/blank.txt: expected documents, found none$" "$d/err"
status "strongest on the first token" 0 $features --rows 60 --ctx-len 1 --count 2
says "recommends --skip-first" "^$d/a.jsonl: 2 of 2 features are strongest on the first token .*--skip-first 1" "$d/err"
status "codes in a file" 0 $features --count 1 --memory 0
says "says where that is" "and [0-9.]* [KM]B in a temporary file in [^ ]*$" "$d/err"
wrong "no features" "--features: expected 1 to 4095 bytes, found 0" $features --features ''
wrong "too many contexts" "--contexts: expected a whole number from 1 to 65536, found '65537'" \
    $features --contexts 65537

# ---- JSON
status "features --json" 0 $features --features 3,5 --json --quiet
says "in one object" '^{"model_id":"tiny-neox","layer":0,"sae_set":"whole","sae_id_suffix":null,"features":\[{' "$d/out"
cp "$d/out" "$d/3.json"
data "with SAEDashboard's keys" json "$d/3.json" 2
status "features --json --compat" 0 $features --features 3,5 --json --quiet --compat
cp "$d/out" "$d/compat.json"
data "with these alone" compat "$d/compat.json" 2

# ---- The page
status "a page" 0 $features --out "$d/page.html"
says "is told" "^$d/page.html: 256 features$" "$d/err"
check_equal "and nothing goes to standard output" 0 "$(wc -c < "$d/out" | tr -d ' ')"
data "has all features" page "$d/page.html" 256
data "agrees with the JSON" agree "$d/page.html" "$d/3.json"
check_fails "asks for nothing from elsewhere" grep -Eiq \
    '(src|href|action|poster|data)=.?(https?:)?//|@import|url\(|<link|<iframe|import\(|fetch\(|XMLHttpRequest' \
    "$d/page.html"
says "and may not" "default-src 'none'" "$d/page.html"
check_fails "does not tell where it was made" grep -q "$d\|$BUILD/tmp\|/tmp/" "$d/page.html"
for how in "--threads 1" "--threads 3" "--kernels scalar" "--memory 0"; do
    status "a page with $how" 0 $features --quiet --out "$d/other.html" $how
    same "is the same" "$d/page.html" "$d/other.html"
done
absent "and no temporary file stays" "$d"/other.html?*
"$dl" features --quiet --dict "$d/whole/ae.pt" --model $tiny/ --text - $site --out - \
    < "$d/a.jsonl" > "$d/piped.html"
data "a page through a pipe" page "$d/piped.html" 256
status "page and JSON of one sweep" 0 $features --features 3,5 --quiet --out "$d/both.html" --json
same "the JSON" "$d/3.json" "$d/out"
data "the page" page "$d/both.html" 2
status "a page of some" 0 $features --quiet --count 7 --out "$d/some.html"
data "has so many" page "$d/some.html" 7
says "and says which" "7 of 256 features are shown" "$d/some.html"
status "rows left out" 0 $features --quiet --count 7 --skip-first 3 --rows 500 --out "$d/skip.html"
says "are told" "rows are left out" "$d/err"
data "and count nowhere" page "$d/skip.html" 7
says "the title names site and model" '"title":"Features of whole: mlp_out 0 of tiny-neox"' "$d/skip.html"
says "the page knows how far windows reach" '"window":{"ids":2,"before":32,"after":16}' "$d/skip.html"
status "a dictionary from one site to another" 0 $train --recipe sp-transcoder --k 8 --steps 6 --io in_to_out \
    --save-dir "$d/coder"
status "its page" 0 instead --dict "$d/coder" $features --quiet --io in_to_out --out "$d/coder.html"
data "has both sides" page "$d/coder.html" 256 both

# 1,000 features of long contexts in less than 20 MB
"$dl" generate --model $tiny --tokens 200 --documents 200 --seed 5 --out "$d/b.jsonl" --quiet
status "train 1024 features" 0 instead --dict-size 1024 $train --recipe dl-top_k --k 24 --steps 6 --save-dir "$d/large"
status "a page of 1,000 of them" 0 "$dl" features --quiet --dict "$d/large" --model $tiny --text "$d/b.jsonl" $site \
    --count 1000 --out "$d/large.html"
check "takes less than 20 MB" test "$(wc -c < "$d/large.html")" -lt 20000000
data "and has them" page "$d/large.html" 1000

# ---- A hostile vocabulary: tokens that end scripts, turn text around, hold zeros and halves of characters
if have python3; then
    cp -r $tiny "$d/hostile"
    python3 tests/page_data.py hostile $tiny/tokenizer.json "$d/hostile/tokenizer.json" > "$d/hostile.jsonl"
    status "features of a hostile vocabulary" 0 "$dl" features --quiet --dict "$d/whole" --model "$d/hostile" \
        --text "$d/hostile.jsonl" --tokens-key input_ids $site --out "$d/hostile.html" --json
    check_fails "do not reach the terminal" obeyed "$d/out"
    data "are text of the page alone" tame "$d/hostile.html"
    check_equal "no script is added" "$(grep -o '<script' examples/program/page.html | wc -l)" \
        "$(grep -o '<script' "$d/hostile.html" | wc -l)"
else
    skip "a hostile vocabulary" "no python3"
fi

# ---- Wrong usage
wrong "features that are no numbers" "numbers and ranges with commas between" $features --features 0,x
wrong "a range that descends" "numbers and ranges with commas between" $features --features 5-3
wrong "all and some" "one of --all, --count and --features" $features --all --features 3
wrong "a page in .json" "ending in .html" $features --out "$d/a.json"
wrong "two things to standard output" "both go to standard output" $features --json --out -
status "features that the dictionary lacks" 1 $features --features 3,256
says "are told" "--features: expected numbers below 256 .*found 256" "$d/err"
status "a page to no folder" 1 $features --out "$d/none/a.html"
says "is told" "^dictlearn: $d/none/a.html: cannot create it" "$d/err"
: > "$d/empty.txt"
status "a page of no text" 1 instead --text "$d/empty.txt" $features --out "$d/empty.html"
says "is told" "empty.txt: expected documents, found none" "$d/err"
for i in 1 2 3 4 5 6 7 8 9 10; do cat "$d/a.jsonl" "$d/b.jsonl"; done > "$d/t"
for i in 1 2 3 4 5 6 7 8 9 10; do cat "$d/t" "$d/t"; done > "$d/long.jsonl"
stopped "a page" 143 "ls $d/late.html.*" "$dl" features --dict "$d/whole" --model $tiny --text "$d/long.jsonl" \
    $site --rows all --out "$d/late.html"
says "it says so" "^dictlearn: stopped before it was done" "$d/err"
absent "and no page is there, nor a half of one" "$d/empty.html" "$d"/late.html*
finish
