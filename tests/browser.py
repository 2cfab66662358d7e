"""A headless Chromium that opens pages: how wide they are, what they look like. It is driven by its debugging pipe.

with Browser() as browser:
    page = browser.open(path, width=400, dark=True)
    page.value("document.title")
    page.picture()
"""

import base64
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple, Self

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OPTIONS = ("--headless", "--remote-debugging-pipe", "--hide-scrollbars", "--disable-gpu", "--disable-dev-shm-usage")


def found() -> str | None:
    """The first Chromium of this system."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Page(NamedTuple):
    """A page that is open."""

    browser: "Browser"

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript gives there."""
        answer = self.browser.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def picture(self) -> bytes:
        """A PNG of what a window shows."""
        return base64.b64decode(self.browser.call("Page.captureScreenshot", format="png")["data"])


class Browser:
    """One window of a browser, closed at the end of a `with` block."""

    def __enter__(self) -> Self:
        program = found()
        assert program, "there is no Chromium"
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # children of the browser end later
        ours, theirs = pipe(), pipe()
        sandbox = [] if os.geteuid() else ["--no-sandbox"]  # root has none
        command = [program, *OPTIONS, *sandbox, f"--user-data-dir={self._folder.name}", "about:blank"]
        redirect = f'exec "$@" 3<&{theirs[0]} 4>&{ours[1]}'  # the browser reads 3 and writes 4
        self._process = subprocess.Popen(
            ["bash", "-c", redirect, "bash", *command],
            pass_fds=(theirs[0], ours[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs[0])
        os.close(ours[1])
        self._answers, self._calls = os.fdopen(ours[0], "rb"), os.fdopen(theirs[1], "wb")
        self._numbers, self._rest, self._events, self._session = itertools.count(1), b"", [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        return self

    def __exit__(self, *error: object) -> None:
        self._calls.close()
        self._answers.close()
        self._process.terminate()
        self._process.wait(30)
        self._folder.cleanup()

    def open(self, path: Path, *, width: int, height: int = 900, dark: bool = False) -> Page:
        """Open a file in a window of so many pixels, in light or in dark mode."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self._events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._message())
        return Page(self)

    def call(self, method: str, **arguments: object) -> dict[str, Any]:
        """Call a method of the browser, and return its result."""
        number = next(self._numbers)
        session = {} if self._session is None else {"sessionId": self._session}
        self._calls.write(json.dumps({"id": number, "method": method, "params": arguments} | session).encode() + b"\0")
        self._calls.flush()
        while (answer := self._message()).get("id") != number:
            self._events.append(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _message(self) -> dict[str, Any]:
        """The next message; each ends with a zero byte."""
        while b"\0" not in self._rest:
            more = os.read(self._answers.fileno(), 1 << 20)
            assert more, "the browser ended"
            self._rest += more
        text, self._rest = self._rest.split(b"\0", 1)
        message: dict[str, Any] = json.loads(text)
        return message


def pipe() -> tuple[int, int]:
    """A pipe whose ends have numbers above 9, which a redirection to 3 and 4 does not overwrite."""
    ends = os.pipe()
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return moved[0], moved[1]
