"""Episodes of an earlier fine-tuning run, to learn from without roll-outs (paper, C.1)."""

from pathlib import Path

import torch

from sodp3d.core import checkpoint
from sodp3d.core.errors import InputError
from sodp3d.core.run import read_config
from sodp3d.envs.config import EnvConfig
from sodp3d.learning.buffers import EpisodeRecord, TargetBuffer
from sodp3d.learning.learner import likelihood_terms
from sodp3d.models.loading import policy_config
from sodp3d.models.planner import Planner
from sodp3d.settings import FinetuneSettings, RegularizerSettings, identity

_DRAWING = ("eta", "sigma_floor", "floor_steps", "noise_clip")  # of a sampler's options, those that decide its chains


def recorded_episodes(
    path: Path, planner: Planner, settings: FinetuneSettings, regularizer: RegularizerSettings, task: EnvConfig
) -> list[EpisodeRecord]:
    """The proficient episodes that another fine-tuning run kept, for offline fine-tuning (C.1); oldest first.

    Raises InputError where there are none, or where they do not fit `planner`: their chains hold actions as its
    normalizer scales them and, with a frozen encoder, its features.
    """
    found = checkpoint.load_latest(path / "checkpoints") if path.is_dir() else None
    target = TargetBuffer(1)
    kept = checkpoint.without_prefix("target", found[1]) if found is not None else {}
    if kept:
        target.load_state_dict(kept)
    if found is None or len(target) == 0 or not target.has_success:
        raise InputError(
            f"finetune.offline: {path} is no fine-tuning run with successful episodes; name the directory of one."
        )
    _, tensors, state = found
    records = target.records()
    if task.name not in state["tasks"]:
        raise InputError(f"finetune.offline: {path} is of {', '.join(state['tasks'])}, not of env={task.name}.")
    made = "frozen" if "features" in records[0].observation else "tuned"
    if made != settings.encoder:
        raise InputError(
            f"finetune.offline: its episodes hold {'features' if made == 'frozen' else 'observations'}, which does not "
            f"suit finetune.encoder={settings.encoder}; name a run that was made with "
            f"finetune.encoder={settings.encoder} (that one used {made})."
        )
    steps = records[0].latents.shape[1] - 1
    if steps != planner.config.inference_steps:
        raise InputError(
            f"finetune.offline: its episodes were sampled in {steps} steps, which does not suit "
            f"model.sampling_steps={planner.config.inference_steps}; use model.sampling_steps={steps}."
        )
    _require_sampler(path, settings, regularizer)
    _require_whole(path, settings)
    theirs = checkpoint.without_prefix("planner", tensors)
    shared = ("normalizer", "encoder") if made == "frozen" else ("normalizer",)
    same = policy_config(state, path).same_network(planner.config) and all(
        torch.equal(theirs[name], value.cpu())
        for name, value in planner.state_dict().items()
        if name.startswith(shared)
    )
    if not same:
        raise InputError(
            f"finetune.offline: {path} was fine-tuned from another planner, whose {' and '.join(shared)} its episodes "
            "rest on; give the planner that it began with (planner=, see its config.yaml)."
        )
    return records


def _require_whole(path: Path, settings: FinetuneSettings) -> None:
    """Raise InputError where returns to an episode's end are asked for, and that run kept none beyond success."""
    kept = identity({"finetune": {}, **read_config(path)})["finetune.cloned_until"]
    if kept == "success" and settings.credit in ("return_to_go", "gae"):
        raise InputError(
            f"finetune.offline: {path} kept its episodes up to their success (finetune.cloned_until=success), so "
            f"finetune.credit={settings.credit} would think less of an early success; use finetune.credit=chunk, "
            "or a run with finetune.cloned_until=end."
        )


def _require_sampler(path: Path, settings: FinetuneSettings, regularizer: RegularizerSettings) -> None:
    """Raise InputError where a likelihood is asked for of chains that were drawn in another way."""
    needing = likelihood_terms(settings, regularizer)
    theirs = identity({"finetune": {}, **read_config(path)})
    for key in _DRAWING if needing else ():
        there, here = theirs[f"finetune.sampler.{key}"], getattr(settings.sampler, key)
        if there != here:
            raise InputError(
                f"finetune.offline: the episodes of {path} were drawn with finetune.sampler.{key}={there}, but {here} "
                f"came, by which {needing[0]} would weigh them wrongly; use finetune.sampler.{key}={there}, or "
                "algorithm=clone."
            )
