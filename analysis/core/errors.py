"""Why the runs of a table were wrong: TIDE's errors, and the AP of each class."""

import numpy as np
import pandas as pd

from analysis.core.frame import DAMAGE, problem, read_arrays, warn
from analysis.core.render import NOTES, Page
from analysis.core.table import Table
from onenet.config.options import TIDE
from onenet.errors import UserError
from onenet.evaluation.per_image import by_class
from onenet.runs.classes import Classes
from onenet.runs.evaluations import EvalSpec
from onenet.runs.folder import RunFolder

COMMAND = "python analysis/errors.py RUN  # further: its worst images; RUN is a run's folder or id"
ARRAYS = {"objects", *(f"{side}_{name}" for side in ("raw", "nms")
                       for name in ("image", "label", "hits"))}  # fmt: skip


class NotKept(UserError):
    """The run has no per_image.npz here."""


def page(table: Table) -> Page:
    """Returns the errors of each row: a mean over its seeds without NMS, an arrow, and with NMS."""
    done = table.done
    means = done.groupby("row", sort=False)[
        [f"dAP_{error}{nms}" for error in TIDE for nms in ("", "_nms")]
    ].mean()
    tide = {error: _cells(means[f"dAP_{error}"], means[f"dAP_{error}_nms"]) for error in TIDE}
    tables = [pd.DataFrame(tide).rename_axis("costs in AP50")]
    classes = pd.DataFrame(
        {row: _by_class([spec.folder for spec in own.spec])
         for row, own in done.groupby("row", sort=False)}
    ).T  # fmt: skip
    if not classes.empty:
        tables.append(classes.rename_axis("AP of each class"))
    return Page(
        heading="Errors",
        question="Why is a detection wrong, without and with NMS?",
        context=["Means over seeds, without NMS → with NMS at IoU 0.5"],
        tables=tables,
        notes=["; ".join(f"{error}: {meaning}" for error, meaning in NOTES["errors"].items())],
    )


def _by_class(runs: list[RunFolder]) -> dict[str, str]:
    """The AP of each class, of the runs that keep their detections per image."""
    tables = []
    for run in runs:
        try:
            arrays, classes = per_image(run), Classes.read(run.classes_file)
        except NotKept:
            continue
        except UserError as error:
            warn(str(error))
            continue
        numbers = range(arrays["objects"].shape[1])
        labels = classes.names if classes else [f"class {number}" for number in numbers]
        aps = {prefix: by_class(arrays, prefix).mean(axis=1) for prefix in ("raw", "nms")}
        tables.append(pd.DataFrame(aps, labels))
    if not tables:
        return {}
    means = pd.concat(tables).groupby(level=0, sort=False).mean()
    return _cells(means.raw, means.nms).to_dict()


def _cells(without: pd.Series, with_nms: pd.Series) -> pd.Series:
    texts = without.map("{:.1f}".format) + " → " + with_nms.map("{:.1f}".format)
    return texts.where(without.notna(), "-")


def per_image(folder: RunFolder) -> dict[str, np.ndarray]:
    """Reads per_image.npz of the run's default evaluation. Raises UserError."""
    if not folder.result_file.is_file():
        raise NotKept(f"{folder.path} has no result.json: the run is not finished.")
    if reason := problem(folder):
        raise UserError(reason)
    try:
        spec = EvalSpec(**folder.result()["evaluation"])
    except DAMAGE as error:
        raise UserError(f"{folder.result_file} is damaged: {error!r}") from error
    file = folder.evaluation(spec) / "per_image.npz"
    if not file.is_file():
        raise NotKept(f"{file} does not exist: copy it from the machine that made the run.")
    arrays = read_arrays(file)
    if missing := ARRAYS - arrays.keys():
        raise UserError(f"{file} is damaged: it has no {', '.join(sorted(missing))}.")
    return arrays
