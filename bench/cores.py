#!/usr/bin/env python3
"""cores.py - what a step and its neighbours would take on many cores, simulated from the times of their tasks.

    bench/cores.py PROGRAM [--threads 1,8,64] [--repeats N] [--loops] [--cut N] [--readme] [WORK...]

PROGRAM (build/cores, from bench/cores.c) runs each piece of work with a parallel_for of its own, one task after the
other, and prints the time of each task and the time between loops. It is run anew for each number of threads, since
that number says how loops are cut. From these times a loop on T threads is simulated: tasks are handed out in order to
whichever thread is free first, one at a time. --loops prints each loop, too; --readme writes the tables into
bench/README.md, where rows that are not measured again stay as they are. A WORK picks the rows whose name contains it.
--cut N asks what a finer cut would give: each task counts as N equal ones.
"""

import argparse
import heapq
import math
import os
import re
import subprocess
import sys

# Stated, not measured here: handing out a task is an atomic addition to a counter that all threads share; a loop begins
# and ends with all threads, by a tree. Of the size that EPCC's OpenMP benchmarks show on machines of 64 cores.
HAND_OUT = 100.0  # ns


def barrier(threads):
    return 2000.0 + 1000.0 * math.log2(threads) if threads > 1 else 0.0  # ns


# name, WHAT, rows, width, features
WORK = [
    ("step reference, B 2048, F 8192", "step:reference", 2048, 512, 8192),
    ("step reference, B 8192, F 32768", "step:reference", 8192, 512, 32768),
    ("step reference, B 2048, F 8192, d 4096", "step:reference", 2048, 4096, 8192),
    ("step dl-batch_top_k, B 2048, F 8192", "step:dl-batch_top_k", 2048, 512, 8192),
    ("step dl-batch_top_k, B 8192, F 32768", "step:dl-batch_top_k", 8192, 512, 32768),
    ("step dl-matryoshka, B 2048, F 8192", "step:dl-matryoshka", 2048, 512, 8192),
    ("step dl-jump_relu, B 2048, F 8192", "step:dl-jump_relu", 2048, 512, 8192),
    ("step dl-top_k with AuxK, B 2048, F 8192", "auxk:dl-top_k", 2048, 512, 8192),
    ("step with ghosts, B 2048, F 8192", "ghosts:reference", 2048, 512, 8192),
    ("step cc-batch_top_k, 2 layers of 512, B 2048, F 8192", "step:cc-batch_top_k", 2048, 1024, 8192),
    ("step clt-topk, 4 layers of 256, B 2048, F 8192", "step:clt-topk", 2048, 1024, 8192),
    ("encode 8192 rows, F 32768", "encode", 8192, 512, 32768),
    ("evaluate 8192 rows, F 32768", "evaluate", 8192, 512, 32768),
    ("survey 8192 rows, F 32768, report on 512", "survey", 8192, 512, 32768),
    ("a batch of 8192 from the buffer", "buffer", 8192, 512, 131072),
]


def record(program, work, threads, repeats):
    """[repeat] of ([(body, serial ns, [task ns])], the last serial ns), and a step's bytes or []"""
    _, what, rows, width, features = work
    out = subprocess.run([program, what, str(rows), str(width), str(features), str(threads), str(repeats)], check=True,
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    runs, count = [], []
    for line in out.splitlines():
        word = line.split()
        if word[0] == "begin":
            loops = []
        elif word[0] == "end":
            runs.append((loops, float(word[1])))
        elif word[0] == "bytes":
            count = [float(w) for w in word[1:]]
        else:
            loops.append((int(word[0]), float(word[1]), [float(w) for w in word[2:]]))
    return runs, count


def names_of(program):
    """address less that of `recorder` -> name of a function"""
    at = {}
    for line in subprocess.run(["nm", program], check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines():
        word = line.split()
        if len(word) == 3 and word[1] in "tT":
            at[word[2]] = int(word[0], 16)
    return {address - at["recorder"]: name.replace("dlrni_", "") for name, address in at.items()}


def loop_time(tasks, threads):
    """ns without the barrier: each task goes to the thread that is free first"""
    if threads == 1:
        return sum(tasks)
    free = [0.0] * min(threads, len(tasks))
    handed = 0.0
    for task in tasks:
        begin = max(heapq.heappop(free), handed)
        handed = begin + HAND_OUT
        heapq.heappush(free, handed + task)
    return max(free)


class Run:
    """One repetition on `threads` threads, in ns."""

    def __init__(self, run, threads, count, cut):
        self.loops, tail = run
        self.bytes = count
        self.loops = [(body, serial, [t / cut for t in tasks for _ in range(cut)]) for body, serial, tasks in self.loops]
        self.serial = tail + sum(serial for _, serial, _ in self.loops)
        self.work = sum(sum(tasks) for _, _, tasks in self.loops)
        self.made = [loop_time(tasks, threads) for _, _, tasks in self.loops]
        self.barriers = sum(barrier(min(threads, len(tasks))) for _, _, tasks in self.loops)
        self.tasks = sum(len(tasks) for _, _, tasks in self.loops)
        self.uneven = sum(self.made) - self.work / threads
        self.total = self.serial + sum(self.made) + self.barriers


def print_loops(run, names, threads):
    print(f"    {'loop':28}{'before ms':>11}{'tasks':>8}{'work ms':>10}{'longest us':>12}{'made ms':>10}{'of ideal':>10}")
    for (body, serial, tasks), made in zip(run.loops, run.made):
        work = sum(tasks)
        print(f"    {names.get(body, '?'):28}{serial / 1e6:11.3f}{len(tasks):8}{work / 1e6:10.2f}{max(tasks) / 1e3:12.1f}"
              f"{made / 1e6:10.3f}{work / threads / made if made else 1:10.2f}")


def best(program, work, threads, repeats, cut):
    runs, count = record(program, work, threads, repeats)
    return min((Run(run, threads, count, cut) for run in runs), key=lambda run: run.total)


def speed_row(work, runs):
    threads = sorted(runs)
    last, one = runs[threads[-1]], runs[threads[0]]
    share = [100 * part / last.total for part in (last.serial, last.uneven, last.barriers)]
    return [work[0], f"{one.total / 1e6:.1f}", *(f"{one.total / runs[t].total:.1f}" for t in threads[1:]),
            " / ".join(f"{s:.0f}" for s in share)]


def count_row(work, runs):
    last = runs[max(runs)]
    counts = [work[0], str(len(last.loops)), str(last.tasks), f"{last.serial / 1e6:.2f}"]
    if not last.bytes:
        return counts + ["", "", "", "", ""]
    weights, moments, gradients, lists, rows = (b / 1e6 for b in last.bytes)
    rate = sum(last.bytes) / last.total  # bytes in a ns
    return counts + [f"{weights:.0f}", f"{moments:.0f}" + (f" + {gradients:.0f}" if gradients else ""), f"{lists:.0f}",
                     f"{rows:.0f}", f"{rate:.0f}"]


def table(head, rows):
    return ["| " + " | ".join(r) + " |" for r in (head, ["---"] * len(head), *rows)]


def put_readme(name, lines):
    """Rows of the table that is there stay where there is none of their name among `lines`, if its head is the same."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "README.md")
    with open(path, encoding="utf-8") as f:
        text = f.read()
    there = re.search(rf"<!-- {name} -->\n(.*?)<!-- end of {name} -->", text, flags=re.DOTALL)
    if not there:
        sys.exit(f"bench/README.md has no place for the table {name}")
    old = there[1].splitlines()
    row = {line.split(" | ")[0]: line for line in (old if old[:1] == lines[:1] else []) + lines}
    order = ["| " + work[0] for work in WORK]
    new = lines[:2] + [row[key] for key in order if key in row]
    with open(path, "w", encoding="utf-8") as f:
        f.write(text[:there.start(1)] + "\n".join(new) + "\n" + text[there.end(1):])


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("program")
    p.add_argument("work", nargs="*")
    p.add_argument("--threads", default="1,2,4,8,16,32,64")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--loops", action="store_true")
    p.add_argument("--cut", type=int, default=1)
    p.add_argument("--readme", action="store_true")
    a = p.parse_intermixed_args()
    threads = [int(t) for t in a.threads.split(",")]
    names = names_of(a.program)
    speed, count = [], []
    for work in WORK:
        if a.work and not any(w in work[0] for w in a.work):
            continue
        runs = {t: best(a.program, work, t, a.repeats, a.cut) for t in threads}
        speed.append(speed_row(work, runs))
        count.append(count_row(work, runs))
        print(" | ".join(speed[-1]), flush=True)
        if a.loops:
            print_loops(runs[threads[-1]], names, threads[-1])
    speed = table(["work", f"ms on {threads[0]}", *(f"x {t}" for t in threads[1:]),
                   f"lost on {threads[-1]}: serial / uneven / barriers, %"], speed)
    count = table(["work", "barriers", "tasks", f"serial ms on {threads[-1]}", "MB: weights", "moments + gradients",
                   "lists", "rows", f"GB/s on {threads[-1]}"], count)
    print("\n".join([*speed, "", *count]))
    if a.readme:
        put_readme("cores", speed)
        put_readme("counts", count)


if __name__ == "__main__":
    main()
