"""status.json: entries of the wrong type, from damage or by hand, count as missing."""

import math
from collections.abc import Callable

# `state` in status.json; RunFolder.state also looks at the lock and the result.
STATES_ON_DISK = ("running", "preempted", "failed", "done")
# How a run ended: `kind`, null during the run. `released`: made from a checkpoint of the released
# code, without a result.
KINDS = (
    *("done", "released", "preempted", "failed"),
    *("diverged", "out_of_memory", "bad_input", "killed"),
)


def is_number(value: object) -> bool:
    """Whether it is a finite number."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_tracker(value: object) -> bool:
    keys = ("name", "project", "entity")
    return isinstance(value, dict) and all(_is_text(value.get(key, 0)) for key in keys)


def _are_rows(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(label, str) for label in value.values())


CHECKS: dict[str, Callable[[object], bool]] = {
    "id": lambda value: isinstance(value, str) and value != "",
    "state": lambda value: value in STATES_ON_DISK,
    "kind": lambda value: value is None or value in KINDS,
    "rows": _are_rows,
    "tracker": _is_tracker,
    **dict.fromkeys(("resumes", "saved_step", "steps", "threads", "processes", "pid"), is_count),
    **dict.fromkeys(("started", "ended", "stated_ap"), is_number),
    **dict.fromkeys(("host", "stopped_by", "exception", "traceback", "evaluation_error"), _is_text),
}


def well_typed(values: dict) -> dict:
    """Returns the entries that readers can rely on."""
    return {key: v for key, v in values.items() if key not in CHECKS or CHECKS[key](v)}
