#!/bin/sh
# test_install.sh - make install: the program runs, the header compiles by pkg-config, the page has all commands
. tests/harness.sh
d=$BUILD/tmp/install
rm -rf "$d"
mkdir -p "$d"
here=$(cd "$d" && pwd)
check "make install" make -s install CC="$CC" BUILD="$BUILD" PREFIX="$here/usr"
status "the program" 0 "$here/usr/bin/dictlearn" --version
check_equal "has the header's version" \
    "$(sed -n 's/.*DLRN_VERSION_STRING "\(.*\)".*/\1/p' "$here/usr/include/dictlearn.h" | head -n 1)" \
    "$(cut -d ' ' -f 2 "$d/out")"
page=$here/usr/share/man/man1/dictlearn.1
for c in $("$BUILD/dictlearn" --help | sed -n 's/^  dictlearn \([a-z]*\) .*/\1/p'); do
    says "$c is in the manual page" "^.SH $(echo "$c" | tr '[:lower:]' '[:upper:]')$" "$page"
done
says "with its flags" '\\-\\-sparsity\\-penalty' "$page"
if have groff; then
    groff -man -Tutf8 -ww "$page" > "$d/page" 2> "$d/err"
    check_equal "groff has nothing to say" "" "$(cat "$d/err")"
else
    skip "groff reads the page" "no groff"
fi
if have pkg-config; then
    flags=$(PKG_CONFIG_PATH="$here/usr/lib/pkgconfig" pkg-config --cflags --libs dictlearn)
    check "pkg-config's flags build example 00" $CC -O0 examples/00_hello.c ${flags%-lm} -o "$d/hello" -lm
    check_equal "its version" "$(cut -d ' ' -f 2 "$d/out")" \
        "$(PKG_CONFIG_PATH="$here/usr/lib/pkgconfig" pkg-config --modversion dictlearn)"
else
    says "the pkg-config file names the version" "^Version: $(cut -d ' ' -f 2 "$d/out")$" \
        "$here/usr/lib/pkgconfig/dictlearn.pc"
fi
check "make install for a package" make -s install CC="$CC" BUILD="$BUILD" PREFIX=/usr DESTDIR="$here/root"
says "the prefix is the one it will have" "^prefix=/usr$" "$here/root/usr/lib/pkgconfig/dictlearn.pc"
finish
