"""feature_effect, examine_dimension and feature_umap: against the same done by hand, and against
what dictionary_learning 0.1.0 with nnsight 0.3.7 computes for tiny-neox."""

import contextlib
import json
import sys
import types

import numpy as np
from harness import TINY, folder, main, program, raises
from small_models import KINDS, LAYERS, TEXTS, contexts, model, tokenizer, torch

import dlrn
from dlrn import interp, models
from dlrn.buffer import ActivationBuffer

SITE = "gpt_neox.layers.1.mlp"
F = 512
LINES = [text.replace("\n", " ") for text in TEXTS if text != "A"]


def dictionary(d=128, features=F, normalize=True):
    """An autoencoder whose weights any NumPy makes again."""
    random = np.random.default_rng(7)
    w = random.standard_normal((d, features)).astype(np.float32)
    w /= np.linalg.norm(w, axis=0)
    made = dlrn.AutoEncoder(d, features)
    made.load_state_dict(
        {
            "bias": np.zeros(d, np.float32),
            "encoder.weight": np.ascontiguousarray(w.T),
            "encoder.bias": np.full(features, -0.05, np.float32),
            "decoder.weight": w * np.float32(0.4),
        }
    )
    if normalize:
        made.normalize_decoder()
    return made


def in_torch(ours):
    """The same as a module of torch."""
    t = torch()

    class Module(t.nn.Module):
        def __init__(self):
            super().__init__()
            self.dict_size = ours.dict_size
            for name, array in ours.state_dict().items():
                self.register_parameter(
                    name.replace(".", "_"), t.nn.Parameter(t.as_tensor(np.asarray(array)))
                )

        def encode(self, x):
            return t.relu((x - self.bias) @ self.encoder_weight.T + self.encoder_bias)

        def decode(self, f):
            return f @ self.decoder_weight.T + self.bias

        def forward(self, x, output_features=False):
            f = self.encode(x)
            return (self.decode(f), f) if output_features else self.decode(f)

    return Module()


def effect_by_hand(m, site, ae, features, tokens, residual):
    """log p without the features minus log p, of each context alone, averaged: [vocabulary]."""
    t = torch()
    total = 0
    for ids in tokens:

        def plain(x):
            return x if residual else ae(x)

        def without(x):
            if ae is None:
                x = x.clone()
                x[:, -1, features] = 0
                return x
            x_hat, f = ae(x, output_features=True)
            f[:, -1, features] = 0
            return ae.decode(f) + (x - x_hat if residual else 0)

        logs = []
        for edit in (plain, without):
            change = (
                contextlib.nullcontext()
                if ae is None and edit is plain
                else models.edited(m, site, edit)
            )
            with t.no_grad(), change:
                logs.append(t.log_softmax(m(t.tensor([ids])).logits[0, -1].double(), -1))
        total = total + logs[0] - logs[1]
    return total / len(tokens)


def test_effects_as_by_hand():
    t = torch()
    for name in ("neox", *KINDS):
        m = model(name)
        d = m.config.hidden_size
        ours = dictionary(d)
        for site in (f"{LAYERS[name]}.1", f"{LAYERS[name]}.1.mlp"):
            for ae in (ours, None, in_torch(ours)):
                for features in (5, [5, 9]) if name == "neox" else (5,):
                    for residual in (True, False):
                        here = in_torch(ours) if ae is not None else None
                        wanted = effect_by_hand(m, site, here, features, contexts(), residual)
                        for largest in (True, False):
                            tokens, change = interp.feature_effect(
                                m,
                                site,
                                ae,
                                features,
                                contexts(),
                                add_residual=residual,
                                k=4,
                                largest=largest,
                            )
                            assert tokens.shape == change.shape == (4,)
                            best = t.topk(wanted, 4, largest=largest).values
                            assert float((change - best).abs().max()) < 2e-5, (name, site, residual)
                            assert float((wanted[tokens] - best).abs().max()) < 2e-5


def test_effects_as_the_reference_has_them():
    """Its inputs were padded on the left, so that its last position is each text's last token."""
    figures = {  # dictionary, add_residual, largest
        (True, True, True): (
            [72, 1396, 1593, 280, 1028, 871],
            [0.000727, 0.000664, 0.000643, 0.000611, 0.000595, 0.000586],
        ),
        (True, True, False): (
            [1048, 942, 570, 1264, 1359, 93],
            [-0.001213, -0.001091, -0.001085, -0.001025, -0.001017, -0.001015],
        ),
        (True, False, True): (
            [72, 1396, 280, 1593, 1028, 871],
            [0.000722, 0.000668, 0.000657, 0.000633, 0.000626, 0.000577],
        ),
        (True, False, False): (
            [1048, 942, 570, 1359, 1264, 945],
            [-0.00118, -0.001089, -0.001087, -0.001002, -0.000981, -0.00097],
        ),
        (False, True, True): (
            [782, 830, 961, 966, 1364, 1035],
            [0.05833, 0.046287, 0.039693, 0.039584, 0.038285, 0.034896],
        ),
    }
    m = model("neox")
    for (has, residual, largest), (tokens, values) in figures.items():
        found = interp.feature_effect(
            m,
            SITE,
            dictionary() if has else None,
            5,
            LINES,
            add_residual=residual,
            k=6,
            largest=largest,
            tokenizer=tokenizer(),
        )
        assert found[0].tolist() == tokens
        assert np.allclose(found[1].tolist(), values, rtol=0, atol=4e-6)


def test_effects_as_the_program_has_them():
    """`dictlearn effect` of the same file has these numbers, with the other sign."""
    place, m, ours = folder("effect"), model("neox"), dictionary()
    ours.save(place / "ae.pt")
    texts = place / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    command = ["effect", "--dict", place / "ae.pt", "--model", TINY, "--text", texts, "--json"]
    command += ["--site", "mlp_out", "--layer", 1, "--feature", 5, "--count", 6]
    printed = json.loads(program(*command))["features"][0]
    for largest, key in ((True, "down"), (False, "up")):
        tokens, change = interp.feature_effect(
            m, SITE, ours, 5, LINES, k=6, largest=largest, tokenizer=tokenizer()
        )
        assert [row["token"] for row in printed[key]] == tokens.tolist()
        found = [-row["change"] for row in printed[key]]
        assert np.allclose(found, change.tolist(), rtol=0, atol=1e-5), (found, change)


def test_losses_as_the_reference_has_them():
    figures = {
        (SITE, "out"): [3.7602048, 3.7813635, 3.8678277],
        (SITE, "in"): [3.7602048, 3.7460575, 3.8358178],
        (SITE, "in_and_out"): [3.7602048, 3.8700483, 3.8678277],
        ("gpt_neox.layers.2", "out"): [3.7602048, 4.5849814, 9.3483133],
        ("gpt_neox.layers.2", "in"): [3.7602048, 4.3866668, 8.0969229],
        ("gpt_neox.layers.2", "in_and_out"): [3.7602048, 4.5878696, 9.3483133],
    }
    for (site, io), losses in figures.items():
        found = models.loss_recovered(
            LINES, model("neox"), site, dictionary(), 32, io=io, tokenizer=tokenizer()
        )
        assert np.allclose([float(x) for x in found], losses, rtol=0, atol=2e-6), (site, io)


def test_effects_of_any_inputs():
    t = torch()
    m, ae = model("neox"), dictionary()
    first = interp.feature_effect(m, SITE, ae, 5, TEXTS[1], tokenizer=tokenizer())
    for inputs in (
        contexts()[1],
        contexts()[1:2],
        t.tensor(contexts()[1:2]),
        models.pad(contexts()[1:2]),
    ):
        same = interp.feature_effect(m, m.gpt_neox.layers[1].mlp, ae, 5, inputs)
        assert t.equal(first[0], same[0]) and t.equal(first[1], same[1])
    cut = interp.feature_effect(m, SITE, ae, 5, contexts()[0], 3)
    assert t.equal(cut[1], interp.feature_effect(m, SITE, ae, 5, contexts()[0][:3])[1])
    raises(dlrn.ArgumentError, interp.feature_effect, m, SITE, ae, 5, [[]], says="no tokens")


def buffer(**settings):
    return ActivationBuffer(
        iter(TEXTS),
        model("neox"),
        SITE,
        n_ctxs=20,
        ctx_len=32,
        refresh_batch_size=4,
        out_batch_size=64,
        tokenizer=tokenizer(),
        **settings,
    )


def test_profiles_as_by_hand():
    t = torch()
    m = model("neox")
    ids = [context[:32] for context in contexts()]
    for ae in (dictionary(), None, in_torch(dictionary())):
        values = []
        for context in ids:
            rows = models.rows_at(m, SITE, [context])
            values.append(
                (rows if ae is None else in_torch(dictionary()).encode(rows))[:, 5].tolist()
            )
        profile = interp.examine_dimension(m, SITE, buffer(), ae, n_inputs=5, dim_idx=5, k=6)
        best = sorted((v for row in values for v in row), reverse=True)[:6]
        assert np.allclose([c.activations[-1] for c in profile.top_contexts], best, atol=1e-5)
        for context in profile.top_contexts:
            whole = [[tokenizer().decode([i]) for i in row] for row in ids]
            assert any(context.tokens == row[: len(context.tokens)] for row in whole)
            assert len(context.tokens) == len(context.activations)
        means = {}
        for row, vs in zip(ids, values):
            for i, v in zip(row, vs):
                means.setdefault(i, []).append(v)
        means = sorted(
            ((np.mean(v), tokenizer().decode([i])) for i, v in means.items()), reverse=True
        )[:6]
        assert np.allclose([v for _, v in profile.top_tokens], [v for v, _ in means], atol=1e-5)
        assert profile.top_tokens[0][0] == means[0][1]
        order = sorted(
            ((v, i, j) for i, row in enumerate(values) for j, v in enumerate(row)), reverse=True
        )[:6]
        inputs = [ids[i][: j + 1] for _, i, j in order]
        tokens, change = interp.feature_effect(m, SITE, ae, 5, inputs, k=6)
        assert np.allclose([v for _, v in profile.top_affected], change.tolist(), atol=1e-5)
        assert (
            len({w for w, _ in profile.top_affected} & {tokenizer().decode([i]) for i in tokens})
            >= 5
        )


def test_profiles_have_the_figures_of_the_reference():
    b = ActivationBuffer(iter(LINES), model("neox"), SITE, ctx_len=32, tokenizer=tokenizer())
    found = interp.examine_dimension(
        model("neox"), SITE, b, dictionary(), n_inputs=4, dim_idx=5, k=5
    )
    assert [(c.tokens[-1], len(c.tokens)) for c in found.top_contexts] == [
        (" the", 3),
        (" the", 10),
        (" the", 25),
        ("The", 1),
        (" the", 27),
    ]
    assert np.allclose(
        [c.activations[-1] for c in found.top_contexts],
        [0.92851, 0.80308, 0.75411, 0.72633, 0.61229],
        atol=1e-5,
    )
    assert [w for w, _ in found.top_tokens] == [" the", "The", " had", " was", " all"]
    assert np.allclose(
        [v for _, v in found.top_tokens],
        [0.7288933, 0.7263280, 0.5217936, 0.5159404, 0.4011449],
        atol=1e-5,
    )


def test_profiles_show_themselves():
    profile = interp.examine_dimension(model("neox"), SITE, buffer(), dictionary(), n_inputs=5, k=3)
    assert len(str(profile.top_contexts).splitlines()) == 3
    shown = profile.top_contexts._repr_html_()
    assert shown.count("<p>") == 3 or "circuitsvis" in sys.modules
    raises(StopIteration, interp.examine_dimension, model("neox"), SITE, buffer(), n_inputs=50)


@contextlib.contextmanager
def modules(**stand_ins):
    """These modules, or none (None), while this lasts."""
    names = {name.replace("_", "."): value for name, value in stand_ins.items()}
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            sys.modules.pop(name)
            if value is not None:
                sys.modules[name] = value


def test_profiles_without_scipy():
    profile = interp.examine_dimension(model("neox"), SITE, buffer(), dictionary(), n_inputs=5, dim_idx=3, k=3)
    with modules(scipy_sparse=None):
        dense = interp.examine_dimension(model("neox"), SITE, buffer(), dictionary(), n_inputs=5, dim_idx=3, k=3)
    assert profile.top_contexts == dense.top_contexts


def test_maps_of_features():
    seen = {}

    class UMAP:
        def __init__(self, **settings):
            seen.update(settings)

        def fit_transform(self, x):
            seen["x"] = np.array(x)
            return np.arange(len(x) * seen["n_components"]).reshape(len(x), -1)

    def scatter(kind):
        return lambda **words: (kind, words)

    umap = types.SimpleNamespace(UMAP=UMAP)
    express = types.SimpleNamespace(scatter=scatter("2d"), scatter_3d=scatter("3d"))
    plotly = types.ModuleType("plotly")
    plotly.express = express
    ae = dictionary(24, 40)
    with modules(umap=umap, plotly=plotly, plotly_express=express):
        kind, words = interp.feature_umap(ae)
        assert kind == "2d" and words["color"] is None and list(words["x"][:2]) == [0, 2]
        assert (
            np.array_equal(seen["x"], np.array(ae.decoder.weight).T) and seen["metric"] == "cosine"
        )
        kind, words = interp.feature_umap(ae, "encoder", n_components=3, feat_idxs=4)
        assert kind == "3d" and [i for i, c in enumerate(words["color"]) if c == "red"] == [4]
        assert np.array_equal(seen["x"], np.array(ae.encoder.weight)) and list(words["z"][:2]) == [
            2,
            5,
        ]
        _, words = interp.feature_umap(ae, feat_idxs=[1, 3])
        assert words["color"][:4] == ["blue", "red", "blue", "red"]
        raises(dlrn.ArgumentError, interp.feature_umap, ae, n_components=4, says="2 or 3")
        raises(dlrn.ArgumentError, interp.feature_umap, ae, "both", says="'encoder'")
    with modules(umap=None):
        raises(ModuleNotFoundError, interp.feature_umap, ae, says="pip install umap-learn plotly")


if __name__ == "__main__":
    main(globals())
