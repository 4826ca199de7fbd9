"""Chunks that overlap, evaluation of a planner that is served, and the command with its signals."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from toy_planner import make_planner
from toy_serving import CLOUDS, STATE, frames, make_served, serving, step_of
from toy_slider import SliderChunks, make_slider

pytest.importorskip("msgpack")
pytest.importorskip("websockets")

from sodp3d.core import checkpoint
from sodp3d.core.cli import compose
from sodp3d.core.errors import InputError
from sodp3d.core.paths import CHECKOUT
from sodp3d.envs.config import EnvConfig
from sodp3d.models.loading import TOLD_OF_PLANNERS, planner_state, require_fitting
from sodp3d.rollouts import rollout
from sodp3d.rollouts.evaluate import evaluate
from sodp3d.serving.client import ActionStream, PolicyClient
from sodp3d.serving.planning import ServedPlanner, load_served
from sodp3d.serving.remote import RemotePlanner
from sodp3d.serving.wire import pack

# ---- a robot that does not wait ----------------------------------------------------------------------------------


class Plans:
    """A client whose n-th plan (from 0) says 100 n + step, and comes when the test says so."""

    def __init__(self, horizon: int = 8, observed: int = 2) -> None:
        self.metadata = {"planner": {"horizon": horizon, "n_obs_steps": observed}}
        self.horizon, self.observed = horizon, observed
        self.asked: list[dict[str, Any]] = []
        self.resets: list[int | None] = []
        self.gates: dict[int, threading.Event] = {}
        self.failing: set[int] = set()

    def infer(self, observation: Any, **options: Any) -> dict[str, Any]:
        number = len(self.asked)
        self.asked.append(dict(observation))
        assert options == {"whole_plan": True}
        if number in self.gates:
            assert self.gates[number].wait(10)
        if number in self.failing:
            raise InputError("timestamp: too old")
        now = int(observation["state"][-1][0])
        steps = np.arange(now - self.observed + 1, now - self.observed + 1 + self.horizon)
        return {"plan": np.float32(100 * number + steps)[:, None]}

    def reset(self, seed: int | None = None) -> None:
        self.resets.append(seed)


def seen(step: int) -> dict[str, Any]:
    return {"state": np.array([step], np.float32), "timestamp": float(step)}


def arrived(stream: ActionStream) -> None:
    """Wait until the plan that is on its way is there."""
    assert stream._pending is not None
    future: Future[Any] = stream._pending[1]
    future.exception(10)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_the_next_plan_is_made_while_the_last_is_executed() -> None:
    plans = Plans()
    plans.gates = {1: threading.Event()}
    with ActionStream(plans, every=3, blend="none") as stream:
        actions = [stream.act(seen(step))[0] for step in range(5)]
        assert actions == [0, 1, 2, 3, 4]
        wait_until(lambda: len(plans.asked) == 2)  # the second was asked for at step 3
        np.testing.assert_array_equal(plans.asked[0]["state"], [[0], [0]])
        np.testing.assert_array_equal(plans.asked[1]["state"], [[2], [3]])
        assert plans.asked[1]["timestamp"] == 3.0
        plans.gates[1].set()
        arrived(stream)
        assert [stream.act(seen(step))[0] for step in (5, 6)] == [105, 106]
        assert stream.stalls == 0


def test_a_crossfade_rises_evenly_to_the_new_plan() -> None:
    plans = Plans()
    with ActionStream(plans, every=2, blend="crossfade", overlap=3) as stream:
        actions = []
        for step in range(3):
            actions.append(stream.act(seen(step))[0])
        arrived(stream)  # asked for at step 2
        plans.gates = {2: threading.Event()}
        actions += [stream.act(seen(step))[0] for step in (3, 4, 5, 6)]
        plans.gates[2].set()
    assert actions == [0, 1, 2, 3 + 25, 4 + 50, 5 + 75, 6 + 100]


def test_an_ensemble_is_the_weighted_mean_of_all_plans() -> None:
    plans = Plans()
    with ActionStream(plans, every=1, blend="ensemble", decay=0.5) as stream:
        actions = []
        for step in range(9):
            actions.append(stream.act(seen(step))[0])
            if step:
                arrived(stream)
    for step, action in enumerate(actions):
        numbers = np.arange(max(step - 6, 0), max(step, 1))  # each reaches 7 steps
        weights = np.exp(-0.5 * np.arange(len(numbers)))
        assert action == pytest.approx((weights * (100 * numbers + step)).sum() / weights.sum(), rel=1e-6)


def test_a_plan_that_comes_too_late_is_waited_for_and_counted() -> None:
    plans = Plans(horizon=4)
    plans.gates = {1: threading.Event()}
    with ActionStream(plans, every=3, blend="none") as stream:
        assert [stream.act(seen(step))[0] for step in range(3)] == [0, 1, 2]
        threading.Timer(0.1, plans.gates[1].set).start()
        assert stream.act(seen(3))[0] == 103 and stream.stalls == 1


def test_a_refusal_counts_once_nothing_planned_before_is_left(caplog: pytest.LogCaptureFixture) -> None:
    plans = Plans(horizon=4)
    plans.failing = {1, 2}
    with ActionStream(plans, every=1, blend="none") as stream:
        for step in range(3):
            assert stream.act(seen(step))[0] == step
            if step:
                arrived(stream)
        assert "no new plan: timestamp: too old" in caplog.text
        assert stream.act(seen(3))[0] == 303
    plans = Plans()
    plans.failing = {0}
    with ActionStream(plans) as stream, pytest.raises(InputError, match="too old"):
        stream.act(seen(0))


def test_a_reset_throws_away_what_is_on_its_way() -> None:
    plans = Plans()
    with ActionStream(plans, every=1, blend="none") as stream:
        stream.act(seen(0))
        stream.act(seen(1))
        stream.reset(7)
        assert plans.resets == [7]
        count = len(plans.asked)
        assert stream.act(seen(0))[0] == 100 * count
        np.testing.assert_array_equal(plans.asked[-1]["state"], [[0], [0]])


@pytest.mark.parametrize(
    ("options", "told"),
    [({"blend": "mean"}, "blend: expected one of"), ({"every": 8}, "every: expected 1 to 7"), ({"every": 0}, "every"),
     ({"overlap": -1}, "overlap"), ({"decay": float("nan")}, "decay")],
)  # fmt: skip
def test_options_of_a_stream_are_checked(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        ActionStream(Plans(), **options)


def test_a_stream_of_a_real_server() -> None:
    shown = frames(CLOUDS, 12)
    with serving(make_served(CLOUDS), max_age=5) as server, PolicyClient(server.url) as client:
        with ActionStream(client, blend="ensemble") as stream:
            stream.reset(3)
            actions = [stream.act({**step_of(shown, step), "timestamp": client.now()}) for step in range(12)]
        assert np.isfinite(actions).all() and np.shape(actions) == (12, 2)
        assert server.metrics.requests["planned"] >= 3 and server.metrics.requests["refused"] == 0


def test_a_stream_sends_a_camera_as_it_was_told_last() -> None:
    """The server takes one as told until another is; so a step may tell it that nothing is planned from."""
    plans, poses = Plans(), [np.eye(4) + np.eye(4, k=3) * step for step in range(5)]
    matrix = np.diag([8.0, 8.0, 1.0])
    told = [{}, {"camera_pose": poses[1], "intrinsics": matrix}, {}, {"camera_pose": poses[3]}, {}]
    with ActionStream(plans, every=1, blend="none") as stream:
        for step, camera in enumerate(told):
            stream.act({**seen(step), **camera})
            arrived(stream) if step else None
    assert not {"camera_pose", "intrinsics"} & set(plans.asked[0])
    np.testing.assert_array_equal(plans.asked[1]["camera_pose"], poses[1])  # the step before had none
    for asked, expected in zip(plans.asked[2:], ([1, 1], [1, 3], [3, 3]), strict=True):
        np.testing.assert_array_equal(asked["camera_pose"], [poses[step] for step in expected])
        np.testing.assert_array_equal(asked["intrinsics"], matrix)


# ---- a client's connection ---------------------------------------------------------------------------------------


def test_what_cannot_be_sent_is_no_fault_of_the_connection() -> None:
    with serving() as server, PolicyClient(server.url) as client:
        with pytest.raises(InputError, match=r"^message: expected texts, numbers, .* got set"):
            client.infer({"agent_pos": {1, 2}})
        assert "actions" in client.infer(step_of(frames(), 0))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (pack([1]), "does not serve a planner"),
        (b"\xc1", "message: not msgpack"),
        ("no", "no"),
        (pack({"server_time": "now"}), "does not serve a planner"),
    ],
)
def test_a_connection_to_what_is_no_server_is_closed(
    monkeypatch: pytest.MonkeyPatch, answer: str | bytes, told: str
) -> None:
    connection = MagicMock()
    connection.__enter__.return_value.recv.return_value = answer
    monkeypatch.setattr("sodp3d.serving.client._websockets", lambda: (lambda *_, **__: connection, (OSError,)))
    with pytest.raises(InputError, match=told):
        PolicyClient("ws://127.0.0.1:1")
    connection.__exit__.assert_called_once()


# ---- roll-outs ---------------------------------------------------------------------------------------------------


class Here:
    """One worker, in this process."""

    def __init__(self, *values: Any, **options: Any) -> None:
        self.group = SliderChunks(make_slider().config, "state", "raycast", "torch")

    def __len__(self) -> int:
        return 1

    def call(self, name: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
        return [getattr(self.group, name)(*arguments[0])]

    def start(self, worker: int, name: str, *arguments: Any) -> None:
        self.answer = getattr(self.group, name)(*arguments)

    def result(self, worker: int) -> Any:
        return self.answer

    def close(self) -> None:
        pass


def slider_planner_config() -> Any:
    return replace(STATE, sensor_shape=(1,), proprioception_size=1, action_size=1)


@pytest.mark.parametrize(("best_of", "max_rows"), [(1, 64), (3, 64), (1, 2)])
def test_a_served_planner_is_evaluated_as_one_in_this_process(
    monkeypatch: pytest.MonkeyPatch, best_of: int, max_rows: int
) -> None:
    """The same success and actions, bit for bit where the batch is not split."""
    monkeypatch.setattr(rollout, "make_workers", Here)
    served, config = make_served(slider_planner_config(), best_of), make_slider().config
    seeds = range(100_000, 100_005)
    with rollout.Rollouts(config, "state", "raycast", "torch", 1, 4) as rollouts:
        here = evaluate(served.planner, rollouts, config, seeds, served.choice)
        served.planner.eval()
        with serving(served, max_rows=max_rows) as server, RemotePlanner(server.url) as remote:
            there = evaluate(remote, rollouts, config, seeds)
    assert there.summary() == here.summary() or max_rows == 2
    for mine, theirs in zip(here.episodes, there.episodes, strict=True):
        assert mine.seed == theirs.seed and mine.success == theirs.success
        for one, other in zip(mine.actions, theirs.actions, strict=True):
            np.testing.assert_allclose(one, other, atol=0 if max_rows == 64 else 1e-5)


def test_what_checks_ask_of_a_planner_survives_serving() -> None:
    config = compose("train", ["obs=state", "env=adroit_door", "env.horizon=4"])
    door = EnvConfig.from_config(config["env"])
    planner = make_planner(
        replace(STATE, sensor_shape=(39,), proprioception_size=24, action_size=28, n_obs_steps=door.n_obs_steps)
    )
    state = planner_state(planner, [door], "hash")
    assert set(TOLD_OF_PLANNERS) == set(state)
    with serving(ServedPlanner(planner, state, "0" * 64)) as server, RemotePlanner(server.url) as remote:
        assert remote.state["action_repeat"] == door.action_repeat and set(state) <= set(remote.state)
        require_fitting(remote.state, remote, config, door)
        other = replace(door, action_repeat=door.action_repeat + 1)
        with pytest.raises(InputError, match=r"trained with env\.action_repeat="):
            require_fitting(remote.state, remote, config, other)


# ---- the command -------------------------------------------------------------------------------------------------


def save(folder: Path, config: Any = CLOUDS, name: str = "slider") -> Path:
    """A checkpoint of a small planner."""
    served = make_served(config)
    tensors = checkpoint.with_prefix("planner", served.planner.state_dict())
    return checkpoint.save(folder / "checkpoints", 1, tensors, {**served.state, "tasks": [name]})


def serve_until(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], during: Callable[[str], None], *options: str
) -> tuple[int, str]:
    """Run `sodp3d serve` in this process; call `during(url)` while it serves. Returns exit code and messages."""
    import logging

    from sodp3d.serving import serve

    failed: list[BaseException] = []

    class Watcher(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if found := re.search(r"at (ws://\S+)", record.getMessage()):
                threading.Thread(target=self.act, args=(found[1].rstrip(","),)).start()

        def act(self, url: str) -> None:
            try:
                during(url)
            except BaseException as error:
                failed.append(error)
                os.kill(os.getpid(), signal.SIGTERM)

    watcher = Watcher()
    serve.log.addHandler(watcher)
    serve.log.setLevel(logging.INFO)
    monkeypatch.setattr("sys.argv", ["sodp3d serve", "port=0", "device=cpu", "threads=1", *options])
    try:
        serve.main()
        code = 0
    except SystemExit as stopped:
        assert isinstance(stopped.code, int)
        code = stopped.code
    finally:
        serve.log.removeHandler(watcher)
    assert not failed, failed
    return code, capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
) -> None:
    ended: list[str] = []
    before = signal.signal(number, signal.default_int_handler)  # whoever started the tests may have it ignored
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

    def during(url: str) -> None:
        with PolicyClient(url) as client:
            assert client.infer(step_of(frames(CLOUDS), 0))["actions"].shape == (3, 2)
            os.kill(os.getpid(), number)
            with pytest.raises(InputError, match="has closed the connection") as error:
                while True:
                    client.infer(step_of(frames(CLOUDS), 0))
            ended.append(str(error.value))

    came, said = serve_until(monkeypatch, capsys, during, f"run={save(tmp_path)}", "backend=torch")
    assert came == code and f"stopped by {number.name}" in said
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    signal.signal(number, before)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "run: name a planner"),
        (("run=nowhere",), "neither a run directory"),
        (("run=x", "host=0.0.0.0"), "token: host=0.0.0.0 lets other machines in"),
        (("run=x", "host=0.0.0.0", "token=short"), "at least 16 characters, got one of 5"),
        (("run=x", "port=70000"), "port: expected a port, from 1 to 65535"),
        (("run=x", "max_age=0"), "max_age: expected a number above 0"),
        (("run=x", "prot=1"), "unknown option 'prot'. Did you mean"),
    ],
)
def test_what_cannot_be_served_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    options: tuple[str, ...],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SODP3D_TOKEN", raising=False)
    code, said = serve_until(monkeypatch, capsys, lambda url: None, *options)
    assert code == 2 and told in said and "short\n" not in said


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from sodp3d.serving import planning

    monkeypatch.setattr(planning.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"websockets and msgpack not installed; pip install websockets msgpack"):
        planning.require_packages()


def test_a_checkpoint_is_served_with_its_digest(tmp_path: Path) -> None:
    path = save(tmp_path)
    served = load_served(tmp_path, sampling_steps=5, backend="torch")
    assert served.config.inference_steps == 5 and served.takes_depth
    assert served.metadata()["digest"] == checkpoint.digest_of(path)
    served.warm_up()
    with pytest.raises(InputError, match="need a critic"):
        load_served(tmp_path, best_of=4)


def test_a_served_planner_is_not_learned_from(tmp_path: Path) -> None:
    from sodp3d.learning.lookup import find_planner

    with pytest.raises(InputError, match="can be evaluated"):
        find_planner(compose("train", ["mode=finetune", "planner=ws://127.0.0.1:1"]), ("pretrain",))


@pytest.mark.slow
def test_the_commands_agree_on_a_served_planner(tmp_path: Path) -> None:
    """`sodp3d eval planner=ws://...` tells what `sodp3d eval planner=<folder>` does, through two processes."""
    from test_pipeline import SMALL, TRAIN

    from sodp3d.envs.config import task_configs
    from sodp3d.models.planner import PlannerConfig

    (task,) = task_configs(compose("train", SMALL))
    config = PlannerConfig(
        "pointcloud", (task.points, 3), 24, 28, task.n_obs_steps, task.horizon, task.n_action_steps, unet="small"
    )
    planner = make_planner(config)
    tensors = checkpoint.with_prefix("planner", planner.state_dict())
    state = planner_state(planner, [replace(task, name="adroit_other")], "none")  # so that the task is unseen
    path = checkpoint.save(tmp_path / "checkpoints", 1, tensors, state)
    around = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sodp3d", "serve", f"run={path}", "port=0", "device=cpu", "threads=1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=around, cwd=tmp_path) as server:
        assert server.stderr is not None
        url = next(found[1] for line in server.stderr if (found := re.search(r"at (ws://\S+)", line)))
        results = []
        for planner_option in (str(path), url):
            options = [*SMALL, *TRAIN, "evaluation.videos=0", f"planner={planner_option}", f"root={tmp_path}/root"]
            done = subprocess.run(
                [sys.executable, "-m", "sodp3d", "eval", *options, f"run_dir={tmp_path}/run{len(results)}"],
                capture_output=True, text=True, env=around, cwd=tmp_path, timeout=300,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            folder = tmp_path / f"run{len(results)}"
            kept = np.load(folder / "evaluation/adroit_door/rollouts.npz")
            result = json.loads((folder / "result.json").read_text())
            results.append(({key: result[key] for key in ("tasks", "unseen")}, dict(kept)))
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 143
    assert results[0][0] == results[1][0]
    for key, values in results[0][1].items():
        np.testing.assert_array_equal(values, results[1][1][key], err_msg=key)
