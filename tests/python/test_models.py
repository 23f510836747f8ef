"""Rows of language models, edits and losses, buffers and the interpretation of features, each
against the same done by hand with transformers."""

import numpy as np
from harness import main, raises, skip
from small_models import KINDS, LAYERS, TEXTS, contexts, model, tokenizer, torch

import dlrn
from dlrn import models

NAMES = ["neox", *KINDS]
MLP = {"neox": "mlp", "gpt2": "mlp", "llama": "mlp", "gemma": "mlp"}


def close(a, b, tolerance=2e-5):
    scale = max(1.0, float(b.abs().max()))
    assert a.shape == b.shape, (a.shape, b.shape)
    worst = float((a.float() - b.float()).abs().max()) / scale
    assert worst <= tolerance, f"differs by {worst:g}"


def by_hand(m, tokens, module, side="out"):
    """The rows of one context after another, each run alone and to the end."""
    t = torch()
    rows = []

    def hook(_, args, kwargs, out):
        given = args[0] if args else kwargs["hidden_states"]
        rows.append(
            (given if side == "in" else out[0] if isinstance(out, tuple) else out)[0].clone()
        )

    handle = module.register_forward_hook(hook, with_kwargs=True)
    with t.no_grad():
        for ids in tokens:
            m(t.tensor([ids]))
    handle.remove()
    return t.cat(rows)


def hooks(m):
    """How many hooks a model has; transformers keeps some of its own."""
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in m.modules())


def test_rows_are_the_hidden_states_of_transformers():
    t = torch()
    for name in NAMES:
        m = model(name)
        states = []
        with t.no_grad():
            for ids in contexts():
                states.append(m(t.tensor([ids]), output_hidden_states=True).hidden_states[2][0])
        close(models.rows_at(m, f"{LAYERS[name]}.1", contexts()), t.cat(states))


def test_rows_at_either_side_of_any_module():
    for name in NAMES:
        m = model(name)
        layer = m.get_submodule(f"{LAYERS[name]}.1")
        for part, module in layer.named_children():
            if not part.startswith(
                ("mlp", "attn", "self_attn", "attention", "post_attention_layer", "ln_2")
            ):
                continue
            for side in ("out", "in"):
                close(
                    models.rows_at(m, module, contexts(), side),
                    by_hand(m, contexts(), module, side),
                )
            a, b = models.rows_at(m, module, contexts(), "in_to_out")
            close(a, by_hand(m, contexts(), module, "in"))
            close(b, by_hand(m, contexts(), module))


def test_the_pass_ends_at_the_submodule():
    t = torch()
    for name in NAMES:
        m, layers = model(name), model(name).get_submodule(LAYERS[name])
        ran, before = [], hooks(m)
        handles = [
            layer.register_forward_hook(lambda *_, i=i: ran.append(i))
            for i, layer in enumerate(layers)
        ]
        inner = layers[1].mlp.register_forward_hook(lambda *_: ran.append("mlp"))
        models.rows_at(m, layers[1], contexts())
        assert ran == [0, "mlp", 1], ran
        ran.clear()
        models.rows_at(m, layers[1].mlp, contexts(), "in")
        assert ran == [0], ran
        for handle in (*handles, inner):
            handle.remove()
        assert hooks(m) == before
    assert t.is_grad_enabled()


def test_tokens_in_any_form():
    t = torch()
    m, encode = model("neox"), tokenizer()
    rows = models.rows_at(m, "gpt_neox.layers.1", contexts())
    same = [
        TEXTS,
        models.pad(contexts()),
        [np.array(ids) for ids in contexts()],
        [t.tensor(ids) for ids in contexts()],
    ]
    for tokens in same:
        assert t.equal(models.rows_at(m, "gpt_neox.layers.1", tokens, tokenizer=encode), rows)
    one = models.rows_at(m, "gpt_neox.layers.1", contexts()[1])
    assert t.equal(models.rows_at(m, "gpt_neox.layers.1", t.tensor(contexts()[1])), one)
    close(one, by_hand(m, contexts()[1:2], m.gpt_neox.layers[1]))
    close(models.rows_at(m, "gpt_neox.layers.1", TEXTS[1], tokenizer=encode), one)
    close(models.rows_at(m, "gpt_neox.layers.1", t.tensor(contexts()[1:2])), one)


def test_padding_on_the_left_is_left_out_too():
    t = torch()
    m = model("llama")
    longest = max(map(len, contexts()))
    ids = t.tensor([[0] * (longest - len(c)) + c for c in contexts()])
    mask = t.tensor([[0] * (longest - len(c)) + [1] * len(c) for c in contexts()])
    rows = models.rows_at(m, "model.layers.1", {"input_ids": ids, "attention_mask": mask})
    close(rows, by_hand(m, contexts(), m.model.layers[1]), 1e-4)


def plain_model():
    """A model of torch alone: one layer works in place, another on [tokens, d]."""
    t = torch()

    class Flat(t.nn.Module):
        def forward(self, x):
            return x * 3

    class Plain(t.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.act, self.flat = t.nn.Embedding(9, 6), t.nn.ReLU(inplace=True), Flat()

        def forward(self, ids):
            x = self.act(self.embed(ids) * 2)
            return self.flat(x.reshape(-1, 6)).reshape(x.shape)

    t.manual_seed(1)
    return Plain()


def test_models_of_torch_alone():
    t = torch()
    m, ids = plain_model(), [[1, 2, 3], [4]]
    embedded = m.embed.weight[[1, 2, 3, 4]].detach() * 2
    a, b = models.rows_at(m, "act", ids, "in_and_out")
    assert t.equal(a, embedded) and t.equal(b, embedded.relu())
    assert t.equal(models.rows_at(m, m.flat, ids), embedded.relu() * 3)
    assert t.equal(models.rows_at(m, m.flat, ids, "in"), embedded.relu())
    losses = models.loss_recovered([[1, 2, 3], [4, 5]], m, "flat", lambda x: x, io="in_to_out")
    assert float(losses[0]) != float(losses[1])
    same = models.loss_recovered([[1, 2, 3], [4, 5]], m, "act", lambda x: x.relu(), io="in_to_out")
    assert float(same[0]) == float(same[1]) == float(losses[0])


def test_outputs_with_names():
    t = torch()
    m, tokens = model("neox"), models.pad(contexts())
    rows = models.rows_at(m, "gpt_neox", contexts())
    close(rows, by_hand(m, contexts(), m.gpt_neox.final_layer_norm))
    with models.edited(m, "gpt_neox", t.zeros_like), t.no_grad():
        assert float(models.run(m, tokens).logits.abs().max()) == 0


def test_half_precision_models_give_rows_of_their_type():
    t = torch()
    for dtype in ("float16", "bfloat16"):
        m = model("neox", dtype)
        rows = models.rows_at(m, "gpt_neox.layers.2.mlp", contexts())
        assert rows.dtype == getattr(t, dtype)
        close(rows, models.rows_at(model("neox"), "gpt_neox.layers.2.mlp", contexts()), 5e-2)


def test_dropout_is_off_while_rows_are_read():
    t = torch()
    m = model("gpt2")
    rows = models.rows_at(m, "transformer.h.1", contexts())
    m.train()
    m.transformer.h[0].mlp.eval()
    modes = [module.training for module in m.modules()]
    assert t.equal(models.rows_at(m, "transformer.h.1", contexts()), rows)
    assert modes == [module.training for module in m.modules()]
    m.eval()


def test_submodules_that_are_not_there():
    t = torch()
    m = model("neox")
    raises(
        dlrn.ArgumentError, models.rows_at, m, "gpt_neox.layer.1", [[1]], says="gpt_neox.layers.1"
    )
    raises(
        dlrn.ArgumentError, models.rows_at, m, model("llama").model.layers[1], [[1]], says="no part"
    )
    raises(dlrn.ArgumentError, models.rows_at, m, 3, [[1]], says="found int")
    raises(
        dlrn.ArgumentError,
        models.rows_at,
        m,
        "gpt_neox.layers.1",
        [[1]],
        "inside",
        says="'in_and_out'",
    )
    raises(dlrn.ArgumentError, models.rows_at, "tiny", "gpt_neox", [[1]], says="found str")
    raises(
        dlrn.ShapeError,
        models.rows_at,
        m,
        "gpt_neox.rotary_emb",
        [[1, 2], [3, 4]],
        says="[contexts, tokens, d]",
    )
    raises(
        dlrn.ArgumentError, models.rows_at, m, "gpt_neox.layers", [[1, 2]], says="does not run it"
    )
    raises(dlrn.ArgumentError, models.rows_at, t.nn.Linear(2, 2), "", "a text", says="tokenizer")


def test_an_edit_replaces_what_a_module_gives_or_gets():
    t = torch()
    for name in NAMES:
        m = model(name)
        tokens = models.pad(contexts())
        plain = models.run(m, tokens).logits
        for part in ("", ".mlp"):
            site = f"{LAYERS[name]}.1{part}"
            for io in ("out", "in"):
                seen = []
                with models.edited(m, site, lambda x: seen.append(x.shape) or x, io), t.no_grad():
                    assert t.equal(models.run(m, tokens).logits, plain)
                assert len(seen) == 1
                with models.edited(m, site, t.zeros_like, io), t.no_grad():
                    assert float((models.run(m, tokens).logits - plain).abs().max()) > 1e-4
        with t.no_grad():
            assert t.equal(models.run(m, tokens).logits, plain)


def test_a_transcoder_replaces_a_module():
    t = torch()
    m = model("llama")
    mlp = m.model.layers[1].mlp
    before = hooks(mlp)
    tokens = models.pad(contexts())
    with t.no_grad():
        plain = models.run(m, tokens).logits
        with models.edited(m, mlp, lambda x: mlp.forward(x), "in_and_out"):
            assert t.equal(models.run(m, tokens).logits, plain)
    with models.edited(m, mlp, lambda x: x[..., :3]), t.no_grad():
        raises(dlrn.ShapeError, models.run, m, tokens, says="found")
    with models.edited(m, mlp, lambda x: None), t.no_grad():
        raises(dlrn.ArgumentError, models.run, m, tokens, says="None")
    assert hooks(mlp) == before


def test_an_edit_holds_while_text_is_generated():
    t = torch()
    m = model("neox")
    ids = t.tensor(contexts()[1:2])
    plain = m.generate(ids, max_new_tokens=8, do_sample=False)
    widths = []
    with models.edited(m, "gpt_neox.layers.2", lambda x: widths.append(x.shape[1]) or -x):
        changed = m.generate(ids, max_new_tokens=8, do_sample=False)
    assert widths == [ids.shape[1]] + [1] * 7 and not t.equal(plain, changed)


def loss_by_hand(m, tokens, site=None, edit=None, io="out"):
    """Mean nats per predicted token, each context run alone."""
    t = torch()
    nats, count = 0.0, 0
    for ids in tokens:
        with t.no_grad():
            if edit is None:
                logits = m(t.tensor([ids])).logits
            else:
                with models.edited(m, site, edit, io):
                    logits = m(t.tensor([ids])).logits
        logs = t.log_softmax(logits[0, :-1].double(), -1)
        nats -= float(logs[t.arange(len(ids) - 1), ids[1:]].sum())
        count += len(ids) - 1
    return nats / count


class Halver:
    """Stands for a dictionary: halves its rows, and adds a little of their norm."""

    def __init__(self, d, out=None):
        self.activation_dim, self.out = d, out

    def __call__(self, x):
        assert x.dtype == torch().float32 and x.ndim == 2
        return (x * 0.5 + 0.01 * x.norm(dim=-1, keepdim=True))[:, : self.out]


def test_losses_as_by_hand():
    t = torch()
    for name in NAMES:
        m = model(name)
        site = f"{LAYERS[name]}.1.mlp"
        half = lambda x: x * 0.5 + 0.01 * x.norm(dim=-1, keepdim=True)  # noqa: E731
        for io in ("out", "in", "in_and_out"):
            expected = [
                loss_by_hand(m, contexts()),
                loss_by_hand(m, contexts(), site, half, io),
                loss_by_hand(m, contexts(), site, t.zeros_like, "in" if io == "in" else "out"),
            ]
            for size in (1, 2, 16):
                losses = models.loss_recovered(
                    TEXTS, m, site, Halver(48), io=io, batch_size=size, tokenizer=tokenizer()
                )
                assert np.allclose([float(x) for x in losses], expected, atol=1e-5), (
                    name,
                    io,
                    losses,
                    expected,
                )


def test_losses_of_scaled_rows():
    t = torch()
    m, site = model("neox"), "gpt_neox.layers.2"
    rows = models.rows_at(m, site, contexts())
    scale = rows.shape[1] ** 0.5 / float(rows.norm(dim=-1).mean())
    cut = lambda x: t.clamp(x * scale, max=0.5) / scale  # noqa: E731
    expected = loss_by_hand(m, contexts(), site, cut)
    for size in (1, 3, 16):
        losses = models.loss_recovered(
            contexts(), m, site, lambda x: t.clamp(x, max=0.5), None, True, batch_size=size
        )
        assert abs(float(losses[1]) - expected) < 1e-5


def test_losses_cut_texts_and_want_logits():
    m, site = model("neox"), "gpt_neox.layers.2"
    losses = models.loss_recovered(TEXTS, m, site, Halver(128), 4, tokenizer=tokenizer())
    assert abs(float(losses[0]) - loss_by_hand(m, [c[:4] for c in contexts()])) < 1e-5
    again = models.loss_recovered(contexts(), m, site, Halver(128), 4)
    assert all(float(a) == float(b) for a, b in zip(losses, again))
    assert models.run(m, models.pad(contexts())).past_key_values is None
    raises(
        dlrn.ArgumentError,
        models.loss_recovered,
        contexts(),
        m.gpt_neox,
        "layers.2",
        Halver(128),
        says="AutoModelForCausalLM",
    )
    raises(
        dlrn.ArgumentError, models.loss_recovered, [[5], []], m, site, Halver(128), says="predict"
    )


if __name__ == "__main__":
    main(globals())
