"""A real headless Chromium for the viewer's tests, or the reason why there is none."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.programs import ROOT

SHOTS = ROOT / "out" / "viewer"  # git ignores it; CI keeps it
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")


def executable() -> str | None:
    """A Chromium of this machine: $CHROMIUM, or one on the path; None leaves it to Playwright's own."""
    return os.environ.get("CHROMIUM") or next((found for name in NAMES if (found := shutil.which(name))), None)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser. Skips the test where Playwright or a browser is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (pip install playwright)")
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=executable(), args=["--no-sandbox"])
        except api.Error as error:
            first = str(error).strip().splitlines()[0]
            pytest.skip(f"there is no Chromium here (apt-get install chromium, or set $CHROMIUM): {first}")
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A page that must not complain: everything that it writes to the console as an error, or throws, is kept."""

    def __init__(self, page: Any):
        self.page = page
        self.complaints: list[str] = []
        page.on("console", lambda message: self._hear(message))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("requestfailed", lambda request: self._fail(request.url, str(request.failure)))

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _fail(self, url: str, why: str) -> None:
        if "ERR_ABORTED" not in why:  # somebody has pressed Stop
            self.complaints.append(f"{url}: {why}")

    def shot(self, name: str) -> Path:
        """A screenshot of the whole page, where CI keeps it."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        path = SHOTS / f"{name}.png"
        self.page.screenshot(path=path, full_page=True)
        return path


def violations(page: Any) -> list[str]:
    """What axe finds wrong with a page as it is now. Skips where axe is missing."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe is not installed (pip install axe-playwright-python)"
    )
    found = axe.Axe().run(page).response["violations"]
    return [f"{one['id']}: {node['target']} {node['failureSummary']}" for one in found for node in one["nodes"]]
