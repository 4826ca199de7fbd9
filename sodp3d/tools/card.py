"""The dataset card: what a store holds, where it came from, and what it looks like.

    sodp3d card data/<env>

writes README.md and card/*.png into the folder and prints the text. The same store gives the same card. A README.md
that somebody else wrote is left alone: the card is CARD.md then. What comes from the store is escaped.
"""

import argparse
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.cli import exit_status
from sodp3d.core.errors import InputError
from sodp3d.core.files import PARTIAL, replace_file
from sodp3d.core.mappings import flat
from sodp3d.core.paths import command_line
from sodp3d.data import experience
from sodp3d.data.absence import can_be_made, is_recorded
from sodp3d.data.attributes import each
from sodp3d.data.conversion import still_sentence
from sodp3d.data.hashing import data_hash, learned_hashes
from sodp3d.data.recording import names_of
from sodp3d.data.schema import METADATA
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import RECORDED, SUCCESS_METRICS
from sodp3d.tools.markdown import Markdown, bar, escape, header, histogram, numbers, pairs, row, show
from sodp3d.vision.camera import POSE

log = logging.getLogger(__name__)
MARK = "<!-- Made by sodp3d -->"  # the first line of each card
_EARLIER_MARK = "Written by sodp3d;"  # how the text below the title began before there was a mark
_OF_PARTS = {"agent_step", "episode_return", *(f"success_{name}" for name in SUCCESS_METRICS)}  # of each episode
_NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class TrainingPart:
    """The episodes of a tenth of the agent's training, or those of an expert before it.

    first, last: agent steps; rates: 0..1 by success metric.
    """

    first: float
    last: float
    episodes: int
    mean_return: float
    rates: dict[str, float]
    scripted: bool = False


def write_card(folder: str | Path) -> Path:
    """Write the card of `folder`/episodes.zarr; its path, README.md, or CARD.md beside a README.md of somebody else.

    Raises InputError without a store, or where both names are taken by files that sodp3d did not make.
    """
    from sodp3d.tools.card_figures import draw_figures

    folder = Path(folder)
    store = EpisodeStore.open(folder / "episodes.zarr")
    path = _free_path(folder)
    figures = draw_figures(store, folder / "card", _pictures(path)) if len(store) else []
    replace_file(path, card_text(store, figures).encode())
    return path


def _free_path(folder: Path) -> Path:
    for name in ("README.md", "CARD.md"):
        path = folder / name
        if not path.exists() or _is_card(path):
            return path
        log.warning("%s was not made by sodp3d and is left alone.", path)
    raise InputError(f"{folder}: README.md and CARD.md were not made by sodp3d; move one away, for the card.")


def find_card(folder: Path) -> Path | None:
    """The card of the store in `folder`, or None; not a README.md that somebody else wrote."""
    paths = (folder / name for name in ("README.md", "CARD.md"))
    return next((path for path in paths if path.is_file() and _is_card(path)), None)


def _pictures(card: Path) -> list[str]:
    """Those that the card that is there now shows."""
    text = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
    return re.findall(r"^!\[[\w ]*\]\((card/\w+\.png)\)$", text, re.MULTILINE)


def _is_card(path: Path) -> bool:
    text = path.read_text(encoding="utf-8", errors="replace")
    if text.startswith("---\n"):  # of one that was shared, what comes first is for the place where it lay
        text = text.partition("\n---\n")[2]
    lines = text.splitlines()[:3]
    return lines[:1] == [MARK] or (len(lines) == 3 and lines[2].startswith(_EARLIER_MARK))


def card_text(store: EpisodeStore, figures: list[str]) -> str:
    """The card in Markdown; `figures` are image paths relative to it."""
    title = f"# {escape(store.attributes['env'])}: {len(store)} episodes, {store.steps} steps"
    sections = [
        [MARK, "", title, "", _summary(store)],
        ["## Provenance", "", *_provenance(store)],
        ["## Contents", "", *_contents(store)],
        ["## Returns and success over agent time", "", *_over_time(store)],
        ["## Returns", "", *_returns(store)],
        ["## Point clouds", "", *_point_clouds(store)],
        ["## Images", "", *_images(store)],
        ["## Samples", "", *[f"![{Path(name).stem.replace('_', ' ')}]({name})\n" for name in figures]],
    ]
    return "\n\n".join("\n".join(lines).rstrip() for lines in sections) + "\n"


def training_parts(store: EpisodeStore) -> list[TrainingPart]:
    """An expert's episodes, then ten equal parts of the agent's own steps; those without an episode left out.

    None where not all of return, success and agent step were recorded.
    """
    metadata = store.metadata
    if not metadata.keys() >= _OF_PARTS:
        return []
    parts = experience.time_parts(experience.priors(store.attributes), metadata["agent_step"])
    return [_training_part(metadata, part.rows, part.first, part.last, not part.number) for part in parts]


def _training_part(
    metadata: dict[str, NDArray[Any]], rows: NDArray[np.bool_], first: float, last: float, scripted: bool = False
) -> TrainingPart:
    rates = {name: float(metadata[f"success_{name}"][rows].mean()) for name in ("final", "count", "any")}
    mean_return = float(metadata["episode_return"][rows].mean())
    return TrainingPart(first, last, int(rows.sum()), mean_return, rates, scripted)


def _summary(store: EpisodeStore) -> str:
    return (
        f"Written by sodp3d; Zarr format 2 in the layout of diffusion_policy and DP3 (`data/*`, `meta/episode_ends`). "
        f"Observations, depth and simulator state of a step are from before its action; reward and success follow "
        f"it. Data hash of what was collected, without depth and simulator states: `{data_hash(store)}`."
        + "".join(f" Planners that learn from `{key}` note `{name}`." for key, name in learned_hashes(store).items())
    )


def _provenance(store: EpisodeStore) -> Iterator[str]:
    attributes = store.attributes
    config, camera = attributes["env_config"], attributes.get("camera")
    yield from header("what", "value")
    yield row("environment", attributes["env"])
    yield row("control", pairs(config, ("family", "task", "action_repeat", "episode_steps")))
    yield from _recording(store)
    yield row("renderer", attributes["renderer"])
    yield row("depth image", _depth(store))
    if camera is not None:
        yield row("camera intrinsics (px)", numbers(camera["intrinsics"]))
        pose = f"moves; data/{POSE}" if camera.get("pose") is None else numbers(camera["pose"])
        yield row("camera pose (camera to world, OpenCV axes, m)", pose)
    for before in each(attributes.get("rendered_again")):
        size = "{height} x {width} px".format_map(before["camera"])
        yield row("depth drawn again", f"from simulator states; collected at {size} by {before['renderer']}")
    for extracted in each(attributes.get("extracted")):
        asked = {key: value for key, value in extracted.items() if value is not None}
        whole = "of {episodes} episodes, data hash {data_hash}".format_map(asked)
        yield row("extracted", f"{whole}, by {pairs(asked, ('quality', 'fraction', 'success', 'max_episodes'))}")
    yield from _beginnings(store)
    yield row("seed", attributes.get("seed"))
    seeds = store.metadata.get("seed", np.zeros(0))
    if len(seeds):
        yield row("episode seeds", f"{seeds.min()} to {seeds.max()}, {len(np.unique(seeds))} distinct")
    yield row("git commit", attributes.get("git_commit"))
    for key in ("agent", "versions"):
        value = attributes.get(key)
        for name, item in sorted(flat(value).items()) if isinstance(value, dict) else [("", value)]:
            yield row(f"{key} {name}".strip(), item)


def _recording(store: EpisodeStore) -> Iterator[str]:
    """What is told of recordings alone."""
    if not is_recorded(store.attributes):
        return
    rate = store.attributes.get("rate")
    yield row("control steps a second", _NOT_RECORDED if rate is None else f"{rate:g}")
    for key in ("action", "agent_pos"):
        yield row(f"numbers of {key}", ", ".join(names_of(store, key)))
    absent = [name for name in METADATA if name not in store.metadata]
    yield row("values of episodes not recorded", ", ".join(absent) or "none")
    for name, value in sorted(flat({"source": store.attributes.get("source")}).items()):
        yield row(name.replace(".", " "), _NOT_RECORDED if value is None else value)


def _depth(store: EpisodeStore) -> Markdown:
    if "depth" not in store.keys and not can_be_made(store, "depth"):
        return Markdown(_NOT_RECORDED)
    camera, state = store.attributes["camera"], store.conversions.get("depth")
    size = f"{camera['height']} x {camera['width']} px, uint16 millimetres, 0 = invalid"
    if "depth" in store.specification:
        return Markdown(size)
    if state is None:
        return Markdown(f"none: collected without; {_command(store, 'again=depth')} draws it")
    drawn = (
        f"{state['episodes']} of {len(store)} episodes, drawn later by {escape(state['parameters'].get('renderer'))}"
    )
    return Markdown(f"{size}; {drawn}")


def _beginnings(store: EpisodeStore) -> Iterator[str]:
    """What the agent began with beside its own experience, and which of it is in the store."""
    found = experience.priors(store.attributes)
    if found:
        steps = store.metadata.get("agent_step", np.zeros(0, np.int64))
        count = int(experience.scripted_rows(found, steps).sum())
        kept = f"; {count} of the store's episodes, its first ones" if count else "; not in the store"
        if len(found) > 1:
            kept = "; the merged stores differ in it"
        yield row("the agent began with", f"{experience.told(found)}{kept}")


def _contents(store: EpisodeStore) -> Iterator[str]:
    lengths = np.diff(store.episode_ends, prepend=0)
    if len(lengths):
        yield f"Episode length: {lengths.min()} to {lengths.max()} steps, {lengths.mean():.1f} on average.\n"
    yield from header("array", "type", "shape", "megabytes", "on disk")
    for key in store.keys:
        shape, dtype = store.field(key)
        size = store.steps * int(np.prod(shape)) * np.dtype(dtype).itemsize
        files = (file for file in (store.path / "data" / key).iterdir() if file.suffix != PARTIAL)
        disk = sum(file.stat().st_size for file in files)
        yield row(f"data/{key}", dtype, f"{(store.steps, *shape)}", f"{size / 1e6:.1f}", f"{disk / 1e6:.1f}")


def _over_time(store: EpisodeStore) -> Iterator[str]:
    """A row for each part of the agent's training: mean return, rates of the three success metrics."""
    if not len(store):
        yield "No episodes yet."
        return
    if not store.metadata.keys() >= _OF_PARTS:
        yield from _over_all(store)
        return
    yield from header("agent steps", "episodes", "mean return", "final", "count", "any", "any, as a bar")
    for part in training_parts(store):
        yield _rates(f"{part.first:.0f} to {part.last:.0f}{', scripted' if part.scripted else ''}", part, 0)
    yield _rates("all", _training_part(store.metadata, np.ones(len(store), bool), 0, 0), 1)
    yield (
        "\nSuccess by `final` (goal held in the last control step), `count` (raw frames with the goal held, against "
        "the task's threshold), `any` (goal held at any time)."
    )


def _over_all(store: EpisodeStore) -> Iterator[str]:
    """Means of what was recorded of all episodes."""
    yield from header("of all episodes", "mean")
    for name in ("episode_return", *(f"success_{metric}" for metric in SUCCESS_METRICS)):
        values = store.metadata.get(name)
        yield row(name.replace("_", " "), _NOT_RECORDED if values is None else f"{values.mean():.3g}")


def _returns(store: EpisodeStore) -> Iterator[str]:
    returns = store.metadata.get("episode_return")
    if returns is None:
        yield "Not recorded."
    else:
        yield from histogram(returns, "return")


def _rates(name: str, part: TrainingPart, digits: int) -> str:
    rates = [f"{100 * rate:.{digits}f} %" for rate in part.rates.values()]
    return row(name, part.episodes, f"{part.mean_return:.3g}", *rates, bar(part.rates["any"]))


def _point_clouds(store: EpisodeStore) -> Iterator[str]:
    clouds = {output: state for output, state in store.conversions.items() if "points" in state["parameters"]}
    if "point_cloud" in store.specification:
        yield f"data/point_cloud: recorded as they are, {store.field('point_cloud').shape[0]} points each (metres)."
    elif not can_be_made(store, "point_cloud"):
        yield "Not recorded."
    elif not clouds:
        yield f"None yet: {_command(store)}."
    for output, state in clouds.items():
        parameters = state["parameters"]
        low, high = (escape(numbers([parameters.get(key)])) for key in ("low", "high"))
        yield (
            f"data/{escape(output)}: {state['episodes']} of {len(store)} episodes, {escape(parameters.get('points'))} "
            f"points by farthest-point sampling ({escape(parameters.get('backend'))}), crop {low} to {high} (world "
            f"frame, metres).\n"
        )
        done = store.readable(f"{output}_kept")
        if done:
            kept = store.read(f"{output}_kept", 0, done)
            short = float((kept < parameters["points"]).mean())
            yield (
                f"Points inside the crop before sampling: {kept.min()} to {kept.max()}, {kept.mean():.1f} on average; "
                f"{100 * short:.2f} % of the frames have fewer than {escape(parameters['points'])} and repeat some.\n"
            )
            yield from histogram(kept, "points inside the crop")
            yield ""
        if "still" in state["statistics"]:
            yield f"{escape(still_sentence(state['statistics']))}\n"


def _images(store: EpisodeStore) -> Iterator[str]:
    """One line for each set of images; without any, how to make them."""
    found = {
        output: state
        for output, state in store.conversions.items()
        if "points" not in state["parameters"] and output != "depth"
    }
    if "image" in store.specification:
        yield "data/image: recorded as it is, RGB of {} x {} px.".format(*store.field("image").shape[1:])
    elif not can_be_made(store, "image"):
        yield "Not recorded."
    elif not found:
        yield f"None: {_command(store, 'again=image')} for obs=image."
    for output, state in found.items():
        drawn = state["parameters"]
        size = f"{drawn.get('height')} x {drawn.get('width')} px, by {drawn.get('renderer')}"
        yield f"data/{escape(output)}: RGB of {state['episodes']} of {len(store)} episodes, {escape(size)}.\n"


def usual_choice(store: EpisodeStore) -> list[str]:
    """What to type to choose the store's task: of recordings in data/<env>, as cards go to other machines than this."""
    name = " ".join(str(store.attributes["env"]).split())
    return [f"env={RECORDED}", f"data=data/{name}"] if is_recorded(store.attributes) else store.choice.split()


def _command(store: EpisodeStore, *options: str) -> str:
    """The command that converts the store, as code. A backtick in its name would end the code."""
    command = command_line("convert", *usual_choice(store), *options)
    return f"`{command}`" if "`" not in command else "convert it"


def main(arguments: list[str] | None = None) -> int:
    """Command line: write and print the card. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="sodp3d card", description="Write and print a dataset card.")
    parser.add_argument("folder", type=Path, help="folder of the store, data/<env>")
    folder = parser.parse_args(arguments).folder

    def job() -> None:
        path = write_card(folder)
        show(f"{path.read_text(encoding='utf-8')}\n(written to {path})\n")

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
