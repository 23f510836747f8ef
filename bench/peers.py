"""peers.py - the same work by others: PyTorch's training step as the reference has it (tests/golden/reference.py), its
products (MKL), OpenBLAS's and NumPy's, transformers' model.

    peers.py                     answers questions (answers.py)
    peers.py --rss ROWS:F        peak memory of training steps beyond weights, moments and the batch
"""
import ctypes
import importlib.metadata
import json
import os
import pathlib
import sys

for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(name, None)

import numpy as np  # noqa: E402
import scipy_openblas64  # noqa: E402
import threadpoolctl  # noqa: E402
import torch  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests" / "golden"))
from answers import best, peak_bytes, serve  # noqa: E402
from reference import AutoEncoder, ConstrainedAdam, sae_loss  # noqa: E402

D = 512
LIBRARY = pathlib.Path(scipy_openblas64.get_lib_dir())
OPENBLAS = ctypes.CDLL(str(next(p for p in LIBRARY.iterdir() if p.name.startswith("libscipy_openblas64_"))))


# ---- training
def stepper(rows, features, l0=100.0):
    """Weights and rows of bench.c: pre-activations are normal; the bias lets l0 of them through."""
    torch.manual_seed(0)
    ae = AutoEncoder(D, features)
    if l0:
        with torch.no_grad():
            ae.encoder.weight.normal_(0, D**-0.5)
            ae.encoder.bias.fill_(-2**0.5 * float(torch.erfinv(torch.tensor(1 - 2 * l0 / features))))
    x = torch.randn(rows, D)
    optimiser = ConstrainedAdam(ae, 1e-12)

    def step():
        for p in ae.parameters():
            p.grad = None
        sae_loss(ae, x, x, 1e-3)["loss"].backward()
        optimiser.step(1e-12)

    return step


def ask_step(times, rows, features, fresh):
    return {"PyTorch": best(times, stepper(rows, features, 0 if fresh else 100.0))[0]}


# ---- products
def openblas(a, b, c, op, m, n, k):
    """The library's own sgemm by its C interface: row-major, no copy."""
    pointer = ctypes.POINTER(ctypes.c_float)
    integer = ctypes.c_int64
    call = OPENBLAS.scipy_cblas_sgemm64_
    call.restype = None
    arguments = (ctypes.c_int(101), ctypes.c_int(112 if op == "tn" else 111), ctypes.c_int(112 if op == "nt" else 111),
                 integer(m), integer(n), integer(k), ctypes.c_float(1), a.ctypes.data_as(pointer),
                 integer(a.shape[1]), b.ctypes.data_as(pointer), integer(b.shape[1]), ctypes.c_float(0),
                 c.ctypes.data_as(pointer), integer(n))
    return lambda: call(*arguments)


def ask_gemm(times, op, m, n, k):
    generator = np.random.default_rng(0)
    a = generator.standard_normal((k, m) if op == "tn" else (m, k), dtype=np.float32)
    b = generator.standard_normal((n, k) if op == "nt" else (k, n), dtype=np.float32)
    c = np.empty((m, n), dtype=np.float32)
    ta, tb, tc = (torch.from_numpy(t) for t in (a, b, np.empty_like(c)))
    left, right = ta.T if op == "tn" else ta, tb.T if op == "nt" else tb
    seconds = best(times, lambda: torch.mm(left, right, out=tc), openblas(a, b, c, op, m, n, k))
    assert np.allclose(c, tc.numpy(), atol=1e-2), "OpenBLAS and PyTorch do not agree"
    return dict(zip(("PyTorch (MKL)", "OpenBLAS"), seconds))


# ---- encode, load
def ask_encode(times, rows, features=32768):
    torch.manual_seed(0)
    ae = AutoEncoder(D, features)
    x = torch.randn(rows, D)
    w, b, bias, nx = (t.detach().numpy() for t in (ae.encoder.weight, ae.encoder.bias, ae.bias, x))

    def by_torch():
        with torch.no_grad():
            ae.encode(x)

    seconds = best(times, by_torch, lambda: np.maximum((nx - bias) @ w.T + b, 0))
    return dict(zip(("PyTorch", "NumPy"), seconds))


def ask_load(times, features=32768):
    path = pathlib.Path(os.environ.get("BUILD", "build")) / "tmp" / "peers.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(AutoEncoder(D, features).state_dict(), path)
    seconds = best(times, lambda: torch.load(path, weights_only=True))
    path.unlink()
    return {"PyTorch": seconds[0]}


# ---- a language model: the folder that bench has written
def ask_model(times, part):
    import transformers

    transformers.logging.set_verbosity_error()
    folder = pathlib.Path(os.environ.get("BUILD", "build")) / "tmp" / "model"
    model = transformers.GPTNeoXForCausalLM.from_pretrained(folder).eval()
    tokens = (torch.arange(32 * 128) * 7919 % model.config.vocab_size).reshape(32, 128)
    trunk = model.gpt_neox
    if part == "two_layers":
        trunk.layers = trunk.layers[:2]
    with torch.no_grad():
        return {"transformers": best(times, lambda: (model if part == "logits" else trunk)(tokens))[0]}


QUESTIONS = (
    (r"gemm\.(nn|nt|tn)\.(\d+)x(\d+)x(\d+)", lambda t, op, m, n, k: ask_gemm(t, op, int(m), int(n), int(k))),
    (r"step\.(fresh\.)?B(\d+)\.F(\d+)", lambda t, fresh, rows, f: ask_step(t, int(rows), int(f), bool(fresh))),
    (r"grow\.F\.(\d+)", lambda t, f: ask_step(t, 2048, int(f), False)),
    (r"encode\.rows(\d+)", lambda t, rows: ask_encode(t, int(rows))),
    (r"load\.pt", lambda t: ask_load(t)),
    (r"model\.(\w+)", ask_model),
)


# ---- memory
def print_rss(rows, features):
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))  # what the first product allocates is not the step's
    before = peak_bytes()
    step = stepper(rows, features)
    for _ in range(3):
        step()
    state = 3 * 4 * (2 * D * features + features + D)
    print(json.dumps({"peak": peak_bytes(), "beyond": peak_bytes() - before - state - 4 * rows * D}))


def versions():
    blas = [p for p in threadpoolctl.threadpool_info() if "scipy_openblas64/" in p["filepath"]]
    return {"PyTorch": torch.__version__, "NumPy": np.__version__,
            "transformers": importlib.metadata.version("transformers"),
            "OpenBLAS": f"{blas[0]['version']}, kernels {blas[0]['architecture']}" if blas else "unknown"}


def set_threads(threads):
    torch.set_num_threads(threads)
    threadpoolctl.threadpool_limits(threads)


def main():
    if sys.argv[1:2] == ["--rss"]:
        print_rss(*(int(n) for n in sys.argv[2].split(":")[:2]))
        return
    serve(versions(), QUESTIONS, set_threads)


if __name__ == "__main__":
    main()
