#!/bin/sh
# demo.sh - from a text to a dictionary, its figures and a page of its features, as `make demo` runs it.
#
# Without settings the small model of examples/data/tiny-neox writes the text itself, by sampling:
# nothing is downloaded.
#   make demo MODEL=DIR TEXT=FILE [SITE=mlp_out] [LAYER=0] [EXPANSION=8] [ROWS=200000]
# does the same with a Hugging Face folder or a GGUF file and a text (.jsonl, or .txt with blank lines between
# documents); one document in twenty is held out for the figures. PENALTY= sets the sparsity
# penalty: larger is sparser. Every command and its whole output are in build/demo/log.txt.
set -eu

SITE=${SITE:-mlp_out}
LAYER=${LAYER:-0}
EXPANSION=${EXPANSION:-8}
ROWS=${ROWS:-200000}
PENALTY=${PENALTY:-0.13}
BATCH=256
BUILD=${BUILD:-build}
dl=$BUILD/dictlearn
out=$BUILD/demo
mkdir -p "$out"

log=$out/log.txt
: > "$log"
quiet=
[ -t 2 ] || quiet=--quiet # progress is for a terminal

run() { # runs a command; its output goes to the log, and is left in $out/last.txt
    printf '$ %s\n' "$*" >> "$log"
    "$@" > "$out/last.txt"
    cat "$out/last.txt" >> "$log"
}

# hold_out FILE TRAIN HELD: enough documents of FILE for the rows, every twentieth to HELD
hold_out() {
    case $1 in
    *.jsonl) separator='\n' end='\n' ;;
    *) separator='' end='\n\n' ;;
    esac
    : > "$2"
    : > "$3"
    awk -v RS="$separator" -v ORS="$end" -v train="$2" -v held="$3" -v bytes=$((ROWS * 16)) '
        NR % 20 == 0 { print > held; next }
        { print > train; n += length($0); if (n > bytes) exit }' "$1"
}

if [ -n "${MODEL:-}" ] && [ -n "${TEXT:-}" ]; then
    suffix=${TEXT##*.}
    train=$out/train.$suffix held=$out/held.$suffix
    echo "1. Holding out one document in twenty of $TEXT"
    hold_out "$TEXT" "$train" "$held"
elif [ -n "${MODEL:-}${TEXT:-}" ]; then
    echo "demo: MODEL=DIR and TEXT=FILE go together" >&2
    exit 2
else
    MODEL=examples/data/tiny-neox
    train=$out/train.jsonl held=$out/held.jsonl
    documents=$((ROWS / 128 + 1))
    echo "1. A small language model writes $documents documents to train on and 160 to evaluate on"
    run "$dl" generate $quiet --model "$MODEL" --tokens 128 --documents $documents --seed 1 \
        --out "$train"
    run "$dl" generate $quiet --model "$MODEL" --tokens 128 --documents 160 --seed 2 --out "$held"
fi

steps=$((ROWS / BATCH))
echo "2. Training a dictionary on the activations of $SITE in layer $LAYER ($steps steps)"
run "$dl" train $quiet --model "$MODEL" --text "$train" --site "$SITE" --layer "$LAYER" \
    --expansion "$EXPANSION" --batch-size $BATCH --steps $steps --lr 2e-3 --warmup-steps 50 \
    --sparsity-penalty "$PENALTY" --n-ctxs 1600 --save-dir "$out/run"

echo "3. Evaluating it on documents that it was not trained on"
run "$dl" eval $quiet --dict "$out/run" --model "$MODEL" --text "$held" --site "$SITE" \
    --layer "$LAYER" --rows 16384 --histogram -
grep -E '^ *(variance explained|L1|L0|alive|CE diff|CE recovered) ' "$out/last.txt" |
    sed 's/^ */     /'

echo "4. Some of its features, and the share of each token in what they fire on"
run "$dl" features $quiet --dict "$out/run" --model "$MODEL" --text "$held" --site "$SITE" \
    --layer "$LAYER" --count 5
awk '/^feature/ { sub(/:.*/, ""); head = $0 }
    /^  tokens/ { sub(/^  tokens */, ""); printf "     %-14s %s\n", head, $0 }' "$out/last.txt"

echo "5. A page of all its features, with contexts of these documents"
run "$dl" features $quiet --dict "$out/run" --model "$MODEL" --text "$held" --site "$SITE" \
    --layer "$LAYER" --count 1024 --out "$out/features.html"

echo "Look inside: open $out/features.html in a browser. $out/run/ae.pt opens in PyTorch, too."
echo "Commands, histogram, contexts: $log"
