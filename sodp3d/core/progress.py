"""How far long work has come: a bar in a terminal, a line anywhere else."""

import os
from typing import Any

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
