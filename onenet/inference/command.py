"""What the commands on a trained network share: RUN, `--runs`, and how they end."""

import argparse
import sys
from collections.abc import Callable

from onenet.data.images import BadImage
from onenet.errors import UserError


def command_line(name: str, doc: str) -> argparse.ArgumentParser:
    """Returns the parser of `python -m onenet.NAME`."""
    return argparse.ArgumentParser(
        f"python -m onenet.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def command_line_with_run(name: str, doc: str) -> argparse.ArgumentParser:
    """Returns the parser of a command that takes a run: see `load.find`."""
    parser = command_line(name, doc)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--runs", metavar="DIR", help="runs root (default: run.py's)")
    return parser


def execute(command: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Calls the command with its arguments. Returns its status, or 2 after printing the error if
    the input is invalid."""
    try:
        return command(args)
    except (UserError, BadImage) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
