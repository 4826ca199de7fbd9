"""The whole configuration of `train.py`, section by section: configs/train.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from sodp3d.core import registry
from sodp3d.core.sections import Expected, Flag, Name, Text, read_keys, read_section, resource, section
from sodp3d.settings.common import CommonSettings
from sodp3d.settings.distilling import DistillSettings
from sodp3d.settings.evaluation import EvaluationSettings
from sodp3d.settings.finetuning import FinetuneSettings, RegularizerSettings
from sodp3d.settings.pretraining import ModelSettings, PretrainSettings


@section("obs")
class ObservationSettings:
    """What is seen, and who makes it."""

    name: Text = "pointcloud"
    backend: Text = resource(default="open3d")  # open3d | torch: who samples points in roll-outs
    device: Text = resource(default="cpu")  # where torch does


@section("")
class StageSettings:
    """Which stage, and from what; at the top of configs/train.yaml."""

    mode: Literal["pretrain", "finetune", "distill", "eval"] = "pretrain"
    method: Text = "sodp"
    algorithm: Name = "sodp"  # of fine-tuning
    run_dir: Text | None = resource(default=None)  # this run's directory; null: one of its own
    planner: Text | None = None  # run directory or checkpoint; null: the newest finished run of the stage before
    partial: Flag = False  # of a set: learn from what is there
    data: Annotated[Text | list[Text] | None, Expected("a folder, a list of folders, or null")] = None


@dataclass(frozen=True)
class TrainSettings:
    """All sections that the learning stages share. The env is `EnvConfig`'s; the agent checks its own."""

    common: CommonSettings
    stage: StageSettings
    obs: ObservationSettings
    reg: RegularizerSettings
    model: ModelSettings
    pretrain: PretrainSettings
    finetune: FinetuneSettings
    distill: DistillSettings
    evaluation: EvaluationSettings

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "TrainSettings":
        """Out of a composed configuration, checked. Raises InputError naming the key."""
        stage = read_keys(StageSettings, config)
        # Each method knows its own keys of `model`; it is a class of a floor above, and so comes by the registry.
        kinds = {**SECTIONS, "model": registry.choose(registry.METHODS, stage.method, "method").settings}
        sections = {name: read_section(kind, config.get(name, {})) for name, kind in kinds.items()}
        settings = cls(read_keys(CommonSettings, config), stage, **sections)
        settings.finetune.check_regularizer(settings.reg)
        return settings

    @property
    def sampler(self) -> dict[str, Any]:
        """What is set of a planner's sampler, over its own; None where nothing is."""
        evaluation = self.evaluation
        return {
            "sampling_steps": self.model.sampling_steps,
            "eta": evaluation.eta,
            "sigma_floor": evaluation.sigma_floor,
        }


SECTIONS: dict[str, Any] = {
    "obs": ObservationSettings,
    "reg": RegularizerSettings,
    "model": ModelSettings,
    "pretrain": PretrainSettings,
    "finetune": FinetuneSettings,
    "distill": DistillSettings,
    "evaluation": EvaluationSettings,
}
