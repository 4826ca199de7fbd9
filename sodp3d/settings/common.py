"""What every command shares: configs/common.yaml."""

from typing import Annotated, Literal

from pydantic import Field

from sodp3d.core.sections import Count, Expected, Natural, Text, Whole, resource, section
from sodp3d.core.trackers import TENSORBOARD, require_tracker

Seed = Annotated[Whole, Field(ge=0), Field(le=2**32 - 1), Expected(f"a whole number from 0 to {2**32 - 1}")]
_MANY = 2**16  # threads or processes, beyond any machine
Threads = Annotated[Count, Field(le=_MANY), Expected(f"a whole number from 1 to {_MANY}")]
Workers = Annotated[
    Annotated[Natural, Field(le=_MANY)] | Annotated[Text, Field(pattern=r"^ray(:[1-9]\d*)?$")] | None,
    Expected(f"a number of processes up to {_MANY}, null, ray or ray:<number>"),
]


@section("")
class CommonSettings:
    """The seed, and on what and where a command works."""

    seed: Seed = 0
    device: Text = resource(default="auto")  # auto | cpu | cuda, as PyTorch names it
    threads: Threads | None = resource(default=None)  # CPU threads of the learner; null: one for each idle core
    workers: Workers = resource(default=None)  # worker processes; null: one per core
    tasks_at_once: Count | None = resource(default=None)  # of a set, each in its own process; null: one for each core
    render: Literal["auto", "egl", "osmesa", "raycast"] = resource(default="auto")
    tracker: Text = resource(default=TENSORBOARD)  # who is told a run's numbers beside metrics.jsonl
    root: Text | None = resource(default=None)  # holds data/ and outputs/
    plugins: list[Text] | None = resource(default=None)  # modules that add choices; what is chosen of them decides

    def __post_init__(self) -> None:
        require_tracker(self.tracker)
