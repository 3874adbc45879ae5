"""Pictures of the search page: `python -m benchmarks.page_pictures` writes docs/pictures/search*.png.

The how-to pages of this project are indexed by the default recipe, served, and asked in a headless Chromium: in light, in dark,
and on a narrow screen.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.browser import PATIENCE, browser
from benchmarks.served import serving
from tokensieve.retrieval.index.library import Library
from tokensieve.retrieval.index.sync import mirror

DOCS = Path(__file__).parent.parent / "docs"
QUERY = "q=how+many+tokens+are+kept+in+the+cache"
PICTURES = (
    ("search", 1000, "light", QUERY),
    ("search-dark", 1000, "dark", f"{QUERY}&fuse=rrf"),
    ("search-narrow", 390, "light", f"{QUERY}&keep=50"),
)
HEIGHT = 1150


def main() -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    with TemporaryDirectory() as folder:
        at = Path(folder) / "index"
        library = Library.create(at)
        mirror(library, DOCS / "how-to")
        library.close()
        with serving(at, "--no-log") as (_, port), browser(1000, HEIGHT) as page:
            for name, width, scheme, asked in PICTURES:
                size = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
                page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                prefers = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
                page.execute_cdp_cmd("Emulation.setEmulatedMedia", prefers)
                page.get("about:blank")
                page.get(f"http://127.0.0.1:{port}/#{asked}")
                WebDriverWait(page, PATIENCE).until(lambda d: "compared by" in d.find_element("id", "status").text)
                page.save_screenshot(str(DOCS / f"pictures/{name}.png"))


if __name__ == "__main__":
    main()
