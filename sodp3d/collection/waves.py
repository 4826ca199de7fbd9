"""Waves of episodes: workers step environments side by side, and an agent chooses the actions.

Shape letters: n running environments, T control steps, S simulator state, Ds state size, H W image.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.collection.agents import Agent
from sodp3d.collection.environments import Finished
from sodp3d.parallel import WorkerDiedError, Workers


class Waves:
    """Waves of episodes over workers, with an agent choosing the actions.

    The unfinished episodes of a worker that dies start anew, with their seeds, on a fresh one. (The agent then chooses
    other actions if it explores or learns, and what `meanwhile` did for the lost steps stays done.)
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    def run(
        self,
        agent: Agent,
        seeds: Sequence[int],
        explore: bool,
        record: bool,
        meanwhile: Callable[[int], None] = lambda steps: None,
    ) -> list[Finished]:
        """One episode per seed, in that order. `meanwhile(n)` is called while the workers make each n steps.

        What is explored follows from the first seed.

        Raises WorkerError when a call fails, and when one worker and those put in its place die `ATTEMPTS` times.
        """
        if explore:
            agent.seed_exploration(seeds[0])
        shares = [share.tolist() for share in np.array_split(np.arange(len(seeds)), len(self._workers))]
        shares = [share for share in shares if share]
        arguments = [([seeds[index] for index in share], record, agent.image_size) for share in shares]
        current: dict[int, Any] = {}
        for share, states in zip(shares, self._workers.call("reset", arguments), strict=True):
            current |= dict(zip(share, states, strict=True))
        finished: dict[int, Finished] = {}
        deaths = [0] * len(shares)
        while current:
            actions = dict(zip(current, agent.act(_stacked(list(current.values())), explore), strict=True))
            busy = [(worker, [index for index in share if index in current]) for worker, share in enumerate(shares)]
            busy = [(worker, indices) for worker, indices in busy if indices]
            for worker, indices in busy:
                self._workers.start(worker, "step", np.stack([actions[index] for index in indices]))
            meanwhile(len(current))
            for worker, indices in busy:
                try:
                    states, results = self._workers.result(worker)
                except WorkerDiedError as error:
                    again = ([seeds[index] for index in indices], record, agent.image_size)
                    states = self._workers.start_anew(worker, error, deaths, len(indices), "reset", *again)
                    results = [None] * len(indices)
                for index, state, result in zip(indices, states, results, strict=True):
                    current[index] = state
                    if result is not None:
                        finished[index] = result
                        del current[index]
        return [finished[index] for index in range(len(seeds))]

    def draw(self, sim_states: NDArray[np.float64], image_size: int) -> NDArray[np.uint8]:
        """Images (T, 3, H, W) of simulator states (T, S), drawn by all workers together."""
        shares = [share for share in np.array_split(sim_states, len(self._workers)) if len(share)]
        return np.concatenate(self._workers.call("draw", [(share, image_size) for share in shares]))


def _stacked(observations: Sequence[Any]) -> Any:
    """Observations of n environments as one: (n, Ds), or a dictionary of such arrays."""
    if isinstance(observations[0], dict):
        return {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}
    return np.stack(observations)
