"""answers.py - what the peers share: the clock, the best of several runs, memory at its peak, and answers to questions
that come line by line, so that run.py can ask in turns with bench.

A question is {"row": NAME, "times": N, "threads": T, "clock": "wall" or "processor"}; its answer {PEER: best seconds,
...}, empty where nobody does that row.
"""
import json
import pathlib
import re
import sys
import time

clock = time.perf_counter


def best(times, *actions):
    """Best seconds of each action, taken in turns after one run that is not counted."""
    seconds = [float("inf")] * len(actions)
    for i in range(times + 1):
        for k, action in enumerate(actions):
            start = clock()
            action()
            if i:
                seconds[k] = min(seconds[k], clock() - start)
    return seconds


def peak_bytes():
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status).group(1))


def serve(versions, questions, set_threads):
    """questions: [(pattern of a row's name, function of the times and the pattern's groups)]."""
    global clock
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        threads = question["threads"]
        set_threads(threads)
        clock = time.perf_counter if question["clock"] == "wall" else lambda: time.process_time() / threads
        answer = {}
        for pattern, ask in questions:
            found = re.fullmatch(pattern, question["row"])
            if found:
                answer = ask(question["times"], *found.groups())
                break
        print(json.dumps(answer), flush=True)
