"""All evidence on one page that needs no network: the scorecard, tables, curves, figures.

    python analysis/report.py                     report.html in the runs root
    python analysis/report.py --runs DIR --out DIR
    python analysis/report.py -- preset=paper data.root=DIR

Words after `--` are run.py's. In a fresh clone it shows the committed records.
"""

import base64
import csv
import json
import math
import os
import shlex
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from analysis import claims
from analysis.claims import Judged
from analysis.core.charts import charts
from analysis.core.evidence import BCCD, Evidence, command_line, say_where, words_of
from analysis.core.formats import Block, Sheet
from analysis.core.intervals import Interval
from analysis.core.layout import number, sheet, with_std
from analysis.core.predicates import KNOWS_PARTS, LARGER, LONGER
from analysis.core.rows import Comparison
from analysis.core.samples import SAMPLES
from analysis.figures import draw
from analysis.tables import read_tidy
from onenet.errors import UserError
from onenet.system.files import write_atomically

TEMPLATES = Path(__file__).with_name("page")
QUESTION = "What makes a dense detector need NMS, and what removes the need?"
TABLES = ("table1", "table2", "table3", "table4", "table5", "table6", "assigners")
ELSEWHERE = [  # further settings on the proxy, shown where there are runs
    ("table1", KNOWS_PARTS, "where the class shows in a part of the object"),
    ("table1", LONGER, "trained twice as long"),
    ("table2", LONGER, "trained twice as long"),
    ("table5", LONGER, "trained twice as long"),
    ("table5", LARGER, "larger images"),
]


@dataclass(frozen=True)
class Page:
    """A table with links to its runs, row by row."""

    id: str
    sheet: Sheet
    command: str
    note: str = ""
    runs: list[list[dict]] = field(default_factory=list)


def main(arguments: list[str]) -> int:
    """0, or 2 if the input cannot work."""
    parser = command_line(__doc__)
    parser.add_argument("--out", metavar="DIR", help="default: the runs root")
    args = parser.parse_args(arguments)
    try:
        overrides = words_of(args)
        runs = Evidence(overrides)
        file = runs.folder(args.out) / "report.html"
        judged = claims.judge(runs)
        file.parent.mkdir(parents=True, exist_ok=True)
        again = shlex.join(["python", "analysis/report.py", *arguments])
        write_atomically(file, page(runs, judged, file.parent, again))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    say_where(overrides)
    print(f"Wrote {file}. {claims.summary(judged)}")
    return 0


def page(runs: Evidence, judged: list[Judged], folder: Path, again: str) -> str:
    """The HTML, whose links to runs are relative to `folder`; `again` is the command for it."""
    templates = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    curves = [asdict(chart) for chart in charts(runs)]
    names = ("answer", "scorecard", "tables", "curves", "figures")
    return templates.get_template("report.html").render(
        title="OneNet, rebuilt: the evidence",
        question=QUESTION,
        sections=[{"id": name, "name": name} for name in names],
        css=Markup((TEMPLATES / "report.css").read_text()),
        js=Markup((TEMPLATES / "report.js").read_text()),
        answer=answer(judged),
        scale=_scale(runs.comparison("table1")),
        rerun=f"{runs.comparison('table1').command}\n{again}",
        summary=claims.summary(judged),
        claims=[_claim(claim) for claim in judged],
        elsewhere=_elsewhere(runs),
        commands="\n".join(claims.missing_commands(judged)),
        pages=pages(runs, folder),
        charts=curves,
        charts_json=Markup(json.dumps(curves, allow_nan=False).replace("<", "\\u003c")),
        figures=_figures(runs),
        footer=_footer(runs),
    )


def answer(judged: list[Judged]) -> list[str]:
    """Does the classification cost remove the need for NMS, by how much, how sure? In sentences."""
    found = {claim.claim.id: claim for claim in judged}
    lines = []
    for location, words in (("predicted", "predicted boxes"), ("predefined", "grid points")):
        part, without = found[f"nms_gain_{location}"].parts[0]
        with_class = found[f"no_nms_{location}"].parts[0][1]
        words += f" ({part.setting})" if part.setting else ""
        if without and with_class:
            lines.append(
                f"Matched by the location of {words} alone, NMS adds {_number(without)} AP; with "
                f"the classification cost it adds {_number(with_class)} AP. The paper's claim is "
                f"{found[f'no_nms_{location}'].verdict} (no_nms_{location} below)."
            )
    if not lines:
        return ["Not run yet: the command below runs Table 1, the next one makes this page anew."]
    verdicts = {"reproduced": "Yes.", "contradicted": "Not here.", "too noisy": "Not sure yet."}
    yes = verdicts.get(found["no_nms_predicted"].verdict, "Not run yet.")
    return [f"Does the classification cost remove the need for NMS? {yes}", *lines]


def _number(interval: Interval) -> str:
    mean, low, high = (number(v) for v in (interval.mean, interval.low, interval.high))
    if math.isinf(interval.low):
        return f"{mean} (one seed)"
    return f"{mean} (95 % interval {low} to {high}, {interval.n} seeds)"


def _scale(comparison: Comparison) -> str:
    """Data, size, steps, seeds of the first table."""
    seeds = sorted({spec.config.seed for spec in comparison.specs})
    return f"{sheet(comparison).context[0]}; seeds {', '.join(map(str, seeds))}"


def _elsewhere(runs: Evidence) -> list[dict]:
    """The verdicts on other data, where there are any: a name, and claim id -> verdict."""
    found = []
    data = runs.comparison("table1").specs[0].config.data
    if runs.proxy and data.name == "shapes" and data.shapes.kind == "rigid":
        for name, more in (("on parts", KNOWS_PARTS), ("twice as long", LONGER)):
            judged = claims.judge(Evidence([*runs.overrides, *more]))
            found.append((name, {claim.claim.id: claim.verdict for claim in judged}))
        if runs.committed:
            with open(BCCD / "claims.csv", newline="") as lines:
                verdicts = {line["id"]: line["verdict"] for line in csv.DictReader(lines)}
            found.append(("on BCCD", verdicts))
    known = [(name, {k: v for k, v in of.items() if v != "not run"}) for name, of in found]
    return [{"name": name, "verdicts": verdicts} for name, verdicts in known if verdicts]


def _claim(judged: Judged) -> dict:
    part, interval = judged.decisive
    ours, bounds, n = claims.numbers(part, interval)
    others = [
        " · ".join([other.statement, *claims.numbers(other, found)[:2]])
        for other, found in judged.parts
    ]
    known = interval is not None
    return {
        "id": judged.claim.id,
        "quotation": judged.claim.quotation,
        "verdict": judged.verdict,
        "rank": claims.VERDICTS.index(judged.verdict),
        "explanation": judged.explanation,
        "others": others if len(others) > 1 else [],
        "statement": part.statement,
        "ours": ours,
        "interval": bounds,
        "mean": interval.mean if known else "",
        "width": interval.high - interval.low if known and not math.isinf(interval.low) else "",
        "bar": _bar(part.bound, interval) if known and not math.isinf(interval.low) else "",
        "n": n,
        "paper": claims.printed(part),
    }


def _bar(bound: float, interval: Interval) -> Markup:
    """The interval on a line, the mean a dot, the claim's bound a stroke."""
    low, high = min(interval.low, bound), max(interval.high, bound)
    margin = 0.1 * (high - low) or 1.0

    def x(value: float) -> str:
        return f"{120 * (value - low + margin) / (high - low + 2 * margin):.1f}"

    return Markup(
        '<svg class="bar" width="120" height="12" aria-hidden="true">'
        f'<line x1="{x(bound)}" x2="{x(bound)}" y1="0" y2="12" stroke="currentColor"/>'
        f'<line x1="{x(interval.low)}" x2="{x(interval.high)}" y1="6" y2="6" '
        'stroke="var(--link)" stroke-width="3"/>'
        f'<circle cx="{x(interval.mean)}" cy="6" r="4" fill="var(--link)"/></svg>'
    )


def pages(runs: Evidence, folder: Path) -> list[Page]:
    """The tables in order, each under all settings of which there are runs."""
    found = []
    for experiment in TABLES:
        found.append(_page(runs.comparison(experiment), folder))
        for name, more, note in ELSEWHERE:
            if name == experiment and runs.proxy:
                comparison = runs.comparison(name, *more)
                base = {spec.id for spec in runs.comparison(name).specs}
                if comparison.results and not base >= {spec.id for spec in comparison.specs}:
                    found.append(_page(comparison, folder, note, more))
        if experiment == "table1" and runs.committed:
            found.append(_stored(BCCD / "table1.csv"))
    return found


def _page(comparison: Comparison, folder: Path, note: str = "", more: tuple = ()) -> Page:
    runs = [
        [
            {
                "href": os.path.relpath(spec.folder.path, folder) + "/",
                "seed": spec.config.seed,
                "title": spec.folder.path.name,
            }
            for spec in row.specs
            if spec.id in row.results
        ]
        for row in comparison.rows
    ]
    name = "-".join([comparison.experiment.name, *(w.rpartition("=")[2] for w in more)])
    return Page(name.replace(".", "-"), sheet(comparison), comparison.command, note, runs)


def _stored(file: Path) -> Page:
    """Table 1 on real images, from its CSV, which names its runs."""
    rows = read_tidy(file)
    metrics = {
        "AP": "AP", "AP(+NMS)": "AP_nms", "gain": "nms_gain", "AP50 gain": "AP50_nms_gain",
        "dup/obj": "duplicates_per_object",
    }  # fmt: skip

    lines = [
        [label, str(ours["AP"].n), *(with_std(ours[name], ".2f") for name in metrics.values())]
        for label, ours in rows.items()
    ]
    context = (file.with_suffix(".md").read_text().split("\n\n")[2]).splitlines()
    shown = Sheet(
        "Table 1. Ablation on label assignment",
        "The same rows on photographs of blood cells (BCCD).",
        [line.removeprefix("- ") for line in context],
        [Block(["row", "n", *metrics], lines)],
        [],
    )
    return Page(
        "table1-bccd",
        shown,
        "analysis/results/README.md, “Real images”, has its commands",
        "real images",
    )


def _figures(runs: Evidence) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        return [
            {
                "name": drawn.name,
                "title": drawn.title,
                "caption": drawn.caption,
                "source": "data:image/png;base64,"
                + base64.b64encode(drawn.png.read_bytes()).decode(),
            }
            for drawn in draw(runs, Path(folder), list(SAMPLES))
        ]


def _footer(runs: Evidence) -> str:
    results = runs.comparison("table1").results
    if not results:
        return ""
    devices = sorted({result["env"].get("device", "?") for result in results})
    commits = sorted({(result["env"].get("commit") or "?")[:7] for result in results})
    return (
        f"Table 1 was run on {', '.join(devices)}, at commit {', '.join(commits)}; each run's "
        "result.json has its versions, settings and times."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
