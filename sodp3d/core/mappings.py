"""Trees of plain values, as configurations and JSON files hold them: flattened, compared, made plain."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any


def plain(value: Any) -> Any:
    """`value` as strict JSON holds it: tuples become lists, infinities the strings "inf" and "-inf".

    `float` reads those strings back, so crop boxes survive the round trip.
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return str(value)
    return value


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a tree of mappings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def option(name: str, config: Mapping[str, Any]) -> str:
    """`name=value` as a command line takes it. name: dotted, of a leaf of `config`; of `[i]` the whole list."""
    key = name.partition("[")[0]
    value = flat(config)[key]
    return f"{key}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'))}"


def differences(expected: Any, found: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, expected, found) of every value in which two JSON trees differ; floats up to rounding."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted(expected.keys() | found.keys()):
            yield from differences(expected.get(key), found.get(key), f"{where}.{key}")
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for index, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from differences(one, other, f"{where}[{index}]")
    elif isinstance(expected, float) and isinstance(found, int | float):
        if not math.isclose(expected, found, rel_tol=1e-6, abs_tol=1e-9):
            yield where, expected, found
    elif expected != found:
        yield where, expected, found
