"""Counts of things in sentences."""


def plural(count: int, noun: str) -> str:
    """For example: 1 run, 2 runs, 8 processes."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count} {noun}{ending}"
