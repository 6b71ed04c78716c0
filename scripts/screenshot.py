"""A picture of a compare page, as Debian's Chromium shows it.

    python scripts/screenshot.py PAGE.html OUT.png [--width 1280] [--height 900] [--dark] [--whole]
        [--view 'colour=seed&step=100']

``--view`` is what the page keeps in its address after ``#``. Needs the package playwright (in the
extra ``dev``) and a ``chromium`` on the path.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

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


def main():
    """Take the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--whole", action="store_true", help="down to the end of the page")
    parser.add_argument("--view", default="")
    options = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None or not options.page.is_file():
        sys.exit(f"screenshot: no {'chromium on the path' if chromium is None else options.page}")

    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(
            viewport={"width": options.width, "height": options.height},
            color_scheme="dark" if options.dark else "light",
        )
        page.goto(options.page.absolute().as_uri() + (f"#{options.view}" if options.view else ""))
        page.wait_for_selector("body[data-ready]")
        page.wait_for_timeout(300)
        page.screenshot(path=options.out, full_page=options.whole)
        browser.close()


if __name__ == "__main__":
    main()
