"""The tests of dictionary_learning itself, with its name in their imports changed to ours. They are read from a
clone of its repository when this runs: DICTIONARY_LEARNING_GIT names one, or git fetches one.

Its unit tests run as written. Its end-to-end tests want a GPU, Pythia-70m and The Pile: they run with those
constants changed, on the small model of this project and a text of this project, for a few steps; the figures
that they expect of Pythia are then asked for by name only. test_training.py and
test_interp.py compare figures with the library's.
"""
import os
import re
import subprocess
import sys
import xml.etree.ElementTree

from harness import BUILD, ROOT, TINY, folder, main, skip

URL = "https://github.com/saprmarks/dictionary_learning"


def clone():
    """A git folder with the library's history."""
    given = os.environ.get("DICTIONARY_LEARNING_GIT")
    if given:
        return given
    path = BUILD / "dictionary_learning.git"
    if not path.exists():
        words = dict(capture_output=True, timeout=60, env={**os.environ, "GIT_TERMINAL_PROMPT": "0"})
        try:
            done = subprocess.run(["git", "clone", "--quiet", "--bare", "--depth", "1", URL, path], **words)
        except (subprocess.TimeoutExpired, FileNotFoundError):
            done = None
        if not done or done.returncode:
            skip(f"{URL} is out of reach, and DICTIONARY_LEARNING_GIT names no clone")
    return path


def text_of(name):
    done = subprocess.run(["git", "-C", clone(), "show", "HEAD:" + name], capture_output=True, text=True)
    if done.returncode:
        skip(f"the clone has no {name}: {done.stderr.strip()}")
    return done.stdout.replace("dictionary_learning", "dlrn")


def run(here, name, text):
    """{case: what went wrong, or None} of a test file; each is printed."""
    (here / name).write_text(text)
    report = here / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", name]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=900,
                          env={**os.environ, "PYTHONPATH": str(BUILD / "python")})
    assert report.exists(), done.stdout + done.stderr
    found = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        bad = [child.get("message") for child in case if child.tag in ("failure", "error", "skipped")]
        found[case.get("name")] = bad[0] if bad else None
        print(f"    {name}: {case.get('name')}: {bad[0] if bad else 'passed'}")
    if any(found.values()):
        print(done.stdout[-6000:])
    return found


def all_pass(found, expected):
    bad = {name: why for name, why in found.items() if why}
    assert not bad, bad
    assert len(found) >= expected, f"{len(found)} cases, expected at least {expected}"


def test_unit_tests():
    all_pass(run(folder("reference"), "test_dictionary.py", text_of("tests/unit/test_dictionary.py")), 11)


def smaller(text):
    """An end-to-end test on the small model of this project and six batches of this project's own text."""
    constants = {"DEVICE": '"cpu"', "MODEL_NAME": repr(str(TINY)), "EVAL_TOLERANCE_PERCENT": "float('inf')",
                 "sae_batch_size": "512", "num_tokens": "512 * 6", "n_batches": "2"}
    for name, value in constants.items():
        text, changed = re.subn(rf"^(\s*{name}) = .*$", lambda m: f"{m[1]} = {value}", text, flags=re.M)
        assert changed, f"the test sets no {name} any more"
    text = re.sub(r", device_map=[^,)]+", "", text)  # it would ask for accelerate
    text = text.replace("hf_dataset_to_generator(DATASET_NAME)", "pieces()")
    return text + f"""

def pieces():
    with open({str(ROOT / "dictlearn.h")!r}) as file:
        text = file.read()
    return (text[i:i + 500] for i in range(0, len(text), 500))
"""


def test_end_to_end_with_transformers():
    found = run(folder("reference-torch"), "test_pytorch.py", smaller(text_of("tests/test_pytorch_end_to_end.py")))
    all_pass(found, 2)


def test_end_to_end_with_nnsight():
    try:
        import nnsight  # noqa: F401
    except ImportError:
        skip("no nnsight")
    all_pass(run(folder("reference-nnsight"), "test_nnsight.py", smaller(text_of("tests/test_end_to_end.py"))), 2)


main(globals())
