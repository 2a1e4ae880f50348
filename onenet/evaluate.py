"""Evaluates a trained network on another data set of its classes.

    python -m onenet.evaluate RUN data=coco data.root=DIR
    python -m onenet.evaluate RUN data=coco data.root=DIR eval.size.short=800 infer_heads=1

RUN is a run's folder, its id, or an export in the format safetensors. Classes are matched by name;
those that one side lacks are named and left out. The result goes into the folder of the run, beside
the results of its own data: evaluations/<evaluation>@<data set>/.
"""

import argparse
import hashlib
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from omegaconf.errors import OmegaConfBaseException

from onenet import build
from onenet.config.compose import compose, loader
from onenet.config.schema import Config
from onenet.data.annotations import Annotations
from onenet.data.sources import open_split
from onenet.errors import UserError
from onenet.evaluation.predict import predict
from onenet.evaluation.predictions import Predictions
from onenet.inference.command import command_line_with_run, execute
from onenet.inference.detector import TrainedDetector
from onenet.inference.load import find, load
from onenet.job import results
from onenet.runs.classes import Classes
from onenet.runs.evaluations import requested_evaluation
from onenet.runs.folder import Locked, RunFolder
from onenet.runs.request import Request
from onenet.system.terminal import run_command
from onenet.training.loop import Progress

KEYS = ("data", "eval", "infer_heads", "device", "workers")  # of run.py that have a meaning here
OF_TRAINING = ("conflict_rate", "train_seconds")  # metrics that say nothing of an evaluation


def main(arguments: list[str]) -> int:
    """Returns 0, or 2 if the input is invalid."""
    parser = command_line_with_run("evaluate", __doc__)
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="+", help="as in run.py")
    return execute(evaluate_run, parser.parse_args(arguments))


def evaluate_run(args: argparse.Namespace) -> int:
    """Evaluates the run and returns 0. Raises UserError."""
    folder = RunFolder(find(args.run, args.runs))
    detector = load(folder.path)
    config = evaluation_config(detector, args.overrides)
    evaluate(detector, folder, config, args.overrides)
    return 0


def evaluation_config(detector: TrainedDetector, overrides: Sequence[str]) -> Config:
    """Returns the run's configuration with the overrides of KEYS. Raises UserError."""
    keys = [one.key_or_group for one in loader().parse_run(overrides)]
    for key, override in zip(keys, overrides, strict=True):
        if key.partition(".")[0] not in KEYS:
            raise UserError(
                f"{override}: a finished run cannot be changed. The keys of an evaluation are "
                f"{', '.join(KEYS)}."
            )
    old = detector.config
    if "data" not in keys and old.data.name != "shapes":
        overrides = [f"data={old.data.name}", *overrides]
    composed = compose([f"heads={old.heads}", *overrides])
    config = replace(old, data=composed.data)
    try:
        for key in (key for key in keys if not key.startswith("data")):
            *parents, name = key.split(".")
            target, source = config, composed
            for parent in parents:
                target, source = getattr(target, parent), getattr(source, parent)
            setattr(target, name, getattr(source, name))
    except (AttributeError, OmegaConfBaseException) as error:
        raise UserError(f"The overrides cannot be applied: {error}") from error
    return config


def evaluate(
    detector: TrainedDetector, folder: RunFolder, config: Config, overrides: Sequence[str]
) -> Path:
    """Evaluates the detector, writes the result and prints it. Returns the result's folder. Raises
    UserError."""
    start_time, spec = time.perf_counter(), requested_evaluation(config)
    source = open_split(config.data, spec.split, folder.cache)
    for line in source.annotations.report:
        print(f"data.{spec.split}: {line}")
    classes = Classes.of(source.annotations)
    shared = shared_classes(detector.classes, classes)
    context = build.context(config)
    output = predict(
        detector.network, build.evaluation_set(config, source, spec), batch=config.eval.batch,
        infer_heads=spec.infer_heads, peaks=spec.peaks, workers=config.workers, context=context,
    )  # fmt: skip
    assert output is not None  # there is one process
    predictions, bad_images = output
    predictions = relabel(predictions, shared, len(detector.classes))
    annotations = source.annotations.only([label for _, label in shared])
    scores = results.score(config, annotations, spec, predictions, bad_images)
    request = Request(detector.id, {}, [], [*overrides], torch.get_num_threads())
    result = results.describe(
        config, detector.network, Progress(), spec, request, context, scores
    )  # fmt: skip
    result["metrics"] = {k: v for k, v in result["metrics"].items() if k not in OF_TRAINING}
    result["classes"] = annotations.category_names
    target = folder.evaluation(spec).with_name(f"{spec.id}@{data_name(config, annotations)}")
    try:
        with folder.lock():
            results.write(target, annotations, predictions, result, start_time)
    except (Locked, OSError) as error:
        raise UserError(f"{folder.path} cannot be written: {error or 'it is in use'}") from error
    print(f"{results.summary(result)}, over {len(annotations.category_names)} classes")
    if stated := folder.status().get("stated_ap"):
        print(f"The released README states AP {stated} on COCO val2017")
    print(f"Wrote {target}")
    return target


def shared_classes(ours: Classes, theirs: Classes) -> list[tuple[int, int]]:
    """Returns (the detector's label, the data set's label) of the classes that both name, ascending
    by the latter, and prints the others. Raises UserError if there is none."""
    labels = {name.casefold(): label for label, name in enumerate(ours.names)}
    shared = [
        (labels[name.casefold()], label)
        for label, name in enumerate(theirs.names)
        if name.casefold() in labels
    ]
    if not shared:
        raise UserError(
            f"The data set has none of the detector's classes: {', '.join(theirs.names[:5])}, "
            f"… instead of {', '.join(ours.names[:5])}, …"
        )
    for has, lacks, names, used in (
        ("the data set", "the detector", theirs.names, {label for _, label in shared}),
        ("the detector", "the data set", ours.names, {label for label, _ in shared}),
    ):
        missing = [name for label, name in enumerate(names) if label not in used]
        if missing:
            print(f"left out, as {has} has them but {lacks} has not: {', '.join(missing)}")
    return shared


def relabel(predictions: Predictions, shared: Sequence[tuple[int, int]], count: int) -> Predictions:
    """Returns the detections of the shared classes, with labels 0, 1, ... in their order.

    `count`: of the detector's classes.
    """
    new_label = np.full(count, -1)
    new_label[[ours for ours, _ in shared]] = np.arange(len(shared))
    labels = new_label[predictions.labels]
    mask = labels >= 0
    return Predictions(
        image=predictions.image[mask],
        boxes_xyxy=predictions.boxes_xyxy[mask],
        scores=predictions.scores[mask],
        labels=labels[mask],
        nms_keep={iou: keep[mask] for iou, keep in predictions.nms_keep.items()},
    )


def data_name(config: Config, annotations: Annotations) -> str:
    """Returns a name for the data set with a digest of its objects, so that another set in a folder
    of the same name gets a result of its own."""
    data = config.data
    name = data.shapes.kind if data.name == "shapes" else Path(data.root or data.name).name
    content = hashlib.sha256(annotations.boxes_xyxy.tobytes() + annotations.labels.tobytes())
    return f"{name[:20]}-{content.hexdigest()[:8]}"


if __name__ == "__main__":
    sys.exit(run_command(main))
