"""Demonstrations for agents that see images: recordings hold none, so they are played back in the simulator and drawn.

Shape letters: R recorded steps, T control steps, Dp proprioception size, Ds state size, Da action size, H W image.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.collection.recording import Recording
from sodp3d.core.errors import InputError
from sodp3d.envs import RobotEnv
from sodp3d.envs.divergence import DivergedError, simulate

if TYPE_CHECKING:  # workers import this module, and need no PyTorch
    from sodp3d.collection.agents.memory import Trajectory
    from sodp3d.collection.demos import Demonstrations
    from sodp3d.parallel import Workers

log = logging.getLogger(__name__)
_START_TOLERANCE = 1e-3
_TOLERANCE = 0.1  # of all numbers of the state but one: raw recordings read sensors and sites one simulator step late


def image(environment: RobotEnv, size: int) -> NDArray[np.uint8]:
    """What an agent sees: the task camera's colour image, (3, size, size) uint8."""
    return np.ascontiguousarray(environment.render_rgb(size, size).transpose(2, 0, 1))


def _compare(state: NDArray[np.float64], recording: Recording, step: int) -> None:
    """Raise InputError where the playback has left the recording, which may lack the state after its last action."""
    if step == len(recording.states):
        return
    differences = np.sort(np.abs(state - recording.states[step]))
    difference, tolerance = (differences[-2], _TOLERANCE) if step else (differences[-1], _START_TOLERANCE)
    if difference > tolerance:
        raise InputError(f"played back, its state at step {step} is {difference:.3g} from the recorded one")


def play(environment: RobotEnv, recording: Recording, size: int) -> dict[str, NDArray[Any]]:
    """Play a recording back: proprioception "states" (T + 1, Dp) and "images" (T + 1, 3, size, size) uint8.

    Raises InputError where the playback does not begin like the recording, leaves it, or diverges.
    """
    _begin(environment, recording)
    task = environment.task
    repeat = environment.config.action_repeat // recording.group
    joints, images = [], []
    for step in range(len(recording.actions) + 1):
        if step % recording.group == 0:
            _compare(task.state(), recording, step)
            joints.append(task.proprioception().astype(np.float32))
            images.append(image(environment, size))
        if step < len(recording.actions):
            command = np.clip(np.asarray(recording.actions[step], dtype=np.float64), -1, 1)
            for _ in range(repeat):
                try:
                    simulate(task, command)
                except DivergedError:
                    raise InputError(f"played back, its simulation diverges at step {step}") from None
    return {"states": np.stack(joints), "images": np.stack(images)}


def _begin(environment: RobotEnv, recording: Recording) -> None:
    environment.reset(seed=recording.seed or 0)
    if recording.seed is not None and not recording.initial:
        return
    data, task = environment.data, environment.task
    moved = [value for key, value in recording.initial.items() if key not in ("qpos", "qvel", "target_pos")]
    found = [recording.initial.get("qpos"), recording.initial.get("qvel"), moved[0] if len(moved) == 1 else None]
    for value, expected in zip(found, (data.qpos, data.qvel, task.get_variables()), strict=True):
        if value is None or value.shape != expected.shape:
            raise InputError("neither a seed nor a complete initial_state_dict says how it began")
    data.qpos[:], data.qvel[:] = found[0], found[1]
    task.set_variables(np.asarray(found[2], dtype=np.float64))
    task.forward()


def watch(shown: "Demonstrations", workers: "Workers", size: int) -> "list[Trajectory]":
    """The demonstrations as an agent with eyes would have seen them: proprioception and images.

    workers: of `environments.CollectionGroup`. Recordings that do not play back are left out, with a warning.
    Raises InputError when none does, saying why.
    """
    trajectories: list[Trajectory] = []
    problems: list[str] = []
    for start in range(0, len(shown.recordings), len(workers)):
        indices = range(start, min(start + len(workers), len(shown.recordings)))
        played: Sequence[Any] = workers.call("play", [(shown.recordings[index], size) for index in indices])
        for index, seen in zip(indices, played, strict=True):
            if isinstance(seen, str):
                problems.append(f"episode {index}: {seen}")
            else:
                trajectories.append(replace(shown.trajectories[index], **seen))
    if not trajectories:
        raise InputError(
            f"demos: agent.encoder=pixels needs images, but no recording of {shown.name} plays back in this simulator "
            f"({problems[0] if problems else 'it has none'}). Use agent.encoder=state, or another set with demos=."
        )
    for problem in problems:
        log.warning("demos: %s left out, because its images cannot be drawn; %s", shown.name, problem)
    return trajectories
