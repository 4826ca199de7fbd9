"""A served planner: its plans are the planner's own, what is wrong is refused, and who may connect."""

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from toy_serving import (
    CLOUDS,
    INTRINSICS,
    POSE,
    VIEW,
    depth_frames,
    frames,
    make_served,
    serving,
    step_of,
    window_of,
)

pytest.importorskip("msgpack")
websockets = pytest.importorskip("websockets.sync.client")

from sodp3d.core.errors import InputError  # noqa: E402
from sodp3d.serving.client import PolicyClient  # noqa: E402
from sodp3d.serving.planning import ServedPlanner  # noqa: E402
from sodp3d.serving.server import PolicyServer  # noqa: E402
from sodp3d.serving.wire import pack, unpack  # noqa: E402
from sodp3d.settings import ServeSettings  # noqa: E402
from sodp3d.vision.camera import Camera  # noqa: E402
from sodp3d.vision.pointcloud import Converter, CropConfig  # noqa: E402

TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def server() -> Iterator[PolicyServer]:
    with serving() as server:
        yield server


def expected(served: ServedPlanner, shown: dict[str, np.ndarray], generator: torch.Generator) -> np.ndarray:
    """What the planner itself plans from (To, ...), with the next noise of an episode."""
    noise = served.planner.noise(served.plans_drawn, generator)
    noise = noise[None] if served.choice is not None else noise[:1]
    plan = served.planner.plan({key: value[None] for key, value in shown.items()}, noise, choice=served.choice)
    return plan[0]


# ---- plans -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("best_of", [1, 3])
def test_an_episode_is_planned_as_the_planner_plans(best_of: int) -> None:
    """The server keeps the history; the noise follows from the seed, as that of a roll-out."""
    served, seen = make_served(best_of=best_of), frames()
    with serving(served) as server, PolicyClient(server.url) as client:
        for _ in range(2):
            client.reset(seed=100_000)
            generator = torch.Generator().manual_seed(100_000)
            for step in (0, 1, 2, 5):
                for passed in {5: (3, 4)}.get(step, ()):
                    client.observe(step_of(seen, passed))
                answer = client.infer(step_of(seen, step), whole_plan=True)
                plan = expected(served, window_of(seen, step), generator)
                np.testing.assert_array_equal(answer["plan"], plan)
                np.testing.assert_array_equal(answer["actions"], served.planner.executed(plan))
                assert answer["actions"].shape == (3, 2) and answer["actions"].dtype == np.float32


def test_a_client_may_keep_the_history_itself(server: PolicyServer) -> None:
    seen = frames()
    with PolicyClient(server.url) as one, PolicyClient(server.url) as other:
        one.reset(1)
        other.reset(1)
        for step in range(4):
            kept = one.infer(step_of(seen, step))
            np.testing.assert_array_equal(kept["actions"], other.infer(window_of(seen, step))["actions"])


def test_a_reset_forgets(server: PolicyServer) -> None:
    seen = frames()
    with PolicyClient(server.url) as client:
        client.infer(step_of(seen, 3))
        first = client.infer({**step_of(seen, 0), "reset": True, "seed": 5})["actions"]
        client.infer(step_of(seen, 4))
        client.reset(5)
        np.testing.assert_array_equal(client.infer(step_of(seen, 0))["actions"], first)
        client.reset(6)
        assert (client.infer(step_of(seen, 0))["actions"] != first).any()
        client.reset()
        assert (client.infer(step_of(seen, 0))["actions"] != first).any()


def test_actions_can_begin_later(server: PolicyServer) -> None:
    seen = frames()
    with PolicyClient(server.url) as client:
        for offset, steps in ((0, 3), (1, 2), (2, 1)):
            answer = client.infer({**step_of(seen, 0), "reset": True}, offset=offset, whole_plan=True)
            np.testing.assert_array_equal(answer["actions"], answer["plan"][1 + offset :])
            assert len(answer["actions"]) == steps
        with pytest.raises(InputError, match="offset: expected a whole number of steps from 0 to 2, got 3"):
            client.infer(step_of(seen, 0), offset=3)


def test_depth_becomes_the_clouds_that_the_planner_learned_from() -> None:
    served, depth, joints = make_served(CLOUDS), depth_frames(), frames(CLOUDS)["agent_pos"]
    crop = CropConfig.from_config(VIEW["crop"])  # type: ignore[arg-type]
    clouds, _ = Converter(Camera(INTRINSICS, POSE, 16, 24), crop, 16, "torch").convert(depth)
    with serving(served) as server, PolicyClient(server.url) as given, PolicyClient(server.url) as made:
        given.reset(1)
        made.reset(1)
        camera = {"intrinsics": INTRINSICS, "camera_pose": POSE}
        for step in range(4):
            answer = made.infer({"depth": depth[step], "agent_pos": joints[step], **camera})
            camera = {}  # told once
            same = given.infer({"point_cloud": clouds[step], "agent_pos": joints[step]})
            np.testing.assert_array_equal(answer["actions"], same["actions"])
        both = made.infer({"depth": depth[2:4], "agent_pos": joints[2:4], "reset": True, "seed": 9})
        given.reset(9)
        same = given.infer({"point_cloud": clouds[2:4], "agent_pos": joints[2:4]})
        np.testing.assert_array_equal(both["actions"], same["actions"])


def test_a_camera_may_move() -> None:
    served, depth, joints = make_served(CLOUDS), depth_frames(2), frames(CLOUDS)["agent_pos"]
    moved = POSE.copy()
    moved[0, 3] += 0.3
    crop = CropConfig.from_config(VIEW["crop"])  # type: ignore[arg-type]
    poses = np.stack([POSE, moved])
    clouds, _ = Converter(Camera(INTRINSICS, None, 16, 24), crop, 16, "torch").convert(depth, poses)
    with serving(served) as server, PolicyClient(server.url) as client:
        shown = {"agent_pos": joints[:2], "reset": True, "seed": 2}
        together = client.infer({"depth": depth, "intrinsics": INTRINSICS, "camera_pose": poses, **shown})["actions"]
        np.testing.assert_array_equal(client.infer({"point_cloud": clouds, **shown})["actions"], together)
        client.reset(2)
        client.observe({"depth": depth[0], "camera_pose": POSE, "agent_pos": joints[0]})
        apart = client.infer({"depth": depth[1], "camera_pose": moved, "agent_pos": joints[1]})["actions"]
        np.testing.assert_array_equal(apart, together)


def test_images_are_bytes() -> None:
    config = replace(CLOUDS, observation="image", sensor_shape=(3, 16, 16))
    image = np.random.default_rng(0).integers(0, 256, (3, 16, 16)).astype(np.uint8)
    joints = np.zeros(3, np.float32)
    with serving(make_served(config)) as server, PolicyClient(server.url) as client:
        assert client.infer({"image": image, "agent_pos": joints})["actions"].shape == (3, 2)
        with pytest.raises(InputError, match=r"observation\.image: expected an array of uint8, got one of float32"):
            client.infer({"image": image.astype(np.float32), "agent_pos": joints})
        with pytest.raises(InputError, match="unknown key 'depth'"):
            client.infer({"depth": image[0].astype(np.uint16), "agent_pos": joints})


@pytest.mark.filterwarnings("ignore:connect:DeprecationWarning")
def test_the_client_of_openpi_connects() -> None:
    policy = pytest.importorskip("openpi_client.websocket_client_policy")
    served, seen = make_served(), frames()
    with serving(served, TOKEN) as server:
        host, _, port = server.url.rpartition(":")
        client = policy.WebsocketClientPolicy(host, int(port), api_key=TOKEN)
        metadata = client.get_server_metadata()
        assert metadata["planner"] == served.config.to_dict() and metadata["tasks"] == ["slider"]
        assert client.infer({"reset": True, "seed": 3}) == {"reset": True}
        generator = torch.Generator().manual_seed(3)
        for step in range(3):
            answer = client.infer(step_of(seen, step))
            plan = expected(served, window_of(seen, step), generator)
            np.testing.assert_array_equal(answer["actions"], served.planner.executed(plan))
            assert {"infer_ms", "queue_ms"} <= set(answer["server_timing"])
        with pytest.raises(RuntimeError, match="Error in inference server:\nobservation: key 'state' is missing"):
            client.infer({"agent_pos": np.zeros(3, np.float32)})
        assert client.infer(step_of(seen, 3))["actions"].shape == (3, 2)
        client._ws.close()


@pytest.mark.filterwarnings("ignore:connect:DeprecationWarning")
def test_the_broker_of_openpi_gives_single_actions() -> None:
    broker = pytest.importorskip("openpi_client.action_chunk_broker")
    policy = pytest.importorskip("openpi_client.websocket_client_policy")
    with serving() as server:
        host, _, port = server.url.rpartition(":")
        inner = policy.WebsocketClientPolicy(host, int(port))
        single = broker.ActionChunkBroker(inner, 3)
        seen = {**window_of(frames(), 3), "reset": True, "seed": 1}
        actions = [single.infer(seen)["actions"] for _ in range(3)]
        with PolicyClient(server.url) as client:
            np.testing.assert_array_equal(np.stack(actions), client.infer(seen)["actions"])
        inner._ws.close()


# ---- what is refused ---------------------------------------------------------------------------------------------

JOINTS, STATE_ = np.zeros(3, np.float32), np.zeros(5, np.float32)
CLOUD = np.zeros((16, 3), np.float32)
BATCH = {"agent_pos": np.zeros((3, 2, 3), np.float32), "state": np.zeros((3, 2, 5), np.float32)}


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({}, "keys agent_pos, state are missing"),
        ([1], "message: expected a map of keys and values, got list"),
        ({"agent_pos": JOINTS}, "key 'state' is missing"),
        ({"agent_pos": JOINTS, "stat": STATE_}, "unknown key 'stat'; valid keys are agent_pos, state, reset"),
        ({"agent_pos": JOINTS, "state": STATE_, "depth": np.zeros((4, 4), np.uint16)}, "unknown key 'depth'"),
        ({"agent_pos": JOINTS[:2], "state": STATE_}, r"expected shape \(3,\), or \(2, 3\) .* got \(2,\)"),
        ({"agent_pos": np.zeros((5, 3), np.float32), "state": STATE_}, r"got \(5, 3\)"),
        ({"agent_pos": np.zeros((2, 3), np.float32), "state": STATE_}, "as many steps of each key"),
        ({"agent_pos": JOINTS.astype(int), "state": STATE_}, "expected an array of float32, got one of int64"),
        ({"agent_pos": JOINTS > 0, "state": STATE_}, "expected an array of float32, got one of bool"),
        ({"agent_pos": [0.0, 0.0, 0.0], "state": STATE_}, "expected an array, got list"),
        ({"agent_pos": JOINTS + np.inf, "state": STATE_}, r"expected finite numbers, got inf at index \(0, 0\)"),
        ({"agent_pos": JOINTS, "state": STATE_ * np.nan}, r"observation\.state: expected finite numbers, got nan"),
        ({"agent_pos": JOINTS + np.float64(1e300), "state": STATE_}, "expected finite numbers, got inf"),
        ({"agent_pos": JOINTS + np.float32(3e38), "state": STATE_ + np.float32(3e38)}, "plan: it is not finite"),
        ({"agent_pos": JOINTS, "state": STATE_, "reset": 1}, "reset: expected true or false, got 1"),
        ({"agent_pos": JOINTS, "state": STATE_, "seed": 1}, "seed: .* with reset=True, got 1"),
        ({"reset": True, "seed": -1}, "seed: expected a whole number from 0"),
        ({"reset": True, "seed": "x" * 10**5}, "seed: expected a whole number from 0 to .*, got 'xxx"),
        ({**BATCH, "reset": True, "seed": 4}, r"reset: expected none with a batch \(B, To, ...\), .*, got True"),
        ({**BATCH, "seed": 4}, "seed: expected none with a batch .*, got 4; leave it out"),
        ({**BATCH, "plan": False}, "plan: expected none with a batch .*, got False"),
        ({"agent_pos": JOINTS, "state": STATE_, "offset": True}, "offset: expected a whole number"),
        ({"agent_pos": JOINTS, "state": STATE_, "timestamp": "now"}, "timestamp: expected a finite number, got 'now'"),
        ({"agent_pos": JOINTS, "state": STATE_, "elapsed": 2.0}, "elapsed: expected a share from 0 to 1"),
        (
            {"agent_pos": JOINTS, "state": STATE_, "noise": np.zeros(3, np.float32)},
            r"noise: expected shape \(1, 1, 3,",
        ),
    ],
)
def test_a_refusal_is_one_message_and_changes_nothing(
    server: PolicyServer, message: Any, told: str, recwarn: pytest.WarningsRecorder
) -> None:
    seen = frames()
    with PolicyClient(server.url) as client:
        client.reset(4)
        client.infer(step_of(seen, 0))
        with pytest.raises(InputError, match=told) as error:
            client._connection.send(pack(message))
            client._receive()
        assert len(str(error.value)) < 400
        after = client.infer(step_of(seen, 1))["actions"]
        client.reset(4)
        client.infer(step_of(seen, 0))
        np.testing.assert_array_equal(client.infer(step_of(seen, 1))["actions"], after)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"point_cloud": CLOUD}, "point_cloud and depth came"),
        ({"depth": np.ones((16, 24), np.float32)}, "expected an array of uint16 millimetres, got float32"),
        ({"depth": np.ones(16, np.uint16)}, r"expected shape \(H, W\), or \(2, H, W\), got \(16,\)"),
        ({"depth": np.ones((0, 4), np.uint16)}, "expected shape"),
        ({"depth": np.ones((1, 5000), np.uint16)}, "at most 4096 pixels a side"),
        ({"depth": np.zeros((16, 24), np.uint16)}, "no valid depth at all"),
        ({"intrinsics": None}, "expected an array, got NoneType"),
        ({"intrinsics": np.zeros((3, 3))}, "focal lengths above 0"),
        ({"intrinsics": np.zeros((300, 300))}, "focal lengths above 0"),
        ({"intrinsics": INTRINSICS * np.nan}, "expected finite numbers"),
        ({"intrinsics": INTRINSICS.T}, r"observation\.intrinsics: .* transpose it where its rows are columns"),
        ({"camera_pose": POSE.T}, r"observation\.camera_pose: expected a rotation and a position"),
        ({"camera_pose": POSE[:3]}, r"expected shape \(4, 4\)"),
        ({"camera_pose": POSE * 2}, "expected a rotation and a position"),
        ({"camera_pose": np.full((4, 4), np.inf)}, "expected finite numbers"),
    ],
)
def test_wrong_depth_is_refused(changes: dict[str, Any], told: str) -> None:
    whole = {"agent_pos": JOINTS, "depth": depth_frames(1)[0], "intrinsics": INTRINSICS, "camera_pose": POSE}
    served = make_served(CLOUDS)
    with serving(served) as server, PolicyClient(server.url) as client:
        with pytest.raises(InputError, match=told):
            client.infer({**whole, **changes})
        with pytest.raises(InputError, match="depth needs its camera"):  # nothing of it was kept
            client.infer({"agent_pos": JOINTS, "depth": whole["depth"]})
        with pytest.raises(InputError, match="belongs to depth"):
            client.infer({"agent_pos": JOINTS, "point_cloud": CLOUD, "camera_pose": POSE})
        assert client.infer(whole)["actions"].shape == (3, 2)


def test_old_observations_are_refused() -> None:
    with serving(max_age=0.5) as server, PolicyClient(server.url) as client:
        shown = step_of(frames(), 0)
        assert "actions" in client.infer(shown, timestamp=client.now())
        for late, told in ((-0.6, "at most 0.5 s old, got one 0.6"), (0.7, "from 0.* s ahead of the server's clock")):
            with pytest.raises(InputError, match=told):
                client.infer(shown, timestamp=client.now() + late)
        with pytest.raises(InputError, match="timestamp: missing"):
            client.infer(shown)
        client.reset()


class Held:
    """A planner that waits until it is let go, and notes how many observations each call had."""

    def __init__(self, served: ServedPlanner, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.begun, self.calls = threading.Event(), threading.Event(), list[int]()
        plan = served.plan

        def held(requests: Any) -> Any:
            self.calls.append(sum(len(rows) for rows in requests))
            self.begun.set()
            assert self.go.wait(10)
            return plan(requests)

        monkeypatch.setattr(served, "plan", held)


def in_threads(*jobs: Any) -> list[threading.Thread]:
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    return threads


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_who_waits_together_is_planned_together(monkeypatch: pytest.MonkeyPatch) -> None:
    served, seen = make_served(), frames()
    held, answers = Held(served, monkeypatch), dict[int, np.ndarray]()
    with serving(served, max_rows=3) as server:
        clients = [PolicyClient(server.url) for _ in range(5)]

        def ask(number: int) -> None:
            clients[number].reset(number)
            answers[number] = clients[number].infer(step_of(seen, number))["actions"]

        threads = in_threads(lambda: ask(0))
        assert held.begun.wait(10)
        threads += in_threads(*[lambda number=number: ask(number) for number in range(1, 5)])
        wait_until(lambda: server.metrics.waiting == 4)
        held.go.set()
        for thread in threads:
            thread.join()
        assert held.calls == [1, 3, 1] and server.metrics.rows == 5 and server.metrics.plans == 3
        for number in range(5):
            alone = served.planner.plan(
                {key: np.stack([value, value])[None] for key, value in step_of(seen, number).items()},
                served.planner.noise(1, torch.Generator().manual_seed(number)),
            )
            np.testing.assert_allclose(answers[number], served.planner.executed(alone)[0], atol=1e-5)
        for client in clients:
            client.close()


def test_what_became_too_old_while_it_waited_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it had never been sent: not its `reset`, nor its step, nor its noise."""
    served, seen, told = make_served(), frames(), list[str]()
    shown = step_of(seen, 0)
    held = Held(served, monkeypatch)
    with serving(served, max_age=0.3) as server:
        first, second = PolicyClient(server.url), PolicyClient(server.url)

        def ask() -> None:
            with pytest.raises(InputError) as error:
                second.infer({**step_of(seen, 5), "reset": True, "seed": 6}, timestamp=second.now())
            told.append(str(error.value))

        second.reset(4)
        second.infer(shown, plan=False, timestamp=second.now())
        threads = in_threads(lambda: first.infer(shown, timestamp=first.now()))
        assert held.begun.wait(10)
        threads += in_threads(ask)
        wait_until(lambda: server.metrics.waiting == 1)
        time.sleep(0.4)
        held.go.set()
        for thread in threads:
            thread.join()
        assert "at most 0.3 s old" in told[0] and held.calls == [1]
        answer = second.infer(step_of(seen, 1), whole_plan=True, timestamp=second.now())
        plan = expected(served, window_of(seen, 1), torch.Generator().manual_seed(4))
        np.testing.assert_array_equal(answer["plan"], plan)
        first.close()
        second.close()


# ---- who may connect ---------------------------------------------------------------------------------------------


def get(server: PolicyServer, path: str, token: str | None = None) -> tuple[int, str, str]:
    """Status, type and text of a GET."""
    request = urllib.request.Request(server.url.replace("ws://", "http://") + path)
    if token:
        request.add_header("Authorization", token)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.headers["Content-Type"], response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


def test_a_token_is_needed_where_one_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SODP3D_TOKEN", raising=False)
    with serving(token=TOKEN) as server:
        for wrong in (None, "wrong-horse-battery", TOKEN[:-1], TOKEN + "x"):
            with pytest.raises(InputError, match="401"):
                PolicyClient(server.url, wrong)
        monkeypatch.setenv("SODP3D_TOKEN", TOKEN)
        with PolicyClient(server.url) as client:
            assert "actions" in client.infer(step_of(frames(), 0))
        assert get(server, "/healthz")[::2] == (200, "OK\n")
        assert get(server, "/metrics")[0] == get(server, "/metrics", "Bearer é")[0] == 401
        assert get(server, "/metrics", f"Bearer {TOKEN}")[0] == 200
        assert server.metrics.connections == {"accepted": 1, "refused": 6}


def test_the_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("hmac.compare_digest", compare)
    with serving(token=TOKEN) as server:
        get(server, "/metrics", "Bearer guess")
    assert compared == [(b"guess", TOKEN.encode())]


@pytest.mark.parametrize(
    ("host", "token", "refused"),
    [
        ("127.0.0.1", None, False),
        ("::1", None, False),
        ("localhost", None, False),
        ("127.3.2.1", None, False),
        ("0.0.0.0", None, True),
        ("::", None, True),
        ("192.168.1.2", None, True),
        ("robot.local", None, True),
        ("0.0.0.0", "short", True),
        ("0.0.0.0", TOKEN, False),
        ("127.0.0.1", "", True),
        ("127.0.0.1", "with space", True),
    ],
)
def test_other_machines_need_a_token(host: str, token: str | None, refused: bool) -> None:
    settings = ServeSettings(host=host)
    if refused:
        with pytest.raises(InputError, match=r"^token: "):
            PolicyServer(make_served(), settings, token)
    else:
        PolicyServer(make_served(), settings, token)


def test_pages_of_browsers_are_refused(server: PolicyServer) -> None:
    """A page of another site, open in a browser on this machine, could otherwise move the robot."""
    with pytest.raises(websockets.InvalidStatus, match="403"):
        websockets.connect(server.url, origin="http://example.org", legacy=True)


def test_as_many_clients_as_may_be() -> None:
    with serving(max_clients=2) as server:
        clients = [PolicyClient(server.url) for _ in range(2)]
        with pytest.raises(InputError, match="503"):
            PolicyClient(server.url)
        clients.pop().close()
        wait_until(lambda: server.metrics.clients == 1)
        clients.append(PolicyClient(server.url))
        assert server.metrics.connections == {"accepted": 3, "refused": 1}
        for client in clients:
            client.close()


def test_metrics_tell_what_was_done() -> None:
    with serving() as server, PolicyClient(server.url) as client:
        client.reset()
        client.observe(step_of(frames(), 0))
        for step in range(1, 4):
            client.infer(step_of(frames(), step))
        with pytest.raises(InputError):
            client.infer({})
        wait_until(lambda: server.metrics.requests["refused"] == 1)
        status, kind, page = get(server, "/metrics")
        assert status == 200 and kind == "text/plain; version=0.0.4; charset=utf-8"
        values = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
        for outcome, count in {"planned": 3, "remembered": 1, "reset": 1, "refused": 1, "failed": 0}.items():
            assert values[f'sodp3d_requests_total{{outcome="{outcome}"}}'] == str(count)
        assert values["sodp3d_clients"] == "1" and values["sodp3d_rows_total"] == "3"
        assert values['sodp3d_latency_seconds_bucket{le="+Inf"}'] == values["sodp3d_latency_seconds_count"] == "3"
        assert 0 < float(values["sodp3d_plan_seconds_sum"]) < float(values["sodp3d_latency_seconds_sum"])
        line = server.metrics.line()
        assert line is not None and line.startswith(
            "1 clients: 3 planned, 1 remembered, 1 reset, 1 refused; latency p50"
        )
        assert server.metrics.line() is None
        assert get(server, "/elsewhere")[0] == 404


def test_latency_is_logged_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with serving(log_every=0.05) as server, PolicyClient(server.url) as client:
        client.infer(step_of(frames(), 0))
        wait_until(lambda: "1 clients: 1 planned; latency p50" in caplog.text)


def test_a_taken_port_is_said() -> None:
    with serving() as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(InputError, match=f"port: cannot listen on 127.0.0.1:{port}"), serving_at(port):
            pass


def serving_at(port: int) -> Any:
    from sodp3d.serving.server import serve_in_background

    return serve_in_background(make_served(), ServeSettings(port=port))


def test_a_planner_that_fails_does_not_end_the_server(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served, shown = make_served(), step_of(frames(), 0)
    plan = served.plan

    def fails(requests: Any) -> Any:
        raise RuntimeError("out of memory: /home/secret")

    with serving(served) as server, PolicyClient(server.url) as client:
        monkeypatch.setattr(served, "plan", fails)
        with pytest.raises(InputError, match="internal error") as error:
            client.infer(shown)
        assert "secret" not in str(error.value) and "secret" in caplog.text
        monkeypatch.setattr(served, "plan", plan)
        assert "actions" in client.infer(shown)


def test_a_text_is_refused(server: PolicyServer) -> None:
    with websockets.connect(server.url) as connection:
        assert unpack(connection.recv())["best_of"] == 1
        connection.send("hello")
        assert connection.recv() == "message: expected msgpack in a binary message, got a text."
        connection.send(pack({"reset": True}))
        assert unpack(connection.recv()) == {"reset": True}
