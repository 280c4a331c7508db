"""Headless Chromium over the WebDriver protocol (W3C, 2018): the few commands that the tests need."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
DRIVER = next(filter(None, map(shutil.which, ("chromedriver", "chromium-driver"))), None)
FLAGS = (
    *(
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-dev-shm-usage",
    ),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-default-apps",
    ),
    *("--disable-features=OptimizationHints,MediaRouter,Translate", "--proxy-server=127.0.0.1:9"),
    "--force-color-profile=srgb",
)
KEYS = {"Tab": "\ue004", "Enter": "\ue007", "Space": "\ue00d"}
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the name the standard gives an element's id


class Browser:
    """One window of a Chromium that reaches no network (its proxy is a closed port)."""

    def __init__(self, server: str, profile: Path, width: int, height: int, flags: tuple[str, ...] = ()):
        arguments = [*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}", *flags]
        options = {"binary": CHROMIUM, "args": arguments}
        wanted = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        self._server = server
        self._session = ""
        self._session = "/" + self._ask("POST", "/session", {"capabilities": wanted})["sessionId"]

    def open(self, page: Path) -> None:
        """Load a file and wait until its scripts have run."""
        self._ask("POST", "/url", {"url": page.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that a function body returns in the page."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def run_async(self, script: str, *arguments: Any) -> Any:
        """What a function body hands to the callback that is its last argument."""
        return self._ask("POST", "/execute/async", {"script": script, "args": list(arguments)})

    def find(self, css: str) -> str:
        return self._ask("POST", "/element", {"using": "css selector", "value": css})[ELEMENT]

    def click(self, css: str) -> None:
        self._ask("POST", f"/element/{self.find(css)}/click", {})

    def type(self, css: str, text: str) -> None:
        """Replace what stands in a field."""
        element = self.find(css)
        self._ask("POST", f"/element/{element}/clear", {})
        self._ask("POST", f"/element/{element}/value", {"text": text})

    def press(self, css: str, key: str) -> None:
        """Press a key on an element that has the focus or takes it."""
        self._ask("POST", f"/element/{self.find(css)}/value", {"text": KEYS[key]})

    def choose(self, select: str, text: str) -> None:
        """Pick the option of a select whose text this is, as a user's choice does."""
        found = self.run(
            "const s = document.querySelector(arguments[0]);"
            "const o = [...s.options].find((o) => o.text === arguments[1]); if (!o) return false;"
            "s.value = o.value; s.dispatchEvent(new Event('change', {bubbles: true})); return true",
            select,
            text,
        )
        assert found, f"{select} has no option {text!r}"

    def texts(self, css: str) -> list[str]:
        """The visible elements' texts."""
        return self.run(
            "return [...document.querySelectorAll(arguments[0])]"
            ".filter((e) => e.checkVisibility()).map((e) => e.innerText)",
            css,
        )

    def complaints(self) -> list[str]:
        """What the page wrote to the console as an error."""
        log = self._ask("POST", "/se/log", {"type": "browser"})
        return [line["message"] for line in log if line["level"] == "SEVERE"]

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self._ask("GET", "/screenshot")))

    def close(self) -> None:
        self._ask("DELETE", "")

    def _ask(self, method: str, path: str, body: dict | None = None) -> Any:
        prefix = "" if path == "/session" else f"/session{self._session}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._server + prefix + path, data, method=method)
        # The driver is on this machine: a proxy of the environment does not concern it.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise RuntimeError(json.load(error)["value"]["message"]) from None


@contextlib.contextmanager
def chromium(folder: Path, width: int = 1400, height: int = 1000, flags: tuple[str, ...] = ()) -> Iterator[Browser]:
    """A browser with a fresh profile in `folder`, gone afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open(folder / "chromedriver.log", "wb") as log:
        driver = subprocess.Popen([DRIVER, f"--port={port}"], stdout=log, stderr=log)
    try:
        _await_port(port)
        browser = Browser(f"http://127.0.0.1:{port}", folder / "profile", width, height, flags)
        try:
            yield browser
        finally:
            browser.close()
    finally:
        driver.terminate()
        driver.wait(20)


def _await_port(port: int, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
