"""Dashboards as trackers: trackio, Hugging Face's local one, and Weights & Biases. Neither asks for a network unasked.

Each knows a run by a name and an id, noted in `<tracker>.json` of the run's directory, so that a run that is continued
goes on there.
"""

import contextlib
import logging
import os
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sodp3d.core.files import read_json, write_json
from sodp3d.core.trackers import Tracker

log = logging.getLogger(__name__)
PROJECT = "sodp3d"
_FINISH_SECONDS = 60.0  # to wait for an upload at a run's end; what is left stays on the disk


def identity(directory: Path, tracker: str) -> tuple[str, str, bool]:
    """A run's name and id for a dashboard, and whether they are new.

    The id is random, and a part of it ends the name: directories of several roots may be called the same.
    """
    note = directory / f"{tracker}.json"
    if note.exists():
        kept = read_json(note)
        return str(kept["name"]), str(kept["id"]), False
    number = uuid.uuid4().hex
    name = "/".join([*directory.resolve().parts[-3:-1], f"{directory.name}-{number[:4]}"])
    write_json(note, {"name": name, "id": number})
    return name, number, True


class Trackio(Tracker):
    """`tracker=trackio`: into trackio's own database, which `trackio show` reads; its variables name another place."""

    needs = ("trackio",)

    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        import trackio

        name, _, self.empty = identity(directory, "trackio")
        with contextlib.redirect_stdout(sys.stderr):  # stdout is what a command answers
            self._run = trackio.init(
                PROJECT, name, resume="allow", config=dict(config), auto_log_gpu=False, auto_log_cpu=False, embed=False
            )

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Queue the values; a thread writes them."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Wait until all is written."""
        import trackio

        with contextlib.redirect_stdout(sys.stderr):
            trackio.finish()


class Wandb(Tracker):
    """`tracker=wandb`: into the run's folder `wandb`, for `wandb sync`; straight to the network with WANDB_MODE=online.

    W&B cannot continue an offline run: of two folders with one id the last that is synced replaces the other. So each
    process is told the run from its beginning, and its folder holds all of it. The run's own counter is the value
    `step`, since W&B's may not start below 0 or stay.
    """

    needs = ("wandb",)

    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        if mode == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # of W&B's own errors, by network
        import wandb

        name, number, _ = identity(directory, "wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            id=number,
            resume="allow",
            dir=directory,
            mode=mode,
            config=dict(config),
            settings=wandb.Settings(silent=True, console="off", finish_timeout=_FINISH_SECONDS),
        )
        self.empty = not self._run.resumed
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        log.info("wandb: %s", directory / "wandb" if mode == "offline" else self._run.url)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Hand the values to W&B's own process."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Wait until all is written, or uploaded."""
        self._run.finish()
