"""A planner as one graph plans as the planner does: traced, and written for PyTorch and ONNX Runtime."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_planner import make_planner
from toy_run import QUICK, save_planner

from sodp3d.__main__ import main
from sodp3d.core.errors import InputError
from sodp3d.models import graph
from sodp3d.models.graph import METADATA, PlanGraph, largest_difference, onnx_runner
from sodp3d.models.loading import load_choice, load_planner

CLOUDS = replace(QUICK, observation="pointcloud", sensor_shape=(16, 3))
IMAGES = replace(QUICK, observation="image", sensor_shape=(3, 32, 32), renderer="egl")


def eager(made: PlanGraph) -> graph.Runner:
    """The graph's own function, not traced."""

    @torch.no_grad()
    def run(inputs: graph.Arrays) -> list[np.ndarray]:
        return [output.numpy() for output in made(*(torch.from_numpy(inputs[name]) for name in made.names))]

    return run


@pytest.mark.parametrize("config", [QUICK, CLOUDS, IMAGES, replace(CLOUDS, eta=0.0, prediction="sample")])
def test_the_graph_plans_as_the_planner_does(config: graph.Any) -> None:
    planner = make_planner(config)
    assert largest_difference(PlanGraph(planner), planner, eager(PlanGraph(planner))) < 1e-5


def test_the_graph_chooses_as_the_planner_does(tmp_path: Path) -> None:
    path = save_planner(tmp_path, CLOUDS, best_of=4)
    planner, choice = load_planner(path), load_choice(path)
    made = PlanGraph(planner, choice)
    assert made.names == ("agent_pos", "point_cloud", "noise", "elapsed")
    assert made.inputs(5)["noise"].shape == (5, 4, 3, 4, 2) and made.inputs(5)["elapsed"].shape == (5,)
    assert largest_difference(made, planner, eager(made)) < 1e-5
    # It is the choice that is compared: without it, plans differ.
    alone = PlanGraph(planner)
    inputs = made.inputs(5)
    plans = eager(alone)({**inputs, "noise": inputs["noise"][:, 0]})[1]
    assert np.abs(plans - made.expected(inputs, planner)).max() > 0.01


def test_a_difference_shows(tmp_path: Path) -> None:
    planner = make_planner(QUICK)
    made = PlanGraph(planner)
    with torch.no_grad():
        made.planner.encoder.proprioception[0].weight += 0.01
    assert largest_difference(made, planner, eager(made)) > graph.TOLERANCE


def export(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The exit code of `sodp3d export <words>`."""
    monkeypatch.setattr("sys.argv", ["sodp3d", "export", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_what_cannot_be_exported_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_planner(tmp_path / "run")
    (tmp_path / "there.pt2").write_text("mine")
    for words, told in (
        ([path, "torch", tmp_path / "there.pt2"], "exists and is not overwritten"),
        ([path, "torch", tmp_path / "x.pth"], "expected the name of a .pt2 file"),
        (
            [path, "tflite", tmp_path / "x"],
            "format: expected one of folder, dp3, robomimic, minari, lerobot, onnx, torch",
        ),
        ([tmp_path, "torch", tmp_path / "x.pt2"], "neither a run directory"),
    ):
        assert export(monkeypatch, *words) == 2
        assert told in capsys.readouterr().err
    assert (tmp_path / "there.pt2").read_text() == "mine" and len(list(tmp_path.iterdir())) == 2


def test_methods_that_make_no_plans_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        config = replace(QUICK, method="bcrnn")

    monkeypatch.setattr(graph, "load_policy_and_state", lambda path: (Other(), {}))
    with pytest.raises(InputError, match="is of method=bcrnn"):
        graph.export_torch(tmp_path, tmp_path / "x.pt2")


@pytest.mark.slow
def test_a_program_is_written_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_planner(tmp_path / "run", CLOUDS, best_of=2)
    assert export(monkeypatch, path, "torch", tmp_path / "door.pt2") == 0
    assert "inputs agent_pos, point_cloud, noise, elapsed" in capsys.readouterr().out
    extra = {METADATA: ""}
    module = torch.export.load(tmp_path / "door.pt2", extra_files=extra).module()
    described = json.loads(extra[METADATA])
    assert described["best_of"] == 2 and described["inputs"]["point_cloud"] == ["batch", 2, 16, 3]
    inputs = PlanGraph(load_planner(path), load_choice(path)).inputs(7)
    actions, plan = module(*(torch.from_numpy(value) for value in inputs.values()))
    assert actions.shape == (7, 3, 2) and torch.equal(actions, plan[:, 1:4])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["door.pt2", "run"]


@pytest.mark.slow
@pytest.mark.parametrize(("config", "best_of"), [(CLOUDS, 2), (IMAGES, 1)])
def test_an_onnx_file_is_written_and_compared(tmp_path: Path, config: graph.Any, best_of: int) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript"), pytest.importorskip("onnxruntime")
    path = save_planner(tmp_path / "run", config, best_of)
    told = graph.export_onnx(path, tmp_path / "door.onnx")
    assert "differs from the planner by at most" in told
    planner, choice = load_planner(path), load_choice(path)
    made = PlanGraph(planner, choice)
    assert largest_difference(made, planner, onnx_runner(tmp_path / "door.onnx")) < graph.TOLERANCE
    (described,) = [entry.value for entry in onnx.load(tmp_path / "door.onnx").metadata_props if entry.key == METADATA]
    assert json.loads(described)["planner"] == planner.config.to_dict()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["door.onnx", "run"]


@pytest.mark.slow
def test_a_file_that_plans_otherwise_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_planner(tmp_path / "run")
    monkeypatch.setattr(graph, "TOLERANCE", -1.0)
    with pytest.raises(InputError, match=r"the \.pt2 file plans otherwise than the planner"):
        graph.export_torch(path, tmp_path / "door.pt2")
    assert [file.name for file in tmp_path.iterdir()] == ["run"]
