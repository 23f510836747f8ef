"""What the package needs from dictlearn.h: the shared library, and its declarations for cffi.

    python dlrn_build.py library FILE     compiles dictlearn.h into the shared library FILE
    python dlrn_build.py module FILE      writes _abi.py (needs cffi)

CC and CFLAGS are read from the environment. The compiler must take gcc's options: gcc, clang, MinGW.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
# One name on every system, as _core.py expects it.
LIBRARY = "libdictlearn.so"
# Only what the header marks as its interface is visible in the library.
EXPORT = "__declspec(dllexport)" if sys.platform == "win32" else '__attribute__((visibility("default")))'
OPENMP_PROBE = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"
# A line of the preprocessor's that says where the text comes from: # 12 "dictlearn.h" 2
ORIGIN = re.compile(r'#(?:line)? \d+ "(.*?)"')
# Macros vanish with the preprocessor. The shapes of parameters, which are in one, stay as constants:
# DLRN_ENCODER_ROWS is 'F', DLRN_ENCODER_COLS is 'I'.
SHAPES = """
#define DLRN_SHAPE(role, name, rows, cols) role##_ROWS = rows, role##_COLS = cols,
enum dlrn_shape { DLRN_ROLE_LIST(DLRN_SHAPE) };
"""


def header() -> Path:
    """dictlearn.h: in a source distribution beside this file, in the repository two folders up."""
    for folder in (HERE, HERE.parent.parent):
        if (folder / "dictlearn.h").is_file():
            return folder / "dictlearn.h"
    raise FileNotFoundError(f"dictlearn.h is neither in {HERE} nor two folders above it")


def version() -> str:
    """The version that the header states."""
    found = re.search(r'#define DLRN_VERSION_STRING "(.*)"', header().read_text(encoding="utf-8"))
    if not found:
        raise ValueError(f"{header()}: no DLRN_VERSION_STRING")
    return found.group(1)


def compiler() -> list:
    """The compiler and the words of its command that come with it."""
    return shlex.split(os.environ.get("CC", "cc"))


def openmp() -> list:
    """The option for threads, if the compiler has them."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(OPENMP_PROBE)
        command = [*compiler(), "-fopenmp", str(source), "-o", str(Path(folder, "probe"))]
        ended = subprocess.run(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return ["-fopenmp"] if ended.returncode == 0 else []


def compile_library(target: Path) -> None:
    """Compiles the header into a shared library that exports the interface and nothing else."""
    flags = shlex.split(os.environ.get("CFLAGS", "-O2"))
    shared = ["-shared", "-fvisibility=hidden", f"-DDLRN_API={EXPORT}", "-DDICTLEARN_IMPLEMENTATION"]
    if sys.platform != "win32":
        shared.append("-fPIC")
    # Compiled beside its place and then renamed: an import never sees half a library.
    partial = target.with_name(target.name + ".partial")
    command = [*compiler(), "-std=c99", *flags, *openmp(), *shared, "-x", "c", str(header())]
    subprocess.run([*command, "-o", str(partial), "-lm"], check=True)
    os.replace(partial, target)


def declarations() -> str:
    """The interface as cffi reads it: the compiler's own preprocessing, less the system's headers.

    Attributes become nothing, since no value of a declaration depends on them.
    """
    text = f'#include "{header().as_posix()}"\n#line 1 "{header().name}"\n{SHAPES}'
    command = [*compiler(), "-E", "-D__attribute__(x)=", "-x", "c", "-"]
    ended = subprocess.run(command, input=text, check=True, stdout=subprocess.PIPE, encoding="utf-8")
    kept, ours = [], False
    for line in ended.stdout.splitlines():
        origin = ORIGIN.match(line)
        if origin:
            ours = os.path.basename(origin.group(1)) == header().name
        elif ours and line.strip() and not line.startswith("#"):
            kept.append(line)
    return "\n".join(kept)


def write_module(target: Path) -> None:
    """Writes the module _abi, from which the package opens the library at run time."""
    import cffi

    ffi = cffi.FFI()
    ffi.cdef(declarations())
    ffi.set_source("dlrn._abi", None)
    with contextlib.redirect_stdout(io.StringIO()):
        ffi.emit_python_code(str(target))
    target.touch()  # also where its text is the same: make goes by the time


if __name__ == "__main__":
    made = {"library": compile_library, "module": write_module}
    if len(sys.argv) != 3 or sys.argv[1] not in made:
        sys.exit(__doc__)
    made[sys.argv[1]](Path(sys.argv[2]))
