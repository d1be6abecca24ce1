"""Takes a picture of one section of a report's page: report_picture.py REPORT.html HEADING FILE.png."""

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

report, heading, file = sys.argv[1:]

with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])
    page = browser.new_page(viewport={"width": 1000, "height": 1000}, device_scale_factor=1.25, color_scheme="light")
    page.goto(Path(report).resolve().as_uri())
    page.locator("section").filter(has=page.get_by_role("heading", name=heading, exact=True)).screenshot(path=file)
    browser.close()
