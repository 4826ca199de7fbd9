"""Whether this process is one of several that `torchrun` or `accelerate launch` began for one command.

They say so in environment variables. Every command asks, so nothing heavy is imported here.
"""

import os

from sodp3d.core.errors import InputError


def count() -> int:
    """Processes of this command on all machines; 1 where no launcher began it."""
    return max(1, _number("WORLD_SIZE", 1))


def index() -> int:
    """Which of them this is; 0 is the main one."""
    return _number("RANK", 0) if count() > 1 else 0


def on_this_machine() -> int:
    """How many of them this machine has."""
    return max(1, _number("LOCAL_WORLD_SIZE", 1)) if count() > 1 else 1


def is_main() -> bool:
    """Whether this process writes, measures and tells; the others only learn."""
    return index() == 0


def require_one(what: str) -> None:
    """Raise InputError where several processes were begun for what one does."""
    if count() > 1:
        raise InputError(
            f"{what} is done by one process, but a launcher began {count()}. Only mode=pretrain, one run at a time, is "
            "for torchrun and accelerate launch; give the command without them."
        )


def require_whole() -> None:
    """Raise InputError where several processes were asked for, and `accelerate launch --cpu` began one alone."""
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" and "MASTER_PORT" in os.environ
    if asked and count() == 1:
        raise InputError(
            "accelerate launch --cpu begins a single process unless mpirun begins the others; on CPUs use "
            "torchrun --nproc_per_node <processes> with the same command."
        )


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default
