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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import pandas as pd
import yaml

from analysis.core import fps
from analysis.core.frame import RESULTS
from analysis.core.statistics import Interval, positives, t_interval
from analysis.core.table import Results, read_paper
from onenet.sweeps.experiments import NoRow, read_experiment
from onenet.system.files import REPOSITORY

CLAIMS = REPOSITORY / "analysis" / "paper" / "claims.csv"
EXPLANATIONS = RESULTS / "explanations.yaml"  # for verdicts on the committed records
KINDS = ("value", "difference", "fraction", "within", "rising", "slowing")
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
    side: str = ""
    bound: float = 0.0
    unit: str = "AP"
    rows: Sequence[pd.DataFrame] = field(default=(), repr=False)  # the runs of each
    paper: float = math.nan  # the paper's own value; NaN if the paper does not print it
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
        if only is not None and id_ not in only:
            continue
        try:
            judgement = Judgement(id_, claim.quotation, [*conditions(results, claim)])
            why = _missing_snapshots(judgement) if judgement.verdict == "not run" else ""
        except NoRow as error:
            empty = Condition(claim.predicate, pd.Series())
            judgement, why = Judgement(id_, claim.quotation, [empty]), str(error)
        own = explanations.get(id_, {}).get(judgement.verdict)
        why = why or (explain(own, results, claim) if own else "")
        judgements.append(replace(judgement, explanation=why))
    return judgements


def conditions(results: Results, claim: Mapping) -> Iterator[Condition]:
    """Yields the conditions of a line of claims.csv. Raises NoRow."""
    labels = claim["rows"] if results.proxy else claim["paper_rows"] or claim["rows"]
    columns = [claim["kind"], labels, claim["metric"], claim["bound"]]
    cells = [column.split("; ") for column in columns]
    count = max(map(len, cells))
    ignored = ("seed=", "data=shapes")  # of NETWORKS
    setting = [each for each in results.setting(claim["setting"]) if not each.startswith(ignored)]
    for kind, names, metric, bound in zip(*(c * (count // len(c)) for c in cells), strict=True):
        metrics = metric.split(" | ")
        if "in_part" in metrics and results.config.data.name != "shapes":
            data = results.config.data.name
            raise NoRow(f"Only data=shapes marks the discriminative part, not data={data}.")
        rows = [
            results.row(claim["experiment"], name, claim["setting"]) for name in names.split(" | ")
        ]
        for condition in _compare(kind, rows, metrics, bound):
            yield replace(condition, unit=claim["unit"], setting=" ".join(setting))


def _compare(
    kind: str, rows: Sequence[pd.DataFrame], metrics: Sequence[str], bound: str
) -> list[Condition]:
    side, _, text = bound.rpartition(" ")
    limits = [(side, float(text))]
    if kind == "value":
        compared = [_value(rows[0], metrics[0])]
    elif kind == "fraction":
        compared, limits = [_difference(*rows, metrics, float(text))], [(side, 0.0)]
    elif kind in ("rising", "slowing"):
        compared = [_difference(after, before, metrics) for before, after in pairwise(rows)]
    else:
        compared = [_difference(rows[0], other, metrics) for other in rows[1:]]
    if kind == "within":
        limits = [(">=", -float(text)), ("<=", float(text))]
    elif kind == "slowing":
        early, last = compared
        first, second, third = map(_label, rows)
        text = f"{metrics[0]} gained from {second} to {third} - from {first} to {second}"
        values, paper = (last.values - early.values).dropna(), last.paper - early.paper
        compared = [Condition(text, values, rows=rows, paper=paper)]
    return [replace(each, side=s, bound=limit) for each in compared for s, limit in limits]


def _value(row: pd.DataFrame, metric: str) -> Condition:
    """The metric of a row, for the seeds for which it is defined."""
    done = row[row.done]
    text = f"{'NMS gain' if metric == 'nms_gain' else metric} of {_label(row)}"
    if metric in POSITIVES:
        text = f"positives of {_label(row)} {POSITIVES[metric]}"
        if metric == "in_part":
            done = done[done.kind == "parts"]
        done = done.assign(**{metric: [positives(spec.folder).get(metric) for spec in done.spec]})
    table = read_experiment(row.spec.iloc[0].experiment).table
    paper = read_paper().get(metric, pd.Series(dtype=float)).get((table, _label(row)), math.nan)
    values = pd.Series([*done[metric]], index=done.seed, dtype=float).dropna()
    return Condition(text, values, rows=[row], paper=paper)


def _difference(
    one: pd.DataFrame, other: pd.DataFrame, metrics: Sequence[str], factor: float = 1.0
) -> Condition:
    """The metric of `one` minus `factor` times that of `other`, paired by seed; for FPS, by how
    many percent `one` is faster in each round of timing."""
    a, b = _value(one, metrics[0]), _value(other, metrics[-1])
    text = f"{a.quantity} - {f'{factor:g} × ' if factor != 1 else ''}{b.quantity}"
    values, paper = (a.values - factor * b.values).dropna(), a.paper - factor * b.paper
    if metrics[0] == "FPS":
        specs = [row.spec.iloc[0] for row in (one, other)]
        networks = [fps.network_of(spec.config, spec.evaluation) for spec in specs]
        rounds = fps.rounds_of(fps.read(Path(specs[0].config.runs_root)), networks)
        values = pd.Series([100 * (x / y - 1) for x, y in zip(*rounds, strict=True)])
        text, paper = f"{a.quantity} against {_label(other)}", 100 * (a.paper / b.paper - 1)
    elif metrics[0] in POSITIVES:
        text = f"positives {POSITIVES[metrics[0]]}, {_label(one)} - {_label(other)}"
    return Condition(text, values, rows=[one, other], paper=paper)


def _label(row: pd.DataFrame) -> str:
    return row.label.iloc[0]


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


def _missing_snapshots(judgement: Judgement) -> str:
    """Names the finished runs that lack snapshots for a claim about positive samples; empty if
    there are none."""
    folders = {
        spec.folder.path
        for condition in judgement.conditions
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
