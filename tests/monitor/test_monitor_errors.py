"""Force errors by local residuals, live: what a monitor tells of each atom, and how they decide."""

from __future__ import annotations

import dataclasses
import math

import naive
import numpy as np
import pytest
import ranks
from ase import Atoms
from ase.build import bulk
from calibrations import RESIDUALS, moving, with_errors
from watched import frames_of, rows_of, steps_of

from quests_md import Frame, Monitor, Session
from quests_md.descriptors import DescriptorSpec
from quests_md.errors import CalibrationError, FrameError, InputError
from quests_md.index import Index, Residuals
from quests_md.kernels import search
from quests_md.kernels.blocks import LEAF

FREE = {"select": 1e6, "halt": 1e6, "precision": "double"}


@pytest.fixture(scope="module")
def index():
    return with_errors(Index.build(moving(40, 1), bandwidth=0.03, threads=1))


def frame_of(step, scale=0.06, seed=None, repeat=(2, 2, 2)):
    return moving(1, 7 + step if seed is None else seed, scale, repeat, step=step)[0]


def of_frame(index, frame):
    """Return dH, s, expected errors and bounds of a frame, by the index itself."""
    (dH, s), fitted = index.local_residuals(frame, 1), index.calibration.local_error
    return dH, s, fitted.expected(dH, s, frame.numbers), fitted.bound(dH, s, frame.numbers)


def test_exact_values_are_those_of_the_index(index):
    monitor, fitted = Monitor(index, **FREE), index.calibration.local_error
    for frame in (frame_of(0), frame_of(1, 0.1), frame_of(2, 0.3)):
        decision, (dH, s, expected, bound) = monitor.observe(frame), of_frame(index, frame)
        np.testing.assert_allclose(decision.dH, dH, rtol=1e-12)
        np.testing.assert_allclose(decision.expected_errors, expected, rtol=1e-9)
        np.testing.assert_allclose(decision.force_errors, bound, rtol=1e-9)
        outside = np.isnan(expected)
        assert (decision.n_outside, decision.force_error) == (outside.sum(), pytest.approx(bound.max()))
        assert decision.expected_error == pytest.approx(np.fmax.reduce(expected), nan_ok=True)
        assert decision.force_rmse == pytest.approx(fitted.expected_rmse(dH, s, frame.numbers), nan_ok=True)
        assert math.isnan(decision.force_rmse) == bool(outside.any())
    assert decision.n_outside  # the last one


def test_without_a_calibration_of_them_nothing_is_told(index):
    plain = dataclasses.replace(index, calibration=dataclasses.replace(index.calibration, local_error=None))
    decision = Monitor(plain, **FREE).observe(frame_of(0))
    assert decision.expected_errors is decision.force_errors is None
    assert math.isnan(decision.expected_error)
    assert math.isnan(decision.force_rmse)
    with_them = Monitor(index, **FREE).observe(frame_of(0))
    np.testing.assert_allclose(with_them.dH, decision.dH, rtol=1e-12)


@pytest.mark.parametrize("precision", ["single", "double"])
def test_flagged_values_are_exact_where_dH_is_and_estimates_elsewhere(index, precision):
    frames = [frame_of(step, 0.07, 7, (3, 3, 3)) for step in range(2)]
    frame = frames[1]
    dH, _, expected, _ = of_frame(index, frame)
    select = float(np.sort(dH)[-4])
    monitor = Monitor(index, select=select, halt=1e6, values="flagged", precision=precision, consecutive=1)
    monitor.observe(frames[0], whole=False)  # which fills the pool of exact values
    decision = monitor.observe(frame, whole=False)
    exact = decision.evaluation.is_exact
    assert exact[dH > select].all()
    assert not exact.all()
    np.testing.assert_allclose(decision.expected_errors[exact], expected[exact], rtol=1e-9)
    estimates = index.estimate_residuals(frame, 1)
    fitted = index.calibration.local_error
    wanted = fitted.expected(dH, estimates, frame.numbers)
    np.testing.assert_allclose(decision.expected_errors[~exact], wanted[~exact], rtol=1e-12)
    assert decision.values == "flagged"
    whole = monitor.complete(decision)
    assert whole.values == "exact"
    np.testing.assert_allclose(whole.expected_errors, expected, rtol=1e-9)


def test_of_a_large_index_flagged_values_have_estimates_until_a_frame_is_saved(index, monkeypatch):
    """Laying out a large index for a few atoms would cost more than all of their dH."""
    monkeypatch.setattr("quests_md.index._parts.LAID_OUT", 40)
    large = dataclasses.replace(index)
    frame = frame_of(0, 0.07)
    monitor = Monitor(large, select=1e6, halt=1e6, values="flagged")
    decision = monitor.observe(frame)
    dH, _, expected, _ = of_frame(index, frame)
    estimates = index.calibration.local_error.expected(dH, index.estimate_residuals(frame, 1), frame.numbers)
    np.testing.assert_allclose(decision.expected_errors, estimates, rtol=1e-12)
    np.testing.assert_allclose(monitor.complete(decision).expected_errors, expected, rtol=1e-6)
    np.testing.assert_allclose(Monitor(large, **FREE).observe(frame).expected_errors, expected, rtol=1e-6)


def test_what_is_beyond_the_calibration_is_never_estimated(index):
    """Flagged values know exactly which atoms are outside, whatever `select` is."""
    frame = frame_of(0, 0.12)
    dH, _, expected, _ = of_frame(index, frame)
    assert 0 < np.isnan(expected).sum() < len(dH)
    decision = Monitor(index, select=1e6, halt=1e6, values="flagged").observe(frame)
    np.testing.assert_array_equal(np.isnan(decision.expected_errors), np.isnan(expected))
    assert decision.n_outside == np.isnan(expected).sum()


@pytest.mark.parametrize("values", ["exact", "flagged"])
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_tell_the_same_as_one(index, size, values):
    frame = frame_of(0, 0.1)
    alone = Monitor(index, select=5.0, halt=1e6, values=values, precision="double").observe(frame)

    atoms, owners = (
        Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=True),
        np.arange(len(frame.numbers)) % size,
    )

    def observe(comm):
        mine = ranks.part_of(atoms, frame, owners, comm.rank)
        return Monitor(index, select=5.0, halt=1e6, values=values, precision="double", comm=comm).observe(mine)

    for decision in ranks.run(size, observe):
        assert not isinstance(decision, Exception), decision
        assert decision.n_outside == alone.n_outside
        for name in ("force_error", "expected_error", "force_rmse"):
            assert getattr(decision, name) == pytest.approx(getattr(alone, name), nan_ok=True), name


# -- a force error as a threshold -----------------------------------------------------------------------------


def limit_of(index, frame, share=0.9):
    bound = np.sort(of_frame(index, frame)[3])
    return float(bound[int(share * len(bound))])


def test_an_atom_lies_above_if_its_bound_does(index, tmp_path):
    frames = [frame_of(step, scale) for step, scale in enumerate([0.02, 0.05, 0.05])]
    limit = limit_of(index, frames[1])
    monitor = Monitor(index, select={"force_error": limit}, halt=1e6, consecutive=1)
    with Session(monitor, tmp_path / "uq", novelty=False, cutout={"radius": 0.0, "most": 2}) as session:
        decisions = [session.observe(frame) for frame in frames]
    for frame, decision in zip(frames, decisions, strict=True):
        bound = of_frame(index, frame)[3]
        assert decision.n_select == (bound > limit).sum()
        assert (decision.band == "candidate") == bool((bound > limit).any())
    assert [d.band.value for d in decisions] == ["covered", "candidate", "candidate"]
    assert f"select = {limit:g} eV/Å" in decisions[1].reasons[0]
    assert steps_of(session.output) == [1, 2]
    for atoms in frames_of(session.output):
        expected = of_frame(index, Frame.from_atoms(atoms))
        np.testing.assert_allclose(atoms.arrays["expected_error"], expected[2], rtol=1e-6)
        np.testing.assert_allclose(atoms.arrays["force_error"], expected[3], rtol=1e-6)
    cuts = frames_of(session.output, "cutouts")
    assert {atoms.info["step"] for atoms in cuts} == {1, 2}
    for row, decision in zip(rows_of(session.output), decisions, strict=True):
        assert float(row["expected_error"]) == decision.expected_error
        assert float(row["force_rmse"]) == pytest.approx(decision.force_rmse, nan_ok=True)
        assert int(row["n_outside"]) == decision.n_outside


def test_copies_of_a_kept_frame_are_not_kept(index, tmp_path):
    frames = [frame_of(step, 0.05, 7) for step in range(6)]
    monitor = Monitor(index, select={"force_error": limit_of(index, frames[0], 0.98)}, halt=1e6, consecutive=1)
    with Session(monitor, tmp_path / "uq") as session:
        decisions = [session.observe(frame) for frame in frames]
    assert all(decision.n_select for decision in decisions)
    assert [d.save for d in decisions] == [True] + 5 * [False]
    assert 0.0 < decisions[0].excess < math.inf


def test_a_resumed_run_decides_the_same(index, tmp_path):
    frames = [frame_of(step, 0.05) for step in range(8)]
    monitor = {"select": {"force_error": limit_of(index, frames[0], 0.98)}, "halt": 1e6, "consecutive": 1}
    with Session(Monitor(index, **monitor), tmp_path / "whole") as session:
        wanted = [session.observe(frame).save for frame in frames]
    saved = []
    for part, resume in ((frames[:4], False), (frames[4:], True)):
        with Session(Monitor(index, **monitor), tmp_path / "parts", resume=resume) as session:
            saved += [session.observe(frame).save for frame in part]
    assert saved == wanted
    assert steps_of(tmp_path / "parts") == steps_of(tmp_path / "whole")


def test_halt_may_be_a_force_error_too(index):
    frame = frame_of(0, 0.05)
    limits = [limit_of(index, frame, share) for share in (0.5, 0.9)]
    monitor = Monitor(index, select={"force_error": limits[0]}, halt={"force_error": limits[1]})
    decision = monitor.observe(frame)
    assert decision.band == "halt"
    assert decision.stop
    bound = of_frame(index, frame)[3]
    assert (decision.n_select, decision.n_halt) == tuple((bound > limit).sum() for limit in limits)
    mixed = Monitor(index, select={"force_error": limits[0]}, halt=decision.maximum - 1.0)
    assert mixed.observe(frame).band == "halt"


def test_what_cannot_be_a_threshold_is_refused(index):
    with pytest.raises(InputError, match='values = "exact"'):
        Monitor(index, select={"force_error": 0.1}, halt=1e6, values="flagged")
    with pytest.raises(CalibrationError, match=r"select: .*the bound is .* even where the references have no error"):
        Monitor(index, select={"force_error": 1e-4}, halt=1e6).observe(frame_of(0))
    with pytest.raises(InputError, match=r"select = 2 eV/Å lies above halt = 1 eV/Å"):
        Monitor(index, select={"force_error": 2.0}, halt={"force_error": 1.0}).observe(frame_of(0))


# -- estimates ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 31, 300, 5000])
@pytest.mark.parametrize("unknown", [0.0, 0.3])
def test_estimates_agree_with_the_naive_twin(n, unknown):
    rng = np.random.default_rng(n)
    rows = np.linspace(0.4, 0.0, 62) + rng.normal(0.0, 0.02, (n, 62)) * rng.choice([0.3, 1.0], (n, 1))
    index = Index.from_descriptors(rows, 0.015)
    errors = np.where(rng.random(n) < unknown, np.nan, rng.gamma(2.0, 0.1, n))
    errors[0] = 0.1
    if unknown:
        errors[index.order[: 5 * LEAF]] = np.nan  # whole nodes
        errors[index.order[-1]] = 0.2
    index = index.with_residuals(Residuals(**RESIDUALS, values=errors[index.order]))
    query = rows[: min(n, 200)] + 0.003
    counts = np.diff(search.levels(n))
    size = LEAF * search.FAN ** int(np.argmax(counts <= 128))
    wanted = naive.nearest_group(query - index.centre, index.rows, size, errors[index.order])
    for threads in (1, 2):
        found = index.estimate_residuals(query, threads)
        assert (np.abs(found - wanted) < 1e-6).mean() > 0.99  # two nodes may be equally near, in single precision
        np.testing.assert_array_equal(found, index.estimate_residuals(query[::-1].copy(), threads)[::-1])


def test_each_element_has_estimates_of_its_own():
    alloy = []
    for seed in range(6):
        atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
        atoms.rattle(0.05, seed=seed)
        alloy.append(atoms)
    index = Index.build(alloy, DescriptorSpec(species="centre"), bandwidth=0.05, threads=1)
    errors = np.where(index.numbers == 11, 0.1, 0.7)
    index = index.with_residuals(Residuals(**RESIDUALS, values=errors))
    np.testing.assert_allclose(index.estimate_residuals(alloy[0], 1), np.where(alloy[0].numbers == 11, 0.1, 0.7))


def test_what_is_given_for_something_else_is_named(index, tmp_path):
    with pytest.raises(InputError, match=r"index must be an Index, not a str: Index\.open\(path\) opens one"):
        Monitor("si.qindex", select=5.0, halt=20.0)
    with pytest.raises(InputError, match=r"monitor must be a Monitor, not a Index"):
        Session(index, output=tmp_path / "uq")
    with pytest.raises(FrameError, match=r"not the path of a file: ase\.io\.read\('si\.xyz', ':'\) reads them"):
        Index.build("si.xyz")
    assert not (tmp_path / "uq").exists()


def test_what_is_printed_is_one_line(index, tmp_path):
    """Not the arrays: they would fill the screen of whoever works at a prompt."""
    index.save(tmp_path / "si.qindex")
    opened = Index.open(tmp_path / "si.qindex")
    monitor = Monitor(opened, select=5.0, halt=20.0)
    shown = repr(opened)
    assert shown.startswith(f"<Index in {tmp_path / 'si.qindex'}: 640 environments of Si in 40 frames")
    assert "bandwidth 0.03, generation 0>" in shown
    assert repr(monitor) == "<Monitor: select = 5.0, halt = 20.0, every 1, exact values, 640 references>"
    decision = repr(monitor.observe(frame_of(0)))
    assert decision.startswith("Decision(step=0, evaluated=True")
    assert not any("\n" in text or "array" in text for text in (shown, decision))
