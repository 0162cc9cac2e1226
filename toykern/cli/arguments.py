"""What the options of the command line are made of, and what is wrong with one of them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import NoReturn

MAX_SIZE = 2**31 - 1
"""`toykern.arguments.errors.MAX_SIZE`, for command lines that are refused before torch is imported."""


class Problem(Exception):
    """Something about the command line that its user can mend; the message is one line."""


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, and end with status 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def whole(
    name: str, minimum: int, maximum: int | None = None, largest: int = MAX_SIZE
) -> Callable[[str], int]:
    """An argparse type: a whole number in a range; `largest` is for what has no maximum worth telling."""

    def parse(text: str) -> int:
        allowed = f"at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        most = largest if maximum is None else maximum
        try:
            value = int(text)
        except ValueError:  # of no number, and of one with thousands of digits
            value = minimum - 1
        if value > most and maximum is None:
            allowed = f"at most {most}"
        if not minimum <= value <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number {allowed}, not {short(text)}")
        return value

    return parse


def share_of_text(text: str) -> tuple[int, int]:
    """An argparse type: `3/32`."""
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdecimal() and part.isascii() and len(part) < 10 for part in parts):
        raise argparse.ArgumentTypeError(f"must be I/N, as 3/32, not {short(text)}")
    i, n = int(parts[0]), int(parts[1])
    if not i < n:
        raise argparse.ArgumentTypeError(f"must be one of the {n} shares from 0/{n} on, not {short(text)}")
    return i, n


def learning_rate(text: str) -> float:
    """An argparse type: a positive number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be a positive number, not {short(text)}")
    return value


def short(text: str) -> str:
    """What was given, fit for a line."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def check_device(device: str) -> None:
    """A Problem where the device has no kernels here."""
    if device == "cpu":
        return
    from toykern.native.devices import check_kernels

    try:
        check_kernels(device)
    except RuntimeError as error:
        raise Problem(f"--device {device} is not available: {error}") from error
