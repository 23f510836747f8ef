"""make_page.py OUT.html [--features F] [--shown N] [--seed S] [--damage HOW]

Writes a feature page from invented data, as `dictlearn features --out` would from a model's: for
looking at examples/program/page.html and for driving it in tests. Features have themes, so that
their contexts, tokens and logits belong together; feature 0 of those shown collects the tokens
that a page can trip over: markup, control and bidi characters, halves of characters, blanks.

--damage json | version | field | examples: what the page must say one clear sentence about."""

import argparse, base64, json, math, pathlib, random, struct

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINS, BEFORE, AFTER, ROWS = 50, 32, 16, 1_000_000

PLAIN = """ the of and to in a is that for it was on with as by at from his her they this had not are
 but which or have an one were all their there been if more when will would who so no out up into
 than them can only other new some could time these two may then do first any now such like our
 over man me even most made after also did many before must through years where much way well down
 should because each just those people how too little state good very make world still own see men
 work long here get both between life being under never day same another know while last might us
 great old year off come since against go came right used take three""".split()
THEMES = """ king queen throne crown royal prince|river lake water stream flood bank|law court judge
 legal appeal statute|code function return int void struct|music song guitar piano melody chord|
 doctor patient hospital clinical disease dose|Monday Tuesday Friday weekend week Sunday|red blue
 green yellow colour bright|run running walked jumped moved ran|France Paris French Lyon Europe
 Seine|seven eight twelve forty hundred dozen|not never neither nor without none""".split("|")
ENDINGS = ["ing", "ed", "s", "ly", "er", "tion", ",", ".", "\n", "\n\n", ";", "'s", " (", ")", "-"]
HOSTILE = ["<script>alert(1)</script>", "</script>", "<img src=x onerror=alert(1)>", "&amp;", "\"'`",
           "\u202eabc", "\u2066", "\u2069", "\u202c", "\u0000", "\u0007", "\u001b[31m", "\u007f",
           "\u0085", "\ufffd", "\ufffd\ufffd", "\u0301", "a\u0301\u0302\u0303\u0304\u0305", "\u200b",
           "\u200d", "\ufeff", "\u00ad", "\u3000", "\u2028", " ", "    ", "\t", "\r\n", "", "שלום",
           " مرحبا", "漢字", "👩\u200d💻", "\ue000", "{{x}}", "${x}", "@DA" "TA@", "x" * 60, "\\u003c"]


def b64(data):
    return base64.b64encode(data).decode()


def floats(values):
    return b64(struct.pack(f"<{len(values)}f", *values))


class Maker:
    def __init__(self, features, shown, seed):
        self.r = random.Random(seed)
        self.features = features
        self.shown = sorted(self.r.sample(range(features), min(shown, features)))
        self.tokens = [" " + w for w in PLAIN] + ENDINGS
        self.plain = len(self.tokens)
        self.themes = []
        for theme in THEMES:
            words = [" " + w for w in theme.split()]
            self.themes.append(list(range(len(self.tokens), len(self.tokens) + len(words))))
            self.tokens += words
        self.themes.append(list(range(len(self.tokens), len(self.tokens) + len(HOSTILE))))
        self.tokens += HOSTILE
        self.density = [0.0 if self.r.random() < 0.06 else min(10 ** self.r.gauss(-2.8, 0.7), 0.6)
                        for _ in range(features)]
        for i in self.shown[:-1]:
            self.density[i] = max(self.density[i], 1e-5)
        self.density[self.shown[-1]] = 0.0 # a dead feature may have been asked for
        self.density[self.shown[1]] = 0.31 # a dense one as well
        self.max = [0.0 if d == 0 else math.exp(self.r.gauss(1.6, 0.7)) * (1 + d) for d in self.density]
        self.packed = bytearray()

    def window(self, theme, peak, top):
        """One context's tokens and values, the place of the firing one among them."""
        before = self.r.choice([BEFORE] * 5 + [self.r.randrange(BEFORE)])
        after = self.r.choice([AFTER] * 5 + [self.r.randrange(AFTER)])
        ids = [self.r.randrange(self.plain) for _ in range(before + 1 + after)]
        values = [0.0] * len(ids)
        for i in range(len(ids)):
            if self.r.random() < 0.06:
                ids[i], values[i] = self.r.choice(theme), peak * self.r.random()
        ids[before], values[before] = theme[min(int(self.r.expovariate(0.7)), len(theme) - 1)], peak
        if theme is self.themes[-1]:
            ids[before] = self.r.choice(theme)
        return before, ids, [0 if v <= 0 else max(1, round(255 * v / top)) for v in values]

    def pack(self, interval, theme, peak, top):
        at, ids, values = self.window(theme, peak, top)
        self.packed += struct.pack("<IbBB", self.r.randrange(8000), interval, at, len(ids))
        self.packed += struct.pack(f"<{len(ids)}H", *ids) + bytes(values) + struct.pack("<f", peak)

    def examples(self, theme, top):
        at = len(self.packed)
        peaks = sorted((top * (1 - 0.5 * self.r.random() ** 2) for _ in range(19)), reverse=True)
        for peak in [top] + peaks:
            self.pack(-1, theme, peak, top)
        for interval in range(5):
            for _ in range(5):
                self.pack(interval, theme, top * (5 - interval - self.r.random() * 0.98) / 5, top)
        return [at, 45]

    def logits(self, theme):
        def side(sign):
            pool = theme if sign > 0 else range(self.plain)
            ids = [pool[i % len(pool)] if sign > 0 else self.r.choice(pool) for i in range(10)]
            return [[t, round(sign * v, 4)] for t, v in
                    zip(ids, sorted((0.2 + self.r.random() for _ in ids), reverse=True))]
        bell = [round(50000 * math.exp(-((i - 24) / 6.5) ** 2)) + (i in (2, 48)) for i in range(BINS)]
        return {"up": side(1), "down": side(-1), "hist": bell, "low": -1.24, "high": 1.24}

    def others(self, n, last):
        return [[j, *last(k)] for k, j in enumerate(self.r.sample(range(self.features), n))]

    def feature(self, slot, i):
        theme = self.themes[-1] if slot == 0 else self.themes[self.r.randrange(len(THEMES))]
        top, fired = self.max[i], round(self.density[i] * ROWS)
        out = {"i": i, "density": self.density[i], "fired": fired, "min": top * 0.01, "max": top,
               "mean": top * 0.22 * self.density[i], "norm": 1.0, "hist": [0] * BINS, "logits": self.logits(theme),
               "mean_tokens": [], "share_tokens": [], "with": [], "align_in": [], "near_in": []}
        out["near"] = self.others(10, lambda k: [round(0.8 * 0.85 ** k, 3)])
        out["align"] = self.others(3, lambda k: [0.31 - 0.05 * k, 0.014 - 0.002 * k])
        out["neurons"] = self.others(3, lambda k: [0.52 - 0.1 * k, 0.61 - 0.1 * k])
        out["intervals"] = [[top * (4 - j) / 5, top * (5 - j) / 5, self.density[i] * [.01, .03, .09, .22, .65][j]]
                            for j in range(5)]
        if fired == 0:
            out.update(min=0, mean=0, neurons=[], intervals=[[0, 0, 0]] * 5, at=[len(self.packed), 0])
            return out
        out["hist"] = [round(fired * 0.11 * math.exp(-0.11 * b)) for b in range(BINS)]
        out["mean_tokens"] = [[t, top * 0.7 * 0.8 ** k, 3 + self.r.randrange(900)]
                              for k, t in enumerate(theme[:10])]
        out["share_tokens"] = [[t, 0.5 * 0.6 ** k] for k, t in enumerate(theme[:10])]
        out["with"] = self.others(10, lambda k: [round(fired * 0.5 * 0.8 ** k), 0.4 * 0.8 ** k])
        out["at"] = self.examples(theme, top)
        return out

    def data(self):
        features = [self.feature(slot, i) for slot, i in enumerate(self.shown)]
        return {"version": 1, "title": "Features of an invented model",
                "about": [["model", "invented"], ["site", "resid_out, layer 15"], ["family", "top-k, k = 32"],
                          ["dictionary", "invented/ae.pt"], ["features", str(self.features)],
                          ["rows", str(ROWS)], ["text", "<b>words</b> drawn by make_page.py"]],
                "notes": ["The final norm is left out of the logit effects: its scale differs from row to row.",
                          "All figures here are invented."],
                "tokens": self.tokens, "all": {"density": floats(self.density), "max": floats(self.max)},
                "map": {"kind": "density-max"}, "window": {"ids": 2}, "features": features,
                "examples": b64(bytes(self.packed))}


def escaped(data):
    """JSON that cannot end the script element, nor turn the text around for who reads the file."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")


def damaged(data, how):
    if how == "version":
        data["version"] = 2
    if how == "field":
        del data["all"]
    if how == "examples":
        data["examples"] = data["examples"][:1000]
    text = escaped(data)
    return text[:len(text) // 2] if how == "json" else text


def main():
    p = argparse.ArgumentParser()
    p.add_argument("out")
    p.add_argument("--features", type=int, default=2000)
    p.add_argument("--shown", type=int, default=300)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--damage", choices=["json", "version", "field", "examples"])
    a = p.parse_args()
    template = (ROOT / "examples/program/page.html").read_text()
    mark = "@DA" "TA@"
    assert template.count(mark) == 1, f"page.html: expected {mark} once, found {template.count(mark)}"
    data = Maker(a.features, a.shown, a.seed).data()
    pathlib.Path(a.out).write_text(template.replace(mark, damaged(data, a.damage)))


if __name__ == "__main__":
    main()
