"""Who is told a run's numbers: that all of them arrive, and that a run is the same whoever is told, or fails."""

import importlib.util
import json
import logging
import random
import sqlite3
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from test_mapped_training import Unmeasured, cloud_store, configuration
from test_run import CONFIG, full_disk

from sodp3d.core import registry, trackers
from sodp3d.core.errors import InputError
from sodp3d.core.run import Run, open_run
from sodp3d.core.trackers import Tracker, require_tracker
from sodp3d.envs.config import task_configs
from sodp3d.learning.pretrain import pretrain
from sodp3d.settings import CommonSettings, differences

FIRST, SECOND = {"train/loss": 0.5, "train/norm": float("nan")}, {"train/loss": 0.25}
DASHBOARDS = [
    pytest.param(name, marks=pytest.mark.skipif(not importlib.util.find_spec(name), reason=f"needs the extra {name}"))
    for name in ("trackio", "wandb")
]


class Restless(Tracker):
    """Notes what it is told, and disturbs every generator of random numbers that all code shares."""

    told: ClassVar[list[tuple[int, dict[str, float]]]] = []
    opened = closed = 0

    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        assert config and directory.is_dir()
        self.empty = Restless.opened == 0
        Restless.opened += 1

    def add(self, step: int, values: Mapping[str, float]) -> None:
        Restless.told.append((step, dict(values)))
        random.seed(step)
        np.random.seed(step)
        torch.manual_seed(step)

    def close(self) -> None:
        Restless.closed += 1


class Broken(Restless):
    """Fails where `fails` says."""

    fails = "add"

    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        self._maybe("init")

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._maybe("add")

    def close(self) -> None:
        self._maybe("close")

    def _maybe(self, where: str) -> None:
        if self.fails == where:
            raise ConnectionError("the dashboard\nis gone")


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trackers of our own, and dashboards that keep to this test's folder."""
    monkeypatch.setitem(registry.TRACKERS, "restless", f"{__name__}:Restless")
    monkeypatch.setitem(registry.TRACKERS, "broken", f"{__name__}:Broken")
    monkeypatch.setattr(Restless, "told", [])
    monkeypatch.setattr(Restless, "opened", 0)
    monkeypatch.setattr(Restless, "closed", 0)
    for variable in ("WANDB_MODE", "WANDB_PROJECT", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(variable, raising=False)
    if importlib.util.find_spec("trackio"):
        import trackio.sqlite_storage

        monkeypatch.setattr(trackio.sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")


# ---- what arrives ------------------------------------------------------------------------------------------------


def board(run: Run) -> list[tuple[int, dict[str, float]]]:
    """What TensorBoard's files hold, oldest first."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = []
    for file in sorted((run.directory / "tensorboard").iterdir()):
        for event in EventFileLoader(str(file)).Load():
            if event.summary.value:
                found.append((event.step, {value.tag: value.tensor.float_val[0] for value in event.summary.value}))
    return found


def database(run: Run) -> list[tuple[int, dict[str, float]]]:
    """What trackio's database holds of the run."""
    from trackio.sqlite_storage import TRACKIO_DIR

    name = json.loads((run.directory / "trackio.json").read_text())["name"]
    with sqlite3.connect(TRACKIO_DIR / "sodp3d.db") as connection:
        rows = connection.execute("SELECT step, metrics, run_id FROM metrics WHERE run_name = ? ORDER BY id", [name])
        found = rows.fetchall()
    assert len({run_id for _, _, run_id in found}) == 1, "one run"
    return [(step, {key: float(value) for key, value in json.loads(metrics).items()}) for step, metrics, _ in found]


def newest_folder(run: Run) -> list[tuple[int, dict[str, float]]]:
    """What W&B's newest offline folder of the run holds, which `wandb sync` would upload."""
    from wandb.proto import wandb_internal_pb2

    ids = {file.stem.removeprefix("run-") for file in (run.directory / "wandb").glob("offline-run-*/*.wandb")}
    assert ids == {json.loads((run.directory / "wandb.json").read_text())["id"]}, "one run"
    (file,) = (run.directory / "wandb" / "latest-run").glob("*.wandb")
    found, records = [], list[Any]()
    for _ in range(100):  # W&B's own process writes the last of them when it may
        records = [wandb_internal_pb2.Record.FromString(content) for content in leveldb_records(file.read_bytes()[7:])]
        if records and records[-1].WhichOneof("record_type") == "exit":
            break
        time.sleep(0.1)
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            values = {key: float(json.loads(value)) for key, value in items.items() if not key.startswith("_")}
            found.append((int(values.pop("step")), values))
    return found


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """Records of a log as LevelDB writes them, small enough to lie in its first block."""
    place = 0
    while place + 7 <= len(content):
        _, length, kind = struct.unpack_from("<IHB", content, place)
        if place + 7 + length > len(content):
            return  # still being written
        assert kind == 1, "whole"
        yield content[place + 7 : place + 7 + length]
        place += 7 + length


READERS = {"tensorboard": board, "trackio": database, "wandb": newest_folder}


@pytest.mark.parametrize("tracker", ["tensorboard", *DASHBOARDS])
def test_a_run_that_goes_on_goes_on_in_the_same_place(tmp_path: Path, tracker: str) -> None:
    with open_run(tmp_path / "runs", CONFIG, 1, tracker=tracker) as run:
        run.log(-1, FIRST)
        run.log(1, SECOND)
    with open_run(tmp_path / "runs", CONFIG, 1, tracker=tracker) as again:
        again.log(2, SECOND)
    assert again.directory == run.directory
    found = READERS[tracker](again)
    assert [step for step, _ in found] == [-1, 1, 2]
    np.testing.assert_equal([values for _, values in found], [FIRST, SECOND, SECOND])


@pytest.mark.parametrize("tracker", ["tensorboard", "restless", *DASHBOARDS])
def test_a_tracker_that_comes_later_is_told_what_was_logged_before(tmp_path: Path, tracker: str) -> None:
    with Run(tmp_path / "runs/one", CONFIG, "none") as run:
        run.log(1, FIRST)
    with Run(tmp_path / "runs/one", CONFIG, tracker) as run:
        run.log(2, SECOND)
        run.log(3, SECOND)
    found = Restless.told if tracker == "restless" else READERS[tracker](run)
    np.testing.assert_equal(found, [(1, FIRST), (2, SECOND), (3, SECOND)])


def test_a_run_that_logs_nothing_opens_none(tmp_path: Path) -> None:
    with Run(tmp_path / "run", CONFIG, "restless"):
        pass
    assert Restless.opened == Restless.closed == 0 and not (tmp_path / "run/tensorboard").exists()


def test_none_keeps_nothing(tmp_path: Path) -> None:
    with Run(tmp_path / "run", CONFIG, "none") as run:
        run.log(1, SECOND)
    kept = {path.name for path in (tmp_path / "run").iterdir()}
    assert kept == {".lock", "config.yaml", "metrics.jsonl", "versions.json", "wall_time.json"}


def test_runs_of_several_roots_are_not_one_to_a_dashboard(tmp_path: Path) -> None:
    from sodp3d.core.dashboards import identity

    folders = [tmp_path / root / "data/adroit_door/agent" for root in "ab"]
    for folder in folders:
        folder.mkdir(parents=True)
    (first, _, new), (second, _, _) = (identity(folder, "trackio") for folder in folders)
    assert first != second and first.startswith("data/adroit_door/agent-") and new
    assert identity(folders[0], "trackio")[0] == first and not identity(folders[0], "trackio")[2]


# ---- a run is the same whoever is told ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    cloud_store(folder / "episodes.zarr", task_configs(configuration(folder, "ram"))[0])
    return folder


def trained(store: Path, directory: Path, tracker: str) -> dict[str, bytes]:
    """Every checkpoint of a small pre-training, and its numbers, as they lie on the disk."""
    config = configuration(store, "ram")
    with Run(directory, config, tracker) as run:
        pretrain(config, run, task_configs(config), torch.device("cpu"), Unmeasured())
    kept = [directory / "metrics.jsonl", *sorted(directory.glob("checkpoints/*/*"))]
    return {str(path.relative_to(directory)): path.read_bytes() for path in kept}


@pytest.fixture(scope="module")
def untold(store: Path) -> dict[str, bytes]:
    """What a run without any tracker leaves."""
    kept = trained(store, store / "untold", "none")
    assert len(kept["metrics.jsonl"].splitlines()) == 3 and any(name.endswith(".safetensors") for name in kept)
    return kept


@pytest.mark.parametrize("tracker", ["tensorboard", "restless", "broken", *DASHBOARDS])
def test_a_run_is_the_same_bit_for_bit(store: Path, untold: dict[str, bytes], tmp_path: Path, tracker: str) -> None:
    assert trained(store, tmp_path / "run", tracker) == untold
    if tracker == "restless":
        assert [step for step, _ in Restless.told] == [1, 2, 3] and Restless.closed == 1


def test_a_tracker_does_not_decide_a_run(tmp_path: Path) -> None:
    assert differences({"tracker": "wandb", "method": "sodp"}, {"tracker": "none", "method": "sodp"}) == []
    with open_run(tmp_path, CONFIG, 1, differences=differences, tracker="none") as run:
        pass
    assert open_run(tmp_path, {**CONFIG, "tracker": "restless"}, 1, differences=differences).directory == run.directory


# ---- what fails --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", ["init", "add", "close"])
def test_one_that_fails_is_told_of_once_and_the_run_goes_on(
    tmp_path: Path, fails: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Broken, "fails", fails)
    with Run(tmp_path, CONFIG, "broken") as run:
        for step in range(1, 6):
            run.log(step, SECOND)
        run.finish({"done": True})
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1
    assert warned[0].startswith("tracker=broken failed (ConnectionError: the dashboard is gone). The run goes on")
    assert [record["step"] for record in run.metrics()] == [1, 2, 3, 4, 5]


def test_a_full_disk_ends_tensorboard_s_curves_and_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Run(tmp_path, CONFIG) as run:
        run.log(1, SECOND)
        grown = sum(path.stat().st_size for path in tmp_path.glob("tensorboard/*"))
        with full_disk(grown + 3):
            run.log(2, SECOND)
    assert caplog.text.count("tracker=tensorboard failed (OSError") == 1
    with Run(tmp_path, CONFIG) as run:
        run.log(3, SECOND)
    assert [record["step"] for record in run.metrics()] == [1, 2, 3]
    assert [step for step, _ in board(run)] == [1, 3], "it is tried again"


@pytest.mark.parametrize("kept", ["[]", "{", '{"name": "x"}'])
def test_a_damaged_note_of_a_dashboard_stops_no_run(
    tmp_path: Path, kept: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trackio")
    (tmp_path / "trackio.json").write_text(kept)
    with Run(tmp_path, CONFIG, "trackio") as run:
        run.log(1, SECOND)
    assert caplog.text.count("tracker=trackio failed") == 1 and len(run.metrics()) == 1


def test_one_that_there_is_not_is_refused_before_anything_begins() -> None:
    with pytest.raises(
        InputError, match=r"^tracker: expected one of tensorboard, trackio, wandb, none, .*got 'mlflow'"
    ):
        CommonSettings(tracker="mlflow")
    with pytest.raises(InputError, match=r"^tracker: expected a text, got 3\."):
        CommonSettings(tracker=3)  # type: ignore[arg-type]
    CommonSettings(tracker="restless")


def test_one_whose_package_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    for name in ("trackio", "wandb"):
        with pytest.raises(
            InputError, match=rf"^tracker: {name} needs {name}, .*pip install {name} \(the extra {name}\)"
        ):
            require_tracker(name)
    require_tracker("tensorboard")
    require_tracker("none")


def test_wandb_s_own_variables_are_the_user_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    asked: dict[str, Any] = {}

    def init(**options: Any) -> None:
        asked.update(options)
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(wandb, "init", init)
    for variables in ({}, {"WANDB_MODE": "online", "WANDB_PROJECT": "mine"}):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with Run(tmp_path, CONFIG, "wandb") as run:
            run.log(1, SECOND)
        expected = (variables.get("WANDB_MODE", "offline"), variables.get("WANDB_PROJECT", "sodp3d"))
        assert (asked["mode"], asked["project"]) == expected and asked["config"] == CONFIG
