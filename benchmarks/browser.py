"""Browser: a headless Chromium, by its own driver or by that of the package `chromedriver-py`."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE = 120
"""Seconds in which a page is loaded, and in which a script has ended."""
ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars")


def driver() -> str | None:
    """Where the driver is; None where there is none."""
    try:
        return shutil.which("chromedriver") or importlib.import_module("chromedriver_py").binary_path
    except ImportError:
        return None


@contextmanager
def browser(width: int, height: int) -> Iterator[Any]:
    """A window of so many pixels. What the page asks for, and what it logs, is recorded."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in (*ARGUMENTS, f"--window-size={width},{height}"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made = webdriver.Chrome(options, webdriver.ChromeService(driver()))
    made.set_page_load_timeout(PATIENCE)
    made.set_script_timeout(PATIENCE)
    try:
        yield made
    finally:
        made.quit()
