"""`import toykern` without its native module: names say what is missing, `toykern.info` still answers."""

from __future__ import annotations

import subprocess
import sys

import toykern

WITHOUT = "import sys, torch; sys.modules['toykern._native'] = None\n"


def _run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", WITHOUT + code], capture_output=True, text=True)


def test_every_public_name_is_there():
    assert all(hasattr(toykern, name) for name in toykern.__all__)


def test_a_name_says_that_the_native_module_is_missing():
    for code in ("import toykern; toykern.fit", "from toykern import SparseFeatures"):
        result = _run(code)
        assert result.returncode == 1
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("ImportError: toykern.") and "needs toykern's native module" in last
        assert "pip install -e ." in last and "python -m toykern.info" in last


def test_names_that_never_were_are_missing_as_usual():
    result = _run("import toykern; print(hasattr(toykern, 'nothing'), toykern.metrics.__name__)")
    assert result.stdout == "False toykern.metrics\n", result.stderr


def test_info_says_why():
    result = _run("import runpy; runpy.run_module('toykern.info', run_name='__main__')")
    assert result.returncode == 1
    assert "loaded           no" in result.stdout and "toykern._native" in result.stdout
