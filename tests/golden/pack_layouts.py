"""Packs dictionaries that the libraries themselves wrote, and what they compute with them, into layouts.npz.

    python3 tests/golden/pack_layouts.py [FOLDER]        (or DLRN_GOLDENS=FOLDER)

FOLDER has one folder for each dictionary: its weights and configs as the library leaves them, and the library's own
results as input*.npy, features.npy and reconstruction.npy. Rows have 16 numbers, dictionaries 32 features (a layer).
The weights are seeded random numbers, or come from a short training on seeded random rows. The files were written and
read by dictionary-learning 0.1.0, sae-lens 6.54.12, eai-sparsify 1.3.3, llamascopium 2.0.0b34, circuit-tracer 0.5.0,
decode-clt 0.0.1, overcomplete 0.3.0, latentsae 0.2.0, e2e-sae 2.1.1, openai/sparse_autoencoder@4965b94,
science-of-finetuning/dictionary_learning@173f7fa and ckkissane/crosscoder-model-diff-replication@e221e8d, with
torch 2.13.0 and numpy 2.4.6. Some publishers have no writer: gs1_*, gs2_*, llama_scope*, goodfire, deepseek_r1,
qwen_scope, mwhanna, mntss_clt, connor_rob, sl_old_* and sl_finetuned_scaling_factor are written as the readers of
SAELens and circuit-tracer expect them, and have their results.

layouts.npz has two arrays of bytes: `bytes`, all files end to end, and `index`, a line "OFFSET SIZE PATH" for each
file. Equal files are stored once; in one array, deflate sees what the others share. The results are three files a
folder, f32 and row by row: input.npy [rows, layers, d], features.npy [rows, layers, features], reconstruction.npy.
Where the library's result is not what the file means (RESTATED below says why), these hold a restatement in f64, and
the library's own are library_*.npy.
"""
import io
import json
import os
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
ARRAYS = ("input", "features", "reconstruction")
# Beside the first file of a folder: the same weights as the hub has them, and one pickled module, which is refused.
MORE = ("cc_fork_batchtopk/hub", "cc_fork_relu_mixed/hub", "oc_sae/model.pt")
LEFT_OUT = ("TRAIN_", "_", "dashboard", "metrics")


def relu(a):
    return np.maximum(a, 0)


def norms(a, axis=-1):
    return np.sqrt((a * a).sum(axis))


def largest(a, k):
    """a, but for all except the k largest of each row; of equal ones the first."""
    at = np.argsort(-a, axis=-1, kind="stable")[..., :k]
    kept = np.zeros_like(a)
    np.put_along_axis(kept, at, np.take_along_axis(a, at, -1), -1)
    return kept


def tensors(path):
    """The tensors of a .safetensors, as f64."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    out = {}
    for name, told in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + at for at in told["data_offsets"])
        if told["dtype"] == "BF16":
            a = (np.frombuffer(data[begin:end], "<u2").astype("<u4") << 16).view("<f4")
        else:
            a = np.frombuffer(data[begin:end], {"F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4"}[told["dtype"]])
        out[name] = a.reshape(told["shape"]).astype(np.float64)
    return out


# ---- Results in one order: [rows, layers, d]


def load(folder, name):
    return np.load(folder / f"{name}.npy").astype(np.float64)


def hooks(folder):
    """Llamascopium's config: the names of the layers that are read, and of those that are written."""
    config = json.loads((folder / "config.json").read_text())
    if "hook_points" in config:
        return config["hook_points"], config["hook_points"]
    if "hook_points_in" in config:
        return config["hook_points_in"], config["hook_points_out"]
    return [config["hook_point_in"]], [config["hook_point_out"]]


def llamascopium(folder):
    """One input a hook; the reconstruction of several is only there in normalised units: x sqrt(d) / average norm."""
    read, written = hooks(folder)
    x = np.stack([load(folder, "input_" + h.replace(".", "_")) for h in read], 1)
    f = load(folder, "features")
    if len(read) == 1:
        return x[:, 0], f, load(folder, "reconstruction")
    w = tensors(folder / "sae_weights.safetensors")
    average = np.array([w["dataset_average_activation_norm." + h] for h in written]).reshape(-1)
    y = load(folder, "reconstruction_normalized")
    if "hook_points_in" in json.loads((folder / "config.json").read_text()):
        y = y.transpose(1, 0, 2)
    return x, f, y * average[:, None] / np.sqrt(x.shape[-1])


def results(folder):
    name = folder.name
    if not (folder / "input.npy").exists():
        return llamascopium(folder) if name.startswith("lc_") else (None, None, None)
    found = [load(folder, array) for array in ARRAYS]
    if name.startswith(("ct_clt", "gs2_clt", "clt_")):  # they have the layers first
        return [a.transpose(1, 0, 2) for a in found]
    if found[0].ndim == 3 and name.startswith("sl_temporal"):  # one sequence
        return [a[0] for a in found]
    return found


# ---- What the file means, where the library computes something else


def gate_of_llama_scope(folder, x, f, y):
    """SAELens compares p with the threshold, not p times the norm of the atom, which is what was trained."""
    (weights,), (config,) = folder.glob("*/checkpoints/final.safetensors"), folder.glob("*/hyperparams.json")
    w, c = tensors(weights), json.loads(config.read_text())
    s = np.sqrt(c["d_model"]) / c["dataset_average_activation_norm"]["in"]
    p = s * x @ w["encoder.weight"].T + w["encoder.bias"]
    f = relu(p) * (p * norms(w["decoder.weight"], 0) > c["jump_relu_threshold"] * s)
    return x, f, (f @ w["decoder.weight"].T + w["decoder.bias"]) / s


def one_layer_of_a_clt(folder, x, f, y):
    """SAELens adds up the decoders to all later layers. One layer alone writes each of them."""
    w = tensors(folder / "W_enc_1.safetensors") | tensors(folder / "W_dec_1.safetensors")
    f = relu(x @ w["W_enc_1"].T + w["b_enc_1"])
    y = np.einsum("nf,ftd->ntd", f, w["W_dec_1"])
    y[:, 0] += w["b_dec_1"]
    return x, f, y


def unfolded_threshold(folder, x, f, y):
    """The arrays are those of fold_activation_scale=True, which forgets the threshold; the file is lc_jumprelu's."""
    w = tensors(folder / "sae_weights.safetensors")
    (hook,), _ = hooks(folder)
    s = np.sqrt(x.shape[-1]) / w["dataset_average_activation_norm." + hook]
    p, n = s * x @ w["W_E"] + w["b_E"], norms(w["W_D"])
    f = p * (p * n > np.exp(w["activation_function.log_jumprelu_threshold"]))
    return x, f, (f @ w["W_D"] + w["b_D"]) / s


def finetuned(folder, x, f, y):
    """Today's SAELens refuses the file; releases 2 to 5 multiplied f with the factor before the decoder."""
    w = tensors(folder / "sae_weights.safetensors")
    x = load(folder.parent / "sl_standard", "input")
    f = relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    return x, f, f * w["scaling_factor"] @ w["W_dec"] + w["b_dec"]


def bf16_in_exact_arithmetic(folder, x, f, y):
    """The library rounds each result to bf16, and so chooses other features; here only the weights are rounded."""
    w, k = tensors(folder / "sae.safetensors"), json.loads((folder / "cfg.json").read_text())["k"]
    f = largest(relu((x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]), k)
    return x, f, f @ w["W_dec"] + w["b_dec"]


RESTATED = {
    "llama_scope": gate_of_llama_scope,
    "mntss_clt": one_layer_of_a_clt,
    "lc_jumprelu_folded": unfolded_threshold,
    "sl_finetuned_scaling_factor": finetuned,
    "sp_topk_bf16": bf16_in_exact_arithmetic,
}


# ---- The pack


def npy(array):
    out = io.BytesIO()
    np.save(out, np.ascontiguousarray(array, np.float32))
    return out.getvalue()


def expected(folder):
    """The bytes of the .npy files of a folder, by name."""
    found = results(folder)
    if folder.name not in RESTATED:
        return {f"{name}.npy": npy(a) for name, a in zip(ARRAYS, found)}
    exact = RESTATED[folder.name](folder, *found)
    out = {f"{name}.npy": npy(a) for name, a in zip(ARRAYS, exact)}
    return out | {f"library_{name}.npy": npy(a) for name, a in zip(ARRAYS[1:], found[1:]) if a is not None}


def is_packed(path):
    """Whether a file of a folder is a part of the dictionary: not its results, not a second copy of the weights."""
    name = path.as_posix()
    if any(name.startswith(more) for more in MORE):
        return True
    return path.suffix != ".npy" and path.name not in ("README.md", "model.pt") and path.parts[1] not in (
        "hub", "checkpoints")


def collect(root):
    """{"folder/path": bytes} of all dictionaries of a folder."""
    out = {}
    for folder in sorted(pathlib.Path(root).iterdir()):
        if not folder.is_dir() or folder.name.startswith(LEFT_OUT):
            continue
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(root)
            if path.is_file() and is_packed(name):
                out[name.as_posix()] = path.read_bytes()
        out |= {f"{folder.name}/{name}": data for name, data in expected(folder).items()}
    return out


def unpack(path=HERE / "layouts.npz"):
    """What collect returned, from the packed file."""
    with np.load(path) as z:
        data, index = z["bytes"].tobytes(), z["index"].tobytes().decode()
    entries = (line.split(" ", 2) for line in index.splitlines())
    return {name: data[int(at) : int(at) + int(size)] for at, size, name in entries}


def write(files, path=HERE / "layouts.npz"):
    """Weights first, and files of a kind together: deflate looks back 32 KB."""
    order = sorted(files, key=lambda name: name.rsplit("/", 1)[1] if name.endswith(".npy") else "")
    data, seen, index = bytearray(), {}, []
    for name in order:
        if files[name] not in seen:
            seen[files[name]] = len(data)
            data += files[name]
        index.append(f"{seen[files[name]]} {len(files[name])} {name}\n")
    arrays = {"bytes": bytes(data), "index": "".join(sorted(index, key=lambda line: line.split(" ", 2)[2])).encode()}
    np.savez_compressed(path, **{name: np.frombuffer(a, np.uint8) for name, a in arrays.items()})


if __name__ == "__main__":
    packed = collect(sys.argv[1] if len(sys.argv) > 1 else os.environ["DLRN_GOLDENS"])
    write(packed)
    assert unpack() == packed
    print(f"{len({name.split('/')[0] for name in packed})} folders, {len(packed)} files, "
          f"{(HERE / 'layouts.npz').stat().st_size} bytes")
