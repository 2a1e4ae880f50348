"""What a sweep says at its end: the table of its runs, its picture, and what failed."""

from rich.console import Console
from rich.table import Table

from onenet.sweeps import answer
from onenet.sweeps.experiments import RunSpec
from onenet.sweeps.launch import Statuses
from onenet.sweeps.plan import Run


def print_results(console: Console, planned: list[Run], ended: Statuses) -> None:
    """The table of a sweep's runs and its picture, what failed and why, where everything is."""
    labels = row_labels([spec for run in planned for spec in run.specs])
    rows = [
        (labels[spec], spec, result)
        for run in planned
        for spec in run.specs
        if (result := run.folder.result(spec.evaluation))
    ]
    root = planned[0].config.root
    if rows:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("run", overflow="fold")
        for name in ("lr", "AP", "AP(+NMS)", "gain", "gain AP50", "dup/obj", "time"):
            table.add_column(name, justify="right", no_wrap=True)
        for label, spec, result in rows:
            table.add_row(label, *_numbers(spec, result))
        console.print(table)
    failed = [run for run in planned if run.state() != "done"]
    for run in failed:
        console.out(f"\nNOT DONE  {run.name}: {failure(run, ended)}", highlight=False)
        console.out(f"  log: {run.folder.log_file}", highlight=False)
    if rows:
        answer.draw([(label, result["metrics"]) for label, _, result in rows], root / "answer.png")
        console.out(f"\nThe picture: {root / 'answer.png'}", highlight=False)
    console.out(f"Everything is in {root}", highlight=False)


def failure(run: Run, ended: Statuses) -> str:
    """Why the run is not done, in a line. `ended`: what processes of the sweep ended with."""
    status, kind = run.folder.status(), run.folder.kind()
    if run.folder.state() == "running":
        return "another process is running it"
    if problem := status.get("evaluation_error") or status.get("exception"):
        return " ".join(problem.removeprefix("UserError: ").split())
    if kind == "preempted":
        return "stopped: the same command goes on"
    how = f"ended with {ended[run.name]}" if run.name in ended else "ended"
    if kind == "killed":
        return f"{how} (killed, or out of memory?)"
    return f"{how}: see its log" if run.name in ended else "not started"


def row_labels(specs: list[RunSpec]) -> dict[RunSpec, str]:
    """For each spec the label of its row, and the overrides that tell it from its like."""
    labels = {}
    for spec in specs:
        like = [set(other.overrides) for other in specs if other.label == spec.label]
        common = set.intersection(*like) if len(like) > 1 else set()
        own = [o for o in spec.overrides if o not in common]
        words = " ".join(own) if not spec.label or len(like) > 1 else ""
        labels[spec] = ", ".join(filter(None, [spec.label, words])) or "(defaults)"
    return labels


def _numbers(spec: RunSpec, result: dict) -> list[str]:
    m = result["metrics"]

    def number(name: str, pattern: str) -> str:
        return "-" if m.get(name) is None else format(m[name], pattern)

    return [
        f"{spec.config.lr:.2g}",
        number("AP", ".1f"),
        number("AP_nms", ".1f"),
        number("nms_gain", "+.1f"),
        number("AP50_nms_gain", "+.1f"),
        number("duplicates_per_object", ".2f"),
        f"{m['train_seconds'] / 60:.1f} min",
    ]
