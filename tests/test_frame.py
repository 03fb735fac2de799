"""A frame: its elements, and copies that outlive the host's memory."""

from __future__ import annotations

import numpy as np
import pytest

from quests_md.frame import Frame

ARRAYS = ("positions", "numbers", "ids", "watched", "velocities", "forces", "cell", "pbc", "origin")


def frame_of(n_local, n_ghosts=3, step=0, **more):
    rng, n = np.random.default_rng(step), n_local + n_ghosts
    more["velocities"] = rng.normal(size=(n_local, 3))
    return Frame(
        rng.normal(size=(n, 3)), rng.integers(0, 30, n), rng.normal(size=(3, 3)), (True, False, True),
        ids=rng.permutation(n), step=step, n_local=n_local, watched=rng.random(n_local) < 0.5, **more,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint8, np.uint64])
def test_distinct_numbers(dtype):
    for numbers in ([], [0], [14], [0, 118, 1, 14, 1, 14]):
        frame = Frame(np.zeros((len(numbers), 3)), np.array(numbers, dtype))
        assert frame.distinct_numbers.tolist() == sorted({*numbers} - {0})


def assert_is_local(copy, frame):
    assert (copy.n_local, copy.has_ghosts, len(copy.positions)) == (frame.n_local, False, frame.n_local)
    assert (copy.step, copy.energy, copy.n_expected) == (frame.step, frame.energy, frame.n_expected)
    for name in ARRAYS:
        mine, value = getattr(copy, name), getattr(frame, name)
        if value is None:
            assert mine is None
            continue
        value = value[: frame.n_local] if name in ("positions", "numbers", "ids") else value
        np.testing.assert_array_equal(mine, value)
        assert mine.dtype == value.dtype
        assert not np.shares_memory(mine, value)


def test_a_local_copy_takes_the_memory_of_an_earlier_one_where_it_fits():
    before = None
    for step, n, more in [
        (0, 5, {}),
        (1, 5, {"energy": 1.0, "n_expected": 9}),
        (2, 4, {}),
        (3, 4, {"forces": np.ones((4, 3))}),
        (4, 0, {}),
    ]:
        frame = frame_of(n, step=step, **more)
        copy = frame.local(before)
        assert_is_local(copy, frame)
        assert (before is not None and copy.positions is before.positions) == (step in (1, 3))
        before = copy
    whole = Frame(np.ones((2, 3)), np.array([1, 2]))
    assert_is_local(whole.local(before), whole)
