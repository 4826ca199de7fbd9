"""What a run did, in the paper's words."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from sodp3d.results.scan import RunRecord

PRETRAINED, DIRECT_BC = "pre-trained", "direct BC"
REGULARIZED = {
    "none": "fine-tuned without BC",
    "bc": "fine-tuned with BC",
    "kl": "fine-tuned with KL (DPOK)",
    "pl": "fine-tuned with PL (DLPO)",
}
ALGORITHMS = {  # of records that name their algorithm; one that is not here goes by its own name
    "sodp": "SODP",
    "sodp_paper": "SODP as in the paper",
    "sodp_chunk": "SODP without a critic",
    "sodp_gae": "SODP with GAE",
    "sodp_two_scales": "SODP with two time scales",
    "sodp_branch": "SODP with branches",
    "sodp_kl": "SODP with KL",
    "sodp_pl": "SODP with PL",
    "sodp_none": "SODP without BC",
    "sodp_scratch": "SODP from scratch",
    "clone": DIRECT_BC,
    "dppo": "DPPO",
}
PEERS = {  # other methods than SODP, by `method=`; one that is not here goes by its own name
    "dp3": "DP3",
    "simple_dp3": "Simple DP3",
    "diffusion_policy": "Diffusion Policy",
    "bcrnn": "BCRNN",
    "ibc": "IBC",
    "mtbc": "MTBC",
    "mtdiff": "MTDiff",
}
METHODS = tuple(dict.fromkeys([PRETRAINED, *REGULARIZED.values(), DIRECT_BC, *ALGORITHMS.values()]))


def method_and_variant(run: RunRecord, ancestors: Sequence[RunRecord]) -> tuple[str, str]:
    """What the paper would call it, and what was done otherwise; `ancestors`: the runs it began with."""
    pretraining = pretraining_of(run, ancestors)
    if run.stage == "pretrain":
        return PRETRAINED, ", ".join(_pretraining_parts(pretraining))
    method, parts = _named(run.config) if "algorithm" in run.config else _regularized(run.config)
    if any(ancestor.stage == "finetune" for ancestor in ancestors):
        parts.append("from a fine-tuned planner")
    parts += _origin_parts(run, pretraining)
    return method, ", ".join([*parts, *_sampling_parts(run, pretraining), *_pretraining_parts(pretraining)])


def _named(config: dict[str, Any]) -> tuple[str, list[str]]:
    """Method by the algorithm that a run was made with, and what was set otherwise, as far as words tell it."""
    algorithm, tuning = str(config["algorithm"]), config.get("finetune", {})
    told = {
        "no importance term": not tuning.get("importance_weight", 1.0) and algorithm != "clone",
        "from scratch": tuning.get("from_scratch") and algorithm != "sodp_scratch",
        "offline": tuning.get("offline"),
    }
    return ALGORITHMS.get(algorithm, algorithm), [words for words, holds in told.items() if holds]


def _regularized(config: dict[str, Any]) -> tuple[str, list[str]]:
    """The same of a run from before algorithms had names, by its regularizer."""
    tuning, name, weight = config.get("finetune", {}), config["reg"]["name"], config["reg"].get("weight", 1.0)
    method, parts = REGULARIZED.get(name if weight else "none", f"fine-tuned with {name}"), []
    if not tuning.get("importance_weight", 1.0):
        method = DIRECT_BC if name == "bc" else method
        parts += [] if name == "bc" else ["no importance term"]
    parts += [words for key, words in (("from_scratch", "from scratch"), ("offline", "offline")) if tuning.get(key)]
    return method, parts


def _origin_parts(run: RunRecord, pretraining: RunRecord | None) -> list[str]:
    """Of which set its planner was, where that is not the run's own task or set, and whether it had seen the task."""
    origin = pretraining.task if pretraining is not None else None
    if origin is None and len(run.trained_on) > 1:
        origin = f"{len(run.trained_on)} tasks"
    return [
        *([f"pre-trained on {origin}"] if origin not in (None, run.task) else []),
        *(["unseen"] if run.unseen == [run.task] else []),
    ]


def _sampling_parts(run: RunRecord, pretraining: RunRecord | None) -> list[str]:
    """In how many steps it sampled, where its planner had been evaluated in others after pre-training."""
    steps = run.config["model"].get("sampling_steps")
    if pretraining is None or steps == pretraining.config["model"].get("sampling_steps"):
        return []
    return [f"sampled in {steps} steps"]


def pretraining_of(run: RunRecord, ancestors: Sequence[RunRecord]) -> RunRecord | None:
    return next((record for record in (run, *ancestors) if record.stage == "pretrain"), None)


def _pretraining_parts(run: RunRecord | None) -> list[str]:
    if run is None:
        return []
    model, settings, data = run.config.get("model", {}), run.config.get("pretrain", {}), run.config.get("data")
    folders = [data] if isinstance(data, str) else data or []
    names = [PurePath(folder).parent.name if folder.endswith(".zarr") else PurePath(folder).name for folder in folders]
    own = len(names) == 1 and names[0].startswith(run.task)  # adroit_pen-2 is pen's data too, told apart by its hash
    unet = model.get("unet")
    peer = str(run.config.get("method", "sodp"))
    if peer != "sodp":
        return [PEERS.get(peer, peer)]
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
