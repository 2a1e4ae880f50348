"""What a search is: a file of experiments/ with the keys whose best values it looks for.

What the command line makes of the file is here, its trials in study.py, their runs in
search_sweep.py.
"""

from dataclasses import dataclass, replace

import yaml

from onenet.errors import UserError
from onenet.sweeps import experiments
from onenet.sweeps.experiments import parse_axes

_AP = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
_GAINS = ("AP_nms_06", "AP_nms_07", "nms_gain", "AP50_nms_gain")
_OTHERS = ("duplicates_per_object", "duplicates_per_object_half_recall", "score_threshold")
_COSTS = ("conflict_rate", "params", "train_seconds")
CHOICES = {
    "metric": (*_AP, *(f"{name}_nms" for name in _AP), *_GAINS, *_OTHERS, *_COSTS),
    "direction": ("maximize", "minimize"),
    "sampler": ("tpe", "random"),
}
SETTINGS = (*CHOICES, "trials", "seed")


@dataclass(frozen=True)
class Search:
    """A file of experiments/ with a `search`, and what the command line made of it."""

    name: str
    title: str
    question: str
    space: dict[str, list]  # key: [from, to] or [from, to, log]
    overrides: tuple[str, ...] = ()  # the same for all trials
    metric: str = "AP"
    direction: str = "maximize"
    trials: int = 20
    sampler: str = "tpe"
    seed: int = 0

    def __post_init__(self):
        for key, options in CHOICES.items():
            if getattr(self, key) not in options:
                listed = ", ".join(options)
                raise UserError(f"search.{key}={getattr(self, key)}: choose one of {listed}.")
        for key, least in (("trials", 1), ("seed", 0)):
            value = getattr(self, key)
            if type(value) is not int or value < least:
                raise UserError(f"search.{key}={value}: a whole number from {least} on.")


def requested(words: list[str], multirun: bool = True) -> Search | None:
    """The search that these words of the command line ask for, if they do. Raises UserError.

    A word that sets a key of the space takes it out of the space; `search.KEY=VALUE` sets what
    stands under `search` in the file; any other word holds for all trials.
    """
    axes = parse_axes(words)
    names = axes.pop("experiment", [])
    if not {*names} & {*experiments.search_names()}:
        return None
    if len(names) > 1:
        raise UserError(f"experiment={','.join(names)}: a search goes alone, without others.")
    if not multirun:
        raise UserError(f"A search is a sweep: python run.py -m {' '.join(words)}")
    search = _read(names[0])
    axes = {**parse_axes(search.overrides), **axes}
    for key, values in axes.items():
        if len(values) > 1:
            raise UserError(f"{key}={','.join(values)}: a search holds it at one value.")
    own = {k.removeprefix("search."): v[0] for k, v in axes.items() if k.startswith("search.")}
    if unknown := own.keys() - {*SETTINGS}:
        raise UserError(f"search.{min(unknown)} cannot be set: {', '.join(SETTINGS)} can.")
    return replace(
        search,
        **{key: yaml.safe_load(value) for key, value in own.items()},
        space={key: limits for key, limits in search.space.items() if key not in axes},
        overrides=tuple(f"{k}={v[0]}" for k, v in axes.items() if not k.startswith("search.")),
    )


def _read(name: str) -> Search:
    path = experiments.EXPERIMENTS / f"{name}.yaml"
    try:
        values = yaml.safe_load(path.read_text())
        search = values.pop("search")
        return Search(name, **values, **{**search, "space": dict(search["space"])})
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a search: {str(error).splitlines()[0]}\n"
            "It needs title, question and search, with a space, and may have overrides."
        ) from error


@dataclass(frozen=True)
class Range:
    key: str
    low: float
    high: float
    log: bool
    whole: bool

    def round(self, value: float) -> float:
        """Three digits: a folder's values can be read and typed."""
        value = min(max(float(f"{value:.3g}"), self.low), self.high)
        return round(value) if self.whole else value

    @staticmethod
    def parse(key: str, limits, whole: bool) -> "Range":
        try:
            low, high = (float(limit) for limit in limits[:2])
            log = limits[2:] == ["log"]
            if low >= high or (log and low <= 0) or len(limits) != 2 + log:
                raise ValueError
        except (TypeError, ValueError):
            raise UserError(
                f"search.space.{key}: {limits} is no range.\n"
                "Write [FROM, TO], or [FROM, TO, log] with FROM above 0."
            ) from None
        return Range(key, low, high, log, whole)

    def __str__(self) -> str:
        return f"{self.key}: {self.low:g} .. {self.high:g}{', by factors' * self.log}"
