"""What other costs or assigners would choose from what a trained network predicts. Trains nothing.

    python analysis/replay.py RUN [RUN ...] -- cost=loc_only
    python analysis/replay.py RUN -- cost.weights.cls=0,1,2,4 assigner=min_cost,hungarian
    python analysis/replay.py --runs DIR --format markdown csv --out DIR -- location=predefined

RUN is an id, a folder's name below the runs root, or a folder; default: all runs of the root with
predictions. Words after `--` are run.py's, on top of the run's own config: an option of a group
(cost=loc_only) sets the whole group, lists of values multiply.

A objects of a run; N objects of an image, M of them with a slot; P slots, U classes present.
"""

import argparse
import csv
import io
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from hydra.core.override_parser.types import Override
from torch import Tensor

from analysis.core.evidence import default_root, named_runs, read_arrays
from analysis.core.formats import Block, Sheet, markdown
from analysis.tables import write
from onenet.boxes import iou_and_giou
from onenet.config.compose import loader, override, use_folder, word
from onenet.config.schema import Config
from onenet.detectors import DETECTORS
from onenet.errors import UserError
from onenet.job import build
from onenet.runs.folder import RunFolder
from onenet.runs.identity import flat
from onenet.structures import HeadOutput, Target
from onenet.sweeps.experiments import axes_of

Variants = Sequence[tuple[Override, ...]]
MATCHING = ("cost", "assigner", "location")  # the only keys that a choice depends on
AS_TRAINED = "as trained"
CONTEXT = [
    "changed: % of the objects, with another positive sample than the run's last snapshot recorded",
    "nearest, inside box, inside part: % of the positives, at a grid point nearest to the object's "
    "centre, inside its box, inside the part that shows its class; a query is at its box's centre",
    "conflicts: % of the objects, whose cheapest slot another object gets (as conflict_rate)",
    "iou, score: means over the positives, of their box with the object, and for its class",
]
MOVED = "the first row is not what was recorded: near ties may fall otherwise on another device"


@dataclass(frozen=True, eq=False)
class Replayed:
    """What one way to assign chooses for a run's objects. None: a share or a mean of nothing."""

    run: str  # its folder's name
    variant: str  # the overrides
    changed: float | None  # % of the objects, against what was recorded
    nearest: float | None  # % of the positives; None for queries
    inside_box: float | None  # % of the positives
    inside_part: float | None  # % of the positives of objects with a known part
    conflicts: float | None  # % of the objects
    iou: float | None  # mean over the positives
    score: float | None  # mean over the positives
    objects: int
    slot: np.ndarray  # [A] int64, -1 for an object without a positive sample


COLUMNS = tuple(Replayed.__dataclass_fields__)[2:-1]
FORMATS = {"iou": ".3f", "score": ".3f", "objects": "d"}  # of the others: ".1f"


@dataclass(frozen=True)
class Image:
    """What was saved of one image."""

    output: HeadOutput  # class_logits [1, P, U]
    target: Target  # its labels are 0..U-1
    part_xyxy: Tensor  # [N, 4] pixels, NaN where it is not known
    recorded: Tensor  # [N] int64, the slots of the last snapshot


def main(arguments: list[str]) -> int:
    """0, or 2 if the input cannot work."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [RUN ...] [options] [-- KEY=VALUE ...]",
    )
    parser.add_argument("run_names", nargs="*", metavar="RUN", help="default: all")
    parser.add_argument("--runs", metavar="DIR", default=default_root(), help="runs root")
    parser.add_argument("--format", nargs="+", choices=WRITERS, default=["markdown"])
    parser.add_argument("--out", metavar="DIR", help="write replay.* here instead of printing")
    parser.add_argument("--config-dir", metavar="DIR", help="as for run.py")
    split = arguments.index("--") if "--" in arguments else len(arguments)
    args = parser.parse_intermixed_args(arguments[:split])
    try:
        use_folder(args.config_dir)
        asked = variants(arguments[split + 1 :])
        folders = chosen(Path(args.runs).expanduser().absolute(), args.run_names)
        found = replay_all(folders, asked, skip=not args.run_names)
        writers = [WRITERS[name] for name in dict.fromkeys(args.format)]
        pages = {f"replay.{suffix}": text(found) for suffix, text in writers}
        if args.out is None:
            print("\n".join(pages.values()), end="")
        else:
            print(f"Wrote {', '.join(pages)} to {write(pages, args.out)}.")
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def chosen(root: Path, words: Sequence[str]) -> list[RunFolder]:
    """The runs that the words name, or all of the root with predictions. Raises UserError."""
    if words:
        return named_runs(root, words)
    folders = [RunFolder(path) for path in sorted(root.glob("[!.]*"))]
    finished = [folder for folder in folders if folder.predictions_file.is_file()]
    if not finished:
        raise UserError(f"There is no predictions.npz in the runs of {root}. Choose: --runs DIR")
    return finished


def variants(words: Sequence[str]) -> Variants:
    """Each combination of the values that these words list. Raises UserError."""
    axes = axes_of(words)
    for key in axes:
        if key.lstrip("+~").partition(".")[0] not in MATCHING:
            raise UserError(
                f"{key}: a replay changes the matching alone, by cost, cost.*, assigner, "
                f"assigner.* and location. To train: python run.py {key}=VALUE"
            )
    return [combination for combination in itertools.product(*axes.values()) if combination]


def replay_all(folders: Sequence[RunFolder], variants: Variants, skip: bool) -> list:
    """`replay` of each run. `skip`: leaves out, saying so, those that have none."""
    found = []
    for folder in folders:
        try:
            found.append(replay(folder.path, variants))
        except UserError as error:
            if not skip or (folder is folders[-1] and not found):
                raise
            print(f"left out: {error}", file=sys.stderr)
    return found


def replay(folder: Path, variants: Variants) -> list[Replayed]:
    """What the run's own matching chooses, then what each variant's would. Raises UserError."""
    run, name, rows = RunFolder(folder), folder.name, []
    values = run.config() if run.config_file.is_file() else run.result().get("config")
    if "detector" not in (values or {}):
        raise UserError(f"{folder} has no whole config.yaml or result.json: name a run's folder.")
    if "cost" not in DETECTORS[values["detector"]].reads:
        raise UserError(f"{name}: {values['detector']} is not trained by matching. Leave it out.")
    try:
        images = saved_images(run)
        for overrides in [(), *variants]:
            variant = " ".join(map(word, overrides)) or AS_TRAINED
            rows.append(assign(images, config_with(values, overrides), name, variant))
    except (UserError, FloatingPointError) as error:
        raise UserError(f"{name}: {error}") from error
    return rows


def config_with(values: dict, overrides: Sequence[Override]) -> Config:
    """A config with the matching of a run's config `values`, and these overrides on top of it.

    Beside that it has what the options of groups depend on: preset, detector and reference; the
    rest, data included, is not the run's. Raises UserError.
    """
    whole = {one.key_or_group for one in overrides}
    own = {key: values.get(key) for key in ("preset", "detector", "reference")}
    own |= {"data": "shapes"} | flat({key: values[key] for key in MATCHING if key not in whole})
    return loader().compose([*(override(k, v) for k, v in own.items()), *overrides])


def saved_images(folder: RunFolder) -> list[Image]:
    """The images of predictions.npz. Raises UserError."""
    arrays = []
    for file in (folder.assignments_file, folder.predictions_file):
        if not file.is_file():
            raise UserError(
                f"there is no {file.name}. A training leaves it, with eval.looks above 0, at its "
                "end.\nTrain the run anew in another root: runs_root=DIR"
            )
        arrays.append({key: torch.from_numpy(values) for key, values in read_arrays(file).items()})
    objects, kept = arrays
    slots, classes = kept["slots"], kept["classes"]
    sizes = {"labels": classes, "logits": slots * classes, "boxes_xyxy": slots, "points_xy": slots}
    parts = (kept[name].split(counts.tolist()) for name, counts in sizes.items())
    images = []
    for image_id, size_hw, labels, logits, boxes, points in zip(
        kept["image_id"].tolist(), kept["size_hw"].tolist(), *parts, strict=True
    ):
        rows = objects["image_id"] == image_id
        column = torch.searchsorted(labels, objects["label"][rows])
        output = HeadOutput(logits.view(1, len(boxes), len(labels)), boxes[None], points)
        target = Target(column, objects["gt_xyxy"][rows], tuple(size_hw), image_id)
        recorded = objects["slot"][-1, rows].long()
        images.append(Image(output, target, objects["part_xyxy"][rows], recorded))
    return images


def assign(images: Sequence[Image], config: Config, run: str, variant: str) -> Replayed:
    """Matches as in training, image by image."""
    loss, rows, conflicts = build.detection_loss(config), [], 0
    for image in images:
        (match,) = loss.match(image.output, [image.target])
        slot = torch.full_like(image.recorded, -1)
        slot[match.gt_idx] = match.pred_idx
        conflicts += match.conflicts.item()
        rows.append({"slot": slot, "changed": slot != image.recorded, **_positives(image, slot)})
    columns = {key: torch.cat([row[key] for row in rows]) for key in rows[0]}
    slot, iou, score = (columns.pop(key) for key in ("slot", "iou", "score"))
    return Replayed(
        run,
        variant,
        **{key: _mean(100 * column.double()) for key, column in columns.items()},
        conflicts=100 * conflicts / len(slot) if len(slot) else None,
        iou=_mean(iou),
        score=_mean(score),
        objects=len(slot),
        slot=slot.numpy(),
    )


def _positives(image: Image, slot: Tensor) -> dict[str, Tensor]:
    """Of the objects that have a slot, each [M]: `nearest` (empty for queries), `inside_box`,
    `inside_part` (of the known ones only), `iou`, `score`. slot [N]."""
    output, has = image.output, slot >= 0
    at, gt, part = slot[has], image.target.gt_xyxy[has], image.part_xyxy[has]
    boxes, points = output.boxes_xyxy[0, at], output.points_xy[at]
    centers = (gt[:, :2] + gt[:, 2:]) / 2
    distance = (output.points_xy[:, None] - centers).square().sum(dim=-1)  # [P, M]
    nearest = distance.gather(0, at[None])[0] <= distance.amin(dim=0)
    place = torch.where(points.isnan(), (boxes[:, :2] + boxes[:, 2:]) / 2, points)
    return {
        "nearest": nearest[~points.isnan().any(dim=1)],
        "inside_box": _inside(place, gt),
        "inside_part": _inside(place, part)[~part.isnan().any(dim=1)],
        "iou": iou_and_giou(boxes, gt)[0],
        "score": output.class_logits[0, at, image.target.gt_labels[has]].sigmoid(),
    }


def _inside(place_xy: Tensor, xyxy: Tensor) -> Tensor:
    return ((place_xy >= xyxy[:, :2]) & (place_xy <= xyxy[:, 2:])).all(dim=1)


def _mean(values: Tensor) -> float | None:
    return values.double().mean().item() if len(values) else None


def sheet(found: Sequence[Sequence[Replayed]]) -> Sheet:
    """A block of rows for each run."""
    headers = [name.replace("_", " ") for name in COLUMNS]
    grids = [(rows[0].run, [[row.variant, *_cells(row)] for row in rows]) for rows in found]
    blocks = [Block([run, *headers], cells) for run, cells in grids]
    notes = [f"{rows[0].run}: {MOVED}" for rows in found if rows[0].changed]
    question = "Which positive samples would the same predictions get by another matching?"
    return Sheet("Replay", question, CONTEXT, blocks, notes)


def _cells(row: Replayed) -> list[str]:
    values = [(getattr(row, name), FORMATS.get(name, ".1f")) for name in COLUMNS]
    return ["-" if value is None else format(value, form) for value, form in values]


def tidy(found: Sequence[Sequence[Replayed]]) -> str:
    """CSV: a line for each run and variant, unrounded."""
    text, names = io.StringIO(), ("run", "variant", *COLUMNS)
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(names)
    lines.writerows([getattr(row, name) for name in names] for rows in found for row in rows)
    return text.getvalue()


WRITERS = {"markdown": ("md", lambda found: markdown(sheet(found))), "csv": ("csv", tidy)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
