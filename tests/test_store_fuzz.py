"""Damage of any kind to a small store: one InputError, or `verify` names it, or the right values; never another end.

SODP3D_FUZZ=10000 tries so many, on other seeds each time, and prints what came of them.
"""

import json
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_conversion import CONFIG
from test_store_damage import MORE, ODD, PLACES, change, files
from toy_store import ATTRIBUTES, SPECIFICATION, episode, metadata

from sodp3d.core.errors import InputError
from sodp3d.data import arrays
from sodp3d.data.conversion import convert_store
from sodp3d.data.store import EpisodeStore

ASKED = os.environ.get("SODP3D_FUZZ")
NUMBERS = range(4)
HEADER = [{"shape": 5}, {"chunks": 0}, {"dtype": "<f8"}, {"order": "F"}, {"fill_value": None}, {"compressor": None}]
_ATTEMPTS: Counter[str] = Counter()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Four episodes over several chunks, with clouds."""
    path = tmp_path_factory.mktemp("sound") / "a.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "_CHUNK_STEPS", 5)
        with EpisodeStore.create(path, {**ATTRIBUTES, **MORE}, SPECIFICATION) as store:
            for number in NUMBERS:
                store.append(episode(number, 4), metadata(number))
        convert_store(path, CONFIG)
    yield path
    if ASKED:
        sys.stderr.write(f"\n{sum(_ATTEMPTS.values())} damaged stores: {dict(_ATTEMPTS)}\n")


def damage(path: Path, chance: random.Random) -> str:
    """Do something to one file or folder of the store; in words."""
    everything = sorted(found for found in path.rglob("*") if found != path)
    file = chance.choice([found for found in everything if found.is_file()])
    kind = chance.choice(["folder", "delete", "cut", "flip", "garbage", "swap", "header", "attribute", "stale"])
    if kind == "folder":
        file = chance.choice([found for found in everything if found.is_dir()])
        shutil.rmtree(file)
    elif kind == "delete":
        file.unlink()
    elif kind == "cut":
        content = file.read_bytes()
        file.write_bytes(content[: chance.randrange(len(content) + 1)])
    elif kind == "flip":
        content = bytearray(file.read_bytes()) or bytearray(1)
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        file.write_bytes(content)
    elif kind == "garbage":
        file.write_bytes(chance.randbytes(chance.randrange(200)))
    elif kind == "swap":
        file.write_bytes(chance.choice([found for found in everything if found.is_file()]).read_bytes())
    elif kind == "header":
        file = chance.choice(sorted(path.rglob(".zarray")))
        header = {**json.loads(file.read_text()), **chance.choice(HEADER)}
        if chance.random() < 0.5:
            header["shape"] = [chance.randrange(40), *header["shape"][1:]] if isinstance(header["shape"], list) else 7
        file.write_text(json.dumps(header))
    elif kind == "attribute":
        change(path / ".zattrs", chance.choice(PLACES), chance.choice(ODD))
    else:
        file = path / "meta/episode_ends/.zarray"
        file.write_text(json.dumps({**json.loads(file.read_text()), "shape": [chance.randrange(6)]}))
    return f"{kind} {file.relative_to(path)}"


def outcome(path: Path, clouds: "np.ndarray") -> str:
    """What comes of reading all, then of appending. Fails where values are silently wrong or anything is lost."""
    told = "right"
    try:
        store = EpisodeStore.open(path)
        if store.verify():
            told = "verify"
        else:
            assert len(store) == len(NUMBERS)
            for index in NUMBERS:
                for key, values in episode(index, 4).items():
                    np.testing.assert_array_equal(store.read(key, index, index + 1), values)
                assert {name: column[index].item() for name, column in store.metadata.items()} == metadata(index)
            if store.readable("point_cloud") == len(NUMBERS):
                np.testing.assert_allclose(store.read("point_cloud"), clouds)
    except InputError as error:
        assert len(str(error)) > 20
        told = "refused"
    before = files(path)
    try:
        with EpisodeStore.open(path, "a") as store:
            assert told != "refused" and len(store) == len(NUMBERS), "nothing that was committed may be cut"
            store.append(episode(9, 4), metadata(9))
        np.testing.assert_array_equal(EpisodeStore.open(path).read("state", 4, 5), episode(9, 4)["state"])
    except InputError:
        assert files(path) == before
    return told


@settings(
    max_examples=int(ASKED or 30),
    deadline=None,
    derandomize=not ASKED,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**32))
def test_damage_is_refused_told_or_harmless(sound: Path, tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    chance, path = random.Random(seed), tmp_path_factory.mktemp("damaged") / "a.zarr"
    shutil.copytree(sound, path)
    done = [damage(path, chance)]
    if chance.random() < 0.2:
        with suppress(OSError, ValueError):  # what the second would change is gone, or no JSON any more
            done.append(damage(path, chance))
    try:
        _ATTEMPTS[outcome(path, EpisodeStore.open(sound).read("point_cloud"))] += 1
    except BaseException as error:
        error.add_note(f"after {done}")
        raise
    finally:
        shutil.rmtree(path.parent)
