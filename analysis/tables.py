"""Compares our results with the paper's tables: its numbers, our mean ± std over seeds, gap, n.

    python analysis/tables.py                          every table that has an experiment
    python analysis/tables.py --table 1 -- preset=paper data.root=DIR
    python analysis/tables.py --format markdown latex csv html --out DIR

Arguments after `--` are overrides for run.py. A row averages exactly the runs that its experiment
resolves to. Below a table are the commands for its missing runs.
"""

import csv
import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from analysis.core import formats
from analysis.core.evidence import command_line, overrides_of, print_source
from analysis.core.layout import COCO, missing_summary, sheet
from analysis.core.rows import Comparison, Stat, compare
from onenet.config.options import TIDE
from onenet.errors import UserError
from onenet.sweeps.experiments import Experiment, experiment_names, read_experiment
from onenet.system.terminal import run_command

HEADER = ("table", "row", "metric", "paper", "ours_mean", "ours_std", "n", "gap", "ids")
METRICS = (
    *COCO,
    *("AP_nms", "nms_gain", "AP50_nms", "AP50_nms_gain", "AP75_nms", "APs_nms", "APm_nms"),
    *("APl_nms", "AP_nms_06", "AP_nms_07", "AR100", "AR100_nms", "duplicates_per_object"),
    *(f"dAP_{error}{nms}" for nms in ("", "_nms") for error in TIDE),
    *("conflict_rate", "params", "train_hours", "FPS"),
)


def main(arguments: list[str]) -> int:
    """Returns 0, or 2 if the input is invalid."""
    parser = command_line(__doc__)
    parser.add_argument("--table", nargs="+", type=int, metavar="N", help="default: all")
    parser.add_argument("--format", nargs="+", choices=WRITERS, default=["markdown"])
    parser.add_argument("--out", metavar="DIR", help="write tableN.* here instead of printing")
    args = parser.parse_args(arguments)
    try:
        overrides = overrides_of(args)
        comparisons = [compare(e, overrides) for e in experiments(args.table)]
        pages = {
            f"table{comparison.experiment.table}.{SUFFIXES[name]}": WRITERS[name](comparison)
            for comparison in comparisons
            for name in dict.fromkeys(args.format)
        }
        if args.out is None:
            print("\n".join(pages.values()), end="")
        else:
            folder = write(pages, args.out)
            print(f"Wrote {', '.join(pages)} to {folder}. {missing_summary(comparisons)}")
        print_source(overrides)
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def experiments(tables: list[int] | None) -> list[Experiment]:
    """Returns the experiments of these tables, or of all tables by number. Raises UserError."""
    by_table = {e.table: e for name in experiment_names() if (e := read_experiment(name)).table}
    for table in tables or ():
        if table not in by_table:
            numbers = ", ".join(map(str, sorted(by_table)))
            raise UserError(f"There is no experiment for table {table}, only for tables {numbers}.")
    return [by_table[table] for table in dict.fromkeys(tables or sorted(by_table))]


def write(pages: dict[str, str], out: str) -> Path:
    """Writes the pages (file name -> text) to the folder `out`. Raises UserError."""
    folder = Path(out).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in pages.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error}") from error
    return folder


def tidy(comparison: Comparison) -> str:
    """CSV with one line per row and metric, unrounded."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(HEADER)
    for row in comparison.rows:
        key = comparison.experiment.table, row.label
        lines.writerow([*key, "lr", "", row.specs[0].config.lr, "", "", "", ""])
        for metric in METRICS:
            ours = row.ours(metric)
            if metric.startswith("dAP") and not ours.n:
                continue  # results of an earlier version
            values = row.paper.numbers.get(metric), ours.mean, ours.std, ours.n, row.gap(metric)
            rounded = ["" if v is None else round(v, 6) for v in values]
            lines.writerow([*key, metric, *rounded, " ".join(row.values(metric))])
    return text.getvalue()


def read_tidy(file: Path) -> dict[str, dict[str, Stat]]:
    """row -> metric -> ours, from a file that `tidy` wrote."""
    rows: dict[str, dict[str, Stat]] = {}
    with open(file, newline="") as lines:
        for line in csv.DictReader(lines):
            mean, std = (
                float(line[key]) if line[key] else None for key in ("ours_mean", "ours_std")
            )
            rows.setdefault(line["row"], {})[line["metric"]] = Stat(mean, std, int(line["n"] or 0))
    return rows


WRITERS = {
    "markdown": lambda comparison: formats.markdown(sheet(comparison)),
    "latex": lambda comparison: formats.latex(sheet(comparison)),
    "csv": tidy,
    "html": lambda comparison: formats.html_page(sheet(comparison)),
}
SUFFIXES = {"markdown": "md", "latex": "tex", "csv": "csv", "html": "html"}


if __name__ == "__main__":
    sys.exit(run_command(main))
