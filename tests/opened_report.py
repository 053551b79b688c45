"""A report open in an offline browser, with everything it complained about and asked for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
QUIET = ("background-networking", "component-update", "sync", "gpu")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
MARKS = ".scatterlayer path.js-line[d], .hm image"  # lines, and the image of a heat map


@contextmanager
def launched() -> Iterator[Any]:
    """A browser; the test is skipped where there is none, and fails where there must be one."""
    executable = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if executable is None:
        if os.environ.get("CI"):
            pytest.fail(f"no Chromium on the PATH (looked for {', '.join(CHROMIUMS)})")
        pytest.skip("no Chromium on the PATH")
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in QUIET)]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield browser
        browser.close()


class Opened:
    def __init__(self, chromium: Any, report: Path, viewport: dict[str, int]) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page = chromium.new_context(offline=True, viewport=viewport).new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(report.as_uri())
        assert [request for request in self.requests if not request.startswith("data:")] == [report.as_uri()]

    def draw_all(self) -> None:
        """Charts are drawn as they come near the window: draw the others too."""
        self.page.evaluate("drawAll()")

    def marks(self, chart: str) -> int:
        """Lines and heat maps that a chart has drawn."""
        return self.page.locator(f"#{chart} .plot").locator(MARKS).count()

    def points(self, chart: str) -> int:
        return self.page.locator(f"#{chart} .plot .scatterlayer path.point").count()

    def shown(self, chart: str) -> str:
        """What a chart draws and says, to tell whether it changed."""
        marks = self.page.locator(f"#{chart} .plot").locator(MARKS)
        drawn = marks.evaluate_all("marks => marks.map(mark => mark.getAttribute('d') || mark.href.baseVal)")
        return f"{drawn} {self.page.inner_text(f'#{chart} figcaption p')}"

    def overflow(self) -> int:
        """Pixels that the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
