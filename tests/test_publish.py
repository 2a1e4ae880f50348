"""The committed results equal what their records give, to the letter.

Run: pytest tests/test_publish.py
"""

import json
import re
from statistics import stdev

import pytest

from analysis import publish
from analysis.core import bccd
from analysis.core.claims import judge
from analysis.core.cli import with_root
from analysis.core.frame import RECORDS, RESULTS
from analysis.core.table import Results
from onenet.runs.folder import RunFolder
from onenet.sweeps.experiments import expand
from tests.test_cli import run_py

CURRENT = "python analysis/publish.py makes it current"


@pytest.fixture(scope="module")
def results() -> Results:
    return Results(with_root([], RECORDS))


def test_every_page_is_what_the_records_give(results):
    pages = publish.pages(results)
    assert {"claims.md", "rigid/table1.md", "rigid/table5.csv"} <= set(pages)
    for name, text in pages.items():
        assert (RESULTS / name).read_text() == text, f"{name}: {CURRENT}"
        assert str(RESULTS) not in text


@pytest.mark.parametrize(("file", "least"), [*zip(publish.TEXTS, (3, 10, 2, 1), strict=True)])
def test_the_tables_of_the_texts_are_what_the_records_give(results, file, least):
    text = file.read_text()
    assert len(re.findall(r"^<!-- \w+ -->\n(?!<!-- end)", text, re.MULTILINE)) >= least
    assert publish.fill(text, results) == text, f"{file}: {CURRENT}"


def test_a_mark_is_filled_and_the_rest_is_left_alone(results):
    text = "before\n<!-- table1 -->\nold\n<!-- end -->\nafter\n<!-- other words -->\n"
    result = publish.fill(text, results)
    assert result.startswith("before\n<!-- table1 -->\n|")
    assert result.endswith("|\n<!-- end -->\nafter\n<!-- other words -->\n")
    assert "old" not in result
    lines = result.splitlines()[2:-3]
    assert [line.split("|")[1].strip() for line in lines[2:]][0] == "predefined"
    assert "21.5 → 31.0" in lines[2]


def test_the_records_hold_what_a_rerun_needs_and_no_path_of_a_machine():
    folders = [RunFolder(path) for path in sorted(RECORDS.glob("*-*/"))]
    assert len(folders) >= 36
    for folder in folders:
        result = folder.result()
        assert result["id"] == folder.path.name.rpartition("-")[2]
        assert result["env"]["commit"]
        assert not re.search(r'"/\w', json.dumps([result["overrides"], result["config"]]))
    files = {file for file in RESULTS.rglob("*") if file.is_file()} - {RESULTS / "report.html"}
    sizes = {file: file.stat().st_size for file in files}
    weights = sum(size for file, size in sizes.items() if RESULTS / "weights" in file.parents)
    assert weights < 8 * 2**20
    assert sum(sizes.values()) - weights < 30e6


def test_what_is_not_reproduced_is_explained(results):
    for judgement in judge(results):
        enough = all(each.interval and each.interval.n >= 3 for each in judgement.conditions)
        assert enough or judgement.explanation, judgement.id
        assert judgement.verdict == "reproduced" or judgement.explanation, judgement.id


def test_the_setting_of_bccd_is_that_of_its_page():
    text = (bccd.FOLDER / "table1.md").read_text()
    assert all(f"- {line}\n" in text for line in bccd.page().context)


@pytest.mark.slow
def test_a_record_run_again_from_its_own_words_is_the_same_run(tmp_path):
    """Another processor's rounding may act like another seed."""
    specs = [spec for spec in expand(["+experiment=table4"]) if spec.label == "36 epochs"]
    records = [RunFolder(RECORDS / spec.folder.path.name).result() for spec in specs]
    first = records[0]
    overrides = [*first["overrides"], f"hydra.launcher.threads={first['env']['threads']}"]
    done = run_py("-m", *overrides, f"runs_root={tmp_path}")
    assert done.returncode == 0, done.stderr
    again = RunFolder(tmp_path / specs[0].folder.path.name).result()
    assert again["id"] == first["id"]
    values = [record["metrics"]["AP"] for record in records]
    assert abs(again["metrics"]["AP"] - values[0]) <= 3 * stdev(values)
