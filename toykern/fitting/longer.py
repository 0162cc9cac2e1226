"""Training on: a run made longer than it was begun, with the bits of one that was so long from the start."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from toykern.arguments.errors import check_int
from toykern.data.philox import MAX_STEP
from toykern.results.run import Run
from toykern.training.schedule import OF_ANY_LENGTH
from toykern.training.settings import check_memory, check_snapshots


def check_longer(run: Run, steps: Any) -> int:
    """`steps` if `run`, which is whole, can be made that long; its own number of them if that is given.

    Only a constant learning rate and a periodic one are the same at every step of a longer run. A topology
    recipe counts its own steps, whatever the run's number of them.

    Raises:
        TypeError, ValueError: by name, that and why it cannot.
    """
    before = int(run.config["steps"])
    steps = check_int("steps", steps, minimum=1, maximum=MAX_STEP)
    if steps == before:
        return steps
    if steps < before:
        raise ValueError(
            f"steps must be {before} or more, not {steps}: a run can be made longer, not shorter (stop_at "
            "ends it early)"
        )
    schedule = run.config["schedule"]["name"]
    if schedule not in OF_ANY_LENGTH:
        raise ValueError(
            f"steps must be {before}, as when the run was begun, not {steps}: the learning rate of its "
            f"schedule ({schedule}) depends on the number of steps; only schedule='constant' and a "
            "PeriodicCosine can go on longer"
        )
    if not _sum_of_last_record_is_kept(run):
        raise ValueError(
            f"steps must be {before}, not {steps}: the run's last record is shorter than record_every = "
            f"{run.config['record_every']}, and the sum of its losses was not kept when the run was made"
        )
    return steps


def check_longer_snapshots(run: Run, snapshots: Any, steps: int) -> list[int] | None:
    """The snapshots of the run when it is `steps` long: its own, and those given for the steps that are new.

    None if what is given differs in the steps that the run had. Nothing given means its own.
    """
    before, own = int(run.config["steps"]), [int(t) for t in run.config["snapshots"]]
    given = check_snapshots(snapshots, steps)
    of_before = [t for t in given if t <= before]
    if of_before and of_before != own:
        return None
    return own + [t for t in given if t > before]


def make_longer(run: Run, steps: int, snapshots: list[int]) -> None:
    """Give `run` the length that `check_longer` allowed; its records go on where they are.

    MemoryError, before anything is changed, if there is no room for them.
    """
    before, every = int(run.config["steps"]), int(run.config["record_every"])
    finished = before // every  # a shorter record at the former end goes on, and is unfinished again
    settings = dataclasses.replace(run.settings, steps=steps, snapshots=snapshots)
    check_memory(run.model, settings, state_names=())
    added = settings.n_records - run.loss.shape[1]

    def longer(records: torch.Tensor) -> torch.Tensor:
        room = records.new_full((records.shape[0], added, *records.shape[2:]), torch.nan)
        whole = torch.cat([records, room], dim=1)
        whole[:, finished:] = torch.nan
        return whole

    run.loss = longer(run.loss)
    run.records = {name: longer(values) for name, values in run.records.items()}
    run.config = run.config | {"steps": steps, "snapshots": snapshots}
    # What the last update broke was marked for want of a loss after it; now there is one, and kernels see it.
    run.diverged_at[run.diverged_at == before] = -1


def _sum_of_last_record_is_kept(run: Run) -> bool:
    """Whether the losses of a last record that is shorter than the others can go into a full one."""
    before, every = int(run.config["steps"]), int(run.config["record_every"])
    length = before % every
    if length == 0 or run.step < before:
        return True
    trained = (run.diverged_at < 0) | (run.diverged_at == before)
    mean = (run.carry["loss"] / length).to(torch.float32)
    return torch.equal(mean[trained], run.loss[trained, before // every])
