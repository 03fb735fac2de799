"""Cut-outs: which there are, what is said of them, in files too, and what is refused."""

from __future__ import annotations

import io
import math

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list
from cut_parents import CUTOFF, RADIUS, SPEC, cut_one, parents
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import DOCS
from scipy.spatial.transform import Rotation

from quests_md import Frame, Index
from quests_md.errors import FrameError, InputError
from quests_md.files.extxyz import format_frame
from quests_md.selection import cutouts
from quests_md.sources import read_frames

# -- which, and what is said of them -----------------------------------------------------------------


def test_worst_atoms_near_each_other_share_a_cutout():
    atoms, frame, _ = parents("crystal")
    near = int(np.argsort(atoms.get_distances(500, range(len(atoms)), mic=True))[1])
    far = int(np.argmax(atoms.get_distances(500, range(len(atoms)), mic=True)))
    dH = np.zeros(len(atoms))
    dH[[near, 500, far]] = [8.0, 9.0, 7.0]
    found = cutouts(frame, dH, CUTOFF, threshold=5.0, radius=RADIUS)
    assert [cut.info["centre"] for cut in found] == [500, far]
    assert near in found[0].frame.ids[found[0].core]
    assert len(cutouts(frame, dH, CUTOFF, threshold=5.0, radius=RADIUS, most=1)) == 1
    assert len(cutouts(frame, dH, CUTOFF, threshold=5.0, radius=0.0)) == 3
    assert cutouts(frame, dH, CUTOFF, threshold=9.0, radius=RADIUS) == []  # above, not at


def test_the_worst_of_the_core_may_have_been_in_an_earlier_one():
    atoms, frame, _ = parents("crystal")
    order = np.argsort(atoms.get_distances(500, range(len(atoms)), mic=True))
    dH = np.zeros(len(atoms))
    dH[500], dH[order[1]] = 9.0, 8.0
    beyond = neighbor_list("ij", atoms, RADIUS)[1][neighbor_list("ij", atoms, RADIUS)[0] == order[1]]
    dH[next(i for i in beyond if i != 500)] = 7.0
    last = cutouts(frame, dH, CUTOFF, threshold=5.0, radius=RADIUS)[-1]
    assert (last.info["dH_max"], last.info["dH_max_id"]) == (8.0, order[1])


def test_dH_of_watched_atoms_only():
    atoms, _, dH = parents("crystal")
    watched = np.arange(len(atoms)) % 3 == 1
    frame = Frame.from_atoms(atoms, watched=watched)
    every = np.where(watched, dH, np.nan)
    for given_ in (every, dH[watched]):
        cut = cut_one(frame, given_)
        assert cut.info["centre"] == 1
        np.testing.assert_array_equal(cut.dH[cut.core], every[cut.frame.ids[cut.core]])


def test_stoichiometry_is_reported():
    _, frame, dH = parents("salt")
    for shape in ("cell", "cluster"):
        cut = cut_one(frame, dH, shape=shape)
        sodium, chlorine = (np.count_nonzero(cut.frame.numbers == z) for z in (11, 17))
        assert cut.info["composition"] == f"Na{sodium} Cl{chlorine}"
        assert cut.info["parent_composition"] == "Na864 Cl864"
    assert cut_one(frame, dH).info["composition"] in ("Na108 Cl108", "Na256 Cl256")  # at whole cells


def test_sites_that_are_no_atoms_are_left_out():
    atoms, _, dH = parents("crystal")
    numbers = atoms.numbers.copy()
    numbers[::50] = 0
    for shape in ("cell", "cluster"):
        cut = cut_one(Frame(atoms.positions, numbers, atoms.cell.array, True), dH, shape=shape)
        assert cut.info["centre"] != 0
        assert (cut.frame.numbers == 14).all()


def test_ids_and_times_are_those_of_the_parent():
    atoms, _, dH = parents("crystal")
    ids = np.arange(len(atoms))[::-1] * 3 + 7
    cut = cut_one(Frame.from_atoms(atoms, step=70, time=0.35, ids=ids), dH)
    assert cut.info["centre"] == cut.frame.ids[0] == ids[0]
    assert set(cut.frame.ids) <= set(ids)
    assert (cut.info["step"], cut.info["time"], cut.frame.step, cut.frame.time) == (70, 0.35, 70, 0.35)


@pytest.mark.parametrize("shape", ["cell", "cluster"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_is_cut_depends_on_no_frame_of_mind(shape, seed):
    """Rotated, moved, wrapped and shuffled, the same atoms are cut, at the same distances."""
    rng = np.random.default_rng(seed)
    cell = np.array([[24.0, 0.0, 0.0], [3.0, 23.0, 0.0], [-2.0, 4.0, 25.0]])
    atoms = Atoms("Si400", rng.random((400, 3)) @ cell, cell=cell, pbc=True)
    dH = rng.normal(size=400)
    order, turn = rng.permutation(400), Rotation.random(random_state=seed % 2**31).as_matrix()
    moved = (atoms.positions + rng.normal(size=3) * 20.0) @ np.linalg.inv(cell)
    twin = Frame(((moved % 1.0) @ cell @ turn)[order], atoms.numbers, cell @ turn, True, ids=np.arange(400)[order])
    cuts = [
        cut_one(frame, values, shape=shape, radius=1.5)
        for frame, values in ((Frame.from_atoms(atoms), dH), (twin, dH[order]))
    ]
    # 1e-6 Å may decide which of two is farther: compare as sets.
    ones = [dict(zip(cut.frame.ids.tolist(), cut.core.tolist(), strict=True)) for cut in cuts]
    assert ones[0] == ones[1]
    assert cuts[0].info["removed"] == cuts[1].info["removed"]
    if shape == "cell":
        np.testing.assert_allclose(cuts[0].frame.cell @ turn, cuts[1].frame.cell, atol=1e-9)
    for cut in cuts:
        np.testing.assert_allclose(
            SPEC.compute(cut.frame), SPEC.compute(atoms)[cut.frame.ids[cut.core]], rtol=0, atol=1e-10
        )


# -- errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"radius": -1.0}, "radius must be a length in Å, 0 or more, not -1.0"),
        ({"margin": 3.0}, "margin = 3.0 Å is less than the descriptor's cutoff, 4.0 Å"),
        ({"margin": math.nan}, "margin must be a positive length"),
        ({"margin": 9.0, "potential_range": 4.0}, "either margin or potential_range"),
        ({"potential_range": 0.0}, "potential_range must be a positive length"),
        ({"threshold": math.nan}, "threshold must be a number"),
        ({"shape": "ball"}, 'shape must be "cell" or "cluster"'),
        ({"vacuum": 0.0}, "vacuum must be a positive length"),
        ({"passivate": True}, 'passivate is for shape = "cluster"'),
        ({"most": 0}, "most must be at least 1"),
    ],
)
def test_arguments_out_of_range_are_named(more, says):
    _, frame, dH = parents("small")
    with pytest.raises(InputError, match=says):
        cut_one(frame, dH, **more)


def test_frames_that_cannot_be_cut_are_refused():
    atoms, frame, dH = parents("small")
    with pytest.raises(InputError, match=r"one value per atom \(8\) or per environment \(8\)"):
        cut_one(frame, dH[1:])
    with pytest.raises(InputError, match="whole frames"):
        cut_one(Frame(atoms.positions, atoms.numbers, n_local=8), dH)
    lost = atoms.positions.copy()
    lost[3, 1] = np.nan
    with pytest.raises(InputError, match="step 0: some positions are not finite"):
        cut_one(Frame(lost, atoms.numbers, frame.cell, True), dH)
    with pytest.raises(FrameError, match="singular"):
        cut_one(Frame(atoms.positions, atoms.numbers, np.ones((3, 3)), True), dH)


# -- files -------------------------------------------------------------------------------------------


def test_a_file_of_cutouts_says_what_is_fit_to_train_on(tmp_path):
    atoms, _, dH = parents("salt")
    frame = Frame.from_atoms(atoms, step=70, time=0.35, forces=np.full((len(atoms), 3), 0.25))
    cut = cut_one(frame, dH)
    text = format_frame(cut.frame, cut.dH, cut.info, {"core": cut.core})
    read = ase.io.read(io.StringIO(text.decode()), format="extxyz")
    np.testing.assert_array_equal(read.arrays["core"], cut.core)
    assert read.arrays["core"].dtype == bool
    assert read.info == cut.info
    assert read.info["fit"] == "forces of core atoms only"
    assert read.info["config_energy_weight"] == read.info["config_stress_weight"] == 0.0
    (tmp_path / "cut.extxyz").write_bytes(text)
    (again,) = read_frames(tmp_path / "cut.extxyz")
    np.testing.assert_array_equal(again.watched, cut.core)
    np.testing.assert_array_equal(again.forces, cut.frame.forces)
    assert again.step == 70


def test_an_index_learns_the_core_only(tmp_path):
    _, frame, dH = parents("crystal")
    cut = cut_one(frame, dH)
    (tmp_path / "cut.extxyz").write_bytes(format_frame(cut.frame, cut.dH, cut.info, {"core": cut.core}))
    index = Index.build(read_frames(tmp_path / "cut.extxyz"), SPEC, threads=1)
    assert len(index) == cut.core.sum()


def test_more_columns_of_a_file():
    frame = Frame(np.zeros((2, 3)), np.array([14, 8]))
    more = {"flag": np.array([True, False]), "count": np.array([3, -4]), "two": np.array([[0.1, 1e-300], [2.0, 3.0]])}
    read = ase.io.read(io.StringIO(format_frame(frame, np.zeros(2), {}, more).decode()), format="extxyz")
    for name, values in more.items():
        np.testing.assert_array_equal(read.arrays[name], values)
        assert read.arrays[name].dtype.kind == values.dtype.kind


def test_every_key_and_option_is_documented():
    from quests_md.cli.frame_verbs import cutout_command

    page = (DOCS / "cutouts.md").read_text(encoding="utf-8")
    _, frame, dH = parents("crystal")
    keys = [*cut_one(frame, dH).info, *(o for p in cutout_command.params for o in p.opts if o.startswith("--"))]
    assert [key for key in keys if f"`{key}`" not in page] == []
