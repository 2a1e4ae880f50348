"""What is swept where (analysis/results/swept.csv), and the settings of our committed runs, beside
those of the experiments."""

from dataclasses import dataclass

import pandas as pd

from analysis.core.frame import RESULTS

Overrides = tuple[str, ...]

PARTS: Overrides = ("data.shapes.kind=parts",)  # the class shows in a part of the object
# 2,400 steps of the proxy are too few for a ResNet-18 trained from scratch; the paper's starts from
# ImageNet. And a Gaussian must cover several slots before picking peaks makes a difference.
LONGER: Overrides = ("schedule=2",)
LARGER: Overrides = ("backbone=tiny", "size.short=128", "schedule=0.5")
# The paper's networks on the built-in data: timing needs no training, and at 64 pixels it would
# only show the overhead.
NETWORKS: Overrides = ("preset=paper", "data=shapes", "seed=0")

SETTINGS = {  # as in claims.csv
    "": (),
    "parts": PARTS,
    "longer": LONGER,
    "larger": LARGER,
    "networks": NETWORKS,
}
SHAPES_ONLY, PROXY_ONLY = ("parts",), ("longer", "larger")


@dataclass(frozen=True)
class Swept:
    """An experiment under a setting, as it is in the records."""

    folder: str  # of its pages in analysis/results
    experiment: str
    setting: str  # of SETTINGS
    column: str  # in analysis/results/README.md
    note: str  # in the report
    more: str  # override of its page

    @property
    def overrides(self) -> Overrides:
        return SETTINGS[self.setting]


_LINES = pd.read_csv(RESULTS / "swept.csv", dtype=str, keep_default_na=False)
SWEPT = [Swept(**line) for line in _LINES.to_dict("records")]
ELSEWHERE = {"parts": "on parts", "longer": "twice as long"}  # further verdicts in the report
EXPERIMENTS = tuple(dict.fromkeys(each.experiment for each in SWEPT))  # the tables of the report
