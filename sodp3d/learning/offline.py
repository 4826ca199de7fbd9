"""What can be measured of a policy without acting: on recorded episodes that were held out, against what was done.

The policy is shown what was recorded, at every step at which it would plan, and its actions are compared with those of
the recording. Two policies that learn nothing are compared alike: one that always takes the mean action of the data
learned from, and one that holds the last action. Errors are means of absolute differences. No such number says how
often a robot would succeed, as its own actions lead it to other states.

Shape letters: R rows, of the held-out episodes end to end; B episodes, To observed steps, Ta executed steps, Da action.
"""

import itertools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sodp3d.core.files import write_json
from sodp3d.core.run import Run
from sodp3d.core.sections import read_section
from sodp3d.data.dataset import WindowDataset
from sodp3d.data.recording import names_of
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import EnvConfig
from sodp3d.learning.lookup import open_stores
from sodp3d.learning.windows import chosen_episodes, load_data, to_device
from sodp3d.models.policy import LearnedPolicy, as_it_acts
from sodp3d.settings import PretrainSettings
from sodp3d.tools.offline_plot import draw_offline
from sodp3d.tools.runs import offline_sentence

log = logging.getLogger(__name__)
NUMBERS, PICTURE = "offline.json", "offline.png"  # in the run directory
_SEED = 0  # of the noise in losses and plans: each look has the same
_MOST_WINDOWS, _BATCH = 2048, 128  # of which the loss is taken, evenly spread; and at once


class Offline:
    """Measurements (`measuring.Measurements`) on the held-out episodes of recordings."""

    def __init__(self, config: dict[str, Any], tasks: list[EnvConfig]) -> None:
        """Reads what is held out. Raises InputError as `pretrain.load_data`."""
        self._task, settings = tasks[0], read_section(PretrainSettings, config["pretrain"])
        stores = open_stores(config, tasks)
        self._names, self._rate = names_of(stores[0], "action"), stores[0].attributes.get("rate")
        self._held = load_data(config, tasks, held_out=True)[0]
        learned = _actions(stores, chosen_episodes(settings, tasks[0], stores))
        held = chosen_episodes(settings, tasks[0], stores, held_out=True)
        self._places = [(str(store.path), int(row)) for store, rows in zip(stores, held, strict=True) for row in rows]
        self._mean = learned.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._low, self._high = learned.min(axis=0), learned.max(axis=0)
        self._recorded = self._held.steps("action", np.arange(len(self._held)))

    def validate(self, planner: LearnedPolicy, run: Run) -> dict[str, float]:
        """Loss and error on held-out episodes, to log."""
        return _metrics(self._measure(planner)[0], "validation")

    def test(self, planner: LearnedPolicy, run: Run) -> tuple[dict[str, float], dict[str, Any]]:
        """The same at the end, with offline.json and offline.png in the run's directory."""
        found, planned = self._measure(planner)
        errors = np.array([
            self._share(np.abs(planned[start:stop] - self._recorded[start:stop]).mean(axis=0))
            for start, stop in _bounds(self._held)
        ])  # fmt: skip
        shown = int(np.argsort(errors)[len(errors) // 2])  # neither the best nor the worst
        rows = slice(*_bounds(self._held)[shown])
        each = [
            {"store": path, "episode": index, "error": float(error)}
            for (path, index), error in zip(self._places, errors, strict=True)
        ]
        whole = {**found, "by_episode": each, "shown": each[shown]}
        write_json(run.directory / NUMBERS, whole)
        draw_offline(run.directory / PICTURE, self._task.name, whole, self._recorded[rows], planned[rows], self._rate,
                     self._held.n_action_steps)  # fmt: skip
        log.info("%s", offline_sentence(found))
        return _metrics(found, "evaluation"), {"offline": {**found, "numbers": NUMBERS, "picture": PICTURE}}

    def _measure(self, policy: LearnedPolicy) -> tuple[dict[str, Any], NDArray[np.float32]]:
        """What was found, and planned actions (R, Da)."""
        with as_it_acts(policy):
            planned, loss = planned_actions(policy, self._held, self._task), _loss(policy, self._held)
        guesses = {"policy": planned, "mean_action": self._mean, "hold_last": self._hold_last()}
        errors = {name: np.abs(guess - self._recorded).mean(axis=0) for name, guess in guesses.items()}
        columns = {"low": self._low, "high": self._high, **errors}
        numbers = [
            {"name": name, **{key: float(values[place]) for key, values in columns.items()}}
            for place, name in enumerate(self._names)
        ]
        return {
            "episodes": len(self._held.episode_ends),
            "steps": len(self._held),
            "loss": loss,
            "error": {name: self._share(error) for name, error in errors.items()},
            "by_action": numbers,
        }, planned

    def _share(self, errors: NDArray[np.floating[Any]]) -> float:
        """Errors (Da,) as the mean share of the range that was learned from, of those numbers that have one."""
        span = self._high - self._low
        return float((errors[span > 0] / span[span > 0]).mean()) if (span > 0).any() else float(errors.mean())

    def _hold_last(self) -> NDArray[np.float32]:
        """(R, Da) the action before each plan, as long as the plan lasts; the mean one where there is none before."""
        found = np.empty_like(self._recorded)
        for start, stop in _bounds(self._held):
            for first in range(start, stop, self._held.n_action_steps):
                last = self._recorded[first - 1] if first > start else self._mean
                found[first : min(first + self._held.n_action_steps, stop)] = last
        return found


def planned_actions(policy: LearnedPolicy, dataset: WindowDataset, task: EnvConfig) -> NDArray[np.float32]:
    """(R, Da) what `policy` would do at each step of all episodes, shown what was recorded whenever it plans."""
    bounds = _bounds(dataset)
    planned = np.empty((len(dataset), *dataset.shapes["action"]), np.float32)
    memories = [policy.begin(task, _SEED + place) for place in range(len(bounds))]
    keys = [key for key in dataset.shapes if key != "action"]
    longest, every = max(stop - start for start, stop in bounds), range(len(bounds))
    groups = [every[first : first + _BATCH] for first in range(0, len(bounds), _BATCH)]
    for group, step in itertools.product(groups, range(0, longest, task.n_action_steps)):
        running = [place for place in group if bounds[place][0] + step < bounds[place][1]]
        if not running:
            continue
        rows = np.array([
            np.clip(bounds[place][0] + step + np.arange(1 - task.n_obs_steps, 1), bounds[place][0], None)
            for place in running
        ])  # fmt: skip
        seen = {key: _observed(dataset, key, rows) for key in keys}
        for place, actions in zip(running, policy.act(seen, [memories[place] for place in running]), strict=True):
            first, last = bounds[place][0] + step, bounds[place][1]
            planned[first : first + task.n_action_steps][: last - first] = actions[: last - first]
    return planned


def _observed(dataset: WindowDataset, key: str, rows: NDArray[np.int64]) -> NDArray[Any]:
    """(B, To, ...) at rows (B, To)."""
    return dataset.steps(key, rows.ravel()).reshape(*rows.shape, *dataset.shapes[key])


def _loss(policy: LearnedPolicy, dataset: WindowDataset) -> float:
    """Mean of what pre-training minimizes, over windows evenly spread."""
    generator = torch.Generator(policy.device).manual_seed(_SEED)
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), _MOST_WINDOWS)).astype(np.int64))
    losses = []
    for start in range(0, len(rows), _BATCH):
        windows = to_device(dataset.windows(rows[start : start + _BATCH]), policy.device)
        losses.append(policy.losses(windows, generator).detach().cpu())
    return float(torch.cat(losses).mean())


def _actions(stores: Sequence[EpisodeStore], chosen: Sequence[NDArray[np.int64]]) -> NDArray[Any]:
    """All of the chosen episodes, (rows, Da)."""
    pairs = [(store, int(index)) for store, rows in zip(stores, chosen, strict=True) for index in rows]
    return np.concatenate([store.read("action", index, index + 1) for store, index in pairs])


def _bounds(dataset: WindowDataset) -> list[tuple[int, int]]:
    """First row of each episode, and the one after its last."""
    ends = dataset.episode_ends.tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _metrics(found: dict[str, Any], kind: str) -> dict[str, float]:
    return {f"{kind}/loss": found["loss"], f"{kind}/action_error": found["error"]["policy"]}
