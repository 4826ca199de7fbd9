"""Plain values of a configuration, checked one by one."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from sodp3d.core.errors import InputError

T = TypeVar("T", int, float)


def check_keys(kind: type, mapping: Mapping[str, Any], where: str) -> None:
    if not isinstance(mapping, Mapping):
        raise InputError(f"{where}: expected a section of keys and values, got {mapping!r}.")
    valid = [field.name for field in fields(kind)]
    unknown = sorted(set(mapping) - set(valid))
    missing = sorted(set(valid) - set(mapping))
    if unknown:
        raise InputError(f"{where}: unknown key {unknown[0]!r}; valid keys are {', '.join(valid)}.")
    if missing:
        raise InputError(f"{where}: key {missing[0]!r} is missing; it needs {', '.join(valid)}.")


def numbers(values: Any, count: int, where: str) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or len(values) != count:
        raise InputError(f"{where}: expected {count} numbers, got {values!r}.")
    return tuple(number(value, float, where) for value in values)


def number(value: Any, kind: type[T], where: str) -> T:
    """`value` as an int or a float; "inf" and "-inf", as JSON keeps them, are floats."""
    try:
        number = kind(value)
        if number == float(value) and not isinstance(value, bool):
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    expected = "a whole number" if kind is int else "a number (without a limit: -inf, inf)"
    raise InputError(f"{where}: expected {expected}, got {value!r}.")


def is_number(text: str) -> bool:
    """Whether a text is a number as Python writes and reads it."""
    try:
        float(text)
    except ValueError:
        return False
    return True
