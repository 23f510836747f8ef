"""Builds the package: compiles dictlearn.h, and writes its declarations for cffi.

DICTLEARN_LIBRARY=FILE takes a shared library that is compiled already.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

# Under pip the folder of setup.py is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent))
import dlrn_build  # noqa: E402


class Build(build_py):
    def run(self):
        super().run()
        folder = Path(self.build_lib, "dlrn")
        folder.mkdir(parents=True, exist_ok=True)
        if os.environ.get("DICTLEARN_LIBRARY"):
            shutil.copy(os.environ["DICTLEARN_LIBRARY"], folder / dlrn_build.LIBRARY)
        else:
            dlrn_build.compile_library(folder / dlrn_build.LIBRARY)
        dlrn_build.write_module(folder / "_abi.py")


class Wheel(bdist_wheel):
    """The library depends on the machine, but not on the Python that opens it."""

    def get_tag(self):
        return ("py3", "none", super().get_tag()[2])


class Sources(sdist):
    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        shutil.copy(dlrn_build.header(), base_dir)
        shutil.copy(dlrn_build.__file__, base_dir)


class Binary(Distribution):
    def has_ext_modules(self):
        return True


# Nothing is left in the folder of the sources: what an older build left would go into the next wheel.
scratch = tempfile.TemporaryDirectory()

setup(
    options={"build": {"build_base": scratch.name}, "egg_info": {"egg_base": scratch.name}},
    version=dlrn_build.version(),
    distclass=Binary,
    cmdclass={"build_py": Build, "bdist_wheel": Wheel, "sdist": Sources},
)
