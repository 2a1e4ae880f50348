"""Regenerates the committed results from their records: the pages of all tables, the scorecard, the
figures, and the tables in READMEs between `<!-- NAME -->` marks.

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
from analysis.core import fps
from analysis.core.evidence import BCCD, RECORDS, RESULTS, Evidence, with_root
from analysis.core.formats import markdown
from analysis.core.layout import has_tide, number, sheet, with_std
from analysis.core.predicates import LARGER, LONGER, PARTS
from analysis.core.rows import Comparison, Stat, TableRow
from onenet.sweeps.experiments import expand
from onenet.system.files import REPOSITORY, read_json
from onenet.system.terminal import run_command

TEXTS = (  # with marks
    *(REPOSITORY / "README.md", RESULTS / "README.md"),
    REPOSITORY / "analysis" / "speed" / "README.md",
)
BENCHMARK = RECORDS / "benchmark.json"
Overrides = tuple[str, ...]  # run.py's
TABLES: dict[str, list[tuple[str, Overrides]]] = {  # the columns of each table
    "table1": [
        ("`rigid`: the outline is the class", ()),
        ("`parts`: a small glyph is", PARTS),
        ("`rigid`, twice as long", LONGER),
    ],
    "table2": [("ours", ()), ("twice as long", LONGER)],
    "table3": [("ours", ())],
    "table4": [("ours", ())],
    "table5": [("64 pixels", ()), ("twice as long", LONGER), ("128 pixels, half as long", LARGER)],
    "table6": [("ours", ())],
    "assigners": [("ours", ())],
}
EXTRA_COLUMNS = {  # of tables with a single column of AP: metric and format
    "gain in AP50": ("AP50_nms_gain", "+.1f"),
    "duplicates per object": ("duplicates_per_object", ".2f"),
}
MAIN_JOB = ("cost=loc_only,loc_cls", "heads=1,3")
MAIN_COLUMNS = {
    "AP": ("AP", ".1f"),
    "AP (+NMS)": ("AP_nms", ".1f"),
    "gain": ("nms_gain", "+.1f"),
    "gain in AP50": ("AP50_nms_gain", "+.1f"),
    "duplicates per object": ("duplicates_per_object", ".2f"),
    "dAP dupe": ("dAP_dupe", ".1f"),
}
BACKBONES = ("backbone=tiny,resnet18",)
PAGES: dict[str, list[tuple[str, Overrides]]] = {  # folder -> its experiments
    "rigid": [(name, BACKBONES if name == "table5" else ()) for name in TABLES],
    "parts": [("table1", PARTS)],
    "longer": [("table1", LONGER), ("table2", LONGER), ("table5", (*BACKBONES, *LONGER))],
    "rigid128": [("table5", LARGER)],
}


def main(arguments: list[str]) -> int:
    """Returns 0."""
    about = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=about).parse_args(arguments)
    runs = Evidence(with_root([], str(RECORDS)))
    for file, text in pages(runs).items():
        (RESULTS / file).parent.mkdir(parents=True, exist_ok=True)
        (RESULTS / file).write_text(text, encoding="utf-8")
    figures.draw(runs, RESULTS / "figures", figures.NAMES)
    for file in TEXTS:
        file.write_text(fill(file.read_text(), runs))
    print(f"Wrote pages and figures to {RESULTS}, and the tables in {TEXTS[0]}")
    return 0


def pages(runs: Evidence) -> dict[str, str]:
    """The scorecard and all tables that have runs: file below analysis/results -> its content."""
    judgements = claims.judge(runs)
    files = {
        "claims.md": markdown(claims.sheet(judgements)),
        "claims.csv": claims.as_csv(judgements),
    }
    for folder, experiments in PAGES.items():
        for name, overrides in experiments:
            comparison = runs.comparison(name, *overrides)
            if comparison.results:
                files[f"{folder}/{name}.md"] = _page(comparison)
                files[f"{folder}/{name}.csv"] = tables.tidy(comparison)
    return files


def _page(comparison: Comparison) -> str:
    """The page of a table, without paths of this machine."""
    text = markdown(sheet(comparison))
    return text.replace(f" runs_root={RECORDS}", "").replace(str(RECORDS), "runs")


def fill(text: str, runs: Evidence) -> str:
    """Returns the text with the block of each mark regenerated."""

    def block(mark: re.Match) -> str:
        name = mark[1]
        special = {
            "claims": scorecard,
            "score": lambda runs: f"{claims.summary(claims.judge(runs))}",
            "bccd": lambda _: table_from_csv(BCCD / "table1.csv"),
            "main_job": main_job,
            "speed": lambda _: speed_table(),
            "fps": lambda _: fps_table(),
        }
        content = special[name](runs) if name in special else table(name, runs)
        return f"<!-- {name} -->\n{content}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def table(name: str, runs: Evidence) -> str:
    """AP without and with NMS, the paper's and ours; rows without results are left out."""
    columns = [
        (title, {row.label: row for row in runs.comparison(name, *overrides).rows})
        for title, overrides in TABLES[name]
    ]
    lines = []
    for label, row in columns[0][1].items():
        cells = [_ours(rows[label].ours) if label in rows else "" for _, rows in columns]
        if any(cells):
            lines.append([row.label, _paper(row), *cells])
    header = ["", "paper (COCO)", *(title for title, _ in columns)]
    for title, rows in columns:
        if has_tide(list(rows.values())):
            header.append(f"dAP dupe, {title.split(':')[0]}")
            for line, row in zip(lines, rows.values(), strict=True):
                line.append(with_std(row.ours("dAP_dupe"), ".1f"))
    if not any(paper for _, paper, *_ in lines):
        header, lines = header[:1] + header[2:], [[row, *cells] for row, _, *cells in lines]
    return _pipe(header, lines)


def main_job(_: Evidence) -> str:
    """The table that the README's first command prints, from its runs in the records."""
    specs = expand([*MAIN_JOB, f"runs_root={RECORDS}"])
    results = [spec.folder.result(spec.evaluation)["metrics"] for spec in specs]
    columns = dict(MAIN_COLUMNS)
    if not all("dAP_dupe" in metrics for metrics in results):  # of an earlier version
        del columns["dAP dupe"]
    lines = [
        [f"`{' '.join(spec.overrides)}`", *(number(metrics[m], p) for m, p in columns.values())]
        for spec, metrics in zip(specs, results, strict=True)
    ]
    return _pipe(["run", *columns], lines)


def speed_table() -> str:
    """The plain versions against ours, as `benchmark.py --json` wrote them to the records."""
    benchmark = read_json(BENCHMARK)
    lines = []
    for row in benchmark["timings"]:
        sides = [f"{row[side]:,.4g} {row['unit']}" for side in ("plain", "ours")]
        ratio = f"{row['plain'] / row['ours']:.2g}"
        lines.append([f"`{row['key']}`", row["what"], *sides, ratio])
    header = ["key", "what", "plain", "ours", "plain / ours"]
    return f"On {benchmark['device']}:\n\n{_pipe(header, lines)}"


def fps_table() -> str:
    """FPS without NMS of the networks in the records, at 512×853 on a CPU; with NMS where a
    detector always needs it."""
    cells: dict[str, dict[str, str]] = {}
    for speed in fps.read(RECORDS):
        network = speed.network
        if (network.size, network.heads, speed.device) == ("512x853", 1, "cpu"):
            column = f"{network.detector}, {network.neck}"
            value = f"{speed.fps_nms if speed.fps is None else speed.fps:.2f}"
            cells.setdefault(column, {})[network.backbone] = value
    backbones = sorted({b for column in cells.values() for b in column}, key=lambda b: (len(b), b))
    lines = [[b, *(column.get(b, "") for column in cells.values())] for b in backbones]
    return _pipe(["", *cells], lines)


def table_from_csv(file: Path) -> str:
    """Like `table`, for a table whose runs are not committed, only their numbers."""
    lines = [
        [label, _ours(ours.__getitem__), *(with_std(ours[m], p) for m, p in EXTRA_COLUMNS.values())]
        for label, ours in tables.read_tidy(file).items()
    ]
    return _pipe(["", "ours", *EXTRA_COLUMNS], lines)


def _pipe(header: list[str], lines: list[list[str]]) -> str:
    return tabulate(lines, header, "pipe", colalign=["left"] * len(header), disable_numparse=True)


def _paper(row: TableRow) -> str:
    numbers = row.paper.numbers
    both = [f"{numbers[m]:.1f}" for m in ("AP", "AP_nms") if m in numbers]
    return " → ".join(both)


def _ours(stat: Callable[[str], Stat]) -> str:
    """Formats AP without and with NMS, each as mean ± standard deviation over seeds; empty if there
    are no results. `stat` maps a metric to ours."""
    if stat("AP").mean is None:
        return ""
    gain = number(stat("nms_gain").mean, "+.1f")
    return f"{with_std(stat('AP'))} → {with_std(stat('AP_nms'))} ({gain})"


def scorecard(runs: Evidence) -> str:
    """The claims, one line each."""
    judgements, lines = claims.judge(runs), []
    for judgement in judgements:
        condition, interval = judgement.decisive
        ours, bounds, n = claims.numbers(condition, interval)
        name, verdict = judgement.claim.id, judgement.verdict
        lines.append([name, verdict, condition.statement, ours, bounds, n])
    header = ["claim", "verdict", "condition", "ours", "95 % interval", "n"]
    rows = _pipe(header, lines)
    summary = f"**{claims.summary(judgements)}**"
    return f"{summary}\n\n<details><summary>All of them</summary>\n\n{rows}\n\n</details>"


if __name__ == "__main__":
    sys.exit(run_command(main))
