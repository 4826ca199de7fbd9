"""The wheel, installed apart: the command and the smallest pipeline run from an empty folder, without the checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from sodp3d.core.paths import CHECKOUT

SMALL = (
    "env=adroit_door preset=quick threads=1 workers=1 device=cpu "
    "env.camera.height=32 env.camera.width=32 env.points=64 env.episode_steps=9"
).split()
COLLECT = (
    "agent=scripted agent.policy=random collect.agent_steps=40 collect.environments=2 collect.evaluate_every=0".split()
)
TRAIN = (
    "model.unet=small pretrain.steps=2 pretrain.batch_size=8 pretrain.checkpoint_every=2 "
    "finetune.episodes=2 finetune.episodes_per_iteration=2 finetune.updates_per_episode=1 finetune.batch_size=8 "
    "finetune.critic.first_updates=2 finetune.initial_attempts=2 finetune.evaluate_every=2 finetune.checkpoint_every=2 "
    "evaluation.episodes=2 evaluation.environments=2 evaluation.validation_episodes=1 evaluation.videos=0"
).split()


class Installed:
    """The command of a virtual environment, run from an empty folder."""

    def __init__(self, environment: Path, folder: Path):
        self.program = environment / "bin" / "sodp3d"
        self.python = environment / "bin" / "python"
        self.folder = folder

    def __call__(self, *words: str, fails: bool = False) -> str:
        """Run `sodp3d <words>`; what it printed."""
        return self.run(str(self.program), *words, fails=fails)

    def run(self, *command: str, fails: bool = False) -> str:
        """Run a program where neither the checkout nor the environment's variables name sodp3d."""
        hidden = ("PYTHONPATH", "PYTHONHOME", "SODP3D_ROOT", "VIRTUAL_ENV")
        around = {key: value for key, value in os.environ.items() if key not in hidden}
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=300, env=around)
        said = done.stdout + done.stderr
        assert done.returncode == (2 if fails else 0), f"{command}: {said}"
        assert not fails or done.stderr.splitlines()[-1].startswith("error: "), said
        return said


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what it is made of: neither leaves files in the checkout nor takes old ones."""
    assert CHECKOUT is not None
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("sodp3d", "configs", "tests", "data_collection"):
        shutil.copytree(CHECKOUT / name, folder / "source" / name, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation"]
    built = subprocess.run([*pip, "-w", str(folder), str(folder / "source")], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an environment of its own, which takes only the dependencies from the running one.

    Packages of the running environment are found through a .pth file; .pth files there, like that of an editable
    sodp3d, are not read through it.
    """
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    packages = next((environment / "lib").glob("python*/site-packages"))
    # The new environment's own folder comes first on sys.path.
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(environment / "bin/python")]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    return Installed(environment, tmp_path_factory.mktemp("elsewhere"))


def test_a_wheel_contains_the_package_alone(wheel: Path) -> None:
    assert CHECKOUT is not None
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"sodp3d"}
    for name in ("configs", "sodp3d"):
        for path in (CHECKOUT / name).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                inside = path.relative_to(CHECKOUT).as_posix()
                assert (f"sodp3d/{inside}" if name == "configs" else inside) in names, path
    assert wheel.stat().st_size < 3_000_000


def test_the_installed_package_is_the_one_that_runs(installed: Installed) -> None:
    code = "import sodp3d, sodp3d.core.paths as paths; print(sodp3d.__file__, paths.CHECKOUT, paths.CONFIGS, sep='|')"
    file, checkout, configs = installed.run(str(installed.python), "-c", code).strip().split("|")
    packages = installed.python.parent.parent
    assert Path(file).is_relative_to(packages) and Path(configs).is_relative_to(packages) and checkout == "None"
    assert installed("--version").split() == installed.run(str(installed.python), "-m", "sodp3d", "--version").split()
    assert "(render=auto)" in installed("doctor", "--frames", "3")
    assert "env=adroit_door |" in installed("train", "--help")


def test_messages_name_commands_of_the_installed_package(installed: Installed) -> None:
    assert "sodp3d collect env=adroit_pen" in installed("convert", "env=adroit_pen", "root=nothing", fails=True)
    assert "sodp3d collect env=adroit_pen" in installed("summary", "adroit_pen", fails=True)


@pytest.mark.slow
def test_the_smallest_pipeline_from_an_empty_folder(installed: Installed) -> None:
    folder = installed.folder
    installed("collect", *SMALL, *COLLECT)
    installed("convert", *SMALL)
    installed("train", "mode=pretrain", *SMALL, *TRAIN)
    installed("train", "mode=finetune", *SMALL, *TRAIN)
    assert "on 2 episodes" in installed("eval", *SMALL, *TRAIN)
    (evaluation,) = (folder / "outputs/eval").glob("*/*/result.json")
    assert json.loads(evaluation.read_text())["tasks"]["adroit_door"]["episodes"] == 2
    installed("replay", "data=data/adroit_door", "count=1")
    assert list((folder / "data/adroit_door/videos").glob("*.mp4"))
    assert "adroit_door: 2 episodes" in installed("card", "data/adroit_door")
    installed("view", "data/adroit_door", "--episodes", "1")
    assert (folder / "data/adroit_door/view.html").is_file()
    assert "1 episodes, 9 steps" in installed("extract", "data/adroit_door", "data/part", "--max-episodes", "1")
    installed("merge", "data/whole", "data/adroit_door")
    assert (folder / "data/whole/episodes.zarr").is_dir()
    installed("results", "outputs", "data", "--output", "made")
    assert list((folder / "made").iterdir())
    said = installed("summary", "adroit_door")
    assert str(folder / "outputs/finetune") in said and "on 2 episodes" in said
