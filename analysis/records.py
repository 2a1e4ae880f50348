"""Keeps of finished runs what the analysis takes: no weights, no detections.

    python analysis/records.py --runs DIR    all finished runs, into analysis/results/records
    python analysis/records.py --runs DIR --out DIR --samples ID [ID ...]
    python analysis/records.py --runs DIR --results-only

The folders keep their names and files, so that what is kept is a runs root itself. `--samples`: of
these runs the pictures and the predictions, too (`analysis/replay.py`). `--results-only`: 6 kB a
run, enough for tables and for claims about AP; without curves, snapshots and what the bootstrap
takes.
Paths of the machine are cut down to their last part.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from analysis.core import fps
from analysis.core.evidence import RECORDS, metric_lines
from onenet.errors import UserError
from onenet.runs.folder import RunFolder
from onenet.system.files import REPOSITORY, read_json, write_atomically, write_json

DETAILS = ("assignments.npz", "evaluations/*/per_image.npz")
SAMPLES = ("predictions.npz", "pictures/image_*", "pictures/pictures.json")


def main(arguments: list[str]) -> int:
    """0, or 2 if the input cannot work."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", metavar="DIR", type=Path, default=REPOSITORY / "runs")
    parser.add_argument("--out", metavar="DIR", type=Path, default=RECORDS)
    parser.add_argument("--samples", metavar="ID", nargs="+", default=[])
    parser.add_argument("--results-only", action="store_true")
    args = parser.parse_args(arguments)
    root, out = args.runs.expanduser().absolute(), args.out.expanduser().absolute()
    try:
        if not root.is_dir():
            raise UserError(f"--runs {args.runs} is not a folder.")
        folders = [RunFolder(path) for path in sorted(root.glob("*-*/"))]
        if out == root:
            raise UserError(f"--out {args.out} is where the runs are: name another folder.")
        done = [folder for folder in folders if folder.state() == "done" and folder.result()]
        unknown = set(args.samples) - {folder.result()["id"] for folder in done}
        if unknown:
            raise UserError(f"--samples: {root} has no finished run {', '.join(sorted(unknown))}.")
        for folder in done:
            kept = RunFolder(out / folder.path.name)
            keep(folder, kept)
            if not args.results_only:
                keep_details(folder, kept)
            if folder.result()["id"] in args.samples:
                _copy(folder, kept, SAMPLES)
        if (root / fps.FILE).is_file():
            fps.write(out, fps.read(root))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 2**20
    print(f"Kept {len(done)} of {len(folders)} runs in {out}, {size:.1f} MiB")
    return 0


def keep(folder: RunFolder, kept: RunFolder) -> None:
    """The results, into `kept`; what it had before of them gives way, the rest of it stays."""
    write_json(kept.path / "status.json", {"state": "done", "id": folder.result()["id"]})
    results = [folder.result_file, *folder.path.glob("evaluations/*/result.json")]
    for file in results:
        result = read_json(file)
        if not result:
            raise UserError(f"{file} is damaged: run it again, or move it away.")
        result["overrides"] = [_local(word) for word in result["overrides"]]
        result["config"] = _cut(result["config"], Path(result["config"]["runs_root"]).parent)
        write_json(kept.path / file.relative_to(folder.path), result)


def keep_details(folder: RunFolder, kept: RunFolder) -> None:
    """Curves, snapshots, and what was found in each image."""
    _copy(folder, kept, DETAILS)
    if folder.metrics_file.is_file():
        lines = map(_short, metric_lines(folder))
        write_atomically(kept.metrics_file, "".join(f"{line}\n" for line in lines))


def _copy(folder: RunFolder, kept: RunFolder, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        for file in folder.path.glob(pattern):
            target = kept.path / file.relative_to(folder.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def _short(line: dict) -> str:
    """The numbers of a line with five digits, without the parts of a step's time."""
    numbers = {k: v for k, v in line.items() if k != "seconds"}
    return json.dumps({k: float(f"{v:.5g}") if isinstance(v, float) else v
                       for k, v in numbers.items()})  # fmt: skip


def _local(word: str) -> str:
    key, equals, value = word.partition("=")
    path = value.strip("'\"")
    return key + equals + (Path(path).name if path.startswith(("/", "~")) else value)


def _cut(node, above: Path):
    """The configuration with relative paths: from the folder `above`, or the last part."""
    if isinstance(node, dict):
        return {key: _cut(value, above) for key, value in node.items()}
    if isinstance(node, str) and node.startswith("/"):
        path = Path(node)
        return str(path.relative_to(above)) if path.is_relative_to(above) else path.name
    return node


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
