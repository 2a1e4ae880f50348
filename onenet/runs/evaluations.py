"""Which evaluations there are of a run: the axes that never cause a training."""

from dataclasses import dataclass

from onenet.config.schema import Config
from onenet.detectors import detector_of


@dataclass(frozen=True)
class EvalSpec:
    """One way to evaluate a finished training. The axes that never cause a training."""

    infer_heads: int
    short: int
    ratio: float
    area: str
    split: str
    peaks: bool = False  # only peaks of the map

    @property
    def id(self) -> str:
        size = f"{self.short}x{self.ratio:g}"
        words = [f"h{self.infer_heads}", size, self.area, self.split]
        return "-".join([*words, "peaks"] if self.peaks else words)

    @property
    def area_scale(self) -> float:
        """Times COCO's bounds of small, medium and large."""
        return (self.short / 512) ** 2 if self.area == "relative" else 1.0


def requested_evaluation(config: Config) -> EvalSpec:
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
    """The evaluation that every run gets, whatever else was asked for: its `result.json`."""
    split = "train" if config.debug == "overfit" else "val"
    area = _area("relative", config.size.short)
    return EvalSpec(1, config.size.short, config.size.ratio, area, split, _peaks(config))


def _peaks(config: Config) -> bool:
    """Whether the detector's own post-processing picks peaks."""
    return detector_of(config.detector, config.model).peaks


def _area(asked: str, short: int) -> str:
    """At a shortest side of 512 the relative bounds are COCO's: one evaluation, one name."""
    return "coco" if short == 512 else asked
