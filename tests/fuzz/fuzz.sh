#!/bin/sh
# fuzz.sh MODE BUILD [TARGET...] - runs the fuzzers, FUZZ_SECONDS (60) each, JOBS (2) at a time, or all for a MODE of
#   fuzz   libFuzzer: from the committed inputs and from what earlier runs found, which lies in BUILD/fuzz/found
#   merge  the committed inputs anew: the least that reach what is reached, edges counted once
#   afl    AFL++ in the same way, from the committed inputs alone
# The committed inputs of a target are one file, tests/fuzz/corpus/TARGET.bin (pack.py); they are
# unpacked into BUILD/fuzz/corpus.
# An input that fails is in BUILD/fuzz/TARGET-crash-..., and `make fuzz-replay FUZZ_TARGET=... FUZZ_FILES=...` shows it.
mode=$1 build=$2 JOBS=${JOBS:-2}
. tests/harness.sh
shift 2
export ASAN_OPTIONS=allocator_may_return_null=1
all=$(sed -n 's/^    {"\([a-z]*\)", fuzz_.*/\1/p' tests/fuzz/fuzz.c)
rm -f "$build/fuzz/failed" "$build/fuzz/slots"
slots "$build/fuzz"

one() ( # one TARGET
    target=$1 failed=0
    archive=tests/fuzz/corpus/$target.bin
    corpus=$build/fuzz/corpus/$target found=$build/fuzz/found/$target words=tests/fuzz/$target.dict
    export FUZZ_TARGET="$target"
    rm -rf "$corpus"
    mkdir -p "$found" "$corpus"
    if [ -f "$archive" ]; then python3 tests/fuzz/pack.py unpack "$archive" "$corpus" || failed=1; fi
    case $target in
    legacy) words=tests/fuzz/pickle.dict ;;
    shards | documents) words=tests/fuzz/json.dict ;;
    dictionary | checkpoint | layout) words=tests/fuzz/model.dict ;;
    esac
    set -- -max_len=4096 -timeout=120 -report_slow_units=120 -rss_limit_mb=3000 -artifact_prefix="$build/fuzz/$target-"
    if [ -f "$words" ]; then set -- "$@" -dict="$words"; fi
    echo "==== $mode $target"
    case $mode in
    fuzz)
        "$build/fuzz/fuzz" -max_total_time="${FUZZ_SECONDS:-60}" -print_final_stats=1 -verbosity=0 "$@" "$found" \
            "$corpus" || failed=1 ;;
    merge)
        rm -rf "$build/fuzz/merged" && mkdir -p "$build/fuzz/merged"
        if "$build/fuzz/fuzz" -merge=1 -use_counters=0 -verbosity=0 "$@" "$build/fuzz/merged" "$corpus" "$found"; then
            python3 tests/fuzz/pack.py pack "$build/fuzz/merged" "$archive"
        else
            failed=1
        fi ;;
    afl)
        if [ -f "$words" ]; then set -- -x "$words"; else set --; fi
        ASAN_OPTIONS=$ASAN_OPTIONS:abort_on_error=1:symbolize=0:detect_leaks=0 \
            AFL_NO_UI=1 AFL_SKIP_CPUFREQ=1 AFL_I_DONT_CARE_ABOUT_MISSING_CRASHES=1 \
            afl-fuzz -V "${FUZZ_SECONDS:-60}" "$@" -m none -t 5000 -i "$corpus" \
            -o "$build/fuzz/afl-$target" -- "$build/fuzz/fuzz-afl" || failed=1 ;;
    esac
    if [ $failed -ne 0 ]; then echo "$target" >> "$build/fuzz/failed"; fi
)

said() { # said TARGET: what it says comes in one piece
    one "$1" > "$build/fuzz/$1.said" 2>&1
    cat "$build/fuzz/$1.said"
}

for target in ${*:-$all}; do begin said "$target"; done
wait
if [ -e "$build/fuzz/failed" ]; then
    echo "failed: $(tr '\n' ' ' < "$build/fuzz/failed")"
    exit 1
fi
