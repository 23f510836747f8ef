"""run.py - runs build/bench, in turns with the peers where there are any, and keeps the figures. Standard library only.

    run.py BUILD [--peers PYTHON] [--trainers PYTHON] [--cpu-time]
                                                  measure; writes bench/results/MACHINE.json and plots
    run.py BUILD --training [...]                 the steps of the recipes alone, into the record that there is
    run.py BUILD --python PYTHON                  trainSAE of the Python package alone, into the record that there is
    run.py BUILD --quick [...]                    some of it, in a hurry; writes nothing
    run.py BUILD --check [...]                    measure, and compare with MACHINE.json and with the goals
    run.py --readme                               the table of bench/README.md from bench/results

A figure is a ratio: to what the machine can do (see bench.c), or, for a peer, its best time divided by ours, both taken
in turns. --check compares ratios, never seconds, and fails where one is more than a quarter worse than on record, and
where a goal is missed that bench/results/missed.txt does not list with a reason.
"""
import argparse
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import plot

HERE = pathlib.Path(__file__).parent
RESULTS, README = HERE / "results", HERE / "README.md"
ALLOWED = 1.25
# What peers are asked (as a pattern of a row's name), and how many times slower than ours each is to be.
PEERED = {r"gemm\..*": 1, r"step\.B\d+\.F\d+": 15, r"step\.fresh\..*": 2, r"grow\.F\.(4096|16384)": None,
          r"encode\.rows\d+": None, r"load\.pt": None, r"model\..*": 1.5}
# And the libraries that recipes come from. At wide d one recipe stands for all: their steps take half a minute.
TRAINED = {r"train\.dl-\w+\.d512\.F16384(\.first)?": 15, r"train\.s[lp]-\w+\.d512\.F16384": None,
           r"train\.dl-batch_top_k\.(d128\.F16384|d2304\.F16384|d4096\.F32768)": None}
PLOTTED = (("dl-top_k", "blue"), ("dl-batch_top_k", "green"), ("dl-jump_relu", "red"), ("dl-matryoshka", "violet"))
MEMORY = (("memory.B2048.F8192", 2048, 8192), ("memory.B8192.F32768", 8192, 32768))


def as_file(rows):
    """JSON with a row a line."""
    text = json.dumps({k: v for k, v in rows.items() if k != "rows"}, indent=1)
    lines = ",\n".join("  " + json.dumps(row) for row in rows["rows"])
    return text[:-2] + ',\n "rows": [\n' + lines + "\n ]\n}\n"


class Bench:
    def __init__(self, build, flags):
        self.program, self.flags = build / "bench", flags
        self.json = build / "tmp" / "bench.json"
        self.tmp = build / "tmp"

    def run(self, *arguments, quiet=False):
        self.tmp.mkdir(parents=True, exist_ok=True)
        subprocess.run([self.program, *self.flags, "--tmp", self.tmp, "--json", self.json, *map(str, arguments)],
                       check=True, stdout=subprocess.DEVNULL if quiet else None)
        return json.loads(self.json.read_text())

    def row(self, name, budget):
        return self.run("--budget", budget, "=" + name, quiet=True)["rows"][0]

    def memory(self, what):
        done = subprocess.run([self.program, "--rss", what], check=True, capture_output=True, text=True)
        return json.loads(done.stdout)

    def beyond(self, what):
        return self.memory(what)["beyond"]


class Peers:
    def __init__(self, python, script, build, clock):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")} | {"BUILD": str(build)}
        self.command, self.clock, self.environment = [python, HERE / script], clock, environment
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env=environment)
        self.versions = json.loads(self.process.stdout.readline())

    def ask(self, name, times, threads):
        question = {"row": name, "times": times, "threads": threads, "clock": self.clock}
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def memory(self, shape):
        done = subprocess.run([*self.command, "--rss", shape], check=True, text=True, capture_output=True,
                              env=self.environment)
        return json.loads(done.stdout.splitlines()[-1])


def asked(name, patterns):
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def goal_of(name):
    for pattern, goal in {**PEERED, **TRAINED}.items():
        if re.fullmatch(pattern, name):
            return goal
    return None


def worse_by(row, reference):
    """How many times worse the row's ratio is than a reference: 1 for the same, less where it is better."""
    return reference / row["ratio"] if row["better"] == "higher" else row["ratio"] / reference


def in_turns(bench, peers, row, threads):
    """Ours, theirs, ours, theirs: the best of each. A question that takes long is asked less often."""
    ours, theirs = row["seconds"], {}
    beside = row["name"].startswith("train.") and not goal_of(row["name"]) # no goal: one round will do
    rounds = 1 if ours > 0.6 or beside else 2 if ours > 0.15 else 3
    for _ in range(rounds):
        again = bench.row(row["name"], 0.4)
        ours = min(ours, again["seconds"])
        if worse_by(again, row["ratio"]) < 1:
            row["ratio"], row["seconds"] = again["ratio"], again["seconds"]
        for name, seconds in peers.ask(row["name"], 1 if ours > 0.2 else 3, threads).items():
            theirs[name] = min(seconds, theirs.get(name, math.inf))
    row["peers"] = {name: {"seconds": round(seconds, 6), "times_ours": round(seconds / ours, 2)}
                    for name, seconds in theirs.items()}
    if goal_of(row["name"]):
        row["peers_goal"] = goal_of(row["name"])
    shown = ", ".join(f"{name} {p['times_ours']:.2f}" for name, p in row["peers"].items())
    print(f"{row['name']:38} times of ours: {shown}", flush=True)


def training_memory(bench, trainers, threads):
    """The same for the recipes, with their libraries; the peaks of the whole processes stand beside."""
    d, features, k = 512, 16384, 64
    state = 3 * 4 * (2 * d * features + features + d)
    for recipe, _ in PLOTTED:
        what = f"{recipe}:4096:{d}:{features}:{k}"
        try:
            ours = bench.memory(what)
        except subprocess.CalledProcessError:
            continue  # a build without the recipe
        row = {"name": f"memory.{recipe}.d{d}.F{features}", "ratio": round(ours["beyond"] / state, 4),
               "unit": "of weights and moments", "better": "lower", "bytes": ours["beyond"], "peak": ours["peak"],
               "parameters": {"threads": threads, "rows": 4096, "d": d, "F": features, "L0": k}}
        print(f"{row['name']:38} {row['ratio']:8.3f} {row['unit']}", flush=True)
        if trainers:
            theirs = trainers.memory(what)
            times, whole = theirs["beyond"] / ours["beyond"], theirs["peak"] / ours["peak"]
            row["peers"] = {"dictionary_learning": {"bytes": theirs["beyond"], "peak": theirs["peak"],
                                                    "times_ours": round(times, 2)}}
            row["peers_goal"], row["peak_times_ours"] = 10, round(whole, 2)
            print(f"{row['name']:38} times of ours: dictionary_learning {times:.1f}; of whole processes {whole:.1f}",
                  flush=True)
        yield row


def memory_rows(bench, peers, threads):
    """Peaks of processes of their own: steps beyond weights, moments and the batch; evaluation as its rows grow."""
    for name, rows, features in MEMORY:
        ours = bench.beyond(f"{rows}:{features}:100")
        state = 3 * 4 * (2 * 512 * features + features + 512)
        row = {"name": name, "ratio": round(ours / state, 4), "unit": "of weights and moments", "better": "lower",
               "parameters": {"threads": threads, "rows": rows, "d": 512, "F": features}, "bytes": ours}
        print(f"{name:38} {row['ratio']:8.3f} {row['unit']}", flush=True)
        if peers:
            theirs = peers.memory(f"{rows}:{features}")["beyond"]
            row["peers"], row["peers_goal"] = {"PyTorch": {"bytes": theirs, "times_ours": round(theirs / ours, 2)}}, 10
            print(f"{name:38} times of ours: PyTorch {theirs / ours:.1f}", flush=True)
        yield row
    few, many = (bench.beyond(f"evaluate:{rows}:8192:100") for rows in (8192, 65536))
    row = {"name": "memory.evaluate", "ratio": round(many / few, 4), "unit": "times that of an eighth",
           "better": "lower", "goal": 1.05, "parameters": {"threads": threads, "rows": 65536, "d": 512, "F": 8192},
           "bytes": many}
    print(f"{row['name']:38} {row['ratio']:8.3f} {row['unit']:22} <= {row['goal']}", flush=True)
    yield row


# ---- what is kept
def machine_name(machine):
    text = f"{machine['cpu']} {machine['threads']} threads {machine['kernels'][-1]} {machine['clock']}"
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def svg_of(rows):
    """Two panels, both axes logarithmic: a step's time in floors against F and against L0."""
    size, left, top, wide, high = (760, 330), (60, 440), 40, 290, 230
    low, up = -0.5, 1.5  # decades of the floors shown
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" font-family="sans-serif" '
           'font-size="12">', f'<rect width="{size[0]}" height="{size[1]}" fill="white"/>']
    for x0, letter, title in zip(left, ("F", "L0"), ("features F (d 512, L0 100)", "active features L0 (F 8192)")):
        series = [r for r in rows if re.fullmatch(rf"grow\.{letter}\.\d+", r["name"])]
        at = [int(r["name"].split(".")[-1]) for r in series]
        if len(at) < 2:
            continue
        first, last = math.log10(at[0]), math.log10(at[-1])

        def place(p, floors):
            y = (math.log10(floors) - low) / (up - low)
            return x0 + wide * (math.log10(p) - first) / (last - first), top + high * (1 - y)

        out.append(f'<rect x="{x0}" y="{top}" width="{wide}" height="{high}" fill="none" stroke="#888"/>')
        out.append(f'<text x="{x0 + wide / 2}" y="{top + high + 38}" text-anchor="middle">{title}</text>')
        for floors in (0.5, 1, 2, 5, 10, 20):
            _, y = place(at[0], floors)
            out.append(f'<line x1="{x0}" y1="{y:.1f}" x2="{x0 + wide}" y2="{y:.1f}" stroke="#ddd"/>')
            out.append(f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{floors:g}</text>')
        points = [place(p, r["ratio"]) for p, r in zip(at, series)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        out.append(f'<polyline points="{line}" fill="none" stroke="#05c" stroke-width="2"/>')
        for p, (x, y) in zip(at, points):
            out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#05c"/>')
            out.append(f'<text x="{x:.1f}" y="{top + high + 18}" text-anchor="middle">{p}</text>')
        for p, r in zip(at, series):
            for peer in r.get("peers", {}).values():
                x, y = place(p, r["ratio"] * peer["times_ours"])
                out.append(f'<path d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8" stroke="#c30" stroke-width="2"/>')
    out.append(f'<text x="{left[0]}" y="24">A training step of 2048 rows, in floors (the time of the multiply-adds of '
               'encoding): <tspan fill="#05c">dictlearn.h</tspan>, <tspan fill="#c30">PyTorch</tspan></text></svg>')
    return "\n".join(out) + "\n"


def floors_over_d(rows, recipe, colour):
    """A recipe's curves: later steps, the first, and the library's."""
    at = [(row["parameters"]["d"], row) for row in rows
          if re.fullmatch(rf"train\.{recipe}\.d\d+\.F16384", row["name"])]
    first = [(d, find_row(rows, row["name"] + ".first")) for d, row in at]
    return [(colour, "line", [(d, row["ratio"]) for d, row in at]),
            (colour, "dashed", [(d, row["ratio"]) for d, row in first if row]),
            (colour, "crosses", [(d, row["ratio"] * peer["times_ours"])
                                 for d, row in at for peer in row.get("peers", {}).values()])]


def let_through_over_d(rows, recipe, colour):
    figures = [row["parameters"] for row in rows if re.fullmatch(rf"train\.{recipe}\.d\d+\.F16384", row["name"])]
    return colour, "line", [(p["d"], p["candidates"] / p["L0"]) for p in figures if "candidates" in p]


def step_over_d(rows):
    """The steps of the recipes over d, and what the screen lets through; None: no such rows."""
    floors = [curve for recipe, colour in PLOTTED for curve in floors_over_d(rows, recipe, colour) if curve[2]]
    through = [curve for curve in (let_through_over_d(rows, *recipe) for recipe in PLOTTED) if curve[2]]
    if not through:
        return None
    widths = [128, 256, 512, 1024, 2048, 4096]
    across = plot.Axis("width d (4096 rows, F 16384, 64 active)", widths, log=True)
    every = [y for _, _, points in floors for _, y in points]
    ticks = [t for t in (0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if min(every) / 2 <= t <= 2 * max(every)]
    top = math.ceil(max(y for _, _, points in through for _, y in points))
    up = plot.Axis("", list(range(0, top + 1, math.ceil(top / 6))), ends=(0, top))
    panels = [plot.Panel("a step, in floors (dashed: the first)", across, plot.Axis("", ticks, log=True), floors),
              plot.Panel("candidates per active feature", across, up, through)]
    return plot.svg("Training steps over the width of a row", panels, PLOTTED + (("x dictionary_learning", "ink"),))


def find_row(rows, name):
    return next((r for r in rows if r["name"] == name), None)


def copy_steps(rows):
    """The plot's points at 8192 and 32768 have their peer from the step of the same shape."""
    for features in (8192, 32768):
        step, grow = find_row(rows, f"step.B2048.F{features}"), find_row(rows, f"grow.F.{features}")
        if step and grow and "peers" in step:
            grow["peers"] = step["peers"]


def ask_peers(bench, peers, rows, patterns, threads):
    if not peers:
        return
    print("\nPeers, in turns: " + ", ".join(f"{k} {v}" for k, v in peers.versions.items()))
    for row in rows:
        if asked(row["name"], patterns):
            in_turns(bench, peers, row, threads)


def measure(bench, peers, trainers, arguments):
    found = bench.run(*(["--quick"] if arguments.quick else []), *(["train."] if arguments.training else []))
    threads = found["machine"]["threads"]
    versions = {**(trainers.versions if trainers else {}), **(peers.versions if peers else {})}
    if versions:
        found["peers"] = versions
    ask_peers(bench, peers, found["rows"], PEERED, threads)
    ask_peers(bench, trainers, found["rows"], TRAINED, threads)
    if not arguments.training:
        found["rows"] += memory_rows(bench, peers, threads)
    found["rows"] += training_memory(bench, trainers, threads)
    copy_steps(found["rows"])
    return found


def measure_python(bench, arguments):
    """The rows of python.py, with the machine that they are of."""
    command = [arguments.python, HERE / "python.py", arguments.build, *(["--rounds", "1"] if arguments.quick else []),
               *bench.flags]
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
    return {"machine": bench.run("=none", quiet=True)["machine"], **json.loads(done.stdout.splitlines()[-1])}


def joined(old, found):
    """A record with the rows of the recipes measured anew."""
    kept = [row for row in old["rows"] if not find_row(found["rows"], row["name"])]
    return {**old, "peers": {**old.get("peers", {}), **found.get("peers", {})}, "rows": kept + found["rows"]}


def known_misses():
    """[(pattern, reason)] of results/missed.txt."""
    lines = (RESULTS / "missed.txt").read_text().splitlines()
    return [line.split(None, 1) for line in lines if line.strip() and not line.startswith("#")]


def misses(row):
    """(what, found, goal, share of the goal that is reached) of each goal that the row misses."""
    if "goal" in row and worse_by(row, row["goal"]) > 1:
        sign = ">=" if row["better"] == "higher" else "<="
        yield f"{row['ratio']:.3g} {row['unit']}, goal {sign} {row['goal']:g}", 1 / worse_by(row, row["goal"])
    for name, peer in row.get("peers", {}).items():
        if peer["times_ours"] < row.get("peers_goal", 0):
            what = "much memory" if "bytes" in peer else "long"
            said = f"{name} takes {peer['times_ours']:.3g} times as {what}, goal >= {row['peers_goal']:g}"
            yield said, peer["times_ours"] / row["peers_goal"]


def against_goals(rows):
    """The lines to print, and how many goals are missed without a reason on record."""
    said, unknown, known = [], 0, known_misses()
    for row in rows:
        for what, share in misses(row):
            why = next((reason for pattern, reason in known if re.fullmatch(pattern, row["name"])), None)
            unknown += why is None
            said.append(f"{'missed' if why else 'FAIL'} {row['name']}: {what} ({share:.0%} of it): "
                        f"{why or 'bench/results/missed.txt has no reason'}")
    return said, unknown


def against_record(bench, rows, record):
    """The lines to print, and how many rows were compared. What looks worse is measured again, for longer."""
    said, compared = [], 0
    for row in rows:
        old = find_row(record, row["name"])
        if not old or row["name"].endswith(".trend"):
            continue
        compared += 1
        for budget in (3, 6):
            if "seconds" in row and worse_by(row, old["ratio"]) > ALLOWED:
                row = min(row, bench.row(row["name"], budget), key=lambda r: worse_by(r, old["ratio"]))
        if worse_by(row, old["ratio"]) > ALLOWED:
            said.append(f"FAIL {row['name']}: {row['ratio']} {row['unit']}, on record {old['ratio']}")
    return said, compared


def check(bench, quick):
    found = bench.run(*(["--quick"] if quick else []))
    found["rows"] += memory_rows(bench, None, found["machine"]["threads"])
    found["rows"] += training_memory(bench, None, found["machine"]["threads"])
    path = RESULTS / (machine_name(found["machine"]) + ".json")
    record = json.loads(path.read_text())["rows"] if path.exists() else []
    if not record:
        print(f"no record of this machine ({path.name}): `make bench` makes one; goals alone are compared")
    worse, compared = against_record(bench, found["rows"], record)
    for row in found["rows"]: # the peers' times are the record's
        row.update({k: v for k, v in (find_row(record, row["name"]) or {}).items() if k.startswith("peers")})
    missed, unknown = against_goals(found["rows"])
    print("\n".join(missed + worse))
    print(f"{compared + len(found['rows']) - len(worse) - unknown} passed, {len(worse) + unknown} failed")
    return len(worse) + unknown > 0


# ---- bench/README.md
SHOWN = (
    (r"gemm\.(.*)", "product {} (m x n x k)"),
    (r"step\.B(\d+)\.F(\d+)", "training step, {} rows, F {}"),
    (r"step\.B(\d+)\.F(\d+)\.(.+)", "- the same, {2} forced, {0} rows, F {1}"),
    (r"step\.fresh\.B(\d+)\.F(\d+)", "step of a fresh dictionary (half of F on), {} rows, F {}"),
    (r"step\.ghost\..*", "step with ghost gradients, 10 % dead"),
    (r"step\.threads\..*", "step on all threads"),
    (r"grow\.(\w+)\.trend", "step as {} grows: worst rise between neighbours"),
    (r"encode\.rows1", "encode 1 row, F 32768"),
    (r"encode\.prepared\.rows1", "encode 1 row, prepared dictionary"),
    (r"encode\.rows(\d+)", "encode {} rows, F 32768"),
    (r"encode_sparse\.rows(\d+)", "encode {} rows to sparse codes, F 32768"),
    (r"decode_sparse\.rows(\d+)", "decode {} rows from sparse codes"),
    (r"evaluate\.rows(\d+)", "evaluate {} rows, F 8192"),
    (r"load\.pt", "load ae.pt of 134 MB"),
    (r"model\.logits", "language model of Pythia-70m's shape, 32 x 128 tokens: all logits"),
    (r"model\.trunk", "- the same, without the head"),
    (r"model\.two_layers", "- the same, two layers of six"),
    (r"buffer\.(\w+)\.(\w+)", "batch from a buffer of {1} rows in {0}"),
    (r"train\.(.+)\.d(\d+)\.F(\d+)\.first", "- its first step, d {1}, F {2}"),
    (r"train\.(.+)\.d(\d+)\.F(\d+)", "{}: step of 4096 rows, 64 active, d {}, F {}"),
    (r"python\.model\.d(\d+)\.F(\d+)", "Python: trainSAE (BatchTopKTrainer) on a model and text, d {}, F {}"),
    (r"python\.(\w+)\.d(\d+)\.F(\d+)", "Python: trainSAE ({}) on batches of 4096 rows, d {}, F {}"),
    (r"memory\.([a-z]+-\w+)\.d(\d+)\.F(\d+)", "{}: memory of a step at its peak, 4096 rows, d {}, F {}"),
    (r"memory\.B(\d+)\.F(\d+)", "memory of a step at its peak, {} rows, F {}"),
    (r"memory\.evaluate", "memory of evaluating 65536 rows"),
)


def table_of(found):
    machine = found["machine"]
    peers = "; ".join(f"{k} {v}" for k, v in found.get("peers", {}).items())
    lines = [f"{machine['cpu']}, {machine['threads']} threads, {' '.join(machine['kernels'])}, {machine['compiler']}, "
             f"{machine['clock']} clock. {peers}", "", "| work | figure | goal | a peer's time (memory) / ours |",
             "|---|---|---|---|"]
    for row in found["rows"]:
        for pattern, text in SHOWN:
            match = re.fullmatch(pattern, row["name"])
            if match:
                sign = ">=" if row["better"] == "higher" else "<="
                goal = f"{sign} {row['goal']:g}" if "goal" in row else ""
                goal += ", missed" if "goal" in row and worse_by(row, row["goal"]) > 1 else ""
                theirs = ", ".join(f"{k} {v['times_ours']:.3g}" for k, v in row.get("peers", {}).items())
                theirs += f" (goal >= {row['peers_goal']})" if "peers_goal" in row else ""
                if "peak_times_ours" in row:
                    theirs += f"; of whole processes {row['peak_times_ours']:.3g}"
                figure = f"{row['ratio']:.3g} {row['unit']}"
                if "candidates" in row.get("parameters", {}):
                    figure += f", {row['parameters']['candidates']:.0f} candidates a row"
                lines.append(f"| {text.format(*match.groups())} | {figure} | {goal} | {theirs} |")
                break
    return "\n".join(lines)


def records():
    """The records of machines, which end with the clock that was read."""
    return sorted([*RESULTS.glob("*-wall.json"), *RESULTS.glob("*-processor.json")])


def readme():
    """The tables of all records between the markers of bench/README.md."""
    if not records():
        print("bench/results holds no record")
        return 1
    tables = "\n\n".join(table_of(json.loads(path.read_text())) for path in records())
    text = README.read_text()
    begin, end = "<!-- bench:begin -->\n", "<!-- bench:end -->"
    before, rest = text.split(begin)
    README.write_text(before + begin + tables + "\n" + end + rest.split(end)[1])
    return 0


def keep(found, training):
    """Writes the record of the machine, and the plots."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / (machine_name(found["machine"]) + ".json")
    if training and path.exists():
        found = joined(json.loads(path.read_text()), found)
    path.write_text(as_file(found))
    plots = {"step_over_d.svg": step_over_d(found["rows"])}
    if not training:
        plots["step.svg"] = svg_of(found["rows"])
    for name, text in plots.items():
        if text:
            (RESULTS / name).write_text(text)
    print(f"\n{path} written, and {', '.join(plots)}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", nargs="?", type=pathlib.Path)
    parser.add_argument("--peers", type=pathlib.Path)
    parser.add_argument("--trainers", type=pathlib.Path)
    parser.add_argument("--python", type=pathlib.Path)
    parser.add_argument("--readme", action="store_true")
    for flag in ("check", "quick", "training", "cpu-time"):
        parser.add_argument("--" + flag, action="store_true")
    arguments = parser.parse_args()
    if arguments.readme:
        return readme()
    bench = Bench(arguments.build, ["--cpu-time"] if arguments.cpu_time else [])
    if arguments.check:
        return check(bench, arguments.quick)
    if arguments.python:
        found = measure_python(bench, arguments)
        print(f"\n{table_of(found)}")
        if not arguments.quick:
            keep(found, True)
        return 0
    clock = "processor" if arguments.cpu_time else "wall"

    def started(python, script, target):
        if python and python.exists():
            return Peers(python, script, arguments.build, clock)
        print(f"without {script}: `make {target}` sets it up")
        return None

    peers = None if arguments.training else started(arguments.peers, "peers.py", "bench-peers")
    trainers = started(arguments.trainers, "trainers.py", "venv")
    found = measure(bench, peers, trainers, arguments)
    print(f"\n{table_of(found)}")
    if not arguments.quick:
        keep(found, arguments.training)
    print("\n".join(against_goals(found["rows"])[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
