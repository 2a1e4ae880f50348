"""Measures the time and memory for reading annotations of COCO's size. Linux only.

    python analysis/benchmark_data.py

Writes a synthetic annotation file of train2017's size (118,287 images, 860,001 boxes, 0.44 GB, one
minute) to a temporary folder. Reads it in fresh processes, first without and then with a cached
index, and forks worker processes from the reader. Prints seconds and MB (10^6 bytes).
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
POLYGONS = 4096  # distinct ones
TIMEOUT = 120  # seconds that workers wait for each other
IMAGE = (
    '{"license": 3,"file_name": "%012d.jpg","coco_url": '
    '"http://images.cocodataset.org/train2017/%012d.jpg","height": 480,"width": 640,'
    '"date_captured": "2013-11-14 11:18:45","flickr_url": '
    '"http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg","id": %d}'
)


@dataclass(frozen=True)
class Reading:
    seconds: float
    peak_mb: float  # peak resident memory of the process
    array_mb: float  # size of the annotations' arrays
    worker_mb: list[float]  # [WORKERS] private memory of each after it has read all annotations


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        images, file = write_data(Path(folder), IMAGES, BOXES)
        first, second = measure(images, file, Path(folder) / "cache")
        print(f"annotation file: {file.stat().st_size / 1e6:.1f} MB")
        for name, reading in (("first read", first), ("second read, with the index", second)):
            print(f"{name}: {reading.seconds:.1f} s, {reading.peak_mb:.1f} MB peak memory")
        private = ", ".join(f"{mb:.1f}" for mb in second.worker_mb)
        print(f"arrays: {second.array_mb:.1f} MB; private to each worker: {private} MB")


def write_data(folder: Path, images: int, boxes: int) -> tuple[Path, Path]:
    """Writes a folder of `images` empty files and an annotation file in COCO's format.

    Every box lies in its image. It has a polygon, as in COCO, but an unrelated one.
    """
    ids = np.random.default_rng(0).choice(5 * images, images, replace=False).tolist()
    (folder / "images").mkdir()
    for number in ids:
        (folder / "images" / f"{number:012}.jpg").touch()
    categories = [{"id": number, "name": f"class {number}"} for number in CATEGORY_IDS]
    file = folder / "instances.json"
    with open(file, "w") as stream:
        stream.write('{"info": {},"images": [')
        stream.write(",".join(IMAGE % (number, number, number) for number in ids))
        stream.write('],"annotations": [')
        stream.writelines(_annotations(ids, boxes))
        stream.write(f'],"categories": {json.dumps(categories)}}}')
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
    """Measures two reads of `file`, each in a fresh process; the second one uses the index."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as processes:
        first, second = (processes.submit(_reading, images, file, cache).result() for _ in range(2))
    return first, second


def _reading(images: Path, file: Path, cache: Path) -> Reading:
    start = time.perf_counter()
    source = read_coco(images, file, "train", cache)
    seconds = time.perf_counter() - start
    peak = _kilobytes("status", "VmHWM") * 1024 / 1e6
    fields = vars(source.annotations).values()
    arrays = sum(field.nbytes for field in fields if isinstance(field, np.ndarray)) / 1e6
    return Reading(seconds, peak, arrays, _worker_mb(source))


def _worker_mb(source: ImageFiles) -> list[float]:
    """Measures the memory that each of WORKERS forked processes does not share with this one, after
    all of them have read all annotations."""
    fork = multiprocessing.get_context("fork")
    barrier, queue = fork.Barrier(WORKERS), fork.SimpleQueue()

    def work() -> None:
        _read_all(source)
        barrier.wait(TIMEOUT)
        private = _kilobytes("smaps_rollup", "Private_Clean", "Private_Dirty")
        queue.put(private * 1024 / 1e6)
        barrier.wait(TIMEOUT)  # pages shared with a worker that exits early would count as private

    workers = [fork.Process(target=work) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise RuntimeError("A worker failed, see above.")
    return [queue.get() for _ in workers]


def _read_all(source: ImageFiles) -> None:
    """Reads everything that loading an image reads, for all images."""
    annotations = source.annotations
    for image in range(len(annotations)):
        rows = annotations.rows(image)
        single = ~annotations.crowd[rows]
        annotations.boxes_xyxy[rows][single], annotations.labels[rows][single]
        str(source.path(image)), tuple(annotations.sizes_hw[image]), annotations.image_ids[image]


def _kilobytes(file: str, *names: str) -> int:
    """Returns the sum of the lines with these names in /proc/self/FILE."""
    lines = (line.split() for line in Path("/proc/self", file).read_text().splitlines())
    return sum(int(fields[1]) for fields in lines if fields[0].rstrip(":") in names)


if __name__ == "__main__":
    main()
