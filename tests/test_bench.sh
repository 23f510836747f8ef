#!/bin/sh
# test_bench.sh BUILD - the benchmark runs: its list, a row, its JSON, its record and table. Nothing is timed here.
. tests/harness.sh
d=$BUILD/tmp/bench
mkdir -p "$d"
bench=$BUILD/bench

status "the list" 0 "$bench" --list
says "the list has a step" '^step.B2048.F8192$' "$d/out"
says "the list has a product" '^gemm.nt.2048x8192x512$' "$d/out"
check_equal "names in the list are told apart" "" "$(sort "$d/out" | uniq -d)"
status "one row, quickly" 0 "$bench" --quick --tmp "$d" --json "$d/row.json" =grow.d.128
says "the row is printed" '^grow.d.128  *[0-9.]* floors' "$d/out"
says "the row is in the JSON" '"name": "grow.d.128", "ratio": [0-9.]*, "unit": "floors"' "$d/row.json"
status "a row by processor time" 0 "$bench" --quick --cpu-time --tmp "$d" =load.pt
says "loading is held against reading" 'times reading' "$d/out"
status "memory of a step" 0 "$bench" --rss 256:1024:10
says "memory is a number of bytes" '"beyond": [0-9]' "$d/out"
status "an unknown option" 2 "$bench" --fast
if have python3; then
    check "the JSON is JSON" python3 -m json.tool "$d/row.json"
    check "the record's table" python3 - "$d/row.json" << 'PYTHON'
import json, sys
sys.path.insert(0, "bench")
import run
found = json.load(open(sys.argv[1]))
assert run.table_of(found).count("|") > 8 and run.svg_of(found["rows"]).startswith("<svg")
assert json.loads(run.as_file(found)) == found and run.machine_name(found["machine"])
row = {"name": "gemm.nt", "ratio": 0.5, "unit": "of peak", "better": "higher", "goal": 0.9}
said, unknown = run.against_goals([row])
assert unknown == 1 and said[0].startswith("FAIL gemm.nt: 0.5 of peak, goal >= 0.9 (56% of it)"), said
said, unknown = run.against_goals([{**row, "name": "buffer.f32.64k"}, {**row, "ratio": 0.9}])
assert unknown == 0 and len(said) == 1 and said[0].startswith("missed buffer.f32.64k"), said
row = {**row, "goal": 0.4, "peers_goal": 2, "peers": {"NumPy": {"times_ours": 1.5}}}
assert run.against_goals([row])[1] == 1
for record in run.RESULTS.glob("*.json"): # what is on record is listed
    said, unknown = run.against_goals(json.load(open(record))["rows"])
    assert not unknown, said
PYTHON
else
    skip "the JSON, the record's table" "no python3"
fi
finish
