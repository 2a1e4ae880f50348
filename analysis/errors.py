"""Why was it wrong? TIDE's errors, AP of each class, and the worst images of a trained run.

    python analysis/errors.py RUN                 a run's folder, its id, or exported weights
    python analysis/errors.py RUN --out DIR       errors.md, and the worst images as worst.png

The run predicts its evaluation's images again. TIDE's numbers are what AP50 lacks for each kind of
error. The worst images have most objects missed and detections without an object, at the score at
which the run still has 0.9 of the recall it can have.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from analysis.core.cli import command_line, execute, output
from analysis.core.render import NOTES, Page, markdown
from onenet.data.annotations import Annotations
from onenet.data.images import ImageSource
from onenet.data.loading import DetectionDataset
from onenet.data.sources import open_split
from onenet.evaluation.coco_metrics import Scorer
from onenet.evaluation.drawing import with_boxes, with_captions
from onenet.evaluation.overlaps import IOU, find_overlaps, match_greedily, ranks
from onenet.evaluation.predict import predict
from onenet.evaluation.predictions import Predictions, to_xywh
from onenet.inference.load import find, load
from onenet.runs.evaluations import default_evaluation
from onenet.runs.folder import RunFolder
from onenet.sweeps.summary import number
from onenet.system.terminal import run_command

WORST = 6
BATCH = 8
SIDE = 256  # shortest side of a picture, pixels


@dataclass(frozen=True)
class Mistakes:
    """At one score threshold, of detections at IoU 0.5. D detections, N objects, I images."""

    false_positive: np.ndarray  # [D] bool
    shown: np.ndarray  # [D] bool: at or above the threshold
    missed: np.ndarray  # [N] bool
    per_image: pd.DataFrame  # a row per image: how many of both

    @property
    def worst(self) -> list[int]:
        """The images with most mistakes, most first, without those that have none."""
        total = self.per_image.sum(axis=1).to_numpy()
        order = np.argsort(-total, kind="stable")[:WORST]
        return [int(image) for image in order if total[image]]


def main(arguments: list[str]) -> int:
    """Returns 0, or 2 if the input is invalid."""
    parser = command_line(__doc__, overrides=False)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--out", metavar="DIR", type=Path, help="write here instead of printing")
    return execute(write, parser.parse_args(arguments))


def write(args: argparse.Namespace) -> None:
    """Prints the page, or writes it and the picture. Raises UserError or OSError."""
    folder = RunFolder(find(args.run, args.runs))
    detector = load(folder.path)
    spec = default_evaluation(detector.config)
    source = open_split(detector.config.data, spec.split, folder.cache)
    dataset = DetectionDataset(source, detector.size, on_bad_image="skip")
    predictions, _ = predict(detector.network, dataset, batch=BATCH, peaks=spec.peaks)
    scorer = Scorer(source.annotations, spec.area_scale, detector.config.eval.backend)
    metrics = scorer.score(predictions).metrics
    threshold = metrics["score_threshold"] or 0.5
    wrong = mistakes(predictions, source.annotations, threshold)
    context = [
        f"AP {number(metrics['AP'])}, with NMS {number(metrics['AP_nms'])}",
        f"the worst images: at a score of {threshold:.2f} and above",
    ]
    tables = [by_error(metrics), by_class(scorer, predictions), wrong.per_image.iloc[wrong.worst]]
    tables = [table.map(_text).rename(index=str) for table in tables]
    page = Page(f"Errors of {folder.path.name}", "", context, tables, [])
    output({"errors.md": markdown(page)}, args.out)
    if args.out:
        picture(source, predictions, wrong).save(args.out / "worst.png")
        print("The worst images: worst.png")


def mistakes(predictions: Predictions, annotations: Annotations, threshold: float) -> Mistakes:
    """Matches detections and objects as COCOeval does, and counts what is left at the threshold.
    Crowds are neither missed nor wrongly detected."""
    overlaps = find_overlaps(predictions, annotations, to_xywh(predictions.boxes_xyxy))
    order = np.lexsort((-overlaps.iou, annotations.crowd[overlaps.object], overlaps.detection))
    rank = ranks(predictions.image, predictions.scores)
    [object_of] = match_greedily(overlaps[order], rank, np.array([IOU]), annotations.crowd)
    shown = predictions.scores >= threshold
    false_positive = shown & (object_of < 0)
    missed = ~annotations.crowd
    missed[object_of[shown & (object_of >= 0)]] = False
    image_of = np.repeat(np.arange(len(annotations)), np.diff(annotations.first))
    counts = {
        "objects missed": image_of[missed],
        "detections without an object": predictions.image[false_positive],
    }
    per_image = pd.DataFrame(
        {name: np.bincount(of, minlength=len(annotations)) for name, of in counts.items()},
        pd.Index(annotations.image_ids, name="image id"),
    )
    return Mistakes(false_positive, shown, missed, per_image)


def by_error(metrics: dict) -> pd.DataFrame:
    """What each of TIDE's errors is, and costs."""
    rows = {
        f"dAP_{error}": [meaning, metrics[f"dAP_{error}"], metrics[f"dAP_{error}_nms"]]
        for error, meaning in NOTES["errors"].items()
    }
    names = ["what it is", "costs in AP50", "with NMS"]
    frame = pd.DataFrame.from_dict(rows, "index", columns=names).rename_axis("error")
    return frame.set_index("what it is", append=True)


def by_class(scorer: Scorer, predictions: Predictions) -> pd.DataFrame:
    annotations, names = scorer.annotations, pd.Index(scorer.annotations.category_names)
    frame = pd.DataFrame(scorer.by_class(predictions), names, ["AP", "AP with NMS"], dtype=float)
    labels = annotations.labels[~annotations.crowd]
    frame.insert(0, "objects", np.bincount(labels, minlength=len(names)))
    return frame.rename_axis("class")


def picture(source: ImageSource, predictions: Predictions, wrong: Mistakes) -> Image.Image:
    """Returns a row for each of the worst images: its objects, and what was detected, with captions
    on the detections without an object."""
    annotations, rows = source.annotations, []
    for image in wrong.worst:
        original = Image.fromarray(source.read(image))
        scale = SIDE / min(original.size)
        resized = ImageOps.scale(original, scale)
        selected, mask = annotations.rows(image), wrong.shown & (predictions.image == image)
        objects = np.column_stack(
            [annotations.boxes_xyxy[selected] * scale, annotations.labels[selected]]
        )
        labels = predictions.labels[mask]
        boxes = np.column_stack([predictions.boxes_xyxy[mask] * scale, labels])
        columns = zip(labels, predictions.scores[mask], wrong.false_positive[mask], strict=True)
        captions = [
            f"{annotations.category_names[label]} {score:.2f}" if is_wrong else ""
            for label, score, is_wrong in columns
        ]
        rows.append((with_boxes(resized, objects), with_captions(resized, boxes, captions)))
    return _stack(rows)


def _stack(rows: Sequence[tuple[Image.Image, Image.Image]], gap: int = 8) -> Image.Image:
    width = max((one.width + other.width + gap for one, other in rows), default=SIDE)
    height = sum(one.height + gap for one, _ in rows) or SIDE
    canvas, top = Image.new("RGB", (width, height), "white"), 0
    for one, other in rows:
        canvas.paste(one, (0, top))
        canvas.paste(other, (one.width + gap, top))
        top += one.height + gap
    return canvas


def _text(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(run_command(main))
