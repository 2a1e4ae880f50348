"""Saves a W&B report of the tables: AP without and with NMS per row, NMS gains, curves, images.

    python analysis/dashboard.py                          every table that has an experiment
    python analysis/dashboard.py --table 1 2 -- data.shapes.kind=parts
    python analysis/dashboard.py --workspace              a saved view of the project instead
    python analysis/dashboard.py --json FILE              writes it to a file; no network, no key

Arguments after `--` are overrides for run.py: a table shows the runs that its experiment resolves
to, as in analysis/tables.py. In W&B a run's group is its table, its job type the row, its seed a
tag.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import yaml

from analysis.core.cli import command_line, execute, overrides_of
from analysis.core.render import TEMPLATES
from analysis.core.table import Results, Table
from analysis.tables import experiments
from onenet.config.compose import compose
from onenet.errors import UserError
from onenet.runs.evaluations import default_evaluation
from onenet.system.files import write_json
from onenet.system.terminal import run_command
from onenet.tracking.wandb_run import at_most, first_line, keep_inside

try:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    MISSING = ""
except ImportError as error:
    MISSING = str(error)

ANSWER_SECONDS = 10  # time limit for W&B's first answer
SAVE_SECONDS = 60
TEARDOWN_SECONDS = 5  # time limit for wandb to end its own process
PANELS = yaml.safe_load((TEMPLATES / "dashboard.yaml").read_text(encoding="utf-8"))
STEP = "train/step"
WIDTH = 8  # of a panel: a third of a report's 24 columns
MAX_RUNS = 100  # in a panel


def main(arguments: list[str]) -> int:
    """Returns 0, or 2 if the input is invalid or W&B rejects the report."""
    parser = command_line(__doc__)
    parser.add_argument("--entity", help="default: conf/tracker/wandb.yaml's, or else your own")
    parser.add_argument("--project", help="default: conf/tracker/wandb.yaml's")
    parser.add_argument("--table", nargs="+", type=int, metavar="N", help="default: all")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--report", action="store_true", help="the default")
    kind.add_argument("--workspace", action="store_true", help="save a view instead of a report")
    parser.add_argument("--json", metavar="FILE", help="write it to FILE instead of sending it")
    return execute(save_view, parser.parse_args(arguments))


def save_view(args: argparse.Namespace) -> None:
    if MISSING:
        raise UserError(
            f"The dashboard needs wandb-workspaces: pip install -e '.[dashboard]' ({MISSING})"
        )
    tracker = compose(["tracker=wandb"]).tracker
    entity, project = args.entity or tracker.entity, args.project or tracker.project
    results = Results(overrides_of(args))
    tables = [results.table(experiment.name) for experiment in experiments(args.table)]
    make = workspace if args.workspace else report
    if args.json:
        write_spec(args.json, make(tables, entity or "", project, linked=False))
        print(f"Wrote {args.json}")
    else:
        print(save(make, tables, entity, project))


def evaluations(table: Table) -> list[str]:
    """Ids of the evaluations beyond each run's default one, which W&B stores under own keys."""
    extra = [spec.evaluation for spec in table.runs.spec
             if spec.evaluation != default_evaluation(spec.config)]  # fmt: skip
    return [*dict.fromkeys(evaluation.id for evaluation in extra)]


def write_spec(file: str, view: "wr.Report | ws.Workspace") -> None:
    """Writes what would be sent to W&B. Raises UserError."""
    spec = view._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    try:
        write_json(Path(file).expanduser(), spec)
    except OSError as error:
        raise UserError(f"--json {file} cannot be written: {error}") from error


# --- W&B ---


def save(make, tables: Sequence[Table], entity: str | None, project: str) -> str:
    """Saves the report or workspace that `make` returns, and returns its URL. Raises UserError."""
    with temporary_wandb():
        entity = find_entity(entity, project)
        with wandb_errors(SAVE_SECONDS):
            return make(tables, entity, project).save().url


@contextlib.contextmanager
def temporary_wandb() -> Iterator[None]:
    """Keeps wandb's files in a temporary folder, and restores the environment afterwards."""
    import wandb

    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        keep_inside(Path(folder) / "wandb")
        try:
            yield
        finally:
            # If the server hangs, wandb's process waits for it, and ends only with ours.
            with contextlib.suppress(TimeoutError), at_most(TEARDOWN_SECONDS):
                wandb.teardown()
            os.environ.clear()
            os.environ |= before


@contextlib.contextmanager
def wandb_errors(seconds: float) -> Iterator[None]:
    """Turns any error of W&B inside, and a timeout, into a UserError."""
    import wandb

    try:
        with at_most(seconds):
            yield
    except wandb.errors.UsageError as error:
        raise UserError(
            f"You are not logged in to W&B: {first_line(error)}\n"
            "Log in (wandb login), or write the report to a file: --json FILE"
        ) from error
    except Exception as error:  # any server may answer at that address, in any way
        url = wandb.setup().settings.base_url
        raise UserError(f"W&B at {url} rejected the request: {first_line(error)}") from error


def find_entity(entity: str | None, project: str) -> str:
    """Returns the entity, by default the user's own, if it has the project. Raises UserError."""
    import wandb

    projects = None
    with wandb_errors(ANSWER_SECONDS):
        api = wandb.Api(timeout=ANSWER_SECONDS)
        own = api.default_entity
        entity = entity or own
        with contextlib.suppress(ValueError):  # raised for an unknown entity
            projects = sorted(each.name for each in api.projects(entity))
    if projects is None:
        raise UserError(f"W&B has no entity {entity}. Yours is: {own}")
    if project not in projects:
        raise UserError(
            f"{entity} has no project {project}, only: {', '.join(projects[:5]) or 'none'}.\n"
            "Name another (--project), or send runs first: python analysis/sync.py"
        )
    return entity


# --- reports and workspaces ---


def report(tables: Sequence[Table], entity: str, project: str, linked: bool = True):
    """Returns the wr.Report. Each run has its row in every table under `rows` in its W&B config.

    `linked`: put the project into the run sets, for which W&B is asked for the project's number.
    """
    home = {"entity": entity, "project": project} if linked else {}
    blocks = []
    for table in tables:
        # The images of one seed are shown.
        label, seed = f"rows.{table.experiment.name}", f"seed {table.runs.seed.min()}"
        rows, row = runs_of([table]), wr.Config(label)
        all_seeds = wr.Runset(**home, name="rows", filters=rows, groupby=[f"config.{label}"])
        one_seed = wr.Runset(**home, name=seed, filters=runs_of([table], seed))
        blocks += [
            wr.H2(f"Table {table.experiment.table}: {table.experiment.title}"),
            wr.P(table.experiment.question),
            wr.P(["To run it: ", wr.InlineCode(table.command)]),
            wr.PanelGrid(runsets=[all_seeds], panels=arrange(plots(row, evaluations(table)))),
            wr.PanelGrid(runsets=[one_seed], panels=arrange(images())),
        ]
    return wr.Report(
        entity=entity,
        project=project,
        title="What removes the need for NMS",
        description="Written by analysis/dashboard.py. The run folders are the record, not W&B.",
        blocks=blocks,
        width="fluid",
    )


def workspace(tables: Sequence[Table], entity: str, project: str, linked: bool = True):
    """Returns the ws.Workspace: one set of panels for all tables, runs by group and job type."""
    names = dict.fromkeys(name for table in tables for name in evaluations(table))
    panels = {"Rows": plots(wr.Metric("JobType"), list(names)), "Images": images()}
    return ws.Workspace(
        entity=entity,
        project=project,
        name=", ".join(table.experiment.name for table in tables),
        sections=[ws.Section(name=name, panels=p, is_open=True) for name, p in panels.items()],
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=MAX_RUNS),
        runset_settings=ws.RunsetSettings(
            filters=runs_of(tables), groupby=[ws.Metric("Group"), ws.Metric("JobType")]
        ),
    )


def runs_of(tables: Sequence[Table], *tags: str) -> "expr.And":
    """The filter for the tables' runs. A run is in the group of its first table and has the other
    tables as tags."""
    names = [table.experiment.name for table in tables]
    ids = list(dict.fromkeys(id_ for table in tables for id_ in table.runs.id))
    in_tables = expr.Or(expr.Metric("Group").isin(names), expr.Tags().isin(names))
    with_tags = [expr.Tags().isin([tag]) for tag in tags]
    return expr.And(in_tables, *with_tags, expr.Metric("ID").isin(ids))


def plots(row: "wr.Config | wr.Metric", evaluation_names: Sequence[str]) -> list:
    """Bar charts and curves: mean and standard deviation over each row's runs."""
    bars = PANELS["bars"] | {
        f"AP without and with NMS, evaluation {name}": [f"{name}/AP", f"{name}/AP_nms"]
        for name in evaluation_names
    }
    grouping = {
        "groupby": row,
        "groupby_aggfunc": "mean",
        "groupby_rangefunc": "stddev",
        "max_runs_to_show": MAX_RUNS,
    }
    return [
        *(wr.BarPlot(title=t, metrics=m, **grouping) for t, m in bars.items()),
        *(wr.LinePlot(title=t, x=STEP, y=m, **grouping) for t, m in PANELS["curves"].items()),
    ]


def images() -> "list[wr.MediaBrowser]":
    return [wr.MediaBrowser(title=t, media_keys=keys) for t, keys in PANELS["images"].items()]


def arrange(panels: list) -> list:
    """Arranges the panels three to a line."""
    for number, panel in enumerate(panels):
        line, column = divmod(number, 24 // WIDTH)
        panel.layout = wr.Layout(x=column * WIDTH, y=line * WIDTH, w=WIDTH, h=WIDTH)
    return panels


if __name__ == "__main__":
    sys.exit(run_command(main))
