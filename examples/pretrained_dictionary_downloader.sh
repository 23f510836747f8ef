#!/bin/sh
# pretrained_dictionary_downloader.sh - fetches the dictionaries released for pythia-70m-deduped
# (512 x 32768, one for the embedding and for each of the three sites of each layer, 134 MB each)
# and lays them out as the release has them:
#
#   dictionaries/pythia-70m-deduped/mlp_out_layer1/10_32768/{ae.pt,config.json,checkpoints/}
#
# Then: build/dictlearn eval --dict dictionaries/pythia-70m-deduped/mlp_out_layer1/10_32768 --model
# ... --site mlp_out --layer 1. Needs curl or wget, and unzip for --zip. What is there in its full
# size is not fetched again; what was cut short is continued; a file gets its name only when its
# size is right.
set -eu

base=https://baulab.us/u/smarks/autoencoders/pythia-70m-deduped
zip_url=https://huggingface.co/saprmarks/pythia-70m-deduped-saes/resolve/main
zip_url=$zip_url/dictionaries_pythia-70m-deduped_10.zip
layers=embed,0,1,2,3,4,5
sites=attn_out,mlp_out,resid_out
run=10_32768
out=dictionaries
checkpoints=no
whole_zip=no
tries=5

usage() {
    cat << END
usage: sh examples/pretrained_dictionary_downloader.sh [--layers LIST] [--sites LIST]
           [--checkpoints] [--zip] [--base-url URL] [--out DIR]
  --layers LIST      some of embed,0,1,2,3,4,5 (default: all)
  --sites LIST       some of attn_out,mlp_out,resid_out, for the numbered layers (default: all)
  -c, --checkpoints  also those saved during training (about 10 GB a layer)
  --zip              the release as one archive of 2.4 GB, from Hugging Face; without --layers,
                     --sites, --checkpoints
  --base-url URL     where the folders are; with --zip, the archive; default:
                     $base
                     $zip_url
  --out DIR          where to put pythia-70m-deduped/ (default: dictionaries)
Run it again to continue where it stopped. Set DOWNLOADER=curl or DOWNLOADER=wget in the
environment to choose the tool.
END
}

die() {
    echo "pretrained_dictionary_downloader: $*" >&2
    exit 1
}

wrong() {
    echo "pretrained_dictionary_downloader: $* (--help tells more)" >&2
    exit 2
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
    -c | --checkpoints) checkpoints=yes ;;
    --zip) whole_zip=yes ;;
    -h | --help) usage && exit 0 ;;
    *) wrong "$1: unknown flag" ;;
    esac
    shift
done

# All names are looked at before anything is fetched.
folders=
for layer in $(echo "$layers" | tr ',' ' '); do
    case $layer in
    embed) folders="$folders embed" && continue ;;
    [0-5]) ;;
    *) wrong "--layers: expected embed or 0 to 5, found $layer" ;;
    esac
    for site in $(echo "$sites" | tr ',' ' '); do
        case $site in
        attn_out | mlp_out | resid_out) folders="$folders ${site}_layer$layer" ;;
        *) wrong "--sites: expected attn_out, mlp_out or resid_out, found $site" ;;
        esac
    done
done
[ -n "$folders" ] || wrong "--layers, --sites: nothing is chosen"

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
    printf '%s\n' "$head" | tr -d '\r' | awk \
        'tolower($1) == "content-length:" { n = $2 } END { print n }'
}

# more URL FILE: fetches what FILE still lacks; a bar of progress is shown to a person
quiet=yes
[ ! -t 2 ] || quiet=no
more() {
    case $tool-$quiet in
    curl-yes) curl -fsSL -C - -o "$2" "$1" ;;
    curl-no) curl -f#L -C - -o "$2" "$1" ;;
    *-yes) wget -q -c --tries=1 -O "$2" "$1" ;;
    *-no) wget -q --show-progress -c --tries=1 -O "$2" "$1" ;;
    esac
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
    part=$2.part
    [ "$(bytes "$part")" -le "$size" ] || rm -f "$part" # of another version
    try=0
    while [ "$(bytes "$part")" -lt "$size" ]; do
        try=$((try + 1))
        [ $try -le $tries ] || die \
            "$part: expected $size bytes, found $(bytes "$part") after $tries tries"
        before=$(bytes "$part")
        more "$1" "$part" || sleep "${RETRY_WAIT:-2}"
        # a server that cannot go on in the middle: the last two tries are from the start
        if [ $try -eq $((tries - 2)) ] && [ "$(bytes "$part")" = "$before" ]; then rm -f "$part"; fi
    done
    [ "$(bytes "$part")" = "$size" ] || die "$part: expected $size bytes, found $(bytes "$part")"
    mv "$part" "$2"
    echo "got   $2 ($size bytes)"
}

# list URL: names of the checkpoints that the server's index of a folder links to
list() {
    if [ "$tool" = curl ]; then curl -fsSL "$1/"; else wget -q -O - "$1/"; fi |
        grep -o 'href="[A-Za-z0-9_.-]*\.pt"' | sed 's/^href="//; s/"$//' | sort -u
}

get_folder() { # get_folder NAME
    from=$base/$1/$run
    to=$out/pythia-70m-deduped/$1/$run
    get "$from/config.json" "$to/config.json"
    get "$from/ae.pt" "$to/ae.pt"
    mkdir -p "$to/checkpoints"
    [ $checkpoints = yes ] || return 0
    names=$(list "$from/checkpoints")
    [ -n "$names" ] || die \
        "$from/checkpoints/: expected an index with links to .pt files, found none"
    for name in $names; do get "$from/checkpoints/$name" "$to/checkpoints/$name"; done
}

# The archive's paths begin with dictionaries/, or with the model's name.
get_archive() {
    command -v unzip > /dev/null 2>&1 || die "expected unzip, found none"
    unpacked=$out/.unpacked
    mkdir -p "$out"
    get "$zip_url" "$out/release.zip"
    rm -rf "$unpacked"
    unzip -q "$out/release.zip" -d "$unpacked" || die "$out/release.zip: cannot be unpacked"
    model=$(find "$unpacked" -type d -name pythia-70m-deduped | head -n 1)
    [ -n "$model" ] || die "$out/release.zip: expected a folder pythia-70m-deduped, found none"
    (cd "$model" && find . -type f) | while read -r file; do
        to=$out/pythia-70m-deduped/${file#./}
        mkdir -p "$(dirname "$to")"
        mv "$model/$file" "$to"
    done
    rm -rf "$unpacked" "$out/release.zip"
    echo "got   $out/pythia-70m-deduped"
}

if [ $whole_zip = yes ]; then
    get_archive
else
    for folder in $folders; do get_folder "$folder"; done
fi
