"""Numbers that change while an agent learns: `0.1`, or `linear(1.0,0.1,100000)` as in DrQ-v2 and VRL3."""

import re
from collections.abc import Callable

from sodp3d.core.errors import InputError

_NUMBER = r"\s*([0-9.eE+-]+)\s*"
_LINEAR = re.compile(rf"linear\({_NUMBER},{_NUMBER},{_NUMBER}\)")


def schedule(value: float | str, key: str) -> Callable[[int], float]:
    """`value` as a function of the step: constant, or from the first to the second number over the third's steps.

    Raises InputError naming `key` for anything else, and for numbers below 0.
    """
    match = _LINEAR.fullmatch(value) if isinstance(value, str) else None
    try:
        first, last, steps = map(float, match.groups()) if match else (float(value), float(value), 1.0)
        if min(first, last) < 0 or not steps > 0:
            raise ValueError
    except ValueError:
        raise InputError(f"{key}: expected a number from 0 on, or linear(first,last,steps), got {value!r}.") from None
    return lambda step: first + (last - first) * min(step / steps, 1.0)
