"""First parameters: each name and seed has a stream of its own, of the deviation asked for."""

import math

import numpy as np
import pytest

from barnraise.model.initialise import uniform


def test_seed_and_name_choose_the_draw() -> None:
    draws = [uniform(seed, name, (4, 5), 1.0) for seed in (1, 2) for name in ("a", "b")]
    assert len({draw.tobytes() for draw in draws}) == 4


def test_draw_has_the_deviation_asked_for() -> None:
    draw = uniform(1, "a", (200, 500), 0.25)
    assert draw.std() == pytest.approx(0.25, rel=0.01)
    assert abs(draw.mean()) < 0.005
    assert np.abs(draw).max() <= 0.25 * math.sqrt(3)
