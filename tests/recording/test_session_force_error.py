"""A bound of the force error, carried along: in rows, in saved frames, and as a threshold."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from watched import atoms_of, frame_of, frames_of, rows_of, run_of, session_of

from quests_md import Frame, Index
from quests_md.errors import CalibrationError
from quests_md.index import calibrate, fit_error_bound


@pytest.fixture(scope="module")
def index():
    """Return an index of copper whose bound grows with dH: errors that grow with the rattling."""
    index = Index.build([atoms_of(0.05, seed) for seed in range(30)], threads=1)
    labelled = []
    for seed in range(40):
        scale = 0.05 + 0.002 * seed
        errors = scale * np.random.default_rng(seed).random(32)
        labelled.append((Frame.from_atoms(atoms_of(scale, 100 + seed)), errors))
    bound = fit_error_bound(index, labelled, coverage=0.8, threads=1)
    index.calibration = dataclasses.replace(calibrate(index, threads=1), force_error=bound)
    return index


@pytest.mark.parametrize("values", ["exact", "flagged"])
def test_rows_and_saved_frames_carry_the_bound(index, tmp_path, values):
    bound = index.calibration.force_error
    frames = [frame_of(step, scale) for step, scale in enumerate([0.05, 0.09, 0.3])]
    select = float(index.delta_entropy(frames[0]).max())
    with session_of(index, tmp_path / "uq", select=select, halt=1e9, min_distance=0.0, values=values) as session:
        decisions = [session.observe(frame) for frame in frames]
    for frame, decision, row in zip(frames, decisions, rows_of(session.output), strict=True):
        dH = index.delta_entropy(frame)
        expected = bound.bound(dH, frame.numbers)
        assert float(row["force_error"]) == decision.force_error == expected.max()
        assert (decision.force_errors >= expected).all()  # dH is an upper bound where it is not exact
    assert decisions[2].force_error == np.inf  # beyond the largest calibrated dH
    saved = frames_of(session.output)
    assert [atoms.info["step"] for atoms in saved] == [1, 2]
    for atoms in saved:
        expected = bound.bound(index.delta_entropy(atoms), atoms.numbers)
        np.testing.assert_array_equal(atoms.arrays["force_error"], expected)


def test_a_force_error_is_a_threshold(index, tmp_path):
    bound = index.calibration.force_error
    known = sorted({b for b in bound.bound(np.linspace(-10, 50, 200), np.full(200, 29)) if np.isfinite(b)})
    limit = known[len(known) // 2]
    select = {"force_error": float(limit)}
    with session_of(index, tmp_path / "uq", select=select, halt=1e9, min_distance=0.0) as session:
        decisions = [session.observe(frame_of(step, scale)) for step, scale in enumerate([0.03, 0.3])]
    assert [decision.force_error > limit for decision in decisions] == [d.band != "covered" for d in decisions]
    assert run_of(session.output)["thresholds"]["select"]["Cu"] == bound.threshold(limit, "Cu")


def test_an_error_that_no_bound_resolves_is_refused(index, tmp_path):
    session = session_of(index, tmp_path / "uq", select={"force_error": 1e-6}, halt=1e9)
    with pytest.raises(CalibrationError, match="select: "):
        session.observe(frame_of(0))
