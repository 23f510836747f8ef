#!/bin/sh
# test_page.sh BUILD - the page of features without a browser: its functions under node, and pages of
# invented data. tests/browser.py drives it.
. tests/harness.sh
d=$BUILD/tmp/page
rm -rf "$d"
mkdir -p "$d"

if command -v node > /dev/null; then
    status "functions, colours and text" 0 node tests/page/unit.js
    cat "$d/out"
else
    skip "functions of the page" "no node"
fi

status "a page" 0 python3 tests/page/make_page.py "$d/a.html" --features 300 --shown 20
status "the same page" 0 python3 tests/page/make_page.py "$d/b.html" --features 300 --shown 20
same "a seed gives one page" "$d/a.html" "$d/b.html"
check_equal "its data is one line" 1 \
    "$(grep -c '^<script id="data" type="application/json">{.*}</script>$' "$d/a.html")"
check_equal "no token ends the data" "$(grep -c '</script>' examples/program/page.html)" \
    "$(grep -c '</script>' "$d/a.html")"
finish
