"""The weak benchmark: planners pre-trained on an agent's earliest experience, each fine-tuned by every algorithm.

For each task and agent seed: a store of its own; a planner of the most episodes, from the beginning on, of which at
most half succeed; at most 300 episodes of fine-tuning by each algorithm and seed, initial and validation episodes
included. Every step is a command of its own, and printed. A finished one is skipped and a stopped one goes on, so the
same command continues the benchmark.

python benchmarks/weak.py [--observation state] [--tasks hammer door pen] [--agents 3] [--seeds 3]
    [--algorithms sodp clone ...] [--test 1000] [options of train.py for every fine-tuning]
-> outputs/weak/..., and results/benchmarks/weak_<observation>.json with one row for each task and algorithm
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from timing import write

from sodp3d.core.paths import CHECKOUT

ALGORITHMS = ("clone", "sodp_paper", "sodp_none", "sodp_kl", "dppo", "sodp_chunk", "sodp")
INITIAL, TRAINING = 32, 268
# Gradient steps of 64 that give a planner on states about the paper's success, and the steps that its agent takes
STEPS = {"hammer": 800, "door": 1000, "pen": 800}
AGENT_STEPS = {"hammer": 30_000, "door": 60_000, "pen": 30_000}


def run(script: str, *options: str) -> None:
    """One command from the checkout. Raises CalledProcessError where it fails."""
    print("python", script, *options, flush=True)
    subprocess.run([sys.executable, str(CHECKOUT / script), *options], check=True, cwd=CHECKOUT)


def result(directory: Path) -> dict[str, Any] | None:
    """What a finished run found."""
    path = directory / "result.json"
    return json.loads(path.read_text()) if path.is_file() else None


def planner_of(task: str, agent: int, given: argparse.Namespace) -> Path:
    """The weak planner of one agent; its store is collected, and converted for clouds, where it is not there yet."""
    env, data = f"env=adroit_{task}", CHECKOUT / "data" / f"weak-{task}-{agent}"
    directory = CHECKOUT / "outputs" / "weak" / f"{task}-{agent}-{given.observation}"
    if result(directory) is None:
        run(
            "data_collection/collect.py", env, f"seed={agent}", f"data={data}",
            f"collect.agent_steps={AGENT_STEPS[task]}", "collect.evaluate_every=0",
        )  # fmt: skip
        if given.observation == "pointcloud":
            run("data_collection/convert.py", env, f"data={data}")
        run(
            "train.py", "mode=pretrain", env, f"obs={given.observation}", f"data={data}",
            "pretrain.successes_at_most=0.5", f"pretrain.steps={STEPS[task]}", "pretrain.batch_size=64",
            "pretrain.evaluate_every=0", f"evaluation.episodes={given.test}", "evaluation.videos=1",
            f"run_dir={directory}",
        )  # fmt: skip
    return directory


def finetuned(task: str, planner: Path, algorithm: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """The result of one fine-tuning."""
    directory = planner.with_name(f"{planner.name}-{algorithm}-{seed}")
    if result(directory) is None:
        run(
            "train.py", "mode=finetune", f"env=adroit_{task}", f"obs={given.observation}", f"algorithm={algorithm}",
            f"planner={planner}", f"seed={seed}", f"finetune.initial_attempts={INITIAL}",
            f"finetune.initial_proficient={INITIAL}", f"finetune.episodes={TRAINING}", "finetune.evaluate_every=0",
            f"evaluation.episodes={given.test}", "evaluation.videos=1", f"run_dir={directory}", *given.options,
        )  # fmt: skip
    found = result(directory)
    assert found is not None
    return found


def main() -> None:
    """Run what is left of it, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--observation", default="state", choices=("state", "pointcloud"))
    parser.add_argument("--tasks", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--agents", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS))
    parser.add_argument("--test", type=int, default=1000)
    given, options = parser.parse_known_args()
    given.options = options
    rows = []
    for task in given.tasks:
        planners = [planner_of(task, agent, given) for agent in range(given.agents)]
        for algorithm in given.algorithms:
            for agent, planner in enumerate(planners):
                for seed in range(given.seeds):
                    found = finetuned(task, planner, algorithm, seed, given)
                    rates = {
                        when: found[key]["success"][found[key]["headline_metric"]]["rate"]
                        for when, key in (("before", "before"), ("after", "evaluation"))
                    }
                    rows.append({"task": task, "algorithm": algorithm, "agent": agent, "seed": seed, **rates})
    write(f"weak_{given.observation}", {**vars(given), "rows": rows})


if __name__ == "__main__":
    main()
