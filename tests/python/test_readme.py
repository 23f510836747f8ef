"""What the README of dictionary_learning shows, as of March 2024 and of today, with its name in
the imports changed to ours: on tiny-neox, on random GPT-2, Llama and Gemma models, and with
nnsight. Sizes are smaller; the calls are the same."""

import json
import os

import numpy as np
from harness import ROOT, folder, main, skip
from small_models import LAYERS, TEXTS, model, tokenizer, torch

DATA = [f"{text} {i}" for i in range(60) for text in TEXTS]
FOLDERS = {}


def model_folder(name):
    """A folder as Hugging Face has them, with the model in f32 and its tokenizer."""
    if name not in FOLDERS:
        FOLDERS[name] = folder(f"readme-{name}")
        model(name).save_pretrained(FOLDERS[name])
        tokenizer().save_pretrained(FOLDERS[name])
    return str(FOLDERS[name])


def language_model(name, wrapped):
    if not wrapped:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(model_folder(name))
    try:
        import accelerate  # noqa: F401
        from nnsight import LanguageModel
    except ModuleNotFoundError as error:
        skip(f"no {error.name}")
    import warnings

    warnings.simplefilter("ignore")
    # nnsight 0.8.1 does not find the tokenizer of a folder with transformers 5.23
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(model_folder(name))
    return LanguageModel(model_folder(name), device_map="cpu", tokenizer=own)


def mlp_of(m, name):
    """model.gpt_neox.layers[1].mlp, or where another family has it."""
    for part in LAYERS[name].split("."):
        m = getattr(m, part)
    return m[1].mlp


def use(ae, activation_dim):
    """Encode, decode, reconstruct."""
    t = torch()
    activations = t.randn(64, activation_dim)
    features = ae.encode(activations)
    reconstructed_activations = ae.decode(features)
    assert features.shape == (64, ae.dict_size)
    assert reconstructed_activations.shape == (64, activation_dim)
    assert t.allclose(ae(activations), reconstructed_activations, atol=1e-5)
    reconstructed_activations, again = ae(activations, output_features=True)
    assert t.equal(again, features)


def reopened(out, activation_dim):
    """What trainSAE has left in its folder."""
    from dlrn import AutoEncoder, utils

    path = utils.get_nested_folders(out)[0]
    ae, config = utils.load_dictionary(path, device="cpu")
    assert config["trainer"]["k"] == 10 and config["buffer"]["out_batch_size"] == 128
    use(ae, activation_dim)
    use(AutoEncoder.from_pretrained(f"{path}/ae.pt", k=10), activation_dim)


def measured(ae, buffer, name):
    """The figures of a dictionary of twenty steps: features exist, but few."""
    from dlrn.evaluation import evaluate

    figures = evaluate(ae, buffer, max_len=64, batch_size=16, n_batches=2)
    assert 9 <= figures["l0"] <= 10.001
    assert figures["loss_original"] < 9 and np.isfinite(figures["frac_recovered"])
    if name == "neox":
        assert figures["loss_original"] < figures["loss_reconstructed"] < figures["loss_zero"] + 0.2
        assert figures["frac_variance_explained"] > 0.2, figures


def today(name, wrapped):
    t = torch()
    from dlrn import ActivationBuffer
    from dlrn.trainers.top_k import AutoEncoderTopK, TopKTrainer
    from dlrn.training import trainSAE

    t.manual_seed(0)
    m = language_model(name, wrapped)
    submodule = mlp_of(m, name)
    activation_dim = m.config.hidden_size
    buffer = ActivationBuffer(
        data=iter(DATA),
        model=m,
        submodule=submodule,
        d_submodule=activation_dim,
        n_ctxs=int(2e1),
        device="cpu",
        refresh_batch_size=16,
        out_batch_size=128,
    )
    trainer_cfg = {
        "trainer": TopKTrainer,
        "dict_class": AutoEncoderTopK,
        "activation_dim": activation_dim,
        "dict_size": 8 * activation_dim,
        "lr": 1e-3,
        "device": "cpu",
        "steps": 20,
        "layer": 1,
        "lm_name": name,
        "warmup_steps": 1,
        "k": 10,
    }
    out = folder(f"readme-out-{name}-{wrapped}")
    ae = trainSAE(data=buffer, trainer_configs=[trainer_cfg], steps=20, save_dir=str(out))
    assert isinstance(ae, AutoEncoderTopK)
    use(ae, activation_dim)
    reopened(str(out), activation_dim)
    measured(ae, buffer, name)


def test_today():
    today("neox", False)


def test_today_on_other_families():
    for name in ("gpt2", "llama", "gemma"):
        today(name, False)


def test_today_with_nnsight():
    today("neox", True)
    today("llama", True)


def march(name, wrapped):
    t = torch()
    from dlrn import ActivationBuffer, AutoEncoder
    from dlrn.evaluation import evaluate
    from dlrn.training import trainSAE

    t.manual_seed(0)
    m = language_model(name, wrapped)
    submodule = mlp_of(m, name)
    activation_dim = m.config.hidden_size
    dictionary_size = 16 * activation_dim
    buffer = ActivationBuffer(
        iter(DATA),
        m,
        submodule,
        out_feats=activation_dim,
        n_ctxs=20,
        device="cpu",
        in_batch_size=16,
        out_batch_size=128,
    )
    ae = trainSAE(
        buffer,
        activation_dim,
        dictionary_size,
        lr=3e-4,
        sparsity_penalty=1e-3,
        device="cpu",
        steps=10,
        warmup_steps=2,
    )
    use(ae, activation_dim)
    path = folder(f"readme-march-{name}-{wrapped}") / "ae.pt"
    t.save(ae.state_dict(), path)
    ae = AutoEncoder(activation_dim, dictionary_size)
    ae.load_state_dict(t.load(path))
    use(ae, activation_dim)
    figures = evaluate(m, submodule, ae, buffer, max_len=64, batch_size=16)
    assert np.isfinite(figures["percent_recovered"]) and figures["mse_loss"] > 0


def test_march_2024():
    march("neox", False)


def test_march_2024_on_other_families():
    for name in ("gpt2", "llama", "gemma"):
        march(name, False)


def test_march_2024_with_nnsight():
    march("neox", True)


def test_tuples_give_their_first_element():
    """A layer returns a tuple in some versions and families."""
    t = torch()
    from dlrn import ActivationBuffer

    class Wrapped(t.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, *args, **words):
            out = self.inner(*args, **words)
            return (out, "more") if not isinstance(out, tuple) else out

    m = language_model("neox", False)
    rows = next(
        ActivationBuffer(DATA, m, "gpt_neox.layers.1.mlp", n_ctxs=8, out_batch_size=64, seed=1)
    )
    m.gpt_neox.layers[1].mlp = Wrapped(m.gpt_neox.layers[1].mlp)
    again = next(
        ActivationBuffer(DATA, m, "gpt_neox.layers.1.mlp", n_ctxs=8, out_batch_size=64, seed=1)
    )
    assert t.equal(rows, again)


def test_rows_of_nnsight_are_those_of_the_module():
    t = torch()
    from dlrn import edited, rows_at

    m = language_model("neox", True)
    envoy = m.gpt_neox.layers[1].mlp
    rows = rows_at(m, envoy, TEXTS)
    plain = language_model("neox", False)
    assert t.equal(rows, rows_at(plain, "gpt_neox.layers.1.mlp", TEXTS, tokenizer=tokenizer()))
    assert t.equal(rows, rows_at(m, "gpt_neox.layers.1.mlp", TEXTS))
    with m.trace(TEXTS[0]):
        theirs = envoy.output.save()
        logits = m.output.logits.save()
    theirs = getattr(theirs, "value", theirs)
    assert float((rows_at(m, envoy, TEXTS[0]) - theirs[0]).abs().max()) < 1e-5
    with edited(m, envoy, t.zeros_like), m.trace(TEXTS[0]):
        changed = m.output.logits.save()
    assert float((changed - logits).abs().max()) > 1e-3


def test_config_of_the_buffer_is_json():
    from dlrn import ActivationBuffer

    assert json.loads(json.dumps(ActivationBuffer(DATA, model("neox"), "gpt_neox.layers.1").config))


def test_our_readme():
    """The lines of our own README, to the letter, but for the number of steps."""
    import re

    text = (ROOT / "README.md").read_text()
    block = re.search(r"^## From Python\n.*?^```python\n(.*?)^```", text, re.M | re.S).group(1)
    place = folder("readme-ours")
    (place / "examples").symlink_to(ROOT / "examples")
    (place / "TEXT").write_text("\n\n".join(DATA * 4))
    names = {}
    was = os.getcwd()
    os.chdir(place)
    try:
        exec(block.replace("steps=200", "steps=4").replace("n_ctxs=1000", "n_ctxs=100"), names)
    finally:
        os.chdir(was)
    assert names["codes"].shape == (1024, 2048) and names["codes"].nnz == 1024 * 16
    assert (place / "runs" / "c" / "trainer_0" / "ae.pt").exists()


if __name__ == "__main__":
    main(globals())
