"""The package as a whole: names, docstrings, type hints, errors, contexts; what it imports, and when."""
import inspect
import pathlib
import subprocess
import sys

import numpy as np

from harness import BUILD, ROOT, main, raises
from things import D, F, here, rows, trained
import dlrn

SOURCE = ROOT / "examples" / "python" / "dlrn"


def public():
    """(name, object) of all that the package offers."""
    return [(name, getattr(dlrn, name)) for name in dlrn.__all__]


def test_names_of_the_reference():
    for name in ("AutoEncoder", "IdentityDict", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderNew",
                 "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE", "Dictionary", "ActivationBuffer",
                 "trainSAE", "evaluate", "Trainer", "Context", "DlrnError"):
        assert name in dlrn.__all__, f"dlrn.__all__ lacks {name}"
        assert hasattr(dlrn, name), name


def test_all_is_documented_and_typed():
    bad = []
    for name, thing in public():
        if not inspect.isclass(thing) and not callable(thing):
            continue
        if not inspect.getdoc(thing):
            bad.append(f"{name} has no docstring")
        functions = [(name, thing)] if not inspect.isclass(thing) else [
            (f"{name}.{n}", f) for n, f in vars(thing).items() if not n.startswith("_") and inspect.isfunction(f)]
        for where, function in functions:
            if not inspect.getdoc(function):
                bad.append(f"{where} has no docstring")
            for argument in inspect.signature(function).parameters.values():
                if argument.name not in ("self", "cls") and argument.annotation is inspect.Parameter.empty:
                    bad.append(f"{where}: {argument.name} has no type")
    assert not bad, "; ".join(bad)


def test_only_numpy_and_cffi_are_imported():
    code = f"""
import sys
sys.path.insert(0, {str(BUILD / "python")!r})
before = set(sys.modules)
import dlrn
print(sorted({{m.split(".")[0] for m in set(sys.modules) - before}} - set(sys.stdlib_module_names)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(eval(done.stdout)) <= {"dlrn", "numpy", "cffi", "_cffi_backend", "pycparser"}, done.stdout


def test_errors_are_also_the_usual_kinds():
    for name, kind in (("FileError", OSError), ("MissingFile", FileNotFoundError), ("ShapeError", ValueError),
                       ("FormatError", ValueError), ("ArgumentError", ValueError), ("OutOfMemory", MemoryError),
                       ("Unsupported", NotImplementedError)):
        assert issubclass(getattr(dlrn, name), kind) and issubclass(getattr(dlrn, name), dlrn.DlrnError), name


def test_no_error_is_printed_and_the_next_call_works():
    place = here("package")
    ae = dlrn.Dictionary.from_pretrained(trained(place, "reference"))
    x = rows(10)
    for _ in range(3):
        raises(dlrn.DlrnError, ae.encode, x[:, 1:])
        assert ae.encode(x).shape == (10, F)


def test_contexts():
    place = here("package")
    path, x = trained(place, "reference"), rows()
    expected = dlrn.Dictionary.from_pretrained(path).encode(x)
    for threads in (1, 2, 3):
        with dlrn.Context(threads=threads) as context:
            assert context.threads == threads and context.kernels
            ae = dlrn.Dictionary.from_pretrained(path, context=context)
            assert np.array_equal(ae.encode(x), expected), "results do not depend on the number of threads"
        raises(ValueError, ae.encode, x, says="closed")
    with dlrn.Context(kernels="scalar") as context:
        assert context.kernels == "scalar"
        found = dlrn.Dictionary.from_pretrained(path, context=context).encode(x)
        assert np.abs(found - expected).max() < 1e-5
    error = raises((ValueError, NotImplementedError), dlrn.Context, kernels="no such set", says="no such set")
    assert isinstance(error, dlrn.DlrnError)
    raises((ValueError, OverflowError), dlrn.Context, threads=-3)


def test_out_of_memory():
    raises(MemoryError, dlrn.AutoEncoder, 1 << 20, 1 << 30)


def test_files_of_the_source_say_what_they_are():
    for path in SOURCE.glob("*.py"):
        text = path.read_text()
        assert text.startswith('"""') or "\n" not in text.strip(), f"{path.name} begins without a docstring"
        for number, line in enumerate(text.split("\n"), 1):
            assert len(line) <= 120, f"{path.name}:{number} has {len(line)} columns"


def test_hints_are_shipped():
    assert pathlib.Path(dlrn.__file__).with_name("py.typed").exists()


main(globals())
