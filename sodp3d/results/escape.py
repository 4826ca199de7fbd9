"""Text from runs and stores, made safe for Markdown, HTML and spreadsheets: names and settings are a user's own."""

import re
from urllib.parse import quote

from sodp3d.core.values import is_number

_SPECIAL = {"&": "&amp;", "<": "&lt;", ">": "&gt;", **{character: f"\\{character}" for character in "\\`*[]|"}}
_FORMULA = ("=", "+", "-", "@")


def cell(text: str) -> str:
    """Words in a Markdown table or list: on one line, shown as they are, never a link, markup or another cell."""
    return "".join(_SPECIAL.get(character, character) for character in _one_line(text))


def code(text: str) -> str:
    """A command or a path in a Markdown list, as code; backticks in it make the fence longer."""
    line = _one_line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"


def link(path: str) -> str:
    """A relative path as the target of a link or an image."""
    return quote(path)


def csv_cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula: an apostrophe before a first `=`, `+`, `-` or `@`."""
    if text.lstrip().startswith(_FORMULA) and not is_number(text):
        return f"'{text}"
    return text


def file_name(text: str) -> str:
    """A name for a file: letters, digits, `_`, `.` and `-` alone."""
    return re.sub(r"[^\w.-]+", "_", text, flags=re.ASCII).lstrip(".")


def _one_line(text: str) -> str:
    return " ".join(text.split())
