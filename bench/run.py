"""run.py - runs build/bench, in turns with the peers where there are any, and keeps the figures. Standard library only.

    run.py BUILD [--peers PYTHON] [--cpu-time]    measure; writes bench/results/MACHINE.json and step.svg
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

HERE = pathlib.Path(__file__).parent
RESULTS, README = HERE / "results", HERE / "README.md"
ALLOWED = 1.25
# What peers are asked (as a pattern of a row's name), and how many times slower than ours each is to be.
PEERED = {r"gemm\..*": 1, r"step\.B\d+\.F\d+": 15, r"step\.fresh\..*": 4, r"grow\.F\.(4096|16384)": None,
          r"encode\.rows\d+": None, r"load\.pt": None, r"model\..*": 1.5}
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

    def beyond(self, what):
        done = subprocess.run([self.program, "--rss", what], check=True, capture_output=True, text=True)
        return json.loads(done.stdout)["beyond"]


class Peers:
    def __init__(self, python, build, clock):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")} | {"BUILD": str(build)}
        self.python, self.clock, self.environment = python, clock, environment
        self.process = subprocess.Popen([python, HERE / "peers.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env=environment)
        self.versions = json.loads(self.process.stdout.readline())

    def ask(self, name, times, threads):
        question = {"row": name, "times": times, "threads": threads, "clock": self.clock}
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def memory(self, shape):
        return json.loads(subprocess.run([self.python, HERE / "peers.py", "--rss", shape], check=True, text=True,
                                         capture_output=True, env=self.environment).stdout)


def goal_of(name):
    for pattern, goal in PEERED.items():
        if re.fullmatch(pattern, name):
            return goal
    return None


def worse_by(row, reference):
    """How many times worse the row's ratio is than a reference: 1 for the same, less where it is better."""
    return reference / row["ratio"] if row["better"] == "higher" else row["ratio"] / reference


def in_turns(bench, peers, row, threads):
    """Ours, theirs, ours, theirs: the best of each. A question that takes long is asked less often."""
    ours, theirs = row["seconds"], {}
    rounds = 1 if ours > 0.6 else 2 if ours > 0.15 else 3
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


def find_row(rows, name):
    return next((r for r in rows if r["name"] == name), None)


def copy_steps(rows):
    """The plot's points at 8192 and 32768 have their peer from the step of the same shape."""
    for features in (8192, 32768):
        step, grow = find_row(rows, f"step.B2048.F{features}"), find_row(rows, f"grow.F.{features}")
        if step and grow and "peers" in step:
            grow["peers"] = step["peers"]


def measure(bench, peers, quick):
    found = bench.run(*(["--quick"] if quick else []))
    threads = found["machine"]["threads"]
    if peers:
        found["peers"] = peers.versions
        print("\nPeers, in turns: " + ", ".join(f"{k} {v}" for k, v in peers.versions.items()))
        for row in found["rows"]:
            if any(re.fullmatch(pattern, row["name"]) for pattern in PEERED):
                in_turns(bench, peers, row, threads)
    found["rows"] += memory_rows(bench, peers, threads)
    copy_steps(found["rows"])
    return found


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
            said = f"{name} takes {peer['times_ours']:.3g} times as long, goal >= {row['peers_goal']:g}"
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
                figure = f"{row['ratio']:.3g} {row['unit']}"
                lines.append(f"| {text.format(*match.groups())} | {figure} | {goal} | {theirs} |")
                break
    return "\n".join(lines)


def readme():
    """The table of the newest record between the markers of bench/README.md."""
    records = sorted(RESULTS.glob("*.json"), key=lambda p: p.stat().st_mtime)
    if not records:
        print("bench/results holds no record")
        return 1
    text = README.read_text()
    begin, end = "<!-- bench:begin -->\n", "<!-- bench:end -->"
    before, rest = text.split(begin)
    README.write_text(before + begin + table_of(json.loads(records[-1].read_text())) + "\n" + end + rest.split(end)[1])
    return 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", nargs="?", type=pathlib.Path)
    parser.add_argument("--peers", type=pathlib.Path)
    parser.add_argument("--readme", action="store_true")
    for flag in ("check", "quick", "cpu-time"):
        parser.add_argument("--" + flag, action="store_true")
    arguments = parser.parse_args()
    if arguments.readme:
        return readme()
    bench = Bench(arguments.build, ["--cpu-time"] if arguments.cpu_time else [])
    if arguments.check:
        return check(bench, arguments.quick)
    peers = None
    if arguments.peers and arguments.peers.exists():
        peers = Peers(arguments.peers, arguments.build, "processor" if arguments.cpu_time else "wall")
    else:
        print("without peers: `make bench-peers` sets them up")
    found = measure(bench, peers, arguments.quick)
    print(f"\n{table_of(found)}")
    if arguments.quick:
        return 0
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / (machine_name(found["machine"]) + ".json")
    path.write_text(as_file(found))
    (RESULTS / "step.svg").write_text(svg_of(found["rows"]))
    print(f"\n{path} and step.svg written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
