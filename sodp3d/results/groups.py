"""Groups of runs that differ in nothing but their seed, and the settings that they share."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sodp3d.core.mappings import flat
from sodp3d.results.naming import METHODS, method_and_variant, pretraining_of
from sodp3d.results.scan import RunRecord, Score
from sodp3d.settings import decides, of_network

_TOLD = {"seed", "mode", "planner", "data", "env.name", "obs.name", "algorithm", "reg.name"}  # in other ways

_TOLD_BY_VARIANT = {"model.prediction", "model.unet"}  # of the planner that a run began with


@dataclass(frozen=True)
class Group:
    """Finished runs of one configuration, the newest of each seed and planner, ascending by seed."""

    task: str
    observation: str
    stage: str
    method: str
    variant: str  # what is unlike the plain method; empty for the plain one
    settings: dict[str, Any]
    runs: tuple[RunRecord, ...]
    repeated: tuple[RunRecord, ...]  # older runs of the same seeds and planners

    @property
    def label(self) -> str:
        """Method and variant."""
        return f"{self.method}, {self.variant}" if self.variant else self.method

    @property
    def rank(self) -> tuple[int, str, str]:
        """Sorts methods as the paper lists them, plain ones before their variants."""
        return METHODS.index(self.method) if self.method in METHODS else len(METHODS), self.method, self.variant

    def scores(self, which: str) -> list[Score]:
        """`last`, `best` or `before` of each run; [] unless every run has it."""
        found = [run.scores[which] for run in self.runs if which in run.scores]
        return found if len(found) == len(self.runs) else []

    @property
    def reported(self) -> tuple[str, list[Score]]:
        """The score of the planner that other commands load: `best` where there is one, or else `last`."""
        best = self.scores("best")
        return ("best", best) if best else ("last", self.scores("last"))


def group_runs(runs: Sequence[RunRecord]) -> list[Group]:
    """Groups of the runs that made planners, in the order of task, observation, method, variant, settings."""
    by_name = {run.name: run for run in runs}
    members: dict[str, list[RunRecord]] = defaultdict(list)
    described: dict[str, tuple[tuple[str, str, str, str, str], dict[str, Any]]] = {}
    for run in runs:
        if run.stage == "eval":
            continue
        ancestors = _ancestors(run, by_name)
        name = (run.task, run.observation, run.stage, *method_and_variant(run, ancestors))
        settings = settings_of(run, ancestors)
        key = repr((name, [(setting, canonical(value)) for setting, value in settings.items()]))
        members[key].append(run)
        described[key] = name, settings
    groups = []
    for key, found in members.items():
        newest = {_seeds(run, by_name): run for run in sorted(found, key=lambda run: (run.time, run.name))}
        kept = tuple(newest[seeds] for seeds in sorted(newest))
        older = tuple(run for run in found if run not in kept)
        groups.append(Group(*described[key][0], described[key][1], kept, older))
    return sorted(groups, key=_order)


def canonical(value: Any) -> str:
    """Equal for equal settings: 1 and 1.0 are one, True is another."""
    return repr(float(value) if type(value) is int else value)


def _ancestors(run: RunRecord, by_name: Mapping[str, RunRecord]) -> list[RunRecord]:
    """The runs whose planners it began with, the nearest first, as far back as they are found."""
    found: dict[str, RunRecord] = {}
    source = by_name.get(run.planner or "")
    while source is not None and source.name not in found:  # a damaged record may name itself
        found[source.name] = source
        source = by_name.get(source.planner or "")
    return list(found.values())


def _seeds(run: RunRecord, by_name: Mapping[str, RunRecord]) -> tuple[Any, ...]:
    """What makes a run another one of its group: its seed and those of its planner, or that planner's name."""
    ancestors = _ancestors(run, by_name)
    oldest = ancestors[-1] if ancestors else run
    return (run.seed, tuple(ancestor.seed for ancestor in ancestors), oldest.planner or "")


def _order(group: Group) -> tuple[Any, ...]:
    newest = max(run.time for run in group.runs)
    return group.task, group.observation, *group.rank, newest, repr(group.settings)


def settings_of(run: RunRecord, ancestors: Sequence[RunRecord]) -> dict[str, Any]:
    """Dotted name to value of all that shapes the result but the seed.

    Fine-tuning and distillation inherit their planner's network and pre-training and, with `planner.` before the names,
    its fine-tuning.
    """
    found = {"data_hash": run.data_hash, **_settings(run.config)}
    if run.stage in ("finetune", "distill"):
        pretraining = pretraining_of(run, ancestors)
        if pretraining is not None:
            made = _settings(pretraining.config)
            found |= {name: value for name, value in made.items() if name.startswith("pretrain.") or of_network(name)}
        found = {name: value for name, value in found.items() if name not in _TOLD_BY_VARIANT}
        for generation, ancestor in enumerate((a for a in ancestors if a.stage == "finetune"), start=1):
            own = {name: value for name, value in flat(ancestor.config).items() if name in ("algorithm", "reg.name")}
            own |= _settings(ancestor.config, ("finetune.", "reg."))
            found |= {generation * "planner." + name: value for name, value in own.items()}
    return dict(sorted(found.items()))


def _settings(config: dict[str, Any], beginnings: tuple[str, ...] = ("",)) -> dict[str, Any]:
    told = _TOLD - {"reg.name"} if "algorithm" in config else _TOLD  # whose regularizer may be another than its own
    return {n: value for n, value in flat(config).items() if n.startswith(beginnings) and n not in told and decides(n)}
