"""One gradient update: VRL3 and RLPD on states against Stable-Baselines3's SAC, with the same batch and hidden layers.

`rlpd_as_sac` is RLPD at SAC's sizes: two critics without LayerNorm, both in each target, one update of them for each of
the actor's. The others are what RLPD adds: LayerNorm, and more critics, of which two are drawn for each target.

Beside them the time that an update's matrix products alone would take at the rate of one large product: no program that
computes them in float32 can be faster.

python benchmarks/update.py [--threads 2] [--rounds 5] -> results/benchmarks/update.json
with --device cuda -> results/benchmarks/update_cuda.json
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from stable_baselines3 import SAC
from timing import compare, operations, write

from sodp3d.collection.agents.memory import Trajectory
from sodp3d.collection.agents.rlpd import RLPD, RLPDConfig
from sodp3d.collection.agents.vrl3 import VRL3
from sodp3d.collection.agents.vrl3_config import VRL3Config

STATE, ACTION, BATCH, UPDATES = 39, 28, 256, 20


class Nothing(gymnasium.Env):
    """The sizes of adroit_door, so that SAC can be built and its memory filled."""

    observation_space = gymnasium.spaces.Box(-1, 1, (STATE,))
    action_space = gymnasium.spaces.Box(-1, 1, (ACTION,))

    def reset(self, **_: object) -> tuple[np.ndarray, dict[str, object]]:
        """A random state."""
        return self.observation_space.sample(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, object]]:
        """Another one."""
        return self.observation_space.sample(), 0.0, False, False, {}


def sac(hidden: int, device: str) -> SAC:
    """Stable-Baselines3's SAC as it comes, with some memory."""
    layers = {"net_arch": [hidden, hidden]}
    model = SAC("MlpPolicy", Nothing(), policy_kwargs=layers, batch_size=BATCH, device=device)
    model.learn(200)
    return model


def vrl3(hidden: int, precision: Literal["float32", "bfloat16"], layer_norm: bool, device: str) -> VRL3:
    """The agent with VRL3's own losses, with some memory."""
    config = VRL3Config(hidden=hidden, precision=precision, layer_norm=layer_norm)
    agent = VRL3(config, STATE, ACTION, seed=0, device=device)
    remember(agent)
    return agent


def rlpd(hidden: int, members: int, layer_norm: bool, device: str) -> RLPD:
    """The agent with half of each batch from demonstrations, with some memory."""
    config = RLPDConfig(hidden=hidden, members=members, layer_norm=layer_norm, discount=0.99)
    agent = RLPD(config, STATE, ACTION, seed=0, device=device, shown=True)
    remember(agent)
    return agent


def remember(agent: VRL3 | RLPD) -> None:
    """Show it 25 episodes, and let it make 25."""
    random = np.random.default_rng(0)

    def trajectory() -> Trajectory:
        states = random.normal(size=(101, STATE)).astype(np.float32)
        actions = random.uniform(-1, 1, (100, ACTION)).astype(np.float32)
        return Trajectory(states, actions, random.normal(size=100).astype(np.float32))

    agent.demonstrate([trajectory() for _ in range(25)])
    for _ in range(25):
        agent.observe(trajectory())


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = arguments.device
    torch.set_num_threads(arguments.threads)
    cases = []
    size = 2048
    square, product = torch.rand(2, size, size, device=device), torch.empty(size, size, device=device)
    for hidden in (256, 1024):
        stable = sac(hidden, device)
        ours: dict[str, VRL3 | RLPD] = {
            "rlpd_as_sac": rlpd(hidden, 2, False, device),
            "rlpd_layer_norm": rlpd(hidden, 2, True, device),
            "rlpd_5_critics": rlpd(hidden, 5, True, device),
            "rlpd_10_critics": rlpd(hidden, 10, True, device),
            "vrl3": vrl3(hidden, "float32", False, device),
            "vrl3_bfloat16": vrl3(hidden, "bfloat16", False, device),
            "vrl3_layer_norm_bfloat16": vrl3(hidden, "bfloat16", True, device),
        }
        alternatives: dict[str, Callable[[], Any]] = {"stable_baselines3": partial(stable.train, UPDATES, BATCH)}
        alternatives |= {name: partial(agent.update, UPDATES) for name, agent in ours.items()}
        alternatives["large_product"] = partial(torch.mm, square[0], square[1], out=product)
        best = compare(alternatives, arguments.rounds)
        rate = 2 * size**3 / best.pop("large_product")
        seconds = {name: value / UPDATES for name, value in best.items()}
        for name in ("vrl3", "rlpd_as_sac"):
            seconds[f"products_at_full_rate_{name}"] = operations(partial(ours[name].update, 1)) / rate
        ratios = {name: seconds["stable_baselines3"] / value for name, value in seconds.items()}
        cases.append(
            {
                "hidden": hidden,
                "seconds_per_update": seconds,
                "times_faster": ratios,
                "operations_per_second_of_a_large_product": rate,
            }
        )
    write("update" if device == "cpu" else f"update_{device}", {**vars(arguments), "batch": BATCH, "cases": cases})


if __name__ == "__main__":
    main()
