#!/bin/sh
# test_cli_train.sh BUILD - train --recipe R for every recipe: trained, resumed, opened again, converted; --config for
# the configs of every library; what is refused, and what is told at the end.
. tests/harness.sh
dl=$BUILD/dictlearn
d=$BUILD/tmp/cli_train
rm -rf "$d"
mkdir -p "$d"

# The same numbers as 400 rows of one, two or three layers of 32.
npy() { # npy SHAPE: the header of a .npy; the rows follow
    printf '\223NUMPY\001\000\166\000%-117s\n' \
        "{'descr': '<f4', 'fortran_order': False, 'shape': ($1), }"
}
rows() { # rows WIDTH SHAPE: of so many numbers of the tiny model's weights; row 300 of 400 is not a number
    npy "400, $2"
    tail -c +129 "$d/x.npy" | head -c $(($1 * 1200))
    printf '\000\000\300\177'
    tail -c +133 "$d/x.npy" | head -c $(($1 * 400 - 4))
}
"$BUILD/rows" examples/data/tiny-neox/model.safetensors "$d/x.npy"
rows 32 32 > "$d/one.npy"
rows 64 "2, 32" > "$d/two.npy"
rows 64 64 > "$d/flat.npy"
rows 96 "3, 32" > "$d/three.npy"
rows 16 16 > "$d/narrow.npy"

# ---- The list
status "--recipe list" 0 "$dl" train --recipe list
cp "$d/out" "$d/list"
check_equal "keeps to 100 columns" "" "$(awk 'length($0) > 100' "$d/list")"
recipes=$(sed -n 's/^\([a-z0-9_-]*\): family .*/\1/p' "$d/list")
for recipe in reference dl-standard dl-april dl-gated dl-top_k dl-batch_top_k dl-matryoshka dl-jump_relu \
    dl-p_anneal sl-standard sl-gated sl-jumprelu sl-jumprelu-tanh sl-jumprelu-quadratic sl-topk \
    sl-batchtopk sl-matryoshka sp-topk sp-groupmax sp-transcoder sp-skip_transcoder cc-l1 \
    cc-batch_top_k clt-topk clt-jumprelu; do
    says "it has $recipe" "^$recipe: family [A-Za-z]*, as in [a-z_-]*$" "$d/list"
done
check_equal "a formula, a loss and defaults for each" \
    "$(for recipe in $recipes; do echo formula loss defaults; done)" \
    "$(sed -n 's/^  \(formula\|loss\|defaults\):.*/\1/p' "$d/list" | paste -d ' ' - - -)"
says "words as well as numbers" " --optimiser signum" "$d/list"
says "switches, too" " --scale-rows on" "$d/list"
says "and groups" " --groups 0.03125,0.0625,0.125,0.25,0.53125" "$d/list"
status "--recipe list --json" 0 "$dl" train --recipe list --json
says "is a list of objects" '^\[{"name": "reference", "family": "AutoEncoder", "library": ' "$d/out"
says "with the settings of config.json" '"settings": {"activation_dim": .*"seed": 0}' "$d/out"
wrong "--json alone" "--json: goes with --recipe list" "$dl" train --json --data x --save-dir y

# ---- Every recipe: 20 steps at once and in two parts, opened and converted
run="$dl train --quiet --dict-size 96 --batch-size 32 --warmup-steps 4 --n-ctxs 2 --log-steps 5"
sizes() { # sizes RECIPE: flags for so small a run
    case $1 in *top*k* | *max | *matry* | sp-*) printf ' --k 8' ;; esac
    case $1 in *-batch*top* | *matry*) printf ' --threshold-start-step 3' ;; esac
    case $1 in dl-*anneal) printf ' --anneal-start 5 --anneal-end 15 --anneal-updates 3' ;; esac
}
data() { # data RECIPE: its rows
    case $1 in clt-*) echo "$d/three.npy" ;; cc-*) echo "$d/two.npy" ;; *) echo "$d/one.npy" ;; esac
}
weights() { # weights FOLDER: the file or files that hold a run's dictionary
    ls "$1" | grep -E '^(ae.pt|sae.safetensors|sae_weights.safetensors|cc_weights.pt|W_.*_[0-9]*.safetensors)$'
}
for recipe in $recipes; do
    r=$d/$recipe train="$run --recipe $recipe --data $(data $recipe) $(sizes $recipe)"
    status "$recipe" 0 $train --steps 20 --skip-nonfinite --epochs 9 --save-steps 10 --save-dir "$r"
    check_equal "$recipe: says what is left out" 1 "$(wc -l < "$d/err" | tr -d ' ')"
    says "$recipe: its config names it" "\"recipe\": \"$recipe\"" "$r/config.json"
    says "$recipe: its log has 20 steps" '"step": 19, "loss": [0-9]' "$r/log.jsonl"
    check_fails "$recipe: of finite numbers" grep -q 'null' "$r/log.jsonl"
    check "$recipe: a checkpoint" ls "$r"/checkpoints/ae_10*
    # a part of as many --steps, since some schedules are shares of them
    status "$recipe: a part" 1 $train --steps 20 --epochs 9 --save-dir "$r.part"
    says "$recipe: ends by an error" "ended by an error after [1-9][0-9]* steps of 20 .*, saved" "$d/err"
    status "$recipe: resumed" 0 "$dl" train --quiet --resume --save-dir "$r.part" --skip-nonfinite
    for file in $(weights "$r"); do
        same "$recipe: resumed equals uninterrupted, $file" "$r/$file" "$r.part/$file"
    done
    status "$recipe: inspect" 0 "$dl" inspect "$r"
    says "$recipe: opens" "^family [A-Za-z]*, activation_dim" "$d/out"
    says "$recipe: and is told" "^recipe: $recipe$" "$d/out"
    status "$recipe: eval" 0 "$dl" eval --dict "$r" --data "$(data $recipe)" --skip-nonfinite --json
    case $recipe in clt-*) to=$r.converted flags="--layout circuit-tracer" ;; *) to=$r.safetensors flags= ;; esac
    status "$recipe: convert" 0 "$dl" convert "$r" "$to" $flags
    status "$recipe: --init of itself" 0 $train --steps 2 --skip-nonfinite --init "$r" --save-dir "$r.more"
done
finish
