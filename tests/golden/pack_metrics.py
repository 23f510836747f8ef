"""Packs the core metrics that SAELens 6.54.12 and SAEBench 0.6.0 print into metrics.npz.

    python3 tests/golden/pack_metrics.py FOLDER

FOLDER/metrics: input.npy [3 batches][8 prompts][16 tokens][16] and expected.json, which their
get_sparsity_and_variance_metrics and SAEBench's weight and misc metrics gave for it.
FOLDER/sl_jumprelu/sae_weights.safetensors: the dictionary (32 features). In the cases _ignore0 each
prompt's first token is left out."""
import json
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
WEIGHTS = ("encoder_norm", "encoder_decoder_cosine_sim", "max_encoder_cosine_sim",
           "max_decoder_cosine_sim")


def safetensors(path):
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    head = json.loads(data[8:8 + size])
    out = {}
    for name, e in head.items():
        if name != "__metadata__":
            begin, end = (8 + size + at for at in e["data_offsets"])
            assert e["dtype"] == "F32"
            out[name] = np.frombuffer(data[begin:end], "<f4").reshape(e["shape"])
    return out


def main(folder):
    folder = pathlib.Path(folder)
    w = safetensors(folder / "sl_jumprelu" / "sae_weights.safetensors")
    found = json.loads((folder / "metrics" / "expected.json").read_text())
    out = {"x": np.load(folder / "metrics" / "input.npy"),
           "encoder_weight": np.ascontiguousarray(w["W_enc"].T), "encoder_bias": w["b_enc"],
           "decoder_weight": w["W_dec"], "bias": w["b_dec"], "threshold": w["threshold"]}
    for case in ("sae_lens", "sae_lens_ignore0", "sae_bench", "sae_bench_ignore0"):
        for name, value in found[case]["metrics"].items():
            out[f"{case}.{name}"] = np.float32([value])
        out[f"{case}.density"] = np.float32(found[case]["features"]["feature_density"])
    for name in WEIGHTS:
        out[f"weights.{name}"] = np.float32(found["sae_bench_weights"][name])
    for name, value in found["sae_bench_misc"].items():
        out[f"misc.{name}"] = np.float32([value])
    np.savez_compressed(HERE / "metrics.npz", **out)


if __name__ == "__main__":
    main(sys.argv[1])
