"""Stage 1: images as ImageNet's are cut, learning, exact resumption after a kill, and what it refuses."""

import io
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sodp3d.collection.agents.pixels import PixelEncoder
from sodp3d.collection.image_folder import ImageFolder, centre, list_images, random_crop
from sodp3d.collection.pretrain_encoder import main as command
from sodp3d.core import checkpoint
from sodp3d.core.files import read_json
from sodp3d.core.paths import CHECKOUT

torch.set_num_threads(1)
OPTIONS = [
    "stage1.epochs=4", "stage1.batch_size=8", "stage1.learning_rate=0.02", "stage1.decay_every=3", "stage1.log_every=2",
    "stage1.checkpoint_every=1", "threads=1", "workers=0", "device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noisy pictures: bright above, or bright below."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for part, count in (("train", 20), ("val", 10)):
        for name in ("above", "below"):
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                picture = random.integers(0, 80, (90 + index, 120, 3), dtype=np.uint8)
                bright = slice(0, 45) if name == "above" else slice(45, None)
                picture[bright] += 150
                Image.fromarray(picture).save(folder / part / name / f"{index}.png")
    return folder


def arguments(images: Path, folder: Path, *more: str) -> list[str]:
    return [f"images={images}", f"output={folder}/encoder.safetensors", f"root={folder}", *OPTIONS, *more]


def run(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["pretrain_encoder.py", *options])
    command()


@pytest.mark.slow
def test_it_learns_and_continues_after_a_kill_as_if_never_stopped(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run(monkeypatch, *arguments(images, straight, f"run_dir={straight}"))
    assert read_json(straight / "result.json")["accuracy"] > 0.9
    script = [sys.executable, str(CHECKOUT / "data_collection" / "pretrain_encoder.py")]
    options = arguments(images, broken, f"run_dir={broken}")
    with subprocess.Popen([*script, *options], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and checkpoint.steps(broken / "checkpoints")[-1:] < [3]:
            time.sleep(0.01)
        process.kill()
    assert not (broken / "encoder.safetensors").exists(), "it finished before it was killed: nothing is shown"
    reached = checkpoint.steps(broken / "checkpoints")[-1]
    assert 3 <= reached < 20
    run(monkeypatch, *options)
    one, other = (load_file(folder / "encoder.safetensors") for folder in (straight, broken))
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    written = (broken / "encoder.safetensors").read_bytes()
    (broken / "result.json").unlink()  # killed after the encoder was written, and before that
    run(monkeypatch, *options)
    assert read_json(broken / "result.json")["accuracy"] == read_json(straight / "result.json")["accuracy"]
    assert (broken / "encoder.safetensors").read_bytes() == written
    assert (broken / "metrics.jsonl").read_text() == (straight / "metrics.jsonl").read_text()
    encoder = PixelEncoder(0, 4, seed=5)
    encoder.load_stage1(str(straight / "encoder.safetensors"))
    assert torch.equal(encoder.network.convolutions[4].weight, one["convolutions.4.weight"])


def test_random_crops_follow_from_seed_epoch_and_place(images: Path) -> None:
    paths, labels, _ = list_images(images / "train")
    one, again, later = (ImageFolder(paths, labels, 84, seed=1, epoch=epoch) for epoch in (0, 0, 1))
    assert one[3][0].shape == (3, 84, 84) and one[3][0].dtype == np.uint8
    np.testing.assert_array_equal(one[3][0], again[3][0])
    assert not np.array_equal(one[3][0], later[3][0])


def test_random_crops_cover_the_published_areas_and_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, mirrored = [], 0
    resize = Image.Image.resize

    def noted(self: Image.Image, size: tuple[int, int], resample: int, box: tuple[int, int, int, int]) -> Image.Image:
        boxes.append(box)
        return resize(self, size, resample, box)

    monkeypatch.setattr(Image.Image, "resize", noted)
    ramp = Image.fromarray(np.arange(200, dtype=np.uint8)[None, :, None].repeat(100, 0).repeat(3, 2))
    for seed in range(400):
        crop = np.asarray(random_crop(ramp, 84, np.random.default_rng(seed)))
        mirrored += bool(crop[0, 0, 0] > crop[0, -1, 0])
    left, top, right, bottom = np.array(boxes).T
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= 200 and bottom.max() <= 100
    area, ratio = (right - left) * (bottom - top) / 20_000, (right - left) / (bottom - top)
    assert 0.07 < area.min() < 0.12 and area.max() <= 1 and 0.72 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.38
    assert 150 < mirrored < 250


def test_validation_takes_the_centre() -> None:
    columns = np.zeros((200, 400, 3), np.uint8)
    columns[:, 200:] = 255
    cut = np.asarray(centre(Image.fromarray(columns), 84))
    assert cut.shape == (84, 84, 3) and cut[:, :40].max() == 0 and cut[:, 44:].min() == 255


def test_wrong_folders_and_outputs_are_refused(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*options: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            run(monkeypatch, *options)
        assert stopped.value.code == 2
        return capsys.readouterr().err

    assert "images: name it" in refused()
    assert "no folder" in refused(f"images={tmp_path}/none", f"output={tmp_path}/x")
    for name in ("one", "two"):
        (tmp_path / "bad" / "train" / name).mkdir(parents=True)
    assert "holds no images" in refused(f"images={tmp_path}/bad", f"output={tmp_path}/x")
    (tmp_path / "bad" / "train" / "one" / "a.png").write_bytes(b"not an image")
    (tmp_path / "bad" / "val" / "three").mkdir(parents=True)
    assert "does not hold the classes of train/" in refused(f"images={tmp_path}/bad", f"output={tmp_path}/x")
    (tmp_path / "bad" / "val" / "three").rmdir()
    for name in ("one", "two"):
        (tmp_path / "bad" / "val" / name).mkdir(parents=True)
    (tmp_path / "bad" / "val" / "one" / "a.png").write_bytes(b"not an image")
    said = refused(f"images={tmp_path}/bad", f"output={tmp_path}/x", f"root={tmp_path}", *OPTIONS)
    assert "train/one/a.png cannot be read" in said
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)).save(file, "PNG")
    before, _, after = file.getvalue().rpartition(b"IDAT")
    broken = before + b"I\x00AT" + after  # a later chunk by no name: Pillow tells it with a SyntaxError
    (tmp_path / "bad" / "train" / "one" / "a.png").write_bytes(broken)
    said = refused(f"images={tmp_path}/bad", f"output={tmp_path}/x", f"root={tmp_path}", *OPTIONS)
    assert "train/one/a.png cannot be read" in said
    (tmp_path / "x").touch()
    assert "exists already and is never overwritten" in refused(f"images={images}", f"output={tmp_path}/x")
    assert "stage1.epochs: expected a whole number of at least 1, got 0" in refused(
        f"images={images}", f"output={tmp_path}/y", "stage1.epochs=0"
    )
