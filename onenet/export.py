"""Writes a trained network as a file for others, and checks that it detects the same.

    python -m onenet.export RUN --format onnx --out DIR
    python -m onenet.export RUN --format onnx --size 512 864 --out DIR
    python -m onenet.export RUN --format safetensors --out DIR

RUN is a run's folder, its id, or an export in the format safetensors. The check runs the export on
the images of the run's evaluation, or on those of --images. If the detections differ, nothing is
written and the status is 1; it is 2 for invalid input.

onnx: DIR/model.onnx. torch: DIR/model.pt2, for torch.export.load. Their input `images` is uint8 RGB
[1, 3, H, W]; their outputs are `boxes` [1, 100, 4], xyxy pixels of the input, `scores` [1, 100] and
`labels` [1, 100], best first. No NMS. safetensors: the weights, config.json and a model card, a
folder that `onenet.load` reads.
"""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from onenet.data.annotations import Annotations
from onenet.data.images import read_image
from onenet.data.sizes import SIZE_MULTIPLE, pad_to_multiple
from onenet.data.sources import open_split
from onenet.errors import UserError
from onenet.inference import formats
from onenet.inference.card import card
from onenet.inference.check import Verdict, compare, inputs_of
from onenet.inference.command import command_line_with_run, execute
from onenet.inference.detector import TrainedDetector
from onenet.inference.graph import ExportedOutput
from onenet.inference.images import find_images
from onenet.inference.latency import measure
from onenet.inference.load import find, load
from onenet.runs.evaluations import default_evaluation
from onenet.runs.folder import RunFolder
from onenet.system.files import write_atomically, write_json
from onenet.system.terminal import run_command

MAX_IMAGES = 500  # of the check


def main(arguments: list[str]) -> int:
    """Returns 0; 1 if the export detects something else than the run; 2 if the input is invalid."""
    parser = command_line_with_run("export", __doc__)
    parser.add_argument("--format", required=True, choices=formats.FILES)
    parser.add_argument("--out", metavar="DIR", type=Path, required=True)
    parser.add_argument("--size", metavar=("H", "W"), type=int, nargs=2, help="of the input")
    parser.add_argument("--dynamic", action="store_true", help="any batch, height and width")
    parser.add_argument("--images", metavar="PATH", nargs="+", help="for the check")
    return execute(export_run, parser.parse_args(arguments))


def export_run(args: argparse.Namespace) -> int:
    """Exports the run and returns 0, or 1 if the export fails the check. Raises UserError."""
    folder = RunFolder(find(args.run, args.runs))
    detector = load(folder.path, device="cpu")
    formats.check_packages(args.format)
    size_hw = graph_size(detector, args.size, args.format)
    pictures, annotations = check_images(detector, folder, args.images)
    out = args.out.expanduser().absolute()
    with _scratch(out) as scratch:
        print(f"exporting {folder.path.name} as {args.format}", flush=True)
        run = write(detector, folder, args.format, scratch, size_hw, args.dynamic)
        fixed_hw = None if args.dynamic or args.format == "safetensors" else size_hw
        verdict = compare(detector, run, inputs_of(pictures, detector.size, fixed_hw), annotations)
        print("\n".join(verdict.lines()))
        if verdict.problems:
            print("error: nothing was written", file=sys.stderr)
            return 1
        images = torch.zeros(1, 3, *size_hw, dtype=torch.uint8)
        times = measure(detector, None if args.format == "safetensors" else run, images)
        print("\n".join(_latency_lines(times, size_hw)))
        _record(scratch, args.format, verdict, times, size_hw)
        _publish(scratch, out)
    size = (out / formats.FILES[args.format]).stat().st_size
    print(f"Wrote {out / formats.FILES[args.format]} ({size / 2**20:.1f} MiB)")
    return 0


def graph_size(
    detector: TrainedDetector, size: Sequence[int] | None, format_: str
) -> tuple[int, int]:
    """Returns the export's input size, by default that of a wide image in the run's evaluation.
    Raises UserError."""
    if size is None:
        return pad_to_multiple((detector.size.short, detector.size.longest))
    if format_ == "safetensors":
        raise UserError("--size has no meaning for safetensors: the weights take any size.")
    if any(side < SIZE_MULTIPLE or side % SIZE_MULTIPLE for side in size):
        nearest = pad_to_multiple((max(1, size[0]), max(1, size[1])))
        raise UserError(
            f"--size {size[0]} {size[1]}: both must be multiples of {SIZE_MULTIPLE}, for example "
            f"--size {nearest[0]} {nearest[1]}."
        )
    return size[0], size[1]


def check_images(
    detector: TrainedDetector, folder: RunFolder, names: Sequence[str] | None
) -> tuple[Iterator[np.ndarray], Annotations | None]:
    """Returns the images of the check and, if they are those of the run's evaluation, their
    annotations. Raises UserError if there are none."""
    if names:
        return (read_image(path) for path in find_images(names)[:MAX_IMAGES]), None
    try:
        split = default_evaluation(detector.config).split
        source = open_split(detector.config.data, split, folder.cache)
    except UserError as error:
        raise UserError(
            f"The images to check the export on are not here: {str(error).splitlines()[0]}\n"
            "Give some: --images FOLDER"
        ) from error
    annotations = source.annotations.limit(MAX_IMAGES)
    return (source.read(number) for number in range(len(annotations))), annotations


def write(
    detector: TrainedDetector,
    folder: RunFolder,
    format_: str,
    scratch: Path,
    size_hw: tuple[int, int],
    dynamic: bool,
) -> formats.Runner:
    """Writes the files of the format. Returns what runs them."""
    if format_ == "safetensors":
        formats.write_safetensors(detector, scratch)
        write_atomically(scratch / "README.md", card(detector, folder))
        reloaded = load(scratch, device="cpu")
        return lambda images: _whole(reloaded, images)
    file = scratch / formats.FILES[format_]
    if format_ == "onnx":
        formats.write_onnx(detector, file, size_hw, dynamic)
        return formats.open_onnx(file, torch.get_num_threads())
    formats.write_torch(detector, file, size_hw, dynamic)
    return formats.open_torch(file)


def _whole(detector: TrainedDetector, images: torch.Tensor) -> ExportedOutput:
    detections = detector.top_detections(detector.network, images, tuple(images.shape[2:]))
    return ExportedOutput(
        detections.boxes_xyxy[None], detections.scores[None], detections.labels[None]
    )


def _latency_lines(times: dict[str, list], size_hw: tuple[int, int]) -> list[str]:
    height, width = size_hw
    threads = torch.get_num_threads()
    title = f"One image of {height}×{width} on the processor, threads: {threads}"
    rows = [f"  {name:16} {p50:8.2f} {p99:8.2f}" for name, (p50, p99) in times.items()]
    return [title, f"  {'ms':16} {'p50':>8} {'p99':>8}", *rows]


def _record(
    scratch: Path, format_: str, verdict: Verdict, times: dict, size_hw: tuple[int, int]
) -> None:
    """Writes what the check found to check_FORMAT.json."""
    entry = {
        **asdict(verdict),
        "size_hw": list(size_hw),
        "milliseconds": {
            name: dict(zip(("p50", "p99"), t, strict=True)) for name, t in times.items()
        },
        "threads": torch.get_num_threads(),
        "bytes": (scratch / formats.FILES[format_]).stat().st_size,
    }
    write_json(scratch / f"check_{format_}.json", entry)


@contextlib.contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A folder beside the final one, removed at the end, so that nothing unchecked looks finished.
    Raises UserError if it cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists() and not out.is_dir():
            raise NotADirectoryError(f"{out} is a file")
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error}") from error
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _publish(scratch: Path, out: Path) -> None:
    """Moves the checked files into the folder, replacing those of an earlier export."""
    out.mkdir(exist_ok=True)
    for file in sorted(scratch.iterdir()):
        os.replace(file, out / file.name)


if __name__ == "__main__":
    sys.exit(run_command(main))
