"""How far long work has come: a bar in a terminal, a line anywhere else."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)

LINE_VARIABLE = "SODP3D_LINE_SECONDS"
TASKS_SHOWN = 4  # of a set, by name in a line
LINE_SECONDS = float(os.environ.get(LINE_VARIABLE, "2"))  # between two lines of one command


def progress_bar() -> Any:
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


def shown(metrics: Mapping[str, float]) -> str:
    """Metrics as a line has them: each `group/name` by its name, of many tasks (`train_loss/<task>`) least and most.

    Groups with an underscore, `<what>_<measure>`, hold one number of each task of a set.
    """
    groups: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        group, _, name = key.rpartition("/")
        groups.setdefault(group, {})[name] = value
    parts = []
    for group, values in groups.items():
        if "_" in group and len(values) > TASKS_SHOWN:
            least, most = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
            values = {f"of {len(values)} tasks {least}": values[least], f"to {most}": values[most]}
        parts += [f"{name} {value:.4g}" for name, value in values.items()]
    return "  ".join(parts)


def progress_lines(name: str) -> Callable[[int, int], None]:
    """A function of (done, total) that logs rate and time left now and then, and the end."""
    started, last, before = time.monotonic(), [0.0], list[int]()

    def progress(done: int, total: int) -> None:
        now = time.monotonic()
        before[:] = before or [done]  # the first call comes before any episode is made
        if now - last[0] > LINE_SECONDS or done == total:
            last[0] = now
            log.info("%s: episode %s", name, progress_line(done, total, done - before[0], now - started, "").rstrip())

    return progress


@contextmanager
def episodes_done(name: str) -> Iterator[Callable[[int, int], None]]:
    """A function of (done, total) that moves a bar in a terminal, and is `progress_lines` anywhere else."""
    if not sys.stderr.isatty():
        yield progress_lines(name)
        return
    with progress_bar() as bar:
        task = bar.add_task("", total=None, values=name)
        yield lambda done, total: bar.update(task, completed=done, total=total)
