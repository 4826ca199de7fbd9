"""What may be used of a machine: containers' limits, cores that are idle, and a word where steps take far too long."""

import logging
from pathlib import Path

import pytest

from sodp3d.core import machine
from sodp3d.core.device import find_device
from sodp3d.core.errors import InputError
from sodp3d.core.machine import Pace, core_count, free_bytes, idle_cores

FREE = 8 * 2**20  # KiB, of the machine


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of eight cores and 8 GiB of free memory, without a container."""
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)))
    write(tmp_path / "proc/meminfo", f"MemTotal: {2 * FREE} kB\nMemAvailable: {FREE} kB\n")
    write(tmp_path / "proc/stat", stat(busy=()))
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def stat(busy: tuple[int, ...], later: bool = False) -> str:
    """/proc/stat of ten cores, of which those in `busy` worked for the last 20 ticks."""
    ticks = 20 if later else 0
    lines = [
        f"cpu{core} {100 + ticks * (core in busy)} 0 0 {500 + ticks * (core not in busy)} 7 0 0 0 0 0"
        for core in range(10)
    ]
    return "\n".join(["cpu 1 2 3 4 5 6 7 8 9 0", *lines, "intr 5 5", "ctxt 1"])


def test_without_a_container_all_is_the_machines(made_up: Path) -> None:
    assert core_count() == 8
    assert free_bytes() == int(0.8 * FREE * 1024)


@pytest.mark.parametrize(("quota", "cores"), [("250000 100000", 3), ("max 100000", 8), ("50000 100000", 1)])
def test_a_containers_quota_bounds_the_cores(made_up: Path, quota: str, cores: int) -> None:
    write(made_up / "cgroup/cpu.max", quota)
    assert core_count() == cores


@pytest.mark.parametrize(("quota", "cores"), [("400000", 4), ("-1", 8)])
def test_an_older_containers_quota_too(made_up: Path, quota: str, cores: int) -> None:
    write(made_up / "cgroup/cpu/cpu.cfs_quota_us", quota)
    write(made_up / "cgroup/cpu/cpu.cfs_period_us", "100000")
    assert core_count() == cores


def test_a_containers_memory_is_what_its_limit_leaves(made_up: Path) -> None:
    write(made_up / "cgroup/memory.max", str(4 * 2**30))
    write(made_up / "cgroup/memory.current", str(3 * 2**30))
    write(made_up / "cgroup/memory.stat", f"anon {2**30}\ninactive_file {2**30}\n")
    assert free_bytes() == int(0.8 * 2 * 2**30)  # cached files give way
    write(made_up / "cgroup/memory.max", "max")
    assert free_bytes() == int(0.8 * FREE * 1024)


def test_the_limit_of_a_jobs_own_group_and_of_those_around_it_count(made_up: Path) -> None:
    job = made_up / "cgroup/slurm/job_7"
    write(made_up / "proc/self/cgroup", "5:memory:/other/job\n0::/slurm/job_7\n")
    write(job / "memory.max", str(2 * 2**30))
    assert free_bytes() == int(0.8 * 2 * 2**30)
    write(job.parent / "memory.max", str(2**30))
    write(job.parent / "memory.current", str(2**29))
    assert free_bytes() == int(0.8 * 2**29)
    write(made_up / "cgroup/memory/other/job/memory.limit_in_bytes", str(2**28))
    assert free_bytes() == int(0.8 * 2**28)


def test_an_older_containers_memory_too(made_up: Path) -> None:
    write(made_up / "cgroup/memory/memory.limit_in_bytes", str(2**30))
    write(made_up / "cgroup/memory/memory.usage_in_bytes", str(2**29))
    assert free_bytes() == int(0.8 * 2**29)


def test_only_idle_cores_are_counted(made_up: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: write(made_up / "proc/stat", stat((0, 1, 2, 9), later=True)))
    assert idle_cores() == 5  # core 9 is not ours
    write(made_up / "cgroup/cpu.max", "200000 100000")
    write(made_up / "proc/stat", stat(()))
    assert idle_cores() == 2


def test_one_thread_is_left_where_nothing_is_idle(made_up: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: write(made_up / "proc/stat", stat(tuple(range(10)), later=True)))
    assert idle_cores() == 1


def test_a_step_of_ten_times_the_usual_is_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    pace = Pace("pretrain", lambda: now[0])

    def step(seconds: float) -> None:
        pace.begin()
        now[0] += seconds
        pace.end()

    with caplog.at_level(logging.WARNING):
        for seconds in (*[0.2] * 40, 1.9):
            step(seconds)
        assert caplog.messages == []
        for _ in range(4):
            step(25.0)
    assert len(caplog.messages) == 2 and "pretrain: a step took 25 s instead of 0.2 s" in caplog.messages[0]


def test_a_device_that_is_not_there_is_refused_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert str(find_device("cuda:1", "device")) == "cuda:1"
    with pytest.raises(InputError, match=r"obs\.device: expected cuda:0 to cuda:1, .* got cuda:7"):
        find_device("cuda:7", "obs.device")
