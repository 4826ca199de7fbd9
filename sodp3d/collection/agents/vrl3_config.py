"""VRL3's settings: configs/agent/vrl3.yaml, checked."""

from typing import Annotated, Literal

import torch

from sodp3d.collection.agents.schedule import schedule
from sodp3d.core.errors import InputError
from sodp3d.core.sections import (
    Count,
    Expected,
    Flag,
    Fraction,
    Natural,
    NotNegative,
    Positive,
    Share,
    Text,
    section,
)

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@section("agent")
class VRL3Config:
    """configs/agent/vrl3.yaml. Defaults are VRL3's numbers unless the comment says ours."""

    encoder: Literal["state", "pixels"] = "state"  # state is ours
    stage1: Text | None = None  # pixels: file of the encoder's first weights (data_collection/pretrain_encoder.py)
    encoder_lr_scale: NotNegative = 1.0  # pixels: the encoder's learning rate in units of `learning_rate`
    shift_padding: Natural = 4  # pixels: images are shifted by up to so many
    hidden: Count = 1024
    features: Count = 50
    layer_norm: Flag = False  # ours (RLPD's): in the critics' hidden layers
    learning_rate: Positive = 1e-4
    batch_size: Count = 256  # transitions
    discount: Share = 0.99
    n_step: Count = 3
    target_rate: Share = 0.01
    replay_size: Count = 1_000_000  # transitions
    updates_per_step: NotNegative = 0.5
    offline_updates: Natural = 30_000
    conservative_weight: NotNegative = 1.0
    conservative_temperature: Positive = 1.0
    conservative_actions: Count = 10
    offline_std: NotNegative = 0.1
    online_std: Annotated[NotNegative | Text, Expected("a number from 0 on, or linear(first,last,steps)")] = 0.01
    std_clip: NotNegative = 0.3
    pre_tanh_weight: NotNegative = 0.001
    pre_tanh_limit: NotNegative = 5.0
    safe_q_threshold: NotNegative = 200.0
    safe_q_exponent: Positive = 0.5
    bc_weight_offline: NotNegative = 0.0
    bc_weight_online: NotNegative = 0.0
    bc_half_life: Positive = 20_000.0  # ours: online updates after which the online weight has halved
    demo_fraction: Fraction = 0.0  # ours
    precision: Literal["float32", "bfloat16"] = "float32"  # ours: of the products of hidden layers

    def __post_init__(self) -> None:
        schedule(self.online_std, "agent.online_std")
        if self.encoder == "state" and self.stage1 is not None:
            raise InputError(f"agent.stage1: {self.stage1} is for agent.encoder=pixels; the state encoder has none.")
