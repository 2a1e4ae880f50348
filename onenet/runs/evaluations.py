"""The evaluations of a run. Their settings never require another training."""

from dataclasses import dataclass

from onenet.config.schema import Config
from onenet.detectors import detector_of


@dataclass(frozen=True)
class EvalSpec:
    """The settings of one evaluation of a trained network."""

    infer_heads: int
    short: int
    ratio: float
    area: str
    split: str
    peaks: bool = False  # keep only local peaks of the score map

    @property
    def id(self) -> str:
        size = f"{self.short}x{self.ratio:g}"
        parts = [f"h{self.infer_heads}", size, self.area, self.split]
        return "-".join([*parts, "peaks"] if self.peaks else parts)

    @property
    def area_scale(self) -> float:
        """Factor on COCO's area bounds of small, medium and large."""
        return (self.short / 512) ** 2 if self.area == "relative" else 1.0


def requested_evaluation(config: Config) -> EvalSpec:
    """Returns the evaluation that the `eval` part of the config requests."""
    size = config.eval.size
    short = size.short or config.size.short
    return EvalSpec(
        infer_heads=config.infer_heads,
        short=short,
        ratio=size.ratio or config.size.ratio,
        area=_area(config.eval.area, short),
        split=config.eval.split,
        peaks=_peaks(config) if config.eval.peaks is None else config.eval.peaks,
    )


def default_evaluation(config: Config) -> EvalSpec:
    """Returns the evaluation that every run gets, whatever is requested: its `result.json`."""
    split = "train" if config.debug == "overfit" else "val"
    area = _area("relative", config.size.short)
    return EvalSpec(1, config.size.short, config.size.ratio, area, split, _peaks(config))


def _peaks(config: Config) -> bool:
    """Whether the detector's own post-processing keeps only peaks."""
    return detector_of(config.detector, config.model).peaks


def _area(area: str, short: int) -> str:
    """Gives equal evaluations one id: at a shortest side of 512, relative bounds are COCO's."""
    return "coco" if short == 512 else area
