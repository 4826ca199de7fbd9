"""What is replayed: configs/replay.yaml."""

from typing import Annotated, Literal

from sodp3d.core.errors import InputError
from sodp3d.core.sections import Count, Expected, Natural, Text, section

Indices = Annotated[list[Natural] | None, Expected("a list of whole numbers of at least 0, or null")]


@section("")
class ReplaySettings:
    """Which episodes are shown, and how; at the top of configs/replay.yaml."""

    run: Text | None = None  # a run directory with evaluated roll-outs
    seeds: Indices = None  # which of its roll-outs
    data: Text | None = None  # data/<env> or its episodes.zarr
    episodes: Indices = None  # which collected episodes; null: spread evenly over the store
    count: Count = 4  # how many
    viewer: Literal["video", "rerun"] = "video"  # mp4s, or .rrd files
    output: Text | None = None  # null: `folder` beside the roll-outs or the store

    def __post_init__(self) -> None:
        if bool(self.run) == bool(self.data):
            raise InputError("replay: give one of run=<run dir> and data=<store>.")
        if self.data and self.seeds is not None:
            raise InputError("seeds: of a run's roll-outs, but data= came; choose episodes=[...].")
        if self.run and self.episodes is not None:
            raise InputError("episodes: of a store, but run= came; choose seeds=[...].")

    @property
    def folder(self) -> str:
        """Where files land unless told."""
        return "rerun" if self.viewer == "rerun" else "videos"
