"""The doctor: what it reports, and its exit code."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from sodp3d.tools import doctor
from sodp3d.vision import gl


def run(frames: int = 2) -> tuple[bool, str]:
    console = Console(file=io.StringIO(), width=200)
    healthy = doctor.report(console, frames)
    assert isinstance(console.file, io.StringIO)
    return healthy, console.file.getvalue()


def software(backend: str) -> gl.Probe:
    return gl.Probe(backend, "llvmpipe (LLVM 15)", None)


def absent(backend: str) -> gl.Probe:
    return gl.Probe(backend, None, "ImportError: no library")


def processes(open3d: bool = True) -> Callable[..., tuple[str, str]]:
    def answer(*arguments: str) -> tuple[str, str]:
        if "--time" in arguments:
            return "123", ""
        return ("ok", "") if open3d else ("", "OSError: libusb-1.0.so.0: cannot open shared object file")

    return answer


def test_reports_versions_machine_renderers_and_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gl, "probe", software)
    monkeypatch.setattr(doctor, "_in_own_process", processes())
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    healthy, text = run()
    assert healthy
    for expected in ("mujoco", "3.3.0", "CPU threads", "disk free", "CUDA", "llvmpipe (LLVM 15)", "123 frames/s"):
        assert expected in text
    assert "egl (render=auto)" in text and "osmesa (render=auto)" not in text
    assert "EGL draws in software" in text


def test_without_opengl_it_names_the_packages_and_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gl, "probe", absent)
    monkeypatch.setattr(gl, "_bound", lambda: None)
    monkeypatch.setattr(doctor, "_in_own_process", processes())
    healthy, text = run()
    assert healthy and "raycast (render=auto)" in text
    assert "apt-get install -y libegl1" in text and "apt-get install -y libosmesa6" in text


def test_contradictory_variables_are_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gl, "probe", software)
    monkeypatch.setattr(doctor, "_in_own_process", processes())
    monkeypatch.setenv("MUJOCO_GL", "vulkan")
    assert "- MUJOCO_GL: expected egl, osmesa or nothing, got 'vulkan'" in run()[1]


def test_a_broken_open3d_fails_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gl, "probe", software)
    monkeypatch.setattr(doctor, "_in_own_process", processes(open3d=False))
    healthy, text = run()
    assert not healthy and "libusb-1.0.so.0" in text and "libusb-1.0-0" in text


def test_a_missing_package_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "REQUIRED_PACKAGES", ("mujoco", "no-such-package"))
    healthy, text = run()
    assert not healthy and "missing packages: no-such-package" in text


def test_little_disk_and_memory_are_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LOW_DISK", 1e9)
    monkeypatch.setattr(doctor, "LOW_MEMORY", 1e9)
    fixes = doctor.check_machine()[1]
    assert len(fixes) == 2 and "disk" in fixes[0] and "memory" in fixes[1]


def test_times_real_frames(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--time", "raycast", "--frames", "3"]) == 0
    assert float(capsys.readouterr().out) > 0
