"""`make gpu-check`: no stage loses another's results, and a bare machine has all that the GPU tests need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import gpu_check  # noqa: E402

ABSENT = ["hypothesis", "xarray", "zarr", "matplotlib", "pytest_benchmark", "optax", "nbclient", "ninja"]


def without(packages: list[str], code: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code in the project's root as if these packages were not installed."""
    block = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""
    environ = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-c", block + code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environ)


def test_gpu_tests_are_collected_on_a_bare_machine():
    arguments = ["-q", "--collect-only", "-m", "gpu", "-p", "no:cacheprovider", *gpu_check.GPU_TESTS]
    done = without(ABSENT, f"import pytest\nsys.exit(pytest.main({arguments!r}))")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "test_gpu_fit.py::test_training_follows_the_reference" in done.stdout
    assert len(gpu_check.GPU_TESTS) >= 4 and "ERROR" not in done.stdout


def test_the_bench_and_the_small_steps_import_on_a_bare_machine():
    code = "import bench.gpu.__main__, bench.gpu.torch_peers, bench.gpu.ours\n"
    code += "import bench.gpu.layer, bench.gpu.sparse\n"
    code += "sys.path.insert(0, 'tools')\nimport gpu_steps, gpu_check, native_build\nprint('there')"
    done = without([*ABSENT, "jax"], code)
    assert done.stdout == "there\n", done.stderr


def outcome_of(monkeypatch, tmp_path, stages, arguments=()):
    monkeypatch.setattr(gpu_check, "_STAGES", stages)
    monkeypatch.setattr(gpu_check, "facts", lambda: {"commit": "abc", "device": "NVIDIA Test"})
    status = gpu_check.main(["--results", str(tmp_path), *arguments])
    (path,) = tmp_path.glob("gpu-*.json")
    return status, json.loads(path.read_text(encoding="utf-8"))


def passing(limit, record):
    return {"passed": True, "limit": limit}


def test_a_stage_that_breaks_loses_nothing_of_the_others(monkeypatch, tmp_path, capsys):
    def breaks(limit, record):
        raise ZeroDivisionError("oh")

    def looks(limit, record):  # what was found before is on the disk by now
        seen = json.loads(record.path.read_text(encoding="utf-8"))
        assert seen["stages"]["tests"]["error"] == "ZeroDivisionError: oh"
        return {"passed": True}

    stages = dict.fromkeys(gpu_check.STAGES, passing) | {"tests": breaks, "bench": looks}
    status, record = outcome_of(monkeypatch, tmp_path, stages)
    assert status == 1 and list(record["stages"]) == list(gpu_check.STAGES)
    assert [s for s, o in record["stages"].items() if not o["passed"]] == ["tests"]
    assert record["device"] == "NVIDIA Test"
    shown = capsys.readouterr().out
    assert "tests      FAILED" in shown and "ZeroDivisionError: oh" in shown and "bench      passed" in shown


def test_without_a_gpu_it_says_so_at_once(monkeypatch, tmp_path):
    stages = dict.fromkeys(gpu_check.STAGES, passing)
    monkeypatch.setattr(gpu_check, "_STAGES", stages)
    monkeypatch.setattr(gpu_check, "facts", lambda: {"commit": "abc", "device": None, "why": "no driver"})
    assert gpu_check.main(["--results", str(tmp_path)]) == 1
    (path,) = tmp_path.glob("gpu-*.json")
    outcomes = json.loads(path.read_text(encoding="utf-8"))["stages"]
    assert outcomes["build"]["passed"]  # which needs no GPU
    for name in gpu_check.STAGES[1:]:
        assert outcomes[name]["error"] == "torch sees no GPU: no driver", name


def test_stages_share_the_budget_and_leave_something_to_those_behind(monkeypatch, tmp_path):
    stages = dict.fromkeys(gpu_check.STAGES, passing)
    status, record = outcome_of(monkeypatch, tmp_path, stages)
    limits = {name: outcome["limit"] for name, outcome in record["stages"].items()}
    assert status == 0 and limits == pytest.approx(gpu_check.SHARES, abs=1)
    needed = sum(gpu_check.NEEDED.values())
    assert gpu_check.BUDGET < 600 and limits["build"] <= gpu_check.BUDGET - needed


def test_single_stages_and_a_spent_budget(monkeypatch, tmp_path):
    stages = dict.fromkeys(gpu_check.STAGES, passing)
    arguments = ["--only", "tests", "bench", "--budget", "70"]
    status, record = outcome_of(monkeypatch, tmp_path, stages, arguments)
    assert status == 1 and list(record["stages"]) == ["tests", "bench"]
    assert record["stages"]["tests"]["skipped"] == "70 s left of the budget"
    assert record["stages"]["bench"]["passed"]


def test_a_command_past_its_limit_is_ended_with_all_its_processes():
    script = "import subprocess, time; print('begun', flush=True); subprocess.run(['sleep', '60'])"
    began = time.monotonic()
    code, output = gpu_check.run([sys.executable, "-c", script], 2.0, quiet=True)
    assert code == 124 and time.monotonic() - began < 30
    assert output.startswith("begun\n") and "time limit of 2 s" in output


PYTEST_OUTPUT = """
tests/test_gpu_fit.py::test_a[5,2 at .01] PASSED [ 10%]
tests/test_gpu_fit.py::test_a[8,3 one-sparse] FAILED [ 20%]
tests/test_gpu_errors.py::test_b SKIPPED (no zarr) [ 30%]
tests/test_gpu_errors.py::test_c
"""


@pytest.mark.parametrize("code", [1, 124])
def test_tests_are_counted_even_if_they_were_cut_short(monkeypatch, code):
    monkeypatch.setattr(gpu_check, "run", lambda *_, **__: (code, PYTEST_OUTPUT))
    outcome = gpu_check.tests(60, None)
    assert not outcome["passed"] and outcome["counts"] == {"failed": 1, "passed": 1, "skipped": 1}
    assert outcome["failed"] == ["tests/test_gpu_fit.py::test_a[8,3 one-sparse]"]
    assert ("exit status 124" in outcome["summary"]) == (code == 124)


@pytest.mark.parametrize(
    ("tool", "said", "passed"),
    [
        ("memcheck", "========= ERROR SUMMARY: 0 errors", True),
        ("memcheck", "========= ERROR SUMMARY: 12 errors", False),
        ("memcheck", "========= Error: Device not supported", False),
        ("racecheck", "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", True),
        ("racecheck", "========= RACECHECK SUMMARY: 10 hazards displayed (10 errors, 0 warnings)", False),
    ],
)
def test_a_sanitizer_passes_only_if_it_says_so(monkeypatch, tool, said, passed):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: "/bin/true")
    monkeypatch.setattr(gpu_check, "run", lambda *_, **__: (0, f"5 → 2: finite\n{said}\n"))
    assert gpu_check.sanitizer(tool)(60, None)["passed"] == passed
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: None)
    assert "not on the PATH" in gpu_check.sanitizer(tool)(60, None)["skipped"]


def test_facts_of_a_machine_without_a_gpu():
    import torch

    found = gpu_check.facts()
    assert found["torch"] == torch.__version__ and found["commit"] != "unknown"
    assert ("capability" in found) == torch.cuda.is_available()
