"""Damaged planners and run directories: one message, or the run left out, and never a traceback or a wrong number."""

import copy
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from toy_planner import make_planner
from toy_results import make_run, summary

from sodp3d.core import checkpoint
from sodp3d.core.cli import compose
from sodp3d.core.errors import InputError
from sodp3d.core.run import open_run
from sodp3d.envs.config import EnvConfig
from sodp3d.learning.lookup import find_planner
from sodp3d.models.loading import load_planner, planner_state
from sodp3d.results.__main__ import make_tables
from sodp3d.results.scan import scan
from sodp3d.settings import differences
from sodp3d.tools.runs import newest_runs, results
from sodp3d.tools.summary import stage_lines

CONFIG = compose("train")
TASK = EnvConfig.from_config(CONFIG["env"])
TRIES = int(os.environ.get("SODP3D_FUZZ", 40))  # of each property; thousands take hours
WRONG: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    float("nan"),
    float("inf"),
    10**400,
    "",
    "words",
    [],
    [1],
    ["a"],
    {},
    {"a": 1},
]


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything in a tree of plain values, the tree itself included."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from leaves(value, (*path, key))


def damaged(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The tree with `value` at `path`; "gone" takes it out."""
    if not path:
        return value
    tree = copy.deepcopy(tree)
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    if value == "gone":
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return tree


# ---- planners ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    planner = make_planner()
    state = planner_state(planner, [TASK], "0123")
    tensors = checkpoint.with_prefix("planner", planner.state_dict())
    return checkpoint.save(tmp_path_factory.mktemp("planner"), 5, tensors, state)


@pytest.fixture
def planner_copy(saved: Path, tmp_path: Path) -> Path:
    path = tmp_path / saved.name
    path.mkdir()
    for name in (checkpoint.TENSORS, checkpoint.STATE):
        (path / name).write_bytes((saved / name).read_bytes())
    return path


@settings(
    max_examples=TRIES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_planner_s_state_with_anything_in_it_is_refused_or_loads(planner_copy: Path, saved: Path, data: Any) -> None:
    state = json.loads((saved / checkpoint.STATE).read_text())
    path = data.draw(st.sampled_from(list(leaves(state))))
    value = data.draw(st.sampled_from([*WRONG, "gone"]))
    (planner_copy / checkpoint.STATE).write_text(json.dumps(damaged(state, path, value)))
    try:
        load_planner(planner_copy)
    except InputError as error:
        assert planner_copy.name in str(error)
    else:
        assert path[:1] not in (("tasks",), ("data_hash",), ("format",)) or value in ("words", "", "a", ["a"], True)


def test_weights_that_are_not_finite_are_refused_by_name(planner_copy: Path) -> None:
    tensors = load_file(planner_copy / checkpoint.TENSORS)
    name = next(name for name in tensors if name.startswith("planner.unet"))
    tensors[name].view(-1)[3] = float("nan")
    save_file(tensors, planner_copy / checkpoint.TENSORS)
    with pytest.raises(InputError, match="sha256"):
        load_planner(planner_copy)
    state = json.loads((planner_copy / checkpoint.STATE).read_text())
    (planner_copy / checkpoint.STATE).write_text(json.dumps(damaged(state, (checkpoint.DIGEST,), "gone")))
    with pytest.raises(InputError, match=f"{name.removeprefix('planner.')} holds values that are not finite"):
        load_planner(planner_copy)


@pytest.mark.parametrize("how", ["missing", "extra", "shape"])
def test_weights_that_do_not_fit_are_refused(planner_copy: Path, how: str) -> None:
    tensors = load_file(planner_copy / checkpoint.TENSORS)
    name = next(iter(tensors))
    if how == "missing":
        del tensors[name]
    else:
        tensors |= {"planner.more": torch.zeros(2)} if how == "extra" else {name: torch.zeros(1, 2, 3, 4)}
    save_file(tensors, planner_copy / checkpoint.TENSORS)
    state = json.loads((planner_copy / checkpoint.STATE).read_text())
    (planner_copy / checkpoint.STATE).write_text(json.dumps(damaged(state, (checkpoint.DIGEST,), "gone")))
    with pytest.raises(InputError, match="the weights do not fit their configuration"):
        load_planner(planner_copy)


# ---- run directories -----------------------------------------------------------------------------------------------


def put(run: Path, name: str, value: Any) -> None:
    """A JSON or YAML file of a run, with that in it."""
    (run / name).write_text(yaml.safe_dump(value) if name.endswith("yaml") else json.dumps(value))


def contents(run: Path, name: str) -> Any:
    return yaml.safe_load((run / name).read_text())


FILES = [
    "config.yaml",
    "result.json",
    "versions.json",
    "wall_time.json",
    "metrics.jsonl",
    "checkpoints/00000001/state.json",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two runs of each stage: one to stay whole, one to be damaged."""
    folder = tmp_path_factory.mktemp("runs")
    planner = make_run(folder, "pretrain", 5)
    more = {"best": 7, "validations": [0.5], "planner": planner}
    return {
        "planner": planner,
        "tuned": make_run(folder, "finetune", 6, **more),
        "pretrain": make_run(folder, "pretrain", 4, seed=1, validations=[0.5]),
        "finetune": make_run(folder, "finetune", 5, seed=1, **more),
    }


@settings(max_examples=TRIES, deadline=None, derandomize=True)
@given(data=st.data())
def test_one_damaged_run_stops_no_table_of_the_others(runs: dict[str, Path], data: Any) -> None:
    folder, bad = runs["planner"].parents[3], runs[data.draw(st.sampled_from(["pretrain", "finetune"]))]
    name = data.draw(st.sampled_from(FILES))
    before, whole = (bad / name).read_bytes(), contents(bad, name)
    value = data.draw(st.sampled_from([*WRONG, "gone"]))
    put(bad, name, damaged(whole, data.draw(st.sampled_from(list(leaves(whole)))), value))
    try:
        tables = make_tables(scan([folder]))[0]
    finally:
        (bad / name).write_bytes(before)
    listed = {row["directory"] for row in tables["runs"]}
    assert {run.relative_to(folder).as_posix() for run in runs.values() if run != bad} <= listed
    assert len(listed | {row["directory"] for row in tables["unfinished"]}) == 4


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"\0\xff\xfe", b"[" * 100_000, b"{" * 100_000])
def test_files_that_are_nothing_stop_no_table_of_the_others(tmp_path: Path, name: str, content: bytes) -> None:
    good, bad = make_run(tmp_path, "finetune", 6), make_run(tmp_path, "finetune", 5, seed=1)
    (bad / name).write_bytes(content)
    listed = {row["directory"] for row in make_tables(scan([tmp_path]))[0]["runs"]}
    assert good.relative_to(tmp_path).as_posix() in listed


def test_a_run_that_names_itself_as_its_planner_ends(tmp_path: Path) -> None:
    run = make_run(tmp_path, "finetune", 6)
    put(run, "config.yaml", contents(run, "config.yaml") | {"planner": str(run)})
    assert len(make_tables(scan([tmp_path]))[0]["runs"]) == 1


@settings(max_examples=TRIES, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_damaged_record_stops_no_new_run_and_no_search(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    folder = tmp_path_factory.mktemp("root")
    label = folder / "outputs/pretrain/adroit_door-pointcloud"
    run = label / "20260101-000000-000-s0"
    run.mkdir(parents=True)
    key = data.draw(st.sampled_from(sorted(CONFIG)))
    put(run, "config.yaml", {**CONFIG, key: data.draw(st.sampled_from(WRONG[:9] + WRONG[10:]))})
    config = {**CONFIG, "root": str(folder)}
    open_run(label, config, 0, differences=differences)
    put(run, "result.json", {})
    try:
        find_planner(config, ("pretrain",))
    except InputError as error:
        assert "make one with" in str(error)


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("config.yaml", (), []),
        ("config.yaml", ("env",), None),
        ("config.yaml", ("env", "camera"), "wide"),
        ("result.json", (), None),
        ("result.json", ("evaluation", "success"), {}),
        ("result.json", ("evaluation", "episodes"), "ten"),
        ("result.json", ("evaluation", "seeds"), [1]),
        ("result.json", ("tasks",), [1]),
    ],
)
def test_the_summary_tells_of_the_newest_run_that_is_whole(
    tmp_path: Path, name: str, path: tuple[str, ...], value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for day in (1, 2):
        run = tmp_path / f"pretrain/{TASK.name}-pointcloud/2026010{day}-000000-000-s0"
        run.mkdir(parents=True)
        put(run, "config.yaml", CONFIG)
        put(run, "result.json", {"evaluation": summary(day), "tasks": {}})
    put(run, name, damaged(contents(run, name), path, value))
    runs = newest_runs(tmp_path, TASK.name)
    assert runs["pretrain"].name.startswith("20260101") and "left out" in caplog.text
    assert [found.line()[:4] for found in results(runs)] == ["10 %"] and stage_lines(runs["pretrain"])


def test_a_planner_that_never_learned_is_not_fine_tuned(tmp_path: Path) -> None:
    config = {**CONFIG, "root": str(tmp_path)}
    label = tmp_path / "outputs/pretrain/adroit_door-pointcloud"
    for day, step in ((1, 7), (2, 0)):
        run = label / f"2026010{day}-000000-000-s0"
        checkpoint.save(run / "checkpoints", step, {}, {})
        put(run, "config.yaml", config)
        put(run, "result.json", {"steps": step})
    assert find_planner(config, ("pretrain",)).name.startswith("20260101")
