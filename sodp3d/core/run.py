"""A run directory: configuration as composed, versions, metrics, checkpoints, curve; and how to continue.

outputs/<mode>/<label>/<time>-s<seed>/
  config.yaml  versions.json  metrics.jsonl  wall_time.json  checkpoints/  videos/  curve.png
  tensorboard/ (or what another tracker keeps)  result.json (when finished)
"""

import json
import logging
import math
import re
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TypeGuard

import yaml

from sodp3d.core import launch
from sodp3d.core.errors import AlreadyFinishedError, InputError
from sodp3d.core.files import PARTIAL, Lock, claim_folder, disk_errors, read_json, write_json, write_text
from sodp3d.core.mappings import flat
from sodp3d.core.progress import LINE_SECONDS, progress_bar, progress_line, shown
from sodp3d.core.stopping import Stopped, on_signal
from sodp3d.core.trackers import TENSORBOARD, Telling
from sodp3d.core.versions import recorded_versions

log = logging.getLogger(__name__)
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same language, ten times faster
_STAMP = "%Y%m%d-%H%M%S-%f"  # begins the names of runs' folders, down to milliseconds
_DEEPEST = 50  # levels of a configuration; ours have five
WALL_TIME = "wall_time.json"
Difference = tuple[str, Any, Any]  # dotted name of an option, its value there, its value here
TIME_EVERY = 30.0  # seconds between two notes of the time spent, so that a kill loses no more


class Run:
    """An open run directory; as a context manager it holds its lock and turns SIGINT/SIGTERM into `stop_requested`.

    Leaving it after such a signal raises Stopped, so that no command that was stopped seems to have succeeded.
    """

    def __init__(self, directory: Path, config: dict[str, Any], tracker: str = TENSORBOARD):
        self.directory = directory
        self.config = config
        self.stop_requested = False
        self._stopped_by: int | None = None  # the signal
        self._stack = ExitStack()
        self._entered = self._started = time.monotonic()
        self._seconds_before = 0.0  # spent by earlier processes on this run
        self._last_timed = -math.inf
        self._first_step: int | None = None  # logged by this process; a resumed run does not start at 0
        self._last_line = -math.inf
        self._bar: Any = None
        self._telling = Telling(tracker, directory, config, self.metrics)

    def __enter__(self) -> "Run":
        taken = f"run directory {self.directory} is in use by {{holder}}; wait for it or stop it first."
        self._stack.enter_context(Lock(self.directory / ".lock", taken))
        if not (self.directory / "config.yaml").exists():
            write_text(self.directory / "config.yaml", yaml.safe_dump(self.config, sort_keys=False))
        write_json(self.directory / "versions.json", recorded_versions())
        self._seconds_before, self._entered = self._noted_time(), time.monotonic()
        self._stack.enter_context(on_signal(self._request_stop))
        self._stack.callback(self._telling.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with suppress(InputError) if kind else nullcontext():  # what went wrong first is told
                self._note_time()
        finally:
            self._stack.close()
        if kind is None and self._stopped_by is not None:
            raise Stopped(self._stopped_by, finished=is_finished(self.directory))

    def _noted_time(self) -> float:
        try:
            return seconds_spent(self.directory) or 0.0
        except InputError as error:
            log.warning("%s The time spent before is taken as 0.", error)
            return 0.0

    def _note_time(self) -> None:
        self._last_timed = time.monotonic()
        seconds = self._seconds_before + self._last_timed - self._entered
        write_json(self.directory / WALL_TIME, {"seconds": round(seconds, 1)})

    def _request_stop(self, number: int) -> None:
        if self.stop_requested:
            if launch.count() == 1:  # launchers and clusters send one signal twice, and end by themselves what hangs
                raise Stopped(number)
            return
        self.stop_requested, self._stopped_by = True, number
        log.warning("stopping after this step: a checkpoint is saved first (once more to stop at once)")

    @property
    def checkpoints(self) -> Path:
        """Where `sodp3d.core.checkpoint` keeps this run's state."""
        return self.directory / "checkpoints"

    def rewind(self, step: int) -> None:
        """Drop metrics logged after `step`, so that a resumed run leaves neither gaps nor duplicates."""
        path = self.directory / "metrics.jsonl"
        if path.exists():
            kept = [line for line in _lines(path) if _step_of(line) <= step]
            write_text(path, "".join(f"{line}\n" for line in kept))

    def log(self, step: int, metrics: dict[str, float], total: int | None = None) -> None:
        """Append to metrics.jsonl, tell the tracker, and show it: a bar in a terminal, else a line now and then.

        Args:
            step: the run's own counter (gradient steps, environment steps); the same for a resumed run.
            metrics: names in the field's terms (`train/loss`, `evaluation/success_count`).
            total: where the counter ends, for the time left.
        """
        record = {"step": step, **{name: _plain(value) for name, value in metrics.items()}}
        lost = "what was learned since the last checkpoint is lost"
        with disk_errors(self.directory, lost), (self.directory / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        self._telling.add(step, metrics)
        self._show(step, total, metrics)
        if time.monotonic() - self._last_timed > TIME_EVERY:
            self._note_time()

    def log_once(self, step: int, metrics: dict[str, float]) -> None:
        """`log`, unless these numbers of this step are there: what a run logs last, and makes again when it goes on."""
        if not any(record["step"] == step and metrics.keys() <= record.keys() for record in self.metrics()):
            self.log(step, metrics)

    def _show(self, step: int, total: int | None, metrics: dict[str, float]) -> None:
        now = time.monotonic()
        if self._first_step is None:
            self._first_step, self._started = step, now
        values = shown(metrics)
        if total and sys.stderr.isatty():
            if self._bar is None:
                self._bar = self._stack.enter_context(progress_bar())
                self._task = self._bar.add_task("", total=total, values="")
            self._bar.update(self._task, completed=step, total=total, values=values)
        elif now - self._last_line > LINE_SECONDS or step == total:
            self._last_line = now
            seconds = now - self._started
            log.info("%s", progress_line(step, total, step - self._first_step, seconds, values))

    def metrics(self) -> list[dict[str, Any]]:
        """All records logged so far."""
        return read_metrics(self.directory)

    def finish(self, result: dict[str, Any]) -> None:
        """Mark the run as finished: the last thing to do, since such a run is never gone on with."""
        write_json(self.directory / "result.json", result)


def _plain(value: float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror or error}).") from None


def _record(line: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None for what is none, such as the torn last line of a killed run."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not _is_number(record.get("step")):
        return None
    return record if all(value is None or _is_number(value) for value in record.values()) else None


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _step_of(line: str) -> float:
    record = _record(line)
    return math.inf if record is None else record["step"]


def is_finished(directory: Path) -> bool:
    """Whether a run directory holds a finished run."""
    return (directory / "result.json").is_file()


def read_config(directory: Path) -> dict[str, Any]:
    """The configuration a run was started with. Raises InputError where there is none, or a broken one."""
    path = directory / "config.yaml"
    try:
        config = _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{directory}: not a run directory (config.yaml is missing).") from None
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror or error}).") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(config, dict) or not _has_names(config):
        raise InputError(f"{path}: expected a run's configuration, got {_shortened(config)}.")
    return config


def _parse(text: str) -> Any:
    """YAML as plain values. Raises ValueError where it nests so deep that the parser's recursion would crash."""
    depth = 0
    for event in yaml.parse(text, _YAML):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} levels deep")
    return yaml.load(text, _YAML)


def _has_names(config: Mapping[Any, Any]) -> bool:
    """Whether all keys are texts, at every depth."""
    return all(
        isinstance(key, str) and (not isinstance(value, Mapping) or _has_names(value)) for key, value in config.items()
    )


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."


def read_result(directory: Path) -> dict[str, Any]:
    """What a finished run told last. Raises InputError where there is nothing, or something broken."""
    return _read_mapping(directory / "result.json")


def read_versions(directory: Path) -> dict[str, str]:
    """With what a run worked: its command, the commit, packages. Raises InputError where that is broken."""
    path = directory / "versions.json"
    versions = _read_mapping(path) if path.exists() else {}
    for name, value in versions.items():
        if not isinstance(value, str):
            raise InputError(f"{path}: {name}: expected a text, got {_shortened(value)}.")
    return versions


def _read_mapping(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {_shortened(value)}.")
    return value


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
    tracker: str = TENSORBOARD,
) -> Run:
    """The unfinished run of this configuration under `parent`, newest first, or else a new one.

    `directory` names one explicitly; it is continued if it holds the same configuration, begun if it is empty or not
    there yet, and refused otherwise. Nothing is written yet; a new run's own folder is made.
    `differences` of a recorded configuration and this one says what makes them two runs; nothing: it is the same run.
    `tracker` is told the run's numbers: an entry of registry.TRACKERS.
    """
    if directory is not None:
        _require_run_or_empty(directory)
        found = differences(read_config(directory), config) if (directory / "config.yaml").exists() else []
        if is_finished(directory):
            finished = f"run_dir: {directory} holds a finished run; choose another folder, or leave run_dir out."
            raise InputError(finished) if found else AlreadyFinishedError(finished)
        if found:
            changed = ", ".join(f"{name}: {there!r} there, {here!r} here" for name, there, here in found)
            raise InputError(f"{directory} was started with another configuration ({changed}); choose another run_dir.")
        return Run(directory, config, tracker)
    for candidate in sorted((path.parent for path in parent.glob("*/config.yaml")), key=begun, reverse=True):
        recorded = None if is_finished(candidate) else readable_config(candidate)
        if recorded is not None and not differences(recorded, config):
            log.info("continuing %s", candidate)
            return Run(candidate, config, tracker)
    stamp = datetime.now().strftime(_STAMP)[:-3]
    return Run(claim_folder(parent / f"{stamp}-s{seed}"), config, tracker)


def begun(directory: Path) -> tuple[str, str]:
    """Sorts runs by their start: as a folder's name tells it, or, where it has another, the configuration's age."""
    if re.match(r"\d{8}-\d{6}-\d{3}-s", directory.name):
        return directory.name, ""
    config = directory / "config.yaml"
    written = (config if config.exists() else directory).stat().st_mtime
    return datetime.fromtimestamp(written).strftime(_STAMP), directory.name


def _require_run_or_empty(directory: Path) -> None:
    """Raise InputError for a folder with files that are no run's: not one of them may be replaced or removed."""
    if not directory.exists() or (directory / "config.yaml").exists():  # whose configuration is compared
        return
    if not directory.is_dir():
        raise InputError(f"run_dir: {directory} is a file; name a new folder, or an empty one.")
    left = re.compile(rf"\.lock|config\.yaml\.[\w-]+{re.escape(PARTIAL)}")  # by a run killed before it had begun
    foreign = sorted(path.name for path in directory.iterdir() if not left.fullmatch(path.name))
    if foreign:
        some = ", ".join([*foreign[:3], *(["..."] if len(foreign) > 3 else [])])
        raise InputError(
            f"run_dir: {directory} holds files that are no run's ({some}), and nothing is written beside them; name a "
            "new folder, or an empty one."
        )


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """Records of a run's metrics.jsonl; a torn line, as a kill leaves it, is skipped."""
    records = map(_record, _lines(directory / "metrics.jsonl"))
    return [record for record in records if record is not None]


def seconds_spent(directory: Path) -> float | None:
    """Wall-clock seconds that all processes together spent on a run, the last 30 s before a kill left out; or None.

    Raises InputError where the note is broken.
    """
    path = directory / WALL_TIME
    if not path.exists():
        return None
    seconds = _read_mapping(path).get("seconds")
    if not _is_number(seconds) or seconds < 0:
        raise InputError(f"{path}: seconds: expected a number of at least 0, got {_shortened(seconds)}.")
    return float(seconds)
