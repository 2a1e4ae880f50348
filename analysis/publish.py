"""Makes what is committed of our own results anew from their records: the pages of all tables, the
scorecard, the figures, and the tables of READMEs between their `<!-- NAME -->` marks.

    python analysis/publish.py
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tabulate import tabulate

from analysis import claims, figures, tables
from analysis.core.evidence import BCCD, RECORDS, RESULTS, Evidence, with_root
from analysis.core.formats import markdown
from analysis.core.layout import number, sheet, with_std
from analysis.core.predicates import KNOWS_PARTS, LARGER, LONGER
from analysis.core.rows import Comparison, Stat, TableRow
from onenet.sweeps.experiments import expand
from onenet.system.files import REPOSITORY

TEXTS = (REPOSITORY / "README.md", RESULTS / "README.md")  # with marks
Words = tuple[str, ...]  # run.py's
TABLES: dict[str, list[tuple[str, Words]]] = {  # of each, its columns and what they are of
    "table1": [
        ("`rigid`: the outline is the class", ()),
        ("`parts`: a small glyph is", KNOWS_PARTS),
        ("`rigid`, twice as long", LONGER),
    ],
    "table2": [("ours", ()), ("twice as long", LONGER)],
    "table3": [("ours", ())],
    "table4": [("ours", ())],
    "table5": [("64 pixels", ()), ("twice as long", LONGER), ("128 pixels, half as long", LARGER)],
    "table6": [("ours", ())],
    "assigners": [("ours", ())],
}
BESIDE = {  # AP, where there is one column only: metric and pattern
    "gain in AP50": ("AP50_nms_gain", "+.1f"),
    "redundant boxes an object": ("duplicates_per_object", ".2f"),
}
MAIN_JOB = ("cost=loc_only,loc_cls", "heads=1,3")
MAIN_COLUMNS = {
    "AP": ("AP", ".1f"),
    "AP (+NMS)": ("AP_nms", ".1f"),
    "gain": ("nms_gain", "+.1f"),
    "gain in AP50": ("AP50_nms_gain", "+.1f"),
    "redundant boxes an object": ("duplicates_per_object", ".2f"),
}
RUN_BACKBONES = ("backbone=tiny,resnet18",)
PAGES: dict[str, list[tuple[str, Words]]] = {  # a folder, the experiments in it
    "rigid": [(name, RUN_BACKBONES if name == "table5" else ()) for name in TABLES],
    "parts": [("table1", KNOWS_PARTS)],
    "longer": [("table1", LONGER), ("table2", LONGER), ("table5", (*RUN_BACKBONES, *LONGER))],
    "rigid128": [("table5", LARGER)],
}


def main(arguments: list[str]) -> int:
    """0."""
    about = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=about).parse_args(arguments)
    runs = Evidence(with_root([], str(RECORDS)))
    for file, text in pages(runs).items():
        (RESULTS / file).parent.mkdir(parents=True, exist_ok=True)
        (RESULTS / file).write_text(text, encoding="utf-8")
    figures.draw(runs, RESULTS / "figures", figures.NAMES)
    for file in TEXTS:
        file.write_text(filled(file.read_text(), runs))
    print(f"Wrote pages and figures in {RESULTS}, and the tables of {TEXTS[0]}")
    return 0


def pages(runs: Evidence) -> dict[str, str]:
    """Files below analysis/results and their content, of the tables of which there are runs."""
    judged = claims.judge(runs)
    found = {"claims.md": markdown(claims.sheet(judged)), "claims.csv": claims.as_csv(judged)}
    for folder, tables_in_it in PAGES.items():
        for name, more in tables_in_it:
            comparison = runs.comparison(name, *more)
            if comparison.results:
                found[f"{folder}/{name}.md"] = _page(comparison)
                found[f"{folder}/{name}.csv"] = tables.tidy(comparison)
    return found


def _page(comparison: Comparison) -> str:
    """Without the path of this machine."""
    text = markdown(sheet(comparison))
    return text.replace(f" runs_root={RECORDS}", "").replace(str(RECORDS), "runs")


def filled(text: str, runs: Evidence) -> str:
    """The text with the blocks of all its marks made anew."""

    def block(mark: re.Match) -> str:
        name = mark[1]
        special = {
            "claims": scorecard,
            "score": lambda runs: f"{claims.summary(claims.judge(runs))}",
            "bccd": lambda _: stored(BCCD / "table1.csv"),
            "main_job": main_job,
        }
        made = special[name](runs) if name in special else table(name, runs)
        return f"<!-- {name} -->\n{made}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def table(name: str, runs: Evidence) -> str:
    """AP without and with NMS, the paper's and ours; rows that nobody has run are left out."""
    columns = [
        (words, {row.label: row for row in runs.comparison(name, *more).rows})
        for words, more in TABLES[name]
    ]
    lines = []
    for label, row in columns[0][1].items():
        cells = [_ours(rows[label].ours) if label in rows else "" for _, rows in columns]
        if any(cells):
            lines.append([row.label, _paper(row), *cells])
    header = ["", "paper (COCO)", *(words for words, _ in columns)]
    if not any(paper for _, paper, *_ in lines):
        header, lines = header[:1] + header[2:], [[row, *cells] for row, _, *cells in lines]
    return _pipe(header, lines)


def main_job(_: Evidence) -> str:
    """The table that the README's first command prints, of its runs in the records."""
    lines = []
    for cell in expand([*MAIN_JOB, f"runs_root={RECORDS}"]):
        metrics = cell.folder.result(cell.evaluation)["metrics"]
        numbers = [number(metrics[name], pattern) for name, pattern in MAIN_COLUMNS.values()]
        lines.append([f"`{' '.join(cell.overrides)}`", *numbers])
    return _pipe(["run", *MAIN_COLUMNS], lines)


def stored(file: Path) -> str:
    """The same of a table of which only the numbers are kept."""
    lines = [
        [label, _ours(ours.__getitem__), *(with_std(ours[m], p) for m, p in BESIDE.values())]
        for label, ours in tables.read_tidy(file).items()
    ]
    return _pipe(["", "ours", *BESIDE], lines)


def _pipe(header: list[str], lines: list[list[str]]) -> str:
    return tabulate(lines, header, "pipe", colalign=["left"] * len(header), disable_numparse=True)


def _paper(row: TableRow) -> str:
    numbers = row.paper.numbers
    both = [f"{numbers[m]:.1f}" for m in ("AP", "AP_nms") if m in numbers]
    return " → ".join(both)


def _ours(of: Callable[[str], Stat]) -> str:
    """Means ± standard deviations over seeds of AP without and with NMS; empty if there are none.
    `of`: metric -> ours."""
    if of("AP").mean is None:
        return ""
    gain = number(of("nms_gain").mean, "+.1f")
    return f"{with_std(of('AP'))} → {with_std(of('AP_nms'))} ({gain})"


def scorecard(runs: Evidence) -> str:
    """A line a claim."""
    judged, lines = claims.judge(runs), []
    for claim in judged:
        part, interval = claim.decisive
        ours, bounds, n = claims.numbers(part, interval)
        lines.append([claim.claim.id, claim.verdict, part.statement, ours, bounds, n])
    header = ["claim", "verdict", "says that", "ours", "95 % interval", "n"]
    rows = _pipe(header, lines)
    summary = f"**{claims.summary(judged)}**"
    return f"{summary}\n\n<details><summary>All of them</summary>\n\n{rows}\n\n</details>"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
