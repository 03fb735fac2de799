"""A trajectory as a host."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from quests_md import Frame, Index, Monitor, Session
from quests_md.errors import Halted, InputError
from quests_md.hosts.replay import replay
from quests_md.sources import read_frames


def frame(scale: float, step: int) -> Frame:
    atoms = bulk("Si", cubic=True) * (2, 2, 2)
    atoms.rattle(scale, seed=3)
    return Frame.from_atoms(atoms, step, 0.002 * step)


@pytest.fixture(scope="module")
def index() -> Index:
    return Index.build([frame(0.03, 0), frame(0.02, 0)], threads=1)


def session(index: Index, folder: Path, **monitor: float) -> Session:
    thresholds = {"select": 1.0, "halt": 1e6, "precision": "double", "consecutive": 1} | monitor
    return Session(Monitor(index, **thresholds), folder / "uq", host="replay", novelty=False)


def test_one_decision_per_frame_with_its_step(index: Index, tmp_path: Path) -> None:
    frames = [frame(0.03, step) for step in (0, 5, 10, 20)]
    with session(index, tmp_path, every=10) as watched:
        decisions = list(replay(watched, iter(frames)))
    assert [(d.step, d.evaluated) for d in decisions] == [(0, True), (5, False), (10, True), (20, True)]
    np.testing.assert_array_equal(decisions[0].dH, index.delta_entropy(frames[0]))


def test_stops_at_a_halt_and_reads_no_further(index: Index, tmp_path: Path) -> None:
    frames = iter([frame(0.03, 0), frame(0.2, 1), frame(0.03, 2)])
    with session(index, tmp_path, halt=20.0) as watched:
        decisions = list(replay(watched, frames))
    assert [d.stop for d in decisions] == [False, True]
    assert watched.status == "halted"
    assert next(frames).step == 2


def test_is_lazy_and_obeys_a_halt(index: Index, tmp_path: Path) -> None:
    with session(index, tmp_path, halt=20.0) as watched:
        decisions = replay(watched, [frame(0.2, 0), frame(0.03, 1)])
        assert watched.n_evaluated == 0
        assert next(decisions).stop
        with pytest.raises(Halted):
            next(replay(watched, [frame(0.03, 1)]))
        watched.acknowledge()
        assert not next(replay(watched, [frame(0.03, 1)])).stop


def test_a_saved_frame_replays_to_the_same_dH(index: Index, tmp_path: Path) -> None:
    """candidates.extxyz is a trajectory too, and carries all digits."""
    with session(index, tmp_path) as watched:
        first = list(replay(watched, [frame(0.08, 10), frame(0.1, 20)]))
    again = session(index, tmp_path / "again")
    with again:
        second = list(replay(again, read_frames(tmp_path / "uq" / "candidates.extxyz")))
    assert [d.step for d in second] == [10, 20]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(other.dH, one.dH, rtol=1e-10, atol=1e-10)


def test_atoms_have_no_step(index: Index, tmp_path: Path) -> None:
    with session(index, tmp_path) as watched, pytest.raises(InputError, match="not Atoms"):
        next(replay(watched, [bulk("Si")]))
