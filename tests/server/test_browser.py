"""A real browser on a real server: the console and the documentation work under their security headers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from tests.console.conftest import chromium
from tests.server.conftest import Server

REVIEW = "the pasta was tasty , the waiter was rude ."


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A fresh page; the test fails if the browser reports an error, such as a refused script."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, locale="en-GB", timezone_id="UTC")
    page.set_default_timeout(30_000)
    complaints: list[str] = []

    def on_message(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            complaints.append(f"{message.type}: {message.text} ({message.location['url']})")

    page.on("console", on_message)
    page.on("pageerror", lambda error: complaints.append(f"uncaught: {error}"))
    page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    yield page
    page.close()
    assert complaints == []


def read(page: Page, server: Server) -> None:
    page.goto(server.url)
    page.get_by_role("heading", name="tiny-reviews").wait_for()
    page.get_by_label("Text to read").fill(REVIEW)
    page.get_by_role("button", name="Read it").click()
    page.get_by_role("heading", name="The answer, and why").wait_for()


def test_console_reads_a_review(page: Page, server: Server) -> None:
    read(page, server)
    [answer] = server.predict(REVIEW)["predictions"]
    for concept in answer["concepts"]:
        heading = page.get_by_role("article", name=f"Concept {concept['name']}").get_by_role("heading")
        expect(heading).to_have_text(f"{concept['name']} {concept['value']}")


@pytest.mark.parametrize("level", ["concept", "mask"])
def test_console_corrects_a_concept_and_compares(page: Page, server: Server, level: str) -> None:
    [answer] = server.predict(REVIEW)["predictions"]
    food = next(concept["value"] for concept in answer["concepts"] if concept["name"] == "food")
    other = "Negative" if food == "Positive" else "Positive"
    note = f"from the browser, at {level} level"
    read(page, server)
    page.get_by_label("food", exact=True).select_option(other)
    page.get_by_role("radio", name=f"{level.capitalize()} level").check()
    page.get_by_label("Note").fill(note)
    page.get_by_role("button", name="Correct and answer again").click()
    compared = page.get_by_role("region", name="What your correction changed")
    expect(compared.get_by_role("row", name="food")).to_contain_text(food)
    newest = server.get("/v1/interventions")["interventions"][0]
    assert (newest["note"], newest["outcome"]["corrections"]) == (note, {"food": other})
    expect(compared.get_by_role("link", name=newest["id"])).to_be_visible()


def test_documentation_shows_the_operations(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/docs")
    operations = page.locator(".opblock-summary-path")
    paths = server.get("/openapi.json")["paths"]
    expect(operations).to_have_count(sum(len(methods) for methods in paths.values()))
    assert {text.replace("\u200b", "") for text in operations.all_inner_texts()} == set(paths)
