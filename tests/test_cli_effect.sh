#!/bin/sh
# test_cli_effect.sh BUILD - effect and steer on examples/data/tiny-neox: output, JSON, threads, wrong
# usage. Their numbers are compared with torch in tests/effect_check.py.
. tests/harness.sh
dl=$BUILD/dictlearn
d=$BUILD/tmp/effect_cli
tiny=examples/data/tiny-neox
rm -rf "$d"
mkdir -p "$d"

train() { # train NAME FLAG...: a dictionary of 256 features in $d/NAME
    name=$1
    shift
    status "train $name" 0 "$dl" train --quiet --dict-size 256 --batch-size 64 --steps 20 --warmup-steps 2 \
        --lr 3e-3 --save-dir "$d/$name" "$@"
}
field() { # field FILE KEY: the last number of this name
    sed -n "s/.*\"$2\": \([-+0-9.e]*\).*/\1/p" "$1"
}
within() { # within NAME BOUND A B: they differ by at most BOUND
    if [ -n "$3" ] && [ -n "$4" ] && awk "BEGIN { x = $3 - $4; exit !(x <= $2 && -x <= $2) }"; then pass "$1"; else
        fail "$1" "'$3' and '$4'"; fi
}

status "texts" 0 "$dl" generate --model $tiny --tokens 40 --documents 24 --seed 3 --out "$d/a.jsonl"
train run --model $tiny --text "$d/a.jsonl" --site mlp_out --layer 0 --n-ctxs 4 --in-batch-size 2
train last --model $tiny --text "$d/a.jsonl" --site resid_out --layer 5 --n-ctxs 4 --in-batch-size 2
at="--model $tiny --site mlp_out --layer 0"
prompt='The river ran'
printf '{"text": "%s"}\n' "$prompt" > "$d/one.jsonl"
effect="$dl effect --dict $d/run $at --text $d/one.jsonl"

# ---- effect: the strongest features
status "effect" 0 $effect --count 3
says "says where" "^each feature at mlp_out of layer 0, set to 0 at the last token of 1 input, the dict" "$d/out"
says "what comes next" '^next token  ".*": log p -[0-9.]*; 3 of [0-9]* active features$' "$d/out"
check_equal "and has a line for each" 3 "$(grep -c '^ *[0-9]* *[0-9.]* *[-+][0-9.]* *[0-9.]*  "' "$d/out")"
says "its cost, and that it is exact" '^4 forward passes in 1 run of the model: exact$' "$d/out"
status "effect --json" 0 $effect --count 3 --json
cp "$d/out" "$d/three"
says "names its features" \
    '"active_features": [0-9]*, "features": \[{"feature": [0-9]*, "activation": [0-9.]*, "active": 1, "kl": ' "$d/three"
status "effect of a prompt" 0 "$dl" effect --dict "$d/run" $at --prompt "$prompt" --count 3 --json
same "is that of the same text" "$d/three" "$d/out"
for flags in "--threads 1" "--threads 2" "--kernels scalar"; do
    status "effect $flags" 0 $effect --count 3 --json $flags
    same "effect $flags: the same numbers" "$d/three" "$d/out"
done

# ---- effect: one feature
feature=$(field "$d/three" feature)
status "effect --feature" 0 $effect --feature "$feature"
says "says which" "^feature $feature at mlp_out of layer 0, set to 0 at the last token of 1 input" "$d/out"
says "how active it is" "^activation  [0-9.]* on average, active on 1 of 1 tokens$" "$d/out"
check_equal "8 tokens up, 8 down" 16 "$(grep -c '^ *[-+][0-9.]* *-[0-9.]* *-[0-9.]*  "' "$d/out")"
says "from two passes" '^2 forward passes in 1 run of the model: exact$' "$d/out"
status "effect --feature --json" 0 $effect --feature "$feature" --json --count 2048
within "its divergence is that among others" 1e-7 "$(field "$d/three" kl)" "$(field "$d/out" kl)"
check_fails "no token reaches the terminal as it is" obeyed "$d/out"
status "and in words" 0 $effect --feature "$feature" --count 2048
check_fails "nor here" obeyed "$d/out"
check_equal "each token is there twice" 4096 "$(grep -c '^ *[-+][0-9.]* *-[0-9.]* *-[0-9.]*  "' "$d/out")"
own=$(field "$d/three" activation)
status "a feature set to what it is" 0 $effect --feature "$feature" --set "$own" --json
within "changes nothing" 1e-9 0 "$(field "$d/out" kl)"
within "of its activation" 1e-6 "$own" "$(field "$d/out" activation)"
status "effect --token" 0 $effect --count 1 --token ' the' --json
says "takes that token" '"token_text": " the"' "$d/out"
status "effect --by p" 0 $effect --feature "$feature" --by p --count 1
check "takes likelier tokens" sh -c "awk '/^ *[-+]/ { exit !(\$2 > -8) }' $d/out"
status "two tokens" 1 $effect --token 'the cat'
says "are counted" "--token: expected one token, found [2-9]" "$d/err"

# ---- effect: several inputs, all positions
status "effect on texts" 0 "$dl" effect --dict "$d/run" $at --text "$d/a.jsonl" --count 2 --json --documents 20
says "one token of each" '"positions": "last", "inputs": 20, "rows": 20, ' "$d/out"
says "as many passes" '"forward_passes": 60, ' "$d/out"
status "effect on all tokens" 0 "$dl" effect --dict "$d/run" $at --text "$d/a.jsonl" --feature "$feature" --json \
    --positions all --documents 3
rows=$("$dl" tokenize --model $tiny --text "$d/a.jsonl" --documents 3 | wc -w | tr -d ' ')
says "all of them" "\"positions\": \"all\", \"inputs\": 3, \"rows\": $rows, " "$d/out"
status "but the first" 0 "$dl" effect --dict "$d/run" $at --text "$d/a.jsonl" --feature "$feature" --json \
    --positions all --documents 3 --skip-first 1
says "are fewer" "\"rows\": $((rows - 3)), " "$d/out"
status "no token left" 1 $effect --skip-first 100
says "is an error" "expected tokens to measure, found that the flags leave out all" "$d/err"

# ---- effect: behind the last layer
last="$dl effect --dict $d/last --model $tiny --site resid_out --layer 5 --text $d/one.jsonl"
status "effect behind the last layer" 0 $last --count 4
says "one pass" '^1 forward pass in 1 run of the model: exact for logits under the final norm' "$d/out"
status "its JSON" 0 $last --count 400 --json
says "says how" '"method": "linear", ' "$d/out"
cp "$d/out" "$d/linear"
check_equal "all active features, the most effect first" \
    "$(grep -o '"kl": [0-9.e-]*' "$d/linear" | cut -d ' ' -f 2 | sort -gr | tr '\n' ' ')" \
    "$(grep -o '"kl": [0-9.e-]*' "$d/linear" | cut -d ' ' -f 2 | tr '\n' ' ')"
check_equal "as many as are active" "$(field "$d/linear" active_features)" \
    "$(grep -o '"feature": ' "$d/linear" | wc -l | tr -d ' ')"
status "one of them alone" 0 $last --feature "$(field "$d/linear" feature)" --json
says "by forward passes" '"method": "forward passes", ' "$d/out"

# ---- steer
steer="$dl steer --dict $d/run $at --feature $feature --tokens 20 --seed 5"
status "steer" 0 $steer --prompt "$prompt" --scale 0,8,-8
says "says where" "^feature $feature at mlp_out of layer 0, changed at every token, .*; seed 5$" "$d/out"
says "which perplexity" "^perplexity: of the new tokens under the unchanged model$" "$d/out"
cp "$d/out" "$d/steered"
plain=$(sed -n 's/^plain *[0-9.]*  //p' "$d/steered")
check_equal "nothing added is the plain text" "$plain" "$(sed -n 's/^scale 0 *[0-9.]*  //p' "$d/steered")"
check "something is another" test "$plain" != "$(sed -n 's/^scale 8 *[0-9.]*  //p' "$d/steered")"
check_equal "and takes its sign" 1 "$(grep -c '^scale -8 ' "$d/steered")"
"$dl" generate --model $tiny --prompt "$prompt" --tokens 20 --seed 5 --out "$d/plain.jsonl"
status "steer --json" 0 $steer --prompt "$prompt" --scale 0,8,-8 --json
text=$(sed -n 's/^{"text": \(".*"\)}$/\1/p' "$d/plain.jsonl")
check "the plain text is generate's" grep -qF "\"text\": $text, \"tokens\": [" "$d/out"
for flags in "--threads 1" "--kernels scalar"; do
    status "steer $flags" 0 $steer --prompt "$prompt" --scale 0,8,-8 $flags
    same "steer $flags: the same texts" "$d/steered" "$d/out"
done
status "steer --set" 0 $steer --prompt "$prompt" --set 6 --text "$d/a.jsonl" --documents 5
says "the perplexity of a text" "^perplexity: of $d/a.jsonl (5 contexts) under the changed model$" "$d/out"
says "with the change" "^set 6 *[0-9.]*  The river ran" "$d/out"
status "eval of it" 0 "$dl" eval --dict "$d/run" $at --text "$d/a.jsonl" --documents 5 --json
$steer --set 6 --text "$d/a.jsonl" --documents 5 --json | sed 's/"steered".*//' > "$d/before"
within "as eval has it" 0.01 "$(awk "BEGIN { print exp($(field "$d/out" loss_original)) }")" \
    "$(field "$d/before" perplexity)"
hostile=$(printf 'a\342\200\256\033b')
status "a prompt that would turn the line around" 0 $steer --prompt "$hostile" --scale 1
says "is shown without that" "a??b" "$d/out"
status "in JSON" 0 $steer --prompt "$hostile" --scale 1 --json
says "it is escaped" 'a\\u202e\\u001bb' "$d/out"
status "without a prompt" 0 $steer --scale 1
status "a wild text" 0 $steer --scale 1 --temperature 1000
check_fails "does not reach the terminal" obeyed "$d/out"
status "nor as JSON" 0 $steer --scale 1 --temperature 1000 --json
check_fails "either" obeyed "$d/out"
status "the first tokens left out" 0 $steer --prompt "$prompt" --scale 8 --skip-first 1000
check_equal "change nothing" "$(sed -n 's/^plain *//p' "$d/out")" "$(sed -n 's/^scale 8 *//p' "$d/out")"

# ---- transcoders, other dictionaries
train map --model $tiny --text "$d/a.jsonl" --site mlp_out --layer 0 --n-ctxs 4 --in-batch-size 2 --io in_to_out
map="--dict $d/map $at --io in_to_out"
status "effect of a transcoder" 0 "$dl" effect $map --prompt "$prompt" --count 2
status "steer by a transcoder" 0 "$dl" steer $map --feature 3 --set 2 --tokens 5 --prompt "$prompt"
status "rows of two layers" 0 "$dl" activations $at --text "$d/a.jsonl" --out "$d/x.npy"
train layers --data "$d/x.npy" --recipe cc-l1 --layers 2
for command in "effect --prompt a" "steer --feature 1 --scale 1 --tokens 3"; do
    status "${command%% *} of a crosscoder" 1 "$dl" $command --dict "$d/layers" $at
    says "says what it takes" "${command%% *}: expected a dictionary of one layer, found one of 2 layers" "$d/err"
    status "${command%% *} at another width" 1 "$dl" $command --dict "$d/run" --model $tiny --site mlp_hidden --layer 0
    says "is told" "wrong input width: the dictionary has 128, the model's site mlp_hidden has 512" "$d/err"
done
status "a feature that there is not" 1 $effect --feature 256
says "is told" "^dictlearn: --feature: expected a number below 256 as $d/run has them, found 256$" "$d/err"
status "a long prompt" 1 "$dl" effect --dict "$d/run" $at --prompt "$(yes 'a b' | head -n 400 | tr '\n' ' ')"
says "is counted" "^dictlearn: --prompt: expected at most the model's 512 positions, found [0-9]* tokens$" "$d/err"
status "too many tokens" 1 instead --tokens 4000 $steer --scale 1 --prompt "$prompt"
says "are counted" "at most the model's 512 positions, found [0-9]* and 4000" "$d/err"

# ---- Wrong usage
for value in nan inf 1e31 -1e31; do
    wrong "--set $value" "--set: expected a number from -1e+30 to 1e+30, found '$value'" $effect --set "$value"
    wrong "--scale $value" "$value: expected at most 16 numbers" $steer --scale "$value"
done
wrong "neither prompt nor text" "--prompt: this flag is required, or --text" "$dl" effect --dict "$d/run" $at
wrong "both" "expected --prompt or --text, found both" $effect --prompt a
wrong "a place that is none" "first: expected last or all as --positions" $effect --positions first
wrong "an order that is none" "x: expected log_p or p as --by" $effect --by x
wrong "steer without a change" "--scale: this flag is required, or --set" $steer
wrong "two changes" "--scale: expected --scale or --set, found both" $steer --scale 1 --set 2
wrong "no feature" "--feature: this flag is required" "$dl" steer --dict "$d/run" $at --tokens 3 --scale 1
wrong "no tokens" "--tokens: this flag is required" "$dl" steer --dict "$d/run" $at --feature 3 --scale 1
for list in x 1, 1,,2 nan 1,x 1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1; do
    wrong "--scale $list" "$list: expected at most 16 numbers with commas between as --scale" $steer --scale "$list"
done
wrong "a flag of effect" "--skip-special: not a flag of this command" $steer --scale 1 --skip-special
wrong "no site" "--site: this flag is required" "$dl" effect --dict "$d/run" --model $tiny --prompt a
finish
