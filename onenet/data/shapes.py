"""`data=shapes`: the built-in data, drawn from a seed. Nothing is downloaded or stored.

Images of different sizes and aspects hold 1 to `max_objects` objects that may cover each other in
part, on a noisy background. Two kinds:

- `rigid`: the class is the object's outline. It shows everywhere in the box.
- `parts`: the object is a body whose outline says nothing; the class shows only in a glyph that
  lies anywhere in it (as the zebra's head in Figure 5). The glyph's box is kept as `parts_xyxy`.

No two boxes of an image overlap enough for NMS at 0.5 to touch the ground truth: the data itself
never decides whether NMS is needed.
"""

from collections.abc import Callable
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

    def draw(canvas: ImageDraw.ImageDraw, box: np.ndarray, fill: tuple) -> None:
        x1, y1, x2, y2 = box
        canvas.polygon([(x1 + u * (x2 - x1), y1 + v * (y2 - y1)) for u, v in corners], fill=fill)

    return draw


def _ellipse(canvas: ImageDraw.ImageDraw, box: np.ndarray, fill: tuple) -> None:
    canvas.ellipse(tuple(box), fill=fill)


def _rounded(canvas: ImageDraw.ImageDraw, box: np.ndarray, fill: tuple) -> None:
    radius = 0.25 * min(box[2] - box[0], box[3] - box[1])
    canvas.rounded_rectangle(tuple(box), radius, fill=fill)


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
    labels, boxes, parts = [], np.zeros((0, 4)), np.zeros((0, 4))
    for _ in range(int(rng.integers(1, config.max_objects + 1))):
        for _ in range(PLACEMENT_TRIES):
            box, part = _place(rng, config, size_hw)
            if not len(boxes) or _fits(box, boxes, parts):
                labels.append(int(rng.integers(len(OUTLINES))))
                boxes, parts = np.vstack([boxes, box]), np.vstack([parts, part])
                break
    return Scene(size_hw, np.array(labels), boxes, parts)


def _place(rng, config: ShapesConfig, size_hw) -> tuple[np.ndarray, np.ndarray]:
    """A box anywhere in the image, and the part in it that shows the class."""
    side = min(size_hw) * config.min_side * (config.max_side / config.min_side) ** rng.random()
    side *= config.body_scale if config.kind == "parts" else 1
    stretch = 2 ** rng.uniform(-0.5, 0.5)
    limit_wh = np.array(size_hw[::-1]) - 1.0
    wh = np.minimum([side * stretch, side / stretch], limit_wh)
    corner = rng.uniform(0, limit_wh - wh)
    box = np.concatenate([corner, corner + wh])
    if config.kind == "rigid":
        return box, box
    glyph = config.part_side * wh.min()
    corner = corner + rng.uniform(0.05, 0.95, 2) * (wh - glyph)
    return box, np.concatenate([corner, corner + glyph])


def _fits(box: np.ndarray, boxes: np.ndarray, parts: np.ndarray) -> bool:
    """May `box` be put on top of these?"""
    overlap, area = _overlap(box, boxes), _area(boxes)
    iou = overlap / (_area(box) + area - overlap)
    hidden_parts = _overlap(box, parts) / _area(parts)
    is_whole = (parts == boxes).all(axis=1)
    return bool(
        (iou <= MAX_IOU).all()
        and (overlap <= MAX_COVERED * area).all()
        and (hidden_parts <= np.where(is_whole, MAX_COVERED, MAX_PART_COVERED)).all()
    )


def _overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    return np.clip(high - low, 0, None).prod(axis=1)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2:] - boxes[..., :2]).prod(axis=-1)


def draw_scene(config: ShapesConfig, split: str, image: int, scene: Scene) -> np.ndarray:
    """The pixels: [H, W, 3] uint8 RGB."""
    rng = _generator(config, split, image, 1)
    height, width = scene.size_hw
    coarse = rng.integers(40, 216, (4, 4, 3), dtype=np.uint8)
    canvas_size = (width * SUPERSAMPLING, height * SUPERSAMPLING)
    picture = Image.fromarray(coarse).resize(canvas_size, Image.Resampling.BILINEAR)
    canvas = ImageDraw.Draw(picture)
    for label, box, part in zip(scene.labels, scene.boxes_xyxy, scene.parts_xyxy, strict=True):
        outline = list(OUTLINES.values())[label]
        body_color = _contrasting(rng, picture, box)
        if config.kind == "parts":
            BODIES[rng.integers(len(BODIES))](canvas, box * SUPERSAMPLING, tuple(body_color))
            glyph_color = (body_color + rng.integers(90, 166, 3)) % 256
            outline(canvas, part * SUPERSAMPLING, tuple(glyph_color))
        else:
            outline(canvas, box * SUPERSAMPLING, tuple(body_color))
    pixels = np.asarray(picture.reduce(SUPERSAMPLING), dtype=np.int16)
    noise = rng.integers(-NOISE, NOISE + 1, pixels.shape, dtype=np.int16)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def _contrasting(rng, picture: Image.Image, box: np.ndarray) -> np.ndarray:
    """A colour that differs from what lies under the middle of the box."""
    x, y = ((box[:2] + box[2:]) / 2 * SUPERSAMPLING).astype(int)
    under = np.array(picture.getpixel((int(x), int(y))))
    return (under + rng.integers(CONTRAST, 257 - CONTRAST, 3)) % 256


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
        areas=_area(boxes),
        crowd=np.zeros(len(boxes), dtype=bool),
        parts_xyxy=np.concatenate([scene.parts_xyxy for scene in scenes]),
    )
