"""Copies from finished runs the files that the analysis needs: no weights, no detections.

    python analysis/records.py --runs DIR    all finished runs, into analysis/results/records
    python analysis/records.py --runs DIR --out DIR --samples ID [ID ...]
    python analysis/records.py --runs DIR --results-only

Folders and files keep their names, so the records are a runs root, too. `--samples` adds the
pictures and predictions of these runs (for `analysis/replay.py`). `--results-only` takes 6 kB per
run: enough for tables and claims about AP, but without curves, snapshots and the arrays for the
bootstrap. Absolute paths are shortened to their last part.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from analysis.core import fps
from analysis.core.cli import command_line, execute, runs_folder
from analysis.core.frame import OWN_RUNS, RECORDS, is_sound, metric_lines, run_folders
from onenet.errors import UserError
from onenet.runs.folder import RunFolder
from onenet.system.files import read_json, write_atomically, write_json
from onenet.system.terminal import run_command

DETAILS = ("assignments.npz", "classes.json", "evaluations/*/per_image.npz")
SAMPLES = ("predictions.npz", "pictures/image_*", "pictures/pictures.json")


def main(arguments: list[str]) -> int:
    """Returns 0, or 2 if the input is invalid."""
    parser = command_line(__doc__, overrides=False)
    parser.add_argument("--out", metavar="DIR", type=Path, default=RECORDS)
    parser.add_argument("--samples", metavar="ID", nargs="+", default=[])
    parser.add_argument("--results-only", action="store_true")
    return execute(copy_runs, parser.parse_args(arguments))


def copy_runs(args: argparse.Namespace) -> None:
    root, out = runs_folder(args.runs or OWN_RUNS), args.out.expanduser().absolute()
    if out == root:
        raise UserError(f"--out {args.out} is the runs root itself: name another folder.")
    folders = run_folders(root)
    finished = [f for f in folders if is_sound(f) and f.state() == "done"]
    unknown = set(args.samples) - {folder.id for folder in finished}
    if unknown:
        raise UserError(f"--samples: {root} has no finished run {', '.join(sorted(unknown))}.")
    for folder in finished:
        record = RunFolder(out / folder.path.name)
        copy_results(folder, record)
        if not args.results_only:
            _copy(folder, record, DETAILS)
            lines = "".join(f"{_short(line)}\n" for line in metric_lines(folder))
            if lines:
                write_atomically(record.metrics_file, lines)
        if folder.id in args.samples:
            _copy(folder, record, SAMPLES)
    if (root / fps.FILE).is_file():
        fps.write(out, fps.read(root))
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 2**20
    print(f"Copied {len(finished)} of {len(folders)} runs to {out}, {size:.1f} MiB")


def copy_results(folder: RunFolder, record: RunFolder) -> None:
    """Writes the results to `record`, over older ones; its other files stay. Raises UserError."""
    write_json(record.path / "status.json", {"state": "done", "id": folder.result()["id"]})
    results = [folder.result_file, *folder.path.glob("evaluations/*/result.json")]
    for file in results:
        result = read_json(file)
        if not result:
            raise UserError(f"{file} is damaged: run it again, or move it away.")
        result["overrides"] = [_shorten_override(each) for each in result["overrides"]]
        root = Path(result["config"]["runs_root"])
        result["config"] = _shorten_paths(result["config"], root.parent)
        write_json(record.path / file.relative_to(folder.path), result)


def _copy(folder: RunFolder, record: RunFolder, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        for file in folder.path.glob(pattern):
            target = record.path / file.relative_to(folder.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def _short(line: dict) -> str:
    """A line with its numbers rounded to five digits, without the timing of the step."""
    numbers = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in line.items()}
    numbers.pop("seconds", None)
    return json.dumps(numbers)


def _shorten_override(override: str) -> str:
    key, equals, value = override.partition("=")
    path = value.strip("'\"")
    return key + equals + (Path(path).name if path.startswith(("/", "~")) else value)


def _shorten_paths(node, base: Path):
    """Makes the paths in a configuration relative to `base`, or reduces them to their last part."""
    if isinstance(node, dict):
        return {key: _shorten_paths(value, base) for key, value in node.items()}
    if isinstance(node, str) and node.startswith("/"):
        path = Path(node)
        return str(path.relative_to(base)) if path.is_relative_to(base) else path.name
    return node


if __name__ == "__main__":
    sys.exit(run_command(main))
