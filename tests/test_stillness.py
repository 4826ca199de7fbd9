"""What never moves in clouds is told from what does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sodp3d.vision.stillness import stillness

FRAMES = 12


def clouds(still: int, moving: int, seed: int) -> np.ndarray:
    """(F, still + moving, 3): a wall that is sampled anew in each frame, and a ball that is elsewhere in each."""
    random = np.random.default_rng(seed)
    frames = []
    for frame in range(FRAMES):
        wall = random.permutation(np.stack(np.meshgrid(np.arange(30), np.arange(30)), -1).reshape(-1, 2))[:still] * 0.01
        directions = random.normal(size=(moving, 3))
        ball = 0.03 * directions / np.linalg.norm(directions, axis=1, keepdims=True) + [0.2 * frame, 1.0, 0.5]
        frames.append(np.concatenate([np.insert(wall, 1, -1.0, axis=1), ball]))
    return np.stack(frames)


@settings(deadline=None, max_examples=20)
@given(still=st.integers(450, 700), moving=st.integers(30, 120), seed=st.integers(0, 99))
def test_a_wall_is_still_and_a_ball_is_not(still: int, moving: int, seed: int) -> None:
    found = stillness(clouds(still, moving, seed))
    assert found is not None and found.share == pytest.approx(still / (still + moving), abs=0.1)
    assert found.box is not None
    assert found.box[0] == pytest.approx((-0.03, 0.97, 0.47), abs=0.03)
    assert found.box[1] == pytest.approx((0.2 * (FRAMES - 1) + 0.03, 1.03, 0.53), abs=0.03)


def test_frames_that_are_all_alike_are_still() -> None:
    same = np.repeat(clouds(500, 50, 0)[:1], 5, axis=0)
    found = stillness(same)
    assert found is not None and found.share == 1 and found.box is None


def test_one_frame_says_nothing() -> None:
    assert stillness(clouds(500, 50, 0)[:1]) is None
