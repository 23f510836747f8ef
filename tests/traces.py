"""traces.py BUILD - the table of training traces: the steps of other libraries' trainers, made again by each recipe.
Reads the folder DLRN_GOLDENS (all traces, 40 steps), or else the folder beside the repository, or tests/golden/
training.npz (some of them). Closes with `N passed, N failed, N skipped`; a trace that no recipe makes, or that does not
hold for a reason that traces.txt gives, is skipped.
"""
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent
sys.path.insert(0, str(ROOT / "golden"))
import pack_training  # noqa: E402

BUILD = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build")
BESIDE = pathlib.Path(os.environ.get("DICTLEARN_SHARED", ROOT / ".." / ".." / "shared")) / "goldens"


def main():
    folder = pathlib.Path(os.environ.get("DLRN_GOLDENS", BESIDE))
    pack = ROOT / "golden" / "training.npz"
    if folder.is_dir():
        pack = BUILD / "tmp" / "traces.npz"
        pack.parent.mkdir(parents=True, exist_ok=True)
        pack_training.pack_all(folder, pack, False)
    return subprocess.run([BUILD / "test_traces", "--table", pack, *sys.argv[2:]], timeout=300).returncode


if __name__ == "__main__":
    sys.exit(main())
