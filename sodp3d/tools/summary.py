"""`sodp3d summary <env>`: where the newest run of each stage left its videos, curves and success rates."""

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from sodp3d.core.cli import exit_status
from sodp3d.core.errors import InputError
from sodp3d.core.files import read_json
from sodp3d.core.paths import command_line, data_root, outputs_root, root
from sodp3d.core.run import newest_finished
from sodp3d.rollouts.evaluate import sentence


def newest_runs(outputs: Path, env: str) -> dict[str, Path]:
    """The newest finished run of each stage for `env`."""
    found = {}
    for mode in ("pretrain", "finetune", "eval"):
        runs = [newest_finished(folder) for folder in sorted((outputs / mode).glob(f"{env}-*"))]
        finished = [run for run in runs if run is not None]
        if finished:
            found[mode] = max(finished, key=lambda path: path.name)
    return found


def lines(run: Path) -> list[str]:
    """What to say of one run."""
    result: dict[str, Any] = read_json(run / "result.json")
    said = [sentence(summary) for summary in result.get("tasks", {}).values()]
    for key, words in (("before", "before fine-tuning"), ("evaluation", "final")):
        if key in result:
            said.append(f"{words}: {sentence(result[key])}")
    said += [str(path) for path in (run / "curve.png", *sorted((run / "videos").glob("*.mp4"))) if path.exists()]
    return said


def main(arguments: list[str] | None = None) -> int:
    """Print each stage's results and files, one per line so that paths can be copied. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="sodp3d summary", description="Where the newest run of each stage left its videos, curves and rates."
    )
    parser.add_argument("env", nargs="?", default="adroit_door", help="name of the task (adroit_door)")
    parser.add_argument("--root", help="folder that holds data/ and outputs/ (SODP3D_ROOT, else the current one)")
    given = parser.parse_args(arguments)
    return exit_status(lambda: summarize(given.env, {"root": given.root}))


def summarize(env: str, config: dict[str, Any]) -> None:
    """Print what is there for `env` under the root that `config` names. Raises InputError where there is nothing."""
    console = Console(soft_wrap=True, highlight=False)
    data = data_root(config) / env
    collected = [str(path) for path in (data / "README.md", *sorted((data / "videos").glob("*.mp4"))) if path.exists()]
    said = {"collect": collected} | {mode: lines(run) for mode, run in newest_runs(outputs_root(config), env).items()}
    if not any(said.values()):
        collect = command_line("collect", f"env={env}")
        raise InputError(f"nothing of {env} under {root(config)}; begin with: {collect}")
    for stage, results in said.items():
        console.print(f"[bold]{stage}[/bold]", *results, sep="\n  ")


if __name__ == "__main__":
    sys.exit(main())
