"""Group runs that differ in nothing but their seed, name what was trained, and say what sets the groups apart."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from sodp3d.core.mappings import flat
from sodp3d.results.scan import RunRecord, Score
from sodp3d.rollouts.evaluate import wilson_interval
from sodp3d.settings import resources

PRETRAINED, DIRECT_BC = "pre-trained", "direct BC"
REGULARIZED = {
    "none": "fine-tuned without BC",
    "bc": "fine-tuned with BC",
    "kl": "fine-tuned with KL (DPOK)",
    "pl": "fine-tuned with PL (DLPO)",
}
METHODS = (PRETRAINED, *REGULARIZED.values(), DIRECT_BC)
# Told in other ways, or of no effect on the result.
_IGNORED = {"seed", "mode", "planner", "data", "env.name", "obs.name", "reg.name"} | resources()


@dataclass(frozen=True)
class Group:
    """Finished runs of one configuration, the newest of each seed, ascending by seed."""

    task: str
    observation: str
    stage: str
    method: str
    variant: str  # what is unlike the plain method; empty for the plain one
    settings: dict[str, Any]
    runs: tuple[RunRecord, ...]
    repeated: tuple[RunRecord, ...]  # older runs of the same seeds

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
    """Groups of pre-training and fine-tuning runs, in the order of task, observation, method, variant, settings."""
    by_name = {run.name: run for run in runs}
    members: dict[str, list[RunRecord]] = defaultdict(list)
    described: dict[str, tuple[tuple[str, str, str, str, str], dict[str, Any]]] = {}
    for run in runs:
        if run.stage == "eval":
            continue
        ancestors = _ancestors(run, by_name)
        name = (run.task, run.observation, run.stage, *method_and_variant(run, ancestors))
        settings = settings_of(run, ancestors)
        key = repr((name, [(setting, _canonical(value)) for setting, value in settings.items()]))
        members[key].append(run)
        described[key] = name, settings
    groups = []
    for key, found in members.items():
        newest = {run.seed: run for run in sorted(found, key=lambda run: (run.time, run.name))}
        kept = tuple(newest[seed] for seed in sorted(newest))
        older = tuple(run for run in found if run not in kept)
        groups.append(Group(*described[key][0], described[key][1], kept, older))
    return sorted(groups, key=_order)


def _canonical(value: Any) -> str:
    """Equal for equal settings: 1 and 1.0 are one, True is another."""
    return repr(float(value) if type(value) is int else value)


def _ancestors(run: RunRecord, by_name: Mapping[str, RunRecord]) -> list[RunRecord]:
    """The runs whose planners it began with, the nearest first, as far back as they are found."""
    found = []
    source = by_name.get(run.planner or "")
    while source is not None:
        found.append(source)
        source = by_name.get(source.planner or "")
    return found


def _order(group: Group) -> tuple[Any, ...]:
    newest = max(run.time for run in group.runs)
    return group.task, group.observation, *group.rank, newest, repr(group.settings)


def method_and_variant(run: RunRecord, ancestors: Sequence[RunRecord]) -> tuple[str, str]:
    """What the paper would call it, and what was done otherwise; `ancestors`: the runs it began with."""
    tuning, pretraining = run.config.get("finetune", {}), _pretraining(run, ancestors)
    parts = []
    if run.stage == "pretrain":
        method = PRETRAINED
    else:
        name, weight = run.config["reg"]["name"], run.config["reg"].get("weight", 1.0)
        method = REGULARIZED.get(name if weight else "none", f"fine-tuned with {name}")
        if not tuning.get("importance_weight", 1.0):
            method = DIRECT_BC if name == "bc" else method
            parts += [] if name == "bc" else ["no importance term"]
        parts += [words for key, words in (("from_scratch", "from scratch"), ("offline", "offline")) if tuning.get(key)]
        tuned = any(ancestor.stage == "finetune" for ancestor in ancestors)
        parts += ["from a fine-tuned planner"] if tuned else []
        parts += _sampling_parts(run, pretraining)
    parts += _pretraining_parts(pretraining)
    return method, ", ".join(parts)


def _sampling_parts(run: RunRecord, pretraining: RunRecord | None) -> list[str]:
    """In how many steps it sampled, where its planner had been evaluated in others after pre-training."""
    steps = run.config["model"].get("sampling_steps")
    if pretraining is None or steps == pretraining.config["model"].get("sampling_steps"):
        return []
    return [f"sampled in {steps} steps"]


def _pretraining(run: RunRecord, ancestors: Sequence[RunRecord]) -> RunRecord | None:
    return next((record for record in (run, *ancestors) if record.stage == "pretrain"), None)


def _pretraining_parts(run: RunRecord | None) -> list[str]:
    if run is None:
        return []
    model, settings, data = run.config.get("model", {}), run.config.get("pretrain", {}), run.config.get("data")
    folders = [data] if isinstance(data, str) else data or []
    names = [PurePath(folder).parent.name if folder.endswith(".zarr") else PurePath(folder).name for folder in folders]
    own = len(names) == 1 and names[0].startswith(run.task)  # adroit_pen-2 is pen's data too, told apart by its hash
    unet = model.get("unet")
    known = {"dp3": "DP3", "simple_dp3": "Simple DP3", "diffusion_policy": "Diffusion Policy"}
    if run.config.get("method", "sodp") in known:
        return [known[run.config["method"]]]
    return [
        *([f"predicts the {model['prediction']}"] if model.get("prediction", "epsilon") != "epsilon" else []),
        *([f"U-Net {unet}"] if unet != run.config["env"].get("unet", unet) else []),
        *(["successful episodes only"] if settings.get("successful_only") else []),
        *_slice_parts(settings),
        *([f"data {'+'.join(names)}"] if names and not own else []),
    ]


def _slice_parts(settings: dict[str, Any]) -> list[str]:
    """Which part of its stores a planner was trained on, where that is not the whole."""
    end = {"suboptimal": "first", "nearoptimal": "last"}.get(settings.get("quality", "suboptimal"))
    fraction, episodes = settings.get("fraction", 1.0), settings.get("max_episodes")
    return [
        *([f"{end} {100 * fraction:g} % of the data"] if end and fraction < 1 else []),
        *([f"at most {episodes} episodes"] if episodes else []),
    ]


def settings_of(run: RunRecord, ancestors: Sequence[RunRecord]) -> dict[str, Any]:
    """Dotted name to value of all that shapes the result but the seed.

    Fine-tuning inherits its planner's pre-training and, with `planner.` before the names, the planner's fine-tuning.
    """
    found = {"data_hash": run.data_hash, **_settings(run.config)}
    if run.stage == "finetune":
        pretraining = _pretraining(run, ancestors)
        found |= _settings(pretraining.config, ("pretrain.",)) if pretraining is not None else {}
        for generation, ancestor in enumerate((a for a in ancestors if a.stage == "finetune"), start=1):
            own = {"reg.name": ancestor.config["reg"]["name"], **_settings(ancestor.config, ("finetune.", "reg."))}
            found |= {generation * "planner." + name: value for name, value in own.items()}
    return dict(sorted(found.items()))


def _settings(config: dict[str, Any], beginnings: tuple[str, ...] = ("",)) -> dict[str, Any]:
    return {n: value for n, value in flat(config).items() if n.startswith(beginnings) and n not in _IGNORED}


def distinguishing(groups: Sequence[Group]) -> list[str]:
    """For each group, the settings in which it differs from the others of its task, observation and stage."""
    alike: dict[tuple[str, str, str], list[Group]] = defaultdict(list)
    for group in groups:
        alike[group.task, group.observation, group.stage].append(group)
    told = []
    for group in groups:
        others = alike[group.task, group.observation, group.stage]
        names = sorted({name for other in others for name in other.settings} - {"reg.weight"})
        # What a planner went through sets apart only those that went through something.
        comparable = {n: [o for o in others if n in o.settings or not n.startswith("planner.")] for n in names}
        differing = [n for n in names if len({_canonical(other.settings.get(n, "-")) for other in comparable[n]}) > 1]
        differing = [name for name in differing if group in comparable[name]]
        told.append(", ".join(f"{_short(name)} {_brief(group.settings.get(name, '-'))}" for name in differing))
    return told


def _short(name: str) -> str:
    return "data" if name == "data_hash" else name.removeprefix("finetune.")


def _brief(value: Any) -> str:
    return value[:8] if isinstance(value, str) and len(value) >= 16 else str(value)


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


@dataclass(frozen=True)
class Estimate:
    """A success rate, 0..1, with the 95 % Wilson interval of all episodes and, of several seeds, their deviation."""

    rate: float
    low: float | None
    high: float | None
    deviation: float | None
    seeds: int
    episodes: tuple[int, ...]  # of each seed
    unit: str = "episodes"

    def __str__(self) -> str:
        rate = _percent(self.rate)
        if self.deviation is not None:
            rate += f" ± {_percent(self.deviation)}"
        if self.low is None or self.high is None:
            return rate
        return f"{rate} [{100 * self.low:.0f}, {100 * self.high:.0f}]"

    @property
    def basis(self) -> str:
        """Seeds x what each was measured on."""
        return f"{self.seeds} x {'/'.join(str(count) for count in sorted(set(self.episodes)))} {self.unit}"


def estimate(scores: Sequence[Score], metric: str | None = None) -> Estimate | None:
    """Over one or several seeds, by `metric` or the headline; the deviation is the sample's (n - 1). None of none.

    The interval takes the episodes of all seeds as one sample: it tells how well the rate of these planners is known.
    How much another seed's planner may differ is told by the deviation.
    """
    if not scores:
        return None
    rates = [score.rate(metric) for score in scores]
    episodes = tuple(score.episodes for score in scores)
    low, high = wilson_interval(sum(score.successes[metric or score.headline] for score in scores), sum(episodes))
    deviation = float(np.std(rates, ddof=1)) if len(rates) > 1 else None
    return Estimate(_mean(rates), low, high, deviation, len(rates), episodes)


def estimate_top5(group: Group) -> Estimate | None:
    """The paper's measure: the mean of the five highest validations of a run, over the seeds. None where not noted."""
    means = [run.top5 for run in group.runs if run.top5 is not None]
    if not means or len(means) < len(group.runs):
        return None
    deviation = float(np.std(means, ddof=1)) if len(means) > 1 else None
    counts = tuple(min(5, len(run.validations)) for run in group.runs)
    return Estimate(_mean(means), None, None, deviation, len(means), counts, "validations")


def _percent(share: float) -> str:
    """At most one decimal."""
    return f"{round(100 * share, 1):g}"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
