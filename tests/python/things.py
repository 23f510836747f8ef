"""What several tests of the package use: rows, dictionaries of several families, runs of the program on them."""
import numpy as np

from harness import folder, program

D, F, ROWS = 24, 96, 1000
# Trained for a few steps each: name of the recipe, and its settings as the command line and as Python have them.
RECIPES = {
    "reference": {},
    "dl-standard": {},
    "dl-top_k": {"k": 7},
    "dl-batch_top_k": {"k": 7},
    "dl-matryoshka": {"k": 7, "groups": [32, 32, 32]},
    "dl-jump_relu": {"target_l0": 9.0},
    "dl-gated": {},
    "sl-topk": {"k": 7},
    "sp-topk": {"k": 7},
}
COMMON = {"batch_size": 100, "steps": 8, "warmup_steps": 2, "seed": 3}


def rows(n=ROWS, d=D, seed=1):
    """Rows with a few directions in common, so that dictionaries have something to find."""
    random = np.random.default_rng(seed)
    parts = random.standard_normal((2 * d, d)).astype(np.float32)
    weights = random.random((n, 2 * d)) * (random.random((n, 2 * d)) < 0.1)
    return (weights @ parts + 0.1 * random.standard_normal((n, d))).astype(np.float32)


def flags(settings):
    """{"batch_size": 8} as --batch-size 8."""
    for name, value in settings.items():
        yield "--" + name.replace("_", "-")
        yield ",".join(map(str, value)) if isinstance(value, list) else value


HERE = {}


def here(name):
    """A folder for this test, made once, with x.npy in it."""
    if name not in HERE:
        HERE[name] = folder(name)
        np.save(HERE[name] / "x.npy", rows())
    return HERE[name]


def trained(place, recipe):
    """The folder of a run of the program: recipe on x.npy, in the order of its rows."""
    out = place / recipe
    if not out.exists():
        program("train", "--data", place / "x.npy", "--recipe", recipe, "--dict-size", F, "--no-shuffle", "--quiet",
                "--save-dir", out, *flags({**COMMON, **RECIPES[recipe]}))
    return out
