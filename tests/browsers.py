"""A real browser without a window: the system's Chromium, driven by playwright."""

from __future__ import annotations

import shutil

from limits import LIMIT

_LIMIT = 1000 * LIMIT  # ms
MISSING = "no Chromium: apt-get install chromium"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# WebGL by the processor: a machine that tests has no graphics card.
_OPTIONS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-dev-shm-usage")


def find_browser():
    """Return the path of a Chromium, or None."""
    return next((path for path in map(shutil.which, _NAMES) if path), None)


def start(playwright):
    """Return a browser."""
    return playwright.chromium.launch(executable_path=find_browser(), args=list(_OPTIONS), timeout=_LIMIT)


class Visit:
    """A page that was opened; `said` has what it said on the console, and `asked` what it asked the network for."""

    def __init__(self, browser, path, *, before="", **options):
        self.said, self.asked = [], []
        self.page = browser.new_context(**options).new_page()
        self.page.set_default_timeout(_LIMIT)
        if before:
            self.page.add_init_script(before)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_load_state("load")

    def run(self, script, argument=None):
        """Return what a script of ours gives there."""
        return self.page.evaluate(script, argument)
