"""How agents collect: section `collect`, and the options of record and pretrain-encoder."""

from typing import Literal

from sodp3d.core.errors import InputError
from sodp3d.core.sections import Count, Flag, Fraction, Natural, NotNegative, Share, Text, resource, section
from sodp3d.core.seeds import VALIDATION_SEEDS
from sodp3d.settings.evaluation import require_validation
from sodp3d.settings.pretraining import Quality


@section("collect")
class CollectSettings:
    """Agent (control) steps to make, and what to do on the way.

    All are resources: an agent's collection goes on to another number of steps. What makes it that collection is the
    agent, the seed and the demonstrations.
    """

    agent_steps: Count = resource(default=300_000)  # an agent's whole training
    fraction: Share = resource(default=0.3)  # its part that quality=suboptimal runs and keeps
    quality: Quality = resource(default="suboptimal")
    environments: Count = resource(default=4)  # stepped at once
    depth: Flag = resource(default=True)  # draw a depth image at every step; false: later, from simulator states
    checkpoint_every: Count = resource(default=5000)  # agent steps
    evaluate_every: Natural = resource(default=10_000)  # agent steps; 0: never
    evaluation_episodes: Natural = resource(default=20)
    evaluation_seed: Natural = resource(default=VALIDATION_SEEDS.start)  # of `evaluation_episodes` consecutive ones

    def __post_init__(self) -> None:
        first = self.evaluation_seed
        require_validation("collect.evaluation_seed", range(first, first + self.evaluation_episodes))
        if self.evaluate_every and not self.evaluation_episodes:
            raise InputError(
                f"collect.evaluation_episodes: expected a whole number of at least 1 with "
                f"collect.evaluate_every={self.evaluate_every}, got 0; collect.evaluate_every=0 leaves evaluations out."
            )

    @property
    def steps(self) -> int:
        """Agent steps to run.

        Sub-optimal data is the first `fraction` of an agent's training, and only that is run. For the rest the agent
        must run to its end, and then every step is kept: pretrain.quality chooses from it.
        """
        return max(1, round(self.agent_steps * self.fraction)) if self.quality == "suboptimal" else self.agent_steps


@section("")
class DemonstrationSettings:
    """What an agent is shown before it collects, and where that goes; at the top of configs/collect.yaml."""

    data: Text | None = resource(default=None)  # folder of the store and its agent; null: data/<env name>
    demos: Text | None = None  # Minari dataset id or folder; null: the ones shipped for the env
    demo_episodes: Count | None = 25  # null: all


@section("")
class ConvertSettings:
    """What is made from a store's depth or simulator states; configs/convert.yaml."""

    data: Text | None = None  # store folder; null: data/<env name>
    backend: Literal["open3d", "torch"] = "open3d"  # who samples points
    output: Text | None = None  # key of the new array; null: point_cloud or image
    again: Literal["clouds", "image", "depth"] | None = None  # with another crop; or drawn from simulator states
    output_data: Text | None = None  # again=depth: folder of the new store; null: into a store without depth
    partial: Flag = False  # of a set: convert what is there

    def __post_init__(self) -> None:
        if self.output_data and self.again != "depth":
            raise InputError("output_data: names the new store's folder for again=depth, and belongs to it alone.")
        if self.output and self.again == "depth":
            raise InputError(
                f"output: again=depth always makes data/depth, got {self.output}; leave it out. output_data= names a "
                "new store for it."
            )


@section("")
class RecordSettings:
    """Successful roll-outs to record as demonstrations; at the top of configs/record.yaml."""

    run: Text | None = None  # the agent's run directory
    output: Text | None = None  # folder of the new dataset
    episodes: Count = 25  # successful ones
    attempts: Count = 200  # at most
    environments: Count = 4  # stepped at once


@section("")
class EncoderSettings:
    """Images to learn from and where the encoder goes; at the top of configs/pretrain_encoder.yaml."""

    images: Text | None = None  # folder with train/<class>/* and val/<class>/*
    output: Text | None = None  # file of the encoder
    run_dir: Text | None = resource(default=None)  # this run's directory; null: one of its own

    def __post_init__(self) -> None:
        for key in ("images", "output"):
            if not getattr(self, key):
                raise InputError(f"{key}: name it; for instance images=/data/imagenet output=resnet6.safetensors.")


@section("stage1")
class Stage1Settings:
    """VRL3's stage 1: an image encoder learns to classify."""

    epochs: Count = 90
    batch_size: Count = 256  # images
    learning_rate: NotNegative = 0.1
    decay_every: Count = 30  # epochs
    momentum: Fraction = 0.9
    weight_decay: NotNegative = 1e-4
    log_every: Count = resource(default=100)  # batches
    checkpoint_every: Count = resource(default=2000)  # batches
