"""Commands that print: on any terminal, or on none."""

import os
import sys
from collections.abc import Callable


def prepare_streams() -> None:
    """Makes printing safe. A character that the terminal cannot show is escaped; a closed stream
    discards what is printed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (open until the process ends)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def run_command(main: Callable[[list[str]], int]) -> int:
    """Calls `main` with the arguments of the command line. Returns the exit status."""
    prepare_streams()
    return main(sys.argv[1:])
