"""The one exception whose message is meant for the user."""

from collections.abc import Sequence


class UserError(Exception):
    """Invalid input. The message, at most three lines, names the key, file or id, and a way out.

    `run.py` and the analysis scripts print it without a traceback and exit with status 2.
    """


def raise_for(problems: Sequence[str]) -> None:
    """Raises a UserError that lists the problems, if there are any."""
    if problems:
        raise UserError("\n".join(problems))
