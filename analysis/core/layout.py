"""Lays out a table for people: its columns, notes and commands."""

import shlex
from collections.abc import Callable
from pathlib import Path

from analysis.core.formats import Block, Sheet
from analysis.core.rows import (
    Comparison,
    Stat,
    TableRow,
    evaluator,
    why_missing,
    without_records_root,
)
from onenet.config.schema import Config
from onenet.data.sizes import ImageSize
from onenet.detectors import DETECTORS
from onenet.runs.identity import RECIPE
from onenet.sweeps.experiments import RunSpec

COCO = ("AP", "AP50", "AP75", "APs", "APm", "APl")
MAX_COMMANDS = 12  # below a table


def sheet(comparison: Comparison) -> Sheet:
    """Returns the contents of a table's page."""
    experiment, rows = comparison.experiment, comparison.rows
    settings = [_settings(row.specs[0]) for row in rows]
    varying = [key for key in settings[0] if len({s[key] for s in settings}) > 1]
    notes = list(dict.fromkeys(row.paper.note for row in rows if row.paper.note))
    labels = [
        f"{row.label} [{notes.index(row.paper.note) + 1}]" if row.paper.note else row.label
        for row in rows
    ]
    todo = ""
    if comparison.missing_specs:
        root = comparison.specs[0].config.runs_root
        absent = "" if Path(root).is_dir() else ", which does not exist yet"
        todo = f"{missing_summary([comparison])} Runs are read from {root}{absent}."
    return Sheet(
        heading=f"Table {experiment.table}. {experiment.title}"
        if experiment.table
        else experiment.title,
        question=experiment.question,
        context=_context(comparison, [v for k, v in settings[0].items() if k not in varying]),
        blocks=[
            _main_block(rows, labels, [(key, [s[key] for s in settings]) for key in varying]),
            _coco_block(rows, labels),
        ],
        notes=[*(f"[{i}] {note}" for i, note in enumerate(notes, 1)), *_legend(comparison)],
        todo=todo,
        commands=_commands(comparison) if todo else [],
    )


def _main_block(
    rows: list[TableRow], labels: list[str], varying: list[tuple[str, list[str]]]
) -> Block:
    """The paper's question: AP, the gain from NMS, duplicates."""
    nms = any("AP_nms" in row.paper.numbers for row in rows)
    columns = [("row", labels), *varying]
    columns += [
        ("lr", [f"{row.specs[0].config.lr:g}" for row in rows]),
        ("n", [_count(row) for row in rows]),
        ("AP paper", [_paper(row, "AP") for row in rows]),
        ("AP ours", [_ours(row, "AP") for row in rows]),
        ("gap", [number(row.gap("AP"), "+.1f") for row in rows]),
    ]
    if nms:
        columns += [
            ("AP(+NMS) paper", [_with_gain(_paper, row) for row in rows]),
            ("AP(+NMS) ours", [_with_gain(_ours, row) for row in rows]),
            ("gap", [number(row.gap("AP_nms"), "+.1f") for row in rows]),
        ]
    else:
        columns.append(("NMS gain", [_ours(row, "nms_gain", "+.1f") for row in rows]))
    columns += [
        ("AP50 gain", [_ours(row, "AP50_nms_gain", "+.1f") for row in rows]),
        ("dup/obj", [_ours(row, "duplicates_per_object", ".2f") for row in rows]),
    ]
    if has_tide(rows):
        columns.append(("dAP dupe", [_ours(row, "dAP_dupe") for row in rows]))
    if any("train_hours" in row.paper.numbers for row in rows):
        columns += [
            ("hours paper", [_paper(row, "train_hours", "g") for row in rows]),
            ("hours ours", [_ours(row, "train_hours", ".2f") for row in rows]),
        ]
    header = [name for name, _ in columns]
    lines = [list(line) for line in zip(*(cells for _, cells in columns), strict=True)]
    return Block(header, lines, text_columns=1 + len(varying))


def _coco_block(rows: list[TableRow], labels: list[str]) -> Block:
    """All COCO metrics: the paper's, below them ours, below those the gap."""
    lines = []
    for row, label in zip(rows, labels, strict=True):
        lines.append([label, "paper", *(_paper(row, m) for m in COCO), _paper(row, "FPS", "g")])
        lines.append(["", f"ours, n = {_count(row)}", *(_ours(row, m) for m in COCO), _fps(row)])
        if row.results and row.paper.numbers:
            lines.append(["", "gap", *(number(row.gap(m), "+.1f") for m in COCO), ""])
    return Block(["row", "", *COCO, "FPS"], lines, text_columns=2)


def _settings(spec: RunSpec) -> dict[str, str]:
    """The settings of a row that a reader needs besides its label. Those that vary from row to row
    become columns."""
    config, evaluation = spec.config, spec.evaluation
    shapes, limit = config.data.shapes, config.data.limit
    if config.data.name == "shapes":
        train, val = (min(n, limit or n) for n in (shapes.train_images, shapes.val_images))
        data = f"built-in shapes ({shapes.kind}), {train} training and {val} validation images"
    else:
        data = f"data {Path(config.data.root).name}" + (
            f", {limit} images per split" if limit else ""
        )
    size = f"size {_size(config.size.short, config.size.ratio)}"
    if (evaluation.short, evaluation.ratio) != (config.size.short, config.size.ratio):
        size += f", evaluated at {_size(evaluation.short, evaluation.ratio)}"
    scaled = evaluation.area == "relative" and evaluation.short != 512
    return {
        "scale": f"preset {config.preset}" + (f", debug {config.debug}" if config.debug else ""),
        "data": data + ("" if evaluation.split == "val" else f", evaluated on {evaluation.split}"),
        "peaks": "3×3 peaks picked" if evaluation.peaks else "no peaks picked",
        "size": size,
        "schedule": f"{config.steps} steps of {config.batch}",
        "model": _model(config),
        "assigner": _assigner(config),
        "areas": "APs/m/l: COCO's bounds" + (f" × ({evaluation.short}/512)²" if scaled else ""),
    }


def _model(config: Config) -> str:
    neck = f", neck {config.neck.name}" if "neck" in DETECTORS[config.detector].reads else ""
    return f"{config.detector} with backbone {config.backbone.name}{neck}"


def _assigner(config: Config) -> str:
    matched = "assigner" in DETECTORS[config.detector].reads
    return f"assigner {config.assigner.name}" if matched else "not matched"


def _context(comparison: Comparison, common: list[str]) -> list[str]:
    evaluators = sorted({evaluator(result) for result in comparison.results})
    recipes = {result["recipe"] for result in comparison.results} or {RECIPE}
    origin = [f"scored by {' and '.join(evaluators)}"] if evaluators else []
    lines = ["; ".join(common), "; ".join([*origin, *(f"recipe {r}" for r in recipes)])]
    configs = [spec.config for spec in comparison.specs]
    if any(c.preset != "paper" or c.data.name != "coco" for c in configs):
        lines.append(
            "The paper's numbers are for COCO val2017 at full scale: compare the order of the "
            "rows and their differences, not the absolute values"
        )
    return lines


def has_tide(rows: list[TableRow]) -> bool:
    """Whether a run has TIDE's errors, which came later than the other metrics."""
    return any("dAP_dupe" in r["metrics"] for row in rows for r in row.results.values())


def _legend(comparison: Comparison) -> list[str]:
    lines = [
        "ours: mean ± sample standard deviation over n seeds; gap: ours minus paper",
        "+NMS and gains: class-wise NMS at IoU 0.5 on the same detections; dup/obj: duplicates per "
        "detected object, at the score threshold that reaches 0.9 of the maximal recall",
    ]
    if has_tide(comparison.rows):
        lines.append("dAP dupe: AP50 lost to duplicates (TIDE); earlier results do not have it")
    if any("FPS" in row.paper.numbers for row in comparison.rows):
        lines.append(
            f"FPS ours: network and post-processing, batch 1, float32, on {comparison.fps_device}"
            if comparison.fps_device
            else "FPS ours: python analysis/benchmark.py fps"
        )
    metrics = (*COCO, "AP_nms", "nms_gain", "AP50_nms_gain", "duplicates_per_object")
    reasons = {
        f"{metric}: {reason}"
        for result in comparison.results
        for metric, reason in result.get("metrics_notes", {}).items()
        if metric in metrics
    }
    return lines + sorted(reasons)


def _commands(comparison: Comparison) -> list[str]:
    """Returns the command for the whole table, then one for each of the first missing runs."""
    overrides = without_records_root(comparison.overrides)
    root = [override for override in overrides if override.startswith("runs_root=")]
    lines = [f"{comparison.command}  # all of them"]
    for spec in comparison.missing_specs[:MAX_COMMANDS]:
        reason = why_missing(spec)[:150]
        command = " ".join([spec.command, *map(shlex.quote, root)])
        lines.append(f"{command}  # {reason}" if reason else command)
    if (more := len(comparison.missing_specs) - MAX_COMMANDS) > 0:
        lines.append(f"# and {more} more: {comparison.command}")
    return lines


def missing_summary(comparisons: list[Comparison]) -> str:
    """Says in one sentence how many results are missing."""
    count = sum(len(c.missing_specs) for c in comparisons)
    total = sum(len(c.specs) for c in comparisons)
    return f"Missing: {count} of {total} results." if count else f"All {total} results are present."


# --- one cell of the table ---


def number(value: float | None, pattern: str = ".1f") -> str:
    """Formats a number; `-` for None, and never a minus sign before zero."""
    if value is None:
        return "-"
    text = format(value, pattern)
    return text if float(text) else format(0.0, pattern)


def with_std(ours: Stat, pattern: str = ".1f") -> str:
    """Formats `mean ± std`, or the mean alone if there is no standard deviation."""
    text = number(ours.mean, pattern)
    return text if ours.std is None else f"{text} ± {number(ours.std, pattern.lstrip('+'))}"


def _paper(row: TableRow, metric: str, pattern: str = ".1f") -> str:
    return number(row.paper.numbers.get(metric), pattern)


def _ours(row: TableRow, metric: str, pattern: str = ".1f") -> str:
    ours = row.ours(metric)
    text = with_std(ours, pattern)
    return f"{text} (n = {ours.n})" if 0 < ours.n < len(row.results) else text


def _fps(row: TableRow) -> str:
    return "" if row.fps is None else format(row.fps, ".3g")


def _with_gain(cell: Callable, row: TableRow) -> str:
    """Formats AP(+NMS) with the gain in brackets, as in the paper. `cell` is _paper or _ours."""
    gain = cell(row, "nms_gain", "+.1f")
    return cell(row, "AP_nms") + ("" if gain == "-" else f" ({gain})")


def _count(row: TableRow) -> str:
    count, total = len(row.results), len(row.specs)
    return f"{count}" if count == total else f"{count}/{total}"


def _size(short: int, ratio: float) -> str:
    """Formats an image size as the paper does: the shortest side, and the limit of the longest."""
    return f"({short}, {ImageSize(short, ratio).longest})"
