"""The parts of a fine-tuning update of door's planner on states, one thread: cloning, the importance term, the critic.

Beside each the time that its matrix products alone would take at the rate of one large product: no program that
computes them in float32 can be faster.

python benchmarks/finetuning.py [--threads 1] [--rounds 3] -> results/benchmarks/finetuning.json
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from timing import compare, operations, write
from torch import Tensor
from training import make_planner

from sodp3d.core.cli import compose
from sodp3d.learning.critic import CriticLearner
from sodp3d.learning.learner import Learner
from sodp3d.models.planner import Planner
from sodp3d.settings import CriticSettings, FinetuneSettings, RegularizerSettings

CLONED, WEIGHED, CHUNKS = 256, 64, 5000


def plans(planner: Planner, learner: Learner, size: int) -> dict[str, Tensor]:
    """Made-up plans as memory holds them."""
    features = torch.rand(size, planner.config.feature_size)
    with torch.no_grad():
        chain = planner.sample_chain(features, planner.noise(size), learner.options)
    executed = torch.full((size,), planner.config.n_action_steps)
    return {"features": features, "latents": chain.latents, "means": chain.means, "executed": executed}


def parts() -> dict[str, Callable[[], Any]]:
    """One gradient step of each part."""
    planner = make_planner()
    settings = FinetuneSettings(**compose("train", ["algorithm=sodp_chunk"])["finetune"])
    learner = Learner(planner, settings, RegularizerSettings(), seed=0)
    batch, credit = plans(planner, learner, WEIGHED), torch.randn(WEIGHED)
    target = plans(planner, learner, CLONED)

    def cloning() -> None:
        learner.optimizer.zero_grad()
        learner.regularizer.loss(learner.planner, batch, target, learner.noise).backward()
        learner.optimizer.step()

    def importance() -> None:
        learner.optimizer.zero_grad()
        learner.importance(batch, credit)[0].backward()
        learner.optimizer.step()

    critic = CriticLearner(planner, CriticSettings(members=5, first_updates=0), seed=0)
    features = torch.rand(CHUNKS, planner.config.feature_size)
    chunks = torch.rand(CHUNKS, planner.config.n_action_steps, planner.config.action_size)
    ones = torch.ones(CHUNKS)
    critic.rows = {
        "features": features, "elapsed": 0 * ones, "chunk": chunks, "reward": ones,
        "next_features": features, "next_elapsed": 0 * ones, "next_chunk": chunks, "continues": ones,
    }  # fmt: skip
    return {"cloning": cloning, "importance": importance, "critic": lambda: critic.learn(1, scale=1.0)}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    measured, size = parts(), 2048
    square, product = torch.rand(2, size, size), torch.empty(size, size)
    best = compare({**measured, "product": lambda: torch.mm(square[0], square[1], out=product)}, arguments.rounds)
    rate = 2 * size**3 / best.pop("product")
    products = {name: operations(run) / rate for name, run in measured.items()}
    ratios = {name: seconds / products[name] for name, seconds in best.items()}
    sizes = {"plans_cloned": CLONED, "plans_weighed": WEIGHED, "chunks_of_the_critic": 256}
    write("finetuning", {**vars(arguments), **sizes, "seconds": best, "products_alone": products, "ratio": ratios})


if __name__ == "__main__":
    main()
