"""The page of `purity report` in a real browser: what clicks and keys do, what it asks for, and how it fits.

One browser for all of it. `.ci/run` installs chromium where it can.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from purity_cli.report import FORMATS, to_csv
from purity_cli.views.diff import StoredResult, diff
from purity_cli.views.page import page
from tests.report.browser import Browser, installed
from tests.report.test_report_page import HOSTILE, found, results, training
from tests.views import made

PROGRAM = installed()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no chromium here: apt-get install chromium brings it")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page, a hostile one, and one of a diff."""
    folder = tmp_path_factory.mktemp("pages")
    long = replace(made.result("net" * 20, [*made.stages(5), *made.long_names(6)]), dataset="net set")
    nasty = [*results(2, name=HOSTILE), replace(made.result("net", made.stages(3)), dataset=f"{HOSTILE} set")]
    old, new = (
        [StoredResult(Path("a"), replace(made.result("net", made.stages(5, seed=seed)), weights=HOSTILE))]
        for seed in (0, 1)
    )
    reports = {
        "page": page(found([*results(), long], training()), 0.5),
        "hostile": page(found(nasty, training(HOSTILE)), 0.5, failures=[HOSTILE]),
        "diff": diff(old, new).report(),
    }
    for name, report in reports.items():
        (folder / f"{name}.html").write_text(FORMATS["html"](report), "utf-8")
        (folder / f"{name}.csv").write_text(to_csv(report), "utf-8")
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    one = Browser(PROGRAM, tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


def said(browser: Browser) -> list[dict[str, Any]]:
    """Errors, whatever the page wrote to its console, and dialogues."""
    kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded", "Page.javascriptDialogOpening")
    return [event for event in browser.events if event["method"] in kinds]


def requests(browser: Browser) -> list[str]:
    return [
        event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"
    ]


def column(browser: Browser, key: str) -> list[str]:
    """What a column of the first table shows, of the rows that are shown."""
    found: list[str] = browser[
        f"""(() => {{
            const table = document.querySelector('table'), heads = [...table.tHead.rows[0].cells];
            const at = heads.findIndex(head => head.dataset.key === '{key}');
            return [...table.tBodies[0].rows].filter(row => row.checkVisibility())
                .map(row => row.cells[at].dataset.value ?? row.cells[at].textContent.trim());
        }})()"""
    ]
    return found


def order(browser: Browser, key: str) -> str | None:
    value: str | None = browser[f"document.querySelector('table th[data-key={key}]').getAttribute('aria-sort')"]
    return value


@pytest.mark.parametrize("name", ["page", "hostile", "diff"])
def test_it_opens_in_silence_and_asks_for_nothing(browser: Browser, pages: Path, name: str) -> None:
    browser.open(pages / f"{name}.html")
    browser["document.querySelectorAll('details').forEach(one => { one.open = true; })"]
    assert requests(browser) == [(pages / f"{name}.html").as_uri()]
    assert said(browser) == []
    assert not browser["document.querySelectorAll('img, iframe, object, embed, link, [onerror], [onload]').length"]


@pytest.mark.parametrize("name", ["page", "hostile", "diff"])
@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_is_wider_than_the_window(browser: Browser, pages: Path, name: str, width: int) -> None:
    browser.open(pages / f"{name}.html", width=width)
    browser["document.querySelectorAll('details').forEach(one => { one.open = true; })"]
    over = browser[
        """[...document.querySelectorAll('body *')].filter(one => one.checkVisibility()
            && !one.closest('.scroll, svg, .figures figure') && one.getBoundingClientRect().right > innerWidth + 1)
            .map(one => one.outerHTML.slice(0, 80))"""
    ]
    assert over == []
    assert browser["document.documentElement.scrollWidth"] == width


def test_sorting_by_clicks_and_keys(browser: Browser, pages: Path) -> None:
    browser.open(pages / "page.html")
    values = [float(one) for one in column(browser, "C2") if one not in ("", "NaN")]
    browser.click("th[data-key=C2] button")
    down = column(browser, "C2")
    assert down[: len(values)] == [str(one) for one in sorted(values, reverse=True)]  # NaN last, whichever way
    assert order(browser, "C2") == "descending"
    browser.click("th[data-key=C2] button")
    assert column(browser, "C2") == [str(one) for one in sorted(values)] + down[len(values) :]
    assert order(browser, "C2") == "ascending"
    # By the keyboard: the next button is reached by Tab, pressed by Enter and by the space bar.
    browser["document.querySelector('th[data-key=model] button').focus()"]
    browser.press("Enter")
    epochs = [f"net epoch {epoch}" for epoch in (1, 2, 10)]
    assert column(browser, "model") == [*epochs, *(f"net{i}" for i in range(4)), "net" * 20]
    assert (order(browser, "C2"), order(browser, "model")) == (None, "ascending")
    up = column(browser, "model")
    browser.press(" ")
    assert column(browser, "model") == up[::-1]
    browser.press("Tab")
    assert browser["document.activeElement.closest('th').dataset.key"] == "dataset"
    assert browser["getComputedStyle(document.activeElement).outlineStyle"] == "solid"


def test_filtering_choosing_columns_and_the_panels(browser: Browser, pages: Path) -> None:
    browser.open(pages / "page.html")
    everything = column(browser, "model")
    browser.click("input[type=search]")
    browser.type("epoch 10")
    assert column(browser, "model") == ["net epoch 10"] or len(column(browser, "model")) == 1
    assert browser["document.querySelector('output').value"] == f"1 of {len(everything)}"
    assert browser["[...document.querySelectorAll('details.panel')].filter(one => !one.hidden).length"] == 1
    browser["document.querySelector('input[type=search]').select()"]
    browser.type("no such thing")
    assert column(browser, "model") == []
    browser["document.querySelector('input[type=search]').select()"]
    browser.type(" ")
    assert column(browser, "model") == everything

    shown = "document.querySelector('table th[data-key={}]').checkVisibility()"
    assert browser[shown.format("C1")] is True
    assert browser[shown.format("weights")] is False
    browser.click(".choose summary")
    for key in ("C1", "weights"):
        at = browser[f"[...document.querySelector('table tr').cells].findIndex(one => one.dataset.key === '{key}')"]
        browser.click(f".choose input[value='{at}']")
    assert browser[shown.format("C1")] is False
    assert browser[shown.format("weights")] is True
    assert column(browser, "weights")[0] == "net.pth"
    browser.click(".choose summary")
    browser.click("table th a")
    assert browser["document.querySelector('details.panel').open"] is True


def test_any_two_columns_are_set_against_each_other(browser: Browser, pages: Path) -> None:
    browser.open(pages / "page.html")
    caption = "document.querySelector('.plot figcaption').textContent"
    dots = "document.querySelectorAll('.plot svg circle').length"
    assert browser["[...document.querySelectorAll('.plot select')].map(one => one.selectedOptions[0].text)"] == [
        "top-1", "last", "net set",
    ]  # fmt: skip
    assert browser[dots] == 4  # one of five has no accuracy
    assert browser[caption].startswith("last and top-1: Spearman's rank correlation ")
    assert browser[caption].endswith("n = 4.")
    choose = (
        "(([name, text]) => {{ const one = document.querySelector('.plot select.' + name);"
        "one.value = [...one.options].find(option => option.text === text).value;"
        "one.dispatchEvent(new Event('change', {{bubbles: true}})); }})({})"
    )
    browser[choose.format('["x", "rankme"]')]
    assert "rankme and last" in browser[caption] or "last and rankme" in browser[caption]
    browser[choose.format('["group", "photos"]')]
    assert browser[dots] == 0
    assert browser[caption] == "n = 0: too few or too alike to correlate."
    browser[choose.format('["x", "top-1"]')]
    assert browser[dots] == 3
    box = browser["(({x, y, width, height}) => [x, y, width, height])(document.querySelector('.plot svg').getBBox())"]
    assert box[0] >= -1
    assert box[0] + box[2] <= browser["document.querySelector('.plot svg').viewBox.baseVal.width"] + 1


def test_charts_are_drawn_when_a_panel_opens_and_strips_name_their_channels(browser: Browser, pages: Path) -> None:
    browser.open(pages / "page.html")
    drawn = "document.querySelectorAll('details.panel figure .chart').length"
    assert browser[drawn] == 0
    browser["document.querySelector('details.panel').open = true"]
    figures = browser[
        "document.querySelectorAll('details.panel')[0].querySelectorAll('figure.lines, .channels').length"
    ]
    assert figures > 2
    assert browser[f"new Promise(done => setTimeout(() => done({drawn}), 100))"] == figures
    strip = "document.querySelector('details.panel .channels svg')"
    counts = browser["JSON.parse(document.querySelector('details.panel .channels script').textContent).counts"]
    point = (
        f"(() => {{ const box = {strip}.getBoundingClientRect(); {strip}.dispatchEvent(new MouseEvent('mousemove', "
        f"{{clientX: box.left + box.width * 2.5 / {len(counts)}, clientY: box.top + 5}})); "
        f"return {strip}.querySelector('text').textContent; }})()"
    )
    assert browser[point].startswith(f"channel 2: {counts[2]} firings")
    browser[f"{strip}.dispatchEvent(new MouseEvent('click'))"]
    items = "[...document.querySelectorAll('details.panel .channels li')].slice(0, 1).map(one => one.textContent)"
    first = max(range(len(counts)), key=lambda i: counts[i])
    assert browser[f"new Promise(done => setTimeout(() => done({items}), 100))"][0].startswith(
        f"{first}: {counts[first]}"
    )


def test_the_link_is_the_csv(browser: Browser, pages: Path) -> None:
    for name in ("page", "diff"):
        browser.open(pages / f"{name}.html")
        link = "document.querySelector('a[download]').href.split('base64,')[1]"
        text = browser[f"new TextDecoder().decode(Uint8Array.from(atob({link}), one => one.charCodeAt(0)))"]
        assert text == (pages / f"{name}.csv").read_text("utf-8")
        values = column(browser, "last" if name == "page" else "new")
        assert all(value in text for value in values)
        assert len(values) > 4


def test_dark_and_print(browser: Browser, pages: Path) -> None:
    ground, ink = "getComputedStyle(document.body).backgroundColor", "getComputedStyle(document.body).color"
    try:
        browser.media(scheme="dark")
        browser.open(pages / "page.html")
        assert (browser[ground], browser[ink]) == ("rgb(20, 23, 27)", "rgb(230, 233, 237)")
        assert browser["getComputedStyle(document.querySelector('.chart text')).fill"] != "rgb(0, 0, 0)"
        browser.media("print", "dark")
        assert (browser[ground], browser[ink]) == ("rgb(255, 255, 255)", "rgb(0, 0, 0)")
        assert not browser[
            "[...document.querySelectorAll('.tools, nav, .downloads')].some(one => one.checkVisibility())"
        ]
        browser["dispatchEvent(new Event('beforeprint'))"]
        assert browser["[...document.querySelectorAll('details.panel')].every(one => one.open)"]
    finally:
        browser.media()
