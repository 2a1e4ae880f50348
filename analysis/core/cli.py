"""What the commands share: their arguments, the runs root, errors, and the files that they write.

The default runs root is run.py's (`runs/`), or the committed records in a fresh clone, where
`runs/` does not exist yet.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from analysis.core.frame import RECORDS, default_root
from onenet.config.compose import use_folder
from onenet.errors import UserError
from onenet.runs.folder import RunFolder, find_runs
from onenet.system.files import REPOSITORY


def plain_parser(doc: str) -> argparse.ArgumentParser:
    """A parser whose help is the command's docstring."""
    about = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=doc, formatter_class=about)


def command_line(doc: str, overrides: bool = True) -> argparse.ArgumentParser:
    """The parser that the commands share: `--runs`, `--config-dir`, and run.py's overrides."""
    parser = plain_parser(doc)
    parser.add_argument("--runs", metavar="DIR", help="runs root (default: run.py's)")
    parser.add_argument("--config-dir", metavar="DIR", help="as in run.py")
    if overrides:
        parser.add_argument("overrides", nargs="*", metavar="-- KEY=VALUE", help="as in run.py")
    return parser


def execute(command: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """Calls the command with its arguments. Returns its status, by default 0, or 2 after printing
    the error if the input is invalid."""
    try:
        use_folder(args.config_dir)
        return command(args) or 0
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def overrides_of(args: argparse.Namespace) -> list[str]:
    """Returns run.py's overrides from the arguments that `command_line` parsed, with `runs_root`
    set to `--runs`, or to the committed records if there are no other runs. Raises UserError."""
    for override in () if getattr(args, "sweep", False) else args.overrides:
        if override.lstrip("+").startswith("experiment="):
            raise UserError(
                f"{override}: this command chooses the experiments itself. To choose tables: "
                "--table N"
            )
    overrides = [override for override in args.overrides if not override.startswith("plan=")]
    if args.runs is None and (_names_root(overrides) or default_root() != RECORDS):
        return overrides
    return with_root(overrides, runs_folder(RECORDS if args.runs is None else args.runs))


def with_root(overrides: Sequence[str], root: Path) -> list[str]:
    """Returns the overrides with this runs root."""
    text = str(root)
    if not re.fullmatch(r"[\w./-]+", text):  # Hydra's grammar reads other characters as syntax
        text = "'" + text.replace("'", r"\'") + "'"
    return [*(each for each in overrides if not each.startswith("runs_root=")), f"runs_root={text}"]


def runs_folder(runs: str | Path | None) -> Path:
    """Returns the folder that `--runs` names. Raises UserError if there is none."""
    root = Path(default_root() if runs is None else runs).expanduser().absolute()
    if not root.is_dir():
        raise UserError(f"--runs {runs} is not a folder.")
    return root


def _names_root(overrides: Sequence[str]) -> bool:
    return any(override.startswith(("runs_root=", "debug=")) for override in overrides)


def print_source(overrides: Sequence[str]) -> None:
    """Prints which runs root was read, if the user did not name one."""
    if f"runs_root={RECORDS}" in overrides and default_root() == RECORDS:
        print(
            f"There are no runs in runs/ yet: these are the records in {RECORDS}", file=sys.stderr
        )
    elif not _names_root(overrides):
        records = f"--runs {RECORDS.relative_to(REPOSITORY)}"
        print(f"These are the runs in runs/. For the committed records: {records}", file=sys.stderr)


def named_runs(root: Path, names: Sequence[str], file: str = "result.json") -> list[RunFolder]:
    """Returns the runs with these names, each an id, the name of a folder in the root, or the path
    of a folder; without names, all runs of the root that have the file. Raises UserError."""
    folders = [RunFolder(path) for path in sorted(root.glob("[!.]*/"))]
    names_in_root = {name for folder in folders for name in (folder.id, folder.path.name)}
    runs = [] if names else [folder for folder in folders if (folder.path / file).is_file()]
    if not names and not runs:
        raise UserError(f"No run in {root} has a {file}. Name another root: --runs DIR")
    for name in names:
        path = Path(name).expanduser().absolute()
        if name not in names_in_root and path.is_dir():
            runs.append(RunFolder(path))
        elif name not in names_in_root and "=" in name:
            raise UserError(f"There is no run {name} in {root}. Did you mean: -- {name}?")
        else:
            runs += find_runs(root, folders, [name])
    return list(dict.fromkeys(runs))


def output(pages: Mapping[str, str], out: str | None, summary: str = "") -> None:
    """Prints the pages (file name -> text), or writes them to the folder `out` and prints a line
    with the summary. Raises UserError."""
    if out is None:
        print("\n".join(pages.values()), end="")
        return
    folder = Path(out).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in pages.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error}") from error
    print(f"Wrote {', '.join(pages)} to {folder}. {summary}".rstrip())
