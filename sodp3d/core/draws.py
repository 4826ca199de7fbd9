"""Random numbers of a batch, the same however many processes share its rows.

Shape letters: B rows of the batch, or of this process's part of it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class SharedGenerator(torch.Generator):
    """Of a process that has one of `count` equal parts of each batch, the `index`-th.

    The functions below draw for the whole batch, which all processes do alike, and give this process its rows.
    """

    index: int
    count: int


def shared_generator(device: torch.device, index: int, count: int) -> SharedGenerator:
    """A generator for the `index`-th of `count` equal parts."""
    generator = SharedGenerator(device)
    generator.index, generator.count = index, count
    return generator


def normal(shape: Sequence[int], generator: torch.Generator | None, **options: Any) -> Tensor:
    """Unit normal numbers (B, ...). options: as `torch.randn`'s."""
    return _own_rows(lambda size: torch.randn(size, generator=generator, **options), shape, generator)


def uniform(shape: Sequence[int], generator: torch.Generator | None, **options: Any) -> Tensor:
    """Numbers (B, ...) from 0 to 1. options: as `torch.rand`'s."""
    return _own_rows(lambda size: torch.rand(size, generator=generator, **options), shape, generator)


def integers(high: int, shape: Sequence[int], generator: torch.Generator | None, **options: Any) -> Tensor:
    """Whole numbers (B, ...) below `high`. options: as `torch.randint`'s."""
    return _own_rows(lambda size: torch.randint(high, size, generator=generator, **options), shape, generator)


def _own_rows(
    draw: Callable[[tuple[int, ...]], Tensor], shape: Sequence[int], generator: torch.Generator | None
) -> Tensor:
    rows, *rest = shape
    if not isinstance(generator, SharedGenerator):
        return draw((rows, *rest))
    start = generator.index * rows
    return draw((generator.count * rows, *rest))[start : start + rows]
