"""Residuals of an index: what they are, the rows that they belong to, and their section of the file."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from ase.build import bulk
from forging import forged, header_of, refuse, with_values
from hypothesis import given, settings
from hypothesis import strategies as st
from indexes import MODES, H, alloy, silicon_frames, silicon_index, written
from paths import DATA

from quests_md.descriptors import DescriptorSpec
from quests_md.errors import ElementError, IndexFileError, InputError
from quests_md.frame import Frame
from quests_md.index import ORIGINS, Index, Residuals, calibrate, match_residuals

SNAP = {"name": "SNAP", "fingerprint": "ab" * 32}


def made(index, name="SNAP", seed=0, origin="training"):
    """Return residuals of an index, with some labels missing."""
    rng = np.random.default_rng(seed)
    values = rng.exponential(0.1, len(index)).astype(np.float32)
    values[rng.random(len(index)) < 0.2] = np.nan
    return Residuals(name, "0123456789abcdef" * 4, origin, values)


def errors_of(frames, seed=1):
    """Return frames, each with force errors of its environments."""
    rng = np.random.default_rng(seed)
    return [(frame, rng.exponential(0.1, len(frame.centres))) for frame in map(Frame.from_atoms, frames)]


def in_frames(index, values):
    """Return values of rows in the order of the frames."""
    out = np.empty(len(index), np.float32)
    out[index.order] = values
    return out


def twin(frames, errors, index):
    """Return the residuals by the obvious loop: the mean error of the environments nearest to each row."""
    rows = np.concatenate([index.spec.compute(frame) for frame in frames])
    numbers = np.concatenate([frame.numbers for frame in frames])
    errors, out = np.concatenate(errors), []
    for row, z in zip(index.rows.astype(float), index.numbers, strict=True):
        if index.spec.by_centre:
            row = np.append(float(z), row + index.centre)
            distance = np.linalg.norm(rows - row, axis=1)
        else:
            distance = np.where(numbers == z, np.linalg.norm(rows - index.centre - row, axis=1), np.inf)
        near = distance <= distance.min() + 1e-6
        out.append(errors[near].mean() if distance.min() <= 0.05 * index.bandwidth else np.nan)
    return np.array(out)


# -- what they are -----------------------------------------------------------------------------------------------------


def test_an_index_has_the_residuals_that_it_is_given(tmp_path):
    index = silicon_index()
    with pytest.raises(InputError, match="the index has no residuals; make them: quests-md index residuals"):
        index.residuals_of()
    one, other = made(index), made(index, "GAP", 1, "held out")
    with_one = index.with_residuals(one)
    assert index.residuals == ()
    assert with_one.residuals_of() is one
    assert with_one.residuals_of("SNAP") is one
    assert one.labelled == int((~np.isnan(one.values)).sum()) < len(index)
    assert one.describe()["mean"] == pytest.approx(np.nanmean(one.values))
    with pytest.raises(InputError, match="has residuals of SNAP, not of 'GAP'"):
        with_one.residuals_of("GAP")
    both = with_one.with_residuals(*with_one.residuals, other)
    with pytest.raises(InputError, match="has residuals of SNAP, GAP: name one"):
        both.residuals_of()
    assert both.residuals_of("GAP") is other
    both.save(tmp_path / "si.qindex")
    with pytest.raises(InputError, match=r"si\.qindex has residuals of SNAP, GAP"):
        both.residuals_of()
    assert both.with_residuals().residuals == ()


def test_values_are_a_copy_that_nobody_changes():
    values = np.array([0.1, np.nan])
    kept = Residuals(**SNAP, origin="training", values=values)
    values[0] = 3.0
    assert kept.values.dtype == np.float32
    assert kept.values[0] == np.float32(0.1)
    with pytest.raises(ValueError, match="read-only"):
        kept.values[0] = 3.0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        *(({"name": v}, "the name of a potential is a line of text") for v in ("", "  ", "a\nb", 3, None, "x" * 201)),
        *(({"fingerprint": v}, "64 hexadecimal digits") for v in ("", "ab", "AB" * 32, "ab" * 33, None, 3)),
        *(({"origin": v}, "one of training, held out, cross-validated") for v in ("", "test", None, ["training"])),
        *(({"values": np.array(v)}, "no force errors") for v in ([-0.1], [np.inf], [2e9, 0.0], [-np.inf])),
        ({"values": np.array([np.nan])}, "no row has one"),
        ({"values": np.empty(0)}, "no row has one"),
        ({"values": np.zeros((2, 2))}, r"one number for each row, not an array \(2, 2\)"),
    ],
)
def test_what_no_residuals_can_be_is_refused(change, match):
    with pytest.raises(InputError, match=match):
        Residuals(**{**SNAP, "origin": "training", "values": np.zeros(3)} | change)


def test_residuals_of_other_rows_and_two_of_one_name_are_refused(tmp_path):
    index = silicon_index()
    with pytest.raises(InputError, match="those of 3 rows, and the index has 96"):
        index.with_residuals(Residuals(**SNAP, origin="training", values=np.zeros(3)))
    with pytest.raises(InputError, match="two potentials have one name: SNAP, SNAP"):
        index.with_residuals(made(index), made(index))
    index.residuals = (made(index), made(index))
    with pytest.raises(InputError, match="two potentials have one name"):
        index.save(tmp_path / "si.qindex")
    assert not list(tmp_path.iterdir())


# -- what is made of an index keeps them -------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(1, 7), min_size=1, max_size=3, unique=True).map(sorted), seed=st.integers(0, 1000))
def test_an_extension_keeps_those_of_old_rows_and_has_none_of_new_ones(cuts, seed):
    frames = silicon_frames()
    parts = [frames[a:b] for a, b in zip([0, *cuts], [*cuts, len(frames)], strict=True)]
    index = Index.build(parts[0])
    index = index.with_residuals(made(index, seed=seed), made(index, "GAP", seed + 1, "cross-validated"))
    larger = index
    for part in parts[1:]:
        larger = larger.extend(part)
    assert [one.to_json() for one in larger.residuals] == [one.to_json() for one in index.residuals]
    for old, new in zip(index.residuals, larger.residuals, strict=True):
        values = in_frames(larger, new.values)
        np.testing.assert_array_equal(values[: len(index)], in_frames(index, old.values))
        assert np.isnan(values[len(index) :]).all()


@pytest.mark.parametrize("species", MODES)
def test_with_several_elements_too(species, tmp_path):
    frames = [alloy(seed) for seed in range(4)]
    index = Index.build(frames[:2], DescriptorSpec(species=species), H)
    index = index.with_residuals(made(index))
    larger = index.extend(frames[2:])
    values = in_frames(larger, larger.residuals_of().values)
    np.testing.assert_array_equal(values[: len(index)], in_frames(index, index.residuals_of().values))
    larger.save(tmp_path / "a.qindex")
    again = Index.open(tmp_path / "a.qindex")
    np.testing.assert_array_equal(again.residuals_of().values, larger.residuals_of().values)


def test_own_descriptors_have_residuals_too(tmp_path):
    x = np.random.default_rng(3).normal(1.0, 0.1, (300, 5))
    index = Index.from_descriptors(x[:200], 0.1)
    errors = np.random.default_rng(4).exponential(0.1, 200).astype(np.float32)  # in the order of x
    index = index.with_residuals(Residuals(**SNAP, origin="training", values=errors[index.order]))
    index.extend(x[200:]).save(tmp_path / "own.qindex")
    again = Index.open(tmp_path / "own.qindex")
    np.testing.assert_array_equal(in_frames(again, again.residuals_of().values), [*errors, *[np.nan] * 100])


def test_a_calibration_a_pickle_and_a_mapped_file_keep_them(tmp_path, monkeypatch):
    monkeypatch.setattr("quests_md.index._parts.LAID_OUT", 40)
    index = silicon_index()
    residuals, path = made(index), tmp_path / "si.qindex"
    index.with_residuals(residuals).save(path)
    mapped = Index.open(path)
    assert mapped.mapped is not None
    mapped.calibration = calibrate(mapped)
    renamed = mapped.with_residuals(Residuals("other", "0" * 64, "held out", residuals.values))
    assert renamed.mapped is mapped.mapped  # the guard of its rows
    renamed.save(path)
    for again in (Index.open(path), pickle.loads(pickle.dumps(Index.open(path)))):
        np.testing.assert_array_equal(again.residuals_of("other").values, residuals.values)
        assert again.calibration is not None


# -- the file ----------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(1, 3), origin=st.sampled_from(ORIGINS))
def test_what_is_saved_is_what_is_opened(tmp_path_factory, seed, n, origin):
    folder = tmp_path_factory.mktemp("residuals")
    index = silicon_index()
    index = index.with_residuals(*(made(index, f"potential {i}", seed + i, origin) for i in range(n)))
    index.save(folder / "a.qindex")
    Index.verify(folder / "a.qindex")
    again = Index.open(folder / "a.qindex")
    again.save(folder / "b.qindex")
    assert (folder / "a.qindex").read_bytes() == (folder / "b.qindex").read_bytes()
    for old, new in zip(index.residuals, again.residuals, strict=True):
        assert old.to_json() == new.to_json()
        np.testing.assert_array_equal(old.values, new.values)


def test_an_index_without_residuals_is_written_as_ever(tmp_path):
    index = silicon_index()
    index.save(tmp_path / "a.qindex")
    index.with_residuals(made(index)).with_residuals().save(tmp_path / "b.qindex")
    content = (tmp_path / "a.qindex").read_bytes()
    assert content == (tmp_path / "b.qindex").read_bytes()
    header = json.loads(header_of(content)[0])
    assert "residuals" not in header
    assert list(header["sections"]) == [
        *("rows", "centre", "frame_offsets", "numbers", "pair_distances"),
        *("order", "node_centres", "node_radius", "node_spread"),
    ]


@pytest.mark.parametrize("name", ["format1_without_tree.qindex", "format_1_copper.qindex"])
def test_earlier_files_have_none_and_can_get_some(name, tmp_path):
    index = Index.open(DATA / name)
    assert index.residuals == ()
    index.with_residuals(made(index)).save(tmp_path / "a.qindex")
    again = Index.open(tmp_path / "a.qindex")
    np.testing.assert_array_equal(again.residuals_of().values, made(index).values)


@pytest.fixture
def content(tmp_path):
    """The bytes of a saved index with residuals of two potentials."""
    index = silicon_index()
    index.with_residuals(made(index), made(index, "GAP", 1)).save(tmp_path / "made.qindex")
    return (tmp_path / "made.qindex").read_bytes()


def change_entry(**values):
    def change(header):
        header["residuals"][0] |= values

    return change


def change_section(**values):
    def change(header):
        header["sections"]["residuals"] |= values

    return change


def without(*names):
    def change(header):
        for name in names:
            {"header": header, "section": header["sections"]}[name].pop("residuals")

    return change


HOSTILE = [
    *((change_entry(**{k: v}), "malformed") for k in SNAP for v in ("", 3, None, [], {}, "x" * 1000, "a\nb")),
    *((change_entry(origin=v), "malformed") for v in ("", "guess", None, [], {}, 3)),
    *((change_entry(squarings=v), "malformed") for v in (-1, 3, 1.0, True, None, "0", [])),
    (change_entry(more=1), "malformed"),
    (change_entry(name="GAP"), "malformed.*two potentials have one name"),
    (without("header"), "malformed"),
    (without("section"), "malformed"),
    *((lambda h, v=v: h.update(residuals=v), "malformed") for v in ([], {}, None, 3, "ab", [3], ["ab"], [[]], [{}])),
    (lambda h: h["residuals"].pop(), "not one of 1 potentials and 96 rows"),
    (
        lambda h: h["residuals"].append({**SNAP, "name": "third", "origin": "training", "squarings": 0}),
        "not one of 3 potentials",
    ),
    *((change_section(shape=v), "section residuals is damaged") for v in ([1, 96], [2, 95])),
    *((change_section(shape=v), "not one of 2 potentials") for v in ([96, 2], [1, 192], [192, 1], [64, 3])),
    *((change_section(shape=v), "malformed") for v in ([192], [2, -96], [2, 96, 1], None, [2, 1 << 47], [True, 192])),
    (change_section(shape=[0, 96]), "section residuals is empty"),
    *((change_section(dtype=v), "malformed") for v in ("<f8", "<i4", ">f4", "|O", None)),
    *((change_section(offset=v), "malformed") for v in (4, -64, None, 1 << 40)),
]


@pytest.mark.parametrize(("change", "match"), HOSTILE)
def test_hostile_headers_with_a_right_hash_are_refused(content, tmp_path, change, match):
    header = json.loads(header_of(content)[0])
    change(header)
    refuse(written(tmp_path, forged(content, header)), match=match)


@pytest.mark.parametrize("value", [-1e-9, np.inf, -np.inf, 2e9])
def test_impossible_values_with_a_right_checksum_are_refused(content, tmp_path, value):
    def change(arrays):
        arrays["residuals"][1, 7] = value

    path = written(tmp_path, with_values(content, change))
    for action in (Index.open, Index.verify):
        refuse(path, action, "section residuals, GAP: they hold values that are no force errors")


def test_a_section_of_nothing_is_refused(content, tmp_path):
    def change(arrays):
        arrays["residuals"][0] = np.nan

    refuse(written(tmp_path, with_values(content, change)), match="section residuals, SNAP: no row has one")


@pytest.mark.parametrize("bit", [0, 5, 7])
def test_a_flipped_bit_of_them_is_seen(content, tmp_path, bit):
    text, values = header_of(content)
    place = len(content) - len(values) + json.loads(text)["sections"]["residuals"]["offset"] + 11
    damaged = content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]
    with pytest.raises(IndexFileError, match="section residuals is damaged"):
        Index.open(written(tmp_path, damaged))


# -- the rows that errors belong to ------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(8)), seed=st.integers(0, 1000))
def test_each_row_gets_the_error_of_its_environment_in_any_order_of_frames_and_atoms(order, seed):
    index, labelled = silicon_index(), errors_of(silicon_frames())
    plain = match_residuals(index, labelled, **SNAP)
    expected = np.concatenate([errors for _, errors in labelled]).astype(np.float32)
    np.testing.assert_array_equal(in_frames(index, plain.values), expected)
    rng, mixed = np.random.default_rng(seed), []
    for i in order:
        atoms, errors = silicon_frames()[i], labelled[i][1]
        places = rng.permutation(len(atoms))
        mixed.append((Frame.from_atoms(atoms[places]), errors[places]))
    again = match_residuals(index, mixed, **SNAP, origin="held out", threads=1)
    np.testing.assert_array_equal(again.values, plain.values)
    assert (again.origin, plain.origin) == ("held out", "training")


@pytest.mark.parametrize("species", MODES)
def test_it_is_what_the_obvious_loop_finds(species):
    frames = [alloy(seed, 2) for seed in range(4)]
    index = Index.build(frames, DescriptorSpec(species=species), H)
    labelled = errors_of([*frames[:3], frames[0]])
    found = match_residuals(index, labelled, **SNAP)
    expected = twin([frame for frame, _ in labelled], [errors for _, errors in labelled], index)
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)
    assert found.labelled == 3 * len(frames[0])


def test_frames_that_are_missing_leave_nan():
    index, labelled = silicon_index(), errors_of(silicon_frames())
    found = in_frames(index, match_residuals(index, labelled[2:5], **SNAP).values)
    first, last = index.frame_offsets[[2, 5]]
    assert np.isnan(found[:first]).all()
    assert np.isnan(found[last:]).all()
    np.testing.assert_array_equal(found[first:last], np.concatenate([e for _, e in labelled[2:5]]).astype(np.float32))


def test_copies_of_a_row_get_the_mean_error_of_the_copies():
    frames = silicon_frames()
    index = Index.build([*frames, frames[3], frames[3]])
    labelled = errors_of([*frames, frames[3]])
    found = in_frames(index, match_residuals(index, labelled, **SNAP).values)
    mean = np.mean([labelled[3][1], labelled[8][1]], axis=0).astype(np.float32)
    for copy in (3, 8, 9):
        np.testing.assert_allclose(found[index.frame_offsets[copy] : index.frame_offsets[copy + 1]], mean, rtol=1e-6)


def test_all_rows_of_a_perfect_crystal_have_one_error(monkeypatch):
    crystal = bulk("Si", cubic=True) * (3, 3, 3)
    index = Index.build([crystal, *silicon_frames()])
    monkeypatch.setattr("quests_md.index._matching._PAIRS", 1000)
    labelled = errors_of([crystal])
    found = match_residuals(index, labelled, **SNAP)
    assert found.labelled == len(crystal)
    np.testing.assert_allclose(found.values[~np.isnan(found.values)], labelled[0][1].mean(), rtol=1e-6)


def test_a_near_copy_stands_for_a_row_and_a_nearer_one_wins():
    frames = silicon_frames()
    index, near = Index.build(frames), frames[7].copy()
    near.rattle(2e-5, seed=3)
    (_, of_near), (_, own) = labelled = errors_of([near, frames[7]])
    n = len(frames[7])
    np.testing.assert_array_equal(
        in_frames(index, match_residuals(index, labelled[:1], **SNAP).values)[-n:], of_near.astype(np.float32)
    )
    np.testing.assert_array_equal(
        in_frames(index, match_residuals(index, labelled, **SNAP).values)[-n:], own.astype(np.float32)
    )


def test_rows_of_another_element_do_not_match():
    silicon = silicon_frames()
    both = []
    for atoms in silicon[:2]:
        atoms = atoms.copy()
        atoms.numbers[0] = 32
        both.append(atoms)
    index = Index.build(both, DescriptorSpec(species="ignore"))
    assert match_residuals(index, errors_of(both), **SNAP).labelled == len(index)
    with pytest.raises(InputError, match=r"frame 0: 1 of its 8 environments are no rows"):
        match_residuals(index, errors_of(silicon[:1]), **SNAP)


def test_frames_of_other_data_are_refused_by_name():
    index = silicon_index()
    other = bulk("Si", cubic=True) * (2, 1, 1)
    other.rattle(0.3, seed=5)
    with pytest.raises(InputError, match=r"^1 of 9 labelled frames are not in the reference. The first is frame 8: 16"):
        match_residuals(index, errors_of([*silicon_frames(), other]), **SNAP)
    with pytest.raises(InputError, match=r"The first is b.xyz: frame 0: 16 of its 16 environments .*index extend"):
        match_residuals(index, errors_of([silicon_frames()[0], other]), **SNAP, where=["a", "b.xyz: frame 0"])
    with pytest.raises(ElementError):
        match_residuals(index, errors_of([bulk("Ge", cubic=True)]), **SNAP)


@pytest.mark.parametrize("wrong", [np.zeros(7), np.zeros((8, 3)), np.full(8, np.nan), np.full(8, -1.0)])
def test_errors_that_are_none_are_refused(wrong):
    frames = silicon_frames()
    with pytest.raises(InputError, match="frame 1: the force errors must be 16 finite numbers"):
        match_residuals(silicon_index(), [*errors_of(frames[:1]), (Frame.from_atoms(frames[1]), wrong)], **SNAP)
    with pytest.raises(InputError, match="no labelled frames"):
        match_residuals(silicon_index(), [], **SNAP)
