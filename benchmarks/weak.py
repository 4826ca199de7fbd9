"""The weak benchmark: planners pre-trained on an agent's earliest experience, each fine-tuned by every algorithm.

For each task and agent seed: a store of its own; a planner of the most episodes, from the beginning on, of which at
most half succeed; at most `--episodes` of fine-tuning by each algorithm and seed, initial and validation episodes
included. Every step is a command of its own, and printed. A finished one is skipped and a stopped one goes on, so the
same command continues the benchmark.

python benchmarks/weak.py [--observation state] [--tasks hammer door pen] [--agents 3] [--seeds 3]
    [--algorithms sodp clone ...] [--episodes 300] [--test 1000] [--steps N] [--name weak]
    [options of train.py for every fine-tuning]
-> outputs/weak/..., results/benchmarks/<name>_<observation>.json, a row for each fine-tuning, written as each ends,
and results/figures/<name>_<observation>.png. Rows that are there already are kept, and not measured again. Each row
holds every test episode's outcome, so that algorithms are compared by pairs of episodes:
`python benchmarks/weak.py --compare`. Every command has one thread: two of these scripts, of different tasks or
algorithms, may run side by side.
"""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from omegaconf import OmegaConf
from scipy.stats import binomtest
from timing import CHECKOUT, RESULTS, parse, write

from sodp3d.core.cli import compose
from sodp3d.core.mappings import flat
from sodp3d.core.run import read_config, read_metrics, read_result, read_versions
from sodp3d.results import drawing
from sodp3d.rollouts.kept import ROLLOUTS, KeptRollouts

ALGORITHMS = ("clone", "sodp_paper", "sodp_none", "sodp_kl", "dppo", "sodp_chunk", "sodp")
INITIAL = 32  # roll-outs before the first update
# Gradient steps of 64 that leave a planner below the paper's success, and the steps that its agent takes
STEPS = {
    "state": {"hammer": 650, "door": 1000, "pen": 600},
    "pointcloud": {"hammer": 650, "door": 1000, "pen": 1000},
}
AGENT_STEPS = {"hammer": 30_000, "door": 50_000, "pen": 30_000}
# These agents succeed in most episodes from their first one on, unless they begin to act after fewer offline updates
AGENT_OPTIONS = {("hammer", 1): ["agent.offline_updates=200"], ("hammer", 2): ["agent.offline_updates=200"]}
# Of DPPO's roll-outs those before its first iteration would be forgotten unused
ROLLED_OUT_BEFORE = {"dppo": 1}
COLOURS = (drawing.GREEN, drawing.BLUE, drawing.VERMILION, drawing.PURPLE, drawing.ORANGE, drawing.SKY, drawing.GREY)


def run(script: str, *options: str) -> None:
    """One command from the checkout. Raises CalledProcessError where it fails."""
    options += ("threads=1", "workers=1")
    print("python", script, *options, flush=True)
    subprocess.run([sys.executable, str(CHECKOUT / script), *options], check=True, cwd=CHECKOUT)


def result(directory: Path, made_with: dict[str, Any]) -> dict[str, Any] | None:
    """What a finished run found. Exits where it was made with another value of an option, by its dotted name.

    Runs do not record what leaves their result alone.
    """
    if not (directory / "result.json").is_file():
        return None
    config = flat(read_config(directory))
    for key, value in made_with.items():
        if config.get(key, value) != value:
            sys.exit(f"{directory} was made with {key}={config[key]}, but {value} is wanted; move it away.")
    return read_result(directory)


def planner_of(task: str, agent: int, given: argparse.Namespace) -> Path:
    """The weak planner of one agent; its store is collected, and converted for clouds, where it is not there yet."""
    env, data = f"env=adroit_{task}", CHECKOUT / "data" / f"weak-{task}-{agent}"
    steps, named = (given.steps, f"-{given.steps}") if given.steps else (STEPS[given.observation][task], "")
    directory = CHECKOUT / "outputs" / "weak" / f"{task}-{agent}-{given.observation}{named}"
    if result(directory, {"pretrain.steps": steps, "evaluation.episodes": given.test}) is None:
        clouds = given.observation == "pointcloud"
        if clouds:
            data = data.with_name(f"{data.name}-clouds")
        run(
            "data_collection/collect.py", env, f"seed={agent}", f"data={data}", f"collect.depth={clouds}",
            f"collect.agent_steps={AGENT_STEPS[task]}", "collect.evaluate_every=0",
            *AGENT_OPTIONS.get((task, agent), ()),
        )  # fmt: skip
        if clouds:
            run("data_collection/convert.py", env, f"data={data}")
        run(
            "train.py", "mode=pretrain", env, f"obs={given.observation}", f"data={data}",
            f"pretrain.steps={steps}", "pretrain.successes_at_most=0.5",
            "pretrain.batch_size=64", "pretrain.evaluate_every=0", f"evaluation.episodes={given.test}",
            "evaluation.videos=1", f"run_dir={directory}",
        )  # fmt: skip
    return directory


def finetuned(task: str, planner: Path, algorithm: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """One fine-tuning's row: success before and after, and the outcome of each test episode as a string of 0 and 1."""
    directory = planner.with_name(f"{planner.name}-{given.name}-{algorithm}-{seed}")
    initial = initial_of(algorithm)
    sizes = {"finetune.episodes": given.episodes - initial, "evaluation.episodes": given.test}
    made_with = {"algorithm": algorithm, **sizes, **given_values(given.options)}
    if result(directory, made_with) is None:
        run(
            "train.py", "mode=finetune", f"env=adroit_{task}", f"obs={given.observation}", f"algorithm={algorithm}",
            f"planner={planner}", f"seed={seed}", f"finetune.initial_attempts={initial}",
            f"finetune.initial_proficient={initial}", "finetune.evaluate_every=0",
            *(f"{key}={value}" for key, value in sizes.items()),
            "evaluation.videos=1", f"run_dir={directory}", *given.options,
        )  # fmt: skip
    found = result(directory, made_with)
    assert found is not None
    metric = found["evaluation"]["headline_metric"]
    kept = KeptRollouts.read(directory / "evaluation" / f"adroit_{task}" / ROLLOUTS)
    outcomes = kept.succeeded(metric)
    return {
        **{
            when: found[key]["success"][metric]["rate"] for when, key in (("before", "before"), ("after", "evaluation"))
        },
        "episodes": "".join(str(int(outcome)) for outcome in outcomes),
        "options": given.options,
        "commit": read_versions(directory)["git_commit"],
        "rollouts": watched(directory, metric),
    }


def initial_of(algorithm: str) -> int:
    """Roll-outs before the first update."""
    return ROLLED_OUT_BEFORE.get(algorithm, INITIAL)


def given_values(options: list[str]) -> dict[str, Any]:
    """Options of train.py by their dotted names. Exits for a group's choice, which no run records by that name."""
    given = OmegaConf.to_container(OmegaConf.from_dotlist(options))
    assert isinstance(given, dict)
    values = flat({str(key): value for key, value in given.items()})
    unknown = sorted(values.keys() - flat(compose("train")).keys())
    if unknown:
        sys.exit(f"{unknown[0]}: expected single options of train.py, as finetune.batch_size=128.")
    return values


def watched(directory: Path, metric: str) -> dict[str, list[float]]:
    """Of each iteration's roll-outs: success, and of a critic how well it does and whether it chooses."""
    logged = read_metrics(directory)
    of_critic = {name: f"critic/{name}" for name in ("bias", "correlation", "chose", "gain")}
    keys = {"success": f"rollout/success_{metric}", **of_critic}
    found = {name: [round(line[key], 3) for line in logged if key in line] for name, key in keys.items()}
    return {name: values for name, values in found.items() if values}


def rows_of(table: str, sizes: dict[str, int]) -> list[dict[str, Any]]:
    """What has been measured of a table so far. Exits where it is of other numbers of episodes."""
    path = RESULTS / f"{table}.json"
    if not path.is_file():
        return []
    found = json.loads(path.read_text())
    for key, size in sizes.items():
        if found[key] != size:
            sys.exit(f"{path} was made with --{key} {found[key]}, but {size} came; give another --name.")
    return found["rows"]


def sign_test(won: int, lost: int) -> float:
    """p of the exact test of signs: that so many pairs differ by chance."""
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def compare(rows: list[dict[str, Any]], baseline: str = "clone") -> list[str]:
    """Each algorithm's mean over agents and seeds by task, and its test episodes against the baseline's, paired."""
    lines = []
    for task, algorithm in dict.fromkeys((row["task"], row["algorithm"]) for row in rows):
        mine = {(r["agent"], r["seed"]): r for r in rows if (r["task"], r["algorithm"]) == (task, algorithm)}
        other = {(r["agent"], r["seed"]): r for r in rows if (r["task"], r["algorithm"]) == (task, baseline)}
        before, after = (sum(row[key] for row in mine.values()) / len(mine) for key in ("before", "after"))
        pairs = [
            (a, b)
            for key in mine.keys() & other.keys()
            for a, b in zip(mine[key]["episodes"], other[key]["episodes"], strict=True)
        ]
        won, lost = (sum(a == first and a != b for a, b in pairs) for first in "10")
        p = sign_test(won, lost)
        told = f"   against {baseline}: {won} won, {lost} lost of {len(pairs)} episodes, p = {p:.2g}" if pairs else ""
        lines.append(f"{task:8} {algorithm:16} {len(mine)} runs  {100 * before:5.1f} -> {100 * after:5.1f} %{told}")
    return lines


def draw(rows: list[dict[str, Any]], episodes: int, path: Path) -> None:
    """Success of training roll-outs by interactions, a panel for each task; circles: the test, before and after."""
    tasks, algorithms = (list(dict.fromkeys(row[key] for row in rows)) for key in ("task", "algorithm"))
    figure = Figure(figsize=(4 * len(tasks), 3.4), layout="constrained")
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for task, panel in zip(tasks, panels, strict=True):
        for algorithm, colour in zip(algorithms, COLOURS, strict=False):
            mine = [row for row in rows if (row["task"], row["algorithm"]) == (task, algorithm)]
            if mine:
                curves = [
                    drawing.moving_mean(by_episodes(row["rollouts"]["success"], initial_of(algorithm), episodes))
                    for row in mine
                ]
                drawing.mean_and_band(panel, curves, color=colour, label=algorithm)
            for row in mine:
                ends = [100 * row["before"], 100 * row["after"]]
                panel.scatter([0, episodes / 1000], ends, s=40, facecolors="none", edgecolors=colour)
        drawing.percent_axes(panel, task, "episodes", "success (%)" if panel is panels[0] else None)
        panel.set_xlabel("episodes")
        panel.xaxis.set_major_formatter(lambda thousands, _: f"{1000 * thousands:g}")
    panels[0].legend(frameon=False)
    path.write_bytes(drawing.png(figure))


def by_episodes(success: list[float], initial: int, episodes: int) -> list[tuple[float, float]]:
    """Each iteration's value at the interactions after it: after the first `initial`, of `episodes` in all."""
    each = (episodes - initial) / len(success)
    return [(initial + each * place, value) for place, value in enumerate(success, start=1)]


def main() -> None:
    """Run what is left of it; the table is written as each fine-tuning ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--observation", default="state", choices=list(STEPS))
    parser.add_argument("--tasks", nargs="+", default=list(AGENT_STEPS), choices=list(AGENT_STEPS))
    parser.add_argument("--agents", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS))
    parser.add_argument("--episodes", type=int, default=300, help="of interaction, those before the first update too")
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--steps", type=int, help="of pre-training, instead of those of the table; with another --name")
    parser.add_argument("--name", default="weak", help="of the table, where other options are tried")
    parser.add_argument("--compare", action="store_true", help="only print the table that is there")
    given, options = parse(parser)
    given.options = options
    if given.steps and given.name == parser.get_default("name"):
        parser.error("--steps makes other planners than the table's; give their rows another --name too.")
    if given.episodes <= INITIAL:
        parser.error(f"--episodes: expected more than the {INITIAL} before the first update, got {given.episodes}.")
    table, sizes = f"{given.name}_{given.observation}", {"test": given.test, "episodes": given.episodes}
    rows = rows_of(table, sizes)
    if given.compare and not rows:
        sys.exit(f"{RESULTS / table}.json is not there yet; leave --compare out to make it.")
    wanted = itertools.product(range(given.seeds), range(given.agents), given.tasks, given.algorithms)
    for seed, agent, task, algorithm in [] if given.compare else wanted:
        place = {"task": task, "algorithm": algorithm, "agent": agent, "seed": seed}
        if any(place.items() <= row.items() for row in rows):
            continue
        row = place | finetuned(task, planner_of(task, agent, given), algorithm, seed, given)
        rows = [*rows_of(table, sizes), row]  # another of these scripts may have written its own meanwhile
        rows.sort(key=lambda row: [str(row[key]) for key in place])
        write(table, {**sizes, "rows": rows}, show=False)
    print(*compare(rows), sep="\n")
    draw(rows, given.episodes, RESULTS.with_name("figures") / f"{table}.png")


if __name__ == "__main__":
    main()
