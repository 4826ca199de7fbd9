"""Fine-tuning learns: a contextual bandit of action chunks, pre-trained on data that is right one time in five."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_planner import STATE

from sodp3d.learning.buffers import EpisodeRecord, ReplayBuffer, TargetBuffer
from sodp3d.learning.ppo import CreditOptions, credits_and_targets, importance_loss
from sodp3d.learning.regularizers import make_regularizer
from sodp3d.models.diffusion import ChainOptions
from sodp3d.models.planner import Planner

CONFIG = dataclasses.replace(STATE, inference_steps=5, prediction="sample")
OPTIONS = ChainOptions(sigma_floor=0.1)
MODES = 5  # directions to act in; the state tells which of them is right
CHUNKS = 2  # of an episode


def observe(mode: Tensor) -> dict[str, Tensor]:
    """Right direction (B,) -> raw observation."""
    state = torch.nn.functional.one_hot(mode, MODES).float()[:, None].expand(-1, 2, -1)
    return {"state": state, "agent_pos": torch.zeros(len(mode), 2, 3)}


def direction(mode: Tensor) -> Tensor:
    """(B,) -> unit action (B, 2)."""
    angle = 2 * math.pi / MODES * mode
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def chunk_reward(planner: Planner, latents: Tensor, mode: Tensor) -> Tensor:
    """1 for executed steps that all lie within 0.5 of the right direction, else 0. (B,)."""
    executed = planner.executed(planner.actions(latents[:, -1]))
    return ((executed - direction(mode)[:, None]).norm(dim=-1) < 0.5).all(1).float()


def pretrain(generator: torch.Generator, steps: int = 250) -> Planner:
    """On plans that go in a direction of their own, whatever the state says."""
    torch.manual_seed(0)
    planner = Planner(CONFIG)
    planner.normalizer.fit(
        {
            "action": np.array([[-1, -1], [1, 1]], np.float32),
            "state": np.eye(MODES, dtype=np.float32),
            "agent_pos": np.zeros((2, 3), np.float32),
        }
    )
    optimizer = torch.optim.Adam(planner.parameters(), 1e-3, fused=True)
    for _ in range(steps):
        state, action = torch.randint(MODES, (2, 128), generator=generator)
        batch = {**observe(state), "action": direction(action)[:, None].expand(-1, 4, -1)}
        loss = planner.loss(batch, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return planner


@torch.no_grad()
def roll_out(planner: Planner, episodes: int, generator: torch.Generator) -> list[EpisodeRecord]:
    """Episodes of CHUNKS independent chunks; a success has all of them right."""
    mode = torch.randint(MODES, (episodes * CHUNKS,), generator=generator)
    chain = planner.sample_chain(observe(mode), planner.noise(len(mode), generator), OPTIONS)
    reward = chunk_reward(planner, chain.latents, mode)
    records = []
    for start in range(0, len(mode), CHUNKS):
        rows = slice(start, start + CHUNKS)
        observation = {key: value[rows] for key, value in observe(mode).items()}
        success = bool(reward[rows].all())
        records.append(
            EpisodeRecord(observation, chain.latents[rows], chain.log_prob[rows], reward[rows], success, success)
        )
    return records


def mean_return(episodes: list[EpisodeRecord]) -> float:
    """Share of the best possible return."""
    return float(torch.stack([episode.reward.mean() for episode in episodes]).mean())


def finetune(planner: Planner, pretrained: Planner, regularizer: str, generator: torch.Generator, rounds: int) -> None:
    """Algorithm 1 in small: roll out, keep the proficient episodes, update on both losses."""
    replay, target = ReplayBuffer(96), TargetBuffer(96)
    regularize = make_regularizer(regularizer, pretrained, OPTIONS)
    optimizer = torch.optim.Adam(planner.parameters(), 3e-4, fused=True)
    for turn in range(rounds):
        # N_init: the pre-trained planner succeeds in one episode of 25.
        for episode in roll_out(planner, 48 if turn else 400, generator):
            replay.add(episode)
            target.add(episode)
        credit, _ = credits_and_targets(replay.rewards(), CreditOptions(baseline="mean"))
        for _ in range(10):
            batch, proficient = replay.sample(64, generator), target.sample(64, generator)
            new = planner.log_prob(batch, batch["latents"], OPTIONS)
            importance, _ = importance_loss(credit[batch["index"]], new, batch["log_prob"], clip=0.02)
            loss = importance + regularize.loss(planner, batch, proficient, generator)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(planner.parameters(), 1.0)
            optimizer.step()


@pytest.mark.slow
def test_bc_regularized_finetuning_reaches_the_best_return() -> None:
    generator = torch.Generator().manual_seed(0)
    pretrained, planner = pretrain(generator), pretrain(torch.Generator().manual_seed(0))
    before = mean_return(roll_out(planner, 100, generator))
    finetune(planner, pretrained, "bc", generator, rounds=12)
    after = mean_return(roll_out(planner, 100, generator))
    assert before < 0.3
    assert after > 0.9
