"""An extended index answers as one that was built of everything, and says where it came from."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
import ranks
from ase.build import bulk
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from indexes import MODES, H, alloy, silicon_frames
from paths import DATA

from quests_md import cli
from quests_md.descriptors import DescriptorSpec
from quests_md.errors import ElementError, InputError
from quests_md.frame import Frame
from quests_md.index import Index, calibrate
from quests_md.monitor import Monitor


def molten(seed):
    atoms = bulk("Si", cubic=True) * (2, 1, 1)
    atoms.rattle(0.6, seed=seed)
    return atoms


def rounding(index, dH):
    """Return how far single precision of the rows moves dH: the bound that `Index.delta_entropy` documents."""
    s = np.linalg.norm(index.rows.astype(float), axis=1).max()
    return 6e-8 * s * np.sqrt(2 * np.maximum(0.0, dH + np.log(len(index)))) / index.bandwidth


def grouped(frames, *names):
    made = [Frame.from_atoms(atoms) for atoms in frames]
    for frame, name in zip(made, names, strict=True):
        frame.group = name
    return made


# -- what it answers -------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(1, 7), max_size=3, unique=True).map(sorted), seed=st.integers(0, 1000))
def test_extending_in_any_split_is_building_of_everything(cuts, seed):
    frames = silicon_frames()
    whole = Index.build(frames)
    parts = [frames[a:b] for a, b in zip([0, *cuts], [*cuts, len(frames)], strict=True)]
    index = Index.build(parts[0])
    for part in parts[1:]:
        index = index.extend(part)
    query = whole.spec.compute([molten(seed), frames[seed % 8]])
    dH = whole.delta_entropy(query)
    error = np.abs(index.delta_entropy(query) - dH)
    assert (error <= rounding(whole, dH) + rounding(index, dH) + 1e-10 * np.maximum(1, np.abs(dH))).all()
    assert index.generation == len(cuts)
    np.testing.assert_array_equal(index.frame_offsets, whole.frame_offsets)
    np.testing.assert_array_equal(index.pair_distances, whole.pair_distances)
    np.testing.assert_array_equal(np.sort(index.order), np.arange(len(index)))


@pytest.mark.parametrize("species", MODES)
def test_with_several_elements_too(species, tmp_path):
    frames = [alloy(seed) for seed in range(6)]
    spec = DescriptorSpec(species=species)
    whole, index = Index.build(frames, spec, H), Index.build(frames[:2], spec, H)
    index.save(tmp_path / "a.qindex")
    index = Index.open(tmp_path / "a.qindex").extend(frames[2:])
    query = whole.spec.compute([alloy(99, 2), alloy(7, 2, rattle=0.4)])
    dH = whole.delta_entropy(query)
    error = np.abs(index.delta_entropy(query) - dH)
    assert (error <= rounding(whole, dH) + rounding(index, dH) + 1e-10 * np.maximum(1, np.abs(dH))).all()
    for threshold in np.quantile(dH, [0.1, 0.5, 0.9]):
        np.testing.assert_array_equal(index.exceeds(query, threshold), index.delta_entropy(query) > threshold)
    index.save(tmp_path / "b.qindex")
    Index.verify(tmp_path / "b.qindex")
    again = Index.open(tmp_path / "b.qindex")
    np.testing.assert_array_equal(again.delta_entropy(query), index.delta_entropy(query))
    assert (again.generation, again.elements) == (1, ("Cu", "Zr"))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.0, 0.7), species=st.sampled_from(["ignore", "neighbours"]))
def test_no_dH_rises(seed, scale, species):
    index = Index.build([alloy(seed) for seed in range(2)], DescriptorSpec(species=species), H)
    query = index.spec.compute(alloy(seed, 2, rattle=scale))
    before, after = index.delta_entropy(query), index.extend(alloy(seed + 1, 2)).delta_entropy(query)
    assert (after <= before + 1e-10 * np.maximum(1.0, np.abs(before))).all()


def test_what_was_added_is_known_afterwards_and_the_parent_is_what_it_was(tmp_path):
    index = Index.build(silicon_frames())
    index.save(tmp_path / "si.qindex")
    content = (tmp_path / "si.qindex").read_bytes()
    index = Index.open(tmp_path / "si.qindex")
    new = index.extend(molten(1))
    dH = index.delta_entropy(molten(1))
    assert dH.min() > 1
    assert new.delta_entropy(molten(1)).max() < 1e-3
    np.testing.assert_array_equal(index.delta_entropy(molten(1)), dH)
    new.save(tmp_path / "new.qindex")
    assert (tmp_path / "si.qindex").read_bytes() == content


def test_the_rows_of_the_parent_are_not_rounded_again():
    index = Index.build(silicon_frames())
    new = index.extend(molten(1)).extend([molten(2), molten(3)])
    rows, old = np.empty_like(new.rows), np.empty_like(index.rows)
    rows[new.order], old[index.order] = new.rows, index.rows
    np.testing.assert_array_equal(rows[: len(index)], old)
    np.testing.assert_array_equal(new.centre, index.centre)


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_decide_as_one_does(size):
    index = Index.build(silicon_frames()).extend(molten(1))
    frame = Frame.from_atoms(molten(2), step=3)
    alone = Monitor(index, select=5.0, halt=1e6).observe(frame)
    owners = np.random.default_rng(0).integers(0, size, len(frame.numbers))

    def watch(comm):
        part = ranks.part_of(molten(2), frame, owners, comm.rank)
        return Monitor(index, select=5.0, halt=1e6, comm=comm).observe(part)

    for decision in ranks.run(size, watch):
        assert (decision.band, decision.n_select, decision.max_id) == (alone.band, alone.n_select, alone.max_id)
        assert decision.maximum == pytest.approx(alone.maximum, rel=1e-10)


def test_an_index_of_the_first_days_is_extended(tmp_path):
    old = Index.open(DATA / "format1_without_tree.qindex")
    symbol = old.elements[0]
    atoms = bulk(symbol, cubic=True) * 2
    atoms.rattle(0.3, seed=1)
    new = old.extend(atoms)
    new.save(tmp_path / "new.qindex")
    Index.verify(tmp_path / "new.qindex")
    assert (new.generation, len(new)) == (old.generation + 1, len(old) + len(atoms))
    assert new.delta_entropy(atoms).max() < 1e-3 < old.delta_entropy(atoms).max()


# -- elements --------------------------------------------------------------------------------------


@pytest.mark.parametrize("species", ["ignore", "centre"])
def test_a_new_element_is_taken_where_the_descriptor_has_no_blocks_of_elements(species):
    index = Index.build(alloy(0), DescriptorSpec(species=species), H)
    new = index.extend(alloy(1, symbols=("Cu", "Al")))
    whole = Index.build([alloy(0), alloy(1, symbols=("Cu", "Al"))], DescriptorSpec(species=species), H)
    assert new.elements == whole.elements == ("Al", "Cu", "Zr")
    np.testing.assert_array_equal(new.pair_distances, whole.pair_distances)
    assert np.isinf(new.pair_distances[0, 2])  # Al and Zr never met
    query = whole.spec.compute(alloy(5, symbols=("Al", "Zr")))
    np.testing.assert_allclose(new.delta_entropy(query), whole.delta_entropy(query), rtol=1e-5, atol=1e-4)
    with pytest.raises(ElementError, match="Al"):
        index.delta_entropy(alloy(5, symbols=("Al", "Zr")))


@pytest.mark.parametrize("species", ["full", "neighbours"])
def test_a_new_element_is_refused_where_the_blocks_are_those_of_others(species):
    index = Index.build(alloy(0), DescriptorSpec(species=species), H)
    with pytest.raises(ElementError, match="Al is not among the elements of the descriptor, Cu, Zr"):
        index.extend(alloy(1, symbols=("Cu", "Al")))
    wide = Index.build(alloy(0), DescriptorSpec(species=species, elements=("Al", "Cu", "Zr")), H)
    assert wide.extend(alloy(1, symbols=("Cu", "Al"))).elements == ("Al", "Cu", "Zr")


def test_a_second_element_needs_a_choice_that_was_not_made():
    with pytest.raises(InputError, match="species was not given"):
        Index.build(silicon_frames()).extend(bulk("Cu", cubic=True))


# -- what it keeps, and what not -------------------------------------------------------------------


def test_provenance_lists_the_generations(tmp_path):
    index = Index.build(silicon_frames(), sources=[{"file": "si.xyz", "sha256": "ab"}])
    index.save(tmp_path / "0.qindex")
    one = index.extend([molten(1), molten(2)], sources=[{"file": "melt.xyz", "sha256": "cd"}])
    one.save(tmp_path / "1.qindex")
    two = Index.open(tmp_path / "1.qindex").extend(molten(3))
    assert two.provenance["sources"] == index.provenance["sources"]
    assert two.provenance["created"] == index.provenance["created"]
    first, second = two.provenance["generations"]
    assert (first["generation"], first["parent"], first["frames"], first["environments"]) == (1, index.hash, 2, 32)
    assert first["sources"] == [{"file": "melt.xyz", "sha256": "cd"}]
    assert (second["generation"], second["parent"], second["frames"], second["sources"]) == (2, one.hash, 1, [])
    assert "generations" not in index.provenance


def test_a_calibration_is_not_taken_over():
    index = Index.build(silicon_frames())
    index.calibration = calibrate(index)
    new = index.extend(molten(1))
    assert new.calibration is None
    assert calibrate(new).frames > index.calibration.frames


def test_groups_are_carried_on_and_all_frames_have_one_or_none():
    index = Index.build(grouped(silicon_frames(), *"aabbccdd"))
    new = index.extend(grouped([molten(1), molten(2)], "d", "e"))
    assert new.frame_groups == (*"aabbccdd", "d", "e")
    assert calibrate(new).groups == 5
    with pytest.raises(InputError, match="frames of the index have a group and those of the added frames have none"):
        index.extend(molten(1))
    with pytest.raises(InputError, match="frames of the added frames have a group"):
        Index.build(silicon_frames()).extend(grouped([molten(1)], "d"))


def test_nothing_to_add_is_an_error():
    index = Index.build(silicon_frames())
    for nothing in ([], Frame(np.empty((0, 3)), np.empty(0, int))):
        with pytest.raises(InputError, match="nothing to extend the index with"):
            index.extend(nothing)


# -- the command -----------------------------------------------------------------------------------


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, frames in {"ref.xyz": silicon_frames(), "melt.xyz": [molten(seed) for seed in range(3)]}.items():
        ase.io.write(name, frames)
    run("index", "build", "ref.xyz", "-o", "si.qindex")
    return tmp_path


def test_the_command_shows_the_old_and_the_new(files):
    said = run("index", "extend", "si.qindex", "melt.xyz@:2", "-o", "new.qindex")
    lines = said.stdout.splitlines()
    assert lines[0] == "new.qindex: an index"
    at = next(i for i, line in enumerate(lines) if line.startswith("  environments"))
    assert lines[at].split()[1:] == ["128", "in", "10", "frames"]
    assert lines[at + 1].split() == ["before", "96", "in", "8", "frames"]
    at = next(i for i, line in enumerate(lines) if line.startswith("  generation"))
    assert (lines[at].split(), lines[at + 1].split()) == (["generation", "1"], ["before", "0"])
    assert Index.open("new.qindex").calibration is not None
    shown = run("index", "info", "new.qindex").stdout
    assert "ref.xyz@:  sha256" in shown
    assert "generation 1       adds 32 environments in 2 frames" in shown
    assert "melt.xyz@:2  sha256" in shown
    run("index", "verify", "new.qindex")


def test_the_command_may_replace_the_index_but_no_other_file(files):
    run("index", "extend", "si.qindex", "melt.xyz", "-o", "si.qindex", "--no-calibrate")
    index = Index.open("si.qindex")
    assert (index.generation, index.calibration) == (1, None)
    assert "is not an index" in run("index", "extend", "si.qindex", "melt.xyz", "-o", "ref.xyz", code=1).stderr
