"""harness.py - runs the functions test_* of the file that calls main, and closes with `N passed, N failed`.

    test_NAME.py [BUILD [PART]]    BUILD/python holds the package; PART: only functions with it in their names

A function fails by an exception; it skips itself by skip(why), the rest of it undone. A line `FAIL: ...` or
`skip: ...` is what tests/run.sh repeats.
"""
import os
import pathlib
import signal
import subprocess
import sys
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build").resolve()
SHARED = pathlib.Path(os.environ.get("DICTLEARN_SHARED", ROOT.parent / "shared"))
TINY = ROOT / "examples" / "data" / "tiny-neox"
PROGRAM = BUILD / "dictlearn"
os.environ["HF_HUB_OFFLINE"] = "1"
# a shell's background jobs ignore Ctrl-C, and so would the processes of the tests
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(BUILD / "python"))


class Skipped(Exception):
    pass


def skip(why):
    raise Skipped(why)


def folder(name):
    """An empty folder of this name below BUILD/tmp."""
    path = BUILD / "tmp" / "python" / name
    subprocess.run(["rm", "-rf", path], check=True)
    path.mkdir(parents=True)
    return path


def program(*args, check=True, **words):
    """Runs BUILD/dictlearn; its standard output, or with check=False its status and standard error."""
    done = subprocess.run([PROGRAM, *map(str, args)], capture_output=True, text=True, **words)
    if check and done.returncode:
        raise AssertionError(f"dictlearn {' '.join(map(str, args))}: {done.stderr.strip()}")
    return done.stdout if check else (done.returncode, done.stderr)


def raises(kind, call, *args, says=(), **words):
    """The exception of this kind that call(*args) raises; its text has each of `says`."""
    try:
        call(*args, **words)
    except kind as error:
        for part in [says] if isinstance(says, str) else says:
            assert part in str(error), f"'{error}' does not say '{part}'"
        return error
    except Exception as error:
        raise AssertionError(f"{type(error).__name__} ({error}) where {kind.__name__} is due") from error
    raise AssertionError(f"no {kind.__name__}")


def main(names):
    passed = failed = skipped = 0
    part = sys.argv[2] if len(sys.argv) > 2 else ""
    for name, function in list(names.items()):
        if not name.startswith("test_") or not callable(function) or part not in name:
            continue
        began = time.monotonic()
        try:
            function()
            passed += 1
            verdict = "ok"
        except Skipped as why:
            skipped += 1
            verdict = f"skip: {name}: {why}"
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            failed += 1
            traceback.print_exc(file=sys.stdout)
            verdict = f"FAIL: {name}: {type(error).__name__}: {str(error).strip()[:300]}".replace("\n", " ")
        if verdict == "ok":
            verdict = f"{name}: {time.monotonic() - began:.1f} s"
        print(verdict, flush=True)
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    sys.exit(failed > 0 or passed + skipped == 0)
