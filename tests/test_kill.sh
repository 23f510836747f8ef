#!/bin/sh
# test_kill.sh BUILD - runs that are killed, stopped, shut out, or lose their disk; texts that are
# not what they should be. KILLS (3) runs are killed at random moments: `make kill` kills twenty.
. tests/harness.sh
dl=$BUILD/dictlearn
d=$BUILD/tmp/kill
tiny=examples/data/tiny-neox
rm -rf "$d"
mkdir -p "$d"
"$BUILD/rows" $tiny/model.safetensors "$d/x.npy"
train="$dl train --quiet --data $d/x.npy --batch-size 64 --warmup-steps 5 --n-ctxs 8"

# ---- kill -9 at random moments, also of what goes on: the bits of a run that nothing befell
run="$train --dict-size 256 --epochs 90 --steps 150 --save-steps 2 --log-steps 1"
run="$run --resample-steps 20"
status "a run that nothing befalls" 0 $run --save-dir "$d/whole"
killed=0 tries=0
while [ "$killed" -lt "${KILLS:-3}" ] && [ "$tries" -lt 200 ]; do
    tries=$((tries + 1))
    rm -rf "$d/killed"
    kill_twice "$d/killed/state.safetensors" $run --save-dir "$d/killed"
    : > "$d/killed/state.safetensors.4.tmp" # as if it had been writing
    harness_out=$($run --save-dir "$d/killed" --resume 2>&1) || fail "goes on after kill $killed" \
        "$harness_out"
    cmp -s "$d/whole/ae.pt" "$d/killed/ae.pt" || fail "the same bits after kill $killed" \
        "other bits"
    harness_out=$(diff -r "$d/whole/checkpoints" "$d/killed/checkpoints" 2>&1) ||
        fail "the same checkpoints after kill $killed" "$harness_out"
    harness_out=$(ls "$d/killed" | grep -E 'tmp|part|lock') && fail \
        "a clean folder after kill $killed" "$harness_out"
    sed 's/, "rows_per.*//' "$d/killed/log.jsonl" > "$d/log"
    sed 's/, "rows_per.*//' "$d/whole/log.jsonl" | cmp -s - "$d/log" || fail \
        "the same log after kill $killed" ""
done
if [ "$killed" -ge "${KILLS:-3}" ]; then pass "$killed kills";
    else fail "kills" "$killed runs were killed"; fi

# ---- Two runs on one folder
long="$train --dict-size 256 --epochs 1e6 --steps 1e6 --log-steps 1"
$long --save-dir "$d/taken" > /dev/null 2>&1 &
job=$!
await test -s "$d/taken/log.jsonl"
status "a second run in a folder" 1 $train --dict-size 256 --steps 3 --save-dir "$d/taken"
says "names the first" "^dictlearn: $d/taken: another run works in this folder: process $job" \
    "$d/err"
kill -9 $job
wait $job 2> /dev/null
status "once it is gone" 0 $train --dict-size 256 --steps 3 --save-dir "$d/taken"
absent "the folder is free" "$d/taken/lock"

# ---- A stop while the rows of a resampling are measured
resample="$dl train --quiet --data $d/x.npy --batch-size 64 --warmup-steps 5 --n-ctxs 800"
resample="$resample --threads 1 --dict-size 32768 --epochs 1e3 --steps 3"
resample="$resample --log-steps 1 --resample-steps 1"
ended=143
env --default-signal=INT true 2> /dev/null && harness_signal=INT ended=130 # as Ctrl-C does
stopped "a resampling" $ended "test -s $d/sampled/log.jsonl && sleep 0.5" $resample \
    --save-dir "$d/sampled"
harness_signal=TERM
says "it says so" "stopped after 2 steps and saved" "$d/err"
check_equal "within a second or so" 1 $((harness_seconds < 4))
absent "with a clean folder" "$d/sampled/lock" "$d/sampled/log.jsonl.part"

# ---- A loss that is no number: the step is told, the last good checkpoint stays
npy() { # npy ROWS: the header of a .npy of two columns; the rows follow
    printf '\223NUMPY\001\000\166\000%-117s\n' \
        "{'descr': '<f4', 'fortran_order': False, 'shape': ($1, 2), }"
}
wild() { # 320 rows of 0, 64 of numbers whose squares overflow
    npy 384
    head -c 2560 /dev/zero
    for i in $(seq 128); do printf '\000\000\177\177'; done
}
wild > "$d/wild.npy"
wild="$dl train --quiet --data $d/wild.npy --batch-size 64 --dict-size 8 --no-shuffle"
wild="$wild --n-ctxs 8 --save-steps 2"
status "a loss beyond all numbers" 1 $wild --save-dir "$d/wild"
says "is told with its step" "^dictlearn: step 5: the loss is not finite" "$d/err"
status "and the checkpoint before stays" 0 "$dl" inspect "$d/wild"
check_equal "whole" "ae.pt checkpoints config.json log.jsonl state.safetensors" \
    "$(echo $(ls "$d/wild"))"

# ---- Disks: full, read-only, gone
mkdir "$d/disk"
if mount -t tmpfs -o size=300k none "$d/disk" 2> /dev/null; then
    trap 'umount "$d/disk" 2> /dev/null' EXIT
    "$dl" convert "$d/taken" "$d/disk/ae.pt" 2> /dev/null
    cp "$d/disk/ae.pt" "$d/before.pt"
    status "a full disk" 1 "$dl" convert "$d/whole" "$d/disk/ae.pt"
    says "is told" "^dictlearn: $d/disk/ae.pt: cannot write it: No space left" "$d/err"
    same "the file stays" "$d/before.pt" "$d/disk/ae.pt"
    check_equal "alone" ae.pt "$(ls "$d/disk")"
    status "a run on a full disk" 1 $train --dict-size 256 --steps 5 --save-dir "$d/disk/run"
    says "is told" "^dictlearn: $d/disk/run/[a-z.]*: cannot write it: No space left" "$d/err"
    mount -o remount,ro "$d/disk"
    status "a disk to be read alone" 1 "$dl" convert "$d/taken" "$d/disk/ae.pt"
    says "is told" "^dictlearn: $d/disk/ae.pt: cannot create it: Read-only" "$d/err"
    status "a run on it" 1 $train --dict-size 256 --steps 5 --save-dir "$d/disk/run"
    says "is told" "^dictlearn: $d/disk/run: cannot .*: Read-only" "$d/err"
    umount "$d/disk"
else
    skip "full and read-only disks" "no right to mount one"
fi
$long --save-steps 50 --save-dir "$d/gone" > "$d/out" 2> "$d/err" &
job=$!
await test -s "$d/gone/log.jsonl"
mv "$d/gone" "$d/went"
harness_got=0
wait $job || harness_got=$?
check_equal "a folder that is gone" 1 $harness_got
# whichever file it is about to make, or has just made
says "is told" \
    "^dictlearn: $d/gone/[a-z0-9_/.]*: cannot \(create it\|put it in place\): No such file" "$d/err"
absent "and is not made again" "$d/gone"

# ---- Texts
tokenize="$dl tokenize --model $tiny --text"
truncate -s 100000000 "$d/endless.txt" # takes no room
status "a text without an end of line" 1 $tokenize "$d/endless.txt"
says "is told" "endless.txt: expected plain text or JSON in UTF-8, found bytes of value 0" "$d/err"
status "through a pipe" 1 sh -c "tr '\\0' a < $d/endless.txt | $tokenize -"
says "is told" "line 1: expected a document of at most 16777216 bytes, found more" "$d/err"
printf 'caf\351 \377\376\n' > "$d/latin.txt"
status "text that is not UTF-8" 1 $tokenize "$d/latin.txt"
says "is told" "latin.txt: line 1: expected text in UTF-8, found the byte 0xe9 at column 4" "$d/err"
printf '{"text": "caf\351"}\n' > "$d/latin.jsonl"
status "JSON that is not UTF-8" 1 $tokenize "$d/latin.jsonl"
says "is told" "latin.jsonl: line 1: JSON, .*UTF-8" "$d/err"
: > "$d/empty.txt"
status "an empty text" 0 $tokenize "$d/empty.txt"
check_equal "has no documents" "" "$(cat "$d/out")"
finish
