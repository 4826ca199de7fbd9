"""Seeds of episodes: three ranges that never meet.

VALIDATION_SEEDS are for what is looked at on the way, the others below FIRST_SEED for tests; learning draws from
FIRST_SEED on.
"""

import numpy as np

FIRST_SEED = 2**20
VALIDATION_SEEDS = range(200_000, 300_000)
COLLECTION, RECORDING, FINETUNING = 0, 1, 2  # streams of one run's seed
BRANCHING = 4  # another one: of the noise of episodes that begin in the middle of another
CHOOSING = 5  # and of which episodes the critic chooses in
DISTILLING = 6  # a stream too: of a teacher's roll-outs
REPLACEMENT = 3  # of an episode's: episodes in its place, where its simulation diverged


def episode_seed(seed: int, stream: int, index: int) -> int:
    """Seed of the index-th episode of a stream of a run with `seed`; never a test's or a validation's."""
    drawn = np.random.SeedSequence(seed, spawn_key=(stream, index)).generate_state(1)[0]
    return FIRST_SEED + int(drawn) % (2**31 - FIRST_SEED)
