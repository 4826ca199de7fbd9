"""Replay memory of n-step transitions: one flat tensor, one row per transition, one `index_select` per batch.

Shape letters: T control steps of an episode, Ds state size, Da action size, B batch, H W image.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sodp3d.core.errors import InputError


@dataclass(frozen=True)
class Trajectory:
    """A finished episode. `states` has one row more than `actions` unless the state after the last action is unknown.

    states (T + 1, Ds) or (T, Ds), actions (T, Da) in [-1, 1], rewards (T,). terminated: the task ended the episode;
    False means that the time limit did, and then the value of the last state counts on.
    images: (T + 1, 3, H, W) or (T, ...) uint8 for agents that see them; `states` are then proprioception.
    """

    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool = False
    images: np.ndarray | None = None

    def __post_init__(self) -> None:
        steps = len(self.actions)
        if steps == 0 or len(self.rewards) != steps or len(self.states) not in (steps, steps + 1):
            raise InputError(
                f"trajectory: {len(self.states)} states, {steps} actions and {len(self.rewards)} rewards do not fit."
            )
        for name in ("states", "actions", "rewards"):
            if not np.isfinite(getattr(self, name)).all():
                raise InputError(f"trajectory: {name} hold numbers that are not finite.")
        if self.images is not None and (len(self.images) != len(self.states) or self.images.dtype != np.uint8):
            raise InputError(
                f"trajectory: {len(self.images)} {self.images.dtype} images and {len(self.states)} states do not fit."
            )


def n_step_rows(trajectory: Trajectory, n_step: int, discount: float) -> np.ndarray:
    """Rows [state, action, return, discount, next state] (T, 2 Ds + Da + 2), float32.

    Row t holds sum_{k<m} discount^k r[t+k] and discount^m with m = min(n_step, T - t), and the state m steps later.
    Across a time limit it bootstraps from the last state; where the task terminated, the row's discount is 0.
    Without the state after the last action, the last step serves only as part of earlier rows.
    """
    states, actions, rewards = trajectory.states, trajectory.actions, trajectory.rewards.astype(np.float64)
    last = len(states) - 1  # index of the last known state; steps 0 .. last - 1 have one after them
    if last == 0:
        return np.empty((0, 2 * states.shape[1] + actions.shape[1] + 2), dtype=np.float32)
    start = np.arange(last)
    ends = np.minimum(start + n_step, last)
    returns = np.zeros(last)
    for k in range(n_step):
        inside = start + k < ends
        returns[inside] += discount**k * rewards[start[inside] + k]
    bootstrap = discount ** (ends - start).astype(np.float64)
    if trajectory.terminated:
        bootstrap[ends == len(actions)] = 0.0
    columns = (states[:last], actions[:last], returns[:, None], bootstrap[:, None], states[ends])
    return np.concatenate(columns, axis=1).astype(np.float32)


@dataclass(frozen=True)
class Batch:
    """states, next_states (B, Ds); actions (B, Da); returns, discounts (B,); from_demo (B,) bool.

    images, next_images (B, 3, H, W) uint8: for agents that see them.
    """

    states: Tensor
    actions: Tensor
    returns: Tensor
    discounts: Tensor
    next_states: Tensor
    from_demo: Tensor
    images: Tensor | None = None
    next_images: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`."""
        values = (getattr(self, field.name) for field in fields(self))
        return Batch(*(None if value is None else value.to(device) for value in values))  # type: ignore[arg-type]


class Replay:
    """Demonstrations (kept for good) followed by a ring of online transitions, sampled uniformly over transitions.

    VRL3 draws an episode first and a step then; with episodes of equal length that is the same. `demo_fraction`
    (ours; VRL3 has none) reserves that share of each batch for demonstrations. Memory grows with its contents.
    """

    def __init__(self, state_size: int, action_size: int, n_step: int, discount: float, capacity: int) -> None:
        self.sizes = (state_size, action_size, 1, 1, state_size)
        self.n_step, self.discount, self.capacity = n_step, discount, capacity
        self.demos = 0  # rows
        self.online = 0  # rows held
        self.added = 0  # online rows ever added
        self._rows = torch.empty(0, sum(self.sizes))

    def __len__(self) -> int:
        return self.demos + self.online

    def add(self, trajectory: Trajectory, demo: bool = False) -> None:
        """Append an episode. Demonstrations come before any online episode. Raises InputError on wrong sizes."""
        widths = (trajectory.states.shape[1], trajectory.actions.shape[1])
        if widths != self.sizes[:2]:
            raise InputError(f"replay: state and action sizes {widths} do not match {self.sizes[:2]}.")
        if demo and self.online:
            raise InputError("replay: demonstrations must be added before online episodes.")
        rows = torch.from_numpy(n_step_rows(trajectory, self.n_step, self.discount))
        self._reserve(min(len(self) + len(rows), self.demos + self.capacity + demo * len(rows)))
        if demo:
            self._rows[self.demos : self.demos + len(rows)] = rows
            self.demos += len(rows)
            return
        places = self.demos + (self.added + torch.arange(len(rows))) % self.capacity
        self._rows[places] = rows
        self.added += len(rows)
        self.online = min(self.added, self.capacity)

    def sample(
        self, batch_size: int, generator: torch.Generator, demo_fraction: float = 0.0, apart: bool = False
    ) -> Batch:
        """Rows with replacement. The first round(demo_fraction B) are demonstrations, the rest come from everything.

        apart: the rest comes from online transitions alone, of which there must be some.
        """
        reserved = round(demo_fraction * batch_size) if self.demos else 0
        first = self.demos if apart else 0
        chosen = torch.randint(first, len(self), (batch_size - reserved,), generator=generator)
        if reserved:
            chosen = torch.cat([torch.randint(self.demos, (reserved,), generator=generator), chosen])
        state, action, reward, discount, following = self._rows.index_select(0, chosen).split(self.sizes, dim=1)
        return Batch(state, action, reward[:, 0], discount[:, 0], following, chosen < self.demos)

    def everything(self) -> Batch:
        """All rows held, demonstrations first; not a copy."""
        rows = self._rows[: len(self)]
        state, action, reward, discount, following = rows.split(self.sizes, dim=1)
        return Batch(state, action, reward[:, 0], discount[:, 0], following, torch.arange(len(rows)) < self.demos)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything needed to go on exactly: tensors and JSON-able numbers."""
        return {"rows": self._rows[: len(self)].clone()}, {"demos": self.demos, "added": self.added}

    def load_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        rows = tensors["rows"]
        if rows.shape[1] != sum(self.sizes):
            raise InputError(f"replay: the checkpoint's rows have {rows.shape[1]} columns, expected {sum(self.sizes)}.")
        self._rows = rows.clone()
        self.demos, self.added = state["demos"], state["added"]
        self.online = len(rows) - self.demos

    def _reserve(self, rows: int) -> None:
        """Make room, doubling so that appending costs constant time on average."""
        if rows > len(self._rows):
            grown = torch.empty(max(rows, min(2 * len(self._rows), self.demos + self.capacity)), sum(self.sizes))
            grown[: len(self)] = self._rows[: len(self)]
            self._rows = grown
