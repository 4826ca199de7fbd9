"""VRL3's settings: configs/agent/vrl3.yaml, checked."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from sodp3d.collection.agents.schedule import schedule
from sodp3d.core.errors import InputError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class VRL3Config:
    """configs/agent/vrl3.yaml. Defaults are VRL3's numbers unless the comment says ours."""

    encoder: str = "state"  # state (ours) | pixels
    stage1: str | None = None  # pixels: file of the encoder's first weights (data_collection/pretrain_encoder.py)
    encoder_lr_scale: float = 1.0  # pixels: the encoder's learning rate in units of `learning_rate`
    shift_padding: int = 4  # pixels: images are shifted by up to so many
    hidden: int = 1024
    features: int = 50
    layer_norm: bool = False  # ours (RLPD's): in the critics' hidden layers
    learning_rate: float = 1e-4
    batch_size: int = 256
    discount: float = 0.99
    n_step: int = 3
    target_rate: float = 0.01
    replay_size: int = 1_000_000
    updates_per_step: float = 0.5
    offline_updates: int = 30_000
    conservative_weight: float = 1.0
    conservative_temperature: float = 1.0
    conservative_actions: int = 10
    offline_std: float = 0.1
    online_std: float | str = 0.01  # or linear(first,last,agent steps)
    std_clip: float = 0.3
    pre_tanh_weight: float = 0.001
    pre_tanh_limit: float = 5.0
    safe_q_threshold: float = 200.0
    safe_q_exponent: float = 0.5
    bc_weight_offline: float = 0.0
    bc_weight_online: float = 0.0
    bc_half_life: float = 20_000.0  # ours: online updates after which the online weight has halved
    demo_fraction: float = 0.0  # ours
    precision: str = "float32"  # ours: of the products of hidden layers

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any]) -> "VRL3Config":
        """Validate and build. Raises InputError on an unknown key or an impossible value."""
        valid = [field.name for field in fields(cls)]
        for key in mapping:
            if key not in valid:
                raise InputError(f"agent: unknown key {key!r}; valid keys are {', '.join(valid)}.")
        config = cls(**mapping)
        if config.encoder not in ("state", "pixels"):
            raise InputError(f"agent.encoder: expected state or pixels, got {config.encoder!r}.")
        if config.encoder == "state" and config.stage1 is not None:
            raise InputError(f"agent.stage1: {config.stage1} is for agent.encoder=pixels; the state encoder has none.")
        if config.shift_padding < 0 or config.encoder_lr_scale < 0:
            raise InputError("agent.shift_padding, agent.encoder_lr_scale: expected 0 or more.")
        schedule(config.online_std, "agent.online_std")
        if config.precision not in PRECISIONS:
            raise InputError(f"agent.precision: expected {' or '.join(PRECISIONS)}, got {config.precision!r}.")
        if not 0.0 <= config.demo_fraction <= 1.0:
            raise InputError(f"agent.demo_fraction: expected a share from 0 to 1, got {config.demo_fraction}.")
        for key in ("hidden", "features", "batch_size", "n_step", "replay_size"):
            if getattr(config, key) < 1:
                raise InputError(f"agent.{key}: expected at least 1, got {getattr(config, key)}.")
        return config
