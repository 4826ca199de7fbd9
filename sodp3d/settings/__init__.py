"""What can be set: each section of the configuration, with types, units and bounds, and what of it decides a run."""

from sodp3d.settings.collection import (
    CollectSettings,
    ConvertSettings,
    DemonstrationSettings,
    EncoderSettings,
    RecordSettings,
    Stage1Settings,
)
from sodp3d.settings.common import CommonSettings
from sodp3d.settings.distilling import DistillSettings
from sodp3d.settings.evaluation import EvaluationSettings
from sodp3d.settings.exchange import ExportSettings, ImportSettings
from sodp3d.settings.finetuning import (
    BranchSettings,
    CriticSettings,
    FinetuneSettings,
    LargeStepSettings,
    RegularizerSettings,
    SamplerSettings,
)
from sodp3d.settings.identity import decides, differences, identity, measured_alike, of_network, resources
from sodp3d.settings.pretraining import AugmentationSettings, ModelSettings, PretrainSettings
from sodp3d.settings.serving import ServeSettings
from sodp3d.settings.train import ObservationSettings, TrainSettings
from sodp3d.settings.viewing import ReplaySettings

__all__ = [
    "AugmentationSettings",
    "BranchSettings",
    "CollectSettings",
    "CommonSettings",
    "ConvertSettings",
    "CriticSettings",
    "DemonstrationSettings",
    "DistillSettings",
    "EncoderSettings",
    "EvaluationSettings",
    "ExportSettings",
    "FinetuneSettings",
    "ImportSettings",
    "LargeStepSettings",
    "ModelSettings",
    "ObservationSettings",
    "PretrainSettings",
    "RecordSettings",
    "RegularizerSettings",
    "ReplaySettings",
    "SamplerSettings",
    "ServeSettings",
    "Stage1Settings",
    "TrainSettings",
    "decides",
    "differences",
    "identity",
    "measured_alike",
    "of_network",
    "resources",
]
