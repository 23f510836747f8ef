#!/bin/sh
# test_cli.sh BUILD - the commands on arrays: what they print, what they write, how they fail.
. tests/harness.sh
dl=$BUILD/dictlearn
d=$BUILD/tmp/cli
rm -rf "$d"
mkdir -p "$d"

# rows of width 128: a weight matrix of the tiny model, as an array
"$BUILD/rows" examples/data/tiny-neox/model.safetensors "$d/x.npy"

status "help" 0 "$dl" --help
for c in inspect convert encode decode reconstruct train eval; do status "$c --help" 0 "$dl" $c --help; done
status "no command" 2 "$dl"
status "unknown command" 2 "$dl" dance
status "unknown flag" 2 "$dl" encode --frobnicate
status "flag of another command" 2 "$dl" inspect x --steps 3
status "missing value" 2 "$dl" train --steps
status "bad number" 2 "$dl" train --steps many
says "the bad number is named" "found 'many'" "$d/err"
status "missing file" 1 "$dl" encode --dict "$d/none.pt" --data "$d/x.npy" --out "$d/f.npy"
says "the missing file is named" "^dictlearn: $d/none.pt: " "$d/err"

train="$dl train --quiet --data $d/x.npy --dict-size 256 --batch-size 64 --warmup-steps 5 --epochs 9 --n-ctxs 8"
status "train" 0 $train --steps 40 --log-steps 10 --save-steps 20 --save-dir "$d/a/b"
says "log" '"step": 30, "loss": ' "$d/a/b/log.jsonl"
says "config" '"dict_class": "AutoEncoder"' "$d/a/b/config.json"
for f in ae.pt config.json checkpoints/ae_20.pt state.safetensors; do
    if [ -s "$d/a/b/$f" ]; then pass "train wrote $f"; else fail "train wrote $f" "no such file"; fi
done
status "half a run" 0 $train --steps 20 --save-dir "$d/half"
status "resumed" 0 $train --steps 40 --save-dir "$d/half" --resume
same "resumed equals uninterrupted" "$d/a/b/ae.pt" "$d/half/ae.pt"
status "one thread" 0 $train --steps 40 --save-dir "$d/one" --threads 1
same "one thread equals two" "$d/a/b/ae.pt" "$d/one/ae.pt"
status "compat" 0 $train --steps 10 --save-dir "$d/compat" --compat
says "compat is in the config" '"mode": "compat"' "$d/compat/config.json"

D=$d/a/b
status "inspect" 0 "$dl" inspect "$D"
says "inspect tells the sizes" "activation_dim 128, dict_size 256" "$d/out"
status "inspect --json" 0 "$dl" inspect "$D" --json
says "inspect --json" '"dict_size": 256' "$d/out"
status "convert" 0 "$dl" convert "$D" "$d/ae.safetensors"
status "convert back" 0 "$dl" convert "$d/ae.safetensors" "$d/ae.pt"
same "there and back" "$D/ae.pt" "$d/ae.pt"
status "convert to an unknown form" 1 "$dl" convert "$D" "$d/ae.gguf"
status "encode" 0 "$dl" encode --dict "$D" --data "$d/x.npy" --out "$d/f.npy"
status "encode --sparse" 0 "$dl" encode --dict "$D" --data "$d/x.npy" --out "$d/f.npz" --sparse
status "decode" 0 "$dl" decode --dict "$D" --data "$d/f.npy" --out "$d/y.npy"
status "decode sparse" 0 "$dl" decode --dict "$D" --data "$d/f.npz" --out "$d/z.npy"
status "reconstruct" 0 "$dl" reconstruct --dict "$D" --data "$d/x.npy" --out "$d/w.npy"
same "sparse equals dense" "$d/y.npy" "$d/z.npy"
same "reconstruct equals decode of encode" "$d/y.npy" "$d/w.npy"
"$dl" reconstruct --dict "$D" --data - --out - < "$d/x.npy" > "$d/v.npy"
same "through pipes" "$d/w.npy" "$d/v.npy"
status "wrong width" 1 "$dl" encode --dict "$D" --data "$d/f.npy" --out "$d/g.npy"
says "wrong width is told" "expected 128, found 256" "$d/err"
if [ -e "$d/g.npy" ]; then fail "nothing half-written" "$d/g.npy"; else pass "nothing half-written"; fi
status "eval" 0 "$dl" eval --dict "$D" --data "$d/x.npy"
says "eval prints the table" "variance explained" "$d/out"
status "eval --json" 0 "$dl" eval --dict "$D" --data "$d/x.npy" --json --histogram "$d/h.csv"
says "eval --json" '"mode": "default", "rows": ' "$d/out"
says "histogram" "^from,to,features" "$d/h.csv"
finish
