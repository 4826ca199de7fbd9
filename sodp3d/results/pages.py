"""The pages that people read and the CSV files beside them. Equal inputs give equal bytes.

headline.md holds four lines for other pages to show, tables.md success rates and figures, settings.md what was run.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sodp3d.data.experience import PARTS
from sodp3d.data.hashing import short_hash
from sodp3d.results import escape
from sodp3d.results.differences import kinds, usual_settings
from sodp3d.results.drawing import SEEN_AS
from sodp3d.results.estimates import Estimate
from sodp3d.results.groups import Group
from sodp3d.results.naming import PRETRAINED, REGULARIZED
from sodp3d.results.output import MARK
from sodp3d.results.paper import TASKS
from sodp3d.results.tables import TOP5, Record, fine_tuned, place
from sodp3d.tools import markdown

Figures = Sequence[tuple[str, str]]  # title, path below the output folder

_TABLES = """
Success in %. Square brackets hold the 95 % Wilson interval of all test episodes, ± the deviation over seeds. Test
episodes have seeds that no training and no choice of a checkpoint used. `best` is the checkpoint with the highest
validation (on other seeds), which `mode=eval` loads by default; `last` is the last one. `-`: not measured.

[settings.md](settings.md) lists all settings that were run, [runs.csv](runs.csv) every run with its command, commit
and data, [evaluations.csv](evaluations.csv) and [collection.csv](collection.csv) and
[kept.csv](kept.csv) the rest.
"""
_HEADLINE = """
Each task's rows of ours come from one pre-trained planner and equally many episodes of fine-tuning. The paper's rows
are means of its five highest evaluations during training; the next table has ours by that measure. `interactions`
are all episodes that went into a fine-tuned planner of a task: before the first update, of training, of validation.
"""
_PAPER = """
The mean of the five highest evaluations during training (of all, where fewer were made), as the paper and DP3 report
it. It flatters, because it chooses by what it reports.
"""
_ALL = """
Where a method was run with several settings, the row shows the one with most seeds, then most episodes, then the
newest. No row was chosen by its success. A pre-trained planner's row is of the test with which its fine-tuning began,
where that had more episodes than the one after pre-training.
"""
_SETS = """
Planners of several tasks, and the fine-tuning of each task from them. The mean is over tasks, each with as many
episodes; its interval takes all of them as one sample. `unseen`: the planner had not been trained on that task. Beside
this a fine-tuning of each task has its row among that task's own, as `pre-trained on <set>`.
"""
_COLLECTION = """
`kept` is the success of the episodes in the store, `agent` that of its evaluation episodes, without noise. Time is the
agent's, with offline learning and evaluations. Frames are kept transitions, each with its depth image.
"""
_KEPT = """
Success of the episodes that each store keeps, by its metric, over the agent's time: first those that a scripted expert
made, where the agent began with such, then those of each tenth of the steps that the agent made itself.
"""
_SETTINGS = """
One table for each task, observation and stage. Runs that differ in nothing but their seed are one row, the newest run
of each seed. `what differs` is told from the usual settings, which stand above the table. Steps are gradient steps of
pre-training and environment steps of fine-tuning. [settings.csv](settings.csv) has all success metrics.
"""
_EVALUATIONS = "Planners evaluated with `mode=eval`; `floor` is `evaluation.sigma_floor`. Success in %, by all metrics."
_HEADINGS = {
    **{task: task.removeprefix("adroit_") for task in TASKS},
    "measured on": "seeds x episodes",
    "obs": "seen as",
    "differs by": "what differs",
    "wall time": "time",
    "sigma_floor": "floor",
    "sampling_steps": "steps",
    "best_of": "best of",
    "data_hash": "data",
}
_STAGES = {"pretrain": "pre-training", "finetune": "fine-tuning", "distill": "distillation"}
_MINUTES, _PLAIN = ("wall time",), ("eta", "sigma_floor")


def make_pages(tables: Mapping[str, Sequence[Record]], groups: Sequence[Group], figures: Figures) -> dict[str, bytes]:
    """File name to content of every page and CSV file."""
    pages = {
        "headline.md": headline_page(tables["table9"]),
        "tables.md": tables_page(tables, figures),
        "settings.md": settings_page(tables, groups),
    }
    names = ["settings", "sets", "evaluations", "collection", "kept", "runs"]
    names = [name for name in names if tables[name]]
    pages |= {f"{name}.csv": comma_separated(tables[name]) for name in names}
    return {name: text.encode() for name, text in pages.items()}


def headline_page(rows: Sequence[Record]) -> str:
    """Success before and after fine-tuning, ours and the paper's: four lines of `table9`."""
    shown = []
    for who, tuned in (("ours", fine_tuned(rows)), ("paper", REGULARIZED["bc"])):
        for method in (tuned, PRETRAINED):
            found = [row for row in rows if (row["who"], row["method"]) == (who, method)]
            shown += [row for row in found if who == "paper" or row["measure"] != TOP5]
    return "\n".join([MARK, "", *_table(shown, ["who", "method", *TASKS, "average"])]).rstrip() + "\n"


def tables_page(tables: Mapping[str, Sequence[Record]], figures: Figures) -> str:
    """Success rates, the headline's first, and the figures."""
    headline, everything = tables["table9"], tables["table8"]
    page = [MARK, "# Tables", "", *_words(_TABLES)]
    columns = ["who", "method", "measure", *TASKS, "average", "interactions", "measured on"]
    page += ["## Adroit from point clouds", "", *_words(_HEADLINE)]
    page += _table([row for row in headline if row["who"] == "paper" or row["measure"] != TOP5], columns)
    page += _images(figures, "headline")
    page += ["## The same by the paper's measure", "", *_words(_PAPER)]
    page += _table([row for row in headline if row["measure"] == TOP5], columns)
    page += ["## Learning curves", "", *(_images(figures, "curves") or ["None.", ""])]
    page += ["## All methods, variants and observations", "", *_words(_ALL)]
    page += _table([row for row in everything if row["who"] == "paper" or row["measure"] != TOP5], columns)
    if tables["sets"]:
        page += ["## Sets of tasks", "", *_words(_SETS)]
        shown = ["set", "obs", "method", "differs by", "task", "unseen", "before", "success", "measured on"]
        page += [*_table(tables["sets"], shown), *_images(figures, "set_")]
    page += ["## Collection", "", *_words(_COLLECTION), *_collection(tables["collection"])]
    page += _images(figures, "collection")
    columns = ["store", "made by", "metric", "scripted", *(f"to {100 * n // PARTS} %" for n in range(1, PARTS + 1))]
    page += ["## Success of kept episodes over time", "", *_words(_KEPT), *_table(tables["kept"], columns)]
    page += ["## Left out", "", "Unfinished or unreadable, and in none of the tables.", ""]
    page += [f"* {escape.code(row['directory'])}: {markdown.escape(row['why'])}" for row in tables["unfinished"]] or [
        "None."
    ]
    return "\n".join(page).rstrip() + "\n"


def settings_page(tables: Mapping[str, Sequence[Record]], groups: Sequence[Group]) -> str:
    """All settings that were run, and the evaluations with other samplers."""
    page = [MARK, "# Settings", "", *_words(_SETTINGS)]
    rows = tables["settings"]
    columns = [
        "method",
        "differs by",
        "data made by",
        "seeds",
        "episodes",
        "before",
        "last",
        "best",
        TOP5,
        "interactions",
        "steps",
        "wall time",
    ]
    for kind, alike in kinds(groups).items():
        task, observation, stage = kind
        seen = SEEN_AS.get(observation, observation)
        page += [f"## {markdown.escape(task)} seen as {markdown.escape(seen)}: {_STAGES[stage]}", "", *_usual(alike)]
        pairs = [(row, group) for row, group in zip(rows, groups, strict=True) if group in alike]
        pairs.sort(key=lambda pair: (place(observation, pair[1].method, pair[1].label), pair[0]["differs by"] or ""))
        untold = len({row["data made by"] for row, _ in pairs}) == 1  # then the column would tell nothing
        page += _table([_as_shown(row) for row, _ in pairs], [c for c in columns if c != "data made by" or not untold])
    columns = [
        "task",
        "unseen",
        "obs",
        "method",
        "differs by",
        "seed",
        "eta",
        "sigma_floor",
        "sampling_steps",
        "best_of",
        "episodes",
    ]
    page += ["## Evaluations", "", *_words(_EVALUATIONS)]
    page += _table(tables["evaluations"], [*columns, "final", "count", "any"])
    return "\n".join(page).rstrip() + "\n"


def _usual(alike: Sequence[Group]) -> list[str]:
    told = [f"{name} {value}" for name, value in usual_settings(alike).items()]
    return [f"Usual: {', '.join(markdown.escape(text) for text in told)}.", ""] if told else []


def _as_shown(row: Record) -> Record:
    """With `last` and `best` by the headline metric, and words where nothing differs."""
    scores = {which: row.get(f"{which} {row['metric']}") for which in ("last", "best")}
    return row | scores | {"differs by": row["differs by"] or "nothing else"}


def _collection(rows: Sequence[Record]) -> list[str]:
    shown = [row | {"kept": row[f"kept {row['metric']}"]} for row in rows]
    columns = [
        "store",
        "agent",
        "prior data",
        "seed",
        "transitions",
        "episodes",
        "metric",
        "kept",
        "agent, last",
        "agent, best",
    ]
    return _table(shown, [*columns, "wall time", "frames/s", "data_hash"])


def _images(figures: Figures, kind: str) -> list[str]:
    chosen = [(title, file) for title, file in figures if file.startswith(f"figures/{kind}")]
    return [line for title, file in chosen for line in (f"![{markdown.escape(title)}]({escape.link(file)})", "")]


def _words(text: str) -> list[str]:
    return [text.strip(), ""]


def _table(rows: Sequence[Record], columns: Sequence[str]) -> list[str]:
    """A Markdown table, without the columns that are empty in all rows; tasks are shown even then."""
    if not rows:
        return ["None.", ""]
    columns = [name for name in columns if name in TASKS or any(row.get(name) is not None for row in rows)]
    lines = [[_HEADINGS.get(name, name) for name in columns], ["---"] * len(columns)]
    lines += [[_cell(name, row.get(name)) for name in columns] for row in rows]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if column in _MINUTES:
        return f"{value / 60:.0f} min" if value >= 600 else f"{value / 60:.1f} min"
    if column == "frames/s":
        return f"{value:.1f}"
    if value is True:
        return "yes"
    if column in _PLAIN:
        return markdown.escape(str(value))
    if column == "data_hash":
        return markdown.escape(short_hash(value))
    if isinstance(value, float):
        return f"{100 * value:.1f}"
    return str(value) if isinstance(value, Estimate | int) else markdown.escape(str(value))


def comma_separated(rows: Iterable[Record]) -> str:
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
            flat[column] = escape.csv_cell(value) if isinstance(value, str) else value
    return flat
