"""What sets groups of one task, observation and stage apart: each told by its difference from the usual settings."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sodp3d.data.hashing import short_hash
from sodp3d.results.choose import representative
from sodp3d.results.groups import Group, canonical
from sodp3d.results.naming import ALGORITHMS, PRETRAINED, REGULARIZED

# The method whose settings are the usual ones, the first of these that there is.
_USUAL = {"pretrain": (PRETRAINED,), "finetune": (REGULARIZED["bc"], ALGORITHMS["sodp"])}
_ABSENT = "-"

Kind = tuple[str, str, str]  # task, observation, stage


def kinds(groups: Sequence[Group]) -> dict[Kind, list[Group]]:
    """The groups of each kind, in the order of `groups`."""
    found: dict[Kind, list[Group]] = defaultdict(list)
    for group in groups:
        found[group.task, group.observation, group.stage].append(group)
    return dict(found)


def usual_group(alike: Sequence[Group]) -> Group:
    """Of groups of one kind, the one that the others are told from: the plain method as `representative` finds it."""
    for label in _USUAL.get(alike[0].stage, ()):
        found = representative([group for group in alike if group.label == label])
        if found is not None:
            return found
    return alike[0]


def usual_settings(alike: Sequence[Group]) -> dict[str, str]:
    """The settings of the usual group in which any group of its kind differs, as shown."""
    usual = usual_group(alike)
    return {_short(name): _shown(usual, name) for name in _varying(alike) if name in usual.settings}


def distinguishing(groups: Sequence[Group]) -> list[str]:
    """For each group, in what it differs from the usual group of its kind; empty for that one."""
    told: dict[int, str] = {}
    for alike in kinds(groups).values():
        usual, varying = usual_group(alike), _varying(alike)
        told |= {id(group): _departures(group, usual, varying) for group in alike}
    return [told[id(group)] for group in groups]


def _varying(alike: Sequence[Group]) -> list[str]:
    """Names of the settings in which the groups differ.

    What a planner went through before its fine-tuning sets apart only those that went through something.
    """
    names = sorted({name for group in alike for name in group.settings if not _told_by_method(group, name)})
    compared = {n: [group for group in alike if n in group.settings or not _is_history(n)] for n in names}
    return [name for name in names if len({_comparable(group, name) for group in compared[name]}) > 1]


def _departures(group: Group, usual: Group, varying: Sequence[str]) -> str:
    names = [name for name in varying if _departs(group, usual, name)]
    pretraining = [name for name in names if name.startswith("pretrain.")]
    lost = group.stage == "finetune" and pretraining and not any(n.startswith("pretrain.") for n in group.settings)
    if lost:
        names = [name for name in names if name not in pretraining]
    told = [f"{_short(name)} {_shown(group, name)}" for name in names]
    return ", ".join([*told, *(["pre-training not on record"] if lost else [])])


def _departs(group: Group, usual: Group, name: str) -> bool:
    if _told_by_method(group, name):
        return False
    if _is_history(name):
        return name in group.settings
    return _comparable(group, name) != _comparable(usual, name)


def _told_by_method(group: Group, name: str) -> bool:
    """Whether a method's name says it: that of a run from before algorithms had names is its regularizer's."""
    return name == "reg.weight" and "reg.name" not in group.settings


def _is_history(name: str) -> bool:
    return name.startswith("planner.")


def _comparable(group: Group, name: str) -> str:
    return canonical(group.settings.get(name, _ABSENT))


def _short(name: str) -> str:
    return "data" if name == "data_hash" else name.removeprefix("finetune.")


def _shown(group: Group, name: str) -> str:
    value: Any = group.settings.get(name, _ABSENT)
    return short_hash(value) if name == "data_hash" and isinstance(value, str) else str(value)
