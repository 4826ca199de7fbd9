"""Replay memory of n-step transitions whose states are images and joints.

Shape letters: T control steps of an episode, B batch, Dp proprioception size, H W image.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sodp3d.collection.agents.memory import Batch, Replay, Trajectory
from sodp3d.core.checkpoint import with_prefix, without_prefix
from sodp3d.core.errors import InputError

_LARGEST = 2**24  # numbers of frames are kept as float32, which holds whole numbers up to here


class Frames:
    """Images of whole episodes, numbered from 0 on as they come; those of the oldest episodes can be let go of."""

    def __init__(self) -> None:
        self._episodes: list[Tensor] = []  # (T + 1, 3, H, W) each
        self._firsts: list[int] = []  # number of each episode's first image
        self.next = 0  # number of the next image

    def add(self, images: np.ndarray) -> np.ndarray:
        """Take in an episode's images (T + 1, 3, H, W) uint8; returns their numbers (T + 1,)."""
        numbers = np.arange(self.next, self.next + len(images))
        self._episodes.append(torch.from_numpy(np.ascontiguousarray(images)))
        self._firsts.append(self.next)
        self.next += len(images)
        if self.next > _LARGEST:
            raise InputError(f"agent.encoder=pixels: more than {_LARGEST} images were seen, which is its limit.")
        return numbers

    def take(self, numbers: np.ndarray) -> Tensor:
        """Images (B, 3, H, W) by their numbers (B,)."""
        episodes = np.searchsorted(self._firsts, numbers, side="right") - 1
        return torch.stack(
            [self._episodes[e][number - self._firsts[e]] for e, number in zip(episodes, numbers, strict=True)]
        )

    def drop(self, first: int, last: int) -> None:
        """Let go of the episodes that lie wholly within the numbers first .. last - 1."""
        ends = [*self._firsts[1:], self.next]
        pairs = zip(self._firsts, self._episodes, ends, strict=True)
        kept = [(start, images) for start, images, end in pairs if not (first <= start and end <= last)]
        self._firsts, self._episodes = [start for start, _ in kept], [images for _, images in kept]

    def tensors(self) -> dict[str, Tensor]:
        """One tensor per episode, by the number of its first image; not copies."""
        return {str(first): images for first, images in zip(self._firsts, self._episodes, strict=True)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `tensors`."""
        self._firsts = sorted(int(name) for name in tensors)
        self._episodes = [tensors[str(first)] for first in self._firsts]
        self.next = self._firsts[-1] + len(self._episodes[-1]) if self._firsts else 0


class PixelReplay(Replay):
    """`Replay` of joints, with each image held once, however many rows show it; rows hold the images' numbers.

    Memory: 21 KB per step at 84 x 84, so 1.9 GB for 90 000 steps and 21 GB for a million. Checkpoints hold all of it,
    and saving one takes as much again for the moment.
    """

    def __init__(self, proprioception_size: int, action_size: int, n_step: int, discount: float, capacity: int) -> None:
        super().__init__(proprioception_size + 1, action_size, n_step, discount, capacity)
        self.frames = Frames()
        self._demo_frames = 0

    def add(self, trajectory: Trajectory, demo: bool = False) -> None:
        """As `Replay.add`, for trajectories with images."""
        if trajectory.images is None:
            raise InputError("replay: an agent that sees images was given an episode without any.")
        numbers = self.frames.add(trajectory.images)
        states = np.concatenate([trajectory.states, numbers[:, None]], axis=1)
        super().add(replace(trajectory, states=states, images=None), demo)
        if demo:
            self._demo_frames = self.frames.next
        elif self.added > self.capacity:  # the ring is full: its oldest row is the one to be overwritten next
            oldest = self._rows[self.demos + self.added % self.capacity, self.sizes[0] - 1]
            self.frames.drop(self._demo_frames, int(oldest))

    def sample(
        self, batch_size: int, generator: torch.Generator, demo_fraction: float = 0.0, apart: bool = False
    ) -> Batch:
        """As `Replay.sample`: states are joints (B, Dp), images (B, 3, H, W) uint8."""
        batch = super().sample(batch_size, generator, demo_fraction, apart)
        images, next_images = (
            self.frames.take(states[:, -1].long().numpy()) for states in (batch.states, batch.next_states)
        )
        return replace(
            batch,
            states=batch.states[:, :-1],
            next_states=batch.next_states[:, :-1],
            images=images,
            next_images=next_images,
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As `Replay.state`."""
        tensors, state = super().state()
        return tensors | with_prefix("frames", self.frames.tensors()), {**state, "demo_frames": self._demo_frames}

    def load_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        super().load_state(tensors, state)
        self.frames.load(without_prefix("frames", tensors))
        self._demo_frames = state["demo_frames"]
