"""One pass over a data set: original pixels, images of one padded size a batch, bad images.

Run: pytest tests/test_evaluate.py
"""

import numpy as np
import torch
from torch import nn

from onenet import evaluate
from onenet.data.images import BadImage
from onenet.data.loading import (
    DetectionDataset,
    ImageSize,
    evaluation_batches,
    pad_to_multiple,
)
from onenet.evaluate import predict
from onenet.scoring import Scorer
from onenet.structures import Detections
from tests.conftest import Pictures, make_annotations, make_predictions

SIZES = [(90, 200), (200, 90), (64, 64), (64, 96), (130, 131)]


class Blind(nn.Module):
    """A detector of which nothing is asked."""

    def forward(self, images, num_heads):
        return [None]


def whole_image(_, sizes_hw, k):
    """One detection an image: all of it, as resized."""
    return [
        Detections(torch.tensor([[0.0, 0, w, h]]), torch.ones(1), torch.zeros(1, dtype=torch.int64))
        for h, w in sizes_hw
    ]


def test_boxes_come_back_in_original_pixels(monkeypatch):
    monkeypatch.setattr(evaluate, "top_k", whole_image)
    source = Pictures(make_annotations(SIZES, [[] for _ in SIZES]))
    dataset = DetectionDataset(source, ImageSize(64, 1.5))
    found, bad = predict(Blind(), dataset, batch=2)
    np.testing.assert_allclose(found.boxes_xyxy, [[0, 0, w, h] for h, w in SIZES])
    assert found.image.tolist() == list(range(len(SIZES)))
    assert bad == []


def test_a_batch_holds_images_of_one_padded_size():
    source = Pictures(make_annotations(SIZES * 3, [[] for _ in SIZES * 3]))
    dataset = DetectionDataset(source, ImageSize(64, 1.5))
    seen = []
    for batch in evaluation_batches(dataset, 4):
        for target in batch.targets:
            assert pad_to_multiple(target.size_hw) == tuple(batch.images.shape[-2:])
            seen.append(target.image_id)
    assert sorted(seen) == list(range(1, 3 * len(SIZES) + 1))


def test_an_image_that_cannot_be_read_has_no_detections(monkeypatch):
    monkeypatch.setattr(evaluate, "top_k", whole_image)

    class Torn(Pictures):
        def read(self, image):
            if image == 1:
                raise BadImage("b.jpg: truncated")
            return super().read(image)

    source = Torn(make_annotations(SIZES, [[] for _ in SIZES]))
    dataset = DetectionDataset(source, ImageSize(64, 1.5), on_bad_image="skip")
    found, bad = predict(Blind(), dataset, batch=1)
    assert found.image.tolist() == [0, 2, 3, 4]
    assert bad == ["b.jpg: truncated"]


def test_without_detections_crowds_make_no_area_defined():
    annotations = make_annotations(
        [(300, 300)], [[(0, [0, 0, 200, 200]), (0, [0, 0, 10, 10], True)]], classes=1
    )
    nothing = make_predictions([], [], [], [])
    metrics, notes = Scorer(annotations).score(nothing)
    assert (metrics["AP"], metrics["APl"], metrics["APs"]) == (0, 0, None)
    assert "small" in notes["APs"]
