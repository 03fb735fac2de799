"""Atoms that are made, deleted, exchanged and lost; groups that change, molecules, sites that are no atoms."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from lammps_runs import (
    ATTACH,
    KOKKOS,
    SCRIPT_2,
    SILICON,
    TWO_RANKS,
    WHEEL_2,
    build_of,
    check_dump,
    configure,
    drive,
    dump,
    dumped,
    ok,
    rows_of,
    run_host,
    run_json,
    script,
)

from quests_md import DescriptorSpec, Index
from quests_md.sources import read_frames

DUMP = dump("out.dump", "element x y z d_dH")

# Prints what every evaluated frame holds; the same code in both hosts.
SPY = """\
import quests_md.recording
observe = quests_md.recording.Session.observe

def spy(self, frame, **more):
    parts = self.monitor.comm.gather((frame.n_expected, frame.n_local))
    if parts is not None:
        with open("seen", "a") as file:
            print(frame.step, parts[0][0], sum(n for _, n in parts), len({n for n, _ in parts}), file=file)
    return observe(self, frame, **more)

quests_md.recording.Session.observe = spy
"""
ATTACH_SPY = ATTACH.replace(
    '"from quests_md.hosts.lammps import *"', f'"""\n{SPY}\nfrom quests_md.hosts.lammps import *\n"""'
)


def run_spied(host, folder, after, setup):
    """Run and return, for each evaluated frame: step, atoms that LAMMPS counts, rows of all ranks."""
    ok(run_host(host, folder, SPY + drive(after).replace(SILICON, setup), setup + ATTACH_SPY + after))
    seen = [tuple(map(int, line.split())) for line in (folder / "seen").read_text().splitlines()]
    assert all(different == 1 for *_, different in seen)
    return [(step, expected, n) for step, expected, n, _ in seen]


COME_AND_GO = """\
neigh_modify delay 0 every 1
region in block 1 9 1 9 8 10 units box
region all block INF INF INF INF INF INF
fix add all deposit 9 1 1 12345 region in near 1.5 vz -1 -1 units box
fix take all evaporate 1 1 all 4321
run 9
unfix add
unfix take
group some id 5 7 9
delete_atoms group some compress no
run 2
create_atoms 1 single 1.0 1.0 2.0 units box
create_atoms 1 single 1.0 9.0 8.0 units box
run 5
"""


@pytest.mark.parametrize("host", TWO_RANKS)
def test_atoms_that_come_and_go_between_evaluations(host, folder):
    """Atoms made since the last evaluation have dH = 0, not that of an atom which was there before; all others keep
    theirs, on whatever rank they are."""
    configure(folder, every=4)
    seen = run_spied(host, folder, "atom_modify sort 3 2.0\n" + DUMP + COME_AND_GO, SILICON)
    assert seen
    assert all(expected == n for _, expected, n in seen)
    steps = check_dump(folder)
    assert steps == [*([0] if host.startswith("wheel") else []), 4, 8, 12, 16]
    last, new = dict[int, float](), 0
    for step, columns in dumped(folder / "out.dump"):
        found = dict(zip(columns["id"].astype(int), columns["d_dH"], strict=True))
        if step in steps:
            last = found
            continue
        new += len(found.keys() - last.keys())
        for atom, dH in found.items():
            assert dH == last.get(atom, 0.0), (step, atom)
    assert new > 10
    assert len(dumped(folder / "out.dump")[0][1]["id"]) == 64


MIXTURE = (
    SILICON.replace("create_box 1 box", "create_box 2 box")
    .replace("mass 1 28.085", "set type 1 type/fraction 2 0.2 77\nmass * 28.085")
    .replace(
        "pair_style sw\npair_coeff * * Si.sw Si",
        "pair_style lj/cut 6.0\npair_coeff * * 0.05 2.0\npair_coeff 1 1 0.5 2.1",
    )
)
EXCHANGE = {
    # The energy of most of these is refused, that of some is not.
    "swap": "fix mc all atom/swap 2 4 29494 3000.0 ke no types 1 2\n",
    "gcmc": "fix mc all gcmc 2 4 2 1 29494 20000.0 -1.0 0.3 full_energy overlap_cutoff 1.5\n",
}


POINTS = [
    pytest.param(*host.values, point, marks=host.marks)
    for host, points in (
        (WHEEL_2, [""]),
        *((host, ["end_of_step", "post_force"]) for host in [*SCRIPT_2, pytest.param("kokkos-2", marks=KOKKOS)]),
    )
    for point in points
]


@pytest.mark.parametrize(("host", "point"), POINTS)
@pytest.mark.parametrize("how", EXCHANGE)
def test_trials_of_monte_carlo_are_not_evaluated(host, folder, how, point):
    """A fix that exchanges atoms asks for the forces of what it may yet refuse, within the step."""
    setup = MIXTURE if how == "swap" else SILICON
    configure(folder, elements=["Si", "NULL"] if how == "swap" else ["Si"])
    counts = "f_mc[1] f_mc[2]" if how == "swap" else "f_mc[3] f_mc[4]"
    after = f"{DUMP}{EXCHANGE[how]}thermo 1\nthermo_style custom step atoms {counts}\nrun 9\n"
    if how == "swap":
        after = after.replace("element Si", "element Si X")
    code, text = drive(after).replace(SILICON, setup), setup + ATTACH.replace("end_of_step", point) + after
    ok(run_host(host, folder, code, text))
    steps = check_dump(folder)
    at_once = point != "end_of_step" and build_of(host) != "debian"  # newer ones call post_force at the first step, too
    assert steps == list(range(0 if at_once else 1, 10))
    assert run_json(folder)["evaluations"] == len(steps)
    rows = [line.split() for line in (folder / "log.lammps").read_text().splitlines()]
    tried, done = (float(word) for word in [row for row in rows if len(row) == 4 and row[0] == "9"][-1][2:])
    assert 0 < done < tried


@pytest.mark.parametrize("host", TWO_RANKS)
@pytest.mark.parametrize("mode", ["ignore", "warn"])
def test_lost_atoms_are_missing_from_those_that_are_expected(host, folder, mode):
    """Until LAMMPS counts its atoms anew, which it does for every line of thermo."""
    configure(folder, implausible="continue")
    setup = SILICON.replace("units metal", "units metal\nboundary p p f").replace(
        "fix move", "neigh_modify delay 0 every 1\ngroup fast id 8\nvelocity fast set 0 0 400\nfix move"
    )
    seen = run_spied(host, folder, f"thermo 4\nthermo_modify lost {mode}\nrun 6\n", setup)
    seen = {step: (expected, n) for step, expected, n in seen}
    assert all(seen[step][1] < seen[step][0] == 64 for step in (1, 2, 3, 4))
    assert seen[5][0] == seen[6][0] == seen[4][1] < 64


@pytest.mark.parametrize("host", TWO_RANKS)
def test_a_group_that_changes(host, folder):
    configure(folder, group="hot", select=-1e9)
    before = "variable v atom vz>5.0\ngroup hot dynamic all var v every 2\n"
    after = "variable in atom gmask(hot)\n" + dump("out.dump", "element x y z d_dH v_in") + "run 8\n"
    ok(run_host(host, folder, drive(after, before), script(after, before)))
    index = Index.open(folder / "si.qindex")
    rows = {int(row["step"]): row for row in rows_of(folder)}
    members = set()
    for (step, columns), frame in zip(dumped(folder / "out.dump"), read_frames(folder / "out.dump"), strict=True):
        if step not in rows:
            continue
        hot = columns["v_in"] == 1
        members.add(tuple(columns["id"][hot]))
        assert 0 < hot.sum() < 64
        assert int(rows[step]["n"]) == hot.sum()
        assert np.allclose(columns["d_dH"], np.where(hot, index.delta_entropy(frame), 0.0), rtol=1e-9, atol=1e-9)
    assert len(members) > 1


def _water():
    """Return 27 waters, each with a site that is no atom, and their index; types O, H and the site."""
    frames = []
    for seed in range(3):
        box = Atoms(cell=np.eye(3) * 9.6, pbc=True)
        rng = np.random.default_rng(seed)
        for corner in np.ndindex(3, 3, 3):
            one = molecule("H2O")
            one.rotate(rng.uniform(0, 360), rng.normal(size=3))
            one.positions += 3.2 * np.array(corner) + 1.6 - one.positions[0]
            box += one
        frames.append(box)
    return frames


WATER = """\
units real
atom_style full
read_data water.data
mass 1 15.9994
mass 2 1.008
mass 3 0.1
pair_style lj/cut 6.0
pair_coeff * * 0.0 1.0
pair_coeff 1 1 0.15 3.1
bond_style harmonic
bond_coeff 1 450 0.96
bond_coeff 2 100 0.15
special_bonds lj/coul 0 0 0
neigh_modify exclude molecule/intra all
comm_modify cutoff 7.0
velocity all create 300 7 loop geom
timestep 0.5
fix move all {fix}
"""


@pytest.mark.parametrize("host", TWO_RANKS)
@pytest.mark.parametrize("fix", ["nve", "rigid/small molecule"])
def test_molecules_with_virtual_sites(host, tmp_path, fix):
    """Bonds and exclusions say who feels whom; environments are made of all atoms that are near."""
    frames = _water()
    Index.build(frames[:2], DescriptorSpec(species="ignore"), bandwidth=0.05, threads=1).save(tmp_path / "si.qindex")
    atoms, bonds = [], []
    for i, position in enumerate(frames[2].positions):
        kind, mol = (1 if i % 3 == 0 else 2), i // 3 + 1
        atoms.append((mol, kind, *position))
        if kind == 2:
            bonds.append((1, 4 * (mol - 1) + 1, 4 * (mol - 1) + 1 + i % 3))
        if i % 3 == 2:
            atoms.append((mol, 3, *(frames[2].positions[i - 2] + [0.1, 0.1, 0.05])))
            bonds.append((2, 4 * (mol - 1) + 1, 4 * mol))
    lines = [f"water\n\n{len(atoms)} atoms\n{len(bonds)} bonds\n3 atom types\n2 bond types\n"]
    lines += [f"0 9.6 {x}lo {x}hi" for x in "xyz"] + ["\nAtoms # full\n"]
    lines += [f"{i} {mol} {kind} 0.0 {x:.8f} {y:.8f} {z:.8f}" for i, (mol, kind, x, y, z) in enumerate(atoms, 1)]
    lines += ["\nBonds\n"] + [f"{i} {kind} {a} {b}" for i, (kind, a, b) in enumerate(bonds, 1)]
    (tmp_path / "water.data").write_text("\n".join(lines) + "\n")
    configure(tmp_path, elements=["O", "H", "NULL"], select=-1e9)
    setup = WATER.format(fix=fix)
    after = DUMP.replace("element Si", "element O H X") + "run 4\n"
    ok(run_host(host, tmp_path, drive(after).replace(SILICON, setup), setup + ATTACH + after))
    assert check_dump(tmp_path) == list(range(0 if host.startswith("wheel") else 1, 5))
    saved = ase.io.read(tmp_path / "uq" / "candidates.extxyz", index=-1)
    assert len(saved) == len(atoms)
    assert (saved.numbers == 0).sum() == 27
    assert rows_of(tmp_path)[-1]["n"] == "81"
