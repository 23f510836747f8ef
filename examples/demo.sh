#!/bin/sh
# demo.sh - the main job from end to end, as `make demo` runs it: text, activations, a dictionary, its table of figures.
#
# Without settings the small model of examples/data/tiny-neox writes the text itself, by sampling; nothing is loaded
# from elsewhere.
#   make demo MODEL=DIR TEXT=FILE [SITE=mlp_out] [LAYER=0] [EXPANSION=8] [ROWS=200000]
# does the same with any GPT-NeoX folder and a text (.jsonl, or .txt with blank lines between documents), of which one
# document in twenty is held out for the figures. PENALTY= sets the sparsity penalty: larger is sparser.
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

say() { printf '\n%s\n' "$*"; }
run() { # shows a command, then runs it
    printf '$ %s\n' "$*"
    "$@"
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
    say "1. The text $TEXT, one document in twenty held out"
    hold_out "$TEXT" "$train" "$held"
elif [ -n "${MODEL:-}${TEXT:-}" ]; then
    echo "demo: MODEL=DIR and TEXT=FILE go together" >&2
    exit 2
else
    MODEL=examples/data/tiny-neox
    train=$out/train.jsonl held=$out/held.jsonl
    say "1. The model writes its own text: $((ROWS / 128)) documents to train on, 160 others to measure with"
    run "$dl" generate --model "$MODEL" --tokens 128 --documents $((ROWS / 128 + 1)) --seed 1 --out "$train"
    run "$dl" generate --model "$MODEL" --tokens 128 --documents 160 --seed 2 --out "$held"
fi

say "2. A dictionary is trained on $SITE of layer $LAYER"
run "$dl" train --model "$MODEL" --text "$train" --site "$SITE" --layer "$LAYER" --expansion "$EXPANSION" \
    --batch-size $BATCH --steps $((ROWS / BATCH)) --lr 2e-3 --warmup-steps 50 --sparsity-penalty "$PENALTY" \
    --n-ctxs 1600 --save-dir "$out/run"

say "3. It is measured on text that it was not trained on"
run "$dl" eval --dict "$out/run" --model "$MODEL" --text "$held" --site "$SITE" --layer "$LAYER" --rows 16384 \
    --histogram -

say "4. What some of its features stand for"
run "$dl" features --dict "$out/run" --model "$MODEL" --text "$held" --site "$SITE" --layer "$LAYER" --count 5

say "The dictionary is in $out/run: ae.pt opens in PyTorch, too."
