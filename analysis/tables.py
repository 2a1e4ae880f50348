"""Compares our results with the paper's tables: its numbers, our mean ± std over seeds, gap, n.

    python analysis/tables.py                          every table that has an experiment
    python analysis/tables.py --table 1 -- preset=paper data.root=DIR
    python analysis/tables.py --format markdown latex csv html --out DIR
    python analysis/tables.py --sweep -- cost=loc_only,loc_cls heads=1,3      any runs as a table
    python analysis/tables.py --frame FILE.csv         all runs as one table of data

Arguments after `--` are overrides for run.py. A row averages exactly the runs that its experiment
resolves to. Below a table are the commands for its missing runs.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd

from analysis.core.cli import (
    command_line,
    execute,
    output,
    overrides_of,
    print_source,
    runs_folder,
)
from analysis.core.frame import load
from analysis.core.pages import missing_summary, page, sweep_page
from analysis.core.render import FORMATS, texts
from analysis.core.table import Results
from onenet.errors import UserError
from onenet.sweeps.experiments import Experiment, expand, experiment_names, read_experiment
from onenet.system.plural import plural
from onenet.system.terminal import run_command


def main(arguments: list[str]) -> int:
    """Returns 0, or 2 if the input is invalid."""
    parser = command_line(__doc__)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--table", nargs="+", type=int, metavar="N", help="default: all")
    kind.add_argument("--sweep", action="store_true", help="the runs of the overrides, as a table")
    kind.add_argument("--frame", metavar="FILE", help="all runs, as .csv, .json or .parquet")
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=["markdown"])
    parser.add_argument("--out", metavar="DIR", help="write tableN.* here instead of printing")
    args = parser.parse_args(arguments)
    return execute(save_frame if args.frame else print_tables, args)


def print_tables(args: argparse.Namespace) -> None:
    overrides = overrides_of(args)
    results, pages = Results(overrides), {}
    if args.sweep:
        runs = results.runs(expand(overrides))
        tidy = partial(runs.drop, columns=["label", "spec"])
        pages = texts("sweep", args.format, partial(sweep_page, runs, overrides), tidy)
        done = runs.done
    else:
        tables = [results.table(experiment.name) for experiment in experiments(args.table)]
        for table in tables:
            name = f"table{table.experiment.table}"
            pages |= texts(name, args.format, partial(page, table), table.tidy)
        done = pd.concat([table.runs.done for table in tables])
    output(pages, args.out, missing_summary(done))
    print_source(overrides)


def save_frame(args: argparse.Namespace) -> None:
    """Writes what `load` returns to a file. Raises UserError."""
    file = Path(args.frame).expanduser().absolute()
    if file.suffix not in (".csv", ".json", ".parquet") or args.overrides:
        raise UserError("--frame FILE saves all runs, as .csv, .json or .parquet: no overrides.")
    root = runs_folder(args.runs)
    frame = load(root)
    if file.suffix == ".csv":
        frame.to_csv(file, index=False)
    elif file.suffix == ".json":
        frame.to_json(file, orient="records", double_precision=15, indent=1)
    else:
        try:
            frame.to_parquet(file, index=False)
        except ImportError as error:
            raise UserError("Parquet files need pyarrow: pip install -e '.[parquet]'") from error
    print(f"Wrote {plural(len(frame), 'run')} of {root} to {file}")


def experiments(tables: list[int] | None) -> list[Experiment]:
    """Returns the experiments of these tables, or of all tables by number. Raises UserError."""
    by_table = {e.table: e for name in experiment_names() if (e := read_experiment(name)).table}
    for table in tables or ():
        if table not in by_table:
            numbers = ", ".join(map(str, sorted(by_table)))
            raise UserError(f"There is no experiment for table {table}, only for tables {numbers}.")
    return [by_table[table] for table in dict.fromkeys(tables or sorted(by_table))]


if __name__ == "__main__":
    sys.exit(run_command(main))
