"""Whether the stores of a set of tasks are there, and hold all that was asked for.

data/<env>/agent/asked.json   the agent steps that the last `collect` was asked for; stores of earlier releases, merged
                              and extracted ones have none
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sodp3d.core.errors import InputError
from sodp3d.core.files import read_json, write_json
from sodp3d.core.paths import command_line
from sodp3d.data.attributes import each
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import EnvConfig

log = logging.getLogger(__name__)
_PLACE = Path("agent") / "asked.json"


def note_asked(folder: Path, steps: int) -> None:
    """Note in the folder of a store how many steps its collection is asked for. Raises InputError."""
    if not (folder / _PLACE).exists() or read_json(folder / _PLACE) != {"steps": steps}:
        write_json(folder / _PLACE, {"steps": steps})


def steps_asked(store: EpisodeStore) -> int:
    """Steps that the store's collection was asked for; those that are there where nothing was noted.

    Raises InputError where the note is broken.
    """
    path = store.path.parent / _PLACE
    if not path.exists():
        return store.steps
    noted = read_json(path)
    steps = noted.get("steps") if isinstance(noted, dict) else None
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise InputError(f"{path}: steps: expected a whole number of at least 1, got {noted!r}; collect again.")
    return steps


def _making(task: EnvConfig, path: Path) -> str:
    """The command that makes the store at `path`."""
    usual = path.parent.parts[-2:] == ("data", task.name)
    return command_line("collect", *task.choice.split(), *([] if usual else [f"data={path.parent}"]))


def _collecting(store: EpisodeStore) -> str:
    """The command that the store's collection was begun with; where it was not noted, the usual one.

    Of a merged store that is the first collector's.
    """
    versions: dict[str, Any] = next(each(store.attributes.get("versions")), {})
    noted = versions.get("command")
    if noted is None:
        return command_line("collect", *store.typed)
    return noted if noted.startswith("sodp3d ") else f"python {noted}"


def with_stores(tasks: Sequence[EnvConfig], paths: Sequence[Path], partial: bool) -> list[EnvConfig]:
    """The tasks whose stores, at `paths`, are there: all, or some where `partial` says that they suffice.

    Raises InputError naming every missing store and the command that makes it.
    """
    missing = [(task, path) for task, path in zip(tasks, paths, strict=True) if not path.exists()]
    if not missing:
        return list(tasks)
    makes = [f"{path}; make it with: {_making(task, path)}" for task, path in missing]
    if len(tasks) == 1:
        raise InputError(f"data: no store at {makes[0]}")
    if not partial or len(missing) == len(tasks):
        raise InputError(
            f"data: {len(missing)} of {len(tasks)} tasks have no store. Make them, or go on without with partial=true:"
            f"{_lines(makes)}"
        )
    log.warning("partial=true: without %s, of which there are no stores", ", ".join(task.name for task, _ in missing))
    return [task for task in tasks if task not in [lost for lost, _ in missing]]


def require_complete(stores: Sequence[EpisodeStore], partial: bool) -> None:
    """Raise InputError naming every store of several that its collection has not filled, unless `partial`.

    Of a single store, and with `partial`, a warning tells it.
    """
    short = [store for store in stores if store.steps < steps_asked(store)]
    lines = [
        f"{store.path} holds {store.steps} of {steps_asked(store)} steps; collect the rest with: {_collecting(store)}"
        for store in short
    ]
    if short and len(stores) > 1 and not partial:
        raise InputError(
            f"data: {len(short)} of {len(stores)} stores are half collected. Collect the rest, or take them as they "
            f"are with partial=true:{_lines(lines)}"
        )
    for line in lines:
        log.warning("data: %s", line)


def _lines(parts: Sequence[str]) -> str:
    return "".join(f"\n  {part}" for part in parts)
