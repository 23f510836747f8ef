#!/bin/sh
# test_downloader.sh BUILD - the downloader against a web server on loopback: layout, resuming,
# sizes, the archive.
. tests/harness.sh
get="sh examples/pretrained_dictionary_downloader.sh"
d=$BUILD/tmp/downloader
rm -rf "$d"
mkdir -p "$d/site"
if ! have python3; then
    skip "downloader" "no python3"
    finish
fi

# a release in small: three folders, with checkpoints, and the archive
for name in embed mlp_out_layer1 attn_out_layer1 resid_out_layer1; do
    mkdir -p "$d/site/$name/10_32768/checkpoints"
    head -c 50000 /dev/urandom > "$d/site/$name/10_32768/ae.pt"
    echo '{"dict_size": 32768}' > "$d/site/$name/10_32768/config.json"
    echo one > "$d/site/$name/10_32768/checkpoints/ae_1000.pt"
    echo two > "$d/site/$name/10_32768/checkpoints/ae_2000.pt"
done
mkdir -p "$d/site/bare/embed/10_32768"
cp "$d"/site/embed/10_32768/ae.pt "$d"/site/embed/10_32768/config.json \
    "$d/site/bare/embed/10_32768/"

python3 tests/range_server.py "$d/site" "$d/port" "$d/log" &
server=$!
trap 'kill $server 2> /dev/null' EXIT
for _ in 1 2 3 4 5 6 7 8 9 10; do [ -s "$d/port" ] || sleep 0.3; done
url=http://127.0.0.1:$(cat "$d/port")
RETRY_WAIT=0
export RETRY_WAIT
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY all_proxy ALL_PROXY

try_with() { # try_with TOOL
    DOWNLOADER=$1
    export DOWNLOADER
    o=$d/$1
    status "$1: embed and layer 1" 0 $get --base-url "$url" --layers "embed,1" --out "$o"
    for name in embed mlp_out_layer1 attn_out_layer1 resid_out_layer1; do
        at=pythia-70m-deduped/$name/10_32768
        same "$1: $name" "$d/site/$name/10_32768/ae.pt" "$o/$at/ae.pt"
        same "$1: $name config" "$d/site/$name/10_32768/config.json" "$o/$at/config.json"
    done
    check "$1: no checkpoints unasked" test ! -e \
        "$o/pythia-70m-deduped/embed/10_32768/checkpoints/ae_1000.pt"
    : > "$d/log"
    status "$1: again, with checkpoints" 0 $get --base-url "$url" --layers embed \
        --checkpoints --out "$o"
    check_fails "$1: what is there is not fetched again" grep -q "embed/10_32768/ae.pt" "$d/log"
    same "$1: a checkpoint" "$d/site/embed/10_32768/checkpoints/ae_2000.pt" \
        "$o/pythia-70m-deduped/embed/10_32768/checkpoints/ae_2000.pt"
    : > "$d/log"
    status "$1: a connection that breaks" 0 $get --base-url "$url/cut$1" --layers 1 \
        --sites mlp_out --out "$o/cut"
    same "$1: is continued" "$d/site/mlp_out_layer1/10_32768/ae.pt" \
        "$o/cut/pythia-70m-deduped/mlp_out_layer1/10_32768/ae.pt"
    says "$1: from where it broke" "ae.pt from 25000" "$d/log"
    status "$1: one that always breaks at once" 1 $get --base-url "$url/short" --layers embed \
        --out "$o/short"
    says "$1: says what it has" "expected 21 bytes, found\|expected 50000 bytes, found" "$d/err"
    check "$1: nothing under the final name" test ! -e \
        "$o/short/pythia-70m-deduped/embed/10_32768/ae.pt"
    status "$1: a file larger than was told" 1 $get --base-url "$url/less" --layers embed \
        --out "$o/less"
    says "$1: says both sizes" "config.json.part: expected 20 bytes, found 21" "$d/err"
    check "$1: nor is that given its name" test ! -e \
        "$o/less/pythia-70m-deduped/embed/10_32768/config.json"
    at=pythia-70m-deduped/embed/10_32768
    mkdir -p "$o/norange/$at"
    head -c 20000 "$d/site/embed/10_32768/ae.pt" > "$o/norange/$at/ae.pt.part"
    status "$1: a server that cannot go on" 0 $get --base-url "$url/norange" --layers embed \
        --out "$o/norange"
    same "$1: is asked for the whole" "$d/site/embed/10_32768/ae.pt" "$o/norange/$at/ae.pt"
    status "$1: no index of checkpoints" 1 $get --base-url "$url/bare" --layers embed \
        --checkpoints --out "$o/bare"
    says "$1: is said" "checkpoints/: expected an index" "$d/err"
    status "$1: a file that is not there" 1 $get --base-url "$url/none" --layers embed \
        --out "$o/none"
    says "$1: is named" "none/embed/10_32768/config.json: not there" "$d/err"
    mkdir -p "$o/part/$at"
    head -c 20000 "$d/site/embed/10_32768/ae.pt" > "$o/part/$at/ae.pt.part"
    : > "$d/log"
    status "$1: a part of an earlier run" 0 $get --base-url "$url" --layers embed --out "$o/part"
    same "$1: is completed" "$d/site/embed/10_32768/ae.pt" "$o/part/$at/ae.pt"
    says "$1: from its end" "ae.pt from 20000" "$d/log"
    check "$1: no part is left" test ! -e "$o/part/$at/ae.pt.part"
    mkdir -p "$o/other/$at"
    head -c 60000 /dev/zero > "$o/other/$at/ae.pt.part"
    status "$1: a part that is too long" 0 $get --base-url "$url" --layers embed --out "$o/other"
    same "$1: is begun anew" "$d/site/embed/10_32768/ae.pt" "$o/other/$at/ae.pt"
}

for tool in curl wget; do
    if have $tool; then try_with $tool; else skip "downloader with $tool" "no $tool"; fi
done

if have unzip; then
    mkdir -p "$d/zip/dictionaries/pythia-70m-deduped"
    cp -R "$d/site/embed" "$d/zip/dictionaries/pythia-70m-deduped/"
    (cd "$d/zip" && python3 -m zipfile -c ../site/release.zip dictionaries)
    unset DOWNLOADER
    status "the archive" 0 $get --zip --base-url "$url/release.zip" --out "$d/unzipped"
    same "is laid out" "$d/site/embed/10_32768/ae.pt" \
        "$d/unzipped/pythia-70m-deduped/embed/10_32768/ae.pt"
    check "the archive is gone" test ! -e "$d/unzipped/release.zip"
    check "and what it was unpacked into" test ! -e "$d/unzipped/.unpacked"
else
    skip "the archive" "no unzip"
fi
status "help" 0 $get --help
status "an unknown layer" 2 $get --layers 9
says "is named" "expected embed or 0 to 5, found 9" "$d/err"
status "a layer that is unknown, after one that is known" 2 $get --layers 0,9 --out "$d/nothing"
check "nothing is fetched then" test ! -e "$d/nothing"
status "an unknown site" 2 $get --layers 0 --sites mlp
says "is named" "expected attn_out, mlp_out or resid_out, found mlp" "$d/err"
status "an unknown flag" 2 $get --layer 1
status "a missing value" 2 $get --layers
finish
