"""Push to and pull from Hugging Face, by huggingface_hub itself against a server on this machine."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_hub import ToyHub, toy_hub
from toy_run import make_run
from toy_store import assert_holds, make_store

from sodp3d.core.errors import InputError
from sodp3d.data.store import EpisodeStore
from sodp3d.models.loading import load_planner
from sodp3d.sharing import cards
from sodp3d.sharing.hub import Repository
from sodp3d.sharing.manifest import MANIFEST
from sodp3d.sharing.pull import pull
from sodp3d.sharing.push import main as push_main
from sodp3d.sharing.push import push

constants = pytest.importorskip("huggingface_hub.constants")
TOKEN = "hf_" + "secret" * 6


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ToyHub]:
    """What HF_ENDPOINT would name; it is read when huggingface_hub is imported, which other tests may have done."""
    with toy_hub() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        template = f"{served.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("hf://alice/door", Repository("alice/door", "model")),
        ("hf://alice/door@v1", Repository("alice/door", "model", "v1")),
        ("hf://datasets/alice/door-84@a/b", Repository("alice/door-84", "dataset", "a/b")),
    ],
)
def test_addresses_are_read(address: str, expected: Repository) -> None:
    assert Repository.of(address) == expected and address.startswith(expected.address)


@pytest.mark.parametrize("address", ["hf://door", "hf://a/b/c", "hf://datasets/door", "hf://alice/door@", "hf://a b/c"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(InputError, match="expected hf://<owner>/<name>"):
        Repository.of(address)


def test_a_planner_goes_there_and_comes_back(hub: ToyHub, run: Path, tmp_path: Path) -> None:
    told = push(run, "hf://alice/door", licence="mit")
    assert told.startswith(f"{hub.url}/alice/door/commit/") and hub.private == {"models/alice/door": True}
    assert b"sodp3d pull hf://alice/door planner" in hub.repositories["models/alice/door"]["README.md"]
    where, manifest = pull("hf://alice/door", tmp_path / "door")
    assert manifest.kind == "planner" and load_planner(where).config == load_planner(run).config
    there = {path.relative_to(where).as_posix() for path in where.rglob("*") if path.is_file()}
    assert there == set(manifest.files) | {MANIFEST}
    assert f"Bearer {TOKEN}" in hub.tokens
    pull("hf://alice/door", where)  # once more, which fetches nothing but the manifest
    # One commit is downloaded, whatever is pushed meanwhile.
    commit = hub.commit("models/alice/door")
    assert {path.split("/resolve/")[1].split("/")[0] for _, path in hub.asked if "/resolve/" in path} == {commit}


def test_a_store_goes_to_a_dataset(hub: ToyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "draw_figures", lambda store, folder: [])  # which takes seconds, and test_sharing has
    make_store(tmp_path / "toy/episodes.zarr", range(2))
    with pytest.raises(InputError, match="a store is pushed to hf://datasets/alice/toy"):
        push(tmp_path / "toy", "hf://alice/toy")
    push(tmp_path / "toy", "hf://datasets/alice/toy", public=True)
    assert hub.private == {"datasets/alice/toy": False}
    where, _ = pull("hf://datasets/alice/toy", tmp_path / "again")
    assert_holds(EpisodeStore.open(where / "episodes.zarr"), [0, 1])


def test_a_later_push_replaces_the_package_and_nothing_else(hub: ToyHub, run: Path, tmp_path: Path) -> None:
    push(run, "hf://alice/door")
    files = hub.repositories["models/alice/door"]
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/result.json").unlink()
    push(tmp_path / "run", "hf://alice/door")
    assert "result.json" not in files and ".gitattributes" in files
    files["mine.txt"] = b"mine"
    with pytest.raises(InputError, match=r"holds files that are no package's \(mine\.txt\)"):
        push(run, "hf://alice/door")
    assert files["mine.txt"] == b"mine" and "result.json" not in files


def test_a_branch_is_made_where_nothing_foreign_would_be_in_it(hub: ToyHub, run: Path) -> None:
    push(run, "hf://alice/door")
    files = hub.repositories["models/alice/door"]
    files["mine.txt"] = b"mine"
    with pytest.raises(InputError, match=r"holds files that are no package's \(mine\.txt\)"):
        push(run, "hf://alice/door@tuned")
    assert hub.branches == set()
    del files["mine.txt"]
    for _ in range(2):
        push(run, "hf://alice/door@tuned")
    made = [path for command, path in hub.asked if command == "POST" and "/branch/" in path]
    assert hub.branches == {"tuned"} and made == ["/api/models/alice/door/branch/tuned"]


def test_what_is_not_as_listed_is_refused_before_it_is_fetched(hub: ToyHub, run: Path, tmp_path: Path) -> None:
    push(run, "hf://alice/door")
    files = hub.repositories["models/alice/door"]
    right = files["config.yaml"]
    files["config.yaml"] = b"x" * 10**5
    with pytest.raises(InputError, match=r"config\.yaml has 100000 bytes there and \d+ in sodp3d\.json"):
        pull("hf://alice/door", tmp_path / "door")
    assert not any(path.endswith("config.yaml") for command, path in hub.asked if command == "GET")
    files["config.yaml"] = b"x" * len(right)
    with pytest.raises(InputError, match=r"config\.yaml: its sha256 is not the one"):
        pull("hf://alice/door", tmp_path / "door")
    files["config.yaml"] = right
    assert pull("hf://alice/door", tmp_path / "door")[0].is_dir()  # goes on with that file alone
    del files[MANIFEST]
    with pytest.raises(InputError, match="no package here"):
        pull("hf://alice/door", tmp_path / "other")


def test_a_failure_is_told_without_the_token(
    hub: ToyHub, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="hf auth login") as refused:
        pull("hf://alice/nothing", tmp_path / "door")
    assert TOKEN not in str(refused.value) and "hf://alice/nothing" in str(refused.value)
    hub.repositories["models/alice/door"], hub.branches = {}, None
    assert push_main([str(run), "hf://alice/door@branch"]) == 2
    printed = capsys.readouterr()
    assert TOKEN not in printed.out + printed.err and "hf://alice/door" in printed.err
