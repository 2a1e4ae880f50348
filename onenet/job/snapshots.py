"""Snapshots of the matching during training, always on the same images (section 5.2, Figure 5).

A run's folder gets two files: `assignments.npz` with all snapshots, and `predictions.npz` with the
predictions of the last one, so that `analysis/replay.py` can match them in other ways.

A objects over all images, I images, P slots of an image, U classes in an image, S snapshots, T cost
terms.
"""

import copy
import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from onenet import build
from onenet.config.schema import Config
from onenet.costs import CostWeights, MatchingCost, Pairs
from onenet.data.annotations import Annotations
from onenet.data.images import ImageSource
from onenet.data.loading import Batch, DetectionDataset
from onenet.errors import UserError
from onenet.evaluation.coco_metrics import Scorer
from onenet.evaluation.predict import predict
from onenet.job.recorder import add_line
from onenet.runs.evaluations import default_evaluation
from onenet.runs.folder import RunFolder
from onenet.structures import Matches, Target
from onenet.system.context import ON_CPU, RunContext
from onenet.system.files import write_atomically
from onenet.training.loop import Loss

IMAGES = 64  # the first validation images
REPLAY_IMAGES = 32  # the first of these, whose predictions are stored
NAME = "first64"  # `evaluation` of the snapshots in metrics.jsonl
# Raised by a file of arrays that is torn, changed, or another.
DAMAGE = (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile, zlib.error)
TERMS = tuple(CostWeights.__dataclass_fields__)


class Snapshots:
    """Takes snapshots of a network in training, with no effect on the network or the training.

    `cost`: its terms are stored without their weights. `dataset`: the evaluation set, of which the
    first images are used. `scorer`: builds the Scorer of their annotations.
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
        """Adds a line to metrics.jsonl and a snapshot to assignments.npz.

        Also writes predictions.npz if this is the `last` snapshot. Restores the random state, which
        training uses.
        """
        with torch.random.fork_rng(devices=[]):
            snapshot = self._predict(model)
        if snapshot is None:
            return
        detections, objects, assignments, predictions = snapshot
        metrics = self.scorer.score(detections).metrics
        add_line(self.folder, {"step": step, "evaluation": NAME}, metrics)
        _add(self.folder.assignments_file, step, _concatenate(objects), _concatenate(assignments))
        if last:
            _save(self.folder.predictions_file, _flatten(predictions[:REPLAY_IMAGES]))

    def _predict(self, model: nn.Module) -> tuple | None:
        """Returns the detections, and per image the objects, their assignments and the predictions.

        None if an image cannot be read, because all snapshots must be of the same images.
        """
        by_image: dict[int, tuple] = {}
        number = {int(i): n for n, i in enumerate(self.dataset.source.annotations.image_ids)}

        def add_batch(batch: Batch, output) -> None:
            targets = [target.to(self.context.device) for target in batch.targets]
            matches = self.loss.match(output, targets)
            for image, (target, match) in enumerate(zip(targets, matches, strict=True)):
                if not batch.is_substitute[image]:
                    index = number[target.image_id]
                    by_image[index] = (
                        _objects(target, self.dataset, index),
                        _assignments(output, image, match, target, self.cost),
                        _predictions(output, image, target),
                    )

        try:
            detections, _ = predict(
                model,
                self.dataset,
                batch=16,
                peaks=self.peaks,
                context=self.context,
                on_batch=add_batch,
            )
        except UserError:  # one image cannot be read, or none can
            if self.dataset.on_bad_image == "error":
                raise
            return None
        if len(by_image) < len(number):
            return None
        return detections, *zip(*(by_image[index] for index in sorted(by_image)), strict=True)


def _objects(target: Target, dataset: DetectionDataset, number: int) -> dict[str, np.ndarray]:
    """Returns `image_id` and `label` [A] int64, `gt_xyxy` and `part_xyxy` [A, 4] of one image.

    Boxes are in pixels of the resized image; `part_xyxy` is NaN where the data has no part.
    """
    count, annotations = len(target.gt_labels), dataset.source.annotations
    parts = np.full((count, 4), np.nan, dtype=np.float32)
    if annotations.parts_xyxy is not None:
        rows, view = annotations.rows(number), dataset.view(0, number)
        _, is_inside = view.transform_boxes(annotations.boxes_xyxy[rows])
        all_parts, _ = view.transform_boxes(annotations.parts_xyxy[rows])
        parts = all_parts[is_inside & ~annotations.crowd[rows]]
    return {
        "image_id": np.full(count, target.image_id),
        "label": target.gt_labels.cpu().numpy(),
        "gt_xyxy": target.gt_xyxy.cpu().numpy(),
        "part_xyxy": parts,
    }


def _assignments(
    output, image: int, match: Matches, target: Target, cost: MatchingCost
) -> dict[str, np.ndarray]:
    """Returns which slot each object of an image is matched to, and the cost terms there.

    `slot` [A] int32, -1 for an object without a match. `place_xy` [A, 2] pixels: the slot's grid
    point, or the centre of the query's box. `nearest` [A] bool: no grid point is nearer to the
    object's centre. `terms` [A, T]: the cost terms without their weights. Undefined values are NaN.
    """
    gt = target.gt_xyxy
    slot = torch.full((len(gt),), -1, device=gt.device)
    slot[match.gt_idx] = match.pred_idx
    is_unmatched, index = slot < 0, slot.clamp(min=0)
    boxes, points = output.boxes_at(image, index).float(), output.points_xy[index]
    height, width = target.size_hw
    pairs = Pairs(
        logits=output.class_logits[image, index, target.gt_labels].float(),
        boxes_xyxy=boxes,
        points_xy=points,
        gt_xyxy=gt,
        whwh=gt.new_tensor([width, height, width, height]),
    )
    terms = torch.stack([term for _, _, term in cost.terms(pairs)], dim=1)
    locations = torch.where(points.isnan(), (boxes[:, :2] + boxes[:, 2:]) / 2, points)
    centers = (gt[:, :2] + gt[:, 2:]) / 2
    distance = (output.points_xy[:, None] - centers).square().sum(dim=-1)  # [P, A]
    is_nearest = distance.gather(0, index[None])[0] <= distance.amin(dim=0)
    return {
        "slot": slot.int().cpu().numpy(),
        "place_xy": locations.masked_fill(is_unmatched[:, None], torch.nan).cpu().numpy(),
        "nearest": (is_nearest & ~is_unmatched).cpu().numpy(),
        "terms": terms.masked_fill(is_unmatched[:, None], torch.nan).cpu().numpy(),
    }


def _predictions(output, image: int, target: Target) -> dict[str, np.ndarray]:
    """Returns all slots of an image, with their logits of the classes present in it."""
    labels = target.gt_labels.unique()

    def to_array(values: Tensor) -> np.ndarray:
        return values.float().cpu().numpy()

    return {
        "image_id": np.array([target.image_id]),
        "size_hw": np.array([target.size_hw]),
        "labels": labels.cpu().numpy(),
        "logits": to_array(output.class_logits[image][:, labels]).ravel(),
        "boxes_xyxy": to_array(output.boxes_xyxy[image]),
        "points_xy": to_array(output.points_xy),
    }


def _concatenate(images: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([image[name] for image in images]) for name in images[0]}


def _flatten(images: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Concatenates the arrays of all images and adds their lengths.

    `image_id` [I], `size_hw` [I, 2], `labels` [all U], `logits` [all P × U], `boxes_xyxy`
    [all P, 4], `points_xy` [all P, 2]; `slots` and `classes` [I]: how many each image has.
    """
    lengths_of = {"slots": "boxes_xyxy", "classes": "labels"}
    return _concatenate(images) | {
        name: np.array([len(image[column]) for image in images])
        for name, column in lengths_of.items()
    }


def _add(
    file: Path,
    step: int,
    objects: dict[str, np.ndarray],
    assignments: dict[str, np.ndarray],
) -> None:
    """Adds a snapshot to the file: the arrays of `_assignments` get a first axis over `steps` [S].

    Drops snapshots of this and later steps, which a resumed run takes again; all, with a message,
    if the file is damaged.
    """
    previous: dict[str, np.ndarray] = {}
    if file.is_file():
        try:
            with np.load(file) as arrays:
                previous = {name: arrays[name] for name in ("steps", *assignments)}
        except DAMAGE as error:
            print(f"{file} is damaged ({error}): its earlier snapshots are lost", flush=True)
    arrays = dict(objects)
    for name, value in {"steps": np.array(step), **assignments}.items():
        earlier = [previous[name][previous["steps"] < step]] if previous else []
        arrays[name] = np.concatenate([*earlier, value[None]])
    _save(file, arrays)


def _save(file: Path, arrays: dict[str, np.ndarray]) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_atomically(file, content.getvalue())


def snapshots_of(
    folder: RunFolder, config: Config, model: nn.Module, source: ImageSource, device: str = "cpu"
) -> Snapshots:
    """Sets up snapshots of the model in training, with the settings of the default evaluation."""
    spec = default_evaluation(config)
    return Snapshots(
        folder,
        build.loss(config, model),
        build.matching_cost(config),
        build.evaluation_set(config, source, spec),
        peaks=spec.peaks,
        scorer=lambda annotations: Scorer(annotations, spec.area_scale, config.eval.backend),
        context=RunContext(device),
    )
