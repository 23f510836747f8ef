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
for c in $("$dl" --help | sed -n 's/^  dictlearn \([a-z]*\) .*/\1/p') ""; do
    status "$c --help" 0 "$dl" $c --help
    check_equal "$c --help keeps to 100 columns" "" "$(awk 'length($0) > 100' "$d/out")"
done
"$dl" train --help > "$d/out"
says "train --help tells of the lock" "the folder of the run, locked meanwhile" "$d/out"
says "and of the longest document" "documents of at most 16 MB" "$d/out"
sets=$(sed -n '/^ *const char \*kernels; /,/\*\/$/p' dictlearn.h | grep -o '"[a-z0-9]*"' | tr \
    -d '"')
check "dictlearn.h lists kernels" test -n "$sets"
for set in $sets; do
    says "and of the kernels $set" "[ (]$set\\b" "$d/out"
done
status "no command" 2 "$dl"
status "unknown command" 2 "$dl" dance
status "unknown flag" 2 "$dl" encode --frobnicate
status "flag of another command" 2 "$dl" inspect x --steps 3
status "missing value" 2 "$dl" train --steps
status "bad number" 2 "$dl" train --steps many
says "the bad number is named" "found 'many'" "$d/err"
wrong "a slip in a command" "trian: unknown command, did you mean train?" "$dl" trian
wrong "a slip in a flag" "--stesp: unknown flag, did you mean --steps?" "$dl" train --stesp 3
wrong "a flag given twice" "--dict: given twice, expected once" "$dl" encode --dict a --dict=b
wrong "a switch with a value" "--quiet: takes no value" "$dl" train --quiet=3
wrong "one argument of two" "convert: expected IN OUT, found one argument" "$dl" convert x
status "-h" 0 "$dl" train -h
status "missing file" 1 "$dl" encode --dict "$d/none.pt" --data "$d/x.npy" --out "$d/f.npy"
says "the missing file is named" "^dictlearn: $d/none.pt: " "$d/err"

train="$dl train --quiet --data $d/x.npy --dict-size 256 --batch-size 64 --warmup-steps 5"
train="$train --epochs 9 --n-ctxs 8"
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
status "convert to an unknown form" 2 "$dl" convert "$D" "$d/ae.gguf"
# For a library: its files in a folder, which is made, and goes again after a failure.
status "convert for saelens" 0 "$dl" convert "$D" "$d/for/saelens" --layout saelens
check "prints nothing" test ! -s "$d/out" -a ! -s "$d/err"
status "inspect of that" 0 "$dl" inspect "$d/for/saelens"
says "is of saelens" "^layout saelens, " "$d/out"
status "convert it back" 0 "$dl" convert "$d/for/saelens" "$d/again" --layout dictionary_learning
says "with its class" '"dict_class":"AutoEncoder"' "$d/again/config.json"
same "the same weights" "$D/ae.pt" "$d/again/ae.pt"
status "convert to weights alone" 0 "$dl" convert "$D" "$d/alone.pt" --layout dictionary_learning
same "the same weights" "$D/ae.pt" "$d/alone.pt"
status "convert for circuit-tracer" 0 "$dl" convert "$D" "$d/set" --layout circuit-tracer --layer 3
says "says what is folded" "^dictlearn: $d/set: the same function in other numbers: the center" \
    "$d/err"
check "in the layer's file" test -s "$d/set/layer_3.safetensors" -a -s "$d/set/config.yaml"
status "convert for a library that lacks it" 1 "$dl" convert "$D" "$d/lacks/it" --layout sparsify
says "says so" "^dictlearn: $d/lacks/it: not written: sparsify has no place for selection all" \
    "$d/err"
absent "and leaves no folder" "$d/lacks"
status "convert for an unknown library" 1 "$dl" convert "$D" "$d/lacks" --layout nobody
says "names those that there are" "expected a library to write for .dictionary_learning, " "$d/err"
status "convert into a folder of another" 1 "$dl" convert "$D" "$d/for/saelens" \
    --layout gemma_scope
says "says so" "expected a folder without another dictionary, found sae_weights" "$d/err"
status "convert from a stated library" 0 "$dl" convert "$D/ae.pt" "$d/from.pt" \
    --from dictionary_learning
wrong "convert --layer alone" "--layer: goes with --layout" "$dl" convert "$D" "$d/a.pt" --layer 1
status "encode" 0 "$dl" encode --dict "$D" --data "$d/x.npy" --out "$d/f.npy"
status "encode --sparse" 0 "$dl" encode --dict "$D" --data "$d/x.npy" --out "$d/f.npz" --sparse
status "decode" 0 "$dl" decode --dict "$D" --data "$d/f.npy" --out "$d/y.npy"
status "decode sparse" 0 "$dl" decode --dict "$D" --data "$d/f.npz" --out "$d/z.npy"
status "reconstruct" 0 "$dl" reconstruct --dict "$D" --data "$d/x.npy" --out "$d/w.npy"
same "sparse equals dense" "$d/y.npy" "$d/z.npy"
same "reconstruct equals decode of encode" "$d/y.npy" "$d/w.npy"
"$dl" reconstruct --dict "$D" --data - --out - < "$d/x.npy" > "$d/v.npy"
same "through pipes" "$d/w.npy" "$d/v.npy"
mkdir -p "$d/dash/-"
(here=$(cd "$BUILD" && pwd) && cd "$d/dash" && "$here/dictlearn" reconstruct \
    --dict "$here/tmp/cli/a/b" --data - \
    --out - < "$here/tmp/cli/x.npy" > ../v.npy)
same "also beside a folder called -" "$d/w.npy" "$d/v.npy"
status "wrong width" 1 "$dl" encode --dict "$D" --data "$d/f.npy" --out "$d/g.npy"
says "wrong width is told" "expected 128, found 256" "$d/err"
if [ -e "$d/g.npy" ]; then fail "nothing half-written" "$d/g.npy";
    else pass "nothing half-written"; fi
status "eval" 0 "$dl" eval --dict "$D" --data "$d/x.npy"
says "eval prints the table" "variance explained" "$d/out"
for n in all -1; do
    status "eval --rows $n" 0 "$dl" eval --dict "$D" --data "$d/x.npy" --json --rows $n
    says "is all rows" "\"rows\": $(wc -c < "$d/x.npy" | awk '{ print int(($1 - 128) / 512) }')," "$d/out"
done
wrong "eval --rows 0" "--rows: expected a whole number of at least 1, or all, found '0'" \
    "$dl" eval --dict "$D" --data "$d/x.npy" --rows 0
status "eval --json" 0 "$dl" eval --dict "$D" --data "$d/x.npy" --json --histogram "$d/h.csv"
says "eval --json" '"mode": "default", "rows": ' "$d/out"
says "histogram" "^from,to,features" "$d/h.csv"
says "SAELens' figures" '"saelens": {"l0": [0-9.]*, "l1": .*"explained_variance_legacy": null}' "$d/out"
says "SAEBench's figures" '"saebench": {"frac_alive": [0-9.e-]*, .*"saebench_explained_variance": ' "$d/out"
check_fails "no cross-entropy without a model" grep -q ce_loss "$d/out"
status "eval --weights, by batches" 0 "$dl" eval --dict "$D" --data "$d/x.npy" --weights \
    --saelens-batch 64 --json
says "SAELens' averages over batches" '"explained_variance_legacy": [-0-9]' "$d/out"
says "figures of the weights" '"weights": {"average_encoder_norm": [0-9.]*, .*"average_max_decoder' "$d/out"
status "the same as a table" 0 "$dl" eval --dict "$D" --data "$d/x.npy" --weights --saelens-batch 64
says "has a second part" "^  explained_variance_legacy *[-0-9]" "$d/out"
says "with the weights" "^  average_max_encoder_cosine_sim *[-0-9]" "$d/out"
wrong "eval --saelens-batch 0" "--saelens-batch: expected " \
    "$dl" eval --dict "$D" --data "$d/x.npy" --saelens-batch 0

# ---- What is done with a name: devices, pipes and links stay what they are

mkdir -p "$d/real"
echo old > "$d/real/w.npy"
ln -sf real/w.npy "$d/link.npy"
ln -sf nowhere.npy "$d/real/dangling.npy"
status "reconstruct to a link" 0 "$dl" reconstruct --dict "$D" --data "$d/x.npy" --out "$d/link.npy"
check_equal "the link stays" real/w.npy "$(readlink "$d/link.npy")"
same "what it leads to is written" "$d/w.npy" "$d/real/w.npy"
status "to a link to nothing" 0 "$dl" reconstruct --dict "$D" --data "$d/x.npy" \
    --out "$d/real/dangling.npy"
same "what it names is made" "$d/w.npy" "$d/real/nowhere.npy"
ln -sf circle.npy "$d/circle.npy"
status "to a link in a circle" 1 "$dl" reconstruct --dict "$D" --data "$d/x.npy" \
    --out "$d/circle.npy"
piped "a histogram to a pipe" "$d/h.csv" "$d/pipe" \
    "$dl" eval --dict "$D" --data "$d/x.npy" --json --histogram "$d/pipe"

# ---- What cannot be written to standard output is an error
if [ -e /dev/full ]; then
    for c in --help "encode --help" "inspect $D" "eval --dict $D --data $d/x.npy" \
        "eval --dict $D --data $d/x.npy --histogram -" "encode --dict $D --data $d/x.npy --out -";
        do
        harness_got=0
        "$dl" $c > /dev/full 2> "$d/err" || harness_got=$?
        check_equal "$c to a full disk" "1 1" \
            "$harness_got $(grep -c '^dictlearn: .*No space left' "$d/err")"
    done
else
    skip "standard output that is full" "no /dev/full"
fi

# ---- Streams that are closed at the start, or that nobody reads any more
lost() { # lost NAME WANTED STATUS: 1 with a line that says what failed, or as wanted
    check_equal "$1" "$2" \
        "$3 $(grep -c '^dictlearn: standard output: cannot .*Bad file descriptor$' "$d/err")"
}
"$dl" inspect "$D" >&- 2> "$d/err"
lost "inspect with standard output closed" "1 1" $?
"$dl" encode --dict "$D" --data "$d/x.npy" --sparse --out - >&- 2> "$d/err"
lost "encode --out - with standard output closed" "1 1" $?
"$dl" encode --dict "$D" --data "$d/x.npy" --sparse --out "$d/closed.npz" <&- >&- 2> "$d/err"
lost "encode to a file with standard output closed" "0 0" $?
same "the file is as it is otherwise" "$d/f.npz" "$d/closed.npz"
$train --steps 3 --save-dir "$d/closed" <&- >&- 2>&-
check_equal "train with all streams closed" 0 $?
unread() { # unread COMMAND...: its status, while nobody reads what it says
    (sleep 0.3 && "$@" && true; echo $? > "$d/status") | true
    cat "$d/status"
}
check_equal "inspect into a pipe that is closed" "141 " \
    "$(unread "$dl" inspect "$D" 2> "$d/err") $(cat "$d/err")"
check_equal "encode into a pipe that is closed" "141 " \
    "$(unread "$dl" encode --dict "$D" --data "$d/x.npy" --out - 2> "$d/err") $(cat "$d/err")"
spoken="$dl train --data $d/x.npy --dict-size 256 --batch-size 64 --n-ctxs 8 --steps 3"
spoken="$spoken --save-dir $d/unheard"
check_equal "train while nobody reads its progress" 0 "$(unread sh -c "$spoken 2>&1")"
absent "it leaves no lock" "$d/unheard/lock"
check "and is saved" test -s "$d/unheard/ae.pt"

# ---- Forms are told apart by content
"$dl" encode --dict "$D" --data "$d/x.npy" --sparse --out - > "$d/codes"
"$dl" decode --dict "$D" --data - --out - < "$d/codes" > "$d/u.npy"
same "sparse codes through a pipe" "$d/y.npy" "$d/u.npy"
status "sparse codes under any name" 0 "$dl" decode --dict "$D" --data "$d/codes" --out "$d/u.npy"
same "are decoded" "$d/y.npy" "$d/u.npy"
status "codes of another width" 1 "$dl" decode --dict "$D" --data "$d/x.npy" --out "$d/g.npy"
says "are told" "x.npy: wrong width, expected 256, found 128" "$d/err"

# ---- Names that a terminal would obey
header='{"a\u001b[31m\u0007\u009bz\u00e9":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
printf "\\$(printf %o ${#header})\\0\\0\\0\\0\\0\\0\\0%s\\0\\0\\0\\0" "$header" \
    > "$d/wild.safetensors"
status "inspect of a wild name" 0 "$dl" inspect "$d/wild.safetensors"
check_fails "a wild name does not reach the terminal" obeyed "$d/out"
says "the name is shown" "^a?.31m??z.* F32" "$d/out"
status "inspect --json of a wild name" 0 "$dl" inspect "$d/wild.safetensors" --json
check_fails "nor is it here" obeyed "$d/out"
says "where it is the same name" 'a.u001b.31m.u0007.u009bz' "$d/out"

# ---- Wrong usage
wrong "convert to standard output" "expected a name ending in .pt, .safetensors or .npz" \
    "$dl" convert "$D" -
wrong "convert to .npy" "expected a name ending in .pt, .safetensors or .npz, or --layout:" \
    "$dl" convert "$D" "$d/a.npy"
wrong "dense features to .csv" "ending in .npy" "$dl" encode --dict "$D" --data "$d/x.npy" \
    --out "$d/f.csv"
wrong "dense features to .npz" "ending in .npy" "$dl" encode --dict "$D" --data "$d/x.npy" \
    --out "$d/e.npz"
wrong "sparse features to .npy" "ending in .npz" "$dl" encode --dict "$D" --data "$d/x.npy" \
    --sparse --out "$d/e.npy"
wrong "a histogram in .png" "ending in .csv or .svg" "$dl" eval --dict "$D" --data "$d/x.npy" \
    --histogram "$d/h.png"
wrong "--io with --data" "goes with --model" $train --io in_to_out --save-dir "$d/none"
wrong "--layer with --data" "goes with --model" $train --layer 3 --save-dir "$d/none"
wrong "two sizes" "found both" $train --expansion 3 --save-dir "$d/none"
wrong "too large a size" "at most 2147483647 features" instead --dict-size 99999999999999 $train \
    --save-dir "$d/none"
for n in -1 1025 60000 4294967297 1.5; do
    wrong "--threads $n" "--threads: expected a whole number from 0 to 1024, found '$n'" \
        $train --threads $n --save-dir "$d/none"
done
status "--threads 0" 0 "$dl" inspect "$D" --threads 0
status "--threads 1024" 0 "$dl" inspect "$D" --threads 1024
long=$(printf '%4096s' | tr ' ' x)
wrong "an argument too long" "the first argument: expected 1 to 4095 bytes, found 4096" \
    "$dl" inspect "$long"
wrong "a second one" "the second argument: expected 1 to 4095 bytes, found 4100" \
    "$dl" convert "$D" "$long.npz"
wrong "an empty one" "the first argument: expected 1 to 4095 bytes, found 0" "$dl" inspect ""
status "one as long as may be" 1 "$dl" inspect "${long%x}"
rows="--dict $D --data $d/x.npy"
for f in --data --target --model --text --save-dir --init; do
    wrong "$f of no bytes" "$f: expected 1 to 4095 bytes, found 0" "$dl" train $f ""
    wrong "$f of many" "$f: expected 1 to 4095 bytes, found 4096" "$dl" train $f "$long"
done
wrong "--out of no bytes" "--out: expected 1 to 4095 bytes, found 0" "$dl" encode $rows --out ""
wrong "--out of many" "--out: expected 1 to 4095 bytes, found 4096" "$dl" encode $rows --out "$long"
wrong "--histogram of no bytes" "--histogram: expected 1 to 4095 bytes" "$dl" eval $rows \
    --histogram ""
wrong "kernels that there are not" "none: no such set of kernels here" "$dl" inspect "$D" \
    --kernels none
wrong "nor in the environment" "none: DICTLEARN_KERNELS: no such set of" env \
    DICTLEARN_KERNELS=none "$dl" inspect "$D"
wrong "--kernels of many" "--kernels: expected 0 to 4095 bytes" "$dl" inspect "$D" --kernels "$long"
absent "and nothing is made" "$d/none" "$d/e.npz" "$d/e.npy"

# ---- Dictionaries that do not load
"$BUILD/dictlearn" convert "$D" "$d/r.safetensors"
mkdir -p "$d/refused" "$d/sae" "$d/sweep/trainer_0" "$d/sweep/trainer_1"
cp "$D/ae.pt" "$d/refused/ae.pt"
echo '{"trainer": {"dict_class": "NoSuchClass"}}' > "$d/refused/config.json"
why="refused/config.json: dict_class: expected .*, found NoSuchClass"
status "convert of a class that is refused" 1 "$dl" convert "$d/refused" "$d/g.npz"
says "names the class" "^dictlearn: $d/$why" "$d/err"
status "inspect of it" 0 "$dl" inspect "$d/refused"
says "says the same" "^not loaded: $d/$why" "$d/out"
says "and lists the tensors" "^encoder.weight  *F32 *.256, 128" "$d/out"
status "inspect --json of it" 0 "$dl" inspect "$d/refused" --json
says "says the same" '"not_loaded": "'"$d/$why" "$d/out"
says "and lists the tensors" '"name": "encoder.weight"' "$d/out"
status "inspect of an array" 0 "$dl" inspect "$d/x.npy"
check_fails "which is no dictionary that failed" grep -q "not loaded" "$d/out"
cp "$d/r.safetensors" "$d/sae/sae_weights.safetensors"
echo '{"d_sae": 256, "architecture": "switch"}' > "$d/sae/cfg.json"
why="sae/cfg.json: architecture: expected standard, topk, .*, found switch"
status "a class of another library" 1 "$dl" convert "$d/sae" "$d/g.npz"
says "is named" "^dictlearn: $d/$why" "$d/err"
status "inspect of it" 0 "$dl" inspect "$d/sae"
says "says the same" "^not loaded: $d/$why" "$d/out"
says "and lists its tensors" "^encoder.weight" "$d/out"
cp "$D/ae.pt" "$d/sweep/trainer_0/ae.pt"
status "a run of one trainer" 0 "$dl" inspect "$d/sweep"
cp "$D/ae.pt" "$d/sweep/trainer_1/ae.pt"
for c in "inspect $d/sweep" "convert $d/sweep $d/g.npz"; do
    status "a run of two" 1 "$dl" $c
    says "names both" "sweep: expected one dictionary, found 2: trainer_0, trainer_1; name one" "$d/err"
done

# ---- Messages
status "a folder that holds nothing" 1 "$dl" inspect "$d/real"
says "is told" "$d/real: expected a dictionary (ae.pt) or a model" "$d/err"
status "a folder's name that is a file's" 1 $train --save-dir README.md
says "is told" "^dictlearn: README.md: cannot make this folder: File exists" "$d/err"
status "eval of one row" 0 "$dl" eval --dict "$D" --data "$d/x.npy" --rows 1
says "without a variance" "variance explained  not measured" "$d/out"
if grep -q nan "$d/out"; then fail "no nan in the table" "$(cat "$d/out")";
    else pass "no nan in the table"; fi
npy() { # npy TYPE ROWS WIDTH: the header of a .npy; the rows follow
    printf '\223NUMPY\001\000\166\000%-117s\n' \
        "{'descr': '$1', 'fortran_order': False, 'shape': ($2, $3), }"
}
# A crosscoder of two layers of 64: its rows are x.npy's, as [rows, 128] or [rows, 2, 64].
crosscoder() {
    head='{"W_enc":{"dtype":"F32","shape":[2,64,4],"data_offsets":[0,2048]},'
    head=$head'"W_dec":{"dtype":"F32","shape":[4,2,64],"data_offsets":[2048,4096]},'
    head=$head'"b_enc":{"dtype":"F32","shape":[4],"data_offsets":[4096,4112]},'
    head=$head'"b_dec":{"dtype":"F32","shape":[2,64],"data_offsets":[4112,4624]}}'
    printf "\\$(printf %o $((${#head} % 256)))\\$(printf %o $((${#head} / 256)))\0\0\0\0\0\0%s" "$head"
    head -c 4096 /dev/zero | tr '\000' '<'
    head -c 528 /dev/zero
}
layers() { # layers ROWS LAYERS WIDTH: rows of x.npy, in this shape
    npy '<f4' "$1, $2" "$3"
    tail -c +129 "$d/x.npy" | head -c $(($1 * $2 * $3 * 4))
}
crosscoder > "$d/cc.safetensors"
cc="$dl eval --dict $d/cc.safetensors --layout ckkissane --json"
layers 1 60 128 > "$d/joined.npy"
layers 60 2 64 > "$d/layers.npy"
status "a crosscoder's rows, joined" 0 $cc --data "$d/joined.npy"
says "figures by layer" '"layers": \[{"mse_loss": [^}]*"l0": null, [^}]*}, {"mse_loss": [^}]*}\]' "$d/out"
cp "$d/out" "$d/joined"
status "the same by layers" 0 $cc --data "$d/layers.npy"
same "have the same figures" "$d/joined" "$d/out"
status "from a pipe" 0 sh -c "cat $d/layers.npy | $cc --data -"
same "the same again" "$d/joined" "$d/out"
status "the same as a table" 0 instead --data "$d/layers.npy" $dl eval --layout ckkissane --dict \
    "$d/cc.safetensors"
says "has a line for each layer" "^ *1  *[-0-9.]* %  *[0-9.e+-]*  *shared" "$d/out"
layers 40 3 64 > "$d/three.npy"
status "rows of three layers" 1 $cc --data "$d/three.npy"
says "do not fit" "three.npy: wrong width, expected 128, found 64" "$d/err"
status "rows of layers, some left out" 1 $cc --data "$d/layers.npy" --skip-first 1
says "are refused" "layers.npy: --skip-first: expected an array .documents, positions, d., found one" "$d/err"
status "a crosscoder and a model" 1 "$dl" eval --dict "$d/cc.safetensors" --layout ckkissane \
    --model examples/data/tiny-neox --text "$d/none" --site mlp_out --layer 0
says "one site is not enough" "expected a dictionary of one layer, found one of 2 layers: save" "$d/err"
npy '<f4' 0 128 > "$d/empty.npy"
status "no rows to train on" 1 instead --data "$d/empty.npy" $train --save-dir "$d/none"
says "are told" "^dictlearn: $d/empty.npy: expected rows, found none" "$d/err"
absent "and nothing is saved" "$d/none"
status "no rows to measure" 1 "$dl" eval --dict "$D" --data "$d/empty.npy"
says "are told" "^dictlearn: $d/empty.npy: expected rows, found none" "$d/err"
{ npy '<f4' 3000 1; head -c 10000 /dev/zero; printf '\000\000\300\177'; head -c 1996 /dev/zero; } \
    > "$d/nan.npy"
status "a NaN" 1 "$dl" train --quiet --data "$d/nan.npy" --batch-size 8 --n-ctxs 40 \
    --save-dir "$d/none"
says "is named" "^dictlearn: $d/nan.npy: row 2500, column 0: expected a finite number, found nan" \
    "$d/err"
absent "and nothing is saved" "$d/none"
status "a NaN that may be" 0 "$dl" train --quiet --data "$d/nan.npy" --batch-size 8 --n-ctxs 40 \
    --steps 375 \
    --save-dir "$d/skips" --skip-nonfinite
says "is counted" "^$d/nan.npy: 1 rows were not finite and are left out" "$d/err"
says "and recorded" '"skip_nonfinite": true' "$d/skips/config.json"
status "and one in what is measured" 0 "$dl" eval --dict "$d/skips" --data "$d/nan.npy" \
    --json --skip-nonfinite
says "is counted" "^$d/nan.npy: 1 rows were not finite and are left out" "$d/err"
says "and not measured" '"rows": 2999,' "$d/out"
status "which a model's rows are not" 2 "$dl" eval --dict "$d/skips" --model m --text t \
    --skip-nonfinite

# ---- One run in a folder
cp -r "$D" "$d/old"
mkdir -p "$d/old/checkpoints"
(cd "$d/old" && cksum $(find . -type f | sort)) > "$d/sums"
status "a run that fails" 1 "$dl" train --quiet --data "$d/nan.npy" --batch-size 8 --n-ctxs 40 \
    --save-dir "$d/old"
(cd "$d/old" && cksum $(find . -type f | sort)) > "$d/sums.now"
same "leaves the run before it as it was" "$d/sums" "$d/sums.now"
status "another run in its place" 0 $train --steps 8 --log-steps 4 --lr 1e-4 --save-dir "$d/old"
check_equal "has the folder for itself" \
    "ae.pt checkpoints config.json log.jsonl state.safetensors" \
    "$(echo $(ls "$d/old"))"
check_equal "with its own log" 3 "$(wc -l < "$d/old/log.jsonl" | tr -d ' ')"
check_equal "and no checkpoints" "" "$(ls "$d/old/checkpoints")"
says "and its own settings" '"lr": 0.0001' "$d/old/config.json"

# ---- Whatever ends a run: it is saved and says so
{ npy '<f4' 3000 1; head -c 12000 /dev/zero; } > "$d/zeros.npy"
{ npy '<f4' 6000 1; head -c 20000 /dev/zero; printf '\000\000\300\177'; head -c 3996 /dev/zero; } \
    > "$d/late.npy"
late="$dl train --quiet --data $d/late.npy --batch-size 64 --n-ctxs 8 --dict-size 8 --log-steps 30"
status "a NaN after many steps" 1 $late --warmup-steps 5 --save-dir "$d/late"
says "is named" "^dictlearn: $d/late.npy: row 5000, column 0: expected a finite" "$d/err"
says "after what was saved" "^dictlearn: $d/late: ended by an error after [0-9]* steps, saved" "$d/err"
says "with its last step" '"step": [1-9]*[1-9], ' "$d/late/log.jsonl"
status "it evaluates" 0 "$dl" eval --dict "$d/late" --data "$d/zeros.npy"
status "it goes on without that row" 0 "$dl" train --resume --save-dir "$d/late" --skip-nonfinite
says "to the end, without that row alone" '"step": 93, ' "$d/late/log.jsonl"
status "more steps than data" 0 "$dl" train --data "$d/zeros.npy" --batch-size 512 --n-ctxs 8 \
    --steps 1000 --save-dir "$d/ends"
says "says how many were made" "$d/ends: the data has ended after 6 steps of 1000 asked for, saved" \
    "$d/err"
says "and that it was warming up" "$d/ends: ended within its warm-up: 6 of 1000 steps" "$d/err"
status "a run that is done" 0 "$dl" train --resume --save-dir "$d/ends" --steps 6
says "says so" "$d/ends: nothing is left to do: done after 6 steps" "$d/err"

# ---- A finished run does not keep a large buffer
{ npy '<f4' 40000 128; head -c 20480000 /dev/zero | tr '\000' '?'; } > "$d/large.npy"
status "a run with a large buffer" 0 "$dl" train --data "$d/large.npy" --dict-size 64 \
    --batch-size 256 --n-ctxs 300 --steps 2 --warmup-steps 1 --save-dir "$d/large"
says "says what it drops" "unread rows of the buffer (19.* MB) are not kept" "$d/err"
check "is small" test "$(wc -c < "$d/large/state.safetensors")" -lt 400000
status "a longer one goes on" 0 "$dl" train --resume --save-dir "$d/large" --steps 3

# ---- Rows that rule the figures
outliers() { # outliers SHAPE: 2000 rows of an array, 20 of them long, at its end
    printf '\223NUMPY\001\000\166\000%-117s\n' \
        "{'descr': '<f4', 'fortran_order': False, 'shape': ($1, 128), }"
    head -c 1013760 /dev/zero | tr '\000' '?'
    head -c 10240 /dev/zero | tr '\000' G
}
outliers 2000 > "$d/out.npy"
outliers "50, 40" > "$d/out3.npy"
all="$dl eval --dict $D --json --rows all --data"
status "eval of rows with outliers" 0 $all "$d/out.npy"
says "says that they rule" "^dictlearn: note: 1 % of the rows hold 100.0 % of the variance" "$d/err"
says "in JSON, too" '"variance_share_of_top_1_percent": 1' "$d/out"
status "eval without long rows" 0 $all "$d/out.npy" --max-norm-ratio 5
says "leaves them out" '"rows": 1980,' "$d/out"
says "and counts them" "^$d/out.npy: 20 rows are left out" "$d/err"
status "eval without first positions" 0 $all "$d/out3.npy" --skip-first 3
says "leaves them out" '"rows": 1850,' "$d/out"
status "of an array without documents" 1 $all "$d/out.npy" --skip-first 3
says "is an error" "$d/out.npy: --skip-first: expected an array \[documents, positions, d\]" "$d/err"
short="$dl train --quiet --data $d/out3.npy --dict-size 64 --batch-size 32 --n-ctxs 2 --epochs 3"
short="$short --skip-first 1 --max-norm-ratio 5 --warmup-steps 5"
status "train without long rows" 0 $short --steps 100 --save-dir "$d/short"
status "half of it" 0 $short --steps 50 --save-dir "$d/short.half"
status "resumed" 0 "$dl" train --resume --save-dir "$d/short.half" --steps 100
same "leaves the same rows out" "$d/short/ae.pt" "$d/short.half/ae.pt"
status "with another choice" 1 instead --max-norm-ratio 6 $short --resume --save-dir "$d/short"
says "is refused" "max_norm_ratio: .* expected 5, found 6" "$d/err"
wrong "special tokens of an array" "--skip-special: goes with --model" $all "$d/out.npy" --skip-special

# ---- A target for L0 steers the penalty
steer="$dl train --quiet --data $d/x.npy --dict-size 256 --batch-size 64 --n-ctxs 8 --epochs 99"
steer="$steer --lr 1e-3 --warmup-steps 50 --log-steps 100 --target-l0 12"
status "a target for L0" 0 $steer --steps 600 --save-dir "$d/steered"
l0=$(sed -n '$s/.*"l0": \([0-9.]*\),.*/\1/p' "$d/steered/log.jsonl")
check "is reached within a quarter" awk "BEGIN { exit !($l0 > 9 && $l0 < 15) }"
says "by a penalty that is logged" '"sparsity_penalty": 0.001,' "$d/steered/log.jsonl"
status "half of it" 0 $steer --steps 300 --save-dir "$d/steered.half"
status "goes on" 0 "$dl" train --resume --save-dir "$d/steered.half" --steps 600
same "with the same bits" "$d/steered/ae.pt" "$d/steered.half/ae.pt"

# ---- Going on
status "a run to go on with" 0 $train --steps 20 --log-steps 5 --save-dir "$d/on"
cp "$d/on/log.jsonl" "$d/log"
cp -r "$d/on" "$d/killed"
for step in 20 25; do echo "{\"step\": $step, \"loss\": 1}"; done >> "$d/killed/log.jsonl"
printf '{"step": 3' >> "$d/killed/log.jsonl" # killed after its last save, in the middle of a line
mkdir -p "$d/killed/checkpoints"
for f in log.jsonl.part ae.pt.12.tmp state.safetensors.12-0bf3.tmp checkpoints/ae_15.pt.12.tmp \
    checkpoints/ae_15.pt.12-A9.tmp ae.pt.tmp ae.pt.mine.tmp checkpoints/ae_x.pt.1.tmp; do
    : > "$d/killed/$f"
done
status "resumed after a kill" 0 $train --steps 40 --log-steps 5 --save-dir "$d/killed" --resume
check_equal "each step is logged once" "0 5 10 15 19 20 25 30 35 39" \
    "$(echo $(sed 's/{"step": \([0-9]*\),.*/\1/' "$d/killed/log.jsonl"))"
state=state.safetensors
check_equal "what was unfinished is gone, what is another's stays" \
    "ae.pt ae.pt.mine.tmp ae.pt.tmp ae_x.pt.1.tmp checkpoints config.json log.jsonl $state" \
    "$(echo $(cd "$d/killed" && ls . checkpoints | grep -vE ':$|^$' | LC_ALL=C sort))"
cp -r "$d/on" "$d/noted"
{ echo '# a note' && head -n 2 "$d/log" && echo 'and another'; tail -n +3 "$d/log"; } \
    > "$d/noted/log.jsonl"
echo '{"step": 20, "loss": 1}' >> "$d/noted/log.jsonl"
status "resumed with notes in the log" 0 $train --steps 25 --log-steps 5 --save-dir "$d/noted" \
    --resume
check_equal "they stay" "# a note 0 5 and another 10 15 19 20 24" \
    "$(echo $(sed 's/{"step": \([0-9]*\),.*/\1/' "$d/noted/log.jsonl"))"
cp "$d/x.npy" "$d/x2.npy"
differs() { # differs NAME WHAT FLAG...
    harness_says=$2 harness_line=$1
    shift 2
    status "resumed with $harness_line" 1 "$dl" train --save-dir "$d/on" --resume --steps 40 "$@"
    says "$harness_line is named" "^dictlearn: $d/on/config.json: $harness_says" "$d/err"
}
differs "another array" "data: .* expected $d/x.npy, found $d/x2.npy" --data "$d/x2.npy"
differs "another seed" "seed: .* expected 0, found 7" --seed 7
differs "another batch" "batch_size: .* expected 64, found 32" --batch-size 32
differs "another rate" "lr: .* expected 0.0003.*, found 0.1" --lr 0.1
differs "another order" "shuffle: .* expected true, found false" --no-shuffle
differs "a target" "target: .* expected none, found $d/x.npy" --target "$d/x.npy"
cp "$d/x.npy" "$d/kept.npy"
npy '<f4' 600 128 > "$d/x.npy"
tail -c +129 "$d/kept.npy" | head -c 307200 >> "$d/x.npy"
differs "fewer rows" "rows: .* expected [0-9]*, found 600"
mv "$d/kept.npy" "$d/x.npy"
same "and the log stays" "$d/log" "$d/on/log.jsonl"
status "with the folder alone" 0 "$dl" train --resume --save-dir "$d/on" --steps 40 --threads 1
same "equals uninterrupted" "$d/a/b/ae.pt" "$d/on/ae.pt"
status "in compat" 0 $train --compat --steps 9 --log-steps 5 --save-dir "$d/logs"
status "other logs in compat" 1 $train --compat --steps 12 --log-steps 4 --save-dir "$d/logs" \
    --resume
says "are named" "^dictlearn: $d/logs/config.json: log_steps: .* expected 5, found 4" "$d/err"
mkdir "$d/nothing"
status "nothing to resume" 1 $train --save-dir "$d/nothing" --resume
says "is told" \
    "^dictlearn: $d/nothing: expected the state.safetensors of a run to resume, found none" "$d/err"
check_equal "and nothing is made" "" "$(ls "$d/nothing")"

# ---- Weights to start from
init="$dl train --quiet --data $d/x.npy --batch-size 64 --n-ctxs 8 --steps 3 --init $D"
status "--init alone" 0 $init --save-dir "$d/init"
says "takes its size" "\"dict_size\": 256, " "$d/init/config.json"
says "and is in the config" "\"init\": \"$D\", " "$d/init/config.json"
says "as are threads" '"threads": [0-9]*, "kernels": "[a-z0-9]*"' "$d/init/config.json"
status "--init of another size" 1 $init --dict-size 100 --save-dir "$d/none"
says "is named" \
    "$D: expected a dictionary of width 128, as the activations have, with 100 features, found width 128" \
    "$d/err"
absent "and nothing is made" "$d/none"
# ---- Recipes and families
status "--recipe list" 0 "$dl" train --recipe list
says "prints each recipe with its family" "^dl-top_k: family AutoEncoderTopK, as in dict" "$d/out"
says "its formula" "f = the 64 largest of max(p, 0), x_hat = W_dec f + b" "$d/out"
says "its own defaults" "defaults: --batch-size 8192 --lr 0.0002 " "$d/out"
check_equal "within 100 columns" "" "$(awk 'length($0) > 100' "$d/out")"
npy '<f4' 400 128 > "$d/few.npy"
tail -c +129 "$d/x.npy" | head -c 204800 >> "$d/few.npy"
run="$dl train --quiet --data $d/few.npy --dict-size 96 --batch-size 64 --epochs 9 --n-ctxs 2"
run="$run --warmup-steps 5 --log-steps 10 --lr 1e-3"
keys() { # keys FILE: of its JSON
    grep -o '"[a-z_0-9]*"' "$1" | sort -u
}
trained() { # trained RECIPE CLASS FORMULA FLAG...: 30 steps, at once and in two parts
    recipe=$1 class=$2 formula=$3 r=$d/$1
    shift 3
    status "$recipe" 0 $run --recipe $recipe "$@" --steps 30 --save-dir "$r"
    says "$recipe: its class for dictionary_learning" \
        "\"trainer\": {\"dict_class\": \"$class\", \"activation_dim\": 128," "$r/config.json"
    says "$recipe: itself" "\"recipe\": \"$recipe\"" "$r/config.json"
    check_equal "$recipe: its log has the same keys" "$(keys "$d/log")" "$(keys "$r/log.jsonl")"
    status "$recipe: half of it" 0 $run --recipe $recipe "$@" --steps 15 --save-dir "$r.half"
    status "$recipe: resumed" 0 $run --recipe $recipe "$@" --steps 30 --save-dir "$r.half" --resume
    same "$recipe: resumed equals uninterrupted" "$r/ae.pt" "$r.half/ae.pt"
    status "$recipe: inspect" 0 "$dl" inspect "$r"
    says "$recipe: family and sizes" "^family $class, activation_dim 128, dict_size 96" "$d/out"
    says "$recipe: layout and class" "^layout dictionary_learning, class $class$" "$d/out"
    says "$recipe: formula" "^$formula" "$d/out"
    says "$recipe: how it was trained" "^recipe: $recipe$" "$d/out"
    status "$recipe: inspect --json" 0 "$dl" inspect "$r" --json
    says "$recipe: the same as JSON" "\"layout\": \"dictionary_learning\", \"class\": \"$class\", " \
        "$d/out"
    says "$recipe: with its formula" '"formula": {"normalise": "none", "center": ' "$d/out"
    says "$recipe: in words" '"words": "p = W_enc ' "$d/out"
    says "$recipe: and its recipe" "\"recipe\": \"$recipe\"" "$d/out"
    status "$recipe: eval" 0 "$dl" eval --dict "$r" --data "$d/few.npy" --json
    status "$recipe: encode" 0 "$dl" encode --dict "$r" --data "$d/few.npy" --out "$r.npy"
    status "$recipe: reconstruct" 0 "$dl" reconstruct --dict "$r" --data "$d/few.npy" \
        --out "$r.y.npy"
    status "$recipe: decode" 0 "$dl" decode --dict "$r" --data "$r.npy" --out "$r.z.npy"
    same "$recipe: reconstruct equals decode of encode" "$r.y.npy" "$r.z.npy"
    from=$r
    for form in safetensors npz pt; do
        status "$recipe: convert to .$form" 0 "$dl" convert "$from" "$r.$form" --from $class
        status "$recipe: encode with it alone" 0 "$dl" encode --dict "$r.$form" \
            --data "$d/few.npy" --out "$d/f2.npy"
        same "$recipe: the same features" "$r.npy" "$d/f2.npy"
        from=$r.$form
    done
}
trained reference AutoEncoder "center output_bias, gate relu, select all" --clip 1
trained dl-jump_relu JumpReluAutoEncoder "center none, gate jump, select all" --target-l0 9 \
    --bandwidth 0.01 --sparsity-warmup-steps 4 --sparsity-penalty 0.5
trained dl-top_k AutoEncoderTopK "center output_bias, gate relu, select top_k, k 7" --k 7 \
    --dead-rows 64 --auxk 5 --auxk-alpha 0.1 --threshold-beta 0.9 --threshold-start-step 3
# A target of another width: a transcoder. It has the same figures after it was converted.
npy '<f4' 400 32 > "$d/narrow.npy"
tail -c +129 "$d/few.npy" | head -c 51200 >> "$d/narrow.npy"
for recipe in reference dl-top_k dl-jump_relu; do
    w=$d/wide.$recipe
    status "$recipe: a transcoder" 0 $run --recipe $recipe --target "$d/narrow.npy" --steps 12 \
        --save-dir "$w"
    status "$recipe: its figures" 0 "$dl" eval --dict "$w" --data "$d/few.npy" \
        --target "$d/narrow.npy" --json
    grep -v '"dict"' "$d/out" | sed 's/"dictionary": "[^"]*"//' > "$w.eval"
    for form in npz safetensors pt; do
        status "$recipe: convert it to .$form" 0 "$dl" convert "$w" "$w.$form"
        status "$recipe: figures of the .$form" 0 "$dl" eval --dict "$w.$form" \
            --data "$d/few.npy" --target "$d/narrow.npy" --json
        grep -v '"dict"' "$d/out" | sed 's/"dictionary": "[^"]*"//' > "$w.eval2"
        same "$recipe: the same figures" "$w.eval" "$w.eval2"
    done
    status "$recipe: eval without its target" 1 "$dl" eval --dict "$w" --data "$d/few.npy"
    says "is named" "$d/few.npy: wrong width, expected 32, found 128" "$d/err"
    status "$recipe: resumed" 0 $run --recipe $recipe --target "$d/narrow.npy" --steps 20 \
        --save-dir "$w" --resume
    status "$recipe: --init of it" 0 $run --recipe $recipe --target "$d/narrow.npy" --steps 2 \
        --init "$w" --save-dir "$w.more"
    status "$recipe: --init of it for another width" 1 $run --recipe $recipe --steps 2 \
        --init "$w" --save-dir "$w.none"
    says "is named" "$w: expected a dictionary with outputs of width 128, as the targets have, found 32" "$d/err"
done
status "codes of dl-top_k" 0 "$dl" encode --dict "$r" --data "$d/few.npy" --sparse --out "$r.f.npz"
status "their L0" 0 "$dl" eval --dict "$r" --data "$d/few.npy" --json
l0=$(sed -n 's/.*"l0": \([0-9.]*\),.*/\1/p' "$d/out")
check "is at most k" awk "BEGIN { exit !($l0 > 0 && $l0 <= 7) }"
says "with the k of dictionary_learning" '"dict_size": 96, "k": 7}' "$r/config.json"
# the same tensors as SAELens stores them, whose config says the rest
"$dl" convert "$d/dl-jump_relu" "$d/sae/sae_weights.safetensors"
sae() { # sae REST: its config, with these keys beside the sizes
    echo "{\"d_in\": 128, \"d_sae\": 96, \"architecture\": \"jumprelu\", $1}" > "$d/sae/cfg.json"
}
sae '"normalize_activations": "expected_average_only_in", "apply_b_dec_to_input": true,
     "metadata": {"model_name": "gpt2", "hook_name": "blocks.5.hook_resid_pre"}'
status "inspect of SAELens' folder" 0 "$dl" inspect "$d/sae"
says "names library and class" "^layout saelens, class jumprelu$" "$d/out"
says "the formula, as its config says" "^p = W_enc (x - b) + b_enc, f = p where p > max(threshold" \
    "$d/out"
says "the model" "^model: gpt2$" "$d/out"
says "the site" "^site: blocks.5.hook_resid_pre$" "$d/out"
says "the thresholds" "^thresholds: min [0-9.e-]*, mean " "$d/out"
says "and what is missing" "^note: normalize_activations is .*give --norm-scale S$" "$d/out"
check_equal "once" 0 "$(wc -c < "$d/err" | tr -d ' ')"
status "encode with it" 0 "$dl" encode --dict "$d/sae" --data "$d/few.npy" --out "$d/g.npy" --quiet
says "says so, too" "^dictlearn: $d/sae: normalize_activations .*--norm-scale S$" "$d/err"
status "inspect with a scale" 0 "$dl" inspect "$d/sae" --norm-scale 0.5 --json
says "which is in the formula" '"words": "z = 0.5 x, p = W_enc (z - b) + .*x_hat = 2 (W_dec f' "$d/out"
check_fails "and nothing is missing" grep -q '"note"' "$d/out"
open=$d/open.pt # as dictionary_learning writes it: the class is in its config alone
cp tests/golden/families/AutoEncoderTopK/ae.pt "$open"
status "a file of two layouts" 1 "$dl" eval --dict "$open" --data "$d/few.npy"
says "names both" "found those of AutoEncoderTopK and of BatchTopKSAE" "$d/err"
status "inspect of one" 0 "$dl" inspect "$open"
says "says so" "^not loaded: $open: .* AutoEncoderTopK and of BatchTopKSAE" "$d/out"
says "and lists its tensors" "^encoder.weight " "$d/out"
status "a layout that is another" 1 "$dl" inspect "$open" --layout JumpReluAutoEncoder
says "is told" "expected the tensors of JumpReluAutoEncoder, found those of AutoEncoderTopK" \
    "$d/err"
status "an unknown layout" 1 "$dl" encode --dict "$r" --layout Topk --data "$d/few.npy" \
    --out "$d/g.npy"
says "is told" "layout: expected a class, or dictionary_learning, .*found Topk" "$d/err"
status "--init of the family" 0 $run --recipe dl-top_k --init "$r.npz" --layout AutoEncoderTopK \
    --steps 3 --save-dir "$d/topk.init"
says "takes its k" '"k": 7}' "$d/topk.init/config.json"
status "--init of another family" 1 $run --recipe dl-jump_relu --init "$r" --save-dir "$d/none"
says "is told" "^dictlearn: $r: expected a dictionary of family JumpReluAutoEncoder for recipe" \
    "$d/err"
says "with its own" "dl-jump_relu, found AutoEncoderTopK$" "$d/err"
status "--resume by another recipe" 1 instead --recipe dl-jump_relu $run --save-dir "$r" --resume
says "is told" "config.json: recipe: .* expected dl-top_k, found dl-jump_relu" "$d/err"
status "too large a k" 1 $run --recipe dl-top_k --k 97 --save-dir "$d/none"
says "is told" "k: expected a number from 1 to 96, found 97" "$d/err"
wrong "an unknown recipe" "topk: expected reference, .* dl-top_k, .* or list" \
    $run --recipe topk --save-dir "$d/none"
wrong "a setting of another recipe" "--k: not a setting of recipe reference" \
    $run --k 7 --save-dir "$d/none"
wrong "before --recipe, too" "--entropy: not a setting of recipe dl-top_k" \
    $run --entropy --recipe dl-top_k --save-dir "$d/none"
status "a rate that falls" 0 $run --steps 20 --decay-start 10 --save-dir "$d/falls"
says "is at its height before" '"step": 10, .*"lr": 0.001, ' "$d/falls/log.jsonl"
status "resumed for longer" 0 $run --steps 30 --decay-start 10 --save-dir "$d/falls" --resume
says "tells that the rate changes" \
    "^dictlearn: $d/falls: --steps was 20 and is 30: from step 10 on the rate falls to 0 there$" \
    "$d/err"
says "and has it" '"step": 20, .*"lr": 0.0005, ' "$d/falls/log.jsonl"
status "resumed for as long" 0 $run --steps 30 --decay-start 10 --save-dir "$d/falls" --resume
check_fails "is silent" grep -q "steps was" "$d/err"
wrong "a decay after the end" "--decay-start: expected a step before the last" \
    $run --steps 10 --decay-start 10 --save-dir "$d/none"
wrong "--layout without a dictionary" "--layout: goes with --init" \
    $run --layout AutoEncoder --save-dir "$d/none"
absent "and nothing is made" "$d/none"
# a run of version 0.1, whose config.json had fewer settings
cp -r "$D" "$d/early"
sed -e 's/"d_out": .*"recipe": "reference", //' -e 's/"optimiser": .*"compat"/"compat"/' \
    -e 's/"auxk_by_group": .*"seed"/"seed"/' -e 's/, "trainer": {[^}]*}//' \
    "$D/config.json" > "$d/early/config.json"
check_fails "a config of 0.1" grep -q recipe "$d/early/config.json"
status "is not resumed with a new setting" 1 $train --steps 45 --log-steps 10 --save-steps 20 \
    --save-dir "$d/early" --resume --clip 1
says "which is named" "config.json: clip: .* expected 0, found 1" "$d/err"
status "is resumed" 0 $train --steps 45 --log-steps 10 --save-steps 20 --save-dir "$d/early" \
    --resume

# OpenMP's threads sleep while they wait, unless the user has chosen otherwise. libgomp shows its
# settings when it starts.
policy() { # policy NAME=VALUE...: the last one that a run shows; nothing where OpenMP shows none
    env -u OMP_WAIT_POLICY OMP_DISPLAY_ENV=true "$@" "$dl" \
        --version 2>&1 | sed -n "s/.*OMP_WAIT_POLICY = '\(.*\)'/\1/p" |
        tail -n 1
}
if [ "$(policy OMP_WAIT_POLICY=active)" = ACTIVE ]; then
    check_equal "threads sleep" PASSIVE "$(policy)"
    check_equal "unless the user wants them to spin" ACTIVE "$(policy OMP_WAIT_POLICY=active)"
else
    skip "threads sleep" "OpenMP does not show its settings"
fi
finish
