"""What a collected data set and its agent's run directory record."""

from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.core.files import read_json
from sodp3d.core.run import read_metrics
from sodp3d.data import experience
from sodp3d.data.attributes import each
from sodp3d.data.hashing import VERSION, data_hash, earlier_data_hash, learned_hashes
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import SUCCESS_METRICS
from sodp3d.results.scan import STORE_RECORD, portable, provenance, seconds, shown


@dataclass(frozen=True)
class StoreRecord:
    """One `data/<env>` folder with at least one episode, or the record that was kept of it."""

    folder: Path
    env: str
    agent: str  # its name, `unknown` where not recorded
    seed: int | None  # the agent's; None where not recorded
    headline: str  # the task's headline metric
    data_hash: str  # of what was collected; of records of earlier releases their hash, without `v2-`
    transitions: int  # steps of all episodes
    bytes: int  # of all files of the store, conversions included
    command: str  # that collected it
    commit: str
    agent_step: list[int]  # at the end of each episode
    success: dict[str, list[int]]  # of each episode, 0 or 1, by metric
    earlier_hash: str | None = None  # as releases before `v2-` had it
    learned_hashes: dict[str, str] = field(default_factory=dict)  # by key, as checkpoints of planners note them
    priors: list[dict[str, Any]] = field(default_factory=list)  # as `data.experience` has them

    @classmethod
    def read(cls, folder: Path) -> "StoreRecord":
        """Raises InputError (CorruptEpisode too) where the store cannot be read or is empty."""
        path = folder / "episodes.zarr"
        facts = _facts(folder, EpisodeStore.open(path)) if path.exists() else read_json(folder / STORE_RECORD)
        record = cls(folder, **facts)
        _ = record.seconds
        return record

    @property
    def facts(self) -> dict[str, Any]:
        """What `STORE_RECORD` holds."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "folder"}

    def is_of_the_same_data(self, other: "StoreRecord") -> bool:
        """Whether both record the same data; by the earlier hash where one has no other."""
        if self.data_hash.startswith(VERSION) and other.data_hash.startswith(VERSION):
            return self.data_hash == other.data_hash
        return (self.earlier_hash or self.data_hash) == (other.earlier_hash or other.data_hash)

    @property
    def name(self) -> str:
        """The path from `data/` on."""
        return shown(self.folder)

    @property
    def is_original(self) -> bool:
        """Whether the data itself is there."""
        return (self.folder / "episodes.zarr").exists()

    @property
    def success_rates(self) -> dict[str, float]:
        """Share of the kept episodes that succeed, 0..1, by metric."""
        return {metric: float(np.mean(self.success[metric])) for metric in SUCCESS_METRICS}

    @property
    def over_time(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(E,) agent step at the end of each episode, and whether it succeeded by the headline metric."""
        return np.array(self.agent_step), np.array(self.success[self.headline], dtype=bool)

    @property
    def made_by(self) -> str:
        """The agent, and what it began with."""
        prior = experience.told(self.priors)
        return self.agent if prior is None else f"{self.agent} with {prior}"

    @property
    def hashes(self) -> set[str]:
        """All names by which planners know this data."""
        return {name for name in (self.data_hash, self.earlier_hash, *self.learned_hashes.values()) if name}

    @property
    def success_over_time(self) -> dict[int, float]:
        """Success by the headline metric, 0..1, in each of ten parts of the agent's own steps; 0: of an expert's."""
        steps, success = self.over_time
        return {part.number: float(success[part.rows].mean()) for part in experience.time_parts(self.priors, steps)}

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """What the agent logged, by agent steps; stage 2 at steps below 0."""
        return read_metrics(self.folder / "agent")

    def curve(self, name: str) -> list[tuple[int, float]]:
        """(agent steps, value) wherever the agent logged `name`."""
        return [(record["step"], record[name]) for record in self.metrics if record.get(name) is not None]

    @cached_property
    def seconds(self) -> float | None:
        """Wall-clock seconds of the collection, offline learning and evaluations included; None where not recorded."""
        return seconds(self.folder / "agent")

    @property
    def frames_per_second(self) -> float | None:
        """Kept transitions, each with a depth frame, per second of the whole collection."""
        return self.transitions / self.seconds if self.seconds else None


def _facts(folder: Path, store: EpisodeStore) -> dict[str, Any]:
    """What the tables and figures tell of a store. Raises InputError where it is empty."""
    if not len(store):
        raise InputError(f"{shown(folder)}: no episodes yet.")
    attributes = store.attributes
    settings, seed = attributes.get("agent"), attributes.get("seed")
    recorded: dict[str, Any] = next(each(attributes.get("versions")), {})  # of a merged store, the first collector's
    if recorded.get("command") is None:
        command, commit = provenance(folder / "agent")
    else:
        command, commit = portable(recorded["command"]), recorded.get("git_commit", "unknown")
    return {
        "env": attributes["env"],
        "agent": str(settings.get("name", "unknown")) if isinstance(settings, dict) else "unknown",
        "seed": seed if isinstance(seed, int) else None,
        "headline": attributes["env_config"].get("success_metric") or "any",
        "data_hash": data_hash(store),
        "earlier_hash": earlier_data_hash(store)[:16],
        "learned_hashes": learned_hashes(store),
        "priors": experience.priors(attributes),
        "transitions": store.steps,
        "bytes": sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file()),
        "command": command,
        "commit": commit,
        "agent_step": store.metadata["agent_step"].tolist(),
        "success": {metric: store.metadata[f"success_{metric}"].astype(int).tolist() for metric in SUCCESS_METRICS},
    }
