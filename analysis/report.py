"""Writes all evidence to one self-contained page: the scorecard, tables, curves, figures.

    python analysis/report.py                     report.html in the runs root
    python analysis/report.py --runs DIR --out DIR
    python analysis/report.py -- preset=paper data.root=DIR

Arguments after `--` are overrides for run.py. In a fresh clone it shows the committed records.
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
from analysis.claims import Judgement
from analysis.core.charts import charts
from analysis.core.evidence import BCCD, Evidence, command_line, overrides_of, print_source
from analysis.core.formats import Block, Sheet
from analysis.core.intervals import Interval
from analysis.core.layout import number, sheet, with_std
from analysis.core.predicates import LARGER, LONGER, PARTS
from analysis.core.rows import Comparison
from analysis.core.samples import SAMPLES
from analysis.figures import draw
from analysis.tables import read_tidy
from onenet.errors import UserError
from onenet.system.files import write_atomically
from onenet.system.terminal import run_command

TEMPLATES = Path(__file__).with_name("page")
QUESTION = "What makes a dense detector need NMS, and what removes the need?"
TABLES = ("table1", "table2", "table3", "table4", "table5", "table6", "assigners")
MORE_SETTINGS = [  # of the proxy, each shown if it has runs
    ("table1", PARTS, "where the class shows in a part of the object"),
    ("table1", LONGER, "trained twice as long"),
    ("table2", LONGER, "trained twice as long"),
    ("table5", LONGER, "trained twice as long"),
    ("table5", LARGER, "larger images"),
]


@dataclass(frozen=True)
class Page:
    """A table with links to the runs of each row."""

    id: str
    sheet: Sheet
    command: str
    note: str = ""
    runs: list[list[dict]] = field(default_factory=list)


def main(arguments: list[str]) -> int:
    """Returns 0, or 2 if the input is invalid."""
    parser = command_line(__doc__)
    parser.add_argument("--out", metavar="DIR", help="default: the runs root")
    args = parser.parse_args(arguments)
    try:
        overrides = overrides_of(args)
        runs = Evidence(overrides)
        file = runs.folder(args.out) / "report.html"
        judgements = claims.judge(runs)
        file.parent.mkdir(parents=True, exist_ok=True)
        command = shlex.join(["python", "analysis/report.py", *arguments])
        write_atomically(file, page(runs, judgements, file.parent, command))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_source(overrides)
    print(f"Wrote {file}. {claims.summary(judgements)}")
    return 0


def page(runs: Evidence, judgements: list[Judgement], folder: Path, command: str) -> str:
    """Returns the HTML. Links to runs are relative to `folder`; `command` makes this page."""
    templates = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    curves = [asdict(chart) for chart in charts(runs)]
    names = ("answer", "scorecard", "tables", "curves", "figures")
    return templates.get_template("report.html").render(
        title="OneNet, rebuilt: the evidence",
        question=QUESTION,
        sections=[{"id": name, "name": name} for name in names],
        css=Markup((TEMPLATES / "report.css").read_text()),
        js=Markup((TEMPLATES / "report.js").read_text()),
        answer=answer(judgements),
        scale=_scale(runs.comparison("table1")),
        rerun=f"{runs.comparison('table1').command}\n{command}",
        summary=claims.summary(judgements),
        claims=[_claim(judgement) for judgement in judgements],
        elsewhere=_other_verdicts(runs),
        commands="\n".join(claims.missing_commands(judgements)),
        pages=pages(runs, folder),
        charts=curves,
        charts_json=Markup(json.dumps(curves, allow_nan=False).replace("<", "\\u003c")),
        figures=_figures(runs),
        footer=_footer(runs),
    )


def answer(judgements: list[Judgement]) -> list[str]:
    """Sentences that say whether the classification cost removes the need for NMS, with numbers and
    intervals."""
    by_id = {judgement.claim.id: judgement for judgement in judgements}
    lines = []
    for location, noun in (("predicted", "predicted boxes"), ("predefined", "grid points")):
        condition, loc_only = by_id[f"nms_gain_{location}"].conditions[0]
        loc_cls = by_id[f"no_nms_{location}"].conditions[0][1]
        noun += f" ({condition.setting})" if condition.setting else ""
        if loc_only and loc_cls:
            lines.append(
                f"With matching by the location of {noun} alone, NMS adds {_number(loc_only)} AP; "
                f"with the classification cost it adds {_number(loc_cls)} AP. The paper's claim is "
                f"{by_id[f'no_nms_{location}'].verdict} (no_nms_{location} below)."
            )
    if not lines:
        return ["Not run yet. The first command below runs Table 1, the second updates this page."]
    answers = {"reproduced": "Yes.", "contradicted": "Not here.", "too noisy": "Not sure yet."}
    short = answers.get(by_id["no_nms_predicted"].verdict, "Not run yet.")
    return [f"Does the classification cost remove the need for NMS? {short}", *lines]


def _number(interval: Interval) -> str:
    mean, low, high = (number(v) for v in (interval.mean, interval.low, interval.high))
    if math.isinf(interval.low):
        return f"{mean} (one seed)"
    return f"{mean} (95 % interval {low} to {high}, {interval.n} seeds)"


def _scale(comparison: Comparison) -> str:
    """The data, image size, steps and seeds of the table."""
    seeds = sorted({spec.config.seed for spec in comparison.specs})
    return f"{sheet(comparison).context[0]}; seeds {', '.join(map(str, seeds))}"


def _other_verdicts(runs: Evidence) -> list[dict]:
    """The verdicts under further settings that have runs: a name, and claim id -> verdict."""
    columns = []
    data = runs.comparison("table1").specs[0].config.data
    if runs.proxy and data.name == "shapes" and data.shapes.kind == "rigid":
        for name, extra in (("on parts", PARTS), ("twice as long", LONGER)):
            judgements = claims.judge(Evidence([*runs.overrides, *extra]))
            columns.append((name, {each.claim.id: each.verdict for each in judgements}))
        if runs.is_committed:
            with open(BCCD / "claims.csv", newline="") as lines:
                verdicts = {line["id"]: line["verdict"] for line in csv.DictReader(lines)}
            columns.append(("on BCCD", verdicts))
    columns = [
        (name, {id_: verdict for id_, verdict in verdicts.items() if verdict != "not run"})
        for name, verdicts in columns
    ]
    return [{"name": name, "verdicts": verdicts} for name, verdicts in columns if verdicts]


def _claim(judgement: Judgement) -> dict:
    condition, interval = judgement.decisive
    ours, bounds, n = claims.numbers(condition, interval)
    lines = [
        " · ".join([each.statement, *claims.numbers(each, its_interval)[:2]])
        for each, its_interval in judgement.conditions
    ]
    bounded = interval is not None and not math.isinf(interval.low)
    return {
        "id": judgement.claim.id,
        "quotation": judgement.claim.quotation,
        "verdict": judgement.verdict,
        "rank": claims.VERDICTS.index(judgement.verdict),
        "explanation": judgement.explanation,
        "others": lines if len(lines) > 1 else [],
        "statement": condition.statement,
        "ours": ours,
        "interval": bounds,
        "mean": "" if interval is None else interval.mean,
        "width": interval.high - interval.low if bounded else "",
        "bar": _bar(condition.bound, interval) if bounded else "",
        "n": n,
        "paper": claims.printed(condition),
    }


def _bar(bound: float, interval: Interval) -> Markup:
    """Draws the interval as a line, the mean as a dot, and the condition's bound as a stroke."""
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
    """The tables in order, each under all settings that have runs."""
    tables = []
    for experiment in TABLES:
        tables.append(_page(runs.comparison(experiment), folder))
        for name, extra, note in MORE_SETTINGS:
            if name == experiment and runs.proxy:
                comparison = runs.comparison(name, *extra)
                base = {spec.id for spec in runs.comparison(name).specs}
                if comparison.results and not base >= {spec.id for spec in comparison.specs}:
                    tables.append(_page(comparison, folder, note, extra))
        if experiment == "table1" and runs.is_committed:
            tables.append(_page_from_csv(BCCD / "table1.csv"))
    return tables


def _page(comparison: Comparison, folder: Path, note: str = "", extra: tuple = ()) -> Page:
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
    name = "-".join([comparison.experiment.name, *(each.rpartition("=")[2] for each in extra)])
    return Page(name.replace(".", "-"), sheet(comparison), comparison.command, note, runs)


def _page_from_csv(file: Path) -> Page:
    """Table 1 on real images, whose runs are not committed, from its CSV file."""
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
    table = Sheet(
        "Table 1. Ablation on label assignment",
        "The same rows, on photographs of blood cells (BCCD).",
        [line.removeprefix("- ") for line in context],
        [Block(["row", "n", *metrics], lines)],
        [],
    )
    return Page(
        "table1-bccd",
        table,
        "The commands are in analysis/results/README.md, “Real images”",
        "real images",
    )


def _figures(runs: Evidence) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        return [
            {
                "name": figure.name,
                "title": figure.title,
                "caption": figure.caption,
                "source": "data:image/png;base64,"
                + base64.b64encode(figure.png.read_bytes()).decode(),
            }
            for figure in draw(runs, Path(folder), list(SAMPLES))
        ]


def _footer(runs: Evidence) -> str:
    results = runs.comparison("table1").results
    if not results:
        return ""
    devices = sorted({result["env"].get("device", "?") for result in results})
    commits = sorted({(result["env"].get("commit") or "?")[:7] for result in results})
    return (
        f"Table 1 was run on {', '.join(devices)}, at commit {', '.join(commits)}. The versions, "
        "settings and times of each run are in its result.json."
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
