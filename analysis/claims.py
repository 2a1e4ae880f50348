"""The paper's claims, each with what our runs say about it and how sure that is.

    python analysis/claims.py                      the scorecard
    python analysis/claims.py --format csv markdown --out DIR
    python analysis/claims.py -- preset=paper data.root=DIR

A claim is `reproduced` if the 95 % t-interval of each of its numbers, paired by seed, lies entirely
on its side; `contradicted` if one lies entirely on the other; else `too noisy`; or `not run`. What
the numbers and sides are: analysis/core/predicates.py. Words after `--` are run.py's.
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
    OWN,
    RESULTS,
    Evidence,
    command_line,
    finished,
    say_where,
    words_of,
)
from analysis.core.intervals import Interval, t_interval
from analysis.core.layout import number
from analysis.core.predicates import PREDICATES, Part
from analysis.core.rows import RECORDS, TableRow, command_of
from analysis.tables import SUFFIXES, write
from onenet.errors import UserError
from onenet.sweeps.experiments import NoRow, read_experiment
from onenet.system.files import REPOSITORY

CLAIMS = REPOSITORY / "analysis" / "paper" / "claims.csv"
EXPLANATIONS = RESULTS / "explanations.yaml"  # of verdicts on the committed records, by hand
HEADER = ("id", "quotation", "effect", "low", "high", "n", "verdict")
VERDICTS = ("reproduced", "too noisy", "contradicted", "not run")


@dataclass(frozen=True)
class Claim:
    """A line of claims.csv."""

    id: str
    quotation: str
    predicate: str


@dataclass(frozen=True)
class Judged:
    """A claim, what was found for each of its parts, and the verdict."""

    claim: Claim
    parts: list[tuple[Part, Interval | None]]
    verdict: str
    explanation: str = ""

    @property
    def decisive(self) -> tuple[Part, Interval | None]:
        """The part that the verdict is from; of several the first."""
        return next(
            (part, interval)
            for part, interval in self.parts
            if self.verdict == judge_part(part, interval)
        )


def read_claims() -> list[Claim]:
    with open(CLAIMS, newline="", encoding="utf-8") as file:
        return [Claim(*line[:3]) for line in list(csv.reader(file))[1:]]


def judge(runs: Evidence, only: Collection[str] = tuple(PREDICATES)) -> list[Judged]:
    """The claims with these ids, in the paper's order; those whose rows the overrides leave out are
    not run. Raises UserError as `rows.compare`."""
    explanations = yaml.safe_load(EXPLANATIONS.read_text()) if runs.committed else {}
    found = []
    for claim in (claim for claim in read_claims() if claim.id in only):
        why = ""
        try:
            parts = PREDICATES[claim.id](runs)
        except NoRow as error:
            parts, why = [Part(claim.predicate, [], "")], str(error)
        judged = [(part, t_interval(part.values) if part.values else None) for part in parts]
        of_parts = {judge_part(*pair) for pair in judged}
        verdict = next(v for v in ("not run", "contradicted", "too noisy", "reproduced")
                       if v in of_parts)  # fmt: skip
        if verdict == "not run":
            why = why or _without_looks(parts)
        why = why or " ".join(explanations.get(claim.id, {}).get(verdict, "").split())
        found.append(Judged(claim, judged, verdict, why))
    return found


def _without_looks(parts: list[Part]) -> str:
    """What finished runs lack for a claim about positive samples; empty if that is not it."""
    about = [part for part in parts if part.what.startswith("positives") and not part.values]
    rows = [row for part in about for row in part.rows]
    lacking = {
        spec.folder.path
        for row in rows
        for spec in finished(row)
        if not spec.folder.assignments_file.is_file()
    }
    if not lacking:
        return ""
    return (
        f"{len(lacking)} of its runs took no snapshots of positive samples (assignments.npz). Move "
        f"{min(lacking)} and the like away and run them again with eval.looks above 0."
    )


def judge_part(part: Part, interval: Interval | None) -> str:
    """One of VERDICTS."""
    if interval is None:
        return "not run"
    low, high, bound = interval.low, interval.high, part.bound
    inside, outside = {
        ">": (low > bound, high <= bound),
        ">=": (low >= bound, high < bound),
        "<": (high < bound, low >= bound),
        "<=": (high <= bound, low > bound),
    }[part.side]
    return "reproduced" if inside else "contradicted" if outside else "too noisy"


def main(arguments: list[str]) -> int:
    """0, or 2 if the input cannot work."""
    parser = command_line(__doc__)
    parser.add_argument("--format", nargs="+", choices=WRITERS, default=["markdown"])
    parser.add_argument("--only", nargs="+", choices=PREDICATES, metavar="ID", default=PREDICATES)
    parser.add_argument("--out", metavar="DIR", help="write claims.* here instead of printing")
    args = parser.parse_args(arguments)
    try:
        overrides = words_of(args)
        judged = judge(Evidence(overrides), args.only)
        pages = {
            f"claims.{SUFFIXES[name]}": WRITERS[name](judged) for name in dict.fromkeys(args.format)
        }
        if args.out is None:
            print("\n".join(pages.values()), end="")
        else:
            print(f"Wrote {', '.join(pages)} to {write(pages, args.out)}. {summary(judged)}")
        say_where(overrides)
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def summary(judged: list[Judged]) -> str:
    """How many claims have which verdict, in a sentence."""
    counts = {verdict: sum(j.verdict == verdict for j in judged) for verdict in VERDICTS}
    listed = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    return f"{len(judged)} claims: {listed}."


def missing_commands(judged: list[Judged]) -> list[str]:
    """What fills in the claims that were not run."""
    commands = {}
    for claim in judged:
        for part, interval in claim.parts:
            if interval is None and part.what.startswith("FPS"):
                words = ["python analysis/benchmark.py fps", *_elsewhere(part.rows[0], "--runs ")]
                commands[" ".join(words)] = None
            elif interval is None:
                lacking = [row for row in part.rows if len(row.results) < len(row.specs)]
                commands |= dict.fromkeys(map(_experiment_of, lacking))
    return list(commands)


def _experiment_of(row: TableRow) -> str:
    """The command that runs the row with the others of its experiment; of several backbones with
    those of its own."""
    spec = row.specs[0]
    experiment = read_experiment(spec.experiment)
    (own,) = (r for r in experiment.rows if r.label == spec.label)
    more = [word for word in spec.overrides[len(own.overrides) :] if not word.startswith("seed=")]
    more += [word for word in own.overrides if word.startswith("backbone=")]
    seeds = f"seed={','.join(str(c.config.seed) for c in row.specs)}"
    more += [] if seeds in experiment.sweep else [seeds]
    return command_of(spec.experiment, more + _elsewhere(row, "runs_root="))


def _elsewhere(row: TableRow, option: str) -> list[str]:
    """The option that names the runs root, unless it is run.py's or that of the records."""
    root = Path(row.specs[0].config.runs_root)
    return [] if root in (RECORDS, OWN) else [f"{option}{root}"]


def as_csv(judged: list[Judged]) -> str:
    """A line a claim, with the numbers of the part that decides; unrounded."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(HEADER)
    for claim in judged:
        _, interval = claim.decisive
        numbers = ["", "", "", 0]
        if interval is not None:
            bounds = [interval.mean, interval.low, interval.high]
            numbers = ["" if math.isinf(v) else round(v, 6) for v in bounds] + [interval.n]
        lines.writerow([claim.claim.id, claim.claim.quotation, *numbers, claim.verdict])
    return text.getvalue()


def sheet(judged: list[Judged]) -> formats.Sheet:
    """The scorecard for people: every part of every claim."""
    lines = []
    for claim in judged:
        for place, (part, interval) in enumerate(claim.parts):
            first = place == 0
            lines.append(
                [
                    claim.claim.id if first else "",
                    claim.verdict if first else "",
                    part.statement,
                    *numbers(part, interval),
                    printed(part),
                ]
            )
    notes = [f"{j.claim.id}: “{j.claim.quotation}”" for j in judged]
    notes += [f"{j.claim.id}, {j.verdict}: {j.explanation}" for j in judged if j.explanation]
    commands = missing_commands(judged)
    header = ["claim", "verdict", "says that", "ours", "95 % interval", "n", "paper"]
    return formats.Sheet(
        heading="The paper's claims",
        question="Which hold here, and how sure is that?",
        context=[
            summary(judged),
            "ours: mean over seeds of the number on the left of the sign, differences seed by "
            "seed, with Student's interval; a claim holds if the intervals of all its lines lie on "
            "the side that it names",
        ],
        blocks=[formats.Block(header, lines, left=3)],
        notes=notes,
        todo="Not run yet:" if commands else "",
        commands=commands,
    )


def numbers(part: Part, interval: Interval | None) -> list[str]:
    """Mean, interval, n in words."""
    if interval is None:
        return ["-", "-", "0"]
    unit = "" if part.unit == "AP" else f" {part.unit}" if part.unit == "%" else ""
    digits = 2 if part.unit.startswith("a ") else 1
    pattern = f"+.{digits}f"
    mean, low, high = (number(v, pattern) for v in (interval.mean, interval.low, interval.high))
    bounds = f"{low} … {high}"
    if math.isinf(interval.low):
        bounds = "one seed has none"
    return [f"{mean}{unit}", bounds, str(interval.n)]


def printed(part: Part) -> str:
    """The paper's own value in words; empty if it prints none."""
    unit = " %" if part.unit == "%" else ""
    return "" if part.paper is None else number(part.paper, "+.1f") + unit


WRITERS = {
    "markdown": lambda judged: formats.markdown(sheet(judged)),
    "latex": lambda judged: formats.latex(sheet(judged)),
    "csv": as_csv,
    "html": lambda judged: formats.html_page(sheet(judged)),
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
