"""Text of users and files, made safe to print, and values made safe to write as JSON.

A file name, a cause of failure or a setting can hold anything: codes that move the cursor of a terminal, line breaks
that split a row, half a character that no file can hold.
"""

import math
import re
from textwrap import fill
from typing import Any

UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control codes but tab and line feed
    "\u200e\u200f\u202a-\u202e\u2066-\u2069"  # codes that change the direction of the text
    "\u2028\u2029\ud800-\udfff]"  # line separators, halves of characters
)


def printable(text: str) -> str:
    """Return the text with every code that a terminal would act on written as its number, such as \\u001b."""
    return UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def one_line(text: str) -> str:
    """Return the printable text on one line: white space of any kind becomes one space."""
    return printable(" ".join(text.split()))


def fitted(text: str, width: int | None, indent: int = 2) -> str:
    """Return the text with lines of at most `width` columns, continued after `indent` spaces; None changes nothing."""
    if width is None:
        return text
    options: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": " " * indent}
    return "\n".join(fill(line, width, **options) for line in text.splitlines())


def finite(value: Any) -> Any:
    """Return plain values without the numbers that JSON lacks, NaN and infinities.

    Such an entry of a dictionary is dropped; in a list it becomes None.
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items() if not _is_lacking(item)}
    if isinstance(value, list | tuple):
        return [None if _is_lacking(item) else finite(item) for item in value]
    return value


def _is_lacking(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
