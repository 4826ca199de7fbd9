"""Distillation: a student learns to plan in one or two steps as a planner does that takes more.

The student samples as it will be used: its own sampler is what is learned through. For an observation it makes several
plans, the teacher one, by whatever sampler the teacher works best with. The loss is the energy score, which is least
where the student's plans are spread as the teacher's (Gneiting and Raftery 2007, section 4.3); no plan is paired with
another by its noise. A student of two steps is scored on both of its drafts: that made of pure noise, and that made of
the first draft, noised again to half of the denoising steps.

Shape letters: B batch, M plans of one observation, K'+1 latents, Tp planned steps, Da action size, F features.
"""

import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sodp3d.core.run import Run
from sodp3d.data.dataset import WindowDataset
from sodp3d.data.hashing import identify
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import EnvConfig
from sodp3d.learning.measuring import Measurements
from sodp3d.learning.pretrain import Drawn, Pretraining, fit
from sodp3d.learning.windows import to_device
from sodp3d.models.critic import Choice
from sodp3d.models.loading import planner_state
from sodp3d.models.planner import Planner
from sodp3d.settings import TrainSettings
from sodp3d.vision.sensors import sensor

log = logging.getLogger(__name__)
_AT_ONCE = 512  # observations that are encoded together
_ROUNDS = 20  # of planning, of which the median is told


def new_student(teacher: Planner, steps: int) -> Planner:
    """A planner of `steps` steps that begins with the teacher's weights and learns all but the encoder.

    It predicts clean plans, also where the teacher predicts noise: from pure noise, which the first step begins with,
    the noise itself says nothing of the plan. With eta 1 its second step begins with fresh noise.
    """
    config = replace(teacher.config, prediction="sample", inference_steps=steps, distilled=steps)
    student = Planner(replace(config, eta=1.0, sigma_floor=0.0))
    student.load_state_dict(teacher.state_dict())
    student.encoder.requires_grad_(False)
    return student.to(teacher.device)


def energy_scores(plans: Tensor, targets: Tensor) -> Tensor:
    """Energy score (B,) of plans (B, M, Tp, Da) that are to be spread as the targets (B, N, Tp, Da), M at least 2.

    E|plan - target| - E|plan - another plan| / 2, of root mean squares over a plan's elements, without bias.
    """
    drawn, wanted = plans.flatten(2), targets.flatten(2)
    exactly = "donot_use_mm_for_euclid_dist"
    apart = torch.cdist(drawn, wanted, compute_mode=exactly).mean((1, 2))
    count = drawn.shape[1]
    spread = torch.cdist(drawn, drawn, compute_mode=exactly).sum((1, 2)) / (count * (count - 1))
    return (apart - spread / 2) / drawn.shape[2] ** 0.5


def drafts(student: Planner, features: Tensor, noise: Tensor) -> list[Tensor]:
    """The clean plans (B, M, Tp, Da) that each step of the student's sampler predicts, not clipped yet.

    features (B, F), noise (B, M, K'+1, Tp, Da). Steps are learned one by one: no gradient goes from one to another.
    """
    size, count = noise.shape[:2]
    noise = noise.flatten(0, 1)
    observed = [part.repeat_interleave(count, dim=0) for part in student.unet.observe(features)]
    latent, found = noise[:, 0], []
    for index in range(student.config.inference_steps):
        step = torch.tensor([index], device=noise.device)
        clean = student.unet(latent, student.diffusion.timesteps[step], observed)
        found.append(clean.unflatten(0, (size, count)))
        mean, sigma = student.diffusion.ddim_moments(clean.detach(), latent, step, student.config.eta)
        latent = mean + sigma * noise[:, index + 1]
    return found


@dataclass(frozen=True)
class Teacher:
    """A planner, with its sampler and its choice among several plans."""

    planner: Planner
    choice: Choice | None = None

    @torch.no_grad()
    def plans(self, features: Tensor, elapsed: Tensor, generator: torch.Generator) -> Tensor:
        """One plan of each observation, (B, Tp, Da) normalized. features (B, F), elapsed (B,) of the time limit."""
        count = self.choice.count if self.choice else 1
        noise = self.planner.noise(len(features) * count, generator)
        if self.choice is None:
            chain = self.planner.sample_chain(features, noise, self.planner.sampler)
        else:
            several = noise.unflatten(0, (len(features), count))
            chain = self.choice.sample(self.planner, features, elapsed, several, self.planner.sampler)
        return chain.latents[:, -1].clamp(-1, 1)


class Distillation(Pretraining):
    """The trainer, with what a student learns from."""

    name: ClassVar[str] = "distill"

    def __init__(self, teacher: Teacher, settings: TrainSettings) -> None:
        student = new_student(teacher.planner, settings.distill.steps)
        super().__init__(student, settings.distill.training, settings.common.seed)
        self.student, self.teacher, self.plans = student, teacher, settings.distill.plans

    def losses(self, batch: dict[str, Tensor]) -> Tensor:
        """Energy score (B,) of the student's drafts. batch: "features" (B, F), "elapsed" (B,)."""
        features = batch["features"]
        targets = self.teacher.plans(features, batch["elapsed"], self.noise)[:, None]
        noise = self.student.noise(len(features) * self.plans, self.noise).unflatten(0, (-1, self.plans))
        scores = [energy_scores(draft, targets) for draft in drafts(self.student, features, noise)]
        return torch.stack(scores).mean(0)


def distill(
    settings: TrainSettings,
    run: Run,
    teacher: Teacher,
    task: EnvConfig,
    stores: Sequence[EpisodeStore],
    measurements: Measurements,
) -> dict[str, Any] | None:
    """Teach a student on all observations of the stores and test it. Returns and raises as `pretrain`."""
    planner = teacher.planner
    seen = sensor(planner.config.observation)
    keys, half = ["agent_pos", seen.key], [seen.key] if seen.half else []
    steps = task.horizon, task.n_obs_steps, task.n_action_steps
    dataset = WindowDataset(stores, keys, *steps, memory=settings.pretrain.memory, half=half)
    observed = observe_all(planner, dataset, task)
    training = Distillation(teacher, settings)
    digest = training.load(run, dataset.data or identify(stores, keys))
    log.info(
        "%d observations; %d steps there, %d here", len(dataset), planner.config.inference_steps, settings.distill.steps
    )

    def draw(batches: np.random.Generator) -> Drawn:
        chosen = torch.from_numpy(dataset.draw(settings.distill.batch_size, batches)).to(planner.device)
        return {key: values[chosen] for key, values in observed.items()}, None

    result = fit(training, run, planner_state(training.student, [task], digest), draw, measurements)
    if result is None:
        return None
    student, shown = training.ema.planner, dataset.windows(np.arange(50) % len(dataset))
    assert isinstance(student, Planner)
    seconds = {
        "before": plan_seconds(planner, shown, teacher.choice),
        "after": plan_seconds(student, shown),
    }
    log.info("seconds for one plan: %.4f before, %.4f now", seconds["before"]["1"], seconds["after"]["1"])
    return {**result, "plan_seconds": seconds}


@torch.no_grad()
def observe_all(planner: Planner, dataset: WindowDataset, task: EnvConfig) -> dict[str, Tensor]:
    """What every window shows: "features" (windows, F), and "elapsed" (windows,), the share of the time limit."""
    rows = np.arange(len(dataset))
    parts = [
        planner.encode(to_device(dataset.windows(some), planner.device))
        for some in np.split(rows, range(_AT_ONCE, len(rows), _AT_ONCE))
    ]
    starts = np.concatenate([[0], dataset.episode_ends[:-1]])
    elapsed = (rows - np.repeat(starts, np.diff(dataset.episode_ends, prepend=0))) / task.episode_steps
    return {"features": torch.cat(parts), "elapsed": torch.as_tensor(elapsed).to(parts[0])}


def plan_seconds(planner: Planner, shown: Mapping[str, NDArray[Any]], choice: Choice | None = None) -> dict[str, float]:
    """Median seconds to plan for one observation and for fifty of those shown."""
    found = {}
    for count in (1, 50):
        observation = {key: shown[key][:count] for key in planner.config.observation_shapes()}
        times = []
        for _ in range(_ROUNDS):
            begun = time.perf_counter()
            planner.plan(observation, choice=choice)
            times.append(time.perf_counter() - begun)
        found[str(count)] = statistics.median(times)
    return found
