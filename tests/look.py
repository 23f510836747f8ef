"""look.py BUILD - `features` beside a twin in PyTorch and transformers.

A dictionary whose features fire on anything between no row and half of them looks at a site of a model. The page's data
and --json are compared, field by field, with what a twin makes of transformers' own activations in f64: totals,
histograms, intervals, examples, tokens, effects on logits, nearest atoms, companions, neurons, alignment. In `make
interop` the model is tiny-neox; where LLAMA_CONVERT names the folder of llama.cpp's converter (`make llama-test`), the
models are GGUF files. Limits: numbers 1e-4 of their scale; counts may differ by the rows whose activation is that near
to an edge. Closes with `N passed, N failed`.
"""
import base64
import functools
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys

import numpy as np
import torch
import transformers

BUILD = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build")
PROGRAM, HERE = BUILD / "dictlearn", BUILD / "tmp" / "look"
TINY = pathlib.Path("examples/data/tiny-neox")
LIMIT = 1e-4
F, CTX_LEN, SKIPPED, BINS, TOP, INTERVALS, DRAWN = 96, 40, 2, 50, 20, 5, 5
passed, failed = 0, 0
worst = {}  # field: the largest distance


def check(good, what, detail=""):
    global passed, failed
    passed, failed = passed + bool(good), failed + (not good)
    if not good:
        print(f"FAIL {what}{': ' if detail else ''}{str(detail)[:400]}", flush=True)
    return bool(good)


def run(*args):
    done = subprocess.run([PROGRAM, *map(str, args)], capture_output=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{args[0]}: status {done.returncode}: {done.stderr.decode().strip()}")
    return done.stdout.decode()


def close(field, found, wanted, scale=None):
    """Numbers within LIMIT of their scale, by default the largest of them."""
    found, wanted = np.atleast_1d(np.asarray(found, float)), np.atleast_1d(np.asarray(wanted, float))
    if found.shape != wanted.shape:
        return check(False, field, f"{found.shape} numbers, expected {wanted.shape}")
    scale = scale or max(np.abs(wanted).max(initial=0), 1e-12)
    far = np.abs(found - wanted).max(initial=0) / scale
    kind = field.split(": ")[-1]
    worst[kind] = max(worst.get(kind, 0), far)
    return check(far <= LIMIT, field, f"{far:.1e} apart: {found[:5]}, expected {wanted[:5]}")


def between(field, found, low, high):
    return check((np.asarray(low) <= found).all() and (found <= np.asarray(high)).all(), field,
                 f"{found}, expected from {low} to {high}")


def ranked(field, found, value_of, best, scale=None):
    """found: [(name, value)] in order; each value is the twin's for that name, and the values are the twin's best."""
    names = [n for n, _ in found]
    close(f"{field}, each", [v for _, v in found], [value_of(n) for n in names], scale)
    close(field, [v for _, v in found], best[:len(found)], scale)
    check(len(set(names)) == len(names), f"{field}, no name twice", names)


def plain(text):
    """Bytes that are not UTF-8 are one U+FFFD each here, and there one for several. They have no NUL."""
    return re.sub("\ufffd+", "\ufffd", text.replace("\0", ""))


# ---- The twin


class Twin:
    """Of a dictionary f = ReLU(W (x - b) + c) on rows x of contexts: everything in f64."""

    def __init__(self, x, state, ids, starts, keep):
        self.x, self.ids, self.starts, self.keep = x.astype(np.float64), ids, starts, keep
        w = {name: t.double().numpy() for name, t in state.items()}
        self.pre = (self.x - w["bias"]) @ w["encoder.weight"].T + w["encoder.bias"]
        self.f = np.maximum(self.pre, 0)
        self.atoms, self.encoder = w["decoder.weight"].T, w["encoder.weight"]
        self.context = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        self.kept, self.pre = self.f[keep], self.pre[keep]
        self.max = self.kept.max(0)
        self.size = np.maximum(self.max, self.pre.std(0))  # what its activations are rounded by
        n, sums = len(self.kept), self.kept.sum(0)
        self.var = (self.kept**2).sum(0) - sums**2 / n
        with np.errstate(divide="ignore", invalid="ignore"):
            cov = self.kept.T @ self.kept - np.outer(sums, sums) / n
            self.pearson = cov / np.sqrt(np.outer(self.var, self.var))
            xk = self.x[keep]
            centred = xk - xk.mean(0)
            lengths = np.sqrt(np.outer(self.var, (centred**2).sum(0)))
            self.neurons = self.kept.T @ centred / lengths
            self.neuron_cosine = self.kept.T @ xk / np.sqrt(np.outer((self.kept**2).sum(0), (xk**2).sum(0)))
        on = self.kept > 0
        self.both = on.T.astype(np.float64) @ on

    def edge(self, i):
        """What an activation of the feature may be off by."""
        return LIMIT * self.size[i] / 10

    def counts(self, i, edges, left_open=False):
        """Rows between neighbouring edges, at least and at most, by how sure it is on which side they are. left_open:
        (low, high], as intervals are; otherwise [low, high), the last with both."""
        v, e = self.kept[:, i], self.edge(i)
        fires = v > 0
        low = [int((fires & (v > a + e) & (v < b - e)).sum()) for a, b in zip(edges, edges[1:])]
        high = [int(((self.pre[:, i] > -e) & (v >= a - e) & (v <= b + e)).sum())
                for a, b in zip(edges, edges[1:])]
        return np.array(low), np.array(high)

    def fired(self, i):
        v, e = self.pre[:, i], self.edge(i)
        return int((v > e).sum()), int((v > -e).sum())

    def best_of_contexts(self, i):
        """The largest activation of each context, in descending order."""
        v = np.where(self.keep, self.f[:, i], 0)
        peaks = np.maximum.reduceat(v, self.starts[:-1])
        return np.sort(peaks[peaks > 0])[::-1]

    def by_token(self, i):
        size = self.ids.max() + 1
        count = np.bincount(self.ids[self.keep], minlength=size)
        total = np.bincount(self.ids[self.keep], self.kept[:, i], minlength=size)
        return count, total


# ---- What the program wrote, beside the twin


def totals(name, twin, i, got):
    low, high = twin.fired(i)
    n, v = len(twin.kept), twin.kept[:, i]
    sure = v[v > twin.edge(i)]
    between(f"{name}: fired", got["fired"], low, high)
    close(f"{name}: density", got["density"], got["fired"] / n)
    if not sure.size:
        return
    close(f"{name}: max", got["max"], v.max(), twin.size[i])
    close(f"{name}: mean", got["mean"], v.mean(), twin.size[i] * got["density"])
    between(f"{name}: min", got["min"], 0, sure.min() + twin.edge(i))
    edges = np.linspace(got["min"], got["max"], BINS + 1)
    between(f"{name}: histogram", np.array(got["hist"]), *twin.counts(i, edges))
    check(sum(got["hist"]) == got["fired"], f"{name}: the histogram's sum", got["hist"])


def intervals(name, twin, i, got):
    """[low, high, share] from the highest; (low, high]."""
    n, top = len(twin.kept), twin.max[i]
    edges = np.linspace(0, top, INTERVALS + 1)
    close(f"{name}: intervals' edges", [x[:2] for x in got], [[a, b] for a, b in zip(edges, edges[1:])][::-1],
          twin.size[i])
    low, high = twin.counts(i, edges)
    between(f"{name}: intervals' shares", np.array([x[2] for x in got]), low[::-1] / n - 1e-6, high[::-1] / n + 1e-6)
    return edges, low, high


def examples(name, twin, i, got, token_text, before, after):
    """got: [(context, interval, place in the window, texts, values as shares of the largest, peak)]."""
    top = [e for e in got if e[1] < 0]
    best = twin.best_of_contexts(i)
    low, high = sum(best > twin.edge(i)), len(best)
    between(f"{name}: number of top contexts", len(top), min(low, TOP), min(high, TOP))
    close(f"{name}: top contexts, peaks", [e[5] for e in top], best[:len(top)], twin.size[i])
    check(len({e[0] for e in top}) == len(top), f"{name}: one example a context")
    scale = max(twin.max[i], 1e-12)
    rows = set()
    for context, interval, place, texts, values, peak in got:
        first, last = twin.starts[context], twin.starts[context + 1]
        fits = [r for r in range(first, last) if r - max(first, r - before) == place and twin.keep[r] and
                abs(twin.f[r, i] - peak) <= LIMIT * twin.size[i] and
                texts == [token_text(t) for t in twin.ids[r - place:min(last, r + after + 1)]]]
        if not check(fits, f"{name}: an example is in the text", (context, interval, place, texts[:4], peak)):
            continue
        row = fits[0]
        rows.add((interval < 0, row))
        window = slice(row - place, row - place + len(texts))
        shares, values = np.where(twin.keep[window], twin.f[window, i], 0) / scale, np.array(values)
        if before < 1000:  # a page's shades: 255 for the largest of the counted rows, 0 only for 0
            shares = np.where(shares > LIMIT * twin.size[i] / scale, np.clip(np.round(255 * shares), 1, 255), 0)
            values = np.round(255 * values)
            good = (np.abs(values - shares) <= 1).all() and (np.abs(values - shares) > 0).sum() <= 2
        else:
            good = (np.abs(values - shares) <= 3 * LIMIT * np.maximum(twin.size[i] / scale, shares)).all()
        check(good, f"{name}: an example's activations", (values[:6], shares[:6]))
        if interval >= 0:
            size = twin.max[i] / INTERVALS
            a, b = (INTERVALS - 1 - interval) * size, (INTERVALS - interval) * size
            check(a - twin.edge(i) <= peak <= b + twin.edge(i) and peak > 0, f"{name}: a draw is in its interval",
                  (interval, peak, a, b))
    check(len(rows) == len(got), f"{name}: no row twice", len(got))
    return rows


def draws(name, got, low, high):
    """From each interval as many as asked for, or all that there are."""
    counts = np.bincount([e[1] for e in got if e[1] >= 0], minlength=INTERVALS)[::-1]
    between(f"{name}: number of draws", counts, np.minimum(low, DRAWN), np.minimum(high, DRAWN))


def tokens(name, twin, i, by_mean, by_share, token_text):
    count, total = twin.by_token(i)
    seen = count > 0
    means = np.where(seen, total / np.maximum(count, 1), 0)
    named = {}
    for t in np.flatnonzero(seen):
        named.setdefault(token_text(t), []).append(t)

    def of(values):
        return lambda found: min((values[t] for t in named.get(found[0], [])), key=lambda x: abs(x - found[1]),
                                 default=np.inf)

    scale, whole = max(means.max(initial=0), twin.size[i] / 10), max(total.sum(), 1e-12)
    for what, found, values, size in (("tokens by mean", by_mean, means, scale),
                                      ("tokens by share", by_share, total / whole, 1)):
        values = np.where(seen, values, -1)
        best = np.sort(values[values > 0])[::-1]
        found = [f for f in found if f[1] > 0]
        close(f"{name}: {what}", [f[1] for f in found], best[:len(found)], size)
        close(f"{name}: {what}, each", [f[1] for f in found], [of(values)(f) for f in found], size)
        check(len(found) >= min(10, sum(best > 1e-3 * size)), f"{name}: number of {what}", len(found))
    for text, mean, n in by_mean:
        check(mean <= 0 or n in [count[t] for t in named.get(text, [])], f"{name}: count of a token", (text, n))


def effects(name, logits, got, token_text):
    """got: {"up", "down": [(text, value)], "hist", "low", "high"}."""
    named = {}
    for t, v in enumerate(logits):
        named.setdefault(token_text(t), []).append(v)
    scale = np.abs(logits).max()
    order = np.sort(logits)
    for side, best in (("up", order[::-1]), ("down", order)):
        values = [v for _, v in got[side]]
        close(f"{name}: logits {side}", values, best[:10], scale)
        close(f"{name}: logits {side}, each", values,
              [min(named.get(t, [9e9]), key=lambda x: abs(x - v)) for t, v in got[side]], scale)
    close(f"{name}: logits' range", [got["low"], got["high"]], [order[0], order[-1]], scale)
    edges, e = np.linspace(order[0], order[-1], BINS + 1), LIMIT * scale / 10
    low = [int(((logits > a + e) & (logits < b - e)).sum()) for a, b in zip(edges, edges[1:])]
    high = [int(((logits >= a - e) & (logits <= b + e)).sum()) for a, b in zip(edges, edges[1:])]
    between(f"{name}: logits' histogram", np.array(got["hist"]), low, high)
    check(sum(got["hist"]) == len(logits), f"{name}: the sum of the logits' histogram")


def cosines(rows):
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    c = unit @ unit.T
    np.fill_diagonal(c, -2)
    return c


def relations(name, twin, i, got, near):
    ranked(f"{name}: nearest", got["near"], lambda j: near[j], np.sort(near)[::-1], 1)
    row = twin.atoms[i]
    order = np.argsort(-row, kind="stable")[:3]
    ranked(f"{name}: alignment", [a[:2] for a in got["align"]], lambda j: row[j], row[order])
    close(f"{name}: alignment's share", [a[2] for a in got["align"]],
          [abs(row[a[0]]) / np.abs(row).sum() for a in got["align"]], 1)
    close(f"{name}: norm", got["norm"], np.linalg.norm(row))
    if twin.var[i] <= 0 or twin.fired(i)[0] == 0:
        return
    pearson = np.where(np.isfinite(twin.pearson[i]), twin.pearson[i], -2)
    pearson[i] = -2
    both = {j for j in range(len(pearson)) if twin.both[i, j] > 0 and j != i}
    some = np.sort([pearson[j] for j in both])[::-1] if both else np.array([])
    companions = [(c[0], c[2]) for c in got["with"]]
    check(len(companions) >= min(3, len(some)), f"{name}: number of companions", len(companions))
    ranked(f"{name}: companions", companions, lambda j: pearson[j], np.sort(pearson)[::-1], 1)
    for j, n, _ in got["with"]:
        slack = sum(b - a for a, b in (twin.fired(i), twin.fired(j)))
        between(f"{name}: companions, both", n, twin.both[i, j] - slack, twin.both[i, j] + slack)
    ranked(f"{name}: neurons", [n[:2] for n in got["neurons"]], lambda j: twin.neurons[i, j],
           np.sort(twin.neurons[i])[::-1], 1)
    close(f"{name}: neurons' cosine", [n[2] for n in got["neurons"]],
          [twin.neuron_cosine[i, n[0]] for n in got["neurons"]], 1)


# ---- A page's data and the JSON in one form


def page_data(path):
    text = path.read_text(encoding="utf-8")
    page = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S).group(1))
    page["tokens"] = [plain(t) for t in page["tokens"]]
    return page


def f32(text):
    return np.frombuffer(base64.b64decode(text), "<f4")


def unpacked(page, feature):
    """A feature's examples, by the page's format."""
    data, wide = base64.b64decode(page["examples"]), page["window"]["ids"]
    at, out = feature["at"][0], []
    for _ in range(feature["at"][1]):
        context, interval, place, n = struct.unpack_from("<IbBB", data, at)
        at += 7
        ids = [int.from_bytes(data[at + wide * k:at + wide * (k + 1)], "little") for k in range(n)]
        at += wide * n
        values = [v / 255 for v in data[at:at + n]]
        peak, = struct.unpack_from("<f", data, at + n)
        at += n + 4
        out.append((context, interval, place, [page["tokens"][t] for t in ids], values, peak))
    return out


def from_page(page, feature):
    text = page["tokens"]
    got = dict(feature)
    got["mean_tokens"] = [(text[t], mean, n) for t, mean, n in feature["mean_tokens"]]
    got["share_tokens"] = [(text[t], share) for t, share in feature["share_tokens"]]
    if feature["logits"]:
        got["logits"] = {**feature["logits"],
                         **{side: [(text[t], v) for t, v in feature["logits"][side]] for side in ("up", "down")}}
    got["examples"] = unpacked(page, feature)
    return got


def from_json(feature):
    f = feature
    got = {"i": f["feature_index"], "density": f["frac_nonzero"], "norm": f["decoder_norm"], "logits": None,
           **{key: f[key] for key in ("fired", "min", "max", "mean")}, "hist": f["freq_hist_data_bar_heights"]}
    got["mean_tokens"] = [(plain(t["token"]), t["mean"], t["count"]) for t in f["mean_tokens"]]
    got["share_tokens"] = [(plain(t["token"]), t["share"]) for t in f["share_tokens"]]
    got["near"] = list(zip(f["nearest_indices"], f["nearest_cosines"]))
    got["align"] = list(zip(f["neuron_alignment_indices"], f["neuron_alignment_values"], f["neuron_alignment_l1"]))
    got["neurons"] = list(zip(f["correlated_neurons_indices"], f["correlated_neurons_pearson"],
                              f["correlated_neurons_l1"]))
    got["with"] = [(t["feature"], t["both"], t["pearson"]) for t in f["together"]]
    if f["pos_str"]:
        middles = f["logits_hist_data_bar_values"]
        half = (middles[1] - middles[0]) / 2
        got["logits"] = {"up": list(zip(map(plain, f["pos_str"]), f["pos_values"])),
                         "down": list(zip(map(plain, f["neg_str"]), f["neg_values"])),
                         "low": middles[0] - half, "high": middles[-1] + half,
                         "hist": f["logits_hist_data_bar_heights"]}
    bins = {}
    got["examples"] = []
    for e in f["activations"]:
        interval = -1
        if e["bin_min"] >= 0:
            bins[e["bin_min"]] = [e["bin_min"], e["bin_max"], e["bin_contains"]]
            interval = INTERVALS - 1 - round(e["bin_min"] / max(f["max"], 1e-12) * INTERVALS)
        at = e["qualifying_token_index"]
        shares = [v / max(f["max"], 1e-12) for v in e["values"]]
        got["examples"].append((e["context"], interval, at, [plain(t) for t in e["tokens"]], shares, e["values"][at]))
    got["intervals"] = [bins[b] for b in sorted(bins, reverse=True)]
    return got


def compare(name, twin, got, near, logits, token_text, before, after):
    i = got["i"]
    name = f"{name} {i}"
    totals(name, twin, i, got)
    relations(name, twin, i, got, near[i])
    effects(name, logits[i], got["logits"], token_text)
    if twin.fired(i)[0] == 0:
        return
    if len(got["intervals"]) == INTERVALS:
        intervals(name, twin, i, got["intervals"])
    edges = np.linspace(0, twin.max[i], INTERVALS + 1)
    examples(name, twin, i, got["examples"], token_text, before, after)
    draws(name, got["examples"], *twin.counts(i, edges))
    tokens(name, twin, i, got["mean_tokens"], got["share_tokens"], token_text)


# ---- Models


def make_texts():
    """Documents of a model's own words, some cut by CTX_LEN and some not; one too short to count."""
    path = HERE / "texts.jsonl"
    run("generate", "--model", TINY, "--documents", 90, "--tokens", 56, "--seed", 5, "--out", path, "--quiet")
    lines = path.read_text().splitlines()
    lines = [json.dumps({"text": json.loads(line)["text"][:400 if k % 3 else 60 + k]}) for k, line in enumerate(lines)]
    path.write_text("\n".join([*lines, json.dumps({"text": "A"})]) + "\n")
    return path


def dictionary(x, seed):
    """Atoms of lengths from 0.5 to 2, encoders near them, biases for which a feature fires on a given share of the
    rows: from none over a few to a half."""
    g = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(x)
    d = x.shape[1]
    directions = torch.randn(F // 3, d, generator=g)
    atoms = directions[torch.randint(len(directions), (F,), generator=g)] + 0.6 * torch.randn(F, d, generator=g)
    atoms *= (0.5 + 1.5 * torch.rand(F, 1, generator=g)) / atoms.norm(dim=1, keepdim=True)
    encoder = atoms / x.std() + 0.2 * torch.randn(F, d, generator=g) / d**0.5 / x.std()
    bias = x.mean(0)
    pre = (x - bias) @ encoder.T
    shares = torch.cat([torch.zeros(4), torch.logspace(-2.8, -0.3, F - 4)])[torch.randperm(F, generator=g)]
    level = torch.tensor([torch.quantile(pre[:, i], 1 - s).item() if s > 0 else pre[:, i].max().item() + 1
                          for i, s in enumerate(shares)])
    return {"bias": bias, "encoder.weight": encoder, "encoder.bias": -level, "decoder.weight": atoms.T.contiguous()}


def rows_of(model, module, ids, takes_input):
    rows = []

    def keep(_, inputs, output):
        value = inputs[0] if takes_input else output[0] if isinstance(output, tuple) else output
        rows.append(value.detach().reshape(-1, value.shape[-1]))

    handle = module.register_forward_hook(keep)
    with torch.no_grad():
        for some in ids:
            model(torch.tensor([some]))
    handle.remove()
    return torch.cat(rows).float().numpy()


def direct(model, atoms, plain):
    """Atoms times the unembedding: through the last norm's weight, and a LayerNorm's centring; plain: alone."""
    x = torch.from_numpy(atoms).double()
    if not plain:
        base = model.base_model
        norm = next(getattr(base, n) for n in ("final_layer_norm", "ln_f", "norm") if hasattr(base, n))
        if isinstance(norm, torch.nn.LayerNorm):
            x = x - x.mean(1, keepdim=True)
        weight = norm.weight.detach().double()
        x = x * (weight + 1 if "Gemma" in type(norm).__name__ else weight)
    return (x @ model.get_output_embeddings().weight.detach().double().T).numpy()


def check_model(name, path, model, module, encode, token_text, site, layer, takes_input=False, effects_on=True):
    """`features` of a site of a model, with the first SKIPPED rows of each context left out."""
    texts = HERE / "texts.jsonl"
    ids = [encode(json.loads(line)["text"])[:CTX_LEN] for line in texts.read_text().splitlines()]
    x = rows_of(model, module, ids, takes_input)
    state = dictionary(x, len(name))
    torch.save(state, HERE / "ae.pt")
    token_text = functools.lru_cache(None)(lambda t, text=token_text: plain(text(t)))
    starts = np.cumsum([0] + [len(some) for some in ids])
    keep = np.concatenate([np.arange(len(some)) >= SKIPPED for some in ids])
    twin = Twin(x, state, np.concatenate([np.array(some, int) for some in ids]), starts, keep)
    common = ["features", "--dict", HERE / "ae.pt", "--model", path, "--text", texts, "--ctx-len", CTX_LEN, "--site",
              site, "--layer", layer, "--skip-first", SKIPPED, "--all", "--quiet"]
    run(*common, "--out", HERE / "page.html")
    page, board = page_data(HERE / "page.html"), json.loads(run(*common, "--json"))
    compat = json.loads(run(*common, "--json", "--compat"))
    close(f"{name}: density of all", f32(page["all"]["density"]), [f["density"] for f in page["features"]])
    close(f"{name}: max of all", f32(page["all"]["max"]), [f["max"] for f in page["features"]])
    check([f["i"] for f in page["features"]] == list(range(F)), f"{name}: all features")
    logits = direct(model, twin.atoms, False) if effects_on else None
    near = cosines(twin.atoms)
    for f in page["features"]:
        compare(f"{name}, page", twin, from_page(page, f), near, logits, token_text, 32, 16)
    for f in board["features"]:
        compare(f"{name}, json", twin, from_json(f), near, logits, token_text, 10**6, 10**6)
    if effects_on:
        unit = twin.atoms / np.linalg.norm(twin.atoms, axis=1, keepdims=True)
        for f, row in zip(compat["features"], direct(model, unit, True)):
            close(f"{name}, compat: logits", f["pos_values"] + f["neg_values"][::-1],
                  np.sort(row)[::-1][np.r_[0:10, -10:0]], max(np.abs(row).max(), 5.1))  # of three decimals


def tiny_neox():
    model = transformers.AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(TINY / "tokenizer.json"))
    layers = model.gpt_neox.layers

    def encode(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def token_text(t):
        return tokenizer.decode([int(t)])

    check_model("tiny-neox, resid_out 3", TINY, model, layers[3], encode, token_text, "resid_out", 3)
    check_model("tiny-neox, mlp_out 1", TINY, model, layers[1].mlp, encode, token_text, "mlp_out", 1)


def gguf_models():
    """The small models of llama.py, with an RMSNorm at the end and with a LayerNorm."""
    sys.path.insert(0, "tests")
    import llama
    llama.WORK = HERE / "models"
    for seed, (name, site, layer) in enumerate((("llama", "resid_out", 1), ("gpt-2", "attn_out", 2))):
        case = llama.Case(name, seed, *llama.MODELS[name])
        tokenizer = llama.Tokenizer.from_file(str(case.folder / "tokenizer.json"))
        if name == "gpt-2":
            case.round_gelu()
        check_model(f"{name} in GGUF, {site} {layer}", case.gguf, case.model, case.module(site, layer), case.encode,
                    lambda t: tokenizer.decode([int(t)], skip_special_tokens=False), site, layer)


def main():
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir(parents=True)
    make_texts()
    for part in (gguf_models if "LLAMA_CONVERT" in os.environ else tiny_neox,):
        try:
            part()
        except Exception as error:  # what cannot run is one failure, not the end
            check(False, part.__name__, f"{type(error).__name__}: {error}")
    for field, far in worst.items():
        print(f"{field:32s} {far:.1e}")
    print(f"{passed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
