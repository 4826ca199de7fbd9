"""The dataset card: what a store holds, where it came from, and what it looks like.

    sodp3d card data/<env>

writes README.md and card/*.png into the folder and prints the text. The same store gives the same card. A README.md
that somebody else wrote is left alone: the card is CARD.md then. What comes from the store is escaped.
"""

import argparse
import logging
import re
import sys
from collections.abc import Iterator, Mapping
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
from sodp3d.data.attributes import each
from sodp3d.data.hashing import data_hash, learned_hashes
from sodp3d.data.store import EpisodeStore
from sodp3d.vision.camera import POSE

log = logging.getLogger(__name__)
MARK = "<!-- Made by sodp3d -->"  # the first line of each card
_EARLIER_MARK = "Written by sodp3d;"  # how the text below the title began before there was a mark
_BINS, _BAR = 10, 30


class Markdown(str):
    """Text that is Markdown of ours; all other text in a table's cells is escaped."""


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
    raise InputError(
        f"{folder}: README.md and CARD.md were not made by sodp3d; move one away, for the card to be written."
    )


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
        ["## Returns", "", *_histogram(store.metadata["episode_return"], "return")],
        ["## Point clouds", "", *_point_clouds(store)],
        ["## Images", "", *_images(store)],
        ["## Samples", "", *[f"![{Path(name).stem.replace('_', ' ')}]({name})\n" for name in figures]],
    ]
    return "\n\n".join("\n".join(lines).rstrip() for lines in sections) + "\n"


def escape(text: Any) -> str:
    """Text of somebody else's as one line of Markdown that shows it as it is: no HTML, links, code or table cells."""
    line = re.sub(r"\s+", " ", str(text))
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = line.replace("://", "&#58;//").replace("www.", "www&#46;")  # which would become links by themselves
    return re.sub(r"([\\`*\[\]|])", r"\\\1", line)


def training_parts(store: EpisodeStore) -> list[TrainingPart]:
    """An expert's episodes, then ten equal parts of the agent's own steps; those without an episode left out."""
    metadata = store.metadata
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
    config, camera = attributes["env_config"], attributes["camera"]
    yield from header("what", "value")
    yield row("environment", attributes["env"])
    yield row("control", _pairs(config, ("family", "task", "action_repeat", "episode_steps")))
    yield row("renderer", attributes["renderer"])
    yield row("depth image", _depth(store))
    yield row("camera intrinsics (px)", _numbers(camera["intrinsics"]))
    pose = f"moves; data/{POSE}" if camera.get("pose") is None else _numbers(camera["pose"])
    yield row("camera pose (camera to world, OpenCV axes, m)", pose)
    for before in each(attributes.get("rendered_again")):
        size = "{height} x {width} px".format_map(before["camera"])
        yield row("depth drawn again", f"from simulator states; collected at {size} by {before['renderer']}")
    for extracted in each(attributes.get("extracted")):
        asked = {key: value for key, value in extracted.items() if value is not None}
        whole = "of {episodes} episodes, data hash {data_hash}".format_map(asked)
        yield row("extracted", f"{whole}, by {_pairs(asked, ('quality', 'fraction', 'success', 'max_episodes'))}")
    yield from _beginnings(store)
    yield row("seed", attributes.get("seed"))
    seeds = store.metadata["seed"]
    if len(seeds):
        yield row("episode seeds", f"{seeds.min()} to {seeds.max()}, {len(np.unique(seeds))} distinct")
    yield row("git commit", attributes.get("git_commit"))
    for key in ("agent", "versions"):
        value = attributes.get(key)
        for name, item in sorted(flat(value).items()) if isinstance(value, dict) else [("", value)]:
            yield row(f"{key} {name}".strip(), item)


def _depth(store: EpisodeStore) -> Markdown:
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
        count = int(experience.scripted_rows(found, store.metadata["agent_step"]).sum())
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
    yield from header("agent steps", "episodes", "mean return", "final", "count", "any", "any, as a bar")
    for part in training_parts(store):
        yield _rates(f"{part.first:.0f} to {part.last:.0f}{', scripted' if part.scripted else ''}", part, 0)
    yield _rates("all", _training_part(store.metadata, np.ones(len(store), bool), 0, 0), 1)
    yield (
        "\nSuccess by `final` (goal held in the last control step), `count` (raw frames with the goal held, against "
        "the task's threshold), `any` (goal held at any time)."
    )


def _rates(name: str, part: TrainingPart, digits: int) -> str:
    rates = [f"{100 * rate:.{digits}f} %" for rate in part.rates.values()]
    return row(name, part.episodes, f"{part.mean_return:.3g}", *rates, _bar(part.rates["any"]))


def _histogram(values: NDArray[Any], name: str) -> Iterator[str]:
    if not len(values):
        yield "None yet."
        return
    counts, edges = np.histogram(values, bins=_BINS)
    yield from header(name, "number", "")
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        yield row(f"{low:.4g} to {high:.4g}", int(count), _bar(count / counts.max()))


def _point_clouds(store: EpisodeStore) -> Iterator[str]:
    clouds = {output: state for output, state in store.conversions.items() if "points" in state["parameters"]}
    if not clouds:
        yield f"None yet: {_command(store)}."
    for output, state in clouds.items():
        parameters = state["parameters"]
        low, high = (escape(_numbers([parameters.get(key)])) for key in ("low", "high"))
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
            yield from _histogram(kept, "points inside the crop")
            yield ""


def _images(store: EpisodeStore) -> Iterator[str]:
    """One line for each set of images; without any, how to make them."""
    found = {
        output: state
        for output, state in store.conversions.items()
        if "points" not in state["parameters"] and output != "depth"
    }
    if not found:
        yield f"None: {_command(store, 'again=image')} for obs=image."
    for output, state in found.items():
        drawn = state["parameters"]
        size = f"{drawn.get('height')} x {drawn.get('width')} px, by {drawn.get('renderer')}"
        yield f"data/{escape(output)}: RGB of {state['episodes']} of {len(store)} episodes, {escape(size)}.\n"


def _command(store: EpisodeStore, *options: str) -> str:
    """The command that converts the store, as code. A backtick in its name would end the code."""
    return f"`{command_line('convert', *store.choice.split(), *options)}`" if "`" not in store.choice else "convert it"


def _bar(share: float) -> Markdown:
    filled = round(float(share) * _BAR)
    return Markdown("`" + "█" * filled + "·" * (_BAR - filled) + "`")


def header(*names: str) -> Iterator[str]:
    """The first two lines of a table."""
    yield row(*names)
    yield row(*["---"] * len(names))


def row(*cells: Any) -> str:
    """A line of a table; cells that are not `Markdown` are escaped."""
    return "| " + " | ".join(cell if isinstance(cell, Markdown) else escape(cell) for cell in cells) + " |"


def _pairs(values: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    return ", ".join(f"{key} {values[key]}" for key in keys if key in values)


def _numbers(matrix: Any) -> str:
    try:
        return "; ".join(" ".join(f"{float(value):.6g}" for value in row) for row in matrix)
    except (TypeError, ValueError):
        return str(matrix)


def _show(text: str) -> None:
    """Print text, with `?` for what the encoding of standard output lacks: a C locale knows ASCII alone."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))


def main(arguments: list[str] | None = None) -> int:
    """Command line: write and print the card. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="sodp3d card", description="Write and print a dataset card.")
    parser.add_argument("folder", type=Path, help="folder of the store, data/<env>")
    folder = parser.parse_args(arguments).folder

    def job() -> None:
        path = write_card(folder)
        _show(f"{path.read_text(encoding='utf-8')}\n(written to {path})\n")

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
