"""What a collected data set and its agent's run directory record."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.data.dataset import data_hash
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import SUCCESS_METRICS
from sodp3d.errors import InputError
from sodp3d.results.scan import portable, provenance, seconds, shown
from sodp3d.run import read_metrics


@dataclass(frozen=True)
class StoreRecord:
    """One `data/<env>` folder with at least one episode."""

    folder: Path
    store: EpisodeStore

    @classmethod
    def read(cls, folder: Path) -> "StoreRecord":
        """Raises InputError (CorruptEpisode too) where the store cannot be read or is empty."""
        record = cls(folder, EpisodeStore.open(folder / "episodes.zarr"))
        if not len(record.store):
            raise InputError(f"{shown(folder)}: no episodes yet.")
        _ = record.digest, record.seconds
        return record

    @property
    def name(self) -> str:
        """The path from `data/` on."""
        return shown(self.folder)

    @property
    def env(self) -> str:
        """The env's name."""
        return self.store.attributes["env"]

    @property
    def agent(self) -> str:
        """The agent's name, `unknown` where not recorded."""
        settings = self.store.attributes.get("agent")
        return str(settings.get("name", "unknown")) if isinstance(settings, dict) else "unknown"

    @property
    def headline(self) -> str:
        """The task's headline metric."""
        return self.store.attributes["env_config"].get("success_metric", "any")

    @cached_property
    def digest(self) -> str:
        """The data's hash, shortened as checkpoints note it."""
        return data_hash(self.store)[:16]

    @property
    def success(self) -> dict[str, float]:
        """Share of the kept episodes that succeed, 0..1, by metric."""
        return {metric: float(self.store.metadata[f"success_{metric}"].mean()) for metric in SUCCESS_METRICS}

    @property
    def over_time(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(E,) agent step at the end of each episode, and whether it succeeded by the headline metric."""
        return self.store.metadata["agent_step"], self.store.metadata[f"success_{self.headline}"]

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
        return self.store.steps / self.seconds if self.seconds else None

    @property
    def size(self) -> int:
        """Bytes of all files of the store, conversions included."""
        return sum(file.stat().st_size for file in self.store.path.rglob("*") if file.is_file())

    @property
    def made_by(self) -> tuple[str, str]:
        """(command, commit) that collected it."""
        recorded = self.store.attributes.get("versions", {})
        command = recorded.get("command")
        if command is None:
            return provenance(self.folder / "agent")
        return portable(command), recorded.get("git_commit", "unknown")
