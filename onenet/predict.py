"""Detects the objects in images with a trained network.

    python -m onenet.predict RUN photos/ --out DIR
    python -m onenet.predict RUN 'photos/*.jpg' --score 0.5 --nms --out DIR

RUN is a run's folder, its id, or an export in the format safetensors. DIR gets detections.json
(COCO's results format, each row with its file_name) and the images with boxes. The status is 1 if
some images could not be read, and 2 if none could, or the input is invalid.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from onenet.data.images import BadImage, read_image
from onenet.errors import UserError
from onenet.inference.command import command_line_with_run, execute
from onenet.inference.detector import DetectedObjects, TrainedDetector, draw
from onenet.inference.images import find_images, short_names
from onenet.inference.load import load
from onenet.system.plural import plural
from onenet.system.printable import printable
from onenet.system.terminal import run_command

NMS_IOU = 0.5  # of --nms without a value, as in the paper's comparison
SAVED = (".jpg", ".jpeg", ".png", ".bmp", ".webp")  # annotated images keep their name


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    parser = command_line_with_run("predict", __doc__)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="file, folder or pattern")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True)
    parser.add_argument("--score", metavar="S", type=float, default=0.3, help="lowest (0.3)")
    parser.add_argument(
        "--nms", metavar="IOU", type=float, nargs="?", const=NMS_IOU, help="class-wise NMS"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return execute(predict_images, parser.parse_args(arguments))


def predict_images(args: argparse.Namespace) -> int:
    """Predicts the images and returns the exit status. Raises UserError."""
    for name in ("score", "nms"):
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"--{name} {value:g}: must be in 0..1.")
    out = args.out.expanduser().absolute()
    files = find_images(args.images, without=out)
    detector = load(args.run, args.runs, args.device)
    start_time = time.perf_counter()
    named_files = [*zip(files, short_names(files), strict=True)]
    with Report(detector, out) as report:
        for file, name in track(named_files, "predicting", console=Console(stderr=True)):
            report.add(file, name, args.score, args.nms)
        return report.finish(time.perf_counter() - start_time)


class Report:
    """Writes the detections image by image, so that memory does not grow with their number."""

    def __init__(self, detector: TrainedDetector, out: Path):
        self.detector, self.out = detector, out
        self.counts: Counter[str] = Counter()  # detections by class
        self.images, self.bad_images = 0, 0
        self.file = out / "detections.json"
        self._temporary = out / f".detections.json.{os.getpid()}"

    def __enter__(self) -> "Report":
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self._json = open(self._temporary, "w", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--out {self.out} cannot be written: {error}") from error
        self._json.write("[")
        return self

    def __exit__(self, *error: object) -> None:
        self._json.close()
        self._temporary.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it has content
            self.out.rmdir()

    def add(self, file: Path, name: str, score: float, nms: float | None) -> None:
        """Predicts an image; one that cannot be read is named and skipped."""
        try:
            pixels = read_image(file)
        except BadImage as problem:
            self.bad_images += 1
            print(f"skipped {problem}", file=sys.stderr)
            return
        objects = self.detector.detect(pixels, score, nms)
        self.images += 1
        self.counts.update(objects.names)
        for row in objects.to_coco(self.detector.classes):
            separator = ",\n" if self._json.tell() > 1 else "\n"
            named = {"image_id": self.images, "file_name": printable(name), **row}
            self._json.write(separator + json.dumps(named, ensure_ascii=False))
        self._save_picture(name, pixels, objects)

    def _save_picture(self, name: str, pixels: np.ndarray, objects: DetectedObjects) -> None:
        picture = self.out / "images" / name
        if picture.suffix.lower() not in SAVED:
            picture = picture.with_name(f"{picture.name}.png")
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw(pixels, objects).save(picture)

    def finish(self, seconds: float) -> int:
        """Completes detections.json and prints a summary. Returns the exit status."""
        if not self.images:
            print("error: no image could be read; nothing was written", file=sys.stderr)
            return 2
        self._json.write("\n]\n")
        self._json.close()
        os.replace(self._temporary, self.file)
        per_class = ", ".join(f"{name} {count}" for name, count in self.counts.most_common(10))
        print(
            f"{plural(self.images, 'image')}, {plural(self.counts.total(), 'detection')}"
            f"{f' ({per_class})' if per_class else ''}, {self.images / seconds:.1f} images a second"
        )
        if self.bad_images:
            print(f"{plural(self.bad_images, 'image')} could not be read: see above")
        print(f"Wrote {self.file} and {self.out / 'images'}")
        return 1 if self.bad_images else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
