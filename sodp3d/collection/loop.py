"""The collection loop: an agent learns, and every finished episode is committed to the store at once.

data/<env>/
  episodes.zarr    what is kept (sodp3d.data.store)
  agent/           run directory of the agent that made it: configuration, metrics, checkpoints

Workers step environments and render while the learner updates. Episodes run in waves (as many at once as there are
environments), and checkpoints fall between waves, so that a stopped and continued collection equals an unstopped one.
A killed one loses at most the wave in flight and what was learned since the checkpoint: the episodes committed after
it are fed back to the agent from the store.

Shape letters: n running environments, Ds state size, Da action size.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.collection.agents import Agent
from sodp3d.collection.agents.memory import Trajectory
from sodp3d.collection.environments import Finished
from sodp3d.collection.waves import Waves
from sodp3d.core import checkpoint
from sodp3d.core.errors import InputError
from sodp3d.core.run import Run
from sodp3d.core.seeds import COLLECTION, episode_seed
from sodp3d.data.attributes import PRIOR, SCRIPTED
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import SUCCESS_METRICS
from sodp3d.parallel import Workers
from sodp3d.settings import CollectSettings

_OFFLINE_BLOCK = 100  # stage-2 updates between two looks at whether to stop
_OFFLINE_CHECKPOINT = 2000  # and between two checkpoints


class Collection:
    """One task's collection: agent, store, run directory and workers put together. Call `run_all`."""

    def __init__(
        self, agent: Agent, store: EpisodeStore, run: Run, workers: Workers, settings: CollectSettings, seed: int
    ) -> None:
        self.agent, self.store, self.run, self.settings, self.seed = agent, store, run, settings, seed
        self.waves = Waves(workers)
        self.offline_total = agent.offline_left
        self._scripted = getattr(agent, "scripted_episodes", 0)  # agents of earlier releases' plug-ins do not tell
        self._update_debt = 0.0  # updates owed for steps made, below one
        self._last_checkpoint = self._last_evaluation = 0
        self._metrics: list[dict[str, float]] = []

    @property
    def steps_done(self) -> int:
        """Agent steps committed to the store."""
        return self.store.steps

    def run_all(self) -> None:
        """Stage 2, then stage 3 up to the asked number of steps, or to a stop."""
        self._resume()
        self._learn_offline()
        while True:
            if self._due(self.settings.evaluate_every, self._last_evaluation):  # at once where a kill prevented it
                self._evaluate()
            if self._due(self.settings.checkpoint_every, self._last_checkpoint):
                self._save()
            if self.steps_done >= self.settings.steps or self.run.stop_requested:
                break
            self._wave()
        self._save()

    # ---- stages -----------------------------------------------------------------------------------------------------

    def _learn_offline(self) -> None:
        """Stage 2. Its metrics are logged at the steps -updates .. 0, so that agent steps start at 0."""
        if not self.agent.offline_left:
            return
        saved = self.agent.offline_left
        while self.agent.offline_left and not self.run.stop_requested:
            metrics = self.agent.update(min(_OFFLINE_BLOCK, self.agent.offline_left), offline=True)
            self.run.log(-self.agent.offline_left, _named("offline", metrics), 0)
            # The last is saved when it has been evaluated: a run killed before that does both again.
            if self.agent.offline_left and saved - self.agent.offline_left >= _OFFLINE_CHECKPOINT:
                self._save()
                saved = self.agent.offline_left
        if not self.agent.offline_left and self.settings.evaluate_every:
            self._evaluate()
        self._save()

    def _wave(self) -> None:
        """One wave of episodes: explore, learn meanwhile, commit, take in."""
        left = -(-(self.settings.steps - self.steps_done) // self.store.attributes["env_config"]["episode_steps"])
        first = len(self.store)
        count = min(self.settings.environments, left)
        if first < self._scripted:  # a wave is the expert's or the agent's own, never both
            count = min(count, self._scripted - first)
        seeds = [episode_seed(self.seed, COLLECTION, first + index) for index in range(count)]
        self._metrics = []
        episodes = self.waves.run(self.agent, seeds, explore=True, record=True, meanwhile=self._learn)
        for episode in episodes:
            self.store.append(episode.steps, metadata(episode, self.steps_done + len(episode.actions)))
            self.agent.observe(trajectory(episode))
        self._label()
        learned = {key: float(np.mean([m[key] for m in self._metrics if key in m])) for key in _keys(self._metrics)}
        self.run.log(self.steps_done, rates("train", episodes) | _named("train", learned), self.settings.steps)

    def _label(self) -> None:
        """Write into the store how many of its first episodes are an expert's, and at which agent step they end."""
        episodes = min(self._scripted, len(self.store))
        if episodes:
            prior = {"kind": SCRIPTED, "episodes": episodes, "steps": int(self.store.episode_ends[episodes - 1])}
            if self.store.attributes.get(PRIOR) != prior:
                self.store.update_attributes({PRIOR: prior})

    def _learn(self, steps: int) -> None:
        self._update_debt += steps * self.agent.updates_per_step
        count = int(self._update_debt)
        self._update_debt -= count
        metrics = self.agent.update(count)
        if metrics:
            self._metrics.append(metrics)

    def _evaluate(self) -> None:
        """Deterministic roll-outs on held-out seeds, without rendering."""
        first, count = self.settings.evaluation_seed, self.settings.evaluation_episodes
        episodes: list[Finished] = []
        for start in range(first, first + count, self.settings.environments):
            seeds = range(start, min(start + self.settings.environments, first + count))
            episodes += self.waves.run(self.agent, seeds, explore=False, record=False)
        self._last_evaluation = self.steps_done
        self.run.log(self.steps_done, rates("evaluation", episodes), self.settings.steps)

    def _due(self, every: int, last: int) -> bool:
        return every > 0 and (self.steps_done // every > last // every or self.steps_done >= self.settings.steps > last)

    # ---- state ------------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Checkpoint agent and loop, numbered by stage-2 updates and agent steps together."""
        tensors, state = self.agent.state()
        loop = {
            "episodes": len(self.store),
            "steps": self.steps_done,
            "update_debt": self._update_debt,
            "last_evaluation": self._last_evaluation,
            "offline_total": self.offline_total,
        }
        progress = self.offline_total - self.agent.offline_left + self.steps_done
        checkpoint.save(self.run.checkpoints, progress, tensors, {"agent": state, "loop": loop})
        self._last_checkpoint = self.steps_done

    def _resume(self) -> None:
        """Load the newest checkpoint and take in the episodes that were committed after it."""
        found = checkpoint.load_latest(self.run.checkpoints)
        seen = 0
        if found is not None:
            step, tensors, state = found
            with checkpoint.restoring(checkpoint.path_of(self.run.checkpoints, step)):
                loop = state["loop"]
                self.agent.load_state(tensors, state["agent"])
                self._update_debt, self.offline_total = float(loop["update_debt"]), int(loop["offline_total"])
                self._last_evaluation, seen = int(loop["last_evaluation"]), int(loop["episodes"])
            if seen > len(self.store):
                raise InputError(
                    f"{self.run.directory}: its checkpoint knows {seen} episodes, but {self.store.path} holds only "
                    f"{len(self.store)}. Restore the store, or collect into another folder with data=."
                )
        steps_seen = int(self.store.episode_ends[seen - 1]) if seen else -self.agent.offline_left
        self.run.rewind(steps_seen)
        self._last_evaluation = max(self._last_evaluation, self._logged_evaluation())
        for index in range(seen, len(self.store)):
            self.agent.observe(self._stored(index))
            self.run.log(int(self.store.episode_ends[index]), _stored_rates(self.store, index), self.settings.steps)
        self._label()
        self._last_checkpoint = max(steps_seen, 0)

    def _logged_evaluation(self) -> int:
        """Agent steps at the newest logged evaluation: no checkpoint knows one that was made after the last of them."""
        steps = [
            record["step"] for record in self.run.metrics() if any(key.startswith("evaluation/") for key in record)
        ]
        return int(max(steps, default=0))

    def _stored(self, index: int) -> Trajectory:
        """A committed episode as the agent saw it; images are drawn again."""
        if self.agent.image_size is None:
            return stored_trajectory(self.store, index)
        images = self.waves.draw(self.store.read("sim_state", index, index + 1), self.agent.image_size)
        return stored_trajectory(self.store, index, images)


# ---- what is kept and logged of an episode --------------------------------------------------------------------------


def trajectory(episode: Finished) -> Trajectory:
    """What the agent learns from."""
    states, images = episode.seen.get("agent_pos", episode.states), episode.seen.get("image")
    return Trajectory(states, episode.actions, episode.rewards, episode.terminated, images)


def metadata(episode: Finished, agent_step: int) -> dict[str, Any]:
    """What the store keeps per episode; agent_step counts up to and including the episode."""
    success = {f"success_{metric}": episode.success[metric] for metric in SUCCESS_METRICS}
    return {"seed": episode.seed, "agent_step": agent_step, "episode_return": episode.episode_return, **success}


def stored_trajectory(store: EpisodeStore, index: int, images: NDArray[np.uint8] | None = None) -> Trajectory:
    """A committed episode for the agent. The state after its last action is not in the store.

    An episode shorter than the time limit was terminated by the task: its last state has no value, so any will do.
    images (T, 3, H, W): of its steps, for an agent that sees them.
    """
    key = "state" if images is None else "agent_pos"
    steps = store.episode(index, (key, "action", "reward"))
    states = steps[key]
    terminated = len(states) < store.attributes["env_config"]["episode_steps"]
    if terminated:
        states = np.concatenate([states, states[-1:]])
        images = None if images is None else np.concatenate([images, images[-1:]])
    return Trajectory(states, steps["action"], steps["reward"], terminated, images)


def rates(stage: str, episodes: Sequence[Finished]) -> dict[str, float]:
    """Mean return and success rates of episodes, by name."""
    metrics = {f"{stage}/return": float(np.mean([episode.episode_return for episode in episodes]))}
    for metric in SUCCESS_METRICS:
        metrics[f"{stage}/success_{metric}"] = float(np.mean([episode.success[metric] for episode in episodes]))
    return metrics


def _stored_rates(store: EpisodeStore, index: int) -> dict[str, float]:
    kept = store.metadata
    metrics = {"train/return": float(kept["episode_return"][index])}
    return metrics | {f"train/success_{m}": float(kept[f"success_{m}"][index]) for m in SUCCESS_METRICS}


def _named(stage: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{stage}/{key}": value for key, value in metrics.items()}


def _keys(records: Sequence[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(key for record in records for key in record))
