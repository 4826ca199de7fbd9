"""Demonstrations as Minari datasets: read any (`minari_files.py`), write our own.

Shape letters: T control steps of an episode, R raw simulator steps, Ds state size, Da action size.
"""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sodp3d.collection.agents.memory import Trajectory
from sodp3d.collection.minari_files import FILE, METADATA, ROUNDING, read_episodes, read_metadata
from sodp3d.collection.recording import Recording
from sodp3d.core.errors import InputError
from sodp3d.core.files import partial_path, remove, remove_leftovers, write_json
from sodp3d.core.paths import PACKAGE
from sodp3d.envs import EnvConfig, score_states

log = logging.getLogger(__name__)
SHIPPED = PACKAGE / "collection" / "demonstrations"
_MINARI_IDS = {  # where users find expert data for the Adroit tasks
    "adroit_hammer": "D4RL/hammer/expert-v2",
    "adroit_door": "D4RL/door/expert-v2",
    "adroit_pen": "D4RL/pen/expert-v2",
}


@dataclass(frozen=True)
class Demonstrations:
    """Demonstrations at control rate. successes: how many count as such, None where states alone do not tell.

    recordings: the same episodes as they were recorded, to be played back.
    """

    name: str
    trajectories: list[Trajectory]
    successes: int | None
    recordings: list[Recording]

    def summary(self) -> str:
        """One line for people."""
        steps = sum(len(trajectory.actions) for trajectory in self.trajectories)
        told = "" if self.successes is None else f", {self.successes} of them successful (count)"
        return f"demonstrations {self.name}: {len(self.trajectories)} episodes, {steps} control steps{told}"


def find(env: EnvConfig, source: str | None) -> Path:
    """The `data` folder of the dataset named by `source`: a folder, a Minari id, or None for the env's shipped one.

    Ids are looked up under MINARI_DATASETS_PATH (default ~/.minari/datasets). Raises InputError saying how to get one.
    """
    example = _MINARI_IDS.get(env.name)
    hint = f"get one with: minari download {example} and then demos={example}" if example else "name one with demos="
    if source is None:
        folder = SHIPPED / env.name
        if not (folder / "data" / FILE).is_file():
            raise InputError(f"demos: none are shipped for env={env.name}; {hint}.")
        return folder / "data"
    base = os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets"
    for folder in (Path(source).expanduser(), Path(base).expanduser() / source):
        for candidate in (folder / "data", folder):
            if (candidate / FILE).is_file():
                return candidate
            if (candidate / METADATA).is_file():
                kind = read_metadata(candidate).get("data_format")
                raise InputError(f"demos: {candidate} is in Minari's {kind!r} format; expected an 'hdf5' dataset.")
    raise InputError(
        f"demos: {source!r} is neither a dataset folder nor a Minari dataset under {base}; "
        f"get it with: minari download {source} (or set MINARI_DATASETS_PATH)."
    )


def load(
    env: EnvConfig, source: str | None, sizes: tuple[int, int], count_threshold: int, limit: int | None = None
) -> Demonstrations:
    """Read, check and bring to control rate the first `limit` episodes of a dataset.

    sizes: the environment's (Ds, Da). count_threshold: as of its task, raw frames with the goal achieved.
    Datasets record raw simulator steps unless their metadata says `action_repeat` (ours do): then it must be the
    environment's. Rewards are the environment's own where states tell them, the dataset's otherwise.
    Raises InputError for a missing, foreign, empty or damaged dataset, one of another task or rate, one that reaches
    into other files, or actions of another space.
    """
    folder = find(env, source)
    metadata = read_metadata(folder)
    name = metadata.get("dataset_id", str(folder))
    recorded = metadata.get("action_repeat")
    made_for = metadata.get("sodp3d_env", env.name)
    if made_for != env.name:
        raise InputError(f"demos: {name} shows {made_for}, but env={env.name} was asked for; name another with demos=.")
    if recorded not in (None, env.action_repeat):
        raise InputError(f"demos: {name} has action_repeat {recorded}, but env={env.name} has {env.action_repeat}.")
    trajectories: list[Trajectory] = []
    counts: list[int | None] = []
    recordings: list[Recording] = []
    beyond = 0
    for raw, seed, initial in read_episodes(folder / FILE, limit, strict=bool(recorded)):
        _check_sizes(env, name, (raw.states.shape[-1], raw.actions.shape[-1]), sizes)
        beyond += bool(np.abs(raw.actions).max() > 1 + ROUNDING)
        trajectory, goals = (raw, None) if recorded else to_control_rate(env, raw)
        trajectories.append(trajectory)
        counts.append(goals)
        recordings.append(Recording(seed, initial, raw.states, raw.actions, 1 if recorded else env.action_repeat))
    if beyond:
        log.warning("demos: %d episodes of %s have actions beyond -1 and 1, which are cut off there.", beyond, name)
    if not trajectories:
        raise InputError(f"demos: {name} holds no episodes.")
    successes = sum(goals > count_threshold for goals in counts if goals is not None)
    if None in counts:  # a control step's goal frames cannot be told from its last state; ours say it themselves
        told = metadata.get("successes") if limit is None else None
        return Demonstrations(name, trajectories, told, recordings)
    return Demonstrations(name, trajectories, successes, recordings)


def to_control_rate(env: EnvConfig, raw: Trajectory) -> tuple[Trajectory, int | None]:
    """Group raw steps by the env's action repeat: the state before each group, its mean action, its summed reward.

    An incomplete last group is left out. Rewards are the env's own, scored from the states after each raw step, where
    states tell them, and the dataset's otherwise. Also returns the number of raw steps with the goal achieved, if told.
    """
    repeat = env.action_repeat
    steps = min(len(raw.actions), len(raw.states) - 1) // repeat  # the state after the last action may be missing
    if steps < 1:
        raise InputError(
            f"demos: an episode of {len(raw.actions)} steps and {len(raw.states)} observations holds no control step "
            f"of env={env.name}, which takes {repeat}; leave it out."
        )
    used = steps * repeat
    try:
        rewards, goals = score_states(env, raw.states[1 : used + 1])
    except InputError:  # not an environment whose rewards follow from the state
        rewards, goals = raw.rewards[:used], None
    actions = np.clip(raw.actions[:used], -1, 1).reshape(steps, repeat, -1).mean(1)
    summed = np.asarray(rewards, dtype=np.float64).reshape(steps, repeat).sum(1)
    terminated = raw.terminated and used == len(raw.actions)
    trajectory = Trajectory(raw.states[: used + 1 : repeat], actions, summed, terminated)
    return trajectory, None if goals is None else int(np.sum(goals))


def _check_sizes(env: EnvConfig, name: str, found: tuple[int, int], expected: tuple[int, int]) -> None:
    for what, one, other in zip(("observations", "actions"), found, expected, strict=True):
        if one != other:
            example = _MINARI_IDS.get(env.name)
            hint = f" For instance: minari download {example}, then demos={example}." if example else ""
            raise InputError(f"demos: {what} of {name} have {one} numbers, but env={env.name} has {other}.{hint}")


def write(
    folder: Path, env: EnvConfig, trajectories: Sequence[Trajectory], seeds: Sequence[int], facts: dict[str, Any]
) -> None:
    """Write trajectories as a compact Minari dataset (float32, gzip) under folder/data. Never overwrites.

    facts: further metadata, such as dataset_id, algorithm_name, description, successes.
    """
    if folder.exists():
        raise InputError(f"{folder}: exists already and is never overwritten; move it away first.")
    remove_leftovers(folder)
    partial = partial_path(folder)
    (partial / "data").mkdir(parents=True)
    try:
        _write_episodes(partial / "data" / FILE, trajectories, seeds)
        write_json(partial / "data" / METADATA, _metadata(partial, env, trajectories, facts))
        partial.rename(folder)
    except BaseException:
        remove(partial)
        raise


def _write_episodes(path: Path, trajectories: Sequence[Trajectory], seeds: Sequence[int]) -> None:
    with h5py.File(path, "w") as file:
        for index, (trajectory, seed) in enumerate(zip(trajectories, seeds, strict=True)):
            group = file.create_group(f"episode_{index}")
            steps = len(trajectory.actions)
            group.attrs.update({"id": index, "seed": seed, "total_steps": steps})
            ends = np.zeros(steps, dtype=bool)
            ends[-1] = True
            columns = {
                "observations": trajectory.states.astype(np.float32),
                "actions": trajectory.actions.astype(np.float32),
                "rewards": trajectory.rewards.astype(np.float32),
                "terminations": ends & trajectory.terminated,
                "truncations": ends & (not trajectory.terminated),
            }
            for key, values in columns.items():
                group.create_dataset(key, data=values, compression="gzip", compression_opts=9, shuffle=True)
            group.create_group("infos")


def _metadata(
    folder: Path, env: EnvConfig, trajectories: Sequence[Trajectory], facts: dict[str, Any]
) -> dict[str, Any]:
    state_size, action_size = trajectories[0].states.shape[1], trajectories[0].actions.shape[1]
    return {
        "total_episodes": len(trajectories),
        "total_steps": sum(len(trajectory.actions) for trajectory in trajectories),
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "observation_space": _box(state_size, float("inf")),
        "action_space": _box(action_size, 1.0),
        "dataset_size": round((folder / "data" / FILE).stat().st_size / 1e6, 1),
        "minari_version": "0.5.4",
        "sodp3d_env": env.name,
        "action_repeat": env.action_repeat,
        **facts,
    }


def _box(size: int, bound: float) -> str:
    """A gymnasium Box as Minari serializes it."""
    limits = {"low": [-bound] * size, "high": [bound] * size}
    return json.dumps({"type": "Box", "dtype": "float32", "shape": [size], **limits})
