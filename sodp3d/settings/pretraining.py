"""The planner's network and its pre-training: sections `model` and `pretrain`."""

from dataclasses import field
from typing import Annotated, Literal

from sodp3d.core.errors import InputError
from sodp3d.core.sections import (
    Count,
    Expected,
    Flag,
    Fraction,
    Natural,
    NotNegative,
    Share,
    Text,
    Whole,
    resource,
    section,
)

Quality = Literal["suboptimal", "nearoptimal", "all"]


@section("model")
class ModelSettings:
    """What a new planner is made of, and in how many steps any planner samples.

    Another method than planners has a class of its own from this one, with further keys, beside itself in `models`.
    """

    prediction: Literal["epsilon", "sample"] = "epsilon"
    denoising_steps: Count = 100  # K, of a new planner
    sampling_steps: Annotated[Whole | None, Expected("a whole number, or null")] = None  # K'; null: the planner's own
    unet: Text = "simple_dp3"
    encoder: Text | None = None  # an entry of registry.ENCODERS; null: the sensor's own

    def check_sampling(self, denoising_steps: int | None = None) -> None:
        """Raise InputError unless sampling skips evenly through K steps: a given planner's, or else a new one's."""
        steps, of = self.sampling_steps, denoising_steps or self.denoising_steps
        if steps is not None and (steps < 1 or of % steps):
            raise InputError(
                f"model.sampling_steps: expected a divisor of model.denoising_steps={of}, or null, got {steps!r}."
            )


@section("pretrain.augment")
class AugmentationSettings:
    """How clouds are changed anew each time that they are learned from; all 0 leaves them as they are."""

    jitter: NotNegative = 0.0  # standard deviation of each point's shift, metres
    dropout: Fraction = 0.0  # most of a cloud's points that are left out
    rotation: NotNegative = 0.0  # most of a turn about the vertical, degrees


@section("pretrain")
class PretrainSettings:
    """Gradient steps on windows of the stores' episodes."""

    steps: Count = 3000  # gradient steps
    batch_size: Count = 256  # windows
    learning_rate: NotNegative = 1e-3
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: Natural = 50  # gradient steps
    log_every: Count = resource(default=20)  # gradient steps
    checkpoint_every: Count = resource(default=500)  # gradient steps
    evaluate_every: Natural = resource(default=1000)  # gradient steps between two looks at validation seeds; 0: none
    held_out: Share = 0.1  # of recorded episodes, which are not learned from but measured on
    evaluate_episodes: Count = resource(default=10)  # then, of each task of a set
    balance: Literal["steps", "tasks"] = "steps"  # of windows of several tasks
    memory: Literal["auto", "ram", "mapped"] = resource(default="auto")  # where windows are read from
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: Flag = False
    quality: Quality = "suboptimal"
    fraction: Share = 1.0  # of a store's steps
    max_episodes: Count | None = None  # of each store
    successes_at_most: Share = 1.0  # of the episodes of each store, the most from its beginning on
    successful_only: Flag = False
    state_weight: NotNegative = 0.0  # of a loss that teaches the encoder to tell the simulator's state
    augment: AugmentationSettings = field(default_factory=AugmentationSettings)
