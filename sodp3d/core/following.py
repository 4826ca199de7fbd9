"""A run directory as the processes see it that learn beside the one that writes it."""

from pathlib import Path
from types import TracebackType
from typing import Any

from sodp3d.core.run import Run
from sodp3d.core.stopping import on_signal


class Follower(Run):
    """Another process's run: signals are noted as there, and what it would write is left to that process."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, {})

    def __enter__(self) -> "Follower":
        self._stack.enter_context(on_signal(self._request_stop))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def rewind(self, step: int) -> None:
        """Nothing: the main process does it."""

    def log(self, step: int, metrics: dict[str, float], total: int | None = None) -> None:
        """Nothing: the main process does it."""

    def finish(self, result: dict[str, Any]) -> None:
        """Nothing: the main process does it."""
