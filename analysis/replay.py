"""Assigns a trained network's predictions with other costs or assigners, without any training.

    python analysis/replay.py RUN [RUN ...] -- cost=loc_only
    python analysis/replay.py RUN -- cost.weights.cls=0,1,2,4 assigner=min_cost,hungarian
    python analysis/replay.py --runs DIR --format markdown csv --out DIR -- location=predefined

RUN is an id, the name of a folder in the runs root, or the path of a folder; default: all runs of
the root with predictions. Arguments after `--` are overrides for run.py, applied to the run's own
config: an option of a group (cost=loc_only) replaces the whole group, and lists of values give all
combinations.

A: objects of a run; N: objects of an image, M of them with a slot; P: slots; U: classes present.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd
import torch
from hydra.core.override_parser.types import Override
from torch import Tensor

from analysis.core.cli import command_line, execute, named_runs, output, runs_folder
from analysis.core.frame import problem, read_arrays
from analysis.core.render import NOTES, Page, texts
from onenet import build
from onenet.boxes import iou_and_giou
from onenet.config.compose import loader, override, override_text
from onenet.config.schema import Config
from onenet.detectors import DETECTORS
from onenet.errors import UserError
from onenet.runs.folder import RunFolder
from onenet.runs.identity import flatten
from onenet.structures import HeadOutput, Target
from onenet.sweeps.experiments import axes_of
from onenet.sweeps.summary import number
from onenet.system.terminal import run_command

Variants = Sequence[tuple[Override, ...]]
MATCHING = ("cost", "assigner", "location")  # the groups of keys that decide an assignment
AS_TRAINED = "as trained"
MOVED = "the first row differs from the snapshot: another device may break near ties differently"
COLUMNS = {  # of a replay, with their formats. A fraction or mean over nothing is NaN.
    "changed": ".1f",  # % of objects, compared to the snapshot
    "nearest": ".1f",  # % of positives; NaN for queries
    "inside_box": ".1f",  # % of positives
    "inside_part": ".1f",  # % of positives of objects whose part is known
    "conflicts": ".1f",  # % of objects
    "iou": ".3f",  # mean over positives
    "score": ".3f",  # mean over positives
    "objects": "d",
}


@dataclass(frozen=True)
class Image:
    """The saved predictions and objects of one image."""

    output: HeadOutput  # class_logits [1, P, U]
    target: Target  # its labels are 0..U-1
    part_xyxy: Tensor  # [N, 4] pixels, NaN where the part is unknown
    recorded: Tensor  # [N] int64, the slots in the last snapshot


def main(arguments: list[str]) -> int:
    """Returns 0, or 2 if the input is invalid."""
    parser = command_line(__doc__, overrides=False)
    parser.usage = "%(prog)s [RUN ...] [options] [-- KEY=VALUE ...]"
    parser.add_argument("run_names", nargs="*", metavar="RUN", help="default: all")
    parser.add_argument("--format", nargs="+", choices=("markdown", "csv"), default=["markdown"])
    parser.add_argument("--out", metavar="DIR", help="write replay.* here instead of printing")
    split = arguments.index("--") if "--" in arguments else len(arguments)
    args = parser.parse_intermixed_args(arguments[:split])
    args.overrides = arguments[split + 1 :]
    return execute(print_replays, args)


def print_replays(args: argparse.Namespace) -> None:
    """Replays the named runs, or if none is named, all that can be replayed, at least one; prints
    which others are skipped. Raises UserError."""
    requested_variants, results = variants(args.overrides), []
    folders = named_runs(runs_folder(args.runs), args.run_names, "predictions.npz")
    for folder in folders:
        try:
            results.append(replay(folder.path, requested_variants))
        except UserError as error:
            if args.run_names or (folder is folders[-1] and not results):
                raise
            print(f"skipped: {error}", file=sys.stderr)
    output(texts("replay", args.format, partial(page, results), partial(tidy, results)), args.out)


def variants(overrides: Sequence[str]) -> Variants:
    """Returns all combinations of the values that the overrides list. Raises UserError."""
    axes = axes_of(overrides)
    for key in axes:
        if key.lstrip("+~").partition(".")[0] not in MATCHING:
            raise UserError(
                f"{key}: a replay can only change the matching (cost, cost.*, assigner, "
                f"assigner.*, location). To train with it: python run.py {key}=VALUE"
            )
    return [combination for combination in itertools.product(*axes.values()) if combination]


def replay(folder: Path, variants: Variants) -> pd.DataFrame:
    """Returns a row for the run's own matching, then one for each variant: the name of the folder
    as `run`, the overrides as `variant`, COLUMNS, and `slot`: [A] int64, -1 for an object without a
    positive sample. Raises UserError."""
    run, name, rows = RunFolder(folder), folder.name, []
    values = run.config() if run.config_file.is_file() else run.result().get("config")
    if "detector" not in (values or {}):
        raise UserError(
            f"{folder} has no complete config.yaml or result.json: name the folder of a run."
        )
    if "cost" not in DETECTORS[values["detector"]].reads:
        raise UserError(f"{name}: {values['detector']} trains without matching. Leave it out.")
    if reason := problem(run):
        raise UserError(reason)
    try:
        images = read_images(run)
        for overrides in [(), *variants]:
            variant = " ".join(map(override_text, overrides)) or AS_TRAINED
            row = assign(images, config_with(values, overrides))
            rows.append({"run": name, "variant": variant, **row})
    except (UserError, FloatingPointError) as error:
        raise UserError(f"{name}: {error}") from error
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        files = f"{run.assignments_file.name} or {run.predictions_file.name}"
        raise UserError(f"{name}: {files} is damaged ({error!r}).") from error
    return pd.DataFrame(rows)


def config_with(values: dict, overrides: Sequence[Override]) -> Config:
    """Returns a config with the matching of a run's config `values`, changed by the overrides.

    It also has the run's preset, detector and reference, on which the options of groups depend. All
    other keys, data included, have default values. Raises UserError.
    """
    replaced_groups = {each.key_or_group for each in overrides}
    own = {key: values.get(key) for key in ("preset", "detector", "reference")}
    matching = {key: values[key] for key in MATCHING if key not in replaced_groups}
    own |= {"data": "shapes"} | flatten(matching)
    return loader().compose([*(override(k, v) for k, v in own.items()), *overrides])


def read_images(folder: RunFolder) -> list[Image]:
    """Reads the images of predictions.npz and their objects. Raises UserError."""
    arrays = []
    for file in (folder.assignments_file, folder.predictions_file):
        if not file.is_file():
            raise UserError(
                f"there is no {file.name}. A training with eval.looks above 0 writes it at its "
                "end.\nTrain the run again in another root: runs_root=DIR"
            )
        arrays.append({key: torch.from_numpy(values) for key, values in read_arrays(file).items()})
    objects, predictions = arrays
    slots, classes = predictions["slots"], predictions["classes"]
    sizes = {"labels": classes, "logits": slots * classes, "boxes_xyxy": slots, "points_xy": slots}
    columns = (predictions[name].split(counts.tolist()) for name, counts in sizes.items())
    images = []
    for image_id, size_hw, labels, logits, boxes, points in zip(
        predictions["image_id"].tolist(), predictions["size_hw"].tolist(), *columns, strict=True
    ):
        rows = objects["image_id"] == image_id
        column = torch.searchsorted(labels, objects["label"][rows])
        output = HeadOutput(logits.view(1, len(boxes), len(labels)), boxes[None], points)
        target = Target(column, objects["gt_xyxy"][rows], tuple(size_hw), image_id)
        recorded = objects["slot"][-1, rows].long()
        images.append(Image(output, target, objects["part_xyxy"][rows], recorded))
    return images


def assign(images: Sequence[Image], config: Config) -> dict:
    """Matches the objects of each image as in training. Returns COLUMNS and `slot`."""
    loss, rows, conflicts = build.detection_loss(config), [], torch.tensor(0)
    for image in images:
        (match,) = loss.match(image.output, [image.target])
        slot = torch.full_like(image.recorded, -1)
        slot[match.gt_idx] = match.pred_idx
        conflicts = conflicts + match.conflicts
        rows.append({"slot": slot, "changed": slot != image.recorded, **_positives(image, slot)})
    columns = {key: torch.cat([row[key] for row in rows]) for key in rows[0]}
    slot = columns.pop("slot")
    means = {
        key: ((1 if key in ("iou", "score") else 100) * values.double()).mean().item()
        for key, values in columns.items()
    }
    conflicts = (100 * conflicts.double() / len(slot)).item()
    return {**means, "conflicts": conflicts, "objects": len(slot), "slot": slot.numpy()}


def _positives(image: Image, slot: Tensor) -> dict[str, Tensor]:
    """Describes the positives of the objects that have a slot, each [M]: `nearest` (empty for
    queries), `inside_box`, `inside_part` (only of known parts), `iou`, `score`. slot [N]."""
    output, assigned = image.output, slot >= 0
    positive, gt = slot[assigned], image.target.gt_xyxy[assigned]
    part, label = image.part_xyxy[assigned], image.target.gt_labels[assigned]
    boxes, points = output.boxes_xyxy[0, positive], output.points_xy[positive]
    centers = (gt[:, :2] + gt[:, 2:]) / 2
    distance = (output.points_xy[:, None] - centers).square().sum(dim=-1)  # [P, M]
    nearest = distance.gather(0, positive[None])[0] <= distance.amin(dim=0)
    location = torch.where(points.isnan(), (boxes[:, :2] + boxes[:, 2:]) / 2, points)
    return {
        "nearest": nearest[~points.isnan().any(dim=1)],
        "inside_box": _inside(location, gt),
        "inside_part": _inside(location, part)[~part.isnan().any(dim=1)],
        "iou": iou_and_giou(boxes, gt)[0],
        "score": output.class_logits[0, positive, label].sigmoid(),
    }


def _inside(location_xy: Tensor, xyxy: Tensor) -> Tensor:
    return ((location_xy >= xyxy[:, :2]) & (location_xy <= xyxy[:, 2:])).all(dim=1)


def page(results: Sequence[pd.DataFrame]) -> Page:
    """The printed page, with one table per run."""
    tables, notes = [], []
    for rows in results:
        name = rows.run[0]
        cells = {
            column.replace("_", " "): [number(value, pattern) for value in rows[column]]
            for column, pattern in COLUMNS.items()
        }
        tables.append(pd.DataFrame(cells, pd.Index(rows.variant, name=name)))
        notes += [f"{name}: {MOVED}"] if rows.changed[0] > 0 else []
    question = "Which positive samples would another matching choose from the same predictions?"
    return Page("Replay", question, NOTES["replay"], tables, notes)


def tidy(results: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One line per run and variant."""
    return pd.concat(results)[["run", "variant", *COLUMNS]]


if __name__ == "__main__":
    sys.exit(run_command(main))
