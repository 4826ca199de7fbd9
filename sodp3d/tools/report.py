"""`sodp3d report <env>`: what was collected, learned and gained, as one HTML file that needs no network.

Data, clouds beside depth, curves, success before and after fine-tuning, and videos of one and the same episode before
and after. What is missing is named, with the command that makes it. The same runs give the same report.
"""

import argparse
import base64
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sodp3d.core.cli import exit_status
from sodp3d.core.errors import InputError
from sodp3d.core.paths import command_line, data_root, outputs_root
from sodp3d.data.absence import can_be_made, is_recorded
from sodp3d.data.store import EpisodeStore
from sodp3d.tools.card import training_parts
from sodp3d.tools.curves import data_curves, run_curves
from sodp3d.tools.frames import store_frames
from sodp3d.tools.pages import render, require_page, write_page
from sodp3d.tools.runs import env_options, may_be_env, newest_runs, offline_result, offline_sentence, results
from sodp3d.tools.same_seed import Pair, choose_pair, video

_FRAME_BYTES = 3_000_000  # plotly.js adds about 5 MB, the two videos less than 1 MB
_EPISODES, _MOST_FRAMES = 4, 30


@dataclass(frozen=True)
class Missing:
    """A part of the report that cannot be shown yet. words: why; command: what makes it."""

    words: str
    command: str


def write_report(env: str, data: Path, outputs: Path, output: Path, renderer: str = "auto") -> Path:
    """Write the report of `env` to `output`; its path.

    Args:
        data: the folder of the store. outputs: holds the run directories. renderer: of the videos, as `render=`.

    Raises InputError where there is nothing of it and no such environment, the page cannot be written, the store is of
    another environment, or the store or a run's roll-outs are damaged. Of damaged runs only a warning tells.
    """
    require_page(output)
    options, runs = env_options(env), newest_runs(outputs, env)
    store = EpisodeStore.open(data / "episodes.zarr") if (data / "episodes.zarr").exists() else None
    if store is not None and store.attributes["env"] != env:
        raise InputError(
            f"--data: {store.path} holds {store.attributes['env']!r}, but a report of {env!r} is asked for."
        )
    if store is None and not runs and not may_be_env(env):
        raise InputError(f"nothing of {env} in {data} and {outputs}, and there is no such environment.")
    recorded = store is not None and is_recorded(store.attributes)
    frames = _frames(store) if store else None
    curves = [*(data_curves(training_parts(store)) if store else []), *run_curves(runs)]
    page = render(
        "report.html",
        env=env,
        results=results(runs),
        facts=_facts(store) if store else [],
        pair=_pair(runs, renderer),
        offline=_offline(runs),
        script={"frames": frames, "curves": curves},
        missing={} if recorded else _missing(store, frames, runs, options),
        recorded=recorded,
        train=command_line("train", "mode=pretrain", "env=recorded", f"data={data}"),
        runs=runs,
    )
    write_page(output, page)
    return output


def _frames(store: EpisodeStore) -> dict[str, Any] | None:
    try:
        return store_frames(store, _EPISODES, _FRAME_BYTES, _MOST_FRAMES)
    except InputError:  # no episode that can be read
        return None


def _facts(store: EpisodeStore) -> list[tuple[str, Any]]:
    """What the store holds, as pairs of a name and a value."""
    attributes, metadata = store.attributes, store.metadata
    agent = attributes.get("agent")
    drawn = store.conversions.get("depth", {"parameters": attributes})["parameters"]
    recorded = is_recorded(attributes)
    facts = [
        ("environment", attributes["env"]),
        ("collected by", "recorded" if recorded else agent.get("name") if isinstance(agent, dict) else agent),
        ("episodes", len(store)),
        ("control steps", store.steps),
        ("depth images", _depth(store, drawn["renderer"])),
    ]
    if "point_cloud" in store.keys:
        facts.append(("point clouds", f"{store.field('point_cloud').shape[0]} points each"))
    if len(store):
        metric = attributes["env_config"].get("success_metric") or "count"
        success = metadata.get(f"success_{metric}")
        told = "not recorded" if success is None else f"{100 * success.mean():.0f} % (by {metric})"
        facts.append(("successful episodes", told))
    return facts


def _depth(store: EpisodeStore, renderer: str) -> str:
    if "depth" not in store.keys:
        return "not recorded" if is_recorded(store.attributes) else "none: collected without"
    height, width = store.field("depth").shape
    return f"{height} x {width} px, drawn by {renderer}"


def _offline(runs: dict[str, Path]) -> dict[str, Any] | None:
    """What was measured on held-out recordings: a sentence, its picture as a data URI, a row for each number."""
    found = offline_result(runs)
    if found is None:
        return None
    picture = runs["pretrain"] / "offline.png"  # a run of somebody else's could name any file
    encoded = base64.b64encode(picture.read_bytes()).decode() if picture.is_file() else ""
    return {"words": offline_sentence(found), "picture": f"data:image/png;base64,{encoded}", "rows": found["by_action"]}


def _pair(runs: dict[str, Path], renderer: str) -> dict[str, Any] | None:
    """The two videos as data URIs, and which episode they show; None without both runs' roll-outs."""
    if not {"pretrain", "finetune"} <= set(runs):
        return None
    pair: Pair | None = choose_pair(runs["pretrain"], runs["finetune"])
    if pair is None:
        return None
    sides = [("Before fine-tuning", "pretrain", pair.before), ("After fine-tuning", "finetune", pair.after)]
    shown = []
    for title, mode, success in sides:
        encoded = base64.b64encode(video(runs[mode], pair, renderer).read_bytes()).decode()
        outcome = "success" if success else "failure"
        shown.append({"title": title, "outcome": outcome, "source": f"data:video/mp4;base64,{encoded}"})
    return {"seed": pair.seed, "words": pair.words, "sides": shown}


def _missing(
    store: EpisodeStore | None, frames: dict[str, Any] | None, runs: dict[str, Path], options: list[str]
) -> dict[str, Missing]:
    """What to say in place of each part that is not there."""
    found = {}
    if store is None or frames is None:
        found["data"] = Missing("No episodes yet.", command_line("collect", *options))
    elif "point_cloud" not in store.keys and can_be_made(store, "point_cloud"):
        found["clouds"] = Missing("No point clouds yet.", command_line("convert", *options))
    if not runs.keys() & {"pretrain", "finetune"}:
        found["pretrain"] = Missing("No pre-trained planner yet.", command_line("train", "mode=pretrain", *options))
    if "finetune" not in runs:
        found["finetune"] = Missing("Not fine-tuned yet.", command_line("train", "mode=finetune", *options))
    return found


def main(arguments: list[str] | None = None) -> int:
    """Command line: write the report; its path is the last line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="sodp3d report", description="One HTML file about one environment.")
    parser.add_argument("env", help="name of the environment, such as adroit_door")
    parser.add_argument("--data", type=Path, help="folder of the store (data/<env>)")
    parser.add_argument("--outputs", type=Path, help="folder of the run directories (outputs)")
    parser.add_argument("--output", type=Path, help="file to write (outputs/report/<env>.html)")
    parser.add_argument("--render", default="auto", help="renderer of the videos: auto, egl, osmesa or raycast (auto)")
    given = parser.parse_args(arguments)

    def job() -> None:
        outputs = given.outputs or outputs_root()
        output = given.output or outputs / "report" / f"{given.env}.html"
        path = write_report(given.env, given.data or data_root() / given.env, outputs, output, given.render)
        sys.stdout.write(f"{path}\n")

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
