"""Token ids of examples/lm/bpe.h against Hugging Face's tokenizers: `$(PYTHON) tests/tokenizer_check.py build`.

Small tokenizers of many forms are written under build/tmp, and strings that go wrong easily are encoded with each of
them on both sides. Seeded, so that a difference comes back.
"""
import functools
import json
import os
import pathlib
import random
import subprocess
import sys
import unicodedata

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

BUILD = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build")
TMP = BUILD / "tmp"
PROGRAM = BUILD / "tokenize_lines"
SHARED = pathlib.Path(os.environ.get("DICTLEARN_SHARED", "../shared"))
TINY = pathlib.Path("examples/data/tiny-neox/tokenizer.json")

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = HEAD + r"\p{N}{1,3}" + TAIL
QWEN2 = HEAD + r"\p{N}" + TAIL

# ---- strings
WORDS = """Hello world! It's we're they'll I'd I'm you've IT'S WE'RE 'S 'tis y'all'd've ''s 'ſ x'ſ
3 33 333 3333 33333 3.14 ½ ² Ⅻ ٣٤ १२३ 1a2b3c x1 1000000000 _under_score__ snake_case a_b-c+d
the quick brown fox jumps over the lazy dog and the other other others""".split("\n")
SPACES = ["", " ", "  ", "   ", "\t", "\n", "\r\n", "\n\n\n", " \n ", "a  b", "a \n b", "a\n\nb", "  a", "a  ",
          "a \t\n", "a" + " " * 23 + "b", "a" + " " * 24 + "b", "a" + " " * 25, " " * 100, "\u00a0",
          "a\u00a0\u00a0b", "\u3000a", "\u2028\u2029", "x\u200b y", "\x85z", "\x1c\x1d\x1e\x1f a", "a\r\n  b\r\r c",
          "\n a\n  b\n   c", " \r\n!\n\n?"]
CONTROL = ["\0", "a\0b", "\x01\x02\x7f", "\x1b[0m", "\ufeffBOM", "\ufffd", "\ufffe\uffff", "\u200d", "\u200e\u202e"]
SCRIPTS = ["我想在apple工作1314151天～", "日本語のテキスト。", "한국어 텍스트", "Привет, мир", "عربى ١٢٣", "हिन्दी क्षि", "ไทยภาษา",
           "កាន់តែពិសេស", "Ελληνικά ΣΊΣΥΦΟΣ ς", "İstanbul ıI", "ŒUVRE ǅ ß ẞ", "ﬁ ﬂ ﬃ ﬅ", "①②⑳ ⓐⓏ 🄰🅰", "ℌ ℕ µ Å Ω",
           "ªº¹²³¼"]
EMOJI = ["🦙", "😶‍🌫️", "👨‍👩‍👧‍👦", "🇩🇪🇫🇷", "👍🏽 ok", "🚀 (normal) ✅", "a🦙b", "❤️", "🏴\U000e0067\U000e0062\U000e007f"]
MARKS = ["e\u0301", "a\u0323\u0307", "a\u0307\u0323", "\u0301", " \u0301a", "A\u030a \u212b", "q\u0307\u0323\u0301",
         "é\u0323", "\u1100\u1161\u11a8 \uac00\u11a8", "\u0f71\u0f72\u0f74", "\u0344 \u0958 \u2126",
         "\u1e69 s\u0323\u0307", "1\u20e3", "o\u0302\u0301\u0300 \u1ed1", "\u0c46\u0c56 \u0dd9\u0dcf\u0dca",
         "\U0001d15e \U000110ab", "\u2adc\ufb1d\ufb2c"]
ADDED = ["<|endoftext|>", "a<|endoftext|>b", " <|endoftext|> ", "<|endoftext|><|endoftext|>", "<|endoftext",
         "<|endoftext|>\n", "<left>", "a  <left>b", "a <left>  <left> b", "<right>  a", "a<right> \n<right>  ",
         "<both>", "x \t<both>\n y", "<right>  <left>", "<left><right>  <both> ", "word", "a word b", "words",
         "sword", " word.", "é word_", "word word", "Café", "CAFÉ café", "Cafe\u0301", "a Cafe\u0301s", "ab", "abc",
         "abcd", "abcde", "xabcabcdab", "[a][b]", "tokenxtoken", "\u00a0<left>", "\u200dword", "wordⓐ",
         "word\u0301", "word1", "1word", "<two  spaces>", "q  q", "<right> q", "qq q",
         "\u3000\u00a0", "\u3000\t\u00a0b", "a\u3000 q", "<right> q b"]
LONG = ["a" * 10000, "ab" * 5000, "the" * 3333, " " * 10000, "🦙" * 2500, "1" * 10000, "e\u0301" * 3000, "\n" * 10000,
        "".join(random.Random(7).choices("abcdeé", k=10000))]


@functools.cache
def same_tables():
    """Whether examples/lm/unicode_tables.h was written by this version of Unicode."""
    return f"Unicode {unicodedata.unidata_version}:" in pathlib.Path("examples/lm/unicode_tables.h").read_text()[:60]


def known_characters():
    """Those that all three have in their tables, as far as it can be told: all of Unicode 3.2; of the later ones those
    that tokenizers' normalisers (which have Unicode 9) treat as Python does."""
    nfkd, out = normalizers.NFKD(), []
    for c in map(chr, range(0x110000)):
        if unicodedata.category(c) in ("Cn", "Cs", "Co"):
            continue
        probes = [c, f"a{c}\u0334", f"a\u0345{c}"]
        if unicodedata.ucd_3_2_0.category(c) != "Cn":
            out.append(c)
        elif same_tables() and all(nfkd.normalize_str(p) == unicodedata.normalize("NFKD", p) for p in probes):
            out.append(c)
    return out


def random_strings(rng):
    """ASCII, any Unicode, few kinds of characters that patterns tell apart, and pieces of all the strings above."""
    known = known_characters()
    marks = [c for c in known if unicodedata.combining(c)]
    parts = [c for c in known if unicodedata.normalize("NFKD", c) != c]
    kinds = "aZsS'tTlLvV19² ½\u0301é \t\n\r\u00a0\u3000.,!_-<>|中ſ🦙"
    pieces = [p for group in (WORDS, SPACES, SCRIPTS, EMOJI, MARKS, ADDED) for p in group]
    some = lambda alphabet, n: "".join(rng.choices(alphabet, k=rng.randint(1, n)))
    return {
        "random ASCII": [some([chr(c) for c in range(128)], 60) for _ in range(150)],
        "random Unicode": [some(known, 30) for _ in range(300)],
        "random marks": [some("ae" + some(marks, 40), 12) for _ in range(150)],
        "random compositions": [some(parts, 10) for _ in range(150)],
        "random kinds": [some(kinds, 20) for _ in range(500)],
        "random mixtures": [some(pieces, 6) for _ in range(400)],
    }


def strings():
    fixed = {"words": WORDS, "spaces": SPACES, "control": CONTROL, "scripts": SCRIPTS, "emoji": EMOJI, "marks": MARKS,
             "added": ADDED, "long": LONG}
    return {**fixed, **random_strings(random.Random(20240301))}


# ---- tokenizers
FLAGGED = [
    ("<|endoftext|>", {"special": True}), ("<left>", {"lstrip": True}), ("<right>", {"rstrip": True}),
    ("<both>", {"lstrip": True, "rstrip": True, "special": True, "normalized": False}), ("word", {"single_word": True}),
    ("Café", {}), ("abc", {"normalized": False}), ("ab", {"normalized": False}), ("abcde", {}), ("[a]", {}),
    ("<two  spaces>", {"normalized": False}), (" q", {"normalized": False}), ("é wo", {"normalized": False}),
    ("\u3000", {"rstrip": True, "normalized": False}), ("\u00a0", {"lstrip": True, "normalized": False}),
]


def trained():
    """A small byte-level BPE over the strings above, as a dict: the same on each call."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    tok.train_from_iterator([*WORDS, *SCRIPTS, *EMOJI, *MARKS, *ADDED] * 3, trainer)
    tok.normalizer = None
    return json.loads(tok.to_str())


def all_pairs(rng):
    """Every pair of bytes merges, in an order drawn by lot, and no further: whichever way a word is cut shows."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(a, b) for a in alphabet for b in alphabet]
    rng.shuffle(pairs)
    vocab = {token: i for i, token in enumerate([*alphabet, *map("".join, pairs)])}
    return {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": vocab, "merges": pairs}}


def with_added(base, which=FLAGGED):
    tok = Tokenizer.from_str(json.dumps(base))
    for content, flags in which:
        tok.add_tokens([AddedToken(content, **{"normalized": True, **flags})])
    return json.loads(tok.to_str())


def step(kind, **fields):
    defaults = {"ByteLevel": {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}}
    return {"type": kind, **defaults.get(kind, {}), **fields}


def split(regex, behavior="Isolated", invert=False):
    return step("Split", pattern={"Regex": regex}, behavior=behavior, invert=invert)


def chain(*steps):
    return step("Sequence", pretokenizers=[*steps, step("ByteLevel", use_regex=False)])


PRE_TOKENIZERS = {
    "ByteLevel": step("ByteLevel"),
    "ByteLevel, prefix space": step("ByteLevel", add_prefix_space=True),
    "ByteLevel, no pattern": step("ByteLevel", use_regex=False),
    "Split GPT-2": chain(split(GPT2)),
    "Split Llama 3": chain(split(LLAMA3)),
    "Split Llama 3, inverted": chain(split(LLAMA3, "Removed", True)),
    "Split Qwen 2": chain(split(QWEN2)),
    "Digits": chain(step("Digits", individual_digits=False)),
    "each digit, GPT-2": step("Sequence", pretokenizers=[step("Digits", individual_digits=True), step("ByteLevel")]),
    "prefix space after Digits": step("Sequence", pretokenizers=[
        step("Digits", individual_digits=True), step("ByteLevel", add_prefix_space=True)]),
    "Punctuation": chain(step("Punctuation", behavior="Isolated")),
    "Whitespace": chain(step("Whitespace")),
    "WhitespaceSplit": chain(step("WhitespaceSplit")),
}
NORMALIZERS = {
    "NFC": {"type": "NFC"}, "NFD": {"type": "NFD"}, "NFKC": {"type": "NFKC"}, "NFKD": {"type": "NFKD"},
    "Lowercase": {"type": "Lowercase"},
    "NFC, Lowercase": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
    "Prepend": {"type": "Prepend", "prepend": "▁x"},
    "Replace": {"type": "Replace", "pattern": {"String": "a"}, "content": "é!"},
    "Strip": {"type": "Strip", "strip_left": True, "strip_right": True},
    "Strip left": {"type": "Strip", "strip_left": True, "strip_right": False},
}


def model_forms(base):
    """(name, tokenizer): other forms of the model itself."""
    merges = base["model"]["merges"]
    change = lambda **fields: {**base, "model": {**base["model"], **fields}}
    lost = {k: v for k, v in base["model"]["vocab"].items() if k not in "zq~Ċ"}
    kept = [m for m in merges if all(p in lost for p in m) and "".join(m) in lost]
    yield "merges as strings", change(merges=[" ".join(m) for m in merges])
    yield "ignore_merges", change(ignore_merges=True, merges=merges[::2])
    yield "merges twice", change(merges=merges + merges[100:50:-1])
    yield "bytes without a token", change(vocab=lost, merges=kept)
    yield "unk_token", change(vocab=lost, merges=kept, unk_token="a")
    yield "unk_token, fused", change(vocab=lost, merges=kept, unk_token="a", fuse_unk=True)


def forms():
    """(name, the dict of tokenizer.json or its path, what ids must decode to or None)."""
    base = trained()
    plain, added = {**base, "pre_tokenizer": step("ByteLevel")}, with_added(all_pairs(random.Random(3)))
    yield "tiny-neox", TINY, str
    for name, pre in PRE_TOKENIZERS.items():
        yield name, {**added, "pre_tokenizer": pre}, None
    for name, normal in NORMALIZERS.items():
        yield name, with_added({**plain, "normalizer": normal}), None
    for name, form in model_forms(plain):
        yield name, form, str if name in ("merges as strings", "ignore_merges", "merges twice") else None
    big = SHARED / "data/tokenizer/20B_tokenizer.json"
    yield "20B", big if big.exists() else None, lambda s: unicodedata.normalize("NFC", s)


# ---- comparison
def build():
    TMP.mkdir(parents=True, exist_ok=True)
    if not PROGRAM.exists():
        sys.exit(f"{PROGRAM} is not built: run `make interop`")


def ours(path, texts):
    """[(ids, bytes they decode to)], or the error's text."""
    packed = b"".join(b"%d\n" % len(b) + b for b in (t.encode() for t in texts))
    run = subprocess.run([str(PROGRAM), str(path)], input=packed, capture_output=True, check=False)
    if run.returncode:
        return run.stderr.decode(errors="replace").strip() or f"ended with status {run.returncode}"
    lines = [line.split("\t") for line in run.stdout.decode().split("\n")[:-1]]
    return [([int(i) for i in ids.split()], bytes.fromhex(back)) for ids, back in lines]


def shorten(text):
    return ascii(text if len(text) < 60 else text[:60] + "...")


def difference(text, mine, theirs, back):
    ids, decoded = mine
    if ids != theirs:
        return f"{shorten(text)}: ids {ids[:12]}, tokenizers has {theirs[:12]}"
    if back and decoded != back(text).encode():
        return f"{shorten(text)}: decodes to {decoded[:60]}"
    return None


def expected(theirs, text):
    """None where the library itself gives up: it panics at an added token with lstrip that ends before the spaces end
    which the one before it took with rstrip."""
    try:
        return theirs.encode(text, add_special_tokens=False).ids
    except BaseException as e:  # the panic is not an Exception
        if "bad split" not in str(e):
            raise
        return None


def check(name, path, back, groups):
    """Lines of what differs: one a group of strings at most."""
    theirs = Tokenizer.from_file(str(path))
    for group, texts in groups.items():
        mine = ours(path, texts)
        if isinstance(mine, str):
            yield mine
            return
        if len(mine) != len(texts):
            yield f"{group}: {len(mine)} answers to {len(texts)} strings"
            continue
        pairs = zip(texts, mine, (expected(theirs, t) for t in texts))
        bad = [d for d in (difference(*p, back) for p in pairs if p[2] is not None) if d]
        if bad:
            yield f"{group}: {len(bad)} of {len(texts)} differ: {bad[0]}"


def main():
    build()
    groups, passed, failed, skipped = strings(), 0, 0, 0
    for name, form, back in forms():
        if form is None:
            print(f"skip {name}: the file is not there")
            skipped += 1
            continue
        path = form
        if isinstance(form, dict):
            path = TMP / f"tokenizer_{''.join(c if c.isalnum() else '_' for c in name)}.json"
            path.write_text(json.dumps(form, ensure_ascii=False))
        bad = list(check(name, path, back, groups))
        for line in bad:
            print(f"FAIL {name}: {line}")
        if not bad:
            print(f"ok   {name}: {sum(map(len, groups.values()))} strings")
        passed, failed = passed + (not bad), failed + bool(bad)
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
