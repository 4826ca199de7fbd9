"""Where learning computes: the device that `device=` names, and how many threads it may use."""

import logging
from collections.abc import Mapping
from typing import Any

import torch

from sodp3d.core import launch
from sodp3d.core.errors import InputError
from sodp3d.core.machine import core_count, idle_cores

log = logging.getLogger(__name__)


def prepare_torch(config: Mapping[str, Any]) -> torch.device:
    """Set the learner's threads (null: one for each idle core) and resolve `device`.

    Raises InputError for a device that is not there.
    """
    torch.set_num_threads(config["threads"] or _idle_threads())
    # Convolutions too are float32 on CUDA: in TensorFloat32 a plan's latents are off by 3e-3 after ten steps, and with
    # them the ratios that fine-tuning clips at 0.01; at these sizes launching kernels takes the time anyway.
    torch.backends.cudnn.allow_tf32 = False
    return find_device(config["device"], "device")


def _idle_threads() -> int:
    """As many threads as cores are idle: two beside other work on two cores are slower than one.

    Several processes of one command share them.
    """
    threads, cores = max(1, idle_cores() // launch.on_this_machine()), core_count()
    busy = "" if threads == cores else "; other work uses the rest"
    log.info("threads: %d of %d cores%s", threads, cores, busy)
    return threads


def find_device(name: str, key: str) -> torch.device:
    """The device that option `key` names. Raises InputError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"{key}: expected auto, cpu or cuda, got {name!r}.") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"{key}: expected auto, cpu or cuda, got {name!r}.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{key}: cuda was asked for, but PyTorch sees no CUDA device; use {key}=cpu or {key}=auto.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise InputError(
            f"{key}: expected cuda:0{f' to cuda:{last}' if last else ''}, which is all there is, got {name}."
        )
    return device
