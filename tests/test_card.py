"""Dataset cards: the figures in them are the store's, twice the same, and damage does not stop them."""

from pathlib import Path

import numpy as np
import pytest
from test_conversion import CONFIG
from toy_store import make_store

from sodp3d.data.conversion import convert_store
from sodp3d.data.hashing import data_hash
from sodp3d.data.store import EpisodeStore
from sodp3d.tools.card import main, write_card


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_store(tmp_path / "toy" / "episodes.zarr", range(12))
    return tmp_path / "toy"


def test_says_what_is_in_the_store(folder: Path) -> None:
    store = EpisodeStore.open(folder / "episodes.zarr")
    text = write_card(folder).read_text()
    assert text.startswith(f"# toy: 12 episodes, {store.steps} steps")
    assert data_hash(store) in text and "0" * 40 in text
    for words in ("raycast", "| agent name | toy |", "0 to 11, 12 distinct", "action_repeat 2", "12 x 12 px"):
        assert words in text, words
    assert f"| data/depth | uint16 | ({store.steps}, 12, 12) |" in text
    # 12 episodes: success `final` is every second, `count` every third, `any` either.
    assert "| all | 12 | 1.83 | 50.0 % | 33.3 % | 66.7 % |" in text
    assert "convert.py env=toy" in text
    counts = [
        int(row.split("|")[2]) for row in text.split("## Returns\n")[1].split("## Point")[0].splitlines()[3:] if row
    ]
    assert sum(counts) == 12


def test_point_counts_and_pictures(folder: Path) -> None:
    convert_store(folder / "episodes.zarr", CONFIG)
    text = write_card(folder).read_text()
    kept = EpisodeStore.open(folder / "episodes.zarr").read("point_cloud_kept")
    assert f"{kept.min()} to {kept.max()}, {kept.mean():.1f} on average" in text
    assert "12 of 12 episodes, 20 points" in text
    for name in ("depth", "point_cloud"):
        assert f"(card/{name}.png)" in text
        assert (folder / "card" / f"{name}.png").stat().st_size > 5000
    import matplotlib.image

    pixels = matplotlib.image.imread(folder / "card" / "depth.png")
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 100  # something was drawn


def test_the_same_store_gives_the_same_card(folder: Path) -> None:
    contents = []
    for _ in range(2):
        write_card(folder)
        contents.append({file.name: file.read_bytes() for file in [folder / "README.md", *(folder / "card").iterdir()]})
    assert contents[0] == contents[1]


def test_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder)]) == 0
    assert (folder / "README.md").read_text() in capsys.readouterr().out
    assert main([str(tmp_path / "nothing")]) == 2
    error = capsys.readouterr().err
    assert "collect.py" in error and "Traceback" not in error


def test_empty_and_damaged_stores_have_cards_too(folder: Path, tmp_path: Path) -> None:
    make_store(tmp_path / "empty" / "episodes.zarr", [])
    assert "No episodes yet" in write_card(tmp_path / "empty").read_text()
    (folder / "episodes.zarr" / "data" / "depth" / "0.0.0").unlink()
    assert write_card(folder).read_text().startswith("# toy: 12")
