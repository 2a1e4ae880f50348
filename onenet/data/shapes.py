"""`data=shapes`: the built-in data, drawn from a seed. Nothing is downloaded or stored.

Images vary in size and aspect ratio. Each holds 1 to `max_objects` partly overlapping objects on a
noisy background. Three kinds:

- `rigid`: the object's outline is its class, so the class shows everywhere in the box.
- `parts`: the outline of the object's body says nothing about its class. The class shows only in a
  glyph somewhere in the body, like the zebra's head in Figure 5. `parts_xyxy` has the glyph's box.
- `crowded`: rigid objects, two thirds of them in pairs. The neighbours in a pair have one class and
  size, and an IoU of 0.5 to 0.7, as people in CrowdHuman, so NMS at 0.5 must remove one of them. An
  image of two or more objects has a pair.

All other boxes of an image overlap so little that NMS at 0.5 never removes ground truth. So it is
only in `crowded` that the data decides whether NMS does harm.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from onenet.data.annotations import Annotations

SUPERSAMPLING = 2  # draws at a larger scale, then averages, for soft edges
MAX_IOU = 0.2  # between any two boxes of an image
MAX_COVERED = 0.2  # fraction of an object's box that a later object's box may cover
MAX_PART_COVERED = 0.15  # the same for the part that shows the class
NEIGHBOUR_IOU = (0.52, 0.68)  # of `crowded`: clear of NMS at 0.5 and 0.7, also in rounded pixels
NEIGHBOUR_SHARE = 0.5  # how often an object joins the one before, once there is a pair
PLACEMENT_TRIES = 12
NOISE = 8  # of 255, largest change to a pixel value
CONTRAST = 90  # of 255, smallest difference of a channel to the colour underneath, modulo 256

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels
Color = tuple[int, int, int]  # red, green, blue


@dataclass(frozen=True)
class ShapeSettings:
    """Parameters of the images; lengths in pixels."""

    kind: str = "rigid"
    seed: int = 0  # of the images, not of training
    min_short: int = 72  # shortest side of an image, uniform in min_short..max_short
    max_short: int = 96
    max_aspect: float = 2.0
    max_objects: int = 12
    min_side: float = 0.15  # geometric mean of an object's sides, fraction of the shortest side
    max_side: float = 0.4
    body_scale: float = 1.3  # for `parts`: scales up the sides of a body, to hold a glyph
    part_side: float = 0.7  # for `parts`: side of a glyph, fraction of its body's smaller side


def _polygon(*corners: tuple[float, float]) -> Callable:
    """Returns a function that draws a polygon, given by corners in the unit square, into a box."""

    def draw(canvas: ImageDraw.ImageDraw, box: Box, fill: Color) -> None:
        x1, y1, x2, y2 = box
        canvas.polygon([(x1 + u * (x2 - x1), y1 + v * (y2 - y1)) for u, v in corners], fill=fill)

    return draw


def _ellipse(canvas: ImageDraw.ImageDraw, box: Box, fill: Color) -> None:
    canvas.ellipse(box, fill=fill)


def _rounded_rectangle(canvas: ImageDraw.ImageDraw, box: Box, fill: Color) -> None:
    radius = 0.25 * min(box[2] - box[0], box[3] - box[1])
    canvas.rounded_rectangle(box, radius, fill=fill)


THIRD, TWO_THIRDS = 0.34, 0.66
OUTLINES: dict[str, Callable] = {
    "ellipse": _ellipse,
    "rectangle": _polygon((0, 0), (1, 0), (1, 1), (0, 1)),
    "triangle": _polygon((0.5, 0), (1, 1), (0, 1)),
    "cross": _polygon(
        (THIRD, 0),
        (TWO_THIRDS, 0),
        (TWO_THIRDS, THIRD),
        (1, THIRD),
        (1, TWO_THIRDS),
        (TWO_THIRDS, TWO_THIRDS),
        (TWO_THIRDS, 1),
        (THIRD, 1),
        (THIRD, TWO_THIRDS),
        (0, TWO_THIRDS),
        (0, THIRD),
        (THIRD, THIRD),
    ),
    "hourglass": _polygon((0, 0), (1, 0), (0.6, 0.5), (1, 1), (0, 1), (0.4, 0.5)),
}
DRAW_OUTLINE = tuple(OUTLINES.values())  # by label
BODIES = (_ellipse, _rounded_rectangle)


@dataclass(frozen=True)
class Scene:
    """The layout of one image, before drawing. N objects, the last one on top."""

    size_hw: tuple[int, int]
    labels: np.ndarray  # [N]
    boxes_xyxy: np.ndarray  # [N, 4] pixels
    parts_xyxy: np.ndarray  # [N, 4] pixels: the glyph, or the whole box of a rigid object


def _generator(config: ShapeSettings, split: str, image: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([config.seed, {"train": 0, "val": 1}[split], image, stream])


def make_scene(config: ShapeSettings, split: str, image: int) -> Scene:
    """Samples the layout of image number `image` of `split` (`train`, `val`), reproducibly."""
    rng = _generator(config, split, image, 0)
    short = int(rng.integers(config.min_short, config.max_short + 1))
    long = round(short * config.max_aspect ** rng.uniform(0, 1) ** 2)  # most are nearly square
    size_hw = (short, long) if rng.random() < 0.6 else (long, short)
    count = int(rng.integers(1, config.max_objects + 1))
    if config.kind == "crowded":
        labels, boxes = _place_crowded(rng, config, size_hw, count)
        return Scene(size_hw, np.array(labels), np.array(boxes), np.array(boxes))
    labels, boxes, parts = [], [], []
    for _ in range(count):
        for _ in range(PLACEMENT_TRIES):
            box, part = _sample_box(rng, config, size_hw)
            if all(_may_cover(box, *below) for below in zip(boxes, parts, strict=True)):
                labels.append(int(rng.integers(len(OUTLINES))))
                boxes.append(box)
                parts.append(part)
                break
    return Scene(size_hw, np.array(labels), np.array(boxes), np.array(parts))


def _place_crowded(
    rng: np.random.Generator, config: ShapeSettings, size_hw: tuple[int, int], count: int
) -> tuple[list[int], list[Box]]:
    """Places up to `count` objects: each is the neighbour of the one before, if that has none yet,
    or lies apart. Without room for a pair, only the first stays."""
    labels: list[int] = []
    boxes: list[Box] = []
    covered: list[Box] = []  # the lower ones of the pairs: nothing else may hide their rest
    is_single = False  # the last object
    for _ in range(count):
        joins = is_single and (not covered or rng.random() < NEIGHBOUR_SHARE)
        for _ in range(PLACEMENT_TRIES):
            if joins:
                box, others = _sample_neighbour(rng, boxes[-1]), boxes[:-1]
            else:
                box, others = _sample_box(rng, config, size_hw)[0], boxes
            if (
                _is_inside(box, size_hw)
                and all(_may_cover(box, below, below) for below in others)
                and not any(_overlap(box, below) for below in covered)
            ):
                covered += boxes[-1:] if joins else []
                labels.append(labels[-1] if joins else int(rng.integers(len(OUTLINES))))
                boxes.append(box)
                is_single = not joins
                break
    number = len(boxes) if covered else 1
    return labels[:number], boxes[:number]


def _sample_neighbour(rng: np.random.Generator, box: Box) -> Box:
    """Shifts the box in a random direction, by as much as a random IoU in NEIGHBOUR_IOU asks."""
    iou = rng.uniform(*NEIGHBOUR_IOU)
    common = 2 * iou / (1 + iou)  # fraction of the box, of which each axis keeps a power
    along_x = rng.random()
    signs = 2 * rng.integers(0, 2, 2) - 1
    x1, y1, x2, y2 = box
    dx = float(signs[0]) * (1 - common**along_x) * (x2 - x1)
    dy = float(signs[1]) * (1 - common ** (1 - along_x)) * (y2 - y1)
    return (x1 + dx, y1 + dy, x2 + dx, y2 + dy)


def _is_inside(box: Box, size_hw: tuple[int, int]) -> bool:
    height, width = size_hw
    return box[0] >= 0 and box[1] >= 0 and box[2] <= width - 1 and box[3] <= height - 1


def _sample_box(
    rng: np.random.Generator, config: ShapeSettings, size_hw: Sequence
) -> tuple[Box, Box]:
    """Samples a box anywhere in the image, and the part in it that shows the class.

    Uses plain numbers: this is called dozens of times an image, and arrays of two are slower.
    """
    side = min(size_hw) * config.min_side * (config.max_side / config.min_side) ** rng.random()
    side *= config.body_scale if config.kind == "parts" else 1
    stretch = 2 ** rng.uniform(-0.5, 0.5)
    height, width = size_hw
    w, h = min(side * stretch, width - 1.0), min(side / stretch, height - 1.0)
    x, y = rng.random() * (width - 1.0 - w), rng.random() * (height - 1.0 - h)
    box = (x, y, x + w, y + h)
    if config.kind != "parts":
        return box, box
    glyph = config.part_side * min(w, h)
    x += rng.uniform(0.05, 0.95) * (w - glyph)
    y += rng.uniform(0.05, 0.95) * (h - glyph)
    return box, (x, y, x + glyph, y + glyph)


def _may_cover(box: Box, below: Box, part: Box) -> bool:
    """Whether `box` may lie on top of the object in `below`, whose class shows in `part`."""
    overlap, area = _overlap(box, below), _area(below)
    part_covered = MAX_COVERED if part == below else MAX_PART_COVERED
    return not overlap or (
        overlap / (_area(box) + area - overlap) <= MAX_IOU
        and overlap <= MAX_COVERED * area
        and _overlap(box, part) / _area(part) <= part_covered
    )


def _overlap(one: Box, other: Box) -> float:
    left, top, right, bottom = one
    x1, y1, x2, y2 = other
    width = (right if right < x2 else x2) - (left if left > x1 else x1)
    height = (bottom if bottom < y2 else y2) - (top if top > y1 else y1)
    return width * height if width > 0 and height > 0 else 0.0


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def draw_scene(config: ShapeSettings, split: str, image: int, scene: Scene) -> np.ndarray:
    """Draws the pixels, [H, W, 3] uint8 RGB."""
    rng = _generator(config, split, image, 1)
    height, width = scene.size_hw
    coarse = rng.integers(40, 216, (4, 4, 3), dtype=np.uint8)
    canvas_size = (width * SUPERSAMPLING, height * SUPERSAMPLING)
    picture = Image.fromarray(coarse).resize(canvas_size, Image.Resampling.BILINEAR)
    canvas = ImageDraw.Draw(picture)
    objects = (scene.labels, SUPERSAMPLING * scene.boxes_xyxy, SUPERSAMPLING * scene.parts_xyxy)
    for label, box, part in zip(*(column.tolist() for column in objects), strict=True):
        color = _contrasting_color(rng, picture, box)
        if config.kind == "parts":
            BODIES[rng.integers(len(BODIES))](canvas, box, color)
            color = _shift_color(rng, color, 90, 166)
        DRAW_OUTLINE[label](canvas, part, color)
    pixels = np.asarray(picture.reduce(SUPERSAMPLING), dtype=np.int16)
    noise = rng.integers(-NOISE, NOISE + 1, pixels.shape, dtype=np.int16)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def _contrasting_color(rng: np.random.Generator, picture: Image.Image, box: Box) -> Color:
    """Draws a colour that differs from the one under the centre of the box."""
    under = picture.getpixel((int((box[0] + box[2]) / 2), int((box[1] + box[3]) / 2)))
    return _shift_color(rng, under, CONTRAST, 257 - CONTRAST)


def _shift_color(rng: np.random.Generator, color: Color, low: int, high: int) -> Color:
    """Shifts each channel by low..high - 1, modulo 256."""
    return tuple((channel + int(rng.integers(low, high))) % 256 for channel in color)


def make_annotations(config: ShapeSettings, split: str, count: int) -> Annotations:
    """Returns the objects of the first `count` images of `split`, with image ids 1..count."""
    scenes = [make_scene(config, split, image) for image in range(count)]
    boxes = np.concatenate([scene.boxes_xyxy for scene in scenes])
    return Annotations(
        category_ids=list(range(1, len(OUTLINES) + 1)),
        category_names=list(OUTLINES),
        image_ids=np.arange(1, count + 1),
        sizes_hw=np.array([scene.size_hw for scene in scenes]),
        first=np.cumsum([0] + [len(scene.labels) for scene in scenes]),
        boxes_xyxy=boxes,
        labels=np.concatenate([scene.labels for scene in scenes]),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        crowd=np.zeros(len(boxes), dtype=bool),
        parts_xyxy=np.concatenate([scene.parts_xyxy for scene in scenes]),
    )


def scene_of(annotations: Annotations, image: int) -> Scene:
    """Restores the result of `make_scene` from the annotations of `make_annotations`."""
    rows, (height, width) = annotations.rows(image), annotations.sizes_hw[image].tolist()
    return Scene(
        (height, width),
        annotations.labels[rows],
        annotations.boxes_xyxy[rows],
        annotations.parts_xyxy[rows],
    )
