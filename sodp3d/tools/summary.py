"""`sodp3d summary <env>`: success before and after, and where the newest run of each stage left what."""

import argparse
import sys
from pathlib import Path
from typing import Any

from sodp3d.core.cli import exit_status
from sodp3d.core.errors import InputError
from sodp3d.core.paths import command_line, data_root, outputs_root, root
from sodp3d.core.run import read_result
from sodp3d.rollouts.evaluate import sentence
from sodp3d.tools.runs import env_options, newest_runs, offline_result, offline_sentence, results


def before_and_after(runs: dict[str, Path], env: str) -> list[str]:
    """One line for each planner: its success rate with the interval; without any, the command that makes one."""
    found, offline = results(runs), offline_result(runs)
    if offline and not found:
        return [offline_sentence(offline)]
    if not found:
        return [f"no planner has been evaluated yet: {command_line('train', 'mode=pretrain', *env_options(env))}"]
    return [f"{result.words:<20} {result.line()}" for result in found]


def stage_lines(run: Path) -> list[str]:
    """What to say of one run: its folder, the evaluations of mode=eval, curves and videos."""
    told = read_result(run)
    files = [
        path
        for path in (run / "curve.png", run / "tasks.png", run / "offline.png", *sorted((run / "videos").glob("*.mp4")))
        if path.exists()
    ]
    unseen = told.get("unseen", [])
    tasks = [
        sentence(summary) + ("; unseen" if task in unseen else "") for task, summary in told.get("tasks", {}).items()
    ]
    return [str(run), *tasks, *map(str, files)]


def summary(env: str, config: dict[str, Any]) -> str:
    """The whole text, of what lies under the root that `config` names. One path a line, so that they can be copied.

    Raises InputError where there is nothing.
    """
    data, runs = data_root(config) / env, newest_runs(outputs_root(config), env)
    collected = [str(path) for path in (data / "README.md", *sorted((data / "videos").glob("*.mp4"))) if path.exists()]
    if not collected and not runs:
        raise InputError(
            f"nothing of {env} under {root(config)}; begin with: {command_line('collect', *env_options(env))}"
        )
    stages = {f"{env}: success": before_and_after(runs, env), "collect": collected}
    stages |= {mode: stage_lines(run) for mode, run in runs.items()}
    return "".join("\n  ".join([stage, *said]) + "\n" for stage, said in stages.items() if said)


def main(arguments: list[str] | None = None) -> int:
    """Command line: print the summary. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="sodp3d summary", description="What the newest runs of an environment say.")
    parser.add_argument("env", nargs="?", default="adroit_door", help="name of the environment (adroit_door)")
    parser.add_argument("--root", help="folder that holds data/ and outputs/ (SODP3D_ROOT, else the current one)")
    given = parser.parse_args(arguments)

    def job() -> None:
        sys.stdout.write(summary(given.env, {"root": given.root}))

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
