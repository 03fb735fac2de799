"""The index: what it answers, what its file keeps, and every broken file as one clear error."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import resource

import naive
import numpy as np
import pytest
from ase.build import bulk, fcc111
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quests_md.descriptors import DescriptorSpec
from quests_md.errors import ElementError, FrameError, IndexFileError, InputError, OutputError
from quests_md.frame import Frame
from quests_md.index import Index
from quests_md.information import delta_entropy

PREFIX = 48  # magic, length, hash


@pytest.fixture(scope="module")
def frames(structure):
    """Eight rattled silicon frames of 8 and 16 atoms."""
    made = [bulk("Si", cubic=True) * (1, 1, 1 + seed % 2) for seed in range(8)]
    for seed, atoms in enumerate(made):
        atoms.rattle(0.02 + 0.02 * seed, seed=seed)
    return made


@pytest.fixture(scope="module")
def index(frames):
    return Index.build(frames, sources=[{"file": "si.xyz", "sha256": "ab"}])


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


def test_it_knows_what_it_was_built_with(index, frames):
    assert len(index) == sum(len(f) for f in frames) == len(index.numbers)
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
    with pytest.raises(InputError, match="query has 31 columns, reference has 63"):
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
    for name in ("rows", "centre", "frame_offsets", "numbers", "pair_distances"):
        assert np.array_equal(getattr(opened, name), getattr(index, name))
        assert getattr(opened, name).dtype == getattr(index, name).dtype
    query = structure("molten")
    assert np.array_equal(opened.delta_entropy(query), index.delta_entropy(query))
    assert opened.describe() == index.describe()
    assert opened.describe()["path"] == str(path)


def test_opened_rows_are_mapped_and_read_only_and_can_be_saved_over(content, tmp_path):
    opened = Index.open(path := written(tmp_path, content))
    assert isinstance(opened.rows.base, np.memmap)
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


# -- broken and hostile files ----------------------------------------------------------------------


def written(folder, content):
    path = folder / "si.qindex"
    path.write_bytes(content)
    return path


def header_of(content):  # and what follows it
    length = int.from_bytes(content[8:16], "little")
    return content[PREFIX : PREFIX + length], content[PREFIX + length :]


def forged(content, header):
    """Return the index with another header, whose hash is right."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size, digest = len(text).to_bytes(8, "little"), hashlib.sha256(text).digest()
    return b"".join([content[:8], size, digest, text, header_of(content)[1]])


def refuse(path, action=Index.open, match=None):
    with pytest.raises(IndexFileError, match=match) as caught:
        action(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "not an index"),
        (b"QUEST", "not an index"),
        (b"8\nLattice=...\nSi 0 0 0\n" * 50, "not an index"),
        (b"QUESTSMD", "truncated"),
        (b"QUESTSMD" + b"\xff" * 40, "truncated or damaged"),
        (b"QUESTSMD" + (1 << 40).to_bytes(8, "little") + b"\0" * 200, "truncated or damaged"),
        (b"QUESTSMD" + (20).to_bytes(8, "little") + b"\0" * 200, "checksum differs"),
    ],
)
def test_files_that_are_no_index_are_refused(tmp_path, content, match):
    refuse(tmp_path / "nothing.qindex", match="no such index")
    refuse(tmp_path, match="cannot be read")
    for action in (Index.open, Index.verify):
        refuse(written(tmp_path, content), action, match)


REUSED = [HealthCheck.function_scoped_fixture]  # the folder
FOLDER_IS_REUSED = settings(max_examples=60, deadline=None, suppress_health_check=REUSED)


@FOLDER_IS_REUSED
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(saved, tmp_path, share):
    content = saved.read_bytes()
    refuse(written(tmp_path, content[: int(share * len(content))]))


def test_a_longer_file_and_one_less_a_byte_are_refused(content, tmp_path):
    refuse(written(tmp_path, content + b"\0"), match="truncated or damaged")
    refuse(written(tmp_path, content[:-1]), match="truncated or damaged")


@FOLDER_IS_REUSED
@given(data=st.data(), bit=st.integers(0, 7))
def test_one_flipped_bit_of_the_header_is_seen_when_it_is_opened(saved, tmp_path, data, bit):
    content = saved.read_bytes()
    place = data.draw(st.integers(0, PREFIX + len(header_of(content)[0]) - 1))
    refuse(written(tmp_path, flipped(content, place, bit)))


@FOLDER_IS_REUSED
@given(data=st.data(), bit=st.integers(0, 7))
def test_one_flipped_bit_of_the_data_is_seen_when_it_is_verified(saved, tmp_path, data, bit):
    content = saved.read_bytes()
    text, values = header_of(content)
    entry = data.draw(st.sampled_from(list(json.loads(text)["sections"].values())))
    size = np.dtype(entry["dtype"]).itemsize * int(np.prod(entry["shape"]))
    place = len(content) - len(values) + entry["offset"] + data.draw(st.integers(0, size - 1))
    refuse(written(tmp_path, flipped(content, place, bit)), Index.verify, "damaged")


def flipped(content, place, bit):
    return content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]


def forge(key, value):
    return lambda header: header | {key: value}


def forge_spec(key, value):
    return lambda header: header | {"spec": header["spec"] | {key: value}}


def forge_rows(key, value):
    return lambda header: (
        header | {"sections": header["sections"] | {"rows": header["sections"]["rows"] | {key: value}}}
    )


NAN, INF = float("nan"), float("inf")
SECTIONS = ["rows", "centre", "frame_offsets", "numbers", "pair_distances"]
MALFORMED = {  # what a header must not say, and where
    forge: {
        "format": [0, -1, True, "1", 1.0, None],
        "bandwidth": [NAN, INF, 0.0, -0.01, True, "0.015"],
        "generation": [True, -1, 0.5],
        "data_bytes": [True, -64, "0", 1 << 60],
        "provenance": [[], None],
        "spec": [[32, 5.0], None, {"more": 1}],
        "elements": ["Si", None],
        "sections": [{}, None, ["rows"], SECTIONS, dict.fromkeys(SECTIONS), dict.fromkeys(SECTIONS, "rows")],
    },
    forge_spec: {
        "k": [True, 1, 32.0, "32"],
        "cutoff": [True, 0.0, INF, None],
        "species": [["ignore"], "Si", 1],
    },
    forge_rows: {
        "dtype": ["<f8", "|O", None],
        "sha256": [3, None],
        "offset": [4, -64, 1 << 40, True, None],
        "shape": [
            [-96, -63],
            [True, 63],
            [96.0, 63],
            [1 << 47, 63],
            [1 << 63, 1 << 63],
            [96 * 63],
            "ab",
            None,
        ],
    },
}
HOSTILE = [
    *((f(k, value), "malformed") for f, keys in MALFORMED.items() for k in keys for value in keys[k]),
    *((lambda h, k=k: {n: v for n, v in h.items() if n != k}, "malformed") for k in MALFORMED[forge]),
    *((lambda h, v=v: v, "malformed") for v in (b"{" * 50, b'"\xff\xfe"', b"[" * 100_000, [{}], {}, 3)),
    *((forge("elements", v), "list of elements") for v in ([], ["Ge"], ["Si", "Zz"], ["Si", "X"])),
    (forge("elements", ["Si", "Ge"]), "pairs of elements"),
    (forge("elements", [14]), "malformed"),
    *((forge_spec("k", v), "width of the rows") for v in (31, 33, 10**30)),
    (forge("format", 2), "format 2 is newer than format 1: upgrade"),
    (forge("data_bytes", 1 << 30), "truncated or damaged"),
    (forge_rows("shape", [0, 63]), "section rows is empty"),
    (forge_rows("shape", [95, 63]), "frame offsets"),
]


@pytest.mark.parametrize(("change", "match"), HOSTILE)
def test_hostile_headers_with_a_right_hash_are_refused(content, tmp_path, change, match):
    header = json.loads(header_of(content)[0])
    refuse(written(tmp_path, forged(content, change(header))), match=match)


@pytest.mark.parametrize(
    ("section", "place", "value", "match"),
    [
        ("centre", 0, np.nan, "centre is not finite"),
        ("frame_offsets", 0, -3, "frame offsets"),
        ("frame_offsets", 1, 10**6, "frame offsets"),
        ("frame_offsets", -1, 95, "frame offsets"),
        ("numbers", 0, 0, "atomic numbers"),
        ("numbers", 0, 300, "atomic numbers"),
        ("numbers", 0, 32, "list of elements"),
        ("pair_distances", 0, np.nan, "smallest distances"),
        ("rows", 0, np.inf, "rows holds values that are not finite"),
    ],
)
def test_impossible_content_with_a_right_checksum_is_refused(content, tmp_path, section, place, value, match):
    text, values = header_of(content)
    header, values = json.loads(text), bytearray(values)
    entry = header["sections"][section]
    array = np.frombuffer(values, entry["dtype"], int(np.prod(entry["shape"])), entry["offset"])
    array[place] = value
    entry["sha256"] = hashlib.sha256(array.tobytes()).hexdigest()
    damaged = forged(content, header)[: -len(values)] + bytes(values)
    refuse(written(tmp_path, damaged), Index.verify, match)


def test_a_large_index_is_laid_out_in_turn(index, monkeypatch):
    query = index.rows[::7].astype(float) + index.centre + 0.01
    expected = index.log_kernel_sum(query)
    large = Index(**{field.name: getattr(index, field.name) for field in dataclasses.fields(index)})
    monkeypatch.setattr("quests_md.index._index._LAID_OUT", 40)
    assert len(large) > 2 * 40
    assert np.allclose(large.log_kernel_sum(query), expected, rtol=1e-12, atol=1e-12)
    assert not large._blocks
