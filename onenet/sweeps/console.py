"""What a sweep prints on."""

from typing import Any

from rich.console import Console

from onenet.system.printable import printable


class SafeConsole(Console):
    """Shows terminal escapes in labels, paths and names instead of sending them."""

    def out(self, *objects: Any, **options: Any) -> None:
        lines = " ".join(map(str, objects)).split("\n")
        super().out("\n".join(map(printable, lines)), **options)
