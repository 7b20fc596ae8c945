"""Chromium without a window, and what the tests of pages ask of it.

It needs Debian's packages chromium and chromium-driver, and selenium.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
marks = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Debian's packages chromium and chromium-driver"),
]
ARGUMENTS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars"),
)
PATIENCE = 20.0
"""Seconds to wait for what a page does by itself."""
TELEPHONE = 360
"""The width of a small screen in pixels."""


class Browser:
    """A browser that shows one page, and what it does meanwhile."""

    def __init__(self, profile: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        self.command("Page.enable")
        self.command("Network.enable")

    def command(self, name: str, **parameters: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, parameters)

    def open(self, page: Path | str, *, width: int = 1280, dark: bool = False) -> None:
        """Open a page, and forget what happened before."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", media="", features=[scheme])
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        for log in ("browser", "performance"):
            self.driver.get_log(log)
        self.driver.get(page if isinstance(page, str) else page.as_uri())

    def js(self, code: str, *values: Any) -> Any:
        return self.driver.execute_script(code, *values)

    def wait(self, code: str) -> Any:
        """Return the value of an expression once it is true."""
        end = time.monotonic() + PATIENCE
        while not (value := self.js(f"return {code}")):
            assert time.monotonic() < end, code
            time.sleep(0.02)
        return value

    def drawn(self) -> None:
        """Wait until all charts of Bokeh are drawn."""
        self.wait(
            "[...document.querySelectorAll('.chart')].every(one => one.querySelector('.static').hidden "
            "&& one.querySelector('.interactive > *') !== null)"
        )

    def complaints(self) -> list[str]:
        """Return the warnings and errors of the console, also those of the page's policy."""
        return [one["message"] for one in self.driver.get_log("browser") if one["level"] not in ("INFO", "DEBUG")]

    def network(self) -> list[dict[str, Any]]:
        """Return what the page has done on the network, or tried to."""
        return [json.loads(one["message"])["message"] for one in self.driver.get_log("performance")]

    def addresses(self) -> set[str]:
        """Return the addresses that the page has asked for, or tried to."""
        sent = (event["params"] for event in self.network() if event["method"] == "Network.requestWillBeSent")
        return {one["request"]["url"] for one in sent}

    def requests(self) -> set[str]:
        """Return the kinds of these addresses."""
        return {address.partition(":")[0] for address in self.addresses()}

    def keys(self, *keys: str) -> None:
        """Press keys, one after the other, where the focus is."""
        actions = webdriver.ActionChains(self.driver)
        actions.send_keys(*keys).perform()

    def screenshot(self, name: str) -> None:
        """Save a picture of the whole page where DIFFTOOL_SCREENSHOTS names a folder."""
        if not (folder := os.environ.get("DIFFTOOL_SCREENSHOTS")):
            return
        data = self.command("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, f"{name}.png").write_bytes(base64.b64decode(data))
