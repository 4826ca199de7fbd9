"""All tables and figures again, from run directories, stores and records:

sodp3d results [folders or archives ...] --output results

Without folders it reads `outputs/` and `data/`, and the published records of a checkout. With --keep <file>, small
records of all that was read are written there too; the tables can be made from those alone.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sodp3d.core.cli import exit_status
from sodp3d.core.errors import InputError
from sodp3d.core.paths import CHECKOUT, data_root, outputs_root, root
from sodp3d.results.archive import unpacked
from sodp3d.results.figures import plan_figures
from sodp3d.results.groups import Group, group_runs
from sodp3d.results.keep import keep_records
from sodp3d.results.output import write_all
from sodp3d.results.pages import make_pages
from sodp3d.results.scan import BROKEN, RunRecord, Scan, reason, scan, shown
from sodp3d.results.stores import StoreRecord
from sodp3d.results.tables import (
    Record,
    collection_table,
    evaluation_table,
    kept_table,
    labels,
    run_table,
    set_table,
    settings_table,
    table8,
    table9,
)

RECORDS = Path("results") / "records.tar.xz"  # in a checkout


def make_results(sources: Sequence[Path], output: Path, keep: Path | None = None) -> list[Path]:
    """Write pages, CSV and figures into `output` and records into the archive `keep`; the paths written.

    sources: folders that hold runs or stores, and archives of records. Raises InputError where one is missing, where a
    file is in the way that was not made by this command, or nothing can be written.
    """
    try:
        with unpacked(sources) as folders:
            found = scan(folders)
            tables, groups, stores = make_tables(found)
            figures = plan_figures(tables, groups, stores)
            pages = make_pages(tables, groups, [(figure.title, figure.file) for figure in figures])
            paths = write_all(output, pages | {figure.file: figure.draw() for figure in figures})
            return paths + ([keep_records(keep, _sound_runs(found.runs)[0], stores)] if keep else [])
    except OSError as error:
        raise InputError(f"{error.filename or output}: cannot write there ({error.strerror or error}).") from error


def make_tables(found: Scan) -> tuple[dict[str, list[Record]], list[Group], list[StoreRecord]]:
    """Every table by its key, and the groups and stores that they report."""
    runs, broken = _sound_runs(found.runs)
    groups = group_runs(runs)
    stores, unreadable = _read_stores(found)
    tables = _run_tables(runs, groups, labels(stores)) | {
        "collection": collection_table(stores),
        "kept": kept_table(stores),
        "unfinished": _left_out(found, [*broken, *unreadable]),
    }
    return tables, groups, stores


def _run_tables(
    runs: Sequence[RunRecord], groups: Sequence[Group], made_by: Mapping[str, str]
) -> dict[str, list[Record]]:
    return {
        "table9": table9(groups),
        "table8": table8(groups),
        "settings": settings_table(groups, made_by),
        "sets": set_table(groups),
        "evaluations": evaluation_table(runs, groups),
        "runs": run_table(runs, groups, made_by),
    }


def _sound_runs(runs: Sequence[RunRecord]) -> tuple[list[RunRecord], list[tuple[str, str]]]:
    """The runs of which, each alone, all tables can be made; name and reason of the others, which stop no other."""
    sound, broken = [], []
    for run in runs:
        try:
            groups = group_runs([run])
            plan_figures(_run_tables([run], groups, {}), groups, [])
        except BROKEN as error:
            broken.append((run.name, reason(error, run.path)))
        else:
            sound.append(run)
    return sound, broken


def _read_stores(found: Scan) -> tuple[list[StoreRecord], list[tuple[str, str]]]:
    """Every store once, the original rather than its record; and what cannot be read."""
    stores: list[StoreRecord] = []
    unreadable = []
    for folder in found.stores:
        try:
            record = StoreRecord.read(folder)
            collection_table([record]), kept_table([record])
        except BROKEN as error:
            unreadable.append((shown(folder), reason(error, folder)))
            continue
        same = [index for index, other in enumerate(stores) if _is_copy(record, other)]
        if not same:
            stores.append(record)
        elif record.is_original:
            stores[same[0]] = record
    return stores, unreadable


def _is_copy(record: StoreRecord, other: StoreRecord) -> bool:
    return record.name == other.name and record.is_of_the_same_data(other)


def _left_out(found: Scan, unreadable: Sequence[tuple[str, str]]) -> list[Record]:
    steps = [
        (run.name, f"not finished: {run.metrics[-1]['step'] if run.metrics else 0} steps") for run in found.unfinished
    ]
    return [{"directory": name, "why": why} for name, why in sorted([*steps, *found.broken, *unreadable])]


def default_sources() -> list[Path]:
    """`outputs/` and `data/` where they are there, and the published records of a checkout. Raises InputError."""
    folders = [folder for folder in (outputs_root(), data_root()) if folder.is_dir()]
    published = [CHECKOUT / RECORDS] if CHECKOUT and (CHECKOUT / RECORDS).is_file() else []
    if not folders + published:
        raise InputError(f"{root()}: holds neither outputs/ nor data/; name folders with runs or stores.")
    return folders + published


def main(arguments: list[str] | None = None) -> int:
    """Command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="sodp3d results", description="Make all tables and figures again.")
    parser.add_argument(
        "sources",
        type=Path,
        nargs="*",
        help="folders with runs and stores, archives of records (default: outputs/, data/, the published records)",
    )
    parser.add_argument("--output", type=Path, default=root() / "results", help="default: results/")
    parser.add_argument("--keep", type=Path, help="also write small records into this .tar.xz file, or refresh it")
    given = parser.parse_args(arguments)

    def job() -> None:
        paths = make_results(given.sources or default_sources(), given.output, given.keep)
        sys.stdout.write("".join(f"{path}\n" for path in paths))

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
