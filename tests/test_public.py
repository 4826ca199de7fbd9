"""The package from outside: its public names, what importing it costs, and what its source may look like."""

import ast
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import sodp3d
from sodp3d.core.paths import CHECKOUT, PACKAGE

MOST_LINES, MOST_LINES_OF_FUNCTION = 350, 60
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file())


@pytest.mark.parametrize("name", sodp3d.__all__)
def test_a_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(sodp3d, name).__doc__


def test_public_names_are_listed_once_and_sorted() -> None:
    assert list(sodp3d.__all__) == sorted(set(sodp3d.__all__))
    assert set(sodp3d.__all__) <= set(dir(sodp3d))
    with pytest.raises(AttributeError, match="no_such_name"):
        sodp3d.no_such_name  # noqa: B018


def test_the_version_is_the_package_s() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    assert sodp3d.__version__ == project["version"]


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, sodp3d; print({'torch', 'mujoco', 'open3d', 'zarr', 'hydra', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_package_itself_holds_only_its_names_and_its_command() -> None:
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} == {"__init__.py", "__main__.py", "py.typed"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is_for(room: str) -> None:
    assert import_module(f"sodp3d.{room}").__doc__


def test_every_room_stands_in_the_import_contract() -> None:
    contracts = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = " : ".join(contracts[0]["layers"])
    assert {name.strip("() ") for name in layers.split(":")} >= set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MOST_LINES_OF_FUNCTION, f"{path}:{node.lineno} {node.name} has {lines} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_text_files_are_opened_as_utf_8(path: Path) -> None:
    """Whatever the locale; run.py is left out, as it reads and writes ASCII alone."""
    if path.name == "run.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or "encoding" in {keyword.arg for keyword in node.keywords}:
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", None))
        whose = getattr(node.func, "value", None)
        owner = getattr(whose, "id", getattr(whose, "attr", None))
        mode = next((argument.value for argument in node.args if isinstance(argument, ast.Constant)), "r")
        text = name == "read_text" or (name == "write_text" and owner) or (name == "open" and "b" not in str(mode))
        known = owner in ("os", "EpisodeStore", "Image", "tarfile", "archive", "_archive", "opener")  # no text files
        assert not text or known, f"{path}:{node.lineno} {ast.unparse(node)}"
