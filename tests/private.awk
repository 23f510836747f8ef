# private.awk - the header for tests that call its private functions, so that the implementation is
# compiled once and not in each of them:
#   awk -v part=define  -f tests/private.awk dictlearn.h    private functions and tables are external
#   awk -v part=declare -f tests/private.awk dictlearn.h    they are declared, without their bodies
# Line numbers stay those of dictlearn.h. Kernels stay private: a table points to them.
function head(line) { # what stands before a body, as a declaration
    sub(/ *\{.*$/, ";", line)
    return line
}
function shown(line) {
    if (!bodies) sub(/^DLRNI_INTERNAL /, "extern ", line)
    return line
}

NR == 1 { print "#line 1 \"dictlearn.h\"" }
/^#if defined\(DICTLEARN_IMPLEMENTATION\)/ { implementation = 1 }
/^\/\/ >>kernel-bodies/ { bodies = 1 }
!implementation || bodies { print; next }

part == "define" && /^static const / { sub(/^static /, ""); print; next }
part == "define" { print shown($0); next }

skipping { # to the end of a body, or of a table
    if (/^}/ || (table && /};/)) skipping = table = 0
    print ""
    next
}
/^#include DICTLEARN_HEADER_NAME/ { print ""; next }
/^static const .* = \{/ { # a table
    line = $0
    sub(/^static /, "extern ", line)
    sub(/ = \{.*/, ";", line)
    print line
    skipping = table = !/};/
    next
}
/^(DLRNI_INTERNAL|DLRN_API)/ { inside = 1 }
inside && /\{/ { print shown(head($0)); inside = 0; skipping = !/\}/; next }
inside && /;/ { inside = 0 }
{ print shown($0) }
