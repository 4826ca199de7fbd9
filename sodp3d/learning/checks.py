"""What is checked before a run goes on, and before every step of an optimizer."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sodp3d.core.errors import InputError

START = "start"  # in a checkpoint's state: digest of the planner that the run began with


def require_same_start(state: Mapping[str, Any], start: str, directory: Path) -> None:
    """Raise InputError where the run, by a checkpoint's state, began with another planner than came.

    start: that one's digest.
    """
    if state.get(START, start) != start:
        raise InputError(
            f"planner: {directory} began with another planner than is there now ({START} {state[START][:12]}, "
            f"but {start[:12]} came); bring that one back, or begin a new run (run_dir= names another folder)."
        )


def require_finite(values: Mapping[str, Tensor], where: str) -> None:
    """Raises FloatingPointError where a loss or norm is not finite; to be called before it can change anything."""
    numbers = {name: float(value.detach()) for name, value in values.items()}
    if not all(math.isfinite(number) for number in numbers.values()):
        told = ", ".join(f"{name} {number}" for name, number in numbers.items())
        raise FloatingPointError(
            f"{where}: {told}. Learning stops here, and the last checkpoint is whole; "
            "begin again with a lower learning rate, or look for data that is not finite."
        )
