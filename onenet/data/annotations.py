"""The objects of a data set, in arrays, whatever it was read from.

I images, A annotations, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Annotations:
    """All objects of all images. The annotations of image i stand at `rows(i)`."""

    category_ids: Sequence[int]  # [K] ascending, gaps allowed; label k is category_ids[k]
    category_names: Sequence[str]  # [K]
    image_ids: np.ndarray  # [I] int64, as in the file
    sizes_hw: np.ndarray  # [I, 2] int64 pixels
    first: np.ndarray  # [I + 1] int64, where the annotations of each image start
    boxes_xyxy: np.ndarray  # [A, 4] float64 pixels as in the file, may leave the image
    labels: np.ndarray  # [A] int64 in 0..K-1
    areas: np.ndarray  # [A] float64 square pixels, of the mask where the file has one
    crowd: np.ndarray  # [A] bool
    parts_xyxy: np.ndarray | None = None  # [A, 4] the part that shows the class, where known
    report: Sequence[str] = field(default=())  # what was cleaned, a sentence each

    def __len__(self) -> int:
        return len(self.image_ids)

    def rows(self, image: int) -> slice:
        return slice(self.first[image], self.first[image + 1])

    def limit(self, count: int | None) -> "Annotations":
        """The first `count` images (all if None)."""
        if count is None or count >= len(self):
            return self
        end = self.first[count]
        return Annotations(
            self.category_ids,
            self.category_names,
            self.image_ids[:count],
            self.sizes_hw[:count],
            self.first[: count + 1],
            self.boxes_xyxy[:end],
            self.labels[:end],
            self.areas[:end],
            self.crowd[:end],
            None if self.parts_xyxy is None else self.parts_xyxy[:end],
            self.report,
        )

    def to_coco(self) -> dict:
        """A COCO `instances` dictionary that every evaluator accepts.

        Annotation ids count from 1 (an annotation of id 0 can never be matched in pycocotools), and
        `area` and `iscrowd` are always there.
        """
        image_of = np.repeat(self.image_ids, np.diff(self.first)).tolist()
        sides = (self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2]).tolist()
        corners = self.boxes_xyxy[:, :2].tolist()
        parts = [{}] * len(image_of)
        if self.parts_xyxy is not None:
            parts = [{"part_xyxy": part} for part in self.parts_xyxy.tolist()]
        annotations = [
            {
                "id": row + 1,
                "image_id": image_of[row],
                "category_id": self.category_ids[self.labels[row]],
                "bbox": [*corners[row], *sides[row]],
                "area": float(self.areas[row]),
                "iscrowd": int(self.crowd[row]),
                **parts[row],
            }
            for row in range(len(image_of))
        ]
        return {**self.coco_header(), "annotations": annotations}

    def coco_header(self) -> dict:
        """A COCO `instances` dictionary without its annotations."""
        images = [
            {"id": int(i), "height": int(h), "width": int(w)}
            for i, (h, w) in zip(self.image_ids, self.sizes_hw, strict=True)
        ]
        categories = [
            {"id": int(i), "name": name}
            for i, name in zip(self.category_ids, self.category_names, strict=True)
        ]
        return {"info": {}, "images": images, "categories": categories}
