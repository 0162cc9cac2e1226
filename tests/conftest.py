"""Settings for the whole suite: property tests are repeatable and untimed, GPU tests skip with a reason."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

settings.register_profile("toykern", deadline=None, derandomize=True)
settings.load_profile("toykern")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _restore_thread_count():
    """A test may call torch.set_num_threads; the next one starts from the same count again."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)
