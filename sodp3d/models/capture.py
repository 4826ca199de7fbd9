"""A planner's denoiser compiled into CUDA graphs: at these sizes launching its kernels one by one takes the time.

What compiles: `torch.compile(mode="reduce-overhead")`, the first time that a batch of some size is denoised. PyTorch
does so for eight sizes; so as episodes end, and batches of plans shrink, the planner fills these up (`planner.filled`).
"""

import torch

from sodp3d.core.errors import InputError
from sodp3d.models.planner import Planner
from sodp3d.models.policy import LearnedPolicy


def require_capture(key: str, method: type[LearnedPolicy], device: torch.device) -> None:
    """Raise InputError where the option `key` asks to capture what has no denoiser, or runs on the CPU."""
    if not issubclass(method, Planner):
        raise InputError(f"{key}: captures a planner's denoiser, and this method has none; leave it out.")
    if device.type != "cuda":
        raise InputError(f"{key}: is for CUDA, and device={device} computes; leave it out.")


def capture(planner: LearnedPolicy) -> None:
    """Let its denoiser be captured, once for each size of batch; gradients too, where they are asked for.

    The network stays the same module with the same weights. Its outputs live until it is called again, so they may not
    be kept; planning and learning make other tensors of them at once.
    """
    assert isinstance(planner, Planner), "only planners have a denoiser"
    planner.unet.compile(mode="reduce-overhead", dynamic=False)
