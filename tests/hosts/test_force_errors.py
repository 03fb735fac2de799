"""Force errors by local residuals, where hosts show them: in LAMMPS's arrays and values, and at ASE's calculators."""

from __future__ import annotations

import numpy as np
import pytest
from calibrations import with_errors
from lammps_runs import HOSTS, configure, drive, dump, dumped, ok, rows_of, run_host, script
from watched import build_index, copper, frames_of, session_of, verlet

from quests_md import Index
from quests_md.hosts.ase import MonitoredCalculator, MonitorObserver
from quests_md.sources import read_frames

SEEN = """\
thermo 1
thermo_style custom step temp f_quests[7] f_quests[8]
thermo_modify format float %.15g norm no
"""


@pytest.mark.parametrize("values", ["exact", "flagged"])
@pytest.mark.parametrize("host", HOSTS)
def test_lammps_sees_the_errors_of_the_same_step(host, folder, values):
    index = with_errors(Index.open(folder / "si.qindex"))
    index.save(folder / "si.qindex")
    configure(folder, values=values, every=2, select=1e6)
    commands = SEEN + dump("out.dump", "element x y z d_dH d_error", 2) + "run 6\n"
    ok(run_host(host, folder, drive(commands), script(commands)))
    fitted, rows = index.calibration.local_error, {int(row["step"]): row for row in rows_of(folder)}
    assert len(rows) >= 3
    for (step, columns), frame in zip(dumped(folder / "out.dump"), read_frames(folder / "out.dump"), strict=True):
        if step not in rows:
            continue
        dH, s = index.local_residuals(frame)
        expected = fitted.expected(dH, s, frame.numbers)
        outside, row = np.isnan(expected), rows[step]
        np.testing.assert_array_equal(np.isinf(columns["d_error"]), outside)
        assert int(row["n_outside"]) == outside.sum()
        if values == "exact":
            np.testing.assert_allclose(columns["d_error"][~outside], expected[~outside], rtol=1e-6)
            assert float(row["expected_error"]) == pytest.approx(np.fmax.reduce(expected), nan_ok=True)
        assert float(row["expected_error"]) == pytest.approx(columns["d_error"][~outside].max(initial=-np.inf))
    seen = [line.split() for line in (folder / "log.lammps").read_text().splitlines()]
    seen = {int(words[0]): words[2:] for words in seen if len(words) == 4 and words[0].isdigit()}
    for step, row in rows.items():
        largest, outside = map(float, seen[step])
        assert largest == pytest.approx(float(row["expected_error"]))
        assert outside == int(row["n_outside"]) / int(row["n"])


@pytest.fixture(scope="module")
def copper_index():
    return with_errors(build_index())


@pytest.mark.parametrize("wrap", [True, False])
def test_ase_has_the_errors_of_the_last_evaluation(copper_index, tmp_path, wrap):
    atoms = copper()
    with session_of(copper_index, tmp_path / "uq", select=-1e6, halt=1e6) as session:
        if wrap:
            watch = atoms.calc = MonitoredCalculator(atoms.calc, session)
        dyn = verlet(atoms)
        if not wrap:
            watch = MonitorObserver(session, dyn)
            dyn.attach(watch)
        assert watch.expected_errors is watch.error_bounds is None
        dyn.run(3)
    fitted, (dH, s) = copper_index.calibration.local_error, copper_index.local_residuals(atoms)
    np.testing.assert_allclose(watch.expected_errors, fitted.expected(dH, s, atoms.numbers), rtol=1e-6)
    np.testing.assert_allclose(watch.error_bounds, fitted.bound(dH, s, atoms.numbers), rtol=1e-6)
    saved = frames_of(session.output)[-1]
    np.testing.assert_allclose(saved.arrays["expected_error"], watch.expected_errors, rtol=1e-6)
    np.testing.assert_allclose(saved.arrays["force_error"], watch.error_bounds, rtol=1e-6)
    assert session.monitor.expects_errors


def test_without_residuals_lammps_has_no_such_values(folder):
    """A script that asks for them ends with LAMMPS's own words, and does not read zeros."""
    configure(folder)
    commands = "compute error all property/atom d_error\n" + "run 1\n"
    finished = run_host("wheel-1", folder, drive(commands), script(commands))
    assert finished.returncode != 0
    assert "d_error" in finished.stderr + finished.stdout
