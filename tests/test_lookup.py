"""The stores to learn from are those of the tasks that were asked for, each once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_conversion import CONFIG
from toy_store import ATTRIBUTES, SPECIFICATION, episode, metadata

from sodp3d.core.errors import InputError
from sodp3d.data.store import EpisodeStore
from sodp3d.learning.lookup import open_stores
from sodp3d.tools.report import write_report

TASKS = [replace(CONFIG, name=name) for name in ("toy_a", "toy_b")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Stores of toy_a and toy_b where they are looked for, and one of toy_c."""
    for name in ("toy_a", "toy_b", "toy_c"):
        attributes = {**ATTRIBUTES, "env": name, "env_config": {**ATTRIBUTES["env_config"], "name": name}}
        with EpisodeStore.create(tmp_path / "data" / name / "episodes.zarr", attributes, SPECIFICATION) as store:
            store.append(episode(0), metadata(0))
    return tmp_path


def found(root: Path, data: Any, tasks: Any = TASKS) -> list[str]:
    return [store.path.parent.name for store in open_stores({"root": str(root), "data": data}, tasks)]


def test_stores_are_found_by_task_or_named_in_any_order(root: Path) -> None:
    assert found(root, None) == ["toy_a", "toy_b"]
    assert found(root, [str(root / "data/toy_b/episodes.zarr"), str(root / "data/toy_a")]) == ["toy_b", "toy_a"]
    assert found(root, str(root / "data/toy_b")) == ["toy_b"]


def test_the_store_of_another_task_is_refused(root: Path) -> None:
    words = r"data: .*toy_c.* holds episodes of 'toy_c', but env= asks for toy_a, toy_b\. .*\(env=toy_c\)"
    with pytest.raises(InputError, match=words):
        found(root, str(root / "data/toy_c"))
    with pytest.raises(InputError, match="holds episodes of 'toy_c', but env= asks for toy_a"):
        found(root, [str(root / "data/toy_a"), str(root / "data/toy_c")], TASKS[:1])


def test_a_set_takes_no_task_under_the_name_of_another(root: Path) -> None:
    (root / "data/toy_a").rename(root / "data/kept")
    (root / "data/toy_b").rename(root / "data/toy_a")
    (root / "data/kept").rename(root / "data/toy_b")
    with pytest.raises(InputError, match=r"toy_a.* holds episodes of 'toy_b', but env= asks for toy_a"):
        found(root, None)


def test_the_same_store_twice_is_refused(root: Path) -> None:
    (root / "link").symlink_to(root / "data/toy_a")
    for other in (root / "data/toy_a", root / "link", root / "data/../data/toy_a/episodes.zarr"):
        with pytest.raises(InputError, match=r"data: .* are the same store; name each once"):
            found(root, [str(root / "data/toy_a"), str(other)])


def test_a_report_is_of_its_environments_store(root: Path) -> None:
    with pytest.raises(InputError, match="holds 'toy_c', but a report of 'toy_a' is asked for"):
        write_report("toy_a", root / "data/toy_c", root / "outputs", root / "report.html")
