"""A headless Chromium that tests talk to by its own protocol (CDP), with every host but this one blocked."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 60.0  # seconds: more than anything here takes on a busy machine


class Page:
    """One page: what it loaded, what it complained of, and what scripts in it say."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._number = folder, itertools.count(1)
        self.asked: list[str] = []
        self.errors: list[str] = []
        self._answers: dict[int, asyncio.Future[Any]] = {}

    async def __aenter__(self) -> Page:
        from tornado.websocket import websocket_connect

        assert CHROMIUM is not None
        self._program = subprocess.Popen(
            [
                CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--remote-debugging-port=0", f"--user-data-dir={self._folder}", "--window-size=1400,1500",
                "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "about:blank",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            told = self._folder / "DevToolsActivePort"
            await until(lambda: _true(told.exists() and told.read_text().count("\n")))
            port = told.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
                page = next(one for one in json.load(answer) if one["type"] == "page")
            self._socket = await websocket_connect(page["webSocketDebuggerUrl"], max_message_size=1 << 28)
            self._listening = asyncio.create_task(self._listen())
            for part in ("Page", "Runtime", "Network"):
                await self.send(f"{part}.enable")
        except BaseException:
            self._program.kill()
            raise
        return self

    async def __aexit__(self, *_: Any) -> None:
        self._listening.cancel()
        self._socket.close()
        self._program.terminate()
        self._program.wait()

    async def send(self, method: str, **params: Any) -> Any:
        """One command and its result."""
        number, answer = next(self._number), asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        await self._socket.write_message(json.dumps({"id": number, "method": method, "params": params}))
        return await asyncio.wait_for(answer, PATIENCE)

    async def run(self, script: str) -> Any:
        """The value of an expression of JavaScript."""
        result = await self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(json.dumps(result["exceptionDetails"])[:600])
        return result["result"].get("value")

    async def click(self, x: float, y: float) -> None:
        """As by a mouse."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            await self.send(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1,
                buttons=int(kind == "mousePressed"),
            )  # fmt: skip

    async def picture(self, path: Path) -> None:
        """A screenshot."""
        shot = await self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    async def _listen(self) -> None:
        while (message := await self._socket.read_message()) is not None:
            told = json.loads(message)
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told.get("result", {"error": told.get("error")}))
            elif told["method"] == "Network.requestWillBeSent":
                self.asked.append(told["params"]["request"]["url"])
            elif told["method"] == "Network.webSocketCreated":
                self.asked.append(told["params"]["url"])
            elif told["method"] == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(told["params"])[:2000])
            elif told["method"] == "Runtime.consoleAPICalled" and told["params"]["type"] == "error":
                self.errors.append(json.dumps(told["params"]["args"])[:2000])


async def until(wanted: Any, patience: float = PATIENCE) -> Any:
    """The first true value of what an asynchronous function says again and again."""
    end = time.monotonic() + patience
    while True:
        if found := await wanted():
            return found
        if time.monotonic() > end:
            raise TimeoutError("what was waited for did not come")
        await asyncio.sleep(0.05)


def _true(value: Any) -> Awaitable[Any]:
    async def say() -> Any:
        return value

    return say()
