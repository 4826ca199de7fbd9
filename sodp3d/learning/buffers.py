"""Memory of fine-tuning: recent episodes (replay) and proficient episodes (target), at the level of episodes.

Shape letters: C chunks of an episode, E episodes, K' denoising steps, Tp planned steps, Da action size, F features.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sodp3d.core.errors import InputError

CHAIN_KEYS = ("latents", "means", "reward", "executed", "elapsed")
_NEVER = -1  # in place of `achieved` None


@dataclass(frozen=True)
class EpisodeRecord:
    """One episode as fine-tuning needs it; tensors on the CPU, one row per chunk.

    observation: raw keys (C, To, ...), or {"features": (C, F)} where the encoder is frozen. final: the same without C,
    of the state after the last chunk.
    latents: (C, K'+1, Tp, Da) normalized; means: (C, K', Tp, Da), of the steps' normals; reward: (C,), the chunk
    rewards; executed: (C,) int64, steps of each plan that were; elapsed: (C,), share of the time limit before each.
    """

    observation: Mapping[str, Tensor]
    latents: Tensor
    means: Tensor
    reward: Tensor
    executed: Tensor
    elapsed: Tensor
    success: bool
    terminated: bool  # by the task; False where the time limit cut it
    final: Mapping[str, Tensor]
    # chunks after which it counts as a success for good; 0: it began as one, as branches may; None: not before its end
    achieved: int | None = None

    def until_success(self) -> "EpisodeRecord | None":
        """Its chunks up to the one that achieved the task: what comes after shows nobody how to. None if all does."""
        count = self.achieved
        if count == 0:
            return None
        if not self.success or count is None or count >= len(self.reward):
            return self
        rows = {key: getattr(self, key)[:count] for key in CHAIN_KEYS}
        observation = {key: value[:count] for key, value in self.observation.items()}
        final = {key: value[count] for key, value in self.observation.items()}
        return replace(self, observation=observation, **rows, terminated=False, final=final)

    def rows(self) -> dict[str, Tensor]:
        """All per-chunk tensors. InputError where lengths differ, or it is empty or not finite."""
        rows = {**self.observation, **{key: getattr(self, key) for key in CHAIN_KEYS}}
        lengths = {key: len(value) for key, value in rows.items()}
        if len(set(lengths.values())) != 1 or lengths["reward"] == 0:
            raise InputError(f"episode: expected at least one chunk and as many of everything, got {lengths}.")
        for key in CHAIN_KEYS:
            if not rows[key].isfinite().all():
                raise InputError(f"episode: {key} has values that are not finite; nothing was added.")
        return rows


class EpisodeTable:
    """Episodes one after the other in flat tensors, (sum of C_e, ...), with one row of facts per episode."""

    def __init__(self) -> None:
        self.rows: dict[str, Tensor] = {}
        self.facts: dict[str, Tensor] = {
            "length": torch.zeros(0, dtype=torch.int64),
            "success": torch.zeros(0, dtype=torch.bool),
            "terminated": torch.zeros(0, dtype=torch.bool),
            "achieved": torch.zeros(0, dtype=torch.int64),
            "episode_return": torch.zeros(0, dtype=torch.float64),
        }
        self.finals: dict[str, Tensor] = {}  # observation after each episode, (E, ...)

    def __len__(self) -> int:
        return len(self.facts["length"])

    @property
    def chunks(self) -> int:
        """Number of chunks of all episodes."""
        return int(self.facts["length"].sum())

    def append(self, episode: EpisodeRecord) -> None:
        """Add one episode at the end. Raises InputError where its keys or shapes differ from the others'."""
        rows = episode.rows()
        shapes = {key: value.shape[1:] for key, value in rows.items()}
        expected = {key: value.shape[1:] for key, value in self.rows.items()} or shapes
        if shapes != expected:
            raise InputError(f"episode: expected {expected} per chunk, got {shapes}.")
        self.rows = _appended(self.rows, rows)
        facts = {
            "length": torch.tensor([len(episode.reward)]),
            "success": torch.tensor([episode.success]),
            "terminated": torch.tensor([episode.terminated]),
            "achieved": torch.tensor([_NEVER if episode.achieved is None else episode.achieved]),
            "episode_return": episode.reward.double().sum()[None],
        }
        self.facts = _appended(self.facts, facts)
        self.finals = _appended(self.finals, {key: value[None] for key, value in episode.final.items()})

    def keep(self, mask: Tensor) -> None:
        """Forget the episodes where mask (E,) is False."""
        chunks = mask.repeat_interleave(self.facts["length"])
        self.rows = {key: value[chunks] for key, value in self.rows.items()}
        self.facts = {key: value[mask] for key, value in self.facts.items()}
        self.finals = {key: value[mask] for key, value in self.finals.items()}

    def records(self) -> list[EpisodeRecord]:
        """The episodes one by one, oldest first."""
        rows = {key: self.per_episode(value) for key, value in self.rows.items()}
        observed = [key for key in rows if key not in CHAIN_KEYS]
        return [
            EpisodeRecord(
                observation={key: rows[key][index] for key in observed},
                latents=rows["latents"][index],
                means=rows["means"][index],
                reward=rows["reward"][index],
                executed=rows["executed"][index],
                elapsed=rows["elapsed"][index],
                success=bool(self.facts["success"][index]),
                terminated=bool(self.facts["terminated"][index]),
                final={key: value[index] for key, value in self.finals.items()},
                achieved=None if self.facts["achieved"][index] == _NEVER else int(self.facts["achieved"][index]),
            )
            for index in range(len(self))
        ]

    def per_episode(self, flat: Tensor) -> list[Tensor]:
        """Split (sum of C_e, ...) into E of (C_e, ...)."""
        return list(flat.split(self.facts["length"].tolist()))

    def sample(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Chunks drawn uniformly with replacement: every key (batch_size, ...), and "index", their flat positions.

        Raises InputError while empty.
        """
        if not self.chunks:
            raise InputError("buffer: it holds no episode yet; roll out first.")
        return draw(self.rows, batch_size, generator)

    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors, all a later run needs to go on exactly."""
        parts = {"rows": self.rows, "facts": self.facts, "finals": self.finals}
        return {f"{part}.{key}": value for part, table in parts.items() for key, value in table.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`."""
        self.rows, self.facts, self.finals = (
            {key.removeprefix(part): value.clone() for key, value in state.items() if key.startswith(part)}
            for part in ("rows.", "facts.", "finals.")
        )
        # Runs of earlier releases did not note it.
        self.facts.setdefault("achieved", torch.full_like(self.facts["length"], _NEVER))


def draw(rows: Mapping[str, Tensor], batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Rows drawn uniformly with replacement: every key (batch_size, ...), and "index", their positions."""
    count = len(next(iter(rows.values())))
    index = torch.randint(count, (batch_size,), generator=generator)
    return {"index": index, **{key: value[index] for key, value in rows.items()}}


def _appended(table: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: torch.cat([table[key], value]) if table else value for key, value in new.items()}


class ReplayBuffer(EpisodeTable):
    """The most recent `capacity` episodes, whatever their outcome."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        if capacity < 1:
            raise InputError(f"replay capacity: expected at least 1 episode, got {capacity}.")
        self.capacity = capacity

    def add(self, episode: EpisodeRecord) -> None:
        """Add an episode and forget the oldest beyond the capacity."""
        self.append(episode)
        if len(self) > self.capacity:
            self.keep(torch.arange(len(self)) >= len(self) - self.capacity)

    def rewards(self) -> list[Tensor]:
        """Chunk rewards of each episode, E of (C_e,), in the order of the flat positions."""
        return self.per_episode(self.rows["reward"])


class TargetBuffer(EpisodeTable):
    """Proficient episodes (SODP's target policy mu): successful ones, or the best returns while none succeeded.

    capacity: most episodes kept; the oldest successful ones are forgotten beyond it.
    best: how many of the highest returns stand in while there is no success.
    """

    def __init__(self, capacity: int, best: int = 10) -> None:
        super().__init__()
        if capacity < 1 or best < 1:
            raise InputError(f"target capacity and best: expected at least 1 episode, got {capacity} and {best}.")
        self.capacity, self.best = capacity, min(best, capacity)

    @property
    def has_success(self) -> bool:
        """Whether the target is made of successes (and not of best returns)."""
        return bool(self.facts["success"].any())

    def add(self, episode: EpisodeRecord) -> bool:
        """Offer an episode; returns whether it was kept.

        One that began in the middle of another, a branch, has a part of the rewards: it is kept for its success alone.
        """
        if not episode.success and (self.has_success or episode.elapsed[0] > 0):
            return False
        self.append(episode)
        success = self.facts["success"]
        if success.any():
            kept = success & (torch.arange(len(self)) >= len(self) - self.capacity)
        else:
            kept = torch.zeros(len(self), dtype=torch.bool)
            kept[self.facts["episode_return"].argsort(descending=True, stable=True)[: self.best]] = True
        self.keep(kept)
        return bool(kept[-1])
