"""What commands say to whoever reads their output."""

from __future__ import annotations

import os
import sys


def say(text: str) -> None:
    """Print a line at once.

    Where nobody reads any more (`toykern info | head -1`) what is said is dropped and the command goes on:
    what was trained is drawn and stored also then.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # The file stays open, so that neither later lines nor the flush at exit find a closed pipe.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
