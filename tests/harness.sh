# harness.sh - what the shell tests share: `. tests/harness.sh` at the top, `finish` at the end.
# They run as `sh tests/test_x.sh BUILD` from the root of the repository, with CC, CFLAGS and OPENMP from the Makefile.
BUILD=${1:-build}
CC=${CC:-cc}
CXX=${CXX:-c++}
harness_passed=0 harness_failed=0 harness_skipped=0

# check NAME COMMAND...: the command must succeed; its output is shown only if it does not.
check() {
    harness_name=$1
    shift
    if harness_out=$("$@" 2>&1); then
        pass "$harness_name"
    else
        fail "$harness_name" "$harness_out"
    fi
}

# check_fails NAME COMMAND...: the command must fail.
check_fails() {
    harness_name=$1
    shift
    if harness_out=$("$@" 2>&1); then
        fail "$harness_name" "succeeded: $*"
    else
        pass "$harness_name"
    fi
}

# check_equal NAME EXPECTED FOUND
check_equal() {
    if [ "$2" = "$3" ]; then pass "$1"; else fail "$1" "expected: $2
found:    $3"; fi
}

# Of a command, with $d a folder for its output:
status() { # status NAME WANTED COMMAND...: its exit status; output to $d/out, errors to $d/err
    harness_name=$1 harness_want=$2
    shift 2
    harness_got=0
    "$@" > "$d/out" 2> "$d/err" || harness_got=$?
    if [ $harness_got -eq "$harness_want" ]; then pass "$harness_name"; else
        fail "$harness_name" "status $harness_got, expected $harness_want: $(cat "$d/err")"; fi
}

same() { # same NAME FILE FILE
    if cmp -s "$2" "$3"; then pass "$1"; else fail "$1" "$2 and $3 differ"; fi
}

says() { # says NAME PATTERN FILE
    if grep -q -- "$2" "$3"; then pass "$1"; else fail "$1" "expected '$2', found: $(head -n 3 "$3")"; fi
}

wrong() { # wrong NAME PATTERN COMMAND...: status 2 and one line that says what is expected
    harness_says=$2 harness_line=$1
    shift 2
    status "$harness_line" 2 "$@"
    says "$harness_line: is told" "^dictlearn: .*$harness_says.* --help$" "$d/err"
    check_equal "$harness_line: in one line" 1 "$(wc -l < "$d/err" | tr -d ' ')"
}

obeyed() { # obeyed FILE: it has what a terminal obeys, other than line ends
    LC_ALL=C grep -q "$(printf '[\001-\011\013-\037\177]\\|\302[\200-\237]')" "$1"
}

absent() { # absent NAME PATH...: none of them is there
    harness_name=$1
    shift
    for harness_path; do
        if [ -e "$harness_path" ]; then fail "$harness_name" "$(ls -d "$harness_path") is there" && return; fi
    done
    pass "$harness_name"
}

# kill_twice FILE COMMAND...: kills a run with -9 at a random moment after FILE is there, and then the run that resumes
# it; adds to $killed the runs that had not ended by then.
kill_twice() {
    harness_file=$1 harness_more=
    shift
    for harness_turn in 1 2; do
        "$@" $harness_more > /dev/null 2>&1 &
        harness_job=$!
        [ -n "$harness_more" ] || await test -e "$harness_file"
        sleep "0.$(od -An -N1 -tu1 /dev/urandom | tr -d ' ')"
        kill -9 $harness_job 2> /dev/null
        harness_got=0
        wait $harness_job 2> /dev/null || harness_got=$?
        [ $harness_got -eq 137 ] && killed=$((killed + 1))
        harness_more=--resume
    done
}

# instead FLAG VALUE COMMAND...: runs the command with this value of a flag, whether it has the flag or not.
instead() {
    harness_flag=$1 harness_value=$2
    shift 2
    harness_left=$# harness_found=
    while [ $harness_left -gt 0 ]; do
        harness_left=$((harness_left - 1))
        harness_word=$1
        shift
        set -- "$@" "$harness_word"
        if [ "$harness_word" = "$harness_flag" ]; then
            harness_left=$((harness_left - 1))
            harness_found=1
            shift
            set -- "$@" "$harness_value"
        fi
    done
    if [ -z "$harness_found" ]; then set -- "$@" "$harness_flag" "$harness_value"; fi
    "$@"
}

# ---- JOBS commands at a time: a line is read from a pipe before each, and put back after it ----
slots() { # slots FOLDER: at the beginning
    mkfifo "$1/slots"
    exec 9<> "$1/slots"
    harness_slot=0
    while [ $harness_slot -lt "$JOBS" ]; do
        harness_slot=$((harness_slot + 1))
        echo $harness_slot >&9
    done
}
begin() { # begin COMMAND...: in the background, once there is room; `wait` ends all
    read -r harness_slot <&9
    { "$@"; echo "$harness_slot" >&9; } &
}

# Of what runs meanwhile:
await() { # await COMMAND...: until it succeeds, for 20 seconds at most
    for harness_try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        for harness_part in 1 2 3 4 5 6 7 8 9 10; do
            "$@" > /dev/null 2>&1 && return
            sleep 0.1
        done
    done
}
# stopped NAME WANTED CONDITION COMMAND...: ended once CONDITION holds, by $harness_signal (TERM); how long that took,
# too. A shell's background jobs ignore INT, unless they are told not to.
stopped() {
    harness_name=$1 harness_want=$2 harness_when=$3 harness_got=0
    shift 3
    rm -f "$d/err"
    if [ "${harness_signal:-TERM}" = INT ]; then set -- env --default-signal=INT "$@"; fi
    "$@" > "$d/out" 2> "$d/err" &
    harness_job=$!
    await sh -c "$harness_when"
    harness_seconds=$(date +%s)
    kill -"${harness_signal:-TERM}" $harness_job
    wait $harness_job || harness_got=$?
    harness_seconds=$(($(date +%s) - harness_seconds))
    check_equal "$harness_name: status" "$harness_want" $harness_got
}

# piped NAME FILE PIPE COMMAND...: it succeeds, what it writes to PIPE is in FILE, and PIPE stays one. Neither side
# waits for ever for the other.
piped() {
    harness_line=$1 harness_same=$2 harness_pipe=$3
    shift 3
    mkfifo "$harness_pipe"
    timeout 60 cat "$harness_pipe" > "$d/piped" &
    status "$harness_line" 0 timeout 60 "$@"
    { [ $harness_got -eq 0 ] && [ -p "$harness_pipe" ]; } || kill $!
    wait $!
    same "$harness_line: what comes out" "$harness_same" "$d/piped"
    check "$harness_line: the pipe stays" test -p "$harness_pipe"
}

pass() {
    harness_passed=$((harness_passed + 1))
    echo "ok   $1"
}

fail() { # fail NAME TEXT
    harness_failed=$((harness_failed + 1))
    echo "FAIL $1"
    echo "$2" | head -n 40 | sed 's/^/     /'
}

skip() { # skip NAME WHY
    harness_skipped=$((harness_skipped + 1))
    echo "skip $1: $2"
}

whole() { # whole SOURCE: the flag with which a test that does not include the implementation does
    grep -q '^#define DICTLEARN_IMPLEMENTATION\|dictlearn\.c"' "$1" || echo "-DDICTLEARN_IMPLEMENTATION"
}

have() {
    command -v "$1" > /dev/null 2>&1
}

finish() {
    echo "$harness_passed passed, $harness_failed failed, $harness_skipped skipped"
    [ "$harness_failed" -eq 0 ]
    exit
}
