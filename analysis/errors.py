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
from PIL import Image
from tabulate import tabulate

from analysis.core.cli import command_line, execute
from analysis.core.errors import MEANING
from onenet.config.options import TIDE
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
    per_image: np.ndarray  # [I] int64: false positives and missed objects


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
    annotations = source.annotations
    dataset = DetectionDataset(source, detector.size, on_bad_image="skip")
    output = predict(detector.network, dataset, batch=BATCH, peaks=spec.peaks)
    assert output is not None
    predictions, _ = output
    scorer = Scorer(annotations, spec.area_scale, detector.config.eval.backend)
    metrics = scorer.score(predictions).metrics
    threshold = metrics["score_threshold"] or 0.5
    wrong = mistakes(predictions, annotations, threshold)
    text = page(folder.path.name, metrics, scorer, predictions, wrong, threshold)
    if args.out is None:
        print(text)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "errors.md").write_text(text, encoding="utf-8")
    picture(source, predictions, wrong).save(args.out / "worst.png")
    print(f"Wrote errors.md and worst.png to {args.out.absolute()}")


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
    images = np.concatenate([predictions.image[false_positive], image_of[missed]])
    return Mistakes(false_positive, shown, missed, np.bincount(images, minlength=len(annotations)))


def page(
    name: str,
    metrics: dict,
    scorer: Scorer,
    predictions: Predictions,
    wrong: Mistakes,
    threshold: float,
) -> str:
    """Returns the three tables as Markdown."""
    annotations = scorer.annotations
    errors = [
        [f"dAP_{error}", MEANING[error], metrics[f"dAP_{error}"], metrics[f"dAP_{error}_nms"]]
        for error in TIDE
    ]
    classes = [
        [label, int(count), *numbers]
        for label, count, numbers in zip(
            annotations.category_names,
            np.bincount(
                annotations.labels[~annotations.crowd], minlength=len(annotations.category_ids)
            ),
            scorer.by_class(predictions),
            strict=True,
        )
    ]
    images = [
        [
            int(annotations.image_ids[image]),
            int((wrong.missed[annotations.rows(image)]).sum()),
            int((wrong.false_positive & (predictions.image == image)).sum()),
        ]
        for image in worst(wrong)
    ]
    ap, ap_nms = _text(metrics["AP"]), _text(metrics["AP_nms"])
    header = f"# Errors of {name}\n\nAP {ap}, with NMS {ap_nms}."
    return "\n\n".join(
        [
            header,
            _table(["error", "what it is", "costs in AP50", "with NMS"], errors),
            _table(["class", "objects", "AP", "AP with NMS"], classes),
            f"The worst images, at a score of {threshold:.2f} and above:",
            _table(["image id", "objects missed", "detections without an object"], images),
        ]
    )


def worst(wrong: Mistakes) -> list[int]:
    """The images with most mistakes, most first, without those that have none."""
    order = np.argsort(-wrong.per_image, kind="stable")[:WORST]
    return [int(image) for image in order if wrong.per_image[image]]


def picture(source: ImageSource, predictions: Predictions, wrong: Mistakes) -> Image.Image:
    """Returns a row for each of the worst images: its objects, and what was detected, with captions
    on the detections without an object."""
    annotations = source.annotations
    rows = []
    for image in worst(wrong):
        pixels = source.read(image)
        scale = SIDE / min(pixels.shape[:2])
        size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
        resized = Image.fromarray(pixels).resize(size)
        selected = annotations.rows(image)
        objects = np.column_stack(
            [annotations.boxes_xyxy[selected] * scale, annotations.labels[selected]]
        )
        mask = wrong.shown & (predictions.image == image)
        boxes = np.column_stack([predictions.boxes_xyxy[mask] * scale, predictions.labels[mask]])
        columns = zip(
            predictions.labels[mask], predictions.scores[mask], wrong.false_positive[mask],
            strict=True,
        )  # fmt: skip
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


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.1f}"


def _table(header: list[str], rows: list[list]) -> str:
    cells = [[_text(v) if v is None or isinstance(v, float) else v for v in row] for row in rows]
    return tabulate(cells, header, tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
