#!/bin/sh
# test_cli_model.sh BUILD - the commands that run a language model, on examples/data/tiny-neox; and the example in the
# help of every command, run as it stands there.
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
status "generate with a prompt" 0 "$dl" generate --model $tiny --tokens 5 --prompt "He said" --temperature 0 --top-k 3
says "the prompt comes first" "^He said" "$d/out"
status "too many tokens" 1 "$dl" generate --model $tiny --tokens 4000
says "are counted" "at most the model's 512 positions, found 1 and 4000" "$d/err"

status "activations" 0 "$dl" activations --model $tiny --text "$d/a.jsonl" $site --out "$d/x.npy" --limit 100
status "its shape" 0 "$dl" inspect "$d/x.npy"
says "is rows and width" "\[100, 128\]" "$d/out"
status "unknown site" 1 "$dl" activations --model $tiny --text "$d/a.jsonl" --site mlp --layer 0 --out "$d/y.npy"
says "is named" "expected embed, resid_out" "$d/err"
status "no layer" 2 "$dl" activations --model $tiny --text "$d/a.jsonl" --site mlp_out --out "$d/y.npy"
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
status "eval" 0 "$dl" eval --dict "$d/whole" --model $tiny --text "$d/a.jsonl" $site --json --documents 5
says "with the cross-entropy" '"documents": 5,.*"loss_original": [0-9.]*, "loss_reconstructed": ' "$d/out"
status "eval of a stretcher" 0 "$dl" eval --dict "$d/stretch" --model $tiny --text "$d/a.jsonl" $site --io in_to_out
says "the table" "CE recovered" "$d/out"
status "eval from a pipe" 0 sh -c "cat $d/a.jsonl | $dl eval --dict $d/whole --model $tiny --text - $site --histogram -"
says "bars" "features by how often they fire" "$d/out"
features="$dl features --dict $d/whole --model $tiny --text $d/a.jsonl $site"
status "features" 0 $features --count 2
says "are shown" "^feature [0-9]*: fires on" "$d/out"
status "features --json" 0 $features --features 3,5 --json
says "as asked" '"feature": 5, "frequency"' "$d/out"
status "inspect a model" 0 "$dl" inspect $tiny --json
says "its shape" '"family": "GPTNeoX", "hidden_size": 128, "layers": 6' "$d/out"

# The examples in the help, in an order in which each finds what it needs.
for c in generate tokenize activations logits train eval features inspect encode decode reconstruct convert; do
    "$dl" $c --help | sed '1,/^Example:/d' | sed 's|build/dictlearn|'"$dl"'|g' > "$d/example.sh"
    status "the example of $c --help" 0 sh -e "$d/example.sh"
done
finish
