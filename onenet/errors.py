"""The one exception that is meant for the person at the keyboard."""

from collections.abc import Sequence


class UserError(Exception):
    """Input that cannot work: at most three lines that name the key, file or id, and the way out.

    `run.py` and the analysis scripts print it without a traceback and exit with status 2.
    """


def raise_for(problems: Sequence[str]) -> None:
    """Raises UserError with all of them, if there are any."""
    if problems:
        raise UserError("\n".join(problems))
