"""Draws positive samples and boxes on a picture (Figures 5 and 6), for runs and for the analysis.

Coordinates are pixels of the picture. The color depends on the label.
"""

from collections.abc import Sequence

from PIL import Image, ImageDraw

COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#00a5a5", "#9a6324", "#f032e6")
RADIUS = 5  # of a positive sample's dot


def with_positives(
    picture: Image.Image,
    ground_truth: Sequence[Sequence[float]],
    positives: Sequence[Sequence[float]],
) -> Image.Image:
    """Returns a copy with the objects' boxes and a dot at each positive sample (Figure 5).

    `ground_truth`: rows of (x1, y1, x2, y2, label). `positives`: rows of (x, y, label).
    """
    copy = with_boxes(picture, ground_truth, width=1)
    canvas = ImageDraw.Draw(copy)
    for x, y, label in positives:
        bounds = (x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS)
        canvas.ellipse(bounds, fill=_color(label), outline="white")
    return copy


def with_boxes(
    picture: Image.Image, boxes: Sequence[Sequence[float]], width: int = 2
) -> Image.Image:
    """Returns a copy with boxes, rows of (x1, y1, x2, y2, label[, score]) (Figure 6)."""
    copy = picture.convert("RGB")
    canvas = ImageDraw.Draw(copy)
    for x1, y1, x2, y2, label, *_ in boxes:
        canvas.rectangle((x1, y1, x2, y2), outline=_color(label), width=width)
    return copy


def with_captions(
    picture: Image.Image, boxes: Sequence[Sequence[float]], captions: Sequence[str]
) -> Image.Image:
    """Returns a copy with boxes, rows of (x1, y1, x2, y2, label), and a caption in each box's
    corner unless it is empty. The first boxes are on top."""
    copy = with_boxes(picture, boxes)
    canvas = ImageDraw.Draw(copy)
    for (x1, y1, _, _, label), caption in reversed([*zip(boxes, captions, strict=True)]):
        if not caption:
            continue
        corner = (max(0, x1) + 2, max(0, y1) + 1)
        canvas.rectangle(canvas.textbbox(corner, caption), fill=_color(label))
        canvas.text(corner, caption, fill="white")
    return copy


def _color(label: float) -> str:
    return COLORS[int(label) % len(COLORS)]
