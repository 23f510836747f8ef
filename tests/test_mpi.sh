#!/bin/sh
# test_mpi.sh BUILD - `make mpi-test`: examples/mpi.h, and the program on one, two and four ranks beside the program
# on one process: what it trains, measures and writes; ranks that fail, die, stall or are told to stop. MPIRUN is the
# mpirun of the MPI that build/dictlearn-mpi was made with. With TEST_BRIEF what depends on the MPI alone, for a second
# one: calls, launching, one recipe, one rank's bits, errors, ranks that die; not each recipe and number of ranks.
. tests/harness.sh
d=$BUILD/tmp/mpi
dl=$BUILD/dictlearn
tiny="--model examples/data/tiny-neox --text $d/text.jsonl --site mlp_out --layer 0"
MPIRUN=${MPIRUN:-mpirun}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_WAIT_POLICY=passive DICTLEARN_STALL_SECONDS=60
case $($MPIRUN --version 2>&1) in
    *"Open MPI"* | *OpenRTE*) mpi=open run="timeout 300 $MPIRUN --quiet --oversubscribe -np" ;;
    *) mpi=mpich run="timeout 300 $MPIRUN -np" ;;
esac
recipes="reference dl-top_k dl-batch_top_k" described="reference dl-batch_top_k" several="2 4"
if [ -n "${TEST_BRIEF:-}" ]; then recipes=reference described=reference several=2; fi
rm -rf "$d"
mkdir -p "$d"
ranks() { # ranks R WORD...: the program's command on R ranks
    harness_ranks=$1
    shift
    $run "$harness_ranks" "$BUILD/dictlearn-mpi" "$@"
}

# ---- examples/mpi.h
for r in 1 2 3 4; do
    harness_out=$($run $r "$BUILD/mpi_ranks" 2>&1)
    case $harness_out in
        *" 0 failed"*) pass "mpi.h on $r ranks: $harness_out" ;;
        *) fail "mpi.h on $r ranks" "$harness_out" ;;
    esac
done
harness_got=0 # MPICH's mpirun ends with 9 where it kills a rank before that has ended
$run 3 "$BUILD/mpi_ranks" stall > "$d/out" 2> "$d/err" || harness_got=$?
check "a rank that does not come: status $harness_got" test "$harness_got" -ne 0
says "the first names it" "^rank 0 of 3 has waited 2.0 s for rank 1, in a sum (2 s)" "$d/out"
says "the last names it" "^rank 2 of 3 has waited 2.0 s for rank 1, in a sum (2 s)" "$d/out"
says "later calls fail at once" "for rank 1, in a sum (0 s)" "$d/out"

# ---- The example
(cd "$d" && $run 2 "../../../$BUILD/12_mpi") > "$d/out" 2> "$d/err"
says "the example trains" "^step 150: loss" "$d/out"

# ---- Training beside one process
cat > "$d/compare.py" <<'END'
import json, math, struct, sys
# compare.py LIMIT A B [STEPS]: the losses of two logs, and the weights of two .safetensors. With STEPS the limit is
# that of these first steps: later a rounding can tip a selection or a gate, whose feature Adam then moves by a whole
# step. A rate that differs by 3e-9 tips the same ones in one process. So the others are within a tenth.
def logs(path):
    return [json.loads(line) for line in open(path + '/log.jsonl')]
def weights(path):
    data = open(path, 'rb').read()
    size = struct.unpack('<Q', data[:8])[0]
    for name, t in json.loads(data[8:8 + size]).items():
        if name != '__metadata__' and t['dtype'] == 'F32':
            a, b = t['data_offsets']
            yield name, struct.unpack('<%df' % ((b - a) // 4), data[8 + size + a:8 + size + b])
limit, a, b = float(sys.argv[1]), sys.argv[2], sys.argv[3]
one, other = logs(a), logs(b)
steps = int(sys.argv[4]) if len(sys.argv) > 4 else len(one)
far = [abs(x['loss'] - y['loss']) / abs(x['loss']) for x, y in zip(one, other)]
worst = max(far[:steps])
tipped = next((i for i, v in enumerate(far) if v > limit), None)
if steps < len(one):
    print('tipped at step %s, then within %.2g;' % (tipped, max(far)), end=' ')
    if max(far) > 0.1:
        worst = max(far)
for (name, x), (_, y) in () if steps < len(one) else zip(weights(a + '/ae.safetensors'),
                                                         weights(b + '/ae.safetensors')):
    norm = math.sqrt(sum(v * v for v in x)) or 1
    far = math.sqrt(sum((v - w) ** 2 for v, w in zip(x, y))) / norm
    worst = max(worst, far)
print('%d steps, farthest %.2g' % (steps, worst))
sys.exit(len(one) != len(other) or not worst <= limit)
END
near() { # near NAME LIMIT FOLDER FOLDER [STEPS]: the same run, but for roundings
    for harness_at in "$3" "$4"; do
        $dl convert "$harness_at/ae.pt" "$harness_at/ae.safetensors" > /dev/null 2>&1
    done
    if harness_out=$(python3 "$d/compare.py" "$2" "$3" "$4" $5 2>&1); then pass "$1: $harness_out"; else
        fail "$1" "$harness_out"; fi
}
rows="--data tests/golden/training.npz --tensor rows.0"
golden="$rows --batch-size 64 --dict-size 192 --warmup-steps 5 --n-ctxs 8 --log-steps 1 --steps 40 --quiet --epochs 9"
text="$tiny --expansion 8 --batch-size 256 --warmup-steps 20 --n-ctxs 60 --log-steps 1 --steps 200 --quiet"
# sparse enough that the selection counts
penalty="--lr 3e-3 --sparsity-penalty 0.12"
$dl generate --model examples/data/tiny-neox --tokens 128 --documents 600 --out "$d/text.jsonl" --quiet
for recipe in $recipes; do
    more="--recipe $recipe" long="--recipe $recipe"
    if [ $recipe = reference ]; then long=$penalty; else more="$more --k 8"; fi
    # reference's recipe is the default
    [ $recipe = reference ] && more=
    status "$recipe on golden rows" 0 $dl train $golden $more --save-dir "$d/$recipe"
    for r in 1 $several; do
        status "$recipe on golden rows, $r ranks" 0 ranks $r train $golden $more --save-dir "$d/$recipe-$r"
        if [ $r = 1 ]; then
            same "$recipe: one rank has the bits of one process" "$d/$recipe/ae.pt" "$d/$recipe-1/ae.pt"
            same "$recipe: and its state" "$d/$recipe/state.safetensors" "$d/$recipe-1/state.safetensors"
        else
            near "$recipe on golden rows, $r ranks" 1e-6 "$d/$recipe" "$d/$recipe-$r"
        fi
    done
    status "$recipe on a text" 0 $dl train $text $long --save-dir "$d/text-$recipe"
    for r in $several; do
        [ $recipe$r = dl-top_k4 ] && continue
        status "$recipe on a text, $r ranks" 0 ranks $r train $text $long --save-dir "$d/text-$recipe-$r"
        near "$recipe on a text, $r ranks" 1e-6 "$d/text-$recipe" "$d/text-$recipe-$r" 40
    done
done
# A rate of 3e-3 makes much of little: a rounding grows tenfold every 20 steps. At 3e-4 none does: all
# losses are within 2e-8, and the weights at the end, each tensor by its norm, within 1.8e-6.
gentle="--lr 3e-4 --eps 1e-3 --sparsity-penalty 0.12"
status "a gentle rate on a text" 0 $dl train $text $gentle --save-dir "$d/gentle"
for r in 2 4; do
    status "a gentle rate on a text, $r ranks" 0 ranks $r train $text $gentle --save-dir "$d/gentle-$r"
    near "200 steps of a text, $r ranks" 5e-6 "$d/gentle" "$d/gentle-$r"
done
r2="$d/text-reference-2"
check_equal "the same files" "$(ls "$d/text-reference")" "$(ls "$r2")"
check_equal "of the same size" "$(wc -c < "$d/text-reference/state.safetensors")" "$(wc -c < "$r2/state.safetensors")"
status "two ranks again" 0 ranks 2 train $text $penalty --threads 2 --save-dir "$d/again"
for file in ae.pt state.safetensors; do same "the same ranks, the same bits: $file" "$r2/$file" "$d/again/$file"; done

# ---- What rank 0 prints, and what was sent: with two ranks each sends what it passes to its collective
check_equal "one line of each thing" "$(sort "$d/err" | uniq -d)" ""
golden_loud=$(echo "$golden" | sed 's/--quiet//')
status "without --quiet" 0 ranks 2 train $golden_loud --save-dir "$d/loud"
check_equal "the closing line, once" 1 "$(grep -c "done after 40 steps, saved" "$d/err")"
check "bytes sent are those of the formula" awk '/^dictlearn: rank 0 of 2 has sent/ {
    gsub(/[^0-9 ]/, ""); n = $3 - $4 - $5 - $6 - $7; found = $4 > 64 * 16 * 4 * 40 } END { exit !found || n != 0 }' \
    "$d/err"

# ---- Stops and checkpoints
status "a run to be gone on with" 0 ranks 2 train $(echo "$text" | sed 's/--steps 200/--steps 20/') $penalty \
    --save-dir "$d/part"
status "four ranks go on" 0 ranks 4 train --resume --save-dir "$d/part" --steps 30
status "one process goes on" 0 $dl train --resume --save-dir "$d/part" --steps 200
near "a run on two, four ranks and one process" 1e-6 "$d/text-reference" "$d/part" 40
status "a folder without a run" 1 ranks 2 train $golden --resume --save-dir "$d/none"
check_equal "is told once" 1 "$(grep -c '^dictlearn: .*expected the state.safetensors of a run to resume' "$d/err")"

# ---- eval and encode
for recipe in $described; do
    at=$d/text-$recipe
    $dl eval --dict "$at" $tiny --documents 20 --rows 4000 --json > "$d/one.json" 2> "$d/err"
    status "eval of $recipe" 0 ranks 2 eval --dict "$at" $tiny --documents 20 --rows 4000 --json
    check "eval of $recipe: figures" python3 -c '
import json, sys
def numbers(x, at=""):
    for k, v in (x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ()):
        if isinstance(v, (dict, list)): yield from numbers(v, at + "/" + str(k))
        else: yield at + "/" + str(k), v
a, b = (dict(numbers(json.load(open(p)))) for p in sys.argv[1:])
bad = [(k, a[k], b.get(k)) for k in a if a[k] != b.get(k) and not (isinstance(a[k], float) and
       abs(a[k] - b[k]) <= 2e-6 * max(abs(a[k]), 1e-3))]
print(bad); sys.exit(bool(bad))' "$d/one.json" "$d/out"
    $dl activations $tiny --out "$d/x.npy" --limit 3000 --quiet
    $dl encode --dict "$at" --data "$d/x.npy" --sparse --out "$d/one.npz" --quiet
    $dl encode --dict "$at" --data "$d/x.npy" --out "$d/one.npy" --quiet
    for r in $several; do
        status "encode by $recipe, $r ranks" 0 ranks $r encode --dict "$at" --data "$d/x.npy" --out "$d/all.npy"
        same "encode by $recipe, $r ranks: codes" "$d/one.npy" "$d/all.npy"
        status "encode --sparse by $recipe, $r ranks" 0 ranks $r encode --dict "$at" --data "$d/x.npy" --sparse \
            --out "$d/all.npz"
        same "encode --sparse by $recipe, $r ranks: codes" "$d/one.npz" "$d/all.npz"
        check "encode --sparse by $recipe, $r ranks: rank 0 sends sums and sizes, no codes" awk -v r=$r '
            /^dictlearn: rank 0 of/ { gsub(/[^0-9 ]/, ""); left = $3 - $4 * 2 * (r - 1) / r }
            END { exit !(NR && left < 20000) }' "$d/err"
    done
done

# ---- Errors: once, and one exit status
once() { # once NAME STATUS PATTERN COMMAND...
    harness_line=$1 harness_says=$3 harness_want=$2
    shift 3
    status "$harness_line" "$harness_want" "$@"
    check_equal "$harness_line: in one line" 1 "$(grep -c "$harness_says" "$d/err")"
    check_equal "$harness_line: and nothing else" 1 "$(grep -c '^dictlearn' "$d/err")"
}
once "a command for one process" 2 "expected one process, found 2 ranks" ranks 2 inspect "$d/text-reference"
once "a flag that is none" 2 "unknown flag" ranks 2 train --no-such-flag
once "a file that is not there" 1 "no-such.npy" ranks 2 train --data no-such.npy --save-dir "$d/none" --quiet
once "a dictionary that is not there" 1 "no-such" ranks 2 encode --dict no-such --data "$d/x.npy" --out "$d/none.npy"
once "a pipe" 2 "a file that every rank can read" ranks 2 train --data - --save-dir "$d/none" --quiet
once "a stall time that is none" 2 "DICTLEARN_STALL_SECONDS" env DICTLEARN_STALL_SECONDS=soon $run 2 \
    "$BUILD/dictlearn-mpi" train $golden --save-dir "$d/none"
absent "nothing is left" "$d/none" "$d/none.npy"
# apart WORD...: two ranks, each in a folder of its own
apart() { $run 2 sh -c "cd $d/here.\${OMPI_COMM_WORLD_RANK:-\$PMI_RANK} && exec \"\$0\" \"\$@\"" \
    "$here/$BUILD/dictlearn-mpi" "$@"; }
here=$(pwd)
mkdir -p "$d/here.0" "$d/here.1"
head -n 40 "$d/text.jsonl" > "$d/here.0/text.jsonl"
apart_text=$(echo "$text" | sed "s:examples/:$here/&:; s:$d/text.jsonl:text.jsonl:; s:--n-ctxs 60:--n-ctxs 2:")
for others in "sed 20d" "head -n 20"; do
    $others "$d/here.0/text.jsonl" > "$d/here.1/text.jsonl"
    status "$others of a text on one rank" 1 apart train $apart_text --save-dir none
    says "$others of a text: it is told" "^dictlearn: text: expected the same on all ranks" "$d/err"
done

# ---- Ranks that die or stall, and stops
long="train --data $d/x.npy --dict-size 512 --batch-size 64 --warmup-steps 5 --n-ctxs 8 --epochs 1e6 --steps 1e6"
long="$long --save-steps 20 --log-steps 1 --quiet"
$dl activations $tiny --out "$d/x.npy" --limit 3000 --quiet
ended() { # ended NAME SIGNAL RANK: three ranks, of which one gets a signal (RANK all: mpirun)
    rm -rf "$d/ended"
    $run 3 sh -c "echo \$\$ > $d/pid.\${OMPI_COMM_WORLD_RANK:-\$PMI_RANK}; exec $BUILD/dictlearn-mpi \$0 \"\$@\"" \
        $long --save-dir "$d/ended" > "$d/out" 2> "$d/err" &
    harness_job=$!
    await test -e "$d/ended/checkpoints/ae_40.pt"
    harness_seconds=$(date +%s) harness_got=0
    if [ "$3" = all ]; then kill -"$2" "$(pgrep -P $harness_job | head -n 1)"; else
        kill -"$2" "$(cat "$d/pid.$3")"; fi
    wait $harness_job || harness_got=$?
    harness_seconds=$(($(date +%s) - harness_seconds))
    [ "$3" = all ] || kill -9 "$(cat "$d/pid.$3")" 2> /dev/null
}
goes_on() { # goes_on NAME: the last checkpoint is whole, and other ranks go on from it
    harness_steps=$(tail -n 1 "$d/ended/log.jsonl" | sed 's/.*"step": \([0-9]*\),.*/\1/')
    status "$1: two ranks go on" 0 ranks 2 train --resume --save-dir "$d/ended" --steps $((harness_steps + 5))
    status "$1: one process" 0 instead --steps $((harness_steps + 5)) $dl $long --save-dir "$d/whole"
    near "$1: as one process that nothing befell" 1e-5 "$d/whole" "$d/ended" 40
}
for victim in 2 0; do
    ended "a rank is killed" KILL $victim
    check "rank $victim is killed: status $harness_got" test "$harness_got" -ne 0
    check "rank $victim is killed: within 10 s" test "$harness_seconds" -le 10
    # Open MPI ends the others by SIGTERM, and they speak; MPICH by SIGKILL, and it speaks itself. Rank 1 waits for
    # rank 0 where that one is at a checkpoint
    if [ $mpi = open ]; then
        says "rank $victim is killed: a survivor names it" \
            "^dictlearn: rank 1 of 3 has waited .* s for rank [0$victim]" "$d/err"
    else
        says "rank $victim is killed: mpirun tells it" "KILLED BY SIGNAL: 9\|BAD TERMINATION" "$d/out"
    fi
done
goes_on "after a kill"
export DICTLEARN_STALL_SECONDS=3
ended "a rank is stopped" STOP 1
check "a rank stalls: status $harness_got" test "$harness_got" -ne 0
check "a rank stalls: within 3 s and some" test "$harness_seconds" -le 12
for r in 0 2; do
    says "a rank stalls: rank $r tells it" "^dictlearn: rank $r of 3 has waited 3.. s for rank [0-2], in " "$d/err"
done
says "a rank stalls: it is named" "has waited 3.. s for rank 1, in " "$d/err"
goes_on "after a stall"
export DICTLEARN_STALL_SECONDS=60
ended "mpirun is told to stop" TERM all
check "a stop: status $harness_got" test "$harness_got" -ne 0
says "a stop: it is told once" "^dictlearn: stopped after [0-9]* steps and saved" "$d/err"
goes_on "after a stop"
ended "a rank is told to stop" TERM 2
check_equal "one rank's stop: status" 143 "$harness_got"
check_equal "one rank's stop: all end, and one says so" 1 "$(grep -c "^dictlearn: stopped after" "$d/err")"

if [ -n "${TEST_BRIEF:-}" ]; then finish; fi

# ---- Memory: weights and moments are shared out; what each rank has whole is the buffer and the batch
cat > "$d/peak.py" <<'END'
import os, resource, subprocess, sys
status = subprocess.call(sys.argv[2:])
rank = os.environ.get('OMPI_COMM_WORLD_RANK', os.environ.get('PMI_RANK', '0'))
open(sys.argv[1] + '.' + rank, 'w').write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(status)
END
big="train $rows --batch-size 64 --n-ctxs 8 --steps 2 --quiet --threads 1 --epochs 9"
for size in 192 393216; do
    python3 "$d/peak.py" "$d/peak-$size" $dl $big --dict-size $size --save-dir "$d/big"
    $run 4 python3 "$d/peak.py" "$d/peak4-$size" "$BUILD/dictlearn-mpi" $big --dict-size $size --save-dir "$d/big"
done
one=$(($(cat "$d/peak-393216.0") - $(cat "$d/peak-192.0"))) quarter=0
for r in 0 1 2 3; do
    of_rank=$(($(cat "$d/peak4-393216.$r") - $(cat "$d/peak4-192.$r")))
    [ $of_rank -gt $quarter ] && quarter=$of_rank
done
check "memory: $one kB on one process, $quarter kB on each of four ranks, at most 0.3 of it" \
    test $((quarter * 10)) -le $((one * 3))
finish
