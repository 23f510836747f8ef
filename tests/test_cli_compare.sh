#!/bin/sh
# test_cli_compare.sh BUILD - compare: against a plain oracle in Python, on dictionaries whose matches are known, on
# several, on several layers; what is refused.
. tests/harness.sh
dl=$BUILD/dictlearn
d=$BUILD/tmp/cli_compare
rm -rf "$d"
mkdir -p "$d"
if ! have python3; then
    skip "compare" "no python3"
    finish
fi

# The same numbers as 400 rows of one or two layers of 32.
npy() { # npy SHAPE: the header of a .npy; the rows follow
    printf '\223NUMPY\001\000\166\000%-117s\n' \
        "{'descr': '<f4', 'fortran_order': False, 'shape': ($1), }"
}
"$BUILD/rows" examples/data/tiny-neox/model.safetensors "$d/x.npy"
for rows in "one 32 32" "two 64 2,32" "flat 64 64" "narrow 16 16"; do
    set -- $rows
    { npy "400, $3" && tail -c +129 "$d/x.npy" | head -c $((400 * 4 * $2)); } > "$d/$1.npy"
done
train() { # train NAME ROWS ...: a dictionary $d/NAME.safetensors
    train_name=$1 train_rows=$2
    shift 2
    "$dl" train --data "$d/$train_rows.npy" --save-dir "$d/$train_name" --batch-size 64 --steps 20 --n-ctxs 4 \
        --quiet "$@" > "$d/train.out" 2>&1 || fail "train $train_name" "$(cat "$d/train.out")"
    "$dl" convert "$d/$train_name" "$d/$train_name.safetensors"
}
train a one --dict-size 96
train b one --dict-size 96 --seed 1
train more one --dict-size 150 --seed 2
train narrow narrow --dict-size 40
train clt two --recipe clt-topk --dict-size 40 --k 4
train clt2 two --recipe clt-topk --dict-size 60 --k 4 --seed 1

cat > "$d/tools.py" << 'END'
import array, json, math, struct, sys

def load(path):
    """The tensors of a .safetensors file: name -> (shape, list of rows or numbers)."""
    raw = open(path, "rb").read()
    size = struct.unpack("<Q", raw[:8])[0]
    header, data = json.loads(raw[8:8 + size]), raw[8 + size:]
    meta = header.pop("__metadata__", None)
    return meta, {name: (t["shape"], array.array("f", data[slice(*t["data_offsets"])])) for name, t in header.items()}

def save(path, meta, tensors):
    header, data = {} if meta is None else {"__metadata__": meta}, b""
    for name, (shape, x) in tensors.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + 4 * len(x)]}
        data += x.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    open(path, "wb").write(struct.pack("<Q", len(text)) + text + data)

def rows(tensors, transposed, name):
    """Rows by feature; some layouts hold the atoms as columns."""
    shape, x = tensors[name]
    r, c = shape
    m = [list(x[i * c:(i + 1) * c]) for i in range(r)]
    return [list(v) for v in zip(*m)] if transposed else m

def unit(v):
    n = math.sqrt(sum(a * a for a in v))
    return [a / n for a in v] if n else None

def nearest(a, b):
    found = []
    for v in a:
        best = (None, -1)
        for j, w in enumerate(b):
            if v and w:
                c = sum(p * q for p, q in zip(v, w))
                if best[0] is None or c > best[0]:
                    best = (c, j)
        found.append(best)
    return found
END

# ---- Against plain loops
cat > "$d/oracle.py" << 'END'
import sys; sys.path.insert(0, sys.argv[1])
from tools import *
got = json.load(open(sys.argv[2]))
match = float(sys.argv[3])
tensors = [load(p)[1] for p in sys.argv[4:6]]
def of(t, role):
    name = next(n for n in t if role in n and n.endswith("weight"))
    return [unit(v) for v in rows(t, role == "decoder", name)]
a, b = (of(t, "decoder") for t in tensors)
ea, eb = (of(t, "encoder") for t in tensors)
ab, ba = nearest(a, b), nearest(b, a)
c = got["comparisons"][0]
pairs = [(i, j, x) for i, (x, j) in enumerate(ab) if ba[j][1] == i and x >= match]
def close(x, y):
    assert abs(x - y) < 1e-5, (x, y)
for side, mine in (("first", ab), ("second", ba)):
    s = c[side]
    close(s["mean_max_cosine"], sum(x for x, _ in mine) / len(mine))
    assert s["features"] == len(mine) and s["unmatched"] == len(mine) - len(pairs)
    assert s["nearest"] == [j for _, j in mine]
    for x, (y, _) in zip(s["max_cosine"], mine): close(x, y)
    bins = [0] * 20
    for x in s["max_cosine"]: bins[min(19, max(0, int(math.floor(x * 20))))] += 1
    assert sum(s["histogram"]) == len(mine) and sum(abs(p - q) for p, q in zip(bins, s["histogram"])) <= 2
assert c["mutual"] == sum(ba[j][1] == i for i, (_, j) in enumerate(ab))
assert c["matched"] == len(pairs) and [p[:2] for p in c["pairs"]] == [[i, j] for i, j, _ in pairs], c["pairs"]
for (i, j, x), p in zip(pairs, c["pairs"]):
    close(p[2], x)
    close(p[3], sum(u * v for u, v in zip(ea[i], eb[j])))
matched = {i for i, _, _ in pairs}
alone = sorted((x, i) for i, (x, _) in enumerate(ab) if i not in matched)
assert c["first"]["farthest"] == [i for _, i in alone[:5]], (c["first"]["farthest"], alone[:5])
if pairs:
    close(c["mean_matched_cosine"], sum(x for *_, x in pairs) / len(pairs))
    close(c["mean_matched_encoder_cosine"], sum(p[3] for p in c["pairs"]) / len(pairs))
else:
    assert c["mean_matched_cosine"] is None
assert got["match"] == match and got["width"] == 32
assert got["found_in"] == [int(i in matched) for i in range(len(a))]
assert got["features_found_in"] == [len(a) - len(pairs), len(pairs)]
END
for pair in "a b 0.3" "a more 0.2" "more a 0.99"; do
    set -- $pair
    status "compare $1 $2" 0 "$dl" compare "$d/$1.safetensors" "$d/$2.safetensors" --match "$3" --json
    check "compare $1 $2: as plain loops find it" python3 "$d/oracle.py" "$d" "$d/out" "$3" \
        "$d/$1.safetensors" "$d/$2.safetensors"
done

# ---- Known matches: rows in another order, of other lengths, five of them turned around or zero
python3 - "$d" << 'END'
import sys; sys.path.insert(0, sys.argv[1])
from tools import *
meta, t = load(sys.argv[1] + "/a.safetensors")
F = 96
order = [i * 35 % F for i in range(F)]
for name, (shape, x) in t.items():
    if name.endswith("weight"):
        m = rows(t, "decoder" in name, name)
        m = [[2.5 * v for v in m[i]] for i in order]
        if "decoder" in name:
            m[3], m[4] = [0.0] * 32, [-v for v in m[4]]
            m = [list(v) for v in zip(*m)]
        t[name] = (shape, array.array("f", [v for r in m for v in r]))
save(sys.argv[1] + "/turned.safetensors", meta, t)
END
status "compare with rows in another order" 0 "$dl" compare "$d/a.safetensors" "$d/turned.safetensors"
cp "$d/out" "$d/turned.txt"
says "all but two match" "matched: those with a cosine >= 0.7  *94   97.92 %" "$d/turned.txt"
says "with cosines of 1" "mean cosine of their atoms  *1.0000$" "$d/turned.txt"
says "of encoder rows, too" "mean cosine of their encoder rows  *1.0000$" "$d/turned.txt"
says "an atom of zeros is told" "with an atom of zeros  *1    1.04 %" "$d/turned.txt"
says "the histogram ends with them" "0.95 to 1.00  *94  *94  ####" "$d/turned.txt"
check_equal "keeps to 100 columns" "" "$(sed 1d "$d/turned.txt" | awk 'length($0) > 100')"
check_equal "no space at the ends of lines" "" "$(grep -n ' $' "$d/turned.txt")"
"$dl" compare "$d/a.safetensors" "$d/turned.safetensors" --json > "$d/turned.json"
check "the pairs are the order" python3 -c '
import json, sys
c = json.load(open(sys.argv[1]))["comparisons"][0]
assert all(j * 35 % 96 == i for i, j, *_ in c["pairs"]) and len(c["pairs"]) == 94
assert c["second"]["zero_atoms"] == 1 and c["second"]["nearest"][3] == -1 and c["second"]["max_cosine"][3] is None
assert c["first"]["zero_atoms"] == 0 and 4 not in [p[1] for p in c["pairs"]]' "$d/turned.json"

# ---- Several
status "compare four" 0 "$dl" compare "$d/a.safetensors" "$d/turned.safetensors" "$d/b.safetensors" "$d/a" --match 0.9
says "all others" "all 3 others  *0    0.00 %" "$d/out"
says "two of them" "2 others  *94   97.92 %" "$d/out"
says "one of them" "1 other  *2    2.08 %" "$d/out"
says "none" "none  *0    0.00 %" "$d/out"
status "compare three" 0 "$dl" compare "$d/a.safetensors" "$d/turned.safetensors" "$d/a" --match 0.9
says "both others" "both others  *94   97.92 %" "$d/out"
status "compare three as JSON" 0 "$dl" compare --json "$d/a.safetensors" --match 0.9 "$d/turned.safetensors" "$d/a"
check "in how many each is found" python3 -c '
import json, sys
r = json.load(open(sys.argv[1]))
assert len(r["comparisons"]) == 2 and r["features_found_in"] == [0, 2, 94]
assert sorted(r["found_in"]) == [1] * 2 + [2] * 94' "$d/out"
for threads in 1 3; do
    "$dl" compare "$d/more" "$d/a" "$d/b" --json --threads $threads > "$d/threads$threads"
done
same "threads do not change a byte" "$d/threads1" "$d/threads3"

# ---- Several layers: features of a layer with those of the same layer
status "compare two of two layers" 0 "$dl" compare "$d/clt" "$d/clt2" --json
check "layer with layer" python3 -c '
import json, sys
c = json.load(open(sys.argv[1]))["comparisons"][0]
assert all((i < 20) == (j < 30) for i, j in enumerate(c["first"]["nearest"]))
assert all((i < 30) == (j < 20) for i, j in enumerate(c["second"]["nearest"]))' "$d/out"
status "compare one of two layers with itself" 0 "$dl" compare "$d/clt" "$d/clt"
says "all match" "matched: those with a cosine >= 0.7  *40  100.00 %" "$d/out"

# ---- What is refused
wrong "compare without words" "expected D1 D2, found no argument" "$dl" compare
wrong "compare one" "expected D1 D2, found one argument" "$dl" compare "$d/a"
wrong "a cosine above 1" "--match: expected a number from 0 to 1, found '2'" "$dl" compare "$d/a" "$d/b" --match 2
wrong "a flag of others" "not a flag of this command" "$dl" compare "$d/a" "$d/b" --rows 3
refused() { # refused NAME PATTERN COMMAND...: status 1, one line, nothing on standard output
    refused_name=$1 refused_says=$2
    shift 2
    status "$refused_name" 1 "$@"
    says "$refused_name: is told" "^dictlearn: $refused_says" "$d/err"
    check_equal "$refused_name: in one line" 1 "$(wc -l < "$d/err" | tr -d ' ')"
}
refused "another width" "$d/narrow: expected atoms of width 32, as $d/a has, found 16" \
    "$dl" compare "$d/a" "$d/b" "$d/narrow" --json
check_equal "no JSON is printed then" 0 "$(wc -c < "$d/out" | tr -d ' ')"
train wide flat --dict-size 40
refused "other layers" "$d/clt: expected 1 layer, as $d/wide has, found 2" \
    "$dl" compare "$d/wide" "$d/clt"
refused "no dictionary" "$d/none: " "$dl" compare "$d/a" "$d/none"
refused "a file that is none" "$d/x.npy: " "$dl" compare "$d/x.npy" "$d/a"
finish
