"""What the native module brings into a process: no torch, no CUDA library, no second OpenMP runtime."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import toykern
from toykern import _native

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads what Linux alone has")
MAPPED = """
import re
paths = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
print(*sorted(p for p in paths if re.search(r"/lib([gi]?omp|kmp)[^/]*\\.so", p)))
"""


def runtimes(imports: str) -> list[str]:
    """The OpenMP runtimes that are in a process after these imports."""
    here = str(Path(toykern.__file__).parent.parent)
    code = f"import sys\nsys.path.insert(0, {here!r})\n{imports}\n{MAPPED}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@LINUX
@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_the_module_links_neither_torch_nor_cuda():
    """One wheel for every torch and every driver: both are met at run time."""
    said = subprocess.run(["readelf", "-d", _native.__file__], capture_output=True, text=True).stdout
    needed = re.findall(r"NEEDED.*\[(.+)\]", said)
    assert needed and not [name for name in needed if re.match(r"lib(torch|c10|cu|nv|python)", name)], needed
    usual = r"lib(stdc\+\+|m|gomp|gcc_s|c|dl|rt|pthread|asan|ubsan)\.so|ld-linux"
    assert [name for name in needed if not re.match(usual, name)] == []


@LINUX
@pytest.mark.slow
def test_there_is_one_openmp_runtime_and_it_is_torchs():
    alone = runtimes("import torch")
    assert len(alone) == 1
    assert runtimes("import torch, toykern") == runtimes("import toykern") == alone
    used = "import torch, toykern as tk; tk.fit(tk.TiedAutoencoder(3, 2, 8), tk.SparseFeatures(3, 0.5), 3, 8)"
    assert runtimes(used) == alone


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    ["import sklearn.cluster, torch, {}", "import torch, {}, sklearn.cluster", "import {}, sklearn.cluster"],
)
def test_scikit_learn_brings_its_own_runtime_and_toykern_none(imports):
    if importlib.util.find_spec("sklearn") is None:
        pytest.skip("needs scikit-learn")
    without = runtimes(imports.format("torch"))
    assert runtimes(imports.format("toykern")) == without
    assert len(without) <= 2  # torch's, scikit-learn's
