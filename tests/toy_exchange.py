"""Small recordings for the tests of formats: everything about an episode follows from its number."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.core import registry
from sodp3d.core.errors import InputError
from sodp3d.data.schema import Field, Specification
from sodp3d.exchange import formats
from sodp3d.exchange.episodes import Facts, Offer
from sodp3d.exchange.selection import select, to_store
from sodp3d.settings import ExportSettings, ImportSettings
from sodp3d.vision.camera import Camera

FORMATS = [name for name in sorted(registry.FORMATS) if name != "lerobot" or find_spec("pyarrow")]
HEIGHT, WIDTH = 6, 8
POSE = np.array([[1.0, 0, 0, 0.1], [0, -1, 0, 0.2], [0, 0, -1, 1.0], [0, 0, 0, 1]])
CAMERA = Camera(np.array([[50.0, 0, 3.5], [0, 50, 2.5], [0, 0, 1]]), POSE, HEIGHT, WIDTH)
JOINTS = ("shoulder", "elbow", "gripper")
FACTS = Facts(CAMERA, 10.0, "lift the cup", None, {"agent_pos": JOINTS})
SPECIFICATION: Specification = {
    "action": Field((2,), "float32"),
    "agent_pos": Field((3,), "float32"),
    "state": Field((4,), "float32"),
    "depth": Field((HEIGHT, WIDTH), "uint16"),
    "image": Field((3, HEIGHT, WIDTH), "uint8"),
    "point_cloud": Field((5, 3), "float32"),
    "reward": Field((), "float32"),
    "success": Field((), "uint8"),
}
ALONE = ("action", "agent_pos")  # what a robot at least records
Arrays = dict[str, NDArray[Any]]


def steps_of(number: int, length: int = 4, keys: Any = None) -> Arrays:
    """Arrays of episode `number`, of these keys."""
    random = np.random.default_rng(number)
    found: Arrays = {}
    for key, field in SPECIFICATION.items():
        shape, kind = (length, *field.shape), np.dtype(field.dtype)
        most = 2 if key == "success" else 65_536 if key == "depth" else 256
        whole = random.integers(0, most, shape).astype(kind)
        found[key] = whole if kind.kind == "u" else random.normal(size=shape).astype(kind)
    return {key: found[key] for key in (SPECIFICATION if keys is None else keys)}


def outcomes_of(number: int) -> dict[str, Any]:
    """What is known of episode `number` as a whole."""
    return {"seed": number, "success_final": number % 2 == 0}


def write(name: str, path: Path, episodes: list[Arrays], facts: Facts = FACTS, **options: Any) -> formats.Sink:
    """A recording of these episodes, written by a format."""
    specification = {key: SPECIFICATION[key] for key in episodes[0]}
    settings = ExportSettings(store="store", format=name, path=str(path), **options)
    sink = formats.choose(name).sink(path, specification, facts, settings)
    for number, episode in enumerate(episodes):
        sink.add(episode, outcomes_of(number))
    sink.finish()
    return sink


def opened(name: str, path: Path, **options: Any) -> formats.Source:
    return formats.choose(name).source(path, asked(name, path, **options))


def asked(name: str, path: Path, **options: Any) -> ImportSettings:
    return ImportSettings(format=name, path=str(path), store="store", **options)


def read(name: str, path: Path, index: int = 0, **options: Any) -> Arrays:
    """One episode as a store gets it, what is beside the joints under its own name."""
    source = opened(name, path, **options)
    try:
        selection = select(source.offers, asked(name, path, **options), source.lost)
        made, beside = to_store(source.read(index, selection.all), selection, source.facts, f"episode {index}")
        return {**made, **beside}
    finally:
        source.close()


def assert_equal(found: Arrays, expected: Arrays) -> None:
    assert sorted(found) == sorted(expected)
    for key, values in expected.items():
        np.testing.assert_array_equal(found[key], values, err_msg=key)
        assert found[key].dtype == values.dtype, key


class BagSource:
    """A format of someone else's: each episode is a text, whose numbers are the actions."""

    def __init__(self, path: Path, settings: ImportSettings) -> None:
        self._lines = path.read_text(encoding="utf-8").splitlines()
        self.episodes = [f"bag {number}" for number in range(len(self._lines))]
        self.facts, self.lost = Facts(rate=2.0), dict[str, str]()
        self.offers = {"command": Offer("numbers", (1,), "float64", "action"), "felt": Offer("numbers", (), "float64")}

    def read(self, index: int, keys: Any) -> Arrays:
        numbers = np.array(self._lines[index].split(), float)
        return {key: numbers[:, None] if key == "command" else numbers for key in keys}

    def outcomes(self, index: int) -> dict[str, Any]:
        return {"seed": index}

    def close(self) -> None:
        pass


def no_sink(*_: Any) -> Any:
    raise InputError("format: bags are not written.")


BAGS = formats.Format(BagSource, no_sink)
