"""How the experience in a store was made, and its episodes in parts of the agent's time.

Shape letters: E episodes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sodp3d.data.attributes import DEMONSTRATIONS, PRIOR, SCRIPTED, each

PARTS = 10
_NOUNS = {DEMONSTRATIONS: "demonstrations", SCRIPTED: "scripted episodes"}


class Part(NamedTuple):
    """Episodes of a part of the agent's time. rows: (E,) whether an episode is among them; first, last: agent steps.

    number: 1 .. PARTS of what the agent made itself, 0 for what an expert made before.
    """

    number: int
    first: float
    last: float
    rows: NDArray[np.bool_]


def priors(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a store's agents began with beside their own experience; more than one where merged stores differ."""
    return list(each(attributes.get(PRIOR)))


def told(found: Sequence[Mapping[str, Any]]) -> str | None:
    """`priors` in words: 25 scripted episodes, 25 demonstrations; None without any."""
    return ", ".join(f"{prior['episodes']} {_NOUNS.get(prior['kind'], prior['kind'])}" for prior in found) or None


def scripted_rows(found: Sequence[Mapping[str, Any]], agent_step: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(E,) which episodes an expert made, by agent steps (E,) at their ends; none where merged stores differ in it."""
    steps = found[0].get("steps") if len(found) == 1 and found[0]["kind"] == SCRIPTED else None
    return np.zeros(len(agent_step), bool) if steps is None else np.asarray(agent_step <= steps)


def time_parts(found: Sequence[Mapping[str, Any]], agent_step: NDArray[np.int64]) -> Iterator[Part]:
    """An expert's episodes first, then those of equal parts of the agent's own steps; parts without any left out."""
    scripted = scripted_rows(found, agent_step)
    if scripted.any():
        yield Part(0, float(agent_step[scripted].min()), float(agent_step[scripted].max()), scripted)
    own = agent_step[~scripted]
    if not len(own):
        return
    edges = np.linspace(own.min(), own.max() + 1, PARTS + 1)
    place = np.clip(np.searchsorted(edges, agent_step, side="right"), 1, PARTS)
    for number in range(1, PARTS + 1):
        rows = (place == number) & ~scripted
        if rows.any():
            yield Part(number, float(edges[number - 1]), float(edges[number] - 1), rows)
