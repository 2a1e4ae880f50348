"""From images to outputs: backbones, necks, OneNet, the other detectors, and a list of them all."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from onenet.system.own import TARGET, load


@dataclass(frozen=True)
class Detector:
    """`reads`: the keys of a configuration that mean something to it, of those that do not to all;
    it has a grid of slots if it reads `neck`, and is trained by matching if it reads `cost`.
    `peaks`: whether its post-processing picks the peaks of the grid.
    """

    where: str  # module:class
    reads: tuple[str, ...]
    peaks: bool = False

    def load(self) -> Callable:
        """Its class, a torch module."""
        if ":" not in self.where:
            return load({TARGET: self.where})
        module, _, name = self.where.partition(":")
        return getattr(import_module(f"onenet.detectors.{module}"), name)


MATCHED = ("cost", "assigner", "loss")
DETECTORS = {
    "onenet": Detector("onenet:OneNet", (*MATCHED, "location", "neck", "head", "heads")),
    "centernet": Detector("centernet.model:CenterNet", ("neck",), peaks=True),
    "deformable_detr": Detector("deformable_detr.model:DeformableDETR", MATCHED),
    "sparse_rcnn": Detector("sparse_rcnn:SparseRCNN", MATCHED),
}


def detector_of(name: str, model: Any) -> Detector:
    """One of DETECTORS, or what `_target_` in its settings names: one that has a neck, and is
    matched and trained as OneNet is, unless `reads` says otherwise."""
    own = model.get(TARGET) if isinstance(model, dict) else None
    if name in DETECTORS and not own:
        return DETECTORS[name]
    return Detector(str(own), tuple(model.get("reads", (*MATCHED, "location", "neck"))))


SELECTIVE = frozenset(key for detector in DETECTORS.values() for key in detector.reads)
