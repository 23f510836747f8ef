"""Language models for the tests: tiny-neox, and random ones of a few layers by transformers."""

import functools

from harness import TINY, skip

TEXTS = [
    "The river ran slowly past the old mill, and nobody had crossed the bridge since the winter.",
    "No, she said; I never saw it.",
    "A",
    "Of all the men that I have known there was but one who would not take money for what he had "
    "done in the war; and he was a fool, as everybody in the village told me.",
    "He counted: 1, 22, 333.\n\nThen there was nothing to say.",
]
# What Llama and Gemma have in common.
GATED = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4)
# name: (config class, model class, where its layers are, what the config calls its sizes)
KINDS = {
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        "transformer.h",
        dict(n_embd=48, n_layer=3, n_head=4, n_positions=96),
    ),
    "llama": ("LlamaConfig", "LlamaForCausalLM", "model.layers", dict(GATED, num_key_value_heads=2)),
    "gemma": (
        "GemmaConfig",
        "GemmaForCausalLM",
        "model.layers",
        dict(GATED, num_key_value_heads=1, head_dim=12),
    ),
}
LAYERS = {"neox": "gpt_neox.layers", **{name: kind[2] for name, kind in KINDS.items()}}


def torch():
    try:
        import torch
        import transformers  # noqa: F401
    except ModuleNotFoundError as error:
        skip(f"no {error.name}")
    torch.set_num_threads(2)
    return torch


@functools.lru_cache(None)
def tokenizer():
    torch()
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY)


@functools.lru_cache(None)
def model(name, dtype="float32"):
    """A model in evaluation mode with the same weights at every run."""
    t = torch()
    import transformers

    if name == "neox":
        return transformers.AutoModelForCausalLM.from_pretrained(
            TINY, dtype=getattr(t, dtype)
        ).eval()
    config, kind, _, sizes = KINDS[name]
    t.manual_seed(5)
    made = getattr(transformers, kind)(
        getattr(transformers, config)(
            vocab_size=2048, bos_token_id=0, eos_token_id=0, pad_token_id=0, **sizes
        )
    )
    return made.to(getattr(t, dtype)).eval()


def contexts(texts=TEXTS):
    return tokenizer()(texts)["input_ids"]
