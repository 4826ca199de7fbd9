"""Markdown of tables whose texts are somebody else's: shown as they are, whatever they hold."""

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BAR = 30  # characters
_PARTS = 10  # of a histogram


class Markdown(str):
    """Text that is Markdown of ours; all other text in a table's cells is escaped."""


def escape(text: Any) -> str:
    """Text of somebody else's as one line of Markdown that shows it as it is: no HTML, links, code or table cells."""
    line = re.sub(r"\s+", " ", str(text))
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = line.replace("://", "&#58;//").replace("www.", "www&#46;")  # which would become links by themselves
    return re.sub(r"([\\`*\[\]|])", r"\\\1", line)


def bar(share: float) -> Markdown:
    """A share, 0..1, as a bar."""
    filled = round(float(share) * _BAR)
    return Markdown("`" + "█" * filled + "·" * (_BAR - filled) + "`")


def header(*names: str) -> Iterator[str]:
    """The first two lines of a table."""
    yield row(*names)
    yield row(*["---"] * len(names))


def row(*cells: Any) -> str:
    """A line of a table; what is not Markdown is escaped."""
    return "| " + " | ".join(cell if isinstance(cell, Markdown) else escape(cell) for cell in cells) + " |"


def histogram(values: NDArray[Any], name: str) -> Iterator[str]:
    """A table of how many values lie in each of ten parts of their range."""
    if not len(values):
        yield "None yet."
        return
    counts, edges = np.histogram(values, bins=_PARTS)
    yield from header(name, "number", "")
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        yield row(f"{low:.4g} to {high:.4g}", int(count), bar(count / counts.max()))


def pairs(values: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """Names and values of those of `keys` that are there."""
    return ", ".join(f"{key} {values[key]}" for key in keys if key in values)


def numbers(matrix: Any) -> str:
    """A matrix in one line; whatever else it is as text."""
    try:
        return "; ".join(" ".join(f"{float(value):.6g}" for value in row) for row in matrix)
    except (TypeError, ValueError):
        return str(matrix)


def show(text: str) -> None:
    """Print text, with `?` for what the encoding of standard output lacks: a C locale knows ASCII alone."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
