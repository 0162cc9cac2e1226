"""Builds the native module; everything else about the package is in pyproject.toml.

Read from the environment (tools/native_build.py says what each does): CXX, MAX_JOBS, TOYKERN_CUDA,
TOYKERN_CUDA_ARCHS, CUDACXX, CUDA_HOME, CUDA_PATH, TOYKERN_SANITIZE, TOYKERN_COMMIT, TOYKERN_ONLY_BASE,
TOYKERN_THREADS, TOYKERN_CXXFLAGS.
"""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))  # build front ends do not put the project on the path

import native_build  # noqa: E402


class NinjaBuild(build_ext):
    """Hands `toykern._native` to ninja and leaves naming and placing of the result to setuptools."""

    def build_extension(self, ext: Extension) -> None:
        """Builds the one extension there is; a BuildError ends the set-up with its message alone."""
        try:
            settings = native_build.Settings.from_environment(ROOT, version=self.distribution.get_version())
            native_build.build(settings, Path(self.get_ext_fullpath(ext.name)))
        except native_build.BuildError as error:
            sys.exit(f"toykern: {error}")


setup(
    ext_modules=[Extension("toykern._native", sources=[])],
    cmdclass={"build_ext": NinjaBuild},
)
