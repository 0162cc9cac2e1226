"""The CUDA layer's source and driver on the host against the float64 oracle, and its plan of large models."""

from __future__ import annotations

import pytest
import torch
from cases import LAYER_CASES, LayerCase
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import largest_error, layer_batch, layer_of, layer_reference
from layer_kit import LARGE_TOLERANCE, TOLERANCE, case_errors, device_layer

import toykern as tk
from toykern import _native
from toykern.network.activations import ACTIVATIONS
from toykern.ops import tied_autoencoder_cuda as cuda
from toykern.ops import tied_autoencoder_large as large_models
from toykern.ops import tied_autoencoder_plan
from toykern.ops.tied_autoencoder_plan import Plan, plan

each_case = pytest.mark.parametrize("case", LAYER_CASES, ids=lambda case: case.name)
each_way = pytest.mark.parametrize("large", [False, True], ids=["by shape", "large"])


def assert_is_the_reference(case, dtype, large=False, **options):
    number = ACTIVATIONS[case.network.get("hidden_activation", "none")].number
    shape = (case.n_features, case.n_hidden, case.tied, True, True, number)
    large = large or not _native.layer_is_stacked(*shape)
    errors = case_errors(case, dtype, **options)
    # what models share is rounded in each of them before it is summed
    rounded = 2 if case.shared and dtype == torch.bfloat16 else 1
    assert max(errors.values()) <= rounded * (LARGE_TOLERANCE if large else TOLERANCE)[dtype], errors


@each_way
@each_case
def test_loss_and_every_gradient(case, large):
    with device_layer(large=large):
        for sparse in (False, True):
            assert_is_the_reference(case, torch.float32, large, sparse=sparse)
        assert_is_the_reference(case, torch.bfloat16, large, inputs=False)
        assert_is_the_reference(case, torch.bfloat16, large, sparse=True)


@each_way
@pytest.mark.parametrize("case", LAYER_CASES[::2], ids=lambda case: case.name)
def test_lanes_and_blocks_in_either_order_give_the_same_bits(case, large):
    found = []
    for descending in (False, True):
        with device_layer(descending, large):
            model, x = layer_of(case, torch.float32), layer_batch(case, torch.float32)["x"].requires_grad_()
            loss = model.loss(x, l1=0.5)
            loss.sum().backward()
            found.append([loss.detach(), x.grad, *(p.grad for p in model.parameters())])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def _output_and_gradients(case, x, grad, dtype, sparse):
    model, given = layer_of(case, dtype), x.to(dtype, copy=True).requires_grad_()
    if sparse:
        given = tk.SparseBatch.from_dense(given.detach())
        given.value.requires_grad_()
    output = model(given)
    output.backward(grad.to(dtype))
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return output, found | {"x": given.value.grad if sparse else given.grad}


@each_way
@each_case
def test_output_and_its_backward(case, large):
    """Against the CPU's kernels in float64, which have an oracle of their own."""
    expected, x = layer_reference(case)[0], layer_batch(case)["x"]
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for sparse in (False, True):
        _, wanted = _output_and_gradients(case, x, grad, torch.float64, sparse)
        with device_layer(large=large):
            output, found = _output_and_gradients(case, x, grad, torch.float32, sparse)
        errors = {name: largest_error(found[name], wanted[name]) for name in wanted}
        errors["output"] = largest_error(output, expected)
        assert max(errors.values()) <= TOLERANCE[torch.float32], errors


@settings(max_examples=30)
@given(
    n=st.integers(1, 300),
    m=st.integers(1, 40),
    models=st.integers(1, 3),
    batch=st.integers(1, 90),
    density=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    tied=st.booleans(),
    hidden=st.sampled_from(["none", "relu"]),
    large=st.booleans(),
)
def test_any_shape(n, m, models, batch, density, tied, hidden, large):
    case = LayerCase("any", n, m, models, batch, density, tied, {"hidden_activation": hidden})
    with device_layer(large=large):
        assert_is_the_reference(case, torch.float32, inputs=False)
        assert_is_the_reference(case, torch.float32, sparse=True)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("few", [True, False], ids=["lists", "products"])
def test_tiles_of_every_kind(monkeypatch, tied, sparse, few):
    """Groups of models, segments of rows and chunks of features, none of them whole; outputs that are off."""
    case = LayerCase(
        "tiles", 600, 20, 3, 100, 0.05, tied, {"hidden_activation": "topk", "top_k": 7}, {"l1": 0.1}
    )
    monkeypatch.setattr(large_models, "plan", lambda *args, **options: Plan(2, 64, 256, 0))
    monkeypatch.setattr(large_models, "ACTIVE_WORK", 1)
    shares = dict.fromkeys(large_models.ACTIVE_SHARE, 1.0 if few else -1.0)
    monkeypatch.setattr(large_models, "ACTIVE_SHARE", shares)
    with device_layer(large=True) as kernels:
        assert_is_the_reference(case, torch.float32, sparse=sparse)
        assert_is_the_reference(case, torch.bfloat16, large=True, sparse=sparse)
    assert ("tile 6" in kernels.called) is ("tile 7" in kernels.called) is few


def test_several_slices_and_groups_of_a_long_batch(monkeypatch):
    case = LayerCase("long", 9, 4, 5, 1300, 0.1)
    monkeypatch.setattr(cuda, "_PARTIAL_BYTES", 1000)  # two models at a time
    with device_layer() as kernels:
        assert_is_the_reference(case, torch.float32)
    assert kernels.called == ["stacked"] * 5


def test_bits_of_a_small_model_do_not_depend_on_its_neighbours():
    stack, x = tk.TiedAutoencoder(5, 2, 6), torch.rand(6, 700, 5)
    with device_layer():
        stack.loss(x).sum().backward()
        alone = stack[4]
        alone.loss(x[4:5]).sum().backward()
    assert torch.equal(alone.weight.grad[0], stack.weight.grad[4])


@each_way
def test_top_k_takes_the_first_of_equal_codes(large):
    model = tk.TiedAutoencoder(2, 4, hidden_activation="topk", top_k=2, output_activation="none", init=0.0)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[[1.0, 0], [2, 0], [2, 0], [2, 1]]]))
    with device_layer(large=large):
        assert model(torch.tensor([[1.0, 0.0]])).tolist() == [[[8.0, 0.0]]]


@each_way
@pytest.mark.parametrize("hidden", ["none", "relu", "topk"])
def test_nan_shows_as_in_pytorch(hidden, large):
    model = tk.TiedAutoencoder(9, 3, 2, hidden_activation=hidden, top_k=2 if hidden == "topk" else None)
    x = torch.rand(2, 8, 9)
    x[0, 3, 1] = float("nan")
    with device_layer(large=large):
        loss, output = model.loss(x), model(x)
        loss.sum().backward()
    assert loss.isnan().tolist() == [True, False]
    assert output.isnan().any(2).tolist() == [[i == 3 for i in range(8)], [False] * 8]
    assert model.weight.grad.isnan().flatten(1).any(1).tolist() == [True, False]


@each_way
def test_impossible_entries_are_nan_and_harm_nothing(large):
    model = tk.TiedAutoencoder(6, 3)
    good = tk.SparseBatch.from_dense(torch.rand(4, 6))
    for broken in ("feature", "row_start"):
        batch = good.to(torch.float32)
        if broken == "feature":
            batch.feature = good.feature.clone()
            batch.feature[-1] = 10**6
        else:
            batch.row_start = good.row_start.clone()
            batch.row_start[-1] = 10**9
        with device_layer(large=large):
            loss, output = model.loss(batch), model(batch)
        assert loss.isnan().all()
        assert output[0].isnan().any(1).tolist() == [False, False, False, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_are_refused(dtype):
    model = tk.TiedAutoencoder(4, 2).to(dtype)
    with device_layer(), pytest.raises(TypeError, match="weight must be float32 or bfloat16 on CUDA"):
        model(torch.zeros(3, 4, dtype=dtype))


@each_way
def test_no_samples(large):
    model = tk.TiedAutoencoder(4, 2, 3)
    with device_layer(large=large):
        output = model(torch.zeros(3, 0, 4))
        output.sum().backward()
        with pytest.raises(ValueError, match="at least one sample"):
            model.loss(torch.zeros(3, 0, 4))
    assert output.shape == (3, 0, 4)
    assert not model.weight.grad.any()


@each_way
def test_strided_and_expanded_tensors(large):
    model, wide = tk.TiedAutoencoder(6, 3, 2), torch.rand(10, 4, 12)
    x = wide[1:9:2, :, ::2].transpose(0, 1)[:2]
    with device_layer(large=large):
        assert torch.equal(model.loss(x), model.loss(x.contiguous()))
        assert torch.equal(model(x[:1].expand(2, -1, -1)), model(x[:1].repeat(2, 1, 1)))
        assert torch.equal(
            model.loss(x, target=x[:1].expand(2, -1, -1)), model.loss(x, target=x[:1].repeat(2, 1, 1))
        )
        model(x).sum().backward()  # an expanded gradient
    assert model.weight.grad.any()


def test_out_of_memory_says_what_was_asked(monkeypatch):
    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with (
        device_layer(),
        pytest.raises(MemoryError, match=r"MiB are needed on 'cpu'.*2 models, 4 samples, 6 feat"),
    ):
        model, x = tk.TiedAutoencoder(6, 3, 2), torch.rand(2, 4, 6)
        monkeypatch.setattr(torch, "empty", full)
        model(x)


@pytest.mark.sanitize
@each_way
@pytest.mark.parametrize("case", LAYER_CASES[:19:2], ids=lambda case: case.name)
def test_reads_and_writes_only_what_it_owns(case, large):
    with device_layer(large=large):
        for dtype in (torch.float32, torch.bfloat16):
            case_errors(case, dtype)
            case_errors(case, dtype, sparse=True)


# ---- the plan ----------------------------------------------------------------------------------------------


MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("rows_of_encoder", [False, True])
@pytest.mark.parametrize(
    ("models", "batch", "n", "m"),
    [
        (1, 1024, 262_144, 512),
        (1, 8192, 65_536, 1024),
        (1, 4096, 768, 24_576),
        (1, 100_000, 16_384, 256),
        (1000, 128, 1024, 64),
        (1, 1, 10, 10),
        (7, 33, 70, 300),
    ],
)
def test_scratch_memory_stays_within_the_budget(models, batch, n, m, rows_of_encoder, bf16):
    found = plan(models, batch, n, m, bf16=bf16, rows_of_encoder=rows_of_encoder)
    assert found.bytes <= tied_autoencoder_plan.SCRATCH_BYTES < 256 * MIB
    assert 1 <= found.models <= models
    assert 1 <= found.rows <= batch
    assert 1 <= found.features <= n


def test_a_million_features_fit():
    dense = plan(1, 4096, 1 << 20, 512)
    sparse = plan(1, 4096, 1 << 20, 512, entries=4096 << 10)
    assert dense.bytes < 256 * MIB
    assert sparse.bytes < 8 * GIB
    assert sparse.rows == dense.rows == 4096
    assert min(sparse.features, dense.features) >= 1024  # wide enough for products at full speed


@pytest.mark.parametrize("sparse", [False, True])
def test_the_plan_is_what_is_allocated(sparse):
    """Every tensor of a call that is neither an argument nor a result."""
    case = LayerCase("memory", 3000, 40, 2, 90, 0.05)
    made = []
    true_new = cuda.CudaCall.new

    def new(call, *shape, **options):
        tensor = true_new(call, *shape, **options)
        made.append(tensor.numel() * tensor.itemsize)
        return tensor

    with device_layer(large=True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda.CudaCall, "new", new)
        case_errors(case, torch.float32, sparse=sparse, inputs=False)
    results = 4 * (2 * 3000 * 40 + 2 * 3000 + 2)
    entries = int((layer_batch(case)["x"] != 0).sum()) if sparse else 0
    planned = plan(2, 90, 3000, 40, entries=entries, rows_of_encoder=sparse)
    assert sum(made) - results <= planned.bytes
