"""The report: what it says of a tiny store and two tiny runs, what it says where they are missing, and its safety."""

import base64
import json
import os
import re
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import yaml
from toy_recorded import make_recorded_store, recorded_episode
from toy_store import ATTRIBUTES, SPECIFICATION, episode, make_store, metadata

from sodp3d.core.cli import compose
from sodp3d.core.errors import InputError
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import EnvConfig
from sodp3d.rollouts.evaluate import wilson_interval
from sodp3d.tools import report, same_seed, summary
from sodp3d.tools.runs import env_options, newest_runs
from sodp3d.tools.video import write_video
from sodp3d.tools.view import write_view

ENV = "adroit_door"
PAYLOAD = "@DATA@{0}{{ 7 * 7 }}<img src=x onerror=alert(1)></script><script>alert(2)</script>"
BEFORE, AFTER = (True, False, False, False), (True, False, True, True)  # success on seeds 100000, 100001, ...


def told(successes: int) -> dict[str, Any]:
    low, high = wilson_interval(successes, 4)
    rate = {"rate": successes / 4, "low95": low, "high95": high}
    success = dict.fromkeys(("final", "count", "any"), rate)
    return {
        "env": ENV,
        "headline_metric": "count",
        "success": success,
        "episodes": 4,
        "seeds": [100000, 100003],
        "return_mean": 0.0,
    }


def make_run(outputs: Path, mode: str, label: str, outcomes: Sequence[bool], result: dict[str, Any]) -> Path:
    """A finished run directory, as far as the report reads it."""
    run = outputs / mode / label / "20260101-000000-000-s0"
    folder = run / "evaluation" / ENV
    folder.mkdir(parents=True)
    planner = f"/elsewhere/outputs/pretrain/{ENV}-pointcloud/{run.name}"
    (run / "config.yaml").write_text(yaml.safe_dump({"env": compose("train", [])["env"], "planner": planner}))
    (run / "result.json").write_text(json.dumps(result))
    record = {"step": 1, "train/loss": 0.5, "rollout/success_count": 0.25, "rollout/return": 3.0}
    (run / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    np.savez_compressed(
        folder / "rollouts.npz",
        seeds=100000 + np.arange(4),
        ends=np.arange(1, 5),
        actions=np.zeros((4, 28), np.float32),
        success=np.repeat(np.array(outcomes)[:, None], 3, axis=1),
    )
    return run


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store and both runs; videos are four noisy frames."""

    def film(
        directory: Path, config: EnvConfig, renderer: str, count: int, output: Path, only: Sequence[int]
    ) -> list[Path]:
        frames = np.random.default_rng(0).integers(0, 255, (4, 16, 32, 3), np.uint8)
        path = output / f"{config.name}-seed{only[0]}-success.mp4"
        write_video(path, list(frames), 10)
        return [path]

    monkeypatch.setattr(same_seed, "write_rollout_videos", film)
    monkeypatch.setenv("SODP3D_ROOT", str(tmp_path))
    make_store(tmp_path / "data" / ENV / "episodes.zarr", range(3), length=5, env=ENV)
    make_run(tmp_path / "outputs", "pretrain", f"{ENV}-pointcloud", BEFORE, {"evaluation": told(1)})
    make_run(
        tmp_path / "outputs", "finetune", f"{ENV}-pointcloud-bc", AFTER, {"before": told(1), "evaluation": told(3)}
    )
    return tmp_path


def own_text(page: str) -> str:
    """The page without plotly.js."""
    start = page.index("<script>")
    return page[:start] + page[page.index("</script>", start) :]


class Tags(HTMLParser):
    """Every element of a page, with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_shows_data_curves_success_and_one_seed_before_and_after(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([ENV]) == 0
    path = Path(capsys.readouterr().out.splitlines()[-1])
    assert path == root / "outputs/report" / f"{ENV}.html"
    page = path.read_text()
    text = own_text(page)
    assert len(page) < 15e6
    assert "<strong>25 %</strong>" in text and "<strong>75 %</strong>" in text
    assert "95 % interval 30 to 95 %, 4 episodes" in text
    # 100000 succeeds twice, 100001 fails twice: 100002 is the first that fine-tuning gained.
    assert "Seed 100002" in text and "Of 4 episodes, 2 went from failure to success and 0 from" in text
    tags = Tags(text).found
    videos = [attributes["src"] for tag, attributes in tags if tag == "video"]
    assert len(videos) == 2 and all(source and source.startswith("data:video/mp4;base64,") for source in videos)
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    titles = [curve["title"] for curve in data["curves"]]
    assert titles == ["The agent while collecting", "Pre-training", "Fine-tuning: success", "Fine-tuning: return"]
    assert data["curves"][2]["lines"][0]["y"] == [25.0]
    assert [shown["index"] for shown in data["frames"]["episodes"]] == [0, 1, 2]
    assert "convert" in text and "No point clouds yet" in text
    for tag, attributes in tags:
        sources = [attributes.get(name) or "" for name in ("src", "href")]
        assert not any(source.startswith(("http", "//")) for source in sources), f"{tag} asks the network"


def test_a_planner_of_a_set_is_shown_on_the_task_that_it_was_fine_tuned_on(root: Path) -> None:
    config = next((root / "outputs/pretrain").glob("*/*/config.yaml"))
    told_of_set = yaml.safe_load(config.read_text())
    told_of_set["env"] = {**told_of_set["env"], "name": "two", "task": "", "tasks": ["door", "pen"]}
    config.write_text(yaml.safe_dump(told_of_set))
    assert report.main([ENV]) == 0
    text = own_text((root / "outputs/report" / f"{ENV}.html").read_text())
    assert "Seed 100002" in text and text.count("data:video/mp4;base64,") == 2


def test_the_same_runs_give_the_same_report(root: Path) -> None:
    report.main([ENV])
    first = (root / "outputs/report" / f"{ENV}.html").read_bytes()
    report.main([ENV])
    assert (root / "outputs/report" / f"{ENV}.html").read_bytes() == first


def test_missing_parts_name_the_command_that_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SODP3D_ROOT", str(tmp_path))
    assert report.main(["metaworld_reach-wall"]) == 0
    text = own_text(Path(capsys.readouterr().out.strip()).read_text())
    choice = "env=metaworld env.task=reach-wall"
    for command in (f"collect.py {choice}", f"mode=pretrain {choice}", f"mode=finetune {choice}"):
        assert command in text, command
    assert summary.main(["metaworld_reach-wall"]) == 2
    assert f"begin with: python data_collection/collect.py {choice}" in capsys.readouterr().err


def test_summary_says_before_and_after(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert summary.main([ENV]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{ENV}: success"
    assert lines[1].split("tuning")[1].strip() == "25 % [5, 70] of 4 episodes" and "before" in lines[1]
    assert lines[2].split("tuning")[1].strip() == "75 % [30, 95] of 4 episodes" and "after" in lines[2]


def test_runs_are_of_the_env_and_of_the_same_planner(root: Path) -> None:
    outputs = root / "outputs"
    newer = make_run(outputs, "pretrain", f"{ENV}-state", BEFORE, {"evaluation": told(1)})
    newer.rename(newer.with_name("20270101-000000-000-s0"))
    earlier = make_run(outputs, "finetune", f"{ENV}-state", AFTER, {"evaluation": told(4)})
    os.utime(earlier.rename(earlier.with_name("named")) / "config.yaml", (0, 0))
    runs = newest_runs(outputs, ENV)
    assert runs["pretrain"] == outputs / f"pretrain/{ENV}-pointcloud/20260101-000000-000-s0", "not the newer one"
    assert runs["finetune"].name == "20260101-000000-000-s0", "not by name"
    assert newest_runs(outputs, "adroit") == {} and newest_runs(root / "nothing", ENV) == {}
    assert env_options(ENV) == [f"env={ENV}"] and env_options("my_robot") == ["env=my_robot"]


def test_before_and_after_are_of_no_other_planner(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = next((root / "outputs/finetune").glob("*/*/config.yaml"))
    config.write_text(
        yaml.safe_dump({**yaml.safe_load(config.read_text()), "planner": "/elsewhere/outputs/pulled/door"})
    )
    assert set(newest_runs(root / "outputs", ENV)) == {"finetune"}
    assert report.main([ENV]) == 0 and summary.main([ENV]) == 0
    text = own_text((root / "outputs/report" / f"{ENV}.html").read_text())
    assert "none of the pre-training runs here" in text and "<video" not in text and "went from failure" not in text
    assert "<strong>25 %</strong>" in text and "mode=pretrain" not in text
    assert "outputs/pretrain" not in capsys.readouterr().out


def test_of_held_out_recordings_the_run_s_own_picture_is_shown(root: Path, tmp_path: Path) -> None:
    secret, numbers = tmp_path / "secret", dict.fromkeys(("policy", "mean_action", "hold_last"), 0.1)
    secret.write_bytes(b"secret")
    found = {"episodes": 1, "error": numbers, "by_action": [], "picture": str(secret)}
    run = make_run(tmp_path / "others", "pretrain", f"{ENV}-pointcloud", BEFORE, {"offline": found})
    (run / "offline.png").write_bytes(b"picture")
    make_recorded_store(tmp_path / "arm/episodes.zarr", [recorded_episode(0)], name=ENV)
    page = report.write_report(ENV, tmp_path / "arm", tmp_path / "others", tmp_path / "report.html").read_text()
    told_of = {content: base64.b64encode(content).decode() in page for content in (b"picture", b"secret")}
    assert told_of == {b"picture": True, b"secret": False}


def test_two_that_write_one_video_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames, write = list(np.zeros((2, 16, 32, 3), np.uint8)), iio.imwrite

    def and_then_another(*values: Any, **options: Any) -> Any:
        monkeypatch.setattr(iio, "imwrite", write)
        made = write(*values, **options)
        write_video(tmp_path / "a.mp4", frames, 10)
        return made

    monkeypatch.setattr(iio, "imwrite", and_then_another)
    write_video(tmp_path / "a.mp4", frames, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert b"moov" in (tmp_path / "a.mp4").read_bytes(), "a whole one"


@pytest.fixture
def malicious(tmp_path: Path) -> Iterator[Path]:
    names = [PAYLOAD, "<a href='https://example.com'>b</a>", "c"]
    agent = {"name": PAYLOAD}
    attributes = {**ATTRIBUTES, "env": PAYLOAD, "renderer": PAYLOAD, "agent": agent, "action_names": names}
    with EpisodeStore.create(tmp_path / "data" / ENV / "episodes.zarr", attributes, SPECIFICATION) as store:
        store.append(episode(0), metadata(0))
    yield tmp_path / "data" / ENV


@pytest.mark.parametrize("kind", ["view", "report"])
def test_what_a_store_calls_itself_is_only_text(malicious: Path, tmp_path: Path, kind: str) -> None:
    if kind == "view":
        path = write_view(malicious)
    else:
        path = report.write_report(PAYLOAD, malicious, tmp_path / "outputs", tmp_path / "report.html")
    text = own_text(path.read_text())
    assert "<img" not in text and "alert(2)</script>" not in text
    assert "{{ 7 * 7 }}&lt;img src=x" in text and "\\u003cimg src=x" in text
    tags = Tags(text).found
    assert not [tag for tag, attributes in tags if tag == "img" or "onerror" in attributes]
    assert sum(tag == "script" for tag, _ in tags) == 2, "the data and the page's own script"


def test_pages_and_videos_that_are_not_ours_are_not_replaced(root: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.html"
    notes.write_text("mine")
    with pytest.raises(InputError, match=r"notes\.html: was not made by sodp3d"):
        write_view(root / "data" / ENV, output=notes)
    with pytest.raises(InputError, match=r"notes\.html: was not made by sodp3d"):
        report.write_report(ENV, root / "data" / ENV, root / "outputs", notes)
    earlier = b'<!DOCTYPE html><output id="episodeName"></output>'  # of a release without the mark
    (tmp_path / "view.html").write_bytes(earlier)
    for _ in range(2):
        write_view(root / "data" / ENV, output=tmp_path / "view.html")
    frames = list(np.zeros((2, 16, 32, 3), np.uint8))
    for folder in (tmp_path / "mine", tmp_path / "run/videos"):
        folder.mkdir(parents=True)
        (folder / "a.mp4").write_bytes(b"mine, or of a release without the mark")
    with pytest.raises(InputError, match=r"a\.mp4: was not made by sodp3d"):
        write_video(tmp_path / "mine/a.mp4", frames, 10)
    (tmp_path / "run/config.yaml").touch()
    for _ in range(2):
        write_video(tmp_path / "run/videos/a.mp4", frames, 10)
        write_video(tmp_path / "mine/b.mp4", frames, 10)
    assert (tmp_path / "mine/a.mp4").read_bytes().startswith(b"mine")


def test_damaged_roll_outs_of_a_run_are_one_message(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kept,) = (root / "outputs/finetune").rglob("rollouts.npz")
    kept.write_bytes(kept.read_bytes()[:100])
    assert report.main([ENV]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "rollouts.npz: damaged" in said


def test_a_damaged_run_is_left_out_of_the_report(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (result,) = (root / "outputs/finetune").rglob("result.json")
    result.write_text('{"before": {}, "evaluation": {"success": 3}}')
    assert report.main([ENV]) == 0 and "left out" in caplog.text
    assert set(newest_runs(root / "outputs", ENV)) == {"pretrain"}
