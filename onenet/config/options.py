"""The options of launchers and searches, which belong to no run: types, bounds and choices, like
schema.py.
"""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from onenet.config.schema import key


@dataclass
class LauncherOptions:
    """`hydra.launcher` for `hydra/launcher=local`."""

    jobs: int | None = key(least=1, default=None)
    threads: int | None = key(least=1, default=None)
    max_failures: int | None = key(least=1, default=None)


@dataclass
class SlurmOptions(LauncherOptions):
    """`hydra.launcher` for `hydra/launcher=slurm`, with the resources of each job."""

    partition: str | None = None
    minutes: int = key(least=5)  # Slurm signals their end up to 150 seconds before
    cpus: int = key(least=1)
    gpus: int = key(least=0)
    memory_gb: float | None = key(least=0.001, default=None)
    more: dict[str, Any] | None = None


_AP = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
TIDE = ("cls", "loc", "both", "dupe", "bkg", "miss")  # kinds of errors
METRICS = (
    *(*_AP, *(f"{name}_nms" for name in _AP)),
    *("AP_nms_06", "AP_nms_07", "nms_gain", "AP50_nms_gain"),
    *(f"dAP_{name}{nms}" for nms in ("", "_nms") for name in TIDE),
    *("duplicates_per_object", "duplicates_per_object_half_recall", "score_threshold"),
    *("score_gap", "conflict_rate", "params", "train_seconds"),
)


@dataclass
class SearchConfig:
    """`search` in a file of experiments/: which keys to optimize, and how."""

    metric: str = key(choices=METRICS, default="AP")
    direction: str = key(choices=("maximize", "minimize"), default="maximize")
    trials: int = key(least=1, default=20)
    sampler: str = key(choices=("tpe", "random"), default="tpe")
    seed: int = key(least=0, default=0)
    space: dict[str, Any] = MISSING  # key: [from, to] or [from, to, log]
