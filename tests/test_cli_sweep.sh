#!/bin/sh
# test_cli_sweep.sh BUILD - sweep: each dictionary has the bits that train gives it; the rows are read once; stops,
# kills and members that fail; figures on rows behind the training; what is refused.
. tests/harness.sh
dl=$BUILD/dictlearn
d=$BUILD/tmp/cli_sweep
tiny=examples/data/tiny-neox
rm -rf "$d"
mkdir -p "$d"
"$BUILD/rows" $tiny/model.safetensors "$d/x.npy"

run="--quiet --data $d/x.npy --batch-size 64 --warmup-steps 5 --n-ctxs 8 --epochs 9"
without_rates() { sed 's/, "rows_per.*//' "$1"; }
same_run() { # same_run NAME FOLDER FOLDER: all that train writes but the words of the command
    for file in ae.pt state.safetensors; do same "$1: $file" "$2/$file" "$3/$file"; done
    check "$1: checkpoints" diff -r "$2/checkpoints" "$3/checkpoints"
    check_equal "$1: log" "$(without_rates "$2/log.jsonl")" "$(without_rates "$3/log.jsonl")"
    check_equal "$1: the same files" "$(ls "$2")" "$(ls "$3")"
    for of in "$2" "$3"; do sed 's/"command": [^]]*\]//' "$of/config.json" > "$d/${of##*/}.config"; done
    same "$1: config" "$d/${2##*/}.config" "$d/${3##*/}.config"
}
member() { # member FOLDER KEY FILE: the text of a member's figure in sweep.json
    tr '{' '\n' < "$3" | sed -n "s/.*\"folder\": \"$1\".*\"$2\": \([^,}]*\).*/\1/p"
}

# ---- The bits of train: a penalty, with resampling; sizes; recipes; two flags at once
one="$run --dict-size 256 --steps 60 --save-steps 20 --log-steps 1 --resample-steps 20"
status "a sweep" 0 "$dl" sweep $one --vary sparsity-penalty=1e-3,0.01,0.1 --save-dir "$d/penalty"
cp "$d/out" "$d/table"
for value in 1e-3 0.01 0.1; do
    status "train with $value" 0 "$dl" train $one --sparsity-penalty $value --save-dir "$d/one$value"
    same_run "penalty $value" "$d/one$value" "$d/penalty/sparsity-penalty-$value"
    says "penalty $value is in the table" "^$value  *[0-9.]*  *[-0-9.]* %  *[0-9.e+]*  *[0-9.]* %" "$d/table"
done
says "it says on which rows" "^measured on the last 2048 rows, which .* were trained on: --held-out" "$d/table"
check_equal "its folder" \
    "frontier.svg sparsity-penalty-0.01 sparsity-penalty-0.1 sparsity-penalty-1e-3 stream.safetensors sweep.json" \
    "$(echo $(ls "$d/penalty"))"
status "sizes" 0 "$dl" sweep $run --steps 30 --vary --dict-size=64,200 --save-dir "$d/size"
status "train of a size" 0 "$dl" train $run --steps 30 --dict-size 200 --save-dir "$d/size200"
same "a size" "$d/size200/ae.pt" "$d/size/dict-size-200/ae.pt"
some="$run --dict-size 256 --k 8 --steps 40 --dead-rows 500"
wrong "recipes that do not know a flag" "--dead-rows: not a setting of recipe lc-relu, but of" \
    "$dl" sweep $(echo $some | sed 's/--k 8//') --vary recipe=dl-top_k,lc-relu --save-dir "$d/none"
status "recipes" 0 "$dl" sweep $some --vary recipe=dl-top_k,dl-batch_top_k,sp-topk --save-dir "$d/recipes"
for value in dl-top_k dl-batch_top_k sp-topk; do
    status "train with $value" 0 "$dl" train $some --recipe $value --save-dir "$d/$value"
    for file in $(ls "$d/$value" | grep -v 'log\|config\|cfg'); do
        same "$value: $file" "$d/$value/$file" "$d/recipes/recipe-$value/$file"
    done
    status "$value opens" 0 "$dl" inspect "$d/recipes/recipe-$value"
done
grid="$run --recipe dl-top_k --dict-size 128 --steps 20"
status "every combination" 0 "$dl" sweep $grid --vary k=4,8 --vary lr=1e-3,3e-3 --save-dir "$d/grid"
check_equal "four folders" "k-4,lr-1e-3 k-4,lr-3e-3 k-8,lr-1e-3 k-8,lr-3e-3" \
    "$(echo $(ls "$d/grid" | grep lr))"
says "both values are in the table" "^8,1e-3  *8.00 " "$d/out"
status "train of one" 0 "$dl" train $grid --k 8 --lr 1e-3 --save-dir "$d/grid1"
same "has its bits" "$d/grid1/ae.pt" "$d/grid/k-8,lr-1e-3/ae.pt"
status "in the order of the file" 0 "$dl" sweep $run --no-shuffle --dict-size 64 --vary lr=1e-3,1e-2 \
    --save-dir "$d/order"
status "train in that order" 0 "$dl" train $run --no-shuffle --dict-size 64 --lr 1e-2 --save-dir "$d/order1"
same "has its bits" "$d/order1/ae.pt" "$d/order/lr-1e-2/ae.pt"
status "seeds" 0 "$dl" sweep $run --dict-size 64 --steps 9 --vary seed=0,1 --save-dir "$d/seeds"
check_fails "are other dictionaries" cmp "$d/seeds/seed-0/ae.pt" "$d/seeds/seed-1/ae.pt"

# ---- The rows are read once: a pipe gives them once, and four dictionaries read as many as one
pipe="--quiet --data - --batch-size 64 --n-ctxs 8 --dict-size 64 --steps 9 --save-steps 3"
status "four from a pipe" 0 sh -c "$dl sweep $pipe --vary lr=1e-3,2e-3,3e-3,4e-3 --save-dir $d/pipe < $d/x.npy"
says "measured on what follows in it" "^measured on 1024 rows after those of the training" "$d/out"
status "train from a pipe" 0 sh -c "$dl train $pipe --lr 3e-3 --save-dir $d/pipe1 < $d/x.npy"
same "has its bits" "$d/pipe1/ae.pt" "$d/pipe/lr-3e-3/ae.pt"
"$dl" generate --model $tiny --tokens 60 --documents 120 --out "$d/text.jsonl"
model="--quiet --model $tiny --text $d/text.jsonl --site mlp_out --layer 0 --batch-size 64 --n-ctxs 10"
model="$model --warmup-steps 5 --ctx-len 40 --in-batch-size 2 --steps 20 --dict-size 64"
rows_read() { sed 's/.*"rows_read": \([0-9]*\).*/\1/' "$1/sweep.json"; }
status "one with a model" 0 "$dl" sweep $model --vary lr=3e-3 --save-dir "$d/one"
status "four with a model" 0 "$dl" sweep $model --vary lr=1e-3,2e-3,3e-3,4e-3 --save-dir "$d/four" \
    --documents 5 --rows 400
cp "$d/out" "$d/table"
check_equal "the model's rows are as many as for one" "$(rows_read "$d/one")" "$(rows_read "$d/four")"
check "and fewer than the text has" test "$(rows_read "$d/four")" -lt 3000
status "train with a model" 0 "$dl" train $model --lr 2e-3 --save-dir "$d/model1"
same "has its bits" "$d/model1/ae.pt" "$d/four/lr-2e-3/ae.pt"

# ---- Its figures are those of eval on the documents that follow
says "the table has the cross-entropy" "dead  CE recovered$" "$d/table"
read_documents=$(($(rows_read "$d/four") / 40))
found=
for skipped in $(seq $read_documents $((read_documents + 40))); do
    tail -n +$((skipped + 1)) "$d/text.jsonl" > "$d/rest.jsonl"
    "$dl" eval --dict "$d/four/lr-2e-3" --model $tiny --text "$d/rest.jsonl" --site mlp_out --layer 0 \
        --ctx-len 40 --rows 400 --documents 5 --json > "$d/eval" 2> /dev/null
    case $(cat "$d/eval") in
    *"\"variance_explained\": $(member lr-2e-3 variance_explained "$d/four/sweep.json"),"*) found=1 && break ;;
    esac
done
check_equal "the documents after those of the training" 1 "$found"
for key in l0 mse_loss dead; do
    says "eval's $key" "\"$key\": $(member lr-2e-3 $key "$d/four/sweep.json")," "$d/eval"
done
says "eval's cross-entropy" "\"percent_recovered\": $(member lr-2e-3 ce_recovered "$d/four/sweep.json")," "$d/eval"
status "a text that ends" 0 "$dl" sweep ${model% --steps*} --dict-size 64 --vary lr=1e-3,2e-3 --save-dir "$d/ended"
says "is measured from its beginning, and told" "^measured on the first [0-9]* rows of the text, which has ended" \
    "$d/out"

# ---- Rows that are held out
head -c $((128 + 1848 * 512)) "$d/x.npy" > "$d/y.npy"
head -c $((200 * 512)) /dev/zero >> "$d/y.npy"
held="--held-out 200 --dict-size 64 --steps 60"
status "held out" 0 "$dl" sweep $run $held --vary lr=1e-3,3e-3 --save-dir "$d/held"
says "is what was measured" "^measured on 200 rows that --held-out kept from training" "$d/out"
status "train without them" 0 "$dl" train $run $held --lr 3e-3 --save-dir "$d/held1"
same "has the same bits" "$d/held1/ae.pt" "$d/held/lr-3e-3/ae.pt"
status "with other last rows" 0 "$dl" train $(echo $run | sed s/x.npy/y.npy/) $held --lr 3e-3 --save-dir "$d/held2"
same "the bits are the same" "$d/held1/ae.pt" "$d/held2/ae.pt"
check_fails "with all rows they are others" cmp "$d/held1/ae.pt" "$d/order1/ae.pt"
docs() { # docs AT: 256 documents of 8 rows, with 203 rows that are not finite from row AT on
    printf '\223NUMPY\001\000\166\000%-117s\n' "{'descr': '<f4', 'fortran_order': False, 'shape': (256, 8, 128), }"
    tail -c +129 "$d/x.npy" | head -c $(($1 * 512))
    head -c $((203 * 512)) /dev/zero | tr '\0' '\377'
    tail -c $(((1845 - $1) * 512)) "$d/x.npy"
}
docs 1845 > "$d/docs.npy"
with_docs="--batch-size 64 --n-ctxs 9 --ctx-len 64 --dict-size 64 --epochs 2 --skip-first 2 --quiet"
status "held out from within a document, whose first rows are left out" 0 "$dl" train --data "$d/docs.npy" \
    $with_docs --held-out 203 --save-dir "$d/docs"
docs 21 > "$d/docs.npy"
status "a row that is not finite" 1 "$dl" train --data "$d/docs.npy" $with_docs --save-dir "$d/docs2"
says "has its number, though others are left out" "docs.npy: row 21, column 0: expected a finite number" "$d/err"
tail -c $((200 * 512)) "$d/x.npy" > "$d/last"
{ printf '\223NUMPY\001\000\166\000%-117s\n' "{'descr': '<f4', 'fortran_order': False, 'shape': (200, 128), }"
    cat "$d/last"; } > "$d/last.npy"
status "eval on them" 0 "$dl" eval --dict "$d/held/lr-3e-3" --data "$d/last.npy" --json
for key in l0 variance_explained mse_loss dead; do
    says "eval's $key" "\"$key\": $(member lr-3e-3 $key "$d/held/sweep.json")," "$d/out"
done
status "behind the training" 0 "$dl" sweep --quiet --data "$d/x.npy" --batch-size 64 --n-ctxs 1 --dict-size 64 \
    --steps 4 --vary lr=1e-3,3e-3 --save-dir "$d/behind"
says "is what was measured" "^measured on 1[67][0-9][0-9] rows after those of the training" "$d/out"

# ---- Stops and kills: the bits of a sweep that nothing befell
long="$run --dict-size 256 --epochs 90 --steps 300 --save-steps 25 --log-steps 1 --resample-steps 20"
vary="--vary sparsity-penalty=1e-3,0.01,0.1"
long=$(echo $long | sed 's/--epochs 9 //')
status "a sweep that nothing befalls" 0 "$dl" sweep $long $vary --save-dir "$d/whole"
same_sweep() { # same_sweep NAME FOLDER
    for value in 1e-3 0.01 0.1; do
        same_run "$1, $value" "$d/whole/sparsity-penalty-$value" "$2/sparsity-penalty-$value"
    done
    same "$1: the rows" "$d/whole/stream.safetensors" "$2/stream.safetensors"
    absent "$1: nothing else" "$2"/*.tmp "$2"/*/*.tmp "$2"/lock "$2"/*/lock "$2"/*/sweep.safetensors
}
stopped "a sweep that is stopped" 143 "grep -qs '\"step\": 60,' $d/stop/sparsity-penalty-0.1/log.jsonl" \
    "$dl" sweep $long $vary --save-dir "$d/stop"
says "says how to go on" "^dictlearn: stopped after [0-9]* steps and saved: go on with dictlearn sweep --resume" \
    "$d/err"
says "with its folder" "--save-dir $d/stop$" "$d/err"
check_equal "once" 1 "$(wc -l < "$d/err" | tr -d ' ')"
says "its figures are those of the last step" '"measured": "the last training step"' "$d/stop/sweep.json"
absent "no member has rows of its own" "$d"/stop/*/state.safetensors
status "a member alone cannot go on" 1 "$dl" train --resume --save-dir "$d/stop/sparsity-penalty-0.1"
says "and says why" "found a member of a sweep that has not ended: go on with dictlearn sweep --resume" "$d/err"
cp -r "$d/stop" "$d/early"
stopped "stopped again" 143 "grep -qs '\"step\": 150,' $d/stop/sparsity-penalty-0.1/log.jsonl" \
    "$dl" sweep --resume --save-dir "$d/stop"
cp -r "$d/stop" "$d/late"
status "goes on from the folder alone" 0 "$dl" sweep --resume --save-dir "$d/stop"
same_sweep "stopped twice" "$d/stop"
# as if killed between two saves: two members are ahead of the rows, and of the third
cp -r "$d/early" "$d/torn"
for value in 1e-3 0.1; do
    rm -r "$d/torn/sparsity-penalty-$value"
    cp -r "$d/late/sparsity-penalty-$value" "$d/torn"
done
status "a set that was saved in part" 0 "$dl" sweep --resume --save-dir "$d/torn"
same_sweep "saved in part" "$d/torn"
# as if killed after the last save of a member, before the others'
cp -r "$d/late" "$d/torn2"
cp "$d/whole/sparsity-penalty-0.01/state.safetensors" "$d/torn2/sparsity-penalty-0.01"
rm -r "$d/torn2/sparsity-penalty-1e-3"
cp -r "$d/whole/sparsity-penalty-1e-3" "$d/torn2"
status "ended in part" 0 "$dl" sweep --resume --save-dir "$d/torn2"
same_sweep "ended in part" "$d/torn2"
often=$(echo $long | sed 's/--save-steps 25/--save-steps 2/')
killed=0 tries=0
while [ "$killed" -lt "${KILLS:-3}" ] && [ "$tries" -lt 50 ]; do
    tries=$((tries + 1))
    rm -rf "$d/killed"
    kill_twice "$d/killed/stream.safetensors" "$dl" sweep $often $vary --save-dir "$d/killed"
    : > "$d/killed/stream.safetensors.4.tmp" # as if it had been writing
    status "goes on after kill $killed" 0 "$dl" sweep --resume --save-dir "$d/killed" --save-steps 25
    for value in 1e-3 0.01 0.1; do
        same "kill $killed: $value" "$d/whole/sparsity-penalty-$value/ae.pt" \
            "$d/killed/sparsity-penalty-$value/ae.pt"
    done
    absent "kill $killed: nothing else" "$d"/killed/*.tmp "$d"/killed/*/*.tmp
done
# a resampling that is stopped: the member finishes it before the next batch
slow="--quiet --data $d/x.npy --batch-size 64 --warmup-steps 5 --n-ctxs 800 --epochs 1e3 --steps 3 --log-steps 1"
slow="$slow --threads 1 --resample-steps 1"
if env --default-signal=INT true 2> /dev/null; then harness_signal=INT ended=130; else ended=143; fi
stopped "a resampling" $ended "test -s $d/sampled/dict-size-8192/log.jsonl && sleep 0.3" \
    "$dl" sweep $slow --vary dict-size=8192,64 --save-dir "$d/sampled"
harness_signal=TERM
check_equal "within a second or so" 1 $((harness_seconds < 4))
check "is saved as unfinished" grep -q '"unfinished"' "$d/sampled/dict-size-8192/sweep.safetensors"

# ---- An ended sweep: longer, and one of its dictionaries longer
status "longer" 0 "$dl" sweep --resume --save-dir "$d/penalty" --steps 80
status "train of as many steps" 0 "$dl" train $(echo $one | sed 's/--steps 60/--steps 80/') --sparsity-penalty 0.1 \
    --save-dir "$d/eighty"
same "has its bits" "$d/eighty/ae.pt" "$d/penalty/sparsity-penalty-0.1/ae.pt"
status "nothing left to do" 0 "$dl" sweep --resume --save-dir "$d/penalty"
says "prints the table again" "^0.01  *[0-9.]* " "$d/out"
status "every combination longer" 0 "$dl" sweep --resume --save-dir "$d/grid" --steps 25
says "has all of them" "^8,3e-3  *8.00 " "$d/out"
status "one of them longer" 0 "$dl" train --resume --save-dir "$d/grid/k-8,lr-1e-3" --steps 30
status "train of as many steps" 0 "$dl" train $(echo $grid | sed 's/--steps 20/--steps 30/') --k 8 --lr 1e-3 \
    --save-dir "$d/grid30"
same "has its bits" "$d/grid30/ae.pt" "$d/grid/k-8,lr-1e-3/ae.pt"

# ---- A member that fails: the others go on
fails="$run --dict-size 64 --steps 40 --save-steps 10"
status "one fails" 1 "$dl" sweep $fails --vary lr=1e-3,1e30,3e-3 --save-dir "$d/fails"
says "is told" "^dictlearn: $d/fails/lr-1e30: .*not finite.*: the other dictionaries go on$" "$d/err"
says "in the table" "^1e30  *failed: .*not finite" "$d/out"
says "with the others' figures" "^3e-3  *[0-9.]* " "$d/out"
says "in its file" '"folder": "lr-1e30".*"error": "' "$d/fails/sweep.json"
status "train of another" 0 "$dl" train $fails --lr 3e-3 --save-dir "$d/fine"
same_run "another" "$d/fine" "$d/fails/lr-3e-3"
status "stays failed" 1 "$dl" sweep --resume --save-dir "$d/fails" --steps 50
says "for the same reason" "^1e30  *failed: step .*not finite" "$d/out"
check_equal "and the others go on" 50 "$(member lr-3e-3 steps "$d/fails/sweep.json")"
status "one fails at once" 1 "$dl" sweep $fails --vary atom-norm=1,1e38 --recipe sl-standard --save-dir "$d/atonce"
absent "it has no folder" "$d/atonce/atom-norm-1e38"
status "which does not hinder" 1 "$dl" sweep --resume --save-dir "$d/atonce" --steps 50
check_equal "the other" 50 "$(member atom-norm-1 steps "$d/atonce/sweep.json")"
cold=$(echo $run | sed "s/warmup-steps 5/warmup-steps 0/")
status "one has weights that are no numbers" 1 "$dl" sweep $cold --dict-size 64 --steps 1 --vary lr=1e38,1e-3 \
    --save-dir "$d/weights"
says "is not saved, and told" "^dictlearn: $d/weights/lr-1e38: .*: not written: .*: the other .* go on$" "$d/err"
says "the other is" "^1e-3  *[0-9.]* " "$d/out"
status "all fail" 1 "$dl" sweep $fails --vary atom-norm=2e38,1e38 --recipe sl-standard --save-dir "$d/all"
# rows that are not finite end all
{
    head -c $((128 + 1500 * 512)) "$d/x.npy"
    printf '\000\000\300\177'
    tail -c +$((128 + 1500 * 512 + 5)) "$d/x.npy"
} > "$d/nan.npy"
fails_nan=$(echo $fails | sed s/x.npy/nan.npy/)
status "rows that are no numbers" 1 "$dl" sweep $fails_nan --vary lr=1e-3,3e-3 --save-dir "$d/nan"
says "are named" "^dictlearn: $d/nan.npy: row 1500, column 0: expected a finite number" "$d/err"
status "and left out" 0 "$dl" sweep --resume --skip-nonfinite --save-dir "$d/nan"
status "train without them" 0 "$dl" train $fails_nan --lr 3e-3 --skip-nonfinite --save-dir "$d/nan1"
same "has the same bits" "$d/nan1/ae.pt" "$d/nan/lr-3e-3/ae.pt"
# also if a resampling is the first to come upon them: after step 8 the buffer is low
dying="$fails_nan --resample-steps 8 --sparsity-penalty 1e3 --log-steps 1"
status "in a resampling" 1 "$dl" sweep $dying --vary lr=0.1,0.05 --save-dir "$d/dying"
says "are named, too" "^dictlearn: $d/nan.npy: row 1500, column 0: expected a finite number" "$d/err"
check_fails "are no fault of a dictionary" grep -q "go on$" "$d/err"
check_equal "all are at the same step" "9 9" \
    "$(member lr-0.1 steps "$d/dying/sweep.json") $(member lr-0.05 steps "$d/dying/sweep.json")"
status "it goes on" 0 "$dl" sweep --resume --skip-nonfinite --save-dir "$d/dying"

# ---- Folders
status "a folder that is taken" 0 "$dl" sweep $fails --vary lr=1e-3,3e-3 --save-dir "$d/fails"
check_equal "and has no rows of the older one" 40 "$(member lr-1e-3 steps "$d/fails/sweep.json")"
status "nothing to resume" 1 "$dl" sweep --resume $fails --vary lr=1e-3,3e-3 --save-dir "$d/none"
says "is told" "^dictlearn: $d/none: expected the stream.safetensors of a sweep to resume, found none$" "$d/err"
status "a run is no sweep" 1 "$dl" sweep --resume --save-dir "$d/fine"
says "is told" "^dictlearn: $d/fine: expected the sweep.json of a sweep to resume, found none$" "$d/err"
head -c 100 "$d/fails/sweep.json" > "$d/fine/sweep.json"
status "half a sweep.json" 1 "$dl" sweep --resume --save-dir "$d/fine"
says "is told" "^dictlearn: $d/fine: expected the sweep.json of a sweep to resume, found a damaged one$" "$d/err"
wrong "--vary without a flag" "=1: expected FLAG=V,V,... as --vary" "$dl" sweep --vary =1 --save-dir "$d/none"
status "another member" 1 "$dl" sweep --resume --vary lr=1e-3,5e-3 --save-dir "$d/fails"
says "is told" "^dictlearn: $d/fails/lr-5e-3: expected the sweep.safetensors of a run to resume, found none$" "$d/err"
status "no data" 1 "$dl" sweep --data "$d/nowhere.npy" --vary lr=1,2 --save-dir "$d/none"
absent "leaves nothing" "$d/none"
busy="$(echo $run | sed 's/--epochs 9/--epochs 1e6/') --dict-size 256"
"$dl" sweep $busy --vary lr=1e-3,2e-3 --save-dir "$d/taken" > /dev/null 2>&1 &
job=$!
await test -s "$d/taken/lr-2e-3/log.jsonl"
status "a second sweep in a folder" 1 "$dl" sweep $busy --vary lr=1e-3 --save-dir "$d/taken"
says "names the first" "^dictlearn: $d/taken: another run works in this folder: process $job" "$d/err"
status "a run in a member's folder" 1 "$dl" train $busy --save-dir "$d/taken/lr-2e-3"
says "names the sweep" "^dictlearn: $d/taken/lr-2e-3: another run works in this folder: process $job" "$d/err"
kill -9 $job
wait $job 2> /dev/null

# ---- What is refused
sweep="$dl sweep --data $d/x.npy --save-dir $d/none"
wrong "no --vary" "--vary: this flag is required" $sweep
wrong "no folder" "--save-dir: this flag is required" "$dl" sweep --data "$d/x.npy" --vary k=1,2
wrong "no source" "source: expected --data or --model, found neither" "$dl" sweep --save-dir "$d/none" --vary lr=1,2
wrong "no values" "k: expected FLAG=V,V,... as --vary" $sweep --vary k
wrong "an empty value" "--vary: a value is missing" $sweep --vary lr=1,,2
wrong "a value twice" "1: given twice by --vary, expected once" $sweep --vary lr=1,2,1
wrong "a flag twice" "--lr: given twice by --vary, expected once" $sweep --vary lr=1,2 --vary lr=3
wrong "no such flag" "--learning: unknown flag" $sweep --vary learning=1
wrong "a slip" "--expansoin: unknown flag, did you mean --expansion?" $sweep --vary expansoin=1
wrong "not a number" "--lr: expected a number of at least 0, found 'x'" $sweep --vary lr=1,x
wrong "no such recipe" "sp-top: expected reference, .* as --recipe" $sweep --vary recipe=sp-topk,sp-top
wrong "of another recipe" "--k: not a setting of recipe reference" $sweep --vary k=1,2
for flag in batch-size ctx-len n-ctxs in-batch-size epochs data site layer io text target skip-first held-out; do
    wrong "--$flag" "--$flag: cannot vary: it changes the rows of a batch, which all" $sweep --vary $flag=1,2
done
for flag in steps save-steps log-steps; do
    wrong "--$flag" "--$flag: cannot vary: all dictionaries make the same steps" $sweep --vary $flag=1,2
done
wrong "--groups" "--groups: cannot vary: its values are lists themselves" $sweep --vary groups=1,2
wrong "a switch" "--entropy: expected a flag with values to vary" $sweep --vary entropy=1
wrong "a path" "--save-dir: expected a setting of training to vary" $sweep --vary save-dir=a,b
wrong "of another command" "--histogram: expected a setting of train to vary" $sweep --vary histogram=a,b
wrong "batches of two sizes" "--batch-size: expected one for all: recipe reference has 8192 rows, lc-relu has 2048" \
    $sweep --vary recipe=reference,lc-relu
wrong "rows of one layer and of several" "--vary: expected recipes for rows of one layer, or of several" \
    $sweep --batch-size 64 --vary recipe=reference,cc-l1
wrong "revived in the order of the file" "--resample-steps: expected no --no-shuffle beside it" \
    $sweep --no-shuffle --resample-steps 9 --vary lr=1,2
wrong "too many" "--vary: expected at most 64 combinations" \
    $sweep --vary lr=$(seq -s, 9) --vary seed=$(seq -s, 9)
wrong "a pipe held out" "--held-out: expected a file or folder as --data, found a pipe" \
    "$dl" sweep --data - --save-dir "$d/none" --held-out 5 --vary lr=1,2
wrong "documents of an array" "--documents: goes with --model" $sweep --documents 5 --vary lr=1,2
status "all rows held out" 1 $sweep --quiet --held-out 2048 --vary lr=1,2
says "is told" "x.npy: --held-out: expected fewer than the array's 2048 rows, found 2048$" "$d/err"
absent "leaves nothing" "$d/none"
status "more features kept than there are" 1 $sweep --quiet --recipe dl-top_k --dict-size 8 --vary k=4,16
absent "leaves nothing" "$d/none"
finish
