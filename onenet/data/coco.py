"""Reads a data set in COCO format: an annotation file and the folder with its images.

I images, A annotations, K classes. Every message starts with `where`: the config key and the file.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from reprlib import repr as short

import numpy as np

from onenet.data.annotations import Annotations
from onenet.data.folder import check_images
from onenet.data.images import ImageFiles
from onenet.data.index import Content, read_with_index
from onenet.data.instances import load_instances
from onenet.errors import UserError
from onenet.system.plural import plural
from onenet.system.printable import printable

REQUIRED_KEYS = {  # of every entry in each list of the file
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
MIN_SIDE = 1e-3  # pixels: float32 cannot separate the corners of a smaller box
MAX_VALUE = 1e300  # a coordinate or area beyond counts as infinite


def read_coco(
    images: Path,
    annotations: Path,
    split: str,
    cache: Path | None = None,
    allow_outside: bool = False,
) -> ImageFiles:
    """Reads the data set of `split` (`train`, `val`), with images in the order of the file.

    `images` and `annotations` are the values of data.<split>.images and data.<split>.annotations.
    Drops boxes that have no area or lie wholly outside their image, and keeps boxes partly outside
    as they are; `annotations.report` counts both. Crowds are boxes with `crowd` set, whatever their
    mask. The folder `cache` holds the parsed file for later calls; raise `index.FORMAT` whenever
    this reads other values out of a file. `allow_outside`: a file_name may lead out of `images`.

    Raises UserError, naming key, file and entry, if the input is unusable.
    """
    where = f"data.{split}.annotations={annotations}"
    if not os.path.isdir(images):
        problem = "is not a folder" if os.path.exists(images) else "does not exist"
        raise UserError(
            f"data.{split}.images={images} {problem}\n"
            f"Give the folder with the images, data.{split}.images=FOLDER, "
            "or the root of the data set: data.root=FOLDER"
        )
    content, names = read_with_index(cache, annotations, lambda: _read(where, annotations, split))
    check_images(images, annotations, split, names, content.image_ids.tolist(), allow_outside)
    return ImageFiles(content, images, names)


def _read(where: str, path: Path, split: str) -> Content:
    content = load_instances(where, path, split)
    _check_lists(where, content)
    names = _file_names(where, content["images"])
    images, entries, categories = (content[key] for key in REQUIRED_KEYS)
    return _annotations(where, images, entries, categories), names


def _check_lists(where: str, content) -> None:
    if not isinstance(content, dict):
        raise UserError(
            f"{where} is not in COCO's instances format: its top level is of type "
            f"{type(content).__name__}\nIt must be an object with {', '.join(REQUIRED_KEYS)}."
        )
    missing = [key for key in REQUIRED_KEYS if not isinstance(content.get(key), list)]
    if missing:
        raise UserError(
            f"{where} is not in COCO's instances format: it has no list of "
            f"{' and of '.join(missing)}\nIts keys are: {short(list(content))}. "
            "Use the file instances_*.json."
        )
    for kind in REQUIRED_KEYS:
        if not set(map(type, content[kind])) <= {dict}:
            index = _first_index(not isinstance(entry, dict) for entry in content[kind])
            entry = short(content[kind][index])
            raise UserError(f"{where}: {kind}[{index}] is not an object: {entry}")
        if not content[kind] and kind != "annotations":
            raise UserError(
                f"{where} has no {kind}: its list is empty\n"
                f"Give another file: {where.partition('=')[0]}=FILE"
            )


def _annotations(where: str, images: list, entries: list, categories: list) -> Annotations:
    image_ids = _unique_ids(where, "images", images)
    sizes_hw = np.column_stack([_sides(where, images, key) for key in ("height", "width")])
    category_ids = _unique_ids(where, "categories", categories)
    names = _column(where, "categories", categories, "name")
    order = np.argsort(category_ids)
    image_indices = _positions(where, entries, "image_id", image_ids)
    labels = _positions(where, entries, "category_id", category_ids[order])

    boxes = _boxes(where, entries, "bbox")
    areas, area_report = _areas(entries, boxes)
    sides = boxes[:, 2:]
    boxes = np.hstack([boxes[:, :2], boxes[:, :2] + sides])
    mask, box_report = _check_boxes(entries, boxes, sides, sizes_hw[image_indices])
    rows = np.argsort(image_indices, kind="stable")
    rows = rows[mask[rows]]
    parts = None
    if entries and all("part_xyxy" in entry for entry in entries):
        parts = _boxes(where, entries, "part_xyxy")[rows]
    return Annotations(
        category_ids=category_ids[order].tolist(),
        category_names=[printable(str(names[index])) for index in order],
        image_ids=image_ids,
        sizes_hw=sizes_hw,
        first=np.searchsorted(image_indices[rows], np.arange(len(images) + 1)),
        boxes_xyxy=boxes[rows],
        labels=labels[rows],
        areas=areas[rows],
        crowd=_crowd(where, entries)[rows],
        parts_xyxy=parts,
        report=(*box_report, *area_report),
    )


def _check_boxes(
    entries: list, boxes: np.ndarray, sides: np.ndarray, sizes_hw: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Returns a mask of the usable boxes ([A] bool), and a sentence for each kind of problem.

    `boxes` [A, 4] corners in pixels, `sides` [A, 2], `sizes_hw` [A, 2] of the image of each box.
    """
    inside = np.clip(boxes, 0, np.tile(sizes_hw[:, ::-1], 2))
    empty = (sides <= MIN_SIDE).any(axis=1)
    outside = ~empty & (inside[:, 2:] - inside[:, :2] <= MIN_SIDE).any(axis=1)
    partly = ~empty & ~outside & (np.abs(inside - boxes) > MIN_SIDE).any(axis=1)
    problems = (
        (empty, "without area dropped"),
        (outside, "wholly outside the image dropped"),
        (partly, "partly outside the image kept, clipped in training"),
    )
    report = [_count_boxes(entries, mask, problem) for mask, problem in problems if mask.any()]
    return ~empty & ~outside, report


def _areas(entries: list, boxes_xywh: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Returns [A] square pixels and a report. Width × height replaces a missing or bad `area`."""
    areas = np.array([_number_or_nan(entry.get("area")) for entry in entries], dtype=np.float64)
    invalid = ~(areas >= 0)  # pycocotools would put a negative area into no size class at all
    areas[invalid] = boxes_xywh[invalid, 2:].prod(axis=1)
    problem = "without a valid area, width × height used"
    return areas, [_count_boxes(entries, invalid, problem)] if invalid.any() else []


def _number_or_nan(value) -> float:
    return value if type(value) in (int, float) and abs(value) < MAX_VALUE else np.nan


def _crowd(where: str, entries: list) -> np.ndarray:
    """Returns [A] bool; a missing `iscrowd` counts as 0."""
    flags = [entry.get("iscrowd") or 0 for entry in entries]
    index = _first_index(flag != 0 and flag != 1 for flag in flags)
    if index is not None:
        name = _entry_name("annotations", entries, index)
        raise UserError(f"{where}: {name} has iscrowd {short(flags[index])}, but it must be 0 or 1")
    return np.array(flags, dtype=bool)


def _boxes(where: str, entries: list, key: str) -> np.ndarray:
    """Returns the value of `key` of every entry, four numbers each: [A, 4] float64."""
    values = _column(where, "annotations", entries, key)
    try:
        boxes = np.array(values)
        if boxes.shape == (len(values), 4) and boxes.dtype.kind in "if":
            boxes = boxes.astype(np.float64)
            if (np.abs(boxes) < MAX_VALUE).all():
                return boxes
    except ValueError:  # values of different lengths
        pass
    index = _first_index(not _is_box(value) for value in values)
    if index is not None:
        name = _entry_name("annotations", entries, index)
        raise UserError(
            f"{where}: {name} has {key} {short(values[index])}\n"
            "It must be four finite numbers; correct or remove that annotation."
        )
    return np.array(values, dtype=np.float64).reshape(-1, 4)


def _is_box(value) -> bool:
    if not isinstance(value, list) or len(value) != 4:
        return False
    return all(type(number) in (int, float) and abs(number) < MAX_VALUE for number in value)


def _sides(where: str, images: list, key: str) -> np.ndarray:
    """Returns the heights or widths, [I] int64 pixels, at least 1."""
    values = _column(where, "images", images, key)
    index = _first_index(not (_is_integer(value) and value > 0) for value in values)
    if index is not None:
        name = _entry_name("images", images, index)
        raise UserError(
            f"{where}: {name} has {key} {short(values[index])}, "
            "but it must be a positive number of pixels"
        )
    return np.array([int(value) for value in values], dtype=np.int64)


def _file_names(where: str, images: list) -> list[str]:
    names = _column(where, "images", images, "file_name")
    index = _first_index(not (isinstance(name, str) and name) for name in names)
    if index is not None:
        entry, name = _entry_name("images", images, index), short(names[index])
        raise UserError(f"{where}: {entry} has file_name {name}, but it must be a non-empty string")
    return names


def _unique_ids(where: str, kind: str, entries: list) -> np.ndarray:
    """Returns the ids of images or categories, [len(entries)] int64; each must be unique."""
    values = _column(where, kind, entries, "id")
    index = _first_index(not _is_integer(value) for value in values)
    if index is not None:
        raise UserError(
            f"{where}: {kind}[{index}] has id {short(values[index])}, but ids must be integers"
        )
    ids = np.array([int(value) for value in values], dtype=np.int64)
    unique_ids, counts = np.unique(ids, return_counts=True)
    if len(unique_ids) < len(ids):
        repeated_id = unique_ids[counts > 1][0]
        label = "file_name" if kind == "images" else "name"
        indices = np.flatnonzero(ids == repeated_id)[:2]
        one, other = (repr(entries[index].get(label)) for index in indices)
        raise UserError(
            f"{where}: {kind} has id {repeated_id} twice, for {one} and {other}\n"
            "Give each its own id, and update the annotations."
        )
    return ids


def _positions(where: str, entries: list, key: str, ids: np.ndarray) -> np.ndarray:
    """Returns the position in `ids` of each annotation's `key`, [A] int64."""
    positions = {value: index for index, value in enumerate(ids.tolist())}
    values = _column(where, "annotations", entries, key)
    try:
        return np.array([positions[value] for value in values], dtype=np.int64)
    except (KeyError, TypeError):  # an unknown id, or a list or object
        index = _first_index(not _is_integer(value) or value not in positions for value in values)
    kind = {"image_id": "images", "category_id": "categories"}[key]
    examples = ", ".join(map(str, sorted(positions)[:5]))
    examples += f", … ({len(positions)} ids)" if len(positions) > 5 else ""
    raise UserError(
        f"{where}: {_entry_name('annotations', entries, index)} has {key} {short(values[index])}, "
        f"which is not in {kind}\nIds in {kind}: {examples}\n"
        f"Correct or remove that annotation, or add the entry to {kind}."
    )


def _column(where: str, kind: str, entries: list, key: str) -> list:
    try:
        return [entry[key] for entry in entries]
    except KeyError:
        index = _first_index(key not in entry for entry in entries)
    keys = dict.fromkeys((*REQUIRED_KEYS[kind], key))
    raise UserError(
        f"{where}: {_entry_name(kind, entries, index)} has no {key}\n"
        f"Every entry of {kind} needs {', '.join(keys)}."
    )


def _count_boxes(entries: list, mask: np.ndarray, problem: str) -> str:
    """For example: 12 boxes without area dropped (annotation ids 3, 9, 14, …)"""
    count, examples = int(mask.sum()), np.flatnonzero(mask)[:3]
    names = [_entry_name("annotations", entries, index) for index in examples]
    ids = ", ".join(name.removeprefix("annotation id ") for name in names)
    ids += ", …" if count > len(examples) else ""
    label = "annotation id" if count == 1 else "annotation ids"
    return f"{plural(count, 'box')} {problem} ({label} {ids})"


def _entry_name(kind: str, entries: Sequence[dict], index: int) -> str:
    """Returns a name for messages: `annotation id 7`, or `annotations[6]` for one without id."""
    if "id" not in entries[index]:
        return f"{kind}[{index}]"
    noun = {"images": "image", "annotations": "annotation", "categories": "category"}[kind]
    return f"{noun} id {short(entries[index]['id'])}"


def _first_index(flags: Iterable[bool]) -> int | None:
    """Returns the index of the first true value, or None."""
    return next((index for index, flag in enumerate(flags) if flag), None)


def _is_integer(value) -> bool:
    if type(value) is float:
        return value.is_integer() and abs(value) < 2**53
    return type(value) is int and abs(value) < 2**63
