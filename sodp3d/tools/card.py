"""The dataset card: what a store holds, where it came from, and what it looks like.

    sodp3d card data/<env>

writes README.md and card/*.png into the folder and prints the text. The same store gives the same card.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.cli import exit_status
from sodp3d.core.files import replace_file
from sodp3d.core.mappings import flat
from sodp3d.core.paths import command_line
from sodp3d.data.hashing import data_hash, learned_hashes
from sodp3d.data.store import EpisodeStore

_BINS, _BAR = 10, 30


def write_card(folder: str | Path) -> Path:
    """Write the card of `folder`/episodes.zarr; the path of its README.md. Raises InputError without a store."""
    from sodp3d.tools.card_figures import draw_figures

    folder = Path(folder)
    store = EpisodeStore.open(folder / "episodes.zarr")
    figures = draw_figures(store, folder / "card") if len(store) else []
    path = folder / "README.md"
    replace_file(path, card_text(store, figures).encode())
    return path


def card_text(store: EpisodeStore, figures: list[str]) -> str:
    """The card in Markdown; `figures` are image paths relative to it."""
    sections = [
        [f"# {store.attributes['env']}: {len(store)} episodes, {store.steps} steps", "", _summary(store)],
        ["## Provenance", "", *_provenance(store)],
        ["## Contents", "", *_contents(store)],
        ["## Returns and success over agent time", "", *_over_time(store)],
        ["## Returns", "", *_histogram(store.metadata["episode_return"], "return")],
        ["## Point clouds", "", *_point_clouds(store)],
        ["## Images", "", *_images(store)],
        ["## Samples", "", *[f"![{Path(name).stem.replace('_', ' ')}]({name})\n" for name in figures]],
    ]
    return "\n\n".join("\n".join(lines).rstrip() for lines in sections) + "\n"


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
    yield from _header("what", "value")
    yield _row("environment", attributes["env"])
    yield _row("control", _pairs(config, ("family", "task", "action_repeat", "episode_steps")))
    yield _row("renderer", attributes["renderer"])
    if "height" in camera and "width" in camera:
        yield _row("depth image", f"{camera['height']} x {camera['width']} px, uint16 millimetres, 0 = invalid")
    yield _row("camera intrinsics (px)", _numbers(camera.get("intrinsics")))
    yield _row("camera pose (camera to world, OpenCV axes, m)", _numbers(camera.get("pose")))
    if "rendered_again" in attributes:
        before = attributes["rendered_again"]
        size = "{height} x {width} px".format_map(before["camera"])
        yield _row("depth drawn again", f"from simulator states; collected at {size} by {before['renderer']}")
    if "extracted" in attributes:
        asked = {key: value for key, value in attributes["extracted"].items() if value is not None}
        whole = "of {episodes} episodes, data hash {data_hash}".format_map(asked)
        yield _row("extracted", f"{whole}, by {_pairs(asked, ('quality', 'fraction', 'success', 'max_episodes'))}")
    yield _row("seed", attributes.get("seed"))
    seeds = store.metadata["seed"]
    if len(seeds):
        yield _row("episode seeds", f"{seeds.min()} to {seeds.max()}, {len(np.unique(seeds))} distinct")
    yield _row("git commit", attributes.get("git_commit"))
    for key in ("agent", "versions"):
        value = attributes.get(key)
        for name, item in sorted(flat(value).items()) if isinstance(value, dict) else [("", value)]:
            yield _row(f"{key} {name}".strip(), item)


def _contents(store: EpisodeStore) -> Iterator[str]:
    lengths = np.diff(store.episode_ends, prepend=0)
    if len(lengths):
        yield f"Episode length: {lengths.min()} to {lengths.max()} steps, {lengths.mean():.1f} on average.\n"
    yield from _header("array", "type", "shape", "megabytes", "on disk")
    for key in store.keys:
        shape, dtype = store.field(key)
        size = store.steps * int(np.prod(shape)) * np.dtype(dtype).itemsize
        disk = sum(file.stat().st_size for file in (store.path / "data" / key).iterdir())
        yield _row(f"data/{key}", dtype, f"{(store.steps, *shape)}", f"{size / 1e6:.1f}", f"{disk / 1e6:.1f}")


def _over_time(store: EpisodeStore) -> Iterator[str]:
    """Ten equal parts of the agent's steps: mean return, rates of the three success metrics."""
    if not len(store):
        yield "No episodes yet."
        return
    metadata = store.metadata
    steps = metadata["agent_step"]
    edges = np.linspace(steps.min(), steps.max() + 1, _BINS + 1)
    part = np.clip(np.searchsorted(edges, steps, side="right") - 1, 0, _BINS - 1)
    yield from _header("agent steps", "episodes", "mean return", "final", "count", "any", "`any`, as a bar")
    for index in range(_BINS):
        rows = part == index
        if rows.any():
            rates = [float(metadata[f"success_{name}"][rows].mean()) for name in ("final", "count", "any")]
            yield _row(
                f"{edges[index]:.0f} to {edges[index + 1] - 1:.0f}",
                int(rows.sum()),
                f"{metadata['episode_return'][rows].mean():.3g}",
                *(f"{100 * rate:.0f} %" for rate in rates),
                f"`{_bar(rates[-1])}`",
            )
    rates = [float(metadata[f"success_{name}"].mean()) for name in ("final", "count", "any")]
    overall = f"{metadata['episode_return'].mean():.3g}"
    yield _row("all", len(store), overall, *(f"{100 * rate:.1f} %" for rate in rates), f"`{_bar(rates[-1])}`")
    yield (
        "\nSuccess by `final` (goal held in the last control step), `count` (raw frames with the goal held, against "
        "the task's threshold), `any` (goal held at any time)."
    )


def _histogram(values: NDArray[Any], name: str) -> Iterator[str]:
    if not len(values):
        yield "None yet."
        return
    counts, edges = np.histogram(values, bins=_BINS)
    yield from _header(name, "number", "")
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        yield _row(f"{low:.4g} to {high:.4g}", int(count), f"`{_bar(count / counts.max())}`")


def _point_clouds(store: EpisodeStore) -> Iterator[str]:
    clouds = {output: state for output, state in store.conversions.items() if "points" in state["parameters"]}
    if not clouds:
        yield f"None yet: `{command_line('convert', *store.choice.split())}`."
    for output, state in clouds.items():
        parameters = state["parameters"]
        yield (
            f"`data/{output}`: {state['episodes']} of {len(store)} episodes, {parameters.get('points')} points by "
            f"farthest-point sampling ({parameters.get('backend')}), crop {_numbers([parameters.get('low')])} to "
            f"{_numbers([parameters.get('high')])} (world frame, metres).\n"
        )
        done = store.readable(f"{output}_kept")
        if done:
            kept = store.read(f"{output}_kept", 0, done)
            short = float((kept < parameters["points"]).mean())
            yield (
                f"Points inside the crop before sampling: {kept.min()} to {kept.max()}, {kept.mean():.1f} on average; "
                f"{100 * short:.2f} % of the frames have fewer than {parameters['points']} and repeat some.\n"
            )
            yield from _histogram(kept, "points inside the crop")
            yield ""


def _images(store: EpisodeStore) -> Iterator[str]:
    """One line for each set of images; without any, how to make them."""
    found = {output: state for output, state in store.conversions.items() if "points" not in state["parameters"]}
    if not found:
        yield f"None: `{command_line('convert', *store.choice.split(), 'again=image')}` for obs=image."
    for output, state in found.items():
        size = "{height} x {width} px, by {renderer}".format_map(state["parameters"])
        yield f"`data/{output}`: RGB of {state['episodes']} of {len(store)} episodes, {size}.\n"


def _bar(share: float) -> str:
    filled = round(float(share) * _BAR)
    return "█" * filled + "·" * (_BAR - filled)


def _header(*names: str) -> Iterator[str]:
    yield _row(*names)
    yield _row(*["---"] * len(names))


def _row(*cells: Any) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _pairs(values: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    return ", ".join(f"{key} {values[key]}" for key in keys if key in values)


def _numbers(matrix: Any) -> str:
    try:
        return "; ".join(" ".join(f"{float(value):.6g}" for value in row) for row in matrix)
    except (TypeError, ValueError):
        return str(matrix)


def main(arguments: list[str] | None = None) -> int:
    """Command line: write and print the card. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="sodp3d card", description="Write and print a dataset card.")
    parser.add_argument("folder", type=Path, help="folder of the store, data/<env>")
    folder = parser.parse_args(arguments).folder

    def job() -> None:
        path = write_card(folder)
        sys.stdout.write(f"{path.read_text()}\n(written to {path})\n")

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
