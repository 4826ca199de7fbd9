"""Small episodes for the tests of stores: everything about an episode follows from its number."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.data.schema import step_specification
from sodp3d.data.store import EpisodeStore

SIZE = 12
SPECIFICATION = step_specification(3, 5, 2, 4, SIZE, SIZE)
ATTRIBUTES: dict[str, Any] = {
    "env": "toy",
    "env_config": {
        "name": "toy",
        "family": "toy",
        "task": "reach",
        "action_repeat": 2,
        "episode_steps": 9,
        "tasks": (),
        "camera": {
            "name": "top",
            "position": (0.0, 0.0, 1.0),
            "quaternion": None,
            "fovy": 45.0,
            "height": SIZE,
            "width": SIZE,
        },
        "crop": {"low": (float("-inf"), float("-inf"), 0.001), "high": (float("inf"),) * 3},
        "points": 20,
        "horizon": 4,
        "n_obs_steps": 2,
        "n_action_steps": 3,
        "success_metric": "any",
        "unet": "simple_dp3",
    },
    "camera": {
        # Looks straight down from 1 m; one pixel is 2 cm on the ground.
        "intrinsics": [[50.0, 0.0, (SIZE - 1) / 2], [0.0, 50.0, (SIZE - 1) / 2], [0.0, 0.0, 1.0]],
        "pose": [[1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, 1.0], [0.0, 0.0, 0.0, 1.0]],
        "height": SIZE,
        "width": SIZE,
    },
    "renderer": "raycast",
    "versions": {"sodp3d": "0"},
    "seed": 7,
    "agent": {"name": "toy"},
    "git_commit": "0" * 40,
}


def episode(number: int, length: int | None = None) -> dict[str, NDArray[Any]]:
    """Episode `number`, 1 to 9 steps long unless told."""
    generator = np.random.default_rng(number)
    length = int(generator.integers(1, 10)) if length is None else length
    arrays = {
        key: generator.normal(size=(length, *field.shape)).astype(field.dtype)
        for key, field in SPECIFICATION.items()
        if key not in ("success", "depth")
    }
    arrays["success"] = generator.integers(0, 3, length).astype(np.uint8)
    arrays["depth"] = generator.integers(500, 1200, (length, SIZE, SIZE)).astype(np.uint16)
    return arrays


def metadata(number: int) -> dict[str, Any]:
    """Per-episode values of episode `number`; its seed is its number."""
    return {
        "seed": number,
        "agent_step": 10 * number,
        "episode_return": number / 3,
        "success_final": number % 2 == 0,
        "success_count": number % 3 == 0,
        "success_any": number % 2 == 0 or number % 3 == 0,
    }


def make_store(path: Path, numbers: range | list[int], length: int | None = None, env: str = "toy") -> EpisodeStore:
    """A store of these episodes, closed and opened again for reading."""
    with EpisodeStore.create(path, {**ATTRIBUTES, "env": env}, SPECIFICATION) as store:
        for number in numbers:
            store.append(episode(number, length), metadata(number))
    return EpisodeStore.open(path)


def assert_holds(store: EpisodeStore, numbers: list[int], length: int | None = None) -> None:
    """The store holds exactly these episodes, byte for byte, in this order."""
    assert len(store) == len(numbers)
    found = store.metadata
    for index, number in enumerate(numbers):
        stored = store.episode(index)
        for key, values in episode(number, length).items():
            np.testing.assert_array_equal(stored[key], values, err_msg=f"{number} {key}")
        assert {key: values[index].item() for key, values in found.items()} == metadata(number)
