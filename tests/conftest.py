"""Settings for the whole suite: property tests are repeatable and untimed, GPU tests skip with a reason.

Hypothesis is optional here alone: a machine with a GPU may have no more than PyTorch and pytest, which is all
that the GPU tests need.
"""

from __future__ import annotations

import os
import signal

import pytest
import torch

try:
    from hypothesis import settings
except ImportError:
    settings = None
else:
    settings.register_profile("toykern", deadline=None, derandomize=True)
    settings.load_profile("toykern")


@pytest.fixture
def ctrl_c():
    """Python's own handler, also where this process was started with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def _why_no_gpu() -> str | None:
    from toykern.native.devices import check_kernels

    try:
        check_kernels("cuda")
    except RuntimeError as error:
        return str(error)
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    chosen = [item for item in items if item.get_closest_marker("gpu")]
    # `make gpu-check` asks for a GPU: where it cannot be used, that is a failure to be seen.
    if not chosen or "TOYKERN_EXPECT_GPU" in os.environ or "TOYKERN_GPU_TESTS_ON" in os.environ:
        return
    if (reason := _why_no_gpu()) is not None:
        for item in chosen:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _restore_thread_count():
    """A test may call torch.set_num_threads; the next one starts from the same count again."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)
