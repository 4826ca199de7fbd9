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
METHODS = (PRETRAINED, *REGULARIZED.values(), DIRECT_BC)


def method_and_variant(run: RunRecord, ancestors: Sequence[RunRecord]) -> tuple[str, str]:
    """What the paper would call it, and what was done otherwise; `ancestors`: the runs it began with."""
    tuning, pretraining = run.config.get("finetune", {}), pretraining_of(run, ancestors)
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
