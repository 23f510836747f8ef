#!/usr/bin/env python3
"""cores.py - what a step and its neighbours would take on many cores, simulated from the times of their tasks.

    bench/cores.py PROGRAM [--threads 1,8,64] [--repeats N] [--loops] [--readme] [WORK...]

PROGRAM (build/cores, from bench/cores.c) runs each piece of work with a parallel_for of its own, one task after the
other, and prints the time of each task and the time between loops. It is run anew for each number of threads, since
that number says how loops are cut. From these times a loop on T threads is simulated: tasks are handed out in order to
whichever thread is free first, one at a time. --loops prints each loop, too; --readme writes the table into
bench/README.md. A WORK picks the rows whose name contains it.
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
    ("step reference, B 8192, F 8192", "step:reference", 8192, 512, 8192),
    ("step reference, B 2048, F 32768", "step:reference", 2048, 512, 32768),
    ("step reference, B 8192, F 32768", "step:reference", 8192, 512, 32768),
    ("step reference, B 2048, F 32768, d 4096", "step:reference", 2048, 4096, 32768),
    ("step dl-batch_top_k, B 2048, F 8192", "step:dl-batch_top_k", 2048, 512, 8192),
    ("step dl-batch_top_k, B 8192, F 32768", "step:dl-batch_top_k", 8192, 512, 32768),
    ("step dl-top_k, AuxK, B 2048, F 8192", "auxk:dl-top_k", 2048, 512, 8192),
    ("step dl-top_k, AuxK, B 8192, F 32768", "auxk:dl-top_k", 8192, 512, 32768),
    ("step with ghosts, B 2048, F 8192", "ghosts:reference", 2048, 512, 8192),
    ("step with ghosts, B 8192, F 32768", "ghosts:reference", 8192, 512, 32768),
    ("encode 8192 rows, F 32768", "encode", 8192, 512, 32768),
    ("evaluate 8192 rows, F 32768", "evaluate", 8192, 512, 32768),
    ("survey 8192 rows, F 32768, report on 512", "survey", 8192, 512, 32768),
    ("a batch of 8192 from the buffer", "buffer", 8192, 512, 131072),
]


def record(program, work, threads, repeats):
    """[repeat] of ([(body, serial ns, [task ns])], the last serial ns)"""
    _, what, rows, width, features = work
    out = subprocess.run([program, what, str(rows), str(width), str(features), str(threads), str(repeats)], check=True,
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    runs = []
    for line in out.splitlines():
        word = line.split()
        if word[0] == "begin":
            loops = []
        elif word[0] == "end":
            runs.append((loops, float(word[1])))
        else:
            loops.append((int(word[0]), float(word[1]), [float(w) for w in word[2:]]))
    return runs


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

    def __init__(self, run, threads):
        self.loops, tail = run
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


def best(program, work, threads, repeats):
    return min((Run(run, threads) for run in record(program, work, threads, repeats)), key=lambda run: run.total)


def row(work, runs):
    threads = sorted(runs)
    last, one = runs[threads[-1]], runs[threads[0]]
    share = [100 * part / last.total for part in (last.serial, last.uneven, last.barriers)]
    return [work[0], str(len(last.loops)), str(last.tasks), f"{one.total / 1e6:.1f}", f"{last.serial / 1e6:.2f}",
            *(f"{one.total / runs[t].total:.1f}" for t in threads[1:]), " / ".join(f"{s:.0f}" for s in share)]


def put_readme(lines):
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "README.md")
    with open(path, encoding="utf-8") as f:
        text = f.read()
    new = re.sub(r"(<!-- cores -->\n).*?(<!-- end of cores -->)", lambda m: m[1] + "\n".join(lines) + "\n" + m[2], text,
                 flags=re.DOTALL)
    if new == text and "<!-- cores -->" not in text:
        sys.exit("bench/README.md has no place for the table")
    with open(path, "w", encoding="utf-8") as f:
        f.write(new)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("program")
    p.add_argument("work", nargs="*")
    p.add_argument("--threads", default="1,8,16,32,64")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--loops", action="store_true")
    p.add_argument("--readme", action="store_true")
    a = p.parse_intermixed_args()
    threads = [int(t) for t in a.threads.split(",")]
    names = names_of(a.program)
    head = ["work", "barriers", "tasks", f"ms on {threads[0]}", f"serial ms on {threads[-1]}",
            *(f"x {t}" for t in threads[1:]), f"lost on {threads[-1]}: serial / uneven / barriers, %"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    print("\n".join(lines), flush=True)
    for work in WORK:
        if a.work and not any(w in work[0] for w in a.work):
            continue
        runs = {t: best(a.program, work, t, a.repeats) for t in threads}
        lines.append("| " + " | ".join(row(work, runs)) + " |")
        print(lines[-1], flush=True)
        if a.loops:
            print_loops(runs[threads[-1]], names, threads[-1])
    if a.readme:
        put_readme(lines)


if __name__ == "__main__":
    main()
