"""A headless Chromium spoken to over a pipe in its DevTools protocol: the standard library is enough."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",  # commands on descriptor 3, answers and events on 4, each ended by a zero byte
]


def executable() -> str:
    """The browser, or a skipped test where there is none."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no browser: none of chromium, chromium-browser and google-chrome is installed")
    return found


class Tab:
    """One page of the browser; ``requests`` and ``complaints`` hold what it asked for and what its console said."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._buffer, self._count, self._session = b"", 0, None
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come in between are kept."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._answers], [], [], 60)[0], "the browser has said nothing for a minute"
            piece = os.read(self._answers, 1 << 20)
            assert piece, "the browser has gone"
            self._buffer += piece
        text, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(text)

    def _note(self, event: dict[str, Any]) -> None:
        method, what = event.get("method", ""), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(what["request"]["url"])
        if method in ("Runtime.exceptionThrown", "Log.entryAdded") or (
            method == "Runtime.consoleAPICalled" and what["type"] in ("error", "warning", "assert")
        ):
            self.complaints.append(json.dumps(what))

    def open(self, file: Path, state: str = "", width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Load a file, with a state in its address, and wait until it is drawn."""
        self.requests.clear()
        self.complaints.clear()
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url="about:blank")  # else another state of the same file would not load it again
        self.call("Page.navigate", url=file.resolve().as_uri() + state)
        waiting = "new Promise(r => document.readyState === 'complete' ? r() : addEventListener('load', () => r()))"
        self.js(waiting)
        self.requests = [url for url in self.requests if url != "about:blank"]

    def js(self, expression: str) -> Any:
        """The value of an expression, a promise awaited."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def key(self, name: str) -> None:
        """Press a key and let it go."""
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=9 if name == "Tab" else 0
            )

    def point(self, x: float, y: float) -> None:
        """Move the pointer to a place of the viewport."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, path: Path) -> None:
        """The viewport as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Tab]:
    """A tab of a new browser, whose profile is ``folder``."""
    to_browser, commands = os.pipe()
    answers, from_browser = os.pipe()

    def descriptors() -> None:
        kept = os.dup(to_browser), os.dup(from_browser)
        os.dup2(kept[0], 3)
        os.dup2(kept[1], 4)

    # The shell that starts Chromium on some systems passes both descriptors on.
    process = subprocess.Popen(
        [executable(), *FLAGS, f"--user-data-dir={folder}"],
        preexec_fn=descriptors,
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)
    try:
        tab = Tab(commands, answers)
        yield tab
        with contextlib.suppress(AssertionError, OSError):
            tab._session = None
            tab.call("Browser.close")
    finally:
        os.close(commands)
        os.close(answers)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
