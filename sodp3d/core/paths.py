"""Where things are: the package's own files, and the folder that holds a user's data and runs."""

import os
import re
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
_PLACEHOLDER = re.compile(r"[\w.=/-]*<[\w /-]+>")  # what a reader is to fill in; all else is quoted for the shell
_OF_TASKS = ("collect", "convert", "train")  # those that take preset= and env.<option>=


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

    What the user typed of where things are, of plug-ins and of sizes comes along, where the command takes it and is not
    told otherwise: without it the command would look elsewhere, know less, or make what then does not fit.
    """
    told = {option.partition("=")[0] for option in options}
    typed = [word for word in sys.argv[1:] if _taken(verb, word) and word.partition("=")[0] not in told]
    script = None if CHECKOUT is None or sys.argv[0].startswith("sodp3d ") else _SCRIPTS.get(verb)
    program = ["python", script] if script else ["sodp3d", verb]
    words = (option for option in (*options, *typed) if option)
    return " ".join([*program, *(word if _PLACEHOLDER.fullmatch(word) else shlex.quote(word) for word in words)])


def _taken(verb: str, word: str) -> bool:
    """Whether a command takes what was typed of another: root, plug-ins, preset, the task's options but its name."""
    if verb not in _SCRIPTS:
        return False
    sized = verb in _OF_TASKS and re.match(r"preset=|env\.(?!(name|task|tasks)=)\w[\w.]*=", word)
    return word.startswith(("root=", "plugins=")) or bool(sized)
