"""What every command shares: configs/common.yaml."""

from typing import Annotated, Literal

from pydantic import Field

from sodp3d.core.sections import Count, Expected, Natural, Text, Whole, resource, section

Seed = Annotated[Whole, Field(ge=0), Field(le=2**32 - 1), Expected(f"a whole number from 0 to {2**32 - 1}")]
Workers = Annotated[
    Natural | Annotated[Text, Field(pattern=r"^ray(:[1-9]\d*)?$")] | None,
    Expected("a number of processes, null, ray or ray:<number>"),
]


@section("")
class CommonSettings:
    """The seed, and on what and where a command works."""

    seed: Seed = 0
    device: Text = resource("auto")  # auto | cpu | cuda, as PyTorch names it
    threads: Count | None = resource(None)  # CPU threads of the learner; null: one for each idle core
    workers: Workers = resource(None)  # worker processes; null: one per core
    tasks_at_once: Count | None = resource(None)  # of a set, each in its own process; null: one for each core
    render: Literal["auto", "egl", "osmesa", "raycast"] = resource("auto")
    root: Text | None = resource(None)  # holds data/ and outputs/
    run_dir: Text | None = resource(None)  # this run's directory
    plugins: list[Text] | None = resource(None)  # modules that add choices; what is chosen of them decides
