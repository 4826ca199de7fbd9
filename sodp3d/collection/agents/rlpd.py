"""RLPD: SAC whose critics are an ensemble with LayerNorm, and half of whose batches are prior data.

Ball et al. 2023, "Efficient Online Reinforcement Learning with Offline Data". Prior data are noisy episodes that the
env family's scripted expert makes here first, or demonstrations. Ours: states and rewards are scaled by what was seen
before the first update, and time limits bootstrap. Nothing is learned before the agent's first own episodes are there.

Shape letters: B batch, E environments, M critics, Ds state size, Da action size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import relu

from sodp3d.collection.agents import Surroundings
from sodp3d.collection.agents.memory import Batch, Replay, Trajectory
from sodp3d.collection.agents.networks import GaussianActor, StateScaler, side_by_side
from sodp3d.collection.agents.scripted import Scripted, scripted_policy
from sodp3d.core.checkpoint import (
    load_optimizer,
    optimizer_tensors,
    restore_generator,
    with_prefix,
    without_prefix,
)
from sodp3d.core.errors import InputError
from sodp3d.core.sections import Count, Flag, Fraction, NotNegative, Positive, Share, read_section, section
from sodp3d.envs import task_family
from sodp3d.envs.config import EnvConfig
from sodp3d.models.ensemble import Ensemble
from sodp3d.models.ensemble_gradients import ForwardPass

_FLOOR = 0.05  # metres, in most of a state: what varies less than this counts as so much


@section("agent")
class RLPDConfig:
    """configs/agent/rlpd.yaml."""

    prior: Literal["auto", "scripted", "demonstrations", "none"] = "auto"
    prior_episodes: Count = 25
    prior_noise: NotNegative = 0.3  # standard deviation, of the expert's actions
    prior_fraction: Fraction = 0.5  # of each batch
    members: Count = 5
    target_members: Count = 2
    hidden: Count = 256
    layers: Count = 2
    layer_norm: Flag = True
    learning_rate: Positive = 3e-4
    batch_size: Count = 256  # transitions
    discount: Share = 0.97
    target_rate: Share = 0.005
    initial_entropy: Positive = 0.1  # coefficient of the entropy, tuned from there
    replay_size: Count = 1_000_000  # transitions
    updates_per_step: NotNegative = 1.0
    critic_updates: Count = 1  # in each update, before the actor's

    def __post_init__(self) -> None:
        if self.target_members > self.members:
            raise InputError(
                f"agent.target_members: expected at most agent.members={self.members}, got {self.target_members}."
            )


class RLPD:
    """The agent. It owns its networks, optimizers, replay memory and random streams, and nothing of the environment.

    expert: makes the first `prior_episodes`. shown: it needs demonstrations instead. Neither: it has no prior data.
    """

    image_size: int | None = None
    offline_left = 0

    def __init__(
        self,
        config: RLPDConfig,
        state_size: int,
        action_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        expert: Scripted | None = None,
        shown: bool = False,
    ) -> None:
        self.config, self.action_size, self.device = config, action_size, torch.device(device)
        self.updates_per_step, self.needs_demonstrations = config.updates_per_step, shown
        self.scripted_episodes = config.prior_episodes if expert else 0
        self._expert = expert
        self.scaler = StateScaler(state_size).to(self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sizes = config.members, state_size, action_size, config.hidden, config.layers
            self.actor = GaussianActor(state_size, action_size, config.hidden, config.layers).to(self.device)
            self.critic = Ensemble(*sizes, relu, config.layer_norm).to(self.device)
            self.target = Ensemble(*sizes, relu, config.layer_norm).to(self.device).requires_grad_(False)
        self.target.load_state_dict(self.critic.state_dict())
        entropy = torch.tensor(config.initial_entropy, device=self.device).log()
        self.log_entropy_coefficient = nn.Parameter(entropy)
        self._actor_parameters = [*self.actor.parameters(), self.log_entropy_coefficient]
        self._actor_block = side_by_side(self._actor_parameters)
        self._critic_block = side_by_side(self.critic.parameters())
        self._target_block = side_by_side(self.target.parameters())
        self._actor_optimizer = torch.optim.Adam([self._actor_block], lr=config.learning_rate, fused=True)
        self._critic_optimizer = torch.optim.Adam([self._critic_block], lr=config.learning_rate, fused=True)
        self.replay = Replay(state_size, action_size, 1, config.discount, config.replay_size)
        self._sampling = torch.Generator().manual_seed(seed + 1)  # rows, and members of targets
        self._noise = torch.Generator(self.device).manual_seed(seed + 2)  # of updates
        self._exploration = torch.Generator(self.device).manual_seed(seed)
        self.reward_scale = 1.0  # rewards are divided by it
        self.scripted_seen = 0  # episodes of the expert that were taken in
        self.updates = 0

    # ---- experience -------------------------------------------------------------------------------------------------

    def demonstrate(self, trajectories: list[Trajectory]) -> None:
        """Put demonstrations into the replay for good."""
        for trajectory in trajectories:
            self.replay.add(trajectory, demo=True)

    def observe(self, trajectory: Trajectory) -> None:
        """Take in one finished episode; the first ones are the expert's."""
        scripted = self.scripted_seen < self.scripted_episodes
        self.replay.add(trajectory, demo=scripted)
        self.scripted_seen += scripted

    def seed_exploration(self, seed: int) -> None:
        """As `Agent.seed_exploration`."""
        self._exploration.manual_seed(seed)
        if self._expert is not None:
            self._expert.seed_exploration(seed)

    @torch.no_grad()
    def act(self, observations: NDArray[np.float32], explore: bool) -> NDArray[np.float32]:
        """States (E, Ds) -> actions (E, Da); exploring, the expert's as long as prior episodes are missing."""
        if explore and self._expert is not None and self.scripted_seen < self.scripted_episodes:
            return self._expert.act(observations, explore)
        mean, log_deviation = self.actor(self.scaler.look(observations, self.device))
        if explore:
            noise = torch.randn(mean.shape, generator=self._exploration, device=self.device)
            mean = torch.addcmul(mean, log_deviation.exp(), noise)
        return torch.tanh(mean).cpu().numpy()

    # ---- learning ---------------------------------------------------------------------------------------------------

    def update(self, count: int, offline: bool = False) -> dict[str, float]:
        """`count` updates, each of the critics `critic_updates` times, then of the actor; none before own episodes."""
        if count < 1 or not self.replay.online:
            return {}
        if not self.updates:
            self._fit()
        totals: dict[str, Tensor] = {}
        for _ in range(count):
            for key, value in self._update_once().items():
                totals[key] = totals[key] + value if key in totals else value
        self.updates += count
        metrics = {key: float(value) / count for key, value in totals.items()}
        if not all(np.isfinite(value) for value in metrics.values()):
            raise FloatingPointError(f"RLPD diverged after {self.updates} updates: {metrics}")
        return metrics

    def _fit(self) -> None:
        """Scale states and rewards by all that was seen so far."""
        seen = self.replay.everything()
        self.scaler.standardize(seen.states.numpy(), _FLOOR)
        self.reward_scale = max(float(seen.returns.square().mean().sqrt()), 1e-3)

    def _update_once(self) -> dict[str, Tensor]:
        config = self.config
        for _ in range(config.critic_updates):
            batch = self.replay.sample(config.batch_size, self._sampling, config.prior_fraction, apart=True)
            batch = batch.to(self.device)
            states, next_states = self.scaler(batch.states), self.scaler(batch.next_states)
            metrics = self._update_critic(batch, states, self.targets(batch, next_states))
            self._target_block.data.lerp_(self._critic_block.data, config.target_rate)
        return metrics | self._update_actor(states)

    @torch.no_grad()
    def targets(self, batch: Batch, next_states: Tensor) -> Tensor:
        """(B,) reward + discount * (least value of some drawn targets - coefficient * log density), at pi(s')."""
        config = self.config
        actions, density = self.actor.sample(next_states, self._gaussian(len(next_states)))
        chosen = None
        if config.target_members < config.members:
            chosen = torch.randperm(config.members, generator=self._sampling)[: config.target_members].to(self.device)
        least = self.target.values(next_states, actions[:, None], chosen)[..., 0].amin(0)
        following = least - self.log_entropy_coefficient.exp() * density
        return batch.returns / self.reward_scale + batch.discounts * following

    def _update_critic(self, batch: Batch, states: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Each member learns by its own mean squared error, as if it were alone."""
        found = ForwardPass(self.critic, states, batch.actions)
        error = found.values - targets
        self._critic_block.grad = _flat(found.of_parameters(error * (2 / len(targets))))
        self._critic_optimizer.step()
        return {"critic_loss": error.square().mean(), "value": found.values.mean()}

    def _update_actor(self, states: Tensor) -> dict[str, Tensor]:
        """The actor climbs the critics' mean; the coefficient holds its entropy at minus half the number of actions."""
        actions, density = self.actor.sample(states, self._gaussian(len(states)))
        found = ForwardPass(self.critic, states, actions.detach())
        climbing = found.of_chunks(torch.full_like(found.values, 1 / found.values.numel()))
        coefficient, entropy = self.log_entropy_coefficient.detach().exp(), -density.mean()
        excess = entropy.detach() + self.action_size / 2
        loss = self.log_entropy_coefficient * excess - coefficient * entropy - (actions * climbing).sum()
        self._actor_block.grad = _flat(torch.autograd.grad(loss, self._actor_parameters))
        self._actor_optimizer.step()
        entropy = entropy.detach()
        told = {"actor_loss": -coefficient * entropy - found.values.mean()}
        return told | {"entropy": entropy, "entropy_coefficient": coefficient}

    def _gaussian(self, count: int) -> Tensor:
        return torch.randn(count, self.action_size, generator=self._noise, device=self.device)

    # ---- state ------------------------------------------------------------------------------------------------------

    def _modules(self) -> dict[str, nn.Module]:
        return {"scaler": self.scaler, "actor": self.actor, "critic": self.critic, "target": self.target}

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"actor_optimizer": self._actor_optimizer, "critic_optimizer": self._critic_optimizer}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As `Agent.state`: networks, optimizers, replay memory and random streams."""
        tensors: dict[str, Tensor] = {"log_entropy_coefficient": self.log_entropy_coefficient.detach()}
        for name, module in self._modules().items():
            tensors |= with_prefix(name, module.state_dict())
        for name, optimizer in self._optimizers().items():
            tensors |= with_prefix(name, optimizer_tensors(optimizer))
        replay_tensors, replay_state = self.replay.state()
        tensors |= with_prefix("replay", replay_tensors)
        tensors |= {"random.sampling": self._sampling.get_state(), "random.noise": self._noise.get_state()}
        done = {"updates": self.updates, "scripted_seen": self.scripted_seen, "reward_scale": self.reward_scale}
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
        self.log_entropy_coefficient.data.copy_(tensors["log_entropy_coefficient"])
        self.replay.load_state(without_prefix("replay", tensors), state["replay"])
        restore_generator(self._sampling, tensors["random.sampling"])
        restore_generator(self._noise, tensors["random.noise"])
        self.updates, self.scripted_seen = state["updates"], state["scripted_seen"]
        self.reward_scale = state["reward_scale"]


def _flat(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])


def prior_of(config: RLPDConfig, env: EnvConfig) -> str:
    """scripted, demonstrations or none. Raises InputError where scripted is asked for and the family has no experts."""
    known = getattr(task_family(env), "expert", None) is not None
    if config.prior == "auto":
        return "scripted" if known else "demonstrations"
    if config.prior == "scripted" and not known:
        raise InputError(
            f"agent.prior: env.family={env.family} has no scripted experts; use agent.prior=demonstrations, with "
            f"demos= where none are shipped, or agent.prior=none."
        )
    return config.prior


def build(settings: dict[str, Any], where: Surroundings) -> RLPD:
    """The agent of configs/agent/rlpd.yaml. Raises InputError for prior data that the env cannot have."""
    config = read_section(RLPDConfig, settings)
    prior = prior_of(config, where.env)
    expert = None
    if prior == "scripted":
        expert = Scripted(scripted_policy(where.env), where.action_size, config.prior_noise, where.seed)
    shown = prior == "demonstrations"
    return RLPD(config, where.state_size, where.action_size, where.seed, where.device, expert, shown)
