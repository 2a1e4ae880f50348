"""CenterNet (Objects as Points, Zhou et al., 2019, arXiv 1904.07850): an object is its centre."""

from onenet.detectors.centernet.model import CenterNet

__all__ = ["CenterNet"]
