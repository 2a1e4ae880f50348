"""Makes a run of a checkpoint that the paper's authors released.

    python -m onenet.released FILE.pth [runs_root=DIR]

The names of its parameters tell which backbone and neck it has. The run can predict and be
exported. For its AP:

    python -m onenet.evaluate RUN data.root=COCO
"""

import argparse
import sys
from pathlib import Path

from onenet.config.absolute import runs_root
from onenet.errors import UserError
from onenet.inference.command import command_line, execute
from onenet.inference.released import make_run
from onenet.system.terminal import run_command

KEY = "runs_root="


def main(arguments: list[str]) -> int:
    """Returns 0, or 2 if the input is invalid."""
    parser = command_line("released", __doc__)
    parser.add_argument("file", metavar="FILE", type=Path)
    parser.add_argument("override", metavar="runs_root=DIR", nargs="?", help="as in run.py")
    return execute(convert, parser.parse_args(arguments))


def convert(args: argparse.Namespace) -> int:
    """Makes the run and returns 0. Raises UserError."""
    if args.override is not None and not args.override.startswith(KEY):
        raise UserError(f"{args.override}: only {KEY}DIR can be given here.")
    root = runs_root(args.override and args.override.removeprefix(KEY), debug=None)
    folder = make_run(args.file.expanduser().absolute(), root)
    stated = folder.status()["stated_ap"]
    print(f"Wrote {folder.path}")
    print(f"The released README states AP {stated}. To evaluate it on COCO:")
    print(f"python -m onenet.evaluate {folder.path} data=coco data.root=COCO")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
