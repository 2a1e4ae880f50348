"""Drawings, pixel by pixel.

Run: pytest tests/test_drawing.py
"""

from PIL import Image, ImageColor

from onenet.evaluation.drawing import COLORS, with_boxes, with_positives

GREY = (90, 90, 90)


def picture() -> Image.Image:
    return Image.new("RGB", (60, 40), GREY)


def test_a_box_is_an_outline_in_the_color_of_its_label():
    before = picture()
    drawn = with_boxes(before, [(10, 5, 50, 30, 1), (12, 8, 20, 20, 9, 0.7)])
    assert drawn.getpixel((30, 5)) == ImageColor.getrgb(COLORS[1])
    assert drawn.getpixel((16, 8)) == ImageColor.getrgb(COLORS[9 % len(COLORS)])
    assert drawn.getpixel((40, 20)) == GREY
    assert before.getcolors() == [(60 * 40, GREY)]


def test_a_positive_sample_is_a_dot_beside_its_box():
    drawn = with_positives(picture(), [(10, 5, 50, 30, 2)], [(30, 18, 2)])
    color = ImageColor.getrgb(COLORS[2])
    assert drawn.getpixel((30, 18)) == drawn.getpixel((30, 5)) == color
    assert drawn.getpixel((35, 18)) == (255, 255, 255)
    assert drawn.getpixel((20, 18)) == GREY
