"""Prediction with an unreadable image; what the evaluation backend affects.

Run: pytest tests/test_predict.py
"""

from importlib import metadata

import pytest
import torch
from torch import nn

from onenet.config.compose import compose
from onenet.data.images import BadImage
from onenet.data.loading import DetectionDataset
from onenet.data.sizes import ImageSize
from onenet.errors import UserError
from onenet.evaluation.evaluators import EVALUATORS
from onenet.evaluation.predict import predict
from onenet.job import results
from onenet.runs.evaluations import requested_evaluation
from onenet.runs.identity import run_id
from onenet.structures import Detections
from tests.conftest import Pictures, make_annotations

SIZES = [(90, 200), (200, 90), (64, 64), (64, 96), (130, 131)]


class Blind(nn.Module):
    """A detector whose output is unused."""

    def forward(self, images, sizes_hw, num_heads):
        return [None]


def whole_image(_, sizes_hw, k, peaks):
    """One detection per image: all of its pixels."""
    return [
        Detections(torch.tensor([[0.0, 0, w, h]]), torch.ones(1), torch.zeros(1, dtype=torch.int64))
        for h, w in sizes_hw
    ]


def test_an_image_that_cannot_be_read_has_no_detections(monkeypatch):
    monkeypatch.setattr("onenet.evaluation.predict.top_k", whole_image)

    class Torn(Pictures):
        def read(self, image):
            if image == 1:
                raise BadImage("b.jpg: truncated")
            return super().read(image)

    source = Torn(make_annotations(SIZES, [[] for _ in SIZES]))
    dataset = DetectionDataset(source, ImageSize(64, 1.5), on_bad_image="skip")
    predictions, bad = predict(Blind(), dataset, batch=1)
    assert predictions.image.tolist() == [0, 2, 3, 4]
    assert bad == ["b.jpg: truncated"]


def test_the_backend_makes_neither_another_run_nor_another_evaluation():
    assert compose([]).eval.backend == "hotcoco"
    for backend in EVALUATORS:
        config = compose([f"eval.backend={backend}"])
        assert run_id(config) == run_id(compose([]))
        assert requested_evaluation(config) == requested_evaluation(compose([]))
    with pytest.raises(
        UserError, match=r"eval\.backend=coco: choose one of hotcoco, faster, pycocotools"
    ):
        compose(["eval.backend=coco"])


def test_a_result_has_the_versions_of_all_backends():
    environment = results.environment("cpu", threads=1)
    for package in ("hotcoco", "pycocotools", "faster-coco-eval"):
        assert environment[package] == metadata.version(package)
