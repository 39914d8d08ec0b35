"""The page in a real browser: Chromium without a network, driven by Playwright."""

from __future__ import annotations

import os
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_runs import make_run, right_answers

from nlora.report.write import write_report

pytestmark = pytest.mark.slow

TASKS = ("colors", "animals", "plants")
FIFTEEN = tuple(f"a long name {k}" for k in range(15))
EVIL = "<img src=x onerror=window.hacked=1>"


def chromium_path() -> str | None:
    """NLORA_CHROMIUM, or the system's Chromium or Chrome, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("NLORA_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser that is started once."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    with api.sync_playwright() as playwright:
        path = chromium_path()
        if path is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip(
                "there is no Chromium: apt-get install chromium, or playwright install chromium, "
                "or name one in NLORA_CHROMIUM"
            )
        # In containers tests run as root, for whom Chromium has no sandbox.
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Written pages by what they show."""
    root = tmp_path_factory.mktemp("pages")
    nlora = {"name": "nlora", "weight": 1e-5}
    runs = {
        "one": [make_run(root / "a", name="one", method=nlora, analyzed=True)],
        "fifteen": [make_run(root / "b", name="fifteen", tasks=FIFTEEN, analyzed=True)],
        "half": [make_run(root / "c", name="half", stages=2)],
        "evil": [
            make_run(
                root / "d", name=EVIL, tasks=(EVIL, "<b>b</b>".replace("/", ""), "c"), analyzed=True,
                label="<svg onload=window.hacked=1>", wrong="'\"><script>window.hacked=1</script>",
                sentence="{} </script><script>window.hacked=1</script><!-- <iframe src=x></iframe>",
            )
        ],
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("made_runs.right_answers", lambda task, stage, tasks: 18)
        runs["kept"] = [make_run(root / "e", name="kept", tasks=("w" * 90, "b"))]  # nothing was forgotten
    runs["seeds"] = [
        make_run(
            root / f"{name}{seed}",
            name=name,
            method=how,
            seed=seed,
            fewer=seed + (name == "inclora"),
            analyzed=True,
        )
        for name, how in (("inclora", "inclora"), ("nlora", nlora))
        for seed in (1, 2, 3)
    ]
    runs["several"] = [*runs["one"], *runs["fifteen"], *runs["half"]]
    return {name: write_report(folders, root / f"{name}.html") for name, folders in runs.items()}


class Opened:
    """A page with everything that it said or asked for."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.context.set_offline(True)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.said.append(request.url))
        self.page.goto(file.as_uri())
        assert self.said == [file.as_uri()]
        self.said.clear()

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def visible(self, selector: str) -> int:
        return sum(found.is_visible() for found in self.page.locator(selector).all())


@pytest.mark.parametrize("name", ["one", "fifteen", "half", "several", "seeds", "evil", "kept"])
def test_the_page_opens_without_messages_and_draws_every_figure(
    browser: Any, pages: dict[str, Path], name: str
) -> None:
    with Opened(browser, pages[name]) as opened:
        boxes = opened.page.eval_on_selector_all(
            "[role=tabpanel]:not(.closed) svg.figure, main > section > .body > figure svg.figure",
            "all => all.map(e => [e.getBoundingClientRect().width, e.querySelectorAll('text').length])",
        )
        drawn = [box for box in boxes if box[0] > 0]
        assert len(drawn) >= 3
        assert all(width > 200 and texts > 2 for width, texts in drawn)
        opened.page.mouse.wheel(0, 100_000)
        assert opened.said == []


@pytest.mark.parametrize("width", [390, 1280, 1920])
@pytest.mark.parametrize("name", ["one", "fifteen", "several", "seeds", "evil", "kept"])
def test_the_page_never_scrolls_sideways(browser: Any, pages: dict[str, Path], name: str, width: int) -> None:
    with Opened(browser, pages[name], viewport={"width": width, "height": 900}) as opened:
        for tab in opened.page.locator("[role=tab]").all():
            tab.click()
            assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        for details in opened.page.locator("summary").all():
            if details.is_visible():
                details.click()
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width


def test_tabs_follow_clicks_and_arrow_keys(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["one"]) as opened:
        tabs, shown = opened.page.locator("[role=tab]"), "[role=tabpanel]:visible"
        assert opened.page.locator(shown).count() == 1
        tabs.nth(1).click()
        assert opened.page.locator(shown).get_attribute("id") == "tab-layers"
        opened.page.keyboard.press("ArrowRight")
        assert opened.page.locator(shown).get_attribute("id") == "tab-kinds"
        opened.page.keyboard.press("Home")
        opened.page.keyboard.press("ArrowLeft")
        assert opened.page.locator(shown).get_attribute("id") == "tab-threshold"
        assert tabs.last.evaluate("e => document.activeElement === e")
        assert tabs.last.get_attribute("aria-selected") == "true"
        assert opened.page.locator("[role=tab][tabindex='0']").count() == 1


def test_examples_are_searched_filtered_and_shown_in_steps(browser: Any, pages: dict[str, Path]) -> None:
    lost = [right_answers(i, i, 15) - right_answers(i, 15, 15) for i in range(1, 15)]
    with Opened(browser, pages["fifteen"]) as opened:
        page = opened.page
        assert opened.visible("li.example") == 20
        page.click("#more")
        assert opened.visible("li.example") == 40
        page.select_option("select[name=task]", FIFTEEN[0])
        assert opened.visible("li.example") == min(lost[0], 20)
        page.fill("#search", "NUMBER 16")
        assert opened.visible("li.example") == 1
        assert "number 16" in page.locator("li.example:visible").inner_text()
        assert page.locator("#count").inner_text() == f"1 of 1 shown, of {sum(lost)} in the list."
        page.select_option("select[name=task]", "")
        for own_words in ("when learned", "expected", "at the end"):
            page.fill("#search", own_words)
            assert opened.visible("li.example") == 0, "the search is in the examples, not in the page's words"
        for answer in ("red", "blue", "painted"):
            page.fill("#search", answer)
            assert opened.visible("li.example") == 20
        page.fill("#search", "nowhere to be found")
        assert opened.visible("li.example") == 0
        assert page.locator("#count").inner_text() == "No example matches."


@pytest.mark.parametrize(("system", "other"), [("light", "dark"), ("dark", "light")])
def test_the_theme_follows_the_system_until_one_is_chosen(
    browser: Any, pages: dict[str, Path], system: str, other: str
) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    expected = {"light": "rgb(253, 252, 249)", "dark": "rgb(20, 24, 26)"}
    with Opened(browser, pages["one"], color_scheme=system) as opened:
        assert opened.page.evaluate(paper) == expected[system]
        opened.page.click("#theme")
        assert opened.page.evaluate(paper) == expected[other]
        assert opened.page.get_attribute("#theme", "aria-pressed") == str(other == "dark").lower()
        for _ in range(10):  # a busy browser writes what it stores a little later
            opened.page.reload()
            if opened.page.evaluate(paper) == expected[other]:
                break
        assert opened.page.evaluate(paper) == expected[other]


def test_no_script_in_the_data_runs(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["evil"]) as opened:
        for tab in opened.page.locator("[role=tab]").all():
            tab.click()
        assert opened.page.evaluate("window.hacked") is None
        assert (
            opened.page.evaluate("document.querySelectorAll('img, iframe, main script, main b').length") == 0
        )
        assert opened.page.locator("h1").inner_text() == EVIL
        first = opened.page.locator("li.example").first
        assert first.locator(".where").inner_text() == EVIL
        assert first.locator(".text").inner_text().endswith("<!-- <iframe src=x></iframe>")
        assert first.locator("dd").first.inner_text() == "<svg onload=window.hacked=1>"
        # Nor would it, had it come through: only the page's own scripts may run.
        opened.page.evaluate(
            "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=window.hacked=1>')"
        )
        assert opened.page.evaluate("document.body.lastElementChild.decode().catch(() => true)")
        assert opened.page.evaluate("window.hacked") is None


@pytest.mark.parametrize(("figure", "numbers"), [("loss", "step"), ("matrix-1", "90.0")])
def test_figures_are_saved_as_files(
    browser: Any, pages: dict[str, Path], tmp_path: Path, figure: str, numbers: str
) -> None:
    with Opened(browser, pages["one"], color_scheme="dark") as opened:
        for kind in ("svg", "png"):
            with opened.page.expect_download() as waiting:
                opened.page.click(f"#{figure} button[data-save={kind}]")
            assert waiting.value.suggested_filename == f"{figure}.{kind}"
            waiting.value.save_as(tmp_path / f"{figure}.{kind}")
    root = ET.parse(tmp_path / f"{figure}.svg").getroot()
    assert numbers in [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "#0b6b70" in (root.findtext("{http://www.w3.org/2000/svg}style") or "")  # light, whatever the page
    png = (tmp_path / f"{figure}.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20], "big") == pytest.approx(3 * float(root.attrib["width"]), abs=2)
    assert len(png) > 5000


def test_print_and_pages_without_scripts_show_everything(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["one"]) as opened:
        tabs = opened.page.locator("[role=tab]").count()
        opened.page.emulate_media(media="print", color_scheme="dark")
        assert opened.visible("[role=tabpanel]") == tabs
        assert opened.visible("button, nav") == 0
        assert opened.page.evaluate("getComputedStyle(document.body).color") == "rgb(29, 36, 38)"
    with Opened(browser, pages["one"], java_script_enabled=False) as plain:
        assert plain.visible("[role=tabpanel]") == tabs
        assert plain.visible("button") == 0
        assert plain.visible("li.example") == plain.page.locator("li.example").count()


def test_names_from_right_to_left_keep_their_order(browser: Any, tmp_path: Path) -> None:
    names = ("תרגום", "חדשות", "סרטים")
    run = make_run(tmp_path / "run", tasks=names, analyzed=True, sentence="שלום {}!")
    with Opened(browser, write_report([run], tmp_path / "page.html")) as opened:
        for selector in ("dl[aria-label='What was run'] dd", "#task-scores figcaption p"):
            places = opened.page.locator(selector, has_text=names[0]).evaluate(
                """(element, names) => names.map((name) => {
                    const texts = [...element.childNodes].filter((node) => node.textContent.includes(name));
                    const range = document.createRange();
                    range.setStart(texts[0], texts[0].textContent.indexOf(name));
                    range.setEnd(texts[0], texts[0].textContent.indexOf(name) + name.length);
                    const box = range.getBoundingClientRect();
                    return [Math.round(box.top), box.left];
                })""",
                list(names),
            )
            assert places == sorted(places), f"{selector}: the tasks are read from left to right"
        assert (
            opened.page.locator("li.example .text").first.evaluate("e => getComputedStyle(e).direction")
            == "rtl"
        )


def test_a_printed_matrix_of_long_names_fits_the_paper(browser: Any, tmp_path: Path) -> None:
    names = [f"task with a quite long name number {k:02}" for k in range(15)]
    page = write_report([make_run(tmp_path / "long", tasks=names, analyzed=True)], tmp_path / "page.html")
    paper = (
        703  # A4 without margins of 12 mm, in pixels; browsers shrink a page of at most half as much again
    )
    with Opened(browser, page, viewport={"width": paper, "height": 1000}) as opened:
        opened.page.emulate_media(media="print")
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= 1.5 * paper
        lines = opened.page.eval_on_selector_all(
            "#matrix-1 thead th:not(:first-child) span",
            "all => all.map(e => e.getBoundingClientRect().width / parseFloat(getComputedStyle(e).lineHeight))",
        )
        assert len(lines) == 15
        assert max(lines) < 1.5, "each name is one line"


def test_the_keyboard_reaches_the_content(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["one"]) as opened:
        opened.page.keyboard.press("Tab")
        assert opened.page.evaluate("document.activeElement.textContent") == "Skip to the content"
        assert opened.page.locator(".skip").bounding_box()["y"] >= 0
        opened.page.keyboard.press("Enter")
        assert opened.page.evaluate("document.activeElement.id") == "main"
        opened.page.keyboard.press("Tab")
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert opened.page.evaluate(outline) == "solid"
        opened.page.click("nav a[href='#repeat']")
        opened.page.locator("nav a[href='#repeat'][aria-current]").wait_for()
