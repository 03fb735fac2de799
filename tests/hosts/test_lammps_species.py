"""A binary alloy and an oxide in a live LAMMPS, watched with a block for each element of the neighbours."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.spacegroup import crystal
from lammps_runs import ATTACH, DEBIAN_1, HOSTS_ONCE, WHEEL_2, configure, ok, rows_of, run_host, run_json

from quests_md import DescriptorSpec, Index
from quests_md.frame import Frame
from quests_md.monitor import Monitor

POTENTIALS = {
    "CuZr": "pair_style eam/fs\npair_coeff * * CuZr_mm.eam.fs Cu Zr",
    "SiO2": "pair_style vashishta\npair_coeff * * SiO.1990.vashishta Si O",
}
MASSES = {"Cu": 63.546, "Zr": 91.224, "Si": 28.085, "O": 15.999}
ELEMENTS = {"CuZr": ["Cu", "Zr"], "SiO2": ["Si", "O"]}
STEPS = 4


def matter(name):
    if name == "CuZr":
        return bulk("CuZr", "cesiumchloride", a=3.26) * (3, 3, 3)
    cristobalite = crystal(
        ["Si", "O"], [(0, 0, 0), (1 / 8, 1 / 8, 1 / 8)], spacegroup=227, cellpar=[7.16] * 3 + [90] * 3
    )
    return cristobalite * (2, 1, 1)


def prepare(folder, name, **settings):
    """Write an index, a system whose first two atoms of different elements have changed places, and quests.toml."""
    frames = [matter(name) for _ in range(3)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=seed)
    Index.build(frames[:2], DescriptorSpec(species="neighbours"), 0.05, threads=1).save(folder / "a.qindex")
    system = frames[2]
    first, second = ELEMENTS[name]
    pair = [system.get_chemical_symbols().index(symbol) for symbol in (first, second)]
    system.numbers[pair] = system.numbers[pair[::-1]]
    ase.io.write(folder / "system.data", system, format="lammps-data", specorder=ELEMENTS[name], masses=False)
    configure(folder, index="a.qindex", elements=ELEMENTS[name], **settings)
    return pair


def run(host, folder, name):
    masses = "\n".join(f"mass {i} {MASSES[symbol]}" for i, symbol in enumerate(ELEMENTS[name], 1))
    setup = f"""\
units metal
read_data system.data
{masses}
{POTENTIALS[name]}
comm_modify cutoff 7.0
velocity all create 600 7 mom yes rot yes dist gaussian loop geom
fix move all nve
timestep 0.001
"""
    after = f"""\
dump out all custom 1 out.dump id element x y z d_dH
dump_modify out element {" ".join(ELEMENTS[name])} sort id format float %.17g first no
run {STEPS}
"""
    code = f"""
lmp = lammps(cmdargs=["-log", "log.lammps", "-screen", "none"])
lmp.commands_string('''{setup}''')
watch = attach(lmp, "quests.toml")
lmp.commands_string('''{after}''')
watch.close()
"""
    return run_host(host, folder, code, setup + ATTACH + after)


@pytest.mark.parametrize("host", HOSTS_ONCE)
@pytest.mark.parametrize("name", POTENTIALS)
def test_dH_of_a_live_run_is_that_of_its_frames(host, tmp_path, name):
    pair = prepare(tmp_path, name)
    ok(run(host, tmp_path, name))
    index = Index.open(tmp_path / "a.qindex")
    frames = ase.io.read(tmp_path / "out.dump", format="lammps-dump-text", index=":")[1:]
    assert len(frames) == STEPS
    live = {int(row["step"]): row for row in rows_of(tmp_path)}
    for step, atoms in enumerate(frames, 1):
        assert set(atoms.get_chemical_symbols()) == set(ELEMENTS[name])
        dH = index.delta_entropy(atoms)
        np.testing.assert_allclose(atoms.arrays["d_dH"].ravel(), dH, rtol=1e-10, atol=1e-10)
        assert float(live[step]["max"]) == pytest.approx(dH.max(), rel=1e-10)
        assert dH[pair].min() > np.median(dH) + 5  # what "ignore" would not see
    assert run_json(tmp_path)["index"]["species"] == "neighbours"


@pytest.mark.parametrize("host", [WHEEL_2, DEBIAN_1])
def test_flagged_values_decide_what_exact_ones_of_the_frames_decide(host, tmp_path):
    prepare(tmp_path, "CuZr", values="flagged", select=5.0)
    ok(run(host, tmp_path, "CuZr"))
    frames = ase.io.read(tmp_path / "out.dump", format="lammps-dump-text", index=":")[1:]
    monitor = Monitor(Index.open(tmp_path / "a.qindex"), select=5.0, halt=1e6)
    for row, atoms in zip(rows_of(tmp_path)[-STEPS:], frames, strict=True):
        decision = monitor.observe(Frame.from_atoms(atoms))
        assert float(row["max"]) == pytest.approx(decision.maximum, rel=1e-10)
        assert (int(row["n_select"]), row["band"]) == (decision.n_select, str(decision.band))
        assert decision.n_select > 0
        assert int(row["max_id"]) == decision.max_id + 1
