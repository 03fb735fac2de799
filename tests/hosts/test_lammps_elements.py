"""Two elements in a live LAMMPS: named in the order of the types."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from lammps_runs import ATTACH, DEBIAN_2, WHEEL_1, WHEEL_2, configure, dump, ok, run_host, run_json

from quests_md import DescriptorSpec, Index

CARBIDE = """\
units metal
read_data sic.data
mass 1 28.085
mass 2 12.011
pair_style zero 4.0
pair_coeff * *
comm_modify cutoff 7.0
fix move all nve
"""


@pytest.fixture
def carbide(tmp_path):
    """Return a folder with an index and a system of silicon carbide; type 1 is Si, type 2 is C."""
    frames = [bulk("SiC", "zincblende", a=4.36, cubic=True) * (2, 2, 2) for _ in range(3)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.08, seed=seed)
    Index.build(frames[:2], DescriptorSpec(species="ignore"), bandwidth=0.05, threads=1).save(tmp_path / "si.qindex")
    ase.io.write(tmp_path / "sic.data", frames[2], format="lammps-data", specorder=["Si", "C"])
    return tmp_path


def run_carbide(host, folder, after):
    code = f"""
lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
lmp.commands_string('''{CARBIDE}''')
watch = attach(lmp, "quests.toml")
lmp.commands_string('''{after}''')
watch.close()
"""
    return run_host(host, folder, code, CARBIDE + ATTACH + after)


@pytest.mark.parametrize("host", [WHEEL_2, DEBIAN_2])
def test_both_elements_are_watched(host, carbide):
    configure(carbide, elements=["Si", "C"], select=-1e9)
    ok(
        run_carbide(
            host, carbide, dump("out.dump", "element x y z d_dH").replace("element Si", "element Si C") + "run 1"
        )
    )
    atoms = ase.io.read(carbide / "out.dump", format="lammps-dump-text", index=-1)
    assert sorted(set(atoms.get_chemical_symbols())) == ["C", "Si"]
    expected = Index.open(carbide / "si.qindex").delta_entropy(atoms)
    assert np.allclose(atoms.arrays["d_dH"].ravel(), expected, rtol=1e-10, atol=1e-10)
    saved = ase.io.read(carbide / "uq" / "candidates.extxyz", index=-1)
    assert saved.get_chemical_symbols() == atoms.get_chemical_symbols()


@pytest.mark.parametrize("host", [WHEEL_1, DEBIAN_2])
def test_elements_in_another_order_than_the_types_end_the_run(host, carbide):
    configure(carbide, elements=["C", "Si"])
    finished = run_carbide(host, carbide, "run 1")
    assert finished.returncode != 0
    assert "type 1 has the mass 28.085, but C has 12.01" in finished.stdout + finished.stderr
    assert run_json(carbide)["status"] == "failed"
