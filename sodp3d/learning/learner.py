"""The gradient steps of fine-tuning (paper, eq. 15): importance loss on recent plans, a regularizer on top.

Shape letters: B batch, C chunks of an episode, K' sampling steps, Tp planned steps, Da actions.
"""

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from sodp3d.core import registry
from sodp3d.core.errors import InputError
from sodp3d.core.machine import Pace
from sodp3d.learning.checks import require_finite
from sodp3d.learning.credit import on_device
from sodp3d.learning.memory import Memory
from sodp3d.learning.ppo import importance_loss, kl_exceeded
from sodp3d.learning.regularizers import make_regularizer
from sodp3d.models.diffusion import ChainOptions
from sodp3d.models.loading import make_planner
from sodp3d.models.planner import Planner
from sodp3d.settings import FinetuneSettings, RegularizerSettings, SamplerSettings


def chain_options(sampler: SamplerSettings) -> ChainOptions:
    """How training roll-outs sample."""
    return ChainOptions(
        sampler.eta, sampler.sigma_floor, sampler.floor_steps, sampler.noise_clip, sampler.reduction, sampler.rows
    )


def check_likelihood(planner: Planner, settings: FinetuneSettings, regularizer: RegularizerSettings) -> None:
    """Raise InputError where a term of the loss needs the likelihood of a chain that draws no noise."""
    kind = registry.choose(registry.REGULARIZERS, regularizer.name, "reg")
    needing = [
        *(["finetune.importance_weight"] if settings.importance_weight > 0 else []),
        *([f"reg={regularizer.name}"] if regularizer.weight > 0 and getattr(kind, "needs_likelihood", False) else []),
    ]
    if needing and not len(planner.random_steps(chain_options(settings.sampler))):
        sampler = settings.sampler
        raise InputError(
            f"finetune.sampler: {needing[0]} needs steps that draw noise, but eta={sampler.eta:g}, sigma_floor="
            f"{sampler.sigma_floor:g} and floor_steps={sampler.floor_steps} leave none of "
            f"{planner.config.inference_steps}; use finetune.sampler.eta=1, or floor_steps=all with a floor above 0."
        )


class Learner:
    """The planner that learns, its optimizer, its regularizer, and the random streams of batches and noise."""

    def __init__(
        self, pretrained: Planner, settings: FinetuneSettings, regularizer: RegularizerSettings, seed: int
    ) -> None:
        self.settings = settings
        self.planner = copy.deepcopy(pretrained).train()
        self.planner.encoder.requires_grad_(settings.encoder == "tuned")
        self.options = chain_options(settings.sampler)
        self.regularizer = make_regularizer(regularizer.name, copy.deepcopy(pretrained), self.options)
        self.regularizer_weight = regularizer.weight
        self.parameters = [parameter for parameter in self.planner.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=settings.learning_rate, fused=True)
        self.pace = Pace("finetune")
        self.batches = torch.Generator().manual_seed(seed)
        self.noise = torch.Generator(pretrained.device).manual_seed(seed)

    def begin_anew(self, seed: int) -> None:
        """Fresh weights, with the normalizer of the data (section 5.5)."""
        torch.manual_seed(seed)
        fresh = make_planner(self.planner.config).to(self.planner.device)
        fresh.normalizer.load_state_dict(self.planner.normalizer.state_dict())
        self.planner.load_state_dict(fresh.state_dict())

    def go_back_to(self, weights: Mapping[str, Tensor]) -> None:
        """Earlier weights again, with a fresh optimizer; memory stays."""
        self.planner.load_state_dict(weights)
        self.optimizer.state.clear()

    def learn(self, memory: Memory, credits: Tensor, updates: int, rate: float, where: str) -> dict[str, float]:
        """Up to `updates` gradient steps, fewer where the KL bound is reached; returns mean metrics.

        credits (sum of C,): of the plans in memory. rate: of learning. where: what an error says of when it was.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        records: list[dict[str, Tensor]] = []
        for _ in range(updates):
            self.pace.begin()
            metrics = self._update(memory, credits, where)
            self.pace.end()
            records.append(metrics)
            if "approx_kl" in metrics and kl_exceeded(metrics, self.settings.target_kl):
                break
        means = {f"train/{key}": float(np.mean([float(record[key]) for record in records])) for key in records[0]}
        return {**means, "train/updates": len(records), "train/target_episodes": len(memory.target)}

    def _update(self, memory: Memory, credits: Tensor, where: str) -> dict[str, Tensor]:
        """One gradient step. Raises FloatingPointError before it changes anything where it is not finite."""
        size, device = self.settings.batch_size, self.planner.device
        batch = on_device(memory.replay.sample(size, self.batches), self.planner)
        target = on_device(memory.target.sample(size, self.batches), self.planner)
        loss = torch.zeros((), device=device)
        metrics: dict[str, Tensor] = {}
        if self.settings.importance_weight > 0:
            imp, metrics = self.importance(batch, credits[batch["index"].cpu()].to(device))
            loss = loss + self.settings.importance_weight * imp
            metrics["imp_loss"] = imp
        if self.regularizer_weight > 0:
            regularizer = self.regularizer.loss(self.planner, batch, target, self.noise)
            loss = loss + self.regularizer_weight * regularizer
            metrics["regularizer"] = regularizer
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        metrics["gradient_norm"] = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.gradient_norm)
        require_finite({"loss": loss, "gradient norm": metrics["gradient_norm"]}, where)
        self.optimizer.step()
        return {name: value.detach() for name, value in metrics.items()}

    def importance(self, batch: Mapping[str, Tensor], credit: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. (12) on one random denoising step of each plan: the mean over steps, at a K'-th of its price.

        batch: plans of memory, B of each key; credit (B,).
        """
        step, _ = self.planner.draw_steps(len(credit), self.options, self.batches)
        row = torch.arange(len(credit), device=credit.device)
        mean, sigma = self.planner.moments(
            self.planner.features(batch), batch["latents"][row, step], step, self.options
        )
        new = self.planner.step_log_prob(mean, sigma, batch["latents"][row, step + 1], self.options)
        return importance_loss(credit, new[:, None], batch["log_prob"][row, step][:, None], self.settings.clip)
