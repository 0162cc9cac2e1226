"""`make gpu-check`: no stage loses another's results, and a bare machine has all that the GPU tests need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

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


@pytest.mark.slow
def test_gpu_tests_are_collected_on_a_bare_machine():
    arguments = ["-q", "--collect-only", "-m", "gpu", "-p", "no:cacheprovider", *gpu_check.GPU_TESTS]
    done = without(ABSENT, f"import pytest\nsys.exit(pytest.main({arguments!r}))")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "test_gpu_fit.py::test_training_follows_the_reference" in done.stdout
    assert len(gpu_check.GPU_TESTS) >= 4 and "ERROR" not in done.stdout


def test_every_gpu_test_is_in_one_call_or_the_other():
    first, second = (gpu_check._STAGES[stage].keywords["files"] for stage in ("proof", "tests"))
    assert sorted(first + second) == sorted(gpu_check.GPU_TESTS) and all((ROOT / f).exists() for f in first)


def test_every_workload_is_measured_in_one_call_or_the_other(monkeypatch, tmp_path):
    from bench.workloads import GPU_WORKLOADS

    asked = []
    monkeypatch.setattr(gpu_check, "run", lambda command, *_, **__: (asked.append(command), (0, ""))[1])
    for stage in ("headline", "bench"):
        assert gpu_check._STAGES[stage](60, RECORD)["passed"]
    only, out = (command[command.index("--budget") + 2 :] for command in asked)
    assert only == ["--only", *gpu_check.HEADLINE] and out == ["--leave-out", *gpu_check.HEADLINE]
    assert [w.key for w in GPU_WORKLOADS if w.required_rate] == list(gpu_check.HEADLINE)


@pytest.mark.slow
def test_the_bench_and_the_small_steps_import_on_a_bare_machine():
    code = "import bench.gpu.__main__, bench.peers.compiled, bench.peers.eager, bench.peers.ours\n"
    code += "import bench.gpu.layer, bench.gpu.sparse\n"
    code += (
        "sys.path.insert(0, 'tools')\nimport gpu_steps, gpu_check, gpu_progress, native_build\nprint('there')"
    )
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
        assert seen["stages"]["proof"]["error"] == "ZeroDivisionError: oh"
        return {"passed": True}

    stages = dict.fromkeys(gpu_check.STAGES, passing) | {"proof": breaks, "bench": looks}
    status, record = outcome_of(monkeypatch, tmp_path, stages)
    assert status == 1 and list(record["stages"]) == list(gpu_check.STAGES)
    assert [s for s, o in record["stages"].items() if not o["passed"]] == ["proof"]
    assert record["device"] == "NVIDIA Test"
    shown = capsys.readouterr().out
    assert "proof      FAILED" in shown and "ZeroDivisionError: oh" in shown and "bench      passed" in shown


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


@pytest.mark.parametrize("call", gpu_check.CALLS)
def test_stages_share_a_calls_budget_and_leave_something_to_those_behind(monkeypatch, tmp_path, call):
    stages = dict.fromkeys(gpu_check.STAGES, passing)
    status, record = outcome_of(monkeypatch, tmp_path, stages, ["--call", call])
    limits = {name: outcome["limit"] for name, outcome in record["stages"].items()}
    *others, last = gpu_check.CALLS[call]
    shares = {name: gpu_check.SHARES[name] for name in others} | {last: gpu_check.BUDGETS[call]}
    assert status == 0 and limits == pytest.approx(shares, abs=5)  # nothing was used before
    kept = gpu_check.SHARES["build"] + sum(gpu_check.NEEDED[name] for name in [*others[1:], last])
    assert kept < gpu_check.BUDGETS[call]


def test_without_a_call_everything_is_done_in_the_time_of_both(monkeypatch, tmp_path):
    stages = dict.fromkeys(gpu_check.STAGES, passing)
    _, record = outcome_of(monkeypatch, tmp_path, stages)
    assert list(record["stages"]) == list(gpu_check.STAGES) and len(set(gpu_check.STAGES)) == 9
    assert record["stages"]["sparse"]["limit"] == pytest.approx(sum(gpu_check.BUDGETS.values()), abs=5)
    # Eight minutes and four with what it takes to begin and to end; three are left to start a machine.
    assert gpu_check.BUDGETS["first"] <= 470 and gpu_check.BUDGETS["second"] <= 230


def test_a_stage_alone_has_all_the_time(monkeypatch, tmp_path):
    stages = dict.fromkeys(gpu_check.STAGES, passing)
    _, record = outcome_of(monkeypatch, tmp_path, stages, ["--only", "build", "layer", "--budget", "300"])
    assert record["stages"]["layer"]["limit"] == pytest.approx(300, abs=5)


def test_single_stages_and_a_spent_budget(monkeypatch, tmp_path):
    stages = dict.fromkeys(gpu_check.STAGES, passing)
    arguments = ["--only", "proof", "headline", "--budget", "155"]
    status, record = outcome_of(monkeypatch, tmp_path, stages, arguments)
    assert status == 1 and list(record["stages"]) == ["proof", "headline"]
    assert record["stages"]["proof"]["skipped"] == "155 s left of the budget"
    assert record["stages"]["headline"]["passed"]


@pytest.mark.slow
def test_a_command_past_its_limit_is_ended_with_all_its_processes():
    began = time.monotonic()
    code, output = gpu_check.run(["sh", "-c", "echo begun; sleep 3600; echo ended"], 2.0)
    assert (
        code == 124 and time.monotonic() - began < 1800
    )  # neither the shell nor what it started is waited for
    assert output.startswith("begun\n") and "time limit of 2 s" in output


@pytest.mark.slow
def test_packages_that_were_brought_along_are_found_after_the_checkouts_own(monkeypatch, tmp_path):
    (tmp_path / "brought.py").write_text("print('brought')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, output = gpu_check.run(
        [sys.executable, "-c", "import brought, toykern; print(toykern.__file__)"], 60
    )
    assert code == 0 and output.splitlines() == ["brought", str(ROOT / "toykern" / "__init__.py")], output
    monkeypatch.delenv("PYTHONPATH")
    assert gpu_check.python_path(ROOT / "tools") == f"{ROOT}{os.pathsep}{ROOT / 'tools'}"


RECORD = SimpleNamespace(log=None)  # what the stages take of one


def test_everything_said_is_in_the_log_as_it_comes(tmp_path, capsys):
    log = tmp_path / "x.log"
    for word in ("first", "second"):
        code, output = gpu_check.run(["echo", word, "× 7"], 60, log=log)
        assert (code, output) == (0, f"{word} × 7\n")
    assert log.read_text(encoding="utf-8") == "$ echo first × 7\nfirst × 7\n$ echo second × 7\nsecond × 7\n"
    assert capsys.readouterr().out == "first × 7\n\nsecond × 7\n\n"


GPU_TESTS = """
import os
import signal
import gpu_progress
import pytest

pytestmark = pytest.mark.gpu
gpu_progress.lost = lambda: None  # torch need not be asked

def test_passes():
    pass

def test_passes_too():  # whose name begins like the other's
    pass

def test_takes_the_gpu_away(monkeypatch):
    gpu_progress.lost = lambda: "CUDA error: an illegal memory access was encountered"

def test_is_skipped():
    pytest.skip("for a reason")

def test_kills_the_process():
    os.kill(os.getpid(), signal.SIGKILL)

def test_fails():
    assert False, "said so"

def test_passes_in_the_end():
    pass
"""


@pytest.mark.slow
def test_the_tests_go_on_in_another_process_where_one_lost_its_gpu_or_died(tmp_path):
    file = tmp_path / "test_pretended.py"
    file.write_text(GPU_TESTS)
    files = ["--rootdir", str(tmp_path), "-c", os.devnull, str(file)]
    outcome = gpu_check.tests(120, RECORD, files)
    assert not outcome["passed"] and "3 processes" in outcome["summary"]
    assert outcome["counts"] == {"begun": 1, "failed": 2, "passed": 3, "skipped": 1}
    assert [name.split("::")[-1] for name in outcome["failed"]] == [
        "test_takes_the_gpu_away",
        "test_kills_the_process",
        "test_fails",
    ]
    assert "illegal memory access" in outcome["output"] and "said so" in outcome["output"]


@pytest.mark.parametrize(
    ("code", "states", "passed", "summary"),
    [
        (0, {"a": "passed", "b": "skipped"}, True, "1 passed, 1 skipped"),
        (0, {"b": "skipped"}, False, "1 skipped"),
        (5, {}, False, "no test was run"),
        (1, {"a": "passed", "b": "error"}, False, "1 error, 1 passed"),
        (124, {"a": "passed", "b": "begun"}, False, "1 begun, 1 passed, exit status 124, cut off in b"),
        (3, {}, False, "no test was run, exit status 3"),
    ],
)
def test_tests_are_counted_even_if_they_were_cut_short(monkeypatch, code, states, passed, summary):
    def run(command, limit, environ, log):
        path = Path(command[command.index("--progress") + 1])
        path.write_text("".join(f"begun\t{name}\n{state}\t{name}\n" for name, state in states.items()))
        return code, "what was said"

    monkeypatch.setattr(gpu_check, "run", run)
    outcome = gpu_check.tests(60, RECORD, ["tests/x.py"])
    assert (outcome["passed"], outcome["summary"]) == (passed, summary)
    assert outcome["failed"] == ["b"] * ("error" in states.values())  # what the limit cut off has not failed


# Those that take few seconds; TOYKERN_GPU_TESTS_ON=cpu pytest -m gpu tests/test_gpu_*.py tries them all.
@pytest.mark.slow
def test_gpu_tests_themselves_pass_on_the_cpu():
    """An hour with a GPU must not be lost to mistakes in the tests; what needs CUDA itself is skipped."""
    files = [f"tests/test_gpu_{name}.py" for name in ("errors", "sample", "sparse")]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "gpu", "-p", "no:cacheprovider", *files]
    environ = {**os.environ, "TOYKERN_GPU_TESTS_ON": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.slow
def test_the_steps_for_the_sanitizers_run(capsys):
    import gpu_steps

    assert gpu_steps.main(["--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    count = len(gpu_steps.steps())
    assert shown.count(": finite") == count and shown.endswith(f"{count} of {count} steps, 0 not finite\n")
    assert gpu_steps.main(["--device", "cpu", "--until", "0"]) == 0
    assert capsys.readouterr().out == f"0 of {count} steps, 0 not finite\n"


def test_the_summary_has_the_figures_and_what_failed(monkeypatch, tmp_path, capsys):
    workloads = [
        {"key": "hard", "ratio": 14.4, "required_ratio": 10, "rates": {"toykern": 2.1e8}, "issue_share": 0.41,
         "required_rate": 1.75e8, "whole": {"call_seconds": 50.2}, "projected_seconds": 49.0},
        {"key": "twenty", "contenders": {"toykern": {"failed": "RuntimeError: oh"}}},
    ]  # fmt: skip
    sparse = [{"key": "1024-768", "ratio": 1.5, "required": 0.95, "roof_share": 0.3}]
    stages = dict.fromkeys(gpu_check.STAGES, passing)
    stages["bench"] = lambda limit, record: {"passed": True, "figures": {"workloads": workloads}}
    stages["sparse"] = lambda limit, record: {"passed": True, "figures": {"workloads": sparse}}
    stages["tests"] = lambda limit, record: {"passed": False, "failed": [f"t{i}" for i in range(22)]}
    outcome_of(monkeypatch, tmp_path, stages)
    last = capsys.readouterr().out.split("NVIDIA Test; toykern abc\n")[-1].splitlines()
    assert last[0] == "failed: t0" and last[20] == "and 2 more"
    assert last[21] == (
        "bench: hard 14.4×, asked 10×, 2.1e+08 model-steps/s, asked 1.8e+08, whole 50.2 s, 41% of the roof"
    )
    assert last[22] == "bench: twenty no ratio, toykern: RuntimeError: oh"
    assert last[23] == "sparse: 1024-768 1.5×, asked 0.95×, 30% of the roof"
    assert len(last) == 24 + len(gpu_check.STAGES) + 1


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
    monkeypatch.setattr(gpu_check, "cuda_tool", lambda name: "/bin/true")
    monkeypatch.setattr(gpu_check, "run", lambda *_, **__: (0, f"5 → 2: finite\n{said}\n"))
    assert gpu_check.sanitizer(tool)(60, RECORD)["passed"] == passed
    monkeypatch.setattr(gpu_check, "cuda_tool", lambda name: None)
    assert "neither on the PATH" in gpu_check.sanitizer(tool)(60, RECORD)["skipped"]


def test_cuda_tools_are_found_beside_the_path(monkeypatch, tmp_path):
    program = tmp_path / "bin" / "compute-sanitizer"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "/no/such/folder")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert gpu_check.cuda_tool("compute-sanitizer") == str(program)
    assert gpu_check.cuda_tool("no-such-tool") is None


@pytest.mark.slow
def test_facts_of_a_machine_without_a_gpu():
    import torch

    found = gpu_check.facts()
    assert found["torch"] == torch.__version__ and found["commit"] != "unknown"
    assert ("capability" in found) == torch.cuda.is_available()
