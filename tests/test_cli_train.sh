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
says "with the class of each in its library" '"library": "saelens", "class": "matryoshka_batchtopk"' "$d/out"
says "with the settings of config.json" '"settings": {"activation_dim": .*"seed": 0}' "$d/out"
wrong "--json alone" "--json: goes with --recipe list" "$dl" train --json --data x --save-dir y

# ---- Every recipe: 20 steps at once and in two parts, opened and converted
run="$dl train --quiet --dict-size 96 --batch-size 32 --warmup-steps 4 --n-ctxs 2 --log-steps 5"
sizes() { # sizes RECIPE: flags for so small a run
    case $1 in *top*k* | *max | *matry* | sp-*) printf ' --k 8' ;; esac
    case $1 in clt-*) ;; *batch*top* | *matry*) printf ' --threshold-start-step 3' ;; esac
    case $1 in dl-*anneal) printf ' --anneal-start 5 --anneal-end 15 --anneal-updates 3' ;; esac
}
data() { # data RECIPE: its rows
    case $1 in clt-*) echo "$d/three.npy" ;; cc-*) echo "$d/two.npy" ;; *) echo "$d/one.npy" ;; esac
}
for_library() { # for_library RECIPE: the files that its own library opens, in the run's folder
    case $1 in
    sl-*) echo sae_weights.safetensors cfg.json ;;
    sp-*) echo sae.safetensors cfg.json ;;
    cc-l1) echo cc_weights.pt cfg.json ;;
    cc-*) echo crosscoder-fork/model.safetensors crosscoder-fork/config.json ;;
    clt-jumprelu) echo circuit-tracer/config.yaml circuit-tracer/W_enc_2.safetensors ;;
    lc-* | clt-*) echo llamascopium/sae_weights.safetensors llamascopium/config.json ;;
    esac
}
for recipe in $recipes; do
    r=$d/$recipe train="$run --recipe $recipe --data $(data $recipe) $(sizes $recipe)"
    case $recipe in sl-abstopk | sp-groupmax | sp-skip_transcoder) files= ;; *) files=ae.pt ;; esac
    files="$files $(for_library $recipe)"
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
    for file in $files; do
        same "$recipe: resumed equals uninterrupted, $file" "$r/$file" "$r.part/$file"
    done
    status "$recipe: inspect" 0 "$dl" inspect "$r"
    says "$recipe: opens" "^family [A-Za-z]*, activation_dim" "$d/out"
    says "$recipe: and is told" "^recipe: $recipe$" "$d/out"
    status "$recipe: eval" 0 "$dl" eval --dict "$r" --data "$(data $recipe)" --skip-nonfinite --json
    # for its own library, and for one that reads it in one file
    case $recipe in
    sl-*) flags=saelens ;; sp-*) flags=sparsify ;; cc-l1) flags=ckkissane ;; cc-*) flags=crosscoder-fork ;;
    clt-jumprelu) flags=circuit-tracer ;; lc-* | clt-*) flags=llamascopium ;; *) flags=dictionary_learning ;;
    esac
    status "$recipe: convert" 0 "$dl" convert "$r" "$r.converted" --layout $flags
    status "$recipe: eval of that" 0 "$dl" eval --dict "$r.converted" --data "$(data $recipe)" \
        --skip-nonfinite --json
    status "$recipe: --init of itself" 0 $train --steps 2 --skip-nonfinite --init "$r" --save-dir "$r.more"
done
absent "no folder is left from writing" "$d"/*/library.part

# ---- What is written is the trained dictionary
run="$dl train --quiet --dict-size 96 --batch-size 32 --warmup-steps 4 --n-ctxs 2 --skip-nonfinite"
one="$run --data $d/one.npy --epochs 9"
figure() { # figure KEY FOLDER DATA: of eval
    "$dl" eval --dict "$2" --data "$3" --skip-nonfinite --json 2> /dev/null |
        sed -n "s/.*\"$1\": \([-0-9.e]*\),.*/\1/p" | head -n 1
}
near() { # near NAME A B: to five digits
    check "$1" awk "BEGIN { d = ($2) - ($3); exit !(d * d <= 1e-10 * (1e-6 + ($2) * ($2))) }"
}
for recipe in sl-topk sl-batchtopk sl-jumprelu sp-topk lc-jumprelu cc-batch_top_k clt-jumprelu; do
    set -- $(for_library $recipe)
    case $1 in */*) of=$d/$recipe/${1%/*} ;; *) of=$d/$recipe/$1 ;; esac
    near "$recipe: the same errors by its library's files" \
        "$(figure mse_loss "$d/$recipe" "$(data $recipe)")" "$(figure mse_loss "$of" "$(data $recipe)")"
done
# signum keeps an average beside what it trains: that is saved, at the end and before
status "signum, 10 steps" 0 $one --recipe sp-topk --k 8 --steps 10 --save-dir "$d/signum"
status "signum, 20 steps, saved after 10" 0 $one --recipe sp-topk --k 8 --steps 20 --save-steps 9 \
    --save-dir "$d/signum20"
same "the checkpoint is the dictionary of the shorter run" "$d/signum/ae.pt" \
    "$d/signum20/checkpoints/ae_9.pt"
status "adam" 0 $one --recipe sp-topk --k 8 --optimiser adam --steps 20 --save-dir "$d/adam"
says "is in the config" '"optimiser": "adam"' "$d/adam/config.json"

# another recipe's run in the same folder replaces all of the older one's files
cp -r "$d/sl-topk" "$d/replaced"
status "a run in place of SAELens'" 0 $one --recipe dl-top_k --k 8 --steps 5 --save-dir "$d/replaced"
check_equal "has its own files alone" "ae.pt checkpoints config.json log.jsonl state.safetensors" \
    "$(echo $(ls "$d/replaced"))"
status "one that dictionary_learning lacks" 0 $one --recipe sp-groupmax --k 8 --steps 5 \
    --save-dir "$d/replaced"
check_equal "has no ae.pt" "cfg.json checkpoints config.json log.jsonl sae.safetensors state.safetensors" \
    "$(echo $(ls "$d/replaced"))"
status "one in several files" 0 $run --data "$d/three.npy" --epochs 9 --recipe clt-jumprelu --steps 5 \
    --save-dir "$d/replaced"
check_equal "has a folder for its library" \
    "ae.pt checkpoints circuit-tracer config.json log.jsonl state.safetensors" \
    "$(echo $(ls "$d/replaced"))"
status "without --quiet" 0 "$dl" train --data "$d/one.npy" --recipe lc-relu --dict-size 64 \
    --batch-size 32 --steps 2 --n-ctxs 1 --skip-nonfinite --save-dir "$d/told"
says "says where that is" "^dictlearn: $d/told: llamascopium: its files are in the folder llamascopium$" \
    "$d/err"

# ---- Transcoders and rows of several layers
status "a transcoder of another width" 0 $one --target "$d/narrow.npy" --recipe sp-transcoder --k 8 \
    --steps 9 --save-dir "$d/narrow"
status "its figures" 0 "$dl" eval --dict "$d/narrow" --data "$d/one.npy" --target "$d/narrow.npy" \
    --skip-nonfinite --json
status "flat rows of layers" 0 $run --data "$d/flat.npy" --epochs 9 --layers 2 --recipe cc-norm --steps 20 \
    --save-dir "$d/flat"
status "the same as an array [rows, layers, d]" 0 $run --data "$d/two.npy" --epochs 9 --recipe cc-norm \
    --steps 20 --save-dir "$d/flat3"
same "are the same" "$d/flat/ae.pt" "$d/flat3/ae.pt"
status "through a pipe" 0 sh -c "$run --data - --layers 2 --recipe cc-norm --steps 9 \
    --save-dir $d/flatpipe < $d/flat.npy"
status "an array [rows, layers, d] through a pipe" 1 sh -c "$run --data - --layers 2 --recipe cc-norm \
    --steps 9 --save-dir $d/none < $d/two.npy"
says "is told" "standard input: expected a file, as layers are read from one" "$d/err"
status "rows of one layer" 1 $one --recipe cc-l1 --steps 2 --save-dir "$d/none"
says "are told" "recipe cc-l1 trains on several layers at once: expected an array \[rows, layers, d\]" "$d/err"
status "rows that are no multiple" 1 $one --recipe cc-l1 --layers 3 --steps 2 --save-dir "$d/none"
says "are told" "expected rows of 3 layers, found rows of 32 numbers" "$d/err"
wrong "a model has one site" "cc-l1: trains on several layers at once: save their activations as arrays" \
    "$dl" train --model examples/data/tiny-neox --text x --site mlp_out --layer 0 --recipe cc-l1 \
    --save-dir "$d/none"
status "a cross-layer transcoder with targets" 0 $run --data "$d/three.npy" --target "$d/three.npy" \
    --epochs 9 --recipe clt-topk --k 4 --steps 5 --save-dir "$d/mapped"
says "has features for each layer" '"dict_size": 32, "layers": 3, ' "$d/mapped/config.json"

# ---- Settings: each flag, and what is refused
flags() { # flags RECIPE KEY VALUE FLAG...: sets a member of settings
    recipe=$1 key=$2 value=$3
    shift 3
    rm -rf "$d/flag"
    status "$recipe $*" 0 $one --recipe "$recipe" --steps 6 --save-dir "$d/flag" "$@"
    says "$recipe $*: is set" "\"$key\": $value[,}]" "$d/flag/config.json"
}
k="--k 8"
flags dl-top_k auxk 3 $k --auxk 3 --auxk-alpha 0.1 --dead-rows 50
flags dl-top_k k_anneal_steps 4 $k --k-anneal-steps 4 --k-start 20
flags dl-batch_top_k threshold_beta 0.5 $k --threshold-beta 0.5 --threshold-start-step 2
flags dl-standard beta1 0.5 --beta1 0.5 --beta2 0.9 --eps 1e-6
flags dl-standard decay_start 3 --decay-start 3 --clip 2
flags dl-jump_relu target_l0 9 --target-l0 9 --bandwidth 0.01 --sparsity-warmup-steps 3
flags dl-p_anneal sparsity '"lp"' --sparsity lp --p-start 1 --p-end 0.5 --anneal-start 1 --anneal-end 5 \
    --anneal-updates 2
flags sl-standard lr_schedule '"cosine"' --lr-schedule cosine --lr-end 1e-5
flags sl-standard lr_cycles 2 --lr-schedule=cosine_restarts --lr-cycles 2
flags sl-standard center false --center off
flags sl-standard scale_rows true --scale-rows
flags sl-standard scale_rows false --scale-rows off --p-start 2
flags sl-jumprelu new_threshold 0.1 --new-threshold 0.1 --atom-norm 0.5
flags sl-topk rescale false $k --rescale off --dead-steps 3
flags sl-matryoshka auxk_by_group true $k --groups 16,80 --auxk-by-group on
flags sp-topk multi_top_k true $k --multi-top-k
flags sp-transcoder skip true $k --skip on
flags lc-jumprelu threshold_lr 2 --threshold-lr 2 --pre-act 0.01
flags reference loss '"squared"' --loss squared --sparsity entropy
flags dl-matryoshka groups '\[16, 32, 48\]' $k --groups 16,32,48 --group-weights 0.5,0.25,0.25
flags dl-matryoshka groups '\[24, 24, 48\]' $k --groups 0.25,0.25,0.5
flags dl-matryoshka groups '\[31, 65\]' $k --groups 0.333,0.667
wrong "no such loss" "--loss: expected norm, squared, layers or fvu, found 'mse'" \
    $one --loss mse --save-dir "$d/none"
wrong "no such optimiser" "--optimiser: expected adam or signum, found 'muon'" \
    $one --recipe sp-topk --optimiser muon --save-dir "$d/none"
wrong "neither on nor off" "--center: expected on or off, found 'maybe'" \
    $one --recipe sl-topk --center=maybe --save-dir "$d/none"
wrong "a setting of other recipes" "--groups: not a setting of recipe dl-top_k, but of dl-matryoshka, sl-matry" \
    $one --recipe dl-top_k --groups 1,2 --save-dir "$d/none"
wrong "of a whole library" "--multi-top-k: not a setting of recipe dl-top_k, but of sp-\*" \
    $one --recipe dl-top_k --multi-top-k --save-dir "$d/none"
wrong "k 0" "--k: expected a whole number from 1 to 2147483647, found '0'" \
    $one --recipe dl-top_k --k 0 --save-dir "$d/none"
wrong "groups that are none" "expected at most 16 numbers with commas as --groups" \
    $one --recipe dl-matryoshka --groups 4,x --save-dir "$d/none"
wrong "a group of 0" "expected whole numbers from 1, or shares of at most 1, as --groups" \
    $one --recipe dl-matryoshka --groups 0,96 --save-dir "$d/none"
wrong "weights of other groups" "expected as many --group-weights as --groups" \
    $one --recipe dl-matryoshka --groups 48,48 --group-weights 1 --save-dir "$d/none"
wrong "weights without groups" "--group-weights: goes with --groups" \
    $one --recipe dl-matryoshka --group-weights 1,2 --save-dir "$d/none"
refused() { # refused NAME PATTERN FLAG...: status 1, one line and no folder
    harness_says=$2 harness_line=$1
    shift 2
    status "$harness_line" 1 $one --steps 2 --save-dir "$d/none" "$@"
    says "$harness_line: is told" "^dictlearn: .*$harness_says" "$d/err"
    check_equal "$harness_line: in one line" 1 "$(wc -l < "$d/err" | tr -d ' ')"
    absent "$harness_line: no folder" "$d/none"
}
refused "prefixes beyond F" "--groups: expected sizes that sum to the 96 features, found 100, which is 4 too many" \
    --recipe dl-matryoshka $k --groups 50,50
refused "groups that end before F" "found 90, which is 6 too few" --recipe dl-matryoshka $k --groups 40,50
refused "shares that are not all" "--groups: expected shares that sum to 1, found 0.75" \
    --recipe dl-matryoshka $k --groups 0.5,0.25
refused "k above F" "k: expected a number from 1 to 96, found 97" --recipe dl-top_k --k 97
refused "an exponent of 0" "p_start: expected a finite number above 0, found 0" \
    --recipe dl-p_anneal --p-start 0
refused "groups that F is no multiple of" "k: " --recipe sp-groupmax --k 7

# ---- What is told at the end
rm -rf "$d/flag"
status "a run that ends before its thresholds" 0 $one --recipe dl-batch_top_k $k --steps 9 --save-dir "$d/flag"
says "says how to get one" "saved without a threshold: its mean starts after step 1000" "$d/err"
says "and what to do" "go on with --resume --steps N, or pass --threshold T" "$d/err"
status "longer" 0 $one --recipe dl-batch_top_k $k --steps 9 --threshold-start-step 5 --save-dir "$d/flag"
check_fails "it is not said" grep -q "without a threshold" "$d/err"
for recipe in dl-top_k dl-gated sl-jumprelu sp-topk; do
    case $recipe in *top*) flags=$k ;; *) flags= ;; esac
    rm -rf "$d/nan"
    status "$recipe: a rate that is far too high" 1 instead --warmup-steps 0 $one --recipe $recipe $flags \
        --lr 1e30 --steps 50 --save-dir "$d/nan"
    says "$recipe: ends with a loss that is not finite" "not finite" "$d/err"
done

# ---- --config: the settings of other libraries' runs. Facts as each library writes them.
config() { # config NAME: from standard input
    cat > "$d/$1.json"
}
expect() { # expect NAME RECIPE "KEY VALUE"...: settings that a config gives
    name=$1 recipe=$2
    shift 2
    rm -rf "$d/configured"
    case $recipe in clt-*) x=$d/three.npy ;; cc-*) x=$d/two.npy ;; *) x=$d/one.npy ;; esac
    status "config $name" 0 "$dl" train --quiet --data "$x" --config "$d/$name.json" --steps 0 \
        --skip-nonfinite --save-dir "$d/configured"
    says "config $name: its recipe" "\"recipe\": \"$recipe\"" "$d/configured/config.json"
    for pair; do
        says "config $name: $pair" "\"${pair%% *}\": ${pair#* }[,}]" "$d/configured/config.json"
    done
    check_fails "config $name: the command needs no file" grep -q -- --config "$d/configured/config.json"
}
config top_k << 'END'
{"trainer": {"trainer_class": "TopKTrainer", "dict_class": "AutoEncoderTopK", "lr": 0.005, "steps": 40,
 "auxk_alpha": 0.03125, "warmup_steps": 4, "decay_start": null, "threshold_beta": 0.99,
 "threshold_start_step": 3, "seed": 11, "activation_dim": 32, "dict_size": 64, "k": 4, "device": "cpu",
 "layer": 3, "lm_name": "gpt2", "wandb_name": "x", "submodule_name": null},
 "buffer": {"d_submodule": 32, "io": "out", "n_ctxs": 30000.0, "ctx_len": 64, "refresh_batch_size": 8,
 "out_batch_size": 16, "device": "cuda"}}
END
expect top_k dl-top_k "lr 0.005" "auxk_alpha 0.03125" "warmup_steps 4" "decay_start -1" "k 4" "seed 11" \
    "threshold_beta 0.99" "threshold_start_step 3" "dict_size 64" "batch_size 16" "ctx_len 64" "in_batch_size 8"
config standard << 'END'
{"trainer": {"dict_class": "AutoEncoder", "trainer_class": "StandardTrainer", "activation_dim": 32,
 "dict_size": 64, "lr": 0.01, "l1_penalty": 0.2, "warmup_steps": 5, "resample_steps": 7,
 "sparsity_warmup_steps": null, "steps": 60, "decay_start": null, "seed": 7, "device": "cpu"}}
END
expect standard dl-standard "sparsity_penalty 0.2" "resample_steps 7" "sparsity_warmup_steps 0" "seed 7"
sed 's/StandardTrainer/StandardTrainerAprilUpdate/; s/"resample_steps": 7, *//' "$d/standard.json" > "$d/april.json"
expect april dl-april "sparsity_penalty 0.2" "clip 1"
sed 's/StandardTrainer/GatedSAETrainer/; s/AutoEncoder/GatedAutoEncoder/' "$d/standard.json" > "$d/gated.json"
expect gated dl-gated "sparsity_penalty 0.2" "beta1 0"
config jump << 'END'
{"trainer": {"trainer_class": "JumpReluTrainer", "dict_class": "JumpReluAutoEncoder", "lr": 0.01, "steps": 60,
 "seed": 7, "activation_dim": 32, "dict_size": 64, "bandwidth": 0.1, "sparsity_penalty": 1.5,
 "sparsity_warmup_steps": 5, "target_l0": 6.0}}
END
expect jump dl-jump_relu "bandwidth 0.1" "target_l0 6" "sparsity_penalty 1.5"
sed 's/TopKTrainer/BatchTopKTrainer/; s/AutoEncoderTopK/BatchTopKSAE/; s/"k": 4/"k": 4, "top_k_aux": 9/' \
    "$d/top_k.json" > "$d/batch.json"
expect batch dl-batch_top_k "k 4" "auxk 9"
config matryoshka << 'END'
{"trainer": {"trainer_class": "MatryoshkaBatchTopKTrainer", "lr": 0.01, "steps": 60, "auxk_alpha": 0.5,
 "warmup_steps": 5, "decay_start": null, "threshold_beta": 0.999, "threshold_start_step": 10, "top_k_aux": 8,
 "seed": 7, "activation_dim": 32, "dict_size": 64, "group_fractions": [0.125, 0.875],
 "group_weights": [0.75, 0.25], "group_sizes": [8, 56], "k": 4}}
END
expect matryoshka dl-matryoshka 'groups \[8, 56\]' 'group_weights \[0.75, 0.25\]'
config p_anneal << 'END'
{"trainer": {"trainer_class": "PAnnealTrainer", "dict_class": "AutoEncoder", "activation_dim": 32,
 "dict_size": 64, "lr": 0.01, "sparsity_function": "Lp", "sparsity_penalty": 0.05, "p_start": 1, "p_end": 0.2,
 "anneal_start": 10, "sparsity_queue_length": 10, "n_sparsity_updates": 3, "warmup_steps": 5,
 "sparsity_warmup_steps": 5, "decay_start": null, "resample_steps": null, "steps": 60, "seed": 7}}
END
expect p_anneal dl-p_anneal 'sparsity "lp"' "p_end 0.2" "anneal_start 10" "anneal_updates 3"
sed 's/PAnnealTrainer/GatedAnnealTrainer/; s/"Lp"/"Lp^p"/' "$d/p_anneal.json" > "$d/gated_anneal.json"
expect gated_anneal dl-gated_anneal 'sparsity "power"' "p_end 0.2"
config fork << 'END'
{"trainer": {"trainer_class": "BatchTopKCrossCoderTrainer", "lr": 0.005, "steps": 40, "auxk_alpha": 0.03125,
 "warmup_steps": 4, "decay_start": null, "threshold_beta": 0.999, "threshold_start_step": 3, "top_k_aux": 8,
 "activation_dim": 32, "dict_size": 64, "k": 9, "k_target": 4, "k_initial": 12, "k_annealing_steps": 20,
 "code_normalization": "CROSSCODER", "target_rms": 1.0}}
END
expect fork cc-batch_top_k "k 4" "k_start 12" "k_anneal_steps 20"
config fork_relu << 'END'
{"trainer": {"trainer_class": "CrossCoderTrainer", "dict_class": "CrossCoder", "activation_dim": 32, "dict_size": 64,
 "lr": 0.005, "l1_penalty": 0.05, "warmup_steps": 4, "resample_steps": null, "use_mse_loss": true,
 "code_normalization": "CROSSCODER"}}
END
expect fork_relu cc-norm 'loss "layers"' "sparsity_penalty 0.05"
config ckkissane << 'END'
{"seed": 49, "batch_size": 64, "lr": 5e-05, "num_tokens": 6400, "l1_coeff": 2, "beta1": 0.9, "beta2": 0.999,
 "d_in": 32, "dict_size": 64, "dec_init_norm": 0.08, "enc_dtype": "fp32", "device": "cuda:0"}
END
expect ckkissane cc-l1 "lr 5e-05" "sparsity_penalty 2" "seed 49" "batch_size 64"
config runner << 'END'
{"sae": {"d_in": 32, "d_sae": 64, "dtype": "float32", "device": "cuda", "apply_b_dec_to_input": false,
 "normalize_activations": "expected_average_only_in", "reshape_activations": "none", "metadata": {},
 "decoder_init_norm": 0.1, "k": 3.5, "use_sparse_activations": true, "aux_loss_coefficient": 0.5,
 "rescale_acts_by_decoder_norm": true, "topk_threshold_lr": 0.01, "architecture": "batchtopk"},
 "model_name": "gpt2", "hook_name": "blocks.0.hook_mlp_out", "dataset_path": "x", "context_size": 64,
 "training_tokens": 6400, "store_batch_size_prompts": 4, "n_batches_in_buffer": 2,
 "train_batch_size_tokens": 64, "adam_beta1": 0.8, "adam_beta2": 0.99, "lr": 0.002,
 "lr_scheduler_name": "cosineannealing", "lr_warm_up_steps": 5, "lr_end": 0.0001, "lr_decay_steps": 20,
 "n_restart_cycles": 1, "dead_feature_window": 30, "seed": 42, "logger": {"log_to_wandb": true}}
END
expect runner sl-batchtopk "k 3" "k_fraction 0.5" "center false" "scale_rows true" "auxk_alpha 0.5" "lr 0.002" \
    "threshold_beta 0.99" "beta1 0.8" "beta2 0.99" 'lr_schedule "cosine"' "lr_end 0.0001" "warmup_steps 5" \
    "dead_steps 30" "seed 42" "batch_size 64" "n_ctxs 8" "in_batch_size 4"
rm -rf "$d/configured"
status "its steps" 0 "$dl" train --quiet --data "$d/one.npy" --config "$d/runner.json" --epochs 1 \
    --skip-nonfinite --save-dir "$d/configured"
says "are its tokens by its batches" '"steps": 100, ' "$d/configured/config.json"
says "and its decay ends there" '"decay_start": 80, ' "$d/configured/config.json"
says "the run says which data ended it" "" "$d/err"
config result << 'END'
{"d_in": 32, "device": "cpu", "normalize_activations": "none", "apply_b_dec_to_input": true, "dtype": "float32",
 "metadata": {"sae_lens_version": "6.54.12", "model_name": "gpt2", "training_architecture": "matryoshka_batchtopk",
 "training_architecture_details": {"decoder_init_norm": 0.2, "k": 4, "aux_loss_coefficient": 1.0,
 "rescale_acts_by_decoder_norm": false, "topk_threshold_lr": 0.1, "matryoshka_widths": [4, 16],
 "use_matryoshka_aux_loss": true}, "l0": 4.0}, "d_sae": 64, "reshape_activations": "none",
 "architecture": "jumprelu"}
END
expect result sl-matryoshka 'groups \[4, 12, 48\]' "auxk_by_group true" "rescale false" "threshold_beta 0.9" \
    "atom_norm 0.2" "center true"
sl() { # sl NAME KEYS: a cfg.json of a checkpoint
    echo "{\"d_in\": 32, \"d_sae\": 64, \"normalize_activations\": \"none\", $2}" > "$d/$1.json"
}
jumprelu='"architecture": "jumprelu", "l0_coefficient": 0.3, "l0_warm_up_steps": 6'
sl sl_standard '"architecture": "standard", "l1_coefficient": 0.3, "lp_norm": 2.0, "l1_warm_up_steps": 4'
expect sl_standard sl-standard "sparsity_penalty 0.3" "p_start 2" "sparsity_warmup_steps 4"
sl sl_gated '"architecture": "gated", "l1_coefficient": 0.3, "l1_warm_up_steps": 4'
expect sl_gated sl-gated "sparsity_penalty 0.3"
sl sl_step "$jumprelu, \"jumprelu_sparsity_loss_mode\": \"step\", \"jumprelu_init_threshold\": 0.1, \
\"jumprelu_bandwidth\": 0.2, \"pre_act_loss_coefficient\": null, \"jumprelu_ste_to_input\": false"
expect sl_step sl-jumprelu "new_threshold 0.1" "bandwidth 0.2" "pre_act 0" "sparsity_penalty 0.3"
sl sl_tanh "$jumprelu, \"jumprelu_sparsity_loss_mode\": \"tanh\", \"jumprelu_ste_to_input\": true, \
\"jumprelu_tanh_scale\": 4.0, \"pre_act_loss_coefficient\": 0.003"
expect sl_tanh sl-jumprelu-tanh "pre_act 0.003"
sl sl_quadratic "$jumprelu, \"jumprelu_sparsity_loss_mode\": \"quadratic\", \"target_l0\": 5.0"
expect sl_quadratic sl-jumprelu-quadratic "target_l0 5"
sl sl_topk '"architecture": "topk", "k": 4, "aux_loss_coefficient": 0.5'
expect sl_topk sl-topk "k 4" "auxk_alpha 0.5"
config sparsify << 'END'
{"sae": {"activation": "topk", "expansion_factor": 3, "normalize_decoder": true, "num_latents": 0, "k": 4,
 "multi_topk": true, "skip_connection": false, "transcode": false}, "batch_size": 2, "grad_acc_steps": 1,
 "micro_acc_steps": 1, "loss_fn": "fvu", "optimizer": "adam", "lr": 0.005, "lr_warmup_steps": 7,
 "k_decay_steps": 20, "auxk_alpha": 0.5, "dead_feature_threshold": 200, "hookpoints": [], "init_seeds": [3],
 "layers": [], "layer_stride": 1, "model": "x", "dataset": "y", "ctx_len": 32, "run_name": null}
END
expect sparsify sp-topk "dict_size 96" "multi_top_k true" 'optimiser "adam"' "lr 0.005" "warmup_steps 7" \
    "k_anneal_steps 20" "auxk_alpha 0.5" "dead_rows 200" "seed 3" "batch_size 64"
sed 's/"transcode": false/"transcode": true/; s/"skip_connection": false/"skip_connection": true/
    s/"num_latents": 0/"num_latents": 48/; s/"adam"/"signum"/; s/"multi_topk": true/"multi_topk": false/' \
    "$d/sparsify.json" > "$d/skip.json"
expect skip sp-skip_transcoder "dict_size 48" 'optimiser "signum"' "skip true"
sed 's/"topk"/"groupmax"/; s/"multi_topk": true/"multi_topk": false/; s/"k_decay_steps": 20/"k_decay_steps": 0/' \
    "$d/sparsify.json" > "$d/groupmax.json"
expect groupmax sp-groupmax "k 4"
config llama << 'END'
{"sae": {"sae_type": "sae", "d_model": 32, "expansion_factor": 2.0, "use_decoder_bias": true, "act_fn": "topk",
 "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": true, "top_k": 4,
 "jumprelu_threshold_window": 2.0, "hook_point_in": "a", "hook_point_out": "a", "use_glu_encoder": false},
 "trainer": {"l1_coefficient": 8e-05, "l1_coefficient_warmup_steps": 0.1, "lp_coefficient": null,
 "auxk_coefficient": 0.25, "sparsity_loss_type": null, "tanh_stretch_coefficient": 4.0, "p": 1, "initial_k": 12,
 "k_warmup_steps": 0.5, "k_cold_booting_steps": 0, "k_schedule_type": "linear", "k_aux": 8,
 "dead_threshold": 200, "lr": 0.005, "optimizer_class": "adam", "lr_scheduler_name": "constantwithwarmup",
 "lr_end_ratio": 0.03125, "lr_warm_up_steps": 4, "lr_cool_down_steps": 0.2, "jumprelu_lr_factor": 1.0,
 "clip_grad_norm": 1.0, "total_training_tokens": 6400}, "activation_factory": {"batch_size": 64}}
END
rm -rf "$d/configured"
status "config llama" 0 "$dl" train --quiet --data "$d/one.npy" --config "$d/llama.json" --skip-nonfinite \
    --save-dir "$d/configured"
for pair in 'recipe "lc-topk"' "dict_size 64" "k 4" "k_start 12" "k_anneal_steps 50" "auxk_alpha 0.25" "auxk 8" \
    "dead_rows 200" "steps 100" "decay_start 80" "warmup_steps 4" "clip 1" "batch_size 64" "scale_rows true"; do
    says "config llama: $pair" "\"${pair%% *}\": ${pair#* }[,}]" "$d/configured/config.json"
done
# flags win over it
rm -rf "$d/configured"
status "flags beside a config" 0 "$dl" train --quiet --data "$d/one.npy" --config "$d/top_k.json" --k 6 \
    --batch-size 50 --steps 3 --skip-nonfinite --save-dir "$d/configured"
for pair in 'recipe "dl-top_k"' "k 6" "batch_size 50" "steps 3" "lr 0.005"; do
    says "win: $pair" "\"${pair%% *}\": ${pair#* }[,}]" "$d/configured/config.json"
done
status "and resumed without it" 0 "$dl" train --quiet --resume --save-dir "$d/configured" --steps 5
rm -rf "$d/configured"
status "another recipe beside it" 0 "$dl" train --quiet --data "$d/one.npy" --config "$d/top_k.json" \
    --recipe dl-jump_relu --steps 3 --skip-nonfinite --save-dir "$d/configured"
says "takes what it uses" '"lr": 0.005, ' "$d/configured/config.json"
# an own config gives the same run
rm -rf "$d/again"
status "the config of a run of our own" 0 "$dl" train --quiet --data "$d/one.npy" --epochs 9 --skip-nonfinite \
    --config "$d/sl-matryoshka/config.json" --save-dir "$d/again"
same "gives its dictionary" "$d/sl-matryoshka/ae.pt" "$d/again/ae.pt"
# a decay that a shorter run does not reach, and what has no setting here
sed 's/"decay_start": null/"decay_start": 30/' "$d/top_k.json" > "$d/decays.json"
rm -rf "$d/configured"
status "a decay beyond --steps" 0 "$dl" train --quiet --data "$d/one.npy" --config "$d/decays.json" --steps 20 \
    --skip-nonfinite --save-dir "$d/configured"
says "is told" "decays.json: decay_start: no decay: it begins at step 30, and --steps is 20" "$d/err"
no_config() { # no_config NAME PATTERN: refused, in one line
    status "config $1" 1 "$dl" train --quiet --data "$d/one.npy" --config "$d/$1.json" --save-dir "$d/none"
    says "config $1: is refused" "^dictlearn: $d/$1.json: $2" "$d/err"
    check_equal "config $1: in one line" 1 "$(wc -l < "$d/err" | tr -d ' ')"
    absent "config $1: no folder" "$d/none"
}
sed 's/expected_average_only_in/covariance_whitening/' "$d/runner.json" > "$d/whitening.json"
no_config whitening "normalize_activations: expected .*, found covariance_whitening"
sed 's/"adam"/"muon"/' "$d/sparsify.json" > "$d/muon.json"
no_config muon "optimizer: expected signum or adam for recipe sp-topk, found muon"
sed 's/"CROSSCODER"/"SAE"/' "$d/fork_relu.json" > "$d/code_norm.json"
no_config code_norm "code_normalization: expected CROSSCODER for recipe cc-norm, found SAE"
sed 's/"fvu"/"kl"/' "$d/sparsify.json" > "$d/kl.json"
no_config kl "loss_fn: expected fvu for recipe sp-topk, found kl"
sed 's/TopKTrainer/Gao2025Trainer/' "$d/top_k.json" > "$d/trainer.json"
no_config trainer "expected a class of dictionary_learning that has a recipe here, found trainer_class Gao2025Trainer"
sl matching '"architecture": "matching_pursuit"'
no_config matching "expected a class of saelens that has a recipe here, found architecture matching_pursuit"
sl tanh_only "$jumprelu, \"jumprelu_sparsity_loss_mode\": \"tanh\", \"jumprelu_ste_to_input\": false"
no_config tanh_only "expected a class of saelens .*, jumprelu_sparsity_loss_mode tanh, jumprelu_ste_to_input false"
echo '{"model_type": "gpt_neox"}' > "$d/model.json"
no_config model "expected the config of a run (dictlearn, dictionary_learning, .*), found no such settings"
echo '{"trainer": {' > "$d/broken.json"
no_config broken ".*"
sed 's/"k": 4/"k": "four"/' "$d/top_k.json" > "$d/text.json"
no_config text "k_target: expected a whole number from 1 to 2147483647 for recipe dl-top_k, found four"
status "no such config" 1 "$dl" train --data "$d/one.npy" --config "$d/nowhere.json" --save-dir "$d/none"
says "is told" "^dictlearn: $d/nowhere.json: " "$d/err"
mkdir -p "$d/taken/ae.pt"
status "a folder called ae.pt" 1 "$dl" train --data "$d/one.npy" --dict-size 8 --batch-size 50 --steps 2 \
    --skip-nonfinite --quiet --save-dir "$d/taken"
says "is told" "^dictlearn: $d/taken/ae.pt: expected a file to write, found a folder$" "$d/err"
finish
