"""All tables and figures again, from run directories and stores:

python -m sodp3d.results [folders ...] --output docs/results

With --keep <folder>, small records of them are written there too; the tables can be made from those alone.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sodp3d.core.cli import exit_status
from sodp3d.core.errors import InputError
from sodp3d.core.paths import data_root, outputs_root, root
from sodp3d.results.figures import draw_figures
from sodp3d.results.groups import Group, group_runs
from sodp3d.results.keep import keep_records
from sodp3d.results.scan import Scan, scan, shown
from sodp3d.results.stores import StoreRecord
from sodp3d.results.tables import (
    Record,
    collection_table,
    evaluation_table,
    run_table,
    settings_table,
    table8,
    table9,
)
from sodp3d.results.write import write_all


def make_results(folders: Sequence[Path], output: Path, keep: Path | None = None) -> list[Path]:
    """Write tables.md, CSV and JSON into `output`, figures into `output`/figures and records into `keep`; their paths.

    Raises InputError where a folder is missing or nothing can be written.
    """
    found = scan(folders)
    tables, groups, stores = make_tables(found)
    try:
        figures = draw_figures(output / "figures", groups, stores)
        paths = write_all(output, tables, figures) + [output / file for _, file in figures]
        return paths + (keep_records(keep, found.runs, stores) if keep else [])
    except OSError as error:
        raise InputError(f"{error.filename or output}: cannot write there ({error.strerror or error}).") from error


def make_tables(found: Scan) -> tuple[dict[str, list[Record]], list[Group], list[StoreRecord]]:
    """Every table by its key, and the groups and stores they tell of; S1 ... number groups, R1 ... runs."""
    groups = group_runs(found.runs)
    stores, unreadable = _read_stores(found)
    names = {str(run.path): f"R{number}" for number, run in enumerate(found.runs, start=1)}
    tables = {
        "table8": table8(groups),
        "table9": table9(groups),
        "settings": settings_table(groups, names),
        "evaluations": evaluation_table(found.runs, names),
        "collection": collection_table(stores),
        "runs": run_table(found.runs, names),
        "unfinished": _left_out(found, unreadable),
    }
    return tables, groups, stores


def _read_stores(found: Scan) -> tuple[list[StoreRecord], list[tuple[str, str]]]:
    stores: dict[tuple[str, str], StoreRecord] = {}
    unreadable = []
    for folder in found.stores:
        try:
            record = StoreRecord.read(folder)
        except InputError as error:
            unreadable.append((shown(folder), str(error).replace(str(folder), "...")))
        else:
            known = stores.get((record.name, record.data_hash))
            if known is None or record.is_original:
                stores[record.name, record.data_hash] = record
    return list(stores.values()), unreadable


def _left_out(found: Scan, unreadable: Sequence[tuple[str, str]]) -> list[Record]:
    steps = [
        (run.name, f"not finished: {run.metrics[-1]['step'] if run.metrics else 0} steps") for run in found.unfinished
    ]
    return [{"directory": name, "why": why} for name, why in sorted([*steps, *found.broken, *unreadable])]


def main(arguments: list[str] | None = None) -> int:
    """Command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="sodp3d results", description="Make all tables and figures again.")
    default = [outputs_root(), data_root()]
    parser.add_argument("folders", type=Path, nargs="*", help="where runs and stores are (default: outputs and data)")
    parser.add_argument("--output", type=Path, default=root() / "docs" / "results", help="default: docs/results")
    parser.add_argument("--keep", type=Path, help="also write small records there, to make the tables from later")
    given = parser.parse_args(arguments)

    def job() -> None:
        paths = make_results(
            given.folders or [folder for folder in default if folder.is_dir()], given.output, given.keep
        )
        sys.stdout.write("".join(f"{path}\n" for path in paths))

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
