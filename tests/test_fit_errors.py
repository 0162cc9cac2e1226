"""Bad input: errors name the argument, what was given and what is allowed; nothing trained, no crash."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest
import torch

import toykern as tk


def model(n_models: int = 3, **options: Any) -> tk.TiedAutoencoder:
    return tk.TiedAutoencoder(5, 2, n_models, **options)


def data(probability: Any = 0.1, **options: Any) -> tk.SparseFeatures:
    return tk.SparseFeatures(5, probability, **options)


GOOD = {"steps": 4, "batch_size": 8, "progress": False}
NAN, INF = math.nan, math.inf

# argument -> (what is given, the error, what its message holds beside the argument's name)
BAD = [
    ("steps", 0, ValueError, "from 1 to 4294967295, not 0"),
    ("steps", -3, ValueError, "not -3"),
    ("steps", 2**32, ValueError, "not 4294967296"),
    ("steps", 10.0, TypeError, "an integer, not 10.0"),
    ("steps", True, TypeError, "not True"),
    ("steps", None, TypeError, "fit needs model, data and steps"),
    ("batch_size", 0, ValueError, "not 0"),
    ("batch_size", -1, ValueError, "not -1"),
    ("batch_size", 2**31, ValueError, "from 1 to 2147483647"),
    ("batch_size", "8", TypeError, "not '8'"),
    ("optimizer", "adam", TypeError, "SGD, Adam, AdamW, LAMB or SGLD, not 'adam'"),
    ("optimizer", tk.Adam, TypeError, "SGD, Adam, AdamW, LAMB or SGLD"),
    ("optimizer", torch.optim.SGD([torch.zeros(1)]), TypeError, "SGD, Adam, AdamW, LAMB or SGLD"),
    ("lr", tk.Adam(lr=[0.1, 0.2]), ValueError, "each of the 3 models"),
    ("weight_decay", tk.AdamW(weight_decay=[0.1] * 4), ValueError, "each of the 3 models"),
    ("importance", -1.0, ValueError, "at least 0"),
    ("importance", [1, 1, NAN, 1, 1], ValueError, "nan at index [0, 2]"),
    ("importance", INF, ValueError, "finite"),
    ("importance", 1e39, ValueError, "finite"),
    ("importance", [1.0, 2.0], ValueError, "[3, 5]"),
    ("importance", torch.ones(2, 5), ValueError, "float32 tensor of shape [2, 5]"),
    ("importance", torch.ones(3, 5, 1), ValueError, "[3, 5, 1]"),
    ("importance", "high", TypeError, "'high'"),
    ("importance", None, TypeError, "None"),
    ("importance", torch.ones(5, dtype=torch.complex64), TypeError, "real numbers"),
    ("seed", -1, ValueError, "not -1"),
    ("seed", [0, 1], ValueError, "each of the 3 models"),
    ("seed", [0, 1, -2], ValueError, "-2 at index 2"),
    ("seed", [0.0, 1.0, 2.0], TypeError, "integers"),
    ("seed", 2**63, ValueError, "9223372036854775808"),
    ("seed", "x", TypeError, "'x'"),
    ("target", "square", ValueError, "'identity', 'abs', 'embedding', not 'square'"),
    ("target", torch.ones(5), TypeError, "one of"),
    ("schedule", "exponential", ValueError, "'quarter_cosine'"),
    ("schedule", 0.5, TypeError, "0.5"),
    ("schedule", lambda step, steps: -1.0, ValueError, "at least 0, not -1.0 (at step 0)"),
    ("schedule", lambda step, steps: NAN, ValueError, "nan (at step 0)"),
    ("schedule", lambda step, steps: "fast", TypeError, "'fast'"),
    ("warmup", tk.WarmupCosine(9), ValueError, "at most the number of steps (4), not 9"),
    ("loss_reduction", "none", ValueError, "'mean', 'sum', not 'none'"),
    ("record_every", 0, ValueError, "not 0"),
    ("record_every", 1.5, TypeError, "1.5"),
    ("record", ["losses"], ValueError, "'loss', 'features_per_dimension'"),
    ("record", "loss", TypeError, "a sequence of names"),
    ("record", None, TypeError, "None"),
    ("snapshots", [5], ValueError, "from 0 to 4, not 5"),
    ("snapshots", [-1], ValueError, "not -1"),
    ("snapshots", [1.0], TypeError, "1.0"),
    ("snapshots", 3, TypeError, "a sequence of steps"),
    ("stop_at", 5, ValueError, "from 0 to 4, not 5"),
    ("stop_at", -1, ValueError, "not -1"),
    ("grid", tk.grid(seed=range(2)), ValueError, "3 models"),
    ("grid", 3, ValueError, "3 models"),
    ("resume", "run.zarr", TypeError, "must be a Run, not 'run.zarr'"),
    ("data", 0.1, TypeError, "SparseFeatures or a Dataset, not 0.1"),
    ("data", torch.rand(100, 5), TypeError, "make a Dataset of it"),
    ("data", tk.SparseFeatures(4, 0.1), ValueError, "n_features = 4, the model has 5"),
    ("data", tk.SparseFeatures(5, torch.full((4, 1), 0.1)), ValueError, "4 models, the model stacks 3"),
    ("data", None, TypeError, "fit needs model, data and steps"),
    ("model", None, TypeError, "fit needs model, data and steps"),
    ("model", torch.nn.Linear(5, 2), TypeError, "an Autoencoder, an MLP or a SparseTiedAutoencoder"),
]


def _label(value: object) -> str:
    """Of a case, the same in every process: neither an address nor numbers that were drawn."""
    plain = value.__name__ if hasattr(value, "__name__") else type(value).__name__
    return plain if callable(value) or isinstance(value, torch.Tensor) else str(value)[:30]


@pytest.mark.parametrize(("name", "value", "error", "text"), BAD, ids=_label)
def test_fit_names_the_argument_and_trains_nothing(name, value, error, text):
    stack = model()
    before = {key: tensor.clone() for key, tensor in stack.state_dict().items()}
    argument = "optimizer" if name in ("lr", "weight_decay") else "schedule" if name == "warmup" else name
    options = {"model": stack, "data": data(), **GOOD, argument: value}
    with pytest.raises(error, match=re.escape(text)) as caught:
        tk.fit(**options)
    assert name in str(caught.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in stack.state_dict().items())


EVALUATE = [row for row in BAD if row[0] in ("importance", "seed", "target", "loss_reduction")]
EVALUATE += [row for row in BAD if row[0] in ("data", "model") and row[1] is not None]
EVALUATE += [
    ("samples", 0, ValueError, "from 1 to 17592186040320, not 0"),
    ("samples", 1e4, TypeError, "10000.0"),
    ("data", None, TypeError, "SparseFeatures or a Dataset, not None"),
]


@pytest.mark.parametrize(("name", "value", "error", "text"), EVALUATE, ids=_label)
def test_evaluate_names_the_argument(name, value, error, text):
    with pytest.raises(error, match=re.escape(text)) as caught:
        tk.evaluate(**{"model": model(), "data": data(), "samples": 10, name: value})
    assert name in str(caught.value)


FEATURES = [
    ("n_features", {"n_features": 0}, ValueError, "not 0"),
    ("n_features", {"n_features": -2}, ValueError, "not -2"),
    ("n_features", {"n_features": 2**24 + 1}, ValueError, "to 16777216"),
    ("n_features", {"n_features": 5.0}, TypeError, "5.0"),
    ("probability", {"probability": -0.1}, ValueError, "[0, 1], not -0.1 (model 0, feature 0)"),
    ("probability", {"probability": 1.0000001}, ValueError, "in [0, 1], not 1.0000001"),
    ("probability", {"probability": NAN}, ValueError, "not nan"),
    ("probability", {"probability": [0.1, INF, 0, 0, 0]}, ValueError, "inf (model 0, feature 1)"),
    ("probability", {"probability": [0.1] * 4}, ValueError, "[models, 5]"),
    ("probability", {"probability": torch.zeros(0, 5)}, ValueError, "shape [0, 5]"),
    ("probability", {"probability": torch.zeros(2, 2, 5)}, ValueError, "[2, 2, 5]"),
    ("probability", {"probability": "rare"}, TypeError, "'rare'"),
    ("probability", {"probability": None}, TypeError, "None"),
    ("probability", {"probability": True}, TypeError, "True"),
    ("magnitude", {"magnitude": "normal"}, ValueError, "'half_normal'"),
    ("noise", {"noise": -1.0}, ValueError, "at least 0"),
    ("noise", {"noise": NAN}, ValueError, "nan"),
    ("noise", {"noise": "much"}, TypeError, "'much'"),
    ("groups", {"groups": tk.Correlated((0, 1))}, TypeError, "a sequence"),
    ("groups", {"groups": [(0, 1)]}, TypeError, "Correlated and Anticorrelated"),
    ("groups", {"groups": [tk.Correlated((3, 5))]}, ValueError, "beyond the last one, 4"),
    (
        "groups",
        {"groups": [tk.Correlated((0, 1)), tk.Anticorrelated((1, 2))]},
        ValueError,
        "feature 1 is in both",
    ),
    (
        "probability",
        {"probability": 0.6, "groups": [tk.Anticorrelated((0, 1))]},
        ValueError,
        "adds up to 1.2",
    ),
    (
        "probability",
        {"probability": [[0.1], [0.4]], "groups": [tk.Anticorrelated((0, 2, 4))]},
        ValueError,
        "1.2 (model 1)",
    ),
    (
        "probability",
        {"probability": [0.1, 0.2, 0, 0, 0], "groups": [tk.Correlated((0, 1))]},
        ValueError,
        "the same",
    ),
]


@pytest.mark.parametrize(("name", "given", "error", "text"), FEATURES, ids=lambda value: str(value)[:40])
def test_sparse_features_names_the_argument(name, given, error, text):
    with pytest.raises(error, match=re.escape(text)) as caught:
        tk.SparseFeatures(**({"n_features": 5, "probability": 0.1} | given))
    assert name in str(caught.value)


@pytest.mark.parametrize("kind", [tk.Correlated, tk.Anticorrelated])
@pytest.mark.parametrize(
    ("members", "error"),
    [
        ((), ValueError),
        ((1, 1), ValueError),
        ((-1, 2), ValueError),
        ((0.5,), TypeError),
        ("ab", TypeError),
        (3, TypeError),
    ],
    ids=str,
)
def test_groups_say_what_their_members_may_be(kind, members, error):
    with pytest.raises(error, match=kind.__name__):
        kind(members)


SAMPLE = [
    ("step", {"step": -1}, ValueError),
    ("step", {"step": 2**32}, ValueError),
    ("batch_size", {"batch_size": 0}, ValueError),
    ("seed", {"seed": [1, 2, 3], "n_models": 2}, ValueError),
    ("seed", {"seed": -5}, ValueError),
    ("n_models", {"n_models": 0}, ValueError),
    ("n_models", {"n_models": 3, "rows": 2}, ValueError),
    ("layout", {"layout": "csr"}, ValueError),
    ("purpose", {"purpose": "test"}, ValueError),
    ("clean", {"clean": 1}, TypeError),
]


@pytest.mark.parametrize(("name", "given", "error"), SAMPLE, ids=str)
def test_sample_names_the_argument(name, given, error):
    given = dict(given)
    features = data(torch.full((given.pop("rows", 1), 1), 0.1))
    with pytest.raises(error, match=name):
        features.sample(**({"step": 0, "batch_size": 4} | given))


def test_there_are_no_zero_models():
    with pytest.raises(ValueError, match="n_models must be an integer at least 1, not 0"):
        model(0)
    with pytest.raises(IndexError, match="none of 3 models"):
        model()[3:]


# Models the kernels cannot hold


def test_other_dtypes_and_devices():
    for other in (torch.float64, torch.bfloat16):
        with pytest.raises(
            TypeError, match=f"float32 parameters to fit; weight is a {str(other)[6:]} tensor"
        ):
            tk.fit(model().to(other), data(), **GOOD)
    with pytest.raises(TypeError, match="float32 parameters to evaluate"):
        tk.evaluate(model().double(), data())
    with pytest.raises(RuntimeError, match="on the device 'meta', where fit cannot run"):
        tk.fit(model().to("meta"), data(), **GOOD)


def test_parameters_replaced_by_others():
    """The kernels would read beyond a parameter that is too small."""
    for name, shape, wanted in (
        ("weight", (3, 2, 4), "[3, 2, 5]"),
        ("weight", (1, 2, 5), "[3, 2, 5]"),
        ("weight", (3, 5, 2), "[3, 2, 5]"),
        ("bias", (3,), "[3, 5]"),
    ):
        stack = model()
        setattr(stack, name, torch.nn.Parameter(torch.zeros(shape)))
        for call in (lambda m: tk.fit(m, data(), **GOOD), lambda m: tk.evaluate(m, data())):
            with pytest.raises(ValueError, match=re.escape(f"model.{name} must have the shape {wanted}")):
                call(stack)
    stack = model()
    stack.scale = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"must have the parameters \['bias', 'weight'\], not .*'scale'"):
        tk.fit(stack, data(), **GOOD)


def test_expanded_parameters_have_no_memory_of_their_own():
    stack = model()
    stack.bias = torch.nn.Parameter(torch.zeros(5).expand(3, 5))
    with pytest.raises(ValueError, match=r"model.bias is an expanded tensor; .*clone"):
        tk.fit(stack, data(), **GOOD)
    one = model(1)
    strided = torch.from_numpy(np.broadcast_to(np.zeros(5, np.float32), (1, 5)).copy())
    one.bias = torch.nn.Parameter(strided.as_strided((1, 5), (0, 1)))  # stride 0, but of one model
    assert tk.fit(one, data(), **GOOD).complete


# Layouts that work


def _trained(stack: tk.TiedAutoencoder, **options: Any) -> tk.Run:
    return tk.fit(stack, data(), steps=9, batch_size=32, optimizer=tk.SGD(lr=0.5, momentum=0.9), **options)


def test_a_view_of_every_second_model_trains_the_stack():
    base, expected = model(6), model(6)
    untouched = base.weight[1::2].detach().clone()
    _trained(expected[[0, 2, 4]], seed=[0, 2, 4], snapshots=(0, 9))
    whole = _trained(expected)
    run = _trained(base[::2], seed=[0, 2, 4], snapshots=(0, 9))
    assert torch.equal(base.weight[::2], expected.weight[::2])
    assert torch.equal(base.bias[::2], expected.bias[::2])
    assert torch.equal(base.weight[1::2], untouched)
    assert torch.equal(run.loss, whole.loss[::2])
    assert torch.equal(run.snapshots[9]["weight"], base.weight[::2])


@pytest.mark.parametrize("n", [2**24 + 1, 2**31, 2**62, 0, 5.0, "5"])
def test_one_sparse_refuses_before_it_lists_the_features(n):
    with pytest.raises((ValueError, TypeError), match="n_features must be an integer"):
        tk.SparseFeatures.one_sparse(n)


def test_transposed_and_offset_storage():
    expected = model()
    _trained(expected)
    transposed = model()
    with torch.no_grad():
        turned = transposed.weight.permute(2, 0, 1).contiguous().permute(1, 2, 0)
        room = torch.zeros(4 * 5 + 3)
        shifted = room[3:18].view(3, 5)
    assert not turned.is_contiguous()
    transposed.weight, transposed.bias = torch.nn.Parameter(turned), torch.nn.Parameter(shifted)
    run = _trained(transposed, stop_at=4)
    tk.fit(resume=run, progress=False)
    assert torch.equal(transposed.weight, expected.weight) and torch.equal(turned, expected.weight)
    assert torch.equal(room[3:18].view(3, 5), expected.bias)
    assert not room[:3].any() and not room[18:].any()


def test_inputs_of_any_layout():
    """Expanded, sliced, reversed, of other dtypes, from NumPy."""
    stack = model()
    importance = torch.tensor([2.0, 1.0]).expand(5, 2).T[:, :][1:]  # [1, 5] of stride 0
    assert 0 in importance.stride()
    rates = np.array([1e-1, 9.0, 1e-2, 9.0, 1e-3], dtype=np.float32)[::2]
    probability = np.full((5, 3), 0.2)[:, ::-1].T
    run = tk.fit(
        stack,
        tk.SparseFeatures(5, probability),
        **GOOD,
        importance=importance,
        optimizer=tk.AdamW(lr=rates),
        seed=np.array([5, 0, 6, 0, 7], dtype=np.int32)[::2],
    )
    plain = model()
    same = tk.fit(
        plain,
        tk.SparseFeatures(5, 0.2),
        **GOOD,
        importance=1.0,
        optimizer=tk.AdamW(lr=rates.tolist()),
        seed=[5, 6, 7],
    )
    assert torch.equal(run.loss, same.loss) and torch.equal(stack.weight, plain.weight)


# Resuming with something else


def test_what_is_given_beside_resume_must_agree():
    stack = model()
    features = data([[0.1], [0.2], [0.3]])
    settings = {
        "optimizer": tk.AdamW(lr=[1e-3, 1e-2, 1e-1]),
        "importance": [[1.0], [2.0], [3.0]],
        "seed": [4, 5, 6],
    }
    settings |= {"schedule": "cosine", "record_every": 2, "record": ("superposition",), "snapshots": [2]}
    run = tk.fit(stack, features, **GOOD, **settings, stop_at=2)
    weight = stack.weight.detach().clone()
    others = {
        "model": model(),
        "data": data(0.1),
        "steps": 5,
        "batch_size": 9,
        "optimizer": tk.AdamW(lr=[1e-3, 1e-2, 1e-2]),
        "importance": 2.0,
        "seed": 4,
        "target": "abs",
        "schedule": "linear",
        "loss_reduction": "sum",
        "record_every": 1,
        "record": ("features_per_dimension",),
        "snapshots": [3],
        "grid": tk.grid(seed=range(3)),
    }
    for name, value in others.items():
        with pytest.raises(ValueError, match=f"{name} (differs|must be)"):
            tk.fit(resume=run, progress=False, **{name: value})
    for other in (
        tk.Adam(lr=settings["optimizer"].lr, weight_decay=0.01),
        tk.AdamW(settings["optimizer"].lr, (0.8, 0.999)),
    ):
        with pytest.raises(ValueError, match="optimizer differs"):
            tk.fit(resume=run, optimizer=other)
    with pytest.raises(ValueError, match="stop_at must be an integer from 2 to 4, not 1"):
        tk.fit(resume=run, stop_at=1)
    assert torch.equal(stack.weight, weight) and run.step == 2
    same = tk.fit(stack, features, **(GOOD | settings), resume=run)
    assert same is run and run.complete


def test_a_schedule_that_fails_on_the_way_says_where():
    stack = model()

    def schedule(step, steps):
        return NAN if step == 5000 else 1.0

    with pytest.raises(ValueError, match=r"not nan \(at step 5000\)"):
        tk.fit(stack[::2], data(), 6000, 8, schedule=schedule, progress=False)
    assert stack.weight.isfinite().all()


# Forked children


def _python(code: str) -> subprocess.CompletedProcess:
    """A fresh interpreter, which must not hang."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=1800
    )


FORK = """
    import multiprocessing, sys, torch
    import toykern as tk

    def work(threads=2):
        torch.set_num_threads(threads)
        return tk.fit(tk.TiedAutoencoder(5, 2, 4), tk.SparseFeatures(5, 0.1), 5, 16, progress=False).loss

    def child(call, queue):
        try:
            queue.put(repr(call().isfinite().all().item()))
        except Exception as error:
            queue.put(f"{type(error).__name__}: {error}")

    def in_child(call, method="fork"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        process = context.Process(target=child, args=(call, queue))
        process.start()
        print(queue.get(timeout=900))
        process.join(900)
        print("exit", process.exitcode)
"""


@pytest.mark.slow
def test_a_forked_child_of_a_parent_that_used_threads_is_told_to_spawn():
    result = _python(
        FORK
        + """
    work()
    in_child(work)
    in_child(lambda: work(1))
    in_child(lambda: tk.evaluate(tk.TiedAutoencoder(5, 2), tk.SparseFeatures(5, 0.1), 10))
    in_child(lambda: tk.SparseFeatures(5, 0.1).sample(0, 10))
    print(work().isfinite().all().item())
    """
    )
    lines = result.stdout.splitlines()
    assert result.returncode == 0 and len(lines) == 9, result.stderr
    for answer, ended in zip(lines[0:8:2], lines[1:8:2], strict=True):
        assert answer.startswith("RuntimeError: ") and "'spawn'" in answer and "fork" in answer
        assert ended == "exit 0"
    assert lines[8] == "True"


@pytest.mark.slow
def test_a_forked_child_of_a_parent_that_used_none_works():
    result = _python(
        FORK
        + """
    work(1)
    in_child(lambda: work(1))
    in_child(work)
    """
    )
    assert result.stdout.splitlines() == ["True", "exit 0"] * 2, result.stderr


@pytest.mark.slow
def test_a_forked_child_of_a_parent_in_which_torch_used_threads_works():
    """PyTorch's pool is the kernels' too: they would wait for threads that are not there."""
    result = _python(
        FORK
        + """
    torch.set_num_threads(2)
    torch.rand(1_000_000).exp().sum()
    in_child(work)
    in_child(lambda: tk.evaluate(tk.TiedAutoencoder(5, 2, 4), tk.SparseFeatures(5, 0.1), 10))
    in_child(lambda: tk.SparseFeatures(5, 0.1).sample(0, 10, n_models=4))
    """
    )
    assert result.stdout.splitlines() == ["True", "exit 0"] * 3, result.stderr


@pytest.mark.slow
def test_a_forked_child_makes_sparse_batches_whatever_its_parent_did():
    """As the workers of a DataLoader do, which set one thread."""
    result = _python(
        FORK
        + """
    def batch():
        torch.set_num_threads(1)
        return tk.SparseBatch.from_dense(torch.ones(3000, 40)).value

    work()
    in_child(batch)
    print(len(batch()))
    """
    )
    assert result.stdout.splitlines() == ["True", "exit 0", "120000"], result.stderr
