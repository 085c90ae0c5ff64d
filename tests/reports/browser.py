"""A headless Chromium, driven through its debugging pipe: what a person's browser would show, log and fetch."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-default-browser-check"),
    *("--disable-dev-shm-usage", "--remote-debugging-pipe"),
)


def find_chromium() -> str | None:
    """Return the browser's path, if there is one."""
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


def _high(descriptor: int) -> int:
    """Move a descriptor out of the way of those that the browser takes, 3 and 4."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved


class Browser:
    """One tab. `console` has what was logged as an error or thrown, `requests` every address that was asked for."""

    def __init__(self, timeout: float = 60.0) -> None:
        path = find_chromium()
        if path is None:
            raise FileNotFoundError("chromium")
        self.timeout = timeout
        self.console: list[str] = []
        self.requests: list[str] = []
        self._loaded = False
        self._number = 0
        self._rest = b""
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        theirs_in, self._to = map(_high, os.pipe())
        self._from, theirs_out = map(_high, os.pipe())
        # The browser reads commands from descriptor 3 and writes answers to 4.
        shell = f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$0" "$@"'
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", shell, path, *FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        target = next(t for t in self._call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self._call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session: str | None = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command to the tab and return its answer."""
        return self._call(method, session=self._session, **parameters)

    def _call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        until = time.monotonic() + self.timeout
        while True:
            answer = self._receive(until)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._from], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError("The browser didn't answer.")
            chunk = os.read(self._from, 1 << 20)
            if not chunk:
                raise RuntimeError("The browser went away.")
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Runtime.exceptionThrown":
                details = parameters["exceptionDetails"]
                self.console.append(details.get("exception", {}).get("description") or details["text"])
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "warning", "assert"):
                self.console.append(" ".join(str(a.get("value", a.get("description"))) for a in parameters["args"]))
            case "Log.entryAdded" if parameters["entry"]["level"] in ("error", "warning"):
                self.console.append(parameters["entry"]["text"])

    def size(self, width: int, height: int = 900, *, dark: bool = False, language: str = "en-US") -> None:
        """Set the window, the preferred colours and language of what is opened next."""
        mobile = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        agent = self._call("Browser.getVersion")["userAgent"]
        self.call("Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage=language)

    def open(self, url: str, ready: str = "true") -> None:
        """Open an address, and wait until the script `ready` is true."""
        until = time.monotonic() + self.timeout
        for address in ("about:blank", url):  # from blank, so that an address that differs in its hash is loaded too
            self.console.clear()
            self.requests.clear()
            self._loaded = False
            self.call("Page.navigate", url=address)
            while not self._loaded:
                self._receive(until)
        while not self.run(ready):
            if time.monotonic() > until:
                raise TimeoutError(f"{ready} didn't come true; console: {self.console}")
            time.sleep(0.05)

    def run(self, script: str) -> Any:
        """Return the value of a script, awaiting promises."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in done:
            raise RuntimeError(done["exceptionDetails"].get("exception", {}).get("description", str(done)))
        return done["result"].get("value")

    def screenshot(self, path: Path, selector: str | None = None) -> None:
        """Save a picture of the whole page or of one element."""
        box = self.run(
            f"(() => {{ const b = document.querySelector({json.dumps(selector or 'html')}).getBoundingClientRect();"
            "return {x: b.x + scrollX, y: b.y + scrollY, width: b.width, height: b.height} })()"
        )
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip={**box, "scale": 1})
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """End the browser and remove its profile."""
        for descriptor in (self._to, self._from):
            os.close(descriptor)
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._profile.cleanup()

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
