"""What the results command writes: the same bytes from the same runs, and no file of others replaced."""

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_results import break_runs, make_run, make_toy_collection, page_of
from toy_store import make_store

from sodp3d.core.errors import InputError
from sodp3d.core.files import replace_file
from sodp3d.core.paths import CHECKOUT
from sodp3d.data.hashing import data_hash
from sodp3d.data.store import EpisodeStore
from sodp3d.results import escape
from sodp3d.results.__main__ import RECORDS, default_sources, main, make_results, make_tables
from sodp3d.results.archive import unpacked
from sodp3d.results.figures import plan_figures
from sodp3d.results.groups import group_runs
from sodp3d.results.output import MARK, write_all
from sodp3d.results.pages import make_pages
from sodp3d.results.scan import scan, shown
from sodp3d.results.tables import settings_table
from sodp3d.tools import markdown


@pytest.mark.usefixtures("undrawn")
def test_unfinished_and_broken_runs_are_listed_and_in_no_table(tmp_path: Path) -> None:
    good = make_run(tmp_path, "finetune", 5, validations=[0.2])
    with (good / "metrics.jsonl").open("a") as file:
        file.write('{"step": 900, "train/lo')  # torn by a kill
    break_runs(tmp_path)
    found = scan([tmp_path])
    assert [run.path for run in found.runs] == [good] and len(found.unfinished) == 1 and len(found.broken) == 6
    make_results([tmp_path], tmp_path / "made")
    page = (tmp_path / "made" / "tables.md").read_text()
    shown, left_out = page.split("## Left out")
    assert "not finished: 100 steps" in left_out and all(f"202601{day}-" in left_out for day in range(10, 17))
    assert "202601" not in shown and "50 [24, 76]" in shown
    assert str(tmp_path) not in page


@pytest.mark.usefixtures("undrawn")
def test_nothing_at_all_still_makes_the_tables(tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    paths = make_results([tmp_path / "outputs"], tmp_path / "made")
    page = (tmp_path / "made" / "tables.md").read_text()
    assert "| ours | fine-tuned with BC | - | - | - | - |" in page
    names = ["headline.md", "tables.md", "settings.md", "headline.png", "generated.txt"]
    assert [path.name for path in paths] == names
    with pytest.raises(InputError, match="holds neither outputs/ nor data/"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sodp3d.results.__main__.CHECKOUT", None)
        patch.setenv("SODP3D_ROOT", str(tmp_path / "made"))
        default_sources()


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of no content, for tests of other files: drawing takes a second each."""
    for name in ("draw_headline", "draw_finetuning", "draw_collection"):
        monkeypatch.setattr(f"sodp3d.results.figures.{name}", lambda *_: b"png")


@pytest.fixture(scope="module")
def three_folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs and a store in folders of their own, with the same names of runs in two of them."""
    folders = [tmp_path_factory.mktemp("part") for _ in range(3)]
    for number, folder in enumerate(folders):
        for seed in range(2):
            make_run(folder, "finetune", number + seed, seed, best=5, validations=[0.1, 0.2], data_hash=str(number))
    break_runs(folders[0])
    make_toy_collection(folders[1])
    return folders


def test_the_same_bytes_twice(three_folders: list[Path], tmp_path: Path) -> None:
    first, second = page_of(three_folders, tmp_path / "1"), page_of(three_folders, tmp_path / "2")
    assert first == second and len(first) > 5


@given(st.permutations([0, 1, 2, 0]), st.booleans())
@settings(max_examples=10, deadline=None)
def test_tables_do_not_depend_on_the_order_of_folders(
    three_folders: list[Path], order: list[int], nested: bool
) -> None:
    folders = [three_folders[index] for index in order] + ([three_folders[2] / "outputs"] if nested else [])
    assert pages_of(folders) == pages_of(three_folders)


def pages_of(sources: Sequence[Path]) -> dict[str, bytes]:
    """Pages and CSV files, without figures being drawn."""
    with unpacked(sources) as folders:
        tables, groups, stores = make_tables(scan(folders))
        figures = plan_figures(tables, groups, stores)
        return make_pages(tables, groups, [(figure.title, figure.file) for figure in figures])


def test_figures_are_small_and_drawn(three_folders: list[Path], tmp_path: Path) -> None:
    paths = [path for path in make_results(three_folders, tmp_path) if path.suffix == ".png"]
    assert [path.name for path in paths] == ["headline.png", "curves_adroit_door_pointcloud.png", "collection_toy.png"]
    for path in paths:
        assert path.stat().st_size < 150_000
        pixels = matplotlib.image.imread(path)
        colours = {tuple(colour) for colour in np.round(255 * pixels[..., :3]).astype(int).reshape(-1, 3)}
        assert (0, 0x72, 0xB2) in colours, "the line of fine-tuning with BC, or of the agent's evaluations"


@pytest.mark.usefixtures("undrawn")
def test_rows_lead_to_their_runs(tmp_path: Path) -> None:
    directory = make_run(tmp_path, "finetune", 5, best=6)
    found = scan([tmp_path])
    (row,) = settings_table(group_runs(found.runs), {})
    assert (row["runs"], row["seeds"], row["metric"]) == (shown(directory), "0", "count")
    assert [str(row[f"{which} count"]) for which in ("last", "best")] == ["50 [24, 76]", "60 [31, 83]"]
    make_results([tmp_path], tmp_path / "made")
    lines = (tmp_path / "made" / "runs.csv").read_text().splitlines()
    values = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    assert (values["best count"], values["data_hash"], values["directory"]) == ("0.6", "d", found.runs[0].name)


@pytest.mark.usefixtures("undrawn")
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, "pretrain", 5)
    assert main([str(tmp_path), "--output", str(tmp_path / "made")]) == 0
    assert str(tmp_path / "made" / "tables.md") in capsys.readouterr().out
    assert main([str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert "no such folder" in error and "Traceback" not in error
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path), "--output", str(tmp_path / "file")]) == 2


@pytest.mark.usefixtures("undrawn")
def test_collection_is_told_from_store_and_agent(tmp_path: Path) -> None:
    folder = make_toy_collection(tmp_path)
    make_results([tmp_path], tmp_path / "made")
    (row,) = make_tables(scan([tmp_path]))[0]["collection"]
    assert (row["transitions"], row["episodes"], row["wall time"], row["frames/s"]) == (108, 12, 54.0, 2.0)
    # Of 12 episodes every second, every third, and those of either succeed.
    assert [row[f"kept {metric}"] for metric in ("final", "count", "any")] == pytest.approx([6 / 12, 4 / 12, 8 / 12])
    assert (row["agent, last"], row["agent, best"], row["agent"], row["commit"]) == (0.8, 0.9, "toy", "c" * 12)
    assert row["command"] == "python data_collection/collect.py env=toy"
    files = [path for path in (folder / "episodes.zarr").rglob("*") if path.is_file()]
    assert row["megabytes"] * 1e6 == pytest.approx(sum(path.stat().st_size for path in files))
    page = (tmp_path / "made" / "tables.md").read_text()
    assert "(figures/collection_toy.png)" in page and "| 54.0 |" not in page and "0.9 min" in page


@pytest.mark.usefixtures("undrawn")
def test_how_experience_was_made_and_how_it_succeeds_over_time_stand_in_the_tables(tmp_path: Path) -> None:
    prior = {"kind": "scripted", "episodes": 4, "steps": 36}
    folder = make_toy_collection(tmp_path, prior)
    name = data_hash(EpisodeStore.open(folder / "episodes.zarr"))
    make_run(tmp_path, "pretrain", 5, data_hash=name)
    make_run(tmp_path, "pretrain", 5, seed=1, data_hash="of something else")
    made = page_of([tmp_path], tmp_path / "made")
    tables = make_tables(scan([tmp_path]))[0]
    assert tables["collection"][0]["prior data"] == "4 scripted episodes"
    told = "toy with 4 scripted episodes"
    assert [row["data made by"] for row in tables["runs"]] == [told, None]
    assert sorted(str(row["data made by"]) for row in tables["settings"]) == ["None", told]
    (row,) = tables["kept"]
    # By `count`, every third episode succeeds: 0 and 3 of the expert's four; 6 and 9 of the agent's eight.
    rates = [row["scripted"], *(row[f"to {10 * number} %"] for number in range(1, 11))]
    assert rates == [0.5, 0.0, 0.0, 1.0, None, 0.0, 0.0, None, 1.0, 0.0, 0.0]
    assert row["made by"] == told and told in made["tables.md"].decode() and told in made["runs.csv"].decode()
    assert "## Success of kept episodes over time" in made["tables.md"].decode()
    records = tmp_path / "records.tar.xz"
    make_results([tmp_path], tmp_path / "made", keep=records)
    assert page_of([records], tmp_path / "kept")["kept.csv"] == made["kept.csv"], "records keep the label"


def test_a_store_of_an_earlier_release_has_tenths_alone(tmp_path: Path) -> None:
    make_toy_collection(tmp_path)
    (row,) = make_tables(scan([tmp_path]))[0]["kept"]
    assert (row["scripted"], row["made by"]) == (None, "toy")
    rates = [row[f"to {10 * number} %"] for number in range(1, 11)]
    assert all(rate is not None for rate in rates) and rates[0] == 0.5


def test_empty_and_damaged_stores_are_listed(tmp_path: Path) -> None:
    make_store(tmp_path / "data" / "empty" / "episodes.zarr", [])
    damaged = make_toy_collection(tmp_path)
    next((damaged / "episodes.zarr" / "data" / "action").glob("0*")).unlink()
    tables = make_tables(scan([tmp_path]))[0]
    assert tables["collection"] == [] and [row["directory"] for row in tables["unfinished"]] == [
        "data/empty",
        "data/toy",
    ]


def test_the_shipped_records_make_the_published_tables() -> None:
    assert CHECKOUT is not None
    made = pages_of([CHECKOUT / RECORDS])
    published = {name: (CHECKOUT / "results" / name).read_bytes() for name in made}
    changed = [name for name in made if made[name] != published[name]]
    assert not changed, f"{changed}: run `make results` and look at what has changed"
    listed = [line.split("  ") for line in (CHECKOUT / "results/generated.txt").read_text().splitlines()[1:]]
    tables = {name for name in made if not name.endswith(".md")}
    assert tables <= {name for _, name in listed}, "`make results` would not replace what it does not list"
    for digest, name in listed:
        assert hashlib.sha256((CHECKOUT / "results" / name).read_bytes()).hexdigest().startswith(digest), name
    assert len(listed) > 20


@pytest.mark.usefixtures("undrawn")
def test_a_file_that_was_not_made_here_is_never_replaced(tmp_path: Path) -> None:
    make_run(tmp_path, "finetune", 5)
    output = tmp_path / "made"
    make_results([tmp_path / "outputs"], output)
    make_results([tmp_path / "outputs"], output)  # its own files it replaces
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    for name in ("tables.md", "settings.csv", "figures/headline.png", "generated.txt"):
        (output / name).write_text("mine\n")
        with pytest.raises(InputError, match=f"{name}: was not made by `sodp3d results`"):
            make_results([tmp_path / "outputs"], output)
        assert (output / name).read_text() == "mine\n"
        (output / name).write_bytes(before[output / name])
        assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    assert (output / "tables.md").read_text().startswith(f"{MARK}\n")


def test_after_a_kill_at_any_file_the_same_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {"a.csv": b"1", "b.csv": b"2", "tables.md": f"{MARK}\nold".encode()}
    after = {"b.csv": b"3", "figures/c.png": b"4", "tables.md": f"{MARK}\nnew".encode()}
    written = []

    def replace_until_killed(path: Path, content: bytes) -> None:
        if len(written) == last:
            raise KeyboardInterrupt
        written.append(path)
        replace_file(path, content)

    for last in range(len(after) + 2):  # the list is written before them, and after them
        output = tmp_path / str(last)
        write_all(output, before)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            written.clear()
            patch.setattr("sodp3d.results.output.replace_file", replace_until_killed)
            write_all(output, after)
        write_all(output, after)
        assert {name: (output / name).read_bytes() for name in {**before, **after}} == {**before, **after}
        assert len((output / "generated.txt").read_text().splitlines()) == 4, "a line of each, but for the page"
        (output / "b.csv").write_bytes(b"2")
        with pytest.raises(InputError, match=r"b\.csv: was not made by `sodp3d results`, or was changed since"):
            write_all(output, after)


@pytest.mark.usefixtures("undrawn")
def test_names_from_runs_and_stores_are_shown_as_they_are(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)> | [x](javascript:alert(1)) `b` *c* https://example.com www.example.com"
    make_run(tmp_path, "finetune", 5, offline=f"=HYPERLINK({evil})")
    make_run(tmp_path, "finetune", 5, day=2, offline="-2")
    make_toy_collection(tmp_path).rename(tmp_path / "data" / "=toy (a)[b] <b>")
    make_results([tmp_path], tmp_path / "made")
    pages = (tmp_path / "made/settings.md").read_text() + (tmp_path / "made/tables.md").read_text()
    assert "&lt;img src=x" in pages and "\\[x\\](javascript" in pages
    assert "<img" not in pages and "[x](" not in pages and "<b>" not in pages
    assert "https&#58;//example.com" in pages and "://" not in pages and "www." not in pages
    assert (tmp_path / "made/figures/collection__toy_a_b_b_.png").exists()
    (store,) = csv.DictReader((tmp_path / "made/collection.csv").read_text().splitlines())
    assert store["store"] == "data/=toy (a)[b] <b>"
    for section in ("## Collection", "## Success of kept"):
        table = pages.split(section)[1].split("\n## ")[0]
        widths = {line.replace("\\|", "").count("|") for line in table.splitlines() if "data/" in line}
        assert widths == {table.split("| store")[1].splitlines()[1].count("|")}


@pytest.mark.parametrize(
    ("text", "cell"),
    [("=1+1", "'=1+1"), ("-5", "-5"), ("+1e-3", "+1e-3"), (" @x", "' @x"), ("-x", "'-x"), ("plain", "plain")],
)
def test_csv_cells_are_no_formulas(text: str, cell: str) -> None:
    assert escape.csv_cell(text) == cell


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_escaped_text_is_one_cell_without_markup(text: str) -> None:
    shown = markdown.escape(text)
    bare = shown
    for character in "\\`*[]|":
        bare = bare.replace(f"\\{character}", "")
    assert not set(bare) & set("\\`*[]|<>\n") and "://" not in bare and "www." not in bare
    assert "\n" not in escape.code(text)
