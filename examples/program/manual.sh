#!/bin/sh
# manual.sh PROGRAM: the manual page dictlearn(1), made from what --help prints, so that the two agree.
set -e
program=$1
version=$("$program" --version)

# Help as it is on the terminal; what roff would take for a request or an escape is guarded.
page() {
    echo '.nf'
    "$program" "$@" --help | sed -e 's/\\/\\e/g' -e "s/^\([.']\)/\\\\\&\1/" -e 's/-/\\-/g'
    echo '.fi'
}

cat << END
.TH DICTLEARN 1 "" "$version" "User Commands"
.SH NAME
dictlearn \- train, evaluate and inspect sparse autoencoders
.SH SYNOPSIS
.B dictlearn
.I COMMAND
[\fIARGUMENT\fR...]
.SH DESCRIPTION
END
page
for c in $("$program" --help | sed -n 's/^  dictlearn \([a-z]*\) .*/\1/p'); do
    echo ".SH $c" | tr '[:lower:]' '[:upper:]'
    page "$c"
done
cat << 'END'
.SH EXIT STATUS
0: done. 1: it failed. 2: the command line is wrong. 128 plus the number of the signal: it was interrupted.
.SH ENVIRONMENT
.TP
.B DICTLEARN_KERNELS
the set of kernels, as \-\-kernels
.TP
.B OMP_WAIT_POLICY, OMP_NUM_THREADS
OpenMP's; threads sleep while they wait unless the first says otherwise
.TP
.B TMPDIR
where temporary files go that have no file to lie beside
END
