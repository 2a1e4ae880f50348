"""Checks the paper's claims against our runs, with confidence intervals.

    python analysis/claims.py                      the scorecard
    python analysis/claims.py --format csv markdown --out DIR
    python analysis/claims.py -- preset=paper data.root=DIR

A claim consists of conditions: a number, paired by seed, on one side of a bound
(analysis/core/claims.py). It is `reproduced` if all 95 % t-intervals lie entirely on their sides,
`contradicted` if one lies entirely on the other side, else `too noisy`, and `not run` if results
are missing. Arguments after `--` are overrides for run.py.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from analysis.core.claims import judge, read_claims
from analysis.core.cli import command_line, execute, output, overrides_of, print_source
from analysis.core.render import FORMATS, texts
from analysis.core.scorecard import data, page, summary
from analysis.core.table import Results
from onenet.system.terminal import run_command


def main(arguments: list[str]) -> int:
    """Returns 0, or 2 if the input is invalid."""
    parser, ids = command_line(__doc__), [*read_claims().index]
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=["markdown"])
    parser.add_argument("--only", nargs="+", choices=ids, metavar="ID", default=ids)
    parser.add_argument("--out", metavar="DIR", help="write claims.* here instead of printing")
    return execute(print_claims, parser.parse_args(arguments))


def print_claims(args: argparse.Namespace) -> None:
    overrides = overrides_of(args)
    judgements = judge(Results(overrides), args.only)
    pages = texts("claims", args.format, partial(page, judgements), partial(data, judgements))
    output(pages, args.out, summary(judgements))
    print_source(overrides)


if __name__ == "__main__":
    sys.exit(run_command(main))
