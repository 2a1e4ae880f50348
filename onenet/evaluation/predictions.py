"""All detections of a data set, as they are scored and stored.

I images, D detections of all images, K classes.
"""

from dataclasses import dataclass

import numpy as np

from onenet.data.annotations import Annotations
from onenet.system.memory import without_collection

MAX_DETECTIONS = 100  # an image


def to_xywh(boxes_xyxy: np.ndarray) -> np.ndarray:
    """[D, 4] -> [D, 4]: (x, y, width, height)."""
    corner = boxes_xyxy[:, :2]
    return np.hstack([corner, boxes_xyxy[:, 2:] - corner])


@dataclass(frozen=True)
class Predictions:
    """All detections of a data set, in pixels of the original images. The rows of an image, at most
    100, stand together, best score first."""

    image: np.ndarray  # [D] int64 in 0..I-1
    boxes_xyxy: np.ndarray  # [D, 4] float64
    scores: np.ndarray  # [D] float64 in 0..1
    labels: np.ndarray  # [D] int64 in 0..K-1
    nms_keep: dict[float, np.ndarray]  # IoU threshold -> [D] bool: what class-wise NMS leaves

    def to_xywh(self) -> np.ndarray:
        """[D, 4]: the boxes as they are stored and scored, (x, y, width, height), 3 decimals."""
        return np.round(to_xywh(self.boxes_xyxy), 3)

    @without_collection()
    def to_coco(self, annotations: Annotations) -> list[dict]:
        """COCO's results format."""
        rows = zip(
            annotations.image_ids[self.image].tolist(),
            self.to_xywh().tolist(),
            self.scores.tolist(),
            np.asarray(annotations.category_ids)[self.labels].tolist(),
            strict=True,
        )
        keys = ("image_id", "bbox", "score", "category_id")
        return [dict(zip(keys, row, strict=True)) for row in rows]
