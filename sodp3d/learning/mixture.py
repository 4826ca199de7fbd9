"""How windows of several tasks are mixed into batches, and the loss of each task on its own.

The planner is told no task (paper, section 3.1): names are used here alone, to draw and to report.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sodp3d.data.dataset import WindowDataset


class Mixture:
    """Batches from a data set of one or several tasks.

    balance: "steps" draws each window as likely, so that a task counts by its steps; "tasks" each task as often.
    """

    def __init__(self, dataset: WindowDataset, balance: str) -> None:
        self.dataset = dataset
        self.tasks = tuple(dict.fromkeys(dataset.tasks))
        self._task_of_store = np.array([self.tasks.index(name) for name in dataset.tasks])
        self._shares = self._equal_shares() if balance == "tasks" else None

    def sample(
        self, batch_size: int, generator: np.random.Generator, rows: slice = slice(None)
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
        """Windows as `WindowDataset.windows`, of these rows; and the place (B,) in `tasks` that each of all is of."""
        current = self.dataset.draw(batch_size, generator, self._shares)
        return self.dataset.windows(current[rows]), self._task_of_store[self.dataset.store_of(current)]

    def _equal_shares(self) -> NDArray[np.float64]:
        """(S,) how often each store is drawn from: tasks equally often, and the stores of one by their steps."""
        steps = np.diff(self.dataset.store_ends, prepend=0)
        of_task = np.bincount(self._task_of_store, weights=steps)[self._task_of_store]
        return steps / of_task / len(self.tasks)


class TaskLosses:
    """Mean loss of each task since the last line of the log; of a single task there is nothing to tell."""

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = tuple(tasks)
        self.sums, self.counts = self._zeros()

    def _zeros(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        return np.zeros(len(self.tasks)), np.zeros(len(self.tasks), np.int64)

    def add(self, losses: Tensor, places: NDArray[np.int64]) -> None:
        """Losses (B,) of windows of the tasks at `places` (B,)."""
        if len(self.tasks) > 1:
            self.sums += np.bincount(places, losses.cpu().numpy(), len(self.tasks))
            self.counts += np.bincount(places, minlength=len(self.tasks))

    def take(self) -> dict[str, float]:
        """Names to log with their means, of the tasks that were drawn; then it begins anew."""
        drawn = zip(self.tasks, self.sums, self.counts, strict=True)
        found = {f"train_loss/{task}": float(total / count) for task, total, count in drawn if count}
        self.sums, self.counts = self._zeros()
        return found

    def state(self) -> dict[str, Any]:
        """What a checkpoint notes."""
        return {"sums": self.sums.tolist(), "counts": self.counts.tolist()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on as noted. Raises ValueError, LookupError or TypeError for what was not noted of these tasks."""
        sums, counts = np.array(state["sums"], np.float64), np.array(state["counts"], np.int64)
        if sums.shape != self.sums.shape or counts.shape != self.counts.shape:
            raise ValueError(f"losses of {len(sums)} tasks, not of {len(self.tasks)}")
        self.sums, self.counts = sums, counts
