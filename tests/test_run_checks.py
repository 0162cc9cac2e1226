"""A run that was changed behind `fit`'s back is refused by name, by resuming and by loading.

Every change here once trained nonsense, hung, or wrote where it must not.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import toykern as tk

RIGL = tk.RigL(interval=2, end=8)


def fresh_run(**options: Any) -> tk.Run:
    """Six of nine steps of three models, with everything that a run can keep."""
    options = {"record": ("superposition",), "snapshots": [0, 4, 9], "record_every": 2} | options
    model = options.pop("model", None) or tk.TiedAutoencoder(5, 2, 3)
    data = tk.SparseFeatures(5, [[0.1], [0.2], [0.3]])
    return tk.fit(model, data, 9, 8, stop_at=6, progress=False, seed=[3, 4, 5], **options)


def sparse_run() -> tk.Run:
    model = tk.SparseTiedAutoencoder(5, 2, n_models=3, density=0.5)
    return fresh_run(model=model, topology=RIGL, record=("density", "explored"))


def setting(*path: str, value: Any) -> Callable[[tk.Run], None]:
    """A change of one entry of the run's config."""

    def change(run: tk.Run) -> None:
        at = run.config
        for name in path[:-1]:
            at = at[name]
        at[path[-1]] = value

    return change


def tensor(kind: str, name: str, make: Callable[[torch.Tensor], Any]) -> Callable[[tk.Run], None]:
    """A change of one of the run's tensors."""

    def change(run: tk.Run) -> None:
        kept = getattr(run, kind)
        kept[name] = make(kept[name])

    return change


def gone(kind: str, name: str) -> Callable[[tk.Run], None]:
    return lambda run: getattr(run, kind).pop(name)


def attribute(name: str, make: Callable[[Any], Any]) -> Callable[[tk.Run], None]:
    return lambda run: setattr(run, name, make(getattr(run, name)))


def expanded(t: torch.Tensor) -> torch.Tensor:
    return t[:1].expand(t.shape)


def strided(t: torch.Tensor) -> torch.Tensor:
    return torch.stack([t, t], dim=-1)[..., 0]


def emptied(t: torch.Tensor) -> torch.Tensor:
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


# What is changed, and what the message holds beside "resume: ".
CONFIG = [
    ("steps, more", setting("steps", value=2000), "loss must be a float32 tensor of shape [3, 1000]"),
    ("steps, fewer than made", setting("steps", value=5), "snapshots must be an integer from 0 to 5, not 9"),
    ("steps 0", setting("steps", value=0), "steps must be an integer from 1 to 4294967295, not 0"),
    ("steps 2**40", setting("steps", value=2**40), "steps must be an integer from 1"),
    ("steps text", setting("steps", value="9"), "steps must be an integer, not '9'"),
    ("record_every 0", setting("record_every", value=0), "record_every must be an integer at least 1, not 0"),
    (
        "record_every -3",
        setting("record_every", value=-3),
        "record_every must be an integer at least 1, not -3",
    ),
    ("record_every 1", setting("record_every", value=1), "loss must be a float32 tensor of shape [3, 9]"),
    ("record_every None", setting("record_every", value=None), "record_every must be an integer, not None"),
    ("batch 0", setting("batch_size", value=0), "batch_size must be an integer from 1 to 2147483647, not 0"),
    ("batch -1", setting("batch_size", value=-1), "batch_size must be an integer from 1"),
    ("batch 2**40", setting("batch_size", value=2**40), "batch_size must be an integer from 1"),
    ("target", setting("target", value="square"), "target must be one of 'identity', 'abs'"),
    ("reduction", setting("loss_reduction", value="max"), "loss_reduction must be one of 'mean', 'sum'"),
    ("record", setting("record", value=["loss"]), "records has 'superposition'"),
    ("record, unknown", setting("record", value=["lose"]), "record must be one of"),
    ("snapshots", setting("snapshots", value=[0]), "snapshots has step 4"),
    ("snapshots beyond", setting("snapshots", value=[0, 4, 10]), "snapshots must be an integer from 0 to 9"),
    ("shape", setting("model", "n_features", value=6), "config['model'] does not describe the run's model"),
    ("activation", setting("model", "output_activation", value="tanh"), "does not describe the run's model"),
    ("magnitude", setting("data", "magnitude", value="constant"), "does not describe the run's data"),
    ("lr", setting("optimizer", "lr", value=0.5), "config['optimizer']['lr'] is 0.5, but arrays['lr']"),
    ("lr text", setting("optimizer", "lr", value="fast"), "lr must be a number, not 'fast'"),
    ("betas", setting("optimizer", "betas", value=[0.9, 1.0]), "betas[1] must be a finite number"),
    (
        "another optimiser",
        setting("optimizer", value={"name": "SGD", "lr": 1e-3, "weight_decay": 0.01}),
        "optimizer_state must have the entries []",
    ),
    ("no optimiser", setting("optimizer", "name", value="Lion"), "the optimizer's name must be one of"),
    ("unknown entry", setting("epochs", value=3), "config must have the entries"),
    ("a missing one", gone("config", "target"), "config must have the entries"),
]

STATE, LOSS = "weight/exp_avg", "loss"
ARRAYS = [
    (
        "state, short",
        tensor("optimizer_state", STATE, lambda t: t[:, :1].clone()),
        f"optimizer_state[{STATE!r}] must",
    ),
    (
        "state, dtype",
        tensor("optimizer_state", STATE, torch.Tensor.double),
        "float32 tensor of shape [3, 2, 5], not",
    ),
    ("state, strides", tensor("optimizer_state", STATE, strided), "must be contiguous"),
    ("state, expanded", tensor("optimizer_state", STATE, expanded), "must be contiguous"),
    (
        "state, no memory",
        tensor("optimizer_state", STATE, emptied),
        "must be contiguous in memory of its own",
    ),
    (
        "state, meta",
        tensor("optimizer_state", STATE, lambda t: t.to("meta")),
        "must be on the CPU, not on 'meta'",
    ),
    ("state, sparse", tensor("optimizer_state", STATE, torch.Tensor.to_sparse), "must be a tensor"),
    (
        "state, array",
        tensor("optimizer_state", STATE, lambda t: t.numpy()),
        "must be a tensor, not a float32 array",
    ),
    ("state, gone", gone("optimizer_state", STATE), "optimizer_state must have the entries"),
    (
        "records",
        tensor("records", "superposition", lambda t: t[:, :2].clone()),
        "records['superposition'] must",
    ),
    ("records, unknown", lambda run: run.records.update(entropy=run.loss), "records has 'entropy'"),
    ("carry", tensor("carry", LOSS, torch.Tensor.float), "carry['loss'] must be a float64"),
    ("carry, short", tensor("carry", LOSS, lambda t: t[:2].clone()), "carry['loss'] must be"),
    (
        "seed",
        tensor("arrays", "seed", lambda t: t[:2].clone()),
        "arrays['seed'] must be a int64 tensor of shape [3]",
    ),
    ("seed, negative", tensor("arrays", "seed", lambda t: t - 5), "arrays['seed'] must be at least 0"),
    ("seed, dtype", tensor("arrays", "seed", torch.Tensor.int), "arrays['seed'] must be a int64"),
    (
        "importance",
        tensor("arrays", "importance", lambda t: t[:, :4].clone()),
        "arrays['importance'] must be",
    ),
    ("importance, NaN", tensor("arrays", "importance", lambda t: t * torch.nan), "importance must be finite"),
    (
        "lr",
        tensor("arrays", "lr", lambda t: t[:1].clone()),
        "arrays['lr'] must be a float64 tensor of shape [3]",
    ),
    ("lr, gone", gone("arrays", "lr"), "arrays['lr'] must be a tensor, not None"),
    ("decay, infinite", tensor("arrays", "weight_decay", lambda t: t / 0), "weight_decay must be finite"),
    ("probability", tensor("arrays", "probability", lambda t: t / 2), "is not that of the run's data"),
    (
        "initial weights",
        tensor("arrays", "init/weight", torch.Tensor.double),
        "arrays['init/weight'] must be",
    ),
    (
        "loss, short",
        attribute("loss", lambda t: t[:, :4].clone()),
        "loss must be a float32 tensor of shape [3, 5]",
    ),
    ("loss, strides", attribute("loss", lambda t: t.T.contiguous().T), "loss must be contiguous"),
    ("loss, None", attribute("loss", lambda t: None), "loss must be a tensor, not None"),
    ("marks", attribute("diverged_at", torch.Tensor.int), "diverged_at must be a int64"),
    ("marks, beyond", attribute("diverged_at", lambda t: t + 8), "diverged_at must hold steps up to 6"),
    ("step -1", attribute("step", lambda step: -1), "step must be an integer from 0 to 9, not -1"),
    ("step 10", attribute("step", lambda step: 10), "step must be an integer from 0 to 9, not 10"),
    ("step, float", attribute("step", float), "step must be an integer, not 6.0"),
    ("step, before a snapshot", attribute("step", lambda step: 2), "snapshots has step 4"),
    (
        "snapshot, shape",
        lambda run: run.snapshots[4].update(bias=run.loss[:, :2]),
        "snapshots[4]['bias'] must be",
    ),
    ("snapshot, gone", lambda run: run.snapshots[4].pop("bias"), "snapshots[4] must have the entries"),
    ("snapshot, step", lambda run: run.snapshots.update({5: run.snapshots[4]}), "snapshots has step 5"),
    ("config, None", attribute("config", lambda config: None), "config must be a dict, not None"),
    ("grid", attribute("grid", lambda grid: tk.grid(seed=range(2))), "grid must be a Grid of 3 models"),
    (
        "data",
        attribute("data", lambda data: tk.SparseFeatures(4, 0.1)),
        "data has n_features = 4, the model has 5",
    ),
    (
        "data's models",
        attribute("data", lambda data: tk.SparseFeatures(5, torch.full((2, 1), 0.1))),
        "data has prob",
    ),
    (
        "model",
        attribute("model", lambda model: tk.TiedAutoencoder(5, 2, 2)),
        "data has probabilities for 3 models",
    ),
    (
        "model's class",
        attribute("model", lambda m: tk.Autoencoder(5, 2, 3)),
        "does not describe the run's model",
    ),
    ("topology", attribute("topology", lambda none: RIGL), "topology is there, but config has no 'topology'"),
]


@pytest.mark.parametrize(
    ("change", "text"), [row[1:] for row in CONFIG + ARRAYS], ids=[r[0] for r in CONFIG + ARRAYS]
)
def test_a_changed_run_is_not_resumed(change, text):
    run = fresh_run()
    model, kept = run.model, copy.deepcopy(run.model.state_dict())
    change(run)
    with pytest.raises((TypeError, ValueError), match=re.escape(text)) as caught:
        tk.fit(resume=run, progress=False)
    assert str(caught.value).startswith("resume: ")
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


SPARSE = [
    ("no seeds", gone("arrays", "topology_seed"), "arrays must have the entries"),
    (
        "connections",
        tensor("arrays", "init/connections", torch.Tensor.float),
        "must be a bool tensor of shape",
    ),
    ("no recipe", attribute("topology", lambda kept: None), "has neither topology nor topology_state"),
    ("not at work", attribute("topology", lambda kept: RIGL), "topology must be the recipe at work"),
    ("not in config", gone("config", "topology"), "config has no 'topology'"),
    ("explored", tensor("records", "explored", lambda t: t[..., None]), "records['explored'] must be"),
    ("snapshot", lambda run: run.snapshots[4].pop("connections"), "snapshots[4] must have the entries"),
]


@pytest.mark.parametrize(("change", "text"), [row[1:] for row in SPARSE], ids=[row[0] for row in SPARSE])
def test_a_changed_sparse_run_is_not_resumed(change, text):
    run = sparse_run()
    change(run)
    with pytest.raises((TypeError, ValueError), match=re.escape(text)):
        tk.fit(resume=run, progress=False)


@pytest.mark.parametrize("make", [fresh_run, sparse_run])
def test_a_run_as_it_was_made_passes_and_so_does_its_copy(make):
    whole, run = make(), make()
    assert tk.fit(resume=copy.deepcopy(whole), progress=False).complete
    assert tk.fit(resume=run, progress=False) is run
    assert torch.equal(tk.fit(resume=whole, progress=False).loss, run.loss)


STORED = [
    row
    for row in CONFIG
    if row[0] in ("steps, more", "record_every 0", "batch -1", "target", "unknown entry")
]


@pytest.mark.parametrize(("change", "text"), [row[1:] for row in STORED], ids=[row[0] for row in STORED])
def test_settings_that_a_store_holds_wrongly_are_found_when_it_is_read(change, text, tmp_path):
    run = fresh_run()
    run.save(tmp_path / "run")
    change(run)
    _write_config(tmp_path / "run", run.config)
    with pytest.raises(tk.StoreError, match="damaged"):
        tk.Run.load(tmp_path / "run")


def _write_config(folder: Any, config: dict[str, Any]) -> None:
    """The store as it would be had its settings been written like this."""
    path = folder / "zarr.json"
    whole = json.loads(path.read_text())
    whole["attributes"]["config"] = config
    path.write_text(json.dumps(whole))


def test_the_optimizer_is_the_runs_as_its_docstring_says(tmp_path):
    given = tk.Adam(lr=[1e-3, 1e-2, 1e-1], betas=(0.5, 0.9))
    run = fresh_run(optimizer=given)
    assert run.optimizer is given
    assert fresh_run().optimizer == tk.AdamW()
    run.save(tmp_path / "run")
    assert tk.Run.load(tmp_path / "run").optimizer == given
    assert run.rerun(1).optimizer == tk.Adam(lr=[1e-2], betas=(0.5, 0.9), weight_decay=[0.0])


def test_snapshots_may_be_a_tensor_or_an_array():
    for given in (torch.tensor([4, 0, 9]), np.array([9, 4, 0]), range(0, 10, 3)):
        run = fresh_run(snapshots=given)
        assert run.config["snapshots"] == sorted(int(t) for t in given)
