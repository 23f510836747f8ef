# private.awk - the header for tests that call its private functions, so that the implementation is
# compiled once and not in each of them:
#   awk -v part=define  -f tests/private.awk dictlearn.h    private functions are external
#   awk -v part=declare -f tests/private.awk dictlearn.h    they are declared, without their bodies
# Line numbers stay those of dictlearn.h. Kernels stay private, and so does the table that points to
# them.
NR == 1 { print "#line 1 \"dictlearn.h\"" }
/^#if defined\(DICTLEARN_IMPLEMENTATION\)/ { implementation = 1 }
/^\/\/ >>kernel-bodies/ { implementation = 0 }
!implementation { print; next }

/^(DLRNI_INTERNAL|DLRN_API) / { head = !body }
{ sub(/^DLRNI_INTERNAL /, "extern ") }
part == "define" && /^#define DLRNI_SPAN / { # a number that a test may have another of
    print "__attribute__((weak)) int dlrni_test_span = DLRNI_GROUP;"
    print "#define DLRNI_SPAN dlrni_test_span"
    print "#line " NR + 1
    next
}
part == "define" { print; next }

body { # skip to its end
    if (/^}/) body = 0
    print ""
    next
}
/^#include DICTLEARN_HEADER_NAME/ { print ""; next } # the kernels
/^#include <([a-z0-9]*intrin|arm_neon)\.h>/ { print ""; next } # takes longer to read than all the rest
/^static const .*\[\] = \{$/ { # a table; enumerators count its rows
    name = $0
    sub(/^static /, "extern ", name)
    sub(/\[\] = \{$/, "[1];", name)
    table = 1
    text = ""
}
table {
    text = text $0 "\n"
    blank = blank "\n"
    if (/^};/) {
        printf "%s", text ~ /_kernels/ ? name blank : text
        table = 0
        blank = ""
    }
    next
}
head && /\{/ {
    body = !/\}/
    head = 0
    sub(/ *\{.*$/, ";")
}
head && /;/ { head = 0 }
{ print }
