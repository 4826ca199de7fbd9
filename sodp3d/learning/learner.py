"""The gradient steps of fine-tuning (paper, eq. 15): importance loss on recent plans, a regularizer on top.

Shape letters: B batch, C chunks of an episode, K' sampling steps, Tp planned steps, Da actions.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sodp3d.core import registry
from sodp3d.core.errors import InputError
from sodp3d.core.machine import Pace
from sodp3d.learning.checks import require_finite
from sodp3d.learning.credit import on_device
from sodp3d.learning.ppo import denoising_discounts, growing_clip, importance_loss, kl_exceeded
from sodp3d.learning.regularizers import NoRegularizer, make_regularizer
from sodp3d.models.diffusion import ChainOptions
from sodp3d.models.likelihood import divergence, log_ratio, reduce
from sodp3d.models.loading import make_policy
from sodp3d.models.planner import Planner
from sodp3d.settings import FinetuneSettings, RegularizerSettings, SamplerSettings

PART = 64  # plans of a large step at once, to bound memory
RATE_STEP, RATE_RANGE = 1.5, 10.0  # of an adaptive learning rate: factor of one change, and most that all may come to


def chain_options(sampler: SamplerSettings) -> ChainOptions:
    """How training roll-outs sample."""
    return ChainOptions(
        sampler.eta, sampler.sigma_floor, sampler.floor_steps, sampler.noise_clip, sampler.reduction, sampler.rows
    )


def likelihood_terms(settings: FinetuneSettings, regularizer: RegularizerSettings) -> list[str]:
    """The options that bring terms of the loss which need the likelihood of a chain."""
    kind = registry.choose(registry.REGULARIZERS, regularizer.name, "reg.name")
    weighed = regularizer.weight > 0 and getattr(kind, "needs_likelihood", False)
    return [
        *(["finetune.importance_weight"] if settings.importance_weight > 0 else []),
        *([f"reg.name={regularizer.name}"] if weighed else []),
    ]


def check_likelihood(planner: Planner, settings: FinetuneSettings, regularizer: RegularizerSettings) -> None:
    """Raise InputError where a term of the loss needs the likelihood of a chain that draws no noise."""
    needing = likelihood_terms(settings, regularizer)
    if needing and not len(planner.random_steps(chain_options(settings.sampler))):
        sampler = settings.sampler
        raise InputError(
            f"finetune.sampler: {needing[0]} needs steps that draw noise, but eta={sampler.eta:g}, sigma_floor="
            f"{sampler.sigma_floor:g} and floor_steps={sampler.floor_steps} leave none of "
            f"{planner.config.inference_steps}; use finetune.sampler.eta=1, or floor_steps=all with a floor above 0."
        )


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


class Plans(Protocol):
    """What batches are drawn from."""

    def sample(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Every key (batch_size, ...), and "index" (batch_size,), their positions."""
        ...


def averages(records: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Of each metric over the gradient steps that have it, by the name under which it is logged."""
    found = {key: [float(record[key]) for record in records if key in record] for key in records[0]}
    return {f"train/{key}": float(np.mean(values)) for key, values in found.items()}


def together(parts: Sequence[Mapping[str, Tensor]], shares: Tensor) -> dict[str, Tensor]:
    """Metrics of a batch from those of its parts, which are these shares (P,) of it: means, and the greatest `_max`."""
    found = {key: torch.stack([part[key] for part in parts]) for key in parts[0]}
    return {key: each.max() if key.endswith("_max") else (shares * each).sum() for key, each in found.items()}


@dataclass(frozen=True)
class Lesson:
    """What an iteration learns from.

    plans, with credits (all of them,): of the importance term. proficient: episodes' plans to clone. chosen: the
    critic's, which make up chosen_share of those cloned.
    """

    plans: Plans
    credits: Tensor
    proficient: Plans
    chosen: Plans | None = None
    chosen_share: float = 0.0

    def target(self, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """A batch to clone: "features", or raw observations, "latents" and "executed"."""
        if self.chosen is None:
            return self.proficient.sample(size, generator)
        count = round(self.chosen_share * size)
        parts = [self.proficient.sample(size - count, generator), self.chosen.sample(count, generator)]
        return {key: torch.cat([part[key] for part in parts]) for key in ("features", "latents", "executed")}


class Learner:
    """The planner that learns, its optimizer, its regularizer, and the random streams of batches and noise."""

    def __init__(
        self, pretrained: Planner, settings: FinetuneSettings, regularizer: RegularizerSettings, seed: int
    ) -> None:
        self.settings = settings
        # As it acts: dropout would tell ratios other than 1 of weights that have not changed.
        self.planner = copy.deepcopy(pretrained).eval()
        self.planner.encoder.requires_grad_(settings.encoder == "tuned")
        self.options = chain_options(settings.sampler)
        self.regularizer = make_regularizer(regularizer, copy.deepcopy(pretrained), self.options)
        self.regularizer_weight = regularizer.weight
        self.parameters = [parameter for parameter in self.planner.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=settings.learning_rate, fused=True)
        self.large = torch.optim.Adam(self.parameters, lr=settings.large_steps.learning_rate, fused=True)
        self.pace = Pace("finetune")
        self.batches = torch.Generator().manual_seed(seed)
        self.noise = torch.Generator(pretrained.device).manual_seed(seed)
        self.rate_factor = 1.0  # of the learning rate, adapted to the KL

    def begin_anew(self, seed: int) -> None:
        """Fresh weights, with the normalizer of the data (section 5.5)."""
        torch.manual_seed(seed)
        fresh = make_policy(self.planner.config).to(self.planner.device)
        fresh.normalizer.load_state_dict(self.planner.normalizer.state_dict())
        self.planner.load_state_dict(fresh.state_dict())

    def go_back_to(self, weights: Mapping[str, Tensor]) -> None:
        """Earlier weights again, with a fresh optimizer; memory stays."""
        self.planner.load_state_dict(weights)
        self.optimizer.state.clear()
        self.large.state.clear()

    def learn(self, lesson: "Lesson", updates: int, rate: float, where: str, slowed: float = 1.0) -> dict[str, float]:
        """Up to `updates` gradient steps; returns mean metrics.

        Where the KL bound is reached, plans of memory are too old to be weighed, and a regularizer that teaches by
        itself goes on alone; without such a one the iteration ends. rate: of learning. where: what an error says of
        when it was. slowed: factor of the large steps' rate.
        """
        large = self.settings.large_steps  # where there are any, the importance term and its KL are theirs alone
        _set_rate(self.optimizer, rate * (1.0 if large.updates else self.rate_factor))
        _set_rate(self.large, large.learning_rate * slowed * self.rate_factor)
        records: list[dict[str, Tensor]] = []
        weighs = self.settings.importance_weight > 0 and not large.updates
        for _ in range(updates if weighs or self.regularized else 0):
            self.pace.begin()
            metrics = self._update(lesson, where, weighs)
            self.pace.end()
            records.append(metrics)
            if weighs and kl_exceeded(metrics, self.settings.target_kl):
                weighs = False
                if not self.teaches:
                    break
        means = averages(records) if records else {}
        if records and "kl" in records[0]:
            means["train/importance_updates"] = sum("kl" in record for record in records)
        if large.updates:
            steps = self._large_steps(lesson, where)
            means |= averages(steps) | {"train/importance_updates": len(steps)}
        if self.settings.adaptive_learning_rate:
            self._adapt_rate(means["train/kl"])
        return {**means, "train/updates": len(records)}

    def _large_steps(self, lesson: "Lesson", where: str) -> list[dict[str, Tensor]]:
        """Metrics of up to `large_steps.updates` steps of the importance term alone, with an optimizer of its own.

        Its gradient is a hundredth of cloning's and mostly noise, so it needs many plans and Adam's own scale.
        """
        records: list[dict[str, Tensor]] = []
        for _ in range(self.settings.large_steps.updates):
            drawn = lesson.plans.sample(self.settings.large_steps.batch_size, self.batches)
            self.large.zero_grad(set_to_none=True)
            parts, shares = list[dict[str, Tensor]](), list[float]()
            for index in torch.arange(len(drawn["index"])).split(PART):
                part = on_device({key: value[index] for key, value in drawn.items()}, self.planner)
                loss, metrics = self.importance(part, lesson.credits[part["index"].cpu()].to(self.planner.device))
                share = len(index) / len(drawn["index"])
                (share * loss).backward()
                parts.append({key: value.detach() for key, value in {**metrics, "imp_loss": loss}.items()})
                shares.append(share)
            record = together(parts, torch.tensor(shares, device=self.planner.device))
            record["large_gradient_norm"] = self._step(self.large, {"loss": record["imp_loss"]}, where)
            records.append(record)
            if kl_exceeded(record, self.settings.target_kl):
                break
        return records

    def _adapt_rate(self, kl: float) -> None:
        """Slower where an iteration left the policy that acted too far behind, faster where it hardly moved."""
        assert self.settings.target_kl is not None
        if kl > self.settings.target_kl:
            self.rate_factor = max(self.rate_factor / RATE_STEP, 1 / RATE_RANGE)
        elif kl < self.settings.target_kl / 4:
            self.rate_factor = min(self.rate_factor * RATE_STEP, RATE_RANGE)

    @property
    def regularized(self) -> bool:
        """Whether the regularizer has a gradient."""
        return self.regularizer_weight > 0 and not isinstance(self.regularizer, NoRegularizer)

    @property
    def teaches(self) -> bool:
        """Whether the regularizer is worth a gradient step without the importance term."""
        return self.regularizer_weight > 0 and getattr(self.regularizer, "teaches", False)

    def _update(self, lesson: "Lesson", where: str, weighs: bool) -> dict[str, Tensor]:
        """One gradient step. weighs: with the importance term.

        Raises FloatingPointError before it changes anything where it is not finite.
        """
        settings, device = self.settings, self.planner.device
        batch = on_device(lesson.plans.sample(settings.importance_batch_size, self.batches), self.planner)
        target = on_device(lesson.target(settings.batch_size, self.batches), self.planner)
        loss = torch.zeros((), device=device)
        metrics: dict[str, Tensor] = {}
        if weighs:
            imp, metrics = self.importance(batch, lesson.credits[batch["index"].cpu()].to(device))
            loss = loss + self.settings.importance_weight * imp
            metrics["imp_loss"] = imp
        if self.regularizer_weight > 0:
            regularizer = self.regularizer.loss(self.planner, batch, target, self.noise)
            loss = loss + self.regularizer_weight * regularizer
            metrics["regularizer"] = regularizer
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        metrics["gradient_norm"] = self._step(self.optimizer, {"loss": loss}, where)
        return {name: value.detach() for name, value in metrics.items()}

    def _step(self, optimizer: torch.optim.Optimizer, losses: dict[str, Tensor], where: str) -> Tensor:
        """Bounds the gradient, checks it and the losses, and steps; returns its norm before."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.gradient_norm)
        require_finite({**losses, "gradient norm": norm}, where)
        optimizer.step()
        return norm

    def importance(self, batch: Mapping[str, Tensor], credit: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. (12), over all denoising steps that draw noise, or the last `tuned_steps` of them.

        batch: plans of memory, B of each key; credit (B,). The metric kl is exact, and a mean over elements and steps:
        the same on every task.
        """
        planner, settings, options = self.planner, self.settings, self.options
        steps = planner.random_steps(options)[-settings.tuned_steps if settings.tuned_steps else 0 :]
        mean = planner.chain_means(planner.features(batch), batch["latents"], steps, options)
        value, old_mean = batch["latents"][:, steps + 1], batch["means"][:, steps]
        sigma, scored = planner.deviations(steps, options).view(-1, 1, 1), planner.scored(batch["executed"], options)
        ratio = reduce(log_ratio(value, mean, old_mean, sigma), scored, options.reduction)
        clip = growing_clip(settings.clip, settings.first_clip, len(steps), mean.device)
        weight = denoising_discounts(settings.denoising_discount, len(steps), mean.device)
        loss, metrics = importance_loss(credit, ratio, clip, weight)
        kl = reduce(divergence(mean.detach(), old_mean, sigma), scored, "mean").mean()
        return loss, {**metrics, "kl": kl}
