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
from sodp3d.files import read_json
from sodp3d.results.scan import STORE_RECORD, portable, provenance, seconds, shown
from sodp3d.run import read_metrics


@dataclass(frozen=True)
class StoreRecord:
    """One `data/<env>` folder with at least one episode, or the record that was kept of it."""

    folder: Path
    facts: dict[str, Any]  # plain values, as `STORE_RECORD` holds them

    @classmethod
    def read(cls, folder: Path) -> "StoreRecord":
        """Raises InputError (CorruptEpisode too) where the store cannot be read or is empty."""
        path = folder / "episodes.zarr"
        facts = _facts(folder, EpisodeStore.open(path)) if path.exists() else read_json(folder / STORE_RECORD)
        record = cls(folder, facts)
        _ = record.seconds
        return record

    @property
    def name(self) -> str:
        """The path from `data/` on."""
        return shown(self.folder)

    @property
    def is_original(self) -> bool:
        """Whether the data itself is there."""
        return (self.folder / "episodes.zarr").exists()

    @property
    def env(self) -> str:
        """The env's name."""
        return self.facts["env"]

    @property
    def agent(self) -> str:
        """The agent's name, `unknown` where not recorded."""
        return self.facts["agent"]

    @property
    def seed(self) -> int | None:
        """The agent's seed; None where not recorded."""
        return self.facts["seed"]

    @property
    def headline(self) -> str:
        """The task's headline metric."""
        return self.facts["headline"]

    @property
    def digest(self) -> str:
        """The data's hash, shortened as checkpoints note it."""
        return self.facts["data_hash"]

    @property
    def transitions(self) -> int:
        """Steps of all episodes."""
        return self.facts["transitions"]

    @property
    def episodes(self) -> int:
        """How many there are."""
        return len(self.facts["agent_step"])

    @property
    def success(self) -> dict[str, float]:
        """Share of the kept episodes that succeed, 0..1, by metric."""
        return {metric: float(np.mean(self.facts["success"][metric])) for metric in SUCCESS_METRICS}

    @property
    def over_time(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(E,) agent step at the end of each episode, and whether it succeeded by the headline metric."""
        return np.array(self.facts["agent_step"]), np.array(self.facts["success"][self.headline], dtype=bool)

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

    @property
    def size(self) -> int:
        """Bytes of all files of the store, conversions included."""
        return self.facts["bytes"]

    @property
    def made_by(self) -> tuple[str, str]:
        """(command, commit) that collected it."""
        return self.facts["command"], self.facts["commit"]


def _facts(folder: Path, store: EpisodeStore) -> dict[str, Any]:
    """What the tables and figures tell of a store. Raises InputError where it is empty."""
    if not len(store):
        raise InputError(f"{shown(folder)}: no episodes yet.")
    attributes = store.attributes
    settings = attributes.get("agent")
    recorded = attributes.get("versions", {})
    if recorded.get("command") is None:
        command, commit = provenance(folder / "agent")
    else:
        command, commit = portable(recorded["command"]), recorded.get("git_commit", "unknown")
    return {
        "env": attributes["env"],
        "agent": str(settings.get("name", "unknown")) if isinstance(settings, dict) else "unknown",
        "seed": attributes.get("seed"),
        "headline": attributes["env_config"].get("success_metric", "any"),
        "data_hash": data_hash(store)[:16],
        "transitions": store.steps,
        "bytes": sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file()),
        "command": command,
        "commit": commit,
        "agent_step": store.metadata["agent_step"].tolist(),
        "success": {metric: store.metadata[f"success_{metric}"].astype(int).tolist() for metric in SUCCESS_METRICS},
    }
