"""How far long work has come: a bar in a terminal, a line anywhere else."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

log = logging.getLogger(__name__)

LINE_VARIABLE = "SODP3D_LINE_SECONDS"
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


@contextmanager
def episodes_done(name: str) -> Iterator[Callable[[int, int], None]]:
    """A function of (done, total) that shows how many episodes of `name` are done, rate and time left."""
    started, last, before = time.monotonic(), 0.0, -1
    with ExitStack() as stack:
        bar = stack.enter_context(progress_bar()) if sys.stderr.isatty() else None
        task = None if bar is None else bar.add_task("", total=None, values=name)

        def show(done: int, total: int) -> None:
            nonlocal last, before
            now, before = time.monotonic(), done if before < 0 else before  # the first call comes before any is made
            if bar is not None:
                bar.update(task, completed=done, total=total)
            elif now - last > LINE_SECONDS or done == total:
                last = now
                line = progress_line(done, total, done - before, now - started, "").rstrip()
                log.info("%s: episode %s", name, line)

        yield show
