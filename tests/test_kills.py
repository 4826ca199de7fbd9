"""Commands killed by SIGKILL, in all their phases, and run again: in the end there is what an unbroken run makes.

SODP3D_KILLS=<number> kills so many more, at random moments: `SODP3D_KILLS=2000 pytest tests/test_kills.py` takes hours.
The store's own kills are in test_store_crash, those of checkpoints in test_checkpoint.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from toy_slider import assert_same

from sodp3d.core.paths import CHECKOUT

# In one group: what a command needs is made once, by those before it.
pytestmark = pytest.mark.slow
SMALL = (
    "plugins=[sodp3d_example] env=puck preset=quick threads=1 workers=1 device=cpu render=raycast "
    "env.camera.height=12 env.camera.width=12 env.points=8 env.episode_steps=6"
).split()
COLLECT = (
    "collect agent=proportional agent.noise=0 collect.agent_steps=48 collect.fraction=1 collect.environments=2 "
    "collect.evaluate_every=0 collect.checkpoint_every=12"
).split()  # without noise: what a killed agent draws again differs, and is test_collection's
TRAIN = (
    "model.denoising_steps=4 model.sampling_steps=2 "
    "pretrain.steps=4 pretrain.batch_size=4 pretrain.log_every=3 pretrain.checkpoint_every=2 pretrain.evaluate_every=2 "
    "finetune.episodes=4 finetune.episodes_per_iteration=2 finetune.updates_per_episode=1 finetune.batch_size=4 "
    "finetune.critic.first_updates=2 finetune.initial_attempts=2 finetune.evaluate_every=2 finetune.checkpoint_every=2 "
    "evaluation.episodes=3 evaluation.environments=2 evaluation.validation_episodes=2 evaluation.videos=1"
).split()
PLANNER = "planner=work/outputs/{}/fixed"


@dataclass(frozen=True)
class Killed:
    """A command, and where it is killed: before its n-th publication of a path that holds a text, by a signal."""

    arguments: Sequence[str]
    kills: Sequence[tuple[int, str, signal.Signals]]
    makes: str  # below work/: what is compared
    keeps: str = ""  # of that, the part that a kill may not change; "": all of it


def train(mode: str, *more: str) -> list[str]:
    return ["train", f"mode={mode}", *SMALL, *TRAIN, f"run_dir=work/outputs/{mode}/fixed", *more]


KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
COMMANDS = {  # each needs those before it
    "collect": Killed(
        [*COLLECT, *SMALL],
        [(1, "", KILL), (1, "checkpoints", TERM), (30, "episodes.zarr", KILL)],
        "data/puck",
        "episodes.zarr",
    ),
    "convert": Killed(
        ["convert", *SMALL],
        [(9, "episodes.zarr", INT), (20, "episodes.zarr", KILL), (1, "README.md", KILL)],
        "data/puck",
    ),
    "again": Killed(
        ["convert", *SMALL, "again=image"], [(9, "episodes.zarr", KILL), (1, "image.png", TERM)], "data/puck"
    ),
    "pretrain": Killed(
        train("pretrain"),
        [(1, "config.yaml", KILL), (1, "00000002", TERM), (1, "rollouts.npz", KILL), (1, ".mp4", KILL)],
        "outputs/pretrain",
    ),
    "finetune": Killed(
        train("finetune", PLANNER.format("pretrain")),
        [(1, "best/", KILL), (2, "checkpoints/0", TERM), (1, "evaluation/best", KILL), (1, "result.json", KILL)],
        "outputs/finetune",
    ),
    "eval": Killed(
        train("eval", PLANNER.format("finetune")), [(1, "rollouts.npz", INT), (1, ".mp4", KILL)], "outputs/eval"
    ),
    "extract": Killed(
        ["extract", "work/data/puck", "work/data/some", "--max-episodes", "3"], [(40, "", KILL)], "data/some"
    ),
    "merge": Killed(
        ["merge", "work/data/both", "work/data/puck", "work/data/some"], [(40, "", TERM), (40, "", KILL)], "data/both"
    ),
    "export": Killed(
        ["export", "work/data/puck", "folder", "work/recordings/puck"],
        [(3, "recordings", KILL), (9, "recordings", TERM), (17, "recordings", KILL)],  # the last: the whole folder
        "recordings",
    ),
    "import": Killed(
        ["import", "folder", "work/recordings/puck", "work/data/back"],
        [(12, "importing.zarr", KILL), (40, "importing.zarr", TERM), (1, "back/episodes.zarr", KILL)],
        "data/back",
    ),
    "sweep": Killed(
        ["train", "-m", "mode=pretrain", *SMALL, *TRAIN, "seed=1,2", "run_dir=work/outputs/sweep/${seed}"],
        [(1, "sweep/1/checkpoints/00000002", TERM), (1, "sweep/2/curve.png", KILL)],
        "outputs/sweep",
    ),
}


class Place:
    """A folder with work/, in which commands run, and the server that runs them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        around = {**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), f"{CHECKOUT}/examples"])}
        around |= {"SODP3D_ROOT": str(folder / "work"), "MPLCONFIGDIR": str(folder)}
        command = [sys.executable, str(Path(__file__).with_name("kill_server.py"))]
        self.server = subprocess.Popen(
            command, cwd=folder, env=around, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, arguments: Sequence[str], at: int = 0, name: str = "", number: int = signal.SIGKILL) -> int:
        """The exit status; minus the signal's number where it was killed."""
        self.log.write_text("")
        order = {"arguments": arguments, "signal": int(number), "at": at, "name": name, "log": str(self.log)}
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        answer = json.loads(self.server.stdout.readline())
        assert "Traceback" not in self.log.read_text(), self.log.read_text()
        self.published = answer["published"]
        return int(answer["status"])

    def finish(self, arguments: Sequence[str]) -> None:
        assert self.run(arguments) == 0, self.log.read_text()

    def made(self, below: str) -> dict[str, bytes]:
        """What there is, but for what tells of the process and the time."""
        folder = self.folder / "work" / below
        aside = ("versions.json", "wall_time.json", ".lock", "episodes.zarr.lock")
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name not in aside and "tensorboard" not in path.parts
            if ".zarr" not in str(path) or ".partial" not in str(path)
        }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    found = Place(tmp_path_factory.mktemp("kills"))
    with found.server:  # closing its input ends it
        yield found


class Before:
    """What each command makes of what those before it made; made once, on demand."""

    def __init__(self, place: Place) -> None:
        self.place, self.made, self.published = place, dict[str, dict[str, bytes]](), dict[str, int]()

    def prepare(self, name: str) -> Killed:
        """Bring work/ to where `name` begins."""
        for earlier in list(COMMANDS)[: list(COMMANDS).index(name) + 1]:
            if earlier not in self.made:
                self._restore(earlier)
                self.place.finish(COMMANDS[earlier].arguments)
                self.made[earlier] = self.place.made(COMMANDS[earlier].makes)
                self.published[earlier] = self.place.published
                shutil.copytree(self.place.folder / "work", self.place.folder / f"after-{earlier}")
        self._restore(name)
        return COMMANDS[name]

    def _restore(self, name: str) -> None:
        work, names = self.place.folder / "work", ["", *COMMANDS]
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        previous = names[names.index(name) - 1]
        if previous:
            shutil.copytree(self.place.folder / f"after-{previous}", work, dirs_exist_ok=True)

    def assert_made(self, name: str) -> None:
        """work/ holds what the unbroken command made."""
        command = COMMANDS[name]
        if command.keeps:
            below = f"{command.makes}/{command.keeps}"
            assert_same(self.place.folder / f"after-{name}" / below, self.place.folder / "work" / below)
            return
        made = self.place.made(command.makes)
        assert made.keys() == self.made[name].keys()
        assert [path for path, content in made.items() if content != self.made[name][path]] == []


@pytest.fixture(scope="module")
def before(place: Place) -> Before:
    return Before(place)


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_or_stopped_in_each_phase_and_run_again_it_makes_the_same(
    place: Place, before: Before, name: str
) -> None:
    command = before.prepare(name)
    for at, published, number in command.kills:
        status = place.run(command.arguments, at, published, number)
        assert status == (-number if number == KILL else 128 + number), f"at {at} {published}: {place.log.read_text()}"
        if number != KILL:
            assert f"stopped by {number.name}" in place.log.read_text()
            assert not (place.folder / "work/outputs/sweep/2").exists(), "the next job of the sweep began"
        assert not list((place.folder / "work" / command.makes).glob("fixed/result.json"))
    place.finish(command.arguments)
    before.assert_made(name)


@pytest.mark.parametrize("trial", range(int(os.environ.get("SODP3D_KILLS", 0))))
def test_killed_at_random_moments_it_makes_the_same(place: Place, before: Before, trial: int) -> None:
    draw = random.Random(trial)
    name = draw.choice(list(COMMANDS))
    command = before.prepare(name)
    for _ in range(draw.randint(1, 3)):
        if place.run(command.arguments, draw.randint(1, before.published[name])) == 0:
            break  # its moment never came: how often the time spent is published depends on the machine
        run = place.folder / "work" / command.makes / "fixed"
        if (run / "result.json").exists():  # killed when all but the time spent was published: it is finished,
            for unpublished in run.glob("wall_time.json.*.partial"):  # so no command opens it again and clears it
                unpublished.unlink()
            break
    else:
        place.finish(command.arguments)
    before.assert_made(name)
