"""dashboard_peer.py MODEL DICT TOKENS HOOK FEATURES OUT [--batch N] [--forward N] - the feature pages of SAEDashboard.

Runs SAEDashboard's SaeVisRunner and its NeuronpediaConverter as its NeuronpediaRunner does, without what that one takes
from a hub. MODEL: a folder of a GPT-NeoX model, which TransformerLens gets with its weights as they are; DICT: ae.pt of
the reference's AutoEncoder; TOKENS: .npy [prompts][tokens]; HOOK: TransformerLens' name of the site; FEATURES: how
many, from 0, or numbers with commas between; OUT: the folder for batch-0.json and so on. --batch: features at a
time (128); --forward: prompts in a pass (32). The token of number 0 is ignored. Prints the seconds of each batch, of
which the first runs the model, and the peak of memory as JSON.
"""
import argparse
import json
import os
import pathlib
import resource
import shutil
import time
import warnings

os.environ["HF_HUB_OFFLINE"] = os.environ["TQDM_DISABLE"] = "1"
warnings.filterwarnings("ignore")
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from sae_lens import HookedSAETransformer, StandardSAE, StandardSAEConfig  # noqa: E402
from sae_lens.saes.sae import SAEMetadata  # noqa: E402
from sae_dashboard.components_config import (  # noqa: E402
    ActsHistogramConfig, Column, FeatureTablesConfig, LogitsHistogramConfig, LogitsTableConfig, SequencesConfig)
from sae_dashboard.layout import SaeVisLayoutConfig  # noqa: E402
from sae_dashboard.neuronpedia.neuronpedia_converter import NeuronpediaConverter  # noqa: E402
from sae_dashboard.neuronpedia.neuronpedia_runner_config import NeuronpediaRunnerConfig  # noqa: E402
from sae_dashboard.sae_vis_data import SaeVisConfig  # noqa: E402
from sae_dashboard.sae_vis_runner import SaeVisRunner  # noqa: E402
from transformer_lens import HookedTransformerConfig  # noqa: E402
from transformer_lens.pretrained.weight_conversions.neox import convert_neox_weights  # noqa: E402


def hooked(folder):
    """The model in TransformerLens, of the same weights: nothing is folded or centred."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    c = theirs.config
    d_head = c.hidden_size // c.num_attention_heads
    cfg = HookedTransformerConfig(
        n_layers=c.num_hidden_layers, d_model=c.hidden_size, n_ctx=c.max_position_embeddings, d_head=d_head,
        n_heads=c.num_attention_heads, d_mlp=c.intermediate_size, d_vocab=c.vocab_size, act_fn=c.hidden_act,
        eps=c.layer_norm_eps, normalization_type="LN", positional_embedding_type="rotary", rotary_adjacent_pairs=False,
        rotary_dim=round(c.rope_parameters["partial_rotary_factor"] * d_head),
        rotary_base=int(c.rope_parameters["rope_theta"]), parallel_attn_mlp=c.use_parallel_residual, device="cpu",
        default_prepend_bos=False, use_attn_scale=True, original_architecture="GPTNeoXForCausalLM")
    model = HookedSAETransformer(cfg).eval()
    model.load_state_dict(convert_neox_weights(theirs, cfg), strict=False)
    return model


def dictionary(path, hook):
    state = torch.load(path)
    features, d = state["encoder.weight"].shape
    meta = SAEMetadata(model_name="m", hook_name=hook, prepend_bos=True, context_size=0)
    sae = StandardSAE(StandardSAEConfig(d_in=d, d_sae=features, apply_b_dec_to_input=True, metadata=meta))
    with torch.no_grad():
        sae.W_enc.copy_(state["encoder.weight"].T)
        sae.W_dec.copy_(state["decoder.weight"].T)
        sae.b_enc.copy_(state["encoder.bias"])
        sae.b_dec.copy_(state["bias"])
    return sae


class Vocabulary:
    """As much of a tokenizer as the runner touches."""

    pad_token_id = bos_token_id = eos_token_id = 0
    pad_token = bos_token = eos_token = ""
    padding_side, vocab = "right", {}


def texts_of(folder, size):
    """What each token stands for; those that the tokenizer lacks are numbered."""
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(pathlib.Path(folder) / "tokenizer.json"))
    return {i: tokenizer.decode([i]) if i < len(tokenizer) else f"<{i}>" for i in range(size)}


def write_batches(model, sae, tokens, hook, features, names, out, at_a_time, forward):
    layout = SaeVisLayoutConfig(columns=[Column(
        SequencesConfig(stack_mode="stack-all", buffer=None, compute_buffer=True, n_quantiles=5, top_acts_group_size=20,
                        quantile_group_size=5),
        ActsHistogramConfig(), LogitsHistogramConfig(), LogitsTableConfig(), FeatureTablesConfig(n_rows=3))])
    settings = NeuronpediaRunnerConfig(
        sae_set="set", sae_path="x", outputs_dir=str(out), huggingface_dataset_path="none", model_id="m", layer=0,
        n_prompts_total=tokens.shape[0], n_tokens_in_prompt=tokens.shape[1])
    used = []  # by each batch: seconds on the clock, of the processor
    for batch, first in enumerate(range(0, len(features), at_a_time)):
        began = time.perf_counter(), time.process_time()
        some = features[first:first + at_a_time]
        cfg = SaeVisConfig(
            hook_point=hook, features=some, minibatch_size_features=at_a_time, minibatch_size_tokens=forward,
            quantile_feature_batch_size=64, verbose=False, device="cpu", feature_centric_layout=layout,
            perform_ablation_experiments=False, dtype="float32", cache_dir=out / "cached", ignore_tokens={0},
            ignore_positions=[])
        data = SaeVisRunner(cfg).run(encoder=sae, model=model, tokens=tokens)
        text = NeuronpediaConverter.convert_to_np_json(model, data, settings, names)
        (out / f"batch-{batch}.json").write_text(text)
        used.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return used


def main():
    parser = argparse.ArgumentParser()
    for name in ("model", "dict", "tokens", "hook", "features", "out"):
        parser.add_argument(name)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--forward", type=int, default=32)
    o = parser.parse_args()
    torch.set_grad_enabled(False)
    began = time.perf_counter()
    model, sae = hooked(o.model), dictionary(o.dict, o.hook)
    model.tokenizer = Vocabulary()
    tokens = torch.from_numpy(np.load(o.tokens).astype(np.int64))
    names = texts_of(o.model, model.cfg.d_vocab)
    features = [int(i) for i in o.features.split(",")] if "," in o.features else list(range(int(o.features)))
    out = pathlib.Path(o.out)
    shutil.rmtree(out, ignore_errors=True)
    (out / "cached").mkdir(parents=True)
    ready = time.perf_counter()
    used = write_batches(model, sae, tokens, o.hook, features, names, out, o.batch, o.forward)
    print(json.dumps({"seconds": [s for s, _ in used], "processor": [p for _, p in used], "loading": ready - began,
                      "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


if __name__ == "__main__":
    main()
