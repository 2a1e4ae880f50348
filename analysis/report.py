"""Writes all evidence to one self-contained page: the scorecard, tables, curves, figures.

    python analysis/report.py                     report.html in the runs root
    python analysis/report.py --runs DIR --out DIR
    python analysis/report.py -- preset=paper data.root=DIR

Arguments after `--` are overrides for run.py. In a fresh clone it shows the committed records.
"""

import argparse
import base64
import io
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from analysis.core import bccd, beyond, errors, scorecard
from analysis.core.claims import VERDICTS, Judgement, judge, read_claims
from analysis.core.cli import command_line, execute, overrides_of, print_source
from analysis.core.pages import page as table_page
from analysis.core.plots import charts
from analysis.core.render import Page, template
from analysis.core.samples import SAMPLES
from analysis.core.settings import ELSEWHERE, EXPERIMENTS, SWEPT, Swept
from analysis.core.table import Results, Table
from analysis.figures import DPI, draw
from onenet.system.files import write_atomically
from onenet.system.terminal import run_command


def main(arguments: list[str]) -> int:
    """Returns 0, or 2 if the input is invalid."""
    parser = command_line(__doc__)
    parser.add_argument("--out", metavar="DIR", help="default: the runs root")
    args = parser.parse_args(arguments)
    args.command = shlex.join(["python", "analysis/report.py", *arguments])
    return execute(write_report, args)


def write_report(args: argparse.Namespace) -> None:
    overrides = overrides_of(args)
    results = Results(overrides)
    file = results.folder(args.out) / "report.html"
    judgements = judge(results)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, page(results, judgements, file.parent, args.command))
    print_source(overrides)
    print(f"Wrote {file}. {scorecard.summary(judgements)}")


def page(results: Results, judgements: list[Judgement], folder: Path, command: str) -> str:
    """Returns the HTML. Links to runs are relative to `folder`; `command` makes this page."""
    table1 = results.table("table1")
    curves, tables = charts(results), pages(results, folder)
    seeds = ", ".join(map(str, sorted({*table1.runs.seed})))
    return template("report.html").render(
        answer=answer(judgements),
        scale=f"{tables[0]['page'].context[0]}; seeds {seeds}",
        rerun=f"{table1.command}\n{command}",
        results=results,
        claims=judgements,
        scorecard=scorecard,
        ranks=VERDICTS,
        elsewhere=_other_verdicts(results),
        pages=tables,
        beyond=[*draw(results, beyond.QUESTIONS)],
        charts=curves,
        charts_json=Markup(json.dumps(curves, allow_nan=False).replace("<", "\\u003c")),
        figures=[*draw(results, SAMPLES)],
        source=_source,
        footer=_footer(table1.done),
    )


def answer(judgements: list[Judgement]) -> list[str]:
    """Sentences that say whether the classification cost removes the need for NMS, with numbers and
    intervals."""
    by_id = {judgement.id: judgement for judgement in judgements}
    lines = []
    for location, noun in (("predicted", "predicted boxes"), ("predefined", "grid points")):
        condition = by_id[f"nms_gain_{location}"].conditions[0]
        loc_only = condition.interval
        loc_cls = by_id[f"no_nms_{location}"].conditions[0].interval
        noun += f" ({condition.setting})" if condition.setting else ""
        if loc_only and loc_cls:
            lines.append(
                f"With matching by the location of {noun} alone, NMS adds {loc_only.sentence()} "
                f"AP; with the classification cost it adds {loc_cls.sentence()} AP. The paper's "
                f"claim is {by_id[f'no_nms_{location}'].verdict} (no_nms_{location} below)."
            )
    if not lines:
        return ["Not run yet. The first command below runs Table 1, the second updates this page."]
    answers = {"reproduced": "Yes.", "contradicted": "Not here.", "too noisy": "Not sure yet."}
    short = answers.get(by_id["no_nms_predicted"].verdict, "Not run yet.")
    return [f"Does the classification cost remove the need for NMS? {short}", *lines]


def _other_verdicts(results: Results) -> list[dict]:
    """The verdicts under further settings that have runs: a name, and claim id -> verdict."""
    columns = {}
    if results.data == "rigid" and results.proxy:
        claims = read_claims()
        for setting, name in ELSEWHERE.items():
            swept = [each.experiment for each in SWEPT if each.setting == setting]
            ids = claims.index[claims.experiment.isin(swept) | (claims.metric == "FPS")]
            judgements = judge(results.under(setting), [*ids])
            columns[name] = {each.id: each.verdict for each in judgements}
    if results.is_committed:
        columns["on BCCD"] = bccd.verdicts()
    return [
        {"name": name, "verdicts": verdicts}
        for name, every in columns.items()
        if (verdicts := {id_: verdict for id_, verdict in every.items() if verdict != "not run"})
    ]


def pages(results: Results, folder: Path) -> list[dict]:
    """The tables in order, each under all settings that have runs."""
    tables = []
    for experiment in EXPERIMENTS:
        base = results.table(experiment)
        for swept in (each for each in SWEPT if each.experiment == experiment):
            table = results.table(experiment, swept.setting)
            differs = not {*table.runs.id} <= {*base.runs.id}
            if not swept.setting or (results.proxy and differs and table.runs.done.any()):
                tables.append(_page(table, folder, swept))
        if experiment == "table1" and base.has_tide:
            own = errors.page(base), "of the rows of Table 1", errors.COMMAND
            tables.append(_entry("table1-errors", *own))
        if experiment == "table1" and results.is_committed:
            command = "The commands are in analysis/results/README.md, “Real images”"
            tables.append(_entry("table1-bccd", bccd.page(), "real images", command))
    return tables


def _page(table: Table, folder: Path, swept: Swept) -> dict:
    values = (override.rpartition("=")[2] for override in swept.overrides)
    name = "-".join([table.experiment.name, *values]).replace(".", "-")
    runs = [
        [(os.path.relpath(spec.folder.path, folder) + "/", spec.folder.path.name, spec.config.seed)
         for spec in row.spec[row.done]]
        for _, row in table.runs.groupby("row", sort=False)
    ]  # fmt: skip
    return _entry(name, table_page(table), swept.note, table.command, runs)


def _entry(id_: str, page: Page, note: str, command: str, runs: Sequence = ()) -> dict:
    """What the template shows of a table. `runs`: link, title and seed of the runs of each row."""
    return {"id": id_, "page": page, "note": note, "command": command, "runs": runs}


def _source(figure: Figure) -> str:
    """Returns the figure as the source of an image."""
    content = io.BytesIO()
    figure.savefig(content, dpi=DPI)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _footer(runs: pd.DataFrame) -> str:
    if runs.empty:
        return ""
    devices = ", ".join(sorted({*runs.device.fillna("?")}))
    commits = ", ".join(sorted({*runs.commit.str[:7].fillna("?")}))
    return (
        f"Table 1 was run on {devices}, at commit {commits}. The versions, "
        "settings and times of each run are in its result.json."
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
