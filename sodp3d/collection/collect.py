"""Let an agent learn, and keep every step of its experience, with depth, in data/<env>/episodes.zarr.

    sodp3d collect env=adroit_door
    sodp3d collect env=metaworld env.task=reach

The same command continues a stopped or killed collection, and does nothing once the asked number of steps is there.
Of a set of tasks (env=mt10_paper) several are collected side by side, each into its own store by its own agent.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sodp3d.collection import agents, demos
from sodp3d.collection.environments import CollectionGroup
from sodp3d.collection.loop import Collection
from sodp3d.collection.playback import watch
from sodp3d.collection.sets import for_each_task
from sodp3d.core.cli import command, compose
from sodp3d.core.errors import InputError
from sodp3d.core.paths import data_root
from sodp3d.core.sections import read_keys, read_section
from sodp3d.data.attributes import DEMONSTRATIONS, PRIOR
from sodp3d.data.schema import NO_RENDERER
from sodp3d.envs.config import EnvConfig, task_configs
from sodp3d.settings import CollectSettings, CommonSettings, DemonstrationSettings, differences

if TYPE_CHECKING:
    from sodp3d.collection.agents.memory import Trajectory
    from sodp3d.parallel import Workers

log = logging.getLogger(__name__)


def with_default_agent(arguments: list[str]) -> list[str]:
    """The command line, with the agent that the env recommends where none is named."""
    if any(argument.startswith("agent=") for argument in arguments):
        return arguments
    named = [argument.removeprefix("env=").split(",") for argument in arguments if argument.startswith("env=")]
    chosen = [[f"env={name}"] for name in named[-1]] if named else [[]]
    usual = {compose("collect", env)["env"]["recommended"]["agent"] for env in chosen}
    if len(usual) > 1:
        raise InputError(
            f"agent: these envs are collected by different agents unless told ({', '.join(sorted(usual))}); sweep them "
            "one by one, or give agent=."
        )
    return [f"agent={usual.pop()}", *arguments]


@command("collect", with_default_agent)
def main(config: dict[str, Any]) -> None:
    """Collect every task that `env=` names."""
    read_keys(CommonSettings, config)
    read_section(CollectSettings, config["collect"])
    read_keys(DemonstrationSettings, config)
    for_each_task(config, task_configs(config), collect, ("data",))


def collect(config: Mapping[str, Any], env: EnvConfig) -> None:
    """Collect one task. Raises InputError before anything is written, Stopped after a signal, with all kept."""
    from sodp3d.core import checkpoint
    from sodp3d.core.device import prepare_torch
    from sodp3d.data.completeness import note_asked
    from sodp3d.parallel import make_workers
    from sodp3d.vision.gl import settle

    settings, common = read_section(CollectSettings, config["collect"]), read_keys(CommonSettings, config)
    shown = read_keys(DemonstrationSettings, config)
    folder = Path(config["data"]).expanduser() if config["data"] else data_root(config) / env.name
    device = prepare_torch(config)
    group = (env, settle(common.render) if settings.depth else common.render, settings.depth)
    with make_workers(common.workers, CollectionGroup, group, at_most=settings.environments) as workers:
        (facts,) = workers.call("describe", [()])
        kept = {key: config[key] for key in ("agent", "seed", "demos", "demo_episodes")}
        run = _open_run(folder, kept, common.tracker)
        fresh = not checkpoint.steps(run.checkpoints)
        agent = build_agent(config["agent"], env, facts, common.seed, device, fresh)
        check_demonstrations(shown, agent, config["agent"]["name"])
        prior = None
        if agent.needs_demonstrations and fresh:
            seen = demonstrations(shown, env, facts, workers, agent.image_size)
            agent.demonstrate(seen)
            prior = {"kind": DEMONSTRATIONS, "episodes": len(seen)}
        with open_store(folder, env, facts, config, settings.depth, prior) as store, run:
            note_asked(folder, settings.steps)
            Collection(agent, store, run, workers, settings, common.seed).run_all()
            log.info("%s: %d episodes, %d steps in %s", env.name, len(store), store.steps, store.path)


def build_agent(
    settings: Mapping[str, Any], env: EnvConfig, facts: Mapping[str, Any], seed: int, device: Any, fresh: bool
) -> agents.Agent:
    """The agent for an environment of which workers told `facts`. Raises InputError if it could not see there."""
    sizes = facts["state_size"], facts["action_size"], facts["proprioception_size"]
    agent = agents.build(settings, agents.Surroundings(env, *sizes, seed, device, fresh))
    if agent.image_size is not None and facts["renderer"] == NO_RENDERER:
        raise InputError(
            "collect.depth=false: this agent learns from images, which are drawn all the same. Leave it out, or choose "
            "an agent that learns from the state (agent.encoder=state)."
        )
    if agent.image_size is not None and facts["renderer"] == "raycast":
        raise InputError(
            "agent.encoder=pixels needs colour images, and ray casting has none. Use render=egl or render=osmesa "
            "(`sodp3d doctor` says what they lack here), or agent.encoder=state."
        )
    return agent


def check_demonstrations(shown: DemonstrationSettings, agent: agents.Agent, name: str) -> None:
    """Raise InputError where demonstrations are named that the agent would never look at."""
    if shown.demos is not None and not agent.needs_demonstrations:
        raise InputError(
            f"demos: agent={name} takes none with these options, got {shown.demos}. Use agent=rlpd "
            "agent.prior=demonstrations, or agent=vrl3 with agent.offline_updates above 0; or leave demos= out."
        )


def demonstrations(
    settings: DemonstrationSettings,
    env: EnvConfig,
    facts: Mapping[str, Any],
    workers: "Workers",
    image_size: int | None,
) -> "list[Trajectory]":
    """What `demos=` names, as the agent sees it."""
    sizes = facts["state_size"], facts["action_size"]
    shown = demos.load(env, settings.demos, sizes, facts["count_threshold"], settings.demo_episodes)
    log.info("%s", shown.summary())
    return shown.trajectories if image_size is None else watch(shown, workers, image_size)


def _open_run(folder: Path, config: dict[str, Any], tracker: str) -> Any:
    """The agent's run directory. Raises InputError if it was started with other settings: a store has one agent."""
    from sodp3d.core.run import open_run

    try:
        return open_run(folder, config, config["seed"], folder / "agent", differences, tracker)
    except InputError as error:
        raise InputError(f"{error} For a collection that means another folder: data=<folder>.") from None


def open_store(
    folder: Path,
    env: EnvConfig,
    facts: Mapping[str, Any],
    config: Mapping[str, Any],
    depth: bool = True,
    prior: Mapping[str, Any] | None = None,
) -> Any:
    """The task's store, open for appending; made if it is not there. Raises InputError if it is of another kind.

    prior: what the agent began with that is not in the store, for a new one to record.
    """
    from sodp3d.core.versions import git_commit, recorded_versions
    from sodp3d.data.schema import step_specification
    from sodp3d.data.store import EpisodeStore

    path = folder / "episodes.zarr"
    sizes = ("action_size", "state_size", "proprioception_size", "simulator_size", "height", "width", "camera_moves")
    specification = step_specification(**{key: facts[key] for key in sizes}, depth=depth)
    attributes = {
        "env": env.name,
        "env_config": asdict(env),
        "camera": facts["camera"],
        "renderer": facts["renderer"],
    }
    if path.exists():
        begun = "depth" in EpisodeStore.open(path).specification
        if begun != depth:
            raise InputError(
                f"collect.depth: {path} was begun with collect.depth={str(begun).lower()}, and a store keeps to it. "
                f"Give that, or collect into another folder: data=<folder>."
            )
        return EpisodeStore.open(path, "a", attributes, specification)
    provenance = {
        "versions": recorded_versions(),
        "git_commit": git_commit(),
        "seed": config["seed"],
        "agent": config["agent"],
        PRIOR: prior,
    }
    return EpisodeStore.create(path, attributes | provenance, specification)


if __name__ == "__main__":
    main()
