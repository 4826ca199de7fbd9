"""SAC for Meta-World: Stable-Baselines3's networks and updates, our replay order, random streams and state.

One agent per task, as the paper's sub-optimal data (MTDiff) was made; its hyper-parameters are not published, these are
the usual single-task ones. Stable-Baselines3's zip archives are never written or read: they carry pickled objects.

Shape letters: E environments, Ds state size, Da action size.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, NoReturn

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from sodp3d.collection.agents import Surroundings
from sodp3d.collection.agents.memory import Trajectory
from sodp3d.collection.agents.networks import StateScaler
from sodp3d.core.checkpoint import load_optimizer, optimizer_tensors, with_prefix, without_prefix
from sodp3d.core.errors import InputError
from sodp3d.core.sections import Count, Natural, NotNegative, Positive, Share, read_section, section

_FLOOR = 0.05  # metres, in most of a state: what random actions and starts vary less than this counts as so much


@section("agent")
class SACConfig:
    """configs/agent/sac.yaml."""

    hidden: Count = 256
    layers: Count = 2
    learning_rate: Positive = 3e-4
    batch_size: Count = 256  # transitions
    discount: Share = 0.97
    target_rate: Share = 0.005
    initial_entropy: Positive = 0.1  # coefficient of the entropy, tuned from there
    replay_size: Count = 1_000_000  # transitions
    random_steps: Natural = 5_000  # uniform actions before the policy's own
    updates_per_step: NotNegative = 1.0


class _Spaces(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Tells Stable-Baselines3 the sizes; the stepping happens in the collection loop."""

    def __init__(self, state_size: int, action_size: int) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (state_size,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (action_size,), np.float32)

    def step(self, action: NDArray[np.float32]) -> NoReturn:
        raise NotImplementedError

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> NoReturn:
        raise NotImplementedError


class _ScaledState(StateScaler):
    """What Stable-Baselines3 puts before each network: Meta-World's states differ by centimetres in units of metres."""

    def __init__(self, space: spaces.Box) -> None:
        super().__init__(space.shape[0])
        self.features_dim = self.features


class _Streams:
    """Random numbers of its own from the global streams of NumPy and PyTorch, which are left as they were.

    device: where the policy draws; the CPU's stream is lent in any case.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self.numpy: Any = np.random.RandomState(seed).get_state()
        self.torch = torch.Generator().manual_seed(seed).get_state()
        self.cuda = torch.Generator(device).manual_seed(seed).get_state() if device.type == "cuda" else None

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Within it the global streams are this one's."""
        before = self._global()
        self._lend(self.numpy, self.torch, self.cuda)
        try:
            yield
        finally:
            self.numpy, self.torch, self.cuda = self._global()
            self._lend(*before)

    def _global(self) -> tuple[Any, Tensor, Tensor | None]:
        cuda = None if self.cuda is None else torch.cuda.get_rng_state(self.device)
        return np.random.get_state(), torch.get_rng_state(), cuda

    def _lend(self, numpy: Any, cpu: Tensor, cuda: Tensor | None) -> None:
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, self.device)


class SAC:
    """The agent. Stable-Baselines3 draws from the global random streams: here its own are lent to it."""

    image_size: int | None = None
    needs_demonstrations = False
    scripted_episodes = 0
    offline_left = 0

    def __init__(
        self, config: SACConfig, state_size: int, action_size: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        from stable_baselines3 import SAC as Learner  # noqa: N811 - ours has the same name
        from stable_baselines3.common.logger import Logger

        self.config, self.action_size = config, action_size
        self.updates_per_step = config.updates_per_step
        self._device = torch.device(device)
        self._learning, self._exploration = _Streams(seed, self._device), _Streams(seed, self._device)
        with self._learning.lent():
            self._learner = Learner(
                "MlpPolicy",
                _Spaces(state_size, action_size),
                learning_rate=config.learning_rate,
                buffer_size=config.replay_size,
                batch_size=config.batch_size,
                tau=config.target_rate,
                gamma=config.discount,
                ent_coef=f"auto_{config.initial_entropy}",
                policy_kwargs={
                    "net_arch": [config.hidden] * config.layers,
                    "features_extractor_class": _ScaledState,
                },
                device=device,
            )
        self._learner.set_logger(Logger(None, []))
        self._steps = 0

    def demonstrate(self, trajectories: list[Trajectory]) -> None:
        """SAC learns from nothing but its own experience."""
        raise InputError("agent=sac takes no demonstrations.")

    def seed_exploration(self, seed: int) -> None:
        """As `Agent.seed_exploration`."""
        self._exploration = _Streams(seed, self._device)

    def act(self, states: NDArray[np.float32], explore: bool) -> NDArray[np.float32]:
        """states (E, Ds) -> actions (E, Da); uniform ones for the first `random_steps` if exploring."""
        with self._exploration.lent():
            if explore and self._steps < self.config.random_steps:
                return np.random.uniform(-1, 1, (len(states), self.action_size)).astype(np.float32)
            actions, _ = self._learner.policy.predict(np.asarray(states, np.float32), deterministic=not explore)
        return actions.astype(np.float32)

    def observe(self, trajectory: Trajectory) -> None:
        """Take in one finished episode. At a time limit the last state's value counts on."""
        memory = self._learner.replay_buffer
        assert memory is not None
        known = min(len(trajectory.actions), len(trajectory.states) - 1)
        for t in range(known):
            ended = trajectory.terminated and t == len(trajectory.actions) - 1
            memory.add(
                trajectory.states[t],
                trajectory.states[t + 1],
                trajectory.actions[t],
                trajectory.rewards[t],
                np.array(ended),
                [{}],
            )
        if self._steps < self.config.random_steps:
            for module in self._learner.policy.modules():
                if isinstance(module, _ScaledState):
                    module.standardize(memory.observations[: memory.size(), 0], _FLOOR)
        self._steps += len(trajectory.actions)

    def update(self, count: int, offline: bool = False) -> dict[str, float]:
        """`count` of Stable-Baselines3's gradient steps, none before the random steps are over."""
        if count < 1 or self._steps < max(self.config.random_steps, 1):
            return {}
        with self._learning.lent():
            self._learner.train(count, self.config.batch_size)
        recorded = self._learner.logger.name_to_value
        metrics = {key: float(recorded[f"train/{key}"]) for key in ("actor_loss", "critic_loss", "ent_coef")}
        if not all(np.isfinite(value) for value in metrics.values()):
            raise FloatingPointError(f"SAC diverged after {self._steps} steps: {metrics}")
        return metrics

    # ---- state ------------------------------------------------------------------------------------------------------

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        learner = self._learner
        assert learner.ent_coef_optimizer is not None
        return {
            "actor_optimizer": learner.actor.optimizer,
            "critic_optimizer": learner.critic.optimizer,
            "entropy_optimizer": learner.ent_coef_optimizer,
        }

    def _memory_arrays(self) -> dict[str, NDArray[Any]]:
        memory = self._learner.replay_buffer
        assert memory is not None
        names = ("observations", "next_observations", "actions", "rewards", "dones")
        return {name: getattr(memory, name) for name in names}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As `Agent.state`."""
        learner = self._learner
        assert learner.replay_buffer is not None and learner.log_ent_coef is not None
        held = learner.replay_buffer.size()
        tensors = with_prefix("policy", learner.policy.state_dict())
        tensors["log_entropy_coefficient"] = learner.log_ent_coef.detach().clone()
        for name, optimizer in self._optimizers().items():
            tensors |= with_prefix(name, optimizer_tensors(optimizer))
        arrays = {name: torch.from_numpy(array[:held].copy()) for name, array in self._memory_arrays().items()}
        tensors |= with_prefix("replay", arrays)
        _, keys, *rest = self._learning.numpy
        tensors |= {"random.numpy": torch.from_numpy(keys.astype(np.int64)), "random.torch": self._learning.torch}
        if self._learning.cuda is not None:
            tensors["random.cuda"] = self._learning.cuda
        numbers = {"steps": self._steps, "updates": learner._n_updates, "numpy_random": rest}
        return tensors, {"settings": asdict(self.config), "place": learner.replay_buffer.pos, **numbers}

    def load_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """As `Agent.load_state`. Raises InputError when the tensors do not fit."""
        tensors, learner = dict(tensors), self._learner
        assert learner.replay_buffer is not None and learner.log_ent_coef is not None
        try:
            learner.policy.load_state_dict(without_prefix("policy", tensors))
        except RuntimeError as error:
            raise InputError(f"checkpoint: 'policy' does not fit this agent's settings ({error}).") from error
        learner.log_ent_coef.data.copy_(tensors["log_entropy_coefficient"])
        for name, optimizer in self._optimizers().items():
            load_optimizer(optimizer, without_prefix(name, tensors))
        held = len(tensors["replay.actions"])
        for name, array in self._memory_arrays().items():
            array[:held] = tensors[f"replay.{name}"].numpy()
        learner.replay_buffer.pos, learner.replay_buffer.full = state["place"], held == len(array)
        keys = tensors["random.numpy"].numpy().astype(np.uint32)
        self._learning.numpy = ("MT19937", keys, *state["numpy_random"])
        self._learning.torch = tensors["random.torch"]
        if self._learning.cuda is not None:  # a checkpoint of the CPU, or of an earlier release, has none
            self._learning.cuda = tensors.get("random.cuda", self._learning.cuda)
        self._steps, learner._n_updates = state["steps"], state["updates"]


def build(settings: dict[str, Any], where: Surroundings) -> SAC:
    """The agent of configs/agent/sac.yaml; it knows nothing of the env but its sizes."""
    config = read_section(SACConfig, settings)
    return SAC(config, where.state_size, where.action_size, where.seed, where.device)
