"""One and the same episode before and after fine-tuning: which seed to show, and its video."""

from dataclasses import dataclass
from pathlib import Path

from sodp3d.core.run import read_config
from sodp3d.envs.config import EnvConfig
from sodp3d.rollouts.kept import ROLLOUTS, KeptRollouts
from sodp3d.tools.video import write_rollout_videos


@dataclass(frozen=True)
class Pair:
    """An episode that both planners were evaluated on. words: how it was chosen, and how the other episodes went."""

    task: EnvConfig
    seed: int
    before: bool
    after: bool
    words: str


def choose_pair(before: Path, after: Path) -> Pair | None:
    """The first seed that failed in run `before` and succeeded in run `after`; without one, the first that succeeded
    after, or else the first of all. None where the two runs have no evaluated seed in common.

    The task is that of `after`; `before` may be of a set with this task.
    """
    task = EnvConfig.from_config(read_config(after)["env"])
    earlier, later = outcomes(before, task), outcomes(after, task)
    shared = sorted(earlier.keys() & later.keys())
    if not shared:
        return None
    gained = [seed for seed in shared if later[seed] and not earlier[seed]]
    lost = [seed for seed in shared if earlier[seed] and not later[seed]]
    seed = (gained or [seed for seed in shared if later[seed]] or shared)[0]
    kind = " that failed before and succeeded after" if gained else " that succeeded after" if later[seed] else ""
    words = (
        f"Of {len(shared)} episodes, {len(gained)} went from failure to success and {len(lost)} from success to "
        f"failure. This is the first{kind}."
    )
    return Pair(task, seed, earlier[seed], later[seed], words)


def outcomes(run: Path, task: EnvConfig) -> dict[int, bool]:
    """Seed to success, by the task's own metric, of the roll-outs that ended `run`; {} where there are none."""
    path = _rollouts(run, task) / ROLLOUTS
    if not path.is_file():
        return {}
    kept = KeptRollouts.read(path)
    success = kept.succeeded(task.success_metric)
    return dict(zip(kept.seeds.tolist(), success.tolist(), strict=True))


def video(run: Path, pair: Pair, renderer: str) -> Path:
    """The video of that evaluated episode under `run`/videos, made if it is not there yet."""
    task, seed = pair.task, pair.seed
    found = sorted((run / "videos").glob(f"{task.name}-seed{seed}-*.mp4"))
    return (found or write_rollout_videos(_rollouts(run, task), task, renderer, 1, run / "videos", [seed]))[0]


def _rollouts(run: Path, task: EnvConfig) -> Path:
    return run / "evaluation" / task.name
