"""Small recordings of a robot, for tests: everything about an episode follows from its number."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sodp3d.data.recording import RecordedEpisode, create_recorded_store
from sodp3d.data.store import EpisodeStore
from sodp3d.vision.camera import Camera

SIZE, POINTS = 12, 16
INTRINSICS = np.array([[50.0, 0.0, (SIZE - 1) / 2], [0.0, 50.0, (SIZE - 1) / 2], [0.0, 0.0, 1.0]])
POSE = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
CAMERA = Camera(INTRINSICS, POSE, SIZE, SIZE)
NAMES = {"action_names": ["dx", "turn", "grip"], "agent_pos_names": ["x", "y"]}


def recorded_episode(number: int, length: int = 9, **changes: Any) -> RecordedEpisode:
    """A hand that goes to where it is told, with a gripper and a force, seen as clouds; neither reward nor success."""
    generator = np.random.default_rng(number)
    action = generator.uniform(-1, 1, (length, 3)).cumsum(axis=0) / 3
    joints = np.concatenate([np.zeros((1, 2)), action[:-1, :2]])
    episode = RecordedEpisode(
        action=action,
        agent_pos=joints,
        beside={"gripper": action[:, 2] > 0, "force": generator.normal(size=(length, 2))},
        point_cloud=joints[:, None, [0, 1, 1]] + generator.uniform(-0.1, 0.1, (length, POINTS, 3)),
    )
    return replace(episode, **changes)


def depth_episode(number: int, length: int = 9, **changes: Any) -> RecordedEpisode:
    """The same seen as depth and colour, and no clouds."""
    generator = np.random.default_rng(number)
    depth = generator.integers(500, 1200, (length, SIZE, SIZE)).astype(np.uint16)
    image = generator.integers(0, 256, (length, 3, SIZE, SIZE)).astype(np.uint8)
    return recorded_episode(number, length, **{"point_cloud": None, "depth": depth, "image": image, **changes})


def make_recorded_store(path: Path, episodes: list[RecordedEpisode], name: str = "arm", **more: Any) -> EpisodeStore:
    """A store of these, closed and opened again for reading."""
    camera = CAMERA if episodes[0].depth is not None else None
    with create_recorded_store(path, name, episodes[0], **{"rate": 10, "camera": camera, **NAMES, **more}) as store:
        for episode in episodes[len(store) :]:
            store.append(episode.steps, episode.metadata)
    return EpisodeStore.open(path)
