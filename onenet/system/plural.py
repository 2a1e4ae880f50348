"""Counts with nouns for messages."""


def plural(count: int, noun: str) -> str:
    """For example: 1 run, 2 runs, 8 processes, 3 boxes."""
    ending = "" if count == 1 else "es" if noun.endswith(("s", "x")) else "s"
    return f"{count} {noun}{ending}"
