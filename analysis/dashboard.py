"""A W&B report of the tables: each row's AP without and with NMS, what NMS gains, curves, images.

    python analysis/dashboard.py                          every table that has an experiment
    python analysis/dashboard.py --table 1 2 -- data.shapes.kind=parts
    python analysis/dashboard.py --workspace              a saved view of the project instead
    python analysis/dashboard.py --json FILE              what would be sent; no network, no key

Words after `--` are run.py's: a table shows the runs that its experiment resolves to, as
analysis/tables.py does. W&B's group of a run is its table, its job type the row, its seed a tag.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from analysis.core.rows import command_of
from analysis.tables import experiments
from onenet.config.compose import compose, use_folder
from onenet.errors import UserError
from onenet.runs.evaluations import default_evaluation
from onenet.sweeps.experiments import Experiment, RunSpec, expand
from onenet.system.files import write_json
from onenet.tracking.wandb_run import at_most, first_line, keep_inside

try:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    MISSING = ""
except ImportError as error:
    MISSING = str(error)

ANSWER_SECONDS = 10  # for W&B's first word
SAVE_SECONDS = 60
GOODBYE_SECONDS = 5  # for wandb to end its own process
BARS = {  # of a run's summary
    "AP without and with NMS, default evaluation": ("AP", "AP_nms"),
    "What NMS gains in AP and AP50": ("nms_gain", "AP50_nms_gain"),
    "Redundant boxes an object": ("duplicates_per_object",),
}
STEP = "train/step"
CURVES = {
    "Training loss": ("train/loss",),
    "AP without and with NMS on the first 64 images": ("eval/first64/AP", "eval/first64/AP_nms"),
    "Objects that share a sample": ("train/conflicts",),
}
IMAGES = {
    "Boxes without NMS": "boxes/before_nms",
    "Boxes with NMS": "boxes/after_nms",
    "Positive samples": "positives",
}
WIDTH = 8  # of a panel: a third of a report's 24 columns
MOST_RUNS = 100  # in a panel


@dataclass(frozen=True)
class Table:
    """An experiment and its runs, under run.py's overrides."""

    experiment: Experiment
    overrides: tuple[str, ...]
    specs: list[RunSpec]

    @property
    def title(self) -> str:
        return f"Table {self.experiment.table}: {self.experiment.title}"

    @property
    def command(self) -> str:
        return command_of(self.experiment.name, self.overrides)

    @property
    def seed(self) -> int:
        """Whose images are shown."""
        return min(spec.config.seed for spec in self.specs)

    @property
    def evaluations(self) -> list[str]:
        """Those that rows ask for beside each run's default one; W&B has their numbers apart."""
        other = (c.evaluation for c in self.specs if c.evaluation != default_evaluation(c.config))
        return list(dict.fromkeys(evaluation.id for evaluation in other))


def main(arguments: list[str]) -> int:
    """0, or 2 if the input cannot work or W&B does not take it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entity", help="default: conf/tracker/wandb.yaml's, or else your own")
    parser.add_argument("--project", help="default: conf/tracker/wandb.yaml's")
    parser.add_argument("--table", nargs="+", type=int, metavar="N", help="default: all")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--report", action="store_true", help="the default")
    kind.add_argument("--workspace", action="store_true")
    parser.add_argument("--json", metavar="FILE", help="write it here instead of sending it")
    parser.add_argument("overrides", nargs="*", metavar="-- KEY=VALUE", help="as for run.py")
    parser.add_argument("--config-dir", metavar="DIR", help="as for run.py")
    args = parser.parse_args(arguments)
    try:
        use_folder(args.config_dir)
        if MISSING:
            raise UserError(
                f"A dashboard needs wandb-workspaces: pip install -e '.[dashboard]' ({MISSING})"
            )
        tracker = compose(["tracker=wandb"]).tracker
        entity, project = args.entity or tracker.entity, args.project or tracker.project
        words = tuple(args.overrides)
        tables = [
            Table(e, words, expand([f"+experiment={e.name}", *words]))
            for e in experiments(args.table)
        ]
        make = workspace if args.workspace else report
        if args.json:
            write_spec(args.json, make(tables, entity or "", project, linked=False))
            print(f"Wrote {args.json}")
        else:
            print(saved(make, tables, entity, project))
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def write_spec(file: str, made: "wr.Report | ws.Workspace") -> None:
    spec = made._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    try:
        write_json(Path(file).expanduser(), spec)
    except OSError as error:
        raise UserError(f"--json {file} cannot be written: {error}") from error


# --- W&B ---


def saved(make, tables: Sequence[Table], entity: str | None, project: str) -> str:
    """Has W&B keep what is made, and returns its address. Raises UserError."""
    with apart():
        entity = owner(entity, project)
        with asking(SAVE_SECONDS):
            return make(tables, entity, project).save().url


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """With wandb's files in a folder of their own, which is then removed."""
    import wandb

    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as place:
        keep_inside(Path(place) / "wandb")
        try:
            yield
        finally:
            with contextlib.suppress(TimeoutError), at_most(GOODBYE_SECONDS):
                wandb.teardown()  # its process waits for a server that hangs; it ends with ours
            os.environ.clear()
            os.environ |= before


@contextlib.contextmanager
def asking(seconds: float) -> Iterator[None]:
    """Raises UserError for whatever W&B does inside but answer in time."""
    import wandb

    try:
        with at_most(seconds):
            yield
    except wandb.errors.UsageError as error:
        raise UserError(
            f"W&B does not know you: {first_line(error)}\n"
            "Log in (wandb login), or see what would be sent: --json FILE"
        ) from error
    except Exception as error:  # of any kind: who knows what answers at that address
        url = wandb.setup().settings.base_url
        raise UserError(f"W&B at {url} does not take it: {first_line(error)}") from error


def owner(entity: str | None, project: str) -> str:
    """The entity, after W&B has said that the project is there. Raises UserError."""
    import wandb

    found = None
    with asking(ANSWER_SECONDS):
        api = wandb.Api(timeout=ANSWER_SECONDS)
        own = api.default_entity
        entity = entity or own
        with contextlib.suppress(ValueError):  # for an entity that it does not know
            found = sorted(known.name for known in api.projects(entity))
    if found is None:
        raise UserError(f"W&B knows no entity {entity}. Yours is: {own}")
    if project not in found:
        raise UserError(
            f"{entity} has no project {project}, but: {', '.join(found[:5]) or 'none'}.\n"
            "Name another (--project), or send runs first: python analysis/sync.py"
        )
    return entity


# --- what is made ---


def report(tables: Sequence[Table], entity: str, project: str, linked: bool = True):
    """The wr.Report. A run of several tables has its label in each under `rows` of its W&B config.

    `linked`: the run sets name the project; W&B is asked for its number.
    """
    home = {"entity": entity, "project": project} if linked else {}
    blocks = []
    for shown in tables:
        label, seed = f"rows.{shown.experiment.name}", f"seed {shown.seed}"
        rows, row = runs_of([shown]), wr.Config(label)
        every = wr.Runset(**home, name="rows", filters=rows, groupby=[f"config.{label}"])
        one_seed = wr.Runset(**home, name=seed, filters=runs_of([shown], seed))
        blocks += [
            wr.H2(shown.title),
            wr.P(shown.experiment.question),
            wr.P(["Filled by ", wr.InlineCode(shown.command)]),
            wr.PanelGrid(runsets=[every], panels=placed(plots(row, shown.evaluations))),
            wr.PanelGrid(runsets=[one_seed], panels=placed(images())),
        ]
    return wr.Report(
        entity=entity,
        project=project,
        title="What removes the need for NMS",
        description="Made by analysis/dashboard.py. The record is the run folders, not W&B.",
        blocks=blocks,
        width="fluid",
    )


def workspace(tables: Sequence[Table], entity: str, project: str, linked: bool = True):
    """The ws.Workspace: the same panels for all tables, and the runs by group and job type."""
    evaluations = dict.fromkeys(name for shown in tables for name in shown.evaluations)
    panels = {"Rows": plots(wr.Metric("JobType"), list(evaluations)), "Images": images()}
    return ws.Workspace(
        entity=entity,
        project=project,
        name=", ".join(shown.experiment.name for shown in tables),
        sections=[ws.Section(name=name, panels=p, is_open=True) for name, p in panels.items()],
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=MOST_RUNS),
        runset_settings=ws.RunsetSettings(
            filters=runs_of(tables), groupby=[ws.Metric("Group"), ws.Metric("JobType")]
        ),
    )


def runs_of(tables: Sequence[Table], *tags: str) -> "expr.And":
    """The tables' runs: in their group or, if they are of another table first, tagged with it."""
    names = [shown.experiment.name for shown in tables]
    ids = list(dict.fromkeys(spec.id for shown in tables for spec in shown.specs))
    belongs = expr.Or(expr.Metric("Group").isin(names), expr.Tags().isin(names))
    tagged = [expr.Tags().isin([tag]) for tag in tags]
    return expr.And(belongs, *tagged, expr.Metric("ID").isin(ids))


def plots(row: "wr.Config | wr.Metric", evaluations: Sequence[str]) -> list:
    """Bars and curves: mean and standard deviation of each row's runs."""
    bars = dict(BARS)
    for name in evaluations:
        bars[f"AP without and with NMS, as {name}"] = (f"{name}/AP", f"{name}/AP_nms")
    of_rows = {
        "groupby": row,
        "groupby_aggfunc": "mean",
        "groupby_rangefunc": "stddev",
        "max_runs_to_show": MOST_RUNS,
    }
    return [
        *(wr.BarPlot(title=t, metrics=list(m), **of_rows) for t, m in bars.items()),
        *(wr.LinePlot(title=t, x=STEP, y=list(m), **of_rows) for t, m in CURVES.items()),
    ]


def images() -> "list[wr.MediaBrowser]":
    return [wr.MediaBrowser(title=title, media_keys=[key]) for title, key in IMAGES.items()]


def placed(panels: list) -> list:
    """Three panels beside each other."""
    for number, panel in enumerate(panels):
        down, across = divmod(number, 24 // WIDTH)
        panel.layout = wr.Layout(x=across * WIDTH, y=down * WIDTH, w=WIDTH, h=WIDTH)
    return panels


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
