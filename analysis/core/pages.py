"""Lays out a table for people: its columns, notes and commands."""

import contextlib
import shlex
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.core.frame import COCO
from analysis.core.render import NOTES, Page
from analysis.core.table import Table, evaluators_of, without_records_root
from onenet.data.sizes import ImageSize
from onenet.detectors import DETECTORS
from onenet.runs.identity import RECIPE
from onenet.sweeps import summary
from onenet.sweeps.experiments import RunSpec
from onenet.sweeps.summary import COLUMNS, columns_and_cells, with_std

MAX_COMMANDS = 12  # below a table


def page(table: Table) -> Page:
    """Returns the contents of a table's page."""
    experiment = table.experiment
    settings = pd.DataFrame([_settings(spec) for spec in table.specs], index=table.specs.index)
    varying = [*settings.columns[settings.nunique() > 1]]
    notes = [*table.paper.notes.dropna().unique()]
    labels = [f"{row} [{notes.index(note) + 1}]" if note in notes else row
              for row, note in table.paper.notes.items()]  # fmt: skip
    root, todo = table.specs.iloc[0].config.runs_root, ""
    if table.missing:
        absent = "" if Path(root).is_dir() else ", which does not exist yet"
        todo = f"{missing_summary(table.runs.done)} Runs are read from {root}{absent}."
    main = pd.concat([settings[varying], _main_columns(table)], axis=1)
    number = f"Table {experiment.table}. " if experiment.table else ""
    return Page(
        heading=number + experiment.title,
        question=experiment.question,
        context=_context(table, settings.iloc[0].drop(varying)),
        tables=[
            main.set_axis(pd.Index(labels, name="row")).set_index(varying, append=True),
            _coco_table(table, labels),
        ],
        notes=[*(f"[{i}] {note}" for i, note in enumerate(notes, 1)), *_legend(table)],
        todo=todo,
        commands=_commands(table) if todo else [],
    )


def _main_columns(table: Table) -> pd.DataFrame:
    """The paper's question: AP, the gain from NMS, duplicates."""
    numbers, nms = table.numbers, table.paper.AP_nms.notna().any()
    gain = ours(numbers, *COLUMNS["gain"])
    columns = {
        "lr": table.specs.map(lambda spec: f"{spec.config.lr:g}"),
        "n": _counts(table.runs),
        "AP paper": _cells(numbers, "AP", "paper"),
        "AP ours": ours(numbers, "AP"),
        "gap": _cells(numbers, "AP", "gap", "+.1f"),
    }
    if nms:
        printed = _cells(numbers, "nms_gain", "paper", "+.1f")
        columns |= {
            "AP(+NMS) paper": _cells(numbers, "AP_nms", "paper") + _in_brackets(printed),
            "AP(+NMS) ours": ours(numbers, "AP_nms") + _in_brackets(gain),
            "gap ": _cells(numbers, "AP_nms", "gap", "+.1f"),
        }
    else:
        columns["NMS gain"] = gain
    columns["AP50 gain"] = ours(numbers, *COLUMNS["gain AP50"])
    columns |= {name: ours(numbers, *COLUMNS[name]) for name in ("dup/obj", "dAP dupe")
                if name == "dup/obj" or table.has_tide}  # fmt: skip
    if table.paper.train_hours.notna().any():
        columns["hours paper"] = _cells(numbers, "train_hours", "paper", "g")
        columns["hours ours"] = ours(numbers, "train_hours", ".2f")
    return pd.DataFrame(columns).rename(columns=str.strip)


def _coco_table(table: Table, labels: Sequence[str]) -> pd.DataFrame:
    """All COCO metrics: the paper's, below them ours, below those the gap."""
    numbers, metrics, lines = table.numbers, [*COCO, "FPS"], []
    fps = _cells(numbers, "FPS", "ours_mean", ".3g").replace("-", "")
    paper, our, gap = (
        pd.DataFrame({metric: cells(metric) for metric in COCO} | {"FPS": speed})
        for cells, speed in (
            (lambda metric: _cells(numbers, metric, "paper"), _cells(numbers, "FPS", "paper", "g")),
            (lambda metric: ours(numbers, metric), fps),
            (lambda metric: _cells(numbers, metric, "gap", "+.1f"), ""),
        )
    )
    printed = table.paper.drop(columns="notes").notna().any(axis=1)
    for label, (row, count) in zip(labels, _counts(table.runs).items(), strict=True):
        lines += [(label, "paper", *paper.loc[row]), ("", f"ours, n = {count}", *our.loc[row])]
        if printed[row] and not count.startswith("0"):
            lines.append(("", "gap", *gap.loc[row]))
    return pd.DataFrame(lines, columns=["row", "", *metrics]).set_index(["row", ""])


def _settings(spec: RunSpec) -> dict[str, str]:
    """The settings of a row that a reader needs besides its label. Those that vary from row to row
    become columns."""
    config, evaluation = spec.config, spec.evaluation
    shapes, limit = config.data.shapes, config.data.limit
    if config.data.name == "shapes":
        train, val = (min(n, limit or n) for n in (shapes.train_images, shapes.val_images))
        data = f"built-in shapes ({shapes.kind}), {train} training and {val} validation images"
    else:
        images = f", {limit} images per split" if limit else ""
        data = f"data {Path(config.data.root).name}{images}"
    size = f"size {_size(config.size.short, config.size.ratio)}"
    if (evaluation.short, evaluation.ratio) != (config.size.short, config.size.ratio):
        size += f", evaluated at {_size(evaluation.short, evaluation.ratio)}"
    reads = DETECTORS[config.detector].reads
    neck = f", neck {config.neck.name}" if "neck" in reads else ""
    scaled = evaluation.area == "relative" and evaluation.short != 512
    return {
        "scale": f"preset {config.preset}" + (f", debug {config.debug}" if config.debug else ""),
        "data": data + ("" if evaluation.split == "val" else f", evaluated on {evaluation.split}"),
        "peaks": "3×3 peaks picked" if evaluation.peaks else "no peaks picked",
        "size": size,
        "schedule": f"{config.steps} steps of {config.batch}",
        "model": f"{config.detector} with backbone {config.backbone.name}{neck}",
        "assigner": f"assigner {config.assigner.name}" if "assigner" in reads else "not matched",
        "areas": "APs/m/l: COCO's bounds" + (f" × ({evaluation.short}/512)²" if scaled else ""),
    }


def _context(table: Table, common: Sequence[str]) -> list[str]:
    done = table.done
    evaluators = sorted({*evaluators_of(done)})
    origin = [f"scored by {' and '.join(evaluators)}"] if evaluators else []
    recipe = f"recipe {RECIPE if done.empty else int(done.recipe.iloc[0])}"
    lines = ["; ".join(common), "; ".join([*origin, recipe])]
    configs = [spec.config for spec in table.runs.spec]
    if any(config.preset != "paper" or config.data.name != "coco" for config in configs):
        lines.append(NOTES["scale"])
    return lines


def _legend(table: Table) -> list[str]:
    lines = [*NOTES["table"], *([NOTES["tide"]] if table.has_tide else [])]
    if table.paper.FPS.notna().any():
        lines.append(
            f"FPS ours: network and post-processing, batch 1, float32, on {table.fps_device}"
            if table.fps_device
            else "FPS ours: python analysis/benchmark.py fps"
        )
    metrics = (*COCO, "AP_nms", "nms_gain", "AP50_nms_gain", "duplicates_per_object")
    reasons = {
        f"{metric}: {reason}"
        for spec in table.done.spec
        for metric, reason in spec.folder.result(spec.evaluation).get("metrics_notes", {}).items()
        if metric in metrics
    }
    return lines + sorted(reasons)


def _commands(table: Table) -> list[str]:
    """Returns the command for the whole table, then one for each of the first missing runs."""
    lines = [f"{table.command}  # all of them", *run_commands(table.missing, table.overrides)]
    if (more := len(table.missing) - MAX_COMMANDS) > 0:
        lines.append(f"# and {more} more: {table.command}")
    return lines


def run_commands(specs: Sequence[RunSpec], overrides: Sequence[str]) -> list[str]:
    """Returns the commands of the first specs, each with the reason why it has no result."""
    root = [each for each in without_records_root(overrides) if each.startswith("runs_root=")]
    lines = []
    for spec in specs[:MAX_COMMANDS]:
        reason = why_missing(spec)[:150]
        command = " ".join([spec.command, *map(shlex.quote, root)])
        lines.append(f"{command}  # {reason}" if reason else command)
    return lines


def sweep_page(runs: pd.DataFrame, overrides: Sequence[str]) -> Page:
    """Returns the page of any runs (`Table.runs`), with the columns of run.py's closing table."""
    groups = runs.groupby("row", sort=False)
    names, cells = columns_and_cells([
        group[group.done].to_dict("records") for _, group in groups
    ])  # fmt: skip
    rates = [f"{spec.config.lr:.2g}" for spec in groups.spec.first()]
    lines = [[lr, n, *line] for lr, n, line in zip(rates, _counts(runs), cells, strict=True)]
    missing = [*runs.spec[~runs.done]]
    index = pd.Index([*groups.groups], name="run")
    return Page(
        heading="Sweep",
        question="",
        context=[shlex.join(["python", "run.py", "-m", *without_records_root(overrides)])],
        tables=[pd.DataFrame(lines, columns=["lr", "n", *names], index=index)],
        notes=[NOTES["sweep"]],
        todo=missing_summary(runs.done) if missing else "",
        commands=run_commands(missing, overrides),
    )


def why_missing(spec: RunSpec) -> str:
    """Says in one line why a run has no result; empty if it was never started."""
    status = spec.folder.status()
    if status.get("state") == "failed":
        return f"failed: {' '.join(str(status.get('exception') or 'unknown').split())}"
    with contextlib.suppress(OSError):  # a read-only runs root has no locks that show running runs
        state = spec.folder.state()
        return {"missing": "", "done": "trained, but without this evaluation"}.get(state, state)
    return ""


def missing_summary(done: pd.Series) -> str:
    """Says in one sentence how many results are missing. `done`: of each requested run."""
    count, total = (~done).sum(), len(done)
    return f"Missing: {count} of {total} results." if count else f"All {total} results are present."


# --- the cells of a column, by row ---


def ours(numbers: pd.DataFrame, metric: str, pattern: str = ".1f") -> pd.Series:
    """Our mean ± standard deviation; with n if the metric is undefined for some of the seeds.
    `numbers`: as `Table.numbers`."""
    frame = numbers.xs(metric, level="metric")
    columns = (frame[name] for name in ("ours_mean", "ours_std", "n", "done"))
    cells = [
        with_std(mean, std, pattern) + (f" (n = {n})" if 0 < n < done else "")
        for mean, std, n, done in zip(*columns, strict=True)
    ]
    return pd.Series(cells, index=frame.index)


def _cells(numbers: pd.DataFrame, metric: str, column: str, pattern: str = ".1f") -> pd.Series:
    values = numbers.xs(metric, level="metric")[column]
    return values.map(lambda value: summary.number(value, pattern))


def _in_brackets(gains: pd.Series) -> pd.Series:
    """The gain of AP(+NMS), as in the paper."""
    return (" (" + gains + ")").where(gains != "-", "")


def _counts(runs: pd.DataFrame) -> pd.Series:
    done = runs.groupby("row", sort=False).done
    return done.agg(lambda each: f"{each.sum()}" if each.all() else f"{each.sum()}/{len(each)}")


def _size(short: int, ratio: float) -> str:
    """Formats an image size as the paper does: the shortest side, and the limit of the longest."""
    return f"({short}, {ImageSize(short, ratio).longest})"
