"""Same frame, same dH: ASE, the wheel and several of Debian's lmp, each on 1 and 2 ranks, and a replayed dump."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from lammps_runs import HOSTS, ok, run_host

from quests_md import Frame, Index, Monitor, Session
from quests_md.hosts.replay import replay
from quests_md.sources import read_frames


def _silicon(*repeat):
    atoms = bulk("Si", cubic=True) * repeat
    atoms.rattle(0.1, seed=5)
    return atoms


def _triclinic():
    atoms = bulk("Si") * (3, 3, 3)
    atoms.set_cell(atoms.cell @ [[1.0, 0.05, 0.0], [0.0, 1.02, 0.0], [0.1, 0.0, 0.97]], scale_atoms=True)
    atoms.rattle(0.1, seed=6)
    return atoms


def _slab():
    atoms = _silicon(2, 2, 1)
    atoms.center(vacuum=4.0, axis=2)
    atoms.pbc = (True, True, False)
    return atoms


def _cluster():
    atoms = fcc111("Si", (3, 3, 3), a=4.2)
    atoms.rattle(0.1, seed=8)
    atoms.center(vacuum=3.0)
    atoms.pbc = False
    return atoms


def _half_empty():
    """A block in the left third of a long box: with two ranks along x one has no atoms."""
    atoms = _silicon(1, 2, 2)
    atoms.positions[:, 0] += 1.0
    atoms.cell[0, 0] = 40.0
    return atoms


SYSTEMS = {
    "orthogonal": lambda: _silicon(2, 2, 2),
    "triclinic": _triclinic,
    "one_cell": lambda: _silicon(1, 1, 1),
    "slab": _slab,
    "cluster": _cluster,
    "half_empty": _half_empty,
}
# Every frame is saved, and none stops the run.
LIMITS = {"select": -1e9, "halt": 1e9, "consecutive": 1, "min_distance": 0.0}


def setup_of(name, atoms):
    boundary = " ".join("p" if periodic else "f" for periodic in atoms.pbc)
    return f"""\
units metal
boundary {boundary}
processors 2 1 1
box tilt large
read_data {name}.data
pair_style zero 5.0
pair_coeff * *
mass 1 28.085
comm_modify cutoff 7.0
fix move all nve
"""


DUMP = """\
dump out all custom 1 {name}.dump id element x y z d_dH
dump_modify out element Si sort id format float %.17g
run 1
"""

DRIVE = """
    import json
    runs = json.load(open("runs.json"))
    lmp = lammps(cmdargs=["-log", "none", "-screen", "none", *RANKS])
    for name, (setup, dump) in runs.items():
        lmp.commands_string(setup)
        watch = attach(lmp, "si.qindex", elements=["Si"], every=1, output=f"uq_{name}", novelty=False, **LIMITS)
        lmp.commands_string(dump)
        watch.close()
        lmp.command("clear")
"""


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "si.qindex"
    frames = [_silicon(2, 2, 2)]
    frames[0].rattle(0.05, seed=1)
    Index.build(frames, threads=1).save(path)
    return Index.open(path)


@pytest.fixture(scope="module", params=HOSTS)
def runs(request, index, tmp_path_factory):
    """Run all systems in one host; return the folder."""
    import json

    folder = tmp_path_factory.mktemp(request.param)
    (folder / "si.qindex").write_bytes(index.path.read_bytes())
    parts, script = {}, ""
    for name, make in SYSTEMS.items():
        atoms: Atoms = make()
        ase.io.write(folder / f"{name}.data", atoms, format="lammps-data", atom_style="atomic")
        setup, dump = setup_of(name, atoms), DUMP.format(name=name)
        if request.param.endswith("-1"):
            setup = setup.replace("processors 2 1 1\n", "")
        parts[name] = (setup, dump)
        (folder / f"{name}.toml").write_text(
            f'index = "si.qindex"\nelements = ["Si"]\noutput = "uq_{name}"\nnovelty = false\n'
            + "".join(f"{key} = {value}\n" for key, value in LIMITS.items())
        )
        script += f"""{setup}
python quests_attach input 2 SELF {name}.toml format ps here "from quests_md.hosts.lammps import *"
python quests_attach invoke
fix watch all python/invoke 1 end_of_step quests_step
{dump}
clear
"""
    (folder / "runs.json").write_text(json.dumps(parts))
    ok(run_host(request.param, folder, DRIVE.replace(", *RANKS", "").replace("**LIMITS", f"**{LIMITS}"), script))
    return folder


def last_dump(folder, name):
    """Return the last frame of a dump, and its d_dH."""
    atoms = ase.io.read(folder / f"{name}.dump", format="lammps-dump-text", index=-1)
    return atoms, atoms.arrays["d_dH"].ravel()


def close(values, expected):
    return np.abs(values - expected) <= 1e-10 * np.maximum(1.0, np.abs(expected))


@pytest.mark.parametrize("name", SYSTEMS)
def test_same_dH_as_ase(runs, index, name):
    atoms, dH = last_dump(runs, name)
    assert len(atoms) == len(SYSTEMS[name]())
    assert len(np.unique(dH.round(6))) > 1
    assert close(dH, index.delta_entropy(Frame.from_atoms(atoms))).all()


@pytest.mark.parametrize("name", SYSTEMS)
def test_same_dH_replayed(runs, index, name, tmp_path):
    session = Session(Monitor(index, **LIMITS), tmp_path / "uq", novelty=False)
    decisions = list(replay(session, read_frames(runs / f"{name}.dump")))
    session.close()
    assert close(decisions[-1].dH, last_dump(runs, name)[1]).all()


@pytest.mark.parametrize("name", SYSTEMS)
def test_candidates_hold_what_lammps_dumps(runs, name):
    """The same doubles, written by two programs with 17 digits."""
    atoms, dH = last_dump(runs, name)
    saved = ase.io.read(runs / f"uq_{name}" / "candidates.extxyz", index=-1)
    order = np.argsort(saved.arrays["id"])
    assert (saved.arrays["dH"][order] == dH).all()
    assert (saved.positions[order] == atoms.positions).all()
    assert saved.info["dH_max"] == dH.max()
    assert saved.info["step"] == 1
    assert tuple(saved.pbc) == tuple(SYSTEMS[name]().pbc)
