#!/bin/sh
# test_cli_plot.sh BUILD - plot and eval's histogram: well-formed SVG with axes, ticks and legends; curves and points
# where the numbers are; names that would change the file; what is refused.
. tests/harness.sh
dl=$BUILD/dictlearn
d=$BUILD/tmp/cli_plot
rm -rf "$d"
mkdir -p "$d"
if ! have python3; then
    skip "plot" "no python3"
    finish
fi

cat > "$d/svg.py" << 'END'
"""svg.py FILE CHECK...: the file is well-formed and asks for nothing; each CHECK is an expression."""
import json, re, sys
import xml.etree.ElementTree as tree
text = open(sys.argv[1], encoding="utf-8").read()
root = tree.fromstring(text)
def all_of(tag, of=None):
    found = [e for e in root.iter("{http://www.w3.org/2000/svg}" + tag)]
    return [e for e in found if of is None or of in (e.get("class") or "").split()]
texts = ["".join(e.itertext()) for e in all_of("text")]
heads = ["".join(e.itertext()) for e in all_of("text", "head")]
title, desc = (root.find("{http://www.w3.org/2000/svg}" + n).text for n in ("title", "desc"))
lines = [e.get("d") for e in all_of("path", "line")]
marks = all_of("path", "mark")
bars = all_of("rect", "bar")
assert root.tag.endswith("svg") and title and desc and root.get("role") == "img"
assert "http" not in text.replace("http://www.w3.org/2000/svg", "") and "<script" not in text and "url(" not in text
width, height = (float(root.get(n)) for n in ("width", "height"))
for line in lines:
    for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", line):
        assert 0 <= float(x) <= width and 0 <= float(y) <= height, line
for check in sys.argv[2:]:
    assert eval("(" + check + ")"), (check, texts, lines, desc)
END
svg() { # svg NAME FILE CHECK...
    svg_name=$1
    shift
    check "$svg_name" python3 "$d/svg.py" "$@"
}
refused() { # refused NAME PATTERN COMMAND...: status 1, one line
    refused_name=$1 refused_says=$2
    shift 2
    status "$refused_name" 1 "$@"
    says "$refused_name: is told" "^dictlearn: $refused_says" "$d/err"
    check_equal "$refused_name: in one line" 1 "$(wc -l < "$d/err" | tr -d ' ')"
}
log() { # log FOLDER LINE...
    mkdir -p "$d/$1"
    log_folder=$1
    shift
    printf '%s\n' "$@" > "$d/$log_folder/log.jsonl"
}

# ---- Curves of one log: where the numbers are
log a '{"step": 0, "loss": 1, "l0": 4000, "dead": 0, "more": null}' \
    '{"step": 10, "loss": 2, "l0": 40, "dead": 0, "more": null}' \
    '{"step": 20, "loss": 3, "l0": 4, "dead": 0, "more": null}'
status "a log" 0 "$dl" plot "$d/a" --out "$d/a.svg" --y loss
svg "one panel: a straight line" "$d/a.svg" 'lines == ["M68.0 412.0L384.0 244.0L700.0 76.0"]' \
    'heads == ["loss"]' '"step" in texts' '{"0", "5", "10", "15", "20"} <= set(texts)' \
    '{"1.0", "1.5", "2.0", "2.5", "3.0"} <= set(texts)' 'not marks' '"from 1 at 0 to 3 at 20" in desc'
status "the same of a file" 0 "$dl" plot "$d/a/log.jsonl" --out - --y loss
svg "to standard output" "$d/out" 'len(lines) == 1'
status "the usual keys" 0 "$dl" plot "$d/a" --out "$d/a2.svg"
svg "those that are there, in small panels" "$d/a2.svg" \
    'heads == ["loss", "L0 (active features per row), log scale", "dead features"]' 'len(lines) == 3' \
    '{"1", "10", "100", "1000", "10000"} <= set(texts)' '"-1.0" not in texts'
status "any key over any other" 0 "$dl" plot "$d/a" --out "$d/a3.svg" --x loss --y l0,dead
svg "in the order of --y" "$d/a3.svg" '[h.split()[0] for h in heads] == ["L0", "dead"]' 'texts.count("loss") == 2'

# ---- Several logs: a legend, dashes and markers that differ; gaps; a line that is being written
log b '{"step": 0, "loss": 2}' '{"step": 10, "loss": null}' '{"step": 20, "loss": NaN}' '{"step": 30, "loss": 1}' \
    '{"step": 40, "loss": 2}'
printf '{"step": 50, "lo' >> "$d/b/log.jsonl"
status "three logs" 0 "$dl" plot "$d/a" "$d/b" "$d/a" --out "$d/ab.svg" --y loss
svg "with a legend" "$d/ab.svg" 'len(lines) == 6 and sum(t.endswith("/b") for t in texts) == 1' \
    'len({e.get("stroke-dasharray") for e in all_of("path", "line")}) == 3' \
    'len({e.get("d").split("m")[1] for e in marks}) == 3' 'lines[4].count("M") == 2' 'title == "Training of 3 runs"'
awk 'BEGIN { for (i = 0; i < 50000; i++) printf "{\"step\": %d, \"loss\": %d}\n", i, i == 31007 ? 900 : i % 7 + 1 }' \
    > "$d/long.jsonl"
status "a long log" 0 "$dl" plot "$d/long.jsonl" --out "$d/long.svg"
check "stays a small file" test "$(wc -c < "$d/long.svg")" -lt 60000
svg "and keeps its peaks" "$d/long.svg" \
    'min(float(y) for y in re.findall(r"[ML]\S+ (\S+?)(?=L|$)", lines[0])) < 85' '"20k" in texts'
for last in 1e-320 3 -1e-9 1e30; do
    log one "{\"step\": 5, \"loss\": $last}"
    status "a single point: $last" 0 "$dl" plot "$d/one" --out "$d/one.svg"
    svg "is marked" "$d/one.svg" 'len(marks) == 1' 'len(texts) > 5'
done

log wide '{"step": 0, "loss": 1e299, "l0": -1e299, "dead": 1e-299}' \
    '{"step": 1, "loss": 1e-299, "l0": 1e299, "dead": 1e305}' '{"step": 2, "loss": 5, "l0": 1, "dead": 1e299}'
status "numbers of any size" 0 "$dl" plot "$d/wide" --out "$d/wide.svg" --y loss,l0,dead
svg "stay in the picture" "$d/wide.svg" 'len(lines) == 3' 'max(map(len, texts[1:])) < 45' \
    '"nan" not in text and "inf" not in text'

# ---- Names that would change the file
hostile=$(printf 'a<b>&"c\342\200\256\377')
log "$hostile" '{"step": 0, "loss": 2}' '{"step": 1, "loss": 3}'
status "a hostile name" 0 "$dl" plot "$d/$hostile" "$d/a" --out "$d/hostile.svg" --y loss
svg "is only text" "$d/hostile.svg" 'any("a<b>&\"c\ufffd\ufffd" in t for t in texts)' '"\u202e" not in text'
long=$(awk 'BEGIN { for (i = 0; i < 200; i++) printf "n" }')
log "$long" '{"step": 0, "loss": 2}' '{"step": 1, "loss": 3}'
status "a long name" 0 "$dl" plot "$d/$long" "$d/a" --out "$d/longname.svg" --y loss
svg "is shortened in its middle" "$d/longname.svg" 'any("\u2026" in t and len(t) == 49 for t in texts)'

# ---- Points: sweeps and evaluations
mkdir -p "$d/sweep/k-8"
cat > "$d/sweep/sweep.json" << 'END'
{"vary": "k", "members": [
 {"value": "16", "folder": "k-16", "l0": 16, "variance_explained": 0.7, "ce_recovered": 0.9, "mse_loss": 3, "dead": 1},
 {"value": "8", "folder": "k-8", "l0": 8, "variance_explained": 0.6, "ce_recovered": 0.8, "mse_loss": 4, "dead": 2},
 {"value": "9", "folder": "k-9", "steps": 0, "l0": null, "variance_explained": null, "error": "went <wrong>"},
 {"value": "32", "folder": "k-32", "steps": 9, "l0": 32, "variance_explained": 0.8, "mse_loss": 2, "dead": 0}]}
END
status "a sweep" 0 "$dl" plot "$d/sweep" --out "$d/sweep.svg"
svg "its points in the order of x" "$d/sweep.svg" \
    '[h.split(" (")[0] for h in heads] == ["variance explained", "cross-entropy recovered", "MSE", "dead features"]' \
    'len(marks) == 11' 'texts.count("k=8") == 4 and texts.count("k=9") == 0' 'title.endswith("sweep, by k")' \
    'all(float(a) < float(b) < float(c) for a, b, c in
        [re.findall(r"[ML](\S+) ", l) for l in lines if l.count("L") == 2])'
eval_json() { # eval_json NAME L0 VARIANCE RECOVERED
    printf '{"mode": "default", "l0": %s, "variance_explained": %s, "percent_recovered": %s, "saelens": {"mse": 7}}\n' \
        "$2" "$3" "$4" > "$d/$1.json"
}
eval_json e1 10 0.5 0.9
eval_json e2 20 0.6 0.95
status "evaluations beside a sweep" 0 "$dl" plot "$d/sweep" "$d/e1.json" "$d/e2.json" --out "$d/both.svg" \
    --x l0 --y variance_explained,ce_recovered
svg "two lines, and a key under either name" "$d/both.svg" 'texts.count("evaluations") == 1' \
    'len(heads) == 2 and "cross-entropy recovered" in heads[1]' 'texts.count("e1") == 2' 'title == "6 dictionaries"'
status "a key of an inner object" 0 "$dl" plot "$d/e1.json" --y saelens.mse --out "$d/inner.svg"
svg "is a point" "$d/inner.svg" 'len(marks) == 1 and heads == ["saelens.mse"]'
for k in 8 9 16 32; do log "sweep/k-$k" '{"step": 0, "loss": 2}' '{"step": 1, "loss": 3}'; done
status "the logs of a sweep" 0 "$dl" plot "$d/sweep" --x step --out "$d/logs.svg"
svg "a curve of each" "$d/logs.svg" 'heads == ["loss"] and "k=32" in texts and len(lines) == 8'

# ---- Histograms
"$BUILD/rows" examples/data/tiny-neox/model.safetensors "$d/x.npy"
"$dl" train --data "$d/x.npy" --save-dir "$d/run" --batch-size 64 --steps 30 --n-ctxs 4 --dict-size 64 --quiet \
    > "$d/train.out" 2>&1
status "eval's histogram" 0 "$dl" eval --dict "$d/run" --data "$d/x.npy" --histogram "$d/h.svg"
"$dl" eval --dict "$d/run" --data "$d/x.npy" --json --histogram "$d/h.csv" > "$d/h.json"
svg "has axes, ticks at decades, a title" "$d/h.svg" \
    '{"10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "10⁰"} <= set(texts)' 'heads == ["features"]' \
    '"firing frequency (share of the rows), log scale" in texts' \
    'title == "How often features fire (%d never do)" % json.load(open("'"$d/h.json"'"))["dead"]' \
    '[b[0].text.split(": ")[1] + "\n" for b in bars] ==
     [n for n in (l.split(",")[2] for l in open("'"$d/h.csv"'").readlines()[1:]) if n != "0\n"]'
status "the same from its numbers" 0 "$dl" plot "$d/h.csv" --out "$d/h2.svg"
svg "has the same bars" "$d/h2.svg" \
    '[b.get("height") for b in bars] ==
     re.findall("class=\"bar s0\".*? height=\"([^\"]*)\"", open("'"$d/h.svg"'").read())'
printf 'from,to,features\n1,2,5\n2,4,10\n4,8,0\n' > "$d/three.csv"
status "three bins" 0 "$dl" plot "$d/three.csv" --out "$d/three.svg"
svg "of the right heights" "$d/three.svg" 'len(bars) == 2' \
    'abs(float(bars[1].get("height")) - 2 * float(bars[0].get("height"))) < 0.02' 'bars[0][0].text == "1 to 2: 5"'
"$dl" compare "$d/run" "$d/run" --json > "$d/compare.json"
status "the cosines of a comparison" 0 "$dl" plot "$d/compare.json" --out "$d/compare.svg"
svg "a panel for each side" "$d/compare.svg" 'len(heads) == 2 and len(bars) == 2 and "max cosine" in texts[-1]'

# ---- A run of train, as it is
status "a run" 0 "$dl" plot "$d/run" --out "$d/run.svg"
svg "has its main curves" "$d/run.svg" 'len(heads) == 5 and title.startswith("Training of ")'
"$dl" plot "$d/run" --out "$d/run2.svg" --threads 2
same "twice the same bytes" "$d/run.svg" "$d/run2.svg"

# ---- What is refused
wrong "plot without words" "expected RUN..., found no argument" "$dl" plot --out "$d/no.svg"
wrong "plot without --out" "--out: this flag is required" "$dl" plot "$d/a"
wrong "a figure in .png" "expected a name ending in .svg" "$dl" plot "$d/a" --out "$d/no.png"
wrong "an empty key" "expected keys with commas as --y" "$dl" plot "$d/a" --y loss, --out "$d/no.svg"
wrong "too many keys" "expected at most 12 keys as --y" \
    "$dl" plot "$d/a" --y a,b,c,d,e,f,g,h,i,j,k,l,m --out "$d/no.svg"
mkdir "$d/empty"
: > "$d/nothing.jsonl"
printf '[1]\n' > "$d/list.jsonl"
printf '{"a": 1}\n{"a": \n' > "$d/bad.jsonl"
printf '{"mode": "default", "deep": {"a": 1}}\n' > "$d/none.json"
printf '{"members": []}\n' > "$d/members.json"
printf 'a,b\n' > "$d/bad.csv"
printf 'from,to,features\n1,2,3\n5,6,7\n' > "$d/gap.csv"
printf '{"comparisons": [{"first": {}}]}\n' > "$d/compared.json"
printf '{"comparisons": []}\n' > "$d/none_compared.json"
printf '{"comparisons": [{"first": {"histogram": [3, -1]}, "second": {"histogram": [2]}}]}\n' > "$d/negative.json"
printf '{"l0": 1e308, "mse_loss": 1}\n' > "$d/far.json"
printf '{"step": 0, "loss": null}\n{"step": 1, "loss": 3}\n{"step": 2, "loss": NaN}\n' > "$d/holes.jsonl"
status "a log with holes" 0 "$dl" plot "$d/holes.jsonl" --y loss --out "$d/holes.svg"
svg "is told by its numbers" "$d/holes.svg" '"from 3 at 1 to 3 at 1" in text'
status "two histograms" 0 "$dl" plot "$d/three.csv" "$d/h.csv" --out "$d/two.svg"
svg "each have their name" "$d/two.svg" 'title == "2 histograms" and len(heads) == 2'
refused "a folder without a log" "$d/empty: expected a folder of train or sweep, found no log.jsonl" \
    "$dl" plot "$d/empty" --out "$d/no.svg"
refused "nothing there" "$d/nowhere" "$dl" plot "$d/nowhere" --out "$d/no.svg"
refused "an empty log" "$d/nothing.jsonl: expected at least one line" "$dl" plot "$d/nothing.jsonl" --out "$d/no.svg"
refused "a log of lists" "$d/list.jsonl: line 1: expected a JSON object" "$dl" plot "$d/list.jsonl" --out "$d/no.svg"
refused "a log with a bad line" "$d/bad.jsonl: line 2" "$dl" plot "$d/bad.jsonl" --out "$d/no.svg"
refused "a key that is not there" "$d/a/log.jsonl: expected numbers 'lr', found step, loss, l0, dead" \
    "$dl" plot "$d/a" --y loss,lr --out "$d/no.svg"
refused "an axis that is not there" "$d/a/log.jsonl: expected numbers 'rows'" \
    "$dl" plot "$d/a" --x rows --out "$d/no.svg"
refused "no numbers" "$d/none.json: expected numbers 'l0', found none" "$dl" plot "$d/none.json" --out "$d/no.svg"
refused "no members" "$d/members.json: expected members" "$dl" plot "$d/members.json" --out "$d/no.svg"
refused "no JSON" "$d/x.npy" "$dl" plot "$d/x.npy" --out "$d/no.svg"
refused "no histogram" "$d/bad.csv: line 1: expected the line from,to,features" \
    "$dl" plot "$d/bad.csv" --out "$d/no.svg"
refused "bins with a gap" "$d/gap.csv: line 3: expected from,to,features, numbers" \
    "$dl" plot "$d/gap.csv" --out "$d/no.svg"
for row in 1,2,inf 1,inf,3 -inf,1,3 1,2,1e308; do
    printf 'from,to,features\n%s\n' $row > "$d/far.csv"
    refused "bins of $row" "$d/far.csv: line 2: expected from,to,features, numbers" \
        "$dl" plot "$d/far.csv" --out "$d/no.svg"
done
refused "a number beyond all axes" "$d/far.json: expected numbers 'l0', found mse_loss" \
    "$dl" plot "$d/far.json" --out "$d/no.svg"
refused "no comparison" "$d/none_compared.json: expected comparisons, found none" \
    "$dl" plot "$d/none_compared.json" --out "$d/no.svg"
refused "negative counts" "$d/negative.json: expected counts in its histograms" \
    "$dl" plot "$d/negative.json" --out "$d/no.svg"
refused "no histograms in JSON" "$d/compared.json: expected histograms" "$dl" plot "$d/compared.json" --out "$d/no.svg"
refused "a log and an evaluation" "$d/e1.json: expected a log, as $d/a is, found an evaluation" \
    "$dl" plot "$d/a" "$d/e1.json" --out "$d/no.svg"
refused "no place to write" "$d/nowhere/no.svg" "$dl" plot "$d/a" --out "$d/nowhere/no.svg"
absent "nothing is left of them" "$d/no.svg" "$d/no.png"
finish
