"""A headless Chromium that does what a person does: real mouse, wheel and keys, by its own DevTools protocol on a pipe.

The protocol's messages are JSON that ends with a zero byte, on file descriptors 3 and 4 of the browser; nothing but
the browser itself has to be installed, and no port is opened. https://chromedevtools.github.io/devtools-protocol
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--no-zygote", "--disable-gpu", "--in-process-gpu", "--hide-scrollbars"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--mute-audio", "--remote-debugging-pipe"),
)
WAIT_S = 200.0
KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9, "Enter": 13, "Escape": 27,
        "Home": 36, "End": 35, "+": 187, "-": 189}  # fmt: skip
"""Windows key codes of keys that are no letter or digit."""
MODIFIERS = {"Alt": 1, "Control": 2, "Meta": 4, "Shift": 8}


class Browser:
    """A running Chromium whose profile lies in `folder`. Use `started`, which ends it."""

    def __init__(self, program: str, folder: Path) -> None:
        (there, mine), (back, answers) = os.pipe(), os.pipe()
        there, answers = (fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (there, answers))  # clear of 3 and 4
        actions = [(os.POSIX_SPAWN_DUP2, there, 3), (os.POSIX_SPAWN_DUP2, answers, 4)]
        silent = [(os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)]
        command = [program, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        self.pid = os.posix_spawn(program, command, os.environ, file_actions=[*actions, *silent], setpgroup=0)
        self._out, self._in = mine, back
        for end in (there, answers):
            os.close(end)
        self._rest, self._number = b"", 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the protocol; RuntimeError if it fails, TimeoutError without an answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        text = json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0"
        while text:
            text = text[os.write(self._out, text) :]
        while (told := self._next(method)).get("id") != self._number:
            self.events.append(told)
        if "error" in told:
            raise RuntimeError(f"{method}: {told['error']['message']}")
        return told["result"]

    def wait(self, method: str, session: str) -> None:
        """Until an event of a page has come, or now if it came since the last one was awaited."""
        while True:
            for place, event in enumerate(self.events):
                if event.get("method") == method and event.get("sessionId") == session:
                    del self.events[place]
                    return
            self.events.append(self._next(method))

    def _next(self, what: str) -> dict[str, Any]:
        until = time.monotonic() + WAIT_S
        while b"\0" not in self._rest:
            if not select.select([self._in], [], [], max(until - time.monotonic(), 0.0))[0]:
                raise TimeoutError(f"the browser says nothing about {what} for {WAIT_S:g} s")
            read = os.read(self._in, 1 << 20)
            if not read:
                raise RuntimeError(f"the browser ended during {what}")
            self._rest += read
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def end(self) -> None:
        """End it and what it started."""
        with contextlib.suppress(RuntimeError, TimeoutError, OSError):
            self.call("Browser.close")
        for end in (self._out, self._in):
            os.close(end)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class Tab:
    """A page of its own. errors: what its console complained of; requests: every address that it asked for.

    One at a time: a page behind another draws no frames.
    """

    def __init__(self, browser: Browser, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        self.browser, self.errors, self.requests = browser, list[str](), list[str]()
        self._target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        wishes = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in wishes.items()]
        self.call("Emulation.setEmulatedMedia", features=features)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command to this page."""
        return self.browser.call(method, self._session, **parameters)

    def open(self, file: Path, fragment: str = "") -> None:
        """Load a file, until all of it is there and two frames are drawn."""
        self.browser.events.clear()
        self.call("Page.navigate", url=file.resolve().as_uri() + fragment)
        self.browser.wait("Page.loadEventFired", self._session)
        self.settle()

    def settle(self) -> None:
        """Let two frames pass, then note what happened."""
        self.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        for event in self.browser.events:
            if event.get("sessionId") == self._session:
                self._note(event["method"], event["params"])
        self.browser.events.clear()

    def _note(self, method: str, told: Mapping[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            thrown = told["exceptionDetails"]
            self.errors.append(thrown.get("exception", {}).get("description", thrown["text"]))
        elif method == "Log.entryAdded":
            self.errors.append(told["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.errors.append(str([one.get("value") for one in told["args"]]))

    def js(self, expression: str) -> Any:
        """The value of an expression in the page, promises awaited; RuntimeError for what it throws."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            raise RuntimeError(f"{expression}: {told['exceptionDetails'].get('exception', told)}")
        return told["result"].get("value")

    def at(self, selector: str, x: float = 0.5, y: float = 0.5) -> tuple[float, float]:
        """A place in an element, by shares of its size, that is scrolled to; in whole pixels, as a mouse has them."""
        left, top, width, height = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center', "
            "behavior: 'instant'}); const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height] })()"
        )
        return round(left + x * width), round(top + y * height)

    def click(self, place: tuple[float, float]) -> None:
        """Press and release the mouse."""
        self.drag([place])

    def drag(self, way: Sequence[tuple[float, float]]) -> None:
        """Press the mouse at the first place, move it along the others, release it."""
        self.hover(way[0])
        self._mouse("mousePressed", way[0])
        for place in way[1:]:
            self._mouse("mouseMoved", place, buttons=1)
        self._mouse("mouseReleased", way[-1])
        self.settle()

    def hover(self, place: tuple[float, float]) -> None:
        """Move the mouse."""
        self._mouse("mouseMoved", place, button="none")

    def wheel(self, place: tuple[float, float], down: float = 0.0, right: float = 0.0) -> None:
        """Turn the wheel over a place, by pixels."""
        self._mouse("mouseWheel", place, button="none", deltaX=right, deltaY=down)
        self.settle()

    def _mouse(self, kind: str, place: tuple[float, float], button: str = "left", **more: float) -> None:
        pressed = {"clickCount": 1} if kind in ("mousePressed", "mouseReleased") else {}
        self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button=button, **pressed, **more)

    def press(self, *keys: str) -> None:
        """Press keys one after the other; "Shift+ArrowLeft" holds Shift."""
        for combined in keys:
            *held, key = combined.split("+") if combined not in ("+", "-") else [combined]
            code = KEYS.get(key, ord(key[0].upper()))
            told = {"key": key, "windowsVirtualKeyCode": code, "modifiers": sum(MODIFIERS[one] for one in held)}
            text = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", **told, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", **told)
        self.settle()

    def shot(self, file: Path, whole: bool = True) -> None:
        """Write a PNG of what is seen, or of the whole page."""
        told = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(told["data"]))

    def close(self) -> None:
        """Close the page."""
        self.browser.call("Target.closeTarget", targetId=self._target)


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Browser]:
    """A browser with a fresh profile in `folder`, ended afterwards; RuntimeError where none is installed."""
    if PROGRAM is None:
        raise RuntimeError("no Chromium on this machine; on Debian: apt install chromium")
    browser = Browser(PROGRAM, folder)
    try:
        yield browser
    finally:
        browser.end()
