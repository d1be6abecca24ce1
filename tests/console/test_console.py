"""The console in a real browser: read, correct, compare; whatever the text, the window or the server does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fastapi.responses import HTMLResponse
from playwright.sync_api import Browser, Page, Route, expect

from .conftest import Console
from .fake_server import CONSOLE, TRUNCATED_FROM, Switches

REVIEW = "The risotto was rich, but our waiter was rude."
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
CONTRAST = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")


def correct(console: Console, corrections: dict[str, str], level: str = "Concept level", note: str = "") -> None:
    page = console.page
    for concept, value in corrections.items():
        page.get_by_label(concept, exact=True).select_option(value)
    page.get_by_role("radio", name=level).check()
    page.get_by_label("Note").fill(note)
    page.get_by_role("button", name="Correct and answer again").click()


def test_header_names_model_and_docs(console: Console) -> None:
    page = console.open()
    expect(page.locator("header")).to_contain_text("3f9c0a51")
    expect(page.get_by_role("link", name="API docs")).to_have_attribute("href", "docs")
    page.get_by_role("button", name="About this model").click()
    expect(page.locator("#card")).to_contain_text("evaluation · dev · label · accuracy")
    expect(page.locator("#card")).to_contain_text("0.684")


def test_answer_shows_label_concepts_words_and_units(console: Console) -> None:
    page = console.open()
    console.read(REVIEW)
    expect(page.get_by_role("list", name="Label: probability of each label").get_by_role("listitem")).to_have_count(5)
    service = page.get_by_role("article", name="Concept service")
    expect(service.get_by_role("heading")).to_have_text("service Negative")
    expect(service.get_by_role("list", name="probability of each value").get_by_role("listitem")).to_have_count(3)
    expect(service.locator("mark.for")).to_have_text(["waiter", "rude"])
    food = page.get_by_role("article", name="Concept food")
    expect(food.locator("mark.for")).to_have_text(["risotto", "rich"])
    service.get_by_text("Contribution to label").click()
    expect(service.locator(".contribution li")).to_have_count(5)
    service.get_by_text("31 % of units").click()
    expect(service.get_by_role("table")).to_contain_text("Attention heads")
    assert console.server.requests == [("predict", {"inputs": [REVIEW], "explain": ["tokens", "subnetwork"]})]


@pytest.mark.parametrize("level", ["concept", "mask"])
def test_round_trip(console: Console, level: str) -> None:
    page = console.open()
    expect(page.get_by_text("None yet.")).to_be_visible()
    page.get_by_role("button", name="Bland fish").click()
    page.get_by_role("article", name="Concept food").wait_for()
    correct(console, {"food": "Positive"}, f"{level.capitalize()} level", "Only the portion was small.")

    compared = page.get_by_role("region", name="What your correction changed")
    expect(compared).to_contain_text("Label 3 → 5; food Negative → Positive.")
    expect(compared.get_by_role("row", name="food")).to_have_class("flipped")
    expect(compared.get_by_role("row", name="food")).to_contain_text("corrected")
    expect(compared.get_by_role("row", name="service")).not_to_contain_text("flipped")
    expect(compared.get_by_role("link", name="019b8e3c-7a10-7c4e-9d52-000000000001")).to_be_visible()
    if level == "mask":
        expect(compared).to_contain_text("12 units dropped, 4 grown")
        expect(compared).to_contain_text("food, layer 4: 4 dropped, 1 grown")
        compared.get_by_text("Every edited unit").click()
        expect(compared).to_contain_text("dropped neurons: 420, 631, 1053, 1264")
    else:
        expect(compared).not_to_contain_text("units dropped")

    recent = page.get_by_role("region", name="Recent corrections").locator("#recent-list > li")
    expect(recent).to_have_count(1)
    for part in [
        "5 Jan 2026, 12:01",
        f"{level} level",
        "label 3 → 5",
        "The fish was bland",
        "Only the portion",
    ]:
        expect(recent).to_contain_text(part)
    _, sent = console.server.requests[-1]
    assert sent["record"] is True
    assert sent["inputs"][0]["corrections"] == {"food": "Positive"}
    assert sent["inputs"][0]["level"] == level
    assert sent["inputs"][0]["note"] == "Only the portion was small."


def test_corrects_several_concepts_at_once(console: Console) -> None:
    page = console.open()
    console.read(REVIEW)
    correct(console, {"service": "Positive", "noise": "Negative"})
    expect(page.locator("#compare tr.flipped")).to_have_count(2)
    assert console.server.requests[-1][1]["inputs"][0]["corrections"] == {
        "service": "Positive",
        "noise": "Negative",
    }


def test_says_so_where_the_edit_did_not_reach_the_value(console: Console) -> None:
    page = console.open()
    console.read(REVIEW)
    console.server.reached = False
    correct(console, {"service": "Positive"}, "Mask level")
    expect(page.locator("#compare")).to_contain_text(
        "The edit was not enough: service still does not read as you said."
    )
    expect(page.locator("#recent-list")).to_contain_text("not reached")


def test_correcting_nothing_is_refused_in_place(console: Console) -> None:
    page = console.open()
    console.read(REVIEW)
    correct(console, {})
    expect(page.get_by_role("alert")).to_contain_text("Nothing is corrected yet")
    assert [route for route, _ in console.server.requests] == ["predict"]


def test_hint_leads_to_the_concept_worth_checking(console: Console) -> None:
    page = console.open()
    console.read(REVIEW)
    page.get_by_text("Worth checking first").get_by_role("button", name="ambiance").click()
    expect(page.get_by_label("ambiance", exact=True)).to_be_focused()


@pytest.mark.parametrize(
    "text",
    [
        f"{HOSTILE} rude",
        f"rude {HOSTILE}",
        "👩‍👩‍👧 🤷🏽‍♀️ 🍝🍝 rude 🍝 waiter",
        "שירות איטי 🍝 rude מאוד",
        "\u202ereversed\u202c rude e\u0301te\u0301",
    ],
    ids=["html-before", "html-after", "emoji", "rtl", "controls"],
)
def test_hostile_text_is_shown_literally_and_marked_in_place(console: Console, text: str) -> None:
    page = console.open()
    console.read(text)
    service = page.get_by_role("article", name="Concept service")
    assert service.locator(".marked").text_content() == text
    assert [mark for mark in service.locator("mark").all_text_contents() if mark in WORDS] == [
        word for word in re.findall(r"\w+", text) if word in WORDS
    ]
    correct(console, {"service": "Positive"}, "Mask level", f"because {HOSTILE}")
    page.locator("#recent-list li").first.wait_for()
    assert page.locator("#recent-list .record-text").text_content() == text
    assert page.locator("#recent-list .record-note").text_content() == f"because {HOSTILE}"
    assert page.locator("img, main script").count() == 0
    assert page.title() == "restaurant-reviews · SparseCBM"


WORDS = {"rude", "waiter"}


def test_error_is_shown_in_the_servers_words_and_goes_with_the_next_answer(console: Console) -> None:
    page = console.open()
    message = "Input 0 has 9000 tokens; at most 512 <b>are</b> read."
    error = {"error": {"type": "invalid_input", "message": message, "detail": {"tokens": 9000}}}
    console.server.failures.append((422, error))
    page.get_by_label("Text to read").fill(REVIEW)
    page.get_by_role("button", name="Read it").click()
    expect(page.get_by_role("alert")).to_contain_text(message)
    page.get_by_role("alert").get_by_text("Details").click()
    expect(page.get_by_role("alert")).to_contain_text('"tokens": 9000')
    expect(page.get_by_role("button", name="Read it")).to_be_enabled()
    assert [complaint for complaint in console.complaints if "422" not in complaint] == []
    console.complaints.clear()
    console.read(REVIEW)
    expect(page.locator("#alert")).to_be_hidden()


def test_error_in_the_place_of_the_answer_is_shown(console: Console) -> None:
    page = console.open()
    message = "Input 0: the text has 90000 characters; it may have at most 20000."
    failed = {"id": "0", "error": {"type": "too_large", "message": message, "detail": {"limit": 20000}}}
    console.server.failures.append((200, {"model": "m", "version": "v", "predictions": [failed]}))
    page.get_by_label("Text to read").fill(REVIEW)
    page.get_by_role("button", name="Read it").click()
    expect(page.get_by_role("alert")).to_contain_text(message)
    page.get_by_role("alert").get_by_text("Details").click()
    expect(page.get_by_role("alert")).to_contain_text('"limit": 20000')


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (502, HTMLResponse("<h1>Bad gateway</h1>", 502), "status 502"),
        (200, HTMLResponse("hello", 200), "not JSON"),
        (200, {"predictions": [{"label": None}]}, "not of the form"),
    ],
    ids=["gateway", "not-json", "other-json"],
)
def test_answer_that_is_none_is_an_error(console: Console, status: int, body: object, said: str) -> None:
    page = console.open()
    console.server.failures.append((status, body))
    page.get_by_label("Text to read").fill(REVIEW)
    page.get_by_role("button", name="Read it").click()
    expect(page.get_by_role("alert")).to_contain_text(said)
    expect(page.get_by_role("heading", name="The answer, and why")).to_be_hidden()
    console.complaints.clear()


def test_failed_correction_keeps_the_answer_and_the_choice(console: Console) -> None:
    page = console.open()
    console.read(REVIEW)
    page.route("**/v1/intervene", lambda route: route.abort())
    correct(console, {"service": "Positive"})
    expect(page.get_by_role("alert")).to_contain_text("The server could not be reached.")
    expect(page.get_by_role("article", name="Concept service")).to_be_visible()
    assert page.get_by_label("service", exact=True).locator("option:checked").text_content() == "Positive"
    console.complaints.clear()


def test_page_works_without_model_card_or_ledger(console: Console) -> None:
    def refuse(route: Route) -> None:
        message = {"error": {"type": "forbidden", "message": "This needs a key.", "detail": None}}
        route.fulfill(status=403, content_type="application/json", body=json.dumps(message))

    console.page.route("**/v1/model", refuse)
    console.page.route("**/v1/interventions?*", refuse)
    console.page.goto(console.url)
    expect(console.page.get_by_role("alert")).to_contain_text("This needs a key.")
    console.read(REVIEW)
    expect(console.page.get_by_role("article")).to_have_count(4)
    console.complaints.clear()


KEY = "sparsecbm_of-the-test"


def open_with_key(console: Console, key: str = KEY) -> Page:
    """The page of a server that needs a key, after one was entered; it had complained of the answer without."""
    console.server.key = KEY
    console.page.goto(console.url)
    console.page.get_by_role("region", name="Your key").wait_for()
    enter_key(console, key)
    return console.page


def enter_key(console: Console, key: str) -> None:
    console.page.get_by_label("Key", exact=True).fill(key)
    console.page.get_by_role("button", name="Use this key").click()


def test_key_is_asked_for_in_the_servers_words(console: Console) -> None:
    console.server.key = KEY
    console.page.goto(console.url)
    expect(console.page.get_by_role("region", name="Your key")).to_contain_text("This needs a key.")
    expect(console.page.get_by_label("Key", exact=True)).to_be_focused()
    expect(console.page.locator("#alert")).to_be_hidden()
    console.complaints.clear()


def test_key_lets_the_page_read_and_correct(console: Console) -> None:
    page = open_with_key(console)
    page.get_by_role("heading", name="restaurant-reviews").wait_for()
    expect(page.locator("#key")).to_be_hidden()
    console.read(REVIEW)
    correct(console, {"service": "Positive"})
    expect(page.locator("#compare")).to_contain_text("in the ledger as 019b8e3c")
    expect(page.locator("#compare").get_by_role("link")).to_have_count(0)  # it would send no key
    console.complaints.clear()


def test_key_that_is_not_known_is_asked_for_again(console: Console) -> None:
    page = open_with_key(console, "sparsecbm_wrong")
    expect(page.get_by_role("region", name="Your key")).to_contain_text("The key is not known.")
    enter_key(console, KEY)
    page.get_by_role("heading", name="restaurant-reviews").wait_for()
    console.complaints.clear()


def test_key_outlives_a_reload_and_is_in_the_tabs_own_storage_alone(console: Console) -> None:
    page = open_with_key(console)
    page.get_by_role("heading", name="restaurant-reviews").wait_for()
    page.reload()
    page.get_by_role("heading", name="restaurant-reviews").wait_for()
    kept = page.evaluate("[JSON.stringify(localStorage), document.cookie, location.href, document.body.outerHTML]")
    assert not [place for place in kept if KEY in place]
    console.complaints.clear()


def test_forgotten_key_is_gone_with_what_it_showed(console: Console) -> None:
    page = open_with_key(console)
    page.get_by_role("heading", name="restaurant-reviews").wait_for()
    page.get_by_role("button", name="Forget the key").click()
    page.get_by_role("region", name="Your key").wait_for()
    expect(page.get_by_role("heading", name="restaurant-reviews")).to_have_count(0)
    assert page.evaluate("sessionStorage.length") == 0
    console.complaints.clear()


def test_server_without_keys_asks_for_none(console: Console) -> None:
    page = console.open()
    expect(page.locator("#key")).to_be_hidden()
    expect(page.get_by_role("button", name="Forget the key")).to_be_hidden()


def test_empty_text_is_not_sent(console: Console) -> None:
    page = console.open()
    page.get_by_label("Text to read").fill(" \n ")
    page.get_by_role("button", name="Read it").click()
    expect(page.get_by_role("alert")).to_contain_text("There is nothing to read yet")
    assert console.server.requests == []


def test_busy_buttons_are_disabled_and_keep_the_focus(console: Console) -> None:
    page = console.open()
    console.server.delays.append(0.6)
    page.get_by_label("Text to read").fill(REVIEW)
    page.get_by_role("button", name="Read it").press("Enter")
    expect(page.get_by_role("button", name="Reading…")).to_be_disabled()
    expect(page.get_by_role("button", name="Read it")).to_be_enabled()
    expect(page.get_by_role("button", name="Read it")).to_be_focused()


def test_answer_to_an_older_request_is_ignored(console: Console) -> None:
    page = console.open()
    console.server.delays.extend([0.8, 0.0])
    page.get_by_role("button", name="Bland fish").click()
    expect(page.get_by_role("button", name="Reading…")).to_be_disabled()
    with page.expect_response(lambda response: "Candles" in (response.request.post_data or "")):
        page.get_by_role("button", name="Rude waiter").click()
        page.get_by_role("article", name="Concept food").wait_for()
    page.wait_for_timeout(200)
    expect(page.locator(".marked").first).to_contain_text("The risotto was rich")


def test_changed_text_must_be_read_again_before_it_is_corrected(console: Console) -> None:
    page = console.open()
    console.read(REVIEW)
    page.get_by_label("Text to read").fill("Something else.")
    expect(page.get_by_role("button", name="Correct and answer again")).to_be_disabled()
    expect(page.get_by_text("The text above has changed")).to_be_visible()


def test_truncated_text_is_said_to_be(console: Console) -> None:
    page = console.open()
    console.read("rude " * (TRUNCATED_FROM // 4))
    expect(page.get_by_text("longer than the model reads")).to_be_visible()


def test_keyboard_alone_does_the_round_trip(console: Console) -> None:
    page = console.open()
    page.get_by_label("Text to read").focus()
    page.keyboard.type(REVIEW)
    page.keyboard.press("Control+Enter")
    page.get_by_role("article", name="Concept food").wait_for()
    page.get_by_label("service", exact=True).focus()
    page.keyboard.press("p")
    page.get_by_role("radio", name="Concept level").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("Answered again. Label")
    assert console.server.requests[-1][1]["inputs"][0]["level"] == "mask"


def test_ledger_is_paged(console: Console) -> None:
    page = console.open()
    console.read(REVIEW)
    for number in range(12):
        correct(console, {"service": "Positive"}, note=f"note {number + 1} of 12")
        expect(page.locator("#recent-list .record-note").first).to_have_text(f"note {number + 1} of 12")
    expect(page.locator("#recent-list > li")).to_have_count(10)
    page.get_by_role("button", name="Show older").click()
    expect(page.locator("#recent-list > li")).to_have_count(12)
    expect(page.locator("#recent-list .record-note").last).to_have_text("note 1 of 12")
    expect(page.locator("#more")).to_be_hidden()


@pytest.mark.parametrize("width", [360, 899, 1280])
def test_nothing_scrolls_sideways(console: Console, width: int) -> None:
    page = console.page
    page.set_viewport_size({"width": width, "height": 740})
    console.open()
    console.read(f"{'A' * 400} rude 🍝 {'שירות ' * 40}")
    correct(console, {"service": "Positive", "food": "Negative"}, "Mask level", "n" * 300)
    page.locator("#recent-list li").first.wait_for()
    page.get_by_role("button", name="About this model").click()
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(browser: Browser, server: tuple[str, Switches], scheme: str) -> None:
    """Every visible text reaches WCAG's AA ratio of 4.5 on what lies behind it."""
    url, switches = server
    page = browser.new_page(color_scheme="dark" if scheme == "dark" else "light")
    console = Console(page=page, url=url, server=switches)
    console.open()
    console.read(REVIEW)
    switches.reached = False
    correct(console, {"food": "Negative"}, "Mask level")
    page.locator("#recent-list li").first.wait_for()
    page.get_by_role("button", name="About this model").click()
    for summary in page.locator("summary").all():
        summary.click()
    switches.reached = True
    correct(console, {}, "Mask level", "fine")
    page.locator("#recent-list li").nth(1).wait_for()
    page.evaluate("document.activeElement.blur()")
    page.mouse.move(0, 0)
    assert page.evaluate(CONTRAST) == []
    page.close()


def test_files_hold_nothing_inline_and_nothing_from_elsewhere() -> None:
    page = (CONSOLE / "index.html").read_text(encoding="utf-8")
    script = (CONSOLE / "console.js").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)
    for name in ["index.html", "console.js", "console.css"]:
        assert not re.search(r"https?:|@import|url\(", (CONSOLE / name).read_text(encoding="utf-8"))
    for sink in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("]:
        assert sink not in script
