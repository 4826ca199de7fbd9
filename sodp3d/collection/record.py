"""Record successful roll-outs of a trained agent as demonstrations: a compact Minari dataset and its card.

sodp3d record env=adroit_door
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sodp3d.collection import agents, demos
from sodp3d.collection.agents.memory import Trajectory
from sodp3d.collection.collect import build_agent
from sodp3d.collection.environments import CollectionGroup, Finished
from sodp3d.collection.waves import Waves
from sodp3d.core.cli import command, compose
from sodp3d.core.errors import InputError
from sodp3d.core.paths import command_line, data_root
from sodp3d.core.sections import read_keys
from sodp3d.core.seeds import RECORDING, episode_seed
from sodp3d.envs.config import EnvConfig
from sodp3d.settings import CommonSettings, RecordSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """The episodes kept, in the order of their seeds, out of `attempts`; and the agent that made them."""

    episodes: Sequence[Finished]
    attempts: int
    steps: int  # agent steps of its training
    config: Mapping[str, Any]  # of its run
    began: str = ""  # with what its training did


@command("record")
def main(config: dict[str, Any]) -> None:
    """Record the task's agent."""
    from sodp3d.envs.config import task_configs

    tasks = task_configs(config)
    if len(tasks) > 1:
        raise InputError(f"env={config['env']['name']} is a set of tasks; record one of them.")
    env = tasks[0]
    output = folder_of(config, env)
    recording = record(config, env)
    save(output, env, recording)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    log.info("%d of %d episodes kept in %s (%.2f MB)", len(recording.episodes), recording.attempts, output, size / 1e6)
    log.info("agents learn from them by: %s", _shown_by(env, str(output)))


def _shown_by(env: EnvConfig, place: str) -> str:
    """The command by which an agent begins with the demonstrations at `place`."""
    usual = compose("collect", env.choice.split())["env"]["recommended"]["agent"]
    agent = [] if usual == "vrl3" else ["agent=rlpd", "agent.prior=demonstrations"]
    return command_line("collect", *env.choice.split(), *agent, f"demos={place}", "data=<new folder>")


def folder_of(config: Mapping[str, Any], env: EnvConfig) -> Path:
    """Where the dataset goes: to `output=`, or beside the task's own data. Raises InputError where something is."""
    named = read_keys(RecordSettings, config).output
    folder = Path(named).expanduser() if named else data_root(config) / env.name / "demonstrations"
    if folder.exists():
        raise InputError(f"{folder}: exists already and is never overwritten; move it away or name another output=.")
    return folder


def record(config: Mapping[str, Any], env: EnvConfig) -> Kept:
    """Roll-outs with exploration noise, on seeds of their own, until enough have succeeded.

    The noise makes the demonstrations cover what lies beside the path: an agent cloned from deterministic ones fails as
    soon as it explores (results/log.md).

    Raises InputError when there is no trained agent, or too few attempts succeed.
    """
    from sodp3d.core import checkpoint
    from sodp3d.core.device import prepare_torch
    from sodp3d.core.run import read_config
    from sodp3d.parallel import make_workers
    from sodp3d.vision.gl import settle

    settings, common = read_keys(RecordSettings, config), read_keys(CommonSettings, config)
    folder = Path(settings.run).expanduser() if settings.run else data_root(config) / env.name / "agent"
    trained = read_config(folder)
    if "agent" not in trained:
        raise InputError(f"run: {folder} is no agent's; name the folder of one that was trained, data/<env>/agent.")
    found = checkpoint.load_latest(folder / "checkpoints")
    if found is None:
        train = command_line("collect", *env.choice.split())
        raise InputError(f"run: {folder} has no checkpoint; train the agent first: {train}")
    device = prepare_torch(config)
    group = (env, settle(common.render))
    with make_workers(common.workers, CollectionGroup, group, at_most=settings.environments) as workers:
        (facts,) = workers.call("describe", [()])
        step, tensors, state = found
        agent = build_agent(trained["agent"], env, facts, trained["seed"], device, fresh=False)
        with checkpoint.restoring(checkpoint.path_of(folder / "checkpoints", step)):
            agent.load_state(tensors, state["agent"])
            steps = state["loop"]["steps"]
        kept, attempts = _successes(Waves(workers), agent, env, trained["seed"], settings)
        began = _began(agent, trained, env)
    return Kept(kept, attempts, steps, trained, began)


def _began(agent: agents.Agent, trained: Mapping[str, Any], env: EnvConfig) -> str:
    """What an agent had before its own first step, for a card."""
    if agent.scripted_episodes:
        return f", after {agent.scripted_episodes} episodes by a scripted expert"
    if not agent.needs_demonstrations:
        return ""
    shown = Path(trained["demos"]).name if trained["demos"] else f"those shipped for {env.name}"
    return f", starting from {trained['demo_episodes'] or 'all'} demonstrations ({shown})"


def _successes(
    waves: Waves, agent: agents.Agent, env: EnvConfig, seed: int, settings: RecordSettings
) -> tuple[list[Finished], int]:
    kept: list[Finished] = []
    for first in range(0, settings.attempts, settings.environments):
        last = min(first + settings.environments, settings.attempts)
        seeds = [episode_seed(seed, RECORDING, index) for index in range(first, last)]
        for place, episode in enumerate(waves.run(agent, seeds, explore=True, record=False)):
            if episode.success[env.success_metric]:
                kept.append(episode)
            if len(kept) == settings.episodes:
                return kept, first + place + 1
    raise InputError(
        f"episodes: only {len(kept)} of {settings.attempts} attempts succeeded ({env.success_metric}), but "
        f"{settings.episodes} were asked for; train the agent for longer, or allow more attempts=."
    )


def save(output: Path, env: EnvConfig, recording: Kept) -> None:
    """Write the dataset and, beside it, the card that says how it was made; both appear in one step."""
    from tempfile import TemporaryDirectory

    from sodp3d.core.files import disk_errors, write_text

    episodes = recording.episodes
    name = f"sodp3d/{env.name}-v0"
    facts = {
        "dataset_id": name,
        "algorithm_name": f"{recording.config['agent']['name']}, roll-outs with exploration noise",
        "description": f"{len(episodes)} successful episodes of our own agent on {env.name}",
        "successes": len(episodes),
        "versions": _versions(),
    }
    shown = [Trajectory(e.states, e.actions, e.rewards, e.terminated) for e in episodes]  # states, whatever it saw
    with disk_errors(output, "nothing was recorded"):
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=output.parent, prefix=".recording-") as folder:
            whole = Path(folder) / "dataset"
            demos.write(whole, env, shown, [e.seed for e in episodes], facts)
            write_text(whole / "README.md", card(name, env, recording))
            whole.rename(output)


def card(name: str, env: EnvConfig, recording: Kept) -> str:
    """The dataset's card, Markdown."""
    episodes, trained = recording.episodes, recording.config
    returns = [episode.episode_return for episode in episodes]
    packages = ", ".join(f"{key} {value}" for key, value in _versions().items())
    settings = "\n".join(f"    {key}: {value}" for key, value in trained["agent"].items())
    return f"""# {name}

{len(episodes)} successful episodes on `{env.name}`, made by this project's own agent. Others begin with them by
`{_shown_by(env, "<this folder>")}`.

* Episodes: {len(episodes)}, {sum(len(episode.actions) for episode in episodes)} control steps (action repeat
  {env.action_repeat}); returns {min(returns):.1f} to {max(returns):.1f}.
* Selection: the first {len(episodes)} that succeeded (`{env.success_metric}`) of {recording.attempts} roll-outs
  with training's exploration noise, on seeds (stored per episode) that neither collection nor evaluation uses.
* Agent: `{trained["agent"]["name"]}`, trained for {recording.steps} control steps with seed {trained["seed"]} by
  `sodp3d collect`{recording.began}.
* Format: a Minari dataset (HDF5, float32, gzip): `observations` (T + 1, {episodes[0].states.shape[1]}) is the state
  vector, `actions` (T, {episodes[0].actions.shape[1]}) in [-1, 1], `rewards` (T,) the task's, summed over the repeat.
* Versions: {packages}.

Agent settings:

{settings}
"""


def _versions() -> dict[str, str]:
    """Without the command line: a dataset that is handed on should hold no paths of this machine."""
    from sodp3d.core.versions import recorded_versions

    return {key: value for key, value in recorded_versions().items() if key != "command"}


if __name__ == "__main__":
    main()
