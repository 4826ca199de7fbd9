"""The scripts for Slurm: they can be read, and a job that is to end saves, and is queued again."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sodp3d.core.cli import config_groups
from sodp3d.core.paths import CHECKOUT

assert CHECKOUT is not None
SCRIPTS = sorted((CHECKOUT / "examples" / "slurm").iterdir())
BASH = shutil.which("bash") or "bash"
# Says that it works, and at SIGTERM stops as a command of ours does, after a moment.
COMMAND = """
import signal, sys, time
def stop(*_):
    time.sleep(0.2)
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("begun", flush=True)
time.sleep(float(sys.argv[1]))
sys.exit(int(sys.argv[2]))
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash_and_ask_to_be_warned(script: Path) -> None:
    subprocess.run([BASH, "-n", str(script)], check=True)
    text = script.read_text()
    if script.suffix == ".sbatch":
        for line in ("--signal=B:TERM@120", "--requeue", "--open-mode=append"):
            assert f"#SBATCH {line}\n" in text
        assert "in_turns " in text and "set -euo pipefail" in text
        used = [word.partition("=")[2] for word in text.split() if word.startswith("env=") and "$" not in word]
        assert set(used) <= set(config_groups("train")["env"])


def job(folder: Path, seconds: float, status: int) -> subprocess.Popen[str]:
    """A script of one turn, with a cluster that notes what it is asked for."""
    for name in ("scontrol", "scancel"):
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {folder}/asked\n')
        (folder / name).chmod(0o755)
    (folder / "command.py").write_text(COMMAND)
    turns = CHECKOUT / "examples/slurm/turns.sh"  # type: ignore[operator]
    lines = f"set -euo pipefail\nsource {turns}\nin_turns {sys.executable} command.py {seconds} {status}\necho done"
    around = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    return subprocess.Popen([BASH, "-c", lines], cwd=folder, env=around, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("status", "said"), [(0, "begun\ndone\n"), (2, "begun\n")])
def test_a_job_that_ends_by_itself_is_not_queued_again(tmp_path: Path, status: int, said: str) -> None:
    begun = job(tmp_path, 0, status)
    assert begun.communicate(timeout=20)[0] == said and begun.returncode == status
    assert not (tmp_path / "asked").exists()


def test_a_job_whose_time_is_over_saves_and_is_queued_again(tmp_path: Path) -> None:
    begun = job(tmp_path, 30, 0)
    assert begun.stdout is not None and begun.stdout.readline() == "begun\n"
    time.sleep(0.1)  # until bash waits
    begun.terminate()
    assert begun.communicate(timeout=20)[0] == "saved\n" and begun.returncode == 143
    assert (tmp_path / "asked").read_text() == "scontrol requeue 7\n"
