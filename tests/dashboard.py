"""dashboard.py BUILD - surveys and feature pages beside SAEDashboard 0.8.0.

1. tests/golden/dashboard.npz, a file that it made for Neuronpedia, from its arrays by the library with compat: all
   keys.
2. The same for tiny-neox: SAEDashboard itself runs (through TransformerLens), and BUILD/dictlearn features --json
   --compat on the same tokens. What is drawn at random is compared with what could have been drawn.
3. What `features --json` prints, with --compat and without, goes through SAEDashboard's own classes and through the
   client of Neuronpedia, which make of it what they would upload.

Numbers that SAEDashboard rounds to 3 decimals may be half a unit of the last one apart, and a rounding error of f32.
Closes with `N passed, N failed`.
"""
import inspect
import json
import os
import pathlib
import re
import subprocess
import sys
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from neuronpedia.np_activation import Activation  # noqa: E402
from neuronpedia.np_feature import Feature, Logit  # noqa: E402
from neuronpedia.requests.feature_request import FeatureRequest  # noqa: E402
from sae_dashboard.neuronpedia import neuronpedia_dashboard as dashboard  # noqa: E402

BUILD = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build")
HERE = BUILD / "tmp" / "dashboard"
GOLDEN = pathlib.Path("tests/golden/dashboard.npz")
TINY = pathlib.Path("examples/data/tiny-neox")
# What a rounding takes: half of the third decimal; bins and activations are first rounded to 5 and to 4 decimals; a
# share is a percentage of 3 decimals. Twice that where both sides are rounded.
HALF, OF_BIN, OF_VALUE, PERCENT = 0.0005, 0.000505, 0.00055, 0.000005
roundings = 1
NUMBER, TOP, INTERVALS, DRAWN = 10, 20, 5, 5
passed, failed = 0, 0


def check(good, what, detail=""):
    global passed, failed
    passed, failed = passed + bool(good), failed + (not good)
    if not good:
        print(f"FAIL {what}{': ' if detail else ''}{detail}", flush=True)
    return bool(good)


def near(found, wanted, within=HALF):
    """Whether two lists of numbers agree up to their roundings and f32's."""
    found, wanted = np.asarray(found, float), np.asarray(wanted, float)
    allowed = roundings * within + 1e-9 + 1e-6 * np.abs(wanted)
    return found.shape == wanted.shape and bool((np.abs(found - wanted) <= allowed).all())


def plain(text):
    """Bytes that are not UTF-8 are one U+FFFD each here, and there one for several. They have no NUL."""
    return re.sub("\ufffd+", "\ufffd", text.replace("\0", ""))


# ---- Features in SAEDashboard's keys, ours beside theirs


def ranked(what, found, wanted, within=HALF):
    """Lists of (name, value) in order. Where two values are within rounding of each other, either may come first."""
    good = near([v for _, v in found], [v for _, v in wanted], within)
    of = {}
    for name, value in wanted:
        of.setdefault(name, []).append(value)
    for name, value in found:  # a name that they lack has to tie with their last
        apart = min(abs(value - v) for v in of.get(name, [wanted[-1][1]]))
        good = good and apart <= 2 * roundings * within + 1e-5
    check(good, what, f"{found}, expected {wanted}")


def tables(name, found, wanted):
    for kind, value in (("neuron_alignment", "values"), ("correlated_neurons", "pearson"),
                        ("correlated_features", "pearson")):
        ours, theirs = ([(i, v) for i, v in zip(f[f"{kind}_indices"], f[f"{kind}_{value}"])] for f in (found, wanted))
        ranked(f"{name}: {kind} by {value}", ours, theirs)
        if found[f"{kind}_indices"] == wanted[f"{kind}_indices"]:
            check(near(found[f"{kind}_l1"], wanted[f"{kind}_l1"]), f"{name}: {kind}_l1",
                  f"{found[f'{kind}_l1']}, expected {wanted[f'{kind}_l1']}")
    for side in ("neg", "pos"):
        ours, theirs = (list(zip(map(plain, f[f"{side}_str"]), f[f"{side}_values"])) for f in (found, wanted))
        ranked(f"{name}: {side}_str, {side}_values", ours, theirs)


def histograms(name, found, wanted):
    """A value within rounding of an edge may be counted on either side of it: sums up to an edge may differ by 1."""
    for kind in ("freq", "logits"):
        heights, values = f"{kind}_hist_data_bar_heights", f"{kind}_hist_data_bar_values"
        check(near(found[values], wanted[values], OF_BIN), f"{name}: {values}",
              f"{found[values][:3]}, expected {wanted[values][:3]}")
        good = len(found[heights]) == len(wanted[heights]) and sum(found[heights]) == sum(wanted[heights])
        good = good and np.abs(np.cumsum(found[heights]) - np.cumsum(wanted[heights])).max(initial=0) <= 1
        check(good, f"{name}: {heights}", f"{found[heights]}, expected {wanted[heights]}")
    check(near(found["frac_nonzero"], wanted["frac_nonzero"], PERCENT), f"{name}: frac_nonzero",
          f"{found['frac_nonzero']}, expected {wanted['frac_nonzero']}")


def shown(example):
    return example["tokens"], example["values"], example["qualifying_token_index"]


class Candidates:
    """All that SAEDashboard could show of a feature: its prompts without their first token."""

    def __init__(self, prompts, acts):
        self.prompts, self.acts = prompts, acts  # [P][T] names; [P][T] activations, 0 where a row is ignored
        self.at = {}
        for p, words in enumerate(prompts):
            self.at.setdefault(tuple(plain(w) for w in words[1:]), []).append(p)

    def value(self, example):
        """The activation at the qualifying token of a prompt that an example shows as it is; NaN: there is none."""
        tokens, values, at = shown(example)
        for p in self.at.get(tuple(plain(t) for t in tokens), []):
            if near(values, self.acts[p, 1:], OF_VALUE):
                return float(self.acts[p, at + 1])
        return float("nan")


def examples(name, found, wanted, could):
    """The largest in order; draws from each interval: as many, each of which could have been drawn."""
    check(len(found) == len(wanted), f"{name}: number of activations", f"{len(found)}, expected {len(wanted)}")
    for what, group in (("ours", found), ("theirs", wanted)):
        peaks = [could.value(e) for e in group]
        check(np.isfinite(peaks).all(), f"{name}: {what}: every example is a prompt with its activations")
        check(near(sorted(peaks[:TOP], reverse=True), np.sort(could.acts.ravel())[::-1][:TOP], 1e-5),
              f"{name}: {what}: the {TOP} largest")
        for e, peak in zip(group[TOP:], peaks[TOP:]):
            check(e["bin_min"] - 2 * HALF <= peak <= e["bin_max"] + 2 * HALF, f"{name}: {what}: a draw in its interval",
                  f"{peak} from [{e['bin_min']}, {e['bin_max']}]")
    check(near([could.value(e) for e in found[:TOP]], [could.value(e) for e in wanted[:TOP]], 1e-5),
          f"{name}: order of the largest")
    bins = [[(e["bin_min"], e["bin_max"], e["bin_contains"]) for e in group] for group in (found, wanted)]
    check(near([b[:2] for b in bins[0]], [b[:2] for b in bins[1]]), f"{name}: bin_min, bin_max",
          f"{sorted(set(bins[0]))}, expected {sorted(set(bins[1]))}")
    check(near([b[2] for b in bins[0]], [b[2] for b in bins[1]], PERCENT), f"{name}: bin_contains",
          f"{sorted(set(bins[0]))}, expected {sorted(set(bins[1]))}")


def compare(name, found, wanted, could):
    tables(name, found, wanted)
    histograms(name, found, wanted)
    examples(name, found["activations"], wanted["activations"], could)


# ---- 1. The golden file, from its arrays


def surveyed(dlrn, dictionary, x, tokens, keep, listed):
    """Reports of a compat survey in SAEDashboard's keys, of contexts of equal length [P][T]."""
    core = dlrn._core
    lib, ffi, context = core.lib, core.ffi, dictionary.context
    cfg = ffi.new("dlrn_survey_config *", lib.dlrn_survey_defaults())
    numbers = ffi.new("int64_t[]", listed)
    cfg.compat, cfg.features, cfg.n_features, cfg.before, cfg.after = lib.DLRN_ON, numbers, len(listed), -1, -1
    cfg.top, cfg.intervals, cfg.per_interval, cfg.together = TOP, INTERVALS, DRAWN, 3
    out = ffi.new("dlrn_survey **")
    context.call(lib.dlrn_survey_create, dictionary.pointer, cfg, out)
    survey = context.own(out[0], lib.dlrn_survey_destroy, cfg, numbers)
    start = ffi.new("int64_t[]", [i * x.shape[1] for i in range(len(x) + 1)])
    rows, ids = np.ascontiguousarray(x, np.float32), np.ascontiguousarray(tokens, np.int32)
    kept = np.ascontiguousarray(keep, np.uint8)
    context.call(lib.dlrn_survey_add, survey, core.pointer_to(rows), core.pointer_to(ids, "int32_t[]"), start, len(x),
                 core.pointer_to(kept, "unsigned char[]"))
    reports = []

    def visit(_user, report):
        reports.append(as_theirs(ffi, report))
        return lib.DLRN_OK

    callback = context.callback("dlrn_status(void *, const dlrn_feature_report *)", visit)
    context.call(lib.dlrn_survey_report, survey, numbers, len(listed), callback, ffi.NULL)
    return reports


def as_theirs(ffi, r):
    edges = np.linspace(r.low, r.high, 51)
    of = {"feature_index": r.feature, "frac_nonzero": r.density,
          "freq_hist_data_bar_values": list((edges[1:] + edges[:-1]) / 2),
          "freq_hist_data_bar_heights": list(ffi.unpack(r.histogram, 50)), "activations": []}
    for key, n, companions in (("correlated_neurons", r.neurons, r.neuron),
                               ("correlated_features", r.companions, r.companion)):
        some = [companions[i] for i in range(min(n, 3))]
        of |= {f"{key}_indices": [c.index for c in some], f"{key}_pearson": [c.pearson for c in some],
               f"{key}_l1": [c.cosine for c in some]}
    for i in range(r.examples):
        e = r.example[i]
        low, high, share = (-1, r.totals.max, -1) if e.interval < 0 else (
            r.interval[e.interval].low, r.interval[e.interval].high, r.interval[e.interval].share)
        of["activations"].append({
            "tokens": [f"t{t}" for t in ffi.unpack(e.token, e.count)[1:]], "values": ffi.unpack(e.value, e.count)[1:],
            "qualifying_token_index": e.row - e.first - 1, "bin_min": low, "bin_max": high, "bin_contains": share})
    return of


def ends(values, names, count):
    order = np.argsort(values, kind="stable")
    return [([names[i] for i in some], [float(values[i]) for i in some]) for some in
            (order[:count], order[::-1][:count])]


def from_weights(of, atom, unembedding):
    """What needs no activations: with these arrays it is a product and an order."""
    top = np.argsort(-atom, kind="stable")[:3]
    logits = atom @ unembedding
    (neg, neg_values), (pos, pos_values) = ends(logits, [f"t{i}" for i in range(len(logits))], NUMBER)
    heights, edges = np.histogram(logits, 50)
    return of | {
        "neuron_alignment_indices": list(top), "neuron_alignment_values": list(atom[top]),
        "neuron_alignment_l1": list(np.abs(atom[top]) / np.abs(atom).sum()), "neg_str": neg, "neg_values": neg_values,
        "pos_str": pos, "pos_values": pos_values, "logits_hist_data_bar_heights": list(heights),
        "logits_hist_data_bar_values": list((edges[1:] + edges[:-1]) / 2)}


def golden():
    sys.path.insert(0, str(BUILD / "python"))
    import dlrn
    g = np.load(GOLDEN)
    d, features = g["W_enc"].shape
    dictionary = dlrn.AutoEncoder(d, features)
    dictionary.encoder.weight, dictionary.encoder.bias = g["W_enc"].T, g["b_enc"]
    dictionary.decoder.weight, dictionary.bias = g["W_dec"].T, g["b_dec"]
    dictionary.normalize_decoder()  # as the runner does
    wanted = json.loads(g["batch"].tobytes())["features"]
    listed = [f["feature_index"] for f in wanted]
    keep = g["tokens"] != 0
    found = surveyed(dlrn, dictionary, g["activations"], g["tokens"], keep, listed)
    acts = dictionary.encode(g["activations"].reshape(-1, d)).reshape(*keep.shape, features) * keep[..., None]
    atoms, prompts = np.asarray(dictionary.decoder.weight).T, [[f"t{t}" for t in row] for row in g["tokens"]]
    check([f["feature_index"] for f in found] == listed, "golden: the features, in order")
    for ours, theirs in zip(found, wanted):
        i = theirs["feature_index"]
        compare(f"golden feature {i}", from_weights(ours, atoms[i], g["W_U"]), theirs,
                Candidates(prompts, acts[..., i]))


# ---- 2. SAEDashboard itself, on tiny-neox

CTX_LEN, LIVE_F, SITE, LAYER, LIVE_HOOK = 40, 160, "resid_out", 3, "blocks.3.hook_resid_post"


def run(*args):
    done = subprocess.run([str(a) for a in args], capture_output=True, timeout=900)
    if done.returncode:
        raise RuntimeError(f"{args[0]}: status {done.returncode}: {done.stderr.decode().strip()[-300:]}")
    return done.stdout.decode()


def live_tokens():
    """Prompts of equal length that begin with bos; some have it inside, too, where it is left out of the counts."""
    text = HERE / "text.jsonl"
    run(BUILD / "dictlearn", "generate", "--model", TINY, "--documents", 120, "--tokens", 60, "--seed", 3, "--out",
        text, "--quiet")
    ids = [json.loads(line) for line in
           run(BUILD / "dictlearn", "tokenize", "--model", TINY, "--text", text, "--json").splitlines()]
    tokens = np.array([[0] + some[:CTX_LEN - 1] for some in ids if len(some) >= CTX_LEN - 1])
    tokens[3:20:4, 17] = 0
    np.save(HERE / "tokens.npy", tokens)
    (HERE / "ids.jsonl").write_text("".join(json.dumps({"input_ids": row.tolist()}) + "\n" for row in tokens))
    return tokens


def live_dictionary(tokens):
    """Atoms of different lengths; features that fire on half of the rows, on a few, and on none."""
    run(BUILD / "dictlearn", "activations", "--model", TINY, "--text", HERE / "ids.jsonl", "--tokens-key", "input_ids",
        "--ctx-len", CTX_LEN, "--site", SITE, "--layer", LAYER, "--out", HERE / "x.npy", "--quiet")
    x = torch.from_numpy(np.load(HERE / "x.npy"))
    g = torch.Generator().manual_seed(8)
    d = x.shape[1]
    atoms = torch.randn(LIVE_F, d, generator=g)
    atoms[LIVE_F // 2:] = atoms[:LIVE_F // 2] + 0.8 * torch.randn(LIVE_F // 2, d, generator=g)
    encoder, bias = atoms / atoms.norm(dim=1, keepdim=True), x.mean(0)
    atoms *= 0.1 * (0.5 + torch.rand(LIVE_F, 1, generator=g))
    shares = torch.logspace(-3.2, -0.3, LIVE_F)[torch.randperm(LIVE_F, generator=g)]
    shares[7] = 0
    pre = (x - bias) @ encoder.T
    level = torch.tensor([torch.quantile(pre[:, i], 1 - s).item() + (1 if s == 0 else 0) for i, s in enumerate(shares)])
    while (close := ((pre - level).abs() < 1e-4).any(0)).any():  # prompts that begin alike have rows alike
        level += 3e-4 * close
    state = {"bias": bias, "encoder.weight": encoder, "encoder.bias": -level, "decoder.weight": atoms.T.contiguous()}
    torch.save(state, HERE / "ae.pt")
    acts = torch.relu(pre - level) * atoms.norm(dim=1)  # as the runner scales them
    return (acts.reshape(*tokens.shape, LIVE_F) * torch.from_numpy(tokens != 0)[..., None]).numpy()


def features(*flags):
    text = run(BUILD / "dictlearn", "features", "--dict", HERE / "ae.pt", "--model", TINY, "--text", HERE / "ids.jsonl",
               "--tokens-key", "input_ids", "--ctx-len", CTX_LEN, "--site", SITE, "--layer", LAYER, "--skip-special",
               "--all", "--json", "--quiet", *flags)
    return json.loads(text)


def live():
    global roundings
    roundings = 2
    tokens = live_tokens()
    acts = live_dictionary(tokens)
    run(sys.executable, "bench/dashboard_peer.py", TINY, HERE / "ae.pt", HERE / "tokens.npy", LIVE_HOOK, LIVE_F,
        HERE / "theirs")
    wanted = [f for path in sorted((HERE / "theirs").glob("batch-*.json"))
              for f in json.loads(path.read_text())["features"]]
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(TINY / "tokenizer.json"))
    names = {int(t): tokenizer.decode([int(t)]) for t in np.unique(tokens)}
    prompts = [[names[int(t)] for t in row] for row in tokens]
    found = features("--compat")
    check([f["feature_index"] for f in found["features"]] == list(range(LIVE_F)), "live: the features, in order")
    for ours, theirs in zip(found["features"], wanted):
        i = theirs["feature_index"]
        compare(f"live feature {i}", ours, theirs, Candidates(prompts, acts[..., i]))
        check({k: type(v) for k, v in ours.items()}.keys() == theirs.keys(), f"live feature {i}: keys",
              set(ours) ^ set(theirs))
        check({key for a in ours["activations"] for key in a} == set(theirs["activations"][0]),
              f"live feature {i}: keys of activations")
        for key in ("n_prompts_total", "n_tokens_in_prompt", "decoder_weights_dist", "vector"):
            check(ours[key] == theirs[key], f"live feature {i}: {key}", f"{ours[key]}, expected {theirs[key]}")


# ---- 3. What loads such files

# What Neuronpedia's importer of SAEDashboard's files takes of a feature and of an activation.
IMPORTED = ("feature_index frac_nonzero decoder_weights_dist vector neg_str neg_values pos_str pos_values "
            "neuron_alignment_indices neuron_alignment_values neuron_alignment_l1 correlated_neurons_indices "
            "correlated_neurons_pearson correlated_neurons_l1 correlated_features_indices correlated_features_pearson "
            "correlated_features_l1 freq_hist_data_bar_heights freq_hist_data_bar_values logits_hist_data_bar_heights "
            "logits_hist_data_bar_values").split()
OF_ACTIVATION = "tokens values bin_min bin_max bin_contains qualifying_token_index".split()


def in_their_classes(name, batch, strict):
    """Their constructor takes each key by name; further ones are ours, and are left out first unless strict."""
    def only(kind, some):
        known = inspect.signature(kind.__init__).parameters
        return some if strict else {key: value for key, value in some.items() if key in known}

    features = [{**only(dashboard.NeuronpediaDashboardFeature, f),
                 "activations": [only(dashboard.NeuronpediaDashboardActivation, a) for a in f["activations"]]}
                for f in batch["features"]]
    theirs = dashboard.NeuronpediaDashboardBatch(**{**batch, "features": features})
    check(theirs.to_dict() == {**batch, "features": features}, f"{name}: SAEDashboard's classes give back all")
    check(all(a == b for a, b in zip(theirs.features, theirs.features)), f"{name}: they can be compared")


def for_importer(name, batch):
    for f in batch["features"]:
        missing = [key for key in IMPORTED if key not in f] + [
            key for a in f["activations"] for key in OF_ACTIVATION if key not in a]
        check(not missing, f"{name}: keys of Neuronpedia's importer", missing[:3])
        for a in f["activations"]:
            n = len(a["tokens"])
            good = n > 0 and n == len(a["values"]) and -1 <= a["qualifying_token_index"] < n and all(
                isinstance(t, str) for t in a["tokens"]) and all(isinstance(v, (int, float)) for v in a["values"])
            check(good, f"{name}: feature {f['feature_index']}: tokens and values of an activation")
    check(batch["sae_id_suffix"] is None and isinstance(batch["layer"], int) and isinstance(batch["model_id"], str),
          f"{name}: model, layer, suffix")


def for_client(name, batch):
    """The features as Neuronpedia's client uploads them; what it would send is caught."""
    sent = []

    def caught(method, uri="", json=None, **_):  # noqa: A002
        sent.append((method, uri, json))

    client = FeatureRequest(api_key="none")
    client.send_request = caught
    some = batch["features"][:128]
    made = [Feature(
        "m", "3-set", f["feature_index"], density=f["frac_nonzero"],
        top_logits=[Logit(t, v) for t, v in zip(f["pos_str"], f["pos_values"])],
        bottom_logits=[Logit(t, v) for t, v in zip(f["neg_str"], f["neg_values"])],
        activations=[Activation.from_np_db_json({
            "modelId": "m", "source": "3-set", "index": f["feature_index"], "tokens": a["tokens"],
            "values": a["values"],
            "binMax": a["bin_max"], "binMin": a["bin_min"],
            "binContains": a["bin_contains"] if a["bin_contains"] >= 0 else None}) for a in f["activations"]])
        for f in some]
    client.upload_batch("m", "3-set", made)
    payload = json.loads(json.dumps(sent[0][2], allow_nan=False))
    check(len(payload["features"]) == len(some), f"{name}: Neuronpedia's client takes the features")
    for f, ours in zip(payload["features"], some):
        good = f["index"] == ours["feature_index"] and 0 <= f["density"] <= 1 and len(f["topLogits"]) == NUMBER and (
            len(f["activations"]) == len(ours["activations"]))
        check(good, f"{name}: what the client sends of feature {f['index']}")


def loaders():
    for name, flags in (("--json", ()), ("--json --compat", ("--compat",))):
        batch = features(*flags)
        in_their_classes(name, batch, bool(flags))
        for_importer(name, batch)
        for_client(name, batch)


def main():
    HERE.mkdir(parents=True, exist_ok=True)
    for part in (golden, live, loaders):
        before = passed
        try:
            part()
        except Exception as error:  # what cannot run is one failure, not the end
            check(False, part.__name__, f"{type(error).__name__}: {error}")
        print(f"{part.__name__}: {passed - before} checks")
    print(f"{passed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
