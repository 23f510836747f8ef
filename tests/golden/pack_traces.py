"""Packs training traces of dictionary_learning 0.1.0 (one folder each, with trace.npz: data, init.*,
after{n}.*, adam{n}.*, loss, lr, log) into recipes.npz, in this library's layout: one atom a row.

    python3 tests/golden/pack_traces.py FOLDER_OF_TRACES

A trace is 40 calls of trainer.update(step, data[step]) in f32 on one thread, 64 rows of 16 numbers,
32 features; the biases of features 24..31 started at -3, so that some are dead."""
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
LINEAR = {"encoder.weight": ("encoder_weight", 0), "encoder.bias": ("encoder_bias", 0),
          "decoder.weight": ("decoder_weight", 1), "b_dec": ("bias", 0)}
MATRIX = {"W_enc": ("encoder_weight", 1), "b_enc": ("encoder_bias", 0), "W_dec": ("decoder_weight", 0),
          "b_dec": ("bias", 0), "threshold": ("threshold", 0)}
CASES = {"top_k": ("TRAIN_dl_topk", LINEAR), "top_k_noaux": ("TRAIN_dl_topk_noaux", LINEAR),
         "jump_relu": ("TRAIN_dl_jumprelu", MATRIX)}


def pack(out, case, trace, names):
    z = np.load(trace)
    assert "x" not in out or np.array_equal(out["x"], z["data"])
    out["x"] = z["data"]
    sets = {"start": "init."} | {str(n): f"after{n}." for n in (1, 2, 10, 40)}
    sets |= {"40.m": "adam40.exp_avg.", "40.v": "adam40.exp_avg_sq."}
    for label, prefix in sets.items():
        for theirs, (ours, turned) in names.items():
            a = z[prefix + theirs].astype(np.float32)
            out[f"{case}.{label}.{ours}"] = np.ascontiguousarray(a.T if turned else a)
    out[f"{case}.loss"] = z["loss"].astype(np.float32)
    out[f"{case}.lr"] = z["lr"].astype(np.float32)
    out[f"{case}.threshold"] = z["log"][:, 4].astype(np.float32)


def main(folder):
    out = {}
    for case, (name, names) in CASES.items():
        pack(out, case, pathlib.Path(folder) / name / "trace.npz", names)
    np.savez(HERE / "recipes.npz", **out)


if __name__ == "__main__":
    main(sys.argv[1])
