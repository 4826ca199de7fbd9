"""Seeds of episodes. Below FIRST_SEED they are for evaluation; learning never sees those."""

import numpy as np

FIRST_SEED = 2**20
COLLECTION, RECORDING, FINETUNING = 0, 1, 2  # streams of one run's seed
REPLACEMENT = 3  # of an episode's: episodes in its place, where its simulation diverged


def episode_seed(seed: int, stream: int, index: int) -> int:
    """Seed of the index-th episode of a stream of a run with `seed`; never one of evaluation's."""
    drawn = np.random.SeedSequence(seed, spawn_key=(stream, index)).generate_state(1)[0]
    return FIRST_SEED + int(drawn) % (2**31 - FIRST_SEED)
