"""Writes dashboard.npz: what SAEDashboard 0.8.0 makes of a small model and dictionary, as a file for Neuronpedia.

    build/libraries/bin/python tests/golden/make_dashboard.py [FOLDER]

The model: two layers of 16, 64 tokens, random weights of TransformerLens. The dictionary: 32 features at
blocks.1.hook_resid_pre, of SAELens; the runner scales its atoms to length 1, and the saved weights are those before.
96 prompts of 24 tokens; token 0, the first of each, is ignored. `batch` holds the bytes of batch-0.json for features 0,
5, 9 and 31. FOLDER: one with the same files by name, with which the result is compared. (SAEDashboard 0.8.0,
TransformerLens 3.9.0, SAELens 6.54.12, PyTorch 2.13.0.)"""
import json
import os
import pathlib
import sys
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")
import numpy as np  # noqa: E402
import torch  # noqa: E402
from sae_dashboard.components_config import (  # noqa: E402
    ActsHistogramConfig, Column, FeatureTablesConfig, LogitsHistogramConfig, LogitsTableConfig, SequencesConfig)
from sae_dashboard.layout import SaeVisLayoutConfig  # noqa: E402
from sae_dashboard.neuronpedia.neuronpedia_converter import NeuronpediaConverter  # noqa: E402
from sae_dashboard.neuronpedia.neuronpedia_runner_config import NeuronpediaRunnerConfig  # noqa: E402
from sae_dashboard.sae_vis_data import SaeVisConfig  # noqa: E402
from sae_dashboard.sae_vis_runner import SaeVisRunner  # noqa: E402
from sae_lens import HookedSAETransformer, StandardSAE, StandardSAEConfig  # noqa: E402
from sae_lens.saes.sae import SAEMetadata  # noqa: E402
from transformer_lens import HookedTransformerConfig  # noqa: E402

HERE = pathlib.Path(__file__).parent
HOOK, PROMPTS, CTX, VOCAB, D, F = "blocks.1.hook_resid_pre", 96, 24, 64, 16, 32
LISTED = [0, 5, 9, 31]


class Vocabulary:
    """As much of a tokenizer as the runner touches."""

    vocab = {f"t{i}": i for i in range(VOCAB)}
    pad_token_id = bos_token_id = eos_token_id = 0
    padding_side, bos_token, eos_token, pad_token = "right", "t0", "t0", "t0"


def make_model():
    model = HookedSAETransformer(HookedTransformerConfig(
        n_layers=2, d_model=D, n_ctx=CTX, d_head=8, n_heads=2, d_mlp=32, d_vocab=VOCAB, act_fn="gelu", seed=1,
        normalization_type="LN", device="cpu")).eval()
    model.tokenizer = Vocabulary()
    return model


def make_dictionary():
    meta = SAEMetadata(model_name="tiny", hook_name=HOOK, prepend_bos=True, context_size=CTX)
    sae = StandardSAE(StandardSAEConfig(d_in=D, d_sae=F, apply_b_dec_to_input=True, metadata=meta))
    for i, (name, p) in enumerate(sorted(sae.named_parameters())):
        scale = 0.05 if name.startswith("b_") else 0.35
        p.copy_(torch.from_numpy((scale * np.random.default_rng(1000 + i).standard_normal(p.shape)).astype(np.float32)))
    sae.b_enc -= 0.35
    return sae


def run(model, sae, tokens):
    layout = SaeVisLayoutConfig(columns=[Column(
        SequencesConfig(stack_mode="stack-all", buffer=None, compute_buffer=True, n_quantiles=5, top_acts_group_size=20,
                        quantile_group_size=5),
        ActsHistogramConfig(), LogitsHistogramConfig(), LogitsTableConfig(), FeatureTablesConfig(n_rows=3))])
    cfg = SaeVisConfig(
        hook_point=HOOK, features=LISTED, minibatch_size_features=4, minibatch_size_tokens=32,
        quantile_feature_batch_size=4, verbose=False, device="cpu", feature_centric_layout=layout,
        perform_ablation_experiments=False, dtype="float32", cache_dir=None, ignore_tokens={0}, ignore_positions=[])
    settings = NeuronpediaRunnerConfig(
        sae_set="tiny-res", sae_path="x", outputs_dir=str(HERE / "none"), huggingface_dataset_path="none",
        n_prompts_total=PROMPTS, n_tokens_in_prompt=CTX, model_id="tiny", layer=1)
    data = SaeVisRunner(cfg).run(encoder=sae, model=model, tokens=tokens)
    return NeuronpediaConverter.convert_to_np_json(model, data, settings, {i: f"t{i}" for i in range(VOCAB)})


def compare(folder, out):
    """With the files of another run: rows up to rounding, the rest alike."""
    for name in ("tokens", "activations", "W_U"):
        found = np.load(folder / f"{name}.npy")
        print(name, "differs by", np.abs(found - out[name].astype(found.dtype)).max())
    print("batch-0.json:", "equal" if (folder / "batch-0.json").read_bytes() == out["batch"].tobytes() else "differs")


def main():
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    model = make_model()
    tokens = torch.from_numpy(np.random.default_rng(4).integers(3, VOCAB, (PROMPTS, CTX)))
    tokens[:, 0] = 0
    _, cache = model.run_with_cache(tokens, names_filter=HOOK)
    sae = make_dictionary()
    out = {name: p.detach().numpy().copy() for name, p in sae.named_parameters()}
    text = run(model, sae, tokens)
    out |= {"tokens": tokens.numpy().astype(np.uint8), "activations": cache[HOOK].numpy(), "W_U": model.W_U.numpy(),
            "batch": np.frombuffer(text.encode(), np.uint8)}
    print([f["feature_index"] for f in json.loads(text)["features"]])
    np.savez_compressed(HERE / "dashboard.npz", **out)
    if len(sys.argv) > 1:
        compare(pathlib.Path(sys.argv[1]), out)


if __name__ == "__main__":
    main()
