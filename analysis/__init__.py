"""Commands that read runs: tables, claims, figures, the report; and benchmarks."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Imports `load` when it is used: `import analysis` stays cheap."""
    if name == "load":
        from analysis.core.frame import load

        return load
    raise AttributeError(f"module 'analysis' has no attribute '{name}'")
