"""Pages of a written project, and a real browser to open them in."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from written import write_project

from udaseg import params
from udaseg.report.report import write_report

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@pytest.fixture(scope="module")  # while it runs, nothing else in this process can start an event loop
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium found; on Debian: apt-get install chromium")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=ARGUMENTS, timeout=120_000)
        yield chromium
        chromium.close()


@pytest.fixture
def watch(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a file in a new window; the test fails if the page asks for anything, or says what holds no word of `quiet`."""
    contexts: list[Any] = []
    heard: list[str] = []
    asked: list[str] = []

    def window(file: Path, quiet: tuple[str, ...] = (), **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, "offline": True} | options)
        context.set_default_timeout(120_000)  # a busy machine is no failure
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: any(word in message.text for word in quiet) or heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(f"error: {error}"))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        return page

    yield window
    for context in contexts:
        context.close()
    assert not heard
    assert not [url for url in asked if not url.startswith(("file:", "data:"))]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a project with two seeds."""
    folder = tmp_path_factory.mktemp("finished")
    file = write_project(folder, seeds=(0, 1))
    with contextlib.chdir(folder):
        write_report(params.load(), "streets")
    return file
