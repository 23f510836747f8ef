#!/bin/sh
# test_cli_forms.sh BUILD - models as people have them: settings that contradict each other, padded
# vocabularies, names of the hub, contexts that are too long; and the sites within a module.
. tests/harness.sh
dl=$BUILD/dictlearn
d=$BUILD/tmp/forms
tiny=examples/data/tiny-neox
rm -rf "$d"
mkdir -p "$d"

# form NAME SED: the tiny model in $d/NAME, its config.json edited
form() {
    mkdir -p "$d/$1"
    cp $tiny/model.safetensors $tiny/tokenizer.json "$d/$1"
    sed "$2" $tiny/config.json > "$d/$1/config.json"
}
lines() { wc -l < "$1" | tr -d ' '; }
printf '%s\n' '{"text": "The cat sat on the mat, and the ship went on in the night."}' \
    '{"text": "He said nothing of it to the others."}' > "$d/t.jsonl"
text="--text $d/t.jsonl"
note="^dictlearn: note: $d"

# ---- Settings that contradict each other: one line, and what transformers 5 takes
form base100 's/"rotary_emb_base": 10000/"rotary_emb_base": 100/'
form both 's/"rotary_emb_base": 10000/"rotary_emb_base": 100, "rope_theta": 10000/'
status "logits of a plain config" 0 "$dl" logits --model "$d/base100" $text --out "$d/want.npy"
check_equal "says nothing" 0 "$(lines "$d/err")"
status "logits of one with two bases" 0 "$dl" logits --model "$d/both" $text --out "$d/got.npy"
same "are those of rotary_emb_base" "$d/want.npy" "$d/got.npy"
says "and a line says so" \
    "$note/both/config.json: rope_theta 10000 is ignored: rotary_emb_base 100 is taken" "$d/err"
check_equal "one line" 1 "$(lines "$d/err")"
status "with --quiet" 0 "$dl" logits --quiet --model "$d/both" $text --out "$d/got.npy"
check_equal "it is not said" 0 "$(lines "$d/err")"
form untied 's/x/x/'
form tied 's/"tie_word_embeddings": false/"tie_word_embeddings": true/'
status "logits of two matrices" 0 "$dl" logits --model "$d/untied" $text --out "$d/want.npy"
status "logits of two that are said to be one" 0 "$dl" logits --model "$d/tied" $text \
    --out "$d/got.npy"
same "are the file's" "$d/want.npy" "$d/got.npy"
says "and a line says so" "$note/tied/config.json: tie_word_embeddings true is ignored" "$d/err"

# ---- A vocabulary that is padded: here the tokenizer lacks the control characters' bytes
form padded 's/x/x/'
sed -e '/": 189,$/,/": 198,$/d' -e '/": 200,$/,/": 220,$/d' $tiny/tokenizer.json \
    > "$d/padded/tokenizer.json"
check_equal "31 ids without a token" 31 \
    $(($(lines $tiny/tokenizer.json) - $(lines "$d/padded/tokenizer.json")))
for t in 0 1 1000; do
    rm -f "$d/g.jsonl"
    status "generate at temperature $t" 0 "$dl" generate --model "$d/padded" --tokens 400 \
        --documents 6 --temperature $t --out "$d/g.jsonl"
    check_equal "writes every document" 6 "$(lines "$d/g.jsonl")"
    check_fails "without an id that has no token" grep -q 'u00[01]' "$d/g.jsonl"
done

# ---- What is no model here, and the way out
hub=nobody/no-such-model
for c in "logits $text --out $d/l.npy" "generate --tokens 3" "tokenize $text" \
    "activations $text --site embed --out $d/x.npy"; do
    status "${c%% *} with a name of the hub" 1 "$dl" $c --model $hub
    says "says how to get it" "^dictlearn: $hub: no such folder.*hf download $hub --local-dir $hub$" \
        "$d/err"
    check_equal "in one line" 1 "$(lines "$d/err")"
done
status "a path that is not there" 1 "$dl" generate --tokens 3 --model ./no/such
check_equal "is no name of the hub" "dictlearn: ./no/such: no such folder" "$(cat "$d/err")"
status "a file" 1 "$dl" generate --tokens 3 --model $tiny/config.json
says "is no model" \
    "config.json: expected a model: a Hugging Face folder or a GGUF file, found another file" "$d/err"
status "a file that is not there" 1 "$dl" generate --tokens 3 --model no.gguf
check_equal "is no name of the hub" "dictlearn: no.gguf: no such file" "$(cat "$d/err")"
form llama 's/gpt_neox/llama/'
status "activations of another architecture" 1 "$dl" activations --model "$d/llama" $text \
    --site mlp_out --layer 0 --out "$d/x.npy"
says "say the way out" "model_type: expected gpt_neox, found llama. .*GGUF.*hook.* --data X.npy$" "$d/err"
status "text of another architecture" 1 "$dl" generate --tokens 3 --model "$d/llama"
says "says the way out" "found llama. .*(convert_hf_to_gguf.py of llama.cpp).* --model$" "$d/err"

# ---- Models in one file. What runs them is not in every build; this one is broken for all
printf 'GGUF, and no more' > "$d/broken.gguf"
at="$text --site resid_out --layer 0"
for c in "tokenize $text" "generate --tokens 3" "logits $text --out $d/l.npy" \
    "activations $at --out $d/x.npy" "train $at --save-dir $d/none" \
    "activations $text --site tensor:l_out-0 --out $d/x.npy" "inspect"; do
    model="--model"
    if [ "$c" = inspect ]; then model=; fi
    status "${c%% *} with a GGUF file" 1 "$dl" $c $model "$d/broken.gguf"
    check_equal "is told in one line" 1 "$(grep -c "^dictlearn: $d/broken.gguf: " "$d/err")"
    if "$dl" generate --help | grep -q "not in this build"; then
        says "that says how to build a program for it" "without llama.cpp.*make LLAMA=PREFIX" \
            "$d/err"
    fi
done
absent "and nothing is written" "$d/none" "$d/l.npy"

# ---- Sites of tensors
status "a tensor of a folder's model" 1 "$dl" activations --model $tiny $text --site tensor:l_out-0 \
    --out "$d/x.npy"
says "is told what there is" \
    "site: expected embed, .* or resid_out, found tensor:l_out-0: only models in GGUF files" "$d/err"
wrong "a site that is none" "expected embed, .* or resid_out, or tensor:NAME, as --site" "$dl" \
    activations --model $tiny $text --site l_out-0 --out "$d/x.npy"
status "a layer beyond the last" 1 "$dl" activations --model $tiny $text --site mlp_out --layer 6 \
    --out "$d/x.npy"
says "is counted" "site mlp_out: expected a layer from 0 to 5, found 6" "$d/err"

# ---- Contexts beyond the model's positions
form short 's/"max_position_embeddings": 512/"max_position_embeddings": 100/'
status "contexts that are too long" 1 "$dl" activations --model "$d/short" $text --site mlp_out \
    --layer 0 --out "$d/x.npy"
says "are told with the flag" "has 100 positions, contexts have 128 tokens: give --ctx-len 100 or less" \
    "$d/err"
status "shorter ones" 0 "$dl" activations --model "$d/short" $text --site mlp_out --layer 0 \
    --ctx-len 100 --out "$d/x.npy"
status "tokens that are too many" 1 "$dl" generate --model "$d/short" --tokens 100
says "are told with the flag" "100 positions, found 1 and 100: give a smaller --tokens" "$d/err"

# ---- The sites within a module, in every command that takes a site
"$dl" generate --model $tiny --tokens 60 --documents 40 --seed 3 --quiet --out "$d/a.jsonl"
for row in attn_z:128 mlp_hidden:512; do
    site=${row%:*} width=${row#*:}
    at="--model $tiny --text $d/a.jsonl --site $site --layer 1"
    status "activations at $site" 0 "$dl" activations $at --out "$d/x.npy" --limit 100
    "$dl" inspect "$d/x.npy" > "$d/out"
    says "have $width columns" "\[100, $width\]" "$d/out"
    for io in out in in_to_out; do
        status "activations at $site, --io $io" 0 "$dl" activations $at --io $io --out "$d/y.npy" \
            --limit 3000
        train="$dl train --quiet $at --io $io --dict-size 256 --batch-size 64 --steps 4 --n-ctxs 4"
        train="$train --in-batch-size 2 --save-dir $d/$site.$io"
        status "train at $site, --io $io" 0 $train
        status "eval at $site, --io $io" 0 "$dl" eval --dict "$d/$site.$io" $at --io $io \
            --documents 5 --rows 500 --json
        says "with the cross-entropy" '"loss_reconstructed": [0-9]' "$d/out"
        if [ $io = in_to_out ]; then continue; fi
        status "as wide as the rows" 0 "$dl" eval --dict "$d/$site.$io" --data "$d/y.npy"
    done
    "$dl" activations $at --out "$d/y.npy" --quiet
    "$dl" activations $at --io in_to_out --out "$d/z.npy" --quiet
    same "--io in_to_out writes the site" "$d/y.npy" "$d/z.npy"
    status "features at $site" 0 "$dl" features --dict "$d/$site.out" $at --rows 1000
done
status "a dictionary of another width" 1 "$dl" eval --dict "$d/attn_z.out" $at
says "is told by whose width is which" "^dictlearn: $d/attn_z.out: wrong input width: the \
dictionary has 128, the model's site mlp_hidden has 512 ($tiny)" "$d/err"
finish
