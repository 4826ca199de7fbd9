"""VRL3: an image encoder from stage 1, offline on demonstrations with a conservative loss (stage 2), online (stage 3).

Wang et al. 2022, after the public code (microsoft/VRL3 2bdcf5b): DrQ-v2's twin-critic actor-critic with n-step returns,
the conservative (CQL) loss in stage 2 only, safe-Q targets, and a penalty on large pre-tanh means. Images and joints
are what it sees with `encoder=pixels`. Ours: `encoder=state` with standardized inputs, time limits that bootstrap, the
option to reserve part of each batch for demonstrations, and (off in VRL3 by default) the behaviour-cloning weights.

Shape letters: B batch, E environments, Ds state size, Da action size, M actions per state.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sodp3d.collection.agents import Surroundings
from sodp3d.collection.agents.frames import PixelReplay
from sodp3d.collection.agents.memory import Batch, Replay, Trajectory
from sodp3d.collection.agents.networks import Actor, StateScaler, TwinCritic, noisy_action
from sodp3d.collection.agents.pixels import PixelEncoder
from sodp3d.collection.agents.schedule import schedule
from sodp3d.collection.agents.vrl3_config import PRECISIONS, VRL3Config
from sodp3d.core.checkpoint import (
    load_optimizer,
    optimizer_tensors,
    restore_generator,
    with_prefix,
    without_prefix,
)
from sodp3d.core.errors import InputError
from sodp3d.core.sections import read_section


def safe_q(values: Tensor, threshold: float, exponent: float) -> Tensor:
    """VRL3's bound on targets: above threshold + 1, threshold + (value - threshold)^exponent (1 off, 0 a hard cut)."""
    excess = (values - threshold).clamp(min=1.0)
    return torch.where(values > threshold + 1, threshold + excess**exponent, values)


class VRL3:
    """The agent. It owns its networks, optimizers, replay memory and random streams, and nothing of the environment.

    state_size: numbers in the state vector, or in proprioception where it sees images.
    """

    scripted_episodes = 0

    def __init__(
        self, config: VRL3Config, state_size: int, action_size: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self.config = config
        self.updates_per_step = config.updates_per_step
        self.needs_demonstrations = config.offline_updates > 0
        self.action_size = action_size
        self.device = torch.device(device)
        initial = torch.Generator().manual_seed(seed)
        pixels = config.encoder == "pixels"
        self.encoder: StateScaler | PixelEncoder = (
            PixelEncoder(state_size, config.shift_padding, seed + 3) if pixels else StateScaler(state_size)
        ).to(self.device)
        self.image_size = self.encoder.image_size
        sizes = (self.encoder.features, action_size, config.features, config.hidden)
        dtype = PRECISIONS[config.precision]
        self.actor = Actor(*sizes, initial, dtype).to(self.device)
        self.critic = TwinCritic(*sizes, initial, config.layer_norm, dtype).to(self.device)
        self.target = TwinCritic(*sizes, initial, config.layer_norm, dtype).to(self.device).requires_grad_(False)
        self.target.load_state_dict(self.critic.state_dict())
        self._actor_parameters: list[Tensor] = list(self.actor.parameters())
        self._critic_parameters: list[Tensor] = list(self.critic.parameters())
        self._target_parameters: list[Tensor] = list(self.target.parameters())
        self._actor_optimizer = torch.optim.Adam(self._actor_parameters, lr=config.learning_rate, fused=True)
        self._critic_optimizer = torch.optim.Adam(self._critic_parameters, lr=config.learning_rate, fused=True)
        self._encoder_parameters: list[Tensor] = list(self.encoder.parameters())
        if self._encoder_parameters:
            encoder_rate = config.learning_rate * config.encoder_lr_scale
            self._critic_optimizer.add_param_group({"params": self._encoder_parameters, "lr": encoder_rate})
        self.replay = (PixelReplay if pixels else Replay)(
            state_size, action_size, config.n_step, config.discount, config.replay_size
        )
        self._online_std = schedule(config.online_std, "agent.online_std")
        self._sampling = torch.Generator().manual_seed(seed + 1)  # which rows; the replay lives in main memory
        self._noise = torch.Generator(self.device).manual_seed(seed + 2)  # of updates
        self._exploration = torch.Generator(self.device).manual_seed(seed)
        self.offline_done = 0
        self.online_done = 0

    # ---- experience -------------------------------------------------------------------------------------------

    def demonstrate(self, trajectories: list[Trajectory]) -> None:
        """Put demonstrations into the replay for good and fit the encoder's input scale to them."""
        for trajectory in trajectories:
            self.replay.add(trajectory, demo=True)
        self.encoder.fit(trajectories)

    def observe(self, trajectory: Trajectory) -> None:
        """Take in one finished online episode."""
        self.replay.add(trajectory)

    def seed_exploration(self, seed: int) -> None:
        """As `Agent.seed_exploration`."""
        self._exploration.manual_seed(seed)

    @torch.no_grad()
    def act(self, observations: Any, explore: bool) -> np.ndarray:
        """As `Agent.act`; with `explore`, Gaussian noise of `online_std`."""
        seen = self.encoder.look(observations, self.device)
        noise = self._exploration if explore else None
        return noisy_action(self.actor(seen), self.online_std, noise).cpu().numpy()

    @property
    def online_std(self) -> float:
        """Standard deviation of the noise in stage 3, now."""
        return self._online_std(self.replay.added)

    # ---- learning ---------------------------------------------------------------------------------------------

    @property
    def offline_left(self) -> int:
        """Updates of stage 2 that are still to be done; none without demonstrations."""
        return max(self.config.offline_updates - self.offline_done, 0) if self.replay.demos else 0

    def update(self, count: int, offline: bool = False) -> dict[str, float]:
        """`count` gradient steps of stage 2 (`offline`) or stage 3. Returns the means of their metrics."""
        if count < 1 or len(self.replay) == 0:
            return {}
        totals: dict[str, Tensor] = {}
        for _ in range(count):
            for key, value in self._update_once(offline).items():
                totals[key] = totals[key] + value if key in totals else value
        metrics = {key: float(value) / count for key, value in totals.items()}
        if not all(np.isfinite(value) for value in metrics.values()):
            raise FloatingPointError(f"VRL3 diverged after {self.offline_done}+{self.online_done} updates: {metrics}")
        return metrics

    def _update_once(self, offline: bool) -> dict[str, Tensor]:
        config = self.config
        batch = self.replay.sample(config.batch_size, self._sampling, 0.0 if offline else config.demo_fraction)
        batch = batch.to(self.device)
        states, next_states = self.encoder.learn(batch, self._noise)
        std = config.offline_std if offline else self.online_std
        metrics = self._update_critic(batch, states, next_states, std, offline)
        metrics |= self._update_actor(batch, states.detach(), std, self._bc_weight(offline))
        with torch.no_grad():  # outside, the targets would grow a graph of every earlier update
            torch._foreach_lerp_(self._target_parameters, self._critic_parameters, config.target_rate)
        if offline:
            self.offline_done += 1
        else:
            self.online_done += 1
        return metrics

    def _bc_weight(self, offline: bool) -> float:
        if offline:
            return self.config.bc_weight_offline
        return self.config.bc_weight_online * 0.5 ** (self.online_done / self.config.bc_half_life)

    def _update_critic(
        self, batch: Batch, states: Tensor, next_states: Tensor, std: float, offline: bool
    ) -> dict[str, Tensor]:
        config = self.config
        with torch.no_grad():
            next_actions = noisy_action(self.actor(next_states), std, self._noise, config.std_clip)
            next_values = self.target(next_states, next_actions[:, None])[:, :, 0].amin(0)
            targets = safe_q(
                batch.returns + batch.discounts * next_values, config.safe_q_threshold, config.safe_q_exponent
            )
        conservative = offline and config.conservative_weight > 0
        actions = batch.actions[:, None]
        if conservative:
            actions = self._compared_actions(batch.actions, states, next_actions, std)
        values = self.critic(states, actions)  # (2, B, M); the data's action comes first
        loss = (values[:, :, 0] - targets).square().mean(1).sum()
        metrics = {"critic_loss": loss.detach(), "value": values[:, :, 0].detach().mean()}
        if conservative:
            temperature = config.conservative_temperature
            gap = temperature * torch.logsumexp(values / temperature, dim=2) - values[:, :, 0]
            loss = loss + config.conservative_weight * gap.mean(1).sum()
            metrics["conservative_gap"] = gap.detach().mean()
        self._step(self._critic_optimizer, self._critic_parameters + self._encoder_parameters, loss)
        return metrics

    @torch.no_grad()
    def _compared_actions(self, actions: Tensor, states: Tensor, next_actions: Tensor, std: float) -> Tensor:
        """(B, M, Da): the data's action, pi(s), pi(s') and uniform ones, for the conservative loss."""
        shape = (len(actions), self.config.conservative_actions, self.action_size)
        uniform = torch.rand(shape, generator=self._noise, device=self.device) * 2 - 1
        own = noisy_action(self.actor(states), std, self._noise, self.config.std_clip)
        return torch.cat([actions[:, None], own[:, None], next_actions[:, None], uniform], dim=1)

    def _update_actor(self, batch: Batch, states: Tensor, std: float, bc_weight: float) -> dict[str, Tensor]:
        config = self.config
        pre_tanh = self.actor(states)
        actions = noisy_action(pre_tanh, std, self._noise, config.std_clip)
        value = self.critic(states, actions[:, None])[:, :, 0].amin(0).mean()
        excess = (pre_tanh.abs() - config.pre_tanh_limit).relu().square().mean()
        loss = config.pre_tanh_weight * excess - value
        metrics = {"actor_value": value.detach()}
        if bc_weight > 0:
            weights = batch.from_demo / batch.from_demo.sum().clamp(min=1)
            cloning = ((torch.tanh(pre_tanh) - batch.actions).square().mean(1) * weights).sum()
            # Values grow a hundredfold while learning; in units of their size the weight keeps its meaning (TD3+BC).
            loss = loss + bc_weight * value.detach().abs().clamp(min=1.0) * cloning
            metrics["bc_loss"] = cloning.detach()
        self._step(self._actor_optimizer, self._actor_parameters, loss)
        return metrics

    @staticmethod
    def _step(optimizer: torch.optim.Optimizer, parameters: list[Tensor], loss: Tensor) -> None:
        """One step for these parameters only: the critics' gradients are never computed for the actor's loss.

        Gradients are laid out in memory as their parameters. Convolutions of channels-last images give others, which
        fused Adam refuses on CUDA, and takes for the gradients of other weights on the CPU.
        """
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            alike = gradient.stride() == parameter.stride()
            parameter.grad = gradient if alike else torch.empty_like(parameter).copy_(gradient)
        optimizer.step()

    # ---- state ------------------------------------------------------------------------------------------------

    def _modules(self) -> dict[str, nn.Module]:
        encoder = "scaler" if self.image_size is None else "encoder"
        return {encoder: self.encoder, "actor": self.actor, "critic": self.critic, "target": self.target}

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"actor_optimizer": self._actor_optimizer, "critic_optimizer": self._critic_optimizer}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As `Agent.state`: networks, optimizers, replay memory and random streams."""
        tensors: dict[str, Tensor] = {}
        for name, module in self._modules().items():
            tensors |= with_prefix(name, module.state_dict())
        for name, optimizer in self._optimizers().items():
            tensors |= with_prefix(name, optimizer_tensors(optimizer))
        replay_tensors, replay_state = self.replay.state()
        tensors |= with_prefix("replay", replay_tensors)
        tensors |= {"random.sampling": self._sampling.get_state(), "random.noise": self._noise.get_state()}
        done = {"offline_done": self.offline_done, "online_done": self.online_done}
        return tensors, {"settings": asdict(self.config), "replay": replay_state, **done}

    def load_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """As `Agent.load_state`. Raises InputError when the tensors do not fit."""
        tensors = dict(tensors)
        for name, module in self._modules().items():
            try:
                module.load_state_dict(without_prefix(name, tensors))
            except RuntimeError as error:
                raise InputError(f"checkpoint: {name!r} does not fit this agent's settings ({error}).") from error
        for name, optimizer in self._optimizers().items():
            load_optimizer(optimizer, without_prefix(name, tensors))
        self.replay.load_state(without_prefix("replay", tensors), state["replay"])
        restore_generator(self._sampling, tensors["random.sampling"])
        restore_generator(self._noise, tensors["random.noise"])
        self.offline_done, self.online_done = state["offline_done"], state["online_done"]


def build(settings: dict[str, Any], where: Surroundings) -> VRL3:
    """The agent of configs/agent/vrl3.yaml; it knows nothing of the env but its sizes."""
    config = read_section(VRL3Config, settings)
    size = where.proprioception_size if config.encoder == "pixels" else where.state_size
    agent = VRL3(config, size, where.action_size, where.seed, where.device)
    if where.fresh and isinstance(agent.encoder, PixelEncoder):
        agent.encoder.load_stage1(config.stage1)
    return agent
