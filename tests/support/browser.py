"""Headless Chromium through the WebDriver protocol (W3C, 2018): the few commands that the tests need."""

import contextlib
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
DRIVER = next(filter(None, map(shutil.which, ("chromedriver", "chromium-driver"))), None)
FLAGS = (
    "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-dev-shm-usage disable-background-networking "
    "disable-component-update disable-sync disable-default-apps window-size=1400,1000 force-color-profile=srgb "
    "disable-features=OptimizationHints,MediaRouter,Translate proxy-server=127.0.0.1:9"  # a closed port: no network
)
KEYS = {"Enter": "\ue007", "Space": "\ue00d"}
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's id in the standard


class Browser:
    """One window of a Chromium that reaches no network."""

    def __init__(self, server: str, profile: Path):
        options = {"binary": CHROMIUM, "args": [*(f"--{flag}" for flag in FLAGS.split()), f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._url = f"{server}/session"
        self._url += "/" + self._ask("POST", "", capabilities={"alwaysMatch": wanted})["sessionId"]

    def open(self, page: Path) -> None:
        """Load a file and wait until its scripts have run."""
        self._ask("POST", "/url", url=page.resolve().as_uri())

    def run(self, script: str, *arguments: Any, kind: str = "sync") -> Any:
        """Run a function body in the page: its value, or with kind=async what it gives to its last argument."""
        return self._ask("POST", f"/execute/{kind}", script=script, args=arguments)

    def click(self, css: str) -> None:
        self._element(css, "click")

    def type(self, css: str, text: str) -> None:
        """Replace the text of a field."""
        self._element(css, "clear")
        self._element(css, "value", text=text)

    def press(self, css: str, key: str) -> None:
        """Press a key on an element that has the focus or takes it."""
        self._element(css, "value", text=KEYS[key])

    def choose(self, select: str, text: str) -> None:
        """Choose the option with this text in a select element."""
        choose = (
            "const s = document.querySelector(arguments[0]);"
            "const o = [...s.options].find((o) => o.text === arguments[1]); if (!o) return false;"
            "s.value = o.value; s.dispatchEvent(new Event('change', {bubbles: true})); return true"
        )
        assert self.run(choose, select, text), f"{select} has no option {text!r}"

    def texts(self, css: str) -> list[str]:
        """The texts of the visible elements."""
        visible = "[...document.querySelectorAll(arguments[0])].filter((e) => e.checkVisibility())"
        return self.run(f"return {visible}.map((e) => e.innerText)", css)

    def errors(self) -> list[str]:
        """The errors that the page wrote to the console."""
        log = self._ask("POST", "/se/log", type="browser")
        return [line["message"] for line in log if line["level"] == "SEVERE"]

    def close(self) -> None:
        self._ask("DELETE", "")

    def _element(self, css: str, action: str, **body: Any) -> None:
        found = self._ask("POST", "/element", using="css selector", value=css)[ELEMENT]
        self._ask("POST", f"/element/{found}/{action}", **body)

    def _ask(self, method: str, path: str, **body: Any) -> Any:
        data = json.dumps(body).encode() if method == "POST" else None
        request = urllib.request.Request(self._url + path, data, method=method)
        # The driver runs on this machine, so a proxy of the environment must not be used.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise RuntimeError(json.load(error)["value"]["message"]) from None


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A browser with a fresh profile in `folder`, closed at the end."""
    with subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as driver:
        try:
            port = next(found[1] for line in driver.stdout if (found := re.search(r"successfully on port (\d+)", line)))
            with contextlib.closing(Browser(f"http://127.0.0.1:{port}", folder / "profile")) as browser:
                yield browser
        finally:
            driver.terminate()
