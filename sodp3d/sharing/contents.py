"""What a pushed planner or store consists of: what evaluating, serving, replaying and fine-tuning it need, no more.

| planner | what |
| --- | --- |
| checkpoints/<step>/ | the weights that act (the averaged ones where there are such), its critic, its configuration |
| config.yaml, versions.json, result.json | what made it, and what it was measured to do |
| evaluation/<task>/ | its test episodes: seeds, actions, outcomes |

No optimizer, no generators, no memory of episodes. Of a store: its collected and derived arrays, attributes and card.
Absolute paths of the machine where it was made are cut to their last part.
"""

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from sodp3d.core import checkpoint
from sodp3d.core.errors import InputError
from sodp3d.core.files import read_json, replace_file, write_json, write_text
from sodp3d.core.mappings import plain
from sodp3d.core.run import read_config, read_result, read_versions
from sodp3d.data.store import EpisodeStore
from sodp3d.models.loading import TOLD_OF_PLANNERS, acting, checkpoint_of, load_policy_and_state
from sodp3d.rollouts.kept import ROLLOUTS, KeptRollouts
from sodp3d.sharing.cards import planner_card, store_card
from sodp3d.sharing.manifest import PLANNER, STORE, Manifest, belongs
from sodp3d.sharing.sources import Files

_STATE = (
    *TOLD_OF_PLANNERS,
    "sampler",
    "critic",
    "best_of",
)  # of a checkpoint, that count; sampler: of earlier releases
# Of absolute paths in a text, such as a command: all but the last part. Not of web addresses (`&#58;` is the colon of
# those in cards), nor of relative paths; and a slash between two words is no path.
_FOLDERS = re.compile(r"""(?<![\w.~:/-])(?<!&#58;)(~\w*)?/+(?!\s)([^/=,\[\]'"\n]+/+)*""")


@contextmanager
def package_of(
    path: Path, evaluation: Path | None = None, licence: str | None = None, address: str = "<address>"
) -> Iterator[Files]:
    """What is pushed of a run directory or a store's folder; what is made for it lives as long as the context.

    evaluation: a mode=eval run of that planner, whose episodes are taken instead of its own. licence: as the card's
    front matter names it. address: where the package will be, for the card. Raises InputError where there is neither a
    planner nor a store, or a damaged one.
    """
    store = path if path.suffix == ".zarr" else path / "episodes.zarr"
    with tempfile.TemporaryDirectory(prefix="sodp3d-push-") as folder:
        if store.is_dir():
            if evaluation is not None:
                raise InputError("evaluation: is of a planner, but a store is pushed; leave it out.")
            kind, files = STORE, _store_files(store, Path(folder), licence, address)
        else:
            kind, files = PLANNER, _planner_files(path, evaluation, Path(folder), licence, address)
        yield Files(str(path), kind, files, Manifest.of(kind, files))


def _planner_files(
    run: Path, evaluation: Path | None, folder: Path, licence: str | None, address: str
) -> dict[str, Path]:
    source = checkpoint_of(run)
    if not (run / "config.yaml").is_file():
        raise InputError(
            f"{run}: a planner is pushed with its record; name its run directory (config.yaml is missing)."
        )
    policy, _ = load_policy_and_state(source)  # whole, or this says what is wrong
    tensors, state = checkpoint.load(source)
    kept = {key: state[key] for key in _STATE if key in state}
    made = checkpoint.save(folder / "checkpoints", state["step"], acting(tensors), kept)
    write_text(folder / "config.yaml", yaml.safe_dump(without_folders(read_config(run)), sort_keys=False))
    write_json(folder / "versions.json", without_folders(read_versions(run)))
    if (run / "result.json").is_file():
        write_json(folder / "result.json", without_folders(read_result(run)))
    _write_evaluations(run, evaluation, source, made, state["tasks"])
    write_text(folder / "README.md", planner_card(folder, policy, licence, address))
    return _below(folder)


def _write_evaluations(run: Path, evaluation: Path | None, source: Path, made: Path, tasks: list[str]) -> None:
    """The test episodes of just these weights, under the digest of the file that they have in the package."""
    before, now = checkpoint.digest_of(source), checkpoint.digest_of(made)
    places = [evaluation / "evaluation"] if evaluation else [run / "evaluation" / "best", run / "evaluation"]
    for task in tasks:
        for place in places:
            path = place / task / ROLLOUTS
            found = KeptRollouts.read(path) if path.is_file() else None
            if found is None or found.planner is None or found.planner.partition(",")[0] != before:
                continue
            to = made.parents[1] / "evaluation" / task
            to.mkdir(parents=True)
            replace_file(to / ROLLOUTS, replace(found, planner=found.planner.replace(before, now)).content())
            if (path.parent / "evaluation.json").is_file():
                write_json(to / "evaluation.json", read_json(path.parent / "evaluation.json"))
            break
        else:
            if evaluation:
                raise InputError(f"evaluation: {evaluation} holds no episodes of {task} by the planner in {source}.")


def _store_files(path: Path, folder: Path, licence: str | None, address: str) -> dict[str, Path]:
    store = EpisodeStore.open(path)
    if faults := store.verify():
        raise InputError(f"{path}: is damaged, and is not pushed: {faults[0]}")
    store.attributes = without_folders(store.attributes)
    write_text(folder / "README.md", without_folders(store_card(store, folder, licence, address)))
    described = read_json(path / ".zattrs")
    (folder / "episodes.zarr").mkdir()
    write_json(folder / "episodes.zarr" / ".zattrs", plain({**described, **store.attributes}))
    return {**_array_files(store), **_below(folder)}


def _array_files(store: EpisodeStore) -> dict[str, Path]:
    """Files of the store's arrays by their names. Raises InputError where an array would be left behind."""
    found = _below(store.path, "episodes.zarr/")  # with locks, and what somebody else may have put there
    files = {name: file for name, file in found.items() if belongs(STORE, name)}
    for key in sorted({*store.specification, *store.keys}):
        if f"episodes.zarr/data/{key}/.zarray" not in files:
            raise InputError(
                f"{store.path}: data/{key} cannot be pushed: expected a folder with .zarray, whose name has only A-Z, "
                "a-z, 0-9, '_', '-' and '.'; restore it from a copy, or write a store with another name for it."
            )
    return files


def _below(folder: Path, prefix: str = "") -> dict[str, Path]:
    """Files of a folder by their names, as deep as packages go. Links are followed: arrays may lie on another disk."""
    found = (path for depth in ("*", "*/*", "*/*/*") for path in folder.glob(depth))  # bounded, so no link goes round
    paths = (path for path in found if path.is_file() and path.name != ".lock")
    return {f"{prefix}{path.relative_to(folder).as_posix()}": path for path in paths}


def without_folders(value: Any) -> Any:
    """A tree of plain values, absolute paths in it cut to their last part: where things were is nobody's business."""
    if isinstance(value, Mapping):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    return _FOLDERS.sub("", value) if isinstance(value, str) else value
