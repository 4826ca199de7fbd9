"""How long a store takes into each format and back, and how large it is there; checks that the arrays come back equal.

python benchmarks/exchange.py [--steps 10000] [--formats folder dp3 ...] -> results/benchmarks/exchange.json
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from clouds import surface_clouds
from timing import write

from sodp3d.core.registry import FORMATS
from sodp3d.data.recording import RecordedEpisode, create_recorded_store
from sodp3d.data.store import EpisodeStore
from sodp3d.exchange import formats
from sodp3d.exchange.exporting import export_recording
from sodp3d.exchange.importing import import_recording
from sodp3d.settings import ExportSettings, ImportSettings
from sodp3d.vision.camera import Camera, intrinsics

SIDE, POINTS, LENGTH, ACTIONS, JOINTS = 84, 512, 250, 7, 8


def episode(random: np.random.Generator) -> RecordedEpisode:
    """A table seen from above, with an object that moves, and the millimetre of noise that depth cameras have."""
    down, across = np.mgrid[:SIDE, :SIDE]
    place = random.uniform(20, 60, (LENGTH, 2)).cumsum(0) / np.arange(1, LENGTH + 1)[:, None]
    far = np.hypot(down - place[:, :1, None], across - place[:, 1:, None])
    depth = 900 + 0.5 * down - 80 * (far < 10) + random.normal(0, 1, (LENGTH, SIDE, SIDE))
    return RecordedEpisode(
        action=random.uniform(-1, 1, (LENGTH, ACTIONS)).astype(np.float32),
        agent_pos=random.normal(size=(LENGTH, JOINTS)).astype(np.float32),
        depth=np.rint(depth).astype(np.uint16),
        point_cloud=surface_clouds(LENGTH, POINTS).numpy(),
        reward=random.normal(size=LENGTH).astype(np.float32),
    )


def make_store(path: Path, steps: int) -> None:
    """A store of recordings, of episodes of LENGTH steps."""
    random, camera = np.random.default_rng(0), Camera(intrinsics(45, SIDE, SIDE), np.eye(4), SIDE, SIDE)
    with create_recorded_store(path, "table", episode(random), rate=10, camera=camera) as store:
        while store.steps < steps:
            made = episode(random)
            store.append(made.steps, made.metadata)


def timed(job: Callable[[], Any]) -> float:
    """Seconds."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def megabytes(path: Path) -> float:
    """On disk, of a file or of all files of a folder."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def round_trip(name: str, folder: Path) -> dict[str, float]:
    """Seconds out and back, and megabytes between."""
    path, back = folder / f"{name}{formats.choose(name).suffix}", folder / f"from-{name}"
    settings = ExportSettings(store=str(folder), format=name, path=str(path))
    out = timed(lambda: export_recording(settings, lambda *_: None))
    settings_back = ImportSettings(format=name, path=str(path), store=str(back))
    into = timed(lambda: import_recording(settings_back, lambda *_: None))
    first, second = EpisodeStore.open(folder / "episodes.zarr"), EpisodeStore.open(back / "episodes.zarr")
    for key in first.specification:
        if not np.array_equal(first.read(key), second.read(key)):
            raise SystemExit(f"{name}: data/{key} came back as something else.")
    return {"export_seconds": round(out, 2), "import_seconds": round(into, 2), "megabytes": round(megabytes(path), 1)}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_store(folder / "episodes.zarr", arguments.steps)
        measured = {each: round_trip(each, folder) for each in arguments.formats}
        size = round(megabytes(folder / "episodes.zarr"), 1)
    what = {"steps": arguments.steps, "depth": [SIDE, SIDE], "points": POINTS, "store_megabytes": size}
    write("exchange", {**what, "formats": measured})


if __name__ == "__main__":
    main()
