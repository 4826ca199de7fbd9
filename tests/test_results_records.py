"""Records of runs and stores in one file: small, safe to unpack, and enough to make all tables again."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from toy_results import make_run, make_toy_collection, page_of

from sodp3d.core.errors import InputError
from sodp3d.results.__main__ import make_results, make_tables
from sodp3d.results.archive import pack, unpack, unpacked
from sodp3d.results.scan import scan
from sodp3d.tools.card import MARK


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of no content: drawing takes a second each."""
    for name in ("draw_headline", "draw_finetuning", "draw_collection"):
        monkeypatch.setattr(f"sodp3d.results.figures.{name}", lambda *_: b"png")


def test_kept_records_make_the_same_tables_when_runs_and_stores_are_gone(tmp_path: Path) -> None:
    work, records = tmp_path / "work", tmp_path / "records.tar.xz"
    planner = make_run(work, "pretrain", 5)
    make_run(work, "finetune", 6, best=7, validations=[0.1, 0.2], planner=planner)
    card = make_toy_collection(work) / "README.md"
    row = f"| versions command | {tmp_path}/data_collection/collect.py env=toy"
    card.write_text(f"{MARK}\n# toy\n\n{row} |\n\n## Samples\n\n![depth](card/depth.png)\n")
    made = page_of([work], tmp_path / "made")
    make_results([work], tmp_path / "again", keep=records)
    assert page_of([records], tmp_path / "kept") == made
    assert page_of([records, work], tmp_path / "both") == made, "nothing is counted twice"
    first = records.read_bytes()
    unpack(records, tmp_path / "unpacked")
    kept = [path for path in (tmp_path / "unpacked").rglob("*") if path.is_file()]
    (copy,) = [path for path in kept if path.name == "card.md"]
    assert copy.read_text() == f"{MARK}\n# toy\n\n| versions command | python data_collection/collect.py env=toy |\n"
    assert sum(path.stat().st_size for path in kept) < 20_000 and len(first) < 10_000
    assert not [path for path in kept if str(tmp_path) in path.read_text()], "no path of the machine"
    make_results([work], tmp_path / "again", keep=records)
    assert records.read_bytes() == first, "refreshed, and the same bytes"


def test_a_record_of_other_data_of_the_same_name_is_not_overwritten(tmp_path: Path) -> None:
    make_toy_collection(tmp_path)
    records = tmp_path / "records.tar.xz"
    make_results([tmp_path], tmp_path / "made", keep=records)
    unpack(records, tmp_path / "unpacked")
    kept = next((tmp_path / "unpacked").rglob("store.json"))
    facts = json.loads(kept.read_text())
    kept.write_text(json.dumps(facts | {"data_hash": "0" * 16, "earlier_hash": None}))
    pack(tmp_path / "unpacked", records)
    before = records.read_bytes()
    with pytest.raises(InputError, match=r"--keep: .*record of data 0{16} .*, not of v2-.*rename"):
        make_results([tmp_path / "data"], tmp_path / "made", keep=records)
    assert records.read_bytes() == before
    with pytest.raises(InputError, match=r"--keep: .*record of data .*, not of .*rename"):
        make_results([tmp_path / "data", records], tmp_path / "made", keep=tmp_path / "fresh.tar.xz")
    assert not (tmp_path / "fresh.tar.xz").exists()
    with pytest.raises(InputError, match=r"--keep: expected a file name that ends with \.tar\.xz"):
        make_results([tmp_path / "data"], tmp_path / "made", keep=tmp_path / "fresh")


def test_a_record_of_another_run_of_the_same_name_is_not_overwritten(tmp_path: Path) -> None:
    one, other = make_run(tmp_path / "one", "finetune", 5), make_run(tmp_path / "other", "finetune", 6)
    records = tmp_path / "records.tar.xz"
    for _ in range(2):  # its own record is brought up to date
        make_results([one], tmp_path / "made", keep=records)
    before = records.read_bytes()
    with pytest.raises(InputError, match=r"--keep: .*record of another run as outputs/finetune/\S+, .*rename"):
        make_results([other], tmp_path / "made", keep=records)
    assert records.read_bytes() == before
    with pytest.raises(InputError, match=r"--keep: .*record of another run as outputs/finetune/\S+, .*rename"):
        make_results([one, other], tmp_path / "made", keep=tmp_path / "fresh.tar.xz")
    assert not (tmp_path / "fresh.tar.xz").exists()


def test_a_record_of_an_earlier_release_is_known_again_and_brought_up_to_date(tmp_path: Path) -> None:
    make_toy_collection(tmp_path)
    records = tmp_path / "records.tar.xz"
    make_results([tmp_path / "data"], tmp_path / "made", keep=records)
    current = records.read_bytes()
    unpack(records, tmp_path / "old")
    kept = next((tmp_path / "old").rglob("store.json"))
    facts = json.loads(kept.read_text())
    old = {name: value for name, value in facts.items() if name not in ("earlier_hash", "learned_hashes")}
    kept.write_text(json.dumps(old | {"data_hash": facts["earlier_hash"]}))
    pack(tmp_path / "old", records)
    with unpacked([tmp_path / "data", records]) as folders:
        (row,) = make_tables(scan(folders))[0]["collection"]
    assert row["data_hash"] == facts["data_hash"], "one row, of the data itself"
    make_results([tmp_path / "data"], tmp_path / "made", keep=records)
    assert records.read_bytes() == current


def archive_of(path: Path, member: tarfile.TarInfo, content: bytes = b"x") -> Path:
    member.size = len(content) if member.isreg() else 0
    with tarfile.open(path, "w:xz") as tar:
        tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["/tmp/evil", "../evil", "a/../../evil", "a\\..\\evil"])
def test_paths_out_of_an_archive_are_refused(tmp_path: Path, name: str) -> None:
    archive = archive_of(tmp_path / "a.tar.xz", tarfile.TarInfo(name))
    with pytest.raises(InputError, match="points outside the archive"):
        unpack(archive, tmp_path / "in")
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_an_archive_are_refused(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("link")
    member.type, member.linkname = kind, "target"
    with pytest.raises(InputError, match="is a link or a device"):
        unpack(archive_of(tmp_path / "a.tar.xz", member), tmp_path / "in")


def test_damaged_and_too_large_archives_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_of(tmp_path / "a.tar.xz", tarfile.TarInfo("a"), bytes(range(256)) * 40)
    with monkeypatch.context() as patch, pytest.raises(InputError, match="holds more than"):
        patch.setattr("sodp3d.results.archive._MOST_BYTES", 1000)
        unpack(archive, tmp_path / "in")
    for content in (b"no archive", archive.read_bytes()[:-20]):
        archive.write_bytes(content)
        with pytest.raises(InputError, match=r"not a readable \.tar\.xz file"):
            unpack(archive, tmp_path / "in")
