"""Debian's Chromium for tests that open a page, and what a page said meanwhile."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass, field

import pytest

PATH = shutil.which("chromium") or shutil.which("chromium-browser")
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
needed = [
    pytest.mark.browser,
    pytest.mark.skipif(PATH is None, reason="no chromium here (Debian's package of that name)"),
]


@dataclass
class Heard:
    """What happened while a page was open: messages, errors, requests, dialogs."""

    messages: list = field(default_factory=list)
    requests: list = field(default_factory=list)
    dialogs: list = field(default_factory=list)

    def listen(self, page):
        page.on("console", lambda message: self.messages.append(message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))


@contextlib.contextmanager
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PATH, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def opened(browser, address, width=1280, scheme="light"):
    """A page that is ready, and what was heard while it opened."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True
    )
    page, heard = context.new_page(), Heard()
    heard.listen(page)
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    page.wait_for_timeout(100)
    return page, heard
