"""Confidence intervals over images, from the data that an evaluation keeps of each image."""

import numpy as np

from onenet.evaluation.per_image import recompute

METRICS = ("AP", "AP50", "AP_nms", "AP50_nms", "nms_gain", "AP50_nms_gain")


def numbers(arrays: dict[str, np.ndarray], weights: np.ndarray | None = None) -> np.ndarray:
    """All METRICS of an evaluation, [6], 0..100. `weights` [images]: how often each image counts;
    None counts each once."""
    raw, nms = (np.array(recompute(arrays, prefix, weights)) for prefix in ("raw", "nms"))
    return np.concatenate([raw, nms, nms - raw])


def intervals(
    arrays: dict[str, np.ndarray], draws: int = 200, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Percentile bounds of each of METRICS over resampled images. Raises ValueError if there is no
    object."""
    if not arrays["objects"].any():
        raise ValueError("the images contain no objects")
    images, generator, values = len(arrays["objects"]), np.random.default_rng(0), []
    while len(values) < draws:
        weights = np.bincount(generator.integers(images, size=images), minlength=images)
        if arrays["objects"][weights > 0].any():  # AP is undefined without objects
            values.append(numbers(arrays, weights))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return dict(zip(METRICS, zip(low.tolist(), high.tolist(), strict=True), strict=True))
