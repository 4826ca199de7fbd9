"""What is checked before a stage starts, and before every step of an optimizer."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sodp3d.core.errors import InputError

COUNTS = (
    *("episodes", "episodes_per_iteration", "updates_per_episode", "batch_size", "initial_proficient"),
    *("initial_attempts", "replay_episodes", "target_episodes", "best_returns"),
)
NOT_NEGATIVE = ("learning_rate", "importance_weight", "clip", "value_updates", "evaluate_every", "collapse")


def check_finetuning(settings: Mapping[str, Any], regularizer: Mapping[str, Any]) -> None:
    """Raises InputError for a value of the sections `finetune` and `reg` that fine-tuning cannot work with."""
    for key in COUNTS:
        _require(settings[key] >= 1, f"finetune.{key}", "a whole number of at least 1", settings[key])
    for key in NOT_NEGATIVE:
        _require(settings[key] >= 0, f"finetune.{key}", "a number of at least 0", settings[key])
    encoder, target_kl = settings["encoder"], settings["target_kl"]
    _require(encoder in ("frozen", "tuned"), "finetune.encoder", "frozen or tuned", encoder)
    _require(settings["gradient_norm"] > 0, "finetune.gradient_norm", "a number above 0", settings["gradient_norm"])
    _require(
        target_kl is None or target_kl > 0, "finetune.target_kl", "a number above 0, or null for no bound", target_kl
    )
    _require(regularizer["weight"] >= 0, "reg.weight", "a number of at least 0", regularizer["weight"])
    if settings["importance_weight"] == 0 and (regularizer["weight"] == 0 or regularizer["name"] == "none"):
        raise InputError(
            f"finetune.importance_weight: 0 with reg={regularizer['name']} leaves nothing to learn from; "
            "use reg=bc for direct BC, or a weight above 0."
        )
    if settings["from_scratch"] and (encoder == "frozen" or target_kl is not None):
        raise InputError(
            "finetune.from_scratch: a planner from scratch must learn its encoder, and its first roll-outs are another "
            "planner's, beyond any bound on KL; use start=scratch, or finetune.encoder=tuned finetune.target_kl=null."
        )


def check_evaluation(settings: Mapping[str, Any]) -> None:
    """Raises InputError for a section `evaluation` without episodes or environments."""
    for key in ("episodes", "validation_episodes", "environments"):
        _require(settings[key] >= 1, f"evaluation.{key}", "a whole number of at least 1", settings[key])


def check_model(settings: Mapping[str, Any]) -> None:
    """Raises InputError for a section `model` whose sampling cannot skip evenly through the denoising steps."""
    steps, of = settings["sampling_steps"], settings["denoising_steps"]
    fine = steps is None or (steps >= 1 and of % steps == 0)
    _require(fine, "model.sampling_steps", f"a divisor of model.denoising_steps={of}, or null", steps)


def _require(fine: bool, key: str, expected: str, got: Any) -> None:
    if not fine:
        raise InputError(f"{key}: expected {expected}, got {got!r}.")


def require_finite(values: Mapping[str, Tensor], where: str) -> None:
    """Raises FloatingPointError where a loss or norm is not finite; to be called before it can change anything."""
    numbers = {name: float(value.detach()) for name, value in values.items()}
    if not all(math.isfinite(number) for number in numbers.values()):
        told = ", ".join(f"{name} {number}" for name, number in numbers.items())
        raise FloatingPointError(
            f"{where}: {told}. Learning stops here, and the last checkpoint is whole; "
            "begin again with a lower learning rate, or look for data that is not finite."
        )
