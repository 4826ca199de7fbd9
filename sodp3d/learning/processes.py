"""The processes that pre-train one policy: each learns from its rows of every batch, the main one does all else.

They draw the same numbers and average their gradients, so that they hold the same weights, which are those of one
process but for rounding. `torchrun` or `accelerate launch` begins them.

Shape letters: B rows of a whole batch.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sodp3d.core import launch
from sodp3d.core.draws import shared_generator
from sodp3d.core.errors import InputError

log = logging.getLogger(__name__)
_PATIENCE = timedelta(
    days=7
)  # with which the others wait while the main process measures; a lost one is noticed at once


class Learner(Protocol):
    """What learns: a policy, or one within a lesson of more."""

    def losses(self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
        """(B,) of each window."""
        ...


Losses = Callable[[Mapping[str, Tensor], torch.Generator], Tensor]


class LostProcessError(InputError):
    """Another of the processes has ended before this one, and told why itself."""


class Alone:
    """One process, which has whole batches and does everything."""

    index, count = 0, 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def main(self) -> bool:
        """Whether this is the process that writes, logs and measures."""
        return self.index == 0

    def generator(self, seed: int) -> torch.Generator:
        """What the noise of batches is drawn with."""
        return torch.Generator(self.device).manual_seed(seed)

    def rows(self, size: int) -> slice:
        """This process's rows of a batch of that size."""
        share = size // self.count
        return slice(self.index * share, (self.index + 1) * share)

    def losses(self, policy: Learner) -> Losses:
        """The policy's losses of these rows; their gradients are averaged over the processes."""
        return policy.losses

    def gathered(self, losses: Tensor) -> Tensor:
        """Losses of these rows -> of all, (B,)."""
        return losses

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process. All have to ask."""
        return flag

    def told(self, value: Any = None) -> Any:
        """What the main process gives, in every process. All have to ask."""
        return value

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The others begin the block when the main process has left it: what it refuses is told once."""
        yield

    def draw_apart(self, seed: int, step: int) -> None:
        """Let PyTorch's own numbers, of which dropout draws, be others here than in the main process."""

    def part(self) -> None:
        """The rest is the main process's alone."""


class Together(Alone):
    """One of several processes, each on a GPU of its own, or on the CPU."""

    def __init__(self, device: torch.device) -> None:
        """Waits until all are there. Raises InputError where Accelerate or GPUs are missing."""
        _require_devices(device)
        try:
            from accelerate import Accelerator
            from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
        except ImportError:
            raise InputError(
                "several processes need Accelerate, which is not installed: pip install 'accelerate>=1.15,<2' (the "
                "extra cluster)."
            ) from None
        threads = torch.get_num_threads()
        handlers = [
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=_PATIENCE),
        ]
        self._accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no", kwargs_handlers=handlers)
        torch.set_num_threads(threads)
        super().__init__(self._accelerator.device)
        self.index, self.count = self._accelerator.process_index, self._accelerator.num_processes
        # Over the CPU, where waiting costs nothing; NCCL's processes would spin on their GPUs, and lose patience.
        self._words = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)

    def generator(self, seed: int) -> torch.Generator:
        """As `Alone.generator`; draws whole batches, and gives this process its rows."""
        generator = shared_generator(self.device, self.index, self.count)
        generator.manual_seed(seed)
        return generator

    def losses(self, policy: Learner) -> Losses:
        """As `Alone.losses`."""
        learner: Losses = self._accelerator.prepare_model(_Losses(policy))
        return learner

    def gathered(self, losses: Tensor) -> Tensor:
        """As `Alone.gathered`."""
        found: Tensor = self._accelerator.gather(losses)
        return found

    def any(self, flag: bool) -> bool:
        """As `Alone.any`."""
        word = torch.tensor([int(flag)])
        torch.distributed.all_reduce(word, torch.distributed.ReduceOp.MAX, group=self._words)
        return bool(word.item())

    def told(self, value: Any = None) -> Any:
        """As `Alone.told`."""
        words = [value]
        torch.distributed.broadcast_object_list(words, src=0, group=self._words)
        return words[0]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """As `Alone.main_first`."""
        if not self.main:
            torch.distributed.barrier(group=self._words)
        yield
        if self.main:
            torch.distributed.barrier(group=self._words)

    def draw_apart(self, seed: int, step: int) -> None:
        """As `Alone.draw_apart`."""
        if not self.main:
            torch.manual_seed(int(np.random.SeedSequence(seed, spawn_key=(step, self.index)).generate_state(1)[0]))

    def part(self) -> None:
        """As `Alone.part`."""
        torch.distributed.destroy_process_group()


class _Losses(nn.Module):
    """A policy whose `forward` is its losses: the form in which PyTorch averages gradients."""

    def __init__(self, policy: Learner) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """As `LearnedPolicy.losses`."""
        return self.policy.losses(batch, generator)


def require_equal_parts(batch_size: int) -> None:
    """Raise InputError where the processes would get unequal parts of a batch."""
    if batch_size % launch.count():
        raise InputError(
            f"pretrain.batch_size: {launch.count()} processes share each batch equally; expected a multiple of "
            f"{launch.count()}, got {batch_size}."
        )


def _require_devices(device: torch.device) -> None:
    """Raise InputError unless each process of this machine gets a GPU of its own, or all compute on the CPU."""
    if device.type == "cpu":
        return
    if device.index is not None:
        raise InputError(f"device: each process takes a GPU of its own; give device=cuda, got {device}.")
    if launch.on_this_machine() > torch.cuda.device_count():
        raise InputError(
            f"device: {launch.on_this_machine()} processes on this machine need as many GPUs, and there are "
            f"{torch.cuda.device_count()}; begin fewer processes, or give device=cpu."
        )


@contextmanager
def join(device: torch.device) -> Iterator[Alone]:
    """The processes of this command: this one alone, or the others too.

    Raises InputError as `Together`, and LostProcessError where another process has ended.
    """
    if launch.count() == 1:
        yield Alone(device)
        return
    together = Together(device)
    log.info("%d processes learn together", together.count)
    try:
        yield together
    except LostProcessError:
        raise
    except InputError as error:
        if not together.main:  # which says nothing at the command's end, where it repeats what the main one says
            log.error("process %d: %s", together.index, error)
        raise
    except RuntimeError as error:
        if not _is_of_a_connection(error):
            raise
        raise LostProcessError(
            "another process of this command has ended, and has said why if it could. The same command goes on from "
            "the last checkpoint."
        ) from error


def _is_of_a_connection(error: RuntimeError) -> bool:
    """Whether a collective operation has failed because its other end is gone."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
