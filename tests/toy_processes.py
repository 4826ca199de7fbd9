"""What one of several processes does in test_processes.py: a few steps of every method, and a part of a run.

python toy_processes.py <folder>, begun once for each process with the variables that a launcher gives.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from test_mapped_training import OPTIONS, Unmeasured, cloud_store
from toy_methods import METHODS, fresh

from sodp3d.core.cli import compose
from sodp3d.core.following import Follower
from sodp3d.core.run import Run
from sodp3d.envs.config import task_configs
from sodp3d.learning.lookup import with_sampler
from sodp3d.learning.mixture import Mixture
from sodp3d.learning.pretrain import Pretraining, pretrain
from sodp3d.learning.processes import Alone, join
from sodp3d.learning.windows import to_device
from sodp3d.settings import PretrainSettings

CPU, BATCH, STEPS = torch.device("cpu"), 16, 6
MORE = "pretrain.augment.jitter=0.01 pretrain.augment.dropout=0.3 pretrain.augment.rotation=5 pretrain.warmup_steps=1"


def learned(folder: Path, method: str, processes: Alone) -> dict[str, torch.Tensor]:
    """Weights after three steps on two tasks, and the sums of each task's losses."""
    policy, dataset, config, _ = fresh(folder, method, "model.dropout=0.0" if method == "mtdiff" else "seed=0")
    settings = PretrainSettings(**{**config["pretrain"], "schedule": "constant", "warmup_steps": 0})
    mixture = Mixture(dataset, "tasks")
    training = Pretraining(policy, settings, 0, mixture.tasks, processes)
    for _ in range(3):
        windows, places = mixture.sample(BATCH, training.batches, processes.rows(BATCH))
        training.update(to_device(windows, CPU), places)
    assert all(parameter.grad is not None for parameter in policy.parameters())  # or averaging would fail
    sums = {"of_tasks": torch.from_numpy(training.of_tasks.sums)}
    return {**{name: value.clone() for name, value in policy.state_dict().items()}, **sums}


def run_until(step: int, folder: Path, name: str, processes: Alone) -> None:
    """Begin a run, or go on with it, until the main process is asked to stop at that step."""
    batch = f"pretrain.steps={STEPS} pretrain.batch_size=4 data={folder}"
    config = with_sampler(compose("train", [*OPTIONS.split(), *MORE.split(), *batch.split()]))
    directory, log = folder / name, Run.log

    def stopping(run: Run, at: int, metrics: dict[str, float], total: int | None = None) -> None:
        log(run, at, metrics, total)
        run.stop_requested = at >= step

    measurements: Any = Unmeasured() if processes.main else None
    Run.log = stopping  # type: ignore[method-assign]
    try:
        with Run(directory, config) if processes.main else Follower(directory) as run:
            pretrain(config, run, task_configs(config), CPU, measurements, processes)
    finally:
        Run.log = log  # type: ignore[method-assign]


def make_clouds(folder: Path) -> None:
    """The store that `run_until` learns from."""
    cloud_store(folder / "episodes.zarr", task_configs(compose("train", OPTIONS.split()))[0])


def main() -> None:
    """Everything, in one process of several."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    with join(CPU) as processes:
        assert processes.any(not processes.main) and not processes.any(False)
        assert processes.told("main" if processes.main else None) == "main"
        for method in METHODS:
            save_file(learned(folder, method, processes), folder / f"{method}-{processes.index}.safetensors")
        torch.manual_seed(0)
        processes.draw_apart(0, 4)
        save_file({"drawn": torch.rand(3)}, folder / f"apart-{processes.index}.safetensors")
        run_until(4, folder, "shared", processes)


if __name__ == "__main__":
    main()
