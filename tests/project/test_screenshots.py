"""Pages of the site in a browser: none is wider than a phone, dark mode is dark. Pictures go to runs/screenshots."""

from pathlib import Path

import pytest

import browser

ROOT = Path(__file__).parents[2]
SITE = ROOT / "runs/site"
PAGES = [
    *("start", "index", "penalties", "rules", "budget", "strengths", "migrating", "architecture", "howto/pictures"),
    *("gallery/index", "gallery/f_gpt", "gallery/m_pictures", "api/index", "api/training"),
    *("api/names/shrinkage.GroupLasso", "api/names/shrinkage.Regularizer"),
]
WIDTHS = (400, 1200)
BRIGHTNESS = """
(() => {
    const shown = [...document.querySelectorAll("body, .bd-article")].map(each => getComputedStyle(each));
    const lightness = colour => colour.match(/[\\d.]+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 765;
    return {background: lightness(shown[0].backgroundColor), text: lightness(shown.at(-1).color)};
})()
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.found() is None, reason="no Chromium on this system"),
    pytest.mark.skipif(not SITE.exists(), reason="`make site` was not run"),
]


@pytest.fixture(scope="module")
def window():
    with browser.Browser() as opened:
        yield opened


def wide(page):
    """What makes a page wider than its window, if anything does."""
    return page.value(
        "document.documentElement.scrollWidth > innerWidth ? [...document.querySelectorAll('main *')]"
        ".filter(each => each.getBoundingClientRect().right > innerWidth + 1).slice(0, 3)"
        ".map(each => each.outerHTML.slice(0, 200)) : null"
    )


def test_no_page_is_wider_than_a_phone(window):
    leads_on = SITE / "index.html"  # to another page
    pages = [page for page in sorted(SITE.rglob("*.html")) if "_static" not in page.parts and page != leads_on]
    assert len(pages) > 100
    found = {page.relative_to(SITE): wide(window.open(page, width=WIDTHS[0])) for page in pages}
    assert not {page: what for page, what in found.items() if what}


def test_what_names_stand_for_is_seen_on_a_phone(window):
    pages = sorted((SITE / "docs/api").glob("*.html"))
    assert len(pages) > 5
    tables = "[...document.querySelectorAll('table.autosummary')].map(each => each.scrollWidth - each.clientWidth)"
    assert not {page.name: over for page in pages if any(over := window.open(page, width=WIDTHS[0]).value(tables))}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_pages_can_be_read_in_light_and_in_dark(window, name, dark):
    folder = ROOT / "runs/screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    for width in WIDTHS:
        page = window.open(SITE / f"docs/{name}.html", width=width, dark=dark)
        assert not wide(page)
        shown = page.value(BRIGHTNESS)
        assert (shown["background"] < 0.3) == dark
        assert abs(shown["background"] - shown["text"]) > 0.5
        path = folder / f"{name.replace('/', '_')}_{width}_{'dark' if dark else 'light'}.png"
        path.write_bytes(page.picture())
