"""Files as frames: every format with its slices, provenance, and clear errors."""

from __future__ import annotations

import gzip
import hashlib
import itertools

import ase.io
import numpy as np
import pytest
from calibrations import labelled, moving

from quests_md.errors import InputError, SourceError
from quests_md.sources import (
    describe_source,
    read_atoms,
    read_force_errors,
    read_frames,
    read_labelled,
    to_frame,
)


@pytest.fixture(scope="module")
def trajectory(structure):
    """Five frames with steps 0, 10, ... and times 0, 0.5, ... ps."""
    frames = [structure("si") for _ in range(5)]
    for i, atoms in enumerate(frames):
        atoms.rattle(0.1, seed=i)
        atoms.info.update(step=10 * i, time=0.5 * i)
        atoms.arrays["id"] = np.arange(len(atoms)) + 1
    return frames


def write_dump(path, frames):
    """Write a LAMMPS dump, its atoms in any order as LAMMPS does."""
    with open(path, "w") as file:
        for atoms in frames:
            file.write(f"ITEM: TIMESTEP\n{atoms.info['step']}\nITEM: NUMBER OF ATOMS\n{len(atoms)}\n")
            file.write("ITEM: BOX BOUNDS pp pp pp\n")
            file.writelines(f"0.0 {length!r}\n" for length in atoms.cell.lengths().tolist())
            file.write("ITEM: ATOMS id type element x y z\n")
            for i in np.random.default_rng(1).permutation(len(atoms)):
                x, y, z = atoms.positions[i].tolist()
                file.write(f"{i + 1} 1 {atoms.symbols[i]} {x!r} {y!r} {z!r}\n")


@pytest.fixture(scope="module")
def files(trajectory, tmp_path_factory):
    """The folder of one trajectory in several formats."""
    folder = tmp_path_factory.mktemp("files")
    ase.io.write(folder / "md.extxyz", trajectory)
    ase.io.write(folder / "md.traj", trajectory)
    write_dump(folder / "md.lammpstrj", trajectory)
    return folder


@pytest.mark.parametrize(
    ("name", "error", "has_time"),
    [("md.extxyz", 1e-8, True), ("md.traj", 0.0, True), ("md.lammpstrj", 0.0, False)],
)
def test_every_format_gives_the_same_frames(files, trajectory, name, error, has_time):
    frames = list(read_frames(files / name))
    assert [f.step for f in frames] == [0, 10, 20, 30, 40]
    times = [0.0, 0.5, 1.0, 1.5, 2.0] if has_time else [np.nan] * 5
    np.testing.assert_array_equal([f.time for f in frames], times)
    for frame, atoms in zip(frames, trajectory, strict=True):
        np.testing.assert_allclose(frame.positions, atoms.positions, rtol=0, atol=error)
        np.testing.assert_allclose(frame.cell, atoms.cell, rtol=0, atol=error)
        assert set(frame.numbers) == {14}
        if name != "md.traj":  # which holds no ids; ASE's reader drops those of a dump
            np.testing.assert_array_equal(frame.ids, atoms.arrays["id"])
        assert frame.pbc.all()
        assert not frame.has_ghosts


@pytest.mark.parametrize("name", ["md.extxyz", "md.traj", "md.lammpstrj"])
@pytest.mark.parametrize(
    ("selection", "steps"),
    [
        ("@0", [0]),
        ("@3", [30]),
        ("@-1", [40]),
        ("@:", [0, 10, 20, 30, 40]),
        ("@::2", [0, 20, 40]),
        ("@1:4", [10, 20, 30]),
        ("@-2:", [30, 40]),
        ("@:3:2", [0, 20]),
    ],
)
def test_a_slice_selects_frames(files, name, selection, steps):
    assert [f.step for f in read_frames(f"{files / name}{selection}")] == steps


def test_frames_are_read_one_by_one(files):
    assert [f.step for f in itertools.islice(read_frames(files / "md.extxyz"), 2)] == [0, 10]


def test_without_a_step_frames_are_counted_and_ids_are_kept(trajectory, structure, tmp_path):
    ase.io.write(tmp_path / "plain.extxyz", [structure("si"), structure("cu")])
    frames = list(read_frames(tmp_path / "plain.extxyz"))
    assert [f.step for f in frames] == [0, 1]
    assert frames[0].ids.tolist() == list(range(8))
    ase.io.write(tmp_path / "ids.extxyz", trajectory)
    assert next(read_frames(tmp_path / "ids.extxyz")).ids.tolist() == list(range(1, 9))


@pytest.mark.parametrize(
    ("info", "step", "time"),
    [
        ({"step": 7}, 7, np.nan),
        ({"step": 7.0, "time": 1}, 7, 1.0),
        ({"step": "7", "time": "0.5"}, 7, 0.5),
        ({"step": 2**62 + 1}, 2**62 + 1, np.nan),
        ({"step": 7.5}, 3, np.nan),
        ({"step": "relax_3", "time": "0.5 ps"}, 3, np.nan),
        ({"step": True, "time": True}, 3, np.nan),
        ({"step": [1, 2], "time": np.array([0.5])}, 3, np.nan),
        ({"step": None, "time": None}, 3, np.nan),
        ({"step": np.inf, "time": "soon"}, 3, np.nan),
        ({"timestep": 40}, 40, np.nan),
        ({"timestep": np.int64(40)}, 40, np.nan),
        ({"timestep": 0.5}, 3, np.nan),
        ({"timestep": 2.0}, 3, np.nan),
        ({"timestep": "0.5 fs"}, 3, np.nan),
        ({"step": 7, "timestep": 1}, 7, np.nan),
        ({"step": "relax", "timestep": 40}, 40, np.nan),
    ],
)
def test_what_is_a_step_and_a_time(structure, info, step, time):
    atoms = structure("si")
    atoms.info.update(info)
    frame = to_frame(atoms, 3)
    np.testing.assert_array_equal((frame.step, frame.time), (step, time))
    assert type(frame.step) is int


def test_a_time_step_is_no_step_of_a_file(structure, tmp_path):
    frames = [structure("si") for _ in range(3)]
    for atoms in frames:
        atoms.info.update(timestep=0.5, time="0.5 ps")
    ase.io.write(tmp_path / "md.extxyz", frames)
    assert [frame.step for frame in read_frames(tmp_path / "md.extxyz")] == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "values", "ids"),
    [
        ("id", [3, 1, 2], [3, 1, 2]),
        ("ids", ["30", "1", "2"], [30, 1, 2]),
        ("id", [3.0, 1.0, 2.0], [3, 1, 2]),
        ("id", ["a1", "a2", "a3"], [0, 1, 2]),
        ("id", [0.5, 1.5, np.nan], [0, 1, 2]),
        ("ids", [True, False, True], [0, 1, 2]),
        ("id", [[1, 2], [3, 4], [5, 6]], [0, 1, 2]),
    ],
)
def test_ids_are_whole_numbers_and_else_counted(tmp_path, name, values, ids):
    atoms = ase.Atoms("Si3", 2.0 * np.eye(3), cell=[9, 9, 9], pbc=True)
    atoms.set_array(name, np.array(values))
    ase.io.write(tmp_path / "ids.extxyz", atoms)
    (frame,) = read_frames(tmp_path / "ids.extxyz")
    assert frame.ids.tolist() == ids
    assert frame.ids.dtype.kind == "i"


def test_a_frame_that_is_none_is_not_told_of_ase(structure, tmp_path):
    atoms = structure("si")
    atoms.set_array("model_forces", np.zeros(8))
    ase.io.write(tmp_path / "odd.extxyz", atoms)
    with pytest.raises(SourceError, match=r"odd\.extxyz: frame 0: forces must have shape \(8, 3\)"):
        list(read_frames(tmp_path / "odd.extxyz"))


def test_velocities_are_kept(structure, tmp_path):
    atoms = structure("si")
    atoms.set_velocities(np.random.default_rng(0).normal(size=(8, 3)))
    ase.io.write(tmp_path / "moving.traj", atoms)
    (frame,) = read_frames(tmp_path / "moving.traj")
    np.testing.assert_allclose(frame.velocities, atoms.get_velocities(), rtol=1e-12)


@pytest.mark.parametrize("name", ["run@2.extxyz", "run@:3", "a@b@c.extxyz"])
def test_a_name_may_hold_an_at_sign(files, tmp_path, name):
    (tmp_path / name).write_bytes((files / "md.extxyz").read_bytes())
    assert [f.step for f in read_frames(f"{tmp_path / name}@1:3")] == [10, 20]
    assert len(list(read_frames(tmp_path / name))) == 5
    assert describe_source(tmp_path / name)["file"] == str(tmp_path / name)


def test_provenance_says_which_bytes_were_read(files):
    path = files / "md.extxyz"
    found = describe_source(f"{path}@::2")
    assert found["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found["file"], found["selection"], found["bytes"]) == (str(path), "::2", path.stat().st_size)
    assert describe_source(path)["selection"] == ":"
    assert found["modified"].endswith("+00:00")


def test_a_key_of_the_info_names_the_group(trajectory, tmp_path):
    for i, atoms in enumerate(trajectory):
        atoms.info["config_type"] = i // 2
    ase.io.write(tmp_path / "named.extxyz", trajectory)
    assert [f.group for f in read_frames(tmp_path / "named.extxyz", "config_type")] == ["0", "0", "1", "1", "2"]
    assert {f.group for f in read_frames(tmp_path / "named.extxyz")} == {None}
    with pytest.raises(SourceError, match=r"named\.extxyz: frame 0 has no 'kind' in its info, which has .*config_type"):
        list(read_frames(tmp_path / "named.extxyz", "kind"))


def test_force_errors_are_norms_of_the_difference(tmp_path):
    (atoms, *_), path = labelled(moving(1, 1)), tmp_path / "labelled.extxyz"
    atoms.info["group"] = "melt"
    ase.io.write(path, atoms)
    ((frame, error),) = read_force_errors(path, "group")
    expected = np.linalg.norm(atoms.get_forces() - atoms.arrays["model_forces"], axis=1)
    np.testing.assert_allclose(error, expected, atol=1e-7)
    assert (frame.group, len(frame.positions)) == ("melt", 16)
    for name in ("forces", "model_forces"):
        (broken, *_) = labelled(moving(1, 1))
        if name == "forces":
            broken.calc = None
        else:
            broken.arrays["model_forces"][3, 1] = np.nan
        ase.io.write(path, broken)
        with pytest.raises(SourceError, match=rf"labelled\.extxyz: frame 0 needs {name} \("):
            list(read_force_errors(path))


# -- what cannot be read ---------------------------------------------------------------------------

NOISE = np.random.default_rng(3).bytes(500)
XYZ = b'2\nLattice="5 0 0 0 5 0 0 0 5" Properties=species:S:1:pos:R:3\nSi 0 0 0\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.extxyz", b""),
        ("empty.traj", b""),
        ("noise.extxyz", NOISE),
        ("noise.traj", NOISE),
        ("noise.lammpstrj", NOISE),
        ("noise.cif", NOISE),
        ("noise.db", NOISE),
        ("noise.dat", NOISE),
        ("text.dat", b"hello\n"),
        ("text.extxyz", b"hello\n" * 9),
        ("short.extxyz", XYZ),
        ("words.extxyz", XYZ + b"Si 1.0 one 1.0\n"),
        ("element.extxyz", XYZ + b"Zz 1.0 1.0 1.0\n"),
        ("loop.cif", b"data_x\nloop_\n_atom_site_label\n_atom_site_fract_x\nSi\n"),
        ("start.xsf", b"CRYSTAL\nPRIMVEC\n"),
    ],
)
def test_a_file_that_holds_no_frames_is_one_clear_error(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        list(read_frames(path))
    assert str(caught.value).startswith(f"{path}: ASE cannot read it after 0 frames: ")


@pytest.mark.parametrize("name", ["md.extxyz", "md.traj"])
def test_a_truncated_file_says_how_far_it_was_read(files, tmp_path, name):
    content = (files / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(0.7 * len(content))])
    with pytest.raises(SourceError, match="cannot read it after 3 frames"):
        list(read_frames(tmp_path / name))


@pytest.mark.parametrize("selection", ["@", "@x", "@1:2:3:4", "@--1", "@1.5", "@1-3", "@:a", "@species=Si"])
@pytest.mark.parametrize("call", [lambda source: list(read_frames(source)), describe_source])
def test_what_is_no_slice_is_refused(files, selection, call):
    with pytest.raises(SourceError, match="is not a slice such as @0:100:2 or @-1"):
        call(f"{files / 'md.extxyz'}{selection}")


@pytest.mark.parametrize("selection", ["9", "-9", "9:", "3:3"])
def test_an_empty_selection_is_refused(files, selection):
    with pytest.raises(SourceError, match=r"md\.extxyz: (no frames in it|ASE cannot read it after 0 frames)"):
        list(read_frames(f"{files / 'md.extxyz'}@{selection}"))


@pytest.mark.parametrize("name", ["nothing.xyz", "nothing.xyz@:", "nothing@2.xyz", "."])
@pytest.mark.parametrize("call", [lambda source: list(read_frames(source)), describe_source])
def test_a_missing_file_and_a_folder_are_refused(tmp_path, name, call):
    with pytest.raises(SourceError, match="no such file") as caught:
        call(f"{tmp_path}/{name}")
    assert isinstance(caught.value, InputError)


# -- labels by name --------------------------------------------------------------------------------


def write_labelled(path, keys, column, frames=2):
    """Write frames of two atoms whose forces are in a column of that name."""
    head = f'2\nLattice="5 0 0 0 5 0 0 0 5" Properties=species:S:1:pos:R:3:{column}:R:3 {keys}\n'
    path.write_text((head + "Si 0 0 0 1 2 3\nSi 2 2 2 -1 -2 -3\n") * frames)


def test_labels_are_found_by_name(tmp_path):
    path, forces = tmp_path / "others.xyz", [[1, 2, 3], [-1, -2, -3]]
    write_labelled(path, 'energy=9 REF_energy=-1.5 REF_stress="1 6 5 6 2 4 5 4 3" Virial="1 2 3 4 5 6"', "REF_forces")
    with pytest.raises(
        SourceError, match=r"frame 0 has no label: forces is missing.* REF_energy, .*REF_forces \(arrays"
    ):
        list(read_labelled(path))
    keys = {"energy_key": "REF_energy", "forces_key": "REF_forces"}
    for stress_key, factor in (("REF_stress", 1), ("Virial", -1 / 125)):
        for atoms in read_labelled(path, **keys, stress_key=stress_key):
            assert atoms.get_potential_energy() == -1.5
            np.testing.assert_array_equal(atoms.get_forces(), forces)
            np.testing.assert_allclose(atoms.get_stress(), factor * np.arange(1.0, 7))
    for wrong, said in (("missing", "missing is missing"), ("REF_stress", "REF_stress should be a number")):
        with pytest.raises(SourceError, match=rf"others\.xyz: frame 0.*{said}"):
            list(read_labelled(path, **{**keys, "energy_key": wrong}))


def test_what_ase_refuses_and_nobody_needs_stops_no_frame(tmp_path):
    path = tmp_path / "odd.xyz"
    write_labelled(
        path, 'energy=-1.5 stress="1 2 3 4 5 6" dipole=unknown virial=none big=99999999999999999999', "forces"
    )
    path.write_text(path.read_text().replace("forces:R:3", "forces:R:3:n:I:1").replace("3\n", "3 3000000000\n"))
    for atoms in read_labelled(path):
        np.testing.assert_array_equal(atoms.get_stress(), np.arange(1.0, 7))
        assert (atoms.info["dipole"], atoms.arrays["n"].tolist()) == ("unknown", [3_000_000_000] * 2)


# -- the types of LAMMPS ---------------------------------------------------------------------------

DATA = (
    "made by hand\n\n2 atoms\n2 atom types\n\n0 5 xlo xhi\n0 5 ylo yhi\n0 5 zlo zhi\n\n{masses}"
    "Atoms # charge\n\n1 1 0.5 0 0 0\n2 2 0.5 2 2 2\n\nVelocities\n\n1 1 0 0\n2 0 1 0\n"
)
DUMP = (
    "ITEM: TIMESTEP\n7\nITEM: NUMBER OF ATOMS\n2\nITEM: BOX BOUNDS pp pp pp\n0 5\n0 5\n0 5\n"
    "ITEM: ATOMS id type x y z vx vy vz fx fy fz\n1 1 0 0 0 1 0 0 9 9 9\n2 2 2 2 2 0 1 0 9 9 9\n"
)
LAMMPS = {
    "types.dump": DUMP, "types.dump.gz": DUMP, "bare.data": DATA.format(masses=""),
    "reduced.data": DATA.format(masses="Masses\n\n1 1.0\n2 1.0\n\n"),
    "types.xyz": "2\nAtoms. Timestep: 7\n1 0 0 0\n2 2 2 2\n",
}  # fmt: skip


@pytest.mark.parametrize("name", LAMMPS)
def test_types_are_no_atomic_numbers(tmp_path, name):
    path = tmp_path / name
    with gzip.open(path, "wt") if name.endswith(".gz") else open(path, "w") as file:
        file.write(LAMMPS[name])
    with pytest.raises(SourceError, match=rf"{name}: it does not say which elements .* --elements Si C"):
        list(read_frames(path))
    (atoms,) = read_atoms(path, elements=["Si", "C"])
    assert atoms.get_chemical_symbols() == ["Si", "C"]
    if "types.dump" in name:  # masses of other elements would change velocities; ASE adds an energy
        np.testing.assert_allclose(atoms.get_velocities()[0] / atoms.get_velocities()[1, 1], [1, 0, 0])
        assert set(atoms.calc.results) == {"forces"}
    with pytest.raises(SourceError, match="atoms of type 2, and 1 types are named: Si"):
        list(read_frames(path, elements=["Si"]))


def test_a_dump_of_a_group_keeps_the_ids_of_each_frame(tmp_path):
    path = tmp_path / "group.dump.gz"
    with gzip.open(path, "wt") as file:
        for step, ids in enumerate(([9, 4], [7], [], [12, 3])):
            file.write(f"ITEM: TIMESTEP\n{step}\nITEM: NUMBER OF ATOMS\n{len(ids)}\n")
            file.write("ITEM: BOX BOUNDS pp pp pp\n0 50\n0 50\n0 50\nITEM: ATOMS element x y z id\n")
            file.writelines(f"Si {i} 0 0 {i}\n" for i in ids)
    for selection, expected in {"@:2": [[4, 9], [7]], "@1": [[7]], "@-1": [[3, 12]], "@::3": [[4, 9], [3, 12]]}.items():
        frames = list(read_frames(f"{path}{selection}"))
        assert [frame.ids.tolist() for frame in frames] == expected
        for frame in frames:
            np.testing.assert_array_equal(frame.positions[:, 0], frame.ids)


def test_a_dump_that_ends_in_the_middle_of_a_frame_is_told(tmp_path):
    named = DUMP.replace("id type x", "id element x").replace("1 1 0", "1 Si 0").replace("2 2 2", "2 C 2")
    (tmp_path / "killed.dump").write_text(named + named[: named.index("2 C")])
    frames = read_frames(tmp_path / "killed.dump")
    assert next(frames).ids.tolist() == [1, 2]
    with pytest.raises(SourceError, match=r"killed\.dump: frame 1 is cut off: it has 1 of 2 atoms"):
        next(frames)


def test_a_data_file_tells_elements_by_masses_and_comments(tmp_path):
    for masses in ("1 28.0855\n2 12.011", "1 1.0 # Si\n2 2.0 # C"):
        (tmp_path / "told.data").write_text(DATA.format(masses=f"Masses\n\n{masses}\n\n"))
        (atoms,) = read_atoms(tmp_path / "told.data")
        assert atoms.get_chemical_symbols() == ["Si", "C"]


def test_a_dump_with_some_frames_without_elements_is_refused(tmp_path):
    named = DUMP.replace("id type x", "id element x").replace("1 1 0", "1 Si 0").replace("2 2 2", "2 C 2")
    (tmp_path / "mixed.dump").write_text(named + DUMP)
    with pytest.raises(SourceError, match=r"mixed\.dump: it does not say"):
        list(read_frames(tmp_path / "mixed.dump"))


def test_the_format_and_its_keywords_reach_the_reader(tmp_path):
    path = tmp_path / "plain"
    path.write_text(DATA.format(masses="Masses\n\n1 28.0855\n2 12.011\n\n").replace(" # charge", ""))
    with pytest.raises(SourceError, match="atom_style cannot be guessed"):
        list(read_frames(path))
    (frame,) = read_frames(path, format="lammps-data:atom_style=charge")
    assert frame.numbers.tolist() == [14, 6]
    for wrong, said in (("nonsense", "no format 'nonsense'"), ("lammps-data:charge", "NAME:KEY=VALUE")):
        with pytest.raises(SourceError, match=said):
            list(read_frames(path, format=wrong))
    with pytest.raises(InputError, match="chemical symbols"):
        list(read_frames(path, elements=["Sx"]))
