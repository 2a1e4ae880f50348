"""Text from files, made safe for terminals and for UTF-8."""

import re

# Control characters (terminal escapes, line breaks), bidirectional overrides, lone surrogates.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Returns the text with `\\x1b`, `\\udce9` and the like in place of unprintable characters.

    For names of files and classes, which may hold anything; not for texts of several lines.
    """
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
