"""Writes the README's tables from the committed records, between its `<!-- NAME -->` marks.

python analysis/readme.py            fills them anew
python analysis/readme.py --check    exit status 1 if they are not current
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tabulate import tabulate

from analysis import claims
from analysis.evidence import RECORDS, Evidence, with_root
from analysis.predicates import KNOWS_PARTS, LARGER, LONGER
from analysis.rows import Row
from onenet.config import REPOSITORY

README = REPOSITORY / "README.md"
TABLES: dict[
    str, list[tuple[str, tuple[str, ...]]]
] = {  # of each, its columns and what they are of
    "table1": [
        ("`rigid`: the outline is the class", ()),
        ("`parts`: a small glyph is", KNOWS_PARTS),
    ],
    "table2": [("ours", ())],
    "table3": [("ours", ())],
    "table4": [("ours", ())],
    "table5": [("64 pixels", ()), ("twice as long", LONGER), ("128 pixels, half as long", LARGER)],
    "table6": [("ours", ())],
    "assigners": [("ours", ())],
}


def main(arguments: list[str]) -> int:
    """0; 1 if `--check` finds a difference."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(arguments)
    text = README.read_text()
    new = filled(text, Evidence(with_root([], str(RECORDS))))
    if given.check:
        print("README.md is current." if new == text else "README.md is not: analysis/readme.py")
        return int(new != text)
    README.write_text(new)
    print(f"Wrote the tables in {README}")
    return 0


def filled(text: str, runs: Evidence) -> str:
    """The text with the blocks of all its marks made anew."""

    def block(mark: re.Match) -> str:
        name = mark[1]
        made = scorecard(runs) if name == "claims" else table(name, runs)
        return f"<!-- {name} -->\n{made}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def table(name: str, runs: Evidence) -> str:
    """AP without and with NMS, the paper's and ours; rows that nobody has run are left out."""
    columns = [(words, runs.comparison(name, *more).rows) for words, more in TABLES[name]]
    lines = []
    for number, row in enumerate(columns[0][1]):
        cells = [_ours(rows[number]) for _, rows in columns]
        if any(cells):
            lines.append([row.label, _paper(row), *cells])
    header = ["", "paper (COCO)", *(words for words, _ in columns)]
    if not any(paper for _, paper, *_ in lines):
        header, lines = header[:1] + header[2:], [[row, *cells] for row, _, *cells in lines]
    return tabulate(lines, header, "pipe", colalign=["left"] * len(header), disable_numparse=True)


def _paper(row: Row) -> str:
    numbers = row.paper.numbers
    both = [f"{numbers[m]:.1f}" for m in ("AP", "AP_nms") if m in numbers]
    return " → ".join(both)


def _ours(row: Row) -> str:
    """Means ± standard deviations over seeds."""
    parts = []
    for metric in ("AP", "AP_nms"):
        ours = row.ours(metric)
        if ours.mean is None:
            return ""
        parts.append(f"{ours.mean:.1f}" + (f" ± {ours.std:.1f}" if ours.std is not None else ""))
    return f"{' → '.join(parts)} ({row.ours('nms_gain').mean:+.1f})"


def scorecard(runs: Evidence) -> str:
    """A line a claim."""
    judged, lines = claims.judge(runs), []
    for claim in judged:
        part, interval = claim.decisive
        ours, bounds, n = claims.numbers(part, interval)
        lines.append([claim.claim.id, claim.verdict, part.statement, ours, bounds, n])
    header = ["claim", "verdict", "says that", "ours", "95 % interval", "n"]
    rows = tabulate(lines, header, "pipe", colalign=["left"] * 6, disable_numparse=True)
    summary = f"**{claims.summary(judged)}**"
    return f"{summary}\n\n<details><summary>All of them</summary>\n\n{rows}\n\n</details>"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
