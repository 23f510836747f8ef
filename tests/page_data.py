"""What `dictlearn features` writes, read back: python3 tests/page_data.py page|json|compat|agree|tame FILE ...

page FILE N [both]   the data of a page: N features, consistent with themselves; both: two sides of a transcoder
json, compat FILE N  N features with SAEDashboard's keys; compat: and with no others
agree PAGE JSON      the features of the JSON have the same figures on the page
tame FILE            no token of the page is anything but text
hostile IN OUT       writes a tokenizer with hostile tokens to OUT, and a text of ready ids to standard output
"""
import base64
import json
import math
import re
import struct
import sys
import unicodedata

KEYS = """feature_index neuron_alignment_indices neuron_alignment_values neuron_alignment_l1
correlated_neurons_indices correlated_neurons_l1 correlated_neurons_pearson correlated_features_indices
correlated_features_l1
correlated_features_pearson neg_str neg_values pos_str pos_values frac_nonzero freq_hist_data_bar_values
freq_hist_data_bar_heights logits_hist_data_bar_heights logits_hist_data_bar_values n_prompts_total n_tokens_in_prompt
dataset decoder_weights_dist activations vector""".split()
EXAMPLE = """bin_min bin_max bin_contains tokens values qualifying_token_index dfa_values dfa_maxValue
dfa_targetIndex""".split()
PAGE = """i density fired min max mean norm hist logits mean_tokens share_tokens near near_in with align
align_in neurons intervals at""".split()
HOSTILE = [b"<script>", b"</script>", b"<!--", b"]]>", b"&lt;", b"'\"\\", b"\0", b"\x1b[31m",
           "\u202e".encode(), "\u2066".encode(), "\u2028".encode(),
           b"\xe2\x80", b"\xff", "e\u0301".encode(),
           b"<img src=x onerror=alert(1)>", b"\n", b"@DATA@"]


def data_of(path):
    """The object in a page, and the page's text."""
    text = open(path, encoding="utf-8", newline="").read()
    found = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)
    assert len(found) == 1, f"{len(found)} places of data"
    assert "<" not in found[0]
    return json.loads(found[0]), text


def floats(text):
    raw = base64.b64decode(text, validate=True)
    return struct.unpack(f"<{len(raw) // 4}f", raw)


def close(a, b, tolerance=2e-5):
    return abs(a - b) <= tolerance * max(1, abs(a), abs(b))


def unpack(raw, at, count, width):
    """The packed examples of a feature."""
    for _ in range(count):
        context, interval, position, length = struct.unpack_from("<IbBB", raw, at)
        at += 7
        tokens = [int.from_bytes(raw[at + width * k:at + width * (k + 1)], "little") for k in range(length)]
        at += width * length
        shades = raw[at:at + length]
        at += length
        yield context, interval, position, tokens, shades, struct.unpack_from("<f", raw, at)[0]
        at += 4


def check_examples(data, feature, raw):
    seen = []
    for _, interval, position, tokens, shades, peak in unpack(raw, *feature["at"], data["window"]["ids"]):
        assert -1 <= interval < 5 and position < len(tokens) <= 49
        assert all(t < len(data["tokens"]) for t in tokens)
        expected = min(255, max(1, math.floor(255 * peak / feature["max"] + 0.5))) if peak > 0 else 0
        assert abs(shades[position] - expected) <= 1, (shades[position], expected)
        if interval < 0:
            seen.append(peak)
        else:
            low, high, _ = feature["intervals"][interval]
            assert low - 1e-5 * high <= peak <= high * (1 + 1e-5), (low, peak, high)
    assert seen == sorted(seen, reverse=True)
    assert not seen or close(seen[0], feature["max"])
    return len(seen)


def page(path, n, both=None):
    data, _ = data_of(path)
    density, largest = floats(data["all"]["density"]), floats(data["all"]["max"])
    raw = base64.b64decode(data["examples"], validate=True)
    assert data["version"] == 1 and len(data["features"]) == int(n), len(data["features"])
    assert len(density) == len(largest) == int(dict(data["about"])["features"])
    for f in data["features"]:
        assert list(f) == PAGE, list(f)
        assert close(density[f["i"]], f["density"]) and close(largest[f["i"]], f["max"])
        assert len(f["hist"]) == 50 and sum(f["hist"]) == f["fired"]
        assert check_examples(data, f, raw) > 0 or f["fired"] == 0
        cosines = [c for _, c in f["near"]]
        assert cosines == sorted(cosines, reverse=True) and f["i"] not in [j for j, _ in f["near"]]
        assert len(f["align"]) == 3 and (len(f["align_in"]) == 3 and len(f["near_in"]) == 10) == bool(both)
        assert len(f["intervals"]) == 5
        effects = f["logits"]
        assert [v for _, v in effects["up"]] == sorted([v for _, v in effects["up"]], reverse=True)
        assert [v for _, v in effects["down"]] == sorted(v for _, v in effects["down"])
        assert close(effects["up"][0][1], effects["high"]) and close(effects["down"][0][1], effects["low"])
        assert len(effects["hist"]) == 50 and sum(effects["hist"]) == 2048
        assert sum(share for _, share in f["share_tokens"]) <= 1 + 1e-5


def board(path, n, others):
    with open(path, encoding="utf-8") as file:
        found = json.load(file)
    assert list(found) == ["model_id", "layer", "sae_set", "sae_id_suffix", "features"]
    assert len(found["features"]) == int(n)
    for f in found["features"]:
        assert list(f)[:len(KEYS)] == KEYS, list(f)
        assert others or len(f) == len(KEYS)
        for group in f["activations"]:
            assert list(group)[:len(EXAMPLE)] == EXAMPLE
            values, at = group["values"], group["qualifying_token_index"]
            assert len(values) == len(group["tokens"])
            assert group["bin_min"] < 0 or group["bin_min"] - 1e-3 <= values[at] <= group["bin_max"] + 1e-3
    return found["features"]


def agree(page_path, json_path):
    data, _ = data_of(page_path)
    shown = {f["i"]: f for f in data["features"]}
    for f in board(json_path, 2, True):
        g = shown[f["feature_index"]]
        assert close(f["frac_nonzero"], g["density"]) and f["fired"] == g["fired"] and f["max"] == g["max"]
        assert f["freq_hist_data_bar_heights"] == g["hist"]
        assert f["neuron_alignment_indices"] == [j for j, _, _ in g["align"]]
        assert f["neuron_alignment_l1"] == [share for _, _, share in g["align"]]
        assert f["correlated_features_indices"] == [j for j, _, _ in g["with"]][:3]
        assert f["correlated_features_pearson"] == [p for _, _, p in g["with"]][:3]
        assert f["pos_values"] == [v for _, v in g["logits"]["up"]]
        assert f["pos_str"] == [data["tokens"][t] for t, _ in g["logits"]["up"]]
        assert f["neg_values"] == [v for _, v in g["logits"]["down"]]
        assert len(f["activations"]) == g["at"][1]
        assert [t["token"] for t in f["mean_tokens"]] == [data["tokens"][t] for t, _, _ in g["mean_tokens"]]


def tame(path):
    data, text = data_of(path)
    shown = set(data["tokens"])
    for token in HOSTILE:
        assert token.decode("utf-8", "replace") in shown or token == b"\xe2\x80" and "\ufffd" in "".join(shown), token
    inner = text[text.index('<script id="data"'):]
    inner = inner[:inner.index("</script>")]
    for c in inner:
        assert unicodedata.category(c) not in ("Cc", "Cf", "Zl", "Zp"), hex(ord(c))


def hostile(source, target):
    """Tokens of the vocabulary are replaced; without merges every id is a token of its own."""
    with open(source, encoding="utf-8") as file:
        tokenizer = json.load(file)
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letter = {b: chr(b) for b in plain}
    letter.update({b: chr(256 + k) for k, b in enumerate(b for b in range(256) if b not in plain)})
    words = ["".join(letter[b] for b in token) for token in HOSTILE]
    vocabulary = {t: i for t, i in tokenizer["model"]["vocab"].items() if t not in words or len(t) == 1}
    free = iter(sorted(set(range(2048)) - set(vocabulary.values()) | set(sorted(vocabulary.values())[-len(words):])))
    ids = [vocabulary[w] if w in vocabulary else next(free) for w in words]
    by_id = {i: t for t, i in vocabulary.items()}
    by_id.update(zip(ids, words))
    tokenizer["model"]["vocab"] = {t: i for i, t in by_id.items()}
    tokenizer["model"]["merges"] = []
    with open(target, "w", encoding="utf-8") as file:
        json.dump(tokenizer, file)
    for k in range(30):
        print(json.dumps({"input_ids": [i for j in range(3) for i in ids[(k + j) % len(ids):] + [5 + k, 7]]}))


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what in ("json", "compat"):
        board(rest[0], rest[1], what == "json")
    else:
        {"page": page, "agree": agree, "tame": tame, "hostile": hostile}[what](*rest)
