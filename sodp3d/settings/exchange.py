"""What `sodp3d import` and `sodp3d export` are told: configs/import.yaml and configs/export.yaml."""

from sodp3d.core.errors import InputError
from sodp3d.core.sections import Count, Flag, Name, Positive, Text, section


@section("")
class ImportSettings:
    """Which recording becomes which store, and what of it is taken for what."""

    format: Name | None = None
    path: Name | None = None
    store: Name | None = None  # folder of the store
    action: list[Name] | None = None  # keys of the recording, joined in this order; null: the format's own
    agent_pos: list[Name] | None = None
    state: list[Name] | None = None
    keys: list[Name] | None = None  # further numbers beside the joints, as force or gripper
    depth: Name | None = None
    image: Name | None = None
    point_cloud: Name | None = None
    leave_out: list[Name] | None = None  # keys of the recording that are not read
    camera: Text | None = None  # a camera.json, for recordings that do not say where the camera was
    depth_scale: Positive | None = None  # metres of one unit of depth; null: what the recording says
    episodes: Count | None = None  # only the first so many
    skip_bad: Flag = False  # leave out episodes that cannot be read, and name them

    def __post_init__(self) -> None:
        _require(self, "sodp3d import <format> <path> <store>", "sodp3d import folder recordings/cup data/cup")


@section("")
class ExportSettings:
    """Which store becomes which recording."""

    store: Name | None = None
    format: Name | None = None
    path: Name | None = None  # of the new file or folder
    keys: list[Name] | None = None  # arrays of the store; null: all
    episodes: Count | None = None  # only the first so many
    rate: Positive | None = None  # steps a second; null: what the store says
    task: Text | None = None  # in words; null: what the store says
    video: Flag = False  # lerobot: colours as mp4, which is smaller and not exact

    def __post_init__(self) -> None:
        _require(self, "sodp3d export <store> <format> <path>", "sodp3d export data/cup lerobot datasets/cup")


def _require(settings: ImportSettings | ExportSettings, usage: str, example: str) -> None:
    for key in ("format", "path", "store"):
        if getattr(settings, key) is None:
            raise InputError(f"{key}: name it: {usage}; for instance {example}.")
