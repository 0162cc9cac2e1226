"""`python -m toykern.info`: true facts, and an answer even where the native module cannot be loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import toykern
from toykern import _native
from toykern import info as info_module
from toykern.info import format_info, info


def test_facts_are_those_of_this_process():
    facts = info()
    assert facts["versions"]["toykern"] == toykern.__version__
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["versions"]["numpy"] == np.__version__
    assert facts["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts == json.loads(json.dumps(facts))


def test_torch_is_named_with_its_local_suffix(monkeypatch):
    """The index's own torch is 2.13.0 to pip, and 2.13.0+cu130 to itself."""
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.13.0+cu999"))
    assert info()["versions"]["torch"] == "2.13.0+cu999"


def test_native_facts_agree_with_the_module():
    native = info()["native"]
    assert native["loaded"] is True
    assert native["isa_level"] == _native.isa_level()
    assert native["isa_level"] in native["isa_levels"]
    assert native["stream_version"] == _native.stream_version() >= 1
    assert native["commit"] and native["compiler"]


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_follow_torch(threads):
    torch.set_num_threads(threads)
    assert info()["threads"]["torch"] == threads


def test_cuda_is_reported_with_its_reason():
    cuda = info()["cuda"]
    assert cuda["why"].startswith("built: " if cuda["kernels"] else "not built: ")
    assert bool(cuda["archs"]) == cuda["kernels"]
    assert all(arch in cuda["why"] for arch in cuda["archs"])
    assert bool(cuda["devices"]) == (cuda["problem"] == "none")
    assert cuda["torch_cuda"] == (torch.version.cuda or "none")


def test_gpus_are_listed_by_name():
    gpu = {"name": "NVIDIA H200", "capability": (9, 0), "multiprocessors": 132, "memory": 140 << 30}
    status = {"built": True, "runtime": 13000, "driver": 12080, "devices": 2, "problem": ""}
    native = SimpleNamespace(
        cuda_status=lambda: status, cuda_device=lambda index: gpu, build_info=_native.build_info
    )
    facts = info_module._cuda_facts(native)
    assert facts["devices"][1] == "cuda:1 NVIDIA H200 (sm_90, 132 SMs, 140.0 GiB)"
    assert (facts["runtime"], facts["driver"], facts["problem"]) == ("13.0", "12.8", "none")


def test_an_absent_optional_package_is_said_to_be(monkeypatch):
    monkeypatch.setattr(info_module, "PACKAGES", ("torch", "no-such-package-toykern"))
    assert info()["versions"]["no-such-package-toykern"] == "not installed"


def test_a_module_that_does_not_load_says_why(monkeypatch, capsys):
    def fail():
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(info_module, "_load_native", fail)
    assert info_module.main() == 1
    printed = capsys.readouterr().out
    assert "libgomp.so.1: cannot open" in printed and "pip install" in printed


def test_text_has_every_fact():
    facts = info()
    text = format_info(facts)
    for section, entries in facts.items():
        assert f"{section}\n" in text
        assert all(name in text for name in entries)
    assert facts["native"]["commit"] in text


def test_runs_as_a_module_without_warnings():
    command = [sys.executable, "-W", "error", "-m", "toykern.info"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert info()["native"]["commit"] in result.stdout


@pytest.mark.slow
def test_output_that_nobody_reads_is_no_error():
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, "-m", "toykern.info"]
    with open(theirs, "w") as unread:
        result = subprocess.run(command, stdout=unread, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (0, "")
