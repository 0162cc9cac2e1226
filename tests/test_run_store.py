"""Runs: what they tell, choosing and rerunning models, and stores that are whole, exact or refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from toykern.arguments.grids import grid
from toykern.data.features import SparseFeatures
from toykern.fitting.fitting import fit
from toykern.nn import TiedAutoencoder
from toykern.results import placing
from toykern.results.run import Run
from toykern.results.store import StoreError, check_target
from toykern.results.store_format import sealed
from toykern.training.optim import AdamW

N, M, RECORDS = 3, 2, 4


def made_run(n_models: int = 12, with_grid: bool = True, seed: int = 0) -> Run:
    """A run, filled by hand with awkward bits: NaN payloads, −0, infinities, subnormals, large integers."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    model = TiedAutoencoder(N, M, n_models, seed=torch.arange(n_models) + 2**40 + seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(random(*parameter.shape))
        model.weight[0, 0, :2] = torch.tensor([-0.0, 1e-45])
        model.weight[1, 0, :2] = torch.tensor([float("inf"), -float("inf")])
    loss = random(n_models, RECORDS).abs()
    loss[2] = torch.tensor([0x7FC12345], dtype=torch.int32).view(torch.float32)
    probability = torch.full((n_models, N), 0.1, dtype=torch.float64) + torch.arange(n_models)[:, None] / 97
    data = SparseFeatures(N, probability)
    diverged_at = torch.full((n_models,), -1)
    diverged_at[3] = 9
    lr = torch.full((n_models,), 1 / 3, dtype=torch.float64)
    shapes = {"weight": (n_models, M, N), "bias": (n_models, N)}
    return Run(
        model=model,
        data=data,
        config={
            "steps": 10,
            "batch_size": 8,
            "record_every": 3,
            "optimizer": AdamW(lr=lr, weight_decay=torch.zeros(n_models)).config(),
            "schedule": {"name": "constant"},
            "target": "identity",
            "loss_reduction": "mean",
            "record": ["loss", "features_per_dimension"],
            "snapshots": [2, 5],
            "model": model.config(),
            "data": data.config(),
        },
        arrays={
            "seed": torch.arange(n_models) + 2**62,
            "importance": torch.ones(1, N),
            "lr": lr,
            "weight_decay": torch.zeros(n_models, dtype=torch.float64),
            "probability": probability,
            "init_seed": torch.arange(n_models) + 2**61 + 1,
            **{f"init/{name}": random(*shape) for name, shape in shapes.items()},
        },
        step=10,
        loss=loss,
        diverged_at=diverged_at,
        records={"features_per_dimension": random(n_models, RECORDS)},
        snapshots={t: {name: random(*shape) for name, shape in shapes.items()} for t in (2, 5)},
        optimizer_state={
            f"{name}/{moment}": random(*shape)
            for name, shape in shapes.items()
            for moment in ("exp_avg", "exp_avg_sq")
        },
        carry={"loss": random(n_models).double()},
        seconds=1.5,
        provenance={"version": "0.1.0", "threads": 2},
        grid=grid(importance=[0.1, 1.0, 10.0], density=[0.01, 1.0], seed=range(n_models // 6))
        if with_grid
        else None,
    )


def tensors(run: Run) -> dict[str, torch.Tensor]:
    """Every tensor of a run by a name."""
    found = {"loss": run.loss, "diverged_at": run.diverged_at, **run.model.state_dict()}
    found |= {"model.seed": run.model.seed, "model.init_std": run.model.init_std}
    for group in ("arrays", "records", "optimizer_state", "carry"):
        found |= {f"{group}/{name}": tensor for name, tensor in getattr(run, group).items()}
    for step, snapshot in run.snapshots.items():
        found |= {f"snapshot {step}/{name}": tensor for name, tensor in snapshot.items()}
    return found


def assert_same(run: Run, other: Run) -> None:
    ours, theirs = tensors(run), tensors(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and tensor.shape == theirs[name].shape, name
        bits = tensor.detach().contiguous().numpy().tobytes()
        assert bits == theirs[name].detach().contiguous().numpy().tobytes(), f"{name} has other bits"
    for name in ("config", "step", "seconds", "provenance", "interrupted", "grid"):
        assert getattr(run, name) == getattr(other, name), name
    assert run.model.config() == other.model.config()
    assert torch.equal(run.data.probability, other.data.probability)


def without_exchange(monkeypatch) -> None:
    """As on a file system that knows nothing but plain renaming."""

    def unsupported(*_):
        raise placing.Unsupported(22, "Invalid argument")

    monkeypatch.setattr(placing, "_rename", unsupported)


def names_in(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# Stores


@pytest.mark.parametrize("chunk_bytes", [8 << 20, 40], ids=["one chunk", "many chunks"])
def test_store_keeps_every_bit(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr("toykern.results.store._CHUNK_BYTES", chunk_bytes)
    run = made_run()
    run.save(tmp_path / "run.zarr")
    assert_same(run, Run.load(tmp_path / "run.zarr"))
    assert names_in(tmp_path) == ["run.zarr"]
    chunks = len(list((tmp_path / "run.zarr" / "loss" / "c").rglob("*/*")))
    assert chunks == (1 if chunk_bytes > 1000 else 6)


def test_store_without_grid_bias_records_or_snapshots(tmp_path):
    run = made_run(with_grid=False)
    run.model = TiedAutoencoder(N, M, 12, bias=False)
    run.config["model"] = run.model.config()
    run.records, run.snapshots, run.interrupted, run.step = {}, {}, True, 7
    run.diverged_at[3] = 6
    for group in (run.arrays, run.optimizer_state):
        for name in [name for name in group if "bias" in name]:
            del group[name]
    run.save(str(tmp_path / "run.zarr"))
    loaded = Run.load(str(tmp_path / "run.zarr"))
    assert_same(run, loaded)
    assert loaded.grid is None


def test_store_takes_expanded_and_sliced_tensors(tmp_path):
    run = made_run()
    run.arrays["lr"] = torch.tensor(0.5, dtype=torch.float64).expand(12)
    run.records["features_per_dimension"] = torch.arange(96.0).reshape(24, RECORDS)[::2]
    run.loss = torch.arange(48.0).reshape(RECORDS, 12).T
    run.save(tmp_path / "run.zarr")
    assert_same(run, Run.load(tmp_path / "run.zarr"))


def test_xarray_opens_a_store_by_itself(tmp_path):
    xarray = pytest.importorskip("xarray")
    run = made_run()
    run.save(tmp_path / "run.zarr")
    opened = xarray.open_zarr(tmp_path / "run.zarr", consolidated=False)
    assert opened.loss.dims == ("model", "record")
    assert opened.record.values.tolist() == [3, 6, 9, 10]
    assert opened.importance.values.tolist() == run.grid.importance.tolist()
    np.testing.assert_array_equal(opened.loss.values, run.loss.numpy())


def test_overwriting_replaces_a_toykern_store_only_when_asked(tmp_path):
    target = tmp_path / "run.zarr"
    first, second = made_run(seed=0), made_run(n_models=6, seed=1)
    first.save(target)
    with pytest.raises(StoreError, match=r"run\.zarr already holds a toykern store; overwrite=True"):
        second.save(target)
    assert_same(first, Run.load(target))
    second.save(target, overwrite=True)
    assert_same(second, Run.load(target))
    assert names_in(tmp_path) == ["run.zarr"]


def foreign_zarr(path):
    zarr = pytest.importorskip("zarr")
    zarr.create_group(store=str(path), attributes={"format": "someone else's"})


def plain_directory(path):
    path.mkdir()
    (path / "thesis.tex").write_text("precious")


FOREIGN = {
    "another zarr": (foreign_zarr, 'not a toykern run: its format attribute is "someone else\'s"'),
    "a directory": (plain_directory, "not a toykern store: it has no zarr.json"),
    "an empty directory": (lambda path: path.mkdir(), "not a toykern store: it has no zarr.json"),
    "a file": (lambda path: path.write_text("precious"), "it is a file, a store is a directory"),
    "garbled": (
        lambda path: (path.mkdir(), (path / "zarr.json").write_text("{nonsense")),
        "zarr.json is damaged",
    ),
    "a list": (lambda path: (path.mkdir(), (path / "zarr.json").write_text("[1]")), "zarr.json is damaged"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_things_are_refused_and_never_overwritten(tmp_path, kind):
    make, message = FOREIGN[kind]
    target = tmp_path / "target"
    make(target)
    before = [(path, path.read_bytes() if path.is_file() else b"") for path in tmp_path.rglob("*")]
    with pytest.raises(StoreError, match=message) as caught:
        Run.load(target)
    assert str(target) in str(caught.value)
    with pytest.raises(StoreError, match="is not a toykern store; it will not be overwritten"):
        made_run().save(target, overwrite=True)
    assert [(path, path.read_bytes() if path.is_file() else b"") for path in tmp_path.rglob("*")] == before


def test_missing_store(tmp_path):
    with pytest.raises(StoreError, match=r"nowhere\.zarr does not exist"):
        Run.load(tmp_path / "nowhere.zarr")


def test_unwritable_targets(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(StoreError, match="there is no directory"):
        made_run().save(tmp_path / "missing" / "run.zarr")
    with pytest.raises(StoreError, match="there is no directory"):
        made_run().save(tmp_path / "file" / "run.zarr")
    assert names_in(tmp_path) == ["file"]
    assert check_target(tmp_path / "run.zarr").name == "run.zarr"
    assert names_in(tmp_path) == ["file"]


def test_a_directory_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(StoreError, match=r"cannot write .*run\.zarr: Permission denied"):
        check_target(tmp_path / "run.zarr")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def edit(key, value, seal=False):
    """Another value in a zarr.json; `seal`: with a digest that agrees, so that what it says is looked at."""

    def apply(path):
        metadata = json.loads(path.read_text())
        if key in ("version", "manifest", "config", "step"):
            metadata["attributes"][key] = value
            if seal:
                del metadata["attributes"]["digest"]
                metadata["attributes"] = sealed(metadata["attributes"])
        else:
            metadata[key] = value
        path.write_text(json.dumps(metadata))

    return apply


DAMAGE = {
    "truncated chunk": ("loss/c/0/0", truncate, "array loss cannot be read"),
    "flipped bit": ("optimizer_state/weight/exp_avg/c/0/0/0", flip, "array optimizer_state/weight/exp_avg"),
    "missing chunk": ("model/weight/c/0/0/0", lambda path: path.unlink(), "weight has 0 of its 1 chunks"),
    "missing array": ("carry/loss", shutil.rmtree, "array carry/loss is missing"),
    "missing group": ("snapshots", shutil.rmtree, "array snapshots/2/weight is missing"),
    "garbled array": ("records/features_per_dimension/zarr.json", truncate, "cannot be read"),
    "other shape": ("loss/zarr.json", edit("shape", [12, 5]), r"should be float32 \[12, 4\], but is"),
    "other fill value": ("loss/zarr.json", edit("fill_value", 1.0), "array loss is described by another"),
    "other dtype": ("loss/zarr.json", edit("data_type", "int32"), "array loss"),
    "newer version": ("zarr.json", edit("version", 99), "has store version 99"),
    "other step": ("zarr.json", edit("step", 9), "attributes in zarr.json are not those written"),
    "no settings": ("zarr.json", edit("config", {}), "attributes in zarr.json are not those written"),
    "as version 1": ("zarr.json", edit("version", 1), "attributes in zarr.json are not those written"),
    "no manifest": ("zarr.json", edit("manifest", None, seal=True), "no manifest"),
    "short manifest": ("zarr.json", edit("manifest", [], seal=True), "settings do not describe a run"),
    "sealed, no settings": ("zarr.json", edit("config", {}, seal=True), "settings do not describe a run"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_named(tmp_path, kind):
    where, harm, message = DAMAGE[kind]
    target = tmp_path / "run.zarr"
    made_run().save(target)
    harm(target / where)
    with pytest.raises(StoreError, match=message) as caught:
        Run.load(target)
    assert str(target) in str(caught.value)
    made_run(seed=1).save(target, overwrite=True)  # it is still ours to replace
    assert_same(made_run(seed=1), Run.load(target))


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("old", [True, False], ids=["over an old store", "new"])
def test_a_failure_while_writing_leaves_everything_as_it_was(tmp_path, monkeypatch, failure, old):
    from toykern.results import store

    target = tmp_path / "run.zarr"
    if old:
        made_run(seed=1).save(target)
    written, write = [], store._write_array

    def fail_later(zarr, root, name, *rest):
        if len(written) == 4:
            raise failure
        written.append(name)
        write(zarr, root, name, *rest)

    monkeypatch.setattr(store, "_write_array", fail_later)
    with pytest.raises((StoreError, KeyboardInterrupt)):
        made_run().save(target, overwrite=True)
    assert len(written) == 4
    assert names_in(tmp_path) == (["run.zarr"] if old else [])
    if old:
        assert_same(made_run(seed=1), Run.load(target))


def test_a_failing_rename_puts_the_old_store_back(tmp_path, monkeypatch):
    target = tmp_path / "run.zarr"
    made_run(seed=1).save(target)
    rename = placing.rename_new

    def refuse(source, destination):
        if ".new-" in str(source):
            raise OSError(5, "Input/output error")
        rename(source, destination)

    without_exchange(monkeypatch)
    monkeypatch.setattr(placing, "rename_new", refuse)
    with pytest.raises(StoreError, match="Input/output error"):
        made_run().save(target, overwrite=True)
    assert names_in(tmp_path) == ["run.zarr"]
    assert_same(made_run(seed=1), Run.load(target))


def test_saving_through_a_link_replaces_the_store_not_the_link(tmp_path):
    made_run().save(tmp_path / "real.zarr")
    (tmp_path / "link").symlink_to(tmp_path / "real.zarr")
    made_run(seed=1).save(tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert_same(made_run(seed=1), Run.load(tmp_path / "real.zarr"))


# What a run tells


def test_record_steps_and_final_loss_follow_the_steps_done():
    run = made_run()
    assert run.record_steps.tolist() == [3, 6, 9, 10]
    assert run.complete and run.final_loss is not None
    assert torch.equal(run.final_loss[4:], run.loss[4:, 3])
    run.step = 8
    assert not run.complete
    assert torch.equal(run.final_loss[4:], run.loss[4:, 1])
    run.step = 2
    assert run.final_loss.isnan().all()
    assert run.model_steps_per_second == pytest.approx(12 * 2 / 1.5)
    run.seconds = 0.0
    assert np.isnan(run.model_steps_per_second)


def test_repr_tells_a_person_what_they_hold():
    run = made_run()
    run.loss[:] = torch.arange(12.0)[:, None]
    text = repr(run)
    assert "12 models: TiedAutoencoder(n_features=3, n_hidden=2)" in text
    assert "3 importance × 2 density × 2 seed" in text
    assert "10 of 10, batch 8" in text
    assert "median 5.5, 5% 0.55, 95% 10.45" in text
    assert "diverged    1" in text
    assert "80 model-steps/s" in text
    assert "features_per_dimension; snapshots at 2, 5" in text
    run.step, run.interrupted = 6, True
    assert "6 of 10, batch 8  (interrupted, can be resumed)" in repr(run)


def test_to_xarray_unstacks_the_grid():
    run = made_run()
    dataset = run.to_xarray()
    assert dict(dataset.sizes) == {
        "importance": 3,
        "density": 2,
        "seed": 2,
        "record": 4,
        "hidden": 2,
        "feature": 3,
        "snapshot": 2,
    }
    model = int(run.grid.index(importance=10.0, density=0.01, seed=1))
    point = dataset.sel(importance=10.0, density=0.01, seed=1)
    np.testing.assert_array_equal(point.loss.values, run.loss[model].numpy())
    np.testing.assert_array_equal(point.weight.values, run.model.weight[model].detach().numpy())
    np.testing.assert_array_equal(
        point.bias_snapshots.sel(snapshot=5).values, run.snapshots[5]["bias"][model].numpy()
    )
    assert dataset.record.values.tolist() == [3, 6, 9, 10]
    assert dataset.weight_snapshots.dims[-3:] == ("snapshot", "hidden", "feature")
    assert dataset.features_per_dimension.dims == ("importance", "density", "seed", "record")


def test_to_xarray_copies_nothing_and_needs_no_grid():
    run = made_run(with_grid=False)
    dataset = run.to_xarray()
    assert dataset.loss.dims == ("model", "record")
    assert dataset.seed.values.tolist() == run.arrays["seed"].tolist()
    assert np.shares_memory(dataset.loss.values, run.loss.numpy())
    gridded = made_run()
    assert np.shares_memory(gridded.to_xarray().weight.values, gridded.model.weight.detach().numpy())


def test_to_xarray_refuses_an_axis_with_the_name_of_a_result():
    run = made_run()
    run.grid = grid(weight=[1, 2, 3], density=[0.01, 1.0], seed=range(2))
    with pytest.raises(ValueError, match="axis 'weight' has the name of a result"):
        run.to_xarray()


# Choosing


def ranked_run() -> Run:
    """Losses 0 … 11 in a shuffled order, nothing diverged."""
    run = made_run()
    run.diverged_at[:] = -1
    run.loss[:] = torch.tensor([3.0, 9, 5, 1, 0, 7, 2, 8, 11, 6, 4, 10])[:, None]
    return run


def test_best_chooses_along_an_axis():
    run = ranked_run()
    assert run.best().tolist() == [[0, 3], [4, 6], [9, 10]]
    assert run.best(over="importance").tolist() == [[4, 9], [6, 3]]
    assert run.best(over=("importance", "seed")).tolist() == [4, 3]
    assert run.best(over=("importance", "density", "seed")).shape == ()
    assert int(run.best(over=None)) == 4
    assert run.best().dtype == np.int64


def test_best_by_other_values():
    run = ranked_run()
    assert int(run.best(over=None, by=-run.final_loss)) == 8
    assert run.best(by=np.zeros(12)).tolist() == [[0, 2], [4, 6], [8, 10]]
    by_record = run.records["features_per_dimension"][:, -1].argmin()
    assert int(run.best(over=None, by="features_per_dimension")) == int(by_record)
    assert torch.equal(run.loss[:, 0], torch.tensor([3.0, 9, 5, 1, 0, 7, 2, 8, 11, 6, 4, 10]))


def test_best_never_chooses_a_diverged_or_nan_model():
    run = ranked_run()
    run.diverged_at[0] = 5
    run.loss[3] = torch.nan
    run.loss[4] = -torch.inf
    run.diverged_at[8:10] = 7
    assert run.best().tolist() == [[1, 2], [5, 6], [-1, 10]]
    run.diverged_at[:] = 0
    assert int(run.best(over=None)) == -1


def test_best_refuses():
    run = ranked_run()
    with pytest.raises(ValueError, match="over='sead' is no axis of the grid; its axes are importance"):
        run.best(over="sead")
    with pytest.raises(ValueError, match="by='los' was not recorded; recorded are loss, features_per_dim"):
        run.best(by="los")
    with pytest.raises(ValueError, match=r"shape \(12,\), got \(11,\)"):
        run.best(by=torch.zeros(11))
    with pytest.raises(ValueError, match="over='seed' needs a grid"):
        made_run(with_grid=False).best()
    assert made_run(with_grid=False).best(over=None).shape == ()


# Doing it again


def trained(stop_at: int | None = None, **options) -> Run:
    points = grid(importance=[0.5, 2.0], seed=range(2))
    importance = torch.ones(4, 3)
    importance[:, -1] = points.importance
    settings = {"steps": 23, "batch_size": 16, "record_every": 5, "snapshots": (2, 20), "schedule": "linear"}
    return fit(
        TiedAutoencoder(3, 2, 4, seed=[5, 6, 7, 8]),
        SparseFeatures(3, torch.tensor([[0.5], [0.1], [0.9], [0.3]])),
        optimizer=AdamW(lr=torch.tensor([1e-3, 1e-2, 3e-3, 1e-2]), weight_decay=[0.0, 0.1, 0.01, 0.01]),
        importance=importance,
        seed=[11, 12, 13, 14],
        grid=points,
        stop_at=stop_at,
        progress=False,
        **(settings | options),
    )


@pytest.mark.parametrize("loaded", [False, True], ids=["in memory", "from a store"])
@pytest.mark.parametrize("i", [0, 3, -2])
def test_rerun_gives_the_same_bits(tmp_path, loaded, i):
    run = trained()
    if loaded:
        run.save(tmp_path / "run.zarr")
        run = Run.load(tmp_path / "run.zarr")
    again = run.rerun(i)
    assert again.n_models == 1
    assert torch.equal(again.model.weight[0], run.model.weight[i])
    assert torch.equal(again.model.bias[0], run.model.bias[i])
    assert torch.equal(again.loss[0], run.loss[i])
    assert torch.equal(again.snapshots[20]["weight"][0], run.snapshots[20]["weight"][i])
    assert not torch.equal(again.model.weight[0], run.model.weight[1])


def test_rerun_of_a_run_cut_short_stops_at_the_same_step():
    run = trained(stop_at=12)
    again = run.rerun(1)
    assert again.step == 12
    assert torch.equal(again.model.weight[0], run.model.weight[1])


def test_rerun_starts_from_weights_that_were_not_drawn():
    model = TiedAutoencoder(3, 2, 2)
    with torch.no_grad():
        model.weight.mul_(0.5)
    run = fit(model, SparseFeatures(3, 0.3), steps=5, batch_size=16, progress=False)
    assert torch.equal(run.rerun(1).model.weight[0], run.model.weight[1])


def test_rerun_refuses_a_model_that_is_not_there():
    run = trained()
    for i in (4, -5):
        with pytest.raises(IndexError, match=f"i must be the number of one of 4 models, not {i}"):
            run.rerun(i)


def test_a_callable_schedule_is_rerun_in_memory_and_asked_for_after_loading(tmp_path):
    run = trained(schedule=lambda step, steps: 1 / (1 + step))
    assert torch.equal(run.rerun(1).model.weight[0], run.model.weight[1])
    run.save(tmp_path / "run.zarr")
    with pytest.raises(ValueError, match="schedule was the callable .*pass it again"):
        Run.load(tmp_path / "run.zarr").rerun(1)


def test_a_stored_run_resumes_with_the_same_bits(tmp_path):
    whole = trained()
    trained(stop_at=12).save(tmp_path / "run.zarr")
    run = Run.load(tmp_path / "run.zarr")
    assert (run.step, run.complete) == (12, False)
    assert fit(resume=run, progress=False) is run
    assert (run.step, run.complete) == (23, True)
    for name, tensor in tensors(whole).items():
        assert torch.equal(tensor, tensors(run)[name]), name
    assert run.grid == whole.grid
