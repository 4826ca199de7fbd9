"""Text from runs and stores, made safe as code, links, cells of spreadsheets and names of files.

Names and settings are a user's own. What they are in Markdown and HTML, `sodp3d.tools.markdown.escape` says.
"""

import re
from urllib.parse import quote

from sodp3d.core.values import is_number

_FORMULA = ("=", "+", "-", "@")


def code(text: str) -> str:
    """A command or a path in a Markdown list, as code; backticks in it make the fence longer."""
    line = " ".join(text.split())
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
