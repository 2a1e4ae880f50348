"""A trained network, ready for images of any size.

B images, D detections, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from onenet import build
from onenet.config.schema import Config
from onenet.data.augment import whole_view
from onenet.data.images import BadImage, read_image
from onenet.data.loading import pad, resample
from onenet.data.normalization import normalize
from onenet.data.sizes import ImageSize
from onenet.errors import UserError
from onenet.evaluation.drawing import with_captions
from onenet.evaluation.predict import in_original_pixels
from onenet.evaluation.predictions import MAX_DETECTIONS, to_xywh
from onenet.inference.images import find_images, to_pixels
from onenet.ops.fusion import for_inference
from onenet.postprocess import nms_keep, top_k
from onenet.runs.classes import Classes
from onenet.runs.evaluations import default_evaluation
from onenet.structures import Detections


@dataclass(frozen=True)
class DetectedObjects:
    """The detections in one image, highest score first, in pixels of the original image."""

    boxes_xyxy: np.ndarray  # [D, 4] float64
    scores: np.ndarray  # [D] float64 in 0..1
    labels: np.ndarray  # [D] int64 in 0..K-1
    names: list[str]  # [D] of the classes
    size_hw: tuple[int, int]  # of the image

    def __len__(self) -> int:
        return len(self.scores)

    def to_supervision(self) -> Any:
        """Returns a `supervision.Detections`. Raises UserError if the package is missing."""
        try:
            from supervision import Detections as SupervisionDetections
        except ImportError as error:
            raise UserError(
                "This needs the package supervision: pip install 'onenet[predict]'"
            ) from error
        return SupervisionDetections(
            xyxy=self.boxes_xyxy.astype(np.float32).reshape(-1, 4),
            confidence=self.scores.astype(np.float32),
            class_id=self.labels,
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def to_coco(self, classes: Classes) -> list[dict]:
        """Returns rows of COCO's results format, without the image's id."""
        boxes = np.round(to_xywh(self.boxes_xyxy), 3).tolist()
        rows = zip(boxes, self.scores.tolist(), self.labels, strict=True)
        return [
            {"bbox": box, "score": round(score, 5), "category_id": classes.ids[label]}
            for box, score, label in rows
        ]


class TrainedDetector:
    """A trained network with all that it takes to use it: call `predict`, or `network` for its bare
    outputs.

    `id`, `config`: of the run. `classes`: the K classes. `size`: images are resized to it, as in
    the run's default evaluation.
    """

    def __init__(self, network: nn.Module, config: Config, classes: Classes, id_: str, device: str):
        spec = default_evaluation(config)
        self.id, self.config, self.classes, self.device = id_, config, classes, device
        self.size = ImageSize(spec.short, spec.ratio)
        self.infer_heads, self.peaks = spec.infer_heads, spec.peaks
        self.network = network.to(device).eval()

    @cached_property
    def fused_network(self) -> nn.Module:
        """A faster copy of the network with the same outputs."""
        return for_inference(self.network)

    def predict(self, source: Any, score: float = 0.3, nms: float | None = None) -> Any:
        """Returns the DetectedObjects of an image, or a list of them for several.

        `source`: an image (a path, a PIL image, a uint8 array [H, W, 3] or tensor [3, H, W], RGB),
        a list of images, or the path of a folder, whose images come in the order of `find_images`.
        `score`: the lowest score to return, in 0..1. `nms`: the IoU, in 0..1, of class-wise NMS, or
        None for no NMS. Raises UserError, naming the file, if an image cannot be read.
        """
        for name, value in (("score", score), ("nms", nms)):
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{name}={value:g}: must be in 0..1.")
        if isinstance(source, str | Path):
            path = Path(source).expanduser()
            if path.is_dir():
                return [self.predict(file, score, nms) for file in find_images([path])]
            try:
                return self.detect(read_image(path), score, nms)
            except BadImage as error:
                raise UserError(f"{error}") from error
        if isinstance(source, Sequence):
            return [self.predict(one, score, nms) for one in source]
        return self.detect(to_pixels(source), score, nms)

    @torch.inference_mode()
    def detect(
        self, pixels: np.ndarray, score: float = 0.3, nms: float | None = None
    ) -> DetectedObjects:
        """As `predict`, for the pixels of one image, [H, W, 3] uint8 RGB."""
        images, size_hw = self.resized(pixels)
        detections = self.top_detections(self.fused_network, images, size_hw)
        mask = (detections.scores.cpu() >= score).numpy()
        if nms is not None:
            mask &= nms_keep(detections, nms).numpy()
        original_hw = pixels.shape[:2]
        arrays = in_original_pixels(detections, size_hw, original_hw)
        boxes, scores, labels = (array[mask] for array in arrays)
        names = [self.classes.names[label] for label in labels]
        return DetectedObjects(boxes, scores, labels, names, original_hw)

    def resized(self, pixels: np.ndarray) -> tuple[Tensor, tuple[int, int]]:
        """Resizes and pads an image as in the run's evaluation.

        Returns [1, 3, H, W] uint8, H and W multiples of 32, and (height, width) without padding.
        """
        view = whole_view(pixels.shape[:2], self.size)
        return pad([resample(pixels, view)]), view.size_hw

    def top_detections(
        self, network: nn.Module, images: Tensor, size_hw: tuple[int, int]
    ) -> Detections:
        """Returns the top 100 of one image, [1, 3, H, W] uint8, by `network` or a copy of it."""
        sizes_hw = torch.tensor([size_hw], device=self.device)
        images = normalize(images.to(self.device))
        output = network(images, sizes_hw, num_heads=self.infer_heads)[-1]
        return top_k(output, [size_hw], MAX_DETECTIONS, self.peaks)[0]


def network_for(config: Config, num_classes: int) -> nn.Module:
    """Builds a run's network, to be filled with its weights."""
    backbone = replace(config.backbone, weights="none")  # they are overwritten
    return build.detector(replace(config, backbone=backbone), num_classes)


def draw(image: np.ndarray, objects: DetectedObjects, least_side: int = 256) -> Image.Image:
    """Returns the image, [H, W, 3] uint8, with labelled boxes; a small one is enlarged."""
    height, width = image.shape[:2]
    scale = max(1.0, least_side / min(height, width))
    picture = Image.fromarray(image).resize((round(width * scale), round(height * scale)))
    captions = [f"{n} {s:.2f}" for n, s in zip(objects.names, objects.scores, strict=True)]
    boxes = np.column_stack([objects.boxes_xyxy * scale, objects.labels]).tolist()
    return with_captions(picture, boxes, captions)
