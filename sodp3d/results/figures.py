"""All figures: the headline, sets of tasks, learning curves of fine-tuning, collections; drawn without a display."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from sodp3d.data.hashing import short_hash
from sodp3d.results import drawing, escape
from sodp3d.results.choose import sharing_a_planner
from sodp3d.results.curves import draw_finetuning
from sodp3d.results.experience import draw_collection
from sodp3d.results.groups import Group
from sodp3d.results.headline import draw_headline
from sodp3d.results.sets import draw_set
from sodp3d.results.stores import StoreRecord
from sodp3d.results.tables import Record, place


class Planned(NamedTuple):
    """A figure to be drawn: its title, its path below the output folder, and what draws it as PNG bytes."""

    title: str
    file: str
    draw: Callable[[], bytes]


def plan_figures(
    tables: Mapping[str, Sequence[Record]], groups: Sequence[Group], stores: Sequence[StoreRecord]
) -> list[Planned]:
    """The headline table and each set of tasks as bars, one figure of curves for each task and observation, and stores.

    Curves are those of one pre-trained planner, as in Table 9.
    """
    title = "success before and after fine-tuning, ours and the paper's"
    planned = [Planned(title, "figures/headline.png", partial(draw_headline, tables["table9"]))]
    for name, observation in dict.fromkeys((row["set"], row["obs"]) for row in tables["sets"]):
        rows = [row for row in tables["sets"] if (row["set"], row["obs"]) == (name, observation)]
        file = escape.file_name(f"set_{name}_{observation}.png")
        title = f"planners of {name} from {drawing.SEEN_AS.get(observation, observation)}, task by task"
        planned.append(Planned(title, f"figures/{file}", partial(draw_set, rows)))
    for task, observation in sorted({(group.task, group.observation) for group in groups if group.stage == "finetune"}):
        among = sharing_a_planner(groups, task, observation)
        chosen = [group for group in groups if group in among and group.stage == "finetune"]
        chosen.sort(key=lambda group: place(group.observation, group.method, group.label))
        file = escape.file_name(f"curves_{task}_{observation}.png")
        title = f"fine-tuning {task} from {drawing.SEEN_AS.get(observation, observation)}"
        planned.append(Planned(title, f"figures/{file}", partial(draw_finetuning, chosen)))
    for record in stores:
        same = [other for other in stores if other.name == record.name]
        apart = f"_{short_hash(record.data_hash)}" if len(same) > 1 else ""
        file = escape.file_name(f"collection_{record.name.removeprefix('data/')}{apart}.png")
        title = f"collection of {record.env} by {record.agent}"
        planned.append(Planned(title, f"figures/{file}", partial(draw_collection, record)))
    return planned
