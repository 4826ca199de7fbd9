"""Dataset cards: the figures in them are the store's, twice the same, and damage does not stop them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_conversion import CONFIG
from toy_recorded import depth_episode, make_recorded_store
from toy_store import ATTRIBUTES, SPECIFICATION, episode, make_store, metadata

from sodp3d.core.errors import InputError
from sodp3d.core.paths import CHECKOUT
from sodp3d.data.conversion import convert_store
from sodp3d.data.hashing import data_hash
from sodp3d.data.store import EpisodeStore
from sodp3d.tools.card import MARK, card_text, find_card, main, training_parts, write_card
from sodp3d.tools.plot import is_own_png


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_store(tmp_path / "toy" / "episodes.zarr", range(12))
    return tmp_path / "toy"


def test_says_what_is_in_the_store(folder: Path) -> None:
    store = EpisodeStore.open(folder / "episodes.zarr")
    text = write_card(folder).read_text()
    assert text.startswith(f"{MARK}\n\n# toy: 12 episodes, {store.steps} steps")
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


def test_a_recording_is_named_by_its_usual_folder(tmp_path: Path) -> None:
    make_recorded_store(tmp_path / "mine/episodes.zarr", [depth_episode(0)])
    text = card_text(EpisodeStore.open(tmp_path / "mine/episodes.zarr"), [])
    assert "env=recorded data=data/arm`" in text and str(tmp_path) not in text


def test_point_counts_and_pictures(folder: Path) -> None:
    convert_store(folder / "episodes.zarr", CONFIG)
    text = write_card(folder).read_text()
    kept = EpisodeStore.open(folder / "episodes.zarr").read("point_cloud_kept")
    assert f"{kept.min()} to {kept.max()}, {kept.mean():.1f} on average" in text
    assert "12 of 12 episodes, 20 points" in text
    still = EpisodeStore.open(folder / "episodes.zarr").conversions["point_cloud"]["statistics"]["still"]
    assert f"{100 * still:.0f} % of the points lie where nearly every frame has one" in text
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
    assert "\n# toy: 12 episodes" in write_card(folder).read_text()


def test_a_readme_of_somebody_else_is_left_alone(folder: Path) -> None:
    assert write_card(folder).name == "README.md"
    assert write_card(folder).name == "README.md", "our own card is written again"
    earlier = (folder / "README.md").read_text().removeprefix(f"{MARK}\n\n")
    (folder / "README.md").write_text(earlier)
    assert write_card(folder).name == "README.md", "a card of an earlier release is ours too"
    (folder / "README.md").write_text("# My door\n\nNotes.\n")
    assert write_card(folder) == folder / "CARD.md"
    assert (folder / "README.md").read_text() == "# My door\n\nNotes.\n"
    (folder / "CARD.md").write_text("mine\n")
    with pytest.raises(InputError, match=r"README\.md and CARD\.md were not made by sodp3d"):
        write_card(folder)
    assert (folder / "CARD.md").read_text() == "mine\n"


@pytest.mark.parametrize("tick", ["`code` ", ""])
def test_what_comes_from_the_store_is_only_shown(tmp_path: Path, tick: str) -> None:
    bad = f"<img src=x onerror=alert(1)>|[here](https://example.com)\n\n# www.example.com {tick}*[x](javascript:y)"
    attributes = {**ATTRIBUTES, "env": bad, "renderer": bad, "git_commit": bad, "agent": {bad: bad}, "seed": [bad]}
    with EpisodeStore.create(tmp_path / "episodes.zarr", attributes, SPECIFICATION) as store:
        store.append(episode(0), metadata(0))
    text = write_card(tmp_path).read_text().removeprefix(MARK)
    text = re.sub(r"`[^`\n]*`", "", text.replace("\\`", ""))  # in code nothing is markup
    assert "<" not in text and "https://" not in text and "www." not in text
    assert not re.search(r"(?<!\\)\]\((https|javascript)", text) and "\n# www" not in text
    (row,) = [line for line in text.splitlines() if line.startswith("| renderer")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 3, "one cell each for name and value"
    assert "\\*" in row and r"\[here\](https&#58;//example.com)" in row


def test_a_locale_that_knows_ascii_alone_will_do(folder: Path) -> None:
    """The card has bars of blocks, and the store a name of somebody else's language."""
    change = json.loads((folder / "episodes.zarr/.zattrs").read_text()) | {"agent": {"name": "Jürgen █"}}
    (folder / "episodes.zarr/.zattrs").write_text(json.dumps(change, ensure_ascii=False), encoding="utf-8")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-m", "sodp3d.tools.card", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"| agent name | J?rgen ? |" in done.stdout
    assert "| agent name | Jürgen █ |" in (folder / "README.md").read_text(encoding="utf-8")


def test_only_our_own_card_is_published(folder: Path) -> None:
    assert find_card(folder) is None
    (folder / "README.md").write_text("# My door\n")
    assert find_card(folder) is None
    write_card(folder)
    assert find_card(folder) == folder / "CARD.md"


def test_a_picture_of_somebody_else_is_left_alone(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "card").mkdir()
    (folder / "card/depth.png").write_bytes(b"mine")
    assert "card/depth.png" not in write_card(folder).read_text()
    assert (folder / "card/depth.png").read_bytes() == b"mine" and "left alone" in caplog.text
    (folder / "README.md").write_text(f"{MARK}\n\n![depth](card/depth.png)\n")  # a card of a release without the mark
    assert "card/depth.png" in write_card(folder).read_text()
    assert is_own_png(folder / "card/depth.png")


def test_stores_that_were_merged_tell_what_each_was_extracted_from(tmp_path: Path) -> None:
    asked = {"data_hash": "abc", "episodes": 9, "quality": "all", "fraction": 1.0, "success": None, "max_episodes": 3}
    attributes = {**ATTRIBUTES, "extracted": [asked, None, {**asked, "episodes": 7}]}
    with EpisodeStore.create(tmp_path / "episodes.zarr", attributes, SPECIFICATION) as store:
        store.append(episode(0), metadata(0))
    text = write_card(tmp_path).read_text()
    assert "of 9 episodes, data hash abc" in text and "of 7 episodes, data hash abc" in text


PRIOR = {"kind": "scripted", "episodes": 3, "steps": 20}


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        (PRIOR, "| the agent began with | 3 scripted episodes; 3 of the store's episodes, its first ones |"),
        ({"kind": "demonstrations", "episodes": 25}, "| the agent began with | 25 demonstrations; not in the store |"),
        (
            [PRIOR, {**PRIOR, "steps": 30}],
            "| the agent began with | 3 scripted episodes, 3 scripted episodes; the merged stores differ in it |",
        ),
    ],
)
def test_what_the_agent_began_with_is_told(tmp_path: Path, prior: object, words: str) -> None:
    with EpisodeStore.create(tmp_path / "episodes.zarr", {**ATTRIBUTES, "prior": prior}, SPECIFICATION) as store:
        for number in range(6):
            store.append(episode(number), metadata(number))
    assert words in write_card(tmp_path).read_text()


def test_an_experts_episodes_are_a_part_of_their_own(tmp_path: Path) -> None:
    with EpisodeStore.create(tmp_path / "episodes.zarr", {**ATTRIBUTES, "prior": PRIOR}, SPECIFICATION) as store:
        for number in range(12):  # agent steps 0, 10, 20, ...
            store.append(episode(number), metadata(number))
        parts = training_parts(store)
    assert [(part.scripted, part.episodes) for part in parts] == [(True, 3), *[(False, 1)] * 9]
    assert parts[0].rates["final"] == pytest.approx(2 / 3) and parts[1].rates["final"] == 0.0
    assert (parts[1].first, parts[-1].last) == (30, 110)
    text = write_card(tmp_path).read_text()
    assert "| 0 to 20, scripted | 3 |" in text and "| 30 to 37 | 1 |" in text and "| all | 12 |" in text


@pytest.mark.parametrize("prior", ["expert", {"kind": "scripted"}, {"kind": "scripted", "episodes": 1, "steps": "all"}])
def test_a_damaged_label_is_refused(tmp_path: Path, prior: object) -> None:
    with pytest.raises(InputError, match=r"attribute prior"):
        EpisodeStore.create(tmp_path / "episodes.zarr", {**ATTRIBUTES, "prior": prior}, SPECIFICATION)
