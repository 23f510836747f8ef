#!/bin/sh
# test_cli_texts.sh BUILD - texts as people have them: every form by content and not by name, keys,
# ready token ids, long documents, bad lines; what cannot be read is named.
. tests/harness.sh
dl=$BUILD/dictlearn
d=$BUILD/tmp/texts
tiny=examples/data/tiny-neox
site="--site mlp_out --layer 0"
rm -rf "$d"
mkdir -p "$d"

tokens() { # tokens FILE FLAG...: its ids to $d/out
    tokens_of=$1
    shift
    "$dl" tokenize --model $tiny --text "$tokens_of" "$@" > "$d/out" 2> "$d/err"
}
reads() { # reads NAME FILE FLAG...: FILE holds the documents of $d/ids
    reads_name=$1
    shift
    check "$reads_name" tokens "$@"
    same "$reads_name: the same documents" "$d/ids" "$d/out"
}
refuses() { # refuses NAME WORDS FILE FLAG...: status 1, and one line with the words
    refuses_name=$1 refuses_words=$2 refuses_file=$3
    shift 3
    status "$refuses_name" 1 "$dl" tokenize --model $tiny --text "$refuses_file" "$@"
    says "$refuses_name: is told" "^dictlearn: $refuses_words" "$d/err"
    check_equal "$refuses_name: in one line" 1 "$(wc -l < "$d/err" | tr -d ' ')"
}

# ---- One text in all forms
sentence() { printf 'The river ran slowly past the old mill, number %s, and nobody crossed the bridge.' "$1"; }
for i in 0 1 2 3 4 5; do printf '{"text": "%s"}\n' "$(sentence $i)"; done > "$d/t.jsonl"
for i in 0 1 2 3 4 5; do sentence $i && printf '\n\n'; done > "$d/t.txt"
{
    printf '\n[ '
    for i in 0 1 2 3 4; do printf '{"id": [%s, "}]"],\n "text": "%s"}\n, ' $i "$(sentence $i)"; done
    printf '{"text": "%s"}]\n' "$(sentence 5)"
} > "$d/array"
{
    printf '\357\273\277["%s"' "$(sentence 0)"
    for i in 1 2 3 4 5; do printf ',"%s"' "$(sentence $i)"; done
    printf ']'
} > "$d/strings"
tokens "$d/t.jsonl" && cp "$d/out" "$d/ids"
check_equal "six documents of 169 tokens" "6 169" "$(wc -lw < "$d/ids" | xargs)"
gzip -c "$d/t.jsonl" > "$d/t.jsonl.gz"
{ head -n 2 "$d/t.jsonl" | gzip -c; tail -n 4 "$d/t.jsonl" | gzip -c; } > "$d/two_members"
gzip -c "$d/t.txt" > "$d/plain"
gzip -c "$d/array" > "$d/array.gz"
for name in t.json t.ndjson t.JSONL t text.txt; do cp "$d/t.jsonl" "$d/$name"; done
cp "$d/t.txt" "$d/wrongly.jsonl"
for file in t.json t.ndjson t.JSONL t text.txt t.txt wrongly.jsonl array strings t.jsonl.gz two_members plain \
    array.gz; do
    reads "$file" "$d/$file"
    check "$file through a pipe" sh -c "cat $d/$file | $dl tokenize --model $tiny --text - > $d/out"
    same "$file through a pipe: the same documents" "$d/ids" "$d/out"
done
if have zstd; then
    zstd -q "$d/t.jsonl" -o "$d/t.zst"
    zstd -q "$d/strings" -o "$d/strings.zst"
    for file in t.zst strings.zst; do
        reads "$file" "$d/$file"
        check "$file through a pipe" \
            sh -c "cat $d/$file | $dl tokenize --model $tiny --text - > $d/out"
        same "$file through a pipe: the same documents" "$d/ids" "$d/out"
    done
    head -c 100 "$d/t.zst" > "$d/cut.zst"
    refuses "zstd that is cut short" "$d/cut.zst: zstd -dc failed with status 1" "$d/cut.zst"
fi
printf '\050\265\057\375' > "$d/magic.zst"
refuses_path=$PATH
PATH=$d/nowhere
"$BUILD/dictlearn" tokenize --model $tiny --text "$d/magic.zst" > "$d/out" 2> "$d/err"
found=$?
PATH=$refuses_path
check_equal "no zstd" 1 $found
says "is told" "magic.zst: compressed by zstd: expected the tool zstd on the path to " "$d/err"

# ---- Plain text that begins with a bracket, and other beginnings
plain() { # plain TEXT: it is one document, as it is after a word
    printf "%s\n" "$1" > "$d/p.txt"
    printf "x\n\n%s\n" "$1" > "$d/q.txt"
    tokens "$d/q.txt" && tail -n +2 "$d/out" > "$d/want"
    check "plain: $1" tokens "$d/p.txt"
    same "plain: $1: its document" "$d/want" "$d/out"
}
plain '[1] A note.'
plain '[Scene: a street]'
plain '{x | x > 0} is a set'
plain '{"said he" and went'
plain '{"key": word}'
plain '["Come in", he said'
plain '[] is empty'
plain '"Come in"'
printf '{"text": "abc' > "$d/r"
refuses "a first line that is not whole" "$d/r: line 1: JSON, line 1, byte 13: the text ends" "$d/r"

# ---- What cannot be read is named
named() { # named WORDS BYTES
    printf "$2" > "$d/n"
    refuses "named: $1" "$d/n: expected plain text or JSON in UTF-8, found $1" "$d/n"
}
named "a Parquet file" 'PAR1abcd'
named "UTF-16" '\377\376T\0h\0e\0'
named "UTF-16" '\376\377\0T\0h\0e'
named "UTF-16" 'T\0h\0e\0'
named "UTF-16" '{\0"\0t\0e\0x\0t\0"\0:\0'
named "a git-LFS pointer" 'version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n'
named "a page of HTML" '\n<!DOCTYPE html><html>'
named "a page of HTML" '<HTML lang="en">'
named "a file compressed by xz" '\375\067zXZ\0\0\4'
named "a file compressed by bzip2" 'BZh91AY&SY\0\0'
named "a zip archive" 'PK\3\4\24\0'
named "a NumPy array" '\223NUMPY\1\0'
named "bytes of value 0" '\177ELF\2\1\1\0\0\0'

# ---- Keys
sed 's/"text"/"content"/' "$d/t.jsonl" > "$d/content.jsonl"
sed 's/{\(.*\)}/{"meta": {"body": {\1}}}/' "$d/t.jsonl" > "$d/deep.jsonl"
refuses "another key" "$d/content.jsonl: line 1: .*under the key \"text\", found the keys \"content\"" \
    "$d/content.jsonl"
reads "--text-key" "$d/content.jsonl" --text-key content
reads "--text-key of a path" "$d/deep.jsonl" --text-key meta.body.text
refuses "a key of plain text" "$d/t.txt: expected JSON with the key \"body\", found plain text" \
    "$d/t.txt" --text-key body
sed 's/ /, /g; s/.*/{"input_ids": [&], "mask": [1, 1]}/' "$d/ids" > "$d/ready.jsonl"
reads "--tokens-key" "$d/ready.jsonl" --tokens-key input_ids
printf '{"input_ids": [5, 6]}\n{"input_ids": [7, 2048]}\n' > "$d/beyond.jsonl"
refuses "an id beyond the vocabulary" \
    "$d/beyond.jsonl: line 2: \"input_ids\": expected token ids from 0 to 2047, found 2048" \
    "$d/beyond.jsonl" --tokens-key input_ids
for id in -1 2.5 NaN '"a"' '[1]'; do
    printf '{"input_ids": [5, %s]}\n' "$id" > "$d/id.jsonl"
    refuses "the id $id" "$d/id.jsonl: line 1: \"input_ids\": expected token ids" "$d/id.jsonl" \
        --tokens-key input_ids
done
wrong "two keys" "--text-key or --tokens-key, found both" "$dl" tokenize --model $tiny \
    --text "$d/t.jsonl" --text-key a --tokens-key b
both="--model $tiny $site"
for command in activations logits; do
    flags=$both
    if [ $command = logits ]; then flags="--model $tiny"; fi
    "$dl" $command $flags --text "$d/t.jsonl" --out "$d/text.npy"
    status "$command of ready ids" 0 "$dl" $command $flags --text "$d/ready.jsonl" \
        --tokens-key input_ids --out "$d/ids.npy"
    same "$command of ready ids: the same" "$d/text.npy" "$d/ids.npy"
done
train="$dl train --quiet $both --dict-size 64 --batch-size 16 --n-ctxs 1 --in-batch-size 1"
status "train on a text" 0 $train --text "$d/t.jsonl.gz" --save-dir "$d/a"
status "train on its ids" 0 $train --text "$d/ready.jsonl" --tokens-key input_ids --save-dir "$d/b"
same "the same dictionary" "$d/a/ae.pt" "$d/b/ae.pt"
says "config.json has the key" '"tokens_key": "input_ids"' "$d/b/config.json"
"$dl" eval --dict "$d/a" $both --text "$d/t.jsonl" --json > "$d/eval"
status "eval of ready ids" 0 "$dl" eval --dict "$d/a" $both --text "$d/ready.jsonl" \
    --tokens-key input_ids --json
same "its figures" "$d/eval" "$d/out"
"$dl" features --dict "$d/a" $both --text "$d/t.jsonl" --features 1,2 > "$d/features"
status "features of ready ids" 0 "$dl" features --dict "$d/a" $both --text "$d/ready.jsonl" \
    --tokens-key input_ids --features 1,2
same "the same features" "$d/features" "$d/out"

# ---- Runs that are resumed, on each form
for file in t.jsonl array t.jsonl.gz array.gz t.txt; do
    for _ in 1 2 3; do cat "$d/$file"; done > "$d/once"
    case $file in array*) cp "$d/$file" "$d/once" ;; esac
    status "whole run: $file" 0 $train --text "$d/once" --steps 6 --save-dir "$d/whole.$file"
    status "half of it" 0 $train --text "$d/once" --steps 3 --save-dir "$d/half.$file"
    status "and the rest" 0 $train --text "$d/once" --steps 6 --save-dir "$d/half.$file" --resume
    same "the same dictionary" "$d/whole.$file/ae.pt" "$d/half.$file/ae.pt"
done
if have zstd; then
    status "half a run on zstd" 0 $train --text "$d/t.zst" --steps 3 --save-dir "$d/half.zst"
    status "and the rest" 0 $train --text "$d/t.zst" --steps 6 --save-dir "$d/half.zst" --resume
    status "a whole one" 0 $train --text "$d/t.jsonl" --steps 6 --save-dir "$d/whole.zst"
    same "the same dictionary" "$d/whole.zst/ae.pt" "$d/half.zst/ae.pt"
fi

# ---- Long documents
line() { echo "Line $1 of a long book that has no blank lines in it at all."; }
for i in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29; do line $i; done \
    > "$d/book.txt"
tokens "$d/book.txt"
all=$(wc -w < "$d/out" | tr -d ' ')
cp "$d/out" "$d/ids"
check_equal "tokenize does not cut" "1 1" "$(wc -l < "$d/out" | tr -d ' ') $((all > 400))"
check_equal "and says nothing" "" "$(cat "$d/err")"
tokens "$d/book.txt" --ctx-len 100
check_equal "unless it is told to" 100 "$(wc -w < "$d/out" | tr -d ' ')"
says "which it says" "^$d/book.txt: $((all - 100)) of $all tokens are left out: .*cut to 100" "$d/err"
tokens "$d/book.txt" --ctx-len 100 --long split
check_equal "--long split keeps all" "$(tr -d '\n' < "$d/ids")" "$(paste -sd' ' "$d/out")"
check_equal "in contexts" "$(((all + 99) / 100))" "$(wc -l < "$d/out" | tr -d ' ')"
tokens "$d/book.txt" --ctx-len 100 --long split --bos
check_equal "with a bos token in each" "$(((all + 98) / 99))" "$(grep -c '^0 ' "$d/out")"
status "activations of a book" 0 "$dl" activations $both --text "$d/book.txt" --out "$d/x.npy"
says "say what is left out" "$((all - 128)) of $all tokens are left out" "$d/err"
check_equal "once" 1 "$(grep -c 'left out' "$d/err")"
status "activations of all of it" 0 "$dl" activations $both --text "$d/book.txt" --out "$d/x.npy" \
    --long split
check_fails "say nothing" grep -q 'left out' "$d/err"
"$dl" inspect "$d/x.npy" > "$d/out"
says "and have all rows" "\[$all, 128\]" "$d/out"
status "logits of all of it" 0 "$dl" logits --model $tiny --text "$d/book.txt" --out "$d/l.npy" --long split
"$dl" inspect "$d/l.npy" > "$d/out"
says "have all rows, too" "\[$all, 2048\]" "$d/out"
wrong "--long of another word" "cut or split as --long" "$dl" tokenize --model $tiny \
    --text "$d/book.txt" --long cat
wrong "--long with an array" "goes with --model" "$dl" train --data x.npy --long cut --save-dir x
split="$train --text $d/book.txt --long split --ctx-len 37 --bos"
status "a run on a book" 0 $split --save-dir "$d/book" --steps 40
says "config.json has it" '"long": "split"' "$d/book/config.json"
status "half a run" 0 $split --save-dir "$d/half" --steps 14
status "and the rest, from within the book" 0 "$dl" train --save-dir "$d/half" --resume --steps 40
same "the same dictionary" "$d/book/ae.pt" "$d/half/ae.pt"
status "resumed without it" 1 "$dl" train --save-dir "$d/half" --resume --steps 44 --long cut
says "is refused" "long: .*expected split, found none" "$d/err"

# ---- Bad lines
bad() { # bad NAME WORDS LINE: stops, or is left out
    { head -n 2 "$d/t.jsonl" && printf "$3\n" && tail -n 4 "$d/t.jsonl"; } > "$d/bad.jsonl"
    refuses "bad: $1" "$d/bad.jsonl: line 3: $2" "$d/bad.jsonl"
    check "bad: $1: left out" tokens "$d/bad.jsonl" --skip-bad-lines
    same "bad: $1: the others stay" "$d/good" "$d/out"
    says "bad: $1: is counted" "^$d/bad.jsonl: 1 bad line is left out, the first: .*line 3: $2" "$d/err"
}
tokens "$d/t.jsonl" && cp "$d/out" "$d/good"
bad "no JSON" "JSON, line 1, byte 0: expected a value" "what is this"
bad "cut short" "JSON, line 1, byte 13: the text ends" '{"text": "The'
bad "no such key" 'expected an object with a string under the key "text", found the keys "txt"' \
    '{"txt": "The"}'
bad "a number" 'expected an object with a string .*, found a number' '{"text": 3}'
bad "null" 'expected an object with a string .*, found null' '{"text": null}'
bad "a list" "expected an object with a string .*, found an array" '[1, 2]'
bad "a lone surrogate" "JSON, line 1, byte 16: a surrogate without" '{"text": "\\ud800"}'
bad "bytes that are not UTF-8" "JSON, line 1, byte 10: a string is not UTF-8" '{"text": "\351"}'
bad "a byte 0" "JSON, line 1, byte 10: a control character" '{"text": "\0"}'
{ printf 'One.\n\ncaf\351\nand more\n\nTwo.\n'; } > "$d/latin.txt"
refuses "plain text in Latin-1" "$d/latin.txt: line 3: expected text in UTF-8, found the byte 0xe9" \
    "$d/latin.txt"
check "its document is left out" tokens "$d/latin.txt" --skip-bad-lines
check_equal "as a whole" 2 "$(wc -l < "$d/out" | tr -d ' ')"
{ cat "$d/t.jsonl" && echo '{"text": 3}' && echo '{"tex' && cat "$d/t.jsonl"; } > "$d/some.jsonl"
status "a run with bad lines" 0 $train --text "$d/some.jsonl" --skip-bad-lines --save-dir "$d/some"
says "counts them, --quiet or not" "^$d/some.jsonl: 2 bad lines are left out, the first: " "$d/err"
says "config.json has it" '"skip_bad_lines": true' "$d/some/config.json"
status "a run that a bad line ends" 1 $train --text "$d/some.jsonl" --save-dir "$d/ended"
says "names it" "$d/some.jsonl: line 7: expected an object with a string" "$d/err"
says "after steps on what comes before it" '"step": [1-9]' "$d/ended/log.jsonl"
status "it goes on without the line" 0 "$dl" train --resume --save-dir "$d/ended" --skip-bad-lines
says "which is counted then" "2 bad lines are left out" "$d/err"
same "the same dictionary" "$d/some/ae.pt" "$d/ended/ae.pt"
printf '[{"text": "a"}, 3, {"text": 1}, nan, {"text": "b"}]' > "$d/some.json"
check "bad elements of an array" tokens "$d/some.json" --skip-bad-lines
check_equal "are left out" 2 "$(wc -l < "$d/out" | tr -d ' ')"
says "and counted" "$d/some.json: 3 bad lines are left out, the first: $d/some.json: line 1, byte 17: " "$d/err"
broken() { # broken WORDS TEXT
    printf "$2" > "$d/broken"
    refuses "array: $1" "$d/broken: line 1, byte [0-9]*: $1" "$d/broken"
}
broken "expected a closing bracket, found the end" '[{"text": "a"}'
broken "the text ends within an element" '[{"text": "a"}, {"text'
broken "expected a comma between elements" '[{"text": "a"} {"text": "b"}]'
broken "expected the end of the text after the array" '[{"text": "a"}] [{"text": "b"}]'
broken "JSON, line 1, byte 0: the text ends" '["a",]'

# ---- JSON as Python writes it
for i in 0 1 2 3 4 5; do printf '{"text": "%s", "meta": {"score": NaN, "p": -Infinity}}\n' "$(sentence $i)"; done \
    > "$d/nan.jsonl"
cp "$d/good" "$d/ids"
reads "NaN where it is not needed" "$d/nan.jsonl"
cp -r "$d/a" "$d/nan"
sed 's/"version"/"final_loss": NaN, "best": Infinity, "version"/' "$d/a/config.json" > "$d/nan/config.json"
status "a dictionary with NaN in config.json" 0 "$dl" convert "$d/nan" "$d/nan.npz"
sed 's/"dict_size": 64/"dict_size": NaN/' "$d/a/config.json" > "$d/nan/config.json"
status "where it is needed" 1 "$dl" convert "$d/nan" "$d/nan.npz"
says "it is an error" "$d/nan/config.json: dict_size: expected 64 as in the tensors, found nan" "$d/err"

# ---- Rows that are left out
rows="$dl activations --model $tiny --text $d/t.jsonl --site mlp_out --layer 0"
status "all rows" 0 $rows --out "$d/all.npy"
status "all but the first of each" 0 $rows --bos --skip-first 1 --out "$d/later.npy"
says "they are counted" "^$d/t.jsonl: 6 rows are left out (--skip-first" "$d/err"
status "all but special tokens" 0 $rows --bos --skip-special --out "$d/plain.npy"
same "with a bos token these are the same" "$d/later.npy" "$d/plain.npy"
check_equal "as many as without bos" "$(wc -c < "$d/all.npy")" "$(wc -c < "$d/plain.npy")"
status "no long rows" 0 $rows --max-norm-ratio 1.2 --out "$d/short.npy"
check "are fewer" test "$(wc -c < "$d/short.npy")" -lt "$(wc -c < "$d/all.npy")"

# ---- Compressed data that is damaged
head -c 100 "$d/t.jsonl.gz" > "$d/cut.gz"
refuses "gzip that is cut short" "$d/cut.gz: gzip: it ends within the compressed data" "$d/cut.gz"

# ---- Memory does not grow with the text
endless() { # endless KILOBYTES: so many of JSON lines
    yes '{"text": "The river ran slowly past the old mill, and nobody crossed the bridge."}' | head -c "$1000"
}
peak() { # peak COMMAND: its largest resident memory, in KB
    sh -c "$1" &
    peak_of=$! most=0
    while kill -0 $peak_of 2> /dev/null; do
        now=$(sed -n 's/^VmHWM:[^0-9]*\([0-9]*\).*/\1/p' /proc/$peak_of/status 2> /dev/null)
        most=${now:-$most}
        sleep 0.05
    done
    echo "$most"
}
if [ -r /proc/self/status ]; then
    endless 20000 > "$d/endless.jsonl"
    gzip -1 -c "$d/endless.jsonl" > "$d/endless.gz"
    for file in endless.jsonl endless.gz; do
        used=$(peak "exec $dl tokenize --model $tiny --text - --skip-bad-lines < $d/$file > /dev/null 2>&1")
        check "$file of 20 MB takes $used KB" test "$used" -gt 1000 -a "$used" -lt 40000
    done
fi
finish
