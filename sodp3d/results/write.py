"""Write tables as Markdown, CSV and JSON. The same inputs give the same bytes."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sodp3d.core.files import write_json, write_text
from sodp3d.results.groups import Estimate
from sodp3d.results.paper import TASKS
from sodp3d.results.tables import Record

_EXPLAINED = """
Success in %. **ours**: the task's headline metric on test episodes, whose seeds no training and no choice of a
checkpoint used. Measure `best` is the checkpoint with the highest validation (on other seeds), which `mode=eval` takes
by default; `last` is the last one. Brackets hold the 95 % Wilson interval of all episodes, ± the deviation over seeds.
**top 5** is the paper's and DP3's measure, the mean of the five highest evaluations during training (of all where
fewer were made); it flatters, as it chooses by what it reports. The average is over the three tasks, and only where
all three are there; the paper's are as printed. `-`: not measured. `S1` ... name rows of the table of all settings;
where a method was run with several, the one with the most seeds stands here, then the one with the most episodes, then
the newest, whatever their success.
"""
_SETTINGS = """
Runs that differ in nothing but their seed are one row (the newest run of each seed); `differs by` names what sets it
apart from the others of the same task, observation and stage. `last` and `best` with all three success metrics;
`before` and `top 5` with the headline metric. Steps are gradient steps of pre-training, environment steps of
fine-tuning. Wall time is a run's, with its evaluations and videos (of runs that did not note it yet: from
TensorBoard's first to its last record).
"""
_COLLECTION = """
`kept`: success of the episodes in the store; `agent`: of its evaluation episodes, without noise. Wall time is the
agent's, with offline learning and evaluations; frames/s are kept transitions, each with its depth frame, over that
time. Megabytes are the store's files, conversions included.
"""
_SECTIONS = {  # key of the table: (heading, note)
    "table8": ("Table 8: Adroit", ""),
    "table9": ("Table 9: what the regularizer does, from point clouds", ""),
    "settings": ("All settings", _SETTINGS),
    "evaluations": ("Evaluations and samplers (`mode=eval`)", ""),
    "collection": ("Collection", _COLLECTION),
    "runs": ("Runs", "How each number can be made again: the commit, the data, the command."),
    "unfinished": ("Left out", "Unfinished or unreadable, and in none of the tables."),
}
_HEADINGS = {task: task.removeprefix("adroit_") for task in TASKS}


def write_all(output: Path, tables: Mapping[str, Sequence[Record]], figures: Sequence[tuple[str, str]]) -> list[Path]:
    """Write tables.md, results.json and a CSV file for each long table into `output`; `figures`: (title, file).

    Raises OSError where it cannot be written.
    """
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "tables.md", markdown(tables, figures))
    write_json(output / "results.json", {"schema": 1, **{name: _plain(rows) for name, rows in tables.items()}})
    paths = [output / "tables.md", output / "results.json"]
    for name in ("settings", "evaluations", "collection", "runs"):
        if tables[name]:
            paths.append(output / f"{name}.csv")
            write_text(paths[-1], comma_separated(tables[name]))
    return paths


def markdown(tables: Mapping[str, Sequence[Record]], figures: Sequence[tuple[str, str]]) -> str:
    """All tables and figures on one page."""
    page = ["# Tables", "", "Made by `python -m sodp3d.results` from run directories and stores; not to be edited.", ""]
    page += [_EXPLAINED.strip(), ""]
    for name, (heading, note) in _SECTIONS.items():
        page += [f"## {heading}", "", *([note.strip(), ""] if note else [])]
        rows = tables[name]
        page += (_details(rows) if name == "runs" else _table(rows)) if rows else ["None."]
        page += [""]
        if name == "collection":
            page += [f"* `{row['store']}`: `{row['command']}`" for row in rows] + [""] * bool(rows)
        if name in ("settings", "collection"):
            kind = "curves" if name == "settings" else "collection"
            page += [line for title, file in figures if kind in file for line in (f"![{title}]({file})", "")]
    return "\n".join(page).rstrip() + "\n"


def _table(rows: Sequence[Record]) -> list[str]:
    columns = [column for column in rows[0] if column != "command"]
    columns = [column for column in columns if any(row[column] is not None for row in rows) or column in TASKS]
    lines = [[_HEADINGS.get(column, column) for column in columns], ["---"] * len(columns)]
    lines += [[_cell(column, row[column]) for column in columns] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _details(rows: Sequence[Record]) -> list[str]:
    """One item for each run, as commands are too long for columns."""
    lines = []
    for row in rows:
        facts = [f"commit {row['commit']}", f"data {row['data_hash'] or '-'}", f"seed {row['seed']}"]
        facts += [f"wall time {_cell('wall time', row['wall time'])}"]
        facts += [f"videos: {row['videos']}"] if row["videos"] else []
        lines += [f"* **{row['run']}** `{row['directory']}` ({'; '.join(facts)})  ", f"  `{row['command']}`"]
    return lines


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if column == "wall time":
        return f"{value / 60:.0f} min" if value >= 600 else f"{value / 60:.1f} min"
    if column in ("frames/s", "megabytes"):
        return f"{value:.1f}"
    if column in ("eta", "sigma_floor"):
        return str(value)
    if isinstance(value, float):
        return f"{100 * value:.1f}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def comma_separated(rows: Sequence[Record]) -> str:
    """CSV with a header; rates 0..1, seconds, and four columns for each estimate."""
    flat = [_spread(row) for row in rows]
    columns = list(dict.fromkeys(column for row in flat for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _spread(row: Record) -> Record:
    flat: Record = {}
    for column, value in row.items():
        if isinstance(value, Estimate):
            bounds = {"low95": value.low, "high95": value.high, "deviation": value.deviation}
            flat |= {column: value.rate, **{f"{column} {name}": bound for name, bound in bounds.items()}}
        else:
            flat[column] = value
    return flat


def _plain(rows: Sequence[Record]) -> list[Record]:
    return [
        {column: asdict(value) if isinstance(value, Estimate) else value for column, value in row.items()}
        for row in rows
    ]
