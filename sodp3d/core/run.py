"""A run directory: configuration as composed, versions, metrics, TensorBoard, checkpoints, curve; and how to continue.

outputs/<mode>/<label>/<time>-s<seed>/
  config.yaml  versions.json  metrics.jsonl  wall_time.json  tensorboard/  checkpoints/  videos/  curve.png
  result.json (when finished)
"""

import json
import logging
import math
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import yaml

from sodp3d.core.errors import InputError
from sodp3d.core.files import Lock, read_json, write_json, write_text
from sodp3d.core.mappings import flat
from sodp3d.core.paths import CHECKOUT

log = logging.getLogger(__name__)
RECORDED_PACKAGES = (
    "torch",
    "mujoco",
    "gymnasium",
    "gymnasium-robotics",
    "metaworld",
    "open3d",
    "zarr",
    "numpy",
    "sodp3d",
)
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same language, ten times faster
WALL_TIME = "wall_time.json"
Difference = tuple[str, Any, Any]  # dotted name of an option, its value there, its value here
TIME_EVERY = 30.0  # seconds between two notes of the time spent, so that a kill loses no more


def git_commit() -> str:
    """The checkout's commit (with `+changes` if the tree differs), or `unknown` where the package is installed."""
    if CHECKOUT is None:
        return "unknown"
    command = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty=+changes", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def recorded_versions() -> dict[str, str]:
    """Versions of Python and the packages that shape results, the project's commit, and the command that runs."""
    program, *options = sys.argv
    words = program.split() if program.startswith("sodp3d ") else [program]  # a verb of the `sodp3d` command
    found = {"python": platform.python_version(), "git_commit": git_commit(), "command": shlex.join([*words, *options])}
    for package in RECORDED_PACKAGES:
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
        self._entered = self._started = time.monotonic()
        self._seconds_before = 0.0  # spent by earlier processes on this run
        self._last_timed = -math.inf
        self._first_step: int | None = None  # logged by this process; a resumed run does not start at 0
        self._last_line = -math.inf
        self._bar: Any = None

    def __enter__(self) -> "Run":
        taken = f"run directory {self.directory} is in use by {{holder}}; wait for it or stop it first."
        self._stack.enter_context(Lock(self.directory / ".lock", taken))
        if not (self.directory / "config.yaml").exists():
            write_text(self.directory / "config.yaml", yaml.safe_dump(self.config, sort_keys=False))
        write_json(self.directory / "versions.json", recorded_versions())
        self._seconds_before, self._entered = seconds_spent(self.directory) or 0.0, time.monotonic()
        for number in (signal.SIGINT, signal.SIGTERM):
            previous = signal.signal(number, self._request_stop)
            self._stack.callback(signal.signal, number, previous)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._note_time()
        finally:
            self._stack.close()

    def _note_time(self) -> None:
        self._last_timed = time.monotonic()
        seconds = self._seconds_before + self._last_timed - self._entered
        write_json(self.directory / WALL_TIME, {"seconds": round(seconds, 1)})

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        if self.stop_requested:
            raise KeyboardInterrupt
        self.stop_requested = True
        log.warning("stopping after this step: a checkpoint is saved first (once more to stop at once)")

    @property
    def checkpoints(self) -> Path:
        """Where `sodp3d.core.checkpoint` keeps this run's state."""
        return self.directory / "checkpoints"

    def rewind(self, step: int) -> None:
        """Drop metrics logged after `step`, so that a resumed run leaves neither gaps nor duplicates."""
        path = self.directory / "metrics.jsonl"
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            write_text(path, "".join(f"{line}\n" for line in kept))

    def log(self, step: int, metrics: dict[str, float], total: int | None = None) -> None:
        """Append to metrics.jsonl and TensorBoard, and show it: a progress bar in a terminal, else a line every 2 s.

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
        self._show(step, total, metrics)
        if time.monotonic() - self._last_timed > TIME_EVERY:
            self._note_time()

    def _show(self, step: int, total: int | None, metrics: dict[str, float]) -> None:
        now = time.monotonic()
        if self._first_step is None:
            self._first_step, self._started = step, now
        values = "  ".join(f"{name.split('/')[-1]} {value:.4g}" for name, value in metrics.items())
        if total and sys.stderr.isatty():
            if self._bar is None:
                self._bar = self._stack.enter_context(_progress())
                self._task = self._bar.add_task("", total=total, values="")
            self._bar.update(self._task, completed=step, total=total, values=values)
        elif now - self._last_line > 2 or step == total:
            self._last_line = now
            seconds = now - self._started
            log.info("%s", progress_line(step, total, step - self._first_step, seconds, values))

    def metrics(self) -> list[dict[str, Any]]:
        """All records logged so far."""
        return read_metrics(self.directory)

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


def _progress() -> Any:
    """A bar with count, time left and the newest metrics, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[values]}"))
    return Progress(*columns, console=Console(stderr=True))


def progress_line(step: int, total: int | None, new: int, seconds: float, values: str) -> str:
    """Count, seconds, and once steps were made, their rate and the time left; `new`: steps since `seconds` ago."""
    rate = new / seconds if new > 0 and seconds > 0 else 0.0
    pace = (
        f"  {rate:.3g}/s" + (f"  {(total - step) / rate:.0f}s left" if total and total > step else "") if rate else ""
    )
    return f"{step}{f'/{total}' if total else ''}  {seconds:.0f}s{pace}  {values}"


def is_finished(directory: Path) -> bool:
    """Whether a run directory holds a finished run."""
    return (directory / "result.json").is_file()


def read_config(directory: Path) -> dict[str, Any]:
    """The configuration a run was started with. Raises InputError where there is none, or a broken one."""
    path = directory / "config.yaml"
    try:
        config = yaml.load(path.read_text(), _YAML)
    except FileNotFoundError:
        raise InputError(f"{directory}: not a run directory (config.yaml is missing).") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a run's configuration, got {config!r}.")
    return config


def readable_config(directory: Path) -> dict[str, Any] | None:
    """`read_config`, or None after a warning: one broken run must not stop the others."""
    try:
        return read_config(directory)
    except InputError as error:
        log.warning("%s This run is left out.", error)
        return None


def all_differences(recorded: Mapping[str, Any], config: Mapping[str, Any]) -> list[Difference]:
    """(dotted name, value there, value here) of all in which two configurations differ."""
    there, here = flat(recorded), flat(config)
    names = sorted(there.keys() | here.keys())
    return [(name, there.get(name), here.get(name)) for name in names if there.get(name) != here.get(name)]


def open_run(
    parent: Path,
    config: dict[str, Any],
    seed: int,
    directory: Path | None = None,
    differences: Callable[[Mapping[str, Any], Mapping[str, Any]], list[Difference]] = all_differences,
) -> Run:
    """The unfinished run of this configuration under `parent`, newest first, or else a new one.

    `directory` names one explicitly; it is continued if it holds the same configuration and refused otherwise.
    `differences` of a recorded configuration and this one says what makes them two runs; nothing: it is the same run.
    """
    if directory is not None:
        if is_finished(directory):
            raise InputError(f"run_dir: {directory} holds a finished run; choose another folder, or leave run_dir out.")
        found = differences(read_config(directory), config) if (directory / "config.yaml").exists() else []
        if found:
            changed = ", ".join(f"{name}: {there!r} there, {here!r} here" for name, there, here in found)
            raise InputError(f"{directory} was started with another configuration ({changed}); choose another run_dir.")
        return Run(directory, config)
    for candidate in sorted((path.parent for path in parent.glob("*/config.yaml")), reverse=True):
        recorded = None if is_finished(candidate) else readable_config(candidate)
        if recorded is not None and not differences(recorded, config):
            log.info("continuing %s", candidate)
            return Run(candidate, config)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
    return Run(parent / f"{stamp}-s{seed}", config)


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """Records of a run's metrics.jsonl; a torn line, as a kill leaves it, is skipped."""
    path = directory / "metrics.jsonl"
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    return records


def seconds_spent(directory: Path) -> float | None:
    """Wall-clock seconds that all processes together spent on a run, the last 30 s before a kill left out; or None."""
    path = directory / WALL_TIME
    return float(read_json(path)["seconds"]) if path.exists() else None


def newest_finished(parent: Path) -> Path | None:
    """The newest finished run under `parent`, or None."""
    finished = [path.parent for path in parent.glob("*/result.json")]
    return max(finished, key=lambda path: path.name, default=None)
