"""A run directory: configuration as composed, versions, metrics, TensorBoard, checkpoints, curve; and how to continue.

outputs/<mode>/<label>/<time>-s<seed>/
  config.yaml  versions.json  metrics.jsonl  tensorboard/  checkpoints/  videos/  curve.png  result.json (when finished)
"""

import json
import logging
import math
import platform
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import yaml

from sodp3d.errors import InputError
from sodp3d.files import PROJECT, exclusive_lock, write_json, write_text

log = logging.getLogger(__name__)
PACKAGES = ("torch", "mujoco", "gymnasium", "gymnasium-robotics", "metaworld", "open3d", "zarr", "numpy", "sodp3d")


def git_commit() -> str:
    """The project's commit (with `+changes` if the tree differs), or `unknown` outside a checkout."""
    command = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty=+changes", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions() -> dict[str, str]:
    """Versions of Python, the packages that shape results, and the project's commit."""
    found = {"python": platform.python_version(), "git_commit": git_commit(), "command": " ".join(sys.argv)}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


class Run:
    """An open run directory; as a context manager it holds its lock and turns SIGINT/SIGTERM into `stop_requested`."""

    def __init__(self, directory: Path, config: dict[str, Any]):
        self.directory = directory
        self.config = config
        self.stop_requested = False
        self._stack = ExitStack()
        self._started = time.monotonic()
        self._last_line = -math.inf

    def __enter__(self) -> "Run":
        self.directory.mkdir(parents=True, exist_ok=True)
        self._stack.enter_context(exclusive_lock(self.directory / ".lock", f"run directory {self.directory}"))
        if not (self.directory / "config.yaml").exists():
            write_text(self.directory / "config.yaml", yaml.safe_dump(self.config, sort_keys=False))
        write_json(self.directory / "versions.json", versions())
        for number in (signal.SIGINT, signal.SIGTERM):
            previous = signal.signal(number, self._request_stop)
            self._stack.callback(signal.signal, number, previous)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        if self.stop_requested:
            raise KeyboardInterrupt
        self.stop_requested = True
        log.warning("stopping after this step: a checkpoint is saved first (once more to stop at once)")

    @property
    def checkpoints(self) -> Path:
        """Where `sodp3d.checkpoint` keeps this run's state."""
        return self.directory / "checkpoints"

    def rewind(self, step: int) -> None:
        """Drop metrics logged after `step`, so that a resumed run leaves neither gaps nor duplicates."""
        path = self.directory / "metrics.jsonl"
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            write_text(path, "".join(f"{line}\n" for line in kept))

    def log(self, step: int, metrics: dict[str, float], total: int | None = None) -> None:
        """Append to metrics.jsonl and TensorBoard, and say it in the terminal (at most every two seconds).

        Args:
            step: the run's own counter (gradient steps, environment steps); the same for a resumed run.
            metrics: names in the field's terms (`train/loss`, `evaluation/success_count`).
            total: where the counter ends, for the time left.
        """
        record = {"step": step, **{name: _plain(value) for name, value in metrics.items()}}
        with (self.directory / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        for name, value in metrics.items():
            self._board().add_scalar(name, value, step)
        now = time.monotonic()
        if now - self._last_line > 2 or step == total:
            self._last_line = now
            log.info("%s", _line(step, total, now - self._started, metrics))

    def metrics(self) -> list[dict[str, Any]]:
        """All records logged so far."""
        path = self.directory / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def finish(self, result: dict[str, Any]) -> None:
        """Mark the run as finished."""
        write_json(self.directory / "result.json", result)

    def _board(self) -> Any:
        if not hasattr(self, "_writer"):
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.directory / "tensorboard"))
            self._stack.callback(self._writer.close)
        return self._writer


def _plain(value: float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return math.inf  # the torn last line of a killed run


def _line(step: int, total: int | None, seconds: float, metrics: dict[str, float]) -> str:
    values = "  ".join(f"{name.split('/')[-1]} {value:.4g}" for name, value in metrics.items())
    return f"{step}/{total}  {seconds:.0f}s  {values}" if total else f"{step}  {seconds:.0f}s  {values}"


def is_finished(directory: Path) -> bool:
    """Whether a run directory holds a finished run."""
    return (directory / "result.json").is_file()


def read_config(directory: Path) -> dict[str, Any]:
    """The configuration a run was started with. Raises InputError where there is none."""
    try:
        return yaml.safe_load((directory / "config.yaml").read_text())
    except FileNotFoundError:
        raise InputError(f"{directory}: not a run directory (config.yaml is missing).") from None


def open_run(parent: Path, config: dict[str, Any], seed: int, directory: Path | None = None) -> Run:
    """The unfinished run of exactly this configuration under `parent`, newest first, or else a new one.

    `directory` names one explicitly; it is continued if it holds the same configuration and refused otherwise.
    """
    if directory is not None:
        if (directory / "config.yaml").exists() and read_config(directory) != config:
            changed = _differences(read_config(directory), config)
            raise InputError(f"{directory} was started with another configuration ({changed}); choose another run_dir.")
        return Run(directory, config)
    candidates = sorted((path.parent for path in parent.glob("*/config.yaml")), reverse=True)
    for candidate in candidates:
        if not is_finished(candidate) and read_config(candidate) == config:
            log.info("continuing %s", candidate)
            return Run(candidate, config)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
    return Run(parent / f"{stamp}-s{seed}", config)


def newest_finished(parent: Path) -> Path | None:
    """The newest finished run under `parent`, or None."""
    finished = [path.parent for path in parent.glob("*/result.json")]
    return max(finished, key=lambda path: path.name, default=None)


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str:
    changes = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            if before != after:
                changes.append(_differences(before, after, f"{prefix}{key}."))
        elif before != after:
            changes.append(f"{prefix}{key}: {before!r} there, {after!r} here")
    return ", ".join(changes)
