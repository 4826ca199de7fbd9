"""What makes a run that run: all of its configuration but the resources, which the sections declare.

A run continues with other resources, on another machine too; anything else begins a new one.
"""

from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

from sodp3d.core.mappings import flat
from sodp3d.core.run import Difference
from sodp3d.core.sections import resource_names
from sodp3d.settings.collection import CollectSettings, Stage1Settings
from sodp3d.settings.common import CommonSettings
from sodp3d.settings.train import SECTIONS, StageSettings

_SECTIONS = {**SECTIONS, "collect": CollectSettings, "stage1": Stage1Settings}
_ADVICE = ("env.recommended.", "env.unet")  # have their effect in the options that take them
# Keys outside sections, with their defaults. Fine-tuning recorded without an algorithm is none that can be run now: its
# importance term meant something else.
_ALONE = {"seed": 0, "method": "sodp", "algorithm": None, "planner": None, "data": None}


@cache
def resources() -> frozenset[str]:
    """Dotted names of the options that do not decide which run it is."""
    inside = {name for section, kind in _SECTIONS.items() for name in resource_names(kind, f"{section}.")}
    return frozenset(inside | set(resource_names(CommonSettings)) | set(resource_names(StageSettings)))


def decides(name: str) -> bool:
    """Whether an option, by its dotted name, decides which run it is."""
    return name not in resources() and not name.startswith(_ADVICE)


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted name to value of what decides which run a composed, or recorded, configuration is of.

    A key that the record of an earlier release does not have yet is there with its default. A stage that takes a
    planner, or another policy, has that one's network, whatever its options say.
    """
    complete = {**_ALONE, **config}
    for name, kind in _SECTIONS.items():
        if isinstance(complete.get(name), Mapping):
            complete[name] = _over(asdict(kind()), complete[name])
    complete["planner"] = _below_root(complete["planner"])
    made = complete.get("mode", "pretrain") == "pretrain"
    return {name: value for name, value in flat(complete).items() if decides(name) and (made or not of_network(name))}


def of_network(name: str) -> bool:
    """Whether an option, by its dotted name, says what a policy's network is made of."""
    return name.startswith("model.") and name != "model.sampling_steps"


def differences(recorded: Mapping[str, Any], config: Mapping[str, Any]) -> list[Difference]:
    """(dotted name, value there, value here) of all that makes `config` another run than the recorded one.

    Groups without declared defaults (env, agent) may have got keys since the run was recorded: those make none.
    """
    there, here = identity(recorded), identity(config)
    missing = object()
    found = []
    for name in sorted(there.keys() | here.keys()):
        if name not in there and "." in name and name.partition(".")[0] in recorded:
            continue
        if there.get(name, missing) != here.get(name, missing):
            found.append((name, there.get(name), here.get(name)))
    return found


def measured_alike(recorded: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether one planner makes the same episodes on the same seeds under both configurations."""
    deciding = ("env.", "obs.", "evaluation.eta", "evaluation.sigma_floor", "model.sampling_steps")
    return not any(name.startswith(deciding) for name, _, _ in differences(recorded, config))


def _over(defaults: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, and where they lack one the default; section by section."""
    inside = {
        key: _over(defaults[key], value)
        for key, value in values.items()
        if isinstance(value, Mapping) and isinstance(defaults.get(key), dict)
    }
    return {**defaults, **values, **inside}


def _below_root(planner: Any) -> Any:
    """A planner's path from `outputs/` on: the root above it is a resource. A damaged record may hold anything."""
    _, outputs, below = f"/{planner}".rpartition("/outputs/") if isinstance(planner, str) else ("", "", "")
    return below if outputs else planner
