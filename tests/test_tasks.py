"""Tasks side by side: each in its own process, whose lines are named, whose end no other feels."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import toy_tasks
from toy_tasks import crash, die, mistake, wait, work

from sodp3d.core.errors import InputError
from sodp3d.core.machine import core_count
from sodp3d.core.stopping import Stopped
from sodp3d.parallel import WorkerError
from sodp3d.parallel.tasks import Job, at_once, run_side_by_side, share_of


def jobs(folder: Path, **functions: Callable[[Path, str], None]) -> list[Job]:
    return [Job(name, function, (folder, name)) for name, function in functions.items()]


def until(found: Callable[[], bool]) -> None:
    """Wait until something is there."""
    end = time.monotonic() + 60
    while not found():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def test_all_are_done_apart_and_a_mistake_stops_no_other(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done: list[str] = []
    with pytest.raises(InputError, match=r"(?s)1 of 3 tasks failed.*\n  b: key: b is wrong\.\n.*only what is left"):
        run_side_by_side(jobs(tmp_path, a=work, b=mistake, c=work), 2, done.append)
    assert sorted(done) == ["a", "c"]
    processes = {(tmp_path / name).read_text() for name in done}
    assert len(processes) == 2 and all(line.split()[1] == "1" for line in processes)
    said = capfd.readouterr().err.splitlines()
    assert {"a: one", "a: two", "c: one", "c: two"} <= set(said), "each line has its task's name once"


def test_what_breaks_or_dies_is_told_as_no_mistake_of_the_users(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(WorkerError, match="2 of 3 tasks failed") as told:
        run_side_by_side(jobs(tmp_path, a=crash, b=die, c=work), 3)
    lines = "  a: KeyError: 'a'\n  b: its process died with exit code -9\n"
    assert lines in str(told.value), "in the order of the tasks, whichever failed first"
    assert (tmp_path / "c").exists() and "a: Traceback" in capfd.readouterr().err


def test_a_stop_lets_each_save_and_begins_no_other(tmp_path: Path) -> None:
    def stop() -> None:
        until(lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists())
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Stopped) as stopped:
        run_side_by_side(jobs(tmp_path, a=wait, b=wait, c=work), 2)
    thread.join()
    assert stopped.value.number == signal.SIGTERM
    assert (tmp_path / "a-saved").exists() and (tmp_path / "b-saved").exists() and not (tmp_path / "c").exists()


def test_a_parent_that_is_killed_leaves_nobody_behind(tmp_path: Path) -> None:
    around = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, toy_tasks.__file__, str(tmp_path)], env=around) as parent:
        until(lambda: all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in ("a", "b")))
        parent.kill()
    children = [int((tmp_path / name).read_text().split()[0]) for name in ("a", "b")]
    until(lambda: not any(_lives(child) for child in children))


def _lives(process: int) -> bool:
    """Not even as a zombie, which a container's first process may never fetch."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_cores_are_shared_by_the_tasks_that_run_together() -> None:
    config = {"tasks_at_once": None, "threads": None, "workers": None}
    assert at_once(config, 100) == core_count() and at_once({**config, "tasks_at_once": 3}, 2) == 2
    assert share_of(config, 1) == config, "a task that runs alone has all of them"
    shared = share_of(config, core_count() + 1)
    assert (shared["threads"], shared["workers"]) == (1, 1)
    asked = {**config, "threads": 2, "workers": 5}
    assert share_of(asked, 4) == asked
