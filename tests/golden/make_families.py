"""Writes tests/golden/families/NAME/: dictionaries that dictionary_learning 0.1.0 made, and what it computes from them.

    pip install --no-deps dictionary-learning==0.1.0 einops; python tests/golden/make_families.py

Each folder has ae.pt and config.json as the library's trainer writes them, input.npy [rows, d], and the library's own
features.npy and reconstruction.npy. Weights are seeded normal numbers.
"""
import json
import pathlib
import sys
import types

import numpy as np
import torch

sys.modules["nnsight"] = types.ModuleType("nnsight")  # imported by the library, not used by its classes
sys.modules["nnsight"].LanguageModel = object
from dictionary_learning.dictionary import AutoEncoder, JumpReluAutoEncoder  # noqa: E402
from dictionary_learning.trainers.top_k import AutoEncoderTopK  # noqa: E402

HERE = pathlib.Path(__file__).parent / "families"
D, F, K, ROWS = 12, 40, 5, 9


def draw(ae, seed):
    """Normal numbers in all floating tensors; atoms of unit norm; thresholds about where half of the features pass."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in ae.state_dict().items():
            if not p.is_floating_point() or p.ndim == 0:
                continue
            scale = 0.2 if name.split(".")[-1] in ("bias", "b_dec", "b_enc") else 1 / D**0.5
            p.copy_(scale * torch.randn(p.shape, generator=g))
            if name == "threshold":
                p.abs_()
    return ae


def write(name, ae, trainer):
    folder = HERE / name
    folder.mkdir(parents=True, exist_ok=True)
    x = torch.randn((ROWS, D), generator=torch.Generator().manual_seed(99))
    torch.save(ae.state_dict(), folder / "ae.pt")
    config = {"trainer": {"dict_class": type(ae).__name__, "activation_dim": D, "dict_size": F, **trainer}}
    (folder / "config.json").write_text(json.dumps(config, indent=4) + "\n")
    with torch.no_grad():
        f, x_hat = ae.encode(x), ae(x)
    for stem, a in (("input", x), ("features", f), ("reconstruction", x_hat)):
        np.save(folder / f"{stem}.npy", np.ascontiguousarray(a.numpy()))


torch.set_num_threads(1)
write("AutoEncoder", draw(AutoEncoder(D, F), 1), {})
write("AutoEncoderTopK", draw(AutoEncoderTopK(D, F, K), 2), {"k": K})
write("JumpReluAutoEncoder", draw(JumpReluAutoEncoder(D, F), 3), {})
