"""A run that would keep more than there is memory for says so before it allocates anything."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import toykern as tk
from toykern.arguments import memory

GIB = 1 << 30


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 1 GiB free."""
    monkeypatch.setattr(memory, "free_memory", lambda device: GIB)


def start(**options: Any) -> tk.Run:
    model = tk.TiedAutoencoder(5, 2, 1000)
    options = {"steps": 10_000_000, "batch_size": 8, "stop_at": 0, "progress": False} | options
    return tk.fit(model, tk.SparseFeatures(5, 0.1), **options)


# Bytes of what is kept for 1,000 models, each alone more than 1 GiB.
TOO_MUCH = [
    (
        {"record_every": 20},
        "(500,000 records of loss, 0 snapshots and the optimiser's state, for 1,000 models)",
    ),
    ({"record_every": 200, "record": ("superposition",)}, "50,000 records of loss, superposition"),
    ({"snapshots": range(40_000)}, "40,000 snapshots"),
]


@pytest.mark.parametrize(("options", "text"), TOO_MUCH, ids=["records", "metrics", "snapshots"])
def test_a_new_run(options, text, free):
    with pytest.raises(MemoryError, match=re.escape(text)) as caught:
        start(**options)
    assert "GiB, and 1 GiB are free; a larger record_every, fewer snapshots" in str(caught.value)


def test_a_run_made_longer(free):
    run = start(steps=10, record_every=1, stop_at=None)
    with pytest.raises(MemoryError, match="300,000 records"):
        tk.fit(resume=run, steps=300_000)
    assert run.config["steps"] == 10 and run.loss.shape == (1000, 10)


def test_a_run_that_fits(free):
    assert start(record_every=100).loss.shape == (1000, 100_000)


def test_a_batch(free):
    with pytest.raises(MemoryError, match=r"would take 1\.49 GiB, and 1 GiB are free; fewer models"):
        tk.SparseFeatures(100, 0.1).sample(0, 1_000_000, n_models=4)


def test_what_a_container_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    cpu = torch.device("cpu")
    whole = memory.free_memory(cpu)
    assert whole > 0  # no limit to be read
    files = {
        "memory.max": f"{GIB}\n",
        "memory.current": f"{GIB // 2}\n",
        "memory.stat": f"anon 5\ninactive_file {GIB // 4}\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "_free_of_the_machine", lambda: 100 * GIB)
    monkeypatch.setattr(memory, "_OWN_CGROUP", tmp_path / "cgroup")
    assert memory.free_memory(cpu) == 3 * GIB // 4
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory(cpu) == 100 * GIB


def test_the_least_of_all_groups_of_a_job_is_what_is_free(tmp_path, monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(memory, "_free_of_the_machine", lambda: 100 * GIB)
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU"):
        monkeypatch.delenv(name, raising=False)

    def group(path: str, names: tuple[str, str, str], limit: object, used: int) -> None:
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
        for name, text in zip(names, (limit, used, f"{names[2]} 0"), strict=True):
            (tmp_path / path / (name if name != names[2] else "memory.stat")).write_text(f"{text}\n")

    two = ("memory.max", "memory.current", "inactive_file")
    (tmp_path / "own").write_text("0::/slurm/job_7/step_0\n")
    group("slurm/job_7/step_0", two, "max", GIB)
    group("slurm/job_7", two, 9 * GIB, GIB)
    assert memory.free_memory(cpu) == 8 * GIB  # the limit is that of the job, not of the step
    one = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    (tmp_path / "own").write_text("5:cpu:/else\n4:cpuset,memory:/job_8\n")
    group("memory/job_8", one, 7 * GIB, GIB)
    assert memory.free_memory(cpu) == 6 * GIB
    monkeypatch.setenv("SLURM_MEM_PER_NODE", str(4 * 1024))
    assert 0 < memory.free_memory(cpu) < 4 * GIB  # less what this process has
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")  # all of the machine's
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "2048")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "2")
    assert 0 < memory.free_memory(cpu) < 4 * GIB
