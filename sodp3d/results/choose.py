"""Which groups stand for a method in tables and figures; none is chosen by its success."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePath

from sodp3d.results.groups import Group


def representative(groups: Sequence[Group]) -> Group | None:
    """The group that stands for its method in a table, chosen without a look at its success.

    Most seeds first, then most evaluation episodes, then the newest.
    """

    def rank(group: Group) -> tuple[int, int, str, str]:
        episodes = sum(score.episodes for score in group.reported[1])
        return len(group.runs), episodes, max(run.time for run in group.runs), repr(group.settings)

    return max((group for group in groups if group.reported[1]), key=rank, default=None)


def sharing_a_planner(groups: Sequence[Group], task: str, observation: str) -> list[Group]:
    """The fine-tuning groups of one pre-trained planner, and its own: that planner from which most methods were made.

    A method's variants (from scratch, offline, ...) count once with it. Of equals, the newest; a group of which some
    runs began with another planner is left out.
    """
    made: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        sources = {run.planner for run in group.runs}
        if (group.task, group.observation, group.stage) == (task, observation, "finetune") and len(sources) == 1:
            made[sources.pop() or ""].append(group)
    if not made:
        return [
            group for group in groups if (group.task, group.observation, group.stage) == (task, observation, "pretrain")
        ]

    def rank(planner: str) -> tuple[int, str]:
        return len({group.method for group in made[planner]}), PurePath(planner).name

    source = max(made, key=rank)
    own = [group for group in groups if any(run.name == source for run in (*group.runs, *group.repeated))]
    return own + made[source]


def of_one_length(groups: Sequence[Group]) -> list[Group]:
    """Those groups, of fine-tuning only those of one number of episodes: that of most methods, then of most runs."""
    alike: dict[int, list[Group]] = defaultdict(list)
    for group in groups:
        if group.stage == "finetune":
            alike[_episodes(group)].append(group)

    def rank(episodes: int) -> tuple[int, int, int]:
        members = alike[episodes]
        return len({group.label for group in members}), sum(len(group.runs) for group in members), episodes

    usual = max(alike, key=rank, default=None)
    return [group for group in groups if group.stage != "finetune" or _episodes(group) == usual]


def _episodes(group: Group) -> int:
    return int(group.settings.get("finetune.episodes", 0))
