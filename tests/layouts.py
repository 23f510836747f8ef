"""layouts.py BUILD - the program on dictionaries as the libraries wrote them: encode, reconstruct, inspect, eval and
convert, each named as a user names it. Prints how far features and reconstruction are from the library's, as a share of
the largest. Reads the folder DLRN_GOLDENS, or tests/golden/layouts.npz; tests/golden/layouts.txt says what is expected.
Closes with `N passed, N failed, N skipped`.
"""
import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import NamedTuple

import numpy as np

GOLDEN = pathlib.Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
import pack_layouts  # noqa: E402

BUILD = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build")
ROOT = BUILD / "tmp" / "layouts_py"
OUT = BUILD / "tmp" / "layouts_out"
FLAGS = {"layout": "--layout", "k": "--k", "norm_scale": "--norm-scale", "threshold": "--threshold"}
LIMIT = {"equal": 3e-6, "as": 3e-6, "bf16": 1e-2}


class Wrong(Exception):
    """Why a line does not hold."""


class Line(NamedTuple):
    name: str
    layout: str
    family: str
    flags: list
    outcome: str
    text: str
    why: str

    @property
    def folder(self):
        return ROOT / self.name.split("/")[0]

    @property
    def path(self):
        return ROOT / self.name

    def array(self, name):
        folder = ROOT / self.text if self.outcome == "as" and name != "input" else self.folder
        return np.load(folder / f"{name}.npy").astype(np.float64)


def lines():
    for text in (GOLDEN / "layouts.txt").read_text().splitlines():
        if not text or text.startswith("#"):
            continue
        text, _, why = text.partition(" # ")
        name, layout, family, options, *outcome = text.split(None, 4)
        outcome, _, expected = outcome[0].strip().partition(" ")
        flags = [] if options == "-" else [part for o in options.split(",") for part in o.split("=")]
        yield Line(name, layout, family, [FLAGS.get(f, f) for f in flags], outcome, expected.strip(), why)


def run(*args, status=0):
    """Standard output of the program, or its line of error."""
    done = subprocess.run([BUILD / "dictlearn", *map(str, args)], capture_output=True, timeout=60)
    error = done.stderr.decode()
    if done.returncode != status:
        raise Wrong(f"{args[0]}: status {done.returncode}: {error.strip()}".replace(f"{ROOT}/", ""))
    return done.stdout.decode() if status == 0 else error


def off(ours, theirs):
    """The largest difference as a share of the largest number; of other sizes: NaN, which no limit allows."""
    if ours.size != theirs.size:
        return np.nan
    return np.abs(ours.reshape(-1) - theirs.reshape(-1)).max() / np.abs(theirs).max()


def computed(line, command, path, *flags):
    out = OUT / f"{command}.npy"
    out.unlink(missing_ok=True)
    run(command, "--dict", path, "--data", line.folder / "input.npy", "--out", out, *flags)
    return np.load(out).astype(np.float64)


def check_numbers(line):
    """The two differences. Where the expected results are restated, those of the library's own to them follow."""
    cells, bad = [], []
    for command, name in (("encode", "features"), ("reconstruct", "reconstruction")):
        ours, theirs = computed(line, command, line.path, *line.flags), line.array(name)
        if ours.shape[0] != theirs.shape[0]:
            bad.append(f"{name}: shape {ours.shape}, expected {theirs.shape}")
        difference = off(ours, theirs)
        cells.append(f"{difference:.1e}")
        if not difference <= LIMIT[line.outcome]:
            bad.append(f"{name}: off by {difference:.1e}")
        if (line.folder / f"library_{name}.npy").exists():
            library = np.load(line.folder / f"library_{name}.npy").astype(np.float64)
            cells[-1] += f" ({off(ours, library):.0e})" if library.size == ours.size else " (other size)"
    return cells, bad


def check_inspect(line):
    told = json.loads(run("inspect", line.path, "--json", *line.flags))
    found = told["layout"], told["family"]
    if found != (line.layout, line.family):
        return found, [f"inspect: {' '.join(found)}, expected {line.layout} {line.family}"]
    return found, []


def check_eval(line):
    """It counts the features that encode leaves; a target is given where it is not as wide as the input."""
    given = ["--data", line.folder / "input.npy"]
    if line.array("input").shape != line.array("reconstruction").shape:
        given += ["--target", line.folder / "reconstruction.npy"]
    if line.family == "Temporal":  # batches are not documents
        error = run("eval", "--dict", line.path, *given, status=1)
        return [] if "the rows of a document together" in error else [f"eval: {error}"]
    told = json.loads(run("eval", "--dict", line.path, *given, "--json", *line.flags))
    f = computed(line, "encode", line.path, *line.flags)
    l0 = np.count_nonzero(f) / f.shape[0]
    return [] if abs(told["l0"] - l0) < 1e-4 * l0 else [f"eval: l0 {told['l0']}, expected {l0}"]


def check_convert(line):
    """What is written computes the same, without a flag. One that cannot be written is an error, whose line may follow
    the note on the dictionary; nothing is left then."""
    f, y = (computed(line, command, line.path, *line.flags) for command in ("encode", "reconstruct"))
    for suffix in (".safetensors", ".pt", ".npz"):
        out = OUT / f"converted{suffix}"
        shutil.rmtree(out, ignore_errors=True)
        out.unlink(missing_ok=True)
        flags = ["--from" if flag == "--layout" else flag for flag in line.flags]  # --layout is that of out
        command = [BUILD / "dictlearn", "convert", line.path, out, *flags]
        done = subprocess.run(command, capture_output=True, timeout=60)
        error = done.stderr.decode().strip().split("\n")
        if done.returncode == 1 and len(error) <= 2 and not out.exists():
            return f"no: {error[-1].split(': ', 2)[-1]}", []
        if done.returncode:
            return "", [f"convert: status {done.returncode}: {done.stderr.decode()}"]
        for command, wanted in (("encode", f), ("reconstruct", y)):
            if not off(computed(line, command, out), wanted) <= 3e-6:
                return "", [f"convert to {suffix}: {command}: other numbers"]
    return "yes", []


def check(line):
    """The cells of the table and what is wrong."""
    if line.outcome == "refused":
        given = ["--data", line.folder / "input.npy", "--out", OUT / "never.npy", *line.flags]
        error = run("encode", "--dict", line.path, *given, status=1)
        if line.text not in error.replace(str(line.path), "") or error.count("\n") != 1:
            raise Wrong(error.strip().replace(f"{ROOT}/", ""))
        return [error.strip().split(f"{line.name}", 1)[-1].lstrip(": ")], []
    cells, bad = check_numbers(line)
    named, more = check_inspect(line)
    converted, worse = check_convert(line)
    cells = f"{named[1]:<22} {named[0]:<20} {cells[0]:<17} {cells[1]:<17} {converted}"
    return [cells], bad + more + check_eval(line) + worse


def judge(line):
    try:
        cells, bad = check(line)
    except (Wrong, KeyError, ValueError, subprocess.TimeoutExpired) as e:
        cells, bad = [""], [str(e)]
    if line.why:
        return ("FAIL", f"holds now: take '# {line.why}' away") if not bad else ("skip", f"{line.why} ({bad[0][:300]})")
    return ("FAIL", f"{cells[0]}: {'; '.join(bad)}") if bad else ("ok", cells[0])


def main():
    shutil.rmtree(ROOT, ignore_errors=True)
    OUT.mkdir(parents=True, exist_ok=True)
    goldens = os.environ.get("DLRN_GOLDENS")
    files = pack_layouts.collect(goldens) if goldens else pack_layouts.unpack()
    for name, data in files.items():
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).write_bytes(data)
    every = list(lines())
    print(f"     {'name':<40} {'family':<22} {'layout':<20} {'features':<17} {'reconstruction':<17} convert")
    count = {"ok": 0, "FAIL": 0, "skip": 0}
    for line in every:
        if not line.folder.exists():
            verdict, text = "FAIL", "no such folder"
        else:
            verdict, text = judge(line)
        count[verdict] += 1
        name = " ".join([line.name, *line.flags])
        print(f"{verdict:<4} {name:<40} {text}" if verdict == "ok" else f"{verdict:<4} {name}: {text}")
    for folder in sorted({name.split("/")[0] for name in files} - {line.folder.name for line in every}):
        count["FAIL"] += 1
        print(f"FAIL {folder}: no line in layouts.txt")
    print("(in brackets: the library's own results, where the file means another formula: pack_layouts.py says why)")
    print(f"{count['ok']} passed, {count['FAIL']} failed, {count['skip']} skipped")
    return count["FAIL"] > 0


if __name__ == "__main__":
    sys.exit(main())
