#!/bin/sh
# test_rust.sh BUILD - the Rust example: it compiles without a warning, runs, and its declarations are the header's. It
# states their sizes, offsets, types and arguments in C; that file compiles with the header, and not with another one.
. tests/harness.sh
d=$BUILD/tmp/rust
rm -rf "$d"
mkdir -p "$d"
if ! have rustc; then skip "Rust" "no rustc" && finish; fi
rust() { # rust FLAGS...
    rustc --edition 2021 -D warnings -C linker="$CC" -C link-args="$BUILD/dictlearn.o $OPENMP -lm -lgcc" "$@"
}
check "it compiles" rust -O examples/rust/main.rs -o "$d/example"
[ -x "$d/example" ] || finish

status "it runs" 0 sh -c "cd $d && ./example"
says "it trains" '^step 200  loss [0-9. ]*L0 3.00$' "$d/out"
says "it loads what it saved" '^AutoEncoderTopK: 32 -> 192 features$' "$d/out"
check_equal "it encodes" 3 "$(grep -c '^feature [0-9]*: [0-9.]*$' "$d/out")"
check_equal "it leaves nothing" "err example out" "$(echo $(ls "$d"))"
status "it loads the dictionary of others" 0 "$d/example" tests/golden/families/JumpReluAutoEncoder
says "it knows the family" '^JumpReluAutoEncoder: ' "$d/out"
status "a failure" 1 "$d/example" "$d/none.pt"
says "has the library's text" 'none.pt: no such file or folder$' "$d/err"

# ---- the declarations are the header's
"$d/example" --c-check > "$d/check.c"
agrees() { # agrees FOLDER: of dictlearn.h
    $CC -std=c11 -w -I"$1" -fsyntax-only "$d/check.c"
}
check "sizes, offsets, types and functions are the header's" agrees .
says "... of every field" 'offsetof(dlrn_train_config, new_threshold)' "$d/check.c"
says "... of every function" 'dlrn_trainer_step_on(dlrn_trainer \*trainer, const float \*x, ' "$d/check.c"
other() { # other NAME SED-SCRIPT: a header that differs is noticed
    mkdir -p "$d/other"
    sed "$2" dictlearn.h > "$d/other/dictlearn.h"
    if cmp -s dictlearn.h "$d/other/dictlearn.h"; then fail "$1" "the script changes nothing"; return; fi
    check_fails "$1 is noticed" agrees "$d/other"
}
other "a field more" 's|^    int64_t step;  .*|&\n    int64_t more;|'
other "a field less" '/^    double atom_norm; /d'
other "another order of two fields" 's|^    double lr; |    double old; |
    s|^    double sparsity_penalty; |    double lr; |; s|^    double old; |    double sparsity_penalty; |'
other "a field of another type" 's|^    double clip;  |    int64_t clip;  |'
other "an argument more" 's|^DLRN_API void dlrn_sparse_free(dlrn_sparse|& *more, dlrn_sparse|'
other "a result of another type" 's|^DLRN_API float dlrn_rng_normal|DLRN_API double dlrn_rng_normal|'
other "a status more" 's|^    X(DLRN_ERR_ARGUMENT, |    X(DLRN_ERR_OTHER, "") X(DLRN_ERR_ARGUMENT, |'

# ---- what would be used after it is freed does not compile
compiles() { # compiles STATEMENTS: with a context and a dictionary at hand; what rustc says goes to $d/said
    cat > "$d/use.rs" << END
#[path = "$PWD/examples/rust/dictlearn.rs"]
mod dictlearn;
use dictlearn::*;
fn main() -> Result<()> {
    let ctx = Context::new()?;
    let dict = Dictionary::load(&ctx, "x")?;
    $1
    Ok(())
}
END
    rust --emit=metadata -o "$d/use.rmeta" "$d/use.rs" > "$d/said" 2>&1
}
refused() { # refused NAME ERROR STATEMENTS
    check_fails "$1 does not compile" compiles "$3"
    says "... for that reason" "$2" "$d/said"
}
check "a use while all is there compiles" compiles 'dict.save("y")?;'
refused "a dictionary after its context" E0505 'drop(ctx); dict.save("y")?;'
refused "codes after their dictionary" E0505 'let codes = Encoder::new(&dict)?.run(&[])?.0; drop(dict); codes.rows();'
refused "a context on two threads" E0277 'dict.save("y")?; std::thread::spawn(move || { let _used = &ctx; });'

if have rustfmt; then
    check "rustfmt" rustfmt --check --edition 2021 --config use_small_heuristics=Max examples/rust/main.rs
else
    skip "rustfmt" "not installed"
fi
finish
