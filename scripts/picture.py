"""Takes the README's picture of the console from a running server: picture.py [URL] [FILE].

Reads a review, corrects a concept at mask level, and shows what changed. Leaves one correction in the server's ledger.
"""

import sys

from playwright.sync_api import sync_playwright

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/"
file = sys.argv[2] if len(sys.argv) > 2 else "docs/console.png"
REVIEW = "Good pizza. We waited long for the bill."

with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])
    page = browser.new_page(viewport={"width": 1280, "height": 1000}, device_scale_factor=1.25)
    page.goto(url)
    page.get_by_label("Text to read").fill(REVIEW)
    page.get_by_role("button", name="Read it").click()
    page.get_by_role("heading", name="The answer, and why").wait_for()
    page.get_by_label("service", exact=True).select_option("Positive")
    page.get_by_role("radio", name="Mask level").check()
    page.get_by_role("button", name="Correct and answer again").click()
    page.get_by_role("heading", name="What your correction changed").wait_for()
    page.wait_for_timeout(500)
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=file)
    browser.close()
