"""The detections of a data set, in the form in which they are scored and stored.

I images, D detections over all images, K classes.
"""

from dataclasses import dataclass

import numpy as np

from onenet.data.annotations import Annotations
from onenet.system.memory import without_collection

MAX_DETECTIONS = 100  # per image


def to_xywh(boxes_xyxy: np.ndarray) -> np.ndarray:
    """Converts boxes to (x, y, width, height): [D, 4] -> [D, 4]."""
    corner = boxes_xyxy[:, :2]
    return np.hstack([corner, boxes_xyxy[:, 2:] - corner])


@dataclass(frozen=True)
class Predictions:
    """All detections of a data set, in pixels of the original images.

    The rows of an image, at most 100, are contiguous and sorted by score, best first.
    """

    image: np.ndarray  # [D] int64 in 0..I-1
    boxes_xyxy: np.ndarray  # [D, 4] float64
    scores: np.ndarray  # [D] float64 in 0..1
    labels: np.ndarray  # [D] int64 in 0..K-1
    nms_keep: dict[float, np.ndarray]  # IoU threshold -> [D] bool: mask of class-wise NMS

    def to_xywh(self) -> np.ndarray:
        """Returns the boxes as stored and scored: (x, y, width, height), 3 decimals, [D, 4]."""
        return np.round(to_xywh(self.boxes_xyxy), 3)

    @without_collection()
    def to_coco(self, annotations: Annotations) -> list[dict]:
        """Returns the detections in COCO's results format."""
        rows = zip(
            annotations.image_ids[self.image].tolist(),
            self.to_xywh().tolist(),
            self.scores.tolist(),
            np.asarray(annotations.category_ids)[self.labels].tolist(),
            strict=True,
        )
        return [
            {"image_id": image_id, "bbox": bbox, "score": score, "category_id": category_id}
            for image_id, bbox, score, category_id in rows
        ]
