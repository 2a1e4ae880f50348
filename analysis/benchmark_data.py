"""How long a data set of COCO's size takes to read, and how much memory it needs. Linux only.

    python analysis/benchmark_data.py

Makes a synthetic annotation file of train2017's size (118,287 images, 860,001 boxes, 0.44 GB, a
minute) in a temporary folder, reads it in fresh processes, without and with the index of an earlier
read, and forks worker processes from the one that holds it. Prints seconds and MB (10^6 bytes).
"""

import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from onenet.data.coco import read_coco
from onenet.data.images import ImageFiles

IMAGES, BOXES = 118_287, 860_001  # of train2017
CATEGORY_IDS = [number for number in range(1, 91) if number % 9]  # 80, with gaps
WORKERS = 4
POLYGONS = 4096  # different ones
PATIENCE = 120  # seconds that workers wait for each other
IMAGE = (
    '{"license": 3,"file_name": "%012d.jpg","coco_url": '
    '"http://images.cocodataset.org/train2017/%012d.jpg","height": 480,"width": 640,'
    '"date_captured": "2013-11-14 11:18:45","flickr_url": '
    '"http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg","id": %d}'
)


@dataclass(frozen=True)
class Reading:
    seconds: float
    peak_mb: float  # resident, of the whole process
    array_mb: float  # of the annotations
    worker_mb: list[float]  # [WORKERS] private to each, after a walk over all annotations


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        images, file = write_data(Path(folder), IMAGES, BOXES)
        first, again = measure(images, file, Path(folder) / "cache")
        lines = (
            ("annotation file", file.stat().st_size / 1e6, "MB"),
            ("first read", first.seconds, "s"),
            ("", first.peak_mb, "MB at its peak"),
            ("read again, from the index", again.seconds, "s"),
            ("", again.peak_mb, "MB at its peak"),
            ("arrays", again.array_mb, "MB"),
            *((f"private to worker {n + 1}", mb, "MB") for n, mb in enumerate(again.worker_mb)),
        )
        for what, value, unit in lines:
            print(f"{what:28}{value:8.1f} {unit}")


def write_data(folder: Path, images: int, boxes: int) -> tuple[Path, Path]:
    """A folder of `images` empty files and their annotation file, written as COCO's are.

    Every box lies in its image and has a polygon, which has nothing to do with it.
    """
    ids = np.random.default_rng(0).choice(5 * images, images, replace=False).tolist()
    (folder / "images").mkdir()
    for number in ids:
        (folder / "images" / f"{number:012}.jpg").touch()
    categories = [{"id": number, "name": f"class {number}"} for number in CATEGORY_IDS]
    file = folder / "instances.json"
    with open(file, "w") as written:
        written.write('{"info": {},"images": [')
        written.write(",".join(IMAGE % (number, number, number) for number in ids))
        written.write('],"annotations": [')
        written.writelines(_annotations(ids, boxes))
        written.write(f'],"categories": {json.dumps(categories)}}}')
    return folder / "images", file


def _annotations(image_ids: list[int], boxes: int) -> Iterator[str]:
    rng = np.random.default_rng(1)
    polygons = [
        ",".join(map(str, (rng.integers(0, 60_000, 2 * points) / 100).tolist()))
        for points in 3 + rng.geometric(1 / 22, POLYGONS)
    ]
    corners = rng.integers(0, 40_000, (boxes, 2))
    xywh = (np.hstack([corners, rng.integers(100, 8_000, (boxes, 2))]) / 100).tolist()
    image = rng.integers(0, len(image_ids), boxes).tolist()
    category = rng.choice(CATEGORY_IDS, boxes).tolist()
    crowd = (rng.random(boxes) < 0.01).astype(int).tolist()
    polygon = rng.integers(0, POLYGONS, boxes).tolist()
    for row, box in enumerate(xywh):
        yield (
            f'{"," if row else ""}{{"segmentation": [[{polygons[polygon[row]]}]],'
            f'"area": {0.6 * box[2] * box[3]},"iscrowd": {crowd[row]},'
            f'"image_id": {image_ids[image[row]]},"bbox": {box},'
            f'"category_id": {category[row]},"id": {row + 1}}}'
        )


def measure(images: Path, file: Path, cache: Path) -> tuple[Reading, Reading]:
    """The first read of `file` and the next one, which finds the index, in a process each."""
    readings = []
    for _ in range(2):
        fresh = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, fresh) as process:
            readings.append(process.submit(_reading, images, file, cache).result())
    return tuple(readings)


def _reading(images: Path, file: Path, cache: Path) -> Reading:
    start = time.perf_counter()
    source = read_coco(images, file, "train", cache)
    seconds = time.perf_counter() - start
    peak = _kilobytes("status", "VmHWM") * 1024 / 1e6
    fields = vars(source.annotations).values()
    arrays = sum(field.nbytes for field in fields if isinstance(field, np.ndarray)) / 1e6
    return Reading(seconds, peak, arrays, _worker_mb(source))


def _worker_mb(source: ImageFiles) -> list[float]:
    """What each of WORKERS processes does not share with this one when all have done their walk."""
    fork = multiprocessing.get_context("fork")
    together, found = fork.Barrier(WORKERS), fork.SimpleQueue()

    def work() -> None:
        _walk(source)
        together.wait(PATIENCE)
        private = _kilobytes("smaps_rollup", "Private_Clean", "Private_Dirty")
        found.put(private * 1024 / 1e6)
        together.wait(PATIENCE)  # what one has left behind is private to the last one

    workers = [fork.Process(target=work) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise RuntimeError("A worker has failed, see above.")
    return [found.get() for _ in workers]


def _walk(source: ImageFiles) -> None:
    """Looks at all that loading an image looks at, for all images."""
    annotations = source.annotations
    for image in range(len(annotations)):
        rows = annotations.rows(image)
        single = ~annotations.crowd[rows]
        annotations.boxes_xyxy[rows][single], annotations.labels[rows][single]
        str(source.path(image)), tuple(annotations.sizes_hw[image]), annotations.image_ids[image]


def _kilobytes(file: str, *names: str) -> int:
    """The sum of these lines of /proc/self/FILE."""
    lines = (line.split() for line in Path("/proc/self", file).read_text().splitlines())
    return sum(int(words[1]) for words in lines if words[0].rstrip(":") in names)


if __name__ == "__main__":
    main()
