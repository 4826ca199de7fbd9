"""Replay videos: colour beside depth, re-simulated from seeds and actions or set from stored simulator states."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.core.files import disk_errors, replace_file
from sodp3d.core.paths import command_line
from sodp3d.core.run import read_config
from sodp3d.data.store import EpisodeStore
from sodp3d.envs import make_env
from sodp3d.envs.base import RobotEnv
from sodp3d.envs.config import RECORDED, EnvConfig
from sodp3d.rollouts.kept import ROLLOUTS, KeptRollouts
from sodp3d.tools.runs import run_options

SIZE = 256  # pixels of each half
_MARK = "Made by sodp3d"


def write_video(path: Path, frames: Iterator[NDArray[np.uint8]] | Sequence[NDArray[np.uint8]], fps: int) -> None:
    """Write (H, W, 3) frames as H.264 mp4; the file appears only when it is whole.

    Raises InputError where a file of that name is no video of ours, and where the disk refuses.
    """
    _require_ours(path)
    stacked = np.stack(list(frames))
    with disk_errors(path, "no video was written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        mark = ["-metadata", f"comment={_MARK}"]
        coded = iio.imwrite(
            "<bytes>", stacked, extension=".mp4", fps=fps, codec="libx264", macro_block_size=2, output_params=mark
        )
        replace_file(path, coded)


def _require_ours(path: Path) -> None:
    """Videos of earlier releases have no mark, but a folder that is ours: `videos` of a run or a store."""
    beside = path.parent.parent
    own = path.parent.name == "videos" and ((beside / "config.yaml").exists() or (beside / "episodes.zarr").exists())
    if path.exists() and not own and not (path.is_file() and _MARK.encode() in path.read_bytes()):
        raise InputError(
            f"{path}: was not made by sodp3d and is not replaced; move it away, or choose another output=."
        )


def frame(env: RobotEnv, achieved: bool) -> NDArray[np.uint8]:
    """(256, 512, 3): what the camera sees in colour, and the depth image the planner's cloud is made from.

    A green bar at the bottom says that the goal is achieved in this step.
    """
    colour = env.render_rgb(SIZE, SIZE)
    picture = np.concatenate([colour, colour_depth(env.render_depth(), SIZE)], axis=1)
    if achieved:
        picture[-8:] = (40, 200, 60)
    return picture


def colour_depth(depth: NDArray[np.uint16], size: int) -> NDArray[np.uint8]:
    """Depth (H, W) in millimetres as a (size, size, 3) picture: near is bright, invalid is black."""
    import matplotlib

    valid = depth > 0
    near, far = (np.percentile(depth[valid], [1, 99])) if valid.any() else (0.0, 1.0)
    scaled = np.clip(1 - (depth - near) / max(far - near, 1), 0, 1)
    picture = (matplotlib.colormaps["viridis"](scaled)[..., :3] * 255).astype(np.uint8)
    picture[~valid] = 0
    rows = np.arange(size) * depth.shape[0] // size
    columns = np.arange(size) * depth.shape[1] // size
    return picture[rows][:, columns]


def rollout_frames(env: RobotEnv, seed: int, actions: NDArray[np.float32]) -> Iterator[NDArray[np.uint8]]:
    """Frames of the episode that `seed` and `actions` (T, Da) determine."""
    env.reset(seed=seed)
    yield frame(env, False)
    for action in actions:
        *_, info = env.step(action)
        yield frame(env, info["goal_steps"] > 0)


def write_rollout_videos(
    directory: Path, config: EnvConfig, renderer: str, count: int, output: Path, only: Sequence[int] = ()
) -> list[Path]:
    """Videos of the roll-outs that `chosen_rollouts` chooses. Raises InputError as that does."""
    chosen = chosen_rollouts(directory, config, count, only)
    env = make_env(config, renderer)
    written = []
    for name, seed, actions in chosen:
        written.append(output / f"{name}.mp4")
        write_video(written[-1], rollout_frames(env, seed, actions), frame_rate(env))
    env.close()
    return written


def _evaluated_by(run: Path, task: EnvConfig) -> str:
    """What to do where a run keeps no roll-outs of a task."""
    if task.family == RECORDED:
        return "recordings have no simulator to roll out in."
    evaluate = command_line("train", "mode=eval", *run_options(read_config(run)), f"planner={run}")
    return f"evaluate first, and then replay the evaluation: {evaluate}"


def chosen_rollouts(
    directory: Path, config: EnvConfig, count: int, only: Sequence[int] = ()
) -> list[tuple[str, int, NDArray[np.float32]]]:
    """(name, seed, actions (T, Da)) of `count` roll-outs in `directory/rollouts.npz`, successes and failures as exist.

    only: the episode seeds to show instead. Raises InputError where there are none, or not those.
    """
    path = directory / ROLLOUTS
    if not path.is_file():
        raise InputError(f"run: {path} is missing; {_evaluated_by(directory.parents[1], config)}")
    kept = KeptRollouts.read(path)
    seeds, headline = kept.seeds, kept.succeeded(config.success_metric)
    missing = sorted(set(only) - set(seeds.tolist()))
    if missing:
        raise InputError(f"seeds: {missing[0]} was not evaluated; {path} holds seeds {seeds.min()} to {seeds.max()}.")
    chosen = [int(np.flatnonzero(seeds == seed)[0]) for seed in only] or _some_of_each(headline, count)
    outcomes = ["success" if headline[episode] else "failure" for episode in chosen]
    return [
        (f"{config.name}-seed{seeds[episode]}-{outcome}", int(seeds[episode]), kept.actions_of(episode))
        for episode, outcome in zip(chosen, outcomes, strict=True)
    ]


def write_store_videos(store: EpisodeStore, renderer: str, episodes: list[int], output: Path) -> list[Path]:
    """Videos of collected episodes, each step set from its stored simulator state.

    Raises InputError for recordings, which have none.
    """
    if "sim_state" not in store.specification:
        look = command_line("view", str(store.path.parent))
        raise InputError(
            f"data: {store.path} holds no simulator states, from which videos are drawn; look at what was recorded "
            f"with: {look}"
        )
    config = EnvConfig.from_config(store.attributes["env_config"])
    env = make_env(config, renderer)
    written = []
    for index in episodes:
        if not 0 <= index < len(store):
            raise InputError(f"episodes: {index} is not in the store, which holds episodes 0 to {len(store) - 1}.")
        name = output / f"{config.name}-episode{index:05d}.mp4"
        write_video(name, _state_frames(env, store.episode(index)), frame_rate(env))
        written.append(name)
    env.close()
    return written


def _state_frames(env: RobotEnv, episode: dict[str, Any]) -> Iterator[NDArray[np.uint8]]:
    success = episode.get("success", np.zeros(len(episode["sim_state"])))
    for state, achieved in zip(episode["sim_state"], success, strict=True):
        env.set_state(state)
        yield frame(env, bool(achieved))


def frame_rate(env: RobotEnv) -> int:
    """Control steps per second of simulated time, so that videos play in real time."""
    return int(env.metadata["render_fps"])


def _some_of_each(success: NDArray[np.bool_], count: int) -> list[int]:
    """Up to `count` episodes: half successes, half failures, in order, filled up with what there is."""
    good, bad = np.flatnonzero(success), np.flatnonzero(~success)
    half = min((count + 1) // 2, len(good))
    chosen = [*good[:half], *bad[: count - half]]
    chosen += [index for index in good[half:] if len(chosen) < count][: count - len(chosen)]
    return sorted(int(index) for index in chosen)
