"""Numbers in the READMEs: generated between markers, or checked here.

Run: pytest tests/test_text_numbers.py
"""

import csv
import re

import pytest

from analysis import model_size
from onenet.config.compose import compose
from onenet.config.options import SlurmOptions
from onenet.system.files import REPOSITORY
from tests.test_texts import PAGES

MEASURED = re.compile(
    r"\d[\d,.]*\s*(?:AP\b|ms\b|s\b|min\b|minutes?\b|hours?\b|seconds?\b|GiB|MiB|GB|MB|kB|%|times\b|"
    r"GPU-hours|epochs?\b|steps\b|images\b|runs\b|claims\b|tests\b)"
)
# Settings and quotations; the tests below check our own.
ALLOWED = {
    "experiments/README.md": {
        *("270,000 steps", "146 epochs", "200 steps", "30 %"),  # checked below
        *("8 images", "64 images"),  # the paper's batch, per GPU and total
        "35.7 AP",  # the released code's README
    },
    "onenet/sweeps/README.md": {
        *("90 seconds", "5 minutes"),  # submitit's default; checked below
        "4 hours",  # an example
    },
}
EXPERIMENTS = (REPOSITORY / "experiments" / "README.md").read_text()


def written_by_hand(text: str) -> str:
    """The text without generated blocks, code and link targets."""
    text = re.sub(r"<!-- \w+ -->\n.*?<!-- end -->", "", text, flags=re.DOTALL)
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return re.sub(r"`[^`\n]*`|\]\([^)]*\)", "", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_numbers_are_generated_or_held_by_a_test(page):
    name = str(page.relative_to(REPOSITORY))
    if name == "conf/README.md" or "weights" in page.parts:  # generated: keys.py, export.py
        return
    numbers = set(MEASURED.findall(written_by_hand(page.read_text())))
    assert numbers <= ALLOWED.get(name, set())


def table_below(heading: str) -> list[list[str]]:
    """The rows of the first table after the heading."""
    lines = EXPERIMENTS.split(heading)[1].splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("|---"))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_what_a_row_costs_is_the_papers_table_4():
    with open(REPOSITORY / "analysis" / "paper" / "tables.csv") as file:
        paper = {row["row"]: row for row in csv.DictReader(file) if row["table"] == "4"}
    for schedule, steps, epochs, hours, gpu_hours, ap in table_below("**What a row costs**"):
        override = [] if schedule == "the default" else [schedule.strip("`")]
        config = compose([*override, "preset=paper", "data=shapes"])
        printed = paper[f"{epochs} epochs"]
        assert steps == f"{config.steps:,}"
        assert (hours, ap) == (printed["train_hours"], printed["AP"])
        assert int(gpu_hours) == 8 * int(hours)


def test_settings_in_the_texts_are_those_of_conf():
    paper, proxy = compose(["preset=paper", "data=shapes"]), compose([])
    assert f"{paper.optim.base_steps:,} steps of AdamW" in EXPERIMENTS
    assert f"them are {paper.steps * paper.batch / 118_287:.0f} epochs" in EXPERIMENTS
    assert f"{proxy.optim.warmup} steps of warm-up" in EXPERIMENTS
    assert f"the last {100 * proxy.optim.tail:.0f} %" in EXPERIMENTS
    sweeps = (REPOSITORY / "onenet" / "sweeps" / "README.md").read_text()
    least = SlurmOptions.__dataclass_fields__["minutes"].metadata["least"]
    assert f"The minimum is {least} minutes" in sweeps


@pytest.mark.slow
def test_the_sizes_of_networks_are_what_model_size_prints(capsys):
    assert model_size.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if "|" in line]
    printed = {tuple(row[:2]): row for row in cells}
    for backbone, neck, params, released, work, released_work in table_below("the paper's network"):
        row = printed[backbone, neck]
        assert (params, released) == (row[2], row[3])
        assert (work, released_work) == (row[5], row[6])
