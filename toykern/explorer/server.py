"""Bokeh's server around the explorer, for this machine alone."""

from __future__ import annotations

import errno
import getpass
import socket
from typing import Any

from toykern.explorer.atlas import Atlas
from toykern.terminal import say

FIRST_PORT = 5006
_MORE = 20  # ports that are tried after the first
_HOST = "127.0.0.1"


def serve(atlas: Atlas, port: int | None = None) -> None:
    """Show a sweep to browsers on this machine until Ctrl-C; says where.

    Args:
        atlas: of the sweep.
        port: None: 5006, or the next that is free; 0: any.

    Raises:
        ImportError: Bokeh is not installed (`pip install toykern[explore]`).
        OSError: the port cannot be had.
    """
    server = server_of(atlas, port)
    number = server.port
    say(f"{atlas.sweep.path} is at http://{_HOST}:{number}/ until Ctrl-C, for this machine; from another:")
    say(f"  ssh -L {number}:{_HOST}:{number} {getpass.getuser()}@{socket.gethostname()}")
    try:
        server.io_loop.start()
    except KeyboardInterrupt:
        pass
    finally:
        server.stop()


def server_of(atlas: Atlas, port: int | None = None) -> Any:
    """The server, which listens, and answers when its loop is started.

    Raises:
        ImportError, OSError: as `serve`.
    """
    try:
        from bokeh.server.server import Server
        from bokeh.settings import settings
    except ImportError as error:
        raise ImportError("the explorer needs Bokeh: pip install 'toykern[explore]'") from error
    from toykern.explorer.view import document

    settings.resources = "server"  # all scripts come from here: the browser asks no other host
    wanted = range(FIRST_PORT, FIRST_PORT + _MORE) if port is None else [port or _free_port()]
    for number in wanted:
        # Only pages that came from here may talk to it, not those of some site in the same browser.
        origins = [f"{name}:{number}" for name in (_HOST, "localhost")]
        try:
            return Server({"/": document(atlas)}, port=number, address=_HOST, allow_websocket_origin=origins)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or number == wanted[-1]:
                raise
    raise AssertionError("the last port returns or raises")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])
