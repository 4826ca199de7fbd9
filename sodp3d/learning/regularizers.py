"""What keeps fine-tuning from collapsing (SODP eq. 14 and appendix E): one class each, chosen by `reg.name`.

All look at `batch` (recent chunks of the policy) or `target_batch` (chunks of proficient episodes); both hold raw
observations or "features" (B, F), "latents" (B, K'+1, Tp, Da) in normalized action units, and "executed" (B,), how
many steps of each plan were.
"""

import inspect
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from sodp3d.core import registry
from sodp3d.core.errors import InputError
from sodp3d.models.diffusion import ChainOptions
from sodp3d.models.likelihood import divergence, reduce
from sodp3d.models.planner import Planner
from sodp3d.settings import RegularizerSettings

Batch = Mapping[str, Tensor]


class Regularizer(Protocol):
    """A scalar that is added, times lambda, to the importance loss.

    Its constructor may take further keywords, which are `reg.options`.
    One that compares noisy steps of the chain says so by `needs_likelihood = True`, as a class attribute; and one that
    improves the planner by itself by `teaches = True`: beyond `finetune.target_kl` it goes on alone.
    """

    def __init__(self, pretrained: Planner, options: ChainOptions, **own: Any) -> None: ...

    def loss(
        self, planner: Planner, batch: Batch, target_batch: Batch, generator: torch.Generator | None = None
    ) -> Tensor:
        """Scalar with gradient in the planner's parameters."""
        ...


def _clean(batch: Batch) -> Tensor:
    """The plans as executed: final latents, clipped to the range of actions, (B, Tp, Da)."""
    return batch["latents"][:, -1].clamp(-1, 1)


class _Alone:
    """A regularizer that needs neither the pre-trained planner nor the sampler."""

    def __init__(self, pretrained: Planner, options: ChainOptions) -> None:
        pass


class NoRegularizer(_Alone):
    """The importance loss alone (as DDPO and DPPO)."""

    def loss(
        self, planner: Planner, batch: Batch, target_batch: Batch, generator: torch.Generator | None = None
    ) -> Tensor:
        """Always 0."""
        return torch.zeros((), device=planner.device)


class BehaviorCloning(_Alone):
    """SODP's own (eq. 14): the denoising loss on plans of the policy's proficient episodes."""

    teaches = True

    def loss(
        self, planner: Planner, batch: Batch, target_batch: Batch, generator: torch.Generator | None = None
    ) -> Tensor:
        """MSE of what the planner predicts, the noise or clean plans, on re-noised plans of `target_batch`."""
        return planner.denoising_loss(planner.features(target_batch), _clean(target_batch), generator)


class PretrainingLoss(_Alone):
    """DLPO's (eq. 24): the denoising loss on the current policy's own plans, good or bad."""

    def loss(
        self, planner: Planner, batch: Batch, target_batch: Batch, generator: torch.Generator | None = None
    ) -> Tensor:
        """MSE of what the planner predicts, the noise or clean plans, on re-noised plans of `batch`."""
        return planner.denoising_loss(planner.features(batch), _clean(batch), generator)


class KLToPretrained:
    """DPOK's (eq. 23): KL(p_theta(x_{k-1} | x_k) || p_pre(x_{k-1} | x_k)) summed over the denoising steps.

    Both are normal with the same standard deviation, so it is |mu - mu_pre|^2 / (2 sigma^2), over the elements that
    `options` choose and reduced as they say, as in the importance term. Steps without noise drop out, as there.
    """

    needs_likelihood = True

    def __init__(self, pretrained: Planner, options: ChainOptions) -> None:
        self.pretrained = pretrained
        self.options = options

    def loss(
        self, planner: Planner, batch: Batch, target_batch: Batch, generator: torch.Generator | None = None
    ) -> Tensor:
        """Mean over `batch` of the sum over steps, at the latents of its chains."""
        latents, steps = batch["latents"], planner.random_steps(self.options)
        mean = planner.chain_means(planner.features(batch), latents, steps, self.options)
        with torch.no_grad():
            features = self.pretrained.features(batch)
            reference = self.pretrained.chain_means(features, latents, steps, self.options)
        sigma = planner.deviations(steps, self.options).view(-1, 1, 1)
        scored = planner.scored(batch["executed"], self.options)
        return reduce(divergence(mean, reference, sigma), scored, self.options.reduction).sum(1).mean()


def make_regularizer(settings: RegularizerSettings, pretrained: Planner, options: ChainOptions) -> Regularizer:
    """The regularizer that `reg.name` names. `pretrained`: a separate, frozen copy for those that compare with it.

    Raises InputError for an unknown name, and for `reg.options` that its class does not take.
    """
    kind: type[Regularizer] = registry.choose(registry.REGULARIZERS, settings.name, "reg.name")
    try:
        inspect.signature(kind).bind(pretrained, options, **settings.options)
    except TypeError as error:
        raise InputError(
            f"reg.options: {settings.name} takes others than {sorted(settings.options)} ({error})."
        ) from None
    return kind(pretrained, options, **settings.options)
