"""Small records of runs and stores, from which all tables can be made when weights and data are gone.

A record is what `scan` finds in a run directory, in the same files, without weights, TensorBoard and videos; a store's
has its card too. All records are in one compressed file.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from sodp3d.core import checkpoint
from sodp3d.core.errors import InputError
from sodp3d.core.files import write_json, write_text
from sodp3d.core.run import WALL_TIME, read_config, read_result, read_versions
from sodp3d.results.archive import SUFFIX, pack, unpack
from sodp3d.results.scan import STORE_RECORD, RunRecord, portable, seconds, without_machine
from sodp3d.results.stores import StoreRecord
from sodp3d.tools.card import find_card

CARD = "card.md"


def keep_records(archive: Path, runs: Sequence[RunRecord], stores: Sequence[StoreRecord]) -> Path:
    """Write or refresh the record of every run and store in `archive`; others there stay. The archive's path.

    Raises InputError, before anything is written, where the name is not one of an archive, or where two runs or stores,
    or one and a record there, share a name but are not the same; OSError.
    """
    if not archive.name.endswith(SUFFIX):
        raise InputError(f"--keep: expected a file name that ends with {SUFFIX}, got {archive}.")
    with TemporaryDirectory(prefix="sodp3d-records-") as temporary:
        folder = Path(temporary)
        if archive.exists():
            unpack(archive, folder)
        kept = {store.name: StoreRecord.read(folder / store.name) for store in stores if _is_kept(folder, store)}
        for store in stores:
            _check_same(archive, kept.setdefault(store.name, store), store)
        told = {run.name: _kept_run(folder / run.name) for run in runs if (folder / run.name / "result.json").exists()}
        for run in runs:
            _check_same_run(archive, told.setdefault(run.name, run), run)
        for run in runs:
            _keep_run(folder / run.name, run)
        for store in stores:
            _keep_store(folder / store.name, store)
        pack(folder, archive)
    return archive


def _is_kept(folder: Path, store: StoreRecord) -> bool:
    return (folder / store.name / STORE_RECORD).exists()


def _check_same(archive: Path, kept: StoreRecord, store: StoreRecord) -> None:
    if not kept.is_of_the_same_data(store):
        raise InputError(
            f"--keep: {archive} is for the record of data {kept.data_hash} as {store.name}, not of {store.data_hash} "
            f"in {store.folder}; rename the folder of one to keep both."
        )


def _kept_run(folder: Path) -> RunRecord:
    return RunRecord(folder, read_config(folder), read_result(folder))


def _check_same_run(archive: Path, kept: RunRecord, run: RunRecord) -> None:
    if kept.content != run.content:
        raise InputError(
            f"--keep: {archive} is for the record of another run as {run.name}, with other settings or another result "
            f"than that in {run.path}; rename the folder of one to keep both."
        )


def _keep_run(folder: Path, run: RunRecord) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", yaml.safe_dump(without_machine(run.config), sort_keys=False))
    write_json(folder / "result.json", without_machine(run.result))
    if run.data_hash:
        state = checkpoint.path_of(folder / "checkpoints", 0)
        state.mkdir(parents=True, exist_ok=True)
        write_json(state / checkpoint.STATE, {"data_hash": run.data_hash})
    _keep_log(folder, run.path)


def _keep_store(folder: Path, store: StoreRecord) -> None:
    (folder / "agent").mkdir(parents=True, exist_ok=True)
    write_text(folder / STORE_RECORD, json.dumps(store.facts, sort_keys=True) + "\n")
    card = find_card(store.folder)
    if store.is_original and card is not None:
        write_text(folder / CARD, _portable_card(card.read_text(encoding="utf-8")))
    _keep_log(folder / "agent", store.folder / "agent")


def _portable_card(text: str) -> str:
    """A store's card without its pictures, which stay with the data, and without what belongs to the machine."""
    kept = text.split("\n## Samples\n")[0].rstrip()
    command = r"(?m)^(\| versions command \| )(.*)( \|)$"
    return re.sub(command, lambda row: row[1] + portable(row[2]) + row[3], kept) + "\n"


def _keep_log(folder: Path, source: Path) -> None:
    """What was logged, with what, for how long."""
    if (source / "metrics.jsonl").exists():
        text = (source / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
        write_text(folder / "metrics.jsonl", text)
    if (source / "versions.json").exists():
        versions = read_versions(source)
        if versions.get("command"):
            versions["command"] = portable(versions["command"])
        write_json(folder / "versions.json", versions)
    spent = seconds(source)
    if spent is not None:
        write_json(folder / WALL_TIME, {"seconds": spent})
