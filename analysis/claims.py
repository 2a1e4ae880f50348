"""Checks the paper's claims against our runs, with confidence intervals.

    python analysis/claims.py                      the scorecard
    python analysis/claims.py --format csv markdown --out DIR
    python analysis/claims.py -- preset=paper data.root=DIR

A claim consists of conditions: a number, paired by seed, on one side of a bound
(analysis/core/predicates.py). It is `reproduced` if all 95 % t-intervals lie entirely on their
sides, `contradicted` if one lies entirely on the other side, else `too noisy`, and `not run` if
results are missing. Arguments after `--` are overrides for run.py.
"""

import csv
import io
import math
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import yaml

from analysis.core import formats
from analysis.core.evidence import (
    OWN_RUNS,
    RESULTS,
    Evidence,
    command_line,
    finished_specs,
    overrides_of,
    print_source,
)
from analysis.core.intervals import Interval, t_interval
from analysis.core.layout import number
from analysis.core.predicates import PREDICATES, Condition
from analysis.core.rows import RECORDS, TableRow, command_of
from analysis.tables import SUFFIXES, write
from onenet.errors import UserError
from onenet.sweeps.experiments import NoRow, read_experiment
from onenet.system.files import REPOSITORY
from onenet.system.terminal import run_command

CLAIMS = REPOSITORY / "analysis" / "paper" / "claims.csv"
EXPLANATIONS = RESULTS / "explanations.yaml"  # hand-written, for verdicts on the committed records
HEADER = ("id", "quotation", "effect", "low", "high", "n", "verdict")
VERDICTS = ("reproduced", "too noisy", "contradicted", "not run")


@dataclass(frozen=True)
class Claim:
    """A line of claims.csv."""

    id: str
    quotation: str
    predicate: str


@dataclass(frozen=True)
class Judgement:
    """A claim, its conditions with our intervals (None if not run), and the verdict."""

    claim: Claim
    conditions: list[tuple[Condition, Interval | None]]
    verdict: str
    explanation: str = ""

    @property
    def decisive(self) -> tuple[Condition, Interval | None]:
        """The first condition that has the claim's verdict."""
        return next(pair for pair in self.conditions if judge_condition(*pair) == self.verdict)


def read_claims() -> list[Claim]:
    with open(CLAIMS, newline="", encoding="utf-8") as file:
        return [Claim(*line[:3]) for line in list(csv.reader(file))[1:]]


def judge(runs: Evidence, only: Collection[str] = tuple(PREDICATES)) -> list[Judgement]:
    """Judges the claims with these ids, in the paper's order. A claim whose rows the overrides
    remove is not run. Raises UserError as `rows.compare` does."""
    explanations = yaml.safe_load(EXPLANATIONS.read_text()) if runs.is_committed else {}
    judgements = []
    for claim in (claim for claim in read_claims() if claim.id in only):
        explanation = ""
        try:
            conditions = PREDICATES[claim.id](runs)
        except NoRow as error:
            conditions, explanation = [Condition(claim.predicate, [], "")], str(error)
        intervals = [t_interval(each.values) if each.values else None for each in conditions]
        pairs = list(zip(conditions, intervals, strict=True))
        verdicts = {judge_condition(*pair) for pair in pairs}
        verdict = next(v for v in ("not run", "contradicted", "too noisy", "reproduced")
                       if v in verdicts)  # fmt: skip
        if verdict == "not run":
            explanation = explanation or _missing_snapshots(conditions)
        own_text = explanations.get(claim.id, {}).get(verdict, "")
        explanation = explanation or " ".join(own_text.split())
        judgements.append(Judgement(claim, pairs, verdict, explanation))
    return judgements


def _missing_snapshots(conditions: list[Condition]) -> str:
    """Names the finished runs that lack snapshots for a claim about positive samples; empty if
    there are none."""
    folders = {
        spec.folder.path
        for condition in conditions
        if condition.quantity.startswith("positives") and not condition.values
        for row in condition.rows
        for spec in finished_specs(row)
        if not spec.folder.assignments_file.is_file()
    }
    if not folders:
        return ""
    return (
        f"{len(folders)} of its runs took no snapshots of positive samples (assignments.npz). Move "
        f"them away ({min(folders)}, …) and run them again with eval.looks above 0."
    )


def judge_condition(condition: Condition, interval: Interval | None) -> str:
    """Returns one of VERDICTS."""
    if interval is None:
        return "not run"
    low, high, bound = interval.low, interval.high, condition.bound
    inside, outside = {
        ">": (low > bound, high <= bound),
        ">=": (low >= bound, high < bound),
        "<": (high < bound, low >= bound),
        "<=": (high <= bound, low > bound),
    }[condition.side]
    return "reproduced" if inside else "contradicted" if outside else "too noisy"


def main(arguments: list[str]) -> int:
    """Returns 0, or 2 if the input is invalid."""
    parser = command_line(__doc__)
    parser.add_argument("--format", nargs="+", choices=WRITERS, default=["markdown"])
    parser.add_argument("--only", nargs="+", choices=PREDICATES, metavar="ID", default=PREDICATES)
    parser.add_argument("--out", metavar="DIR", help="write claims.* here instead of printing")
    args = parser.parse_args(arguments)
    try:
        overrides = overrides_of(args)
        judgements = judge(Evidence(overrides), args.only)
        pages = {
            f"claims.{SUFFIXES[name]}": WRITERS[name](judgements)
            for name in dict.fromkeys(args.format)
        }
        if args.out is None:
            print("\n".join(pages.values()), end="")
        else:
            print(f"Wrote {', '.join(pages)} to {write(pages, args.out)}. {summary(judgements)}")
        print_source(overrides)
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def summary(judgements: list[Judgement]) -> str:
    """Counts the verdicts, in one sentence."""
    counts = {verdict: sum(j.verdict == verdict for j in judgements) for verdict in VERDICTS}
    parts = [f"{count} {verdict}" for verdict, count in counts.items() if count]
    return f"{len(judgements)} claims: {', '.join(parts)}."


def missing_commands(judgements: list[Judgement]) -> list[str]:
    """Returns the commands that run what the claims still need."""
    commands = {}
    for judgement in judgements:
        for condition, interval in judgement.conditions:
            if interval is None and condition.quantity.startswith("FPS"):
                root = _root_option(condition.rows[0], "--runs ")
                commands[" ".join(["python analysis/benchmark.py fps", *root])] = None
            elif interval is None:
                rows = [row for row in condition.rows if len(row.results) < len(row.specs)]
                commands |= dict.fromkeys(map(_experiment_command, rows))
    return list(commands)


def _experiment_command(row: TableRow) -> str:
    """Returns the command that runs the row's experiment; if the experiment has rows of several
    backbones, only those with the row's backbone."""
    spec = row.specs[0]
    experiment = read_experiment(spec.experiment)
    (base,) = (r for r in experiment.rows if r.label == spec.label)
    extra = [each for each in spec.overrides[len(base.overrides) :] if not each.startswith("seed=")]
    extra += [override for override in base.overrides if override.startswith("backbone=")]
    seeds = f"seed={','.join(str(c.config.seed) for c in row.specs)}"
    extra += [] if seeds in experiment.sweep else [seeds]
    return command_of(spec.experiment, extra + _root_option(row, "runs_root="))


def _root_option(row: TableRow, option: str) -> list[str]:
    """The option that names the runs root; none for run.py's own root and for the records."""
    root = Path(row.specs[0].config.runs_root)
    return [] if root in (RECORDS, OWN_RUNS) else [f"{option}{root}"]


def as_csv(judgements: list[Judgement]) -> str:
    """One line per claim, with the unrounded numbers of the decisive condition."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(HEADER)
    for judgement in judgements:
        _, interval = judgement.decisive
        numbers = ["", "", "", 0]
        if interval is not None:
            bounds = [interval.mean, interval.low, interval.high]
            numbers = ["" if math.isinf(v) else round(v, 6) for v in bounds] + [interval.n]
        claim = judgement.claim
        lines.writerow([claim.id, claim.quotation, *numbers, judgement.verdict])
    return text.getvalue()


def sheet(judgements: list[Judgement]) -> formats.Sheet:
    """The scorecard for people, with every condition of every claim."""
    lines = []
    for judgement in judgements:
        for index, (condition, interval) in enumerate(judgement.conditions):
            first = index == 0
            lines.append(
                [
                    judgement.claim.id if first else "",
                    judgement.verdict if first else "",
                    condition.statement,
                    *numbers(condition, interval),
                    printed(condition),
                ]
            )
    notes = [f"{j.claim.id}: “{j.claim.quotation}”" for j in judgements]
    notes += [f"{j.claim.id}, {j.verdict}: {j.explanation}" for j in judgements if j.explanation]
    commands = missing_commands(judgements)
    header = ["claim", "verdict", "condition", "ours", "95 % interval", "n", "paper"]
    return formats.Sheet(
        heading="The paper's claims",
        question="Which claims hold for our runs, and with what confidence?",
        context=[
            summary(judgements),
            "ours: the left side of the condition, as a mean over seeds (differences are paired by "
            "seed) with Student's interval; a claim is reproduced if the intervals of all its "
            "conditions lie entirely on the stated side",
        ],
        blocks=[formats.Block(header, lines, text_columns=3)],
        notes=notes,
        todo="Not run yet:" if commands else "",
        commands=commands,
    )


def numbers(condition: Condition, interval: Interval | None) -> list[str]:
    """Formats the mean, its interval, and n."""
    if interval is None:
        return ["-", "-", "0"]
    unit = " %" if condition.unit == "%" else ""
    digits = 2 if condition.unit == "per object" else 1
    pattern = f"+.{digits}f"
    mean, low, high = (number(v, pattern) for v in (interval.mean, interval.low, interval.high))
    bounds = f"{low} … {high}"
    if math.isinf(interval.low):
        bounds = "none with one seed"
    return [f"{mean}{unit}", bounds, str(interval.n)]


def printed(condition: Condition) -> str:
    """Formats the paper's own value; empty if the paper does not print it."""
    unit = " %" if condition.unit == "%" else ""
    return "" if condition.paper is None else number(condition.paper, "+.1f") + unit


WRITERS = {
    "markdown": lambda judgements: formats.markdown(sheet(judgements)),
    "latex": lambda judgements: formats.latex(sheet(judgements)),
    "csv": as_csv,
    "html": lambda judgements: formats.html_page(sheet(judgements)),
}


if __name__ == "__main__":
    sys.exit(run_command(main))
