"""Recordings of robots, and others' data: a family that has a name and no environment, since nothing simulates it."""

from typing import NoReturn

from sodp3d.core.errors import InputError
from sodp3d.envs.config import NEEDS_A_SIMULATOR, RECORDED, EnvConfig


class Recorded:
    """What stands in the table of families, and tells whoever wants to act why it cannot be made."""

    def __init__(self, config: EnvConfig) -> None:
        self.require(config.task)

    @staticmethod
    def require(task: str) -> NoReturn:
        """There is no task to act in. Raises InputError."""
        raise InputError(f"env={RECORDED}: {NEEDS_A_SIMULATOR}")
