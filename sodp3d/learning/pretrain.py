"""Pre-training: fit a policy to windows of all tasks' episodes, whatever its method.

A planner is shown observations and actions: no rewards, no task labels (paper, eq. 7). Other methods may ask for more.
"""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sodp3d.core import checkpoint, launch
from sodp3d.core.errors import InputError
from sodp3d.core.machine import Pace, free_bytes
from sodp3d.core.run import Run
from sodp3d.data.dataset import WindowDataset
from sodp3d.data.hashing import Identity
from sodp3d.envs.config import RECORDED, EnvConfig
from sodp3d.learning.augmentation import augmented
from sodp3d.learning.checks import require_finite
from sodp3d.learning.ema import EMA
from sodp3d.learning.measuring import Measurements
from sodp3d.learning.mixture import Mixture, TaskLosses
from sodp3d.learning.processes import Alone
from sodp3d.learning.telling import StateTelling
from sodp3d.learning.windows import load_data, to_device
from sodp3d.models.capture import capture
from sodp3d.models.loading import make_policy, planner_state
from sodp3d.models.policy import LearnedPolicy, method_class
from sodp3d.settings import PretrainSettings, TrainSettings
from sodp3d.vision.sensors import sensor

log = logging.getLogger(__name__)
Drawn = tuple[dict[str, Tensor], NDArray[np.int64] | None]


class Pretraining:
    """All that changes while pre-training, so that saving it and loading it leaves no trace in the result.

    It is the same in each of several processes, and nothing of it depends on how many they are.
    """

    name: ClassVar[str] = "pretrain"  # in messages

    def __init__(
        self,
        planner: LearnedPolicy,
        settings: PretrainSettings,
        seed: int,
        tasks: Sequence[str] = (),
        processes: Alone | None = None,
        telling: StateTelling | None = None,
    ):
        """telling: what `planner` learns within, where its encoder is to tell states too."""
        self.planner = planner
        self.telling = telling
        self.settings = settings
        self.processes = processes or Alone(planner.device)
        self.bfloat16 = settings.precision == "bfloat16"
        self.ema = EMA(planner)
        if settings.compile:  # after the copy for EMA, which plans seldom
            for part in planner.compiled:
                getattr(planner, part).compile()
        learner = planner if telling is None else telling
        self._own_losses = self.processes.losses(learner)
        learned = [parameter for parameter in learner.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(learned, lr=settings.learning_rate, fused=True)
        self.batches = np.random.default_rng(seed)
        self.noise = self.processes.generator(seed)
        self.step = 0
        self.recent: list[float] = []  # losses since the last line of the log
        self.of_tasks = TaskLosses(tasks)

    def losses(self, batch: dict[str, Tensor]) -> Tensor:
        """Of each of this process's windows: the method's own."""
        return self._own_losses(batch, self.noise)

    def update(self, batch: dict[str, Tensor], places: NDArray[np.int64] | None = None) -> Tensor:
        """One gradient step on this process's windows of a batch; returns the loss of the whole.

        places: (B,) of the tasks of all windows, where there are several. Raises FloatingPointError where the loss is
        not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, self.step)
        batch = augmented(batch, self.settings.augment, self.noise)
        with torch.autocast(self.planner.device.type, torch.bfloat16, enabled=self.bfloat16):
            losses = self.losses(batch)
        of_all = self.processes.gathered(losses.detach())
        loss = of_all.mean()
        require_finite({"loss": loss}, f"{self.name}: at step {self.step}")
        self.optimizer.zero_grad(set_to_none=True)
        losses.mean().backward()
        self.optimizer.step()
        self.ema.update(self.planner)
        self.step += 1
        if places is not None:
            self.of_tasks.add(of_all, places)
        return loss

    def save(self, run: Run, state: dict[str, Any]) -> None:
        """Publish a checkpoint of everything, by the main process. Raises FloatingPointError for weights not finite."""
        total = torch.stack([parameter.detach().abs().sum() for parameter in self.planner.parameters()]).sum()
        require_finite({"sum of the weights": total}, f"{self.name}: at step {self.step}")
        if not self.processes.main:
            return
        tensors = {
            **checkpoint.with_prefix("planner", self.planner.state_dict()),
            **checkpoint.with_prefix("ema", self.ema.planner.state_dict()),
            **checkpoint.with_prefix("optimizer", checkpoint.optimizer_tensors(self.optimizer)),
            "noise": self.noise.get_state(),
            "dropout": _global_noise(self.planner.device).get_state(),
        }
        if self.telling is not None:
            tensors |= checkpoint.with_prefix("telling", self.telling.head.state_dict())
        own = {"batches": self.batches.bit_generator.state, "recent": self.recent, "of_tasks": self.of_tasks.state()}
        checkpoint.save(run.checkpoints, self.step, tensors, {**state, **own})

    def load(self, run: Run, data: Identity) -> str:
        """Continue from the newest checkpoint, if there is one; the hash under which the data is noted.

        A run keeps the hash that it began with, also one of an earlier release. Raises InputError where the data has
        changed since.
        """
        found = checkpoint.load_latest(run.checkpoints)
        if found is None:
            return data.current
        self.step, tensors, state = found
        with checkpoint.restoring(checkpoint.path_of(run.checkpoints, self.step)):
            agreeing = data.agreeing_with(state["data_hash"])
            if agreeing is None:
                raise InputError(
                    f"data: {run.directory} began with data {state['data_hash']}, but now there is {data.current}; "
                    "give the data that it began with (data=), or begin anew with run_dir=<a new folder>."
                )
            self._restore(tensors, state)
        log.info("resumed at step %d", self.step)
        return agreeing

    def _restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        self.planner.load_state_dict(checkpoint.without_prefix("planner", tensors))
        self.ema.planner.load_state_dict(checkpoint.without_prefix("ema", tensors))
        self.ema.step = self.step
        if self.telling is not None:
            self.telling.head.load_state_dict(checkpoint.without_prefix("telling", tensors))
        checkpoint.load_optimizer(self.optimizer, checkpoint.without_prefix("optimizer", tensors))
        checkpoint.restore_generator(self.noise, tensors["noise"])
        if "dropout" in tensors:  # runs of earlier releases are of planners, which drop nothing out
            checkpoint.restore_generator(_global_noise(self.planner.device), tensors["dropout"])
        self.batches.bit_generator.state = state["batches"]
        self.recent = [float(loss) for loss in state.get("recent", [])]
        if "of_tasks" in state:  # it is younger than the format
            self.of_tasks.load_state(state["of_tasks"])


def _global_noise(device: torch.device) -> torch.Generator:
    """PyTorch's own random stream, of which modules such as dropout draw."""
    if device.type == "cuda":
        return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    return torch.default_generator


def check_acceleration(settings: PretrainSettings, device: torch.device) -> None:
    """Raises InputError for options that the CPU's own kernels do not know."""
    if device.type == "cpu" and (settings.precision != "float32" or settings.compile):
        raise InputError("pretrain.precision=bfloat16 and pretrain.compile are for CUDA; leave them out on the CPU.")


def learning_rate(settings: PretrainSettings, step: int) -> float:
    """Linear warm-up, then constant (paper) or half a cosine down to 0 at the last step (DP3)."""
    warm = min(1.0, (step + 1) / max(settings.warmup_steps, 1))
    if settings.schedule == "constant":
        return settings.learning_rate * warm
    return settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


def pretrain(
    config: dict[str, Any],
    run: Run,
    tasks: list[EnvConfig],
    device: torch.device,
    measurements: Measurements | None,
    processes: Alone | None = None,
) -> dict[str, Any] | None:
    """Pre-train on the stores of `tasks`, look at validation seeds on the way, and test at the end.

    processes: those that do it together. measurements: None in those that only learn. Returns the run's result, None
    in those, and where it was stopped before its end. Raises Stopped where that was in a measurement of several tasks;
    then all is saved.
    """
    whole = TrainSettings.from_config(config)
    settings = whole.pretrain
    processes = processes or Alone(device)
    with processes.main_first():
        dataset, data = load_data(config, tasks, _memory_limit(processes))
    planner = new_policy(config, tasks, dataset).to(device)
    parameters = sum(parameter.numel() for parameter in planner.parameters()) / 1e6
    log.info("%d windows of %d episodes; %.2f M parameters", len(dataset), len(dataset.episode_ends), parameters)
    mixture = Mixture(dataset, settings.balance)
    telling = StateTelling(planner, dataset, settings.state_weight).to(device) if settings.state_weight else None
    training = Pretraining(planner, settings, whole.common.seed, mixture.tasks, processes, telling)
    if whole.evaluation.compile:
        capture(training.ema.planner)
    digest = training.load(run, data)
    rows = processes.rows(settings.batch_size)

    def drawn(batches: np.random.Generator) -> Drawn:
        windows, places = mixture.sample(settings.batch_size, batches, rows)
        return to_device(windows, processes.device), places

    processes.draw_apart(whole.common.seed, training.step)
    return fit(training, run, planner_state(planner, tasks, digest), drawn, measurements)


def fit(
    training: Pretraining,
    run: Run,
    state: dict[str, Any],
    drawn: Callable[[np.random.Generator], Drawn],
    measurements: Measurements | None,
) -> dict[str, Any] | None:
    """Take the steps that are left, and test at the end; all that `training.settings` says.

    state: what each checkpoint says of the policy. drawn: this process's windows of a batch, and of which tasks all of
    them are. Returns and raises as `pretrain`.
    """
    run.rewind(training.step)
    _learn(training, run, state, drawn, measurements)
    training.processes.part()
    if training.step < training.settings.steps or measurements is None:
        return None
    found = measurements.test(training.ema.planner, run)
    if found is None:
        return None
    metrics, told = found
    run.log_once(training.step, metrics)
    return {"steps": training.step, **told}


def _learn(
    training: Pretraining,
    run: Run,
    state: dict[str, Any],
    drawn: Callable[[np.random.Generator], Drawn],
    measurements: Measurements | None,
) -> None:
    """Take steps until all are done or any process is to stop; all that was learned is saved."""
    settings, processes, pace = training.settings, training.processes, Pace(training.name)
    while True:
        if measurements is not None and not run.stop_requested and _look_is_due(settings, training.step, run):
            training.save(run, state)  # what is measured, and what a stop or a kill meanwhile comes back to
            run.log(training.step, measurements.validate(training.ema.planner, run))
        if training.step >= settings.steps or processes.any(run.stop_requested):
            break
        batch, places = drawn(training.batches)
        pace.begin()
        training.recent.append(float(training.update(batch, places)))
        pace.end()
        step, last = training.step, training.step == settings.steps
        if step % settings.log_every == 0 or last:
            losses = {"train/loss": float(np.mean(training.recent)), **training.of_tasks.take()}
            run.log(step, losses, total=settings.steps)
            training.recent.clear()
        if step % settings.checkpoint_every == 0 or last:
            training.save(run, state)
    if training.step < settings.steps:
        training.save(run, state)


def _memory_limit(processes: Alone) -> int:
    """Bytes for windows: the main process, which loads first, leaves as much to each of the others beside it."""
    return free_bytes() // (launch.on_this_machine() if processes.main else 1)


def _look_is_due(settings: PretrainSettings, step: int, run: Run) -> bool:
    """Whether validation seeds are to be looked at after `step`, and were not yet before a stop or a kill."""
    every = settings.evaluate_every
    if not every or step == 0 or step % every or step >= settings.steps:
        return False
    return not any(
        record["step"] == step and any(name.startswith("validation/") for name in record) for record in run.metrics()
    )


def new_policy(config: dict[str, Any], tasks: list[EnvConfig], dataset: WindowDataset) -> Any:
    """A policy of the method with fresh weights (from `seed`), shaped and normalized by the data."""
    torch.manual_seed(config["seed"])
    shapes = dataset.shapes
    settings, task = TrainSettings.from_config(config), tasks[0]
    seen, method = sensor(settings.obs.name), method_class(config["method"])
    shared = {
        "observation": settings.obs.name,
        "sensor_shape": shapes[seen.key],
        "proprioception_size": shapes["agent_pos"][0],
        "action_size": shapes["action"][0],
        "n_obs_steps": task.n_obs_steps,
        "horizon": task.horizon,
        "n_action_steps": task.n_action_steps,
        "renderer": config["render"] if seen.one_renderer and task.family != RECORDED else None,
        "encoder": settings.model.encoder,
        "method": config["method"],
    }
    policy = make_policy(method.configured(shared, [one.name for one in tasks], settings))
    policy.prepare(dataset)
    return policy
