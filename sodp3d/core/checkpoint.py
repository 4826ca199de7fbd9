"""Checkpoints: tensors as safetensors, everything else as JSON, published by one rename. Loading never runs code.

checkpoints/
  00000500/
    tensors.safetensors   weights, optimizer moments, generator states, buffers
    state.json            step, counters, what the tensors are of (a planner's architecture, tasks, view, sampler, data)
  00001000/ ...           newest complete directory = where to resume
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sodp3d.core.errors import InputError
from sodp3d.core.files import fsync_directory, read_json, require_space, write_json

TENSORS = "tensors.safetensors"
STATE = "state.json"


def save(directory: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], keep: int = 2) -> Path:
    """Publish a checkpoint of `step` and drop all but the newest `keep`.

    A kill at any moment leaves either the old set or the old set plus a complete new one.
    Raises InputError when the disk is too full; earlier checkpoints stay.
    """
    directory.mkdir(parents=True, exist_ok=True)
    require_space(directory, int(1.1 * sum(value.nbytes for value in tensors.values())) + 1_000_000)
    for leftover in directory.glob(".partial-*"):
        shutil.rmtree(leftover)
    staging = directory / f".partial-{step:08d}"
    staging.mkdir()
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, staging / TENSORS)
    with (staging / TENSORS).open("rb+") as file:
        os.fsync(file.fileno())
    write_json(staging / STATE, {"step": step, **state})
    final = directory / f"{step:08d}"
    if final.exists():  # the same step saved twice: the first is as good
        shutil.rmtree(staging)
        return final
    staging.rename(final)
    fsync_directory(directory)
    for old in steps(directory)[:-keep]:
        _remove(directory, old)
    return final


def steps(directory: Path) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    if not directory.is_dir():
        return []
    return sorted(int(entry.name) for entry in directory.iterdir() if re.fullmatch(r"\d{8}", entry.name))


def drop_after(directory: Path, step: int) -> None:
    """Remove the checkpoints later than `step`, which a resumed run has not come to yet."""
    for later in steps(directory):
        if later > step:
            _remove(directory, later)


def _remove(directory: Path, step: int) -> None:
    doomed = directory / f".partial-old-{step:08d}"
    (directory / f"{step:08d}").rename(doomed)  # so that a kill while removing leaves no half of a checkpoint
    shutil.rmtree(doomed)


def load_state(path: Path) -> dict[str, Any]:
    """The state of one checkpoint directory, without its tensors. Raises InputError where there is none."""
    if not (path / TENSORS).is_file():
        raise InputError(f"{path}: no checkpoint here ({TENSORS} is missing).")
    return read_json(path / STATE)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and state of one checkpoint directory. Raises InputError naming what is wrong."""
    state = load_state(path)
    try:
        return load_file(path / TENSORS), state
    except SafetensorError as error:
        raise InputError(f"{path / TENSORS}: not a safetensors file ({error}); pickled files are refused.") from None


def load_latest(directory: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """The newest complete checkpoint as (step, tensors, state), or None where there is none."""
    available = steps(directory)
    if not available:
        return None
    tensors, state = load(directory / f"{available[-1]:08d}")
    return available[-1], tensors, state


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names put under `prefix.`."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under `prefix.`, with that prefix taken off."""
    start = f"{prefix}."
    return {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's per-parameter state as flat tensors (`<index>.<name>`); hyper-parameters belong to the config."""
    states = optimizer.state_dict()["state"]
    return {f"{index}.{name}": torch.as_tensor(value) for index, s in states.items() for name, value in s.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`, into an optimizer over the same parameters."""
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        states.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
