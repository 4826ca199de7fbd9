"""How many episodes a fine-tuned planner took: before the first update, learned from, and for its validations."""

import math

from sodp3d.results.scan import RunRecord


def interactions(run: RunRecord) -> int | None:
    """Episodes that went into the planner of a finished fine-tuning; None of other runs.

    Those of the test, before and after, changed nothing and are left out. Runs of earlier releases did not note them:
    then they follow from the settings, the validations, and the environment steps before the first update.
    """
    result = run.result or {}
    told = result.get("interactions")
    if run.stage == "finetune" and told:
        return sum(int(count) for count in told.values())
    if run.stage != "finetune" or "episodes" not in result:
        return None
    settings = run.config["finetune"]
    validation = len(run.validations) * int(run.config["evaluation"].get("validation_episodes", 0))
    initial = 0 if settings.get("offline") else _initial(run)
    return int(result["episodes"]) + validation + initial


def _initial(run: RunRecord) -> int:
    """Episodes before the first update: rolled out an iteration at a time, each of at most `episode_steps` steps."""
    settings, longest = run.config["finetune"], int(run.config["env"]["episode_steps"])
    together = int(settings["episodes_per_iteration"])
    first = next((record for record in run.metrics if any(key.startswith("train/") for key in record)), None)
    if first is None:
        return 0
    earlier = [record["step"] for record in run.metrics if 0 < record["step"] < first["step"]]
    steps = max(earlier, default=first["step"] - together * longest)  # a pen that drops ends its episode sooner
    whole = math.ceil(max(steps, 0) / longest / together) * together
    return min(whole, int(settings.get("initial_attempts", whole)))
