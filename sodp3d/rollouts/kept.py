"""Evaluations kept in a folder: wave by wave while they are measured, for a run that goes on, and for videos.

evaluation/<task>/
  rollouts.npz      seeds, executed actions, outcomes, and the digest of the planner that was measured
  evaluation.json   the summary, once all episodes are there

Shape letters: E episodes, T control steps of all of them together, Da actions.
"""

import io
import logging
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.core.files import disk_errors, replace_file, write_json
from sodp3d.envs.config import SUCCESS_METRICS, EnvConfig
from sodp3d.models.critic import Choice
from sodp3d.models.policy import Policy
from sodp3d.models.sampled import plans_of
from sodp3d.rollouts.evaluate import Evaluation, evaluate
from sodp3d.rollouts.rollout import Episode, Rollouts

log = logging.getLogger(__name__)
ROLLOUTS = "rollouts.npz"
_DAMAGED = (
    OSError, EOFError, LookupError, TypeError, ValueError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error
)  # fmt: skip


@dataclass(frozen=True)
class KeptRollouts:
    """What an evaluation's episodes were, enough to make them again."""

    seeds: NDArray[np.int64]  # (E,)
    ends: NDArray[np.int64]  # (E,) cumulative lengths
    actions: NDArray[np.float32]  # (T, Da)
    success: NDArray[np.bool_]  # (E, 3) by SUCCESS_METRICS
    returns: NDArray[np.float64] | None  # (E,); None in files of earlier releases
    planner: str | None  # the digest of its weights; None in files of earlier releases

    @classmethod
    def read(cls, path: Path) -> "KeptRollouts":
        """From `rollouts.npz`. Raises InputError where it is damaged."""
        try:
            # A path that np.load refuses stays open; a file does not.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
                seeds, ends, actions = data["seeds"], data["ends"], data["actions"]
                success = data["success"].astype(bool)
                returns = data.get("returns")
                planner = str(data["planner"]) if "planner" in data else None
        except _DAMAGED as error:
            raise InputError(f"{path}: damaged ({error}); remove it and evaluate again.") from error
        found = cls(seeds, ends, actions, success, returns, planner)
        found._check(path)
        return found

    def content(self) -> bytes:
        """The bytes of a file that `read` takes."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        file = io.BytesIO()
        np.savez_compressed(file, **{name: value for name, value in values.items() if value is not None})
        return file.getvalue()

    def _check(self, path: Path) -> None:
        count = len(self.seeds) if self.seeds.ndim == 1 else 0
        whole = self.seeds.dtype.kind == self.ends.dtype.kind == "i" and self.actions.dtype.kind == "f"
        shapes = self.ends.shape == (count,) and self.success.shape == (count, len(SUCCESS_METRICS))
        values = self.returns is None or (self.returns.shape == (count,) and self.returns.dtype.kind == "f")
        if not (count and whole and shapes and values and self.actions.ndim == 2):
            raise InputError(f"{path}: damaged (its arrays do not fit together); remove it and evaluate again.")
        if (np.diff(self.ends, prepend=0) < 1).any() or self.ends[-1] != len(self.actions):
            raise InputError(f"{path}: damaged (its episodes do not end where its steps do); remove it.")

    def succeeded(self, metric: str) -> NDArray[np.bool_]:
        """(E,) whether each episode did, by `final`, `count` or `any`."""
        outcomes: NDArray[np.bool_] = self.success[:, SUCCESS_METRICS.index(metric)]
        return outcomes

    def actions_of(self, episode: int) -> NDArray[np.float32]:
        """(steps, Da) of one episode, by its place."""
        return self.actions[self.ends[episode - 1] if episode else 0 : self.ends[episode]]


def evaluate_and_keep(
    policy: Policy,
    digest: str,
    config: EnvConfig,
    seeds: Sequence[int],
    folder: Path,
    rollouts: Callable[[], Rollouts],
    stopped: Callable[[], bool],
    choice: Choice | None = None,
) -> Evaluation | None:
    """`evaluate`, going on from what of it `folder` holds; None where `stopped()` ended it, between two waves.

    digest: of the planner's weights; what is kept of another's is measured again. rollouts: not called where all is
    there. choice: how it chooses among several plans.
    """
    digest = of_choice(digest, plans_of(choice))
    episodes = _kept_episodes(folder, digest, seeds)
    if episodes:
        log.info("%s: %d of %d episodes were evaluated before", config.name, len(episodes), len(seeds))
    while len(episodes) < len(seeds):
        if stopped():
            return None
        workers = rollouts()
        wave = seeds[len(episodes) : len(episodes) + workers.environments]
        episodes += evaluate(policy, workers, config, wave, choice).episodes
        _keep(episodes, digest, folder)
    found = Evaluation(config, episodes)
    write_json(folder / "evaluation.json", found.summary())
    return found


def keep_evaluation(found: Evaluation, digest: str, folder: Path, choice: Choice | None = None) -> None:
    """Keep in `folder` an evaluation that was made already, as that of the planner with this digest."""
    _keep(found.episodes, of_choice(digest, plans_of(choice)), folder)
    write_json(folder / "evaluation.json", found.summary())


def recall(digest: str, config: EnvConfig, seeds: Sequence[int], folder: Path, count: int = 1) -> Evaluation | None:
    """The evaluation on `seeds` of the planner with that digest, where `folder` holds all of it.

    count: of how many plans each was the best.
    """
    episodes = _kept_episodes(folder, of_choice(digest, count), seeds)
    return Evaluation(config, episodes) if len(episodes) == len(seeds) else None


def of_choice(digest: str, count: int) -> str:
    """What episodes are kept by: the planner's digest, and of how many plans each was the best."""
    return digest if count == 1 else f"{digest}, best of {count}"


def _keep(episodes: Sequence[Episode], digest: str, folder: Path) -> None:
    actions = [np.concatenate(episode.actions) for episode in episodes]
    kept = KeptRollouts(
        seeds=np.array([episode.seed for episode in episodes]),
        ends=np.cumsum([len(steps) for steps in actions]),
        actions=np.concatenate(actions),
        success=np.array([[episode.success[metric] for metric in SUCCESS_METRICS] for episode in episodes]),
        returns=np.array([episode.episode_return for episode in episodes]),
        planner=digest,
    )
    with disk_errors(folder, "the episodes before these are kept"):
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / ROLLOUTS, kept.content(), durable=True)


def _kept_episodes(folder: Path, digest: str, seeds: Sequence[int]) -> list[Episode]:
    """The first episodes of `seeds`, as far as they were measured with that planner, of all that are kept."""
    if not (folder / ROLLOUTS).is_file():
        return []
    try:
        kept = KeptRollouts.read(folder / ROLLOUTS)
    except InputError as error:
        log.warning("%s", error)
        return []
    known = kept.seeds.tolist()[: len(seeds)]
    if kept.planner != digest or kept.returns is None or known != list(seeds[: len(known)]):
        return []
    return [
        Episode(
            seed,
            actions=[kept.actions_of(place)],
            rewards=[np.array([kept.returns[place]])],
            success=dict(zip(SUCCESS_METRICS, kept.success[place].tolist(), strict=True)),
        )
        for place, seed in enumerate(known)
    ]
