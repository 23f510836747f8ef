"""The package as pip installs it: into a new environment that has NumPy and cffi alone."""
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import numpy as np

from harness import BUILD, ROOT, folder, main, program, skip

HERE = folder("wheel")
VENV = BUILD / "tmp" / "python" / "wheel" / "venv"
PYTHON = VENV / "bin" / "python"


def run(*command, check=True, **words):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, cwd=HERE, **words)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(map(str, command))}: {done.stdout[-2000:]}{done.stderr[-3000:]}")
    return done


def python(code, **words):
    return run(PYTHON, "-c", code, **words)


def dictionary():
    """A small dictionary by the program, and its rows."""
    path = HERE / "run"
    if not path.exists():
        np.save(HERE / "x.npy", np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32))
        program("train", "--data", HERE / "x.npy", "--dict-size", 48, "--batch-size", 100, "--save-dir", path)
    return path


def installed():
    """A new environment with the package in it."""
    if PYTHON.exists():
        return
    run(sys.executable, "-m", "venv", VENV)
    run(PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", ROOT / "examples" / "python")


def test_it_installs_with_numpy_and_cffi_alone():
    installed()
    listed = run(PYTHON, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check").stdout
    names = {line.split("==")[0].lower() for line in listed.split()}
    assert names <= {"pip", "setuptools", "wheel", "numpy", "cffi", "pycparser", "dlrn"}, names
    assert {"dlrn", "numpy", "cffi"} <= names, names


def test_it_encodes_and_decodes_without_torch_and_scipy():
    installed()
    path = dictionary()
    program("encode", "--dict", path, "--data", HERE / "x.npy", "--out", HERE / "f.npy")
    program("reconstruct", "--dict", path, "--data", HERE / "x.npy", "--out", HERE / "y.npy")
    python(f"""
import sys, numpy as np, dlrn
assert {str(VENV)!r} in dlrn.__file__, dlrn.__file__
ae = dlrn.AutoEncoder.from_pretrained({str(path)!r})
x = np.load("x.npy")
f = ae.encode(x)
assert f.shape == (300, 48) and f.dtype == np.float32
assert np.array_equal(f, np.load("f.npy"))
assert np.array_equal(ae(x), np.load("y.npy")) and np.array_equal(ae.decode(f), np.load("y.npy"))
for name in ("torch", "scipy", "transformers", "nnsight", "tqdm"):
    assert name not in sys.modules, name
""")


def test_it_trains_and_evaluates_without_torch():
    installed()
    python("""
import numpy as np, dlrn
x = np.random.default_rng(0).standard_normal((4096, 16)).astype(np.float32)
ae = dlrn.trainSAE(x.reshape(8, 512, 16), 16, 64, 1e-3, 1e-3, warmup_steps=2)
assert ae.encode(x[:3]).shape == (3, 64)
print(dlrn.evaluate(ae, x.reshape(8, 512, 16)))
""")


def test_sparse_says_that_it_needs_scipy():
    installed()
    path = dictionary()
    done = python(f"import dlrn, numpy; dlrn.AutoEncoder.from_pretrained({str(path)!r}).encode("
                  "numpy.zeros((1, 16), 'f'), sparse=True)", check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode and re.search(r"scipy", last, re.I) and "Error" in last, last
    assert "pip install" in last, last


def test_what_needs_torch_says_so():
    installed()
    done = python("import dlrn; dlrn.ActivationBuffer(iter(['a']), object(), object(), d_submodule=4)", check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode and "torch" in last, last


def wheel():
    """The wheel that pip builds."""
    installed()
    if not list(HERE.glob("*.whl")):
        os.environ["DICTLEARN_LIBRARY"] = str(library())  # compiled once more it would be the same
        run(PYTHON, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "-w", HERE,
            ROOT / "examples" / "python")
        del os.environ["DICTLEARN_LIBRARY"]
    found = list(HERE.glob("*.whl"))
    assert len(found) == 1, found
    return found[0]


def test_the_wheel_is_of_this_platform_and_of_any_python_3():
    name = wheel().name
    assert re.fullmatch(r"dlrn-[0-9.]+-py3-none-(linux|manylinux|macosx|win)\w+\.whl", name), name
    with zipfile.ZipFile(wheel()) as file:
        names = file.namelist()
    assert any(re.match(r"dlrn/.*(libdictlearn|dictlearn).*\.(so|dylib|dll)$", n) for n in names), names
    assert "dlrn/_abi.py" in names and "dlrn/py.typed" in names, names
    assert not [n for n in names if "__pycache__" in n or n.endswith((".c", ".h", ".o"))], names


def library():
    found = [p for p in (VENV / "lib").rglob("*dictlearn*.so")]
    assert len(found) == 1, found
    return found[0]


def test_the_library_exports_only_names_of_ours():
    installed()
    if not shutil.which("nm"):
        skip("no nm")
    for path in (library(), BUILD / "libdictlearn.so"):
        listed = run("nm", "-D", "--defined-only", path).stdout.split("\n")
        names = [line.split()[-1].split("@")[0] for line in listed if line.strip()]
        others = [n for n in names if not n.startswith("dlrn_")]
        assert not others, others
        assert len(names) > 80, f"{path}: only {len(names)} functions"


def test_the_source_distribution_builds_elsewhere():
    installed()
    run(PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "build==1.6.1")
    run(PYTHON, "-m", "build", "--sdist", "--outdir", HERE / "sdist", ROOT / "examples" / "python")
    found = list((HERE / "sdist").glob("*.tar.gz"))
    assert len(found) == 1, found
    with tarfile.open(found[0]) as file:
        names = file.getnames()
    assert any(n.endswith("/dictlearn.h") for n in names), names
    run(PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--force-reinstall", "--no-deps",
        found[0])
    python("import dlrn, numpy as np; print(dlrn.AutoEncoder(4, 8).encode(np.ones((2, 4), 'f')).shape)")


def test_nothing_is_left_in_the_source_folder():
    installed()
    listed = run("git", "-C", ROOT, "status", "--porcelain", "--ignored", "examples/python", check=False)
    if listed.returncode:
        skip("no git")
    left = [line for line in listed.stdout.split("\n") if line and "__pycache__" not in line]
    assert not left, left


main(globals())
