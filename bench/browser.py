"""Chromium without a window, driven by its DevTools protocol over a pipe.

    with Browser(800, 600) as page:
        page.open("http://127.0.0.1:8000/")
        page.run("document.title")

Nothing but Chromium is needed: messages are JSON, each ended by a NUL, on its file descriptors 3
and 4.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--remote-debugging-pipe",
)


class Browser:
    """One page of a browser of its own.

    Attributes:
        failed: requests that failed or were answered with an error, and exceptions of scripts.
        answers: number of answers to requests.
    """

    def __init__(self, width: int, height: int) -> None:
        path = next(filter(None, map(shutil.which, NAMES)), None)
        if path is None:
            raise RuntimeError(f"none of {', '.join(NAMES)} is installed")
        self.failed: list[str] = []
        self.answers = 0
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        # The browser reads from its descriptor 3 and writes to 4, whatever they are here.
        command = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        switches = [*SWITCHES, f"--user-data-dir={self._profile.name}"]
        switches.append(f"--window-size={width},{height}")
        self._process = subprocess.Popen(
            ["bash", "-c", command, path, *switches, "about:blank"],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._rest = b""
        self._count = 0
        self._session: str | None = None
        self._attach(width, height)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)
        self._profile.cleanup()

    def open(self, url: str) -> None:
        """Go to a page; what was noted of the one before is forgotten."""
        self.failed.clear()
        self.answers = 0
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of an expression in the page; promises are waited for."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description", script))
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 60) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({script})"):
            if time.monotonic() > end:
                raise TimeoutError(f"{script} is not true after {seconds} s")
            time.sleep(0.1)

    def resize(self, width: int, height: int) -> None:
        """Pixels of the page's window."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def screenshot(self, path: Path) -> None:
        """What is seen, as PNG."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one command of the protocol."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])
            self._note(answer)

    def _attach(self, width: int, height: int) -> None:
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._from, 1 << 16)
            if not part:
                raise RuntimeError("the browser has ended")
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        method = event.get("method")
        told = event.get("params", {})
        if method == "Network.responseReceived":
            self.answers += 1
            response = told["response"]
            if response["status"] >= 400:
                self.failed.append(f"{response['status']} {response['url']}")
        elif method == "Network.loadingFailed" and not told.get("canceled"):
            self.failed.append(told["errorText"])
        elif method == "Runtime.exceptionThrown":
            self.failed.append(told["exceptionDetails"]["text"])
