"""From images to outputs: backbones, necks, OneNet, the other detectors, and a list of them all."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from onenet.system.own import TARGET, load


@dataclass(frozen=True)
class Detector:
    """`reads`: which of the DETECTOR_KEYS it reads. A detector that reads `neck` has a grid of
    slots; one that reads `cost` is trained by matching. `peaks`: whether its post-processing
    selects the peaks of the grid.
    """

    path: str  # module:class in onenet.detectors, or a user's module.class
    reads: tuple[str, ...]
    peaks: bool = False

    def load(self) -> Callable:
        """Imports the detector's class, a torch module."""
        if ":" not in self.path:
            return load({TARGET: self.path})
        module, _, name = self.path.partition(":")
        return getattr(import_module(f"onenet.detectors.{module}"), name)


MATCHING_KEYS = ("cost", "assigner", "loss")
DETECTORS = {
    "onenet": Detector("onenet:OneNet", (*MATCHING_KEYS, "location", "neck", "head", "heads")),
    "centernet": Detector("centernet.model:CenterNet", ("neck",), peaks=True),
    "deformable_detr": Detector("deformable_detr.model:DeformableDETR", MATCHING_KEYS),
    "sparse_rcnn": Detector("sparse_rcnn:SparseRCNN", MATCHING_KEYS),
}


def detector_of(name: str, model: Any) -> Detector:
    """Returns one of DETECTORS, or the user's detector that `_target_` in the settings names. That
    one has a neck and is matched and trained like OneNet unless its `reads` says otherwise."""
    own = model.get(TARGET) if isinstance(model, dict) else None
    if name in DETECTORS and not own:
        return DETECTORS[name]
    return Detector(str(own), tuple(model.get("reads", (*MATCHING_KEYS, "location", "neck"))))


# The configuration keys that only some detectors read.
DETECTOR_KEYS = frozenset(key for detector in DETECTORS.values() for key in detector.reads)
