"""Those who train for a command: processes of its own, or the workers of a Dask scheduler."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor

from toykern.cli.arguments import Problem, short

PATIENCE = "10s"
"""With a scheduler that does not answer."""


@contextlib.contextmanager
def workers(count: int | None) -> Iterator[Executor | None]:
    """So many processes that share the threads of this one; None for None."""
    if count is None:
        yield None
        return
    import torch

    threads = max(1, torch.get_num_threads() // count)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        count, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        try:
            yield pool
        except RuntimeError as error:  # a worker failed; it says which chunks are missing
            raise Problem(str(error)) from error


@contextlib.contextmanager
def scheduler(address: str | None) -> Iterator[Executor | None]:
    """The workers of a Dask scheduler; None for None."""
    if address is None:
        yield None
        return
    try:
        import distributed
    except ImportError as error:
        raise Problem("--scheduler needs Dask: pip install 'toykern[dask]'") from error
    try:
        client = distributed.Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:  # a TimeoutError is an OSError
        raise Problem(f"--scheduler {short(address)} does not answer: {short(str(error))}") from error
    with client:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            raise Problem(f"--scheduler {short(address)} has no workers")
        try:
            yield client.get_executor()
        except RuntimeError as error:  # as in `workers`
            raise Problem(str(error)) from error
