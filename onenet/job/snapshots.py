"""Which slot each object takes, on the same images all through a training (section 5.2, Figure 5).

Two files of a run's folder: `assignments.npz`, with every snapshot, and `predictions.npz`, from
which the last one was made, so that `analysis/replay.py` can assign them in other ways.

A objects of all images, I images, P slots of an image, U classes present, S snapshots, T cost
terms.
"""

import copy
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from onenet.costs import CostWeights, MatchingCost, Pairs
from onenet.data.annotations import Annotations
from onenet.data.loading import Batch, DetectionDataset
from onenet.errors import UserError
from onenet.evaluation.coco_metrics import Scorer
from onenet.evaluation.predict import predict
from onenet.job.recorder import add_line
from onenet.runs.folder import RunFolder
from onenet.structures import Matches, Target
from onenet.system.context import ON_CPU, RunContext
from onenet.system.files import write_atomically
from onenet.training.loop import Loss

IMAGES = 64  # the first of the validation images
REPLAYED = 32  # of these, the ones of which all predictions are kept
NAME = "first64"  # what the snapshots are called in metrics.jsonl
TERMS = tuple(CostWeights.__dataclass_fields__)


class Snapshots:
    """Looks at a network while it is trained. Changes nothing of it, nor of its training.

    `cost`: its form counts, not its weights. `dataset`: of evaluation; its first images are
    taken. `scorer`: makes one for their annotations.
    """

    def __init__(
        self,
        folder: RunFolder,
        loss: Loss,
        cost: MatchingCost,
        dataset: DetectionDataset,
        *,
        scorer: Callable[[Annotations], Scorer] = Scorer,
        peaks: bool = False,
        context: RunContext = ON_CPU,
    ):
        source = copy.copy(dataset.source)
        source.annotations = source.annotations.limit(IMAGES)
        self.dataset = DetectionDataset(source, dataset.size, on_bad_image=dataset.on_bad_image)
        self.scorer = scorer(source.annotations)
        self.folder, self.loss, self.peaks, self.context = folder, loss, peaks, context
        self.cost = replace(cost, weights=CostWeights(*[1.0] * len(TERMS)))

    def take(self, model: nn.Module, step: int, last: bool) -> None:
        """Adds a line to metrics.jsonl and a snapshot to assignments.npz; writes predictions.npz
        if it is the `last`. Leaves the random state as it was, since training draws from it."""
        with torch.random.fork_rng(devices=[]):
            seen = self._see(model)
        if seen is None:
            return
        predictions, objects, chosen, kept = seen
        numbers = self.scorer.score(predictions).metrics
        add_line(self.folder, {"step": step, "evaluation": NAME}, numbers)
        _add(self.folder.assignments_file, step, _columns(objects), _columns(chosen))
        if last:
            _save(self.folder.predictions_file, _in_a_row(kept[:REPLAYED]))

    def _see(self, model: nn.Module) -> tuple | None:
        """The detections; and image by image what the objects are, what is chosen for them, and
        what is predicted. None if an image cannot be read: all snapshots are of the same images.
        """
        found: dict[int, tuple] = {}
        number = {int(i): n for n, i in enumerate(self.dataset.source.annotations.image_ids)}

        def note(batch: Batch, output) -> None:
            targets = [target.to(self.context.device) for target in batch.targets]
            matches = self.loss.match(output, targets)
            for image, (target, match) in enumerate(zip(targets, matches, strict=True)):
                if not batch.stands_in[image]:
                    at = number[target.image_id]
                    found[at] = (
                        _objects(target, self.dataset, at),
                        _chosen(output, image, match, target, self.cost),
                        _predictions(output, image, target),
                    )

        try:
            predicted = predict(
                model, self.dataset, batch=16, peaks=self.peaks, context=self.context, see=note
            )
        except UserError:  # of a bad image, or because all of them are
            if self.dataset.on_bad_image == "error":
                raise
            return None
        if len(found) < len(number):
            return None
        return predicted[0], *zip(*(found[at] for at in sorted(found)), strict=True)


def _objects(target: Target, dataset: DetectionDataset, number: int) -> dict[str, np.ndarray]:
    """`image_id`, `label` [A] int64; `gt_xyxy`, `part_xyxy` [A, 4] pixels of the resized image, the
    part NaN where the data does not know it."""
    count, annotations = len(target.gt_labels), dataset.source.annotations
    parts = np.full((count, 4), np.nan, dtype=np.float32)
    if annotations.parts_xyxy is not None:
        rows, view = annotations.rows(number), dataset.view(0, number)
        _, left = view.place(annotations.boxes_xyxy[rows])
        placed, _ = view.place(annotations.parts_xyxy[rows])
        parts = placed[left & ~annotations.crowd[rows]]
    return {
        "image_id": np.full(count, target.image_id),
        "label": target.gt_labels.cpu().numpy(),
        "gt_xyxy": target.gt_xyxy.cpu().numpy(),
        "part_xyxy": parts,
    }


def _chosen(
    output, image: int, match: Matches, target: Target, cost: MatchingCost
) -> dict[str, np.ndarray]:
    """`slot` [A] int32, -1 for an object without one; `place_xy` [A, 2] pixels, the slot's grid
    point or the centre of the query's box; `nearest` [A] bool, is it a grid point nearest to the
    object's centre; `terms` [A, T], what each term of the cost is there, without its weight. NaN
    where something has no meaning."""
    gt = target.gt_xyxy
    slot = torch.full((len(gt),), -1, device=gt.device)
    slot[match.gt_idx] = match.pred_idx
    none, at = slot < 0, slot.clamp(min=0)
    boxes, points = output.boxes_at(image, at).float(), output.points_xy[at]
    height, width = target.size_hw
    pairs = Pairs(
        logits=output.class_logits[image, at, target.gt_labels].float(),
        boxes_xyxy=boxes,
        points_xy=points,
        gt_xyxy=gt,
        whwh=gt.new_tensor([width, height, width, height]),
    )
    terms = torch.stack([term for _, _, term in cost.terms(pairs)], dim=1)
    place = torch.where(points.isnan(), (boxes[:, :2] + boxes[:, 2:]) / 2, points)
    centers = (gt[:, :2] + gt[:, 2:]) / 2
    distance = (output.points_xy[:, None] - centers).square().sum(dim=-1)  # [P, A]
    nearest = distance.gather(0, at[None])[0] <= distance.amin(dim=0)
    return {
        "slot": slot.int().cpu().numpy(),
        "place_xy": place.masked_fill(none[:, None], torch.nan).cpu().numpy(),
        "nearest": (nearest & ~none).cpu().numpy(),
        "terms": terms.masked_fill(none[:, None], torch.nan).cpu().numpy(),
    }


def _predictions(output, image: int, target: Target) -> dict[str, np.ndarray]:
    """All slots, and their logits of the classes that the image has."""
    labels = target.gt_labels.unique()

    def array(values: Tensor) -> np.ndarray:
        return values.float().cpu().numpy()

    return {
        "image_id": np.array([target.image_id]),
        "size_hw": np.array([target.size_hw]),
        "labels": labels.cpu().numpy(),
        "logits": array(output.class_logits[image][:, labels]).ravel(),
        "boxes_xyxy": array(output.boxes_xyxy[image]),
        "points_xy": array(output.points_xy),
    }


def _columns(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _in_a_row(images: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of all images one after the other: `image_id` [I], `size_hw` [I, 2], `labels` [all
    U], `logits` [all P × U], `boxes_xyxy` [all P, 4], `points_xy` [all P, 2]; and how many `slots`
    and `classes` each image has, [I]."""
    counts = {"slots": "boxes_xyxy", "classes": "labels"}
    return _columns(images) | {
        name: np.array([len(image[of]) for image in images]) for name, of in counts.items()
    }


def _add(file: Path, step: int, objects: dict[str, np.ndarray], now: dict[str, np.ndarray]) -> None:
    """The file then holds the arrays of `_objects`, and of `_chosen` with a first axis over `steps`
    [S]. Looks at later steps give way: a resumed run takes those again."""
    before: dict[str, np.ndarray] = {}
    if file.is_file():
        with np.load(file) as arrays:
            before = dict(arrays)
    arrays = dict(objects)
    for name, value in {"steps": np.array(step), **now}.items():
        earlier = [before[name][before["steps"] < step]] if before else []
        arrays[name] = np.concatenate([*earlier, value[None]])
    _save(file, arrays)


def _save(file: Path, arrays: dict[str, np.ndarray]) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_atomically(file, content.getvalue())
