#!/bin/sh
# test_cli_model.sh BUILD - the commands that run a language model, on examples/data/tiny-neox; and
# the example in the help of every command, run as it stands there.
. tests/harness.sh
dl=$BUILD/dictlearn
d=$BUILD/tmp/model
tiny=examples/data/tiny-neox
site="--site mlp_out --layer 0"
rm -rf "$d"
mkdir -p "$d"

printf '%s\n' '{"text": "The cat sat."}' '' '{"text": "Said he, \u201cno\u201d."}' > "$d/two.jsonl"
printf 'The cat sat.\n\nSaid he, \342\200\234no\342\200\235.\n' > "$d/two.txt"

status "tokenize" 0 "$dl" tokenize --model $tiny --text "$d/two.jsonl"
cp "$d/out" "$d/ids"
check_equal "a line a document" 2 "$(wc -l < "$d/ids" | tr -d ' ')"
status "tokenize plain text" 0 "$dl" tokenize --model $tiny --text "$d/two.txt"
same "both forms of text are the same documents" "$d/ids" "$d/out"
"$dl" tokenize --model $tiny --text - < "$d/two.jsonl" > "$d/out"
same "and standard input" "$d/ids" "$d/out"
status "tokenize --json" 0 "$dl" tokenize --model $tiny --text "$d/two.txt" --json --ctx-len 3 --bos
says "--bos --ctx-len 3" '^\[0, [0-9]*, [0-9]*\]$' "$d/out"
status "a broken line" 1 sh -c "echo '{\"text\": 3}' | $dl tokenize --model $tiny --text -"
says "is named" "standard input: line 1: expected an object with a string" "$d/err"

generate="$dl generate --model $tiny --tokens 40 --documents 12 --seed 3"
status "generate" 0 $generate --out "$d/a.jsonl"
status "generate again" 0 $generate --threads 1 --out "$d/b.jsonl"
same "same seed, any threads: the same text" "$d/a.jsonl" "$d/b.jsonl"
status "generate with a prompt" 0 "$dl" generate --model $tiny --tokens 5 --prompt "He said" \
    --temperature 0 --top-k 3
says "the prompt comes first" "^He said" "$d/out"
"$dl" generate --model $tiny --tokens 200 --documents 1000 --out "$d/mute.jsonl" 2>&-
check_equal "generate with standard error closed" 0 $?
check_equal "writes its texts alone" 1000 "$(wc -l < "$d/mute.jsonl" | tr -d ' ')"
wild="$dl generate --model $tiny --tokens 400 --temperature 1000 --seed 2"
status "generate a text with zeros in it" 0 $wild
zeros=$($wild --out - | grep -o '\\u0000' | wc -l | tr -d ' ')
check_equal "it is written to its end" "1 $zeros" \
    "$((zeros > 0)) $(tr -cd '\000' < "$d/out" | wc -c | tr -d ' ')"
status "too many tokens" 1 "$dl" generate --model $tiny --tokens 4000
says "are counted" "at most the model's 512 positions, found 1 and 4000" "$d/err"

status "activations" 0 "$dl" activations --model $tiny --text "$d/a.jsonl" $site --out "$d/x.npy" \
    --limit 100
status "its shape" 0 "$dl" inspect "$d/x.npy"
says "is rows and width" "\[100, 128\]" "$d/out"
status "unknown site" 2 "$dl" activations --model $tiny --text "$d/a.jsonl" --site mlp --layer 0 \
    --out "$d/y.npy"
says "is named" "expected embed, attn_in" "$d/err"
status "no layer" 2 "$dl" activations --model $tiny --text "$d/a.jsonl" --site mlp_out \
    --out "$d/y.npy"
status "logits" 0 "$dl" logits --model $tiny --text "$d/two.txt" --out "$d/l.npy"
status "their shape" 0 "$dl" inspect "$d/l.npy"
says "is tokens and vocabulary" ", 2048\]" "$d/out"

train="$dl train --quiet --model $tiny --text $d/a.jsonl $site --dict-size 256 --batch-size 64"
train="$train --n-ctxs 4 --in-batch-size 2"
status "train on a text" 0 $train --steps 6 --save-dir "$d/whole"
says "the source is in the config" '"site": "mlp_out"' "$d/whole/config.json"
status "half a run" 0 $train --steps 3 --save-dir "$d/half"
status "resumed" 0 $train --steps 6 --save-dir "$d/half" --resume
same "resumed equals uninterrupted" "$d/whole/ae.pt" "$d/half/ae.pt"
status "a stretcher" 0 $train --steps 6 --io in_to_out --save-dir "$d/stretch"
status "two sources" 2 $train --data "$d/x.npy" --save-dir "$d/none"
status "eval" 0 "$dl" eval --dict "$d/whole" --model $tiny --text "$d/a.jsonl" $site \
    --json --documents 5
says "with the cross-entropy" '"documents": 5,.*"loss_original": [0-9.]*, "loss_reconstructed": ' \
    "$d/out"
says "under SAELens' names" '"ce_loss_score": [-0-9.]*, "ce_loss_without_sae": [0-9.]*, ' "$d/out"
status "eval of a stretcher" 0 "$dl" eval --dict "$d/stretch" --model $tiny \
    --text "$d/a.jsonl" $site --io in_to_out
says "the table" "CE recovered" "$d/out"
status "eval from a pipe" 0 sh -c \
    "cat $d/a.jsonl | $dl eval --dict $d/whole --model $tiny --text - $site --histogram -"
says "bars" "features by how often they fire" "$d/out"
for recipe in dl-top_k dl-jump_relu; do
    status "train by $recipe" 0 $train --recipe $recipe --steps 6 --save-dir "$d/$recipe"
    status "eval of $recipe" 0 "$dl" eval --dict "$d/$recipe" --model $tiny --text "$d/a.jsonl" \
        $site --documents 5
    says "$recipe: with the cross-entropy" "CE recovered" "$d/out"
done
status "a dictionary whose features all die" 0 $train --steps 20 --lr 10 --warmup-steps 2 \
    --save-dir "$d/dead"
check_equal "its log counts them all" '"l0": 0, "dead": 256' \
    "$(tail -n 1 "$d/dead/log.jsonl" | grep -o '"l0": 0, "dead": [0-9]*')"
status "a prompt of many bytes" 1 "$dl" generate --model $tiny --tokens 3 \
    --prompt "$(printf '%5000s' | tr ' ' x)"
says "is counted in tokens" "at most the model's 512 positions, found [0-9]* and 3" "$d/err"
status "inspect a model" 0 "$dl" inspect $tiny --json
says "its shape" '"family": "GPTNeoX", "hidden_size": 128, "layers": 6' "$d/out"

# ---- Wrong usage
model="--model $tiny --text $d/a.jsonl"
wrong "a site that is none" "expected embed, attn_in" "$dl" eval --dict "$d/whole" $model \
    --site foo --layer 0
wrong "an io that is none" "expected in, out or in_to_out" "$dl" activations $model $site --io foo \
    --out "$d/y.npy"
wrong "text in .txt" "ending in .jsonl" $generate --out "$d/a.txt"
wrong "logits in .npz" "ending in .npy" "$dl" logits $model --out "$d/l.npz"

# ---- A model with more than one token to begin with
cp -r $tiny "$d/listed"
sed 's/"bos_token_id": 0/"bos_token_id": [0]/' $tiny/config.json > "$d/listed/config.json"
listed="--bos --model $d/listed --text $d/two.txt"
for c in "tokenize $listed" "logits $listed --out $d/l.npy" \
    "activations $listed $site --out $d/y.npy" \
    "train --quiet $listed $site --save-dir $d/none" "eval --dict $d/whole $listed $site" \
    "features --dict $d/whole $listed $site" \
    "generate --bos --model $d/listed --tokens 3 --prompt He"; do
    status "${c%% *} --bos without a bos token" 1 "$dl" $c
    says "is refused" "listed/config.json: --bos: expected one number as bos_token_id, found none" \
        "$d/err"
done

# ---- Where results go
"$dl" activations $model $site --limit 100 --out - > "$d/out.npy"
same "activations through a pipe" "$d/x.npy" "$d/out.npy"
piped "text to a pipe" "$d/a.jsonl" "$d/pipe" $generate --out "$d/pipe"
ln -s b.jsonl "$d/link.jsonl"
echo old > "$d/b.jsonl"
status "text to a link" 0 $generate --out "$d/link.jsonl"
same "is what the link leads to" "$d/a.jsonl" "$d/b.jsonl"
check_equal "and the link stays" b.jsonl "$(readlink "$d/link.jsonl")"
status "text to no folder" 1 $generate --out "$d/none/a.jsonl"
says "is told" "^dictlearn: $d/none/a.jsonl: cannot create it: No such file or directory" "$d/err"
if [ -e /dev/full ]; then
    for c in "tokenize $model" "generate --model $tiny --tokens 3" \
        "generate --model $tiny --tokens 3 --out -" \
        "features --dict $d/whole $model $site --count 1"; do
        harness_got=0
        "$dl" $c > /dev/full 2> "$d/err" || harness_got=$?
        check_equal "${c%% *} to a full disk" "1 1" \
            "$harness_got $(grep -c '^dictlearn: .*No space left' "$d/err")"
    done
else
    skip "standard output that is full" "no /dev/full"
fi

# ---- No data
: > "$d/empty.txt"
empty="--model $tiny --text $d/empty.txt $site"
status "no documents to train on" 1 "$dl" train --quiet $empty --save-dir "$d/none"
says "are told" "^dictlearn: $d/empty.txt: expected documents, found none" "$d/err"
status "no documents for activations" 1 "$dl" activations $empty --out "$d/none.npy"
says "are told" "^dictlearn: $d/empty.txt: expected documents, found none" "$d/err"
absent "and nothing is written" "$d/none" "$d/none.npy"
echo '{"text": 3}' > "$d/bad.jsonl"
status "a broken document" 1 "$dl" train --quiet --model $tiny --text "$d/bad.jsonl" $site \
    --save-dir "$d/none"
says "is told by its place" "^dictlearn: $d/bad.jsonl: line 1: expected an object" "$d/err"

# ---- Going on with the same source alone
wrong "resumed on an array" "source: expected --data or --model, found both" "$dl" train \
    --data "$d/x.npy" --save-dir "$d/half" --resume
status "resumed at another site" 1 instead --layer 1 $train --save-dir "$d/half" --resume
says "is refused" "layer: .* expected 0, found 1" "$d/err"

cp "$d/a.jsonl" "$d/cut.jsonl"
status "half a run on a text" 0 instead --text "$d/cut.jsonl" $train --steps 3 --save-dir "$d/cut"
head -n 1 "$d/a.jsonl" > "$d/cut.jsonl"
status "resumed on what is left of it" 1 "$dl" train --steps 6 --save-dir "$d/cut" --resume
says "is told" \
    "^dictlearn: $d/cut.jsonl: expected the text that was read before, to byte [0-9]* and on" \
    "$d/err"

# ---- A folder called -
mkdir -p "$d/dash/-"
here=$(pwd)
root=$(cd "$BUILD" && pwd)
two=$root/tmp/model/two.jsonl
status "--text - beside a folder of that name" 0 \
    sh -c "cd $d/dash && $root/dictlearn tokenize --model $here/$tiny --text - < $two"
same "is standard input" "$d/ids" "$d/out"

# ---- Stopped
for i in 1 2 3 4 5 6 7 8 9 10; do cat "$d/a.jsonl" "$d/a.jsonl" "$d/a.jsonl" "$d/a.jsonl" \
    "$d/a.jsonl"; done > "$d/t"
for i in 1 2 3 4 5 6 7 8 9 10; do cat "$d/t" "$d/t" "$d/t" "$d/t" "$d/t"; done > "$d/long.jsonl"
long="--model $tiny --text $d/long.jsonl --site resid_out --layer 5"
stopped "train while the buffer fills" 143 "grep -q 'filling the buffer .*: [0-9]* rows' $d/err" \
    "$dl" train $long \
    --save-dir "$d/none/deep"
says "it says what was done" "^dictlearn: $d/none/deep: stopped before the first step: nothing was saved" "$d/err"
absent "and leaves nothing" "$d/none"
stopped "activations" 143 "ls $d/long.npy.*" "$dl" activations --quiet $long --out "$d/long.npy"
says "it says so" "^dictlearn: stopped before it was done" "$d/err"
stopped "tokenize" 143 "test \$(wc -c < $d/out) -gt 100000" "$dl" tokenize --model $tiny \
    --text "$d/long.jsonl"
says "it says so" "^dictlearn: stopped before it was done" "$d/err"
stopped "features" 143 "sleep 1" "$dl" features --dict "$d/whole" $long --rows 1e7
says "it says so" "^dictlearn: stopped before it was done" "$d/err"
stopped "generate" 143 "ls $d/much.jsonl.*" "$dl" generate --model $tiny --tokens 400 \
    --documents 5000 \
    --out "$d/much.jsonl"
says "it says so" "^dictlearn: stopped before it was done" "$d/err"
harness_signal=HUP
stopped "generate, hung up" 129 "ls $d/much.jsonl.*" "$dl" generate --model $tiny --tokens 400 \
    --documents 5000 \
    --out "$d/much.jsonl"
harness_signal=TERM
says "it says so" "^dictlearn: stopped before it was done" "$d/err"
endless="while echo '{\"text\": \"The cat sat.\"}'; do :; done 2> $d/none.err | "
sh -c "{ $endless $dl tokenize --model $tiny --text -; echo \$? > $d/status; } | head -n 1" \
    > "$d/out" 2> "$d/err"
check_equal "tokenize to the end of who reads it" "141 " "$(cat "$d/status") $(cat "$d/err")"
absent "and nothing half-written stays" "$d"/long.npy* "$d"/much.jsonl*
stopped "eval" 143 "sleep 1" "$dl" eval --dict "$d/whole" $long --rows 1e7
says "it says so" "^dictlearn: stopped before it was done" "$d/err"
check_equal "and prints nothing" "" "$(cat "$d/out")"

# A run on standard input that is stopped while it waits for text goes on with the same text: not
# one bit is other.
head -n 800 "$d/long.jsonl" > "$d/stream.jsonl"
stream="$dl train --model $tiny --text - $site --dict-size 256 --batch-size 64"
stream="$stream --n-ctxs 4 --in-batch-size 2"
stream="$stream --log-steps 1"
status "a run on standard input" 0 sh -c "$stream --quiet --save-dir $d/through < $d/stream.jsonl"
cat > "$d/slow.sh" << END
mkfifo "$d/stream"
exec 3<> "$d/stream"
head -n 700 "$d/stream.jsonl" > "$d/stream" &
exec $stream --quiet --save-dir "$d/slow" < "$d/stream"
END
stopped "a run that waits for text" 143 "test \$(wc -l < $d/slow/log.jsonl) -ge 200 && sleep 1" sh \
    "$d/slow.sh"
says "it says how to go on" \
    "and saved: go on with .*--resume --save-dir $d/slow, with the same text from its" "$d/err"
status "it goes on" 0 sh -c "$stream --quiet --save-dir $d/slow --resume < $d/stream.jsonl"
same "as if it had never stopped" "$d/through/ae.pt" "$d/slow/ae.pt"
check_equal "in its log, too" "$(sed 's/, "rows_per.*//' "$d/through/log.jsonl")" \
    "$(sed 's/, "rows_per.*//' "$d/slow/log.jsonl")"
status "too short a text to go on with" 1 sh -c \
    "head -n 2 $d/stream.jsonl | $stream --save-dir $d/slow --resume"
says "is told" "^dictlearn: standard input: expected the text that was read before" "$d/err"

# The examples in the help, in the order in which they are listed: each finds what those before it
# have made.
for c in $("$dl" --help | sed -n 's/^  dictlearn \([a-z]*\) .*/\1/p'); do
    "$dl" $c --help | sed '1,/^Example/d' | sed 's|build/|'"$d/example/"'|g' > "$d/example.sh"
    mkdir -p "$d/example"
    ln -sf "$(cd "$BUILD" && pwd)/dictlearn" "$d/example/dictlearn"
    status "the example of $c --help" 0 sh -e "$d/example.sh"
done
finish
