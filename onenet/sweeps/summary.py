"""What a sweep prints at its end: the table of its runs, its picture, and what failed."""

from collections.abc import Iterable, Sequence

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from onenet.sweeps import picture
from onenet.sweeps.experiments import RunSpec
from onenet.sweeps.launch import Statuses
from onenet.sweeps.plan import Run
from onenet.system.printable import printable

COLUMNS = {  # metric and format, by the column's name
    "AP": ("AP", ".1f"),
    "AP(+NMS)": ("AP_nms", ".1f"),
    "gain": ("nms_gain", "+.1f"),
    "gain AP50": ("AP50_nms_gain", "+.1f"),
    "dup/obj": ("duplicates_per_object", ".2f"),
    "dAP dupe": ("dAP_dupe", ".1f"),
}


def print_results(console: Console, runs: list[Run], statuses: Statuses) -> None:
    """Prints the table of the runs, what failed and why, and where everything is. Draws the
    picture."""
    labels = row_labels([spec for run in runs for spec in run.specs])
    rows = []
    for spec, label in labels.items():
        if result := spec.folder.result(spec.evaluation):
            rows.append((label, spec, result["metrics"]))
    if rows:
        columns = dict(COLUMNS)
        if not any("dAP_dupe" in metrics for _, _, metrics in rows):  # of an earlier version
            del columns["dAP dupe"]
        cells = [_cells(label, spec, metrics, columns) for label, spec, metrics in rows]
        print_table(console, ("run", "lr", *columns, "time"), cells)
    for run in runs:
        if run.state() != "done":
            print_failure(console, run, statuses)
    root = runs[0].config.root
    if rows:
        file = root / "answer.png"
        try:
            picture.draw([(label, metrics) for label, _, metrics in rows], file)
            console.out(f"\nThe picture: {file}")
        except OSError as error:  # the root is read-only, or someone else's
            console.out(f"\nThe picture cannot be written: {error}")
    console.out(f"Everything is in {root}")


def print_table(console: Console, names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        justify: JustifyMethod = "left" if name == "run" else "right"
        table.add_column(Text(printable(name)), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))  # a string would be read as markup
    console.print(table)


def print_failure(console: Console, run: Run, statuses: Statuses) -> None:
    console.out(f"\nNOT DONE  {run.name}: {failure(run, statuses)}")
    console.out(f"  log: {run.folder.log_file}")


def failure(run: Run, statuses: Statuses) -> str:
    """Returns why the run is not done, in a line. `statuses`: of the sweep's processes."""
    state = run.folder.state()
    if state == "unreadable":
        return "its folder cannot be read: ask its owner, or use another runs_root"
    if state == "running":
        return "another process is running it"
    status, kind = run.folder.status(), run.folder.kind()
    if problem := status.get("evaluation_error") or status.get("exception"):
        return " ".join(problem.removeprefix("UserError: ").split())
    if kind == "preempted":
        return "stopped: the same command goes on"
    end = f"ended with {statuses[run.name]}" if run.name in statuses else "ended"
    if kind == "killed":
        return f"{end} (killed, or out of memory?)"
    return f"{end}: see its log" if run.name in statuses else "not started"


def row_labels(specs: list[RunSpec]) -> dict[RunSpec, str]:
    """Returns for each spec the label of its row, and the overrides that distinguish it from other
    specs of the row."""
    labels = {}
    for spec in specs:
        row = [set(other.overrides) for other in specs if other.label == spec.label]
        common = set.intersection(*row) if len(row) > 1 else set()
        own = " ".join(override for override in spec.overrides if override not in common)
        parts = [spec.label, own if not spec.label or len(row) > 1 else ""]
        labels[spec] = ", ".join(filter(None, parts)) or "(defaults)"
    return labels


def _cells(
    label: str, spec: RunSpec, metrics: dict, columns: dict[str, tuple[str, str]]
) -> list[str]:
    numbers = [
        "-" if metrics.get(metric) is None else format(metrics[metric], pattern)
        for metric, pattern in columns.values()
    ]
    seconds = metrics.get("train_seconds")
    time = "-" if seconds is None else f"{seconds / 60:.1f} min"
    return [label, f"{spec.config.lr:.2g}", *numbers, time]
