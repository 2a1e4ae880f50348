"""Estimates how long a run will take, from comparable finished runs."""

import contextlib
from pathlib import Path
from statistics import median

from onenet.config.compose import to_dict
from onenet.config.schema import Config
from onenet.runs.result import read_result

Kind = tuple  # what makes runs comparable


class Estimates:
    """The pace of the finished runs in a runs root."""

    def __init__(self, root: Path):
        paces: dict[Kind, list[tuple[float, float]]] = {}
        for file in root.glob("*/result.json"):
            result = read_result(file)
            # A result of an earlier commit, or a damaged one, may lack anything.
            with contextlib.suppress(KeyError, TypeError, ZeroDivisionError):
                config, timing = result["config"], result["timing"]
                pace = (
                    timing["seconds_per_step"] / config["batch"],
                    1.0 * timing["evaluation_seconds"],
                )
                paces.setdefault(_kind(config), []).append(pace)
        self._paces = {
            kind: tuple(median(column) for column in zip(*pairs, strict=True))
            for kind, pairs in paces.items()
        }

    def seconds(self, config: Config, steps: int) -> float | None:
        """Returns the time of `steps` steps and an evaluation, None if no finished run compares."""
        pace = self._paces.get(_kind(to_dict(config)))
        return None if pace is None else steps * config.batch * pace[0] + pace[1]


def duration_text(seconds: float) -> str:
    """For example: about 7 min"""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    if seconds < 90 * 60:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"


def _kind(config: dict) -> Kind:
    """Returns what a training step's time depends on: network, image size, heads and data set."""
    data = config["data"]
    return (
        *(config["detector"], config["backbone"]["name"], config["neck"]["name"], config["heads"]),
        *(config["size"]["short"], config["size"]["ratio"], config.get("precision", "float32")),
        *(data["name"], data["root"], data["limit"]),
    )
