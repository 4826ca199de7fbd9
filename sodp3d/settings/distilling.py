"""Distillation of a planner: section `distill`."""

from typing import Annotated, Any

from pydantic import Field

from sodp3d.core.sections import Count, Expected, Natural, NotNegative, Several, resource, section
from sodp3d.settings.pretraining import PretrainSettings

_Steps = Annotated[Annotated[Count, Field(le=2)], Expected("1 or 2")]


@section("distill")
class DistillSettings:
    """Gradient steps on plans that the teacher makes anew for what it saw in roll-outs of its own."""

    steps: _Steps = 1  # in which the student plans
    episodes: Count = 200  # roll-outs of the teacher
    updates: Count = 2000  # gradient steps
    batch_size: Count = 64  # observations
    plans: Several = 4  # of the student, for each observation
    learning_rate: NotNegative = 1e-3
    warmup_steps: Natural = 50  # gradient steps; then half a cosine down to 0
    log_every: Count = resource(default=20)  # gradient steps
    checkpoint_every: Count = resource(default=500)  # gradient steps
    evaluate_every: Natural = resource(default=0)  # gradient steps between two looks at validation seeds; 0: none

    @property
    def training(self) -> PretrainSettings:
        """The same as the trainer has it."""
        values: dict[str, Any] = {
            "steps": self.updates,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "warmup_steps": self.warmup_steps,
            "log_every": self.log_every,
            "checkpoint_every": self.checkpoint_every,
            "evaluate_every": self.evaluate_every,
        }
        return PretrainSettings(**values)
