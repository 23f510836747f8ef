#!/bin/sh
# embed.sh BUILD - writes BUILD/page_html.h: the bytes of page.html, the template of `features --out`, as a C array.
# The program includes it. Needs od and sed alone.
here=$(dirname "$0")
out=${1:-build}/page_html.h
mkdir -p "$(dirname "$out")" || exit 1
{
    echo "/* examples/program/page.html, by embed.sh */"
    echo "static const unsigned char page_html[] = {"
    od -A n -v -t u1 "$here/page.html" | sed 's/[0-9][0-9]*/&,/g'
    echo "};"
} > "$out.$$" && mv "$out.$$" "$out"
