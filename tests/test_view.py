"""The page to look at data: its contents, and what a real browser draws when the slider moves."""

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from scipy import stats
from test_conversion import CONFIG
from toy_store import ATTRIBUTES, SPECIFICATION, episode, make_store, metadata

from sodp3d.data.conversion import convert_store
from sodp3d.data.store import EpisodeStore
from sodp3d.tools.view import main, write_view

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="needs a Chromium browser: apt-get install chromium")

# Moves the sliders as a hand does, then copies the WebGL picture of the cloud into the document.
DRIVER = """<script>
function drive(moves, drawn) {
  if (document.body.dataset.drawn === drawn) {
    Plotly.toImage("cloud", {format: "png", width: 300, height: 300}).then(uri => {
      const image = document.createElement("img");
      image.id = "copy";
      image.src = uri;
      document.body.append(image);
    });
  } else setTimeout(() => drive(moves, drawn), 100);
}
for (const [name, value] of @MOVES@) {
  if (name === "key") {
    document.body.dispatchEvent(new KeyboardEvent("keydown", {key: value, bubbles: true}));
    continue;
  }
  document.getElementById(name).value = value;
  document.getElementById(name).dispatchEvent(new Event("input"));
}
drive([], "@DRAWN@");
</script>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_store(folder / "episodes.zarr", range(4), length=7)
    convert_store(folder / "episodes.zarr", CONFIG)
    return folder


def page_data(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)
    assert found
    return json.loads(found.group(1))


def test_holds_the_stores_own_numbers(folder: Path) -> None:
    data = page_data(write_view(folder))
    assert [shown["index"] for shown in data["episodes"]] == [0, 1, 2, 3]
    assert "4 of 4 episodes, up to 50 evenly spaced frames" in data["note"]
    for shown in data["episodes"]:
        values = episode(shown["index"], 7)
        assert shown["seed"] == shown["index"] and shown["return"] == pytest.approx(shown["index"] / 3)
        actions = np.frombuffer(base64.b64decode(shown["actions"]), "<f4").reshape(7, 3)
        np.testing.assert_array_equal(actions, values["action"])
        for frame in shown["frames"]:
            depth = np.frombuffer(base64.b64decode(frame["depth"]), "<u2").reshape(12, 12)
            np.testing.assert_array_equal(depth, values["depth"][frame["step"]])
            cloud = np.frombuffer(base64.b64decode(frame["cloud"]), "<i2").reshape(-1, 3) / 1000
            store = EpisodeStore.open(folder / "episodes.zarr")
            stored = store.read("point_cloud", shown["index"], shown["index"] + 1)[frame["step"]]
            np.testing.assert_allclose(cloud, stored, atol=5.1e-4)


def test_is_self_contained(folder: Path) -> None:
    page = write_view(folder, output=folder / "other.html")
    text = page.read_text()
    # Inside plotly.js there are addresses of map tiles; the page itself asks for nothing.
    assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="http', text)
    assert "@DATA@" not in text and "@PLOTLY@" not in text
    assert page.stat().st_size < 8e6


def test_size_stays_near_15_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(tmp_path / "episodes.zarr", range(30), length=9)
    monkeypatch.setattr("sodp3d.tools.view._BYTES", 30_000)
    data = page_data(write_view(tmp_path))
    assert len(data["episodes"]) == 10
    assert [shown["index"] for shown in data["episodes"]][::9] == [0, 29]
    assert {len(shown["frames"]) for shown in data["episodes"]} == {7}
    assert sum(len(frame["depth"]) for shown in data["episodes"] for frame in shown["frames"]) <= 30_000


def test_command_line_and_odd_stores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "collect.py" in capsys.readouterr().err
    attributes = {**ATTRIBUTES, "env": "</script><b>toy"}
    with EpisodeStore.create(tmp_path / "episodes.zarr", attributes, SPECIFICATION):
        pass
    assert main([str(tmp_path)]) == 2
    assert "none of 0 episodes" in capsys.readouterr().err
    with EpisodeStore.open(tmp_path / "episodes.zarr", "a") as store:
        for number in range(2):
            store.append(episode(number), metadata(number))
    assert main([str(tmp_path), "--episodes", "1"]) == 0
    assert "view.html" in capsys.readouterr().out
    text = (tmp_path / "view.html").read_text()
    assert "<b>toy" not in text.replace("<\\/script><b>toy", "")
    data = page_data(tmp_path / "view.html")
    assert data["env"] == "</script><b>toy" and data["episodes"][0]["frames"][0]["cloud"] is None


def browse(page: Path, address: str, moves: list[tuple[str, int | str]], drawn: str, profile: Path) -> str:
    """The document after a headless browser opened the page at an address and moved the sliders."""
    driver = DRIVER.replace("@MOVES@", json.dumps(moves)).replace("@DRAWN@", drawn)
    driven = page.with_name("driven.html")
    driven.write_text(page.read_text().replace("</body>", driver + "</body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    command += [f"--user-data-dir={profile}", "--window-size=1200,1000", "--virtual-time-budget=30000", "--dump-dom"]
    result = subprocess.run([*command, f"{driven.as_uri()}#{address}"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    text = result.stdout
    return text[text.rindex("</head>") :]


def picture(uri: str) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(base64.b64decode(uri)))


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize(
    ("address", "moves", "index", "step"),
    [
        ("episode=1&frame=3", [], 1, 3),
        ("", [("episode", 2), ("frame", 5)], 2, 5),
        ("frame=3", [("key", "ArrowUp"), ("key", "ArrowRight"), ("key", "ArrowRight"), ("key", "ArrowLeft")], 1, 4),
    ],
)
def test_browser_draws_the_chosen_frame(
    folder: Path, tmp_path: Path, address: str, moves: list[tuple[str, int | str]], index: int, step: int
) -> None:
    text = browse(write_view(folder), address, moves, f"{index}/{step}", tmp_path / "profile")
    assert f'data-drawn="{index}/{step}"' in text
    assert f"episode {index}, step {step} of 7, seed {index}" in text
    # The depth heat map: 12 x 12 pixels whose green, which grows along Viridis, falls with the depth: near is bright.
    heatmap = re.search(r'<image[^>]+href="data:image/png;base64,([^"]+)"', text)
    assert heatmap
    pixels = picture(heatmap.group(1))
    assert pixels.shape[:2] == (12, 12)
    depth = episode(index, 7)["depth"][step]
    assert stats.spearmanr(pixels[..., 1].ravel(), depth.ravel()).statistic < -0.99
    # Three actions, then reward and frames at the goal: their lines rise and fall with the numbers.
    lines = [
        np.array(re.findall(r"([-\d.]+),([-\d.]+)", path), float)
        for path in re.findall(r'<g class="trace scatter[^"]*"[^>]*>.*?class="js-line"[^>]* d="([^"]+)"', text)
    ]
    values = episode(index, 7)
    assert len(lines) == 5
    for line, numbers in zip(lines, [*values["action"].T, values["reward"]], strict=False):
        across = line[:, 0] - line[0, 0]
        steps = np.rint(6 * across / across[-1]).astype(int)  # Plotly leaves points out that lie on a straight line
        assert len(steps) >= 4
        assert stats.spearmanr(line[:, 1], numbers[steps]).statistic == pytest.approx(-1)  # SVG's y grows downwards
    # The cloud, as WebGL drew it: markers coloured by height on white.
    copy = re.search(r'<img id="copy" src="data:image/png;base64,([^"]+)"', text)
    assert copy, "the browser drew no cloud"
    cloud = picture(copy.group(1))
    coloured = np.ptp(cloud[..., :3], axis=-1) > 0.3
    assert coloured.sum() > 50
