"""Small records of runs and stores, from which all tables can be made when weights and data are gone.

A record is what `scan` finds in a run directory, in the same files, without weights, TensorBoard and videos.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from sodp3d import checkpoint
from sodp3d.errors import InputError
from sodp3d.files import read_json, write_json, write_text
from sodp3d.results.scan import STORE_RECORD, RunRecord, portable, seconds, without_machine
from sodp3d.results.stores import StoreRecord
from sodp3d.run import WALL_TIME


def keep_records(folder: Path, runs: Sequence[RunRecord], stores: Sequence[StoreRecord]) -> list[Path]:
    """Write or refresh the record of every run and store in `folder`; others there stay.

    Raises InputError, before anything is written, where a record there is of another store of the same name; OSError.
    """
    for store in stores:
        known = folder / store.name / STORE_RECORD
        if known.exists() and (kept := read_json(known)["data_hash"]) != store.data_hash:
            raise InputError(
                f"--keep: {known.parent} is the record of data {kept}, not of {store.data_hash} in {store.folder}; "
                "rename that record's folder to keep both, or delete it."
            )
    return [_keep_run(folder / run.name, run) for run in runs] + [_keep_store(folder / s.name, s) for s in stores]


def _keep_run(folder: Path, run: RunRecord) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", yaml.safe_dump(without_machine(run.config), sort_keys=False))
    write_json(folder / "result.json", without_machine(run.result))
    if run.data_hash:
        state = folder / "checkpoints" / f"{0:08d}"
        state.mkdir(parents=True, exist_ok=True)
        write_json(state / checkpoint.STATE, {"data_hash": run.data_hash})
    _keep_log(folder, run.path)
    return folder


def _keep_store(folder: Path, store: StoreRecord) -> Path:
    (folder / "agent").mkdir(parents=True, exist_ok=True)
    write_text(folder / STORE_RECORD, json.dumps(store.facts, sort_keys=True) + "\n")
    _keep_log(folder / "agent", store.folder / "agent")
    return folder


def _keep_log(folder: Path, source: Path) -> None:
    """What was logged, with what, for how long."""
    if (source / "metrics.jsonl").exists():
        write_text(folder / "metrics.jsonl", (source / "metrics.jsonl").read_text())
    if (source / "versions.json").exists():
        versions = read_json(source / "versions.json")
        if "command" in versions:
            versions["command"] = portable(versions["command"])
        write_json(folder / "versions.json", versions)
    spent = seconds(source)
    if spent is not None:
        write_json(folder / WALL_TIME, {"seconds": spent})
