"""libraries.py BUILD - dictionaries between BUILD/dictlearn and the libraries that have them: each class that a library
saves is read, and converted for every library; what is written is opened by that library's own loader, whose features
and reconstructions are compared with ours, saved again by it, and read back. Prints a table of what was written for
whom, and what was refused and why. Closes with `N passed, N failed`.
"""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types
import warnings

import numpy as np

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")
import sae_lens  # noqa: E402
import torch  # noqa: E402

torch.set_grad_enabled(False)
torch.cuda.is_bf16_supported = lambda *args, **words: False  # sparsify asks it when it is imported
# dictionary_learning 0.1.0 imports these for its buffers and texts; its classes and its loader use none of them
for name, member in (("nnsight", "LanguageModel"), ("zstandard", "ZstdDecompressor")):
    sys.modules[name] = types.ModuleType(name)
    setattr(sys.modules[name], member, object)

import dictionary_learning.dictionary as dl  # noqa: E402
from circuit_tracer.transcoder import cross_layer_transcoder as sets  # noqa: E402
from circuit_tracer.transcoder import single_layer_transcoder as tracer  # noqa: E402
from circuit_tracer.transcoder.activation_functions import JumpReLU  # noqa: E402
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE  # noqa: E402
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE  # noqa: E402
from dictionary_learning.trainers.top_k import AutoEncoderTopK  # noqa: E402
from dictionary_learning.utils import load_dictionary  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from sae_lens.loading import pretrained_sae_loaders as loaders  # noqa: E402
from sparsify import SparseCoder, SparseCoderConfig  # noqa: E402

BUILD = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build")
HERE = BUILD / "tmp" / "libraries"
D, F, ROWS, K, NARROW, LAYERS = 24, 40, 33, 5, 16, 3
LIMIT = 3e-6  # of the largest number of an array
X = np.random.default_rng(2).standard_normal((ROWS, D)).astype(np.float32)
X_OF_LAYERS = np.random.default_rng(3).standard_normal((ROWS, LAYERS, D)).astype(np.float32)
TARGETS = ["dictionary_learning", "saelens", "sparsify", "circuit-tracer", "gemma_scope", "gemma_scope_2"]
passed, failed = 0, 0


def check(condition, what):
    global passed, failed
    passed, failed = passed + bool(condition), failed + (not condition)
    if not condition:
        print(f"FAIL: {what}")


def run(*args):
    """The program's status, and its line on standard error."""
    done = subprocess.run([BUILD / "dictlearn", *map(str, args)], capture_output=True)
    return done.returncode, done.stderr.decode().strip()


def ours(path, *flags):
    """Features and reconstruction by the program; None after an error, which counts as a failure."""
    rows = "layers.npy" if any(kind in str(path).replace("_", " ") for kind in (" clt", " cc-")) else "x.npy"
    for command, out in (("encode", "f.npy"), ("reconstruct", "y.npy")):
        status, error = run(command, "--dict", path, "--data", HERE / rows, "--out", HERE / out, *flags)
        check(status == 0, f"{command} of {path}: {error}")
        if status:
            return None
    return np.load(HERE / "f.npy").reshape(ROWS, -1), np.load(HERE / "y.npy").reshape(ROWS, -1)


def distance(found, wanted):
    """The largest difference, of the largest number; infinite if there is no such array."""
    if found is None or found[0].shape != wanted[0].shape or found[1].shape != wanted[1].shape:
        return np.inf
    return max(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30) for a, b in zip(found, wanted))


def fill(module, unit=True):
    """Random numbers in all parameters: atoms of norm 1 (unit), thresholds from 0.1 on, small biases."""
    generator = torch.Generator().manual_seed(3)
    for name, p in module.named_parameters():
        p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if p.ndim < 2 else 1 / D**0.5))
        if "threshold" in name:
            p.abs_().add_(0.1)
    for name, p in module.named_parameters():
        if unit and name in ("W_dec", "decoder.weight"):
            p.div_(p.norm(dim=1 if name == "W_dec" else 0, keepdim=True))
    return module.float()


def numbers(features, reconstruction):
    return features.detach().float().numpy(), reconstruction.detach().float().numpy()


# ---- Each library: how its classes are made and saved, and how it opens a folder


def dl_save(folder, ae, name=None, **words):
    folder.mkdir(parents=True)
    torch.save(ae.state_dict(), folder / "ae.pt")
    trainer = {"dict_class": name or type(ae).__name__, "activation_dim": D, "dict_size": F, **words}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer}))


def dl_open(folder):
    ae, config = load_dictionary(str(folder), "cpu")
    again = folder.parent / (folder.name + ".again")
    if isinstance(ae, dl.AutoEncoder):  # its default is to scale features by their atoms' norms
        ae = dl.AutoEncoder.from_pretrained(folder / "ae.pt", normalize_decoder=False)
    shutil.rmtree(again, ignore_errors=True)
    dl_save(again, ae, config["trainer"]["dict_class"], k=config["trainer"].get("k"))
    return type(ae).__name__, numbers(ae.encode(torch.tensor(X)), ae(torch.tensor(X))), again


def sl_make(architecture, d_out=None, **words):
    cls, config = sae_lens.registry.get_sae_class(architecture)
    words = {"d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu", **words}
    if d_out:
        words.update(d_out=d_out, apply_b_dec_to_input=False)
    return fill(cls(config(**words)), unit=False)


def sl_numbers(sae):
    return numbers(sae.encode(torch.tensor(X)), sae(torch.tensor(X)))


def sl_save(folder, sae):
    folder.mkdir(parents=True)
    sae.save_model(folder)


def sl_open(folder):
    sae = sae_lens.SAE.load_from_disk(folder)
    again = folder.parent / (folder.name + ".again")
    shutil.rmtree(again, ignore_errors=True)
    sl_save(again, sae)
    return sae.cfg.architecture(), sl_numbers(sae), again


def sp_make(**words):
    return fill(SparseCoder(D, SparseCoderConfig(num_latents=F, k=K, **words)), unit=False)


def sp_numbers(sae):
    top = sae.encode(torch.tensor(X))
    f = torch.zeros(ROWS, F).scatter_(1, top.top_indices, top.top_acts)
    return numbers(f, sae(torch.tensor(X)).sae_out)


def sp_open(folder):
    sae = SparseCoder.load_from_disk(folder)
    again = folder.parent / (folder.name + ".again")
    sae.save_to_disk(again)
    return sae.cfg.activation + (" transcode" if sae.cfg.transcode else ""), sp_numbers(sae), again


def ct_make(jumps, skip, negative=False):
    act = JumpReLU(torch.zeros(F), 0.1) if jumps else torch.nn.functional.relu
    made = tracer.SingleLayerTranscoder(D, F, act, 0, skip, device=torch.device("cpu"), dtype=torch.float32)
    fill(made, unit=False)
    if negative:
        made.activation_function.threshold.neg_()
    return made


def ct_numbers(t):
    return numbers(t.encode(torch.tensor(X)), t(torch.tensor(X)))


def clt_make(jumps, negative=False):
    made = sets.CrossLayerTranscoder(LAYERS, F, D, activation_function="jump_relu" if jumps else "relu",
                                     lazy_decoder=False, device=torch.device("cpu"), dtype=torch.float32)
    fill(made, unit=False)
    if negative:
        made.activation_function.threshold.neg_()
    return made


def clt_numbers(t):
    """Its rows are by layer; ours hold the layers one after another."""
    f = t.encode(torch.tensor(X_OF_LAYERS).transpose(0, 1))
    y = t.decode(f.to_sparse())
    return numbers(f.transpose(0, 1).reshape(ROWS, -1), y.transpose(0, 1).reshape(ROWS, -1))


def clt_open(folder):
    t = sets.load_clt(str(folder), device=torch.device("cpu"), dtype=torch.float32, lazy_decoder=False)
    again = folder.parent / (folder.name + ".again")
    t.to_safetensors(str(again))
    assert "cross_layer_transcoder" in (folder / "config.yaml").read_text()
    kind = "jumprelu" if isinstance(t.activation_function, JumpReLU) else "relu"
    return f"cross-layer {kind}", clt_numbers(t), again


def ct_open(folder):
    if (folder / "W_enc_0.safetensors").exists():
        return clt_open(folder)
    one = tracer.load_transcoder_set({0: str(folder / "layer_0.safetensors")}, "", "", "", torch.device("cpu"))[0]
    again = folder.parent / (folder.name + ".again")
    again.mkdir(exist_ok=True)
    lazy = tracer.load_relu_transcoder(str(folder / "layer_0.safetensors"), 0, torch.device("cpu"), lazy_encoder=False,
                                       lazy_decoder=False)
    lazy.to_safetensors(str(again / "layer_0.safetensors"))
    assert "transcoder_set" in (folder / "config.yaml").read_text()
    return "jumprelu" if isinstance(one.activation_function, JumpReLU) else "relu", ct_numbers(one), again


def gemma_open(folder, weights, loader, tracers, repository, place):
    """By SAELens' loader of the hub, with the local folder in the hub's place; and by circuit-tracer's where it can."""
    path = str(folder / weights)
    loaders.hf_hub_download = lambda *args, filename=None, **words: str(
        folder / pathlib.Path(filename or args[1]).name)
    tensors = np.load(path) if weights.endswith(".npz") else {k: v.numpy() for k, v in load_file(path).items()}
    (d_in, d_sae), d_out = tensors[[k for k in tensors if k.lower() == "w_enc"][0]].shape, tensors["b_dec"].shape[0]
    loaders.get_safetensors_tensor_shapes = lambda *args, **words: {k: list(t.shape) for k, t in tensors.items()}
    config, state, _ = loader(repository, place, "cpu", cfg_overrides={"d_in": d_in, "d_sae": d_sae, "device": "cpu"})
    if "transcoder" in config["architecture"]:
        config["d_out"] = d_out
    config = loaders.handle_config_defaulting(config)
    cls, cfg = sae_lens.registry.get_sae_class(config["architecture"])
    sae = cls(cfg.from_dict(config))
    sae.process_state_dict_for_loading(state)
    sae.load_state_dict(state)
    found = sl_numbers(sae)
    if d_in == d_out:
        check(distance(ct_numbers(tracers(path, 0, torch.device("cpu"), lazy_encoder=False, lazy_decoder=False)),
                       found) <= LIMIT, f"{folder}: circuit-tracer's numbers")
    return config["architecture"], found, None


def gemma_1_open(folder):
    kind = "transcoder" if np.load(folder / "params.npz")["b_dec"].shape[0] != D else "sae"
    loader = loaders.gemma_2_transcoder_huggingface_loader if kind != "sae" else loaders.gemma_2_sae_huggingface_loader
    return gemma_open(folder, "params.npz", loader, tracer.load_gemma_scope_transcoder,
                      "google/gemma-scope-2b-pt-" + ("res" if kind == "sae" else "transcoders"),
                      "layer_3/width_16k/average_l0_20")


def gemma_2_open(folder):
    t = load_file(folder / "params.safetensors")
    place = "resid_post" if t["b_dec"].shape[0] == D and "affine_skip_connection" not in t else "transcoder"
    return gemma_open(folder, "params.safetensors", loaders.gemma_3_sae_huggingface_loader,
                      tracer.load_gemma_scope_2_transcoder, "google/gemma-scope-2-270m-pt",
                      place + "/layer_3_width_16k_l0_small" + ("_affine" if "affine_skip_connection" in t else ""))


OPEN = dict(zip(TARGETS, (dl_open, sl_open, sp_open, ct_open, gemma_1_open, gemma_2_open)))

# ---- Dictionaries, as their libraries save them; with the words with which some libraries refuse them

SOURCES = []  # name, folder, numbers by the library or None, flags


def source(name, save, found, *flags):
    folder = HERE / "from" / name.replace(" ", "_")
    save(folder)
    SOURCES.append((name, folder, found, flags))


def make_dl():
    for cls, words in ((dl.AutoEncoder, {}), (dl.AutoEncoderNew, {}), (dl.GatedAutoEncoder, {}),
                       (dl.JumpReluAutoEncoder, {}), (AutoEncoderTopK, {"k": K}), (BatchTopKSAE, {"k": K}),
                       (MatryoshkaBatchTopKSAE, {"k": K, "group_sizes": [10, 30]})):
        ae = fill(cls(D, F, **words))
        if hasattr(ae, "threshold") and ae.threshold.ndim == 0:
            ae.threshold.fill_(0.3)
        found = numbers(ae.encode(torch.tensor(X)), ae(torch.tensor(X)))
        source(f"dictionary_learning {cls.__name__}", lambda to: dl_save(to, ae, k=words.get("k")), found)


def make_sl():
    for name, words in (("standard", {}), ("standard", {"apply_b_dec_to_input": False}),
                        ("standard", {"normalize_activations": "constant_norm_rescale"}),
                        ("topk", {"k": K, "normalize_activations": "layer_norm"}), ("topk", {"k": K}),
                        ("topk", {"k": K, "rescale_acts_by_decoder_norm": True}), ("abstopk", {"k": K}),
                        ("gated", {}), ("jumprelu", {}), ("jumprelu", {"apply_b_dec_to_input": False}),
                        ("matching_pursuit", {"max_iterations": 6}), ("matching_pursuit", {}),
                        ("transcoder", {"d_out": NARROW}), ("skip_transcoder", {"d_out": D}),
                        ("jumprelu_transcoder", {"d_out": NARROW}), ("jumprelu_skip_transcoder", {"d_out": D}),
                        ("jumprelu_skip_transcoder", {"d_out": NARROW})):
        sae = sl_make(name, **words)
        if name == "matching_pursuit":
            sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
        label = " ".join(["saelens", name, *(f"{k}={v}" for k, v in words.items() if k != "k")])
        source(label, lambda to: sl_save(to, sae), sl_numbers(sae))


def make_sp():
    for label, words in (("topk", {}), ("groupmax", {"activation": "groupmax"}), ("transcoder", {"transcode": True}),
                         ("skip", {"transcode": True, "skip_connection": True}),
                         ("centered skip", {"skip_connection": True})):
        sae = sp_make(**words)
        source(f"sparsify {label}", sae.save_to_disk, sp_numbers(sae))


def make_ct():
    for label, t in (("relu", ct_make(False, False)), ("relu skip", ct_make(False, True)),
                     ("jumprelu", ct_make(True, False)), ("jumprelu skip", ct_make(True, True)),
                     ("negative thresholds", ct_make(True, False, True))):
        def save(to):
            to.mkdir(parents=True)
            t.to_safetensors(str(to / "layer_0.safetensors"))
        source(f"circuit-tracer {label}", save, ct_numbers(t))
    for label, clt in (("clt relu", clt_make(False)), ("clt jumprelu", clt_make(True)),
                       ("clt negative thresholds", clt_make(True, True))):
        source(f"circuit-tracer {label}", lambda to: clt.to_safetensors(str(to)), clt_numbers(clt))


def make_ours():
    """Trained here, for a few steps; and one with scales, which no file here but ours can state."""
    for recipe in ("reference", "dl-top_k", "dl-jump_relu"):
        to = HERE / "from" / f"dictlearn_{recipe}"
        k = ["--k", K] if recipe == "dl-top_k" else []
        status, error = run("train", "--data", HERE / "x.npy", "--recipe", recipe, "--dict-size", F, "--batch-size", 8,
                            "--steps", 4, "--save-dir", to, "--lr", "1e-2", *k)
        check(status == 0, f"train {recipe}: {error}")
        SOURCES.append((f"dictlearn {recipe}", to, None, ()))
    SOURCES.append(("dictlearn reference --norm-scale", HERE / "from" / "dictlearn_reference", None,
                    ("--norm-scale", 1.7)))


# ---- Each source to each library

# What a library cannot express, in the words of the error
REFUSED = [f"has no place for {what}" for what in ("selection", "gate", "normaliser", "family", "parameter", "a d_out",
                                                   "this CrossLayerTranscoder")]


def expected(name, target):
    """Whether a library has the function of a source."""
    if " clt" in name:
        return target == "circuit-tracer"
    topk = any(word in name for word in ("saelens topk", "AutoEncoderTopK", "dl-top_k", "sparsify"))
    if "norm_rescale" in name or "layer_norm" in name or "matching_pursuit" in name or "abstopk" in name:
        return target == "saelens"
    if "groupmax" in name:
        return target == "sparsify"
    if "negative" in name:
        return target == "circuit-tracer"
    if topk:
        return target == "sparsify" or "skip" not in name and target in ("dictionary_learning", "saelens")
    if target == "sparsify":
        return False
    if "ated" in name.split()[1]:
        return target in ("dictionary_learning", "saelens")
    if f"d_out={NARROW}" in name and target in ("dictionary_learning", "circuit-tracer"):
        return False
    if "skip" in name:
        return target in ("saelens", "circuit-tracer", "gemma_scope_2")
    return True


def convert(name, folder, flags, wanted, target):
    to = HERE / "to" / f"{folder.name}{'.scaled' if flags else ''}.{target}"
    status, said = run("convert", folder, to, "--layout", target, *flags)
    if not expected(name, target):
        check(status == 1 and any(words in said for words in REFUSED) and not to.exists(),
              f"{name} for {target}: expected a refusal, found status {status}: {said}")
        return f"refused: {said.split('not written: ')[-1]}"
    check(status == 0, f"{name} for {target}: {said}")
    if status:
        return "FAILED"
    try:
        opened, found, again = OPEN[target](to)
    except Exception as error:
        check(False, f"{name}: {target} does not open {to}: {type(error).__name__}: {error}")
        return "NOT OPENED"
    theirs, back = distance(found, wanted), distance(ours(to), wanted)
    check(theirs <= LIMIT, f"{name} for {target}: its numbers are off by {theirs:.3g}")
    check(back <= LIMIT, f"{name} for {target}: read back, ours are off by {back:.3g}")
    if again:
        a, b = ours(again), ours(to)
        check(a is not None and b is not None and np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]),
              f"{name} for {target}: saved again by the library, and read")
    return f"{opened}: {theirs:.1e}" + ("  " + said.split("numbers: ")[-1] if said else "")


# ---- What `train` writes for each recipe's own library


def train(recipe):
    """A run of a few steps; its folder."""
    name, uses = recipe["name"], recipe["uses"]
    to = HERE / "runs" / f"run_{name}"
    rows = HERE / ("layers.npy" if name.startswith(("cc-", "clt-")) else "x.npy")
    k = ["--k", K] if "k" in uses else []
    starts = ["--threshold-start-step", 2] if "threshold_start_step" in uses else []
    size = F * LAYERS if name.startswith("clt-") else F
    status, error = run("train", "--quiet", "--data", rows, "--recipe", name, "--dict-size", size, "--batch-size", 8,
                        "--epochs", 9, "--steps", 9, "--warmup-steps", 2, "--save-dir", to, "--lr", "1e-2", *k, *starts)
    check(status == 0, f"train {name}: {error}")
    return to if status == 0 else None


def opens(name, target, folder, path):
    """Whether a library opens its files of a run; path: what the program reads of them."""
    wanted = ours(path)
    if wanted is None:
        return "NOT READ"
    try:
        opened, found, _ = OPEN[target](folder)
    except Exception as error:
        check(False, f"{name}: {target} does not open {folder}: {type(error).__name__}: {error}")
        return "NOT OPENED"
    off = distance(found, wanted)
    check(off <= LIMIT, f"{name} for {target}: its numbers are off by {off:.3g}")
    return f"{opened}: {off:.1e}"


def recipes():
    listed = subprocess.run([BUILD / "dictlearn", "train", "--recipe", "list", "--json"], capture_output=True)
    for recipe in json.loads(listed.stdout):
        name, library, to = recipe["name"], recipe["library"], train(recipe)
        if to is None:
            continue
        print(f"run of {name}:")
        weights = {"saelens": "sae_weights.safetensors", "sparsify": "sae.safetensors"}
        if library in weights:
            print(f"    {library:20} {opens(name, library, to, to / weights[library])}")
        if library == "circuit-tracer":
            print(f"    {library:20} {opens(name, library, to / library, to / library)}")
        if (to / "ae.pt").exists() and not name.startswith(("cc-", "clt-")):
            print(f"    {'dictionary_learning':20} {opens(name, 'dictionary_learning', to, to)}")
        if library not in OPEN:  # not installed here: its files are read back
            path = to / library if (to / library).exists() else to / "cc_weights.pt"
            wanted, found = ours(to), ours(path)
            off = distance(found and found[1:] * 2, wanted[1:] * 2) if wanted else np.inf
            check(off <= LIMIT, f"{name} for {library}: read back, the reconstruction is off by {off:.3g}")
            print(f"    {library:20} read back: {off:.1e}")


def main():
    shutil.rmtree(HERE, ignore_errors=True)
    (HERE / "to").mkdir(parents=True)
    np.save(HERE / "x.npy", X)
    np.save(HERE / "layers.npy", X_OF_LAYERS)
    for make in (make_dl, make_sl, make_sp, make_ct, make_ours):
        make()
    for name, folder, found, flags in SOURCES:
        wanted = ours(folder, *flags)
        if wanted is None:
            continue
        off = 0.0 if found is None else distance(wanted, found)
        check(off <= LIMIT, f"{name}: read, ours are off by {off:.3g}")
        print(f"{name}: read, {off:.1e}" if found else f"{name}:")
        for target in TARGETS:
            print(f"    {target:20} {convert(name, folder, flags, wanted, target)}")
    recipes()
    print(f"{passed} passed, {failed} failed")
    return failed > 0


sys.exit(main())
