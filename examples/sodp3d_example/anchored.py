"""A regularizer: what the planner predicts stays near what the pre-trained one predicts, on proficient plans.

Shape letters: B batch, Tp planned steps, Da action size.
"""

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from sodp3d.learning.regularizers import Batch
from sodp3d.models.diffusion import ChainOptions
from sodp3d.models.planner import Planner


class Anchored:
    """As `sodp3d.learning.regularizers.Regularizer`."""

    def __init__(self, pretrained: Planner, options: ChainOptions) -> None:
        self.pretrained = pretrained

    def loss(
        self, planner: Planner, batch: Batch, target_batch: Batch, generator: torch.Generator | None = None
    ) -> Tensor:
        """Mean squared difference of the two predictions of re-noised plans (B, Tp, Da)."""
        clean = target_batch["latents"][:, -1].clamp(-1, 1)
        timestep = torch.randint(
            planner.config.diffusion_steps, (len(clean),), generator=generator, device=clean.device
        )
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        noisy = planner.diffusion.add_noise(clean, noise, timestep)
        features = planner.features(target_batch)
        with torch.no_grad():
            anchor = self.pretrained.unet(noisy, timestep, features)
        return mse_loss(planner.unet(noisy, timestep, features), anchor)
