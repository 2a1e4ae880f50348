"""Regenerates the committed results from their records: the pages of all tables, the scorecard, the
figures, and the tables in READMEs between `<!-- NAME -->` marks.

    python analysis/publish.py
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd

from analysis import figures
from analysis.core import bccd, beyond, fps, scorecard
from analysis.core.claims import judge
from analysis.core.cli import command_line, execute, with_root
from analysis.core.frame import RECORDS, RESULTS
from analysis.core.pages import ours, page
from analysis.core.render import csv, markdown, markdown_table
from analysis.core.settings import SWEPT
from analysis.core.table import Results
from onenet.sweeps.experiments import expand
from onenet.sweeps.summary import COLUMNS, columns_and_cells
from onenet.system.files import REPOSITORY, read_json
from onenet.system.terminal import run_command

TEXTS = (  # with marks
    *(REPOSITORY / "README.md", RESULTS / "README.md"),
    REPOSITORY / "analysis" / "speed" / "README.md",
    REPOSITORY / "onenet" / "inference" / "README.md",
)
WEIGHTS = RESULTS / "weights"
BENCHMARK = RECORDS / "benchmark.json"
MAIN_JOB = ("cost=loc_only,loc_cls", "heads=1,3")


def main(arguments: list[str]) -> int:
    """Returns 0."""
    return execute(publish, command_line(__doc__, overrides=False).parse_args(arguments))


def publish(args: argparse.Namespace) -> None:
    results = Results(with_root([], RECORDS))
    for file, text in pages(results).items():
        (RESULTS / file).parent.mkdir(parents=True, exist_ok=True)
        (RESULTS / file).write_text(text, encoding="utf-8")
    for drawing in figures.draw(results, figures.NAMES):
        figures.save(drawing.figure, RESULTS / "figures" / drawing.name)
    for file in TEXTS:
        file.write_text(fill(file.read_text(), results))
    print(f"Wrote pages and figures to {RESULTS}, and the tables in {TEXTS[0]}")


def pages(results: Results) -> dict[str, str]:
    """The scorecard and all tables that have runs: file below analysis/results -> its content."""
    judgements = judge(results)
    files = {
        "claims.md": markdown(scorecard.page(judgements)),
        "claims.csv": csv(scorecard.data(judgements)),
    }
    for swept in SWEPT:
        table = results.table(swept.experiment, swept.setting, tuple(swept.more.split()))
        if table.runs.done.any():
            text = markdown(page(table))  # without paths of this machine
            text = text.replace(f" runs_root={RECORDS}", "").replace(str(RECORDS), "runs")
            files[f"{swept.folder}/{swept.experiment}.md"] = text
            files[f"{swept.folder}/{swept.experiment}.csv"] = csv(table.tidy())
    return files


def fill(text: str, results: Results) -> str:
    """Returns the text with the block of each mark regenerated."""

    def block(mark: re.Match) -> str:
        name = mark[1]
        special = {
            "claims": lambda: claims_table(results),
            "score": lambda: scorecard.summary(judge(results)),
            "bccd": bccd_table,
            "beyond": lambda: beyond_text(results),
            "main_job": lambda: main_job(results),
            "speed": speed_table,
            "fps": fps_table,
            "weights": weights_table,
            "export_speed": export_speed_table,
        }
        content = special[name]() if name in special else experiment_table(name, results)
        return f"<!-- {name} -->\n{content}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def experiment_table(name: str, results: Results) -> str:
    """AP without and with NMS, the paper's and ours, under each setting; rows without results are
    left out."""
    swept = [each for each in SWEPT if each.experiment == name]
    tables = {each.column: results.table(name, each.setting) for each in swept}
    rows = tables[swept[0].column].paper
    columns = {column: both_aps(table.numbers) for column, table in tables.items()}
    columns |= {
        f"dAP dupe, {column.split(':')[0]}": ours(table.numbers, "dAP_dupe")
        for column, table in tables.items() if table.has_tide
    }  # fmt: skip
    frame = pd.DataFrame(columns, index=rows.index).fillna("")
    frame = frame[(frame != "").any(axis=1)]
    paper = rows.loc[frame.index, ["AP", "AP_nms"]].apply(
        lambda aps: " → ".join(map("{:.1f}".format, aps.dropna())), axis=1
    )
    if (paper != "").any():
        frame.insert(0, "paper (COCO)", paper)
    return _pipe(frame)


def both_aps(numbers: pd.DataFrame) -> pd.Series:
    """AP without and with NMS of each row, each as mean ± standard deviation over seeds; empty if
    there are no results."""
    gain = ours(numbers, "nms_gain", "+.1f").str.split(" ").str[0]
    texts = ours(numbers, "AP") + " → " + ours(numbers, "AP_nms") + " (" + gain + ")"
    return texts.where(numbers.xs("AP", level="metric").ours_mean.notna(), "")


def main_job(results: Results) -> str:
    """The table that the README's first command prints, from its runs in the records."""
    runs = results.runs(expand([*MAIN_JOB, *results.overrides]))
    names, cells = columns_and_cells([[run] for run in runs.to_dict("records")])
    rows = [f"`{' '.join(spec.overrides)}`" for spec in runs.spec]
    return _pipe(pd.DataFrame(cells, columns=names, index=rows), corner="run")


def speed_table() -> str:
    """The plain versions against ours, as `benchmark.py --json` wrote them to the records."""
    benchmark = read_json(BENCHMARK)
    rows = pd.DataFrame(benchmark["timings"])
    sides = {side: rows[side].map("{:,.4g} ".format) + rows.unit for side in ("plain", "ours")}
    ratio = (rows.plain / rows.ours).map("{:.2g}".format)
    frame = pd.DataFrame({"what": rows.what, **sides, "plain / ours": ratio})
    return f"On {benchmark['device']}:\n\n{_pipe(frame.set_index('`' + rows.key + '`'), 'key')}"


def fps_table() -> str:
    """FPS without NMS of the networks in the records, at 512×853 on a CPU; with NMS where a
    detector always needs it."""
    cells: dict[str, dict[str, str]] = {}
    for speed in fps.read(RECORDS):
        network = speed.network
        if (network.size, network.heads, speed.device) == ("512x853", 1, "cpu"):
            value = f"{speed.fps_nms if speed.fps is None else speed.fps:.2f}"
            cells.setdefault(f"{network.detector}, {network.neck}", {})[network.backbone] = value
    frame = pd.DataFrame(cells).fillna("")
    return _pipe(frame.loc[sorted(frame.index, key=lambda name: (len(name), name))])


def weights_table() -> str:
    """The runs whose weights are committed, with the AP that their check found."""
    lines = {}
    for file in sorted(WEIGHTS.glob("*/check_safetensors.json")):
        (ap, _), (ap_nms, _) = read_json(file)["ap"].values()
        lines[f"[{file.parent.name}](weights/{file.parent.name})"] = [f"{ap:.1f}", f"{ap_nms:.1f}"]
    return _pipe(pd.DataFrame.from_dict(lines, "index", columns=["AP", "AP (+NMS)"]), corner="run")


def export_speed_table() -> str:
    """How long an image takes, from the check of an ONNX export: DIR/check_onnx.json."""
    check = read_json(WEIGHTS / "check_onnx.json")
    times = pd.DataFrame(check["milliseconds"]).T
    ratio = times.p50["export"] / times.p50["network"]
    height, width = check["size_hw"]
    return (
        f"An image of {height}×{width}, {check['threads']} thread, milliseconds. The export takes "
        f"{ratio:.2f} of the network's time:\n\n{_pipe(times.map('{:.2f}'.format))}"
    )


def bccd_table() -> str:
    """Like `experiment_table`, for Table 1 on real images."""
    numbers = bccd.numbers()
    more = {"gain in AP50": COLUMNS["gain AP50"], "duplicates per object": COLUMNS["dup/obj"]}
    return _pipe(pd.DataFrame({
        "ours": both_aps(numbers),
        **{name: ours(numbers, *column) for name, column in more.items()},
    }))  # fmt: skip


def beyond_text(results: Results) -> str:
    """Our own questions: the answer in a sentence, its figure, and all numbers."""
    parts = [
        f"### {each.title}\n\n{each.question} (`{results.command(each.experiment)}`)\n\n"
        f"**{each.sentence}**\n\n![{each.title}](figures/{each.name}.svg)\n\n{each.caption}\n\n"
        f"<details><summary>All numbers</summary>\n\n{_pipe(each.table, 'row')}\n\n</details>"
        for each in figures.draw(results, beyond.QUESTIONS)
    ]
    return "\n\n".join(parts)


def claims_table(results: Results) -> str:
    """The claims, one line each."""
    judgements = judge(results)
    lines = {
        each.id: [each.verdict, each.decisive.statement, *scorecard.numbers(each.decisive)]
        for each in judgements
    }
    names = ["verdict", "condition", "ours", "95 % interval", "n"]
    rows = _pipe(pd.DataFrame.from_dict(lines, "index", columns=names), corner="claim")
    summary = f"**{scorecard.summary(judgements)}**"
    return f"{summary}\n\n<details><summary>All of them</summary>\n\n{rows}\n\n</details>"


def _pipe(frame: pd.DataFrame, corner: str = "") -> str:
    return markdown_table(frame.rename_axis(corner), "left")


if __name__ == "__main__":
    sys.exit(run_command(main))
