#!/bin/sh
# test_data.sh BUILD - what --data takes: folders, patterns, shards, standard input, bf16, files that
# cannot be mapped; and what is left when writing fails.
. tests/harness.sh
dl=$BUILD/dictlearn
d=$BUILD/tmp/data
rm -rf "$d"
mkdir -p "$d/shards" "$d/none" "$d/limited"

npy() { # npy TYPE SHAPE: the header of a .npy; the rows follow
    printf '\223NUMPY\001\000\166\000%-117s\n' \
        "{'descr': '$1', 'fortran_order': ${3:-False}, 'shape': ($2), }"
}
rows() { # rows FIRST N: of x.npy, as bytes
    tail -c +$((129 + 512 * $1)) "$d/x.npy" | head -c $((512 * $2))
}
"$BUILD/rows" examples/data/tiny-neox/model.safetensors "$d/x.npy"
status "a dictionary" 0 "$dl" train --quiet --data "$d/x.npy" --dict-size 64 --batch-size 64 \
    --warmup-steps 2 --n-ctxs 2 --steps 4 --save-dir "$d/D"
D=$d/D

# ---- Shards: x2 before x10, whatever else lies there
{ npy '<f4' '30, 128'; rows 0 30; } > "$d/first.npy"
{ npy '<f4' '7, 128'; rows 0 7; } > "$d/shards/x1.npy"
{ npy '<f4' '2, 5, 128'; rows 7 10; } > "$d/shards/x2.npy"
{ npy '<f4' '13, 128'; rows 17 13; } > "$d/shards/x10.npy"
echo "notes" > "$d/shards/README"
status "all in one" 0 "$dl" reconstruct --dict "$D" --data "$d/first.npy" --out "$d/want.npy"
status "a folder" 0 "$dl" reconstruct --dict "$D" --data "$d/shards" --out "$d/y.npy"
same "a folder is its files in natural order" "$d/want.npy" "$d/y.npy"
status "a pattern" 0 "$dl" reconstruct --dict "$D" --data "$d/shards/x*.npy" --out "$d/z.npy"
same "a pattern, too" "$d/want.npy" "$d/z.npy"
status "shards are evaluated" 0 "$dl" eval --dict "$D" --data "$d/shards" --target "$d/first.npy" --json
says "all of them" '"rows": 30,' "$d/out"
status "an empty folder" 1 "$dl" eval --dict "$D" --data "$d/none"
says "is told" "none: expected arrays in this folder (.npy, .npz, .pt, .safetensors), found none" "$d/err"
status "a pattern of nothing" 1 "$dl" eval --dict "$D" --data "$d/shards/y*.npy"
says "is told" "y\*.npy: expected a file, a folder or a pattern, found no such file" "$d/err"
{ npy '<f4' '3, 64'; rows 0 3; } > "$d/shards/x3.npy"
status "a shard of another width" 1 "$dl" eval --dict "$D" --data "$d/shards"
says "names both" "x3.npy: expected rows of 128 numbers as in $d/shards/x1.npy, found 64" "$d/err"
{ npy '<f4' '2, 128'; rows 0 1; head -c 40 /dev/zero; printf '\000\000\200\177'; rows 0 1; } |
    head -c $((128 + 1024)) > "$d/shards/x3.npy"
for c in encode reconstruct; do
    status "$c: a row that is not finite" 1 "$dl" $c --dict "$D" --data "$d/shards" --out "$d/nan.npy"
    says "is told by file, row and column" "x3.npy: row 1, column 10: expected a finite number, found inf" \
        "$d/err"
    absent "and nothing is written" "$d/nan.npy"
done
rm "$d/shards/x3.npy"
train="$dl train --quiet --data $d/shards --dict-size 32 --batch-size 8 --epochs 3 --n-ctxs 1 --warmup-steps 2"
status "training on shards" 0 $train --steps 6 --save-dir "$d/run"
says "counts all rows" '"rows": 30,' "$d/run/config.json"
says "and records the name" "\"data\": \"$d/shards\"," "$d/run/config.json"
status "goes on" 0 "$dl" train --resume --save-dir "$d/run" --steps 9
status "without a break" 0 $train --steps 9 --save-dir "$d/whole"
same "it is the same run" "$d/whole/ae.pt" "$d/run/ae.pt"
{ npy '<f4' '1, 128'; rows 0 1; } > "$d/shards/x11.npy"
status "one more shard" 1 "$dl" train --resume --save-dir "$d/run" --steps 12
says "is another run" "rows: .* expected 30, found 31" "$d/err"

# ---- Types. bf16 is the upper half of an f32
bf16="$(rows 0 10 | od -An -v -to1 -w4 | awk '{ printf "\\%s\\%s", $3, $4 }')"
cut="$(rows 0 10 | od -An -v -to1 -w4 | awk '{ printf "\\000\\000\\%s\\%s", $3, $4 }')"
{ npy '<f4' '10, 128'; printf "$cut"; } > "$d/f4.npy"
{ npy '|V2' '10, 128'; printf "$bf16"; } > "$d/v2.npy"
{ npy '<u2' '10, 128'; printf "$bf16"; } > "$d/u2.npy"
for f in "f4.npy" "v2.npy" "u2.npy --dtype bf16"; do
    status "$f" 0 "$dl" encode --dict "$D" --data "$d/"$f --out "$d/${f%%.*}.f.npy"
    same "$f: the same features" "$d/f4.f.npy" "$d/${f%%.*}.f.npy"
done
status "uint16" 1 "$dl" eval --dict "$D" --data "$d/u2.npy"
says "is refused by its type" "u2.npy: tensor '': expected F16, BF16, F32 or F64, found U16: " "$d/err"
for type in '<i4' '|i1' '|u1' '|b1' '<c8'; do
    { npy "$type" '2, 128'; rows 0 4; } > "$d/whole.npy"
    status "$type" 1 "$dl" encode --dict "$D" --data "$d/whole.npy" --out "$d/g.npy"
    says "is refused by its type" "whole.npy: .*found [IUB]\|whole.npy: unsupported dtype '<c8'" "$d/err"
done
wrong "--dtype" "f16: expected bf16 as --dtype" "$dl" eval --dict "$D" --data "$d/f4.npy" --dtype f16
wrong "--tensor with a model" "goes with --data" "$dl" eval --dict "$D" --model m --text t --tensor x
status "a dictionary as data" 1 "$dl" eval --dict "$D" --data "$D/ae.pt"
says "holds several tensors" "expected the name of one of its 2 tensors: encoder.weight F32 \[64, 128\], dec" \
    "$d/err"
status "one of which can be named" 0 "$dl" eval --dict "$D" --data "$D/ae.pt" --tensor encoder.weight --json
says "and is read" '"rows": 64,' "$d/out"

# ---- Standard input is read row by row
for c in reconstruct encode; do
    "$dl" $c --dict "$D" --data - --out - < "$d/first.npy" > "$d/a"
    status "$c of a file" 0 "$dl" $c --dict "$D" --data "$d/first.npy" --out "$d/b"
    same "$c through pipes" "$d/a" "$d/b"
done
mkfifo "$d/endless"
{ npy '<f4' '1000000000, 128'; while rows 0 30; do :; done; } > "$d/endless" 2> /dev/null &
status "a stream without end" 0 "$dl" eval --dict "$D" --data - --rows 90 --json < "$d/endless"
wait
says "as many rows as are asked for" '"rows": 90,' "$d/out"
{ npy '<f4' '40, 128'; rows 0 30; } > "$d/short"
status "a stream that ends early" 1 "$dl" encode --dict "$D" --data - --out "$d/g.npy" < "$d/short"
says "says when" "standard input: expected 40 rows, as its header says, found 30" "$d/err"
{ npy '<f4' '10, 128' True; rows 0 10; } > "$d/fortran"
status "Fortran order" 0 "$dl" eval --dict "$D" --data - < "$d/fortran"
cp "$d/out" "$d/through"
status "from the file" 0 "$dl" eval --dict "$D" --data "$d/fortran"
same "gives the same figures" "$d/through" "$d/out"

status "a device without end" 1 timeout 20 "$dl" eval --dict "$D" --data /dev/zero
says "is of no format" "/dev/zero: expected .npy, .npz, torch (.pt) or safetensors, found none" "$d/err"

# ---- Memory and disks that are limited
{ npy '<f4' '8000000, 128'; rows 0 200; } > "$d/sparse.npy"
if truncate -s $((128 + 512 * 8000000)) "$d/sparse.npy" 2> /dev/null; then
    status "a file larger than the address space" 0 \
        sh -c "ulimit -v 2000000 && exec '$dl' eval --dict '$D' --data '$d/sparse.npy' --rows 200 --json"
    says "is read" '"rows": 200,' "$d/out"
else
    skip "a file larger than the address space" "no truncate"
fi
rm -f "$d/sparse.npy"
status "a limit on the size of files" 1 \
    sh -c "ulimit -f 8 && exec '$dl' encode --dict '$D' --data '$d/x.npy' --out '$d/limited/f.npy'"
says "is told" "limited/f.npy: cannot write it: File too large" "$d/err"
check_equal "and leaves nothing" "" "$(ls "$d/limited")"
status "a TMPDIR that is not there" 1 env TMPDIR="$d/no" "$dl" encode --dict "$D" --data "$d/x.npy" \
    --sparse --out "$d/limited/f.npz"
says "is named" "^dictlearn: a temporary file in $d/no for $d/limited/f.npz: cannot open it" "$d/err"
check_equal "and leaves nothing" "" "$(ls "$d/limited")"
status "one that is" 0 env TMPDIR="$d/none" "$dl" encode --dict "$D" --data "$d/x.npy" --sparse \
    --out "$d/limited/f.npz"
check_equal "is empty afterwards" "" "$(ls "$d/none")"
status "and none at all" 0 env -u TMPDIR "$dl" encode --dict "$D" --data "$d/x.npy" --sparse \
    --out "$d/limited/g.npz"
same "the same codes" "$d/limited/f.npz" "$d/limited/g.npz"
finish
