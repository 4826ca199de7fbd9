"""`sodp3d doctor`: what is installed, what draws depth images and how fast, and what to fix.

Exits with 0 where everything needed is there, with 1 otherwise. `--frames` sets how many frames are timed.
"""

import argparse
import logging
import os
import shutil
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

from sodp3d.core.errors import InputError
from sodp3d.core.machine import core_count
from sodp3d.core.paths import CHECKOUT, CONFIGS, root
from sodp3d.core.versions import NOT_INSTALLED, package_versions

ENVIRONMENT = "adroit_door"
REQUIRED_PACKAGES = (
    "torch",
    "mujoco",
    "gymnasium",
    "gymnasium-robotics",
    "metaworld",
    "open3d",
    "zarr",
    "hydra-core",
    "minari",
)
LIBRARIES = "apt-get install -y libgl1 libegl1 libosmesa6 libusb-1.0-0 libgomp1"
LOW_DISK, LOW_MEMORY = 10, 4  # GB
_TIMEOUT = 300


def time_frames(backend: str, frames: int) -> float:
    """Depth frames per second of one Adroit door environment in this process."""
    from omegaconf import OmegaConf

    from sodp3d.envs import EnvConfig, make_env

    path = CONFIGS / "env" / f"{ENVIRONMENT}.yaml"
    values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    env = make_env(EnvConfig.from_config(values), backend)  # type: ignore[arg-type]
    env.reset(seed=0)
    env.render_depth()  # makes the context
    start = time.perf_counter()
    for _ in range(frames):
        env.render_depth()
    return frames / (time.perf_counter() - start)


def _in_own_process(*arguments: str) -> tuple[str, str]:
    """Output and last error line of a Python process; only one GL backend fits in a process."""
    command = [sys.executable, *arguments]
    variables = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, env=variables)
    except subprocess.TimeoutExpired:
        return "", f"no answer within {_TIMEOUT} s"
    lines = result.stderr.strip().splitlines()
    return result.stdout.strip(), "" if result.returncode == 0 else (lines[-1] if lines else "failed")


def check_rendering(frames: int) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Rows (backend, what draws, frames/s or failure), the one that render=auto takes marked; and what to fix."""
    from sodp3d.vision import gl

    rows, fixes, chosen = [], [], ""
    try:
        gl.check_variables()
    except InputError as error:
        fixes.append(str(error))
    wanted = os.environ.get("MUJOCO_GL", "").lower()
    candidates = (wanted, "raycast") if wanted in gl.BACKENDS else gl.BACKENDS  # of render=auto
    for backend in gl.BACKENDS:
        found = None if backend == "raycast" else gl.probe(backend)
        if found is not None and found.failure is not None:
            rows.append((backend, "does not work", found.failure))
            fixes.append(f"render={backend} does not work. {gl.advice(backend, found.failure)}")
            continue
        output, failure = _in_own_process("-m", "sodp3d", "doctor", "--time", backend, "--frames", str(frames))
        name = backend
        if not failure and not chosen and backend in candidates:
            chosen, name = backend, f"{backend} (render=auto)"
        if backend == "egl" and found is not None and found.software:
            fixes.append("EGL draws in software. With a GPU, install its driver's EGL library (NVIDIA: libnvidia-gl).")
        rows.append((name, (found.renderer if found else None) or "CPU, no OpenGL", failure or f"{output} frames/s"))
    return rows, fixes


def check_machine() -> tuple[list[tuple[str, str]], list[str]]:
    """Rows (resource, amount), and what to fix."""
    import torch

    place = next(folder for folder in (root(), *root().parents) if folder.exists())
    disk = shutil.disk_usage(place).free / 1e9
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none (device=auto takes the CPU)"
    rows = [
        ("CPU threads", str(core_count())),
        ("memory", f"{memory:.1f} GB"),
        ("disk free", f"{disk:.1f} GB in {root()}"),
        ("CUDA", cuda),
    ]
    fixes = []
    if disk < LOW_DISK:
        fixes.append(
            f"Only {disk:.1f} GB of disk left; a paper-size Adroit store needs about 2 GB, Meta-World's 33 GB."
        )
    if memory < LOW_MEMORY:
        fixes.append(f"Only {memory:.1f} GB of memory; set workers=1 and a smaller preset.")
    return rows, fixes


def check_open3d() -> str | None:
    """What to fix where Open3D cannot be imported, None where it can."""
    output, failure = _in_own_process("-c", "import open3d, sys; sys.stdout.write('ok')")
    return None if output.endswith("ok") else f"Open3D cannot be imported ({failure}). On Debian or Ubuntu: {LIBRARIES}"


def _table(title: str, rows: list[tuple[str, ...]]) -> Table:
    table = Table(title=title, show_header=False, title_justify="left")
    for row in rows:
        table.add_row(*row)
    return table


def report(console: Console, frames: int) -> bool:
    """Print everything; returns whether all that is needed is there."""
    found = package_versions(REQUIRED_PACKAGES)
    missing = [name for name, version in found.items() if version == NOT_INSTALLED]
    console.print(_table("Versions", list(found.items())))
    if missing:
        how = "pip install --editable . in the project folder" if CHECKOUT else "pip install with sodp3d's wheel again"
        console.print(f"[bold]To fix:[/bold] missing packages: {', '.join(missing)}. Run {how}.")
        return False
    machine, fixes = check_machine()
    console.print(_table("Machine", list(machine)))
    rendering, drawing_fixes = check_rendering(frames)
    console.print(_table(f"Depth images ({frames} of {ENVIRONMENT})", list(rendering)))
    open3d = check_open3d()
    for advice in [*([open3d] if open3d else []), *drawing_fixes, *fixes] or ["Nothing to fix."]:
        console.print(f"- {advice}", markup=False, soft_wrap=True)
    return open3d is None and any(row[0].endswith("(render=auto)") for row in rendering)


def main(arguments: list[str] | None = None) -> int:
    """Command line entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="sodp3d doctor", description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=100, help="depth frames to time per backend")
    parser.add_argument("--time", choices=("egl", "osmesa", "raycast"), help="only time this backend, print frames/s")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.ERROR)
    if options.time:
        sys.stdout.write(f"{time_frames(options.time, options.frames):.0f}\n")
        return 0
    return 0 if report(Console(), options.frames) else 1


if __name__ == "__main__":
    sys.exit(main())
