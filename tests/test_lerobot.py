"""LeRobot datasets: files made by pyarrow and FFmpeg as LeRobot makes them, videos, depth in codes, damage."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toy_exchange import ALONE, FACTS, assert_equal, opened, read, steps_of, write

pytest.importorskip("pyarrow")

import pyarrow as arrow
from pyarrow import parquet

from sodp3d.core.errors import InputError
from sodp3d.exchange import lerobot_video
from sodp3d.exchange.lerobot_video import DepthCodes

HEIGHT, WIDTH, RATE = 16, 32, 10
NUMBERS = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64"}
LENGTHS = (5, 3)


def shades(count: int, first: int = 0) -> Any:
    """(T, 3, H, W) plain images, each of another shade."""
    images = np.zeros((count, 3, HEIGHT, WIDTH), np.uint8)
    images[:] = (20 * (first + np.arange(count)))[:, None, None, None]
    return images


def encode_depth(path: Path, codes: Any) -> None:
    """A video of 12 bit whose luma holds the codes, as LeRobot writes it, here without loss."""
    color = np.full(2 * (HEIGHT // 2) * (WIDTH // 2), 2048, "<u2").tobytes()
    content = b"".join(frame.astype("<u2").tobytes() + color for frame in codes)
    source = f"-f rawvideo -pix_fmt yuv420p12le -s {WIDTH}x{HEIGHT} -r {RATE} -i -".split()
    done = lerobot_video._ffmpeg(
        [*source, *"-c:v libx265 -x265-params lossless=1:log-level=none".split(), str(path)], content
    )
    assert done.returncode == 0, done.stderr


def png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="TIFF" if pixels.dtype == np.uint16 else "PNG")
    return buffer.getvalue()


def make_dataset(root: Path) -> Path:
    """Two episodes in one data file and one video, without anything of ours."""
    total, joints = sum(LENGTHS), np.arange(sum(LENGTHS) * 3, dtype=np.float32).reshape(-1, 3)
    episodes = np.repeat([0, 1], LENGTHS)
    wrist = np.arange(total * HEIGHT * WIDTH, dtype=np.uint16).reshape(total, HEIGHT, WIDTH)
    columns = {
        "action": arrow.FixedSizeListArray.from_arrays(arrow.array(joints[:, :2].ravel()), 2),
        "observation.state": arrow.array(joints.tolist(), arrow.list_(arrow.float32())),
        "observation.force": arrow.array(np.arange(total, dtype=np.float64)),
        "observation.images.wrist_depth": arrow.array([{"bytes": png(frame), "path": None} for frame in wrist]),
        "timestamp": arrow.array((np.concatenate([np.arange(n) for n in LENGTHS]) / RATE).astype(np.float32)),
        "frame_index": arrow.array(np.concatenate([np.arange(n) for n in LENGTHS])),
        "episode_index": arrow.array(episodes),
        "index": arrow.array(np.arange(total)),
        "task_index": arrow.array(np.zeros(total, int)),
    }
    files = [root / f"{name}/chunk-000" for name in ("data", "meta/episodes", "videos/observation.images.top")]
    for folder in files:
        folder.mkdir(parents=True)
    parquet.write_table(arrow.table(columns), files[0] / "file-000.parquet", row_group_size=3)
    lerobot_video.write_color(files[2] / "file-000.mp4", shades(total), RATE)
    rows, key = [], "videos/observation.images.top"
    for number, (stop, length) in enumerate(zip(np.cumsum(LENGTHS).tolist(), LENGTHS, strict=True)):
        start = stop - length
        row = {
            "episode_index": number,
            "tasks": ["pick"],
            "length": length,
            "data/chunk_index": 0,
            "data/file_index": 0,
        }
        row |= {f"{key}/chunk_index": 0, f"{key}/file_index": 0, f"{key}/from_timestamp": start / RATE}
        rows.append({**row, f"{key}/to_timestamp": stop / RATE, "stats/action/mean": [0.0, 1.0]})
    parquet.write_table(arrow.Table.from_pylist(rows[::-1]), files[1] / "file-000.parquet")
    image = {"dtype": "image", "shape": [HEIGHT, WIDTH, 1], "names": ["height", "width", "channels"]}
    features = {
        "action": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
        "observation.state": {"dtype": "float32", "shape": [3], "names": {"motors": ["a", "b", "c"]}},
        "observation.force": {"dtype": "float64", "shape": [1], "names": None},
        "observation.images.wrist_depth": {**image, "info": {"is_depth_map": True, "depth_unit": "mm"}},
        "observation.images.top": {**image, "dtype": "video", "shape": [HEIGHT, WIDTH, 3]},
        "task_index": {"dtype": "int64", "shape": [1], "names": None},
        **{name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in NUMBERS.items()},
    }
    info = {
        "codebase_version": "v3.0",
        "fps": RATE,
        "features": features,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("lerobot") / "pick")


def changed(dataset: Path, folder: Path, **values: Any) -> Path:
    """A copy whose info.json says something else."""
    shutil.copytree(dataset, folder / "changed")
    info = json.loads((dataset / "meta/info.json").read_text())
    (folder / "changed/meta/info.json").write_text(json.dumps({**info, **values}))
    return folder / "changed"


def test_a_dataset_of_others_is_read(dataset: Path) -> None:
    source = opened("lerobot", dataset)
    assert (
        source.facts.rate == RATE
        and source.facts.task == "pick"
        and list(source.episodes) == ["episode 0", "episode 1"]
    )
    assert source.offers["observation.state"].names == ("a", "b", "c") and source.offers["action"].names == ("x", "y")
    source.close()
    found = read("lerobot", dataset, 1, keys=["observation.force"])
    assert sorted(found) == ["action", "agent_pos", "depth", "image", "observation.force"]
    assert found["agent_pos"].tolist() == [[15, 16, 17], [18, 19, 20], [21, 22, 23]]
    assert found["observation.force"].ravel().tolist() == [5, 6, 7]
    assert found["depth"][0, 0, :3].tolist() == [2560, 2561, 2562]
    assert np.abs(found["image"].astype(int) - shades(3, 5)).max() <= 2  # the second episode's part of the video


def test_a_dataset_whose_files_are_links_is_read(dataset: Path, tmp_path: Path) -> None:
    """As Hugging Face's cache has them: names that lead to ../../blobs."""
    for number, file in enumerate(sorted(path for path in dataset.rglob("*") if path.is_file())):
        blob, link = tmp_path / f"blobs/{number}", tmp_path / "snapshots/main" / file.relative_to(dataset)
        for each in (blob, link):
            each.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link.symlink_to(blob)
    assert_equal(read("lerobot", tmp_path / "snapshots/main", 1), read("lerobot", dataset, 1))


def test_several_tasks_are_lost_and_told(dataset: Path, tmp_path: Path) -> None:
    path = changed(dataset, tmp_path)
    file = path / "meta/episodes/chunk-000/file-000.parquet"
    rows = parquet.read_table(file).to_pylist()
    for row in rows:
        row["tasks"] = [f"task {row['episode_index']}"]
    parquet.write_table(arrow.Table.from_pylist(rows), file)
    source = opened("lerobot", path)
    assert source.facts.task is None
    assert source.lost == {"task": "episodes are of 2 tasks, and a store notes one of all"}
    assert opened("lerobot", path, episodes=1).facts.task == "task 0"


def test_depth_of_a_video_becomes_millimetres(dataset: Path, tmp_path: Path) -> None:
    codes = (np.arange(8 * HEIGHT * WIDTH) % 4096).reshape(8, HEIGHT, WIDTH).astype(np.uint16)
    features = json.loads((dataset / "meta/info.json").read_text())["features"]
    features["observation.images.top"] |= {
        "shape": [HEIGHT, WIDTH, 1],
        "info": {"is_depth_map": True, "depth_max": 5.0},
    }
    path = changed(dataset, tmp_path, features=features)
    encode_depth(path / "videos/observation.images.top/chunk-000/file-000.mp4", codes)
    found = read("lerobot", path, 1, depth="observation.images.top")["depth"]
    expected = DepthCodes(most=5.0).millimetres(codes[5:])
    np.testing.assert_array_equal(found, expected)
    share = codes[5:] / 4095  # what LeRobot's formula gives, in metres
    metres = np.exp(np.log(3.51) + share * (np.log(8.5) - np.log(3.51))) - 3.5
    np.testing.assert_array_equal(found[codes[5:] > 0], np.rint(metres * 1000).astype(int)[codes[5:] > 0])
    assert (found[codes[5:] == 0] == 0).all()


def test_colours_written_as_a_video_are_close(tmp_path: Path) -> None:
    episode = {**steps_of(0, 6, ALONE), "image": shades(6)[:, :, :6, :8]}
    sink = write("lerobot", tmp_path / "out", [episode, {**episode, "image": shades(6, 4)[:, :, :6, :8]}], video=True)
    assert sink.lost == {"image": "as mp4 (video=true), colours are not exact"}
    found = read("lerobot", tmp_path / "out", 1)
    assert np.abs(found["image"].astype(int) - shades(6, 4)[:, :, :6, :8]).max() <= 2
    assert (tmp_path / "out/videos/observation.images.camera/chunk-000/file-001.mp4").is_file()
    with pytest.raises(InputError, match=r"video: expected images of even height and width, got 5 x 8"):
        lerobot_video.write_color(tmp_path / "odd.mp4", shades(2)[:, :, :5, :8], RATE)


def test_what_is_written_is_laid_out_as_lerobot_reads_it(tmp_path: Path) -> None:
    episodes = [steps_of(0), steps_of(1, 7)]
    write("lerobot", tmp_path / "out", episodes)
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_episodes"], info["total_frames"]) == ("v3.0", 10, 2, 11)
    assert info["splits"] == {"train": "0:2"} and info["video_path"] is None
    table = parquet.read_table(tmp_path / "out/data/chunk-000/file-000.parquet")
    assert set(table.column_names) == set(info["features"])
    assert table.schema.field("observation.state").type == arrow.list_(arrow.float32(), 3)
    assert table.schema.field("next.reward").type == arrow.float32()
    assert table.schema.field("observation.images.camera_depth").type.field("bytes").type == arrow.binary()
    assert table.column("index").to_pylist() == list(range(11))
    assert table.column("timestamp").to_pylist()[:2] == pytest.approx([0, 0.1])
    rows = parquet.read_table(tmp_path / "out/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [(row["dataset_from_index"], row["dataset_to_index"], row["length"]) for row in rows] == [
        (0, 4, 4),
        (4, 11, 7),
    ]
    assert rows[0]["tasks"] == [FACTS.task]
    np.testing.assert_allclose(rows[1]["stats/action/mean"], episodes[1]["action"].mean(0), rtol=1e-6)
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())
    together = np.concatenate([episode["action"] for episode in episodes])
    np.testing.assert_allclose(stats["action"]["std"], together.std(0), rtol=1e-6)
    np.testing.assert_allclose(stats["action"]["max"], together.max(0))
    assert stats["action"]["count"] == [11]
    assert np.shape(stats["observation.images.camera"]["mean"]) == (3, 1, 1)
    tasks = parquet.read_table(tmp_path / "out/meta/tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    assert tasks.to_pylist() == [{"task_index": 0, "task": FACTS.task}]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"codebase_version": "v2.1"}, r"expected codebase_version v3\.0, got 'v2\.1'; LeRobot's own"),
        ({"features": None}, r"expected features, fps and data_path"),
        ({"features": {"action": {"dtype": "float32", "shape": [-1]}}}, r"features\.action: expected dtype and shape"),
        ({"total_episodes": 3}, r"lists 2 episodes, but total_episodes .* is 3; get the dataset again, or .*skip_bad"),
        ({"fps": 0}, r"fps: expected a number above 0, got 0"),
        ({"data_path": "../{chunk_index}/{file_index}"}, r"leads outside the dataset, where nothing is read"),
        ({"data_path": "/etc/{chunk_index}"}, r"leads outside the dataset, where nothing is read"),
        ({"data_path": "data/{other}"}, r"'data/\{other\}' does not name files"),
        ({"data_path": "data/none.parquet"}, r"data/none\.parquet: is no Parquet file that can be read"),
    ],
)
def test_a_wrong_info_is_named(dataset: Path, tmp_path: Path, values: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        read("lerobot", changed(dataset, tmp_path, **values))


def test_each_fault_of_the_files_is_named(dataset: Path, tmp_path: Path) -> None:
    data, meta = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
    video = "videos/observation.images.top/chunk-000/file-000.mp4"

    def told(file: str, break_it: Any, match: str) -> None:
        shutil.rmtree(tmp_path / "broken", ignore_errors=True)
        shutil.copytree(dataset, tmp_path / "broken")
        break_it(tmp_path / "broken" / file)
        with pytest.raises(InputError, match=match):
            read("lerobot", tmp_path / "broken", 1)

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])

    def rewritten(**columns: Any) -> Any:
        def write_again(path: Path) -> None:
            table = parquet.read_table(path)
            for name, values in columns.items():
                place = table.column_names.index(name)
                table = table.remove_column(place)
                table = table if values is None else table.append_column(name, values)
            parquet.write_table(table, path)

        return write_again

    told(data, cut, r"file-000\.parquet: is no Parquet file that can be read, or cut")
    told(meta, cut, r"meta/episodes/.*: is no Parquet file")
    told(video, cut, r"file-000\.mp4: cannot be read as a video of such images")
    told(video, Path.unlink, r"file-000\.mp4: is missing; get it again, or leave this episode out")
    told(meta, Path.unlink, r"meta/episodes: holds no episodes; is the dataset complete")
    told(data, rewritten(action=None), r"has no column action, which meta/info\.json lists")
    told(data, rewritten(action=arrow.array(["word"] * 8)), r"action: expected numbers \(2,\) a step.*got string")
    told(data, rewritten(action=arrow.array([[1.0, None]] * 8)), r"action: NaN or infinity at step 0")
    told(
        data,
        rewritten(episode_index=arrow.array([0] * 7 + [1])),
        r"episode 1: expected 3 rows, one after the other, got 1",
    )
    told(data, rewritten(episode_index=arrow.array([1, 0, 0, 0, 0, 0, 1, 1])), r"expected 3 rows, one after the other")


def test_episodes_that_are_not_listed_or_twice_are_told(dataset: Path, tmp_path: Path) -> None:
    path = changed(dataset, tmp_path, total_episodes=3)
    source = opened("lerobot", path, skip_bad=True)
    assert source.lost["episodes"].startswith("meta/episodes lists 2, but total_episodes") and len(source.episodes) == 2
    source.close()
    table = path / "meta/episodes/chunk-000/file-000.parquet"
    shutil.copy(table, table.with_name("file-001.parquet"))
    for skip_bad in (False, True):
        with pytest.raises(InputError, match=r"meta/episodes: lists episode 0 twice; get the dataset again"):
            opened("lerobot", path, skip_bad=skip_bad)


def test_pyarrow_that_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"format: lerobot needs pyarrow .*pip install 'sodp3d\[lerobot\]'"):
        opened("lerobot", tmp_path)


def test_many_rows_of_a_file_are_read_where_they_are(tmp_path: Path) -> None:
    episodes = [steps_of(number, 1 + number % 4, ALONE) for number in range(9)]
    write("lerobot", tmp_path / "out", episodes)
    for number in (8, 0, 5):
        assert_equal(read("lerobot", tmp_path / "out", number), episodes[number])
