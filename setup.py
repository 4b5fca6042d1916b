"""Compiles serving/wire.proto when the package is built; all else is in setup.cfg."""

import pathlib
import sys

from setuptools import setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))


class BuildPy(build_py):
    """Builds the Python files and the client's messages."""

    def run(self):
        """Compiles into the source tree, whence a wheel and an editable install both take it."""
        from serving.wire_compiler import DESCRIPTOR_SET, compile_descriptor_set

        compile_descriptor_set(DESCRIPTOR_SET)
        super().run()


setup(cmdclass={"build_py": BuildPy})
