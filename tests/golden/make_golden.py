"""Writes tests/golden/{forward,gradients,train,evaluate}.npz: `python tests/golden/make_golden.py`.

Inputs are f32. The expected values are computed in f64 from them, so that a difference is the C code's own rounding;
the same run in f32 is made beside it, and its difference printed: what PyTorch itself would be off by. Matrices are
stored as the C code lays them out: atoms as rows, [F][d].
"""
import pathlib

import numpy as np
import torch

from reference import AutoEncoder, evaluate, sae_loss, train

assert torch.__version__.split("+")[0] == "2.13.0", f"made with torch 2.13.0, found {torch.__version__}"
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
HERE = pathlib.Path(__file__).parent
PARAMETERS = ("bias", "encoder_weight", "encoder_bias", "decoder_weight")
SNAPSHOTS = (1, 2, 10, 50)


def parameters(ae):
    return dict(zip(PARAMETERS, (ae.bias, ae.encoder.weight, ae.encoder.bias, ae.decoder.weight)))


def laid_out(name, tensor):
    """As the C code has it; f32, or the integers that they are."""
    a = tensor.detach().numpy()
    a = a.T if name == "decoder_weight" else a
    return np.ascontiguousarray(a if a.dtype == np.int64 else a.astype(np.float32))


def make_weights(rng, d, F):
    atoms = rng.standard_normal((F, d))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    weights = {
        "bias": 0.3 * rng.standard_normal(d),
        "encoder_weight": 0.6 * atoms + 0.08 * rng.standard_normal((F, d)),
        "encoder_bias": rng.uniform(-0.5, 0.2, F),
        "decoder_weight": atoms,
    }
    return {name: w.astype(np.float32) for name, w in weights.items()}


def make_rows(rng, n, d, sparse=5, atoms=40):
    """Rows with something to learn: a few of `atoms` fixed directions each, and a little noise."""
    directions = rng.standard_normal((atoms, d)) / np.sqrt(d)
    pick = rng.random((n, atoms)) < sparse / atoms
    rows = (pick * rng.uniform(0.5, 2.0, (n, atoms))) @ directions + 0.02 * rng.standard_normal((n, d))
    return rows.astype(np.float32)


def build(weights, dtype):
    F, d = weights["encoder_weight"].shape
    ae = AutoEncoder(d, F).to(dtype)
    with torch.no_grad():
        for name, p in parameters(ae).items():
            w = torch.from_numpy(weights[name])
            p.copy_(w.T if name == "decoder_weight" else w)
    return ae


def tensor(a, dtype):
    return torch.from_numpy(np.ascontiguousarray(a)).to(dtype)


def save(name, arrays):
    np.savez(HERE / name, **arrays)
    print(f"{name}: {len(arrays)} arrays, {(HERE / name).stat().st_size} bytes")


def both(run):
    """run(dtype) -> {name: array} in f64, and the largest difference of f32 from it, of each tensor's magnitude."""
    exact, rounded = run(torch.float64), run(torch.float32)
    off = max(float(np.abs(exact[k] - rounded[k]).max() / max(np.abs(exact[k]).max(), 1e-30)) for k in exact)
    return exact, off


def make_forward():
    arrays = {}
    for case, (d, F, n) in {"a": (24, 64, 33), "b": (19, 50, 40), "c": (16, 48, 1)}.items():
        rng = np.random.default_rng(100 + d)
        weights, x = make_weights(rng, d, F), make_rows(rng, n, d)
        mask = (rng.random(F) < 0.3).astype(np.int64)

        def run(dtype):
            ae, rows = build(weights, dtype), tensor(x, dtype)
            f = ae.encode(rows)
            shadow = ae.ghost(rows, torch.from_numpy(mask))
            return {k: laid_out(k, v) for k, v in {"f": f, "x_hat": ae.decode(f), "x_ghost": shadow}.items()}

        expected, off = both(run)
        print(f"forward {case}: f32 differs by {off:.1e}")
        arrays |= {f"{case}.{k}": v for k, v in ({"x": x, "mask": mask} | weights | expected).items()}
    save("forward.npz", arrays)


def make_gradients():
    """All four gradients of each loss. Row 0 is the bias itself: no feature fires, and without a target the residual is
    exactly 0. The silent features of the ghost cases hold one that fires all the same: it gets both gradients."""
    rng = np.random.default_rng(7)
    d, F, n, penalty = 19, 56, 40, 0.15
    weights = make_weights(rng, d, F)
    weights["encoder_bias"] = -np.abs(weights["encoder_bias"]) - np.float32(0.01)
    silent = np.zeros(F, np.int64)
    silent[3::11] = 9
    weights["encoder_bias"][14::11] = -3.0
    x, y = make_rows(rng, n, d), make_rows(rng, n, d)
    x[0] = weights["bias"]
    arrays = {"x": x, "y": y, "steps_since_fired": silent, "penalty": np.array([penalty])} | weights
    for loss in ("norm", "squared"):
        for sparsity in ("l1", "entropy"):
            for kind in ("plain", "target", "ghost"):

                def run(dtype):
                    ae, counter = build(weights, dtype), torch.from_numpy(silent.copy())
                    rows = tensor(x, dtype)
                    terms = sae_loss(ae, rows, tensor(y, dtype) if kind == "target" else rows, penalty, loss, sparsity,
                                     counter, 8 if kind == "ghost" else None)
                    terms["loss"].backward()
                    assert (terms["ghost"] is not None) == (kind == "ghost")
                    names = ("loss", "mse", "sparsity", "ghost", "l0")
                    figures = [float(0 if terms[k] is None else terms[k].detach()) for k in names]
                    gradients = {k: laid_out(k, p.grad) for k, p in parameters(ae).items()}
                    assert all(np.isfinite(g).all() for g in gradients.values())
                    return gradients | {"terms": np.array(figures)}

                expected, off = both(run)
                case = f"{loss}_{sparsity}_{kind}"
                print(f"gradients {case}: f32 differs by {off:.1e}")
                arrays |= {f"{case}.{k}": v for k, v in expected.items()}
    save("gradients.npz", arrays)


def drift(rng, weights, batches):
    """Features that fire in the first batches alone: 40..47 on rows moved along u, 48..51 on rows moved along v."""
    d = batches.shape[2]
    u, v = np.linalg.qr(rng.standard_normal((d, 2)))[0].T
    weights["encoder_weight"][40:48] = 0.2 * weights["encoder_weight"][40:48] + u
    weights["encoder_weight"][48:52] = 0.2 * weights["encoder_weight"][48:52] + v
    weights["encoder_bias"][40:52] = -2.0
    batches[0] += (4 * u).astype(np.float32)
    batches[1] += (4 * v).astype(np.float32)


CASES = {
    "l1": dict(lr=1e-3, penalty=0.1),
    "squared": dict(lr=2e-3, penalty=0.1, loss="squared"),
    "entropy": dict(lr=1e-3, penalty=0.3, sparsity="entropy"),
    "ghost": dict(lr=1e-3, penalty=0.1, ghost_threshold=4),
    "stretcher": dict(lr=1e-3, penalty=0.1),
    "stretcher_ghost_entropy": dict(lr=1e-3, penalty=0.2, ghost_threshold=3, sparsity="entropy"),
    "warmup": dict(lr=1e-3, penalty=0.1, warmup=20),
    "resample": dict(lr=1e-3, penalty=0.1, warmup=4, resample=10),
    "log": dict(lr=1e-3, penalty=0.1, log=1, ghost_threshold=6),
    "log_resample": dict(lr=1e-3, penalty=0.1, warmup=2, log=2, resample=8),
}


def make_train():
    arrays = {}
    for number, (case, how) in enumerate(CASES.items()):
        rng = np.random.default_rng(1000 + number)
        d, F, n = (19, 56, 32) if number % 2 else (16, 52, 32)
        weights = make_weights(rng, d, F)
        batches = make_rows(rng, 5 * n, d).reshape(5, n, d)
        targets = make_rows(rng, 5 * n, d).reshape(5, n, d) if "stretcher" in case else None
        if "resample" in case or "ghost" in str(how):
            drift(rng, weights, batches)
        order = np.array([0, 0, 0, 0, 1, 1] + [2 + i % 3 for i in range(44)])
        expected = {}

        def run(dtype):
            out = {}

            def after(step, ae, optimiser, counter):
                if step + 1 not in SNAPSHOTS:
                    return
                for name, p in parameters(ae).items():
                    for prefix, a in zip(("", "m_", "v_"), (p, *optimiser.moments(p))):
                        out[f"{step + 1}.{prefix}{name}"] = laid_out(name, a)
                out[f"{step + 1}.steps_since_fired"] = laid_out("", counter.clone())

            rows = [(tensor(batches[b], dtype), tensor((batches if targets is None else targets)[b], dtype))
                    for b in order]
            kept = train(build(weights, dtype), rows, after=after, **how)
            names = ("loss", "mse", "sparsity", "ghost", "l0", "lr")
            return out | {"terms": np.array([[t[k] for k in names] for t in kept])}

        expected, off = both(run)
        print(f"train {case}: f32 differs by {off:.1e}")
        settings = [how.get(k) for k in ("lr", "penalty", "warmup", "resample", "ghost_threshold", "log")]
        settings = [-1.0 if s is None else s for s in settings]
        settings[2] = how.get("warmup", 0)
        settings += [how.get("loss") == "squared", how.get("sparsity") == "entropy"]
        inputs = {"settings": np.array(settings, float), "order": order, "x": batches} | weights
        if targets is not None:
            inputs["y"] = targets
        arrays |= {f"{case}.{k}": v for k, v in (inputs | expected).items()}
    save("train.npz", arrays)


def make_evaluate():
    rng = np.random.default_rng(77)
    d, F, n = 19, 56, 300
    weights = make_weights(rng, d, F)
    weights["encoder_bias"][5::9] = -8.0
    weights["encoder_bias"][2::9] = -1.6
    x, y = make_rows(rng, n, d) + np.float32(0.1), make_rows(rng, n, d)
    arrays = {"x": x, "y": y} | weights
    for case, target in {"plain": x, "target": y}.items():

        def run(dtype):
            figures = evaluate(build(weights, dtype), tensor(x, dtype), tensor(target, dtype))
            return {k: v.numpy() if k == "fired" else np.array([v]) for k, v in figures.items()}

        expected, off = both(run)
        print(f"evaluate {case}: f32 differs by {off:.1e}")
        arrays |= {f"{case}.{k}": v for k, v in expected.items()}
    save("evaluate.npz", arrays)


if __name__ == "__main__":
    make_forward()
    make_gradients()
    make_train()
    make_evaluate()
