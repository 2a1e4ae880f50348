"""The verdicts on the paper's claims, as a page and as CSV."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

import pandas as pd

from analysis.core.claims import VERDICTS, Condition, Judgement
from analysis.core.frame import OWN_RUNS, RECORDS
from analysis.core.render import NOTES, Page
from analysis.core.statistics import Interval
from analysis.core.table import command_of
from onenet.sweeps.experiments import RunSpec, read_experiment
from onenet.sweeps.summary import number

COLUMNS = ["id", "quotation", "effect", "low", "high", "n", "verdict"]


def summary(judgements: Sequence[Judgement]) -> str:
    """Counts the verdicts, in one sentence."""
    counts = Counter(judgement.verdict for judgement in judgements)
    parts = [f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict]]
    return f"{len(judgements)} claims: {', '.join(parts)}."


def data(judgements: Sequence[Judgement]) -> pd.DataFrame:
    """One line per claim, with the numbers of the decisive condition."""
    unknown = Interval(math.nan, math.nan, math.nan, 0)
    lines = [
        (each.id, each.quotation, *astuple(each.decisive.interval or unknown), each.verdict)
        for each in judgements
    ]
    return pd.DataFrame(lines, columns=COLUMNS).replace([math.inf, -math.inf], math.nan).round(6)


def page(judgements: Sequence[Judgement]) -> Page:
    """The scorecard for people, with every condition of every claim."""
    lines = [
        ("" if index else judgement.id, "" if index else judgement.verdict, condition.statement,
         *numbers(condition), printed(condition))
        for judgement in judgements
        for index, condition in enumerate(judgement.conditions)
    ]  # fmt: skip
    names = ["claim", "verdict", "condition", "ours", "95 % interval", "n", "paper"]
    notes = [f"{j.id}: “{j.quotation}”" for j in judgements]
    notes += [f"{j.id}, {j.verdict}: {j.explanation}" for j in judgements if j.explanation]
    commands = missing_commands(judgements)
    return Page(
        heading="The paper's claims",
        question="Which claims hold for our runs, and with what confidence?",
        context=[summary(judgements), NOTES["claims"]],
        tables=[pd.DataFrame(lines, columns=names).set_index(names[:3])],
        notes=notes,
        todo="Not run yet:" if commands else "",
        commands=commands,
    )


def numbers(condition: Condition) -> list[str]:
    """Formats the mean, its interval, and n."""
    interval = condition.interval
    if interval is None:
        return ["-", "-", "0"]
    pattern = "+.2f" if condition.unit == "per object" else "+.1f"
    mean, low, high = (number(v, pattern) for v in (interval.mean, interval.low, interval.high))
    bounds = "none with one seed" if math.isinf(interval.low) else f"{low} … {high}"
    return [mean + _unit(condition), bounds, str(interval.n)]


def printed(condition: Condition) -> str:
    """Formats the paper's own value; empty if the paper does not print it."""
    paper = condition.paper
    return "" if math.isnan(paper) else number(paper, "+.1f") + _unit(condition)


def _unit(condition: Condition) -> str:
    return " %" if condition.unit == "%" else ""


def missing_commands(judgements: Sequence[Judgement]) -> list[str]:
    """Returns the commands that run what the claims still need."""
    commands = {}
    for condition in (each for judgement in judgements for each in judgement.conditions):
        if condition.interval is None and condition.quantity.startswith("FPS"):
            root = _root_option(condition.rows[0].spec.iloc[0], "--runs ")
            commands[" ".join(["python analysis/benchmark.py fps", *root])] = None
        elif condition.interval is None:
            unfinished = [runs for runs in condition.rows if not runs.done.all()]
            commands |= dict.fromkeys(map(_experiment_command, unfinished))
    return list(commands)


def _experiment_command(runs: pd.DataFrame) -> str:
    """Returns the command that runs the row's experiment; if the experiment has rows of several
    backbones, only those with the row's backbone."""
    spec = runs.spec.iloc[0]
    experiment = read_experiment(spec.experiment)
    (base,) = (row for row in experiment.rows if row.label == spec.label)
    extra = [each for each in spec.overrides[len(base.overrides) :] if not each.startswith("seed=")]
    extra += [override for override in base.overrides if override.startswith("backbone=")]
    seeds = f"seed={','.join(map(str, runs.seed))}"
    extra += [] if seeds in experiment.sweep else [seeds]
    return command_of(spec.experiment, extra + _root_option(spec, "runs_root="))


def _root_option(spec: RunSpec, option: str) -> list[str]:
    """The option that names the runs root; none for run.py's own root and for the records."""
    root = Path(spec.config.runs_root)
    return [] if root in (RECORDS, OWN_RUNS) else [f"{option}{root}"]
