"""Checkpoints: tensors as safetensors, everything else as JSON, published by one rename. Loading never runs code.

checkpoints/
  00000500/
    tensors.safetensors   weights, optimizer moments, generator states, buffers
    state.json            step, counters, what the tensors are of (a planner's architecture, tasks, view, data), and
                          the digest of their file, by which damage shows
  00001000/ ...           newest complete directory = where to resume; of 10**8 steps or more with more digits
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sodp3d.core.errors import InputError
from sodp3d.core.files import disk_errors, fsync, read_json, require_space, write_json

log = logging.getLogger(__name__)
TENSORS = "tensors.safetensors"
STATE = "state.json"
CUDA_STATE = 16  # bytes of a CUDA generator's state: its seed and its offset
DIGEST = "sha256"  # key in the state, beside `step`; checkpoints of earlier releases have none
_DAMAGED = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError)


def save(directory: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], keep: int = 2) -> Path:
    """Publish a checkpoint of `step` and drop all but the newest `keep`.

    A kill at any moment leaves either the old set or the old set plus a complete new one.
    Raises InputError when the disk is too full; earlier checkpoints stay.
    """
    with disk_errors(directory, "earlier checkpoints stay"):
        directory.mkdir(parents=True, exist_ok=True)
        require_space(directory, int(1.1 * sum(value.nbytes for value in tensors.values())) + 1_000_000)
        for leftover in directory.glob(".partial-*"):
            shutil.rmtree(leftover)
        final = directory / _name(step)
        if final.exists():  # the same step saved twice: the first is as good
            return final
        staging = directory / f".partial-{_name(step)}"
        staging.mkdir()
        try:
            _write(staging, step, tensors, state)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        staging.rename(final)
        fsync(directory)  # the rename
        for old in steps(directory)[:-keep]:
            _remove(directory, old)
    return final


def _write(staging: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    path = staging / TENSORS
    try:
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, path)
    except SafetensorError as error:  # of the disk: a full one is none to Rust's writer
        raise OSError(f"{path.name}: {error}") from error
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    write_json(staging / STATE, {"step": step, DIGEST: digest(path), **state})


def digest(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(path: Path) -> str:
    """The digest of one checkpoint's tensors: as noted, or made now for one of an earlier release."""
    return str(read_state(path).get(DIGEST) or digest(path / TENSORS))


def _name(step: int) -> str:
    return f"{step:08d}"


def steps(directory: Path) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    if not directory.is_dir():
        return []
    return sorted(int(entry.name) for entry in directory.iterdir() if is_name(entry.name))


def is_name(name: str) -> bool:
    """Whether a checkpoint's directory has such a name."""
    return name.isascii() and name.isdigit() and name == _name(int(name))


def path_of(directory: Path, step: int) -> Path:
    """The directory of the checkpoint of `step`."""
    return directory / _name(step)


def drop_after(directory: Path, step: int) -> None:
    """Remove the checkpoints later than `step`, which a resumed run has not come to yet."""
    for later in steps(directory):
        if later > step:
            _remove(directory, later)


def _remove(directory: Path, step: int) -> None:
    doomed = directory / f".partial-old-{_name(step)}"
    path_of(directory, step).rename(doomed)  # so that a kill while removing leaves no half of a checkpoint
    shutil.rmtree(doomed)


def load_state(path: Path) -> dict[str, Any]:
    """The state of one checkpoint directory, without its tensors. Raises InputError where there is none."""
    if not (path / TENSORS).is_file():
        raise InputError(f"{path}: no checkpoint here ({TENSORS} is missing).")
    return read_state(path)


def read_state(path: Path) -> dict[str, Any]:
    """`load_state`, of a kept record too, which has no tensors."""
    state = read_json(path / STATE)
    if not isinstance(state, dict):
        raise InputError(f"{path / STATE}: expected a JSON object, got {str(state)[:40]!r}; {_advice(path)}")
    return state


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and state of one checkpoint directory.

    Raises InputError naming what is wrong: a file that is missing or damaged, tensors that are not those that were
    saved.
    """
    state = load_state(path)
    try:
        if DIGEST in state and state[DIGEST] != digest(path / TENSORS):
            raise InputError(f"{path / TENSORS}: damaged, its sha256 is not the one in {STATE}; {_advice(path)}")
        return load_file(path / TENSORS), state
    except OSError as error:
        raise InputError(f"{path / TENSORS}: cannot read ({error.strerror or error}).") from None
    except SafetensorError as error:
        raise InputError(f"{path / TENSORS}: not a safetensors file ({error}); pickled files are refused.") from None


def load_latest(directory: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """The newest complete checkpoint as (step, tensors, state), or None where there is none."""
    available = steps(directory)
    if not available:
        return None
    tensors, state = load(path_of(directory, available[-1]))
    return available[-1], tensors, state


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Turn what goes wrong where a checkpoint's values are put back into an InputError: it is not whole."""
    try:
        yield
    except _DAMAGED as error:
        if isinstance(error, InputError | torch.OutOfMemoryError):
            raise
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise InputError(f"{path}: damaged, or of something else ({what}); {_advice(path)}") from error


def _advice(path: Path) -> str:
    return f"restore it from a copy, or remove {path.name} to go on from the one before."


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


def restore_generator(generator: torch.Generator, state: Tensor) -> None:
    """Let it go on from what `get_state` returned, also where that was on another kind of device.

    A stream of CUDA cannot go on on a CPU, nor the other way: there it begins anew, from a seed made of its state.
    """
    sizes = {"cuda": CUDA_STATE, "cpu": len(torch.Generator().get_state())}
    others = {size for kind, size in sizes.items() if kind != generator.device.type}
    if len(state) not in others:
        generator.set_state(state)
        return
    log.warning(
        "this run was begun on another kind of device: on %s its random numbers are others from here on",
        generator.device.type,
    )
    generator.manual_seed(int.from_bytes(hashlib.sha256(state.numpy().tobytes()).digest()[:7], "big"))
