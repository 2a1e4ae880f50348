"""Reading a COCO-format data set: an annotation file and the folder of its images.

I images, A annotations, K classes. `where` names the config key and the file in every message.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as short

import numpy as np

from onenet.data.annotations import Annotations
from onenet.data.images import ImageFiles, missing_files
from onenet.data.index import Content, indexed
from onenet.data.instances import load_instances
from onenet.errors import UserError

NEEDED = {  # the lists of a file, and what every entry of them needs
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
NOTHING = 1e-3  # pixels: float32 cannot keep the corners of a smaller box apart
LARGEST = 1e300  # what comes near to infinity is no coordinate


def read_coco(images: Path, annotations: Path, split: str, cache: Path | None = None) -> ImageFiles:
    """The data set of `split` (`train`, `val`), images in the order of the file.

    `images` and `annotations` are the values of data.<split>.images and data.<split>.annotations.
    Boxes without area or wholly outside their image are left out, boxes partly outside stay as they
    are; `annotations.report` counts both. Crowds are boxes with `crowd` set, whatever their mask.
    The folder `cache` keeps what was read for the next time; whoever changes what this reads out of
    a file raises `index.FORMAT`.
    Raises UserError, naming key, file and entry, where the input cannot work.
    """
    where = f"data.{split}.annotations={annotations}"
    if not os.path.isdir(images):
        problem = "is not a folder" if os.path.exists(images) else "does not exist"
        raise UserError(
            f"data.{split}.images={images} {problem}\n"
            f"Name the folder with the images: data.{split}.images=FOLDER, "
            "or the one above it: data.root=FOLDER"
        )
    read, names = indexed(cache, annotations, lambda: _read(where, annotations, split))
    _check_files(images, names, f"data.{split}.images={images}", annotations)
    return ImageFiles(read, images, names)


def _read(where: str, path: Path, split: str) -> Content:
    content = load_instances(where, path, split)
    _check_lists(where, content)
    names = _file_names(where, content["images"])
    read = _annotations(where, content["images"], content["annotations"], content["categories"])
    return read, names


def _check_lists(where: str, content) -> None:
    if not isinstance(content, dict):
        raise UserError(
            f"{where} is not COCO's instances format: its top level is of type "
            f"{type(content).__name__}\nIt must be an object with {', '.join(NEEDED)}."
        )
    missing = [key for key in NEEDED if not isinstance(content.get(key), list)]
    if missing:
        raise UserError(
            f"{where} is not COCO's instances format: it has no list of {' and of '.join(missing)}"
            f"\nIts keys are: {short(list(content))}. Take the file instances_*.json."
        )
    for kind in NEEDED:
        if not set(map(type, content[kind])) <= {dict}:
            at = _first(not isinstance(entry, dict) for entry in content[kind])
            raise UserError(f"{where}: {kind}[{at}] is not an object: {short(content[kind][at])}")
        if not content[kind] and kind != "annotations":
            raise UserError(
                f"{where} has no {kind}: its list is empty\n"
                f"Name another file: {where.partition('=')[0]}=FILE"
            )


def _annotations(where: str, images: list, entries: list, categories: list) -> Annotations:
    image_ids = _unique_ids(where, "images", images)
    sizes_hw = np.column_stack([_sides(where, images, key) for key in ("height", "width")])
    category_ids = _unique_ids(where, "categories", categories)
    names = _column(where, "categories", categories, "name")
    by_id = np.argsort(category_ids)
    image_of = _positions(where, entries, "image_id", image_ids)
    label_of = _positions(where, entries, "category_id", category_ids[by_id])

    boxes = _boxes(where, entries, "bbox")
    areas, report = _areas(entries, boxes)
    sides = boxes[:, 2:]
    boxes = np.hstack([boxes[:, :2], boxes[:, :2] + sides])
    keep, cleaned = _clean(entries, boxes, sides, sizes_hw[image_of])
    rows = np.argsort(image_of, kind="stable")
    rows = rows[keep[rows]]
    parts = None
    if entries and all("part_xyxy" in entry for entry in entries):
        parts = _boxes(where, entries, "part_xyxy")[rows]
    return Annotations(
        category_ids=category_ids[by_id].tolist(),
        category_names=[str(names[at]) for at in by_id],
        image_ids=image_ids,
        sizes_hw=sizes_hw,
        first=np.searchsorted(image_of[rows], np.arange(len(images) + 1)),
        boxes_xyxy=boxes[rows],
        labels=label_of[rows],
        areas=areas[rows],
        crowd=_crowd(where, entries)[rows],
        parts_xyxy=parts,
        report=(*cleaned, *report),
    )


def _clean(entries: list, boxes: np.ndarray, sides: np.ndarray, sizes_hw: np.ndarray):
    """Which boxes [A, 4] can be used ([A] bool), and a sentence for each thing that is wrong."""
    inside = np.clip(boxes, 0, np.tile(sizes_hw[:, ::-1], 2))
    empty = (sides <= NOTHING).any(axis=1)
    outside = ~empty & (inside[:, 2:] - inside[:, :2] <= NOTHING).any(axis=1)
    partly = ~empty & ~outside & (np.abs(inside - boxes) > NOTHING).any(axis=1)
    found = (
        (empty, "without area dropped"),
        (outside, "wholly outside the image dropped"),
        (partly, "partly outside the image kept, clipped in training"),
    )
    report = [_counted(entries, rows, what) for rows, what in found if rows.any()]
    return ~empty & ~outside, report


def _areas(entries: list, boxes_xywh: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """[A] square pixels: `area`, or width × height where that is missing or no area."""
    areas = np.array([_number_or_nan(entry.get("area")) for entry in entries], dtype=np.float64)
    unknown = ~(areas >= 0)  # pycocotools would count a negative area in no size class at all
    areas[unknown] = boxes_xywh[unknown, 2:].prod(axis=1)
    what = "of unknown mask area, width × height taken"
    return areas, [_counted(entries, unknown, what)] if unknown.any() else []


def _number_or_nan(value) -> float:
    return value if type(value) in (int, float) and abs(value) < LARGEST else np.nan


def _crowd(where: str, entries: list) -> np.ndarray:
    """[A] bool; `iscrowd` is 0 where it is missing."""
    flags = [entry.get("iscrowd") or 0 for entry in entries]
    at = _first(flag != 0 and flag != 1 for flag in flags)
    if at is not None:
        name = _name("annotations", entries, at)
        raise UserError(f"{where}: {name} has iscrowd {short(flags[at])}, it must be 0 or 1")
    return np.array(flags, dtype=bool)


def _boxes(where: str, entries: list, key: str) -> np.ndarray:
    """[A, 4] float64: the four numbers that every entry has under `key`."""
    values = _column(where, "annotations", entries, key)
    try:
        boxes = np.array(values)
        if boxes.shape == (len(values), 4) and boxes.dtype.kind in "if":
            boxes = boxes.astype(np.float64)
            if (np.abs(boxes) < LARGEST).all():
                return boxes
    except ValueError:  # of different lengths
        pass
    at = _first(not _is_box(value) for value in values)
    if at is not None:
        raise UserError(
            f"{where}: {_name('annotations', entries, at)} has {key} {short(values[at])}\n"
            "It must be four finite numbers; correct or remove that annotation."
        )
    return np.array(values, dtype=np.float64).reshape(-1, 4)


def _is_box(value) -> bool:
    if not isinstance(value, list) or len(value) != 4:
        return False
    return all(type(number) in (int, float) and abs(number) < LARGEST for number in value)


def _sides(where: str, images: list, key: str) -> np.ndarray:
    """[I] int64 pixels, at least 1."""
    values = _column(where, "images", images, key)
    at = _first(not (_is_whole(value) and value > 0) for value in values)
    if at is not None:
        name = _name("images", images, at)
        raise UserError(
            f"{where}: {name} has {key} {short(values[at])}, it must be a number of pixels"
        )
    return np.array([int(value) for value in values], dtype=np.int64)


def _file_names(where: str, images: list) -> list[str]:
    names = _column(where, "images", images, "file_name")
    at = _first(not (isinstance(name, str) and name) for name in names)
    if at is not None:
        name = _name("images", images, at)
        raise UserError(f"{where}: {name} has file_name {short(names[at])}, it must be a text")
    return names


def _unique_ids(where: str, kind: str, entries: list) -> np.ndarray:
    """[len(entries)] int64: the ids of images or categories, each once."""
    values = _column(where, kind, entries, "id")
    at = _first(not _is_whole(value) for value in values)
    if at is not None:
        raise UserError(
            f"{where}: {kind}[{at}] has the id {short(values[at])}, ids must be whole numbers"
        )
    ids = np.array([int(value) for value in values], dtype=np.int64)
    known, counts = np.unique(ids, return_counts=True)
    if len(known) < len(ids):
        double = known[counts > 1][0]
        at, second = np.flatnonzero(ids == double)[:2]
        label = "file_name" if kind == "images" else "name"
        one, other = (repr(entries[i].get(label)) for i in (at, second))
        raise UserError(
            f"{where}: the id {double} stands twice in {kind}, for {one} and {other}\n"
            "Give each its own id, and its annotations too."
        )
    return ids


def _positions(where: str, entries: list, key: str, ids: np.ndarray) -> np.ndarray:
    """[A] int64: the position in `ids` of the id that each annotation has under `key`."""
    position = {known: at for at, known in enumerate(ids.tolist())}
    values = _column(where, "annotations", entries, key)
    try:
        return np.array([position[value] for value in values], dtype=np.int64)
    except (KeyError, TypeError):  # unknown, or a list or object
        at = _first(not _is_whole(value) or value not in position for value in values)
    kind = {"image_id": "images", "category_id": "categories"}[key]
    known = ", ".join(map(str, sorted(position)[:5]))
    known += f", … ({len(position)} ids)" if len(position) > 5 else ""
    raise UserError(
        f"{where}: {_name('annotations', entries, at)} has {key} {short(values[at])}, "
        f"which is not in {kind}\nIds in {kind}: {known}\n"
        f"Correct or remove that annotation, or add the entry to {kind}."
    )


def _column(where: str, kind: str, entries: list, key: str) -> list:
    try:
        return [entry[key] for entry in entries]
    except KeyError:
        at = _first(key not in entry for entry in entries)
    needed = (*NEEDED[kind], key)
    raise UserError(
        f"{where}: {_name(kind, entries, at)} has no {key}\n"
        f"Every entry of {kind} needs {', '.join(dict.fromkeys(needed))}."
    )


def _check_files(folder: Path, names: list[str], where: str, annotations: Path) -> None:
    missing = missing_files(folder, names)
    if missing:
        raise UserError(
            f"{where} lacks {len(missing)} of the {len(names)} images of {annotations}\n"
            f"The first: {missing[0]!r}. Add them, or name the folder that file_name counts "
            f"from: {where.partition('=')[0]}=FOLDER"
        )


def _counted(entries: list, rows: np.ndarray, what: str) -> str:
    """For example: 12 boxes without area dropped (annotation ids 3, 9, 14, …)"""
    count, some = int(rows.sum()), np.flatnonzero(rows)[:3]
    names = [_name("annotations", entries, at).removeprefix("annotation id ") for at in some]
    ids = ", ".join(names) + (", …" if count > len(some) else "")
    boxes, label = ("box", "annotation id") if count == 1 else ("boxes", "annotation ids")
    return f"{count} {boxes} {what} ({label} {ids})"


def _name(kind: str, entries: Sequence[dict], at: int) -> str:
    """An entry for a message: `annotation id 7`, or `annotations[6]` where it has no id."""
    if "id" not in entries[at]:
        return f"{kind}[{at}]"
    one = {"images": "image", "annotations": "annotation", "categories": "category"}[kind]
    return f"{one} id {short(entries[at]['id'])}"


def _first(wrong) -> int | None:
    """The position of the first true value, None if there is none."""
    return next((at for at, is_wrong in enumerate(wrong) if is_wrong), None)


def _is_whole(value) -> bool:
    if type(value) is float:
        return value.is_integer() and abs(value) < 2**53
    return type(value) is int and abs(value) < 2**63
