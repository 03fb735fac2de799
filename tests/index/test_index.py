"""The index: what it answers, and what its file keeps."""

from __future__ import annotations

import dataclasses
import resource

import naive
import numpy as np
import pytest
from ase.build import bulk, fcc111
from indexes import silicon_frames, silicon_index, written
from paths import DATA
from rounding import assert_promised

from quests_md.descriptors import DescriptorSpec
from quests_md.errors import ElementError, FrameError, InputError, OutputError
from quests_md.frame import Frame
from quests_md.index import Index
from quests_md.information import delta_entropy

NODES = ("node_centres", "node_radius", "node_spread")


@pytest.fixture(scope="module")
def frames():
    return silicon_frames()


@pytest.fixture(scope="module")
def index():
    return silicon_index()


@pytest.fixture(scope="module")
def saved(index, tmp_path_factory):
    """The path of the saved index."""
    path = tmp_path_factory.mktemp("index") / "si.qindex"
    index.save(path)
    return path


@pytest.fixture
def content(saved):
    """The bytes of the saved index."""
    return saved.read_bytes()


# -- what it answers -------------------------------------------------------------------------------


def test_dH_is_that_of_the_rows_in_double_precision(index, frames, structure):
    reference = DescriptorSpec().compute(frames)
    rng = np.random.default_rng(0)
    near = reference + rng.normal(0, 0.01, reference.shape)
    far = reference + rng.normal(0, 1.0, reference.shape)
    query = np.vstack([reference, near, far, DescriptorSpec().compute(structure("molten"))])
    expected = delta_entropy(query, reference)
    assert expected.min() < 0
    assert expected.max() > 1e5
    error = np.abs(index.delta_entropy(query) - expected)
    longest = np.linalg.norm(reference - reference.mean(axis=0), axis=1).max()
    bound = 6e-8 * longest * np.sqrt(2 * (expected + np.log(len(reference)))) / 0.015
    assert np.all(error <= bound + 1e-10 * np.abs(expected))
    assert np.all(error <= np.maximum(1e-5, 1e-6 * expected))
    assert error.max() > 0  # else the rows are not in single precision


def test_frames_and_rows_give_the_same(index, frames, structure):
    query = [structure("molten"), frames[3], Frame.from_atoms(structure("si"))]
    rows = DescriptorSpec().compute(query)
    assert np.array_equal(index.delta_entropy(query), index.delta_entropy(rows))
    assert np.array_equal(index.delta_entropy(query[0]), index.delta_entropy(rows[: len(query[0])]))
    assert np.array_equal(index.log_kernel_sum(query), -index.delta_entropy(rows))


def test_exceeds_is_strictly_above(index, structure):
    query = DescriptorSpec().compute(structure("si_rattled"))
    dH = index.delta_entropy(query)
    for threshold in (dH[0], np.nextafter(dH[0], -np.inf), np.median(dH)):
        assert np.array_equal(index.exceeds(query, threshold), dH > threshold)
    assert not index.exceeds(query[:1], dH[0])[0]
    for threshold, expected in ((np.inf, False), (-np.inf, True), (1e7, False)):
        assert (index.exceeds(query, threshold) == expected).all()


def test_upper_bounds_tell_what_lies_above_whatever_is_remembered(index, structure):
    query = DescriptorSpec().compute([structure("si"), structure("molten"), structure("si_rattled")])
    dH = index.delta_entropy(query)
    memory = np.random.default_rng(0).integers(-30, 30, len(query)).astype(np.int32)
    for threshold in (-3.0, 0.0, float(np.median(dH)), 5.0, 20.0, 300.0):
        for threads in (1, 2):
            bound = index.upper_bound(query, threshold, memory, threads)
            np.testing.assert_array_equal(bound > threshold, dH > threshold)
            assert (bound >= dH - 1e-9 * np.maximum(1.0, np.abs(dH))).all()


def test_a_memory_that_does_not_fit_is_refused(index, structure):
    query = DescriptorSpec().compute(structure("si"))
    for memory in (np.full(7, -1, np.int32), np.full(8, -1, np.int64), np.full((8, 1), -1, np.int32)):
        with pytest.raises(InputError, match=r"memory must be \(8,\) int32, not"):
            index.upper_bound(query, 5.0, memory)


def test_queries_that_are_no_numbers_or_of_another_width_are_refused(index, structure):
    query = DescriptorSpec().compute(structure("si"))
    for value in (np.nan, np.inf):
        query[1, 5] = value
        with pytest.raises(InputError, match="not finite"):
            index.exceeds(query, 5.0)
    with pytest.raises(InputError, match=r"query must have shape \(n, 63\), not \(8, 62\)"):
        index.exceeds(query[:, 1:], 5.0)


def test_it_knows_what_it_was_built_with(index, frames):
    assert len(index) == sum(len(f) for f in frames) == len(index.numbers)
    rows = np.concatenate([index.spec.compute(frame) for frame in frames])
    np.testing.assert_allclose(index.rows + index.centre, rows[index.order], rtol=0, atol=1e-7)
    assert index.frame_offsets.tolist() == np.cumsum([0] + [len(f) for f in frames]).tolist()
    assert (index.spec, index.bandwidth, index.generation) == (DescriptorSpec(), 0.015, 0)
    assert (index.elements, set(index.numbers)) == (("Si",), {14})
    assert (index.ready, index.rows.dtype) == (True, np.float32)
    assert index.provenance["sources"] == [{"file": "si.xyz", "sha256": "ab"}]
    assert index.provenance["bandwidth_rule"] == "given"
    assert {"created", "versions"} <= set(index.provenance)


def test_other_elements_and_other_descriptors_are_refused(index, structure):
    with pytest.raises(ElementError, match="Cu is not in the index, which knows Si"):
        index.delta_entropy(structure("cu"))
    with pytest.raises(ElementError, match="Na, Cl is not in the index"):
        index.delta_entropy(structure("nacl"))
    with pytest.raises(InputError, match=r"query must have shape \(n, 63\), not \(8, 31\): other descriptors"):
        index.delta_entropy(DescriptorSpec(16).compute(structure("si")))


@pytest.mark.parametrize("frames", [[], [Frame(np.empty((0, 3)), np.empty(0, int))], [Frame([[0, 0, 0]], [0])]])
def test_an_empty_reference_is_refused(frames):
    with pytest.raises(InputError, match="the reference is empty"):
        Index.build(frames)


def test_a_reference_that_has_no_descriptor_is_refused(structure):
    with pytest.raises(InputError, match="2 elements, and species was not given"):
        Index.build([structure("si"), structure("cu")])
    with pytest.raises(FrameError, match="singular"):
        Index.build(Frame([[0.0, 0, 0]], [14], None, True), bandwidth="auto")
    with pytest.raises(InputError, match="bandwidth must be a positive number"):
        Index.build(structure("si"), bandwidth="volume")


def test_smallest_distances_are_kept_per_pair_of_elements(structure):
    atoms, ne = structure("nacl"), structure("sparse")
    ne.numbers[:] = 10
    built = Index.build([atoms, ne], DescriptorSpec(species="ignore"))
    assert built.elements == ("Ne", "Na", "Cl")
    kinds = np.where(atoms.numbers == 11, 0, 1)
    expected = np.full((3, 3), np.inf)
    expected[1:, 1:] = naive.minimum_distances(atoms.positions, atoms.cell, atoms.pbc, kinds, 5.0)
    expected[0, 0] = naive.minimum_distances(ne.positions, ne.cell, ne.pbc, [0] * len(ne), 5.0)[0, 0]
    np.testing.assert_allclose(built.pair_distances, expected, rtol=1e-6)
    some = Frame.from_atoms(atoms, watched=(kinds == 0) | (np.arange(8) == kinds.argmax()))
    distances = Index.build(some, DescriptorSpec(species="ignore")).pair_distances
    assert np.array_equal(distances, distances.T)


# -- bandwidth="auto" ------------------------------------------------------------------------------


def test_the_automatic_bandwidth_is_that_of_the_volume_per_atom(structure, quests):
    built = Index.build([structure("si"), structure("si_rattled")], bandwidth="auto")
    assert built.bandwidth == pytest.approx(quests.bandwidth(5.43**3 / 8), rel=1e-12)
    assert built.bandwidth == pytest.approx(0.029, abs=2e-3)
    assert built.provenance["bandwidth_rule"] == "volume"


def test_vacuum_and_open_frames_do_not_count():
    solid, slab = bulk("Al", cubic=True), fcc111("Al", (2, 2, 3), vacuum=8.0, periodic=True)
    cluster = solid.copy()
    cluster.pbc = False
    alone = Index.build(solid, bandwidth="auto").bandwidth
    assert Index.build([solid, slab, cluster], bandwidth="auto").bandwidth == alone
    part = Frame.from_atoms(solid, n_local=2)  # a rank of a frame does not know the volume per atom
    for frames in ([slab], [cluster], [slab, cluster], [part]):
        with pytest.raises(InputError, match="periodic in three directions and hold no vacuum"):
            Index.build(frames, bandwidth="auto")


@pytest.mark.parametrize("spec", [DescriptorSpec(32, 6.0), DescriptorSpec(16, 5.0)])
def test_the_automatic_bandwidth_holds_for_one_descriptor_only(structure, spec):
    with pytest.raises(InputError, match="holds for k = 32 and a cutoff of 5 Å"):
        Index.build(structure("si"), spec, "auto")


# -- the file --------------------------------------------------------------------------------------


def test_what_is_saved_is_opened(index, structure, tmp_path):
    path = tmp_path / "new" / "folder" / "si.qindex"
    index.save(path)
    Index.verify(path)
    opened = Index.open(path)
    for name in ("spec", "bandwidth", "elements", "generation", "provenance", "path", "hash"):
        assert getattr(opened, name) == getattr(index, name)
    for name in ("rows", "centre", "frame_offsets", "numbers", "pair_distances", "order", *NODES):
        assert np.array_equal(getattr(opened, name), getattr(index, name))
        assert getattr(opened, name).dtype == getattr(index, name).dtype
    query = structure("molten")
    assert np.array_equal(opened.delta_entropy(query), index.delta_entropy(query))
    assert opened.describe() == index.describe()
    assert opened.describe()["path"] == str(path)


def test_a_file_from_before_the_search_tree_is_still_opened(index, structure):
    path = DATA / "format1_without_tree.qindex"
    Index.verify(path)
    opened = Index.open(path)
    for name in ("rows", "numbers", "order", *NODES):
        np.testing.assert_allclose(getattr(opened, name), getattr(index, name), rtol=1e-5, atol=1e-7)
    query = structure("molten")
    np.testing.assert_allclose(opened.delta_entropy(query), index.delta_entropy(query), rtol=1e-5)
    assert np.array_equal(opened.exceeds(query, 5.0), opened.delta_entropy(query) > 5.0)


@pytest.mark.parametrize("laid_out", [40, 100_000])
def test_opened_rows_are_read_only_and_can_be_saved_over(content, tmp_path, monkeypatch, laid_out):
    """Those of a large index are mapped, too."""
    monkeypatch.setattr("quests_md.index._parts.LAID_OUT", laid_out)
    opened = Index.open(path := written(tmp_path, content))
    assert isinstance(opened.rows.base, np.memmap) == (laid_out == 40)
    assert not opened.rows.flags.writeable
    opened.save(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("failing", ["os.fsync", "os.replace"])
def test_a_failing_write_leaves_the_old_file(index, tmp_path, monkeypatch, failing):
    path = written(tmp_path, b"the old file")

    def fail(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(failing, fail)
        with pytest.raises(OutputError, match=f"{path}: cannot be written: No space left"):
            index.save(path)
    assert path.read_bytes() == b"the old file"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_may_not_grow_leaves_the_old_file(index, content, tmp_path):
    path, old = written(tmp_path, b"the old file"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) // 2, old[1]))
    try:
        with pytest.raises(OutputError, match=f"{path}: cannot be written: File too large"):
            index.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert path.read_bytes() == b"the old file"
    assert list(tmp_path.iterdir()) == [path]


def test_elements_that_are_neighbours_only_are_known(structure, tmp_path):
    atoms = structure("nacl")
    frame = Frame.from_atoms(atoms, watched=atoms.numbers == 11)
    Index.build(frame, DescriptorSpec(species="ignore"), threads=1).save(tmp_path / "na.qindex")
    opened = Index.open(tmp_path / "na.qindex")
    assert opened.elements == ("Na", "Cl")
    assert set(opened.numbers) == {11}
    assert opened.pair_distances.shape == (2, 2)
    assert len(opened.delta_entropy(frame)) == len(opened)


def test_a_large_index_is_laid_out_in_turn(index, monkeypatch):
    query = index.rows[::7].astype(float) + index.centre + 0.01
    expected = index.log_kernel_sum(query)
    monkeypatch.setattr("quests_md.index._parts.LAID_OUT", 40)
    large = Index(**{field.name: getattr(index, field.name) for field in dataclasses.fields(index)})
    assert len(large) > 2 * 40
    for few in (0, len(query) + 1):  # both ways
        monkeypatch.setattr("quests_md.index._parts.FEW", few)
        assert_promised(large.log_kernel_sum(query), expected)
    assert not large._parts[0]._blocks
