"""What VRL3 sees where it sees images: a small residual-free ResNet, random shifts, and the weights of stage 1.

After the public code (microsoft/VRL3 2bdcf5b), whose net is called resnet6_32channel. Our shifts are DrQ-v2's without
its interpolation: its offsets are whole pixels, so that copying them gives the same image, without rounding.

Shape letters: B batch, E environments, Dp proprioception size, H W image.
"""

import logging
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from sodp3d.collection.agents.memory import Batch, Trajectory
from sodp3d.core.errors import InputError

log = logging.getLogger(__name__)
IMAGE_SIZE = 84
CLASSIFIER = "classifier"  # prefix of stage 1's last layer in its file
_CHANNELS = (32, 32, 64, 128, 256)  # stem and four blocks
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


class ResNet6(nn.Module):
    """A stem and four blocks of convolution, batch normalization and ReLU, then the mean over the image: 256 features.

    84 px -> 41 (stem, no padding) -> 41 -> 21 -> 11 -> 6. Weights from `generator`, He et al.'s for ReLU.
    """

    size = _CHANNELS[-1]
    mean: Tensor
    std: Tensor

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(_STD).view(3, 1, 1), persistent=False)
        strides = (1, 2, 2, 2)
        convolutions = [nn.Conv2d(3, _CHANNELS[0], 3, stride=2, bias=False)]
        for (inputs, outputs), stride in zip(pairwise(_CHANNELS), strides, strict=True):
            convolutions.append(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False))
        for convolution in convolutions:
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        self.convolutions = nn.ModuleList(convolutions)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in _CHANNELS)

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) uint8 -> features (B, 256), none below 0."""
        x = (images.float() - self.mean) / self.std
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = functional.relu(norm(convolution(x)))
        return x.mean((2, 3))


def random_shift(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Each image moved by up to `padding` whole pixels in both directions, its border repeated (DrQ-v2's augmentation).

    images (B, C, H, W) -> the same shape and type. Offsets are uniform, one pair per image.
    """
    batch, _, height, width = images.shape
    offsets = torch.randint(-padding, padding + 1, (2, batch, 1), generator=generator, device=images.device)
    rows = (torch.arange(height, device=images.device) + offsets[0]).clamp(0, height - 1)  # (B, H)
    columns = (torch.arange(width, device=images.device) + offsets[1]).clamp(0, width - 1)
    index = torch.arange(batch, device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class PixelEncoder(nn.Module):
    """Images and joints -> what actor and critics take in. The image part learns from the critics' loss alone.

    Batch normalization uses the batch while learning, and its running statistics while acting.
    """

    image_size: int | None = IMAGE_SIZE

    def __init__(self, proprioception_size: int, shift_padding: int, seed: int) -> None:
        super().__init__()
        self.features = ResNet6.size + proprioception_size
        self._padding = shift_padding
        self.network = ResNet6(torch.Generator().manual_seed(seed))
        self.eval()

    def fit(self, trajectories: list[Trajectory]) -> None:
        """Joints go in as they are (VRL3)."""

    def look(self, observations: Mapping[str, np.ndarray], device: torch.device) -> Tensor:
        """{"image": (E, 3, H, W) uint8, "agent_pos": (E, Dp)} -> (E, features), for acting."""
        images = torch.as_tensor(observations["image"], device=device)
        return self._joined(images, torch.as_tensor(observations["agent_pos"], dtype=torch.float32, device=device))

    def learn(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Features (B, features) of a batch's states, with gradients, and of its next states, without."""
        assert batch.images is not None and batch.next_images is not None
        self.train()
        states = self._joined(random_shift(batch.images, self._padding, generator), batch.states)
        with torch.no_grad():
            next_images = random_shift(batch.next_images, self._padding, generator)
            next_states = self._joined(next_images, batch.next_states)
        self.eval()
        return states, next_states

    def _joined(self, images: Tensor, joints: Tensor) -> Tensor:
        return torch.cat([self.network(images), joints], dim=1)

    def load_stage1(self, path: str | None) -> None:
        """Start from the weights of `data_collection/pretrain_encoder.py`; None: from scratch. Logs which.

        Raises InputError on a missing file, another kind of file, or one of another network.
        """
        if path is None:
            log.info("agent.stage1 is null: VRL3's image encoder starts from scratch, without stage 1.")
            return
        tensors = {name: value for name, value in _read(Path(path)).items() if not name.startswith(f"{CLASSIFIER}.")}
        expected: dict[str, Any] = self.network.state_dict()
        problems = [f"{name} is missing" for name in expected if name not in tensors]
        problems += [f"{name} is unknown" for name in tensors if name not in expected]
        for name, value in tensors.items():
            if name in expected and value.shape != expected[name].shape:
                problems.append(f"{name} is {tuple(value.shape)}, expected {tuple(expected[name].shape)}")
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise InputError(
                f"agent.stage1: {path} does not hold this encoder ({'; '.join(problems[:3])}{more}); "
                "make one with data_collection/pretrain_encoder.py."
            )
        self.network.load_state_dict(tensors)
        log.info("agent.stage1: VRL3's image encoder starts from %s.", path)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path.expanduser())
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(
            f"agent.stage1: there is no file {path}; make one with data_collection/pretrain_encoder.py, or leave it "
            "out to start from scratch."
        ) from None
    except SafetensorError as error:
        raise InputError(f"agent.stage1: {path} is not a safetensors file ({error}); pickles are refused.") from None
