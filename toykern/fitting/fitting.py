"""The resident trainer: a whole run inside a few native calls, for one model or a million."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from toykern.arguments.broadcast import Values
from toykern.arguments.errors import check_function, check_int, check_positive_int
from toykern.arguments.grids import Grid
from toykern.data.dataset import Dataset
from toykern.data.sources import Source
from toykern.fitting.longer import check_longer, make_longer
from toykern.fitting.resume import check_resume
from toykern.network.losses import Objective
from toykern.nn.kinds import AnyModel
from toykern.results.run import Run
from toykern.results.run_checks import check_run
from toykern.sparse.recipe import Recipe
from toykern.training.beginning import begin_told
from toykern.training.loop import train
from toykern.training.optim import AdamW, Optimizer
from toykern.training.progress import BarMaker
from toykern.training.schedule import Schedule
from toykern.training.settings import Settings

Callback = Callable[[Run], bool | None]


def fit(
    model: AnyModel | None = None,
    data: Source | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    optimizer: Optimizer | None = None,
    importance: Values = 1.0,
    seed: Values | None = None,
    target: str = "identity",
    schedule: Schedule = "constant",
    loss_reduction: str = "mean",
    record_every: int | None = None,
    record: Sequence[str] = ("loss",),
    snapshots: Iterable[int] = (),
    resume: Run | None = None,
    stop_at: int | None = None,
    grid: Grid | None = None,
    progress: bool | None | BarMaker = None,
    topology: Recipe | None = None,
    loss: str = Objective.loss,
    l1: Values = 0.0,
    test: Dataset | None = None,
    callback: Callback | None = None,
) -> Run:
    """Train every model of a stack, in place, each on its own stream of fresh batches, or on a dataset.

    Drawing, forward, backward and optimiser run inside native calls that release the interpreter's lock. A
    model's bits depend on itself alone: not on its neighbours in the stack, the number of threads
    (`torch.set_num_threads`), or interruptions; only on the version and the instruction-set level.

    On a CUDA device our kernels train tied, untied and sparse autoencoders with `SGD`, `Adam` or `AdamW` on
    streams of single features and of groups, with the same promise. Everything else (other networks, hidden
    biases, centring, top-k, datasets, projections, dependent features, l1, cross-entropies, other optimisers
    and what all of them may do beside a step) is trained there by batched products of torch's library, in
    float32: in many small launches to a step, with memory for a whole step of all models at once, and without
    a promise about bits; minibatches' rows, dependent features and SGLD's noise are drawn on the CPU.
    `run.provenance["trainer"]` says which way a run began, "kernels" or "batched products", and
    `run.provenance["trainer_because"]` what asked for the latter (docs/gpu_trainer.md).

    Args:
        model: a `TiedAutoencoder`, an `Autoencoder` or an `MLP` with float32 parameters, all on the CPU or
            all on one CUDA device, which is where it is trained. Everything else that the run keeps lies on
            the CPU. Or a `SparseTiedAutoencoder`, float32: its missing connections stay exactly 0. Parameters
            without `requires_grad` and their optimiser state stay as they are, for the whole run.
        data: a `SparseFeatures` with as many features; its probabilities are for one model or for all of
            them. Or a `Dataset` of as many features, shared or of as many models.
        steps: updates of each model, at most 2³² − 1. Training starts at step 0 with a fresh optimiser state.
        batch_size: samples per update; None is 1,024 drawn afresh, and of a `Dataset` all of a model's
            samples (full batch). A number less than that takes minibatches of the dataset without
            replacement, each epoch in an order of its own that follows from the model's seed
            (`Dataset.rows_of`); batches run on from one epoch into the next.
        optimizer: `AdamW()` by default; `SGD`, `Adam`, `AdamW`, `LAMB` or `SGLD`, with learning rate and
            weight decay per model if need be. All of them take factors of both by tensor
            (`lr_scale={"decoder": 0.1}, weight_decay_scale={"bias": 0.0}`), `clip_norm`, `bias_decay` and
            `unit_norm` (`toykern.training.Optimizer`).
        importance: of each output in the loss, ≥ 0: a number, `[n_outputs]`, `[models, 1]` or
            `[models, n_outputs]`.
        seed: of the data: int, or `[models]`; None means 0 … models−1.
        target: "identity", or "abs" to learn |x|. Made from the features without input noise; of a
            `Dataset` from its targets, if it has some.
        schedule: multiplies the learning rate: "constant", "linear", "cosine", "quarter_cosine",
            `WarmupCosine(warmup)`, `PeriodicCosine(period)` or a callable (step, steps) -> factor.
        loss_reduction: "mean" over batch and features, or "sum" over features and mean over the batch.
        record_every: steps to a record, e; max(1, steps // 100) by default. Record r is the mean of the batch
            losses of steps r·e … (r+1)·e − 1, each taken before its update.
        record: "loss", and any of these, measured after the last update of each record, NaN for models that
            diverged; training has the same bits whether they are recorded or not:

            * "features_per_dimension", "feature_dimensionality", "superposition": the geometry of the encoder
              (`toykern.metrics`).
            * "weight_norm", "encoder_norm", "decoder_norm", "bias_norm", "hidden_bias_norm": the Frobenius
              norm of a parameter; "norms" stands for those of all that the models have.
            * "test_loss": the loss that is trained, l1 included, on all of `test`, as `toykern.evaluate` has
              it.
            * "accuracy", "test_accuracy": the share of the samples of `data` (a `Dataset`), of `test`, whose
              class has the largest output; of equal ones the first counts. For targets that are classes:
              labels, or a single 1 among zeros in every sample. Computed in float64.
            * "dead_units": the share of hidden units that are 0 on every sample of `test`; for codes that can
              be, "relu" and "topk" (and "leaky_relu" of slope 0). Computed in float64.
            * "density", of sparse models, and "explored", with a `topology` that tracks it: the fraction of
              positions that have, ever had, a connection.
        snapshots: steps t at which to keep all parameters, after t updates (0 … steps); `log_spaced_steps`
            helps.
        resume: a `Run` that was cut short (by `stop_at`, Ctrl-C, or loaded from a store): go on where it
            stopped, with the same bits as if it never had. Its tensors are continued in place. Everything
            else comes from it; what is given nevertheless must agree. But for `steps`, which may be more than
            before where the schedule is constant: the run, finished or not, is then trained that long, with
            the bits of one that was so long from the start (`snapshots` may add some after the former end).
        stop_at: stop after this many updates in all (`run.steps_made`); `resume` goes on.
        grid: the `Grid` that the models come from; the results are then labelled by it.
        progress: True or None: a bar in a terminal or a notebook, and a line a minute elsewhere (in the log
            of a job), where True adds how it ended. False: nothing is said. (Or what makes a bar:
            `toykern.typing.BarMaker`.)
        topology: how the connections of a `SparseTiedAutoencoder` change: `SET()`, `RigL(end=…)`, `SRigL`,
            `SNFS`, `GSE`, `GradualMagnitude`, any `PruneAndGrow`, or `Static()`; None also leaves them as
            they are. Step t of the recipe is after t updates of the weights. Its seed None means `seed`. What
            it did is in `run.topology`. With a `LotteryTicket` the run's steps, data, schedule and records go
            back with the weights at the end of every round: what remains is the training of the last ticket,
            and `steps` is how long that is, counted from the initial weights. Each round takes time.
        loss: with outputs y, targets t and importance I, "squared_error", Σ_j I_j (t_j − y_j)²;
            "cross_entropy", Σ_j I_j t_j (log Σ_i e^{y_i} − y_j), a mean over the batch; or
            "batch_cross_entropy", with one softmax over all outputs of the batch and one over all its targets
            (see `MLP.loss`).
        l1: a number or `[models]`, ≥ 0: the weight of Σ_k |h_k|, a mean over the batch, which the recorded
            loss includes. For dense models.
        test: a second `Dataset`, shared or of as many models, that nothing is trained on; `record` says what
            is looked at.
        callback: called with the run after every record, with all that is in it up to date: after the
            steps e, 2e, … and the last (not after a step that a `LotteryTicket` takes back). It may look,
            evaluate and save, and must leave the run as it is; then no bit of the training depends on it.
            If it returns True, the run ends there as with `stop_at`, and `resume` goes on; else it must
            return False or None. What it raises comes out of `fit`, and the run that it was given can be
            resumed.

    Returns:
        A `Run`. After Ctrl-C, what has been trained so far (`run.interrupted`); a second Ctrl-C raises.

    Raises:
        ValueError, TypeError: an argument that does not fit, by name; nothing has been trained then.
        RuntimeError: the model's device has no kernels here (the message says why), or this is a forked
            child of a process that used several threads.
        MemoryError: the kernels' memory cannot be had, or what the run keeps would not fit into what is free;
            on a CUDA device it says how many models would fit.

    Example:
        >>> import toykern as tk
        >>> model = tk.TiedAutoencoder(n_features=5, n_hidden=2, n_models=8)
        >>> data = tk.SparseFeatures(5, 0.05)
        >>> run = tk.fit(model, data, steps=50, batch_size=64, optimizer=tk.Adam(lr=1e-2))
        >>> run.loss.shape
        torch.Size([8, 50])
    """
    if callback is not None:
        check_function("callback", callback, ("run",))
    if resume is not None:
        given = {
            "model": model, "data": data, "optimizer": optimizer, "seed": seed,
            "record_every": record_every, "grid": grid, "topology": topology, "test": test,
        }  # fmt: skip
        defaults: dict[str, tuple[Any, Any]] = {
            "batch_size": (batch_size, None), "target": (target, "identity"),
            "schedule": (schedule, "constant"), "loss_reduction": (loss_reduction, "mean"),
            "loss": (loss, Objective.loss),
        }  # fmt: skip
        given |= {name: value for name, (value, default) in defaults.items() if value != default}
        check_run(resume, "resume")
        length = check_longer(resume, resume.config["steps"] if steps is None else steps)
        kept = check_resume(resume, given, importance, record, snapshots, length, l1)
        run, told = resume, None
    else:
        if model is None or data is None or steps is None:
            raise TypeError("fit needs model, data and steps (or resume)")
        settings = Settings(
            data=data,
            steps=steps,
            batch_size=batch_size,
            optimizer=AdamW() if optimizer is None else optimizer,
            importance=importance,
            seed=seed,
            target=target,
            schedule=schedule,
            loss_reduction=loss_reduction,
            record_every=record_every,
            record=record,
            snapshots=snapshots,
            grid=grid,
            topology=topology,
            loss=loss,
            l1=l1,
            test=test,
        )
        run, told = begin_told(Run, model, settings)
        length, kept = int(run.config["steps"]), run.config["snapshots"]
    total = run.steps_to_make + length - int(run.config["steps"])
    stop = total if stop_at is None else check_int("stop_at", stop_at, minimum=run.steps_made, maximum=total)
    if length != run.config["steps"]:
        make_longer(run, length, kept)
    train(run, stop, progress, callback, told)
    return run


def log_spaced_steps(steps: int, count: int = 20) -> list[int]:
    """About `count` steps from 1 to `steps`, evenly spaced in the logarithm, for `fit(snapshots=…)`.

    >>> log_spaced_steps(1000, 4)
    [1, 10, 100, 1000]
    """
    steps = check_positive_int("steps", steps)
    count = check_int("count", count, minimum=2, maximum=10**6)
    return sorted({round(t) for t in np.geomspace(1, steps, count)})
