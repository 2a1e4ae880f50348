"""`data=shapes`: the built-in data, drawn from a seed. Nothing is downloaded or stored.

Images of different sizes and aspects hold 1 to `max_objects` objects that may cover each other in
part, on a noisy background. Two kinds:

- `rigid`: the class is the object's outline. It shows everywhere in the box.
- `parts`: the object is a body whose outline says nothing; the class shows only in a glyph that
  lies anywhere in it (as the zebra's head in Figure 5). The glyph's box is kept as `parts_xyxy`.

No two boxes of an image overlap enough for NMS at 0.5 to touch the ground truth: the data itself
never decides whether NMS is needed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from onenet.data.annotations import Annotations

SUPERSAMPLING = 2  # drawn larger, then averaged: soft edges
MAX_IOU = 0.2  # between any two boxes of an image
MAX_COVERED = 0.2  # share of an object's box that a later object's box may cover
MAX_PART_COVERED = 0.15  # the same for the part that shows the class
PLACEMENT_TRIES = 12
NOISE = 8  # of 255, largest change of a pixel
CONTRAST = 90  # of 255, smallest difference of a colour to the one under it, around the clock

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels
Color = tuple[int, int, int]  # red, green, blue


@dataclass(frozen=True)
class ShapesConfig:
    """What is drawn; lengths in pixels of the image."""

    kind: str = "rigid"
    seed: int = 0  # of the images, not of the training
    min_short: int = 72  # shortest side of an image, uniform in between
    max_short: int = 96
    max_aspect: float = 2.0
    max_objects: int = 12
    min_side: float = 0.15  # geometric mean of an object's sides, share of the shortest side
    max_side: float = 0.4
    body_scale: float = 1.3  # of `parts`: a body's sides are so much longer, to hold a glyph
    part_side: float = 0.7  # of `parts`: side of a glyph, share of the smaller side of its body


def _polygon(*corners: tuple[float, float]) -> Callable:
    """A polygon with corners in the unit square, drawn into a box."""

    def draw(canvas: ImageDraw.ImageDraw, box: Box, fill: Color) -> None:
        x1, y1, x2, y2 = box
        canvas.polygon([(x1 + u * (x2 - x1), y1 + v * (y2 - y1)) for u, v in corners], fill=fill)

    return draw


def _ellipse(canvas: ImageDraw.ImageDraw, box: Box, fill: Color) -> None:
    canvas.ellipse(box, fill=fill)


def _rounded(canvas: ImageDraw.ImageDraw, box: Box, fill: Color) -> None:
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
BODIES = (_ellipse, _rounded)


@dataclass(frozen=True)
class Scene:
    """Where everything stands in one image, before it is drawn. N objects, the last one on top."""

    size_hw: tuple[int, int]
    labels: np.ndarray  # [N]
    boxes_xyxy: np.ndarray  # [N, 4] pixels
    parts_xyxy: np.ndarray  # [N, 4] pixels: the glyph, or the whole box of a rigid object


def _generator(config: ShapesConfig, split: str, image: int, what: int) -> np.random.Generator:
    return np.random.default_rng([config.seed, {"train": 0, "val": 1}[split], image, what])


def make_scene(config: ShapesConfig, split: str, image: int) -> Scene:
    """The layout of image number `image` of `split` (`train`, `val`): a function of these only."""
    rng = _generator(config, split, image, 0)
    short = int(rng.integers(config.min_short, config.max_short + 1))
    long = round(short * config.max_aspect ** rng.uniform(0, 1) ** 2)  # mostly near to square
    size_hw = (short, long) if rng.random() < 0.6 else (long, short)
    labels, boxes, parts = [], [], []
    for _ in range(int(rng.integers(1, config.max_objects + 1))):
        for _ in range(PLACEMENT_TRIES):
            box, part = _place(rng, config, size_hw)
            if all(_fits(box, below, shown) for below, shown in zip(boxes, parts, strict=True)):
                labels.append(int(rng.integers(len(OUTLINES))))
                boxes.append(box)
                parts.append(part)
                break
    return Scene(size_hw, np.array(labels), np.array(boxes), np.array(parts))


def _place(rng: np.random.Generator, config: ShapesConfig, size_hw: Sequence) -> tuple[Box, Box]:
    """A box anywhere in the image, and the part in it that shows the class.

    A dozen are tried an image: plain numbers take a fraction of the time of arrays of two.
    """
    side = min(size_hw) * config.min_side * (config.max_side / config.min_side) ** rng.random()
    side *= config.body_scale if config.kind == "parts" else 1
    stretch = 2 ** rng.uniform(-0.5, 0.5)
    height, width = size_hw
    w, h = min(side * stretch, width - 1.0), min(side / stretch, height - 1.0)
    x, y = rng.random() * (width - 1.0 - w), rng.random() * (height - 1.0 - h)
    box = (x, y, x + w, y + h)
    if config.kind == "rigid":
        return box, box
    glyph = config.part_side * min(w, h)
    x += rng.uniform(0.05, 0.95) * (w - glyph)
    y += rng.uniform(0.05, 0.95) * (h - glyph)
    return box, (x, y, x + glyph, y + glyph)


def _fits(box: Box, below: Box, part: Box) -> bool:
    """May `box` be put on top of the object in the box `below` that shows its class in `part`?"""
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


def draw_scene(config: ShapesConfig, split: str, image: int, scene: Scene) -> np.ndarray:
    """The pixels: [H, W, 3] uint8 RGB."""
    rng = _generator(config, split, image, 1)
    height, width = scene.size_hw
    coarse = rng.integers(40, 216, (4, 4, 3), dtype=np.uint8)
    canvas_size = (width * SUPERSAMPLING, height * SUPERSAMPLING)
    picture = Image.fromarray(coarse).resize(canvas_size, Image.Resampling.BILINEAR)
    canvas = ImageDraw.Draw(picture)
    objects = (scene.labels, SUPERSAMPLING * scene.boxes_xyxy, SUPERSAMPLING * scene.parts_xyxy)
    for label, box, part in zip(*(column.tolist() for column in objects), strict=True):
        color = _contrasting(rng, picture, box)
        if config.kind == "parts":
            BODIES[rng.integers(len(BODIES))](canvas, box, color)
            color = _moved(rng, color, 90, 166)
        DRAW_OUTLINE[label](canvas, part, color)
    pixels = np.asarray(picture.reduce(SUPERSAMPLING), dtype=np.int16)
    noise = rng.integers(-NOISE, NOISE + 1, pixels.shape, dtype=np.int16)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def _contrasting(rng: np.random.Generator, picture: Image.Image, box: Box) -> Color:
    """A colour that differs from what lies under the middle of the box."""
    under = picture.getpixel((int((box[0] + box[2]) / 2), int((box[1] + box[3]) / 2)))
    return _moved(rng, under, CONTRAST, 257 - CONTRAST)


def _moved(rng: np.random.Generator, color: Color, low: int, high: int) -> Color:
    """Each channel moved on by low..high - 1, around the clock."""
    return tuple((channel + int(rng.integers(low, high))) % 256 for channel in color)


def make_annotations(config: ShapesConfig, split: str, count: int) -> Annotations:
    """The objects of the first `count` images of `split`, image ids 1..count."""
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
    """What `make_scene` made of it, out of the annotations of `make_annotations`."""
    rows, (height, width) = annotations.rows(image), annotations.sizes_hw[image].tolist()
    return Scene(
        (height, width),
        annotations.labels[rows],
        annotations.boxes_xyxy[rows],
        annotations.parts_xyxy[rows],
    )
