"""Odd values for every argument of every public callable: a result, or an error that names the argument."""

from __future__ import annotations

import inspect
import re
import resource
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib.pyplot as plt
import pytest
from odd_values import CALLS, LARGE, LASTS, UNCALLED, VALUES

import toykern as tk
from toykern.arguments import memory

INDEXED = ("model[i]", "MLP[i]", "SparseTiedAutoencoder[i]", "SparseLinear.to_linear", "Run.rerun")
"""Callables that choose a model by its number: IndexError for one that is out of range."""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a text is a place to write to


@contextmanager
def _little_memory(monkeypatch):
    """A machine with 1 GiB free; and what takes much more without a word is refused it by the system."""
    monkeypatch.setattr(memory, "free_memory", lambda device: 1 << 30)
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 30), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def arguments_of(name: str) -> list[str]:
    """The names of the arguments of a callable that are tried."""
    public = CALLS[name]
    parameters = inspect.signature(public.call()).parameters
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = {p.name for p in parameters.values() if p.kind not in kinds} | set(public.arguments())
    return sorted(names - set(public.skip))


def _of_a_device(argument: str, error: RuntimeError) -> bool:
    """A device that is not here is a RuntimeError, which names the argument too."""
    return argument in ("device", "devices") and re.search(rf"\b{argument}\b", str(error)) is not None


def problems(name: str) -> Iterator[str]:
    """What is wrong with the answers of one callable, a line each."""
    public = CALLS[name]
    allowed = (TypeError, ValueError, IndexError) if name in INDEXED else (TypeError, ValueError)
    for argument in arguments_of(name):
        for odd, make in VALUES.items():
            call = public.call()
            arguments = dict(public.arguments()) | {argument: make()}
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    call(**arguments)
            except allowed as error:
                message = str(error)
                # Of a place where there is no store, the place is said.
                placed = isinstance(error, tk.StoreError) and VALUES["text"]() in message
                if not placed and not re.search(rf"\b{re.escape(argument)}\b", message):
                    yield f"{argument} = {odd}: {type(error).__name__} without its name: {error}"
            except RuntimeError as error:
                if not _of_a_device(argument, error):
                    yield f"{argument} = {odd}: RuntimeError: {error}"
            except Exception as error:
                yield f"{argument} = {odd}: {type(error).__name__}: {error}"
            plt.close("all")


@pytest.mark.parametrize("name", CALLS)
def test_errors_name_the_argument(name):
    found = list(problems(name))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", CALLS)
def test_very_large_sizes_are_refused_by_name(name, monkeypatch):
    """Or taken, where nothing is made of them; but never more memory than there is asked for."""
    allowed = (TypeError, ValueError, IndexError)
    found = []
    for argument in arguments_of(name):
        if (name, argument) in LASTS:
            continue
        for value in LARGE:
            call, arguments = CALLS[name].call(), dict(CALLS[name].arguments())
            try:
                with warnings.catch_warnings(), _little_memory(monkeypatch):
                    warnings.simplefilter("ignore")
                    call(**(arguments | {argument: value}))
            except (*allowed, MemoryError) as error:
                said = re.search(rf"\b{re.escape(argument)}\b", str(error))
                if not said or (isinstance(error, MemoryError) and "GiB are free" not in str(error)):
                    found.append(f"{argument} = {value}: {type(error).__name__} without its name: {error}")
            except RuntimeError as error:
                if not _of_a_device(argument, error):
                    found.append(f"{argument} = {value}: RuntimeError: {error}")
            except Exception as error:
                found.append(f"{argument} = {value}: {type(error).__name__}: {error}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", CALLS)
def test_arguments_that_are_fine_are_taken(name):
    public = CALLS[name]
    public.call()(**public.arguments())
    plt.close("all")


def test_every_public_name_is_called():
    called = {name.split(".")[0] for name in CALLS}
    public = {
        name
        for module in (tk, tk.nn, tk.sparse)
        for name in module.__all__
        if callable(getattr(module, name)) or inspect.ismodule(getattr(module, name))
    }
    assert public - called <= set(UNCALLED) <= public
