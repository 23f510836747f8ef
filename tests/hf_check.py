"""The model runner against Hugging Face transformers: `python tests/hf_check.py BUILD`.

Small GPT-NeoX models of random weights, in every form that the runner reads, and Pythia-70m's true shape with its
tokenizer where that file is at hand: logits, activations at every site, cross-entropies of the `eval` command under
reconstruction and zero ablation. Closes with `N passed, N failed, N skipped`.
"""
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import torch
from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

BUILD = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build")
PROGRAM = BUILD / "dictlearn"
WORK = BUILD / "tmp" / "hf"
TINY = pathlib.Path("examples/data/tiny-neox")
SHARED = pathlib.Path(os.environ.get("DICTLEARN_SHARED", "../shared")) / "data"
TEXTS = [
    "The river ran slowly past the old mill, and nobody had crossed the bridge since the winter before last.",
    "\u201cNo,\u201d she said; \u201cI never saw it.\u201d  He counted: 1, 22, 333.\n\nThen there was nothing to say.",
    "A",
    "Of all the men that I have known there was but one who would not take money for what he had done in the war; "
    "and he was a fool, as everybody in the village told me when I came there to ask for his house.",
]
CTX_LEN = 48
counts = {"passed": 0, "failed": 0, "skipped": 0}


def report(name, good, detail=""):
    counts["passed" if good else "failed"] += 1
    print(f"{'ok  ' if good else 'FAIL'} {name}{': ' if detail else ''}{detail}", flush=True)


def skip(name, why):
    counts["skipped"] += 1
    print(f"skip {name}: {why}")


def run(*args):
    done = subprocess.run([str(PROGRAM), *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{args[0]}: status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def apart(a, b):
    """Largest difference over the largest value."""
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)) if a.shape == b.shape else float("inf")


def config(**changes):
    base = {
        "vocab_size": 2048, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 256, "max_position_embeddings": 128, "rotary_pct": 0.25, "hidden_act": "gelu",
    }
    return GPTNeoXConfig(**{**base, **changes})


def make_model(seed, cfg):
    torch.manual_seed(seed)
    model = GPTNeoXForCausalLM(cfg).eval()
    with torch.no_grad():  # HF's initial values are too tame to show a mistake
        for name, p in model.named_parameters():
            p.mul_(2.5) if p.dim() == 2 else p.add_(0.2 * torch.randn_like(p))
    return model


def save(model, folder, form, dtype):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    saved = model.to(dtype)
    if form.startswith("safetensors"):
        saved.save_pretrained(folder, max_shard_size="200KB" if form.endswith("sharded") else "5GB")
    else:
        saved.config.save_pretrained(folder)
        state = saved.state_dict()
        if form == "bin":
            torch.save(state, folder / "pytorch_model.bin")
        else:
            names = sorted(state)
            half = len(names) // 2
            files = {"pytorch_model-00001-of-00002.bin": names[:half], "pytorch_model-00002-of-00002.bin": names[half:]}
            for file, keys in files.items():
                torch.save({k: state[k].clone() for k in keys}, folder / file)
            index = {"metadata": {}, "weight_map": {k: f for f, keys in files.items() for k in keys}}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    model.to(torch.float32)
    shutil.copy(TINY / "tokenizer.json", folder)


INPUTS = ("attn_z", "mlp_in", "mlp_hidden")  # sites that are what a module reads


def hooks_for(model, site, layer):
    """The module whose output (or, for those of INPUTS, input) the site is."""
    if site == "embed":
        return model.gpt_neox.embed_in
    block = model.gpt_neox.layers[layer]
    return {"attn_z": block.attention.dense, "attn_out": block.attention, "mlp_in": block.mlp,
            "mlp_hidden": block.mlp.dense_4h_to_h, "mlp_out": block.mlp, "resid_out": block}[site]


def activations(model, batches, site, layer):
    rows = []

    def keep(_, inputs, output):
        value = output[0] if isinstance(output, tuple) else output
        rows.append(value.detach().reshape(-1, value.shape[-1]))

    def keep_input(_, inputs):
        rows.append(inputs[0].detach().reshape(-1, inputs[0].shape[-1]))

    module = hooks_for(model, site, layer)
    handle = module.register_forward_pre_hook(keep_input) if site in INPUTS else module.register_forward_hook(keep)
    with torch.no_grad():
        for ids in batches:
            model(torch.tensor([ids]))
    handle.remove()
    return torch.cat(rows).numpy()


def cross_entropy(model, batches, site=None, layer=0, change=None):
    """Mean over all next tokens, with the site's value replaced by change(value)."""

    def edit(_, inputs, output):
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    def edit_input(_, inputs):
        return (change(inputs[0]), *inputs[1:])

    handle = None
    if site in INPUTS:
        handle = hooks_for(model, site, layer).register_forward_pre_hook(edit_input)
    elif site:
        handle = hooks_for(model, site, layer).register_forward_hook(edit)
    nats, tokens = 0.0, 0
    with torch.no_grad():
        for ids in batches:
            if len(ids) < 2:
                continue
            logits = model(torch.tensor([ids])).logits[0, :-1].double()
            nats += torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum").item()
            tokens += len(ids) - 1
    if handle:
        handle.remove()
    return nats / tokens


def write_texts(folder):
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS), encoding="utf-8")
    return path


def check_logits(name, model, folder, batches, bound):
    path = folder / "texts.jsonl"
    run("logits", "--model", folder, "--text", path, "--ctx-len", CTX_LEN, "--out", folder / "logits.npy")
    with torch.no_grad():
        want = model(torch.tensor([batches[0]])).logits[0].numpy()
    far = apart(np.load(folder / "logits.npy"), want)
    report(f"{name}: logits", far < bound, f"{far:.2g}")


def check_sites(name, model, folder, batches, bound):
    worst = 0.0
    sites = [("embed", 0)] + [(s, l) for s in ("attn_z", "attn_out", "mlp_in", "mlp_hidden", "mlp_out", "resid_out")
                              for l in (model.config.num_hidden_layers // 2,)]
    for site, layer in sites:
        where = ["--site", site] + (["--layer", layer] if site != "embed" else [])
        run("activations", "--model", folder, "--text", folder / "texts.jsonl", "--ctx-len", CTX_LEN, *where,
            "--out", folder / "x.npy", "--quiet")
        worst = max(worst, apart(np.load(folder / "x.npy"), activations(model, batches, site, layer)))
    report(f"{name}: activations at seven sites", worst < bound, f"{worst:.2g}")


def save_dictionary(folder, d, features, threshold):
    torch.manual_seed(3)
    atoms = torch.nn.functional.normalize(torch.randn(features, d), dim=1)
    state = {"bias": 0.1 * torch.randn(d), "encoder.weight": atoms.clone(),
             "encoder.bias": torch.full((features,), -threshold), "decoder.weight": atoms.T.clone()}
    torch.save(state, folder / "ae.pt")
    return state


def reconstruct(state, x):
    f = torch.relu((x - state["bias"]) @ state["encoder.weight"].T + state["encoder.bias"])
    return f @ state["decoder.weight"].T + state["bias"]


def check_eval(name, model, folder, batches, site, layer, bound, features=256):
    width = model.config.intermediate_size if site == "mlp_hidden" else model.config.hidden_size
    state = save_dictionary(folder, width, features, 0.3)
    args = ["eval", "--dict", folder / "ae.pt", "--model", folder, "--text", folder / "texts.jsonl", "--json",
            "--ctx-len", CTX_LEN, "--site", site] + (["--layer", layer] if site != "embed" else [])
    got = json.loads(run(*args))
    original = cross_entropy(model, batches)
    spliced = cross_entropy(model, batches, site, layer, lambda x: reconstruct(state, x))
    zero = cross_entropy(model, batches, site, layer, torch.zeros_like)
    want = {"loss_original": original, "loss_reconstructed": spliced, "loss_zero": zero, "ce_diff": spliced - original,
            "percent_recovered": (spliced - zero) / (original - zero)}
    scale = {"percent_recovered": max(1, 1 / abs(original - zero))}  # a quotient by what may be a small difference
    worst = max(abs(got[k] - v) / max(abs(v), scale.get(k, 1)) for k, v in want.items())
    report(f"{name}: cross-entropies at {site} of layer {layer}", worst < bound, f"{worst:.2g}")


def check(name, folder, model, bound=2e-5, tokenizer=None):
    write_texts(folder)
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(folder)
    batches = [tokenizer(t, add_special_tokens=False)["input_ids"][:CTX_LEN] for t in TEXTS]
    check_logits(name, model, folder, batches, bound)
    check_sites(name, model, folder, batches, bound)
    last = model.config.num_hidden_layers - 1
    for site, layer in (("embed", 0), ("attn_z", 0), ("attn_out", 1), ("mlp_hidden", 1), ("mlp_out", 0),
                        ("resid_out", last - 1)):
        check_eval(name, model, folder, batches, site, layer, 10 * bound)


def small_models():
    forms = [
        ("parallel residual, f32", config(), "safetensors", torch.float32),
        ("sequential residual", config(use_parallel_residual=False), "safetensors", torch.float32),
        ("all dimensions turn", config(rotary_pct=1.0), "safetensors", torch.float32),
        ("another base", config(rotary_emb_base=500000), "safetensors", torch.float32),
        ("no attention bias", config(attention_bias=False), "safetensors", torch.float32),
        ("tied embeddings", config(tie_word_embeddings=True), "safetensors", torch.float32),
        ("gelu_new", config(hidden_act="gelu_new"), "safetensors", torch.float32),
        ("relu, odd sizes", config(hidden_act="relu", hidden_size=60, num_attention_heads=3, intermediate_size=100),
         "safetensors", torch.float32),
        ("f16 shards", config(), "safetensors-sharded", torch.float16),
        ("bf16", config(), "safetensors", torch.bfloat16),
        ("pytorch_model.bin", config(), "bin", torch.float32),
        ("pytorch_model.bin in two", config(), "bin-sharded", torch.float16),
    ]
    for i, (name, cfg, form, dtype) in enumerate(forms):
        folder = WORK / f"model_{i}"
        try:
            model = make_model(i, cfg)
            save(model, folder, form, dtype)  # rounds the weights that we compare with, too
            check(name, folder, model)
        except Exception as e:  # a model that cannot be run is one failure, not the end
            report(name, False, f"{type(e).__name__}: {e}")


def edited_configs():
    """A config.json as people have them, with keys that contradict each other or other names: what transformers makes
    of it, and how many lines are said about it."""
    base = {"rotary_emb_base": 10000, "rotary_pct": 0.25}
    edits = [
        ("rotary_emb_base beside rope_theta", {"rotary_emb_base": 100, "rope_theta": 10000}, 1),
        ("rope_theta alone", {"rotary_emb_base": None, "rope_theta": 100}, 1),
        ("rotary_pct beside partial_rotary_factor", {"rotary_pct": 1.0, "partial_rotary_factor": 0.5}, 1),
        ("rope_parameters beside both", {"rope_parameters": {"rope_type": "default", "rope_theta": 50,
                                                             "partial_rotary_factor": 0.75}, "rope_theta": 3}, 2),
        ("rope_scaling beside rope_parameters", {"rope_scaling": {"type": "linear", "factor": 2.0},
                                                 "rope_parameters": {"rope_type": "default", "rope_theta": 50}}, 1),
        ("an empty rope_scaling", {"rope_scaling": {}, "rope_parameters": {"rope_type": "default", "rope_theta": 50},
                                   "rotary_emb_base": None}, 0),
        ("activation_function beside hidden_act", {"hidden_act": "gelu", "activation_function": "relu"}, 1),
        ("no max_position_embeddings", {"max_position_embeddings": None}, 0),
        ("head_dim", {"head_dim": 8, "rotary_pct": 0.5}, 1),
        ("tied, two matrices", {"tie_word_embeddings": True}, 1),
        *((act, {"hidden_act": act}, 0) for act in (
            "gelu_10", "gelu_accurate", "gelu_fast", "gelu_python", "gelu_python_tanh", "gelu_pytorch_tanh",
            "quick_gelu", "relu", "silu", "swish")),
        ("dynamic rope", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 50},
                          "rotary_emb_base": None}, 0),
        ("linear rope", {"rope_scaling": {"type": "linear", "factor": 4.0}}, 0),
        ("Infinity", {"initializer_range": float("inf")}, 0),
    ]
    folder, original = WORK / "edited", WORK / "edited_from"
    save(make_model(40, config()), original, "safetensors", torch.float32)
    plain = json.loads((original / "config.json").read_text())
    for key in ("rope_parameters", "rope_theta", "partial_rotary_factor"):
        plain.pop(key, None)
    for name, edit, lines in edits:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(original, folder)
        text = {k: v for k, v in {**plain, **base, **edit}.items() if v is not None}
        (folder / "config.json").write_text(json.dumps(text))
        write_texts(folder)
        try:
            model = GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            ids = AutoTokenizer.from_pretrained(folder)(TEXTS[0], add_special_tokens=False)["input_ids"][:CTX_LEN]
            check_logits(name, model, folder, [ids], 2e-5)
            done = subprocess.run([PROGRAM, "logits", "--model", folder, "--text", folder / "texts.jsonl", "--out",
                                   folder / "logits.npy"], capture_output=True, text=True)
            notes = done.stderr.count("dictlearn: note: ")
            report(f"{name}: {lines} notes", notes == lines and done.stderr.count("\n") == lines, done.stderr.strip())
        except Exception as e:
            report(name, False, f"{type(e).__name__}: {e}")


def pythia_70m():
    """The true shape: 6 layers of 512, vocabulary 50304, the 20B tokenizer; a dictionary of 512 x 32768."""
    name, tokenizer = "Pythia-70m's shape", SHARED / "tokenizer" / "20B_tokenizer.json"
    if not tokenizer.exists():
        skip(name, f"no {tokenizer}")
        return
    cfg = config(vocab_size=50304, hidden_size=512, num_hidden_layers=6, num_attention_heads=8, intermediate_size=2048,
                 max_position_embeddings=2048)
    folder = WORK / "pythia"
    torch.manual_seed(5)
    model = GPTNeoXForCausalLM(cfg).eval()
    save(model, folder, "safetensors", torch.float16)
    shutil.copy(tokenizer, folder / "tokenizer.json")
    write_texts(folder)
    from tokenizers import Tokenizer
    encode = Tokenizer.from_file(str(folder / "tokenizer.json")).encode
    batches = [encode(t, add_special_tokens=False).ids[:CTX_LEN] for t in TEXTS]
    check_logits(name, model, folder, batches, 2e-5)
    check_sites(name, model, folder, batches, 2e-5)
    check_eval(name, model, folder, batches, "mlp_out", 1, 2e-4, features=32768)
    run("train", "--model", folder, "--text", folder / "texts.jsonl", "--site", "mlp_out", "--layer", 0, "--save-dir",
        folder / "run", "--dict-size", 32768, "--batch-size", 64, "--warmup-steps", 2, "--n-ctxs", 8, "--quiet")
    ae = torch.load(folder / "run" / "ae.pt", weights_only=True)
    report(f"{name}: trains", tuple(ae["decoder.weight"].shape) == (512, 32768))


def main():
    torch.set_num_threads(2)
    WORK.mkdir(parents=True, exist_ok=True)
    tiny = WORK / "tiny"
    shutil.rmtree(tiny, ignore_errors=True)
    shutil.copytree(TINY, tiny)
    model = GPTNeoXForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    check("tiny-neox", tiny, model)
    small_models()
    edited_configs()
    pythia_70m()
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    return counts["failed"] != 0


if __name__ == "__main__":
    sys.exit(main())
