"""Pre-training by several processes: the result of one, on whatever number a run goes on."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toy_methods import METHODS, write_stores
from toy_processes import CPU, STEPS, learned, make_clouds, run_until

from sodp3d.core import checkpoint, draws, launch
from sodp3d.core.cli import command, exit_status
from sodp3d.core.errors import InputError
from sodp3d.core.paths import CHECKOUT
from sodp3d.core.run import read_metrics
from sodp3d.learning.processes import Alone, Together, join, require_equal_parts

TESTS = Path(__file__).resolve().parent
PATH = os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "examples"), str(TESTS)])
LOCAL = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": PATH}


def launched(monkeypatch: pytest.MonkeyPatch, count: int, index: int = 0) -> None:
    """As a launcher's process is."""
    for name, value in {"WORLD_SIZE": count, "RANK": index, "LOCAL_WORLD_SIZE": count}.items():
        monkeypatch.setenv(name, str(value))


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (launch.count(), launch.index(), launch.on_this_machine(), launch.is_main()) == (1, 0, 1, True)
    launch.require_one("anything")
    monkeypatch.setenv("RANK", "3")  # alone it says nothing
    assert launch.is_main()
    launched(monkeypatch, 4, 3)
    assert (launch.count(), launch.index(), launch.on_this_machine(), launch.is_main()) == (4, 3, 4, False)
    launched(monkeypatch, 1)
    with join(CPU) as processes:
        assert type(processes) is Alone and processes.rows(6) == slice(0, 6)


def test_only_pretraining_is_for_several_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("SODP3D_ROOT", str(tmp_path))
    done: list[str] = []
    train = command("train", shared=lambda config: config["mode"] == "pretrain")(lambda config: done.append("train"))
    launched(monkeypatch, 2)
    for arguments, told in (
        (["mode=finetune"], "this command is done by one process, but a launcher began 2"),
        (["-m", "mode=pretrain", "seed=1,2"], "a sweep is done by one process"),
    ):
        monkeypatch.setattr("sys.argv", ["train.py", *arguments])
        with pytest.raises(SystemExit, match="2"):
            train()
        assert told in capsys.readouterr().err
    assert exit_status(lambda: done.append("card")) == 2 and not done
    capsys.readouterr()
    launched(monkeypatch, 2, index=1)  # the others are silent: the main process has said it
    assert exit_status(lambda: done.append("card")) == 2 and not capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["train.py", "mode=pretrain"])
    train()
    assert done == ["train"]


def test_what_cannot_be_shared_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, 3)
    require_equal_parts(6)
    with pytest.raises(InputError, match=r"pretrain\.batch_size: 3 processes .* expected a multiple of 3, got 4"):
        require_equal_parts(4)
    with pytest.raises(InputError, match=r"each process takes a GPU of its own; give device=cuda, got cuda:1"):
        Together(torch.device("cuda:1"))
    with pytest.raises(InputError, match=r"3 processes on this machine need as many GPUs, and there are 0"):
        Together(torch.device("cuda"))
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(InputError, match=r"not installed: pip install 'accelerate.*the extra cluster"):
        Together(CPU)


def test_accelerates_launcher_that_begins_one_process_instead_of_two_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    launch.require_whole()
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(InputError, match="torchrun --nproc_per_node"):
        launch.require_whole()
    launched(monkeypatch, 2)
    launch.require_whole()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_parts_of_what_is_drawn_are_together_what_one_draws(count: int) -> None:
    def drawn(generator: torch.Generator, rows: int) -> list[torch.Tensor]:
        generator.manual_seed(5)
        return [
            draws.normal((rows, 2), generator),
            draws.uniform((rows,), generator, dtype=torch.float64),
            draws.integers(9, (rows, 1, 3), generator),
        ]

    whole = drawn(torch.Generator(), 6)
    parts = [drawn(draws.shared_generator(CPU, index, count), 6 // count) for index in range(count)]
    for one, of_all in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(of_all), one)
    torch.manual_seed(0)
    assert torch.equal(draws.normal((4,), None), torch.randn(4, generator=torch.Generator().manual_seed(0)))


def begin(index: int, port: int, folder: Path) -> subprocess.Popen[str]:
    """One of two processes, as a launcher begins it."""
    variables = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "RANK": index, "LOCAL_RANK": index, "MASTER_PORT": port}
    around = {**os.environ, **LOCAL, "MASTER_ADDR": "127.0.0.1", **{name: str(v) for name, v in variables.items()}}
    script = [sys.executable, str(TESTS / "toy_processes.py"), str(folder)]
    return subprocess.Popen(script, env=around, stderr=subprocess.PIPE, text=True)


def newest(directory: Path) -> tuple[int, dict[str, torch.Tensor]]:
    found = checkpoint.load_latest(directory / "checkpoints")
    assert found is not None
    return found[0], found[1]


@pytest.mark.slow
def test_two_processes_learn_what_one_does_and_a_run_goes_on_with_any_number(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    write_stores(tmp_path)
    make_clouds(tmp_path)
    alone = Alone(CPU)
    run_until(STEPS, tmp_path, "alone", alone)
    run_until(2, tmp_path, "shared", alone)
    assert newest(tmp_path / "shared")[0] == 2
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pair = [begin(index, port, tmp_path) for index in (0, 1)]
    said = [process.communicate(timeout=200)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said

    apart = [load_file(tmp_path / f"apart-{index}.safetensors")["drawn"] for index in (0, 1)]
    assert not torch.equal(*apart)
    for method in METHODS:
        first, second = (load_file(tmp_path / f"{method}-{index}.safetensors") for index in (0, 1))
        expected = learned(tmp_path, method, alone)
        for name, value in expected.items():
            assert torch.equal(first[name], second[name]), (method, name)
            if name.endswith("in_proj_bias"):  # keys' biases have no gradient but rounding, which Adam makes steps of
                first[name], value = (whole.unflatten(0, (3, -1))[[0, 2]] for whole in (first[name], value))
            torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-5, msg=f"{method} {name}")

    assert newest(tmp_path / "shared")[0] == 4
    run_until(STEPS, tmp_path, "shared", alone)
    (step, whole), (same, shared) = newest(tmp_path / "alone"), newest(tmp_path / "shared")
    assert step == same == STEPS
    for name, value in whole.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-5, atol=1e-5, msg=name)
    losses = [[record["train/loss"] for record in read_metrics(tmp_path / name)] for name in ("alone", "shared")]
    assert len(losses[0]) == STEPS
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


SMALL = (
    "plugins=[sodp3d_example] env=puck preset=quick threads=1 workers=1 device=cpu render=raycast "
    "env.camera.height=12 env.camera.width=12 env.points=8 env.episode_steps=6"
).split()
COLLECT = "agent=proportional collect.agent_steps=24 collect.fraction=1 collect.evaluate_every=0"
TRAIN = (
    "mode=pretrain model.denoising_steps=4 model.sampling_steps=2 pretrain.batch_size=4 pretrain.log_every=1 "
    "pretrain.checkpoint_every=1000 evaluation.episodes=2 evaluation.environments=2 evaluation.validation_episodes=2 "
    "evaluation.videos=0"
).split()
LONG = "pretrain.steps=100000 pretrain.evaluate_every=0"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python"]


class Place:
    """A folder from which commands are given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, before: list[str], verb: str, *options: str) -> subprocess.Popen[str]:
        full = [*before, sys.executable, "-m", "sodp3d", verb, *SMALL, *options]
        around = {**os.environ, **LOCAL, "SODP3D_ROOT": str(self.folder)}
        return subprocess.Popen(full, cwd=self.folder, env=around, stderr=subprocess.PIPE, text=True)

    def run(self, before: list[str], verb: str, *options: str) -> tuple[int, str]:
        started = self.start(before, verb, *options)
        said = started.communicate(timeout=200)[1]
        return started.returncode, said

    def steps(self, name: str) -> int:
        return len(read_metrics(self.folder / name))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Where there are clouds to learn from."""
    pytest.importorskip("accelerate")
    place = Place(tmp_path_factory.mktemp("puck"))
    for verb, options in (("collect", COLLECT.split()), ("convert", [])):
        assert place.run([], verb, *options)[0] == 0
    return place


@pytest.mark.slow
def test_what_the_main_process_refuses_is_told_once_and_ends_all(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    status, said = Place(tmp_path).run(TORCHRUN, "train", *TRAIN, "run_dir=run")
    assert status != 0 and said.count("error: ") == 1 and "sodp3d collect" in said, said


@pytest.mark.slow
def test_a_launched_run_is_stopped_and_gone_on_with(place: Place) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        started, before = place.start(TORCHRUN, "train", *TRAIN, *LONG.split(), "run_dir=run"), place.steps("run")
        while place.steps("run") < before + 3:
            assert started.poll() is None, started.communicate()[1]
            time.sleep(0.1)
        asked = time.monotonic()
        started.send_signal(number)
        said = started.communicate(timeout=60)[1]
        assert started.returncode != 0 and time.monotonic() - asked < 25, said
        assert said.count("stopped by SIG") == 1 and "LostProcess" not in said, said
        saved = newest(place.folder / "run")[0]
        assert saved == read_metrics(place.folder / "run")[-1]["step"] > before


@pytest.mark.slow
def test_a_launched_run_is_measured_and_finished_by_the_main_process(place: Place) -> None:
    status, said = place.run(TORCHRUN, "train", *TRAIN, "pretrain.steps=4", "pretrain.evaluate_every=2", "run_dir=two")
    assert status == 0 and said.count("finished:") == 1 and "2 processes learn together" in said, said
    assert place.run([], "train", *TRAIN, "pretrain.steps=4", "pretrain.evaluate_every=2", "run_dir=one")[0] == 0
    (step, two), (same, one) = newest(place.folder / "two"), newest(place.folder / "one")
    assert step == same == 4
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_at_once(place: Place) -> None:
    often = "pretrain.checkpoint_every=2", "run_dir=died"
    started = place.start(TORCHRUN, "train", *TRAIN, *LONG.split(), *often)
    while place.steps("died") < 3:
        assert started.poll() is None, started.communicate()[1]
        time.sleep(0.1)
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    ranks = {
        int(child): dict(
            pair.split("=", 1) for pair in Path(f"/proc/{child}/environ").read_text().split("\0") if "=" in pair
        ).get("RANK")
        for child in children
    }
    (doomed,) = [child for child, rank in ranks.items() if rank == "1"]
    died = time.monotonic()
    os.kill(doomed, signal.SIGKILL)
    said = started.communicate(timeout=60)[1]
    assert started.returncode != 0 and time.monotonic() - died < 25, said
    noticed = "error: another process of this command has ended"
    assert noticed in said or "stopped by SIGTERM" in said, said  # whichever comes first: torchrun asks it to stop, too
    assert newest(place.folder / "died")[0] >= 2
