"""The report: complete, self-contained, and working in a real browser.

Run: pytest tests/test_report.py (also -m slow: Chromium, if it is installed)
"""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis import report
from analysis.core.frame import RECORDS
from analysis.core.settings import EXPERIMENTS
from onenet.system.files import REPOSITORY
from tests.test_figures import run, table1

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The report on Table 1 alone, with two seeds."""
    root = tmp_path_factory.mktemp("runs")
    for cell in table1(root, "seed=0,1"):
        run(cell, seed_shift=float(cell.config.seed))
    assert report.main(["--runs", str(root)]) == 0
    return root / "report.html"


class Tags(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.found if name == tag]


def test_it_answers_first_with_number_certainty_and_command(made):
    text = made.read_text()
    start = text.index('id="answer"')
    words = text[start : text.index('id="scorecard"')]
    assert "Does the classification cost remove the need for NMS?" in words
    assert re.search(r"NMS adds \d+\.\d \(95 % interval .* to .*, 2 seeds\) AP", words)
    assert f"python run.py -m +experiment=table1 runs_root={made.parent}\n" in words
    assert f"python analysis/report.py --runs {made.parent}" in words
    assert "seeds 0, 1, 2" in words


def test_nothing_is_fetched_from_elsewhere(made):
    tags = Tags(made.read_text())
    assert not tags.all("link")
    assert all("src" not in script for script in tags.all("script"))
    assert tags.all("img")
    assert all(image["src"].startswith("data:image/png;base64,") for image in tags.all("img"))
    links = [link["href"] for link in tags.all("a")]
    assert all(link.startswith("#") or (made.parent / link).is_dir() for link in links)
    assert len({link for link in links if not link.startswith("#")}) == 8  # the finished runs


def test_all_claims_tables_and_curves_are_there(made):
    text = made.read_text()
    tags = Tags(text)
    assert sum("claim-" in row.get("id", "") for row in tags.all("tr")) == 28
    pages = [article["id"] for article in tags.all("article")]
    own = [name for name in pages if "-" not in name]
    assert own == [*EXPERIMENTS]
    charts = json.loads(re.search(r'id="charts-data">(.*?)</script>', text, re.S)[1])
    assert len(charts) == len([f for f in tags.all("figure") if f.get("class") == "chart"]) == 6


def test_without_runs_it_says_what_to_run(tmp_path, capsys):
    assert report.main(["--runs", str(tmp_path)]) == 0
    assert "28 claims: 28 not run." in capsys.readouterr().out
    text = (tmp_path / "report.html").read_text()
    assert "Not run yet. The first command below runs Table 1" in text
    assert "python run.py -m +experiment=table6" in text
    assert report.main(["--runs", str(tmp_path), "--", "heds=1"]) == 2


def test_numbers_of_one_seed_have_no_interval(tmp_path):
    for cell in table1(tmp_path, "seed=0"):
        run(cell)
    assert report.main(["--runs", str(tmp_path), "--", "seed=0"]) == 0
    text = (tmp_path / "report.html").read_text()
    assert "(one seed)" in text
    assert "Not sure yet." in text
    assert "inf" not in re.sub(r"base64,[^\"]*|infer", "", text)


@pytest.mark.slow
def test_the_committed_records_make_it_without_torch(tmp_path):
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from analysis import report, tables\n"
        f"records = {str(RECORDS)!r}\n"
        f"assert report.main(['--runs', records, '--out', {str(tmp_path)!r}]) == 0\n"
        f"assert tables.main(['--runs', records, '--out', {str(tmp_path)!r}]) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").stat().st_size > 100_000
    assert (tmp_path / "table6.md").is_file()


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("Chromium is not installed: apt install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, made):
    """A function that opens the page offline; errors in the browser fail the test."""
    pages, messages = [], []

    def open_page(width: int = 1280, scheme: str = "light"):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        page = context.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("requestfailed", lambda request: messages.append(request.url[:80]))
        page.goto(made.as_uri())
        pages.append(context)
        return page

    yield open_page
    for context in pages:
        context.close()
    assert messages == []


@pytest.mark.slow
def test_every_image_shows_and_every_curve_is_drawn(opened):
    page = opened()
    shown = "[...document.images].map(i => i.complete && i.naturalWidth > 100)"
    assert page.evaluate(shown) == [True] * 3
    assert page.locator(".chart svg").count() == 6
    assert page.locator(".chart svg polyline").count() == 6 * 4


@pytest.mark.slow
def test_columns_sort_up_down_and_back(opened):
    page = opened()
    column = "[...document.querySelectorAll('#claims tbody tr')].map(r => r.id)"
    before = page.evaluate(column)
    head = page.locator("#claims thead th").nth(1)
    ranks = "[...document.querySelectorAll('#claims tbody tr')].map(r => +r.cells[1].dataset.sort)"
    head.click()
    assert head.get_attribute("aria-sort") == "ascending"
    ascending = page.evaluate(ranks)
    assert ascending == sorted(ascending)
    assert len(set(ascending)) > 1
    head.press("Enter")
    assert page.evaluate(ranks) == sorted(ascending, reverse=True)
    head.click()
    assert page.evaluate(column) == before
    numbers = page.locator("#table1 thead th", has_text="AP ours").first
    numbers.click()
    index = page.evaluate("[...document.querySelector('#table1 thead tr').cells]"
                          ".findIndex(c => c.ariaSort == 'ascending')")  # fmt: skip
    cells = page.evaluate(f"[...document.querySelector('#table1 tbody').rows]"
                          f".map(r => parseFloat(r.cells[{index}].textContent))")  # fmt: skip
    assert cells == sorted(cells)


@pytest.mark.slow
def test_a_curve_tells_its_numbers_where_one_points(opened):
    page = opened()
    chart = page.locator(".chart").first
    assert "±" not in chart.locator(".legend").inner_text()
    chart.locator("rect.hover").first.hover()
    legend = chart.locator(".legend").inner_text()
    assert "IoU threshold of NMS 0." in legend
    assert legend.count("±") == 4
    assert re.search(r"predefined [45]\.50 ± 0\.71", legend)


@pytest.mark.slow
def test_it_fits_a_phone_and_follows_the_theme(opened):
    phone = opened(width=390)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    paper = "getComputedStyle(document.body).backgroundColor"
    light, dark = phone.evaluate(paper), opened(scheme="dark").evaluate(paper)
    assert light == "rgb(255, 255, 255)"
    assert dark != light
    phone.locator("#theme").click()
    assert phone.evaluate(paper) == dark
