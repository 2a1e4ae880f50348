"""Confidence bounds over images, from the data that an evaluation keeps of each image."""

import numpy as np

from onenet.evaluation.per_image import recompute

METRICS = ("AP", "AP50", "AP_nms", "AP50_nms", "nms_gain", "AP50_nms_gain")


def numbers(arrays: dict[str, np.ndarray], weights: np.ndarray | None = None) -> np.ndarray:
    """All METRICS of an evaluation, [6], 0..100. `weights` [images]: how often each image counts;
    None counts each once."""
    raw, nms = (np.array(recompute(arrays, prefix, weights)) for prefix in ("raw", "nms"))
    return np.concatenate([raw, nms, nms - raw])


def bounds(
    one: dict[str, np.ndarray],
    other: dict[str, np.ndarray] | None = None,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Returns percentile bounds over resampled images of each of METRICS of `one`, minus that of
    `other` unless it is None.

    `one` and `other` are per_image.npz of evaluations of the same images. Raises ValueError if the
    images differ, or contain no objects.
    """
    images = len(one["objects"])
    if other is not None and not np.array_equal(one["objects"], other["objects"]):
        raise ValueError("the two evaluations are not of the same images")
    if not one["objects"].any():
        raise ValueError("the images contain no objects")
    generator, differences = np.random.default_rng(seed), []
    while len(differences) < draws:
        weights = np.bincount(generator.integers(images, size=images), minlength=images)
        if one["objects"][weights > 0].any():  # AP is undefined without objects
            minus = 0 if other is None else numbers(other, weights)
            differences.append(numbers(one, weights) - minus)
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return dict(zip(METRICS, zip(low.tolist(), high.tolist(), strict=True), strict=True))
