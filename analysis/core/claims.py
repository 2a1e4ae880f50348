"""The paper's claims as data, analysis/paper/claims.csv, and the verdicts on them.

A claim has a list of conditions, separated by `;` in each of its columns (a single value is for
all). A condition compares the rows of an experiment, separated by `|`, by its `kind`:

    value        the metric itself
    difference   the first row minus each of the others; the metrics are those of the first and of
                 the others
    fraction     the first row is that fraction (the bound) of the second
    within       the difference is at most the bound, in both directions
    rising       each row minus the row before it
    slowing      the last step of three rows minus the step before it

`setting` names settings of analysis/core/settings.py. `paper_rows` replaces `rows` at full scale.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import pandas as pd
import yaml

from analysis.core import fps
from analysis.core.frame import RESULTS, positives
from analysis.core.statistics import Interval, t_interval
from analysis.core.table import Results, read_paper
from onenet.sweeps.experiments import NoRow, read_experiment
from onenet.system.files import REPOSITORY

CLAIMS = REPOSITORY / "analysis" / "paper" / "claims.csv"
EXPLANATIONS = RESULTS / "explanations.yaml"  # for verdicts on the committed records
VERDICTS = ("reproduced", "too noisy", "contradicted", "not run")
POSITIVES = {  # metrics of positive samples, in %
    "nearest": "at the grid point nearest the centre",
    "in_box": "inside the box",
    "in_part": "inside the part",
}

Values = pd.Series  # of a metric, by seed, or by round of timing


@dataclass(frozen=True, eq=False)
class Condition:
    """`values` must lie on the side `>`, `<`, `>=` or `<=` of `bound`. The side is empty if the
    rows to compare do not exist."""

    quantity: str
    values: Values
    side: str
    bound: float = 0.0
    unit: str = "AP"
    rows: Sequence[pd.DataFrame] = field(default=(), repr=False)  # the runs of each
    paper: float | None = None  # the paper's own value; None if the paper does not print it
    setting: str = ""  # the overrides that this condition adds to the user's

    @property
    def statement(self) -> str:
        text = f"{self.quantity} ({self.setting})" if self.setting else self.quantity
        return f"{text} {self.side} {self.bound:g}" if self.side else text

    @cached_property
    def interval(self) -> Interval | None:
        return t_interval([*self.values]) if len(self.values) else None

    @property
    def verdict(self) -> str:
        """One of VERDICTS."""
        return verdict(self.interval, self.side, self.bound) if self.interval else "not run"


def verdict(interval: Interval, side: str, bound: float) -> str:
    """Returns one of VERDICTS: whether the whole interval is on this side of the bound, or on the
    other one."""
    low, high = interval.low, interval.high
    inside, outside = {
        ">": (low > bound, high <= bound),
        ">=": (low >= bound, high < bound),
        "<": (high < bound, low >= bound),
        "<=": (high <= bound, low > bound),
    }[side]
    return "reproduced" if inside else "contradicted" if outside else "too noisy"


@dataclass(frozen=True)
class Judgement:
    """A claim with its conditions, and the verdict."""

    id: str
    quotation: str
    conditions: list[Condition]
    explanation: str = ""

    @property
    def verdict(self) -> str:
        verdicts = {condition.verdict for condition in self.conditions}
        order = ("not run", "contradicted", "too noisy", "reproduced")
        return next(verdict for verdict in order if verdict in verdicts)

    @property
    def decisive(self) -> Condition:
        """The first condition that has the claim's verdict."""
        return next(each for each in self.conditions if each.verdict == self.verdict)


def read_claims() -> pd.DataFrame:
    """The lines of claims.csv by id."""
    claims = pd.read_csv(CLAIMS, index_col="id", keep_default_na=False)
    return claims.rename(columns={claims.columns[0]: "quotation"})


def judge(results: Results, only: Sequence[str] | None = None) -> list[Judgement]:
    """Judges the claims with these ids (None: all), in the paper's order. A claim whose rows the
    overrides remove is not run. Raises UserError as `Results.table` does."""
    explanations = yaml.safe_load(EXPLANATIONS.read_text()) if results.is_committed else {}
    judgements = []
    for id_, claim in read_claims().iterrows():
        if only is None or id_ in only:
            why = ""
            try:
                its_conditions = [*conditions(results, claim)]
            except NoRow as error:
                its_conditions, why = [Condition(claim.predicate, pd.Series(), "")], str(error)
            judgement = Judgement(id_, claim.quotation, its_conditions, why)
            own = explanations.get(id_, {}).get(judgement.verdict)
            if judgement.verdict == "not run":
                why = why or _missing_snapshots(its_conditions)
            why = why or (explain(own, results, claim) if own else "")
            judgements.append(replace(judgement, explanation=why))
    return judgements


def conditions(results: Results, claim: Mapping) -> Iterator[Condition]:
    """Yields the conditions of a line of claims.csv. Raises NoRow."""
    rows = claim["rows"] if results.proxy else claim["paper_rows"] or claim["rows"]
    columns = [text.split("; ") for text in (claim["kind"], rows, claim["metric"], claim["bound"])]
    count = max(map(len, columns))
    for kind, labels, metric, bound in zip(*(c * (count // len(c)) for c in columns), strict=True):
        metrics = metric.split(" | ")
        if "in_part" in metrics and results.config.data.name != "shapes":
            data = results.config.data.name
            raise NoRow(f"Only data=shapes marks the discriminative part, not data={data}.")
        compared = [Compared(results, claim["experiment"], label, claim["setting"])
                    for label in labels.split(" | ")]  # fmt: skip
        for each in KINDS[kind](compared, metrics, bound):
            setting = [override for override in results.setting(claim["setting"])
                       if not override.startswith(("seed=", "data=shapes"))]  # fmt: skip
            yield replace(each, unit=claim["unit"], setting=" ".join(setting))


class Compared:
    """A row whose metrics are compared with those of others. Raises NoRow."""

    def __init__(self, results: Results, experiment: str, label: str, setting: str = ""):
        self.runs = results.row(experiment, label, setting)
        table = read_experiment(experiment).table
        self.label, self._key = label, (table, label)

    def values(self, metric: str) -> Values:
        """seed -> value, for the runs in which the metric is defined; for FPS, see `_slower`."""
        done = self.runs[self.runs.done].set_index("seed")
        if metric in POSITIVES:
            of_parts = [spec.config.data.shapes.kind == "parts" for spec in done.spec]
            if metric == "in_part" and not any(of_parts):
                return pd.Series(dtype=float)
            fractions = [positives(spec.folder).get(metric) for spec in done.spec]
            return pd.Series(fractions, index=done.index, dtype=float).dropna()
        return done[metric].dropna()

    def paper(self, metric: str) -> float:
        """The paper's number, NaN if it prints none."""
        try:
            return float(read_paper().at[self._key, metric])
        except KeyError:
            return math.nan


def _difference(
    one: Compared, other: Compared, metrics: Sequence[str], factor: float = 1.0
) -> tuple[str, Values, float]:
    """Returns the text, the values by seed, and the paper's value of the difference; for FPS, by
    how many percent `one` is faster in each round of timing."""
    first, second = metrics[0], metrics[-1]
    papers = one.paper(first), other.paper(second)
    if first == "FPS":
        specs = [row.runs.spec.iloc[0] for row in (one, other)]
        networks = [fps.network_of(spec.config, spec.evaluation) for spec in specs]
        rounds = fps.rounds_of(fps.read(Path(specs[0].config.runs_root)), networks)
        values = [100 * (a / b - 1) for a, b in zip(*rounds, strict=True)]
        text = f"FPS of {one.label} against {other.label}"
        return text, pd.Series(values), 100 * (papers[0] / papers[1] - 1)
    times = f"{factor:g} × " if factor != 1 else ""
    text = f"{_text(first, one)} - {times}{_text(second, other)}"
    if first in POSITIVES:
        text = f"positives {POSITIVES[first]}, {one.label} - {other.label}"
    values = (one.values(first) - factor * other.values(second)).dropna()
    return text, values, papers[0] - factor * papers[1]


def _text(metric: str, row: Compared) -> str:
    if metric in POSITIVES:
        return f"positives of {row.label} {POSITIVES[metric]}"
    return f"{'NMS gain' if metric == 'nms_gain' else metric} of {row.label}"


def _condition(
    quantity: str, values: Values, paper: float, bound: str, rows: Sequence[Compared]
) -> Condition:
    side, _, number = bound.partition(" ")
    printed = None if math.isnan(paper) else paper
    runs = [row.runs for row in rows]
    return Condition(quantity, values, side, float(number), rows=runs, paper=printed)


def _value(rows: Sequence[Compared], metrics: Sequence[str], bound: str) -> Iterator[Condition]:
    (row,), (metric,) = rows, metrics
    yield _condition(_text(metric, row), row.values(metric), row.paper(metric), bound, rows)


def _differences(rows, metrics, bound) -> Iterator[Condition]:
    for other in rows[1:]:
        yield _condition(*_difference(rows[0], other, metrics), bound, [rows[0], other])


def _fraction(rows, metrics, bound) -> Iterator[Condition]:
    side, _, fraction = bound.partition(" ")
    yield _condition(*_difference(*rows, metrics, float(fraction)), f"{side} 0", rows)


def _within(rows, metrics, bound) -> Iterator[Condition]:
    for side in (f">= -{bound}", f"<= {bound}"):
        yield from _differences(rows, metrics, side)


def _rising(rows, metrics, bound) -> Iterator[Condition]:
    for before, after in zip(rows, rows[1:], strict=False):
        yield from _differences([after, before], metrics, bound)


def _slowing(rows, metrics, bound) -> Iterator[Condition]:
    first, second, third = rows
    _, last, last_paper = _difference(third, second, metrics)
    _, early, early_paper = _difference(second, first, metrics)
    steps = [f"from {a.label} to {b.label}" for a, b in ((second, third), (first, second))]
    quantity = f"{metrics[0]} gained {' - '.join(steps)}"
    yield _condition(quantity, (last - early).dropna(), last_paper - early_paper, bound, rows)


KINDS: dict[str, Callable[[Sequence[Compared], Sequence[str], str], Iterator[Condition]]] = {
    "value": _value,
    "difference": _differences,
    "fraction": _fraction,
    "within": _within,
    "rising": _rising,
    "slowing": _slowing,
}


def explain(explanation: dict, results: Results, claim: Mapping) -> str:
    """Returns the text of an explanation with its numbers: `{name}` is the mean, `{name.low}` and
    `{name.high}` are the ends of its interval. Each number is a condition on the claim's
    experiment, without a bound."""
    numbers = {}
    for name, number in explanation.get("numbers", {}).items():
        line = {"kind": "difference" if " | " in number["rows"] else "value", "metric": "AP",
                "experiment": claim["experiment"], "setting": "", **number}  # fmt: skip
        filler = {"bound": "> 0", "paper_rows": "", "unit": ""}
        (condition,) = conditions(results, {**line, **filler})
        numbers[name] = condition.interval
    return " ".join(explanation["text"].format(**numbers).split())


def _missing_snapshots(its_conditions: Sequence[Condition]) -> str:
    """Names the finished runs that lack snapshots for a claim about positive samples; empty if
    there are none."""
    folders = {
        spec.folder.path
        for condition in its_conditions
        if condition.quantity.startswith("positives") and condition.values.empty
        for runs in condition.rows
        for spec in runs.spec[runs.done]
        if not spec.folder.assignments_file.is_file()
    }
    if not folders:
        return ""
    return (
        f"{len(folders)} of its runs took no snapshots of positive samples (assignments.npz). Move "
        f"them away ({min(folders)}, …) and run them again with eval.looks above 0."
    )
