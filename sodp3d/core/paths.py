"""Where things are: the package's own files, and the folder that holds a user's data and runs."""

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
_ABOVE = PACKAGE.parent
CHECKOUT: Path | None = _ABOVE if (_ABOVE / "configs").is_dir() and (_ABOVE / "pyproject.toml").is_file() else None
CONFIGS = (CHECKOUT or PACKAGE) / "configs"  # in a wheel they lie inside the package
_SCRIPTS = {
    "collect": "data_collection/collect.py",
    "convert": "data_collection/convert.py",
    "record": "data_collection/record.py",
    "pretrain-encoder": "data_collection/pretrain_encoder.py",
    "train": "train.py",
    "replay": "replay.py",
}


def root(config: Mapping[str, Any] | None = None) -> Path:
    """The folder that holds `data/` and `outputs/`: `root=`, else SODP3D_ROOT, else the current folder."""
    given = (config or {}).get("root") or os.environ.get("SODP3D_ROOT")
    return Path(given).expanduser().resolve() if given else Path.cwd()


def data_root(config: Mapping[str, Any] | None = None) -> Path:
    """Where stores are: `<root>/data`."""
    return root(config) / "data"


def outputs_root(config: Mapping[str, Any] | None = None) -> Path:
    """Where run directories are: `<root>/outputs`."""
    return root(config) / "outputs"


def command_line(verb: str, *options: str) -> str:
    """What to type for a command, for messages: `sodp3d <verb>`, or in a checkout its script, as the user began.

    A `root=` and `plugins=` that the user typed come along, or the command would look elsewhere, and know less.
    """
    typed = [word for word in sys.argv[1:] if word.startswith(("root=", "plugins=")) and verb in _SCRIPTS]
    script = None if CHECKOUT is None or sys.argv[0].startswith("sodp3d ") else _SCRIPTS.get(verb)
    program = ["python", script] if script else ["sodp3d", verb]
    words = (option for option in (*options, *typed) if option)
    return " ".join([*program, *(word if "<" in word else shlex.quote(word) for word in words)])
