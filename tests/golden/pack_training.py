"""Packs training traces (folders TRAIN_*, each with trace.npz: data, init.*, after{n}.*, losses) into this library's
layout, one atom a row and under the names of roles; traces.txt says which are what.

    python3 tests/golden/pack_training.py FOLDER_OF_TRACES            training.npz: those with pack=N, N steps of them
    python3 tests/golden/pack_training.py FOLDER_OF_TRACES OUT.npz    all of them, whole

Where a trainer scales rows, they are packed as they were, with the scales of x and y. Rows that it normalises or
whitens are packed as its loss sees them. Rows that several traces share are packed once."""
import json
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
CHECKED = (1, 2, 5, 10, 20, 40)  # the traces have the parameters after so many steps
CHECKED_IN_PACK = (1, 10, 40)


def read_table():
    """The traces as dicts of words, with `recipe` and `why`; and the names of tensors."""
    traces, names, prefixes = {}, {}, []
    for line in (HERE / "traces.txt").read_text().splitlines():
        line, _, why = line.partition("#")
        head, *words = line.split() or [""]
        pairs = [word.partition("=")[::2] for word in words]
        if head == "names":
            names[words[0]] = [(theirs, *ours.split(":")) for theirs, ours in pairs[1:]]
        elif head.endswith("*"):
            prefixes.append((head[:-1], dict(pairs)))
        elif head:
            traces[head] = {"recipe": words[0], "why": why.strip()}
            for prefix, given in [*prefixes, (head, dict(pairs[1:]))]:
                traces[head] |= given if head.startswith(prefix) else {}
    return traces, names


def rows_of(folder, z):
    """x and y [steps][rows][..], and what a trainer multiplies them with; y is None where x is the target."""
    if "data" in z:
        x, y = z["data"], z.get("target")
        scale = z["scaling_factor"].item() if "scaling_factor" in z else 1
        if "whiten.mean" in z:
            x = (x - z["whiten.mean"]) @ z["whiten.matrix"]
        if not np.isnan(z.get("init.activation_mean", np.nan)).any():
            variance = (z["init.activation_std"] ** 2).sum(-1, keepdims=True)
            x = (x - z["init.activation_mean"]) * (z["init.target_rms"] / np.sqrt(variance + np.float32(1e-8)))
        return x, y, scale, scale
    config = json.loads((folder / "config.json").read_text())
    cfg, norms = config["cfg"], config["dataset_average_activation_norm"]

    def stack(hooks):
        assert len({norms[h] for h in hooks}) == 1, "layers differ in scale"
        return np.concatenate([z["data." + h] for h in hooks], axis=-1), np.sqrt(cfg["d_model"]) / norms[hooks[0]]

    x_hooks, y_hooks = cfg.get("hook_points_in") or [cfg["hook_point_in"]], cfg.get("hook_points_out")
    y_hooks = y_hooks or [cfg["hook_point_out"]]
    (x, by_x), (y, by_y) = stack(x_hooks), stack(y_hooks)
    return x, y if x_hooks != y_hooks else None, by_x, by_y


def by_feature(a, shape):
    """F first, the other axes as they follow."""
    a = np.asarray(a, np.float32)
    if "F" not in shape or shape == "F":
        return a if shape == "DD" else a.reshape(-1)
    return np.moveaxis(a, shape.index("F"), 0).reshape(a.shape[shape.index("F")], -1)


def of_layer(z, name, layer, layers):
    """A tensor of one layer of a cross-layer transcoder, in the shape that names say; None: it is of them all."""
    if name == "b_D":
        return None
    if name == "W_D":
        return np.concatenate([z(f"W_D.{to}")[layer] for to in range(layer, layers)], axis=1)
    return z(name)[layer]


def parameters(z, prefix, names):
    """By role; in a cross-layer transcoder by layer and role."""
    out = {}

    def get(name):
        return z[prefix + name]

    if prefix + "W_D.0" in z:
        layers = len(get("W_E"))
        for theirs, role, shape in names:
            for layer in range(layers):
                a = of_layer(get, theirs, layer, layers)
                if a is not None:
                    out[f"{layer}.{role}"] = by_feature(np.exp(a) if "log_" in theirs else a, shape)
        out["bias"] = np.concatenate([get(f"b_D.{to}") for to in range(layers)]).astype(np.float32)
        return out
    for theirs, role, shape in names:
        out[role] = by_feature(np.exp(get(theirs)) if "log_" in theirs else get(theirs), shape)
    for theirs in ("threshold", "topk_threshold"):  # one for all features
        if prefix + theirs in z and z[prefix + theirs].size == 1:
            out["one_threshold"] = z[prefix + theirs].astype(np.float32).reshape(1)
    return out


def start_of(z, names):
    """Before the first step. sparsify's init.* come after what its first batch sets, which is ours to compute; the
    biases that make some features dead were set after it."""
    start = parameters(z, "init.", names)
    if "created.W_dec" in z:
        created = parameters(z, "created.", names)
        start |= {r: a for r, a in created.items() if r != "encoder_bias" or "target" in z}
    return start


def columns_of(z, library, has_k):
    """Per step: the loss that was minimised, the rate, and k where there is one."""
    log = z.get("log", z.get("losses"))
    out = {"loss": z["loss"] if "loss" in z else log[:, 0], "lr": z["lr"] if "lr" in z else log[:, 5]}
    if not has_k:
        return out
    if library == "dlhead":
        out["k"] = np.concatenate([z["init.k"].reshape(1), log[:-1, 5]])
    elif library in ("sp", "lc"):
        out["k"] = log[:, 5]
    elif "init.k" in z and library == "cc":
        out["k"] = log[:, 2]
    return out


def pack(out, data, name, trace, names, folder, pack_only):
    z = dict(np.load(folder / "trace.npz"))
    steps = min(int(trace.get("upto", 40)), int(trace["pack"]) if pack_only else 40)
    ours = names[trace["names"]]

    def share(a):
        """The number of these rows among all rows that are packed."""
        key = a.tobytes()
        data.setdefault(key, len(data))
        out[f"rows.{data[key]}"] = a
        return np.array([data[key]], np.float32)

    x, y, by_x, by_y = rows_of(folder, z)
    if by_x != 1 or by_y != 1:
        out[f"{name}.scales"] = np.array([by_x, by_y], np.float32)
    for label, a in (("x", x), ("y", y)):
        if a is not None:
            rows = a[:steps].reshape(steps, a.shape[1], -1)
            out[f"{name}.{label}"] = share(np.ascontiguousarray(rows, np.float32))
    for label, a in columns_of(z, name.split("_")[0], "k" in trace).items():
        out[f"{name}.{label}"] = a[:steps].astype(np.float32)
    checked = [n for n in (CHECKED_IN_PACK if pack_only else CHECKED) if n <= steps]
    init = parameters(z, "init.", ours)
    sets = {"start": start_of(z, ours)} | {str(n): parameters(z, f"after{n}.", ours) for n in checked}
    if "saved.W_dec" in z and steps == 40:
        sets["finish"] = parameters(z, "saved.", ours)
    for label, of in sets.items():
        for role, a in of.items():
            out[f"{name}.{label}.{role}"] = np.ascontiguousarray(a)
    for role, a in sets[str(checked[-1])].items():
        out[f"{name}.moved.{role}"] = np.abs(a - init[role]).max().reshape(1)


def pack_all(folder, path, pack_only):
    traces, names = read_table()
    folder, out, data = pathlib.Path(folder), {}, {}
    found = {f.name.removeprefix("TRAIN_") for f in folder.glob("TRAIN_*")}
    assert found == set(traces), f"traces.txt: expected the folders' names, differs in {found ^ set(traces)}"
    for name, trace in traces.items():
        if trace["recipe"] != "-" and ("pack" in trace or not pack_only):
            pack(out, data, name, trace, names, folder / f"TRAIN_{name}", pack_only)
    np.savez_compressed(path, **out)


if __name__ == "__main__":
    whole = len(sys.argv) > 2
    pack_all(sys.argv[1], sys.argv[2] if whole else HERE / "training.npz", not whole)
