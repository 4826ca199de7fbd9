"""Files that survive a kill, and locks that say who holds them."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sodp3d.core.errors import InputError
from sodp3d.core.files import Lock, disk_errors, partial_path, read_json, replace_file


@pytest.mark.parametrize("at", ["ftruncate", "pwrite"])
def test_a_disk_that_fills_up_while_locking_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, at, full)
        with pytest.raises(InputError, match=r"No space left on device.*nothing was changed"):
            Lock(tmp_path / "lock", "{holder}")
    with Lock(tmp_path / "lock", "{holder}"), pytest.raises(InputError, match=f"process {os.getpid()} on"):
        Lock(tmp_path / "lock", "{holder}")


KILLED = """
import sys, time
from pathlib import Path
from sodp3d.core import files
files.Path.replace = lambda *_: (print("written", flush=True), time.sleep(60))
files.replace_file(Path(sys.argv[1]), b"half")
"""


def test_what_a_killed_writer_left_goes_with_a_later_one(tmp_path: Path) -> None:
    path = tmp_path / "card.md"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "written\n"
        writer.send_signal(signal.SIGKILL)
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".partial")
    working = [partial_path(path), tmp_path / f"card.md.{'0' * 32}.partial"]  # this process's, and who knows whose
    kept = [tmp_path / "card.md.partial", tmp_path / f"other.md.{'0' * 32}.partial"]
    for other in (*working, *kept):
        shutil.copy2(left, other)
    replace_file(path, b"whole")
    assert sorted(tmp_path.iterdir()) == sorted([path, *working, *kept]), "what may still be written stays"
    for left in working:
        os.utime(left, (time.time() - 7200,) * 2)
    replace_file(path, b"whole again")
    assert sorted(tmp_path.iterdir()) == sorted([path, *kept])
    assert path.read_bytes() == b"whole again"


@pytest.mark.parametrize("content", [b"\xff", b"[" * 100_000, b"", b"{"])
def test_broken_json_is_one_message(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json: not valid JSON"):
        read_json(path)
    with pytest.raises(InputError, match="cannot read"):
        read_json(tmp_path)
    path.write_bytes('{"ü": "█"}'.encode())
    assert read_json(path) == {"ü": "█"}


def test_a_file_in_a_folders_place_is_told_apart_from_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "afile").touch()
    with (
        pytest.raises(InputError, match=r"afile is a file, not a folder; nothing was written\. Name another\."),
        disk_errors(tmp_path / "afile" / "x", "nothing was written"),
    ):
        (tmp_path / "afile" / "x").mkdir()
