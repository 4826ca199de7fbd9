"""What is checked before every step of an optimizer."""

import math
from collections.abc import Mapping

from torch import Tensor


def require_finite(values: Mapping[str, Tensor], where: str) -> None:
    """Raises FloatingPointError where a loss or norm is not finite; to be called before it can change anything."""
    numbers = {name: float(value.detach()) for name, value in values.items()}
    if not all(math.isfinite(number) for number in numbers.values()):
        told = ", ".join(f"{name} {number}" for name, number in numbers.items())
        raise FloatingPointError(
            f"{where}: {told}. Learning stops here, and the last checkpoint is whole; "
            "begin again with a lower learning rate, or look for data that is not finite."
        )
