"""An end-to-end run beside a PyTorch twin of the reference's loop: `python tests/twin.py BUILD`.

The program takes activations of tiny-neox on real English; the twin (tests/golden/reference.py) and the program train
on the same rows in the same order from the same weights. Two tables side by side: with --compat they are equal; with
the program's own way (dead counters, resampling that does revive features) more features are alive and the
reconstruction is no worse. Hundreds of steps of f32 drift apart by rounding alone, so the twin also runs in f64:
"equal" means no further from the f32 twin than a few times what rounding costs the twin itself; after EARLY steps,
before the drift, it means 1e-3 of the distance moved.
Closes with `N passed, N failed, N skipped`.
"""
import json
import lzma
import os
import pathlib
import subprocess
import sys

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent / "golden"))
from reference import AutoEncoder, evaluate, train  # noqa: E402

BUILD = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build")
WORK = BUILD / "tmp" / "twin"
TEXT = pathlib.Path(os.environ.get("DICTLEARN_SHARED", "../shared")) / "data" / "text" / "english_pd.txt.xz"
ROWS, HELD, WIDTH, FEATURES, BATCH, EPOCHS = 131072, 8192, 128, 1024, 512, 3
LR, PENALTY, WARMUP, RESAMPLE, EARLY = 3e-3, 0.12, 50, 400, 60
SHOWN = ("variance_explained", "l1", "l0", "percent_alive", "mse_loss", "cosine", "l2_ratio")
counts = {"passed": 0, "failed": 0, "skipped": 0}


def report(name, good, detail=""):
    counts["passed" if good else "failed"] += 1
    print(f"{'ok  ' if good else 'FAIL'} {name}{': ' if detail else ''}{detail}")


def run(*args):
    done = subprocess.run([str(BUILD / "dictlearn"), *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{args[0]}: status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def make_rows():
    """x_train.npy [ROWS][WIDTH] and x_held.npy [HELD][WIDTH]: the output of the first MLP, shuffled once."""
    (WORK / "english.txt").write_bytes(lzma.decompress(TEXT.read_bytes()))
    run("activations", "--model", "examples/data/tiny-neox", "--text", WORK / "english.txt", "--site", "mlp_out",
        "--layer", 0, "--limit", ROWS + HELD, "--out", WORK / "x.npy", "--quiet")
    x = np.load(WORK / "x.npy")
    x = x[np.random.default_rng(0).permutation(len(x))]
    np.save(WORK / "x_train.npy", x[:ROWS])
    np.save(WORK / "x_held.npy", x[ROWS:])
    return torch.from_numpy(x[:ROWS]), torch.from_numpy(x[ROWS:])


def train_twin(x, dtype, steps=None):
    torch.manual_seed(0)
    ae = AutoEncoder(WIDTH, FEATURES)
    torch.save(ae.state_dict(), WORK / "start.pt")
    ae = ae.to(dtype)
    rows = torch.cat([x] * EPOCHS).to(dtype)
    batches = [(b, b) for b in rows.split(BATCH)][:steps]
    train(ae, batches, LR, PENALTY, warmup=WARMUP, resample=RESAMPLE)
    return ae


def train_program(name, *flags):
    run("train", "--data", WORK / "x_train.npy", "--no-shuffle", "--init", WORK / "start.pt", "--save-dir", WORK / name,
        "--dict-size", FEATURES, "--batch-size", BATCH, "--epochs", EPOCHS, "--lr", LR, "--sparsity-penalty", PENALTY,
        "--warmup-steps", WARMUP, "--resample-steps", RESAMPLE, "--log-steps", 100, "--quiet", *flags)


def figures_of_program(name, *flags):
    got = json.loads(run("eval", "--dict", WORK / name, "--data", WORK / "x_held.npy", "--json", *flags))
    return {**got, "l1": got["sparsity_loss"]}


def load(name):
    return torch.load(WORK / name / "ae.pt", weights_only=True)


def print_table(columns):
    print(f"\n{'':24}" + "".join(f"{name:>22}" for name in columns))
    for row in SHOWN:
        print(f"{row:24}" + "".join(f"{figures[row]:22.6f}" for figures in columns.values()))
    print()


def weights_apart(got, want):
    """Relative to the way that training moved them."""
    start = torch.load(WORK / "start.pt")
    return {k: float((got[k] - want[k]).norm() / (want[k] - start[k]).norm()) for k in start}


def main():
    if not TEXT.exists():
        print(f"skip twin: no {TEXT}")
        print("0 passed, 0 failed, 1 skipped")
        return 0
    WORK.mkdir(parents=True, exist_ok=True)
    x, held = make_rows()
    early = train_twin(x, torch.float32, EARLY)
    train_program("early", "--compat", "--steps", EARLY)
    for key, far in weights_apart(load("early"), early.state_dict()).items():
        report(f"compat, {EARLY} steps: {key}", far < 1e-3, f"{far:.1e} of the distance moved")
    ae, exact = train_twin(x, torch.float32), train_twin(x, torch.float64)
    twin, rounding = evaluate(ae, held, held), evaluate(exact, held.double(), held.double())
    train_program("compat", "--compat")
    train_program("default")
    compat, own = figures_of_program("compat"), figures_of_program("default")
    compat["mse_compat"] = figures_of_program("compat", "--compat")["mse_loss"]
    print_table({"twin, f64": rounding, "twin, f32": twin, "program, --compat": compat, "program, default": own})
    for row in (*SHOWN, "mse_compat"):
        apart, allowed = abs(compat[row] - twin[row]), abs(rounding[row] - twin[row])
        good = apart <= 3 * allowed + 1e-2 * abs(twin[row])
        report(f"compat: {row} as the twin's", good, f"{apart:.1e} apart, f32 from f64 {allowed:.1e}")
    drift = weights_apart(exact.state_dict(), ae.state_dict())
    for key, far in weights_apart(load("compat"), ae.state_dict()).items():
        good = far <= 3 * drift[key]
        report(f"compat: {key}", good, f"{far:.1e} of the distance moved, f32 from f64 {drift[key]:.1e}")
    report("default: more features alive", own["percent_alive"] > twin["percent_alive"],
           f"{own['percent_alive']:.3f} against {twin['percent_alive']:.3f}")
    report("default: no worse a reconstruction", own["variance_explained"] >= twin["variance_explained"] - 5e-4,
           f"{own['variance_explained']:.4f} against {twin['variance_explained']:.4f}")
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    return counts["failed"] != 0


if __name__ == "__main__":
    sys.exit(main())
