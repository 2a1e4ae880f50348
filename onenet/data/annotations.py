"""The ground-truth objects of a data set as arrays, independent of the source format.

I images, A annotations, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np


@dataclass(frozen=True)
class Annotations:
    """All objects of all images. `rows(i)` selects those of image i."""

    category_ids: Sequence[int]  # [K] ascending, gaps allowed; label k is category_ids[k]
    category_names: Sequence[str]  # [K]
    image_ids: np.ndarray  # [I] int64, as in the file
    sizes_hw: np.ndarray  # [I, 2] int64 pixels
    first: np.ndarray  # [I + 1] int64, index of the first annotation of each image, then A
    boxes_xyxy: np.ndarray  # [A, 4] float64 pixels as in the file, may extend past the image
    labels: np.ndarray  # [A] int64 in 0..K-1
    areas: np.ndarray  # [A] float64 square pixels, of the mask if the file gives it
    crowd: np.ndarray  # [A] bool
    parts_xyxy: np.ndarray | None = None  # [A, 4] the part that shows the class, if known
    report: Sequence[str] = field(default=())  # one sentence for each kind of cleaning

    def __len__(self) -> int:
        return len(self.image_ids)

    def rows(self, image: int) -> slice:
        return slice(self.first[image], self.first[image + 1])

    def limit(self, count: int | None) -> "Annotations":
        """Returns the first `count` images (all if None)."""
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

    def only(self, labels: Sequence[int]) -> "Annotations":
        """Returns the objects of these classes, which become labels 0, 1, ... in this order.

        `labels`: ascending."""
        mask = np.isin(self.labels, labels)
        counts = np.concatenate([[0], np.cumsum(mask)])
        return replace(
            self,
            category_ids=[self.category_ids[label] for label in labels],
            category_names=[self.category_names[label] for label in labels],
            first=counts[self.first],
            boxes_xyxy=self.boxes_xyxy[mask],
            labels=np.searchsorted(labels, self.labels[mask]),
            areas=self.areas[mask],
            crowd=self.crowd[mask],
            parts_xyxy=None if self.parts_xyxy is None else self.parts_xyxy[mask],
        )

    def to_coco(self) -> dict:
        """Returns a COCO `instances` dictionary that every evaluator accepts.

        Annotation ids start at 1, because pycocotools can never match an annotation with id 0.
        `area` and `iscrowd` are always present.
        """
        image_ids = np.repeat(self.image_ids, np.diff(self.first)).tolist()
        sides = (self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2]).tolist()
        corners = self.boxes_xyxy[:, :2].tolist()
        part_fields = [{}] * len(image_ids)
        if self.parts_xyxy is not None:
            part_fields = [{"part_xyxy": part} for part in self.parts_xyxy.tolist()]
        annotations = [
            {
                "id": row + 1,
                "image_id": image_ids[row],
                "category_id": self.category_ids[self.labels[row]],
                "bbox": [*corners[row], *sides[row]],
                "area": float(self.areas[row]),
                "iscrowd": int(self.crowd[row]),
                **part_fields[row],
            }
            for row in range(len(image_ids))
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
