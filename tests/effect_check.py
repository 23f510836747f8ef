"""`effect` and `steer` against torch on tiny-neox: `python tests/effect_check.py BUILD`.

The twin hooks the model and computes decode(f') - decode(f) by the dictionary's whole formula, so that what the program
leaves out because it cancels is there. Closes with `N passed, N failed, N skipped`.
"""
import json
import math
import shutil
import sys

import safetensors.torch
import torch
from transformers import AutoTokenizer, GPTNeoXForCausalLM

from hf_check import BUILD, TEXTS, TINY, counts, hooks_for, report, run, save_dictionary, write_texts

torch.set_grad_enabled(False)
WORK = BUILD / "tmp" / "effect"
NEAR = 5e-5  # of log p; the program computes in f32, as the twin does
D, F, VOCAB = 128, 256, 2048


class Twin:
    """A dictionary file and its formula. norm: "none", "layer_norm" or "constant_norm_rescale", as SAELens has them."""

    def __init__(self, name, norm="none", skip=False, log_scale=0.5):
        torch.manual_seed(11)
        self.path, self.norm = WORK / name, norm
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        if name == "AutoEncoder":
            state = save_dictionary(self.path, D, F, 0.3)
            self.W, self.b = state["encoder.weight"].T, state["encoder.bias"]
            self.D, self.bias, self.center = state["decoder.weight"].T, state["bias"], state["bias"]
            self.path = self.path / "ae.pt"
            return
        self.W = torch.randn(D, F) / math.sqrt(D)
        self.b, self.D, self.bias = 0.1 * torch.randn(F), log_scale * torch.randn(F, D), 0.1 * torch.randn(D)
        self.center = torch.zeros(D)
        self.skip = 0.2 * torch.randn(D, D) / math.sqrt(D) if skip else None
        tensors = {"W_enc": self.W, "b_enc": self.b, "W_dec": self.D, "b_dec": self.bias}
        if skip:
            tensors["W_skip"] = self.skip
        safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()},
                                    self.path / "sae_weights.safetensors")
        (self.path / "cfg.json").write_text(json.dumps({
            "architecture": "skip_transcoder" if skip else "standard", "d_in": D, "d_sae": F, "d_out": D,
            "dtype": "float32", "normalize_activations": norm, "apply_b_dec_to_input": False}))

    def scaled(self, x):
        """z, and what undoes it: x_hat = z_hat * scale + mean."""
        if self.norm == "layer_norm":
            mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
            return (x - mean) / (std + 1e-5), std, mean
        if self.norm == "constant_norm_rescale":
            scale = x.norm(dim=-1, keepdim=True) / math.sqrt(x.shape[-1])
            return x / scale, scale, 0
        return x, 1, 0

    def encode(self, x):
        return torch.relu((self.scaled(x)[0] - self.center) @ self.W + self.b)

    def decode(self, f, x):
        z, scale, mean = self.scaled(x)
        out = f @ self.D + self.bias
        if getattr(self, "skip", None) is not None:
            out = out + z @ self.skip.T
        return out * scale + mean

    def moved(self, x, y, feature, change):
        """y with the feature's value in the rows changed by change(value)."""
        f = self.encode(x)
        new = f.clone()
        new[..., feature] = change(f[..., feature])
        return y + self.decode(new, x) - self.decode(f, x)


class Model:
    def __init__(self):
        self.folder = WORK / "tiny"
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(TINY, self.folder)
        self.hf = GPTNeoXForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()
        encode = AutoTokenizer.from_pretrained(self.folder)
        self.ids = [encode(t, add_special_tokens=False)["input_ids"][:48] for t in TEXTS]
        self.texts = write_texts(self.folder)

    def logits(self, ids, site=None, layer=0, edit=None):
        """Logits [tokens, vocabulary] with the module's output replaced by edit(input, output)."""
        def hook(_, inputs, output):
            if isinstance(output, tuple):
                return (edit(inputs[0], output[0]), *output[1:])
            return edit(inputs[0], output)

        handle = hooks_for(self.hf, site, layer).register_forward_hook(hook) if site else None
        out = self.hf(torch.tensor([ids])).logits[0].double()
        if handle:
            handle.remove()
        return out

    def rows(self, ids, site, layer):
        kept = []
        self.logits(ids, site, layer, lambda x, y: (kept.append((x[0], y[0])), y)[1])
        return kept[0]


def at(site, layer):
    return ["--site", site, "--layer", layer]


def effect(model, twin, site, layer, *flags):
    return json.loads(run("effect", "--dict", twin.path, "--model", model.folder, *at(site, layer), "--json", "--quiet",
                          *flags))


def vector(feature):
    """All tokens' changes, from a list with --count VOCAB."""
    change = torch.zeros(VOCAB, dtype=torch.double)
    for row in feature["up"]:
        change[row["token"]] = row["change"]
    return change


def wanted(model, twin, site, layer, feature, value, everywhere, io):
    """Mean change of log p, mean KL, mean activation, over the inputs' last tokens or over all."""
    changes, divergences, values = [], [], []
    for ids in model.ids:
        first = 0 if everywhere else len(ids) - 1

        def edit(x, y):
            x = y if io == "out" else x
            new = y.clone()
            new[:, first:] = twin.moved(x[:, first:], y[:, first:], feature, lambda f: torch.full_like(f, value))
            return new

        plain = torch.log_softmax(model.logits(ids)[first:], -1)
        changed = torch.log_softmax(model.logits(ids, site, layer, edit)[first:], -1)
        x, y = model.rows(ids, site, layer)
        changes.append(changed - plain)
        divergences.append((plain.exp() * (plain - changed)).sum(-1))
        values.append(twin.encode((y if io == "out" else x)[first:])[:, feature])
    return torch.cat(changes).mean(0), torch.cat(divergences).mean().item(), torch.cat(values).mean().item()


def near(a, b, bound=NEAR):
    return abs(a - b) <= bound * max(1, abs(b))


def check_feature(model, twin, name, site, layer, value, everywhere, io="out"):
    x, y = model.rows(model.ids[0], site, layer)
    feature = int(twin.encode((y if io == "out" else x)[-1:]).argmax())
    flags = ["--text", model.texts, "--ctx-len", 48, "--feature", feature, "--set", value, "--io", io, "--count", VOCAB,
             "--positions", "all" if everywhere else "last"]
    found = effect(model, twin, site, layer, *flags)
    change, divergence, activation = wanted(model, twin, site, layer, feature, value, everywhere, io)
    one = found["features"][0]
    far = float((vector(one) - change).abs().max())
    order = [row["change"] for row in one["up"]]
    good = far < NEAR and near(one["kl"], divergence) and near(one["activation"], activation)
    good = good and order == sorted(order, reverse=True) and one["down"][0]["change"] == order[-1]
    rows = sum(map(len, model.ids)) if everywhere else len(model.ids)
    good = good and found["rows"] == rows and found["forward_passes"] == 2 * len(model.ids)
    good = good and float(change.abs().max()) > 100 * NEAR  # or it would prove nothing
    report(f"{name} at {site} of layer {layer}, {'all' if everywhere else 'last'}, set to {value}: effect", good,
           f"{far:.1g} of {float(change.abs().max()):.2g}; KL {one['kl']:.6g}, {divergence:.6g}")


def check_strongest(model, twin, site, layer):
    """The strongest features of a prompt, each alone: order, figures, the token that is named."""
    ids = model.ids[0]
    found = effect(model, twin, site, layer, "--prompt", TEXTS[0], "--count", 5, "--token", " the")
    _, y = model.rows(ids, site, layer)
    f = twin.encode(y[-1])
    strength = f * twin.D.norm(dim=1)
    order = strength.topk(5).indices.tolist()
    the = found["token"]
    plain = torch.log_softmax(model.logits(ids)[-1], -1)
    worst, rows = 0.0, found["features"]
    for row in rows:
        def edit(x, y):
            new = y.clone()
            new[:, -1:] = twin.moved(y[:, -1:], y[:, -1:], row["feature"], torch.zeros_like)
            return new

        changed = torch.log_softmax(model.logits(ids, site, layer, edit)[-1], -1)
        worst = max(worst, abs(row["change"] - float((changed - plain)[the])),
                    abs(row["kl"] - float((plain.exp() * (plain - changed)).sum())))
    good = [row["feature"] for row in rows] == order and worst < NEAR and found["forward_passes"] == 6
    good = good and near(found["token_log_p"], float(plain[the])) and found["active_features"] == int((f > 0).sum())
    good = good and found["token_text"] == " the"
    report(f"the strongest features at {site} of layer {layer}", good, f"{worst:.1g}; {order}")


def check_linear(model, twin, layer):
    """Behind the last layer: one pass, logits moved by the atom through the final norm of unchanged length."""
    ids, count = model.ids[0], 7
    found = effect(model, twin, "resid_out", layer, "--prompt", TEXTS[0], "--count", count)
    _, y = model.rows(ids, "resid_out", layer)
    y, norm = y[-1], model.hf.gpt_neox.final_layer_norm
    f = twin.encode(y)
    length = torch.sqrt(y.var(unbiased=False) + norm.eps)
    plain = model.logits(ids)[-1]
    p = torch.log_softmax(plain, -1)
    divergences, changes = [], []
    for i in range(F):
        atom = -f[i] * twin.D[i]
        delta = (norm.weight * (atom - atom.mean())) @ model.hf.get_output_embeddings().weight.T / length
        q = torch.log_softmax(plain + delta.double(), -1)
        divergences.append(float((p.exp() * (p - q)).sum()))
        changes.append(float((q - p)[found["token"]]))
    order = sorted(range(F), key=lambda i: -divergences[i])[:count]
    rows = found["features"]
    worst = max(max(abs(r["kl"] - divergences[r["feature"]]), abs(r["change"] - changes[r["feature"]])) for r in rows)
    good = [r["feature"] for r in rows] == order and worst < NEAR and found["forward_passes"] == 1
    good = good and found["method"] == "linear" and found["token"] == int(p.argmax())
    report(f"all features behind layer {layer}", good, f"{worst:.1g}; {order}")


def greedy(model, ids, tokens, site, layer, edit):
    ids = list(ids)
    for _ in range(tokens):
        ids.append(int(model.logits(ids, site, layer, edit)[-1].argmax()))
    return ids


def perplexity(model, ids, first, site=None, layer=0, edit=None):
    logs = torch.log_softmax(model.logits(ids, site, layer, edit)[:-1], -1)
    nats = -logs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    return nats[first - 1:]


def check_steer(model, twin, name, site, layer, io="out"):
    x, y = model.rows(model.ids[0], site, layer)
    feature = int(twin.encode((y if io == "out" else x)[-1:]).argmax())
    prompt, tokens = TEXTS[0][:30], 12
    ids = AutoTokenizer.from_pretrained(model.folder)(prompt, add_special_tokens=False)["input_ids"]
    common = ["steer", "--dict", twin.path, "--model", model.folder, *at(site, layer), "--io", io, "--feature", feature,
              "--prompt", prompt, "--tokens", tokens, "--temperature", 0, "--json", "--quiet"]
    for flags, kind, values in ((["--scale", "0,2,-4"], "scale", (0, 2, -4)), (["--set", "3"], "set", (3,))):
        found = json.loads(run(*common, *flags))
        read = json.loads(run(*common, *flags, "--text", model.texts, "--ctx-len", 48))
        for text, of_text, value in zip([found["plain"], *found["steered"]], [read["plain"], *read["steered"]],
                                        (None, *values)):
            def edit(x, y):
                if value is None:
                    return y
                change = (lambda f: f + value) if kind == "scale" else (lambda f: torch.full_like(f, value))
                return twin.moved(y if io == "out" else x, y, feature, change)

            there = greedy(model, ids, tokens, site, layer, edit)
            drawn = math.exp(perplexity(model, there, len(ids)).mean())
            nats = torch.cat([perplexity(model, i, 1, site, layer, edit) for i in model.ids if len(i) > 1])
            good = text["tokens"] == there[len(ids):] and of_text["tokens"] == text["tokens"]
            good = good and near(text["perplexity"], drawn, 1e-3) and near(of_text["perplexity"],
                                                                            math.exp(nats.mean()), 1e-4)
            report(f"{name} at {site} of layer {layer}: {'plain' if value is None else f'{kind} {value}'}", good,
                   f"{text['perplexity']:.5g}, {drawn:.5g}; {of_text['perplexity']:.5g}, {math.exp(nats.mean()):.5g}")


def main():
    torch.set_num_threads(2)
    WORK.mkdir(parents=True, exist_ok=True)
    model = Model()
    plain = Twin("AutoEncoder")
    layer_norm, norm = Twin("layer_norm", "layer_norm"), Twin("norm", "constant_norm_rescale")
    skip = Twin("skip", skip=True)
    for everywhere in (False, True):
        for value in (0, 2.5):
            check_feature(model, plain, "AutoEncoder", "mlp_out", 1, value, everywhere)
        check_feature(model, plain, "AutoEncoder", "resid_out", 5, 0, everywhere)
        check_feature(model, layer_norm, "layer_norm", "resid_out", 2, 0, everywhere)
        check_feature(model, norm, "constant_norm_rescale", "resid_out", 2, 1, everywhere)
        check_feature(model, skip, "skip_transcoder", "mlp_out", 1, 0, everywhere, io="in_to_out")
    check_strongest(model, plain, "mlp_out", 0)
    check_strongest(model, plain, "resid_out", 2)
    check_linear(model, plain, 5)
    check_steer(model, plain, "AutoEncoder", "resid_out", 2)
    check_steer(model, layer_norm, "layer_norm", "resid_out", 2)
    check_steer(model, skip, "skip_transcoder", "mlp_out", 1, io="in_to_out")
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    return counts["failed"] != 0


if __name__ == "__main__":
    sys.exit(main())
