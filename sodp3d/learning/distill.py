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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sodp3d.core import checkpoint
from sodp3d.core.errors import InputError
from sodp3d.core.run import Run
from sodp3d.core.seeds import DISTILLING, episode_seed
from sodp3d.data.hashing import Identity
from sodp3d.envs.config import EnvConfig
from sodp3d.learning.checks import START, require_same_start
from sodp3d.learning.measuring import Measurements
from sodp3d.learning.memory import to_record
from sodp3d.learning.pretrain import Drawn, Pretraining, fit
from sodp3d.models.critic import Choice
from sodp3d.models.loading import planner_state
from sodp3d.models.planner import Planner
from sodp3d.models.sampled import plans_of
from sodp3d.rollouts.rollout import Rollouts
from sodp3d.settings import TrainSettings

log = logging.getLogger(__name__)
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
    """A planner, with its sampler and its choice among several plans. digest: of its checkpoint."""

    planner: Planner
    choice: Choice | None = None
    digest: str = ""

    @torch.no_grad()
    def plans(self, features: Tensor, elapsed: Tensor, generator: torch.Generator) -> Tensor:
        """One plan of each observation, (B, Tp, Da) normalized. features (B, F), elapsed (B,) of the time limit."""
        count = plans_of(self.choice)
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
    data_hash: str,
    task: EnvConfig,
    rollouts: Rollouts,
    measurements: Measurements,
) -> dict[str, Any] | None:
    """Teach a student on what the teacher sees in roll-outs of its own, and test it. Returns and raises as `pretrain`.

    data_hash: of what the teacher was pre-trained on.
    """
    planner, options = teacher.planner, settings.distill
    seeds = [episode_seed(settings.common.seed, DISTILLING, index) for index in range(options.episodes)]
    observed = observed_by(teacher, task, rollouts, seeds, run.directory / "observed", lambda: run.stop_requested)
    if observed is None:
        return None
    training = Distillation(teacher, settings)
    data_hash = training.load(run, Identity(data_hash, data_hash))
    count = len(observed["elapsed"])
    log.info("%d observations; %d steps there, %d here", count, planner.config.inference_steps, options.steps)

    def draw(batches: np.random.Generator) -> Drawn:
        chosen = torch.from_numpy(batches.integers(count, size=options.batch_size))
        return {key: values[chosen].to(planner.device) for key, values in observed.items()}, None

    result = fit(training, run, planner_state(training.student, [task], data_hash), draw, measurements)
    if result is None:
        return None
    student = training.ema.planner
    assert isinstance(student, Planner)
    seconds = {"before": plan_seconds(planner, teacher.choice), "after": plan_seconds(student)}
    log.info("seconds for one plan: %.4f before, %.4f now", seconds["before"]["1"], seconds["after"]["1"])
    return {**result, "plan_seconds": seconds, "interactions": {"training": len(seeds)}}


def observed_by(
    teacher: Teacher,
    task: EnvConfig,
    rollouts: Rollouts,
    seeds: Sequence[int],
    folder: Path,
    stopped: Callable[[], bool],
) -> dict[str, Tensor] | None:
    """What the teacher sees where it plans, in one episode per seed: "features" (C, F) and "elapsed" (C,) of the limit.

    They are kept in `folder` wave by wave, and it goes on from there; None where `stopped()` ended it between two.
    Raises InputError where they are another teacher's.
    """
    done, observed, state = checkpoint.load_latest(folder) or (0, {}, {})
    require_same_start(state, teacher.digest, folder.parent)
    while done < len(seeds):
        if stopped():
            return None
        wave = list(seeds[done : done + rollouts.environments])
        episodes = rollouts.run(teacher.planner, wave, keep_chains=True, choice=teacher.choice)
        records = [to_record(episode, task, frozen=True) for episode in episodes if not episode.diverged]
        if not records and not observed:
            raise InputError(
                f"distill: the simulation diverged in all of the teacher's first {len(wave)} episodes, so there is "
                "nothing to learn from; give another planner."
            )
        seen = {"features": [record.observation["features"] for record in records]}
        seen["elapsed"] = [record.elapsed for record in records]
        observed = {key: torch.cat([*([observed[key]] if observed else []), *parts]) for key, parts in seen.items()}
        done += len(wave)
        checkpoint.save(folder, done, observed, {START: teacher.digest}, keep=1)
        log.info("%d of %d roll-outs of the teacher", done, len(seeds))
    return observed


def plan_seconds(planner: Planner, choice: Choice | None = None) -> dict[str, float]:
    """Median seconds to plan for one observation and for fifty; which ones does not matter."""
    found = {}
    for count in (1, 50):
        shapes = planner.config.observation_shapes()
        observation = {key: np.zeros((count, *shape), np.float32) for key, shape in shapes.items()}
        times = []
        for _ in range(_ROUNDS):
            begun = time.perf_counter()
            planner.plan(observation, choice=choice)
            times.append(time.perf_counter() - begun)
        found[str(count)] = statistics.median(times)
    return found
