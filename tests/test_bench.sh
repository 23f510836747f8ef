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
if "$BUILD/dictlearn" train --recipe list | grep -q '^dl-batch_top_k:'; then
    status "a recipe's first step, quickly" 0 "$bench" --quick --tmp "$d" --json "$d/first.json" \
        =train.dl-batch_top_k.d128.F16384.first =train.dl-jump_relu.d128.F16384
    says "the first step is printed" '^train.dl-batch_top_k.d128.F16384.first  *[0-9.]* floors' "$d/out"
    says "it has 64 active features" 'L0 64.0 of [0-9.]* candidates' "$d/out"
    says "thresholds leave about as many" '^train.dl-jump_relu.* L0 6[0-9]' "$d/out"
    says "candidates are in the JSON" '"candidates": [0-9]' "$d/first.json"
    status "memory of a recipe's step" 0 "$bench" --rss dl-matryoshka:256:64:1024:8
    says "it is a number of bytes, too" '"peak": [0-9]' "$d/out"
fi
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
for record in run.records(): # what is on record is listed
    said, unknown = run.against_goals(json.load(open(record))["rows"])
    assert not unknown, said
PYTHON
    check "the plot of steps over d" python3 - << 'PYTHON'
import sys
import xml.etree.ElementTree as tree
sys.path.insert(0, "bench")
import run
row = {"unit": "floors", "better": "lower", "peers": {"dictionary_learning": {"times_ours": 15.0}}}
rows = [{**row, "name": f"train.{recipe}.d{d}.F16384{end}", "ratio": 0.7 * 100 / d,
         "parameters": {"d": d, "L0": 64.0, "candidates": 200.0 + d}}
        for recipe, _ in run.PLOTTED for d in (128, 512, 4096) for end in ("", ".first")]
drawn = run.step_over_d(rows)
assert tree.fromstring(drawn).tag.endswith("svg") and drawn.count("<polyline") == 4 * 2 + 4, drawn
assert run.step_over_d([]) is None
old = {"machine": {}, "rows": [{"name": "a", "ratio": 1}, {"name": "b", "ratio": 2}]}
new = run.joined(old, {"rows": [{"name": "b", "ratio": 3}], "peers": {"NumPy": "2"}})
assert [r["ratio"] for r in new["rows"]] == [1, 3] and new["peers"] == {"NumPy": "2"}, new
PYTHON
    printf 'One two three.\nFour five.\n\nSix seven.\n\nEight.\n' > "$d/text.txt"
    check "the frontier's documents, scale, comparison, table and plot" python3 - "$d" << 'PYTHON'
import array, pathlib, sys
import xml.etree.ElementTree as tree
sys.path.insert(0, "bench")
import frontier
folder = pathlib.Path(sys.argv[1])
documents = list(frontier.documents_of(folder / "text.txt", 12))
assert documents == ["One two three. Four five.", "Six seven. Eight."], documents
frontier.share_out([str(i) for i in range(400)], folder, 400 * 80)
count = {n: len((folder / f"{n}.jsonl").read_text().splitlines()) for n in ("train", "tune", "held")}
assert count == {"train": 360, "tune": 20, "held": 20}, count
head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }\n"
plain = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + array.array("f", [3, 4, 0, 5, 5, 0]).tobytes()
(folder / "plain.npy").write_bytes(plain)
rows, width, scale = frontier.scaled(folder / "plain.npy", folder / "scaled.npy")
assert (rows, width) == (3, 2) and abs(scale - (2 / 25) ** 0.5) < 1e-6, (rows, width, scale)
floats = array.array("f", (folder / "scaled.npy").read_bytes()[-24:])
assert abs(floats[3] - 5 * scale) < 1e-6
def point(recipe, l0, kept):
    return {"recipe": recipe, "target": 32, "lr": 1e-3, "steps": 9, "l0": l0, "variance_explained": kept,
            "ce_recovered": 0.9, "alive": 1.0, "seconds": 1.0}
relu = [point("reference", 16, 0.5), point("reference", 64, 0.7)]
assert abs(frontier.at_l0(relu, 32, "variance_explained") - 0.6) < 1e-9
assert frontier.at_l0(relu, 8, "variance_explained") is None
for kept, wins in ((0.61, True), (0.59, False)):
    assert frontier.beaten(relu + [point("dl-batch_top_k", 32, kept)]) == wins
assert not frontier.beaten(relu + [point("dl-batch_top_k", 8, 0.9)]) and not frontier.beaten(relu)
found = {"text": "", "points": relu, "trials": [{"recipe": "reference", "lr": 1e-3, "variance_explained": None}]}
assert "| ReLU, L1 | - |" in frontier.table_of(found), frontier.table_of(found)
assert tree.fromstring(frontier.svg_of(relu)).tag.endswith("svg")
PYTHON
    check "a run of the frontier, trained and evaluated" python3 - "$BUILD" << 'PYTHON'
import argparse, pathlib, sys
sys.path.insert(0, "bench")
import frontier
frontier.BATCH, frontier.EXPANSION = 256, 2
arguments = argparse.Namespace(build=pathlib.Path(sys.argv[1]), text=None, site="resid_out", layer=0, rows=4400,
                               model=pathlib.Path("examples/data/tiny-neox"))
program = frontier.Program(arguments)
frontier.write_documents(program, arguments)
rows = frontier.Rows(program, arguments.rows)
assert rows.width == 128 and 2000 < rows.count <= 4400, rows.count
for recipe in frontier.recipes_of(program):
    found = frontier.figure(program, rows, recipe, 16, 1e-2, 20, "held")
    assert found["l0"] > 0 and found["alive"] > 0 and found["ce_recovered"] <= 1.5, found
PYTHON
else
    skip "the JSON, the record's table, the plots, the frontier" "no python3"
fi
finish
