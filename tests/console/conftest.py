"""A running stand-in server and a real browser, for the console's tests."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import uvicorn
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, sync_playwright

from .fake_server import Switches, create_app

NAMES = ["chromium", "chromium-browser", "google-chrome"]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Console:
    """The open page, what its server was asked, and whatever the browser complained of."""

    page: Page
    url: str
    server: Switches
    complaints: list[str] = field(default_factory=list)

    def open(self) -> Page:
        self.page.goto(self.url)
        self.page.get_by_role("heading", name="restaurant-reviews").wait_for()
        return self.page

    def read(self, text: str) -> None:
        self.page.get_by_label("Text to read").fill(text)
        self.page.get_by_role("button", name="Read it").click()
        self.page.get_by_role("heading", name="The answer, and why").wait_for()


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser. While one is open, its thread can run neither another nor an event loop."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed, and CHROMIUM names none")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def server() -> Iterator[tuple[str, Switches]]:
    switches = Switches()
    config = uvicorn.Config(create_app(switches), host="127.0.0.1", port=0, log_level="warning")
    service = uvicorn.Server(config)
    thread = threading.Thread(target=service.run, daemon=True)
    thread.start()
    give_up = time.monotonic() + 20
    while not service.started:
        if time.monotonic() > give_up or not thread.is_alive():
            raise RuntimeError("the stand-in server did not start")
        time.sleep(0.01)
    port = service.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/", switches
    service.should_exit = True
    service.force_exit = True
    thread.join(10)


@pytest.fixture
def console(browser: Browser, server: tuple[str, Switches]) -> Iterator[Console]:
    """The console in a fresh page; the test fails if the browser reports an error, expected or not.

    A test that provokes an error empties ``complaints`` itself.
    """
    url, switches = server
    page = browser.new_page(viewport={"width": 1280, "height": 900}, locale="en-GB", timezone_id="UTC")
    page.set_default_timeout(10_000)
    opened = Console(page=page, url=url, server=switches)

    def on_message(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            opened.complaints.append(f"{message.type}: {message.text}")

    def on_error(error: Error) -> None:
        opened.complaints.append(f"uncaught: {error}")

    page.on("console", on_message)
    page.on("pageerror", on_error)
    yield opened
    page.close()
    assert opened.complaints == []
