"""Reads per_image.npz, which an evaluation keeps: the detections of each image, right or wrong."""

import numpy as np

from analysis.core.frame import DAMAGE, problem, read_arrays
from onenet.errors import UserError
from onenet.runs.evaluations import EvalSpec
from onenet.runs.folder import RunFolder

ARRAYS = {"objects", *(f"{side}_{name}" for side in ("raw", "nms")
                       for name in ("image", "label", "hits"))}  # fmt: skip


def per_image(folder: RunFolder) -> dict[str, np.ndarray]:
    """Reads per_image.npz of the run's default evaluation. Raises UserError."""
    if not folder.result_file.is_file():
        raise UserError(f"{folder.path} has no result.json: the run is not finished.")
    if reason := problem(folder):
        raise UserError(reason)
    try:
        spec = EvalSpec(**folder.result()["evaluation"])
    except DAMAGE as error:
        raise UserError(f"{folder.result_file} is damaged: {error!r}") from error
    file = folder.evaluation(spec) / "per_image.npz"
    if not file.is_file():
        raise UserError(f"{file} does not exist: copy it from the machine that made the run.")
    arrays = read_arrays(file)
    if missing := ARRAYS - arrays.keys():
        raise UserError(f"{file} is damaged: it has no {', '.join(sorted(missing))}.")
    return arrays
