#!/bin/sh
# pretrained_dictionary_downloader.sh - fetches the dictionaries released for pythia-70m-deduped (512 x 32768, one for
# the embedding and for each of the three sites of each layer, 134 MB each) and lays them out as the release has them:
#
#   dictionaries/pythia-70m-deduped/mlp_out_layer1/10_32768/{ae.pt,config.json,checkpoints/}
#
# Then: build/dictlearn eval --dict dictionaries/pythia-70m-deduped/mlp_out_layer1/10_32768 --model ... --site mlp_out
# --layer 1. Needs curl or wget, and unzip for --zip. What is there in its full size is not fetched again; what was cut
# short is continued; a file gets its name only when its size is right.
set -eu

base=https://baulab.us/u/smarks/autoencoders/pythia-70m-deduped
zip_url=https://huggingface.co/saprmarks/pythia-70m-deduped-saes/resolve/main/dictionaries_pythia-70m-deduped_10.zip
layers=embed,0,1,2,3,4,5
sites=attn_out,mlp_out,resid_out
run=10_32768
out=dictionaries
checkpoints=no
whole_zip=no
tries=5

usage() {
    cat << END
usage: sh examples/pretrained_dictionary_downloader.sh [--layers LIST] [--sites LIST] [--checkpoints] [--zip]
                                                       [--base-url URL] [--out DIR]
  --layers LIST   of embed,0,1,2,3,4,5 (default: all)
  --sites LIST    of attn_out,mlp_out,resid_out, for the numbered layers (default: all)
  --checkpoints   also those saved during training
  --zip           the release as one archive of 2.4 GB, from Hugging Face; --layers, --sites, --checkpoints do not count
  --base-url URL  where the folders (or, with --zip, the archive) are
  --out DIR       where to put pythia-70m-deduped/ (default: dictionaries)
END
}

die() {
    echo "pretrained_dictionary_downloader: $*" >&2
    exit "${status:-1}"
}

wrong() {
    status=2
    die "$* (--help tells more)"
}

while [ $# -gt 0 ]; do
    case $1 in
    --layers | --sites | --base-url | --out) [ $# -ge 2 ] || wrong "$1: a value is missing" ;;
    esac
    case $1 in
    --layers) layers=$2 && shift ;;
    --sites) sites=$2 && shift ;;
    --base-url) base=${2%/} && zip_url=$2 && shift ;;
    --out) out=$2 && shift ;;
    --checkpoints) checkpoints=yes ;;
    --zip) whole_zip=yes ;;
    --help | -h) usage && exit 0 ;;
    *) wrong "$1: unknown flag" ;;
    esac
    shift
done

# DOWNLOADER=curl|wget chooses; else what there is.
tool=${DOWNLOADER:-}
if [ -z "$tool" ]; then
    for tool in curl wget none; do command -v $tool > /dev/null 2>&1 && break; done
fi
[ "$tool" != none ] || die "expected curl or wget, found neither"

# size_of URL: the length that the server tells, or nothing; fails if the file is not there
size_of() {
    if [ "$tool" = curl ]; then
        head=$(curl -fsSLI "$1") || return 1
    else
        head=$(wget -S --spider --tries=1 "$1" 2>&1) || return 1
    fi
    printf '%s\n' "$head" | tr -d '\r' | awk 'tolower($1) == "content-length:" { n = $2 } END { print n }'
}

# more URL FILE: fetches what FILE still lacks
more() {
    if [ "$tool" = curl ]; then
        curl -fsSL -C - -o "$2" "$1"
    else
        wget -q -c --tries=1 -O "$2" "$1"
    fi
}

bytes() { if [ -f "$1" ]; then wc -c < "$1" | tr -d ' '; else echo 0; fi; }

# get URL FILE
get() {
    size=$(size_of "$1") || die "$1: not there"
    [ -n "$size" ] || die "$1: the server does not tell its size"
    if [ -f "$2" ] && [ "$(bytes "$2")" = "$size" ]; then
        echo "have  $2"
        return
    fi
    mkdir -p "$(dirname "$2")"
    [ "$(bytes "$2.part")" -le "$size" ] || rm -f "$2.part" # of another version
    try=0
    while [ "$(bytes "$2.part")" -lt "$size" ]; do
        try=$((try + 1))
        [ $try -le $tries ] || die "$2.part: expected $size bytes, found $(bytes "$2.part") after $tries tries"
        more "$1" "$2.part" || sleep "${RETRY_WAIT:-2}"
    done
    [ "$(bytes "$2.part")" = "$size" ] || die "$2.part: expected $size bytes, found $(bytes "$2.part")"
    mv "$2.part" "$2"
    echo "got   $2 ($size bytes)"
}

# list URL: names of the checkpoints that the server's index of a folder links to
list() {
    if [ "$tool" = curl ]; then curl -fsSL "$1/"; else wget -q -O - "$1/"; fi |
        grep -o 'href="[^"/]*ae_[0-9]*\.pt"' | sed 's/^href="//; s/"$//' | sort -u
}

get_folder() { # get_folder NAME
    from=$base/$1/$run
    to=$out/pythia-70m-deduped/$1/$run
    get "$from/config.json" "$to/config.json"
    get "$from/ae.pt" "$to/ae.pt"
    mkdir -p "$to/checkpoints"
    [ $checkpoints = yes ] || return 0
    names=$(list "$from/checkpoints") || die "$from/checkpoints/: no list of checkpoints"
    for name in $names; do get "$from/checkpoints/$name" "$to/checkpoints/$name"; done
}

if [ $whole_zip = yes ]; then
    command -v unzip > /dev/null 2>&1 || die "expected unzip, found none"
    mkdir -p "$out"
    get "$zip_url" "$out/release.zip"
    # the archive's paths begin with dictionaries/, or with the model's name
    rm -rf "$out/.unpacked"
    unzip -q "$out/release.zip" -d "$out/.unpacked" || die "$out/release.zip: cannot be unpacked"
    model=$(find "$out/.unpacked" -type d -name pythia-70m-deduped | head -n 1)
    [ -n "$model" ] || die "$out/release.zip: expected a folder pythia-70m-deduped, found none"
    mkdir -p "$out/pythia-70m-deduped"
    cp -R "$model/." "$out/pythia-70m-deduped/"
    rm -rf "$out/.unpacked" "$out/release.zip"
    echo "got   $out/pythia-70m-deduped"
    exit 0
fi

for layer in $(echo "$layers" | tr ',' ' '); do
    case $layer in
    embed) get_folder embed ;;
    [0-5])
        for site in $(echo "$sites" | tr ',' ' '); do
            case $site in
            attn_out | mlp_out | resid_out) get_folder "${site}_layer$layer" ;;
            *) wrong "--sites: expected attn_out, mlp_out or resid_out, found $site" ;;
            esac
        done
        ;;
    *) wrong "--layers: expected embed or 0 to 5, found $layer" ;;
    esac
done
