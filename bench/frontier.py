"""frontier.py - trainings that one can believe in: what dictionaries of each recipe keep of a model at equal L0. It
uses the command line program and the standard library only.

    frontier.py BUILD [--text FILE [--named WORDS]] [--model FOLDER] [--site S] [--layer N] [--rows N] [--epochs N]
                [--dry]

Without --text the small model of examples/data/tiny-neox writes one. A FILE is plain text or JSON lines, also in xz or
gzip. Of its documents one in twenty is held out for the figures, and one in twenty for the choice of the learning
rates. All recipes have the same rows, in the same order and scaled to a mean squared norm of d, the same number of
steps, warm-up and decay, and the same four learning rates to choose from, each tried on half of the steps.
Writes bench/results/frontier.json and .svg, and the table of bench/README.md (not with --dry). Fails if BatchTopK does
not beat the ReLU recipe at each L0.
"""
import argparse
import array
import gzip
import json
import lzma
import math
import pathlib
import shutil
import subprocess
import sys
import time

import plot

HERE = pathlib.Path(__file__).parent
RESULTS, README = HERE / "results", HERE / "README.md"
BATCH, EXPANSION, TARGETS = 2048, 16, (16, 32, 64)
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
MIDDLE = 32  # the rates are chosen here
# Recipe, name, colour, and how its L0 is set. ReLU's follows from its penalty (in short runs --target-l0 has no time to
# steer it): figures at an L0 are interpolated between neighbours.
RECIPES = (("dl-batch_top_k", "BatchTopK", "green", "--k"), ("dl-top_k", "TopK", "blue", "--k"),
           ("dl-matryoshka", "Matryoshka", "violet", "--k"), ("dl-jump_relu", "JumpReLU", "red", "--target-l0"),
           ("reference", "ReLU, L1", "grey", "--sparsity-penalty"))
AIMS = {"reference": (0.005, 0.01, 0.02, 0.04, 0.07, 0.12)}


class Failed(Exception):
    pass


def say(text):
    print(text, flush=True)


# ---- documents
def lines_of(path):
    name = str(path)
    opened = lzma.open if name.endswith(".xz") else gzip.open if name.endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8", errors="replace") as file:
        yield from file


def documents_of(path, characters):
    """JSON lines as they are; of plain text paragraphs, joined until they fill a context."""
    stem = str(path).removesuffix(".xz").removesuffix(".gz")
    if stem.endswith(".jsonl"):
        for line in lines_of(path):
            yield json.loads(line)["text"]
        return
    held = ""
    for line in lines_of(path):
        if line.strip():
            held += line.strip() + " "
        elif len(held) > characters:
            yield held.strip()
            held = ""
    if held:
        yield held.strip()


def share_out(documents, folder, rows):
    """Passages of up to 50 documents in a row, from all parts of the text: of twenty the last is held out, the tenth is
    for the rates."""
    enough = rows // 80
    size = max(1, min(50, min(len(documents), enough) // 40))
    passages = [documents[i:i + size] for i in range(0, len(documents), size)]
    files = {name: (folder / f"{name}.jsonl").open("w") for name in ("train", "tune", "held")}
    for i, passage in enumerate(passages[::max(1, len(documents) // enough)]):
        name = {19: "held", 9: "tune"}.get(i % 20, "train")
        files[name].writelines(json.dumps({"text": text}) + "\n" for text in passage)
    for file in files.values():
        file.close()


class Program:
    """The command line program with a model's site; all output goes to a log."""

    def __init__(self, arguments):
        self.path, self.folder = arguments.build / "dictlearn", arguments.build / "frontier"
        self.model, self.site, self.layer = arguments.model, arguments.site, arguments.layer
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = (self.folder / "log.txt").open("w")

    def run(self, *words):
        words = [str(self.path), *map(str, words), "--quiet"]
        self.log.write("$ " + " ".join(words) + "\n")
        done = subprocess.run(words, capture_output=True, text=True)
        self.log.write(done.stdout + done.stderr)
        self.log.flush()
        if done.returncode:
            raise Failed(f"{' '.join(words[:2])}: {done.stderr.strip()}")
        return done.stdout

    def at_site(self, name):
        return ("--model", self.model, "--text", self.folder / f"{name}.jsonl", "--site", self.site, "--layer",
                self.layer, "--bos", "--skip-special")


def write_documents(program, arguments):
    if arguments.text:
        share_out(list(documents_of(arguments.text, 400)), program.folder, arguments.rows)
        return
    out = program.folder / "all.jsonl"
    program.run("generate", "--model", arguments.model, "--tokens", 128, "--documents", arguments.rows // 110, "--seed",
                1, "--out", out)
    share_out(list(documents_of(out, 0)), program.folder, arguments.rows)


# ---- rows
def scaled(source, target):
    """Copies a .npy of f32, scaled to a mean squared norm of its width. Returns its rows, its width and the scale."""
    with source.open("rb") as file:
        head = file.read(10)
        head += file.read(int.from_bytes(head[8:10], "little"))
        start, width = file.tell(), int(head.decode("latin1").split("(")[1].split(")")[0].split(",")[1])
        rows = (source.stat().st_size - start) // (4 * width)
        sample = array.array("f", file.read(4 * width * min(rows, 4096)))
        scale = (len(sample) / math.fsum(v * v for v in sample)) ** 0.5
        file.seek(start)
        with target.open("wb") as out:
            out.write(head)
            while piece := file.read(1 << 22):
                array.array("f", [scale * v for v in array.array("f", piece)]).tofile(out)
    return rows, width, scale


class Rows:
    def __init__(self, program, limit):
        plain = program.folder / "plain.npy"
        self.path = program.folder / "rows.npy"
        program.run("activations", *program.at_site("train"), "--limit", limit, "--out", plain)
        self.count, self.width, self.scale = scaled(plain, self.path)
        plain.unlink()


# ---- runs
def settings(recipe, width, steps):
    """What depends on the length of a run and, for JumpReLU, on the scale of rows: its defaults are for a norm of 1."""
    given = ["--warmup-steps", steps // 20, "--decay-start", steps - 1 - steps // 5]
    if recipe == "reference":
        return given
    if recipe == "dl-jump_relu":
        return [*given, "--sparsity-warmup-steps", steps // 10, "--bandwidth", 0.001 * width**0.5, "--sparsity-penalty",
                width]
    return [*given, "--dead-rows", steps * BATCH // 10, "--threshold-start-step", steps - 1 - steps // 5,
            "--threshold-beta", 1 - 1 / max(2, steps // 20)]


def train(program, rows, recipe, target, rate, steps):
    flag = next(flag for name, _, _, flag in RECIPES if name == recipe)
    folder = program.folder / "run"
    shutil.rmtree(folder, ignore_errors=True)
    start = time.monotonic()
    program.run("train", "--recipe", recipe, "--data", rows.path, "--dict-size", EXPANSION * rows.width, "--batch-size",
                BATCH, "--steps", steps, "--epochs", 99, "--lr", rate, flag, target,
                *settings(recipe, rows.width, steps), "--save-dir", folder)
    return time.monotonic() - start


def evaluate(program, rows, name):
    out = program.run("eval", "--json", "--dict", program.folder / "run", "--norm-scale", f"{rows.scale:.9g}",
                      *program.at_site(name), "--rows", 32768, "--documents", 256)
    found = json.loads(out)
    return {"l0": found["l0"], "variance_explained": found["variance_explained"],
            "ce_recovered": found["percent_recovered"], "alive": found["percent_alive"]}


def figure(program, rows, recipe, target, rate, steps, name):
    seconds = train(program, rows, recipe, target, rate, steps)
    found = {"recipe": recipe, "target": target, "lr": rate, "steps": steps, **evaluate(program, rows, name),
             "seconds": round(seconds, 1)}
    say(f"  {recipe:15} {target:4g} lr {rate:<6g} {steps:5} steps {seconds:6.1f} s   L0 {found['l0']:6.1f}  "
        f"variance explained {found['variance_explained']:.4f}  CE recovered {found['ce_recovered']:.4f}  "
        f"alive {found['alive']:.3f}")
    return found


def at_l0(points, l0, key):
    """The figure of a recipe at an L0: linear in log L0 between its neighbours; None outside of them."""
    points = sorted(points, key=lambda p: p["l0"])
    for low, high in zip(points, points[1:]):
        if low["l0"] <= l0 <= high["l0"]:
            share = math.log(l0 / low["l0"]) / math.log(high["l0"] / low["l0"])
            return low[key] + share * (high[key] - low[key])
    return None


def trial(program, rows, recipe, rate, steps):
    """Variance explained at L0 32. Where L0 is only aimed for, two runs surround it; None: they do not, or a loss grew
    beyond all bounds."""
    try:
        return variance_at_middle(program, rows, recipe, rate, steps)
    except Failed as why:
        say(f"  {recipe:15} lr {rate:g}: {why}")
        return None


def variance_at_middle(program, rows, recipe, rate, steps):
    if next(flag for name, _, _, flag in RECIPES if name == recipe) == "--k":
        return figure(program, rows, recipe, MIDDLE, rate, steps, "tune")["variance_explained"]
    aims = AIMS.get(recipe, (MIDDLE * 2 // 3, MIDDLE * 3 // 2))
    runs = [figure(program, rows, recipe, target, rate, steps, "tune") for target in aims]
    return at_l0(runs, MIDDLE, "variance_explained")


def choose_rate(program, rows, recipe, steps):
    """The rate that keeps most, and the trials of all."""
    tried = [{"recipe": recipe, "lr": rate, "variance_explained": trial(program, rows, recipe, rate, steps)}
             for rate in RATES]
    known = [t for t in tried if t["variance_explained"] is not None]
    if not known:
        raise Failed(f"{recipe}: no learning rate brings L0 to {MIDDLE}")
    return max(known, key=lambda t: t["variance_explained"])["lr"], tried


# ---- what is kept
def comparison(points):
    """BatchTopK against the ReLU recipe at the L0 of each of its dictionaries: [(L0, ours, ReLU's or None)]."""
    relu = [p for p in points if p["recipe"] == "reference"]
    return [(p["l0"], p["variance_explained"], at_l0(relu, p["l0"], "variance_explained"))
            for p in points if p["recipe"] == "dl-batch_top_k"]


def beaten(points):
    compared = comparison(points)
    return len(compared) > 0 and all(theirs is not None and ours > theirs for _, ours, theirs in compared)


def name_of(recipe):
    return next(name for r, name, _, _ in RECIPES if r == recipe)


def table_of(found):
    lines = [found["text"], "", "| recipe | aim | lr | L0 | variance explained | CE recovered | alive |",
             "|---|---|---|---|---|---|---|"]
    lines += [f"| {name_of(p['recipe'])} (`{p['recipe']}`) | {p['target']:g} | {p['lr']:g} | {p['l0']:.1f} | "
              f"{p['variance_explained']:.4f} | {p['ce_recovered']:.4f} | {p['alive']:.1%} |" for p in found["points"]]
    lines += ["", "Variance explained at L0 32 in the trials of the learning rates (half of the steps, documents "
              "of their own):", "", "| recipe | " + " | ".join(f"{rate:g}" for rate in RATES) + " |",
              "|---" * (len(RATES) + 1) + "|"]
    for recipe, name, _, _ in RECIPES:
        scores = [t["variance_explained"] for t in found["trials"] if t["recipe"] == recipe]
        if scores:
            lines.append(f"| {name} | " + " | ".join("-" if s is None else f"{s:.4f}" for s in scores) + " |")
    return "\n".join(lines)


def ticks_of(values):
    """About five round numbers around the values."""
    step = next(s for s in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 1) if (max(values) - min(values)) / s < 6)
    low = math.floor(min(values) / step)
    return [step * i for i in range(low, max(low + 1, math.ceil(max(values) / step)) + 1)]


def svg_of(points):
    panels = []
    shown = [(r, name, colour) for r, name, colour, _ in RECIPES if any(p["recipe"] == r for p in points)]
    across = plot.Axis("active features per row, L0", [8, 16, 32, 64, 128], log=True)
    for key, title in (("variance_explained", "variance explained"), ("ce_recovered", "cross-entropy recovered")):
        curves = [(colour, "line", sorted((min(128, max(8, p["l0"])), p[key]) for p in points if p["recipe"] == r))
                  for r, _, colour in shown]
        up = plot.Axis("", ticks_of([p[key] for p in points]), text="{:.3g}")
        panels.append(plot.Panel(title, across, up, curves))
    return plot.svg("What dictionaries keep, on documents held out", panels, [pair for _, *pair in shown])


def keep(found):
    RESULTS.mkdir(exist_ok=True)
    table = table_of(found)
    (RESULTS / "frontier.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "frontier.svg").write_text(svg_of(found["points"]))
    begin, end = "<!-- frontier:begin -->\n", "<!-- frontier:end -->"
    text = README.read_text()
    if begin in text:
        before, rest = text.split(begin)
        README.write_text(before + begin + table + "\n" + end + rest.split(end)[1])


def recipes_of(program):
    """Those of the table that the program has."""
    listed = program.run("train", "--recipe", "list")
    return [r for r, *_ in RECIPES if f"\n{r}:" in "\n" + listed]


def measure(program, arguments):
    start = time.monotonic()
    write_documents(program, arguments)
    rows = Rows(program, arguments.rows)
    steps = arguments.epochs * rows.count // BATCH
    say(f"{rows.count} rows of {rows.width}, {EXPANSION * rows.width} features, {steps} steps of {BATCH} rows "
        f"({time.monotonic() - start:.0f} s)")
    points, trials = [], []
    for recipe in recipes_of(program):
        rate, tried = choose_rate(program, rows, recipe, max(1, steps // 2))
        trials += tried
        for target in AIMS.get(recipe, TARGETS):
            points.append(figure(program, rows, recipe, target, rate, steps, "held"))
    named = arguments.named or (arguments.text.name if arguments.text else "text that the model wrote")
    text = (f"{arguments.site} of layer {arguments.layer} of {arguments.model.name}, d {rows.width}, F "
            f"{EXPANSION * rows.width}, on {named}: {rows.count} rows, {steps} steps of {BATCH}, "
            f"{time.monotonic() - start:.0f} s in all.")
    return {"text": text, "points": points, "trials": trials}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--text", type=pathlib.Path)
    parser.add_argument("--named", help="the text in words, for the table")
    parser.add_argument("--model", type=pathlib.Path, default=HERE.parent / "examples/data/tiny-neox")
    parser.add_argument("--site", default="resid_out")
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1500000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--dry", action="store_true", help="write nothing into bench/")
    arguments = parser.parse_args()
    try:
        found = measure(Program(arguments), arguments)
    except Failed as why:
        print(f"frontier: {why}", file=sys.stderr)
        return 1
    print("\n" + table_of(found))
    if not arguments.dry:
        keep(found)
    for l0, ours, theirs in comparison(found["points"]):
        at_that = "not known" if theirs is None else f"{theirs:.4f}"
        say(f"L0 {l0:.1f}: BatchTopK explains {ours:.4f} of the variance, the ReLU recipe {at_that}")
    if not beaten(found["points"]):
        say("FAIL: BatchTopK does not beat the ReLU recipe at each L0")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
